"""The wrong answers that a model was surest of. Wrong labels are often among the first of them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptclf.plotting import data_frame


@dataclass(frozen=True)
class ConfidentError:
    """A wrong answer.

    Attributes:
        row: The number of the row in the data set, from 0.
        text: The row's text.
        target: The row's label.
        prediction: The model's answer.
        probability: The probability that the model gave to its answer; if a text may belong to several classes, to all
            of its decisions together.
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


def find_errors(
    probabilities: NDArray[np.float64],
    right: NDArray[np.bool_],
    targets: Sequence[Any],
    predictions: Sequence[Any],
    texts: Sequence[str],
) -> ConfidentErrors:
    """Return the wrong answers, the most probable first, from all answers' probabilities and which are right (N,)."""
    wrong = np.flatnonzero(~right)
    order = wrong[np.argsort(-probabilities[wrong], kind="stable")].tolist()
    return ConfidentErrors(
        ConfidentError(i, texts[i], targets[i], predictions[i], float(probabilities[i])) for i in order
    )
