"""The network: its shapes, initialisation, heads and pooling, and the messages for what it cannot take."""

import copy
import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from conftest import classifier_of, randomised
from torch import Tensor, nn
from torch.nn import functional as F

from gptclf import GPT2, GPT2Config, add_classifier_head, load_gpt2
from gptclf.gpt2.config import ACTIVATIONS, ALIASES, PRESETS
from gptclf.gpt2.heads import POOLINGS, pool

# The book's configuration dictionaries (chapters 4 and 6).
BOOK = {
    "vocab_size": 50257,
    "context_length": 1024,
    "emb_dim": 768,
    "n_heads": 12,
    "n_layers": 12,
    "drop_rate": 0.1,
    "qkv_bias": False,
}
BOOK_SIZES: dict[str, dict[str, int]] = {
    "gpt2": {"emb_dim": 768, "n_layers": 12, "n_heads": 12},
    "gpt2-medium": {"emb_dim": 1024, "n_layers": 24, "n_heads": 16},
    "gpt2-large": {"emb_dim": 1280, "n_layers": 36, "n_heads": 20},
    "gpt2-xl": {"emb_dim": 1600, "n_layers": 48, "n_heads": 25},
}


def count(config: GPT2Config) -> int:
    return sum(parameter.numel() for parameter in GPT2(config, device="meta").parameters())


def tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def ids_of(config: GPT2Config, *shape: int, seed: int = 0) -> Tensor:
    return torch.randint(config.vocab_size, shape, generator=torch.Generator().manual_seed(seed))


# Configuration


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [("gpt2", 124_439_808), ("gpt2-medium", 354_823_168), ("gpt2-large", 774_030_080), ("gpt2-xl", 1_557_611_200)],
)
def test_each_published_size_has_the_parameters_openai_counted(preset: str, parameters: int) -> None:
    assert count(PRESETS[preset]) == parameters


@pytest.mark.parametrize(("context_length", "parameters"), [(1024, 163_009_536), (256, 162_419_712)])
def test_the_books_own_model_has_the_parameters_the_book_prints(context_length: int, parameters: int) -> None:
    assert count(GPT2Config.from_book({**BOOK, "context_length": context_length})) == parameters


@pytest.mark.parametrize("preset", BOOK_SIZES)
def test_the_books_dictionaries_give_the_presets(preset: str) -> None:
    merged: dict[str, Any] = {**BOOK, **BOOK_SIZES[preset], "qkv_bias": True, "drop_rate": 0.0}
    assert GPT2Config(**merged) == PRESETS[preset]


def test_the_names_by_size_stand_for_presets() -> None:
    assert [ALIASES[name] for name in ("124M", "355M", "774M", "1558M")] == list(BOOK_SIZES)


def test_from_book_lets_the_size_win_and_leaves_both_dictionaries_alone() -> None:
    base, size = dict(BOOK), dict(BOOK_SIZES["gpt2-xl"])
    config = GPT2Config.from_book(base, size)
    assert (config.emb_dim, config.n_layers, config.n_heads) == (1600, 48, 25)
    assert not config.tied
    assert not config.qkv_bias
    assert (base, size) == (BOOK, BOOK_SIZES["gpt2-xl"])


def test_from_book_keeps_a_tied_head_that_is_asked_for() -> None:
    assert GPT2Config.from_book({**BOOK, "tied": True}).tied


def test_from_dict_names_every_unknown_key() -> None:
    with pytest.raises(ValueError, match=r"unknown configuration keys 'n_ctx', 'width'; GPT2Config has vocab_size"):
        GPT2Config.from_dict({"width": 3, "n_ctx": 2, "emb_dim": 12})


def test_to_dict_and_from_dict_are_inverse(odd_config: GPT2Config) -> None:
    assert GPT2Config.from_dict(odd_config.to_dict()) == odd_config


def test_replace_changes_one_field_of_a_copy(odd_config: GPT2Config) -> None:
    changed = odd_config.replace(n_layers=5)
    assert changed.n_layers == 5
    assert odd_config.n_layers == 3
    assert changed.replace(n_layers=3) == odd_config


