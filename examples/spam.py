"""Spam or ham: the recipe of the book's chapter 6, from weights to saved classifier.

    python examples/spam.py                                        # nano on generated messages, under a minute
    python examples/spam.py --data sms --model gpt2                # the book's data and model (downloads both)
    python examples/spam.py --data SMSSpamCollection.tsv --model gpt2 --weights random --trainable all

The recipe: balanced set, 70/10/20 split, 5 epochs, batch 8, AdamW with lr 5e-5 and decay 0.1, texts cut to 120 tokens.
`nano` is small, so its last two blocks train, with a larger learning rate that rises and falls.
"""

import argparse
import logging
from dataclasses import replace
from pathlib import Path

import torch
from messages import make_messages
from sources import book_split, find_sms

from gptclf import (
    Recipe,
    TextDataset,
    add_classifier_head,
    evaluate,
    freeze,
    load_gpt2,
    load_model,
    predict_proba,
    save_model,
    shared_texts,
    split,
    train,
    trainable_report,
)

# The book's recipe, and one for the small model: its last two blocks train, with a rate that rises and falls.
BOOK = Recipe(epochs=5, batch_size=8, lr=5e-5, weight_decay=0.1, eval_every=50, eval_batches=5)
NANO = Recipe(epochs=4, batch_size=16, lr=1e-3, weight_decay=0.1, schedule="cosine", warmup_steps=100, clip=1.0)
NEW_MESSAGES = [
    "You won! Claim your free cinema tickets now, text PRIZE to 81144",
    "running ten minutes late, order me a coffee?",
]


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="messages", help="'messages' (generated), 'sms' (UCI) or the SMS file")
    parser.add_argument("--model", default="nano", help="nano, gpt2, ..., owner/name or a folder")
    parser.add_argument("--weights", default="pretrained", choices=["pretrained", "random"])
    parser.add_argument("--trainable", help="head, last_block, last_two_blocks, all, a number of blocks or a pattern")
    parser.add_argument("--pooling", default="last", choices=["last", "first", "mean", "max"])
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--max-length", type=int, help="tokens per text; 120 for the SMS data, as in the book")
    parser.add_argument("--pad-to", type=int, help="pad every text to this many tokens, as the book does (120)")
    parser.add_argument("--drop-last", action="store_true", help="leave out the last short batch, as the book does")
    parser.add_argument("--precision", default="auto", choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--seed", type=int, default=123)
    parser.add_argument("--out", type=Path, default=Path("runs/spam"), help="folder for the model and the picture")
    return parser.parse_args()


def main() -> None:
    """Run the recipe and print the results."""
    args = arguments()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    # Fail now, not after the training, if the folder cannot be made.
    args.out.mkdir(parents=True, exist_ok=True)
    recipe, trainable = (NANO, "last_two_blocks") if args.model == "nano" else (BOOK, "last_block")
    if args.model == "nano":
        # Threads on tensors this small mostly wait for each other, even more if another program is busy.
        torch.set_num_threads(1)
    given = {name: getattr(args, name) for name in ("lr", "epochs", "batch_size")}
    recipe = replace(recipe, **{name: value for name, value in given.items() if value is not None})
    recipe = replace(recipe, seed=args.seed, drop_last=args.drop_last, precision=args.precision)
    trainable = args.trainable or trainable

    gpt2 = load_gpt2(args.model, weights=args.weights, seed=args.seed if args.weights == "random" else None)
    clf = add_classifier_head(gpt2, classes=["ham", "spam"], pooling=args.pooling, seed=args.seed)
    freeze(clf, trainable=int(trainable) if trainable.isdigit() else trainable)
    print(trainable_report(clf))

    max_length = args.max_length if args.max_length is not None else (None if args.data == "messages" else 120)
    if args.pad_to is not None and args.max_length is None:
        max_length = None  # pad_to limits the length as well

    def dataset(texts: list[str], labels: list[str]) -> TextDataset:
        return TextDataset(
            texts, labels, tokenizer=clf.tokenizer, classes=clf.classes, max_length=max_length, pad_to=args.pad_to
        )

    if args.data == "messages":
        train_set, val_set, test_set = split(dataset(*make_messages(3600)), (0.7, 0.1, 0.2), seed=args.seed)
    else:
        parts = book_split(find_sms() if args.data == "sms" else args.data)
        train_set, val_set, test_set = (dataset(*part) for part in parts)
    print(f"train {train_set}\nvalidation {val_set}\ntest {test_set}")

    history = train(clf, train_set, val_set, recipe=recipe)
    print(f"trained {len(history.steps):,} steps in {history.seconds:.0f} s")

    for name, part in (("train", train_set), ("validation", val_set)):
        print(f"{name}: accuracy {100 * evaluate(clf, part, precision=args.precision).accuracy:.2f} %")
    result = evaluate(clf, test_set, precision=args.precision)
    print(f"test: {result}")
    seen = set(shared_texts(train_set, test_set).tolist())
    if seen:
        unseen = test_set.subset([i for i in range(len(test_set)) if i not in seen])
        accuracy = evaluate(clf, unseen, precision=args.precision).accuracy
        print(f"test without the {len(seen)} messages that also occur in training: accuracy {100 * accuracy:.2f} %")

    source = "made by examples/messages.py" if args.data == "messages" else "from the SMS Spam Collection"
    folder = save_model(
        clf,
        args.out / "model",
        data=f"{len(train_set):,} messages {source}.",
        metrics={"accuracy": result.accuracy, "f1": result.macro_f1},
        measured_on=f"{len(test_set):,} further messages",
    )
    again = load_model(folder)
    for text, row in zip(NEW_MESSAGES, predict_proba(again, NEW_MESSAGES), strict=True):
        label = again.classes[row.argmax()] if again.classes else ""
        print(f"{label} ({100 * row.max():.0f} %): {text}")
    readers = "gptclf.load_model and transformers read it" if args.pooling == "last" else "gptclf.load_model reads it"
    print(f"model: {folder} ({readers})\ncurves: {history.plot(args.out / 'curves.png')}")


if __name__ == "__main__":
    main()
