"""Weight gradients added straight into buffers that are kept from step to step.

Plain autograd makes each weight's gradient as a new tensor and then adds it to `.grad`, whose memory is freed after the
step and paged in again in the next. For a small batch that costs more than the products themselves. The layers of a
learner hold a `KeptGradients`, and a product's backward pass adds its gradient to the buffer in one go.

The values are those of plain autograd. Hooks on a parameter's gradient would not see it, so parameters with hooks use
plain autograd. DistributedDataParallel works, because it reads `.grad` after it is written.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Maps a parameter, or a tensor of its shape, to a part of it: a matrix (K, N) or a stack of matrices (H, K, N), without
# a copy.
View = Callable[[Tensor], Tensor]

# Rows of a gradient that are converted at once: the converted piece stays in the cache.
_ROWS = 256


class KeptGradients:
    """Buffers for the gradients of parameters, which become `.grad` in a backward pass after `zero_grad`."""

    def __init__(self) -> None:
        self._buffers: dict[Tensor, Tensor] = {}

    def holds(self, parameter: Tensor) -> bool:
        """Return True if gradients of this parameter are accumulated in a buffer."""
        hooked = parameter._backward_hooks or parameter._post_accumulate_grad_hooks  # hooks want to see the gradient
        return torch.is_grad_enabled() and parameter.requires_grad and parameter.is_leaf and not hooked

    def gradient(self, parameter: Tensor) -> tuple[Tensor, bool]:
        """Return `.grad`, set to a reused buffer if it was None, and whether its values are stale (to overwrite)."""
        if parameter.grad is not None:
            return parameter.grad, False
        if parameter not in self._buffers:
            self._buffers[parameter] = torch.empty_like(parameter)
        parameter.grad = self._buffers[parameter]
        return parameter.grad, True

    def add_product(self, parameter: Tensor, view: View, x: Tensor, grad: Tensor) -> None:
        """Add the product of x (..., M, K), transposed, and grad (..., M, N) to a part (..., K, N) of the gradient."""
        whole, stale = self.gradient(parameter)
        part = view(whole)
        overwrite = stale and x.dtype != part.dtype and part.numel() == whole.numel()
        if stale and not overwrite:
            whole.zero_()  # then add, which within one type is faster than a product that overwrites
        if x.dtype == part.dtype:
            (part.addmm_ if part.dim() == 2 else part.baddbmm_)(x.mT, grad)
            return
        # The product is made in the buffer's own layout, because adding across it is slow.
        across = part.stride(-1) > part.stride(-2)
        part, value = (part.mT, grad.mT @ x) if across else (part, x.mT @ grad)
        if overwrite:
            part.copy_(value)
        else:
            for slot, piece in zip(torch.split(part, _ROWS), torch.split(value, _ROWS), strict=True):
                slot.add_(piece)


class _Product(torch.autograd.Function):
    """x (..., M, K) times a view (..., K, N) of a parameter, whose gradient goes into its buffer, plus a bias (N,)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, parameter: Tensor, bias: Tensor | None, view: View, kept: KeptGradients) -> Tensor:
        matrix = view(parameter.detach())
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            x, matrix = x.to(dtype), matrix.to(dtype)
        ctx.save_for_backward(x, matrix)
        ctx.parameter, ctx.view, ctx.kept = parameter, view, kept
        ctx.bias_dtype = None if bias is None else bias.dtype
        return x @ matrix if bias is None else torch.addmm(bias.to(x.dtype), x, matrix)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, matrix = ctx.saved_tensors
        ctx.kept.add_product(ctx.parameter, ctx.view, x, grad)
        to_x = grad @ matrix.mT if ctx.needs_input_grad[0] else None
        to_bias = grad.sum(0, dtype=ctx.bias_dtype) if ctx.needs_input_grad[2] else None
        return to_x, None, to_bias, None, None


def product(
    x: Tensor, parameter: Tensor, view: View, bias: Tensor | None = None, kept: KeptGradients | None = None
) -> Tensor:
    """Compute x (..., M, K) @ view(parameter) (..., K, N), differentiably.

    Args:
        x: The left factor.
        parameter: The parameter that holds the right factor.
        view: Maps the parameter to the right factor, a matrix or a stack of matrices.
        bias: A bias (N,) to add; x and the matrix then have two dimensions.
        kept: Where the parameter's gradient is accumulated; None leaves it to autograd.
    """
    if kept is not None and kept.holds(parameter):
        return _Product.apply(x, parameter, bias, view, kept)  # type: ignore[no-any-return, no-untyped-call]
    y = x @ view(parameter)
    return y if bias is None else y + bias


def look_up(parameter: Tensor, ids: Tensor, kept: KeptGradients) -> Tensor:
    """Return the rows of a parameter (V, D) at ids (...). Their gradient is added to its buffer row by row."""
    return _Lookup.apply(parameter, ids, kept)  # type: ignore[no-any-return, no-untyped-call]


class _Lookup(torch.autograd.Function):
    """Rows of a parameter, whose gradient is added to its buffer."""

    @staticmethod
    def forward(ctx: Any, parameter: Tensor, ids: Tensor, kept: KeptGradients) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.parameter, ctx.kept = parameter, kept
        return parameter.detach()[ids]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, None]:
        (ids,) = ctx.saved_tensors
        table, stale = ctx.kept.gradient(ctx.parameter)
        if stale:
            table.zero_()
        table.index_add_(0, ids.reshape(-1), grad.reshape(-1, grad.shape[-1]))
        return None, None, None
