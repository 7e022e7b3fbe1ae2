"""Small promises of adapters, quantised models and tasks: defaults, limits, modes, folders and what a user reads."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import byte_tokenizer

from gptclf import (
    GPT2,
    GPT2Config,
    MultiLabel,
    Preparation,
    Regression,
    TextDataset,
    add_classifier_head,
    apply_lora,
    evaluate,
    freeze,
    load_adapter,
    load_gpt2,
    load_model,
    merge_lora,
    predict_many,
    quantize,
    save_adapter,
    save_model,
    trainable_report,
)
from gptclf.gpt2.initialise import seeded
from gptclf.gpt2.lora_linear import lora_layers

CONFIG = GPT2Config(vocab_size=257, context_length=40, emb_dim=16, n_heads=2, n_layers=3)


def classifier(task: Any = None) -> GPT2:
    gpt2 = load_gpt2(CONFIG, weights="random", seed=0, tokenizer=byte_tokenizer())
    given = {"classes": ["ham", "spam"]} if task is None else {"task": task}
    clf = add_classifier_head(gpt2, seed=5, **given)
    clf.head.forget_fresh()
    clf.preparation = Preparation()
    return clf


def test_factors_have_rank_16_and_scale_1_unless_told_otherwise() -> None:
    layers = dict(lora_layers(apply_lora(classifier(), seed=0)))
    assert {(layer.rank, layer.alpha, layer.scale, layer.dropout.p) for layer in layers.values()} == {(16, 16, 1, 0)}
    assert len(layers) == 3 * 4


def test_a_rank_may_be_as_large_as_the_matrix_is_wide_and_no_larger() -> None:
    clf = classifier()
    [(_, layer)] = lora_layers(apply_lora(clf, 48, targets="blocks.0.attention.qkv", seed=0))
    assert layer.rank == 48
    with pytest.raises(ValueError, match=r"rank is 49, but .* is only 48 wide; give 1 to 48"):
        apply_lora(clf, 49, targets="blocks.0.attention.qkv", seed=0)


def test_dropout_of_factors_may_be_1_and_leaves_the_base_alone_in_training() -> None:
    clf = classifier()
    adapted = apply_lora(clf, 2, dropout=1, seed=0).train()
    with torch.no_grad():
        for _, layer in lora_layers(adapted):
            layer.lora_B.weight.add_(1.0)
        ids = torch.randint(0, 250, (2, 7), generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(adapted(ids), clf(ids))
        assert not torch.allclose(adapted.eval()(ids), clf(ids), atol=1e-4)


@pytest.mark.parametrize("training", [False, True])
def test_new_models_over_the_same_tensors_have_the_mode_of_the_first(training: bool) -> None:
    clf = classifier().train(training)
    adapted = apply_lora(clf, 2, seed=0)
    for model in (adapted, quantize(adapted), merge_lora(adapted), merge_lora(quantize(adapted))):
        assert {part.training for part in model.modules()} == {training}
    assert {part.training for part in clf.modules()} == {training}


def test_a_loaded_adapter_is_in_eval_mode_whatever_the_mode_of_its_base(tmp_path: Path) -> None:
    clf = classifier()
    folder = save_adapter(apply_lora(clf, 2, seed=0), tmp_path / "adapter")
    assert not any(part.training for part in load_adapter(clf.train(), folder).modules())
    assert clf.training


def test_factors_are_not_drawn_from_the_stream_of_a_head_with_the_same_seed() -> None:
    [(_, layer)] = lora_layers(apply_lora(classifier(), 2, targets="head", seed=5))
    _, of_head = seeded(5, stream=1)
    assert not torch.equal(layer.lora_A.weight, torch.empty(2, 16).uniform_(-0.25, 0.25, generator=of_head))
    _, of_factors = seeded(5, stream=2)
    assert torch.equal(layer.lora_A.weight, torch.empty(2, 16).uniform_(-0.25, 0.25, generator=of_factors))


def test_what_was_adapted_and_quantised_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    quantize(apply_lora(classifier(), 2, blocks=1, seed=77))
    assert "LoRA on 4 matrices, drawn from seed 77" in caplog.messages
    assert "12 matrices quantised to nf4" in caplog.messages


def test_a_report_counts_a_quantised_matrix_as_its_numbers() -> None:
    clf = classifier()
    freeze(clf, trainable="head")
    small = quantize(clf, "int8")
    assert str(trainable_report(small)) == str(trainable_report(clf))
    assert trainable_report(small).total == sum(p.numel() for p in clf.parameters())


def test_cards_say_how_matrices_are_kept_and_where_no_private_path_is(tmp_path: Path) -> None:
    clf = classifier()
    base = save_model(clf, tmp_path / "base")
    freeze(clf, trainable="head")
    small = (save_model(quantize(clf), tmp_path / "small") / "README.md").read_text()
    assert "Matrices of its blocks are kept in `nf4`." in small
    assert "Or with `transformers`, `bitsandbytes` and `accelerate`:" in small
    adapted = apply_lora(load_model(base), {"qkv": 2, "*": 4}, 8, targets=["qkv", "up"], seed=0)
    card = (save_adapter(adapted, tmp_path / "adapter", base=base) / "README.md").read_text()
    assert "| base | `a local folder` |" in card
    assert "| bits of the base | `float32` |" in card
    assert "| matrices with factors | `6: rank 2, scale 4, rank 4, scale 2` |" in card
    assert str(tmp_path) not in card


def test_a_base_without_a_name_is_warned_of_once_it_is_saved(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    adapted = apply_lora(classifier(), 2, seed=0)
    save_adapter(adapted, tmp_path)
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert any("the base has no name" in message and "save_adapter(base=) names it" in message for message in warned)


def test_an_adapter_saved_over_another_leaves_none_of_its_files(tmp_path: Path) -> None:
    first = apply_lora(classifier(), 2, seed=0)
    save_adapter(first, tmp_path)
    assert (tmp_path / "adapter_config.json").exists()
    other = apply_lora(add_classifier_head(classifier(), num_classes=2, pooling="mean", seed=0), 2, seed=0)
    save_adapter(other, tmp_path)
    assert not any((tmp_path / name).exists() for name in ("adapter_config.json", "adapter_model.safetensors"))
    (tmp_path / "notes.txt").write_text("mine")
    save_adapter(first, tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_the_error_of_several_models_names_the_one_at_fault() -> None:
    clf = classifier()
    language_model = load_gpt2(CONFIG, weights="random", seed=0)
    with pytest.raises(TypeError, match=r"^models\[1\]: "):
        predict_many([clf, language_model], ["a text"])


def test_a_class_is_in_the_answer_from_a_probability_of_one_half_on() -> None:
    task = MultiLabel(["a", "b", "c"])
    outputs = torch.tensor([[0.0, -0.3, 0.3], [-1.0, -1.0, -1.0]])
    assert task.answers(outputs) == [["a", "c"], []]
    assert MultiLabel(["a", "b", "c"], 1.0).answers(torch.tensor([[200.0, 5.0, 0.0]])) == [["a"]]
    assert task.confidences(outputs)[0] == 0.5


@pytest.mark.parametrize(("n", "lines"), [(20, True), (21, False)])
def test_a_report_has_a_line_per_class_up_to_20_classes(n: int, lines: bool) -> None:
    clf = classifier(MultiLabel([f"class {i}" for i in range(n)]))
    data = TextDataset(["one text"], [["class 0"]], tokenizer=byte_tokenizer(), task=clf.task)
    text = str(evaluate(clf, data))
    assert ("class 19" in text) is lines
    assert text.splitlines()[0].endswith(" on 1 texts")
    assert "micro-F1 " in text
    assert "macro-F1 " in text


def test_measures_of_one_row_are_numbers() -> None:
    multi = MultiLabel(["a", "b"])
    found = multi.scores(torch.tensor([[2.0, -2.0]]), torch.tensor([[1.0, 0.0]]))
    assert (found["accuracy"], found["micro_f1"], found["macro_f1"]) == (1.0, 1.0, 0.5)
    assert multi.scores(torch.tensor([[-2.0, -2.0]]), torch.tensor([[0.0, 0.0]]))["micro_f1"] == 0.0
    assert Regression().scores(torch.tensor([[2.0]]), torch.tensor([[2.0]])) == {"loss": 0.0, "mae": 0.0, "r2": 1.0}
    assert Regression().scores(torch.tensor([[2.0]]), torch.tensor([[3.0]])) == {"loss": 1.0, "mae": 1.0, "r2": 0.0}


def test_cards_of_tasks_name_thresholds_and_numbers(tmp_path: Path) -> None:
    folders = {
        "The class's threshold (0.25, 0.5).": MultiLabel(["a", "b", "c"], [0.5, 0.25, 0.5]),
        "A GPT-2 that estimates a number for a text": Regression(),
        "A GPT-2 that estimates 3 numbers for a text": Regression(3),
    }
    for i, (words, task) in enumerate(folders.items()):
        card = (save_model(classifier(task), tmp_path / str(i)) / "README.md").read_text()
        assert words.removeprefix("The ") in card


def test_errors_of_measurements_count_the_numbers_that_are_needed() -> None:
    with pytest.raises(ValueError, match=r"label 0 is \[1, 2\]; it must be 1 number, as"):
        Regression().targets([[1, 2]])
    with pytest.raises(ValueError, match=r"label 1 is 3; it must be 2 numbers, as"):
        Regression(2).targets([[1, 2], 3])
    assert (Regression().summary, Regression(2).summary) == ("1 measurement", "2 measurements")


def test_a_measurement_may_be_the_largest_float32_and_no_larger() -> None:
    largest = float(np.finfo(np.float32).max)
    assert Regression().targets([largest, -largest]).tolist() == [[largest], [-largest]]
    with pytest.raises(ValueError, match="label 0 is 1e"):
        Regression().targets([1e39])
