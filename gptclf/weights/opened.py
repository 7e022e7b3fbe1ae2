"""`Opened`: a configuration and tensors, as every source of weights gives them, and building a model from them."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from gptclf.gpt2.config import GPT2Config
from gptclf.gpt2.heads import Head
from gptclf.gpt2.model import GPT2
from gptclf.gpt2.quantize import put_quantized
from gptclf.gpt2.sharing import fill
from gptclf.tasks import Task
from gptclf.weights.folders import CONFIG, read_config, read_weights
from gptclf.weights.hugging_face import check_size, config_from_hugging_face, from_hugging_face
from gptclf.weights.openai_folder import config_from_settings

Settings = GPT2Config | Mapping[str, Any]


class Opened(NamedTuple):
    """A model's configuration, and its tensors under gptclf's names, memory-mapped if possible."""

    config: GPT2Config
    tensors: Mapping[str, Tensor]


def build(opened: Opened, *, task: Task | None = None, head: Head | None = None) -> GPT2:
    """Build a frozen model over tensors that still belong to their file or caller.

    Args:
        opened: Configuration and tensors.
        task: The model's task; None means next-token prediction.
        head: The head; None makes the standard one.
    """
    if task is not None:
        task.check_outputs()
    model, tensors = GPT2(opened.config, task=task, head=head, device="meta"), dict(opened.tensors)
    put_quantized(model, tensors)
    fill(model, {name: tensors.pop(name) for name, _ in model.named_parameters() if name in tensors})
    if tensors:  # the buffers of a user's head
        model.load_state_dict(tensors, strict=False)
    return model.requires_grad_(False)


def shapes_of(
    config: GPT2Config, tensors: Collection[str], *, source: Path, task: Task | None = None, head: Head | None = None
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a model's parameters by name, after comparing its size with the tensors that are to fill it.

    Raises:
        ValueError: The configuration claims far more than there is.
    """
    check_size(config, tensors, str(source))
    return {name: tuple(p.shape) for name, p in GPT2(config, task=task, head=head, device="meta").named_parameters()}


def open_hugging_face(
    folder: Path, config: GPT2Config, *, task: Task | None = None, head: Head | None = None
) -> Opened:
    """Open the weights of a folder in Hugging Face's layout, which must be those of the model described."""
    found = read_weights(folder)
    shapes = shapes_of(config, found, source=folder, task=task, head=head)
    return Opened(config, from_hugging_face(found, shapes, config.n_layers, source=str(folder)))


def read_hugging_face_config(folder: Path) -> tuple[GPT2Config, dict[str, Any]]:
    """Return a folder's configuration, and the values of its `config.json`."""
    values = read_config(folder / CONFIG)
    return config_from_hugging_face(values, source=str(folder / CONFIG)), values


def config_from(settings: Settings) -> GPT2Config:
    """Return the configuration that settings describe, OpenAI's or the book's; their keys tell which."""
    if isinstance(settings, GPT2Config):
        return settings
    if not isinstance(settings, Mapping):
        raise TypeError(f"settings is a {type(settings).__name__}; give a dictionary or a GPT2Config")
    return config_from_settings(settings) if "n_embd" in settings else GPT2Config.from_dict(settings)


def book_settings(settings: Settings | None) -> Settings | None:
    """Return settings under the book's keys, some of which may be missing."""
    return config_from(settings) if isinstance(settings, Mapping) and "n_embd" in settings else settings
