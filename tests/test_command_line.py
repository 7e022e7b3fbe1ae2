"""The command line does what the library's own calls do, and says in a line what it cannot do."""

import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from gptclf import (
    GPT2,
    EarlyStopping,
    Recipe,
    SingleLabel,
    TextDataset,
    add_classifier_head,
    apply_lora,
    evaluate,
    explain,
    freeze,
    load_gpt2,
    load_model,
    predict,
    predict_logits,
    predict_proba,
    predict_stream,
    save_model,
    split,
    train,
)
from gptclf.cli import predict as predicting
from gptclf.cli import serve as serving
from gptclf.cli import train as training
from gptclf.cli.main import main
from gptclf.cli.rows import Format, Rows
from gptclf.training.run import Callback, Run

HAM = ["see you at six", "ok", "", "the report is, as ever, late", 'he said "no"', "line one\nline two", "grüße 😀"]
SPAM = ["you won a prize", "claim your reward now", "free entry; call 0800", "win cash now"]
BODIES = [*HAM, *SPAM] * 3
FOLDERS = ["ham"] * len(HAM) + ["spam"] * len(SPAM)
QUICK = ["--model", "nano", "--epochs", "1", "--lr", "1e-3"]


class Ran(NamedTuple):
    code: int
    out: str
    err: str


Run_ = Callable[..., Ran]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run_:
    def ran(*argv: object, stdin: str | bytes = "") -> Ran:
        given = stdin if isinstance(stdin, bytes) else stdin.encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given)))
        code = main([str(word) for word in argv])
        return Ran(code, *capsys.readouterr())

    return ran


def write_csv(path: Path, columns: dict[str, list[str]], delimiter: str = ",", encoding: str = "utf-8") -> Path:
    with path.open("w", newline="", encoding=encoding) as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    write_csv(folder / "data.csv", {"id": [*map(str, range(33))], "body": BODIES, "folder": FOLDERS * 3})
    return folder


@pytest.fixture(scope="module")
def data(work: Path) -> Path:
    return work / "data.csv"


@pytest.fixture(scope="module")
def model(work: Path, data: Path) -> Path:
    columns, before = ["--text", "body", "--label", "folder"], torch.get_num_threads()
    torch.set_num_threads(1)  # as in the tests: another number of threads may round otherwise
    try:
        assert main(["train", str(data), *columns, *QUICK, "--out", str(work / "model"), "--quiet"]) == 0
    finally:
        torch.set_num_threads(before)
    return work / "model"


COLUMNS = ["--text", "body", "--label", "folder"]


def weights(model: GPT2) -> dict[str, Any]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def assert_same(found: GPT2, expected: GPT2) -> None:
    ours, theirs = weights(found), weights(expected)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


