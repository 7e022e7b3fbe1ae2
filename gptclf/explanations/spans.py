"""Tokens and words as places in a text."""

import itertools
import re
from bisect import bisect_left
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gptclf.gpt2.model import GPT2
from gptclf.preparation import Preparation
from gptclf.tokenizer.bpe import END_OF_TEXT
from gptclf.tokenizer.tokens import encode

# The position of a token that is not in the text but fills a row up, or is an empty text's only one.
FILLER = -1


class Span(NamedTuple):
    """Characters `start` to `end` of a text. A filler is an empty span at the text's end."""

    start: int
    end: int


class Word(NamedTuple):
    """A word: its characters, and the numbers of its tokens in the row."""

    span: Span
    tokens: list[int]


def as_read(text: str) -> str:
    """Return a text as the tokenizer reads it: surrogates become the character that a pair stands for, or U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class Reading(NamedTuple):
    """A text as a model reads it.

    Attributes:
        text: The text.
        positions: Which of the text's tokens the row holds (T,), by number; `FILLER` for others.
        spans: The characters of each of them. A part of a character counts as the whole character.
        words: The words that they make.
    """

    text: str
    positions: NDArray[np.int64]
    spans: list[Span]
    words: list[Word]

    def texts(self, spans: Iterable[Span]) -> list[str]:
        """Return the characters of some places; those of a space before the text, or of a filler, are its own."""
        return [self.text[start:end] or (END_OF_TEXT if end == len(self.text) else " ") for start, end in spans]


def read(text: str, model: GPT2) -> Reading:
    """Return how a model reads a text, which is without surrogates."""
    tokens = encode(text, model.tokenizer)
    positions = _positions(len(tokens), model.preparation, model.config.context_length)
    all_spans = _spans(text, [model.tokenizer.decode_single_token_bytes(token) for token in tokens])
    filler = Span(len(text), len(text))
    spans = [filler if i == FILLER else all_spans[i] for i in positions.tolist()]
    return Reading(text, positions, spans, _words(text, spans))


def _positions(n: int, prepared: Preparation, context_length: int) -> NDArray[np.int64]:
    """Return which of a text's n tokens are left when it is prepared."""
    row = np.arange(n) if n else np.array([FILLER])
    for limit, width in ((prepared.max_length, prepared.pad_to or 0), (context_length, 0)):
        if limit is not None:
            row = np.concatenate([row[part] for part in prepared.kept(len(row), limit)])
        row = np.concatenate([row, np.full(max(width - len(row), 0), FILLER)])
    return row


def _spans(text: str, tokens: list[bytes]) -> list[Span]:
    data = text.encode()
    # The number of the character that each byte belongs to; bytes 10xxxxxx continue one.
    starts = (np.frombuffer(data, dtype=np.uint8) & 0xC0) != 0x80
    character = [*(np.cumsum(starts) - 1).tolist(), len(text)]
    end, spans = 0, []
    for token in tokens:
        start = end
        # A foreign tokenizer may put a space before the text, which is in the token alone.
        end += len(token) if data.startswith(token, start) else len(token) - 1
        first = character[start]
        spans.append(Span(first, character[end - 1] + 1 if end > start else first))
    return spans


def _words(text: str, spans: list[Span]) -> list[Word]:
    """Join tokens to words: characters without white space between them. Fillers are one word at the end.

    A token of white space belongs to the word after it, or to the last word.
    """
    ends = [match.end() for match in re.finditer(r"\S+", text)] or [len(text)]

    def word(number: int) -> int:
        start, end = spans[number]
        filler = start == end == len(text)
        return len(ends) if filler else min(bisect_left(ends, end), len(ends) - 1)

    found = []
    for _, group in itertools.groupby(range(len(spans)), word):
        numbers = list(group)
        start, end = spans[numbers[0]].start, spans[numbers[-1]].end
        if inside := text[start:end].strip():
            start = text.index(inside, start)
            end = start + len(inside)
        found.append(Word(Span(start, end), numbers))
    return found
