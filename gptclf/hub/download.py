"""Downloading one file of a Hugging Face hub repository into the standard Hugging Face cache, or finding it there.

This module implements the hub's protocol: the metadata in its responses and the meaning of its errors. Transfers are in
transfer.py, the layout of the cache is in cache.py; which files make up a model is up to the caller. Environment
variables are read at each call.
"""

import dataclasses
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from gptclf.hub import cache
from gptclf.hub.cache import COMMIT, Wanted, endpoint, is_on
from gptclf.hub.http import CutError, Source, announced_size, origin, raise_for_status, retry, send
from gptclf.hub.partial import writing
from gptclf.hub.transfer import fetch, is_intact

if TYPE_CHECKING:
    import requests

BY_HAND = "Offline, put config.json, model.safetensors, vocab.json, merges.txt in a folder; pass its path to load_gpt2."

_ETAG = re.compile(r"\w[\w.-]*", re.ASCII)


class EntryNotFoundError(FileNotFoundError):
    """The repository and revision exist but do not have the file; catch this to probe for an optional file."""


def hub_file(repo: str, filename: str, *, revision: str | None = None, cache_dir: str | Path | None = None) -> Path:
    """Return the path of a file in the Hugging Face cache, downloading the file first if it is not cached.

    A cached file is returned without any network request. A branch means the commit that the cache has recorded for
    it, so files downloaded at different times come from the same commit. The hub is asked for the branch's current
    commit only if the cache has none, or if the hub no longer has the recorded one.

    Args:
        repo: The repository, such as "openai-community/gpt2".
        filename: The path of the file inside the repository, with forward slashes.
        revision: A branch, tag or commit; None means "main".
        cache_dir: The folder of the cache; None means HF_HUB_CACHE, HF_HOME or their defaults.

    Raises:
        EntryNotFoundError: The repository does not have the file.
        FileNotFoundError: The repository or revision does not exist, or the file is not cached and the
            environment forbids network access.
        PermissionError: The hub denies access with HF_TOKEN; or the cache is not writable.
        ConnectionError: The hub could not be reached, was busy, or the connection was cut repeatedly.
        OSError: The download does not match what the hub announced, or the disk is full.
        ValueError: The repository, file name or revision is malformed.
    """
    wanted = cache.wanted_file(repo, filename, revision, cache_dir)
    commit = wanted.cached_commit()
    if commit is not None and wanted.snapshot(commit).is_file():
        return wanted.snapshot(commit)
    if commit is not None and (mark := wanted.missing_mark(commit)).is_file():
        raise EntryNotFoundError(f"There is no {wanted} at commit {commit}; delete {mark} to ask the hub again.")
    if is_on("HF_HUB_OFFLINE") or is_on("TRANSFORMERS_OFFLINE"):
        problem = f"{wanted} is not in the cache {wanted.cache}, and HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set"
        remedy = f"Unset it to allow the network, or point HF_HOME at the cache that has the file. {BY_HAND}"
        raise FileNotFoundError(f"{problem}. {remedy}")
    remote = retry(lambda: _look_up(wanted, commit), on=CutError)
    pointer = wanted.snapshot(remote.commit)
    if pointer.is_file():
        # The cache may be read-only, for example a shared one.
        with suppress(OSError):
            cache.write_ref(wanted, remote.commit)
        return pointer
    source, blob = remote.source, wanted.folder / "blobs" / remote.etag
    if not is_intact(source, blob):  # its writer may have been interrupted
        fetch(source, blob)
    with writing(source.what, pointer.parent, source.elsewhere):
        cache.link(blob, pointer)
        cache.write_ref(wanted, remote.commit)
    return pointer


def cached_file(
    repo: str, filename: str, *, revision: str | None = None, cache_dir: str | Path | None = None
) -> Path | None:
    """Return the path of a file if it is in the cache, else None, without any network request."""
    wanted = cache.wanted_file(repo, filename, revision, cache_dir)
    commit = wanted.cached_commit()
    return wanted.snapshot(commit) if commit is not None and wanted.snapshot(commit).is_file() else None


class _Remote(NamedTuple):
    """The hub's metadata of a file: its names in the cache, and where to download it."""

    commit: str
    etag: str
    source: Source


