"""Which modules may be computed in gptclf's own way, and what comes of it: kept features, packed rows, addresses."""

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
import torch
from conftest import byte_gpt2, randomised
from stand_ins import Doubled, LowRank, calls_of_blocks
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
    register_module_full_backward_hook,
    register_module_full_backward_pre_hook,
)
from torch.nn.utils import parametrize, prune

from gptclf import (
    GPT2,
    Linear,
    TextDataset,
    add_classifier_head,
    clear_features,
    evaluate,
    freeze,
    predict_proba,
    train,
)
from gptclf.features.frozen_prefix import FrozenPrefix, NoPrefix, frozen_prefix
from gptclf.gpt2.arithmetic import BFLOAT16, FLOAT32
from gptclf.gpt2.layers import Dropout, Embedding
from gptclf.gpt2.packed import advance, row_groups
from gptclf.gpt2.standard import described, is_hooked, is_standard, is_standard_alone
from gptclf.gpt2.trunk import Attention, Block

TEXTS = ["win a prize", "see you at six, or later", "", "ok", "call now to win", "home"]


def classifier() -> GPT2:
    clf = add_classifier_head(randomised(byte_gpt2()), classes=["ham", "spam"], seed=3)
    clf.head.forget_fresh()
    return clf


def labelled(clf: GPT2) -> TextDataset:
    return TextDataset(TEXTS, ["spam", "ham"] * 3, tokenizer=clf.tokenizer, classes=clf.classes)


def asked(clf: GPT2) -> Any:
    """What the model itself says to each text."""
    with torch.no_grad():
        rows = [clf(torch.from_numpy(row.astype(np.int64))[None]).softmax(dim=-1) for row in labelled(clf).rows()]
    return torch.cat(rows).numpy()


def block_of(clf: GPT2, number: int = 0) -> Block:
    block = clf.trunk.blocks[number]
    assert isinstance(block, Block)
    return block


def prefix_of(clf: GPT2) -> FrozenPrefix:
    prefix = frozen_prefix(clf, FLOAT32)
    assert isinstance(prefix, FrozenPrefix)
    return prefix


# What may happen to a module. Each changes what it computes; what reaches beyond the model is undone in the end.


def replace_forward(module: nn.Module, ending: ExitStack) -> None:
    forward = module.forward
    module.forward = lambda *given: 2 * forward(*given)


def replace_forward_of_the_class(module: nn.Module, ending: ExitStack) -> None:
    kind: Any = type(module)
    forward = kind.forward
    kind.forward = lambda self, *given: 2 * forward(self, *given)
    ending.callback(setattr, kind, "forward", forward)


def wrap_forward_of_the_class(module: nn.Module, ending: ExitStack) -> None:
    kind: Any = type(module)
    forward = kind.forward

    @functools.wraps(forward)  # its name and its home
    def doubled(self: Any, *given: Any) -> Any:
        return 2 * forward(self, *given)

    kind.forward = doubled
    ending.callback(setattr, kind, "forward", forward)


def override_forward(module: nn.Module, ending: ExitStack) -> None:
    base: Any = type(module)
    module.__class__ = type("Other", (base,), {"forward": lambda self, *given: 2 * base.forward(self, *given)})


def hook(module: nn.Module, ending: ExitStack) -> None:
    module.register_forward_hook(lambda m, given, y: 2 * y)


def hook_input(module: nn.Module, ending: ExitStack) -> None:
    def changed(module: nn.Module, given: tuple[Tensor]) -> Tensor:
        return given[0].square() if given[0].is_floating_point() else 2 * given[0] % 257

    module.register_forward_pre_hook(changed)


def hook_every_module(module: nn.Module, ending: ExitStack) -> None:
    kind = type(module)
    handle = register_module_forward_hook(lambda m, given, y: 2 * y if type(m) is kind else y)
    ending.callback(handle.remove)


