"""Temperatures and thresholds of a classifier: checked, fitted to a validation set, and in words."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gptclf.checks import is_iterable, number, python_value

# A sum over rows is the same number in another order only up to this.
_SAME = 1e-12

# Temperatures are looked for between 1 / _FARTHEST and _FARTHEST.
_FARTHEST = 1000.0

Counts = NDArray[np.int64]


# By scikit-learn's names. From the correct answers and all answers of each class, both (..., C), and its rows (C,).
SCORINGS: dict[str, Callable[[Counts, Counts, Counts], NDArray[np.float64]]] = {
    "accuracy": lambda hits, _, rows: hits.sum(axis=-1) / rows.sum(),
    "balanced_accuracy": lambda hits, _, rows: (hits / np.maximum(rows, 1)).sum(axis=-1) / (rows > 0).sum(),
    "f1_macro": lambda hits, found, rows: (
        (2 * hits / np.maximum(found + rows, 1)).sum(axis=-1) / (found + rows > 0).sum(axis=-1)
    ),
}


def check_temperature(given: Any) -> float:
    """Return a temperature; it is neither so small that outputs divided by it overflow, nor so large that they vanish.

    Raises:
        TypeError: It is not a number.
        ValueError: It is out of these bounds.
    """
    return number("temperature", given, least=1e-6, most=1e6)


def check_thresholds(given: Any, classes: Sequence[Any]) -> dict[Any, float] | None:
    """Return thresholds by label, in the order of the classes; a number is that of the second of two classes.

    Raises:
        TypeError: A threshold is not a number.
        ValueError: One is not between 0 and 1, or its label is not among the classes, or both of two classes have one.
    """
    if given is None:
        return None
    if not hasattr(given, "items"):  # as a mapping and a pandas Series have
        if is_iterable(given) and not isinstance(given, str | bytes):
            rule = "a mapping from labels to numbers, or for two classes a number"
            raise TypeError(f"thresholds is a {type(given).__name__}; it must be {rule}")
        given = number("thresholds", given)
        if len(classes) != 2:
            problem = f"thresholds is {given!r}, but there are {len(classes)} classes"
            raise ValueError(f"{problem}; give a mapping from labels to thresholds")
        given = {classes[1]: given}
    found = {python_value(label): number(f"thresholds[{label!r}]", value) for label, value in given.items()}
    for label, value in found.items():
        if label not in classes:
            raise ValueError(f"thresholds names {label!r}, not among the classes {classes[:10]!r}")
        if not 0 < value < 1:
            raise ValueError(f"thresholds[{label!r}] is {value!r}; it must be above 0 and below 1")
    if len(classes) == len(found) == 2:
        raise ValueError(f"thresholds names both classes, {found!r}; name one: below its threshold, the other is meant")
    return {label: found[label] for label in classes if label in found} or None


def in_words(temperature: float, thresholds: Mapping[Any, float] | None) -> str:
    """Return a temperature other than 1 and thresholds in words; "" if there are none."""
    parts = [f"temperature {temperature:.4g}"] if temperature != 1.0 else []
    if thresholds:
        some = [f"{label} {value:.4g}" for label, value in thresholds.items()]
        parts.append(f"thresholds {', '.join(some[:5])}{', ...' * (len(some) > 5)}")
    return " and ".join(parts)


def log_odds(probability: float) -> float:
    """Return log(p / (1 - p))."""
    return math.log(probability / (1 - probability))


def answers_by_thresholds(
    outputs: Tensor, temperature: float, thresholds: Mapping[Any, float], classes: Sequence[Any]
) -> Tensor:
    """Return the column of each row's answer (N,) from outputs (N, C)."""
    if len(classes) == 2:
        [(label, threshold)] = thresholds.items()
        column = classes.index(label)
        return torch.where((outputs / temperature).softmax(dim=1)[:, column] >= threshold, column, 1 - column)
    shifts = [log_odds(thresholds.get(label, 0.5)) for label in classes]
    return (outputs.double() / temperature - outputs.new_tensor(shifts, dtype=torch.float64)).argmax(dim=1)


def fit_temperature(outputs: Tensor, targets: Tensor) -> float | None:
    """Return the T that minimises the mean cross-entropy of outputs / T (N, C), in float64.

    In 1 / T the cross-entropy is convex, so its derivative, the expected output less the target's, has one zero.

    Returns:
        The temperature, or None if no minimum exists: every target has the largest output, or the outputs say no
        more than chance.
    """
    outputs = outputs.double()
    right = outputs.gather(1, targets[:, None]).mean()

    def slope(log_beta: float) -> float:
        weights = (np.exp(log_beta) * outputs).softmax(dim=1)
        return float((weights * outputs).sum(dim=1).mean() - right)

    low, high = -np.log(_FARTHEST), np.log(_FARTHEST)
    if not slope(low) < 0 < slope(high):
        return None
    for _ in range(60):  # half the width each time: to the last bit of a float64
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return float(np.exp(-(low + high) / 2))


