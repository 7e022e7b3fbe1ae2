"""`TextDataset`: texts as ragged token ids with labels by name. Batching is `batches.py`'s job."""

import copy
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gptclf.data.read import read_file, read_table
from gptclf.preparation import check_preparation, check_texts, check_tokenizer, row_numbers
from gptclf.tasks import check_classes, check_labels, index_labels, infer_classes
from gptclf.tokenizer.tokens import encode

if TYPE_CHECKING:
    import tiktoken

logger = logging.getLogger(__name__)


class TextDataset:
    """Texts as token ids, row after row without padding, and their labels by name.

    Args:
        texts: Strings. Empty text is one `<|endoftext|>`; `<|endoftext|>` inside a text is ordinary characters;
            a lone surrogate becomes U+FFFD.
        labels: One hashable label per text, or None for texts to predict.
        tokenizer: A `tiktoken.Encoding`, most often `model.tokenizer`.
        classes: The labels that may occur, in order; None takes those that do occur, sorted where they can be.
        max_length: Longest row in tokens. None leaves the limit to the model's context length.
        truncation: What a longer row loses: its "tail" (the book's way), its "head", or its "middle".
        pad_to: Fill every row with `<|endoftext|>` up to this many tokens and treat them as text, as the book does;
            a comparison aid that costs accuracy. It also sets `max_length` where that is None.

    Attributes:
        texts: The strings.
        labels: Index into `classes` for each row, int64 (N,), or None.
        classes: List of labels, or None.
        lengths: Tokens in each row (N,).
        truncated: Whether each row lost tokens (N,); how many did is reported through `logging` as well.

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
        tokenizer: "tiktoken.Encoding",
        classes: Sequence[Any] | None = None,
        max_length: int | None = None,
        truncation: str = "tail",
        pad_to: int | None = None,
    ) -> None:
        self.max_length, self.truncation, self.pad_to = check_preparation(max_length, truncation, pad_to)
        check_tokenizer(tokenizer)
        self.tokenizer = tokenizer
        self.texts = check_texts(texts)
        self.classes: list[Any] | None = None
        self.labels: NDArray[np.int64] | None = None
        if labels is not None:
            named = check_labels(labels, len(self.texts))
            self.classes = infer_classes(named) if classes is None else check_classes(classes)
            self.labels = index_labels(named, self.classes)
        elif classes is not None:
            raise ValueError("classes= was given without labels=; texts to predict need neither")
        self._set_rows([self._prepare(text) for text in self.texts])
        self.truncated = np.zeros(len(self.texts), dtype=bool)
        if self.max_length is not None:
            self._truncate(self.max_length)
            if self.pad_to is not None:
                self._pad(self.pad_to)

    @classmethod
    def from_file(
        cls,
        path: str | Path,
        *,
        text: str | int = "text",
        label: str | int | None = "label",
        tokenizer: "tiktoken.Encoding",
        encoding: str = "utf-8-sig",
        quoted: bool | None = None,
        classes: Sequence[Any] | None = None,
        max_length: int | None = None,
        truncation: str = "tail",
        pad_to: int | None = None,
    ) -> "TextDataset":
        """Read a .csv, .tsv or .jsonl file.

        Args:
            path: The file; its suffix names the format.
            text: Column of the texts: a name (the first row is a header) or a position (there is no header).
            label: Column of the labels, likewise; None for texts to predict.
            tokenizer: As in the constructor, like the rest.
            encoding: The file's text encoding.
            quoted: Whether `"` quotes a field; None means yes for .csv and no for .tsv.
            classes: As in the constructor.
            max_length: As in the constructor.
            truncation: As in the constructor.
            pad_to: As in the constructor.
        """
        texts, labels = read_file(Path(path), text, label, encoding=encoding, quoted=quoted)
        return cls(
            texts,
            labels,
            tokenizer=tokenizer,
            classes=classes,
            max_length=max_length,
            truncation=truncation,
            pad_to=pad_to,
        )

    @classmethod
    def from_table(
        cls,
        table: Any,
        *,
        text: str = "text",
        label: str | None = "label",
        tokenizer: "tiktoken.Encoding",
        classes: Sequence[Any] | None = None,
        max_length: int | None = None,
        truncation: str = "tail",
        pad_to: int | None = None,
    ) -> "TextDataset":
        """Take two columns of a DataFrame, a Hugging Face `datasets.Dataset` or a dictionary of columns.

        A `datasets` column of type ClassLabel gives its names, in its order.
        """
        texts, labels, names = read_table(table, text, label)
        return cls(
            texts,
            labels,
            tokenizer=tokenizer,
            classes=names if classes is None else classes,
            max_length=max_length,
            truncation=truncation,
            pad_to=pad_to,
        )

    def __len__(self) -> int:
        return len(self.texts)

    def __repr__(self) -> str:
        kinds = "no labels" if self.classes is None else f"{len(self.classes)} classes"
        return f"TextDataset({len(self):,} texts, {len(self.ids):,} tokens, {kinds})"

    @property
    def labelled(self) -> bool:
        """Whether the rows have labels."""
        return self.labels is not None

    @property
    def n_truncated(self) -> int:
        """Number of rows that lost tokens."""
        return int(self.truncated.sum())

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens in each row (N,)."""
        return np.diff(self.offsets)

    def row(self, index: int) -> NDArray[np.int32]:
        """Token ids of one row."""
        return self.ids[self.offsets[index] : self.offsets[index + 1]]

    def rows(self) -> Iterator[NDArray[np.int32]]:
        """Token ids of every row, in order."""
        return (self.row(i) for i in range(len(self)))

    def padded(self, indices: NDArray[np.int64]) -> Tensor:
        """Rows at `indices` as one tensor (B, T), int64, 0 right of each row's length."""
        starts, ends = self.offsets[indices], self.offsets[indices + 1]
        batch = np.zeros((len(indices), int((ends - starts).max(initial=0))), dtype=np.int64)
        for row, start, end in zip(batch, starts, ends, strict=True):
            row[: end - start] = self.ids[start:end]
        return torch.from_numpy(batch)

    def packed(self, indices: NDArray[np.int64]) -> Tensor:
        """Rows at `indices` one after the other (N,), int64."""
        rows = [self.row(i) for i in indices]
        return torch.from_numpy(np.concatenate(rows).astype(np.int64)) if rows else torch.zeros(0, dtype=torch.int64)

    def subset(self, indices: Sequence[int] | NDArray[np.int64]) -> "TextDataset":
        """The rows at `indices` (or where a mask is true), in that order, with the same classes."""
        chosen = row_numbers(indices, len(self))
        part = copy.copy(self)
        part.texts = [self.texts[i] for i in chosen]
        part.labels = None if self.labels is None else self.labels[chosen]
        part.truncated = self.truncated[chosen]
        part._set_rows([self.row(i) for i in chosen])
        return part

    def within(self, context_length: int) -> "TextDataset":
        """The same rows cut to a model's context length; this very data set where all fit."""
        if not len(self) or int(self.lengths.max()) <= context_length:
            return self
        part = copy.copy(self)
        part._truncate(context_length)
        return part

    def targets(self, classes: Sequence[Any]) -> NDArray[np.int64]:
        """Each row's index into `classes`, matched by name.

        Raises:
            ValueError: Without labels, or for a label that `classes` lacks.
        """
        if self.labels is None or self.classes is None:
            raise ValueError("this data set has no labels; give TextDataset(texts, labels, ...)")
        if list(classes) == self.classes:
            return self.labels
        return index_labels([self.classes[i] for i in self.labels], list(classes))

    def _prepare(self, text: str) -> NDArray[np.int32]:
        return np.asarray(encode(text, self.tokenizer) or [self.tokenizer.eot_token], dtype=np.int32)

    def _truncate(self, limit: int) -> None:
        lengths = self.lengths
        long = lengths > limit
        self.truncated = self.truncated | long
        if long.any():
            logger.warning(
                "%d of %d texts are longer than %d tokens (longest: %d) and lost their %s",
                long.sum(),
                len(self),
                limit,
                lengths.max(),
                self.truncation,
            )
            self._set_rows([_cut(row, limit, self.truncation) for row in self.rows()])

    def _pad(self, width: int) -> None:
        rows = np.full((len(self), width), self.tokenizer.eot_token, dtype=np.int32)
        for padded, row in zip(rows, self.rows(), strict=True):
            padded[: len(row)] = row
        self._set_rows(list(rows))

    def _set_rows(self, rows: list[NDArray[np.int32]]) -> None:
        # One flat array: a batch is cut out of it with a few slices instead of N small Python objects.
        self.offsets = np.cumsum([0, *(len(row) for row in rows)], dtype=np.int64)
        self.ids = np.concatenate(rows) if rows else np.zeros(0, dtype=np.int32)


def _cut(row: NDArray[np.int32], limit: int, truncation: str) -> NDArray[np.int32]:
    if len(row) <= limit:
        return row
    if truncation == "tail":
        return row[:limit]
    if truncation == "head":
        return row[-limit:]
    back = limit // 2
    return np.concatenate([row[: limit - back], row[len(row) - back :]])
