"""Dividing a data set into parts, and finding texts that stand in two of them."""

import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gptclf.data.dataset import TextDataset

logger = logging.getLogger(__name__)


def split(
    dataset: TextDataset, fractions: Sequence[float] = (0.7, 0.1, 0.2), *, seed: int, stratify: bool = True
) -> tuple[TextDataset, ...]:
    """Divide a data set at random into parts, each with the classes' shares of the whole.

    Warns (through `logging`) of texts that stand in more than one part: a test text seen in training measures
    memory. `shared_texts` finds them.

    Args:
        dataset: The rows to divide.
        fractions: The parts' shares; they sum to 1. The default is the book's 70/10/20.
        seed: Determines the division.
        stratify: Keep each class's share in every part as nearly as whole rows allow; needs labels.

    Returns:
        One data set per fraction.

    Example:
        >>> from gptclf import load_gpt2
        >>> texts, labels = [f"text {i}" for i in range(20)], [0, 1] * 10
        >>> data = TextDataset(texts, labels, tokenizer=load_gpt2("nano").tokenizer)
        >>> [len(part) for part in split(data, (0.5, 0.5), seed=1)]
        [10, 10]
    """
    if not isinstance(fractions, Sequence):
        raise TypeError(f"fractions is {fractions!r}; give one share for each part, such as (0.7, 0.1, 0.2)")
    if not fractions or min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(f"fractions are {list(fractions)!r}; they must be positive and sum to 1")
    if stratify and dataset.labels is None:
        raise ValueError("stratify=True needs labels; this data set has none: give stratify=False")
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(dataset))
    sizes = np.diff(np.rint(np.cumsum([0.0, *fractions]) * len(dataset)).astype(int))
    labels = dataset.labels if stratify and dataset.labels is not None else np.zeros(len(dataset), dtype=np.int64)
    parts = _deal(order, labels, sizes)
    for i, part in enumerate(parts):
        if not len(part):
            raise ValueError(
                f"{len(dataset)} rows are too few for fractions {list(fractions)!r}: part {i} would be empty"
            )
    # Rows of a part keep the data set's order; whoever trains on it shuffles by the training seed.
    divided = tuple(dataset.subset(part) for part in parts)
    for i, later in enumerate(divided):
        for j, earlier in enumerate(divided[:i]):
            shared = len(shared_texts(earlier, later))
            if shared:
                logger.warning(
                    "%d of the %d texts in part %d of the split also stand in part %d; drop them before you trust "
                    "a score (gptclf.shared_texts finds them)",
                    shared,
                    len(later),
                    i,
                    j,
                )
    return divided


def shared_texts(first: TextDataset, second: TextDataset) -> NDArray[np.int64]:
    """Row numbers of `second` whose text stands, verbatim and whole, in `first` too."""
    seen = set(first.texts)
    found = [i for i, text in enumerate(second.texts) if text in seen]
    return np.asarray(found, dtype=np.int64)


def _deal(order: NDArray[np.int64], labels: NDArray[np.int64], sizes: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Rows dealt out in `order` to parts of these sizes, the classes in the shares they have among what is left."""
    piles = [order[labels[order] == label] for label in np.unique(labels)]
    parts = []
    for size in sizes:
        left = np.asarray([len(pile) for pile in piles])
        ideal = left * size / max(1, left.sum())
        take = np.floor(ideal).astype(int)
        # The rows that rounding down left out go to the classes that lost most by it.
        take[np.argsort(take - ideal, kind="stable")[: size - take.sum()]] += 1
        parts.append(np.sort(np.concatenate([pile[:n] for pile, n in zip(piles, take, strict=True)] or [order])))
        piles = [pile[n:] for pile, n in zip(piles, take, strict=True)]
    return parts
