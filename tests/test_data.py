"""Data sets: where texts and labels come from, truncation, and batches."""

import csv
import io
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import byte_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from gptclf import Batches, TextDataset
from gptclf.preparation import Preparation
from gptclf.tasks import SingleLabel, Task
from gptclf.tokenizer import tokens

BYTES = byte_tokenizer()
END = BYTES.eot_token


def data_set(texts: Any, labels: Any = None, **settings: Any) -> TextDataset:
    return TextDataset(texts, labels, tokenizer=BYTES, **settings)


def labels_of(data: TextDataset) -> list[Any]:
    assert data.labels is not None
    assert data.classes is not None
    return [data.classes[i] for i in data.labels]


def bytes_of(data: TextDataset) -> list[bytes]:
    return [BYTES.decode_bytes(row.tolist()) for row in data.rows()]


class Pairs(Task):
    """Two numbers per text, a task of a user's own."""

    n_outputs = 2

    def __init__(self, dtype: Any = np.float32) -> None:
        self.dtype = dtype

    def targets(self, labels: Any) -> Any:
        return np.array(labels, dtype=self.dtype)


class TestTexts:
    def test_rows_are_the_tokens_of_their_texts(self) -> None:
        data = data_set(["hi", "you won!", "né"])
        assert bytes_of(data) == [b"hi", b"you won!", "né".encode()]
        assert data.lengths.tolist() == [2, 8, 3]

    def test_an_empty_text_is_one_end_of_text(self) -> None:
        assert data_set([""]).row(0).tolist() == [END]

    def test_any_iterable_of_texts_will_do(self) -> None:
        assert data_set(text for text in ("a", "b")).texts == ["a", "b"]
        assert data_set(pd.Series(["a", "b"], index=[7, 3])).texts == ["a", "b"]
        assert data_set(np.array(["a", "b"])).texts == ["a", "b"]

    @pytest.mark.parametrize("texts", ["abc", b"abc"])
    def test_a_single_string_is_refused(self, texts: Any) -> None:
        with pytest.raises(TypeError, match=r"texts is a single .*list of strings"):
            data_set(texts)

    @pytest.mark.parametrize("table", [pd.DataFrame({"text": ["a"]}), datasets.Dataset.from_dict({"text": ["a"]})])
    def test_a_whole_table_is_refused_and_pointed_to_from_table(self, table: Any) -> None:
        with pytest.raises(TypeError, match="from_table"):
            data_set(table)

    @pytest.mark.parametrize("bad", [None, 3, float("nan"), b"x", ["x"]])
    def test_a_text_that_is_no_string_is_refused_with_its_row(self, bad: Any) -> None:
        with pytest.raises(TypeError, match=r"text 1 is .* every text must be a str"):
            data_set(["a", bad, "c"])

    def test_an_empty_data_set_is_a_data_set(self) -> None:
        data = data_set([], [], classes=["ham", "spam"], max_length=5)
        assert (len(data), len(data.ids), data.n_truncated) == (0, 0, 0)
        assert list(Batches(data)) == []
        assert data.within(3) is data
        assert len(data.subset([])) == 0

    def test_its_repr_counts_texts_tokens_and_classes(self) -> None:
        assert repr(data_set(["ab", "c"], [0, 1])) == "TextDataset(2 texts, 3 tokens, 2 classes)"
        assert repr(data_set(["ab"])) == "TextDataset(1 texts, 2 tokens, no labels)"


