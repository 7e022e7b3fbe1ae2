"""A run that is killed, or changed, or of another version: what its states hold and what resuming makes of them."""

import errno
import os
import signal
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import byte_gpt2, byte_tokenizer
from torch import Tensor, nn

from gptclf import (
    GPT2,
    GPT2Config,
    Head,
    History,
    TextDataset,
    add_classifier_head,
    dataset_loss,
    evaluate,
    freeze,
    load_gpt2,
    train,
)
from gptclf.files.safetensors_file import read_safetensors
from gptclf.gpt2.heads import pool
from gptclf.tasks import SingleLabel
from gptclf.training.callbacks import EarlyStopping, KeepBest
from gptclf.training.loop import Step
from gptclf.training.run import Callback, Run

TEXTS = [f"{word} {i}" for i in range(4) for word in ("win a prize", "see you", "call now")]
LABELS = ["spam", "ham", "spam"] * 4
WEIGHTS = [1.0, 2.0, 0.5] * 4
SETTINGS: dict[str, Any] = {"epochs": 4, "batch_size": 2, "lr": 3e-3, "eval_every": 2, "progress": False}
STATE_1 = Path(__file__).parent / "data" / "state_of_format_1.safetensors"


def classifier(trainable: str = "all", dropout: float = 0.2, class_weight: Any = "balanced") -> GPT2:
    config = GPT2Config(
        vocab_size=257, context_length=32, emb_dim=16, n_layers=2, n_heads=2, mlp_dim=24, drop_rate=dropout
    )
    gpt2 = load_gpt2(config, weights="random", seed=0, tokenizer=byte_tokenizer())
    clf = add_classifier_head(gpt2, task=SingleLabel(["ham", "spam"], class_weight), seed=3)
    freeze(clf, trainable=trainable)
    return clf


def rows(clf: GPT2, n: int = 12, weights: Any = WEIGHTS, **preparation: Any) -> TextDataset:
    weights = None if weights is None else weights[:n]
    return TextDataset(
        TEXTS[:n], LABELS[:n], tokenizer=clf.tokenizer, classes=clf.classes, weights=weights, **preparation
    )


def run(clf: GPT2, folder: Path | None = None, data: TextDataset | None = None, **changes: Any) -> History:
    data = rows(clf) if data is None else data
    resume = {} if folder is None else {"checkpoint_dir": folder, "resume": True}
    return train(clf, data, rows(clf, 5), **{**SETTINGS, **resume, **changes})


def measured(history: History) -> dict[str, Any]:
    """Everything but the times."""
    values = asdict(history)
    for part in [values, *values["evaluations"], *values["epochs"]]:
        del part["seconds"]
    return values


def weights(clf: GPT2) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in clf.named_parameters()}


def assert_same(first: GPT2, second: GPT2) -> None:
    for name, parameter in first.named_parameters():
        assert parameter.detach().numpy().tobytes() == second.get_parameter(name).detach().numpy().tobytes(), name


# Killed

posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that fork")


class Die(Callback):
    """Kills the process at a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, run: Run, step: Step) -> None:
        if step.step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def kill_at(step: int, folder: Path, **options: Any) -> None:
    """Resume the run in another process, which is killed at the given step."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of forking: the child only computes and dies
        child = os.fork()
    if child == 0:
        try:
            run(classifier(), folder, callbacks=[KeepBest(), EarlyStopping(50), Die(step)], **options)
        finally:
            os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def kill_and_resume(steps: list[int], folder: Path, **options: Any) -> None:
    """Six steps an epoch: at steps 6, 12 and 18 a measurement, a state and the end of an epoch fall together."""
    options = {**options, "checkpoint_every": 3}
    for step in steps:
        kill_at(step, folder, **options)
    straight, resumed = classifier(), classifier()
    whole = run(straight, callbacks=[KeepBest(), EarlyStopping(50)], **{**options, "checkpoint_every": None})
    history = run(resumed, folder, callbacks=[KeepBest(), EarlyStopping(50)], **options)
    assert len(history.steps) == 24
    assert measured(history) == measured(whole)
    assert_same(resumed, straight)


