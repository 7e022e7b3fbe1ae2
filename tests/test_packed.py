"""Packed tokens give what rows give one by one: the engine without gradients, and the differentiable line."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from conftest import classifier_of, randomised
from hypothesis import given, settings
from hypothesis import strategies as st
from stand_ins import Doubled, LowRank
from torch import Tensor, nn
from torch.nn import functional as F

from gptclf import GPT2, GPT2Config, freeze
from gptclf.features.frozen_prefix import FrozenPrefix, compute_chunk
from gptclf.gpt2 import arithmetic
from gptclf.gpt2.arithmetic import BFLOAT16, FLOAT32, Arithmetic, activated, evaluating
from gptclf.gpt2.config import ACTIVATIONS
from gptclf.gpt2.heads import reads_of
from gptclf.gpt2.layers import Linear
from gptclf.gpt2.learner import Learner
from gptclf.gpt2.packed import RowGroup, advance, before_norm, embed, row_groups
from gptclf.gpt2.trunk import Block, Trunk

LENGTHS = [1, 2, 2, 5, 5, 5, 17, 33]

POOLINGS = ["last", "first", "mean", "max"]


def classifier(config: GPT2Config, pooling: str = "last") -> GPT2:
    clf = randomised(classifier_of(config, ["a", "b", "c"], pooling=pooling, seed=7))
    return clf.requires_grad_(False)


def random_rows(config: GPT2Config, lengths: Sequence[int], seed: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(config.vocab_size, (length,), generator=generator) for length in lengths]


def groups_of(lengths: Sequence[int]) -> list[RowGroup]:
    return row_groups(np.array(lengths, dtype=np.int64))


def last_block(clf: GPT2) -> Block:
    block = clf.trunk.blocks[-1]
    assert isinstance(block, Block)
    return block


def stream(tokens: int, width: int = 24, seed: int = 3) -> Tensor:
    return torch.randn(tokens, width, generator=torch.Generator().manual_seed(seed))


def outputs_at_end(
    block: nn.Module | None, norm: nn.Module | None, head: nn.Module, x: Tensor, groups: list[RowGroup]
) -> Tensor:
    """The outputs in float32 from the residual stream before the last block."""
    found = [x if norm is None else norm(x) for x in before_norm(block, x, groups, reads_of(head), FLOAT32)]
    return torch.cat([head(hidden if hidden.dim() == 3 else hidden[:, None], None) for hidden in found])


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


# --- groups of rows and embedding ---


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(1, 3000) | st.integers(1, 4), max_size=300), ordered=st.booleans())
def test_groups_cover_every_token_of_every_row_once(lengths: list[int], ordered: bool) -> None:
    lengths = sorted(lengths) if ordered else lengths
    groups = groups_of(lengths)
    assert [group.length for group in groups for _ in range(group.rows)] == lengths
    end = 0
    for group in groups:
        assert group.rows >= 1
        assert group.tokens == slice(end, end + group.rows * group.length)
        assert group.rows == 1 or group.rows * group.length <= 2048
        end = group.tokens.stop
    assert end == sum(lengths)


@pytest.mark.parametrize("watched", [None, "embed", "embed.token", "embed.position", "embed.dropout"])
def test_packed_embedding_equals_the_module(odd_config: GPT2Config, watched: str | None) -> None:
    clf = classifier(odd_config)
    rows = random_rows(odd_config, LENGTHS)
    called: list[int] = []
    if watched is not None:
        clf.trunk.get_submodule(watched).register_forward_hook(lambda *_: called.append(1))
    with evaluating(clf):
        x = embed(clf.trunk.embed, torch.cat(rows), groups_of(LENGTHS), capacity=100, width=24)
        assert bool(called) == (watched is not None)
        expected = torch.cat([clf.trunk.embed(row[None])[0] for row in rows])
    assert x.dtype == torch.float32
    assert torch.equal(x[: len(expected)], expected)
    assert not x[len(expected) :].any()
    assert len(x) == 100


def test_hook_that_changes_the_embedding_is_heard(odd_config: GPT2Config) -> None:
    clf = classifier(odd_config)
    rows = random_rows(odd_config, LENGTHS)
    plain = embed(clf.trunk.embed, torch.cat(rows), groups_of(LENGTHS), capacity=80, width=24)
    clf.trunk.embed.token.register_forward_hook(lambda module, given, y: y + 1.0)
    changed = embed(clf.trunk.embed, torch.cat(rows), groups_of(LENGTHS), capacity=80, width=24)
    torch.testing.assert_close(changed[:70], plain[:70] + 1.0)


# --- blocks ---


@pytest.mark.parametrize("capacity", [70, 1024, 1500])
@pytest.mark.parametrize(
    "changes",
    [
        *({"activation": activation} for activation in ACTIVATIONS),
        {"qkv_bias": False},
        {"scale_attention": False, "scale_attention_by_layer": True},
        {"norm_eps": 0.1},
    ],
)
def test_packed_block_equals_the_block_row_by_row(
    odd_config: GPT2Config, changes: dict[str, Any], capacity: int
) -> None:
    clf = classifier(odd_config.replace(**changes))
    x = stream(capacity)
    rows = torch.split(x[: sum(LENGTHS)], LENGTHS)
    with evaluating(clf):
        expected = torch.cat([last_block(clf)(row[None])[0] for row in rows])
        advance(last_block(clf), x, groups_of(LENGTHS), FLOAT32)
    torch.testing.assert_close(x[: len(expected)], expected, rtol=1e-5, atol=1e-5)
    assert x.isfinite().all()


def test_more_tokens_than_a_piece_equal_the_block_row_by_row(odd_config: GPT2Config) -> None:
    clf = classifier(odd_config)
    lengths = [3] * 400 + [31] * 70 + [40]
    x = stream(sum(lengths))
    rows = torch.split(x.clone(), lengths)
    with evaluating(clf):
        advance(last_block(clf), x, groups_of(lengths), FLOAT32)
        for found, row in zip(torch.split(x, lengths), rows, strict=True):
            torch.testing.assert_close(found, last_block(clf)(row[None])[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("part", ["", "attention", "norm1", "mlp", "mlp.up", "attention.dropout"])
def test_watched_block_is_called_on_rows_of_one_length(odd_config: GPT2Config, part: str) -> None:
    clf = classifier(odd_config)
    x, groups = stream(sum(LENGTHS)), groups_of(LENGTHS)
    expected = x.clone()
    shapes: list[tuple[int, ...]] = []
    with evaluating(clf):
        advance(last_block(clf), expected, groups, FLOAT32)
        last_block(clf).get_submodule(part).register_forward_hook(lambda m, given, y: shapes.append(tuple(y.shape[:2])))
        advance(last_block(clf), x, groups, FLOAT32)
    assert shapes == [(group.rows, group.length) for group in groups]
    torch.testing.assert_close(x, expected, rtol=1e-5, atol=1e-5)


def test_watched_block_in_bfloat16_multiplies_in_it_and_stays_close(odd_config: GPT2Config) -> None:
    clf = classifier(odd_config)
    x, groups, kinds = stream(sum(LENGTHS)), groups_of(LENGTHS), []
    expected = x.clone()
    last_block(clf).mlp.up.register_forward_hook(lambda module, given, y: kinds.append(y.dtype))
    with evaluating(clf):
        advance(last_block(clf), expected, groups, FLOAT32)
        assert set(kinds) == {torch.float32}
        kinds.clear()
        advance(last_block(clf), x, groups, BFLOAT16)
    assert set(kinds) == {torch.bfloat16}
    assert 1e-5 < relative_error(x, expected) < 1e-2


class Scaled(nn.Module):
    """What a user may put into the place of a block."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.arange(1.0, x.shape[1] + 1)[:, None]


