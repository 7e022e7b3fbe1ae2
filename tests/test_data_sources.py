"""The same rows from every kind of source give equal data sets, and the same defects give errors of one form."""

import csv
import io
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import pandas as pd
import pytest
from conftest import byte_gpt2, byte_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from gptclf import MultiLabel, TextDataset, add_classifier_head, train
from gptclf.data.separated import separated_rows

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
pl = pytest.importorskip("polars")

Table = dict[str, list[Any]]

BYTES = byte_tokenizer()
CLASSES = ["egg", "ham", "spam"]
ROWS: Table = {
    "text": ['win, "cash"\nnow', "", *(f"message {i}; naïve" for i in range(2, 40))],
    "label": [("spam", "ham", "egg")[i % 3] for i in range(40)],
    "weight": [i / 4 for i in range(40)],
}

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
        form = rf"^{source.named}{column} 5{line} is missing \(\S+\); {rule}\. Leave such rows out"
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


def read(path: Path, content: str, **settings: Any) -> TextDataset:
    path.write_text(content, encoding="utf-8", newline="")
    return TextDataset.from_file(path, tokenizer=BYTES, **settings)


def table(source: Any, **settings: Any) -> TextDataset:
    return TextDataset.from_table(source, tokenizer=BYTES, **settings)


# Characters over which a reader of separated values may stumble.
characters = st.text('ab",;\r\n\x00é\u2028 ', max_size=30)