@posix
@pytest.mark.parametrize("options", [{}, {"batch_size": 1, "accumulate": 2, "schedule": "cosine", "clip": 1.0}])
def test_a_run_that_is_killed_four_times_is_the_one_that_was_not(options: dict[str, Any], tmp_path: Path) -> None:
    kill_and_resume([2, 8, 12, 13], tmp_path, **options)


@posix
@pytest.mark.slow
def test_a_run_that_is_killed_at_twenty_random_steps_is_the_one_that_was_not(tmp_path: Path) -> None:
    random = np.random.default_rng(11).integers(1, 25, 18).tolist()
    torch.set_num_threads(1)
    kill_and_resume(sorted([*random, 12, 13]), tmp_path)


@posix
def test_a_step_that_measures_keeps_a_state_and_ends_an_epoch_is_kept_whole(tmp_path: Path) -> None:
    kill_at(7, tmp_path, checkpoint_every=3)
    _, metadata = read_safetensors(tmp_path / "step-00000006.safetensors")
    assert '"epochs": [{"step": 6' in metadata["history"]
    tensors, _ = read_safetensors(tmp_path / "step-00000006.safetensors")
    assert int(tensors["callback.1.waited"]) <= 1  # measured at steps 2, 4 and 6


def test_a_write_that_was_cut_off_leaves_the_state_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Died(BaseException):
        pass

    def die(*_: Any) -> None:
        raise Died

    replace, written = Path.replace, list[Path]()

    def replace_once(self: Path, target: Path) -> Path:
        if len(written) == 2:
            left = tmp_path / ".step-00000018.safetensors.1.tmp"
            left.write_bytes(self.read_bytes()[:1000])
            os.utime(left, (0, 0))  # long ago
            raise Died
        written.append(target)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", replace_once)
    with pytest.raises(Died):
        run(classifier(), tmp_path)
    monkeypatch.undo()
    straight, resumed = classifier(), classifier()
    whole = run(straight)
    assert measured(run(resumed, tmp_path)) == measured(whole)
    assert_same(resumed, straight)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-00000018.safetensors",
        "step-00000024.safetensors",
    ]


# What a state keeps


