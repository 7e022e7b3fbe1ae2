"""Adapters that PEFT wrote, read by `load_adapter` and `load_model`: every option, with equal logits."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gptclf import (
    GPT2,
    GPT2Config,
    add_classifier_head,
    apply_lora,
    load_adapter,
    load_gpt2,
    load_model,
    merge_lora,
    quantize,
    trainable_report,
)
from gptclf.files.safetensors_file import read_safetensors, tensor_writer

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

SHAPE = {"vocab_size": 100, "n_positions": 24, "n_embd": 32, "n_head": 4, "n_layer": 3}
IDS = torch.randint(1, 98, (4, 9), generator=torch.Generator().manual_seed(0))
C = 3

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small GPT-2 with noise on every parameter, as transformers saves it."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(**SHAPE, bos_token_id=99, eos_token_id=99, pad_token_id=99)
    model = transformers.GPT2LMHeadModel(config)
    noise(model)
    folder = tmp_path_factory.mktemp("base")
    model.save_pretrained(folder)
    return folder


def noise(model: Any, names: str = "") -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if names in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)


def theirs_of(base: Path, task: str = "SEQ_CLS") -> Any:
    torch.manual_seed(1)
    if task == "CAUSAL_LM":
        return transformers.GPT2LMHeadModel.from_pretrained(base)
    return transformers.GPT2ForSequenceClassification.from_pretrained(base, num_labels=C)


def written(base: Path, folder: Path, *, randomise: bool = True, task: str = "SEQ_CLS", **options: Any) -> Any:
    """Train nothing, but give all that PEFT trains other values, save, and return the logits."""
    given = {"r": 4, "lora_alpha": 8, "fan_in_fan_out": True, "task_type": task, **options}
    model = peft.get_peft_model(theirs_of(base, task), peft.LoraConfig(**given)).eval()
    if randomise:
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    model.save_pretrained(folder)
    with torch.no_grad():
        found: torch.Tensor = model(IDS, attention_mask=torch.ones_like(IDS)).logits
    return found


def logits(model: GPT2) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS)  # type: ignore[no-any-return]


OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "four matrices": {"target_modules": ["c_attn", "c_proj", "c_fc"]},
    "ends of names": {"target_modules": ["mlp.c_proj", "attn.c_proj"]},
    "all-linear": {"target_modules": "all-linear"},
    "full names": {"target_modules": ["transformer.h.0.attn.c_attn", "transformer.h.2.mlp.c_fc"]},
    "regular expression": {"target_modules": r".*\.h\.[12]\.(attn\.c_attn|mlp\.c_fc)"},
    "some blocks": {"target_modules": ["c_attn", "c_fc"], "layers_to_transform": [1, 2], "layers_pattern": "h"},
    "one block": {"target_modules": ["c_attn"], "layers_to_transform": 2},
    "excluded": {"target_modules": ["c_attn", "c_proj"], "exclude_modules": ["mlp.c_proj"]},
    "excluded by expression": {"target_modules": ["c_attn", "c_proj"], "exclude_modules": r".*\.h\.0\..*"},
    "patterns": {
        "target_modules": ["c_attn", "c_fc"],
        "rank_pattern": {"c_attn": 2, r"^transformer\.h\.1\.mlp\.c_fc": 6},
        "alpha_pattern": {"c_attn": 16},
    },
    "rslora": {"use_rslora": True},
    "bias of factors": {"lora_bias": True},
    "all biases": {"bias": "all"},
    "biases beneath": {"bias": "lora_only", "target_modules": ["c_attn", "mlp.c_proj"]},
    "final norm": {"modules_to_save": ["ln_f", "score"]},
    "a whole matrix": {"modules_to_save": ["transformer.h.2.mlp.c_fc", "wpe"]},
    "no modules named": {"modules_to_save": []},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "gaussian": {"init_lora_weights": "gaussian"},
    "dropout": {"lora_dropout": 0.3},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_an_option_of_pefts_gives_equal_logits(base: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    expected = written(base, tmp_path, **options)
    gpt2 = load_gpt2(str(base))
    clf = load_adapter(gpt2, tmp_path)
    torch.testing.assert_close(logits(clf), expected, rtol=1e-5, atol=1e-5)
    assert clf.classes == ["LABEL_0", "LABEL_1", "LABEL_2"]
    torch.testing.assert_close(logits(merge_lora(clf)), expected, rtol=1e-5, atol=2e-5)
    held = sum(tensor.numel() for tensor in read_safetensors(tmp_path / "adapter_model.safetensors")[0].values())
    assert trainable_report(clf).trainable == held  # all that it holds trains on, and nothing else


def test_a_language_models_adapter(base: Path, tmp_path: Path) -> None:
    expected = written(base, tmp_path, task="CAUSAL_LM", target_modules=["c_attn", "c_fc"])
    gpt2 = load_gpt2(str(base))
    torch.testing.assert_close(logits(load_adapter(gpt2, tmp_path)), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="adapter of a language model"):
        load_adapter(add_classifier_head(gpt2, num_classes=2, seed=0), tmp_path)


def test_factors_on_the_model_without_a_head(base: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    inner = transformers.GPT2Model.from_pretrained(base)
    targets = r"h\.[02]\.attn\.c_attn"  # their names do not begin with "transformer."
    model = peft.get_peft_model(inner, peft.LoraConfig(r=2, fan_in_fan_out=True, target_modules=targets)).eval()
    noise(model, "lora_B")
    model.save_pretrained(tmp_path)
    adapted = load_adapter(load_gpt2(str(base)), tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(adapted.hidden_states(IDS), model(IDS).last_hidden_state, rtol=1e-5, atol=1e-5)


def test_an_untied_embedding_is_refused(base: Path, tmp_path: Path) -> None:
    written(base, tmp_path, task="CAUSAL_LM", modules_to_save=["wte"])
    with pytest.raises(ValueError, match=r"wte.*unties"):
        load_adapter(load_gpt2(str(base)), tmp_path)


def test_the_fewest_keys_and_pytorchs_file(base: Path, tmp_path: Path) -> None:
    expected = written(base, tmp_path)
    config = tmp_path / "adapter_config.json"
    few = ("peft_type", "task_type", "base_model_name_or_path", "r", "lora_alpha", "target_modules", "fan_in_fan_out")
    values = json.loads(config.read_text())
    config.write_text(json.dumps({key: values[key] for key in few}))
    weights = tmp_path / "adapter_model.safetensors"
    torch.save(dict(read_safetensors(weights)[0]), tmp_path / "adapter_model.bin")
    weights.unlink()
    clf = load_adapter(load_gpt2(str(base)), tmp_path)
    torch.testing.assert_close(logits(clf), expected, rtol=1e-5, atol=1e-5)


def test_a_classifier_keeps_its_labels(base: Path, tmp_path: Path) -> None:
    expected = written(base, tmp_path)
    clf = add_classifier_head(load_gpt2(str(base)), classes=["a", "b", "c"], seed=0)
    before = {name: parameter.clone() for name, parameter in clf.named_parameters()}
    adapted = load_adapter(clf, tmp_path)
    assert adapted.classes == ["a", "b", "c"]
    torch.testing.assert_close(logits(adapted), expected, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(before[name], parameter) for name, parameter in clf.named_parameters())


def test_load_model_finds_the_base(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = written(base, tmp_path / "adapter")
    torch.testing.assert_close(logits(load_model(tmp_path / "adapter")), expected, rtol=1e-5, atol=1e-5)
    config = tmp_path / "adapter" / "adapter_config.json"
    values = json.loads(config.read_text())
    for name, here in (("../base", tmp_path), (base.name, base.parent)):  # beside the adapter; in the current folder
        if not (tmp_path / "base").exists():
            (tmp_path / "base").symlink_to(base)
        monkeypatch.chdir(here)
        config.write_text(json.dumps({**values, "base_model_name_or_path": name}))
        torch.testing.assert_close(logits(load_model(tmp_path / "adapter")), expected, rtol=1e-5, atol=1e-5)
    config.write_text(json.dumps({**values, "base_model_name_or_path": "no/such/folder"}))
    with pytest.raises((FileNotFoundError, ConnectionError), match=r"base="):
        load_model(tmp_path / "adapter")
    for source in (str(base), base, load_gpt2(str(base))):
        again = load_model(tmp_path / "adapter", base=source)
        torch.testing.assert_close(logits(again), expected, rtol=1e-5, atol=1e-5)
    config.write_text(json.dumps({**values, "base_model_name_or_path": None}))
    with pytest.raises(ValueError, match=r"names no base.*base="):
        load_model(tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"base= is for an adapter"):
        load_model(base, base=base)


def test_a_file_of_factors_over_quantised_matrices_warns_on_floats(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    written(base, tmp_path)
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "fan_in_fan_out": False}))
    gpt2 = load_gpt2(str(base))
    with caplog.at_level(logging.WARNING):
        load_adapter(quantize(gpt2), tmp_path)
        assert "quantised" not in caplog.text
        load_adapter(gpt2, tmp_path)
    assert "trained over quantised matrices" in caplog.text


def in_order(table: dict[str, int]) -> dict[str, int]:
    return dict(sorted(table.items()))


NAMES = ["c_attn", "attn.c_proj", "c_fc", "mlp.c_proj"]
CONFIGS = st.fixed_dictionaries(
    {
        "r": st.integers(1, 6),
        "lora_alpha": st.integers(1, 32),
        "target_modules": st.lists(st.sampled_from(NAMES), min_size=1, unique=True),
        "use_rslora": st.booleans(),
        "bias": st.sampled_from(["none", "all", "lora_only"]),
        "lora_bias": st.booleans(),
        # In the order in which PEFT saves them: the first pattern that matches counts, and it sorts them.
        "rank_pattern": st.dictionaries(st.sampled_from(NAMES), st.integers(1, 5)).map(in_order),
        "alpha_pattern": st.dictionaries(st.sampled_from([*NAMES, r"h\.1\..*"]), st.integers(1, 9)).map(in_order),
        "layers_to_transform": st.none() | st.lists(st.integers(0, 2), min_size=1, unique=True),
        "modules_to_save": st.sampled_from([None, ["ln_f"], ["score", "transformer.h.0.ln_1"]]),
    }
)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(options=CONFIGS)
def test_any_folder_of_pefts_is_read(
    base: Path, tmp_path_factory: pytest.TempPathFactory, options: dict[str, Any]
) -> None:
    folder = tmp_path_factory.mktemp("adapter")
    if options["bias"] != "none" and options["lora_bias"]:
        options = {**options, "bias": "none"}  # PEFT takes one of them
    if options["bias"] != "none" and options["modules_to_save"]:
        options = {**options, "modules_to_save": None}
    expected = written(base, folder, **options)
    torch.testing.assert_close(logits(load_adapter(load_gpt2(str(base)), folder)), expected, rtol=1e-5, atol=1e-4)


# ---- what is refused ------------------------------------------------------------------------------------------------


def edited(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def with_tensors(folder: Path, change: Any) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in read_safetensors(path)[0].items()}
    change(tensors)
    tensor_writer(tensors, {"format": "pt"})(path)


A0 = "base_model.model.transformer.h.0.attn.c_attn.lora_A.weight"
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another method": ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
    "DoRA": ({"use_dora": True}, "DoRA"),
    "PiSSA": ({"init_lora_weights": "pissa_niter_4"}, "pissa.*changes the base's weights"),
    "OLoRA": ({"init_lora_weights": "olora"}, "olora"),
    "trained tokens": ({"trainable_token_indices": [3]}, "trainable tokens"),
    "parameters": ({"target_parameters": ["attn.c_attn.weight"]}, "factors on parameters"),
    "rank 0": ({"r": 0}, "r is 0"),
    "rank 0 by pattern": ({"rank_pattern": {"c_attn": 0}}, "rank_pattern is 0"),
    "no expression": ({"target_modules": "h.(["}, "not a regular expression"),
    "matches nothing": ({"target_modules": ["query", "value"]}, r"\['query', 'value'\].*matches no matrix"),
    "a task": ({"task_type": "TOKEN_CLS"}, "TOKEN_CLS"),
    "a type": ({"lora_alpha": "8"}, "lora_alpha is '8'"),
    "embeddings": ({"target_modules": ["c_attn", "wte"]}, "wte"),
    "another bias": ({"bias": "some"}, "bias is 'some'"),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_plain_lora_is_refused_by_name(
    base: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    written(base, tmp_path)
    edited(tmp_path, **changes)
    gpt2 = load_gpt2(str(base))
    before = logits(gpt2)
    with pytest.raises(ValueError, match=message):
        load_adapter(gpt2, tmp_path)
    assert torch.equal(logits(gpt2), before)


def test_tensors_that_are_missing_left_over_or_misshapen_are_named(base: Path, tmp_path: Path) -> None:
    gpt2 = load_gpt2(str(base))
    half = A0.replace("lora_A", "lora_B")
    for i, (change, message) in enumerate(
        (
            (lambda tensors: tensors.pop(half), "1 missing: transformer.h.0.attn.c_attn.lora_B.weight"),
            (lambda tensors: tensors.update(extra=torch.ones(2)), "1 unexpected: .*extra"),
            (lambda tensors: tensors.update({A0: torch.ones(5, 32)}), r"lora_A.weight is .*\(5, 32\).*\(4, 32\)"),
            (lambda tensors: tensors.pop("base_model.model.score.weight"), "lacks score.weight"),
        )
    ):
        written(base, tmp_path / str(i))
        with_tensors(tmp_path / str(i), change)
        with pytest.raises(ValueError, match=message):
            load_adapter(gpt2, tmp_path / str(i))


def test_an_adapter_of_another_model_is_refused(base: Path, tmp_path: Path) -> None:
    written(base, tmp_path)
    wider = load_gpt2(
        GPT2Config(vocab_size=100, context_length=24, emb_dim=64, n_heads=4, n_layers=3), weights="random"
    )
    with pytest.raises(ValueError, match=r"another GPT-2: its base has 32 dimensions, the model 64"):
        load_adapter(wider, tmp_path)
    shallow = load_gpt2(
        GPT2Config(vocab_size=100, context_length=24, emb_dim=32, n_heads=4, n_layers=2), weights="random"
    )
    with pytest.raises(ValueError, match=r"its base has 3 blocks, the model 2"):
        load_adapter(shallow, tmp_path)
    clf = add_classifier_head(load_gpt2(str(base)), num_classes=2, seed=0)
    with pytest.raises(ValueError, match=r"head of 3 classes, but the classifier has 2"):
        load_adapter(clf, tmp_path)
    bert = "base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.weight"
    edited(tmp_path, target_modules=["query"])
    with_tensors(tmp_path, lambda tensors: (tensors.clear(), tensors.update({bert: torch.ones(4, 32)})))
    with pytest.raises(ValueError, match=r"score.weight|query"):
        load_adapter(load_gpt2(str(base)), tmp_path)


def test_damaged_files_are_refused(base: Path, tmp_path: Path) -> None:
    gpt2 = load_gpt2(str(base))
    written(base, tmp_path)
    weights, config = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    whole, text = weights.read_bytes(), config.read_text()
    weights.write_bytes(whole[:-7])
    with pytest.raises(ValueError, match="not a complete safetensors file"):
        load_adapter(gpt2, tmp_path)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"adapter_model.safetensors"):
        load_adapter(gpt2, tmp_path)
    weights.write_bytes(whole)
    for broken in ("[1, 2]", "{", ""):
        config.write_text(broken)
        with pytest.raises(ValueError, match=r"adapter_config.json"):
            load_adapter(gpt2, tmp_path)
    config.write_text(text)
    with pytest.raises(FileNotFoundError, match=r"holds no adapter|holds neither"):
        load_adapter(gpt2, base)
    with pytest.raises(ValueError, match="LoRA layers already"):
        load_adapter(apply_lora(gpt2, 2), tmp_path)
    with pytest.raises(TypeError, match="GPT2"):
        load_adapter("gpt2", tmp_path)  # type: ignore[arg-type]


def test_an_unknown_key_is_said(base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    written(base, tmp_path)
    edited(tmp_path, labels=["a", "b"], something_off=False)
    with caplog.at_level(logging.WARNING):
        load_adapter(load_gpt2(str(base)), tmp_path)
    assert "labels" in caplog.text
    assert "something_off" not in caplog.text


def test_load_gpt2_of_an_adapter_names_the_way(base: Path, tmp_path: Path) -> None:
    written(base, tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match="load_model"):
        load_gpt2(str(tmp_path))
