"""The frozen part computed once gives the training that computing it at every step gives."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import randomised

from gptclf import Batches, TextDataset, add_classifier_head, freeze, frozen_depth, load_gpt2, predict_proba, train
from gptclf.features import prefix
from gptclf.features.prefix import compute_features, reusable_depth
from gptclf.gpt2.model import GPT2
from gptclf.gpt2.stages import Suffix
from gptclf.gpt2.trunk import Block

TEXTS = ["win", "a longer text about nothing", "", "call 07700 900123 now", "see you", "ok"] * 3
LABELS = ["spam", "ham", "ham", "spam", "ham", "spam"] * 3


def classifier(trainable: str | int, pooling: str = "last", dropout: float = 0.0) -> GPT2:
    gpt2 = randomised(load_gpt2("nano", dropout=dropout))
    clf = add_classifier_head(gpt2, classes=["ham", "spam"], pooling=pooling, seed=3)
    freeze(clf, trainable=trainable)
    return clf


def labelled(clf: GPT2) -> TextDataset:
    return TextDataset(TEXTS, LABELS, tokenizer=clf.tokenizer, classes=clf.classes)


def count_blocks(clf: GPT2) -> dict[int, int]:
    """How often each block runs, filled in as the model is used."""
    runs = dict.fromkeys(range(clf.config.n_layers), 0)

    def counter(i: int) -> None:
        def count(*_: object) -> None:
            runs[i] += 1

        clf.trunk.blocks[i].register_forward_hook(count)

    for i in runs:
        counter(i)
    return runs


@pytest.mark.parametrize("pooling", ["last", "first", "mean", "max"])
@pytest.mark.parametrize("trainable", ["head", "last_block", 2])
def test_suffix_on_features_equals_the_whole_model_on_ids(trainable: str | int, pooling: str) -> None:
    clf = classifier(trainable, pooling)
    data = labelled(clf)
    depth = frozen_depth(clf)
    features = compute_features(clf, data, depth, precision="float32")
    rows = np.array([4, 1, 2, 9])
    ids, kept = Batches(data).take(rows), Batches(features).take(rows)
    suffix = Suffix(clf, depth)
    torch.testing.assert_close(suffix(kept.inputs, kept.lengths), clf(ids.inputs, ids.lengths), rtol=1e-5, atol=1e-5)
    assert torch.equal(ids.targets, kept.targets) if ids.targets is not None and kept.targets is not None else False


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("trainable", ["head", "last_block", 2])
def test_training_with_and_without_reuse_has_the_same_losses(trainable: str | int, pooling: str) -> None:
    losses, answers, scores = [], [], []
    for reuse in (True, False):
        clf = classifier(trainable, pooling)
        data = labelled(clf)
        history = train(clf, data, data, epochs=3, batch_size=4, lr=1e-3, reuse_frozen=reuse, progress=False)
        losses.append([step.loss for step in history.steps])
        scores.append([(s.train_loss, s.val_accuracy) for s in history.epochs])
        answers.append(predict_proba(clf, TEXTS))
    np.testing.assert_allclose(losses[0], losses[1], rtol=0, atol=1e-5)
    np.testing.assert_allclose(np.array(scores[0]), np.array(scores[1]), rtol=0, atol=1e-5)
    np.testing.assert_allclose(answers[0], answers[1], rtol=0, atol=1e-4)


def test_frozen_blocks_run_once_however_many_epochs() -> None:
    runs = []
    for epochs in (1, 4):
        clf = classifier("last_block")
        counted = count_blocks(clf)
        train(clf, labelled(clf), epochs=epochs, batch_size=4, progress=False)
        runs.append(counted)
    assert runs[0][0] == runs[1][0] == 1
    assert runs[1][2] > runs[0][2] > 1


def test_without_reuse_frozen_blocks_run_at_every_step() -> None:
    clf = classifier("last_block")
    counted = count_blocks(clf)
    train(clf, labelled(clf), epochs=2, batch_size=6, reuse_frozen=False, progress=False)
    assert counted[0] == counted[2]


def test_suffix_has_the_parameters_of_the_model_under_the_same_names() -> None:
    clf = classifier("last_block")
    names = dict(clf.named_parameters())
    viewed = dict(Suffix(clf, frozen_depth(clf)).named_parameters())
    assert set(viewed) == {name for name, parameter in names.items() if parameter.requires_grad}
    assert all(parameter is names[name] for name, parameter in viewed.items())
    assert [type(m) for m in Suffix(clf, frozen_depth(clf)).modules()].count(Block) == 1


def test_only_the_head_trains_on_one_vector_per_text() -> None:
    clf = classifier("head")
    data = labelled(clf)
    assert len(compute_features(clf, data, frozen_depth(clf), precision="float32").values) == len(data)
    clf = classifier("head", "mean")
    assert len(compute_features(clf, data, frozen_depth(clf), precision="float32").values) == len(data.ids)


def test_features_of_a_subset_are_those_rows() -> None:
    clf = classifier("last_block")
    features = compute_features(clf, labelled(clf), frozen_depth(clf), precision="float32")
    part = features.subset([3, 1])
    torch.testing.assert_close(part.padded(np.array([1])), features.padded(np.array([1])))
    assert part.targets(["ham", "spam"]).tolist() == [1, 0]
    assert len(part) == 2


def test_nothing_is_reused_where_everything_trains() -> None:
    assert reusable_depth(classifier("all"), 100) == 0
    assert reusable_depth(classifier(3), 100) == 0  # the embedding alone is not worth keeping


def test_dropout_turns_reuse_off_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    assert reusable_depth(classifier("last_block", dropout=0.1), 100) == 0
    assert "dropout is 0.1" in caplog.text


def test_too_little_memory_turns_reuse_off_and_says_so(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clf = classifier("last_block")
    monkeypatch.setattr(prefix, "_physical_memory", lambda: 4 * 4 * 64 * 1000.0)
    assert reusable_depth(clf, 1000) == frozen_depth(clf)
    assert reusable_depth(clf, 1001) == 0
    assert "of 1001 tokens" in caplog.text


def test_computing_features_leaves_modes_and_gradients_alone(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    clf = classifier("last_block")
    clf.train()
    compute_features(clf, labelled(clf), frozen_depth(clf), precision="float32")
    assert clf.training
    assert all(module.training for module in clf.modules())
    assert all(parameter.grad is None for parameter in clf.parameters())


def test_a_saved_model_trained_on_features_is_whole(tmp_path: Path) -> None:
    from gptclf import load_model, save_model

    clf = classifier("last_block")
    train(clf, labelled(clf), epochs=1, lr=1e-2, progress=False)
    again = load_model(save_model(clf, tmp_path / "model"))
    assert (predict_proba(again, TEXTS) == predict_proba(clf, TEXTS)).all()
