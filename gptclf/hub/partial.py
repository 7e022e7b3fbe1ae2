"""Partial downloads: written next to the target by one process, and resumed by another if interrupted."""

import errno
import glob
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from gptclf.files.atomic import lock

# On systems without file locks, a partial file not modified for this long counts as abandoned.
ABANDONED_SECONDS = 3600
FULL = (errno.ENOSPC, errno.EDQUOT)


def size_of(path: Path) -> int:
    """Return the size of a file in bytes; 0 if it does not exist."""
    try:
        return path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):  # no exists() before: another process may rename it in between
        return 0


def replace(source: Path, target: Path) -> None:
    """Rename `source` to `target`; if that fails and `target` exists, keep it and delete `source`."""
    try:
        source.replace(target)
    except (PermissionError, FileNotFoundError):
        # On Windows another process may hold the same target open; elsewhere one may have taken over our file.
        if not target.is_file():
            raise
    source.unlink(missing_ok=True)


@contextmanager
def writing(what: str, folder: Path, elsewhere: str, size: int | None = None) -> Iterator[None]:
    """Add the file's name and a remedy to file system errors (those with an errno).

    Args:
        what: The name of the file in messages.
        folder: The folder it is written to.
        elsewhere: How to choose another folder, as the end of a sentence.
        size: The bytes it needs, if known.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        if error.errno in FULL:
            needs = "more room than there is" if size is None else f"{size} bytes"
            problem = f"The disk or quota is full: {what} needs {needs} in {folder}. Free some"
        else:
            problem = f"Could not write {what} in {folder} ({error}). Remove what is in the way or make it writable"
        raise OSError(error.errno, f"{problem}, or {elsewhere}") from error


@contextmanager
def claimed(target: Path, version: str = "") -> Iterator[Path]:
    """Give this call exclusive use of a partial file next to `target`, resuming one that an interrupted call left.

    After an error the partial file is kept for the next call, unless the disk is full.

    Args:
        target: The path of the complete file; the caller renames the partial file to it.
        version: Identifies the file version; a partial download is resumed only if its version matches.
    """
    name = f"{target.name}{version}"
    left_over = target.with_name(f"{name}.incomplete")
    # Twelve characters, because huggingface_hub uses eight: its own partial files must not be taken over.
    partial = target.with_name(f"{name}.{uuid.uuid4().hex[:12]}.incomplete")
    in_flight = list(target.parent.glob(f"{glob.escape(name)}.{'?' * 12}.incomplete"))
    # Renaming is atomic: if several processes want the same partial file, one gets it and the others start anew.
    for found in sorted([left_over, *in_flight], key=size_of, reverse=True):
        with suppress(OSError):
            if found == left_over or _is_abandoned(found):
                found.rename(partial)
                break
    try:
        with ExitStack() as open_files:
            if os.name != "nt":  # Windows cannot rename an open file
                lock(open_files.enter_context(partial.open("ab")).fileno())
            yield partial
    except OSError as error:
        if error.errno in FULL:
            partial.unlink(missing_ok=True)
        raise
    finally:
        with suppress(OSError):
            if size_of(partial):
                partial.replace(left_over)
            partial.unlink(missing_ok=True)
    for found in in_flight:
        with suppress(OSError):
            if _is_abandoned(found):
                found.unlink()


def _is_abandoned(path: Path) -> bool:
    with path.open("r+b") as file:
        locked = lock(file.fileno())
    return time.time() - path.stat().st_mtime > ABANDONED_SECONDS if locked is None else locked
