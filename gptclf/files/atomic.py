"""Atomic writes: a reader, an interrupted save and two saves at once each find files of one save, all old or all new.

A save of several files writes them into a folder of its own, inside the target, and renames that folder to
`.gptclf-save` once all are complete and on the disk. This one rename is the save. Moving the files to their places only
completes it, which the next reader or writer does if the process was killed meanwhile.
"""

import errno
import glob
import os
import shutil
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from gptclf.files.access import explained, user_name

T = TypeVar("T")

# A save takes seconds to minutes, so a temporary file this old was left by a process that died.
_ABANDONED_SECONDS = 3600

# A complete save whose files are not in their places yet, and the suffix of an empty file that says: delete this name.
_PENDING = ".gptclf-save"
_DELETE = ".delete"

# Readings of a folder that is saved over and over, and the seconds between two.
_ATTEMPTS, _PAUSE = 100, 0.02

# Writes one file at the given path.
Writer = Callable[[Path], object]


def text_writer(text: str) -> Writer:
    """Return a writer of UTF-8 text, with Unix line endings on every platform."""
    return lambda path: path.write_text(text, encoding="utf-8", newline="\n")


def remove_abandoned(folder: Path, pattern: str) -> None:
    """Remove the temporary files and folders of saves that were killed at least an hour ago."""
    for path in folder.glob(pattern):
        with suppress(FileNotFoundError):  # another process removes it, or it has just been renamed
            if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def write_file(path: Path, write: Writer, *, durable: bool = True) -> None:
    """Write one file under a temporary name beside `path`, then rename it.

    Args:
        path: The file.
        write: Writes it.
        durable: Whether to wait until it is on the disk; not needed where a lost file is computed again.

    Raises:
        OSError: The file could not be written; an older one is unchanged.
    """
    remove_abandoned(path.parent, f".{glob.escape(path.name)}.*.tmp")
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    with _saving(path.parent):
        try:
            _write(beside, write, durable=durable)
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
        if durable:
            _sync(path.parent)


def write_all(folder: Path, writers: Mapping[str, Writer], *, delete: Collection[str] = ()) -> None:
    """Write the files of one save, and delete others, so that the folder holds the old save or the new one.

    Args:
        folder: The folder; it is made if it does not exist.
        writers: The writer of each file. They are called in this order, and find the files before them beside theirs.
        delete: Names of files to delete, which this save lacks.

    Raises:
        OSError: A file could not be written; the old files are unchanged.
    """
    stage = folder / f"{_PENDING}.{uuid.uuid4().hex}.tmp"
    with _saving(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if taken := [name for name in writers if (folder / name).is_dir()]:
            raise IsADirectoryError(errno.EISDIR, f"{folder / taken[0]} is a folder, in the place of a file")
        remove_abandoned(folder, f"{_PENDING}.*.tmp")
        try:
            stage.mkdir()
            for name, write in writers.items():
                _write(stage / name, write)
            for name in delete:
                (stage / (name + _DELETE)).touch()
            _sync(stage)
            with _locked(folder):
                while stage.exists():
                    _finish(folder)
                    try:
                        stage.rename(folder / _PENDING)
                    except OSError:  # without locks, another process may have saved at this moment
                        if not (folder / _PENDING).exists():
                            raise
                _sync(folder)
                _finish(folder)
        finally:
            shutil.rmtree(stage, ignore_errors=True)


def read_of_one_save(folder: Path, records: Collection[str], read: Callable[[], T]) -> T:
    """Read a folder's files, again if another save came between; first complete a save that was killed.

    Args:
        folder: The folder, or a file, which is simply read.
        records: Names of files one of which is new in every save.
        read: Reads the files.

    Raises:
        OSError: A save that was killed cannot be completed, or the folder is saved over and over.
    """
    for attempt in range(_ATTEMPTS):
        before, pending = _generation(folder, records), (folder / _PENDING).exists()
        try:
            if pending:
                _complete(folder)
                before = _generation(folder, records)
            result = read()
        except (OSError, ValueError):
            # Looked at in this order: a save that ends in between has written another record.
            unsettled = pending or (folder / _PENDING).exists() or before != _generation(folder, records)
            if not unsettled or attempt == _ATTEMPTS - 1:
                raise
        else:
            if before == _generation(folder, records):
                return result
        time.sleep(_PAUSE)
    raise OSError(errno.EBUSY, f"{folder} was saved again each of {_ATTEMPTS} times that it was read; read it later")


def unlock(file: int) -> None:
    """Unlock a file or folder, for children of this process too, which would keep the lock as long as they live."""
    with suppress(ImportError, OSError):
        import fcntl

        fcntl.flock(file, fcntl.LOCK_UN)


def lock(file: int, *, wait: bool = False) -> bool | None:
    """Lock an open file or folder until it is closed or the process ends.

    Returns:
        True if no other process holds the lock; None if the system or the file system does not support locks.
    """
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        return None
    return True


def _complete(folder: Path) -> None:
    """Complete a save that another process was killed in, or that it is just completing."""
    try:
        with _locked(folder):
            _finish(folder)
    except OSError as error:
        found = explained(error, folder / _PENDING, "moved to its place")
        problem = f"a save into {folder} was interrupted, and completing it failed: {found.strerror}"
        raise OSError(found.errno, f"{problem}. Load it once as a user who may write there") from error


def _finish(folder: Path) -> None:
    """Move the files of a complete save to their places."""
    pending = folder / _PENDING
    for path in sorted(pending.glob("*")):
        with suppress(FileNotFoundError):  # without locks, another process may have moved it
            if path.name.endswith(_DELETE):
                (folder / path.name.removesuffix(_DELETE)).unlink(missing_ok=True)
                path.unlink()
            else:
                path.replace(folder / path.name)
    with suppress(FileNotFoundError):
        pending.rmdir()


def _generation(folder: Path, records: Collection[str]) -> tuple[object, ...]:
    """Return what differs between any two moments with a save, or a part of one, between them."""
    found: list[object] = []
    for name in records:
        with suppress(OSError):
            status = (folder / name).stat()
            found += [name, status.st_ino, status.st_mtime_ns, status.st_size]
    return (*found, *sorted(path.name for path in (folder / _PENDING).glob("*")))


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Wait for other saves into a folder, and keep others waiting; without effect where there are no locks."""
    file = -1
    with suppress(OSError):  # Windows cannot open a folder
        file = os.open(folder, os.O_RDONLY)
        lock(file, wait=True)
    try:
        yield
    finally:
        if file >= 0:
            unlock(file)
            os.close(file)


@contextmanager
def _saving(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        who = f" by the user {user_name()}" if isinstance(error, PermissionError) else ""
        problem = f"could not save to {folder}{who} ({error}); the old files are all unchanged, or all replaced"
        remedy = "Free some space or choose another folder, and save again: the model in memory is intact"
        raise OSError(error.errno or errno.EIO, f"{problem}. {remedy}") from error


def _write(path: Path, write: Writer, *, durable: bool = True) -> None:
    """Write a file that has the mode of any new file here, whatever the mode that its writer gives."""
    path.touch()
    mode = path.stat().st_mode
    write(path)
    path.chmod(mode)
    if durable:
        _sync(path)


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk, where the system can say so."""
    with suppress(OSError):
        file = os.open(path, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)
