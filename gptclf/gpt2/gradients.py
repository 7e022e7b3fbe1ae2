"""Weight gradients added straight into buffers that are kept from step to step.

Plain autograd makes each weight's gradient as a new tensor and then adds it to `.grad`, whose own memory is given back
after the step, to be paged in again in the next. For a small batch that costs more than the products themselves. Inside
`KeptGradients.step()` a product's backward pass adds its gradient to the buffer in one go.

The values are those of plain autograd. Hooks on a parameter's gradient would not see it, so parameters with hooks take
the plain way, and whoever relies on others' hooks (distributed training) does not use this.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# Takes a parameter, or a tensor of its shape, to a part of it as a matrix (K, N) or a stack of them (H, K, N), without
# a copy.
View = Callable[[Tensor], Tensor]

# Rows of a gradient that are converted at once: the converted piece stays in the cache.
_CONVERTED_ROWS = 256


class KeptGradients:
    """Buffers for the gradients of some parameters, which a step makes the parameters' `.grad`.

    Args:
        parameters: What trains.
    """

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self._parameters = parameters
        self._buffers: dict[int, Tensor] = {}

    @contextmanager
    def step(self) -> Iterator[None]:
        """Gradients of backward passes in the block are summed, those from before it forgotten."""
        for parameter in self._parameters:
            parameter.grad = None  # so that plain autograd, too, starts anew with what it computes
        token = _kept.set(self)
        try:
            yield
        finally:
            _kept.reset(token)

    def holds(self, parameter: Tensor) -> bool:
        """Whether products with this parameter shall add to its gradient here."""
        hooked = parameter._backward_hooks or parameter._post_accumulate_grad_hooks  # which want to see the gradient
        return parameter.requires_grad and parameter.is_leaf and not hooked

    def gradient(self, parameter: Tensor) -> tuple[Tensor, bool]:
        """The parameter's `.grad`, and whether what stands in it is of the step before."""
        if parameter.grad is not None:
            return parameter.grad, False
        buffer = self._buffers.get(id(parameter))
        if buffer is None:
            buffer = self._buffers[id(parameter)] = torch.empty_like(parameter)
        parameter.grad = buffer
        return buffer, True

    def add_product(self, parameter: Tensor, view: View, x: Tensor, grad: Tensor) -> None:
        """Add the product of x (..., M, K), transposed, and grad (..., M, N) to a part (..., K, N) of the gradient."""
        whole, stale = self.gradient(parameter)
        part = view(whole)
        overwrite = stale and x.dtype != part.dtype and part.numel() == whole.numel()
        if stale and not overwrite:
            whole.zero_()  # and then add: in one type that is faster than a product that overwrites
        if x.dtype == part.dtype:
            (part.addmm_ if part.dim() == 2 else part.baddbmm_)(x.mT, grad)
            return
        # Made in the buffer's own layout: adding across it is slow.
        across = part.stride(-1) > part.stride(-2)
        part, value = (part.mT, grad.mT @ x) if across else (part, x.mT @ grad)
        if overwrite:
            part.copy_(value)
        else:
            _add_converted(part, value)


def _add_converted(slot: Tensor, value: Tensor) -> None:
    pieces = zip(torch.split(slot, _CONVERTED_ROWS), torch.split(value, _CONVERTED_ROWS), strict=True)
    for part, piece in pieces:
        part.add_(piece)


_kept: ContextVar[KeptGradients | None] = ContextVar("kept_gradients", default=None)


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


def product(x: Tensor, parameter: Tensor, view: View, bias: Tensor | None = None) -> Tensor:
    """X (..., M, K) @ view(parameter) (..., K, N), differentiable.

    Args:
        x: Left side.
        parameter: Holds the right side.
        view: Takes the parameter to the matrix.
        bias: Added (N,), where x and the matrix have two dimensions.
    """
    kept = _kept.get()
    if kept is not None and torch.is_grad_enabled() and kept.holds(parameter):
        return _Product.apply(x, parameter, bias, view, kept)  # type: ignore[no-any-return, no-untyped-call]
    y = x @ view(parameter)
    return y if bias is None else y + bias


class Linear(nn.Linear):
    """`torch.nn.Linear` whose weight gradient can go into a kept buffer."""

    def reset_parameters(self) -> None:
        """Draw nothing: weights are loaded, or drawn by `initialise`."""

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., K) to (..., N)."""
        kept = _kept.get()
        if kept is None or not torch.is_grad_enabled() or not kept.holds(self.weight):
            return super().forward(input)
        rows = input.reshape(-1, input.shape[-1])
        return product(rows, self.weight, _transposed, self.bias).view(*input.shape[:-1], self.out_features)


class Embedding(nn.Embedding):
    """`torch.nn.Embedding` whose gradient is added into a kept buffer row by row, not as a table of mostly zeros."""

    def reset_parameters(self) -> None:
        """Draw nothing, as in `Linear`; on the meta device torch would import its compiler for it, a second's work."""

    def forward(self, input: Tensor) -> Tensor:
        """Map ids (...) to vectors (..., D)."""
        kept = _kept.get()
        if kept is None or not torch.is_grad_enabled() or not kept.holds(self.weight):
            return super().forward(input)
        return _Lookup.apply(self.weight, input, kept)  # type: ignore[no-any-return, no-untyped-call]


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


def _transposed(weight: Tensor) -> Tensor:
    return weight.t()
