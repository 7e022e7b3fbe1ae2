"""`fit`: takes the steps of a run and calls its callbacks."""

import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import FrameType
from typing import Any

from gptclf.progress import format_seconds, write_line
from gptclf.training.estimate import step_seconds, typical_batch
from gptclf.training.history import History
from gptclf.training.run import Run
from gptclf.training.state import State

_USUAL = signal.default_int_handler


def fit(run: Run, saved: State | None = None) -> History:
    """Take a run's steps and call its callbacks. However the run ends, `on_end` of each started callback is called.

    Args:
        run: The run, whose arguments have been checked. Its callbacks are called in their order, `on_end` in the
            reverse order.
        saved: A state of this run to resume from.
    """
    with ExitStack() as ending:
        ending.enter_context(deferred_interrupt(run))
        ending.callback(run.release)
        for callback in run.callbacks:
            callback.on_start(run)
            ending.callback(callback.on_end, run)
        if saved is not None:
            saved.restore(run)
        ending.enter_context(run.learning())
        if saved is not None:
            saved.restore_generator(run.objective.learner.generator)
        left = run.total_steps - len(run.history.steps)
        if run.options.progress and left:
            objective = run.build_objective(run.objective.learner.depth)
            seconds = left * step_seconds(objective, typical_batch(run, run.rows[0]), run.recipe.accumulate)
            write_line(f"{left:,} steps, about {format_seconds(seconds)}, measurements not counted")
        for step in run:
            for callback in run.callbacks:
                if run.is_due(callback.every):
                    callback.on_step(run, step)
            if run.history.stopped:
                break
        run.finished = True
    return run.history


@contextmanager
def deferred_interrupt(run: Run) -> Iterator[None]:
    """In the block, let Ctrl-C end the run after the current step; a second one raises KeyboardInterrupt as usual.

    Only in the main thread, and only if the handler is Python's own, or that of an outer run, which then ends as well.
    Before the first step, Ctrl-C raises KeyboardInterrupt as usual. A handler that a callback installs stays.
    """
    before = signal.getsignal(signal.SIGINT)
    known = before is _USUAL or getattr(before, "func", None) is _defer
    if threading.current_thread() is not threading.main_thread() or not known:
        yield
        return
    deferred = partial(_defer, run, before)
    signal.signal(signal.SIGINT, deferred)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is deferred:
            signal.signal(signal.SIGINT, before)


def _defer(run: Run, before: Any, number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGINT, _USUAL)
    if before is not _USUAL or not run.begun:
        before(number, frame)
    run.stop("interrupted")