class TestLabels:
    @pytest.mark.parametrize(
        ("labels", "classes"),
        [
            (["spam", "ham", "spam"], ["ham", "spam"]),
            ([2, 0, 2], [0, 2]),
            ([True, False, True], [False, True]),
            ([2.0, -1.0, 2.0], [-1.0, 2.0]),
            (["b", 1, "b"], ["b", 1]),
        ],
        ids=["str", "int", "bool", "float", "mixed"],
    )
    def test_labels_of_any_hashable_kind_are_kept_by_name(self, labels: list[Any], classes: list[Any]) -> None:
        data = data_set(["x", "y", "z"], labels)
        assert data.classes == classes
        assert [type(label) for label in data.classes or []] == [type(label) for label in classes]
        assert labels_of(data) == labels

    @pytest.mark.parametrize(
        ("labels", "kind"),
        [
            (np.array([1, 0]), int),
            (np.array(["b", "a"]), str),
            (np.array([True, False]), bool),
            (np.array([2, 1], dtype=np.float32), float),
            (torch.tensor([1, 0]), int),
            (pd.Series([1, 0], dtype="int8"), int),
            (pd.Series(["b", "a"]), str),
            (pd.Categorical(["b", "a"]), str),
        ],
        ids=["int64", "str_", "bool_", "float32", "tensor", "series", "text series", "categorical"],
    )
    def test_scalars_of_numpy_pandas_and_torch_become_pythons(self, labels: Any, kind: type) -> None:
        data = data_set(["x", "y"], labels)
        assert [type(label) for label in data.classes or []] == [kind, kind]
        assert data.labels is not None
        assert data.labels.tolist() == [1, 0]

    def test_classes_given_keep_their_order(self) -> None:
        data = data_set(["x", "y"], ["spam", "ham"], classes=["spam", "ham", "other"])
        assert data.classes == ["spam", "ham", "other"]
        assert data.targets().tolist() == [0, 1]

    def test_classes_given_as_numpy_scalars_match_pythons(self) -> None:
        assert data_set(["x"], [1], classes=np.array([0, 1])).classes == [0, 1]

    @pytest.mark.parametrize("missing", [None, float("nan"), np.nan, pd.NA, pd.NaT])
    def test_a_missing_label_is_refused_with_its_row(self, missing: Any) -> None:
        with pytest.raises(ValueError, match=r"label 1 is missing"):
            data_set(["x", "y"], ["a", missing])

    @pytest.mark.parametrize("label", [["a"], {"a": 1}, {1}])
    def test_a_label_that_cannot_be_hashed_is_refused_with_its_row(self, label: Any) -> None:
        with pytest.raises(TypeError, match=r"label 1 is .*not hashable.*strings, numbers or tuples"):
            data_set(["x", "y"], ["a", label])

    def test_a_row_of_several_labels_is_refused_as_such(self) -> None:
        with pytest.raises(TypeError, match=r"label 0 is .*not hashable"):
            data_set(["x", "y"], np.array([[0, 1], [1, 0]]))

    def test_a_label_never_seen_is_named_with_its_row(self) -> None:
        with pytest.raises(ValueError, match=r"1 label not among the classes: 'egg' \(row 2\).*'ham', 'spam'"):
            data_set(["x", "y", "z"], ["ham", "spam", "egg"], classes=["ham", "spam"])

    def test_a_number_and_its_text_are_different_labels(self) -> None:
        with pytest.raises(ValueError, match="1 and '1' are different labels"):
            data_set(["x"], ["1"], classes=[0, 1])

    @pytest.mark.parametrize("n", [1, 3])
    def test_every_text_needs_one_label(self, n: int) -> None:
        with pytest.raises(ValueError, match=f"2 texts but {n} labels"):
            data_set(["x", "y"], ["a"] * n)

    def test_a_class_twice_is_refused(self) -> None:
        with pytest.raises(ValueError, match="twice"):
            data_set(["x"], ["a"], classes=["a", "b", "a"])

    def test_classes_without_labels_are_refused(self) -> None:
        with pytest.raises(ValueError, match="classes= was given without labels="):
            data_set(["x"], classes=["a", "b"])

    def test_targets_are_matched_by_name(self) -> None:
        data = data_set(["x", "y", "z"], ["b", "a", "c"])
        assert data.targets(SingleLabel(["c", "b", "a"])).tolist() == [1, 2, 0]
        assert data.targets(SingleLabel(["a", "b", "c"])).tolist() == [1, 0, 2]

    def test_a_target_that_the_classes_lack_is_named(self) -> None:
        with pytest.raises(ValueError, match=r"'c' \(row 2\)"):
            data_set(["x", "y", "z"], ["b", "a", "c"]).targets(SingleLabel(["a", "b"]))

    def test_targets_need_labels(self) -> None:
        with pytest.raises(ValueError, match="no labels"):
            data_set(["x"]).targets(SingleLabel(["a", "b"]))


class TestTasks:
    def test_labels_are_what_the_task_makes_of_them(self) -> None:
        data = data_set(["x", "y"], [[1, 2], (3, 4)], task=Pairs())
        assert data.labels is not None
        np.testing.assert_array_equal(data.labels, np.array([[1, 2], [3, 4]], dtype=np.float32))
        assert (data.classes, data.labelled) == (None, True)
        assert data.subset([1]).targets(Pairs(np.float64)).tolist() == [[3.0, 4.0]]

    def test_classes_are_the_tasks(self) -> None:
        data = data_set(["x", "y"], ["b", "a"], task=SingleLabel(["b", "a", "c"]))
        assert data.classes == ["b", "a", "c"]
        assert data.targets().tolist() == [0, 1]

    @given(labels=st.lists(st.sampled_from("abc"), max_size=8), order=st.permutations("abcd"), data=st.data())
    @settings(max_examples=50, deadline=None)
    def test_labels_are_matched_to_any_other_task_by_name(
        self, labels: list[str], order: list[str], data: st.DataObject
    ) -> None:
        rows = data.draw(st.lists(st.integers(0, len(labels) - 1), max_size=5)) if labels else []
        part = data_set(["x"] * len(labels), labels, classes=list("cba")).subset(rows)
        task = SingleLabel(order, class_weight={"a": 2.0})
        assert part.targets(task).tolist() == [order.index(labels[i]) for i in rows]
        assert part.targets(part.task) is part.labels

    def test_a_task_that_loses_a_row_is_named(self) -> None:
        class Lossy(Pairs):
            def targets(self, labels: Any) -> Any:
                return super().targets(labels)[1:]

        with pytest.raises(ValueError, match=r"Lossy\.targets gave 1 targets for 2 labels"):
            data_set(["x", "y"], [[1, 2], [3, 4]], task=Lossy())

    def test_a_task_and_classes_do_not_go_together(self) -> None:
        with pytest.raises(ValueError, match="classes= and task= were both given"):
            data_set(["x"], ["a"], classes=["a", "b"], task=SingleLabel(["a", "b"]))

    @pytest.mark.parametrize("setting", [{"task": SingleLabel(["a"])}, {"weights": [1.0]}])
    def test_a_task_or_weights_without_labels_are_refused(self, setting: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=f"{next(iter(setting))}= was given without labels="):
            data_set(["x"], **setting)

    def test_a_task_of_another_kind_is_refused(self) -> None:
        with pytest.raises(TypeError, match="task is a list; it must be a gptclf Task"):
            data_set(["x"], ["a"], task=["a", "b"])

    def test_rows_of_a_tensor_of_several_columns_are_not_labels_by_identity(self) -> None:
        with pytest.raises(TypeError, match=r"label 0 is \[0, 1\] .*not hashable"):
            data_set(["x", "y"], torch.tensor([[0, 1], [1, 0]]))


