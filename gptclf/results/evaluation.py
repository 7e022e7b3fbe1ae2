"""`Evaluation`: the results of a model on a labelled data set."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gptclf import checks
from gptclf.metrics.bootstrap import Statistic, intervals, values
from gptclf.metrics.probabilities import STRATEGIES, Reliability, RiskCoverage, reliability, risk_coverage
from gptclf.metrics.statistics import of_each_class
from gptclf.plotting import data_frame, plot_confusion
from gptclf.results.errors import ConfidentErrors, find_errors, probabilities_of
from gptclf.results.given import check_detail, checked_outputs, checked_settings
from gptclf.results.html import evaluation_parts, f1_bounds, fragment, write_page
from gptclf.results.pictures import plot_per_class, plot_reliability, plot_risk_coverage
from gptclf.results.text import report
from gptclf.tasks import Task

# Beyond this many outputs the intervals in HTML come from fewer resamples: a notebook should not wait for minutes.
_MANY = 1_000_000


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation:
    """The results of a model on a labelled data set.

    Every measure of the model's task is an attribute, and each of `metrics`. For a classifier these are `loss` (mean
    cross-entropy in nats), `accuracy` (0 to 1), `macro_f1`, `confusion` (counts (C, C): rows are true classes, columns
    predicted ones) and `per_class` (precision, recall, F1 and support, each (C,)).

    Attributes:
        task: The model's task.
        measures: The measures by name.
        details: Further results of the task by name.
        outputs: The model's outputs (N, n_outputs), float32.
        targets: The label of each row.
        predictions: The answer to each row.
        texts: The rows' texts.
    """

    task: Task
    measures: dict[str, float]
    details: dict[str, Any]
    outputs: NDArray[np.float32]
    targets: list[Any]
    predictions: list[Any]
    texts: list[str]

    def __getattr__(self, name: str) -> Any:
        values = {**vars(self).get("details", {}), **vars(self).get("measures", {})}
        # Notebooks ask for many names with underscores, and a property that fails would ask for itself.
        if name not in values and not name.startswith("_") and not hasattr(type(self), name) and "task" in vars(self):
            values |= self.metrics
        if name not in values:
            raise AttributeError(f"this evaluation has no {name!r}; it has {', '.join(values) or 'no measures'}")
        return values[name]

    @cached_property
    def metrics(self) -> dict[str, float]:
        """The task's measures of the answers and probabilities, by scikit-learn's names; those that are defined.

        For a classifier: `accuracy`, `balanced_accuracy`, macro and weighted averages of precision, recall and F1,
        `roc_auc` and `average_precision` (of the second of two classes, else the mean over the classes, each against
        the rest), `log_loss` in nats, `brier`, and the expected calibration errors `ece` (15 bins of equal width) and
        `ece_equal_mass` (15 bins of about equal numbers of rows).
        """
        return {name: float(value) for name, value in self._values.items() if value.ndim == 0 and not np.isnan(value)}

    @property
    def per_class(self) -> dict[str, NDArray[Any]]:
        """Precision, recall, F1, support, ROC-AUC and average precision of each class, each (C,).

        The last two are of the class against the rest, NaN where they are not defined.
        """
        if "per_class" not in self.details:
            raise AttributeError  # __getattr__ says what there is
        return {**of_each_class(self._values), **self.details["per_class"]}

    def intervals(
        self, confidence: float = 0.95, n_resamples: int = 1000, seed: int = 0
    ) -> dict[str, tuple[float, float]]:
        """Return an interval for each of `metrics`: how it would vary with other texts of the same kind.

        The bounds are quantiles of the measure over resamples of the rows, drawn with replacement: the percentile
        bootstrap (Efron, 1979), equal to `scipy.stats.bootstrap(method="percentile")`. They say nothing about another
        training run. A resample for which a measure is not defined does not count for it.

        Args:
            confidence: The share of resamples between the bounds, above 0 and below 1.
            n_resamples: Number of resamples.
            seed: Seed of the resamples.

        Example:
            >>> from gptclf import SingleLabel
            >>> outputs = [[2, 0], [1, 0], [0, 1]]
            >>> evaluation = Evaluation.of(SingleLabel(["ham", "spam"]), outputs, ["ham", "ham", "ham"])
            >>> evaluation.accuracy, evaluation.intervals()["accuracy"]
            (0.666..., (0.0, 1.0))
        """
        found = self._intervals(confidence, n_resamples, seed)
        return {name: (float(found[name][0]), float(found[name][1])) for name in self.metrics}

    def per_class_intervals(
        self, confidence: float = 0.95, n_resamples: int = 1000, seed: int = 0
    ) -> dict[str, NDArray[np.float64]]:
        """Return the intervals of the measures `per_class`, each (C, 2), as `intervals` finds them."""
        found = of_each_class(self._intervals(confidence, n_resamples, seed))
        return {name: each for name, each in found.items() if name != "support"}

    def report(self, confidence: float = 0.95, n_resamples: int = 1000, seed: int = 0) -> str:
        """Return the text of `str`, then each measure with its interval, and with 20 classes or fewer each one's F1.

        The arguments are those of `intervals`.
        """
        return report(self, confidence, n_resamples, seed)

    def reliability(self, n_bins: int = 15, strategy: str = "width") -> Reliability:
        """Return how often answers are right, beside how probable they were, in bins by that probability.

        Args:
            n_bins: Number of bins.
            strategy: Bins of equal "width", or of equal "mass": about the same number of rows each.

        Raises:
            TypeError: The task has no probabilities, or its answers are not one class each.
        """
        bins = checks.integer("n_bins", n_bins, 1, most=10_000), checks.choice("strategy", strategy, STRATEGIES)
        probable = probabilities_of(self.task, self.outputs, self.predictions)
        if self._tensors[1].ndim > 1:
            raise TypeError(f"reliability needs answers that are one class each; these are of the task {self.task}")
        return reliability(probable, self.right, *bins)

    def risk_coverage(self) -> RiskCoverage:
        """Return the share of wrong answers over the share of texts answered, if unsure answers are rejected.

        Raises:
            TypeError: The task has no probabilities, or its answers are not right or wrong.
        """
        return risk_coverage(self.confidences, self.right)

    @property
    def right(self) -> NDArray[np.bool_]:
        """Which answers are right (N,). Raises a TypeError if the task's answers are not right or wrong."""
        return self.task.right(*self._tensors)

    @property
    def confidences(self) -> NDArray[np.float64]:
        """How sure each answer is (N,), as `reject_below` reads it. Raises a TypeError without probabilities."""
        return self.task.confidences(self._tensors[0]).astype(np.float64)

    @property
    def statistic(self) -> Statistic:
        """The measures, as a function of weights per row (B, N), that gives (B,) each and (B, C) per class."""
        return self.task.statistic(*self._tensors)

    @cached_property
    def _tensors(self) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(self.outputs), torch.from_numpy(self.task.targets(self.targets))

    @cached_property
    def _values(self) -> dict[str, NDArray[Any]]:
        return values(self.statistic, len(self.targets))

    def _intervals(self, confidence: float, n_resamples: int, seed: int) -> dict[str, NDArray[np.float64]]:
        settings = checked_settings(confidence, n_resamples, seed)
        if settings not in self._found:
            self._found[settings] = intervals(self.statistic, len(self.targets), *settings)
        return self._found[settings]

    @cached_property
    def _found(self) -> dict[tuple[float, int, int], dict[str, NDArray[np.float64]]]:
        """Intervals by their settings: those of thousands of rows take seconds."""
        return {}

    @classmethod
    def of(cls, task: Task, outputs: Any, targets: Sequence[Any], texts: Sequence[str] | None = None) -> "Evaluation":
        """Make the results of any model from its outputs (N, n_outputs), such as logits or logarithms of probabilities.

        Args:
            task: What outputs and targets mean.
            outputs: Numbers for each row, as the task's models compute them. Probabilities would give a wrong loss.
            targets: The label of each row.
            texts: The rows' texts; None leaves them empty.

        Raises:
            ValueError: `outputs` has another shape, or a row of it holds NaN, +inf, or nothing but -inf.
        """
        found, true = checked_outputs(task, outputs, len(targets)), torch.from_numpy(task.targets(targets))
        names = [""] * len(targets) if texts is None else list(texts)
        measures, details = task.scores(found, true), task.details(found, true)
        return cls(task, measures, details, found.numpy(), list(targets), task.answers(found), names)

    @property
    def classes(self) -> list[Any] | None:
        """The model's classes, or None if its task has none."""
        return self.task.classes

    @property
    def probabilities(self) -> NDArray[np.float32]:
        """Probabilities (N, C), columns in the order of `classes`. Raises a TypeError if the task has none."""
        return self.task.probabilities(self._tensors[0])

    def to_frame(self) -> Any:
        """Return a DataFrame (pandas) of texts, targets, predictions, and a column per class or output."""
        columns: dict[Any, Any] = {"text": self.texts, "target": self.targets, "prediction": self.predictions}
        return data_frame(columns | self.task.columns(self._tensors[0]))

    def plot_confusion(self, path: str | Path, *, normalize: bool = False) -> Path:
        """Plot the confusion matrix and save the figure to `path` (requires matplotlib).

        Args:
            path: The file to write. Its suffix sets the format; without a suffix, .png is added.
            normalize: Show the shares of each true class, which sum to 1 in a row, instead of counts.
        """
        normalize = checks.boolean("normalize", normalize)
        target, counts = checks.path("path", path), check_detail(self, "confusion")
        return plot_confusion(target, counts, self.classes, normalize=normalize)

    def most_confident_errors(self, n: int = 10) -> ConfidentErrors:
        """Return the `n` wrong answers that the model was surest of. Wrong labels are often among them.

        With several labels per text an answer is as sure as its least probable decision (`ConfidentError`).
        """
        n = checks.integer("n", n, 1)
        return find_errors(self.task, self.outputs, self.targets, self.predictions, self.texts, n)

    def plot_reliability(
        self, path: str | Path, *, before: "Evaluation | None" = None, n_bins: int = 15, strategy: str = "width"
    ) -> Path:
        """Plot how often answers of each probability are right, and how many there are (requires matplotlib).

        A point below the diagonal stands for answers that are right more rarely than their probability says. Its bar is
        Wilson's 95 % interval.

        Args:
            path: The file to write. Its suffix sets the format; without a suffix, .png is added.
            before: An evaluation to draw beside it, such as that of the model before `calibrate`.
            n_bins: As in `reliability`.
            strategy: As in `reliability`. The histogram always has bins of equal width.

        """
        target = checks.path("path", path)
        if before is not None:
            checks.instance("before", before, Evaluation, "an Evaluation or None")
        results = {"after": self} if before is None else {"before": before, "after": self}
        curves = {name: result.reliability(n_bins, strategy) for name, result in results.items()}
        return plot_reliability(target, curves, {name: result.reliability(n_bins) for name, result in results.items()})

    def plot_risk_coverage(self, path: str | Path) -> Path:
        """Plot what a reject option leaves: errors among the answers, and `reject_below`, over the share answered.

        Args:
            path: The file to write. Its suffix sets the format; without a suffix, .png is added.

        """
        return plot_risk_coverage(checks.path("path", path), self.risk_coverage())

    def plot_per_class(self, path: str | Path) -> Path:
        """Plot the F1 of each class with its 95 % interval, the lowest first; of many classes, the lowest 80.

        Args:
            path: The file to write. Its suffix sets the format; without a suffix, .png is added.
        """
        target, scores = checks.path("path", path), check_detail(self, "per_class")
        return plot_per_class(target, self.classes, scores, f1_bounds(scores, self.per_class_intervals().get("f1")))

    def to_html(self, path: str | Path) -> Path:
        """Write a page with the measures, the classes, the errors and the texts of the most confident ones.

        The page has no scripts and needs no other file. In a notebook an evaluation shows the same without the texts.

        Args:
            path: The file to write; without a suffix, .html is added. It is returned.
        """
        return write_page(checks.path("path", path), repr(self), self._html(texts=True))

    def _repr_html_(self) -> str:
        return self._html(texts=False)

    def _html(self, *, texts: bool) -> str:
        n_resamples = 1000 if self.outputs.size <= _MANY else 100
        bounds = self._intervals(0.95, n_resamples, 0)
        return fragment(repr(self), evaluation_parts(self, bounds, n_resamples, texts=texts))

    def __repr__(self) -> str:
        measures = "".join(f", {name}={value:.4g}" for name, value in self.measures.items())
        return f"Evaluation({self.task.summary}, {len(self.targets):,} texts{measures})"

    def __str__(self) -> str:
        first, *rest = self.task.report(self.measures, self.details)
        return "\n".join([f"{first} on {len(self.targets):,} texts", *rest])