def test_block_of_another_class_is_called_as_it_is() -> None:
    x, groups = stream(sum(LENGTHS)), groups_of(LENGTHS)
    expected = x * torch.cat([torch.arange(1.0, length + 1) for length in LENGTHS])[:, None]
    advance(Scaled(), x, groups, FLOAT32)
    torch.testing.assert_close(x, expected)


# --- the last block and the head ---


@pytest.mark.parametrize("lengths", [LENGTHS, [1], [7, 7, 7], list(range(1, 41)) * 8])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_packed_logits_equal_the_models(odd_config: GPT2Config, pooling: str, lengths: list[int]) -> None:
    lengths = sorted(lengths)
    clf = classifier(odd_config, pooling)
    rows, groups = random_rows(odd_config, lengths), groups_of(lengths)
    with evaluating(clf):
        x = embed(clf.trunk.embed, torch.cat(rows), groups, capacity=sum(lengths), width=24)
        for block in list(clf.trunk.blocks)[:-1]:
            advance(block, x, groups, FLOAT32)
        logits = outputs_at_end(last_block(clf), clf.trunk.norm, clf.head, x, groups)
        expected = torch.cat([clf.head(clf.trunk(row[None]), None) for row in rows])
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_packed_logits_of_a_head_alone_equal_the_heads(odd_config: GPT2Config, pooling: str) -> None:
    clf = classifier(odd_config, pooling)
    x = stream(sum(LENGTHS))
    rows = torch.split(x.clone(), LENGTHS)
    for norm in (None, clf.trunk.norm):
        logits = outputs_at_end(None, norm, clf.head, x.clone(), groups_of(LENGTHS))
        expected = torch.cat([clf.head(row[None] if norm is None else norm(row[None]), None) for row in rows])
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("part", ["", "attention.qkv", "norm1"])
def test_watched_last_block_is_called_on_rows_of_one_length(odd_config: GPT2Config, part: str, pooling: str) -> None:
    clf = classifier(odd_config, pooling)
    groups, shapes = groups_of(LENGTHS), []
    x = stream(sum(LENGTHS))
    with evaluating(clf):
        expected = outputs_at_end(last_block(clf), clf.trunk.norm, clf.head, x.clone(), groups)
        last_block(clf).get_submodule(part).register_forward_hook(lambda m, given, y: shapes.append(tuple(y.shape[:2])))
        logits = outputs_at_end(last_block(clf), clf.trunk.norm, clf.head, x.clone(), groups)
    assert shapes == [(group.rows, group.length) for group in groups]
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("part", ["attention.dropout", "attention.out", "mlp", "norm2"])
def test_last_block_watched_at_its_later_parts_is_called_on_rows_of_one_length(
    odd_config: GPT2Config, part: str
) -> None:
    clf = classifier(odd_config)
    groups, shapes = groups_of(LENGTHS), []
    last_block(clf).get_submodule(part).register_forward_hook(lambda m, given, y: shapes.append(tuple(y.shape[:2])))
    with evaluating(clf):
        outputs_at_end(last_block(clf), clf.trunk.norm, clf.head, stream(sum(LENGTHS)), groups)
    assert shapes == [(group.rows, group.length) for group in groups]


