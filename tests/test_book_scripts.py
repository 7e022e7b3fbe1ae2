"""The book's two scripts of chapter 6 beside the same written with gptclf: equal losses and accuracies.

One side is the book's algorithm in plain torch: rows filled up to one length with the end of text, the output of one
position or the mean of all, AdamW. The other side is what the guide "From the book to gptclf" makes of it. Both start
from one file of random weights and see the same rows in the same order.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import byte_gpt2, byte_tokenizer
from test_book import SMALL, Build, Reference, small, the_books_own
from test_parity import byte_texts
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from gptclf import (
    GPT2,
    Batches,
    Callback,
    History,
    Preparation,
    TextDataset,
    TextWindows,
    add_classifier_head,
    batch_loss,
    dataset_accuracy,
    dataset_loss,
    evaluate,
    freeze,
    load_gpt2,
    load_model,
    predict,
    predict_proba,
    save_model,
    train,
    train_lm,
)

LENGTH, PAD, CLOSE = 30, 256, 1e-5
CONFIG: dict[str, Any] = {**SMALL, "qkv_bias": True}
TOKENIZER = byte_tokenizer()
Position = int | str  # a column, "flexible" or "mean", as in the book's extra experiments


# The book's side.


def book_rows(texts: Sequence[str]) -> Tensor:
    rows = [TOKENIZER.encode_ordinary(text)[:LENGTH] for text in texts]
    return torch.tensor([row + [PAD] * (LENGTH - len(row)) for row in rows])


def book_outputs(model: nn.Module, ids: Tensor, position: Position) -> Tensor:
    outputs: Tensor = model(ids)
    if position == "mean":
        return outputs.mean(dim=1)
    if position == "flexible":
        return outputs[torch.arange(len(ids)), (ids != PAD).sum(dim=1) - 1]
    return outputs[:, int(position)]


def book_freeze(model: Any, trainable: str) -> None:
    blocks = {"last_layer": 0, "last_block": 1, "last_two_blocks": 2}
    model.requires_grad_(trainable == "all")
    model.out_head.requires_grad_(True)
    if blocks.get(trainable):
        for part in (*model.trf_blocks[-blocks[trainable] :], model.final_norm):
            part.requires_grad_(True)


def book_measures(model: nn.Module, ids: Tensor, labels: Tensor, position: Position) -> tuple[float, float]:
    """The loss and the accuracy of a whole set."""
    with torch.no_grad():
        outputs = book_outputs(model, ids, position)
    return float(F.cross_entropy(outputs, labels)), float((outputs.argmax(dim=-1) == labels).float().mean())


def book_train(
    model: nn.Module,
    ids: Tensor,
    labels: Tensor,
    order: list[list[np.ndarray]],
    position: Position,
    every: int = 1,
    lr: float = 1e-3,
) -> tuple[list[float], list[tuple[float, float]]]:
    """The losses of the steps, each over `every` batches, and loss and accuracy of the whole set after each epoch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.1)
    losses, measures = [], []
    for batches in order:
        for i, rows in enumerate(batches):
            loss = F.cross_entropy(book_outputs(model, ids[rows], position), labels[rows]) / every
            loss.backward()  # type: ignore[no-untyped-call]
            losses.append(float(loss.detach()))
            if (i + 1) % every == 0:
                optimizer.step()
                optimizer.zero_grad()
        measures.append(book_measures(model, ids, labels, position))
    return [sum(losses[i : i + every]) for i in range(0, len(losses), every)], measures


class Scripts:
    """A file of the book's model with random weights, and texts with labels 0 and 1 in a training and a test set."""

    def __init__(self, folder: Path, build: Build = Reference, n: int = 72) -> None:
        self.book: Any = small(build, qkv_bias=True)
        self.file = folder / "gpt.pth"
        torch.save(self.book.state_dict(), self.file)
        torch.manual_seed(123)
        self.book.out_head = nn.Linear(in_features=CONFIG["emb_dim"], out_features=2)
        texts, labels = byte_texts(n, longest=LENGTH)
        self.texts, self.labels = texts, [int(label == "LABEL_1") for label in labels]
        self.ids, self.targets = book_rows(texts), torch.tensor(self.labels)

    def classifier(self, **options: Any) -> GPT2:
        """The guide's way from the book's file to a classifier, with the book's draw of the head."""
        gpt2 = load_gpt2(self.file, settings=CONFIG, tokenizer=TOKENIZER)
        clf = add_classifier_head(gpt2, classes=[0, 1], **options)
        clf.head.output.load_state_dict(self.book.out_head.state_dict())  # type: ignore[union-attr]
        return clf

    def sets(self, **options: Any) -> tuple[TextDataset, TextDataset]:
        """The training and the test set; the rest of the options are those of `TextDataset`."""
        given: Any = {"tokenizer": TOKENIZER, "classes": [0, 1], "max_length": LENGTH, **options}
        return (
            TextDataset(self.texts[:43], self.labels[:43], **given),
            TextDataset(self.texts[43:], self.labels[43:], **given),
        )


