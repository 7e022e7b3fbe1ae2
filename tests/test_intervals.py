"""Intervals of measures are those of scipy's bootstrap over the same resamples, and cover what they promise."""

import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import bootstrap
from sklearn import metrics as sk

from gptclf import Evaluation, MultiLabel, Regression, SingleLabel
from gptclf.metrics import bootstrap as ours
from gptclf.metrics.probabilities import reliability

Rows = NDArray[Any]
CLASSES = ["ham", "spam", "eggs", "tea"]


def scipys(measure: Callable[..., Any], *rows: Rows, n_resamples: int, seed: int, confidence: float) -> Rows:
    """The percentile interval of scipy for a measure of columns of rows."""

    def of_rows(chosen: Rows) -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a class may be absent
            return float(measure(*(each[chosen.astype(int)] for each in rows)))

    found = bootstrap(
        (np.arange(len(rows[0])),),
        of_rows,
        vectorized=False,
        n_resamples=n_resamples,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return np.array(found.confidence_interval)


def classifier(k: int, n: int = 80) -> tuple[Evaluation, Rows, Rows, Rows]:
    """Results of k classes, with the targets (N,), answers (N,) and probabilities (N, C) that they are of."""
    rng = np.random.default_rng(k)
    targets = np.append(np.arange(2 * k) % k, rng.integers(0, k, n - 2 * k))
    outputs = (1.5 * np.eye(k)[targets] + rng.normal(size=(n, k))).astype(np.float32)
    powers = np.exp(outputs.astype(np.float64))
    found = Evaluation.of(SingleLabel(CLASSES[:k]), outputs, [CLASSES[i] for i in targets])
    return found, targets, outputs.argmax(axis=1), powers / powers.sum(axis=1, keepdims=True)


def calibration_error(strategy: str) -> Callable[[Rows, Rows, Rows], float]:
    return lambda t, a, p: reliability(p.max(axis=1), t == a, 15, strategy).error


@pytest.mark.parametrize("k", [2, 3])
def test_intervals_of_a_classifier_are_those_of_scipy(k: int) -> None:
    evaluation, *rows = classifier(k)
    found = evaluation.intervals(confidence=0.9, n_resamples=100, seed=5)

    def averaged(name: str, average: str) -> Callable[[Rows, Rows, Rows], float]:
        return lambda t, a, p: getattr(sk, f"{name}_score")(t, a, average=average, zero_division=0)

    def area(measure: Any) -> Callable[[Rows, Rows, Rows], float]:
        classes = [1] if k == 2 else range(k)
        return lambda t, a, p: np.mean([measure(t == i, p[:, i]) for i in classes])

    measures: dict[str, Callable[[Rows, Rows, Rows], float]] = {
        "accuracy": lambda t, a, p: sk.accuracy_score(t, a),
        "balanced_accuracy": lambda t, a, p: sk.balanced_accuracy_score(t, a),
        "roc_auc": area(sk.roc_auc_score),
        "average_precision": area(sk.average_precision_score),
        "log_loss": lambda t, a, p: sk.log_loss(t, p, labels=range(k)),
        "brier": lambda t, a, p: sk.brier_score_loss(t, p, labels=range(k)),
        "ece": calibration_error("width"),
        "ece_equal_mass": calibration_error("mass"),
    }
    measures |= {
        f"{name}_{average}": averaged(name, average)
        for name in ("precision", "recall", "f1")
        for average in ("macro", "weighted")
    }
    assert set(found) == set(measures) == set(evaluation.metrics)
    for name, measure in measures.items():
        expected = scipys(measure, *rows, n_resamples=100, seed=5, confidence=0.9)
        np.testing.assert_allclose(found[name], expected, rtol=1e-12, atol=1e-12, err_msg=name)


def test_intervals_of_each_class_are_those_of_scipy() -> None:
    evaluation, *rows = classifier(3)
    found = evaluation.per_class_intervals(n_resamples=100, seed=1)
    assert set(found) == {"precision", "recall", "f1", "roc_auc", "average_precision"}
    assert all(each.shape == (3, 2) for each in found.values())
    for i in range(3):
        for name, measure in {
            "f1": lambda t, a, p, i=i: sk.f1_score(t == i, a == i),
            "roc_auc": lambda t, a, p, i=i: sk.roc_auc_score(t == i, p[:, i]),
        }.items():
            expected = scipys(measure, *rows, n_resamples=100, seed=1, confidence=0.95)
            np.testing.assert_allclose(found[name][i], expected, rtol=1e-12)


def test_intervals_of_numbers_and_of_several_labels_are_those_of_scipy() -> None:
    rng = np.random.default_rng(0)
    targets = rng.normal(size=(70, 2)).astype(np.float32)
    outputs = (targets + rng.normal(size=(70, 2))).astype(np.float32)
    found = Evaluation.of(Regression(2), outputs, targets.tolist()).intervals(n_resamples=100, seed=2)
    double = (targets.astype(np.float64), outputs.astype(np.float64))
    for name, measure in {
        "mse": sk.mean_squared_error,
        "rmse": sk.root_mean_squared_error,
        "mae": sk.mean_absolute_error,
        "r2": sk.r2_score,
    }.items():
        expected = scipys(measure, *double, n_resamples=100, seed=2, confidence=0.95)
        np.testing.assert_allclose(found[name], expected, rtol=1e-12, err_msg=name)
    tags = targets > 0
    found = Evaluation.of(MultiLabel(["a", "b"]), outputs, tags.astype(int).tolist()).intervals(n_resamples=100, seed=2)
    for name in ("micro", "macro"):
        expected = scipys(
            lambda t, a, name=name: sk.f1_score(t, a, average=name),
            tags,
            outputs >= 0,
            n_resamples=100,
            seed=2,
            confidence=0.95,
        )
        np.testing.assert_allclose(found[f"f1_{name}"], expected, rtol=1e-12)


@pytest.mark.parametrize("chunk", [1, 80 * 7, 10**9])
def test_intervals_do_not_depend_on_how_many_resamples_are_in_memory(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluation, *_ = classifier(3)
    expected = evaluation.intervals(n_resamples=50)
    monkeypatch.setattr(ours, "_CHUNK", chunk)
    found = classifier(3)[0].intervals(n_resamples=50)
    assert set(found) == set(expected)
    for name in found:  # equal but for the order in which a matrix product adds up
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-14)


def test_a_resample_without_a_class_does_not_count_for_its_curves() -> None:
    outputs = np.array([[2.0, 0.0], [1.0, 0.5], [0.0, 1.0], [0.0, 2.0]], dtype=np.float32)
    targets = np.array([0, 0, 0, 1])
    evaluation = Evaluation.of(SingleLabel(["ham", "spam"]), outputs, [CLASSES[i] for i in targets])
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, 4, (200, 4))
    scores = outputs[:, 1].astype(np.float64) - outputs[:, 0]
    areas = [sk.roc_auc_score(targets[i], scores[i]) for i in drawn if len(set(targets[i])) == 2]
    assert 50 < len(areas) < 150
    expected = np.quantile(areas, [0.025, 0.975])
    np.testing.assert_allclose(evaluation.intervals(n_resamples=200)["roc_auc"], expected)