def test_replace_refuses_an_unknown_field(odd_config: GPT2Config) -> None:
    with pytest.raises(ValueError, match="unknown configuration key 'layers'"):
        odd_config.replace(layers=5)


def test_a_configuration_cannot_be_changed(odd_config: GPT2Config) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        odd_config.n_layers = 4  # type: ignore[misc]


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"emb_dim": 10, "n_heads": 3}, ValueError, "emb_dim 10 is not divisible by n_heads 3"),
        ({"n_layers": 0}, ValueError, r"GPT2Config\.n_layers is 0; it must be an integer of at least 1"),
        ({"vocab_size": 2.0}, TypeError, r"GPT2Config\.vocab_size is 2.0; it must be an integer"),
        ({"n_heads": True}, TypeError, r"GPT2Config\.n_heads is True; it must be an integer"),
        ({"mlp_dim": -1}, ValueError, r"GPT2Config\.mlp_dim is -1; it must be an integer of at least 1 or None"),
        ({"tied": 1}, TypeError, r"GPT2Config\.tied is 1; it must be True or False"),
        ({"drop_rate": 1.0}, ValueError, r"GPT2Config\.drop_rate is 1.0; it must be .*at least 0 and below 1"),
        ({"drop_rate": -0.1}, ValueError, r"GPT2Config\.drop_rate is -0.1; it must be .*at least 0"),
        ({"drop_rate": math.nan}, ValueError, "drop_rate is nan"),
        ({"drop_rate": "0.1"}, TypeError, "drop_rate is '0.1'; it must be a finite number"),
        ({"activation": "gelu_new"}, ValueError, "'gelu_new'; it must be one of gelu_tanh, gelu, relu, silu"),
        ({"activation": None}, TypeError, r"GPT2Config\.activation is None; it must be one of"),
        ({"norm_eps": 0.0}, ValueError, "norm_eps is 0.0; it must be a finite number above 0"),
        ({"init_std": -0.02}, ValueError, "init_std is -0.02; it must be a finite number above 0"),
    ],
)
def test_a_configuration_that_cannot_be_built_says_why(
    values: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        GPT2Config(**values)


def test_numbers_of_numpy_become_pythons() -> None:
    config = GPT2Config(vocab_size=np.int64(31), drop_rate=np.float64(0.5))  # type: ignore[arg-type]
    assert (type(config.vocab_size), type(config.drop_rate)) == (int, float)


def test_the_mlp_is_four_times_as_wide_unless_told(odd_config: GPT2Config) -> None:
    assert odd_config.hidden_dim == 56
    assert odd_config.replace(mlp_dim=None).hidden_dim == 96


# Initialisation


@pytest.fixture(scope="module")
def wide() -> GPT2:
    return GPT2(GPT2Config(vocab_size=301, context_length=80, emb_dim=96, n_heads=4, n_layers=8), seed=5)


def test_matrices_are_drawn_with_the_configured_deviation(wide: GPT2) -> None:
    for name, tensor in tensors(wide).items():
        if tensor.dim() == 2:
            residual = name.endswith(("attention.out.weight", "mlp.down.weight"))
            expected = 0.02 / math.sqrt(2 * 8) if residual else 0.02
            # Five standard errors of a sample's deviation and mean.
            assert abs(float(tensor.std()) / expected - 1) < 5 / math.sqrt(2 * tensor.numel()), name
            assert abs(float(tensor.mean())) < 5 * expected / math.sqrt(tensor.numel()), name


def test_another_deviation_scales_the_same_draws(odd_config: GPT2Config) -> None:
    small, large = (GPT2(odd_config.replace(init_std=std), seed=3) for std in (0.02, 0.2))
    torch.testing.assert_close(10 * small.trunk.embed.token.weight, large.trunk.embed.token.weight)


def test_biases_start_at_zero_and_norms_as_the_identity(wide: GPT2) -> None:
    vectors = {name: tensor for name, tensor in tensors(wide).items() if tensor.dim() == 1}
    assert len(vectors) == 8 * 8 + 2
    for name, tensor in vectors.items():
        is_norm_weight = "norm" in name and name.endswith("weight")
        assert torch.equal(tensor, torch.full_like(tensor, float(is_norm_weight))), name


def test_a_classifiers_head_is_drawn_like_any_matrix(odd_config: GPT2Config) -> None:
    config = odd_config.replace(emb_dim=600)
    weight = classifier_of(config, range(50), seed=1).head.get_parameter("output.weight").detach()
    assert abs(float(weight.std()) / 0.02 - 1) < 5 / math.sqrt(2 * weight.numel())


def test_one_seed_means_the_same_weights(odd_config: GPT2Config) -> None:
    first, second = tensors(GPT2(odd_config, seed=4)), tensors(GPT2(odd_config, seed=4))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_another_seed_means_other_weights(odd_config: GPT2Config) -> None:
    first, second = tensors(GPT2(odd_config, seed=4)), tensors(GPT2(odd_config, seed=5))
    assert not any(torch.equal(first[name], second[name]) for name in first if first[name].dim() == 2)


def test_a_seed_leaves_torchs_global_generator_alone(odd_config: GPT2Config) -> None:
    before = torch.get_rng_state()
    GPT2(odd_config, seed=4)
    assert torch.equal(torch.get_rng_state(), before)


def test_without_a_seed_torchs_global_one_rules(odd_config: GPT2Config) -> None:
    def draw(seed: int) -> list[Tensor]:
        torch.manual_seed(seed)
        return [GPT2(odd_config).trunk.embed.token.weight for _ in range(2)]

    first, again, other = draw(1), draw(1), draw(2)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], other[0])


