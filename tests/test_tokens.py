"""Text to token ids and back."""

import numpy as np
import pytest
import tiktoken
import torch
from conftest import byte_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from gptclf import TextDataset, text_to_token_ids, token_ids_to_text
from gptclf.tokenizer import tokens
from gptclf.tokenizer.bpe import make_encoding
from gptclf.tokenizer.tokens import check_same_tokenizer

BYTES = byte_tokenizer()
END = "<|endoftext|>"


def merging_tokenizer() -> tiktoken.Encoding:
    ranks = {BYTES.decode_single_token_bytes(i): i for i in range(256)}
    for token in (b"th", b"the", b" t", b" the", b"  ", b"end", b"an"):
        ranks[token] = len(ranks)
    return make_encoding(ranks)


@pytest.mark.parametrize("tokenizer", [BYTES, merging_tokenizer()], ids=["bytes", "merges"])
def test_ids_are_the_tokenizers_as_one_row(tokenizer: tiktoken.Encoding) -> None:
    text = "the end of then and  the end"
    ids = text_to_token_ids(text, tokenizer)
    assert ids.dtype == torch.int64
    assert ids.tolist() == [tokenizer.encode_ordinary(text)]


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60), st.booleans())
def test_every_text_comes_back(text: str, special: bool) -> None:
    for tokenizer in (BYTES, merging_tokenizer()):
        assert token_ids_to_text(text_to_token_ids(text, tokenizer, special_tokens=special), tokenizer) == text


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from([END, "the", " ", "<|", "é", "endoftext|>", "\n"]), max_size=12))
def test_special_tokens_on_request_are_those_of_tiktoken(parts: list[str]) -> None:
    tokenizer, text = merging_tokenizer(), "".join(parts)
    expected = tokenizer.encode(text, allowed_special="all")
    assert text_to_token_ids(text, tokenizer, special_tokens=True)[0].tolist() == expected


def test_the_end_of_text_is_ordinary_characters_unless_asked_for() -> None:
    assert text_to_token_ids(END, BYTES).shape == (1, len(END))
    assert text_to_token_ids(END, BYTES, special_tokens=True).tolist() == [[256]]


def test_a_special_token_is_never_cut_by_the_pieces_of_a_long_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "PIECE", 20)
    for filler in range(8, 22):
        text = "x" * filler + END + "y" * 50
        ids = text_to_token_ids(text, BYTES, special_tokens=True)[0].tolist()
        assert ids == [BYTES.encode_ordinary("x")[0]] * filler + [256] + BYTES.encode_ordinary("y" * 50)


def test_text_is_prepared_as_data_sets_prepare_it(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["a\ud800b", "a" * 300_000, " " * 600_000, "x\0y"]
    data = TextDataset(texts, tokenizer=merging_tokenizer())
    for row, text in zip(data.rows(), texts, strict=True):
        assert text_to_token_ids(text, merging_tokenizer())[0].tolist() == row.tolist()
    monkeypatch.setattr(tokens, "PIECE", 4)
    (row,) = TextDataset(["thethethethe"], tokenizer=merging_tokenizer()).rows()
    assert text_to_token_ids("thethethethe", merging_tokenizer())[0].tolist() == row.tolist()
    assert token_ids_to_text(text_to_token_ids("a\ud800b", BYTES), BYTES) == "a�b"


def test_empty_text_has_no_tokens() -> None:
    assert text_to_token_ids("", BYTES).shape == (1, 0)
    assert text_to_token_ids("", BYTES).dtype == torch.int64
    assert token_ids_to_text([], BYTES) == token_ids_to_text([[]], BYTES) == ""


def test_ids_may_be_tensors_arrays_and_lists_with_or_without_a_batch() -> None:
    ids = BYTES.encode_ordinary("hi")
    for given_ids in (ids, [ids], tuple(ids), np.array(ids), np.array([ids], dtype=np.int32), torch.tensor([ids])):
        assert token_ids_to_text(given_ids, BYTES) == "hi"


def test_a_character_cut_in_two_is_replaced() -> None:
    assert token_ids_to_text(BYTES.encode_ordinary("aé")[:-1], BYTES) == "a�"


@pytest.mark.parametrize("wrong", [[1, 257], [-1], [2**40], [[5, 100_000]]])
def test_ids_that_the_tokenizer_lacks_are_named(wrong: list[int]) -> None:
    with pytest.raises(ValueError, match=r"no token -?\d+; its ids run from 0 to 256"):
        token_ids_to_text(wrong, BYTES)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ([[1], [2]], ValueError),
        ([[1, 2], [3]], ValueError),
        (torch.zeros(1, 1, 1, dtype=torch.int64), ValueError),
        ([0.5], TypeError),
        (torch.tensor([True]), TypeError),
        ("12", TypeError),
        (5, TypeError),
        (None, TypeError),
        ([2**70], ValueError),
    ],
)
def test_anything_but_a_row_of_ids_is_refused(wrong: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="ids"):
        token_ids_to_text(wrong, BYTES)  # type: ignore[arg-type]


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(TypeError, match="text is a list"):
        text_to_token_ids(["a"], BYTES)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"tiktoken\.Encoding"):
        text_to_token_ids("a", "gpt2")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"tiktoken\.Encoding"):
        token_ids_to_text([1], None)  # type: ignore[arg-type]


def test_tokenizers_that_encode_alike_are_the_same() -> None:
    check_same_tokenizer(BYTES, BYTES)
    check_same_tokenizer(merging_tokenizer(), merging_tokenizer())


def test_a_tokenizer_with_other_ids_is_told_apart() -> None:
    with pytest.raises(ValueError, match=r"another tokenizer \(264 tokens\) than the model's \(257\)"):
        check_same_tokenizer(BYTES, merging_tokenizer())
    ranks = {BYTES.decode_single_token_bytes(i): i for i in range(256)}
    ranks[b"a"], ranks[b"b"] = ranks[b"b"], ranks[b"a"]
    with pytest.raises(ValueError, match=r"tokenizer=model\.tokenizer"):
        check_same_tokenizer(BYTES, make_encoding(ranks))
