"""Splits of a data set: sizes, shares, and texts that occur in two parts."""

import logging
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import byte_tokenizer
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gptclf import TextDataset, shared_texts, split
from gptclf.tasks import Task

BYTES = byte_tokenizer()


def numbered(labels: list[Any] | None, n: int | None = None) -> TextDataset:
    """A data set whose texts are their row numbers."""
    size = n if labels is None else len(labels)
    assert size is not None
    return TextDataset([str(i) for i in range(size)], labels, tokenizer=BYTES)


def rows(part: TextDataset) -> list[int]:
    return [int(text) for text in part.texts]


def counts(data: TextDataset) -> Counter[int]:
    assert data.labels is not None
    return Counter(data.labels.tolist())


fractions = st.sampled_from([(0.7, 0.1, 0.2), (0.5, 0.5), (1.0,), (0.9, 0.1), (0.25, 0.25, 0.25, 0.25), (1 / 3, 2 / 3)])


@given(labels=st.lists(st.integers(0, 4), min_size=12, max_size=80), shares=fractions, seed=st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_parts_are_disjoint_and_complete_and_of_the_sizes_asked_for(
    labels: list[int], shares: tuple[float, ...], seed: int
) -> None:
    for stratify in (True, False):
        parts = split(numbered(labels), shares, seed=seed, stratify=stratify)
        assert sorted(row for part in parts for row in rows(part)) == list(range(len(labels)))
        assert len(parts) == len(shares)
        for part, share in zip(parts, shares, strict=True):
            assert abs(len(part) - share * len(labels)) <= 1


@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=8), shares=fractions, seed=st.integers(0, 2**32))
@settings(max_examples=300, deadline=None)
def test_every_class_has_its_share_of_every_part_to_within_a_row_and_a_half(
    sizes: list[int], shares: tuple[float, ...], seed: int
) -> None:
    labels = [label for label, size in enumerate(sizes) for _ in range(size)]
    assume(len(labels) >= 12)
    data = numbered(labels)
    # One row for the class and half a one for the part's own size, which is rounded as well.
    for part, share in zip(split(data, shares, seed=seed), shares, strict=True):
        for label, size in counts(data).items():
            assert abs(counts(part)[label] - share * size) < 1.5


def test_a_large_class_keeps_its_share_beside_many_small_ones() -> None:
    data = numbered([0] * 700 + list(range(1, 301)))
    for seed in range(5):
        parts = split(data, seed=seed)
        assert [len(part) for part in parts] == [700, 100, 200]
        for part, share in zip(parts, (490, 70, 140), strict=True):
            assert abs(counts(part)[0] - share) <= 1


def test_without_stratification_a_share_is_left_to_chance() -> None:
    data = numbered([0, 1] * 100)
    spread = {counts(split(data, (0.5, 0.5), seed=seed, stratify=False)[0])[0] for seed in range(20)}
    assert len(spread) > 3


def test_a_division_depends_on_its_seed_alone() -> None:
    data = numbered([0, 1, 1] * 20)
    first = [rows(part) for part in split(data, seed=5)]
    np.random.seed(9)  # noqa: NPY002
    assert [rows(part) for part in split(data, seed=5)] == first
    assert [rows(part) for part in split(data, seed=6)] != first


def test_the_default_is_the_books_70_10_20() -> None:
    assert [len(part) for part in split(numbered([0, 1] * 50), seed=1)] == [70, 10, 20]


def test_parts_keep_labels_and_classes_even_those_that_do_not_occur() -> None:
    texts = [str(i) for i in range(20)]
    labels = ["even" if i % 2 == 0 else "odd" for i in range(20)]
    data = TextDataset(texts, labels, tokenizer=BYTES, classes=["odd", "even", "never"])
    for part in split(data, (0.5, 0.5), seed=2):
        assert part.classes == ["odd", "even", "never"]
        assert part.labels is not None
        assert [("odd", "even", "never")[i] for i in part.labels] == [
            "even" if i % 2 == 0 else "odd" for i in rows(part)
        ]


def test_rows_of_a_part_keep_the_order_of_the_whole() -> None:
    for part in split(numbered([0, 1] * 30), seed=3):
        assert rows(part) == sorted(rows(part))


def test_texts_without_labels_are_divided_when_told_so() -> None:
    with pytest.raises(ValueError, match=r"stratify=True needs labels.*stratify=False"):
        split(numbered(None, 10), (0.5, 0.5), seed=1)
    assert [len(part) for part in split(numbered(None, 10), (0.5, 0.5), seed=1, stratify=False)] == [5, 5]


