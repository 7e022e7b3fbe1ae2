"""`gptclf_adapter.json`: everything about a saved adapter but its tensors, and the names of an adapter's files."""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from gptclf.files.digest import tensor_digests
from gptclf.files.json_file import read_json
from gptclf.gpt2.lora_linear import LoRALinear, lora_layers
from gptclf.gpt2.model import GPT2
from gptclf.saving.record import Record, damaged, get_value, names_in, read_record, write_record
from gptclf.weights.hugging_face import trunk_names

# PEFT's files, then ours.
PEFT_CONFIG = "adapter_config.json"
PEFT_WEIGHTS = "adapter_model.safetensors"
PEFT_TORCH_WEIGHTS = "adapter_model.bin"
ADAPTER = "gptclf_adapter.json"
ADAPTER_ORIGINALS = "gptclf_adapter.safetensors"
PEFT_FILES = (PEFT_CONFIG, PEFT_WEIGHTS, PEFT_TORCH_WEIGHTS)


class Factors(NamedTuple):
    """The options of one layer with factors, as `LoRALinear` takes them."""

    rank: int
    alpha: float
    scaling: str
    dropout: float
    bias: bool
    parts: int = 1


@dataclass(frozen=True)
class AdapterRecord(Record):
    """A saved adapter's record.

    Attributes:
        layers: The options of each layer with factors, by its name.
        extras: Names of the trunk's tensors that the adapter holds beside factors and head, as they are without LoRA.
        digest: The digest of the frozen tensors beneath.
        bits: The quantisation of the base: "nf4", "int8" or None.
        dense: Names of the blocks' matrices that are floats beside quantised ones.
    """

    layers: dict[str, Factors]
    extras: list[str]
    digest: str
    bits: str | None
    dense: list[str]

    @property
    def head_tensors(self) -> list[str]:
        """The tensors of a head in our own file, as they are without LoRA."""
        return sorted({plain(name) for name in super().head_tensors if ".lora_" not in name})


def plain(name: str) -> str:
    """Return a tensor's name as it is without factors.

    Example:
        >>> plain("trunk.blocks.0.mlp.up.base.bias")
        'trunk.blocks.0.mlp.up.bias'
    """
    return name.replace(".base.", ".")


def bits_of(model: nn.Module) -> str | None:
    """Return how a model's matrices are quantised: "nf4", "int8" or None."""
    found = (getattr(part, "bits", None) for part in model.modules())
    return next((bits for bits in found if isinstance(bits, str)), None)


def dense_matrices(model: GPT2) -> list[str]:
    """Return the names of the blocks' layers whose matrices are floats."""
    table = [name.removesuffix(".weight") for name, (_, flip) in trunk_names(model.config.n_layers).items() if flip]
    held = {plain(f"{name}.").removesuffix("."): part for name, part in model.named_modules()}
    return [path for path in table if getattr(_beneath(held.get(path)), "bits", None) is None]


def _beneath(layer: Any) -> Any:
    return layer.base if isinstance(layer, LoRALinear) else layer


def factors_of(layer: LoRALinear) -> Factors:
    """Return the options of a layer."""
    bias = layer.lora_B.bias is not None
    return Factors(layer.rank, layer.alpha, layer.scaling, layer.dropout.p, bias, layer.parts)


def base_digest(model: GPT2, *, without: Collection[str], matrices: bool) -> str:
    """Return a digest of the trunk beneath an adapter, whatever the layout of its tensors in memory.

    Args:
        model: The model, with factors or without.
        without: Names of parameters to leave out, because the adapter holds them.
        matrices: Whether the blocks' matrices count; not over a quantised base, where they are held in another form.
    """
    table = trunk_names(model.config.n_layers)
    held = {plain(name): parameter.detach() for name, parameter in model.named_parameters()}
    names = [name for name, (_, flip) in table.items() if name in held and name not in without and flip <= matrices]
    # In the layout of the files, in which no copy is needed.
    tensors = ((held[name].t() if table[name][1] and held[name].dim() == 2 else held[name]).float() for name in names)
    pairs = list(zip(names, tensor_digests(tensors, layouts=False), strict=True))
    return hashlib.sha256(repr(pairs).encode()).hexdigest()


def write_adapter_record(model: GPT2, *, base: str | None, extras: list[str], **saved: Any) -> dict[str, Any]:
    """Return the record of an adapter as it will be saved; `saved` are the arguments of `write_record`."""
    bits = bits_of(model)
    return write_record(model, **saved) | {
        "base": base,
        "layers": {path: factors_of(layer)._asdict() for path, layer in lora_layers(model)},
        "extras": extras,
        "digest": base_digest(model, without=extras, matrices=bits is None),
        "bits": bits,
        "dense": [] if bits is None else [plain(name) for name in dense_matrices(model)],
    }


def read_adapter_record(source: Path, *, verify: bool = True) -> AdapterRecord:
    """Return the record in a file.

    Args:
        source: The file.
        verify: Whether to compare its content with its digest.

    Raises:
        ValueError: A key is missing, a value is not valid, or the content is not what was written.
    """
    record, values = read_record(source, verify=verify), read_json(source)
    kinds = {"rank": (int,), "alpha": (int, float), "scaling": (str,), "dropout": (int, float), "bias": (bool,)}
    kinds["parts"] = (int,)
    with damaged(source):
        layers = get_value(values, "layers", dict)
        return AdapterRecord(
            **vars(record),
            layers={
                path: Factors(**{key: get_value(options, key, *allowed) for key, allowed in kinds.items()})
                for path, options in layers.items()
            },
            extras=names_in(values, "extras"),
            digest=get_value(values, "digest", str),
            bits=get_value(values, "bits", str, type(None)),
            dense=names_in(values, "dense"),
        )
