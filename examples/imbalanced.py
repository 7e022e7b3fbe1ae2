"""One spam in twenty: class weights and a threshold, and a picture of what each of them buys.

    python examples/imbalanced.py                  # generated messages, under a minute
    python examples/imbalanced.py mails.csv        # a file with the columns text and label; its rarest class counts

Accuracy says little here: calling everything ham is right 19 times in 20.
"""

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn import metrics
from sklearn.model_selection import TunedThresholdClassifierCV, train_test_split
from sources import texts_from

from gptclf.sklearn import GPT2Classifier

torch.set_num_threads(1)  # threads on tensors as small as nano's mostly wait for each other
texts, labels = (np.array(column, dtype=object) for column in texts_from(sys.argv[1] if sys.argv[1:] else None, n=3600))
if not sys.argv[1:]:
    keep = np.flatnonzero((labels == "ham") | (np.arange(len(labels)) % 19 == 0))  # about one spam in twenty
    texts, labels = texts[keep], labels[keep]
rare = min(Counter(labels).items(), key=lambda pair: pair[1])[0]
print(f"{len(texts)} texts, {np.mean(labels == rare):.1%} {rare}")
train_x, test_x, train_y, test_y = train_test_split(texts, labels, test_size=0.3, stratify=labels, random_state=123)

options: Any = {"epochs": 3, "batch_size": 16, "lr": 1e-3, "schedule": "cosine", "clip": 1.0}
f1 = metrics.make_scorer(metrics.f1_score, pos_label=rare)
candidates = {
    "as it is": GPT2Classifier("nano", **options),
    "class_weight='balanced'": GPT2Classifier("nano", class_weight="balanced", **options),
    "tuned threshold": TunedThresholdClassifierCV(GPT2Classifier("nano", **options), scoring=f1, cv=3),
}
figure = Figure(figsize=(7, 5), layout="constrained")
axes = figure.subplots()
for color, (name, clf) in enumerate(candidates.items()):
    answers = clf.fit(train_x, train_y).predict(test_x)
    precision, recall = (
        score(test_y, answers, pos_label=rare) for score in (metrics.precision_score, metrics.recall_score)
    )
    scores = clf.predict_proba(test_x)[:, list(clf.classes_).index(rare)]
    average = metrics.average_precision_score(test_y, scores, pos_label=rare)
    print(f"{name:>25}: precision {precision:.2f}, recall {recall:.2f}, average precision {average:.2f}")
    curve = metrics.precision_recall_curve(test_y, scores, pos_label=rare)
    axes.plot(curve[1], curve[0], color=f"C{color}", alpha=0.6)
    axes.plot(recall, precision, "o", color=f"C{color}", markersize=10, label=name)
axes.set(xlabel=f"recall of {rare}", ylabel=f"precision of {rare}", title="Dots: where each classifier answers")
axes.legend()
Path("runs/imbalanced").mkdir(parents=True, exist_ok=True)
figure.savefig("runs/imbalanced/precision-recall.png")
print("picture: runs/imbalanced/precision-recall.png")