class TestWeights:
    @pytest.mark.parametrize(
        "weights",
        [[1, 2.5], (1, 2.5), np.array([1, 2.5]), torch.tensor([1, 2.5]), pd.Series([1, 2.5]), iter([1, 2.5])],
        ids=["list", "tuple", "array", "tensor", "series", "iterator"],
    )
    def test_one_number_per_text_in_float32(self, weights: Any) -> None:
        data = data_set(["x", "y"], ["a", "b"], weights=weights)
        assert data.weights is not None
        assert (data.weights.dtype, data.weights.tolist()) == (np.dtype(np.float32), [1.0, 2.5])

    def test_without_weights_there_are_none(self) -> None:
        data = data_set(["x", "y"], ["a", "b"])
        assert data.weights is None
        assert data.subset([1]).weights is None
        assert next(iter(Batches(data))).weights is None

    @pytest.mark.parametrize(
        ("weight", "error"),
        [
            (-1, ValueError),
            (float("nan"), ValueError),
            (float("inf"), ValueError),
            (1e300, ValueError),
            (None, TypeError),
            ("2", TypeError),
            (True, TypeError),
            ([1.0], TypeError),
        ],
    )
    def test_a_wrong_weight_is_refused_with_its_row(self, weight: Any, error: type[Exception]) -> None:
        with pytest.raises(error, match=r"^weight 1 is .*; it must be a finite number of at least 0 and of at most"):
            data_set(["x", "y"], ["a", "b"], weights=[1.0, weight])

    def test_every_text_needs_one_weight(self) -> None:
        with pytest.raises(ValueError, match="2 texts but 3 weights; every text needs one weight"):
            data_set(["x", "y"], ["a", "b"], weights=[1, 2, 3])

    @pytest.mark.parametrize("weights", ["12", {"x": 1, "y": 2}, 5, pd.DataFrame({"w": [1, 2]})])
    def test_weights_that_are_not_a_list_are_refused(self, weights: Any) -> None:
        with pytest.raises(TypeError, match=r"weights is a .*; it must be a list, or one column"):
            data_set(["x", "y"], ["a", "b"], weights=weights)

    def test_a_subset_and_its_batches_keep_them(self) -> None:
        data = data_set(["x", "y", "z"], ["a", "b", "a"], weights=[0, 1, 2]).subset([2, 0, 2])
        assert data.weights is not None
        assert data.weights.tolist() == [2.0, 0.0, 2.0]
        found = [batch.weights for batch in Batches(data.within(1), 2)]
        assert [None if w is None else (w.dtype, w.tolist()) for w in found] == [
            (torch.float32, [2.0, 0.0]),
            (torch.float32, [2.0]),
        ]


class TestPreparation:
    def test_it_is_one_value_on_the_data_set(self) -> None:
        data = data_set(["abc"], max_length=np.int64(2), truncation="head")
        assert data.preparation == Preparation(2, "head")
        assert type(data.preparation.max_length) is int
        assert data.subset([0]).preparation == data.within(1).preparation == data.preparation

    def test_padding_sets_the_length(self) -> None:
        assert Preparation(pad_to=4) == Preparation(max_length=4, pad_to=4)

    def test_equal_preparations_do_not_differ(self) -> None:
        assert Preparation(8, "head").difference(Preparation(8, "head")) == ""

    def test_a_difference_names_every_setting_with_both_values(self) -> None:
        assert Preparation(8, "head", 9).difference(Preparation(16, "tail", 16)) == (
            "max_length=8 (the model was trained with 16), truncation='head' (the model was trained with 'tail'), "
            "pad_to=9 (the model was trained with 16)"
        )

    def test_a_truncation_of_another_type_is_a_type_error(self) -> None:
        with pytest.raises(TypeError, match="truncation is None; it must be one of tail, head, middle"):
            Preparation(truncation=None)  # type: ignore[arg-type]


class TestRowNumbers:
    @given(n=st.integers(1, 6), data=st.data())
    @settings(max_examples=80, deadline=None)
    def test_they_mean_what_numpy_means_by_them(self, n: int, data: st.DataObject) -> None:
        chosen = data.draw(st.lists(st.integers(-n, n - 1), max_size=8))
        whole = data_set(["abcdef"[: i + 1] for i in range(n)], list(range(n)), weights=range(n))
        expected = np.arange(n)[np.array(chosen, dtype=int)].tolist()
        part = whole.subset(chosen)
        assert part.texts == [whole.texts[i] for i in expected]
        assert bytes_of(part) == [text.encode() for text in part.texts]
        assert labels_of(part) == expected
        assert part.weights is not None
        assert part.weights.tolist() == expected
        assert torch.equal(whole.padded(chosen), whole.padded(expected))
        assert torch.equal(whole.packed(chosen), whole.packed(expected))
        assert torch.equal(whole.packed(chosen), part.packed(range(len(part))))
        batch = Batches(whole).take(chosen)
        assert batch.targets is not None
        assert batch.rows is not None
        assert batch.targets.tolist() == batch.rows.tolist() == expected
        assert batch.lengths.tolist() == [i + 1 for i in expected]
        for i in chosen:
            assert BYTES.decode_bytes(whole.row(i).tolist()) == whole.texts[i].encode()

    @pytest.mark.parametrize("row", [3, -4, 2**62])
    def test_a_row_that_is_not_there_is_named(self, row: int) -> None:
        data = data_set(["x", "yy", "zzz"], [0, 1, 0])
        uses: list[Callable[[], object]] = [
            lambda: data.subset([0, row]),
            lambda: data.row(row),
            lambda: data.padded([0, row]),
            lambda: data.packed([0, row]),
            lambda: Batches(data).take([0, row]),
        ]
        for use in uses:
            with pytest.raises(IndexError, match=f"there is no row {row}; the data set has 3 rows"):
                use()

    def test_a_mask_of_another_length_is_refused(self) -> None:
        with pytest.raises(IndexError, match=r"the mask has shape \(1,\); the data set has 2 rows"):
            data_set(["x", "yy"]).subset([True])

    @pytest.mark.parametrize("rows", [0, [[0]], ["x"], slice(1), [0.0], [2**70]])
    def test_what_is_not_a_row_of_integers_is_refused(self, rows: Any) -> None:
        with pytest.raises(TypeError, match="rows are chosen by"):
            data_set(["x", "yy"]).subset(rows)


