"""`SingleLabel`: each text belongs to exactly one class."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from gptclf.checks import number, python_value
from gptclf.metrics import confusion_matrix, per_class_scores
from gptclf.tasks.labels import (
    check_classes,
    check_labels,
    check_writable,
    class_lines,
    distinct_names,
    index_labels,
    label_from_json,
    label_to_json,
)
from gptclf.tasks.task import Task, TaskCard


class SingleLabel(Task):
    """Each text belongs to exactly one class: softmax and cross-entropy, as in the book's section 6.6.

    Weights shape the training loss only; measures are plain means. The weight of a row is that of its class times its
    own (`TextDataset(..., weights=)`), and a step divides by the sum of its rows' weights: a row of weight 2 counts
    like the same row twice.

    Args:
        classes: The labels, hashable and distinct, in the order of the outputs.
        class_weight: A mapping (or pandas Series) from labels to weights (1 for a label that it lacks), or "balanced".
            The latter gives a class with n_c of the n training texts the weight n / (C n_c), as scikit-learn does, when
            training starts; n and n_c count rows, whatever their weights.
        label_smoothing: The share of each target that is spread evenly over all classes, in [0, 1).

    Example:
        >>> SingleLabel(["ham", "spam"], class_weight={"spam": 3.0}).classes
        ['ham', 'spam']
    """

    kind = "single_label"
    title = "GPT-2 text classifier"

    def __init__(
        self,
        classes: Iterable[Any],
        class_weight: "str | Mapping[Any, float] | None" = None,
        label_smoothing: float = 0.0,
    ) -> None:
        self.classes: list[Any] = check_classes(classes)
        self.n_outputs = len(self.classes)
        self.label_smoothing = number("label_smoothing", label_smoothing)
        if self.label_smoothing >= 1:
            raise ValueError(f"label_smoothing is {label_smoothing!r}; it must be at least 0 and less than 1")
        self.class_weight = class_weight
        # A weight per class, in the order of the classes; None if all are 1, or not known before training.
        self.weights: list[float] | None = None
        if items := getattr(class_weight, "items", None):  # a mapping's, or those of a pandas Series
            given = {python_value(key): number(f"class_weight[{key!r}]", value) for key, value in items()}
            unknown = [label for label in given if label not in self.classes]
            if unknown:
                raise ValueError(f"class_weight names {unknown[0]!r}, not among the classes {self.classes[:10]!r}")
            self.class_weight = {label: given.get(label, 1.0) for label in self.classes}
            self.weights = list(self.class_weight.values())
        elif class_weight is not None and not (isinstance(class_weight, str) and class_weight == "balanced"):
            rule = 'None, "balanced" or a mapping from labels to weights'
            raise TypeError(f"class_weight is {class_weight!r}; it must be {rule}")

    def targets(self, labels: Sequence[Any]) -> NDArray[np.int64]:
        """Return each label's position among the classes (N,); an unknown label is an error that names its row."""
        return index_labels(check_labels(labels), self.classes)

    def loss(self, outputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> tuple[Tensor, float]:
        """Return the weighted sum of cross-entropies in nats, and the sum of the weights."""
        rows = self._weights_of(targets, weights)
        reduction = "sum" if rows is None else "none"
        loss = F.cross_entropy(outputs.float(), targets, reduction=reduction, label_smoothing=self.label_smoothing)
        return loss if rows is None else (loss * rows).sum(), super().weight(targets, rows)

    def weight(self, targets: Tensor, weights: Tensor | None = None) -> float:
        """Return the sum of the rows' weights."""
        return super().weight(targets, self._weights_of(targets, weights))

    def _weights_of(self, targets: Tensor, weights: Tensor | None) -> Tensor | None:
        if self.weights is None:
            if self.class_weight == "balanced":
                raise ValueError('class_weight="balanced" depends on the training set: use task.fitted(targets)')
            return weights
        rows = torch.tensor(self.weights, dtype=torch.float32, device=targets.device)[targets]
        return rows if weights is None else rows * weights

    def scores(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Return the mean cross-entropy in nats and the share of rows answered correctly."""
        return {
            "loss": float(F.cross_entropy(outputs.double(), targets)),
            "accuracy": float((outputs.argmax(dim=1) == targets).double().mean()),
        }

    def answers(self, outputs: Tensor) -> list[Any]:
        """Return the most probable label of each row."""
        return [self.classes[i] for i in outputs.argmax(dim=1).tolist()]

    def probabilities(self, outputs: Tensor) -> NDArray[np.float32]:
        """Return the softmax over the classes (N, C)."""
        return outputs.softmax(dim=1).numpy()

    def columns(self, outputs: Tensor) -> dict[str, NDArray[Any]]:
        """Return a column of probabilities per class. Column names are distinct, even for the labels 1 and "1"."""
        names = [f"p({name})" for name in distinct_names(self.classes)]
        return dict(zip(names, self.probabilities(outputs).T, strict=True))

    def details(self, outputs: Tensor, targets: Tensor) -> dict[str, Any]:
        """Return the confusion matrix, the scores of each class, and the mean F1 of the classes that occur."""
        confusion = confusion_matrix(targets.numpy(), outputs.argmax(dim=1).numpy(), self.n_outputs)
        per_class = per_class_scores(confusion)
        # A class occurs if it is a target or a prediction, which is scikit-learn's convention.
        occurs = (confusion.sum(axis=0) + confusion.sum(axis=1)) > 0
        return {"confusion": confusion, "per_class": per_class, "macro_f1": float(per_class["f1"][occurs].mean())}

    def report(self, measures: Mapping[str, float], details: Mapping[str, Any]) -> list[str]:
        """Return the measures, and a line per class if there are at most 20."""
        accuracy, macro = 100 * measures["accuracy"], 100 * details["macro_f1"]
        lines = [f"accuracy {accuracy:.2f} %, macro-F1 {macro:.2f} %, loss {measures['loss']:.4f}"]
        if self.n_outputs <= 20:
            lines += class_lines(self.classes, details["per_class"])
        return lines

    def fitted(self, targets: NDArray[Any]) -> "SingleLabel":
        """Return the task with the class weights that "balanced" gives for these targets."""
        if self.class_weight != "balanced":
            return self
        counts = np.bincount(targets, minlength=self.n_outputs)
        task = copy.copy(self)
        # A class without rows has no loss to weight.
        task.weights = (len(targets) / (self.n_outputs * np.maximum(counts, 1))).tolist()
        return task

    def check_outputs(self) -> None:
        """Raise if there are fewer than two classes."""
        if self.n_outputs < 2:
            raise ValueError(f"a classifier needs at least 2 classes; with {self.classes!r} there is nothing to learn")

    def check_training(self, targets: NDArray[Any]) -> None:
        """Raise if all rows have the same label."""
        if len(np.unique(targets)) < 2:
            raise ValueError("every row of the training set has the same label; a classifier needs two to learn from")

    def check_same(self, other: Task | None) -> None:
        """Raise if `other` has other classes, or no classes at all."""
        if other is None or other.classes is None:
            raise TypeError("this is a classifier, but the batch is running text; train_lm trains a language model")
        if other.classes != self.classes:
            problem = f"the batch's classes are {other.classes[:10]} but the model's are {self.classes[:10]}"
            raise ValueError(f"{problem}; pass task=model.task to Batches, or classes=model.classes to TextDataset")

    def check_saved(self) -> None:
        """Raise if two labels would become the same in a saved folder; log labels that will be saved as text."""
        check_writable(self.classes)

    def card(self) -> TaskCard:
        """Describe a classifier and its labels."""
        summary = f"A GPT-2 that puts a text into one of {self.n_outputs} classes, with"
        use = 'model = load_model(FOLDER)\npredict(model, ["a text"])\npredict_proba(model, ["a text"])'
        ours = f"from gptclf import load_model, predict, predict_proba\n\n{use}"
        theirs = 'classify = pipeline("text-classification", model=FOLDER)\nclassify(["a text"])'
        always = "It always answers with one of its classes, even for a text that belongs to none of them."
        sure = "Its probabilities are not calibrated unless you have checked that they are."
        limits = (f"{always} {sure}",)
        return TaskCard(summary, "text-classification", ours, theirs, labels=self.classes, limits=limits)

    def exported(self) -> dict[str, Any]:
        """Return the classes under the keys of `transformers`; labels are written by their repr if two look alike."""
        names = distinct_names(self.classes)
        return {
            "architectures": ["GPT2ForSequenceClassification"],
            "problem_type": "single_label_classification",
            "id2label": {str(i): name for i, name in enumerate(names)},
            "label2id": {name: i for i, name in enumerate(names)},
        }

    def record(self) -> dict[str, Any]:
        """Return the classes with their types, their weights, and the smoothing."""
        return {
            "kind": self.kind,
            "classes": [label_to_json(label) for label in self.classes],
            # In the classes' order: JSON's keys are strings.
            "class_weight": self.class_weight if self.class_weight in (None, "balanced") else "given",
            "weights": self.weights,
            "label_smoothing": self.label_smoothing,
        }

    def __eq__(self, other: object) -> bool:
        same = isinstance(other, SingleLabel) and type(other) is type(self) and self.classes == other.classes
        return same and super().__eq__(other)

    def __hash__(self) -> int:
        return hash((tuple(self.classes), self.label_smoothing))

    @classmethod
    def from_record(cls, values: Mapping[str, Any]) -> Self:
        """Build the task that `record` described. Missing keys take their defaults."""
        if not isinstance(values.get("classes"), list):
            raise ValueError(f"the task's classes are {values.get('classes')!r}, not a list")
        classes = [label_from_json(label) for label in values["classes"]]
        kind, weights = values.get("class_weight"), values.get("weights")
        if weights is not None and (not isinstance(weights, list) or len(weights) != len(classes)):
            raise ValueError(f"the task's weights are {weights!r}, not one per class")
        given = dict(zip(classes, weights or [], strict=False))
        task = cls(classes, given if kind == "given" else kind, values.get("label_smoothing", 0.0))
        if kind == "balanced" and weights is not None:
            task.weights = list(given.values())
        return task
