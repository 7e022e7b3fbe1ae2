"""The one training loop: a generator that yields after each optimizer step.

It knows batches, a model and an optimizer; files, printing, evaluation and stopping belong to whoever consumes it.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from gptclf.data.batches import Batch, Batches
from gptclf.gpt2.arithmetic import arithmetic
from gptclf.gpt2.gradients import KeptGradients
from gptclf.gpt2.stages import Classifier
from gptclf.metrics import blame, loss_sum


@dataclass(frozen=True)
class Step:
    """One optimizer step.

    Attributes:
        step: Number of the step, counted from 1.
        epoch: Number of the epoch, counted from 1.
        loss: Mean cross-entropy of its rows in nats, before the step.
        lr: Learning rate it used.
        examples: Rows seen since the start.
        gradient_norm: 2-norm of all gradients before clipping.
    """

    step: int
    epoch: int
    loss: float
    lr: float
    examples: int
    gradient_norm: float


def training_steps(
    model: Classifier,
    batches: Batches,
    optimizer: Optimizer,
    *,
    epochs: int,
    accumulate: int = 1,
    clip: float | None = None,
    scheduler: LRScheduler | None = None,
    precision: str = "float32",
    after: Step | None = None,
) -> Iterator[Step]:
    """Train step by step; each yield comes right after an optimizer step, and stopping is `break`.

    The gradient of a step is the sum over all targets of its `accumulate` batches (a row each, or of a language model a
    position each) divided by their number once, so any division into batches gives the same step; a shorter last group
    is divided by its own number.

    Args:
        model: Trains what requires grad; its mode (dropout) is the caller's.
        batches: Rows in the order of seed and epoch.
        optimizer: Holds the trainable parameters.
        epochs: How many times to go through the batches.
        accumulate: Batches per optimizer step.
        clip: Largest 2-norm of the gradient, or None.
        scheduler: Stepped after each optimizer step.
        precision: "auto", "float32" or "bfloat16".
        after: The last step of a run that is taken up again at the end of its epoch.

    Raises:
        FloatingPointError: The loss or the gradient is not finite; the weights are those of the step before.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = KeptGradients(trained)
    done, step, examples = (0, 0, 0) if after is None else (after.epoch, after.step, after.examples)
    for epoch in range(done, epochs):
        stream = batches.epoch(epoch)
        while group := list(islice(stream, accumulate)):
            lr = optimizer.param_groups[0]["lr"]
            with gradients.step():
                loss = _accumulate_gradient(model, group, precision)
            norm = _gradient_norm(trained)
            if clip is not None:
                torch.nn.utils.clip_grads_with_norm_(trained, clip, norm)
            gradient_norm = float(norm)
            step += 1
            if not (math.isfinite(loss) and math.isfinite(gradient_norm)):
                raise FloatingPointError(
                    f"step {step}: loss {loss}, gradient norm {gradient_norm}. {blame(model)}. The step was not taken"
                )
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            examples += sum(len(batch) for batch in group)
            yield Step(step, epoch + 1, loss, lr, examples, gradient_norm)


def _gradient_norm(parameters: list[torch.nn.Parameter]) -> torch.Tensor:
    return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def _accumulate_gradient(model: Classifier, group: list[Batch], precision: str) -> float:
    """Add the gradient of the group's mean loss to `.grad` and return that loss."""
    targets = sum(batch.n_targets for batch in group)
    total = 0.0
    for batch in group:
        with torch.enable_grad(), arithmetic(precision, model):
            loss = loss_sum(model, batch.to(model.device)) / targets
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.item()
    return total
