"""Pictures of an evaluation, made with matplotlib: reliability, reject option, and the scores of each class."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptclf.metrics.probabilities import Reliability, RiskCoverage
from gptclf.plotting import new_figure, save_figure, short_labels

# Beyond this many classes a picture shows those with the lowest F1.
_MOST_CLASSES = 80

# The half width of a 95 % interval of a normal distribution, in standard deviations.
_Z = 1.96


def plot_reliability(path: Path, curves: Mapping[str, Reliability], shares: Mapping[str, Reliability]) -> Path:
    """Plot how often answers of each probability are right, above a histogram of the probabilities.

    Args:
        path: The file to write.
        curves: For each name, such as "before", the `Reliability` to draw as a line, with Wilson's 95 % intervals.
        shares: The `Reliability` in bins of equal width, for the histogram, by the same names.
    """
    figure = new_figure(5, 6)
    panel, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    panel.plot([0, 1], [0, 1], "--", color="gray", linewidth=1, label="as probable as it says")
    for i, (name, curve) in enumerate(curves.items()):
        has = curve.count > 0
        x, y, n = curve.confidence[has], curve.accuracy[has], curve.count[has]
        middle = (y + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
        half = _Z / (1 + _Z**2 / n) * np.sqrt(y * (1 - y) / n + _Z**2 / (4 * n**2))
        bars = np.clip([y - middle + half, middle + half - y], 0, None)
        label = f"{name}, " * (len(curves) > 1) + f"calibration error {curve.error:.3f}"
        panel.errorbar(x, y, bars, fmt="o-", color=f"C{i}", markersize=4, linewidth=1.2, elinewidth=0.8, label=label)
        counted = shares[name]
        below.stairs(
            counted.count / counted.count.sum(), counted.edges, color=f"C{i}", fill=True, alpha=0.4, label=name
        )
    panel.set(ylabel="share of right answers", xlim=(0, 1), ylim=(0, 1))
    below.set(xlabel="probability of the answer", ylabel="share of texts")
    for each in (panel, below):
        each.grid(alpha=0.3)
    figure.legend(*panel.get_legend_handles_labels(), loc="outside upper center")  # it would hide what it explains
    return save_figure(figure, path)


def plot_risk_coverage(path: Path, curve: RiskCoverage) -> Path:
    """Plot the share of wrong answers, and the threshold, over the share of texts that are answered."""
    figure = new_figure(5, 5)
    panel, below = figure.subplots(2, 1, sharex=True)
    panel.plot(curve.coverage, curve.risk, color="C0")
    below.plot(curve.coverage, curve.threshold, color="C1")
    panel.set(ylabel="errors among answers", xlim=(0, 1), title="reject option")
    panel.set_ylim(bottom=0)
    below.set(xlabel="share of texts that are answered", ylabel="reject_below", ylim=(0, 1.02))
    for each in (panel, below):
        each.grid(alpha=0.3)
    return save_figure(figure, path)


def plot_per_class(
    path: Path, classes: Sequence[Any] | None, scores: Mapping[str, NDArray[Any]], intervals: NDArray[np.float64]
) -> Path:
    """Plot the F1 of each class with its interval (C, 2), the lowest at the top; of many classes, the lowest ones."""
    order = np.argsort(scores["f1"], kind="stable")[:_MOST_CLASSES]
    f1, (low, high) = scores["f1"][order], intervals[order].T
    figure = new_figure(6, 1.2 + 0.22 * len(order))
    panel = figure.subplots()
    rows = np.arange(len(order))
    panel.errorbar(f1, rows, xerr=np.clip([f1 - low, high - f1], 0, None), fmt="o", markersize=4, elinewidth=1)
    labels = range(len(scores["f1"])) if classes is None else classes
    names = short_labels([labels[i] for i in order.tolist()], 40)
    counted = [f"{name}  ({n:,})" for name, n in zip(names, scores["support"][order], strict=True)]
    panel.set_yticks(rows, counted, parse_math=False, fontsize=8)
    panel.set(xlabel="F1 (texts in brackets)", xlim=(-0.02, 1.02), ylim=(len(order) - 0.5, -0.5))
    if len(order) < len(labels):
        panel.set_title(f"the lowest {len(order)} of {len(labels):,} classes")
    panel.grid(alpha=0.3, axis="x")
    return save_figure(figure, path)
