"""Foreign weights: torch.save files, hostile and damaged ones included, wrapped modules, guesses at other models."""

import json
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from conftest import randomised
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gptclf import GPT2, GPT2Config, load_gpt2, load_model
from gptclf.files.torch_file import read_torch_file, unwrap_names
from gptclf.gpt2.heads import ClassifierHead
from gptclf.gpt2.sharing import fill
from gptclf.tasks import SingleLabel
from gptclf.weights.folders import read_weights
from gptclf.weights.guess import guess_from_config, guess_from_files, guess_from_tensors
from gptclf.weights.hugging_face import config_from_hugging_face, from_hugging_face
from gptclf.weights.opened import open_hugging_face

# A damaged file may name an unknown pickle protocol.
pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol")

IDS = torch.randint(257, (3, 17), generator=torch.Generator().manual_seed(5))
TENSORS = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.ones(4, dtype=torch.float16)}
SIZES = {"vocab_size": 257, "n_positions": 40, "n_embd": 24, "n_head": 3, "n_layer": 3, "n_inner": 56}


def saved(content: Any, folder: Path, **settings: Any) -> Path:
    torch.save(content, folder / "model.pth", **settings)
    return folder / "model.pth"


def their_model(kind: str = "GPT2LMHeadModel", **changes: Any) -> Any:
    """One of transformers' models with noise in every parameter."""
    torch.manual_seed(3)
    ends = {"bos_token_id": 256, "eos_token_id": 256, "pad_token_id": 256}
    return randomised(getattr(transformers, kind)(transformers.GPT2Config(**{**SIZES, **ends, **changes})).eval())


def logits(model: GPT2) -> Tensor:
    with torch.no_grad():
        return model(IDS)  # type: ignore[no-any-return]


def their_logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(IDS).logits  # type: ignore[no-any-return]


def assert_holds(path: Path, want: dict[str, Tensor]) -> None:
    found = read_torch_file(path)
    assert list(found) == list(want)
    for name in want:
        assert found[name].dtype == want[name].dtype
        assert torch.equal(found[name], want[name])
        assert not found[name].requires_grad