def test_a_measure_that_no_resample_has_is_not_a_number() -> None:
    found = Evaluation.of(SingleLabel(["ham", "spam", "eggs"]), np.eye(3)[[0, 1]], ["ham", "spam"])
    assert np.isnan(found.per_class_intervals(n_resamples=5)["roc_auc"][2]).all()
    assert not np.isnan(list(found.intervals(n_resamples=5).values())).any()


def test_one_row_has_intervals_without_width() -> None:
    found = Evaluation.of(SingleLabel(["ham", "spam"]), [[1.0, 0.0]], ["ham"]).intervals(n_resamples=10)
    assert found["accuracy"] == (1.0, 1.0)
    assert all(low == high for low, high in found.values())


def test_ninety_percent_intervals_cover_the_truth_in_about_ninety_cases_of_a_hundred() -> None:
    rng, covered = np.random.default_rng(0), 0
    for case in range(300):
        hits = rng.random(150) < 0.7

        def accuracy(weights: Rows, hits: Rows = hits) -> dict[str, Rows]:
            return {"accuracy": weights @ hits / weights.sum(axis=1)}

        [(low, high)] = ours.intervals(accuracy, 150, confidence=0.9, n_resamples=300, seed=case).values()
        covered += low <= 0.7 <= high
    # Two standard deviations around 270 are 10; the percentile bootstrap is a little too narrow.
    assert 250 <= covered <= 285


def test_the_same_seed_gives_the_same_intervals_and_another_one_does_not() -> None:
    evaluation, *_ = classifier(2)
    first = evaluation.intervals(n_resamples=50)
    assert evaluation.intervals(n_resamples=50, seed=1) != first
    assert classifier(2)[0].intervals(n_resamples=50) == first


def test_intervals_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluation, *_ = classifier(2)
    first, text = evaluation.intervals(n_resamples=20), evaluation.report(n_resamples=20)
    monkeypatch.setattr(ours, "resamples", None)
    assert evaluation.intervals(n_resamples=20) == first
    assert evaluation.report(n_resamples=20) == text
    with pytest.raises(TypeError):
        evaluation.intervals(n_resamples=21)


def test_a_report_shows_every_measure_with_its_interval() -> None:
    evaluation, *_ = classifier(3)
    text = evaluation.report(confidence=0.9, n_resamples=50)
    assert text.startswith(str(evaluation))
    assert "90 % intervals" in text
    bounds = evaluation.intervals(confidence=0.9, n_resamples=50)
    for name, value in evaluation.metrics.items():
        low, high = bounds[name]
        assert re.search(rf"{name} +{value:.4f} \({low:.4f} to {high:.4f}\)", text), name
    low, high = evaluation.per_class_intervals(confidence=0.9, n_resamples=50)["f1"][1]
    assert f"f1[spam]           {evaluation.per_class['f1'][1]:.4f} ({low:.4f} to {high:.4f})" in text
    numbers = Evaluation.of(Regression(), [[1.0], [2.0], [4.0]], [1.0, 2.5, 3.0]).report(n_resamples=20)
    assert "rmse" in numbers


def test_more_confidence_is_a_wider_interval() -> None:
    evaluation, *_ = classifier(2)
    narrow, wide = (evaluation.intervals(confidence=level, n_resamples=200) for level in (0.5, 0.99))
    for name in narrow:
        assert wide[name][0] <= narrow[name][0] <= narrow[name][1] <= wide[name][1]


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"confidence": 0}, ValueError),
        ({"confidence": 1}, ValueError),
        ({"confidence": 95}, ValueError),
        ({"confidence": float("nan")}, ValueError),
        ({"confidence": "95 %"}, TypeError),
        ({"n_resamples": 0}, ValueError),
        ({"n_resamples": 10.0}, TypeError),
        ({"seed": -1}, ValueError),
        ({"seed": None}, TypeError),
    ],
)
def test_an_argument_that_makes_no_sense_is_named(wrong: dict[str, Any], error: type[Exception]) -> None:
    evaluation, *_ = classifier(2)
    for method in (evaluation.intervals, evaluation.per_class_intervals):
        with pytest.raises(error, match=next(iter(wrong))):
            method(**wrong)