class CountingSGD(torch.optim.Optimizer):
    """SGD that keeps a number, a flag, None and a tensor of integers for each parameter, and a number for a group."""

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, {"lr": lr, "taken": 0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["taken"] += 1
            for parameter in group["params"]:
                state = self.state[parameter]
                state["count"] = state.get("count", 0) + 1
                state["odd"] = state["count"] % 2 == 1
                state["nothing"] = None
                state["counts"] = state.get("counts", torch.zeros(3, dtype=torch.int32)) + 1
                rate = group["lr"] / (state["count"] + int(state["counts"][0]) + group["taken"])
                parameter.add_(parameter.grad, alpha=-rate)


OPTIMIZERS: dict[str, Any] = {
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=3e-3, amsgrad=True),
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "RMSprop": lambda parameters: torch.optim.RMSprop(parameters, lr=1e-3, centered=True),
    "NAdam": lambda parameters: torch.optim.NAdam(parameters, lr=1e-3),
    "CountingSGD": lambda parameters: CountingSGD(parameters, lr=0.3),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_state_of_any_optimizer_is_kept(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(model: GPT2, recipe: Any) -> torch.optim.Optimizer:
        return OPTIMIZERS[name]([p for p in model.parameters() if p.requires_grad])  # type: ignore[no-any-return]

    monkeypatch.setattr("gptclf.training.run.make_optimizer", make)
    straight, resumed = classifier(), classifier()
    whole = run(straight)
    stop_after(8, tmp_path)
    history = run(resumed, tmp_path)
    assert measured(history) == measured(whole)
    assert_same(resumed, straight)
    if name != "AdamW":
        monkeypatch.undo()
        with pytest.raises(ValueError, match=f"optimizer was '{name}', is 'AdamW'"):
            run(classifier(), tmp_path)


class StopAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, run: Run, step: Step) -> None:
        if step.step == self.step:
            run.stop("as told")


def stop_after(step: int, folder: Path, **options: Any) -> History:
    given = options.pop("callbacks", [])
    return run(classifier(), folder, callbacks=[*given, StopAt(step)], **options)


@pytest.mark.parametrize("step", [1, 5, 6, 7])
def test_a_run_that_was_stopped_resumes_inside_an_epoch_bit_for_bit(step: int, tmp_path: Path) -> None:
    first = stop_after(step, tmp_path / "parents" / "are" / "made")
    assert (first.stopped, len(first.steps)) == ("as told", step)
    straight, resumed = classifier(), classifier()
    whole, history = run(straight), run(resumed, tmp_path / "parents" / "are" / "made")
    assert measured(history) == measured(whole)
    assert history.stopped is None
    assert_same(resumed, straight)


def test_the_scale_of_the_rate_is_kept(tmp_path: Path) -> None:
    class Halve(Callback):
        def on_step(self, run: Run, step: Step) -> None:
            if step.step in (3, 20):
                run.lr_scale *= 0.5

    straight, resumed = classifier(), classifier()
    whole = run(straight, callbacks=[Halve()])
    stop_after(8, tmp_path, callbacks=[Halve()])
    history = run(resumed, tmp_path, callbacks=[Halve()])
    assert measured(history) == measured(whole)
    assert [step.lr / 3e-3 for step in history.steps] == [1.0] * 3 + [0.5] * 17 + [0.25] * 4


def test_a_callbacks_tensors_are_kept(tmp_path: Path) -> None:
    class Count(Callback):
        def __init__(self) -> None:
            self.count = torch.zeros((), dtype=torch.int64)

        def on_step(self, run: Run, step: Step) -> None:
            self.count += 1

        def state(self) -> dict[str, Tensor]:
            return {"count": self.count}

        def restore(self, state: dict[str, Tensor], run: Run) -> None:
            assert len(run.history.steps) == 8
            self.count = state["count"]

    stop_after(8, tmp_path, callbacks=[Count()])
    counts = Count()
    run(classifier(), tmp_path, callbacks=[counts])
    assert int(counts.count) == 24


def test_buffers_of_a_users_module_are_kept(tmp_path: Path) -> None:
    def with_norm() -> GPT2:
        clf = classifier()
        clf.head.output = nn.Sequential(nn.BatchNorm1d(16), nn.Linear(16, 2))
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in clf.head.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        return clf

    straight, resumed = with_norm(), with_norm()
    whole = run(straight)
    run(with_norm(), tmp_path, callbacks=[StopAt(8)])
    assert measured(run(resumed, tmp_path)) == measured(whole)
    for (_, one), (_, other) in zip(straight.named_buffers(), resumed.named_buffers(), strict=True):
        assert torch.equal(one, other)


def test_an_early_stop_stays_one(tmp_path: Path) -> None:
    first, again = classifier(), classifier()
    history = run(first, tmp_path, callbacks=[EarlyStopping(1)], lr=0.3, epochs=50)
    assert history.stopped == "early stopping"
    second = run(again, tmp_path, callbacks=[EarlyStopping(1)], lr=0.3, epochs=50)
    assert measured(second) == measured(history)
    assert_same(first, again)


@pytest.mark.parametrize("every", [None, 3, 100])
def test_the_newest_states_are_kept_and_the_last_step_is_one(every: int | None, tmp_path: Path) -> None:
    run(classifier(), tmp_path, checkpoint_every=every, keep_checkpoints=3)
    steps = [int(path.name[5:13]) for path in sorted(tmp_path.iterdir())]
    assert steps == {None: [12, 18, 24], 3: [18, 21, 24], 100: [24]}[every]


def test_a_home_directory_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    run(classifier(), checkpoint_dir="~/runs/first", epochs=1)
    assert [path.name for path in (tmp_path / "runs" / "first").iterdir()] == ["step-00000006.safetensors"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"checkpoint_every": 3}, "checkpoint_every needs checkpoint_dir="),
        ({"resume": True}, "resume=True needs checkpoint_dir="),
        ({"checkpoint_every": 0}, "checkpoint_every is 0; it must be an integer of at least 1 or None"),
        ({"keep_checkpoints": 0}, "keep_checkpoints is 0; it must be an integer of at least 1"),
        ({"resume": "yes"}, "resume is 'yes'; it must be True or False"),
        ({"checkpoint_dir": 3}, "checkpoint_dir is 3; it must be a path"),
    ],
)
def test_wrong_arguments_are_told_before_anything_changes(options: dict[str, Any], message: str) -> None:
    clf = classifier()
    before = weights(clf)
    with pytest.raises((ValueError, TypeError), match=message):
        run(clf, **options)
    assert all(torch.equal(before[name], parameter) for name, parameter in clf.named_parameters())
    assert clf.task == classifier().task


