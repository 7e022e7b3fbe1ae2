"""Gets one file of a Hugging Face hub repository into, or out of, the standard Hugging Face cache.

It owns the hub's protocol (metadata, resume, checks, errors) and the cache's layout; what a file means, and which files
make up a model, is the loader's business. Environment variables are read at each call.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote, urljoin, urlsplit

if TYPE_CHECKING:
    import requests

__all__ = ["EntryNotFoundError", "cached_file", "hub_file"]

RETRY_WAITS_SECONDS: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)
MAX_RETRY_AFTER_SECONDS = 60.0
PROGRESS_FROM_BYTES = 5_000_000
CHUNK_BYTES = 1 << 20
MAX_REDIRECTS = 10

BY_HAND = (
    "To work without a network, put config.json, model.safetensors, vocab.json and merges.txt into a folder "
    "and pass its path to load_gpt2."
)

_COMMIT = re.compile(r"[0-9a-f]{40}")
_ETAG = re.compile(r"\w[\w.-]*", re.ASCII)
# hub names; "--" is not one of them, as the cache writes owner/name as owner--name.
_REPO = re.compile(r"(?!.*(--|\.\.))(\w[\w.-]{0,95}/)?\w[\w.-]{0,95}", re.ASCII)

_T = TypeVar("_T")
_logger = logging.getLogger(__name__)


class EntryNotFoundError(FileNotFoundError):
    """The repository and the revision exist and hold no such file: what a probe for an optional file catches."""


class _BusyError(ConnectionError):
    """The server asks to come back later."""

    def __init__(self, message: str, retry_after_seconds: float) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


def hub_file(
    repo: str, filename: str, *, revision: str | None = None, cache_dir: str | Path | None = None
) -> Path:
    """Return the path of a repository's file in the Hugging Face cache, downloading it if it is not there.

    A cached file is returned without any network call. A branch means the commit the cache knows it by, so files
    fetched at different times are of one commit; only an unknown branch is looked up.

    Args:
        repo: The repository, such as "openai-community/gpt2".
        filename: The file's path inside the repository, with forward slashes.
        revision: A branch, tag or commit; None means "main".
        cache_dir: The cache's folder; None means what HF_HUB_CACHE, HF_HOME or their defaults say.

    Raises:
        EntryNotFoundError: The repository holds no such file.
        FileNotFoundError: There is no such repository or revision, or the file is not cached and this is offline.
        PermissionError: The hub wants another token than HF_TOKEN.
        ConnectionError: The hub could not be reached, was busy, or the connection kept being cut.
        OSError: What arrived is not what the hub announced, or the disk is full.
        ValueError: The repository, file name, revision or an environment variable is not well formed.
    """
    wanted = _wanted(repo, filename, revision, cache_dir)
    commit = wanted.cached_commit()
    if commit is not None and wanted.snapshot(commit).is_file():
        return wanted.snapshot(commit)
    if commit is not None and wanted.missing_mark(commit).is_file():
        mark = wanted.missing_mark(commit)
        raise EntryNotFoundError(f"{wanted} does not exist at commit {commit}; delete {mark} to ask the hub again")
    if _is_on("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        raise FileNotFoundError(
            f"{wanted} is not in the cache {wanted.cache}, and HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE forbids the "
            f"network. Unset it to download, or point HF_HOME at the cache that has the file. {BY_HAND}"
        )
    remote = _retry(lambda: _look_up(wanted, commit), on=_BusyError)
    pointer = wanted.snapshot(remote.commit)
    if not pointer.is_file():
        blob = wanted.folder / "blobs" / remote.etag
        if not blob.is_file() or remote.size not in (None, blob.stat().st_size):
            _download(wanted, remote, blob)
        _link(blob, pointer)
    _write_ref(wanted, remote.commit)
    return pointer


def cached_file(
    repo: str, filename: str, *, revision: str | None = None, cache_dir: str | Path | None = None
) -> Path | None:
    """Return the path of a repository's file if the Hugging Face cache has it, else None; never the network.

    Args:
        repo: The repository, such as "openai-community/gpt2".
        filename: The file's path inside the repository, with forward slashes.
        revision: A branch, tag or commit; None means "main".
        cache_dir: The cache's folder; None means what HF_HUB_CACHE, HF_HOME or their defaults say.

    Raises:
        ValueError: The repository, file name or revision is not well formed.
    """
    wanted = _wanted(repo, filename, revision, cache_dir)
    commit = wanted.cached_commit()
    return wanted.snapshot(commit) if commit is not None and wanted.snapshot(commit).is_file() else None


@dataclass(frozen=True)
class _Wanted:
    """A file of a repository at a revision, and where the cache keeps what is known of it."""

    repo: str
    filename: str
    revision: str
    cache: Path

    def __str__(self) -> str:
        return f"{self.filename!r} of repository {self.repo!r} (revision {self.revision!r})"

    @property
    def folder(self) -> Path:
        return self.cache / f"models--{self.repo.replace('/', '--')}"

    @property
    def ref(self) -> Path:
        return self.folder / "refs" / self.revision

    def snapshot(self, commit: str) -> Path:
        return self.folder / "snapshots" / commit / self.filename

    def missing_mark(self, commit: str) -> Path:
        return self.folder / ".no_exist" / commit / self.filename

    def cached_commit(self) -> str | None:
        if _COMMIT.fullmatch(self.revision):
            return self.revision
        commit = self.ref.read_text().strip() if self.ref.is_file() else ""
        return commit if _COMMIT.fullmatch(commit) else None

    def url(self, revision: str) -> str:
        return f"{_endpoint()}/{self.repo}/resolve/{quote(revision, safe='')}/{quote(self.filename)}"


@dataclass(frozen=True)
class _Remote:
    """What the hub says of a file: its commit, its hash, its bytes (None: not said)."""

    commit: str
    etag: str
    size: int | None


def _wanted(repo: str, filename: str, revision: str | None, cache_dir: str | Path | None) -> _Wanted:
    if not _REPO.fullmatch(repo):
        raise ValueError(f"repository {repo!r} is not a hub name; give owner/name, or name, in letters, digits, - _ .")
    revision = "main" if revision is None else revision
    for what, path in (("file name", filename), ("revision", revision)):
        if PureWindowsPath(path).drive or {"", ".", ".."} & set(re.split(r"[/\\]", path)):
            raise ValueError(f"{what} {path!r} leaves the repository; give a relative path without '..'")
    return _Wanted(repo, filename, revision, _cache_root() if cache_dir is None else Path(cache_dir))


def _is_on(*names: str) -> bool:
    return any(os.environ.get(name, "").upper() in {"1", "ON", "YES", "TRUE"} for name in names)


def _path_setting(*names: str) -> Path | None:
    values = (os.environ.get(name) for name in names)
    return next((Path(os.path.expandvars(value)).expanduser() for value in values if value), None)


def _home() -> Path:
    return _path_setting("HF_HOME") or (_path_setting("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"


def _cache_root() -> Path:
    return _path_setting("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE") or _home() / "hub"


def _endpoint() -> str:
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def _timeout_seconds(name: str) -> float:
    value = os.environ.get(name) or "10"
    try:
        return float(value)
    except ValueError:
        raise ValueError(f"{name} is {value!r}; give a number of seconds") from None


def _token() -> str | None:
    if _is_on("HF_HUB_DISABLE_IMPLICIT_TOKEN"):
        return None
    token = os.environ.get("HF_TOKEN", "").strip()
    if not token:
        with suppress(OSError):
            token = (_path_setting("HF_TOKEN_PATH") or _home() / "token").read_text().strip()
    return token or None


def _retry(attempt: Callable[[], _T], on: type[ConnectionError]) -> _T:
    for wait in RETRY_WAITS_SECONDS:
        try:
            return attempt()
        except on as error:
            asked = error.retry_after_seconds if isinstance(error, _BusyError) else 0.0
            wait = max(wait, min(asked, MAX_RETRY_AFTER_SECONDS))
            _logger.info("%s Trying again in %g s.", error, wait)
            time.sleep(wait)
    return attempt()


def _send(wanted: _Wanted, method: str, url: str, seconds: float, **headers: str) -> requests.Response:
    """Answer of the hub; redirects of a GET are followed anywhere, those of a HEAD on the same host."""
    import requests

    for _ in range(MAX_REDIRECTS):
        token = _token() if _origin(url) == _origin(_endpoint()) else None
        try:
            response = requests.request(
                method,
                url,
                headers={"Accept-Encoding": "identity", **headers},
                # As `auth`, for requests would put a password from ~/.netrc in place of a plain header.
                auth=_bearer(token) if token else None,
                timeout=seconds,
                stream=True,
                allow_redirects=False,
            )
        except requests.RequestException as error:
            if isinstance(error, ValueError):  # requests' errors for malformed addresses are both
                raise ValueError(f"{url!r} is no address: {error}; HF_ENDPOINT is {_endpoint()!r}") from error
            raise ConnectionError(
                f"Could not get {wanted} from {url}: {error}. Check the network and its proxy, or set HF_ENDPOINT to "
                f"a mirror. {BY_HAND}"
            ) from error
        target = urljoin(url, response.headers.get("Location", ""))
        answers = "X-Linked-Etag" in response.headers or _origin(target) != _origin(url)
        if not response.is_redirect or (method == "HEAD" and answers):
            return response
        response.close()
        url = target
    raise ConnectionError(f"Could not get {wanted}: more than {MAX_REDIRECTS} redirects, the last to {url}.")


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _bearer(token: str) -> Callable[[requests.PreparedRequest], requests.PreparedRequest]:
    def authorize(request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {token}"
        return request

    return authorize


def _raise_for_status(response: requests.Response, wanted: _Wanted) -> None:
    status, code = response.status_code, response.headers.get("X-Error-Code")
    said = f"{response.url} answered {status} ({response.headers.get('X-Error-Message') or response.reason})"
    if status < 400:
        return
    if status in (401, 403):
        token = "The token sent" if "Authorization" in response.request.headers else "No token was sent, and it"
        raise PermissionError(
            f"No access to {wanted}: {said}. {token} does not open it, or the name is wrong. Check the name, ask for "
            f"access on the repository's page, and set HF_TOKEN to a token that may read it."
        )
    if status == 404 and code == "EntryNotFound":
        raise EntryNotFoundError(f"The repository has no such file: {wanted}; {said}. Check the file's name.")
    if status == 404:
        what = {"RepoNotFound": "repository", "RevisionNotFound": "revision"}.get(str(code), "file, or repository,")
        raise FileNotFoundError(f"There is no such {what} for {wanted}: {said}. Check the names.")
    if status in (408, 429) or status >= 500:
        asked = response.headers.get("Retry-After", "")
        message = f"The hub is busy or broken: {said} for {wanted}. Try again later, or set HF_ENDPOINT to a mirror."
        raise _BusyError(f"{message} {BY_HAND}", float(asked) if asked.isdecimal() else 0.0)
    raise OSError(f"Could not get {wanted}: {said}.")
