"""The optimizer's parameter groups and the learning rate's course."""

import math

import torch
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from gptclf.gpt2.model import GPT2

DECAYS = ("all", "matrices")
SCHEDULES = ("constant", "linear", "cosine")


def make_optimizer(model: GPT2, *, lr: float, weight_decay: float, decay: str = "all") -> AdamW:
    """AdamW (Loshchilov & Hutter, 2019) over what trains.

    Args:
        model: Parameters that require grad are taken.
        lr: Learning rate.
        weight_decay: Decoupled decay per step, times the learning rate.
        decay: "all" decays every parameter, as the book does; "matrices" leaves out biases and norms.
    """
    if decay not in DECAYS:
        raise ValueError(f"decay is {decay!r}; choose from {', '.join(DECAYS)}")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [{"params": trained, "weight_decay": weight_decay}]
    if decay == "matrices":
        groups = [
            {"params": [p for p in trained if p.dim() >= 2], "weight_decay": weight_decay},
            {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
        ]
    # The fused kernel reads each tensor once where the plain one makes ten passes.
    return AdamW([group for group in groups if group["params"]], lr=lr, fused=model.device.type in ("cpu", "cuda"))


def make_scheduler(
    optimizer: torch.optim.Optimizer, schedule: str, *, total_steps: int, warmup_steps: int, done_steps: int = 0
) -> LambdaLR:
    """The learning rate's factor over the steps: `warmup_steps` of linear rise, then the schedule.

    A run that is taken up again has `done_steps` behind it.
    """
    check_schedule(schedule)
    return LambdaLR(optimizer, lambda step: lr_factor(schedule, done_steps + step, total_steps, warmup_steps))


def check_schedule(schedule: str) -> None:
    """Raise where there is no such schedule."""
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule is {schedule!r}; choose from {', '.join(SCHEDULES)}")


def lr_factor(schedule: str, step: int, total_steps: int, warmup_steps: int) -> float:
    """Share of the learning rate that step number `step`, counted from 0, uses.

    Warm-up gives (step + 1) / warmup_steps; "linear" and "cosine" then fall so that 0 would be the step after the
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
