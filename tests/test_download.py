import builtins
import errno
import itertools
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import requests
from consoles import Terminal, standard_error
from hub_server import COMMIT, Answer, Hub, serving

from gptclf.hub import http, transfer
from gptclf.hub.download import EntryNotFoundError, cached_file, hub_file

REPO = "owner/name"
FOLDER = "models--owner--name"
LATER_COMMIT = "b" * 40
CONFIG = b'{"n_layer": 12}'
WEIGHTS = bytes(range(256)) * 40


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith(("HF_", "HUGGINGFACE", "TRANSFORMERS_", "XDG_CACHE")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr(http, "RETRY_WAITS_SECONDS", (0.0, 0.0, 0.0))
    monkeypatch.setattr(transfer, "CHUNK_BYTES", 100)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving() as running:
        running.files = {"config.json": CONFIG, "model.safetensors": WEIGHTS, "onnx/model.onnx": b"graph"}
        running.large = {"model.safetensors"}
        monkeypatch.setenv("HF_ENDPOINT", running.url + "/")
        yield running


@pytest.fixture
def blobs(tmp_path: Path) -> Path:
    folder = tmp_path / "home" / "hub" / FOLDER / "blobs"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    seconds: list[float] = []
    monkeypatch.setattr(time, "sleep", seconds.append)
    return seconds


def gets(hub: Hub) -> list[str | None]:
    """The ranges asked for, one per GET."""
    return [request.headers.get("range") for request in hub.seen if request.method == "GET"]


# The cache


def test_file_is_downloaded_into_the_layout_of_huggingface_hub(hub: Hub, tmp_path: Path) -> None:
    path = hub_file(REPO, "onnx/model.onnx", cache_dir=tmp_path)
    root = tmp_path / FOLDER
    assert path == root / "snapshots" / COMMIT / "onnx" / "model.onnx"
    assert path.read_bytes() == b"graph"
    assert (root / "refs" / "main").read_bytes() == COMMIT.encode()
    assert [blob.name for blob in (root / "blobs").iterdir()] == [hub.etag("onnx/model.onnx")]
    if path.is_symlink():
        assert path.readlink() == Path("..", "..", "..", "blobs", hub.etag("onnx/model.onnx"))


def test_huggingface_hub_finds_what_was_downloaded(hub: Hub, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        path = hub_file(REPO, name, cache_dir=tmp_path)
        assert huggingface_hub.hf_hub_download(REPO, name, cache_dir=tmp_path, local_files_only=True) == str(path)
    assert {repo.repo_id for repo in huggingface_hub.scan_cache_dir(tmp_path).repos} == {REPO}


def test_what_huggingface_hub_downloaded_is_found_without_network(hub: Hub, tmp_path: Path) -> None:
    theirs = huggingface_hub.hf_hub_download(REPO, "config.json", cache_dir=tmp_path, endpoint=hub.url, token=False)
    hub.seen.clear()
    assert str(hub_file(REPO, "config.json", cache_dir=tmp_path)) == theirs
    assert str(cached_file(REPO, "config.json", cache_dir=tmp_path)) == theirs
    assert hub.seen == []


def test_cached_file_is_returned_without_any_request(hub: Hub) -> None:
    path = hub_file(REPO, "config.json")
    hub.seen.clear()
    assert hub_file(REPO, "config.json") == path
    assert hub_file(REPO, "config.json", revision=COMMIT) == path
    assert hub.seen == []


def test_cached_file_never_asks_the_hub(hub: Hub) -> None:
    assert cached_file(REPO, "config.json") is None
    assert hub.seen == []
    path = hub_file(REPO, "config.json")
    assert cached_file(REPO, "config.json") == path
    assert cached_file(REPO, "config.json", revision="other") is None


def test_links_over_two_hops_are_followed_and_dangling_ones_replaced(hub: Hub, tmp_path: Path) -> None:
    path = hub_file(REPO, "config.json", cache_dir=tmp_path)
    blob = tmp_path / FOLDER / "blobs" / hub.etag("config.json")
    shared = tmp_path / "blobs" / "shared"
    shared.parent.mkdir()
    blob.rename(shared)
    blob.symlink_to(Path("..", "..", "blobs", "shared"))
    assert cached_file(REPO, "config.json", cache_dir=tmp_path) == path
    shared.unlink()
    assert cached_file(REPO, "config.json", cache_dir=tmp_path) is None
    assert hub_file(REPO, "config.json", cache_dir=tmp_path).read_bytes() == CONFIG


def test_blob_that_is_there_is_linked_and_not_downloaded(hub: Hub, blobs: Path) -> None:
    (blobs / hub.etag("config.json")).write_bytes(CONFIG)
    assert hub_file(REPO, "config.json").read_bytes() == CONFIG
    assert hub.methods() == ["HEAD"]


def test_blob_of_the_wrong_size_is_downloaded_again(hub: Hub, blobs: Path) -> None:
    (blobs / hub.etag("config.json")).write_bytes(CONFIG[:3])
    assert hub_file(REPO, "config.json").read_bytes() == CONFIG


@pytest.mark.parametrize("hard_links", [True, False])
def test_without_symlinks_the_file_itself_is_in_the_snapshot(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, hard_links: bool
) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise OSError(errno.EPERM, "a required privilege is not held")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    if not hard_links:
        monkeypatch.setattr(os, "link", refuse)
    path = hub_file(REPO, "config.json")
    assert not path.is_symlink()
    assert path.read_bytes() == CONFIG
    assert [entry.name for entry in path.parent.iterdir()] == ["config.json"]


def test_copy_into_the_snapshot_that_fails_leaves_nothing(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise OSError(errno.EPERM, "a required privilege is not held")

    def copy_half(source: Path, target: Path) -> None:
        target.write_bytes(source.read_bytes()[:5])
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(shutil, "copyfile", copy_half)
    with pytest.raises(OSError, match="input/output"):
        hub_file(REPO, "config.json", cache_dir=tmp_path)
    assert list((tmp_path / FOLDER / "snapshots" / COMMIT).iterdir()) == []


def test_content_is_on_the_disk_before_it_gets_its_name(hub: Hub, blobs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[list[str]] = []
    monkeypatch.setattr(os, "fsync", lambda _: names.append([blob.name for blob in blobs.iterdir()]))
    hub_file(REPO, "config.json")
    assert len(names) == 1
    assert hub.etag("config.json") not in names[0]


def test_tags_branches_and_pull_requests_have_their_own_ref(hub: Hub, tmp_path: Path) -> None:
    hub.branches["refs/pr/1"] = LATER_COMMIT
    path = hub_file(REPO, "config.json", revision="refs/pr/1", cache_dir=tmp_path)
    assert path.parent.name == LATER_COMMIT
    assert (tmp_path / FOLDER / "refs" / "refs" / "pr" / "1").read_text() == LATER_COMMIT
    assert hub.seen[0].path == f"/{REPO}/resolve/refs%2Fpr%2F1/config.json"


def test_commit_as_revision_writes_no_ref(hub: Hub, tmp_path: Path) -> None:
    hub_file(REPO, "config.json", revision=COMMIT, cache_dir=tmp_path)
    assert not (tmp_path / FOLDER / "refs").exists()


def test_files_of_a_branch_are_of_one_commit_though_the_branch_moves(hub: Hub) -> None:
    config = hub_file(REPO, "config.json")
    hub.branches["main"] = LATER_COMMIT
    assert hub_file(REPO, "model.safetensors").parent == config.parent


def test_branch_is_looked_up_anew_when_the_hub_lost_its_commit(hub: Hub) -> None:
    hub_file(REPO, "config.json")
    hub.branches["main"] = LATER_COMMIT
    hub.gone = {COMMIT}
    assert hub_file(REPO, "model.safetensors").parent.name == LATER_COMMIT
    assert hub_file(REPO, "config.json").parent.name == LATER_COMMIT


def test_failed_download_leaves_no_ref_behind(hub: Hub, tmp_path: Path) -> None:
    hub.faults["GET"] = [Answer(400)]
    with pytest.raises(OSError, match="400"):
        hub_file(REPO, "config.json", cache_dir=tmp_path)
    assert not (tmp_path / FOLDER / "refs").exists()


@pytest.mark.parametrize(
    ("settings", "root"),
    [
        ({"HF_HUB_CACHE": "a", "HUGGINGFACE_HUB_CACHE": "b", "HF_HOME": "c", "XDG_CACHE_HOME": "d"}, "a"),
        ({"HUGGINGFACE_HUB_CACHE": "b", "HF_HOME": "c", "XDG_CACHE_HOME": "d"}, "b"),
        ({"HF_HOME": "c", "XDG_CACHE_HOME": "d"}, "c/hub"),
        ({"XDG_CACHE_HOME": "d"}, "d/huggingface/hub"),
        ({}, ".cache/huggingface/hub"),
    ],
)
def test_cache_is_where_the_environment_says_at_the_call(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, settings: dict[str, str], root: str
) -> None:
    monkeypatch.delenv("HF_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    for name, folder in settings.items():
        monkeypatch.setenv(name, str(tmp_path / folder))
    assert hub_file(REPO, "config.json").is_relative_to(tmp_path / root / FOLDER)
    other = tmp_path / "argument"
    assert hub_file(REPO, "config.json", cache_dir=other).is_relative_to(other / FOLDER)


# Offline


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
@pytest.mark.parametrize("value", ["1", "on", "Yes", "TRUE"])
def test_offline_never_asks_and_says_what_was_sought_where(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, value: str
) -> None:
    path = hub_file(REPO, "config.json")
    hub.seen.clear()
    monkeypatch.setenv(name, value)
    assert hub_file(REPO, "config.json") == path
    with pytest.raises(FileNotFoundError) as caught:
        hub_file(REPO, "model.safetensors")
    assert not isinstance(caught.value, EntryNotFoundError)
    for part in ("model.safetensors", REPO, "main", str(tmp_path), name, "merges.txt", "load_gpt2"):
        assert part in str(caught.value)
    assert hub.seen == []


def test_offline_switched_off_downloads(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert hub_file(REPO, "config.json").read_bytes() == CONFIG


def test_unreachable_hub_is_an_error_that_helps(monkeypatch: pytest.MonkeyPatch, waits: list[float]) -> None:
    with serving() as stopped:
        url = stopped.url
    monkeypatch.setenv("HF_ENDPOINT", url + "/")
    with pytest.raises(ConnectionError) as caught:
        hub_file(REPO, "config.json")
    for part in (
        f"{url}/{REPO}/resolve/main/config.json",
        REPO,
        "HF_ENDPOINT",
        "model.safetensors",
        "vocab.json",
        "load_gpt2",
    ):
        assert part in str(caught.value)
    assert waits == []


# The token


def tokens(hub: Hub) -> set[str | None]:
    return {request.headers.get("authorization") for request in hub.seen}


def test_no_token_is_sent_when_there_is_none(hub: Hub) -> None:
    hub_file(REPO, "config.json")
    assert tokens(hub) == {None}


def test_token_of_the_environment_comes_before_that_of_a_file(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "token").write_text("home\n")
    (tmp_path / "named").write_text("named\n")
    hub_file(REPO, "config.json", cache_dir=tmp_path / "1")
    assert tokens(hub) == {"Bearer home"}
    hub.seen.clear()
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "named"))
    hub_file(REPO, "config.json", cache_dir=tmp_path / "2")
    assert tokens(hub) == {"Bearer named"}
    hub.seen.clear()
    monkeypatch.setenv("HF_TOKEN", "variable")
    hub_file(REPO, "config.json", cache_dir=tmp_path / "3")
    assert tokens(hub) == {"Bearer variable"}
    hub.seen.clear()
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    hub_file(REPO, "config.json", cache_dir=tmp_path / "4")
    assert tokens(hub) == {None}


def test_netrc_does_not_take_the_place_of_the_token(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("HF_TOKEN", "variable")
    hub_file(REPO, "config.json")
    assert tokens(hub) == {"Bearer variable"}


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_token_is_dropped_on_redirect_to_another_host_or_port(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    with serving(host) as store:
        store.files = hub.files
        hub.store = store
        assert hub_file(REPO, "model.safetensors").read_bytes() == WEIGHTS
        assert hub.methods() == ["HEAD", "GET"]
        assert store.methods() == ["GET"]
        assert tokens(hub) == {"Bearer secret"}
        assert tokens(store) == {None}


# What the hub says of a file


def test_linked_headers_count_and_are_not_followed_to_the_store(hub: Hub, blobs: Path) -> None:
    with serving() as store:
        store.files = hub.files
        hub.store = store
        path = hub_file(REPO, "model.safetensors")
    assert path.resolve() == (blobs / hub.etag("model.safetensors")).resolve()


def test_linked_headers_on_the_same_host_end_the_look_up(hub: Hub) -> None:
    linked = {"X-Linked-Etag": f'"{hub.etag("model.safetensors")}"', "X-Linked-Size": str(len(WEIGHTS))}
    hub.faults["HEAD"] = [Answer(302, {"X-Repo-Commit": COMMIT, **linked, "Location": "/elsewhere"})]
    assert hub_file(REPO, "model.safetensors").read_bytes() == WEIGHTS
    assert hub.methods() == ["HEAD", "GET"]


def test_linked_size_is_the_size_to_get(hub: Hub) -> None:
    linked = {"X-Linked-Etag": '"not-a-hash"', "X-Linked-Size": "999"}
    hub.faults["HEAD"] = [Answer(302, {"X-Repo-Commit": COMMIT, **linked, "Location": "/elsewhere"})]
    hub.ranges = False
    with pytest.raises(ConnectionError, match=f"byte {len(CONFIG)} of 999"):
        hub_file(REPO, "config.json")


def test_files_are_asked_for_uncompressed(hub: Hub) -> None:
    hub_file(REPO, "config.json")
    assert {request.headers["accept-encoding"] for request in hub.seen} == {"identity"}


def test_renamed_repository_is_followed_with_the_token(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    hub.renamed = {"gpt2": REPO}
    path = hub_file("gpt2", "config.json", cache_dir=tmp_path)
    assert path == tmp_path / "models--gpt2" / "snapshots" / COMMIT / "config.json"
    assert tokens(hub) == {"Bearer secret"}


def test_endless_redirects_end(hub: Hub) -> None:
    hub.renamed = {REPO: REPO}
    with pytest.raises(ConnectionError, match="redirects"):
        hub_file(REPO, "config.json")


def test_download_is_of_the_commit_that_was_looked_up(hub: Hub) -> None:
    hub_file(REPO, "config.json")
    assert [request.path for request in hub.seen] == [
        f"/{REPO}/resolve/main/config.json",
        f"/{REPO}/resolve/{COMMIT}/config.json",
    ]


def test_size_that_is_not_said_is_not_needed(hub: Hub) -> None:
    hub.announce_size = False
    assert hub_file(REPO, "config.json").read_bytes() == CONFIG


def test_empty_file_is_a_file(hub: Hub) -> None:
    hub.files["empty"] = b""
    assert hub_file(REPO, "empty").read_bytes() == b""


@pytest.mark.parametrize(
    "headers",
    [
        {"ETag": '"x"'},
        {"X-Repo-Commit": COMMIT},
        {"X-Repo-Commit": "../../..", "ETag": '"x"'},
        {"X-Repo-Commit": COMMIT, "ETag": '"../../x"'},
    ],
)
def test_server_that_is_no_hub_is_refused(hub: Hub, headers: dict[str, str]) -> None:
    hub.faults["HEAD"] = [Answer(200, headers)]
    with pytest.raises(OSError, match="HF_ENDPOINT"):
        hub_file(REPO, "config.json")
    assert hub.methods() == ["HEAD"]


# Resume


def test_cut_connection_is_resumed_where_it_broke(hub: Hub, blobs: Path) -> None:
    hub.cuts = [1000, 2000]
    assert hub_file(REPO, "model.safetensors").read_bytes() == WEIGHTS
    assert gets(hub) == [None, "bytes=1000-", "bytes=3000-"]
    assert [blob.name for blob in blobs.iterdir()] == [hub.etag("model.safetensors")]


def test_early_end_that_the_http_library_misses_is_resumed(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = requests.Response.iter_content
    ends = [True]

    def content(response: requests.Response, size: int) -> Iterator[Any]:
        chunks = whole(response, size)
        return iter([next(chunks)]) if ends and ends.pop() else chunks

    monkeypatch.setattr(requests.Response, "iter_content", content)
    assert hub_file(REPO, "model.safetensors").read_bytes() == WEIGHTS
    assert gets(hub) == [None, "bytes=100-"]


def test_connection_that_brings_something_is_kept_on_with(hub: Hub) -> None:
    hub.cuts = [1000] * 9
    assert hub_file(REPO, "model.safetensors").read_bytes() == WEIGHTS
    assert len(gets(hub)) == 10 > 2 * len(http.RETRY_WAITS_SECONDS)


def test_connection_that_keeps_being_cut_is_given_up_and_resumed_by_the_next_call(hub: Hub, blobs: Path) -> None:
    hub.cuts = [1000] + [0] * 7
    with pytest.raises(ConnectionError, match=r"model\.safetensors"):
        hub_file(REPO, "model.safetensors")
    partial = blobs / f"{hub.etag('model.safetensors')}.incomplete"
    assert list(blobs.iterdir()) == [partial]
    assert partial.read_bytes() == WEIGHTS[:1000]
    hub.seen.clear()
    hub.cuts = []
    assert hub_file(REPO, "model.safetensors").read_bytes() == WEIGHTS
    assert gets(hub) == ["bytes=1000-"]


def test_cut_download_survives_an_interrupt(hub: Hub, blobs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupt)
    hub.cuts = [500]
    with pytest.raises(KeyboardInterrupt):
        hub_file(REPO, "model.safetensors")
    assert (blobs / f"{hub.etag('model.safetensors')}.incomplete").read_bytes() == WEIGHTS[:500]


def test_server_without_ranges_starts_anew(hub: Hub) -> None:
    hub.ranges = False
    hub.cuts = [1000]
    assert hub_file(REPO, "model.safetensors").read_bytes() == WEIGHTS
    assert gets(hub) == [None, "bytes=1000-"]


def test_server_without_ranges_that_always_cuts_ends(hub: Hub) -> None:
    hub.ranges = False
    hub.cuts = [1000] * 100
    with pytest.raises(ConnectionError):
        hub_file(REPO, "model.safetensors")
    assert len(hub.cuts) > 80


def test_partial_file_longer_than_the_file_is_thrown_away(hub: Hub, blobs: Path) -> None:
    (blobs / f"{hub.etag('config.json')}.incomplete").write_bytes(CONFIG + b"more")
    assert hub_file(REPO, "config.json").read_bytes() == CONFIG
    assert gets(hub) == [f"bytes={len(CONFIG) + 4}-", None]


def test_whole_partial_file_needs_no_download(hub: Hub, blobs: Path) -> None:
    (blobs / f"{hub.etag('config.json')}.incomplete").write_bytes(CONFIG)
    assert hub_file(REPO, "config.json").read_bytes() == CONFIG
    assert gets(hub) == []


def test_damaged_partial_file_is_downloaded_anew(hub: Hub, blobs: Path, caplog: pytest.LogCaptureFixture) -> None:
    (blobs / f"{hub.etag('config.json')}.incomplete").write_bytes(b"???")
    assert hub_file(REPO, "config.json").read_bytes() == CONFIG
    assert gets(hub) == ["bytes=3-", None]
    assert "anew" in caplog.text


def test_two_downloads_at_once_both_end_with_the_file(hub: Hub, blobs: Path) -> None:
    hub.gate = threading.Barrier(2)
    (blobs / f"{hub.etag('model.safetensors')}.incomplete").write_bytes(WEIGHTS[:1000])
    with ThreadPoolExecutor(2) as pool:
        paths = list(pool.map(lambda _: hub_file(REPO, "model.safetensors"), range(2)))
    assert [path.read_bytes() for path in paths] == [WEIGHTS, WEIGHTS]
    assert sorted(map(str, gets(hub))) == ["None", "bytes=1000-"]
    assert [blob.name for blob in blobs.iterdir()] == [hub.etag("model.safetensors")]


def test_blob_held_open_by_another_process_is_used(hub: Hub, blobs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = Path.replace

    def as_on_windows(source: Path, target: Path) -> Path:
        if target.parent == blobs and target.name == hub.etag("config.json"):
            target.write_bytes(CONFIG)
            raise PermissionError(errno.EACCES, "the file is open")
        return replace(source, target)

    monkeypatch.setattr(Path, "replace", as_on_windows)
    assert hub_file(REPO, "config.json").read_bytes() == CONFIG
    assert [blob.name for blob in blobs.iterdir()] == [hub.etag("config.json")]


# Checks


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_content_that_does_not_match_its_hash_is_refused(hub: Hub, blobs: Path, name: str) -> None:
    expected = hub.etag(name)
    damaged = bytes(len(hub.files[name]))
    hub.faults["GET"] = [Answer(200, {}, damaged)]
    with pytest.raises(OSError, match=expected):
        hub_file(REPO, name)
    assert list(blobs.iterdir()) == []
    assert cached_file(REPO, name) is None


def test_content_longer_than_announced_is_refused(hub: Hub, blobs: Path) -> None:
    hub.extra = {"ETag": '"not-a-hash"'}
    hub.faults["GET"] = [Answer(200, {}, CONFIG + b"more")]
    with pytest.raises(OSError, match=rf"expected .* {len(CONFIG)}, got {len(CONFIG) + 4}"):
        hub_file(REPO, "config.json")
    assert list(blobs.iterdir()) == []


def test_etag_that_is_no_hash_is_checked_by_size_alone(hub: Hub, blobs: Path) -> None:
    hub.extra = {"ETag": '"not-a-hash"'}
    hub_file(REPO, "config.json")
    assert (blobs / "not-a-hash").read_bytes() == CONFIG


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is Linux's")
def test_full_disk_says_what_was_needed_and_keeps_nothing(hub: Hub, blobs: Path) -> None:
    (blobs / f"{hub.etag('model.safetensors')}.incomplete").symlink_to("/dev/full")
    with pytest.raises(OSError, match="HF_HOME") as caught:
        hub_file(REPO, "model.safetensors")
    assert caught.value.errno == errno.ENOSPC
    assert str(len(WEIGHTS)) in str(caught.value)
    assert str(blobs) in str(caught.value)
    assert list(blobs.iterdir()) == []


# What the hub refuses


@pytest.mark.parametrize("status", [401, 403])
def test_refused_access_names_the_token(hub: Hub, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    hub.faults["HEAD"] = [Answer(status)] * 2
    with pytest.raises(PermissionError, match=r"No token was sent.*HF_TOKEN"):
        hub_file(REPO, "config.json")
    monkeypatch.setenv("HF_TOKEN", "old")
    with pytest.raises(PermissionError, match=r"The token sent.*HF_TOKEN") as caught:
        hub_file(REPO, "config.json")
    assert REPO in str(caught.value)
    assert "Bearer" not in str(caught.value)


def test_missing_file_is_told_apart_and_remembered_once_the_branch_is_known(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(EntryNotFoundError, match=r"other\.json.*owner/name.*main"):
        hub_file(REPO, "other.json", cache_dir=tmp_path)
    assert cached_file(REPO, "other.json", cache_dir=tmp_path) is None
    hub_file(REPO, "config.json", cache_dir=tmp_path)
    hub.seen.clear()
    with pytest.raises(EntryNotFoundError, match=r"other\.json"):
        hub_file(REPO, "other.json", cache_dir=tmp_path)
    assert hub.seen == []
    theirs = huggingface_hub.try_to_load_from_cache(REPO, "other.json", cache_dir=tmp_path)
    assert theirs is huggingface_hub.file_download._CACHED_NO_EXIST


@pytest.mark.parametrize(
    ("code", "what"),
    [("RepoNotFound", "repository:"), ("RevisionNotFound", "revision:"), ("", "repository, revision or file:")],
)
def test_missing_repository_or_revision_is_no_missing_file(hub: Hub, code: str, what: str) -> None:
    hub.faults["HEAD"] = [Answer(404, {"X-Error-Code": code, "X-Repo-Commit": COMMIT})]
    with pytest.raises(FileNotFoundError, match=f"no such {what} 'config.json' .*{REPO}.*main") as caught:
        hub_file(REPO, "config.json")
    assert not isinstance(caught.value, EntryNotFoundError)


@pytest.mark.parametrize("method", ["HEAD", "GET"])
@pytest.mark.parametrize("status", [429, 500, 503])
def test_busy_hub_is_asked_again(hub: Hub, method: str, status: int) -> None:
    hub.faults[method] = [Answer(status)] * 2
    assert hub_file(REPO, "config.json").read_bytes() == CONFIG
    assert hub.methods().count(method) == 3


@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_hub_that_stays_busy_is_given_up(
    hub: Hub, method: str, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "RETRY_WAITS_SECONDS", (1.0, 2.0))
    hub.faults[method] = [Answer(503)] * 9
    with pytest.raises(ConnectionError, match="503"):
        hub_file(REPO, "config.json")
    assert hub.methods().count(method) == 3
    assert waits == [1.0, 2.0]


def test_retry_after_is_honoured_up_to_a_bound(hub: Hub, waits: list[float]) -> None:
    hub.faults["HEAD"] = [Answer(429, {"Retry-After": after}) for after in ("7", "9999", "Wed, 1 Jan 2020")]
    hub_file(REPO, "config.json")
    assert waits == [7.0, http.MAX_RETRY_AFTER_SECONDS, 0.0]


def test_timeouts_come_from_the_environment(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    used: list[float] = []
    request = requests.request

    def record(*args: Any, **options: Any) -> requests.Response:
        used.append(options["timeout"])
        return request(*args, **options)

    monkeypatch.setattr(requests, "request", record)
    hub_file(REPO, "config.json", cache_dir=tmp_path / "1")
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "3")
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "4")
    hub_file(REPO, "config.json", cache_dir=tmp_path / "2")
    assert used == [10, 10, 3, 4]
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "soon")
    with pytest.raises(ValueError, match="HF_HUB_ETAG_TIMEOUT is 'soon'"):
        hub_file(REPO, "config.json", cache_dir=tmp_path / "3")


@pytest.mark.parametrize("repo", ["", "a/b/c", "../x", "a/..", "a b", "/a", "a/", "a--b", "a\\b", "a/b?c", "a\n"])
def test_repository_that_is_no_hub_name_is_refused(hub: Hub, repo: str) -> None:
    for find in (hub_file, cached_file):
        with pytest.raises(ValueError, match="owner/name"):
            find(repo, "config.json")
    assert hub.seen == []


@pytest.mark.parametrize("name", ["", "../x", "a/../../x", "/etc/passwd", "..\\x", "\\x", "C:/x", "C:x", "a//b", "./a"])
def test_file_or_revision_that_leaves_the_repository_is_refused(hub: Hub, name: str) -> None:
    for find in (hub_file, cached_file):
        with pytest.raises(ValueError, match="file name"):
            find(REPO, name)
        with pytest.raises(ValueError, match="revision"):
            find(REPO, "config.json", revision=name)
    assert hub.seen == []


# Progress


@pytest.fixture
def big(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    monkeypatch.setattr(transfer, "PROGRESS_FROM_BYTES", len(WEIGHTS))
    return hub


def test_big_file_shows_a_bar_and_a_small_one_none(big: Hub) -> None:
    pytest.importorskip("tqdm")
    with standard_error(Terminal()) as terminal:
        hub_file(REPO, "config.json")
        assert terminal.getvalue() == ""
        big.cuts = [5000]
        hub_file(REPO, "model.safetensors")
    assert "\rmodel.safetensors: " in terminal.getvalue()
    assert "\rmodel.safetensors:  49%" in terminal.getvalue(), "the second part begins where the first one was cut"


@pytest.mark.parametrize("without_tqdm", [True, False])
def test_in_a_log_a_download_is_told_in_lines(
    big: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], without_tqdm: bool
) -> None:
    if without_tqdm:
        monkeypatch.setitem(sys.modules, "tqdm", None)
    clock = itertools.count(0, 11)
    monkeypatch.setattr("gptclf.progress.time.perf_counter", lambda: float(next(clock)))
    monkeypatch.setattr(transfer, "CHUNK_BYTES", len(WEIGHTS) // 4)
    hub_file(REPO, "model.safetensors")
    out, err = capsys.readouterr()
    assert out == ""
    assert "\r" not in err
    lines = err.splitlines()
    assert len(lines) >= 3
    assert all(re.fullmatch(r"model\.safetensors: \d+ %, .* left", line) for line in lines)


def test_progress_can_be_silenced(big: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    with standard_error(Terminal()) as terminal:
        hub_file(REPO, "model.safetensors")
    assert terminal.getvalue() == ""


# Import


def test_import_brings_neither_requests_nor_huggingface_hub() -> None:
    # torch itself imports tqdm where it is installed.
    code = (
        "import sys, torch; before = set(sys.modules); import gptclf.hub.download;"
        "print({'requests', 'huggingface_hub', 'tqdm'} & (set(sys.modules) - before))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


def test_files_are_got_without_huggingface_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    imported: list[str] = []
    original = builtins.__import__

    def record(name: str, *args: Any, **options: Any) -> Any:
        imported.append(name.partition(".")[0])
        return original(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", record)
    hub_file(REPO, "config.json")
    assert "requests" in imported
    assert "huggingface_hub" not in imported
