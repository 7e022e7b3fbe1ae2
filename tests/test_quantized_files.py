"""Files of quantised models: bit for bit, and transformers' bitsandbytes layout both ways."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from test_lora_model import IDS, classifier, language_model, run, state
from torch import Tensor

from gptclf import GPT2, GPT2Config, Preparation, add_classifier_head, load_gpt2, load_model, quantize, save_model
from gptclf.gpt2 import nf4
from gptclf.gpt2.nf4_kernel import bitsandbytes_kernel
from gptclf.gpt2.quantized import BITS, quantized_layers
from gptclf.gpt2.sharing import is_borrowed

# Rows of whole blocks: for others bitsandbytes' kernel takes wrong scales (test_nf4.py).
CONFIG = GPT2Config(vocab_size=257, context_length=40, emb_dim=64, n_heads=4, n_layers=2)
MATRICES = {
    "attention.qkv": "attn.c_attn",
    "attention.out": "attn.c_proj",
    "mlp.up": "mlp.c_fc",
    "mlp.down": "mlp.c_proj",
}
STATE = "quant_state.bitsandbytes__nf4"
FIRST = "transformer.h.0.attn.c_attn"

MODELS: dict[str, Callable[[str], GPT2]] = {
    "language model": lambda bits: quantize(language_model(CONFIG), bits),
    "odd sizes": lambda bits: quantize(language_model(), bits),
    "classifier": lambda bits: quantize(classifier(language_model(CONFIG)), bits),
    "last block trains": lambda bits: quantize(trained_block(), bits),
    "mean pooling": lambda bits: quantize(mean_pooled(), bits),
}


def trained_block() -> GPT2:
    return add_classifier_head(language_model(CONFIG), classes=["ham", "spam"], seed=3)


def mean_pooled() -> GPT2:
    clf = add_classifier_head(language_model(CONFIG), classes=[1, 7, "x"], pooling="mean", seed=3)
    clf.preparation = Preparation(max_length=20)
    return clf


def load(folder: Path) -> GPT2:
    """Whatever the folder holds."""
    classifies = json.loads((folder / "gptclf.json").read_text())["head"] is not None
    return load_model(folder) if classifies else load_gpt2(folder)


def config_of(folder: Path) -> Any:
    return json.loads((folder / "config.json").read_text())


# --- our own round trip, without any package ---


@pytest.fixture
def _without_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nf4, "bitsandbytes_kernel", lambda device: None)


@pytest.mark.usefixtures("_without_bitsandbytes")
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("name", MODELS)
def test_a_quantised_model_comes_back_bit_for_bit(name: str, bits: str, tmp_path: Path) -> None:
    model = MODELS[name](bits)
    back = load(save_model(model, tmp_path))
    assert state(back) == state(model)
    assert {path: layer.bits for path, layer in quantized_layers(back).items()} == dict.fromkeys(
        quantized_layers(model), bits
    )
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name, p in back.named_parameters() if p.requires_grad} == trained
    assert torch.equal(back(IDS), model(IDS))
    assert (back.preparation, back.classes) == (model.preparation, model.classes)
    # Equal models save equal files.
    again = save_model(back, tmp_path / "again")
    files = sorted(path.name for path in again.iterdir())
    assert files == sorted(path.name for path in tmp_path.iterdir() if path.is_file())
    assert {file: (again / file).read_bytes() for file in files} == {
        file: (tmp_path / file).read_bytes() for file in files
    }


def test_a_loaded_model_trains_and_leaves_its_file_alone(tmp_path: Path) -> None:
    save_model(MODELS["last block trains"]("nf4"), tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    model = load_model(tmp_path)
    assert is_borrowed(next(iter(quantized_layers(model).values())).packed()["codes"])
    run(model, epochs=1)
    model.load_state_dict(MODELS["last block trains"]("nf4").state_dict())
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_a_folder_is_overwritten_by_another_kind(tmp_path: Path) -> None:
    clf = classifier(language_model(CONFIG))
    for model in (clf, quantize(clf), quantize(clf, "int8"), MODELS["mean pooling"]("nf4"), clf):
        save_model(model, tmp_path)
        assert state(load_model(tmp_path)) == state(model)


@pytest.mark.parametrize("bits", BITS)
def test_the_file_says_what_is_quantised(bits: str, tmp_path: Path) -> None:
    save_model(MODELS["last block trains"](bits), tmp_path)
    config = config_of(tmp_path)["quantization_config"]
    assert (config["quant_method"], config["load_in_4bit"], config["load_in_8bit"]) == (
        "bitsandbytes",
        bits == "nf4",
        bits == "int8",
    )
    floats = [f"transformer.h.1.{name}" for name in MATRICES.values()]
    assert config["llm_int8_skip_modules"] == ["lm_head", "score", *floats]
    tensors = load_file(tmp_path / "model.safetensors")
    assert tensors["transformer.h.1.attn.c_attn.weight"].shape == (64, 192)
    if bits == "int8":
        assert (tensors[f"{FIRST}.weight"].dtype, tensors[f"{FIRST}.weight"].shape) == (torch.int8, (192, 64))
        assert int(tensors[f"{FIRST}.weight_format"]) == 0
        assert tensors[f"{FIRST}.SCB"].shape == (192,)
    else:
        assert (tensors[f"{FIRST}.weight"].dtype, tensors[f"{FIRST}.weight"].shape) == (torch.uint8, (6144, 1))
        said = json.loads(bytes(tensors[f"{FIRST}.weight.{STATE}"].tolist()))
        offset = said.pop("nested_offset")
        assert said == {
            "quant_type": "nf4",
            "blocksize": 64,
            "dtype": "float32",
            "shape": [192, 64],
            "nested_blocksize": 256,
            "nested_dtype": "float32",
        }
        assert np.float32(offset) == offset
    card = (tmp_path / "README.md").read_text()
    assert f"Matrices of its blocks are kept in `{bits}`." in card
    assert "`bitsandbytes` and `accelerate`" in card
    floats_only = save_model(trained_block(), tmp_path / "floats")
    assert "quantization_config" not in config_of(floats_only)
    counts = [text.split(" parameters (")[0].split()[-1] for text in (card, (floats_only / "README.md").read_text())]
    assert counts[0] == counts[1]
    assert "kept in" not in (floats_only / "README.md").read_text()


# --- transformers ---


@pytest.fixture(scope="module")
def _transformers_can() -> None:
    """Load bitsandbytes as gptclf does, without a line of noise, before transformers loads it."""
    pytest.importorskip("accelerate")
    pytest.importorskip("bitsandbytes", exc_type=ImportError)
    assert bitsandbytes_kernel(torch.device("cpu")) is not None


def matrices(model: GPT2, theirs: Any) -> list[tuple[Tensor, Tensor]]:
    """The dequantised matrices of our model beside those of transformers'."""
    from transformers.integrations.bitsandbytes import dequantize_bnb_weight

    found = []
    for path, layer in quantized_layers(model).items():
        _, _, i, name = path.split(".", 3)
        other = theirs.transformer.h[int(i)].get_submodule(MATRICES[name])
        found.append((layer.matrix(), dequantize_bnb_weight(other.weight, getattr(other, "state", None))))
    return found


