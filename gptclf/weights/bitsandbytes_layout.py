"""The files of matrices that bitsandbytes quantised, as `transformers` writes them, without the package.

    NF4     X.weight (bytes, 1), X.weight.absmax, .quant_map, .nested_absmax, .nested_quant_map,
            .quant_state.bitsandbytes__nf4 (JSON as bytes)
    int8    X.weight (N, K), X.SCB (N,): the rows' largest numbers, X.weight_format

Both keep a matrix as (out, in), unlike the float matrices of their GPT-2.
"""

import json
import re
from collections.abc import Collection, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor

from gptclf.gpt2.nf4 import BLOCK, NESTED_BLOCK, code_book, dynamic_code_book
from gptclf.gpt2.quantized import PACKED, check_packed

_STATE = "quant_state.bitsandbytes__nf4"
_NF4 = ("absmax", "quant_map", "nested_absmax", "nested_quant_map", _STATE)
_INT8 = ("SCB", "weight_format")

_CODES = re.compile(r"(trunk\.blocks\.\d+\.(?:attention\.(?:qkv|out)|mlp\.(?:up|down)))\.codes")


def check_quantization(config: Any, source: str) -> None:
    """Raise unless a `quantization_config` is that of bitsandbytes' NF4 or int8."""
    given = config if isinstance(config, dict) else {}
    four, eight = given.get("load_in_4bit") is True, given.get("load_in_8bit") is True
    kind = given.get("bnb_4bit_quant_type") if four else "int8" if eight else None
    if given.get("quant_method", "bitsandbytes") != "bitsandbytes" or kind not in ("nf4", "int8"):
        problem = (
            f"{source} sets quantization_config = {config!r}: gptclf does not support quantized weights of this kind"
        )
        remedy = "load the float weights that they were made from, and call quantize(model)"
        raise ValueError(f"{problem}, only bitsandbytes' nf4 and int8; {remedy}")


def quantization_config(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return what `config.json` says about the tensors of a file under Hugging Face's names: {} if all are floats."""
    eight, four = (any(name.endswith(end) for name in tensors) for end in (".SCB", _STATE))
    if not (eight or four):
        return {}
    skipped = [
        name.removesuffix(".weight")
        for name, tensor in tensors.items()
        if ".h." in name and name.endswith(".weight") and tensor.dim() == 2 and tensor.is_floating_point()
    ]
    config = {
        "quant_method": "bitsandbytes",
        "load_in_4bit": four,
        "load_in_8bit": eight,
        "llm_int8_skip_modules": ["lm_head", "score", *skipped],
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": any(name.endswith(".nested_absmax") for name in tensors),
        "bnb_4bit_compute_dtype": "float32",
        "bnb_4bit_quant_storage": "uint8",
    }
    return {"quantization_config": config}


def packed_names(names: Collection[str]) -> tuple[set[str], set[str]]:
    """Return the matrices whose quantised tensors are among names of gptclf's, and the names of those tensors."""
    paths = [found[1] for name in names if (found := _CODES.fullmatch(name))]
    return {f"{path}.weight" for path in paths}, {f"{path}.{part}" for path in paths for part in PACKED} & set(names)


def packed_to_theirs(theirs: str, packed: Mapping[str, Tensor], shape: tuple[int, ...]) -> dict[str, Tensor]:
    """Return a quantised matrix of this shape (N, K) under the names that begin with `theirs`, X.weight."""
    codes, absmax = packed["codes"], packed["absmax"]
    if codes.dtype == torch.int8:
        row_wise, module = torch.tensor(0, dtype=torch.uint8, device="cpu"), theirs.removesuffix(".weight")
        return {theirs: codes, f"{module}.SCB": absmax, f"{module}.weight_format": row_wise}
    state: dict[str, Any] = {"quant_type": "nf4", "blocksize": BLOCK, "dtype": "float32", "shape": list(shape)}
    parts = {"absmax": absmax, "quant_map": code_book()}
    if "offset" in packed:
        state |= {"nested_blocksize": NESTED_BLOCK, "nested_dtype": "float32", "nested_offset": packed["offset"].item()}
        parts |= {"nested_absmax": packed["nested_absmax"], "nested_quant_map": dynamic_code_book()}
    parts[_STATE] = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8, device="cpu")
    return {theirs: codes[:, None], **{f"{theirs}.{name}": tensor for name, tensor in parts.items()}}


def take_packed(
    found: MutableMapping[str, Tensor], theirs: str, shape: tuple[int, ...], source: str
) -> dict[str, Tensor]:
    """Take the tensors of one matrix out of a file's; return those of a `QuantizedLinear`, none if it is of floats.

    Args:
        found: The file's tensors, under names without the prefix `transformer.`. Those of the matrix are removed.
        theirs: The matrix's name, X.weight.
        shape: Its shape (N, K).
        source: The file, for messages.
    """
    module = theirs.removesuffix(".weight")
    names = {part: f"{theirs}.{part}" for part in _NF4} | {part: f"{module}.{part}" for part in _INT8}
    parts = {part: found[name] for part, name in names.items() if name in found}
    if not parts:
        return {}
    try:
        packed = (_from_int8 if "SCB" in parts else _from_nf4)(found[theirs], parts, shape)
        check_packed(packed, shape)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        problem = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(
            f"{source}: {theirs} is not this model's matrix in bitsandbytes' nf4 or int8: {problem}"
        ) from error
    for name in (theirs, *names.values()):
        found.pop(name, None)
    return packed


def _from_int8(weight: Tensor, parts: Mapping[str, Tensor], shape: tuple[int, ...]) -> dict[str, Tensor]:
    if int(parts.get("weight_format", 0)):
        raise ValueError(f"weight_format is {int(parts['weight_format'])}, but only rows, 0, are read")
    return {"codes": weight, "absmax": parts["SCB"].float()}


def _from_nf4(weight: Tensor, parts: Mapping[str, Tensor], shape: tuple[int, ...]) -> dict[str, Tensor]:
    state = json.loads(bytes(parts[_STATE].tolist()))
    known: dict[str, Any] = {"quant_type": "nf4", "blocksize": BLOCK, "shape": list(shape)}
    books = {"quant_map": code_book()}
    codes = weight.contiguous().view(torch.uint8).view(-1)  # in a file of another bnb_4bit_quant_storage, of other type
    packed = {"codes": codes, "absmax": parts["absmax"]}
    if "nested_absmax" in parts:
        known["nested_blocksize"] = NESTED_BLOCK
        books["nested_quant_map"] = dynamic_code_book()
        offset = torch.tensor(float(state["nested_offset"]), dtype=torch.float32, device="cpu")
        packed |= {"nested_absmax": parts["nested_absmax"], "offset": offset}
    wrong = [f"{key} is {state.get(key)!r}, not {value!r}" for key, value in known.items() if state.get(key) != value]
    wrong += [f"{name} is another code book" for name, book in books.items() if not torch.equal(parts[name], book)]
    if wrong:
        raise ValueError("; ".join(wrong))
    return packed
