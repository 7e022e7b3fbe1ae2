"""Does a long-running process stay flat? Memory, open files and threads over loads, predictions and trainings.

    python examples/soak.py [--share 0.1]

Loads and drops a saved classifier 500 times with the garbage collector off, predicts 2,000 times and trains 200
classifiers, all with the built-in nano model, and prints a table. With a share of 0.1, a tenth of each. Linux only: it
reads /proc.
"""

import argparse
import gc
import logging
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from gptclf import (
    GPT2,
    TextDataset,
    add_classifier_head,
    clear_features,
    load_gpt2,
    load_model,
    predict,
    save_model,
    train,
)

TEXTS = [f"message number {i}: you won a prize" if i % 2 else f"see you at {i}" for i in range(16)]
LABELS = ["ham", "spam"] * 8


def measured() -> tuple[float, int, int]:
    """Return this process's resident memory in MB, and its numbers of open files and of threads."""
    status = Path("/proc/self/status").read_text()
    resident = int(status.partition("VmRSS:")[2].split()[0]) / 1024
    return resident, len(list(Path("/proc/self/fd").iterdir())), len(list(Path("/proc/self/task").iterdir()))


def repeated(work: Callable[[int], object], times: int, *, collects: bool = True) -> dict[str, tuple[float, ...]]:
    """Do some work many times; return what is measured after a fifth of them, and at the end."""
    found: dict[str, tuple[float, ...]] = {}
    if not collects:
        gc.disable()
    for i in range(times):
        work(i)
        if i + 1 in (times // 5, times):
            found["end" if i + 1 == times else "start"] = measured()
    gc.enable()
    gc.collect()
    return found


def trains(gpt2: GPT2, seed: int) -> None:
    """Train a new classifier on a shared trunk."""
    clf = add_classifier_head(gpt2, classes=["ham", "spam"], seed=seed)
    data = TextDataset(TEXTS, LABELS, tokenizer=clf.tokenizer)
    train(clf, data, data, epochs=1, lr=1e-3, progress=False, seed=seed)
    if seed % 10 == 9:
        clear_features()


def main(share: float = 1.0) -> dict[str, dict[str, tuple[float, ...]]]:
    """Run everything and print the table."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    gpt2 = load_gpt2("nano")
    table = {}
    with tempfile.TemporaryDirectory() as folder:
        save_model(add_classifier_head(gpt2, classes=["ham", "spam"], seed=0), f"{folder}/model")
        clf = load_model(f"{folder}/model")
        jobs: dict[str, tuple[Callable[[int], object], int, bool]] = {
            "loads, collector off": (lambda i: predict(load_model(f"{folder}/model"), ["a"]), 500, False),
            "predictions": (lambda i: predict(clf, TEXTS[: i % 16 + 1]), 2000, True),
            "trainings": (lambda i: trains(gpt2, i), 200, True),
        }
        predict(clf, TEXTS)
        trains(gpt2, 0)
        print(f"{'work':24}{'times':>6}{'seconds':>9}{'MB':>14}{'files':>9}{'threads':>9}")
        for name, (work, times, collects) in jobs.items():
            times, start = max(5, round(share * times)), time.perf_counter()
            table[name] = found = repeated(work, times, collects=collects)
            columns = [f"{a:.0f} → {b:.0f}" for a, b in zip(found["start"], found["end"], strict=True)]
            seconds = time.perf_counter() - start
            print(f"{name:24}{times:6}{seconds:9.0f}{columns[0]:>14}{columns[1]:>9}{columns[2]:>9}", flush=True)
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=1.0, help="the part of the work to do")
    main(parser.parse_args().share)
