"""What people do to files, and where they keep them: rights, paths, damage, claims, and saves at the same time."""

import json
import logging
import os
import shutil
import socket
import struct
import threading
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import byte_tokenizer

from gptclf import (
    GPT2,
    Callback,
    GPT2Config,
    TextDataset,
    TextWindows,
    add_classifier_head,
    apply_lora,
    clear_features,
    load_adapter,
    load_gpt2,
    load_model,
    predict_proba,
    save_adapter,
    save_model,
    train,
)
from gptclf.files.torch_file import read_torch_file
from gptclf.tokenizer.bpe import byte_characters, make_encoding
from gptclf.weights.book import to_book

CONFIG = GPT2Config(vocab_size=257, context_length=32, emb_dim=16, n_heads=2, n_layers=2)
TEXTS = ["win a prize", "see you", "abc"]


def classifier(seed: int = 1) -> GPT2:
    gpt2 = load_gpt2(CONFIG, weights="random", seed=seed, tokenizer=byte_tokenizer())
    clf = add_classifier_head(gpt2, classes=["ham", "spam"], seed=seed)
    with torch.no_grad():
        clf.get_parameter("head.output.bias").add_(torch.tensor([0.5, -0.5]))
    return clf


def rows() -> TextDataset:
    return TextDataset(["win a prize", "see you"] * 4, ["spam", "ham"] * 4, tokenizer=byte_tokenizer())


def trained(**options: Any) -> Any:
    return train(classifier(), rows(), epochs=1, batch_size=4, progress=False, **options)


def as_other_user(call: Callable[[], object]) -> str:
    """What a call says that another user makes, in a process of its own."""
    if os.name == "nt" or os.geteuid() != 0:
        pytest.skip("needs the right to change the user")
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            said = f"no error: {call()!r}"
        except BaseException as error:
            said = f"{type(error).__name__} {getattr(error, 'errno', None)}: {error}"
        os.write(writer, said.encode()[:4000])
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    with os.fdopen(reader) as file:
        return file.read()


@contextmanager
def open_to_all(folder: Path) -> Iterator[None]:
    """Let other users into a folder and those above it."""
    before = {place: place.stat().st_mode for place in (folder, *folder.parents)}
    for place, mode in before.items():
        with suppress(OSError):
            place.chmod(mode | 0o755)
    try:
        yield
    finally:
        for place, mode in before.items():
            with suppress(OSError):
                place.chmod(mode)


