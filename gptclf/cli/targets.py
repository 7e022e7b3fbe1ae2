"""Where results go, tested before the work that makes them."""

import errno
from collections.abc import Sequence
from pathlib import Path

from gptclf.checks import path
from gptclf.cli.flags import UsageError
from gptclf.files.access import make_folder


def check_target(
    name: str,
    target: str,
    *,
    force: bool = False,
    folder: bool = True,
    suffixes: Sequence[str] = (),
    read: str | None = None,
) -> Path:
    """Return the path of a folder or file that will be written, after trying to write beside it.

    Args:
        name: The argument that gives it.
        target: The folder or file.
        force: Whether a folder that holds something may be written to.
        folder: Whether it is a folder.
        suffixes: The suffixes that a file may have, or none if it may have any.
        read: The file that is read, if one is.

    Raises:
        OSError: It may not be written, or there is something that would be lost.
        UsageError: It has another suffix, or is the file that is read.
    """
    found = path(name, target)
    if folder and found.is_file():
        raise FileExistsError(errno.EEXIST, f"{found} is a file; give a folder")
    if not folder and found.is_dir():
        raise IsADirectoryError(errno.EISDIR, f"{found} is a folder; give a file")
    if suffixes and found.suffix.lower() not in suffixes:
        listed = f"{', '.join(suffixes[:-1])} or {suffixes[-1]}"
        raise UsageError(f"{name} is {target}; the suffix names the format: it must be {listed}")
    if read not in (None, "-") and found.exists() and found.samefile(path("data", read)):
        raise UsageError(f"{name} is {target}, the file that is read; give another")
    if folder and not force and holds_something(found):
        raise FileExistsError(errno.EEXIST, f"{found} is not empty; give another folder, or --force to write into it")
    make_folder(found if found.is_dir() else found.parent, name)
    return found


def check_page(target: str | None, read: str | None) -> Path | None:
    """Return the path of a page that will be written, if one is wanted; see `check_target`."""
    if target is None:
        return None
    return check_target("--html", target, folder=False, suffixes=(".html", ".htm"), read=read)


def holds_something(folder: Path) -> bool:
    """Return whether there is a folder that is not empty."""
    return folder.is_dir() and any(folder.iterdir())
