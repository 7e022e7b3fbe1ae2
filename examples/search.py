"""A search with scikit-learn: which layer of GPT-2, and how much regularisation, classify best?

    python examples/search.py                  # generated messages, half a minute
    python examples/search.py mails.csv        # a file with the columns text and label

20 settings in 5 folds train 100 classifiers, but each text goes through the model once for each layer.
"""

import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sources import texts_from

from gptclf.sklearn import GPT2Features

LAYERS, STRENGTHS = [0, 1, 2, 3, 4], [0.001, 0.01, 0.1, 1]

texts, labels = texts_from(sys.argv[1] if sys.argv[1:] else None, n=1200)
train_texts, test_texts, train_labels, test_labels = train_test_split(
    texts, labels, test_size=0.2, stratify=labels, random_state=123
)

steps = [
    ("features", GPT2Features("nano")),
    ("scale", StandardScaler()),
    ("logistic", LogisticRegression(max_iter=500)),
]
search = GridSearchCV(Pipeline(steps), {"features__layer": LAYERS, "logistic__C": STRENGTHS}, cv=5)
search.fit(train_texts, train_labels)
print(f"best: {search.best_params_}, accuracy {search.best_score_:.3f} in cross-validation")
print(f"test: accuracy {search.score(test_texts, test_labels):.3f}")
baseline = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(train_texts, train_labels)
print(f"words alone (TF-IDF): accuracy {baseline.score(test_texts, test_labels):.3f}")

scores = np.array(search.cv_results_["mean_test_score"]).reshape(len(LAYERS), len(STRENGTHS))
figure = Figure(figsize=(6, 5), layout="constrained")
axes = figure.subplots()
figure.colorbar(axes.imshow(scores, cmap="viridis"), label="accuracy in cross-validation")
axes.set_xticks(range(len(STRENGTHS)), map(str, STRENGTHS))
axes.set_yticks(range(len(LAYERS)), map(str, LAYERS))
axes.set(xlabel="C of the logistic regression", ylabel="layer of nano", title="Which layer classifies best?")
for (row, column), score in np.ndenumerate(scores):
    color = "black" if score > (scores.min() + scores.max()) / 2 else "white"
    axes.text(column, row, f"{score:.3f}", ha="center", va="center", color=color)
Path("runs/search").mkdir(parents=True, exist_ok=True)
figure.savefig("runs/search/scores.png")
print("picture: runs/search/scores.png")
