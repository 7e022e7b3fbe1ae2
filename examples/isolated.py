"""Measurements that need their own process; `benchmark.py` starts them and reads the last line they print.

    python examples/isolated.py NAME FOLDER WIDTH

FOLDER holds a saved GPT-2 and parts.json, the texts and labels of the three sets.
"""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

# Number of repetitions by name.
PROBES = [
    ("start-up", 5),
    ("memory, gptclf", 1),
    ("memory, Trainer", 1),
    ("growth, 1k texts", 1),
    ("growth, 4k texts", 1),
    ("growth, 16k texts", 1),
]


class AnonymousMemory(threading.Thread):
    """Sample the process's anonymous and whole resident memory every 50 ms (Linux).

    Attributes:
        peak: Largest anonymous resident memory in bytes.
        resident: Largest resident memory in bytes, pages of mapped files included.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = self.resident = 0
        self.start()

    def run(self) -> None:
        """Sample until the process ends."""
        while True:
            fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
            self.peak = max(self.peak, 1024 * int(fields["RssAnon"].split()[0]))
            self.resident = max(self.resident, 1024 * int(fields["VmRSS"].split()[0]))
            time.sleep(0.05)


def start_up(folder: Path, width: int) -> dict[str, float]:
    """Measure import times, and the time from process start to the first prediction."""

    def seconds(code: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, capture_output=True)
        return time.perf_counter() - start

    model = folder / "classifier"
    ours = f"from gptclf import load_model, predict; predict(load_model({str(model)!r}), ['you won a prize'])"
    theirs = (
        f"from transformers import pipeline; pipeline('text-classification', {str(model)!r}, device='cpu')"
        "(['you won a prize'])"
    )
    if not model.exists():
        from gptclf import add_classifier_head, load_gpt2, save_model

        save_model(add_classifier_head(load_gpt2(str(folder)), classes=["ham", "spam"], seed=1), model)
    return {
        "import torch (s)": seconds("import torch"),
        "import gptclf (s)": seconds("import gptclf"),
        "gptclf, process start to first answer (s)": seconds(ours),
        "transformers pipeline, process start to first answer (s)": seconds(theirs),
    }


def memory_ours(folder: Path, width: int) -> dict[str, float]:
    """Measure peak memory of the recipe, one epoch."""
    from gptclf import TextDataset, add_classifier_head, evaluate, load_gpt2, train

    watch = AnonymousMemory()
    clf = add_classifier_head(load_gpt2(str(folder)), classes=["ham", "spam"], seed=123)
    parts = [
        TextDataset(texts, labels, tokenizer=clf.tokenizer, classes=clf.classes, max_length=width)
        for texts, labels in _parts(folder)
    ]
    train(clf, parts[0], parts[1], epochs=1, progress=False)
    evaluate(clf, parts[2])
    return {"anonymous (MB)": watch.peak / 1e6, "resident (MB)": watch.resident / 1e6}


def xl_recipe(folder: Path, width: int) -> dict[str, float]:
    """Measure seconds and peak anonymous memory of the recipe on GPT-2 XL with memory-mapped weights."""
    from gptclf import TextDataset, add_classifier_head, evaluate, load_gpt2, train

    start = time.perf_counter()
    watch = AnonymousMemory()
    clf = add_classifier_head(load_gpt2(str(folder)), classes=["ham", "spam"], seed=123)
    train_set, val_set, test_set = (
        TextDataset(texts, labels, tokenizer=clf.tokenizer, classes=clf.classes, max_length=width)
        for texts, labels in _parts(folder)
    )
    history = train(clf, train_set, val_set, epochs=5, eval_every=50, eval_batches=5)
    for part in (train_set, val_set, test_set):
        accuracy = evaluate(clf, part).accuracy
    first = history.evaluations[0].seconds
    return {
        "seconds": time.perf_counter() - start,
        "seconds to step 50": first,
        "seconds of training": history.seconds,
        "test accuracy": accuracy,
        "anonymous (MB)": watch.peak / 1e6,
        "resident (MB)": watch.resident / 1e6,
    }


def memory_lora(folder: Path, width: int) -> dict[str, float]:
    """Measure peak memory of an epoch with LoRA factors in every block."""
    from gptclf import TextDataset, add_classifier_head, apply_lora, load_gpt2, train

    watch = AnonymousMemory()
    clf = apply_lora(add_classifier_head(load_gpt2(str(folder)), classes=["ham", "spam"], seed=123), seed=123)
    data = TextDataset(*_parts(folder)[0], tokenizer=clf.tokenizer, classes=clf.classes, max_length=width)
    train(clf, data, epochs=1, eval_batches=1, progress=False)
    return {"anonymous (MB)": watch.peak / 1e6, "resident (MB)": watch.resident / 1e6}


def memory_peft(folder: Path, width: int) -> dict[str, float]:
    """Measure peak memory of tuned PEFT, one epoch with factors in every block."""
    import peers

    watch = AnonymousMemory()
    peers.peft_seconds(folder, _encoded(folder, width), epochs=1)
    return {"anonymous (MB)": watch.peak / 1e6, "resident (MB)": watch.resident / 1e6}


def xl_qlora(folder: Path, width: int) -> dict[str, float]:
    """Measure memory and seconds of 20 steps of GPT-2 XL over NF4, factors in every block, with recomputation."""
    from gptclf import Callback, TextDataset, add_classifier_head, apply_lora, load_gpt2, quantize, train

    class Clock(Callback):
        def on_step(self, run: Any, step: Any) -> None:
            times.append(time.perf_counter())

    watch, start = AnonymousMemory(), time.perf_counter()
    times: list[float] = []
    gpt2 = quantize(load_gpt2(str(folder)), "nf4")
    ready = time.perf_counter()
    clf = apply_lora(add_classifier_head(gpt2, classes=["ham", "spam"], seed=123), seed=123)
    texts, labels = _parts(folder)[0]
    data = TextDataset(texts[:160], labels[:160], tokenizer=clf.tokenizer, classes=clf.classes, max_length=width)
    history = train(clf, data, epochs=1, recompute=True, eval_batches=1, callbacks=[Clock()], progress=False)
    return {
        "steps": len(history.steps),
        "seconds to quantise": ready - start,
        "seconds per step": (times[-1] - times[0]) / (len(times) - 1),
        "anonymous (MB)": watch.peak / 1e6,
        "resident (MB)": watch.resident / 1e6,
    }


def memory_trainer(folder: Path, width: int) -> dict[str, float]:
    """Measure peak memory of tuned Trainer, one epoch."""
    import peers

    watch = AnonymousMemory()
    peers.trainer_epoch(folder, _encoded(folder, width), trainable="last_block", tuned=True, precision="bfloat16")
    return {"anonymous (MB)": watch.peak / 1e6, "resident (MB)": watch.resident / 1e6}


def growth(folder: Path, width: int, texts: int) -> dict[str, float]:
    """Measure time and memory of the frozen part, kept on disk, for some number of texts; four layers deep."""
    import tempfile
    from dataclasses import replace

    from gptclf import GPT2, TextDataset, add_classifier_head, load_gpt2, train

    gpt2 = load_gpt2(str(folder))
    small = GPT2(replace(gpt2.config, n_layers=4), seed=0).requires_grad_(False)
    small.tokenizer = gpt2.tokenizer
    clf = add_classifier_head(small, classes=["ham", "spam"], seed=1)
    own = [(text, label) for part in _parts(folder) for text, label in zip(*part, strict=True)]
    if gpt2.config.emb_dim < 100:
        texts //= 100
    rows = [(f"{i} {own[i % len(own)][0]}", own[i % len(own)][1]) for i in range(texts)]  # all different
    data = TextDataset([t for t, _ in rows], [n for _, n in rows], tokenizer=clf.tokenizer, max_length=width)
    watch = AnonymousMemory()
    with tempfile.TemporaryDirectory() as cache:
        start = time.perf_counter()
        train(clf, data, epochs=1, batch_size=64, eval_batches=1, cache_dir=cache, progress=False)
        taken = time.perf_counter() - start
    tokens = int(data.lengths.sum())
    return {"tokens": tokens, "seconds per 1,000 tokens": 1000 * taken / tokens, "anonymous (MB)": watch.peak / 1e6}


def _encoded(folder: Path, width: int) -> list[tuple[list[int], int]]:
    from gptclf import TextDataset, load_gpt2

    data = TextDataset(*_parts(folder)[0], tokenizer=load_gpt2(str(folder)).tokenizer, max_length=width)
    return [(ids.tolist(), i) for ids, i in zip(data.rows(), data.targets().tolist(), strict=True)]


def _parts(folder: Path) -> Any:
    return json.loads((folder / "parts.json").read_text())


def main() -> None:
    """Run the named measurement."""
    name, folder, width = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    os.environ["HF_HUB_OFFLINE"] = "1"
    run = {
        "start-up": start_up,
        "memory, gptclf": memory_ours,
        "memory, Trainer": memory_trainer,
        "XL recipe": xl_recipe,
        "XL QLoRA": xl_qlora,
        "memory, LoRA": memory_lora,
        "memory, PEFT": memory_peft,
    }
    texts = 0 if name in run else 1000 * int(name.split()[1].rstrip("k"))
    found = run[name](folder, width) if name in run else growth(folder, width, texts)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
