"""`FeatureSet`: the residual stream of each text at the cut, kept in memory as ragged rows."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gptclf.data.dataset import TextDataset
from gptclf.data.preparation import row_numbers


class FeatureSet:
    """Features of a data set's rows, batched like the data set itself.

    Args:
        source: The rows that the features are of; it keeps the labels.
        values: All rows one after the other (sum of lengths, D), float32.
        lengths: Positions per row (N,).
    """

    def __init__(self, source: TextDataset, values: Tensor, lengths: NDArray[np.int64]) -> None:
        self.source = source
        self.values = values
        self.lengths = lengths
        self._starts = np.cumsum(lengths) - lengths

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def classes(self) -> list[Any] | None:
        """The source's classes."""
        return self.source.classes

    def targets(self, classes: Sequence[Any]) -> NDArray[np.int64]:
        """Each row's index into `classes`, matched by name."""
        return self.source.targets(classes)

    def subset(self, indices: Sequence[int] | NDArray[np.int64]) -> "FeatureSet":
        """The rows at `indices`; the features themselves are not copied."""
        chosen = row_numbers(indices, len(self))
        part = copy.copy(self)
        part.source = self.source.subset(chosen)
        part.lengths, part._starts = self.lengths[chosen], self._starts[chosen]
        return part

    def padded(self, indices: NDArray[np.int64]) -> Tensor:
        """Rows at `indices` as one tensor (B, T, D), zeros right of each row's length."""
        lengths = self.lengths[indices]
        batch = self.values.new_zeros(len(indices), int(lengths.max(initial=0)), self.values.shape[1])
        for row, start, length in zip(batch, self._starts[indices], lengths, strict=True):
            torch.narrow(row, 0, 0, length).copy_(self.values[start : start + length])
        return batch
