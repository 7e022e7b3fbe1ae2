"""What watches a training run: the protocol, progress on the screen, and keeping the best weights."""

import sys
from typing import Any

import torch
from torch import Tensor

from gptclf.gpt2.model import GPT2
from gptclf.training.history import History, Scores
from gptclf.training.loop import Step


class Callback:
    """Called by `train`; each method does nothing unless a subclass says so.

    What trains is settled when `train` begins: `freeze` inside a callback has no effect on the run.

    Attributes:
        needs_validation: Whether it has work only where there is a validation set; `train` then asks for one.
    """

    needs_validation = False

    def on_start(self, model: GPT2) -> None:
        """Called once before the first step; whatever an earlier run left is forgotten here."""

    def on_step(self, model: GPT2, step: Step) -> None:
        """Called after each optimizer step."""

    def on_scores(self, model: GPT2, scores: Scores) -> None:
        """Called after each measurement on the training and validation sets."""

    def on_end(self, model: GPT2) -> None:
        """Called once when training ends, also when it ends by an error."""

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps of this callback."""
        return {}

    def restore(self, state: dict[str, Tensor], history: History) -> None:
        """Take back what `state` gave, when a run is resumed with that history."""


class Progress(Callback):
    """A bar of steps with the loss (where tqdm is installed) and a line per measurement, on standard error."""

    def __init__(self, total_steps: int) -> None:
        self._bar: Any = None
        try:
            from tqdm import tqdm
        except ImportError:
            return
        # disable=None: no bar where standard error is no terminal, so logs hold only the lines.
        self._bar = tqdm(total=total_steps, unit="step", disable=None, leave=False)

    def on_step(self, model: GPT2, step: Step) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {step.loss:.3f}", refresh=False)
            self._bar.update()

    def on_scores(self, model: GPT2, scores: Scores) -> None:
        """Write a line."""
        line = f"{scores} ({scores.seconds:.0f} s)"
        if self._bar is not None:
            self._bar.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr)

    def on_end(self, model: GPT2) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()


class KeepBest(Callback):
    """Puts back, at the end, the trained weights that had the lowest validation loss.

    Attributes:
        best: The `Scores` of those weights, or None before the first measurement.

    Example:
        >>> keep = KeepBest()
        >>> # train(clf, train_set, val_set, callbacks=[keep])
    """

    needs_validation = True

    def __init__(self) -> None:
        self.best: Scores | None = None
        self._weights: dict[str, Tensor] = {}

    def on_start(self, model: GPT2) -> None:
        """Forget the run before."""
        self.best, self._weights = None, {}

    def on_scores(self, model: GPT2, scores: Scores) -> None:
        """Copy the trained weights where they are the best so far."""
        loss, best = scores.val_loss, None if self.best is None else self.best.val_loss
        if loss is not None and (best is None or loss < best):
            self.best = scores
            trained = ((name, p) for name, p in model.named_parameters() if p.requires_grad)
            self._weights = {name: p.detach().clone() for name, p in trained}

    def state(self) -> dict[str, Tensor]:
        """The best weights and the step they are of."""
        return {} if self.best is None else {**self._weights, "step": torch.tensor(self.best.step)}

    def restore(self, state: dict[str, Tensor], history: History) -> None:
        """Take them back."""
        if state:
            step = int(state.pop("step"))
            self.best = next(scores for scores in history.scores() if scores.step == step)
            self._weights = state

    def on_end(self, model: GPT2) -> None:
        """Put them back."""
        with torch.no_grad():
            for name, tensor in self._weights.items():
                model.get_parameter(name).copy_(tensor)