@pytest.mark.parametrize("bad", [(), (0.5, 0.4), (1.2, -0.2), (0.0, 1.0)])
def test_wrong_fractions_are_refused(bad: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="must be positive and sum to 1"):
        split(numbered([0, 1] * 5), bad, seed=1)


@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_too_few_rows_are_refused_rather_than_a_part_left_empty(n: int) -> None:
    with pytest.raises(ValueError, match=f"{n} rows are too few for fractions"):
        split(numbered([0] * n), seed=1)


class TestSharedTexts:
    def data(self, *texts: str) -> TextDataset:
        return TextDataset(texts, [0] * len(texts), tokenizer=BYTES)

    def test_they_are_the_rows_of_the_second_that_stand_whole_in_the_first(self) -> None:
        found = shared_texts(self.data("a", "b", "cd"), self.data("c", "b", "d", "a", "b", "A", "a "))
        assert found.tolist() == [1, 3, 4]

    def test_nothing_shared_is_no_row(self) -> None:
        assert shared_texts(self.data("ab"), self.data("a", "b")).tolist() == []

    def test_a_division_warns_of_texts_that_stand_in_two_parts(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.WARNING, logger="gptclf"):
            parts = split(self.data(*["same"] * 10), (0.6, 0.4), seed=1)
        assert [len(part) for part in parts] == [6, 4]
        assert len(caplog.messages) == 1
        assert re.match(r"4 of the 4 texts in part 1\b.* also occur in part 0", caplog.messages[0])

    def test_a_division_without_such_texts_is_silent(self, caplog: pytest.LogCaptureFixture) -> None:
        split(self.data(*map(str, range(10))), (0.6, 0.4), seed=1)
        assert not caplog.messages

    def test_dropping_them_leaves_none(self) -> None:
        first, second = self.data("a", "b"), self.data("b", "c")
        clean = second.subset(np.setdiff1d(np.arange(len(second)), shared_texts(first, second)))
        assert clean.texts == ["c"]

    def test_the_books_split_has_37_test_texts_in_training(
        self, shared_data: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "examples"))
        sources = pytest.importorskip("sources")
        parts = sources.book_split(shared_data / "sms_spam.tsv")
        assert [len(texts) for texts, _ in parts] == [1045, 149, 300]
        train, _, test = (TextDataset(texts, labels, tokenizer=BYTES) for texts, labels in parts)
        assert len(shared_texts(train, test)) == 37 == sum(text in set(train.texts) for text in test.texts)


def test_texts_that_only_begin_alike_are_not_shared() -> None:
    first = TextDataset(["same prefix A"], tokenizer=byte_tokenizer(), max_length=5)
    second = TextDataset(["same prefix B", "same prefix A"], tokenizer=byte_tokenizer(), max_length=5)
    assert shared_texts(first, second).tolist() == [1]


def test_parts_keep_the_weights_of_their_rows() -> None:
    data = TextDataset([str(i) for i in range(20)], [0, 1] * 10, tokenizer=BYTES, weights=range(20))
    for part in split(data, (0.5, 0.5), seed=2):
        assert part.weights is not None
        assert part.weights.tolist() == rows(part)


def test_labels_that_are_not_one_class_per_text_are_divided_when_told_so() -> None:
    class Amount(Task):
        n_outputs = 1

        def targets(self, labels: Any) -> Any:
            return np.array(labels, dtype=np.float32)

    data = TextDataset(["a", "b", "c", "d"], [0.5, 1.5, 2.5, 3.5], tokenizer=BYTES, task=Amount())
    with pytest.raises(ValueError, match=r"one class per text.*stratify=False"):
        split(data, (0.5, 0.5), seed=1)
    assert [len(part) for part in split(data, (0.5, 0.5), seed=1, stratify=False)] == [2, 2]


@pytest.mark.parametrize(
    ("settings", "name"), [({"seed": "1"}, "seed"), ({"seed": 1, "stratify": 1}, "stratify"), ({"seed": None}, "seed")]
)
def test_a_setting_of_the_wrong_type_is_named(settings: dict[str, Any], name: str) -> None:
    with pytest.raises(TypeError, match=f"{name} is"):
        split(numbered([0, 1] * 5), **settings)


@pytest.mark.parametrize(("fractions", "error"), [(("a", 0.5), TypeError), ((float("nan"), 0.5), ValueError)])
def test_a_fraction_that_is_not_a_number_is_named(fractions: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"fractions\[0\] is"):
        split(numbered([0, 1] * 5), fractions, seed=1)
