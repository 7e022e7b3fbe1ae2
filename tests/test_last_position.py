"""The last block, computed only at the position the head looks at, is the block: values and gradients, in float64."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import classifier_of, randomised
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gptclf import GPT2, GPT2Config
from gptclf.gpt2.config import ACTIVATIONS
from gptclf.gpt2.layers import Linear
from gptclf.gpt2.trunk import MLP, Attention, Block, TokenPositions, can_pool


def assert_same(found: Any, expected: Any, what: str = "") -> None:
    def named(text: str) -> str:
        return f"{what}: {text}"

    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12, msg=named)


def block_of(seed: int = 0, layer: int = 1, **changes: Any) -> Block:
    """A block in float64 in which no parameter is 0 or 1."""
    shape: dict[str, Any] = {"vocab_size": 7, "context_length": 64, "emb_dim": 24, "n_heads": 3, "mlp_dim": 20}
    block = Block(GPT2Config(**{**shape, **changes}), layer).to_empty(device="cpu").double()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in block.named_parameters():
        nn.init.normal_(parameter, 1.0 if name in ("norm1.weight", "norm2.weight") else 0.0, 0.3, generator=generator)
    return block.eval()


def stream(rows: int, length: int, width: int = 24, seed: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, length, width, dtype=torch.float64, generator=generator).requires_grad_()


def gradients_of(block: Block, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Gradients of a sum of y in which every entry weighs differently, with respect to x and every parameter."""
    named = dict(block.named_parameters())
    weights = torch.linspace(-1.0, 2.0, y.numel(), dtype=y.dtype).view_as(y)
    return dict(zip(["x", *named], torch.autograd.grad((y * weights).sum(), [x, *named.values()]), strict=True))


def check_at(block: Block, x: Tensor, position: Tensor) -> None:
    """Compare `at_position` with the general path, values and gradients."""
    D = x.shape[2]
    ours, general = block.at_position(x, position), block(x)[torch.arange(len(x)), position]
    assert_same(ours, general)
    ours_by_name, general_by_name = gradients_of(block, x, ours), gradients_of(block, x, general)
    for name, gradient in general_by_name.items():
        assert_same(ours_by_name[name], gradient, name)
        if name == "attention.qkv.bias":  # a bias of all keys shifts all scores alike
            assert not ours_by_name[name][D : 2 * D].any()
            assert gradient[D : 2 * D].abs().max() < 1e-12
        elif x.shape[1] > 1 and bool((position > 0).all()):
            assert gradient.any(), f"{name} has no gradient, so nothing was compared"


