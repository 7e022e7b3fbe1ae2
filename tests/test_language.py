"""Log-probabilities and perplexity against transformers' logits and loss on the same random weights."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from conftest import byte_tokenizer, randomised
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GPT2Config as TheirConfig
from transformers import GPT2LMHeadModel

from gptclf import GPT2, GPT2Config, add_classifier_head, load_gpt2, perplexity, token_log_probs
from gptclf.gpt2.heads import LMHead
from gptclf.language import scoring as language
from gptclf.language.scoring import windows_of

TOKENIZER = byte_tokenizer()
CONTEXT = 24
SHORT, LONG = "you won a prize", "é€😀 see you at six, and call me later then, will you? " * 3
CORPUS = [SHORT, "ok", "", LONG, "x", "a" * 100, "see you", "ok"]


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[GPT2, Any]:
    """Our model and theirs with the same weights, which came through a folder."""
    config = TheirConfig(
        vocab_size=257,
        n_positions=CONTEXT,
        n_embd=20,
        n_head=4,
        n_layer=2,
        n_inner=33,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=256,
        eos_token_id=256,
        tie_word_embeddings=request.param,
    )
    torch.manual_seed(3)
    theirs = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    folder = tmp_path_factory.mktemp("model")
    theirs.save_pretrained(folder)
    gpt2 = load_gpt2(folder)
    gpt2.tokenizer = TOKENIZER
    return gpt2, theirs


@pytest.fixture
def gpt2() -> GPT2:
    config = GPT2Config(vocab_size=257, context_length=CONTEXT, emb_dim=24, n_heads=3, n_layers=3, mlp_dim=56)
    model = randomised(GPT2(config, seed=7)).requires_grad_(False)
    model.tokenizer = TOKENIZER
    return model


def their_log_probs(theirs: Any, ids: list[int]) -> Tensor:
    """Log-probabilities (T - 1,) of all but the first of T tokens that fit into the context."""
    with torch.no_grad():
        logits = theirs(torch.tensor([ids])).logits[0, :-1].double()
    log_probs: Tensor = logits.log_softmax(dim=-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    return log_probs


def started(text: str) -> list[int]:
    return [256, *TOKENIZER.encode_ordinary(text)]


# One text


@pytest.mark.parametrize("text", [SHORT, "x", "é€😀", LONG[:12]])
def test_log_probs_are_those_of_transformers(pair: tuple[GPT2, Any], text: str) -> None:
    gpt2, theirs = pair
    ids = started(text)
    for given_text in (text, ids[1:], torch.tensor(ids[1:]), np.array(ids[1:], dtype=np.int32)):
        ours = token_log_probs(gpt2, given_text)
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, their_log_probs(theirs, ids), rtol=0, atol=1e-5)
    without = token_log_probs(gpt2, text, start=False)
    expected = their_log_probs(theirs, ids[1:]) if len(ids) > 2 else np.zeros(0)
    np.testing.assert_allclose(without, expected, rtol=0, atol=1e-5)


def test_mean_is_the_loss_of_transformers_and_of_the_book(pair: tuple[GPT2, Any]) -> None:
    gpt2, theirs = pair
    inputs = torch.tensor([[168, 36, 61], [40, 110, 58]])
    targets = torch.tensor([[36, 61, 34], [110, 58, 113]])
    ids = torch.cat([inputs, targets[:, -1:]], dim=1)
    log_probs = token_log_probs(gpt2, ids, start=False)
    assert log_probs.shape == (2, 3)
    with torch.no_grad():
        loss = theirs(ids, labels=ids).loss.item()
        books = F.cross_entropy(gpt2(inputs).flatten(0, 1), targets.flatten()).item()
    assert -log_probs.mean() == pytest.approx(loss, abs=1e-5)
    assert -log_probs.mean() == pytest.approx(books, abs=1e-5)
    assert token_log_probs(gpt2, ids).shape == (2, 4)
    assert token_log_probs(gpt2, ids[:1]).shape == (1, 4)
    assert token_log_probs(gpt2, ids[0]).shape == (4,)


# Longer than the context


@pytest.mark.parametrize("stride", [1, 7, CONTEXT // 2, CONTEXT - 1])
def test_tokens_of_long_texts_are_given_those_before_them_in_their_window(pair: tuple[GPT2, Any], stride: int) -> None:
    gpt2, theirs = pair
    ids = started(LONG)
    ours = token_log_probs(gpt2, LONG, stride=stride)
    assert ours.shape == (len(ids) - 1,)
    for t in range(1, len(ids)):
        # The first window that begins at a multiple of the stride and has token t within reach.
        begin = 0 if t <= CONTEXT else math.ceil((t - CONTEXT) / stride) * stride
        with torch.no_grad():
            logits = theirs(torch.tensor([ids[begin:t]])).logits[0, -1].double()
        assert ours[t - 1] == pytest.approx(logits.log_softmax(dim=-1)[ids[t]].item(), abs=1e-5)


def test_default_stride_is_half_the_context(gpt2: GPT2) -> None:
    halves = token_log_probs(gpt2, LONG, stride=CONTEXT // 2)
    assert np.array_equal(token_log_probs(gpt2, LONG), halves)
    assert not np.allclose(token_log_probs(gpt2, LONG, stride=1), halves, atol=1e-4)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 80), st.integers(1, 20).flatmap(lambda c: st.tuples(st.just(c), st.integers(1, c))))
def test_windows_score_every_token_once_with_enough_before_it(n: int, shape: tuple[int, int]) -> None:
    context, stride = shape
    scored = []
    for window in windows_of(np.arange(n), context, stride):
        assert 2 <= len(window.ids) <= context + 1
        assert (np.diff(window.ids) == 1).all()
        for token in window.ids[-window.scored :].tolist():
            scored.append(token)
            assert token - window.ids[0] >= min(token, context - stride + 1)
    assert scored == list(range(1, n))


# A corpus


@pytest.mark.parametrize("start", [True, False])
def test_perplexity_of_a_corpus_divides_the_sum_once(pair: tuple[GPT2, Any], start: bool) -> None:
    gpt2, theirs = pair
    loss, count = 0.0, 0
    for text in CORPUS:
        log_probs = token_log_probs(gpt2, text, start=start)
        loss, count = loss - float(log_probs.sum(dtype=np.float64)), count + len(log_probs)
    assert perplexity(gpt2, CORPUS, start=start) == pytest.approx(math.exp(loss / count), rel=1e-5)
    assert perplexity(gpt2, (text for text in CORPUS[::-1]), start=start) == pytest.approx(math.exp(loss / count))
    short = started(SHORT)
    expected = math.exp(-float(their_log_probs(theirs, short if start else short[1:]).mean()))
    assert perplexity(gpt2, SHORT, start=start) == pytest.approx(expected, rel=1e-5)


def test_a_stream_is_read_as_it_is_computed(gpt2: GPT2, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = perplexity(gpt2, CORPUS * 3)
    monkeypatch.setattr(language, "CHUNK_TOKENS", 60)
    events: list[str] = []
    compute = language.window_log_probs

    def texts() -> Iterator[str]:
        for text in CORPUS * 3:
            events.append("read")
            yield text

    def watched(*args: Any) -> Any:
        events.append("compute")
        return compute(*args)

    monkeypatch.setattr(language, "window_log_probs", watched)
    assert perplexity(gpt2, texts()) == pytest.approx(whole, rel=1e-6)
    assert "read" in events[events.index("compute") :]


def test_logits_are_computed_in_pieces(gpt2: GPT2, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    project = LMHead.project

    def watched(self: LMHead, hidden: Tensor) -> Tensor:
        sizes.append(len(hidden))
        return project(self, hidden)

    monkeypatch.setattr(LMHead, "project", watched)
    perplexity(gpt2, ["abc" * 7] * 50)
    assert sum(sizes) == 21 * 50
    assert max(sizes) <= 256


def test_texts_that_hold_no_token_count_for_nothing(gpt2: GPT2) -> None:
    assert token_log_probs(gpt2, "").shape == token_log_probs(gpt2, [], start=False).shape == (0,)
    assert token_log_probs(gpt2, torch.zeros(0, 3, dtype=torch.int64)).shape == (0, 3)
    assert token_log_probs(gpt2, torch.zeros(2, 0, dtype=torch.int64), start=False).shape == (2, 0)
    assert perplexity(gpt2, ["", SHORT, ""]) == pytest.approx(perplexity(gpt2, SHORT), rel=1e-6)
    for nothing in ("", [], [""], iter(())):
        with pytest.raises(ValueError, match=r"no token to score$"):
            perplexity(gpt2, nothing)
    with pytest.raises(ValueError, match="start=False"):
        perplexity(gpt2, "x", start=False)


def test_an_improbable_text_has_infinite_perplexity(gpt2: GPT2) -> None:
    gpt2.trunk.norm.weight.mul_(1e6)
    assert perplexity(gpt2, SHORT) == math.inf


# Models that are watched, arithmetic


@pytest.mark.parametrize("part", ["", "trunk.embed", "trunk.blocks.1", "trunk.blocks.0.mlp.up", "trunk.norm", "head"])
def test_hooks_see_the_model_called_and_their_changes_count(gpt2: GPT2, part: str) -> None:
    before = token_log_probs(gpt2, LONG)
    shapes: list[int] = []

    def flip(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        shapes.append(output.dim())
        return -output

    gpt2.get_submodule(part).register_forward_hook(flip)
    ids = torch.tensor([started(SHORT)])
    with torch.no_grad():
        expected = gpt2(ids[:, :-1])[0].log_softmax(dim=-1).gather(1, ids[0, 1:, None])[:, 0]
    shapes.clear()
    np.testing.assert_allclose(token_log_probs(gpt2, SHORT), expected, rtol=0, atol=1e-5)
    assert shapes == [3]
    after = token_log_probs(gpt2, LONG)
    assert after.shape == before.shape
    assert np.abs(after - before).max() > 0.1


def test_bfloat16_rounds_what_the_blocks_take_and_not_the_logits(gpt2: GPT2) -> None:
    exact, rounded = token_log_probs(gpt2, LONG), token_log_probs(gpt2, LONG, precision="bfloat16")
    assert 1e-5 < np.abs(exact - rounded).max() < 0.2
    gpt2.trunk.blocks = nn.ModuleList()
    assert np.array_equal(token_log_probs(gpt2, LONG), token_log_probs(gpt2, LONG, precision="bfloat16"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert np.array_equal(token_log_probs(gpt2, SHORT), token_log_probs(gpt2, SHORT))


def test_surrounding_autocast_and_mode_do_not_matter(gpt2: GPT2) -> None:
    expected = token_log_probs(gpt2, LONG)
    gpt2.train()
    gpt2.trunk.embed.dropout.p = 0.5
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert np.array_equal(token_log_probs(gpt2, LONG), expected)
    assert gpt2.training


# Errors


def test_wrong_arguments_are_named(gpt2: GPT2) -> None:
    clf = add_classifier_head(gpt2, classes=["a", "b"], seed=0)
    for function in (token_log_probs, perplexity):
        with pytest.raises(TypeError, match="classifier"):
            function(clf, SHORT)
        with pytest.raises(TypeError, match="gptclf GPT2"):
            function(None, SHORT)  # type: ignore[arg-type]
        for stride, error in ((0, ValueError), (CONTEXT + 1, ValueError), (1.5, TypeError), ("1", TypeError)):
            with pytest.raises(error, match="stride is"):
                function(gpt2, SHORT, stride=stride)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="precision is"):
            function(gpt2, SHORT, precision="float16")
    with pytest.raises(TypeError, match="text 1 is None"):
        perplexity(gpt2, ["a", None])  # type: ignore[list-item]
    for wrong in (b"a", {"text": ["a"]}, {"a"}, 5, None):
        with pytest.raises(TypeError, match="texts is a"):
            perplexity(gpt2, wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="ids run from 1 to 257"):
        token_log_probs(gpt2, [1, 257])
    with pytest.raises(TypeError, match="ids holds"):
        token_log_probs(gpt2, [0.5])  # type: ignore[arg-type]
    nn.init.constant_(gpt2.trunk.norm.bias, math.nan)
    with pytest.raises(FloatingPointError, match=r"trunk\.norm\.bias"):
        perplexity(gpt2, SHORT)
