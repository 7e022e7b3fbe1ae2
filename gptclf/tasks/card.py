"""`TaskCard`: what a model card says about the task of a model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class TaskCard:
    """The parts of a model card that depend on the task. In code, FOLDER stands for the model's folder.

    Attributes:
        pipeline: The name of the task on the Hugging Face hub, or None if it has none.
        summary: The start of a sentence that ends with the size of the model.
        ours: Code that loads and uses the model.
        theirs: The same with a pipeline of `transformers`; "" if it has no such task.
        labels: The labels in column order.
        takes_texts: Whether texts are prepared as in training.
        limits: Further paragraphs about the model's limits.
    """

    pipeline: str | None = None
    summary: str
    ours: str = 'from gptclf import load_model, predict\n\nmodel = load_model(FOLDER)\npredict(model, ["a text"])'
    theirs: str = ""
    labels: Sequence[Any] = ()
    takes_texts: bool = True
    limits: tuple[str, ...] = ()
