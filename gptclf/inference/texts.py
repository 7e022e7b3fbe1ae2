"""Texts to answer: prepared as in training, each different one once, and logged once a call if they are cut."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gptclf.data.dataset import TextDataset
from gptclf.data.rows import log_cut
from gptclf.gpt2.model import GPT2


class _Texts(TextDataset):
    """Texts whose cuts are noted, to be logged by the call that they belong to."""

    limit = longest = 0

    def _note_cut(self, n: int, limit: int, longest: int) -> None:
        # First to the recorded limit, then to the context, if that is shorter.
        self.limit, self.longest = limit, max(longest, self.longest)


class Prepared(NamedTuple):
    """Texts prepared for a model.

    Attributes:
        rows: The different rows of token ids.
        row_of: The row of each text.
        truncated: Which texts lost tokens.
    """

    rows: TextDataset
    row_of: list[int]
    truncated: NDArray[np.bool_]


class Cuts:
    """Counts the texts of a call that lost tokens, for one message at its end."""

    def __init__(self) -> None:
        self._texts = self._cut = self._limit = self._longest = 0
        self._part = ""

    def prepare(self, model: GPT2, texts: Iterable[str]) -> Prepared:
        """Prepare texts as the model records, and count those that are cut."""
        dataset = _Texts(texts, tokenizer=model.tokenizer, **vars(model.preparation))
        dataset = dataset.within(model.config.context_length)
        self._part = model.preparation.truncation
        self._texts, self._cut = self._texts + len(dataset), self._cut + dataset.n_truncated
        self._limit, self._longest = dataset.limit or self._limit, max(self._longest, dataset.longest)
        number: dict[bytes, int] = {}
        row_of = [number.setdefault(ids.tobytes(), len(number)) for ids in dataset.rows()]
        _, first = np.unique(row_of, return_index=True)
        rows = dataset if len(first) == len(dataset) else dataset.subset(first)
        return Prepared(rows, row_of, dataset.truncated)

    def log(self) -> None:
        """Log how many texts were cut, if any."""
        if self._cut:
            log_cut(self._cut, self._texts, self._limit, self._longest, self._part)
