"""The wrong answers that a model was surest of. Wrong labels are often among the first of them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gptclf.plotting import data_frame
from gptclf.tasks import Task


@dataclass(frozen=True)
class ConfidentError:
    """A wrong answer.

    Attributes:
        row: The number of the row in the data set, from 0.
        text: The row's text.
        target: The row's label.
        prediction: The model's answer.
        probability: The probability that the model gave to its answer; if a text may belong to several classes, that of
            its least certain decision.
    """

    row: int
    text: str
    target: Any
    prediction: Any
    probability: float


class ConfidentErrors(list[ConfidentError]):
    """Wrong answers, the surest first."""

    def to_frame(self) -> Any:
        """Return a DataFrame (pandas) with a row for each error."""
        rows = [asdict(error) for error in self]
        return data_frame({f.name: [row[f.name] for row in rows] for f in fields(ConfidentError)})


def probabilities_of(task: Task, outputs: NDArray[np.float32], labels: Sequence[Any]) -> NDArray[np.float64]:
    """Return how probable the label of each row is (N,), in float64, in which sure answers hardly ever tie at 1.

    If a text may belong to several classes, it is the probability of the least probable decision.

    Raises:
        TypeError: The task has no probabilities.
    """
    probabilities, columns = task.probabilities(torch.from_numpy(outputs).double()), task.targets(labels)
    if columns.ndim == 1:
        return np.asarray(probabilities[np.arange(len(columns)), columns], dtype=np.float64)
    return np.asarray(np.where(columns > 0, probabilities, 1 - probabilities).min(axis=1), dtype=np.float64)


def find_errors(
    task: Task,
    outputs: NDArray[np.float32],
    targets: Sequence[Any],
    predictions: Sequence[Any],
    texts: Sequence[str],
    n: int,
) -> ConfidentErrors:
    """Return the `n` wrong answers with the highest probabilities.

    Of equally probable ones, those come first whose label is the least probable.

    Raises:
        TypeError: The task has no probabilities, or its answers are not right or wrong.
    """
    found, true = torch.from_numpy(outputs), task.targets(targets)
    sure, of_target = (probabilities_of(task, outputs, labels) for labels in (predictions, targets))
    wrong = np.flatnonzero(~task.right(found, torch.from_numpy(true)))
    order = wrong[np.lexsort((wrong, of_target[wrong], -sure[wrong]))][:n]
    return ConfidentErrors(
        ConfidentError(int(i), texts[i], targets[i], predictions[i], float(sure[i])) for i in order.tolist()
    )
