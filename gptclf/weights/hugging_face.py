"""Converting parameters and configurations between gptclf and Hugging Face.

Hugging Face keeps OpenAI's Conv1D layout, (in, out), the transpose of `nn.Linear`; gptclf uses it only here.
"""

import re
from collections.abc import Collection, Mapping
from itertools import product
from typing import Any

import torch
from torch import Tensor

from gptclf.gpt2.config import GPT2Config
from gptclf.gpt2.quantized import PACKED
from gptclf.weights.bitsandbytes_layout import check_quantization, packed_names, packed_to_theirs, take_packed
from gptclf.weights.guess import guess_from_config, guess_from_tensors

# Our module after `trunk.blocks.N.`, theirs after `h.N.`, and whether one matrix is the transpose of the other.
_BLOCK = (
    ("norm1", "ln_1", False),
    ("attention.qkv", "attn.c_attn", True),
    ("attention.out", "attn.c_proj", True),
    ("norm2", "ln_2", False),
    ("mlp.up", "mlp.c_fc", True),
    ("mlp.down", "mlp.c_proj", True),
)
_ENDS = (
    ("trunk.embed.token.weight", "wte.weight"),
    ("trunk.embed.position.weight", "wpe.weight"),
    ("trunk.norm.weight", "ln_f.weight"),
    ("trunk.norm.bias", "ln_f.bias"),
)

# Causal-mask buffers in files of older releases; they are constants of the architecture.
_MASKS = re.compile(r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)")

_ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}

# Their keys in a config.json and our names, for values with the same meaning.
_KEYS = {
    "vocab_size": "vocab_size",
    "n_positions": "context_length",
    "n_embd": "emb_dim",
    "n_head": "n_heads",
    "n_layer": "n_layers",
    "n_inner": "mlp_dim",
    "layer_norm_epsilon": "norm_eps",
    "scale_attn_weights": "scale_attention",
    "scale_attn_by_inverse_layer_idx": "scale_attention_by_layer",
    "tie_word_embeddings": "tied",
    "initializer_range": "init_std",
}

# A model that lacks tensors is described by their names, which needs its blocks; more than these are never meant.
_SPARE_BLOCKS = 100
_MOST_NUMBERS = 1 << 50

# Keys of a config.json that change the computation in a way that gptclf does not support.
_REFUSED = {"add_cross_attention": "cross-attention to an encoder", "pruned_heads": "pruned attention heads"}


def trunk_names(n_layers: int) -> dict[str, tuple[str, bool]]:
    """Return (Hugging Face's name without prefix, whether transposed) for the name of each trunk parameter."""
    table = {ours: (theirs, False) for ours, theirs in _ENDS}
    for i, (ours, theirs, flip) in product(range(n_layers), _BLOCK):
        table[f"trunk.blocks.{i}.{ours}.weight"] = (f"h.{i}.{theirs}.weight", flip)
        table[f"trunk.blocks.{i}.{ours}.bias"] = (f"h.{i}.{theirs}.bias", False)
    return table


def trunk_shapes(config: GPT2Config) -> dict[str, tuple[int, ...]]:
    """Return the shape of each trunk parameter by our names, with the biases of query, key and value."""
    V, T, D, inner = config.vocab_size, config.context_length, config.emb_dim, config.hidden_dim
    matrices = {"token": (V, D), "position": (T, D), "qkv": (3 * D, D), "up": (inner, D), "down": (D, inner)}
    shapes: dict[str, tuple[int, ...]] = {}
    for name in trunk_names(config.n_layers):
        *_, module, kind = name.split(".")
        shape = (D,) if module.startswith("norm") else matrices.get(module, (D, D))
        shapes[name] = shape if kind == "weight" else shape[:1]
    return shapes


