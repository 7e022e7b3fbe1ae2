"""`gptclf summary`: what a model is."""

from argparse import Namespace

from gptclf.cli.models import load_any
from gptclf.gpt2.freezing import trainable_report
from gptclf.gpt2.quantized import count_weights
from gptclf.preparation import Preparation
from gptclf.tasks.calibration import in_words


def run(args: Namespace) -> int:
    """Print a model's task, size and preparation of texts."""
    model = load_any(args.model, base=args.base)
    config, card = model.config, model.task.card()
    shown = {
        "task": f"{model.task.title}, {model.task.summary}",
        "classes": ", ".join(map(str, card.labels)),
        "size": f"{count_weights(model):,} parameters, {config.n_layers} blocks, {config.emb_dim} wide",
        "context": f"{config.context_length} tokens of {config.vocab_size:,}",
        "head looks at": model.head.looks_at,
        "base": model.base or "",
        "texts": _texts(model.preparation),
        "answers by": in_words(getattr(model.task, "temperature", 1.0), getattr(model.task, "thresholds", None)),
        "trained": str(trainable_report(model)),
    }
    for name, value in shown.items():
        if value:
            print(f"{name + ':':<15}{value}")
    return 0


def _texts(preparation: Preparation) -> str:
    length = "the context" if preparation.max_length is None else f"{preparation.max_length} tokens"
    padded = "" if preparation.pad_to is None else f"; padded to {preparation.pad_to}"
    return f"longer than {length}, they lose their {preparation.truncation}{padded}"
