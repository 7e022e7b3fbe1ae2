"""Where results go, tested before the work that makes them."""

import errno
from pathlib import Path

from gptclf.checks import path
from gptclf.files.access import make_folder


def check_target(name: str, target: str, *, force: bool = False, folder: bool = True) -> Path:
    """Return the path of a folder or file that will be written, after trying to write beside it.

    Args:
        name: The argument that gives it.
        target: The folder or file.
        force: Whether a folder that holds something may be written to.
        folder: Whether it is a folder.

    Raises:
        OSError: It may not be written, or there is something that would be lost.
    """
    found = path(name, target)
    if folder and found.is_file():
        raise FileExistsError(errno.EEXIST, f"{found} is a file; give a folder")
    if not folder and found.is_dir():
        raise IsADirectoryError(errno.EISDIR, f"{found} is a folder; give a file")
    if folder and not force and found.is_dir() and any(found.iterdir()):
        raise FileExistsError(errno.EEXIST, f"{found} is not empty; give another folder, or --force to write into it")
    make_folder(found if found.is_dir() else found.parent, name)
    return found
