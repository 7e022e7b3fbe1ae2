"""Labels of any hashable kind: checked, turned into column numbers, and saved with their types."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptclf.checks import is_iterable, python_value

logger = logging.getLogger(__name__)


def check_column(values: Any, name: str, n_texts: int | None = None) -> list[Any]:
    """Return a column as a list of Python values, one for each text; `name` is "label", "weight" or "class"."""
    # Iterating over a text gives characters, over a mapping keys, over a set any order, over a table column names.
    several = is_iterable(values) and not isinstance(values, str | bytes | Mapping | set | frozenset)
    if not several or hasattr(values, "columns"):
        plural = "classes" if name == "class" else f"{name}s"
        raise TypeError(f"{plural} is a {type(values).__name__}; it must be a list, or one column")
    column = [python_value(value) for value in values]
    if n_texts not in (None, len(column)):
        raise ValueError(f"{n_texts} texts but {len(column)} {name}s; every text needs one {name}")
    return column


def check_labels(labels: Iterable[Any], name: str = "label") -> list[Any]:
    """Return labels (or classes) as plain Python values in their order, none missing and all hashable."""
    named = check_column(labels, name)
    for i, value in enumerate(named):
        try:
            hash(value)
        except TypeError as error:
            what = f"{value!r} ({type(value).__name__})"
            raise TypeError(f"{name} {i} is {what}, not hashable; use strings, numbers or tuples") from error
        if _is_missing(value):
            raise ValueError(f"{name} {i} is missing ({value!r}); leave it out or give it a name")
    return named


def _is_missing(label: Any) -> bool:
    try:
        return label is None or bool(label != label)  # NaN and NaT differ from themselves
    except (TypeError, ValueError):  # pandas.NA has no truth value
        return True


def infer_classes(labels: list[Any]) -> list[Any]:
    """Return the distinct labels, sorted if they have an order."""
    found = list(dict.fromkeys(labels))
    try:
        return sorted(found)
    except TypeError:  # labels of several types have no order other than that of their first appearance
        return found


def check_classes(classes: Iterable[Any]) -> list[Any]:
    """Return classes as a list of distinct labels."""
    found = check_labels(classes, "class")
    if len(set(found)) < len(found):
        raise ValueError(f"classes holds a label twice: {found[:20]!r}; each class needs its own label")
    return found


def distinct_names(classes: list[Any]) -> list[str]:
    """Return the classes as distinct strings: their repr if two of them look alike."""
    names = [str(label) for label in classes]
    return names if len(set(names)) == len(names) else [repr(label) for label in classes]


def class_lines(classes: list[Any], scores: Mapping[str, NDArray[Any]]) -> list[str]:
    """Return a line of a report for each class, with its precision, recall, F1 and number of rows."""
    line = "  {:<{}}  precision {:.3f}  recall {:.3f}  f1 {:.3f}  n {:,}"
    width = max(len(str(label)) for label in classes)
    return [line.format(str(label), width, *of) for label, *of in zip(classes, *scores.values(), strict=True)]


def check_writable(classes: list[Any]) -> None:
    """Raise if two labels would become the same in a saved folder; log labels that will be saved as text."""
    saved: dict[str, Any] = {}
    for label, written in ((label, label_to_json(label)) for label in classes):
        other = saved.setdefault(repr(written), label)
        if other is not label:
            problem = f"the labels {other!r} and {label!r} would both be saved as {written!r}"
            raise ValueError(f"{problem}; train with labels that are strings, numbers or tuples")
        if isinstance(written, str) and not isinstance(label, str):
            logger.warning("label %r (%s) is saved as the text %r", label, type(label).__name__, written)


def index_labels(labels: list[Any], classes: list[Any], rows: Sequence[int] | None = None) -> NDArray[np.int64]:
    """Return each label's position among the classes; an unknown label is an error that names it and its row.

    `rows` are the row numbers of the labels if a row may have several.
    """
    index = {label: i for i, label in enumerate(classes)}
    unknown = {label: i if rows is None else rows[i] for i, label in enumerate(labels) if label not in index}
    if unknown:
        shown = ", ".join(f"{label!r} (row {i})" for label, i in islice(unknown.items(), 5))
        known = ", ".join(map(repr, classes[:10])) + ", ..." * (len(classes) > 10)
        problem = f"{len(unknown)} label{'s' * (len(unknown) > 1)} not among the classes: {shown}"
        raise ValueError(f"{problem}. The classes are {known}; 1 and '1' are different labels")
    return np.asarray([index[label] for label in labels], dtype=np.int64)


def label_to_json(label: Any) -> Any:
    """Return a label with its type: JSON's own kinds as they are, a tuple as {"tuple": [...]}, others as text."""
    if isinstance(label, tuple):
        return {"tuple": [label_to_json(part) for part in label]}
    return label if isinstance(label, str | bool | int | float) else str(label)


def label_from_json(value: Any) -> Any:
    """Return the label that `label_to_json` wrote."""
    if isinstance(value, dict) and isinstance(value.get("tuple"), list):
        return tuple(label_from_json(part) for part in value["tuple"])
    if not isinstance(value, str | bool | int | float):
        raise ValueError(f"a label is {value!r}, not a text, a number or a tuple of them")
    return value
