"""Train GPT-2 as a language model on a text file: the book's chapter 5, the stage before classification.

    python examples/language_model.py book.txt                                    # trains nano further, a minute
    python examples/language_model.py book.txt --weights random --epochs 10       # nano's shape from scratch
    python examples/language_model.py book.txt --model gpt2 --trainable last_block

The first nine tenths of the text are the training set, the last tenth the validation set. Prints the validation
perplexity before and after, losses, and a sample after each epoch; writes the model and a picture of the curves to the
output folder.
"""

import argparse
import logging
import math
from pathlib import Path

from gptclf import (
    Callback,
    Run,
    Scores,
    TextWindows,
    freeze,
    generate,
    load_gpt2,
    perplexity,
    save_model,
    train_lm,
    trainable_report,
)


class Sample(Callback):
    """Print a sample of the model's text after each measurement."""

    def __init__(self, prompt: str) -> None:
        self.prompt = prompt

    def on_scores(self, run: Run, scores: Scores) -> None:
        """Print a sample."""
        text = generate(run.model, self.prompt, max_new_tokens=40, temperature=0.8, top_k=50, seed=scores.step)
        print(f"  {' '.join(text.split())}")


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path, help="a text file, UTF-8")
    parser.add_argument("--model", default="nano", help="nano, gpt2, ..., owner/name or a folder")
    parser.add_argument("--weights", default="pretrained", choices=["pretrained", "random"])
    parser.add_argument("--trainable", default="all", help="all, last_block, a number of blocks or a pattern")
    parser.add_argument("--length", type=int, default=256, help="tokens per window")
    parser.add_argument("--stride", type=int, help="tokens from one window to the next; the length if not given")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--lr", type=float, help="4e-4 for random weights, as in the book; 1e-4 for pre-trained ones")
    parser.add_argument("--prompt", default="Every effort moves you")
    parser.add_argument("--seed", type=int, default=123)
    parser.add_argument("--out", type=Path, default=Path("runs/language-model"))
    return parser.parse_args()


def main() -> None:
    """Split, train, sample, measure, save."""
    args = arguments()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    args.out.mkdir(parents=True, exist_ok=True)
    text = args.text.read_text(encoding="utf-8-sig")
    model = load_gpt2(args.model, weights=args.weights, seed=args.seed if args.weights == "random" else None)
    freeze(model, trainable=int(args.trainable) if args.trainable.isdigit() else args.trainable)
    print(trainable_report(model))

    cut = int(0.9 * len(text))
    parts = text[:cut], text[cut:]
    length = min(args.length, model.config.context_length)
    train_set, val_set = (
        TextWindows(part, tokenizer=model.tokenizer, length=length, stride=args.stride) for part in parts
    )
    print(f"train {train_set}\nvalidation {val_set}")
    print(f"validation perplexity before: {perplexity(model, parts[1]):.2f}")
    lr = args.lr if args.lr is not None else (4e-4 if args.weights == "random" else 1e-4)
    history = train_lm(
        model,
        train_set,
        val_set,
        epochs=args.epochs,
        batch_size=args.batch_size,
        lr=lr,
        seed=args.seed,
        clip=1.0,
        eval_batches=None,
        callbacks=[Sample(args.prompt)],
    )
    last = history.epochs[-1]
    print(f"train loss {last.train_loss:.3f}, validation loss {last.val_loss:.3f} nats per token")
    print(f"perplexity of the windows: train {math.exp(last.train_loss):.2f}, validation {math.exp(last.val_loss):.2f}")
    print(f"validation perplexity after, every token counted once: {perplexity(model, parts[1]):.2f}")
    print(f"model: {save_model(model, args.out / 'model')}\ncurves: {history.plot(args.out / 'curves.png')}")


if __name__ == "__main__":
    main()
