"""Pre-train `nano`, the small GPT-2 that ships with gptclf, from a folder of plain text.

    python examples/pretrain_nano.py corpus/                 # an hour on one core
    python examples/pretrain_nano.py corpus/ --share 0.03    # two minutes, as a trial

The folder holds .txt files in UTF-8, with two blank lines between documents. One document in fifty is held out. A
byte-level BPE vocabulary is made from the others. Then the model reads them once in short windows at a constant
learning rate, and half of them again in windows of its whole context while the rate falls to 0. The output folder
(configuration, float16 weights, tokenizer) is the one that `load_gpt2("nano")` reads.
"""

import argparse
import json
import logging
import math
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from gptclf import GPT2, GPT2Config, TextWindows, freeze, load_gpt2, save_model, train_lm
from gptclf.inference.evaluate import measured
from gptclf.tokenizer.bpe import build_tokenizer

# Fits into 6 MB in float16; a third of the weights belong to the vocabulary.
NANO = GPT2Config(vocab_size=4096, context_length=512, emb_dim=192, n_heads=6, n_layers=4)
# Tokens per window, windows per batch, schedule of the learning rate, and one in how many windows is read. Short
# windows cost less; the last stage trains the later positions as well.
STAGES = ((128, 16, "constant", 1), (NANO.context_length, 4, "linear", 2))
SEPARATOR = "\n\n\n"
HELD_OUT = 50
SHIPPED = ("config.json", "model.safetensors", "vocab.json", "merges.txt")


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path, help="folder of .txt files")
    parser.add_argument("--out", type=Path, default=Path("runs/nano"))
    parser.add_argument("--share", type=float, default=1.0, help="share of the documents to use")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--precision", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--seed", type=int, default=123)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def read_documents(folder: Path, share: float) -> tuple[list[str], list[str]]:
    """Return the documents to train on and those held out, of all text files in a folder."""
    files = sorted(folder.glob("*.txt"))
    if not files:
        raise SystemExit(f"{folder} holds no .txt files")
    documents = [document for path in files for document in path.read_text(encoding="utf-8").split(SEPARATOR)]
    documents = [document.strip("\n") for document in documents[:: max(1, round(1 / share))] if document.strip()]
    held_out = documents[HELD_OUT - 1 :: HELD_OUT]
    return [document for i, document in enumerate(documents) if i % HELD_OUT != HELD_OUT - 1], held_out


def make_merges(documents: list[str], vocab_size: int, path: Path) -> None:
    """Learn a byte-level BPE vocabulary (Sennrich et al., 2016) and write its merges in GPT-2's format."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size + 100,  # room for merges that are skipped below
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    known, lines = set(pre_tokenizers.ByteLevel.alphabet()), ["#version: 0.2"]
    for first, second in json.loads(tokenizer.to_str())["model"]["merges"]:
        # In GPT-2's files a token's id is the place of the one merge that makes it, so a second merge is skipped.
        if first + second not in known and len(known) < vocab_size - 1:
            known.add(first + second)
            lines.append(f"{first} {second}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def ship(model: GPT2, folder: Path) -> None:
    """Write the model as it ships: without gptclf's own record, its weights in float16."""
    save_model(model, folder / "whole")
    for name in SHIPPED:
        (folder / name).write_bytes((folder / "whole" / name).read_bytes())
    weights = {name: tensor.half() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    total = sum((folder / name).stat().st_size for name in SHIPPED)
    print(f"{folder}: {total / 1e6:.2f} MB in {len(SHIPPED)} files")


def main() -> None:
    """Make the vocabulary, pre-train, measure and write."""
    args = arguments()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    documents, held_out = read_documents(args.corpus, args.share)
    make_merges(documents, NANO.vocab_size, args.out / "merges.txt")
    tokenizer = build_tokenizer(args.out / "merges.txt")
    model = load_gpt2(NANO, weights="random", seed=args.seed, tokenizer=tokenizer)
    freeze(model, trainable="all")
    for length, batch_size, schedule, every in STAGES:
        windows = TextWindows(documents, tokenizer=tokenizer, length=length)
        windows = windows.subset(range(0, len(windows), every))
        unseen = TextWindows(held_out, tokenizer=tokenizer, length=length)
        # Shuffled, so that the first batches, which are measured on the way, come from all sources.
        unseen = unseen.subset(np.random.default_rng(args.seed).permutation(len(unseen)))
        print(f"training on {windows}, held out {unseen}", flush=True)
        history = train_lm(
            model,
            windows,
            unseen,
            epochs=1,
            batch_size=batch_size,
            lr=args.lr,
            schedule=schedule,
            warmup_steps=min(200, len(windows) // batch_size // 10),
            decay="matrices",
            clip=1.0,
            precision=args.precision,
            eval_every=500,
            eval_batches=40,
            seed=args.seed,
        )
        history.plot(args.out / f"curves-{length}.png")
        loss = measured(model, unseen, precision="float32")["loss"]
        print(
            f"{history.seconds / 60:.0f} min, held-out loss {loss:.4f} nats, perplexity {math.exp(loss):.2f}",
            flush=True,
        )
        ship(model, args.out)


if __name__ == "__main__":
    main()
