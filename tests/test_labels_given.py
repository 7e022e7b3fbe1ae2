"""Labels in every form that people hold them: ordered, missing, several per text, measurements, the cells of a file."""

from collections.abc import Callable
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import byte_gpt2, byte_tokenizer

from gptclf import Batches, MultiLabel, Regression, TextDataset, add_classifier_head, evaluate, split, train
from gptclf.features.rows import FeatureSet
from gptclf.features.store import StoredRow

pa = pytest.importorskip("pyarrow")
pl = pytest.importorskip("polars")
sparse = pytest.importorskip("scipy.sparse")

BYTES = byte_tokenizer()


def read(path: Path, content: str, **settings: Any) -> TextDataset:
    path.write_text(content, encoding="utf-8", newline="")
    return TextDataset.from_file(path, tokenizer=BYTES, **settings)


def table(source: Any, **settings: Any) -> TextDataset:
    return TextDataset.from_table(source, tokenizer=BYTES, **settings)


def lists(labels: Any, **settings: Any) -> TextDataset:
    return TextDataset(["a", "b"], labels, tokenizer=BYTES, **settings)


class Mood(Enum):
    LOW = 1
    MID = 0
    HIGH = 2


LEVELS = ["low", "mid", "high"]
CATEGORICAL = pd.Categorical(["mid", "low"], categories=LEVELS, ordered=True)
ORDERED = {
    "categorical": CATEGORICAL,
    "series": pd.Series(CATEGORICAL),
    "index": pd.CategoricalIndex(CATEGORICAL),
    "polars": pl.Series(["mid", "low"], dtype=pl.Enum(LEVELS)),
    "arrow": pa.array(CATEGORICAL),
    "arrow chunks": pa.chunked_array([pa.array(CATEGORICAL), pa.array(CATEGORICAL[:0])]),
}


class TestOrder:
    @pytest.mark.parametrize("name", ORDERED)
    def test_ordered_categories_keep_their_order_and_unused_classes(self, name: str) -> None:
        data = lists(ORDERED[name])
        assert data.classes == LEVELS
        assert data.targets().tolist() == [1, 0]
        assert lists(ORDERED[name], classes=["mid", "low"]).classes == ["mid", "low"]

    @pytest.mark.parametrize(
        "make", [pd.DataFrame, dict, pl.DataFrame, pa.table], ids=["pandas", "dict", "polars", "arrow"]
    )
    def test_they_do_so_in_tables(self, make: Callable[[Any], Any]) -> None:
        label = ORDERED["polars" if make is pl.DataFrame else "categorical"]
        assert table(make({"text": ["a", "b"], "label": label})).classes == LEVELS

    def test_they_do_so_in_parquet(self, tmp_path: Path) -> None:
        pd.DataFrame({"text": ["a", "b"], "label": CATEGORICAL}).to_parquet(tmp_path / "a.parquet")
        pl.DataFrame({"text": ["a", "b"], "label": ORDERED["polars"]}).write_parquet(tmp_path / "b.parquet")
        for name in ("a", "b"):
            assert TextDataset.from_file(tmp_path / f"{name}.parquet", tokenizer=BYTES).classes == LEVELS

    def test_members_of_an_enum_are_in_its_order_with_those_that_do_not_occur(self) -> None:
        data = lists([Mood.HIGH, Mood.LOW])
        assert data.classes == list(Mood)
        assert data.targets().tolist() == [2, 0]
        assert lists([Mood.MID, Mood.LOW], classes=Mood).targets().tolist() == [1, 0]
        assert lists([Mood.MID, "x"]).classes == [Mood.MID, "x"]

    @pytest.mark.parametrize(
        "labels",
        [pd.Categorical(["b", "a"], categories=["c", "b", "a"]), pa.array(["b", "a"]).dictionary_encode()],
        ids=["pandas", "arrow"],
    )
    def test_categories_without_an_order_are_a_way_to_store_labels(self, labels: Any) -> None:
        assert lists(labels).classes == ["a", "b"]

    def test_a_missing_category_is_a_missing_label(self) -> None:
        with pytest.raises(ValueError, match=r"label 1 is missing \(nan\)"):
            lists(pd.Categorical(["low", None], categories=LEVELS, ordered=True))


