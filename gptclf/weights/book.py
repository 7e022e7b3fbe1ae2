"""Converting parameters between gptclf and the book's `GPTModel`, both ways.

Raschka, "Build a Large Language Model (From Scratch)", sections 3.6 and 4.1 to 4.6; section 6.5 replaces `out_head`.
The book has separate query, key and value matrices, an untied output matrix, and the causal mask as a buffer of every
block.
"""

import re
from collections.abc import Collection, Mapping
from itertools import product
from typing import Any

import torch
from torch import Tensor

from gptclf.gpt2.config import PRESETS, GPT2Config
from gptclf.weights.hugging_face import check_shapes, check_tensors, trunk_names, trunk_shapes

# Our modules and the book's; both use the layout of nn.Linear. The block norms have the same name.
_MODULES = {
    "trunk.blocks": "trf_blocks",
    "trunk.embed.token": "tok_emb",
    "trunk.embed.position": "pos_emb",
    "trunk.norm": "final_norm",
    "attention.out": "att.out_proj",
    "mlp.up": "ff.layers.0",
    "mlp.down": "ff.layers.2",
}
# In the order of their rows in our fused matrix.
_QKV = ("att.W_query", "att.W_key", "att.W_value")

# Names in the book's faster variant, `GPTModelFast` (nn.LayerNorm, fused query, key and value), to the usual ones.
_FAST = (
    (r"(norm1|norm2|final_norm)\.weight$", r"\1.scale"),
    (r"(norm1|norm2|final_norm)\.bias$", r"\1.shift"),
    (r"att\.proj\.(weight|bias)$", r"att.out_proj.\1"),
)

_HEADS = {config.emb_dim: config.n_heads for name, config in PRESETS.items() if name != "nano"}


def is_book(names: Collection[str]) -> bool:
    """Return True if tensors with these names belong to the book's `GPTModel`.

    Example:
        >>> is_book(["tok_emb.weight", "pos_emb.weight", "trf_blocks.0.norm1.scale"]), is_book(["wte.weight"])
        (True, False)
    """
    return "tok_emb.weight" in names and any(name.startswith("trf_blocks.") for name in names)


def read_book(
    tensors: Mapping[str, Tensor], config: GPT2Config | Mapping[str, Any] | None = None, *, source: str
) -> tuple[GPT2Config, dict[str, Tensor], int | None]:
    """Convert the state dict of a `GPTModel` to a configuration and tensors under our names.

    Sizes are inferred from the shapes of the tensors, except the number of heads: it comes from `config` or, without
    one, from the published size of this width (768, 1024, 1280 or 1600). An `out_head` with as many rows as the
    vocabulary belongs to a language model; any other, with or without a bias, is the classifier of chapter 6. That
    classifier reads the last column of rows padded with token 50256 to a common length, so its texts should be
    prepared with `pad_to`.

    Args:
        tensors: The state dict, of any floating-point type.
        config: Values that cannot be inferred from the tensors, under the book's keys (`n_heads`, `drop_rate`, ...);
            other values must agree with the tensors. The book's output matrix is never tied, so the model is not,
            unless `config` says so and the matrix equals the embedding bit for bit.
        source: The file, for messages.

    Returns:
        The configuration; float32 tensors under our names (a head with a bias has a "head.output.bias"); and the
        number of classes, None for a language model.

    Raises:
        ValueError: Tensors are missing, unexpected or misshapen (the message lists them), or a size that the tensors
            do not tell is missing from `config`.

    Example:
        >>> small = GPT2Config(vocab_size=9, context_length=4, emb_dim=6, n_heads=2, n_layers=1, tied=False)
        >>> from gptclf.gpt2.model import GPT2
        >>> there = to_book(dict(GPT2(small, seed=1).named_parameters()), small)
        >>> config, ours, classes = read_book(there, {"n_heads": 2}, source="model.pth")
        >>> config == small, classes, ours["trunk.blocks.0.attention.qkv.weight"].shape
        (True, None, torch.Size([18, 6]))
    """
    found = _plain_names(tensors, source)
    seen, classes = _sizes(found, source)
    complete = _configure(seen, config, source)
    if classes is None and complete.tied and not torch.equal(found["out_head.weight"], found["tok_emb.weight"]):
        complete = complete.replace(tied=False)
    masks = [name for name in found if name.endswith(".att.mask")]
    check_shapes(source, found, _shapes(complete, classes, with_bias="out_head.bias" in found), masks)
    for name in masks:
        _check_mask(found[name], complete.context_length, f"{source}: {name}")
    # Master weights are float32, whatever the type in the file.
    result = {ours: found[theirs].to(torch.float32) for ours, theirs in _plain_table(complete.n_layers).items()}
    for i in range(complete.n_layers):
        for kind in ("weight", "bias") if complete.qkv_bias else ("weight",):
            parts = [found[f"trf_blocks.{i}.{part}.{kind}"] for part in _QKV]
            result[f"trunk.blocks.{i}.attention.qkv.{kind}"] = torch.cat(parts).to(torch.float32)
    if classes is not None or not complete.tied:
        heads = [name for name in ("out_head.weight", "out_head.bias") if name in found]
        # A file may hold one tensor as both matrices, which the model trains and saves as two.
        shared = found["out_head.weight"].data_ptr() == found["tok_emb.weight"].data_ptr()
        theirs = {name.replace("out_head", "head.output"): found[name] for name in heads}
        result |= {name: tensor.to(torch.float32, copy=shared) for name, tensor in theirs.items()}
    return complete, result, classes


