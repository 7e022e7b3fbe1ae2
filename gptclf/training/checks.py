"""What training is given, checked before it begins: each error says what was wrong, what it is, and what is allowed."""

import math
from collections.abc import Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import torch

from gptclf.data.dataset import TextDataset
from gptclf.data.windows import TextWindows
from gptclf.gpt2.model import GPT2
from gptclf.inference.evaluate import check_ids
from gptclf.training.callbacks import Callback
from gptclf.training.checkpoint import STATE


def check_state_folder(checkpoint_dir: str | Path | None, resume: bool) -> Path | None:
    """The folder for the run's state, or an error."""
    if checkpoint_dir is None:
        if resume:
            raise ValueError("resume=True needs checkpoint_dir=, the folder that holds the run's state")
        return None
    folder = Path(checkpoint_dir)
    if not str(checkpoint_dir) or (folder.exists() and not folder.is_dir()):
        raise ValueError(f"checkpoint_dir is {str(checkpoint_dir)!r}; it must be a folder, there or to be made")
    if not resume and (folder / STATE).exists():
        raise FileExistsError(
            f"{folder} holds the state of a run; give resume=True to go on with it, or another checkpoint_dir"
        )
    return folder


def check_model(model: GPT2) -> None:
    """Raise where nothing trains, or in another precision than float32."""
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not trained:
        raise ValueError("nothing in the model trains; say what shall with freeze(model, trainable='last_block')")
    other = [f"{name} is {parameter.dtype}" for name, parameter in trained if parameter.dtype != torch.float32]
    if other:
        raise ValueError(
            f"weights train in float32, but {other[0]}; call model.float(), and give precision='bfloat16' for speed"
        )


def check_callbacks(callbacks: Sequence[Callback], *, has_validation: bool) -> None:
    """Raise where a callback is none, or lacks what it needs."""
    if isinstance(callbacks, Callback) or not all(isinstance(callback, Callback) for callback in callbacks):
        raise TypeError(f"callbacks is {callbacks!r}; it must be a list of gptclf.Callback objects")
    for callback in callbacks:
        if callback.needs_validation and not has_validation:
            raise ValueError(f"{type(callback).__name__} needs a validation set: train(model, train_set, val_set, ...)")


def check_arguments(**values: Any) -> None:
    """Raise where a number is none, or out of range; only those given are looked at."""
    counts = ("epochs", "batch_size", "accumulate", "eval_every", "eval_batches", "warmup_steps", "seed")
    for name in (name for name in counts if name in values):
        value, optional = values[name], name.startswith("eval")
        least = 0 if name in ("warmup_steps", "seed") else 1
        if value is None and optional:
            continue
        if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name} is {value!r}; it must be an integer of at least {least}{' or None' * optional}")
    for name in (name for name in ("lr", "weight_decay", "clip") if name in values):
        value = values[name]
        if value is None and name == "clip":
            continue
        if not isinstance(value, Real) or isinstance(value, bool) or not 0 <= float(value) < math.inf:
            raise ValueError(f"{name} is {value!r}; it must be a finite number of at least 0")
    if values.get("clip") == 0:
        raise ValueError("clip is 0, which would cut every gradient to nothing; give a positive norm, or None")


def check_windows(model: GPT2, windows: TextWindows, name: str) -> None:
    """Raise where a language model cannot be trained on, or measured with, these windows."""
    if not isinstance(windows, TextWindows):
        raise TypeError(f"{name} is a {type(windows).__name__}; a language model takes TextWindows(texts, ...)")
    if not len(windows):
        raise ValueError(f"{name} holds no windows; it needs at least one")
    model.check_same_tokenizer(windows.tokenizer)
    check_ids(model, windows.ids, name)
    if windows.length > model.config.context_length:
        raise ValueError(
            f"{name} has windows of {windows.length} tokens, but the model's context length is "
            f"{model.config.context_length}; build it with a length of at most that"
        )


def check_rows(model: GPT2, texts: TextDataset) -> None:
    """Raise where there is nothing to tell apart."""
    if len({int(label) for label in texts.targets(model.classes or [])}) < 2:
        raise ValueError("every row of the training set has the same label; a classifier learns nothing from one class")
