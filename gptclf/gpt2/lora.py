"""`apply_lora` and `merge_lora`: a model with low-rank factors beside its matrices, and an ordinary one again."""

import logging
import math
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from gptclf.checks import choice, integer, is_iterable, number, python_value
from gptclf.gpt2.arithmetic import check_float32
from gptclf.gpt2.freezing import freeze
from gptclf.gpt2.initialise import seeded
from gptclf.gpt2.layers import Linear
from gptclf.gpt2.lora_linear import SCALES, LoRALinear, lora_layers
from gptclf.gpt2.model import GPT2, check_gpt2
from gptclf.gpt2.sharing import borrow, mark_borrowed

logger = logging.getLogger(__name__)

INITS = ("default", "book")
MATRICES = ("qkv", "out", "up", "down")

Blocks = int | range | Iterable[int] | None


def apply_lora(
    model: GPT2,
    rank: int | Mapping[str, int] = 16,
    alpha: float | Mapping[str, float] = 16,
    *,
    targets: str | Iterable[str] = MATRICES,
    blocks: Blocks = None,
    dropout: float = 0.0,
    scale: str = "alpha/rank",
    init: str = "default",
    seed: int | None = None,
) -> GPT2:
    """Put low-rank factors beside matrices: a new model in which they and the classifier head are trainable.

    A layer then computes W x + b + scale B A x, with a frozen W and trainable A (r, K) and B (N, r); B starts at 0, so
    the new model first answers as `model` does. The new model shares all frozen tensors with `model`, which never
    changes. Factors on the last n blocks leave everything before them frozen, so its features are kept. (Hu et al.,
    2021, "LoRA: Low-Rank Adaptation of Large Language Models"; book appendix E.)

    Args:
        model: A classifier or a language model without factors.
        rank: The rank r, or ranks by target: {"qkv": 8, "*": 16}. The first key that matches a matrix counts.
        alpha: Sets the factor `scale`; a number, or numbers by target as for `rank`.
        targets: The matrices: "qkv", "out", "up" and "down" in the blocks, "head" for the classifier head's output
            layer, or patterns of their names: "mlp", "blocks.3", "blocks.*.attention.out". A name covers all below it.
            A head with factors is frozen beneath them; otherwise the whole head is trained.
        blocks: The last n blocks, or the blocks of these numbers, such as range(6, 12). Negative numbers count from the
            last block. None means all.
        dropout: Dropout probability of the factors' input in training.
        scale: "alpha/rank" (LoRA), "alpha/sqrt(rank)" (rsLoRA: Kalajdzievski, 2023) or "alpha" (the book's bonus to
            chapter 6).
        init: "default" draws A as PEFT does, uniform within 1/sqrt(K); "book" as the book's appendix E does, within
            1/sqrt(r), and gives query, key and value factors of their own, as in the book's three matrices.
        seed: Seed of A; None draws one from torch's global generator. It is logged.

    Raises:
        TypeError: An argument has a wrong type.
        ValueError: A target matches nothing, a number is out of range, the model has factors already, or it is not
            float32.

    Example:
        >>> from gptclf import add_classifier_head, load_gpt2, trainable_report
        >>> clf = add_classifier_head(load_gpt2("nano"), classes=["ham", "spam"], seed=123)
        >>> print(trainable_report(apply_lora(clf, rank=8, blocks=2, seed=123)))
        49,538 of 2,714,114 parameters train (1.83 %): blocks.2, blocks.3, head
    """
    check_gpt2(model)
    check_float32(model, "LoRA goes on")
    check_no_factors(model)
    choice("init", init, INITS)
    choice("scale", scale, tuple(SCALES))
    rate = number("dropout", dropout, most=1)
    chosen = _chosen(model, targets, blocks)
    ranks = {path: integer("rank", _value("rank", rank, path), 1) for path in chosen}
    alphas = {path: number("alpha", _value("alpha", alpha, path), above=0) for path in chosen}
    adapted = borrow(model)
    layers = []
    for path in chosen:
        base: Any = adapted.get_submodule(path)
        widest = max(base.in_features, base.out_features)
        if ranks[path] > widest:
            raise ValueError(f"rank is {ranks[path]}, but {path} is only {widest} wide; give 1 to {widest}")
        parts = 3 if init == "book" and path.endswith(".qkv") else 1
        layer = LoRALinear(base, ranks[path], alphas[path], scaling=scale, dropout=rate, parts=parts)
        place(adapted, path, layer)
        layers.append(layer)
    seed = _draw(layers, init, seed)
    logger.info("LoRA on %d matrices, drawn from seed %d", len(layers), seed)
    adapted.to(model.device).train(model.training)
    freeze(adapted, trainable="lora")
    return adapted


def merge_lora(model: GPT2) -> GPT2:
    """Multiply the factors out and add them to their matrices: a new, frozen model without factors.

    It answers as `model` does, to rounding, and `save_model` writes it as any other. A quantised matrix with factors
    becomes a float32 one. `model` never changes, so nothing needs to be unmerged.

    Raises:
        ValueError: The model has no factors.

    Example:
        >>> from gptclf import add_classifier_head, load_gpt2
        >>> clf = add_classifier_head(load_gpt2("nano"), classes=["ham", "spam"], seed=123)
        >>> merge_lora(apply_lora(clf, seed=123)).head.output
        Linear(in_features=192, out_features=2, bias=True)
    """
    check_gpt2(model)
    if not any(True for _ in lora_layers(model)):
        raise ValueError("the model has no LoRA layers, so there is nothing to merge; give what apply_lora returned")
    merged = borrow(model)
    for path, layer in list(lora_layers(merged)):
        place(merged, path, linear_of(*layer.merged()).train(layer.training))
    return merged