class TestTorchFiles:
    @pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
    @pytest.mark.parametrize("kind", [dict, OrderedDict])
    def test_a_state_dict_is_read(self, kind: Any, zipped: bool, tmp_path: Path) -> None:
        assert_holds(saved(kind(TENSORS), tmp_path, _use_new_zipfile_serialization=zipped), TENSORS)

    def test_parameters_are_tensors(self, tmp_path: Path) -> None:
        parameters = {name: nn.Parameter(tensor) for name, tensor in TENSORS.items()}
        assert_holds(saved(parameters, tmp_path), TENSORS)

    @pytest.mark.parametrize("holder", ["model_state_dict", "state_dict", "model"])
    def test_a_model_beside_what_trained_it_is_found(self, holder: str, tmp_path: Path) -> None:
        optimizer = {"state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 1}]}
        content = {
            "epoch": 3,
            "optimizer_state_dict": optimizer,
            holder: TENSORS,
            "lr_scheduler": {"t": torch.ones(1)},
            "train_losses": torch.ones(3),
            "rng_state": torch.zeros(5, dtype=torch.uint8),
            "args": {"x": [1]},
            "note": "mine",
            "best_val_loss": None,
        }
        assert_holds(saved(content, tmp_path), TENSORS)

    def test_tensors_of_an_unknown_kind_beside_it_are_not_dropped_in_silence(self, tmp_path: Path) -> None:
        for beside in ({"ema": torch.ones(2)}, {"adapter": [{"x": (torch.ones(2),)}]}):
            with pytest.raises(
                ValueError,
                match=r"model\.pth holds tensors next to 'model', under keys that gptclf does not know: (ema|adapter);",
            ):
                read_torch_file(saved({"model": TENSORS, **beside}, tmp_path))

    def test_what_holds_itself_is_looked_at_once(self, tmp_path: Path) -> None:
        round_and_round: list[Any] = []
        round_and_round.append(round_and_round)
        assert_holds(saved({"model": TENSORS, "log": round_and_round}, tmp_path), TENSORS)

    def test_two_models_in_one_file_are_a_question(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"under state_dict and model; save only one of them"):
            read_torch_file(saved({"model": TENSORS, "state_dict": TENSORS}, tmp_path))

    def test_a_tensor_may_be_called_as_a_holder_is(self, tmp_path: Path) -> None:
        assert_holds(saved({"model": torch.ones(2)}, tmp_path), {"model": torch.ones(2)})

    def test_the_file_may_be_written_over(self, tmp_path: Path) -> None:
        path = saved({"a": torch.ones(100_000)}, tmp_path)
        found = read_torch_file(path)["a"]
        torch.save({"a": torch.zeros(3)}, path)  # in place: a mapped file would be truncated under the tensor
        assert float(found.sum()) == 100_000

    def test_an_archive_that_was_packed_again_is_unpacked(self, tmp_path: Path) -> None:
        with zipfile.ZipFile(saved(TENSORS, tmp_path)) as whole:
            records = {name: whole.read(name) for name in whole.namelist()}
        with zipfile.ZipFile(tmp_path / "packed.pth", "w", zipfile.ZIP_DEFLATED) as file:
            for name, content in records.items():
                file.writestr(name, content)
            file.writestr("model/spare", bytes(1000))
        assert_holds(tmp_path / "packed.pth", TENSORS)

    def test_writing_into_what_was_read_does_not_reach_the_file(self, tmp_path: Path) -> None:
        path = saved(TENSORS, tmp_path)
        before = path.read_bytes()
        read_torch_file(path)["a.weight"].zero_()
        assert path.read_bytes() == before

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (torch.ones(2), "holds a Tensor, not tensors by name"),
            ([torch.ones(2)], "holds a list, not tensors by name"),
            (3, "holds a int"),
            ({}, "holds no tensors"),
            ({"model": {}}, "holds no tensors"),
            (
                {**TENSORS, "lr": 0.1, "name": "x"},
                r"in addition to 2 tensors, lr \(float\), name \(str\); .*model\.state_dict",
            ),
            ({3: torch.ones(2)}, r"3 \(torch.strided\)"),
            ({"a": torch.ones(2).to_sparse()}, r"a \(torch\.sparse_coo\)"),
            ({"a": {"b": torch.ones(2)}}, r"a \(dict\)"),
        ],
        ids=str,
    )
    def test_what_is_no_state_dict_is_refused(self, content: Any, message: str, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=rf"model\.pth .*{message}|model\.pth {message}"):
            read_torch_file(saved(content, tmp_path))

    def test_a_file_that_is_not_there_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"none\.pth does not exist"):
            read_torch_file(tmp_path / "none.pth")


ran: list[str] = []


class Hostile:
    """An object that calls a function of ours when it is unpickled."""

    def __reduce__(self) -> Any:
        return ran.append, ("it ran",)


class HostileCommand:
    def __reduce__(self) -> Any:
        return os.system, ("touch ran",)


class Whole(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)


