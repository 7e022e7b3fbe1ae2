"""The arithmetic of matrix products. Weights, residual stream and losses are float32 whatever is chosen here."""

import functools
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptclf.checks import PRECISIONS, choice
from gptclf.gpt2.config import GPT2Config
from gptclf.gpt2.sharing import twin

logger = logging.getLogger(__name__)

# Below this width casting costs more than bf16 matrix products save (measured on two cores with AVX512-BF16).
_WORTH_CASTING = 256

# Casting a block's weights takes as long as running this many tokens through it.
_WORTH_CASTING_TOKENS = 512

# Tokens per product. On a CPU larger pieces gain no speed, and push the inside of the MLP out of the caches.
_PIECE = {"cpu": 1024, "cuda": 16384}

M = TypeVar("M", bound=nn.Module)

Kernel = Callable[[Tensor], Tensor]

_gelu_tanh = functools.partial(F.gelu, approximate="tanh")
ACTIVATIONS: dict[str, Kernel] = {"gelu_tanh": _gelu_tanh, "gelu": F.gelu, "relu": F.relu, "silu": F.silu}


class Placed(Protocol):
    """A model, or a part of one, with a known device and shape."""

    config: GPT2Config

    @property
    def device(self) -> torch.device:
        """The device that holds the parameters."""


@dataclass(frozen=True)
class Arithmetic:
    """How matrices are multiplied without gradients.

    Attributes:
        name: "float32", "bfloat16" or "float16".
    """

    name: str

    @property
    def dtype(self) -> torch.dtype:
        """The type of the inputs and results of matrix products."""
        return getattr(torch, self.name)  # type: ignore[no-any-return]

    def prepare(self, weight: Tensor, bias: Tensor | None) -> Kernel:
        """Return x -> x Wᵀ + b for a matrix W (out, in), cast and laid out once."""
        weight = weight.detach().to(self.dtype)
        bias = None if bias is None else bias.detach().to(self.dtype)
        fused = _fused_operators() if weight.device.type == "cpu" and self.dtype == torch.bfloat16 else None
        return functools.partial(F.linear, weight=weight, bias=bias) if fused is None else _Packed(weight, bias, *fused)


FLOAT32, BFLOAT16, FLOAT16 = Arithmetic("float32"), Arithmetic("bfloat16"), Arithmetic("float16")


class _Packed:
    """A linear layer over pieces of one shape, with its matrix laid out for one of torch's private operators."""

    def __init__(self, weight: Tensor, bias: Tensor | None, pack: Any, linear: Any) -> None:
        self.weight, self.bias, self.linear = pack(weight.contiguous(), _PIECE["cpu"]), bias, linear

    def __call__(self, x: Tensor, activation: str = "none", form: str = "", bias: Tensor | None = None) -> Tensor:
        bias = self.bias if bias is None else bias
        return self.linear(x, self.weight, bias, activation, [], form)  # type: ignore[no-any-return]


def activated(kernel: Kernel, activation: str) -> Kernel:
    """Return a prepared layer followed by an activation, in one pass if the kernel can."""
    if isinstance(kernel, _Packed) and activation == "gelu_tanh":
        return functools.partial(kernel, activation="gelu", form="tanh")
    return lambda x: ACTIVATIONS[activation](kernel(x))


def piece_size(device: torch.device) -> int:
    """Return the number of tokens per matrix product on a device."""
    return _PIECE.get(device.type, _PIECE["cuda"])


def resolve_precision(precision: str, model: Placed) -> str:
    """Return what `precision` means for this model on its device: "float32" or "bfloat16".

    "auto" is bfloat16 if the device multiplies bfloat16 matrices in hardware and the model is wide enough to gain.
    """
    if choice("precision", precision, PRECISIONS) != "auto":
        return precision
    fast = _multiplies_bfloat16(model.device) and model.config.emb_dim >= _WORTH_CASTING
    return "bfloat16" if fast else "float32"


def arithmetic_for(precision: str, model: Placed, n_tokens: int) -> Arithmetic:
    """Return the arithmetic in which weights are cast once for `n_tokens` tokens, without gradients.

    "auto" is bfloat16 if `resolve_precision` says so and there are enough tokens to repay the casting. If
    `resolve_precision` says float32 on a CUDA device, "auto" is float16.
    """
    resolved = resolve_precision(precision, model)
    if precision == "auto" and model.device.type == "cuda" and resolved == "float32":
        return FLOAT16
    worth_it = precision != "auto" or n_tokens >= _WORTH_CASTING_TOKENS
    return BFLOAT16 if resolved == "bfloat16" and worth_it else FLOAT32


def casting(precision: str, model: Placed) -> torch.autocast:
    """Return a context in which matrix products run in `precision`: autocast for bfloat16."""
    enabled = resolve_precision(precision, model) == "bfloat16"
    return torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=enabled)


@contextmanager
def evaluating(model: M) -> Iterator[M]:
    """Yield the model in evaluation mode, without gradients in the block; the model's own mode is never changed.

    If any part is in training mode, this yields a copy of the modules over the same parameters.
    """
    training = any(part.training for part in model.modules())
    with torch.inference_mode():
        try:
            yield twin(model).eval() if training else model
        except RuntimeError:  # the weights' type is a likely reason
            check_float32(model, "answers are computed with")
            raise


def check_float32(module: nn.Module, what: str, name: str = "model") -> None:
    """Raise if a model, or a part of one called `name`, has floating-point parameters that are not float32."""
    other = {p.dtype for p in module.parameters() if p.is_floating_point()} - {torch.float32}
    if other:
        raise ValueError(f"the {name}'s weights are {other.pop()}; {what} float32 ones: call {name}.float()")


@functools.cache
def survive_forks() -> None:
    """From now on, let forked processes compute with one thread, where torch would wait for its own for ever.

    torch's threads on Linux are GNU OpenMP's. They do not survive a fork, and the child does not notice: its first
    product of some size never returns. With one thread there is nobody to wait for.
    """
    if sys.platform == "linux":
        os.register_at_fork(after_in_child=_compute_alone)


def _compute_alone() -> None:
    if torch.get_num_threads() > 1:
        torch.set_num_threads(1)
        logger.info("this process was forked, so torch computes with one thread; spawned processes can use several")


def _multiplies_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # Private names: a release without them gets float32, which is always right.
    names = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return device.type == "cpu" and any(hasattr(torch.cpu, name) and getattr(torch.cpu, name)() for name in names)


@functools.cache
def _fused_operators() -> tuple[Any, Any] | None:
    """Return torch's private operators for a packed matrix and a fused activation, or None if a release lacks them.

    They save the activation's own pass over the MLP's inside, an eighth of a block in bfloat16.
    """
    try:
        pack, linear = torch.ops.mkldnn._reorder_linear_weight, torch.ops.mkldnn._linear_pointwise
        weight = torch.ones(32, 32, dtype=torch.bfloat16, device="cpu")
        x = weight[:2]
        y = linear(x, pack(weight, 2), None, "gelu", [], "tanh")
    except (AttributeError, RuntimeError, TypeError):
        return None
    return (pack, linear) if torch.equal(y, torch.full_like(y, 32.0)) else None
