"""`TextDataset`: texts as ragged token ids, with labels matched by name."""

import copy
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Required, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from gptclf import checks
from gptclf.data.ragged import RaggedIds
from gptclf.data.read import read_file, read_table
from gptclf.data.rows import check_texts, check_weights, row_numbers
from gptclf.preparation import Preparation
from gptclf.tasks import SingleLabel, Task, check_column, check_labels, infer_classes
from gptclf.tokenizer.tokens import check_tokenizer, encode

if TYPE_CHECKING:
    from tiktoken import Encoding

logger = logging.getLogger(__name__)


class Options(TypedDict, total=False):
    """The options of `TextDataset` that are not columns of the data."""

    tokenizer: Required["Encoding"]
    classes: Sequence[Any] | None
    task: Task | None
    max_length: int | None
    truncation: str
    pad_to: int | None


class TextDataset(RaggedIds):
    """Texts as token ids, row after row without padding, and their labels by name.

    Args:
        texts: Strings. Empty text is one `<|endoftext|>`; `<|endoftext|>` inside a text is ordinary characters;
            a lone surrogate becomes U+FFFD.
        labels: One label per text, of a kind that `task` takes, or None for texts to predict.
        tokenizer: A `tiktoken.Encoding`, usually `model.tokenizer`.
        classes: The possible labels, in order, if each text has exactly one. None takes the labels that occur, sorted
            if they can be compared.
        task: The task that the labels belong to, such as `model.task`; it replaces `classes`.
        weights: One non-negative number per text, by which its training loss is multiplied; None means 1 for all. A
            text of weight 2 counts like the same text twice. Measures such as accuracy ignore weights.
        max_length: Longest row in tokens. None leaves the limit to the model's context length.
        truncation: The part that a longer text loses: its "tail" (as in the book), its "head" or its "middle".
        pad_to: Fill every row with `<|endoftext|>` up to this many tokens and treat them as text, as the book does.
            This helps to compare with the book but costs accuracy. If `max_length` is None, it becomes `pad_to`.

    Attributes:
        texts: The strings.
        labels: Targets under the data set's own task, or None. If each text has one label, the index of its class,
            int64 (N,).
        given: The labels as given, one per row, to be matched to another task; empty without labels.
        task: The task of the labels, or None without labels.
        classes: The task's list of classes, or None.
        weights: Each row's weight, float32 (N,), or None.
        preparation: A `Preparation`: how texts became token ids.
        ids: All token ids, int32, row after row.
        offsets: Where each row begins in `ids`, and where the last one ends (N + 1,).
        truncated: Which rows lost tokens, bool (N,); their number is also reported through `logging`.

    Raises:
        TypeError: If an argument has the wrong type; the error names the row.
        ValueError: If a label or a weight is not allowed (the error names the row), or a text lacks one.

    Example:
        >>> from gptclf import load_gpt2
        >>> tokenizer = load_gpt2("nano").tokenizer
        >>> data = TextDataset(["hi", "you won!"], ["ham", "spam"], tokenizer=tokenizer)
        >>> data.classes, data.lengths.tolist()
        (['ham', 'spam'], [1, 3])
    """

    def __init__(
        self,
        texts: Iterable[str],
        labels: Iterable[Any] | None = None,
        *,
        tokenizer: "Encoding",
        classes: Sequence[Any] | None = None,
        task: Task | None = None,
        weights: Iterable[float] | None = None,
        max_length: int | None = None,
        truncation: str = "tail",
        pad_to: int | None = None,
    ) -> None:
        self.preparation = Preparation(max_length, truncation, pad_to)
        check_tokenizer(tokenizer)
        self.tokenizer = tokenizer
        self.texts = check_texts(texts)
        self.task: Task | None = None
        self.labels: NDArray[Any] | None = None
        self.weights = None if weights is None else check_weights(weights, len(self.texts))
        self.given: list[Any] = []
        if labels is not None:
            self.given = check_column(labels, "label", len(self.texts))
            if task is None:
                task = SingleLabel(infer_classes(check_labels(self.given)) if classes is None else classes)
            elif not isinstance(task, Task):
                raise TypeError(f"task is a {type(task).__name__}; it must be a gptclf Task, such as model.task")
            elif classes is not None:
                raise ValueError("classes= and task= were both given; a task has its own classes: give one of the two")
            self.task, self.labels = task, self._matched(task)
        else:
            for name, value in (("classes", classes), ("task", task), ("weights", weights)):
                if value is not None:
                    raise ValueError(f"{name}= was given without labels=; texts to predict need only a tokenizer")
        end = tokenizer.eot_token
        self.set_rows([np.asarray(encode(text, tokenizer) or [end], dtype=np.int32) for text in self.texts])
        self.truncated = np.zeros(len(self.texts), dtype=bool)
        if self.preparation.max_length is not None:
            self._truncate(self.preparation.max_length)
        if self.preparation.pad_to is not None:
            filler = np.full(self.preparation.pad_to, end, dtype=np.int32)
            self.set_rows([np.concatenate([row, filler[len(row) :]]) for row in self.rows()])

    @classmethod
    def from_file(
        cls,
        path: str | Path,
        *,
        text: str | int = "text",
        label: str | int | None = "label",
        weights: str | int | None = None,
        encoding: str = "utf-8-sig",
        quoted: bool | None = None,
        **options: Unpack[Options],
    ) -> "TextDataset":
        """Read a .csv, .tsv or .jsonl file.

        Args:
            path: The file; its suffix names the format.
            text: Column of the texts: a name (the first row is a header) or a position (there is no header).
            label: Column of the labels, likewise; None for texts to predict.
            weights: Column of the weights, likewise; None if all are 1.
            encoding: The file's text encoding.
            quoted: True if `"` quotes a field; None means True for .csv and False for .tsv.
            **options: `tokenizer`, and optionally `classes`, `task`, `max_length`, `truncation` and `pad_to`, as in the
                constructor.
        """
        columns = read_file(checks.path("path", path), text, label, weights, encoding=encoding, quoted=quoted)
        return cls(columns.texts, columns.labels, weights=columns.weights, **options)

    @classmethod
    def from_table(
        cls,
        table: Any,
        *,
        text: str = "text",
        label: str | None = "label",
        weights: str | None = None,
        **options: Unpack[Options],
    ) -> "TextDataset":
        """Build a data set from columns of a DataFrame, a Hugging Face `datasets.Dataset` or a dictionary.

        `text`, `label` and `weights` name the columns. The options are `tokenizer`, and optionally `classes`, `task`,
        `max_length`, `truncation` and `pad_to`, as in the constructor. A `datasets` column of type ClassLabel gives its
        class names as labels and, unless `classes` or `task` is given, their order.
        """
        columns = read_table(table, text, label, weights)
        if options.get("classes") is None and options.get("task") is None:
            options["classes"] = columns.classes
        return cls(columns.texts, columns.labels, weights=columns.weights, **options)

    def __repr__(self) -> str:
        kinds = "no labels" if self.task is None else self.task.summary
        return f"TextDataset({len(self):,} texts, {len(self.ids):,} tokens, {kinds})"

    @property
    def classes(self) -> list[Any] | None:
        """The classes of the data set's own task, in order, or None."""
        return None if self.task is None else self.task.classes

    @property
    def labelled(self) -> bool:
        """True if the rows have labels."""
        return self.labels is not None

    @property
    def n_truncated(self) -> int:
        """Number of rows that lost tokens."""
        return int(self.truncated.sum())

    def subset(self, indices: Sequence[int] | NDArray[np.int64]) -> "TextDataset":
        """Return the rows at `indices` (or those where a mask is True), in that order, with the same task.

        Args:
            indices: Row numbers, negative ones counted from the end as in numpy, or a bool mask (N,).

        Raises:
            IndexError: If there is no such row.
        """
        chosen = row_numbers(indices, len(self))
        part = copy.copy(self)
        part.texts = [self.texts[i] for i in chosen]
        if self.labels is not None:
            part.labels, part.given = self.labels[chosen], [self.given[i] for i in chosen]
        part.weights = None if self.weights is None else self.weights[chosen]
        part.truncated = self.truncated[chosen]
        part.set_rows(self.rows_at(chosen))
        return part

    def within(self, context_length: int) -> "TextDataset":
        """Return the same rows cut to a model's context length, or this data set itself if all fit."""
        if not len(self) or int(self.lengths.max()) <= context_length:
            return self
        part = copy.copy(self)
        part._truncate(context_length)
        return part

    def targets(self, task: Task | None = None) -> NDArray[Any]:
        """Return each row's target under a task; labels are matched by name, not by their number.

        Args:
            task: The task, such as `model.task`; None means the data set's own.

        Raises:
            ValueError: If there are no labels, or `task` does not know one; the error names the row.
        """
        if self.labels is None:
            raise ValueError("this data set has no labels; give TextDataset(texts, labels, ...)")
        return self.labels if task is None or task == self.task else self._matched(task)

    def _matched(self, task: Task) -> NDArray[Any]:
        targets = np.asarray(task.targets(self.given))
        if len(targets) != len(self.given):
            name, n = type(task).__name__, len(self.given)
            raise ValueError(f"{name}.targets gave {len(targets)} targets for {n} labels; it must return one for each")
        return targets

    def _truncate(self, limit: int) -> None:
        lengths, part = self.lengths, self.preparation.truncation
        too_long = lengths > limit
        self.truncated = self.truncated | too_long
        if too_long.any():
            message = "%d of %d texts are longer than %d tokens (longest: %d) and lost their %s"
            logger.warning(message, too_long.sum(), len(self), limit, lengths.max(), part)
            head = limit - {"tail": 0, "head": limit, "middle": limit // 2}[part]  # tokens kept at the beginning
            cut = (np.concatenate([row[:head], row[max(len(row) - limit + head, head) :]]) for row in self.rows())
            self.set_rows(list(cut))
