"""A linear layer's parts equal its dense matrix, whatever holds it; dropout and learners draw from their own source."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import byte_gpt2, classifier_of, randomised
from stand_ins import EightBit, LowRank, TwoLayers
from torch import Tensor, nn
from torch.nn import functional as F

from gptclf import GPT2, GPT2Config, Linear, add_classifier_head, freeze
from gptclf.gpt2.arithmetic import BFLOAT16, FLOAT32, Arithmetic
from gptclf.gpt2.gradients import KeptGradients
from gptclf.gpt2.layers import Dropout, acts
from gptclf.gpt2.learner import Learner
from gptclf.gpt2.trunk import Block, can_pool

# Sizes of which no two are equal: inputs, outputs, rows.
K, N, M = 10, 12, 5

KINDS: dict[str, Callable[[Linear], Linear]] = {"plain": lambda layer: layer, "low rank": LowRank, "8 bit": EightBit}

# A contiguous part of the outputs, and the heads into which it is divided.
PARTS = [(slice(None), 1), (slice(None), 4), (slice(0, 6), 3), (slice(6, 12), 3), (slice(3, 8), 1), (slice(2, 3), 1)]


def layer_of(kind: str, dtype: torch.dtype = torch.float64, *, bias: bool = True) -> Linear:
    layer = Linear(K, N, bias=bias, dtype=dtype)
    generator = torch.Generator().manual_seed(1)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, 0.0, 1.0, generator=generator)
    return KINDS[kind](layer)


def dense(layer: Linear) -> Tensor:
    return layer.dense() if isinstance(layer, LowRank | EightBit) else layer.weight


def keep(layer: Linear) -> None:
    gradients = KeptGradients()
    for part in layer.modules():
        if isinstance(part, Linear):
            part.gradients = gradients


def numbers(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype).requires_grad_()


def check(
    layer: Linear, inputs: Tensor, found: Callable[[Tensor], Tensor], expected: Callable[[Tensor], Tensor]
) -> None:
    """Compare values, and the gradients of the inputs and of every parameter in steps of one and two passes."""
    exact: Any = {"rtol": 1e-4, "atol": 1e-4} if inputs.dtype == torch.float32 else {"rtol": 1e-11, "atol": 1e-11}
    named = {"x": inputs, **dict(layer.named_parameters())}

    def loss(y: Tensor, number: int) -> Tensor:
        return (y * torch.linspace(-1.0, number, y.numel(), dtype=y.dtype).view_as(y)).sum()

    torch.testing.assert_close(found(inputs), expected(inputs), **exact)
    for passes in (1, 2, 1):
        total = torch.stack([loss(expected(inputs), number) for number in range(passes)]).sum()
        gradients = torch.autograd.grad(total, list(named.values()), materialize_grads=True)
        layer.zero_grad()
        inputs.grad = None
        for number in range(passes):
            loss(found(inputs), number).backward()  # type: ignore[no-untyped-call]
        ours = {name: torch.zeros_like(x) if x.grad is None else x.grad for name, x in named.items()}
        torch.testing.assert_close(ours, dict(zip(named, gradients, strict=True)), **exact)


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", KINDS)
class TestLayer:
    def layer(self, kind: str, dtype: torch.dtype, bias: bool, kept: bool) -> Linear:
        layer = layer_of(kind, dtype, bias=bias)
        if kept:
            keep(layer)
        return layer

    @pytest.mark.parametrize("shape", [(K,), (M, K), (2, 3, K)])
    def test_forward_is_the_dense_matrix(
        self, kind: str, dtype: torch.dtype, bias: bool, kept: bool, shape: tuple[int, ...]
    ) -> None:
        layer = self.layer(kind, dtype, bias, kept)
        check(layer, numbers(*shape, dtype=dtype), layer, lambda x: F.linear(x, dense(layer), layer.bias))

    @pytest.mark.parametrize(("rows", "heads"), PARTS)
    @pytest.mark.parametrize("biased", [True, False])
    def test_rows_are_those_outputs(
        self, kind: str, dtype: torch.dtype, bias: bool, kept: bool, rows: slice, heads: int, biased: bool
    ) -> None:
        layer = self.layer(kind, dtype, bias, kept)
        x = numbers(*((M, K) if heads == 1 else (heads, M, K)), dtype=dtype)

        def expected(x: Tensor) -> Tensor:
            parts = dense(layer)[rows].chunk(heads)
            y = torch.cat([one @ part.mT for one, part in zip(x.view(heads, M, K), parts, strict=True)], dim=1)
            return y + layer.bias[rows] if biased and bias else y

        check(layer, x, lambda x: layer.rows(x, rows, heads, biased), expected)

    @pytest.mark.parametrize(("rows", "heads"), PARTS)
    def test_onto_is_the_transpose_of_those_outputs(
        self, kind: str, dtype: torch.dtype, bias: bool, kept: bool, rows: slice, heads: int
    ) -> None:
        layer = self.layer(kind, dtype, bias, kept)
        y = numbers(M, len(range(N)[rows]), dtype=dtype)

        def expected(y: Tensor) -> Tensor:
            parts = dense(layer)[rows].chunk(heads)
            found = torch.stack([one @ part for one, part in zip(y.chunk(heads, dim=1), parts, strict=True)])
            return found[0] if heads == 1 else found

        check(layer, y, lambda y: layer.onto(y, rows, heads), expected)


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_onto_takes_any_shape_with_one_head(kind: str, kept: bool) -> None:
    layer = layer_of(kind)
    if kept:
        keep(layer)
    check(layer, numbers(2, 3, 6), lambda y: layer.onto(y, slice(6, 12)), lambda y: y @ dense(layer)[6:12])


@pytest.mark.parametrize(("arithmetic", "tolerance"), [(FLOAT32, 1e-5), (BFLOAT16, 2e-2)], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_prepared_layer_is_the_dense_matrix(kind: str, bias: bool, arithmetic: Arithmetic, tolerance: float) -> None:
    layer = layer_of(kind, torch.float32, bias=bias)
    x = numbers(1024, K, dtype=torch.float32).detach()
    with torch.inference_mode():
        found = layer.prepared(arithmetic)(x.to(arithmetic.dtype))
        expected = F.linear(x, dense(layer), layer.bias)
    assert found.dtype == arithmetic.dtype
    assert float((found - expected).norm() / expected.norm()) < tolerance


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_folds_unless_it_says_otherwise(kind: str) -> None:
    assert layer_of(kind).folds


class Noisy(LowRank):
    """Draws randomness in training, between its two thin matrices."""

    standard = True
    kind = "noisy_stand_in"

    def __init__(self, base: nn.Linear) -> None:
        super().__init__(base)
        self.dropout = Dropout(0.5)

    @property
    def folds(self) -> bool:  # type: ignore[override]
        return not acts(self.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return Linear.forward(self, x) + self.scale * self.up(self.dropout(self.down(x)))  # type: ignore[no-any-return]

    rows, onto, prepared = LowRank.rows, LowRank.onto, LowRank.prepared


def test_a_layer_that_draws_randomness_turns_the_short_way_off_while_it_does() -> None:
    clf = classifier_of(byte_gpt2().config, ["a", "b"], seed=1)
    block = clf.trunk.blocks[-1]
    assert isinstance(block, Block)
    block.attention.qkv = Noisy(block.attention.qkv).eval()
    ids, lengths = torch.arange(12).view(2, 6), torch.tensor([6, 3])
    assert can_pool(block)
    torch.testing.assert_close(clf(ids, lengths), clf.head(clf.trunk(ids), lengths))
    block.train()
    assert not can_pool(block)
    assert not torch.allclose(clf(ids, lengths), clf(ids, lengths))


@pytest.mark.parametrize("pooling", ["last", "first", "mean"])
@pytest.mark.parametrize("kind", ["low rank", "8 bit"])
def test_blocks_of_replaced_layers_keep_every_fast_path_and_its_values(
    kind: str, pooling: str, odd_config: GPT2Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    clf = randomised(classifier_of(odd_config, ["a", "b"], pooling=pooling, seed=1))
    for block in clf.trunk.blocks:
        assert isinstance(block, Block)
        for owner, name in ((block.attention, "qkv"), (block.attention, "out"), (block.mlp, "up"), (block.mlp, "down")):
            setattr(owner, name, KINDS[kind](getattr(owner, name)))
        assert can_pool(block)
    clf.double()
    called: list[tuple[int, ...]] = []
    at_position = Block.at_position

    def counted(block: Block, x: Tensor, position: Tensor) -> Tensor:
        called.append(tuple(x.shape))
        return at_position(block, x, position)

    monkeypatch.setattr(Block, "at_position", counted)
    ids, lengths = torch.arange(18).view(3, 6), torch.tensor([6, 3, 1])
    learner = Learner(clf, keep_gradients=True)
    outputs = learner(ids, lengths)
    assert len(called) == (pooling != "mean")
    expected = clf.head(clf.trunk(ids), lengths)
    torch.testing.assert_close(outputs, expected, rtol=1e-10, atol=1e-10)
    weights = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    trained = [parameter for parameter in clf.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad((expected * weights).sum(), trained, materialize_grads=True)
    (outputs * weights).sum().backward()
    for parameter, gradient in zip(trained, gradients, strict=True):
        found = torch.zeros_like(gradient) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(found, gradient, rtol=1e-9, atol=1e-9)


# Dropout


def test_dropout_draws_from_its_generator_alone() -> None:
    dropout = Dropout(0.25)
    dropout.generator = torch.Generator().manual_seed(3)
    before, x = torch.get_rng_state(), torch.ones(100, 1000)
    first = dropout(x)
    assert not torch.equal(dropout(x), first)
    dropout.generator.manual_seed(3)
    assert torch.equal(dropout(x), first)
    assert torch.equal(torch.get_rng_state(), before)
    assert first.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert float(first.mean()) == pytest.approx(1.0, abs=0.01)


def test_dropout_without_a_generator_draws_from_torchs_own() -> None:
    dropout, x = Dropout(0.5), torch.ones(10, 10)
    torch.manual_seed(1)
    first = dropout(x)
    torch.manual_seed(1)
    assert torch.equal(dropout(x), first)


@pytest.mark.parametrize(("rate", "training", "expected"), [(0.0, True, 1.0), (0.5, False, 1.0), (1.0, True, 0.0)])
def test_dropout_that_draws_nothing(rate: float, training: bool, expected: float) -> None:
    dropout, x = Dropout(rate).train(training), torch.ones(3, 3)
    assert torch.equal(dropout(x), torch.full((3, 3), expected))


# Learners that draw

RATES = ["embedding", "attention weights", "attention", "mlp", "all"]


def dropping(place: str, *, head: bool = False) -> GPT2:
    """A classifier with dropout in one place, everything trainable, in eval mode."""
    config = GPT2Config(vocab_size=31, context_length=16, emb_dim=24, n_heads=3, n_layers=3, drop_rate=0.4)
    gpt2 = randomised(GPT2(config, seed=1)).requires_grad_(False)
    clf = add_classifier_head(gpt2, num_classes=3, **({"head": TwoLayers} if head else {"seed": 2}))
    freeze(clf, trainable="all")
    for name, part in clf.named_modules():
        if isinstance(part, Dropout):
            owner, own = name.split(".")[-2:]
            here = "attention weights" if own == "weights_dropout" else owner.replace("embed", "embedding")
            part.p = 0.4 if place in (here, "all") else 0.0
    return clf


IDS, LENGTHS = torch.randint(31, (4, 9), generator=torch.Generator().manual_seed(0)), torch.tensor([9, 4, 1, 7])


def steps_of(learner: Learner, steps: int = 2) -> list[Tensor]:
    """Outputs and gradients of some steps."""
    found = []
    for _ in range(steps):
        learner.zero_grad()
        outputs = learner(IDS, LENGTHS)
        F.cross_entropy(outputs, torch.tensor([0, 2, 1, 1])).backward()  # type: ignore[no-untyped-call]
        found += [outputs.detach(), *(p.grad.clone() for p in learner.parameters() if p.grad is not None)]
    return found


def all_equal(some: list[Tensor], others: list[Tensor]) -> bool:
    return len(some) == len(others) and all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("place", RATES)
def test_recomputed_activations_draw_what_the_plain_run_draws(place: str, head: bool) -> None:
    clf = dropping(place, head=head)
    plain = steps_of(Learner(clf, training=True, seed=5))
    recomputed = steps_of(Learner(clf, training=True, recompute=True, seed=5))
    for one, other in zip(plain, recomputed, strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=0)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("place", RATES)
def test_learners_of_one_seed_draw_alike_and_leave_torchs_generator_and_the_model_alone(
    place: str, recompute: bool
) -> None:
    clf = dropping(place, head=True)
    before = torch.get_rng_state()
    one, two, other = (Learner(clf, training=True, recompute=recompute, seed=seed) for seed in (5, 5, 6))
    first = steps_of(one)
    torch.manual_seed(99)
    again = steps_of(two)
    torch.set_rng_state(before)
    assert all_equal(again, first)
    assert not all_equal(steps_of(other), first)
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(part.training for part in clf.modules())
    assert not torch.equal(first[0], first[len(first) // 2]), "the second step draws anew"
    with torch.no_grad():
        assert torch.equal(clf(IDS, LENGTHS), clf(IDS, LENGTHS))


def test_a_hook_on_dropout_of_ones_own_is_called_by_a_learner_that_draws() -> None:
    clf, seen = dropping("all", head=True), []
    (dropout,) = (part for part in clf.head.modules() if isinstance(part, nn.Dropout))
    dropout.register_forward_hook(lambda *_: seen.append(1))
    steps_of(Learner(clf, training=True, seed=5), 1)
    assert seen == [1]
    assert type(dropout) is nn.Dropout


def test_a_generators_state_continues_a_run() -> None:
    clf = dropping("all", head=True)
    one, two = (Learner(clf, training=True, seed=5) for _ in range(2))
    steps_of(one, 1)
    assert one.generator is not None
    assert two.generator is not None
    two.generator.set_state(one.generator.get_state())
    assert all_equal(steps_of(two, 2), steps_of(one, 2))


def test_a_learner_in_eval_mode_draws_nothing() -> None:
    clf = dropping("all", head=True)
    learner = Learner(clf, seed=5)
    assert torch.equal(learner(IDS, LENGTHS), clf(IDS, LENGTHS))
    assert torch.equal(learner(IDS, LENGTHS), learner(IDS, LENGTHS))
    learner.train()
    assert not torch.equal(learner(IDS, LENGTHS), learner(IDS, LENGTHS))
    assert not any(part.training for part in clf.modules())


@pytest.mark.parametrize("depth", [1, 3, 4])
def test_a_learner_behind_a_prefix_draws_alike_and_leaves_the_model_alone(depth: int) -> None:
    clf = dropping("all", head=True)
    features = torch.randn(4, 9, 24, generator=torch.Generator().manual_seed(0))

    def outputs(seed: int, recompute: bool) -> Tensor:
        learner = Learner(clf, depth, training=True, recompute=recompute, seed=seed)
        return learner(features, LENGTHS)  # type: ignore[no-any-return]

    assert torch.equal(outputs(1, False), outputs(1, True))
    assert not torch.equal(outputs(1, False), outputs(2, False))
    assert not any(part.training for part in clf.modules())


@pytest.mark.parametrize("kept", [False, True])
def test_a_loop_of_ones_own_has_plain_autograds_gradients_beside_a_learner(kept: bool) -> None:
    clf = dropping("all")
    expected = torch.autograd.grad(clf(IDS, LENGTHS).square().sum(), list(clf.parameters()), materialize_grads=True)
    steps_of(Learner(clf, training=True, seed=5, keep_gradients=kept))
    clf.zero_grad()
    clf(IDS, LENGTHS).square().sum().backward()
    for parameter, gradient in zip(clf.parameters(), expected, strict=True):
        found = torch.zeros_like(gradient) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(found, gradient)