def positions_of(length: int) -> list[Tensor]:
    """Last, first, middle, and different ones in one batch of three."""
    same = [torch.full((3,), at) for at in sorted({length - 1, 0, length // 2})]
    return [*same, torch.tensor([0, length - 1, length // 2])]


@pytest.mark.parametrize("length", [1, 2, 3, 17])
def test_block_at_a_position_equals_the_whole_block_there(length: int) -> None:
    block = block_of()
    for position in positions_of(length):
        check_at(block, stream(3, length), position)


@pytest.mark.parametrize(
    "changes",
    [
        {"qkv_bias": False},
        {"scale_attention": False},
        {"scale_attention_by_layer": True},
        {"scale_attention": False, "scale_attention_by_layer": True, "qkv_bias": False},
        {"n_heads": 1},
        {"n_heads": 24},
        {"norm_eps": 0.3},
        {"drop_rate": 0.4},
        {"mlp_dim": None},
        *({"activation": activation} for activation in ACTIVATIONS),
    ],
)
def test_block_at_a_position_equals_the_whole_block_for_every_choice(changes: dict[str, Any]) -> None:
    block = block_of(seed=3, layer=2, **changes)
    for position in positions_of(9):
        check_at(block, stream(3, 9), position)


@settings(max_examples=40, deadline=None)
@given(
    heads=st.integers(1, 6),
    head_width=st.integers(1, 9),
    rows=st.integers(1, 5),
    length=st.integers(1, 20),
    bias=st.booleans(),
    seed=st.integers(0, 1000),
    data=st.data(),
)
def test_block_at_any_position_of_any_shape_equals_the_whole_block(
    heads: int, head_width: int, rows: int, length: int, bias: bool, seed: int, data: st.DataObject
) -> None:
    # From a width of 4: the norm of two numbers is a step function, whose derivative rounding can blow up.
    width = heads * head_width if heads * head_width >= 4 else 4 * heads
    block = block_of(seed=seed, emb_dim=width, n_heads=heads, qkv_bias=bias, norm_eps=1e-2)
    position = torch.tensor(data.draw(st.lists(st.integers(0, length - 1), min_size=rows, max_size=rows)))
    check_at(block, stream(rows, length, width, seed), position)


def test_what_stands_right_of_the_position_does_not_matter() -> None:
    block, x, position = block_of(), stream(3, 11), torch.tensor([0, 6, 9])
    right = torch.arange(11) > position[:, None]
    garbage = torch.where(right[..., None], 1e6 * torch.randn_like(x), x.detach()).requires_grad_()
    ours, with_garbage = block.at_position(x, position), block.at_position(garbage, position)
    assert torch.equal(ours, with_garbage)
    assert not gradients_of(block, garbage, with_garbage)["x"][right].any()
    longer = torch.cat([x, 1e6 * torch.ones(3, 4, 24, dtype=x.dtype)], dim=1)
    assert_same(block.at_position(longer, position), ours)


def classifier(config: GPT2Config, pooling: str = "last") -> GPT2:
    """In float64, everything trainable."""
    return randomised(classifier_of(config, ["a", "b", "c"], pooling=pooling, seed=7)).double().requires_grad_()


def batch(config: GPT2Config, lengths: list[int]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(config.vocab_size, (len(lengths), max(lengths)), generator=generator)
    return ids, torch.tensor(lengths)


def logits_without_shortcuts(clf: GPT2, ids: Tensor, lengths: Tensor | None) -> Tensor:
    return clf.head(clf.trunk(ids), lengths)  # type: ignore[no-any-return]


def all_gradients(clf: GPT2, logits: Tensor) -> list[Tensor]:
    weights = torch.linspace(-1.0, 2.0, logits.numel(), dtype=logits.dtype).view_as(logits)
    return list(torch.autograd.grad((logits * weights).sum(), list(clf.parameters()), materialize_grads=True))


@pytest.fixture
def calls_of_at(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes with which `Block.at_position` is called, filled in as it is."""
    shapes: list[tuple[int, ...]] = []
    at_position = Block.at_position

    def counted(block: Block, x: Tensor, position: Tensor) -> Tensor:
        shapes.append(tuple(x.shape))
        return at_position(block, x, position)

    monkeypatch.setattr(Block, "at_position", counted)
    return shapes


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("pooling", ["last", "first"])
@pytest.mark.parametrize("n_layers", [1, 3])
def test_model_that_pools_one_position_equals_the_general_path(
    odd_config: GPT2Config, calls_of_at: list[tuple[int, ...]], pooling: str, padded: bool, n_layers: int
) -> None:
    clf = classifier(odd_config.replace(n_layers=n_layers), pooling)
    ids, lengths = batch(clf.config, [4, 9, 1, 6])
    given_lengths = lengths if padded else None
    ours = clf(ids, given_lengths)
    assert calls_of_at == [(4, 1 if pooling == "first" else 9, 24)]
    ours_gradients = all_gradients(clf, ours)
    seen: list[tuple[int, ...]] = []
    hook = clf.trunk.blocks[-1].register_forward_hook(lambda block, given, y: seen.append(tuple(y.shape)))
    general = clf(ids, given_lengths)
    assert seen == [(4, 9, 24)]
    assert len(calls_of_at) == 1
    assert_same(ours, general)
    assert_same(ours, logits_without_shortcuts(clf, ids, given_lengths))
    names = [name for name, _ in clf.named_parameters()]
    for name, one, other in zip(names, ours_gradients, all_gradients(clf, general), strict=True):
        assert_same(one, other, name)
    hook.remove()
    clf(ids, given_lengths)
    assert len(calls_of_at) == 2


def test_pooling_that_looks_at_all_positions_runs_the_whole_block(
    odd_config: GPT2Config, calls_of_at: list[tuple[int, ...]]
) -> None:
    for pooling in ("mean", "max"):
        clf = classifier(odd_config, pooling)
        clf(*batch(odd_config, [4, 9]))
    assert not calls_of_at


PARTS: dict[str, Callable[[Block], nn.Module]] = {
    "block": lambda block: block,
    "attention": lambda block: block.attention,
    "norm1": lambda block: block.norm1,
    "qkv": lambda block: block.attention.qkv,
}

HOOKS: dict[str, Callable[[nn.Module, Callable[..., None]], Any]] = {
    "forward": lambda module, hook: module.register_forward_hook(hook),
    "before": lambda module, hook: module.register_forward_pre_hook(hook),
    "backward": lambda module, hook: module.register_full_backward_hook(hook),
    "before backward": lambda module, hook: module.register_full_backward_pre_hook(hook),
}


@pytest.mark.parametrize("kind", HOOKS)
@pytest.mark.parametrize("part", PARTS)
def test_block_whose_parts_are_watched_is_called_as_it_is(
    odd_config: GPT2Config, calls_of_at: list[tuple[int, ...]], part: str, kind: str
) -> None:
    clf = classifier(odd_config)
    ids, lengths = batch(odd_config, [4, 9])
    block = clf.trunk.blocks[-1]
    assert isinstance(block, Block)
    assert can_pool(block)
    expected = clf(ids, lengths)
    expected_gradients = all_gradients(clf, expected)
    calls_of_at.clear()
    called: list[str] = []
    handle = HOOKS[kind](PARTS[part](block), lambda *_: called.append(kind))
    assert not can_pool(block)
    logits = clf(ids, lengths)
    gradients = all_gradients(clf, logits)
    assert called == [kind]
    assert not calls_of_at
    assert_same(logits, expected)
    assert_same(gradients, expected_gradients)
    handle.remove()
    assert can_pool(block)


@pytest.mark.parametrize("part", ["out", "dropout", "mlp", "norm2"])
def test_hooks_on_the_other_parts_of_the_last_block_see_every_token(odd_config: GPT2Config, part: str) -> None:
    clf = classifier(odd_config)
    ids, lengths = batch(odd_config, [4, 9])
    expected = clf(ids, lengths)
    block = clf.trunk.blocks[-1]
    watched = block.get_submodule(f"attention.{part}" if part in ("out", "dropout") else part)
    shapes: list[tuple[int, ...]] = []
    watched.register_forward_hook(lambda module, given, y: shapes.append(tuple(y.shape)))
    assert_same(clf(ids, lengths), expected)
    assert shapes == [(2, 9, 24)]


class Doubled(Linear):
    """What a user may put into the place of a projection."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def test_replaced_projection_of_another_class_is_used(
    odd_config: GPT2Config, calls_of_at: list[tuple[int, ...]]
) -> None:
    ids, lengths = batch(odd_config, [4, 9])
    clf, expected = classifier(odd_config), classifier(odd_config)
    for model in (clf, expected):
        block = model.trunk.blocks[-1]
        assert isinstance(block, Block)
        qkv = block.attention.qkv
        if model is clf:
            block.attention.qkv = Doubled(24, 72).double()
            block.attention.qkv.load_state_dict(qkv.state_dict())
        else:
            with torch.no_grad():
                qkv.weight.mul_(2)
                qkv.bias.mul_(2)
        assert can_pool(block) == (model is expected)
    logits = clf(ids, lengths)
    assert not calls_of_at
    assert_same(logits, expected(ids, lengths))


@pytest.mark.parametrize("part", PARTS)
def test_replaced_forward_is_used(odd_config: GPT2Config, calls_of_at: list[tuple[int, ...]], part: str) -> None:
    clf = classifier(odd_config)
    ids, lengths = batch(odd_config, [4, 9])
    expected = logits_without_shortcuts(clf, ids, lengths)
    block = clf.trunk.blocks[-1]
    assert isinstance(block, Block)
    module = PARTS[part](block)
    forward, called = module.forward, []

    def replaced(*given: Any) -> Any:
        called.append(part)
        return forward(*given)

    module.forward = replaced
    assert not can_pool(block)
    assert_same(clf(ids, lengths), expected)
    assert called == [part]
    assert not calls_of_at


def test_training_with_dropout_takes_the_general_path_and_draws(
    odd_config: GPT2Config, calls_of_at: list[tuple[int, ...]]
) -> None:
    clf = classifier(odd_config.replace(drop_rate=0.5))
    ids, lengths = batch(odd_config, [4, 9])
    block = clf.trunk.blocks[-1]
    assert isinstance(block, Block)
    answered = clf(ids, lengths)
    assert calls_of_at
    calls_of_at.clear()
    clf.train()
    for module in clf.modules():
        if isinstance(module, Attention):
            module.dropout.p = 0.0
        elif isinstance(module, TokenPositions | MLP):
            module.dropout.p = 0.0  # what is left is the dropout of attention weights
    for other in list(clf.trunk.blocks)[:-1]:
        other.eval()
    assert not can_pool(block)
    torch.manual_seed(0)
    drawn = [clf(ids, lengths) for _ in range(3)]
    assert not calls_of_at
    assert not torch.allclose(drawn[0], drawn[1])
    assert not torch.allclose(drawn[0], answered)
    torch.manual_seed(0)
    assert_same(clf(ids, lengths), drawn[0])
    clf.eval()
    assert can_pool(block)
    assert_same(clf(ids, lengths), answered)


def test_training_without_dropout_takes_the_short_way(
    odd_config: GPT2Config, calls_of_at: list[tuple[int, ...]]
) -> None:
    clf = classifier(odd_config).train()
    ids, lengths = batch(odd_config, [4, 9])
    assert_same(clf(ids, lengths), logits_without_shortcuts(clf, ids, lengths))
    assert len(calls_of_at) == 1


def test_dropout_that_was_switched_on_by_hand_draws(odd_config: GPT2Config) -> None:
    clf = classifier(odd_config).train()
    dropout = clf.trunk.blocks[-1].get_submodule("attention.dropout")
    assert isinstance(dropout, nn.Dropout)
    dropout.p = 0.5
    ids, lengths = batch(odd_config, [4, 9])
    assert not torch.allclose(clf(ids, lengths), clf(ids, lengths))


@pytest.mark.parametrize("options", [{"bias": False}, {"elementwise_affine": False}])
def test_norm_without_gain_or_shift_in_the_last_block_works(odd_config: GPT2Config, options: dict[str, bool]) -> None:
    clf = classifier(odd_config)
    block = clf.trunk.blocks[-1]
    assert isinstance(block, Block)
    block.norm1 = nn.LayerNorm(24, dtype=torch.float64, **options)
    ids, lengths = batch(odd_config, [4, 9])
    assert_same(clf(ids, lengths), logits_without_shortcuts(clf, ids, lengths))
