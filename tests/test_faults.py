"""Misbehaving servers, disks and processes: every case ends in the right file or a clear error, never a wrong file."""

import errno
import gzip
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from hub_server import COMMIT, Answer, Change, Hub, Mirror, running, serving
from huggingface_hub import hf_hub_download, try_to_load_from_cache

import gptclf
from gptclf.hub import http, partial, transfer
from gptclf.hub.download import EntryNotFoundError, cached_file, hub_file
from gptclf.hub.http import BusyError, CutError, Source
from gptclf.hub.partial import claimed
from gptclf.hub.transfer import DamagedError, fetch

REPO = "owner/name"
FOLDER = "models--owner--name"
BIG, SMALL = "model.safetensors", "config.json"
WEIGHTS = bytes(range(256)) * 40
CONFIG = b'{"n_layer": 12}'
OTHER = bytes(len(WEIGHTS))
PAGE = b"<html><body>Please sign in</body></html>"
HUGE_PAGE = PAGE * 1000


@dataclass
class World:
    """A hub, a storage server it may redirect to, a cache, and the means to break them."""

    hub: Hub
    store: Hub
    cache: Path
    monkeypatch: pytest.MonkeyPatch
    waits: list[float]

    @property
    def repo(self) -> Path:
        return self.cache / FOLDER

    @property
    def blobs(self) -> Path:
        return self.repo / "blobs"

    @property
    def pointer(self) -> Path:
        return self.repo / "snapshots" / COMMIT / BIG

    def gets(self) -> list[str | None]:
        return [request.headers.get("range") for request in self.hub.seen if request.method == "GET"]

    def heal(self) -> None:
        for server in (self.hub, self.store):
            server.faults = {"HEAD": [], "GET": []}
            server.always.clear()
            server.cuts.clear()
            server.ranges = server.announce_size = True
            server.extra.clear()
            server.renamed.clear()
            server.gone.clear()
            server.store = None
        self.hub.branches = {"main": COMMIT}
        self.monkeypatch.setenv("HF_ENDPOINT", self.hub.url)

    def check_cache(self) -> None:
        """Assert that every file in the cache has the content that belongs to its name."""
        for path in self.cache.rglob("*"):
            if path.is_file() and ".incomplete" not in path.name:
                content = path.read_bytes()
                if "snapshots" in path.parts:
                    assert content == self.hub.files.get(path.name, b""), path
                elif path.parent.name == "blobs":
                    git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
                    assert path.name in (git, hashlib.sha256(content).hexdigest()), path


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[World]:
    for name in list(os.environ):
        if name.startswith(("HF_", "HUGGINGFACE", "TRANSFORMERS_", "XDG_CACHE")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    monkeypatch.setattr(transfer, "CHUNK_BYTES", 100)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "0.3")
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "0.3")
    with serving() as hub, serving() as store:
        hub.files = store.files = {BIG: WEIGHTS, SMALL: CONFIG, "empty": b""}
        hub.large = store.large = {BIG}
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        built = World(hub, store, tmp_path / "hub", monkeypatch, waits)
        built.blobs.mkdir(parents=True)
        yield built


# The server


def once(method: str, *answers: Answer | Change) -> Callable[[World], None]:
    def set_up(world: World) -> None:
        world.hub.faults[method] = list(answers)

    return set_up


def forever(method: str, change: Change | Answer) -> Callable[[World], None]:
    def set_up(world: World) -> None:
        world.hub.always[method] = (lambda usual: change) if isinstance(change, Answer) else change

    return set_up


def cut_then(change: Answer | Change, *, at: int = 1000) -> Callable[[World], None]:
    """Cut the first response, and let the one that should resume it be faulty."""

    def set_up(world: World) -> None:
        world.hub.cuts = [at]
        world.hub.faults["GET"] = [lambda usual: usual, change]

    return set_up


def attributes(**values: Any) -> Callable[[World], None]:
    def set_up(world: World) -> None:
        for name, value in values.items():
            setattr(world.hub, name, value)

    return set_up


def both(*set_ups: Callable[[World], None]) -> Callable[[World], None]:
    def set_up(world: World) -> None:
        for one in set_ups:
            one(world)

    return set_up


def changed(**fields: Any) -> Change:
    return lambda usual: replace(usual, **fields)


