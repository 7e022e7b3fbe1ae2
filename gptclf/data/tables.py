"""Columns of tables in memory and of streams of rows, read in one pass."""

import csv
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gptclf.checks import python_value
from gptclf.data.columns import Columns

_PARTS = ("texts", "labels", "weights")

SURPLUS = 'put " around a text that holds the delimiter, or name the delimiter= of the columns'


def columns_named(text: Any, label: Any, weights: Any) -> dict[str, Any]:
    """Return the parts of `Columns` that are read, each with the column that holds it.

    Raises:
        TypeError: An argument names several columns, or `text` names none.
    """
    given = {"text": text, "label": label, "weights": weights}
    for name, column in given.items():
        if not isinstance(column, Hashable) or (name == "text" and column is None):
            advice = "join the columns into one first, or give TextDataset(texts, labels, task=...) several of labels"
            raise TypeError(f"{name} is {column!r}; it must name one column: {advice}")
    return {part: column for part, column in zip(_PARTS, given.values(), strict=True) if column is not None}


def check_names(wanted: Iterable[Any], names: Sequence[Any], source: str, advice: str = "") -> None:
    """Raise a ValueError if a table lacks one of the columns that are wanted, or has several of that name."""
    for column in wanted:
        count = list(names).count(column)
        found = f"it has {list(names)[:20]}"
        if not count:
            raise ValueError(
                f"{source} has no column {column!r}; {found}: name others with text=, label= and weights={advice}"
            )
        if count > 1:
            raise ValueError(f"{source} has {count} columns {column!r}; {found}: rename all but one")


def read_table(table: Any, text: Any, label: Any, weights: Any) -> Columns:
    """Take columns of a table or a stream of rows; see `TextDataset.from_table`."""
    wanted, source = columns_named(text, label, weights), f"the {type(table).__name__}"
    if isinstance(table, str | bytes | Path):
        raise TypeError(f"table is {table!r}; to read a file call TextDataset.from_file(path, ...)")
    names, features = getattr(table, "column_names", None), getattr(table, "features", None)
    if isinstance(names, dict):  # a datasets.DatasetDict
        raise ValueError(f"{source} holds several splits; pick one: table[{next(iter(names), 'train')!r}]")
    if not hasattr(table, "features"):
        if hasattr(table, "collect"):  # a LazyFrame of polars
            table = table.collect()
        names = _column_names(table)
        if names is not None:
            check_names(wanted.values(), names, source)
            return Columns(**{part: table[column] for part, column in wanted.items()}, source=source)
    if not isinstance(table, Iterable):
        rule = "a DataFrame, an Arrow table, a datasets.Dataset, a mapping of columns, or mappings one by one"
        raise TypeError(f"table is a {type(table).__name__}; it must be {rule}")
    found = columns_of_rows(table, wanted, source)
    # Hugging Face `datasets` is not a dependency, so its ClassLabel, alone or in a list, is known by its attributes.
    feature = (features or {}).get(label)
    classes = getattr(getattr(feature, "feature", feature), "names", None)
    if classes is not None and "labels" in found:
        found |= {"labels": [_class_name(value, classes) for value in found["labels"]], "classes": list(classes)}
    return Columns(**found, source=source, cells=isinstance(table, csv.DictReader))


def _class_name(value: Any, classes: Sequence[str]) -> Any:
    """Return the name of a class given by its number, or a list of those of several; -1 marks a missing label."""
    value = python_value(value)
    if isinstance(value, list | tuple | np.ndarray):
        return [_class_name(one, classes) for one in value]
    if not isinstance(value, int):
        return value
    return None if value == -1 else classes[value]


def _column_names(table: Any) -> list[Any] | None:
    """Return the names of a table's columns, or None if it is a series of rows."""
    if isinstance(table, Mapping):
        return list(table)
    for name in ("column_names", "columns"):  # in this order: the columns of an Arrow table are not names
        if (names := getattr(table, name, None)) is not None:
            return list(names)
    names = getattr(getattr(table, "dtype", None), "names", None)  # of a structured array
    return None if names is None else list(names)


def columns_of_rows(rows: Iterable[Any], wanted: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return the columns of rows that are mappings, read once; a key that a row lacks is a missing value.

    Args:
        rows: The rows.
        wanted: The key of each part.
        source: The source's name in errors.
    """
    columns: dict[str, list[Any]] = {part: [] for part in wanted}
    seen: set[Any] = set()
    first: list[Any] = []
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            rule = "each row must be a mapping from column names to values"
            raise TypeError(f"{source}: row {number} is {row!r:.100} ({type(row).__name__}); {rule}")
        if None in row:
            raise ValueError(f"{source}: row {number} has the surplus fields {row[None]!r:.100}; {SURPLUS}")
        first = first or list(row)
        for part, column in wanted.items():
            columns[part].append(row.get(column))
            if column in row:
                seen.add(column)
    if columns["texts"]:
        check_names([column for column in wanted.values() if column not in seen], first, source)
    return columns
