"""Reactions to a run: stopping, measuring, changing the rate, and Ctrl-C."""

import inspect
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import byte_gpt2
from torch import Tensor

from gptclf import GPT2, History, TextDataset, add_classifier_head, batch_loss, freeze, train
from gptclf.data.batches import Batches
from gptclf.training.callbacks import EarlyStopping, KeepBest, Measure
from gptclf.training.history import Scores
from gptclf.training.loop import Step
from gptclf.training.run import Callback, Run

TEXTS = ["win a prize", "see you", "call now", "ok then", "free entry", "at six?", "what"]
LABELS = ["spam", "ham", "spam", "ham", "spam", "ham", "ham"]
TURNED = ["ham", "spam", "ham", "spam", "ham", "spam", "spam"]


def classifier(trainable: str = "last_block", dropout: float = 0.0) -> GPT2:
    clf = add_classifier_head(byte_gpt2(dropout=dropout), classes=["ham", "spam"], seed=3)
    freeze(clf, trainable=trainable)
    return clf


def run(clf: GPT2, *, labels: list[str] = LABELS, **changes: Any) -> History:
    data = TextDataset(TEXTS, LABELS, tokenizer=clf.tokenizer, classes=clf.classes)
    val = TextDataset(TEXTS, labels, tokenizer=clf.tokenizer, classes=clf.classes)
    return train(clf, data, val, **{"epochs": 4, "batch_size": 2, "lr": 1e-2, "progress": False, **changes})


def weights(clf: GPT2) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in clf.named_parameters()}


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


# Stopping


class StopWhenGood(Callback):
    def on_scores(self, run: Run, scores: Scores) -> None:
        if scores.val_loss < 0.6:
            run.stop("good enough")


def test_a_callback_stops_a_run_by_a_rule_of_its_own() -> None:
    assert len(inspect.getsource(StopWhenGood).splitlines()) <= 8
    history = run(classifier(), epochs=50, callbacks=[StopWhenGood()])
    assert history.stopped == "good enough"
    assert len(history.epochs) < 50
    assert [scores.val_loss < 0.6 for scores in history.epochs] == [False] * (len(history.epochs) - 1) + [True]


def test_a_run_that_takes_all_its_steps_was_not_stopped() -> None:
    assert run(classifier()).stopped is None


def test_the_first_reason_is_kept_and_all_callbacks_see_the_step() -> None:
    seen: list[int] = []

    class Stop(Callback):
        def on_step(self, run: Run, step: Step) -> None:
            seen.append(step.step)
            if step.step == 2:
                run.stop()
                run.stop("later")

    history = run(classifier(), callbacks=[Stop(), Stop()])
    assert history.stopped == "stopped"
    assert seen == [1, 1, 2, 2]
    assert [step.step for step in history.steps] == [1, 2]
    assert history.epochs == []


def test_early_stopping_waits_and_puts_the_best_weights_back() -> None:
    seen: list[dict[str, Tensor]] = []

    class Watch(Callback):
        def on_scores(self, run: Run, scores: Scores) -> None:
            seen.append(weights(run.model))

    clf, stop = classifier(), EarlyStopping(2)
    history = run(clf, labels=TURNED, epochs=30, callbacks=[stop, Watch()])
    losses = [scores.val_loss for scores in history.epochs]
    best = int(np.argmin(losses))
    assert history.stopped == "early stopping"
    assert len(losses) == best + 3
    assert stop.best == history.epochs[best]
    assert equal(weights(clf), seen[best])


def test_early_stopping_may_keep_the_last_weights() -> None:
    clf, stop = classifier(), EarlyStopping(1, "accuracy", restore_best=False)
    history = run(clf, labels=TURNED, epochs=30, callbacks=[stop])
    assert history.stopped == "early stopping"
    expected = classifier()
    run(expected, epochs=len(history.epochs))
    assert equal(weights(clf), weights(expected))


