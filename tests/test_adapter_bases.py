"""Which base goes with an adapter, bit for bit, and parts of adapters that only some readers see."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import byte_tokenizer, randomised
from torch import Tensor
from transformers import GPT2ForSequenceClassification

from gptclf import (
    GPT2,
    ClassifierHead,
    GPT2Config,
    Head,
    SingleLabel,
    add_classifier_head,
    apply_lora,
    freeze,
    load_adapter,
    load_gpt2,
    load_model,
    predict,
    save_adapter,
    save_model,
)

IDS = torch.randint(256, (3, 17), generator=torch.Generator().manual_seed(5))
CONFIG, RECORD = "adapter_config.json", "gptclf_adapter.json"


@pytest.fixture
def base(small_gpt2: GPT2, tmp_path: Path) -> GPT2:
    """A language model loaded from a folder, so that its matrices are transposed views on a file."""
    small_gpt2.tokenizer = byte_tokenizer()
    return load_gpt2(save_model(small_gpt2, tmp_path / "base"))


def adapted(base: GPT2, *, bias: bool = True, pooling: str = "last", **options: Any) -> GPT2:
    clf = add_classifier_head(base, classes=["ham", "spam", "egg"], bias=bias, pooling=pooling, seed=1)
    return trained(apply_lora(clf, **{"rank": 3, "seed": 1, **options}))


def trained(model: GPT2) -> GPT2:
    """Add noise to the trainable parameters: B starts at 0, which hides mistakes."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    return model.eval()


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found = model(IDS)
    return found if isinstance(found, Tensor) else found.logits


def assert_same(first: GPT2, second: GPT2) -> None:
    """The same parameters, those that train, and answers, bit for bit."""
    ours, theirs = (dict(model.named_parameters()) for model in (first, second))
    assert list(ours) == list(theirs)
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert [p.requires_grad for p in ours.values()] == [p.requires_grad for p in theirs.values()]
    assert torch.equal(logits(first), logits(second))