def order_of(rows: TextDataset, epochs: int, drop_last: bool = False) -> list[list[np.ndarray]]:
    """The row numbers of each batch of `train(..., batch_size=8, seed=123)`."""
    batches = Batches(rows, batch_size=8, seed=123, drop_last=drop_last)
    found = [[batch.rows for batch in batches.epoch(epoch)] for epoch in range(epochs)]
    return [[rows.numpy() for rows in epoch if rows is not None] for epoch in found]


both = pytest.mark.parametrize("build", [Reference, the_books_own], ids=["reference", "package"])


@both
def test_gpt_class_finetune(build: Build, tmp_path: Path) -> None:
    scripts = Scripts(tmp_path, build)
    clf = scripts.classifier()
    train_set, test_set = scripts.sets(pad_to=LENGTH)
    book_freeze(scripts.book, "last_block")
    before = book_measures(scripts.book, scripts.ids[:43], scripts.targets[:43], -1)
    assert dataset_loss(clf, train_set) == pytest.approx(before[0], abs=CLOSE)
    assert dataset_accuracy(clf, train_set) == pytest.approx(before[1], abs=CLOSE)

    history = train(
        clf,
        train_set,
        test_set,
        epochs=3,
        batch_size=8,
        lr=1e-3,
        weight_decay=0.1,
        drop_last=True,
        seed=123,
        precision="float32",
        progress=False,
    )
    order = order_of(train_set, 3, drop_last=True)
    assert {len(rows) for epoch in order for rows in epoch} == {8}
    losses, measures = book_train(scripts.book, scripts.ids[:43], scripts.targets[:43], order, -1)
    assert len(losses) == 15
    np.testing.assert_allclose([step.loss for step in history.steps], losses, rtol=0, atol=CLOSE)
    assert losses[-1] != pytest.approx(losses[0], abs=0.05)
    found = [(scores.train["loss"], scores.train["accuracy"]) for scores in history.epochs]
    np.testing.assert_allclose(found, measures, rtol=0, atol=CLOSE)

    loss, accuracy = book_measures(scripts.book, scripts.ids[43:], scripts.targets[43:], -1)
    result = evaluate(clf, test_set)
    assert result.accuracy == pytest.approx(accuracy, abs=CLOSE)
    assert dataset_loss(clf, test_set) == pytest.approx(loss, abs=CLOSE)
    assert history.epochs[-1].val_loss == pytest.approx(loss, abs=CLOSE)

    # classify_review, and the file that the book's script leaves behind
    with torch.no_grad():
        expected = book_outputs(scripts.book, scripts.ids[43:], -1).softmax(dim=-1).numpy()
    torch.save(scripts.book.state_dict(), tmp_path / "review_classifier.pth")
    theirs = load_model(tmp_path / "review_classifier.pth", classes=[0, 1], settings=CONFIG)
    theirs.preparation = Preparation(max_length=LENGTH, pad_to=LENGTH)
    theirs.tokenizer = TOKENIZER
    for model in (clf, load_model(save_model(clf, tmp_path / "saved")), theirs):
        np.testing.assert_allclose(predict_proba(model, scripts.texts[43:]), expected, rtol=0, atol=CLOSE)
        assert predict(model, scripts.texts[43:]) == expected.argmax(axis=1).tolist()


