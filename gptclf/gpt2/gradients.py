"""Weight gradients written straight into buffers that are kept from step to step.

Plain autograd makes each weight's gradient as a new tensor, adds it to `.grad`, and sets all of `.grad` to zero (or
gives it back to the system, to be paged in again) before the next step. For a small batch that costs more than the
products themselves. Inside `KeptGradients.step()` the first gradient of a step overwrites the kept buffer and later
ones are added to it.

The values are those of plain autograd; hooks on the gradients of the weights concerned do not see them, so whoever
needs such hooks (distributed training) does not use this.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# Which part of a parameter a product reads, as a matrix (K, N) or a stack of them (H, K, N).
View = Callable[[Tensor], Tensor]


class KeptGradients:
    """Buffers for the gradients of some parameters, which become the parameters' `.grad`.

    Args:
        parameters: What trains.
    """

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self._parameters = parameters
        # For each parameter that products write themselves, known once they did, its parts by name; the buffers of all
        # others are set to zero before a step.
        self._parts: dict[int, dict[str, Tensor]] = {}
        self._stale: set[tuple[int, str]] = set()  # parts that still hold the step before
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)

    @contextmanager
    def step(self) -> Iterator[None]:
        """Gradients of backward passes in the block are summed, those from before it forgotten."""
        others = [p.grad for p in self._parameters if id(p) not in self._parts and p.grad is not None]
        if others:
            torch._foreach_zero_(others)
        self._stale = {(number, name) for number, parts in self._parts.items() for name in parts}
        token = _kept.set(self)
        try:
            yield
        finally:
            _kept.reset(token)
            for number, name in self._stale:
                self._parts[number][name].zero_()

    def holds(self, parameter: Tensor) -> bool:
        """Whether products with this parameter shall write its gradient here."""
        hooked = parameter._backward_hooks or parameter._post_accumulate_grad_hooks  # which want to see the gradient
        return parameter.requires_grad and parameter.is_leaf and parameter.grad is not None and not hooked

    def accumulate(self, parameter: Tensor, name: str, view: View, x: Tensor, grad: Tensor) -> None:
        """Add the product of x (..., M, K), transposed, and grad (..., M, N) to a part of the parameter's gradient."""
        slot, first = self._part(parameter, name, view)
        if x.dtype == slot.dtype:
            if first:
                slot.zero_()  # and then add: faster than a product that overwrites
            (slot.addmm_ if slot.dim() == 2 else slot.baddbmm_)(x.mT, grad)
        elif slot.stride(-1) > slot.stride(-2):  # made in the buffer's own layout: copying across it is slow
            _put(slot.mT, grad.mT @ x, first)
        else:
            _put(slot, x.mT @ grad, first)

    def _part(self, parameter: Tensor, name: str, view: View) -> tuple[Tensor, bool]:
        """The part's buffer, and whether what stands in it is of the step before."""
        assert parameter.grad is not None  # holds() said so
        number = id(parameter)
        parts = self._parts.setdefault(number, {})
        if name not in parts:
            if parts and (name == "" or "" in parts):  # divided otherwise than in the steps before
                self._stale -= {(number, other) for other in parts}
                parts.clear()
                parameter.grad.zero_()
            parts[name] = view(parameter.grad)
        first = (number, name) in self._stale
        self._stale.discard((number, name))
        return parts[name], first


def _put(slot: Tensor, value: Tensor, first: bool) -> None:
    if first:
        slot.copy_(value)
    else:
        slot.add_(value)


_kept: ContextVar[KeptGradients | None] = ContextVar("kept_gradients", default=None)


class _Product(torch.autograd.Function):
    """x (..., M, K) times a view (..., K, N) of a parameter, whose gradient goes into its buffer, plus a bias (N,)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, parameter: Tensor, bias: Tensor | None, name: str, view: View, kept: KeptGradients
    ) -> Tensor:
        matrix = view(parameter.detach())
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            x, matrix = x.to(dtype), view(parameter.detach().to(dtype))
        ctx.save_for_backward(x, matrix)
        ctx.parameter, ctx.name, ctx.view, ctx.kept = parameter, name, view, kept
        ctx.bias_dtype = None if bias is None else bias.dtype
        return x @ matrix if bias is None else torch.addmm(bias.to(x.dtype), x, matrix)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, matrix = ctx.saved_tensors
        ctx.kept.accumulate(ctx.parameter, ctx.name, ctx.view, x, grad)
        to_x = grad @ matrix.mT if ctx.needs_input_grad[0] else None
        to_bias = grad.sum(0, dtype=ctx.bias_dtype) if ctx.needs_input_grad[2] else None
        return to_x, None, to_bias, None, None, None


def product(x: Tensor, parameter: Tensor, name: str, view: View, bias: Tensor | None = None) -> Tensor:
    """X (..., M, K) @ view(parameter) (..., K, N), differentiable.

    Args:
        x: Left side.
        parameter: Holds the right side.
        name: Tells one part of the parameter from another, disjoint one; "" is the whole.
        view: Takes the parameter, or a tensor of its shape, to the matrix, as a view.
        bias: Added (N,), where x and the matrix have two dimensions.
    """
    kept = _kept.get()
    if kept is not None and torch.is_grad_enabled() and kept.holds(parameter):
        return _Product.apply(x, parameter, bias, name, view, kept)  # type: ignore[no-any-return, no-untyped-call]
    y = x @ view(parameter)
    return y if bias is None else y + bias


class Linear(nn.Linear):
    """`torch.nn.Linear` whose weight gradient can go into a kept buffer."""

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., K) to (..., N)."""
        kept = _kept.get()
        if kept is None or not torch.is_grad_enabled() or not kept.holds(self.weight):
            return super().forward(input)
        rows = input.reshape(-1, input.shape[-1])
        return product(rows, self.weight, "", _transposed, self.bias).view(*input.shape[:-1], -1)


class Embedding(nn.Embedding):
    """`torch.nn.Embedding` whose gradient is added into a kept buffer row by row, not as a table of mostly zeros."""

    def forward(self, input: Tensor) -> Tensor:
        """Map ids (...) to vectors (..., D)."""
        kept = _kept.get()
        if kept is None or not torch.is_grad_enabled() or not kept.holds(self.weight):
            return super().forward(input)
        return _Lookup.apply(self.weight, input)  # type: ignore[no-any-return, no-untyped-call]


class _Lookup(torch.autograd.Function):
    """Rows of a parameter, whose gradient is added to its `.grad` (set to zero before each step)."""

    @staticmethod
    def forward(ctx: Any, parameter: Tensor, ids: Tensor) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.parameter = parameter
        return parameter.detach()[ids]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None]:
        (ids,) = ctx.saved_tensors
        ctx.parameter.grad.index_add_(0, ids.reshape(-1), grad.reshape(-1, grad.shape[-1]))
        return None, None


def _transposed(weight: Tensor) -> Tensor:
    return weight.t()
