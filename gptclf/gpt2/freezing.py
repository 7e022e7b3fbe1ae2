"""The choice of trainable parameters by policy, name or pattern, and a report of the choice."""

import logging
from dataclasses import dataclass
from fnmatch import fnmatchcase

from gptclf.book_names import PARTS
from gptclf.checks import python_value
from gptclf.gpt2.lora_linear import lora_layers
from gptclf.gpt2.model import GPT2, check_gpt2
from gptclf.gpt2.quantized import count_weights, quantized_layers
from gptclf.gpt2.sharing import own_parameters
from gptclf.gpt2.stages import stages
from gptclf.tasks import NextToken

logger = logging.getLogger(__name__)

Trainable = str | int | list[str] | tuple[str, ...]

_POLICY_BLOCKS = {"last_block": 1, "last_two_blocks": 2}


def freeze(model: GPT2, *, trainable: Trainable = "last_block") -> None:
    """Set which parameters train. Every parameter is set, so earlier calls leave no trace.

    Args:
        model: Changed in place. `requires_grad` of every parameter is set, and a parameter that may train but is
            shared with another model gets its own copy of the values.
        trainable: "head" or "last_layer" (the output layer only), "last_block" (last block, final norm and head: the
            book's section 6.6), "last_two_blocks", an int n >= 1 (last n blocks, final norm and head), "all", "lora"
            (the factors of `apply_lora`, and a head without factors), or a name, a pattern or a list of them:
            "blocks.3", "trunk.blocks.*.mlp.*", "norm". A name covers all below it.

    Raises:
        ValueError: For an unknown policy, a pattern that matches nothing, one that leaves nothing to train, or one that
            chooses a quantised matrix.

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
        tied = "a language model's output matrix is the token embedding, not the head's"
        raise ValueError(
            f"trainable={trainable!r} leaves nothing to train ({tied}); name blocks, 'last_block' or 'all'"
        )
    layers = quantized_layers(model)
    packed = [f"{path}.{name}" for path, layer in layers.items() for name in layer.packed()]
    if wrong := next((name for name in packed if name in chosen), None):
        remedy = "train factors beside it (apply_lora(model), trainable='lora') or trainable='head'"
        raise ValueError(f"trainable={trainable!r} chooses {wrong}, but a quantised matrix cannot train; {remedy}")
    own_parameters(model, chosen)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
    logger.info("%s", trainable_report(model))


def first_policy(model: GPT2) -> str:
    """Return the policy of a new classifier: "last_block", or "head" if the last block is quantised."""
    return "head" if quantized_layers(model.trunk.blocks[-1]) else "last_block"


def policy_of(model: GPT2) -> str | None:
    """Return the named policy that gives a model's trainable parameters, or None if no policy does."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    named = [policy for policy, blocks in _POLICY_BLOCKS.items() if blocks <= len(model.blocks)]
    named = ["head", *named, "all", *["lora"] * any(True for _ in lora_layers(model))]
    return next((name for name in named if trained and _chosen(model, name) == trained), None)


def _chosen(model: GPT2, trainable: Trainable) -> set[str]:
    names = [name for name, _ in model.named_parameters()]
    named = isinstance(trainable, list | tuple) and all(isinstance(pattern, str) for pattern in trainable)
    if isinstance(trainable, bool) or not (named or isinstance(trainable, str | int)):
        allowed = "a policy's name, a number of blocks, or names and patterns"
        raise TypeError(f"trainable is {trainable!r}; it must be {allowed}")
    if trainable == "all":
        return set(names)
    if trainable == "lora":
        return _factors_and_head(model)
    if trainable in ("head", "last_layer"):
        return {name for name in names if name.startswith("head.")}
    if isinstance(trainable, str):
        trainable = _POLICY_BLOCKS.get(trainable, trainable)
    if isinstance(trainable, int):
        L = len(model.blocks)
        if not 1 <= trainable <= L:
            raise ValueError(f"trainable={trainable} blocks; this model has {L}, so give 1 to {L}")
        tops = [f"trunk.blocks.{i}" for i in range(L - trainable, L)] + ["trunk.norm", "head"]
        return {name for name in names if name.startswith(tuple(top + "." for top in tops))}
    chosen: set[str] = set()
    patterns = [trainable] if isinstance(trainable, str) else list(trainable)
    for pattern in patterns:
        # The trunk's name may be left out, and a module's name covers the parameters below it.
        forms = [form for base in (pattern, "trunk." + pattern) for form in (base, base.rstrip(".") + ".*")]
        found = {name for name in names if pattern.strip(".") and any(fnmatchcase(name, form) for form in forms)}
        if not found:
            policies = ", ".join(map(repr, ("head", *_POLICY_BLOCKS, "all")))
            known = f"policies: {policies}, or a number of blocks; parameters: {', '.join(names[:4] + names[-4:])}, ..."
            theirs = [(part, _ours(part)) for part in patterns if _ours(part) != part]
            known += "".join(f"; {part} is called {ours} here" for part, ours in theirs)
            raise ValueError(f"trainable: {pattern!r} is not a policy and matches no parameter; {known}")
        chosen |= found
    return chosen


def _ours(pattern: str) -> str:
    """Return a pattern with the book's name of a part in front replaced by ours."""
    part, dot, rest = pattern.partition(".")
    return f"{PARTS.get(part, part).removeprefix('trunk.')}{dot}{rest}"


def _factors_and_head(model: GPT2) -> set[str]:
    layers = dict(lora_layers(model))
    if not layers:
        raise ValueError("trainable='lora' needs a model with LoRA layers; this one has none: call apply_lora(model)")
    factors = {f"{path}.{name}" for path, part in layers.items() for name in part.factors()}
    # A language model's head is the embedding's matrix, or one as large: PEFT leaves it frozen as well.
    if isinstance(model.task, NextToken):
        return factors
    beneath = tuple(path + "." for path in layers)
    head = {f"head.{name}" for name, _ in model.head.named_parameters()}
    return factors | {name for name in head if not name.startswith(beneath)}


@dataclass(frozen=True)
class TrainableReport:
    """The trainable parameters of a model.

    Attributes:
        names: Trainable parameters, in the model's order.
        counts: For each stage name, the numbers of trainable and of all scalar parameters.
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
        return f"{self.trainable:,} of {self.total:,} parameters train ({share:.2f} %): {', '.join(parts) or 'none'}"


def _shortened(names: list[str]) -> list[str]:
    """Write three or more neighbouring blocks as one name: blocks.0-11."""
    blocks = [int(name.removeprefix("blocks.")) for name in names if name.startswith("blocks.")]
    if len(blocks) < 3 or blocks[-1] - blocks[0] != len(blocks) - 1:
        return names
    first = names.index(f"blocks.{blocks[0]}")
    return [*names[:first], f"blocks.{blocks[0]}-{blocks[-1]}", *names[first + len(blocks) :]]


def trainable_report(model: GPT2) -> TrainableReport:
    """Count trainable parameters by stage.

    Example:
        >>> from gptclf import add_classifier_head, load_gpt2
        >>> print(trainable_report(add_classifier_head(load_gpt2("nano"), num_classes=2, seed=0)))
        445,634 of 2,664,962 parameters train (16.72 %): blocks.3, norm, head
    """
    check_gpt2(model)
    counts: dict[str, tuple[int, int]] = {}
    for name, stage in stages(model):
        counts[name] = (sum(p.numel() for p in stage.parameters() if p.requires_grad), count_weights(stage))
    return TrainableReport([name for name, p in model.named_parameters() if p.requires_grad], counts)