@pytest.mark.parametrize(
    ("trainable", "position", "pooling", "pad_to"),
    [
        ("last_block", -1, "last", LENGTH),
        ("last_layer", -1, "last", LENGTH),
        ("last_two_blocks", -1, "last", LENGTH),
        ("all", -1, "last", LENGTH),
        ("last_block", "flexible", "last", None),
        ("all", "flexible", "last", None),
        ("last_block", 0, "first", LENGTH),
        ("all", 0, "first", None),
        ("last_two_blocks", "mean", "mean", LENGTH),
        ("last_layer", "mean", "mean", LENGTH),
    ],
)
@pytest.mark.parametrize("reuse", [True, False])
def test_additional_experiments(
    trainable: str, position: Position, pooling: str, pad_to: int | None, reuse: bool, tmp_path: Path
) -> None:
    scripts = Scripts(tmp_path)
    clf = scripts.classifier(pooling=pooling)
    freeze(clf, trainable=trainable)
    train_set, test_set = scripts.sets(pad_to=pad_to)
    book_freeze(scripts.book, trainable)
    trained = [sum(p.numel() for p in model.parameters() if p.requires_grad) for model in (clf, scripts.book)]
    assert trained[0] == trained[1]
    history = train(
        clf,
        train_set,
        epochs=2,
        batch_size=8,
        lr=1e-3,
        weight_decay=0.1,
        seed=123,
        precision="float32",
        reuse_frozen=reuse,
        progress=False,
    )
    order = order_of(train_set, 2)
    assert len(order[0][-1]) == 3  # a last batch that is not full
    losses, measures = book_train(scripts.book, scripts.ids[:43], scripts.targets[:43], order, position)
    np.testing.assert_allclose([step.loss for step in history.steps], losses, rtol=0, atol=CLOSE)
    found = [(scores.train["loss"], scores.train["accuracy"]) for scores in history.epochs]
    np.testing.assert_allclose(found, measures, rtol=0, atol=CLOSE)
    loss, accuracy = book_measures(scripts.book, scripts.ids[43:], scripts.targets[43:], position)
    assert dataset_loss(clf, test_set) == pytest.approx(loss, abs=CLOSE)
    assert evaluate(clf, test_set).accuracy == pytest.approx(accuracy, abs=CLOSE)


def test_steps_over_several_batches(tmp_path: Path) -> None:
    scripts = Scripts(tmp_path)
    clf, (train_set, _) = scripts.classifier(), scripts.sets()
    book_freeze(scripts.book, "last_block")
    rows = np.arange(32)  # two groups of two batches; for a smaller last group see the guide
    history = train(
        clf, train_set.subset(rows), epochs=2, lr=1e-3, accumulate=2, seed=123, precision="float32", progress=False
    )
    order = order_of(train_set.subset(rows), 2)
    losses, _ = book_train(scripts.book, scripts.ids[:32], scripts.targets[:32], order, "flexible", every=2)
    np.testing.assert_allclose([step.loss for step in history.steps], losses, rtol=0, atol=CLOSE)


