"""Measures of how well scores rank rows: the areas under two curves."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def ranking_areas(weights: Floats, positive: NDArray[np.bool_], scores: Floats) -> tuple[Floats, Floats]:
    """Return the area under the ROC curve and the average precision of rows ranked by scores, each (B,).

    Rows with equal scores share a place. Both follow from the places that have positive rows, which are few for most
    classes of many.

    Args:
        weights: How often each row counts (B, N).
        positive: Which rows should score high (N,).
        scores: The rows' scores (N,).

    Returns:
        Both areas; NaN where the rows are of one kind only (for the average precision: where none is positive).
    """
    found = np.full((2, len(weights)), np.nan)
    if not positive.any():
        return found[0], found[1]
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True)) + 1  # of the places, exclusive
    rows = np.flatnonzero(positive[order])
    places, first = np.unique(np.searchsorted(ends, rows, side="right"), return_index=True)
    counts = weights[:, order]
    total = np.hstack([np.zeros((len(counts), 1)), np.cumsum(counts, axis=1)])
    here = np.add.reduceat(counts[:, rows], first, axis=1)
    hits = np.cumsum(here, axis=1)
    upto, before = total[:, ends[places]], total[:, np.append(0, ends)[places]]
    positives, negatives = hits[:, -1], total[:, -1] - hits[:, -1]
    # Negative rows of the place itself count half.
    below = negatives[:, None] - (upto - hits + before - (hits - here)) / 2
    np.divide((here * below).sum(axis=1), positives * negatives, out=found[0], where=positives * negatives > 0)
    # Above the first row that counts, there is nothing to be precise about.
    precision = hits / np.maximum(upto, 1)
    np.divide((here * precision).sum(axis=1), positives, out=found[1], where=positives > 0)
    return found[0], found[1]
