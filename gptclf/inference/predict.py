"""`predict` and `predict_proba`: answers to new texts, independent of their order and batching."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gptclf.data.batches import Batches, Rows
from gptclf.data.dataset import TextDataset
from gptclf.gpt2.model import GPT2, check_gpt2
from gptclf.gpt2.precision import answering, arithmetic
from gptclf.gpt2.stages import Classifier
from gptclf.metrics import check_finite


def predict(model: GPT2, texts: Iterable[str], *, batch_size: int = 32, precision: str = "auto") -> list[Any]:
    """The most probable class of each text.

    Texts are prepared as in training (`max_length`, `truncation`, `pad_to` of the model).

    Args:
        model: A classifier.
        texts: Strings; a single one is a TypeError.
        batch_size: Rows computed at once; it changes speed and memory, not answers.
        precision: "auto", "float32" or "bfloat16".

    Returns:
        One label of `model.classes` per text.

    Example:
        >>> from gptclf import add_classifier_head, load_gpt2
        >>> clf = add_classifier_head(load_gpt2("nano"), classes=["ham", "spam"], seed=0)
        >>> import warnings; warnings.simplefilter("ignore")  # the head is untrained, and predict says so
        >>> len(predict(clf, ["you won a prize", "see you at six"]))
        2
    """
    logits = _text_logits(model, texts, batch_size, precision)
    classes = model.classes or []
    return [classes[i] for i in logits.argmax(dim=1).tolist()]


def predict_proba(
    model: GPT2, texts: Iterable[str], *, batch_size: int = 32, precision: str = "auto"
) -> NDArray[np.float32]:
    """Probability of each class for each text: (N, C), columns in the order of `model.classes`.

    Arguments are those of `predict`.
    """
    return _text_logits(model, texts, batch_size, precision).softmax(dim=1).numpy()


def _text_logits(model: GPT2, texts: Iterable[str], batch_size: int, precision: str) -> Tensor:
    check_classifier(model)
    dataset = TextDataset(
        texts,
        tokenizer=model.tokenizer,
        max_length=model.max_length,
        truncation=model.truncation,
        pad_to=model.pad_to,
    ).within(model.config.context_length)
    model.warn_of_new_head(stacklevel=3)
    return class_logits(model, dataset, batch_size=batch_size, precision=precision)


def class_logits(model: Classifier, dataset: Rows, *, batch_size: int, precision: str) -> Tensor:
    """Logits (N, C) of a data set's rows, float32, on the CPU."""
    batches = Batches(dataset, batch_size, classes=None)
    # Rows of like length share a batch, so there is little padding to compute.
    order = np.argsort(-dataset.lengths, kind="stable")
    logits = torch.empty(len(dataset), len(model.classes or ()), dtype=torch.float32)
    with answering(model), arithmetic(precision, model):
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = batches.take(chosen).to(model.device)
            logits[chosen] = model(batch.inputs, batch.lengths).float().cpu()
    check_finite(logits, model)
    return logits


def check_classifier(model: GPT2) -> None:
    """Raise where `model` is not a classifier."""
    check_gpt2(model)
    if model.classes is None:
        raise TypeError("this is a language model; put a classifier head on it first: add_classifier_head(model, ...)")
