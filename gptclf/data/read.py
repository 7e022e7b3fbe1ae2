"""Columns of texts and labels out of files and tables. Knows nothing of tokens."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_SEPARATORS = {".csv": ",", ".tsv": "\t"}


def read_file(
    path: Path, text: str | int, label: str | int | None, *, encoding: str, quoted: bool | None
) -> tuple[list[str], list[Any] | None]:
    """Texts and labels of a .csv, .tsv or .jsonl file; see `TextDataset.from_file`."""
    suffix = path.suffix.lower()
    if suffix not in (*_SEPARATORS, ".jsonl"):
        raise ValueError(f"{path}: the suffix names the format; it must be .csv, .tsv or .jsonl")
    columns = [text] if label is None else [text, label]
    if len({type(column) for column in columns}) > 1:
        raise TypeError(f"text={text!r} and label={label!r} must both be column names or both be positions")
    try:
        if suffix == ".jsonl":
            rows = list(_json_rows(path, columns, encoding))
        else:
            quoted = suffix == ".csv" if quoted is None else quoted
            rows = list(_separated_rows(path, columns, encoding, _SEPARATORS[suffix], quoted))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not {error.encoding} ({error.reason} at byte {error.start}); give its encoding="
        ) from error
    return [row[0] for row in rows], None if label is None else [row[1] for row in rows]


def _json_rows(path: Path, columns: list[Any], encoding: str) -> Iterator[list[Any]]:
    with path.open(encoding=encoding) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: not JSON ({error})") from error
            missing = [key for key in columns if not isinstance(record, dict) or key not in record]
            if missing:
                found = list(record) if isinstance(record, dict) else type(record).__name__
                raise ValueError(f"{path}, line {number}: no {missing[0]!r}; found {found}")
            yield [record[key] for key in columns]


def _separated_rows(path: Path, columns: list[Any], encoding: str, separator: str, quoted: bool) -> Iterator[list[str]]:
    limit = csv.field_size_limit()
    # The module's limit of 131,072 characters a field is for all readers of the process; put back below.
    csv.field_size_limit(2**31 - 1)
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
                    raise ValueError(
                        f"{path} has no column {missing[0]!r}; its first row is {header}. Name the columns with "
                        "text= and label=, or give their positions (0, 1, ...) if there is no header"
                    )
                places = [header.index(name) for name in columns]
            for row in reader:
                if not row:
                    continue
                if len(row) <= max(places):
                    raise ValueError(
                        f"{path}, line {reader.line_num}: {len(row)} columns, but column {max(places)} is needed"
                    )
                yield [row[place] for place in places]
    except csv.Error as error:
        raise ValueError(f'{path}: {error}; if " is ordinary text there, give quoted=False') from error
    finally:
        csv.field_size_limit(limit)


def read_table(table: Any, text: str, label: str | None) -> tuple[list[str], list[Any] | None, list[str] | None]:
    """Texts, labels and the names of a ClassLabel column; see `TextDataset.from_table`."""
    texts = _column(table, text)
    if label is None:
        return texts, None, None
    labels = _column(table, label)
    # Hugging Face `datasets` is no dependency, so its ClassLabel is known by what it offers.
    names = getattr((getattr(table, "features", None) or {}).get(label), "names", None)
    if names is None:
        return texts, labels, None
    bad = [i for i, value in enumerate(labels) if value is None or value < 0]
    if bad:
        raise ValueError(f"row {bad[0]} of column {label!r} has no label ({labels[bad[0]]!r}); drop such rows")
    return texts, [names[value] for value in labels], list(names)


def _column(table: Any, name: str) -> list[Any]:
    columns = getattr(table, "column_names", None)
    if isinstance(columns, dict):  # a datasets.DatasetDict
        raise ValueError(f"the table holds several splits; pick one: table[{next(iter(columns), 'train')!r}]")
    columns = list(table) if columns is None else columns
    try:
        return list(table[name])
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise ValueError(f"the table has no column {name!r}; it has {columns[:20]}") from error
