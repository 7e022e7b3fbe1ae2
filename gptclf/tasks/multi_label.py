"""`MultiLabel`: each text belongs to any number of classes."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from gptclf.checks import is_iterable, number, python_value
from gptclf.metrics import statistics
from gptclf.metrics.bootstrap import Statistic
from gptclf.metrics.counts import class_scores
from gptclf.tasks.labels import (
    check_classes,
    check_labels,
    check_writable,
    class_lines,
    exported_labels,
    index_labels,
    label_from_json,
    label_to_json,
)
from gptclf.tasks.task import Task, TaskCard


class MultiLabel(Task):
    """Each text belongs to any number of classes, also to none: a sigmoid and binary cross-entropy for each class.

    The label of a text is a collection of classes, such as `["sport", "politics"]` or `[]`, or a row of a table of 0
    and 1 with a column for each class, as scikit-learn's `MultiLabelBinarizer` gives. The loss of a row is its mean
    over the classes, as in `transformers`; the answer is the list of classes whose probability reaches the threshold.

    Args:
        classes: The classes, hashable and distinct, in the order of the outputs.
        thresholds: The least probability with which a class is in the answer: one number, one for each class, or a
            mapping from classes to numbers (0.5 for a class that it lacks).

    Example:
        >>> import torch
        >>> task = MultiLabel(["sport", "politics"], thresholds={"sport": 0.7})
        >>> task.targets([["politics"], [], ["politics", "sport"]]).tolist()
        [[0.0, 1.0], [0.0, 0.0], [1.0, 1.0]]
        >>> task.answers(torch.tensor([[0.5, 0.5], [1.0, -1.0]]))
        [['politics'], ['sport']]
    """

    kind = "multi_label"
    title = "GPT-2 multi-label text classifier"
    higher = ("accuracy", "micro_f1", "macro_f1")

    def __init__(
        self, classes: Iterable[Any], thresholds: "float | Iterable[float] | Mapping[Any, float]" = 0.5
    ) -> None:
        self.classes: list[Any] = check_classes(classes)
        self.n_outputs = len(self.classes)
        self.thresholds = self.check_thresholds(thresholds)

    def check_thresholds(self, thresholds: Any) -> list[float]:
        """Return one threshold for each class, in the order of the classes."""
        if hasattr(thresholds, "items"):  # as a mapping and a pandas Series have
            known = {python_value(key): value for key, value in thresholds.items()}
            unknown = [key for key in known if key not in self.classes]
            if unknown:
                raise ValueError(f"thresholds names {unknown[0]!r}, not among the classes {self.classes[:10]!r}")
            thresholds = [known.get(label, 0.5) for label in self.classes]
        # A set has no order that the classes could follow.
        several = is_iterable(thresholds) and not isinstance(thresholds, str | bytes | set | frozenset)
        each = list(thresholds) if several else [thresholds] * self.n_outputs
        if len(each) != self.n_outputs:
            raise ValueError(f"thresholds has {len(each)} numbers for {self.n_outputs} classes; give one for each")
        return [number(f"thresholds[{i}]", value, most=1.0) for i, value in enumerate(each)]

    def targets(self, labels: Sequence[Any]) -> NDArray[np.float32]:
        """Return a table of 0 and 1 (N, C).

        Raises:
            TypeError: A label is not a collection of classes or a row of the table; the error names its row.
            ValueError: A class is unknown or occurs twice, or a row of the table has another length.
        """
        table = np.zeros((len(labels), self.n_outputs), dtype=np.float32)
        for row, label in enumerate(labels):
            table[row] = self._row(row, label)
        return table

    def _row(self, row: int, label: Any) -> NDArray[np.float32]:
        single = not isinstance(label, Collection) or isinstance(label, str | bytes | Mapping)
        if single or (isinstance(label, np.ndarray) and label.ndim != 1):
            what = f"label {row} is {label!r} ({type(label).__name__})"
            raise TypeError(f"{what}; it must be a list of classes, or a row of 0 and 1 with {self.n_outputs} columns")
        values = [python_value(value) for value in label]
        ordered = not isinstance(label, set | frozenset)
        bits = ordered and len(values) == self.n_outputs and _are_bits(values)
        as_names = all(value in self.classes for value in values)
        if bits and as_names and values:
            problem = f"label {row} is {label!r}, which may be a list of classes or a row of 0 and 1"
            raise ValueError(f"{problem}; give sets of classes, or name the classes by strings")
        if bits:
            return np.asarray(values, dtype=np.float32)
        numeric = isinstance(label, np.ndarray) and label.dtype.kind in "biuf"
        if (numeric or (ordered and len(values) > 1 and _are_bits(values))) and not as_names:
            problem = f"label {row} is {label!r}"
            raise ValueError(f"{problem}; a row of the table holds 0 or 1 for each of the {self.n_outputs} classes")
        check_labels(values, f"label {row}, class")
        if len(set(values)) < len(values):
            raise ValueError(f"label {row} is {label!r}; each class may occur once")
        found = np.zeros(self.n_outputs, dtype=np.float32)
        found[index_labels(values, self.classes, [row] * len(values))] = 1.0
        return found

    def loss(self, outputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> tuple[Tensor, float]:
        """Return the weighted sum of the rows' mean binary cross-entropies in nats, and the sum of the weights."""
        rows = F.binary_cross_entropy_with_logits(outputs.float(), targets, reduction="none").mean(dim=1)
        return (rows if weights is None else rows * weights).sum(), self.weight(targets, weights)

    def scores(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Return the mean binary cross-entropy, the share of rows with every class right, and micro- and macro-F1."""
        loss = F.binary_cross_entropy_with_logits(outputs.double(), targets.double())
        counts = self._counts(outputs, targets)
        exact = (self._chosen(outputs) == (targets.numpy() > 0.5)).all(axis=1)
        hits, predicted, support = (count.sum() for count in counts)
        return {
            "loss": float(loss),
            "accuracy": float(exact.mean()),
            "micro_f1": float(2 * hits / max(predicted + support, 1)),
            "macro_f1": float(class_scores(*counts)["f1"].mean()),
        }

    def details(self, outputs: Tensor, targets: Tensor) -> dict[str, Any]:
        """Return precision, recall, F1 and support of each class, each (C,); 0 if nothing was counted."""
        return {"per_class": class_scores(*self._counts(outputs, targets))}

    def _counts(self, outputs: Tensor, targets: Tensor) -> tuple[NDArray[np.int64], ...]:
        """Return how often each class is rightly in an answer, in an answer, and in a target, each (C,)."""
        chosen, true = self._chosen(outputs), targets.numpy() > 0.5
        return (chosen & true).sum(axis=0), chosen.sum(axis=0), true.sum(axis=0)

    def _chosen(self, outputs: Tensor) -> NDArray[np.bool_]:
        """Return which classes are in each row's answer (N, C)."""
        return self.probabilities(outputs) >= np.asarray(self.thresholds, dtype=np.float32)

    def answers(self, outputs: Tensor) -> list[Any]:
        """Return the list of classes of each row, in the order of the classes."""
        return [[self.classes[i] for i in np.flatnonzero(row)] for row in self._chosen(outputs)]

    def probabilities(self, outputs: Tensor) -> NDArray[np.float32]:
        """Return the probability of each class on its own (N, C); a row does not sum to 1."""
        return outputs.sigmoid().numpy()

    def confidences(self, outputs: Tensor) -> NDArray[np.float32]:
        """Return the probability of the least probable decision of each row (N,).

        It is the least of p for the classes in the answer and 1 - p for the others: 0.5 or more with thresholds of 0.5,
        and possibly less with others.
        """
        probabilities = self.probabilities(outputs)
        return np.where(self._chosen(outputs), probabilities, 1 - probabilities).min(axis=1)  # type: ignore[no-any-return]

    def adjusted(self, *, temperature: float | None = None, thresholds: Any = None) -> "MultiLabel":
        """Return the task with other thresholds; a class that a mapping lacks gets 0.5."""
        super().adjusted(temperature=temperature)
        return self if thresholds is None else type(self)(self.classes, thresholds)

    def json_answers(self, outputs: Tensor) -> list[dict[str, Any]]:
        """Return the names of each row's classes, and the probabilities; no class is "the" label."""
        names = self.output_names
        rows = zip(self._chosen(outputs), self.probabilities(outputs).tolist(), strict=True)
        return [
            {"label": None, "labels": [names[i] for i in np.flatnonzero(chosen)], "probs": probabilities}
            for chosen, probabilities in rows
        ]

    def columns(self, outputs: Tensor) -> dict[str, NDArray[Any]]:
        """Return a column of probabilities per class."""
        names = [f"p({name})" for name in self.output_names]
        return dict(zip(names, self.probabilities(outputs).T, strict=True))

    def right(self, outputs: Tensor, targets: Tensor) -> NDArray[np.bool_]:
        """Return which rows have every class right (N,)."""
        return (self._chosen(outputs) == (targets.numpy() > 0.5)).all(axis=1)  # type: ignore[no-any-return]

    def statistic(self, outputs: Tensor, targets: Tensor) -> Statistic:
        """Return scikit-learn's measures of several labels per row, as functions of the rows' weights."""
        probabilities = outputs.double().sigmoid().numpy()
        return statistics.multi_label(targets.numpy() > 0.5, self._chosen(outputs), probabilities)

    def report(self, measures: Mapping[str, float], details: Mapping[str, Any]) -> list[str]:
        """Return the measures, and a line per class if there are at most 20."""
        percent = ", ".join(f"{name.replace('_f1', '-F1')} {100 * measures[name]:.2f} %" for name in self.higher)
        lines = [f"{percent}, loss {measures['loss']:.4f}"]
        return lines + (class_lines(self.classes, details["per_class"]) if self.n_outputs <= 20 else [])

    def check_outputs(self) -> None:
        """Raise if there are no classes."""
        if not self.n_outputs:
            raise ValueError("MultiLabel has no classes; name at least one")

    def check_training(self, targets: NDArray[Any]) -> None:
        """Raise if all rows have the same classes."""
        if (targets == targets[:1]).all():
            raise ValueError("every row of the training set has the same classes; there is nothing to learn")

    def check_saved(self) -> None:
        """Raise if two classes would become the same in a saved folder; log those that will be saved as text."""
        check_writable(self.classes)

    def card(self) -> TaskCard:
        """Describe the model and its classes."""
        summary = f"A GPT-2 that decides for each of {self.n_outputs} classes whether a text belongs to it, with"
        use = 'model = load_model(FOLDER)\npredict(model, ["a text"])\npredict_proba(model, ["a text"])'
        ours = f"from gptclf import load_model, predict, predict_proba\n\n{use}"
        theirs = 'classify = pipeline("text-classification", model=FOLDER, truncation=True, top_k=None)'
        theirs += '\nclassify(["a text"])'
        shown = ", ".join(f"{threshold:g}" for threshold in sorted(set(self.thresholds))[:10])
        limits = (f"A class is in the answer if its probability is at least the class's threshold ({shown}).",)
        return TaskCard(summary, "text-classification", ours, theirs, labels=self.classes, limits=limits)

    def exported(self) -> dict[str, Any]:
        """Return the classes under the keys of `transformers`, which has no thresholds."""
        return exported_labels("multi_label_classification", self.output_names)

    def record(self) -> dict[str, Any]:
        """Return the classes with their types, and the thresholds."""
        return {
            "kind": self.kind,
            "classes": [label_to_json(label) for label in self.classes],
            "thresholds": self.thresholds,
        }

    @classmethod
    def from_record(cls, values: Mapping[str, Any]) -> Self:
        """Build the task that `record` described."""
        for key in ("classes", "thresholds"):
            if not isinstance(values.get(key), list):
                raise ValueError(f"the task's {key} are {values.get(key)!r}, not a list")
        return cls([label_from_json(label) for label in values["classes"]], values["thresholds"])


def _are_bits(values: Sequence[Any]) -> bool:
    return all(type(value) in (int, float, bool) and value in (0, 1) for value in values)
