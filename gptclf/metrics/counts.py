"""Counts of right and wrong answers, and precision, recall and F1 from them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def confusion_matrix(targets: NDArray[np.int64], predictions: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """Count rows by true class (rows) and predicted class (columns): (C, C)."""
    return np.bincount(targets * n + predictions, minlength=n * n).reshape(n, n)


def per_class_scores(confusion: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """Return precision, recall, F1 and support (true rows) of every class, each (C,); 0 if nothing was counted."""
    return class_scores(np.diag(confusion), confusion.sum(axis=0), confusion.sum(axis=1))


def class_scores(hits: NDArray[Any], predicted: NDArray[Any], support: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Return the scores of every class from its right answers, all its answers and its true rows, each (..., C)."""
    precision = hits / np.maximum(predicted, 1)
    recall = hits / np.maximum(support, 1)
    f1 = 2 * hits / np.maximum(predicted + support, 1)
    return {"precision": precision, "recall": recall, "f1": f1, "support": support}


def averaged(scores: dict[str, NDArray[Any]], occurs: NDArray[np.bool_]) -> dict[str, Floats]:
    """Return macro and weighted averages of precision, recall and F1, (B,) from (B, C).

    A macro average is over the classes that occur among targets or predictions, as in scikit-learn; a weighted one
    counts each class by its true rows, and is 0 if there are none.
    """
    rows = scores["support"].sum(axis=1)
    found = {}
    for name in ("precision", "recall", "f1"):
        each = scores[name]
        found[f"{name}_macro"] = (each * occurs).sum(axis=1) / np.maximum(occurs.sum(axis=1), 1)
        found[f"{name}_weighted"] = (each * scores["support"]).sum(axis=1) / np.maximum(rows, 1)
    return found


def one_hot(columns: NDArray[np.int64], n: int) -> Floats:
    """Return a table (N, n) with a 1 in each row's column."""
    table = np.zeros((len(columns), n))
    table[np.arange(len(columns)), columns] = 1.0
    return table
