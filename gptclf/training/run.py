"""`Run`, one training run, and `Callback`, the base class for reacting to it."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from gptclf.checks import boolean, integer, number
from gptclf.data.batches import Batches, Rows
from gptclf.data.dataset import TextDataset
from gptclf.data.windows import TextWindows
from gptclf.features.cache import DISK_LIMIT, check_cache
from gptclf.features.reuse import features_of
from gptclf.gpt2.arithmetic import resolve_precision
from gptclf.gpt2.learner import Learner
from gptclf.gpt2.model import GPT2
from gptclf.gpt2.sharing import own_trainable
from gptclf.inference.evaluate import measured
from gptclf.training.history import History, Scores
from gptclf.training.loop import Step, training_steps
from gptclf.training.objective import Objective
from gptclf.training.optim import Schedule, check_trainable, make_optimizer, regroup
from gptclf.training.recipe import Recipe

TrainingRows = TextDataset | TextWindows


class Callback:
    """Called by `train`; each method does nothing unless a subclass overrides it.

    `freeze(run.model, ...)` in a callback holds from the next step on, as in gradual unfreezing (Howard & Ruder, 2018).
    The optimizer keeps its state of the parameters that still train, and the learning rate its schedule.

    Attributes:
        every: Optimizer steps from one call of `on_step` to the next; None calls it at the end of each epoch.
        needs_validation: True if the callback needs a validation set; `train` then requires one.
        measure: Name of a measure that the callback reads; `train` then checks that the model's task has it.

    Example:
        >>> class Stop(Callback):
        ...     def on_scores(self, run, scores):
        ...         run.stop("good enough") if scores.train_loss < 0.1 else None
    """

    every: int | None = 1
    needs_validation = False
    measure: str | None = None

    def on_start(self, run: "Run") -> None:
        """React to the start of a run, before its first step; forget any run before it."""

    def on_step(self, run: "Run", step: Step) -> None:
        """React to an optimizer step."""

    def on_scores(self, run: "Run", scores: Scores) -> None:
        """React to a measurement on the training and validation sets."""

    def on_freeze(self, run: "Run") -> None:
        """React to another choice of trained parameters, made in a callback, before the next step."""

    def on_end(self, run: "Run") -> None:
        """React to the end of a run, even if an error ends it."""

    def state(self) -> Mapping[str, Tensor | float]:
        """Return the tensors or numbers, by name, that a saved state should keep. Numbers come back as tensors."""
        return {}

    def restore(self, state: dict[str, Tensor], run: "Run") -> None:
        """Restore the tensors that `state` returned, when a run is resumed."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The options of `train` that are not in the recipe; `train` documents them."""

    callbacks: Sequence[Callback] | None = ()
    checkpoint_dir: str | Path | None = None
    checkpoint_every: int | None = None
    keep_checkpoints: int = 2
    resume: bool = False
    cache_dir: str | Path | None = None
    cache_limit: float = DISK_LIMIT
    recompute: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        for name in ("resume", "recompute", "progress"):
            boolean(name, getattr(self, name))
        check_cache(self.cache_dir, self.cache_limit)
        given = () if self.callbacks is None else self.callbacks
        callbacks = tuple(given) if isinstance(given, Iterable) else (None,)
        if not all(isinstance(callback, Callback) for callback in callbacks):
            raise TypeError(f"callbacks is {given!r}; it must be a list of gptclf.Callback objects, or None")
        for callback in callbacks:
            integer(f"{type(callback).__name__}.every", callback.every, 1, optional=True)
        object.__setattr__(self, "callbacks", callbacks)