def headers(**values: str | None) -> Change:
    """Change headers; None removes one."""

    def change(usual: Answer) -> Answer:
        named = {name.replace("_", "-"): value for name, value in values.items()}
        kept = {name: value for name, value in usual.headers.items() if name not in named}
        return replace(usual, headers=kept | {name: value for name, value in named.items() if value is not None})

    return change


def chained(*changes: Change) -> Change:
    def change(usual: Answer) -> Answer:
        for one in changes:
            usual = one(usual)
        return usual

    return change


def gzipped(usual: Answer) -> Answer:
    return replace(usual, headers={**usual.headers, "Content-Encoding": "gzip"}, body=gzip.compress(usual.body))


def broken_gzip(usual: Answer) -> Answer:
    return replace(gzipped(usual), body=b"no gzip at all")


def in_two_minutes(usual: Answer) -> Answer:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=42), usegmt=True)
    return Answer(429, {"Retry-After": date})


def store_elsewhere(world: World) -> None:
    world.hub.store = world.store


def store_that_refuses(world: World) -> None:
    world.hub.store = world.store
    world.store.always["GET"] = lambda usual: Answer(403)


def nobody_there(world: World) -> None:
    with serving() as stopped:
        world.monkeypatch.setenv("HF_ENDPOINT", stopped.url)


def no_address(world: World) -> None:
    world.monkeypatch.setenv("HF_ENDPOINT", "hub.example")


