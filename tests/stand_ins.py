"""Layers and heads that somebody outside the package may write, for tests of what the package makes of them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptclf import ClassifierHead, Head, Linear
from gptclf.gpt2.arithmetic import Arithmetic
from gptclf.gpt2.heads import pool
from gptclf.gpt2.sharing import is_borrowed
from gptclf.gpt2.trunk import Block

ALL = slice(None)


class LowRank(Linear):
    """A linear layer plus a product of two thin ones, which has every fast path of the layer it replaces."""

    standard = True
    kind = "low_rank_stand_in"
    described = ("scale",)

    def __init__(self, base: nn.Linear, rank: int = 2, scale: float = 0.5, seed: int = 0) -> None:
        super().__init__(base.in_features, base.out_features, bias=base.bias is not None, device="meta")
        self.weight, self.bias, self.scale = base.weight, base.bias, scale
        self.down = Linear(base.in_features, rank, bias=False, dtype=base.weight.dtype)
        self.up = Linear(rank, base.out_features, bias=False, dtype=base.weight.dtype)
        generator = torch.Generator().manual_seed(seed)
        for part in (self.down, self.up):
            nn.init.normal_(part.weight, 0.0, 0.5, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.scale * self.up(self.down(x))  # type: ignore[no-any-return]

    def rows(self, x: Tensor, rows: slice = ALL, heads: int = 1, bias: bool = True) -> Tensor:
        return super().rows(x, rows, heads, bias) + self.scale * self.up.rows(self.down(x), rows, heads)

    def onto(self, x: Tensor, rows: slice = ALL, heads: int = 1) -> Tensor:
        return super().onto(x, rows, heads) + self.scale * self.down.onto(self.up.onto(x, rows, heads))

    def prepared(self, arithmetic: Arithmetic) -> Callable[[Tensor], Tensor]:
        base, down, up = super().prepared(arithmetic), self.down.prepared(arithmetic), self.up.prepared(arithmetic)
        return lambda x: base(x) + self.scale * up(down(x))

    def dense(self) -> Tensor:
        """The matrix (N, K) that the layer multiplies by."""
        return self.weight + self.scale * self.up.weight @ self.down.weight


class EightBit(Linear):
    """A frozen matrix of 8-bit integers with a scale per output, dequantised where it is needed."""

    standard = True
    kind = "eight_bit_stand_in"
    described = ()
    quantised: Tensor
    scale: Tensor

    def __init__(self, base: nn.Linear) -> None:
        super().__init__(base.in_features, base.out_features, bias=base.bias is not None, device="meta")
        weight = base.weight.detach()
        scale = weight.abs().amax(dim=1, keepdim=True) / 127
        self.register_parameter("weight", None)
        self.register_buffer("quantised", (weight / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.bias = base.bias

    def dense(self, rows: slice = ALL) -> Tensor:
        """Rows of the matrix (N, K) that the layer multiplies by."""
        return self.quantised[rows] * self.scale[rows]

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.dense(), self.bias)

    def rows(self, x: Tensor, rows: slice = ALL, heads: int = 1, bias: bool = True) -> Tensor:
        b = self.bias[rows] if bias and self.bias is not None else None
        if heads == 1:
            return F.linear(x, self.dense(rows), b)
        y = (x @ self.dense(rows).view(heads, -1, self.in_features).mT).transpose(0, 1).flatten(1)
        return y if b is None else y + b

    def onto(self, x: Tensor, rows: slice = ALL, heads: int = 1) -> Tensor:
        if heads == 1:
            return x @ self.dense(rows)
        return x.view(len(x), heads, -1).transpose(0, 1) @ self.dense(rows).view(heads, -1, self.in_features)

    def prepared(self, arithmetic: Arithmetic) -> Callable[[Tensor], Tensor]:
        return arithmetic.prepare(self.dense(), self.bias)


class Doubled(Linear):
    """A layer that says nothing of itself, so that it has to be called."""

    @classmethod
    def of(cls, base: nn.Linear) -> Linear:
        """Make one with the parameters of another layer."""
        layer = cls(base.in_features, base.out_features, device="meta")
        layer.weight, layer.bias = base.weight, base.bias
        return layer

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class LastAndMean(ClassifierHead):
    """A subclass that looks at more than the pooling it inherits says."""

    def forward(self, hidden: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self.output(pool(hidden, lengths, "last") + pool(hidden, lengths, "mean"))  # type: ignore[no-any-return]


class Foreign(Head):
    """A head of one's own over the mean, which says nothing of what it reads."""

    def __init__(self, emb_dim: int, n_outputs: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.randn(n_outputs, emb_dim, generator=torch.Generator().manual_seed(3)))

    def forward(self, hidden: Tensor, lengths: Tensor | None = None) -> Tensor:
        return pool(hidden, lengths, "mean") @ self.weights.mT


class TwoLayers(Head):
    """Two layers with dropout between them over the mean."""

    def __init__(self, emb_dim: int, n_outputs: int) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.layers = nn.Sequential(nn.Linear(emb_dim, 16), nn.GELU(), nn.Dropout(0.3), nn.Linear(16, n_outputs))

    def forward(self, hidden: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self.layers(pool(hidden, lengths, "mean"))  # type: ignore[no-any-return]


class TwoLayersOverLast(TwoLayers):
    """The same over the last token alone, which it says."""

    reads = "last"

    def forward(self, hidden: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self.layers(pool(hidden, lengths, "last"))  # type: ignore[no-any-return]


def borrowed_names(module: nn.Module) -> set[str]:
    """The names of a module's borrowed parameters."""
    return {name for name, parameter in module.named_parameters() if is_borrowed(parameter)}


def calls_of_blocks(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """A list that grows by each block that is called as a module from now on; fast paths do not call blocks."""
    called: list[nn.Module] = []

    def watched(block: nn.Module, *given: Any) -> Any:
        called.append(block)
        return nn.Module.__call__(block, *given)

    monkeypatch.setattr(Block, "__call__", watched)
    return called
