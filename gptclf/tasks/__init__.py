"""Tasks: the targets of a model, its loss, its scores and its answers.

A `Task` is the only place that knows what targets mean. The training loop, `evaluate`, `predict` and the saved folder
ask it and never look at its type, so a subclass adds a task without any change elsewhere.
"""

from collections.abc import Mapping
from typing import Any

from gptclf.tasks.labels import (
    as_number,
    check_column,
    check_labels,
    column_values,
    declared_classes,
    infer_classes,
    rows_of_labels,
)
from gptclf.tasks.multi_label import MultiLabel
from gptclf.tasks.next_token import NextToken
from gptclf.tasks.regression import Regression
from gptclf.tasks.single_label import SingleLabel
from gptclf.tasks.task import Task

_KINDS: dict[str, type[SingleLabel | MultiLabel | Regression | NextToken]] = {
    kind.kind: kind for kind in (SingleLabel, MultiLabel, Regression, NextToken)
}


def task_from_record(values: Mapping[str, Any]) -> Task | None:
    """Return the task that a record describes, or None if it is not one of gptclf's own tasks."""
    kind = _KINDS.get(str(values.get("kind")))
    return None if kind is None else kind.from_record(values)


def task_from_transformers(problem_type: Any, labels: list[Any]) -> Task:
    """Return the task that a `transformers` classifier of this `problem_type` (None: by the number of labels) has."""
    if problem_type == "multi_label_classification":
        return MultiLabel(labels)
    if problem_type == "regression" or (problem_type is None and len(labels) == 1):
        return Regression(len(labels))
    if problem_type in (None, "single_label_classification"):
        return SingleLabel(labels)
    known = "single_label_classification, multi_label_classification or regression"
    raise ValueError(f"problem_type is {problem_type!r}; it must be {known}")


__all__ = [
    "MultiLabel",
    "NextToken",
    "Regression",
    "SingleLabel",
    "Task",
    "as_number",
    "check_column",
    "check_labels",
    "column_values",
    "declared_classes",
    "infer_classes",
    "rows_of_labels",
    "task_from_record",
    "task_from_transformers",
]