def from_hugging_face(
    tensors: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    n_layers: int,
    *,
    source: str,
    without: Collection[str] = (),
) -> dict[str, Tensor]:
    """Convert tensors to our names and layout, in float32 or quantised. They are views if type and layout allow it.

    Args:
        tensors: The tensors in the file, with or without the prefix `transformer.`; mask buffers are ignored.
        shapes: The expected shapes by our names. "head.output.weight" is the matrix of a classifier (`score.weight`)
            or of an untied language model (`lm_head.weight`), whichever has that shape in the file.
        n_layers: Number of blocks (L).
        source: The file or folder, for messages.
        without: Parameters to leave out, by our names; the file may hold them.

    Raises:
        ValueError: Tensors are missing, unexpected or misshapen; the message lists them.
    """
    in_file: dict[str, str] = {}
    twice = []
    for name in tensors:
        if not _MASKS.fullmatch(name):
            plain = name.removeprefix("transformer.")
            twice += [name] if plain in in_file else []
            in_file[plain] = name
    found = {plain: tensors[name] for plain, name in in_file.items()}
    packed: dict[str, Tensor] = {}
    for ours, (theirs, flip) in trunk_names(n_layers).items():
        if flip and ours not in without:
            parts = take_packed(found, theirs, shapes[ours], source)
            packed |= {ours.removesuffix("weight") + part: tensor for part, tensor in parts.items()}
    without = {*without, *packed_names(packed)[0]}
    heads = [name for name in ("score.weight", "lm_head.weight") if name in found]
    fitting = [name for name in heads if tuple(found[name].shape) == shapes.get("head.output.weight")]
    names = {**trunk_names(n_layers), "head.output.weight": ([*fitting, *heads, "lm_head.weight"][0], False)}
    # Tensors that may be present but are not needed: the language-model head of a classifier, a second copy of a tied
    # matrix, and the zeros that Hugging Face's layout has in place of a missing query/key/value bias.
    spare = {"lm_head.weight"}
    spare |= {theirs for ours, (theirs, _) in names.items() if ours.endswith("qkv.bias") or ours in without}
    needed = {ours: names[ours] for ours in shapes if ours not in without}
    wanted = {theirs: shapes[ours][::-1] if flip else shapes[ours] for ours, (theirs, flip) in needed.items()}
    check_shapes(source, found, wanted, spare, in_file, twice=twice)
    # A tied matrix under both names: if the two differed, whichever was loaded last would count.
    tied = "head.output.weight" not in needed and "lm_head.weight" in found
    if tied and not torch.equal(found["lm_head.weight"], found["wte.weight"]):
        raise ValueError(
            f"{source} holds an lm_head.weight that differs from its wte.weight, but its configuration ties the two. "
            'If the model is untied, write "tie_word_embeddings": false into config.json; otherwise remove the tensor'
        )
    # Master weights are float32, whatever the type in the file.
    floats = {ours: (found[name].t() if flip else found[name]).float() for ours, (name, flip) in needed.items()}
    return floats | packed


def check_size(config: GPT2Config, tensors: Collection[str], source: str) -> None:
    """Raise if a configuration claims far more blocks than there are tensors, before a model of that size is made."""
    width, wide = config.emb_dim, max(config.emb_dim, config.vocab_size, config.context_length, config.hidden_dim)
    if config.n_layers > len(tensors) + _SPARE_BLOCKS or config.n_layers * width * wide > _MOST_NUMBERS:
        what = f"{config.n_layers:,} blocks of width {width:,}, with up to {wide:,} rows"
        problem = f"{source} describes a model of {what}, but its weights are {len(tensors)} tensors"
        raise ValueError(f"{problem}; a file is damaged, or they do not belong together")


def to_hugging_face(parameters: Mapping[str, Tensor], config: GPT2Config) -> dict[str, Tensor]:
    """Convert trunk parameters to Hugging Face's names (prefix `transformer.`) and layout, contiguous, on the CPU."""
    result: dict[str, Tensor] = {}
    shapes = trunk_shapes(config)
    for ours, (theirs, flip) in trunk_names(config.n_layers).items():
        beside = ours.removesuffix("weight")
        found = {part: parameters.get(beside + part) for part in PACKED}
        packed = {part: tensor.detach().cpu().contiguous() for part, tensor in found.items() if tensor is not None}
        if packed:
            result |= packed_to_theirs("transformer." + theirs, packed, shapes[ours])
            continue
        # Their layout always has this bias; zeros give the same result.
        absent = ours.endswith("qkv.bias") and not config.qkv_bias
        zeros = torch.zeros(3 * config.emb_dim, dtype=torch.float32, device="cpu")
        tensor = zeros if absent else parameters[ours].detach()
        result["transformer." + theirs] = (tensor.t() if flip else tensor).cpu().contiguous()
    return result


def check_shapes(
    source: str,
    found: Mapping[str, Tensor],
    wanted: Mapping[str, tuple[int, ...]],
    spare: Collection[str] = (),
    in_file: Mapping[str, str] | None = None,
    **problems: list[str],
) -> None:
    """Raise a ValueError unless tensors have the wanted names and shapes, and are of a floating-point type.

    Args:
        source: The file, for the message.
        found: The tensors.
        wanted: The shapes.
        spare: Names that may be present although they are not wanted.
        in_file: The names of the tensors in the file, if they differ.
        **problems: More problems, as in `check_tensors`.
    """
    problems |= shape_problems(found, wanted, spare, in_file)
    check_tensors(source, found, "hold this GPT-2", **problems)


