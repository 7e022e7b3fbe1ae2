"""The one training loop: a generator that yields after each optimizer step.

It knows an objective, batches and an optimizer; files, printing, measuring and stopping belong to its caller.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from gptclf.data.batches import Batch, Batches
from gptclf.metrics.finite import blame
from gptclf.training.objective import mean_over_ranks, objective_of, targets_of
from gptclf.training.optim import Schedule

# The smallest sum of weights that divides a loss in float32.
LEAST_WEIGHT = 1e-30


@dataclass(frozen=True)
class Step:
    """One optimizer step.

    Attributes:
        step: Number of the step, counted from 1.
        epoch: Number of the epoch, counted from 1.
        loss: Mean loss of its rows before the step; for cross-entropy in nats.
        lr: Learning rate it used, that of the optimizer's first group.
        examples: Rows seen since the start.
        gradient_norm: 2-norm of all gradients before clipping.
        batch: Number of batches of this epoch done so far; 0 means all, in records of earlier versions.
    """

    step: int
    epoch: int
    loss: float
    lr: float
    examples: int
    gradient_norm: float
    batch: int = 0


def training_steps(
    objective: nn.Module,
    batches: Batches,
    optimizer: Optimizer,
    *,
    epochs: int,
    accumulate: int = 1,
    clip: float | None = None,
    scheduler: Schedule | LRScheduler | None = None,
    after: Step | None = None,
) -> Iterator[Step]:
    """Train step by step; each yield comes right after an optimizer step, and `break` stops.

    The gradient of a step is the sum over all rows of its `accumulate` batches, divided by their weight once, so any
    division into batches gives the same step. A shorter last group is divided by its own weight. If several processes
    share the work, the sum and the weight are taken over all of them.

    Args:
        objective: An `Objective`, or a wrapper of one, such as DistributedDataParallel.
        batches: Rows in the order of seed and epoch.
        optimizer: Holds the trainable parameters.
        epochs: Passes over the batches.
        accumulate: Batches per optimizer step.
        clip: Largest 2-norm of the gradient, or None.
        scheduler: Stepped after each optimizer step.
        after: The last completed step, when resuming a run; its epoch continues with the next batch.

    Raises:
        FloatingPointError: The loss or the gradient is not finite; the weights are those of the step before.
        ValueError: The rows of a step have weights whose sum cannot divide their loss, such as 0.
    """
    trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    after = after or Step(step=0, epoch=0, loss=0.0, lr=0.0, examples=0, gradient_norm=0.0)
    epoch, step, examples, done = after.epoch, after.step, after.examples, after.batch
    if done in (0, len(batches)):
        epoch, done = epoch + 1, 0
    for number in range(epoch, epochs + 1):
        stream = batches.epoch(number - 1, start=done)
        while group := list(islice(stream, accumulate)):
            lr = optimizer.param_groups[0]["lr"]
            loss = _accumulate_gradient(objective, group, trained)
            norm = torch.nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
            if clip is not None:
                torch.nn.utils.clip_grads_with_norm_(trained, clip, norm)
            gradient_norm = float(norm)
            step += 1
            if not (math.isfinite(loss) and math.isfinite(gradient_norm)):
                reason = _unusable_targets(group) or blame(objective_of(objective).learner)
                numbers = f"step {step}: loss {loss}, gradient norm {gradient_norm}"
                raise FloatingPointError(f"{numbers}. {reason}. The step was not taken")
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            done += len(group)
            examples += sum(len(batch) for batch in group)
            yield Step(step, number, loss, lr, examples, gradient_norm, done)
        done = 0


def _accumulate_gradient(objective: nn.Module, group: list[Batch], trained: list[nn.Parameter]) -> float:
    """Set `.grad` to the gradient of the group's mean loss, and return that loss."""
    inner = objective_of(objective)
    weight = mean_over_ranks(sum(inner.weight(batch) for batch in group), objective)
    check_weight(weight, _rows_of(group))
    for parameter in trained:
        parameter.grad = None
    total = 0.0
    for batch in group:
        batch = batch.to(inner.learner.device)
        with torch.enable_grad():
            loss = objective(batch.inputs, batch.lengths, batch.targets, batch.weights)[0] / weight
        loss.backward()
        total += loss.item()
    return mean_over_ranks(total, objective)


def check_weight(weight: float, rows: Sequence[int]) -> None:
    """Raise ValueError if the total weight of these rows is too small or too large to divide by in float32."""
    if not LEAST_WEIGHT <= weight <= 1e30:
        need = "each step needs a sum from 1e-30 to 1e30: change the weights of rows or classes, or use larger batches"
        raise ValueError(f"the weights of {_listed(rows)} sum to {weight:g}; {need}")


def _unusable_targets(group: list[Batch]) -> str:
    """Say which rows have targets that are not finite; "" if none has."""
    bad = [not bool(torch.isfinite(target).all()) for batch in group for target in targets_of(batch)]
    rows = [row for row, is_bad in zip(_rows_of(group), bad, strict=False) if is_bad]
    return f"The targets of {_listed(rows)} are not finite" if rows else ""


def _rows_of(group: list[Batch]) -> list[int]:
    return [row for batch in group if batch.rows is not None for row in batch.rows.tolist()]


def _listed(rows: Sequence[int]) -> str:
    return f"rows {', '.join(map(str, rows[:20]))}{', ...' * (len(rows) > 20)}"
