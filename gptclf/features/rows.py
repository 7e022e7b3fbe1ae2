"""`FeatureSet`: the features of a data set's rows, batched like the data set itself."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gptclf.data.batches import TokenRows
from gptclf.data.rows import row_numbers
from gptclf.features.store import FeatureStore, StoredRow
from gptclf.tasks import Task


class FeatureSet:
    """Features of a data set's rows.

    Args:
        source: The rows that the features belong to; they hold the labels.
        stored: Each row's features.
        width: Numbers per position (D).
        store: Where they are kept; in memory they count there as long as this set lives.
    """

    def __init__(
        self, source: TokenRows, stored: Sequence[StoredRow], width: int, store: FeatureStore | None = None
    ) -> None:
        self.source, self.stored, self.width, self._store = source, list(stored), width, store
        # The attributes that all rows have; see `gptclf.data.batches.Rows`.
        self.labelled, self.task, self.weights = source.labelled, source.task, source.weights
        self.lengths: NDArray[np.int64] = np.array([row.length for row in stored], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.stored)

    def targets(self, task: Task | None = None) -> NDArray[Any]:
        """Return the targets of the source's rows."""
        return self.source.targets(task)

    def subset(self, indices: Sequence[int] | NDArray[np.int64]) -> "FeatureSet":
        """Return the rows at `indices`; the features themselves are not copied."""
        chosen = row_numbers(indices, len(self))
        return FeatureSet(self.source.subset(chosen), [self.stored[i] for i in chosen], self.width, self._store)

    def padded(self, indices: Sequence[int] | NDArray[np.int64]) -> Tensor:
        """Return the rows at `indices` as one tensor (B, T, D), zeros to the right of each row's length."""
        rows = row_numbers(indices, len(self))
        shape = len(rows), int(self.lengths[rows].max(initial=0)), self.width
        batch = torch.zeros(shape, dtype=torch.float32, device="cpu")
        for row, i in zip(batch, rows, strict=True):
            torch.narrow(row, 0, 0, self.stored[i].length).copy_(self.stored[i].values)
        return batch

    def packed(self, indices: Sequence[int] | NDArray[np.int64]) -> Tensor:
        """Return the rows at `indices` one after the other (N, D), a copy."""
        rows = [self.stored[i].values for i in row_numbers(indices, len(self))]
        return torch.cat(rows) if rows else torch.zeros(0, self.width, dtype=torch.float32, device="cpu")