# The case, its setup, and how it ends: None for the right file, else the type and message of the error.
Ending = tuple[type[OSError], str] | None
SERVER_FAULTS: dict[str, tuple[Callable[[World], None], Ending]] = {
    "cut once": (attributes(cuts=[1000]), None),
    "cut again and again, with progress": (attributes(cuts=[1000] * 9), None),
    "cut again and again, without progress": (attributes(cuts=[1000] + [0] * 99), (ConnectionError, BIG)),
    "cut at the first byte": (attributes(cuts=[0]), None),
    "an early end of the connection, with no length": (once("GET", changed(body=WEIGHTS[:500], length=0)), None),
    "a shorter body, announced as such": (
        forever("GET", lambda usual: Answer(200, usual.headers, WEIGHTS[:500])),
        (CutError, f"byte 500 of {len(WEIGHTS)}"),
    ),
    "a longer body": (forever("GET", changed(body=WEIGHTS + b"more")), (DamagedError, f"expected .* {len(WEIGHTS)}")),
    "a body without end": (
        forever("GET", changed(body=WEIGHTS * 500, length=0)),
        (DamagedError, f"got {len(WEIGHTS) + 100 - len(WEIGHTS) % 100} or more"),
    ),
    "wrong bytes of the right length": (forever("GET", changed(body=OTHER)), (DamagedError, "hash .* Try again")),
    "wrong bytes once the connection was cut": (cut_then(changed(body=OTHER[1000:])), None),
    "a 206 that starts elsewhere": (
        cut_then(headers(Content_Range=f"bytes 900-{len(WEIGHTS) - 1}/{len(WEIGHTS)}")),
        None,
    ),
    "a 206 of another length": (cut_then(headers(Content_Range="bytes 1000-10239/99999")), None),
    "a 206 without its range": (cut_then(headers(Content_Range=None)), None),
    "a 206 of a changed file": (cut_then(chained(headers(ETag='"changed"'), changed(body=OTHER[1000:]))), None),
    "a 206 that nobody asked for": (once("GET", headers(Content_Range="bytes 5-9/10"), changed(status=206)), None),
    "a 206 of a part of what was asked for": (
        cut_then(
            chained(
                headers(Content_Range=f"bytes 1000-1999/{len(WEIGHTS)}"),
                lambda usual: replace(usual, body=usual.body[:1000]),
            )
        ),
        None,
    ),
    "a compressed 206": (cut_then(gzipped), None),
    "no ranges": (attributes(ranges=False, cuts=[1000]), None),
    "no ranges, and always cut": (attributes(ranges=False, cuts=[1000] * 99), (CutError, "cut")),
    "416": (cut_then(Answer(416)), None),
    "416 for ever": (
        both(attributes(cuts=[1000] * 99), forever("GET", lambda usual: usual if usual.status == 200 else Answer(416))),
        (ConnectionError, "byte 1000"),
    ),
    "429 with seconds": (once("GET", Answer(429, {"Retry-After": "7"})), None),
    "429 with a date": (once("GET", in_two_minutes), None),
    "429 with nonsense": (
        once("HEAD", Answer(429, {"Retry-After": "soon"}), Answer(429, {"Retry-After": "9" * 99})),
        None,
    ),
    "429 for ever": (forever("GET", Answer(429, {"Retry-After": "1"})), (BusyError, "429 .* Try again later")),
    "429 for ever when looked up": (forever("HEAD", Answer(429)), (BusyError, "429 .*HF_ENDPOINT")),
    "408, 500, 502, 503, then fine": (once("GET", *(Answer(status) for status in (408, 500, 502, 503))), None),
    "500, 502, 503, then fine when looked up": (once("HEAD", Answer(500), Answer(502), Answer(503)), None),
    "503 for ever": (forever("GET", Answer(503)), (BusyError, "503")),
    "401": (forever("HEAD", Answer(401)), (PermissionError, "HF_TOKEN")),
    "403": (forever("HEAD", Answer(403)), (PermissionError, "HF_TOKEN")),
    "403 at the download": (forever("GET", Answer(403)), (PermissionError, "HF_TOKEN")),
    "no such repository": (
        forever("HEAD", Answer(404, {"X-Error-Code": "RepoNotFound"})),
        (FileNotFoundError, "no such repository"),
    ),
    "no such revision": (attributes(branches={}), (FileNotFoundError, "no such revision")),
    "no such file": (
        forever("HEAD", Answer(404, {"X-Error-Code": "EntryNotFound"})),
        (EntryNotFoundError, "no such file"),
    ),
    "gone at the download": (forever("GET", Answer(404)), (FileNotFoundError, "no such")),
    "400": (forever("GET", Answer(400)), (OSError, "400")),
    "204 in place of the file": (forever("GET", Answer(204)), (OSError, "204")),
    "304 in place of the file": (forever("GET", Answer(304)), (OSError, "304")),
    "a redirect to nowhere": (forever("GET", Answer(302)), (OSError, "302")),
    "a redirect to another host": (store_elsewhere, None),
    "a redirect to a host that refuses": (store_that_refuses, (PermissionError, "403")),
    "a redirect loop": (attributes(renamed={REPO: REPO}), (ConnectionError, "redirects")),
    "a redirect loop at the download": (
        forever("GET", Answer(302, {"Location": f"/{REPO}/x"})),
        (ConnectionError, "redirects"),
    ),
    "a redirect to a local file": (
        forever("GET", Answer(302, {"Location": "file:///etc/hostname"})),
        (OSError, "file:"),
    ),
    "a redirect to a local file when looked up": (
        forever("HEAD", Answer(302, {"Location": "file:///etc/hostname"})),
        (OSError, "HF_ENDPOINT"),
    ),
    "a redirect to no address": (forever("GET", Answer(302, {"Location": "http://["})), (OSError, "invalid address")),
    "a redirect to no port": (
        forever("HEAD", Answer(302, {"Location": "http://127.0.0.1:99999/"})),
        (OSError, "invalid address"),
    ),
    "a redirect to ftp": (forever("GET", Answer(302, {"Location": "ftp://127.0.0.1/x"})), (OSError, "not an http")),
    "headers that come late once": (both(once("HEAD", changed(late=0.6)), once("GET", changed(late=0.6))), None),
    "headers that never come": (forever("GET", Answer(200, late=0.4)), (CutError, "timed out")),
    "a body that stalls": (once("GET", changed(body=WEIGHTS, drip=0.5)), None),
    "a body that drips": (once("GET", changed(drip=0.008)), None),
    "nobody there": (nobody_there, (ConnectionError, "HF_ENDPOINT")),
    "no address at all": (no_address, (OSError, "hub.example.*HF_ENDPOINT")),
    "hung up without an answer": (
        both(once("HEAD", Answer(0, silent=True)), once("GET", Answer(0, silent=True))),
        None,
    ),
    "hung up without an answer, always": (forever("HEAD", Answer(0, silent=True)), (CutError, "HF_ENDPOINT")),
    "compressed, though asked not to": (both(forever("HEAD", gzipped), forever("GET", gzipped)), None),
    "compressed and cut": (both(attributes(cuts=[30]), forever("GET", gzipped)), None),
    "compressed and broken": (forever("GET", broken_gzip), (ConnectionError, BIG)),
    "a sign-in page when looked up": (
        forever("HEAD", Answer(200, {"Content-Type": "text/html"}, PAGE)),
        (OSError, "HF_ENDPOINT .*proxy"),
    ),
    "a short sign-in page": (forever("GET", Answer(200, {}, PAGE)), (CutError, f"byte {len(PAGE)} of {len(WEIGHTS)}")),
    "a long sign-in page": (forever("GET", Answer(200, {}, HUGE_PAGE)), (DamagedError, "sign-in page")),
    "a sign-in page in place of the rest": (cut_then(Answer(200, {}, PAGE)), None),
    "no ETag": (forever("HEAD", headers(ETag=None)), (OSError, "ETag ''")),
    "no commit": (forever("HEAD", headers(X_Repo_Commit=None)), (OSError, "X-Repo-Commit ''")),
    "an ETag that leads out of the cache": (forever("HEAD", headers(ETag='"../../../x"')), (OSError, "ETag '../")),
    "a commit that leads out of the cache": (
        forever("HEAD", headers(X_Repo_Commit="../" * 13 + "x")),
        (OSError, "hash"),
    ),
    "a length that is no number": (
        both(attributes(announce_size=False), forever("HEAD", headers(X_Linked_Size="9" * 5000))),
        None,
    ),
    "chunks and no length": (both(attributes(announce_size=False), forever("GET", changed(chunked=True))), None),
    "chunks, no length, and a cut": (
        both(attributes(announce_size=False, cuts=[1000]), forever("GET", changed(chunked=True))),
        None,
    ),
    "no length at all": (both(attributes(announce_size=False), forever("GET", changed(length=0))), None),
    "no length at all, and a cut": (
        both(attributes(announce_size=False, cuts=[1000]), forever("GET", changed(length=0))),
        (DamagedError, "hash"),
    ),
    "neither length nor hash": (
        both(attributes(announce_size=False, extra={"ETag": '"no-hash"'}), forever("GET", changed(length=0))),
        (OSError, "neither a length nor a hash"),
    ),
}


