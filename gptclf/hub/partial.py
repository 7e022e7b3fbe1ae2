"""A file on its way: written beside its place by one process alone, and left to the next one if that was cut off."""

import errno
import glob
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

# Where no lock tells whether a process still writes a file: untouched for so long, it is taken to be abandoned.
ABANDONED_SECONDS = 3600
FULL = (errno.ENOSPC, errno.EDQUOT)


def size_of(path: Path) -> int:
    """The file's bytes; 0 if there is none."""
    return path.stat().st_size if path.exists() else 0


def replace(source: Path, target: Path) -> None:
    """Rename over `target`, or drop `source` where another process was first."""
    try:
        source.replace(target)
    except (PermissionError, FileNotFoundError):
        # Windows, where another process has made the same file and holds it open; or one has taken over ours.
        if not target.is_file():
            raise
    source.unlink(missing_ok=True)


def refuse_directory(path: Path) -> None:
    """Raise IsADirectoryError if a directory lies where a file shall be."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))


@contextmanager
def writing(what: str, folder: Path, elsewhere: str, size: int | None = None) -> Iterator[None]:
    """Say of the file system's errors, which have an errno, what was being written and what to do.

    Args:
        what: The file, as messages name it.
        folder: Where it goes.
        elsewhere: How to choose another place: the end of a sentence.
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
            problem = f"Could not write {what} in {folder} ({error}). Clear the way or get the right to write there"
        raise OSError(error.errno, f"{problem}, or {elsewhere}") from error


@contextmanager
def claimed(target: Path, version: str = "") -> Iterator[Path]:
    """A file beside `target` for this call alone, which begins with what an earlier, interrupted one left.

    What is left after an error stays for the next call, but for a full disk, where room is wanted more.

    Args:
        target: Where the whole file will go; renaming the partial file there is the caller's.
        version: Tells contents apart that the same target might get: only a part of the same one is gone on with.
    """
    name = f"{target.name}{version}"
    left_over = target.with_name(f"{name}.incomplete")
    # Twelve characters, where huggingface_hub puts eight: what it is writing must not be taken from it.
    partial = target.with_name(f"{name}.{uuid.uuid4().hex[:12]}.incomplete")
    in_flight = list(target.parent.glob(f"{glob.escape(name)}.{'?' * 12}.incomplete"))
    # Renaming is atomic: of processes that want the same left-over one gets it, and the others begin anew.
    for found in sorted([left_over, *in_flight], key=size_of, reverse=True):
        with suppress(OSError):
            if found == left_over or _is_abandoned(found):
                found.rename(partial)
                break
    try:
        with ExitStack() as open_files:
            if os.name != "nt":  # Windows renames no open file
                _lock(open_files.enter_context(partial.open("ab")))
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
        locked = _lock(file)
    return time.time() - path.stat().st_mtime > ABANDONED_SECONDS if locked is None else locked


def _lock(file: IO[bytes]) -> bool | None:
    """Mark an open file as a living process's, until it is closed or the process ends.

    Returns:
        Whether no other process has marked it; None where the system or its file system has no such marks.
    """
    try:
        import fcntl
    except ImportError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
