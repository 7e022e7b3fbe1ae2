"""Reading and writing safetensors files."""

import errno
import json
import re
from pathlib import Path

from torch import Tensor

from gptclf.files.access import readable_size
from gptclf.files.atomic import Writer


def tensor_writer(tensors: dict[str, Tensor], metadata: dict[str, str]) -> Writer:
    """Return a writer of a safetensors file."""

    def write(path: Path) -> None:
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        try:
            save_file(tensors, path, metadata=metadata)
            _sort_metadata(path)
        except SafetensorError as error:
            found = re.search(r"os error (\d+)", str(error))  # the library gives the system's number in words alone
            raise OSError(int(found[1]) if found else errno.EIO, str(error)) from error

    return write


def _sort_metadata(path: Path) -> None:
    """Sort the metadata in the header: the library writes it in random order, and equal models should give equal files.

    Format: 8 bytes with the length of the header (little-endian), then the header, JSON padded with spaces.
    """
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= size:  # the same characters in a different order
            file.seek(8)
            file.write(text.ljust(size))


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a file, memory-mapped, and its metadata.

    Raises:
        OSError: The file does not exist, may not be read, or is not a regular file.
        ValueError: The file is incomplete or of another format.
    """
    import safetensors

    size = readable_size(path)  # the library calls every file that it cannot open missing
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (safetensors.SafetensorError, ValueError) as error:
        problem = f"{path} ({size:,} bytes) is not a complete safetensors file: {error}"
        remedy = "It may be truncated, or a git-lfs pointer to the real file; download it again"
        raise ValueError(f"{problem}. {remedy}") from error
