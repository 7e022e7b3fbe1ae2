"""Batches of a data set: padded on the right to their longest row, in an order determined by seed and epoch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gptclf.checks import boolean, instance, integer
from gptclf.data.rows import row_numbers
from gptclf.tasks import Task


class Rows(Protocol):
    """Rows that can be batched: texts as token ids, or the features that a model's frozen prefix computed from them."""

    def __len__(self) -> int: ...

    @property
    def labelled(self) -> bool:
        """True if the rows have targets."""

    @property
    def task(self) -> Task | None:
        """The task of the labels, or None without labels."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Number of positions in each row (N,)."""

    @property
    def weights(self) -> NDArray[np.float32] | None:
        """Each row's weight in the training loss (N,), or None if all are 1."""

    def targets(self, task: Task | None = None) -> NDArray[Any]:
        """Return each row's target under `task` (None: the rows' own task), (N,) or (N, k), or next tokens (N, T)."""

    def subset(self, indices: NDArray[np.int64]) -> Self:
        """Return the rows at `indices`."""

    def padded(self, indices: NDArray[np.int64]) -> Tensor:
        """Return the rows at `indices` as one tensor, padded on the right to the longest."""

    def packed(self, indices: NDArray[np.int64]) -> Tensor:
        """Return the rows at `indices` concatenated, without padding."""


class TokenRows(Rows, Protocol):
    """Rows of token ids."""

    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]

    def rows(self) -> Iterator[NDArray[np.int32]]:
        """Yield the token ids of each row, in order."""


@dataclass(frozen=True)
class Batch:
    """Some rows of a data set, ready for `model(batch.inputs, batch.lengths)`.

    Attributes:
        inputs: Token ids (B, T), int64, or features (B, T, D); T is the length of the longest row.
        lengths: Number of real tokens per row (B,), int64.
        targets: Targets under `task`, or None. For a classifier the index of each row's class (B,), for a language
            model the next token at each position (B, T), both int64.
        task: The task that the targets belong to, or None.
        weights: Each row's weight in the training loss (B,), float32, or None if all are 1.
        rows: Each row's number in the data set (B,), int64, or None. It stays on the CPU.
    """

    inputs: Tensor
    lengths: Tensor
    targets: Tensor | None = None
    task: Task | None = None
    weights: Tensor | None = None
    rows: Tensor | None = None

    def __len__(self) -> int:
        return len(self.lengths)

    def __repr__(self) -> str:
        parts = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        return f"Batch({', '.join(f'{name} {tuple(value.shape)}' for name, value in parts.items())})"

    def to(self, device: torch.device | str) -> "Batch":
        """Return the same batch on another device."""
        parts = {name: getattr(self, name) for name in ("inputs", "lengths", "targets", "weights")}
        moved: dict[str, Any] = {name: _moved(part, device) for name, part in parts.items() if part is not None}
        return replace(self, **moved)


def _moved(tensor: Tensor, device: torch.device | str) -> Tensor:
    if torch.device(device).type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)  # the copy overlaps with earlier work
    return tensor.to(device)


class Batches:
    """A data set in batches, epoch after epoch.

    In a loop of your own, `batches.epoch(i)` gives each epoch its order; iterating gives that of epoch 0 every time.

    Args:
        dataset: The rows.
        batch_size: Rows per batch; the last batch of an epoch may be smaller.
        seed: Seed of the order, which is a pure function of seed and epoch. None keeps the data set's order.
        drop_last: Leave out the last batch of an epoch if it is not full, as the book's training loader does.
        task: The task that targets are made for, such as `model.task`; labels are matched by name. None means the data
            set's own.

    Example:
        >>> from gptclf import TextDataset, load_gpt2
        >>> tokenizer = load_gpt2("nano").tokenizer
        >>> data = TextDataset(["a", "a b c", "a b"], [0, 1, 0], tokenizer=tokenizer)
        >>> [batch.inputs.shape for batch in Batches(data, batch_size=2)]
        [torch.Size([2, 3]), torch.Size([1, 2])]
    """

    def __init__(
        self,
        dataset: Rows,
        batch_size: int = 8,
        seed: int | None = None,
        *,
        drop_last: bool = False,
        task: Task | None = None,
    ) -> None:
        if not hasattr(dataset, "padded"):
            raise TypeError(f"dataset is a {type(dataset).__name__}; it must be a TextDataset or TextWindows")
        if task is not None:
            instance("task", task, Task, "a gptclf.Task, such as model.task")
        self.dataset = dataset
        self.batch_size = integer("batch_size", batch_size, 1)
        self.seed = integer("seed", seed, optional=True)
        self.drop_last = boolean("drop_last", drop_last)
        self.task = dataset.task if task is None else task
        self._lengths = dataset.lengths
        self._targets = dataset.targets(self.task) if dataset.labelled else None

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        full, rest = divmod(len(self.dataset), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[Batch]:
        return self.epoch(0)

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Return the row numbers of the whole data set in the order of an epoch."""
        if self.seed is None:
            return np.arange(len(self.dataset))
        return np.random.default_rng([self.seed, epoch]).permutation(len(self.dataset))

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch.

        Args:
            epoch: Number of the epoch, from 0.
            start: Number of the first batch to yield, from 0. The batches before it are not computed, so a run can
                resume inside an epoch.

        Raises:
            ValueError: If `start` is beyond the end of the epoch.
        """
        epoch, start = integer("epoch", epoch), integer("start", start)
        if start > len(self):
            raise ValueError(f"start is {start}; it must be at most {len(self)}, the number of batches in an epoch")
        order, size = self.order(epoch), self.batch_size
        return (self.take(order[i * size : (i + 1) * size]) for i in range(start, len(self)))

    def take(self, indices: Sequence[int] | NDArray[np.int64]) -> Batch:
        """Return the rows at `indices` as one batch.

        Raises:
            IndexError: If the data set has no such row.
        """
        rows, weights = row_numbers(indices, len(self.dataset)), self.dataset.weights
        targets = None if self._targets is None else self._targets[rows]
        if targets is not None and np.issubdtype(targets.dtype, np.integer):
            targets = targets.astype(np.int64)
        return Batch(
            inputs=self.dataset.padded(rows),
            lengths=torch.from_numpy(self._lengths[rows]),
            targets=None if targets is None else torch.from_numpy(targets),
            task=self.task,
            weights=None if weights is None else torch.from_numpy(weights[rows]),
            rows=torch.from_numpy(rows),
        )