def shape_problems(
    found: Mapping[str, Tensor],
    wanted: Mapping[str, tuple[int, ...]],
    spare: Collection[str] = (),
    in_file: Mapping[str, str] | None = None,
) -> dict[str, list[str]]:
    """Return the tensors that are missing, unexpected and misshapen; the arguments are those of `check_shapes`."""
    names = {name: name for name in found} if in_file is None else in_file
    misshapen = [
        f"{names[name]} is {found[name].dtype} {tuple(found[name].shape)} instead of floats {shape}"
        for name, shape in wanted.items()
        if name in found and (tuple(found[name].shape) != shape or not found[name].is_floating_point())
    ]
    missing = [name for name in wanted if name not in found]
    unexpected = [names[name] for name in found if name not in wanted and name not in spare]
    return {"missing": missing, "unexpected": unexpected, "misshapen": misshapen}


def check_tensors(source: str, names: Collection[str], /, what: str = "hold this GPT-2", **problems: list[str]) -> None:
    """Raise a ValueError that lists the problems by kind and guesses which architecture has these names.

    Example:
        >>> check_tensors("a.pth", ["bert.pooler.bias"], missing=["wte.weight"], unexpected=["bert.pooler.bias"])
        Traceback (most recent call last):
        ValueError: a.pth does not hold this GPT-2: 1 missing: wte.weight; 1 unexpected: bert.pooler.bias. The names
        look like BERT's; gptclf loads GPT-2
    """
    # If a tensor is missing in one block it is often missing in all: the first few show the pattern.
    parts = [
        f"{len(found)} {kind}: {', '.join(found[:6])}{', ...' if len(found) > 6 else ''}"
        for kind, found in problems.items()
        if found
    ]
    if parts:
        guess = guess_from_tensors(names)
        raise ValueError(f"{source} does not {what}: {'; '.join(parts)}{'. ' + guess if guess else ''}")


def config_from_hugging_face(values: Mapping[str, Any], *, source: str) -> GPT2Config:
    """Convert the content of a `config.json` to a configuration.

    Keys that change the computation are either converted or refused by name. Dropout is the caller's choice in training
    and does not belong to the weights, so the three rates in the file are ignored.

    Raises:
        ValueError: The file describes another architecture, an unsupported variant of GPT-2, or lacks a size.
    """
    model_type = values.get("model_type", "gpt2")
    if model_type != "gpt2":
        message = f"{source} describes a {model_type!r} model; gptclf loads GPT-2. {guess_from_config(model_type)}"
        raise ValueError(message.removesuffix(". "))
    for key, what in _REFUSED.items():
        if values.get(key):
            raise ValueError(f"{source} sets {key} = {values[key]!r}: gptclf does not support {what}")
    if values.get("quantization_config"):
        check_quantization(values["quantization_config"], source)
    if values.get("is_causal") is False:
        raise ValueError(f"{source} sets is_causal = False: gptclf's attention is always causal")
    activation = values.get("activation_function", "gelu_new")
    if not isinstance(activation, str) or activation not in _ACTIVATIONS:
        supported = ", ".join(_ACTIVATIONS)
        raise ValueError(f"{source} sets activation_function = {activation!r}; gptclf supports {supported}")
    missing = [key for key in ("n_embd", "n_head", "n_layer") if key not in values]
    if missing:
        names = f". It names {values['architectures']}" if values.get("architectures") else ""
        raise ValueError(f"{source} lacks {', '.join(missing)}; it is not the config.json of a GPT-2{names}")
    # reorder_and_upcast_attn only moves a scaling in half precision; in float32 the result is the same.
    given = {"n_positions": values["n_ctx"], **values} if "n_ctx" in values else values
    same = {ours: given[theirs] for theirs, ours in _KEYS.items() if theirs in given}
    try:
        return GPT2Config(activation=_ACTIVATIONS[activation], **same)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{source}: {error}") from error


def config_to_hugging_face(config: GPT2Config, end_of_text: int) -> dict[str, Any]:
    """Return the keys of a `config.json` that are the same for every head."""
    activation = next(theirs for theirs, ours in _ACTIVATIONS.items() if ours == config.activation)
    return {
        "model_type": "gpt2",
        **{theirs: getattr(config, ours) for theirs, ours in _KEYS.items()},
        "n_ctx": config.context_length,
        "activation_function": activation,
        "reorder_and_upcast_attn": False,
        "add_cross_attention": False,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), config.drop_rate),
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), end_of_text),
        "use_cache": True,
        "dtype": "float32",
    }
