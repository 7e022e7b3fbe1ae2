"""Writing a folder's files so that an interruption leaves what was there before."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

# Writes one file at the path it is given.
Writer = Callable[[Path], None]


def text_writer(text: str) -> Writer:
    """A writer of UTF-8 text with the same line ends everywhere."""

    def write(path: Path) -> None:
        path.write_text(text, encoding="utf-8", newline="\n")

    return write


def tensor_writer(tensors: dict[str, Tensor], metadata: dict[str, str]) -> Writer:
    """A writer of a safetensors file."""

    def write(path: Path) -> None:
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        try:
            save_file(tensors, path, metadata=metadata)
        except SafetensorError as error:
            raise OSError(str(error)) from error

    return write


def write_all(folder: Path, writers: Mapping[str, Writer]) -> None:
    """Write every file beside its place, then rename them all; `gptclf.json` comes last."""
    beside = {name: folder / f".{name}.{os.getpid()}.tmp" for name in writers}
    try:
        for name, write in writers.items():
            write(beside[name])
        for name, path in beside.items():
            path.replace(folder / name)
    except OSError as error:
        raise OSError(
            error.errno,
            f"could not save to {folder} ({error}); what was there before is untouched unless renaming had begun. "
            "Free space or choose another folder, and save again: the model in memory is whole",
        ) from error
    finally:
        for path in beside.values():
            path.unlink(missing_ok=True)
