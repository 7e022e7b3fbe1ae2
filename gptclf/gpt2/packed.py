"""Blocks over packed tokens without gradients: how features and answers are computed fast.

The tokens of many rows stand one after the other, rows of one length side by side. Everything that treats tokens one
by one (norms, projections, MLP) runs over pieces of a fixed number of tokens, whatever rows they belong to, and
attention over rows of one exact length. So nothing is computed for padding, and because every product has one shape,
what is computed for a row does not depend on its company: a row computed today and one computed next to others
tomorrow are equal bit for bit.

The residual stream is float32; `dtype` is what matrix products take. Blocks that are watched (hooks) or are not ours
are called as they are, on rows of one length.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from gptclf.gpt2.gradients import Linear
from gptclf.gpt2.heads import ClassifierHead, Head
from gptclf.gpt2.trunk import ACTIVATIONS, Block, Embedding, is_own, is_watched

# Tokens per product. On a CPU more does not multiply faster, and less keeps the MLP's inside out of the caches' reach.
_PIECE = {"cpu": 1024, "cuda": 16384}

# Tokens whose attention is computed at once, to keep its buffers small.
_ATTENTION_TOKENS = 2048

# Rows whose last block is computed at once, where only one position of each is looked at.
_POOLED_ROWS = 128

# The same where the number shall follow from the rows' length alone.
_FIXED_ROWS = 32


@dataclass(frozen=True)
class Run:
    """Neighbouring rows of one length in a packed tensor.

    Attributes:
        start: First token.
        rows: Number of rows.
        length: Tokens in each.
    """

    start: int
    rows: int
    length: int

    @property
    def tokens(self) -> slice:
        """Where its tokens stand."""
        return slice(self.start, self.start + self.rows * self.length)


def piece_size(device: torch.device) -> int:
    """Tokens per matrix product on a device."""
    return _PIECE.get(device.type, _PIECE["cuda"])


def runs_of(lengths: NDArray[np.int64]) -> list[Run]:
    """Runs of the rows with these lengths, each of a limited number of tokens."""
    found, start, i = [], 0, 0
    changes = [*(np.flatnonzero(np.diff(lengths)) + 1).tolist(), len(lengths)]
    for end in changes:
        while i < end:
            length = int(lengths[i])
            rows = min(end - i, max(1, _ATTENTION_TOKENS // length))
            found.append(Run(start, rows, length))
            start, i = start + rows * length, i + rows
    return found


def embed(embedding: Embedding, ids: Tensor, runs: Sequence[Run], *, capacity: int) -> Tensor:
    """The residual stream (capacity, D) before the first block, float32; what lies past the last token is 0."""
    width = embedding.token.embedding_dim
    x = torch.zeros(capacity, width, dtype=torch.float32, device=ids.device)
    if any(map(is_watched, embedding.modules())):
        for run in runs:
            x[run.tokens] = embedding(ids[run.tokens].view(run.rows, run.length)).flatten(0, 1)
        return x
    position = embedding.position.weight
    for run in runs:
        part = x[run.tokens].view(run.rows, run.length, width)
        torch.add(embedding.token.weight[ids[run.tokens]].view_as(part), position[: run.length], out=part)
    return x


def advance(block: nn.Module, x: Tensor, runs: Sequence[Run], dtype: torch.dtype) -> None:
    """Take the residual stream x (N, D) through a block, in place. N may be larger than the runs' tokens."""
    if not is_own(block):
        _advance_as_it_is(block, x, runs, dtype)
        return
    assert isinstance(block, Block)
    attention, mlp = block.attention, block.mlp
    width, piece = x.shape[1], piece_size(x.device)
    qkv_of, out_of = _Product(attention.qkv, dtype, x.device), _Product(attention.out, dtype, x.device)
    up_of, down_of = _Product(mlp.up, dtype, x.device, mlp.activation), _Product(mlp.down, dtype, x.device)
    qkv = torch.empty(len(x), 3 * width, dtype=dtype, device=x.device)
    for part in _pieces(len(x), piece):
        qkv[part] = qkv_of(_normalised(block.norm1, x[part], dtype))
    mixed = torch.zeros(len(x), width, dtype=dtype, device=x.device)
    for run in runs:
        mixed[run.tokens] = attention.mix(qkv[run.tokens].view(run.rows, run.length, -1)).flatten(0, 1)
    del qkv
    for part in _pieces(len(x), piece):
        stream = x[part]
        stream += out_of(mixed[part])
        stream += down_of(up_of(_normalised(block.norm2, stream, dtype)))


def last_block_and_head(
    block: nn.Module | None,
    norm: nn.Module | None,
    head: Head,
    x: Tensor,
    runs: Sequence[Run],
    dtype: torch.dtype,
) -> Tensor:
    """Logits (rows, C) of the residual stream before the last block, computed only where the head looks."""
    found = []
    if isinstance(head, ClassifierHead) and head.pooling in ("last", "first"):
        hidden = at_position(block, x, runs, head.pooling)
        return head.project(hidden if norm is None else norm(hidden)).float()
    if block is not None:
        advance(block, x, runs, dtype)
    for run in runs:
        hidden = x[run.tokens].view(run.rows, run.length, -1)
        found.append(head(hidden if norm is None else norm(hidden), None).float())
    return torch.cat(found)