class TestSubset:
    def test_a_subset_holds_the_rows_asked_for_with_the_same_classes(self) -> None:
        data = data_set(["x", "yy", "zzz"], ["b", "a", "c"])
        part = data.subset([2, 0])
        assert part.texts == ["zzz", "x"]
        assert bytes_of(part) == [b"zzz", b"x"]
        assert labels_of(part) == ["c", "b"]
        assert part.classes == data.classes

    def test_a_subset_leaves_the_whole_as_it_was(self) -> None:
        data = data_set(["x", "yy"], ["b", "a"])
        data.subset([1])
        assert bytes_of(data) == [b"x", b"yy"]

    def test_a_mask_chooses_the_rows_that_are_true(self) -> None:
        data = data_set(["x", "yy", "zzz"], ["b", "a", "c"])
        assert data.subset(np.array([False, False, True])).texts == ["zzz"]

    def test_fractions_are_no_row_numbers(self) -> None:
        with pytest.raises((TypeError, IndexError, ValueError)):
            data_set(["x", "yy"]).subset(np.array([0.5, 1.5]))


class TestTruncation:
    @given(text=st.text("abcdefgh", min_size=1, max_size=30), limit=st.integers(1, 32))
    @settings(max_examples=100, deadline=None)
    def test_what_is_left_of_a_row_is_a_slice(self, text: str, limit: int) -> None:
        back = limit // 2
        middle = text if len(text) <= limit else text[: limit - back] + text[len(text) - back :]
        for truncation, left in (("tail", text[:limit]), ("head", text[-limit:]), ("middle", middle)):
            data = data_set([text], max_length=limit, truncation=truncation)
            assert bytes_of(data) == [left.encode()]
            assert data.n_truncated == (len(text) > limit)

    @pytest.mark.parametrize("truncation", ["tail", "head", "middle"])
    def test_rows_cut_are_counted_and_reported(self, truncation: str, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.WARNING, logger="gptclf"):
            data = data_set(["abcdef", "ab", "abcd"], max_length=3, truncation=truncation)
        assert data.n_truncated == 2
        assert caplog.messages == [f"2 of 3 texts are longer than 3 tokens (longest: 6) and lost their {truncation}"]

    def test_nothing_is_said_where_all_rows_fit(self, caplog: pytest.LogCaptureFixture) -> None:
        assert data_set(["abc"], max_length=3).n_truncated == 0
        assert not caplog.messages

    def test_texts_themselves_stay_whole(self) -> None:
        assert data_set(["abcdef"], max_length=3).texts == ["abcdef"]

    def test_padding_fills_every_row_with_ends_of_text(self) -> None:
        data = data_set(["ab", "abcdef"], pad_to=4)
        assert data.row(0).tolist() == [*BYTES.encode_ordinary("ab"), END, END]
        assert data.lengths.tolist() == [4, 4]
        assert (data.preparation, data.n_truncated) == (Preparation(4, "tail", 4), 1)

    def test_rows_may_be_cut_shorter_than_they_are_padded(self) -> None:
        data = data_set(["abcdef"], max_length=2, pad_to=4)
        assert data.row(0).tolist() == [*BYTES.encode_ordinary("ab"), END, END]

    def test_rows_cannot_be_longer_than_their_padding(self) -> None:
        with pytest.raises(ValueError, match="max_length 5 is more than pad_to 4"):
            data_set(["a"], max_length=5, pad_to=4)

    @pytest.mark.parametrize("setting", ["max_length", "pad_to"])
    @pytest.mark.parametrize(
        ("value", "error"), [(0, ValueError), (-1, ValueError), (2.5, TypeError), (True, TypeError), ("3", TypeError)]
    )
    def test_a_wrong_length_is_refused_by_name(self, setting: str, value: Any, error: type[Exception]) -> None:
        with pytest.raises(
            error, match=rf"{setting} is {value!r}; it must be an integer of at least 1 and at most 1000000 or None"
        ):
            data_set(["a"], **{setting: value})

    def test_an_unknown_truncation_is_refused_with_the_choices(self) -> None:
        with pytest.raises(ValueError, match=r"'end'.*tail, head, middle"):
            data_set(["a"], truncation="end")

    def test_a_data_set_within_a_context_is_itself_where_all_fit(self) -> None:
        data = data_set(["abc", "ab"])
        assert data.within(3) is data

    def test_a_data_set_within_a_context_is_cut_its_own_way_and_the_whole_stays(self) -> None:
        data = data_set(["abcdef", "ab"], truncation="head")
        assert bytes_of(data.within(3)) == [b"def", b"ab"]
        assert bytes_of(data) == [b"abcdef", b"ab"]


