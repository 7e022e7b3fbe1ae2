"""`tfidf_baseline`: what counting words reaches on the same data."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptclf import checks
from gptclf.data.dataset import TextDataset
from gptclf.results.evaluation import Evaluation
from gptclf.tasks import SingleLabel

# The probability of a class that has no row in the training set.
_NEVER = 1e-7

# A word of any length, or one other character, such as an emoji.
_TOKEN = r"\w+|[^\w\s]"

# Without a limit, large collections have millions of features, and the solver keeps 20 arrays of their coefficients.
_COUNTING: dict[str, Any] = {"sublinear_tf": True, "max_features": 100_000}


def tfidf_baseline(
    train_set: TextDataset,
    test_set: TextDataset,
    *,
    class_weight: str | Mapping[Any, float] | None = None,
    C: float = 10.0,
) -> Evaluation:
    """Measure logistic regression on counts of words and parts of words: a floor that a model should beat.

    Features are the TF-IDF weights of words, pairs of words, and runs of 2 to 5 characters within words, the 100,000
    most frequent ones of each kind. It trains in seconds, and where topics differ by their words it is hard to beat.
    `compare(evaluate(clf, test_set), tfidf_baseline(train_set, test_set))` sets it beside a model. It needs
    scikit-learn.

    Args:
        train_set: Texts with one class each. Its weights count.
        test_set: Labelled texts to measure on.
        class_weight: As in `SingleLabel`.
        C: The inverse of the strength of regularisation, as in scikit-learn's `LogisticRegression`.

    Returns:
        An evaluation, with the classes in the order of `train_set.classes`. Its `outputs` are logarithms of
        probabilities. A class without a row in the training set is never the answer.

    Raises:
        ImportError: scikit-learn is not installed.
        TypeError: A data set is not a TextDataset whose texts have one class each.
        ValueError: A data set is empty, or a label of the test set is not among the classes.

    Example:
        >>> from gptclf import load_gpt2
        >>> tokenizer = load_gpt2("nano").tokenizer
        >>> train_set = TextDataset(["hi you", "win cash"] * 5, ["ham", "spam"] * 5, tokenizer=tokenizer)
        >>> test_set = TextDataset(["you there", "win, win!"], ["ham", "spam"], tokenizer=tokenizer)
        >>> tfidf_baseline(train_set, test_set).predictions
        ['ham', 'spam']
    """
    for name, given in (("train_set", train_set), ("test_set", test_set)):
        checks.instance(name, given, TextDataset, "a TextDataset with labels")
        if not len(given):
            raise ValueError(f"{name} is empty; it needs at least one labelled text")
    with checks.naming("train_set"):
        targets, classes = train_set.targets(), train_set.classes
    if classes is None or targets.ndim != 1:
        raise TypeError(f"train_set is of the task {train_set.task}; tfidf_baseline needs texts with one class each")
    task = SingleLabel(classes, class_weight).fitted(targets)
    with checks.naming("train_set"):
        task.check_training(targets)
    with checks.naming("test_set"):
        test_set.targets(task)
    found = _fit(train_set, targets, task, checks.number("C", C, above=0))
    outputs = np.full((len(test_set), task.n_outputs), np.log(_NEVER), dtype=np.float32)
    outputs[:, found.classes_] = found.predict_log_proba(test_set.texts)
    return Evaluation.of(task, outputs, test_set.labels_for(task), test_set.texts)


def _fit(train_set: TextDataset, targets: NDArray[np.int64], task: SingleLabel, C: float) -> Any:
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline, make_union
    except ImportError as error:
        raise ImportError("tfidf_baseline needs scikit-learn: pip install 'gptclf[sklearn]'") from error
    weights = np.ones(len(targets)) if train_set.weights is None else train_set.weights.astype(np.float64)
    if task.weights is not None:
        weights *= np.asarray(task.weights)[targets]
    words = TfidfVectorizer(ngram_range=(1, 2), token_pattern=_TOKEN, **_COUNTING)
    parts = TfidfVectorizer(ngram_range=(2, 5), analyzer="char_wb", **_COUNTING)
    model = make_pipeline(make_union(words, parts), LogisticRegression(C=C, max_iter=1000))
    return model.fit(train_set.texts, targets, logisticregression__sample_weight=weights)