class TestNothingIsRun:
    @pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
    @pytest.mark.parametrize(
        ("content", "names"),
        [
            (HostileCommand(), r"(posix|nt)\.system"),
            ({"a": torch.ones(1), "b": HostileCommand()}, r"(posix|nt)\.system"),
            ({"model_state_dict": TENSORS, "optimizer": Hostile()}, r"getattr"),
            (Whole(), r"\S*test_foreign\.Whole"),
            (nn.Linear(2, 2), r"torch\.nn\.modules\.linear\.Linear"),
            ({"loss": np.float64(3), "model": TENSORS}, r"numpy\S*scalar"),
            (Path("a"), r"pathlib\.\w+"),
        ],
        ids=["command", "command beside tensors", "call", "module", "torch's own module", "numpy scalar", "path"],
    )
    def test_what_is_more_than_tensors_is_refused_by_name(
        self, content: Any, names: str, zipped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        # Environment variables cannot loosen the restriction.
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
        path = saved(content, tmp_path, _use_new_zipfile_serialization=zipped)
        ran.clear()
        with pytest.raises(ValueError, match=rf"model\.pth would run code when opened: it (names {names}|calls)"):
            read_torch_file(path)
        with pytest.raises(ValueError, match=r"Nothing was run.*torch\.save\(model\.state_dict\(\), "):
            read_torch_file(path)
        assert not ran
        assert not (tmp_path / "ran").exists()

    def test_a_bare_pickle_is_not_run_either(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            (tmp_path / "model.pth").write_bytes(pickle.dumps(HostileCommand(), protocol=protocol))
            with pytest.raises(ValueError, match=r"model\.pth"):
                read_torch_file(tmp_path / "model.pth")
        assert not (tmp_path / "ran").exists()

    @pytest.mark.filterwarnings("ignore:.*torch.jit|.*TorchScript")
    def test_a_torchscript_program_is_refused(self, tmp_path: Path) -> None:
        torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), tmp_path / "model.pth")  # type: ignore[no-untyped-call]
        with pytest.raises(ValueError, match="would run code when opened: it is a TorchScript program"):
            read_torch_file(tmp_path / "model.pth")

    def test_a_hostile_file_in_a_folder_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        their_model().config.save_pretrained(tmp_path)
        torch.save({"wte.weight": HostileCommand()}, tmp_path / "pytorch_model.bin")
        for load in (load_gpt2, load_model):
            with pytest.raises(ValueError, match=r"pytorch_model\.bin would run code"):
                load(tmp_path)
        assert not (tmp_path / "ran").exists()


class TestDamagedFiles:
    @pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
    def test_a_file_cut_off_anywhere_is_said_to_be(self, zipped: bool, tmp_path: Path) -> None:
        path = saved({"a": torch.ones(300), "b": torch.ones(5)}, tmp_path, _use_new_zipfile_serialization=zipped)
        whole = path.read_bytes()
        for size in sorted({1, 2, 5, 64, 100, *range(1, len(whole), 97), len(whole) - 1}):
            path.write_bytes(whole[:size])
            message = rf"model\.pth \({size:,} bytes\) is not a complete torch\.save file"
            # Cut within a name that the old format spells out, the file names something else.
            other = "" if zipped else r"|model\.pth would run code .*it names (collections|torch)[\w.]*\. Nothing"
            with pytest.raises(ValueError, match=message + other):
                read_torch_file(path)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "is empty; download or save it again"),
            (
                b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n",
                "is a git-lfs pointer.*git lfs pull",
            ),
            (b"<!DOCTYPE html><html>no</html>", "is a web page, not weights"),
            (b"\n  <html>", "is a web page, not weights"),
            (b'{"error": "not found"}', "is JSON"),
            (b"GGUF" + bytes(60), "is a GGUF file"),
            (b"\x89HDF\r\n\x1a\n" + bytes(60), "is an HDF5"),
            (b"not weights at all", "is not a complete torch.save file"),
            (bytes(1000), "is not a complete torch.save file"),
        ],
        ids=["empty", "lfs", "html", "html after spaces", "json", "gguf", "keras", "text", "zeros"],
    )
    def test_another_kind_of_file_is_known(self, content: bytes, message: str, tmp_path: Path) -> None:
        (tmp_path / "model.pth").write_bytes(content)
        with pytest.raises(ValueError, match=rf"model\.pth .*{message}|model\.pth {message}"):
            read_torch_file(tmp_path / "model.pth")

    def test_a_zip_of_something_else_is_known(self, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "model.pth", "w") as file:
            file.writestr("letter.txt", "dear reader")
        with pytest.raises(ValueError, match="is not a complete torch"):
            read_torch_file(tmp_path / "model.pth")

    @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data(), zipped=st.booleans())
    def test_flipped_bytes_give_tensors_or_a_value_error(self, data: Any, zipped: bool, tmp_path: Path) -> None:
        path = saved({"a": torch.ones(30), "b": torch.ones(5)}, tmp_path, _use_new_zipfile_serialization=zipped)
        content = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(content)
        try:
            found = read_torch_file(path)
        except ValueError as error:
            assert "model.pth" in str(error)  # noqa: PT017
        else:
            # Reading every value would crash the process if one pointed outside the file.
            assert all(isinstance(tensor, Tensor) and tensor.double().sum() is not None for tensor in found.values())


