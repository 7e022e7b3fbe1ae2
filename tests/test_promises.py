"""Small promises that other tests take for granted: defaults, limits, folders, texts, and that nothing else changes."""

import json
import logging
import random
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import byte_gpt2, byte_tokenizer, classifier_of
from consoles import Terminal, standard_error
from torch.nn.utils import parameters_to_vector

from gptclf import (
    GPT2,
    Batches,
    GPT2Config,
    SingleLabel,
    TextDataset,
    add_classifier_head,
    apply_lora,
    dataset_accuracy,
    dataset_loss,
    freeze,
    generate,
    load_adapter,
    load_gpt2,
    load_model,
    predict,
    save_adapter,
    save_model,
    train,
    trainable_report,
)
from gptclf.features.store import FeatureStore
from gptclf.progress import Meter
from gptclf.tokenizer.bpe import byte_characters, make_encoding

CONFIG = GPT2Config(vocab_size=257, context_length=40, emb_dim=16, n_heads=2, n_layers=3)
TEXTS = [f"text number {i}" for i in range(20)]


def classifier(**options: Any) -> GPT2:
    """A classifier of two classes that predict takes without a warning."""
    clf = add_classifier_head(
        load_gpt2(CONFIG, weights="random", seed=0, tokenizer=byte_tokenizer()), num_classes=2, seed=1, **options
    )
    clf.head.forget_fresh()
    clf.preparation = labelled().preparation
    return clf


def labelled(n: int = len(TEXTS)) -> TextDataset:
    return TextDataset(TEXTS[:n], [i % 2 for i in range(n)], tokenizer=byte_tokenizer())


def generators() -> list[Any]:
    """The states of the global generators."""
    ours: Any = np.random.get_state()  # noqa: NPY002 - the global one is what must not change
    return [random.getstate(), ours[1].tolist(), torch.get_rng_state().tolist()]


def test_folders_of_states_features_and_models_are_made_with_their_parents(tmp_path: Path) -> None:
    clf, below = classifier(), Path("new") / "nested"
    folders = {name: tmp_path / name / below for name in ("states", "features", "model", "adapter")}
    train(
        clf, labelled(), epochs=1, progress=False, checkpoint_dir=folders["states"], cache_dir=str(folders["features"])
    )
    save_model(clf, folders["model"])
    save_adapter(apply_lora(clf, 1, seed=0), folders["adapter"], base=folders["model"])
    assert all(any(folder.iterdir()) for folder in folders.values())


@pytest.mark.parametrize(("right", "recall"), [(True, 1.0), (False, 0.0)])
def test_recall_of_a_class_with_one_row(right: bool, recall: float) -> None:
    outputs = torch.tensor([[5.0, 0.0], [0.0, 5.0] if right else [5.0, 0.0]])
    found = SingleLabel(["ham", "spam"]).details(outputs, torch.tensor([0, 1]))["per_class"]
    assert (found["recall"][1], found["f1"][1], found["support"][1]) == (recall, recall, 1)


