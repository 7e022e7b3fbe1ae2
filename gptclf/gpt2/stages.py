"""A model as a line of stages, which of them train, and whose the tensors are.

    embed -> blocks.0 -> ... -> blocks.L-1 -> norm -> head

`freeze` decides what trains, `frozen_depth` says where the line can be cut, and `share`/`own` keep the promise that a
model owns what it trains and shares what it does not. Nothing here computes anything.
"""

import logging
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from gptclf.checks import python_value
from gptclf.gpt2.heads import ClassifierHead
from gptclf.gpt2.line import hidden_states, run
from gptclf.gpt2.model import GPT2, check_gpt2, set_parameter

logger = logging.getLogger(__name__)

Trainable = str | int | list[str] | tuple[str, ...]

_POLICY_BLOCKS = {"last_block": 1, "last_two_blocks": 2}


def stages(model: GPT2) -> list[tuple[str, nn.Module]]:
    """The model's stages in the order of computation, named; each takes what the one before it gives.

    Example:
        >>> from gptclf import load_gpt2
        >>> [name for name, _ in stages(load_gpt2("nano"))]
        ['embed', 'blocks.0', 'blocks.1', 'blocks.2', 'blocks.3', 'norm', 'head']
    """
    trunk = model.trunk
    blocks = [(f"blocks.{i}", block) for i, block in enumerate(trunk.blocks)]
    return [("embed", trunk.embed), *blocks, ("norm", trunk.norm), ("head", model.head)]


def frozen_depth(model: GPT2) -> int:
    """How many stages, from the first, hold no trainable parameter.

    The number of stages when nothing trains. A language model's tied matrix counts as the embedding's.
    """
    line = stages(model)
    for depth, (_, stage) in enumerate(line):
        if any(parameter.requires_grad for parameter in stage.parameters()):
            return depth
    return len(line)


