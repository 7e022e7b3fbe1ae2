"""The frozen part computed once per text gives the training that computing it at every step gives."""

import copy
import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import byte_tokenizer, randomised
from torch import Tensor

from gptclf import (
    GPT2,
    Batches,
    GPT2Config,
    TextDataset,
    add_classifier_head,
    clear_features,
    evaluate,
    freeze,
    frozen_depth,
    load_model,
    predict,
    predict_proba,
    predict_stream,
    save_model,
    train,
)
from gptclf.features import frozen_prefix as prefix
from gptclf.features.frozen_prefix import FrozenPrefix, NoPrefix, compute_missing, frozen_prefix, missing_rows
from gptclf.features.reuse import features_of, kept_features
from gptclf.features.rows import FeatureSet
from gptclf.features.store import FeatureStore, text_key
from gptclf.gpt2 import packed
from gptclf.gpt2.arithmetic import BFLOAT16, FLOAT32, Arithmetic
from gptclf.gpt2.heads import POOLINGS
from gptclf.gpt2.learner import Learner
from gptclf.gpt2.trunk import Attention, Block
from gptclf.tasks import SingleLabel

CONFIG = GPT2Config(vocab_size=257, context_length=40, emb_dim=24, n_heads=3, n_layers=3, mlp_dim=56)
TOKENIZER = byte_tokenizer()
TEXTS = ["win", "a longer text about nothing", "", "call 07700 900123 now", "see you", "ok"] * 3
LABELS = ["spam", "ham", "ham", "spam", "ham", "spam"] * 3
OTHERS = ["quite another text", "", "free entry", "ok then"]
DISTINCT = 3 + 27 + 1 + 21 + 7 + 2  # tokens in the distinct texts of TEXTS


def classifier(trainable: str | int = "last_block", pooling: str = "last", config: GPT2Config = CONFIG) -> GPT2:
    gpt2 = randomised(GPT2(config, seed=7)).requires_grad_(False)
    gpt2.tokenizer = TOKENIZER
    clf = add_classifier_head(gpt2, classes=["ham", "spam"], pooling=pooling, seed=3)
    clf.head.forget_fresh()
    freeze(clf, trainable=trainable)
    return clf


def labelled(texts: Sequence[str] = TEXTS, pad_to: int | None = None) -> TextDataset:
    labels = ["spam" if i % 2 else "ham" for i in range(len(texts))]
    return TextDataset(texts, labels, tokenizer=TOKENIZER, classes=["ham", "spam"], pad_to=pad_to)


