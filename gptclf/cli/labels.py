"""Labels with numbers, as flags give them: "spam=3,ham=1"."""

from typing import Any

from gptclf.tasks import Task


def by_label(name: str, text: str, task: Task) -> dict[Any, float]:
    """Return the number of each label; a label that is the text of a number among the task's classes is that class.

    Raises:
        ValueError: A part is not LABEL=NUMBER.

    Example:
        >>> from gptclf.tasks import SingleLabel
        >>> by_label("--class-weight", "spam=3,1=0.5", SingleLabel(["spam", 1]))
        {'spam': 3.0, 1: 0.5}
    """
    parts = [part.rpartition("=") for part in text.split(",")]
    try:
        numbers = [float(number) for _, _, number in parts]
    except ValueError:
        numbers = []
    if not numbers or not all(label for label, _, _ in parts):
        raise ValueError(f"{name} is {text!r}; it must be LABEL=NUMBER, several with commas: spam=3,ham=1")
    return dict(zip(task.labels_of([label for label, _, _ in parts]), numbers, strict=True))


def thresholds_of(text: str | None, task: Task) -> dict[Any, float] | None:
    """Return the thresholds that a flag gives, or None."""
    return None if text is None else by_label("--thresholds", text, task)