def check_same(model: GPT2, theirs: Any, count: int, atol: float = 1e-5) -> None:
    pairs = matrices(model, theirs)
    assert len(pairs) == count
    assert all(torch.equal(ours, other) for ours, other in pairs)
    # Without gradients bitsandbytes multiplies in bfloat16 on a CPU that can.
    torch.testing.assert_close(model(IDS), theirs(IDS).logits, rtol=0, atol=atol)


@pytest.mark.usefixtures("_transformers_can")
@pytest.mark.parametrize(("bits", "atol"), [("nf4", 1e-5), ("int8", 3e-2)])  # theirs also rounds inputs to 8 bits
@pytest.mark.parametrize(("name", "count"), [("language model", 8), ("classifier", 8), ("last block trains", 4)])
def test_transformers_reads_our_folder(name: str, count: int, bits: str, atol: float, tmp_path: Path) -> None:
    model = MODELS[name](bits)
    save_model(model, tmp_path)
    kind = (
        transformers.GPT2LMHeadModel
        if count == 8 and name == "language model"
        else transformers.AutoModelForSequenceClassification
    )
    theirs = kind.from_pretrained(tmp_path).eval()
    check_same(model, theirs, count, atol * float(model(IDS).abs().max()))


def their_folder(kind: Any, folder: Path, **options: Any) -> tuple[Any, Path]:
    """A model that transformers quantised, and the folder in which it saved it."""
    ends = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0)
    sizes: dict[str, Any] = {
        "vocab_size": 257,
        "n_positions": 40,
        "n_embd": 64,
        "n_head": 4,
        "n_layer": 2,
        "num_labels": 3,
    }
    config = transformers.GPT2Config(**sizes, **ends)
    torch.manual_seed(0)
    kind(config).save_pretrained(folder / "floats")
    given = transformers.BitsAndBytesConfig(**options)
    theirs = kind.from_pretrained(folder / "floats", quantization_config=given).eval()
    theirs.save_pretrained(folder / "packed")
    return theirs, folder / "packed"