def test_the_loop_by_hand(tmp_path: Path) -> None:
    scripts = Scripts(tmp_path)
    clf, (train_set, _) = scripts.classifier(), scripts.sets(pad_to=LENGTH)
    book_freeze(scripts.book, "last_block")
    optimizer = torch.optim.AdamW([p for p in clf.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.1)
    found = []
    for batch in Batches(train_set, batch_size=8, seed=123).epoch(0):
        optimizer.zero_grad()
        loss = batch_loss(clf, batch)
        assert batch.targets is not None
        expected = F.cross_entropy(clf.token_logits(batch.inputs)[:, -1, :], batch.targets)
        torch.testing.assert_close(loss, expected)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        found.append(float(loss.detach()))
    losses, _ = book_train(scripts.book, scripts.ids[:43], scripts.targets[:43], order_of(train_set, 1), -1)
    np.testing.assert_allclose(found, losses, rtol=0, atol=CLOSE)


def block_of_the_guide(beginning: str) -> str:
    """The block of the guide "From the book to gptclf" that holds a line."""
    path = Path(__file__).parents[1] / "docs" / "from-the-book.md"
    blocks = re.findall(r"^```python\n(.*?)^```$", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    (found,) = [block for block in blocks if beginning in block]
    return str(found)


def test_the_guides_whole_script_is_the_books(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripts = Scripts(tmp_path, n=120)
    gpt2 = load_gpt2(scripts.file, settings=CONFIG, tokenizer=TOKENIZER)
    made = SimpleNamespace(make_messages=lambda *_, **__: (scripts.texts, [["ham", "spam"][i] for i in scripts.labels]))
    monkeypatch.setitem(sys.modules, "messages", made)
    monkeypatch.setattr("gptclf.load_gpt2", lambda _: gpt2)
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(block_of_the_guide("train_df, validation_df, test_df"), found)
    assert found["longest"] == LENGTH
    assert [len(found[name]) for name in ("train_set", "val_set", "test_set")] == [84, 12, 24]
    book_freeze(scripts.book, "last_block")
    train_part, test_part = slice(84), slice(96, None)
    losses, _ = book_train(
        scripts.book,
        scripts.ids[train_part],
        scripts.targets[train_part],
        order_of(found["train_set"], 2, drop_last=True),
        -1,
        lr=5e-5,
    )
    history = found["history"]
    np.testing.assert_allclose([step.loss for step in history.steps], losses, rtol=0, atol=CLOSE)
    loss, accuracy = book_measures(scripts.book, scripts.ids[test_part], scripts.targets[test_part], -1)
    for clf in (found["clf"], load_model(tmp_path / "review-classifier")):
        assert dataset_loss(clf, found["test_set"]) == pytest.approx(loss, abs=CLOSE)
        assert evaluate(clf, found["test_set"]).accuracy == pytest.approx(accuracy, abs=CLOSE)
        assert predict(clf, scripts.texts[96:]) == scripts_answers(scripts, test_part)


def scripts_answers(scripts: Scripts, part: slice) -> list[int]:
    with torch.no_grad():
        answers: list[int] = book_outputs(scripts.book, scripts.ids[part], -1).argmax(dim=-1).tolist()
    return answers


def test_the_guides_loop_takes_the_books_batches(tmp_path: Path) -> None:
    scripts = Scripts(tmp_path)
    clf, (train_set, _) = scripts.classifier(), scripts.sets(pad_to=LENGTH)
    book_freeze(scripts.book, "last_block")
    rows = TensorDataset(scripts.ids[:43], scripts.targets[:43])
    torch.manual_seed(123)
    optimizer = torch.optim.AdamW(scripts.book.parameters(), lr=5e-5, weight_decay=0.1)
    for ids, labels in DataLoader(rows, batch_size=8, shuffle=True, drop_last=True):
        optimizer.zero_grad()
        F.cross_entropy(scripts.book(ids)[:, -1], labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    loop = block_of_the_guide("for chosen in loader:").replace(
        "clf = add_classifier_head(gpt2, classes=[0, 1], seed=123)", ""
    )
    exec(loop, {"clf": clf, "train_set": train_set, "torch": torch})
    expected = book_measures(scripts.book, scripts.ids[:43], scripts.targets[:43], -1)
    assert dataset_loss(clf, train_set) == pytest.approx(expected[0], abs=1e-6)
    trained = scripts.book.out_head.weight.detach()
    torch.testing.assert_close(clf.get_parameter("head.output.weight").detach(), trained, atol=1e-6, rtol=0)


def test_the_guides_schedule_is_that_of_appendix_d() -> None:
    namespace: dict[str, Any] = {
        "Callback": Callback,
        "train_lm": lambda *_, **__: History(),
        "small": None,
        "windows": 0,
    }
    exec(block_of_the_guide("class BookSchedule"), namespace)
    gpt2 = byte_gpt2()
    freeze(gpt2, trainable="last_block")
    windows = TextWindows("to be or not to be, that is the question " * 20, tokenizer=TOKENIZER, length=32)
    schedule = namespace["BookSchedule"](7, initial_lr=3e-5, min_lr=1e-6)
    history = train_lm(gpt2, windows, epochs=2, batch_size=2, lr=5e-4, callbacks=[schedule], progress=False)
    n, expected = len(history.steps), []
    for i in range(n):
        rising = 3e-5 + i * (5e-4 - 3e-5) / 7
        falling = 1e-6 + (5e-4 - 1e-6) * (1 + np.cos(np.pi * (i - 7) / (n - 7))) / 2
        expected.append(rising if i < 7 else falling)
    assert n > 20
    np.testing.assert_allclose([step.lr for step in history.steps], expected, rtol=1e-9)


def test_rows_of_weight_0_are_those_that_the_book_ignores(tmp_path: Path) -> None:
    scripts = Scripts(tmp_path)
    clf = scripts.classifier()
    ignored = np.arange(43) % 5 == 0
    data = TextDataset(
        scripts.texts[:43],
        scripts.labels[:43],
        tokenizer=TOKENIZER,
        classes=[0, 1],
        weights=np.where(ignored, 0.0, 1.0),
    )
    targets = scripts.targets[:43].masked_fill(torch.from_numpy(ignored), -100)
    for batch in Batches(data, batch_size=8):
        assert batch.rows is not None
        with torch.no_grad():
            outputs = book_outputs(scripts.book, scripts.ids[batch.rows], "flexible")
            expected = F.cross_entropy(outputs, targets[batch.rows], ignore_index=-100)
            torch.testing.assert_close(batch_loss(clf, batch), expected)