# More epochs, and other runs


@pytest.mark.parametrize("options", [{}, {"warmup_steps": 4}])
def test_more_epochs_continue_a_constant_schedule(options: dict[str, Any], tmp_path: Path) -> None:
    straight, resumed = classifier(), classifier()
    whole = run(straight, callbacks=[KeepBest()], **options)
    run(classifier(), tmp_path, epochs=2, callbacks=[KeepBest()], **options)
    history = run(resumed, tmp_path, callbacks=[KeepBest()], **options)
    assert measured(history) == measured(whole)
    assert_same(resumed, straight)
    with pytest.raises(ValueError, match="epochs was 4, is 3"):
        run(classifier(), tmp_path, epochs=3, callbacks=[KeepBest()], **options)


def other_weights(clf: GPT2) -> TextDataset:
    return rows(clf, weights=[3.0, *WEIGHTS[1:]])


def no_weights(clf: GPT2) -> TextDataset:
    return rows(clf, weights=None)


def shorter(clf: GPT2) -> TextDataset:
    return rows(clf, max_length=30)


def fewer(clf: GPT2) -> TextDataset:
    return rows(clf, 11)


def changed(clf: GPT2, texts: list[str], labels: list[str]) -> TextDataset:
    weights = [*WEIGHTS, 1.0][: len(texts)]
    return TextDataset(texts, labels, tokenizer=clf.tokenizer, classes=clf.classes, weights=weights)


def added(clf: GPT2) -> TextDataset:
    return changed(clf, [*TEXTS, "one more"], [*LABELS, "ham"])


def put_before(clf: GPT2) -> TextDataset:
    return changed(clf, ["one more", *TEXTS], ["ham", *LABELS])


def another_text(clf: GPT2) -> TextDataset:
    return changed(clf, [*TEXTS[:7], "see yOu", *TEXTS[8:]], LABELS)


def another_label(clf: GPT2) -> TextDataset:
    return changed(clf, TEXTS, [*LABELS[:5], "ham", *LABELS[6:]])


def swapped(clf: GPT2) -> TextDataset:
    return changed(clf, [*TEXTS[:3], TEXTS[4], TEXTS[3], *TEXTS[5:]], [*LABELS[:3], "ham", "spam", *LABELS[5:]])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (other_weights, "the training set's row weights differ"),
        (no_weights, "the training set's row weights differ"),
        (shorter, r"preparation\.max_length was None, is 30"),
        (fewer, "the training set had 12 rows, has 11: the first 11 are the same"),
        (added, "the training set had 12 rows, has 13: the first 12 are the same"),
        (put_before, "the training set had 12 rows, has 13: row 0 is the first that differs"),
        (another_text, "the training set's texts or labels differ: row 7 is the first that differs"),
        (another_label, "the training set's texts or labels differ: row 5 is the first that differs"),
        (swapped, "the training set's texts or labels differ: row 3 is the first that differs"),
    ],
)
def test_other_rows_are_told_in_words(make: Any, message: str, tmp_path: Path) -> None:
    stop_after(6, tmp_path)
    clf = classifier()
    with pytest.raises(ValueError, match=message + r".*Give what that run was given, or another checkpoint_dir"):
        run(clf, tmp_path, make(clf))


def test_a_changed_validation_set_is_told_in_words(tmp_path: Path) -> None:
    stop_after(6, tmp_path)
    clf = classifier()
    for val, message in ((rows(clf, 7), "had 5 rows, has 7: the first 5 are the same"), (None, "had 5 rows, has no")):
        with pytest.raises(ValueError, match=f"the validation set {message}"):
            train(clf, rows(clf), val, checkpoint_dir=tmp_path, resume=True, **SETTINGS)


