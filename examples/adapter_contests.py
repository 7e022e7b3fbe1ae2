"""The measurements of `benchmark.py` about LoRA: against PEFT, over 4-bit matrices, and many classifiers at once.

Each contender trains the same matrices from the same weights on the same rows; PEFT is run as an experienced user
tunes it: bf16, rows grouped by length, fused AdamW.
"""

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import peers
import torch
from contests import Bench, cold, isolated, xl_folder
from torch.nn import functional as F

from gptclf import (
    GPT2,
    KeepBest,
    TextDataset,
    add_classifier_head,
    apply_lora,
    evaluate,
    freeze,
    load_gpt2,
    predict,
    predict_many,
    quantize,
    train,
)
from gptclf.gpt2.learner import Learner
from gptclf.training.objective import Objective

# Epochs of the whole recipe, and the last blocks that have factors in it.
EPOCHS, LAST = 5, 4


def adapted(b: Bench, *, blocks: int | None = None, bits: str | None = None, seed: int = 123) -> GPT2:
    """Make a classifier with rank 16 on all four matrices of the last `blocks` blocks."""
    clf = add_classifier_head(b.gpt2 if bits is None else quantize(b.gpt2, bits), classes=["ham", "spam"], seed=seed)
    return apply_lora(clf, rank=4 if b.tiny else 16, alpha=16, blocks=blocks, seed=seed)


def lora_epoch(b: Bench) -> float:
    """Time one epoch with factors in every block, from weights already loaded."""
    clf = adapted(b)
    train_set = b.sets(clf)[0]
    start = time.perf_counter()
    train(clf, train_set, epochs=1, lr=5e-5, weight_decay=0.1, seed=123, eval_batches=1, progress=False)
    return time.perf_counter() - start


def lora_recipe(b: Bench, lr: float = 5e-5) -> float:
    """Time the whole recipe with factors in the last blocks: five epochs and the test accuracy."""
    start = time.perf_counter()
    clf = adapted(b, blocks=LAST)
    train_set, _, test_set = b.sets(clf)
    train(clf, train_set, epochs=EPOCHS, lr=lr, weight_decay=0.1, seed=123, eval_batches=1, progress=False)
    b.notes[f"gptclf: LoRA on the last {LAST} blocks, lr {lr:g}: test accuracy"] = evaluate(clf, test_set).accuracy
    return time.perf_counter() - start


def bench_lora(b: Bench) -> None:
    """Measure LoRA against PEFT: an epoch on every block, and the recipe on the last four, cold and again."""
    rows, tests = b.rows(0), b.rows(2)
    last = list(range(b.gpt2.config.n_layers - LAST, b.gpt2.config.n_layers))
    run = functools.partial(peers.peft_seconds, b.folder, rows, rank=4 if b.tiny else 16)
    b.notes["F.linear, 243 rows, bf16 and float32 (GFLOP/s)"] = [
        product_rate(torch.bfloat16),
        product_rate(torch.float32),
    ]
    b.take_turns(
        {
            "gptclf: LoRA on every block, one epoch": lambda: lora_epoch(b),
            "PEFT: LoRA on every block, one epoch": lambda: run(epochs=1),
        }
    )
    b.take_turns(
        {
            f"gptclf: LoRA on the last {LAST} blocks, recipe": cold(lambda: lora_recipe(b)),
            f"gptclf: LoRA on the last {LAST} blocks, recipe again, other lr": lambda: lora_recipe(b, 1e-4),
            f"PEFT: LoRA on the last {LAST} blocks, recipe": lambda: run(epochs=EPOCHS, layers=last, tests=tests),
        }
    )
    for name in ("memory, LoRA", "memory, PEFT"):
        isolated(b, name, b.folder)


def product_rate(dtype: torch.dtype, rows: int = 243) -> float:
    """Measure the rate of `F.linear` over a block's four shapes for a batch of eight messages, in GFLOP/s."""
    D, total = 768, 0.0
    for K, N in ((D, 3 * D), (D, D), (D, 4 * D), (4 * D, D)):
        x, weight = torch.randn(rows, K).to(dtype), torch.randn(N, K).to(dtype)
        total += statistics.median(seconds_of(functools.partial(F.linear, x, weight)) for _ in range(15))
    return 24 * D * D * rows / total / 1e9


