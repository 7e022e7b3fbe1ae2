"""Spam or ham: the recipe of the book's chapter 6, from weights to a saved classifier and a picture of its training.

    python examples/spam.py                              # nano on generated messages, under a minute
    python examples/spam.py --data sms --model gpt2      # the book's data and model (downloads both)
    python examples/spam.py --data mails.csv             # a file with the columns text and label

The book trains the last block with AdamW. `nano` is small: its last two train, with a rate that rises and falls.
"""

import argparse
from pathlib import Path

import torch
from sources import book_split, find_sms, texts_from

import gptclf

BOOK = gptclf.Recipe(epochs=5, batch_size=8, lr=5e-5, weight_decay=0.1, eval_every=50, eval_batches=5)
NANO = gptclf.Recipe(epochs=4, batch_size=16, lr=1e-3, schedule="cosine", warmup_steps=100, clip=1.0)
NEW = [
    "You won! Claim your free cinema tickets now, text PRIZE to 81144",
    "running ten minutes late, order me a coffee?",
]

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", help="'sms' (UCI) or a .csv or .tsv file; messages are generated if not given")
parser.add_argument("--model", default="nano", help="nano, gpt2, ..., owner/name or a folder")
parser.add_argument("--trainable", help="head, last_block, last_two_blocks, all or a pattern")
parser.add_argument("--out", type=Path, default=Path("runs/spam"), help="folder for the model and the picture")
args = parser.parse_args()
args.out.mkdir(parents=True, exist_ok=True)  # fails now, not after the training

recipe, trainable = (NANO, "last_two_blocks") if args.model == "nano" else (BOOK, "last_block")
# Threads on tensors as small as nano's mostly wait for each other.
torch.set_num_threads(1 if args.model == "nano" else torch.get_num_threads())
clf = gptclf.add_classifier_head(gptclf.load_gpt2(args.model), classes=["ham", "spam"], seed=123)
gptclf.freeze(clf, trainable=args.trainable or trainable)
print(gptclf.trainable_report(clf))

parts = book_split(find_sms()) if args.data == "sms" else [texts_from(args.data, 3600)]
sets = [gptclf.TextDataset(*part, tokenizer=clf.tokenizer, classes=clf.classes, max_length=120) for part in parts]
train_set, val_set, test_set = sets if len(sets) == 3 else gptclf.split(sets[0], (0.7, 0.1, 0.2), seed=123)
print(f"train {train_set}\nvalidation {val_set}\ntest {test_set}")

history = gptclf.train(clf, train_set, val_set, recipe=recipe)
print(f"trained {len(history.steps):,} steps in {history.seconds:.0f} s")
for name, part in (("train", train_set), ("validation", val_set)):
    print(f"{name}: accuracy {100 * gptclf.evaluate(clf, part).accuracy:.2f} %")
result = gptclf.evaluate(clf, test_set)
print(f"test: {result}")
seen = set(gptclf.shared_texts(train_set, test_set).tolist())
unseen = gptclf.evaluate(clf, test_set.subset([i for i in range(len(test_set)) if i not in seen])).accuracy
print(f"test without the {len(seen)} messages that also occur in training: accuracy {100 * unseen:.2f} %")

folder = gptclf.save_model(clf, args.out / "model", metrics={"accuracy": result.accuracy})
clf = gptclf.load_model(folder)
for text, answer in zip(NEW, gptclf.predict_stream(clf, NEW), strict=True):
    print(f"{answer.label} ({100 * max(answer.probabilities):.0f} %): {text}")
print(f"model: {folder} (gptclf.load_model and transformers read it)\ncurves: {history.plot(args.out / 'curves.png')}")
