"""`train`: data, optimizer, loop, evaluation and callbacks put together."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gptclf.data.batches import Batches, Rows
from gptclf.data.dataset import TextDataset
from gptclf.features.reuse import reused
from gptclf.features.store import DISK_LIMIT, check_cache
from gptclf.gpt2.line import recomputed_activations
from gptclf.gpt2.model import GPT2
from gptclf.gpt2.precision import in_mode, resolve_precision
from gptclf.gpt2.stages import Classifier, own_trainable
from gptclf.inference.evaluate import labelled_rows, loss_and_accuracy
from gptclf.inference.predict import check_classifier
from gptclf.progress import spoken
from gptclf.training.callbacks import Callback, Progress
from gptclf.training.checkpoint import STATE, load_checkpoint, run_identity, save_checkpoint, with_state
from gptclf.training.checks import (
    check_arguments,
    check_callbacks,
    check_model,
    check_rows,
    check_state_folder,
)
from gptclf.training.estimate import step_seconds, typical_batch
from gptclf.training.history import History, Scores
from gptclf.training.loop import Step, training_steps
from gptclf.training.optim import check_schedule, make_optimizer, make_scheduler


def train(
    model: GPT2,
    train_set: TextDataset,
    val_set: TextDataset | None = None,
    *,
    epochs: int = 5,
    batch_size: int = 8,
    lr: float = 5e-5,
    weight_decay: float = 0.1,
    decay: str = "all",
    schedule: str = "constant",
    warmup_steps: int = 0,
    clip: float | None = None,
    accumulate: int = 1,
    drop_last: bool = False,
    seed: int = 123,
    reuse_frozen: bool = True,
    cache_dir: str | Path | None = None,
    cache_limit: float = DISK_LIMIT,
    recompute: bool = False,
    precision: str = "auto",
    eval_every: int | None = None,
    eval_batches: int | None = None,
    callbacks: Sequence[Callback] = (),
    checkpoint_dir: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
) -> History:
    """Fine-tune a classifier: cross-entropy, AdamW, the defaults of the book's section 6.7.

    Trains what requires grad (see `freeze`) and leaves those flags alone. The run is a function of the data, the
    weights and the seed. `max_length`, `truncation` and `pad_to` of the training set are noted on the model, and
    `predict` prepares texts alike.

    Args:
        model: A classifier; changed in place.
        train_set: Labelled rows; labels are matched to `model.classes` by name.
        val_set: Labelled rows to measure on, never trained on.
        epochs: Times through the training set.
        batch_size: Rows per batch.
        lr: Learning rate.
        weight_decay: AdamW's decoupled decay.
        decay: "all" decays every parameter, as the book does; "matrices" leaves out biases and norms.
        schedule: "constant", "linear" or "cosine" course of the learning rate after the warm-up.
        warmup_steps: Optimizer steps of linear rise.
        clip: Largest 2-norm of the gradient; None does not clip.
        accumulate: Batches per optimizer step; equal to one batch of accumulate * batch_size rows.
        drop_last: Leave out an epoch's last batch that is not full (the book's training loader does).
        seed: Determines the order of examples and dropout.
        reuse_frozen: Compute the frozen part of the model once per text and train the rest on what it gave: the
            same losses up to rounding, many times faster. What was computed is kept in this process's memory (a
            quarter of the machine's at most), so that another run on these texts does not compute it again:
            `clear_features` forgets it. False computes everything at every step.
        cache_dir: Keep what was computed in this folder instead, for later processes, too. It is as private as the
            texts.
        cache_limit: Bytes that may take there; earlier models' features are deleted to make room.
        recompute: Keep only the input of each trained block for the backward pass and compute the rest again there: a
            third more work, much less memory where texts are long and many blocks train.
        precision: "auto", "float32" or "bfloat16" (autocast of matrix products; weights stay float32).
        eval_every: Measure loss and accuracy every so many steps, too, not only after each epoch.
        eval_batches: Measure on the first so many batches of each set; None measures on all.
        callbacks: Called after steps and measurements.
        checkpoint_dir: Keep the run's state there, written anew after each epoch.
        resume: Go on from the state in `checkpoint_dir`, with the very steps an uninterrupted run would take; start
            at the beginning if there is none yet. The run must be given what it was given before.
        progress: Show a bar and a line per measurement on standard error.

    Returns:
        The measurements.

    Raises:
        FloatingPointError: The loss became NaN or infinite; the weights are those before that step.

    Example:
        >>> from gptclf import add_classifier_head, load_gpt2
        >>> clf = add_classifier_head(load_gpt2("nano"), classes=["ham", "spam"], seed=0)
        >>> data = TextDataset(["hi", "win!"] * 4, ["ham", "spam"] * 4, tokenizer=clf.tokenizer)
        >>> history = train(clf, data, epochs=3, lr=1e-3, progress=False)
        >>> history.epochs[-1].train_loss < history.steps[0].loss
        True
    """
    check_classifier(model)
    check_model(model)
    check_arguments(
        epochs=epochs, batch_size=batch_size, accumulate=accumulate, eval_every=eval_every,
        eval_batches=eval_batches, lr=lr, weight_decay=weight_decay, clip=clip, warmup_steps=warmup_steps, seed=seed,
    )  # fmt: skip
    check_schedule(schedule)
    check_callbacks(callbacks, val_set)
    texts = labelled_rows(model, train_set, "train_set")
    val_texts = None if val_set is None else labelled_rows(model, val_set, "val_set")
    check_rows(model, texts)
    cache_dir = check_cache(cache_dir, cache_limit)
    if drop_last and len(texts) < batch_size:
        raise ValueError(f"drop_last=True leaves no batch: {len(texts)} rows are less than one batch of {batch_size}")
    state_folder = check_state_folder(checkpoint_dir, resume)
    asked, precision = precision, resolve_precision(precision, model)
    start = time.perf_counter()
    own_trainable(model)
    optimizer = make_optimizer(model, lr=lr, weight_decay=weight_decay, decay=decay)
    n_batches = len(Batches(texts, batch_size, drop_last=drop_last, classes=model.classes))
    steps_per_epoch = -(-n_batches // accumulate)
    total_steps = epochs * steps_per_epoch
    history = History()
    with in_mode(model, training=True), _seeded(seed, model.device), ExitStack() as ending:
        # Unwound from the last to the first, each one whatever the others do: gradients would keep as much memory as
        # the trained weights.
        ending.callback(optimizer.zero_grad, set_to_none=True)
        for callback in callbacks:
            callback.on_start(model)
            ending.callback(callback.on_end, model)
        identity: dict[str, Any] = {}
        if state_folder is not None:
            identity = run_identity(model, texts, val_texts, {
                "epochs": epochs, "batch_size": batch_size, "lr": lr, "weight_decay": weight_decay, "decay": decay,
                "schedule": schedule, "warmup_steps": warmup_steps, "clip": clip, "accumulate": accumulate,
                "drop_last": drop_last, "seed": seed, "reuse_frozen": reuse_frozen, "precision": precision,
                "eval_every": eval_every, "eval_batches": eval_batches,
                "callbacks": [type(callback).__qualname__ for callback in with_state(callbacks)],
            })  # fmt: skip
            if resume and (state_folder / STATE).is_file():
                load_checkpoint(state_folder, identity, model, optimizer, history, callbacks)
                model.forget_fresh_head()
        done = history.steps[-1] if history.steps else None
        scheduler = make_scheduler(
            optimizer, schedule, total_steps=total_steps, warmup_steps=warmup_steps,
            done_steps=len(history.steps),
        )  # fmt: skip
        watching = list(callbacks)
        if progress:
            watching.append(Progress(total_steps - len(history.steps)))
            ending.callback(watching[-1].on_end, model)
        sets = [texts] if val_texts is None else [texts, val_texts]
        cut = None
        if reuse_frozen:
            cut = ending.enter_context(reused(
                model, sets, precision=asked, cache_dir=cache_dir, cache_limit=cache_limit, progress=progress,
            ))  # fmt: skip
        learner: Classifier = model if cut is None else cut[0]
        train_rows, *others = sets if cut is None else cut[1]
        val_rows = others[0] if others else None
        ending.enter_context(recomputed_activations(recompute))
        measure = _Measure(learner, train_rows, val_rows, eval_batches, batch_size, precision, start - history.seconds)
        batches = Batches(train_rows, batch_size, seed, drop_last=drop_last, classes=model.classes)
        if progress:
            left = total_steps - len(history.steps)
            each = accumulate * step_seconds(learner, typical_batch(learner, texts, batch_size), precision)
            print(f"{left:,} steps, about {spoken(left * each)}, measurements not counted", file=sys.stderr)
        model.max_length, model.truncation, model.pad_to = train_set.max_length, train_set.truncation, train_set.pad_to
        for step in training_steps(
            learner, batches, optimizer, epochs=epochs, accumulate=accumulate, clip=clip, scheduler=scheduler,
            precision=precision, after=done,
        ):  # fmt: skip
            model.forget_fresh_head()
            history.steps.append(step)
            for callback in watching:
                callback.on_step(model, step)
            ends_epoch = step.step % steps_per_epoch == 0
            if ends_epoch or (eval_every is not None and step.step % eval_every == 0):
                scores = measure(step)
                (history.epochs if ends_epoch else history.evaluations).append(scores)
                history.seconds = scores.seconds
                for callback in watching:
                    callback.on_scores(model, scores)
            if ends_epoch and state_folder is not None:
                save_checkpoint(state_folder, identity, model, optimizer, history, callbacks)
    return history


@dataclass(frozen=True)
class _Measure:
    """Measures loss and accuracy on the training and validation rows after a step."""

    learner: Classifier
    train_rows: Rows
    val_rows: Rows | None
    eval_batches: int | None
    batch_size: int
    precision: str
    start: float

    def __call__(self, step: Step) -> Scores:
        """The scores after `step`."""
        train_loss, train_accuracy = self._on(self.train_rows)
        val_loss, val_accuracy = (None, None) if self.val_rows is None else self._on(self.val_rows)
        return Scores(
            step=step.step, epoch=step.epoch, examples=step.examples, train_loss=train_loss,
            train_accuracy=train_accuracy, val_loss=val_loss, val_accuracy=val_accuracy,
            seconds=time.perf_counter() - self.start,
        )  # fmt: skip

    def _on(self, rows: Rows) -> tuple[float, float]:
        return loss_and_accuracy(
            self.learner, rows, num_batches=self.eval_batches, batch_size=self.batch_size, precision=self.precision
        )


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Dropout draws from torch's global generators: seeded in the block, put back after it."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
