"""The layers that hold parameters: linear, embedding, dropout. A `Linear` owns its algebra.

Code that needs part of a product asks the layer (`rows`, `onto`, `prepared`) and never slices its weight. So a layer
with another algebra, such as a low-rank or quantised one, overrides these methods and keeps every fast path.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptclf.gpt2.arithmetic import Arithmetic
from gptclf.gpt2.frozen import KeptKernels, frozen_product, product_type
from gptclf.gpt2.gradients import KeptGradients, View, look_up, product
from gptclf.gpt2.standard import is_standard_alone

ALL = slice(None)


class Linear(nn.Linear):
    """`torch.nn.Linear` with the products that GPT-2's fast paths need, and kept gradients.

    A subclass that says `standard = True` and overrides `forward` also overrides `rows`, `onto` and `prepared`, in the
    same class or below. With fewer of them it is not standard: it is called, as any other layer is.

    Attributes:
        folds: Whether `rows` and `onto` may replace `forward`: False while the layer draws randomness.
        gradients: Where gradients of the weight are accumulated, on a learner's layers; None leaves them to autograd.
        kernels: Where a frozen weight is kept cast and laid out, on a learner's layers; None casts it in each product.
    """

    standard = True
    kind = "linear"
    equivalents = ("rows", "onto", "prepared")
    folds: bool = True
    gradients: KeptGradients | None = None
    kernels: KeptKernels | None = None

    def reset_parameters(self) -> None:
        """Skip torch's random initialisation: weights are loaded, or drawn later by `initialise`."""

    @property
    def qconfig(self) -> Any:
        """What torch.ao.quantization notes on modules; it converts `nn.Linear` alone and would leave this class out."""
        raise AttributeError("qconfig")

    @qconfig.setter
    def qconfig(self, config: Any) -> None:
        remedy = "gptclf.quantize(model, 'int8') or quantize(model, 'nf4') returns a quantised model"
        raise TypeError(f"torch.ao.quantization does not know gptclf's layers and would skip them; {remedy}")

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Register a parameter. Pruning registers the matrix again under this name, and then flattens it."""
        if name == "weight_orig" and param is not None:
            param.data = param.detach().contiguous()  # a loaded one is a transposed view
        super().register_parameter(name, param)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if not keep_vars and self._parameters.get("weight") is not None:
            # Other tools refuse to write and to flatten transposed views, as loaded matrices are.
            destination[prefix + "weight"] = destination[prefix + "weight"].contiguous()

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., K) to (..., N)."""
        if self.gradients is None or not self.gradients.holds(self.weight):
            lower = self.kernels is not None and product_type(x) != self.weight.dtype
            frozen = lower and not self.weight.requires_grad
            return frozen_product(x, self) if frozen else F.linear(x, self.weight, self.bias)
        rows = product(x.reshape(-1, x.shape[-1]), self.weight, torch.t, self.bias, self.gradients)
        return rows.view(*x.shape[:-1], self.out_features)

    def rows(self, x: Tensor, rows: slice = ALL, heads: int = 1, bias: bool = True) -> Tensor:
        """Compute the outputs `rows` alone, n of N.

        Args:
            x: Inputs (M, K), or with several heads each head's own inputs (H, M, K).
            rows: A contiguous part of the outputs.
            heads: Parts into which these outputs are divided.
            bias: Whether to add the bias.

        Returns:
            (M, n), the heads side by side.
        """
        b = self.bias[rows] if bias and self.bias is not None else None
        if heads == 1:
            return self.multiply(x, rows, torch.t, b)
        y = self.multiply(x, rows, lambda w: w.view(heads, -1, w.shape[1]).mT)
        y = y.transpose(0, 1).reshape(y.shape[1], -1)
        return y if b is None else y + b

    def onto(self, x: Tensor, rows: slice = ALL, heads: int = 1) -> Tensor:
        """Multiply by the transpose: from outputs `rows` back to the inputs.

        Args:
            x: (M, n), or (..., n) with one head.
            rows: A contiguous part of the outputs.
            heads: Parts into which they are divided.

        Returns:
            (..., K), or with several heads (H, M, K), head by head.
        """
        if heads == 1:
            flat = self.multiply(x.reshape(-1, x.shape[-1]), rows, lambda w: w)
            return flat.view(*x.shape[:-1], self.in_features)
        x = x.view(len(x), heads, -1).transpose(0, 1)
        return self.multiply(x, rows, lambda w: w.view(heads, -1, w.shape[1]))

    def multiply(self, x: Tensor, rows: slice, view: View, bias: Tensor | None = None) -> Tensor:
        """Multiply x (..., M, K) by a view (..., K, n) of some rows of the matrix, and add a bias (n,)."""
        return product(x, self.weight, lambda w: view(w[rows]), bias, self.gradients)

    def times(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Compute x Wᵀ + b (M, N) of x (M, K) in the type of x, without gradients."""
        bias = None if bias is None else bias.to(x.dtype)
        if self.kernels is None or x.dtype == self.weight.dtype:
            return F.linear(x, self.weight.detach().to(x.dtype), bias)
        return self.kernels.of(self.weight, x.dtype)(x, bias=bias)

    def times_transposed(self, y: Tensor) -> Tensor:
        """Compute y W (M, K) of y (M, N) in the type of y, without gradients."""
        if self.kernels is None or y.dtype == self.weight.dtype:
            return y @ self.weight.detach().to(y.dtype)
        return self.kernels.of(self.weight, y.dtype, transposed=True)(y)

    def prepared(self, arithmetic: Arithmetic) -> Callable[[Tensor], Tensor]:
        """Return the layer as a function of (M, K) without gradients, its matrix cast and laid out once."""
        return arithmetic.prepare(*self.merged())

    def merged(self) -> tuple[Tensor, Tensor | None]:
        """Return the matrix (N, K) and the bias (N,) of one linear layer that computes the same, without gradients."""
        return self.weight.detach(), None if self.bias is None else self.bias.detach()


class Embedding(nn.Embedding):
    """`torch.nn.Embedding` with kept gradients: added row by row, not as a table of mostly zeros."""

    standard = True
    kind = "embedding"
    gradients: KeptGradients | None = None

    def reset_parameters(self) -> None:
        """Draw nothing, as in `Linear`. On the meta device torch would import its compiler to draw, which takes 1 s."""

    def forward(self, ids: Tensor) -> Tensor:
        """Map ids (...) to vectors (..., D)."""
        if self.gradients is None or not self.gradients.holds(self.weight):
            return F.embedding(ids, self.weight)
        return look_up(self.weight, ids, self.gradients)


class Dropout(nn.Dropout):
    """`torch.nn.Dropout` that can draw from a given generator.

    Attributes:
        generator: Set on a learner's layers; None draws from torch's global generator.
    """

    standard = True
    kind = "dropout"
    described: tuple[str, ...] = ("p",)
    generator: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Set a share `p` of the numbers to 0 in training, and scale the others so that the mean is unchanged."""
        if not (self.training and self.p > 0):
            return x
        if self.p >= 1:
            return torch.zeros_like(x)
        return x * torch.empty_like(x).bernoulli_(1 - self.p, generator=self.generator).div_(1 - self.p)


def unseeded(module: nn.Module) -> list[str]:
    """Name the modules below one that may draw from torch's global generator, whatever the seed of a learner.

    A number called `dropout` is the rate of torch's recurrent and attention layers, and of others by custom.
    """
    parts = [(name, part) for name, part in module.named_modules() if type(part) not in (nn.Dropout, Dropout)]
    kind = nn.modules.dropout._DropoutNd
    rates = [
        (f"{name} ({type(p).__name__})", getattr(p, "p" if isinstance(p, kind) else "dropout", 0)) for name, p in parts
    ]
    return [name for name, rate in rates if isinstance(rate, float) and rate > 0]


def acts(dropout: nn.Module) -> bool:
    """Return False if a module in the place of a dropout need not be called: a dropout that is off, or an identity."""
    if isinstance(dropout, nn.Dropout) and is_standard_alone(dropout):
        return dropout.training and dropout.p > 0
    return type(dropout) is not nn.Identity
