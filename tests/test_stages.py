"""What trains, where the line of stages can be cut, and whose the tensors are."""

import copy
import logging
from fnmatch import fnmatchcase
from typing import Any

import pytest
import torch
from conftest import byte_gpt2, byte_tokenizer, classifier_of, randomised
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from gptclf import (
    GPT2,
    Batch,
    GPT2Config,
    SingleLabel,
    TextDataset,
    add_classifier_head,
    batch_loss,
    freeze,
    frozen_depth,
    load_gpt2,
    train,
    trainable_report,
)
from gptclf.gpt2.config import PRESETS
from gptclf.gpt2.freezing import Trainable
from gptclf.gpt2.stages import stages

CONFIG = GPT2Config(vocab_size=257, context_length=40, emb_dim=24, n_heads=3, n_layers=3, mlp_dim=56)

# Policy, the patterns of what it trains (written out here a second time), and the stages before the first of these.
POLICIES: list[tuple[Trainable, list[str], int]] = [
    ("head", ["head.*"], 5),
    ("last_block", ["trunk.blocks.2.*", "trunk.norm.*", "head.*"], 3),
    (1, ["trunk.blocks.2.*", "trunk.norm.*", "head.*"], 3),
    ("last_two_blocks", ["trunk.blocks.[12].*", "trunk.norm.*", "head.*"], 2),
    (2, ["trunk.blocks.[12].*", "trunk.norm.*", "head.*"], 2),
    (3, ["trunk.blocks.*", "trunk.norm.*", "head.*"], 1),
    ("all", ["*"], 0),
    ("norm", ["trunk.norm.*"], 4),
    ("trunk.norm", ["trunk.norm.*"], 4),
    ("blocks.1", ["trunk.blocks.1.*"], 2),
    ("trunk.blocks.*.mlp.*", ["trunk.blocks.*.mlp.*"], 1),
    ("blocks.*.mlp", ["trunk.blocks.*.mlp.*"], 1),
    ("*.bias", ["*.bias"], 1),
    ("embed.position.weight", ["trunk.embed.position.weight"], 0),
    (["head", "blocks.0.norm1"], ["head.*", "trunk.blocks.0.norm1.*"], 1),
    (("blocks.2.attention.qkv.bias", "norm.weight"), ["trunk.blocks.2.attention.qkv.bias", "trunk.norm.weight"], 3),
]


def classifier(seed: int = 1) -> GPT2:
    return randomised(classifier_of(CONFIG, ["ham", "spam"], seed=seed))


def flags(model: GPT2) -> dict[str, bool]:
    return {name: parameter.requires_grad for name, parameter in model.named_parameters()}


def snapshot(model: GPT2) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def differing(model: GPT2, before: dict[str, Tensor]) -> set[str]:
    """Parameters that are no longer bit-equal to what they were."""
    return {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}


def trained_names(model: GPT2) -> set[str]:
    return set(trainable_report(model).names)


