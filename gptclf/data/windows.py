"""`TextWindows`: running text cut into windows of token ids. Each position's target is the token that follows it."""

import copy
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor

from gptclf import checks
from gptclf.data.rows import check_texts, row_numbers
from gptclf.files.access import readable_size
from gptclf.preparation import Preparation
from gptclf.tasks import NextToken, Task
from gptclf.tokenizer.tokens import check_tokenizer, encode

if TYPE_CHECKING:
    from tiktoken import Encoding


class TextWindows:
    """One text, or many concatenated, cut into windows of equal length for language modelling.

    A window's inputs are `length` consecutive tokens; its targets are the tokens one position later (book section 2.6).
    Tokens at the end that do not fill a window are left out. All windows have the same length, so there is no padding.

    Args:
        texts: One string, or several, which are joined by one `<|endoftext|>`. `<|endoftext|>` inside a text is
            ordinary characters.
        tokenizer: A `tiktoken.Encoding`, usually `model.tokenizer`.
        length: Tokens per window (T), at most the model's context length.
        stride: Tokens from the start of one window to the start of the next; None means `length`: no overlap.

    Attributes:
        ids: All token ids, int32.
        offsets: Where each window begins (N,).
        length: Tokens per window.
        task: `NextToken`.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If the text does not fill one window.

    Example:
        >>> from gptclf import load_gpt2
        >>> tokenizer = load_gpt2("nano").tokenizer
        >>> windows = TextWindows("to be or not to be, that is the question", tokenizer=tokenizer, length=4)
        >>> inputs, targets = windows.padded([0])[0], windows.targets()[0]
        >>> bool((inputs[1:].numpy() == targets[:-1]).all())
        True
    """

    # Attributes that data sets of labelled texts also have.
    labelled = True
    weights: NDArray[np.float32] | None = None
    preparation = Preparation()

    def __init__(
        self, texts: str | Iterable[str], *, tokenizer: "Encoding", length: int = 256, stride: int | None = None
    ) -> None:
        self.length = checks.integer("length", length, 1)
        step = checks.integer("stride", self.length if stride is None else stride, 1)
        check_tokenizer(tokenizer)
        self.tokenizer = tokenizer
        self.task: Task | None = NextToken(tokenizer.n_vocab)
        given = check_texts([texts] if isinstance(texts, str) else texts)
        parts = [np.array([*encode(text, tokenizer), tokenizer.eot_token], dtype=np.int32) for text in given]
        self.ids: NDArray[np.int32] = np.concatenate(parts)[:-1] if parts else np.zeros(0, dtype=np.int32)
        if len(self.ids) <= self.length:
            problem = f"the text has {len(self.ids)} tokens; a window of length={length} needs at least {length + 1}"
            raise ValueError(f"{problem}: give more text, or a smaller length")
        self.offsets = np.arange(0, len(self.ids) - self.length, step, dtype=np.int64)

    @classmethod
    def from_file(
        cls,
        path: str | Path,
        *,
        tokenizer: "Encoding",
        separator: str | None = None,
        encoding: str = "utf-8-sig",
        length: int = 256,
        stride: int | None = None,
    ) -> "TextWindows":
        r"""Read a text file.

        Args:
            path: The file.
            tokenizer: As in the constructor.
            separator: The characters between two documents, such as ``"\n\n\n"``; None takes the file as one document.
            encoding: The file's text encoding.
            length: As in the constructor.
            stride: As in the constructor.
        """
        file = checks.path("path", path)
        readable_size(file)
        try:
            text = file.read_text(encoding=encoding)
        except UnicodeDecodeError as error:
            raise ValueError(f"{file} is not {encoding} text ({error}); give its encoding=") from error
        if separator == "":
            raise ValueError("separator is ''; give the characters between two documents, or None")
        texts = text if separator is None else text.split(separator)
        return cls(texts, tokenizer=tokenizer, length=length, stride=stride)

    def __len__(self) -> int:
        return len(self.offsets)

    def __repr__(self) -> str:
        return f"TextWindows({len(self):,} windows of {self.length} tokens, {len(self.ids):,} tokens of text)"

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens in each window (N,), all equal."""
        return np.full(len(self), self.length, dtype=np.int64)

    def rows(self) -> Iterator[NDArray[np.int32]]:
        """Yield the token ids of each window, in order."""
        return (self.ids[start : start + self.length] for start in self.offsets)

    def targets(self, task: Task | None = None) -> NDArray[np.int32]:
        """Return the token that follows each position (N, T).

        Args:
            task: The model's task, if the targets are for a model.

        Raises:
            TypeError: If `task` is not that of a language model.
        """
        if task is not None:
            task.check_same(self.task)
        following = sliding_window_view(self.ids[1:], self.length)
        steps = np.unique(np.diff(self.offsets))
        if len(steps) == 1 and steps[0] > 0:  # a view: overlapping windows can be much larger than the corpus
            return following[self.offsets[0] : self.offsets[-1] + 1 : steps[0]]
        return following[self.offsets]

    def padded(self, indices: Sequence[int] | NDArray[np.int64]) -> Tensor:
        """Return the windows at `indices` as one tensor (B, T), int64."""
        starts = self.offsets[row_numbers(indices, len(self))]
        return torch.from_numpy(self.ids[starts[:, None] + np.arange(self.length)].astype(np.int64))

    def packed(self, indices: Sequence[int] | NDArray[np.int64]) -> Tensor:
        """Return the windows at `indices` concatenated (N,), int64."""
        return self.padded(indices).flatten()

    def subset(self, indices: Sequence[int] | NDArray[np.int64]) -> "TextWindows":
        """Return the windows at `indices` (or those where a mask is True), in that order."""
        part = copy.copy(self)
        part.offsets = self.offsets[row_numbers(indices, len(self))]
        return part