NF4: dict[str, Any] = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
THEIRS: dict[str, dict[str, Any]] = {
    "nf4": NF4,
    "nf4, scales quantised": {**NF4, "bnb_4bit_use_double_quant": True},
    "nf4 stored as bfloat16": {**NF4, "bnb_4bit_quant_storage": "bfloat16", "bnb_4bit_use_double_quant": True},
    "nf4, one matrix left out": {**NF4, "llm_int8_skip_modules": ["lm_head", "score", "transformer.h.1.mlp.c_fc"]},
    "int8": {"load_in_8bit": True},
}


@pytest.mark.usefixtures("_transformers_can")
@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize("classifies", [True, False])
@pytest.mark.parametrize("name", THEIRS)
def test_transformers_folder_is_read(
    name: str, classifies: bool, kernel: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = transformers.GPT2ForSequenceClassification if classifies else transformers.GPT2LMHeadModel
    theirs, folder = their_folder(kind, tmp_path, **THEIRS[name])
    if not kernel:
        monkeypatch.setattr(nf4, "bitsandbytes_kernel", lambda device: None)
    model = load_model(folder) if classifies else load_gpt2(folder)
    check_same(model, theirs, 7 if "left out" in name else 8, 2e-2 if name == "int8" else 1e-5)
    assert [n for n, p in model.named_parameters() if p.requires_grad] == ["head.output.weight"] * classifies
    # And written by us it is the same again.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        back = load(save_model(model, tmp_path / "ours"))
    assert state(back) == state(model)
    check_same(
        back,
        kind.from_pretrained(tmp_path / "ours").eval(),
        7 if "left out" in name else 8,
        2e-2 if name == "int8" else 1e-5,
    )


# --- what is refused ---

OTHERS = {
    "fp4": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "gptq": {"quant_method": "gptq", "bits": 4},
    "awq": {"quant_method": "awq", "load_in_8bit": True},
    "neither": {"quant_method": "bitsandbytes"},
    "no dictionary": "nf4",
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_kinds_are_refused_with_a_remedy(name: str, tmp_path: Path) -> None:
    save_model(MODELS["language model"]("nf4"), tmp_path)
    config = {**config_of(tmp_path), "quantization_config": OTHERS[name]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"quantization_config.*only bitsandbytes' nf4 and int8.*quantize"):
        load_gpt2(tmp_path)


def said(**changes: Any) -> Callable[[dict[str, Tensor]], None]:
    """Change what the first matrix's state says."""

    def change(tensors: dict[str, Tensor]) -> None:
        name = f"{FIRST}.weight.{STATE}"
        values = {**json.loads(bytes(tensors[name].tolist())), **changes}
        text = json.dumps({key: value for key, value in values.items() if value is not None})
        tensors[name] = torch.tensor(list(text.encode()), dtype=torch.uint8)

    return change


def without(name: str) -> Callable[[dict[str, Tensor]], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        del tensors[f"{FIRST}.{name}"]

    return change


def put(name: str, change_of: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[f"{FIRST}.{name}"] = change_of(tensors[f"{FIRST}.{name}"]).contiguous()

    return change


DAMAGED: dict[str, tuple[str, Callable[[dict[str, Tensor]], None], str]] = {
    "no scales": ("nf4", without("weight.absmax"), r"h\.0\.attn\.c_attn\.weight.*lacks 'absmax'"),
    "no state": ("nf4", without(f"weight.{STATE}"), f"lacks '{STATE}'"),
    "no code book": ("nf4", without("weight.quant_map"), "lacks 'quant_map'"),
    "no nested code book": ("nf4", without("weight.nested_quant_map"), "lacks 'nested_quant_map'"),
    "no nested scales": ("nf4", without("weight.nested_absmax"), "its tensors are"),
    "no codes": ("nf4", without("weight"), r"lacks 'h\.0\.attn\.c_attn\.weight'"),
    "codes cut": ("nf4", put("weight", lambda t: t[:-1]), r"'codes': \(torch.uint8, \(6143,\)\).*6144"),
    "scales cut": ("nf4", put("weight.absmax", lambda t: t[:-1]), "191"),
    "another code book": ("nf4", put("weight.quant_map", lambda t: t * 0.5), "quant_map is another code book"),
    "another nested one": ("nf4", put("weight.nested_quant_map", lambda t: t * 0.5), "nested_quant_map is another"),
    "blocks of 128": ("nf4", said(blocksize=128), "blocksize is 128, not 64"),
    "nested blocks": ("nf4", said(nested_blocksize=128), "nested_blocksize is 128, not 256"),
    "another type": ("nf4", said(quant_type="fp4"), "quant_type is 'fp4', not 'nf4'"),
    "another shape": ("nf4", said(shape=[64, 192]), r"shape is \[64, 192\], not \[192, 64\]"),
    "no offset": ("nf4", said(nested_offset=None), "lacks 'nested_offset'"),
    "no JSON": ("nf4", put(f"weight.{STATE}", lambda t: t[:5]), "not this model's matrix"),
    "rows cut": ("int8", put("weight", lambda t: t[:-1]), "191"),
    "transposed": ("int8", put("weight", lambda t: t.t()), r"\(64, 192\)"),
    "no SCB": ("int8", without("SCB"), "lacks 'absmax'|instead of floats|lacks"),
    "another format": ("int8", put("weight_format", lambda t: t + 1), "weight_format is 1"),
    "scales of another type": ("int8", put("weight", lambda t: t.float()), "torch.float32"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_matrix_is_named(name: str, tmp_path: Path) -> None:
    bits, change, message = DAMAGED[name]
    file = save_model(MODELS["language model"](bits), tmp_path) / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(ValueError, match=message) as told:
        load_gpt2(tmp_path)
    assert str(tmp_path) in str(told.value)
    assert "attn.c_attn" in str(told.value)


def test_leftover_statistics_are_unexpected(tmp_path: Path) -> None:
    file = save_model(MODELS["language model"]("nf4"), tmp_path) / "model.safetensors"
    tensors = load_file(file)
    tensors["transformer.h.0.ln_1.weight.absmax"] = torch.zeros(3)
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(ValueError, match=r"unexpected: transformer\.h\.0\.ln_1\.weight\.absmax"):
        load_gpt2(tmp_path)


@pytest.mark.parametrize("name", ["mean pooling", "classifier"])
def test_our_own_damaged_folder_is_told(name: str, tmp_path: Path) -> None:
    save_model(MODELS[name]("nf4"), tmp_path)
    file = tmp_path / ("gptclf.safetensors" if name == "mean pooling" else "model.safetensors")
    mark = json.loads((tmp_path / "gptclf.json").read_text())["gptclf_save"]
    tensors = load_file(file)
    cut = next(
        key
        for key in tensors
        if key.endswith("attention.qkv.absmax" if name == "mean pooling" else "c_attn.weight.absmax")
    )
    tensors[cut] = tensors[cut][:-1].contiguous()
    save_file(tensors, file, {"gptclf_save": mark, "format": "pt"})
    with pytest.raises(ValueError, match=r"attention\.qkv: its tensors are|c_attn\.weight is not"):
        load_model(tmp_path, verify=False)


def test_a_model_of_another_shape_is_not_saved(tmp_path: Path) -> None:
    model = MODELS["language model"]("nf4")
    model.config = model.config.replace(n_layers=3)
    with pytest.raises(ValueError, match="not the one that its configuration describes"):
        save_model(model, tmp_path)
    other = MODELS["language model"]("nf4")
    codes = quantized_layers(other)["trunk.blocks.0.mlp.up"].packed()["codes"]
    codes.data = codes.data[:-1]
    with pytest.raises(ValueError, match=r"mlp\.up: its tensors are"):
        save_model(other, tmp_path)
    assert not list(tmp_path.iterdir())
