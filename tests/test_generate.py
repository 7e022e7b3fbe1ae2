"""Generation against transformers' `generate` and its logits processors on the same random weights."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import byte_tokenizer, randomised
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import GPT2Config as TheirConfig
from transformers import GPT2LMHeadModel, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from gptclf import GPT2, GPT2Config, add_classifier_head, generate, generate_ids, load_gpt2
from gptclf.gpt2.arithmetic import Arithmetic
from gptclf.gpt2.attend import Attend, causal
from gptclf.gpt2.layers import ALL, Linear
from gptclf.gpt2.trunk import Block
from gptclf.language.decoding import Decoder
from gptclf.language.sampling import Sampler

# Between them every choice that changes the computation; two contexts are long enough for matrices to be laid out anew.
SMALL: dict[str, dict[str, Any]] = {
    "plain": {"vocab_size": 257, "n_positions": 48, "n_embd": 24, "n_head": 3, "n_layer": 3, "n_inner": 56},
    "untied, relu, unscaled": {
        "vocab_size": 131,
        "n_positions": 20,
        "n_embd": 30,
        "n_head": 5,
        "n_layer": 2,
        "n_inner": 17,
        "activation_function": "relu",
        "scale_attn_weights": False,
        "tie_word_embeddings": False,
    },
    "untied, exact gelu, scaled by layer": {
        "vocab_size": 101,
        "n_positions": 45,
        "n_embd": 36,
        "n_head": 4,
        "n_layer": 3,
        "activation_function": "gelu",
        "scale_attn_by_inverse_layer_idx": True,
        "tie_word_embeddings": False,
        "layer_norm_epsilon": 1e-3,
    },
}

TOKENIZER = byte_tokenizer()
END = "<|endoftext|>"


@pytest.fixture(params=list(SMALL.values()), ids=list(SMALL))
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[GPT2, Any]:
    """Our model and theirs with the same weights, which came through a folder."""
    config = TheirConfig(
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0, **request.param
    )
    torch.manual_seed(3)
    theirs = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
        theirs.transformer.wpe.weight *= 5  # what comes next changes from token to token
    theirs.save_pretrained(tmp_path)
    return load_gpt2(tmp_path), theirs


def their_greedy(theirs: Any, ids: Tensor, n: int, **options: Any) -> Tensor:
    settings = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, **options}
    found: Tensor = theirs.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=n, **settings)
    return found


def prompts(gpt2: GPT2, rows: int, length: int) -> Tensor:
    generator = torch.Generator().manual_seed(rows * 100 + length)
    return torch.randint(gpt2.config.vocab_size, (rows, length), generator=generator)


def constant_model(logits: dict[int, float], vocab_size: int = 300, context_length: int = 16) -> GPT2:
    """A model whose next-token logits are these whatever stands before, and -50 for all other tokens."""
    config = GPT2Config(
        vocab_size=vocab_size, context_length=context_length, emb_dim=8, n_heads=2, n_layers=1, tied=False
    )
    gpt2 = GPT2(config, seed=0).requires_grad_(False)
    nn.init.zeros_(gpt2.trunk.norm.weight)
    nn.init.zeros_(gpt2.trunk.norm.bias)
    gpt2.trunk.norm.bias[0] = 1.0
    gpt2.head.output.weight[:, 0] = -50.0  # type: ignore[union-attr, operator]
    for token, value in logits.items():
        gpt2.head.output.weight[token, 0] = value  # type: ignore[union-attr, operator]
    gpt2.tokenizer = TOKENIZER
    return gpt2


def byte(character: str) -> int:
    return int(TOKENIZER.encode_ordinary(character)[0])


# Greedy


@pytest.mark.parametrize(("rows", "length"), [(1, 1), (1, 7), (2, 3), (5, 4)])
@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_tokens_are_those_of_transformers(
    pair: tuple[GPT2, Any], rows: int, length: int, use_cache: bool
) -> None:
    gpt2, theirs = pair
    ids = prompts(gpt2, rows, length)
    n = gpt2.config.context_length - length
    ours = generate_ids(gpt2, ids, n, use_cache=use_cache)
    assert ours.tolist() == their_greedy(theirs, ids, n).tolist()
    assert len(set(ours[0, length:].tolist())) > 2, "a row that repeats one token shows little"


@pytest.mark.parametrize("length", [1, 18, 200])
@pytest.mark.parametrize("use_cache", [True, False])
def test_past_the_context_the_last_tokens_of_the_context_count(
    pair: tuple[GPT2, Any], length: int, use_cache: bool
) -> None:
    gpt2, theirs = pair
    context = gpt2.config.context_length
    expected = prompts(gpt2, 2, length)
    ours = generate_ids(gpt2, expected, context + 7, use_cache=use_cache)
    with torch.no_grad():
        for _ in range(context + 7):
            chosen = theirs(expected[:, -context:]).logits[:, -1].argmax(dim=-1)
            expected = torch.cat([expected, chosen[:, None]], dim=1)
    assert ours.tolist() == expected.tolist()


def test_rows_end_at_the_end_of_text_as_in_transformers(pair: tuple[GPT2, Any]) -> None:
    gpt2, theirs = pair
    ids = prompts(gpt2, 3, 4)
    free = their_greedy(theirs, ids, 12)
    ends = {int(token) for token in free[:, 4:].flatten()}
    lengths = set()
    for end in sorted(ends):
        expected = their_greedy(theirs, ids, 12, eos_token_id=end, pad_token_id=end)
        ours = generate_ids(gpt2, ids, 12, end_id=end)
        assert ours.tolist() == expected.tolist()
        lengths.add(len(generate_ids(gpt2, ids[0], 12, end_id=end)[0]))
    assert len(lengths) > 2


@settings(max_examples=15, deadline=None)
@given(rows=st.integers(1, 3), length=st.integers(1, 14), n=st.integers(0, 50), temperature=st.sampled_from([0.0, 1.0]))
def test_the_cache_changes_no_token(rows: int, length: int, n: int, temperature: float) -> None:
    config = GPT2Config(vocab_size=31, context_length=12 if n < 40 else 60, emb_dim=12, n_heads=2, n_layers=2)
    gpt2 = GPT2(config.replace(init_std=0.4, qkv_bias=bool(n % 2)), seed=n)
    ids = prompts(gpt2, rows, length)
    found = [
        generate_ids(gpt2, ids, n, temperature=temperature, seed=1, use_cache=use_cache).tolist()
        for use_cache in (True, False)
    ]
    assert found[0] == found[1]
    assert [row[:length] for row in found[0]] == ids.tolist()
    assert {len(row) for row in found[0]} == {length + n}


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each step with the cache is given."""
    seen: list[int] = []
    advance = Decoder.advance

    def watched(self: Decoder, ids: Tensor) -> Tensor:
        seen.append(ids.shape[1])
        return advance(self, ids)

    monkeypatch.setattr(Decoder, "advance", watched)
    return seen


