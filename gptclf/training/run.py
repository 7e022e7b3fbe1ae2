"""One training run: data, optimizer, loop, measurement and callbacks put together, whatever the model predicts."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gptclf.data.batches import Batches, Rows, TokenRows
from gptclf.data.dataset import TextDataset
from gptclf.features.reuse import reused
from gptclf.features.store import check_cache
from gptclf.gpt2.arithmetic import in_mode, resolve_precision
from gptclf.gpt2.line import recomputed_activations
from gptclf.gpt2.model import GPT2
from gptclf.gpt2.stages import Classifier, own_trainable
from gptclf.inference.evaluate import loss_and_accuracy
from gptclf.progress import format_seconds
from gptclf.training.callbacks import Callback, Progress
from gptclf.training.checkpoint import STATE, load_checkpoint, run_identity, save_checkpoint, with_state
from gptclf.training.checks import check_arguments, check_callbacks, check_state_folder
from gptclf.training.estimate import step_seconds, typical_batch
from gptclf.training.history import History, Scores
from gptclf.training.loop import Step, training_steps
from gptclf.training.optim import check_schedule, make_optimizer, make_scheduler


@dataclass(frozen=True)
class Settings:
    """What a run is told; `train` says what each means."""

    epochs: int
    batch_size: int
    lr: float
    weight_decay: float
    decay: str
    schedule: str
    warmup_steps: int
    clip: float | None
    accumulate: int
    drop_last: bool
    seed: int
    reuse_frozen: bool
    cache_dir: str | Path | None
    cache_limit: float
    recompute: bool
    precision: str
    eval_every: int | None
    eval_batches: int | None
    callbacks: Sequence[Callback]
    checkpoint_dir: str | Path | None
    resume: bool
    progress: bool

    def check(self, *, has_validation: bool) -> None:
        """Raise where a value is not what it can be."""
        names = (
            "epochs",
            "batch_size",
            "accumulate",
            "eval_every",
            "eval_batches",
            "lr",
            "weight_decay",
            "clip",
            "warmup_steps",
            "seed",
        )
        check_arguments(**{name: getattr(self, name) for name in names})
        check_schedule(self.schedule)
        check_callbacks(self.callbacks, has_validation=has_validation)
        check_cache(self.cache_dir, self.cache_limit)

    def identity(self, precision: str) -> dict[str, Any]:
        """What determines the run's steps, for its saved state."""
        names = (
            "epochs",
            "batch_size",
            "lr",
            "weight_decay",
            "decay",
            "schedule",
            "warmup_steps",
            "clip",
            "accumulate",
            "drop_last",
            "seed",
            "reuse_frozen",
            "eval_every",
            "eval_batches",
        )
        kinds = [type(callback).__qualname__ for callback in with_state(self.callbacks)]
        return {**{name: getattr(self, name) for name in names}, "precision": precision, "callbacks": kinds}


def fit(model: GPT2, train_set: TokenRows, val_set: TokenRows | None, settings: Settings) -> History:
    """Train what requires grad in `model`, in place, and measure; everything given was checked.

    Args:
        model: Changed in place.
        train_set: Rows that fit the model's context.
        val_set: Rows to measure on, or None.
        settings: The rest.
    """
    if settings.drop_last and len(train_set) < settings.batch_size:
        raise ValueError(
            f"drop_last=True leaves no batch: {len(train_set)} rows are less than one batch of {settings.batch_size}"
        )
    state_folder = check_state_folder(settings.checkpoint_dir, settings.resume)
    precision = resolve_precision(settings.precision, model)
    seed, batch_size, callbacks = settings.seed, settings.batch_size, settings.callbacks
    start = time.perf_counter()
    own_trainable(model)
    optimizer = make_optimizer(model, lr=settings.lr, weight_decay=settings.weight_decay, decay=settings.decay)
    n_batches = len(Batches(train_set, batch_size, drop_last=settings.drop_last, classes=model.classes))
    steps_per_epoch = -(-n_batches // settings.accumulate)
    total_steps = settings.epochs * steps_per_epoch
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
            identity = run_identity(model, train_set, val_set, settings.identity(precision))
            if settings.resume and (state_folder / STATE).is_file():
                load_checkpoint(state_folder, identity, model, optimizer, history, callbacks)
                model.forget_fresh_head()
        done = history.steps[-1] if history.steps else None
        scheduler = make_scheduler(
            optimizer,
            settings.schedule,
            total_steps=total_steps,
            warmup_steps=settings.warmup_steps,
            done_steps=len(history.steps),
        )
        watching = list(callbacks)
        if settings.progress:
            watching.append(Progress(total_steps - len(history.steps)))
            ending.callback(watching[-1].on_end, model)
        sets = [train_set] if val_set is None else [train_set, val_set]
        cut = None
        if settings.reuse_frozen:
            cut = ending.enter_context(
                reused(
                    model,
                    sets,
                    precision=settings.precision,
                    progress=settings.progress,
                    cache_dir=check_cache(settings.cache_dir),
                    cache_limit=settings.cache_limit,
                )
            )
        learner: Classifier = model if cut is None else cut[0]
        given: Sequence[Rows] = sets if cut is None else cut[1]
        train_rows, *others = given
        val_rows = others[0] if others else None
        ending.enter_context(recomputed_activations(settings.recompute))
        measure = _Measure(
            learner, train_rows, val_rows, settings.eval_batches, batch_size, precision, start - history.seconds
        )
        batches = Batches(train_rows, batch_size, seed, drop_last=settings.drop_last, classes=model.classes)
        if settings.progress:
            left = total_steps - len(history.steps)
            each = settings.accumulate * step_seconds(learner, typical_batch(learner, train_set, batch_size), precision)
            print(f"{left:,} steps, about {format_seconds(left * each)}, measurements not counted", file=sys.stderr)
        if isinstance(train_set, TextDataset):
            model.max_length, model.truncation, model.pad_to = (
                train_set.max_length,
                train_set.truncation,
                train_set.pad_to,
            )
        for step in training_steps(
            learner,
            batches,
            optimizer,
            epochs=settings.epochs,
            accumulate=settings.accumulate,
            clip=settings.clip,
            scheduler=scheduler,
            precision=precision,
            after=done,
        ):
            model.forget_fresh_head()
            history.steps.append(step)
            for callback in watching:
                callback.on_step(model, step)
            ends_epoch = step.step % steps_per_epoch == 0
            if ends_epoch or (settings.eval_every is not None and step.step % settings.eval_every == 0):
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
            step=step.step,
            epoch=step.epoch,
            examples=step.examples,
            train_loss=train_loss,
            train_accuracy=train_accuracy,
            val_loss=val_loss,
            val_accuracy=val_accuracy,
            seconds=time.perf_counter() - self.start,
        )

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