MISSING = {
    "None": ["x", None],
    "nan": ["x", float("nan")],
    "NaT": [pd.Timestamp(0), pd.NaT],
    "NA": ["x", pd.NA],
    "masked": np.ma.masked_array([1, 2], mask=[False, True]),
    "decimal": [Decimal(1), Decimal("nan")],
    "datetime64": np.array(["2020-01-01", "NaT"], dtype="datetime64[s]"),
    "Int64": pd.array([1, None], dtype="Int64"),
    "arrow": pa.array(["x", None]),
    "polars": pl.Series(["x", None]),
    "tensor": torch.tensor([1.0, float("nan")]),
}


@pytest.mark.parametrize("name", MISSING)
def test_a_missing_label_has_one_meaning(name: str) -> None:
    with pytest.raises(ValueError, match=r"^label 1 is missing \(\S+\); every text needs a label"):
        lists(MISSING[name])
    assert lists(MISSING[name], drop_missing=True).texts == ["a"]


def test_missing_rows_are_all_named_up_to_six() -> None:
    with pytest.raises(ValueError, match=r"^label 0 is missing \(None\), as are rows 1, 2, 3, 4, 5, \.\.\.; every"):
        TextDataset(["a"] * 8, [None] * 8, tokenizer=BYTES)
    with pytest.raises(TypeError, match=r"^text 0 is missing \(None\), as are rows 1; every"):
        TextDataset([None, None], tokenizer=BYTES)  # type: ignore[list-item]


def test_texts_to_predict_may_be_left_out_as_well() -> None:
    assert TextDataset(["a", None], tokenizer=BYTES, drop_missing=True).texts == ["a"]  # type: ignore[list-item]


def test_nothing_left_out_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    lists([0, 1], drop_missing=True)
    assert not caplog.messages


def test_drop_missing_is_true_or_false() -> None:
    with pytest.raises(TypeError, match="drop_missing is 1; it must be True or False"):
        lists([0, 1], drop_missing=1)


SEVERAL = {
    "lists": [["x", "y"], ["x"]],
    "sets": [{"x"}, {"y"}],
    "tuples": [("x", "y"), ("x",)],
    "frozensets": [frozenset("xy"), frozenset("x")],
    "numpy": np.eye(2),
    "torch": torch.eye(2),
    "rows of numpy": list(np.eye(2)),
    "sparse": sparse.csr_matrix(np.eye(2)),
    "pandas": pd.DataFrame(np.eye(2)),
    "polars": pl.DataFrame({"x": [0, 1], "y": [1, 0]}),
    "polars lists": pl.Series([["x"], ["x", "y"]]),
    "arrow lists": pa.array([["x"], ["x", "y"]]),
    "series of lists": pd.Series([["x"], ["x", "y"]]),
}


class TestSeveralLabels:
    @pytest.mark.parametrize("name", SEVERAL)
    def test_without_a_task_they_are_an_error_that_names_it(self, name: str) -> None:
        with pytest.raises(
            TypeError, match=r"(?s)^label.*give task=MultiLabel\(\[\.\.\.\]\), for numbers Regression\(\)$"
        ):
            lists(SEVERAL[name])

    @pytest.mark.parametrize("name", SEVERAL)
    def test_with_a_task_they_are_understood(self, name: str) -> None:
        labels = SEVERAL[name]
        if name == "pandas":
            labels = labels.set_axis(["x", "y"], axis="columns")
        assert lists(labels, task=MultiLabel(["x", "y"])).targets().sum() >= 2

    def test_tuples_that_are_labels_are_named_as_classes(self) -> None:
        assert lists([("b", 1), ("a", 2)], classes=[("a", 2), ("b", 1)]).targets().tolist() == [1, 0]
        with pytest.raises(ValueError, match=r"\('c',\) \(row 1\)\. The classes .*task=MultiLabel"):
            lists([("b", 1), ("c",)], classes=[("a", 2), ("b", 1)])

    @pytest.mark.parametrize("make", [pd.DataFrame, pl.DataFrame], ids=["pandas", "polars"])
    def test_columns_of_a_table_are_matched_to_the_classes_by_name(self, make: Callable[[Any], Any]) -> None:
        frame = make({"y": [1, 0], "x": [0, 0]})
        assert lists(frame, task=MultiLabel(["x", "y"])).targets().tolist() == [[0, 1], [0, 0]]
        assert lists(frame, task=Regression(2)).targets().tolist() == [[1, 0], [0, 0]]
        with pytest.raises(ValueError, match=r"with the columns \['y', 'x'\], but the classes are \['x', 'z'\]"):
            lists(frame, task=MultiLabel(["x", "z"]))


