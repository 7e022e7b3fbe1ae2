"""`Checkpoint`: writes states of a run into a folder, and resumes the run from the newest complete state."""

import logging
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from gptclf import checks
from gptclf.files.access import make_folder
from gptclf.files.atomic import remove_abandoned
from gptclf.training.loop import Step
from gptclf.training.run import Callback, Run, RunOptions
from gptclf.training.state import DamagedState, State, identity_of, read_state, write_state

logger = logging.getLogger(__name__)

_NAME = re.compile(r"step-(\d+)\.safetensors")
_OLD_NAME = "training.safetensors"  # the only file of format 1


class Checkpoint(Callback):
    """Writes states of the run, so that it can be resumed.

    It is called after all other callbacks, so that a state includes their effects at its step.

    Args:
        path: The folder of the states.
        every: Steps between two states; None writes one at the end of each epoch.
        keep: Number of states to keep; older ones are deleted.
    """

    def __init__(self, path: Path, every: int | None, keep: int) -> None:
        self.path, self.every, self.keep = path, every, keep
        self._identity: dict[str, Any] = {}
        self._newest = 0  # the step of the last state that was read or written

    @classmethod
    def given(cls, options: RunOptions) -> "Checkpoint | None":
        """Check the options for saved states and make the folder; return None if `checkpoint_dir` is None.

        Raises:
            ValueError: `checkpoint_dir` is not a folder, or is missing although another option needs it.
            FileExistsError: The folder holds a run's states, which `resume=True` would continue.
            OSError: The folder cannot be made or written to.
        """
        every = checks.integer("checkpoint_every", options.checkpoint_every, 1, optional=True)
        keep = checks.integer("keep_checkpoints", options.keep_checkpoints, 1)
        if options.checkpoint_dir is None:
            for name, wanted in (("resume=True", options.resume), ("checkpoint_every", every is not None)):
                if wanted:
                    raise ValueError(f"{name} needs checkpoint_dir=, the folder that holds the run's states")
            return None
        path = checks.path("checkpoint_dir", options.checkpoint_dir)
        if path.is_file():
            raise ValueError(f"checkpoint_dir is {str(path)!r}, which is a file; it must be a folder")
        checkpoint = cls(path, every, keep)
        for state in checkpoint.states():
            if not state.is_file():
                raise ValueError(f"{state} is not a file; remove it, or give another checkpoint_dir")
        if checkpoint.states() and not options.resume:
            raise FileExistsError(
                f"checkpoint_dir {str(path)!r} holds a run's states; give resume=True to continue it, or another folder"
            )
        make_folder(path, "checkpoint_dir")
        return checkpoint

    def states(self) -> list[Path]:
        """Return the state files, newest first."""
        numbered = {path: int(match[1]) for path in self.path.glob("*") if (match := _NAME.fullmatch(path.name))}
        return [*sorted(numbered, key=numbered.__getitem__, reverse=True), *self.path.glob(_OLD_NAME)]

    def begin(self, run: Run, *, resume: bool) -> State | None:
        """Record the identity of the run. If it is resumed, return its newest complete state, or None without one.

        Damaged states are reported and left in place.

        Raises:
            ValueError: Every state is damaged, or a state belongs to another run.
        """
        self._identity = identity_of(run)
        damaged: list[str] = []
        for path in self.states() if resume else []:
            try:
                state = read_state(path, self._identity, run)
            except DamagedState as error:
                damaged.append(str(error))
                continue
            for reason in damaged:
                logger.warning("%s. Resuming from the state before, %s", reason, path)
            self._newest = len(state.history.steps)
            return state
        if damaged:
            advice = "There is no complete state before it; start the run again, in another checkpoint_dir"
            raise ValueError(f"{'; '.join(damaged)}. {advice}")
        return None

    def on_start(self, run: Run) -> None:
        """Delete partly written files of a run that was killed, at least an hour old."""
        remove_abandoned(self.path, ".step-*.tmp")

    def on_step(self, run: Run, step: Step) -> None:
        """Write a state, and delete the oldest of more than `keep_checkpoints`.

        Raises:
            OSError: The state cannot be written. At the end of a run this is logged instead, so that `train` can return
                the history.
        """
        run.follow_freeze()
        path = self.path / f"step-{step.step:08d}.safetensors"
        self._newest = step.step
        try:
            write_state(path, self._identity, run)
        except OSError as error:
            if step.step < run.total_steps and not run.history.stopped:
                raise
            logger.error("the last state of the run was not written to %s: %s", path, error)
        for old in self.states()[self.keep :]:
            with suppress(OSError):  # Windows cannot delete a mapped file
                old.unlink(missing_ok=True)

    def on_end(self, run: Run) -> None:
        """Write the last state of a run that ended normally."""
        steps = run.history.steps
        if run.finished and steps and steps[-1].step != self._newest:
            self.on_step(run, steps[-1])