def test_a_meta_model_holds_shapes_and_no_data(odd_config: GPT2Config) -> None:
    assert all(tensor.is_meta for tensor in tensors(GPT2(odd_config, device="meta")).values())


# What is computed


def reference_hidden(model: GPT2, ids: Tensor) -> Tensor:
    """Hidden states in float64 from the formulas of the paper, one row and one head at a time."""
    config, P = model.config, {name: tensor.double() for name, tensor in tensors(model).items()}

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + config.norm_eps).sqrt()
        return scaled * P[name + ".weight"] + P[name + ".bias"]

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ P[name + ".weight"].T + P.get(name + ".bias", torch.zeros(()).double())

    width, rows = config.emb_dim // config.n_heads, []
    for row in ids:
        T = len(row)
        x = P["trunk.embed.token.weight"][row] + P["trunk.embed.position.weight"][:T]
        for i in range(config.n_layers):
            block = f"trunk.blocks.{i}"
            q, k, v = linear(norm(x, block + ".norm1"), block + ".attention.qkv").chunk(3, dim=-1)
            heads = []
            for h in range(config.n_heads):
                part = slice(h * width, (h + 1) * width)
                scores = q[:, part] @ k[:, part].T
                scores = scores / math.sqrt(width) if config.scale_attention else scores
                scores = scores / (i + 1) if config.scale_attention_by_layer else scores
                scores = scores.masked_fill(torch.ones(T, T).triu(1).bool(), float("-inf"))
                heads.append(scores.softmax(-1) @ v[:, part])
            x = x + linear(torch.cat(heads, -1), block + ".attention.out")
            up = linear(norm(x, block + ".norm2"), block + ".mlp.up")
            x = x + linear(activate(up, config.activation), block + ".mlp.down")
        rows.append(norm(x, "trunk.norm"))
    return torch.stack(rows)


def activate(x: Tensor, activation: str) -> Tensor:
    if activation == "gelu_tanh":
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    if activation == "gelu":
        return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
    return x.clamp(min=0) if activation == "relu" else x / (1 + torch.exp(-x))


@pytest.mark.parametrize(("activation", "scaled"), list(zip(ACTIVATIONS, [True, False] * 2, strict=True)))
def test_hidden_states_follow_the_formulas(odd_config: GPT2Config, activation: str, scaled: bool) -> None:
    config = odd_config.replace(
        activation=activation,
        scale_attention=scaled,
        scale_attention_by_layer=not scaled,
        norm_eps=1e-3,
        qkv_bias=scaled,
    )
    model = randomised(GPT2(config, seed=1))
    ids = ids_of(config, 2, 17)
    torch.testing.assert_close(model.trunk(ids).double(), reference_hidden(model, ids), rtol=1e-4, atol=1e-5)