class TestSeparatedValues:
    @given(text=characters, quoted=st.booleans(), delimiter=st.sampled_from(",;b"))
    @settings(max_examples=500, deadline=None)
    def test_rows_are_those_of_pythons_reader_or_both_refuse(self, text: str, quoted: bool, delimiter: str) -> None:
        lines = io.StringIO(text, newline="")
        dialect: dict[str, Any] = {"quoting": csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE, "strict": quoted}
        theirs = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, **dialect)
        try:
            expected = [row for row in theirs if row]
        except csv.Error:
            with pytest.raises(ValueError, match=r"a\.csv, line \d+: .*quote"):
                list(separated_rows(lines, delimiter, quoted=quoted, source="a.csv"))
        else:
            found = list(separated_rows(lines, delimiter, quoted=quoted, source="a.csv"))
            assert [row for _, row in found] == expected

    def test_a_row_is_numbered_by_its_first_line(self) -> None:
        lines = io.StringIO('a\n\n"b\r\nc"\rd', newline="")
        assert list(separated_rows(lines, ",", quoted=True, source="")) == [(1, ["a"]), (3, ["b\r\nc"]), (5, ["d"])]

    @pytest.mark.parametrize("content", ["label,text\nham,a, b\n", "text,label\nhi, there,ham\n", "text\na,b\n"])
    def test_surplus_fields_are_refused_with_their_line_and_the_cure(self, content: str, tmp_path: Path) -> None:
        message = r'a\.csv, line 2: \d fields, but the header has \d; put " around a text .* delimiter='
        with pytest.raises(ValueError, match=message):
            read(tmp_path / "a.csv", content, label="label" if "label" in content else None)

    @pytest.mark.parametrize("rows", [["ham\tone", "spam\ttwo\tthree"], ["ham\tone\ttwo", "spam\tthree"]])
    def test_without_a_header_all_rows_have_as_many_fields_as_the_first(self, rows: list[str], tmp_path: Path) -> None:
        message = r"a\.tsv, line 2: \d fields, but the first row has \d; (complete the row|give quoted=True and put)"
        with pytest.raises(ValueError, match=message):
            read(tmp_path / "a.tsv", "\n".join(rows), text=1, label=0)

    def test_a_row_may_lack_columns_that_are_not_read(self, tmp_path: Path) -> None:
        assert read(tmp_path / "a.csv", "text,label,note\nhi,ham\n").texts == ["hi"]

    @pytest.mark.parametrize("delimiter", [";", "\t", "|"])
    def test_another_delimiter_is_seen_in_the_first_row_and_can_be_given(self, delimiter: str, tmp_path: Path) -> None:
        path, content = tmp_path / "a.csv", f"text{delimiter}label\nhi, ho{delimiter}ham\n"
        advice = re.escape(f"give delimiter={delimiter!r}")
        with pytest.raises(ValueError, match=rf"no column 'text'; it has .*{advice}"):
            read(path, content)
        with pytest.raises(ValueError, match=rf"no column 1; it has \[0\].*{advice}"):
            read(path, content, text=0, label=1)
        assert read(path, content, delimiter=delimiter).texts == ["hi, ho"]

    @pytest.mark.parametrize(
        ("delimiter", "error"),
        [("", ValueError), (";;", ValueError), ('"', ValueError), ("\n", ValueError), (5, TypeError)],
    )
    def test_a_delimiter_is_one_character(self, delimiter: Any, error: type[Exception], tmp_path: Path) -> None:
        with pytest.raises(error, match=f"delimiter is {delimiter!r}; it must be one character".replace("\\", "\\\\")):
            read(tmp_path / "a.csv", "text,label\n", delimiter=delimiter)

    def test_the_limit_of_the_csv_module_is_neither_obeyed_nor_touched(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = csv.field_size_limit(10)
        try:
            with monkeypatch.context() as patch:
                patch.setattr(csv, "field_size_limit", None)
                data = read(tmp_path / "a.csv", f'text,label\n"{"long, " * 50}",ham\n')
            assert data.texts == ["long, " * 50]
            assert csv.field_size_limit() == 10
        finally:
            csv.field_size_limit(before)

    def test_a_column_twice_is_refused(self, tmp_path: Path) -> None:
        for name, content in (("a.csv", "text,text,label\na,b,ham\n"), ("a.tsv", "label\ttext\tlabel\nham\ta\tspam\n")):
            with pytest.raises(ValueError, match=r"has 2 columns '(text|label)'; it has .*: rename all but one"):
                read(tmp_path / name, content)

    @pytest.mark.parametrize("position", [2, -1])
    def test_a_position_that_is_not_there_is_named(self, position: int, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=rf"a\.csv has no column {position}; it has \[0, 1\]: name others"):
            read(tmp_path / "a.csv", "ham,hi\n", text=position, label=0)

    def test_an_encoding_that_does_not_exist_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(
            ValueError, match=r"encoding is 'utf-9', which Python does not know \(unknown encoding: utf-9\)"
        ):
            read(tmp_path / "a.csv", "text,label\n", encoding="utf-9")

    def test_rows_of_pythons_own_reader_are_cells_as_well(self) -> None:
        rows = csv.DictReader(["text,label", "a,1", "b,"])
        assert table(rows, classes=[0, 1], drop_missing=True).targets().tolist() == [1]
        with pytest.raises(ValueError, match=r"the DictReader: row 0 has the surplus fields \['c'\]; put"):
            table(csv.DictReader(["text,label", "a,b,c"]))

    def test_a_short_row_of_a_reader_has_no_label(self) -> None:
        lines = ["text,label", "a,1", "b", "c,0", "d,"]
        with pytest.raises(ValueError, match=r"the DictReader: label 1 is missing \(None\), as are rows 3; every"):
            table(csv.DictReader(lines))
        assert table(csv.DictReader(lines), drop_missing=True).texts == ["a", "c"]


class TestOtherFiles:
    @pytest.mark.parametrize("setting", [{"delimiter": ";"}, {"quoted": True}])
    def test_what_other_formats_do_not_have_is_refused(self, setting: dict[str, Any], tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"are for \.csv and \.tsv files, not for .*a\.jsonl"):
            read(tmp_path / "a.jsonl", "", **setting)

    def test_their_columns_have_names(self, tmp_path: Path) -> None:
        with pytest.raises(TypeError, match=r"a\.jsonl are text=1, label=0; they must all be names$"):
            read(tmp_path / "a.jsonl", "", text=1, label=0)

    @pytest.mark.parametrize(
        "line", ['{"text": "a", "text": "b"}', "[" * 100_000, '{"text": 1' + "0" * 5000 + "}", '"text"'], ids=len
    )
    def test_a_line_that_has_not_one_meaning_is_refused(self, line: str, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"a\.jsonl, line 2: (not JSON|.*not an object)"):
            read(tmp_path / "a.jsonl", '{"text": "a"}\n' + line, label=None)

    def test_a_key_that_only_some_lines_have_is_a_missing_value(self, tmp_path: Path) -> None:
        content = '{"text": "a"}\n\n{"text": "b", "label": NaN}\n{"text": "c", "label": "ham"}\n'
        with pytest.raises(ValueError, match=r"a\.jsonl: label 0 \(line 1\) is missing \(None\), as are rows 1; every"):
            read(tmp_path / "a.jsonl", content)
        assert read(tmp_path / "a.jsonl", content, drop_missing=True).texts == ["c"]

    def test_what_is_not_parquet_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"a\.parquet cannot be read as Parquet \("):
            read(tmp_path / "a.parquet", "text,label")
        with pytest.raises(FileNotFoundError, match=r"b\.parquet does not exist"):
            TextDataset.from_file(tmp_path / "b.parquet", tokenizer=BYTES)

    @pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
    def test_a_pipe_is_refused_and_not_waited_for(self, suffix: str, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / f"a{suffix}")
        with pytest.raises(OSError, match="it must be a regular file"):
            TextDataset.from_file(tmp_path / f"a{suffix}", tokenizer=BYTES)

    def test_a_column_of_parquet_twice_is_refused(self, tmp_path: Path) -> None:
        pq.write_table(pa.table([["a"], ["b"], ["x"]], names=["text", "text", "label"]), tmp_path / "a.parquet")
        with pytest.raises(ValueError, match=r"a\.parquet has 2 columns 'text'"):
            TextDataset.from_file(tmp_path / "a.parquet", tokenizer=BYTES)


