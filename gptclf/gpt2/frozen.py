"""Products with frozen matrices in training: no gradient of the matrix, and no cast of it in every step.

Autocast keeps the casts of trainable parameters within a step, but casts frozen ones anew in every product and keeps
those casts for the backward pass. With low-rank factors nearly all matrices are frozen. So a learner's layers keep
them cast and laid out, for both directions, from step to step.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gptclf.gpt2.arithmetic import Arithmetic, Kernel

# Computes x (M, K) times a matrix (K, N), plus a bias (N,) if there is one, in the type of x.
Times = Callable[[Tensor, Tensor | None], Tensor]


class Frozen(Protocol):
    """A layer with a frozen matrix W (N, K)."""

    bias: Any

    def times(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Compute x Wᵀ + b (M, N) of x (M, K) in the type of x, without gradients."""

    def times_transposed(self, y: Tensor) -> Tensor:
        """Compute y W (M, K) of y (M, N) in the type of y, without gradients."""


class KeptKernels:
    """Frozen matrices, cast and laid out for products, each made again if its parameter has changed."""

    def __init__(self) -> None:
        self._kept: dict[tuple[Tensor, bool], tuple[tuple[object, ...], Kernel]] = {}

    def of(self, parameter: Tensor, dtype: torch.dtype, *, transposed: bool = False) -> Callable[..., Tensor]:
        """Return the product with a matrix (N, K), or with its transpose, in `dtype`."""
        state = (parameter._version, parameter.data_ptr(), dtype)
        found = self._kept.get((parameter, transposed))
        if found is None or found[0] != state:
            matrix = parameter.t() if transposed else parameter
            kernel = Arithmetic(str(dtype).removeprefix("torch.")).prepare(matrix, None)
            found = self._kept[parameter, transposed] = (state, kernel)
        return found[1]


def product_type(x: Tensor) -> torch.dtype:
    """Return the type in which a product with x is computed: autocast's if it is on, else that of x."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def frozen_product(x: Tensor, layer: Frozen) -> Tensor:
    """Compute x Wᵀ + b (..., N) of x (..., K), with gradients of x and of b alone."""
    y = product_of(x.reshape(-1, x.shape[-1]), layer.times, layer.times_transposed, layer.bias)
    return y.view(*x.shape[:-1], y.shape[-1])


def product_of(x: Tensor, times: Times, back: Callable[[Tensor], Tensor], bias: Tensor | None = None) -> Tensor:
    """Multiply x by a frozen matrix, with gradients of x and of the bias alone.

    Args:
        x: Inputs (..., M, K).
        times: The product with the matrix, plus the bias, in the type of its input.
        back: The product with the transpose.
        bias: The bias (N,), or None; x then has two dimensions.
    """
    return _Product.apply(x, bias, times, back)  # type: ignore[no-any-return, no-untyped-call]


def low_rank_product(x: Tensor, layer: Frozen, A: Tensor, B: Tensor, c: Tensor | None, scale: float) -> Tensor:
    """Compute x Wᵀ + b + scale (x Aᵀ Bᵀ + c) (..., N) of x (..., K), with gradients of all but W.

    Plain autograd would make a result (M, N) of the low-rank product, scale it and add it, as tensors of their own.

    Args:
        x: Inputs.
        layer: Holds W (N, K) and b.
        A: Factor (r, K).
        B: Factor (N, r).
        c: Bias of the low-rank product (N,), or None.
        scale: Its factor.
    """
    return _LowRank.apply(x, A, B, c, layer.bias, layer, scale)  # type: ignore[no-any-return, no-untyped-call]


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, times: Times, back: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.back, ctx.dtype = back, x.dtype
        return times(x.to(product_type(x)), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        to_x = ctx.back(grad).to(ctx.dtype) if ctx.needs_input_grad[0] else None
        return to_x, _summed(grad, ctx.needs_input_grad[1]), None, None


class _LowRank(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, A: Tensor, B: Tensor, c: Tensor | None, bias: Tensor | None, layer: Frozen, scale: float
    ) -> Tensor:
        dtype = product_type(x)
        rows, a, b = x.reshape(-1, x.shape[-1]).to(dtype), A.to(dtype), B.to(dtype)
        low = rows @ a.t()
        y = layer.times(rows, bias).addmm_(low, b.t(), alpha=scale)
        if c is not None:
            y.add_(c.to(dtype), alpha=scale)
        ctx.save_for_backward(rows, low, a, b)
        ctx.layer, ctx.scale, ctx.shape, ctx.dtype = layer, scale, x.shape, x.dtype
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, low, a, b = ctx.saved_tensors
        to_x, (x_needed, A_needed, B_needed, c_needed, bias_needed, *_) = None, ctx.needs_input_grad
        grad = grad.reshape(-1, grad.shape[-1])
        to_low = (grad @ b).mul_(ctx.scale)
        if x_needed:
            to_x = ctx.layer.times_transposed(grad).addmm_(to_low, a).view(ctx.shape).to(ctx.dtype)
        to_A = (to_low.t() @ rows).float() if A_needed else None
        # (r, N), then transposed: several times faster than the product that gives (N, r).
        to_B = (low.t() @ grad).t().float().mul_(ctx.scale) if B_needed else None
        to_c = _summed(grad, c_needed)
        return to_x, to_A, to_B, None if to_c is None else to_c.mul_(ctx.scale), _summed(grad, bias_needed), None, None


def _summed(grad: Tensor, needed: bool) -> Tensor | None:
    return grad.sum(0, dtype=torch.float32) if needed else None
