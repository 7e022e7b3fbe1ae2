"""Progress where there is no console, a broken one, a log file, or no tqdm: lines or nothing, and never an error."""

import io
import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import byte_gpt2
from consoles import Terminal, standard_error

from gptclf import GPT2, TextDataset, TextWindows, add_classifier_head, freeze, predict, train, train_lm
from gptclf.progress import Meter

TEXTS = [f"text number {i}" for i in range(12)]


class WriteOnly:
    """All that some hosts offer: no flush, no isatty."""

    def __init__(self) -> None:
        self.said = ""

    def write(self, text: str) -> int:
        self.said += text
        return len(text)


class HungUp(io.StringIO):
    """A terminal, or a pipe, whose other end is gone."""

    def write(self, text: str) -> int:
        raise OSError(5, "Input/output error")


class Ascii(io.StringIO):
    def write(self, text: str) -> int:
        return super().write(text.encode("ascii").decode())


def closed() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


CONSOLES: dict[str, Callable[[], Any]] = {
    "none": lambda: None,
    "write only": WriteOnly,
    "object": object,
    "closed": closed,
    "hung up": HungUp,
    "ascii": Ascii,
}


def classifier() -> GPT2:
    clf = add_classifier_head(byte_gpt2(), classes=["ham", "spam"], seed=1)
    clf.head.forget_fresh()
    return clf


def rows(clf: GPT2) -> TextDataset:
    return TextDataset(TEXTS, ["ham", "spam"] * 6, tokenizer=clf.tokenizer)


def hurry(monkeypatch: pytest.MonkeyPatch, seconds: float = 11.0) -> None:
    """Let every look at the clock take `seconds`, so that each update is due to be told."""
    clock = itertools.count(0.0, seconds)
    monkeypatch.setattr("gptclf.progress.time.perf_counter", lambda: next(clock))


@pytest.mark.parametrize("without_tqdm", [True, False])
@pytest.mark.parametrize("console", CONSOLES)
def test_no_console_means_no_progress_and_no_error(
    console: str, without_tqdm: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if without_tqdm:
        monkeypatch.setitem(sys.modules, "tqdm", None)
    hurry(monkeypatch)
    clf, gpt2 = classifier(), byte_gpt2()
    freeze(gpt2, trainable="all")
    expected = train(classifier(), rows(clf), rows(clf), epochs=2, progress=False).steps
    with standard_error(CONSOLES[console]()):
        assert train(clf, rows(clf), rows(clf), epochs=2).steps == expected
        predict(clf, TEXTS, progress=True)
        train_lm(gpt2, TextWindows("to be or not " * 20, tokenizer=gpt2.tokenizer, length=16), epochs=1)
    assert capfd.readouterr() == ("", "")


def test_an_object_with_write_alone_gets_the_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)
    clf = classifier()
    with standard_error(WriteOnly()) as stream:
        train(clf, rows(clf), epochs=1)
    assert "frozen part: 2 blocks" in stream.said
    assert "train loss" in stream.said
    assert stream.said.endswith("\n")


def test_a_log_gets_whole_lines_of_a_training_at_most_one_in_ten_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clf = classifier()
    hurry(monkeypatch, 4.0)
    train(clf, rows(clf), epochs=10, batch_size=1, reuse_frozen=False)
    out, err = capsys.readouterr()
    assert out == ""
    assert "\r" not in err
    lines = [line for line in err.splitlines() if line.startswith("training: ")]
    # Each step looks at the clock twice, so it takes 8 seconds: a line after every second one.
    assert 55 <= len(lines) <= 60
    assert "loss 0." in lines[0]


def test_a_terminal_gets_a_bar_with_the_loss_that_is_cleared() -> None:
    pytest.importorskip("tqdm")
    clf = classifier()
    with standard_error(Terminal()) as terminal:
        train(clf, rows(clf), epochs=2)
        predict(clf, TEXTS, progress=True)
    said = terminal.getvalue()
    assert "\rtraining: " in said
    assert "training: 100%" in said or "/4 [" in said
    assert said.count("train loss") == 2
    assert "predicting" in said
    assert said.rstrip("\r").rpartition("\r")[2].strip() == "", "the last bar is cleared"


def test_without_tqdm_a_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    hurry(monkeypatch)
    with standard_error(Terminal()) as terminal, Meter(4, "reading") as meter:
        meter.update(1, "well")
        meter.write("a line")
    assert terminal.getvalue() == "reading: 25 %, 33 s left (well)\na line\n"


def test_work_that_goes_on_from_some_point_estimates_from_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hurry(monkeypatch, 20.0)
    with Meter(100, "reading", done=80) as meter:
        meter.update(0)
        meter.update(10)
    assert capsys.readouterr().err == "reading: 90 %, 40 s left\n"


@pytest.mark.skipif(os.name != "posix", reason="a process whose standard streams are closed")
def test_a_process_without_standard_streams_trains() -> None:
    program = """
import sys
assert sys.stderr is None and sys.stdout is None
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from test_console import classifier, rows
from gptclf import train, predict
clf = classifier()
train(clf, rows(clf), rows(clf), epochs=1)
predict(clf, ["a"], progress=True)
sys.exit(7)
"""
    command = [sys.executable, "-c", program, str(Path(__file__).parent)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    shell = ["sh", "-c", 'exec "$@" 0<&- 1>&- 2>&-', "sh", *command]
    assert subprocess.run(shell, env=environment, timeout=120).returncode == 7