def test_a_step_with_the_cache_computes_one_token(small_gpt2: GPT2, steps: list[int]) -> None:
    generate_ids(small_gpt2, [1, 2, 3, 4, 5], 4)
    assert steps == [5, 1, 1, 1]


# Sampling


def their_probabilities(logits: Tensor, temperature: float, top_k: int | None, top_p: float | None) -> Tensor:
    nothing = torch.zeros(len(logits), 0, dtype=torch.int64)
    logits = TemperatureLogitsWarper(temperature)(nothing, logits)
    if top_k is not None:
        logits = TopKLogitsWarper(top_k)(nothing, logits)
    if top_p is not None:
        logits = TopPLogitsWarper(top_p)(nothing, logits)
    return logits.softmax(dim=-1)


@settings(max_examples=200, deadline=None)
@given(
    rows=st.integers(2, 30).flatmap(
        lambda size: st.lists(st.lists(st.integers(-40, 40), min_size=size, max_size=size), min_size=1, max_size=3)
    ),
    temperature=st.sampled_from([0.3, 0.7, 1.0, 2.5]),
    top_k=st.none() | st.integers(1, 40),
    top_p=st.none() | st.floats(0.01, 1.0),
)
def test_what_is_drawn_from_is_what_transformers_draws_from(
    rows: list[list[int]], temperature: float, top_k: int | None, top_p: float | None
) -> None:
    logits = torch.tensor(rows, dtype=torch.float32) / 8
    if top_p is not None:
        # Where a sum of probabilities meets p, rounding decides.
        kept = their_probabilities(logits, temperature, top_k, None).double().sort(dim=-1).values.cumsum(dim=-1)
        assume(float((kept - (1 - top_p)).abs().min()) > 1e-5)
    ours = Sampler(temperature, top_k, top_p, seed=0).probabilities(logits)
    torch.testing.assert_close(ours, their_probabilities(logits, temperature, top_k, top_p), rtol=1e-5, atol=1e-7)