class TestRights:
    @pytest.mark.parametrize("umask", [0o022, 0o027])
    def test_every_file_has_the_mode_of_a_new_file(self, umask: int, tmp_path: Path) -> None:
        before = os.umask(umask)
        try:
            folder = save_model(classifier(), tmp_path / "model")
            for path in folder.iterdir():
                path.chmod(0o600)
            save_model(classifier(2), folder)
            lora = apply_lora(add_classifier_head(load_gpt2("nano"), num_classes=2, seed=1), rank=2, seed=1)
            save_adapter(lora, tmp_path / "adapter")
            trained(checkpoint_dir=tmp_path / "states", cache_dir=tmp_path / "features")
        finally:
            os.umask(before)
        modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()}
        assert {"model.safetensors", "gptclf.safetensors", "gptclf.json", "adapter_model.safetensors"} <= set(modes)
        assert len(modes) > 14
        assert set(modes.values()) == {0o666 & ~umask}

    @pytest.mark.parametrize(
        ("name", "mode"),
        [
            ("model.safetensors", 0o600),
            ("gptclf.safetensors", 0o600),
            ("gptclf.json", 0o600),
            ("merges.txt", 0o600),
            (".", 0o600),
            (".", 0o644),
        ],
    )
    def test_a_folder_that_another_user_may_not_read(self, name: str, mode: int, tmp_path: Path) -> None:
        folder = save_model(classifier(), tmp_path / "model")
        with open_to_all(folder):
            (folder / name).chmod(mode)
            said = as_other_user(lambda: load_model(folder))
        assert said.startswith("PermissionError 13: ")
        assert str(folder / name) in said
        assert "the user nobody" in said
        assert "does not exist" not in said

    def test_other_files_that_another_user_may_not_read(self, tmp_path: Path) -> None:
        model = classifier()
        torch.save(to_book(dict(model.named_parameters()), CONFIG), tmp_path / "model.pth")
        (tmp_path / "rows.csv").write_text("text,label\nhi,ham\nho,spam\n")
        (tmp_path / "text.txt").write_text("hello " * 20)
        calls: dict[str, Callable[[], object]] = {
            "model.pth": lambda: load_model(tmp_path / "model.pth", settings={"n_heads": 2}),
            "rows.csv": lambda: TextDataset.from_file(tmp_path / "rows.csv", tokenizer=byte_tokenizer()),
            "text.txt": lambda: TextWindows.from_file(tmp_path / "text.txt", tokenizer=byte_tokenizer(), length=4),
        }
        with open_to_all(tmp_path):
            for name, call in calls.items():
                (tmp_path / name).chmod(0o600)
                said = as_other_user(call)
                assert said.startswith("PermissionError 13: "), said
                assert str(tmp_path / name) in said
                assert "the user nobody" in said

    def test_folders_that_another_user_may_not_write_are_refused_before_the_first_step(self, tmp_path: Path) -> None:
        steps: list[int] = []

        class Count(Callback):
            def on_step(self, run: Any, step: Any) -> None:
                steps.append(step.step)
                raise AssertionError("a step was taken")

        with open_to_all(tmp_path):
            for option in ({"checkpoint_dir": tmp_path / "new" / "ck"}, {"cache_dir": tmp_path / "new" / "fe"}):
                said = as_other_user(lambda option=option: trained(**option, callbacks=[Count()]))  # type: ignore[misc]
                assert said.startswith("PermissionError 13: "), said
                assert "the user nobody" in said
                assert str(tmp_path) in said
            said = as_other_user(lambda: save_model(classifier(), tmp_path / "new"))
            assert said.startswith("PermissionError 13: "), said
            assert "the user nobody" in said

    @pytest.mark.parametrize("option", ["checkpoint_dir", "cache_dir"])
    def test_a_folder_below_a_file_is_refused_before_the_first_step(self, option: str, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(NotADirectoryError, match=rf"{option}: .*file/below cannot be written to") as caught:
            trained(**{option: tmp_path / "file" / "below"})
        assert caught.value.errno == 20


class Place:
    """An object with a path."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __fspath__(self) -> str:
        return self.path


@pytest.mark.parametrize(("kind", "start"), [(str, "~/"), (Path, "~/"), (Place, "~/"), (str, ""), (Place, "./")])
def test_a_path_means_the_same_in_every_argument(
    kind: Callable[[str], Any], start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)

    def path(name: str) -> Any:
        return kind(start + name)

    clf = classifier()
    assert save_model(clf, path("model")) is not None
    assert load_model(path("model"), cache_dir=path("hub")).classes == ["ham", "spam"]
    nano = load_gpt2("nano")
    lora = apply_lora(add_classifier_head(nano, num_classes=2, seed=1), rank=2, seed=1)
    save_model(nano, path("base"))
    save_adapter(lora, path("adapter"), base=path("base"))
    assert load_adapter(nano, path("adapter")).classes == [0, 1]
    assert load_model(path("adapter"), base=path("base")).classes == load_model(path("adapter")).classes == [0, 1]
    history = trained(checkpoint_dir=path("states"), cache_dir=path("features"))
    trained(checkpoint_dir=path("states"), resume=True)
    pytest.importorskip("matplotlib")
    history.plot(path("plots/loss.png"))
    assert clear_features(path("features")) > 0
    (home / "rows.csv").write_text("text,label\nhi,ham\nho,spam\n")
    (home / "text.txt").write_text("hello " * 20)
    assert len(TextDataset.from_file(path("rows.csv"), tokenizer=byte_tokenizer())) == 2
    assert len(TextWindows.from_file(path("text.txt"), tokenizer=byte_tokenizer(), length=8)) > 1
    with pytest.raises(FileNotFoundError, match="HF_HUB_OFFLINE"):
        load_gpt2("owner/name", cache_dir=path("hub"))
    found = {place.name for place in home.iterdir()} - {".cache", ".config"}  # matplotlib's
    assert found == {"model", "adapter", "base", "states", "features", "plots", "rows.csv", "text.txt"}


@pytest.mark.parametrize("path", ["", "a\0b", b"bytes", 3, None])
def test_what_is_no_path_is_said_to_be_none(path: Any) -> None:
    for call in (load_model, lambda p: save_model(classifier(), p), lambda p: trained(cache_dir=p or "")):
        with pytest.raises((TypeError, ValueError), match="it must be a path"):
            call(path)


SAVED = ("model.safetensors", "gptclf.safetensors", "gptclf.json", "vocab.json", "merges.txt", "tokenizer.json")


class TestDigests:
    @pytest.mark.parametrize("name", [*SAVED, "config.json", "tokenizer_config.json"])
    def test_one_bit_of_any_file_is_noticed(self, name: str, tmp_path: Path) -> None:
        path = save_model(classifier(), tmp_path) / name
        content = bytearray(path.read_bytes())
        for place in (len(content) // 3, len(content) // 2, len(content) - 3):
            damaged = bytearray(content)
            damaged[place] ^= 0x04
            path.unlink()
            path.write_bytes(damaged)
            with pytest.raises(ValueError, match=name.replace(".", r"\.")):
                load_model(tmp_path)

    @pytest.mark.parametrize(
        ("key", "value"), [("head", {"classes": ["spam", "ham"]}), ("max_length", 7), ("config", {"norm_eps": 0.1})]
    )
    def test_other_labels_and_settings_are_noticed_unless_asked_not_to(
        self, key: str, value: Any, tmp_path: Path
    ) -> None:
        path = save_model(classifier(), tmp_path) / "gptclf.json"
        record = json.loads(path.read_text())
        record[key] = {**record[key], **value} if isinstance(value, dict) else value
        path.write_text(json.dumps(record))
        with pytest.raises(ValueError, match=r"gptclf\.json has another content than gptclf wrote.*verify=False"):
            load_model(tmp_path)
        assert load_model(tmp_path, verify=False).classes == ["ham", "spam"]

    def test_the_tokenizer_of_another_save_is_noticed(self, tmp_path: Path) -> None:
        config = CONFIG.replace(vocab_size=260)
        for name, merges in (("a", (b"he", b"ll", b"or")), ("b", (b"th", b"in", b"er"))):
            ranks = {bytes([byte]): i for i, byte in enumerate(byte_characters())}
            ranks |= {merge: len(ranks) + i for i, merge in enumerate(merges)}
            gpt2 = load_gpt2(config, weights="random", seed=1, tokenizer=make_encoding(ranks))
            save_model(add_classifier_head(gpt2, classes=["x", "y"], seed=1), tmp_path / name)
        for name in ("vocab.json", "merges.txt", "tokenizer.json"):
            shutil.copy(tmp_path / "b" / name, tmp_path / "a" / name)
        with pytest.raises(ValueError, match=r"a/merges\.txt has another content"):
            load_model(tmp_path / "a")
        for name in ("vocab.json", "merges.txt", "tokenizer.json"):
            (tmp_path / "a" / name).unlink()
        with pytest.raises(FileNotFoundError, match=r"a/merges\.txt does not exist, but belongs to the model"):
            load_model(tmp_path / "a")

    @pytest.mark.parametrize("name", ["model.safetensors", "config.json", "merges.txt"])
    def test_a_language_model_is_compared_too(self, name: str, tmp_path: Path) -> None:
        save_model(load_gpt2(CONFIG, weights="random", seed=1, tokenizer=byte_tokenizer()), tmp_path)
        with (tmp_path / name).open("r+b") as file:
            file.seek(-3, os.SEEK_END)
            file.write(b" ")
        with pytest.raises(ValueError, match=rf"{name} has another content"):
            load_gpt2(tmp_path)
        if name == "model.safetensors":
            assert load_gpt2(tmp_path, verify=False).config == CONFIG

    def test_a_whitespace_is_no_change_of_the_record(self, tmp_path: Path) -> None:
        path = save_model(classifier(), tmp_path) / "gptclf.json"
        path.write_text(json.dumps(json.loads(path.read_text())))
        assert load_model(tmp_path).classes == ["ham", "spam"]

    def test_an_adapters_tensors_are_noticed_and_its_base_may_be_renamed(self, tmp_path: Path) -> None:
        nano = load_gpt2("nano")
        lora = apply_lora(add_classifier_head(nano, num_classes=2, seed=1), rank=2, seed=1)
        folder = save_adapter(lora, tmp_path / "adapter", base="nano")
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "nano "}))
        assert load_adapter(nano, folder).classes == [0, 1]
        path = folder / "adapter_model.safetensors"
        content = bytearray(path.read_bytes())
        content[-5] ^= 1
        path.unlink()
        path.write_bytes(content)
        calls: list[Callable[[], object]] = [lambda: load_adapter(nano, folder), lambda: load_model(folder, base=nano)]
        for load in calls:
            with pytest.raises(ValueError, match=r"adapter_model\.safetensors has another content"):
                load()
        assert load_adapter(nano, folder, verify=False).classes == [0, 1]

    def test_the_zip_of_a_torch_file_has_checksums(self, tmp_path: Path) -> None:
        path = tmp_path / "model.pth"
        torch.save(to_book(dict(classifier().named_parameters()), CONFIG), path)
        whole = path.read_bytes()
        with zipfile.ZipFile(path) as archive:
            for part in archive.infolist():
                length = struct.unpack("<H", whole[part.header_offset + 28 : part.header_offset + 30])[0]
                start = part.header_offset + 30 + len(part.filename) + length
                damaged = bytearray(whole)
                damaged[start + part.file_size // 2] ^= 0x40
                path.write_bytes(damaged)
                with pytest.raises(ValueError, match=r"model\.pth .*(CRC-32|would run code)"):
                    read_torch_file(path)
        path.write_bytes(whole)
        assert load_model(path, settings={"n_heads": 2}).config.n_layers == 2


def grown(call: Callable[[], object]) -> int:
    """The most memory, in MB, by which a call that raises grows a process of its own."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        import resource

        def peak() -> int:
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10

        before, said = peak(), "no error"
        try:
            call()
        except (ValueError, OSError) as error:
            said = type(error).__name__
        os.write(writer, f"{peak() - before} {said}".encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    with os.fdopen(reader) as file:
        size, _, said = file.read().partition(" ")
    assert said in ("ValueError", "OSError")
    return int(size)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="measures memory in a forked process")
class TestClaims:
    """Files of a few bytes that claim gigabytes."""

    @pytest.mark.parametrize(
        "changes",
        [
            {"n_layer": 10**9},
            {"n_layer": 10**5},
            {"vocab_size": 10**18},
            {"n_embd": 2 * 10**9},
            {"n_positions": 10**30},
        ],
    )
    def test_settings(self, changes: dict[str, int], tmp_path: Path) -> None:
        save_model(load_gpt2(CONFIG, weights="random", seed=1, tokenizer=byte_tokenizer()), tmp_path)
        (tmp_path / "gptclf.json").unlink()
        values = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**values, **changes}))
        assert grown(lambda: load_gpt2(tmp_path)) < 50

    @pytest.mark.parametrize("changes", [{"n_layers": 10**9}, {"emb_dim": 2 * 10**9}, {"vocab_size": 10**15}])
    def test_a_record(self, changes: dict[str, int], tmp_path: Path) -> None:
        path = save_model(classifier(), tmp_path) / "gptclf.json"
        values = json.loads(path.read_text())
        path.write_text(json.dumps({**values, "config": {**values["config"], **changes}}))
        assert grown(lambda: load_model(tmp_path, verify=False)) < 50

    def test_the_rank_of_an_adapter(self, tmp_path: Path) -> None:
        nano = load_gpt2("nano")
        lora = apply_lora(add_classifier_head(nano, num_classes=2, seed=1), rank=2, seed=1)
        folder = save_adapter(lora, tmp_path, base="nano")
        for name in ("gptclf_adapter.json", "gptclf_adapter.safetensors"):
            (folder / name).unlink(missing_ok=True)
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps({**config, "r": 10**7}))
        assert grown(lambda: load_adapter(nano, folder)) < 50

    def test_a_zip_whose_parts_grow(self, tmp_path: Path) -> None:
        torch.save({"tok_emb.weight": torch.zeros(60 << 18), "trf_blocks.0.x": torch.zeros(1)}, tmp_path / "plain.pth")
        with zipfile.ZipFile(tmp_path / "plain.pth") as plain:
            parts = {name: plain.read(name) for name in plain.namelist()}
        with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as packed:
            for name, content in parts.items():
                packed.writestr(name, content)
        assert grown(lambda: read_torch_file(tmp_path / "bomb.pth")) < 50

    @pytest.mark.parametrize("module", [b"__builtin__", b"builtins"])
    def test_bytes_that_are_made(self, module: bytes, tmp_path: Path) -> None:
        pickle = b"\x80\x02c" + module + b"\nbytearray\n\x8a\x08" + (4 * 10**9).to_bytes(8, "little") + b"\x85R."
        with zipfile.ZipFile(tmp_path / "a.pth", "w") as file:
            for name, content in {"a/data.pkl": pickle, "a/version": b"3\n", "a/byteorder": b"little"}.items():
                file.writestr(name, content)
        assert grown(lambda: read_torch_file(tmp_path / "a.pth")) < 50

    @pytest.mark.parametrize("shape", [(10**5, 10**5), (1 << 30,)])
    def test_a_tensor_without_strides(self, shape: tuple[int, ...], tmp_path: Path) -> None:
        torch.save({"wte.weight": torch.zeros(1).expand(shape)}, tmp_path / "a.pth")
        assert grown(lambda: read_torch_file(tmp_path / "a.pth")) < 50

    def test_many_views_of_one_storage(self, tmp_path: Path) -> None:
        one = torch.zeros(1 << 20)
        torch.save({f"h.{i}.x": one.view(1024, 1024) for i in range(1000)}, tmp_path / "a.pth")
        assert grown(lambda: read_torch_file(tmp_path / "a.pth")) < 50


