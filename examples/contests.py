"""The measurements of `benchmark.py`: gptclf and its peers take turns on the same rows and weights."""

import argparse
import functools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peers
import torch
from isolated import PROBES
from messages import make_messages
from sources import book_split, find_sms, read_banking77
from torch.nn import functional as F

from gptclf import (
    GPT2,
    GPT2Config,
    Preparation,
    TextDataset,
    add_classifier_head,
    clear_features,
    evaluate,
    freeze,
    load_gpt2,
    predict,
    save_model,
    train,
)
from gptclf.features.frozen_prefix import FrozenPrefix, compute_chunk
from gptclf.gpt2.arithmetic import BFLOAT16
from gptclf.gpt2.config import PRESETS
from gptclf.gpt2.packed import chunks_of

TINY = GPT2Config(vocab_size=4096, context_length=128, emb_dim=32, n_heads=2, n_layers=5)
Named = tuple[list[str], list[str]]


class Bench:
    """The rows, the weights and the measurements.

    Attributes:
        seconds: The seconds of each run, by name of the measurement.
        notes: Figures that are not seconds.
    """

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.rounds, self.tiny, self.folder, self.out = args.rounds, args.tiny, folder, args.out
        self.banking: Path | None = args.banking
        self.checkpoint: Path | None = args.checkpoint
        self.sizes: list[str] = args.sizes
        if args.data == "messages":
            texts, labels = make_messages(60 if args.tiny else 1494)
            ends = (int(0.7 * len(texts)), int(0.8 * len(texts)))
            cuts = [(0, ends[0]), ends, (ends[1], len(texts))]
            self.parts: list[Named] = [(texts[a:b], labels[a:b]) for a, b in cuts]
        else:
            self.parts = [(list(p[0]), list(p[1])) for p in book_split(find_sms() if args.data == "sms" else args.data)]
        self.gpt2 = load_gpt2("nano") if args.tiny else load_gpt2("gpt2", weights="random", seed=0)
        if args.tiny:
            nano, self.gpt2 = self.gpt2, GPT2(TINY, seed=0).requires_grad_(False)
            self.gpt2.tokenizer = nano.tokenizer
        save_model(self.gpt2, folder)
        self.gpt2 = load_gpt2(str(folder))  # memory-mapped, as a user's are
        self.width = min(120, self.gpt2.config.context_length)
        self.seconds: dict[str, list[float]] = {}
        self.notes: dict[str, Any] = {}

    def classifier(self, trainable: str | int = "last_block") -> GPT2:
        """Make a new classifier over the one GPT-2."""
        clf = add_classifier_head(self.gpt2, classes=["ham", "spam"], seed=123)
        freeze(clf, trainable=trainable)
        return clf

    def sets(self, clf: GPT2) -> list[TextDataset]:
        """Encode the training, validation and test sets."""
        return [self.encoded(clf, texts, labels) for texts, labels in self.parts]

    def encoded(self, clf: GPT2, texts: list[str], labels: list[str]) -> TextDataset:
        """Encode some rows."""
        return TextDataset(texts, labels, tokenizer=clf.tokenizer, classes=clf.classes, max_length=self.width)

    def rows(self, part: int) -> peers.Rows:
        """Return the same rows as lists of ids, for the peers."""
        dataset = self.sets(self.classifier("head"))[part]
        labels = dataset.targets().tolist()
        return [(ids.tolist(), label) for ids, label in zip(dataset.rows(), labels, strict=True)]

    def recipe(self, *, trainable: str | int = "last_block", lr: float = 5e-5, precision: str = "auto") -> float:
        """Time the recipe, in seconds, from a loaded GPT-2 to the test accuracy, with the book's evaluations."""
        start = time.perf_counter()
        clf = self.classifier(trainable)
        train_set, val_set, test_set = self.sets(clf)
        train(
            clf, train_set, val_set, epochs=5, lr=lr, precision=precision, eval_every=50, eval_batches=5, progress=False
        )
        for part in (train_set, val_set, test_set):
            result = evaluate(clf, part, precision=precision)
        taken = time.perf_counter() - start
        self.notes[f"test accuracy, {trainable}, {precision}, lr {lr:g}"] = result.accuracy
        return taken

    def take_turns(self, contenders: dict[str, Callable[[], float]], rounds: int | None = None) -> None:
        """Run each contender once per round and record its seconds."""
        for turn in range(self.rounds if rounds is None else rounds):
            for name, run in contenders.items():
                seconds = run()
                self.seconds.setdefault(name, []).append(seconds)
                print(f"  round {turn + 1}: {name}: {seconds:.3g} s", flush=True)

    def median(self, name: str) -> float:
        """Return the median seconds of a measurement, or NaN if it was not made."""
        return statistics.median(self.seconds[name]) if name in self.seconds else float("nan")


