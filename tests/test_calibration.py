"""Temperature, thresholds and rejection: fitted to a validation set, kept with the model, used by every answer."""

import json
import logging
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import byte_gpt2, byte_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score
from torch import Tensor
from torch.nn import functional as F

from gptclf import (
    GPT2,
    SingleLabel,
    Task,
    TextDataset,
    add_classifier_head,
    apply_lora,
    calibrate,
    evaluate,
    load_adapter,
    load_model,
    predict,
    predict_logits,
    predict_many,
    predict_proba,
    predict_stream,
    save_adapter,
    save_model,
    train,
)
from gptclf.tasks.calibration import SCORINGS, fit_shifts, fit_temperature, fit_threshold

SKLEARN: dict[str, Any] = {
    "accuracy": accuracy_score,
    "balanced_accuracy": balanced_accuracy_score,
    "f1_macro": lambda true, found: f1_score(true, found, average="macro"),
}
WORDS = ["ham", "spam", "eggs"]


def noisy(n: int, classes: int, scale: float, seed: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Outputs (N, C) that say something about the targets, and the targets, of unequal classes."""
    rng = np.random.default_rng(seed)
    targets = rng.choice(classes, n, p=np.arange(1, classes + 1)[::-1] / np.arange(1, classes + 1).sum())
    outputs = rng.normal(size=(n, classes)) + 1.5 * np.eye(classes)[targets]
    return (scale * outputs).astype(np.float32), targets


def softmax(outputs: Any) -> Any:
    """Probabilities (N, C) in float64."""
    powers = np.exp(outputs.astype(np.float64) - outputs.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def classifier(classes: list[Any] | None = None, task: Task | None = None) -> GPT2:
    clf = add_classifier_head(byte_gpt2(), task=task or SingleLabel(classes or WORDS[:2]), seed=3)
    clf.head.forget_fresh()
    with torch.no_grad():
        clf.get_parameter("head.output.weight").mul_(20)
    return clf


def data(classes: list[Any] | None = None, n: int = 60) -> TextDataset:
    rng = np.random.default_rng(0)
    texts = ["".join(map(chr, rng.integers(97, 123, rng.integers(1, 12)))) for _ in range(n)]
    labels = [(classes or WORDS[:2])[i] for i in rng.integers(0, len(classes or WORDS[:2]), n)]
    return TextDataset(texts, labels, tokenizer=byte_tokenizer(), classes=classes or WORDS[:2])


# Temperature


@pytest.mark.parametrize(("classes", "scale"), [(2, 0.3), (2, 5.0), (3, 1.0), (20, 4.0)])
def test_the_temperature_has_the_least_cross_entropy(classes: int, scale: float) -> None:
    optimize = pytest.importorskip("scipy.optimize")
    outputs, targets = noisy(300, classes, scale, seed=classes)

    def loss(beta: float) -> float:
        return F.cross_entropy(beta * torch.from_numpy(outputs).double(), torch.from_numpy(targets)).item()

    best = optimize.minimize_scalar(loss, bounds=(1e-3, 100), method="bounded", options={"xatol": 1e-12})
    found = fit_temperature(torch.from_numpy(outputs), torch.from_numpy(targets))
    assert found is not None
    assert found == pytest.approx(1 / best.x, rel=1e-5)
    assert loss(1 / found) <= best.fun + 1e-15
    wider = fit_temperature(torch.from_numpy(4 * outputs), torch.from_numpy(targets))
    assert wider == pytest.approx(4 * found, rel=1e-12)


@pytest.mark.parametrize("targets", [[0, 1, 0], [1, 0, 1]], ids=["all right", "all wrong"])
def test_rows_that_show_no_temperature_leave_it_and_say_so(
    targets: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    outputs = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 1.0]])
    assert fit_temperature(outputs, torch.tensor(targets)) is None
    task = SingleLabel(WORDS[:2], temperature=1.5).calibrated(outputs, torch.tensor(targets), None)
    assert task.temperature == 1.5
    assert "no temperature was fitted, it is 1.5: all of these rows are answered correctly, or no better" in caplog.text


def test_a_calibrated_model_is_a_new_one_that_every_answer_uses() -> None:
    clf, rows = classifier(WORDS), data(WORDS)
    before, weights = predict_proba(clf, rows.texts), {n: p.detach().clone() for n, p in clf.named_parameters()}
    calibrated = calibrate(clf, rows)
    T = calibrated.task.temperature  # type: ignore[attr-defined]
    assert T > 2  # the head is large at random
    assert clf.task == SingleLabel(WORDS)
    np.testing.assert_array_equal(predict_proba(clf, rows.texts), before)
    expected = softmax(predict_logits(clf, rows.texts) / T)
    np.testing.assert_allclose(predict_proba(calibrated, rows.texts), expected, atol=1e-6)
    np.testing.assert_array_equal(predict_logits(calibrated, rows.texts), predict_logits(clf, rows.texts))
    result = evaluate(calibrated, rows)
    np.testing.assert_allclose(result.probabilities, expected, atol=1e-6)
    truth = rows.targets(clf.task)
    assert result.loss == pytest.approx(-np.log(expected[np.arange(60), truth]).mean(), rel=1e-5)
    assert result.loss < evaluate(clf, rows).loss
    assert result.accuracy == evaluate(clf, rows).accuracy
    assert predict(calibrated, rows.texts) == predict(clf, rows.texts)
    for answer, row in zip(predict_stream(calibrated, rows.texts), expected, strict=True):
        np.testing.assert_allclose(answer.probabilities, row, atol=1e-6)
    # It trains what the model trained, and neither changes the other.
    assert [p.requires_grad for p in calibrated.parameters()] == [p.requires_grad for p in clf.parameters()]
    train(calibrated, rows, epochs=1, lr=1e-2, progress=False)
    assert all(torch.equal(p, weights[name]) for name, p in clf.named_parameters())


def test_the_temperature_of_a_call_replaces_the_models() -> None:
    clf, texts = classifier(), ["abc", "x"]
    hot = classifier()
    hot.task = hot.task.adjusted(temperature=3.0)
    np.testing.assert_array_equal(predict_proba(clf, texts, temperature=3.0), predict_proba(hot, texts))
    np.testing.assert_array_equal(predict_proba(hot, texts, temperature=1.0), predict_proba(clf, texts))
    [answer, _] = predict_stream(clf, texts, temperature=3.0)
    np.testing.assert_array_equal(answer.probabilities, predict_proba(hot, texts)[0])


def test_training_sets_a_temperature_back_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    clf, plain = (classifier(task=SingleLabel(WORDS[:2], temperature=t, thresholds=0.7)) for t in (9, 1))
    assert "training changes" not in caplog.text
    histories = [train(model, data(), data(), epochs=1, seed=1, progress=False) for model in (clf, plain)]
    assert caplog.text.count("outputs that temperature 9 was fitted to: it is 1 again, thresholds stay") == 1
    assert clf.task == SingleLabel(WORDS[:2], thresholds=0.7)
    assert histories[0].scores()[0].train == histories[1].scores()[0].train


# Thresholds


@settings(deadline=None, max_examples=50, derandomize=True)
@given(st.floats(0.001, 0.999), st.integers(0, 1), st.integers(0, 1000))
def test_of_two_classes_the_one_named_is_answered_exactly_from_its_threshold(t: float, named: int, seed: int) -> None:
    outputs, _ = noisy(40, 2, 1.0, seed)
    task = SingleLabel(WORDS[:2], thresholds={WORDS[named]: t})
    reached = task.probabilities(torch.from_numpy(outputs))[:, named] >= t
    assert task.answers(torch.from_numpy(outputs)) == [WORDS[named if here else 1 - named] for here in reached]


def test_a_threshold_is_what_it_is_for_scikit_learn() -> None:
    sklearn = pytest.importorskip("sklearn.model_selection", minversion=None)
    linear = pytest.importorskip("sklearn.linear_model")
    outputs, targets = noisy(200, 2, 1.0, seed=1)
    theirs = linear.LogisticRegression().fit(outputs, targets)
    logits = torch.from_numpy(np.log(theirs.predict_proba(outputs)).astype(np.float32))
    for t in (0.2, 0.5, 0.8):
        fixed = sklearn.FixedThresholdClassifier(theirs, threshold=t).fit(outputs, targets)
        expected = [WORDS[i] for i in fixed.predict(outputs)]
        assert SingleLabel(WORDS[:2], thresholds=t).answers(logits) == expected


def test_a_probability_equal_to_its_threshold_reaches_it() -> None:
    task = SingleLabel(WORDS[:2], thresholds=0.5)
    assert task.answers(torch.zeros(1, 2)) == ["spam"]
    assert SingleLabel(WORDS[:2]).answers(torch.zeros(1, 2)) == ["ham"]


def test_of_many_classes_the_largest_odds_against_the_threshold_are_answered() -> None:
    outputs, _ = noisy(200, 3, 1.0, seed=2)
    task = SingleLabel(WORDS, temperature=2.0, thresholds={"eggs": 0.2, "ham": 0.9})
    p = softmax(outputs / 2)
    t = np.array([0.9, 0.5, 0.2])
    expected = (p * (1 - t) / t).argmax(axis=1)
    assert task.answers(torch.from_numpy(outputs)) == [WORDS[i] for i in expected]
    assert not np.array_equal(expected, p.argmax(axis=1))
    # Alone, a class is surely answered where it reaches its threshold.
    alone = SingleLabel(WORDS, thresholds={"eggs": 0.6})
    sure = alone.probabilities(torch.from_numpy(outputs))[:, 2] >= 0.6
    assert sure.any()
    assert {a for a, s in zip(alone.answers(torch.from_numpy(outputs)), sure, strict=True) if s} == {"eggs"}


@pytest.mark.parametrize("scoring", SKLEARN)
@settings(deadline=None, max_examples=15, derandomize=True)
@given(st.integers(2, 40), st.integers(0, 1000))
def test_the_threshold_of_two_classes_is_the_best_there_is(scoring: str, n: int, seed: int) -> None:
    outputs, targets = noisy(n, 2, 1.0, seed)
    p = softmax(outputs)[:, 1].round(2).astype(np.float32)  # with ties
    best = fit_threshold(p, targets, scoring)
    score = SKLEARN[scoring]
    if len(set(targets)) < 2:  # scikit-learn warns of a class without rows
        return
    found = score(targets, (p >= best).astype(int))
    tried = [0.5, *((a + b) / 2 for a, b in pairwise(sorted(set(p))))]
    assert found == pytest.approx(max(score(targets, (p >= t).astype(int)) for t in tried), abs=1e-12)


def test_of_equally_good_thresholds_the_nearest_to_one_half_is_taken() -> None:
    p, targets = np.array([0.1, 0.2, 0.8, 0.9], dtype=np.float32), np.array([0, 0, 1, 1])
    assert fit_threshold(p, targets, "accuracy") == 0.5
    assert fit_threshold((p / 2).astype(np.float32), targets, "accuracy") == pytest.approx(0.25)
    high, low = np.array([0.6, 0.7, 0.8, 0.9], dtype=np.float32), np.array([0.1, 0.2, 0.3, 0.4], dtype=np.float32)
    for p, nearest in ((high, 0.65), (low, 0.35)):
        assert fit_threshold(p, np.array([0, 1, 0, 1]), "accuracy") == pytest.approx(nearest)


def test_neighbouring_numbers_are_told_apart() -> None:
    low = np.float32(0.9)
    p = np.array([low, np.nextafter(low, np.float32(1))] * 3, dtype=np.float32)
    t = fit_threshold(p, np.array([0, 1] * 3), "accuracy")
    assert ((p >= t) == [False, True] * 3).all()
    almost = np.nextafter(np.float32(1), np.float32(0))
    assert fit_threshold(np.array([almost, 1] * 3, dtype=np.float32), np.array([0, 1] * 3), "accuracy") < 1


@pytest.mark.parametrize("scoring", SKLEARN)
def test_shifts_score_better_on_many_classes_and_no_single_change_improves_them(scoring: str) -> None:
    outputs, targets = noisy(250, 5, 1.0, seed=4)
    scores, score = outputs.astype(np.float64), SKLEARN[scoring]
    shifts = fit_shifts(scores, targets, scoring)
    found = score(targets, (scores - shifts).argmax(axis=1))
    assert found > score(targets, scores.argmax(axis=1))
    for c in range(5):
        for step in np.linspace(-2, 2, 41):
            other = shifts + step * np.eye(5)[c]
            assert score(targets, (scores - other).argmax(axis=1)) <= found + 1e-9


@pytest.mark.parametrize("scoring", SCORINGS)
@pytest.mark.parametrize("classes", [WORDS[:2], WORDS])
def test_calibrating_for_a_score_raises_it(scoring: str, classes: list[Any]) -> None:
    clf, rows = classifier(classes), data(classes)
    tuned = calibrate(clf, rows, scoring=scoring)
    plain = calibrate(clf, rows)
    assert tuned.task.temperature == plain.task.temperature  # type: ignore[attr-defined]
    assert tuned.task.thresholds  # type: ignore[attr-defined]
    score = SKLEARN[scoring]
    before, after = (evaluate(model, rows) for model in (plain, tuned))
    assert score(after.targets, after.predictions) > score(before.targets, before.predictions)
    # All that a model says agrees with its thresholds.
    assert after.predictions == predict(tuned, rows.texts) == predict_many([plain, tuned], rows.texts)[1]
    assert [answer.label for answer in predict_stream(tuned, rows.texts)] == after.predictions
    assert after.accuracy == pytest.approx(accuracy_score(after.targets, after.predictions))
    assert after.confusion.trace() == sum(a == b for a, b in zip(after.targets, after.predictions, strict=True))
    np.testing.assert_array_equal(after.probabilities, before.probabilities)


def test_the_thresholds_of_a_call_replace_the_models() -> None:
    clf, texts = classifier(), data().texts
    p = predict_proba(clf, texts)[:, 1]
    t = float(np.sort(p)[-5])
    assert predict(clf, texts, thresholds={"spam": t}).count("spam") == 5
    assert predict(clf, texts, thresholds=t) == predict(clf, texts, thresholds={"spam": t})
    assert [a.label for a in predict_stream(clf, texts, thresholds=t)] == predict(clf, texts, thresholds=t)
    strict = classifier(task=SingleLabel(WORDS[:2], thresholds=t))
    assert predict(strict, texts) == predict(clf, texts, thresholds=t)
    assert predict(strict, texts, thresholds={}) == predict(clf, texts)
    assert strict.task.thresholds == {"spam": t}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("classes", "thresholds", "error", "message"),
    [
        (2, 1.0, ValueError, r"thresholds\['spam'\] is 1.0; it must be above 0 and below 1"),
        (2, {"spam": 0}, ValueError, "is 0.0; it must be above 0"),
        (2, {"spam": "x"}, TypeError, r"thresholds\['spam'\] is 'x'; it must be a finite number"),
        (2, "spam", TypeError, "thresholds is 'spam'; it must be a finite number"),
        (2, {"egg": 0.5}, ValueError, r"names 'egg', not among the classes \['ham', 'spam'\]"),
        (2, {"ham": 0.5, "spam": 0.5}, ValueError, "names both classes"),
        (3, 0.5, ValueError, "there are 3 classes; give a mapping"),
    ],
)
def test_wrong_thresholds_are_refused_before_any_work(
    classes: int, thresholds: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        SingleLabel(WORDS[:classes], thresholds=thresholds)
    with pytest.raises(error, match=message):
        predict(classifier(WORDS[:classes]), 5, thresholds=thresholds)  # type: ignore[arg-type]
    with pytest.raises(error, match=message):
        predict_stream(classifier(WORDS[:classes]), ["a"], thresholds=thresholds)


@pytest.mark.parametrize("function", [predict, predict_proba, predict_stream])
@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (-1.0, ValueError), ("1", TypeError), (True, TypeError)])
def test_wrong_temperatures_are_refused_before_any_work(function: Any, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"temperature is .*; it must be a finite number of at least 1e-06 and of at most"):
        function(classifier(), 5, temperature=value)


@pytest.mark.parametrize(("scoring", "error"), [("f1", ValueError), (3, TypeError)])
def test_an_unknown_scoring_is_refused_before_any_work(scoring: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="must be one of accuracy, balanced_accuracy, f1_macro"):
        calibrate(classifier(), "no data set", scoring=scoring)  # type: ignore[arg-type]


# Rejection


@pytest.mark.parametrize("classes", [WORDS[:2], WORDS])
def test_texts_without_a_probable_class_are_answered_with_none(classes: list[Any]) -> None:
    clf, texts = classifier(classes), data(classes).texts
    highest = predict_proba(clf, texts).max(axis=1)
    least = float(np.median(highest))
    found = predict(clf, texts, reject_below=least)
    kept = zip(predict(clf, texts), highest, strict=True)
    assert found == [label if p >= least else None for label, p in kept]
    assert 0 < found.count(None) < len(texts)
    assert [answer.label for answer in predict_stream(clf, texts, reject_below=least)] == found
    assert predict(clf, texts, reject_below=0) == predict(clf, texts)
    assert predict(clf, texts, reject_below=0.999, temperature=100.0) == [None] * len(texts)


@pytest.mark.parametrize(("value", "error"), [(1.1, ValueError), (-0.1, ValueError), ("0.8", TypeError)])
def test_what_is_not_a_probability_rejects_nothing(value: Any, error: type[Exception]) -> None:
    functions: list[Any] = [predict, predict_stream]
    for function in functions:
        with pytest.raises(error, match=r"reject_below is .*at least 0 and of at most 1 or None"):
            function(classifier(), 5, reject_below=value)


# Tasks without any of it


class Length(Task):
    """A task of somebody's own: how long is the text?"""

    n_outputs = 1

    def targets(self, labels: Any) -> Any:
        return np.asarray(labels, dtype=np.float32)

    def answers(self, outputs: Tensor) -> list[Any]:
        return outputs[:, 0].tolist()


def test_a_task_without_such_settings_says_so_and_answers_as_ever() -> None:
    clf = add_classifier_head(byte_gpt2(), task=Length(), seed=1)
    clf.head.forget_fresh()
    assert len(predict(clf, ["a", "b"])) == 2
    assert predict_logits(clf, ["a", "b"])[:, 0].tolist() == predict(clf, ["a", "b"])
    for name, value in (("temperature", 2.0), ("thresholds", {})):
        with pytest.raises(TypeError, match=f"{name} is .*, but a Length has no {name}; leave it out"):
            predict(clf, 5, **{name: value})  # type: ignore[arg-type]
    for call in (lambda: predict(clf, 5, reject_below=0.5), lambda: predict_proba(clf, 5)):  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="Length gives no probabilities"):
            call()
    with pytest.raises(TypeError, match="has nothing to calibrate"):
        calibrate(clf, "no data set")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="put a classifier head on it"):
        calibrate(byte_gpt2(), data())