@pytest.mark.parametrize("fault", SERVER_FAULTS)
def test_a_server_that_misbehaves(world: World, fault: str) -> None:
    break_it, ending = SERVER_FAULTS[fault]
    break_it(world)
    if ending is None:
        assert hub_file(REPO, BIG).read_bytes() == WEIGHTS
    else:
        with pytest.raises(ending[0], match=ending[1]) as caught:
            hub_file(REPO, BIG)
        assert (
            repr(BIG) in str(caught.value) or "hub.example" in str(caught.value) or world.hub.url in str(caught.value)
        )
        assert not isinstance(caught.value, ValueError)
        assert caught.value.errno is None
        assert cached_file(REPO, BIG) is None
    assert all(request.headers.get("authorization") is None for request in world.store.seen)
    assert not Path("hostname").exists()
    world.check_cache()
    world.heal()
    assert hub_file(REPO, BIG).read_bytes() == WEIGHTS
    assert hub_file(REPO, SMALL).read_bytes() == CONFIG
    world.check_cache()
    assert not list(world.cache.rglob("*.incomplete"))
    assert hf_hub_download(REPO, BIG, cache_dir=world.cache, local_files_only=True) == str(world.pointer)


def test_there_are_many_kinds_of_fault() -> None:
    assert len(SERVER_FAULTS) >= 60


def test_a_small_file_is_checked_by_the_hash_of_git(world: World) -> None:
    world.hub.always["GET"] = changed(body=b'{"n_layer": 13}')
    with pytest.raises(DamagedError, match=world.hub.etag(SMALL)):
        hub_file(REPO, SMALL)
    world.check_cache()


def test_an_empty_file_is_a_file(world: World) -> None:
    assert hub_file(REPO, "empty").read_bytes() == b""
    world.check_cache()


def test_a_date_in_retry_after_is_by_the_clock_of_the_server(world: World) -> None:
    stopped = datetime(2001, 2, 3, tzinfo=UTC)
    later = format_datetime(stopped + timedelta(seconds=33), usegmt=True)
    # The first Date header is the one that counts, and the test server sends its own before it.
    world.monkeypatch.setattr(
        "http.server.BaseHTTPRequestHandler.date_time_string", lambda self: format_datetime(stopped)
    )
    world.hub.faults["GET"] = [Answer(429, {"Retry-After": later}), Answer(503, {"Retry-After": "Sat, 1 Jan 2000"})]
    hub_file(REPO, BIG)
    assert world.waits == [33.0, http.RETRY_WAITS_SECONDS[1]]


