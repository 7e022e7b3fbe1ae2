"""Saying beforehand how long work takes and what it needs, and while it goes on how far it is."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import byte_tokenizer, randomised
from torch import Tensor

from gptclf import GPT2, Estimate, GPT2Config, TextDataset, add_classifier_head, clear_features, estimate, freeze, train
from gptclf.progress import Meter, format_bytes, format_seconds
from gptclf.training.estimate import step_seconds
from gptclf.training.objective import Objective

CONFIG = GPT2Config(vocab_size=257, context_length=40, emb_dim=24, n_heads=3, n_layers=3, mlp_dim=56)
TEXTS = [f"{'text ' * (i % 4)}number {i % 9}" for i in range(21)]


def classifier(trainable: str = "last_block", pooling: str = "last") -> GPT2:
    gpt2 = randomised(GPT2(CONFIG, seed=7)).requires_grad_(False)
    gpt2.tokenizer = byte_tokenizer()
    clf = add_classifier_head(gpt2, classes=["ham", "spam"], pooling=pooling, seed=3)
    clf.head.forget_fresh()
    freeze(clf, trainable=trainable)
    return clf


def labelled(texts: list[str] = TEXTS) -> TextDataset:
    labels = ["spam" if i % 2 else "ham" for i in range(len(texts))]
    return TextDataset(texts, labels, tokenizer=byte_tokenizer(), classes=["ham", "spam"])


# estimate


@pytest.mark.parametrize("trainable", ["head", "last_block", "all"])
def test_estimating_leaves_weights_flags_and_modes_alone_and_keeps_nothing(trainable: str) -> None:
    clf = classifier(trainable)
    clf.train()
    clf.trunk.blocks[2].eval()
    weights = {name: parameter.detach().clone() for name, parameter in clf.named_parameters()}
    flags = {name: parameter.requires_grad for name, parameter in clf.named_parameters()}
    modes = [module.training for module in clf.modules()]
    estimate(clf, labelled(), labelled(TEXTS[:3]))
    assert all(torch.equal(weights[name], parameter) for name, parameter in clf.named_parameters())
    assert {name: parameter.requires_grad for name, parameter in clf.named_parameters()} == flags
    assert [module.training for module in clf.modules()] == modes
    assert all(parameter.grad is None for parameter in clf.parameters())
    assert clear_features() == 0


def test_estimating_draws_nothing_from_torchs_generator() -> None:
    state = torch.get_rng_state()
    estimate(classifier(), labelled())
    assert torch.equal(torch.get_rng_state(), state)


def test_estimating_without_reuse_draws_nothing_from_torchs_generator() -> None:
    state = torch.get_rng_state()
    estimate(classifier(), labelled(), reuse_frozen=False)
    assert torch.equal(torch.get_rng_state(), state)


def test_estimating_leaves_gradients_alone() -> None:
    clf = classifier()
    for parameter in clf.parameters():
        parameter.grad = torch.full_like(parameter, 2.0) if parameter.requires_grad else None
    estimate(clf, labelled())
    trained = [parameter for parameter in clf.parameters() if parameter.requires_grad]
    assert all(parameter.grad is not None and bool((parameter.grad == 2).all()) for parameter in trained)


@pytest.mark.parametrize(("epochs", "batch_size"), [(1, 1), (3, 8), (2, 7), (5, 100)])
def test_steps_are_those_that_train_takes(epochs: int, batch_size: int) -> None:
    clf = classifier()
    expected = estimate(clf, labelled(), epochs=epochs, batch_size=batch_size).steps
    history = train(clf, labelled(), epochs=epochs, batch_size=batch_size, progress=False)
    assert len(history.steps) == expected


class Shapes:
    """Notes what the timed steps and a run's own steps compute."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.timed: list[tuple[Any, ...]] = []
        self.trained: list[tuple[Any, ...]] = []
        self.now = self.trained
        forward = Objective.forward

        def noted(objective: Objective, inputs: Tensor, lengths: Tensor, *given: Any) -> Any:
            learner = objective.learner
            parts = (type(learner).__name__, learner.depth, learner.training, learner.recompute, objective.precision)
            self.now.append((parts, type(objective.task).__name__, inputs.dtype, tuple(inputs.shape), lengths.tolist()))
            return forward(objective, inputs, lengths, *given)

        def timed(*given: Any) -> float:
            self.now = self.timed
            try:
                return step_seconds(*given)
            finally:
                self.now = self.trained

        monkeypatch.setattr(Objective, "forward", noted)
        monkeypatch.setattr("gptclf.training.estimate.step_seconds", timed)
        monkeypatch.setattr("gptclf.training.fit.step_seconds", timed)