def test_another_task_is_told_in_words(tmp_path: Path) -> None:
    stop_after(6, tmp_path)
    with pytest.raises(ValueError, match=r"task\.weights was \[1.5, 0.75\], is None"):
        run(classifier(class_weight=None), tmp_path)
    with pytest.raises(ValueError, match=r"task\.class_weight was 'balanced', is 'given'"):
        run(classifier(class_weight={"ham": 1.5, "spam": 0.75}), tmp_path)


def test_another_measure_to_keep_is_another_run(tmp_path: Path) -> None:
    stop_after(6, tmp_path, callbacks=[KeepBest("accuracy")])
    with pytest.raises(ValueError, match=r"""callbacks was \["KeepBest\('accuracy'\)"\], is \['KeepBest'\]"""):
        run(classifier(), tmp_path, callbacks=[KeepBest()])


# A state of an earlier version


def test_a_state_of_the_version_before_is_resumed(tmp_path: Path) -> None:
    (tmp_path / "training.safetensors").write_bytes(STATE_1.read_bytes())
    clf = classifier("last_block", dropout=0.0, class_weight=None)
    texts = ["win a prize", "see you", "call now", "ok then", "free entry", "at six?", "what"]
    labels = ["spam", "ham", "spam", "ham", "spam", "ham", "ham"]
    data = TextDataset(texts, labels, tokenizer=clf.tokenizer, classes=clf.classes)
    settings: dict[str, Any] = {
        "epochs": 4,
        "batch_size": 2,
        "lr": 1e-2,
        "schedule": "cosine",
        "warmup_steps": 3,
        "accumulate": 2,
        "clip": 1.0,
        "eval_every": 1,
        "progress": False,
        "precision": "float32",
        "checkpoint_dir": tmp_path,
    }
    with pytest.raises(ValueError, match=r"lr was 0\.01, is 0\.02"):
        train(clf, data, data, callbacks=[KeepBest()], resume=True, **{**settings, "lr": 0.02})
    with pytest.raises(FileExistsError, match="resume=True"):
        train(clf, data, data, callbacks=[KeepBest()], **settings)
    keep = KeepBest()
    history = train(clf, data, data, callbacks=[keep], resume=True, **settings)
    # The losses that the version before found in one go, six of them in the state.
    losses = [0.65818197, 0.78880057, 0.60011953, 0.59740727, 0.42022496, 0.50964661, 0.33268645, 0.30332384]
    val = [0.66557930, 0.62481644, 0.54741488, 0.44526059, 0.41041460, 0.32296626, 0.29893711, 0.29185854]
    np.testing.assert_allclose([step.loss for step in history.steps], losses, rtol=1e-5)
    np.testing.assert_allclose([scores.val_loss for scores in history.scores()], val, rtol=1e-5)
    assert [scores.step for scores in history.epochs] == [2, 4, 6, 8]
    assert history.epochs[0].val_accuracy == pytest.approx(5 / 7)
    assert keep.best == history.epochs[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000008.safetensors", "training.safetensors"]


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (SingleLabel(["ham", "spam"], label_smoothing=0.3), r"task\.label_smoothing was 0\.0, is 0\.3"),
        (SingleLabel(["ham", "spam"], {"spam": 2.0}), r"task\.class_weight was None, is 'given'"),
        (SingleLabel(["ham", "spam"], "balanced"), r"task\.class_weight was None, is 'balanced'"),
        (SingleLabel(["ham", "spam", "egg"]), r"task\.classes was \[0, 1\], is \['ham', 'spam', 'egg'\]"),
    ],
)
def test_a_state_of_the_version_before_is_not_resumed_with_another_task(
    task: SingleLabel, message: str, tmp_path: Path
) -> None:
    (tmp_path / "training.safetensors").write_bytes(STATE_1.read_bytes())
    clf = add_classifier_head(classifier(dropout=0.0), task=task, seed=3)
    with pytest.raises(ValueError, match=message):
        run(clf, tmp_path)


# A state that cannot be written


