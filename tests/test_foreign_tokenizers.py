"""Tokenizers that `transformers` wrote: encoded as it encodes them, written again alike, or refused by name."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import ByteLevelBPETokenizer
from transformers import AddedToken, AutoTokenizer, GPT2Tokenizer

from gptclf.tokenizer.bpe import END_OF_TEXT
from gptclf.tokenizer.read import read_tokenizer
from gptclf.tokenizer.tokens import encode
from gptclf.tokenizer.write import tokenizer_files

SIZE = 319
PIECES = [
    END_OF_TEXT,
    "<USER>",
    "<US",
    "[PAD]",
    "end",
    "the ",
    "nd",
    " ",
    "  ",
    "\n",
    "the",
    "don't",
    "é",
    "\u00a0",
    "<|",
]
texts = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=8).map("".join)


def quoted(change: Callable[[Any], object], **options: Any) -> tuple[Callable[[Any], object], dict[str, Any]]:
    return change, options


# How a tokenizer is changed before it is saved, and the options that it is made with.
CHANGES: dict[str, tuple[Callable[[Any], object], dict[str, Any]]] = {
    "plain": quoted(lambda _: None),
    "an added token": quoted(lambda tok: tok.add_tokens(["<USER>"])),
    "a special token": quoted(lambda tok: tok.add_special_tokens({"pad_token": "[PAD]"})),
    "several": quoted(
        lambda tok: (tok.add_tokens(["<USER>", "the ", "end"]), tok.add_special_tokens({"sep_token": "nd"}))
    ),
    "extra special tokens": quoted(lambda tok: tok.add_special_tokens({"extra_special_tokens": ["<USER>", "<US"]})),
    "one of the vocabulary": quoted(lambda tok: tok.add_tokens(["the", "e"])),
    "one not normalized": quoted(lambda tok: tok.add_tokens([AddedToken("nd", normalized=False), "end"])),
    "special tokens split": quoted(
        lambda tok: (tok.add_tokens(["<USER>", "end"]), tok.add_special_tokens({"pad_token": "[PAD]"})),
        split_special_tokens=True,
    ),
    "a prefix space": quoted(lambda _: None, add_prefix_space=True),
    "a prefix space and added tokens": quoted(lambda tok: tok.add_tokens(["<USER>", " "]), add_prefix_space=True),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """vocab.json and merges.txt of a small BPE, with the end of text last."""
    folder = tmp_path_factory.mktemp("trained")
    rng = random.Random(3)
    words = ["the", "they're", "don't", "happier", "1984", "naïve", "end", "", "tail", "\n\n", "you'll", "<USER>"]
    bpe = ByteLevelBPETokenizer()
    lines = [" ".join(rng.choices(words, k=20)) for _ in range(50)]
    bpe.train_from_iterator(lines, vocab_size=400, min_frequency=2, special_tokens=[], show_progress=False)
    bpe.save_model(str(folder))
    table = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    (folder / "vocab.json").write_text(json.dumps({**table, END_OF_TEXT: len(table)}), encoding="utf-8")
    return folder


@pytest.fixture
def their(trained: Path, tmp_path: Path) -> Callable[..., Path]:
    """Saves a tokenizer of transformers, changed."""

    def save(change: Callable[[Any], object] = lambda _: None, **options: Any) -> Path:
        tokenizer = GPT2Tokenizer.from_pretrained(trained, **options)
        change(tokenizer)
        tokenizer.save_pretrained(tmp_path / "theirs")
        return tmp_path / "theirs"

    return save


def edited(folder: Path, name: str, **changes: Any) -> None:
    values = json.loads((folder / name).read_text(encoding="utf-8")) if (folder / name).is_file() else {}
    (folder / name).write_text(json.dumps({**values, **changes}), encoding="utf-8")


def same_as_transformers(folder: Path, tmp_path: Path, examples: int = 60) -> Any:
    """The tokenizer of a folder, after comparing it, and what is written of it, with AutoTokenizer's."""
    theirs, ours = AutoTokenizer.from_pretrained(folder), read_tokenizer(folder, end_of_text=True)
    assert ours is not None
    written = tmp_path / "written"
    written.mkdir()
    for name, text in tokenizer_files(ours, 40).items():
        (written / name).write_text(text, encoding="utf-8")
    again, ours_again = AutoTokenizer.from_pretrained(written), read_tokenizer(written, ours=True, end_of_text=True)

    @settings(max_examples=examples, deadline=None)
    @given(texts)
    def check(text: str) -> None:
        expected = theirs(text)["input_ids"]
        assert encode(text, ours) == expected
        assert again(text)["input_ids"] == expected
        assert ours_again is not None
        assert encode(text, ours_again) == expected

    check()
    return ours


class TestFollowed:
    @pytest.mark.parametrize("name", CHANGES)
    def test_ids_are_those_of_transformers_and_are_written_alike(
        self, their: Callable[..., Path], name: str, tmp_path: Path
    ) -> None:
        change, options = CHANGES[name]
        same_as_transformers(their(change, **options), tmp_path)
