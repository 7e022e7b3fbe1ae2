"""Labels of any hashable kind: checked, named, and turned into column numbers."""

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray


def check_labels(labels: Iterable[Any], n_texts: int) -> list[Any]:
    """The labels as plain Python values, one for each text, none missing and all hashable."""
    named = _check_each(labels, "label")
    if len(named) != n_texts:
        raise ValueError(f"{n_texts} texts but {len(named)} labels; every text needs one label")
    return named


def check_classes(classes: Iterable[Any]) -> list[Any]:
    """The classes as plain Python values in their order, none missing, all hashable."""
    return _check_each(classes, "class")


def _check_each(values: Any, name: str) -> list[Any]:
    # A text would fall into characters, a dictionary into keys, a set into any order, a table into column names.
    several = isinstance(values, Iterable) and not isinstance(values, str | bytes | Mapping | set | frozenset)
    if not several or hasattr(values, "columns"):
        plural = "classes" if name == "class" else "labels"
        raise TypeError(f"{plural} is a {type(values).__name__}; it must be a list, or one column")
    named = [plain(value) for value in values]
    for i, value in enumerate(named):
        try:
            hash(value)
        except TypeError as error:
            raise TypeError(
                f"{name} {i} is {value!r} ({type(value).__name__}), which is not hashable; "
                "use strings, numbers or tuples"
            ) from error
        if _is_missing(value):
            raise ValueError(f"{name} {i} is missing ({value!r}); leave it out or give it a name")
    return named


def plain(label: Any) -> Any:
    """The Python value of a numpy or torch scalar, so that labels compare and save alike wherever they are from."""
    return label.item() if isinstance(label, np.generic) or type(label).__module__ == "torch" else label


def _is_missing(label: Any) -> bool:
    try:
        return label is None or bool(label != label)  # NaN and NaT differ from themselves
    except (TypeError, ValueError):  # pandas.NA has no truth value
        return True


def infer_classes(labels: list[Any]) -> list[Any]:
    """The distinct labels, sorted where they have an order."""
    found = list(dict.fromkeys(labels))
    try:
        return sorted(found)
    except TypeError:  # labels of several kinds have no order but that of their first appearance
        return found


def index_labels(labels: list[Any], classes: list[Any]) -> NDArray[np.int64]:
    """Each label's place among the classes; one that is not among them is an error that names it and its row."""
    index = {label: i for i, label in enumerate(classes)}
    if len(index) < len(classes):
        raise ValueError(f"classes holds a label twice: {classes[:20]!r}; each class needs its own label")
    unknown = {label: i for i, label in enumerate(labels) if label not in index}
    if unknown:
        shown = ", ".join(f"{label!r} (row {i})" for label, i in islice(unknown.items(), 5))
        known = ", ".join(map(repr, classes[:10])) + (", ..." if len(classes) > 10 else "")
        raise ValueError(
            f"{len(unknown)} label{'s' * (len(unknown) > 1)} not among the classes: {shown}. The classes are "
            f"{known}; 1 and '1' are different labels"
        )
    return np.asarray([index[label] for label in labels], dtype=np.int64)
