"""The measures of each kind of answer, as functions of a weight per row (B, N): see `gptclf.metrics`."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptclf.metrics.bootstrap import Statistic
from gptclf.metrics.counts import averaged, class_scores, one_hot
from gptclf.metrics.probabilities import brier_losses, calibration_error, log_losses
from gptclf.metrics.ranking import ranking_areas

Floats = NDArray[np.float64]

_SUFFIX = "_per_class"


def single_label(targets: NDArray[np.int64], answers: NDArray[np.int64], probabilities: Floats) -> Statistic:
    """Measure answers that are one class each.

    Args:
        targets: The column of each row's class (N,).
        answers: The column of each row's answer (N,).
        probabilities: The probability of each class (N, C).

    Returns:
        A function to the measures by scikit-learn's names: (B,), and per class (B, C). What is not defined is NaN.
    """
    n_classes = probabilities.shape[1]
    true, answered = one_hot(targets, n_classes), one_hot(answers, n_classes)
    right, confidence = targets == answers, probabilities[np.arange(len(answers)), answers]
    losses = np.stack([right, log_losses(true, probabilities), brier_losses(true, probabilities)], axis=1)

    def statistic(weights: Floats) -> dict[str, NDArray[Any]]:
        support, predicted = weights @ true, weights @ answered
        scores = class_scores(weights @ (true * answered), predicted, support)
        areas = _areas(weights, true > 0, probabilities)
        accuracy, log_loss, brier = (weights @ losses / weights.sum(axis=1, keepdims=True)).T
        recall = np.where(support > 0, scores["recall"], np.nan)
        return {
            "accuracy": accuracy,
            "balanced_accuracy": _mean(recall),
            **averaged(scores, support + predicted > 0),
            # With two classes these are of the second, which scikit-learn calls the positive one.
            **{name: each[:, 1] if n_classes == 2 else _mean(each) for name, each in areas.items()},
            "log_loss": log_loss,
            "brier": brier,
            "ece": calibration_error(weights, confidence, right, "width"),
            "ece_equal_mass": calibration_error(weights, confidence, right, "mass"),
            **_per_class(scores, areas),
        }

    return statistic


def multi_label(targets: NDArray[np.bool_], answers: NDArray[np.bool_], probabilities: Floats) -> Statistic:
    """Measure answers that are any number of classes; targets, answers and probabilities are tables (N, C)."""
    exact = (targets == answers).all(axis=1)
    pairs = np.stack([targets, ~targets], axis=2).astype(np.float64)
    chances = np.stack([probabilities, 1 - probabilities], axis=2)
    each = [log_losses(pairs[:, i], chances[:, i]) for i in range(targets.shape[1])]
    brier = np.square(probabilities - targets).mean(axis=1)
    losses = np.stack([exact, np.mean(each, axis=0), brier], axis=1)

    def statistic(weights: Floats) -> dict[str, NDArray[Any]]:
        hits, predicted, support = (weights @ table for table in (targets & answers, answers, targets))
        scores, areas = class_scores(hits, predicted, support), _areas(weights, targets, probabilities)
        together = class_scores(*(count.sum(axis=1) for count in (hits, predicted, support)))
        accuracy, log_loss, brier_loss = (weights @ losses / weights.sum(axis=1, keepdims=True)).T
        return {
            "accuracy": accuracy,
            **{f"{name}_micro": together[name] for name in ("precision", "recall", "f1")},
            **averaged(scores, np.ones(support.shape, dtype=np.bool_)),
            **{name: _mean(area) for name, area in areas.items()},
            "log_loss": log_loss,
            "brier": brier_loss,
            **_per_class(scores, areas),
        }

    return statistic


def regression(targets: Floats, outputs: Floats) -> Statistic:
    """Measure estimates of one or more numbers; targets and outputs are (N, k). Measures are means over the k."""
    errors = outputs - targets

    def statistic(weights: Floats) -> dict[str, NDArray[Any]]:
        rows = weights.sum(axis=1, keepdims=True)
        squares, absolute = weights @ np.square(errors) / rows, weights @ np.abs(errors) / rows
        spread = np.stack([_variances(weights, column) for column in targets.T], axis=1)
        same = spread == 0
        r2 = np.where(same, squares == 0, 1 - squares / np.where(same, 1.0, spread))
        means = {"mse": squares, "rmse": np.sqrt(squares), "mae": absolute, "r2": r2}
        return {name: each.mean(axis=1) for name, each in means.items()}

    return statistic


def _variances(weights: Floats, column: Floats) -> Floats:
    """Return the variance of numbers (N,) under each row of weights (B,): exactly 0 if those that count are equal."""
    rows = weights.sum(axis=1, keepdims=True)
    from_one = column - column[(weights > 0).argmax(axis=1)][:, None]
    centred = from_one - (weights * from_one).sum(axis=1, keepdims=True) / rows
    return (weights * np.square(centred)).sum(axis=1) / rows[:, 0]  # type: ignore[no-any-return]


def _areas(weights: Floats, true: NDArray[np.bool_], probabilities: Floats) -> dict[str, Floats]:
    """Return both areas of each class against the rest, each (B, C)."""
    each = np.array([ranking_areas(weights, true[:, i], probabilities[:, i]) for i in range(true.shape[1])])
    return {"roc_auc": each[:, 0].T, "average_precision": each[:, 1].T}


def _mean(each: Floats) -> Floats:
    """Return the mean over the classes for which a measure is defined (B,); NaN if it is for none."""
    defined = ~np.isnan(each)
    sums, counts = np.where(defined, each, 0.0).sum(axis=1), defined.sum(axis=1)
    means: Floats = np.divide(sums, counts, out=np.full(len(each), np.nan), where=counts > 0)
    return means


def _per_class(scores: dict[str, NDArray[Any]], areas: dict[str, Floats]) -> dict[str, NDArray[Any]]:
    return {f"{name}{_SUFFIX}": each for name, each in {**scores, **areas}.items()}


def of_each_class(found: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return what was measured for each class, by the names of the measures."""
    return {name.removesuffix(_SUFFIX): each for name, each in found.items() if name.endswith(_SUFFIX)}
