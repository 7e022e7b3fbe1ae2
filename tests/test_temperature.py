"""`calibrate`'s temperature is scikit-learn's, and probabilities fit better after it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gptclf import (
    Evaluation,
    SingleLabel,
    TextDataset,
    add_classifier_head,
    calibrate,
    evaluate,
    freeze,
    load_gpt2,
    train,
)


@pytest.mark.parametrize(("classes", "scale"), [(2, 0.3), (2, 5.0), (3, 1.0), (20, 4.0)])
def test_temperature_and_probabilities_are_those_of_scikit_learn(classes: int, scale: float) -> None:
    calibration = pytest.importorskip("sklearn.calibration")
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.frozen import FrozenEstimator

    class Given(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
        """A fitted classifier whose decisions are the outputs that it is given."""

        def fit(self, outputs: Any, targets: Any) -> "Given":
            self.classes_ = np.arange(classes)
            return self

        def predict(self, outputs: Any) -> Any:
            return outputs.argmax(axis=1)

        def decision_function(self, outputs: Any) -> Any:
            # scikit-learn takes one number x for two classes and computes softmax(-x, x).
            return (outputs[:, 1] - outputs[:, 0]) / 2 if classes == 2 else outputs

    rng = np.random.default_rng(classes)
    targets = rng.integers(0, classes, 400)
    outputs = (scale * (rng.normal(size=(400, classes)) + 1.5 * np.eye(classes)[targets])).astype(np.float32)
    task = SingleLabel(range(classes)).calibrated(torch.from_numpy(outputs), torch.from_numpy(targets), None)
    theirs = calibration.CalibratedClassifierCV(FrozenEstimator(Given().fit(outputs, targets)), method="temperature")
    theirs.fit(outputs.astype(np.float64), targets)
    beta = theirs.calibrated_classifiers_[0].calibrators[0].beta_
    assert task.temperature == pytest.approx(1 / beta, rel=1e-4)
    assert abs(np.log(task.temperature)) > 0.05
    found = task.probabilities(torch.from_numpy(outputs))
    np.testing.assert_allclose(found, theirs.predict_proba(outputs.astype(np.float64)), atol=1e-4)


def gap(result: Evaluation) -> float:
    """The expected calibration error in 15 bins of equal width, bin by bin."""
    sure = result.probabilities.astype(np.float64).max(axis=1)
    right = np.array([a == b for a, b in zip(result.targets, result.predictions, strict=True)])
    bins = [(sure > k / 15) & (sure <= (k + 1) / 15) for k in range(15)]
    return float(sum(abs(right[here].sum() - sure[here].sum()) for here in bins)) / len(sure)


def falls(train_set: TextDataset, val_set: TextDataset, test_set: TextDataset, epochs: int) -> None:
    """Check that calibration lowers the error of a head that was trained too long."""
    clf = add_classifier_head(load_gpt2("nano"), classes=train_set.classes, pooling="mean", seed=0)
    freeze(clf, trainable="head")
    train(clf, train_set, epochs=epochs, lr=3e-2, batch_size=32, seed=1, progress=False)
    calibrated = calibrate(clf, val_set)
    before, after = evaluate(clf, test_set), evaluate(calibrated, test_set)
    assert isinstance(calibrated.task, SingleLabel)
    assert calibrated.task.temperature > 1
    assert before.accuracy == after.accuracy
    assert gap(after) < 0.6 * gap(before)
    assert after.loss < before.loss


def test_it_falls_where_labels_are_noisy() -> None:
    rng = np.random.default_rng(0)
    words = ["the", "of", "and", "to", "is", "that", "was", "for", "with", "his", "they", "at", "this", "which"]
    texts, labels = [], []
    for _ in range(900):
        chosen = rng.choice(words, 8)
        texts.append(" ".join(chosen))
        labels.append(int(sum("h" in word for word in chosen) > 2) if rng.random() < 0.8 else int(rng.integers(2)))
    tokenizer = load_gpt2("nano").tokenizer
    data = TextDataset(texts, labels, tokenizer=tokenizer)
    falls(data.subset(range(200)), data.subset(range(200, 500)), data.subset(range(500, 900)), epochs=30)


def test_it_falls_on_banking77(shared_data: Path) -> None:
    tokenizer = load_gpt2("nano").tokenizer
    train_file, test_file = (
        TextDataset.from_file(shared_data / f"banking77_{part}.csv", label="category", tokenizer=tokenizer)
        for part in ("train", "test")
    )
    rows, others = (np.random.default_rng(0).permutation(len(data)) for data in (train_file, test_file))
    parts = train_file.subset(rows[:800]), train_file.subset(rows[800:1400]), test_file.subset(others[:1000])
    falls(*parts, epochs=25)
