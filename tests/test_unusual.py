"""Models that somebody has changed are computed as they are: what is fast never overrules what was built."""

from typing import Any

import numpy as np
import pytest
import torch
from conftest import byte_gpt2, randomised
from torch import Tensor, nn

from gptclf import (
    GPT2,
    TextDataset,
    add_classifier_head,
    clear_features,
    estimate,
    evaluate,
    freeze,
    predict_proba,
    train,
)
from gptclf.gpt2.learner import Learner
from gptclf.gpt2.trunk import Trunk

TEXTS = ["win a prize", "see you at six, or later", "", "ok", "call now to win", "home"] * 2


def classifier() -> GPT2:
    clf = add_classifier_head(randomised(byte_gpt2()), classes=["ham", "spam"], seed=3)
    clf.head.forget_fresh()
    return clf


def labelled(clf: GPT2) -> TextDataset:
    return TextDataset(TEXTS, ["spam", "ham"] * 6, tokenizer=clf.tokenizer, classes=clf.classes)


def asked(clf: GPT2) -> Any:
    """What the model itself says to each text."""
    found = []
    with torch.no_grad():
        for row in labelled(clf).rows():
            found.append(clf(torch.from_numpy(row.astype(np.int64))[None]).softmax(dim=-1))
    return torch.cat(found).numpy()


def first_loss(clf: GPT2, **options: Any) -> float:
    return train(clf, labelled(clf), epochs=1, lr=0.0, progress=False, **options).steps[0].loss


