"""`quantize`: a model whose frozen matrices are kept in 4 or 8 bits."""

import logging
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from gptclf.checks import choice
from gptclf.gpt2.arithmetic import check_float32
from gptclf.gpt2.layers import Linear
from gptclf.gpt2.lora import MATRICES, place
from gptclf.gpt2.model import GPT2, check_gpt2
from gptclf.gpt2.quantized import BITS, PACKED, QuantizedLinear, check_packed, packed_of, quantized_layers
from gptclf.gpt2.sharing import borrow
from gptclf.gpt2.standard import is_standard_alone

logger = logging.getLogger(__name__)


def quantize(model: GPT2, bits: str = "nf4") -> GPT2:
    """Keep the blocks' frozen matrices in 4 or 8 bits: a new model that takes an eighth or a quarter of their memory.

    Embeddings, norms, biases, the head and matrices that train stay float32, shared with `model`, which never changes.
    With `apply_lora` before or after, this is QLoRA (Dettmers et al., 2023): products run in the usual arithmetic,
    over matrices that are dequantised when they are needed. The quantised matrices never train.

    Args:
        model: A classifier or a language model, float32, with or without LoRA factors.
        bits: "nf4" for 4-bit NormalFloat in blocks of 64 with quantised scales, 4.13 bits a number; "int8" for 8-bit
            integers with a scale for each output. The package bitsandbytes (`pip install gptclf[quant]`) makes NF4
            faster, with the same numbers.

    Raises:
        TypeError: An argument has a wrong type.
        ValueError: Unknown bits, a model that is quantised already or not float32, or no frozen matrix.

    Example:
        >>> from gptclf import load_gpt2
        >>> quantize(load_gpt2("nano")).trunk.blocks[0].mlp.up
        QuantizedLinear(in_features=192, out_features=768, bias=True, bits='nf4')
    """
    check_gpt2(model)
    choice("bits", bits, BITS)
    check_float32(model, "quantize takes")
    if found := quantized_layers(model):
        raise ValueError(f"the model is quantised already, such as {next(iter(found))}; give the float32 model")
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    small = borrow(model)
    chosen = {
        name: part
        for name, part in small.trunk.blocks.named_modules(prefix="trunk.blocks")
        if type(part) is Linear and is_standard_alone(part) and name.removesuffix(".base").endswith(MATRICES)
    }
    chosen = {name: part for name, part in chosen.items() if f"{name}.weight" not in trained}
    if not chosen:
        remedy = (
            "a matrix that trains stays float32: freeze(model, trainable='head') first, or quantize before training"
        )
        raise ValueError(f"no matrix of the blocks is frozen; {remedy}")
    for name, part in chosen.items():
        bias: Any = part.bias
        layer = QuantizedLinear(part.in_features, part.out_features, packed_of(part.weight, bits), bias)
        place(small, name, layer.train(part.training))
    for name, parameter in small.named_parameters():
        parameter.requires_grad_(name in trained)
    logger.info("%d matrices quantised to %s", len(chosen), bits)
    return small


def put_quantized(model: GPT2, tensors: Mapping[str, Tensor]) -> None:
    """Put quantised layers over the matrices of a model whose codes are among `tensors`, by the model's names.

    Raises:
        ValueError: The tensors of a matrix do not fit it.
    """
    for path, part in list(model.trunk.blocks.named_modules(prefix="trunk.blocks")):
        packed = {name: tensors[f"{path}.{name}"] for name in PACKED if f"{path}.{name}" in tensors}
        if isinstance(part, Linear) and packed:
            try:
                check_packed(packed, (part.out_features, part.in_features))
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error
            place(model, path, QuantizedLinear(part.in_features, part.out_features, packed, part.bias))