def to_book(tensors: Mapping[str, Tensor], config: GPT2Config) -> dict[str, Tensor]:
    """Convert the parameters of a model to the state dict of the book's `GPTModel`, for a strict `load_state_dict`.

    For a classifier, replace the head of the `GPTModel` first, as in chapter 6: `model.out_head = nn.Linear(D, C)`.
    That layer has a bias, which is set to 0 if ours has none. The book's classifier reads the last column, so it gives
    our answers if our head pools "last" and rows are not padded.

    Args:
        tensors: The parameters by our names, as in `dict(model.named_parameters())`.
        config: The configuration of the model.

    Returns:
        Tensors on the CPU, causal masks included. A tensor that needs no conversion is shared, not copied.

    Raises:
        ValueError: The book's class cannot compute this model.

    Example:
        >>> from gptclf.gpt2.model import GPT2
        >>> small = GPT2Config(vocab_size=9, context_length=4, emb_dim=6, n_heads=2, n_layers=1)
        >>> sorted(to_book(dict(GPT2(small, seed=1).named_parameters()), small))[:3]
        ['final_norm.scale', 'final_norm.shift', 'out_head.weight']
    """
    plain = GPT2Config()
    fixed = ("activation", "norm_eps", "scale_attention", "scale_attention_by_layer")
    other = [f"{name} = {value!r}" for name in fixed if (value := config.to_dict()[name]) != plain.to_dict()[name]]
    other += [f"mlp_dim = {config.mlp_dim}"] if config.hidden_dim != 4 * config.emb_dim else []
    if other:
        raise ValueError(f"the book's GPTModel cannot compute this model: it has no {', '.join(other)}")
    ours = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
    head = ours.get("head.output.weight", ours["trunk.embed.token.weight"])
    result = {theirs: ours[name] for name, theirs in _plain_table(config.n_layers).items()}
    mask = head.new_ones(config.context_length, config.context_length).triu(diagonal=1)
    for i in range(config.n_layers):
        for kind in ("weight", "bias") if config.qkv_bias else ("weight",):
            parts = ours[f"trunk.blocks.{i}.attention.qkv.{kind}"].chunk(3)
            result |= {f"trf_blocks.{i}.{name}.{kind}": part for name, part in zip(_QKV, parts, strict=True)}
        result[f"trf_blocks.{i}.att.mask"] = mask
    result["out_head.weight"] = head
    if len(head) != config.vocab_size:
        result["out_head.bias"] = ours.get("head.output.bias", head.new_zeros(len(head)))
    return result


def _plain_table(n_layers: int) -> dict[str, str]:
    """Return the book's name for each of our names, except those of query, key, value and the head."""
    table = {name: name for name in trunk_names(n_layers) if ".qkv." not in name}
    for ours, theirs in _MODULES.items():
        table = {name: book.replace(ours, theirs) for name, book in table.items()}
    return {name: _plain(book) for name, book in table.items()}


def _plain(name: str) -> str:
    """Return the name in `GPTModel` of a tensor of `GPTModelFast`, except a fused query, key and value."""
    for pattern, plain in _FAST:
        name = re.sub(pattern, plain, name)
    return name