def _source(wanted: Wanted, revision: str, timeout: str) -> Source:
    return Source(
        url=wanted.url(revision),
        what=str(wanted),
        advice=f"HF_ENDPOINT (now {endpoint()}) may name a mirror of the hub. {BY_HAND}",
        elsewhere="set HF_HOME to a folder with room for the cache that you may write to.",
        timeout=cache.timeout_seconds(timeout),
        token=_token(),
        refuse=lambda response: _raise_for_hub_code(response, wanted),
        progress=not is_on("HF_HUB_DISABLE_PROGRESS_BARS"),
    )


def _token() -> str | None:
    if is_on("HF_HUB_DISABLE_IMPLICIT_TOKEN"):
        return None
    token = os.environ.get("HF_TOKEN", "").strip()
    if not token:
        with suppress(OSError):
            token = (cache.path_setting("HF_TOKEN_PATH") or cache.hub_home() / "token").read_text().strip()
    return token or None


def _raise_for_hub_code(response: "requests.Response", wanted: Wanted) -> None:
    if origin(response.url) != origin(endpoint()):
        return  # the storage servers that the hub redirects to do not use its error codes
    status, code = response.status_code, response.headers.get("X-Error-Code", "")
    said = f"{response.url} answered {status} ({response.headers.get('X-Error-Message') or response.reason})"
    if status in (401, 403):
        sent = "The token sent" if "Authorization" in response.request.headers else "No token was sent, which"
        why = "does not open a private or gated repository; a name that does not exist gets the same answer"
        remedy = "Check the name, and set HF_TOKEN to a token with access."
        raise PermissionError(f"No access to {wanted}: {said}. {sent} {why}. {remedy}")
    if status == 404 and code == "EntryNotFound":
        raise EntryNotFoundError(f"The repository has no such file: {wanted}; {said}. Check the file's name.")
    if status == 404:
        what = {"RepoNotFound": "repository", "RevisionNotFound": "revision"}.get(code, "repository, revision or file")
        raise FileNotFoundError(f"There is no such {what}: {wanted}; {said}. Check the names.")


def _look_up(wanted: Wanted, commit: str | None) -> _Remote:
    """Look the file up at the cached commit, or on the branch if there is none or the hub no longer has it."""
    try:
        return _metadata(wanted, wanted.revision if commit is None else commit)
    except FileNotFoundError as error:
        if isinstance(error, EntryNotFoundError) or commit in (None, wanted.revision):
            raise
        return _metadata(wanted, wanted.revision)


def _metadata(wanted: Wanted, revision: str) -> _Remote:
    source = _source(wanted, revision, "HF_HUB_ETAG_TIMEOUT")
    with send("HEAD", source, follow=_is_within_hub) as response:
        head = response.headers
        commit = head.get("X-Repo-Commit", "")
        if head.get("X-Error-Code") == "EntryNotFound" and COMMIT.fullmatch(commit):
            with suppress(OSError):
                wanted.missing_mark(commit).parent.mkdir(parents=True, exist_ok=True)
                wanted.missing_mark(commit).touch()
        if not response.is_redirect:
            raise_for_status(response, source)
        etag = (head.get("X-Linked-Etag") or head.get("ETag", "")).removeprefix("W/").strip('"')
        # Both become file names here, so their form is checked: a mirror could send anything.
        if not COMMIT.fullmatch(commit) or not _ETAG.fullmatch(etag):
            said = f"{response.url} gives X-Repo-Commit {commit!r} and ETag {etag!r}, not a commit and a hash"
            raise OSError(source.problem(f"{said}. Check HF_ENDPOINT and the proxy"))
        linked = head.get("X-Linked-Size", "")
        size = int(linked) if re.fullmatch(r"[0-9]{1,18}", linked) else announced_size(response)
    # The ETag is the sha256 of a large file or git's blob sha1 of a small one; mirrors may use others.
    digest = etag if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", etag) else None
    source = dataclasses.replace(_source(wanted, commit, "HF_HUB_DOWNLOAD_TIMEOUT"), size=size, digest=digest)
    return _Remote(commit, etag, source)


def _is_within_hub(response: "requests.Response", target: str) -> bool:
    """Return True if a redirect leads to another page of the hub. A redirect to storage already has the metadata."""
    return "X-Linked-Etag" not in response.headers and origin(target) == origin(response.url)