def test_a_date_in_retry_after_is_waited_for(world: World) -> None:
    world.hub.faults["GET"] = [in_two_minutes]
    hub_file(REPO, BIG)
    assert len(world.waits) == 1
    assert 38 <= world.waits[0] <= 42


def test_a_body_that_drips_is_one_request_and_one_that_stalls_is_resumed(world: World) -> None:
    world.hub.faults["GET"] = [changed(drip=0.008)]
    hub_file(REPO, BIG)
    assert world.gets() == [None]
    world.hub.seen.clear()
    world.hub.files["other"] = OTHER
    world.hub.faults["GET"] = [changed(drip=0.5)]
    hub_file(REPO, "other")
    assert world.gets() == [None, "bytes=100-"]


def test_a_strong_etag_goes_with_the_request_for_the_rest(world: World) -> None:
    world.hub.extra = {"ETag": f'"{world.hub.etag(BIG)}"'}
    world.hub.cuts = [1000]
    hub_file(REPO, BIG)
    assert [request.headers.get("if-range") for request in world.hub.seen] == [None, None, f'"{world.hub.etag(BIG)}"']


def test_a_sign_in_page_costs_nothing_of_what_is_there(world: World) -> None:
    cut_then(Answer(200, {}, PAGE))(world)
    hub_file(REPO, BIG)
    assert world.gets() == [None, "bytes=1000-", "bytes=1000-"]


def test_a_weak_etag_does_not(world: World) -> None:
    world.hub.cuts = [1000]
    hub_file(REPO, BIG)
    assert {request.headers.get("if-range") for request in world.hub.seen} == {None}


def test_a_file_that_changes_between_two_pieces_comes_anew_from_a_server_that_knows_if_range(world: World) -> None:
    world.hub.extra = {"ETag": '"first"', "X-Linked-Etag": f'"{world.hub.etag(BIG)}"'}
    world.hub.cuts = [1000]

    def change(usual: Answer) -> Answer:
        world.hub.extra["ETag"] = '"second"'
        return usual

    world.hub.faults["GET"] = [change]
    assert hub_file(REPO, BIG).read_bytes() == WEIGHTS
    assert world.gets() == [None, "bytes=1000-"]


# One transfer of which only the address is known


@pytest.fixture
def mirror(world: World) -> Iterator[Mirror]:
    with running(Mirror()) as server:
        server.files = {"file": WEIGHTS}
        yield server


def source(mirror: Mirror, **known: Any) -> Source:
    return Source(f"{mirror.url}/file", "the file", "Advice.", "choose another folder.", timeout=0.3, **known)


