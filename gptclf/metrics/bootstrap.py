"""Percentile intervals by the bootstrap (Efron, 1979): how a measure varies over rows drawn anew from these rows."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# From one weight per row and resample (B, N) to measures, each (B,) or, per class, (B, C).
Statistic = Callable[[Floats], dict[str, NDArray[Any]]]

# Weights in memory at a time.
_CHUNK = 4_000_000


def resamples(n: int, n_resamples: int, seed: int) -> Iterator[Floats]:
    """Yield how often each of n rows is in each resample, (some, n), in pieces that fit into memory.

    The rows drawn are those of `scipy.stats.bootstrap` with the same seed.
    """
    rng = np.random.default_rng(seed)
    most = max(1, _CHUNK // n)
    for start in range(0, n_resamples, most):
        some = min(most, n_resamples - start)
        drawn = rng.integers(0, n, (some, n)) + n * np.arange(some)[:, None]
        yield np.bincount(drawn.ravel(), minlength=some * n).reshape(some, n).astype(np.float64)


def values(statistic: Statistic, n: int) -> dict[str, NDArray[Any]]:
    """Return the measures of n rows as they are: numbers, or arrays (C,)."""
    return {name: found[0] for name, found in statistic(np.ones((1, n))).items()}


def intervals(
    statistic: Statistic, n: int, confidence: float, n_resamples: int, seed: int
) -> dict[str, NDArray[np.float64]]:
    """Return the percentile interval of each measure of n rows: (2,), or per class (C, 2).

    A resample in which a measure is not defined, such as a ROC curve without positive rows, does not count for it.
    """
    found: dict[str, list[NDArray[Any]]] = {}
    for weights in resamples(n, n_resamples, seed):
        for name, each in statistic(weights).items():
            found.setdefault(name, []).append(each)
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    return {name: _quantiles(np.concatenate(each), tails) for name, each in found.items()}


def _quantiles(drawn: NDArray[Any], tails: list[float]) -> Floats:
    defined = ~np.isnan(drawn)
    if defined.all():
        return np.quantile(drawn, tails, axis=0).T  # type: ignore[no-any-return]
    if drawn.ndim == 1:
        return np.quantile(drawn[defined], tails) if defined.any() else np.full(2, np.nan)
    return np.stack([_quantiles(column, tails) for column in drawn.T])