class Tokens:
    """Counts the tokens that go through the attention of a model's first block, packed or padded, in whatever copy."""

    def __init__(self, clf: GPT2, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen = 0
        weight, real = clf.get_parameter("trunk.blocks.0.attention.qkv.weight"), Attention.mix

        def mix(attention: Attention, qkv: Tensor, *more: Any) -> Tensor:
            if attention.qkv.weight is weight:
                self.seen += qkv.shape[:-1].numel()
            return real(attention, qkv, *more)

        # Not a hook: with one on a frozen block nothing is reused.
        monkeypatch.setattr(Attention, "mix", mix)

    def new(self) -> int:
        """Tokens since the last call."""
        seen, self.seen = self.seen, 0
        return seen


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Callable[[GPT2], Tokens]:
    """Counts what goes through the first block of a model."""
    return lambda clf: Tokens(clf, monkeypatch)


Counted = Callable[[GPT2], Tokens]


def losses(clf: GPT2, data: TextDataset, val: TextDataset | None = None, **options: Any) -> list[float]:
    history = train(clf, data, val, progress=False, **{"epochs": 1, "batch_size": 4, "lr": 1e-3, **options})
    return [step.loss for step in history.steps] + [scores.train_loss for scores in history.epochs]


def prefix_of(clf: GPT2, arithmetic: Arithmetic = FLOAT32) -> FrozenPrefix:
    found = frozen_prefix(clf, arithmetic)
    assert isinstance(found, FrozenPrefix)
    return found


def learner_and_features(clf: GPT2, data: TextDataset) -> tuple[Learner, FeatureSet]:
    depth, (found,) = kept_features(clf, data, precision="float32")
    assert isinstance(found, FeatureSet)
    return Learner(clf, depth), found


# The same numbers as without


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("trainable", ["head", "last_block", 2])
def test_a_learner_on_features_equals_the_whole_model_on_ids(trainable: str | int, pooling: str) -> None:
    if trainable == 2:
        clf = classifier(2, pooling, dataclasses.replace(CONFIG, n_layers=4))
    else:
        clf = classifier(trainable, pooling)
    data = labelled()
    learner, features = learner_and_features(clf, data)
    rows = np.array([4, 1, 2, 9])
    ids, found = Batches(data).take(rows), Batches(features).take(rows)
    torch.testing.assert_close(learner(found.inputs, found.lengths), clf(ids.inputs, ids.lengths), rtol=1e-5, atol=1e-5)
    assert ids.targets is not None
    assert found.targets is not None
    assert torch.equal(ids.targets, found.targets)


@pytest.mark.parametrize("pooling", ["last", "first", "mean"])
@pytest.mark.parametrize("trainable", ["head", "last_block"])
def test_training_with_and_without_reuse_has_the_same_losses(trainable: str, pooling: str) -> None:
    found, answers = [], []
    for reuse in (True, False):
        clf = classifier(trainable, pooling)
        found.append(losses(clf, labelled(), labelled(OTHERS), epochs=2, reuse_frozen=reuse))
        answers.append(predict_proba(clf, TEXTS))
    np.testing.assert_allclose(found[0], found[1], rtol=0, atol=1e-5)
    np.testing.assert_allclose(answers[0], answers[1], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"accumulate": 3},
        {"clip": 0.1},
        {"drop_last": True},
        {"eval_every": 2, "eval_batches": 2},
        {"weight_decay": 0.0, "schedule": "linear", "warmup_steps": 2},
        {"recompute": True},
    ],
    ids=lambda options: next(iter(options)),
)
def test_with_every_option_of_training_the_losses_are_the_same(options: dict[str, Any]) -> None:
    found = [losses(classifier(), labelled(), batch_size=4, reuse_frozen=reuse, **options) for reuse in (True, False)]
    np.testing.assert_allclose(found[0], found[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("trainable", ["head", "last_block"])
def test_with_padding_as_the_book_does_it_the_losses_are_the_same(trainable: str) -> None:
    found = [losses(classifier(trainable), labelled(pad_to=30), reuse_frozen=reuse) for reuse in (True, False)]
    np.testing.assert_allclose(found[0], found[1], rtol=0, atol=1e-5)


def test_texts_longer_than_the_context_are_cut_alike(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    data = labelled(["x" * 100, "short", "y" * 41, "z" * 40])
    found = [losses(classifier(), data, batch_size=2, reuse_frozen=reuse) for reuse in (True, False)]
    np.testing.assert_allclose(found[0], found[1], rtol=0, atol=1e-5)


def test_a_saved_model_trained_on_features_is_whole(tmp_path: Path) -> None:
    clf = classifier()
    losses(clf, labelled(), lr=1e-2)
    again = load_model(save_model(clf, tmp_path / "model"))
    assert (predict_proba(again, TEXTS) == predict_proba(clf, TEXTS)).all()


# Each text once


@pytest.mark.parametrize("trainable", ["head", "last_block"])
def test_each_distinct_text_goes_through_the_frozen_blocks_once_however_many_epochs(
    trainable: str, counted: Counted
) -> None:
    for epochs in (1, 4):
        clear_features()
        clf = classifier(trainable)
        tokens = counted(clf)
        losses(clf, labelled(), epochs=epochs)
        assert tokens.new() == DISTINCT


def test_other_trainings_on_the_same_texts_compute_nothing(counted: Counted) -> None:
    clf = classifier()
    tokens = counted(clf)
    losses(clf, labelled())
    tokens.new()
    losses(clf, labelled(), lr=1e-2)
    losses(clf, labelled(), seed=5, batch_size=3, epochs=2)
    assert tokens.new() == 0


def test_another_model_with_the_same_frozen_weights_computes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    clf = classifier()
    untrained = copy.deepcopy(clf)
    losses(clf, labelled())
    monkeypatch.setattr(prefix, "compute_chunk", lambda *_: pytest.fail("computed again"))
    losses(untrained, labelled(), clip=1.0)


def test_texts_in_both_training_and_validation_set_are_computed_once(counted: Counted) -> None:
    clf = classifier()
    tokens = counted(clf)
    losses(clf, labelled(), labelled([*TEXTS[:4], "only here", "only here"]))
    assert tokens.new() == DISTINCT + len("only here")


def test_cross_validation_over_learning_rates_computes_each_text_once_in_all(counted: Counted) -> None:
    texts = [f"text number {i}" for i in range(20)]
    data, clf = labelled(texts), classifier()
    fresh, tokens = copy.deepcopy(clf.state_dict()), counted(clf)
    for lr in (1e-4, 1e-3, 1e-2):
        for fold in range(5):
            clf.load_state_dict(fresh)
            held_out = np.arange(20) // 4 == fold
            losses(clf, data.subset(~held_out), data.subset(held_out), lr=lr)
    assert tokens.new() == sum(len(text) for text in texts)


def test_of_a_grown_data_set_only_the_new_texts_are_computed(counted: Counted) -> None:
    clf = classifier()
    tokens = counted(clf)
    losses(clf, labelled())
    tokens.new()
    losses(clf, labelled([*TEXTS, "new one", "win", "newer"]))
    assert tokens.new() == len("new one") + len("newer")


def test_evaluate_takes_what_train_left_and_keeps_what_it_computes(counted: Counted) -> None:
    clf = classifier()
    tokens = counted(clf)
    losses(clf, labelled())
    tokens.new()
    evaluate(clf, labelled())
    assert tokens.new() == 0
    evaluate(clf, labelled(OTHERS))
    assert tokens.new() == sum(len(text) for text in OTHERS)  # the empty text was there
    evaluate(clf, labelled(OTHERS))
    losses(clf, labelled(OTHERS))
    assert tokens.new() == 0


def test_evaluate_on_features_scores_as_predict_answers() -> None:
    clf = classifier()
    losses(clf, labelled())
    np.testing.assert_allclose(evaluate(clf, labelled()).probabilities, predict_proba(clf, TEXTS), rtol=0, atol=1e-6)


def test_predicting_keeps_nothing() -> None:
    clf = classifier()
    predict(clf, TEXTS)
    predict_proba(clf, TEXTS)
    list(predict_stream(clf, TEXTS))
    assert clear_features() == 0


def test_without_reuse_frozen_blocks_run_at_every_step_and_nothing_is_kept(counted: Counted) -> None:
    clf = classifier()
    tokens = counted(clf)
    losses(clf, labelled(), epochs=2, batch_size=len(TEXTS), reuse_frozen=False)
    assert tokens.new() >= 4 * 3 * DISTINCT - 4 * 2  # two steps and two measurements
    assert clear_features() == 0


# What a prefix is


def changed_weight(clf: GPT2) -> GPT2:
    with torch.no_grad():
        clf.get_parameter("trunk.blocks.0.mlp.up.weight")[3, 5].add_(0.5)
    return clf


def changed_position(clf: GPT2) -> GPT2:
    with torch.no_grad():
        clf.trunk.embed.position.weight.add_(0.05)
    return clf


def changed_config(**changes: Any) -> Any:
    def change(clf: GPT2) -> GPT2:
        again = classifier(config=dataclasses.replace(CONFIG, **changes))
        again.load_state_dict(clf.state_dict())
        return again

    return change


def frozen_elsewhere(trainable: str) -> Any:
    def change(clf: GPT2) -> GPT2:
        freeze(clf, trainable=trainable)
        return clf

    return change


CHANGES: dict[str, Any] = {
    "a block's weight": changed_weight,
    "the positions": changed_position,
    "norm_eps": changed_config(norm_eps=0.1),
    "n_heads": changed_config(n_heads=2),
    "activation": changed_config(activation="relu"),
    "scale_attention": changed_config(scale_attention=False),
    "depth": frozen_elsewhere("head"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_was_computed_under_another_prefix_is_never_used(change: Any) -> None:
    before = classifier()
    identity = prefix_of(before).identity()
    losses(before, labelled(), lr=0.0)
    clf = change(before)
    assert prefix_of(clf).identity() != identity
    plain = copy.deepcopy(clf)
    expected = losses(plain, labelled(), reuse_frozen=False)
    np.testing.assert_allclose(losses(clf, labelled()), expected, rtol=0, atol=1e-5)


def test_a_changed_weight_changed_back_finds_its_features_again(counted: Counted) -> None:
    clf = classifier()
    losses(clf, labelled(), lr=0.0)
    changed_weight(clf)
    losses(clf, labelled(), lr=0.0)
    with torch.no_grad():
        clf.get_parameter("trunk.blocks.0.mlp.up.weight")[3, 5].add_(-0.5)
    tokens = counted(clf)
    losses(clf, labelled(), lr=0.0)
    assert tokens.new() in (0, DISTINCT)  # adding and subtracting may not give the very number back


def test_precision_is_a_part_of_the_prefix() -> None:
    clf = classifier()
    assert prefix_of(clf).identity() != prefix_of(clf, BFLOAT16).identity()
    evaluate(clf, labelled(), precision="bfloat16")
    exact = evaluate(clf, labelled(), precision="float32").probabilities
    np.testing.assert_allclose(exact, predict_proba(clf, TEXTS, precision="float32"), rtol=0, atol=1e-6)


def test_pooling_is_a_part_of_the_prefix_where_only_the_head_trains() -> None:
    assert len({prefix_of(classifier("head", pooling)).identity() for pooling in ("last", "first", "mean")}) == 3
    # The head sees all positions of these.
    assert prefix_of(classifier("head", "mean")).identity() == prefix_of(classifier("head", "max")).identity()
    assert len({prefix_of(classifier("last_block", pooling)).identity() for pooling in POOLINGS}) == 1


def test_one_trained_weight_too_many_is_no_part_of_the_prefix() -> None:
    clf = classifier()
    identity = prefix_of(clf).identity()
    losses(clf, labelled(), lr=1e-2)
    assert prefix_of(clf).identity() == identity
    clf.train()
    assert prefix_of(clf).identity() == identity


def test_a_hook_that_changes_what_a_frozen_block_gives_is_seen() -> None:
    clf = classifier()
    losses(clf, labelled(), lr=0.0)
    clf.trunk.blocks[0].register_forward_hook(lambda block, inputs, output: output * 0.5)
    plain = losses(copy.deepcopy(clf), labelled(), lr=0.0, reuse_frozen=False)
    np.testing.assert_allclose(losses(clf, labelled(), lr=0.0), plain, rtol=0, atol=1e-5)


# Bit for bit


def ragged(n: int, seed: int) -> list[np.ndarray[Any, np.dtype[np.int32]]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, int(rng.integers(1, 120))).astype(np.int32) for _ in range(n)]


@pytest.mark.parametrize("on_disk", [False, True], ids=["memory", "disk"])
@pytest.mark.parametrize("arithmetic", [FLOAT32, BFLOAT16], ids=lambda arithmetic: arithmetic.name)
@pytest.mark.parametrize("trainable", ["head", "last_block"])
def test_a_store_that_grew_equals_one_computed_at_once_bit_for_bit(
    trainable: str, arithmetic: Arithmetic, on_disk: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(CONFIG, emb_dim=96, context_length=128, mlp_dim=384)
    frozen, rows = prefix_of(classifier(trainable, config=config), arithmetic), ragged(50, 1)
    stores = []
    for parts, chunk in (([50], 32768), ([3, 4, 31, 50], 700)):
        monkeypatch.setattr(packed, "CHUNK_TOKENS", chunk)
        store = FeatureStore(frozen.identity(), tmp_path / str(chunk) if on_disk else None)
        for end in parts:
            compute_missing(frozen, rows[:end], missing_rows(rows[:end], store), store)
        stores.append(store)
    cold, grown = stores
    assert len(cold) == len(grown) == len({text_key(row) for row in rows})
    assert cold.nbytes == grown.nbytes
    for row in rows:
        assert torch.equal(cold[text_key(row)].values, grown[text_key(row)].values)


def test_a_training_on_a_grown_store_is_that_on_a_new_one_to_the_last_bit() -> None:
    more = [*TEXTS, "new one", "another", "yet another text"]
    grown = classifier()
    losses(copy.deepcopy(grown), labelled(more[:7]))
    found = losses(grown, labelled(more))
    clear_features()
    assert losses(classifier(), labelled(more)) == found


# Where nothing is reused


@pytest.mark.parametrize("trainable", ["all", 3, "embed"])
def test_nothing_is_reused_where_no_block_is_frozen(trainable: str | int) -> None:
    clf = classifier(trainable)
    assert isinstance(frozen_prefix(clf, FLOAT32), NoPrefix)
    losses(clf, labelled())
    assert clear_features() == 0


def test_dropout_turns_reuse_off_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    clf = classifier(config=dataclasses.replace(CONFIG, drop_rate=0.1))
    found = losses(clf, labelled())
    assert "dropout is 0.1" in caplog.text
    assert clear_features() == 0
    again = classifier(config=dataclasses.replace(CONFIG, drop_rate=0.1))
    assert losses(again, labelled(), reuse_frozen=False) == found


@pytest.mark.parametrize(
    ("part", "reason"),
    [("trunk.blocks.0", "custom modules or hooks"), ("trunk.embed.token", "custom modules or hooks"), ("", "hooks")],
)
def test_a_hook_turns_reuse_off_and_says_so(part: str, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    clf = classifier()
    clf.get_submodule(part).register_forward_hook(lambda *_: None)
    found = frozen_prefix(clf, FLOAT32)
    assert isinstance(found, NoPrefix)
    assert found.notable
    assert reason in found.reason
    caplog.clear()
    losses(clf, labelled())
    assert [record.message for record in caplog.records] == [found.reason]
    assert clear_features() == 0


def test_a_hook_on_what_trains_leaves_the_prefix_alone() -> None:
    clf = classifier()
    identity = prefix_of(clf).identity()
    for part in (clf.trunk.blocks[2], clf.trunk.norm, clf.head):
        part.register_forward_hook(lambda *_: None)
        assert prefix_of(clf).identity() == identity


@pytest.mark.parametrize(
    ("trains", "reason"), [(True, "the first block is trainable"), (False, "nothing is trainable")]
)
def test_a_model_without_a_prefix_says_why_and_that_is_no_surprise(trains: bool, reason: str) -> None:
    found = frozen_prefix(classifier().requires_grad_(trains), FLOAT32)
    assert isinstance(found, NoPrefix)
    assert reason in found.reason
    assert not found.notable


@pytest.mark.parametrize(("trainable", "pooling", "reads"), [("head", "first", "first"), ("last_block", "last", "all")])
def test_what_is_kept_of_a_row_follows_from_what_the_head_reads(trainable: str, pooling: str, reads: str) -> None:
    clf, lengths = classifier(trainable, pooling), np.array([3, 27, 1])
    found = prefix_of(clf)
    assert found.reads == reads
    assert found.positions(lengths).tolist() == ([1, 1, 1] if reads == "first" else [3, 27, 1])
    assert found.nbytes(lengths) == 4 * CONFIG.emb_dim * (3 if reads == "first" else 31)
    assert found.n_blocks == (3 if trainable == "head" else 2)
    clf.head.register_forward_hook(lambda *_: None)  # who looks inside may look at every position
    assert prefix_of(clf).reads == "all"


def test_weights_that_are_no_numbers_are_named_and_nothing_is_kept() -> None:
    clf = classifier()
    with torch.no_grad():
        clf.get_parameter("trunk.blocks.1.mlp.up.bias")[0] = float("nan")
    with pytest.raises(FloatingPointError, match=r"features of the frozen part.*blocks\.1\.mlp\.up\.bias"):
        losses(clf, labelled())
    assert clear_features() == 0


# Nothing else changes


@pytest.mark.parametrize("trainable", ["head", "last_block"])
def test_modes_flags_gradients_and_weights_are_left_alone(trainable: str) -> None:
    clf = classifier(trainable)
    clf.train()
    clf.trunk.blocks[1].eval()
    modes = [module.training for module in clf.modules()]
    flags = {name: p.requires_grad for name, p in clf.named_parameters()}
    for parameter in clf.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    weights = {name: p.detach().clone() for name, p in clf.named_parameters()}
    state = torch.get_rng_state()
    with features_of(clf, [labelled()], precision="auto") as found:
        assert found.depth
    assert [module.training for module in clf.modules()] == modes
    assert {name: p.requires_grad for name, p in clf.named_parameters()} == flags
    assert all(torch.equal(weights[name], p) for name, p in clf.named_parameters())
    assert all((p.grad is not None) == p.requires_grad for p in clf.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    losses(clf, labelled())
    assert [module.training for module in clf.modules()] == modes
    assert {name: p.requires_grad for name, p in clf.named_parameters()} == flags
    assert all(torch.equal(weights[name], p) for name, p in clf.named_parameters() if not p.requires_grad)


def test_training_never_writes_into_what_is_kept() -> None:
    clf, data = classifier(), labelled()
    before = learner_and_features(clf, data)[1].packed(np.arange(len(data)))
    losses(clf, data, epochs=2, lr=1e-1)
    assert torch.equal(learner_and_features(clf, data)[1].packed(np.arange(len(data))), before)


# The pieces


def test_a_learner_has_the_parameters_of_the_model_under_the_same_names() -> None:
    clf = classifier()
    names = dict(clf.named_parameters())
    learner = Learner(clf, frozen_depth(clf))
    viewed = dict(learner.named_parameters())
    assert set(viewed) == {name for name, parameter in names.items() if parameter.requires_grad}
    assert all(parameter is names[name] for name, parameter in viewed.items())
    assert [type(module) for module in learner.modules()].count(Block) == 1


@pytest.mark.parametrize(("pooling", "positions"), [("last", 18), ("first", 18), ("mean", 3 * DISTINCT)])
def test_only_the_head_trains_on_one_vector_per_text_where_it_looks_at_one(pooling: str, positions: int) -> None:
    features = learner_and_features(classifier("head", pooling), labelled())[1]
    assert int(features.lengths.sum()) == positions
    assert features.packed(np.arange(len(features))).shape == (positions, CONFIG.emb_dim)
    assert clear_features() == 4 * CONFIG.emb_dim * (positions // 3)


def test_a_feature_set_pads_with_zeros_and_packs_in_the_order_asked_for() -> None:
    data = labelled()
    features = learner_and_features(classifier(), data)[1]
    assert len(features) == len(data)
    assert (features.lengths == data.lengths).all()
    rows = np.array([1, 4, 2])
    padded, packed = features.padded(rows), features.packed(rows)
    assert padded.shape == (3, 27, CONFIG.emb_dim)
    assert packed.shape == (27 + 7 + 1, CONFIG.emb_dim)
    assert torch.equal(padded[1, :7], packed[27:34])
    assert torch.equal(padded[2, :1], packed[34:])
    assert not padded[1, 7:].any()
    assert not padded[2, 1:].any()
    packed.zero_()
    assert torch.equal(features.padded(rows), padded)  # both are copies


def test_a_subset_of_features_is_those_rows_with_their_labels() -> None:
    features = learner_and_features(classifier(), labelled())[1]
    part = features.subset([3, 1])
    assert len(part) == 2
    assert part.lengths.tolist() == [21, 27]
    assert torch.equal(part.padded(np.array([1])), features.padded(np.array([1])))
    assert part.targets(SingleLabel(["ham", "spam"])).tolist() == [1, 1]
    assert part.targets(SingleLabel(["spam", "ham"])).tolist() == [0, 0]
    assert part.task == features.task == SingleLabel(["ham", "spam"])
    mask = np.zeros(len(features), dtype=bool)
    mask[[1, 3]] = True
    assert features.subset(mask).lengths.tolist() == [27, 21]
    assert len(features) == len(TEXTS)


# A trunk with another number of blocks than its configuration says


def remove_first(blocks: torch.nn.ModuleList) -> None:
    blocks.pop(0)


def append_another(blocks: torch.nn.ModuleList) -> None:
    blocks.append(copy.deepcopy(blocks[0]))


@pytest.mark.parametrize("change", [remove_first, append_another])
@pytest.mark.parametrize(("trainable", "blocks"), [("head", 0), ("last_block", 1), (2, 2)])
def test_the_blocks_that_there_are_count(trainable: str | int, blocks: int, change: Callable[..., None]) -> None:
    found = {}
    for reuse in (True, False):
        source = randomised(GPT2(CONFIG, seed=4)).requires_grad_(False)
        source.tokenizer = TOKENIZER
        change(source.trunk.blocks)
        clf = add_classifier_head(source, classes=["ham", "spam"], seed=1)
        freeze(clf, trainable=trainable)
        trained = [any(p.requires_grad for p in block.parameters()) for block in clf.trunk.blocks]
        assert trained == [False] * (len(trained) - blocks) + [True] * blocks
        found[reuse] = losses(clf, labelled(), epochs=2, reuse_frozen=reuse, layer_decay=0.5)
        ids = labelled().padded(np.arange(len(TEXTS)))
        with torch.no_grad():
            expected = clf(ids, torch.from_numpy(labelled().lengths)).softmax(dim=-1)
        np.testing.assert_allclose(evaluate(clf, labelled()).probabilities, expected, atol=1e-5)
    np.testing.assert_allclose(found[True], found[False], rtol=1e-4)


@pytest.mark.parametrize("trainable", ["head", "all"])
def test_an_autocast_around_the_call_changes_nothing_in_float32(trainable: str) -> None:
    found = []
    for outer in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=outer):
            clf = classifier(trainable)
            steps = losses(clf, labelled(), labelled(OTHERS), epochs=2, precision="float32")
            outputs = evaluate(clf, labelled(), precision="float32").outputs
            identity = prefix_of(clf).identity() if trainable == "head" else ""
            assert np.array_equal(predict_proba(clf, TEXTS, precision="float32"), softmax_of(outputs))
        found.append((steps, outputs.tolist(), identity))
    assert found[0] == found[1]


def softmax_of(outputs: Any) -> Any:
    return torch.from_numpy(outputs).softmax(dim=1).numpy()
