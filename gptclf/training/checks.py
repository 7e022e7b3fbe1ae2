"""Checks of the arguments of training. Each error says what is wrong, the value given, and what is allowed."""

import numpy as np
import torch

from gptclf.data.batches import TokenRows
from gptclf.data.windows import TextWindows
from gptclf.gpt2.model import GPT2, check_encoding, check_language_model
from gptclf.inference.evaluate import check_ids
from gptclf.training.loop import LEAST_WEIGHT, check_weight
from gptclf.training.recipe import Recipe
from gptclf.training.run import Callback, Run


def check_windows(model: GPT2, windows: TextWindows, name: str) -> TextWindows:
    """Return the windows, or raise if the model cannot be trained or measured on them."""
    check_language_model(model)
    if not isinstance(windows, TextWindows):
        raise TypeError(f"{name} is a {type(windows).__name__}; a language model takes TextWindows(texts, ...)")
    if not len(windows):
        raise ValueError(f"{name} holds no windows; it needs at least one")
    check_encoding(model, windows.tokenizer)
    check_ids(model, windows.ids, name)
    if windows.length > (most := model.config.context_length):
        problem = f"{name} has windows of {windows.length} tokens, but the model's context length is {most}"
        raise ValueError(f"{problem}; build it with a length of at most that")
    return windows


def check_callback(callback: Callback, *, validates: bool) -> None:
    """Raise if a callback has a method that nothing would call, or needs a validation set and there is none."""
    kind = type(callback)
    for name in dir(kind):
        if name.startswith("on_") and callable(getattr(kind, name)) and not hasattr(Callback, name):
            known = ", ".join(known for known in vars(Callback) if known.startswith("on_"))
            rule = f"the methods are {known} (with every = None, on_step is called after each epoch)"
            raise TypeError(f"{kind.__name__}.{name} would never be called; {rule}; call a helper _{name}")
    if callback.needs_validation and not validates:
        raise ValueError(f"{kind.__name__} needs a validation set: train(model, train_set, val_set, ...)")


def check_training_rows(model: GPT2, rows: TokenRows, recipe: Recipe) -> None:
    """Raise if there is nothing to learn from the training rows, or not even one batch of them."""
    model.task.check_training(rows.targets(model.task))
    size = recipe.batch_size
    if recipe.drop_last and len(rows) < size:
        raise ValueError(f"drop_last=True leaves no batch: {len(rows)} rows are less than one batch of {size}")


def check_weights(run: Run) -> None:
    """Raise if the weights of a step's rows add up to a sum that cannot divide their loss.

    The order of rows is known. The first epoch is followed, and if a row weighs nothing, up to 100 epochs.
    """
    targets, weights = run.train_set.targets(run.task), run.train_set.weights
    batches, step = run.batches(run.train_set), run.recipe.batch_size * run.recipe.accumulate
    for epoch in range(1 if weights is None or weights.min() >= LEAST_WEIGHT else min(run.recipe.epochs, 100)):
        order = batches.order(epoch)[: len(batches) * run.recipe.batch_size]
        starts = np.arange(0, len(order), step)
        if epoch and weights is not None:  # only the steps that could weigh too little
            starts = starts[np.add.reduceat(weights[order], starts) < LEAST_WEIGHT]
        for rows in (order[start : start + step] for start in starts):
            given = None if weights is None else torch.from_numpy(weights[rows])
            check_weight(run.task.weight(torch.from_numpy(targets[rows]), given), rows.tolist())