class TestMeasurements:
    @pytest.mark.parametrize(
        "labels",
        [
            [0.25, 0.5],
            [1, 0.5],
            np.array([0.5, 1], dtype=np.float16),
            pd.Series([0.5, 1.5]),
            pl.Series([0.5, 1.5]),
            [Decimal("0.5"), Decimal(2)],
            [Fraction(1, 3), 1],
        ],
        ids=["list", "mixed", "numpy", "pandas", "polars", "decimal", "fraction"],
    )
    def test_without_a_task_they_are_an_error_that_names_it(self, labels: Any) -> None:
        with pytest.raises(ValueError, match=r"label \d is .*measurement.*task=Regression\(\), or .*classes=\["):
            lists(labels)

    @pytest.mark.parametrize("labels", [[1.0, 2.0], [0.5, "x"], ["0.5", "1.5"]], ids=["whole", "mixed", "text"])
    def test_whole_numbers_and_texts_are_classes(self, labels: Any) -> None:
        assert lists(labels).classes == labels

    def test_classes_that_are_named_may_be_any_numbers(self) -> None:
        assert lists([0.5, 0.25], classes=[0.25, 0.5]).targets().tolist() == [1, 0]

    def test_those_of_a_file_are_seen_and_read(self, tmp_path: Path) -> None:
        content = "text,label\na,0.25\nb,-1e2\n"
        with pytest.raises(ValueError, match=r"a\.csv: label 0 is '0\.25', a measurement rather than a class"):
            read(tmp_path / "a.csv", content)
        data = read(tmp_path / "a.csv", content, task=Regression())
        assert data.targets().tolist() == [[0.25], [-100.0]]
        assert read(tmp_path / "a.csv", content, classes=["0.25", "-1e2"]).targets().tolist() == [0, 1]
        with pytest.raises(TypeError, match=r"a\.csv: label 0 is the text 'much', not a number"):
            read(tmp_path / "a.csv", "text,label\na,much\n", task=Regression())


