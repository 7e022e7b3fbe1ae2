"""`LoRALinear`: a frozen linear layer plus the product of two narrow ones (Hu et al., 2021, "LoRA").

The layer computes W x + b + scale B A x, with A (r, K) and B (N, r). It keeps the pooled last block, packing, kept
gradients and cached generation, because it owns its algebra as `Linear` does.

The book has one matrix each for query, key and value, and factors of its own beside each. A layer of several parts is
that in a fused matrix: A (parts r, K) and B (N, r), where each part of B's rows takes its own r rows of A. One pair of
rank 3 r could start equal, but not stay so: the zeros outside B's diagonal blocks would be trained.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from gptclf.checks import choice
from gptclf.gpt2.arithmetic import Arithmetic
from gptclf.gpt2.frozen import low_rank_product
from gptclf.gpt2.layers import ALL, Dropout, Linear, acts
from gptclf.gpt2.recording import is_recording
from gptclf.gpt2.standard import is_standard_alone

# How the factor of the low-rank product follows from alpha and rank: LoRA, rsLoRA (Kalajdzievski, 2023), and the
# book's bonus to chapter 6.
SCALES: dict[str, Callable[[float, int], float]] = {
    "alpha/rank": lambda alpha, rank: alpha / rank,
    "alpha/sqrt(rank)": lambda alpha, rank: alpha / math.sqrt(rank),
    "alpha": lambda alpha, rank: alpha,
}


class LoRALinear(nn.Module):
    """A frozen linear layer with trainable factors beside it.

    Args:
        base: The layer: a `Linear`, or a quantised one.
        rank: Width r of the factors.
        alpha: Sets the size of the product, together with `scaling`.
        scaling: "alpha/rank", "alpha/sqrt(rank)" or "alpha".
        dropout: Dropout probability of the factors' input in training.
        bias: Whether B has a bias of its own.
        parts: Equal parts of the outputs that have factors of their own.

    Attributes:
        base: The layer.
        lora_A: The factor A (parts r, K).
        lora_B: The factor B (N, r).
    """

    standard = True
    kind = "lora"
    described: tuple[str, ...] = ("scale", "parts")

    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        scaling: str = "alpha/rank",
        dropout: float = 0.0,
        bias: bool = False,
        parts: int = 1,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = int(base.in_features), int(base.out_features)
        self.base = base
        self.lora_A = Linear(self.in_features, parts * rank, bias=False, device="meta")
        self.lora_B = Linear(rank, self.out_features, bias=bias, device="meta")
        self.dropout = Dropout(dropout)
        self.rank, self.alpha, self.scaling = rank, alpha, choice("scale", scaling, tuple(SCALES))
        self.parts = parts

    @property
    def scale(self) -> float:
        """The factor of the low-rank product."""
        return SCALES[self.scaling](self.alpha, self.rank)

    @property
    def bias(self) -> Any:
        """The bias of the layer beneath, or None."""
        return self.base.bias

    @property
    def folds(self) -> bool:
        """Whether `rows` and `onto` may replace `forward`: False while dropout draws."""
        return self.base.folds and not acts(self.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., K) to (..., N)."""
        A, B, c = self.lora_A.weight, self.lora_B.weight, self.lora_B.bias
        # A base that trains as well, in a policy of the user's, needs a gradient of its matrix.
        trains = self.base.weight is not None and self.base.weight.requires_grad
        layers = self.base, self.lora_A, self.lora_B
        plain = not is_recording() and not trains and not acts(self.dropout) and all(map(is_standard_alone, layers))
        if plain and self.parts == 1:
            return low_rank_product(x, self.base, A, B, c, self.scale)
        low = self.lora_A(self.dropout(x))
        if self.parts == 1:
            delta = self.lora_B(low)
        else:
            each = low.reshape(-1, self.parts, self.rank).transpose(0, 1)
            delta = self.lora_B.rows(each, heads=self.parts).view(*x.shape[:-1], self.out_features)
        return self.base(x) + delta * self.scale  # type: ignore[no-any-return]

    def rows(self, x: Tensor, rows: slice = ALL, heads: int = 1, bias: bool = True) -> Tensor:
        """Compute the outputs `rows` alone, as `Linear.rows` does. They belong to one part."""
        low = self.lora_A(x)[..., self._part(rows)]
        return self.base.rows(x, rows, heads, bias) + self.lora_B.rows(low, rows, heads, bias) * self.scale  # type: ignore[no-any-return]

    def onto(self, x: Tensor, rows: slice = ALL, heads: int = 1) -> Tensor:
        """Multiply by the transpose, as `Linear.onto` does. The outputs `rows` belong to one part."""
        low = self.lora_A.onto(self.lora_B.onto(x, rows, heads), self._part(rows))
        return self.base.onto(x, rows, heads) + low * self.scale  # type: ignore[no-any-return]

    def _part(self, rows: slice) -> slice:
        """Return the rows of A that the outputs `rows` are computed from."""
        size = self.out_features // self.parts
        start, end, _ = rows.indices(self.out_features)
        part = start // size
        assert end <= (part + 1) * size, f"outputs {start} to {end} are of several parts"
        return slice(part * self.rank, (part + 1) * self.rank)

    def prepared(self, arithmetic: Arithmetic) -> Callable[[Tensor], Tensor]:
        """Return the layer as a function of (M, K) without gradients: one product, with the factors merged."""
        return arithmetic.prepare(*self.merged())

    def factors(self) -> list[str]:
        """Return the names of the trainable parameters."""
        return [name for name, _ in self.named_parameters() if name.startswith("lora_")]

    def pair(self) -> tuple[Tensor, Tensor]:
        """Return one A (parts r, K) and one B (N, parts r) with the same product, without gradients."""
        return self.lora_A.weight.detach(), torch.block_diag(*self.lora_B.weight.detach().chunk(self.parts))  # type: ignore[no-untyped-call]

    def merged(self) -> tuple[Tensor, Tensor | None]:
        """Return the matrix (N, K) and the bias (N,) of one layer that computes the same, float32."""
        weight, bias = self.base.merged()
        a, b = self.pair()
        weight = weight.add(b @ a, alpha=self.scale)
        if self.lora_B.bias is not None:
            low = self.lora_B.bias.detach() * self.scale
            bias = low if bias is None else bias + low
        return weight, bias


def lora_layers(model: nn.Module) -> Iterator[tuple[str, LoRALinear]]:
    """Yield the names and layers of a model that have LoRA factors."""
    return ((name, part) for name, part in model.named_modules() if isinstance(part, LoRALinear))
