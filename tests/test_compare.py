"""`compare`: McNemar's test against scipy's, and differences with scipy's intervals, on the same rows."""

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binomtest, bootstrap
from sklearn.metrics import accuracy_score, f1_score, r2_score

from gptclf import Evaluation, MultiLabel, Regression, SingleLabel, compare
from gptclf.results.compare import mcnemar

CLASSES = ["ham", "spam", "eggs"]


def pair(n: int = 90) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Targets (N,) and the outputs (N, C) of two models, the second one better."""
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 3, n)
    noise = rng.normal(size=(n, 3))
    a, b = (scale * np.eye(3)[targets] + noise + 0.7 * rng.normal(size=(n, 3)) for scale in (1, 2))
    return targets, a, b


def evaluation(outputs: NDArray[Any], targets: NDArray[Any], **options: Any) -> Evaluation:
    return Evaluation.of(SingleLabel(CLASSES), outputs, [CLASSES[i] for i in targets], **options)


@given(st.integers(0, 400), st.integers(0, 400))
def test_the_p_value_is_that_of_scipys_exact_binomial_test(only_a: int, only_b: int) -> None:
    expected = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    assert mcnemar(only_a, only_b) == pytest.approx(expected, rel=1e-10, abs=1e-300)


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 100_000), (49_000, 51_000), (50_000, 50_000), (3, 5000)])
def test_the_p_value_of_very_many_rows_is_finite(only_a: int, only_b: int) -> None:
    expected = binomtest(only_a, only_a + only_b).pvalue
    assert mcnemar(only_a, only_b) == pytest.approx(expected, rel=1e-8, abs=1e-300)


def test_the_table_counts_the_rows_that_each_model_has_right() -> None:
    targets, a, b = pair()
    found = compare(evaluation(a, targets), evaluation(b, targets), n_resamples=10)
    right_a, right_b = a.argmax(axis=1) == targets, b.argmax(axis=1) == targets
    assert found.table is not None
    assert found.table.tolist() == [
        [(right_a & right_b).sum(), (right_a & ~right_b).sum()],
        [(~right_a & right_b).sum(), (~right_a & ~right_b).sum()],
    ]
    only_a, only_b = int(found.table[0, 1]), int(found.table[1, 0])
    assert found.p_value == pytest.approx(binomtest(only_a, only_a + only_b).pvalue)
    assert found.n == found.table.sum() == 90


@pytest.mark.parametrize("name", ["accuracy", "f1_macro"])
def test_the_interval_of_a_difference_is_scipys_of_pairs(name: str) -> None:
    targets, a, b = pair()
    found = compare(evaluation(a, targets), evaluation(b, targets), confidence=0.9, n_resamples=150, seed=3)

    def measure(true: NDArray[Any], answers: NDArray[Any]) -> float:
        return float(accuracy_score(true, answers) if name == "accuracy" else f1_score(true, answers, average="macro"))

    def difference(true: NDArray[Any], of_a: NDArray[Any], of_b: NDArray[Any]) -> float:
        return measure(true, of_b) - measure(true, of_a)

    rows = (targets, a.argmax(axis=1), b.argmax(axis=1))
    theirs = bootstrap(
        rows,
        difference,
        paired=True,
        vectorized=False,
        n_resamples=150,
        confidence_level=0.9,
        method="percentile",
        rng=np.random.default_rng(3),
    )
    assert found.differences[name] == pytest.approx(difference(*rows), abs=1e-12)
    np.testing.assert_allclose(found.intervals[name], theirs.confidence_interval, atol=1e-12)


def test_the_interval_of_a_pair_is_narrower_than_that_of_strangers() -> None:
    targets, a, _ = pair(300)
    good = evaluation(a, targets)
    nearly = a.copy()
    nearly[:5] = np.roll(nearly[:5], 1, axis=1)
    low, high = compare(good, evaluation(nearly, targets)).intervals["accuracy"]
    alone = good.intervals()["accuracy"]
    assert high - low < 0.5 * (alone[1] - alone[0])


def test_exchanging_the_models_turns_the_signs() -> None:
    targets, a, b = pair()
    there = compare(evaluation(a, targets), evaluation(b, targets), n_resamples=50)
    back = compare(evaluation(b, targets), evaluation(a, targets), n_resamples=50)
    assert there.table is not None
    assert back.table is not None
    assert (there.table == back.table.T).all()
    assert there.p_value == back.p_value
    for name, value in there.differences.items():
        assert back.differences[name] == -value
        np.testing.assert_allclose(back.intervals[name], [-there.intervals[name][1], -there.intervals[name][0]])


def test_a_model_does_not_differ_from_itself() -> None:
    targets, a, _ = pair()
    found = compare(evaluation(a, targets), evaluation(a, targets), n_resamples=20)
    assert found.p_value == 1.0
    assert set(found.differences.values()) == {0.0}
    assert set(found.intervals.values()) == {(0.0, 0.0)}


def test_a_comparison_is_read_as_text() -> None:
    targets, a, b = pair()
    found = compare(evaluation(a, targets), evaluation(b, targets), n_resamples=100)
    assert found.table is not None
    said = str(found)
    low, high = found.intervals["accuracy"]
    assert "90 texts" in said
    assert "95 %" in said
    assert f"{found.differences['accuracy']:+.4f} ({low:+.4f} to {high:+.4f})" in said
    assert f"both right {found.table[0, 0]}" in said
    assert "McNemar's exact test" in said
    assert f"{found.p_value:.3g}" in said


def test_several_labels_are_right_if_all_are_and_numbers_never_are() -> None:
    tags = [["a"], ["b"], []]
    both = MultiLabel(["a", "b"])
    first = Evaluation.of(both, [[1.0, -1.0], [1.0, 1.0], [-1.0, -1.0]], tags)
    second = Evaluation.of(both, [[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0]], tags)
    found = compare(first, second, n_resamples=10)
    assert found.table is not None
    assert found.table.tolist() == [[1, 1], [1, 0]]
    numbers = [0.0, 1.0, 3.0]
    near, far = (Evaluation.of(Regression(), [[x + d] for x in numbers], numbers) for d in (0.1, 0.5))
    measured = compare(near, far, n_resamples=10)
    assert (measured.table, measured.p_value) == (None, None)
    shift = r2_score(numbers, [x + 0.5 for x in numbers]) - r2_score(numbers, [x + 0.1 for x in numbers])
    assert measured.differences["r2"] == pytest.approx(shift, abs=1e-6)
    assert "McNemar" not in str(measured)


def test_labels_may_be_rows_of_a_table() -> None:
    table = [np.array([1, 0]), np.array([0, 1]), np.array([1, 1])]
    found = Evaluation.of(MultiLabel(["a", "b"]), [[1.0, -1.0]] * 3, table)
    other = Evaluation.of(MultiLabel(["a", "b"]), [[1.0, 1.0]] * 3, list(np.array(table)))
    assert compare(found, other, n_resamples=5).differences["accuracy"] == pytest.approx(0.0)


def test_a_measure_that_one_model_lacks_is_not_compared() -> None:
    targets = [0, 0, 0]
    outputs = np.eye(3)[targets]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = compare(evaluation(outputs, np.array(targets)), evaluation(outputs, np.array(targets)), n_resamples=5)
    assert "roc_auc" not in found.differences
    assert set(found.differences) == set(found.intervals)


@pytest.mark.parametrize(
    ("other", "problem"),
    [
        ({"texts": ["x", "other"]}, "text 1 is 'y' .* and 'other'"),
        ({"targets": [0, 0]}, "label 1 is 'spam' .* and 'ham'"),
        ({"outputs": np.eye(3)[:1], "targets": [0], "texts": ["x"]}, "2 and 1 rows"),
    ],
)
def test_results_of_other_rows_are_refused(other: dict[str, Any], problem: str) -> None:
    rows: dict[str, Any] = {"outputs": np.eye(3)[:2], "targets": [0, 1], "texts": ["x", "y"]}
    with pytest.raises(ValueError, match=problem):
        compare(evaluation(**rows), evaluation(**{**rows, **other}))


def test_results_of_other_classes_or_tasks_are_refused() -> None:
    targets = ["ham", "spam"]
    ours = Evaluation.of(SingleLabel(["ham", "spam"]), np.eye(2), targets)
    for classes in (["spam", "ham"], CLASSES):
        with pytest.raises(ValueError, match="classes"):
            compare(ours, Evaluation.of(SingleLabel(classes), np.eye(2, len(classes)), targets))
    with pytest.raises(TypeError, match="evaluation_b"):
        compare(ours, 0.9)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="n_resamples"):
        compare(ours, ours, n_resamples=0)


def test_differences_are_a_table() -> None:
    pytest.importorskip("pandas")
    task, labels = SingleLabel(["ham", "spam"]), ["ham", "spam"] * 4
    found = compare(*(Evaluation.of(task, [[1, 0], [i, 1]] * 4, labels) for i in (2, 0)), n_resamples=20)
    frame = found.to_frame().set_index("measure")
    assert frame["difference"].to_dict() == found.differences
    assert list(frame.loc["accuracy", ["low", "high"]]) == list(found.intervals["accuracy"])