class TestBatches:
    def test_a_batch_is_padded_to_its_own_longest_row(self) -> None:
        data = data_set(["abc", "a", "bcdefg", "hi"], [0, 1, 1, 0])
        first, second = Batches(data, batch_size=2)
        assert (first.inputs.shape, second.inputs.shape) == ((2, 3), (2, 6))
        assert first.inputs[1].tolist() == [*BYTES.encode_ordinary("a"), 0, 0]
        assert first.lengths.tolist() == [3, 1]
        assert second.targets is not None
        assert second.targets.tolist() == [1, 0]
        assert (first.task, len(second)) == (SingleLabel([0, 1]), 2)
        assert {t.dtype for t in (first.inputs, first.lengths, second.targets)} == {torch.int64}

    @given(
        texts=st.lists(st.text("abc", max_size=6), max_size=20),
        size=st.integers(1, 7),
        seed=st.none() | st.integers(0, 2**40),
        epoch=st.integers(0, 5),
    )
    @settings(max_examples=60, deadline=None)
    def test_an_epoch_holds_every_row_once_in_its_order(
        self, texts: list[str], size: int, seed: int | None, epoch: int
    ) -> None:
        data = data_set(texts)
        batches = Batches(data, batch_size=size, seed=seed)
        seen = [row[:n].tolist() for batch in batches.epoch(epoch) for row, n in zip(batch.inputs, batch.lengths)]  # noqa: B905
        order = batches.order(epoch)
        assert sorted(order.tolist()) == list(range(len(texts)))
        assert seen == [data.row(i).tolist() for i in order]
        assert len(list(batches.epoch(epoch))) == len(batches)

    @given(seed=st.integers(0, 2**40), epoch=st.integers(0, 10**6), n=st.integers(0, 50))
    @settings(max_examples=60, deadline=None)
    def test_the_order_depends_on_seed_and_epoch_alone(self, seed: int, epoch: int, n: int) -> None:
        data = data_set(["a"] * n)
        first, second = Batches(data, 3, seed=seed), Batches(data_set(["b"] * n), 8, seed=seed)
        second.order(epoch + 1)
        np.random.seed(0)  # noqa: NPY002
        assert first.order(epoch).tolist() == second.order(epoch).tolist()

    def test_epochs_and_seeds_differ_in_their_order(self) -> None:
        data = data_set(["a"] * 50)
        orders = [tuple(Batches(data, seed=seed).order(epoch)) for seed in (1, 2) for epoch in (0, 1)]
        assert len(set(orders)) == 4

    def test_without_a_seed_the_order_is_the_data_sets(self) -> None:
        assert Batches(data_set(["a"] * 5)).order(3).tolist() == [0, 1, 2, 3, 4]

    @pytest.mark.parametrize(("drop", "sizes"), [(False, [3, 3, 1]), (True, [3, 3])])
    def test_a_last_batch_that_is_not_full_may_be_left_out(self, drop: bool, sizes: list[int]) -> None:
        batches = Batches(data_set(["a"] * 7), batch_size=3, seed=1, drop_last=drop)
        assert [len(batch) for batch in batches] == sizes
        assert len(batches) == len(sizes)

    def test_targets_follow_the_task_given(self) -> None:
        task = SingleLabel(["b", "a"])
        batch = next(iter(Batches(data_set(["x", "y"], ["a", "b"]), task=task)))
        assert batch.targets is not None
        assert (batch.targets.tolist(), batch.task) == ([1, 0], task)

    def test_texts_to_predict_have_no_targets(self) -> None:
        assert next(iter(Batches(data_set(["x"])))).targets is None

    @pytest.mark.parametrize(
        ("size", "error"), [(0, ValueError), (-1, ValueError), (2.0, TypeError), (True, TypeError), (None, TypeError)]
    )
    def test_a_wrong_batch_size_is_refused(self, size: Any, error: type[Exception]) -> None:
        with pytest.raises(error, match=f"batch_size is {size}; it must be an integer of at least 1"):
            Batches(data_set(["a"]), size)

    @given(
        n=st.integers(0, 25),
        size=st.integers(1, 7),
        seed=st.none() | st.integers(0, 2**40),
        epoch=st.integers(0, 5),
        start=st.integers(0, 30),
        drop=st.booleans(),
    )
    @settings(max_examples=100, deadline=None)
    def test_an_epoch_may_start_at_any_batch(
        self, n: int, size: int, seed: int | None, epoch: int, start: int, drop: bool
    ) -> None:
        data = data_set(["ab" * (i % 4) for i in range(n)], [i % 3 for i in range(n)], weights=range(n))
        batches = Batches(data, size, seed, drop_last=drop)
        if start > len(batches):
            with pytest.raises(ValueError, match=f"start is {start}; it must be at most {len(batches)}"):
                batches.epoch(epoch, start)
            return
        whole, tail = list(batches.epoch(epoch)), list(batches.epoch(epoch, start=start))
        assert len(whole) == len(batches)
        for expected, found in zip(whole[start:], tail, strict=True):
            for name in ("inputs", "lengths", "targets", "weights", "rows"):
                assert torch.equal(getattr(expected, name), getattr(found, name))
            assert found.task == expected.task

    def test_batches_before_the_start_are_not_computed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        batches = Batches(data_set(["a"] * 20), 2, seed=1)
        taken: list[list[int]] = []

        def padded(_: TextDataset, rows: Any) -> torch.Tensor:
            taken.append(rows.tolist())
            return torch.zeros(len(rows), 1)

        monkeypatch.setattr(TextDataset, "padded", padded)
        assert len(list(batches.epoch(3, start=8))) == 2
        assert taken == [batches.order(3)[16:18].tolist(), batches.order(3)[18:].tolist()]

    @pytest.mark.parametrize("start", [2.0, "1", True, None])
    def test_a_start_that_is_not_an_integer_is_refused(self, start: Any) -> None:
        with pytest.raises(TypeError, match="start is"):
            Batches(data_set(["a"])).epoch(0, start)

    def test_a_batch_knows_the_numbers_of_its_rows(self) -> None:
        batches = Batches(data_set(["a"] * 5), 2, seed=3)
        rows = [batch.rows for batch in batches.epoch(1)]
        assert torch.cat([numbers for numbers in rows if numbers is not None]).tolist() == batches.order(1).tolist()

    def test_float_targets_keep_their_dtype_and_integers_become_int64(self) -> None:
        for dtype, expected in ((np.float32, torch.float32), (np.float64, torch.float64), (np.int8, torch.int64)):
            batch = next(iter(Batches(data_set(["x", "y"], [[1, 2], [3, 4]], task=Pairs(dtype)))))
            assert batch.targets is not None
            assert (batch.targets.dtype, batch.targets.tolist()) == (expected, [[1, 2], [3, 4]])

    def test_a_batch_moves_whole_to_a_device(self) -> None:
        batch = next(iter(Batches(data_set(["x", "y"], ["a", "b"], weights=[1, 2])))).to("meta")
        assert batch.targets is not None
        assert batch.weights is not None
        assert {t.device.type for t in (batch.inputs, batch.lengths, batch.targets, batch.weights)} == {"meta"}
        assert batch.task == SingleLabel(["a", "b"])


