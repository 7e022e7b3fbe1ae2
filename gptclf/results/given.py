"""Checks of what users give and ask for: settings of intervals, outputs of other models, pictures of a task."""

import logging
from math import inf
from typing import Any

import torch
from torch import Tensor

from gptclf.checks import integer, number
from gptclf.tasks import Task

logger = logging.getLogger(__name__)

# Logits of so few rows may sum to 1 by accident, or be made up.
_FEW = 5


def checked_settings(confidence: Any, n_resamples: Any, seed: Any) -> tuple[float, int, int]:
    """Return the level, the number of resamples and their seed.

    Raises:
        TypeError: One of them is not a number.
        ValueError: `confidence` is not between 0 and 1, or another number is out of range.
    """
    level = number("confidence", confidence, least=-inf)
    if not 0 < level < 1:
        raise ValueError(f"confidence is {level:g}; it must be above 0 and below 1, such as 0.95")
    return level, integer("n_resamples", n_resamples, 1, most=1_000_000), integer("seed", seed)


def checked_outputs(task: Task, outputs: Any, n: int) -> Tensor:
    """Return the outputs (N, n_outputs) of a task for n rows, as float32.

    Raises:
        ValueError: The shape is wrong or without rows, or a row holds NaN, +inf, or nothing but -inf.
    """
    found = torch.as_tensor(outputs, dtype=torch.float32, device="cpu")
    if found.shape != (n, task.n_outputs) or not n:
        expected = f"({n}, {task.n_outputs}) for {n} targets of the task {task}"
        raise ValueError(f"outputs has the shape {tuple(found.shape)}; it must be {expected}, and at least one row")
    sums = found.double().sum(dim=1)
    if n > _FEW and task.n_outputs > 1 and bool((found >= 0).all()) and bool(((sums - 1).abs() < 1e-4).all()):
        logger.warning(
            "outputs holds numbers that sum to 1 in each row: if they are probabilities, give np.log of them"
        )
    wrong = found.isnan() | (found == inf) | found.isneginf().all(dim=1, keepdim=True)
    if wrong.any():
        row = int(wrong.any(dim=1).nonzero()[0])
        raise ValueError(f"outputs, row {row}, is {found[row].tolist()}; it must hold finite numbers, or some -inf")
    return found


def check_detail(result: Any, name: str) -> Any:
    """Return the "confusion" or "per_class" of an evaluation, or raise a TypeError if its task has none."""
    if name not in result.details:
        what = {"confusion": "confusion matrix", "per_class": "scores of single classes"}[name]
        raise TypeError(f"there is nothing to plot: the task {result.task} has no {what}")
    return getattr(result, name)
