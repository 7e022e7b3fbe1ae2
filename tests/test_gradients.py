"""Gradients written into kept buffers are those of plain autograd, step after step."""

import threading
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from conftest import classifier_of, randomised
from torch import Tensor, nn
from torch.nn import functional as F

from gptclf import GPT2, GPT2Config, freeze
from gptclf.gpt2.gradients import KeptGradients, product
from gptclf.gpt2.layers import Embedding, Linear
from gptclf.gpt2.learner import Learner

POLICIES: list[Any] = [
    "head",
    "last_block",
    2,
    "all",
    "blocks.1.mlp",
    "blocks.2.attention.qkv.weight",
    "embed",
    ["norm", "head"],
]

Batch = tuple[Tensor, Tensor, Tensor]

CONFIG = GPT2Config(vocab_size=31, context_length=16, emb_dim=24, n_heads=3, n_layers=3, mlp_dim=56)


def classifier(trainable: Any, pooling: str = "last", dtype: torch.dtype = torch.float64, **changes: Any) -> GPT2:
    config = CONFIG.replace(**changes)
    clf = randomised(classifier_of(config, ["a", "b", "c"], pooling=pooling, seed=7)).to(dtype)
    freeze(clf, trainable=trainable)
    return clf


def batch(seed: int, lengths: Iterable[int] = (5, 12, 1, 7)) -> Batch:
    """Ids (which repeat), lengths and targets."""
    counts = torch.tensor(list(lengths))
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(9, (len(counts), int(counts.max())), generator=generator)
    return ids, counts, torch.randint(3, (len(counts),), generator=generator)


def loss_of(clf: GPT2 | Learner, one: Batch) -> Tensor:
    ids, lengths, targets = one
    return F.cross_entropy(clf(ids, lengths).double(), targets)


def trained(clf: GPT2) -> list[nn.Parameter]:
    return [parameter for parameter in clf.parameters() if parameter.requires_grad]


def plain(clf: GPT2, *batches: Batch) -> dict[str, Tensor]:
    """Plain autograd's gradient of the sum of the losses; touches no `.grad`."""
    named = {name: parameter for name, parameter in clf.named_parameters() if parameter.requires_grad}
    loss = torch.stack([loss_of(clf, one) for one in batches]).sum()
    return dict(zip(named, torch.autograd.grad(loss, list(named.values()), materialize_grads=True), strict=True))


def keeping(model: GPT2, *, recompute: bool = False) -> Learner:
    return Learner(model, recompute=recompute, keep_gradients=True)


def take_step(learner: Learner, *batches: Batch) -> None:
    learner.zero_grad()  # sets .grad to None
    for one in batches:
        loss_of(learner, one).backward()  # type: ignore[no-untyped-call]


def check(clf: GPT2, expected: dict[str, Tensor], tolerance: float = 1e-12) -> None:
    """Compare `.grad` of every parameter with what is expected, relative to each gradient's largest entry."""
    for name, parameter in clf.named_parameters():
        if not parameter.requires_grad:
            assert parameter.grad is None, name
            continue
        if parameter.grad is None:  # as plain autograd leaves what a loss does not depend on
            assert not expected[name].any(), name
            continue
        assert parameter.grad.dtype == parameter.dtype
        error = (parameter.grad - expected[name]).abs().max()
        assert error <= tolerance * max(1e-2, float(expected[name].abs().max())), f"{name}: off by {float(error):.2g}"


@pytest.mark.parametrize("pooling", ["last", "first", "mean", "max"])
@pytest.mark.parametrize("trainable", POLICIES, ids=str)
def test_gradients_of_three_steps_equal_plain_autograd(trainable: Any, pooling: str) -> None:
    clf = classifier(trainable, pooling)
    learner = keeping(clf)
    for seed in (1, 2, 3):
        one = batch(seed)
        expected = plain(clf, one)
        assert any(gradient.any() for gradient in expected.values())
        take_step(learner, one)
        check(clf, expected)


@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("trainable", ["last_block", "all"])
def test_gradients_in_float32_equal_plain_autograd(trainable: Any, qkv_bias: bool) -> None:
    clf = classifier(trainable, dtype=torch.float32, qkv_bias=qkv_bias)
    learner = keeping(clf)
    for seed in (1, 2):
        expected = plain(clf, batch(seed))
        take_step(learner, batch(seed))
        check(clf, expected, 1e-5)
        for name, parameter in clf.named_parameters():
            if parameter.requires_grad:
                torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("trainable", POLICIES, ids=str)
