"""What is kept of a frozen prefix: ragged rows of features, in memory or in memory-mapped files, found by text.

A store belongs to one prefix (`prefix.Cut.identity` says what that covers) and grows by segments, which never change.
On disk a segment is one safetensors file, written beside its place and renamed, so a run that is killed leaves whole
segments only and the next one goes on from them.
"""

import errno
import hashlib
import logging
import os
import re
import shutil
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from numbers import Real
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gptclf.files.atomic import write_all
from gptclf.files.safetensors_file import read_safetensors, tensor_writer

logger = logging.getLogger(__name__)

# Share of the machine's memory that features of all prefixes may take together.
MEMORY_SHARE = 0.25

# Bytes that features in one cache folder may take unless the caller says otherwise.
DISK_LIMIT = 50e9

_KEY_BYTES = 16
_FOLDER = re.compile(r"features-[0-9a-f]{32}")
_SUFFIX = ".safetensors"
_SEGMENT = re.compile(r"[0-9a-f]{32}\.safetensors")

# Half-written files this old have nobody who would finish them.
_ABANDONED_SECONDS = 3600


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
            for path in self.folder.glob(f".*{_SUFFIX}.*.tmp"):
                if time.time() - _modified(path) > _ABANDONED_SECONDS:  # of a run that was killed
                    _unlink(path)
            with suppress(OSError):  # a cache that may only be read
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
        addresses = torch.from_numpy(np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(-1, _KEY_BYTES).copy())
        tensors = {"keys": addresses, "lengths": torch.tensor(list(lengths)), "values": values}
        metadata = {"identity": self.identity, "sha256": _digest(tensors)}
        path = self.folder / f"{uuid.uuid4().hex}{_SUFFIX}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # features of private texts
            write_all(self.folder, {path.name: tensor_writer(tensors, metadata)})
        except OSError as error:
            raise OSError(
                error.errno or errno.EIO,
                f"could not keep {values.nbytes / 1e6:.0f} MB of features in {self.folder} ({error}). What was kept "
                "before is whole, and the next run goes on from it: free space there, name another cache_dir, or give "
                "reuse_frozen=False",
            ) from error
        self._open(path)
        if any(key not in self for key in keys):  # another process made room by deleting it already
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
                _unlink(path)
            return
        self._register([row.tobytes() for row in keys.numpy()], lengths.tolist(), values)

    def _register(self, keys: Sequence[bytes], lengths: Sequence[int], values: Tensor) -> None:
        start = 0
        for key, length in zip(keys, lengths, strict=True):
            self._places.setdefault(key, Place(values, start, length))
            start += length
        self.nbytes += values.nbytes


# Prefixes in memory, the one used last at the end.
_memory: "OrderedDict[str, FeatureStore]" = OrderedDict()


def in_memory(identity: str, missing: Callable[[FeatureStore], int], *, renew: bool) -> FeatureStore | None:
    """The store of a prefix in this process's memory, with room for what it lacks, or None where that is too much.

    Features of other prefixes are given up to make room, those not used for longest first.

    Args:
        identity: The prefix.
        missing: Bytes that a store still lacks.
        renew: Give up this prefix's features of other texts, too, where both do not fit.
    """
    store = _memory.get(identity) or FeatureStore(identity)
    allowed = memory_allowed()
    if store.nbytes + missing(store) > allowed:
        if not renew or missing(FeatureStore(identity)) > allowed:
            return None
        store = FeatureStore(identity)
    needed = store.nbytes + missing(store)
    _memory.pop(identity, None)
    while _memory and sum(other.nbytes for other in _memory.values()) + needed > allowed:
        _memory.popitem(last=False)
    _memory[identity] = store
    return store


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


def on_disk(identity: str, folder: Path, missing: Callable[[FeatureStore], int], limit: float) -> FeatureStore | None:
    """The store of a prefix in a folder, with room for what is missing in it, or None where that is too much (logged).

    Features of other prefixes in that folder are deleted to make room, those not used for longest first, and this
    prefix's features of other texts where both do not fit.

    Args:
        identity: The prefix.
        folder: Made if it is not there.
        missing: Bytes that a store still lacks.
        limit: Bytes that features may take in the folder.
    """
    store = FeatureStore(identity, folder)
    needed = missing(store)
    if not needed:
        return store
    folder.mkdir(parents=True, exist_ok=True)
    if store.folder is not None and store.nbytes + needed > limit >= missing(FeatureStore(identity)):
        _delete(store.folder)
        store = FeatureStore(identity, folder)
        needed = missing(store)
    free = shutil.disk_usage(folder).free
    others = sorted((path for path in _prefixes(folder) if path != store.folder), key=_modified)
    sizes = {path: sum(_size(file) for file in path.iterdir()) for path in others}
    if store.nbytes + needed > limit or needed > 0.95 * (free + sum(sizes.values())):
        logger.warning(
            "%.1f GB of features do not fit in %s: %.1f GB are allowed (cache_limit) and %.1f GB free",
            (store.nbytes + needed) / 1e9,
            folder,
            limit / 1e9,
            free / 1e9,
        )
        return None
    while others and (store.nbytes + needed + sum(sizes.values()) > limit or needed > 0.95 * free):
        oldest = others.pop(0)
        free += sizes.pop(oldest)
        _delete(oldest)
        logger.info("deleted the features of an earlier prefix to make room: %s", oldest)
    return store


def check_cache(cache_dir: str | Path | None, cache_limit: float = DISK_LIMIT) -> Path | None:
    """The folder for features, or an error."""
    if not isinstance(cache_limit, Real) or isinstance(cache_limit, bool) or not float(cache_limit) > 0:
        raise ValueError(f"cache_limit is {cache_limit!r}; it must be a positive number of bytes, such as 50e9")
    if cache_dir is None:
        return None
    named = isinstance(cache_dir, str | Path) and bool(str(cache_dir))
    if not named or (Path(cache_dir).expanduser().exists() and not Path(cache_dir).expanduser().is_dir()):
        raise ValueError(f"cache_dir is {cache_dir!r}; it must be a folder, there or to be made")
    return Path(cache_dir).expanduser()


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
    if not isinstance(cache_dir, str | Path) or not str(cache_dir):
        raise ValueError(f"cache_dir is {cache_dir!r}; give the folder named in train(), or None for the memory")
    folder = Path(cache_dir).expanduser()
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
            total += _size(path)
            _unlink(path)
    with suppress(OSError):  # something else is in it
        prefix.rmdir()
    return total


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """A digest of a segment's tensors, their shapes and types."""
    digest = hashlib.sha256()
    for name in ("keys", "lengths", "values"):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


# Another process may delete at any moment what this one has just listed.


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _unlink(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


def distinct(keys: Iterable[bytes]) -> dict[bytes, int]:
    """Each key once, in order of its first row, with that row's number."""
    first: dict[bytes, int] = {}
    for row, key in enumerate(keys):
        first.setdefault(key, row)
    return first
