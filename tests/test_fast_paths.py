"""The fast path is taken: calls and operators counted, nothing timed."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import byte_tokenizer

from gptclf import (
    GPT2,
    GPT2Config,
    TextDataset,
    TextWindows,
    add_classifier_head,
    apply_lora,
    freeze,
    load_gpt2,
    load_model,
    predict,
    predict_many,
    quantize,
    save_model,
    train,
    train_lm,
)
from gptclf.gpt2 import lora_linear
from gptclf.gpt2.arithmetic import Arithmetic
from gptclf.gpt2.learner import Learner
from gptclf.weights.book import to_book

CONFIG = GPT2Config(vocab_size=257, context_length=40, emb_dim=32, n_heads=2, n_layers=3)
TEXTS = [f"text number {i}" for i in range(20)]
FUSED, LAID_OUT = "mkldnn::_linear_pointwise", "mkldnn::_reorder_linear_weight"
fused = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this release of torch has no fused operators"
)


def language_model(**changes: Any) -> GPT2:
    return load_gpt2(CONFIG.replace(**changes), weights="random", seed=0, tokenizer=byte_tokenizer())


def classifier(seed: int = 1, gpt2: GPT2 | None = None) -> GPT2:
    clf = add_classifier_head(gpt2 or language_model(), num_classes=2, seed=seed)
    clf.head.forget_fresh()
    clf.preparation = labelled().preparation
    return clf


def labelled() -> TextDataset:
    return TextDataset(TEXTS, [i % 2 for i in range(len(TEXTS))], tokenizer=byte_tokenizer())


def calls(owner: Any, names: str, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Calls of methods, with gradients and without, counted as they happen."""
    found: Counter[str] = Counter()
    for name in names.split():
        real = getattr(owner, name)

        def counted(*given: Any, _name: str = name, _real: Any = real, **options: Any) -> Any:
            found[_name] += 1
            found[f"{_name} with gradients"] += torch.is_grad_enabled()
            return _real(*given, **options)

        monkeypatch.setattr(owner, name, counted)
    return found


def operators(action: Callable[[], Any]) -> Counter[str]:
    """The operators that torch runs, by name."""
    with torch.autograd.profiler.profile() as profile:
        action()
    return Counter(event.name for event in profile.function_events)


def test_predicting_takes_packed_blocks_and_one_position_of_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    clf = classifier()
    called = calls(type(clf.trunk.blocks[0]), "at_position", monkeypatch)
    found = operators(lambda: predict(clf, TEXTS))
    assert called["at_position"] == 1
    assert found["aten::scaled_dot_product_attention"] == 2 * 2  # whole blocks, and lengths of texts
    assert found["aten::embedding"] == 0  # which the model's own call takes


@fused
def test_predicting_in_bfloat16_takes_fused_operators_with_the_activation_in_them() -> None:
    clf = classifier()
    predict(clf, TEXTS[:1], precision="bfloat16")
    found = operators(lambda: predict(clf, TEXTS, precision="bfloat16"))
    assert found[FUSED] == found[LAID_OUT] == 2 * 4
    assert found["aten::gelu"] == 1  # in the last block, which computes one position in float32


def test_texts_are_encoded_once_for_models_that_prepare_them_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    gpt2 = language_model()
    models = [classifier(seed, gpt2) for seed in (1, 2, 3)]
    found = calls(type(gpt2.tokenizer), "encode_ordinary encode_ordinary_batch", monkeypatch)
    predict(models[0], TEXTS)
    alone = dict(found)
    predict_many(models, TEXTS)
    assert alone
    assert found == {name: 2 * number for name, number in alone.items()}


def test_models_over_one_trunk_compute_its_matrices_once() -> None:
    gpt2 = language_model()
    models = [classifier(seed, gpt2) for seed in (1, 2, 3)]
    one, three = (operators(lambda: predict_many(models[:n], TEXTS)) for n in (1, 3))  # noqa: B023 - called at once
    assert three["aten::linear"] == one["aten::linear"] + 2
    assert one["aten::linear"] > 2 * 4


