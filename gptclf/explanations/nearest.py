"""`nearest`: the training texts that a classifier sees as most like a text."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from gptclf.checks import integer
from gptclf.data.batches import Rows
from gptclf.data.dataset import TextDataset
from gptclf.data.rows import check_texts
from gptclf.explanations import html
from gptclf.explanations.results import Results, json_label
from gptclf.features.cache import check_cache
from gptclf.features.reuse import kept_features
from gptclf.gpt2.arithmetic import resolve_precision
from gptclf.gpt2.heads import Head, reads_of
from gptclf.gpt2.learner import Learner
from gptclf.gpt2.model import GPT2, check_classifier, warn_of_no_preparation
from gptclf.inference.evaluate import labelled_rows
from gptclf.inference.outputs import compute_outputs
from gptclf.inference.predict import warn_of_fresh_head
from gptclf.inference.texts import Cuts
from gptclf.plotting import data_frame
from gptclf.tasks import Regression

# Texts that are compared with the whole training set at once.
_TEXTS = 256


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The training texts that are most like a text in a classifier's view, the nearest first.

    Attributes:
        text: The text.
        prediction: The model's answer to it.
        rows: The row of each neighbour in the training set.
        texts: The neighbours.
        labels: Their labels.
        similarities: The cosine of the angle between the vectors of the text and of each neighbour, from -1
            to 1.
    """

    text: str
    prediction: Any
    rows: list[int]
    texts: list[str]
    labels: list[Any]
    similarities: list[float]

    def columns(self) -> dict[str, list[Any]]:
        """Return the columns of `to_frame`."""
        return {"row": self.rows, "neighbour": self.texts, "label": self.labels, "similarity": self.similarities}

    def to_frame(self) -> Any:
        """Return a DataFrame (pandas) with a row per neighbour: row, neighbour, label and similarity."""
        return data_frame(self.columns())

    def to_dict(self) -> dict[str, Any]:
        """Return everything as values that JSON has."""
        labels = list(map(json_label, self.labels))
        return {**vars(self), "prediction": json_label(self.prediction), "labels": labels}

    def _repr_html_(self) -> str:
        rows = zip(self.similarities, self.labels, self.texts, strict=True)
        return html.neighbours(f"{self.prediction}: {self.text}", [(f"{s:.3f}", str(a), text) for s, a, text in rows])


def nearest(
    model: GPT2,
    texts: Iterable[str],
    train_set: TextDataset,
    *,
    k: int = 5,
    batch_size: int | None = None,
    precision: str = "auto",
    cache_dir: str | Path | None = None,
) -> Results[Neighbours]:
    """Find for each text the k training texts that the classifier sees as most like it: it decides like these.

    Texts are compared by the vectors that the head reads: the hidden states after the final norm, pooled as the head
    does it. The measure is the cosine of the angle between two vectors. Of equally similar texts the first one wins.

    Args:
        model: A classifier; it does not change.
        texts: Strings; a single string raises a TypeError. Give many at once: the vectors of the training set are
            computed in each call, from kept features of the frozen part if there are any.
        train_set: Labelled rows to look among, usually those that the model was trained on.
        k: Number of neighbours.
        batch_size: As in `predict`.
        precision: As in `predict`.
        cache_dir: The `cache_dir` that `train` was given, if any.

    Returns:
        A list with the `Neighbours` of each text. A notebook shows it as tables; `to_frame()` makes it one.

    Example:
        >>> from gptclf import add_classifier_head, load_gpt2
        >>> clf = add_classifier_head(load_gpt2("nano"), classes=["ham", "spam"], seed=0)
        >>> import warnings; warnings.simplefilter("ignore")  # the head is untrained, and nearest says so
        >>> data = TextDataset(["see you", "win a prize"], ["ham", "spam"], tokenizer=clf.tokenizer)
        >>> [found] = nearest(clf, ["win the prize"], data, k=1)
        >>> found.texts, found.labels
        (['win a prize'], ['spam'])
    """
    check_classifier(model)
    texts = check_texts(texts)
    rows = labelled_rows(model, train_set, "train_set")
    k = integer("k", k, 1, most=len(rows))
    how: Any = {"batch_size": integer("batch_size", batch_size, 1, optional=True), "precision": precision}
    resolve_precision(precision, model)
    folder = check_cache(cache_dir)
    warn_of_fresh_head(model, stacklevel=2)
    warn_of_no_preparation(model, stacklevel=2)
    cuts = Cuts()
    prepared = cuts.prepare(model, texts)
    cuts.log()
    answers = model.task.answers(compute_outputs(model, prepared.rows, **how)[prepared.row_of])
    theirs = _vectors(model, *kept_features(model, rows, precision=precision, cache_dir=folder), how)
    ours = _vectors(model, 0, [prepared.rows], how)[prepared.row_of]
    labels, found = rows.labels_for(model.task), Results[Neighbours]()
    for start in range(0, len(texts), _TEXTS):
        similar = np.clip(ours[start : start + _TEXTS] @ theirs.T, -1.0, 1.0)  # rounding leads beyond
        for near, order in zip(similar, np.argsort(-similar, axis=1, kind="stable")[:, :k].tolist(), strict=True):
            i = len(found)
            neighbours = [rows.texts[row] for row in order], [labels[row] for row in order]
            found.append(Neighbours(texts[i], answers[i], order, *neighbours, near[order].tolist()))
    return found


class _Pooled(nn.Module):
    """In the place of a head: gives the vector that the head reads."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head, self.reads = head, reads_of(head)
        self.eval()

    def forward(self, hidden: Tensor, lengths: Tensor | None = None) -> Tensor:
        pooled: Any = getattr(type(self.head), "pooled", Head.pooled)  # a plain module may be in the place of a head
        return pooled(self.head, hidden, lengths)  # type: ignore[no-any-return]


def _vectors(model: GPT2, depth: int, rows: Sequence[Rows], how: Any) -> NDArray[np.float32]:
    """Return what the head reads of each row, by length 1 (N, D). `depth` stages of the rows are already computed."""
    learner = Learner(model, depth)
    line = learner if learner.whole is None else learner.whole
    line.head, learner.task = _Pooled(line.head), Regression(model.config.emb_dim)
    vectors = compute_outputs(learner, rows[0], **how).numpy()
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(lengths, np.finfo(np.float32).tiny)  # type: ignore[no-any-return]
