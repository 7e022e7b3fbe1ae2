"""`History`: the measurements of a training run, to be read, plotted and tabulated."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from gptclf import checks
from gptclf.book_names import CURVES
from gptclf.plotting import data_frame, plot_training
from gptclf.training.loop import Step


@dataclass(frozen=True)
class Scores:
    """A model's measures during training, by name: those of its task, such as "loss" (nats) and "accuracy" (0 to 1).

    Each is also an attribute: `scores.train_loss`, `scores.val_accuracy`; without a validation set the latter is None.

    Attributes:
        step: Optimizer steps taken.
        epoch: Number of the epoch, counted from 1.
        examples: Rows seen since the start.
        train: On the training set, or on a fixed sample of `eval_batches` batches of it.
        val: On the validation set, or on such a sample of it; None without one.
        seconds: Since the start of training.

    Example:
        >>> Scores(3, 1, 24, {"loss": 0.5, "accuracy": 0.75}, None, 1.0).train_accuracy
        0.75
    """

    step: int
    epoch: int
    examples: int
    train: dict[str, float]
    val: dict[str, float] | None
    seconds: float

    def __getattr__(self, name: str) -> Any:
        which, _, measure = name.partition("_")
        if which in ("train", "val") and measure:
            if measure in self.train:
                return getattr(self, which) and getattr(self, which)[measure]
            raise AttributeError(f"there is no measure {measure!r}; this task measures {', '.join(self.train)}")
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def __str__(self) -> str:
        text = f"epoch {self.epoch}, step {self.step}: train {_in_words(self.train)}"
        return text if self.val is None else f"{text}; validation {_in_words(self.val)}"


def _in_words(measures: dict[str, float]) -> str:
    return ", ".join(
        f"{name} {100 * value:.2f} %" if name == "accuracy" else f"{name} {value:.3f}"
        for name, value in measures.items()
    )


@dataclass
class History:
    """A training run's measurements.

    Attributes:
        steps: One `Step` per optimizer step.
        evaluations: `Scores` every `eval_every` steps.
        epochs: `Scores` after each epoch.
        seconds: Length of the run.
        stopped: Why the run ended early: "interrupted" (Ctrl-C), or the reason given to `run.stop`. None for a run that
            took all its steps.

    Its repr gives the counts and the last measurement.
    """

    steps: list[Step] = field(default_factory=list)
    evaluations: list[Scores] = field(default_factory=list)
    epochs: list[Scores] = field(default_factory=list)
    seconds: float = 0.0
    stopped: str | None = None

    def __repr__(self) -> str:
        scores = self.scores()
        counts = f"{len(self.steps):,} steps, {len(self.epochs):,} epochs, {len(scores):,} measurements"
        last = "".join(f", last {each}" for each in scores[-1:])
        return f"<History: {counts}, stopped={self.stopped!r}{last}>"

    def __getattr__(self, name: str) -> Any:
        hint = f": [scores.{CURVES[name]} for scores in history.scores()]" if name in CURVES else ""
        raise AttributeError(f"a History has no {name}{hint}")

    def scores(self) -> list[Scores]:
        """Return all measurements on whole sets in the order of steps, one for each step that has any."""
        by_step = {scores.step: scores for scores in [*self.evaluations, *self.epochs]}
        return [by_step[step] for step in sorted(by_step)]

    def to_frame(self) -> Any:
        """Return a DataFrame (pandas) with one row per optimizer step; measures that were not taken are empty."""
        measured = {scores.step: scores for scores in self.scores()}
        names = [*(f"{which}_{name}" for which in ("train", "val") for name in self._measures()), "seconds"]
        columns = {name: [getattr(measured.get(step.step), name, None) for step in self.steps] for name in names}
        return data_frame({f.name: [getattr(step, f.name) for step in self.steps] for f in fields(Step)} | columns)

    def plot(self, path: str | Path) -> Path:
        """Plot every measure over training and save the figure to `path` (requires matplotlib)."""
        scores = self.scores()
        per_epoch = self.steps[-1].examples / self.steps[-1].epoch if self.steps else 1.0
        epochs = [score.examples / per_epoch for score in scores]
        sets = {"training": "train", "validation": "val"}
        curves = {
            name: {title: [getattr(score, f"{which}_{name}") for score in scores] for title, which in sets.items()}
            for name in self._measures()
        }
        single = ([step.examples / per_epoch for step in self.steps], [step.loss for step in self.steps])
        return plot_training(checks.path("path", path), epochs, curves, step_losses=single)

    def _measures(self) -> list[str]:
        """Return the names of the task's measures, in its order."""
        return list(dict.fromkeys(name for scores in self.scores() for name in scores.train))


def history_from_dict(values: dict[str, Any]) -> History:
    """Rebuild a history from the dictionary that `dataclasses.asdict` made of it.

    Format 1 of saved states has the fields train_loss, train_accuracy, val_loss and val_accuracy instead of the
    dictionaries, and no count of batches in its steps.
    """

    def scores(**saved: Any) -> Scores:
        if "train" not in saved:
            for which in ("train", "val"):
                saved[which] = {name: saved.pop(f"{which}_{name}") for name in ("loss", "accuracy")}
            saved["val"] = None if saved["val"]["loss"] is None else saved["val"]
        return Scores(**saved)

    kinds: dict[str, Callable[..., Any]] = {"steps": Step, "evaluations": scores, "epochs": scores}
    parts = {name: [kind(**saved) for saved in values[name]] for name, kind in kinds.items()}
    return History(**parts, seconds=float(values.get("seconds", 0.0)), stopped=values.get("stopped"))
