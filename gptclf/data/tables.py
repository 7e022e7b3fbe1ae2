"""Columns of tables in memory and of streams of rows, read in one pass."""

import csv
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gptclf.checks import is_iterable, python_value
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


def read_table(table: Any, wanted: Mapping[str, Any]) -> Columns:
    """Take columns of a table or a stream of rows; see `TextDataset.from_table`."""
    source, kind = f"the {type(table).__name__}", type(table)  # attributes of a DataFrame may be its columns
    if isinstance(table, str | bytes | Path):
        raise TypeError(f"table is {table!r}; to read a file call TextDataset.from_file(path, ...)")
    if hasattr(kind, "collect"):  # a LazyFrame of polars
        table = table.collect()
    names, features = _column_names(table), table.features if hasattr(kind, "features") else None
    if isinstance(names, dict):  # a datasets.DatasetDict
        raise ValueError(f"{source} holds several splits; pick one: table[{next(iter(names), 'train')!r}]")
    if names is not None and not hasattr(kind, "features"):
        check_names(wanted.values(), names, source)
        return Columns(**{part: table[column] for part, column in wanted.items()}, source=source)
    if not isinstance(table, Iterable):
        rule = "a DataFrame, an Arrow table, a datasets.Dataset, a mapping of columns, or mappings one by one"
        raise TypeError(f"table is a {type(table).__name__}; it must be {rule}")
    found = columns_of_rows(table, wanted, source)
    # Hugging Face `datasets` is not a dependency, so its ClassLabel, alone or in a list, is known by its attributes.
    feature = (features or {}).get(wanted.get("labels"))
    classes = getattr(getattr(feature, "feature", feature), "names", None)
    if classes is not None and "labels" in found:
        names = {-1: None, **dict(enumerate(classes))}  # the hub marks a missing label by -1
        found |= {"labels": [_class_name(value, names) for value in found["labels"]], "classes": list(classes)}
    return Columns(**found, source=source, cells=isinstance(table, csv.DictReader))


def _class_name(value: Any, names: Mapping[Any, str | None]) -> Any:
    """Return the name of a class given by its number, or a list of those of several; other values are unchanged."""
    value = python_value(value)
    if isinstance(value, list | tuple | np.ndarray):
        return [_class_name(one, names) for one in value]
    return names.get(value, value)


def _column_names(table: Any) -> Any:
    """Return the names of a table's columns, or None if it is a series of rows."""
    for name in ("column_names", "columns", "keys"):  # in this order: the columns of an Arrow table are not names
        if hasattr(type(table), name):
            names = getattr(table, name)
            return names() if callable(names) else names
    return table.dtype.names if isinstance(table, np.ndarray) else None  # of a structured array


def columns_of_rows(rows: Iterable[Any], wanted: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return the columns of rows that are mappings, read once; a key that a row lacks is a missing value.

    Args:
        rows: The rows.
        wanted: The key of each part.
        source: The source's name in errors.
    """
    if not is_iterable(rows):
        raise TypeError(f"table is {rows!r:.100} ({type(rows).__name__}); it must be a table with columns, or rows")
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