def at_position(
    block: nn.Module | None, x: Tensor, runs: Sequence[Run], pooling: str, *, fixed: bool = False
) -> Tensor:
    """The residual stream after `block` at the last or first position of each row (rows, D), in float32.

    Args:
        block: The block, or None: x itself at those positions.
        x: Packed tokens before the block.
        runs: Its rows, of rising length.
        pooling: "last" or "first".
        fixed: Compute each run in a number of rows that follows from its length alone, so that the result does, too.
    """
    found = []
    pooled = isinstance(block, Block) and block.can_pool and is_own(block)
    if isinstance(block, Block) and pooled and not fixed:
        for group in _like_runs(runs):
            rows, position = _side_by_side(x, group)
            found.append(block.at(rows, position if pooling == "last" else torch.zeros_like(position)))
        return torch.cat(found)
    for run in runs:
        rows = x[run.tokens].view(run.rows, run.length, -1)
        at = run.length - 1 if pooling == "last" else 0
        if block is None:
            found.append(rows[:, at])
        elif isinstance(block, Block) and pooled:
            size = max(1, min(_FIXED_ROWS, _ATTENTION_TOKENS // run.length))
            for some in torch.split(rows, size):
                full = rows.new_zeros(size, *rows.shape[1:])
                full[: len(some)] = some
                found.append(block.at(full, torch.full((len(full),), at, device=x.device))[: len(some)])
        else:
            found.append(block(rows)[:, at])
    return torch.cat(found)


def _like_runs(runs: Sequence[Run]) -> Iterator[list[Run]]:
    """Neighbouring runs together, some hundred rows: a block at one position reads all its weights for each group."""
    group: list[Run] = []
    rows = 0
    for run in runs:
        if group and (rows + run.rows > _POOLED_ROWS or (rows + run.rows) * run.length > 8 * _ATTENTION_TOKENS):
            yield group
            group, rows = [], 0
        group.append(run)
        rows += run.rows
    if group:
        yield group


def _side_by_side(x: Tensor, runs: Sequence[Run]) -> tuple[Tensor, Tensor]:
    """The rows of some runs padded to the longest (B, T, D), and the last position of each (B,)."""
    rows = x.new_zeros(sum(run.rows for run in runs), max(run.length for run in runs), x.shape[1])
    start, last = 0, []
    for run in runs:
        rows[start : start + run.rows, : run.length] = x[run.tokens].view(run.rows, run.length, -1)
        start += run.rows
        last += [run.length - 1] * run.rows
    return rows, torch.tensor(last, device=x.device)


class _Product:
    """A linear layer over pieces of one shape: the matrix cast and laid out once, the activation fused if it can be."""

    def __init__(self, layer: Linear, dtype: torch.dtype, device: torch.device, activation: str = "") -> None:
        self.activation = activation
        self.weight = layer.weight.detach().to(dtype)
        self.bias = None if layer.bias is None else layer.bias.detach().to(dtype)
        operators = _fused_operators() if device.type == "cpu" and dtype == torch.bfloat16 else None
        self.fused = operators is not None
        if operators is not None:
            pack, self._linear = operators
            self.weight = pack(self.weight.contiguous(), _PIECE["cpu"])

    def __call__(self, x: Tensor) -> Tensor:
        if not self.fused:
            y = F.linear(x, self.weight, self.bias)
            return ACTIVATIONS[self.activation](y) if self.activation else y
        if self.activation == "gelu_tanh":
            return self._linear(x, self.weight, self.bias, "gelu", [], "tanh")  # type: ignore[no-any-return]
        y = self._linear(x, self.weight, self.bias, "none", [], "")
        return ACTIVATIONS[self.activation](y) if self.activation else y


@functools.cache
def _fused_operators() -> tuple[Any, Any] | None:
    """Torch's private operators for a packed matrix and a fused activation, or None where a release lacks them.

    They save the activation's own pass over the MLP's inside, an eighth of a block in bfloat16.
    """
    try:
        pack, linear = torch.ops.mkldnn._reorder_linear_weight, torch.ops.mkldnn._linear_pointwise
        x, weight = torch.ones(2, 32, dtype=torch.bfloat16), torch.ones(32, 32, dtype=torch.bfloat16)
        y = linear(x, pack(weight, 2), None, "gelu", [], "tanh")
    except (AttributeError, RuntimeError, TypeError):
        return None
    return (pack, linear) if torch.equal(y, torch.full_like(y, 32.0)) else None


def _advance_as_it_is(block: nn.Module, x: Tensor, runs: Sequence[Run], dtype: torch.dtype) -> None:
    with torch.autocast(x.device.type, dtype=dtype, enabled=dtype != torch.float32):
        for run in runs:
            part = x[run.tokens].view(run.rows, run.length, -1)
            part.copy_(block(part))


def _normalised(norm: nn.LayerNorm, x: Tensor, dtype: torch.dtype) -> Tensor:
    return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps).to(dtype)


def _pieces(n: int, size: int) -> Iterator[slice]:
    for start in range(0, n, size):
        yield slice(start, start + size)