def _plain_names(tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Return the tensors under the names of `GPTModel`, splitting fused query, key and value matrices into views."""
    adapters = [name for name in tensors if re.search(r"\.lora\.[AB]$", name)]
    if adapters:
        raise ValueError(
            f"{source} holds LoRA layers of the book's appendix E ({adapters[0]}, ...), but not their scale. Merge "
            "each into its linear layer before saving, with the class and the alpha that it was trained with: "
            "layer.linear.weight += layer.lora(torch.eye(layer.linear.in_features)).T, under torch.no_grad(). Then "
            "replace the layer by layer.linear and save model.state_dict()"
        )
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        fused = re.fullmatch(r"(trf_blocks\.\d+)\.att\.qkv\.(weight|bias)", name)
        if fused and tensor.dim() and len(tensor) % 3 == 0:
            parts = zip(_QKV, tensor.chunk(3), strict=True)
            found |= {f"{fused[1]}.{part}.{fused[2]}": piece for part, piece in parts}
        else:
            found[_plain(name)] = tensor
    return found


def _sizes(found: Mapping[str, Tensor], source: str) -> tuple[dict[str, Any], int | None]:
    """Return the values of the configuration that the tensors tell, and the number of classes or None."""
    matrices = ("tok_emb.weight", "pos_emb.weight", "trf_blocks.0.ff.layers.0.weight", "out_head.weight")
    misshapen = [f"{name} {tuple(found[name].shape)}" for name in matrices if name in found and found[name].dim() != 2]
    check_tensors(source, found, missing=[name for name in matrices if name not in found], misshapen=misshapen)
    token, position, up, head = (found[name] for name in matrices)
    if len(head) == len(token) and "out_head.bias" in found:
        raise ValueError(f"{source}: out_head has the vocabulary's {len(token)} rows and a bias, which GPT-2 lacks")
    if len(head) < 2:
        raise ValueError(f"{source}: out_head has {len(head)} rows; a classifier needs at least 2, one per class")
    seen = {
        "vocab_size": len(token),
        "context_length": len(position),
        "emb_dim": token.shape[1],
        "n_layers": len({name.split(".")[1] for name in found if name.startswith("trf_blocks.")}),
        "qkv_bias": any(name.endswith(tuple(f"{part}.bias" for part in _QKV)) for name in found),
        "mlp_dim": None if len(up) == 4 * token.shape[1] else len(up),
    }
    return seen, None if len(head) == len(token) else len(head)


def _configure(seen: Mapping[str, Any], config: GPT2Config | Mapping[str, Any] | None, source: str) -> GPT2Config:
    if config is not None and not isinstance(config, GPT2Config | Mapping):
        raise TypeError(f"config is a {type(config).__name__}; give a GPT2Config or the book's dictionary, or None")
    given = config.to_dict() if isinstance(config, GPT2Config) else dict(config or {})
    width = seen["emb_dim"]
    if given.get("mlp_dim") == 4 * width:
        given["mlp_dim"] = None  # the same size, given explicitly
    other = [name for name, value in seen.items() if given.get(name, value) != value]
    if other:
        wrong = "; ".join(f"{name} = {given[name]!r}, but the tensors have {seen[name]!r}" for name in other)
        raise ValueError(f"{source} does not match the given configuration: {wrong}")
    if "n_heads" not in given and width not in _HEADS:
        raise ValueError(
            f"{source}: the tensors do not tell the number of attention heads, and no published GPT-2 is {width} wide; "
            'pass it in settings=, as in {"n_heads": 12}, or pass the dictionary that the model was built from'
        )
    try:
        return GPT2Config.from_dict({"tied": False, "n_heads": _HEADS.get(width), **given, **seen})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{source}: {error}") from error


def _shapes(config: GPT2Config, classes: int | None, *, with_bias: bool) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a configuration by the book's names."""
    D, rows = config.emb_dim, classes or config.vocab_size
    ours = trunk_shapes(config)
    shapes = {theirs: ours[name] for name, theirs in _plain_table(config.n_layers).items()}
    shapes |= {"out_head.weight": (rows, D), **({"out_head.bias": (rows,)} if with_bias else {})}
    for i, part in product(range(config.n_layers), _QKV):
        shapes[f"trf_blocks.{i}.{part}.weight"] = (D, D)
        if config.qkv_bias:
            shapes[f"trf_blocks.{i}.{part}.bias"] = (D,)
    return shapes


def _check_mask(mask: Tensor, context_length: int, source: str) -> None:
    later = torch.ones(context_length, context_length, dtype=torch.bool, device=mask.device).triu(diagonal=1)
    if mask.shape != later.shape or not torch.equal(mask != 0, later):
        wanted = f"the causal mask of {context_length} positions, the only one that gptclf's attention has"
        raise ValueError(f"{source} {tuple(mask.shape)} is not {wanted}")
