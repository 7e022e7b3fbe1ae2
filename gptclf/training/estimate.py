"""Estimate the time and memory of a training run, by timing one of its steps on this machine."""

import time
import timeit
from dataclasses import dataclass, replace
from typing import Any, Unpack

import numpy as np
import torch

from gptclf.data.batches import Batch, Rows
from gptclf.data.dataset import TextDataset
from gptclf.features.cache import peek
from gptclf.features.frozen_prefix import FrozenPrefix, missing_rows, prefix_seconds
from gptclf.features.reuse import prefix_of
from gptclf.gpt2.model import GPT2, check_classifier
from gptclf.inference.evaluate import labelled_rows
from gptclf.progress import format_bytes, format_seconds
from gptclf.training.checks import check_training_rows
from gptclf.training.objective import Objective
from gptclf.training.optim import check_trainable
from gptclf.training.recipe import BOOK, Recipe, RecipeChanges, lists_options, recipe_of
from gptclf.training.run import Run, RunOptions

# Bytes that AdamW reads and writes for each trained number: weight, gradient and two moments in, all but the gradient
# out.
_ADAM_BYTES = 28


@dataclass(frozen=True)
class Estimate:
    """The estimated time and memory of a training run.

    Attributes:
        frozen_seconds: Time to compute the frozen part for texts without stored features; 0 if nothing is reused.
        training_seconds: Time for the steps after that, without the measurements between them.
        steps: Optimizer steps.
        feature_bytes: Memory (or disk, with `cache_dir`) for the frozen part's features of all texts.
        training_bytes: Memory for the trained weights, their gradients and AdamW's moments.
    """

    frozen_seconds: float
    training_seconds: float
    steps: int
    feature_bytes: int
    training_bytes: int

    @property
    def seconds(self) -> float:
        """Time for both parts together."""
        return self.frozen_seconds + self.training_seconds

    def __str__(self) -> str:
        frozen = f"frozen part about {format_seconds(self.frozen_seconds)} and {format_bytes(self.feature_bytes)}; "
        steps = f"{self.steps:,} steps about {format_seconds(self.training_seconds)} and "
        return frozen * bool(self.feature_bytes) + steps + format_bytes(self.training_bytes)


@lists_options()
def estimate(
    model: GPT2,
    train_set: TextDataset,
    val_set: TextDataset | None = None,
    *,
    recipe: Recipe = BOOK,
    recompute: bool = False,
    **options: Unpack[RecipeChanges],
) -> Estimate:
    """Estimate the time and memory that `train` would need with these arguments, without training.

    This times one block over some of the text, and one step of the computation that `train` would run. Other work on
    the machine makes the estimate longer.

    Args:
        model: A classifier; its trainable parameters become its own, as in `train`, and nothing else changes.
        train_set: Labelled rows.
        val_set: Labelled rows to measure on.
        recipe: As in `train`.
        recompute: As in `train`.
        **options: As in `train`.

    Example:
        >>> from gptclf import add_classifier_head, load_gpt2
        >>> clf = add_classifier_head(load_gpt2("nano"), classes=["ham", "spam"], seed=0)
        >>> data = TextDataset(["hi", "win!"] * 40, ["ham", "spam"] * 40, tokenizer=clf.tokenizer)
        >>> estimate(clf, data, epochs=3).steps
        30
    """
    check_classifier(model)
    check_trainable(model)
    recipe, _ = recipe_of(recipe, options, ())
    given: dict[str, Any] = {"train_set": train_set, "val_set": val_set}
    sets = [labelled_rows(model, rows, name) for name, rows in given.items() if name == "train_set" or rows is not None]
    check_training_rows(model, sets[0], recipe)
    run = Run(model, sets[0], None, recipe, RunOptions(recompute=recompute))
    batch = typical_batch(run, sets[0])
    prefix = prefix_of(model, recipe.precision) if recipe.reuse_frozen else None
    frozen, kept_bytes, depth = 0.0, 0, 0
    if isinstance(prefix, FrozenPrefix):
        rows = [ids for dataset in sets for ids in dataset.rows()]
        missing = missing_rows(rows, peek(prefix.identity()))
        frozen = prefix_seconds(prefix, sum(len(rows[i]) for i in missing))
        kept_bytes = prefix.nbytes(np.array([len(rows[i]) for i in missing_rows(rows, None)], dtype=np.int64))
        depth, lengths = prefix.depth, torch.from_numpy(prefix.positions(batch.lengths.numpy()))
        shape = (len(batch), int(lengths.max()), model.config.emb_dim)
        inputs = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32, device="cpu")
        batch = replace(batch, inputs=inputs, lengths=lengths)
    seconds = run.total_steps * step_seconds(run.build_objective(depth), batch, recipe.accumulate)
    return Estimate(frozen, seconds, run.total_steps, kept_bytes, 16 * sum(p.numel() for p in run.trained().values()))


def typical_batch(run: Run, rows: Rows) -> Batch:
    """Return a random batch of a run's rows, or of their features, so that its lengths are typical."""
    return run.batches(rows).take(np.random.default_rng(0).permutation(len(rows))[: run.recipe.batch_size])


def step_seconds(objective: Objective, batch: Batch, accumulate: int = 1) -> float:
    """Return the seconds of a step: forward and backward as timed, the optimizer estimated by the memory it moves."""
    trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    device, taken = objective.learner.device, 0.0
    gradients = [(parameter, parameter.grad) for parameter in trained]
    for module in objective.modules():  # running means in a user's module stay as they are in the model
        module._buffers = {name: None if value is None else value.clone() for name, value in module._buffers.items()}
    try:
        for _ in range(3):  # the first passes still allocate buffers
            for parameter in trained:
                parameter.grad = None
            start = time.perf_counter()
            given = batch.to(device)
            with torch.enable_grad():
                loss, _ = objective(given.inputs, given.lengths, given.targets, given.weights)
            loss.backward()
            taken = time.perf_counter() - start
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient
    return accumulate * taken + _ADAM_BYTES * sum(p.numel() for p in trained) / _memory_bandwidth(device)


def _memory_bandwidth(device: torch.device) -> float:
    """Return the bytes per second that a copy reads and writes."""
    source = torch.ones(1 << 23, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    # Reading a number waits for the device.
    seconds = timeit.repeat(lambda: target.copy_(source)[0].item(), number=1, repeat=3)
    return 2 * source.nbytes / min(seconds)
