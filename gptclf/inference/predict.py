"""`predict` and `predict_proba`: answers to new texts, independent of their order and batching."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gptclf.checks import python_value
from gptclf.data.batches import Rows
from gptclf.data.dataset import TextDataset
from gptclf.data.rows import check_source, check_text
from gptclf.features.frozen_prefix import slabs
from gptclf.gpt2.arithmetic import answering, arithmetic, product_dtype, resolve_precision
from gptclf.gpt2.gradients import Embedding as Table
from gptclf.gpt2.heads import ClassifierHead
from gptclf.gpt2.model import GPT2, check_gpt2
from gptclf.gpt2.packed import advance, embed, last_block_and_head, runs_of
from gptclf.gpt2.stages import Classifier
from gptclf.gpt2.trunk import Embedding, Trunk, is_watched
from gptclf.metrics import check_finite
from gptclf.progress import Meter


@dataclass(frozen=True, eq=False)
class Prediction:
    """The answer to one text.

    Attributes:
        label: The most probable class.
        probabilities: One number per class (C,), in the order of `model.classes`.
    """

    label: Any
    probabilities: NDArray[np.float32]


def predict(
    model: GPT2,
    texts: Iterable[str],
    *,
    batch_size: int | None = None,
    precision: str = "auto",
    progress: bool = False,
) -> list[Any]:
    """The most probable class of each text.

    Texts are prepared as in training (`max_length`, `truncation`, `pad_to` of the model), sorted by length and computed
    without padding; answers come in the order of the texts.

    Args:
        model: A classifier.
        texts: Strings; a single one is a TypeError.
        batch_size: At most so many rows at once, where memory is short; it does not change answers. None chooses.
        precision: "auto", "float32" or "bfloat16".
        progress: Show on standard error how far it is and how long it still takes.

    Returns:
        One label of `model.classes` per text.

    Example:
        >>> from gptclf import add_classifier_head, load_gpt2
        >>> clf = add_classifier_head(load_gpt2("nano"), classes=["ham", "spam"], seed=0)
        >>> import warnings; warnings.simplefilter("ignore")  # the head is untrained, and predict says so
        >>> len(predict(clf, ["you won a prize", "see you at six"]))
        2
    """
    logits = _text_logits(model, texts, batch_size, precision, progress)
    classes = model.classes or []
    return [classes[i] for i in logits.argmax(dim=1).tolist()]


def predict_proba(
    model: GPT2,
    texts: Iterable[str],
    *,
    batch_size: int | None = None,
    precision: str = "auto",
    progress: bool = False,
) -> NDArray[np.float32]:
    """Probability of each class for each text: (N, C), columns in the order of `model.classes`.

    Arguments are those of `predict`.
    """
    return _text_logits(model, texts, batch_size, precision, progress).softmax(dim=1).numpy()


def predict_stream(
    model: GPT2,
    texts: Iterable[str],
    *,
    window: int = 2048,
    precision: str = "auto",
) -> Iterator[Prediction]:
    """Answers to a stream of any length, one by one in its order, in constant memory.

    Args:
        model: A classifier.
        texts: Strings; a generator is read as answers are taken.
        window: Texts that are read ahead and computed together: more are faster, fewer come sooner.
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
    window = python_value(window)
    if not isinstance(window, int) or isinstance(window, bool) or window < 1:
        raise ValueError(f"window is {window!r}; it must be an integer of at least 1")
    resolve_precision(precision, model)
    return _stream(model, iter(texts), window, precision)


def _stream(model: GPT2, texts: Iterator[str], window: int, precision: str) -> Iterator[Prediction]:
    numbered = (check_text(text, number) for number, text in enumerate(texts))
    while some := list(islice(numbered, window)):
        probabilities = _text_logits(model, some, None, precision, False).softmax(dim=1).numpy()
        classes = model.classes or []
        for row in probabilities:
            yield Prediction(classes[int(row.argmax())], row.copy())  # the view would keep the whole window


