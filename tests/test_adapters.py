"""Adapters of ours: read by PEFT with equal logits, and by us bit for bit."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_extension import TwoLayers

from gptclf import (
    GPT2,
    GPT2Config,
    Preparation,
    add_classifier_head,
    apply_lora,
    freeze,
    load_adapter,
    load_gpt2,
    load_model,
    merge_lora,
    quantize,
    save_adapter,
    save_model,
)
from gptclf.files.safetensors_file import read_safetensors
from gptclf.gpt2.lora_linear import lora_layers

CONFIG = GPT2Config(vocab_size=257, context_length=24, emb_dim=32, n_heads=4, n_layers=3)
IDS = torch.randint(1, 250, (4, 9), generator=torch.Generator().manual_seed(0))
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model with noise on every parameter, saved."""
    return save_model(noisy(GPT2(CONFIG, seed=1)), tmp_path_factory.mktemp("base"))


def noisy(model: GPT2, only_trained: bool = False, seed: int = 3) -> GPT2:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad or not only_trained:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model.eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS)  # type: ignore[no-any-return]


def classifier(base: Path, **head: Any) -> GPT2:
    clf = add_classifier_head(load_gpt2(str(base)), classes=["a", "b", "c"], seed=0, **head)
    freeze(clf, trainable="head")
    return clf


def pefts_logits(folder: Path, *, n: int | None = 3) -> torch.Tensor:
    """Load a folder as PEFT's users do and return the logits."""
    peft = pytest.importorskip("peft")
    if n is None:
        model = peft.AutoPeftModelForCausalLM.from_pretrained(folder)
    else:
        model = peft.AutoPeftModelForSequenceClassification.from_pretrained(
            folder, num_labels=n, ignore_mismatched_sizes=True
        )
    with torch.no_grad():
        return model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits  # type: ignore[no-any-return]


def check_both_ways(model: GPT2, folder: Path, base: Path, *, n: int | None = 3) -> Path:
    """Save an adapter; PEFT and we get its logits, and we get its tensors bit for bit."""
    saved = save_adapter(model, folder)
    expected = logits(model)
    torch.testing.assert_close(pefts_logits(saved, n=n), expected, rtol=1e-5, atol=2e-5)
    again = load_model(saved)
    torch.testing.assert_close(logits(again), expected, rtol=1e-6, atol=1e-6)
    ours, theirs = dict(model.named_parameters()), dict(again.named_parameters())
    assert ours.keys() == theirs.keys()
    for name, parameter in ours.items():
        assert torch.equal(parameter, theirs[name]), name
        assert parameter.requires_grad == theirs[name].requires_grad, name
    assert again.task.record() == model.task.record()
    assert again.preparation == model.preparation
    torch.testing.assert_close(logits(load_adapter(load_gpt2(str(base)), saved)), expected, rtol=1e-6, atol=1e-6)
    return saved


