"""The short examples run with `nano` on a small file of one's own, and leave what they promise."""

import csv
import re
import runpy
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from gptclf import add_classifier_head, load_gpt2, load_model, predict, save_model

EXAMPLES = Path(__file__).parents[1] / "examples"
LONGEST = 60
SHORT = ["explanations", "imbalanced", "intents", "lora", "own_head", "own_loop", "search", "serving", "spam"]

pytest.importorskip("matplotlib")


@pytest.fixture
def mails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of 60 messages, with the columns text and label."""
    monkeypatch.syspath_prepend(EXAMPLES)
    from messages import make_messages

    path = tmp_path / "mails.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *zip(*make_messages(60), strict=True)])
    return path


@pytest.fixture
def example(mails: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs an example as a script in an empty folder, and returns what it printed."""

    def run(name: str, *arguments: str) -> str:
        monkeypatch.chdir(mails.parent)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return run


def is_picture(path: str) -> bool:
    return Path(path).read_bytes().startswith(b"\x89PNG") and Path(path).stat().st_size > 5000


@pytest.mark.parametrize("name", SHORT)
def test_a_short_example_can_be_read_in_one_go(name: str) -> None:
    text = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) < LONGEST
    assert f"python examples/{name}.py" in text


def test_spam_trains_measures_saves_and_draws(example: Any) -> None:
    said = example("spam", "--data", "mails.csv", "--trainable", "last_block")
    assert re.search(r"test: accuracy [\d.]+ %, macro-F1 [\d.]+ %, loss [\d.]+ on 12 texts", said)
    assert re.search(r"(ham|spam) \(\d+ %\): You won!", said)
    assert load_model("runs/spam/model").classes == ["ham", "spam"]
    assert is_picture("runs/spam/curves.png")


def test_intents_names_what_is_confused(example: Any) -> None:
    said = example("intents", "mails.csv", "--epochs", "1")
    assert "most often confused:" in said
    assert is_picture("runs/intents/confusion.png")
    assert load_model("runs/intents/model").classes == ["ham", "spam"]


def test_lora_leaves_an_adapter(example: Any) -> None:
    said = example("lora", "--data", "mails.csv", "--blocks", "2", "--epochs", "1", "--quantize", "nf4")
    assert "blocks.2, blocks.3, head" in said
    assert load_model("runs/lora/adapter").classes == ["ham", "spam"]
    assert is_picture("runs/lora/curves.png")


def test_a_loop_of_ones_own_trains(example: Any) -> None:
    said = example("own_loop", "mails.csv")
    assert said.count("accuracy on the test set") == 3
    assert predict(load_model("runs/own_loop/model"), ["you won a prize"])[0] in ("ham", "spam")
    assert is_picture("runs/own_loop/losses.png")


def test_a_head_of_ones_own_shows_where_it_looks(example: Any) -> None:
    assert "test: accuracy" in example("own_head", "mails.csv")
    assert is_picture("runs/own_head/weights.png")


def test_a_search_shows_every_setting(example: Any) -> None:
    pytest.importorskip("sklearn")
    said = example("search", "mails.csv")
    assert re.search(r"best: \{'features__layer': \d, 'logistic__C': [\d.]+\}, accuracy 0\.\d+", said)
    assert is_picture("runs/search/scores.png")


def test_imbalanced_compares_three_ways(example: Any) -> None:
    pytest.importorskip("sklearn")
    said = example("imbalanced", "mails.csv")
    assert len(re.findall(r"precision \d\.\d\d, recall \d\.\d\d, average precision \d\.\d\d", said)) == 3
    assert is_picture("runs/imbalanced/precision-recall.png")


def test_explanations_are_a_picture_and_a_page(example: Any) -> None:
    pytest.importorskip("pandas")
    said = example("explanations", "mails.csv")
    assert re.search(r"(ham|spam), probability 0\.\d\d\. The words that moved it most:\n  [+-]\d", said)
    assert "decided like these" in said
    assert is_picture("runs/explanations/words.png")
    wrong = re.search(r"the (\d+) wrong answers", said)
    assert wrong is not None
    assert f"<h1>{wrong[1]} wrong answers</h1>" in Path("runs/explanations/page.html").read_text(encoding="utf-8")


def test_serving_answers_over_http(example: Any, tmp_path: Path) -> None:
    pytest.importorskip("starlette")
    pytest.importorskip("uvicorn")
    folder = save_model(add_classifier_head(load_gpt2("nano"), classes=["ham", "spam"], seed=0), tmp_path / "model")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    said = example("serving", str(folder), "--port", str(port), "--ask", "you won a prize")
    assert f"the page: http://127.0.0.1:{port}" in said
    assert re.search(r"(ham|spam) \(\d+ %\): you won a prize", said)