class Run:
    """A training run, as a callback sees it.

    Args:
        model: Changed in place.
        train_set: Rows that fit the model's context.
        val_set: Rows to measure on, or None.
        recipe: The options that determine the steps.
        options: The options that do not change the steps.

    Attributes:
        task: The model's task, with all settings filled in that depend on the training set.
        objective: The module that computes the loss of a batch; set from the first step to the end of the run.
        optimizer: The optimizer of the trained parameters.
        scheduler: Sets the learning rate.
        history: The measurements so far.
        scores: The last measurement, or None.
        total_steps: Optimizer steps of the whole run.
        steps_per_epoch: Optimizer steps of an epoch.
        callbacks: All callbacks, including the run's own.
        rows: The rows of both sets, or their features; set from the first step to the end of the run.
        begun: True once the steps have begun.
        finished: True once the steps have ended without an error.
    """

    def __init__(
        self, model: GPT2, train_set: TrainingRows, val_set: TrainingRows | None, recipe: Recipe, options: RunOptions
    ) -> None:
        self.model, self.train_set, self.val_set, self.recipe, self.options = model, train_set, val_set, recipe, options
        self.task = model.task.fitted(train_set.targets(model.task))
        self.precision = resolve_precision(recipe.precision, model)
        own_trainable(model)
        self._trains = self._trained = self._names_that_train()
        self.optimizer = make_optimizer(model, recipe)
        self._batches_per_epoch = len(self.batches(train_set))
        self.steps_per_epoch = -(-self._batches_per_epoch // recipe.accumulate)
        self.total_steps = recipe.epochs * self.steps_per_epoch
        self.scheduler = Schedule(self.optimizer, recipe, self.total_steps)
        self.history = History()
        self.scores: Scores | None = None
        self.callbacks: Sequence[Callback] = ()
        self.begun = self.finished = self._outdated = False
        self._held = ExitStack()
        self.objective: Objective
        self.rows: Sequence[Rows] = ()
        self._start = time.perf_counter()

    def trained(self) -> dict[str, nn.Parameter]:
        """Return the parameters that the run trains, or trained until a callback froze them, by name."""
        return {name: parameter for name, parameter in self.model.named_parameters() if name in self._trained}

    def changing(self) -> dict[str, Tensor]:
        """Return the tensors that steps may change, by name: trained parameters, and buffers of a user's modules."""
        return {**self.trained(), **dict(self.model.named_buffers())}

    def _names_that_train(self) -> set[str]:
        return {name for name, parameter in self.model.named_parameters() if parameter.requires_grad}

    def follow_freeze(self) -> None:
        """Train what requires grad now, if a callback has changed that."""
        if (trains := self._names_that_train()) != self._trains:
            check_trainable(self.model)
            own_trainable(self.model)  # what was set by hand
            self._trains, self._trained, self._outdated = trains, self._trained | trains, True
            regroup(self.optimizer, self.model, self.recipe)
            self.scheduler.take_groups()
            for callback in self.callbacks:
                callback.on_freeze(self)

    def batches(self, rows: Rows) -> Batches:
        """Return the batches of rows, or of their features, in the run's order."""
        recipe = self.recipe
        return Batches(rows, recipe.batch_size, recipe.seed, drop_last=recipe.drop_last, task=self.task)

    def build_objective(self, depth: int) -> Objective:
        """Build the objective of each step: `train` trains it, and `estimate` times it.

        Args:
            depth: Number of stages whose results are given as features; 0 if token ids are given.
        """
        again, seed = self.options.recompute, self.recipe.seed
        learner = Learner(self.model, depth, training=True, recompute=again, seed=seed, keep_gradients=True)
        learner.task = self.task
        return Objective(learner, self.task, self.precision)

    @property
    def ends_epoch(self) -> bool:
        """True if the last step was the last of its epoch."""
        return bool(self.history.steps) and self.history.steps[-1].batch in (0, self._batches_per_epoch)

    @property
    def lr_scale(self) -> float:
        """A factor on the schedule's learning rate, from the next step on; a saved state keeps it."""
        return self.scheduler.scale

    @lr_scale.setter
    def lr_scale(self, scale: float) -> None:
        self.scheduler.rescale(number("lr_scale", scale))

    def stop(self, reason: str = "stopped") -> None:
        """End the run after the current step, unless it is the last; `history.stopped` is the first reason given."""
        if len(self.history.steps) < self.total_steps:
            self.history.stopped = self.history.stopped or reason or "stopped"

    def is_due(self, every: int | None) -> bool:
        """Return True if the last step's number is a multiple of `every`, or for None if it ended an epoch."""
        return self.ends_epoch if every is None else self.history.steps[-1].step % every == 0

    def measure(self) -> Scores:
        """Measure on the training and validation sets and call the callbacks, at most once per step."""
        if not self.history.steps:
            raise ValueError("there is nothing to measure before the first step")
        step = self.history.steps[-1]
        if self.scores is None or self.scores.step != step.step:
            train, *val = (self._measured(rows, self.recipe.eval_batches) for rows in self.rows)
            seconds = self.history.seconds = time.perf_counter() - self._start
            self.scores = Scores(step.step, step.epoch, step.examples, train, val[0] if val else None, seconds)
            (self.history.epochs if self.ends_epoch else self.history.evaluations).append(self.scores)
            for callback in self.callbacks:
                callback.on_scores(self, self.scores)
        return self.scores

    def _measured(self, rows: Rows, n: int | None) -> dict[str, float]:
        learner, size = self.objective.learner, self.recipe.batch_size
        return measured(learner, rows, num_batches=n, batch_size=size, precision=self.precision)

    def take_up(self, history: History, lr_scale: float) -> None:
        """Continue after the steps of `history`, which comes from a saved state."""
        history.stopped = self.history.stopped  # by Ctrl-C, since the run began
        self.history, self.scores = history, next(reversed(history.scores()), None)
        self.scheduler.scale = lr_scale
        self.scheduler.move_to(len(history.steps))
        self._start -= history.seconds
        if history.steps:
            self._forget_fresh()

    @contextmanager
    def learning(self) -> Iterator[None]:
        """Hold the features of the frozen part, and the learner that trains on them, in the block."""
        self.follow_freeze()
        with self._held:
            self._hold()
            self._check_measures()
            self.model.task, self.model.preparation = self.task, self.train_set.preparation
            yield

    def _hold(self) -> None:
        given, precision = self.options, self.recipe.precision
        sets = [rows for rows in (self.train_set, self.val_set) if rows is not None]
        kept: Any = {"cache_dir": check_cache(given.cache_dir, given.cache_limit), "cache_limit": given.cache_limit}
        features: Any = nullcontext((0, sets))
        if self.recipe.reuse_frozen:
            features = features_of(self.model, sets, precision=precision, progress=given.progress, **kept)
        depth, self.rows = self._held.enter_context(features)
        self.objective, self._outdated = self.build_objective(depth), False
        self._held.callback(self.objective.learner.give_back)

    def _hold_again(self) -> None:
        before = self.objective.learner.generator
        self._held.close()
        self._hold()
        if before and (after := self.objective.learner.generator):
            after.set_state(before.get_state())

    def release(self) -> None:
        """Release gradients, features and learner, as the caller may keep the run for its history."""
        self.optimizer.zero_grad(set_to_none=True)
        self.rows = ()
        vars(self).pop("objective", None)

    def _check_measures(self) -> None:
        wanted = {callback.measure for callback in self.callbacks} - {None, "loss"}
        names = self._measured(self.rows[-1], 1) if wanted else {}
        for name in wanted - set(names):
            raise ValueError(f"measure is {name!r}; this task measures {', '.join(names)}")

    def __iter__(self) -> Iterator[Step]:
        """Take the remaining steps; each is in `history` before the callbacks are called."""
        self.begun = True
        given: Any = {name: getattr(self.recipe, name) for name in ("epochs", "accumulate", "clip")}
        while len(self.history.steps) < self.total_steps and not self.history.stopped:
            if self._outdated:
                self._hold_again()
            given |= {"scheduler": self.scheduler, "after": next(reversed(self.history.steps), None)}
            for step in training_steps(self.objective, self.batches(self.rows[0]), self.optimizer, **given):
                self._forget_fresh()
                self.history.steps.append(step)
                if step.step == self.total_steps:
                    self.history.stopped = None  # nothing was left to stop
                self.history.seconds = time.perf_counter() - self._start
                yield step
                self.follow_freeze()
                if self._outdated:
                    break

    def _forget_fresh(self) -> None:
        """Note that the head is no longer fresh, even if only parameters before it were trained."""
        getattr(self.model.head, "forget_fresh", lambda: None)()
