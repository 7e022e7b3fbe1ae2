"""Gets one file of a Hugging Face hub repository into, or out of, the standard Hugging Face cache.

It owns the hub's protocol: metadata, resume, checks, errors. The cache's layout is hub_cache.py's; which files make up
a model is the loader's business. Environment variables are read at each call.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urljoin, urlsplit

from gptclf.weights.hub_cache import (
    COMMIT,
    Wanted,
    endpoint,
    hub_home,
    is_on,
    link,
    path_setting,
    replace,
    wanted_file,
    write_ref,
)

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

_ETAG = re.compile(r"\w[\w.-]*", re.ASCII)
_T = TypeVar("_T")
_logger = logging.getLogger(__name__)


class EntryNotFoundError(FileNotFoundError):
    """The repository and revision exist but hold no such file: what a probe for an optional file catches."""


class _BusyError(ConnectionError):
    retry_after_seconds = 0.0


def hub_file(repo: str, filename: str, *, revision: str | None = None, cache_dir: str | Path | None = None) -> Path:
    """Return the path of a repository's file in the Hugging Face cache, downloading it if it is not there.

    A cached file is returned without any network call. A branch means the commit the cache knows it by, so
    files fetched at different times are of one commit; the hub is asked what it means now only if the cache
    knows none or the hub has it no more.

    Args:
        repo: The repository, such as "openai-community/gpt2".
        filename: The file's path inside the repository, with forward slashes.
        revision: A branch, tag or commit; None means "main".
        cache_dir: The cache's folder; None means what HF_HUB_CACHE, HF_HOME or their defaults say.

    Raises:
        EntryNotFoundError: The repository holds no such file.
        FileNotFoundError: No such repository or revision, or no cached file and no network allowed.
        PermissionError: The hub wants another token than HF_TOKEN.
        ConnectionError: The hub could not be reached, was busy, or the connection kept being cut.
        OSError: What arrived is not what the hub announced, or the disk is full.
        ValueError: The repository, file name or revision is not well formed.
    """
    wanted = wanted_file(repo, filename, revision, cache_dir)
    commit = wanted.cached_commit()
    if commit is not None and wanted.snapshot(commit).is_file():
        return wanted.snapshot(commit)
    if commit is not None and (mark := wanted.missing_mark(commit)).is_file():
        raise EntryNotFoundError(f"There is no {wanted} at commit {commit}; delete {mark} to ask the hub again.")
    if is_on("HF_HUB_OFFLINE") or is_on("TRANSFORMERS_OFFLINE"):
        raise FileNotFoundError(
            f"{wanted} is not in the cache {wanted.cache}, and HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE "
            f"forbids the network. Unset it to download, or point HF_HOME at the cache that has the file. {BY_HAND}"
        )
    remote = _retry(lambda: _look_up(wanted, commit), on=_BusyError)
    pointer = wanted.snapshot(remote.commit)
    if not pointer.is_file():
        blob = wanted.folder / "blobs" / remote.etag
        if not blob.is_file() or remote.size not in (None, blob.stat().st_size):
            _download(wanted, remote, blob)
        link(blob, pointer)
    write_ref(wanted, remote.commit)
    return pointer


def cached_file(
    repo: str, filename: str, *, revision: str | None = None, cache_dir: str | Path | None = None
) -> Path | None:
    """Return what `hub_file` would if the file is in the cache, else None; never the network."""
    wanted = wanted_file(repo, filename, revision, cache_dir)
    commit = wanted.cached_commit()
    return wanted.snapshot(commit) if commit is not None and wanted.snapshot(commit).is_file() else None


@dataclass(frozen=True)
class _Remote:
    """What the hub says of a file; a size of None is one it does not say."""

    commit: str
    etag: str
    size: int | None


def _timeout_seconds(name: str) -> float:
    value = os.environ.get(name) or "10"
    try:
        return float(value)
    except ValueError:
        raise ValueError(f"{name} is {value!r}; give a number of seconds") from None


def _token() -> str | None:
    if is_on("HF_HUB_DISABLE_IMPLICIT_TOKEN"):
        return None
    token = os.environ.get("HF_TOKEN", "").strip()
    if not token:
        with suppress(OSError):
            token = (path_setting("HF_TOKEN_PATH") or hub_home() / "token").read_text().strip()
    return token or None


def _retry(attempt: Callable[[], _T], on: type[ConnectionError]) -> _T:
    for wait in RETRY_WAITS_SECONDS:
        try:
            return attempt()
        except on as error:
            asked = error.retry_after_seconds if isinstance(error, _BusyError) else 0.0
            seconds = max(wait, min(asked, MAX_RETRY_AFTER_SECONDS))
            _logger.info("%s Trying again in %g s.", error, seconds)
            time.sleep(seconds)
    return attempt()


def _send(wanted: Wanted, method: str, url: str, timeout: str, **headers: str) -> requests.Response:
    """Ask for `url`; a GET follows redirects anywhere, a HEAD on its host. The token is for the hub alone."""
    import requests

    for _ in range(MAX_REDIRECTS):
        token = _token() if _origin(url) == _origin(endpoint()) else None
        try:
            response = requests.request(
                method,
                url,
                headers={"Accept-Encoding": "identity", **headers},
                # As `auth`, for requests would put a password from ~/.netrc in place of a plain header.
                auth=_bearer(token) if token else None,
                timeout=_timeout_seconds(timeout),
                stream=True,
                allow_redirects=False,
            )
        except requests.RequestException as error:
            raise ConnectionError(
                f"Could not get {wanted} from {url}: {error}. Check the network and its proxy, or set "
                f"HF_ENDPOINT (now {endpoint()}) to a mirror. {BY_HAND}"
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


def _raise_for_status(response: requests.Response, wanted: Wanted) -> None:
    status, code = response.status_code, response.headers.get("X-Error-Code", "")
    said = f"{response.url} answered {status} ({response.headers.get('X-Error-Message') or response.reason})"
    if status in (401, 403):
        sent = "The token sent" if "Authorization" in response.request.headers else "No token was sent, which"
        raise PermissionError(
            f"No access to {wanted}: {said}. {sent} does not open a private or gated repository; the hub "
            "answers alike to a name it does not know. Check the name, and set HF_TOKEN to a token that may read it."
        )
    if status == 404 and code == "EntryNotFound":
        raise EntryNotFoundError(f"The repository has no such file: {wanted}; {said}. Check the file's name.")
    if status == 404:
        what = {"RepoNotFound": "repository", "RevisionNotFound": "revision"}.get(code, "repository, revision or file")
        raise FileNotFoundError(f"There is no such {what}: {wanted}; {said}. Check the names.")
    if status in (408, 429) or status >= 500:
        busy = _BusyError(f"The hub has no time for {wanted}: {said}. Try later, or set HF_ENDPOINT to a mirror.")
        asked = response.headers.get("Retry-After", "")
        busy.retry_after_seconds = float(asked) if asked.isdecimal() else 0.0
        raise busy
    if status >= 400:
        raise OSError(f"Could not get {wanted}: {said}.")


def _look_up(wanted: Wanted, commit: str | None) -> _Remote:
    """Ask for the file at the commit the cache knows; on the branch if it knows none or the hub dropped it."""
    try:
        return _metadata(wanted, wanted.revision if commit is None else commit)
    except EntryNotFoundError:
        raise
    except FileNotFoundError:
        if commit in (None, wanted.revision):
            raise
        return _metadata(wanted, wanted.revision)


def _metadata(wanted: Wanted, revision: str) -> _Remote:
    with _send(wanted, "HEAD", wanted.url(revision), "HF_HUB_ETAG_TIMEOUT") as response:
        head = response.headers
        commit = head.get("X-Repo-Commit", "")
        if head.get("X-Error-Code") == "EntryNotFound" and COMMIT.fullmatch(commit):
            with suppress(OSError):
                wanted.missing_mark(commit).parent.mkdir(parents=True, exist_ok=True)
                wanted.missing_mark(commit).touch()
        _raise_for_status(response, wanted)
        etag = (head.get("X-Linked-Etag") or head.get("ETag", "")).removeprefix("W/").strip('"')
        # Both become file names here, so a mirror may not choose them freely.
        if not COMMIT.fullmatch(commit) or not _ETAG.fullmatch(etag):
            raise OSError(
                f"{response.url} answered with X-Repo-Commit {commit!r} and ETag {etag!r}, where a hub gives "
                f"a commit and a hash. Check HF_ENDPOINT (now {endpoint()}) and the proxy. {BY_HAND}"
            )
        size = head.get("X-Linked-Size") or ("" if response.is_redirect else head.get("Content-Length", ""))
    return _Remote(commit, etag, int(size) if size.isdecimal() else None)


def _download(wanted: Wanted, remote: _Remote, blob: Path) -> None:
    blob.parent.mkdir(parents=True, exist_ok=True)
    left_over = blob.with_name(f"{blob.name}.incomplete")
    # Renaming is atomic: of processes that want the same file one gets what is there, each writes its own.
    partial = blob.with_name(f"{blob.name}.{uuid.uuid4().hex[:8]}.incomplete")
    with suppress(OSError):
        left_over.rename(partial)
    try:
        _fetch(wanted, remote, partial)
        replace(partial, blob)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        partial.unlink(missing_ok=True)
        raise OSError(
            error.errno,
            f"The disk or quota is full: {wanted} needs {remote.size} bytes in {blob.parent}. Free some, or "
            "set HF_HOME to a folder with room for the cache.",
        ) from error
    finally:
        with suppress(OSError):
            partial.replace(left_over)


def _fetch(wanted: Wanted, remote: _Remote, partial: Path) -> None:
    resumes = _size(partial) > 0
    while True:
        before = _size(partial)
        try:
            _retry(lambda: _transfer(wanted, remote, partial), on=ConnectionError)
            break
        except ConnectionError:
            if _size(partial) <= before:  # a poor connection may go on for as long as it brings something
                raise
    try:
        _verify(wanted, remote, partial)
    except OSError as error:
        if not resumes:
            raise
        _logger.warning("%s It was begun by an earlier run; downloading it anew.", error)
        _fetch(wanted, remote, partial)


def _transfer(wanted: Wanted, remote: _Remote, partial: Path) -> None:
    """Append what is missing; a ConnectionError leaves what arrived in `partial`."""
    import requests

    have = _size(partial)
    if have and have == remote.size:
        return
    headers = {"Range": f"bytes={have}-"} if have else {}
    with _send(wanted, "GET", wanted.url(remote.commit), "HF_HUB_DOWNLOAD_TIMEOUT", **headers) as response:
        if have and response.status_code == 416:
            partial.unlink()
            raise ConnectionError(f"The hub has no {wanted} from byte {have} on; starting anew.")
        _raise_for_status(response, wanted)
        with (
            partial.open("ab" if response.status_code == 206 else "wb") as file,
            _progress(wanted, remote.size or 0, file.tell()) as tell,
        ):
            try:
                for chunk in response.iter_content(CHUNK_BYTES):
                    file.write(chunk)
                    tell(file.tell())
            except requests.RequestException as error:
                raise ConnectionError(f"The connection was cut while getting {wanted}: {error}.") from error
            file.flush()
            os.fsync(file.fileno())
    # Not every urllib3 notices an early end.
    if _size(partial) < (remote.size or 0):
        raise ConnectionError(f"The connection ended at byte {_size(partial)} of {remote.size} of {wanted}.")


def _verify(wanted: Wanted, remote: _Remote, partial: Path) -> None:
    """Compare with the announced size and hash: the etag is sha256 of a large file, else git's blob sha1."""
    size = _size(partial)
    expected, got = str(remote.size), str(size)
    if remote.size in (None, size) and re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", remote.etag):
        digest = (
            hashlib.sha256() if len(remote.etag) == 64 else hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        )
        with partial.open("rb") as file:
            expected, got = remote.etag, hashlib.file_digest(file, lambda: digest).hexdigest()
    elif remote.size is None:
        return
    if expected != got:
        partial.unlink()
        raise OSError(f"{wanted} arrived damaged: expected size or hash {expected}, got {got}. Try again.")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


@contextmanager
def _progress(wanted: Wanted, total: int, done: int) -> Iterator[Callable[[int], object]]:
    """Give a function to be told how many bytes are there: a tqdm bar, or a logged line each tenth."""
    if total < PROGRESS_FROM_BYTES or is_on("HF_HUB_DISABLE_PROGRESS_BARS"):
        yield lambda done: None
    elif (tqdm := _tqdm()) is not None:
        with tqdm(desc=wanted.filename, total=total, initial=done, unit="B", unit_scale=True) as bar:
            yield lambda done: bar.update(done - bar.n)
    else:
        tenths = done * 10 // total

        def log(done: int) -> None:
            nonlocal tenths
            if done * 10 // total > tenths:
                tenths = done * 10 // total
                _logger.info("%s: %d of %d MB", wanted.filename, done // 10**6, total // 10**6)

        yield log


def _tqdm() -> Any:
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm
