"""What scikit-learn's users give: texts as a list, an array or a column, labels, weights and random states."""

from typing import Any

import numpy as np
from sklearn.utils import check_array, check_consistent_length, check_random_state, column_or_1d
from sklearn.utils.multiclass import check_classification_targets

from gptclf.checks import LARGEST_SEED, integer, is_missing, python_value
from gptclf.data.rows import check_texts


def texts_of(X: Any) -> list[str]:
    """Return the texts of a list, an array, a series, or a table of one column, as some meta-estimators pass it.

    Example:
        >>> texts_of(np.array([["hi"], ["you won"]]))
        ['hi', 'you won']
    """
    table = hasattr(X, "columns") or getattr(X, "ndim", 1) == 2
    if not table and not (isinstance(X, list) and X and isinstance(X[0], list | tuple | np.ndarray)):
        return check_texts(X)
    cells = np.asarray(X, dtype=object)
    if cells.ndim != 2 or cells.shape[1] != 1:
        shape = " x ".join(map(str, cells.shape))
        raise ValueError(f"X is a table of {shape}; give one text per row: a list of strings, or a single column")
    return check_texts(cells[:, 0].tolist())


def labels_of(y: Any) -> Any:
    """Return labels as scikit-learn's classifiers take them (N,), or (N, C) of 0 and 1 for several labels per text."""
    if y is None:
        raise ValueError("GPT2Classifier requires y to be passed, but the target y is None")
    # In an array of strings a missing label would become the class "nan".
    missing = [row for row, label in enumerate(y) if is_missing(label)] if isinstance(y, list | tuple) else []
    if missing:
        raise ValueError(
            f"Input y contains NaN or None: {len(missing)} labels, the first in row {missing[0]}; drop them"
        )
    labels = check_array(y, ensure_2d=False, dtype=None, input_name="y", ensure_min_samples=0)
    check_classification_targets(labels)
    return labels if labels.ndim == 2 and labels.shape[1] > 1 else column_or_1d(labels, warn=True)


def weights_of(sample_weight: Any, texts: list[str]) -> Any:
    """Return a weight per text (N,). Weights that are all zero are an error; `TextDataset` checks each."""
    weights = column_or_1d(check_array(sample_weight, ensure_2d=False, input_name="sample_weight"))
    check_consistent_length(texts, weights)
    if not weights.any():
        raise ValueError("every sample weight is zero, so no text would be learned from; give one that is not")
    return weights


def seed_of(random_state: Any) -> int:
    """Return the seed that a `random_state` stands for: an integer itself, else a number drawn from it.

    Example:
        >>> seed_of(7), seed_of(np.random.RandomState(7)) == seed_of(np.random.RandomState(7))
        (7, True)
    """
    if random_state is None or isinstance(random_state, np.random.RandomState):
        return int(check_random_state(random_state).randint(np.iinfo(np.int32).max))
    return integer("random_state", python_value(random_state), most=LARGEST_SEED)
