"""What sits on the trunk: the language-model head and the classifier head, equals behind one call.

A head is a module called as `head(hidden (B, T, D), lengths (B,) | None)`, with `project` for logits of every token.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptclf.gpt2.config import GPT2Config
from gptclf.gpt2.gradients import Linear
from gptclf.tasks import check_classes

POOLINGS = ("last", "first", "mean", "max")


class Head(nn.Module):
    """The protocol both heads keep."""

    def project(self, hidden: Tensor) -> Tensor:
        """Logits of hidden states (..., D), one row for each."""
        raise TypeError(f"{type(self).__name__} is not a head: it defines no project()")

    def forward(self, hidden: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Logits of hidden states (B, T, D) of rows with `lengths` real tokens."""
        return self.project(hidden)


class LMHead(Head):
    """Next-token logits (B, T, V), with the token embedding's matrix (tied) or one of its own."""

    def __init__(self, config: GPT2Config, embedding: nn.Embedding) -> None:
        super().__init__()
        # Held in a tuple, so not registered: the tied matrix is a parameter of the embedding, once.
        self._tied_to = (embedding,) if config.tied else None
        if not config.tied:
            self.output = Linear(config.emb_dim, config.vocab_size, bias=False, device="meta")

    @property
    def weight(self) -> Tensor:
        """The output matrix (V, D)."""
        return self.output.weight if self._tied_to is None else self._tied_to[0].weight

    def project(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of hidden states (..., D)."""
        return F.linear(hidden, self.weight)


class ClassifierHead(Head):
    """Class logits (B, C): pool the hidden states of each row to one vector, then one linear layer.

    Args:
        config: The model's shape.
        classes: The labels, in the order of the logits' columns.
        pooling: "last" (the last real token), "first", "mean" or "max" (both over real tokens).
        bias: Whether the output layer has a bias (Hugging Face's has none).
    """

    def __init__(self, config: GPT2Config, classes: Sequence[Any], *, pooling: str = "last", bias: bool = True) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f"pooling is {pooling!r}; choose from {', '.join(POOLINGS)}")
        labels = check_classes(classes)
        if len(labels) < 2:
            raise ValueError(
                f"a classifier needs at least 2 classes, but got {labels!r}; with one class there is nothing to learn"
            )
        if len(set(labels)) < len(labels):
            raise ValueError(f"classes holds a label twice: {labels!r}; each column needs its own label")
        self.classes = tuple(labels)
        self.pooling = pooling
        self.output = Linear(config.emb_dim, len(labels), bias=bias, device="meta")

    def project(self, hidden: Tensor) -> Tensor:
        """Class logits (..., C) of hidden states (..., D)."""
        return self.output(hidden)  # type: ignore[no-any-return]

    def forward(self, hidden: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Class logits (B, C) of hidden states (B, T, D)."""
        return self.project(pool(hidden, lengths, self.pooling))


def pool(hidden: Tensor, lengths: Tensor | None, pooling: str) -> Tensor:
    """One vector (B, D) per row of hidden states (B, T, D), from its real tokens alone.

    Args:
        hidden: Hidden states, padded on the right.
        lengths: Real tokens per row (B,), each from 1 to T; None means T.
        pooling: One of `POOLINGS`.
    """
    B, T, _ = hidden.shape
    if lengths is not None:
        check_lengths(lengths, B, T)
    if pooling == "first":
        return hidden[:, 0]
    if pooling == "last":
        if lengths is None:
            return hidden[:, -1]
        return hidden[torch.arange(B, device=hidden.device), lengths - 1]
    if lengths is None:
        return hidden.mean(dim=1) if pooling == "mean" else hidden.amax(dim=1)
    pad = torch.arange(T, device=hidden.device) >= lengths[:, None]
    if pooling == "mean":
        return hidden.masked_fill(pad[..., None], 0.0).sum(dim=1) / lengths[:, None]
    return hidden.masked_fill(pad[..., None], float("-inf")).amax(dim=1)


def check_lengths(lengths: Tensor, B: int, T: int) -> None:
    """Raise where `lengths` cannot be the numbers of real tokens in rows (B, T)."""
    if not isinstance(lengths, Tensor):
        raise TypeError(f"lengths is a {type(lengths).__name__}; it must be a tensor of {B} counts")
    if lengths.shape != (B,):
        raise ValueError(f"lengths has shape {tuple(lengths.shape)}; it must be ({B},), one count per row")
    # A length of 0 would index the last column without a word. On a GPU the check would wait for the device.
    if lengths.device.type == "cpu" and B:
        low, high = int(lengths.min()), int(lengths.max())
        if low < 1 or high > T:
            raise ValueError(f"lengths run from {low} to {high}; with {T} columns they must lie in 1 to {T}")
