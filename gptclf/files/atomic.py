"""Atomic writes: an interrupted save leaves the previous files intact."""

import errno
import glob
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

# A save takes seconds to minutes, so a temporary file this old was left by a process that died.
_ABANDONED_SECONDS = 3600

# Writes one file at the given path.
Writer = Callable[[Path], object]


def text_writer(text: str) -> Writer:
    """Return a writer of UTF-8 text, with Unix line endings on every platform."""
    return lambda path: path.write_text(text, encoding="utf-8", newline="\n")


def remove_abandoned(folder: Path, pattern: str) -> None:
    """Remove the temporary files of saves that were killed at least an hour ago."""
    for path in folder.glob(pattern):
        if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
            path.unlink(missing_ok=True)


def write_all(folder: Path, writers: Mapping[str, Writer]) -> None:
    """Write every file under a temporary name in `folder`, then rename them all in the given order.

    Raises:
        OSError: A file could not be written; the previous files are unchanged unless renaming had begun.
    """
    beside = {name: folder / f".{name}.{os.getpid()}.tmp" for name in writers}
    for name in writers:
        remove_abandoned(folder, f".{glob.escape(name)}.*.tmp")
    try:
        for name, write in writers.items():
            write(beside[name])
        for name, path in beside.items():
            path.replace(folder / name)
    except OSError as error:
        problem = f"could not save to {folder} ({error}); the old files are unchanged unless renaming had begun"
        remedy = "Free some space or choose another folder, and save again: the model in memory is intact"
        raise OSError(error.errno or errno.EIO, f"{problem}. {remedy}") from error
    finally:
        for path in beside.values():
            path.unlink(missing_ok=True)
