"""`predict` and its kin: answers to new texts, independent of their order and batching."""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gptclf.checks import boolean, integer, number
from gptclf.data.rows import check_source, check_text, check_texts
from gptclf.gpt2.arithmetic import resolve_precision
from gptclf.gpt2.model import GPT2, check_classifier, warn_of_no_preparation
from gptclf.inference.outputs import compute_all, compute_outputs
from gptclf.inference.texts import Cuts, Prepared
from gptclf.progress import Meter
from gptclf.tasks import Task

Thresholds = Mapping[Any, float] | float | None


@dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """The answer to one text.

    Attributes:
        label: The answer; for a classifier, the most probable class, or what its thresholds say. None if it was
            rejected.
        outputs: The model's outputs (n_outputs,), float32.
        truncated: True if the text was longer than the model takes, so that a part of it was not read.
    """

    label: Any
    outputs: NDArray[np.float32]
    truncated: bool
    _task: Task

    @property
    def probabilities(self) -> NDArray[np.float32]:
        """One number per class (C,), in the order of `model.classes`."""
        return np.asarray(self._task.probabilities(torch.from_numpy(self.outputs)[None])[0])

    def __repr__(self) -> str:
        outputs = np.array2string(self.outputs, threshold=8, precision=4)
        return f"Prediction(label={self.label!r}, outputs={outputs}, truncated={self.truncated})"


def predict(
    model: GPT2,
    texts: Iterable[str],
    *,
    temperature: float | None = None,
    thresholds: Thresholds = None,
    reject_below: float | None = None,
    batch_size: int | None = None,
    precision: str = "auto",
    progress: bool = False,
) -> list[Any]:
    """Return the answer to each text; for a classifier, the most probable class, or what its thresholds say.

    Texts are prepared as in training (`model.preparation`), sorted by length and computed without padding; answers
    come in the order of the texts. Texts that are too long for the model are cut, and their number is logged.

    Args:
        model: A classifier.
        texts: Strings; a single string raises a TypeError.
        temperature: The temperature of the probabilities in this call, instead of the model's own (see `calibrate`).
        thresholds: The thresholds of the classes in this call, instead of the model's own, as `SingleLabel` takes
            them: {"spam": 0.9} answers "spam" only if it is that probable. {} are none.
        reject_below: Answer None to a text whose answer is less probable than this; with `MultiLabel`, if the decision
            about any class is. None answers every text.
        batch_size: The most rows to compute at once, for when memory is short. It does not change answers. None chooses
            a size.
        precision: "auto", "float32" or "bfloat16". "auto" is what `Recipe` says, but float32 for a call of few tokens,
            and on a CUDA device float16 where the recipe's is float32. "float32" is the same everywhere up to rounding:
            use it for figures to publish.
        progress: Show progress and the estimated time left on standard error.

    Returns:
        One answer per text, such as a label of `model.classes`.

    Raises:
        TypeError: An argument has a wrong type, or the model's task has no such setting.
        FloatingPointError: The model's outputs are not finite.

    Example:
        >>> from gptclf import add_classifier_head, load_gpt2
        >>> clf = add_classifier_head(load_gpt2("nano"), classes=["ham", "spam"], seed=0)
        >>> import warnings; warnings.simplefilter("ignore")  # the head is untrained, and predict says so
        >>> len(predict(clf, ["you won a prize", "see you at six"]))
        2
        >>> predict(clf, ["you won a prize"], reject_below=1.0)
        [None]
    """
    task, least = _asked(model, temperature, thresholds, reject_below)
    (outputs,) = text_outputs([model], texts, batch_size=batch_size, precision=precision, progress=progress)
    return _answers(task, outputs, least)


def predict_proba(
    model: GPT2,
    texts: Iterable[str],
    *,
    temperature: float | None = None,
    batch_size: int | None = None,
    precision: str = "auto",
    progress: bool = False,
) -> NDArray[np.float32]:
    """Return the probability of each class for each text: (N, C), columns in the order of `model.classes`.

    The arguments are those of `predict`.

    Raises:
        TypeError: The model's task has no probabilities.
    """
    task, _ = _asked(model, temperature, None)
    task.probabilities(_no_outputs(task))  # a task without them is refused before any work
    (outputs,) = text_outputs([model], texts, batch_size=batch_size, precision=precision, progress=progress)
    return task.probabilities(outputs)


