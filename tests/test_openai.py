"""OpenAI's files: finding them, the book's parameters, and loading them into our model."""

import copy
import json
import shutil
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bundle_writer as by_hand
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import GPT2Config as TheirConfig
from transformers import GPT2LMHeadModel

from gptclf import GPT2, GPT2Config
from gptclf.gpt2.config import ALIASES, PRESETS
from gptclf.gpt2.sharing import fill
from gptclf.weights.hugging_face import from_hugging_face
from gptclf.weights.openai import load_gpt2_params_from_tf_ckpt, tensors_from_params
from gptclf.weights.openai_folder import config_from_settings, find_checkpoint, read_settings

DATA = Path(__file__).parent / "data" / "tf_gpt2"
HPARAMS = {"n_vocab": 257, "n_ctx": 16, "n_embd": 4, "n_head": 2, "n_layer": 11}


def values() -> dict[str, NDArray[Any]]:
    with np.load(DATA / "values.npz") as file:
        return {name: file[name] for name in file.files}


def params_and_settings() -> tuple[dict[str, Any], dict[str, Any]]:
    settings, params = load_gpt2_params_from_tf_ckpt(DATA / "whole")
    return copy.deepcopy(params), settings


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


def put(folder: Path, *, checkpoint: bool = True) -> Path:
    shutil.copytree(DATA / "whole", folder, dirs_exist_ok=True)
    if not checkpoint:
        (folder / "checkpoint").unlink()
    return folder


# Finding them.


@pytest.mark.parametrize("checkpoint", [True, False])
@pytest.mark.parametrize("below", ["", "124M", "124M/124M", "1558M", "774M/774M"])
def test_found_where_openai_the_book_and_kaggle_put_them(models: Path, below: str, checkpoint: bool) -> None:
    place = put(models / below, checkpoint=checkpoint)
    assert find_checkpoint(models) == place / "model.ckpt"
    assert load_gpt2_params_from_tf_ckpt(str(models))[0] == HPARAMS


@pytest.mark.parametrize("below", ["", "125M", "124M/355M", "124M/124M/124M", "other"])
def test_nothing_where_none_is(models: Path, below: str) -> None:
    if below:
        put(models / below)
    (models / "faiss.index").write_bytes(b"of another tool")
    assert find_checkpoint(models) is None
    with pytest.raises(FileNotFoundError, match=r"holds no model\.ckpt\.index, and neither does 124M/"):
        load_gpt2_params_from_tf_ckpt(models)


def test_a_folder_that_is_not_there(models: Path) -> None:
    assert find_checkpoint(models / "no") is None
    with pytest.raises(FileNotFoundError, match="holds no"):
        load_gpt2_params_from_tf_ckpt(models / "no")


def test_several_sizes_must_be_told_apart(models: Path) -> None:
    put(models / "355M")
    put(models / "124M" / "124M")
    with pytest.raises(ValueError, match=r"several checkpoints: 124M, 355M; name one: .*models/124M"):
        find_checkpoint(models)
    assert find_checkpoint(models / "124M") == models / "124M" / "124M" / "model.ckpt"
    assert find_checkpoint(models / "355M") == models / "355M" / "model.ckpt"


def test_what_lies_nearer_and_what_bears_the_folders_own_name_is_taken(models: Path) -> None:
    put(models / "355M" / "124M")
    put(models / "355M" / "355M")
    assert find_checkpoint(models / "355M") == models / "355M" / "355M" / "model.ckpt"
    shutil.rmtree(models / "355M")
    put(models / "124M" / "124M")
    put(models / "124M")
    assert find_checkpoint(models / "124M") == models / "124M" / "model.ckpt"
    assert find_checkpoint(models) == models / "124M" / "model.ckpt"


def rename(folder: Path, name: str) -> None:
    for path in folder.glob("model.ckpt.*"):
        path.rename(path.with_name(path.name.replace("model.ckpt", name)))


