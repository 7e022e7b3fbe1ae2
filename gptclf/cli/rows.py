"""Rows of files and of standard input, read one by one with all their columns, and written again with more."""

import codecs
import csv
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from gptclf.checks import path
from gptclf.data.read import DELIMITERS, decoding, json_rows, parquet_file
from gptclf.data.separated import separated_rows
from gptclf.data.tables import SURPLUS
from gptclf.files.access import readable_size
from gptclf.progress import write_line

Row = dict[str, Any]


class Format(NamedTuple):
    """How rows are read.

    Attributes:
        suffix: "lines", "jsonl", "csv", "tsv" or "parquet".
        encoding: The text encoding.
        delimiter: The character between two columns.
        quoted: Whether `"` quotes a field.
        header: Whether the first row names the columns.
        newline: The end of a line.
        bom: Whether the file begins with the mark of UTF-8.
    """

    suffix: str
    encoding: str
    delimiter: str
    quoted: bool
    header: bool
    newline: str = "\n"
    bom: bool = False


class Rows(NamedTuple):
    """Rows that are read as they are asked for.

    Attributes:
        source: Their name in errors.
        names: The names of the columns; of JSON lines, those of the first.
        numbered: The rows, each with the number of its first line, or of itself in a Parquet file.
        format: How they are read.
        size: The number of bytes, or 0 if it is not known.
        position: Returns the number of bytes read, or 0.
        close: Closes the file.
    """

    source: str
    names: list[str]
    numbered: Iterator[tuple[int, Row]]
    format: Format
    size: int
    position: Callable[[], int]
    close: Callable[[], None] = lambda: None


def format_of(
    place: str | None,
    columns: Sequence[str],
    *,
    kind: str | None = None,
    encoding: str,
    delimiter: str | None,
    quoted: bool | None,
    header: bool,
) -> Format:
    """Return how a file is to be read.

    Args:
        place: The file; None is standard input.
        columns: The columns that are wanted. By the delimiter that is not given, the first row has them.
        kind: The format, if the suffix does not say it.
        encoding: The text encoding.
        delimiter: The character between two columns, or None; "tab" is one.
        quoted: Whether `"` quotes a field; None means yes in .csv and no in .tsv.
        header: Whether the first row names the columns.
    """
    suffix = "lines" if place is None else Path(place).suffix.lower().lstrip(".").replace("txt", "lines")
    kind = kind or suffix
    quoted = kind == "csv" if quoted is None else quoted
    default = DELIMITERS.get(f".{kind}", ",")
    if delimiter is None and place is not None and header and f".{kind}" in DELIMITERS:
        delimiter = _guessed(path("data", place), columns, encoding, default, quoted=quoted)
    delimiter = "\t" if delimiter in ("tab", "\\t") else delimiter or default
    begin = b""
    if place is not None and kind in ("csv", "tsv"):
        with path("data", place).open("rb") as file:
            begin = file.readline(1_000_000)
    newline = "\r\n" if begin.endswith(b"\r\n") else "\n"
    return Format(kind, encoding, delimiter, quoted, header, newline, begin.startswith(codecs.BOM_UTF8))


def _guessed(place: Path, columns: Sequence[str], encoding: str, first: str, *, quoted: bool) -> str | None:
    """Return the delimiter by which the first row of a file has the columns, or else the most columns."""
    readable_size(place)
    marks: list[str] = [first, *";\t,|"]
    found, most = None, 1
    for mark in marks:
        # Whether the file can be read with this delimiter is said when it is read.
        with decoding(str(place), encoding), place.open(encoding=encoding, newline="") as file, suppress(ValueError):
            _, names = next(separated_rows(file, mark, quoted=quoted, source=""), (1, []))
            if set(columns) <= set(names):
                return mark
            if len(names) > most:
                found, most = mark, len(names)
    return found


def open_rows(place: str | None, format_: Format) -> Rows:
    """Return the rows of a file, or of standard input if `place` is None.

    Raises:
        OSError: The file cannot be read.
        ValueError: Its format is not known, or its first row cannot be read.
    """
    readers = {"lines": _lines, "jsonl": _objects, "csv": _fields, "tsv": _fields}
    size = 0 if place is None else readable_size(path("data", place))
    if place is not None and format_.suffix not in (*readers, "parquet"):
        raise ValueError(f"{place}: the suffix names the format; it must be .csv, .tsv, .jsonl, .parquet or .txt")
    if place is not None and format_.suffix == "parquet":
        source, file, found = place, None, _table(path("data", place))
    else:
        source = place or "standard input"
        with decoding(source, format_.encoding):
            file = (
                path("data", place).open(encoding=format_.encoding, newline="") if place else _standard_input(format_)
            )
        found = _decoded(readers[format_.suffix](file, source, format_), source, format_.encoding)

    def position() -> int:
        return 0 if file is None or place is None else file.buffer.tell()

    _, names = next(found)
    close = file.close if file is not None and place is not None else lambda: None
    return Rows(source, list(names), found, format_, size, position, close)