@pytest.mark.parametrize("name", ["gptclf.json", "config.json", "tokenizer.json", "model.safetensors"])
@pytest.mark.parametrize("kind", ["pipe", "socket", "folder", "device"])
def test_what_is_not_a_file_is_refused_at_once(kind: str, name: str, tmp_path: Path) -> None:
    folder = save_model(load_gpt2(CONFIG, weights="random", seed=1, tokenizer=byte_tokenizer()), tmp_path / "m")
    (folder / "gptclf.json").unlink()
    path = folder / name
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener, pytest.MonkeyPatch.context() as patch:
        if kind == "socket":
            patch.chdir(folder)  # a socket's whole path may have 107 bytes
            listener.bind(name)
        else:
            {"pipe": os.mkfifo, "folder": os.mkdir, "device": lambda path: path.symlink_to("/dev/zero")}[kind](path)
        with pytest.raises((OSError, ValueError), match=name.replace(".", r"\.")):
            _ = (load_model if name == "gptclf.json" else load_gpt2)(folder).tokenizer.n_vocab


@pytest.mark.parametrize("name", ["gptclf.json", "config.json", "tokenizer.json"])
def test_deep_json_is_a_damaged_file(name: str, tmp_path: Path) -> None:
    save_model(classifier(), tmp_path)
    (tmp_path / name).write_text("[" * 200_000)
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        load_model(tmp_path)


