"""Standard error as tests want it."""

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Terminal(io.StringIO):
    """A terminal that remembers what it was sent."""

    def isatty(self) -> bool:
        return True


@contextmanager
def standard_error(stream: Any) -> Iterator[Any]:
    """In the block, standard error is `stream`."""
    before, sys.stderr = sys.stderr, stream
    try:
        yield stream
    finally:
        sys.stderr = before
