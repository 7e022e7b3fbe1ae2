"""Blocks over packed tokens without gradients: the fast computation of features and answers.

The tokens of many rows lie one after the other, rows of one length side by side. Everything that treats tokens one by
one (norms, projections, MLP) runs over pieces of a fixed number of tokens, whatever rows they belong to, and attention
over rows of one exact length. So nothing is computed for padding. Because every product has one shape, a row's result
is the same, bit for bit, whatever rows are computed with it.

The residual stream is float32; the `Arithmetic` applies to matrix products only. Blocks that are hooked or of another
class are called as they are, on rows of one length.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gptclf.gpt2.arithmetic import Arithmetic, activated, piece_size
from gptclf.gpt2.standard import is_standard
from gptclf.gpt2.trunk import Block, TokenPositions, can_pool

# Tokens that go through the blocks together. Each chunk lays out every block's weights anew, and its buffers take
# some twenty bytes per token and unit of width.
CHUNK_TOKENS = 32768

# Tokens whose attention is computed at once, to keep its buffers small.
_ATTENTION_TOKENS = 2048

# Rows whose last block is computed at once, if only one position of each is read.
_POOLED_ROWS = 128

# The same if the number must depend on the rows' length alone.
_FIXED_ROWS = 32


class RowGroup(NamedTuple):
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
        """Its tokens in the packed tensor."""
        return slice(self.start, self.start + self.rows * self.length)

    def of(self, x: Tensor) -> Tensor:
        """View its rows (rows, length, ...) of a packed tensor."""
        return x[self.tokens].view(self.rows, self.length, *x.shape[1:])


Groups = Sequence[RowGroup]


def row_groups(lengths: NDArray[np.int64]) -> list[RowGroup]:
    """Group neighbouring rows of equal length; the number of tokens in a group is limited."""
    found, start, i = [], 0, 0
    for end in [*(np.flatnonzero(np.diff(lengths)) + 1).tolist(), len(lengths)]:
        while i < end:
            length = int(lengths[i])
            rows = min(end - i, max(1, _ATTENTION_TOKENS // length))
            found.append(RowGroup(start, rows, length))
            start, i = start + rows * length, i + rows
    return found


def chunks_of(lengths: NDArray[np.int64], rows: int | None = None) -> Iterator[slice]:
    """Divide rows into chunks of neighbours with at most `CHUNK_TOKENS` tokens, and at most `rows` rows, each."""
    start, tokens = 0, 0
    for i, length in enumerate(lengths.tolist()):
        if i > start and (tokens + length > CHUNK_TOKENS or (rows is not None and i - start >= rows)):
            yield slice(start, i)
            start, tokens = i, 0
        tokens += length
    if start < len(lengths):
        yield slice(start, len(lengths))


def embed(embedding: nn.Module, ids: Tensor, groups: Groups, *, capacity: int, width: int) -> Tensor:
    """Compute the residual stream (capacity, width) before the first block, float32; past the last token it is 0."""
    x = torch.zeros(capacity, width, dtype=torch.float32, device=ids.device)
    own = cast(TokenPositions, embedding) if is_standard(embedding) else None
    for group in groups:
        part, its = group.of(x), group.of(ids)
        if own is None:
            part.copy_(embedding(its))
        else:
            torch.add(own.token.weight[its], own.position.weight[: group.length], out=part)
    return x


def advance(block: nn.Module, x: Tensor, groups: Groups, arithmetic: Arithmetic) -> None:
    """Take the residual stream x (N, D) through a block, in place. N may be larger than the groups' tokens."""
    dtype = arithmetic.dtype
    if not is_standard(block):
        with torch.autocast(x.device.type, dtype=dtype, enabled=dtype != torch.float32):
            for group in groups:
                group.of(x).copy_(block(group.of(x)))
        return
    block = cast(Block, block)
    attention, mlp, size = block.attention, block.mlp, piece_size(x.device)
    layers = (attention.qkv, attention.out, mlp.up, mlp.down)
    qkv_of, out_of, up, down_of = (layer.prepared(arithmetic) for layer in layers)
    up_of = activated(up, mlp.activation)
    qkv = torch.empty(len(x), 3 * x.shape[1], dtype=dtype, device=x.device)
    for stream, piece in zip(torch.split(x, size), torch.split(qkv, size), strict=True):
        piece.copy_(qkv_of(block.norm1(stream).to(dtype)))
    mixed = torch.zeros_like(x, dtype=dtype)
    for group in groups:
        mixed[group.tokens] = attention.mix(group.of(qkv)).flatten(0, 1)
    del qkv
    for stream, piece in zip(torch.split(x, size), torch.split(mixed, size), strict=True):
        stream += out_of(piece)
        stream += down_of(up_of(block.norm2(stream).to(dtype)))