def place(model: nn.Module, path: str, layer: nn.Module) -> None:
    """Put a layer into the place of the one with this name."""
    owner, _, name = path.rpartition(".")
    setattr(model.get_submodule(owner), name, layer)


def linear_of(weight: Tensor, bias: Tensor | None) -> Linear:
    """Return a frozen `Linear` over a matrix (N, K) and a bias (N,), which may belong to others."""
    layer = Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = mark_borrowed(nn.Parameter(weight, requires_grad=False))
    if bias is not None:
        layer.bias = mark_borrowed(nn.Parameter(bias, requires_grad=False))
    return layer


def check_no_factors(model: GPT2) -> None:
    """Raise if a model has layers with factors."""
    found = [name for name, _ in lora_layers(model)]
    if found:
        remedy = "merge them first (merge_lora), or give the model they were put on"
        raise ValueError(f"the model has LoRA layers already, such as {found[0]}; {remedy}")


def _chosen(model: GPT2, targets: str | Iterable[str], blocks: Blocks) -> list[str]:
    """Return the names of the layers that targets and blocks select, in the model's order."""
    wanted: list[Any] = [targets] if isinstance(targets, str) or not is_iterable(targets) else list(targets)
    if not wanted or not all(isinstance(target, str) and target for target in wanted):
        kind = ValueError if all(isinstance(target, str) for target in wanted) else TypeError
        raise kind(f"targets is {targets!r}; give names or patterns of matrices, such as {', '.join(MATRICES)}")
    prefixes = tuple(f"trunk.blocks.{i}." for i in block_numbers(model, blocks))
    layers = {name: part for name, part in model.named_modules() if name.startswith((*prefixes, "head."))}
    within = tuple(f"{name}." for name, part in layers.items() if isinstance(part, nn.Linear))  # parts of a layer
    paths = [name for name, part in layers.items() if takes_factors(part) and not name.startswith(within)]
    chosen: set[str] = set()
    for target in wanted:
        found = [path for path in paths if matches(path, target)]
        if not found:
            known = ", ".join(path.removeprefix("trunk.") for path in paths[:4] + paths[4:][-2:])
            tied = "; a tied language model's head has no matrix of its own" if target == "head" else ""
            raise ValueError(f"targets: {target!r} matches no matrix of {_said(blocks)}; there are {known}{tied}")
        chosen |= set(found)
    return [path for path in paths if path in chosen]


def takes_factors(layer: nn.Module) -> bool:
    """Return True if a layer's class defines its matrix's products where it defines `forward`, or below."""
    kind = type(layer)
    owner = next(i for i, base in enumerate(kind.__mro__) if "forward" in vars(base))
    return all(
        any(method in vars(base) for base in kind.__mro__[: owner + 1])
        for method in ("times", "times_transposed", "merged")
    )


def matches(path: str, target: str) -> bool:
    """Return True if a target names the layer or something above it, by its whole name or the end of one.

    Example:
        >>> [matches("trunk.blocks.3.mlp.up", target) for target in ("up", "mlp", "blocks.3", "blocks.*.up", "down")]
        [True, True, True, True, False]
    """
    return fnmatchcase(f".{path}.", f"*.{target.strip('.')}.*")


def block_numbers(model: GPT2, blocks: Blocks) -> list[int]:
    """Return the numbers of blocks that an argument `blocks` means: the last n, those listed, or all for None."""
    L = len(model.blocks)
    blocks = python_value(blocks)
    if blocks is None:
        return list(range(L))
    if isinstance(blocks, int) and not isinstance(blocks, bool):
        return list(range(L - integer("blocks", blocks, 1, most=L), L))
    if isinstance(blocks, str | bytes | bool) or not isinstance(blocks, Iterable):
        raise TypeError(f"blocks is {blocks!r}; give a number of last blocks, or the numbers of blocks")
    numbers = [integer("blocks", python_value(i), -L, most=L - 1) % L for i in blocks]
    if not numbers:
        raise ValueError(f"blocks is {blocks!r}, which names no block; this model has blocks 0 to {L - 1}")
    return sorted(set(numbers))


def _said(blocks: Blocks) -> str:
    return "the model" if blocks is None else f"blocks {blocks!r}"


def _value(name: str, given: Any, path: str) -> Any:
    """Return the value for one layer: the given one, or that of the first key that matches."""
    if not isinstance(given, Mapping):
        return given
    for target, value in given.items():
        if target == "*" or (isinstance(target, str) and matches(path, target)):
            return value
    raise ValueError(f"{name} has no key for {path}; it has {list(given)}. The key '*' matches every matrix")


def _draw(layers: list[LoRALinear], init: str, seed: int | None) -> int:
    """Draw the factors and return the seed that was used: A uniform, B and its bias 0."""
    seed, generator = seeded(seed, stream=2)  # the head has stream 1
    for layer in layers:
        layer.lora_A.float().to_empty(device="cpu")
        layer.lora_B.float().to_empty(device="cpu")
        # kaiming_uniform_(a=sqrt(5)), which in the book's layout (K, r) takes r for the number of inputs.
        bound = 1 / math.sqrt(layer.rank if init == "book" else layer.in_features)
        with torch.no_grad():
            layer.lora_A.weight.uniform_(-bound, bound, generator=generator)
            layer.lora_B.weight.zero_()
            if layer.lora_B.bias is not None:
                layer.lora_B.bias.zero_()
    return seed
