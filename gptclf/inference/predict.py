"""`predict` and `predict_proba`: answers to new texts, independent of their order and batching."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gptclf.checks import integer
from gptclf.data.dataset import TextDataset
from gptclf.data.rows import check_source, check_text, check_texts
from gptclf.gpt2.arithmetic import resolve_precision
from gptclf.gpt2.model import GPT2, check_classifier
from gptclf.inference.outputs import compute_all
from gptclf.progress import Meter
from gptclf.tasks import Task


@dataclass(frozen=True, eq=False)
class Prediction:
    """The answer to one text.

    Attributes:
        label: The answer; for a classifier, the most probable class.
        outputs: The model's outputs (n_outputs,), float32.
    """

    label: Any
    outputs: NDArray[np.float32]
    _task: Task = field(repr=False)

    @property
    def probabilities(self) -> NDArray[np.float32]:
        """One number per class (C,), in the order of `model.classes`."""
        return np.asarray(self._task.probabilities(torch.from_numpy(self.outputs)[None])[0])


def predict(
    model: GPT2, texts: Iterable[str], *, batch_size: int | None = None, precision: str = "auto", progress: bool = False
) -> list[Any]:
    """Return the answer to each text; for a classifier, the most probable class.

    Texts are prepared as in training (`model.preparation`), sorted by length and computed without padding; answers
    come in the order of the texts.

    Args:
        model: A classifier.
        texts: Strings; a single string raises a TypeError.
        batch_size: The most rows to compute at once, for when memory is short. It does not change answers. None chooses
            a size.
        precision: "auto", "float32" or "bfloat16".
        progress: Show progress and the estimated time left on standard error.

    Returns:
        One answer per text, such as a label of `model.classes`.

    Example:
        >>> from gptclf import add_classifier_head, load_gpt2
        >>> clf = add_classifier_head(load_gpt2("nano"), classes=["ham", "spam"], seed=0)
        >>> import warnings; warnings.simplefilter("ignore")  # the head is untrained, and predict says so
        >>> len(predict(clf, ["you won a prize", "see you at six"]))
        2
    """
    check_classifier(model)
    (outputs,) = text_outputs([model], texts, batch_size=batch_size, precision=precision, progress=progress)
    return model.task.answers(outputs)


def predict_proba(
    model: GPT2, texts: Iterable[str], *, batch_size: int | None = None, precision: str = "auto", progress: bool = False
) -> NDArray[np.float32]:
    """Return the probability of each class for each text: (N, C), columns in the order of `model.classes`.

    The arguments are those of `predict`.

    Raises:
        TypeError: The model's task has no probabilities.
    """
    check_classifier(model)
    (outputs,) = text_outputs([model], texts, batch_size=batch_size, precision=precision, progress=progress)
    return model.task.probabilities(outputs)


def predict_stream(
    model: GPT2, texts: Iterable[str], *, window: int = 2048, precision: str = "auto"
) -> Iterator[Prediction]:
    """Classify an unbounded stream of texts in constant memory, yielding the answers in order.

    Args:
        model: A classifier.
        texts: Strings; a generator is read as answers are taken.
        window: Number of texts to read ahead and compute together. A larger window is faster, a smaller one answers
            sooner.
        precision: "auto", "float32" or "bfloat16".

    Yields:
        A `Prediction` for each text.

    Example:
        >>> from gptclf import add_classifier_head, load_gpt2
        >>> clf = add_classifier_head(load_gpt2("nano"), classes=["ham", "spam"], seed=0)
        >>> import warnings; warnings.simplefilter("ignore")  # the head is untrained, and predict says so
        >>> lines = (f"message {i}" for i in range(3))
        >>> [len(answer.probabilities) for answer in predict_stream(clf, lines)]
        [2, 2, 2]
    """
    check_classifier(model)
    check_source(texts)
    window = integer("window", window, 1)
    resolve_precision(precision, model)
    return _stream(model, iter(texts), window, precision)


def _stream(model: GPT2, texts: Iterator[str], window: int, precision: str) -> Iterator[Prediction]:
    numbered = (check_text(text, f"text {number}") for number, text in enumerate(texts))
    while some := list(islice(numbered, window)):
        (outputs,) = text_outputs([model], some, precision=precision)
        for label, row in zip(model.task.answers(outputs), outputs.numpy(), strict=True):
            yield Prediction(label, row.copy(), model.task)  # the view would keep the whole window


def text_outputs(
    models: Sequence[GPT2],
    texts: Iterable[str],
    *,
    batch_size: int | None = None,
    precision: str,
    progress: bool = False,
) -> list[Tensor]:
    """Return the outputs of each model on texts, prepared as in its training, float32."""
    texts = check_texts(texts)
    prepared: dict[Any, tuple[TextDataset, list[int]]] = {}
    rows, answers = [], []
    for model in models:
        warn_of_fresh_head(model, stacklevel=3)
        key = id(model.tokenizer), model.preparation, model.config.context_length
        if key not in prepared:
            prepared[key] = _prepared(model, texts)
        once, answer = prepared[key]
        rows.append(once)
        answers.append(answer)
    with Meter(sum(len(once.ids) for once in rows), "predicting", unit="tok", enabled=progress) as meter:
        found = compute_all(models, rows, batch_size=batch_size, precision=precision, report=meter.update)
    return [outputs[answer] for outputs, answer in zip(found, answers, strict=True)]


def _prepared(model: GPT2, texts: list[str]) -> tuple[TextDataset, list[int]]:
    """Return rows in which a text that occurs more than once is only once, and the row of each text."""
    dataset = TextDataset(texts, tokenizer=model.tokenizer, **vars(model.preparation))
    dataset = dataset.within(model.config.context_length)
    number: dict[bytes, int] = {}
    answer = [number.setdefault(ids.tobytes(), len(number)) for ids in dataset.rows()]
    _, first = np.unique(answer, return_index=True)
    return dataset if len(first) == len(dataset) else dataset.subset(first), answer


def warn_of_fresh_head(model: GPT2, *, stacklevel: int) -> None:
    """Warn, once per head, that answers come from a head that was never trained or loaded.

    Args:
        model: A classifier.
        stacklevel: Number of calls between this one and the user's line, which the warning names.
    """
    if getattr(model.head, "is_fresh", False) and not getattr(model.head, "warned", False):
        model.head.warned = True  # type: ignore[assignment]
        warnings.warn(
            "this classifier's head was never trained or loaded; its answers are random. Call train first",
            stacklevel=stacklevel + 1,
        )
