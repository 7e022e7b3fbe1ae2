"""Measures with their intervals as lines of text."""

from collections.abc import Mapping
from typing import Any

# Of more classes the text shows the averages alone.
_MOST_CLASSES = 20


def measure_lines(values: Mapping[str, float], intervals: Mapping[str, Any], sign: str = "") -> list[str]:
    """Return a line for each measure, with its interval; `sign` "+" shows the sign of positive numbers as well."""
    width = max(map(len, values), default=0)
    line = f"  {{:<{width}}} {{:{sign}.4f}} ({{:{sign}.4f}} to {{:{sign}.4f}})"
    return [line.format(name, value, *intervals[name]) for name, value in values.items()]


def report(result: Any, confidence: float, n_resamples: int, seed: int) -> str:
    """Return an evaluation as text, with the interval of each measure and of the F1 of each class."""
    settings = (confidence, n_resamples, seed)
    values, intervals = dict(result.metrics), result.intervals(*settings)
    f1 = result.per_class_intervals(*settings).get("f1", ())
    if 0 < len(f1) <= _MOST_CLASSES:
        names = [f"f1[{label}]" for label in result.classes]
        values.update(zip(names, result.per_class["f1"], strict=True))
        intervals.update(zip(names, f1, strict=True))
    if not values:
        return f"{result}\nno further measures: the task {result.task} has no statistic"
    title = f"measures, with {100 * confidence:g} % intervals"
    return "\n".join([str(result), title, *measure_lines(values, intervals)])