def test_gradients_under_autocast_equal_plain_autograd_to_bfloat16(trainable: Any, pooling: str) -> None:
    clf = classifier(trainable, pooling, torch.float32)
    learner = keeping(clf)
    for seed in (1, 2):
        one, two = batch(seed), batch(seed + 10)
        with torch.autocast("cpu", torch.bfloat16):
            expected = plain(clf, one, two)
        learner.zero_grad()
        for part in (one, two):
            with torch.autocast("cpu", torch.bfloat16):
                loss = loss_of(learner, part)
            loss.backward()  # type: ignore[no-untyped-call]
        scale = max(float(gradient.norm()) for gradient in expected.values())
        for name, parameter in clf.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None
                assert parameter.grad.dtype == torch.float32
                error = float((parameter.grad - expected[name]).norm())
                assert error <= 2**-7 * float(expected[name].norm()) + 2**-12 * scale, name


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("trainable", ["last_block", "all"])
def test_backward_passes_of_one_step_are_summed(trainable: Any, pooling: str) -> None:
    clf = classifier(trainable, pooling)
    learner = keeping(clf)
    for seed in (1, 2):
        group = [batch(seed), batch(seed + 10, (3, 3)), batch(seed + 20, (16,))]
        take_step(learner, *group)
        check(clf, plain(clf, *group))


@pytest.mark.parametrize("trainable", ["last_block", "all"])
def test_gradients_with_recomputed_activations_equal_plain_autograd(trainable: Any) -> None:
    clf = classifier(trainable)
    learner = keeping(clf, recompute=True)
    for seed in (1, 2):
        expected = plain(clf, batch(seed))
        take_step(learner, batch(seed))
        check(clf, expected)


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("recompute", [True, False])
def test_backward_pass_in_another_thread_equals_plain_autograd(recompute: bool, pooling: str) -> None:
    """On a GPU the backward pass, and so the recomputation, runs in a thread that knows nothing of the step."""
    clf = classifier("all", pooling)
    learner = keeping(clf, recompute=recompute)
    for seed in (1, 2):
        one = batch(seed, (7, 7, 7))
        expected = plain(clf, one)
        learner.zero_grad()
        thread = threading.Thread(target=loss_of(learner, one).backward)
        thread.start()
        thread.join()
        check(clf, expected)


def test_gradients_of_weights_stay_in_one_place() -> None:
    clf = classifier("all")
    learner = keeping(clf)

    def places() -> list[int]:
        return [p.grad.data_ptr() for p in trained(clf) if p.grad is not None and p.dim() > 1]

    take_step(learner, batch(1))
    before = places()
    assert len(before) == sum(p.dim() > 1 for p in trained(clf))
    hook = learner.blocks[-1].register_forward_hook(lambda *_: None)
    take_step(learner, batch(2), batch(3))
    hook.remove()
    take_step(learner, batch(4))
    assert places() == before


def test_parameters_that_a_step_does_not_touch_have_no_gradient() -> None:
    clf = classifier("all")
    learner = keeping(clf)
    take_step(learner, batch(1))
    assert all(bool(p.grad is not None and p.grad.any()) for p in trained(clf))
    hidden = torch.randn(4, 24, dtype=torch.float64)
    learner.zero_grad()
    learner.head.project(hidden).square().sum().backward()  # type: ignore[operator]
    touched = [name for name, p in clf.named_parameters() if p.grad is not None]
    assert touched == ["head.output.weight", "head.output.bias"]


def test_part_that_a_step_does_not_touch_has_gradient_zero() -> None:
    weight = nn.Parameter(torch.randn(6, 5, dtype=torch.float64))
    kept = KeptGradients()
    x = torch.randn(7, 5, dtype=torch.float64)

    def top(kept: KeptGradients | None = None) -> Tensor:
        return product(x, weight, lambda w: w[:2].t(), kept=kept).square().sum()

    def bottom(kept: KeptGradients | None = None) -> Tensor:
        return product(x, weight, lambda w: w[2:].t(), kept=kept).pow(3).sum()

    for terms in ([top, bottom], [top], [bottom, top], [bottom, bottom]):
        expected = torch.zeros_like(weight)
        for term in terms:
            expected += torch.autograd.grad(term(), weight)[0]
        weight.grad = None
        for term in terms:
            term(kept).backward()  # type: ignore[no-untyped-call]
        torch.testing.assert_close(weight.grad, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(5, 4), (2, 3, 4)])
def test_product_of_stacked_matrices_has_the_gradient_of_plain_autograd(shape: tuple[int, ...]) -> None:
    weight = nn.Parameter(torch.randn(*shape[:-2], 4, 6, dtype=torch.float64))
    kept = KeptGradients()
    for _ in range(2):
        x = torch.randn(*shape, dtype=torch.float64, requires_grad=True)
        expected = torch.autograd.grad(product(x, weight, lambda w: w).sin().sum(), [x, weight])
        weight.grad = None
        product(x, weight, lambda w: w, kept=kept).sin().sum().backward()  # type: ignore[no-untyped-call]
        torch.testing.assert_close([x.grad, weight.grad], list(expected), rtol=1e-12, atol=1e-12)


