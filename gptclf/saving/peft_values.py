"""The keys of PEFT's `adapter_config.json` that describe an adapter of ours."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from gptclf.gpt2.lora_linear import SCALES
from gptclf.saving.adapter_record import Factors
from gptclf.saving.peft_config import layer_of


def peft_values(
    layers: Mapping[str, Factors], extras: Collection[str], names: Mapping[str, str], parameters: Collection[str]
) -> dict[str, Any]:
    """Return the keys of an `adapter_config.json` that say what an adapter holds; the task's are left to the caller.

    Args:
        layers: The options of each layer with factors, by its name.
        extras: Names of the other tensors that it holds. PEFT holds whole layers or biases, so it may hold more.
        names: The names of layers in Hugging Face's layout, by ours (`layer_names`).
        parameters: The names of the model's parameters.
    """
    biases = {name for name in parameters if name.startswith("trunk.") and name.endswith(".bias")}
    all_biases = biases <= set(extras)
    beneath = any(layer_of(name) in layers for name in extras)
    rest = set(extras) - biases if all_biases else {name for name in extras if layer_of(name) not in layers}
    saved = {names[layer_of(name)] for name in rest}
    rslora = all(options.scaling == "alpha/sqrt(rank)" for options in layers.values())
    alphas = {path: _alpha(options, rslora) for path, options in layers.items()}
    ranks = {path: options.rank for path, options in layers.items()}
    (rank, rank_pattern), (alpha, alpha_pattern) = (_patterned(values, names) for values in (ranks, alphas))
    return {
        **_targets(layers, names),
        "r": rank,
        "rank_pattern": rank_pattern,
        "lora_alpha": alpha,
        "alpha_pattern": alpha_pattern,
        "use_rslora": rslora,
        "lora_dropout": _commonest(options.dropout for options in layers.values()),
        "lora_bias": _commonest(options.bias for options in layers.values()),
        "bias": "all" if all_biases else "lora_only" if beneath else "none",
        "modules_to_save": sorted(saved) or None,
        "exclude_modules": None,
        "peft_type": "LORA",
        "peft_version": "0.21.2",
        "inference_mode": True,
        "init_lora_weights": True,
        "fan_in_fan_out": True,  # the layout of GPT-2's Conv1D
    }


def _targets(layers: Collection[str], names: Mapping[str, str]) -> dict[str, Any]:
    """Return suffixes of names if the same layers of some blocks have factors, else full names."""
    blocks: dict[int, set[str]] = {}
    for path in layers:
        number, inner = re.fullmatch(r"(?:transformer\.h\.(\d+)\.)?(.*)", names[path]).groups()  # type: ignore[union-attr]
        blocks.setdefault(-1 if number is None else int(number), set()).add(inner)
    every = len({path.split(".")[2] for path in names if path.startswith("trunk.blocks.")})
    alike = -1 not in blocks and len({frozenset(inner) for inner in blocks.values()}) == 1
    some = alike and len(blocks) < every
    return {
        "target_modules": sorted(next(iter(blocks.values())) if alike else (names[path] for path in layers)),
        "layers_to_transform": sorted(blocks) if some else None,
        "layers_pattern": "h" if some else None,
    }


def _alpha(options: Factors, rslora: bool) -> float:
    """Return the alpha that gives a layer's scale by PEFT's rule."""
    if rslora or options.scaling == "alpha/rank":
        alpha = options.alpha
    else:
        alpha = SCALES[options.scaling](options.alpha, options.rank) * options.rank
    return int(alpha) if float(alpha).is_integer() else alpha


def _patterned(values: Mapping[str, Any], names: Mapping[str, str]) -> tuple[Any, dict[str, Any]]:
    """Return the commonest value, and the others by a pattern of names: one for all blocks where that is enough."""
    usual = _commonest(values.values())
    ends: dict[str, set[Any]] = {}
    for path, value in values.items():
        ends.setdefault(_end(names[path]), set()).add(value)
    keys = {path: _end(names[path]) if len(ends[_end(names[path])]) == 1 else names[path] for path in values}
    return usual, {re.escape(keys[path]): value for path, value in values.items() if value != usual}


def _end(name: str) -> str:
    return re.sub(r"^transformer\.h\.\d+\.", "", name)


def _commonest(values: Iterable[Any]) -> Any:
    return Counter(values).most_common(1)[0][0]
