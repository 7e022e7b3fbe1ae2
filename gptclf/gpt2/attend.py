"""The attention of a block, as a function of query, key and value (B, H, T, d_h): which tokens a token may look at.

A block takes this function as an argument, so it is the same in training, scoring and generation. All of these
functions are causal.
"""

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptclf.gpt2.layers import acts


class Attend(Protocol):
    """Mixes the values (B, H, T, d_h) that each query may look at, to (B, H, T, d_h)."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, scale: float, dropout: nn.Module | None = None) -> Tensor:
        """Mix the values.

        Args:
            q: Queries.
            k: Keys.
            v: Values.
            scale: Factor of the scores.
            dropout: Applied to the attention weights.
        """


def causal(q: Tensor, k: Tensor, v: Tensor, *, scale: float, dropout: nn.Module | None = None) -> Tensor:
    """Let each position see itself and those to its left. Padding on the right needs no mask."""
    if dropout is None or not acts(dropout):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
    # The fused kernel would draw from torch's global generator.
    scores = q @ k.mT * scale
    later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
    return dropout(scores.masked_fill(later, float("-inf")).softmax(dim=-1)) @ v  # type: ignore[no-any-return]


def packed(lengths: list[int]) -> Attend:
    """Return causal attention within rows of these lengths that lie one after the other: B is 1, T is their sum."""

    def attend(q: Tensor, k: Tensor, v: Tensor, *, scale: float, dropout: nn.Module | None = None) -> Tensor:
        rows = zip(*(torch.split(part, lengths, dim=2) for part in (q, k, v)), strict=True)
        return torch.cat([causal(*row, scale=scale, dropout=dropout) for row in rows], dim=2)

    return attend


def masked(sees: Tensor) -> Attend:
    """Return attention under a mask (B, T, T): True if a token sees another. Draws no dropout."""

    def attend(q: Tensor, k: Tensor, v: Tensor, *, scale: float, dropout: nn.Module | None = None) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=sees[:, None], scale=scale)

    return attend


class Cache:
    """Attention over the tokens so far, whose keys and values are kept. Draws no dropout.

    The first call may append any number of tokens, each later call only one.

    Args:
        like: A tensor of the type and on the device that keys and values have.
        rows: Number of rows (B).
        heads: Number of heads (H).
        capacity: Tokens that a row may grow to.
        width: Width of a head (d_h).
    """

    def __init__(self, like: Tensor, rows: int, heads: int, capacity: int, width: int) -> None:
        self.keys = like.new_empty(rows, heads, capacity, width)
        self.values = torch.empty_like(self.keys)
        self.length = 0

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, scale: float, dropout: nn.Module | None = None) -> Tensor:
        """Append keys and values, and mix all of them."""
        start, self.length = self.length, self.length + q.shape[2]
        self.keys[:, :, start : self.length] = k
        self.values[:, :, start : self.length] = v
        keys, values = self.keys[:, :, : self.length], self.values[:, :, : self.length]
        return F.scaled_dot_product_attention(q, keys, values, is_causal=start == 0, scale=scale)