def test_projection_that_is_used_in_parts_and_then_whole_and_back_is_right() -> None:
    clf = classifier("last_block")
    learner = keeping(clf)
    hook = None
    for seed, whole in enumerate([False, True, True, False, False, True, False]):
        if whole and hook is None:
            hook = learner.blocks[-1].register_forward_hook(lambda *_: None)
        if not whole and hook is not None:
            hook.remove()
            hook = None
        group = [batch(seed), batch(seed + 10)]
        expected = plain(clf, *group)
        take_step(learner, *group)
        check(clf, expected)


def test_step_without_the_projection_between_two_kinds_of_use_is_right() -> None:
    clf = classifier("last_block")
    learner = keeping(clf)
    take_step(learner, batch(1))
    learner.zero_grad()
    hook = learner.blocks[-1].register_forward_hook(lambda *_: None)
    take_step(learner, batch(2))
    check(clf, plain(clf, batch(2)))
    learner.zero_grad()
    hook.remove()
    take_step(learner, batch(3))
    check(clf, plain(clf, batch(3)))


@pytest.mark.parametrize("kind", ["register_hook", "register_post_accumulate_grad_hook"])
@pytest.mark.parametrize(
    "name", ["trunk.blocks.2.attention.qkv.weight", "trunk.blocks.1.mlp.up.weight", "trunk.embed.token.weight"]
)
def test_hooks_on_a_parameter_are_called_and_its_gradient_is_right(name: str, kind: str) -> None:
    clf = classifier("all")
    parameter = clf.get_parameter(name)
    seen: list[Tensor] = []
    getattr(parameter, kind)(lambda given: seen.append((given if kind == "register_hook" else given.grad).clone()))
    learner = keeping(clf)
    for seed in (1, 2):
        expected = plain(clf, batch(seed))
        seen.clear()
        take_step(learner, batch(seed))
        assert len(seen) == 1
        torch.testing.assert_close(seen[0], expected[name], rtol=1e-12, atol=1e-12)
        check(clf, expected)


@pytest.mark.parametrize("name", ["trunk.blocks.2.attention.qkv.weight", "trunk.blocks.1.mlp.up.weight"])
def test_hook_that_comes_and_goes_between_steps_leaves_the_gradient_right(name: str) -> None:
    clf = classifier("all")
    learner = keeping(clf)
    take_step(learner, batch(1))
    seen: list[Tensor] = []
    hook = clf.get_parameter(name).register_hook(lambda gradient: seen.append(gradient))  # type: ignore[no-untyped-call]
    for seed in (2, 3):
        expected = plain(clf, batch(seed))
        seen.clear()
        take_step(learner, batch(seed))
        assert len(seen) == 1
        check(clf, expected)
    hook.remove()
    for seed in (4, 5):
        take_step(learner, batch(seed))
        check(clf, plain(clf, batch(seed)))


def test_gradients_that_were_thrown_away_between_steps_come_back_right() -> None:
    clf = classifier("all")
    learner = keeping(clf)
    for seed in (1, 2, 3, 4):
        take_step(learner, batch(seed))
        check(clf, plain(clf, batch(seed)))
        if seed == 1:
            for parameter in trained(clf):
                parameter.grad = torch.zeros_like(parameter)  # somebody else's, with nothing in it
            loss_of(learner, batch(seed)).backward()  # type: ignore[no-untyped-call]
            check(clf, plain(clf, batch(seed)))


def test_weight_that_is_also_used_without_its_module_has_the_whole_gradient() -> None:
    """As with a penalty on the weights in the loss."""
    clf = classifier("last_block")
    learner = keeping(clf)
    penalised = clf.get_parameter("trunk.blocks.2.mlp.up.weight")
    for seed in (1, 2):
        expected = plain(clf, batch(seed))
        expected["trunk.blocks.2.mlp.up.weight"] = expected["trunk.blocks.2.mlp.up.weight"] + 2 * penalised.detach()
        learner.zero_grad()
        (loss_of(learner, batch(seed)) + penalised.square().sum()).backward()  # type: ignore[no-untyped-call]
        check(clf, expected)


def test_weight_whose_penalty_has_a_backward_pass_of_its_own_has_the_whole_gradient() -> None:
    clf = classifier("last_block")
    learner = keeping(clf)
    name = "trunk.blocks.2.mlp.up.weight"
    for seed in (1, 2):
        expected = plain(clf, batch(seed))
        expected[name] = expected[name] + 2 * clf.get_parameter(name).detach()
        learner.zero_grad()
        clf.get_parameter(name).square().sum().backward()  # type: ignore[no-untyped-call]
        loss_of(learner, batch(seed)).backward()  # type: ignore[no-untyped-call]
        check(clf, expected)


