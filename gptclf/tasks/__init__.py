"""What a model predicts, what a wrong answer costs, and how answers are scored.

A `Task` is the only place that knows what targets mean. The training loop, `evaluate`, `predict` and the saved folder
ask it and never look at its type, so a subclass adds a task without a change elsewhere.
"""

from gptclf.tasks.labels import check_classes, check_labels, index_labels, infer_classes
from gptclf.tasks.next_token import NextToken
from gptclf.tasks.single_label import SingleLabel
from gptclf.tasks.task import Predictor, Scored, Task

__all__ = [
    "NextToken",
    "Predictor",
    "Scored",
    "SingleLabel",
    "Task",
    "check_classes",
    "check_labels",
    "index_labels",
    "infer_classes",
]