class TestTables:
    @pytest.mark.parametrize(
        "source",
        [
            pd.DataFrame([["a", "b", "x"]], columns=["text", "text", "label"]),
            pa.table([["a"], ["b"], ["x"]], names=["text", "text", "label"]),
        ],
        ids=["pandas", "pyarrow"],
    )
    def test_a_column_twice_is_refused(self, source: Any) -> None:
        with pytest.raises(ValueError, match=r"the \w+ has 2 columns 'text'; it has .*: rename all but one"):
            table(source)

    def test_a_level_of_several_columns_is_not_a_column(self) -> None:
        frame = pd.DataFrame(
            [["a", "b", "x"]], columns=pd.MultiIndex.from_tuples([("text", 1), ("text", 2), ("label", 1)])
        )
        with pytest.raises(ValueError, match="has no column 'text'; it has"):
            table(frame)
        assert table(frame, text=("text", 2), label=("label", 1)).texts == ["b"]

    @pytest.mark.parametrize("make", [list, iter], ids=["list", "iterator"])
    def test_rows_that_are_not_mappings_are_refused(self, make: Any) -> None:
        with pytest.raises(TypeError, match=r"row 1 is \('b', 1\) \(tuple\); each row must be a mapping"):
            table(make([{"text": "a", "label": 0}, ("b", 1)]))

    @pytest.mark.parametrize("source", [None, 5, object()], ids=["None", "int", "object"])
    def test_what_is_not_a_table_is_refused(self, source: Any) -> None:
        with pytest.raises(TypeError, match=r"table is a \w+; it must be a DataFrame, an Arrow table"):
            table(source)

    def test_a_path_is_pointed_to_from_file(self, tmp_path: Path) -> None:
        for path in ("a.csv", tmp_path / "a.csv"):
            with pytest.raises(TypeError, match=r"call TextDataset\.from_file"):
                table(path)

    def test_a_column_that_is_one_string_is_refused(self) -> None:
        with pytest.raises(TypeError, match="the dict: texts is a single str"):
            table({"text": "abc", "label": [1, 2, 3]})

    def test_columns_of_different_lengths_are_refused(self) -> None:
        with pytest.raises(ValueError, match="the dict: 2 texts but 1 labels"):
            table({"text": ["a", "b"], "label": [1]})

    def test_a_stream_is_read_once(self) -> None:
        passes = []

        class Stream:
            def __iter__(self) -> Iterator[dict[str, Any]]:
                passes.append(1)
                return iter([{"text": f"{len(passes)} {i}", "label": f"{len(passes)} {i}", "w": i} for i in range(4)])

        data = table(Stream(), weights="w")
        assert passes == [1]
        assert data.texts == data.given == ["1 0", "1 1", "1 2", "1 3"]

    def test_texts_and_labels_of_a_transform_that_draws_are_of_one_pass(self) -> None:
        drawn = datasets.Dataset.from_dict({"n": list(range(50))})
        generator = np.random.default_rng(1)

        def draw(batch: Any) -> Any:
            words = [f"{generator.random()}" for _ in batch["n"]]
            return {"text": words, "label": words}

        data = table(drawn.with_transform(draw), text="text")
        assert data.texts == data.given

    def test_class_names_stand_for_their_numbers_in_lists_as_well(self) -> None:
        features = datasets.Features(
            {"text": datasets.Value("string"), "label": datasets.List(datasets.ClassLabel(names=["neg", "pos"]))}
        )
        rows = {"text": ["a", "b"], "label": [[0, 1], [1]]}
        data = table(datasets.Dataset.from_dict(rows, features=features), task=MultiLabel(["pos", "neg"]))
        assert data.targets().tolist() == [[1, 1], [1, 0]]

    @pytest.mark.parametrize("form", ["numpy", "torch"])
    def test_class_numbers_may_come_as_arrays(self, form: str) -> None:
        features = datasets.Features(
            {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])}
        )
        data = table(
            datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, -1]}, features=features).with_format(form),
            drop_missing=True,
        )
        assert (data.given, data.classes) == (["pos"], ["neg", "pos"])

    def test_columns_may_have_the_names_of_a_tables_own_attributes(self) -> None:
        names = ["features", "collect", "column_names", "columns", "keys", "dtype"]
        frame = pd.DataFrame({name: ["a", "b"] for name in names} | {"label": [0, 1]})
        for name in names:
            assert table(frame, text=name).texts == ["a", "b"]