def test_block_that_stands_in_the_line_twice_has_the_gradients_of_both() -> None:
    clf = classifier("all")
    clf.trunk.blocks[1] = clf.trunk.blocks[2]
    learner = keeping(clf)
    for seed in (1, 2):
        expected = plain(clf, batch(seed))
        take_step(learner, batch(seed))
        check(clf, expected)


def test_repeated_tokens_add_up_in_the_embedding() -> None:
    table = Embedding(5, 3, dtype=torch.float64)
    table.gradients = KeptGradients()
    for ids in (torch.tensor([[1, 1, 4], [1, 0, 4]]), torch.tensor([[2, 2]])):
        weights = torch.randn(*ids.shape, 3, dtype=torch.float64)
        table.zero_grad()
        (table(ids) * weights).sum().backward()
        (table(ids) * weights).sum().backward()
        expected = torch.zeros(5, 3, dtype=torch.float64)
        for row, number in enumerate(ids.flatten().tolist()):
            expected[number] += 2 * weights.flatten(0, 1)[row]
        torch.testing.assert_close(table.weight.grad, expected)


def test_tied_matrix_of_a_language_model_has_the_gradient_of_both_uses() -> None:
    model = randomised(GPT2(CONFIG, seed=7)).double()
    ids, _, _ = batch(1)
    parameters = list(model.parameters())

    def loss(model: GPT2 | Learner, ids: Tensor) -> Tensor:
        return F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())

    learner = keeping(model)
    for seed in (1, 2):
        ids = batch(seed)[0]
        expected = torch.autograd.grad(loss(model, ids), parameters)
        learner.zero_grad()
        loss(learner, ids).backward()  # type: ignore[no-untyped-call]
        for (name, parameter), gradient in zip(model.named_parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-12, atol=1e-12, msg=name)


def test_frozen_parameters_get_no_gradient_and_stop_none() -> None:
    clf = classifier("blocks.0")
    learner = keeping(clf)
    take_step(learner, batch(1))
    check(clf, plain(clf, batch(1)))
    assert all(parameter.grad is None for name, parameter in clf.named_parameters() if ".blocks.0." not in name)


def test_model_itself_is_plain_autograd_beside_its_learner() -> None:
    clf = classifier("all")
    learner = keeping(clf)
    take_step(learner, batch(1))
    before = {name: parameter.grad.clone() for name, parameter in clf.named_parameters() if parameter.grad is not None}
    again = plain(clf, batch(1))  # torch.autograd.grad
    check(clf, again)
    check(clf, before, 0.0)
    loss_of(clf, batch(2)).backward()  # type: ignore[no-untyped-call]
    second = plain(clf, batch(2))
    check(clf, {name: gradient + second[name] for name, gradient in before.items()})


def test_step_that_fails_leaves_plain_autograd_and_a_right_next_step() -> None:
    clf = classifier("all")
    learner = keeping(clf)
    take_step(learner, batch(1))
    hook = learner.blocks[0].register_full_backward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        take_step(learner, batch(2))
    hook.remove()
    plain(clf, batch(2))
    take_step(learner, batch(2))
    check(clf, plain(clf, batch(2)))


def test_answers_of_a_learner_carry_no_gradient() -> None:
    clf = classifier("all")
    learner = keeping(clf)
    expected = plain(clf, batch(1))
    with torch.no_grad():
        assert not loss_of(learner, batch(2)).requires_grad
    take_step(learner, batch(1))
    check(clf, expected)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5,), (4, 5), (2, 3, 5)])
def test_linear_layer_equals_torchs(shape: tuple[int, ...], bias: bool) -> None:
    ours, theirs = Linear(5, 4, bias=bias, dtype=torch.float64), nn.Linear(5, 4, bias=bias, dtype=torch.float64)
    ours.load_state_dict(theirs.state_dict())
    ours.gradients = KeptGradients()
    for _ in range(2):
        x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        theirs.zero_grad()
        y = theirs(x)
        y.sin().sum().backward()
        expected = [x.grad, *(parameter.grad for parameter in theirs.parameters())]
        x.grad = None
        ours.zero_grad()
        z = ours(x)
        z.sin().sum().backward()
        torch.testing.assert_close(z, y, rtol=1e-12, atol=1e-12)
        found = [x.grad, *(parameter.grad for parameter in ours.parameters())]
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_linear_layer_that_keeps_gradients_takes_no_rows() -> None:
    layer = Linear(5, 4)
    layer.gradients = KeptGradients()
    assert layer(torch.zeros(0, 5)).shape == (0, 4)
