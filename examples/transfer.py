"""Measure the worth of pre-training: `nano` against the same architecture from random weights, by the same recipe.

    python examples/transfer.py --data FOLDER                  # both data sets, all policies, 5 seeds: an hour
    python examples/transfer.py --data FOLDER --only sms --policies head --seeds 2

FOLDER holds sms_spam.tsv, banking77_train.csv and banking77_test.csv. The SMS split is the book's (1,045 / 149 / 300
balanced messages); for Banking77 a tenth of the training file is the validation set. For each policy and each kind of
weights, the learning rate is the better of two on the validation set, with the first seed. The test set is used only
with the chosen rate.
"""

import argparse
import json
import logging
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from sources import Texts, book_split, read_banking77

from gptclf import GPT2, TextDataset, add_classifier_head, evaluate, freeze, load_gpt2, split, train

RATES: dict[str, tuple[float, ...]] = {"head": (1e-2, 3e-2), "last_block": (1e-3, 3e-3), "all": (5e-4, 2e-3)}
WEIGHTS = ("pre-trained", "random")
EPOCHS = {"sms": 10, "banking77": 5}
BATCH = {"sms": 16, "banking77": 32}
Parts = tuple[TextDataset, TextDataset, TextDataset]


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="nano", help="the pre-trained model")
    parser.add_argument("--only", choices=list(EPOCHS), help="one data set")
    parser.add_argument("--policies", nargs="+", default=list(RATES), choices=list(RATES))
    parser.add_argument("--weights", nargs="+", default=list(WEIGHTS), choices=WEIGHTS)
    parser.add_argument("--pooling", default="last", choices=["last", "mean", "max"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/transfer"))
    return parser.parse_args()


def read(name: str, folder: Path, tokenizer: Any) -> Parts:
    """Return the training, validation and test sets."""
    if name == "sms":
        parts: Sequence[Texts] = book_split(folder / "sms_spam.tsv")
        train_set, val_set, test_set = (TextDataset(*part, tokenizer=tokenizer) for part in parts)
        return train_set, val_set, test_set
    (texts, labels), test = read_banking77(folder)
    train_set, val_set = split(TextDataset(texts, labels, tokenizer=tokenizer), (0.9, 0.1), seed=123)
    return train_set, val_set, TextDataset(*test, tokenizer=tokenizer)


def start(pretrained: GPT2, weights: str, seed: int) -> GPT2:
    """Return the pre-trained model, or its architecture with random weights."""
    if weights == "pre-trained":
        return pretrained
    return load_gpt2(pretrained.config, weights="random", seed=seed, tokenizer=pretrained.tokenizer)


class Setup(NamedTuple):
    """The settings that all seeds and both kinds of weights share."""

    data: str
    parts: Parts
    policy: str
    pooling: str

    def run(self, gpt2: GPT2, lr: float, seed: int) -> GPT2:
        """Return a trained classifier."""
        clf = add_classifier_head(gpt2, classes=self.parts[0].classes, pooling=self.pooling, seed=seed)
        freeze(clf, trainable=self.policy)
        train(
            clf,
            self.parts[0],
            epochs=EPOCHS[self.data],
            batch_size=BATCH[self.data],
            lr=lr,
            schedule="linear",
            warmup_steps=50,
            clip=1.0,
            decay="matrices",
            seed=seed,
            eval_batches=1,
            progress=False,
        )
        return clf


def main() -> None:
    """Train everything, print the table and write all numbers."""
    args = arguments()
    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    pretrained = load_gpt2(args.model)
    results: list[dict[str, Any]] = []
    for data in [args.only] if args.only else list(EPOCHS):
        parts = read(data, args.data, pretrained.tokenizer)
        for policy in args.policies:
            for weights in args.weights:
                setup = Setup(data, parts, policy, args.pooling)
                tried = {lr: setup.run(start(pretrained, weights, 0), lr, 0) for lr in RATES[policy]}
                validated = {lr: evaluate(clf, parts[1]).accuracy for lr, clf in tried.items()}
                lr = max(validated, key=lambda rate: (validated[rate], -rate))
                for seed in range(args.seeds):
                    clf = tried[lr] if seed == 0 else setup.run(start(pretrained, weights, seed), lr, seed)
                    row = {"data": data, "policy": policy, "weights": weights, "lr": lr, "seed": seed}
                    accuracies = [evaluate(clf, part).accuracy for part in parts[1:]]
                    results.append({**row, **dict(zip(("validation", "test"), accuracies, strict=True))})
                print(summary(results, data, policy, weights), flush=True)
        (args.out / f"{data}-{args.pooling}.json").write_text(json.dumps(results, indent=1) + "\n")


def summary(results: list[dict[str, Any]], data: str, policy: str, weights: str) -> str:
    """Return mean and standard deviation over the seeds, as a row of a Markdown table."""
    rows = [row for row in results if (row["data"], row["policy"], row["weights"]) == (data, policy, weights)]
    cells = []
    for part in ("validation", "test"):
        values = [100 * row[part] for row in rows]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        cells.append(f"{statistics.mean(values):.2f} ± {spread:.2f}")
    return f"| {data} | {policy} | {weights} | {rows[0]['lr']:g} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
