"""`predict_many` and `predict_proba_many`: answers of several classifiers that may share a trunk."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptclf.checks import is_iterable
from gptclf.gpt2.model import GPT2, check_classifier
from gptclf.inference.predict import text_outputs


def predict_many(
    models: Sequence[GPT2],
    texts: Iterable[str],
    *,
    batch_size: int | None = None,
    precision: str = "auto",
    progress: bool = False,
) -> list[list[Any]]:
    """Return the answers of each model: `[predict(model, texts) for model in models]`, bit for bit.

    What the models share is computed once: the stages of the trunk up to the first one that differs, in its tensors or
    otherwise. Several heads, or adapters on the last blocks, then take little longer than one classifier. Models that
    were loaded separately share what has equal values in the same memory layout, as folders of one format give. Hooked
    or foreign parts, and all after them, are not shared.

    Args:
        models: Classifiers.
        texts: Strings; a single string raises a TypeError. Each model prepares them as in its training.
        batch_size: The most rows to compute at once, for when memory is short. It does not change answers. None chooses
            a size.
        precision: "auto", "float32" or "bfloat16".
        progress: Show progress and the estimated time left on standard error.

    Returns:
        For each model one answer per text.

    Raises:
        TypeError: `models` is not a list, or one of its items is not a classifier.
        ValueError: The list of models is empty.

    Example:
        >>> from gptclf import add_classifier_head, load_gpt2
        >>> import warnings; warnings.simplefilter("ignore")  # the heads are untrained, and predict_many says so
        >>> gpt2 = load_gpt2("nano")
        >>> spam = add_classifier_head(gpt2, classes=["ham", "spam"], seed=0)
        >>> mood = add_classifier_head(gpt2, classes=["calm", "cross", "glad"], seed=1)
        >>> [len(answers) for answers in predict_many([spam, mood], ["you won a prize", "see you at six"])]
        [2, 2]
    """
    models = check_classifiers(models)
    found = text_outputs(models, texts, batch_size=batch_size, precision=precision, progress=progress)
    return [model.task.answers(outputs) for model, outputs in zip(models, found, strict=True)]


def predict_proba_many(
    models: Sequence[GPT2],
    texts: Iterable[str],
    *,
    batch_size: int | None = None,
    precision: str = "auto",
    progress: bool = False,
) -> list[NDArray[np.float32]]:
    """Return the probabilities of each model: `[predict_proba(model, texts) for model in models]`, bit for bit.

    The arguments are those of `predict_many`.

    Raises:
        TypeError: `models` is not a list, or one of its items is not a classifier or has no probabilities.
        ValueError: The list of models is empty.

    Example:
        >>> from gptclf import add_classifier_head, load_gpt2
        >>> import warnings; warnings.simplefilter("ignore")  # the heads are untrained, and predict_proba_many says so
        >>> gpt2 = load_gpt2("nano")
        >>> models = [add_classifier_head(gpt2, num_classes=classes, seed=0) for classes in (2, 5)]
        >>> [probabilities.shape for probabilities in predict_proba_many(models, ["you won a prize"])]
        [(1, 2), (1, 5)]
    """
    models = check_classifiers(models)
    found = text_outputs(models, texts, batch_size=batch_size, precision=precision, progress=progress)
    return [model.task.probabilities(outputs) for model, outputs in zip(models, found, strict=True)]


def check_classifiers(models: Iterable[GPT2]) -> list[GPT2]:
    """Return models as a list, or raise if they are not classifiers; the error names the position."""
    if isinstance(models, GPT2 | str | bytes) or not is_iterable(models):
        raise TypeError(f"models is a {type(models).__name__}; give a list of classifiers, such as [model]")
    models = list(models)
    if not models:
        raise ValueError("models is empty; give at least one classifier")
    for i, model in enumerate(models):
        try:
            check_classifier(model)
        except TypeError as error:
            raise TypeError(f"models[{i}]: {error}") from error
    return models
