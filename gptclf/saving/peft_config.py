"""`adapter_config.json`: which layers an adapter of PEFT's has factors on and what else it holds, read and written.

Checked against PEFT 0.21: names match as in its `check_target_module_exists`, `get_pattern_key` and `_set_trainable`.
"""

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from gptclf.checks import boolean, choice, integer, number
from gptclf.gpt2.config import GPT2Config
from gptclf.saving.adapter_record import Factors
from gptclf.weights.hugging_face import trunk_names

logger = logging.getLogger(__name__)

SEQ_CLS = "SEQ_CLS"
_TASKS = (SEQ_CLS, "CAUSAL_LM", "FEATURE_EXTRACTION", None)
# Their layers that multiply by a matrix, those of heads first.
_MATRICES = ("score", "lm_head", "attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
# The layers that PEFT saves with any adapter for classification.
_HEADS = ("classifier", "score")

# Keys that turn LoRA into another method or put it elsewhere, and what they mean.
_OTHER_METHODS = {
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "use_bdlora": "BD-LoRA",
    "alora_invocation_tokens": "aLoRA",
    "arrow_config": "Arrow",
    "kasa_config": "KaSA",
    "velora_config": "VeLoRA",
    "monteclora_config": "MonteCLoRA",
    "megatron_config": "layers of Megatron",
    "trainable_token_indices": "trainable tokens",
    "target_parameters": "factors on parameters instead of layers",
    "layer_replication": "replicated layers",
}
# Ways to draw the factors that also change the base's weights, which the folder does not hold.
_CHANGED_BASE = re.compile(r"(pissa|corda|olora|loftq|lora_ga).*", re.IGNORECASE)
# The other keys: those read below, then those without an effect on the answers of a trained adapter.
_KNOWN = (
    "alpha_pattern base_model_name_or_path bias exclude_modules fan_in_fan_out init_lora_weights layers_pattern "
    "layers_to_transform lora_alpha lora_bias lora_dropout modules_to_save peft_type r rank_pattern revision "
    "target_modules task_type use_rslora "
    "auto_mapping corda_config ensure_weight_tying eva_config inference_mode loftq_config lora_ga_config megatron_core "
    "peft_version qalora_group_size runtime_config"
)


class Contents(NamedTuple):
    """What an adapter holds, by names without factors.

    Attributes:
        layers: The options of each layer with factors, by its name.
        extras: Names of other tensors of the trunk, or of an untied language-model head.
    """

    layers: dict[str, Factors]
    extras: list[str]


def layer_names(config: GPT2Config, head: str) -> dict[str, str]:
    """Return the names in Hugging Face's layout of all layers with parameters, by our names.

    Args:
        config: The model's shape.
        head: The name in their layout of the head's output layer; "" if it has none of its own.
    """
    table = trunk_names(config.n_layers)
    names = {layer_of(ours): f"transformer.{layer_of(theirs)}" for ours, (theirs, _) in table.items()}
    return names | ({"head.output": head} if head else {})


def peft_names(names: Iterable[str], config: GPT2Config, head: str) -> dict[str, tuple[str, bool]]:
    """Return PEFT's name (without "base_model.model."), and whether transposed, for parameters of a model with factors.

    Example:
        >>> peft_names(["trunk.blocks.0.mlp.up.lora_A.weight", "head.output.weight"], GPT2Config(), "score")
        {'trunk.blocks.0.mlp.up.lora_A.weight': ('transformer.h.0.mlp.c_fc.lora_A.weight', False),
        'head.output.weight': ('score.weight', False)}
    """
    layers, table = layer_names(config, head), trunk_names(config.n_layers)
    found = {}
    for name in names:
        path, inner, kind = re.fullmatch(r"(.*?)((?:\.base|\.lora_[AB])?)\.(\w+)", name).groups()  # type: ignore[union-attr]
        inner = ".base_layer" if inner == ".base" else inner
        found[name] = (f"{layers[path]}{inner}.{kind}", not inner and table.get(name, ("", False))[1])
    return found


@dataclass(frozen=True)
class PeftConfig:
    """The values of an `adapter_config.json` that decide what a plain LoRA adapter computes, checked."""

    task: str | None
    base: str | None
    revision: str | None
    rank: int
    alpha: float
    targets: str | list[str]
    excluded: str | list[str]
    layers: list[int]
    layers_pattern: list[str]
    ranks: dict[str, int]
    alphas: dict[str, float]
    rslora: bool
    dropout: float
    bias: str
    lora_bias: bool
    fan_in_fan_out: bool | None
    saved: list[str]

    def contents(self, names: Mapping[str, str], parameters: Iterable[str], prefix: str = "") -> Contents:
        """Return what the adapter holds on a model.

        Args:
            names: The names of layers in Hugging Face's layout, by ours (`layer_names`).
            parameters: The names of the model's parameters.
            prefix: The start of their names that the adapter's own names lack.
        """
        keys = {ours: theirs.removeprefix(prefix) for ours, theirs in names.items()}
        if embeddings := [key for key in keys.values() if key.endswith(("wte", "wpe")) and _named(self.targets, key)]:
            raise ValueError(
                f"target_modules names {embeddings[0]}, an embedding; gptclf has factors on matrices alone"
            )
        layers = {ours: self._factors(key) for ours, key in keys.items() if self._is_target(key)}
        whole = {ours for ours, key in keys.items() if any(_is_below(key, name) for name in self.saved)}
        biased = {"all": set(names), "lora_only": set(layers), "none": set[str]()}[self.bias]
        return Contents(
            layers,
            [
                name
                for name in parameters
                if layer_of(name) in (biased if name.endswith(".bias") else ()) or layer_of(name) in whole
            ],
        )

    def _factors(self, key: str) -> Factors:
        rank, alpha = self.ranks.get(_first(self.ranks, key), self.rank), self.alphas.get(_first(self.alphas, key))
        scaling = "alpha/sqrt(rank)" if self.rslora else "alpha/rank"
        return Factors(rank, self.alpha if alpha is None else alpha, scaling, self.dropout, self.lora_bias)

    def _is_target(self, key: str) -> bool:
        if not key.endswith(_MATRICES) or _named(self.excluded, key):
            return False
        if any(re.match(rf"(^|.*\.){name}($|\..*)", key) for name in self.saved):
            return False
        if isinstance(self.targets, str) and self.targets.lower() == "all-linear":
            return key not in _MATRICES[:2]
        if isinstance(self.targets, str) or key in self.targets or not self.layers:
            return _named(self.targets, key)
        patterns = [rf"(?:^|.*?\.){name}\.(?P<number>\d+)\." for name in self.layers_pattern]
        found = [re.match(pattern, key) for pattern in patterns or [r".*?\.[^.]*\.(?P<number>\d+)\."]]
        block = next((int(match["number"]) for match in found if match), None)
        return _named(self.targets, key) and block in self.layers


def read_peft_config(values: Mapping[str, Any]) -> PeftConfig:
    """Return the checked values of an `adapter_config.json`; missing ones take PEFT's defaults.

    Raises:
        ValueError: The adapter is of another method than LoRA, or a value is out of range or no regular expression.
        TypeError: A value has a wrong type.
    """
    method = values.get("peft_type")
    if method != "LORA":
        raise ValueError(f"peft_type is {method!r}; gptclf loads LoRA adapters only")
    for key, what in _OTHER_METHODS.items():
        if values.get(key):
            raise ValueError(
                f"{key} is {values[key]!r}: {what} is another method than LoRA, which gptclf does not load"
            )
    drawn = values.get("init_lora_weights", True)
    if isinstance(drawn, str) and _CHANGED_BASE.fullmatch(drawn):
        problem = f"init_lora_weights is {drawn!r}, which changes the base's weights; the folder does not hold them"
        raise ValueError(f"{problem}. Convert it with PEFT: save_pretrained(path_initial_model_for_weight_conversion=)")
    given = {key: value for key, value in values.items() if value is not None}
    task = values.get("task_type")
    if task not in _TASKS:
        raise ValueError(f"task_type is {task!r}; gptclf loads {', '.join(map(repr, _TASKS[:-1]))}")
    blocks = given.get("layers_to_transform", [])
    saved = _strings("modules_to_save", given.get("modules_to_save", []))
    config = PeftConfig(
        task=task,
        base=_text(given, "base_model_name_or_path"),
        revision=_text(given, "revision"),
        rank=integer("r", given.get("r", 8), 1),
        alpha=number("lora_alpha", given.get("lora_alpha", 8), least=-float("inf")),
        targets=_patterns("target_modules", given.get("target_modules", ["c_attn"])),
        excluded=_patterns("exclude_modules", given.get("exclude_modules", [])),
        layers=[integer("layers_to_transform", i) for i in (blocks if isinstance(blocks, list) else [blocks])],
        layers_pattern=_strings("layers_pattern", given.get("layers_pattern", [])),
        ranks={key: integer("rank_pattern", r, 1) for key, r in _table(given, "rank_pattern").items()},
        alphas={
            key: number("alpha_pattern", a, least=-float("inf")) for key, a in _table(given, "alpha_pattern").items()
        },
        rslora=boolean("use_rslora", given.get("use_rslora", False)),
        dropout=number("lora_dropout", given.get("lora_dropout", 0.0), most=1),
        bias=choice("bias", given.get("bias", "none"), ("none", "all", "lora_only")),
        lora_bias=boolean("lora_bias", given.get("lora_bias", False)),
        fan_in_fan_out=given.get("fan_in_fan_out"),
        saved=[*saved, *(_HEADS if task == SEQ_CLS else ())],
    )
    for key, patterns in (("modules_to_save", config.saved), ("layers_pattern", config.layers_pattern)):
        _check_compiles(key, patterns)
    _check_compiles("rank_pattern", config.ranks)
    _check_compiles("alpha_pattern", config.alphas)
    unknown = [key for key, value in values.items() if value and key not in {*_OTHER_METHODS, *_KNOWN.split()}]
    if unknown:
        logger.warning("gptclf does not know these keys of the adapter and ignores them: %s", ", ".join(unknown))
    return config


def layer_of(name: str) -> str:
    """Return the name of the layer that a parameter belongs to."""
    return name.rpartition(".")[0]


def _first(patterns: Iterable[str], key: str) -> str:
    return next((pattern for pattern in patterns if re.match(rf"(.*\.)?({pattern})$", key)), "")


def _named(patterns: str | list[str], key: str) -> bool:
    """Return True if a regular expression matches a name, or a list holds it or the end of it."""
    if isinstance(patterns, str):
        return re.fullmatch(patterns, key) is not None
    return key in patterns or key.endswith(tuple(f".{name}" for name in patterns))


def _is_below(key: str, end: str) -> bool:
    """Return True if the name of a layer, or of one that contains it, ends like this."""
    parts = key.split(".")
    return any(".".join(parts[: i + 1]).endswith(end) for i in range(len(parts)))


def _patterns(key: str, value: Any) -> str | list[str]:
    if isinstance(value, str):
        _check_compiles(key, [value])
        return value
    return _strings(key, value)


def _strings(key: str, value: Any) -> list[str]:
    found = [value] if isinstance(value, str) and value else value
    if found and not (isinstance(found, list) and all(isinstance(name, str) and name for name in found)):
        raise TypeError(f"{key} is {value!r}; it must be a list of names")
    return list(found)


def _table(given: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = given.get(key, {})
    if not isinstance(value, dict):
        raise TypeError(f"{key} is {value!r}; it must be an object")
    return value


def _text(given: Mapping[str, Any], key: str) -> str | None:
    value = given.get(key)
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{key} is {value!r}; it must be a string")
    return value or None


def _check_compiles(key: str, patterns: Iterable[str]) -> None:
    for pattern in patterns:
        try:
            re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(f"{key} holds {pattern[:60]!r}, which is not a regular expression: {error}") from error