def fill_the_disk(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Let the states from a step on fail as on a full disk."""
    replace = Path.replace

    def full(self: Path, target: Path) -> Path:
        if int(Path(target).name[5:13]) >= step:
            raise OSError(errno.ENOSPC, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", full)


@pytest.mark.parametrize("options", [{}, {"checkpoint_every": 5}, {"callbacks": [StopAt(20)], "checkpoint_every": 6}])
def test_a_last_state_that_cannot_be_written_does_not_lose_the_history(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    straight, full = classifier(), classifier()
    whole = run(straight, **{**options, "checkpoint_every": None})
    last = len(whole.steps)
    fill_the_disk(monkeypatch, last)
    history = run(full, tmp_path, **options)
    assert measured(history) == measured(whole)
    assert_same(full, straight)
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 1
    assert f"the last state of the run was not written to {tmp_path / f'step-{last:08d}.safetensors'}" in errors[0]
    assert "No space left on device" in errors[0]
    assert sorted(tmp_path.iterdir())  # the states before are there
    assert all(int(path.name[5:13]) < last for path in tmp_path.iterdir())


def test_a_state_in_the_middle_that_cannot_be_written_is_an_error_that_names_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_the_disk(monkeypatch, 12)
    with pytest.raises(OSError, match=r"No space left") as caught:
        run(classifier(), tmp_path)
    assert str(tmp_path) in str(caught.value)
    monkeypatch.undo()
    straight, resumed = classifier(), classifier()
    whole = run(straight)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000006.safetensors"]
    assert measured(run(resumed, tmp_path)) == measured(whole)
    assert_same(resumed, straight)


# Buffers that a module replaces


class RunningMean(nn.Module):
    """Subtracts a running mean, a new tensor at each step."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(16))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return x - self.mean


def with_running_mean(trainable: str = "last_block") -> GPT2:
    clf = classifier(trainable, class_weight=None)
    clf.head.output = nn.Sequential(RunningMean(), nn.Linear(16, 2))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in clf.head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return clf


@pytest.mark.parametrize("trainable", ["last_block", "all"])
def test_a_buffer_that_a_module_replaces_survives_training_and_resuming(
    trainable: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    straight, resumed = with_running_mean(trainable), with_running_mean(trainable)
    whole = run(straight)
    mean = straight.get_buffer("head.output.0.mean")
    assert mean.any()
    found = dataset_loss(straight, rows(straight, 5))
    assert found == pytest.approx(whole.epochs[-1].val_loss, abs=1e-6)
    # Told how long it takes, by steps that are timed and leave no trace.
    assert measured(run(with_running_mean(trainable), progress=True)) == measured(whole)
    run(with_running_mean(trainable), tmp_path, callbacks=[StopAt(8)])
    assert measured(run(resumed, tmp_path)) == measured(whole)
    assert torch.equal(resumed.get_buffer("head.output.0.mean"), mean)


def test_the_best_weights_come_with_the_buffers_they_were_measured_with() -> None:
    clf, keep = with_running_mean(), KeepBest(every=1)
    history = run(clf, callbacks=[keep], lr=0.3)
    assert keep.best is not None
    assert keep.best.step < len(history.steps)
    assert dataset_loss(clf, rows(clf, 5)) == pytest.approx(keep.best.val_loss, abs=1e-6)


class Centred(Head):
    """Subtracts a running mean that is a plain attribute, and counts its calls in training."""

    def __init__(self, emb_dim: int, n_outputs: int) -> None:
        super().__init__()
        self.output, self.mean, self.calls = nn.Linear(emb_dim, n_outputs), torch.zeros(emb_dim), 0

    def forward(self, hidden: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        x = pool(hidden, lengths, "last")
        if self.training:
            self.calls += 1
            self.mean = 0.5 * self.mean + 0.5 * x.detach().mean(dim=0)
        return self.output(x - self.mean)  # type: ignore[no-any-return]


def test_attributes_that_a_head_assigns_in_training_are_the_models_afterwards() -> None:
    clf = add_classifier_head(byte_gpt2(), classes=["ham", "spam"], head=Centred)
    texts, labels = [f"text {i}" for i in range(12)], ["ham", "spam"] * 6
    rows = TextDataset(texts, labels, tokenizer=clf.tokenizer, classes=clf.classes)
    history = train(clf, rows, rows, epochs=2, batch_size=4, precision="float32", progress=False)
    assert vars(clf.head)["calls"] == len(history.steps) == 6
    assert evaluate(clf, rows, precision="float32").loss == pytest.approx(history.epochs[-1].val_loss, abs=1e-6)