FULL = ["qkv", "out", "up", "down", "head"]
VARIANTS: dict[str, dict[str, Any]] = {
    "all matrices": {},
    "one": {"targets": "qkv"},
    "last two blocks": {"blocks": 2},
    "some blocks, some matrices": {"blocks": [0, 2], "targets": ["out", "down"]},
    "uneven": {"targets": ["blocks.0", "blocks.2.mlp"]},
    "ranks and alphas": {"rank": {"qkv": 2, "blocks.1.mlp": 3, "*": 5}, "alpha": {"up": 7, "*": 3}},
    "rslora": {"scale": "alpha/sqrt(rank)"},
    "alpha itself": {"scale": "alpha", "alpha": 0.5},
    "rslora and ranks": {"scale": "alpha/sqrt(rank)", "rank": {"up": 2, "*": 3}},
    "dropout": {"dropout": 0.2},
    "the book's": {"init": "book", "scale": "alpha", "alpha": 0.5},
    "the book's, head included": {"targets": FULL, "init": "book", "scale": "alpha", "alpha": 0.5},
    "head included": {"targets": FULL},
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_a_variant_is_read_by_peft_and_by_us(base: Path, tmp_path: Path, options: dict[str, Any], bias: bool) -> None:
    model = noisy(apply_lora(classifier(base, bias=bias), **{"rank": 4, "alpha": 8, "seed": 1, **options}), True)
    saved = check_both_ways(model, tmp_path, base)
    names = set(read_safetensors(saved / "adapter_model.safetensors")[0])
    assert ("base_model.model.transformer.ln_f.weight" in names) == bias  # the bias is folded into the norm
    values = json.loads((saved / "adapter_config.json").read_text())
    assert values["target_modules"]
    assert "c_proj" not in values["target_modules"]


def test_a_language_model(base: Path, tmp_path: Path) -> None:
    model = noisy(apply_lora(load_gpt2(str(base)), 4, seed=1), True)
    check_both_ways(model, tmp_path, base, n=None)


MORE: dict[str, Any] = {
    "all biases": ["*.lora_*", "head", "trunk.*.bias"],
    "biases beneath": ["*.lora_*", "head", "*.base.bias"],
    "one bias beneath": ["*.lora_*", "head", "*blocks.1.attention.qkv.base.bias"],
    "final norm": ["*.lora_*", "head", "norm"],
    "a norm and the positions": ["*.lora_*", "head", "blocks.0.norm1", "embed.position"],
}


@pytest.mark.parametrize("trainable", MORE.values(), ids=MORE)
@pytest.mark.parametrize("bias", [True, False])
def test_what_else_trains_goes_along(base: Path, tmp_path: Path, trainable: Any, bias: bool) -> None:
    model = apply_lora(classifier(base, bias=bias), 4, seed=1)
    freeze(model, trainable=trainable)
    noisy(model, True)
    saved = save_adapter(model, tmp_path)
    expected = logits(model)
    torch.testing.assert_close(pefts_logits(saved), expected, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(logits(load_model(saved)), expected, rtol=1e-6, atol=1e-6)


def test_a_whole_block_trains_beside_factors_elsewhere(base: Path, tmp_path: Path) -> None:
    model = apply_lora(classifier(base), 4, blocks=[0, 1], seed=1)
    freeze(model, trainable=["*.lora_*", "blocks.2", "norm", "head"])
    noisy(model, True)
    check_both_ways(model, tmp_path, base)


RANDOM = st.fixed_dictionaries(
    {
        "rank": st.integers(1, 6),
        "alpha": st.floats(0.5, 16, width=16),
        "targets": st.lists(st.sampled_from(["qkv", "out", "up", "down"]), min_size=1, unique=True),
        "blocks": st.none() | st.lists(st.integers(0, 2), min_size=1, unique=True),
        "scale": st.sampled_from(["alpha/rank", "alpha/sqrt(rank)", "alpha"]),
        "init": st.sampled_from(["default", "book"]),
        "seed": st.integers(0, 5),
    }
)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(options=RANDOM, bias=st.booleans())
def test_any_adapter_is_read_by_peft(
    base: Path, tmp_path_factory: pytest.TempPathFactory, options: dict[str, Any], bias: bool
) -> None:
    model = noisy(apply_lora(classifier(base, bias=bias), **options), True)
    saved = save_adapter(model, tmp_path_factory.mktemp("adapter"))
    torch.testing.assert_close(pefts_logits(saved), logits(model), rtol=1e-4, atol=1e-4)


# ---- what PEFT cannot hold ------------------------------------------------------------------------------------------


def test_another_pooling_is_ours_alone(base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = noisy(apply_lora(classifier(base, pooling="mean"), 4, init="book", seed=1), True)
    saved = save_adapter(model, tmp_path)
    assert "PEFT cannot load this adapter" in caplog.text
    assert not (saved / "adapter_config.json").exists()
    assert "PEFT cannot load it" in (saved / "README.md").read_text()
    torch.testing.assert_close(logits(load_model(saved)), logits(model), rtol=1e-6, atol=1e-6)


def test_a_head_of_ones_own(base: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    clf = add_classifier_head(load_gpt2(str(base)), classes=["a", "b"], head=TwoLayers)
    model = noisy(apply_lora(clf, 4, seed=1), True)
    saved = save_adapter(model, tmp_path)
    with pytest.raises(ValueError, match="head of the class 'TwoLayers'"):
        load_model(saved)
    torch.testing.assert_close(logits(load_model(saved, head=TwoLayers)), logits(model), rtol=1e-6, atol=1e-6)


def test_labels_of_any_type_and_preparation_come_back(base: Path, tmp_path: Path) -> None:
    clf = add_classifier_head(load_gpt2(str(base)), classes=[1, "one", 2.5, (2, "b")], seed=0)
    clf.preparation = Preparation(max_length=7, truncation="head")
    saved = save_adapter(apply_lora(clf, 4, seed=1), tmp_path)
    again = load_model(saved)
    assert again.classes == [1, "one", 2.5, (2, "b")]
    assert again.preparation == clf.preparation


# ---- bases ----------------------------------------------------------------------------------------------------------


def test_a_quantised_base_is_quantised_again(base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for bits in ("nf4", "int8"):
        clf = add_classifier_head(quantize(load_gpt2(str(base)), bits), classes=["a", "b", "c"], seed=0)
        model = noisy(apply_lora(clf, 4, seed=1), True)
        saved = save_adapter(model, tmp_path / bits)
        assert bits in (saved / "README.md").read_text()
        again = load_model(saved)
        torch.testing.assert_close(logits(again), logits(model), rtol=1e-6, atol=1e-6)
        assert "answers will differ" not in caplog.text
        load_adapter(load_gpt2(str(base)), saved)
        assert f"trained over {bits}" in caplog.text
        caplog.clear()


def test_a_partly_quantised_base(base: Path, tmp_path: Path) -> None:
    clf = add_classifier_head(load_gpt2(str(base)), classes=["a", "b", "c"], seed=0)  # the last block trains
    model = apply_lora(quantize(clf), 4, blocks=[0, 1], seed=1)
    freeze(model, trainable=["*.lora_*", "blocks.2", "norm", "head"])
    noisy(model, True)
    saved = save_adapter(model, tmp_path)
    torch.testing.assert_close(logits(load_model(saved)), logits(model), rtol=1e-6, atol=1e-6)


def test_another_base_is_an_error_when_saving_and_a_warning_when_loading(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clf = add_classifier_head(load_gpt2(str(base)), classes=["a", "b", "c"], seed=0)
    noisy(clf, True)  # its last block now differs from the base's
    model = apply_lora(clf, 4, seed=1)
    with pytest.raises(ValueError, match=r"not those of .*give its folder as base="):
        save_adapter(model, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
    trained = save_model(clf, tmp_path / "trained")
    saved = save_adapter(model, tmp_path / "adapter", base=trained)
    torch.testing.assert_close(logits(load_model(saved)), logits(model), rtol=1e-6, atol=1e-6)
    # The folder's norm holds the folded bias of its head; PEFT must get another.
    torch.testing.assert_close(pefts_logits(saved), logits(model), rtol=1e-5, atol=2e-5)
    caplog.clear()
    load_adapter(load_gpt2(str(base)), saved)
    assert "other weights than in training" in caplog.text


@pytest.mark.parametrize("bias", [True, False])
def test_a_saved_classifier_as_base(base: Path, tmp_path: Path, bias: bool) -> None:
    first = noisy(classifier(base), True)
    folder = save_model(first, tmp_path / "first")
    second = add_classifier_head(load_model(folder), classes=["x", "y"], bias=bias, seed=2)
    freeze(second, trainable="head")
    model = noisy(apply_lora(second, 4, seed=1), True)
    saved = save_adapter(model, tmp_path / "adapter")
    again = load_model(saved)
    assert again.classes == ["x", "y"]
    torch.testing.assert_close(logits(again), logits(model), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(pefts_logits(saved, n=2), logits(model), rtol=1e-5, atol=2e-5)
    with pytest.raises(ValueError, match=r"trained for .*'x'.*the classifier is for .*'a'"):
        load_adapter(first, saved)


def test_a_base_without_a_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    gpt2 = noisy(GPT2(CONFIG, seed=1)).requires_grad_(False)
    model = apply_lora(add_classifier_head(gpt2, num_classes=2, seed=0), 4, seed=1)
    saved = save_adapter(model, tmp_path)
    assert "will need base=" in caplog.text
    with pytest.raises(ValueError, match=r"names no base; give base="):
        load_model(saved)
    torch.testing.assert_close(logits(load_model(saved, base=gpt2)), logits(model), rtol=1e-6, atol=1e-6)


# ---- folders --------------------------------------------------------------------------------------------------------


def test_folders_are_not_mixed(base: Path, tmp_path: Path) -> None:
    model = apply_lora(classifier(base), 4, seed=1)
    saved = save_adapter(model, tmp_path / "adapter")
    save_adapter(model, saved)  # again
    with pytest.raises(FileExistsError, match="holds an adapter"):
        save_model(merge_lora(model), saved)
    with pytest.raises(FileExistsError, match="of a model"):
        save_adapter(model, base)
    (saved / "gptclf_adapter.json").unlink()
    with pytest.raises(FileExistsError, match="gptclf did not write"):
        save_adapter(model, saved)
    with pytest.raises(ValueError, match=r"LoRA factors.*save_adapter.*merge_lora"):
        save_model(model, tmp_path / "model")
    with pytest.raises(ValueError, match="no LoRA layers; call apply_lora"):
        save_adapter(classifier(base), tmp_path / "other")


def test_a_save_of_less_leaves_nothing_of_the_one_before(base: Path, tmp_path: Path) -> None:
    save_adapter(noisy(apply_lora(classifier(base), 4, seed=1), True), tmp_path)
    assert (tmp_path / "gptclf_adapter.safetensors").exists()
    model = noisy(apply_lora(classifier(base, bias=False), 4, seed=2), True)
    save_adapter(model, tmp_path)
    assert not (tmp_path / "gptclf_adapter.safetensors").exists()
    torch.testing.assert_close(logits(load_model(tmp_path)), logits(model), rtol=1e-6, atol=1e-6)


def test_an_interrupted_save_leaves_the_old_files(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = noisy(apply_lora(classifier(base), 4, seed=1), True)
    save_adapter(model, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "no space")

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(OSError, match="could not save"):
        save_adapter(noisy(model, True, seed=9), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_files_of_two_saves_are_not_mixed(base: Path, tmp_path: Path) -> None:
    model = noisy(apply_lora(classifier(base), 4, seed=1), True)
    one, two = save_adapter(model, tmp_path / "1"), save_adapter(noisy(model, True, seed=9), tmp_path / "2")
    (two / "adapter_model.safetensors").replace(one / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="different saves"):
        load_model(one)


def test_a_record_that_is_damaged_is_refused(base: Path, tmp_path: Path) -> None:
    saved = save_adapter(apply_lora(classifier(base), 4, seed=1), tmp_path)
    path = saved / "gptclf_adapter.json"
    values = json.loads(path.read_text())
    gpt2 = load_gpt2(str(base))
    damage: list[dict[str, Any]] = [
        {"layers": {"trunk.blocks.9.mlp.up": next(iter(values["layers"].values()))}},
        {"layers": {}},
        {"layers": 3},
        {"digest": None},
        {"bits": 4},
        {"task": {"kind": "single_label", "classes": ["a", "b"]}},
        {"originals": ["head.output.bias", "nothing"]},
    ]
    for changes in damage:
        path.write_text(json.dumps(values | changes))
        with pytest.raises(ValueError, match=r"gptclf_adapter|adapter_model"):
            load_adapter(gpt2, saved)


def test_a_base_matrix_that_trains_is_refused(base: Path, tmp_path: Path) -> None:
    model = apply_lora(classifier(base), 4, seed=1)
    freeze(model, trainable="all")
    with pytest.raises(ValueError, match=r"trains beneath its factors.*merge_lora"):
        save_adapter(model, tmp_path)


def test_the_folder_is_as_small_as_the_adapter(base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = apply_lora(classifier(base, bias=False), 2, blocks=1, seed=1)
    with caplog.at_level(logging.INFO):
        saved = save_adapter(model, tmp_path)
    assert "the final norm" not in caplog.text
    tensors, _ = read_safetensors(saved / "adapter_model.safetensors")
    held = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert sum(tensor.numel() for tensor in tensors.values()) == held
    assert len(dict(lora_layers(model))) == 4
    values = json.loads((saved / "adapter_config.json").read_text())
    assert (values["layers_to_transform"], values["layers_pattern"]) == ([2], "h")
    assert values["modules_to_save"] == ["classifier", "score"]  # the only ones that vLLM takes
