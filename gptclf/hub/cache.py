"""Where the Hugging Face cache keeps a hub repository's files: paths, links and the commits branches stand for.

The layout is huggingface_hub's: blobs/<etag>, snapshots/<commit>/<file> as links to them, refs/<branch>. Nothing
here asks a network. Environment variables are read at each call.
"""

import math
import os
import re
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from urllib.parse import quote

from gptclf.hub.partial import replace

COMMIT = re.compile(r"[0-9a-f]{40}")
# "--" is in no hub name: the cache writes owner/name as owner--name.
_REPO = re.compile(r"(?!.*(--|\.\.))(\w[\w.-]{0,95}/)?\w[\w.-]{0,95}", re.ASCII)


def endpoint() -> str:
    """The hub's address, or a mirror's (HF_ENDPOINT)."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


@dataclass(frozen=True)
class Wanted:
    """A file of a repository at a revision, and where the cache keeps what is known of it."""

    repo: str
    filename: str
    revision: str
    cache: Path

    def __str__(self) -> str:
        return f"{self.filename!r} of repository {self.repo!r} (revision {self.revision!r})"

    @property
    def folder(self) -> Path:
        """The repository's folder in the cache."""
        return self.cache / f"models--{self.repo.replace('/', '--')}"

    @property
    def ref(self) -> Path:
        """The file that says which commit the branch is."""
        return self.folder / "refs" / self.revision

    def snapshot(self, commit: str) -> Path:
        """Where the file lies, or will, for a commit."""
        return self.folder / "snapshots" / commit / self.filename

    def missing_mark(self, commit: str) -> Path:
        """The empty file that records that a commit has no such file."""
        return self.folder / ".no_exist" / commit / self.filename

    def cached_commit(self) -> str | None:
        """The commit that the revision is, as far as the cache knows."""
        if COMMIT.fullmatch(self.revision):
            return self.revision
        commit = self.ref.read_bytes().decode("ascii", "replace").strip() if self.ref.is_file() else ""
        return commit if COMMIT.fullmatch(commit) else None

    def url(self, revision: str) -> str:
        """The file's address on the hub."""
        return f"{endpoint()}/{self.repo}/resolve/{quote(revision, safe='')}/{quote(self.filename)}"


def wanted_file(repo: str, filename: str, revision: str | None, cache_dir: str | Path | None) -> Wanted:
    """A checked `Wanted`: no name may lead out of the cache or the repository."""
    revision = "main" if revision is None else revision
    if not _REPO.fullmatch(repo):
        raise ValueError(f"repository {repo!r} is not a hub name; give owner/name, or name, of letters, digits, - _ .")
    for what, path in (("file name", filename), ("revision", revision)):
        if PureWindowsPath(path).drive or {"", ".", ".."} & set(re.split(r"[/\\]", path)):
            raise ValueError(f"{what} {path!r} may leave the repository; give a relative path without '..'")
    return Wanted(repo, filename, revision, _cache_root() if cache_dir is None else Path(cache_dir))


def is_on(name: str) -> bool:
    """Whether an environment variable is set to something that means yes."""
    return os.environ.get(name, "").upper() in {"1", "ON", "YES", "TRUE"}


def path_setting(name: str) -> Path | None:
    """The path an environment variable gives, or None."""
    value = os.environ.get(name)
    return Path(os.path.expandvars(value)).expanduser() if value else None


def timeout_seconds(name: str) -> float:
    """The seconds an environment variable gives; 10 if it is not set."""
    value = os.environ.get(name) or "10"
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise ValueError(f"{name} is {value!r}; give a number of seconds above 0")
    return seconds


def cache_home() -> Path:
    """The folder of this user's caches (XDG_CACHE_HOME)."""
    return path_setting("XDG_CACHE_HOME") or Path.home() / ".cache"


def hub_home() -> Path:
    """Hugging Face's folder for settings and caches (HF_HOME)."""
    return path_setting("HF_HOME") or cache_home() / "huggingface"


def _cache_root() -> Path:
    return path_setting("HF_HUB_CACHE") or path_setting("HUGGINGFACE_HUB_CACHE") or hub_home() / "hub"


def link(blob: Path, pointer: Path) -> None:
    """Make the snapshot's file a relative symlink; a hard link or a copy where the system has none."""
    pointer.parent.mkdir(parents=True, exist_ok=True)
    temporary = pointer.with_name(f"{pointer.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        try:
            temporary.symlink_to(os.path.relpath(blob, pointer.parent))
        except OSError:
            _hard_link_or_copy(blob, temporary)
        replace(temporary, pointer)
    finally:
        temporary.unlink(missing_ok=True)


def _hard_link_or_copy(source: Path, target: Path) -> None:
    try:
        # A blob may itself be a link to one that repositories share: a relative one, which holds in its place alone.
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def write_ref(wanted: Wanted, commit: str) -> None:
    """Record what a branch stands for; the last step, so that offline no commit lacks the file it is for."""
    if wanted.cached_commit() != commit:
        wanted.ref.parent.mkdir(parents=True, exist_ok=True)
        temporary = wanted.ref.with_name(f"{wanted.ref.name}.{uuid.uuid4().hex[:8]}.tmp")
        temporary.write_text(commit)
        replace(temporary, wanted.ref)
