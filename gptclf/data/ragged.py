"""`RaggedIds`: rows of token ids of different lengths, without padding."""

import itertools
import sys
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gptclf.checks import integer
from gptclf.data.rows import row_numbers


class RaggedIds:
    """Rows of token ids, kept one after the other in one array.

    One flat array instead of N small ones: a batch takes a few slices of it.

    Attributes:
        ids: All token ids, int32.
        offsets: Where each row begins in `ids`, and where the last one ends (N + 1,), int64.
    """

    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]

    def set_rows(self, rows: Sequence[NDArray[np.int32]]) -> None:
        """Replace all rows."""
        self.offsets = np.cumsum([0, *(len(row) for row in rows)], dtype=np.int64)
        self.ids = np.concatenate(rows) if rows else np.zeros(0, dtype=np.int32)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Number of tokens in each row (N,)."""
        return np.diff(self.offsets)

    def row(self, index: int) -> NDArray[np.int32]:
        """Return the token ids of one row; a negative index counts from the end."""
        (row,) = self.rows_at(row_numbers([integer("index", index, -sys.maxsize)], len(self)))
        return row

    def rows(self) -> Iterator[NDArray[np.int32]]:
        """Yield the token ids of each row, in order."""
        return (self.ids[start:end] for start, end in itertools.pairwise(self.offsets))

    def rows_at(self, numbers: NDArray[np.int64]) -> list[NDArray[np.int32]]:
        """Return the token ids of some rows, whose numbers are not checked."""
        return [self.ids[self.offsets[i] : self.offsets[i + 1]] for i in numbers]

    def padded(self, indices: Sequence[int] | NDArray[np.int64]) -> Tensor:
        """Return the rows at `indices` as one tensor (B, T), int64, with 0 to the right of each row."""
        numbers = row_numbers(indices, len(self))
        starts, ends = self.offsets[numbers], self.offsets[numbers + 1]
        batch = np.zeros((len(numbers), int((ends - starts).max(initial=0))), dtype=np.int64)
        for row, start, end in zip(batch, starts, ends, strict=True):
            row[: end - start] = self.ids[start:end]
        return torch.from_numpy(batch)

    def packed(self, indices: Sequence[int] | NDArray[np.int64]) -> Tensor:
        """Return the rows at `indices` concatenated (N,), int64."""
        rows = self.rows_at(row_numbers(indices, len(self)))
        return torch.from_numpy(np.concatenate([self.ids[:0], *rows]).astype(np.int64))
