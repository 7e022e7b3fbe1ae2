"""Measure what the interfaces cost on SMS Spam with `nano`: a search of scikit-learn, the command line, and its help.

    python examples/interface_costs.py --data sms_spam.tsv                 # about five minutes on two cores
    python examples/interface_costs.py --data sms_spam.tsv --only help predict

`search` runs GridSearchCV over 12 settings with 5 folds and counts the tokens that go through the first frozen block,
beside those of the different texts. `predict` scores 5,000 rows from a CSV file to a CSV file, in turn with the
library's `predict` on the same texts. `help` starts `gptclf train --help` in new processes.
"""

import argparse
import csv
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accuracy_table import processor
from sources import read_sms

from gptclf import TextDataset, add_classifier_head, clear_features, load_gpt2, predict, save_model, train
from gptclf.cli.main import main as command_line
from gptclf.gpt2.trunk import Attention

ROUNDS = 5


def seconds(work: Callable[[], Any]) -> float:
    """Return how long some work takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def search(texts: list[str], labels: list[Any]) -> None:
    """Time the search and count the tokens of the frozen part."""
    from sklearn.model_selection import GridSearchCV, StratifiedKFold

    from gptclf.sklearn import GPT2Classifier

    gpt2 = load_gpt2("nano")
    first: Any = gpt2.trunk.blocks[0]
    place, counted, mix = first.attention.qkv.weight.data_ptr(), 0, Attention.mix

    def counting(self: Attention, qkv: torch.Tensor, *more: Any) -> Any:
        nonlocal counted
        counted += qkv.shape[:-1].numel() if self.qkv.weight.data_ptr() == place else 0
        return mix(self, qkv, *more)

    grid = {"lr": [3e-4, 1e-3, 3e-3], "batch_size": [32, 64], "weight_decay": [0.0, 0.1]}
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    found = GridSearchCV(GPT2Classifier(gpt2, epochs=2), grid, cv=folds, scoring="f1_macro", refit=False)
    Attention.mix = counting  # type: ignore[method-assign, assignment]
    try:
        taken = seconds(lambda: found.fit(texts, labels))
    finally:
        Attention.mix = mix  # type: ignore[method-assign]
    tokens = len(TextDataset(sorted(set(texts)), tokenizer=gpt2.tokenizer).ids)
    print(f"search: 12 settings x 5 folds, 2 epochs, {len(texts):,} texts: {taken:.0f} s")
    print(f"search: {counted:,} tokens through the frozen blocks; the different texts have {tokens:,}")
    print(f"search: best {found.best_params_}, macro-F1 {found.best_score_:.3f}", flush=True)


def command_line_rate(texts: list[str], labels: list[Any]) -> None:
    """Time 5,000 rows through the command line and through `predict`, taking turns."""
    clf = add_classifier_head(load_gpt2("nano"), classes=["ham", "spam"], seed=1)
    train(clf, TextDataset(texts[:500], labels[:500], tokenizer=clf.tokenizer), epochs=1, lr=1e-3, progress=False)
    clear_features()
    with tempfile.TemporaryDirectory() as folder:
        model, file, out = (str(Path(folder, name)) for name in ("model", "rows.csv", "out.csv"))
        save_model(clf, model)
        with Path(file).open("w", encoding="utf-8", newline="") as rows:
            csv.writer(rows).writerows([["id", "body"], *enumerate(texts[:5000])])
        contenders: dict[str, Callable[[], Any]] = {
            "predict": lambda: predict(clf, texts[:5000]),
            "gptclf predict, loading included": lambda: command_line(
                ["predict", model, file, "--text", "body", "--out", out]
            ),
        }
        best = dict.fromkeys(contenders, float("inf"))
        for _ in range(ROUNDS):
            best = {name: min(best[name], seconds(work)) for name, work in contenders.items()}
    for name, taken in best.items():
        print(f"predict: {name}: {5000 / taken:,.0f} rows/s, {best['predict'] / taken:.1%}", flush=True)


def start_up(texts: list[str], labels: list[Any]) -> None:
    """Time the help of a command in new processes."""
    command = [sys.executable, "-m", "gptclf", "train", "--help"]
    taken = [seconds(lambda: subprocess.run(command, check=True, capture_output=True)) for _ in range(4 * ROUNDS)]
    print(f"help: {min(taken):.3f} s at best, {sorted(taken)[len(taken) // 2]:.3f} s in the median", flush=True)


PARTS = {"help": start_up, "predict": command_line_rate, "search": search}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the SMS Spam Collection")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    args = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    print(f"{processor()}; {torch.get_num_threads()} threads")
    texts, labels = (list(column) for column in read_sms(args.data))
    for name in args.only:
        PARTS[name](texts, labels)


if __name__ == "__main__":
    main()
