"""Which arithmetic a computation runs in. Weights, residual stream and losses are float32 whatever is chosen here."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from gptclf.gpt2.stages import Classifier

PRECISIONS = ("auto", "float32", "bfloat16")

# Below this width casting costs more than bf16 matrix products save (measured on two cores with AVX512-BF16).
_WORTH_CASTING = 256

# Casting a block's weights takes as long as running so many tokens through it.
_WORTH_CASTING_TOKENS = 512


def resolve_precision(precision: str, model: Classifier) -> str:
    """What `precision` means for this model on its device: "float32" or "bfloat16".

    "auto" is bfloat16 where the device multiplies bfloat16 matrices in hardware and the model is wide enough to gain.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}; choose from {', '.join(PRECISIONS)}")
    if precision != "auto":
        return precision
    fast = _multiplies_bfloat16(model.device) and model.config.emb_dim >= _WORTH_CASTING
    return "bfloat16" if fast else "float32"


def product_dtype(precision: str, model: Classifier, n_tokens: int) -> torch.dtype:
    """What matrix products take where weights are cast once for `n_tokens` tokens, without gradients.

    "auto" is bfloat16 where `resolve_precision` says so and there are enough tokens to repay the casting; on a CUDA
    card that cannot multiply it, float16.
    """
    resolved = resolve_precision(precision, model)
    if precision == "auto" and model.device.type == "cuda" and resolved == "float32":
        return torch.float16
    if resolved == "bfloat16" and not (precision == "auto" and n_tokens < _WORTH_CASTING_TOKENS):
        return torch.bfloat16
    return torch.float32


def _multiplies_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        try:
            return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
        except AttributeError:  # private names: a release without them gets the arithmetic that is always right
            return False
    return False


@contextmanager
def arithmetic(precision: str, model: Classifier) -> Iterator[None]:
    """Run the block in `precision` (autocast of matrix products for bfloat16)."""
    enabled = resolve_precision(precision, model) == "bfloat16"
    with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=enabled):
        yield


@contextmanager
def in_mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Training (dropout) or evaluation mode in the block; every module's own mode is put back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def answering(model: nn.Module) -> Iterator[None]:
    """No gradients and no dropout in the block."""
    with in_mode(model, training=False), torch.inference_mode():
        yield
