"""`calibrate`: a classifier whose probabilities and thresholds fit a validation set."""

from pathlib import Path

import torch

from gptclf.checks import choice
from gptclf.data.dataset import TextDataset
from gptclf.gpt2.model import GPT2, check_classifier
from gptclf.gpt2.sharing import borrow
from gptclf.inference.evaluate import evaluate, labelled_rows


def calibrate(
    model: GPT2,
    val_set: TextDataset,
    *,
    scoring: str | None = None,
    batch_size: int | None = None,
    precision: str = "auto",
    cache_dir: str | Path | None = None,
) -> GPT2:
    """Fit the temperature of a `SingleLabel` classifier, and its thresholds if asked for, to a validation set.

    The temperature is the number by which outputs are divided before the softmax that gives the validation set's
    labels the least mean cross-entropy (Guo et al., 2017, "On Calibration of Modern Neural Networks"). It changes
    probabilities, never their order within a text. Thresholds then decide which class is answered; `SingleLabel` says
    how. Both are part of the new model's task: `predict`, `evaluate` and their kin use them, saved folders keep them.

    Training makes a temperature stale: `train` sets it back to 1 and logs that. Thresholds stay.

    Args:
        model: A trained classifier; it does not change.
        val_set: Labelled rows that the model was not trained on, some hundreds at least. A test set should be another.
        scoring: What the thresholds should maximise, by scikit-learn's name: "f1_macro", "accuracy" or
            "balanced_accuracy". With two classes the best threshold is found; with more, one is changed at a time. None
            fits no thresholds.
        batch_size: As in `evaluate`.
        precision: As in `evaluate`.
        cache_dir: As in `evaluate`.

    Returns:
        A new model. It shares the tensors that `model` does not train and has copies of the others.

    Raises:
        TypeError: The model's task is another than `SingleLabel`, such as `MultiLabel` or `Regression`, and has nothing
            to calibrate.

    Example:
        >>> from gptclf import add_classifier_head, load_gpt2
        >>> import warnings; warnings.simplefilter("ignore")  # the head is untrained, and calibrate says so
        >>> clf = add_classifier_head(load_gpt2("nano"), classes=["ham", "spam"], seed=0)
        >>> texts, labels = ["hi", "win!", "see you", "call me"], ["ham", "spam", "ham", "ham"]
        >>> data = TextDataset(texts, labels, tokenizer=clf.tokenizer)
        >>> round(clf.task.temperature, 1), round(calibrate(clf, data).task.temperature, 1)
        (1.0, 0.7)
    """
    check_classifier(model)
    scorings = tuple(model.task.scorings)
    if not scorings:
        raise TypeError(f"the model's task is {model.task}, which has nothing to calibrate")
    if scoring is not None:
        choice("scoring", scoring, scorings)
    found = evaluate(model, val_set, batch_size=batch_size, precision=precision, cache_dir=cache_dir)
    targets = torch.from_numpy(labelled_rows(model, val_set).targets(model.task))
    task = model.task.calibrated(torch.from_numpy(found.outputs), targets, scoring)
    calibrated = borrow(model)
    calibrated.task = task
    for name, parameter in model.named_parameters():  # what the model trains was copied
        calibrated.get_parameter(name).requires_grad_(parameter.requires_grad)
    return calibrated
