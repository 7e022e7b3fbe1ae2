"""The same rows from every kind of source give equal data sets, and the same defects give errors of one form."""

import csv
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import pandas as pd
import pytest
from conftest import byte_gpt2, byte_tokenizer

from gptclf import TextDataset, add_classifier_head, train

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
pl = pytest.importorskip("polars")

BYTES = byte_tokenizer()
CLASSES = ["egg", "ham", "spam"]
ROWS = {
    "text": ['win, "cash"\nnow', "", *(f"message {i}; naïve" for i in range(2, 40))],
    "label": [("spam", "ham", "egg")[i % 3] for i in range(40)],
    "weight": [i / 4 for i in range(40)],
}

Table = dict[str, list[Any]]
Build = Callable[..., TextDataset]


class Source(NamedTuple):
    """A kind of source: how a data set is made of a table, and what errors call the source and a row."""

    build: Build
    named: str = r"the \w+: "
    line: Callable[[int], int] | None = None
    cells: bool = False  # holds text alone
    columns: bool = True


def from_table(make: Callable[[Table], Any]) -> Build:
    def build(table: Table, path: Path, **options: Any) -> TextDataset:
        return TextDataset.from_table(make(table), tokenizer=BYTES, **options)

    return build


def from_lists(make: Callable[[list[Any]], Any]) -> Build:
    def build(table: Table, path: Path, weights: str | None = None, **options: Any) -> TextDataset:
        labels, given = make(table["label"]), None if weights is None else make(table[weights])
        return TextDataset(make(table["text"]), labels, weights=given, tokenizer=BYTES, **options)

    return build


def from_file(suffix: str, write: Callable[[Table, Path], None], **settings: Any) -> Build:
    def build(table: Table, path: Path, **options: Any) -> TextDataset:
        file = path / f"rows{suffix}"
        write(table, file)
        return TextDataset.from_file(file, tokenizer=BYTES, **settings, **options)

    return build


def dicts(table: Table) -> list[dict[str, Any]]:
    return [dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True)]


def frame(table: Table, dtype: Any = object) -> Any:
    """A DataFrame whose columns of texts have a dtype; other values keep theirs."""
    texts = {name: all(value is None or isinstance(value, str) for value in column) for name, column in table.items()}
    series = {name: pd.Series(column, dtype=dtype if texts[name] else None) for name, column in table.items()}
    return pd.DataFrame(series)


def write_separated(delimiter: str) -> Callable[[Table, Path], None]:
    def write(table: Table, path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, delimiter=delimiter)
            writer.writerows([list(table), *zip(*table.values(), strict=True)])

    return write


def write_json_lines(table: Table, path: Path) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n\n" for row in dicts(table)), encoding="utf-8")


def stream(table: Table) -> Any:
    def rows() -> Iterator[dict[str, Any]]:
        yield from dicts(table)

    return datasets.IterableDataset.from_generator(rows)


def structured(table: Table) -> Any:
    return np.array(list(zip(*table.values(), strict=True)), dtype=[(name, object) for name in table])


FILE = r".*rows\.\w+: "
SOURCES = {
    "lists": Source(from_lists(list), named="", columns=False),
    "generators": Source(from_lists(lambda column: (value for value in column)), named="", columns=False),
    "numpy": Source(from_lists(lambda column: np.array(column, dtype=object)), named="", columns=False),
    "arrow arrays": Source(from_lists(pa.array), named="", columns=False),
    "polars series": Source(from_lists(pl.Series), named="", columns=False),
    "pandas object": Source(from_table(frame)),
    "pandas string": Source(from_table(lambda table: frame(table, "string[python]"))),
    "pandas arrow": Source(from_table(lambda table: frame(table, pd.ArrowDtype(pa.string())))),
    "pandas category": Source(from_table(lambda table: frame(table, "category"))),
    "polars": Source(from_table(pl.DataFrame)),
    "polars lazy": Source(from_table(lambda table: pl.DataFrame(table).lazy())),
    "pyarrow": Source(from_table(pa.table)),
    "pyarrow batch": Source(from_table(pa.RecordBatch.from_pydict)),
    "datasets": Source(from_table(datasets.Dataset.from_dict)),
    "datasets streamed": Source(from_table(stream)),
    "dict": Source(from_table(dict)),
    "list of dicts": Source(from_table(dicts)),
    "generator of dicts": Source(from_table(lambda table: iter(dicts(table)))),
    "structured array": Source(from_table(structured)),
    "csv": Source(from_file(".csv", write_separated(",")), FILE, lambda row: row + 2 + (row > 0), cells=True),
    "csv with semicolons": Source(
        from_file(".csv", write_separated(";"), delimiter=";"), FILE, lambda row: row + 2 + (row > 0), cells=True
    ),
    "tsv": Source(
        from_file(".tsv", write_separated("\t"), quoted=True), FILE, lambda row: row + 2 + (row > 0), cells=True
    ),
    "jsonl": Source(from_file(".jsonl", write_json_lines), FILE, lambda row: 2 * row + 1),
    "parquet": Source(from_file(".parquet", lambda table, path: pq.write_table(pa.table(table), path)), FILE),
}
WITH_COLUMNS = [name for name, source in SOURCES.items() if source.columns]


