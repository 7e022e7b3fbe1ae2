"""`evaluate`: loss, accuracy and every prediction on a labelled data set."""

import logging
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from gptclf.checks import python_value
from gptclf.data.batches import Batches, Rows
from gptclf.data.dataset import TextDataset
from gptclf.features.reuse import kept
from gptclf.features.store import check_cache
from gptclf.gpt2.arithmetic import answering, arithmetic
from gptclf.gpt2.model import GPT2
from gptclf.gpt2.stages import Classifier
from gptclf.inference.predict import check_classifier, class_logits
from gptclf.metrics import confusion_matrix, per_class_scores, plain_vocabulary
from gptclf.next_token_loss import hits_and_loss

if TYPE_CHECKING:
    import pandas

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """What a model did on a labelled data set.

    Attributes:
        loss: Mean cross-entropy in nats.
        accuracy: Share of rows predicted right, 0 to 1.
        targets: True label of each row.
        predictions: Predicted label of each row.
        probabilities: (N, C), columns in the order of `classes`.
        classes: The model's labels.
        confusion: Counts (C, C): rows are true classes, columns predicted ones.
        texts: The rows' texts.
    """

    loss: float
    accuracy: float
    targets: list[Any]
    predictions: list[Any]
    probabilities: NDArray[np.float32]
    classes: list[Any]
    confusion: NDArray[np.int64]
    texts: list[str]

    @property
    def per_class(self) -> dict[str, NDArray[Any]]:
        """Precision, recall, F1 and support of every class, each (C,)."""
        return per_class_scores(self.confusion)

    @property
    def macro_f1(self) -> float:
        """Mean F1 over the classes that occur, as targets or as predictions (scikit-learn's convention)."""
        occurs = (self.confusion.sum(axis=0) + self.confusion.sum(axis=1)) > 0
        return float(self.per_class["f1"][occurs].mean())

    def to_frame(self) -> "pandas.DataFrame":
        """One row per text: text, target, prediction and a probability column per class (needs pandas)."""
        try:
            import pandas
        except ImportError as error:
            raise ImportError("to_frame needs pandas: pip install 'gptclf[examples]'") from error
        columns: dict[Any, Any] = {"text": self.texts, "target": self.targets, "prediction": self.predictions}
        # 1 and "1" look alike; their columns must not.
        names = [str(label) for label in self.classes]
        names = names if len(set(names)) == len(names) else [repr(label) for label in self.classes]
        columns |= {f"p({name})": self.probabilities[:, i] for i, name in enumerate(names)}
        return pandas.DataFrame(columns)

    def __str__(self) -> str:
        lines = [
            f"accuracy {100 * self.accuracy:.2f} %, macro-F1 {100 * self.macro_f1:.2f} %, loss {self.loss:.4f} "
            f"on {len(self.targets):,} texts"
        ]
        if len(self.classes) <= 20:
            scores = self.per_class
            width = max(len(str(label)) for label in self.classes)
            lines += [
                f"  {label!s:<{width}}  precision {scores['precision'][i]:.3f}  recall {scores['recall'][i]:.3f}  "
                f"f1 {scores['f1'][i]:.3f}  n {scores['support'][i]:,}"
                for i, label in enumerate(self.classes)
            ]
        return "\n".join(lines)


def evaluate(
    model: GPT2,
    dataset: TextDataset,
    *,
    batch_size: int | None = None,
    precision: str = "auto",
    cache_dir: str | Path | None = None,
) -> Evaluation:
    """Score a classifier on a labelled data set; labels are matched to `model.classes` by name.

    What the frozen part of the model made of these texts is taken from memory where `train` or an earlier call left
    it, and kept there where there is room.

    Args:
        model: A classifier.
        dataset: Rows with labels.
        batch_size: At most so many rows at once, where memory is short; it does not change answers. None chooses.
        precision: "auto", "float32" or "bfloat16".
        cache_dir: The folder that `train` was given to keep features in, if it was.

    Example:
        >>> from gptclf import add_classifier_head, load_gpt2
        >>> import warnings; warnings.simplefilter("ignore")  # the head is untrained, and evaluate says so
        >>> clf = add_classifier_head(load_gpt2("nano"), classes=["ham", "spam"], seed=0)
        >>> data = TextDataset(["hi", "win!"], ["ham", "spam"], tokenizer=clf.tokenizer)
        >>> evaluate(clf, data).probabilities.shape
        (2, 2)
    """
    rows = labelled_rows(model, dataset)
    model.warn_of_new_head(stacklevel=2)
    _warn_of_other_preparation(model, dataset)
    found = kept(model, rows, precision=precision, cache_dir=check_cache(cache_dir))
    scored, of = (model, rows) if found is None else found
    logits = class_logits(scored, of, batch_size=batch_size, precision=precision)
    indices = torch.from_numpy(rows.targets(model.classes or []))
    classes = model.classes or []
    predicted = logits.argmax(dim=1).numpy()
    return Evaluation(
        loss=_mean_loss(logits, indices),
        accuracy=float((predicted == indices.numpy()).mean()),
        targets=[classes[i] for i in indices.tolist()],
        predictions=[classes[i] for i in predicted.tolist()],
        probabilities=logits.softmax(dim=1).numpy(),
        classes=classes,
        confusion=confusion_matrix(indices.numpy(), predicted, len(classes)),
        texts=dataset.texts,
    )