class TestWrappers:
    @pytest.mark.parametrize(
        "prefix", ["_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module.", "module.module."]
    )
    def test_prefixes_are_taken_off(self, prefix: str, tmp_path: Path) -> None:
        wrapped = {prefix + name: tensor for name, tensor in TENSORS.items()}
        assert_holds(saved(wrapped, tmp_path), TENSORS)
        assert_holds(saved({"model_state_dict": wrapped}, tmp_path), TENSORS)

    def test_real_wrappers_names_are_taken_off(self) -> None:
        plain = their_model()
        compiled: Any = torch.compile(plain)
        wrapped = nn.DataParallel(compiled)
        assert set(unwrap_names(wrapped.state_dict(), source="here")) == set(plain.state_dict())
        plain.transformer = torch.compile(plain.transformer)
        names = unwrap_names(plain.state_dict(), source="here")
        assert set(names) == set(their_model().state_dict())

    @pytest.mark.parametrize("name", ["module", "my.module.weight", "orig_mod.x", "modules.x"])
    def test_names_that_only_look_alike_stay(self, name: str) -> None:
        assert list(unwrap_names({name: torch.ones(1)}, source="here")) == [name]

    def test_one_name_twice_is_an_error(self) -> None:
        with pytest.raises(ValueError, match=r"here holds a\.b twice, with and without a wrapper's prefix"):
            unwrap_names({"a.b": torch.ones(1), "module.a.b": torch.ones(1)}, source="here")

    @pytest.mark.parametrize("prefix", ["_orig_mod.", "module."])
    @pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
    def test_a_folder_of_a_wrapped_model_loads(self, file: str, prefix: str, tmp_path: Path) -> None:
        their_model().save_pretrained(tmp_path)
        want = logits(load_gpt2(tmp_path))
        tensors = {prefix + n: t.clone() for n, t in load_file(tmp_path / "model.safetensors").items()}
        (tmp_path / "model.safetensors").unlink()
        (save_file if file.endswith("safetensors") else torch.save)(tensors, tmp_path / file)
        assert torch.equal(logits(load_gpt2(tmp_path)), want)