OPTIONS: dict[str, dict[str, Any]] = {
    "all": {},
    "no bias": {"bias": False},
    "last block": {"blocks": 1, "targets": ["qkv", "down"]},
    "head": {"targets": ["up", "head"]},
    "mean": {"pooling": "mean", "targets": ["qkv", "head"]},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_load_model_gives_the_answers_bit_for_bit(base: GPT2, tmp_path: Path, options: Any) -> None:
    clf = adapted(base, **options)
    assert_same(load_model(save_adapter(clf, tmp_path / "adapter")), clf)


def test_the_bundled_model_is_found_by_its_name(tmp_path: Path) -> None:
    clf = trained(apply_lora(add_classifier_head(load_gpt2("nano"), num_classes=2, seed=1), rank=2, seed=1))
    again = load_model(save_adapter(clf, tmp_path))
    assert_same(again, clf)
    assert predict(again, ["a text"]) == predict(clf, ["a text"])


def test_a_base_may_be_relative_to_the_adapter(base: GPT2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clf = adapted(base)
    folder = save_adapter(clf, tmp_path / "adapter", base="../base")
    monkeypatch.chdir("/")
    assert_same(load_model(folder), clf)
    changed = adapted(base)
    with torch.no_grad():
        changed.trunk.embed.token.weight.data = changed.trunk.embed.token.weight + 1
    with pytest.raises(ValueError, match=r"not those of \.\./base"):
        save_adapter(changed, tmp_path / "adapter", base="../base")


def test_the_place_that_was_loaded_counts_if_the_published_weights_are_others(tmp_path: Path) -> None:
    """A classifier fine-tuned from published weights knows their name, but an adapter on it goes on its own folder."""
    first = trained(add_classifier_head(load_gpt2("nano"), classes=["ham", "spam"], seed=3))
    clf = trained(apply_lora(load_model(save_model(first, tmp_path / "first")), rank=2, seed=1))
    assert clf.base == "nano"
    folder = save_adapter(clf, tmp_path / "adapter")
    assert json.loads((folder / RECORD).read_text())["base"] == str((tmp_path / "first").resolve())
    assert_same(load_model(folder), clf)


def test_a_base_without_query_key_and_value_biases(odd_config: GPT2Config, tmp_path: Path) -> None:
    model = randomised(GPT2(odd_config.replace(qkv_bias=False), seed=7)).requires_grad_(False)
    clf = adapted(model, bias=False)
    assert_same(load_model(save_adapter(clf, tmp_path / "a", base=save_model(model, tmp_path / "base"))), clf)


def test_an_adapter_and_its_base_in_a_cache_that_was_never_online(
    base: GPT2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clf = adapted(base)
    with caplog.at_level(logging.INFO):
        folder = save_adapter(clf, tmp_path / "adapter", base="someone/base")
    assert "were not compared with someone/base" in caplog.text
    assert 'base_model: "someone/base"' in (folder / "README.md").read_text()
    for name, source in (("base", tmp_path / "base"), ("adapter", folder)):
        cached = tmp_path / "cache" / f"models--someone--{name}"
        shutil.copytree(source, cached / "snapshots" / ("a" * 40))
        (cached / "refs").mkdir()
        (cached / "refs" / "main").write_text("a" * 40)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    again = load_model("someone/adapter")
    assert_same(again, clf)
    with torch.no_grad():
        again.trunk.embed.position.weight[0, 0] += 1
    with pytest.raises(ValueError, match="not those of someone/base"):
        save_adapter(again, tmp_path / "again")


@pytest.mark.parametrize("targets", ["up", ["up", "head"]])
def test_an_untied_language_models_matrix_may_train_or_have_factors(
    odd_config: GPT2Config, tmp_path: Path, targets: Any
) -> None:
    save_model(randomised(GPT2(odd_config.replace(tied=False), seed=7)), tmp_path / "base")
    model = apply_lora(load_gpt2(tmp_path / "base"), rank=2, targets=targets, seed=1)
    if targets == "up":
        freeze(model, trainable=["*.lora_*", "head"])
    trained(model)
    folder = save_adapter(model, tmp_path / "adapter")
    assert_same(load_model(folder), model)
    values = json.loads((folder / CONFIG).read_text())
    assert "lm_head" in (values["modules_to_save"] or []) + values["target_modules"]
    peft: Any = pytest.importorskip("peft")
    theirs = peft.AutoPeftModelForCausalLM.from_pretrained(folder).eval()
    assert torch.allclose(logits(theirs), logits(model), atol=1e-5)


class Middle(Head):
    """A head of the user's own, with a buffer."""

    def __init__(self, emb_dim: int, n_outputs: int) -> None:
        super().__init__()
        self.output = ClassifierHead(emb_dim, n_outputs).output
        self.mean: Tensor
        self.register_buffer("mean", torch.zeros(emb_dim))

    def forward(self, hidden: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self.output(hidden[:, 0] - self.mean)  # type: ignore[no-any-return]


class Odd(SingleLabel):
    """A task of the user's own."""

    kind = "odd"


@pytest.mark.parametrize("targets", ["up", ["up", "head"]])
def test_a_classifier_brings_a_head_and_a_task_of_ones_own(base: GPT2, tmp_path: Path, targets: Any) -> None:
    task = Odd(["a", "b"])
    plain = add_classifier_head(base, task=task, head=Middle)
    clf = trained(apply_lora(plain, rank=2, targets=targets, seed=1))
    dict(clf.named_buffers())["head.mean"] += 0.5
    folder = save_adapter(clf, tmp_path / "adapter")
    assert_same(load_model(folder, head=Middle, task=task), clf)
    assert torch.allclose(logits(load_adapter(plain, folder)), logits(clf), atol=1e-5)
    assert float(dict(plain.named_buffers())["head.mean"].sum()) == 0
    with pytest.raises(ValueError, match="a task of the kind 'odd'"):
        load_adapter(base, folder)


@pytest.mark.parametrize("extras", [["norm"], ["norm", "trunk.*.bias"]])
def test_biases_and_a_norm_train_without_whole_matrices(base: GPT2, tmp_path: Path, extras: list[str]) -> None:
    clf = adapted(base, bias=False)
    freeze(clf, trainable=["*.lora_*", "head", *extras])
    trained(clf)
    again = load_model(save_adapter(clf, tmp_path / "adapter"))
    assert_same(again, clf)
    assert json.loads((tmp_path / "adapter" / CONFIG).read_text())["modules_to_save"].count("transformer.ln_f") == 1
    assert (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size < 40_000
    freeze(again, trainable="lora")  # what the adapter brought stays with it
    assert torch.equal(logits(load_model(save_adapter(again, tmp_path / "again"))), logits(clf))


def test_peft_sees_the_norm_in_which_a_bias_is_folded(base: GPT2, tmp_path: Path) -> None:
    """Over a folder of save_model's, PEFT's own adapter goes on the folded norm, and ours brings its own."""
    peft: Any = pytest.importorskip("peft")
    clf = trained(add_classifier_head(base, num_classes=3, seed=1))
    save_model(clf, tmp_path / "first")
    for extras in ({"modules_to_save": ["wpe"]}, {"bias": "all", "modules_to_save": ["ln_f"]}):
        options = peft.LoraConfig(task_type="SEQ_CLS", r=2, fan_in_fan_out=True, **extras)
        first = GPT2ForSequenceClassification.from_pretrained(tmp_path / "first", pad_token_id=256)
        theirs = peft.get_peft_model(first, options)
        with torch.no_grad():
            for parameter in theirs.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter), alpha=0.3)
        theirs.eval().save_pretrained(tmp_path / "theirs")
        assert torch.allclose(logits(load_model(tmp_path / "theirs")), logits(theirs), atol=1e-5)
    for bias in (True, False):
        ours = trained(
            apply_lora(add_classifier_head(load_model(tmp_path / "first"), num_classes=3, bias=bias), rank=2)
        )
        save_adapter(ours, tmp_path / "ours", base=tmp_path / "first")
        first = GPT2ForSequenceClassification.from_pretrained(tmp_path / "first", pad_token_id=256)
        again = peft.PeftModel.from_pretrained(first, tmp_path / "ours").eval()
        assert torch.allclose(logits(again), logits(ours), atol=1e-5)
        assert_same(load_model(tmp_path / "ours"), ours)


@pytest.mark.parametrize("key", ["trainable", "extras"])
def test_a_record_that_names_what_the_model_lacks(base: GPT2, tmp_path: Path, key: str) -> None:
    folder = save_adapter(adapted(base), tmp_path / "adapter")
    values = json.loads((folder / RECORD).read_text())
    (folder / RECORD).write_text(json.dumps({**values, key: ["trunk.norm.gain"]}))
    with pytest.raises(ValueError, match=rf"{key} names \['trunk.norm.gain'\]"):
        load_adapter(base, folder, verify=False)


def test_a_head_of_one_row_is_a_regression_and_tensors_of_another_model(base: GPT2, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = save_adapter(adapted(base, bias=False), tmp_path / "adapter")
    (folder / RECORD).unlink()  # as PEFT writes it
    tensors = load_file(folder / "adapter_model.safetensors")
    name = "base_model.model.score.weight"
    save_file({**tensors, name: tensors[name][:1].clone()}, folder / "adapter_model.safetensors")
    assert type(load_adapter(base, folder).task).__name__ == "Regression"  # as in transformers
    bert = "base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.weight"
    save_file({**tensors, bert: torch.ones(3, 24)}, folder / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=f"1 unexpected: {bert}. The names look like BERT's"):
        load_adapter(base, folder)
    save_file({**tensors, name + "s": torch.ones(3)}, folder / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="unexpected") as caught:
        load_adapter(base, folder)
    assert "load_adapter" not in str(caught.value)  # no advice to do what was just done
