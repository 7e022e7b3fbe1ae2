"""`ZeroShotGPT2Classifier`: `zero_shot` as a classifier of scikit-learn."""

from typing import Any

import numpy as np
import pytest
from conftest import byte_gpt2

pytest.importorskip("sklearn")

from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.exceptions import NotFittedError
from sklearn.metrics import accuracy_score
from sklearn.model_selection import GridSearchCV, cross_val_score

from gptclf import add_classifier_head, zero_shot
from gptclf.sklearn import ZeroShotGPT2Classifier

TEXTS = ["free prize, text WIN now", "see you at six?", "claim your cash", "running late, sorry"] * 3
LABELS = ["spam", "ham"] * 6
GPT = byte_gpt2()
OPTIONS: list[dict[str, Any]] = [{}, {"template": "{text} Spam?", "normalize": True}, {"calibrate": "N/A"}]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("classes", [["spam", "ham", "a question"], {"spam": "yes", "ham": "no"}, {2: "b", 1: "a"}])
def test_it_is_zero_shot_with_sorted_classes(classes: Any, options: dict[str, Any]) -> None:
    clf = ZeroShotGPT2Classifier(GPT, classes, **options).fit()
    answers = zero_shot(GPT, TEXTS, classes, **options)
    assert clf.classes_.tolist() == sorted(classes)
    columns = [answers.classes.index(label) for label in clf.classes_.tolist()]
    np.testing.assert_allclose(clf.predict_proba(TEXTS), answers.probabilities[:, columns], rtol=1e-5)
    assert clf.predict(TEXTS).tolist() == answers.labels
    assert clf.predict_proba([]).shape == (0, len(classes))


def test_it_is_measured_calibrated_and_searched_like_any_classifier() -> None:
    clf = ZeroShotGPT2Classifier(GPT)  # the classes are the labels
    scores = cross_val_score(clf, TEXTS, LABELS, cv=3)
    answers = zero_shot(GPT, TEXTS, ["ham", "spam"]).labels
    assert scores.mean() == pytest.approx(accuracy_score(LABELS, answers))
    calibrated = CalibratedClassifierCV(clf, method="sigmoid", cv=3).fit(TEXTS, LABELS)
    np.testing.assert_allclose(calibrated.predict_proba(TEXTS).sum(axis=1), 1)
    grid = {"template": ["{text}", "Is this spam? {text}"], "classes": [None, {"spam": "yes", "ham": "no"}]}
    assert len(GridSearchCV(clf, grid, cv=2).fit(TEXTS, LABELS).cv_results_["params"]) == 4
    assert clone(clf).model is GPT


@pytest.mark.parametrize(
    ("options", "y", "error", "message"),
    [
        ({}, None, ValueError, "classes is None and y holds no label"),
        ({"classes": ["spam", "ham"]}, ["eggs"], ValueError, r"y holds 'eggs'; the classes are \['spam', 'ham'\]"),
        ({"classes": {0: "no", 1: "no"}}, None, ValueError, "two labels have the same tokens"),
        ({"classes": ["spam", "ham"], "template": "no place"}, None, ValueError, "contain {text} once"),
        ({"classes": ["spam", "ham"], "normalize": 1}, None, TypeError, "normalize is 1"),
        ({"model": add_classifier_head(GPT, num_classes=2), "classes": "ab"}, None, TypeError, "this is a classifier"),
    ],
)
def test_fit_checks(options: dict[str, Any], y: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ZeroShotGPT2Classifier(**{"model": GPT, **options}).fit(TEXTS, y)


def test_it_answers_after_fit() -> None:
    with pytest.raises(NotFittedError):
        ZeroShotGPT2Classifier(GPT, ["spam", "ham"]).predict(TEXTS)
