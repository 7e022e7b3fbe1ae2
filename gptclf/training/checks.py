"""Checks of the arguments of training. Each error says what is wrong, the value given, and what is allowed."""

import torch

from gptclf.data.batches import TokenRows
from gptclf.data.windows import TextWindows
from gptclf.gpt2.model import GPT2, check_encoding, check_language_model
from gptclf.inference.evaluate import check_ids
from gptclf.training.recipe import Recipe


def check_trainable(model: GPT2) -> None:
    """Raise if the model has no trainable parameter, or one that is not float32."""
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not trained:
        raise ValueError("nothing in the model trains; choose what to train with freeze(model, trainable='last_block')")
    other = [f"{name} is {parameter.dtype}" for name, parameter in trained if parameter.dtype != torch.float32]
    if other:
        advice = "call model.float(), and give precision='bfloat16' for speed"
        raise ValueError(f"weights train in float32, but {other[0]}; {advice}")


def check_windows(model: GPT2, windows: TextWindows, name: str) -> TextWindows:
    """Return the windows, or raise if the model cannot be trained or measured on them."""
    check_language_model(model)
    if not isinstance(windows, TextWindows):
        raise TypeError(f"{name} is a {type(windows).__name__}; a language model takes TextWindows(texts, ...)")
    if not len(windows):
        raise ValueError(f"{name} holds no windows; it needs at least one")
    check_encoding(model, windows.tokenizer)
    check_ids(model, windows.ids, name)
    if windows.length > (most := model.config.context_length):
        problem = f"{name} has windows of {windows.length} tokens, but the model's context length is {most}"
        raise ValueError(f"{problem}; build it with a length of at most that")
    return windows


def check_training_rows(model: GPT2, rows: TokenRows, recipe: Recipe) -> None:
    """Raise if there is nothing to learn from the training rows, or not even one batch of them."""
    model.task.check_training(rows.targets(model.task))
    size = recipe.batch_size
    if recipe.drop_last and len(rows) < size:
        raise ValueError(f"drop_last=True leaves no batch: {len(rows)} rows are less than one batch of {size}")
