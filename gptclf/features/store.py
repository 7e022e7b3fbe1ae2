"""What is kept of a frozen prefix: ragged rows of features, in memory or in memory-mapped files, found by text.

A store belongs to one prefix (`prefix.Cut.identity` says what that covers) and grows by segments, which never change.
On disk a segment is one safetensors file, written beside its place and renamed, so a run that is killed leaves whole
segments only and the next one goes on from them.
"""

import hashlib
import logging
import os
import re
import shutil
import uuid
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gptclf.weights.atomic import tensor_writer, write_all
from gptclf.weights.folders import read_safetensors

logger = logging.getLogger(__name__)

# Share of the machine's memory that features of all prefixes may take together.
MEMORY_SHARE = 0.25

# Bytes that features in one cache folder may take unless the caller says otherwise.
DISK_LIMIT = 50e9

_KEY_BYTES = 16
_FOLDER = re.compile(r"features-[0-9a-f]{32}")
_SUFFIX = ".safetensors"


def text_key(ids: NDArray[np.int32]) -> bytes:
    """The address of a text: a digest of its token ids."""
    return hashlib.blake2b(np.ascontiguousarray(ids, dtype="<i4").tobytes(), digest_size=_KEY_BYTES).digest()


@dataclass(frozen=True)
class Place:
    """Where one text's features stand: positions `start` to `start + length` of a segment."""

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
        identity: What determines the prefix, as a hexadecimal digest.
        folder: Where segments are files; None keeps them in memory.
    """

    def __init__(self, identity: str, folder: Path | None = None) -> None:
        self.identity = identity
        self.folder = None if folder is None else folder / f"features-{identity[:32]}"
        self.nbytes = 0
        self._places: dict[bytes, Place] = {}
        if self.folder is not None and self.folder.is_dir():
            for path in sorted(self.folder.glob(f"*{_SUFFIX}")):
                self._open(path)
            os.utime(self.folder)  # the prefix used last is the last to be given up

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: bytes) -> bool:
        return key in self._places

    def __getitem__(self, key: bytes) -> Place:
        return self._places[key]

    def add(self, keys: Sequence[bytes], lengths: Sequence[int], values: Tensor) -> None:
        """Keep a segment: rows one after the other in `values` (sum of lengths, D), which is not changed after this.

        Raises:
            OSError: The segment could not be written; earlier ones are whole.
        """
        if self.folder is None:
            self._register(keys, lengths, values)
            return
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # features of private texts
        addresses = torch.from_numpy(np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(-1, _KEY_BYTES).copy())
        tensors = {"keys": addresses, "lengths": torch.tensor(list(lengths)), "values": values}
        name = f"{uuid.uuid4().hex}{_SUFFIX}"
        write_all(self.folder, {name: tensor_writer(tensors, {"identity": self.identity})})
        self._open(self.folder / name)

    def _open(self, path: Path) -> None:
        try:
            tensors, metadata = read_safetensors(path)
            if metadata.get("identity") != self.identity:
                raise ValueError(f"{path} is of another prefix")
            keys = [row.tobytes() for row in tensors["keys"].numpy()]
            lengths = tensors["lengths"].tolist()
            if len(keys) != len(lengths) or sum(lengths) != len(tensors["values"]):
                raise ValueError(f"{path} does not hold what it lists")
        except (ValueError, KeyError, OSError) as error:
            logger.warning("left out a file of features, which will be computed again: %s", error)
            return
        self._register(keys, lengths, tensors["values"])

    def _register(self, keys: Sequence[bytes], lengths: Sequence[int], values: Tensor) -> None:
        start = 0
        for key, length in zip(keys, lengths, strict=True):
            self._places.setdefault(key, Place(values, start, length))
            start += length
        self.nbytes += values.nbytes


# Prefixes in memory, the one used last at the end.
_memory: "OrderedDict[str, FeatureStore]" = OrderedDict()


def in_memory(identity: str, needed: int) -> FeatureStore | None:
    """The store of a prefix in this process's memory with room for `needed` more bytes, or None where that is too much.

    Features of other prefixes are given up to make room, those not used for longest first.
    """
    store = _memory.pop(identity, None) or FeatureStore(identity)
    allowed = memory_allowed()
    fits = store.nbytes + needed <= allowed
    while fits and _memory and sum(s.nbytes for s in _memory.values()) + store.nbytes + needed > allowed:
        _memory.popitem(last=False)
    if fits or len(store):
        _memory[identity] = store
    return store if fits else None


def peek(identity: str) -> FeatureStore | None:
    """What memory holds of a prefix, without making room or a claim."""
    return _memory.get(identity)


def memory_allowed() -> float:
    """Bytes that features may take in memory."""
    return MEMORY_SHARE * physical_memory()


def physical_memory() -> float:
    """The machine's memory in bytes."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return 8e9


def on_disk(identity: str, folder: Path, needed: int, limit: float) -> FeatureStore | None:
    """The store of a prefix in a folder with room for `needed` more bytes, or None where that is too much (logged).

    Features of other prefixes in that folder are deleted to make room, those not used for longest first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    store = FeatureStore(identity, folder)
    free = shutil.disk_usage(folder).free
    others = sorted((path for path in _prefixes(folder) if path != store.folder), key=lambda path: path.stat().st_mtime)
    sizes = {path: sum(file.stat().st_size for file in path.iterdir()) for path in others}
    if store.nbytes + needed > limit or needed > 0.95 * (free + sum(sizes.values())):
        logger.warning(
            "%.1f GB of features do not fit in %s: %.1f GB are allowed (cache_limit) and %.1f GB free",
            (store.nbytes + needed) / 1e9, folder, limit / 1e9, free / 1e9,
        )  # fmt: skip
        return None
    while others and (store.nbytes + needed + sum(sizes.values()) > limit or needed > 0.95 * free):
        oldest = others.pop(0)
        free += sizes.pop(oldest)
        _delete(oldest)
        logger.info("deleted the features of an earlier prefix to make room: %s", oldest)
    return store


def clear_features(cache_dir: str | Path | None = None) -> int:
    """Forget kept features: those in this process's memory, or those in a folder that was given as `cache_dir`.

    Nothing else in the folder is touched.

    Args:
        cache_dir: The folder; None clears the memory.

    Returns:
        Bytes given back.

    Raises:
        NotADirectoryError: There is no such folder.

    Example:
        >>> clear_features() >= 0
        True
    """
    if cache_dir is None:
        total = sum(store.nbytes for store in _memory.values())
        _memory.clear()
        return total
    folder = Path(cache_dir)
    if not folder.is_dir():
        raise NotADirectoryError(f"cache_dir is {str(cache_dir)!r}, which is no folder; give the one named in train()")
    return sum(_delete(path) for path in list(_prefixes(folder)))


def _prefixes(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if _FOLDER.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            yield path


def _delete(prefix: Path) -> int:
    """Delete the files of features in a prefix's folder, and the folder if nothing else is in it; bytes given back."""
    total = 0
    for path in prefix.iterdir():
        if path.name.endswith((_SUFFIX, ".tmp")) and path.is_file():
            total += path.stat().st_size
            path.unlink()
    if not any(prefix.iterdir()):
        prefix.rmdir()
    return total


def distinct(keys: Iterable[bytes]) -> dict[bytes, int]:
    """Each key once, in order of its first row, with that row's number."""
    first: dict[bytes, int] = {}
    for row, key in enumerate(keys):
        first.setdefault(key, row)
    return first
