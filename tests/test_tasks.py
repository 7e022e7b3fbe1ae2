"""`MultiLabel` and `Regression`: from labels to a saved folder that `transformers` reads, against other libraries."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import byte_gpt2
from hypothesis import given, settings
from hypothesis import strategies as st

from gptclf import (
    MultiLabel,
    Regression,
    SingleLabel,
    Task,
    TextDataset,
    add_classifier_head,
    evaluate,
    load_model,
    predict,
    predict_proba,
    save_model,
    split,
    train,
)

TEXTS = [f"{'win cash ' * (i % 2)}{'see you ' * (i % 3 == 0)}{i}" for i in range(36)]
TAGS = [["money"] * (i % 2) + ["meet"] * (i % 3 == 0) for i in range(36)]
LENGTHS = [len(text) / 20 for text in TEXTS]
CLASSES = ["meet", "money"]


def trained(task: Task, labels: Any, epochs: int = 6) -> tuple[Any, TextDataset]:
    clf = add_classifier_head(byte_gpt2(), task=task, seed=1)
    data = TextDataset(TEXTS, labels, tokenizer=clf.tokenizer, task=task)
    train(clf, data, data, epochs=epochs, lr=3e-3, progress=False, seed=1)
    return clf, data


def theirs(folder: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.AutoModelForSequenceClassification.from_pretrained(folder)


def test_several_labels_train_are_measured_and_predicted() -> None:
    clf, data = trained(MultiLabel(CLASSES), TAGS, epochs=10)
    found = evaluate(clf, data)
    assert found.accuracy > 0.9
    assert "micro-F1" in str(found)
    assert "money" in str(found)
    answers = predict(clf, TEXTS)
    assert np.mean([set(answer) == set(tags) for answer, tags in zip(answers, TAGS, strict=True)]) == found.accuracy
    frame = found.to_frame()
    assert frame["p(money)"].tolist() == predict_proba(clf, TEXTS)[:, 1].tolist()


def test_a_measurement_trains_is_measured_and_predicted() -> None:
    clf, data = trained(Regression(), LENGTHS, epochs=10)
    found = evaluate(clf, data)
    assert found.r2 > 0.3
    assert predict(clf, TEXTS) == [row[0] for row in found.outputs.tolist()]
    with pytest.raises(TypeError, match="Regression gives no probabilities"):
        predict_proba(clf, TEXTS)


@pytest.mark.parametrize(
    ("task", "labels"), [(MultiLabel(CLASSES, [0.4, 0.7]), TAGS), (Regression(), LENGTHS), (Regression(2), None)]
)
def test_saved_folders_come_back_and_transformers_reads_them(tmp_path: Path, task: Task, labels: Any) -> None:
    labels = [[length, -length] for length in LENGTHS] if labels is None else labels
    clf, data = trained(task, labels)
    again = load_model(save_model(clf, tmp_path / "m"))
    assert again.task == task
    assert predict(again, TEXTS) == predict(clf, TEXTS)
    other = theirs(tmp_path / "m")
    rows = [torch.tensor(ids.astype(np.int64)) for ids in data.rows()]
    with torch.no_grad():
        logits = torch.cat([other(row[None]).logits for row in rows])
    np.testing.assert_allclose(logits, evaluate(clf, data).outputs, atol=1e-5)
    # The loss that their model computes from these labels is ours, so problem_type says the same as our task.
    with torch.no_grad():
        losses = [
            float(other(row[None], labels=torch.from_numpy(data.targets()[i : i + 1])).loss)
            for i, row in enumerate(rows)
        ]
    assert np.mean(losses) == pytest.approx(evaluate(clf, data).loss, abs=1e-5)


@pytest.mark.parametrize(
    ("problem", "n", "kind"),
    [
        ("multi_label_classification", 3, MultiLabel),
        ("regression", 2, Regression),
        (None, 1, Regression),
        (None, 2, SingleLabel),
    ],
)
def test_their_classifiers_load_with_the_task_they_were_trained_for(
    tmp_path: Path, problem: str | None, n: int, kind: type[Task]
) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=257, n_positions=64, n_embd=24, n_layer=2, n_head=2, num_labels=n, problem_type=problem
    )
    transformers.GPT2ForSequenceClassification(config).save_pretrained(tmp_path)
    clf = load_model(tmp_path)
    assert type(clf.task) is kind
    assert clf.task.n_outputs == n


class TestMultiLabel:
    @settings(deadline=None)
    @given(st.integers(0, 2**31), st.integers(1, 5), st.integers(1, 30))
    def test_measures_are_those_of_scikit_learn(self, seed: int, n_classes: int, n: int) -> None:
        metrics = pytest.importorskip("sklearn.metrics")
        rng = np.random.default_rng(seed)
        targets = rng.integers(0, 2, (n, n_classes))
        outputs = torch.from_numpy(rng.normal(size=(n, n_classes)).astype(np.float32))
        thresholds = rng.uniform(0.2, 0.8, n_classes).tolist()
        task = MultiLabel(range(n_classes), thresholds)
        chosen = (outputs.sigmoid().numpy() >= np.float32(thresholds)).astype(int)
        scores = task.scores(outputs, torch.from_numpy(targets.astype(np.float32)))
        assert scores["accuracy"] == pytest.approx((chosen == targets).all(axis=1).mean())
        for average in ("micro", "macro"):
            expected = metrics.f1_score(targets, chosen, average=average, zero_division=0)
            if n_classes > 1:
                assert scores[f"{average}_f1"] == pytest.approx(expected)
        assert task.answers(outputs) == [list(np.flatnonzero(row)) for row in chosen]

    def test_one_meaning_for_lists_sets_and_tables(self) -> None:
        task = MultiLabel(["a", "b", "c"])
        expected = [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
        for labels in (
            [["a", "c"], [], ["b"]],
            [("c", "a"), (), ("b",)],
            [{"a", "c"}, set(), frozenset("b")],
            expected,
            list(np.asarray(expected)),
            list(np.asarray(expected, dtype=bool)),
        ):
            assert task.targets(labels).tolist() == expected
        data = TextDataset(["x", "y", "z"], torch.tensor(expected), tokenizer=byte_gpt2().tokenizer, task=task)
        assert data.targets().tolist() == expected

    def test_numbers_as_classes_are_never_guessed(self) -> None:
        task = MultiLabel([0, 1])
        assert task.targets([{0, 1}, {1}, [0]]).tolist() == [[1, 1], [0, 1], [1, 0]]
        with pytest.raises(ValueError, match=r"label 1 is \[1, 0\], which may be a list.*give sets"):
            task.targets([{0}, [1, 0]])

    @pytest.mark.parametrize(
        ("label", "error", "message"),
        [
            ("a", TypeError, r"label 1 is 'a' \(str\); it must be a list of classes"),
            (None, TypeError, r"label 1 is None"),
            (0.5, TypeError, r"label 1 is 0.5"),
            (["d"], ValueError, r"'d' \(row 1\)"),
            (["a", "a"], ValueError, r"label 1 .* each class may occur once"),
            (np.asarray([0.5, 0.5, 1.0]), ValueError, r"label 1 .* 0 or 1 for each of the 3 classes"),
            (np.asarray([1, 0]), ValueError, r"label 1 .* 0 or 1 for each of the 3 classes"),
            (["a", None], ValueError, r"label 1, class 1 is missing"),
        ],
    )
    def test_bad_labels_name_their_row(self, label: Any, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            MultiLabel(["a", "b", "c"]).targets([["a"], label])

    def test_thresholds(self) -> None:
        assert MultiLabel(["a", "b"], thresholds={"b": 0.9}).thresholds == [0.5, 0.9]
        assert MultiLabel(["a", "b"], thresholds=np.full(2, 0.25)).thresholds == [0.25, 0.25]
        assert MultiLabel(["a", "b"], thresholds=[0.1, 1]).thresholds == [0.1, 1.0]
        wrong: Any
        for wrong in ([0.5], {"c": 0.5}, 1.5, float("nan"), "x", [None, 0.5]):
            with pytest.raises((TypeError, ValueError), match="thresholds"):
                MultiLabel(["a", "b"], thresholds=wrong)

    def test_a_damaged_record_is_refused(self, tmp_path: Path) -> None:
        clf, _ = trained(MultiLabel(CLASSES), TAGS, epochs=1)
        save_model(clf, tmp_path)
        values = json.loads((tmp_path / "gptclf.json").read_text())
        values["task"]["thresholds"] = [0.5]
        (tmp_path / "gptclf.json").write_text(json.dumps(values))
        with pytest.raises(ValueError, match=r"gptclf\.json"):
            load_model(tmp_path)

    def test_nothing_to_learn_is_refused_before_the_first_step(self) -> None:
        with pytest.raises(ValueError, match="the same classes"):
            trained(MultiLabel(CLASSES), [["meet"]] * 36)

    def test_a_split_needs_no_strata(self) -> None:
        clf, data = trained(MultiLabel(CLASSES), TAGS, epochs=1)
        with pytest.raises(ValueError, match="stratify=False"):
            split(data, (0.5, 0.5), seed=1)
        first, second = split(data, (0.5, 0.5), seed=1, stratify=False)
        assert len(first.targets(clf.task)) + len(second.targets(clf.task)) == 36


class TestRegression:
    @settings(deadline=None)
    @given(st.integers(0, 2**31), st.integers(1, 4), st.integers(2, 30))
    def test_measures_are_those_of_scikit_learn(self, seed: int, n_outputs: int, n: int) -> None:
        metrics = pytest.importorskip("sklearn.metrics")
        rng = np.random.default_rng(seed)
        targets, outputs = rng.normal(size=(2, n, n_outputs)).astype(np.float32)
        targets[:, 0] = 1.5 if seed % 5 == 0 else targets[:, 0]
        scores = Regression(n_outputs).scores(torch.from_numpy(outputs), torch.from_numpy(targets))
        assert scores["loss"] == pytest.approx(metrics.mean_squared_error(targets, outputs), rel=1e-5)
        assert scores["mae"] == pytest.approx(metrics.mean_absolute_error(targets, outputs), rel=1e-5)
        assert scores["r2"] == pytest.approx(metrics.r2_score(targets, outputs), rel=1e-4, abs=1e-5)

    @pytest.mark.parametrize(
        ("label", "error"),
        [
            ("1.5", TypeError),
            (None, TypeError),
            (float("nan"), ValueError),
            ([1.0, 2.0], ValueError),
            (1e39, ValueError),
        ],
    )
    def test_bad_labels_name_their_row(self, label: Any, error: type[Exception]) -> None:
        with pytest.raises(error, match="label 1"):
            Regression().targets([0.5, label])

    def test_numbers_of_every_library_are_taken(self) -> None:
        expected = [[0.5], [2.0]]
        several: list[Any] = [[0.5, 2], np.asarray([0.5, 2.0]), list(torch.tensor([0.5, 2.0])), [[0.5], [2.0]]]
        for labels in several:
            assert Regression().targets(labels).tolist() == expected

    def test_nothing_to_learn_is_refused_before_the_first_step(self) -> None:
        with pytest.raises(ValueError, match="the same measurements"):
            trained(Regression(), [1.0] * 36)


@pytest.mark.parametrize(
    "thresholds",
    [pd.Series({"sport": 0.7}), {"sport": 0.7}, (0.7, 0.5), (each for each in (0.7, 0.5)), torch.tensor([0.7, 0.5])],
)
def test_thresholds_are_any_mapping_or_iterable(thresholds: Any) -> None:
    assert MultiLabel(["sport", "politics"], thresholds).thresholds == pytest.approx([0.7, 0.5])


@pytest.mark.parametrize("thresholds", [{0.5, 0.7}, "ab", b"ab", None])
def test_thresholds_without_an_order_are_refused(thresholds: Any) -> None:
    with pytest.raises(TypeError, match=r"thresholds\[0\] is .*; it must be a finite number"):
        MultiLabel(["sport", "politics"], thresholds)


def test_a_task_is_shown_as_it_is_made() -> None:
    task = SingleLabel(["ham", (1, 2)], class_weight={"ham": 2.0}, thresholds={"ham": 0.7})
    assert repr(eval(repr(task), {"SingleLabel": SingleLabel})) == repr(task)
    assert "class_weight={'ham': 2.0, (1, 2): 1.0}" in repr(task)
    assert "thresholds={'ham': 0.7}" in repr(task)


def test_a_row_of_a_table_of_another_width_says_how_wide_it_must_be() -> None:
    for label in ([1, 0, 1], np.array([1, 0, 1])):
        with pytest.raises(ValueError, match="a row of the table holds 0 or 1 for each of the 2 classes"):
            MultiLabel(["a", "b"]).targets([label])


def test_a_number_as_text_is_called_a_text() -> None:
    with pytest.raises(TypeError, match=r"label 1 is the text '1\.0', not a number"):
        Regression().targets([1.0, "1.0"])
    with pytest.raises(ValueError, match=r"target is 3; it must be 0$"):
        Regression().output_of(3)
