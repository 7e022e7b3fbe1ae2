"""`Run`: one training run, and `fit`, which takes its steps and calls back."""

import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

from torch import nn

from gptclf.checks import number
from gptclf.data.batches import Batches, Rows
from gptclf.data.dataset import TextDataset
from gptclf.data.windows import TextWindows
from gptclf.features.cache import DISK_LIMIT
from gptclf.features.reuse import features_of
from gptclf.gpt2.arithmetic import resolve_precision
from gptclf.gpt2.model import GPT2
from gptclf.gpt2.sharing import own_trainable
from gptclf.inference.evaluate import measured
from gptclf.progress import format_seconds
from gptclf.training.callbacks import Callback, KeepBest
from gptclf.training.estimate import step_seconds, typical_batch
from gptclf.training.history import History, Scores
from gptclf.training.loop import Step, training_steps
from gptclf.training.objective import Objective, build_objective
from gptclf.training.optim import Schedule, make_optimizer
from gptclf.training.recipe import Recipe
from gptclf.training.state import State

TrainingRows = TextDataset | TextWindows


class Run:
    """A training run, as a callback sees it.

    Args:
        model: Changed in place.
        train_set: Rows that fit the model's context.
        val_set: Rows to measure on, or None.
        recipe: The options that determine the steps.
        recompute: Recompute activations in the backward pass.
        cache_dir: Folder for features of the frozen part, or None.
        cache_limit: Bytes that features may take there.
        progress: Report on standard error.

    Attributes:
        task: The model's task, with what depends on the training set fixed.
        objective: What a step computes, from the first step to the end of the run.
        optimizer: Over the trained parameters.
        scheduler: Sets the learning rate.
        history: The measurements so far.
        scores: The last measurement, or None.
        total_steps: Optimizer steps of the whole run.
        steps_per_epoch: Optimizer steps of an epoch.
        callbacks: All that are called, the run's own included.
        finished: True once the steps ended in order.
        resumed_at: Steps that were taken before the run was resumed.
    """

    def __init__(
        self,
        model: GPT2,
        train_set: TrainingRows,
        val_set: TrainingRows | None,
        recipe: Recipe,
        *,
        recompute: bool = False,
        cache_dir: Path | None = None,
        cache_limit: float = DISK_LIMIT,
        progress: bool = False,
    ) -> None:
        self.model, self.train_set, self.val_set, self.recipe = model, train_set, val_set, recipe
        self.recompute, self.cache_dir, self.cache_limit, self.progress = recompute, cache_dir, cache_limit, progress
        self.task = model.task.fitted(train_set.targets(model.task))
        self.precision = resolve_precision(recipe.precision, model)
        own_trainable(model)
        self.optimizer = make_optimizer(model, recipe)
        self._batches_per_epoch = len(Batches(train_set, recipe.batch_size, drop_last=recipe.drop_last, task=self.task))
        self.steps_per_epoch = -(-self._batches_per_epoch // recipe.accumulate)
        self.total_steps = recipe.epochs * self.steps_per_epoch
        self.scheduler = Schedule(self.optimizer, recipe, self.total_steps)
        self.history = History()
        self.scores: Scores | None = None
        self.callbacks: Sequence[Callback] = ()
        self.begun = self.finished = False
        self.resumed_at = 0
        self.objective: Objective
        self._rows: Sequence[Rows] = ()
        self._start = time.perf_counter()

    def trained(self) -> dict[str, nn.Parameter]:
        """Return the trained parameters by name."""
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}

    @property
    def ends_epoch(self) -> bool:
        """True if the last step was the last of its epoch."""
        return bool(self.history.steps) and self.history.steps[-1].batch in (0, self._batches_per_epoch)

    @property
    def lr_scale(self) -> float:
        """A factor on the learning rate that the schedule gives, from the next step on; a saved state keeps it."""
        return self.scheduler.scale

    @lr_scale.setter
    def lr_scale(self, scale: float) -> None:
        self.scheduler.rescale(number("lr_scale", scale))

    def stop(self, reason: str = "stopped") -> None:
        """End the run in order after the step at hand; `history.stopped` is the first reason given."""
        self.history.stopped = self.history.stopped or reason

    def is_due(self, every: int | None) -> bool:
        """Return True if the last step is one of every `every` steps, or for None the last of its epoch."""
        return self.ends_epoch if every is None else self.history.steps[-1].step % every == 0

    def measure(self) -> Scores:
        """Measure on the training and validation sets, once per step, and tell the callbacks."""
        if not self.history.steps:
            raise ValueError("there is nothing to measure before the first step")
        step = self.history.steps[-1]
        if self.scores is None or self.scores.step != step.step:
            train, *val = (self._measured(rows, self.recipe.eval_batches) for rows in self._rows)
            self.history.seconds = time.perf_counter() - self._start
            self.scores = Scores(
                step.step, step.epoch, step.examples, train, val[0] if val else None, self.history.seconds
            )
            (self.history.epochs if self.ends_epoch else self.history.evaluations).append(self.scores)
            for callback in self.callbacks:
                callback.on_scores(self, self.scores)
        return self.scores

    def _measured(self, rows: Rows, num_batches: int | None) -> dict[str, float]:
        return measured(
            self.objective.learner,
            rows,
            self.task,
            num_batches=num_batches,
            batch_size=self.recipe.batch_size,
            precision=self.precision,
        )

    def take_up(self, history: History, lr_scale: float) -> None:
        """Continue after the steps of `history`, which a state kept."""
        history.stopped = None
        self.history, self.resumed_at = history, len(history.steps)
        self.scores = next(reversed(history.scores()), None)
        self.scheduler.scale = lr_scale
        self.scheduler.move_to(len(history.steps))
        self._start -= history.seconds
        if history.steps:
            _forget_fresh(self.model)

    @contextmanager
    def learning(self) -> Iterator[None]:
        """Hold the features of the frozen part, and the learner that trains on them, in the block."""
        sets: list[TrainingRows] = [self.train_set] if self.val_set is None else [self.train_set, self.val_set]
        with ExitStack() as ending:
            depth, self._rows = 0, sets
            if self.recipe.reuse_frozen:
                depth, self._rows = ending.enter_context(
                    features_of(
                        self.model,
                        sets,
                        precision=self.recipe.precision,
                        cache_dir=self.cache_dir,
                        cache_limit=self.cache_limit,
                        progress=self.progress,
                    )
                )
            self.objective = build_objective(self.model, self.task, self.recipe, depth, recompute=self.recompute)
            self._check_measures()
            self.model.task, self.model.preparation = self.task, self.train_set.preparation
            yield

    def release(self) -> None:
        """Release what only the steps needed, whoever still holds the run: gradients take as much as the weights."""
        self.optimizer.zero_grad(set_to_none=True)
        self._rows = ()
        vars(self).pop("objective", None)

    def _check_measures(self) -> None:
        wanted = {callback.measure for callback in self.callbacks if isinstance(callback, KeepBest)} - {"loss"}
        names = self._measured(self._rows[-1], 1) if wanted else {}
        for name in sorted(wanted - set(names)):
            raise ValueError(f"measure is {name!r}; this task measures {', '.join(names)}")

    def announce(self) -> None:
        """Report how many steps are left and how long they will take."""
        left = self.total_steps - len(self.history.steps)
        if not self.progress or not left:
            return
        objective = build_objective(
            self.model, self.task, self.recipe, self.objective.learner.depth, recompute=self.recompute
        )
        batch = typical_batch(self._rows[0], self.task, self.recipe.batch_size)
        seconds = left * step_seconds(objective, batch, self.recipe.accumulate)
        print(f"{left:,} steps, about {format_seconds(seconds)}, measurements not counted", file=sys.stderr)

    def __iter__(self) -> Iterator[Step]:
        """Take the steps that are left; `history` has each before the callbacks are told."""
        recipe = self.recipe
        batches = Batches(self._rows[0], recipe.batch_size, recipe.seed, drop_last=recipe.drop_last, task=self.task)
        self.begun = True
        if self.history.stopped:  # a callback's restored state says that the run was over
            return
        for step in training_steps(
            self.objective,
            batches,
            self.optimizer,
            epochs=recipe.epochs,
            accumulate=recipe.accumulate,
            clip=recipe.clip,
            scheduler=self.scheduler,
            after=self.history.steps[-1] if self.history.steps else None,
        ):
            _forget_fresh(self.model)
            self.history.steps.append(step)
            self.history.seconds = time.perf_counter() - self._start
            yield step