class TestCells:
    @pytest.mark.parametrize(
        ("cells", "classes"), [("01", [0, 1]), (["True", "False"], [True, False]), (["0.5", "2.0"], [0.5, 2.0])]
    )
    def test_a_label_is_the_number_among_the_classes_that_it_writes(
        self, cells: Any, classes: list[Any], tmp_path: Path
    ) -> None:
        data = read(tmp_path / "a.csv", f"text,label\na,{cells[1]}\nb,{cells[0]}\n", classes=classes)
        assert data.classes == classes
        assert data.targets().tolist() == [1, 0]

    def test_a_class_that_is_the_text_itself_comes_first(self, tmp_path: Path) -> None:
        assert read(tmp_path / "a.csv", "text,label\na,1\n", classes=[1, "1"]).targets().tolist() == [1]

    def test_it_is_said_once_for_all_parts_of_a_file(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        rows = "".join(f"message {i},{i % 2}\n" for i in range(40))
        whole = read(tmp_path / "a.csv", f"text,label\n{rows}")
        assert whole.classes == ["0", "1"]
        train_set, val_set = split(whole, (0.5, 0.5), seed=1)
        clf = add_classifier_head(byte_gpt2(), num_classes=2, seed=1)
        train(clf, train_set, val_set, epochs=1, progress=False)
        result = evaluate(clf, val_set)
        assert sorted(set(result.targets)) == [0, 1]
        assert [m for m in caplog.messages if "labels are" in m] == [
            f"a part of {tmp_path / 'a.csv'}: labels are text; '0' is taken as 0, and so on"
        ]

    def test_other_sources_have_types_of_their_own(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="1 and '1' are different labels"):
            read(tmp_path / "a.jsonl", '{"text": "a", "label": "1"}', classes=[0, 1])
        with pytest.raises(ValueError, match="1 and '1' are different labels"):
            table({"text": ["a"], "label": ["1"]}, classes=[0, 1])


def test_an_error_names_the_set_and_the_source_and_the_row(tmp_path: Path) -> None:
    clf = add_classifier_head(byte_gpt2(), classes=["ham", "spam"], seed=1)
    good, eggs = lists(["ham", "spam"]), lists(["ham", "eggs"])
    form = r"^{}: 1 label not among the classes: 'eggs' \(row 1\)"
    with pytest.raises(ValueError, match=form.format("val_set")):
        train(clf, good, eggs, epochs=1, progress=False)
    with pytest.raises(ValueError, match=form.format("train_set")):
        train(clf, eggs, good, epochs=1, progress=False)
    file = read(tmp_path / "a.csv", "text,label\na,ham\nb,eggs\n")
    with pytest.raises(ValueError, match=form.format(r"val_set: .*a\.csv")):
        train(clf, good, file, epochs=1, progress=False)
    with pytest.raises(ValueError, match=r"^the data set: a part of .*a\.csv: 1 label .* 'eggs' \(row 0\)"):
        evaluate(clf, file.subset([1]))
    topics = add_classifier_head(byte_gpt2(), task=MultiLabel(["x", "y"]), seed=1)
    several = lists([["x"], ["y"]], task=topics.task)
    with pytest.raises(TypeError, match=r"^val_set: label 0 is 'ham' \(str\); it must be a list of classes"):
        train(topics, several, good, epochs=1, progress=False)


class TestRows:
    @pytest.fixture
    def features(self) -> FeatureSet:
        data = TextDataset(["a", "bb", "ccc"], [0, 1, 0], tokenizer=BYTES)
        return FeatureSet(data, [StoredRow(torch.full((n, 2), float(n)), 0, n) for n in (1, 2, 3)], 2)

    def test_features_take_row_numbers_as_numpy_does(self, features: FeatureSet) -> None:
        whole = features.packed([0, 1, 2])
        torch.testing.assert_close(features.packed([-1]), whole[3:])
        torch.testing.assert_close(features.packed(np.array([True, False, True])), whole[[0, 3, 4, 5]])
        torch.testing.assert_close(features.padded(np.array([False, True, False])), whole[None, 1:3])
        assert features.packed([]).shape == (0, 2)
        assert features.padded([]).shape == (0, 0, 2)
        for use in (features.packed, features.padded, features.subset):
            for row in (3, -4):
                with pytest.raises(IndexError, match=f"there is no row {row}; the data set has 3 rows"):
                    use([row])

    @pytest.mark.parametrize("row", [True, 0.0, "0", None, [0]])
    def test_one_row_is_chosen_by_an_integer(self, row: Any) -> None:
        with pytest.raises(TypeError, match=r"index is .*; it must be an integer"):
            lists([0, 1]).row(row)

    @pytest.mark.parametrize("epoch", [-1, 1.0, True])
    def test_an_epoch_is_counted_from_0(self, epoch: Any) -> None:
        with pytest.raises((TypeError, ValueError), match=r"epoch is .*; it must be an integer of at least 0"):
            Batches(lists([0, 1]), seed=1).epoch(epoch)


def test_parts_of_a_split_come_with_their_row_numbers() -> None:
    data = TextDataset([str(i) for i in range(20)], [0, 1] * 10, tokenizer=BYTES)
    parts, rows = split(data, (0.7, 0.3), seed=5, return_indices=True)
    assert [part.texts for part in parts] == [[str(i) for i in numbers] for numbers in rows]
    assert [part.texts for part in split(data, (0.7, 0.3), seed=5)] == [part.texts for part in parts]
    assert sorted(np.concatenate(rows).tolist()) == list(range(20))
    with pytest.raises(TypeError, match="return_indices is 1; it must be True or False"):
        split(data, seed=5, return_indices=1)  # type: ignore[call-overload]


def test_arrow_and_polars_columns_are_lists_of_texts() -> None:
    for texts in (pa.array(["a", "b"]), pa.chunked_array([["a"], ["b"]]), pl.Series(["a", "b"])):
        assert TextDataset(texts, tokenizer=BYTES).texts == ["a", "b"]
    rows = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]})
    assert TextDataset(rows["text"], rows["label"], tokenizer=BYTES).targets().tolist() == [1, 0]


def test_labels_that_mostly_occur_once_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    texts, labels = [f"text {i}" for i in range(20)], ["ham", "spam"] * 10
    TextDataset(texts, labels, tokenizer=BYTES)
    TextDataset(texts[:19], texts[:19], tokenizer=BYTES)  # few rows
    assert not caplog.records
    TextDataset(labels, texts, tokenizer=BYTES)
    assert "20 of 20 rows have a label of their own; are text and label swapped?" in caplog.text
