"""What a model learned on goes where it goes: into the files that `transformers` reads, and into every answer."""

import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptclf import (
    GPT2,
    Preparation,
    Task,
    TextDataset,
    add_classifier_head,
    load_gpt2,
    predict,
    predict_proba,
    save_model,
    train,
)
from gptclf.tokenizer.bpe import END_OF_TEXT

WORDS = ["win", "cash", "now", "see", "you", "at", "six", "lunch", "free", "prize", "home", "call", "ok", "£5", "!!"]
PREPARATIONS = [Preparation(), Preparation(20), Preparation(20, "head"), Preparation(None, "head"), Preparation(1)]


def generated(n: int = 40, seed: int = 0) -> tuple[list[str], list[str]]:
    rng = random.Random(seed)
    texts = [" ".join(rng.choices(WORDS, k=rng.randrange(1, 60))) for _ in range(n)]
    return texts, ["spam" if "cash" in text else "ham" for text in texts]


def trained(texts: list[str], labels: list[Any], preparation: Preparation, task: Task | None = None) -> GPT2:
    """A classifier of nano after a few steps, so that its answers depend on the text."""
    gpt2 = load_gpt2("nano")
    clf = add_classifier_head(gpt2, classes=["ham", "spam"] if task is None else None, task=task, seed=1)
    data = TextDataset(texts, labels, tokenizer=clf.tokenizer, task=clf.task, **vars(preparation))
    train(clf, data, epochs=2, lr=2e-3, progress=False)
    return clf


def snippet(folder: Path) -> Any:
    """The pipeline that the card's code for `transformers` makes."""
    pytest.importorskip("transformers")
    code = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)[-1]
    scope: dict[str, Any] = {}
    exec(code.replace("path/to/this/folder", str(folder)), scope)
    return next(scope[name] for name in ("classify", "measure") if name in scope)


def same_answers(clf: GPT2, texts: list[str], folder: Path) -> None:
    classify, expected = snippet(save_model(clf, folder)), predict_proba(clf, texts, precision="float32")
    answers = classify(texts)
    assert [answer["label"] for answer in answers] == predict(clf, texts, precision="float32")
    np.testing.assert_allclose([answer["score"] for answer in answers], expected.max(1), rtol=0, atol=1e-5)
    assert expected.argmax(1).std() > 0  # both answers occur
    assert expected.max(1).std() > 1e-3


def hard(texts: list[str]) -> list[str]:
    """The texts, and some with the name of the end of text, or longer than nano's context of 512 tokens."""
    marked = [f"{text[:20]}{END_OF_TEXT}{text[20:]}" for text in texts[:20]] + [END_OF_TEXT, f"free {END_OF_TEXT}"]
    return [*texts, *marked, " ".join(texts[:60])[:6000], "lunch at noon? " * 300 + "win cash", "!" * 3000]


@pytest.mark.parametrize("preparation", PREPARATIONS, ids=str)
def test_the_cards_snippet_answers_as_predict_does(preparation: Preparation, tmp_path: Path) -> None:
    texts, labels = generated()
    same_answers(trained(texts, labels, preparation), hard(texts), tmp_path)


@pytest.mark.parametrize("preparation", [Preparation(20), Preparation(20, "head"), Preparation()], ids=str)
def test_the_cards_snippet_answers_as_predict_does_on_300_messages(
    shared_data: Path, preparation: Preparation, tmp_path: Path
) -> None:
    rows = TextDataset.from_file(
        shared_data / "sms_spam.tsv", text=1, label=0, tokenizer=load_gpt2("nano").tokenizer, classes=["ham", "spam"]
    )
    order = np.random.default_rng(0).permutation(len(rows))
    texts, labels = [[values[i] for i in order[:364]] for values in (rows.texts, rows.given)]
    same_answers(trained(texts[:64], labels[:64], preparation), hard(texts[64:]), tmp_path)
