"""Write `old/`: a folder, a state and features as the version before tasks and recipes wrote them (commit cad9d60).

Run once, with that version: `PYTHONPATH=<its checkout> python tests/data/write_old.py`. The tests read the result with
the version at hand.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from gptclf.weights.tokenizer import byte_characters, make_encoding  # type: ignore[import-not-found]

from gptclf import (
    GPT2,
    Callback,
    GPT2Config,
    TextDataset,
    add_classifier_head,
    freeze,
    load_gpt2,
    predict_proba,
    save_model,
    train,
)

OLD = Path(__file__).parent / "old"
TEXTS = [f"{word} {i}" for i in range(4) for word in ("win a prize", "see you", "call now")]
LABELS = ["spam", "ham", "spam"] * 4
SETTINGS: dict[str, Any] = {"epochs": 3, "batch_size": 4, "lr": 3e-3, "eval_every": 2, "progress": False}


def classifier() -> GPT2:
    """The classifier whose training and folder are kept."""
    tokenizer = make_encoding({bytes([byte]): i for i, byte in enumerate(byte_characters())})
    config = GPT2Config(vocab_size=257, context_length=32, emb_dim=16, n_layers=2, n_heads=2, mlp_dim=32)
    gpt2 = load_gpt2(config, weights="random", seed=0, tokenizer=tokenizer)
    clf = add_classifier_head(gpt2, classes=["ham", "spam"], seed=3)
    freeze(clf, trainable="last_block")
    return clf


def rows(clf: GPT2) -> TextDataset:
    """The training set."""
    return TextDataset(TEXTS, LABELS, tokenizer=clf.tokenizer, classes=["ham", "spam"], max_length=24)


class Stop(Callback):
    """Ends a run at a step, by an error."""

    def on_step(self, run: Any, step: Any) -> None:
        """Raise after the first step of the second epoch."""
        if step.step == 4:
            raise InterruptedError


def main() -> None:
    """Write everything."""
    torch.set_num_threads(1)
    shutil.rmtree(OLD, ignore_errors=True)
    whole, begun = classifier(), classifier()
    history = train(whole, rows(whole), rows(whole), **SETTINGS)
    try:
        options: dict[str, Any] = {"checkpoint_dir": OLD / "state", "cache_dir": OLD / "features"}
        train(begun, rows(begun), rows(begun), callbacks=[Stop()], **options, **SETTINGS)
    except InterruptedError:
        pass
    save_model(whole, OLD / "model")
    probabilities = predict_proba(whole, TEXTS)
    values = {
        "torch": torch.__version__,
        "losses": [step.loss for step in history.steps],
        "epochs": [[scores.train_loss, scores.val_accuracy] for scores in history.epochs],
        "probabilities": probabilities.tolist(),
    }
    (OLD / "values.json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