def seconds_of(run: Callable[[], Any]) -> float:
    """Time one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def bench_many(b: Bench) -> None:
    """Measure six classifiers over one trunk: three heads, and three adapters on the last two blocks."""
    heads, adapters = [b.classifier("head") for _ in range(3)], [adapted(b, blocks=2, seed=i) for i in range(3)]
    models, texts = [*heads, *adapters], b.parts[2][0]
    with torch.no_grad():
        for i, clf in enumerate(models):
            weight = clf.get_parameter("head.output.weight")
            weight.add_(torch.randn(weight.shape) * 0.1 * (i + 1))
            for name, parameter in clf.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.02)
    alone = [predict(clf, texts) for clf in models]
    b.take_turns(
        {
            "gptclf: one classifier": lambda: seconds_of(lambda: predict(heads[0], texts)),
            "gptclf: six classifiers at once": lambda: seconds_of(lambda: predict_many(models, texts)),
            "gptclf: six classifiers, one by one": lambda: seconds_of(lambda: [predict(clf, texts) for clf in models]),
        }
    )
    b.notes["six classifiers at once answer as each does alone"] = predict_many(models, texts) == alone


def bench_qlora(b: Bench) -> None:
    """Measure a training step with factors over NF4 matrices against one over bf16 casts, by tokens in a batch."""
    setups = {name: adapted(b, bits=bits) for name, bits in (("LoRA", None), ("QLoRA", "nf4"))}
    for tokens in (256, 512, 1024):
        steps = {name: _step(clf, tokens) for name, clf in setups.items()}
        contenders: dict[str, Callable[[], float]] = {
            f"gptclf: {name} step, {tokens} tokens": functools.partial(best_of, run) for name, run in steps.items()
        }
        b.take_turns(contenders)


def best_of(run: Callable[[], Any], times: int = 5) -> float:
    """Time the fastest of some calls."""
    return min(seconds_of(run) for _ in range(times))


def _step(clf: GPT2, tokens: int) -> Callable[[], None]:
    """Return a step over eight rows with so many tokens in all."""
    T = min(tokens // 8, clf.config.context_length)
    ids = torch.randint(clf.config.vocab_size, (8, T), generator=torch.Generator().manual_seed(0))
    lengths, targets = torch.full((8,), T), torch.arange(8) % 2
    objective = Objective(Learner(clf, training=True, keep_gradients=True), clf.task, "bfloat16")
    trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]

    def run() -> None:
        for parameter in trained:
            parameter.grad = None
        (objective(ids, lengths, targets)[0] / 8).backward()

    return run


def bench_qlora_accuracy(b: Bench) -> None:
    """Measure test accuracy of the last block, LoRA and QLoRA, three seeds each, with nano and with random weights."""
    bases = {"nano": load_gpt2("nano"), "random 124M": b.gpt2}
    for name, gpt2 in bases.items():
        for what, bits, lr in (("last_block", None, 5e-5), ("LoRA", None, 1e-3), ("QLoRA", "nf4", 1e-3)):
            base = gpt2 if bits is None else quantize(gpt2, bits)
            found = [_accuracy(b, base, what != "last_block", lr, seed) for seed in (1, 2, 3)]
            b.notes[f"{name}, {what}: test accuracy (%), mean, spread of three seeds"] = [
                round(100 * statistics.mean(found), 2),
                round(100 * statistics.stdev(found), 2),
            ]
            print(f"  {name}, {what}: {found}", flush=True)


def _accuracy(b: Bench, gpt2: GPT2, lora: bool, lr: float, seed: int) -> float:
    clf = add_classifier_head(gpt2, classes=["ham", "spam"], seed=seed)
    if lora:
        clf = apply_lora(clf, rank=16, alpha=16, seed=seed)
    else:
        freeze(clf, trainable="last_block")
        lr = 1e-3 if gpt2.config.emb_dim < 768 else lr
    train_set, val_set, test_set = (
        TextDataset(*part, tokenizer=clf.tokenizer, classes=clf.classes, max_length=b.width) for part in b.parts
    )
    train(clf, train_set, val_set, epochs=EPOCHS, lr=lr, seed=seed, callbacks=[KeepBest()], progress=False)
    return float(evaluate(clf, test_set).accuracy)


def bench_xl_qlora(b: Bench) -> None:
    """Measure 20 steps of GPT-2 XL over NF4 with factors in every block, in a process whose memory is sampled."""
    isolated(b, "XL QLoRA", xl_folder(b))


ADAPTER_PARTS = {
    "lora": bench_lora,
    "many": bench_many,
    "qlora": bench_qlora,
    "qlora-accuracy": bench_qlora_accuracy,
    "xl-qlora": bench_xl_qlora,
}
