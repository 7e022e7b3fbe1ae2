"""Every measure of an evaluation equals that of scikit-learn or netcal, whatever the rows are like."""

import copy
import warnings
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import metrics as sk

from gptclf import Evaluation, MultiLabel, Regression, SingleLabel, compare
from gptclf.metrics import statistics
from gptclf.metrics.bootstrap import Statistic, values
from gptclf.metrics.probabilities import reliability, risk_coverage
from gptclf.metrics.ranking import ranking_areas

AVERAGED = ("precision", "recall", "f1")
# Each distribution ends in a one, or is one of a few, so that scores tie and probabilities of 0 and 1 occur.
KINDS = ("dirichlet", "coarse", "certain", "same", "float32")


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """scikit-learn warns of each measure that is not defined."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def distributions(kind: str, n: int, k: int, rng: np.random.Generator) -> NDArray[Any]:
    """Probabilities (N, C) of a kind: any, few distinct ones, zeros and ones, all the same, or of float32."""
    if kind == "coarse":
        parts = rng.multinomial(4, np.full(k, 1 / k), n)
        return np.asarray(parts / 4)
    if kind == "certain":
        return np.eye(k)[rng.integers(0, k, n)]
    if kind == "same":
        return np.tile(rng.dirichlet(np.ones(k)), (n, 1))
    found = rng.dirichlet(np.full(k, 0.4), n)
    return np.asarray(found.astype(np.float32) if kind == "float32" else found)


@st.composite
def classified(draw: st.DrawFn) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Targets (N,), answers (N,) and probabilities (N, C); classes may be absent from either, and rows may be one."""
    n, k = draw(st.integers(1, 40)), draw(st.sampled_from([2, 2, 3, 4, 9]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    probabilities = distributions(draw(st.sampled_from(KINDS)), n, k, rng)
    occurring = rng.permutation(k)[: draw(st.integers(1, k))]
    targets = rng.choice(occurring, n)
    # As a rule the most probable class is answered; thresholds may say otherwise.
    answers = rng.integers(0, k, n) if draw(st.booleans()) else probabilities.argmax(axis=1)
    return targets, answers, probabilities.astype(np.float64)


def area(measure: Any, positive: NDArray[Any], scores: NDArray[Any]) -> float:
    """A ranking measure of scikit-learn, NaN where it has no meaning (scikit-learn's average precision is 0 there)."""
    return float(measure(positive, scores)) if positive.any() else np.nan


def sklearn_single_label(
    targets: NDArray[Any], answers: NDArray[Any], probabilities: NDArray[Any]
) -> dict[str, float | NDArray[Any]]:
    """All measures of one class per row, from scikit-learn."""
    k = probabilities.shape[1]
    averages = {
        f"{name}_{average}": getattr(sk, f"{name}_score")(targets, answers, average=average, zero_division=0)
        for name in AVERAGED
        for average in ("macro", "weighted")
    }
    scores = sk.precision_recall_fscore_support(targets, answers, labels=range(k), zero_division=0)
    areas = {
        name: np.array([area(measure, targets == i, probabilities[:, i]) for i in range(k)])
        for name, measure in (("roc_auc", sk.roc_auc_score), ("average_precision", sk.average_precision_score))
    }
    return {
        "accuracy": sk.accuracy_score(targets, answers),
        "balanced_accuracy": sk.balanced_accuracy_score(targets, answers),
        **averages,
        **{name: each[1] if k == 2 else np.nanmean(each) for name, each in areas.items()},
        "log_loss": sk.log_loss(targets, probabilities, labels=range(k)),
        "brier": sk.brier_score_loss(targets, probabilities, labels=range(k)),
        **{f"{name}_per_class": each for name, each in zip((*AVERAGED, "support"), scores, strict=True)},
        **{f"{name}_per_class": each for name, each in areas.items()},
    }


def assert_equal(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Each expected measure is there and equal to 1e-12, or NaN in both."""
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-12, atol=1e-12, err_msg=name)


@given(classified())
@settings(max_examples=150, deadline=None)
def test_measures_of_one_class_per_row_are_those_of_scikit_learn(rows: tuple[NDArray[Any], ...]) -> None:
    found = values(statistics.single_label(*rows), len(rows[0]))
    expected = sklearn_single_label(*rows)
    assert_equal(found, expected)
    assert set(found) == {*expected, "ece", "ece_equal_mass"}


@given(classified())
@settings(max_examples=50, deadline=None)
def test_several_classes_that_all_occur_have_scikit_learns_own_averages_of_areas(
    rows: tuple[NDArray[Any], ...],
) -> None:
    _, _, probabilities = rows
    k = probabilities.shape[1]
    targets = np.arange(len(probabilities)) % k
    if k == 2 or len(np.unique(targets)) < k:
        return
    found = values(statistics.single_label(targets, targets, probabilities), len(targets))
    np.testing.assert_allclose(found["average_precision"], sk.average_precision_score(targets, probabilities))
    if np.allclose(1, probabilities.sum(axis=1)):
        expected = sk.roc_auc_score(targets, probabilities, multi_class="ovr", average="macro")
        np.testing.assert_allclose(found["roc_auc"], expected, rtol=1e-12)


@st.composite
def tagged(draw: st.DrawFn) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Targets, answers and probabilities, tables (N, C); classes may be in no row or in all of them."""
    n, k = draw(st.integers(1, 40)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    probabilities = rng.random((n, k))
    if draw(st.booleans()):
        probabilities = np.round(3 * probabilities) / 3
    targets = rng.random((n, k)) < rng.choice([0.0, 0.2, 0.7, 1.0], k)
    return targets, probabilities >= 0.5, probabilities


@given(tagged())
@settings(max_examples=100, deadline=None)
def test_measures_of_several_classes_per_row_are_those_of_scikit_learn(rows: tuple[NDArray[Any], ...]) -> None:
    targets, answers, probabilities = rows
    columns = range(targets.shape[1])
    # One column is to scikit-learn one class per row: another one that never occurs makes it a table.
    wide_targets, wide_answers = (np.hstack([table, np.zeros_like(table[:, :1])]) for table in (targets, answers))
    scores = np.array(
        sk.precision_recall_fscore_support(wide_targets, wide_answers, average=None, zero_division=0)[:3]
    )[:, :-1]
    areas = {
        name: np.array([area(measure, targets[:, i], probabilities[:, i]) for i in columns])
        for name, measure in (("roc_auc", sk.roc_auc_score), ("average_precision", sk.average_precision_score))
    }

    def mean(measure: Any) -> Any:
        return np.mean([measure(targets[:, i], probabilities[:, i]) for i in columns])

    expected: dict[str, Any] = {
        "accuracy": (targets == answers).all(axis=1).mean(),
        "log_loss": mean(lambda true, p: sk.log_loss(true, p, labels=[False, True])),
        "brier": mean(lambda true, p: sk.brier_score_loss(np.append(true, ~true[:1]), np.append(p, ~true[0]))),
        **{name: np.nanmean(each) if not np.isnan(each).all() else np.nan for name, each in areas.items()},
        **{f"{name}_per_class": each for name, each in areas.items()},
        "support_per_class": targets.sum(axis=0),
    }
    # A row was added that is exactly right, since scikit-learn's score wants both kinds.
    expected["brier"] *= (len(targets) + 1) / len(targets)
    for name, each in zip(AVERAGED, scores, strict=True):
        score = getattr(sk, f"{name}_score")
        expected[f"{name}_per_class"] = each
        expected[f"{name}_macro"] = each.mean()
        for average in ("micro", "weighted"):
            expected[f"{name}_{average}"] = score(wide_targets, wide_answers, average=average, zero_division=0)
        if len(columns) > 1:
            macro = score(targets, answers, average="macro", zero_division=0)
            np.testing.assert_allclose(expected[f"{name}_macro"], macro)
    if len(columns) > 1:
        assert expected["accuracy"] == pytest.approx(sk.accuracy_score(targets, answers))
    found = values(statistics.multi_label(*rows), len(targets))
    assert_equal(found, expected)
    assert set(found) == set(expected)


@st.composite
def measured(draw: st.DrawFn) -> tuple[NDArray[Any], NDArray[Any]]:
    """Targets and estimates (N, k), of float32 as a model has them; a column may be constant, or far from zero."""
    n, k = draw(st.integers(2, 40)), draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    centre = draw(st.sampled_from([0.0, 1.0, 1e4]))
    targets = (centre + rng.normal(size=(n, k)) * rng.choice([0.0, 1.0, 100.0], k)).astype(np.float32)
    close = draw(st.sampled_from([0.0, 0.1, 10.0]))
    return targets.astype(np.float64), (targets + close * rng.normal(size=(n, k))).astype(np.float32).astype(np.float64)


@given(measured())
@settings(max_examples=100, deadline=None)
def test_measures_of_numbers_are_those_of_scikit_learn(rows: tuple[NDArray[Any], ...]) -> None:
    expected = {
        "mse": sk.mean_squared_error(*rows),
        "rmse": sk.root_mean_squared_error(*rows),
        "mae": sk.mean_absolute_error(*rows),
        "r2": sk.r2_score(*rows),
    }
    found = values(statistics.regression(*rows), len(rows[0]))
    assert_equal(found, expected)
    assert set(found) == set(expected)


def repeated(statistic: Any, rows: tuple[NDArray[Any], ...], counts: NDArray[Any]) -> None:
    """A weight is a row that occurs that often: the measures are those of the longer data set."""
    weighted: Statistic = statistic(*rows)
    several = weighted(np.stack([counts, np.ones(len(counts)), counts[::-1]]).astype(np.float64))
    for i, its in enumerate([counts, np.ones(len(counts), dtype=np.int64), counts[::-1]]):
        longer = tuple(np.repeat(each, its, axis=0) for each in rows)
        expected = values(statistic(*longer), int(its.sum()))
        assert_equal({name: each[i] for name, each in several.items()}, expected)


def counted(rows: tuple[NDArray[Any], ...], seed: int) -> NDArray[Any]:
    """How often each row is in a resample (N,)."""
    n = len(rows[0])
    return np.bincount(np.random.default_rng(seed).integers(0, n, n), minlength=n)


@given(classified(), st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_a_weight_of_one_class_per_row_is_a_row_that_occurs_that_often(rows: Any, seed: int) -> None:
    repeated(statistics.single_label, rows, counted(rows, seed))


@given(tagged(), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_a_weight_of_several_classes_per_row_is_a_row_that_occurs_that_often(rows: Any, seed: int) -> None:
    repeated(statistics.multi_label, rows, counted(rows, seed))


@given(measured(), st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_a_weight_of_a_number_is_a_row_that_occurs_that_often(rows: Any, seed: int) -> None:
    repeated(statistics.regression, rows, counted(rows, seed))


def test_a_resample_of_one_row_again_and_again_has_no_spread_to_explain() -> None:
    targets = np.array([[-1.2685586], [-1.5332805], [-0.6806517]], dtype=np.float32).astype(np.float64)
    for row in range(3):
        found = statistics.regression(targets, targets + 0.1)(3 * np.eye(3)[[row]])
        assert found["r2"].tolist() == [0.0]
        assert statistics.regression(targets, targets)(3 * np.eye(3)[[row]])["r2"].tolist() == [1.0]


def test_areas_of_thousands_of_rows_in_few_and_many_places() -> None:
    rng = np.random.default_rng(0)
    for places in (1, 2, 50, 10**9):
        scores = rng.integers(0, places, 3000) / places
        positive = rng.random(3000) < 0.2 + 0.5 * scores
        roc, precision = ranking_areas(np.ones((1, 3000)), positive, scores)
        assert roc[0] == pytest.approx(sk.roc_auc_score(positive, scores), abs=1e-12)
        assert precision[0] == pytest.approx(sk.average_precision_score(positive, scores), abs=1e-12)


# Calibration


@given(classified())
@settings(max_examples=60, deadline=None)
def test_calibration_errors_are_those_of_netcal(rows: tuple[NDArray[Any], ...]) -> None:
    netcal = pytest.importorskip("netcal.metrics")
    targets, answers, probabilities = rows
    found = values(statistics.single_label(*rows), len(targets))
    right, confidence = targets == answers, probabilities[np.arange(len(targets)), answers]
    # netcal reads confidences and 0 or 1, whatever the number of classes.
    assert found["ece"] == pytest.approx(netcal.ECE(15).measure(confidence, right.astype(int)), abs=1e-12)
    if len(np.unique(confidence)) == len(confidence) and len(confidence) > 1:
        # It refuses bins without width, which equal confidences lead to.
        expected = netcal.ECE(15, equal_intervals=False).measure(confidence, right.astype(int))
        assert found["ece_equal_mass"] == pytest.approx(expected, abs=1e-12)


def test_calibration_error_of_several_classes_is_netcals_of_whole_distributions() -> None:
    netcal = pytest.importorskip("netcal.metrics")
    rng = np.random.default_rng(1)
    probabilities, targets = rng.dirichlet(np.ones(5), 2000), rng.integers(0, 5, 2000)
    found = values(statistics.single_label(targets, probabilities.argmax(axis=1), probabilities), 2000)
    assert found["ece"] == pytest.approx(netcal.ECE(15).measure(probabilities, targets), abs=1e-12)
    equal_mass = netcal.ECE(15, equal_intervals=False).measure(probabilities, targets)
    assert found["ece_equal_mass"] == pytest.approx(equal_mass, abs=1e-12)


@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.2, 1 / 3, 0.4, 0.6, 0.9, 1.0]), st.booleans()), min_size=1),
    st.integers(1, 20),
    st.sampled_from(["width", "mass"]),
)
@settings(max_examples=150, deadline=None)
def test_bins_hold_every_row_once_and_their_means(rows: list[tuple[float, bool]], n_bins: int, strategy: str) -> None:
    confidence, right = np.array([p for p, _ in rows]), np.array([hit for _, hit in rows])
    found = reliability(confidence, right, n_bins, strategy)
    edges = found.edges
    assert len(edges) == n_bins + 1
    assert (edges[0], edges[-1]) == (0.0, 1.0)
    assert found.count.sum() == len(rows)
    error = 0.0
    for i, (low, high) in enumerate(pairwise(edges.tolist())):
        # A bin has its lower bound and the last one both; of bins without width the last takes what is on them.
        inside = (confidence >= low) & ((confidence < high) | (i == n_bins - 1))
        assert found.count[i] == inside.sum()
        if inside.any():
            assert found.confidence[i] == pytest.approx(confidence[inside].mean())
            assert found.accuracy[i] == pytest.approx(right[inside].mean())
            error += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
        else:
            assert np.isnan(found.confidence[i])
            assert np.isnan(found.accuracy[i])
    assert found.error == pytest.approx(error, abs=1e-12)


def test_bins_of_equal_mass_hold_equally_many_rows() -> None:
    confidence = np.random.default_rng(0).beta(8, 1, 1500)
    found = reliability(confidence, confidence > 0.5, 15, "mass")
    assert found.count.min() >= 99
    assert found.count.max() <= 101


@given(st.lists(st.tuples(st.sampled_from([0.5, 0.6, 0.7, 0.99, 1.0]), st.booleans()), min_size=1))
@settings(max_examples=100, deadline=None)
def test_risk_at_each_coverage_is_the_error_of_the_rows_that_are_answered(rows: list[tuple[float, bool]]) -> None:
    confidence, right = np.array([p for p, _ in rows]), np.array([hit for _, hit in rows])
    found = risk_coverage(confidence, right)
    assert found.threshold.tolist() == sorted(set(confidence.tolist()), reverse=True)
    for threshold, coverage, risk in zip(found.threshold, found.coverage, found.risk, strict=True):
        answered = confidence >= threshold  # as reject_below has it
        assert coverage == pytest.approx(answered.mean())
        assert risk == pytest.approx((~right[answered]).mean())
    assert found.coverage[-1] == 1.0


# From a model's outputs


def softmax(outputs: NDArray[Any]) -> NDArray[Any]:
    powers = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("k", [2, 4])
def test_an_evaluation_measures_its_outputs_in_float64(k: int, temperature: float) -> None:
    rng = np.random.default_rng(k)
    classes = [f"class {i}" for i in range(k)]
    targets = rng.integers(0, k, 300)
    # So sure that the probabilities of many rows are 1 in float32; the ranking still tells them apart.
    outputs = (12 * np.eye(k)[targets] + 8 * rng.normal(size=(300, k))).astype(np.float32)
    found = Evaluation.of(SingleLabel(classes, temperature=temperature), outputs, [classes[i] for i in targets])
    probabilities = softmax(outputs.astype(np.float64) / temperature)
    expected = sklearn_single_label(targets, outputs.argmax(axis=1), probabilities)
    assert_equal(found.metrics, {name: value for name, value in expected.items() if np.ndim(value) == 0})
    assert_equal(found.per_class, {name: expected[f"{name}_per_class"] for name in found.per_class})
    assert found.metrics["accuracy"] == found.accuracy
    assert found.metrics["f1_macro"] == pytest.approx(found.macro_f1, abs=1e-15)


@pytest.mark.parametrize("task", [SingleLabel(["a", "b", "c"]), SingleLabel(["a", "b", "c"], thresholds={"a": 0.2})])
def test_the_diagram_and_the_calibration_error_are_about_the_same_confidences(task: SingleLabel) -> None:
    rng = np.random.default_rng(0)
    outputs, targets = 2 * rng.normal(size=(500, 3)), list("abc" * 166 + "ab")
    found = Evaluation.of(task, outputs, targets)
    assert found.reliability().error == pytest.approx(found.metrics["ece"], abs=1e-12)
    assert found.reliability(strategy="mass").error == pytest.approx(found.metrics["ece_equal_mass"], abs=1e-12)
    assert found.risk_coverage().risk[-1] == pytest.approx(1 - found.accuracy)


def test_what_is_not_defined_is_absent() -> None:
    found = Evaluation.of(SingleLabel(["a", "b"]), [[2.0, 0.0], [0.0, 1.0]], ["a", "a"])
    assert {"roc_auc", "average_precision"} & set(found.metrics) == set()
    assert found.metrics["accuracy"] == 0.5
    assert np.isnan(found.per_class["roc_auc"]).all()
    # Every row is of "a", so the rows of "a" come first whatever the order.
    assert found.per_class["average_precision"][0] == 1.0
    assert not np.isnan(list(found.metrics.values())).any()


def test_measures_are_computed_when_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def statistic(*rows: Any) -> Statistic:
        asked.append(rows)
        return lambda weights: {}

    monkeypatch.setattr(SingleLabel, "statistic", statistic)
    found = Evaluation.of(SingleLabel(["a", "b"]), [[2.0, 0.0], [0.0, 1.0]], ["a", "b"])
    assert "accuracy" in repr(found)
    assert asked == []
    assert found.metrics == {}
    assert len(asked) == 1


def test_several_labels_and_numbers_have_their_own_measures() -> None:
    tags = Evaluation.of(MultiLabel(["a", "b"]), [[1.0, -1.0], [1.0, 2.0]], [["a"], ["b"]])
    assert tags.metrics["f1_micro"] == pytest.approx(tags.micro_f1)
    assert tags.metrics["f1_macro"] == pytest.approx(tags.macro_f1)
    assert "ece" not in tags.metrics
    numbers = Evaluation.of(Regression(), [[1.0], [2.0], [4.0]], [1.0, 2.5, 3.0])
    assert set(numbers.metrics) == {"mse", "rmse", "mae", "r2"}
    assert numbers.metrics["mse"] == pytest.approx(numbers.loss)
    assert numbers.metrics["r2"] == pytest.approx(numbers.r2)
    with pytest.raises(TypeError, match="no probabilities"):
        numbers.reliability()


class Plain(SingleLabel):
    """A task that someone else has written: it has details, and none of the measures of this page."""

    def statistic(self, outputs: Any, targets: Any) -> Statistic:
        return lambda weights: {}


def test_a_task_without_measures_of_its_own_has_what_it_had() -> None:
    found = Evaluation.of(Plain(["a", "b"]), [[2.0, 0.0], [0.0, 1.0]], ["a", "b"])
    assert (found.metrics, found.intervals(), found.per_class_intervals()) == ({}, {}, {})
    assert list(found.per_class) == ["precision", "recall", "f1", "support"]
    assert str(found) in found.report()
    assert str(found) + "\nno further measures: the task Plain(" in found.report()
    assert "no measures: the task has no statistic" in str(compare(found, found))
    for each in (found, compare(found, found)):
        assert "No measures: the task has no statistic" in each._repr_html_()


@pytest.mark.parametrize("row", [[np.nan, 0.0], [np.inf, 0.0], [-np.inf, -np.inf]])
def test_outputs_that_answer_nothing_are_refused_by_their_row(row: list[float]) -> None:
    with pytest.raises(ValueError, match=r"outputs, row 1, is \[.*\]; it must hold finite numbers"):
        Evaluation.of(SingleLabel(["ham", "spam"]), [[0.0, 1.0], row], ["ham", "spam"])
    assert Evaluation.of(SingleLabel(["ham", "spam"]), [[0.0, -np.inf]], ["ham"]).accuracy == 1.0


def test_the_confidence_of_an_answer_is_its_own_probability_with_thresholds_as_well() -> None:
    outputs = np.log([[0.12, 0.88], [0.05, 0.95], [0.7, 0.3]])
    found = Evaluation.of(SingleLabel(["ham", "spam"], thresholds={"spam": 0.9}), outputs, ["ham", "spam", "ham"])
    assert found.predictions == ["ham", "spam", "ham"]
    np.testing.assert_allclose(found.confidences, [0.12, 0.95, 0.7], rtol=1e-6)
    np.testing.assert_allclose(found.risk_coverage().threshold, [0.95, 0.7, 0.12], rtol=1e-6)


def test_reliability_is_not_defined_for_several_labels() -> None:
    found = Evaluation.of(MultiLabel(["a", "b"]), [[1.0, -1.0]], [["a"]])
    with pytest.raises(TypeError, match="reliability needs answers that are one class each"):
        found.reliability()


def test_the_confidence_of_several_labels_is_that_of_the_decisions_that_thresholds_make() -> None:
    found = Evaluation.of(MultiLabel(["a", "b"], [0.9, 0.2]), [[np.log(4), -np.log(3)]], [["a"]])
    assert found.predictions == [["b"]]  # p = 0.8 and 0.25
    np.testing.assert_allclose(found.confidences, [0.2], rtol=1e-6)
    assert found.most_confident_errors()[0].probability == pytest.approx(0.2)


def test_probabilities_in_the_place_of_logits_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    task, labels = SingleLabel(["a", "b"]), ["a", "b"] * 4
    for outputs in (np.log([[0.75, 0.25]] * 8), [[0.75, 0.5]] * 8):
        Evaluation.of(task, outputs, labels)
    Evaluation.of(task, [[0.75, 0.25]] * 2, labels[:2])
    assert caplog.text == ""
    Evaluation.of(task, [[0.75, 0.25]] * 8, labels)
    assert "if they are probabilities, give np.log of them" in caplog.text


def test_every_metric_is_an_attribute() -> None:
    found = Evaluation.of(SingleLabel(["a", "b"]), [[2.0, 0.0], [0.0, 1.0]], ["a", "b"])
    assert {name: getattr(found, name) for name in found.metrics} == found.metrics
    with pytest.raises(AttributeError, match=r"no 'f1'; it has .*loss.*f1_macro"):
        _ = found.f1
    assert not hasattr(copy.copy(found), "_repr_png_")


def test_pictures_of_classes_need_classes(tmp_path: Path) -> None:
    numbers = Evaluation.of(Regression(), [[1.0], [2.0]], [1.0, 2.5])
    with pytest.raises(TypeError, match=r"nothing to plot: the task Regression\(n_outputs=1\) has no confusion matrix"):
        numbers.plot_confusion(tmp_path / "a")
    with pytest.raises(TypeError, match="has no scores of single classes"):
        numbers.plot_per_class(tmp_path / "a")