def test_no_token_sees_what_stands_to_its_right(small_gpt2: GPT2) -> None:
    ids = ids_of(small_gpt2.config, 1, 12)
    other = torch.cat([ids[:, :7], (ids[:, 7:] + 1) % 257], dim=1)
    before, after = small_gpt2(ids), small_gpt2(other)
    torch.testing.assert_close(after[:, :7], before[:, :7])
    assert not torch.allclose(after[:, 7:], before[:, 7:])


# The language-model head


def test_a_tied_head_is_the_token_embedding(small_gpt2: GPT2) -> None:
    ids = ids_of(small_gpt2.config, 2, 5)
    expected = small_gpt2.trunk(ids) @ small_gpt2.trunk.embed.token.weight.T
    torch.testing.assert_close(small_gpt2(ids), expected)
    assert not list(small_gpt2.head.parameters())


def test_changing_the_embedding_changes_a_tied_head(small_gpt2: GPT2) -> None:
    ids = torch.tensor([[1, 2, 3]])
    before = small_gpt2(ids)
    with torch.no_grad():
        small_gpt2.trunk.embed.token.weight[100] += 1.0  # a token that does not stand in the row
    assert (small_gpt2(ids) != before).nonzero()[:, 2].unique().tolist() == [100]


def test_a_deep_copy_ties_its_head_to_its_own_embedding(small_gpt2: GPT2) -> None:
    twin = copy.deepcopy(small_gpt2)
    ids = ids_of(small_gpt2.config, 2, 5)
    before = small_gpt2(ids)
    with torch.no_grad():
        twin.trunk.embed.token.weight[:] = 0.0
    torch.testing.assert_close(small_gpt2(ids), before, rtol=0, atol=0)
    assert not twin(ids).any()


def test_an_untied_head_has_a_matrix_of_its_own(odd_config: GPT2Config) -> None:
    model = randomised(GPT2(odd_config.replace(tied=False), seed=2))
    assert model.head.get_parameter("output.weight").shape == (257, 24)
    assert count(model.config) - count(odd_config) == 257 * 24
    ids = torch.tensor([[1, 2, 3]])
    before = model(ids)
    with torch.no_grad():
        model.trunk.embed.token.weight[100] += 1.0
    torch.testing.assert_close(model(ids), before, rtol=0, atol=0)


# Pooling and the classifier head


