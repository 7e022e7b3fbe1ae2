"""`Checkpoint`: writes states of a run into a folder, from the newest complete one of which it resumes."""

import logging
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptclf import checks
from gptclf.training.callbacks import Callback
from gptclf.training.loop import Step
from gptclf.training.state import DamagedState, State, read_state, write_state

if TYPE_CHECKING:
    from gptclf.training.run import Run

logger = logging.getLogger(__name__)

_NAME = re.compile(r"step-(\d+)\.safetensors")
_OLD_NAME = "training.safetensors"  # the only file of format 1


@dataclass(frozen=True)
class StateFolder:
    """The folder in which a run keeps its states, and which of them.

    Attributes:
        path: The folder.
        every: Steps between two states; None writes one at the end of each epoch.
        keep: How many states to keep, the newest.
        resume: Whether to resume from the newest state.
    """

    path: Path
    every: int | None
    keep: int
    resume: bool

    @classmethod
    def given(
        cls, checkpoint_dir: Any, checkpoint_every: Any, keep_checkpoints: Any, resume: Any
    ) -> "StateFolder | None":
        """Check what `train` was given, and make the folder; None without one.

        Raises:
            ValueError: The target is not a folder, or an argument needs one.
            FileExistsError: The folder holds a run's states, which `resume=True` would continue.
            OSError: The folder cannot be made or written to.
        """
        every = checks.integer("checkpoint_every", checkpoint_every, 1, optional=True)
        keep = checks.integer("keep_checkpoints", keep_checkpoints, 1)
        resume = checks.boolean("resume", resume)
        if checkpoint_dir is None:
            for name, wanted in (("resume=True", resume), ("checkpoint_every", every is not None)):
                if wanted:
                    raise ValueError(f"{name} needs checkpoint_dir=, the folder that holds the run's states")
            return None
        folder = cls(checks.path("checkpoint_dir", checkpoint_dir), every, keep, resume)
        if folder.path.exists() and not folder.path.is_dir():
            raise ValueError(f"checkpoint_dir is {str(checkpoint_dir)!r}, which is a file; it must be a folder")
        if not resume and folder.states():
            raise FileExistsError(
                f"{folder.path} holds the states of a run; give resume=True to continue it, or another checkpoint_dir"
            )
        folder._check_writable()
        return folder

    def _check_writable(self) -> None:
        probe = self.path / f".step-probe.{os.getpid()}.tmp"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(b"")
        except OSError as error:
            raise OSError(
                error.errno,
                f"checkpoint_dir {str(self.path)!r} cannot be written to ({error.strerror}); give a folder that can",
            ) from error
        finally:
            with suppress(OSError):
                probe.unlink(missing_ok=True)

    def states(self) -> list[Path]:
        """Return the files of states, the newest first."""
        if not self.path.is_dir():
            return []
        numbered = {path: match for path in self.path.iterdir() if (match := _NAME.fullmatch(path.name))}
        newest_first = sorted(numbered, key=lambda path: int(numbered[path][1]), reverse=True)
        old = self.path / _OLD_NAME
        return [*newest_first, *([old] if old.is_file() else [])]

    def newest(self, identity: Mapping[str, Any], shapes: Mapping[str, Any]) -> State | None:
        """Read the newest complete state; None if there is none yet. Damaged ones are reported and left.

        Raises:
            ValueError: Every state is damaged, or they are of another run.
        """
        damaged: list[str] = []
        for path in self.states():
            try:
                state = read_state(path, identity, shapes)
            except DamagedState as error:
                damaged.append(str(error))
                continue
            for reason in damaged:
                logger.warning("%s. Resuming from the state before, %s", reason, path)
            return state
        if damaged:
            raise ValueError(
                f"{'; '.join(damaged)}. There is no complete state before it; start the run again, in another "
                "checkpoint_dir"
            )
        return None


class Checkpoint(Callback):
    """Writes states of the run, so that it can be resumed.

    It comes after all other callbacks, so that a state holds what they did at its step.

    Args:
        folder: Where to write, and how often.
        identity: What determines the run.
    """

    def __init__(self, folder: StateFolder, identity: Mapping[str, Any]) -> None:
        self.every = folder.every
        self._folder, self._identity = folder, identity
        self._written = 0

    def on_start(self, run: "Run") -> None:
        """Remove what a run that was killed had begun to write."""
        for path in self._folder.path.glob(".step-*.tmp"):
            path.unlink(missing_ok=True)

    def on_step(self, run: "Run", step: Step) -> None:
        """Write a state, and delete the oldest of more than `keep_checkpoints`."""
        write_state(self._folder.path / f"step-{step.step:08d}.safetensors", self._identity, run, run.callbacks)
        self._written = step.step
        for path in self._folder.states()[self._folder.keep :]:
            with suppress(OSError):  # Windows keeps a file that is mapped
                path.unlink(missing_ok=True)

    def on_end(self, run: "Run") -> None:
        """Write the last state of a run that ended in order."""
        steps = run.history.steps
        if run.finished and steps and steps[-1].step not in (self._written, run.resumed_at):
            self.on_step(run, steps[-1])