def dataset_loss(
    model: GPT2,
    dataset: TextDataset,
    *,
    num_batches: int | None = None,
    batch_size: int = 8,
    precision: str = "auto",
) -> float:
    """Mean cross-entropy in nats over a data set, or over its first `num_batches` batches, in its own order."""
    rows = labelled_rows(model, dataset)
    return loss_and_accuracy(model, rows, num_batches=num_batches, batch_size=batch_size, precision=precision)[0]


def dataset_accuracy(
    model: GPT2,
    dataset: TextDataset,
    *,
    num_batches: int | None = None,
    batch_size: int = 8,
    precision: str = "auto",
) -> float:
    """Share of rows predicted right over a data set, or over its first `num_batches` batches, in its own order."""
    rows = labelled_rows(model, dataset)
    return loss_and_accuracy(model, rows, num_batches=num_batches, batch_size=batch_size, precision=precision)[1]


def loss_and_accuracy(
    model: Classifier, rows: Rows, *, num_batches: int | None, batch_size: int, precision: str
) -> tuple[float, float]:
    """Mean cross-entropy and share of right predictions from one pass, over ids or features.

    A classifier predicts each row's label, a language model the next token of each position.
    """
    if model.classes is None:
        return _next_token_scores(model, rows, num_batches, batch_size, precision)
    logits, targets = _scored(model, rows, num_batches, batch_size, precision)
    return _mean_loss(logits, targets), float((logits.argmax(dim=1) == targets).double().mean())


def labelled_rows(model: GPT2, dataset: TextDataset, name: str = "the data set") -> TextDataset:
    """The rows of a data set cut to the model's context, or an error that says why they cannot be scored."""
    check_classifier(model)
    if not isinstance(dataset, TextDataset):
        raise TypeError(f"{name} is a {type(dataset).__name__}; it must be a TextDataset with labels")
    if not len(dataset):
        raise ValueError(f"{name} is empty; it needs at least one labelled text")
    dataset.targets(model.classes or [])
    model.check_same_tokenizer(dataset.tokenizer)
    check_ids(model, dataset.ids, name)
    return dataset.within(model.config.context_length)


def check_ids(model: GPT2, ids: NDArray[np.int32], name: str) -> None:
    """Raise where token ids are not of the model's vocabulary."""
    if int(ids.max()) >= model.config.vocab_size:
        raise ValueError(
            f"{name} has token id {int(ids.max())}, but the model's vocabulary ends at "
            f"{model.config.vocab_size - 1}; build it with tokenizer=model.tokenizer"
        )


def _next_token_scores(
    model: Classifier, rows: Rows, num_batches: int | None, batch_size: int, precision: str
) -> tuple[float, float]:
    hits, total, count = 0, 0.0, 0
    head = plain_vocabulary(model)
    with answering(model), arithmetic(precision, model):
        for batch in islice(Batches(rows, batch_size), num_batches):
            batch = batch.to(model.device)
            targets = cast(Tensor, batch.targets)
            if head is not None:
                right, loss = hits_and_loss(model.hidden_states(batch.inputs), head.weight, targets)
            else:
                logits = model(batch.inputs, batch.lengths).float()
                right = int((logits.argmax(dim=-1) == targets).sum())
                loss = float(F.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="sum"))
            hits, total, count = hits + right, total + loss, count + targets.numel()
    return total / count, hits / count


def _scored(
    model: Classifier, rows: Rows, num_batches: int | None, batch_size: int, precision: str
) -> tuple[Tensor, Tensor]:
    """Logits (N, C) and targets (N,) of the first rows."""
    if num_batches is not None:
        num_batches = python_value(num_batches)
        if not isinstance(num_batches, int) or isinstance(num_batches, bool) or num_batches < 1:
            raise ValueError(f"num_batches is {num_batches!r}; it must be an integer of at least 1, or None for all")
        rows = rows.subset(np.arange(min(len(rows), num_batches * batch_size)))
    targets = torch.from_numpy(rows.targets(model.classes or []))
    return class_logits(model, rows, precision=precision), targets


def _mean_loss(logits: Tensor, targets: Tensor) -> float:
    return float(F.cross_entropy(logits.double(), targets))


def _warn_of_other_preparation(model: GPT2, dataset: TextDataset) -> None:
    trained = (model.max_length, model.truncation, model.pad_to)
    given = (dataset.max_length, dataset.truncation, dataset.pad_to)
    # Nothing noted means nothing known: a model that another library trained, or one trained without a limit.
    if trained != given and trained != (None, "tail", None):
        names = ("max_length", "truncation", "pad_to")
        differences = [
            f"{name}={b!r} (the model was trained with {a!r})"
            for name, a, b in zip(names, trained, given, strict=True)
            if a != b
        ]
        logger.warning("the data set was prepared with %s; predict would prepare it otherwise", ", ".join(differences))
