"""Split a data set into parts, and find texts that occur in two of them."""

import logging
import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from gptclf import checks
from gptclf.data.dataset import TextDataset

logger = logging.getLogger(__name__)


@overload
def split(
    dataset: TextDataset, fractions: Sequence[float] = ..., *, seed: int, stratify: bool = ...
) -> tuple[TextDataset, ...]: ...
@overload
def split(
    dataset: TextDataset,
    fractions: Sequence[float] = ...,
    *,
    seed: int,
    stratify: bool = ...,
    return_indices: Literal[True],
) -> tuple[tuple[TextDataset, ...], tuple[NDArray[np.int64], ...]]: ...
def split(
    dataset: TextDataset,
    fractions: Sequence[float] = (0.7, 0.1, 0.2),
    *,
    seed: int,
    stratify: bool = True,
    return_indices: bool = False,
) -> Any:
    """Split a data set at random into parts, by default keeping the class proportions in each.

    Texts that occur in several parts are reported as a warning through `logging`, because a score on texts seen in
    training measures memory. The warning counts parts from 0. `shared_texts` finds the texts.

    Args:
        dataset: The rows to split.
        fractions: Each part's share of the rows; they sum to 1. The default is the book's 70/10/20.
        seed: Seed of the split; equal seeds give equal parts.
        stratify: Keep each class's share in every part as close as whole rows allow. This needs one class per text.
        return_indices: Also return the row numbers of each part, such as to split further columns in the same way.

    Returns:
        One data set per fraction; with `return_indices`, a pair of these and of as many arrays of row numbers.

    Example:
        >>> from gptclf import load_gpt2
        >>> texts, labels = [f"text {i}" for i in range(20)], [0, 1] * 10
        >>> data = TextDataset(texts, labels, tokenizer=load_gpt2("nano").tokenizer)
        >>> [len(part) for part in split(data, (0.5, 0.5), seed=1)]
        [10, 10]
        >>> parts, rows = split(data, (0.9, 0.1), seed=1, return_indices=True)
        >>> [texts[i] for i in rows[1]] == parts[1].texts
        True
    """
    checks.instance("dataset", dataset, TextDataset, "a TextDataset")
    if not isinstance(fractions, Sequence) or isinstance(fractions, str | bytes):
        raise TypeError(f"fractions is {fractions!r}; give one share for each part, such as (0.7, 0.1, 0.2)")
    shares = [checks.number(f"fractions[{i}]", share, least=-math.inf) for i, share in enumerate(fractions)]
    if not shares or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(f"fractions are {shares!r}; they must be positive and sum to 1")
    return_indices = checks.boolean("return_indices", return_indices)
    rng = np.random.default_rng(checks.integer("seed", seed))
    labels = np.zeros(len(dataset), dtype=np.int64)
    if checks.boolean("stratify", stratify):
        if dataset.labels is None:
            raise ValueError("stratify=True needs labels; this data set has none: give stratify=False")
        if dataset.labels.ndim != 1 or not np.issubdtype(dataset.labels.dtype, np.integer):
            raise ValueError("stratify=True needs one class per text; for other labels give stratify=False")
        labels = dataset.labels
    order = rng.permutation(len(dataset))
    sizes = np.diff(np.rint(np.cumsum([0.0, *shares]) * len(dataset)).astype(int))
    if not sizes.all():
        empty = sizes.argmin()
        raise ValueError(f"{len(dataset)} rows are too few for fractions {shares!r}: part {empty} would be empty")
    # The rows of a part keep the data set's order; training shuffles them by its own seed.
    numbers = tuple(_deal(order, labels, sizes))
    divided = tuple(dataset.subset(part) for part in numbers)
    message = "%d of the %d texts in part %d also occur in part %d; drop them (shared_texts) before you trust a score"
    for (i, earlier), (j, later) in combinations(enumerate(divided), 2):
        shared = len(shared_texts(earlier, later))
        if shared:
            logger.warning(message, shared, len(later), j, i)
    return (divided, numbers) if return_indices else divided


def shared_texts(first: TextDataset, second: TextDataset) -> NDArray[np.int64]:
    """Return the row numbers of `second` whose whole text occurs verbatim in `first`.

    Example:
        >>> from gptclf import load_gpt2
        >>> tokenizer = load_gpt2("nano").tokenizer
        >>> first, second = (TextDataset(texts, tokenizer=tokenizer) for texts in (["a", "b"], ["c", "b"]))
        >>> shared_texts(first, second).tolist()
        [1]
    """
    for name, dataset in (("first", first), ("second", second)):
        checks.instance(name, dataset, TextDataset, "a TextDataset")
    seen = set(first.texts)
    return np.asarray([i for i, text in enumerate(second.texts) if text in seen], dtype=np.int64)


def _deal(order: NDArray[np.int64], labels: NDArray[np.int64], sizes: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Deal out rows in `order` to parts of these sizes; each part takes the classes in proportion to the rows left."""
    piles = [order[labels[order] == label] for label in np.unique(labels)]
    parts = []
    for size in sizes:
        left = np.asarray([len(pile) for pile in piles])
        ideal = left * size / left.sum()
        take = np.floor(ideal).astype(int)
        # Rounding down leaves some rows; they go to the classes that lost most by it.
        take[np.argsort(take - ideal, kind="stable")[: size - take.sum()]] += 1
        parts.append(np.sort(np.concatenate([pile[:n] for pile, n in zip(piles, take, strict=True)])))
        piles = [pile[n:] for pile, n in zip(piles, take, strict=True)]
    return parts