class TestTwoAtOnce:
    def test_threads_save_and_read_one_folder(self, tmp_path: Path) -> None:
        models = [classifier(seed) for seed in (1, 2)]
        save_model(models[0], tmp_path)
        (tmp_path / "notes.txt").write_text("mine")
        known = [predict_proba(model, TEXTS).tobytes() for model in models]
        done = threading.Event()
        found: list[bytes] = []

        def save(i: int) -> None:
            for _ in range(25):
                save_model(models[i], tmp_path)

        def read() -> None:
            while not done.is_set():
                found.append(predict_proba(load_model(tmp_path, verify=len(found) % 2 == 0), TEXTS).tobytes())

        with ThreadPoolExecutor(3) as pool:
            reading = pool.submit(read)
            for saving in [pool.submit(save, i) for i in (0, 1)]:
                saving.result()
            done.set()
            reading.result()
        assert set(found) <= set(known)
        assert len(found) > 1
        assert predict_proba(load_model(tmp_path), TEXTS).tobytes() in known
        assert (tmp_path / "notes.txt").read_text() == "mine"
        assert not list(tmp_path.glob(".*"))

    def test_processes_save_one_folder(self, tmp_path: Path) -> None:
        children = []
        for seed in (1, 2):
            children.append(os.fork())
            if children[-1] == 0:
                status = 1
                try:
                    for _ in range(25):
                        save_model(classifier(seed), tmp_path)
                    status = 0
                finally:
                    os._exit(status)
        assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
        known = [predict_proba(classifier(seed), TEXTS).tobytes() for seed in (1, 2)]
        assert predict_proba(load_model(tmp_path), TEXTS).tobytes() in known
        assert not list(tmp_path.glob(".*"))

    def test_a_child_that_was_forked_meanwhile_keeps_no_lock(self, tmp_path: Path) -> None:
        import fcntl

        from gptclf.files.atomic import _locked

        with _locked(tmp_path):
            child = os.fork()
            if child == 0:
                import time

                time.sleep(20)
                os._exit(0)
        file = os.open(tmp_path, os.O_RDONLY)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(file)
            os.kill(child, 9)
            os.waitpid(child, 0)

    def test_a_save_that_was_killed_says_so_where_nobody_can_complete_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = save_model(classifier(1), tmp_path / "model")
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                save_model(classifier(2), folder)
        with open_to_all(folder):
            said = as_other_user(lambda: load_model(folder))
        assert said.startswith("PermissionError 13: ")
        assert "a save into" in said
        assert "was interrupted" in said
        assert "the user nobody" in said
        assert predict_proba(load_model(folder), TEXTS).tobytes() == predict_proba(classifier(2), TEXTS).tobytes()


