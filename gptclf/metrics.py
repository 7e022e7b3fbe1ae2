"""Arithmetic on results: confusion matrices, scores per class, and which numbers are not finite."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


def confusion_matrix(targets: NDArray[np.int64], predictions: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """Count rows by true class (rows) and predicted class (columns): (C, C)."""
    return np.bincount(targets * n + predictions, minlength=n * n).reshape(n, n)


def per_class_scores(confusion: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """Return precision, recall, F1 and support (true rows) of every class, each (C,); 0 if nothing was counted."""
    return class_scores(np.diag(confusion), confusion.sum(axis=0), confusion.sum(axis=1))


def class_scores(
    hits: NDArray[np.int64], predicted: NDArray[np.int64], support: NDArray[np.int64]
) -> dict[str, NDArray[Any]]:
    """Return the scores of every class from its right answers, all its answers and its true rows, each (C,)."""
    precision = hits / np.maximum(predicted, 1)
    recall = hits / np.maximum(support, 1)
    f1 = 2 * hits / np.maximum(predicted + support, 1)
    return {"precision": precision, "recall": recall, "f1": f1, "support": support}


def check_finite(computed: Tensor, model: nn.Module, what: str = "logits") -> None:
    """Raise if a model computed numbers that are not finite, naming the parameters at fault."""
    if not bool(torch.isfinite(computed).all()):
        raise FloatingPointError(f"the {what} are not finite. {blame(model)}")


def blame(model: nn.Module) -> str:
    """Say which parameters hold NaN or infinity."""
    bad = [name for name, parameter in model.named_parameters() if not bool(torch.isfinite(parameter).all())]
    if not bad:
        return "All weights are finite: the computation overflowed; try precision='float32' or a lower lr"
    more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
    return f"There is NaN or infinity in {', '.join(bad[:3])}{more}: load the weights again"
