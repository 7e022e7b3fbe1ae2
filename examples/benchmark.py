"""Measure speed, exactness and memory of gptclf and its peers on the same rows, weights and machine, in one run.

    python examples/benchmark.py --data sms                        # everything but xl; about an hour on two cores
    python examples/benchmark.py --data sms --only recipe predict  # some of it
    python examples/benchmark.py --data messages --tiny --rounds 1 # a trial run; the figures mean nothing

Contenders take turns, each figure is the median of `--rounds` runs, and ratios come first. Weights are random: times
do not depend on them, and accuracies here say nothing about pretrained GPT-2. All batches of the book's recipe have one
shape, so one step and one evaluated batch are timed and multiplied by their numbers; `--only whole-book` runs it in
full. Needs `pip install -e ".[benchmark]"` and `pip install --no-deps llms-from-scratch`. Writes
results.json and ratios.png.
"""

import argparse
import json
import logging
import platform
import tempfile
from pathlib import Path

import torch
from adapter_contests import ADAPTER_PARTS
from contests import PARTS as CLASSIFIER_PARTS
from contests import Bench
from text_contests import bench_checkpoint, bench_generate, bench_round_trip

TEXT_PARTS = {"generate": bench_generate, "checkpoint": bench_checkpoint, "round-trip": bench_round_trip}
PARTS = {**CLASSIFIER_PARTS, **TEXT_PARTS, **ADAPTER_PARTS}


def ratios(b: Bench) -> dict[str, float]:
    """Return how many times faster gptclf is, by measurement."""
    pairs = {
        "recipe, cold: book / gptclf": ("book: recipe (from steps)", "gptclf: recipe"),
        "recipe, cold: Trainer default / gptclf": ("Trainer default: recipe", "gptclf: recipe"),
        "recipe, cold: Trainer tuned / gptclf": ("Trainer tuned: recipe", "gptclf: recipe"),
        "recipe, float32: book / gptclf": ("book: recipe (from steps)", "gptclf: recipe, float32"),
        "recipe, float32: Trainer tuned / gptclf": ("Trainer tuned: recipe, float32", "gptclf: recipe, float32"),
        "recipe again: book / gptclf": ("book: recipe (from steps)", "gptclf: recipe again, other lr"),
        "all layers, one epoch: book / gptclf": (
            "book: all layers, one epoch (from steps)",
            "gptclf: all layers, one epoch",
        ),
        "all layers, one epoch: Trainer tuned / gptclf": (
            "Trainer tuned: all layers, one epoch",
            "gptclf: all layers, one epoch",
        ),
        "predict: pipeline / gptclf": ("pipeline: predict the test set", "gptclf: predict the test set"),
        "predict: tuned bf16 loop / gptclf": ("tuned bf16 loop: predict the test set", "gptclf: predict the test set"),
        "generate 200 tokens: transformers / gptclf": (
            "transformers: generate 200 tokens",
            "gptclf: generate 200 tokens",
        ),
        "generate 200 tokens: without / with the cache": (
            "gptclf: generate 200 tokens without the cache",
            "gptclf: generate 200 tokens",
        ),
        "one suffix epoch: share of the book's": ("gptclf: one suffix epoch", "book: one epoch of steps"),
        "last 2 blocks: Trainer tuned at last_block / gptclf": (
            "Trainer tuned: recipe",
            "gptclf: recipe, last 2 blocks",
        ),
        "last 4 blocks: Trainer tuned at last_block / gptclf": (
            "Trainer tuned: recipe",
            "gptclf: recipe, last 4 blocks",
        ),
    }
    every, last = "LoRA on every block, one epoch", "LoRA on the last 4 blocks, recipe"
    pairs |= {
        f"{every}: PEFT / gptclf": (f"PEFT: {every}", f"gptclf: {every}"),
        f"{last}: PEFT / gptclf": (f"PEFT: {last}", f"gptclf: {last}"),
        f"{last} again: PEFT / gptclf": (f"PEFT: {last}", f"gptclf: {last} again, other lr"),
        "six classifiers: share of one's": ("gptclf: six classifiers at once", "gptclf: one classifier"),
    }
    for tokens in (256, 512, 1024):
        steps = (f"gptclf: {name} step, {tokens} tokens" for name in ("QLoRA", "LoRA"))
        pairs[f"QLoRA step, {tokens} tokens: share of LoRA's"] = (next(steps), next(steps))
    found = {name: b.median(peer) / b.median(ours) for name, (peer, ours) in pairs.items()}
    return {name: ratio for name, ratio in found.items() if ratio == ratio}


def draw(found: dict[str, float], path: Path) -> None:
    """Draw a bar for every ratio of speeds, on a logarithmic axis."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [name for name in found if "share" not in name]
    figure, axes = plt.subplots(figsize=(9, 0.5 * len(names) + 1.2))
    bars = axes.barh(names[::-1], [found[name] - 1 for name in names[::-1]], left=1, color="#3b6ea5")
    axes.bar_label(bars, labels=[f"{found[name]:.1f}" for name in names[::-1]], padding=3)
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlabel("times faster")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.margins(x=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main() -> None:
    """Measure, print the ratios, and write JSON and a picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", default="sms", help="'sms' (UCI, downloaded), the SMS file, or 'messages' (generated)"
    )
    usual = [name for name in PARTS if name not in ("whole-book", "xl", "round-trip", "xl-qlora")]
    parser.add_argument("--only", nargs="*", choices=PARTS, default=usual)
    parser.add_argument("--banking", type=Path, help="folder of Banking77's files, for the exactness figures")
    parser.add_argument("--checkpoint", type=Path, help="folder with OpenAI's TensorFlow checkpoint")
    parser.add_argument("--sizes", nargs="+", default=["gpt2", "gpt2-xl"], help="of the round trips")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="a toy model: shows that the script runs, nothing more")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark"))
    args = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        b = Bench(args, Path(folder))
        for name in args.only:
            print(name, flush=True)
            PARTS[name](b)
            found = ratios(b)
            result = {
                "ratios": found,
                "seconds": {name: {"median": b.median(name), "runs": runs} for name, runs in b.seconds.items()},
                "notes": b.notes,
                "machine": {
                    "processor": platform.processor() or platform.machine(),
                    "threads": torch.get_num_threads(),
                    "capability": torch.backends.cpu.get_cpu_capability(),
                    "torch": torch.__version__,
                    "python": platform.python_version(),
                },
            }
            (args.out / "results.json").write_text(json.dumps(result, indent=2) + "\n")
    width = max(map(len, [*found, "x"]))
    for name, ratio in found.items():
        print(f"{name:<{width}}  {ratio:.2%}" if "share" in name else f"{name:<{width}}  {ratio:.1f}")
    for name, note in b.notes.items():
        print(f"{name}: {note}")
    if found:
        draw(found, args.out / "ratios.png")
    print(f"written: {args.out}/results.json")


if __name__ == "__main__":
    main()
