"""Decoding: one token after the other, keeping the keys and values of earlier tokens.

A step of one row reads every weight once and does little with it, so memory bandwidth bounds its speed. On a CPU a
vector is multiplied up to twice as fast by a matrix laid out as (in, out) as by one laid out as (out, in), if the
matrix widens. Loaded blocks are laid out that way; trained ones and the vocabulary matrix are not and get a second
copy, which about thirty tokens repay. bfloat16 was tried and does not pay: half the bytes, read at half the speed.
"""

from typing import cast

import torch
from torch import Tensor, nn

from gptclf.gpt2.attend import Cache
from gptclf.gpt2.heads import Head
from gptclf.gpt2.layers import Embedding, Linear
from gptclf.gpt2.model import GPT2
from gptclf.gpt2.sharing import twins

# Laying out a matrix anew pays from this many tokens on, and up to this many rows.
_WORTH_LAYING_OUT = 32
_FEW_ROWS = 2


class Decoder:
    """Next-token logits of growing rows of equal length. Only for a model that `has_standard_parts`.

    Use it inside `evaluating(gpt2)`, with the model that this context yields and autocast off.

    Args:
        gpt2: The language model.
        rows: Number of rows (B).
        capacity: Tokens that a row may grow to; at most the context length.
        steps: Tokens that will come one by one.
    """

    def __init__(self, gpt2: GPT2, rows: int, capacity: int, steps: int) -> None:
        lay_out = gpt2.device.type == "cpu" and rows <= _FEW_ROWS and steps >= _WORTH_LAYING_OUT
        self._embed, self._norm = gpt2.trunk.embed, gpt2.trunk.norm
        # A tied head follows the copy of the token embedding; ids are looked up in the model's own.
        parts = [*gpt2.blocks, self._embed.token, gpt2.head]
        *self._blocks, _, head = _laid_out(parts) if lay_out else parts
        self._head = cast(Head, head)
        heads, width = gpt2.config.n_heads, gpt2.config.emb_dim // gpt2.config.n_heads
        self._caches = [Cache(self._embed.position.weight, rows, heads, capacity, width) for _ in self._blocks]
        self.length = 0

    def advance(self, ids: Tensor) -> Tensor:
        """Append ids (B, T) and return the logits (B, V) of the next token. T must be 1 after the first call."""
        start, self.length = self.length, self.length + ids.shape[1]
        x = self._embed.token(ids) + self._embed.position(torch.arange(start, self.length, device=ids.device))
        for block, cache in zip(self._blocks, self._caches, strict=True):
            x = block(x, cache)
        return self._head.project(self._norm(x[:, -1]))


def _laid_out(modules: list[nn.Module]) -> list[nn.Module]:
    """Copy modules. The copies share all parameters except matrices that widen, which are laid out as (in, out)."""
    copies = twins(modules)
    for part in (part for copy in copies for part in copy.modules() if isinstance(part, Linear | Embedding)):
        weight = part._parameters.get("weight")
        if weight is not None and weight.is_floating_point() and weight.shape[0] >= weight.shape[1]:
            part._parameters["weight"] = nn.Parameter(weight.t().contiguous().t(), requires_grad=False)
    return copies