@pytest.mark.parametrize(
    "named",
    [
        "model-100",
        "/home/someone/run/model-100",
        r"C:\\runs\\model-100",
        "../../elsewhere/model-100",
        "model-99",
        "/elsewhere/",
        "..",
        "",
        "../elsewhere/model.ckpt",
    ],
)
def test_checkpoint_names_a_file_and_never_another_folder(models: Path, named: str) -> None:
    put(models / "elsewhere")
    folder = put(models / "run")
    rename(folder, "model-100")
    (folder / "checkpoint").write_text(f'model_checkpoint_path: "{named}"\nall_model_checkpoint_paths: "x"\n')
    assert find_checkpoint(folder) == folder / "model-100"


def test_of_several_checkpoints_in_a_folder_the_named_one_is_taken(models: Path) -> None:
    rename(put(models), "model-5")
    rename(put(models), "model-20")
    (models / "checkpoint").write_text('all_model_checkpoint_paths: "model-20"\nmodel_checkpoint_path: "x/model-5"\n')
    assert find_checkpoint(models) == models / "model-5"
    (models / "checkpoint").write_bytes(b"\xff\x00 damaged")
    with pytest.raises(ValueError, match="several checkpoints: model-20, model-5; name one in its file `checkpoint`"):
        find_checkpoint(models)
    put(models)
    (models / "checkpoint").unlink()
    assert find_checkpoint(models) == models / "model.ckpt"


# The book's parameters.


@pytest.mark.parametrize("kind", ["whole", "sharded"])
@pytest.mark.parametrize("verify", [True, False])
def test_params_are_the_checkpoints_values(kind: str, verify: bool) -> None:
    settings, params = load_gpt2_params_from_tf_ckpt(DATA / kind, verify=verify)
    expected = {name: np.squeeze(value) for name, value in values().items()}
    assert settings == HPARAMS
    assert set(params) == {"wte", "wpe", "blocks", "g", "b"}
    seen = {"model/wte": params["wte"], "model/wpe": params["wpe"]}
    seen |= {"model/ln_f/g": params["g"], "model/ln_f/b": params["b"]}
    assert isinstance(params["blocks"], list)
    for i, block in enumerate(params["blocks"]):
        assert set(block) == {"attn", "mlp", "ln_1", "ln_2"}
        for part, name in (("attn", "c_attn"), ("attn", "c_proj"), ("mlp", "c_fc"), ("mlp", "c_proj")):
            seen |= {f"model/h{i}/{part}/{name}/{leaf}": block[part][name][leaf] for leaf in "wb"}
        for norm in ("ln_1", "ln_2"):
            seen |= {f"model/h{i}/{norm}/{leaf}": block[norm][leaf] for leaf in "gb"}
    assert set(seen) == set(expected)
    for name, array in seen.items():
        assert (array.dtype, array.shape) == (np.dtype("f4"), expected[name].shape)
        assert array.tobytes() == expected[name].tobytes(), name


def test_the_books_reader_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    book = pytest.importorskip("llms_from_scratch.ch05")
    stored = values()
    tensorflow = types.ModuleType("tensorflow")
    tensorflow.train = types.SimpleNamespace(  # type: ignore[attr-defined]
        list_variables=lambda path: [(name, stored[name].shape) for name in sorted(stored)],
        load_variable=lambda path, name: stored[name],
    )
    monkeypatch.setitem(sys.modules, "tensorflow", tensorflow)
    theirs = book.load_gpt2_params_from_tf_ckpt("model.ckpt", HPARAMS)
    settings, ours = load_gpt2_params_from_tf_ckpt(DATA / "whole")
    assert same(ours, theirs)
    config, tensors = tensors_from_params(theirs, settings)
    again, expected = tensors_from_params(ours, settings)
    assert config == again
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)