def train_a_little(model: GPT2) -> None:
    """Two steps of a plain loop, large enough to change every parameter that trains."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    ids = torch.randint(257, (4, 12), generator=torch.Generator().manual_seed(2))
    for _ in range(2):
        optimizer.zero_grad()
        logits = model(ids)
        targets = ids if model.classes is None else torch.tensor([0, 1, 1, 0])
        loss = F.cross_entropy(logits.flatten(0, -2), targets.flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


# What trains


@pytest.mark.parametrize(("trainable", "patterns", "depth"), POLICIES)
@pytest.mark.parametrize("start", [True, False])
def test_a_policy_sets_every_parameter(trainable: Trainable, patterns: list[str], depth: int, start: bool) -> None:
    model = classifier()
    for parameter in model.parameters():
        parameter.requires_grad_(start)
    freeze(model, trainable=trainable)
    expected = {name: any(fnmatchcase(name, pattern) for pattern in patterns) for name in flags(model)}
    assert flags(model) == expected
    assert frozen_depth(model) == depth


@settings(deadline=None, max_examples=50, derandomize=True)
@given(st.lists(st.sampled_from([trainable for trainable, _, _ in POLICIES]), min_size=1, max_size=5))
def test_earlier_calls_leave_no_trace(calls: list[Trainable]) -> None:
    model, direct = (classifier_of(CONFIG, ["a", "b"], device="meta") for _ in range(2))
    for trainable in calls:
        freeze(model, trainable=trainable)
    freeze(direct, trainable=calls[-1])
    assert flags(model) == flags(direct)


def test_the_default_is_the_books_last_block() -> None:
    model, last_block = classifier(), classifier()
    freeze(model)
    freeze(last_block, trainable="last_block")
    assert flags(model) == flags(last_block)


def test_the_books_policy_trains_7_090_946_parameters_of_124m() -> None:
    model = classifier_of(PRESETS["gpt2"], ["ham", "spam"], device="meta")
    freeze(model, trainable="last_block")
    report = trainable_report(model)
    assert report.trainable == 7_090_946
    assert report.total == 124_439_808 + 2 * 768 + 2
    assert str(report) == "7,090,946 of 124,441,346 parameters train (5.70 %): blocks.11, norm, head"


def test_the_report_counts_by_stage() -> None:
    model = classifier()
    freeze(model, trainable=["norm.bias", "blocks.0.norm1"])
    report = trainable_report(model)
    block = 2 * 2 * 24 + 24 * 72 + 72 + 24 * 24 + 24 + 24 * 56 + 56 + 56 * 24 + 24
    assert report.counts == {
        "embed": (0, (257 + 40) * 24),
        "blocks.0": (48, block),
        "blocks.1": (0, block),
        "blocks.2": (0, block),
        "norm": (24, 48),
        "head": (0, 50),
    }
    assert report.names == ["trunk.blocks.0.norm1.weight", "trunk.blocks.0.norm1.bias", "trunk.norm.bias"]
    assert report.trainable == 72


def test_freezing_says_what_trains(caplog: pytest.LogCaptureFixture) -> None:
    model = classifier()
    with caplog.at_level(logging.INFO, logger="gptclf"):
        freeze(model, trainable="head")
    assert caplog.messages == [str(trainable_report(model))]


def test_the_stages_computed_in_order_are_the_model() -> None:
    model = classifier()
    ids = torch.randint(257, (2, 9), generator=torch.Generator().manual_seed(1))
    value: Tensor = ids
    for _, stage in stages(model):
        value = stage(value)
    torch.testing.assert_close(value, model(ids), rtol=1e-5, atol=1e-6)


def test_the_frozen_stages_get_no_gradient_and_the_first_trained_one_does() -> None:
    model = classifier()
    freeze(model, trainable="last_two_blocks")
    model(torch.tensor([[1, 2, 3]])).sum().backward()
    line, depth = stages(model), frozen_depth(model)
    assert all(parameter.grad is None for _, stage in line[:depth] for parameter in stage.parameters())
    assert all(parameter.grad is not None for parameter in line[depth][1].parameters())


def test_a_model_in_which_nothing_trains_is_frozen_to_its_end() -> None:
    model = classifier()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    assert frozen_depth(model) == len(stages(model)) == 6


def test_a_tied_matrix_counts_as_the_embeddings() -> None:
    model = GPT2(CONFIG, seed=1)
    freeze(model, trainable="embed.token")
    assert frozen_depth(model) == 0
    freeze(model, trainable="last_block")
    assert not model.trunk.embed.token.weight.requires_grad
    assert frozen_depth(model) == 3


# What cannot be asked for


@pytest.mark.parametrize("unknown", ["last", "blocks.3", "blocks.*.lora", "hea", ["norm", "block.1"]])
def test_an_unknown_pattern_is_an_error_that_lists_names(unknown: Trainable) -> None:
    wrong = unknown[-1] if isinstance(unknown, list) else unknown
    with pytest.raises(ValueError, match="is not a policy and matches no parameter") as caught:
        freeze(classifier(), trainable=unknown)
    for part in (repr(wrong), "'last_block'", "trunk.embed.token.weight", "head.output.bias"):
        assert part in str(caught.value)


@pytest.mark.parametrize("n", [0, -1, 4])
def test_more_blocks_than_there_are_is_an_error(n: int) -> None:
    with pytest.raises(ValueError, match=rf"trainable={n} blocks; this model has 3, so give 1 to 3"):
        freeze(classifier(), trainable=n)


@pytest.mark.parametrize("value", [True, False, None, 1.0, {"head"}])
def test_what_is_neither_name_nor_number_is_an_error(value: object) -> None:
    with pytest.raises(TypeError, match="it must be a policy's name, a number of blocks, or names and patterns"):
        freeze(classifier(), trainable=value)  # type: ignore[arg-type]


def test_lora_needs_a_model_that_has_it() -> None:
    with pytest.raises(ValueError, match="needs a model with LoRA layers"):
        freeze(classifier(), trainable="lora")


@pytest.mark.parametrize("trainable", ["head", [], ()])
def test_leaving_nothing_to_train_is_an_error(trainable: Trainable) -> None:
    with pytest.raises(ValueError, match="leaves nothing to train"):
        freeze(GPT2(CONFIG, seed=1), trainable=trainable)


def test_an_untied_language_models_head_can_train_alone() -> None:
    model = GPT2(CONFIG.replace(tied=False), seed=1)
    freeze(model, trainable="head")
    assert trained_names(model) == {"head.output.weight"}


@pytest.mark.parametrize("wrong", ["nonsense", 9, True, "lora"])
def test_a_refused_call_changes_nothing(wrong: Trainable) -> None:
    model = classifier()
    freeze(model, trainable="blocks.1")
    before = flags(model)
    with pytest.raises((ValueError, TypeError)):
        freeze(model, trainable=wrong)
    assert flags(model) == before


# Whose the tensors are


def test_a_classifier_trains_the_last_block_from_the_start(small_gpt2: GPT2) -> None:
    clf, expected = add_classifier_head(small_gpt2, num_classes=2, seed=1), classifier()
    freeze(expected, trainable="last_block")
    assert flags(clf) == flags(expected)


def test_frozen_tensors_are_shared_and_trained_ones_are_copies(small_gpt2: GPT2) -> None:
    clf = add_classifier_head(small_gpt2, num_classes=2, seed=1)
    for name, theirs in small_gpt2.named_parameters():
        ours = clf.get_parameter(name)
        assert torch.equal(ours, theirs)
        assert (ours.data_ptr() == theirs.data_ptr()) == (not ours.requires_grad), name


@pytest.mark.parametrize("trainable", ["head", "last_block", "last_two_blocks", "all", "*.bias", "embed"])
def test_training_a_classifier_changes_what_trains_and_nothing_else(small_gpt2: GPT2, trainable: str) -> None:
    sibling = randomised(add_classifier_head(small_gpt2, num_classes=3, seed=2), seed=4)
    clf = add_classifier_head(small_gpt2, num_classes=2, seed=1)
    freeze(clf, trainable=trainable)
    before, of_gpt2, of_sibling = snapshot(clf), snapshot(small_gpt2), snapshot(sibling)
    train_a_little(clf)
    assert differing(clf, before) == trained_names(clf)
    assert not differing(small_gpt2, of_gpt2)
    assert not differing(sibling, of_sibling)


def test_a_second_classifier_never_changes_the_language_model_or_the_first(small_gpt2: GPT2) -> None:
    of_gpt2 = snapshot(small_gpt2)
    first = add_classifier_head(small_gpt2, classes=["a", "b"], seed=1)
    train_a_little(first)
    of_first = snapshot(first)
    second = add_classifier_head(small_gpt2, classes=["x", "y"], seed=2)
    freeze(second, trainable="all")
    train_a_little(second)
    freeze(second, trainable=2)
    train_a_little(second)
    assert not differing(small_gpt2, of_gpt2)
    assert not differing(first, of_first)
    assert torch.equal(first.trunk.embed.token.weight, small_gpt2.trunk.embed.token.weight)


def test_flags_set_by_hand_are_safe_through_train(small_gpt2: GPT2) -> None:
    # freeze was never asked, so train is the one that must copy.
    sibling = add_classifier_head(small_gpt2, classes=["a", "b"], seed=1)
    clf = add_classifier_head(small_gpt2, classes=["a", "b"], seed=1)
    for parameter in clf.parameters():
        parameter.requires_grad_()
    before, of_gpt2, of_sibling = snapshot(clf), snapshot(small_gpt2), snapshot(sibling)
    rows = TextDataset(["one", "two", "three"], ["a", "b", "a"], tokenizer=byte_tokenizer())
    train(clf, rows, epochs=2, lr=1e-2, progress=False)
    assert differing(clf, before) == set(before)
    assert all(flags(clf).values())
    assert not differing(small_gpt2, of_gpt2)
    assert not differing(sibling, of_sibling)


def test_a_classifier_made_from_one_that_goes_on_training_stays_as_it_was(small_gpt2: GPT2) -> None:
    source = add_classifier_head(small_gpt2, classes=["a", "b"], seed=1)
    train_a_little(source)
    derived = add_classifier_head(source, classes=[1, 2, 3], seed=2)
    for name in set(flags(derived)) - {"head.output.weight", "head.output.bias"}:
        assert torch.equal(derived.get_parameter(name), source.get_parameter(name))
    of_derived = snapshot(derived)
    train_a_little(source)
    freeze(source, trainable="all")
    train_a_little(source)
    assert not differing(derived, of_derived)
    of_source, of_gpt2 = snapshot(source), snapshot(small_gpt2)
    freeze(derived, trainable="all")
    train_a_little(derived)
    assert not differing(source, of_source)
    assert not differing(small_gpt2, of_gpt2)


def test_training_the_language_model_leaves_its_classifiers_alone(small_gpt2: GPT2) -> None:
    clf = add_classifier_head(small_gpt2, classes=["a", "b"], seed=1)
    of_clf, of_gpt2 = snapshot(clf), snapshot(small_gpt2)
    freeze(small_gpt2, trainable="all")
    train_a_little(small_gpt2)
    assert differing(small_gpt2, of_gpt2) == set(of_gpt2)
    assert not differing(clf, of_clf)


def test_a_tied_head_stays_tied_when_its_model_gets_its_own_copy(small_gpt2: GPT2) -> None:
    add_classifier_head(small_gpt2, classes=["a", "b"], seed=1)
    freeze(small_gpt2, trainable="all")
    with torch.no_grad():
        small_gpt2.trunk.embed.token.weight.zero_()
    assert not small_gpt2(torch.tensor([[1, 2]])).any()


def test_freezing_again_copies_once(small_gpt2: GPT2) -> None:
    clf = add_classifier_head(small_gpt2, num_classes=2, seed=1)
    freeze(clf, trainable="all")
    places = {name: parameter.data_ptr() for name, parameter in clf.named_parameters()}
    objects = dict(clf.named_parameters())
    freeze(clf, trainable="head")
    freeze(clf, trainable="all")
    assert {name: parameter.data_ptr() for name, parameter in clf.named_parameters()} == places
    assert all(clf.get_parameter(name) is parameter for name, parameter in objects.items())


def test_a_deep_copy_shares_nothing(small_gpt2: GPT2) -> None:
    clf = add_classifier_head(small_gpt2, num_classes=2, seed=1)
    twin = copy.deepcopy(clf)
    places = {parameter.data_ptr() for model in (small_gpt2, clf) for parameter in model.parameters()}
    assert not places & {parameter.data_ptr() for parameter in twin.parameters()}


def test_a_copied_matrix_lies_in_its_own_order(small_gpt2: GPT2) -> None:
    # A loaded matrix is a transposed view; the optimizer would walk it against the grain.
    weight = small_gpt2.get_parameter("trunk.blocks.2.mlp.up.weight")
    weight.data = weight.detach().t().contiguous().t()
    clf = add_classifier_head(small_gpt2, num_classes=2, seed=1)
    own = clf.get_parameter("trunk.blocks.2.mlp.up.weight")
    assert not weight.is_contiguous()
    assert own.is_contiguous()
    assert torch.equal(own, weight)


def test_what_the_source_trains_is_copied(small_gpt2: GPT2) -> None:
    freeze(small_gpt2, trainable=1)
    clf = add_classifier_head(small_gpt2, num_classes=2, seed=1)
    freeze(clf, trainable="head")
    before = snapshot(clf)
    with torch.no_grad():
        for parameter in small_gpt2.parameters():
            if parameter.requires_grad:
                parameter.add_(1.0)
    assert not differing(clf, before)


def test_a_loaded_model_trains_nothing_before_freeze_says_so() -> None:
    assert trainable_report(byte_gpt2()).trainable == 0


def test_a_state_dict_goes_into_tensors_of_ones_own(small_gpt2: GPT2) -> None:
    clf = add_classifier_head(small_gpt2, num_classes=2, seed=1)
    before = snapshot(small_gpt2)
    clf.load_state_dict({name: torch.zeros_like(value) for name, value in clf.state_dict().items()})
    assert not differing(small_gpt2, before)
    assert all(not parameter.any() for parameter in clf.parameters())


def test_a_loop_of_ones_own_is_stopped_before_it_changes_another_model(small_gpt2: GPT2) -> None:
    clf = add_classifier_head(small_gpt2, num_classes=2, seed=1)
    for parameter in clf.trunk.blocks[0].parameters():  # the book's way, without freeze
        parameter.requires_grad_(True)
    targets = torch.tensor([0, 1])
    batch = Batch(torch.tensor([[1, 2], [3, 4]]), torch.tensor([2, 2]), targets, SingleLabel([0, 1]))
    with pytest.raises(ValueError, match=r"blocks\.0.*freeze"):
        batch_loss(clf, batch)
    freeze(clf, trainable="all")
    batch_loss(clf, batch).backward()  # type: ignore[no-untyped-call]


def test_one_seed_draws_a_head_that_is_no_copy_of_the_embedding() -> None:
    gpt2 = load_gpt2(CONFIG, weights="random", seed=5)
    clf = add_classifier_head(gpt2, num_classes=2, seed=5)
    rows = gpt2.get_parameter("trunk.embed.token.weight")[:2]
    assert torch.corrcoef(torch.stack([rows.flatten(), clf.get_parameter("head.output.weight").flatten()]))[0, 1] < 0.9


@pytest.mark.parametrize("wrap", [lambda clf: torch.nn.Sequential(clf), lambda clf: clf.trunk])
def test_a_state_dict_loaded_through_another_module_stays_in_this_model(wrap: Any, small_gpt2: GPT2) -> None:
    clf = add_classifier_head(small_gpt2, num_classes=2, seed=1)
    before = snapshot(small_gpt2)
    whole = wrap(clf)
    whole.load_state_dict({name: torch.zeros_like(value) for name, value in whole.state_dict().items()})
    assert not differing(small_gpt2, before)
    assert not clf.get_parameter("trunk.embed.token.weight").any()


def test_what_a_state_dict_assigns_stays_its_givers(small_gpt2: GPT2) -> None:
    giver, taker = (add_classifier_head(small_gpt2, num_classes=2, seed=seed) for seed in (1, 2))
    taker.load_state_dict(giver.state_dict(), assign=True)
    before = snapshot(giver)
    with torch.no_grad():
        for parameter in taker.parameters():
            parameter.add_(1.0)
    assert not differing(giver, before)


def test_a_source_set_to_train_by_hand_is_stopped_too(small_gpt2: GPT2) -> None:
    add_classifier_head(small_gpt2, num_classes=2, seed=1)
    small_gpt2.requires_grad_(True)
    with pytest.raises(ValueError, match="freeze"):
        small_gpt2(torch.tensor([[1, 2]]))


@pytest.mark.parametrize("classes", [{"ham", "spam"}, {"ham": 0, "spam": 1}, "ab", 2, ["a", None], ["a", float("nan")]])
def test_classes_without_an_order_or_a_name_are_refused(classes: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="class"):
        add_classifier_head(byte_gpt2(), classes=classes, seed=1)


def test_a_head_goes_on_float32_weights_only() -> None:
    with pytest.raises(ValueError, match=r"model\.float\(\)"):
        add_classifier_head(byte_gpt2().bfloat16(), num_classes=2, seed=1)
