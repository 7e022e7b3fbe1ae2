"""The memory that this process may use: the least of the machine's, its control groups' and its own limits."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_PROCESS, _GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def process_memory() -> float:
    """Return the bytes of memory that this process may use."""
    return min([_physical_memory(), *_group_limits(), *_own_limits()])


def _physical_memory() -> float:
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return 8e9


def _group_limits() -> Iterator[float]:
    """Yield the limits of this process's control groups (Linux, both versions), which bind the groups below as well.

    In a container the path is often the host's, while the group itself is mounted at the top.
    """
    with suppress(OSError, ValueError):
        for line in _PROCESS.read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            if number != "0" and "memory" not in controllers.split(","):
                continue
            root, name = (_GROUPS, "memory.max") if number == "0" else (_GROUPS / "memory", "memory.limit_in_bytes")
            group = Path(path.lstrip("/"))
            for folder in (group, *group.parents):
                with suppress(OSError, ValueError):  # no such group here, or "max"
                    yield float(int((root / folder / name).read_text()))


def _own_limits() -> Iterator[float]:
    """Yield the soft limits of address space and data."""
    with suppress(ImportError):  # Windows
        import resource

        for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
            limit, _ = resource.getrlimit(kind)
            if limit != resource.RLIM_INFINITY:
                yield float(limit)
