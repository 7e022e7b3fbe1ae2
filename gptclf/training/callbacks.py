"""Callbacks: progress on the screen, measuring, keeping the best weights, and stopping early."""

import math

import torch
from torch import Tensor

from gptclf.checks import boolean, integer
from gptclf.progress import Meter, write_line
from gptclf.training.history import Scores
from gptclf.training.loop import Step
from gptclf.training.run import Callback, Run


class Progress(Callback):
    """The steps with the loss, and a line per measurement, on standard error; `Meter` says in which form."""

    def on_start(self, run: Run) -> None:
        """Forget the run before."""
        self._meter: Meter | None = None

    def on_step(self, run: Run, step: Step) -> None:
        """Show the step; a resumed run begins with a later one than the first."""
        if self._meter is None:
            self._meter = Meter(run.total_steps, "training", unit="step", done=step.step - 1)
        self._meter.update(step.step - self._meter.done, f"loss {step.loss:.3f}")

    def on_scores(self, run: Run, scores: Scores) -> None:
        """Print the scores, how many rows they are of, and the seconds since the start of training."""
        write = write_line if self._meter is None else self._meter.write
        n = run.recipe.eval_batches
        sample = "" if n is None else f"at most {n * run.recipe.batch_size} rows of each set, "
        write(f"{scores} ({sample}{scores.seconds:.0f} s)")

    def on_end(self, run: Run) -> None:
        """Remove the bar."""
        if self._meter is not None:
            self._meter.close()


class Measure(Callback):
    """Measures on the training and validation sets.

    Args:
        every: Steps between two measurements; None measures at the end of each epoch.
    """

    def __init__(self, every: int | None = None) -> None:
        self.every = integer("every", every, 1, optional=True)

    def on_step(self, run: Run, step: Step) -> None:
        """Measure."""
        run.measure()


class KeepBest(Callback):
    """Puts the trained weights with the best validation measure back when training ends.

    Args:
        measure: The measure to compare, such as "loss" or "accuracy"; the model's task says whether more is better.
        every: Also measure every this many steps; None uses only the measurements that are made anyway.

    Attributes:
        best: The `Scores` of the best weights, or None before the first measurement.

    Example:
        >>> keep = KeepBest("accuracy")
        >>> # train(clf, train_set, val_set, callbacks=[keep])
    """

    needs_validation = True

    def __init__(self, measure: str = "loss", *, every: int | None = None) -> None:
        if not isinstance(measure, str):
            raise TypeError(f"measure is {measure!r}; it must be the name of a measure, such as 'loss'")
        self.measure = measure
        self.every = integer("every", every, 1, optional=True)
        self.best: Scores | None = None
        self._weights: dict[str, Tensor] = {}

    def on_start(self, run: Run) -> None:
        """Forget the run before."""
        self.best, self._weights = None, {}

    def on_step(self, run: Run, step: Step) -> None:
        """Measure, if `every` was given."""
        if self.every is not None:
            run.measure()

    def on_scores(self, run: Run, scores: Scores) -> None:
        """Copy the trained weights if they are the best so far."""
        if self._improves(run, scores):
            self.best, self._weights = scores, self._copy(run)

    def on_freeze(self, run: Run) -> None:
        """Add the parameters that begin to train, which were as they are now when the weights were copied."""
        if self._weights:
            self._weights = self._copy(run) | self._weights

    def _improves(self, run: Run, scores: Scores) -> bool:
        value = getattr(scores, f"val_{self.measure}")
        if value is None or math.isnan(value):
            return False
        sign = 1 if self.measure in run.task.higher else -1
        return self.best is None or not sign * value <= sign * getattr(self.best, f"val_{self.measure}")

    def _copy(self, run: Run) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in run.changing().items()}

    def state(self) -> dict[str, Tensor]:
        """Return the best weights and their step."""
        return {} if self.best is None else {**self._weights, "step": torch.tensor(self.best.step, device="cpu")}

    def restore(self, state: dict[str, Tensor], run: Run) -> None:
        """Restore the best weights and their step."""
        if state:
            step = int(state.pop("step"))
            self.best = next(scores for scores in run.history.scores() if scores.step == step)
            self._weights = state

    def on_end(self, run: Run) -> None:
        """Put the best weights back."""
        now = run.changing()
        with torch.no_grad():
            for name, tensor in self._weights.items():
                now[name].copy_(tensor)


class EarlyStopping(KeepBest):
    """Stops a run if the validation measure has not improved for some measurements.

    Args:
        patience: Number of measurements without an improvement after which the run stops.
        measure: The measure to compare, as in `KeepBest`.
        restore_best: Put the best weights back when training ends.
        every: Also measure every this many steps.

    Example:
        >>> stop = EarlyStopping(patience=3)
        >>> # train(clf, train_set, val_set, epochs=100, callbacks=[stop])
    """

    def __init__(
        self, patience: int, measure: str = "loss", *, restore_best: bool = True, every: int | None = None
    ) -> None:
        super().__init__(measure, every=every)
        self.patience = integer("patience", patience, 1)
        self.restore_best = boolean("restore_best", restore_best)
        self.waited = 0

    def on_start(self, run: Run) -> None:
        """Forget the run before."""
        super().on_start(run)
        self.waited = 0

    def on_scores(self, run: Run, scores: Scores) -> None:
        """Count the measurements since the best one."""
        super().on_scores(run, scores)
        self.waited = 0 if self.best is scores else self.waited + 1
        self._stop_if_over(run)

    def _copy(self, run: Run) -> dict[str, Tensor]:
        return super()._copy(run) if self.restore_best else {}

    def state(self) -> dict[str, Tensor]:
        """Return the best weights, their step, and the measurements since."""
        return {**super().state(), "waited": torch.tensor(self.waited, device="cpu")}

    def restore(self, state: dict[str, Tensor], run: Run) -> None:
        """Restore the best weights and the count; a run that had stopped stays stopped."""
        self.waited = int(state.pop("waited"))
        super().restore(state, run)
        self._stop_if_over(run)

    def _stop_if_over(self, run: Run) -> None:
        if self.waited >= self.patience:
            run.stop("early stopping")
