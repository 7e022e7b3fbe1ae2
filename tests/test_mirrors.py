"""OpenAI's checkpoints from mirrors, some of which misbehave; a small shape is used in place of 124M."""

import errno
import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import bundle_writer
import numpy as np
import pytest
from hub_server import Answer, Mirror, running

from gptclf.gpt2.config import PRESETS, GPT2Config
from gptclf.hub import transfer
from gptclf.weights import openai_download as mirrors
from gptclf.weights.openai import parameter_count
from gptclf.weights.openai_download import ADDRESSES, FILES, download_openai_checkpoint

SMALL = GPT2Config(vocab_size=57, context_length=10, emb_dim=6, n_heads=2, n_layers=3)
DATA = "model.ckpt.data-00000-of-00001"
SIZE = 4 * sum((57 * 6, 10 * 6, 2 * 6, 3 * (6 * 18 + 18 + 6 * 6 + 6 + 6 * 24 + 24 + 24 * 6 + 6 + 4 * 6)))


def bundle() -> tuple[bytes, bytes]:
    """Return an index and its data, with as many bytes as the parameters of SMALL."""
    with tempfile.TemporaryDirectory() as folder:
        values = np.random.default_rng(0).standard_normal(SIZE // 4, np.float32)
        bundle_writer.write(Path(folder), {"model/wte": values[:99], "model/wte2": values[99:]})
        (index,), (data,) = (list(Path(folder).glob(f"*.{kind}*")) for kind in ("index", "data"))
        return index.read_bytes(), data.read_bytes()


INDEX_BYTES, DATA_BYTES = bundle()
CONTENT = {
    "checkpoint": b'model_checkpoint_path: "model.ckpt"\nall_model_checkpoint_paths: "model.ckpt"\n',
    "encoder.json": b'{"!": 0}',
    "hparams.json": b'{\n  "n_vocab": 57,\n  "n_ctx": 10,\n  "n_embd": 6,\n  "n_head": 2,\n  "n_layer": 3\n}',
    DATA: DATA_BYTES,
    "model.ckpt.index": INDEX_BYTES,
    "model.ckpt.meta": b"\x0a\x04meta" * 20,
    "vocab.bpe": b"#version: 0.2\n! !\n",
}
SERVED = {f"124M/{name}": content for name, content in CONTENT.items()}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[float]:
    for name in list(os.environ):
        if name.startswith(("HF_", "XDG_CACHE")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "2")
    monkeypatch.setattr(transfer, "CHUNK_BYTES", 100)
    monkeypatch.setattr(mirrors, "PRESETS", {**PRESETS, "gpt2": SMALL})
    hashes = {name: hashlib.sha256(CONTENT[name]).hexdigest() for name in ("encoder.json", "vocab.bpe")}
    monkeypatch.setattr(mirrors, "TIKTOKEN_FILES", hashes)
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    return waits


@pytest.fixture
def first() -> Iterator[Mirror]:
    with running(Mirror()) as server:
        server.files = dict(SERVED)
        yield server


@pytest.fixture
def second() -> Iterator[Mirror]:
    with running(Mirror()) as server:
        server.files = dict(SERVED)
        yield server


def gets(mirror: Mirror) -> list[str]:
    return [request.path.rpartition("/")[2] for request in mirror.seen if request.method == "GET"]


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# The folder


@pytest.mark.parametrize("size", ["124M", "gpt2"])
def test_the_files_lie_as_the_book_lays_them(first: Mirror, tmp_path: Path, size: str) -> None:
    folder = download_openai_checkpoint(size, tmp_path / "gpt2", addresses=[first.url + "/"])
    assert folder == tmp_path / "gpt2" / "124M"
    assert content_of(folder) == CONTENT
    assert sorted(gets(first)) == sorted(FILES) == sorted(CONTENT)


def test_without_a_folder_they_lie_in_the_cache_of_the_user(
    first: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = download_openai_checkpoint(addresses=first.url)
    assert folder == tmp_path / "gptclf" / "openai" / "124M"


def test_what_is_there_and_right_is_not_asked_for(first: Mirror, tmp_path: Path) -> None:
    download_openai_checkpoint(folder=tmp_path, addresses=[first.url])
    first.seen.clear()
    download_openai_checkpoint(folder=tmp_path, addresses=[first.url])
    assert first.seen == []


WRONG = {
    "encoder.json": b'{"!": 1}',
    "vocab.bpe": b"",
    "hparams.json": CONTENT["hparams.json"].replace(b"6", b"8"),
    "model.ckpt.index": CONTENT["model.ckpt.index"][:-1],
    "model.ckpt.meta": b"",
    "checkpoint": b"<!DOCTYPE html><html>Please sign in</html>",
    DATA: CONTENT[DATA][:-1],
}


@pytest.mark.parametrize("name", FILES)
def test_what_is_there_and_wrong_is_fetched_anew(
    first: Mirror, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = download_openai_checkpoint(folder=tmp_path, addresses=[first.url])
    first.seen.clear()
    (folder / name).write_bytes(WRONG[name])
    download_openai_checkpoint(folder=tmp_path, addresses=[first.url])
    assert gets(first) == [name]
    assert content_of(folder) == CONTENT
    assert "Downloading it again" in caplog.text


def test_a_wrong_file_stays_where_no_right_one_can_be_had(first: Mirror, tmp_path: Path) -> None:
    folder = download_openai_checkpoint(folder=tmp_path, addresses=[first.url])
    (folder / DATA).write_bytes(b"mine")
    first.files.clear()
    with pytest.raises(ConnectionError):
        download_openai_checkpoint(folder=tmp_path, addresses=[first.url])
    assert (folder / DATA).read_bytes() == b"mine"


# Servers


@pytest.mark.parametrize("name", FILES)
def test_an_address_that_serves_wrong_bytes_is_passed_over(
    first: Mirror, second: Mirror, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    # The server announces what it sends, so only the published values reveal the error.
    first.files[f"124M/{name}"] = WRONG[name]
    folder = download_openai_checkpoint(folder=tmp_path, addresses=[first.url, second.url])
    assert content_of(folder) == CONTENT
    assert name in gets(second)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"{first.url} did not give {name!r}" in caplog.text


def test_bytes_that_contradict_content_md5_are_refused(first: Mirror, second: Mirror, tmp_path: Path) -> None:
    def damage(usual: Answer) -> Answer:
        return replace(usual, body=bytes(len(usual.body)))

    first.always["GET"] = lambda usual: damage(usual) if len(usual.body) == SIZE else usual
    assert content_of(download_openai_checkpoint(folder=tmp_path, addresses=[first.url, second.url])) == CONTENT
    assert gets(second) == [DATA]


@pytest.mark.parametrize("md5", ["", "none", "AAAA", "?"])
def test_a_content_md5_that_is_none_is_not_missed(first: Mirror, tmp_path: Path, md5: str) -> None:
    first.extra = {"Content-MD5": md5}
    assert content_of(download_openai_checkpoint(folder=tmp_path, addresses=[first.url])) == CONTENT


def test_an_address_that_failed_is_asked_last_from_then_on(first: Mirror, second: Mirror, tmp_path: Path) -> None:
    first.files.clear()
    addresses = [first.url, second.url]
    download_openai_checkpoint(folder=tmp_path, addresses=addresses)
    assert len(first.seen) == 1
    assert addresses == [first.url, second.url]


def test_a_server_that_is_not_there_is_passed_over(second: Mirror, tmp_path: Path) -> None:
    with running(Mirror()) as stopped:
        address = stopped.url
    assert content_of(download_openai_checkpoint(folder=tmp_path, addresses=[address, second.url])) == CONTENT


def test_a_busy_server_is_asked_again(first: Mirror, tmp_path: Path, environment: list[float]) -> None:
    first.faults = {"HEAD": [Answer(503)], "GET": [Answer(429, {"Retry-After": "5"})]}
    assert content_of(download_openai_checkpoint(folder=tmp_path, addresses=[first.url])) == CONTENT
    assert environment == [1.0, 5.0]


def test_when_all_fail_each_address_has_its_reason(first: Mirror, second: Mirror, tmp_path: Path) -> None:
    first.always["HEAD"] = lambda usual: Answer(403)
    second.files["124M/hparams.json"] = WRONG["hparams.json"]
    with pytest.raises(ConnectionError) as caught:
        download_openai_checkpoint(folder=tmp_path, addresses=[first.url, second.url])
    message = str(caught.value)
    lines = message.splitlines()
    assert lines[1].startswith(f"{first.url}: No access")
    assert "403" in lines[1]
    assert lines[2].startswith(f"{second.url}: ")
    assert "'n_embd': 8" in lines[2]
    assert message.count("By hand") == 1
    for part in (*FILES, str(tmp_path / "124M")):
        assert part in lines[-1]


def test_a_mirror_may_redirect(first: Mirror, second: Mirror, tmp_path: Path) -> None:
    first.always = dict.fromkeys(("HEAD", "GET"), lambda usual: Answer(302, {"Location": f"{second.url}/124M/x"}))
    second.files = {"124M/x": CONTENT["hparams.json"]}
    with pytest.raises(ConnectionError, match="'checkpoint'"):
        download_openai_checkpoint(folder=tmp_path, addresses=[first.url])
    assert content_of(tmp_path / "124M") == {"hparams.json": CONTENT["hparams.json"]}


# Cut off


def cut_at(mirror: Mirror, tmp_path: Path, arrived: int) -> None:
    """Run a download that is cut in the large file after this many bytes."""
    mirror.cuts = [len(CONTENT[name]) for name in FILES[:-1]] + [arrived] + [0] * 20
    with pytest.raises(ConnectionError, match="cut"):
        download_openai_checkpoint(folder=tmp_path, addresses=[mirror.url])
    mirror.cuts.clear()
    mirror.seen.clear()


@pytest.mark.parametrize("md5", [True, False])
def test_an_interrupted_download_is_resumed(first: Mirror, tmp_path: Path, md5: bool) -> None:
    if not md5:
        first.extra = {"Content-MD5": ""}
    cut_at(first, tmp_path, 1000)
    folder = download_openai_checkpoint(folder=tmp_path, addresses=[first.url])
    assert content_of(folder) == CONTENT
    assert [request.headers.get("range") for request in first.seen] == [None, "bytes=1000-"]


@pytest.mark.parametrize("md5", [True, False])
def test_a_file_that_changed_meanwhile_is_not_glued_to_its_old_half(first: Mirror, tmp_path: Path, md5: bool) -> None:
    if not md5:
        first.extra = {"Content-MD5": ""}
    first.files[f"124M/{DATA}"] = bytes(SIZE)
    cut_at(first, tmp_path, 1000)
    first.files[f"124M/{DATA}"] = CONTENT[DATA]
    folder = download_openai_checkpoint(folder=tmp_path, addresses=[first.url])
    assert content_of(folder) == CONTENT
    assert [request.headers.get("range") for request in first.seen] == [None, None]


def test_a_part_from_one_mirror_is_not_glued_to_that_of_another(first: Mirror, second: Mirror, tmp_path: Path) -> None:
    cut_at(first, tmp_path, 1000)
    folder = download_openai_checkpoint(folder=tmp_path, addresses=[second.url])
    assert content_of(folder) == CONTENT
    assert {request.headers.get("range") for request in second.seen} == {None}


# Tensors


def test_damaged_tensors_are_named_removed_and_fetched_anew(first: Mirror, tmp_path: Path) -> None:
    # Of the right length, from a server that gives no hash: only the checksum in the index reveals the error.
    wrong = bytearray(CONTENT[DATA])
    wrong[70] ^= 4
    first.files[f"124M/{DATA}"] = bytes(wrong)
    with pytest.raises(OSError, match=r"tensor 'model/wte' is damaged.*Both files were removed; call again"):
        download_openai_checkpoint(folder=tmp_path, addresses=[first.url])
    assert not (tmp_path / "124M" / DATA).exists()
    first.files = dict(SERVED)
    assert content_of(download_openai_checkpoint(folder=tmp_path, addresses=[first.url])) == CONTENT


# What is asked for


@pytest.mark.parametrize("size", ["125M", "", "nano", "gpt3", None, 124, ["124M"]])
def test_a_size_that_was_not_published_is_refused(size: Any, tmp_path: Path) -> None:
    error = ValueError if isinstance(size, str) else TypeError
    with pytest.raises(error, match="124M, 355M, 774M, 1558M"):
        download_openai_checkpoint(size, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_no_address_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="addresses is empty"):
        download_openai_checkpoint(folder=tmp_path, addresses=[])


def test_an_address_that_is_none_is_a_reason_like_others(first: Mirror, tmp_path: Path) -> None:
    assert download_openai_checkpoint(folder=tmp_path, addresses=["ftp://127.0.0.1/x", first.url]).is_dir()


def test_offline_what_is_there_will_do_and_the_rest_is_said(
    first: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = download_openai_checkpoint(folder=tmp_path, addresses=[first.url])
    first.seen.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert download_openai_checkpoint(folder=tmp_path, addresses=[first.url]) == folder
    (folder / "vocab.bpe").unlink()
    with pytest.raises(FileNotFoundError, match=r"vocab\.bpe.*HF_HUB_OFFLINE.*By hand"):
        download_openai_checkpoint(folder=tmp_path, addresses=[first.url])
    assert first.seen == []


def test_a_folder_that_cannot_be_written_is_not_held_against_the_mirrors(
    first: Mirror, second: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*args: object) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match=r"full.*folder=") as caught:
        download_openai_checkpoint(folder=tmp_path, addresses=[first.url, second.url])
    assert caught.value.errno == errno.ENOSPC
    assert second.seen == []
    assert caplog.records == []
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="folder="):
        download_openai_checkpoint(folder=tmp_path / "file", addresses=[first.url])


# What is published


def test_the_sizes_of_the_data_files_are_those_published(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [4 * parameter_count(PRESETS[name]) for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")]
    assert sizes == [497_759_232, 1_419_292_672, 3_096_120_320, 6_230_444_800]
    assert 4 * parameter_count(SMALL) == SIZE


def test_the_addresses_are_openais_and_the_books() -> None:
    assert [address.split("/")[2] for address in ADDRESSES] == [
        "openaipublic.blob.core.windows.net",
        "f001.backblazeb2.com",
    ]


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"n_vocab": "57"}', "NaN", '{"n_vocab": 57'])
def test_hparams_that_are_none_are_refused(
    first: Mirror, tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    first.files["124M/hparams.json"] = text.encode()
    with pytest.raises(ConnectionError, match=r"hparams\.json"):
        download_openai_checkpoint(folder=tmp_path, addresses=[first.url])
    assert list((tmp_path / "124M").iterdir()) == []


def test_the_stand_in_is_like_the_published_ones() -> None:
    assert json.loads(CONTENT["hparams.json"])["n_vocab"] == SMALL.vocab_size
    assert len(CONTENT[DATA]) == SIZE
