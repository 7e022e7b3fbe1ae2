"""Plots and tables, made with matplotlib and pandas if they are installed."""

import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def plot_training(
    path: str | Path,
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
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'gptclf[examples]'") from error
    # A Figure outside pyplot opens no window and changes no global state.
    figure = Figure(figsize=(5 * len(curves), 4), layout="constrained")
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
        panel.grid(alpha=0.3)
        panel.legend()
    target = Path(path)
    target = target if target.suffix else target.with_suffix(".png")
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