@pytest.mark.parametrize(
    ("lengths", "rows", "tokens"),
    [([n for n in range(1, 61) for _ in range(3)], 128, 8 * 2048), ([1] * 60 + [400] * 60, 128, 8 * 2048)],
    ids=["many rows", "many tokens"],
)
def test_the_last_block_takes_a_limited_number_of_rows_and_tokens_at_once(
    lengths: list[int], rows: int, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = []
    clf = add_classifier_head(byte_gpt2(), num_classes=2, seed=0)
    kind: Any = type(clf.trunk.blocks[-1])
    real = kind.at_position

    def at_position(block: Any, x: torch.Tensor, position: torch.Tensor) -> Any:
        shapes.append(tuple(x.shape[:2]))
        return real(block, x, position)

    monkeypatch.setattr(kind, "at_position", at_position)
    with pytest.warns(UserWarning, match="never trained"):
        predict(clf, [f"{i:04}"[-n:] + "a" * (n - 4) for i, n in enumerate(lengths)])
    assert all(n <= rows and n * length <= tokens for n, length in shapes)
    assert 1 < len(shapes) < 8


def test_many_rows_of_one_length_are_computed_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clf = add_classifier_head(byte_gpt2(), num_classes=2, seed=0)
    sizes = []
    kind: Any = type(clf.trunk.blocks[0].attention)
    real = kind.mix

    def mix(attention: Any, qkv: torch.Tensor, *more: Any) -> Any:
        sizes.append(qkv.shape[0] * qkv.shape[1])
        return real(attention, qkv, *more)

    monkeypatch.setattr(kind, "mix", mix)
    with pytest.warns(UserWarning, match="never trained"):
        predict(clf, [f"{i:0100}" for i in range(150)])
    assert len(sizes) >= 2 * 8
    assert max(sizes) <= 2048


def test_a_state_dict_that_lacks_a_tensor_or_has_one_too_many_is_refused_by_default() -> None:
    clf = classifier()
    state = clf.state_dict()
    with pytest.raises(RuntimeError, match="Unexpected key"):
        clf.load_state_dict({**state, "more": torch.zeros(1)})
    del state["head.output.bias"]
    with pytest.raises(RuntimeError, match="Missing key"):
        clf.load_state_dict(state)


def test_a_tokenizer_with_the_same_tokens_under_other_ids_is_refused() -> None:
    ranks = {bytes([byte]): i for i, byte in enumerate(byte_characters())}
    ranks[b"a"], ranks[b"b"] = ranks[b"b"], ranks[b"a"]
    swapped = make_encoding(ranks)
    data = TextDataset(TEXTS, [0, 1] * 10, tokenizer=swapped)
    with pytest.raises(ValueError, match="encoded with another tokenizer"):
        dataset_loss(classifier(), data)


def test_random_weights_and_factors_without_a_seed_draw_it_from_a_large_range(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    base = load_gpt2(CONFIG, weights="random", seed=0)
    caplog.clear()
    for _ in range(6):
        load_gpt2(CONFIG, weights="random")
        apply_lora(base, 1)
    seeds = [int(record.getMessage().rsplit(" ", 1)[1]) for record in caplog.records if "from seed" in record.message]
    assert len(set(seeds)) == 12
    assert max(seeds) > 2**24


@pytest.mark.parametrize("measure", [dataset_loss, dataset_accuracy])
def test_one_batch_to_measure_is_eight_rows(measure: Callable[..., float]) -> None:
    clf, data = classifier(), TextDataset(TEXTS, [0, 1, 1, 0, 1] * 4, tokenizer=byte_tokenizer())
    by_size = {size: measure(clf, data, num_batches=1, batch_size=size) for size in range(1, 21)}
    assert measure(clf, data, num_batches=1) == by_size[8]
    assert sum(value == by_size[8] for value in by_size.values()) < 6


def test_batches_are_iterated_as_their_epoch_0_and_hold_eight_rows() -> None:
    batches = Batches(labelled(), seed=3)
    rows = [batch.rows.tolist() for batch in batches if batch.rows is not None]
    assert rows == [batch.rows.tolist() for batch in batches.epoch(0) if batch.rows is not None]
    assert [len(row) for row in rows] == [8, 8, 4]


def test_loading_saving_and_predicting_leave_every_global_generator_alone(tmp_path: Path) -> None:
    clf = classifier()
    base = save_model(clf, tmp_path / "model")
    actions: dict[str, Callable[[], Any]] = {
        "save_model": lambda: save_model(clf, tmp_path / "again"),
        "load_model": lambda: load_model(base),
        "save_adapter": lambda: save_adapter(apply_lora(clf, 1, seed=0), tmp_path / "adapter", base=base),
        "load_adapter": lambda: load_adapter(clf, tmp_path / "adapter"),
        "load an adapter with its base": lambda: load_model(tmp_path / "adapter"),
        "predict": lambda: predict(clf, TEXTS),
        "train": lambda: train(clf, labelled(), epochs=1, progress=False),
    }
    for name, action in actions.items():
        before = generators()
        action()
        assert generators() == before, name


@pytest.mark.parametrize(
    ("pooling", "words"), [("mean", "the mean of all tokens"), ("first", "the first token"), ("last", "the last token")]
)
def test_the_card_says_what_the_head_looks_at(pooling: str, words: str, tmp_path: Path) -> None:
    card = (save_model(classifier(pooling=pooling), tmp_path) / "README.md").read_text()
    assert f"The head looks at {words}." in card


@pytest.mark.parametrize(
    ("trainable", "stages"),
    [
        (2, "blocks.3, blocks.4, norm, head"),
        (3, "blocks.2-4, norm, head"),
        ("all", "embed, blocks.0-4, norm, head"),
        (["blocks.0", "blocks.1", "blocks.3", "head"], "blocks.0, blocks.1, blocks.3, head"),
    ],
)
def test_a_report_writes_three_neighbouring_blocks_or_more_as_one(trainable: Any, stages: str) -> None:
    model = classifier_of(CONFIG.replace(n_layers=5), [0, 1], seed=0)
    freeze(model, trainable=trainable)
    assert str(trainable_report(model)).endswith(f"%): {stages}")


def test_features_of_earlier_models_are_deleted_if_the_disk_is_nearly_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = classifier(), classifier()
    with torch.no_grad():
        second.trunk.embed.token.weight.add_(1.0)
    options: dict[str, Any] = {"epochs": 1, "progress": False, "cache_dir": tmp_path}
    train(first, labelled(), **options)
    [old] = tmp_path.glob("features-*/*.safetensors")
    disk = namedtuple("disk", ["free"])
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: disk(old.stat().st_size // 2))
    train(second, labelled(), **options)
    [new] = tmp_path.glob("features-*/*.safetensors")
    assert new.parent != old.parent


def test_a_segment_that_another_process_deletes_at_once_stays_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FeatureStore("a" * 64, tmp_path)
    first, second = b"1" * 16, b"2" * 16
    store.add([first], [1], torch.ones(1, 4))
    monkeypatch.setattr("gptclf.features.store.write_file", lambda path, *more, **options: None)
    store.add([first, second], [1, 2], torch.full((3, 4), 2.0))
    assert store[second].values.tolist() == [[2.0] * 4] * 2


def test_a_resumed_run_announces_the_steps_that_are_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options: dict[str, Any] = {"batch_size": 4, "checkpoint_dir": tmp_path}
    train(classifier(), labelled(), epochs=1, progress=False, **options)
    assert capsys.readouterr().err == ""
    train(classifier(), labelled(), epochs=3, resume=True, **options)
    assert capsys.readouterr().err.startswith("10 steps, about ")


def test_a_bar_is_cleared_when_the_work_ends_not_when_it_is_forgotten() -> None:
    pytest.importorskip("tqdm")
    with standard_error(Terminal()) as terminal:
        with Meter(3, "counting") as meter:
            meter.update(1)
        assert "counting" in terminal.getvalue()
        assert terminal.getvalue().rstrip("\r").rpartition("\r")[2].strip() == ""
    assert meter.done == 1


def test_a_configuration_without_a_context_length_has_1024_tokens(tmp_path: Path) -> None:
    sizes = {"model_type": "gpt2", "vocab_size": 257, "n_embd": 8, "n_head": 2, "n_layer": 1}
    for given, context in [({}, 1024), ({"n_ctx": 48}, 48), ({"n_ctx": 48, "n_positions": 64}, 64)]:
        (tmp_path / "config.json").write_text(json.dumps({**sizes, **given}))
        assert load_gpt2(tmp_path, weights="random", seed=0).config.context_length == context


def test_a_head_bias_that_folds_only_nearly_is_not_exported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clf = classifier()
    output: Any = clf.head.output
    with torch.no_grad():
        output.weight[1] = output.weight[0]
        output.bias.copy_(torch.tensor([0.5, 0.5 + 1e-4]))
    save_model(clf, tmp_path)
    assert "bias cannot be folded" in caplog.text
    assert not (tmp_path / "config.json").exists()
    vectors = [parameters_to_vector(model.state_dict().values()) for model in (clf, load_model(tmp_path))]
    assert torch.equal(*vectors)


def test_a_head_bias_that_folds_to_rounding_is_exported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clf = classifier()
    with torch.no_grad():
        clf.head.output.bias.copy_(torch.tensor([0.1, -0.3]))  # type: ignore[operator, union-attr]
    save_model(clf, tmp_path)
    assert (tmp_path / "config.json").exists(), caplog.text


def test_a_top_p_of_1_keeps_every_token() -> None:
    gpt2 = byte_gpt2()
    options: dict[str, Any] = {"max_new_tokens": 8, "temperature": 1.0, "seed": 0}
    assert generate(gpt2, "to be", top_p=1, **options) == generate(gpt2, "to be", **options)