class Twice(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def parametrise(module: nn.Module, ending: ExitStack) -> None:
    parametrize.register_parametrization(module, "weight", Twice())


def prune_half(module: nn.Module, ending: ExitStack) -> None:
    torch.manual_seed(0)
    prune.random_unstructured(module, "weight", amount=0.5)  # type: ignore[no-untyped-call]


CHANGES: list[Callable[[nn.Module, ExitStack], None]] = [
    replace_forward,
    replace_forward_of_the_class,
    wrap_forward_of_the_class,
    override_forward,
    hook,
    hook_input,
    hook_every_module,
    parametrise,
    prune_half,
]


@pytest.fixture
def ending() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def test_a_model_of_ours_is_standard_in_every_part() -> None:
    clf = classifier()
    assert is_standard(clf)
    assert clf.is_plain
    assert all(map(is_standard_alone, clf.modules()))


@pytest.mark.parametrize("part", ["trunk.blocks.0.mlp.up", "trunk.blocks.0.norm1", "trunk.embed.token"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_module_is_noticed_and_answers_and_losses_follow(
    change: Callable[[nn.Module, ExitStack], None], part: str, ending: ExitStack
) -> None:
    clf = classifier()
    before = asked(clf)
    change(clf.get_submodule(part), ending)
    assert not is_standard(clf.get_submodule(part))
    assert not is_standard(clf)
    prefix = frozen_prefix(clf, FLOAT32)
    assert isinstance(prefix, NoPrefix)
    assert prefix.notable
    expected = asked(clf)
    assert np.abs(expected - before).max() > 1e-4
    np.testing.assert_allclose(predict_proba(clf, TEXTS, precision="float32"), expected, rtol=0, atol=1e-5)
    found = evaluate(clf, labelled(clf), precision="float32").probabilities
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    options: Any = {"epochs": 1, "lr": 0.0, "precision": "float32", "progress": False}
    kept, plain = (train(clf, labelled(clf), reuse_frozen=reuse, **options).steps for reuse in (True, False))
    assert [step.loss for step in kept] == pytest.approx([step.loss for step in plain], abs=1e-6)
    assert clear_features() == 0


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_block_is_called_and_the_others_stay_packed(
    change: Callable[[nn.Module, ExitStack], None], ending: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    clf, called = classifier(), calls_of_blocks(monkeypatch)
    change(block_of(clf).mlp.up, ending)
    x, groups = torch.randn(12, 64, generator=torch.Generator().manual_seed(0)), row_groups(np.array([3, 3, 6]))
    with torch.no_grad():
        for block in clf.trunk.blocks:
            advance(block, x, groups, FLOAT32)
    everywhere = change in (hook_every_module, replace_forward_of_the_class, wrap_forward_of_the_class)
    assert list(dict.fromkeys(called)) == (list(clf.trunk.blocks) if everywhere else [block_of(clf)])


@pytest.mark.parametrize(
    "register",
    [
        register_module_forward_hook,
        register_module_forward_pre_hook,
        register_module_full_backward_hook,
        register_module_full_backward_pre_hook,
    ],
)
def test_each_of_torchs_global_hooks_is_noticed_while_it_is_there(register: Any) -> None:
    clf = classifier()
    handle = register(lambda *_: None)
    try:
        assert is_hooked(nn.Linear(2, 2))
        assert not is_standard(clf)
        assert not clf.is_plain
    finally:
        handle.remove()
    assert is_standard(clf)


@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
def test_each_of_a_modules_hooks_is_noticed_while_it_is_there(kind: str) -> None:
    clf = classifier()
    handle = getattr(block_of(clf).mlp, f"register_{kind}_hook")(lambda *_: None)
    assert not is_standard(clf)
    handle.remove()
    assert is_standard(clf)


def test_a_parametrisation_and_a_pruning_that_are_gone_are_forgotten() -> None:
    clf = classifier()
    layer = block_of(clf).mlp.up
    prune.random_unstructured(layer, "weight", amount=0.5)  # type: ignore[no-untyped-call]
    prune.remove(layer, "weight")  # type: ignore[no-untyped-call]
    parametrize.register_parametrization(layer, "weight", Twice())
    parametrize.remove_parametrizations(layer, "weight")
    assert is_standard(clf)


# What a class says of itself


class SaysNothing(Linear):
    pass


class SaysSo(Linear):
    standard = True
    kind = "says_so"


class SaysNo(Linear):
    standard = False
    kind = "says_no"


class SaysSoWithoutAKind(Linear):
    standard = True


@pytest.mark.parametrize(
    ("kind", "expected"), [(Linear, True), (SaysNothing, False), (SaysSo, True), (SaysNo, False), (Doubled, False)]
)
def test_a_class_vouches_for_itself_in_its_own_body(kind: type[Linear], expected: bool) -> None:
    assert is_standard(kind(2, 3)) == expected


@pytest.mark.parametrize("layer", [nn.Linear(2, 2), nn.Embedding(2, 2), nn.GELU(), nn.Sequential(), nn.RMSNorm(2)])
def test_torchs_other_classes_are_called(layer: nn.Module) -> None:
    assert not is_standard(layer)


@pytest.mark.parametrize("layer", [nn.LayerNorm(2), nn.Dropout(), nn.ModuleList(), nn.ModuleDict()])
def test_torchs_norm_dropout_and_lists_are_as_they_say(layer: nn.Module) -> None:
    assert is_standard(layer)


def test_a_patched_base_makes_what_inherits_its_forward_foreign(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = SaysSo(2, 3)
    assert is_standard(layer)
    monkeypatch.setattr(Linear, "forward", lambda self, x: x)
    assert not is_standard(layer)


def test_a_standard_class_without_a_kind_is_told_to_name_one() -> None:
    clf = classifier()
    block_of(clf).mlp.up = SaysSoWithoutAKind(64, 256).requires_grad_(False)
    with pytest.raises(TypeError, match=r"SaysSoWithoutAKind.*kind"):
        prefix_of(clf).identity()


# The address of features


def test_the_address_holds_fixed_kinds_and_described_attributes() -> None:
    block = block_of(classifier())
    assert list(described(block)) == [
        ["block"],
        ["layer_norm", "normalized_shape=(64,)", "eps=1e-05"],
        ["attention", "n_heads=4", "scale=0.25"],
        ["linear"],
        ["dropout", "p=0.0"],
        ["linear"],
        ["dropout", "p=0.0"],
        ["layer_norm", "normalized_shape=(64,)", "eps=1e-05"],
        ["mlp", "activation=gelu_tanh"],
        ["linear"],
        ["linear"],
        ["dropout", "p=0.0"],
    ]


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("trunk.blocks.0.attention", "scale", 0.3),
        ("trunk.blocks.1.attention", "n_heads", 2),
        ("trunk.blocks.0.mlp", "activation", "relu"),
        ("trunk.blocks.1.norm2", "eps", 1e-3),
        ("trunk.embed.dropout", "p", 0.1),
    ],
)
def test_an_attribute_that_the_result_depends_on_is_in_the_address(part: str, name: str, value: object) -> None:
    clf = classifier()
    before = prefix_of(clf).identity()
    found = FrozenPrefix(clf, 3, FLOAT32)
    assert found.identity() == before
    setattr(clf.get_submodule(part), name, value)
    assert found.identity() != before


def test_the_arithmetic_is_in_the_address() -> None:
    clf = classifier()
    assert FrozenPrefix(clf, 3, BFLOAT16).identity() != FrozenPrefix(clf, 3, FLOAT32).identity()


@pytest.mark.parametrize("kind", [Linear, Embedding, Dropout, Attention, Block])
def test_the_kind_is_in_the_address_and_the_modules_path_is_not(
    kind: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = prefix_of(classifier())
    before = prefix.identity()
    monkeypatch.setattr(kind, "__module__", "somewhere.else")
    assert prefix.identity() == before
    monkeypatch.setattr(kind, "kind", "other")
    assert prefix.identity() != before


def test_what_is_trained_or_above_is_not_in_the_address() -> None:
    clf = classifier()
    before = prefix_of(clf).identity()
    block_of(clf, 2).attention.scale = 0.3
    with torch.no_grad():
        block_of(clf, 2).mlp.up.weight.add_(1.0)
    assert prefix_of(clf).identity() == before


def test_a_standard_layer_from_outside_keeps_features_under_an_address_of_its_own() -> None:
    clf = classifier()
    layer = block_of(clf).mlp.up
    before = prefix_of(clf).identity()
    block_of(clf).mlp.up = outside = LowRank(layer).requires_grad_(False)
    addresses = {before, prefix_of(clf).identity()}
    for scale in (0.5, -1.5):
        outside.scale = scale
        addresses.add(prefix_of(clf).identity())
        found = evaluate(clf, labelled(clf), precision="float32").probabilities
        np.testing.assert_allclose(found, asked(clf), rtol=0, atol=1e-5)
    assert len(addresses) == 3
    assert clear_features() > 0


# Linear layers whose forward and other products belong together


class OnlyForward(Linear):
    standard = True
    kind = "only_forward"

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class AllProducts(OnlyForward):
    standard = True
    kind = "all_products"

    def forward(self, x: Tensor) -> Tensor:
        return Linear.forward(self, x)

    rows, onto, prepared = Linear.rows, Linear.onto, Linear.prepared


class NothingNew(AllProducts):
    standard = True
    kind = "nothing_new"


@pytest.mark.parametrize(("kind", "expected"), [(OnlyForward, False), (AllProducts, True), (NothingNew, True)])
def test_a_new_forward_without_the_other_products_is_called(kind: type[Linear], expected: bool) -> None:
    assert is_standard(kind(2, 3)) == expected


@pytest.mark.parametrize("part", ["attention.qkv", "mlp.up"])
def test_answers_are_the_models_whatever_a_standard_class_left_out(part: str) -> None:
    clf = classifier()
    for block in clf.trunk.blocks:
        block.get_submodule(part).__class__ = OnlyForward
    np.testing.assert_allclose(predict_proba(clf, TEXTS), asked(clf), atol=1e-6)
    np.testing.assert_allclose(evaluate(clf, labelled(clf)).probabilities, asked(clf), atol=1e-6)


# Other modules in the places of dropout


class Always(nn.Dropout):
    """Dropout that answers draw as well (Gal & Ghahramani, 2016); here without randomness."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 0.5


@pytest.mark.parametrize("layer", [nn.Dropout(0.0), nn.Identity(), nn.AlphaDropout(0.0), Always(0.0)])
@pytest.mark.parametrize("place", ["attention.weights_dropout", "attention.dropout", "mlp.dropout"])
@pytest.mark.parametrize("trainable", ["head", "all"])
def test_any_module_may_take_the_place_of_dropout(trainable: str, place: str, layer: nn.Module) -> None:
    clf, untouched = classifier(), asked(classifier())
    freeze(clf, trainable=trainable)
    owner, _, name = place.rpartition(".")
    for block in clf.trunk.blocks:
        setattr(block.get_submodule(owner), name, layer.eval())
    np.testing.assert_allclose(predict_proba(clf, TEXTS), asked(clf), atol=1e-6)
    assert np.allclose(asked(clf), untouched, atol=1e-6) != isinstance(layer, Always)
    train(clf, labelled(clf), epochs=1, progress=False)
    np.testing.assert_allclose(evaluate(clf, labelled(clf)).probabilities, asked(clf), atol=1e-6)


def test_torchs_dropout_on_attention_weights_draws_in_training_only() -> None:
    clf = classifier()
    for block in clf.trunk.blocks:
        block.attention.weights_dropout = nn.Dropout(0.5)  # type: ignore[union-attr]
    ids = torch.arange(20).view(2, 10)
    assert torch.equal(clf.eval()(ids), clf(ids))
    assert not torch.equal(clf.train()(ids), clf(ids))