class Suffix(nn.Module):
    """The stages from `depth` on as a view: the same parameters under the same names, fed with features.

    Called like the model itself, with what the stage before `depth` gives (B, T, D) in the place of ids.

    Args:
        model: The classifier that is viewed.
        depth: Number of stages left out, at least 1.
    """

    def __init__(self, model: GPT2, depth: int) -> None:
        super().__init__()
        line = stages(model)[depth:]
        self.config = model.config
        self.trunk = nn.Module()
        blocks = {name.removeprefix("blocks."): stage for name, stage in line if name.startswith("blocks.")}
        self.trunk.blocks = nn.ModuleDict(blocks)
        if any(name == "norm" for name, _ in line):
            self.trunk.norm = model.trunk.norm
        self.head = model.head
        self.device = model.device
        self._blocks = tuple(blocks.values())

    @property
    def classes(self) -> list[Any] | None:
        """The labels in column order of the logits."""
        return list(self.head.classes) if isinstance(self.head, ClassifierHead) else None

    def forward(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Logits (B, C) of features (B, T, D) of rows with `lengths` positions."""
        return run(self._blocks, self.norm, self.head, features, lengths)

    def hidden_states(self, features: Tensor) -> Tensor:
        """Final hidden states (B, T, D) of features (B, T, D)."""
        return hidden_states(self._blocks, self.norm, features)

    @property
    def blocks(self) -> tuple[nn.Module, ...]:
        """The transformer blocks that are left."""
        return self._blocks

    @property
    def norm(self) -> nn.Module | None:
        """The final norm, or None where it is behind."""
        return getattr(self.trunk, "norm", None)


# What can be trained and measured: a whole model on ids, or the end of one on features.
Classifier = GPT2 | Suffix


def freeze(model: GPT2, *, trainable: Trainable = "last_block") -> None:
    """Set which parameters train. Every parameter is set, so earlier calls leave no trace.

    Args:
        model: Changed in place: `requires_grad` of every parameter, and a parameter that another model also uses
            becomes this model's own copy once it may train.
        trainable: "head" (the output layer only), "last_block" (last block, final norm and head: the book's
            section 6.6), "last_two_blocks", an int n >= 1 (last n blocks, final norm and head), "all", or a name,
            a pattern or a list of them: "blocks.3", "trunk.blocks.*.mlp.*", "norm". A name covers all below it.

    Raises:
        ValueError: For an unknown policy, a pattern that matches nothing, or one that leaves nothing to train.

    Example:
        >>> from gptclf import add_classifier_head, load_gpt2
        >>> clf = add_classifier_head(load_gpt2("nano"), classes=["ham", "spam"], seed=0)
        >>> freeze(clf, trainable="head")
        >>> trainable_report(clf).names
        ['head.output.weight', 'head.output.bias']
    """
    check_gpt2(model)
    chosen = _chosen(model, python_value(trainable))
    if not chosen:
        raise ValueError(
            f"trainable={trainable!r} leaves nothing to train: this model's head has no parameters of its own "
            "(a language model's output matrix is the token embedding); name blocks or use 'last_block' or 'all'"
        )
    model.own_parameters(chosen)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
    logger.info("%s", trainable_report(model))


def policy_of(model: GPT2) -> str | None:
    """The policy by which a model trains what it does, or None where it is none of those with a name."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    named = [policy for policy, blocks in _POLICY_BLOCKS.items() if blocks <= model.config.n_layers]
    return next((name for name in ("head", *named, "all") if trained and _chosen(model, name) == trained), None)


def _chosen(model: GPT2, trainable: Trainable) -> set[str]:
    names = [name for name, _ in model.named_parameters()]
    if isinstance(trainable, bool) or not isinstance(trainable, str | int | list | tuple):
        raise TypeError(
            f"trainable is {trainable!r} ({type(trainable).__name__}); it must be a policy's name, "
            "a number of blocks, or names and patterns"
        )
    if trainable in ([], ()):
        raise ValueError(f"trainable is {trainable!r}, which names nothing; give a policy, blocks or names")
    if trainable == "all":
        return set(names)
    if trainable == "lora":
        raise ValueError("trainable='lora' needs a model with LoRA adapters; this model has none")
    if trainable == "head":
        return {name for name in names if name.startswith("head.")}
    if isinstance(trainable, str):
        trainable = _POLICY_BLOCKS.get(trainable, trainable)
    if isinstance(trainable, int):
        L = model.config.n_layers
        if not 1 <= trainable <= L:
            raise ValueError(f"trainable={trainable} blocks; this model has {L}, so give 1 to {L}")
        tops = [f"trunk.blocks.{i}" for i in range(L - trainable, L)] + ["trunk.norm", "head"]
        return {name for name in names if name.startswith(tuple(top + "." for top in tops))}
    return _matching(names, [trainable] if isinstance(trainable, str) else list(trainable))


def _matching(names: list[str], patterns: list[str]) -> set[str]:
    chosen: set[str] = set()
    for pattern in patterns:
        # The trunk's name may be left out, and a module's name covers the parameters below it.
        forms = [form for base in (pattern, "trunk." + pattern) for form in (base, base.rstrip(".") + ".*")]
        found = {name for name in names if any(fnmatchcase(name, form) for form in forms)}
        if not found:
            raise ValueError(
                f"trainable: {pattern!r} is no policy and matches no parameter. Policies: 'head', 'last_block', "
                f"'last_two_blocks', 'all', or a number of blocks. Parameters: {', '.join(names[:4])}, ..., "
                f"{', '.join(names[-4:])}"
            )
        chosen |= found
    return chosen


def share(source: GPT2, target: GPT2) -> None:
    """Let the trunk of `target` use the tensors of `source`'s trunk without a copy, but for what `source` trains.

    Both remember which parameters are shared, and a shared one is copied before it may train. What the source may
    already be training is copied at once: its owner may go on in a loop of their own.
    """
    shared: list[str] = []
    for name, parameter in source.trunk.named_parameters(prefix="trunk"):
        tensor = parameter.detach()
        if parameter.requires_grad:
            tensor = tensor.clone(memory_format=torch.contiguous_format)
        else:
            shared.append(name)
        set_parameter(target, name, tensor)
    source.note_shared(shared)
    target.note_shared(shared)


def own_trainable(model: GPT2) -> None:
    """Give the model its own copy of every trainable parameter that another model also uses."""
    model.own_parameters({name for name, parameter in model.named_parameters() if parameter.requires_grad})


@dataclass(frozen=True)
class TrainableReport:
    """What trains in a model.

    Attributes:
        names: Trainable parameters, in the model's order.
        counts: Stage name to (trainable, all) numbers of scalar parameters.
    """

    names: list[str]
    counts: dict[str, tuple[int, int]]

    @property
    def trainable(self) -> int:
        """Number of scalar parameters that train."""
        return sum(trainable for trainable, _ in self.counts.values())

    @property
    def total(self) -> int:
        """Number of scalar parameters in all."""
        return sum(total for _, total in self.counts.values())

    def __str__(self) -> str:
        parts = _shortened([name for name, (trainable, _) in self.counts.items() if trainable])
        share = 100 * self.trainable / self.total
        return (
            f"{self.trainable:,} of {self.total:,} parameters train ({share:.2f} %): "
            f"{', '.join(parts) if parts else 'none'}"
        )


def _shortened(names: list[str]) -> list[str]:
    """Stage names with a run of three blocks or more written as one: blocks.0-11."""
    blocks = [int(name.removeprefix("blocks.")) for name in names if name.startswith("blocks.")]
    if len(blocks) < 3 or blocks[-1] - blocks[0] != len(blocks) - 1:
        return names
    first = names.index(f"blocks.{blocks[0]}")
    return [*names[:first], f"blocks.{blocks[0]}-{blocks[-1]}", *names[first + len(blocks) :]]


def trainable_report(model: GPT2) -> TrainableReport:
    """Count what trains, by stage.

    Example:
        >>> from gptclf import add_classifier_head, load_gpt2
        >>> print(trainable_report(add_classifier_head(load_gpt2("nano"), num_classes=2, seed=0)))
        445,634 of 2,664,962 parameters train (16.72 %): blocks.3, norm, head
    """
    check_gpt2(model)
    counts: dict[str, tuple[int, int]] = {}
    for name, stage in stages(model):
        sizes: list[tuple[int, Any]] = [(p.numel(), p.requires_grad) for p in stage.parameters()]
        counts[name] = (sum(n for n, grad in sizes if grad), sum(n for n, _ in sizes))
    return TrainableReport([name for name, p in model.named_parameters() if p.requires_grad], counts)