def same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, dict):
        return set(ours) == set(theirs) and all(same(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, list):
        return len(ours) == len(theirs) and all(same(a, b) for a, b in zip(ours, theirs, strict=True))
    return ours.dtype == theirs.dtype and np.array_equal(ours, theirs)


def test_the_books_model_takes_our_params() -> None:
    ch04, ch05 = pytest.importorskip("llms_from_scratch.ch04"), pytest.importorskip("llms_from_scratch.ch05")
    settings, params = load_gpt2_params_from_tf_ckpt(DATA / "whole")
    theirs = ch04.GPTModel(
        {
            "vocab_size": 257,
            "context_length": 16,
            "emb_dim": 4,
            "n_heads": 2,
            "n_layers": 11,
            "drop_rate": 0.0,
            "qkv_bias": True,
        }
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ch05.load_weights_into_gpt(theirs, params)
    ids = torch.randint(0, 257, (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs.eval().double()(ids)
        torch.testing.assert_close(built(params, settings).double()(ids), expected, atol=1e-6, rtol=0)


# Loading them into our model.


def built(params: dict[str, Any], settings: dict[str, Any]) -> GPT2:
    config, tensors = tensors_from_params(params, settings)
    model = GPT2(config, device="meta")
    fill(model, tensors)
    return model.requires_grad_(False).eval()


def in_transformers() -> dict[str, torch.Tensor]:
    """Return the stored values under Hugging Face's names, which have OpenAI's layout."""
    kinds = {"w": "weight", "g": "weight", "b": "bias"}
    result = {}
    for name, value in values().items():
        *path, leaf = name.split("/")[1:]
        if path and path[0].startswith("h"):
            path[:1] = ["h", path[0][1:]]
        result[".".join([*path, kinds[leaf]] if path else [leaf, "weight"])] = torch.from_numpy(np.squeeze(value))
    return result


def test_logits_are_those_of_transformers() -> None:
    theirs = GPT2LMHeadModel(
        TheirConfig(vocab_size=257, n_positions=16, n_embd=4, n_layer=11, n_head=2, bos_token_id=256, eos_token_id=256)
    ).eval()
    left = theirs.transformer.load_state_dict(in_transformers(), strict=False)
    assert not left.unexpected_keys
    assert not left.missing_keys
    settings, params = load_gpt2_params_from_tf_ckpt(DATA / "sharded")
    ids = torch.randint(0, 257, (3, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(
            built(params, settings).double()(ids), theirs.double()(ids).logits, atol=1e-9, rtol=0
        )


def test_tensors_are_those_of_the_hugging_face_layout() -> None:
    settings, params = load_gpt2_params_from_tf_ckpt(DATA / "whole")
    config, tensors = tensors_from_params(params, settings)
    assert config == GPT2Config(vocab_size=257, context_length=16, emb_dim=4, n_heads=2, n_layers=11)
    shapes = {name: tuple(p.shape) for name, p in GPT2(config, device="meta").named_parameters()}
    expected = from_hugging_face(in_transformers(), shapes, 11, source="test")
    assert set(tensors) == set(expected)
    for name, tensor in tensors.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, expected[name]), name


def test_nothing_is_copied() -> None:
    settings, params = load_gpt2_params_from_tf_ckpt(DATA / "whole")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, tensors = tensors_from_params(params, settings)
    params["wte"][5, 2] = 42
    params["blocks"][10]["mlp"]["c_fc"]["w"][3, 7] = 43
    assert tensors["trunk.embed.token.weight"][5, 2] == 42
    assert tensors["trunk.blocks.10.mlp.up.weight"][7, 3] == 43
    assert load_gpt2_params_from_tf_ckpt(DATA / "whole")[1]["wte"][5, 2] != 42


def each(params: Any, change: Callable[[NDArray[Any]], Any]) -> Any:
    if isinstance(params, dict):
        return {key: each(value, change) for key, value in params.items()}
    return [each(value, change) for value in params] if isinstance(params, list) else change(params)


def frozen(array: NDArray[Any]) -> NDArray[Any]:
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    "change",
    [
        np.ndarray.copy,
        frozen,
        lambda array: array[None] if array.ndim == 2 else array,
        lambda array: array.astype(np.float64),
        lambda array: array.astype(">f4"),
        lambda array: array[::-1].copy()[::-1],
        np.asfortranarray,
    ],
    ids=["copied", "read-only", "(1, in, out)", "float64", "big-endian", "backwards", "columns first"],
)
def test_arrays_of_other_kinds_are_the_same_weights(change: Callable[[NDArray[Any]], Any]) -> None:
    params, settings = params_and_settings()
    expected = tensors_from_params(params, settings)[1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, tensors = tensors_from_params(each(params, change), settings)
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)


@pytest.mark.parametrize("size", ALIASES)
def test_the_published_sizes_by_names_and_shapes(tmp_path: Path, size: str) -> None:
    # A sparse file, and no hparams.json.
    preset = PRESETS[ALIASES[size]]
    d = preset.emb_dim
    shapes: dict[str, tuple[int, ...]] = {"wte": (50257, d), "wpe": (1024, d), "ln_f/g": (d,), "ln_f/b": (d,)}
    for i in range(preset.n_layers):
        for name, wide, deep in (
            ("attn/c_attn", 3, 1),
            ("attn/c_proj", 1, 1),
            ("mlp/c_fc", 4, 1),
            ("mlp/c_proj", 1, 4),
        ):
            shapes |= {f"h{i}/{name}/w": (1, deep * d, wide * d), f"h{i}/{name}/b": (wide * d,)}
        shapes |= {f"h{i}/{norm}/{leaf}": (d,) for norm in ("ln_1", "ln_2") for leaf in "gb"}
    rows, end = [(b"", by_hand.header())], 0
    for name in sorted(shapes):
        bytes_ = 4 * int(np.prod(shapes[name]))
        rows.append((f"model/{name}".encode(), by_hand.entry(shapes[name], b"", offset=end, size=bytes_)))
        end += bytes_
    by_hand.write_parts(tmp_path, by_hand.table([by_hand.block(rows)]))
    assert end == {"124M": 497759232, "355M": 1419292672, "774M": 3096120320, "1558M": 6230444800}[size]
    with (tmp_path / "model.ckpt.data-00000-of-00001").open("r+b") as file:
        file.truncate(end)
    settings, params = load_gpt2_params_from_tf_ckpt(tmp_path, verify=False)
    config, tensors = tensors_from_params(params, settings)
    assert config == preset
    model = GPT2(config, device="meta")
    assert {name: p.shape for name, p in model.named_parameters()} == {name: t.shape for name, t in tensors.items()}


# Refused files.


def test_what_is_missing_unexpected_and_misshapen_is_listed() -> None:
    params, settings = params_and_settings()
    del params["blocks"][3]["ln_1"]["g"]
    params["blocks"][10]["attn"]["c_attn"]["bias"] = params["b"]
    params["wpe"] = params["wpe"][:5]
    params["g"] = [1.0] * 4
    params["b"] = torch.zeros(4)
    params["blocks"][0]["mlp"]["c_fc"]["w"] = params["blocks"][0]["mlp"]["c_fc"]["w"].T
    params["blocks"][0]["mlp"]["c_fc"]["b"] = np.zeros(16, int)
    with pytest.raises(ValueError, match="params does not hold this GPT-2") as caught:
        tensors_from_params(params, settings)
    for part in (
        "2 missing: g, blocks/3/ln_1/g",
        "5 unexpected: ",
        "blocks/10/attn/c_attn/bias",
        "g/0",
        "4 misshapen: ",
        r"wpe is float32 (5, 4), the settings need floats (16, 4)",
        "b is a Tensor, not a numpy array",
        r"blocks/0/mlp/c_fc/w is float32 (16, 4), the settings need floats (4, 16)",
        r"blocks/0/mlp/c_fc/b is int64 (16,)",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_layer": 12}, "12 missing: blocks/11/ln_1/g"),
        ({"n_layer": 10}, "12 unexpected: blocks/10/"),
        ({"n_layer": 10**12}, "holds 136 arrays, too few for the 1000000000000 blocks"),
        ({"n_vocab": 10**40}, r"wte is float32 \(257, 4\), the settings need floats \(10{40}, 4\)"),
        ({"n_head": 3}, "does not describe a GPT-2 .*n_head 3.*not divisible"),
        ({"n_head": "2"}, "n_head '2'"),
        ({"n_ctx": 0}, "n_ctx 0"),
    ],
)
def test_settings_that_do_not_fit(change: dict[str, Any], message: str) -> None:
    params, settings = params_and_settings()
    with pytest.raises(ValueError, match=message):
        tensors_from_params(params, {**settings, **change})


@pytest.mark.parametrize("wrong", [None, [], "params", np.zeros(3)])
def test_what_is_no_dictionary_at_all(wrong: Any) -> None:
    params, settings = params_and_settings()
    with pytest.raises(TypeError, match="params is a"):
        tensors_from_params(wrong, settings)
    with pytest.raises(TypeError, match="settings is a"):
        tensors_from_params(params, wrong)
    with pytest.raises(ValueError, match="holds 0 arrays"):
        tensors_from_params({}, settings)
    with pytest.raises(ValueError, match="settings lacks n_vocab, n_ctx, n_embd, n_head, n_layer"):
        config_from_settings({"vocab_size": 5})


def test_hparams_with_more_keys_are_returned_as_they_are(models: Path) -> None:
    put(models)
    (models / "hparams.json").write_text(json.dumps({**HPARAMS, "note": "mine"}))
    assert load_gpt2_params_from_tf_ckpt(models)[0] == {**HPARAMS, "note": "mine"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[1]", "holds a list"),
        ("{}", r"hparams\.json lacks n_vocab"),
        (json.dumps({**HPARAMS, "n_embd": 8}), r"model\.ckpt does not hold .* 136 misshapen"),
        (json.dumps({**HPARAMS, "n_head": 0}), r"hparams\.json does not describe a GPT-2"),
    ],
)
def test_hparams_that_are_wrong(models: Path, text: str, message: str) -> None:
    put(models)
    (models / "hparams.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_gpt2_params_from_tf_ckpt(models)


def test_without_hparams_an_unpublished_shape_cannot_be_known(models: Path) -> None:
    put(models)
    (models / "hparams.json").unlink()
    with pytest.raises(ValueError, match=r"hparams\.json does not exist, .*wte \(257, 4\), 11 blocks"):
        load_gpt2_params_from_tf_ckpt(models)
    by_hand.write(models, {"other": np.zeros(3, np.float32)})
    with pytest.raises(ValueError, match=r"wte \(\), 0 blocks"):
        read_settings(models / "model.ckpt")


def test_damage_is_named_and_only_looked_for_on_request(models: Path) -> None:
    path = put(models) / "model.ckpt.data-00000-of-00001"
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    load_gpt2_params_from_tf_ckpt(models, verify=False)
    with pytest.raises(ValueError, match="tensor 'model/wte' is damaged"):
        load_gpt2_params_from_tf_ckpt(models)


def test_what_training_leaves_beside_the_model_is_passed_over(models: Path) -> None:
    tensors: dict[str, NDArray[Any]] = values()
    tensors |= {
        f"{name}/{slot}": np.zeros_like(value) for name, value in values().items() for slot in ("Adam", "Adam_1")
    }
    tensors |= {
        "global_step": np.array(7),
        "beta1_power": np.array(0.9, "f4"),
        "model/beta2_power": np.array(0.9, "f4"),
    }
    by_hand.write(put(models), tensors)
    params = load_gpt2_params_from_tf_ckpt(models)[1]
    assert same(params, load_gpt2_params_from_tf_ckpt(DATA / "whole")[1])
    by_hand.write(models, {**tensors, "model/h0/attn/c_attn/lora": np.zeros(3, "f4"), "wte": tensors["model/wte"]})
    with pytest.raises(ValueError, match="2 unexpected: model/h0/attn/c_attn/lora, wte"):
        load_gpt2_params_from_tf_ckpt(models)


def test_half_precision_becomes_float32(models: Path) -> None:
    by_hand.write(put(models), {name: value.astype(np.float16) for name, value in values().items()})
    _, params = load_gpt2_params_from_tf_ckpt(models)
    assert params["wte"].dtype == np.float32
    assert np.array_equal(params["wte"], values()["model/wte"].astype(np.float16).astype(np.float32))
