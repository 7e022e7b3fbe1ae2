"""Labels of any hashable kind: checked, turned into column numbers, and saved with their types."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from itertools import islice
from numbers import Number
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptclf.checks import is_iterable, is_missing, number, python_value

logger = logging.getLogger(__name__)

# From so many rows on, labels that mostly occur once are probably another column.
_MANY = 20

_NAME_THE_TASK = (
    "For several labels per text or a table of 0 and 1 give task=MultiLabel([...]), for numbers Regression()"
)


def column_values(column: Iterable[Any]) -> list[Any]:
    """Return a column of values as a list of Python values: of Arrow, pandas or polars, an array, or any iterable."""
    for reader in ("to_pylist", "to_list"):
        if callable(read := getattr(column, reader, None)):
            return list(read())
    return [python_value(value) for value in column]


def check_column(values: Any, name: str, n_texts: int | None = None) -> list[Any]:
    """Return a column as a list of Python values, one for each text; `name` is "label", "weight" or "class"."""
    # Iterating over a text gives characters, over a mapping keys, over a set any order, over a table column names.
    several = is_iterable(values) and not isinstance(values, str | bytes | Mapping | set | frozenset)
    if not several or hasattr(values, "columns") or hasattr(values, "column_names"):
        plural = "classes" if name == "class" else f"{name}s"
        problem = f"{plural} is a {type(values).__name__}; it must be a list, or one column"
        raise TypeError(problem + f". {_NAME_THE_TASK}" * (name == "label"))
    column = column_values(values)
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
            advice = f"use strings, numbers or tuples. {_NAME_THE_TASK}"
            raise TypeError(f"{name} {i} is {what}, not hashable; {advice}") from error
        if is_missing(value):
            raise ValueError(f"{name} {i} is missing ({value!r}); leave it out or give it a name")
    return named


def rows_of_labels(labels: Any, classes: Sequence[Any] | None) -> Any:
    """Return a table of labels as a list of its rows, and anything else unchanged.

    The columns of a DataFrame are put into the order of `classes`, if there are classes.

    Raises:
        ValueError: The columns of a DataFrame are not the classes.
    """
    if hasattr(labels, "toarray"):  # a sparse matrix of scipy
        return list(labels.toarray())
    if not hasattr(labels, "columns") or not hasattr(labels, "to_numpy"):
        return labels
    if classes is not None:
        if set(labels.columns) != set(classes) or len(labels.columns) != len(classes):
            problem = f"labels is a {type(labels).__name__} with the columns {list(labels.columns)[:20]!r}"
            raise ValueError(f"{problem}, but the classes are {classes[:20]!r}; name one column after each class")
        labels = labels[list(classes)]
    return list(labels.to_numpy())


def declared_classes(column: Any) -> list[Any] | None:
    """Return the categories of an ordered categorical column of pandas, polars or Arrow, in order; None for others.

    Those that do not occur are among them. An unordered category is only a way to store labels.
    """
    kind: Any = getattr(column, "dtype", getattr(column, "type", None))
    if not (getattr(kind, "ordered", False) or type(kind).__name__ == "Enum"):
        return None
    if hasattr(kind, "categories"):
        return column_values(kind.categories)
    whole = column.unify_dictionaries().combine_chunks() if hasattr(column, "unify_dictionaries") else column
    return column_values(whole.dictionary)


def infer_classes(labels: list[Any], column: Any = None, *, cells: bool = False) -> list[Any]:
    """Return the distinct labels, sorted if they have an order; members of an Enum give all its members.

    Args:
        labels: The labels, one for each text.
        column: The column that they were read from; if it has ordered categories, those are the classes.
        cells: Whether they are the text of cells, as in a .csv file.

    Raises:
        TypeError: Labels are collections, which may be one label each or several.
        ValueError: Labels are measurements, such as 0.25.
    """
    if (declared := declared_classes(column)) is not None:
        return declared
    counts = Counter(check_labels(labels))
    found, once = list(counts), sum(count == 1 for count in counts.values())
    if len(labels) >= _MANY and 2 * once > len(labels):
        logger.warning("%d of %d rows have a label of their own; are text and label swapped?", once, len(labels))
    for label in found:
        if isinstance(label, tuple | frozenset):
            problem = f"label {labels.index(label)} is {label!r}, which may be one label or several"
            raise TypeError(f"{problem}: if it is one, name the labels with classes=[...]. {_NAME_THE_TASK}")
    numbers = [as_number(label) if cells else label for label in found]
    if all(isinstance(number, Number) and not isinstance(number, complex) for number in numbers):
        for label, number in zip(found, numbers, strict=True):
            if number % 1:
                problem = f"label {labels.index(label)} is {label!r}, a measurement rather than a class"
                raise ValueError(f"{problem}; give task=Regression(), or name the classes with classes=[...]")
    kinds = {type(label) for label in found}
    if len(kinds) == 1 and issubclass(kind := kinds.pop(), Enum) and set(found) <= set(kind):
        return list(kind)
    try:
        return sorted(found)
    except TypeError:  # labels of several types have no order other than that of their first appearance
        return found


def as_number(cell: Any) -> Any:
    """Return the number that the text of a cell is, or the cell itself if it is not one."""
    try:
        return float(cell)
    except (TypeError, ValueError):
        return cell


def labels_from_cells(cells: Sequence[Any], classes: Sequence[Any]) -> list[Any]:
    """Return labels read as text, each as the number among the classes that it writes, if no class is that text.

    Example:
        >>> labels_from_cells(["1", "0", "x"], [0, 1])
        [1, 0, 'x']
    """
    numbers = {str(label): label for label in classes if isinstance(label, int | float)}
    for label in classes:
        numbers.pop(label, None)
    return [numbers.get(cell, cell) for cell in cells]


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
        known = (", ".join(map(repr, classes[:10])) or "none") + ", ..." * (len(classes) > 10)
        problem = f"{len(unknown)} label{'s' * (len(unknown) > 1)} not among the classes: {shown}"
        several = f". {_NAME_THE_TASK}" * any(isinstance(label, tuple | frozenset) for label in unknown)
        raise ValueError(f"{problem}. The classes are {known}; 1 and '1' are different labels{several}")
    return np.asarray([index[label] for label in labels], dtype=np.int64)


def exported_labels(problem_type: str, names: Sequence[str]) -> dict[str, Any]:
    """Return what a `transformers` config.json says of a classifier with these labels."""
    return {
        "architectures": ["GPT2ForSequenceClassification"],
        "problem_type": problem_type,
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
    }


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


def check_class_weight(given: Any, classes: Sequence[Any]) -> dict[Any, float] | str | None:
    """Return a weight for each class, in the order of the classes, or None or "balanced" as given.

    Raises:
        TypeError: It is something else, or a weight is not a number.
        ValueError: A weight is negative, or its label is not among the classes.
    """
    if items := getattr(given, "items", None):  # a mapping's, or those of a pandas Series
        weights = {python_value(key): number(f"class_weight[{key!r}]", value) for key, value in items()}
        unknown = [label for label in weights if label not in classes]
        if unknown:
            raise ValueError(f"class_weight names {unknown[0]!r}, not among the classes {list(classes[:10])!r}")
        return {label: weights.get(label, 1.0) for label in classes}
    if given is None or (isinstance(given, str) and given == "balanced"):
        return given
    rule = 'None, "balanced" or a mapping from labels to weights'
    raise TypeError(f"class_weight is {given!r}; it must be {rule}")