# --- bfloat16 ---


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_packed_block_in_bfloat16_is_close_to_float32(odd_config: GPT2Config, activation: str) -> None:
    clf = classifier(odd_config.replace(activation=activation))
    exact, rounded = stream(sum(LENGTHS)), stream(sum(LENGTHS))
    with evaluating(clf):
        advance(last_block(clf), exact, groups_of(LENGTHS), FLOAT32)
        advance(last_block(clf), rounded, groups_of(LENGTHS), BFLOAT16)
    assert rounded.dtype == torch.float32
    branches = exact - stream(sum(LENGTHS))
    assert 1e-4 < relative_error(rounded - stream(sum(LENGTHS)), branches) < 1e-2


@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_fused_operators_equal_the_plain_ones_to_bfloat16(
    monkeypatch: pytest.MonkeyPatch, odd_config: GPT2Config, activation: str, qkv_bias: bool
) -> None:
    if arithmetic._fused_operators() is None:
        pytest.skip("this torch has no fused operators for this processor")
    clf = classifier(odd_config.replace(activation=activation, qkv_bias=qkv_bias))
    fused, plain = stream(1024), stream(1024)
    with evaluating(clf):
        advance(last_block(clf), fused, groups_of([32] * 32), BFLOAT16)
        monkeypatch.setattr(arithmetic, "_fused_operators", lambda: None)
        advance(last_block(clf), plain, groups_of([32] * 32), BFLOAT16)
    assert relative_error(fused - stream(1024), plain - stream(1024)) < 2**-8


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_product_in_bfloat16_applies_its_own_activation_and_no_similar_one(activation: str) -> None:
    layer = Linear(32, 32)
    nn.init.eye_(layer.weight)
    nn.init.zeros_(layer.bias)
    # Below 0 the two kinds of GELU are more than a per cent apart.
    x = torch.linspace(-4.0, 4.0, 1024 * 32).view(1024, 32).to(torch.bfloat16)
    with torch.inference_mode():
        y = activated(layer.prepared(BFLOAT16), activation)(x).float()
    torch.testing.assert_close(y, arithmetic.ACTIVATIONS[activation](x.float()), rtol=2**-8, atol=5e-5)


def no_rounding(x: Tensor) -> Tensor:
    return x


def to_bfloat16(x: Tensor) -> Tensor:
    return x.to(torch.bfloat16).to(x.dtype)