def test_pieces_are_put_together_if_the_etag_says_that_they_belong_together(mirror: Mirror, tmp_path: Path) -> None:
    mirror.cuts = [1000]
    fetch(source(mirror), tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == WEIGHTS
    assert [request.headers.get("range") for request in mirror.seen] == [None, "bytes=1000-"]


@pytest.mark.parametrize("etags", [(None, None), ('"one"', None), ('"one"', '"two"'), (None, '"two"')])
def test_pieces_that_nothing_holds_together_are_not_put_together(
    mirror: Mirror, tmp_path: Path, etags: tuple[str | None, str | None]
) -> None:
    # A server without If-Range that has another file of the same length by the second request.
    rest = headers(ETag=etags[1], Content_Range=f"bytes 1000-{len(WEIGHTS) - 1}/{len(WEIGHTS)}")
    mirror.cuts = [1000]
    mirror.faults["GET"] = [headers(ETag=etags[0]), chained(changed(status=206, body=OTHER[1000:]), rest)]
    fetch(source(mirror), tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == WEIGHTS


@pytest.mark.parametrize(
    "wrong",
    [
        headers(Content_Range=f"bytes 900-{len(WEIGHTS) - 1}/{len(WEIGHTS)}"),
        headers(Content_Range="bytes 1000-99998/99999"),
        headers(Content_Range=None),
        headers(Content_Encoding="br"),
    ],
)
def test_a_rest_that_does_not_fit_is_not_taken_though_no_hash_would_tell(
    mirror: Mirror, tmp_path: Path, wrong: Change
) -> None:
    mirror.cuts = [1000]
    mirror.faults["GET"] = [lambda usual: usual, chained(changed(body=OTHER[1000:]), wrong)]
    fetch(source(mirror, size=len(WEIGHTS)), tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == WEIGHTS


@pytest.mark.parametrize("length", [1000, len(WEIGHTS)])
def test_what_is_left_of_an_unknown_version_is_not_resumed(mirror: Mirror, tmp_path: Path, length: int) -> None:
    (tmp_path / "file.incomplete").write_bytes(OTHER[:length])
    fetch(source(mirror, size=len(WEIGHTS)), tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == WEIGHTS


def test_a_file_that_is_not_the_one_looked_up_is_not_taken(mirror: Mirror, tmp_path: Path) -> None:
    with pytest.raises(CutError, match="looked up"):
        fetch(source(mirror, size=len(WEIGHTS), etag='"before"'), tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("file")] == []


def test_a_check_that_fails_keeps_what_was_there(mirror: Mirror, tmp_path: Path) -> None:
    def check(path: Path) -> None:
        raise ValueError("it is no good")

    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(DamagedError, match="no good"):
        fetch(source(mirror, check=check), tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


# The disk


def refusing(code: int) -> Callable[..., None]:
    def refuse(*args: object, **options: object) -> None:
        raise OSError(code, os.strerror(code))

    return refuse


def no_symlinks(world: World) -> None:
    world.monkeypatch.setattr(Path, "symlink_to", refusing(errno.EPERM))


def no_links(world: World) -> None:
    no_symlinks(world)
    world.monkeypatch.setattr(os, "link", refusing(errno.EPERM))


def no_locks(world: World) -> None:
    world.monkeypatch.setattr("fcntl.flock", refusing(errno.ENOLCK))


def read_only(world: World) -> None:
    real = Path.mkdir

    def mkdir(path: Path, *args: Any, **options: Any) -> None:
        if path.is_relative_to(world.cache) and not path.is_dir():
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        real(path, *args, **options)

    world.blobs.rmdir()
    world.monkeypatch.setattr(Path, "mkdir", mkdir)


def not_ours(world: World) -> None:
    world.blobs.rmdir()
    world.monkeypatch.setattr(Path, "mkdir", refusing(errno.EACCES))


def full(world: World) -> None:
    world.monkeypatch.setattr(os, "fsync", refusing(errno.ENOSPC))


def over_quota(world: World) -> None:
    world.monkeypatch.setattr(os, "fsync", refusing(errno.EDQUOT))


def broken_disk(world: World) -> None:
    world.monkeypatch.setattr(os, "fsync", refusing(errno.EIO))


def two_hops(world: World) -> None:
    shared = world.cache / "blobs" / "ab" / ("ab" * 32)
    shared.parent.mkdir(parents=True)
    shared.write_bytes(WEIGHTS)
    blob = world.blobs / world.hub.etag(BIG)
    blob.symlink_to(Path("..", "..", "blobs", "ab", shared.name))
    world.pointer.parent.mkdir(parents=True)
    world.pointer.symlink_to(Path("..", "..", "blobs", blob.name))


def two_hops_and_no_pointer(world: World) -> None:
    two_hops(world)
    world.pointer.unlink()


def two_hops_and_no_symlinks(world: World) -> None:
    two_hops_and_no_pointer(world)
    no_symlinks(world)


def two_hops_to_nothing(world: World) -> None:
    two_hops(world)
    (world.cache / "blobs" / "ab" / ("ab" * 32)).unlink()


def dangling(world: World) -> None:
    world.pointer.parent.mkdir(parents=True)
    world.pointer.symlink_to(Path("..", "..", "blobs", "gone"))


def link_to_itself(world: World) -> None:
    world.pointer.parent.mkdir(parents=True)
    world.pointer.symlink_to(world.pointer.name)


def wrong_blob(world: World) -> None:
    (world.blobs / world.hub.etag(BIG)).write_bytes(OTHER)


def directory_for_blob(world: World) -> None:
    (world.blobs / world.hub.etag(BIG)).mkdir()


def directory_for_file(world: World) -> None:
    world.pointer.mkdir(parents=True)


def file_for_directory(world: World) -> None:
    world.pointer.parent.parent.mkdir(parents=True)
    world.pointer.parent.write_text("")


def ref_of_nonsense(world: World) -> None:
    (world.repo / "refs").mkdir()
    (world.repo / "refs" / "main").write_bytes(b"\xff\xfe" * 20)


DISK_FAULTS: dict[str, tuple[Callable[[World], None], Ending]] = {
    "no symlinks": (no_symlinks, None),
    "no links of any kind": (no_links, None),
    "no locks": (no_locks, None),
    "a read-only cache": (read_only, (OSError, r"Could not write .*hub.*Read-only.*HF_HOME")),
    "a cache of somebody else": (not_ours, (PermissionError, r"Could not write .*hub.*HF_HOME")),
    "a full disk": (full, (OSError, f"full: .*{BIG}.* needs {len(WEIGHTS)} bytes .*HF_HOME")),
    "a quota": (over_quota, (OSError, f"quota is full: .* needs {len(WEIGHTS)} bytes .*HF_HOME")),
    "a disk that fails": (broken_disk, (OSError, "Input/output error")),
    "two hops to the blob": (two_hops, None),
    "two hops to the blob, not yet linked": (two_hops_and_no_pointer, None),
    "two hops to the blob, and no symlinks": (two_hops_and_no_symlinks, None),
    "two hops to nothing": (two_hops_to_nothing, None),
    "a link to nothing": (dangling, None),
    "a link to itself": (link_to_itself, None),
    "a wrong blob of the right length": (wrong_blob, None),
    "a directory in the place of the blob": (directory_for_blob, (IsADirectoryError, "Remove what is in the way")),
    "a directory in the place of the file": (directory_for_file, (IsADirectoryError, "Remove what is in the way")),
    "a file in the place of a directory": (file_for_directory, (OSError, "Remove what is in the way")),
    "a ref that is no commit": (ref_of_nonsense, None),
}


@pytest.mark.parametrize("fault", DISK_FAULTS)
def test_a_disk_that_misbehaves(world: World, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    break_it, ending = DISK_FAULTS[fault]
    with monkeypatch.context() as broken:
        break_it(replace(world, monkeypatch=broken))
        if ending is None:
            assert hub_file(REPO, BIG).read_bytes() == WEIGHTS
        else:
            with pytest.raises(ending[0], match=ending[1]) as caught:
                hub_file(REPO, BIG)
            assert caught.value.errno is not None
            assert cached_file(REPO, BIG) is None
        if "full" in fault or "quota" in fault:
            assert list(world.blobs.iterdir()) == []
        world.check_cache()
    for path in (world.blobs / world.hub.etag(BIG), world.pointer):
        if path.is_dir():
            path.rmdir()
    if world.pointer.parent.is_file():
        world.pointer.parent.unlink()
    assert hub_file(REPO, BIG).read_bytes() == WEIGHTS
    assert try_to_load_from_cache(REPO, BIG, cache_dir=world.cache) == str(world.pointer)
    world.check_cache()
    assert not list(world.cache.rglob("*.incomplete"))


def test_a_directory_in_the_way_is_seen_before_the_download(world: World) -> None:
    directory_for_blob(world)
    with pytest.raises(IsADirectoryError):
        hub_file(REPO, BIG)
    assert world.gets() == []


def test_a_file_in_a_read_only_cache_is_found_though_its_branch_is_not_noted_there(world: World) -> None:
    hub_file(REPO, BIG)
    (world.repo / "refs" / "main").unlink()
    (world.repo / "refs").rmdir()
    world.monkeypatch.setattr(Path, "mkdir", refusing(errno.EROFS))
    world.monkeypatch.setattr(Path, "write_text", refusing(errno.EROFS))
    assert hub_file(REPO, BIG).read_bytes() == WEIGHTS
    assert not (world.repo / "refs").exists()


def test_what_huggingface_hub_has_begun_is_left_to_it(world: World) -> None:
    theirs = world.blobs / f"{world.hub.etag(BIG)}.0123abcd.incomplete"
    theirs.write_bytes(OTHER[:500])
    os.utime(theirs, (0, 0))
    assert hub_file(REPO, BIG).read_bytes() == WEIGHTS
    assert theirs.read_bytes() == OTHER[:500]
    assert world.gets() == [None]


def test_what_an_older_huggingface_hub_has_begun_is_resumed(world: World) -> None:
    (world.blobs / f"{world.hub.etag(BIG)}.incomplete").write_bytes(WEIGHTS[:500])
    assert hub_file(REPO, BIG).read_bytes() == WEIGHTS
    assert world.gets() == ["bytes=500-"]


# Several processes


# Child processes avoid importing torch: modules are found without running the package's own __init__.
CHILD = """
import sys, types
package = types.ModuleType("gptclf"); package.__path__ = [sys.argv[1]]; sys.modules["gptclf"] = package
from gptclf.hub import transfer
from gptclf.hub.download import hub_file
transfer.CHUNK_BYTES = 10_000
print(hub_file("owner/name", "model.safetensors"))
"""


def start() -> "subprocess.Popen[str]":
    package = str(Path(gptclf.__file__).parent)
    return subprocess.Popen([sys.executable, "-c", CHILD, package], stdout=subprocess.PIPE, text=True)


def pause_until(condition: Callable[[], bool]) -> None:
    for _ in range(2000):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it never came to that")


def test_two_processes_at_once_both_get_the_file(world: World) -> None:
    world.monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "20")
    world.hub.gate = threading.Barrier(2)
    children = [start(), start()]
    paths = [child.communicate(timeout=60)[0].strip() for child in children]
    assert [child.returncode for child in children] == [0, 0]
    assert paths == [str(world.pointer)] * 2
    assert world.pointer.read_bytes() == WEIGHTS
    assert [blob.name for blob in world.blobs.iterdir()] == [world.hub.etag(BIG)]
    world.check_cache()


def test_a_process_that_is_killed_leaves_its_part_to_the_next(world: World) -> None:
    content = world.hub.files[BIG] = WEIGHTS * 20
    world.monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "20")
    world.hub.faults["GET"] = [changed(drip=0.05)]
    child = start()

    def parts() -> list[Path]:
        return list(world.blobs.glob("*.incomplete"))

    pause_until(lambda: any(part.stat().st_size >= 50_000 for part in parts()))
    child.send_signal(signal.SIGKILL)
    child.communicate(timeout=60)
    assert child.returncode == -signal.SIGKILL
    world.check_cache()
    (part,) = parts()
    arrived = part.stat().st_size
    assert part.read_bytes() == content[:arrived]
    world.hub.seen.clear()
    assert hub_file(REPO, BIG).read_bytes() == content
    assert world.gets() == [f"bytes={arrived}-"]
    assert [blob.name for blob in world.blobs.iterdir()] == [world.hub.etag(BIG)]


def test_what_a_living_process_writes_is_not_taken_from_it(tmp_path: Path) -> None:
    target = tmp_path / "file"
    with claimed(target) as ours:
        ours.write_bytes(b"ours")
        with claimed(target) as theirs:
            assert theirs != ours
            assert theirs.read_bytes() == b""
            theirs.rename(target)
        assert ours.read_bytes() == b"ours"


def test_without_locks_a_part_is_taken_over_when_it_is_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fcntl.flock", refusing(errno.ENOSYS))
    part = tmp_path / "file.0123456789ab.incomplete"
    part.write_bytes(b"part")
    with claimed(tmp_path / "file") as fresh:
        assert fresh.read_bytes() == b""
    long_ago = time.time() - partial.ABANDONED_SECONDS - 1
    os.utime(part, (long_ago, long_ago))
    with claimed(tmp_path / "file") as resumed:
        assert resumed.read_bytes() == b"part"


def test_of_several_parts_the_longest_is_resumed_and_the_others_are_removed(tmp_path: Path) -> None:
    for number, length in enumerate((3, 9, 6)):
        (tmp_path / f"file.{number:012x}.incomplete").write_bytes(bytes(length))
    with claimed(tmp_path / "file") as longest:
        assert longest.stat().st_size == 9
        longest.rename(tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_part_may_be_taken_by_another_process_at_any_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part, exists = tmp_path / "file.incomplete", Path.exists
    part.write_bytes(b"part")

    def exists_no_longer(path: Path) -> bool:
        found = exists(path)
        part.unlink(missing_ok=True)
        return found

    monkeypatch.setattr(Path, "exists", exists_no_longer)
    assert partial.size_of(part) in (0, 4)
    with claimed(tmp_path / "file") as fresh:
        assert fresh.stat().st_size in (0, 4)


@pytest.mark.parametrize("value", ["soon", "0", "-1", "nan", "inf"])
def test_a_timeout_that_is_no_time_is_refused(world: World, value: str) -> None:
    world.monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", value)
    with pytest.raises(ValueError, match=f"HF_HUB_DOWNLOAD_TIMEOUT is '{value}'"):
        hub_file(REPO, BIG)
