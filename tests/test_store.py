"""Kept features: whole after a kill, right or computed again, within their limits, and given back when asked."""

import dataclasses
import errno
import logging
import multiprocessing
import os
import random
import signal
import stat
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import byte_tokenizer, randomised

from gptclf import GPT2, Callback, GPT2Config, TextDataset, add_classifier_head, clear_features, evaluate, freeze, train
from gptclf.features import cache
from gptclf.features import frozen_prefix as prefix
from gptclf.features import store as stores
from gptclf.features.cache import in_memory, on_disk, peek
from gptclf.features.frozen_prefix import FrozenPrefix, frozen_prefix
from gptclf.features.store import FeatureStore
from gptclf.files import safetensors_file
from gptclf.gpt2 import packed
from gptclf.gpt2.arithmetic import FLOAT32
from gptclf.training.run import Run

CONFIG = GPT2Config(vocab_size=257, context_length=40, emb_dim=24, n_heads=3, n_layers=3, mlp_dim=56)
TEXTS = [f"{'text ' * (i % 5)}number {i}" for i in range(24)]
TOKENS = sum(len(text) for text in TEXTS)
BYTES = 4 * CONFIG.emb_dim * TOKENS


def classifier(trainable: str = "last_block", noise: int = 1) -> GPT2:
    gpt2 = randomised(GPT2(CONFIG, seed=7), noise).requires_grad_(False)
    gpt2.tokenizer = byte_tokenizer()
    clf = add_classifier_head(gpt2, classes=["ham", "spam"], seed=3)
    clf.head.forget_fresh()
    freeze(clf, trainable=trainable)
    return clf


def labelled(n: int = len(TEXTS)) -> TextDataset:
    labels = ["spam" if i % 2 else "ham" for i in range(n)]
    return TextDataset(TEXTS[:n], labels, tokenizer=byte_tokenizer(), classes=["ham", "spam"])


def losses(clf: GPT2 | None = None, data: TextDataset | None = None, **options: Any) -> list[float]:
    chosen = {"epochs": 1, "batch_size": 4, "lr": 1e-3, "progress": False, **options}
    history = train(classifier() if clf is None else clf, labelled() if data is None else data, **chosen)
    return [step.loss for step in history.steps]


def identity(clf: GPT2) -> str:
    found = frozen_prefix(clf, FLOAT32)
    assert isinstance(found, FrozenPrefix)
    return found.identity()


def segments(folder: Path) -> list[Path]:
    return sorted(folder.glob("features-*/*.safetensors"))


def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows computed, chunk by chunk, filled in as it happens."""
    found: list[int] = []
    real = prefix.compute_chunk

    def compute_chunk(frozen: Any, rows: Any, *more: Any) -> Any:
        found.append(len(rows))
        return real(frozen, rows, *more)

    monkeypatch.setattr(prefix, "compute_chunk", compute_chunk)
    return found


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several segments for one training."""
    monkeypatch.setattr(packed, "CHUNK_TOKENS", 100)


