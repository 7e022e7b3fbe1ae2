"""Compare this checkout with an earlier one, task by task, in alternating runs on one machine.

    git worktree add ../before COMMIT
    python examples/before.py ../before                  # about ten minutes with the 124M model's shape
    python examples/before.py ../before --size nano --rounds 3

Each task runs in a worker process of each checkout: earlier, this one, earlier again, round after round. The second run
of the earlier checkout shows how far equal code differs from itself here; a ratio within that spread says nothing.
Weights are random: speed does not depend on their values.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any, cast

HERE = Path(__file__).resolve()
TASKS = ("recipe", "all layers", "predict", "predict one", "generate")


def work() -> None:
    """Run tasks by name as they arrive on standard input, with whatever gptclf is on the path."""
    import logging
    import resource

    import torch
    from messages import make_messages

    import gptclf
    from gptclf import GPT2Config, TextDataset, add_classifier_head, clear_features, freeze, generate_ids, load_gpt2

    logging.disable(logging.CRITICAL)
    settings = json.loads(sys.stdin.readline())
    torch.set_num_threads(settings["threads"])
    nano = load_gpt2("nano")
    shape: dict[str, Any] = {"vocab_size": 50257, "context_length": 1024, "emb_dim": 768, "n_heads": 12, "n_layers": 12}
    config = nano.config if settings["size"] == "nano" else GPT2Config(**shape)
    gpt2 = load_gpt2(config, weights="random", seed=0, tokenizer=nano.tokenizer)
    texts, labels = make_messages(settings["texts"], seed=1)
    clf = add_classifier_head(gpt2, classes=["ham", "spam"], seed=1)
    data = TextDataset(texts, labels, tokenizer=nano.tokenizer, classes=clf.classes, max_length=120)
    part, rest = data.subset(range(len(data) // 8, len(data))), data.subset(range(len(data) // 8))

    def train(policy: str, rows: TextDataset, **options: Any) -> list[float]:
        clear_features()
        fresh = add_classifier_head(gpt2, classes=["ham", "spam"], seed=1)
        freeze(fresh, trainable=policy)
        history = gptclf.train(fresh, rows, rest, progress=False, eval_batches=5, **options)
        return [step.loss for step in history.steps]

    ids = torch.arange(8)[None]
    tasks: dict[str, Any] = {
        "recipe": lambda: train("last_block", part, epochs=2, eval_every=50),
        "all layers": lambda: train("all", part.subset(range(48)), epochs=1),
        "predict": lambda: gptclf.predict_proba(clf, texts).sum(axis=0).tolist(),
        "predict one": lambda: [gptclf.predict(clf, texts[i : i + 1]) for i in range(10)],
        "generate": lambda: generate_ids(gpt2, ids, settings["tokens"]).flatten().tolist(),
    }
    import warnings

    warnings.simplefilter("ignore")
    print(json.dumps({"version": str(Path(gptclf.__file__).parent)}), flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        result = tasks[line.strip()]()
        seconds = time.perf_counter() - start
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        print(json.dumps({"seconds": seconds, "memory": memory, "result": result}), flush=True)


class Worker:
    """A process that runs tasks with one checkout's package."""

    def __init__(self, checkout: Path, settings: dict[str, Any]) -> None:
        self.environment = {**os.environ, "PYTHONPATH": f"{checkout}:{HERE.parent}"}
        command = [sys.executable, str(HERE), "--work"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=self.environment, cwd=checkout
        )
        self.ask(json.dumps(settings))

    def ask(self, line: str) -> dict[str, Any]:
        """Send a line and return the answer."""
        stdin, stdout = cast(IO[str], self.process.stdin), cast(IO[str], self.process.stdout)
        stdin.write(line + "\n")
        stdin.flush()
        answer: dict[str, Any] = json.loads(stdout.readline())
        return answer

    def start_up(self) -> dict[str, Any]:
        """Time a new process that loads nano and answers once."""
        program = (
            "import logging, warnings; warnings.simplefilter('ignore'); logging.disable(50); import gptclf; "
            "clf = gptclf.add_classifier_head(gptclf.load_gpt2('nano'), num_classes=2, seed=0); "
            "gptclf.predict(clf, ['hi'])"
        )
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", program], env=self.environment, check=True)
        return {"seconds": time.perf_counter() - start, "memory": 0.0, "result": None}


def processor() -> str:
    """Name the processor and the matrix units it has."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    name = next((line.split(":")[1].strip() for line in text.splitlines() if line.startswith("model name")), "?")
    units = [unit for unit in ("avx512_bf16", "amx_bf16", "amx_int8") if unit in text]
    return f"{name}, {', '.join(units) or 'no bfloat16 units'}"


def main() -> None:
    """Take turns and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, nargs="?", help="folder of the earlier checkout")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--size", default="124M", choices=["124M", "nano"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--texts", type=int, default=480)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--only", nargs="*", choices=[*TASKS, "start-up"])
    args = parser.parse_args()
    if args.work:
        work()
        return
    settings = {"size": args.size, "threads": args.threads, "texts": args.texts, "tokens": args.tokens}
    checkouts = {"before": args.before.resolve(), "now": HERE.parents[1], "before again": args.before.resolve()}
    workers = {name: Worker(checkout, settings) for name, checkout in checkouts.items()}
    print(f"{processor()}; {args.threads} threads; {args.size}; {args.rounds} rounds", flush=True)
    print(
        f"{'task':12} {'before (s)':>10} {'now/before':>10}  {'of pairs':15} {'before/itself':15} same result",
        flush=True,
    )
    for task in args.only or [*TASKS, "start-up"]:
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in workers}
        for i in range(args.rounds + 1):  # the first round warms up
            for name, worker in workers.items() if i % 2 else reversed(workers.items()):
                runs[name].append(worker.start_up() if task == "start-up" else worker.ask(task))
        seconds = {name: [run["seconds"] for run in some[1:]] for name, some in runs.items()}
        pairs = [now / before for now, before in zip(seconds["now"], seconds["before"], strict=True)]
        itself = [a / b for a, b in zip(seconds["before again"], seconds["before"], strict=True)]
        same = runs["now"][0]["result"] == runs["before"][0]["result"]
        print(
            f"{task:12} {statistics.median(seconds['before']):10.3f} {statistics.median(pairs):10.3f}  "
            f"{min(pairs):.3f} to {max(pairs):.3f}  {statistics.median(itself):.3f} ({min(itself):.3f} to "
            f"{max(itself):.3f}) {same}",
            flush=True,
        )
    memory = {name: worker.ask("predict one")["memory"] for name, worker in workers.items()}
    print("peak memory (MB): " + ", ".join(f"{name} {value:.0f}" for name, value in memory.items()))


if __name__ == "__main__":
    main()
