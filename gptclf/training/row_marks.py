"""Marks of the rows of a data set: whether a resumed run has the same ones, and which is the first to differ."""

import base64
import hashlib
import zlib

import numpy as np

from gptclf.data.batches import TokenRows
from gptclf.data.windows import TextWindows
from gptclf.tasks import Task

_MOST = 1_000_000  # rows with a mark of their own, as all marks are in the head of each state


def digest_of_rows(rows: TokenRows, task: Task) -> str:
    """Return a SHA-256 of all rows and their targets."""
    digest = hashlib.sha256()
    for part in (rows.ids.tobytes(), rows.offsets.tobytes(), _targets(rows, task)):
        digest.update(part)
    return digest.hexdigest()


def marks_of_rows(rows: TokenRows, task: Task) -> str:
    """Return a CRC-32 of each row and its target, as text."""
    n = min(len(rows), _MOST)
    targets = [b""] * n if isinstance(rows, TextWindows) else [target.tobytes() for target in rows.targets(task)[:n]]
    marks = [zlib.crc32(ids.tobytes(), zlib.crc32(target)) for ids, target in zip(rows.rows(), targets, strict=False)]
    return base64.b64encode(np.array(marks, dtype="<u4").tobytes()).decode("ascii")


def first_difference(before: str, after: str) -> str:
    """Say which row is the first that differs between the marks of two data sets.

    Example:
        >>> first_difference("AAAAAAEAAAA=", "AAAAAAIAAAA=")
        'row 1 is the first that differs'
    """
    one, other = (np.frombuffer(base64.b64decode(marks), dtype="<u4") for marks in (before, after))
    n = min(len(one), len(other))
    differing = np.flatnonzero(one[:n] != other[:n])
    return f"row {differing[0]} is the first that differs" if len(differing) else f"the first {n} are the same"


def _targets(rows: TokenRows, task: Task) -> bytes:
    # The targets of windows are their own tokens, many times over.
    return str(rows.length).encode() if isinstance(rows, TextWindows) else rows.targets(task).tobytes()
