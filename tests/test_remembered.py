"""What a model, a recipe or a data set is told to remember: checked when it is set, and in Python's own types."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import byte_gpt2, byte_tokenizer

from gptclf import (
    GPT2,
    ClassifierHead,
    GPT2Config,
    KeepBest,
    Preparation,
    Recipe,
    SingleLabel,
    TextDataset,
    add_classifier_head,
    freeze,
    train,
    trainable_report,
)
from gptclf.data.batches import Batches
from gptclf.training.checks import check_weights
from gptclf.training.run import Run, RunOptions

PYTHONS = {"int", "float", "str", "bool", "NoneType"}


def classifier() -> GPT2:
    return add_classifier_head(byte_gpt2(), classes=["ham", "spam"], seed=3)


def data(n: int = 4, **options: Any) -> TextDataset:
    texts, labels = [f"text {i}" for i in range(n)], ["ham", "spam"] * (n // 2)
    return TextDataset(texts, labels, tokenizer=byte_tokenizer(), **options)


def test_numbers_of_numpy_and_torch_are_pythons_from_the_door_on(tmp_path: Path) -> None:
    config = GPT2Config(
        vocab_size=np.int64(257),  # type: ignore[arg-type]
        context_length=torch.tensor(32),  # type: ignore[arg-type]
        emb_dim=np.int32(16),  # type: ignore[arg-type]
        n_heads=np.uint8(2),  # type: ignore[arg-type]
        n_layers=np.int64(2),  # type: ignore[arg-type]
        drop_rate=np.float32(0.5),  # type: ignore[arg-type]
        tied=np.bool_(True),  # type: ignore[arg-type]
    )
    recipe = Recipe(
        epochs=np.int64(1),  # type: ignore[arg-type]
        lr=np.float32(0.5),  # type: ignore[arg-type]
        clip=torch.tensor(1.0),  # type: ignore[arg-type]
        drop_last=np.bool_(False),  # type: ignore[arg-type]
        head_lr=np.float16(0.5),  # type: ignore[arg-type]
    )
    prepared = data(max_length=np.int64(3), pad_to=torch.tensor(5)).preparation
    for remembered in (config, recipe, prepared):
        assert {type(value).__name__ for value in vars(remembered).values()} <= PYTHONS
    head = ClassifierHead(np.int64(16), torch.tensor(2))  # type: ignore[arg-type]
    assert [type(n) for n in (head.output.in_features, head.output.out_features)] == [int, int]
    # A state is JSON, so that a number of numpy's would be an error after the first epoch.
    clf = classifier()
    freeze(clf, trainable=np.int64(1))  # type: ignore[arg-type]
    train(clf, data(), recipe=recipe, checkpoint_dir=tmp_path, progress=False)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("preparation", {"pad_to": 3}, r"preparation is \{'pad_to': 3\}, a dict; give a gptclf\.Preparation"),
        ("preparation", None, r"preparation is None, a NoneType; give a gptclf\.Preparation"),
        ("task", ["ham", "spam"], r"task is \['ham', 'spam'\] \(list\); it must be a gptclf\.Task"),
        ("config", {"n_layers": 3}, r"config is \{'n_layers': 3\} \(dict\); it must be a GPT2Config"),
        ("base", 124, r"base is 124 \(int\); it must be the name of published weights or None"),
        ("source", Path("here"), r"source is an object \(PosixPath\); it must be a str or None"),
    ],
)
def test_what_a_model_remembers_is_checked_when_it_is_set(name: str, value: Any, message: str) -> None:
    clf = classifier()
    before = getattr(clf, name)
    with pytest.raises(TypeError, match=message):
        setattr(clf, name, value)
    assert getattr(clf, name) == before


@pytest.mark.parametrize(("name", "value"), [("pad_to", 5), ("max_length", 0), ("truncation", "head")])
def test_a_setting_of_the_preparation_is_not_an_attribute_of_its_own(name: str, value: Any) -> None:
    with pytest.raises(AttributeError, match=rf"has no {name}.*set model\.preparation = Preparation\({name}="):
        setattr(classifier(), name, value)


def test_what_is_right_can_be_set() -> None:
    clf = classifier()
    clf.preparation, clf.task, clf.base = Preparation(max_length=7), SingleLabel(["a", "b"]), "gpt2"
    assert (clf.preparation.max_length, clf.classes, clf.base) == (7, ["a", "b"], "gpt2")


@pytest.mark.parametrize("nothing", ["", ".", [""], ["head", ""]])
def test_an_empty_pattern_chooses_nothing(nothing: Any) -> None:
    clf = classifier()
    before = trainable_report(clf).names
    with pytest.raises(ValueError, match="is not a policy and matches no parameter"):
        freeze(clf, trainable=nothing)
    assert trainable_report(clf).names == before


@pytest.mark.parametrize("name", ["epochs", "batch_size", "accumulate", "warmup_steps"])
@pytest.mark.parametrize("value", [10**30, 2**63, -1, 1.5, float("nan"), "3", True])
def test_counts_that_no_run_can_have_are_told_at_once(name: str, value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=f"{name} is {value!r}; it must be an integer of at least"):
        Recipe(**{name: value})


def test_a_measurement_further_off_than_any_step_never_comes() -> None:
    history = train(
        classifier(),
        data(),
        data(),
        epochs=1,
        eval_every=10**30,
        eval_batches=10**30,
        progress=False,
        callbacks=[KeepBest(every=10**30)],
    )
    assert (len(history.evaluations), len(history.epochs)) == (0, 1)


# Weights of rows, before the first step


@pytest.mark.parametrize(("weightless", "followed"), [(0, 1), (1, 100)])
def test_the_order_of_rows_is_followed_as_far_as_the_weights_ask(
    weightless: int, followed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs: list[int] = []
    order = Batches.order

    def counted(self: Batches, epoch: int) -> Any:
        epochs.append(epoch)
        return order(self, epoch)

    monkeypatch.setattr(Batches, "order", counted)
    clf, rows = classifier(), data(8, weights=[0.0] * weightless + [1.0] * (8 - weightless))
    check_weights(Run(clf, rows, None, Recipe(epochs=10**9, batch_size=4), RunOptions()))
    assert epochs == list(range(followed))


def test_a_step_without_weight_in_a_later_epoch_is_found_before_the_first_step() -> None:
    weights = [0.0, 0.0, *[1.0] * 6]

    def alone(epoch: int) -> bool:  # the two rows that weigh nothing are one step
        return any(set(rows.tolist()) == {0, 1} for rows in Batches(data(8), 2, 123).order(epoch).reshape(-1, 2))

    first = next(epoch for epoch in range(100) if alone(epoch))
    assert first > 0
    clf = classifier()
    with pytest.raises(ValueError, match=r"the weights of rows [01], [01] sum to 0"):
        train(clf, data(8, weights=weights), epochs=first + 1, batch_size=2, progress=False)
    train(clf, data(8, weights=weights), epochs=first, batch_size=2, progress=False)
