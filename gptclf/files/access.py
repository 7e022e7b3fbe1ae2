"""Opening files: regular ones only, and errors that keep the system's number and name the file and the user."""

import errno
import os
import stat
import tempfile
from pathlib import Path

# What may be in a file's place, which would block, never end, or hold something else.
_OTHERS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def readable_size(path: Path) -> int:
    """Return the size in bytes of a regular file, after making sure that it may be read.

    Raises:
        FileNotFoundError: The file does not exist.
        PermissionError: This user may not read it.
        OSError: It is a folder, a pipe, a device or a socket, or the system cannot open it.
    """
    try:
        mode = path.stat().st_mode  # first: opening a pipe waits for a writer
        if stat.S_ISREG(mode):
            with path.open("rb") as file:
                return os.fstat(file.fileno()).st_size
    except OSError as error:
        raise explained(error, path) from None
    what = next((what for is_one, what in _OTHERS if is_one(mode)), "something else")
    number = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
    raise OSError(number, f"{path} is {what}; it must be a regular file")


def is_there(path: Path) -> bool:
    """Return True if there is a file, or a folder in which this user may look up names.

    Raises:
        OSError: Something else than a missing path, such as missing rights, hides whether it is there.
    """
    try:
        (path / "x" if path.is_dir() else path).stat()
    except NotADirectoryError:
        return False
    except FileNotFoundError:
        return path.is_dir()
    except OSError as error:
        raise explained(error, path) from error
    return True


def names_in(folder: Path) -> list[str]:
    """Return the sorted names in a folder, or an empty list if the folder does not exist."""
    try:
        return sorted(path.name for path in folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise explained(error, folder) from error


def make_folder(folder: Path, name: str) -> None:
    """Make a folder, unless it exists, and try to write in it, before work that will fill it.

    Args:
        folder: The folder.
        name: The argument that names it.

    Raises:
        OSError: It cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        found = explained(error, folder, "written to")
        raise OSError(found.errno, f"{name}: {found.strerror}; give a folder that can be") from error


def explained(error: OSError, path: Path, action: str = "read") -> OSError:
    """Return a system's error, under its number, that names the path and, if it is one of permissions, the user."""
    if isinstance(error, FileNotFoundError) and action == "read":
        message = f"{path} does not exist"
    elif isinstance(error, PermissionError):
        message = f"{path} may not be {action} by the user {user_name()} ({error.strerror}); {_rights(path)}"
    else:
        message = f"{path} cannot be {action} ({error.strerror or error})"
    return OSError(error.errno or errno.EIO, message)


def user_name() -> str:
    """Return the name of the user that this process runs as; its number if it has no name."""
    try:
        import pwd

        return pwd.getpwuid(os.geteuid()).pw_name
    except ImportError:  # Windows
        return os.environ.get("USERNAME", "unknown")
    except KeyError:
        return str(os.geteuid())


def _rights(path: Path) -> str:
    """Say who owns the nearest part of a path that can be looked at, and its mode."""
    for place in (path, *path.absolute().parents):
        try:
            found = place.stat()
        except OSError:
            continue
        mode = stat.filemode(found.st_mode)
        return f"{place} has the mode {mode} and belongs to the user number {found.st_uid}. Change its owner or mode"
    return "change its owner or mode"
