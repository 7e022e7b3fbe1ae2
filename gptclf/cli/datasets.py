"""Data sets from files, as the flags describe them."""

import difflib
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from gptclf.checks import path
from gptclf.cli.rows import Rows, format_of, open_rows
from gptclf.data.dataset import TextDataset
from gptclf.data.read import DELIMITERS


def rows_of(args: Namespace, place: str | None, kind: str | None = None, flags: Sequence[str] = ("text",)) -> Rows:
    """Return the rows of a file that has the columns of the flags, or of standard input if `place` is None or -."""
    place = None if place == "-" else place
    columns = {getattr(args, flag): flag for flag in flags}
    rows = open_rows(place, format_of(place, list(columns), kind=kind, **_separated(args)))
    for column, flag in columns.items():
        if rows.names and column not in rows.names:
            near = difflib.get_close_matches(column, rows.names, 1)
            said = f"it has {rows.names[:20]}{f'; did you mean {near[0]!r}?' if near else ''}"
            raise ValueError(f"{rows.source} has no column {column!r}; {said} Name one with --{flag}")
    return rows


def check_columns(args: Namespace, file: str, flags: Sequence[str]) -> None:
    """Raise before the work if a file's first row lacks a column of the flags; JSON lines may lack some of them."""
    if path("data", file).suffix.lower() in (*DELIMITERS, ".parquet"):
        rows_of(args, file, flags=flags).close()


def read_dataset(args: Namespace, file: str, *, weights: str | None = None, **options: Any) -> TextDataset:
    """Return the labelled rows of a file.

    Args:
        args: The flags.
        file: The file.
        weights: The column of weights, or None.
        **options: Options of `TextDataset`.

    Raises:
        OSError: The file cannot be read.
        TypeError, ValueError: It lacks a column, or a row is not allowed.
    """
    columns = {"text": args.text, "label": args.label, "weights": weights}
    separated = {}
    if path("data", file).suffix.lower() in DELIMITERS:
        found = format_of(file, [name for name in columns.values() if name is not None], **_separated(args))
        separated = {"delimiter": found.delimiter, "quoted": found.quoted}
    if not args.header:
        columns = {name: _position(name, column) for name, column in columns.items()}
    options |= {"drop_missing": args.drop_missing, "encoding": args.encoding, **separated}
    return TextDataset.from_file(file, **columns, **options)


def _separated(args: Namespace) -> dict[str, Any]:
    return {name: getattr(args, name) for name in ("encoding", "delimiter", "quoted", "header")}


def _position(name: str, column: str | None) -> Any:
    if column is not None and not column.isdecimal():
        raise ValueError(f"{name} is {column!r}; without a header it must be a position: 0, 1, ...")
    return None if column is None else int(column)
