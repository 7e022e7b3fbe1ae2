"""Labels with numbers, as flags give them: "spam=3,ham=1"."""

from argparse import Namespace
from typing import Any

from gptclf.cli.flags import UsageError
from gptclf.tasks import Task


def by_label(name: str, text: str, task: Task) -> dict[Any, float]:
    """Return the number of each label; a label that is the text of a number among the task's classes is that class.

    Raises:
        UsageError: A part is not LABEL=NUMBER.

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
        raise UsageError(f"{name} is {text!r}; it must be LABEL=NUMBER, several with commas: spam=3,ham=1")
    return dict(zip(task.labels_of([label for label, _, _ in parts]), numbers, strict=True))


def adjustments(args: Namespace, task: Task) -> dict[str, Any]:
    """Return the temperature and the thresholds that the flags give, or None for each, which the task takes.

    Raises:
        UsageError: The task does not take them.
    """
    thresholds = None if args.thresholds is None else by_label("--thresholds", args.thresholds, task)
    found = {"temperature": args.temperature, "thresholds": thresholds}
    try:
        task.adjusted(**found)
    except (TypeError, ValueError) as error:
        raise UsageError(f"--{error}") from error
    return found