def _forget_fresh(model: GPT2) -> None:
    """Note that training went through the head, even if only parameters before it changed."""
    forget = getattr(model.head, "forget_fresh", None)
    if forget is not None:
        forget()


def fit(run: Run, callbacks: Sequence[Callback], saved: State | None = None) -> History:
    """Take a run's steps and call back; whatever ends it, each callback that was started is told of the end.

    Args:
        run: Everything it was given was checked.
        callbacks: In the order in which they are called; their ends are in the reverse order.
        saved: A state of this run to resume from.
    """
    run.callbacks = callbacks
    with ExitStack() as ending:
        ending.enter_context(deferred_interrupt(run))
        ending.callback(run.release)
        for callback in callbacks:
            callback.on_start(run)
            ending.callback(callback.on_end, run)
        ending.enter_context(run.learning())
        if saved is not None:
            saved.restore(run, callbacks)
        run.announce()
        for step in run:
            for callback in callbacks:
                if run.is_due(callback.every):
                    callback.on_step(run, step)
            if run.history.stopped:
                break
        run.finished = True
    return run.history


@contextmanager
def deferred_interrupt(run: Run) -> Iterator[None]:
    """In the block, let Ctrl-C end the run after the step at hand; a second one is the usual KeyboardInterrupt.

    Only in the main thread, and only if Python's own handler is installed. Before the first step, Ctrl-C is the usual
    one as well.
    """
    usual = signal.default_int_handler
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is not usual:
        yield
        return

    def defer(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, usual)
        if not run.begun:
            usual(number, frame)
        run.stop("interrupted")

    signal.signal(signal.SIGINT, defer)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