class TestMapped:
    def test_weights_in_memory_do_not_follow_the_file(self, tmp_path: Path) -> None:
        save_model(classifier(1), tmp_path / "a")
        save_model(classifier(2), tmp_path / "b")
        model = load_model(tmp_path / "a", mapped=False)
        lora = load_model(save_adapter(adapted(tmp_path / "a"), tmp_path / "lora"), mapped=False)
        before = predict_proba(model, TEXTS), predict_proba(lora, TEXTS)
        for name in ("model.safetensors", "gptclf.safetensors"):
            shutil.copyfile(tmp_path / "b" / name, tmp_path / "a" / name)
        for found, then in zip((predict_proba(model, TEXTS), predict_proba(lora, TEXTS)), before, strict=True):
            np.testing.assert_array_equal(found, then)
        os.truncate(tmp_path / "a" / "model.safetensors", 100)
        np.testing.assert_array_equal(predict_proba(model, TEXTS), before[0])

    def test_weights_are_mapped_unless_asked_otherwise(self, tmp_path: Path) -> None:
        save_model(classifier(1), tmp_path)
        model = load_model(tmp_path)
        before = model.get_parameter("trunk.embed.token.weight").clone()
        content = bytes((tmp_path / "model.safetensors").stat().st_size)
        with (tmp_path / "model.safetensors").open("r+b") as file:
            file.write(content)
        assert not torch.equal(model.get_parameter("trunk.embed.token.weight"), before)

    @pytest.mark.parametrize(("name", "value"), [("mapped", 0), ("verify", "no"), ("mapped", None)])
    def test_they_are_true_or_false(self, name: str, value: Any, tmp_path: Path) -> None:
        with pytest.raises(TypeError, match=rf"{name} is {value!r}; it must be True or False"):
            load_model(tmp_path, **{name: value})


