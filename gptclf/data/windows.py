"""`TextWindows`: plain text as windows of token ids, each position's target the token that follows it."""

import copy
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor

from gptclf.preparation import check_text, check_texts, check_tokenizer, row_numbers
from gptclf.tasks import plain
from gptclf.tokenizer.tokens import encode

if TYPE_CHECKING:
    import tiktoken


class TextWindows:
    """One text, or many packed one after the other, cut into windows of equal length for language modelling.

    A window's inputs are `length` tokens in a row, its targets the same moved on by one (book section 2.6). Tokens at
    the end that fill no window are left out; all windows have the same length, so there is no padding.

    Args:
        texts: One string, or strings, between which one `<|endoftext|>` stands. `<|endoftext|>` inside a text is
            ordinary characters.
        tokenizer: A `tiktoken.Encoding`, most often `model.tokenizer`.
        length: Tokens per window (T), at most the model's context length.
        stride: Tokens from the start of one window to the next; None means `length`, so that none overlap.

    Attributes:
        ids: All token ids (N,), int32.
        offsets: Where each window begins.
        length: Tokens per window.

    Raises:
        ValueError: Where there is not even one window of text.

    Example:
        >>> from gptclf import load_gpt2
        >>> tokenizer = load_gpt2("nano").tokenizer
        >>> windows = TextWindows("to be or not to be, that is the question", tokenizer=tokenizer, length=4)
        >>> inputs, targets = windows.padded([0])[0], windows.targets()[0]
        >>> bool((inputs[1:].numpy() == targets[:-1]).all())
        True
    """

    # What rows of a data set of labelled texts have; a window's targets are its own tokens.
    classes: list[Any] | None = None
    labelled = True

    def __init__(
        self,
        texts: str | Iterable[str],
        *,
        tokenizer: "tiktoken.Encoding",
        length: int = 256,
        stride: int | None = None,
    ) -> None:
        length, stride = plain(length), plain(stride)
        stride = length if stride is None else stride
        for name, value in (("length", length), ("stride", stride)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} is {value!r}; it must be a number of tokens of at least 1")
        check_tokenizer(tokenizer)
        self.tokenizer = tokenizer
        self.length = length
        self.ids = _packed([check_text(texts, 0)] if isinstance(texts, str) else check_texts(texts), tokenizer)
        if len(self.ids) <= length:
            raise ValueError(
                f"the text has {len(self.ids)} tokens; a window of length={length} needs one more than that. "
                "Give more text, or a smaller length"
            )
        self.offsets = np.arange(0, len(self.ids) - length, stride, dtype=np.int64)

    @classmethod
    def from_file(
        cls,
        path: str | Path,
        *,
        tokenizer: "tiktoken.Encoding",
        separator: str | None = None,
        encoding: str = "utf-8-sig",
        length: int = 256,
        stride: int | None = None,
    ) -> "TextWindows":
        r"""Read a text file.

        Args:
            path: The file.
            tokenizer: As in the constructor, like the rest.
            separator: What parts two documents, such as "\n\n\n"; None takes the file as one.
            encoding: The file's text encoding.
            length: As in the constructor.
            stride: As in the constructor.
        """
        try:
            text = Path(path).read_text(encoding=encoding)
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not {encoding} text ({error}); give its encoding=") from error
        if separator == "":
            raise ValueError("separator is ''; give the characters that part two documents, or None")
        return cls(
            text if separator is None else text.split(separator), tokenizer=tokenizer, length=length, stride=stride
        )

    def __len__(self) -> int:
        return len(self.offsets)

    def __repr__(self) -> str:
        return f"TextWindows({len(self):,} windows of {self.length} tokens, {len(self.ids):,} tokens of text)"

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens in each window (N,): all the same."""
        return np.full(len(self), self.length, dtype=np.int64)

    def rows(self) -> Iterator[NDArray[np.int32]]:
        """Token ids of every window, in order."""
        return (self.ids[start : start + self.length] for start in self.offsets)

    def targets(self, classes: Sequence[Any] | None = None) -> NDArray[np.int32]:
        """The token after each position (N, T); `classes` is what labelled texts are matched to, and ignored here."""
        following = sliding_window_view(self.ids[1:], self.length)
        steps = np.unique(np.diff(self.offsets))
        if len(steps) == 1 and steps[0] > 0:  # a view: the windows of a large corpus are larger than the corpus
            return following[self.offsets[0] : self.offsets[-1] + 1 : steps[0]]
        return following[self.offsets]

    def padded(self, indices: Sequence[int] | NDArray[np.int64]) -> Tensor:
        """Windows at `indices` as one tensor (B, T), int64."""
        starts = self.offsets[np.asarray(indices, dtype=np.int64)]
        return torch.from_numpy(self.ids[starts[:, None] + np.arange(self.length)].astype(np.int64))

    def packed(self, indices: Sequence[int] | NDArray[np.int64]) -> Tensor:
        """Windows at `indices` one after the other (N,), int64."""
        return self.padded(indices).flatten()

    def subset(self, indices: Sequence[int] | NDArray[np.int64]) -> "TextWindows":
        """The windows at `indices` (or where a mask is true), in that order."""
        part = copy.copy(self)
        part.offsets = self.offsets[row_numbers(indices, len(self))]
        return part


def _packed(texts: list[str], tokenizer: "tiktoken.Encoding") -> NDArray[np.int32]:
    end = np.array([tokenizer.eot_token], dtype=np.int32)
    parts: list[NDArray[np.int32]] = []
    for text in texts:
        parts += [np.asarray(encode(text, tokenizer), dtype=np.int32), end]
    return np.concatenate(parts[:-1]) if parts else np.zeros(0, dtype=np.int32)