def before_norm(block: nn.Module | None, x: Tensor, groups: Groups, reads: str, arithmetic: Arithmetic) -> list[Tensor]:
    """Compute the residual stream after the last block where a head `reads`: (rows, D), or if all, each (rows, T, D).

    Args:
        block: The block; None returns x itself at those positions.
        x: Packed tokens before the block, which may change.
        groups: Its rows, of rising length.
        reads: "last", "first" or "all".
        arithmetic: The arithmetic of a whole block; one position is computed in float32.
    """
    if reads != "all":
        return [at_position(block, x, groups, reads)]
    if block is not None:
        advance(block, x, groups, arithmetic)
    return [group.of(x) for group in groups]


def at_position(block: nn.Module | None, x: Tensor, groups: Groups, reads: str, *, fixed: bool = False) -> Tensor:
    """Compute the residual stream after `block` at the last or first position of each row (rows, D), in float32.

    Args:
        block: The block; None returns x itself at those positions.
        x: Packed tokens before the block.
        groups: Its rows, of rising length.
        reads: "last" or "first".
        fixed: Use a batch size that depends only on the row length, so results do not depend on which rows are
            computed together.
    """
    if not can_pool(block):
        each = (group.of(x) if block is None else block(group.of(x)) for group in groups)
        return torch.cat([rows[:, 0 if reads == "first" else -1] for rows in each])
    found = []
    for rows, last, n in _fixed_batches(x, groups) if fixed else _batches(x, groups):
        found.append(block.at_position(rows, torch.zeros_like(last) if reads == "first" else last)[:n])
    return torch.cat(found)


# Rows padded to the longest (B, T, D), the last position of each (B,), and how many of them count.
_Batch = tuple[Tensor, Tensor, int]


def _batches(x: Tensor, groups: Groups) -> Iterator[_Batch]:
    """Join groups into batches of about a hundred rows: at one position a block reads all its weights per batch."""
    some: list[RowGroup] = []
    n = 0
    for group in groups:
        if some and (n + group.rows > _POOLED_ROWS or (n + group.rows) * group.length > 8 * _ATTENTION_TOKENS):
            yield _side_by_side(x, some, n)
            some, n = [], 0
        some.append(group)
        n += group.rows
    if some:
        yield _side_by_side(x, some, n)


def _side_by_side(x: Tensor, groups: Groups, size: int) -> _Batch:
    rows = x.new_zeros(size, max(group.length for group in groups), x.shape[1])
    last: list[int] = []
    for group in groups:
        rows[len(last) : len(last) + group.rows, : group.length] = group.of(x)
        last += [group.length - 1] * group.rows
    return rows, torch.tensor(last, device=x.device), len(last)


def _fixed_batches(x: Tensor, groups: Groups) -> Iterator[_Batch]:
    """Divide each group into batches of a size that depends on its length alone; zeros fill up the last one."""
    for group in groups:
        size = max(1, min(_FIXED_ROWS, _ATTENTION_TOKENS // group.length))
        for part in torch.split(group.of(x), size):
            full = part.new_zeros(size, *part.shape[1:])
            full[: len(part)] = part
            yield full, torch.full((size,), group.length - 1, device=x.device), len(part)