def written_out(
    trunk: Trunk,
    ids: Tensor,
    dtype: torch.dtype,
    *,
    product: Callable[[Tensor], Tensor] = no_rounding,
    residual: Callable[[Tensor], Tensor] = no_rounding,
) -> Tensor:
    """The residual stream (N, D) after all blocks, in `dtype` but for roundings of products' inputs and the stream."""
    B, T = ids.shape

    def linear(layer: nn.Linear, x: Tensor) -> Tensor:
        return product(x) @ product(layer.weight.to(dtype)).t() + layer.bias.to(dtype)

    def normalised(norm: nn.LayerNorm, x: Tensor) -> Tensor:
        return F.layer_norm(x, norm.normalized_shape, norm.weight.to(dtype), norm.bias.to(dtype), norm.eps)

    later = torch.ones(T, T, dtype=torch.bool).triu(1)
    position = trunk.embed.position.weight.to(dtype)[:T]
    x = residual((trunk.embed.token.weight.to(dtype)[ids] + position).flatten(0, 1))
    for block in trunk.blocks:
        assert isinstance(block, Block)
        attention, mlp = block.attention, block.mlp
        qkv = linear(attention.qkv, normalised(block.norm1, x))
        q, k, v = product(qkv).view(B, T, 3, attention.n_heads, -1).permute(2, 0, 3, 1, 4)
        shares = (q @ k.mT * attention.scale).masked_fill(later, float("-inf")).softmax(dim=-1)
        mixed = (product(shares) @ v).transpose(1, 2).reshape(B * T, -1)
        x = residual(x + linear(attention.out, mixed))
        up = linear(mlp.up, normalised(block.norm2, x))
        x = residual(x + linear(mlp.down, F.gelu(up, approximate="tanh")))
    return x


def test_outlier_dimensions_of_48_blocks_cost_no_more_than_rounding_what_products_take() -> None:
    config = GPT2Config(vocab_size=50, context_length=32, emb_dim=64, n_heads=4, n_layers=48)
    clf = classifier_of(config, ["a", "b"], seed=0).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in clf.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, 0.0, 0.002, generator=generator)
    outliers = torch.zeros(64, dtype=torch.bool)
    outliers[[3, 40]] = True
    clf.trunk.embed.token.weight.mul_(25.0)  # a stream of ordinary size, next to which ...
    clf.trunk.embed.position.weight[:, outliers] += 1000.0  # ... these stand, as in GPT-2's own
    ids = torch.randint(50, (6, 20), generator=generator)
    groups = [RowGroup(0, 6, 20)]
    with evaluating(clf):
        truth = written_out(clf.trunk, ids, torch.float64)
        exact = embed(clf.trunk.embed, ids.flatten(), groups, capacity=120, width=64)
        ours = embed(clf.trunk.embed, ids.flatten(), groups, capacity=1024, width=64)
        for block in clf.trunk.blocks:
            advance(block, exact, groups, FLOAT32)
            advance(block, ours, groups, BFLOAT16)
        products = written_out(clf.trunk, ids, torch.float32, product=to_bfloat16)
        everything = written_out(clf.trunk, ids, torch.float32, product=to_bfloat16, residual=to_bfloat16)

    def error(x: Tensor, columns: Tensor) -> float:
        return float((x.double() - truth)[:, columns].norm())

    for columns in (outliers, ~outliers):
        tiny = error(exact, columns)
        bound = 2 * error(products, columns) + tiny
        assert error(ours[:120], columns) <= bound
        assert error(everything, columns) > 10 * bound


# --- bit for bit ---


