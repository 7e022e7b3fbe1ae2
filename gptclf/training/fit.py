"""`fit`: takes the steps of a run and calls its callbacks."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType

from gptclf.progress import format_seconds
from gptclf.training.estimate import step_seconds, typical_batch
from gptclf.training.history import History
from gptclf.training.run import Run
from gptclf.training.state import State


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
        ending.enter_context(run.learning())
        if saved is not None:
            saved.restore(run)
        left = run.total_steps - len(run.history.steps)
        if run.options.progress and left:
            objective = run.build_objective(run.objective.learner.depth)
            seconds = left * step_seconds(objective, typical_batch(run, run.rows[0]), run.recipe.accumulate)
            print(f"{left:,} steps, about {format_seconds(seconds)}, measurements not counted", file=sys.stderr)
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

    Only in the main thread, and only if Python's own handler is installed. Before the first step, Ctrl-C raises
    KeyboardInterrupt as usual.
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
