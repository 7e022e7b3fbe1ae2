"""Plots and tables, made with matplotlib and pandas if they are installed."""

import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def plot_training(
    path: Path,
    epochs: Sequence[float],
    curves: Mapping[str, Mapping[str, Sequence[float | None]]],
    *,
    step_losses: tuple[Sequence[float], Sequence[float]] | None = None,
) -> Path:
    """Plot measures over epochs, one panel per measure, and save the figure.

    Args:
        path: The file to write. Its suffix sets the format; without a suffix, .png is added.
        epochs: The time of each measurement in epochs, for the x axis.
        curves: For each measure, such as "loss" or "accuracy", one series per data set; None leaves a gap.
        step_losses: (epochs, losses) of single optimizer steps, drawn in a pale color in the panel of "loss".

    Returns:
        The path of the file.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    figure = new_figure(5 * len(curves), 4)
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    styles = {"training": ("C0", "o-"), "validation": ("C1", "s--")}
    for panel, (quantity, series) in zip(panels, curves.items(), strict=True):
        if quantity == "loss" and step_losses is not None:
            panel.plot(*step_losses, color="C0", alpha=0.2, linewidth=0.8, label="single steps")
        for name, values in series.items():
            points = [(x, y) for x, y in zip(epochs, values, strict=True) if y is not None]
            if points:
                color, style = styles.get(name, (None, "o-"))
                panel.plot(*zip(*points, strict=True), style, color=color, label=name, markersize=4)
        panel.set(xlabel="epochs", ylabel=quantity, title=quantity)
        panel.locator_params(axis="x", integer=True)
        panel.grid(alpha=0.3)
        panel.legend()
    return save_figure(figure, path)


# Beyond this many classes a confusion matrix shows colors alone, and beyond the second number not every label.
_MOST_NUMBERS = 25
_MOST_LABELS = 60

# Characters of a label beside an axis.
_LABEL = 24


def plot_confusion(
    path: Path, confusion: NDArray[Any], labels: Sequence[Any] | None, *, normalize: bool = False
) -> Path:
    """Plot a confusion matrix (C, C) of counts, whose rows are true classes, and save the figure.

    Args:
        path: The file to write. Its suffix sets the format; without a suffix, .png is added.
        confusion: The counts.
        labels: The classes' labels, in order; None numbers them.
        normalize: Show each row's shares instead of counts; a row without counts stays empty.

    Returns:
        The path of the file.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    n, totals = len(confusion), confusion.sum(axis=1, keepdims=True)
    shares = np.divide(confusion, totals, out=np.full(confusion.shape, np.nan), where=totals > 0)
    shown = shares if normalize else confusion
    side = min(4 + 0.4 * n, 16)
    figure = new_figure(side + 1, side)
    panel = figure.subplots()
    image = panel.imshow(shown, cmap="Blues", vmin=0, vmax=1 if normalize else None)
    figure.colorbar(image, ax=panel, shrink=0.8)
    every = -(-n // _MOST_LABELS)
    words = short_labels((range(n) if labels is None else labels)[::every])
    given = {"fontsize": min(10, 400 / n) if every == 1 else 6.5, "parse_math": False}  # a $ is a $
    panel.set_xticks(range(0, n, every), words, rotation=90, **given)
    panel.set_yticks(range(0, n, every), words, **given)
    panel.set(xlabel="predicted class", ylabel="true class")
    if n <= _MOST_NUMBERS:
        half = image.norm.vmax / 2
        for (row, column), value in np.ndenumerate(shown):
            if value > 0:  # zeros only hide the others
                number, color = (f"{value:.2f}" if normalize else f"{value:,}"), "white" if value > half else "black"
                panel.text(column, row, number, ha="center", va="center", color=color, fontsize=min(10, 130 / n))
    return save_figure(figure, path)


def plot_words(path: Path, words: Sequence[str], attributions: NDArray[Any], title: str, what: str) -> Path:
    """Plot a horizontal bar per word, the first one on top, and save the figure.

    Args:
        path: The file to write. Its suffix sets the format; without a suffix, .png is added.
        words: The words.
        attributions: Each one's number.
        title: The title.
        what: What the numbers are.

    Returns:
        The path of the file.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    figure = new_figure(6, 1.2 + 0.25 * len(words))
    panel = figure.subplots()
    panel.barh(range(len(words)), attributions, color=["C0" if number >= 0 else "C1" for number in attributions])
    panel.set_yticks(range(len(words)), short_labels(words), parse_math=False)
    panel.set_title(*short_labels([title], 60), parse_math=False)
    panel.invert_yaxis()
    panel.axvline(0, color="0.5", linewidth=0.8)
    panel.set_xlabel(f"against  ←  {what}  →  for")
    panel.grid(axis="x", alpha=0.3)
    return save_figure(figure, path)


def short_labels(labels: Sequence[Any], longest: int = _LABEL) -> list[str]:
    """Return labels as they stand beside an axis: on one line, without their middle if they are long.

    If two labels would look the same, all may be up to four times as long.
    """
    words = [" ".join(str(label).split()) for label in labels]
    for most in (longest, 2 * longest, 4 * longest):
        head, tail = (most - 2) // 2, (most - 3) // 2
        shown = [word if len(word) <= most else f"{word[:head]}...{word[-tail:]}" for word in words]
        if len(set(shown)) == len(set(words)):
            break
    return shown


def new_figure(width: float, height: float) -> Any:
    """Return a figure of this size in inches, or raise an ImportError if matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'gptclf[examples]'") from error
    # A Figure outside pyplot opens no window and changes no global state.
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Any, path: Path) -> Path:
    """Write a figure under a temporary name, then rename it, and return its path."""
    target = path if path.suffix else path.with_suffix(".png")
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.stem}.{uuid.uuid4().hex}{target.suffix}")
    try:
        figure.savefig(beside, dpi=120)
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)
    return target


def data_frame(columns: Mapping[str, Any]) -> Any:
    """Return a `pandas.DataFrame` of columns of one length.

    Raises:
        ImportError: If pandas is not installed.
    """
    try:
        from pandas import DataFrame
    except ImportError as error:
        raise ImportError("to_frame needs pandas: pip install 'gptclf[examples]'") from error
    return DataFrame(columns)
