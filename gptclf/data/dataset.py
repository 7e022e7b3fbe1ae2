"""`TextDataset`: texts as ragged token ids, with labels matched by name."""

import copy
import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Required, Self, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from gptclf import checks
from gptclf.data.columns import Columns
from gptclf.data.ragged import RaggedIds
from gptclf.data.read import read_file
from gptclf.data.rows import log_cut, row_numbers
from gptclf.data.tables import columns_named, read_table
from gptclf.preparation import Preparation
from gptclf.tasks import SingleLabel, Task, infer_classes
from gptclf.tasks.labels import rows_of_labels
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
    drop_missing: bool


class TextDataset(RaggedIds):
    """Texts as token ids, row after row without padding, and their labels by name.

    Args:
        texts: Strings. Empty text is one `<|endoftext|>`; `<|endoftext|>` inside a text is ordinary characters;
            a lone surrogate becomes U+FFFD.
        labels: One label per text, of a kind that `task` takes, or None for texts to predict.
        tokenizer: A `tiktoken.Encoding`, usually `model.tokenizer`.
        classes: The possible labels, in order, if each text has exactly one. None takes the labels that occur, sorted
            if they can be compared; the categories of an ordered categorical; or the members of an `enum.Enum`.
        task: The task that the labels belong to, such as `model.task`; it replaces `classes`.
        weights: One non-negative number per text, by which its training loss is multiplied; None means 1 for all. A
            text of weight 2 counts like the same text twice. Measures such as accuracy ignore weights.
        max_length: Longest row in tokens. None leaves the limit to the model's context length.
        truncation: The part that a longer text loses: its "tail" (as in the book), its "head" or its "middle".
        pad_to: Fill every row with `<|endoftext|>` up to this many tokens and treat them as text, as the book does.
            This helps to compare with the book but costs accuracy. If `max_length` is None, it becomes `pad_to`.
        drop_missing: Leave out rows whose text or label is missing, and log how many; otherwise they are an error.
            None, NaN, NaT and `pandas.NA` are missing.

    Attributes:
        texts: The strings.
        source: The file or the kind of table that the rows come from, for errors; "" for lists.
        labels: Targets under the data set's own task, or None: for one label per text, its class's index, int64 (N,).
        given: The labels as given, one per row, to be matched to another task; empty without labels.
        task: The task of the labels, or None without labels.
        classes: The task's list of classes, or None.
        weights: Each row's weight, float32 (N,), or None.
        preparation: A `Preparation`: how texts became token ids.
        ids: All token ids, int32, row after row.
        offsets: Where each row begins in `ids`, and where the last one ends (N + 1,).
        truncated: Which rows lost tokens, bool (N,); their number is also reported through `logging`.

    Raises:
        TypeError, ValueError: If an argument, a text, a label or a weight is not allowed; the error names the row.

    Example:
        >>> from gptclf import load_gpt2
        >>> tokenizer = load_gpt2("nano").tokenizer
        >>> data = TextDataset(["hi", "you won!"], ["ham", "spam"], tokenizer=tokenizer)
        >>> data.classes, data.lengths.tolist()
        (['ham', 'spam'], [1, 3])
    """

    def __init__(
        self,
        texts: Iterable[str] | Columns,
        labels: Iterable[Any] | None = None,
        *,
        tokenizer: "Encoding",
        classes: Sequence[Any] | None = None,
        task: Task | None = None,
        weights: Iterable[float] | None = None,
        max_length: int | None = None,
        truncation: str = "tail",
        pad_to: int | None = None,
        drop_missing: bool = False,
    ) -> None:
        self.preparation = Preparation(max_length, truncation, pad_to)
        check_tokenizer(tokenizer)
        self.tokenizer = tokenizer
        if task is not None and not isinstance(task, Task):
            raise TypeError(f"task is a {type(task).__name__}; it must be a gptclf Task, such as model.task")
        if task is not None and classes is not None:
            raise ValueError("classes= and task= were both given; a task has its own classes: give one of the two")
        columns = texts if isinstance(texts, Columns) else Columns(texts, labels, weights)
        self.source, self._cells, self._said = columns.source, columns.cells, set[str]()
        with checks.naming(self.source):
            self._read(columns, classes, task, drop_missing=checks.boolean("drop_missing", drop_missing))
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
        delimiter: str | None = None,
        **options: Unpack[Options],
    ) -> "TextDataset":
        """Read a .csv, .tsv, .jsonl or .parquet file; the latter needs pyarrow.

        In a .csv or .tsv file an empty cell is an empty text, but a missing label. A label that is the text of a
        number among the classes, such as "1", is that class, which is logged once.

        Args:
            path: The file; its suffix names the format.
            text: Column of the texts: a name, or in a .csv or .tsv file a position if its first row is not a header.
            label: Column of the labels, likewise; None for texts to predict.
            weights: Column of the weights, likewise; None if all are 1.
            encoding: The file's text encoding.
            quoted: True if `"` quotes a field; None means True for .csv and False for .tsv.
            delimiter: The character between two columns; None means a comma for .csv and a tab for .tsv.
            **options: `tokenizer`, and optionally other options of the constructor.

        Raises:
            OSError: The file cannot be opened.
            ValueError: The file lacks a column, or a row has more fields than the header (the error names the line).
        """
        columns = columns_named(text, label, weights)
        return cls(read_file(checks.path("path", path), columns, encoding, quoted, delimiter), **options)

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
        """Build a data set from a table, or from rows that are read once, one by one.

        Args:
            table: A DataFrame of pandas or polars, an Arrow table, a mapping from names to columns, a `datasets`
                data set, also a streamed one, or any list or stream of mappings.
            text: Name of the column of the texts.
            label: Name of the column of the labels; None for texts to predict.
            weights: Name of the column of the weights; None if all are 1.
            **options: `tokenizer`, and optionally other options of the constructor. Without `classes` and `task`, an
                ordered categorical, an Enum of polars and a ClassLabel of `datasets` give their classes in order.

        Example:
            >>> from gptclf import load_gpt2
            >>> rows = [{"text": "hi", "label": 0}, {"text": "win!", "label": 1}, {"text": "ho", "label": None}]
            >>> TextDataset.from_table(rows, tokenizer=load_gpt2("nano").tokenizer, drop_missing=True).texts
            ['hi', 'win!']
        """
        return cls(read_table(table, columns_named(text, label, weights)), **options)

    def _read(self, columns: Columns, classes: Sequence[Any] | None, task: Task | None, *, drop_missing: bool) -> None:
        """Check the columns of a source, and set texts, labels, weights and task."""
        labels = columns.labels
        if labels is None:
            for name, value in (("classes", classes), ("task", task), ("weights", columns.weights)):
                if value is not None:
                    raise ValueError(f"{name}= was given without labels=; texts to predict need only a tokenizer")
        elif task is not None:
            columns = replace(columns, labels=rows_of_labels(labels, task.classes))
        checked = columns.checked(drop_missing=drop_missing)
        self.texts: list[str] = checked.texts
        self.weights = None if checked.weights is None else np.asarray(checked.weights, dtype=np.float32)
        self.given: list[Any] = [] if labels is None else checked.labels
        self.task: Task | None = None
        self.labels: NDArray[Any] | None = None
        if labels is not None:
            if task is None:
                known = columns.classes if classes is None else classes
                found = infer_classes(checked.labels, labels, cells=self._cells) if known is None else known
                task = SingleLabel(found)
            self.task, self.labels = task, self._matched(task)

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
        part.source = self.source and f"a part of {self.source.removeprefix('a part of ')}"
        part.texts = [self.texts[i] for i in chosen]
        if self.labels is not None:
            part.labels, part.given = self.labels[chosen], [self.given[i] for i in chosen]
        part.weights = None if self.weights is None else self.weights[chosen]
        part.truncated = self.truncated[chosen]
        part.set_rows(self.rows_at(chosen))
        return part

    def within(self, context_length: int) -> Self:
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
        if task is None or task == self.task:
            return self.labels
        with checks.naming(self.source):
            return self._matched(task)

    def labels_for(self, task: Task) -> list[Any]:
        """Return the labels as given, those from the cells of a file as `task` reads them."""
        if not self._cells:
            return self.given
        labels = list(task.labels_of(self.given))
        read = {cell: label for cell, label in zip(self.given, labels, strict=True) if cell != label}
        if read and "cells" not in self._said:
            self._said.add("cells")  # parts of a data set share this set
            first = next(iter(read))
            logger.warning("%s: labels are text; %r is taken as %r, and so on", self.source, first, read[first])
        return labels

    def _matched(self, task: Task) -> NDArray[Any]:
        labels = self.labels_for(task)
        targets = np.asarray(task.targets(labels))
        if len(targets) != len(labels):
            name, n = type(task).__name__, len(labels)
            raise ValueError(f"{name}.targets gave {len(targets)} targets for {n} labels; it must return one for each")
        return targets

    def _truncate(self, limit: int) -> None:
        lengths, prepared = self.lengths, self.preparation
        too_long = lengths > limit
        self.truncated = self.truncated | too_long
        if too_long.any():
            self._note_cut(int(too_long.sum()), limit, int(lengths.max()))
            cut = (np.concatenate([row[part] for part in prepared.kept(len(row), limit)]) for row in self.rows())
            self.set_rows(list(cut))

    def _note_cut(self, n: int, limit: int, longest: int) -> None:
        log_cut(n, len(self), limit, longest, self.preparation.truncation)