@pytest.fixture(scope="module")
def expected() -> list[float]:
    """The losses of a training that keeps nothing on disk."""
    found = losses()
    clear_features()
    return found


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def cramped(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine whose memory has no room for features; where its temporary folders are made."""
    monkeypatch.setattr(cache, "process_memory", lambda: 4.0 * (BYTES - 1))
    return temporary


# Another process


def train_there(folder: Path, chunk: int, sleep: float, dies_writing: int | None, answer: Connection) -> None:
    """What the other process does: train slowly, in small chunks, and send the rows computed and the losses."""
    real, rows = prefix.compute_chunk, [0]

    def compute_chunk(frozen: Any, some: Any, *more: Any) -> Any:
        if not rows[0]:
            answer.send("started")
        rows[0] += len(some)
        time.sleep(sleep)
        return real(frozen, some, *more)

    writer, calls = safetensors_file.tensor_writer, iter(range(100))

    def tensor_writer(*arguments: Any) -> Any:
        def write(path: Path) -> None:
            writer(*arguments)(path)
            if next(calls) == dies_writing:
                os.truncate(path, path.stat().st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)

        return write

    torch.set_num_threads(1)
    setattr(prefix, "compute_chunk", compute_chunk)  # noqa: B010
    setattr(stores, "tensor_writer", tensor_writer)  # noqa: B010
    packed.CHUNK_TOKENS = chunk
    found = losses(cache_dir=folder)
    answer.send((rows[0], found))


class Other:
    """A training in another process that shares nothing with this one but the folder."""

    def __init__(self, folder: Path, *, chunk: int = 100, sleep: float = 0.0, dies_writing: int | None = None) -> None:
        # A server imports torch once and is copied for each process, which saves seconds.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["gptclf", "numpy", "pytest", "safetensors.torch", "hypothesis"])
        self.answers, answer = context.Pipe(duplex=False)
        self.process = context.Process(target=train_there, args=(folder, chunk, sleep, dies_writing, answer))
        self.process.start()
        answer.close()

    def result(self) -> tuple[int, list[float]]:
        """Rows it computed, and its losses."""
        while (answer := self.answers.recv()) == "started":
            pass
        self.process.join()
        rows, found = answer
        return rows, found

    def kill(self, after: float) -> None:
        """Kill it so many seconds after it began to compute."""
        assert self.answers.recv() == "started"
        time.sleep(after)
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.join()
        assert self.process.exitcode == -signal.SIGKILL


needs_forkserver = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork server")


@needs_forkserver
@pytest.mark.slow
def test_a_new_process_computes_nothing_and_trains_to_the_same_losses(tmp_path: Path, expected: list[float]) -> None:
    np.testing.assert_allclose(losses(cache_dir=tmp_path), expected, rtol=0, atol=1e-6)
    before = {path: path.stat().st_mtime_ns for path in segments(tmp_path)}
    assert before
    rows, found = Other(tmp_path).result()
    assert rows == 0
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    assert {path: path.stat().st_mtime_ns for path in segments(tmp_path)} == before


@needs_forkserver
@pytest.mark.slow
def test_a_killed_run_leaves_whole_segments_and_the_next_goes_on_from_them(
    tmp_path: Path, expected: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(0)
    left: list[Path] = []
    for _ in range(2):
        Other(tmp_path, chunk=40, sleep=0.05).kill(rng.uniform(0.1, 0.25))
        assert set(left) < set(segments(tmp_path))  # it went on, and took nothing away
        left = segments(tmp_path)
    kept_rows = 0
    for path in left:
        tensors = safetensors.torch.load_file(path)
        assert int(tensors["lengths"].sum()) == len(tensors["values"])
        kept_rows += len(tensors["keys"])
    assert 0 < kept_rows < len(TEXTS)
    rows = computed(monkeypatch)
    np.testing.assert_allclose(losses(cache_dir=tmp_path), expected, rtol=0, atol=1e-6)
    assert sum(rows) == len(TEXTS) - kept_rows


@needs_forkserver
@pytest.mark.slow
def test_a_run_killed_while_it_writes_leaves_no_half_segment(
    tmp_path: Path, expected: list[float], small_chunks: None
) -> None:
    other = Other(tmp_path, chunk=40, dies_writing=2)
    other.process.join()
    assert other.process.exitcode == -signal.SIGKILL
    assert len(segments(tmp_path)) == 2
    for path in segments(tmp_path):
        safetensors.torch.load_file(path)
    np.testing.assert_allclose(losses(cache_dir=tmp_path), expected, rtol=0, atol=1e-6)


@needs_forkserver
@pytest.mark.slow
def test_two_processes_at_once_on_one_folder_both_train_right(
    tmp_path: Path, expected: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    both = [Other(tmp_path, chunk=40, sleep=0.02) for _ in range(2)]
    for other in both:
        np.testing.assert_allclose(other.result()[1], expected, rtol=0, atol=1e-6)
    rows = computed(monkeypatch)
    np.testing.assert_allclose(losses(cache_dir=tmp_path), expected, rtol=0, atol=1e-6)
    assert rows == []


# What lies in the folder


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size * 2 // 3)


def cut_in_header(path: Path) -> None:
    os.truncate(path, 20)


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def garbled_header(path: Path) -> None:
    data = bytearray(path.read_bytes())
    for i in range(0, 60, 3):
        data[i] ^= 0x5A
    path.write_bytes(data)


def of_another_kind(path: Path) -> None:
    path.write_bytes(b"PK\x03\x04 this is no such file" * 50)


def of_another_prefix(path: Path) -> None:
    tensors = safetensors.torch.load_file(path)
    tensors["values"] = torch.zeros_like(tensors["values"])
    safetensors.torch.save_file(tensors, path, metadata={"identity": "0" * 64})


def without_metadata(path: Path) -> None:
    tensors = safetensors.torch.load_file(path)
    safetensors.torch.save_file({**tensors, "values": torch.zeros_like(tensors["values"])}, path)


def rewritten(path: Path, **changes: torch.Tensor | None) -> None:
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = {**safetensors.torch.load_file(path), **changes}
    kept = {name: tensor.contiguous() for name, tensor in tensors.items() if tensor is not None}
    safetensors.torch.save_file(kept, path, metadata=metadata)


def with_fewer_values(path: Path) -> None:
    rewritten(path, values=safetensors.torch.load_file(path)["values"][1:])


def with_fewer_keys(path: Path) -> None:
    rewritten(path, keys=safetensors.torch.load_file(path)["keys"][1:])


def without_lengths(path: Path) -> None:
    rewritten(path, lengths=None)


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_link_to_nothing(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.parent / "gone")


DAMAGES = [
    truncated,
    cut_in_header,
    emptied,
    garbled_header,
    of_another_kind,
    of_another_prefix,
    without_metadata,
    with_fewer_values,
    with_fewer_keys,
    without_lengths,
    a_folder,
    a_link_to_nothing,
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_or_foreign_file_is_left_out_with_a_warning_and_computed_again(
    damage: Callable[[Path], None],
    tmp_path: Path,
    expected: list[float],
    small_chunks: None,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    losses(cache_dir=tmp_path)
    victim, *others = segments(tmp_path)
    lost = len(safetensors.torch.load_file(victim)["keys"])
    assert others
    damage(victim)
    rows = computed(monkeypatch)
    caplog.clear()
    np.testing.assert_allclose(losses(cache_dir=tmp_path), expected, rtol=0, atol=1e-6)
    assert sum(rows) == lost
    assert "left out a damaged file of features" in caplog.text
    rows.clear()
    np.testing.assert_allclose(losses(cache_dir=tmp_path), expected, rtol=0, atol=1e-6)
    assert rows == []


@pytest.mark.parametrize("what", ["keys", "lengths", "values"])
def test_one_flipped_bit_is_seen_and_the_segment_computed_again(
    what: str, tmp_path: Path, expected: list[float], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    losses(cache_dir=tmp_path)
    [path] = segments(tmp_path)
    tensor = safetensors.torch.load_file(path)[what].numpy()
    place = path.read_bytes().index(tensor.tobytes()) + tensor.nbytes // 2
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    rows = computed(monkeypatch)
    np.testing.assert_allclose(losses(cache_dir=tmp_path), expected, rtol=0, atol=1e-6)
    assert sum(rows) == len(TEXTS)
    assert "left out a damaged file of features" in caplog.text
    assert path not in segments(tmp_path)


def test_other_things_in_the_folder_are_passed_over(tmp_path: Path, expected: list[float]) -> None:
    losses(cache_dir=tmp_path)
    folder = segments(tmp_path)[0].parent
    (folder / "notes.txt").write_text("mine")
    (folder / f".{'a' * 32}.safetensors.1.tmp").write_bytes(b"half")
    (tmp_path / "features-of-mine").mkdir()
    np.testing.assert_allclose(losses(cache_dir=tmp_path), expected, rtol=0, atol=1e-6)
    assert (folder / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["ünï códe 数据", "a/new/folder/below", "with space"])
def test_any_folder_name_will_do_and_folders_are_made(name: str, tmp_path: Path, expected: list[float]) -> None:
    folder = tmp_path / name
    np.testing.assert_allclose(losses(cache_dir=folder), expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(losses(cache_dir=str(folder)), expected, rtol=0, atol=1e-6)
    assert len(segments(folder)) == 1


def test_only_the_owner_may_look_into_the_folder_of_features(tmp_path: Path) -> None:
    losses(cache_dir=tmp_path)
    assert stat.S_IMODE(segments(tmp_path)[0].parent.stat().st_mode) == 0o700


def test_with_a_folder_nothing_stays_in_memory(tmp_path: Path) -> None:
    losses(cache_dir=tmp_path)
    assert clear_features() == 0


@pytest.mark.parametrize("below", ["", "inside"])
def test_a_file_in_the_place_of_the_folder_is_an_error_that_names_it(below: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises((OSError, ValueError), match="file"):
        losses(cache_dir=file / below)
    assert file.read_text() == "mine"


@pytest.mark.parametrize(
    ("limit", "error"),
    [
        (0, ValueError),
        (-1, ValueError),
        (float("nan"), ValueError),
        ("5GB", TypeError),
        (None, TypeError),
        (True, TypeError),
    ],
)
def test_a_limit_that_is_no_number_of_bytes_is_an_error(limit: Any, error: type[Exception], tmp_path: Path) -> None:
    with pytest.raises(error, match="cache_limit is"):
        losses(cache_dir=tmp_path, cache_limit=limit)


@pytest.mark.parametrize(("folder", "error"), [("", ValueError), (5, TypeError)])
def test_what_names_no_folder_is_an_error(folder: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="cache_dir is"):
        losses(cache_dir=folder)


# A write that fails


@pytest.mark.parametrize("whole", [0, 2])
def test_a_full_disk_is_an_error_that_leaves_whole_segments_and_the_next_run_goes_on(
    whole: int, tmp_path: Path, expected: list[float], small_chunks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = safetensors_file.tensor_writer, iter(range(100))

    def tensor_writer(*arguments: Any) -> Any:
        def write(path: Path) -> None:
            path.write_bytes(b"the first half")
            raise OSError(errno.ENOSPC, "No space left on device")

        return real(*arguments) if next(calls) < whole else write

    clf = classifier()
    before = {name: parameter.detach().clone() for name, parameter in clf.named_parameters()}
    with monkeypatch.context() as patch:
        patch.setattr(stores, "tensor_writer", tensor_writer)
        with pytest.raises(OSError, match="No space left on device") as caught:
            losses(clf, cache_dir=tmp_path)
    assert caught.value.errno == errno.ENOSPC
    assert all(torch.equal(before[name], parameter) for name, parameter in clf.named_parameters())
    assert all(parameter.grad is None for parameter in clf.parameters())
    [folder] = tmp_path.iterdir()
    assert len(segments(tmp_path)) == len(list(folder.iterdir())) == whole
    np.testing.assert_allclose(losses(clf, cache_dir=tmp_path), expected, rtol=0, atol=1e-6)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_an_error_that_names_it(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(PermissionError, match=tmp_path.name):
            losses(cache_dir=tmp_path)
    finally:
        tmp_path.chmod(0o700)


def test_a_folder_of_someone_else_that_may_only_be_read_serves_what_it_has(
    tmp_path: Path, expected: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    losses(cache_dir=tmp_path)

    def refuse(*arguments: Any, **named: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "utime", refuse)
    np.testing.assert_allclose(losses(cache_dir=tmp_path), expected, rtol=0, atol=1e-6)


# Limits on disk


def test_a_limit_that_is_too_small_warns_and_computes_plainly(
    tmp_path: Path, expected: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    np.testing.assert_allclose(losses(cache_dir=tmp_path, cache_limit=BYTES - 1), expected, rtol=0, atol=1e-5)
    assert "do not fit in" in caplog.text
    assert "(cache_limit)" in caplog.text
    assert segments(tmp_path) == []
    caplog.clear()
    losses(cache_dir=tmp_path, cache_limit=BYTES)
    assert "do not fit in" not in caplog.text
    assert len(segments(tmp_path)) == 1


def test_a_disk_that_is_too_small_warns_and_computes_plainly(
    tmp_path: Path, expected: list[float], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = dataclasses.make_dataclass("usage", ["free"])
    monkeypatch.setattr("gptclf.features.cache.shutil.disk_usage", lambda folder: usage(BYTES))
    np.testing.assert_allclose(losses(cache_dir=tmp_path), expected, rtol=0, atol=1e-5)
    assert "do not fit in" in caplog.text
    assert segments(tmp_path) == []


def filled(folder: Path, names: str, nbytes: int = 4000) -> dict[str, Path]:
    """Prefixes of `nbytes` bytes of values each, the first used longest ago."""
    found = {}
    for age, name in zip(range(len(names), 0, -1), names, strict=True):
        store = FeatureStore(name * 64, folder)
        store.add([name.encode() * 16], [nbytes // 40], torch.zeros(nbytes // 40, 10))
        assert store.folder is not None
        os.utime(store.folder, (time.time() - 1000 * age,) * 2)
        found[name] = store.folder
    return found


def test_to_make_room_the_prefix_used_longest_ago_is_deleted_first(tmp_path: Path) -> None:
    folders = filled(tmp_path, "abcd")
    size = next(folders["a"].iterdir()).stat().st_size
    assert on_disk("e" * 64, tmp_path, lambda _: 4000, 3 * size + 4000) is not None
    assert [name for name, folder in folders.items() if folder.exists()] == ["b", "c", "d"]
    # Opening counts as using.
    assert on_disk("b" * 64, tmp_path, lambda _: 0, 10 * size) is not None
    assert on_disk("e" * 64, tmp_path, lambda _: 4000, size + 4000) is not None
    assert [name for name, folder in folders.items() if folder.exists()] == ["b"]


def test_where_it_would_not_fit_anyway_nothing_is_deleted(tmp_path: Path) -> None:
    folders = filled(tmp_path, "abc")
    assert on_disk("e" * 64, tmp_path, lambda _: 5000, 4999) is None
    assert all(folder.exists() for folder in folders.values())


def test_prefixes_that_fit_beside_each_other_all_stay(tmp_path: Path) -> None:
    folders = filled(tmp_path, "abc")
    size = next(folders["a"].iterdir()).stat().st_size
    assert on_disk("e" * 64, tmp_path, lambda _: 4000, 3 * size + 4000) is not None
    assert all(folder.exists() for folder in folders.values())


def test_training_another_model_deletes_the_features_of_the_first_where_both_do_not_fit(tmp_path: Path) -> None:
    first, second = classifier(), classifier(noise=2)
    losses(first, cache_dir=tmp_path)
    [before] = segments(tmp_path)
    losses(second, cache_dir=tmp_path, cache_limit=1.5 * BYTES)
    [after] = segments(tmp_path)
    assert before.parent != after.parent
    losses(first, cache_dir=tmp_path)
    assert len(segments(tmp_path)) == 2


def test_a_broken_link_in_an_older_prefix_does_not_stop_training(tmp_path: Path) -> None:
    folder = filled(tmp_path, "a")["a"]
    (folder / "link.safetensors").symlink_to(tmp_path / "gone")
    assert losses(cache_dir=tmp_path)


def test_a_folder_gives_up_other_texts_of_the_same_prefix_where_both_do_not_fit(tmp_path: Path) -> None:
    old = filled(tmp_path, "a")["a"]
    size = next(old.iterdir()).stat().st_size
    store = on_disk("a" * 64, tmp_path, lambda _: size, 1.5 * size)
    assert store is not None
    assert len(store) == 0
    assert not old.exists()
    # Nothing is missing: whatever the limit, what there is serves.
    filled(tmp_path, "b")
    full = on_disk("b" * 64, tmp_path, lambda _: 0, 1)
    assert full is not None
    assert len(full) == 1


def test_evaluating_takes_features_from_the_folder_that_train_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clf = classifier()
    losses(clf, cache_dir=tmp_path)
    expected = evaluate(clf, labelled(), precision="float32").probabilities
    clear_features()
    rows = computed(monkeypatch)
    found = evaluate(clf, labelled(), precision="float32", cache_dir=tmp_path).probabilities
    assert rows == []
    np.testing.assert_array_equal(found, expected)


# Limits in memory


def test_what_memory_has_no_room_for_goes_to_a_temporary_folder_that_is_gone_afterwards(
    cramped: Path, expected: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    class Look(Callback):
        def on_start(self, run: Run) -> None:
            self.seen: list[Path] = []

        def on_step(self, run: Run, step: Any) -> None:
            self.seen = [path for folder in cramped.iterdir() for path in segments(folder)]

    look = Look()
    np.testing.assert_allclose(losses(callbacks=[look]), expected, rtol=0, atol=1e-6)
    assert look.seen
    assert str(look.seen[0].parent.parent) in caplog.text
    assert "more than the" in caplog.text
    assert "cache_dir" in caplog.text
    assert list(cramped.iterdir()) == []
    assert clear_features() == 0


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_the_temporary_folder_is_gone_after_an_error_too(cramped: Path, error: type[BaseException]) -> None:
    class Fail(Callback):
        def on_step(self, run: Run, step: Any) -> None:
            assert list(cramped.iterdir())
            raise error("stop")

    with pytest.raises(error, match="stop"):
        losses(callbacks=[Fail()])
    assert list(cramped.iterdir()) == []


def test_the_temporary_folder_is_gone_after_an_error_while_it_is_filled(
    cramped: Path, small_chunks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(*arguments: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(stores, "tensor_writer", lambda *arguments: write)
    with pytest.raises(OSError, match="No space left"):
        losses()
    assert list(cramped.iterdir()) == []


def test_where_the_disk_has_no_room_either_everything_is_computed_plainly_and_says_so(
    cramped: Path, expected: list[float], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = dataclasses.make_dataclass("usage", ["free"])
    monkeypatch.setattr("gptclf.features.cache.shutil.disk_usage", lambda folder: usage(0))
    np.testing.assert_allclose(losses(), expected, rtol=0, atol=1e-5)
    assert "there is no room for features" in caplog.text
    assert list(cramped.iterdir()) == []


def test_evaluating_without_room_in_memory_neither_keeps_nor_writes(
    cramped: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    monkeypatch.setattr(tempfile, "mkdtemp", lambda *arguments, **named: made.append("one"))
    clf = classifier()
    evaluate(clf, labelled())
    assert made == []
    assert clear_features() == 0
    assert "features" not in caplog.text


def test_a_folder_that_is_named_has_room_that_memory_has_not(
    cramped: Path, tmp_path: Path, expected: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    np.testing.assert_allclose(losses(cache_dir=tmp_path / "mine"), expected, rtol=0, atol=1e-6)
    assert "memory" not in caplog.text
    assert len(segments(tmp_path / "mine")) == 1


@pytest.fixture
def room_for_three(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that takes three prefixes of 400 bytes."""
    monkeypatch.setattr(cache, "process_memory", lambda: 1200 / cache.MEMORY_SHARE)


def remember(name: str, nbytes: int = 400) -> FeatureStore:
    store = in_memory(name, lambda _: nbytes, renew=True)
    assert store is not None
    store.add([name.encode()], [nbytes // 40], torch.zeros(nbytes // 40, 10))
    return store


def test_memory_gives_up_the_prefix_used_longest_ago(room_for_three: None) -> None:
    for name in "abc":
        remember(name)
    assert in_memory("a", lambda _: 0, renew=True) is not None  # which uses it
    remember("d")
    assert [name for name in "abcd" if peek(name) is not None] == ["a", "c", "d"]
    assert clear_features() == 1200


def test_memory_gives_nothing_up_for_what_does_not_fit_anyway(room_for_three: None) -> None:
    for name in "abc":
        remember(name)
    assert in_memory("d", lambda _: 1201, renew=True) is None
    assert in_memory("a", lambda store: 1201 - store.nbytes, renew=True) is None
    assert [name for name in "abcd" if peek(name) is not None] == ["a", "b", "c"]


def test_memory_makes_room_for_a_prefix_that_grows(room_for_three: None) -> None:
    for name in "abc":
        remember(name)
    store = in_memory("a", lambda store: 1200 - store.nbytes, renew=True)
    assert store is not None
    assert len(store) == 1
    assert [name for name in "abc" if peek(name) is not None] == ["a"]


def test_memory_gives_up_other_texts_of_the_same_prefix_where_both_do_not_fit(room_for_three: None) -> None:
    remember("a")
    assert in_memory("a", lambda _: 1000, renew=False) is None  # a call that must not take what another left
    store = in_memory("a", lambda _: 1000, renew=True)
    assert store is not None
    assert len(store) == 0
    assert peek("a") is store


def test_looking_at_what_is_kept_makes_no_room_and_counts_as_no_use(room_for_three: None) -> None:
    for name in "abc":
        remember(name)
    peek("a")
    remember("d")
    assert peek("a") is None


# Giving back


def test_clearing_memory_gives_its_bytes_back() -> None:
    clf = classifier()
    losses(clf)
    assert clear_features() == BYTES
    assert clear_features() == 0
    assert peek(identity(clf)) is None


def test_clearing_a_folder_deletes_features_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    mine = [
        tmp_path / "report.txt",
        tmp_path / "model.safetensors",
        tmp_path / "mine" / "x.safetensors",
        tmp_path / f"features-{'0' * 32}",
    ]
    for path in mine:
        path.write_text("mine")
    (tmp_path / f"features-{'g' * 32}").mkdir()
    losses(cache_dir=tmp_path)
    losses(classifier(noise=2), cache_dir=tmp_path)
    first, second = segments(tmp_path)
    (first.parent / "notes.txt").write_text("mine")
    (second.parent / ".half.safetensors.77.tmp").write_bytes(b"half")
    size = sum(path.stat().st_size for path in (first, second)) + 4
    assert clear_features(str(tmp_path)) == size
    assert size > 2 * BYTES
    assert all(path.read_text() == "mine" for path in [*mine, first.parent / "notes.txt"])
    assert not first.exists()
    assert not second.parent.exists()
    assert clear_features(tmp_path) == 0


def test_clearing_follows_no_link_out_of_the_folder(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    precious = outside / "model.safetensors"
    precious.write_bytes(b"x" * 1000)
    cache = tmp_path / "cache"
    folder = filled(cache, "a")["a"]
    (folder / "link.safetensors").symlink_to(precious)
    (folder / "below").symlink_to(outside)
    (cache / f"features-{'b' * 32}").symlink_to(outside)
    clear_features(cache)
    assert precious.read_bytes() == b"x" * 1000


@pytest.mark.parametrize("name", ["missing", "file"])
def test_clearing_what_is_no_folder_is_an_error_that_says_so(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError, match=f"{name}', not a folder; give the one named in train"):
        clear_features(tmp_path / name)
    assert (tmp_path / "file").exists()


def test_features_in_use_survive_being_cleared(tmp_path: Path, expected: list[float]) -> None:
    class Clear(Callback):
        def on_step(self, run: Run, step: Any) -> None:
            clear_features()
            clear_features(tmp_path)

    np.testing.assert_allclose(losses(cache_dir=tmp_path, callbacks=[Clear()]), expected, rtol=0, atol=1e-6)


def test_damaged_files_say_so_at_a_level_that_shows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    losses(cache_dir=tmp_path)
    emptied(segments(tmp_path)[0])
    caplog.clear()
    losses(cache_dir=tmp_path)
    assert {record.levelno for record in caplog.records if "left out" in record.message} == {logging.WARNING}
