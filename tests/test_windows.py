"""`TextWindows`: what a window is, against plain loops over the token ids, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import byte_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from gptclf import Batches, TextWindows
from gptclf.preparation import Preparation
from gptclf.tasks import NextToken, SingleLabel

BYTES = byte_tokenizer()
END = BYTES.eot_token


def ids_of(text: str) -> list[int]:
    return list(BYTES.encode_ordinary(text))


@given(text=st.text(min_size=20, max_size=80), length=st.integers(1, 12), stride=st.integers(1, 15))
def test_windows_are_those_of_a_plain_loop(text: str, length: int, stride: int) -> None:
    text = text.encode("utf-8", "replace").decode()
    ids = ids_of(text)
    windows = TextWindows(text, tokenizer=BYTES, length=length, stride=stride)
    # The rule of the book's GPTDatasetV1 (section 2.6).
    starts = range(0, len(ids) - length, stride)
    assert len(windows) == len(starts)
    inputs = windows.padded(np.arange(len(windows)))
    assert inputs.tolist() == [ids[i : i + length] for i in starts]
    assert windows.targets().tolist() == [ids[i + 1 : i + length + 1] for i in starts]
    assert [row.tolist() for row in windows.rows()] == inputs.tolist()
    assert windows.packed([0, len(windows) - 1]).tolist() == inputs[[0, -1]].flatten().tolist()
    assert windows.lengths.tolist() == [length] * len(starts)


def test_without_a_stride_every_token_but_the_first_is_a_target_once() -> None:
    windows = TextWindows("abcdefghijklm", tokenizer=BYTES, length=4)
    assert windows.targets().flatten().tolist() == ids_of("bcdefghijklm")


def test_documents_are_packed_with_one_end_of_text_between() -> None:
    windows = TextWindows(["ab", "", "cd"], tokenizer=BYTES, length=5)
    assert windows.ids.tolist() == [*ids_of("ab"), END, END, *ids_of("cd")]
    assert TextWindows(iter(["ab", "cd"]), tokenizer=BYTES, length=2).ids.tolist() == [
        *ids_of("ab"),
        END,
        *ids_of("cd"),
    ]


def test_an_end_of_text_that_somebody_wrote_is_text() -> None:
    assert END not in TextWindows("a<|endoftext|>b", tokenizer=BYTES, length=4).ids


@pytest.mark.parametrize("chosen", [[2, 0], [1], [0, 1, 3], [3, 2, 1, 0], [True, False, True, False]])
def test_a_part_has_the_windows_and_targets_of_its_rows(chosen: list[Any]) -> None:
    windows = TextWindows("abcdefghijklmnopq", tokenizer=BYTES, length=4)
    rows = np.flatnonzero(chosen).tolist() if isinstance(chosen[0], bool) else chosen
    part = windows.subset(np.array(chosen))
    assert torch.equal(part.padded(range(len(part))), windows.padded(rows))
    np.testing.assert_array_equal(part.targets(), windows.targets()[rows])


def test_batches_carry_every_next_token_as_a_target() -> None:
    windows = TextWindows("abcdefghijklmnopq", tokenizer=BYTES, length=3)
    seen = []
    for batch in Batches(windows, 2, seed=1):
        assert batch.targets is not None
        assert batch.task == NextToken(BYTES.n_vocab)
        assert batch.weights is None
        assert batch.targets.dtype == torch.int64
        assert batch.inputs.numel() == batch.targets.numel()
        assert torch.equal(batch.inputs[:, 1:], batch.targets[:, :-1])
        seen += batch.inputs[:, 0].tolist()
    assert sorted(seen) == sorted(ids_of("adgjm"))


def test_targets_of_a_large_corpus_are_a_view_not_a_copy() -> None:
    windows = TextWindows("ab" * 5000, tokenizer=BYTES, length=100, stride=1)
    assert np.shares_memory(windows.targets(), windows.ids)


def test_windows_are_rows_of_a_language_model() -> None:
    windows = TextWindows("abcdefghijk", tokenizer=BYTES, length=4)
    assert (windows.labelled, windows.weights, windows.preparation) == (True, None, Preparation())
    # A model's vocabulary may be larger than its tokenizer's.
    np.testing.assert_array_equal(windows.targets(NextToken(300)), windows.targets())
    with pytest.raises(TypeError, match="this is a classifier"):
        Batches(windows, task=SingleLabel(["a", "b"]))


def test_row_numbers_mean_what_numpy_means_by_them() -> None:
    windows = TextWindows("abcdefghijk", tokenizer=BYTES, length=3)
    assert len(windows) == 3
    for chosen in (np.array([-1, 0, -3]), np.array([2, 0, 0])):
        part = windows.subset(chosen)
        expected = windows.padded([2, 0, 0])
        assert torch.equal(part.padded(range(3)), expected)
        assert torch.equal(windows.padded(chosen), expected)
        assert torch.equal(windows.packed(chosen), expected.flatten())
        assert torch.equal(Batches(windows).take(chosen).inputs, expected)
    for use in (windows.subset, windows.padded, windows.packed, Batches(windows).take):
        with pytest.raises(IndexError, match="there is no row 3; the data set has 3 rows"):
            use(np.array([0, 3]))


class TestFiles:
    def test_a_file_is_one_text_or_documents_between_separators(self, tmp_path: Path) -> None:
        path = tmp_path / "book.txt"
        path.write_bytes("\ufeffone two\n\n\nthree".encode())
        whole = TextWindows.from_file(path, tokenizer=BYTES, length=4)
        assert whole.ids.tolist() == ids_of("one two\n\n\nthree")
        parts = TextWindows.from_file(path, tokenizer=BYTES, length=4, separator="\n\n\n")
        assert parts.ids.tolist() == [*ids_of("one two"), END, *ids_of("three")]

    def test_a_file_that_is_no_text_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / "book.txt"
        path.write_bytes(b"\xff\xfe\x00a")
        with pytest.raises(ValueError, match=r"book\.txt is not utf-8-sig text"):
            TextWindows.from_file(path, tokenizer=BYTES, length=4)
        path.write_text("a b c d e")
        with pytest.raises(ValueError, match="separator is ''"):
            TextWindows.from_file(path, tokenizer=BYTES, length=4, separator="")
        with pytest.raises(FileNotFoundError, match="nowhere"):
            TextWindows.from_file(tmp_path / "nowhere", tokenizer=BYTES)


@pytest.mark.parametrize(
    ("texts", "options", "error", "message"),
    [
        ("abc", {"length": 3}, ValueError, "the text has 3 tokens; a window of length=3 needs at least 4"),
        ("", {"length": 1}, ValueError, "the text has 0 tokens"),
        ([], {"length": 1}, ValueError, "the text has 0 tokens"),
        ("abc", {"length": 0}, ValueError, "length is 0; it must be an integer of at least 1"),
        ("abc", {"length": 2.0}, TypeError, "length is 2.0"),
        ("abc", {"length": True}, TypeError, "length is True"),
        ("abc", {"length": 2, "stride": 0}, ValueError, "stride is 0"),
        (["abc", None], {"length": 2}, TypeError, "text 1 is None"),
        (b"abc", {"length": 2}, TypeError, "texts is a single bytes"),
        (5, {"length": 2}, TypeError, "texts is a int"),
        ("abc", {"length": 2, "tokenizer": "gpt2"}, TypeError, "tokenizer is a str"),
    ],
)
def test_what_cannot_be_cut_is_refused(texts: Any, options: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        TextWindows(texts, **{"tokenizer": BYTES, **options})
