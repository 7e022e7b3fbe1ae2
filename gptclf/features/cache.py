"""The stores that keep features, in this process's memory or in a folder, each within its limit."""

import logging
import os
import re
import shutil
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from weakref import WeakSet, WeakValueDictionary

from gptclf import checks
from gptclf.features.memory import process_memory
from gptclf.features.store import SUFFIX, FeatureStore, changing_files, file_size, files_of, modified, unlink
from gptclf.files.access import make_folder

logger = logging.getLogger(__name__)

# Share of this process's memory that features of all prefixes may take together.
MEMORY_SHARE = 0.25

# Bytes that features in one cache folder may take unless the caller says otherwise.
DISK_LIMIT = 50e9

_FOLDER = re.compile(r"features-[0-9a-f]{32}")

# Prefixes in memory, the most recently used one last; and all stores in memory, of which runs may still use some.
_memory: "OrderedDict[str, FeatureStore]" = OrderedDict()
_alive: "WeakSet[FeatureStore]" = WeakSet()
_lock = threading.Lock()

# The lock of each prefix whose features are being looked up or computed.
_filling: "WeakValueDictionary[str, threading.Lock]" = WeakValueDictionary()


@contextmanager
def filling(identity: str) -> Iterator[None]:
    """Let one thread at a time look for the features of a prefix and compute those that are missing."""
    with _lock:
        mine = _filling.setdefault(identity, threading.Lock())
    with mine:
        try:
            yield
        finally:
            with _lock:
                if identity in _memory:
                    _memory[identity].expected = 0


if hasattr(os, "register_at_fork"):  # not on Windows
    # A forked process has none of the other threads, which would never release what they hold.
    for lock in (_lock, changing_files):
        os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)
    os.register_at_fork(after_in_child=_filling.clear)


def in_memory(identity: str, missing: Callable[[FeatureStore], int], *, renew: bool) -> FeatureStore | None:
    """Return the store of a prefix in this process's memory, or None if the missing features do not fit.

    Features of other prefixes are dropped to make room, the least recently used first. Those that a run still uses are
    freed when it ends, and count until then. Called in `filling`.

    Args:
        identity: The prefix.
        missing: Returns the number of bytes that a store still lacks.
        renew: Whether to drop this prefix's features of other texts if the two do not fit together.
    """
    allowed, known = memory_for_features(), peek(identity)
    store = FeatureStore(identity) if known is None else known
    if store.nbytes + missing(store) > allowed:
        store = FeatureStore(identity)
        if not renew or missing(store) > allowed:
            return None
    store.expected = store.nbytes + missing(store)
    del known  # it may have to go

    def is_short() -> bool:
        return store.expected + sum(other.size for other in _alive if other is not store) > allowed

    with _lock:
        _memory.pop(identity, None)
        while is_short() and _memory:
            _memory.popitem(last=False)
        if is_short():  # what is left is in use
            return None
        _memory[identity] = store
        _alive.add(store)
    return store


def memory_for_features() -> float:
    """Return the bytes that the features of all prefixes may take together in this process's memory."""
    return MEMORY_SHARE * process_memory()


def peek(identity: str) -> FeatureStore | None:
    """Return the store of a prefix in memory, or None, without making room or marking it as used."""
    with _lock:
        return _memory.get(identity)


def on_disk(identity: str, folder: Path, missing: Callable[[FeatureStore], int], limit: float) -> FeatureStore | None:
    """Return the store of a prefix in a folder, with room for missing features, or None if they do not fit (logged).

    Features of other prefixes in that folder are deleted to make room, the least recently used first. This prefix's
    features of other texts are deleted if the two do not fit together.

    Args:
        identity: The prefix.
        folder: The folder; it is created if it does not exist.
        missing: Returns the number of bytes that a store still lacks.
        limit: The most bytes that features may take in the folder.
    """
    store = FeatureStore(identity, folder)
    needed = missing(store)
    if not needed:
        return store
    make_folder(folder, "cache_dir")
    if store.folder is not None and store.nbytes + needed > limit >= missing(FeatureStore(identity)):
        _delete(store.folder)
        store = FeatureStore(identity, folder)
        needed = missing(store)
    free = shutil.disk_usage(folder).free
    others = sorted((path for path in _prefixes(folder) if path != store.folder), key=modified)
    sizes = {path: sum(map(file_size, files_of(path))) for path in others}
    if store.nbytes + needed > limit or needed > 0.95 * (free + sum(sizes.values())):
        message = "%.1f GB of features do not fit in %s: %.1f GB are allowed (cache_limit) and %.1f GB free"
        logger.warning(message, (store.nbytes + needed) / 1e9, folder, limit / 1e9, free / 1e9)
        return None
    while others and (store.nbytes + needed + sum(sizes.values()) > limit or needed > 0.95 * free):
        oldest = others.pop(0)
        free += sizes.pop(oldest)
        _delete(oldest)
        logger.info("deleted the features of an earlier prefix to make room: %s", oldest)
    return store


def check_cache(cache_dir: str | Path | None, cache_limit: float = DISK_LIMIT) -> Path | None:
    """Return the folder for features, or None; raise if the folder or the limit cannot be used."""
    checks.number("cache_limit", cache_limit, above=0)
    if cache_dir is None:
        return None
    folder = checks.path("cache_dir", cache_dir)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"cache_dir is {str(cache_dir)!r}, a file; give a folder, existing or to be made")
    return folder


def clear_features(cache_dir: str | Path | None = None) -> int:
    """Delete stored features: those in this process's memory, or those in a folder that was given as `cache_dir`.

    Nothing else in the folder is touched.

    Args:
        cache_dir: The folder; None clears the memory.

    Returns:
        Bytes freed.

    Raises:
        NotADirectoryError: There is no such folder.

    Example:
        >>> clear_features() >= 0
        True
    """
    if cache_dir is None:
        with _lock:
            total = sum(store.nbytes for store in _memory.values())
            _memory.clear()
        return total
    folder = checks.path("cache_dir", cache_dir)
    if not folder.is_dir():
        raise NotADirectoryError(f"cache_dir is {str(cache_dir)!r}, not a folder; give the one named in train()")
    return sum(map(_delete, _prefixes(folder)))


def _prefixes(folder: Path) -> list[Path]:
    found = [path for path in folder.iterdir() if _FOLDER.fullmatch(path.name)]
    return [path for path in found if path.is_dir() and not path.is_symlink()]


def _delete(prefix: Path) -> int:
    """Delete a prefix's files, and its folder if nothing else is in it; return the bytes freed."""
    total = 0
    with changing_files, suppress(OSError):  # something else is in it
        for path in files_of(prefix):
            if path.name.endswith((SUFFIX, ".tmp")) and path.is_file():
                total += file_size(path)
                unlink(path)
        prefix.rmdir()
    return total
