"""The arguments of bootstrap intervals that users give."""

from typing import Any

from gptclf.checks import integer, number


def checked_settings(confidence: Any, n_resamples: Any, seed: Any) -> tuple[float, int, int]:
    """Return the level, the number of resamples and their seed.

    Raises:
        TypeError: One of them is not a number.
        ValueError: `confidence` is not between 0 and 1, or another number is out of range.
    """
    level = number("confidence", confidence, above=0.0, most=1.0)
    if level == 1.0:
        raise ValueError("confidence is 1; no interval that is not everything is sure: give less, such as 0.95")
    return level, integer("n_resamples", n_resamples, 1, most=1_000_000), integer("seed", seed)
