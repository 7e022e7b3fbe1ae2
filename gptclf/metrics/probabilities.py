"""How good probabilities are: their losses, their calibration, and what rejecting unsure answers would give."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gptclf.metrics.counts import one_hot

Floats = NDArray[np.float64]

STRATEGIES = ("width", "mass")
BINS = 15


def log_losses(targets: Floats, probabilities: Floats) -> Floats:
    """Return each row's cross-entropy in nats (N,) from a one-hot table of targets and probabilities, both (N, C).

    As in scikit-learn, a probability is at least the spacing of floats at 1, so that no row's loss is infinite.
    """
    least = np.finfo(np.float64).eps
    losses: Floats = -(targets * np.log(np.clip(probabilities, least, 1 - least))).sum(axis=1)
    return losses


def brier_losses(targets: Floats, probabilities: Floats) -> Floats:
    """Return each row's squared error of its probabilities (N,), from tables (N, C); with two classes half of it.

    The half is the usual score of a binary forecast (Brier, 1950, has the sum over both), and scikit-learn's.
    """
    losses: Floats = np.square(probabilities - targets).sum(axis=1)
    return losses / 2 if targets.shape[1] == 2 else losses


@dataclass(frozen=True)
class Reliability:
    """Answers in bins by their confidence: how often those of a bin are right, beside how sure they were.

    Attributes:
        confidence: The mean confidence of each bin (n_bins,); NaN for an empty bin.
        accuracy: The share of right answers of each bin (n_bins,); NaN for an empty bin.
        count: The rows of each bin (n_bins,).
        edges: The bounds of the bins (n_bins + 1,). A confidence on an inner bound is in the upper bin.
    """

    confidence: Floats
    accuracy: Floats
    count: NDArray[np.int64]
    edges: Floats

    @property
    def error(self) -> float:
        """The expected calibration error, which is the mean gap between confidence and accuracy over the rows."""
        full = self.count > 0
        gaps = np.abs(self.confidence - self.accuracy)[full]
        return float((gaps * self.count[full]).sum() / self.count.sum())


def bin_edges(confidence: Floats, n_bins: int, strategy: str) -> Floats:
    """Return bounds from 0 to 1 of bins of equal "width", or of equal "mass": about as many rows in each."""
    shares = np.linspace(0.0, 1.0, n_bins + 1)
    if strategy == "width":
        return shares
    edges: Floats = np.quantile(confidence, shares)
    edges[0], edges[-1] = 0.0, 1.0
    return edges


def bins_of(confidence: Floats, edges: Floats) -> NDArray[np.int64]:
    """Return each row's bin; the last one includes its upper bound."""
    return np.minimum(np.searchsorted(edges, confidence, side="right"), len(edges) - 1) - 1


def reliability(confidence: Floats, right: NDArray[np.bool_], n_bins: int, strategy: str) -> Reliability:
    """Put answers into bins by their confidence (N,); `right` says which are correct (N,)."""
    edges = bin_edges(confidence, n_bins, strategy)
    chosen = bins_of(confidence, edges)
    count = np.bincount(chosen, minlength=n_bins)
    sums = (np.bincount(chosen, values, minlength=n_bins) for values in (confidence, right))
    means = (np.divide(each, count, out=np.full(n_bins, np.nan), where=count > 0) for each in sums)
    return Reliability(next(means), next(means), count, edges)


def calibration_error(weights: Floats, confidence: Floats, right: NDArray[np.bool_], strategy: str) -> Floats:
    """Return the expected calibration error over 15 bins (B,): Naeini et al. (2015), and Guo et al. (2017)."""
    if strategy == "width":
        gaps = one_hot(bins_of(confidence, bin_edges(confidence, BINS, strategy)), BINS)
        gaps *= (confidence - right)[:, None]
        return np.abs(weights @ gaps).sum(axis=1) / weights.sum(axis=1)  # type: ignore[no-any-return]
    order = np.argsort(confidence, kind="stable")
    found = np.empty(len(weights))
    for i, counts in enumerate(weights[:, order].astype(np.int64)):
        its = np.repeat(confidence[order], counts)
        chosen = bins_of(its, bin_edges(its, BINS, strategy))
        sums = np.bincount(chosen, its - np.repeat(right[order], counts), minlength=BINS)
        found[i] = np.abs(sums).sum() / len(its)
    return found


@dataclass(frozen=True)
class RiskCoverage:
    """What is answered, and how often wrongly, if answers below a confidence are rejected.

    Attributes:
        threshold: Each distinct confidence, falling (n,).
        coverage: The share of rows answered if those below the threshold are rejected (n,), rising to 1.
        risk: The share of wrong answers among them (n,).
    """

    threshold: Floats
    coverage: Floats
    risk: Floats

    @property
    def area(self) -> float:
        """The mean risk over all coverages, a row at a time (Geifman and El-Yaniv, 2017). Less is better."""
        return float((self.risk * np.diff(self.coverage, prepend=0.0)).sum())


def risk_coverage(confidence: Floats, right: NDArray[np.bool_]) -> RiskCoverage:
    """Return the curve of risk over coverage from confidences and which answers are right, both (N,)."""
    order = np.argsort(-confidence, kind="stable")
    ranked = confidence[order]
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    wrong = np.cumsum(~right[order])[ends]
    return RiskCoverage(ranked[ends], (ends + 1) / len(order), wrong / (ends + 1))