# The readers below yield the names of the columns first, as the keys of a row.


def _decoded(found: Iterator[tuple[int, Row]], source: str, encoding: str) -> Iterator[tuple[int, Row]]:
    with decoding(source, encoding):
        yield from found


def _lines(file: TextIO, source: str, format_: Format) -> Iterator[tuple[int, Row]]:
    yield 0, {"text": ""}
    for number, line in enumerate(file, start=1):
        yield number, {"text": line.rstrip("\r\n")}


def _objects(file: TextIO, source: str, format_: Format) -> Iterator[tuple[int, Row]]:
    rows = json_rows(file, source)
    number, first = next(rows, (0, {}))
    yield 0, first
    if number:
        yield number, first
    yield from rows


def _fields(file: TextIO, source: str, format_: Format) -> Iterator[tuple[int, Row]]:
    rows = separated_rows(file, format_.delimiter, quoted=format_.quoted, source=source)
    begin, first = next(rows, (1, []))
    names = _distinct(first) if format_.header else list(map(str, range(len(first))))
    yield 0, dict.fromkeys(names)
    for number, row in rows if format_.header else chain([(begin, first)] * bool(first), rows):
        if len(row) > len(names):
            raise ValueError(
                f"{source}, line {number}: {len(row)} fields, but the first row has {len(names)}; {SURPLUS}"
            )
        yield number, dict(zip(names, row, strict=False))


def _distinct(names: Sequence[str]) -> list[str]:
    """Return names of columns, the second and later ones of a name with a number, as pandas reads them."""
    seen: dict[str, int] = {}
    found = []
    for name in names:
        seen[name] = seen.get(name, -1) + 1
        found.append(f"{name}.{seen[name]}" if seen[name] else name)
    return found


def _table(place: Path) -> Iterator[tuple[int, Row]]:
    with parquet_file(place) as opened:
        yield 0, dict.fromkeys(opened.schema_arrow.names)
        yield from enumerate(chain.from_iterable(batch.to_pylist() for batch in opened.iter_batches(2048)))


def _standard_input(format_: Format) -> TextIO:
    if sys.stdin is None or sys.stdin.closed:
        raise OSError("standard input is closed; give a file")
    if sys.stdin.isatty():
        write_line("gptclf: reading from the terminal; Ctrl-D on a line of its own ends")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding=format_.encoding, errors="strict", newline="")
    return sys.stdin


def row_writer(file: TextIO, kind: str, names: Sequence[str], read: Format) -> Callable[[Iterable[Row]], None]:
    """Return a function that writes rows.

    Args:
        file: Where to.
        kind: "jsonl", "csv" or "tsv".
        names: The columns of a .csv or .tsv file, whose first line they become.
        read: How the rows were read; a file of the same kind is written alike.
    """
    if kind == "jsonl":
        return lambda rows: file.writelines(f"{json.dumps(row, ensure_ascii=False, default=str)}\n" for row in rows)
    alike = kind == read.suffix
    raw: dict[str, Any] = {"quoting": csv.QUOTE_NONE, "quotechar": None} if alike and not read.quoted else {}
    delimiter = read.delimiter if alike else DELIMITERS[f".{kind}"]
    file.write("\ufeff" * (alike and read.bom))
    newline = read.newline if alike else "\n"
    writer = csv.DictWriter(file, names, restval="", delimiter=delimiter, lineterminator=newline, **raw)
    writer.writeheader()

    def write(rows: Iterable[Row]) -> None:
        try:
            writer.writerows(map(_cells, rows))
        except csv.Error as error:
            raise ValueError(f"a value cannot be written as .{kind} ({error}); give an --out of .jsonl") from error

    return write


def _cells(row: Mapping[str, Any]) -> Row:
    """Return a row with lists and objects as JSON."""
    return {name: json.dumps(value) if isinstance(value, list | dict) else value for name, value in row.items()}
