"""`Regression`: each text has one measurement or several."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gptclf.checks import integer, number, python_value
from gptclf.metrics import statistics
from gptclf.metrics.bootstrap import Statistic
from gptclf.tasks.labels import as_number, exported_labels
from gptclf.tasks.task import Task, TaskCard

_LARGEST = float(np.finfo(np.float32).max)


class Regression(Task):
    """Each text has one measurement, or `n_outputs` of them: mean squared error, as in `transformers`.

    The loss of a row is its mean over the outputs. Targets of the order of 1 are learned fastest: divide prices,
    counts or years by their spread first, and multiply the answers by it.

    Args:
        n_outputs: Number of measurements for each text. With 1 a label is a number and so is an answer; otherwise they
            are lists.

    Example:
        >>> Regression().targets([1.5, 2]).tolist()
        [[1.5], [2.0]]
        >>> Regression(2).answers(torch.tensor([[0.5, 1.0]]))
        [[0.5, 1.0]]
    """

    kind = "regression"
    title = "GPT-2 text regression"
    higher = ("r2",)

    def __init__(self, n_outputs: int = 1) -> None:
        self.n_outputs = integer("n_outputs", n_outputs, 1)

    @property
    def summary(self) -> str:
        """The number of outputs."""
        return f"{self.n_outputs} measurement{'s' * (self.n_outputs > 1)}"

    def targets(self, labels: Sequence[Any]) -> NDArray[np.float32]:
        """Return the measurements (N, n_outputs).

        Raises:
            TypeError: A label is not a number, or not a list of `n_outputs` numbers; the error names its row.
            ValueError: A number is missing or not finite.
        """
        rows = [self._row(i, python_value(label)) for i, label in enumerate(labels)]
        return np.asarray(rows, dtype=np.float32).reshape(len(rows), self.n_outputs)

    def _row(self, row: int, label: Any) -> list[float]:
        several = isinstance(label, Sequence | np.ndarray) and not isinstance(label, str | bytes)
        values = list(label) if several else [label]
        if len(values) != self.n_outputs:
            problem = f"label {row} is {label!r}; it must be {self.n_outputs} number{'s' * (self.n_outputs > 1)}"
            raise ValueError(f"{problem}, as Regression(n_outputs={self.n_outputs}) says")
        for value in values:
            if isinstance(value, str):
                raise TypeError(
                    f"label {row} is the text {value!r}, not a number; convert it, as float({value!r}) does"
                )
        return [number(f"label {row}", value, least=-_LARGEST, most=_LARGEST) for value in values]

    def labels_of(self, cells: Sequence[Any]) -> Sequence[Any]:
        """Return the cells as numbers, where they are."""
        return [as_number(cell) for cell in cells]

    def loss(self, outputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> tuple[Tensor, float]:
        """Return the weighted sum of the rows' mean squared errors, and the sum of the weights."""
        rows = (outputs.float() - targets).square().mean(dim=1)
        return (rows if weights is None else rows * weights).sum(), self.weight(targets, weights)

    def scores(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Return the mean squared error, the mean absolute error, and R² averaged over the outputs.

        An output whose targets are all equal has an R² of 1 if it is exact and 0 if not, as in scikit-learn.
        """
        true, errors = targets.double(), outputs.double() - targets.double()
        squares = errors.square().mean(dim=0)
        spread = (true - true.mean(dim=0)).square().mean(dim=0)
        same = (true == true[:1]).all(dim=0)
        r2 = torch.where(same, (squares == 0).double(), 1 - squares / spread.clamp(min=torch.finfo(true.dtype).tiny))
        return {"loss": float(squares.mean()), "mae": float(errors.abs().mean()), "r2": float(r2.mean())}

    def statistic(self, outputs: Tensor, targets: Tensor) -> Statistic:
        """Return errors and R², means over the outputs, as functions of the rows' weights."""
        return statistics.regression(targets.double().numpy(), outputs.double().numpy())

    def answers(self, outputs: Tensor) -> list[Any]:
        """Return each row's number, or its list of numbers."""
        rows: list[list[float]] = outputs.tolist()
        return rows if self.n_outputs > 1 else [row[0] for row in rows]

    def explained(self, outputs: Tensor) -> list[int]:
        """Return output 0 for each row if there is no other."""
        if self.n_outputs > 1:
            raise ValueError(f"target is None; give the number of the measurement, from 0 to {self.n_outputs - 1}")
        return [0] * len(outputs)

    def check_training(self, targets: NDArray[Any]) -> None:
        """Raise if all rows have the same measurements."""
        if (targets == targets[:1]).all():
            raise ValueError("every row of the training set has the same measurements; there is nothing to learn")

    def json_answers(self, outputs: Tensor) -> list[dict[str, Any]]:
        """Return each row's numbers; there is no label."""
        return [{"label": None, "values": values} for values in outputs.tolist()]

    def card(self) -> TaskCard:
        """Describe the model."""
        what = "a number" if self.n_outputs == 1 else f"{self.n_outputs} numbers"
        options = 'model=FOLDER, truncation=True, function_to_apply="none", top_k=None'
        theirs = f'measure = pipeline("text-classification", {options})'
        return TaskCard(
            f"A GPT-2 that estimates {what} for a text, with",
            "text-classification",
            'from gptclf import load_model, predict\n\nmodel = load_model(FOLDER)\npredict(model, ["a text"])',
            f'{theirs}\nmeasure(["a text"])',
            limits=("It says nothing about how far its estimates may be off.",),
        )

    def exported(self) -> dict[str, Any]:
        """Return the outputs under the keys of `transformers`."""
        return exported_labels("regression", [f"LABEL_{i}" for i in range(self.n_outputs)])

    @classmethod
    def from_record(cls, values: Mapping[str, Any]) -> Self:
        """Build the task that `record` described."""
        return cls(integer("n_outputs", values.get("n_outputs"), 1))
