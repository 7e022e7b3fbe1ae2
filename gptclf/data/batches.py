"""Batches of a data set: padded on the right to their own longest row, in an order that seed and epoch determine."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gptclf.tasks import plain


class Rows(Protocol):
    """What can be batched: texts as token ids, or what a frozen part of a model has made of them."""

    def __len__(self) -> int: ...

    @property
    def labelled(self) -> bool:
        """Whether there is something to predict."""

    @property
    def classes(self) -> list[Any] | None:
        """The labels that occur."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Positions in each row (N,)."""

    def targets(self, classes: Sequence[Any]) -> NDArray[np.integer[Any]]:
        """Each row's index into `classes` (N,), or the token that follows each of its positions (N, T)."""

    def subset(self, indices: NDArray[np.int64]) -> Self:
        """The rows at `indices`."""

    def padded(self, indices: NDArray[np.int64]) -> Tensor:
        """Some rows as one tensor, padded on the right to the longest."""

    def packed(self, indices: NDArray[np.int64]) -> Tensor:
        """Some rows one after the other in one tensor, without padding."""


class TokenRows(Rows, Protocol):
    """Rows of token ids."""

    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]

    def rows(self) -> Iterator[NDArray[np.int32]]:
        """Token ids of every row, in order."""


@dataclass(frozen=True)
class Batch:
    """Some rows of a data set, ready for `model(batch.inputs, batch.lengths)`.

    Attributes:
        inputs: Token ids (B, T), int64, or features (B, T, D); T is the longest of these rows.
        lengths: Real tokens per row (B,), int64.
        targets: Index into `classes` per row (B,), or of a language model the next token of each position (B, T);
            int64, or None.
        classes: The labels that targets index, or None.
    """

    inputs: Tensor
    lengths: Tensor
    targets: Tensor | None = None
    classes: tuple[Any, ...] | None = None

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def n_targets(self) -> int:
        """How many predictions the batch's mean loss is a mean over."""
        return len(self) if self.targets is None else self.targets.numel()

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        targets = None if self.targets is None else _moved(self.targets, device)
        return replace(self, inputs=_moved(self.inputs, device), lengths=_moved(self.lengths, device), targets=targets)


def _moved(tensor: Tensor, device: torch.device | str) -> Tensor:
    if torch.device(device).type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)  # the copy runs beside the work before it
    return tensor.to(device)


class Batches:
    """A data set in batches, epoch after epoch.

    Args:
        dataset: The rows.
        batch_size: Rows per batch; the last batch of an epoch may be smaller.
        seed: Seed of the order, which is a pure function of seed and epoch. None keeps the data set's order.
        drop_last: Leave out a last batch that is not full (the book's training loader does).
        classes: What targets index; None means the data set's own classes. Labels are matched by name.

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
        classes: Sequence[Any] | None = None,
    ) -> None:
        batch_size, seed = plain(batch_size), plain(seed)
        for name, value, least in (("batch_size", batch_size, 1), ("seed", seed, 0)):
            if value is None and name == "seed":
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name} is {value!r}; it must be an integer of at least {least}")
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.drop_last = drop_last
        self.classes = dataset.classes if classes is None else list(classes)
        self._targets = dataset.targets(self.classes or []) if dataset.labelled else None

    def __len__(self) -> int:
        """Batches in one epoch."""
        full, rest = divmod(len(self.dataset), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[Batch]:
        return self.epoch(0)

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Row numbers of the whole data set in the order of an epoch."""
        if self.seed is None:
            return np.arange(len(self.dataset))
        return np.random.default_rng([self.seed, epoch]).permutation(len(self.dataset))

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of epoch number `epoch`, counted from 0."""
        order = self.order(epoch)
        for i in range(len(self)):
            yield self.take(order[i * self.batch_size : (i + 1) * self.batch_size])

    def take(self, indices: NDArray[np.int64]) -> Batch:
        """The rows at `indices` as one batch."""
        return Batch(
            inputs=self.dataset.padded(indices),
            lengths=torch.from_numpy(self.dataset.lengths[indices]),
            targets=None if self._targets is None else torch.from_numpy(self._targets[indices].astype(np.int64)),
            classes=None if self.classes is None else tuple(self.classes),
        )
