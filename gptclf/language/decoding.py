"""Decoding: one token after the other, keeping the keys and values of earlier tokens.

A step of one row reads every weight once and does little with it, so memory bandwidth bounds its speed. On a CPU a
vector is multiplied up to twice as fast by a matrix laid out as (in, out) as by one laid out as (out, in), if the
matrix widens. Loaded blocks are laid out that way; trained ones and the vocabulary matrix are not and get a second
copy, which about thirty tokens repay. bfloat16 was tried and does not pay: half the bytes, read at half the speed.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gptclf.gpt2.attend import Cache
from gptclf.gpt2.layers import Linear
from gptclf.gpt2.model import GPT2
from gptclf.gpt2.sharing import twins

# Laying out a matrix anew pays from this many tokens on, and up to this many rows.
_WORTH_LAYING_OUT = 32
_FEW_ROWS = 2


class Decoder:
    """Next-token logits of growing rows of equal length. Only for a model that `has_standard_parts`.

    Use it inside `evaluating(gpt2)`, on the model that this yields, with autocast off.

    Args:
        gpt2: The language model.
        rows: Number of rows (B).
        capacity: Tokens that a row may grow to; at most the context length.
        steps: Tokens that will come one by one.
    """

    def __init__(self, gpt2: GPT2, rows: int, capacity: int, steps: int) -> None:
        lay_out = gpt2.device.type == "cpu" and rows <= _FEW_ROWS and steps >= _WORTH_LAYING_OUT
        matrix = gpt2.output_matrix
        assert matrix is not None
        self._embed, self._norm = gpt2.trunk.embed, gpt2.trunk.norm
        self._blocks = _laid_out(gpt2.blocks) if lay_out else gpt2.blocks
        self._vocabulary = matrix.t().contiguous() if lay_out else matrix.t()
        heads, width = gpt2.config.n_heads, gpt2.config.emb_dim // gpt2.config.n_heads
        like = self._embed.position.weight
        self._caches = [Cache(like, rows, heads, capacity, width) for _ in self._blocks]
        self.length = 0

    def advance(self, ids: Tensor) -> Tensor:
        """Append ids (B, T) and return the logits (B, V) of the next token. T must be 1 after the first call."""
        start, self.length = self.length, self.length + ids.shape[1]
        x = self._embed.token(ids) + self._embed.position(torch.arange(start, self.length, device=ids.device))
        for block, cache in zip(self._blocks, self._caches, strict=True):
            x = block(x, cache)
        return self._norm(x[:, -1]) @ self._vocabulary  # type: ignore[no-any-return]


def _laid_out(blocks: Sequence[nn.Module]) -> list[nn.Module]:
    """Copy blocks, sharing all parameters but the matrices that widen: the copy's are laid out as (in, out)."""
    copies = twins(list(blocks))
    for part in (part for block in copies for part in block.modules() if isinstance(part, Linear)):
        weight = part._parameters.get("weight")
        if weight is not None and weight.is_floating_point() and weight.shape[0] >= weight.shape[1]:
            part._parameters["weight"] = nn.Parameter(weight.t().contiguous().t(), requires_grad=False)
    return copies
