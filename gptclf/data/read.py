"""Columns of texts, labels and weights from files, read in one pass and before any tokenizing."""

import codecs
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from gptclf.checks import boolean, instance
from gptclf.data.columns import Columns
from gptclf.data.separated import separated_rows
from gptclf.data.tables import SURPLUS, check_names, columns_of_rows
from gptclf.files.access import readable_size

DELIMITERS = {".csv": ",", ".tsv": "\t"}


def read_file(
    path: Path, wanted: Mapping[str, Any], encoding: str, quoted: bool | None, delimiter: str | None
) -> Columns:
    """Read the columns of a .csv, .tsv, .jsonl or .parquet file; see `TextDataset.from_file`."""
    suffix = path.suffix.lower()
    if suffix not in (*DELIMITERS, ".jsonl", ".parquet"):
        raise ValueError(f"{path}: the suffix names the format; it must be .csv, .tsv, .jsonl or .parquet")
    positions = [not isinstance(column, str) for column in wanted.values()]
    if any(positions) and (suffix not in DELIMITERS or not all(positions)):
        rule = "they must all be names" + " or all be positions" * (suffix in DELIMITERS)
        arguments = {"texts": "text", "labels": "label", "weights": "weights"}
        shown = ", ".join(f"{arguments[part]}={column!r}" for part, column in wanted.items())
        raise TypeError(f"the columns of {path} are {shown}; {rule}")
    if suffix not in DELIMITERS and (delimiter is not None or quoted is not None):
        raise ValueError(f"delimiter= and quoted= are for .csv and .tsv files, not for {path}")
    readable_size(path)
    if suffix == ".parquet":
        return _read_parquet(path, wanted)
    with decoding(str(path), encoding):
        if suffix == ".jsonl":
            return _read_json_lines(path, wanted, encoding)
        quoted = suffix == ".csv" if quoted is None else boolean("quoted", quoted)
        delimiter = DELIMITERS[suffix] if delimiter is None else delimiter
        return _read_separated(path, wanted, encoding, delimiter, quoted=quoted)


@contextmanager
def decoding(source: str, encoding: str) -> Iterator[None]:
    """In the block, text is read from `source`; an encoding that is unknown or not the text's is a ValueError."""
    instance("encoding", encoding, str, "the name of an encoding that Python knows, such as 'utf-8'")
    try:
        codecs.lookup(encoding)
    except (LookupError, ValueError) as error:
        raise ValueError(f"encoding is {encoding!r}, which Python does not know ({error}); such as 'utf-8'") from error
    try:
        yield
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{source} is not {encoding} text ({error}); give its encoding=, such as 'cp1252' or 'utf-16'"
        ) from error


def _read_parquet(path: Path, wanted: Mapping[str, Any]) -> Columns:
    with parquet_file(path) as opened:
        table = opened.read(columns=list(dict.fromkeys(wanted.values())))
    check_names(wanted.values(), opened.schema_arrow.names, str(path))
    return Columns(**{part: table[column] for part, column in wanted.items()}, source=str(path))


@contextmanager
def parquet_file(path: Path) -> Iterator[Any]:
    """Open a Parquet file; in the block, an error of its content is a ValueError that names it."""
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise ImportError("Parquet files need pyarrow: pip install 'gptclf[parquet]'") from error
    with path.open("rb") as file:
        try:
            yield ParquetFile(file, page_checksum_verification=True)
        except (ValueError, OSError) as error:
            raise ValueError(f"{path} cannot be read as Parquet ({error})") from error


def _read_json_lines(path: Path, wanted: Mapping[str, Any], encoding: str) -> Columns:
    lines: list[int] = []

    def records() -> Iterator[dict[str, Any]]:
        with path.open(encoding=encoding) as file:
            for number, record in json_rows(file, str(path)):
                lines.append(number)
                yield record

    return Columns(**columns_of_rows(records(), wanted, str(path)), source=str(path), lines=lines)


def json_rows(lines: Iterable[str], source: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number and the object of each line of JSON; empty lines are left out.

    Args:
        lines: The lines.
        source: Their source's name in errors.

    Raises:
        ValueError: A line is not JSON, or not an object with distinct keys; the error names it.
    """
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line, object_pairs_hook=_unique)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{source}, line {number}: not JSON ({error})") from error
        if not isinstance(record, dict):
            raise ValueError(f"{source}, line {number}: {line.strip():.100} is not an object with keys")
        yield number, record


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} occurs twice")
    return found


def _read_separated(path: Path, wanted: Mapping[str, Any], encoding: str, delimiter: str, *, quoted: bool) -> Columns:
    if not isinstance(delimiter, str) or len(delimiter) != 1 or delimiter in '"\r\n':
        kind = ValueError if isinstance(delimiter, str) else TypeError
        raise kind(f"delimiter is {delimiter!r}; it must be one character, such as ';'")
    named, source = isinstance(wanted["texts"], str), str(path)
    with path.open(encoding=encoding, newline="") as file:
        rows = separated_rows(file, delimiter, quoted=quoted, source=source)
        begin, first = next(rows, (1, []))
        names: list[Any] = first if named else list(range(len(first)))
        if first or named:
            check_names(wanted.values(), names, source, _advice(first, delimiter))
        places = {part: names.index(column) for part, column in wanted.items() if names}
        least = max(places.values()) + 1 if named else len(names)
        columns: dict[str, list[Any]] = {part: [] for part in wanted}
        lines = []
        rows = rows if named or not first else chain([(begin, first)], rows)
        for number, row in rows:
            if not least <= len(row) <= len(names):
                problem = f"{len(row)} fields, but the {'header' if named else 'first row'} has {len(names)}"
                advice = SURPLUS if quoted else f"give quoted=True and {SURPLUS}"
                advice = advice if len(row) > len(names) else "complete the row, or name the delimiter= of the columns"
                raise ValueError(f"{source}, line {number}: {problem}; {advice}. The delimiter is {delimiter!r}")
            lines.append(number)
            for part, place in places.items():
                columns[part].append(row[place])
    return Columns(**columns, source=source, lines=lines, cells=True)


def _advice(first: list[str], delimiter: str) -> str:
    """Return the end of an error about a first row that lacks a column."""
    other = next((mark for mark in ";\t,|" if mark != delimiter and any(mark in name for name in first)), None)
    hint = f". The first row holds {other!r}; if that is the delimiter, give delimiter={other!r}" if other else ""
    return f", or give positions such as text=1 if the first row is not a header{hint}"