@settings(max_examples=100, deadline=None)
@given(logits=st.lists(st.integers(-40, 40), min_size=2, max_size=12, unique=True), top_p=st.floats(0.001, 1.0))
def test_the_nucleus_is_the_smallest_set_that_reaches_p(logits: list[int], top_p: float) -> None:
    shares = (torch.tensor(logits, dtype=torch.float64) / 8).softmax(dim=0)
    masses = shares.sort(descending=True).values.cumsum(dim=0)
    assume(float((masses - top_p).abs().min()) > 1e-6)
    size = min(len(logits), int((masses < top_p).sum()) + 1)
    kept = Sampler(1.0, None, top_p, seed=0).probabilities(torch.tensor([logits]) / 8)[0] > 0
    assert set(kept.nonzero()[:, 0].tolist()) == set(shares.topk(size).indices.tolist())


def test_draws_have_the_frequencies_of_their_probabilities() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, 1.5])
    sampler = Sampler(0.8, top_k=4, top_p=0.97, seed=5)
    expected = sampler.probabilities(logits[None])[0]
    counts = sampler.choose(logits.expand(40_000, -1)).bincount(minlength=5)
    assert counts[3] == 0
    torch.testing.assert_close(counts / 40_000, expected, rtol=0.0, atol=0.01)


def test_extreme_temperatures_are_the_limits_they_go_to() -> None:
    logits = torch.tensor([[3e4, 1.0, -3e4]])
    assert Sampler(1e-300, seed=0).probabilities(logits).tolist() == [[1.0, 0.0, 0.0]]
    torch.testing.assert_close(Sampler(1e300, seed=0).probabilities(logits), torch.full((1, 3), 1 / 3))


def test_a_seed_alone_decides_what_is_drawn(small_gpt2: GPT2) -> None:
    def draw(seed: int | None) -> list[list[int]]:
        return generate_ids(small_gpt2, [[1, 2], [3, 4]], 12, temperature=1.5, seed=seed).tolist()

    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = draw(7)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert draw(7) == first
    assert len({str(draw(seed)) for seed in range(5)} | {str(draw(2**80))}) == 6
    drawn = [draw(None), draw(None)]
    torch.manual_seed(99)
    assert drawn[0] != drawn[1]
    assert [draw(None), draw(None)] == drawn


def test_top_k_of_one_and_a_tiny_p_are_greedy(small_gpt2: GPT2) -> None:
    greedy = generate_ids(small_gpt2, [5, 6], 20).tolist()
    assert generate_ids(small_gpt2, [5, 6], 20, temperature=2.0, top_k=1).tolist() == greedy
    assert generate_ids(small_gpt2, [5, 6], 20, temperature=2.0, top_p=1e-20).tolist() == greedy