def with_value(column: str, row: int, value: Any) -> Table:
    """The rows with another value in one place."""
    return {**ROWS, column: [*ROWS[column][:row], value, *ROWS[column][row + 1 :]]}


@pytest.mark.parametrize("name", SOURCES)
class TestEverySource:
    def test_the_same_rows_are_equal_data_sets(self, name: str, tmp_path: Path) -> None:
        data = SOURCES[name].build(ROWS, tmp_path, weights="weight")
        assert data.texts == ROWS["text"]
        assert data.classes == CLASSES
        assert data.targets().tolist() == [CLASSES.index(label) for label in ROWS["label"]]
        assert data.weights is not None
        assert data.weights.tolist() == ROWS["weight"]
        expected = TextDataset(ROWS["text"], tokenizer=BYTES)
        np.testing.assert_array_equal(data.ids, expected.ids)
        np.testing.assert_array_equal(data.offsets, expected.offsets)

    @pytest.mark.parametrize("column", ["text", "label"])
    def test_a_missing_value_is_named_with_its_row_and_the_cure(self, name: str, column: str, tmp_path: Path) -> None:
        source = SOURCES[name]
        if source.cells and column == "text":
            # An empty cell is the empty text.
            assert source.build(with_value("text", 5, None), tmp_path).texts[5] == ""
            return
        line = rf" \(line {source.line(5)}\)" if source.line else ""
        rule = {"text": "every text must be a str", "label": "every text needs a label"}[column]
        form = rf"^{source.named}{column} 5{line} is missing \(\S+\); {rule}\. Give drop_missing=True to leave"
        with pytest.raises((TypeError, ValueError), match=form):
            source.build(with_value(column, 5, None), tmp_path)

    def test_missing_values_can_be_left_out(self, name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        source = SOURCES[name]
        table = with_value("label", 5, None)
        gone = {5} if source.cells else {5, 7}
        if not source.cells:
            table["text"] = with_value("text", 7, None)["text"]
        data = source.build(table, tmp_path, weights="weight", drop_missing=True)
        kept = [row for row in range(40) if row not in gone]
        assert data.texts == [ROWS["text"][row] for row in kept]
        assert data.weights is not None
        assert data.weights.tolist() == [ROWS["weight"][row] for row in kept]
        assert data.given == [ROWS["label"][row] for row in kept]
        (message,) = caplog.messages
        assert re.fullmatch(rf"{source.named}{len(gone)} of 40 rows have no text or no label and are left out", message)

    def test_texts_of_another_type_are_named_with_their_row(self, name: str, tmp_path: Path) -> None:
        source = SOURCES[name]
        table = {**ROWS, "text": list(range(40))}
        if source.cells:
            assert source.build(table, tmp_path).texts == [str(i) for i in range(40)]
            return
        line = rf" \(line {source.line(0)}\)" if source.line else ""
        with pytest.raises(TypeError, match=rf"^{source.named}text 0{line} is 0 \(int\); every text must be a str\. "):
            source.build(table, tmp_path)

    def test_an_unknown_class_is_named_with_its_row(self, name: str, tmp_path: Path) -> None:
        source = SOURCES[name]
        form = rf"^{source.named}1 label not among the classes: 'eggs' \(row 5\)\. The classes are 'egg', 'ham', 'spam'"
        with pytest.raises(ValueError, match=form):
            source.build(with_value("label", 5, "eggs"), tmp_path, classes=CLASSES)

    @pytest.mark.parametrize(("rows", "message"), [(0, "train_set is empty"), (1, "every row .* has the same label")])
    def test_no_row_and_one_row_are_data_sets_that_cannot_train(
        self, name: str, rows: int, message: str, tmp_path: Path
    ) -> None:
        table = {column: values[:rows] for column, values in ROWS.items()}
        data = SOURCES[name].build(table, tmp_path, classes=CLASSES)
        assert (data.texts, data.classes) == (table["text"], CLASSES)
        clf = add_classifier_head(byte_gpt2(), classes=CLASSES, seed=1)
        with pytest.raises(ValueError, match=message):
            train(clf, data, epochs=1, progress=False)

    @pytest.mark.parametrize("column", ["text", "label", "weights"])
    def test_a_column_that_is_not_there_is_named_with_those_that_are(
        self, name: str, column: str, tmp_path: Path
    ) -> None:
        source = SOURCES[name]
        if source.columns:
            form = (
                rf"^{source.named.removesuffix(': ')} has no column 'body'; it has \['text', 'label', 'weight'\]: name"
            )
            with pytest.raises(ValueError, match=form):
                source.build(ROWS, tmp_path, **{column: "body"})

    @pytest.mark.parametrize("column", ["text", "label", "weights"])
    def test_a_name_of_several_columns_is_refused(self, name: str, column: str, tmp_path: Path) -> None:
        source = SOURCES[name]
        if source.columns:
            with pytest.raises(TypeError, match=rf"^{column} is \['text', 'label'\]; it must name one column: join"):
                source.build(ROWS, tmp_path, **{column: ["text", "label"]})
