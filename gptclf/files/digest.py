"""Digests of tensors and files."""

import hashlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gptclf.files.access import readable_size

# Bytes of a tensor that are folded into 8, to notice a change.
_FOLDED = 512


def tensor_digests(tensors: Iterable[Tensor], *, layouts: bool = True) -> list[str]:
    """Return a SHA-256 of each tensor's shape, type and values, and of their order in memory if `layouts` count.

    Example:
        >>> pair = torch.ones(2, 3), torch.ones(3, 2).t()
        >>> [len(set(tensor_digests(pair, layouts=layouts))) for layouts in (True, False)]
        [2, 1]
    """
    with ThreadPoolExecutor(4) as pool:  # hashing releases the interpreter's lock
        return list(pool.map(lambda tensor: _digest_of(tensor, layouts), tensors))


def kept_digests(tensors: Iterable[Tensor]) -> list[str]:
    """Return what `tensor_digests` does, and note it with the memory, so that half a gigabyte is not hashed each time.

    A tensor that has changed is hashed again. torch counts the changes that it makes; those made past it (by `.data`,
    or by numpy) show in a parity of all bytes, which takes a twentieth of the time.

    Example:
        >>> ones = torch.ones(8)
        >>> before = kept_digests([ones])
        >>> kept_digests([ones.mul_(2)]) == before
        False
    """
    listed = list(tensors)
    notes: list[dict[object, tuple[object, str]]]
    notes = [vars(tensor.untyped_storage()).setdefault("digests", {}) for tensor in listed]
    places = [(t.storage_offset(), t.shape, t.stride(), t.dtype) for t in listed]
    states = [_state_of(tensor) for tensor in listed]
    new = [i for i, note in enumerate(notes) if places[i] not in note or note[places[i]][0] != states[i]]
    for i, digest in zip(new, tensor_digests(listed[i] for i in new), strict=True):
        notes[i][places[i]] = states[i], digest
    return [note[place][1] for note, place in zip(notes, places, strict=True)]


def _state_of(tensor: Tensor) -> object:
    """Return a value that is another one after a change of the tensor; see `kept_digests`."""
    if tensor.is_inference():  # its changes are not counted
        return object()
    n = min(tensor.numel(), tensor.untyped_storage().nbytes() // tensor.element_size() - tensor.storage_offset())
    content = tensor.detach().as_strided((n,), (1,), tensor.storage_offset()).cpu().view(torch.uint8).numpy()
    whole = len(content) - len(content) % _FOLDED
    folded = np.bitwise_xor.reduce(content[:whole].view(np.int64).reshape(-1, _FOLDED // 8), axis=1)
    return tensor._version, hashlib.sha256(folded.tobytes() + content[whole:].tobytes()).digest()


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
