"""The optimizer's parameter groups, and the learning rate over the steps of a run."""

import math
from typing import Any

import torch
from torch.optim import AdamW, Optimizer

from gptclf.gpt2.model import GPT2
from gptclf.gpt2.stages import stages
from gptclf.training.recipe import Recipe


def check_trainable(model: GPT2) -> None:
    """Raise if the model has no trainable parameter, one that is not float32, or one that cannot train."""
    if torch.is_inference_mode_enabled() or any(parameter.is_inference() for parameter in model.parameters()):
        raise ValueError("nothing trains in torch.inference_mode(), or if made in it; load and train outside of it")
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not trained:
        raise ValueError("nothing in the model trains; choose what to train with freeze(model, trainable='last_block')")
    other = [f"{name} is {parameter.dtype}" for name, parameter in trained if parameter.dtype != torch.float32]
    if other:
        advice = "call model.float(), and give precision='bfloat16' for speed"
        raise ValueError(f"weights train in float32, but {other[0]}; {advice}")


def make_optimizer(model: GPT2, recipe: Recipe) -> AdamW:
    """Build AdamW (Loshchilov & Hutter, 2019) over the parameters that require grad."""
    # The fused kernel reads each tensor once where the plain one makes ten passes.
    return AdamW(parameter_groups(model, recipe), lr=recipe.lr, fused=model.device.type in ("cpu", "cuda"))


def parameter_groups(model: GPT2, recipe: Recipe) -> list[dict[str, Any]]:
    """Return an optimizer's groups of the parameters that require grad, each with its learning rate and weight decay.

    Args:
        model: Its trainable parameters are taken.
        recipe: Gives `lr`, `weight_decay`, `decay`, `layer_decay` and `head_lr`. The groups are in the order of the
            stages from the last block down, so that the first group's learning rate is that of the top.
    """
    stage_of = {id(p): stage for stage, (_, module) in enumerate(stages(model)) for p in module.parameters()}
    top, head = len(model.blocks), len(model.blocks) + 2
    groups: dict[tuple[int, float, float], list[object]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            # A parameter that a user's module adds outside of the stages trains at the full rate.
            stage = stage_of.get(id(parameter), top)
            below = max(0, top - stage) if recipe.layer_decay != 1.0 else 0
            lr = recipe.head_lr if recipe.head_lr is not None and stage == head else recipe.lr
            decay = recipe.weight_decay if recipe.decay == "all" or parameter.dim() >= 2 else 0.0
            groups.setdefault((below, lr * recipe.layer_decay**below, -decay), []).append(parameter)
    from_the_top = sorted(groups, key=lambda key: (key[0], key[2]))
    return [{"params": groups[key], "lr": key[1], "weight_decay": -key[2]} for key in from_the_top]


def regroup(optimizer: Optimizer, model: GPT2, recipe: Recipe) -> None:
    """Give an optimizer the parameters that require grad now; those that it had before keep their state."""
    optimizer.zero_grad(set_to_none=True)
    optimizer.param_groups.clear()
    for group in parameter_groups(model, recipe):
        optimizer.add_param_group(group)
    for parameter in [parameter for parameter in optimizer.state if not parameter.requires_grad]:
        del optimizer.state[parameter]


class Schedule:
    """Sets the learning rate of each of an optimizer's groups before every step.

    A rate is the group's own, times the recipe's warm-up and schedule, times `scale`.

    Args:
        optimizer: The optimizer. The base rates are its groups' learning rates at construction.
        recipe: Gives `schedule` and `warmup_steps`.
        total_steps: Optimizer steps in the whole run.

    Attributes:
        scale: A factor on all rates; set it by `rescale`.
    """

    def __init__(self, optimizer: Optimizer, recipe: Recipe, total_steps: int) -> None:
        self.scale, self._done = 1.0, 0
        self._optimizer, self._recipe, self._total_steps = optimizer, recipe, total_steps
        self.take_groups()

    def take_groups(self) -> None:
        """Take the learning rates of the optimizer's groups as base rates; call it when the groups are new."""
        self._rates = [group["lr"] for group in self._optimizer.param_groups]
        self.move_to(self._done)

    def step(self) -> None:
        """Set the rates of the next step."""
        self.move_to(self._done + 1)

    def move_to(self, done: int) -> None:
        """Set the rates of the step after `done` steps."""
        self._done = done
        factor = lr_factor(self._recipe.schedule, done, self._total_steps, self._recipe.warmup_steps) * self.scale
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor

    def rescale(self, scale: float) -> None:
        """Multiply all rates by `scale` from the next step on, instead of by the previous scale."""
        self.scale = scale
        self.move_to(self._done)


def lr_factor(schedule: str, step: int, total_steps: int, warmup_steps: int) -> float:
    """Return the factor on the learning rate at step number `step`, counted from 0.

    Warm-up gives (step + 1) / warmup_steps. "linear" and "cosine" then fall, and would reach 0 at the step after the
    last one.

    Example:
        >>> [lr_factor("linear", step, 6, 2) for step in range(6)]
        [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    done = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return 1.0 - done if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
