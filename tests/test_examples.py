"""The example scripts run as their first lines say, and leave what they promise."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gptclf import generate, load_gpt2, load_model

EXAMPLES = Path(__file__).parents[1] / "examples"
WORDS = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "that",
    "was",
    "his",
    "he",
    "it",
    "with",
    "is",
    "for",
    "as",
    "had",
    "you",
    "not",
    "be",
    "her",
    "on",
    "at",
    "by",
    "which",
    "have",
    "or",
    "from",
]


def run(name: str, *arguments: str, timeout: int = 300) -> str:
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=timeout)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def some_text(words: int, seed: int = 0) -> str:
    # A text with an order to learn: which word follows is nearly determined by the one before.
    text, i = [], seed
    for n in range(words):
        i = (i * 7 + 3 + (n % 11 == 0)) % len(WORDS)
        text.append(WORDS[i])
    return " ".join(text)


@pytest.mark.slow
def test_a_language_model_learns_a_book(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text(some_text(3000))
    out = tmp_path / "out"
    said = run(
        "language_model.py",
        str(tmp_path / "book.txt"),
        "--epochs",
        "2",
        "--length",
        "64",
        "--lr",
        "1e-3",
        "--out",
        str(out),
    )
    before = float(said.split("validation perplexity before: ")[1].split()[0])
    after = float(said.split("every token counted once: ")[1].split()[0])
    assert after < before / 3
    assert (out / "curves.png").stat().st_size > 5000
    assert generate(load_model(out / "model"), "the", 5).startswith("the")


@pytest.mark.slow
def test_nano_can_be_made_from_a_folder_of_texts(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "a.txt").write_text("\n\n\n".join(some_text(300, seed) for seed in range(100)))
    said = run("pretrain_nano.py", str(corpus), "--out", str(tmp_path / "out"), "--precision", "float32")
    assert said.count("perplexity") == 2
    model = load_gpt2(tmp_path / "out")
    assert model.config.emb_dim == load_gpt2("nano").config.emb_dim
    assert model.tokenizer.decode(model.tokenizer.encode_ordinary("the of and")) == "the of and"
    assert {path.name for path in (tmp_path / "out").glob("curves-*.png")} == {"curves-128.png", "curves-512.png"}


@pytest.mark.slow
def test_what_pretraining_is_worth_is_a_table_row_for_each(tmp_path: Path, shared_data: Path) -> None:
    said = run(
        "transfer.py",
        "--data",
        str(shared_data),
        "--only",
        "sms",
        "--policies",
        "head",
        "--seeds",
        "1",
        "--out",
        str(tmp_path),
    )
    rows = [line for line in said.splitlines() if line.startswith("| sms | head |")]
    assert len(rows) == 2
    results = json.loads((tmp_path / "sms-last.json").read_text())
    pretrained, random = (next(r["test"] for r in results if r["weights"] == w) for w in ("pre-trained", "random"))
    assert pretrained > random