def predict_logits(
    model: GPT2, texts: Iterable[str], *, batch_size: int | None = None, precision: str = "auto", progress: bool = False
) -> NDArray[np.float32]:
    """Return the model's outputs for each text: (N, n_outputs), before temperature and softmax.

    They are what a calibration or an ensemble of your own starts from. The arguments are those of `predict`.

    Example:
        >>> from gptclf import add_classifier_head, load_gpt2
        >>> clf = add_classifier_head(load_gpt2("nano"), classes=["ham", "spam"], seed=0)
        >>> import warnings; warnings.simplefilter("ignore")  # the head is untrained, and predict_logits says so
        >>> predict_logits(clf, ["you won a prize", "see you at six"]).shape
        (2, 2)
    """
    check_classifier(model)
    (outputs,) = text_outputs([model], texts, batch_size=batch_size, precision=precision, progress=progress)
    return outputs.numpy()


def predict_stream(
    model: GPT2,
    texts: Iterable[str],
    *,
    temperature: float | None = None,
    thresholds: Thresholds = None,
    reject_below: float | None = None,
    window: int = 2048,
    precision: str = "auto",
) -> Iterator[Prediction]:
    """Classify an unbounded stream of texts in constant memory, yielding the answers in order.

    An error in the stream, such as a value that is not a string, comes after the answers to all texts before it. The
    number of texts that were too long is logged once, when the stream ends or is closed; `truncated` marks each.

    Args:
        model: A classifier.
        texts: Strings; a generator is read as answers are taken.
        temperature: As in `predict`.
        thresholds: As in `predict`.
        reject_below: As in `predict`: the label is None.
        window: Number of texts to read ahead and compute together. A larger window is faster, a smaller one answers
            sooner.
        precision: "auto", "float32" or "bfloat16". "auto" is what `Recipe` says, but float32 for a call of few tokens,
            and on a CUDA device float16 where the recipe's is float32. "float32" is the same everywhere up to rounding:
            use it for figures to publish.

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
    task, least = _asked(model, temperature, thresholds, reject_below)
    check_source(texts)
    window = integer("window", window, 1)
    resolve_precision(precision, model)
    return _stream(model, _windows(texts, window), precision, task, least)


def _stream(
    model: GPT2, windows: Iterator[list[str]], precision: str, task: Task, least: float | None
) -> Iterator[Prediction]:
    cuts = Cuts()
    try:
        for texts in windows:
            warn_of_fresh_head(model, stacklevel=2)
            warn_of_no_preparation(model, stacklevel=2)
            prepared = cuts.prepare(model, texts)
            outputs = compute_outputs(model, prepared.rows, precision=precision)[prepared.row_of]
            answers = _answers(task, outputs, least)
            for label, row, cut in zip(answers, outputs.numpy(), prepared.truncated.tolist(), strict=True):
                yield Prediction(label, row.copy(), cut, task)  # the view would keep the whole window
    finally:
        cuts.log()


def _windows(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    """Yield up to `size` texts at a time. An error is raised once the texts before it were taken."""
    window: list[str] = []
    try:
        for number, text in enumerate(texts):
            window.append(check_text(text, f"text {number}"))
            if len(window) == size:
                # Empty while it is taken, so that closing the generator there yields nothing more.
                full, window = window, []
                yield full
    finally:
        if window:
            yield window


def _answers(task: Task, outputs: Tensor, reject_below: float | None) -> list[Any]:
    answers = task.answers(outputs)
    if reject_below is None:
        return answers
    sure = task.confidences(outputs) >= reject_below
    return [answer if kept else None for answer, kept in zip(answers, sure.tolist(), strict=True)]


def _asked(
    model: GPT2, temperature: float | None, thresholds: Thresholds, reject_below: float | None = None
) -> tuple[Task, float | None]:
    """Check what a call asks of the answers, before any work, and return the task that gives them."""
    check_classifier(model)
    least = number("reject_below", reject_below, most=1.0, optional=True)
    task = model.task.adjusted(temperature=temperature, thresholds=thresholds)
    if least is not None:  # a task without probabilities is refused
        task.confidences(_no_outputs(task))
    return task, least


def _no_outputs(task: Task) -> Tensor:
    return torch.zeros(0, task.n_outputs, dtype=torch.float32, device="cpu")


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
    prepared: dict[Any, Prepared] = {}
    found = []
    for model in models:
        warn_of_fresh_head(model, stacklevel=3)
        warn_of_no_preparation(model, stacklevel=3)
        key = id(model.tokenizer), model.preparation, model.config.context_length
        if key not in prepared:
            cuts = Cuts()
            prepared[key] = cuts.prepare(model, texts)
            cuts.log()
        found.append(prepared[key])
    rows = [its.rows for its in found]
    progress = boolean("progress", progress)
    with Meter(sum(len(its.ids) for its in rows), "predicting", unit="tok", enabled=progress) as meter:
        computed = compute_all(models, rows, batch_size=batch_size, precision=precision, report=meter.update)
    return [outputs[its.row_of] for outputs, its in zip(computed, found, strict=True)]


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
