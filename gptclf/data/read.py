"""Columns of texts, labels and weights from files and tables, before any tokenizing."""

import csv
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from gptclf.files.access import readable_size

# A column of a file: its name in the header, or its position.
Place = str | int

_SEPARATORS = {".csv": ",", ".tsv": "\t"}


class Columns(NamedTuple):
    """The requested columns, each with one value per row, and the class names of a ClassLabel column."""

    texts: list[Any]
    labels: list[Any] | None
    weights: list[Any] | None
    classes: list[str] | None = None


def read_file(
    path: Path, text: Place, label: Place | None, weights: Place | None, *, encoding: str, quoted: bool | None
) -> Columns:
    """Read the columns of a .csv, .tsv or .jsonl file; see `TextDataset.from_file`."""
    suffix = path.suffix.lower()
    if suffix not in (*_SEPARATORS, ".jsonl"):
        raise ValueError(f"{path}: the suffix names the format; it must be .csv, .tsv or .jsonl")
    named = {"text": text, "label": label, "weights": weights}
    wanted = {name: column for name, column in named.items() if column is not None}
    if len(set(map(type, wanted.values()))) > 1:
        raise TypeError(f"the columns are {wanted}; they must all be names or all be positions")
    read = _json_rows if suffix == ".jsonl" else partial(_separated_rows, quoted=quoted)
    readable_size(path)
    try:
        rows = list(read(path, list(wanted.values()), encoding))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not {encoding} text ({error}); give its encoding=") from error
    columns = {name: [row[place] for row in rows] for place, name in enumerate(wanted)}
    numbers = [_number(value, row, path) for row, value in enumerate(columns.get("weights", ()))]
    return Columns(columns["text"], columns.get("label"), None if weights is None else numbers)


def _number(value: Any, row: int, path: Path) -> Any:
    """Return a weight as a number if the file has it as text, as .csv and .tsv do."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        raise ValueError(f"{path}: weight {row} is {value!r}; it must be a number") from None


def _json_rows(path: Path, columns: list[Any], encoding: str) -> Iterator[list[Any]]:
    with path.open(encoding=encoding) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}, line {number}: not JSON ({error})") from error
            missing = [key for key in columns if not isinstance(record, dict) or key not in record]
            if missing:
                found = list(record) if isinstance(record, dict) else type(record).__name__
                raise ValueError(f"{path}, line {number}: no {missing[0]!r}; found {found}")
            yield [record[key] for key in columns]


def _separated_rows(path: Path, columns: list[Any], encoding: str, quoted: bool | None) -> Iterator[list[str]]:
    separator = _SEPARATORS[path.suffix.lower()]
    quoted = separator == "," if quoted is None else quoted
    # The csv module's limit of 131,072 characters per field holds for the whole process; it is restored below.
    limit = csv.field_size_limit(2**31 - 1)
    try:
        with path.open(encoding=encoding, newline="") as file:
            reader = csv.reader(
                file, delimiter=separator, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE, strict=quoted
            )
            places: list[int] = columns
            if isinstance(columns[0], str):
                header = next(reader, [])
                missing = [name for name in columns if name not in header]
                if missing:
                    remedy = "name the columns with text= and label=, or give their positions if there is no header"
                    raise ValueError(f"{path} has no column {missing[0]!r}; its first row is {header}: {remedy}")
                places = [header.index(name) for name in columns]
            last = max(places)
            for row in filter(None, reader):
                if len(row) <= last:
                    raise ValueError(f"{path}, line {reader.line_num}: {len(row)} columns, but column {last} is needed")
                yield [row[place] for place in places]
    except csv.Error as error:
        raise ValueError(f'{path}: {error}; if " is ordinary text there, give quoted=False') from error
    finally:
        csv.field_size_limit(limit)


def read_table(table: Any, text: str, label: str | None, weights: str | None) -> Columns:
    """Take columns of a table; see `TextDataset.from_table`."""
    texts = _column(table, text)
    labels = None if label is None else _column(table, label)
    weight = None if weights is None else _column(table, weights)
    # Hugging Face `datasets` is not a dependency, so its ClassLabel is recognised by its attributes.
    names = getattr((getattr(table, "features", None) or {}).get(label), "names", None)
    if labels is None or names is None:
        return Columns(texts, labels, weight)
    bad = [i for i, value in enumerate(labels) if value is None or value < 0]
    if bad:
        raise ValueError(f"row {bad[0]} of column {label!r} has no label ({labels[bad[0]]!r}); drop such rows")
    return Columns(texts, [names[value] for value in labels], weight, list(names))


def _column(table: Any, name: str) -> list[Any]:
    columns = getattr(table, "column_names", None)
    if isinstance(columns, dict):  # a datasets.DatasetDict
        raise ValueError(f"the table holds several splits; pick one: table[{next(iter(columns), 'train')!r}]")
    columns = list(table) if columns is None else columns
    try:
        return list(table[name])
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise ValueError(f"the table has no column {name!r}; it has {columns[:20]}") from error