# Text


def test_text_is_the_prompt_and_what_its_tokens_lead_to(small_gpt2: GPT2) -> None:
    small_gpt2.tokenizer = TOKENIZER
    for prompt in ("you won", "é€😀", "x" * 70, END):
        ids = TOKENIZER.encode_ordinary(prompt)
        added = generate_ids(small_gpt2, ids, 9, end_id=256)[0, len(ids) :].tolist()
        expected = prompt + TOKENIZER.decode([i for i in added if i != 256], errors="replace")
        assert generate(small_gpt2, prompt, 9) == expected
    assert generate(small_gpt2, "a", 0) == "a"
    assert generate(small_gpt2, "a\ud800", 2).startswith("a\ud800")


def test_an_empty_prompt_is_one_end_of_text(small_gpt2: GPT2) -> None:
    small_gpt2.tokenizer = TOKENIZER
    added = generate_ids(small_gpt2, [256], 9, end_id=256)[0, 1:].tolist()
    assert generate(small_gpt2, "", 9) == TOKENIZER.decode([i for i in added if i != 256], errors="replace")


def test_special_tokens_in_a_prompt_count_only_on_request(small_gpt2: GPT2) -> None:
    small_gpt2.tokenizer = TOKENIZER
    added = {}
    for special, ids in ((True, [256, byte("a")]), (False, TOKENIZER.encode_ordinary(END + "a"))):
        tokens = generate_ids(small_gpt2, ids, 9, end_id=256)[0, len(ids) :].tolist()
        added[special] = TOKENIZER.decode([i for i in tokens if i != 256], errors="replace")
        assert generate(small_gpt2, END + "a", 9, special_tokens=special) == END + "a" + added[special]
    assert added[True] != added[False]


def test_generation_stops_at_the_end_of_text_or_goes_on_if_told_so() -> None:
    gpt2 = constant_model({256: 5.0, byte("a"): 4.0})
    assert generate(gpt2, "x", 20) == "x"
    assert generate(gpt2, "x", 3, stop_at_end_of_text=False) == "x" + 3 * END
    assert generate(gpt2, END, 3, special_tokens=True) == END


def test_ids_that_the_tokenizer_lacks_are_never_drawn() -> None:
    gpt2 = constant_model({257: 9.0, 299: 9.0, byte("a"): 1.0, byte("b"): 1.0})
    assert generate(gpt2, "x", 20) in ("x" + 20 * "a", "x" + 20 * "b")
    drawn = generate(gpt2, "x", 200, temperature=1.0, seed=0, use_cache=False)
    assert set(drawn) == {"x", "a", "b"}
    assert set(generate_ids(gpt2, [1], 5)[0, 1:].tolist()) <= {257, 299}


# Models that are watched or changed, and what is put back


class Doubled(Block):
    """A block of somebody's own."""

    def forward(self, x: Tensor, attend: Attend = causal) -> Tensor:
        return x + 2 * (super().forward(x, attend) - x)


