"""`LoRALinear`: a frozen linear layer plus the product of two narrow ones (Hu et al., 2021, "LoRA").

The layer computes W x + b + scale B A x, with A (r, K) and B (N, r). It keeps the pooled last block, packing, kept
gradients and cached generation, because it owns its algebra as `Linear` does.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from gptclf.checks import choice
from gptclf.gpt2.arithmetic import Arithmetic
from gptclf.gpt2.layers import ALL, Dropout, Linear, acts

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

    Attributes:
        base: The layer.
        lora_A: The factor A (r, K).
        lora_B: The factor B (N, r).
    """

    standard = True
    kind = "lora"
    described: tuple[str, ...] = ("scale",)

    def __init__(
        self,
        base: Any,
        rank: int,
        alpha: float,
        *,
        scaling: str = "alpha/rank",
        dropout: float = 0.0,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = int(base.in_features), int(base.out_features)
        self.base = base
        self.lora_A = Linear(self.in_features, rank, bias=False, device="meta")
        self.lora_B = Linear(rank, self.out_features, bias=bias, device="meta")
        self.dropout = Dropout(dropout)
        self.rank, self.alpha, self.scaling = rank, alpha, choice("scale", scaling, tuple(SCALES))

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
        return self.base(x) + self.lora_B(self.lora_A(self.dropout(x))) * self.scale  # type: ignore[no-any-return]

    def rows(self, x: Tensor, rows: slice = ALL, heads: int = 1, bias: bool = True) -> Tensor:
        """Compute the outputs `rows` alone, as `Linear.rows` does."""
        low = self.lora_B.rows(self.lora_A(x), rows, heads, bias) * self.scale
        return self.base.rows(x, rows, heads, bias) + low  # type: ignore[no-any-return]

    def onto(self, x: Tensor, rows: slice = ALL, heads: int = 1) -> Tensor:
        """Multiply by the transpose, as `Linear.onto` does."""
        low = self.lora_A.onto(self.lora_B.onto(x, rows, heads)) * self.scale
        return self.base.onto(x, rows, heads) + low  # type: ignore[no-any-return]

    def prepared(self, arithmetic: Arithmetic) -> Callable[[Tensor], Tensor]:
        """Return the layer as a function of (M, K) without gradients: one product, with the factors merged."""
        return arithmetic.prepare(*self.merged())

    def factors(self) -> list[str]:
        """Return the names of the trainable parameters."""
        return [name for name, _ in self.named_parameters() if name.startswith("lora_")]

    def merged(self) -> tuple[Tensor, Tensor | None]:
        """Return the matrix (N, K) and the bias (N,) of one layer that computes the same, float32."""
        weight, bias = self.base.merged()
        delta = self.lora_B.weight.detach() @ self.lora_A.weight.detach()
        weight = weight.add(delta, alpha=self.scale)
        if self.lora_B.bias is not None:
            low = self.lora_B.bias.detach() * self.scale
            bias = low if bias is None else bias + low
        return weight, bias


def lora_layers(model: nn.Module) -> Iterator[tuple[str, LoRALinear]]:
    """Yield the names and layers of a model that have LoRA factors."""
    return ((name, part) for name, part in model.named_modules() if isinstance(part, LoRALinear))