def pool_row_by_row(hidden: Tensor, lengths: list[int], pooling: str) -> Tensor:
    rows = []
    for row, length in zip(hidden.double().numpy(), lengths, strict=True):
        tokens = row[:length]
        rows.append({"last": tokens[-1], "first": tokens[0], "mean": tokens.mean(0), "max": tokens.max(0)}[pooling])
    return torch.from_numpy(np.stack(rows))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_pooling_reads_the_real_tokens_of_each_row(pooling: str) -> None:
    # Negative and large: a maximum over padding zeros or a mean over all columns would show.
    hidden = torch.randn(5, 9, 7, generator=torch.Generator().manual_seed(1)) - 10
    lengths = [1, 9, 4, 8, 2]
    pooled = pool(hidden, torch.tensor(lengths), pooling)
    torch.testing.assert_close(pooled.double(), pool_row_by_row(hidden, lengths, pooling), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_without_lengths_every_row_ends_at_its_last_column(pooling: str) -> None:
    hidden = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(pool(hidden, None, pooling), pool(hidden, torch.tensor([6, 6, 6]), pooling))


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("bias", [True, False])
def test_class_logits_are_one_linear_layer_on_the_pooled_row(odd_config: GPT2Config, pooling: str, bias: bool) -> None:
    model = randomised(classifier_of(odd_config, list("abcde"), pooling=pooling, bias=bias, seed=1))
    ids, lengths = ids_of(odd_config, 3, 11), torch.tensor([11, 1, 6])
    weights = {name: tensor.double() for name, tensor in tensors(model.head).items()}
    assert set(weights) == ({"output.weight", "output.bias"} if bias else {"output.weight"})
    pooled = pool_row_by_row(model.trunk(ids).detach(), lengths.tolist(), pooling)
    expected = pooled @ weights["output.weight"].T + weights.get("output.bias", torch.zeros(5).double())
    torch.testing.assert_close(model(ids, lengths).double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_what_stands_in_the_padding_does_not_matter(odd_config: GPT2Config, pooling: str) -> None:
    model = randomised(classifier_of(odd_config, [0, 1, 2], pooling=pooling, seed=1))
    ids, lengths = ids_of(odd_config, 4, 13), torch.tensor([13, 1, 5, 12])
    pad = torch.arange(13) >= lengths[:, None]
    zeros, others = ids.masked_fill(pad, 0), torch.where(pad, ids_of(odd_config, 4, 13, seed=9), ids)
    torch.testing.assert_close(model(zeros, lengths), model(others, lengths), rtol=0, atol=0)


@pytest.mark.parametrize("classes", [None, ["a", "b", "c"]])
def test_token_logits_are_the_head_at_every_position(odd_config: GPT2Config, classes: list[str] | None) -> None:
    model = GPT2(odd_config, seed=1) if classes is None else classifier_of(odd_config, classes, seed=1)
    randomised(model)
    ids = ids_of(odd_config, 2, 6)
    hidden, logits = model.trunk(ids), model.token_logits(ids)
    assert logits.shape == (2, 6, 257 if classes is None else 3)
    for position in range(6):
        expected = model.head(hidden[:, position : position + 1], None).reshape(2, -1)
        torch.testing.assert_close(logits[:, position], expected)


def test_the_last_tokens_logits_are_the_classifiers_answer(odd_config: GPT2Config) -> None:
    model = randomised(classifier_of(odd_config, ["a", "b"], seed=1))
    ids, lengths = ids_of(odd_config, 3, 8), torch.tensor([8, 3, 1])
    expected = torch.stack([row[n - 1] for row, n in zip(model.token_logits(ids), lengths, strict=True)])
    torch.testing.assert_close(model(ids, lengths), expected)


# Dropout


def test_dropout_acts_in_training_mode_only(odd_config: GPT2Config) -> None:
    model = randomised(GPT2(odd_config.replace(drop_rate=0.5), seed=1))
    plain = GPT2(odd_config, seed=1)
    plain.load_state_dict(model.state_dict())
    ids = ids_of(odd_config, 2, 9)
    torch.testing.assert_close(model(ids), plain(ids), rtol=0, atol=0)
    model.train()
    assert not torch.allclose(model(ids), model(ids))
    torch.testing.assert_close(model.eval()(ids), plain(ids), rtol=0, atol=0)


def test_dropout_of_zero_changes_nothing_in_training_mode(small_gpt2: GPT2) -> None:
    ids = ids_of(small_gpt2.config, 2, 9)
    before = small_gpt2(ids)
    torch.testing.assert_close(small_gpt2.train()(ids), before)


@pytest.mark.parametrize("place", ["embed", "attention", "attention weights", "mlp"])
def test_each_of_gpt2s_dropouts_is_there(odd_config: GPT2Config, place: str) -> None:
    # All but one switched off: the one left must still make two passes differ.
    model = randomised(GPT2(odd_config.replace(drop_rate=0.5), seed=1)).train()
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout):
            owner, own = name.split(".")[-2:]
            module.p = 0.5 if place == ("attention weights" if own == "weights_dropout" else owner) else 0.0
    ids = ids_of(odd_config, 2, 9)
    assert not torch.allclose(model(ids), model(ids))


def test_a_new_model_is_in_eval_mode(odd_config: GPT2Config) -> None:
    assert not any(module.training for module in GPT2(odd_config, seed=1).modules())


# What cannot be taken


def test_ids_beyond_the_vocabulary_are_refused(small_gpt2: GPT2) -> None:
    with pytest.raises(ValueError, match="token ids run from 3 to 257 but the vocabulary has ids 0 to 256"):
        small_gpt2(torch.tensor([[3, 257]]))


def test_negative_ids_are_refused(small_gpt2: GPT2) -> None:
    with pytest.raises(ValueError, match="token ids run from -1 to 4"):
        small_gpt2(torch.tensor([[4, -1]]))


def test_a_row_longer_than_the_context_is_refused(small_gpt2: GPT2) -> None:
    with pytest.raises(ValueError, match="a row has 41 tokens but the model's context length is 40"):
        small_gpt2(torch.zeros(1, 41, dtype=torch.int64))


def test_a_row_as_long_as_the_context_is_taken(small_gpt2: GPT2) -> None:
    assert small_gpt2(torch.zeros(1, 40, dtype=torch.int64)).shape == (1, 40, 257)


def test_ids_without_a_batch_dimension_are_refused(small_gpt2: GPT2) -> None:
    with pytest.raises(ValueError, match=r"input_ids has shape \(3,\); it must be \(batch, tokens\)"):
        small_gpt2(torch.tensor([1, 2, 3]))


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([0, 3], r"lengths run from 0 to 3; with 4 columns they must lie in 1 to 4"),
        ([1, 5], r"lengths run from 1 to 5"),
        ([1, 2, 3], r"lengths has shape \(3,\); it must be \(2,\)"),
        ([[1], [2]], r"lengths has shape \(2, 1\)"),
    ],
)
@pytest.mark.parametrize("pooling", POOLINGS)
def test_lengths_that_fit_no_row_are_refused(pooling: str, lengths: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pool(torch.zeros(2, 4, 3), torch.tensor(lengths), pooling)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": ["spam"]}, "at least 2 classes"),
        ({"classes": []}, "at least 2 classes"),
        ({"classes": ["a", "b", "a"]}, "holds a label twice"),
        ({"classes": ["a", "b"], "pooling": "final"}, "pooling is 'final'; it must be one of last, first, mean, max"),
    ],
)
def test_a_head_that_cannot_be_built_says_why(odd_config: GPT2Config, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        add_classifier_head(GPT2(odd_config, seed=1), **arguments)


# A new head knows that it is new


def test_a_head_is_new_until_any_loop_trains_it(odd_config: GPT2Config) -> None:
    model = classifier_of(odd_config, ["a", "b"], seed=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert model.head.is_fresh
    loss = F.cross_entropy(model(ids_of(odd_config, 2, 5)), torch.tensor([0, 1]))
    loss.backward()  # type: ignore[no-untyped-call]
    assert model.head.is_fresh
    optimizer.step()
    assert not model.head.is_fresh


def test_a_head_filled_from_elsewhere_is_not_new(odd_config: GPT2Config) -> None:
    model, trained = (classifier_of(odd_config, ["a", "b"], seed=seed) for seed in (1, 2))
    model.load_state_dict(trained.state_dict())
    assert not model.head.is_fresh


def test_a_language_models_head_is_never_new(small_gpt2: GPT2, odd_config: GPT2Config) -> None:
    assert not small_gpt2.head.is_fresh
    assert not GPT2(odd_config.replace(tied=False), seed=1).head.is_fresh


def test_a_models_classes_are_a_copy(odd_config: GPT2Config) -> None:
    model = classifier_of(odd_config, ["a", "b"], seed=1)
    assert model.classes == ["a", "b"]
    model.classes.append("c")
    assert model.classes == ["a", "b"]
    assert GPT2(odd_config, seed=1).classes is None


def test_random_weights_by_name_have_the_seed_and_the_dropout_that_are_asked_for(odd_config: GPT2Config) -> None:
    loaded = load_gpt2(odd_config, weights="random", seed=4, dropout=0.25)
    drawn = GPT2(odd_config, seed=4)
    assert loaded.config == odd_config.replace(drop_rate=0.25)
    assert all(torch.equal(tensor, tensors(loaded)[name]) for name, tensor in tensors(drawn).items())