def test_factors_are_trained_by_one_low_rank_product_each(monkeypatch: pytest.MonkeyPatch) -> None:
    adapted = apply_lora(classifier(), 2, seed=0)
    found = calls(lora_linear, "low_rank_product", monkeypatch)
    train(adapted, labelled(), epochs=1, batch_size=20, progress=False)
    # The last block asks query, key and value for parts of their product.
    assert found["low_rank_product with gradients"] == 3 * 4 - 1


@pytest.mark.parametrize("recompute", [False, True])
def test_frozen_matrices_are_laid_out_once_for_all_steps_unless_memory_is_short(
    recompute: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = calls(Arithmetic, "prepare", monkeypatch)
    options: dict[str, Any] = {"epochs": 1, "progress": False, "precision": "bfloat16", "recompute": recompute}
    laid_out = []
    for size in (20, 7):
        found.clear()
        train(apply_lora(classifier(), 2, seed=0), labelled(), batch_size=size, **options)
        laid_out.append(found["prepare"])
    measured = 2 * 4  # each whole block's matrices, when the run is measured at its end
    assert laid_out[0] == laid_out[1]
    assert (laid_out[0] > measured) is not recompute


def test_a_quantised_layer_is_dequantised_once_for_all_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    small = quantize(classifier(), "int8")
    block: Any = small.trunk.blocks[0]
    found = calls(type(block.mlp.up), "matrix prepared", monkeypatch)
    predict(small, TEXTS)
    assert found["prepared"] == 2 * 4
    assert found["matrix"] == found["prepared"]


@pytest.mark.parametrize(("recompute", "passes"), [(False, 1), (True, 2)])
def test_language_models_recompute_each_block_in_training_alone(
    recompute: bool, passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpt2 = language_model()
    freeze(gpt2, trainable="all")
    windows = TextWindows("to be or not to be " * 20, tokenizer=gpt2.tokenizer, length=16)
    found = calls(type(gpt2.trunk.blocks[0]), "forward", monkeypatch)
    history = train_lm(gpt2, windows, epochs=1, recompute=recompute, progress=False)
    assert found["forward with gradients"] == passes * 3 * len(history.steps)
    found.clear()
    with torch.enable_grad():
        gpt2(torch.zeros(1, 4, dtype=torch.int64))
    assert found["forward"] == 3


@pytest.mark.parametrize("trainable", ["all", ["*.bias"]])
def test_gradients_of_biases_are_not_rounded_to_bfloat16(trainable: Any) -> None:
    clf = classifier()
    freeze(clf, trainable=trainable)
    learner = Learner(clf, training=True, keep_gradients=True)
    ids = torch.randint(0, 250, (8, 11), generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        learner(ids).float().square().sum().backward()
    for name, parameter in clf.named_parameters():
        if name.startswith("trunk.blocks.0.") and name.endswith(("qkv.bias", "out.bias", "up.bias", "down.bias")):
            assert parameter.grad is not None, name
            assert not torch.equal(parameter.grad, parameter.grad.bfloat16().float()), name


def test_a_hook_within_an_untied_output_layer_is_called() -> None:
    gpt2 = language_model(tied=False)
    freeze(gpt2, trainable="all")
    called = []
    gpt2.head.output.register_forward_hook(lambda *_: called.append(1))  # type: ignore[union-attr]
    windows = TextWindows("to be or not to be " * 20, tokenizer=gpt2.tokenizer, length=16)
    history = train_lm(gpt2, windows, epochs=1, progress=False)
    assert len(called) > len(history.steps)  # in steps, and in measurements


@pytest.mark.parametrize("load", [load_gpt2, load_model])
def test_the_tokenizer_beside_a_file_of_the_book_belongs_to_it(load: Callable[..., GPT2], tmp_path: Path) -> None:
    model = language_model(tied=False) if load is load_gpt2 else classifier()
    folder = save_model(model, tmp_path / "saved")
    for name in ("vocab.json", "merges.txt"):
        (folder / name).rename(tmp_path / name)
    torch.save(to_book(dict(model.named_parameters()), model.config), tmp_path / "model.pth")
    loaded = load(tmp_path / "model.pth", settings={"n_heads": 2})
    assert loaded.tokenizer.encode_ordinary("ab") == byte_tokenizer().encode_ordinary("ab")
