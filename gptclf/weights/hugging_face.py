"""Converting parameters and configurations between gptclf and Hugging Face.

Hugging Face keeps OpenAI's Conv1D layout, (in, out), the transpose of `nn.Linear`; gptclf uses it only here.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from gptclf.gpt2.config import GPT2Config
from gptclf.weights.guess import guess_from_config, guess_from_tensors

# Our name after `trunk.blocks.N.`, theirs after `h.N.`, and whether one matrix is the transpose of the other.
_BLOCK = (
    ("norm1.weight", "ln_1.weight", False),
    ("norm1.bias", "ln_1.bias", False),
    ("attention.qkv.weight", "attn.c_attn.weight", True),
    ("attention.qkv.bias", "attn.c_attn.bias", False),
    ("attention.out.weight", "attn.c_proj.weight", True),
    ("attention.out.bias", "attn.c_proj.bias", False),
    ("norm2.weight", "ln_2.weight", False),
    ("norm2.bias", "ln_2.bias", False),
    ("mlp.up.weight", "mlp.c_fc.weight", True),
    ("mlp.up.bias", "mlp.c_fc.bias", False),
    ("mlp.down.weight", "mlp.c_proj.weight", True),
    ("mlp.down.bias", "mlp.c_proj.bias", False),
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


def trunk_names(n_layers: int) -> dict[str, tuple[str, bool]]:
    """Return (Hugging Face's name without prefix, whether transposed) for the name of each trunk parameter."""
    table = {ours: (theirs, False) for ours, theirs in _ENDS}
    for i in range(n_layers):
        table |= {f"trunk.blocks.{i}.{ours}": (f"h.{i}.{theirs}", flip) for ours, theirs, flip in _BLOCK}
    return table


def from_hugging_face(
    tensors: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    n_layers: int,
    *,
    source: str,
    without: Collection[str] = (),
) -> dict[str, Tensor]:
    """Convert tensors to our names and layout, in float32. They are views if their type and layout allow it.

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
    found: dict[str, str] = {}
    twice = []
    for name in tensors:
        if not _MASKS.fullmatch(name):
            plain = name.removeprefix("transformer.")
            twice += [name] if plain in found else []
            found[plain] = name
    head = _head_name(tensors, found, shapes.get("head.output.weight"))
    names = {**trunk_names(n_layers), "head.output.weight": (head, False)}
    shapes = {ours: shape for ours, shape in shapes.items() if ours not in without}
    missing = [names[ours][0] for ours in shapes if names[ours][0] not in found]
    # Tensors that may be present but are not needed: the language-model head of a classifier, a second copy of a tied
    # matrix, and the zeros that Hugging Face's layout has in place of a missing query/key/value bias.
    spare = {"lm_head.weight"}
    spare |= {names[ours][0] for ours in names if ours.endswith("qkv.bias") and ours not in shapes}
    spare |= {names[ours][0] for ours in without if ours in names}
    unexpected = [found[name] for name in found if name not in spare | {names[ours][0] for ours in shapes}]
    misshapen, result = [], {}
    for ours, shape in shapes.items():
        theirs, flip = names[ours]
        if theirs not in found:
            continue
        tensor = tensors[found[theirs]]
        want = shape[::-1] if flip else shape
        if tuple(tensor.shape) != want or not tensor.is_floating_point():
            misshapen.append(f"{found[theirs]} is {tensor.dtype} {tuple(tensor.shape)}, the configuration needs {want}")
            continue
        # Master weights are float32, whatever the type in the file.
        result[ours] = (tensor.t() if flip else tensor).to(torch.float32)
    check_tensors(source, found, missing=missing, unexpected=unexpected, misshapen=misshapen, twice=twice)
    if "head.output.weight" not in shapes and "lm_head.weight" in found:
        _check_tied(tensors[found["lm_head.weight"]], tensors[found["wte.weight"]], source)
    return result


def _head_name(tensors: Mapping[str, Tensor], found: Mapping[str, str], shape: tuple[int, ...] | None) -> str:
    names = [name for name in ("score.weight", "lm_head.weight") if name in found]
    fitting = [name for name in names if tuple(tensors[found[name]].shape) == shape]
    return [*fitting, *names, "lm_head.weight"][0]


def _check_tied(head: Tensor, embedding: Tensor, source: str) -> None:
    # Loaded under both names, the output matrix would be the one that came last.
    if not torch.equal(head, embedding):
        raise ValueError(
            f"{source} holds an lm_head.weight that differs from its wte.weight, but its configuration ties the two. "
            'If the model is untied, write "tie_word_embeddings": false into config.json; otherwise remove the tensor'
        )


def to_hugging_face(parameters: Mapping[str, Tensor], config: GPT2Config) -> dict[str, Tensor]:
    """Convert trunk parameters to Hugging Face's names (prefix `transformer.`) and layout, contiguous, on the CPU."""
    result = {}
    for ours, (theirs, flip) in trunk_names(config.n_layers).items():
        # Their layout always has this bias; zeros give the same result.
        absent = ours.endswith("qkv.bias") and not config.qkv_bias
        tensor = torch.zeros(3 * config.emb_dim) if absent else parameters[ours].detach()
        result["transformer." + theirs] = (tensor.t() if flip else tensor).cpu().contiguous()
    return result


def check_tensors(source: str, names: Collection[str], **problems: list[str]) -> None:
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
        raise ValueError(f"{source} does not hold this GPT-2: {'; '.join(parts)}{'. ' + guess if guess else ''}")


def config_from_hugging_face(values: Mapping[str, Any], *, source: str) -> GPT2Config:
    """Convert the content of a `config.json` to a configuration.

    Keys that change the computation are either converted or refused by name. Dropout is the caller's choice in training
    and does not belong to the weights, so the three rates in the file are ignored.

    Raises:
        ValueError: The file describes another architecture, an unsupported variant of GPT-2, or lacks a size.
    """
    model_type = values.get("model_type", "gpt2")
    if model_type != "gpt2":
        guess = guess_from_config(model_type)
        raise ValueError(
            f"{source} describes a {model_type!r} model; gptclf loads GPT-2 (model_type 'gpt2')"
            f"{'. ' + guess if guess else ''}"
        )
    refused = {
        "add_cross_attention": "cross-attention to an encoder",
        "pruned_heads": "pruned attention heads",
        "quantization_config": "quantized weights",
    }
    for key, what in refused.items():
        if values.get(key):
            raise ValueError(f"{source} sets {key} = {values[key]!r}: gptclf does not support {what}")
    if values.get("is_causal") is False:
        raise ValueError(f"{source} sets is_causal = False: gptclf's attention is always causal")
    activation = values.get("activation_function", "gelu_new")
    if not isinstance(activation, str) or activation not in _ACTIVATIONS:
        raise ValueError(
            f"{source} sets activation_function = {activation!r}; gptclf supports {', '.join(_ACTIVATIONS)}"
        )
    missing = [key for key in ("n_embd", "n_head", "n_layer") if key not in values]
    if missing:
        made_for = values.get("architectures")
        raise ValueError(
            f"{source} lacks {', '.join(missing)}; it is not the config.json of a GPT-2"
            f"{f'. It names {made_for}' if made_for else ''}"
        )
    # reorder_and_upcast_attn only moves a scaling in half precision; in float32 the result is the same.
    return GPT2Config(
        vocab_size=values.get("vocab_size", 50257),
        context_length=values.get("n_positions", values.get("n_ctx", 1024)),
        emb_dim=values["n_embd"],
        n_heads=values["n_head"],
        n_layers=values["n_layer"],
        mlp_dim=values.get("n_inner"),
        activation=_ACTIVATIONS[activation],
        norm_eps=values.get("layer_norm_epsilon", 1e-5),
        scale_attention=values.get("scale_attn_weights", True),
        scale_attention_by_layer=values.get("scale_attn_by_inverse_layer_idx", False),
        tied=values.get("tie_word_embeddings", True),
        init_std=values.get("initializer_range", 0.02),
    )


def config_to_hugging_face(config: GPT2Config, end_of_text: int) -> dict[str, Any]:
    """Return the keys of a `config.json` that are the same for every head."""
    activation = next(theirs for theirs, ours in _ACTIVATIONS.items() if ours == config.activation)
    return {
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_positions": config.context_length,
        "n_ctx": config.context_length,
        "n_embd": config.emb_dim,
        "n_head": config.n_heads,
        "n_layer": config.n_layers,
        "n_inner": config.mlp_dim,
        "activation_function": activation,
        "layer_norm_epsilon": config.norm_eps,
        "scale_attn_weights": config.scale_attention,
        "scale_attn_by_inverse_layer_idx": config.scale_attention_by_layer,
        "reorder_and_upcast_attn": False,
        "add_cross_attention": False,
        "tie_word_embeddings": config.tied,
        "initializer_range": config.init_std,
        "resid_pdrop": config.drop_rate,
        "embd_pdrop": config.drop_rate,
        "attn_pdrop": config.drop_rate,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "pad_token_id": end_of_text,
        "use_cache": True,
        "dtype": "float32",
    }
