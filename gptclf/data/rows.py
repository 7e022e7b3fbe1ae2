"""Checks of the columns that callers give for a data set: texts, labels, weights and row numbers."""

import logging
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptclf.checks import is_iterable, number
from gptclf.tasks.labels import column_values

logger = logging.getLogger(__name__)

# Weights are kept in float32.
_LARGEST = float(np.finfo(np.float32).max)


def row_numbers(indices: Sequence[int] | NDArray[Any], n: int) -> NDArray[np.int64]:
    """Return the row numbers, from 0 to `n` - 1, that `indices` selects from `n` rows.

    Args:
        indices: Row numbers, negative ones counted from the end as in numpy, or a mask over all rows.
        n: Number of rows.

    Raises:
        TypeError: If `indices` is neither.
        IndexError: If there is no such row, or the mask has another length.
    """
    chosen = np.asarray(indices)
    if chosen.dtype == bool and chosen.ndim:
        if chosen.shape != (n,):
            raise IndexError(f"the mask has shape {chosen.shape}; the data set has {n} rows")
        return np.flatnonzero(chosen)
    if chosen.ndim != 1 or (chosen.size and not np.issubdtype(chosen.dtype, np.integer)):
        given = f"{reprlib.repr(indices)} ({chosen.dtype} values of shape {chosen.shape})"
        raise TypeError(f"rows are chosen by {given}; give a list of integers or a mask")
    outside = (chosen < -n) | (chosen >= n)
    if outside.any():
        row = chosen[outside][0]
        raise IndexError(f"there is no row {row}; the data set has {n} rows, numbered from 0, or from -1 backwards")
    return chosen.astype(np.int64) % max(1, n)  # -1 becomes n - 1


def check_texts(texts: Iterable[str]) -> list[str]:
    """Return the texts as a list of strings.

    Raises:
        TypeError: If `texts` is not an ordered series of strings; the error names the row.
    """
    check_source(texts)
    return [check_text(text, f"text {i}") for i, text in enumerate(column_values(texts))]


def check_text(text: object, name: str) -> str:
    """Return a text; raise a TypeError that gives its `name`, such as "text 3", if it is not a string."""
    if not isinstance(text, str):
        problem = f"{name} is {text!r} ({type(text).__name__}); every text must be a str"
        raise TypeError(f"{problem}. Leave missing texts out, or replace them by ''")
    return text


def check_source(texts: object) -> None:
    """Raise a TypeError if `texts` is not an ordered series of texts, such as a list or a generator."""
    kind = type(texts).__name__
    if isinstance(texts, str | bytes):
        remedy = f"give a list of strings: [{texts[:20]!r}]"
        raise TypeError(f"texts is a single {kind}; {remedy}. Iterating over it would make every character a text")
    if hasattr(texts, "column_names") or hasattr(texts, "columns") or isinstance(texts, Mapping):
        remedy = "give its columns, or use TextDataset.from_table(table, text=..., label=...)"
        raise TypeError(f"texts is a whole table ({kind}); {remedy}")
    if not is_iterable(texts) or isinstance(texts, set | frozenset):
        raise TypeError(f"texts is a {kind}; give a list of strings, whose order the labels follow")


def check_weight(weight: Any, name: str) -> float:
    """Return the weight of a row; raise an error that gives its `name` if it is not a non-negative, finite number."""
    return number(name, weight, most=_LARGEST)


def log_cut(n: int, n_texts: int, limit: int, longest: int, part: str) -> None:
    """Log that `n` texts of `n_texts` were longer than `limit` tokens and lost their "tail", "head" or "middle"."""
    message = "%d of %d texts are longer than %d tokens (longest: %d) and lost their %s"
    logger.warning(message, n, n_texts, limit, longest, part)
