"""Digests of tensors and files."""

import hashlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from gptclf.files.access import readable_size


def tensor_digests(tensors: Iterable[Tensor], *, layouts: bool = True) -> list[str]:
    """Return a SHA-256 of each tensor's shape, type and values, and of their order in memory if `layouts` count.

    Example:
        >>> pair = torch.ones(2, 3), torch.ones(3, 2).t()
        >>> [len(set(tensor_digests(pair, layouts=layouts))) for layouts in (True, False)]
        [2, 1]
    """
    with ThreadPoolExecutor(4) as pool:  # hashing releases the interpreter's lock
        return list(pool.map(lambda tensor: _digest_of(tensor, layouts), tensors))


def file_digests(*paths: Path) -> list[str]:
    """Return the SHA-256 of each file's content."""
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(_digest_of_file, paths))


def check_digests(folder: Path, digests: Mapping[str, str]) -> None:
    """Compare those files that are in a folder with their digests, by name.

    Raises:
        ValueError: One has another content.
    """
    paths = [folder / name for name in digests if (folder / name).exists()]
    for path, found in zip(paths, file_digests(*paths), strict=True):
        if found != digests[path.name]:
            raise ValueError(changed(path))


def changed(path: Path) -> str:
    """Return the message for a file with another content than was written."""
    what = "has another content than gptclf wrote: its SHA-256 differs; the file is damaged or was edited"
    return f"{path} {what}. Take it from a backup, save the model again, or load it with verify=False"


def _digest_of_file(path: Path) -> str:
    readable_size(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_of(tensor: Tensor, layouts: bool) -> str:
    # Read in memory order, because making a transposed view contiguous takes longer than reading it.
    crosswise = layouts and tensor.dim() == 2 and tensor.t().is_contiguous()
    flat = (tensor.t() if crosswise else tensor).cpu().contiguous()
    digest = hashlib.sha256(f"{tuple(tensor.shape)} {tensor.dtype} {crosswise}".encode())
    digest.update(flat.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
