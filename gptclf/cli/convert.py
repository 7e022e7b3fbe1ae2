"""`gptclf convert`: models from one form of file into another."""

import errno
from argparse import Namespace
from pathlib import Path

import torch

from gptclf.cli.models import load_any
from gptclf.cli.targets import check_target
from gptclf.files.atomic import write_file
from gptclf.gpt2.lora import merge_lora
from gptclf.gpt2.lora_linear import lora_layers
from gptclf.gpt2.model import GPT2
from gptclf.gpt2.quantized import quantized_layers
from gptclf.progress import write_line
from gptclf.saving.export_onnx import export_onnx
from gptclf.saving.save_adapter import save_adapter
from gptclf.saving.save_model import save_model
from gptclf.weights.book import to_book

_FILES = (".pth", ".onnx")


def run(args: Namespace) -> int:
    """Load a model, and write it in the form that the target's suffix says."""
    suffix = Path(args.target).suffix.lower()
    if suffix[1:].isalpha() and suffix not in _FILES and not args.force:  # a version, such as v1.2, may name a folder
        known = " or ".join(_FILES)
        raise ValueError(f"target is {args.target}; a file must end in {known}; --force writes a folder of this name")
    target = check_target("target", args.target, force=args.force, folder=suffix not in _FILES)
    if target.is_file() and not args.force:
        raise FileExistsError(errno.EEXIST, f"{target} exists; give another file, or --force to replace it")
    file = {
        "settings": None if args.n_heads is None else {"n_heads": args.n_heads},
        "classes": None if args.labels is None else args.labels.split(","),
        "pad_to": args.pad_to,
    }
    model = load_any(args.source, base=args.base, **{name: value for name, value in file.items() if value is not None})
    adapted = any(True for _ in lora_layers(model))
    if adapted and (args.merge or suffix == ".pth"):
        model, adapted = merge_lora(model), False
    if suffix == ".pth":
        tensors = _book(model)
        write_file(target, lambda beside: torch.save(tensors, beside))
    elif suffix == ".onnx":
        export_onnx(model, target)
    else:
        (save_adapter if adapted else save_model)(model, target)
    write_line(f"gptclf: saved to {target}")
    return 0


def _book(model: GPT2) -> dict[str, torch.Tensor]:
    """Return the state dict of the book's `GPTModel` that gives the same answers."""
    if problem := model.head.export_problem() or ("its matrices are quantised" if quantized_layers(model) else ""):
        raise ValueError(f"the book's GPTModel cannot compute this model: {problem}")
    labels = ",".join(map(str, model.task.card().labels))
    kept = f"--n-heads {model.config.n_heads}{f' --labels {labels}' * bool(labels)}"
    write_line(f"gptclf: a .pth file holds tensors alone; to convert it back, give {kept}")
    return to_book(dict(model.named_parameters()), model.config)
