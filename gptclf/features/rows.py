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
from gptclf.features.store import Place


class FeatureSet:
    """Features of a data set's rows.

    Args:
        source: The rows that the features are of; it keeps the labels.
        places: Where each row's features stand.
        width: Numbers per position (D).
    """

    def __init__(self, source: TokenRows, places: Sequence[Place], width: int) -> None:
        self.source = source
        self.places = list(places)
        self.width = width
        self.lengths: NDArray[np.int64] = np.array([place.length for place in places], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.places)

    @property
    def labelled(self) -> bool:
        """Whether the source has something to predict."""
        return self.source.labelled

    @property
    def classes(self) -> list[Any] | None:
        """The source's classes."""
        return self.source.classes

    def targets(self, classes: Sequence[Any]) -> NDArray[np.integer[Any]]:
        """What the source's rows have to predict."""
        return self.source.targets(classes)

    def subset(self, indices: Sequence[int] | NDArray[np.int64]) -> "FeatureSet":
        """The rows at `indices`; the features themselves are not copied."""
        chosen = row_numbers(indices, len(self))
        part = copy.copy(self)
        part.source = self.source.subset(chosen)
        part.places = [self.places[i] for i in chosen]
        part.lengths = self.lengths[chosen]
        return part

    def padded(self, indices: NDArray[np.int64]) -> Tensor:
        """Rows at `indices` as one tensor (B, T, D), zeros right of each row's length."""
        batch = torch.zeros(len(indices), int(self.lengths[indices].max(initial=0)), self.width, dtype=torch.float32)
        for row, i in zip(batch, indices, strict=True):
            torch.narrow(row, 0, 0, self.places[i].length).copy_(self.places[i].values)
        return batch

    def packed(self, indices: NDArray[np.int64]) -> Tensor:
        """Rows at `indices` one after the other (N, D), a copy."""
        return torch.cat([self.places[i].values for i in indices])
