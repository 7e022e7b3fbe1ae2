"""Banking77: which of 77 intents does a bank customer's question have?

    python examples/intents.py                                  # downloads the data; nano, in a few minutes
    python examples/intents.py --data FOLDER --model gpt2       # GPT-2 124M on train.csv and test.csv in FOLDER

The questions are short, and the mean over their tokens is more informative than the last token alone.
"""

import argparse
import logging
from pathlib import Path

from sources import find_banking77, read_banking77

from gptclf import (
    TextDataset,
    add_classifier_head,
    evaluate,
    freeze,
    load_gpt2,
    save_model,
    split,
    train,
    trainable_report,
)


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with train.csv and test.csv; fetched if not given")
    parser.add_argument("--model", default="nano", help="nano, gpt2, ..., owner/name or a folder")
    parser.add_argument("--trainable", default="all")
    parser.add_argument("--pooling", default="mean", choices=["last", "first", "mean", "max"])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=123)
    parser.add_argument("--out", type=Path, default=Path("runs/intents"))
    return parser.parse_args()


def main() -> None:
    """Train, evaluate on the official test set, and print the intents that are confused most often."""
    args = arguments()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    # Fail now, not after the training, if the folder cannot be made.
    args.out.mkdir(parents=True, exist_ok=True)
    (texts, labels), test = read_banking77(find_banking77() if args.data is None else args.data)
    gpt2 = load_gpt2(args.model)
    clf = add_classifier_head(gpt2, classes=sorted(set(labels)), pooling=args.pooling, seed=args.seed)
    freeze(clf, trainable=int(args.trainable) if args.trainable.isdigit() else args.trainable)
    print(trainable_report(clf))
    data = TextDataset(texts, labels, tokenizer=clf.tokenizer, classes=clf.classes)
    train_set, val_set = split(data, (0.9, 0.1), seed=args.seed)
    test_set = TextDataset(*test, tokenizer=clf.tokenizer, classes=clf.classes)
    print(f"train {train_set}\nvalidation {val_set}\ntest {test_set}")

    history = train(
        clf,
        train_set,
        val_set,
        epochs=args.epochs,
        batch_size=args.batch_size,
        lr=args.lr,
        schedule="cosine",
        warmup_steps=100,
        clip=1.0,
        seed=args.seed,
        eval_batches=30,
    )
    print(f"trained {len(history.steps):,} steps in {history.seconds:.0f} s")
    folder = save_model(clf, args.out / "model")

    result = evaluate(clf, test_set, batch_size=64)
    majority = max(test[1].count(label) for label in train_set.classes or []) / len(test_set)
    print(f"test: {result}\nalways guessing one intent: {100 * majority:.2f} %")
    wrong = [pair for pair in zip(result.targets, result.predictions, strict=True) if pair[0] != pair[1]]
    for target, prediction in sorted(set(wrong), key=wrong.count, reverse=True)[:5]:
        print(f"  {wrong.count((target, prediction)):>3} times {target} was taken for {prediction}")
    print(f"model: {folder}\ncurves: {history.plot(args.out / 'curves.png')}")


if __name__ == "__main__":
    main()
