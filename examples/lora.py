"""LoRA: train low-rank factors beside frozen matrices, and save them as PEFT does.

    python examples/lora.py                          # nano on generated messages, factors on every block
    python examples/lora.py --blocks 2               # on the last two: what comes before them runs once per text
    python examples/lora.py --quantize nf4           # QLoRA: the frozen matrices in 4 bits (faster with gptclf[quant])
    python examples/lora.py --data mails.csv         # a file with the columns text and label

About half a minute on one core. The adapter is in runs/lora afterwards, with a picture of the training beside it.
"""

import argparse
from pathlib import Path

import torch
from sources import texts_from

import gptclf

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", type=Path, help="a .csv or .tsv file; messages are generated if not given")
parser.add_argument("--model", default="nano", help="nano, gpt2, ..., owner/name or a folder")
parser.add_argument("--blocks", type=int, help="factors on the last n blocks; all by default")
parser.add_argument("--rank", type=int, default=16)
parser.add_argument("--quantize", choices=["nf4", "int8"])
parser.add_argument("--epochs", type=int, default=3)
parser.add_argument("--out", type=Path, default=Path("runs/lora"), help="folder for the adapter and the picture")
args = parser.parse_args()
# Threads on tensors as small as nano's mostly wait for each other.
torch.set_num_threads(1 if args.model == "nano" else torch.get_num_threads())

texts, labels = texts_from(args.data, n=1200)
base = gptclf.load_gpt2(args.model)
if args.quantize:
    base = gptclf.quantize(base, args.quantize)
head = gptclf.add_classifier_head(base, classes=sorted(set(labels)), seed=123)
clf = gptclf.apply_lora(head, rank=args.rank, blocks=args.blocks, seed=1)
print(gptclf.trainable_report(clf))

data = gptclf.TextDataset(texts, labels, tokenizer=clf.tokenizer, classes=clf.classes, max_length=120)
train_set, val_set, test_set = gptclf.split(data, (0.7, 0.1, 0.2), seed=123)
history = gptclf.train(clf, train_set, val_set, epochs=args.epochs, lr=2e-3, batch_size=16, schedule="cosine", seed=123)
print(f"test: {gptclf.evaluate(clf, test_set)}")

folder = gptclf.save_adapter(clf, args.out / "adapter")
size = sum(file.stat().st_size for file in folder.iterdir())
print(f"{folder}: {size:,} bytes (gptclf.load_model and PEFT read it)")
print(gptclf.predict(gptclf.load_model(folder), ["You won! Text PRIZE to 81144", "running late, order me a coffee?"]))
print(f"curves: {history.plot(args.out / 'curves.png')}")
