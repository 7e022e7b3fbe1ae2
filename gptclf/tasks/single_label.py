"""`SingleLabel`: each text belongs to exactly one class."""

import copy
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from gptclf.checks import number
from gptclf.metrics import statistics
from gptclf.metrics.bootstrap import Statistic
from gptclf.metrics.counts import confusion_matrix, per_class_scores
from gptclf.tasks.calibration import (
    SCORINGS,
    answers_by_thresholds,
    check_temperature,
    check_thresholds,
    fit_temperature,
    fit_thresholds,
    in_words,
)
from gptclf.tasks.labels import (
    check_class_weight,
    check_classes,
    check_labels,
    check_writable,
    class_lines,
    exported_labels,
    index_labels,
    label_from_json,
    label_to_json,
    labels_from_cells,
)
from gptclf.tasks.task import Task, TaskCard

logger = logging.getLogger(__name__)


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
        temperature: Outputs are divided by it before the softmax: above 1, probabilities are less extreme. From 1e-6
            to 1e6. It shapes answers and measures, not training. `calibrate` fits it.
        thresholds: A mapping from labels to numbers in (0, 1) that say how probable a class must be to be answered;
            below 0.5 it is answered more often, above less. With two classes, the one named is answered exactly if
            its probability is at least its threshold, and a number alone is the threshold of the second class, as in
            scikit-learn. With more, the answer is the class with the largest p (1 - t) / t, where t is 0.5 for a label
            not named. None answers the most probable class. `calibrate` fits them.

    Example:
        >>> SingleLabel(["ham", "spam"], class_weight={"spam": 3.0}).classes
        ['ham', 'spam']
    """

    kind = "single_label"
    title = "GPT-2 text classifier"
    scorings = tuple(SCORINGS)
    _unshown = ("kind", "weights")

    def __init__(
        self,
        classes: Iterable[Any],
        class_weight: "str | Mapping[Any, float] | None" = None,
        label_smoothing: float = 0.0,
        temperature: float = 1.0,
        thresholds: Mapping[Any, float] | float | None = None,
    ) -> None:
        self.classes: list[Any] = check_classes(classes)
        self.n_outputs = len(self.classes)
        self.label_smoothing = number("label_smoothing", label_smoothing)
        if self.label_smoothing >= 1:
            raise ValueError(f"label_smoothing is {label_smoothing!r}; it must be at least 0 and less than 1")
        self.temperature = check_temperature(temperature)
        self.thresholds = check_thresholds(thresholds, self.classes)
        self.class_weight = check_class_weight(class_weight, self.classes)
        # A weight per class, in the order of the classes; None if all are 1, or not known before training.
        self.weights: list[float] | None = None
        if isinstance(self.class_weight, dict):
            self.weights = list(self.class_weight.values())

    def targets(self, labels: Sequence[Any]) -> NDArray[np.int64]:
        """Return each label's position among the classes (N,); an unknown label is an error that names its row."""
        return index_labels(check_labels(labels), self.classes)

    def labels_of(self, cells: Sequence[Any]) -> Sequence[Any]:
        """Return the cells, with each class that is a number instead of its text."""
        return labels_from_cells(cells, self.classes)

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
        """Return the mean cross-entropy in nats, at the temperature, and the share of rows answered correctly."""
        return {
            "loss": float(F.cross_entropy(outputs.double() / self.temperature, targets)),
            "accuracy": float(self.right(outputs, targets).mean()),
        }

    def answers(self, outputs: Tensor) -> list[Any]:
        """Return the label of each row: the most probable one, or the one that the thresholds say."""
        return [self.classes[i] for i in self._chosen(outputs).tolist()]

    def _chosen(self, outputs: Tensor) -> Tensor:
        """Return the column of each row's answer."""
        if self.thresholds is None:
            return outputs.argmax(dim=1)
        return answers_by_thresholds(outputs, self.temperature, self.thresholds, self.classes)

    def probabilities(self, outputs: Tensor) -> NDArray[np.float32]:
        """Return the softmax over the classes (N, C), at the temperature."""
        return (outputs / self.temperature).softmax(dim=1).numpy()

    def confidences(self, outputs: Tensor) -> NDArray[np.float32]:
        """Return the probability of each answer (N,): with thresholds it may not be the most probable class's."""
        each = self.probabilities(outputs)
        return np.take_along_axis(each, self._chosen(outputs).numpy()[:, None], axis=1)[:, 0]

    def adjusted(self, *, temperature: float | None = None, thresholds: Any = None) -> Self:
        """Return the task with another temperature or other thresholds; {} are none."""
        task = copy.copy(self)
        task.temperature = self.temperature if temperature is None else check_temperature(temperature)
        task.thresholds = self.thresholds if thresholds is None else check_thresholds(thresholds, self.classes)
        return task

    def calibrated(self, outputs: Tensor, targets: Tensor, scoring: str | None) -> Self:
        """Return the task with the temperature, and with `scoring` the thresholds, that fit a validation set best."""
        temperature = fit_temperature(outputs, targets)
        if temperature is None:
            why = "all of these rows are answered correctly, or no better than by chance; give other rows, and more"
            logger.warning("no temperature was fitted, it is %g: %s", self.temperature, why)
        task = self.adjusted(temperature=temperature)
        if scoring is None:
            return task
        probabilities, scores = task.probabilities(outputs), outputs.double().numpy() / task.temperature
        return task.adjusted(thresholds=fit_thresholds(probabilities, scores, targets.numpy(), scoring, self.classes))

    def json_answers(self, outputs: Tensor) -> list[dict[str, Any]]:
        """Return the name of each row's class, and the probabilities."""
        names = self.output_names
        rows = zip(self._chosen(outputs).tolist(), self.probabilities(outputs).tolist(), strict=True)
        return [{"label": names[column], "probs": probabilities} for column, probabilities in rows]

    def columns(self, outputs: Tensor) -> dict[str, NDArray[Any]]:
        """Return a column of probabilities per class. Column names are distinct, even for the labels 1 and "1"."""
        columns = self.probabilities(outputs).T
        return {f"p({name})": column for name, column in zip(self.output_names, columns, strict=True)}

    def details(self, outputs: Tensor, targets: Tensor) -> dict[str, Any]:
        """Return the confusion matrix, the scores of each class, and the mean F1 of the classes that occur."""
        confusion = confusion_matrix(targets.numpy(), self._chosen(outputs).numpy(), self.n_outputs)
        per_class = per_class_scores(confusion)
        # A class occurs if it is a target or a prediction, which is scikit-learn's convention.
        occurs = (confusion.sum(axis=0) + confusion.sum(axis=1)) > 0
        return {"confusion": confusion, "per_class": per_class, "macro_f1": float(per_class["f1"][occurs].mean())}

    def right(self, outputs: Tensor, targets: Tensor) -> NDArray[np.bool_]:
        """Return which rows are answered with their class (N,)."""
        return (self._chosen(outputs) == targets).numpy()

    def statistic(self, outputs: Tensor, targets: Tensor) -> Statistic:
        """Return scikit-learn's measures of a classifier, and calibration errors, as functions of the rows' weights."""
        probabilities = (outputs.double() / self.temperature).softmax(dim=1).numpy()
        return statistics.single_label(targets.numpy(), self._chosen(outputs).numpy(), probabilities)

    def report(self, measures: Mapping[str, float], details: Mapping[str, Any]) -> list[str]:
        """Return the measures, and a line per class if there are at most 20."""
        percent = f"accuracy {100 * measures['accuracy']:.2f} %, macro-F1 {100 * details['macro_f1']:.2f} %"
        lines = [f"{percent}, loss {measures['loss']:.4f}"]
        return lines + (class_lines(self.classes, details["per_class"]) if self.n_outputs <= 20 else [])

    def fitted(self, targets: NDArray[Any]) -> Self:
        """Return the task with the class weights that "balanced" gives for these targets, and temperature 1.

        A temperature fits the weights that it was measured with. Thresholds may be a choice, and stay.
        """
        task = self
        if self.temperature != 1.0:
            message = "training changes the outputs that temperature %g was fitted to: it is 1 again%s; calibrate anew"
            logger.warning(message, self.temperature, ", thresholds stay" if self.thresholds else "")
            task = self.adjusted(temperature=1.0)
        if self.class_weight != "balanced":
            return task
        counts = np.bincount(targets, minlength=self.n_outputs)
        task = copy.copy(task)
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
        """Raise if two labels would become the same in a saved folder; log what is saved otherwise, or for us alone."""
        check_writable(self.classes)
        if said := in_words(self.temperature, self.thresholds):
            problem = "transformers knows neither temperature nor thresholds, so its probabilities or labels differ"
            logger.warning("%s from gptclf's for a model with %s", problem, said)

    def card(self) -> TaskCard:
        """Describe a classifier and its labels."""
        summary = f"A GPT-2 that puts a text into one of {self.n_outputs} classes, with"
        use = 'model = load_model(FOLDER)\npredict(model, ["a text"])\npredict_proba(model, ["a text"])'
        ours = f"from gptclf import load_model, predict, predict_proba\n\n{use}"
        theirs = 'classify = pipeline("text-classification", model=FOLDER, truncation=True)\nclassify(["a text"])'
        always = "It always answers with one of its classes, even for a text that belongs to none of them."
        sure = "Its probabilities are not calibrated unless you have checked that they are."
        if said := in_words(self.temperature, self.thresholds):
            sure = f"Answers and probabilities of gptclf use {said}, fitted or chosen; those of transformers do not."
        limits = (f"{always} {sure}",)
        return TaskCard(summary, "text-classification", ours, theirs, labels=self.classes, limits=limits)

    def exported(self) -> dict[str, Any]:
        """Return the classes under the keys of `transformers`; labels are written by their repr if two look alike."""
        return exported_labels("single_label_classification", self.output_names)

    def record(self) -> dict[str, Any]:
        """Return the classes with their types, their weights, the smoothing, temperature and thresholds."""
        # Only if they are set: records of runs and folders without them stay as they were.
        settings: dict[str, Any] = {} if self.temperature == 1.0 else {"temperature": self.temperature}
        if self.thresholds:
            settings["thresholds"] = [self.thresholds.get(label) for label in self.classes]
        return {
            "kind": self.kind,
            "classes": [label_to_json(label) for label in self.classes],
            "class_weight": self.class_weight if self.class_weight in (None, "balanced") else "given",
            "weights": self.weights,  # in the classes' order: JSON's keys are strings
            "label_smoothing": self.label_smoothing,
            **settings,
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
        kind, weights, limits = values.get("class_weight"), values.get("weights"), values.get("thresholds")
        for key, found in (("weights", weights), ("thresholds", limits)):
            if found is not None and (not isinstance(found, list) or len(found) != len(classes)):
                raise ValueError(f"the task's {key} are {found!r}, not one per class")
        given = dict(zip(classes, weights or [], strict=False))
        named = {label: limit for label, limit in zip(classes, limits or [], strict=False) if limit is not None}
        smoothing, temperature = values.get("label_smoothing", 0.0), values.get("temperature", 1.0)
        task = cls(classes, given if kind == "given" else kind, smoothing, temperature, named)
        if kind == "balanced" and weights is not None:
            task.weights = list(given.values())
        return task
