"""`Task`, the base class of all tasks, with the interface it needs of a model and the text it gives a model card."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from reprlib import Repr
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gptclf.checks import integer
from gptclf.metrics.bootstrap import Statistic
from gptclf.tasks.labels import distinct_names

# A task may have thousands of classes, and its repr is part of error messages.
_short = Repr()
_short.maxlist = _short.maxdict = 10
_short.maxstring = _short.maxother = 80


@dataclass(frozen=True)
class TaskCard:
    """The parts of a model card that depend on the task. In code, FOLDER stands for the model's folder.

    Attributes:
        summary: The start of a sentence that ends with the size of the model.
        pipeline: The name of the task on the Hugging Face hub, or None if it has none.
        ours: Code that loads and uses the model with gptclf.
        theirs: Code that does so with a `transformers` pipeline; "" if `transformers` has no such task.
        labels: The labels in column order.
        takes_texts: Whether the card says how texts are prepared.
        limits: Further paragraphs about the model's limits.
    """

    summary: str
    pipeline: str | None = None
    ours: str = 'from gptclf import load_model, predict\n\nmodel = load_model(FOLDER)\npredict(model, ["a text"])'
    theirs: str = ""
    labels: Sequence[Any] = ()
    takes_texts: bool = True
    limits: tuple[str, ...] = ()


class Predictor(Protocol):
    """The part of a model's interface that a task uses; a `Learner` has it as well."""

    def __call__(self, inputs: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Compute the outputs (B, n_outputs) of a batch."""

    def hidden_states(self, inputs: Tensor) -> Tensor:
        """Compute the final hidden states (B, T, D)."""

    @property
    def output_matrix(self) -> Tensor | None:
        """A language-model head's matrix (V, D) if it may be multiplied in pieces, else None."""


class Scored(Protocol):
    """Rows to measure, and the model that computes their outputs."""

    @property
    def model(self) -> Predictor:
        """The model, in evaluation mode."""

    @property
    def targets(self) -> Tensor:
        """The targets of all rows."""

    def outputs(self) -> Tensor:
        """Compute the outputs of all rows (N, n_outputs)."""

    def batches(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield inputs, lengths and targets of the rows, batch by batch."""


class Task:
    """The prediction task of a model. A subclass defines `n_outputs`, `targets`, `loss`, `scores` and `answers`.

    Attributes:
        kind: The task's name in a saved folder; the class's name by default.
        title: What a model card calls a model with this task.
        higher: Names of the measures for which more is better; for all others, such as "loss", less is better.
        scorings: Names of the measures that `calibrated` can choose thresholds by; empty if there are none to choose.
        n_outputs: Number of outputs per row.
        classes: The labels in the order of the outputs, or None if the task has no classes.

    Example:
        >>> from gptclf import SingleLabel
        >>> task = SingleLabel(["ham", "spam"])
        >>> task.targets(["spam", "ham"]).tolist(), task.n_outputs
        ([1, 0], 2)
    """

    kind: ClassVar[str] = ""
    title: ClassVar[str] = "GPT-2 with a task of its own"
    higher: ClassVar[Collection[str]] = ("accuracy",)
    scorings: ClassVar[Collection[str]] = ()
    n_outputs: int
    classes: list[Any] | None = None
    _unshown: ClassVar[Collection[str]] = ("kind",)  # keys of the record that are not arguments

    @property
    def summary(self) -> str:
        """A few words about the task, such as the number of its classes, or its name."""
        return f"task {type(self).__name__}" if self.classes is None else f"{len(self.classes)} classes"

    def targets(self, labels: Sequence[Any]) -> NDArray[Any]:
        """Return one target per label, (N,) or (N, k). An error names the row."""
        raise NotImplementedError(f"{type(self).__name__} defines no targets(labels)")

    def labels_of(self, cells: Sequence[Any]) -> Sequence[Any]:
        """Return the labels that the text of cells stands for, as a .csv file has them; by default that text."""
        return cells

    def loss(self, outputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> tuple[Tensor, float]:
        """Return the sum of the rows' losses and the weight by which a step divides it.

        Args:
            outputs: What the model computed (B, n_outputs).
            targets: The rows' targets, (B,) or (B, k).
            weights: A weight per row (B,), or None if all are 1.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no loss(outputs, targets, weights)")

    def weight(self, targets: Tensor, weights: Tensor | None = None) -> float:
        """Return the total weight of some rows: the divisor that `loss` returns along with the sum."""
        return float(len(targets)) if weights is None else float(weights.double().sum())

    def scores(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Return the measures of some rows by name, "loss" first; plain means, without weights."""
        raise NotImplementedError(f"{type(self).__name__} defines no scores(outputs, targets)")

    def answers(self, outputs: Tensor) -> list[Any]:
        """Return the answer to each row of outputs (N, n_outputs)."""
        raise NotImplementedError(f"{type(self).__name__} defines no answers(outputs)")

    def probabilities(self, outputs: Tensor) -> NDArray[np.float32]:
        """Return a probability per class and row (N, C).

        Raises:
            TypeError: The task has no probabilities.
        """
        raise TypeError(f"{type(self).__name__} gives no probabilities; predict returns its answers")

    def confidences(self, outputs: Tensor) -> NDArray[np.float32]:
        """Return how sure each answer is (N,), from 0 to 1, for `reject_below`: by default the highest probability.

        A task whose answer may be another class than the most probable one gives the probability of its answer.

        Raises:
            TypeError: The task has no probabilities.
        """
        return self.probabilities(outputs).max(axis=1)  # type: ignore[no-any-return]

    def output_of(self, target: Any) -> int:
        """Return the number of the output that belongs to a class; for a task without classes, the number given.

        Raises:
            ValueError: There is no such class or output.
        """
        if self.classes is None:
            return integer("target", target, most=self.n_outputs - 1)
        if target not in self.classes:
            raise ValueError(f"target is {_short.repr(target)}; the classes are {_short.repr(self.classes)}")
        return self.classes.index(target)

    def target_of(self, output: int) -> Any:
        """Return what `output_of` takes for an output: its class, or its number."""
        return output if self.classes is None else self.classes[output]

    def explained(self, outputs: Tensor) -> list[int]:
        """Return the output of each row that `explain` explains unless told otherwise: its answer's, or the largest."""
        known, largest = self.classes or [], outputs.argmax(dim=1).tolist()
        pairs = zip(self.answers(outputs), largest, strict=True)
        return [known.index(answer) if answer in known else most for answer, most in pairs]

    def adjusted(self, *, temperature: float | None = None, thresholds: Any = None) -> "Task":
        """Return the task with another temperature or other thresholds; None keeps what it has.

        Raises:
            TypeError: The task has no such setting, or a value has a wrong type.
        """
        for name, value in (("temperature", temperature), ("thresholds", thresholds)):
            if value is not None:
                raise TypeError(f"{name} is {value!r}, but a {type(self).__name__} has no {name}; leave it out")
        return self

    def calibrated(self, outputs: Tensor, targets: Tensor, scoring: str | None) -> "Task":
        """Return the task with the settings that fit a validation set best: its temperature and its thresholds.

        Args:
            outputs: The model's outputs (N, n_outputs).
            targets: The rows' targets.
            scoring: The one of `scorings` that the thresholds maximise; None keeps the thresholds.
        """
        raise TypeError(f"{type(self).__name__} has nothing to calibrate")

    @property
    def output_names(self) -> list[str]:
        """A distinct name for each output, its class if there are classes."""
        return [f"output {i}" for i in range(self.n_outputs)] if self.classes is None else distinct_names(self.classes)

    def json_answers(self, outputs: Tensor) -> list[dict[str, Any]]:
        """Return the answer to each row as JSON values, "label" among them; by default the answer as text."""
        return [{"label": str(answer)} for answer in self.answers(outputs)]

    def columns(self, outputs: Tensor) -> dict[str, NDArray[Any]]:
        """Return the columns of a table of answers, by name; by default one column per output."""
        return dict(zip(self.output_names, outputs.numpy().T, strict=True))

    def details(self, outputs: Tensor, targets: Tensor) -> dict[str, Any]:
        """Return further results of an evaluation, by name, such as a confusion matrix."""
        return {}

    def right(self, outputs: Tensor, targets: Tensor) -> NDArray[np.bool_]:
        """Return which answers are right (N,).

        Raises:
            TypeError: The task's answers are not right or wrong.
        """
        raise TypeError(f"the answers of a {type(self).__name__} are not simply right or wrong")

    def statistic(self, outputs: Tensor, targets: Tensor) -> Statistic:
        """Return a function from weights per row (B, N) to measures by name, each (B,), or (B, C) if per class.

        `Evaluation.metrics` and its intervals come from it; by default there are none.
        """
        return lambda weights: {}

    def report(self, measures: Mapping[str, float], details: Mapping[str, Any]) -> list[str]:
        """Return the lines that an evaluation prints: the measures, then any details."""
        return [", ".join(f"{name} {value:.4f}" for name, value in measures.items())]

    def fitted(self, targets: NDArray[Any]) -> "Task":
        """Return this task with every setting filled in that depends on the training set, as training starts."""
        return self

    def check_outputs(self) -> None:
        """Raise if a model with these outputs could not learn anything, such as a classifier with one class."""

    def check_training(self, targets: NDArray[Any]) -> None:
        """Raise if nothing can be learned from these targets."""

    def check_same(self, other: "Task | None") -> None:
        """Raise if targets made for `other` would mean something else under this task."""
        if self != other:
            raise ValueError(f"the rows are of the task {other}, but the model's is {self}; give both the same task")

    def batch_loss(
        self, model: Predictor, inputs: Tensor, lengths: Tensor, targets: Tensor, weights: Tensor | None = None
    ) -> tuple[Tensor, float]:
        """Compute a batch and return its loss as `loss` does."""
        return self.loss(model(inputs, lengths), targets, weights)

    def measure(self, rows: Scored) -> dict[str, float]:
        """Compute the outputs of some rows and return their measures as `scores` does."""
        return self.scores(rows.outputs(), rows.targets)

    def check_saved(self) -> None:
        """Raise if the task would not be the same after saving and loading."""

    def card(self) -> TaskCard:
        """Return the parts of a model card that depend on the task."""
        return TaskCard(summary=f"A GPT-2 for the task `{self.kind or type(self).__name__}`, with")

    def exported(self) -> dict[str, Any] | None:
        """Return the keys that the task adds to a `transformers` config.json, or None if it has no such task."""
        return None

    def record(self) -> dict[str, Any]:
        """Return the task's record in a saved folder, as JSON values."""
        return {"kind": self.kind or type(self).__name__, "n_outputs": self.n_outputs}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Task) and self.record() == other.record()

    def __hash__(self) -> int:
        return hash(repr(self.record()))

    def __repr__(self) -> str:
        values = {key: getattr(self, key, value) for key, value in self.record().items() if key not in self._unshown}
        return f"{type(self).__name__}({', '.join(f'{key}={_short.repr(value)}' for key, value in values.items())})"