def _text_logits(model: GPT2, texts: Iterable[str], batch_size: int | None, precision: str, progress: bool) -> Tensor:
    check_classifier(model)
    dataset = TextDataset(
        texts,
        tokenizer=model.tokenizer,
        max_length=model.max_length,
        truncation=model.truncation,
        pad_to=model.pad_to,
    ).within(model.config.context_length)
    model.warn_of_new_head(stacklevel=3)
    # A text that comes more than once is computed once.
    number: dict[bytes, int] = {}
    answer = [number.setdefault(ids.tobytes(), len(number)) for ids in dataset.rows()]
    _, first = np.unique(answer, return_index=True)
    once = dataset if len(first) == len(dataset) else dataset.subset(first)
    with Meter(len(once.ids), "predicting", unit="tok", enabled=progress) as meter:
        logits = class_logits(model, once, batch_size=batch_size, precision=precision, report=meter.update)
    return logits[answer]


def class_logits(
    model: Classifier,
    rows: Rows,
    *,
    batch_size: int | None = None,
    precision: str,
    report: Callable[[int], None] = lambda positions: None,
) -> Tensor:
    """Logits (N, C) of a data set's rows, float32, on the CPU."""
    batch_size = python_value(batch_size)
    if batch_size is not None and (not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1):
        raise ValueError(f"batch_size is {batch_size!r}; it must be an integer of at least 1, or None")
    logits = torch.empty(len(rows), len(model.classes or ()), dtype=torch.float32)
    order = np.argsort(rows.lengths, kind="stable")
    with answering(model), torch.autocast(model.device.type, enabled=False):
        for slab in slabs(rows.lengths[order], batch_size):
            chosen = order[slab]
            logits[chosen] = _slab_logits(model, rows, chosen, precision).cpu()
            report(int(rows.lengths[chosen].sum()))
    check_finite(logits, model)
    return logits


def _slab_logits(model: Classifier, rows: Rows, chosen: NDArray[np.int64], precision: str) -> Tensor:
    """Logits of rows of rising length, computed together."""
    lengths = rows.lengths[chosen]
    if not _is_usual(model):
        with arithmetic(precision, model):  # whoever watches a model, or made another of it, wants to see it called
            counts = torch.from_numpy(lengths).to(model.device)
            return model(rows.padded(chosen).to(model.device), counts).float()  # type: ignore[no-any-return]
    x, runs = rows.packed(chosen).to(model.device), runs_of(lengths)
    dtype = product_dtype(precision, model, int(lengths.sum()))
    blocks: list[nn.Module]
    norm: nn.Module | None
    if isinstance(model, GPT2):
        x = embed(model.trunk.embed, x, runs, capacity=len(x))
        blocks, norm = list(model.trunk.blocks), model.trunk.norm
    else:
        blocks, norm = list(model.blocks), model.norm
    for block in blocks[:-1]:
        advance(block, x, runs, dtype)
    return last_block_and_head(blocks[-1] if blocks else None, norm, model.head, x, runs, dtype)


def _is_usual(model: Classifier) -> bool:
    """Whether the parts that are not blocks are this library's own and nothing watches them."""
    parts: list[tuple[nn.Module, type[nn.Module]]] = [(model.head, ClassifierHead)]
    if isinstance(model, GPT2):
        embed = model.trunk.embed
        parts += [
            (model, GPT2),
            (model.trunk, Trunk),
            (embed, Embedding),
            (embed.token, Table),
            (embed.position, Table),
        ]
    return all(type(part) is kind and not is_watched(part) for part, kind in parts)


def check_classifier(model: GPT2) -> None:
    """Raise where `model` is not a classifier."""
    check_gpt2(model)
    if model.classes is None:
        raise TypeError("this is a language model; put a classifier head on it first: add_classifier_head(model, ...)")
