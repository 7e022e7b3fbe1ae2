"""The Hugging Face cache: paths of files, links between them, and the commits that branches point to.

The layout is that of huggingface_hub: blobs/<etag>, snapshots/<commit>/<file> as links to blobs, refs/<branch>. Nothing
here uses the network. Environment variables are read at each call.
"""

import math
import os
import re
import shutil
import uuid
from contextlib import suppress
from pathlib import Path, PureWindowsPath
from typing import NamedTuple
from urllib.parse import quote

from gptclf import checks
from gptclf.hub.partial import replace

COMMIT = re.compile(r"[0-9a-f]{40}")
# Hub names never contain "--": the cache writes owner/name as owner--name.
_REPO = re.compile(r"(?!.*(--|\.\.))(\w[\w.-]{0,95}/)?\w[\w.-]{0,95}", re.ASCII)


def endpoint() -> str:
    """Return the address of the hub or of a mirror (HF_ENDPOINT)."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


class Wanted(NamedTuple):
    """A file of a repository at a revision, and its paths in the cache."""

    repo: str
    filename: str
    revision: str
    cache: Path

    def __str__(self) -> str:
        return f"{self.filename!r} of repository {self.repo!r} (revision {self.revision!r})"

    @property
    def folder(self) -> Path:
        """The folder of the repository in the cache."""
        return self.cache / f"models--{self.repo.replace('/', '--')}"

    @property
    def ref(self) -> Path:
        """The file that holds the commit of the branch."""
        return self.folder / "refs" / self.revision

    def snapshot(self, commit: str) -> Path:
        """Return the path of the file for a commit, whether or not it is there."""
        return self.folder / "snapshots" / commit / self.filename

    def missing_mark(self, commit: str) -> Path:
        """Return the path of the empty file that records that a commit does not have this file."""
        return self.folder / ".no_exist" / commit / self.filename

    def cached_commit(self) -> str | None:
        """Return the commit of the revision; None if the cache does not know it."""
        if COMMIT.fullmatch(self.revision):
            return self.revision
        commit = self.ref.read_bytes().decode("ascii", "replace").strip() if self.ref.is_file() else ""
        return commit if COMMIT.fullmatch(commit) else None

    def url(self, revision: str) -> str:
        """Return the address of the file on the hub."""
        return f"{endpoint()}/{self.repo}/resolve/{quote(revision, safe='')}/{quote(self.filename)}"


def wanted_file(repo: str, filename: str, revision: str | None, cache_dir: str | Path | None) -> Wanted:
    """Return a `Wanted`, after checking that no name leads outside the cache or the repository."""
    revision = "main" if revision is None else revision
    if not _REPO.fullmatch(repo):
        raise ValueError(f"repository {repo!r} is not a hub name; give owner/name or name, of letters, digits, - _ .")
    for what, path in (("file name", filename), ("revision", revision)):
        if PureWindowsPath(path).drive or {"", ".", ".."} & set(re.split(r"[/\\]", path)):
            raise ValueError(f"{what} {path!r} could lead out of the repository; give a relative path without '..'")
    given = None if cache_dir is None else checks.path("cache_dir", cache_dir)
    root = given or path_setting("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE")
    return Wanted(repo, filename, revision, root or hub_home() / "hub")


def is_on(name: str) -> bool:
    """Return True if an environment variable is set to 1, on, yes or true."""
    return os.environ.get(name, "").upper() in {"1", "ON", "YES", "TRUE"}


def path_setting(*names: str) -> Path | None:
    """Return the path in the first of some environment variables that is set, or None."""
    value = next(filter(None, map(os.environ.get, names)), None)
    return Path(os.path.expandvars(value)).expanduser() if value else None


def timeout_seconds(name: str) -> float:
    """Return the number of seconds in an environment variable; 10 if it is not set."""
    value = os.environ.get(name) or "10"
    with suppress(ValueError):
        if 0 < (seconds := float(value)) < math.inf:
            return seconds
    raise ValueError(f"{name} is {value!r}; set it to a number of seconds above 0")


def cache_home() -> Path:
    """Return the folder for the caches of this user (XDG_CACHE_HOME)."""
    return path_setting("XDG_CACHE_HOME") or Path.home() / ".cache"


def hub_home() -> Path:
    """Return Hugging Face's folder for settings and caches (HF_HOME)."""
    return path_setting("HF_HOME") or cache_home() / "huggingface"


def link(blob: Path, pointer: Path) -> None:
    """Make a file of a snapshot a relative symlink to its blob; without symlinks, a hard link or a copy."""
    pointer.parent.mkdir(parents=True, exist_ok=True)
    temporary = pointer.with_name(f"{pointer.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        try:
            temporary.symlink_to(os.path.relpath(blob, pointer.parent))
        except OSError:
            try:
                # A blob may itself be a relative link to a shared blob, which is valid only in its own place.
                os.link(blob.resolve(), temporary)
            except OSError:
                shutil.copyfile(blob, temporary)
        replace(temporary, pointer)
    finally:
        temporary.unlink(missing_ok=True)


def write_ref(wanted: Wanted, commit: str) -> None:
    """Record the commit of a branch. This is the last step: a recorded commit always has the file, also offline."""
    if wanted.cached_commit() != commit:
        wanted.ref.parent.mkdir(parents=True, exist_ok=True)
        temporary = wanted.ref.with_name(f"{wanted.ref.name}.{uuid.uuid4().hex[:8]}.tmp")
        temporary.write_text(commit)
        replace(temporary, wanted.ref)
