"""`FeatureSet`: the features of a data set's rows, batched like the data set itself."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gptclf.data.batches import TokenRows
from gptclf.data.rows import row_numbers
from gptclf.features.store import StoredRow
from gptclf.tasks import Task


class FeatureSet:
    """Features of a data set's rows.

    Args:
        source: The rows that the features belong to; it keeps the labels.
        stored: Each row's features.
        width: Numbers per position (D).
    """

    def __init__(self, source: TokenRows, stored: Sequence[StoredRow], width: int) -> None:
        self.source = source
        self.stored = list(stored)
        self.width = width
        self.lengths: NDArray[np.int64] = np.array([row.length for row in stored], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.stored)

    @property
    def labelled(self) -> bool:
        """True if the source has targets."""
        return self.source.labelled

    @property
    def task(self) -> Task | None:
        """The source's task."""
        return self.source.task

    @property
    def weights(self) -> NDArray[np.float32] | None:
        """The source's weights (N,), or None."""
        return self.source.weights

    def targets(self, task: Task | None = None) -> NDArray[Any]:
        """Return the targets of the source's rows."""
        return self.source.targets(task)

    def subset(self, indices: Sequence[int] | NDArray[np.int64]) -> "FeatureSet":
        """Return the rows at `indices`; the features themselves are not copied."""
        chosen = row_numbers(indices, len(self))
        part = copy.copy(self)
        part.source = self.source.subset(chosen)
        part.stored = [self.stored[i] for i in chosen]
        part.lengths = self.lengths[chosen]
        return part

    def padded(self, indices: NDArray[np.int64]) -> Tensor:
        """Return the rows at `indices` as one tensor (B, T, D), zeros to the right of each row's length."""
        batch = torch.zeros(len(indices), int(self.lengths[indices].max(initial=0)), self.width, dtype=torch.float32)
        for row, i in zip(batch, indices, strict=True):
            torch.narrow(row, 0, 0, self.stored[i].length).copy_(self.stored[i].values)
        return batch

    def packed(self, indices: NDArray[np.int64]) -> Tensor:
        """Return the rows at `indices` one after the other (N, D), a copy."""
        return torch.cat([self.stored[i].values for i in indices])