# Folders


TASKS = [
    SingleLabel(WORDS, temperature=1.7, thresholds={"eggs": 0.25}),
    SingleLabel(WORDS, {"ham": 2.0}, 0.1, thresholds={"ham": 0.1, "spam": 0.2, "eggs": 0.3}),
    SingleLabel([("a", 1), 2], temperature=0.5, thresholds=0.125),
]


@pytest.mark.parametrize("task", TASKS, ids=repr)
def test_folders_keep_them(task: SingleLabel, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clf, texts = classifier(task=task), data().texts
    caplog.clear()
    again = load_model(save_model(clf, tmp_path / "model"))
    assert "transformers knows neither temperature nor thresholds, so its probabilities or labels differ" in caplog.text
    assert again.task == task
    assert (again.task.temperature, again.task.thresholds) == (task.temperature, task.thresholds)  # type: ignore[attr-defined]
    assert predict(again, texts) == predict(clf, texts)
    np.testing.assert_array_equal(predict_proba(again, texts), predict_proba(clf, texts))
    adapted = apply_lora(clf, rank=2, seed=0)
    save_adapter(adapted, tmp_path / "adapter")
    assert load_adapter(clf, tmp_path / "adapter").task == task


def test_the_card_says_who_uses_them(tmp_path: Path) -> None:
    save_model(classifier(task=TASKS[0]), tmp_path)
    card = " ".join((tmp_path / "README.md").read_text().split())
    assert "use temperature 1.7 and thresholds eggs 0.25, fitted or chosen; those of transformers do not" in card
    assert "not calibrated" not in card


def test_a_plain_model_saves_the_record_it_always_saved(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    clf = classifier()
    caplog.clear()
    save_model(clf, tmp_path)
    assert not caplog.messages
    record = json.loads((tmp_path / "gptclf.json").read_text())["task"]
    assert not {"temperature", "thresholds"} & set(record)


@pytest.mark.parametrize(
    ("key", "value"),
    [("temperature", 0), ("temperature", "2"), ("thresholds", [0.5]), ("thresholds", {}), ("thresholds", [2, None])],
)
def test_a_damaged_record_is_refused(key: str, value: Any, tmp_path: Path) -> None:
    save_model(classifier(task=SingleLabel(WORDS[:2], temperature=2.0)), tmp_path)
    record = json.loads((tmp_path / "gptclf.json").read_text())
    record["task"][key] = value
    (tmp_path / "gptclf.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"gptclf\.json"):
        load_model(tmp_path)


@pytest.mark.parametrize("temperature", [1e-6, 1e6])
def test_probabilities_are_numbers_at_every_temperature(temperature: float) -> None:
    outputs = torch.tensor([[1e3, -1e3, 1.0], [0.0, 0.0, 0.0]])
    assert SingleLabel(WORDS[:3], temperature=temperature).probabilities(outputs).sum(axis=1) == pytest.approx(1)


@pytest.mark.parametrize("temperature", [1e-300, 9e-7, 1.1e6])
def test_a_temperature_at_which_they_are_not_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match=r"temperature is .*; it must be a finite number of at least 1e-06"):
        predict_proba(classifier(), ["a"], temperature=temperature)


def test_a_list_of_thresholds_says_what_to_give() -> None:
    with pytest.raises(TypeError, match="thresholds is a list; it must be a mapping from labels to numbers, or"):
        SingleLabel(WORDS[:2], thresholds=[0.5, 0.5])  # type: ignore[arg-type]