# Fields with everything that a reader of separated values may stumble over.
fields = st.text(' ab",;\t\n\r\x00é\u2028', max_size=8)


class TestFiles:
    def read(self, path: Path, **settings: Any) -> TextDataset:
        return TextDataset.from_file(path, tokenizer=BYTES, **settings)

    @given(rows=st.lists(st.tuples(fields, st.sampled_from("xyz")), max_size=6))
    @settings(max_examples=100, deadline=None)
    def test_a_csv_gives_what_pythons_writer_wrote(
        self, rows: list[tuple[str, str]], tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        text = io.StringIO(newline="")
        csv.writer(text).writerows([("text", "label"), *rows])
        path = tmp_path_factory.getbasetemp() / "fuzz.csv"
        path.write_bytes(text.getvalue().encode())
        data = self.read(path)
        assert data.texts == [text for text, _ in rows]
        assert labels_of(data) == [label for _, label in rows]

    @given(rows=st.lists(st.tuples(st.text(" ab\"',é\u2028", min_size=1), st.sampled_from("xyz")), max_size=6))
    @settings(max_examples=60, deadline=None)
    def test_quotes_in_a_tsv_are_text(
        self, rows: list[tuple[str, str]], tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        path = tmp_path_factory.getbasetemp() / "fuzz.tsv"
        path.write_bytes("".join(f"{label}\t{text}\n" for text, label in rows).encode())
        data = self.read(path, text=1, label=0)
        assert data.texts == [text for text, _ in rows]
        assert labels_of(data) == [label for _, label in rows]

    @given(
        rows=st.lists(st.tuples(fields, st.integers() | fields | st.booleans()), max_size=6), ascii_only=st.booleans()
    )
    @settings(max_examples=60, deadline=None)
    def test_a_jsonl_gives_values_with_their_types(
        self, rows: list[tuple[str, Any]], ascii_only: bool, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        path = tmp_path_factory.getbasetemp() / "fuzz.jsonl"
        lines = [json.dumps({"label": label, "text": text}, ensure_ascii=ascii_only) for text, label in rows]
        path.write_text("\n\n".join(lines), encoding="utf-8", newline="\n")
        data = self.read(path)
        assert data.texts == [text for text, _ in rows]
        assert labels_of(data) == [label for _, label in rows]

    @pytest.mark.parametrize("suffix", [".csv", ".tsv"])
    def test_columns_are_those_that_pandas_reads(self, suffix: str, tmp_path: Path) -> None:
        path, separator = tmp_path / f"data{suffix}", "," if suffix == ".csv" else "\t"
        frame = pd.DataFrame(
            {"id": [1, 2, 3], "label": ["b", "a", "b"], "text": ['say "hi", x', "two\nlines", "naïve  "]}
        )
        frame.to_csv(path, sep=separator, index=False)
        theirs = pd.read_csv(path, sep=separator)
        data = self.read(path, quoted=True)
        assert data.texts == theirs["text"].tolist()
        assert labels_of(data) == theirs["label"].tolist()

    def test_a_byte_order_mark_is_no_part_of_a_name(self, tmp_path: Path) -> None:
        path = tmp_path / "data.csv"
        path.write_bytes(b"\xef\xbb\xbftext,label\nhi,a\n")
        assert self.read(path).texts == ["hi"]

    def test_a_byte_order_mark_is_no_part_of_a_jsonl(self, tmp_path: Path) -> None:
        path = tmp_path / "data.jsonl"
        path.write_bytes(b'\xef\xbb\xbf{"text": "hi"}\n')
        assert self.read(path, label=None).texts == ["hi"]

    def test_columns_by_position_mean_that_there_is_no_header(self, tmp_path: Path) -> None:
        path = tmp_path / "data.csv"
        path.write_text("a,first\nb,second\n")
        data = self.read(path, text=1, label=0)
        assert (data.texts, labels_of(data)) == (["first", "second"], ["a", "b"])

    def test_texts_to_predict_need_no_label_column(self, tmp_path: Path) -> None:
        path = tmp_path / "data.csv"
        path.write_text("text\nfirst\n")
        assert self.read(path, label=None).labels is None

    def test_a_field_of_a_megabyte_is_read_and_the_limit_of_others_stays(self, tmp_path: Path) -> None:
        path, limit = tmp_path / "data.csv", 131_072
        csv.field_size_limit(limit)
        path.write_text("text,label\n" + "ab " * 350_000 + ",a\n")
        assert len(self.read(path, max_length=5).texts[0]) == 1_050_000
        assert csv.field_size_limit() == limit

    def test_an_upper_case_suffix_names_the_format_too(self, tmp_path: Path) -> None:
        path = tmp_path / "DATA.CSV"
        path.write_text("text,label\nhi,a\n")
        assert self.read(path).texts == ["hi"]

    def test_another_encoding_is_read_when_it_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / "data.csv"
        path.write_bytes("text,label\nnaïve,a\n".encode("latin-1"))
        with pytest.raises(ValueError, match=r"data\.csv is not utf-8.*give its encoding="):
            self.read(path)
        assert self.read(path, encoding="latin-1").texts == ["naïve"]

    @pytest.mark.parametrize(
        ("name", "content", "settings", "message"),
        [
            ("a.csv", "body,label\nhi,a\n", {}, r"no column 'text'; it has \['body', 'label'\].*positions"),
            ("a.csv", "", {}, "no column 'text'"),
            ("a.csv", "text,label\nhi,a\nshort\n", {}, r"a\.csv, line 3: 1 fields, but the header has 2"),
            ("a.csv", 'text,label\n"hi,a\n', {}, r"a\.csv, line 2: .*give quoted=False"),
            ("a.txt", "hi", {}, r"a\.txt: the suffix.*\.csv, \.tsv, \.jsonl or \.parquet"),
            ("a.jsonl", '{"text": "hi", "label": 1}\n{"text"\n', {}, r"a\.jsonl, line 2: not JSON"),
            ("a.jsonl", '{"body": "hi"}\n', {}, r"a\.jsonl has no column 'text'; it has \['body'\]"),
            ("a.jsonl", "[1]\n", {}, r"a\.jsonl, line 1: \[1\] is not an object"),
        ],
    )
    def test_a_file_of_another_form_is_refused_with_its_place(
        self, name: str, content: str, settings: dict[str, Any], message: str, tmp_path: Path
    ) -> None:
        (tmp_path / name).write_text(content)
        with pytest.raises(ValueError, match=message):
            self.read(tmp_path / name, **settings)

    def test_a_name_and_a_position_do_not_go_together(self, tmp_path: Path) -> None:
        (tmp_path / "a.csv").write_text("text,label\na,b\n")
        with pytest.raises(TypeError, match="must all be names or all be positions"):
            self.read(tmp_path / "a.csv", text="text", label=0)

    def test_a_file_that_is_not_there_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"nowhere\.csv"):
            self.read(tmp_path / "nowhere.csv")

    def test_settings_reach_the_data_set(self, tmp_path: Path) -> None:
        path = tmp_path / "data.csv"
        path.write_text("text,label\nabcdef,a\n")
        data = self.read(path, classes=["b", "a"], max_length=3, truncation="head", pad_to=4)
        assert (data.classes, data.row(0).tolist()) == (["b", "a"], [*BYTES.encode_ordinary("def"), END])

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("a.csv", "weight,text,label\n2,hi,a\n0.5,ho,b\n"),
            ("a.jsonl", '{"text": "hi", "label": "a", "weight": 2}\n{"text": "ho", "label": "b", "weight": 0.5}\n'),
        ],
    )
    def test_a_column_may_hold_weights(self, name: str, content: str, tmp_path: Path) -> None:
        (tmp_path / name).write_text(content)
        data = self.read(tmp_path / name, weights="weight", task=SingleLabel(["b", "a"]))
        assert data.weights is not None
        assert (data.weights.tolist(), data.targets().tolist()) == ([2.0, 0.5], [1, 0])

    def test_a_weight_that_is_not_a_number_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "a.csv").write_text("hi,a,1\nho,b,much\n")
        with pytest.raises(TypeError, match=r"a\.csv: weight 1 \(line 2\) is 'much'; it must be a finite number"):
            self.read(tmp_path / "a.csv", text=0, label=1, weights=2)

    def test_a_path_may_begin_at_home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("USERPROFILE", str(tmp_path))
        (tmp_path / "a.csv").write_text("text,label\nhi,a\n")
        assert self.read("~/a.csv").texts == ["hi"]  # type: ignore[arg-type]

    def test_the_sms_collection_has_the_rows_that_its_makers_count(self, shared_data: Path) -> None:
        data = self.read(shared_data / "sms_spam.tsv", text=1, label=0)
        assert (len(data), data.classes) == (5574, ["ham", "spam"])
        # Quotes stand in the middle of its fields: a reader that takes them for quoting joins lines (the book's does).
        with pytest.raises(ValueError, match="give quoted=False"):
            self.read(shared_data / "sms_spam.tsv", text=1, label=0, quoted=True)