def adapted(folder: Path) -> GPT2:
    return apply_lora(load_model(folder), rank=2, seed=1)


class TestNames:
    @pytest.mark.parametrize("name", ["out/checkpoint-1", "./out", "out/epoch-3", "a/b/c", "/no/where", "~/nothing"])
    def test_a_path_that_looks_local_is_looked_for_here(
        self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.chdir(tmp_path)
        for load in (load_model, load_gpt2, lambda name: load_adapter(load_gpt2("nano"), name)):
            with pytest.raises(
                FileNotFoundError, match=r"does not exist, and it was not looked for on the hub"
            ) as caught:
                load(name)
            assert caught.value.errno == 2
            assert str(Path(name).expanduser().absolute()) in str(caught.value)

    def test_a_name_below_a_folder_that_is_here(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "models").mkdir()
        with pytest.raises(
            FileNotFoundError, match=r"models/spam does not exist, and it was not looked for on the hub"
        ):
            load_model("models/spam")
        (tmp_path / "openai-community").mkdir()
        with pytest.raises(FileNotFoundError, match="HF_HUB_OFFLINE"):
            load_gpt2("openai-community/gpt2")

    def test_a_name_of_the_hub_is_looked_for_there(self) -> None:
        with pytest.raises(FileNotFoundError, match="HF_HUB_OFFLINE"):
            load_model("owner/spam-checkpoint-1")

    @pytest.mark.parametrize(
        ("files", "message"),
        [
            (["checkpoint-500/", "checkpoint-1000/"], "checkpoints of transformers' Trainer: give one of its folders"),
            (
                ["step-00000004.safetensors"],
                r"states of a training run, which train\(\.\.\., checkpoint_dir=, resume=True",
            ),
            (
                ["config.json", "model.fp16.safetensors"],
                r"variant, such as fp16: rename the file to model\.safetensors",
            ),
            (["config.json", "pytorch_model.fp16.bin"], r"variant, such as fp16: rename the file"),
        ],
    )
    def test_folders_of_another_kind_are_named(self, files: list[str], message: str, tmp_path: Path) -> None:
        for name in files:
            (tmp_path / name).mkdir() if name.endswith("/") else (tmp_path / name).write_text(
                '{"model_type": "gpt2", "n_embd": 16, "n_head": 2, "n_layer": 1}'
            )
        for load in (load_gpt2, load_model):
            with pytest.raises(FileNotFoundError, match=message):
                load(tmp_path)

    def test_a_training_state_is_named(self, tmp_path: Path) -> None:
        trained(checkpoint_dir=tmp_path)
        [state] = tmp_path.glob("step-*.safetensors")
        with pytest.raises(ValueError, match=r"the state of a training run, which train\(.*resume=True"):
            load_model(state)

    def test_our_own_state_dict_is_named(self, tmp_path: Path) -> None:
        clf = classifier()
        torch.save(clf.state_dict(), tmp_path / "own.pth")
        with pytest.raises(ValueError, match=r"gptclf's own state dict, .*load_state_dict\(torch\.load\(path\)\)"):
            load_model(tmp_path / "own.pth")
        again = classifier(3)
        again.load_state_dict(torch.load(tmp_path / "own.pth"))
        np.testing.assert_array_equal(predict_proba(again, TEXTS), predict_proba(clf, TEXTS))
        with pytest.raises((ValueError, OSError), match=r"gptclf's own state dict|config\.json"):
            load_gpt2(tmp_path / "own.pth")


def test_a_saved_state_whose_parts_are_wrong_leaves_the_model_unchanged(tmp_path: Path) -> None:
    """Even where its digest fits, as it does if another program wrote the file."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    from gptclf import KeepBest
    from gptclf.training.state import _digest

    options: dict[str, Any] = {
        "val_set": rows(),
        "epochs": 2,
        "batch_size": 4,
        "progress": False,
        "checkpoint_dir": tmp_path,
    }
    train(classifier(), rows(), callbacks=[KeepBest()], **options)
    path = max(tmp_path.glob("step-*"))
    for other in tmp_path.glob("step-*"):
        if other != path:
            other.unlink()
    with safe_open(path, "pt") as file:
        tensors, metadata = {name: file.get_tensor(name).clone() for name in file.keys()}, file.metadata()  # noqa: SIM118
    assert "callback.0.step" in tensors
    for change in ({"callback.0.step": None}, {"callback.0.step": torch.tensor(99)}):
        changed = {name: tensor for name, tensor in {**tensors, **change}.items() if tensor is not None}
        save_file(changed, path, {**metadata, "digest": _digest(changed, metadata)})
        clf = classifier()
        before = {name: parameter.detach().clone() for name, parameter in clf.named_parameters()}
        with pytest.raises(ValueError, match=r"step-.* is damaged: the generator or a callback"):
            train(clf, rows(), callbacks=[KeepBest()], resume=True, **options)
        assert all(torch.equal(parameter, before[name]) for name, parameter in clf.named_parameters())


def test_logging_says_nothing_of_a_whole_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_model(classifier(), tmp_path)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        load_model(tmp_path)
    assert not caplog.messages