def as_bin(folder: Path, *, shards: int = 0) -> None:
    """The files that older releases of transformers wrote instead of safetensors."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    if not shards:
        torch.save(tensors, folder / "pytorch_model.bin")
        return
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for i in range(shards):
        file = f"pytorch_model-{i + 1:05d}-of-{shards:05d}.bin"
        torch.save({name: tensors[name] for name in names[i::shards]}, folder / file)
        weight_map |= dict.fromkeys(names[i::shards], file)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


class TestFoldersWithTorchFiles:
    @pytest.mark.parametrize("shards", [0, 3])
    def test_a_language_model(self, shards: int, tmp_path: Path) -> None:
        theirs = their_model()
        theirs.save_pretrained(tmp_path)
        want = logits(load_gpt2(tmp_path)).clone()
        as_bin(tmp_path, shards=shards)
        assert torch.equal(logits(load_gpt2(tmp_path)), want)
        torch.testing.assert_close(want, their_logits(theirs), atol=1e-5, rtol=1e-5)

    def test_a_classifier_of_an_old_release(self, tmp_path: Path) -> None:
        """A configuration without labels, and a file with masks and half precision."""
        theirs = their_model("GPT2ForSequenceClassification").half().float()
        theirs.half().save_pretrained(tmp_path)
        tensors = load_file(tmp_path / "model.safetensors")
        for i in range(3):
            tensors[f"transformer.h.{i}.attn.bias"] = torch.ones(1, 1, 40, 40, dtype=torch.uint8).tril()
            tensors[f"transformer.h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
        save_file(tensors, tmp_path / "model.safetensors")
        as_bin(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        for key in ("id2label", "label2id", "dtype", "problem_type", "transformers_version", "tie_word_embeddings"):
            config.pop(key, None)
        (tmp_path / "config.json").write_text(json.dumps(config))
        ours = load_model(tmp_path)
        assert ours.classes == ["LABEL_0", "LABEL_1"]
        assert {parameter.dtype for parameter in ours.parameters()} == {torch.float32}
        torch.testing.assert_close(logits(ours), their_logits(theirs.float()), atol=1e-5, rtol=1e-5)

    def test_safetensors_win(self, tmp_path: Path) -> None:
        their_model().save_pretrained(tmp_path)
        want = logits(load_gpt2(tmp_path))
        torch.save({"wte.weight": HostileCommand()}, tmp_path / "pytorch_model.bin")
        assert torch.equal(logits(load_gpt2(tmp_path)), want)

    def test_a_missing_shard_is_named(self, tmp_path: Path) -> None:
        their_model().save_pretrained(tmp_path)
        as_bin(tmp_path, shards=3)
        (tmp_path / "pytorch_model-00002-of-00003.bin").unlink()
        with pytest.raises(FileNotFoundError, match=r"pytorch_model-00002-of-00003\.bin does not exist"):
            read_weights(tmp_path)

    @pytest.mark.parametrize("name", ["../model.bin", "/etc/passwd", 3, None], ids=str)
    def test_a_shard_outside_the_folder_is_refused(self, name: Any, tmp_path: Path) -> None:
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises((ValueError, FileNotFoundError), match=r"shards must be beside the index|does not exist"):
            read_weights(tmp_path)

    def test_a_folder_with_neither_says_what_it_holds(self, tmp_path: Path) -> None:
        (tmp_path / "weights.bin").write_bytes(b"x")
        message = r"holds neither model\.safetensors nor pytorch_model\.bin .*it holds weights\.bin\. Save"
        with pytest.raises(FileNotFoundError, match=message):
            read_weights(tmp_path)


def classifier(config: GPT2Config, classes: int) -> GPT2:
    head = ClassifierHead(config.emb_dim, classes, bias=False)
    return GPT2(config, task=SingleLabel(range(classes)), head=head, device="meta")


def shapes_of(model: GPT2) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


class TestEveryVariantOfTransformers:
    """One model in every form in which its files occur."""

    @pytest.mark.parametrize("half", [None, torch.float16, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("masks", [False, True], ids=["", "masks"])
    @pytest.mark.parametrize("copy", [False, True], ids=["", "lm_head"])
    @pytest.mark.parametrize("prefix", ["", "transformer."])
    @pytest.mark.parametrize("classes", [None, 3], ids=["language model", "classifier"])
    def test_it_is_read(
        self,
        classes: int | None,
        prefix: str,
        copy: bool,
        masks: bool,
        half: torch.dtype | None,
        odd_config: GPT2Config,
    ) -> None:
        ours = GPT2(odd_config, device="meta") if classes is None else classifier(odd_config, classes)
        theirs = their_model("GPT2LMHeadModel" if classes is None else "GPT2ForSequenceClassification", num_labels=3)
        theirs = theirs if half is None else theirs.to(half)
        tensors = {
            n.replace("transformer.", prefix): t for n, t in theirs.state_dict().items() if n != "lm_head.weight"
        }
        if copy:
            tensors["lm_head.weight"] = tensors[f"{prefix}wte.weight"].clone()
        for i in range(3 if masks else 0):
            tensors[f"{prefix}h.{i}.attn.bias"] = torch.ones(1, 1, 40, 40, dtype=torch.bool).tril()
            tensors[f"{prefix}h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
        fill(ours, from_hugging_face(tensors, shapes_of(ours), 3, source="here"))
        torch.testing.assert_close(logits(ours), their_logits(theirs.float()), atol=1e-5, rtol=1e-5)

    def test_an_output_matrix_that_is_not_the_tied_one_is_a_question(self, tmp_path: Path) -> None:
        their_model(tie_word_embeddings=False).save_pretrained(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
        with pytest.raises(ValueError, match=r"lm_head\.weight that differs from its wte\.weight.*tie_word_embeddings"):
            load_gpt2(tmp_path)

    def test_one_name_with_and_without_the_prefix_is_an_error(self, odd_config: GPT2Config) -> None:
        tensors = their_model().state_dict()
        tensors["wte.weight"] = tensors["transformer.wte.weight"] + 1
        with pytest.raises(ValueError, match=r"1 twice: wte\.weight"):
            from_hugging_face(tensors, shapes_of(GPT2(odd_config, device="meta")), 3, source="here")

    def test_both_heads_in_one_file_give_each_reader_its_own(self, odd_config: GPT2Config) -> None:
        tensors = their_model(tie_word_embeddings=False).state_dict() | {"score.weight": torch.ones(2, 24)}
        clf = classifier(odd_config, 2)
        found = from_hugging_face(tensors, shapes_of(clf), 3, source="here")
        assert torch.equal(found["head.output.weight"], tensors["score.weight"])

    def test_missing_unexpected_and_misshapen_are_all_listed(self, odd_config: GPT2Config, tmp_path: Path) -> None:
        tensors = {n: t.clone() for n, t in their_model("GPT2Model").state_dict().items()}
        del tensors["h.1.ln_1.bias"]
        tensors["h.7.extra"] = torch.ones(1)
        tensors["wpe.weight"] = torch.ones(41, 24)
        torch.save(tensors, tmp_path / "pytorch_model.bin")
        message = (
            r"1 missing: h\.1\.ln_1\.bias; 1 unexpected: h\.7\.extra; "
            r"1 misshapen: wpe\.weight is torch\.float32 \(41, 24\) instead of floats \(40, 24\)"
        )
        with pytest.raises(ValueError, match=message):
            open_hugging_face(tmp_path, odd_config)


FOREIGN = [
    ("BertModel", "BERT"),
    ("BertForSequenceClassification", "BERT"),
    ("RobertaForSequenceClassification", "RoBERTa"),
    ("RobertaModel", "RoBERTa"),
    ("DistilBertModel", "DistilBERT"),
    ("DistilBertForSequenceClassification", "DistilBERT"),
    ("ElectraModel", "ELECTRA"),
    ("ElectraForSequenceClassification", "ELECTRA"),
    ("AlbertModel", "ALBERT"),
    ("T5ForConditionalGeneration", "T5"),
    ("T5Model", "T5"),
    ("LlamaForCausalLM", "Llama"),
    ("LlamaForSequenceClassification", "Llama"),
    ("MistralModel", "Mistral"),
    ("GPTNeoXForCausalLM", "GPT-NeoX"),
    ("GPTJForCausalLM", "GPT-J"),
    ("GPTJModel", "GPT-J"),
    ("OPTForCausalLM", "OPT"),
    ("BloomModel", "BLOOM"),
    ("BloomForSequenceClassification", "BLOOM"),
    ("GPTNeoForCausalLM", "GPT-Neo"),
    ("OpenAIGPTModel", "GPT-1"),
    ("OpenAIGPTLMHeadModel", "GPT-1"),
    ("DebertaV2Model", "DeBERTa"),
    ("BartModel", "BART"),
    ("ModernBertModel", "ModernBERT"),
]


def foreign(kind: str) -> tuple[Any, list[str]]:
    """Return the configuration and tensor names of another architecture, with one or two layers and no data."""
    build = getattr(transformers, kind)
    config = build.config_class()
    if config.model_type == "gpt_neo":
        config = build.config_class(num_layers=2, attention_types=[[["global", "local"], 1]])
    else:
        for name in (
            "num_hidden_layers",
            "n_layer",
            "num_layers",
            "num_decoder_layers",
            "encoder_layers",
            "decoder_layers",
        ):
            if getattr(config, name, None):
                setattr(config, name, 1)
    with torch.device("meta"):
        return config, list(build(config).state_dict())


class TestGuesses:
    @pytest.mark.parametrize(("kind", "what"), FOREIGN)
    def test_transformers_own_models_are_recognised(self, kind: str, what: str) -> None:
        config, names = foreign(kind)
        assert what in guess_from_config(config.model_type)
        guess = guess_from_tensors(names)
        assert what in guess
        assert "gptclf loads GPT-2" in guess
        with pytest.raises(ValueError, match=rf"describes a '{config.model_type}' model; gptclf loads GPT-2.*{what}"):
            config_from_hugging_face(config.to_dict(), source="config.json")

    @pytest.mark.parametrize(
        ("kind", "message"),
        [
            ("GPT2ForSequenceClassification", "load it with load_model"),
            ("GPT2ForTokenClassification", "classifies every token"),
            ("GPT2ForQuestionAnswering", "answers questions"),
            ("GPT2DoubleHeadsModel", "second head for multiple choice"),
        ],
    )
    def test_other_heads_on_a_gpt2_are_told(self, kind: str, message: str, tmp_path: Path) -> None:
        their_model(kind, num_labels=2).save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=f"unexpected: .*{message}"):
            load_gpt2(tmp_path)

    @pytest.mark.parametrize("kind", ["GPT2Model", "GPT2LMHeadModel"])
    def test_gpt2_itself_is_nobody_else(self, kind: str) -> None:
        assert guess_from_tensors(list(their_model(kind).state_dict())) == ""
        assert guess_from_config("gpt2") == ""

    @pytest.mark.parametrize("value", [None, 3, ["bert"], "unheard-of"], ids=str)
    def test_an_unknown_type_is_named_as_it_is(self, value: Any) -> None:
        assert guess_from_config(value) == ""
        with pytest.raises(ValueError, match=r"config\.json describes a .* model; gptclf loads GPT-2"):
            config_from_hugging_face({"model_type": value}, source="config.json")

    def test_a_configuration_of_an_older_kind_says_what_it_was_made_for(self) -> None:
        values = {"architectures": ["BertForMaskedLM"], "hidden_size": 768}
        with pytest.raises(ValueError, match=r"lacks n_embd, n_head, n_layer; .*It names \['BertForMaskedLM'\]"):
            config_from_hugging_face(values, source="config.json")

    @pytest.mark.parametrize(
        ("files", "message"),
        [
            (
                ["adapter_config.json", "adapter_model.safetensors"],
                "LoRA adapter: put it on the model that it was trained on",
            ),
            (["modules.json", "1_Pooling"], "sentence-transformers folder"),
            (["model-Q4.gguf"], "GGUF"),
            (["model.onnx"], "ONNX"),
            (["tf_model.h5"], "from_tf=True"),
            (["flax_model.msgpack"], "from_flax=True"),
        ],
        ids=str,
    )
    @pytest.mark.parametrize("with_config", [True, False])
    def test_folders_of_other_kinds_are_recognised(
        self, files: list[str], message: str, with_config: bool, tmp_path: Path
    ) -> None:
        for name in files:
            (tmp_path / name).write_bytes(b"x")
        if with_config:
            their_model().config.save_pretrained(tmp_path)
        assert message in guess_from_files(files)
        with pytest.raises(FileNotFoundError, match=message):
            load_gpt2(tmp_path)

    def test_an_adapters_tensors_are_recognised(self) -> None:
        guess = guess_from_tensors(["base_model.model.transformer.h.0.attn.c_attn.lora_A.weight"])
        assert guess.startswith("This is a LoRA adapter: put it on the model that it was trained on")

    def test_other_files_beside_good_weights_do_not_matter(self, tmp_path: Path) -> None:
        theirs = their_model()
        theirs.save_pretrained(tmp_path)
        for name in ("tf_model.h5", "model.onnx", "modules.json", "flax_model.msgpack", "model.gguf"):
            (tmp_path / name).write_bytes(b"x")
        torch.testing.assert_close(logits(load_gpt2(tmp_path)), their_logits(theirs), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kept", [0, 16])
def test_a_tensor_larger_than_its_record_never_reads_past_the_file(kept: int, tmp_path: Path) -> None:
    """The pickle states the size of a tensor; only as much as the file has can be mapped."""
    with zipfile.ZipFile(saved({"a": torch.ones(70_000)}, tmp_path)) as whole:
        records = {name: whole.read(name) for name in whole.namelist()}
    with zipfile.ZipFile(tmp_path / "short.pth", "w") as file:
        for name, content in records.items():
            file.writestr(name, content[:kept] if name.endswith("data/0") else content)
    with pytest.raises(ValueError, match=r"short\.pth .*is not a complete torch\.save file"):
        read_torch_file(tmp_path / "short.pth")