def fit_thresholds(
    probabilities: NDArray[np.float32],
    scores: NDArray[np.float64],
    targets: Counts,
    scoring: str,
    classes: Sequence[Any],
) -> dict[Any, float]:
    """Return the thresholds by label that score best; a class without one is best left as it is.

    Args:
        probabilities: The probabilities (N, C).
        scores: Their logarithms, up to a number for each row (N, C).
        targets: The column of each row's class (N,).
        scoring: One of `SCORINGS`.
        classes: The labels.
    """
    if len(classes) == 2:
        found = {classes[1]: fit_threshold(probabilities[:, 1], targets, scoring)}
    else:
        odds = np.exp(np.clip(fit_shifts(scores, targets, scoring), -30, 30))
        found = dict(zip(classes, (odds / (1 + odds)).tolist(), strict=True))
    return {label: value for label, value in found.items() if value != 0.5}


def fit_threshold(probabilities: NDArray[np.float32], targets: Counts, scoring: str, default: float = 0.5) -> float:
    """Return the t for which "class 1 if p >= t, else class 0" scores best; of equal ones the nearest to `default`."""
    start = _score((probabilities >= default).astype(np.int64), targets, 2, scoring)
    cut, found = _best_cut(probabilities, np.zeros_like(targets), targets, 1, 2, scoring, default)
    # A threshold of 1 is not one, but a probability may be 1.
    return min(cut, float(np.nextafter(np.float32(1), np.float32(0)))) if found > start + _SAME else default


def fit_shifts(scores: NDArray[np.float64], targets: Counts, scoring: str) -> NDArray[np.float64]:
    """Return the s (C,) for which argmax(scores - s) scores best, as far as changing one at a time leads from 0."""
    n, shifts = scores.shape[1], np.zeros(scores.shape[1])
    best = _score(scores.argmax(axis=1), targets, n, scoring)
    while True:
        before = best
        for chosen in range(n):
            others = scores - shifts
            others[:, chosen] = -np.inf
            margins = scores[:, chosen] - others.max(axis=1)
            cut, found = _best_cut(margins, others.argmax(axis=1), targets, chosen, n, scoring, shifts[chosen])
            if found > best + _SAME:
                shifts[chosen], best = cut, found
        if best == before:
            return shifts


def _score(answers: Counts, targets: Counts, n: int, scoring: str) -> float:
    hits, predicted, support = (np.bincount(x, minlength=n) for x in (targets[answers == targets], answers, targets))
    return float(SCORINGS[scoring](hits, predicted, support))


def _best_cut(
    margins: NDArray[Any], instead: Counts, targets: Counts, chosen: int, n: int, scoring: str, near: float
) -> tuple[float, float]:
    """Return the best value that a row's margin must reach to be answered `chosen`, not `instead`, and its score.

    Values lie in the middle between two different margins. Of equally good ones the nearest to `near` is returned.
    """
    order, rows = np.argsort(-margins, kind="stable"), np.arange(1, len(margins) + 1)
    margins, instead, targets = margins[order], instead[order], targets[order]
    # Row k: the k largest margins are answered `chosen`.
    hits, predicted = np.zeros((2, len(margins) + 1, n), dtype=np.int64)
    hits[0] = np.bincount(targets[instead == targets], minlength=n)
    predicted[0] = np.bincount(instead, minlength=n)
    hits[rows, instead] -= instead == targets
    hits[rows, chosen] += targets == chosen
    predicted[rows, instead] -= 1
    predicted[rows, chosen] += 1
    support = np.bincount(targets, minlength=n)
    found = SCORINGS[scoring](hits.cumsum(axis=0), predicted.cumsum(axis=0), support)[1:-1]
    upper, lower = margins[:-1], margins[1:]
    middle = lower + (upper - lower) / 2
    cuts = np.where(middle > lower, middle, upper)  # neighbouring numbers have no middle
    between = upper > lower
    if not between.any():
        return near, -np.inf
    good = np.flatnonzero(between & (found >= found[between].max() - _SAME))
    best = good[np.abs(cuts[good] - near).argmin()]
    return float(cuts[best]), float(found[best])
