"""Rows of separated values, as in .csv and .tsv files (RFC 4180).

The csv module refuses fields longer than a limit that holds for the whole process. This reader has none, and knows the
line on which each row begins.
"""

from collections.abc import Iterable, Iterator


def separated_rows(
    lines: Iterable[str], delimiter: str, *, quoted: bool, source: str
) -> Iterator[tuple[int, list[str]]]:
    r"""Yield the number of each row's first line, and the row's fields; empty lines are left out.

    Args:
        lines: The lines with their ends, as a file opened with `newline=""` gives them.
        delimiter: The character between two fields.
        quoted: Whether `"` around a field lets it hold delimiters, line ends and, written twice, `"`.
        source: The source's name in errors.

    Raises:
        ValueError: A quoted field is not closed, or goes on after its closing quote; the error names the line.

    Example:
        >>> list(separated_rows(['text,label\n', '"Hello, you",ham\n'], ",", quoted=True, source="a.csv"))
        [(1, ['text', 'label']), (2, ['Hello, you', 'ham'])]
    """
    numbered = enumerate(lines, start=1)
    for number, line in numbered:
        row = line.rstrip("\r\n")
        if not row:
            continue
        if quoted and '"' in row:
            try:
                yield number, _fields(line, delimiter, numbered)
            except ValueError as error:
                raise ValueError(
                    f'{source}, line {number}: {error}; if " is ordinary text, give quoted=False'
                ) from None
        else:
            yield number, row.split(delimiter)


def _fields(line: str, delimiter: str, following: Iterator[tuple[int, str]]) -> list[str]:
    """Return the fields of a row that begins with `line` and ends there or in a later line."""
    fields, start = [], 0
    while True:
        if line.startswith('"', start):
            field, line, end = _quoted(line, start + 1, following)
        else:
            found = line.find(delimiter, start)
            end = len(line.rstrip("\r\n")) if found < 0 else found
            field = line[start:end]
        fields.append(field)
        if line[end : end + 1] in ("", "\r", "\n"):
            return fields
        if line[end] != delimiter:
            problem = f"{line[end : end + 20]!r} follows the quote that closes a field, instead of {delimiter!r}"
            raise ValueError(f'{problem}; write a " within a quoted field twice')
        start = end + 1


def _quoted(line: str, start: int, following: Iterator[tuple[int, str]]) -> tuple[str, str, int]:
    """Return the quoted field whose text begins at `start`, the line in which it ends, and the place after its end."""
    parts = []
    while True:
        end = line.find('"', start)
        if end < 0:
            parts.append(line[start:])
            line, start = next(following, (0, ""))[1], 0
            if not line:
                raise ValueError("a quote that opens a field is never closed")
        elif line.startswith('"', end + 1):
            parts.append(line[start : end + 1])
            start = end + 2
        else:
            return "".join([*parts, line[start:end]]), line, end + 1