@pytest.mark.parametrize("arithmetic", [FLOAT32, BFLOAT16], ids=str)
@pytest.mark.parametrize(("trainable", "pooling"), [("last_block", "last"), ("head", "last"), ("head", "first")])
@pytest.mark.parametrize("width", [64, 768])
def test_features_of_a_row_are_equal_bit_for_bit_whatever_rows_come_with_it(
    width: int, trainable: str, pooling: str, arithmetic: Arithmetic
) -> None:
    config = GPT2Config(vocab_size=50, context_length=120, emb_dim=width, n_heads=width // 16, n_layers=2)
    clf = randomised(classifier_of(config, ["a", "b"], pooling=pooling, seed=0))
    freeze(clf, trainable=trainable)
    prefix = FrozenPrefix(clf, {"last_block": 2, "head": 4}[trainable], arithmetic)
    choose = np.random.default_rng(width)
    # Some lengths more than once, so that their rows fall into groups of different numbers of rows. Wide and pooled,
    # every length costs as many tokens as any other, so there are few.
    few = [1, 1, 1, 7, 7, 7, 64, 64, 120, 120] if width == 64 or trainable == "last_block" else [61, 61, 61, 120, 120]
    lengths = np.sort(np.concatenate([choose.integers(1, 121, 0 if len(few) == 5 else 9), few]))
    rows = [choose.integers(0, 50, length).astype(np.int32) for length in lengths]

    def features(chosen: list[int]) -> list[Tensor]:
        taken = [rows[i] for i in chosen]
        positions = prefix.positions(np.array([len(row) for row in taken]))
        return list(torch.split(compute_chunk(prefix, taken), positions.tolist()))

    together = features(list(range(len(rows))))
    assert together[0].dtype == torch.float32
    subsets = [[0], [len(rows) - 1]]
    subsets += [np.sort(choose.permutation(len(rows))[:n]).tolist() for n in (len(rows) // 3, 2 * len(rows) // 3)]
    for subset in subsets:
        for i, found in zip(subset, features(subset), strict=True):
            assert torch.equal(found, together[i]), f"row {i} of length {lengths[i]} in {subset}"


def test_features_of_pooled_rows_are_those_of_the_whole_model(odd_config: GPT2Config) -> None:
    for pooling in ("last", "first", "mean"):
        clf = classifier(odd_config, pooling)
        rows = random_rows(odd_config, LENGTHS)
        values = compute_chunk(FrozenPrefix(clf, 5, FLOAT32), [row.numpy().astype(np.int32) for row in rows])
        at = {"last": slice(-1, None), "first": slice(0, 1), "mean": slice(None)}[pooling]
        expected = torch.cat([clf.trunk(row[None])[0, at] for row in rows])
        torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-5)


def test_every_product_has_one_shape_whatever_the_number_of_tokens(
    monkeypatch: pytest.MonkeyPatch, odd_config: GPT2Config
) -> None:
    """On this processor the sums may come out alike by luck; what makes them do so anywhere is the shape."""
    shapes: set[tuple[int, ...]] = set()
    prepare = Arithmetic.prepare

    def watched(self: Arithmetic, weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
        kernel = prepare(self, weight, bias)

        def call(x: Tensor) -> Tensor:
            shapes.add(tuple(x.shape))
            return kernel(x)

        return call

    monkeypatch.setattr(Arithmetic, "prepare", watched)
    clf = classifier(odd_config, "mean")
    for lengths in ([1], [5, 40], [40] * 30):
        rows = [row.numpy().astype(np.int32) for row in random_rows(odd_config, lengths)]
        compute_chunk(FrozenPrefix(clf, 3, FLOAT32), rows)
    assert shapes == {(1024, 24), (1024, 56)}


@pytest.mark.parametrize("pooling", ["last", "first"])
def test_pooled_block_computes_as_many_rows_as_follow_from_their_length(
    monkeypatch: pytest.MonkeyPatch, odd_config: GPT2Config, pooling: str
) -> None:
    shapes: set[tuple[int, ...]] = set()
    at_position = Block.at_position

    def watched(block: Block, x: Tensor, position: Tensor) -> Tensor:
        shapes.add(tuple(x.shape[:2]))
        return at_position(block, x, position)

    monkeypatch.setattr(Block, "at_position", watched)
    clf = classifier(odd_config, pooling)
    for lengths in ([5], [5, 5, 40], [40] * 3):
        rows = [row.numpy().astype(np.int32) for row in random_rows(odd_config, lengths)]
        compute_chunk(FrozenPrefix(clf, 5, FLOAT32), rows)
    assert shapes == {(32, 5), (32, 40)}


# --- the differentiable line ---


def gradients_of(clf: GPT2, logits: Tensor) -> dict[str, Tensor]:
    named = dict(clf.named_parameters())
    weights = torch.linspace(-1.0, 2.0, logits.numel(), dtype=logits.dtype).view_as(logits)
    found = torch.autograd.grad((logits * weights).sum(), list(named.values()), materialize_grads=True)
    return dict(zip(named, found, strict=True))


def check_line(clf: GPT2, ids: Tensor, lengths: Tensor) -> None:
    """Compare logits and gradients with those of the padded rows through trunk and head."""
    logits, expected = clf(ids, lengths), clf.head(clf.trunk(ids), lengths)
    torch.testing.assert_close(logits, expected, rtol=1e-12, atol=1e-12)
    found = gradients_of(clf, logits)
    for name, gradient in gradients_of(clf, expected).items():
        worst = float((found[name] - gradient).abs().max())
        assert worst <= 1e-12 + 1e-11 * float(gradient.abs().max()), f"{name}: off by {worst:.2g}"


@pytest.mark.parametrize("lengths", [[4, 9, 1, 6], [9, 9, 9], [1, 1], [3], [12, 2]])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_line_of_packed_rows_equals_padded_rows(odd_config: GPT2Config, pooling: str, lengths: list[int]) -> None:
    clf = classifier(odd_config, pooling).double().requires_grad_()
    ids = torch.stack([F.pad(row, (0, 12 - len(row)), value=5) for row in random_rows(odd_config, lengths)])
    check_line(clf, ids, torch.tensor(lengths))


def watching(clf: GPT2, shapes: list[tuple[int, ...]]) -> GPT2:
    """Note the shape of what each block of a classifier is called with."""

    def watched(block: nn.Module, x: Tensor, *given: Any) -> Tensor:
        shapes.append(tuple(x.shape))
        return block(x, *given)  # type: ignore[no-any-return]

    clf._call = watched  # type: ignore[method-assign]
    return clf


def test_line_of_packed_rows_computes_nothing_for_padding(odd_config: GPT2Config) -> None:
    shapes: list[tuple[int, ...]] = []
    ids, lengths = torch.zeros(3, 12, dtype=torch.int64), torch.tensor([4, 12, 1])
    for pooling, blocks in (("mean", 3), ("last", 2)):
        shapes.clear()
        clf = classifier(odd_config, pooling)
        logits = watching(clf, shapes)(ids, lengths)
        assert shapes == [(1, 17, 24)] * blocks
        assert torch.equal(logits, classifier(odd_config, pooling)(ids, lengths))


def test_block_of_another_class_in_the_line_is_called_on_padded_rows_and_the_others_stay_packed(
    odd_config: GPT2Config,
) -> None:
    shapes: list[tuple[int, ...]] = []
    ids, lengths = torch.ones(3, 12, dtype=torch.int64), torch.tensor([4, 12, 1])
    for layer, middle in ((LowRank, (1, 17, 24)), (Doubled.of, (3, 12, 24))):
        clf = classifier(odd_config, "mean").double()
        block = clf.trunk.blocks[1]
        assert isinstance(block, Block)
        block.mlp.up = layer(block.mlp.up)
        shapes.clear()
        logits = watching(clf, shapes)(ids, lengths)
        assert shapes == [(1, 17, 24), middle, (1, 17, 24)]
        torch.testing.assert_close(logits, clf.head(clf.trunk(ids), lengths), rtol=1e-10, atol=1e-10)


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    pooling=st.sampled_from(POOLINGS),
    n_layers=st.integers(1, 2),
    pads=st.integers(0, 3),
)
def test_line_equals_padded_rows_for_any_lengths(lengths: list[int], pooling: str, n_layers: int, pads: int) -> None:
    config = GPT2Config(vocab_size=31, context_length=16, emb_dim=12, n_heads=2, n_layers=n_layers)
    clf = classifier(config, pooling).double().requires_grad_()
    longest = max(lengths) + pads
    ids = torch.stack([F.pad(row, (0, longest - len(row)), value=5) for row in random_rows(config, lengths)])
    check_line(clf, ids, torch.tensor(lengths))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_recomputed_activations_give_identical_gradients(odd_config: GPT2Config, pooling: str) -> None:
    clf = classifier(odd_config, pooling).requires_grad_()
    ids, lengths = torch.stack([F.pad(r, (0, 9 - len(r))) for r in random_rows(odd_config, [4, 9, 1])]), [4, 9, 1]
    kept = gradients_of(clf, clf(ids, torch.tensor(lengths)))
    recomputed = gradients_of(clf, Learner(clf, recompute=True)(ids, torch.tensor(lengths)))
    assert all(torch.equal(recomputed[name], gradient) for name, gradient in kept.items())


def test_recomputed_activations_run_each_whole_block_twice(odd_config: GPT2Config) -> None:
    clf = classifier(odd_config, "mean").requires_grad_()
    calls: list[int] = []
    clf.trunk.blocks[1].mlp.up.register_forward_hook(lambda *_: calls.append(1))  # type: ignore[union-attr]
    for enabled, times in ((False, 1), (True, 2)):
        calls.clear()
        gradients_of(clf, Learner(clf, recompute=enabled)(torch.ones(2, 5, dtype=torch.int64)))
        assert len(calls) == times
