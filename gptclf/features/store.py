"""`FeatureStore`: ragged rows of features, in memory or in memory-mapped files, looked up by text.

A store belongs to one prefix (`FrozenPrefix.identity` says what that covers) and grows by segments, which never change.
On disk a segment is one safetensors file, written under a temporary name and then renamed. So a run that is killed
leaves complete segments only, and the next run continues from them.
"""

import errno
import hashlib
import logging
import os
import re
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gptclf.files.atomic import write_file
from gptclf.files.safetensors_file import read_safetensors, tensor_writer

logger = logging.getLogger(__name__)

_KEY_BYTES = 16
SUFFIX = ".safetensors"
_SEGMENT = re.compile(r"[0-9a-f]{32}\.safetensors")

# Held while this process writes or deletes files, so that no thread's folder goes while it writes there.
changing_files = threading.Lock()

# A partly written file this old has been abandoned.
_ABANDONED_SECONDS = 3600


def text_key(ids: NDArray[np.int32]) -> bytes:
    """Return the address of a text: a digest of its token ids."""
    return hashlib.blake2b(np.ascontiguousarray(ids, dtype="<i4").tobytes(), digest_size=_KEY_BYTES).digest()


@dataclass(frozen=True)
class StoredRow:
    """The place of one text's features: positions `start` to `start + length` of a segment."""

    segment: Tensor
    start: int
    length: int

    @property
    def values(self) -> Tensor:
        """The features (length, D), a view."""
        return self.segment[self.start : self.start + self.length]


class FeatureStore:
    """Features of texts under one prefix.

    Args:
        identity: Hexadecimal digest of everything that determines the prefix.
        folder: The folder of the segment files; None keeps segments in memory.
    """

    def __init__(self, identity: str, folder: Path | None = None) -> None:
        self.identity = identity
        self.folder = None if folder is None else folder / f"features-{identity[:32]}"
        self.nbytes = self.expected = 0
        self._rows: dict[bytes, StoredRow] = {}
        if self.folder is not None and self.folder.is_dir():
            names = files_of(self.folder)
            for path in sorted(path for path in names if path.match(f"*{SUFFIX}")):
                self._open(path)
            for path in [path for path in names if path.match(f".*{SUFFIX}.*.tmp")]:
                if time.time() - modified(path) > _ABANDONED_SECONDS:  # left by a run that was killed
                    unlink(path)
            with suppress(OSError):  # the cache may be read-only
                os.utime(self.folder)  # prefixes are deleted in the order of their last use

    @property
    def size(self) -> int:
        """Bytes of its features, or if some are being computed, with these."""
        return max(self.nbytes, self.expected)

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, key: bytes) -> bool:
        return key in self._rows

    def __getitem__(self, key: bytes) -> StoredRow:
        return self._rows[key]

    def add(self, keys: Sequence[bytes], lengths: Sequence[int], values: Tensor) -> None:
        """Add a segment: rows one after the other in `values` (sum of lengths, D), which must not change afterwards.

        Raises:
            OSError: The segment could not be written; earlier ones are intact.
        """
        if self.folder is None:
            self._register(keys, lengths, values)
            return
        addresses = torch.from_numpy(np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(-1, _KEY_BYTES).copy())
        counts = torch.tensor(list(lengths), dtype=torch.int64, device="cpu")
        tensors = {"keys": addresses, "lengths": counts, "values": values}
        metadata = {"identity": self.identity, "sha256": _digest(tensors)}
        path = self.folder / f"{uuid.uuid4().hex}{SUFFIX}"
        try:
            with changing_files:
                self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # features of private texts
                write_file(path, tensor_writer(tensors, metadata), durable=False)
                self._open(path)
        except OSError as error:
            problem = f"could not keep {values.nbytes / 1e6:.0f} MB of features in {self.folder} ({error})"
            kept = "Features kept before are intact, and the next run continues from them"
            remedy = "Free some space there, give another cache_dir, or give reuse_frozen=False"
            raise OSError(error.errno or errno.EIO, f"{problem}. {kept}. {remedy}") from error
        if any(key not in self for key in keys):  # another process has already deleted it to make room
            self._register(keys, lengths, values)

    def _open(self, path: Path) -> None:
        try:
            tensors, metadata = read_safetensors(path)
            keys, lengths, values = tensors["keys"], tensors["lengths"], tensors["values"]
            if metadata["identity"] != self.identity or metadata["sha256"] != _digest(tensors):
                raise ValueError(f"{path} is not what was written")
        except (ValueError, KeyError, OSError) as error:
            logger.warning("left out a damaged file of features; they will be computed again: %s", error)
            if _SEGMENT.fullmatch(path.name):
                unlink(path)
            return
        self._register([row.tobytes() for row in keys.numpy()], lengths.tolist(), values)

    def _register(self, keys: Sequence[bytes], lengths: Sequence[int], values: Tensor) -> None:
        start = 0
        for key, length in zip(keys, lengths, strict=True):
            self._rows.setdefault(key, StoredRow(values, start, length))
            start += length
        self.nbytes += values.nbytes


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """Return a digest of a segment's tensors, their shapes and types."""
    digest = hashlib.sha256()
    for name in ("keys", "lengths", "values"):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


# Another process or thread may delete a file that this one has just listed.


def files_of(folder: Path) -> list[Path]:
    """Return what a folder holds, nothing if it is missing."""
    try:
        return list(folder.iterdir())
    except FileNotFoundError:
        return []


def file_size(path: Path) -> int:
    """Return a file's size in bytes, or 0 if it is missing."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def modified(path: Path) -> float:
    """Return a file's modification time in seconds since the epoch, or 0 if it cannot be read."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def unlink(path: Path) -> None:
    """Delete a file if it is still there."""
    with suppress(OSError):
        path.unlink()