@pytest.mark.parametrize(("measure", "pick"), [("loss", np.argmin), ("accuracy", np.argmax)])
def test_the_task_says_which_measure_is_better_high(measure: str, pick: Any) -> None:
    keep = KeepBest(measure)
    history = run(classifier(), labels=TURNED, epochs=6, callbacks=[keep])
    assert keep.best == history.epochs[int(pick([getattr(s, f"val_{measure}") for s in history.epochs]))]


def test_an_unknown_measure_is_named_before_the_first_step() -> None:
    clf = classifier()
    before = weights(clf)
    with pytest.raises(ValueError, match="measure is 'f1'; this task measures loss, accuracy"):
        run(clf, callbacks=[KeepBest("f1")])
    assert equal(weights(clf), before)
    history = run(classifier(), epochs=1)
    with pytest.raises(AttributeError, match="there is no measure 'f1'; this task measures loss, accuracy"):
        _ = history.epochs[0].val_f1


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: EarlyStopping(0), ValueError),
        (lambda: EarlyStopping("3"), TypeError),  # type: ignore[arg-type]
        (lambda: EarlyStopping(1, restore_best=1), TypeError),  # type: ignore[arg-type]
        (lambda: KeepBest(3), TypeError),  # type: ignore[arg-type]
        (lambda: KeepBest(every=0), ValueError),
        (lambda: Measure(every=2.5), TypeError),  # type: ignore[arg-type]
    ],
)
def test_wrong_arguments_of_callbacks(make: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        make()


# When callbacks are called


class Every(Callback):
    def __init__(self, every: int | None) -> None:
        self.every, self.steps = every, list[int]()

    def on_step(self, run: Run, step: Step) -> None:
        self.steps.append(step.step)


def test_every_says_at_which_steps() -> None:
    watches = [Every(1), Every(3), Every(None)]
    run(classifier(), epochs=2, callbacks=watches)
    assert [watch.steps for watch in watches] == [list(range(1, 9)), [3, 6], [4, 8]]
    with pytest.raises(ValueError, match=r"Every.every is 0; it must be an integer of at least 1 or None"):
        run(classifier(), callbacks=[Every(0)])


def test_a_measurement_is_made_once_per_step_whoever_asks() -> None:
    watch: list[int] = []

    class Ask(Callback):
        def on_step(self, run: Run, step: Step) -> None:
            assert run.measure() is run.measure() is run.scores

        def on_scores(self, run: Run, scores: Scores) -> None:
            watch.append(scores.step)

    history = run(classifier(), epochs=1, eval_every=2, callbacks=[Ask(), KeepBest(every=1)])
    assert watch == [1, 2, 3, 4]
    assert [scores.step for scores in history.evaluations] == [1, 2, 3]
    assert [scores.step for scores in history.epochs] == [4]


def test_keep_best_can_measure_more_often_than_the_run() -> None:
    keep = KeepBest(every=1)
    history = run(classifier(), epochs=1, labels=TURNED, lr=0.1, callbacks=[keep])
    assert [scores.step for scores in history.evaluations] == [1, 2, 3]
    assert keep.best == min(history.scores(), key=lambda scores: scores.val_loss)


def test_a_run_shows_what_it_is() -> None:
    class Look(Callback):
        def on_start(self, run: Run) -> None:
            assert (run.total_steps, run.steps_per_epoch, run.recipe.epochs) == (8, 4, 2)
            assert run.scores is None
            with pytest.raises(ValueError, match="nothing to measure before the first step"):
                run.measure()

        def on_step(self, run: Run, step: Step) -> None:
            assert run.history.steps[-1] is step
            assert run.ends_epoch == (step.step % 4 == 0)
            assert not run.model.training
            assert run.objective.learner.training
            assert {id(p) for p in run.objective.parameters()} <= {id(p) for p in run.model.parameters()}
            assert step.batch == (step.step - 1) % 4 + 1

    run(classifier(), epochs=2, callbacks=[Look()])


def test_the_rate_can_be_scaled_as_the_run_goes_on() -> None:
    class Halve(Callback):
        every = None

        def on_step(self, run: Run, step: Step) -> None:
            run.lr_scale *= 0.5

    history = run(classifier(), epochs=2, callbacks=[Halve()], lr=0.01, warmup_steps=2)
    assert [step.lr for step in history.steps] == [0.005, 0.01, 0.01, 0.01, 0.005, 0.005, 0.005, 0.005]

    class Wrong(Callback):
        def on_step(self, run: Run, step: Step) -> None:
            run.lr_scale = -1.0

    with pytest.raises(ValueError, match="lr_scale is -1"):
        run(classifier(), callbacks=[Wrong()])


# What a run leaves behind


@pytest.mark.parametrize("end", ["whole", "stopped", "error"])
def test_after_any_end_a_loop_of_ones_own_has_autograds_gradients(end: str) -> None:
    class End(Callback):
        def on_step(self, run: Run, step: Step) -> None:
            if end == "stopped":
                run.stop()
            elif end == "error":
                raise KeyError(end)

    clf = classifier()
    if end == "error":
        with pytest.raises(KeyError):
            run(clf, callbacks=[End()])
    else:
        run(clf, epochs=1, callbacks=[End()])
    assert all(parameter.grad is None for parameter in clf.parameters())
    data = TextDataset(TEXTS, LABELS, tokenizer=clf.tokenizer, classes=clf.classes)
    loss = batch_loss(clf, next(iter(Batches(data, 7))))
    expected = torch.autograd.grad(loss, [p for p in clf.parameters() if p.requires_grad], retain_graph=True)
    loss.backward()  # type: ignore[no-untyped-call]
    found = [p.grad for p in clf.parameters() if p.requires_grad]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours is not None
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


# Ctrl-C


posix = pytest.mark.skipif(os.name != "posix", reason="needs signals between processes")


class Interrupt(Callback):
    """Presses Ctrl-C, once or twice, in the given step."""

    def __init__(self, step: int, times: int = 1) -> None:
        self.step, self.times = step, times

    def on_step(self, run: Run, step: Step) -> None:
        if step.step == self.step:
            for _ in range(self.times):
                os.kill(os.getpid(), signal.SIGINT)


PROGRAM = """
import json, logging, os, signal, sys
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from test_callbacks import Interrupt, KeepBest, classifier, run
options = json.loads(sys.argv[2])
times = options.pop("times", 1)
try:
    history = run(classifier(), callbacks=[KeepBest(), Interrupt(6, times)], **options)
    print(json.dumps([history.stopped, len(history.steps), len(history.epochs)]))
except KeyboardInterrupt:
    print(json.dumps("KeyboardInterrupt"))
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
"""


def in_a_process(**options: Any) -> tuple[Any, str]:
    command = [sys.executable, "-c", PROGRAM, str(Path(__file__).parent), json.dumps(options)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


@posix
def test_ctrl_c_ends_a_run_in_order_and_it_resumes_bit_for_bit(tmp_path: Path) -> None:
    found, said = in_a_process(checkpoint_dir=str(tmp_path / "states"))
    assert found == ["interrupted", 6, 1]
    assert "interrupted after step 6 of 16; resume with the same arguments, checkpoint_dir=" in said
    assert "resume=True" in said
    straight, resumed = classifier(), classifier()
    whole = run(straight, callbacks=[KeepBest()])
    history = run(resumed, callbacks=[KeepBest()], checkpoint_dir=tmp_path / "states", resume=True)
    assert history.stopped is None
    assert history.steps == whole.steps
    assert equal(weights(resumed), weights(straight))


@posix
def test_ctrl_c_without_a_folder_says_what_would_have_kept_the_run() -> None:
    found, said = in_a_process()
    assert found == ["interrupted", 6, 1]
    assert "interrupted after step 6 of 16; no state was kept: give checkpoint_dir=" in said


@posix
def test_a_second_ctrl_c_is_the_usual_one() -> None:
    found, _ = in_a_process(times=2)
    assert found == "KeyboardInterrupt"


LONG_PROGRAM = """
import json, sys
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from test_callbacks import Callback, classifier, run
class Ready(Callback):
    def on_step(self, run, step):
        if step.step == 3:
            print("ready", flush=True)
history = run(classifier(), callbacks=[Ready()], epochs=100_000, checkpoint_dir=sys.argv[2])
print(json.dumps([history.stopped, len(history.steps)]))
"""


@posix
def test_ctrl_c_from_outside_in_the_middle_of_a_step(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LONG_PROGRAM, str(Path(__file__).parent), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        stopped, steps = json.loads(process.communicate(timeout=120)[0])
    assert stopped == "interrupted"
    assert 3 <= steps < 400_000
    assert max(tmp_path.iterdir()).name == f"step-{steps:08d}.safetensors"


@posix
def test_a_handler_of_the_callers_is_left_alone() -> None:
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: pressed.append(number))
    try:
        history = run(classifier(), callbacks=[Interrupt(2)])
    finally:
        signal.signal(signal.SIGINT, before)
    assert pressed == [signal.SIGINT]
    assert history.stopped is None


def test_outside_of_the_main_thread_no_handler_is_set() -> None:
    found: list[Any] = []

    class Look(Callback):
        def on_step(self, run: Run, step: Step) -> None:
            found.append(signal.getsignal(signal.SIGINT))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=lambda: run(classifier(), epochs=1, callbacks=[Look()]))
    thread.start()
    thread.join()
    assert set(found) == {before}


@posix
@pytest.mark.parametrize("begun", [True, False])
def test_ctrl_c_in_a_run_inside_a_run_ends_both(begun: bool) -> None:
    inner: list[History] = []

    class Press(Callback):
        def on_start(self, run: Run) -> None:
            if not begun:
                os.kill(os.getpid(), signal.SIGINT)

    class Within(Callback):
        def on_step(self, outer: Run, step: Step) -> None:
            if step.step == 3:
                inner.append(run(classifier(), callbacks=[Press(), *[Interrupt(2)] * begun]))

    history = run(classifier(), callbacks=[Within()])
    assert [(h.stopped, len(h.steps)) for h in (*inner, history)] == [("interrupted", 2 * begun), ("interrupted", 3)]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@posix
def test_ctrl_c_with_no_step_left_interrupts_nothing(caplog: pytest.LogCaptureFixture) -> None:
    class PressAtTheEnd(Callback):
        def on_end(self, run: Run) -> None:
            os.kill(os.getpid(), signal.SIGINT)

    for callback in (Interrupt(16), PressAtTheEnd()):
        history = run(classifier(), callbacks=[callback])
        assert (history.stopped, len(history.steps)) == (None, 16)
    assert "interrupted" not in caplog.text


@posix
def test_a_handler_that_a_callback_installs_stays() -> None:
    def own(*_: Any) -> None:
        """Do nothing."""

    class Install(Callback):
        def on_step(self, run: Run, step: Step) -> None:
            signal.signal(signal.SIGINT, own)

    before = signal.getsignal(signal.SIGINT)
    try:
        run(classifier(), callbacks=[Install()])
        assert signal.getsignal(signal.SIGINT) is own
    finally:
        signal.signal(signal.SIGINT, before)


# Odd calls


def test_a_run_is_stopped_without_a_reason_but_not_after_its_last_step() -> None:
    class Stop(Callback):
        def __init__(self, step: int) -> None:
            self.step = step

        def on_step(self, run: Run, step: Step) -> None:
            if step.step == self.step:
                run.stop("")

    assert run(classifier(), callbacks=[Stop(3)]).stopped == "stopped"
    assert run(classifier(), callbacks=[Stop(16)]).stopped is None


def test_freezing_at_the_end_of_a_run_leaves_its_steps_and_best_weights() -> None:
    freezing, straight, clf = Callback(), classifier(dropout=0.1), classifier(dropout=0.1)
    freezing.on_end = lambda run: freeze(run.model, trainable="all")  # type: ignore[method-assign]
    whole = run(straight, callbacks=[KeepBest()])
    assert run(clf, callbacks=[freezing, KeepBest()]).steps == whole.steps
    assert equal(weights(clf), weights(straight))
    assert all(parameter.requires_grad and parameter.grad is None for parameter in clf.parameters())


@pytest.mark.parametrize("measure", ["loss", "accuracy"])
def test_a_measure_that_is_not_a_number_is_not_the_best(measure: str) -> None:
    class Now:
        task = classifier().task

        def changing(self) -> dict[str, Tensor]:
            return {}

    keep, best = KeepBest(measure), []
    for step, value in enumerate([float("nan"), 0.5, float("nan"), 0.7, 0.3]):
        measures = {"loss": value, "accuracy": value}
        keep.on_scores(Now(), Scores(step, 1, 1, measures, measures, 0.0))  # type: ignore[arg-type]
        best.append(keep.best and keep.best.step)
    assert best == {"loss": [None, 1, 1, 1, 4], "accuracy": [None, 1, 1, 3, 3]}[measure]


def test_callbacks_may_be_none_or_any_iterable() -> None:
    whole = run(classifier())
    assert run(classifier(), callbacks=None).steps == whole.steps
    stops = EarlyStopping(1)
    run(classifier(), callbacks=(callback for callback in [stops]))
    assert stops.best is not None
    for wrong in (3, Callback(), [Callback]):
        with pytest.raises(TypeError, match=r"must be a list of gptclf\.Callback objects, or None"):
            run(classifier(), callbacks=wrong)


def test_a_callback_keeps_numbers_but_no_texts(tmp_path: Path) -> None:
    class Keeps(Callback):
        kept: Any = 3
        restored: Any = None

        def state(self) -> Any:
            return {"kept": self.kept}

        def restore(self, state: dict[str, Tensor], run: Run) -> None:
            self.restored = state["kept"].item()

    run(classifier(), callbacks=[Keeps()], checkpoint_dir=tmp_path)
    again = Keeps()
    run(classifier(), callbacks=[again], checkpoint_dir=tmp_path, resume=True)
    assert again.restored == 3
    again.kept = "three"
    with pytest.raises(TypeError, match="Keeps keeps a str; a state can hold numbers, and tensors by name"):
        run(classifier(), callbacks=[again], checkpoint_dir=tmp_path / "other")


def test_a_history_is_shown_on_a_screenful() -> None:
    history = run(classifier(), epochs=50, eval_every=1)
    assert len(repr(history)) < 300
    assert "200 steps, 50 epochs, 200 measurements, stopped=None, last epoch 50, step 200: train loss" in repr(history)
    assert repr(History()) == "<History: 0 steps, 0 epochs, 0 measurements, stopped=None>"


def test_a_method_that_nothing_would_call_is_refused_by_name() -> None:
    for name in ("on_epoch_end", "on_score"):
        mine = type("Mine", (Callback,), {name: lambda self, run: None})
        with pytest.raises(TypeError, match=rf"Mine\.{name} would never be called; the methods are on_start, on_step"):
            run(classifier(), callbacks=[mine()])
    parts = {"_on_score": lambda self: None, "on_gpu": True, "on_step": lambda self, run, step: None}
    run(classifier(), epochs=1, callbacks=[type("Mine", (Callback,), parts)()])


def test_printed_measures_of_a_sample_say_of_how_many_rows(capsys: pytest.CaptureFixture[str]) -> None:
    run(classifier(), epochs=1, eval_batches=2, batch_size=4, progress=True)
    assert "(at most 8 rows of each set, " in capsys.readouterr().err
