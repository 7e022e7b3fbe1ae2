"""`nano`: what ships in the package is whole, small, in Hugging Face's formats, and has learned English."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import GPT2LMHeadModel, GPT2Tokenizer

import gptclf
from gptclf import generate, load_gpt2, perplexity, token_log_probs
from gptclf.gpt2.config import PRESETS

FOLDER = Path(gptclf.__file__).parent / "nano"
SENTENCES = [
    "I went to the shop this morning because we had no bread left.",
    "The film was far too long, and the ending made no sense at all.",
    "Can you tell me what time the train leaves tomorrow?",
    "He opened the door, looked around the room and began to laugh.",
]


def test_it_takes_at_most_six_megabytes_and_its_card_is_beside_it() -> None:
    files = {path.name: path.stat().st_size for path in FOLDER.iterdir()}
    assert set(files) == {"README.md", "config.json", "model.safetensors", "vocab.json", "merges.txt"}
    assert sum(files.values()) <= 6_000_000
    card = (FOLDER / "README.md").read_text()
    for said in ("CC BY-SA 3.0", "CC BY 4.0", "CDLA-Sharing-1.0", "perplexity", "not for"):
        assert said in card


def test_it_is_the_preset_in_float16() -> None:
    assert load_gpt2("nano").config == PRESETS["nano"]
    with safe_open(FOLDER / "model.safetensors", framework="pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118


def test_transformers_reads_the_same_model_and_tokens() -> None:
    theirs = GPT2LMHeadModel.from_pretrained(FOLDER, dtype=torch.float32).eval()
    tokenizer = GPT2Tokenizer.from_pretrained(FOLDER)
    ours = load_gpt2("nano")
    for text in [*SENTENCES, "naïve café №5 😀", " \n\n  x", "don't we'll 123456"]:
        ids = ours.tokenizer.encode_ordinary(text)
        assert tokenizer.encode(text) == ids
        rows = torch.tensor([ids])
        torch.testing.assert_close(ours(rows), theirs(rows).logits, rtol=1e-5, atol=1e-4)


def test_its_vocabulary_is_its_own_and_whole() -> None:
    tokenizer = load_gpt2("nano").tokenizer
    table = json.loads((FOLDER / "vocab.json").read_text())
    assert tokenizer.n_vocab == len(table) == 4096
    assert tokenizer.eot_token == 4095
    # Made from the texts it learned from: common words are one token.
    assert all(len(tokenizer.encode_ordinary(word)) == 1 for word in (" the", " because", " people", " money"))


def test_it_knows_english() -> None:
    nano, blank = load_gpt2("nano"), load_gpt2("nano", weights="random", seed=0)
    blank.tokenizer = nano.tokenizer
    assert perplexity(nano, SENTENCES) < 200 < 2000 < perplexity(blank, SENTENCES)
    shuffled = [" ".join(sorted(sentence.split())) for sentence in SENTENCES]
    assert perplexity(nano, shuffled) > 3 * perplexity(nano, SENTENCES)


def test_every_position_was_trained() -> None:
    # A position that no window reached would be noise and make what stands there improbable.
    nano = load_gpt2("nano")
    text = " ".join(SENTENCES * 12)
    log_probs = token_log_probs(nano, text)[: nano.config.context_length]
    early, late = -log_probs[:60].mean(), -log_probs[-60:].mean()
    assert late < early + 0.2
    assert math.exp(late) < 200


def test_it_writes_words() -> None:
    text = generate(load_gpt2("nano"), "The weather", 30, temperature=0.7, top_k=20, seed=1)
    assert text.startswith("The weather")
    assert len(text.split()) > 12


def test_it_is_there_in_a_blink_and_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("nano must not ask a network")

    monkeypatch.setattr("socket.socket.connect", refuse)
    model = load_gpt2("nano")
    assert model.tokenizer.decode(model.tokenizer.encode_ordinary("hello there")) == "hello there"
