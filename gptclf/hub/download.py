"""Gets one file of a Hugging Face hub repository into, or out of, the standard Hugging Face cache.

It owns the hub's protocol: what its answers say of a file, and what its refusals mean. Getting the bytes is
transfer.py's, the cache's layout hub_cache.py's; which files make up a model is the loader's business. Environment
variables are read at each call.
"""

from __future__ import annotations

import dataclasses
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gptclf.hub.cache import (
    COMMIT,
    Wanted,
    endpoint,
    hub_home,
    is_on,
    link,
    path_setting,
    timeout_seconds,
    wanted_file,
    write_ref,
)
from gptclf.hub.http import CutError, Source, announced_size, origin, raise_for_status, retry, send
from gptclf.hub.partial import writing
from gptclf.hub.transfer import DamagedError, fetch, verify

if TYPE_CHECKING:
    import requests

__all__ = ["EntryNotFoundError", "cached_file", "hub_file"]

BY_HAND = (
    "To work without a network, put config.json, model.safetensors, vocab.json and merges.txt into a folder "
    "and pass its path to load_gpt2."
)

_ETAG = re.compile(r"\w[\w.-]*", re.ASCII)


class EntryNotFoundError(FileNotFoundError):
    """The repository and revision exist but hold no such file: what a probe for an optional file catches."""


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
        PermissionError: The hub wants another token than HF_TOKEN; or the cache may not be written.
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
    remote = retry(lambda: _look_up(wanted, commit), on=CutError)
    pointer = wanted.snapshot(remote.commit)
    if pointer.is_file():
        # Somebody else's cache, say: it is only to be read.
        with suppress(OSError):
            write_ref(wanted, remote.commit)
        return pointer
    source, blob = remote.source, wanted.folder / "blobs" / remote.etag
    if not _is_right(blob, source):
        fetch(source, blob)
    with writing(source.what, pointer.parent, source.elsewhere):
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
    """What the hub says of a file: its names in the cache, and where to get it."""

    commit: str
    etag: str
    source: Source


def _is_right(blob: Path, source: Source) -> bool:
    """Whether a blob is there and what its name says: whoever wrote it may have been cut short."""
    if not blob.is_file():
        return False
    try:
        verify(source, blob)
    except DamagedError:
        return False
    return True


def _source(wanted: Wanted, revision: str, timeout: str) -> Source:
    def refuse(response: requests.Response) -> None:
        _raise_for_hub_code(response, wanted)

    return Source(
        url=wanted.url(revision),
        what=str(wanted),
        advice=f"HF_ENDPOINT (now {endpoint()}) may name a mirror of the hub. {BY_HAND}",
        elsewhere="set HF_HOME to a folder with room for the cache that you may write to.",
        timeout=timeout_seconds(timeout),
        token=_token(),
        refuse=refuse,
        progress=not is_on("HF_HUB_DISABLE_PROGRESS_BARS"),
    )


def _token() -> str | None:
    if is_on("HF_HUB_DISABLE_IMPLICIT_TOKEN"):
        return None
    token = os.environ.get("HF_TOKEN", "").strip()
    if not token:
        with suppress(OSError):
            token = (path_setting("HF_TOKEN_PATH") or hub_home() / "token").read_text().strip()
    return token or None


def _raise_for_hub_code(response: requests.Response, wanted: Wanted) -> None:
    if origin(response.url) != origin(endpoint()):
        return  # a store the hub sends to knows none of its codes
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
    source = _source(wanted, revision, "HF_HUB_ETAG_TIMEOUT")
    with send("HEAD", source, follow=_says_nothing_yet) as response:
        head = response.headers
        commit = head.get("X-Repo-Commit", "")
        if head.get("X-Error-Code") == "EntryNotFound" and COMMIT.fullmatch(commit):
            with suppress(OSError):
                wanted.missing_mark(commit).parent.mkdir(parents=True, exist_ok=True)
                wanted.missing_mark(commit).touch()
        if not response.is_redirect:
            raise_for_status(response, source)
        etag = (head.get("X-Linked-Etag") or head.get("ETag", "")).removeprefix("W/").strip('"')
        # Both become file names here, so a mirror may not choose them freely.
        if not COMMIT.fullmatch(commit) or not _ETAG.fullmatch(etag):
            raise OSError(
                f"{response.url} answered with X-Repo-Commit {commit!r} and ETag {etag!r}, where a hub gives "
                f"a commit and a hash. Check HF_ENDPOINT (now {endpoint()}) and the proxy. {BY_HAND}"
            )
        linked = head.get("X-Linked-Size", "")
        size = int(linked) if re.fullmatch(r"[0-9]{1,18}", linked) else announced_size(response)
    # The etag is sha256 of a large file, git's blob sha1 of a small one; a mirror may make up others.
    digest = etag if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", etag) else None
    source = dataclasses.replace(_source(wanted, commit, "HF_HUB_DOWNLOAD_TIMEOUT"), size=size, digest=digest)
    return _Remote(commit, etag, source)


def _says_nothing_yet(response: requests.Response, target: str) -> bool:
    """Whether a redirect is the hub's to another of its pages; one to a store comes with what is known of the file."""
    return "X-Linked-Etag" not in response.headers and origin(target) == origin(response.url)
