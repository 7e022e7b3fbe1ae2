"""The stores that keep features, in this process's memory or in a folder, each within its limit."""

import logging
import os
import re
import shutil
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from gptclf import checks
from gptclf.features.store import SUFFIX, FeatureStore, file_size, modified, unlink
from gptclf.files.access import make_folder

logger = logging.getLogger(__name__)

# Share of the machine's memory that features of all prefixes may take together.
MEMORY_SHARE = 0.25

# Bytes that features in one cache folder may take unless the caller says otherwise.
DISK_LIMIT = 50e9

_FOLDER = re.compile(r"features-[0-9a-f]{32}")

# Prefixes in memory, the most recently used one last.
_memory: "OrderedDict[str, FeatureStore]" = OrderedDict()


def in_memory(identity: str, missing: Callable[[FeatureStore], int], *, renew: bool) -> FeatureStore | None:
    """Return the store of a prefix in this process's memory, or None if the missing features do not fit.

    Features of other prefixes are dropped to make room, the least recently used first.

    Args:
        identity: The prefix.
        missing: Returns the number of bytes that a store still lacks.
        renew: Whether to drop this prefix's features of other texts if the two do not fit together.
    """
    store = _memory.get(identity) or FeatureStore(identity)
    allowed = MEMORY_SHARE * physical_memory()
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
    """Return the store of a prefix in memory, or None, without making room or marking it as used."""
    return _memory.get(identity)


def physical_memory() -> float:
    """Return the machine's memory in bytes."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return 8e9


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
    sizes = {path: sum(file_size(file) for file in path.iterdir()) for path in others}
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
    for path in prefix.iterdir():
        if path.name.endswith((SUFFIX, ".tmp")) and path.is_file():
            total += file_size(path)
            unlink(path)
    with suppress(OSError):  # something else is in it
        prefix.rmdir()
    return total
