"""A layer of your own: low-rank factors on all four matrices of the last block, timed against training it as it is.

    python examples/low_rank.py                     # four blocks of width 768, random weights, about a minute
    python examples/low_rank.py --rounds 7

The layer is the one of docs/extending.md. It overrides four short methods and keeps the fast last block: each epoch
computes that block at one position per text, with the factors folded in.
"""

import argparse
import logging
import statistics
from collections.abc import Callable
from typing import Any

import torch
from before import processor
from messages import make_messages
from torch import Tensor, nn

from gptclf import (
    GPT2,
    GPT2Config,
    Linear,
    TextDataset,
    add_classifier_head,
    freeze,
    load_gpt2,
    train,
    trainable_report,
)


class LowRank(Linear):
    """A frozen layer plus the product of two narrow ones (Hu et al., 2021, "LoRA")."""

    standard = True
    kind = "low_rank"

    def __init__(self, base: Linear, rank: int = 8) -> None:
        super().__init__(base.in_features, base.out_features, base.bias is not None, device="meta")
        self.weight, self.bias = base.weight, base.bias
        self.reduce = Linear(base.in_features, rank, bias=False)
        self.expand = Linear(rank, base.out_features, bias=False)
        nn.init.normal_(self.reduce.weight, std=0.02)
        nn.init.zeros_(self.expand.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., K) to (..., N)."""
        return super().forward(x) + self.expand(self.reduce(x))  # type: ignore[no-any-return]

    def rows(self, x: Tensor, rows: slice = slice(None), heads: int = 1, bias: bool = True) -> Tensor:
        """Compute some outputs alone."""
        return super().rows(x, rows, heads, bias) + self.expand.rows(self.reduce(x), rows, heads)

    def onto(self, x: Tensor, rows: slice = slice(None), heads: int = 1) -> Tensor:
        """Take outputs back onto the inputs."""
        return super().onto(x, rows, heads) + self.reduce.onto(self.expand.onto(x, rows, heads))

    def prepared(self, arithmetic: Any) -> Callable[[Tensor], Tensor]:
        """Return the layer as a function without gradients."""
        base = super().prepared(arithmetic)
        reduce, expand = self.reduce.prepared(arithmetic), self.expand.prepared(arithmetic)
        return lambda x: base(x) + expand(reduce(x))


def with_factors(clf: GPT2) -> GPT2:
    """Put the layer in the place of the last block's four matrices, and train its factors and the head alone."""
    block: Any = clf.trunk.blocks[-1]
    for owner, name in ((block.attention, "qkv"), (block.attention, "out"), (block.mlp, "up"), (block.mlp, "down")):
        setattr(owner, name, LowRank(getattr(owner, name)))
    freeze(clf, trainable=["*.reduce.weight", "*.expand.weight", "head"])
    return clf.eval()


def main() -> None:
    """Take turns and print the seconds of an epoch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--texts", type=int, default=480)
    args = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    nano = load_gpt2("nano")
    gpt2 = load_gpt2(GPT2Config(n_layers=4), weights="random", seed=0, tokenizer=nano.tokenizer)
    texts, labels = make_messages(args.texts, seed=1)
    data = TextDataset(texts, labels, tokenizer=nano.tokenizer, classes=["ham", "spam"])
    setups: dict[str, Callable[[GPT2], GPT2]] = {"last block": lambda clf: clf, "factors": with_factors}
    seconds: dict[str, list[float]] = {name: [] for name in setups}
    print(f"{processor()}; {torch.get_num_threads()} threads; {data}")
    for i in range(args.rounds + 1):  # the first round warms up and computes the features
        for name, change in setups.items():
            clf = change(add_classifier_head(gpt2, classes=["ham", "spam"], seed=1))
            if not i:
                print(f"{name}: {trainable_report(clf)}")
            history = train(clf, data, epochs=1, eval_batches=1, progress=False)
            seconds[name].append(history.seconds)
    base = statistics.median(seconds["last block"][1:])
    for name, taken in seconds.items():
        median = statistics.median(taken[1:])
        spread = f"{min(taken[1:]):.3f} to {max(taken[1:]):.3f}"
        print(f"{name:20} {median:.3f} s ({spread}), {median / base:.3f} of training the last block as it is")


if __name__ == "__main__":
    main()