class TestTables:
    def read(self, table: Any, **settings: Any) -> TextDataset:
        return TextDataset.from_table(table, tokenizer=BYTES, **settings)

    @pytest.mark.parametrize(
        "make", [pd.DataFrame, dict, datasets.Dataset.from_dict], ids=["pandas", "dict", "datasets"]
    )
    def test_two_columns_are_taken(self, make: Callable[[Any], Any]) -> None:
        data = self.read(make({"body": ["hi", "ho"], "kind": ["b", "a"]}), text="body", label="kind")
        assert (data.texts, labels_of(data)) == (["hi", "ho"], ["b", "a"])
        assert self.read(make({"text": ["hi"]}), label=None).labels is None

    @pytest.mark.parametrize(
        "make", [pd.DataFrame, dict, datasets.Dataset.from_dict], ids=["pandas", "dict", "datasets"]
    )
    def test_a_column_that_is_missing_is_named_with_those_there_are(self, make: Callable[[Any], Any]) -> None:
        with pytest.raises(ValueError, match=r"no column 'text'; it has \['body', 'label'\]"):
            self.read(make({"body": ["hi"], "label": ["a"]}))

    @pytest.mark.parametrize(
        "make", [pd.DataFrame, dict, datasets.Dataset.from_dict], ids=["pandas", "dict", "datasets"]
    )
    def test_a_column_may_hold_weights(self, make: Callable[[Any], Any]) -> None:
        data = self.read(make({"text": ["hi", "ho"], "label": ["b", "a"], "weight": [2.0, 0.5]}), weights="weight")
        assert data.weights is not None
        assert data.weights.tolist() == [2.0, 0.5]

    def test_a_task_given_wins_over_the_names_of_a_class_label(self) -> None:
        assert self.read(self.labelled([1, 0]), task=SingleLabel(["pos", "neg"])).targets().tolist() == [0, 1]

    def test_a_class_label_gives_its_names_in_its_order(self) -> None:
        table = self.labelled([1, 0])
        data = self.read(table)
        assert (data.classes, labels_of(data)) == (["neg", "pos", "never"], ["pos", "neg"])

    def test_classes_given_win_over_those_of_the_column(self) -> None:
        assert self.read(self.labelled([1, 0]), classes=["pos", "neg"]).classes == ["pos", "neg"]

    @pytest.mark.parametrize("value", [-1, None])
    def test_a_row_that_the_hub_left_without_a_label_is_refused(self, value: int | None) -> None:
        with pytest.raises(ValueError, match="the Dataset: label 1 is missing"):
            self.read(self.labelled([1, value]))

    def labelled(self, labels: list[int | None]) -> Any:
        features = datasets.Features(
            {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos", "never"])}
        )
        return datasets.Dataset.from_dict({"text": ["a"] * len(labels), "label": labels}, features=features)

    def test_a_missing_text_in_a_table_is_refused_with_its_row(self) -> None:
        with pytest.raises(TypeError, match="text 1 is"):
            self.read(pd.DataFrame({"text": ["a", None], "label": [0, 1]}))

    def test_a_shuffled_frame_keeps_texts_and_labels_together(self) -> None:
        frame = pd.DataFrame({"text": [str(i) for i in range(20)], "label": list(range(20))}).sample(
            frac=1, random_state=1
        )
        data = self.read(frame)
        assert [int(text) for text in data.texts] == labels_of(data)


def test_texts_without_an_order_are_refused() -> None:
    with pytest.raises(TypeError, match="order"):
        TextDataset({"one", "two"}, ["a", "b"], tokenizer=BYTES)


def test_keys_and_values_of_a_dictionary_have_an_order() -> None:
    table = {"one": "b", "two": "a"}
    data = TextDataset(table.keys(), table.values(), classes={"b": 0, "a": 1}.keys(), tokenizer=BYTES)  # type: ignore[arg-type]
    assert (data.texts, data.classes) == (["one", "two"], ["b", "a"])


@pytest.mark.parametrize("labels", ["ab", {"x": 1, "y": 2}, {"x", "y"}, pd.DataFrame({"x": [1, 2]})])
def test_labels_that_are_no_list_are_refused(labels: Any) -> None:
    with pytest.raises(TypeError, match="must be a list"):
        TextDataset(["one", "two"], labels, tokenizer=BYTES)
    with pytest.raises(TypeError, match="must be a list"):
        TextDataset(["one", "two"], ["a", "b"], classes="ab", tokenizer=BYTES)


def test_parts_know_how_many_of_their_own_rows_were_cut() -> None:
    data = TextDataset(["long text", "a", "b"], tokenizer=BYTES, max_length=3)
    assert (data.n_truncated, data.subset([1, 2]).n_truncated, data.subset([0]).n_truncated) == (1, 0, 1)


def test_a_table_of_several_splits_asks_for_one() -> None:
    table = datasets.DatasetDict({"train": datasets.Dataset.from_dict({"text": ["a"], "label": [0]})})
    with pytest.raises(ValueError, match=r"table\['train'\]"):
        TextDataset.from_table(table, tokenizer=BYTES)


def test_a_tokenizer_of_another_kind_is_refused() -> None:
    with pytest.raises(TypeError, match=r"tiktoken\.Encoding"):
        TextDataset(["a"], tokenizer="gpt2")  # type: ignore[arg-type]


@pytest.mark.parametrize("unit", ["12345 ", "word.  ", "a b\n"])
def test_long_texts_are_cut_for_the_tokenizer_where_no_token_changes(
    unit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gptclf.tokenizer.bpe import byte_characters, make_encoding

    ranks = {bytes([byte]): i for i, byte in enumerate(byte_characters())}
    for token in (b" 1", b"12", b" w", b".  ", b"  ", b"or", b"\na", b" b"):
        ranks[token] = len(ranks)
    tokenizer = make_encoding(ranks)
    monkeypatch.setattr(tokens, "PIECE", 101)
    text = unit * 200
    assert TextDataset([text], tokenizer=tokenizer).ids.tolist() == tokenizer.encode_ordinary(text)