def cold(run: Callable[[], float]) -> Callable[[], float]:
    """Run it without features of earlier runs."""

    def from_nothing() -> float:
        clear_features()
        return run()

    return from_nothing


def bench_recipe(b: Bench) -> None:
    """Measure the SMS recipe, last block, cold and again, in both precisions, against the book and Trainer."""
    sizes = (len(b.parts[0][0]), len(b.parts[1][0]), len(b.parts[2][0]))
    book, rows, epochs = peers.Book(b.gpt2, trainable="last_block", width=b.width), b.rows(0), 5
    some = [rows[i * 8 : i * 8 + 8] for i in range(2 if b.tiny else 6)]

    def book_seconds() -> float:
        step = statistics.median(book.step_seconds(part) for part in some)
        looking = statistics.median(book.evaluation_seconds(part) for part in some)
        b.seconds.setdefault("book: one epoch of steps", []).append(step * (sizes[0] // 8))
        return peers.book_recipe(step, looking, sizes)

    def tuned(precision: str) -> Callable[[], float]:
        def run() -> float:
            return epochs * peers.trainer_epoch(b.folder, rows, trainable="last_block", tuned=True, precision=precision)

        return run

    def suffix_epoch() -> float:
        clf = b.classifier()
        train_set = b.sets(clf)[0]
        start, ends = 0.0, []
        history = train(clf, train_set, epochs=3, eval_batches=1, progress=False)
        ends = [scores.seconds for scores in history.epochs]
        start = ends[0]
        return (ends[-1] - start) / 2

    b.take_turns(
        {
            "gptclf: recipe": cold(b.recipe),
            "gptclf: recipe again, other lr": lambda: b.recipe(lr=1e-4),
            "gptclf: one suffix epoch": suffix_epoch,
            "gptclf: recipe, float32": cold(lambda: b.recipe(precision="float32")),
            "book: recipe (from steps)": book_seconds,
            "Trainer tuned: recipe": tuned("bfloat16"),
            "Trainer tuned: recipe, float32": tuned("float32"),
        }
    )
    b.take_turns(
        {
            "Trainer default: recipe": lambda: (
                epochs * peers.trainer_epoch(b.folder, rows, trainable="last_block", tuned=False, precision="float32")
            )
        },
        rounds=1,
    )
    b.notes["TF-IDF + logistic regression: seconds, test accuracy"] = peers.tfidf(b.parts[0], b.parts[2])


def bench_whole_book(b: Bench) -> None:
    """Run the book's recipe in full, once, to check the time computed from steps."""
    book, start = peers.Book(b.gpt2, trainable="last_block", width=b.width), time.perf_counter()
    sets = [b.rows(i) for i in range(3)]

    def look(rows: peers.Rows, batches: int | None) -> None:
        for i in range(0, len(rows), 8)[:batches]:
            book.evaluation_seconds(rows[i : i + 8])

    step = 0
    for _ in range(5):
        for i in range(len(sets[0]) // 8):
            book.step_seconds(sets[0][i * 8 : i * 8 + 8])
            if step % 50 == 0:
                for rows in sets[:2]:
                    look(rows, 5)
            step += 1
        for rows in sets[:2]:
            look(rows, 5)
    for rows in sets:
        look(rows, None)
    b.seconds["book: recipe (in full)"] = [time.perf_counter() - start]


def bench_deep(b: Bench) -> None:
    """Measure more than the last block: all layers for an epoch, two and four blocks for a recipe."""
    rows = b.rows(0)
    book = peers.Book(b.gpt2, trainable="all", width=b.width)
    n = len(rows) // 8

    def ours() -> float:
        clf = b.classifier("all")
        train_set = b.sets(clf)[0]
        return train(clf, train_set, epochs=1, eval_batches=1, progress=False).seconds

    b.take_turns(
        {
            "gptclf: all layers, one epoch": ours,
            "book: all layers, one epoch (from steps)": lambda: (
                n * statistics.median(book.step_seconds(rows[i * 8 : i * 8 + 8]) for i in range(3))
            ),
            "Trainer tuned: all layers, one epoch": lambda: peers.trainer_epoch(
                b.folder, rows, trainable="all", tuned=True, precision="bfloat16"
            ),
        },
        rounds=min(2, b.rounds),
    )
    for blocks in (2, 4):
        run = cold(functools.partial(b.recipe, trainable=blocks))
        b.take_turns({f"gptclf: recipe, last {blocks} blocks": run}, rounds=1)


def bench_folds(b: Bench) -> None:
    """Measure five-fold cross-validation over three learning rates: fifteen trainings, one prefix."""
    clear_features()
    start = time.perf_counter()
    clf = b.classifier()
    data = b.encoded(clf, [t for p in b.parts[:2] for t in p[0]], [n for p in b.parts[:2] for n in p[1]])
    seconds = []
    for lr in (2e-5, 5e-5, 1e-4):
        for fold in range(5):
            clf = b.classifier()
            held_out = np.arange(len(data)) % 5 == fold
            began = time.perf_counter()
            train(
                clf,
                data.subset(np.flatnonzero(~held_out)),
                data.subset(np.flatnonzero(held_out)),
                lr=lr,
                progress=False,
            )
            seconds.append(time.perf_counter() - began)
    b.seconds["gptclf: 15 trainings of cross-validation"] = [time.perf_counter() - start]
    b.notes["cross-validation: first training, median of the others (s)"] = [seconds[0], statistics.median(seconds[1:])]


def bench_predict(b: Bench) -> None:
    """Measure predictions per second on the test texts."""
    texts = b.parts[2][0]
    clf = b.classifier()
    clf.preparation = Preparation(max_length=b.width)
    pipeline = peers.pipeline_inference(b.folder, texts)
    loop = peers.tuned_inference(b.folder, b.rows(2))

    def timed(run: Callable[[], Any]) -> Callable[[], float]:
        def seconds() -> float:
            start = time.perf_counter()
            run()
            return time.perf_counter() - start

        return seconds

    predict(clf, texts[:2])
    b.take_turns(
        {
            "gptclf: predict the test set": timed(lambda: predict(clf, texts)),
            "gptclf: predict the test set, float32": timed(lambda: predict(clf, texts, precision="float32")),
            "gptclf: predict one text": timed(lambda: [predict(clf, texts[i : i + 1]) for i in range(10)]),
            "pipeline: predict the test set": timed(pipeline),
            "tuned bf16 loop: predict the test set": timed(loop),
        }
    )
    for name in [name for name in b.seconds if "predict the test set" in name]:
        b.notes[f"{name}: texts per second"] = len(texts) / b.median(name)


def bench_prefix(b: Bench) -> None:
    """Measure the prefix's rate as a share of a plain product's on the same shapes in the same process."""
    clf = b.classifier()
    D, dtype = clf.config.emb_dim, torch.bfloat16
    for what, depth, rows in (("the SMS set", None, None), ("a million tokens", 3, 1_000_000)):
        ids = [row for part in b.sets(clf)[:2] for row in part.rows()]
        if rows is not None:
            copies = (20_000 if b.tiny else rows) // sum(map(len, ids)) + 1
            ids = ids * copies
        order = np.argsort([len(row) for row in ids], kind="stable")
        ids = [ids[i] for i in order]
        prefix = FrozenPrefix(clf, clf.config.n_layers if depth is None else depth, BFLOAT16)
        shares = []
        for _ in range(b.rounds if rows is None else 1):
            rate = _product_rate(D, dtype)
            start = time.perf_counter()
            for chunk in chunks_of(np.array([len(row) for row in ids])):
                compute_chunk(prefix, ids[chunk])
            taken = time.perf_counter() - start
            tokens = sum(map(len, ids))
            shares.append(24 * D * D * tokens * prefix.n_blocks / taken / rate)
            b.notes[f"F.linear in bfloat16 beside {what} (GFLOP/s)"] = rate / 1e9
        b.notes[f"prefix in bfloat16 on {what}: share of F.linear's rate"] = statistics.median(shares)


def _product_rate(D: int, dtype: torch.dtype) -> float:
    """Measure operations per second of `F.linear` over a block's four shapes, 1,024 tokens each."""
    total = 0.0
    for K, N in ((D, 3 * D), (D, D), (D, 4 * D), (4 * D, D)):
        x, weight, bias = torch.randn(1024, K).to(dtype), torch.randn(N, K).to(dtype), torch.randn(N).to(dtype)
        taken = []
        for _ in range(7):
            start = time.perf_counter()
            F.linear(x, weight, bias)
            taken.append(time.perf_counter() - start)
        total += statistics.median(taken)
    return 24 * D * D * 1024 / total


def bench_processes(b: Bench) -> None:
    """Measure what needs its own process: memory, start-up, growth."""
    for name, repeats in PROBES:
        for _ in range(1 if b.tiny else repeats):
            isolated(b, name, b.folder)


def isolated(b: Bench, name: str, folder: Path) -> None:
    """Run one measurement of isolated.py in its own process and record its result."""
    (folder / "parts.json").write_text(json.dumps(b.parts))
    command = [sys.executable, str(Path(__file__).parent / "isolated.py"), name, str(folder), str(b.width)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"{name} failed: {result.stderr[-2000:]}")
    values = json.loads(result.stdout.splitlines()[-1])
    for key, value in values.items():
        b.notes.setdefault(f"{name}: {key}", []).append(value)
    print(f"  {name}: {values}", flush=True)


def bench_exactness(b: Bench) -> None:
    """Measure the effect of bfloat16, with paired seeds, and of reusing the frozen part in float32."""
    tasks: dict[str, tuple[Named, Named, int]] = {"SMS": (b.parts[0], b.parts[2], 5)}
    if b.banking is not None:
        (texts, labels), (new_texts, new_labels) = read_banking77(b.banking)
        chosen = np.random.default_rng(0).permutation(len(texts))[:3000]
        shown = ([texts[i] for i in chosen], [labels[i] for i in chosen])
        tasks["Banking77, 3,000 of its texts"] = (shown, (list(new_texts[::3]), list(new_labels[::3])), 5)
    for task, (shown, new, epochs) in tasks.items():
        accuracies, equal = [], []
        for seed in (1, 2, 3):
            found = []
            for precision in ("bfloat16", "float32"):
                clf = add_classifier_head(b.gpt2, classes=sorted(set(shown[1])), seed=seed)
                train(
                    clf,
                    b.encoded(clf, *shown),
                    epochs=epochs,
                    seed=seed,
                    precision=precision,
                    eval_batches=1,
                    progress=False,
                )
                found.append(evaluate(clf, b.encoded(clf, *new), precision=precision))
            accuracies.append([result.accuracy for result in found])
            same = zip(found[0].predictions, found[1].predictions, strict=True)
            equal.append(statistics.mean(a == c for a, c in same))
            print(f"  {task}, seed {seed}: accuracy {accuracies[-1]}, equal predictions {equal[-1]:.4f}", flush=True)
        b.notes[f"{task}: mean accuracy in bfloat16, in float32"] = np.mean(accuracies, axis=0).tolist()
        b.notes[f"{task}: equal predictions"] = statistics.mean(equal)
    for epochs, n in ((1, len(b.parts[0][0])), (5, 200)):
        losses = []
        for reuse in (True, False):
            clf = b.classifier()
            some = b.encoded(clf, b.parts[0][0][:n], b.parts[0][1][:n])
            history = train(
                clf, some, epochs=epochs, precision="float32", reuse_frozen=reuse, eval_batches=1, progress=False
            )
            losses.append([step.loss for step in history.steps])
        b.notes[f"float32, reuse on and off, {epochs} epochs of {n} texts: largest difference of losses"] = float(
            np.abs(np.array(losses[0]) - np.array(losses[1])).max()
        )


def xl_folder(b: Bench) -> Path:
    """Return a folder with full-size random weights of GPT-2 XL and the texts."""
    folder = b.out / "xl"
    config = GPT2Config(emb_dim=48, n_heads=3, n_layers=4, vocab_size=4096) if b.tiny else PRESETS["gpt2-xl"]
    if not folder.exists():
        xl = GPT2(config, seed=0)
        xl.tokenizer = b.gpt2.tokenizer
        save_model(xl, folder)
    return folder  # type: ignore[no-any-return]


def bench_xl(b: Bench) -> None:
    """Measure GPT-2 XL: the recipe in a process whose memory is sampled."""
    isolated(b, "XL recipe", xl_folder(b))


PARTS = {
    "recipe": bench_recipe,
    "folds": bench_folds,
    "deep": bench_deep,
    "predict": bench_predict,
    "prefix": bench_prefix,
    "processes": bench_processes,
    "exactness": bench_exactness,
    "xl": bench_xl,
    "whole-book": bench_whole_book,
}
