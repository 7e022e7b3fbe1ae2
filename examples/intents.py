"""Intents: which of 77 things does a bank customer's question ask for, and which are confused?

    python examples/intents.py                    # downloads Banking77; nano, in a few minutes
    python examples/intents.py FOLDER             # train.csv and test.csv of Banking77 in FOLDER
    python examples/intents.py questions.csv      # a file of your own with the columns text and label

The questions are short, and the mean over their tokens says more than the last token alone.
"""

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

from sources import find_banking77, read_banking77, texts_from

from gptclf import TextDataset, add_classifier_head, evaluate, freeze, load_gpt2, save_model, split, train

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("data", nargs="?", type=Path, help="a folder with Banking77 or a .csv or .tsv file")
parser.add_argument("--model", default="nano", help="nano, gpt2, ..., owner/name or a folder")
parser.add_argument("--epochs", type=int, default=8)
parser.add_argument("--out", type=Path, default=Path("runs/intents"), help="folder for the model and the picture")
args = parser.parse_args()
args.out.mkdir(parents=True, exist_ok=True)  # fails now, not after the training

if args.data is None or args.data.is_dir():
    parts = list(read_banking77(args.data or find_banking77()))
else:
    parts = [texts_from(args.data, 0)]
clf = add_classifier_head(load_gpt2(args.model), classes=sorted(set(parts[0][1])), pooling="mean", seed=123)
freeze(clf, trainable="all")
sets = [TextDataset(*part, tokenizer=clf.tokenizer, classes=clf.classes) for part in parts]
data, test_set = sets if len(sets) == 2 else split(sets[0], (0.8, 0.2), seed=123)
train_set, val_set = split(data, (0.9, 0.1), seed=123)
print(f"train {train_set}\nvalidation {val_set}\ntest {test_set}")

options: Any = {"schedule": "cosine", "warmup_steps": 100, "clip": 1.0, "eval_batches": 30}
history = train(clf, train_set, val_set, epochs=args.epochs, batch_size=32, lr=1e-3, seed=123, **options)
print(f"trained {len(history.steps):,} steps in {history.seconds:.0f} s\nmodel: {save_model(clf, args.out / 'model')}")

result = evaluate(clf, test_set, batch_size=64)
print(f"test: {result}\nmost often confused:")
pairs = Counter(zip(result.targets, result.predictions, strict=True))
for (target, prediction), n in pairs.most_common():
    if target != prediction and n > 1:
        print(f"  {n:>3} times {target} was taken for {prediction}")
print(f"confusion: {result.plot_confusion(args.out / 'confusion.png', normalize=True)}")
