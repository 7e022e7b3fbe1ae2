"""LoRA: train low-rank factors beside frozen matrices, and save them as PEFT does.

    python examples/lora.py                     # nano, factors on every block
    python examples/lora.py --blocks 2          # on the last two blocks: what comes before them runs once per text
    python examples/lora.py --quantize nf4      # QLoRA: the frozen matrices in 4 bits (faster with gptclf[quant])

About half a minute on one core. The adapter is in runs/lora afterwards.
"""

import argparse
from pathlib import Path

import torch
from messages import make_messages

from gptclf import (
    TextDataset,
    add_classifier_head,
    apply_lora,
    evaluate,
    load_gpt2,
    load_model,
    predict,
    quantize,
    save_adapter,
    split,
    train,
    trainable_report,
)


def main() -> None:
    """Train, measure, save and load an adapter."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano", help="nano, gpt2, ..., owner/name or a folder")
    parser.add_argument("--blocks", type=int, help="factors on the last n blocks; all by default")
    parser.add_argument("--quantize", choices=["nf4", "int8"])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--out", type=Path, default=Path("runs/lora"))
    args = parser.parse_args()
    torch.set_num_threads(1 if args.model == "nano" else torch.get_num_threads())
    gpt2 = load_gpt2(args.model)
    base = quantize(gpt2, args.quantize) if args.quantize else gpt2
    clf = apply_lora(add_classifier_head(base, classes=["ham", "spam"], seed=123), rank=16, blocks=args.blocks, seed=1)
    print(trainable_report(clf))
    data = TextDataset(*make_messages(1200), tokenizer=clf.tokenizer, classes=clf.classes)
    train_set, val_set, test_set = split(data, (0.7, 0.1, 0.2), seed=123)
    train(clf, train_set, val_set, epochs=args.epochs, lr=args.lr, batch_size=16, schedule="cosine", seed=123)
    print(f"test: {evaluate(clf, test_set)}")
    folder = save_adapter(clf, args.out)
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{folder}: {size:,} bytes (gptclf.load_model and PEFT read it)")
    print(predict(load_model(folder), ["You won! Text PRIZE to 81144", "running late, order me a coffee?"]))


if __name__ == "__main__":
    main()
