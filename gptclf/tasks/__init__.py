"""Tasks: the targets of a model, its loss, its scores and its answers.

A `Task` is the only place that knows what targets mean. The training loop, `evaluate`, `predict` and the saved folder
ask it and never look at its type, so a subclass adds a task without any change elsewhere.
"""

from collections.abc import Mapping
from typing import Any

from gptclf.tasks.labels import check_column, check_labels, infer_classes
from gptclf.tasks.next_token import NextToken
from gptclf.tasks.single_label import SingleLabel
from gptclf.tasks.task import Task

_KINDS: dict[str, type[SingleLabel] | type[NextToken]] = {kind.kind: kind for kind in (SingleLabel, NextToken)}


def task_from_record(values: Mapping[str, Any]) -> Task | None:
    """Return the task that a record describes, or None if it is not one of gptclf's own tasks."""
    kind = _KINDS.get(str(values.get("kind")))
    return None if kind is None else kind.from_record(values)


__all__ = ["NextToken", "SingleLabel", "Task", "check_column", "check_labels", "infer_classes", "task_from_record"]
