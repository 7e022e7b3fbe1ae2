"""One token after the other, with the keys and values of those before it kept.

A step of one row reads every weight once and does little with it, so its speed is that at which memory is read. On a
CPU a vector goes through a matrix that lies as (in, out) up to twice as fast as through one that lies as (out, in),
where it widens; loaded matrices lie so already, the vocabulary's and trained ones do not and are laid out anew, which
some thirty tokens repay. bfloat16 was tried and does not pay: half the bytes, read at half the speed.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptclf.gpt2.heads import LMHead
from gptclf.gpt2.model import GPT2
from gptclf.gpt2.trunk import ACTIVATIONS, Block

# From so many tokens on, and up to so many rows, it pays to lay a matrix out anew.
_WORTH_LAYING_OUT = 32
_FEW_ROWS = 2


class Decoder:
    """Next-token logits of growing rows of one length; only for a model that `is_plain` accepts.

    Call inside `answering(gpt2)`, with autocast off.

    Args:
        gpt2: The language model.
        rows: Number of rows (B).
        capacity: Tokens that a row may grow to; at most the context length.
        steps: Tokens that will come one by one.
    """

    def __init__(self, gpt2: GPT2, rows: int, capacity: int, steps: int) -> None:
        lay_out = gpt2.device.type == "cpu" and rows <= _FEW_ROWS and steps >= _WORTH_LAYING_OUT
        self._embed = gpt2.trunk.embed
        self._blocks = [_CachedBlock(block, rows, capacity, lay_out) for block in gpt2.trunk.blocks]
        self._norm = gpt2.trunk.norm
        assert isinstance(gpt2.head, LMHead)
        self._vocabulary = _matrix(gpt2.head.weight, lay_out)
        self.length = 0

    def advance(self, ids: Tensor) -> Tensor:
        """Append ids (B, T) and return the logits (B, V) of what comes next. T is 1, but for the first call."""
        start, self.length = self.length, self.length + ids.shape[1]
        x = self._embed.token.weight[ids] + self._embed.position.weight[start : self.length]
        for block in self._blocks:
            x = block.advance(x, start)
        return _normalised(self._norm, x[:, -1]) @ self._vocabulary


class _CachedBlock:
    """A block's matrices as (in, out), and the keys and values of the tokens so far (B, H, capacity, d_h)."""

    def __init__(self, block: nn.Module, rows: int, capacity: int, lay_out: bool) -> None:
        assert isinstance(block, Block)
        attention, mlp = block.attention, block.mlp
        self.norm1, self.norm2 = block.norm1, block.norm2
        self.scale, self.activation = attention.scale, ACTIVATIONS[mlp.activation]
        self.qkv, self.qkv_bias = _matrix(attention.qkv.weight, lay_out), attention.qkv.bias
        self.out, self.out_bias = _matrix(attention.out.weight, lay_out), attention.out.bias
        self.up, self.up_bias = _matrix(mlp.up.weight, lay_out), mlp.up.bias
        self.down, self.down_bias = _matrix(mlp.down.weight, lay_out), mlp.down.bias
        width = attention.out.in_features
        self.heads = (attention.n_heads, width // attention.n_heads)
        self.keys = attention.qkv.weight.new_empty(rows, self.heads[0], capacity, self.heads[1])
        self.values = torch.empty_like(self.keys)

    def advance(self, x: Tensor, start: int) -> Tensor:
        """Take tokens (B, T, D) that begin at position `start` through the block."""
        B, T, D = x.shape
        end = start + T
        qkv = _product(_normalised(self.norm1, x), self.qkv, self.qkv_bias)
        q, k, v = qkv.view(B, T, 3, *self.heads).permute(2, 0, 3, 1, 4)
        self.keys[:, :, start:end] = k
        self.values[:, :, start:end] = v
        # The first call sees no earlier tokens, all others bring one, which sees them all.
        mixed = F.scaled_dot_product_attention(
            q, self.keys[:, :, :end], self.values[:, :, :end], is_causal=start == 0, scale=self.scale
        )
        x = x + _product(mixed.transpose(1, 2).reshape(B, T, D), self.out, self.out_bias)
        inner = self.activation(_product(_normalised(self.norm2, x), self.up, self.up_bias))
        return x + _product(inner, self.down, self.down_bias)


def _matrix(weight: Tensor, lay_out: bool) -> Tensor:
    """The matrix (in, out) of a weight (out, in), laid out so where that is faster."""
    widens = weight.shape[0] >= weight.shape[1]
    return weight.t().contiguous() if lay_out and widens else weight.t()


def _product(x: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    rows = x.flatten(0, 1)
    y = rows @ matrix if bias is None else torch.addmm(bias, rows, matrix)
    return y.view(*x.shape[:2], -1)


def _normalised(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
