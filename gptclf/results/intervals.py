"""Bootstrap intervals with the arguments that users give."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptclf.checks import integer, number
from gptclf.metrics.bootstrap import Statistic, intervals


def checked_intervals(
    statistic: Statistic, n: int, confidence: Any, n_resamples: Any, seed: Any
) -> dict[str, NDArray[np.float64]]:
    """Check a caller's arguments and return the intervals.

    Raises:
        ValueError: `confidence` is not between 0 and 1, or another number is out of range.
    """
    level = number("confidence", confidence, above=0.0, most=1.0)
    if level == 1.0:
        raise ValueError("confidence is 1; no interval that is not everything is sure: give less, such as 0.95")
    n_resamples = integer("n_resamples", n_resamples, 1, most=1_000_000)
    return intervals(statistic, n, confidence=level, n_resamples=n_resamples, seed=integer("seed", seed))
