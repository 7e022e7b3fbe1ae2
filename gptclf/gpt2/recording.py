"""Whether torch records a computation, or runs it for its result. All code asks this module."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch

R = TypeVar("R")


def is_recording() -> bool:
    """Return True while torch records the computation as a graph, or transforms it.

    No value of a tensor is known then, so nothing may depend on one: no check of ids or lengths, no packing of rows.
    That is so in `torch.compile`, `torch.export`, `torch.jit.trace`, exports to ONNX and `torch.func`.
    """
    traced = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return traced or torch.compiler.is_compiling() or is_transformed()


def is_transformed() -> bool:
    """Return True within a transform of `torch.func`, such as `grad` or `vmap`, whose tensors have no memory."""
    # A private name: in a release without it torch's own error says what it cannot do.
    level = getattr(torch._C._functorch, "maybe_current_level", None)
    return level is not None and level() is not None


def cached(make: Callable[..., R]) -> Callable[..., R]:
    """Keep a function's results, but none made while torch records: its tensors belong to the recording."""
    kept = functools.cache(make)

    @functools.wraps(make)
    def found(*key: Any) -> R:
        return make(*key) if is_recording() else kept(*key)

    return found