class LowRank(Linear):
    """A linear layer plus a product of two thin matrices, which vouches for itself."""

    standard = True
    kind = "low_rank"

    def add(self, rank: int) -> None:
        generator = torch.Generator().manual_seed(rank)
        self.down = nn.Parameter(0.3 * torch.randn(rank, self.in_features, generator=generator), requires_grad=False)
        self.up = nn.Parameter(0.3 * torch.randn(self.out_features, rank, generator=generator), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x @ self.down.t() @ self.up.t()

    def rows(self, x: Tensor, rows: slice = ALL, heads: int = 1, bias: bool = True) -> Tensor:
        raise AssertionError("generation needs no part of a product")

    def onto(self, x: Tensor, rows: slice = ALL, heads: int = 1) -> Tensor:
        raise AssertionError("generation needs no part of a product")

    def prepared(self, arithmetic: Arithmetic) -> Callable[[Tensor], Tensor]:
        return arithmetic.prepare(self.weight + self.up @ self.down, self.bias)


@pytest.mark.parametrize("part", ["", "trunk.embed", "trunk.blocks.1", "trunk.blocks.0.mlp.up", "trunk.norm", "head"])
def test_a_hook_sees_every_step_and_its_changes_count(small_gpt2: GPT2, part: str) -> None:
    ids = prompts(small_gpt2, 2, 5)
    before = generate_ids(small_gpt2, ids, 12)
    calls: list[int] = []

    def flip(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        calls.append(1)
        return -output

    handle = small_gpt2.get_submodule(part).register_forward_hook(flip)
    expected = ids
    with torch.no_grad():
        for _ in range(12):
            expected = torch.cat([expected, small_gpt2(expected)[:, -1].argmax(dim=-1, keepdim=True)], dim=1)
    calls.clear()
    assert generate_ids(small_gpt2, ids, 12).tolist() == expected.tolist()
    assert len(calls) == 12
    assert expected.tolist() != before.tolist()
    handle.remove()
    assert generate_ids(small_gpt2, ids, 12).tolist() == before.tolist()


def test_foreign_blocks_are_computed_as_they_are(small_gpt2: GPT2) -> None:
    ids = prompts(small_gpt2, 1, 5)
    before = generate_ids(small_gpt2, ids, 12).tolist()
    small_gpt2.trunk.blocks[1].__class__ = Doubled
    expected = ids
    with torch.no_grad():
        for _ in range(12):
            expected = torch.cat([expected, small_gpt2(expected)[:, -1].argmax(dim=-1, keepdim=True)], dim=1)
    assert generate_ids(small_gpt2, ids, 12).tolist() == expected.tolist() != before


def called(gpt2: GPT2, ids: Tensor, n: int) -> list[list[int]]:
    """Greedy tokens from calls of the whole model."""
    with torch.no_grad():
        for _ in range(n):
            ids = torch.cat([ids, gpt2(ids)[:, -1].argmax(dim=-1, keepdim=True)], dim=1)
    found: list[list[int]] = ids.tolist()
    return found


@pytest.mark.parametrize("rows", [1, 4], ids=["laid out", "as they are"])
def test_a_standard_layer_of_another_algebra_keeps_the_cache(small_gpt2: GPT2, steps: list[int], rows: int) -> None:
    ids = prompts(small_gpt2, rows, 4)
    dense = generate_ids(small_gpt2, ids, 36).tolist()
    for block in small_gpt2.blocks:
        for part in [part for part in block.modules() if isinstance(part, Linear)]:
            part.__class__ = LowRank
            part.add(2)  # type: ignore[operator]
    expected = called(small_gpt2, ids, 36)
    steps.clear()
    assert generate_ids(small_gpt2, ids, 36).tolist() == expected != dense
    assert steps == [4] + 35 * [1]


@pytest.mark.parametrize("tied", [True, False])
def test_laying_matrices_out_leaves_the_model_alone(odd_config: GPT2Config, tied: bool) -> None:
    gpt2 = randomised(GPT2(odd_config.replace(tied=tied), seed=7))
    before = {name: (id(p), p.data_ptr(), p.stride(), p.clone()) for name, p in gpt2.named_parameters()}
    ids = prompts(gpt2, 1, 4)
    assert generate_ids(gpt2, ids, 36).tolist() == called(gpt2, ids, 36)
    for name, parameter in gpt2.named_parameters():
        number, pointer, stride, value = before[name]
        assert (id(parameter), parameter.data_ptr(), parameter.stride()) == (number, pointer, stride)
        assert parameter.requires_grad
        assert torch.equal(parameter, value)


def test_dropout_gradients_and_autocast_stay_out_and_modes_are_put_back(odd_config: GPT2Config) -> None:
    gpt2 = GPT2(odd_config.replace(drop_rate=0.5, init_std=0.3), seed=0)
    ids = [4, 5, 6]
    expected = generate_ids(gpt2, ids, 30)
    gpt2.train()
    gpt2.trunk.blocks[0].eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(generate_ids(gpt2, ids, 30), expected)
        assert torch.equal(generate_ids(gpt2, ids, 30, use_cache=False), expected)
    assert gpt2.training
    assert not gpt2.trunk.blocks[0].training
    assert gpt2.trunk.blocks[1].training
    assert not expected.is_inference()
    assert all(parameter.grad is None for parameter in gpt2.parameters())


def test_the_given_ids_are_not_changed_and_no_row_is_no_row(small_gpt2: GPT2) -> None:
    ids = torch.tensor([[1, 2]])
    generate_ids(small_gpt2, ids, 3)
    assert ids.tolist() == [[1, 2]]
    assert generate_ids(small_gpt2, ids, 0).tolist() == [[1, 2]]
    assert generate_ids(small_gpt2, torch.zeros(0, 3, dtype=torch.int64), 4).shape == (0, 3)


# Errors


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"temperature": -0.1}, ValueError),
        ({"temperature": math.nan}, ValueError),
        ({"temperature": math.inf}, ValueError),
        ({"temperature": "1"}, TypeError),
        ({"temperature": True}, TypeError),
        ({"temperature": None}, TypeError),
        ({"top_k": 0}, ValueError),
        ({"top_k": 2.0}, TypeError),
        ({"top_k": True}, TypeError),
        ({"top_p": 0.0}, ValueError),
        ({"top_p": 1.5}, ValueError),
        ({"top_p": math.nan}, ValueError),
        ({"top_p": "0.9"}, TypeError),
        ({"seed": -1}, ValueError),
        ({"seed": 1.5}, TypeError),
        ({"max_new_tokens": -1}, ValueError),
        ({"max_new_tokens": 2.5}, TypeError),
        ({"max_new_tokens": None}, TypeError),
    ],
)
def test_wrong_settings_are_named(small_gpt2: GPT2, settings: dict[str, Any], error: type[Exception]) -> None:
    small_gpt2.tokenizer = TOKENIZER
    (name,) = settings
    with pytest.raises(error, match=rf"^{name} is "):
        generate(small_gpt2, "a", **settings)


