"""Writing a folder's files so that an interruption leaves what was there before."""

import errno
import glob
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

# A save takes seconds to minutes; a half-written file this old has nobody who would finish it.
_ABANDONED_SECONDS = 3600

# Writes one file at the path it is given.
Writer = Callable[[Path], None]


def text_writer(text: str) -> Writer:
    """A writer of UTF-8 text with the same line ends everywhere."""

    def write(path: Path) -> None:
        path.write_text(text, encoding="utf-8", newline="\n")

    return write


def write_all(folder: Path, writers: Mapping[str, Writer]) -> None:
    """Write every file beside its place, then rename them all in the order given."""
    beside = {name: folder / f".{name}.{os.getpid()}.tmp" for name in writers}
    _sweep(folder, writers)
    try:
        for name, write in writers.items():
            write(beside[name])
        for name, path in beside.items():
            path.replace(folder / name)
    except OSError as error:
        raise OSError(
            error.errno or errno.EIO,
            f"could not save to {folder} ({error}); what was there before is untouched unless renaming had begun. "
            "Free space or choose another folder, and save again: the model in memory is whole",
        ) from error
    finally:
        for path in beside.values():
            path.unlink(missing_ok=True)


def _sweep(folder: Path, writers: Mapping[str, Writer]) -> None:
    """Remove what a save that was killed left here an hour ago or earlier."""
    for name in writers:
        for path in folder.glob(f".{glob.escape(name)}.*.tmp"):
            if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
                path.unlink(missing_ok=True)
