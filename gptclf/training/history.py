"""`History`: what a training run measured, to be read, plotted and tabulated."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from gptclf.plotting import plot_training
from gptclf.training.loop import Step

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Scores:
    """Loss (nats) and accuracy (0 to 1) of a model during training.

    Attributes:
        step: Optimizer steps taken.
        epoch: Number of the epoch, counted from 1.
        examples: Rows seen since the start.
        train_loss: On the training set, or its first `eval_batches` batches.
        train_accuracy: Likewise.
        val_loss: On the validation set, or its first `eval_batches` batches; None without one.
        val_accuracy: Likewise.
        seconds: Since the start of training.
    """

    step: int
    epoch: int
    examples: int
    train_loss: float
    train_accuracy: float
    val_loss: float | None
    val_accuracy: float | None
    seconds: float

    def __str__(self) -> str:
        text = f"epoch {self.epoch}, step {self.step}: train loss {self.train_loss:.3f}, "
        text += f"accuracy {100 * self.train_accuracy:.2f} %"
        if self.val_loss is not None and self.val_accuracy is not None:
            text += f"; validation loss {self.val_loss:.3f}, accuracy {100 * self.val_accuracy:.2f} %"
        return text


@dataclass
class History:
    """A training run's measurements.

    Attributes:
        steps: One `Step` per optimizer step.
        evaluations: `Scores` every `eval_every` steps.
        epochs: `Scores` after each epoch.
        seconds: Length of the run.
    """

    steps: list[Step] = field(default_factory=list)
    evaluations: list[Scores] = field(default_factory=list)
    epochs: list[Scores] = field(default_factory=list)
    seconds: float = 0.0

    def scores(self) -> list[Scores]:
        """All measurements on whole sets, in the order of steps, one for each step that has any."""
        by_step = {scores.step: scores for scores in [*self.evaluations, *self.epochs]}
        return [by_step[step] for step in sorted(by_step)]

    def to_frame(self) -> "pandas.DataFrame":
        """One row per optimizer step; columns of `Scores` are empty where nothing was measured (needs pandas)."""
        try:
            import pandas
        except ImportError as error:
            raise ImportError("to_frame needs pandas: pip install 'gptclf[examples]'") from error
        measured = {scores.step: asdict(scores) for scores in self.scores()}
        names = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "seconds")
        rows = [asdict(step) | {name: measured.get(step.step, {}).get(name) for name in names} for step in self.steps]
        return pandas.DataFrame(rows)

    def plot(self, path: str | Path) -> Path:
        """Write the curves of loss and accuracy as a picture (needs matplotlib)."""
        scores = self.scores()
        per_epoch = self.steps[-1].examples / self.steps[-1].epoch if self.steps else 1.0
        epochs = [score.examples / per_epoch for score in scores]
        curves: dict[str, dict[str, list[float | None]]] = {
            "loss": {
                "training": [score.train_loss for score in scores],
                "validation": [score.val_loss for score in scores],
            },
            "accuracy": {
                "training": [score.train_accuracy for score in scores],
                "validation": [score.val_accuracy for score in scores],
            },
        }
        single = ([step.examples / per_epoch for step in self.steps], [step.loss for step in self.steps])
        return plot_training(path, epochs, curves, step_losses=single)