def test_wrong_ids_are_named(small_gpt2: GPT2) -> None:
    with pytest.raises(ValueError, match="ids run from 3 to 257"):
        generate_ids(small_gpt2, [3, 257], 2)
    with pytest.raises(ValueError, match="ids run from -1"):
        generate_ids(small_gpt2, [-1], 2)
    with pytest.raises(ValueError, match="no tokens"):
        generate_ids(small_gpt2, [], 2)
    with pytest.raises(ValueError, match="end_id is 257"):
        generate_ids(small_gpt2, [1], 2, end_id=257)


def test_what_is_no_language_model_or_no_prompt_is_named(small_gpt2: GPT2) -> None:
    clf = add_classifier_head(small_gpt2, classes=["a", "b"], seed=0)
    with pytest.raises(TypeError, match="classifier"):
        generate(clf, "a")
    with pytest.raises(TypeError, match="gptclf GPT2"):
        generate("gpt2", "a")  # type: ignore[arg-type]
    for prompt in (None, 5, ["a"], b"a"):
        with pytest.raises(TypeError, match="prompt is a"):
            generate(small_gpt2, prompt)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no tokenizer"):
        generate(small_gpt2, "a")


def test_weights_that_are_not_finite_are_named(small_gpt2: GPT2) -> None:
    nn.init.constant_(small_gpt2.trunk.blocks[1].mlp.up.weight, math.nan)  # type: ignore[union-attr, arg-type]
    for temperature in (0.0, 1.0):
        with pytest.raises(FloatingPointError, match=r"blocks\.1\.mlp\.up\.weight"):
            generate_ids(small_gpt2, [1, 2], 3, temperature=temperature)