@pytest.mark.parametrize("part", ["", "trunk", "head", "trunk.embed", "trunk.embed.token", "trunk.norm"])
def test_answers_and_training_see_a_hook_wherever_it_stands(part: str) -> None:
    clf = classifier()
    before = asked(clf)
    clf.get_submodule(part).register_forward_hook(lambda module, given, output: output * 3)
    expected = asked(clf)
    assert np.abs(expected - before).max() > 1e-3
    np.testing.assert_allclose(predict_proba(clf, TEXTS), expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(evaluate(clf, labelled(clf)).probabilities, expected, rtol=0, atol=1e-5)
    assert first_loss(clf) == pytest.approx(first_loss(clf, reuse_frozen=False), abs=1e-5)


class Tripled(GPT2):
    def forward(self, input_ids: Tensor, lengths: Tensor | None = None) -> Tensor:
        return super().forward(input_ids, lengths) * 3


def test_a_model_of_another_kind_is_called_as_it_is() -> None:
    clf = classifier()
    clf.__class__ = Tripled
    expected = asked(clf)
    np.testing.assert_allclose(predict_proba(clf, TEXTS), expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(evaluate(clf, labelled(clf)).probabilities, expected, rtol=0, atol=1e-5)
    assert first_loss(clf) == pytest.approx(first_loss(clf, reuse_frozen=False), abs=1e-5)


class TripledTrunk(Trunk):
    def forward(self, input_ids: Tensor) -> Tensor:
        return super().forward(input_ids) * 3


def test_a_trunk_of_another_kind_is_called_as_it_is() -> None:
    clf = classifier()
    before = asked(clf)
    clf.trunk.__class__ = TripledTrunk
    expected = asked(clf)
    assert np.abs(expected - before).max() > 1e-3
    np.testing.assert_allclose(predict_proba(clf, TEXTS), expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(evaluate(clf, labelled(clf)).probabilities, expected, rtol=0, atol=1e-5)
    assert first_loss(clf) == pytest.approx(first_loss(clf, reuse_frozen=False), abs=1e-5)


class WithPartsOfItsOwn(GPT2):
    def forward(self, input_ids: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self.get_submodule("extra")(super().forward(input_ids, lengths))  # type: ignore[no-any-return]


def test_parts_that_a_model_of_another_kind_has_of_its_own_train_in_training_mode() -> None:
    clf = classifier()
    clf.__class__ = WithPartsOfItsOwn
    clf.extra = extra = nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 2)).eval()
    before = {name: tensor.clone() for name, tensor in extra.state_dict().items()}
    expected = evaluate(clf, labelled(clf)).loss
    assert abs(first_loss(clf, batch_size=12) - expected) > 1e-4
    assert first_loss(clf, batch_size=12) == first_loss(clf, batch_size=12)
    assert evaluate(clf, labelled(clf)).loss == pytest.approx(expected, abs=1e-6)
    train(clf, labelled(clf), epochs=1, progress=False)
    assert not any(torch.equal(tensor, before[name]) for name, tensor in extra.state_dict().items())
    learner = Learner(clf)
    assert set(learner.parameters()) == set(clf.parameters())
    assert len(list(learner.parameters())) == len(list(clf.parameters()))
    assert not any(part.training for part in clf.modules())


class Scaled(nn.Module):
    def __init__(self, layer: nn.Module, by: float) -> None:
        super().__init__()
        self.layer, self.by = layer, by

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.by  # type: ignore[no-any-return]


def test_a_module_of_another_kind_in_the_frozen_part_is_never_answered_from_what_is_kept(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clf = classifier()
    block: Any = clf.trunk.blocks[0]
    block.mlp.down = Scaled(block.mlp.down, 1.0)
    first_loss(clf)
    block.mlp.down.by = 9.0
    assert first_loss(clf) == pytest.approx(first_loss(clf, reuse_frozen=False), abs=1e-5)
    assert "recomputed at every step" in caplog.text


@pytest.mark.parametrize(("part", "name", "value"), [("norm1", "eps", 1.0), ("mlp", "activation", "relu")])
def test_what_was_set_on_a_frozen_module_is_seen(part: str, name: str, value: object) -> None:
    clf = classifier()
    evaluate(clf, labelled(clf))
    setattr(clf.trunk.blocks[0].get_submodule(part), name, value)
    np.testing.assert_allclose(evaluate(clf, labelled(clf)).probabilities, asked(clf), rtol=0, atol=1e-5)


def test_dropout_that_was_set_by_hand_turns_reuse_off(caplog: pytest.LogCaptureFixture) -> None:
    clf = classifier()
    for module in clf.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    first_loss(clf)
    assert "dropout" in caplog.text
    assert clear_features() == 0


def test_another_default_type_changes_nothing() -> None:
    clf, other = classifier(), classifier()
    expected = first_loss(clf)
    clear_features()
    torch.set_default_dtype(torch.float64)
    try:
        assert first_loss(other) == pytest.approx(expected, abs=1e-5)
        estimate(other, labelled(other))
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_buffer_without_dimensions_in_a_frozen_block_does_no_harm() -> None:
    clf = classifier()
    clf.trunk.blocks[0].register_buffer("number", torch.tensor(2.0))
    assert first_loss(clf) == pytest.approx(first_loss(clf, reuse_frozen=False), abs=1e-5)


def test_float32_is_float32_inside_someone_elses_autocast() -> None:
    clf = classifier()
    expected = predict_proba(clf, TEXTS, precision="float32")
    with torch.autocast("cpu", torch.bfloat16):
        np.testing.assert_array_equal(predict_proba(clf, TEXTS, precision="float32"), expected)


def test_an_estimate_leaves_running_means_alone() -> None:
    clf = classifier()
    norm = nn.BatchNorm1d(64)
    head: Any = clf.head
    head.output = nn.Sequential(norm, nn.Linear(64, 2))
    freeze(clf)
    estimate(clf, labelled(clf))
    assert norm.running_mean is not None
    assert not norm.running_mean.any()


@pytest.mark.parametrize(("folder", "error"), [("", ValueError), (5, TypeError)])
def test_evaluate_and_clear_features_refuse_what_names_no_folder(folder: Any, error: type[Exception]) -> None:
    clf = classifier()
    with pytest.raises(error, match="cache_dir is"):
        evaluate(clf, labelled(clf), cache_dir=folder)
    with pytest.raises(error, match="cache_dir is"):
        clear_features(folder)
