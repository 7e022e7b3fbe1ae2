"""`compare`: is one model better than another on the same texts, or is it chance?"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptclf import checks
from gptclf.metrics.bootstrap import intervals, values
from gptclf.plotting import data_frame
from gptclf.results.evaluation import Evaluation
from gptclf.results.given import checked_settings
from gptclf.results.html import fragment, measures_table, pairs_table
from gptclf.results.text import measure_lines

Floats = NDArray[np.float64]

_NONE = "no measures: the task has no statistic"


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two models on the same rows, A and B.

    Attributes:
        table: Numbers of rows (2, 2): rows are "A right" and "A wrong", columns "B right" and "B wrong". None if the
            task's answers are not right or wrong.
        p_value: McNemar's exact p-value (McNemar, 1947): how probable it is that the rows on which only one model is
            right are divided at least as unevenly, if both are equally good. None without a table.
        differences: For each measure, that of B minus that of A.
        intervals: For each measure, the interval of the difference, by the bootstrap over pairs of answers.
        confidence: The level of the intervals.
        n: Number of rows.
    """

    table: NDArray[np.int64] | None
    p_value: float | None
    differences: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    confidence: float
    n: int

    def __str__(self) -> str:
        title = f"B minus A on {self.n:,} texts, with {100 * self.confidence:g} % intervals"
        lines = [title, *(measure_lines(self.differences, self.intervals, sign="+") or [f"  {_NONE}"])]
        if self.table is not None:
            (both, only_a), (only_b, neither) = self.table.tolist()
            lines.append(f"both right {both:,}, only A {only_a:,}, only B {only_b:,}, both wrong {neither:,}")
            lines.append(f"McNemar's exact test: p = {self.p_value:.3g}")
        return "\n".join(lines)

    def to_frame(self) -> Any:
        """Return a DataFrame (pandas) with a row for each measure: measure, difference, low and high."""
        low, high = (np.array([self.intervals[name][i] for name in self.differences]) for i in range(2))
        columns = {"measure": list(self.differences), "difference": list(self.differences.values())}
        return data_frame({**columns, "low": low, "high": high})

    def _repr_html_(self) -> str:
        parts = [measures_table("B minus A", self.differences, self.intervals, confidence=self.confidence, sign="+")]
        if self.table is not None and self.p_value is not None:
            parts.append(pairs_table(self.table, self.p_value))
        return fragment(f"Comparison of two models, A and B, on {self.n:,} texts", parts)


def compare(
    evaluation_a: Evaluation,
    evaluation_b: Evaluation,
    *,
    confidence: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Comparison:
    """Compare two models on the same rows: McNemar's test, and an interval for the difference of each measure.

    Args:
        evaluation_a: The results of the first model.
        evaluation_b: The results of the second one: positive differences mean that its measure is larger.
        confidence: The level of the intervals, as in `Evaluation.intervals`.
        n_resamples: Number of resamples. Both models are measured on the same ones.
        seed: Seed of the resamples.

    Raises:
        TypeError: An argument is not an Evaluation.
        ValueError: The results are of other texts, labels or classes.

    Example:
        >>> from gptclf import SingleLabel
        >>> task, labels = SingleLabel(["ham", "spam"]), ["ham", "spam"] * 4
        >>> good = Evaluation.of(task, [[1, 0], [0, 1]] * 4, labels)
        >>> poor = Evaluation.of(task, [[1, 0], [1, 0]] * 4, labels)
        >>> found = compare(poor, good)
        >>> found.differences["accuracy"], found.p_value
        (0.5, 0.125)
    """
    for name, given in (("evaluation_a", evaluation_a), ("evaluation_b", evaluation_b)):
        checks.instance(name, given, Evaluation, "the result of evaluate")
    settings = checked_settings(confidence, n_resamples, seed)
    _check_same(evaluation_a, evaluation_b)
    of_a, of_b, n = evaluation_a.statistic, evaluation_b.statistic, len(evaluation_a.targets)

    def difference(weights: Floats) -> dict[str, NDArray[Any]]:
        a, b = of_a(weights), of_b(weights)
        return {name: b[name] - a[name] for name in a if name in b and a[name].ndim == 1}

    found = {name: float(each) for name, each in values(difference, n).items() if not np.isnan(each)}
    drawn = intervals(difference, n, *settings)
    bounds = {name: (float(drawn[name][0]), float(drawn[name][1])) for name in found}
    try:
        right_a, right_b = evaluation_a.right, evaluation_b.right
    except TypeError:  # the task's answers are not right or wrong
        return Comparison(None, None, found, bounds, settings[0], n)
    pairs = ((right_a, right_b), (right_a, ~right_b), (~right_a, right_b), (~right_a, ~right_b))
    table = np.array([np.count_nonzero(a & b) for a, b in pairs]).reshape(2, 2)
    return Comparison(table, mcnemar(int(table[0, 1]), int(table[1, 0])), found, bounds, settings[0], n)


def mcnemar(only_a: int, only_b: int) -> float:
    """Return McNemar's exact two-sided p-value from the rows that only one of two models answers rightly.

    Under the hypothesis that both are equally good these rows are as many tosses of a fair coin.

    Example:
        >>> mcnemar(1, 9)
        0.02148...
    """
    n, fewer = only_a + only_b, min(only_a, only_b)
    if only_a == only_b:
        return 1.0
    # Logarithms of binomial coefficients, each from the one before, as they are too large for floats.
    k = np.arange(1, fewer + 1)
    logs = np.append(0.0, np.cumsum(np.log(n - k + 1) - np.log(k)))
    return float(min(1.0, 2 * np.exp(logs - n * np.log(2.0)).sum()))


def _check_same(a: Evaluation, b: Evaluation) -> None:
    """Raise unless two evaluations are of the same rows and classes."""
    if len(a.targets) != len(b.targets):
        raise ValueError(
            f"the evaluations have {len(a.targets)} and {len(b.targets)} rows; give the same data set to both"
        )
    for what, first, second in (("text", a.texts, b.texts), ("label", a.targets, b.targets)):
        different = [
            i for i, (one, other) in enumerate(zip(first, second, strict=True)) if not np.array_equal(one, other)
        ]
        if different:
            row = different[0]
            problem = f"{what} {row} is {first[row]!r} in one evaluation and {second[row]!r} in the other"
            raise ValueError(f"{problem}; give the same data set to both")
    ours, theirs = a.classes, b.classes
    if ours != theirs:
        problem = f"the tasks are {a.task} and {b.task}"
        raise ValueError(f"{problem}; both need the same classes in the same order")
