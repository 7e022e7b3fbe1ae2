"""What texts must be before they become rows, and the settings that say how they do."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from gptclf.tasks import plain

# Most characters handed to the tokenizer at once. Its regular expression keeps a stack of its own, which a run of some
# 500,000 blanks overflows.
PIECE = 250_000

TRUNCATIONS = ("tail", "head", "middle")


def pieces(text: str) -> list[str]:
    """A text in pieces of at most `PIECE` characters, cut where the tokens stay the same.

    That is before a blank that follows no other white space: GPT-2's pattern always ends a token there. A stretch of
    half a piece without such a place is not language; it is cut where it is.
    """
    parts, start = [], 0
    while len(text) - start > PIECE:
        end = start + PIECE
        window = range(end, end - PIECE // 2, -1)
        place = next((i for i in window if text[i] == " " and not text[i - 1].isspace()), end)
        parts.append(text[start:place])
        start = place
    return [*parts, text[start:]]


def row_numbers(indices: Sequence[int] | NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """Row numbers from row numbers or from a mask over `n` rows."""
    chosen = np.asarray(indices)
    if chosen.dtype == bool:
        if chosen.shape != (n,):
            raise IndexError(f"the mask has shape {chosen.shape}; the data set has {n} rows")
        return np.flatnonzero(chosen)
    if chosen.size and not np.issubdtype(chosen.dtype, np.integer):
        raise TypeError(f"rows are chosen by whole numbers or a mask, not by {chosen.dtype}")
    return chosen.astype(np.int64)


def check_preparation(
    max_length: int | None, truncation: str, pad_to: int | None
) -> tuple[int | None, str, int | None]:
    """The three settings that say how texts become rows, with `pad_to` setting `max_length` where that is None."""
    max_length, pad_to = plain(max_length), plain(pad_to)
    for name, value in (("max_length", max_length), ("pad_to", pad_to)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ValueError(f"{name} is {value!r}; it must be a number of tokens of at least 1, or None")
    if truncation not in TRUNCATIONS:
        raise ValueError(f"truncation is {truncation!r}; choose what is cut: {', '.join(TRUNCATIONS)}")
    if pad_to is not None and max_length is not None and max_length > pad_to:
        raise ValueError(
            f"max_length {max_length} is more than pad_to {pad_to}; rows padded to one width cannot be longer"
        )
    return (pad_to if max_length is None else max_length), truncation, pad_to


def check_tokenizer(tokenizer: object) -> None:
    """Raise where `tokenizer` is not an encoding."""
    import tiktoken

    if not isinstance(tokenizer, tiktoken.Encoding):
        raise TypeError(
            f"tokenizer is a {type(tokenizer).__name__}; it must be a tiktoken.Encoding, such as model.tokenizer"
        )


def check_texts(texts: Iterable[str]) -> list[str]:
    """The texts as a list of strings."""
    check_source(texts)
    return [check_text(text, i) for i, text in enumerate(texts)]


def check_text(text: object, number: int) -> str:
    """Raise where one of the texts is no string."""
    if not isinstance(text, str):
        raise TypeError(
            f"text {number} is {text!r} ({type(text).__name__}); every text must be a str. "
            "Drop missing rows or replace them by ''"
        )
    return text


def check_source(texts: object) -> None:
    """Raise where what shall give texts, one after the other, is something else."""
    if isinstance(texts, str | bytes):
        raise TypeError(
            f"texts is a single {type(texts).__name__}; give a list of strings: [{texts[:20]!r}]. "
            "Iterating over it would make every character a text"
        )
    if hasattr(texts, "column_names") or hasattr(texts, "columns") or isinstance(texts, Mapping):
        raise TypeError(
            f"texts is a whole table ({type(texts).__name__}); give its columns, or use "
            "TextDataset.from_table(table, text=..., label=...)"
        )
    if not isinstance(texts, Iterable) or isinstance(texts, set | frozenset):
        raise TypeError(f"texts is a {type(texts).__name__}; give a list of strings, whose order the labels follow")