@pytest.mark.parametrize("pooling", ["last", "first", "mean", "max"])
@pytest.mark.parametrize("trainable", ["head", "norm", "last_block", "all"])
@pytest.mark.parametrize("options", [{}, {"reuse_frozen": False, "recompute": True}, {"precision": "bfloat16"}])
def test_what_is_timed_is_what_train_computes(
    trainable: str, pooling: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes, clf = Shapes(monkeypatch), classifier(trainable, pooling)
    # Every row in one batch, so that the batch which is timed has the shape of every step's.
    options = {**options, "batch_size": 21, "epochs": 1}
    estimate(clf, labelled(), **options)
    expected, shapes.timed = shapes.timed, []
    train(clf, labelled(), **options)
    assert len(expected) == len(shapes.timed) == 3
    assert expected == shapes.timed  # what `train` times before it says how long it takes
    assert len(shapes.trained) == 1
    assert shapes.trained[0][:3] == expected[0][:3]
    (B, T, *D), lengths = shapes.trained[0][3:]
    assert expected[0][3] == (B, T, *D)
    assert sorted(expected[0][4]) == sorted(lengths)


@pytest.mark.parametrize("options", [{"accumulate": 2}, {"drop_last": True}, {"accumulate": 3, "drop_last": True}])
def test_steps_follow_the_whole_recipe(options: dict[str, Any]) -> None:
    clf = classifier()
    expected = estimate(clf, labelled(), epochs=2, batch_size=4, **options).steps
    assert len(train(clf, labelled(), epochs=2, batch_size=4, progress=False, **options).steps) == expected


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("trainable", ["head", "last_block"])
def test_the_bytes_of_features_are_those_that_train_keeps(trainable: str, pooling: str) -> None:
    clf, val = classifier(trainable, pooling), labelled([*TEXTS[:5], "only in the validation set"])
    expected = estimate(clf, labelled(), val).feature_bytes
    train(clf, labelled(), val, epochs=1, progress=False)
    assert estimate(clf, labelled(), val).feature_bytes == expected  # of all texts, kept or not
    assert clear_features() == expected > 0


def test_the_bytes_of_training_are_weight_gradient_and_two_moments() -> None:
    clf = classifier("head")
    assert estimate(clf, labelled()).training_bytes == 16 * (2 * CONFIG.emb_dim + 2)


def test_a_longer_text_takes_longer_in_the_frozen_part_and_kept_ones_hardly_anything() -> None:
    clf = classifier()
    many = labelled([f"text number {i}" for i in range(2000)])
    before = estimate(clf, many).frozen_seconds
    assert before > 0
    train(clf, many, epochs=1, batch_size=1000, progress=False)
    assert estimate(clf, many).frozen_seconds < before / 100


def test_after_a_training_the_frozen_part_takes_no_time() -> None:
    clf = classifier()
    train(clf, labelled(), epochs=1, progress=False)
    assert estimate(clf, labelled()).frozen_seconds == 0


@pytest.mark.parametrize(("trainable", "options"), [("last_block", {"reuse_frozen": False}), ("all", {})])
def test_where_nothing_is_reused_the_frozen_part_takes_nothing(trainable: str, options: dict[str, Any]) -> None:
    found = estimate(classifier(trainable), labelled(), **options)
    assert (found.frozen_seconds, found.feature_bytes) == (0, 0)
    assert found.training_seconds > 0
    assert "frozen" not in str(found)


def test_an_estimate_in_words_has_its_numbers() -> None:
    found = Estimate(75.2, 7320.0, 1234, 2_100_000_000, 113_000_000)
    assert str(found) == "frozen part about 1 min 15 s and 2.1 GB; 1,234 steps about 2 h 2 min and 113 MB"
    assert found.seconds == pytest.approx(7395.2)
    plain = Estimate(0.0, 0.3, 5, 0, 16)
    assert str(plain) == "5 steps about 1 s and 1 MB"


def unlabelled() -> TextDataset:
    return TextDataset(["a", "b"], tokenizer=byte_tokenizer())


def empty() -> TextDataset:
    return TextDataset([], [], tokenizer=byte_tokenizer(), classes=["ham", "spam"])


def of_other_classes() -> TextDataset:
    return TextDataset(["a", "b"], ["x", "y"], tokenizer=byte_tokenizer())


def a_list() -> Any:
    return [("a", "ham")]


def errors(call: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[type[BaseException], str]:
    with pytest.raises(Exception, match=r".") as caught:
        call(*arguments, **options)
    return caught.type, str(caught.value)


@pytest.mark.parametrize("data", [unlabelled, empty, of_other_classes, a_list], ids=lambda make: make.__name__)
def test_data_that_cannot_train_is_refused_as_train_refuses_it(data: Callable[[], Any]) -> None:
    clf, good = classifier(), labelled()
    assert errors(estimate, clf, data()) == errors(train, clf, data(), progress=False)
    assert errors(estimate, clf, good, data()) == errors(train, clf, good, data(), progress=False)


def test_a_model_or_precision_that_cannot_train_is_refused_as_train_refuses_it() -> None:
    assert errors(estimate, GPT2(CONFIG), labelled()) == errors(train, GPT2(CONFIG), labelled(), progress=False)
    wrong = {"precision": "half"}
    assert errors(estimate, classifier(), labelled(), **wrong) == errors(train, classifier(), labelled(), **wrong)


@pytest.mark.parametrize(
    "options", [{"epochs": 0}, {"epochs": -2}, {"epochs": "3"}, {"batch_size": 0}, {"batch_size": 2.5}], ids=str
)
def test_numbers_that_train_refuses_are_refused_alike(options: dict[str, Any]) -> None:
    expected = errors(train, classifier(), labelled(), progress=False, **options)
    with pytest.raises((ValueError, TypeError)) as caught:
        estimate(classifier(), labelled(), **options)
    assert (caught.type, str(caught.value)) == expected


@pytest.mark.parametrize(
    "change", [lambda clf: clf.requires_grad_(False), lambda clf: clf.half()], ids=["frozen", "half"]
)
def test_weights_that_cannot_train_are_refused_alike(change: Callable[[GPT2], Any]) -> None:
    clf = classifier()
    change(clf)
    assert errors(estimate, clf, labelled()) == errors(train, clf, labelled(), progress=False)


# What is said while it goes on


class Clock:
    """A clock that a test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr("gptclf.progress.time.perf_counter", lambda: self.now)


def test_a_meter_says_every_ten_seconds_how_far_it_is_and_what_is_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    with Meter(100, "reading") as meter:
        said = []
        for _ in range(10):
            clock.now += 4.0
            meter.update(10)
            said.append(capsys.readouterr().err)
    lines = {i + 1: line for i, line in enumerate(said) if line}
    assert lines == {3: "reading: 30 %, 28 s left\n", 6: "reading: 60 %, 16 s left\n", 9: "reading: 90 %, 4 s left\n"}


def test_a_meter_says_nothing_of_short_work_nor_at_its_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    with Meter(10, "reading") as meter:
        clock.now += 9.9
        meter.update(5)
        clock.now += 30
        meter.update(5)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("total", "enabled"), [(10, False), (0, True), (0, False)])
def test_a_meter_that_is_switched_off_or_has_nothing_to_measure_is_silent(
    total: int, enabled: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    with Meter(total, "reading", enabled=enabled) as meter:
        for _ in range(5):
            clock.now += 11
            meter.update(1)
    assert capsys.readouterr() == ("", "")


def test_a_meter_lets_errors_through() -> None:
    with pytest.raises(KeyError), Meter(3, "reading"):
        raise KeyError("x")


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "1 s"),
        (0.4, "1 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (60, "1 min 0 s"),
        (3599.4, "59 min 59 s"),
        (3599.7, "1 h 0 min"),
        (3600, "1 h 0 min"),
        (7199, "1 h 59 min"),
        (259_200, "72 h 0 min"),
    ],
)
def test_seconds_are_said_as_a_person_says_them(seconds: float, said: str) -> None:
    assert format_seconds(seconds) == said


@pytest.mark.parametrize(
    ("amount", "said"),
    [
        (0, "1 MB"),
        (1_499_999, "1 MB"),
        (999_400_000, "999 MB"),
        (999_600_000, "1.0 GB"),
        (1e9, "1.0 GB"),
        (49.96e9, "50.0 GB"),
    ],
)
def test_bytes_are_said_as_a_person_says_them(amount: float, said: str) -> None:
    assert format_bytes(amount) == said


def lines_of(capsys: pytest.CaptureFixture[str]) -> list[str]:
    out, err = capsys.readouterr()
    assert out == ""
    return [line for line in err.splitlines() if line]


def test_training_announces_the_frozen_part_and_the_steps_before_it_begins(capsys: pytest.CaptureFixture[str]) -> None:
    clf, data = classifier(), labelled()
    capsys.readouterr()
    train(clf, data, epochs=2, batch_size=8)
    first, second, *measured = lines_of(capsys)
    tokens = sum(len(text) for text in set(TEXTS))
    n = len(set(TEXTS))
    assert first.startswith(f"frozen part: 2 blocks over {tokens:,} tokens in float32; {n} of 21 texts, the others are")
    assert first.endswith("about 1 s, 1 MB in memory")
    assert second == "6 steps, about 1 s, measurements not counted"
    assert len(measured) == 2


def test_training_on_what_is_kept_announces_the_steps_only(capsys: pytest.CaptureFixture[str]) -> None:
    clf, data = classifier(), labelled()
    train(clf, data, epochs=1, progress=False)
    assert lines_of(capsys) == []
    train(clf, data, epochs=1)
    assert lines_of(capsys)[0].startswith("3 steps, about")


def test_training_says_where_on_disk_features_go(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    train(classifier(), labelled(), epochs=1, cache_dir=tmp_path)
    [folder] = tmp_path.iterdir()
    assert lines_of(capsys)[0].endswith(f"in {folder}")


def test_announcing_changes_no_loss() -> None:
    found = [
        [step.loss for step in train(classifier(), labelled(), epochs=1, progress=progress).steps]
        for progress in (True, False)
    ]
    assert found[0] == found[1]


def test_the_frozen_part_says_how_far_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = itertools.count(0, 6)
    monkeypatch.setattr("gptclf.progress.time.perf_counter", lambda: float(next(ticks)))
    monkeypatch.setattr("gptclf.gpt2.packed.CHUNK_TOKENS", 60)
    train(classifier(), labelled(), epochs=1)
    said = [line for line in lines_of(capsys) if line.startswith("frozen part: ") and line.endswith(" left")]
    assert len(said) >= 3