class TestTraining:
    def trained(self, data: Path, recipe: Recipe, **task: Any) -> tuple[GPT2, TextDataset]:
        gpt2 = load_gpt2("nano")
        rows = TextDataset.from_file(data, text="body", label="folder", tokenizer=gpt2.tokenizer)
        clf = add_classifier_head(gpt2, task=SingleLabel(["ham", "spam"], **task), seed=recipe.seed)
        return clf, rows

    def test_the_weights_are_those_of_train(self, data: Path, model: Path) -> None:
        recipe = Recipe(epochs=1, lr=1e-3)
        clf, rows = self.trained(data, recipe)
        train(clf, rows, recipe=recipe, progress=False)
        assert_same(load_model(model), clf)

    def test_with_other_flags_too(self, run: Run_, data: Path, tmp_path: Path) -> None:
        flags = "--batch-size 4 --schedule cosine --clip 1 --seed 7 --trainable head --pooling mean --max-length 4"
        task = "--class-weight spam=3 --label-smoothing 0.1 --valid-fraction 0.3 --early-stopping 2 --epochs 3"
        argv = ["train", data, *COLUMNS, "--model", "nano", *flags.split(), *task.split(), "--out", tmp_path / "m"]
        code, out, err = run(*argv)
        recipe = Recipe(epochs=3, batch_size=4, schedule="cosine", clip=1.0, seed=7)
        gpt2 = load_gpt2("nano")
        rows = TextDataset.from_file(data, text="body", label="folder", tokenizer=gpt2.tokenizer, max_length=4)
        train_set, val_set = split(rows, (0.7, 0.3), seed=7)
        task_ = SingleLabel(["ham", "spam"], class_weight={"spam": 3}, label_smoothing=0.1)
        clf = add_classifier_head(gpt2, task=task_, pooling="mean", seed=7)
        freeze(clf, trainable="head")
        train(clf, train_set, val_set, recipe=recipe, callbacks=[EarlyStopping(2)], progress=False)
        assert code == 0
        assert_same(load_model(tmp_path / "m"), clf)
        assert out == f"{evaluate(clf, val_set)}\n"
        assert "saved to" in err

    def test_with_factors_it_is_an_adapter(self, run: Run_, data: Path, tmp_path: Path) -> None:
        argv = ["train", data, *COLUMNS, *QUICK, "--lora-rank", 2, "--out", tmp_path / "adapter"]
        assert run(*argv).code == 0
        clf, rows = self.trained(data, Recipe())
        clf = apply_lora(clf, rank=2, seed=123)
        train(clf, rows, recipe=Recipe(epochs=1, lr=1e-3), progress=False)
        np.testing.assert_array_equal(
            predict_proba(load_model(tmp_path / "adapter"), BODIES), predict_proba(clf, BODIES)
        )

    def test_the_settings_beside_the_model_give_it_again(
        self, run: Run_, data: Path, model: Path, tmp_path: Path
    ) -> None:
        settings = model / "train.toml"
        assert run("train", "--config", settings, "--out", tmp_path / "again").code == 0
        assert_same(load_model(tmp_path / "again"), load_model(model))
        assert settings.read_text() == (tmp_path / "again" / "train.toml").read_text().replace(
            str(tmp_path / "again"), str(model)
        )

    def test_a_folder_that_holds_something_is_left_alone(self, run: Run_, data: Path, tmp_path: Path) -> None:
        (tmp_path / "kept").write_text("mine")
        code, _, err = run("train", data, *COLUMNS, *QUICK, "--out", tmp_path)
        assert code == 1
        assert "--force" in err
        assert run("train", data, *COLUMNS, *QUICK, "--out", tmp_path, "--force").code == 0
        assert (tmp_path / "kept").read_text() == "mine"

    def test_ctrl_c_ends_the_run_in_order_and_saves(
        self, run: Run_, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Interrupts(Callback):
            def on_step(self, run: Run, step: Any) -> None:
                os.kill(os.getpid(), signal.SIGINT)

        def interrupted(*args: Any, **options: Any) -> Any:
            return train(*args, **options | {"callbacks": [Interrupts()]})

        monkeypatch.setattr(training, "train", interrupted)
        states = ["--checkpoint-dir", tmp_path / "states"]
        code, _, err = run("train", data, *COLUMNS, *QUICK, *states, "--out", tmp_path / "m")
        assert code == 130
        assert "interrupted after step 1" in err
        assert "--resume" in err
        assert load_model(tmp_path / "m").classes == ["ham", "spam"]
        monkeypatch.undo()
        assert run("train", data, *COLUMNS, *QUICK, *states, "--out", tmp_path / "m", "--resume").code == 0
        clf, rows = self.trained(data, Recipe())
        train(clf, rows, recipe=Recipe(epochs=1, lr=1e-3), progress=False)
        assert_same(load_model(tmp_path / "m"), clf)

    def interrupt(self, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
        class Interrupts(Callback):
            def on_step(self, run: Run, step: Any) -> None:
                os.kill(os.getpid(), number)

        def interrupted(*args: Any, **options: Any) -> Any:
            return train(*args, **options | {"callbacks": [Interrupts()]})

        monkeypatch.setattr(training, "train", interrupted)

    def test_an_interrupted_run_leaves_the_old_model(
        self, run: Run_, data: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out = tmp_path / "m"
        shutil.copytree(model, out)
        self.interrupt(monkeypatch, signal.SIGINT)
        code, _, err = run("train", data, *COLUMNS, *QUICK, "--out", out, "--force")
        assert code == 130
        assert f"{out} is left as it was" in err
        assert f"saved to {out}.interrupted" in err
        assert_same(load_model(out), load_model(model))
        assert load_model(tmp_path / "m.interrupted").classes == ["ham", "spam"]

    def test_sigterm_ends_the_run_as_ctrl_c_does(
        self, run: Run_, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = signal.getsignal(signal.SIGTERM)
        self.interrupt(monkeypatch, signal.SIGTERM)
        states = ["--checkpoint-dir", tmp_path / "states"]
        assert run("train", data, *COLUMNS, *QUICK, *states, "--out", tmp_path / "m").code == 143
        assert [path.name for path in (tmp_path / "states").iterdir()] == ["step-00000001.safetensors"]
        assert signal.getsignal(signal.SIGTERM) is before

    def test_resuming_without_a_state_does_not_overwrite(self, run: Run_, data: Path, tmp_path: Path) -> None:
        (tmp_path / "m").mkdir()
        (tmp_path / "m" / "kept").write_text("mine")
        argv = ["train", data, *COLUMNS, *QUICK, "--checkpoint-dir", tmp_path / "none", "--resume"]
        code, _, err = run(*argv, "--out", tmp_path / "m")
        assert code == 1
        assert f"no state in {tmp_path / 'none'}; starts from the beginning" in err
        assert "--force" in err


class TestPrediction:
    def rows(self, path: Path, **options: Any) -> list[dict[str, str]]:
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file, **options))

    def test_every_row_keeps_its_columns_and_gets_an_answer(
        self, run: Run_, data: Path, model: Path, tmp_path: Path
    ) -> None:
        pandas = pytest.importorskip("pandas")
        out = tmp_path / "answers.csv"
        assert run("predict", model, data, "--text", "body", "--out", out, "--probabilities") == (0, "", "")
        given, found, clf = self.rows(data), self.rows(out), load_model(model)
        assert [{name: row[name] for name in ("id", "body", "folder")} for row in found] == given
        assert [row["prediction"] for row in found] == predict(clf, BODIES)
        frame = pandas.read_csv(out, keep_default_na=False)
        assert list(frame) == ["id", "body", "folder", "prediction", "confidence", "p(ham)", "p(spam)"]
        assert list(frame["body"]) == BODIES
        np.testing.assert_array_equal(frame[["p(ham)", "p(spam)"]].to_numpy(np.float32), predict_proba(clf, BODIES))
        np.testing.assert_array_equal(frame["confidence"].to_numpy(np.float32), predict_proba(clf, BODIES).max(axis=1))

    @pytest.mark.parametrize("delimiter", [";", "\t", "|"])
    @pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-8"])
    def test_other_delimiters_are_found_and_kept(
        self, run: Run_, model: Path, tmp_path: Path, delimiter: str, encoding: str
    ) -> None:
        path = write_csv(tmp_path / "d.csv", {"n": ["1"] * 33, "body": BODIES}, delimiter, encoding)
        assert run("predict", model, path, "--text", "body", "--out", tmp_path / "a.csv").code == 0
        found = self.rows(tmp_path / "a.csv", delimiter=delimiter)
        assert [row["body"] for row in found] == BODIES
        assert [row["prediction"] for row in found] == predict(load_model(model), BODIES)

    @pytest.mark.parametrize("begin", [b"\xef\xbb\xbf", b""])
    @pytest.mark.parametrize("end", [b"\r\n", b"\n"])
    def test_the_mark_and_the_ends_of_lines_are_kept(
        self, run: Run_, model: Path, tmp_path: Path, begin: bytes, end: bytes
    ) -> None:
        (tmp_path / "d.csv").write_bytes(begin + b"body" + end + b"you won" + end)
        assert run("predict", model, tmp_path / "d.csv", "--text", "body", "--out", tmp_path / "a.csv").code == 0
        found = (tmp_path / "a.csv").read_bytes()
        assert found.startswith(begin + b"body,prediction")
        assert found.count(b"\r\n") == (2 if end == b"\r\n" else 0)

    def test_rows_are_printed_in_the_format_of_the_input(
        self, run: Run_, model: Path, data: Path, tmp_path: Path
    ) -> None:
        assert run("predict", model, data, "--text", "body", "--out", tmp_path / "a.csv").code == 0
        code, out, _ = run("predict", model, data, "--text", "body", "--out", "-")
        assert (code, out.encode()) == (0, (tmp_path / "a.csv").read_bytes())
        assert json.loads(run("predict", model, "--out", "-", stdin="you won").out)["text"] == "you won"

    def test_formats(self, run: Run_, model: Path, tmp_path: Path) -> None:
        pandas = pytest.importorskip("pandas")
        texts = [text.replace("\n", " ") for text in BODIES]
        answers = predict(load_model(model), texts)
        frame = pandas.DataFrame({"n": range(33), "body": texts})
        (tmp_path / "d.tsv").write_text("".join(f"{n}\t{text}\n" for n, text in [("n", "body"), *enumerate(texts)]))
        (tmp_path / "d.txt").write_text("\n".join(texts))
        frame.to_json(tmp_path / "d.jsonl", orient="records", lines=True)
        pytest.importorskip("pyarrow")
        frame.to_parquet(tmp_path / "d.parquet")
        for suffix in ("tsv", "txt", "jsonl", "parquet"):
            column = ["--text", "body"] if suffix != "txt" else []
            code, out, _ = run("predict", model, tmp_path / f"d.{suffix}", *column)
            found = [json.loads(line) for line in out.splitlines()]
            assert code == 0
            assert [row["prediction"] for row in found] == answers, suffix
            assert [row.get("body", row.get("text")) for row in found] == texts
            assert suffix == "txt" or [int(row["n"]) for row in found] == list(range(33))
            for other in ("csv", "tsv", "jsonl"):
                assert (
                    run("predict", model, tmp_path / f"d.{suffix}", *column, "--out", tmp_path / f"a.{other}").code == 0
                )
        assert [row["body"] for row in self.rows(tmp_path / "a.csv")] == texts

    def test_standard_input(self, run: Run_, model: Path) -> None:
        texts = ["you won a prize", "", "grüße 😀"]
        answers = predict(load_model(model), texts)
        for argv in ([model], [model, "-"]):
            code, out, err = run("predict", *argv, stdin="\r\n".join(texts))
            assert (code, err) == (0, "")
            found = [json.loads(line) for line in out.splitlines()]
            assert [(row["text"], row["prediction"]) for row in found] == list(zip(texts, answers, strict=True))
        lines = "".join(json.dumps({"body": text, "more": [i]}) + "\n" for i, text in enumerate(texts))
        code, out, _ = run("predict", model, "--format", "jsonl", "--text", "body", stdin=lines)
        found = [json.loads(line) for line in out.splitlines()]
        assert [row["prediction"] for row in found] == answers
        assert [row["more"] for row in found] == [[0], [1], [2]]

    def test_a_file_without_a_header_is_read_by_position(self, run: Run_, model: Path, tmp_path: Path) -> None:
        (tmp_path / "d.tsv").write_text("".join(f"{n}\ttext {n}\n" for n in range(3)))
        code, out, _ = run("predict", model, tmp_path / "d.tsv", "--no-header", "--text", "1")
        assert code == 0
        assert [json.loads(line)["1"] for line in out.splitlines()] == ["text 0", "text 1", "text 2"]

    def test_missing_texts(self, run: Run_, model: Path, tmp_path: Path) -> None:
        rows = [None, "you won", None, None, "ok", None]
        (tmp_path / "d.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
        code, _, err = run("predict", model, tmp_path / "d.jsonl")
        assert code == 1
        assert "line 1" in err
        assert "--skip-missing" in err
        for window in (1, 2, 2048):
            code, out, _ = run("predict", model, tmp_path / "d.jsonl", "--skip-missing", "--window", window)
            found = [json.loads(line) for line in out.splitlines()]
            assert code == 0
            assert [row["text"] for row in found] == rows
            answers = iter(predict(load_model(model), ["you won", "ok"]))
            assert [row["prediction"] for row in found] == [text and next(answers) for text in rows]

    def test_thresholds_temperature_and_rejection(self, run: Run_, model: Path, data: Path, tmp_path: Path) -> None:
        options = ["--thresholds", "spam=0.2", "--temperature", 3, "--reject-below", 0.6, "--probabilities"]
        out = run("predict", model, data, "--text", "body", *options).out
        found = [json.loads(line) for line in out.splitlines()]
        given: dict[str, Any] = {"temperature": 3.0, "thresholds": {"spam": 0.2}, "reject_below": 0.6}
        assert [row["prediction"] for row in found] == predict(load_model(model), BODIES, **given)
        spam = predict_proba(load_model(model), BODIES, temperature=3.0)[:, 1]
        np.testing.assert_array_equal(np.asarray([row["p(spam)"] for row in found], dtype=np.float32), spam)

    def test_rows_are_read_as_answers_are_taken(self, model: Path) -> None:
        read = 0

        def numbered() -> Any:
            nonlocal read
            while True:
                read += 1
                yield read, {"text": f"text {read}"}

        rows = Rows("", ["text"], numbered(), Format("lines", "utf-8", ",", False, True), 0, int)
        options: dict[str, Any] = dict.fromkeys(("temperature", "thresholds", "reject_below", "probabilities"))
        from argparse import Namespace

        args = Namespace(
            **options | {"window": 8, "text": "text", "skip_missing": False, "precision": "auto", "quiet": True}
        )
        blocks = iter(predicting._Answered(load_model(model), rows, args))
        for block in range(1, 4):
            assert len(next(blocks)) == 8
            assert read <= 8 * block + 1

    def test_an_interrupted_run_leaves_the_old_file(
        self, run: Run_, model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out = tmp_path / "answers.csv"
        stream = predict_stream

        def interrupted(*args: Any, **options: Any) -> Any:
            for i, answer in enumerate(stream(*args, **options)):
                if i == 20:
                    raise KeyboardInterrupt
                yield answer

        monkeypatch.setattr(predicting, "predict_stream", interrupted)
        argv = ["predict", model, data, "--text", "body", "--window", 8, "--out", out]
        assert run(*argv).code == 130
        assert list(tmp_path.iterdir()) == []
        out.write_text("old")
        assert run(*argv).code == 130
        assert out.read_text() == "old"
        assert list(tmp_path.iterdir()) == [out]


class TestOthers:
    def test_evaluate(self, run: Run_, model: Path, data: Path) -> None:
        clf = load_model(model)
        rows = TextDataset.from_file(data, text="body", label="folder", tokenizer=clf.tokenizer, task=clf.task)
        assert run("evaluate", model, data, *COLUMNS) == (0, f"{evaluate(clf, rows).report()}\n", "")

    def test_summary(self, run: Run_, model: Path, tmp_path: Path) -> None:
        code, out, err = run("summary", model)
        assert (code, err) == (0, "")
        assert "ham, spam" in out
        assert "2,664,962 parameters" in out
        assert run("summary", "nano").code == 0
        assert "longer than the context, they lose their tail" in out
        clf = load_model(model)
        clf.task = clf.task.adjusted(temperature=2.0, thresholds={"spam": 0.7})
        save_model(clf, tmp_path / "adjusted")
        assert "temperature 2 and thresholds spam 0.7" in run("summary", tmp_path / "adjusted").out

    def test_convert_to_the_book_and_back(self, run: Run_, model: Path, tmp_path: Path) -> None:
        pth = tmp_path / "model.pth"
        assert "--n-heads 6 --labels ham,spam" in run("convert", model, pth).err
        tensors = torch.load(pth, weights_only=True)
        assert tensors["out_head.weight"].shape == (2, 192)
        assert run("convert", pth, tmp_path / "back", "--n-heads", 6, "--labels", "ham,spam").code == 0
        back = load_model(tmp_path / "back")
        back.tokenizer = load_gpt2("nano").tokenizer
        np.testing.assert_allclose(predict_proba(back, BODIES), predict_proba(load_model(model), BODIES), atol=1e-6)
        assert back.classes == ["ham", "spam"]
        assert run("convert", "nano", tmp_path / "lm.pth").code == 0
        assert run("convert", tmp_path / "lm.pth", tmp_path / "lm", "--n-heads", 6).code == 0
        assert_same(load_gpt2(tmp_path / "lm.pth", settings={"n_heads": 6}), load_gpt2(tmp_path / "lm"))

    def test_convert_openais_checkpoint(self, run: Run_, tmp_path: Path) -> None:
        checkpoint = Path(__file__).parent / "data" / "tf_gpt2" / "whole"
        assert run("convert", checkpoint, tmp_path / "folder").code == 0
        assert_same(load_gpt2(tmp_path / "folder"), load_gpt2(checkpoint))

    def test_convert_to_onnx(self, run: Run_, model: Path, tmp_path: Path) -> None:
        pytest.importorskip("onnxscript")
        runtime = pytest.importorskip("onnxruntime")
        assert run("convert", model, tmp_path / "model.onnx").code == 0
        clf, text = load_model(model), "you won a prize"
        session = runtime.InferenceSession(tmp_path / "model.onnx")
        ids = np.array([clf.tokenizer.encode_ordinary(text)])
        names = [given.name for given in session.get_inputs()]
        (outputs,) = session.run(None, dict(zip(names, (ids, np.array([ids.shape[1]])), strict=True)))
        np.testing.assert_allclose(outputs, predict_logits(clf, [text], precision="float32"), atol=1e-5)

    def test_convert_replaces_no_file_and_makes_no_folder_of_a_mistyped_one(self, run: Run_, tmp_path: Path) -> None:
        (tmp_path / "old.pth").write_text("mine")
        code, _, err = run("convert", "nano", tmp_path / "old.pth")
        assert (code, (tmp_path / "old.pth").read_text()) == (1, "mine")
        assert "exists; give another file, or --force to replace it" in err
        assert run("convert", "nano", tmp_path / "old.pth", "--force").code == 0
        code, _, err = run("convert", "nano", tmp_path / "model.onxx")
        assert code == 1
        assert "a file must end in .pth or .onnx" in err
        assert run("convert", "nano", tmp_path / "v1.2").code == 0

    def test_convert_an_adapter(self, run: Run_, data: Path, tmp_path: Path) -> None:
        assert run("train", data, *COLUMNS, *QUICK, "--lora-rank", 2, "--out", tmp_path / "a").code == 0
        assert run("convert", tmp_path / "a", tmp_path / "copy").code == 0
        assert run("convert", tmp_path / "a", tmp_path / "whole", "--merge").code == 0
        expected = predict_proba(load_model(tmp_path / "a"), BODIES)
        np.testing.assert_array_equal(predict_proba(load_model(tmp_path / "copy"), BODIES), expected)
        np.testing.assert_allclose(predict_proba(load_model(tmp_path / "whole"), BODIES), expected, atol=1e-5)
        assert not (tmp_path / "whole" / "adapter_config.json").exists()

    def test_explain(self, run: Run_, model: Path, data: Path, tmp_path: Path) -> None:
        texts = ["you won a prize", "see you"]
        code, out, _ = run("explain", model, *texts, "--json", "--target", "spam")
        found = [json.loads(line) for line in out.splitlines()]
        assert code == 0
        assert found == json.loads(json.dumps([one.to_dict() for one in explain(load_model(model), texts, "spam")]))
        code, out, _ = run("explain", model, *texts, "--method", "leave_one_out")
        assert code == 0
        assert [line.split()[-1] for line in out.splitlines() if line[0] == " "] == " ".join(texts).split()
        argv = ["explain", model, "--file", data, "--text", "body", "--html", tmp_path / "e.html"]
        assert run(*argv) == (0, "", "")
        assert "grüße 😀" in re.sub(r"<[^>]*>", "", (tmp_path / "e.html").read_text(encoding="utf-8"))
        assert run("explain", model, stdin="you won").out == run("explain", model, "you won").out
        assert f"give --file {data}" in run("explain", model, data).err

    def test_evaluate_as_json(self, run: Run_, model: Path, data: Path) -> None:
        clf = load_model(model)
        rows = TextDataset.from_file(data, text="body", label="folder", tokenizer=clf.tokenizer, task=clf.task)
        code, out, _ = run("evaluate", model, data, *COLUMNS, "--json")
        assert code == 0
        found = evaluate(clf, rows)
        intervals = {name: list(bounds) for name, bounds in found.intervals().items()}
        read = json.loads(out)
        assert {name: read[name] for name in ("rows", *found.metrics)} == {"rows": 33, **found.metrics}
        assert read["intervals"] == intervals
        assert read["classes"] == ["ham", "spam"]
        assert read["confusion"] == found.confusion.tolist()
        assert [read["per_class"][name]["f1"] for name in ("ham", "spam")] == found.per_class["f1"].tolist()

    def test_evaluate_as_a_page(self, run: Run_, model: Path, data: Path, tmp_path: Path) -> None:
        assert run("evaluate", model, data, *COLUMNS, "--html", tmp_path / "report.html").code == 0
        assert "spam" in (tmp_path / "report.html").read_text(encoding="utf-8")

    @pytest.mark.parametrize(
        ("argv", "option"),
        [
            (["predict", "M", "D", "--text", "body"], "--out"),
            (["evaluate", "M", "D", *COLUMNS], "--html"),
            (["explain", "M", "--file", "D", "--text", "body"], "--html"),
        ],
    )
    def test_no_output_replaces_the_file_that_is_read(
        self, run: Run_, model: Path, data: Path, tmp_path: Path, argv: list[str], option: str
    ) -> None:
        alike = shutil.copy(data, tmp_path / ("d.csv" if option == "--out" else "d.html"))
        words = [{"M": model, "D": alike}.get(word, word) for word in argv]
        code, _, err = run(*words, option, alike)
        assert code == 2
        assert "the file that is read" in err
        assert Path(alike).read_bytes() == data.read_bytes()
        code, _, err = run(*words, option, tmp_path / "other.xls")
        assert code == 2
        assert "it must be ." in err

    def test_serve(self, run: Run_, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        served: list[Any] = []
        monkeypatch.setattr(serving, "serve", lambda *args, **options: served.append((args, options)))
        assert run("serve", model, "--port", 0).code == 0
        ((args, options),) = served
        assert args == ()
        assert (options["model"], options["host"], options["port"]) == (str(model), "127.0.0.1", 0)
        assert "allowed_hosts" not in options  # which serve chooses by the host
        code, _, err = run("serve", model, "--port", 99999)
        assert (code, err) == (2, "gptclf: error: --port is 99999; it must be from 0 to 65535\n")


class TestErrors:
    def test_labels_with_numbers_that_are_wrong(self, run: Run_, data: Path, model: Path, tmp_path: Path) -> None:
        train_ = ["train", data, *COLUMNS, *QUICK, "--out", tmp_path / "m"]
        for argv, said in (
            (["predict", model, data, "--text", "body", "--thresholds", "spam=2"], "--thresholds"),
            (["evaluate", model, data, *COLUMNS, "--temperature", "-1"], "--temperature is -1.0"),
            ([*train_, "--class-weight", "spam:3"], "--class-weight is 'spam:3'"),
        ):
            code, _, err = run(*argv)
            assert code == 2
            assert said in err

    def test_labels_are_counted_and_odd_ones_named(self, run: Run_, tmp_path: Path) -> None:
        folders = ["ham", "ham", "spam", "spam ", "Ham"]
        path = write_csv(tmp_path / "d.csv", {"body": BODIES[1:6], "folder": folders})
        err = run("train", path, *COLUMNS, *QUICK, "--out", tmp_path / "m").err
        assert "5 texts: ham 2, spam 1, 'spam ' 1, Ham 1" in err
        assert "the labels 'ham', 'Ham' look alike" in err
        assert "the labels 'spam', 'spam ' look alike" in err
        assert "most of the 4 labels have a single text" in err

    def test_a_model_with_one_answer_is_named(self, run: Run_, data: Path, tmp_path: Path) -> None:
        valid = write_csv(tmp_path / "valid.csv", {"body": ["ok", "ok"], "folder": ["ham", "spam"]})
        argv = ["train", data, *COLUMNS, *QUICK, "--valid", valid, "--out", tmp_path / "m"]
        assert "every validation text is answered" in run(*argv).err

    def test_a_wrong_column_is_found_before_the_model(self, run: Run_, tmp_path: Path) -> None:
        path = write_csv(tmp_path / "d.csv", {"body": BODIES, "folder": FOLDERS * 3}, ";")
        argv = [path, "--text", "body", "--label", "foldr"]
        for command in (["train", *argv, "--model", "no/where", "--out", tmp_path / "m"], ["evaluate", "none", *argv]):
            code, _, err = run(*command)
            assert code == 1
            assert "no column 'foldr'; it has ['body', 'folder']; did you mean 'folder'? Name one with --label" in err

    def test_a_log_has_a_line_per_epoch(self, run: Run_, data: Path, tmp_path: Path) -> None:
        argv = ["train", data, *COLUMNS, *QUICK, "--out", tmp_path / "m"]
        assert "epoch 1, step" in run(*argv).err
        assert run(*argv, "--force", "--quiet").err == ""

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (b"", "no column 'body'"),
            (b"id,body,folder\n", "d.csv: a classifier needs at least 2 classes; with []"),
            (b"id,text\n1,a\n", "['id', 'text']"),
            (bytes(range(256)) * 4, "utf-8"),
            (b"id,body,folder\n1,caf\xe9,ham\n", "--encoding"),
            (b'id,body,folder\n1,"never closed,ham\n', "line 2"),
            (b"id,body,folder\n1,a,b,ham\n", "line 2"),
            (b"id,body,folder\n1,a,ham\n2,b,ham\n", "d.csv: a classifier needs at least 2 classes; with ['ham']"),
            (b"id,body,folder\n1,a,ham\n2,b,\n", "--drop-missing"),
        ],
    )
    def test_a_file_that_cannot_be_trained_on(self, run: Run_, tmp_path: Path, content: bytes, said: str) -> None:
        (tmp_path / "d.csv").write_bytes(content)
        code, out, err = run("train", tmp_path / "d.csv", *COLUMNS, *QUICK, "--out", tmp_path / "m")
        assert (code, out) == (1, "")
        assert said in err
        assert err.startswith("gptclf: error: ")
        assert "Traceback" not in err
        assert not (tmp_path / "m").exists()

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (b"id,text\n1,a\n", "['id', 'text']"),
            (b"id,body\n1,caf\xe9\n", "--encoding"),
            (b'id,body\n1,"never closed\n', "line 2"),
            (b"id,body\n1,a,b\n", "line 2"),
            (b"id,body,prediction\n1,a,b\n", "'prediction' already"),
            (b"id,body\n1\n", "is missing"),
        ],
    )
    def test_a_file_that_cannot_be_predicted(
        self, run: Run_, model: Path, tmp_path: Path, content: bytes, said: str
    ) -> None:
        (tmp_path / "d.csv").write_bytes(content)
        code, out, err = run("predict", model, tmp_path / "d.csv", "--text", "body", "--out", tmp_path / "a.csv")
        assert (code, out) == (1, "")
        assert said in err
        assert [path.name for path in tmp_path.iterdir()] == ["d.csv"]

    def test_nothing_to_predict(self, run: Run_, model: Path, tmp_path: Path) -> None:
        (tmp_path / "d.csv").write_text("id,body\n")
        assert run("predict", model, tmp_path / "d.csv", "--text", "body", "--out", tmp_path / "a.csv").code == 0
        assert (tmp_path / "a.csv").read_text() == "id,body,prediction,confidence\n"
        assert run("predict", model) == (0, "", "")

    def test_a_huge_line(self, run: Run_, model: Path) -> None:
        code, out, _ = run("predict", model, stdin="word " * 200_000)
        assert code == 0
        assert len(json.loads(out)["text"]) == 1_000_000

    def test_places(self, run: Run_, model: Path, data: Path, tmp_path: Path) -> None:
        cases: dict[str, list[object]] = {
            "is a folder": ["predict", model, tmp_path],
            "does not exist": ["predict", model, tmp_path / "none.csv"],
            "it must be .csv, .tsv, .jsonl": ["predict", model, model / "config.json"],
            "none of this": ["predict", "none of this", data, "--text", "body"],
            "Give the folder that save_model wrote": ["predict", "nano", data, "--text", "body"],
            "written": ["predict", "not looked at", data, "--text", "body", "--out", data / "a.csv"],
            "is a file": ["train", data, *COLUMNS, "--model", "not looked at", "--out", data],
        }
        for said, argv in cases.items():
            code, out, err = run(*argv)
            assert (code, out) == (1, ""), (said, err)
            assert said in err

    def test_standard_input_that_is_closed(
        self, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys, "stdin", None)
        assert main(["predict", str(model)]) == 1
        assert "standard input is closed" in capsys.readouterr().err

    def test_warnings_of_other_libraries_are_for_debugging(
        self, run: Run_, model: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(serving, "serve", lambda *_, **__: warnings.warn("old", FutureWarning, stacklevel=1))
        assert run("serve", model) == (0, "", "")
        assert run("serve", model, "--debug").err == "gptclf: old\n"

    def test_debug_shows_where(self, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        argv = ["predict", "none of this", str(data), "--text", "body"]
        with pytest.raises(FileNotFoundError):
            main([*argv, "--debug"])
        monkeypatch.setenv("GPTCLF_DEBUG", "1")
        with pytest.raises(FileNotFoundError):
            main(argv)


def process(*argv: object, **options: Any) -> "subprocess.Popen[bytes]":
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "gptclf", *map(str, argv)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=environment, **{**pipes, **options})


def test_a_reader_that_goes_away_ends_the_process_quietly(model: Path) -> None:
    with process("predict", model, "--window", 1) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdin.write(b"you won\n" * 2)
        running.stdin.flush()
        assert json.loads(running.stdout.readline())["text"] == "you won"  # before the input ends
        running.stdout.close()
        with pytest.raises(BrokenPipeError):
            running.stdin.write(b"you won\n" * 1_000_000)  # more than a pipe holds
        assert running.wait(60) == 141
        assert running.stderr.read() == b""


def test_a_killed_process_leaves_the_old_file(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    out.write_text("old")
    with process("predict", model, "--window", 1, "--out", out) as running:
        assert running.stdin is not None
        running.stdin.write(b"you won\n" * 2)
        running.stdin.flush()
        while not any(path.name.endswith(".tmp") for path in tmp_path.iterdir()):
            assert running.poll() is None
        running.kill()
        running.stdin.close()
    assert out.read_text() == "old"


def test_a_terminated_prediction_leaves_nothing(model: Path, tmp_path: Path) -> None:
    with process("predict", model, "--window", 1, "--out", tmp_path / "answers.jsonl") as running:
        assert running.stdin is not None
        running.stdin.write(b"you won\n" * 2)
        running.stdin.flush()
        while not any(tmp_path.iterdir()):
            assert running.poll() is None
        running.terminate()
        assert running.wait(60) == 143
    assert list(tmp_path.iterdir()) == []


def test_the_page_shows_commands_that_run(run: Run_, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands of each block, in order; what else a block has (files, pipes) is done by the shell."""
    page = (Path(__file__).parents[1] / "docs" / "command-line.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```bash\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 6
    monkeypatch.chdir(tmp_path)
    for block in blocks:
        # The shell runs all but gptclf, and hands the words and the standard input of each command over.
        (tmp_path / "calls").write_text("")
        shell = 'gptclf() { in=$(mktemp -p .); cat > $in; printf "%s\\0" $in "$@" >> calls; echo >> calls; }\n'
        subprocess.run(["bash", "-ec", shell + block], check=True, stdin=subprocess.DEVNULL)
        for call in (tmp_path / "calls").read_text().split("\0\n")[:-1]:
            stdin, *words = call.split("\0")
            code, _, err = run(*words, stdin=Path(stdin).read_bytes())
            assert code == 0, (words, err)
            assert "error" not in err
    answers = list(csv.DictReader((tmp_path / "answers.csv").open(newline="")))
    assert [row["prediction"] for row in answers] == [row["folder"] for row in answers]
