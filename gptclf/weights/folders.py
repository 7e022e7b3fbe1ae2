"""Reading a local folder of weights: `config.json` and safetensors or PyTorch files, whole or sharded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptclf.files.json_file import read_json
from gptclf.files.safetensors_file import read_safetensors
from gptclf.files.torch_file import read_torch_file, unwrap_names
from gptclf.gpt2.model import GPT2, set_parameter
from gptclf.weights.guess import guess_from_files
from gptclf.weights.hugging_face import from_hugging_face

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
# What transformers wrote before safetensors, and its index.
TORCH_WEIGHTS = "pytorch_model.bin"
TORCH_INDEX = "pytorch_model.bin.index.json"


def read_config(path: Path) -> dict[str, Any]:
    """Return the JSON object in a folder's configuration file; if it is missing, guess what the folder holds."""
    try:
        return read_json(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; a folder of weights needs {path.name}{_guess(path.parent)}") from None


def shard_names(index: dict[str, Any], source: Path) -> list[str]:
    """File names that the index of a sharded model lists, none leading out of its folder."""
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{source} has no weight_map; it is not the index of a sharded model")
    names = sorted(set(map(str, weight_map.values())))
    for name in names:
        if Path(name).name != name:
            raise ValueError(f"{source} names a shard {name!r}; shards lie beside the index")
    return names


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder, memory-mapped, without the prefixes of compiled or wrapped modules.

    Safetensors win over PyTorch's files where both are there.
    """
    readers: dict[str, Callable[[Path], dict[str, Tensor]]] = {
        WEIGHTS: lambda path: read_safetensors(path)[0],
        TORCH_WEIGHTS: read_torch_file,
    }
    for (name, read), index in zip(readers.items(), (INDEX, TORCH_INDEX), strict=True):
        if (folder / name).is_file():
            return unwrap_names(read(folder / name), source=str(folder / name))
        if (folder / index).is_file():
            tensors: dict[str, Tensor] = {}
            for shard in shard_names(read_json(folder / index), folder / index):
                tensors |= read(folder / shard)
            return unwrap_names(tensors, source=str(folder))
    present = sorted(path.name for path in folder.iterdir())[:12]
    raise FileNotFoundError(
        f"{folder} holds neither {WEIGHTS} nor {TORCH_WEIGHTS} nor an index of either; "
        f"it holds {', '.join(present) if present else 'nothing'}{_guess(folder)}. "
        "Save the model with save_pretrained (safe_serialization is its default) or gptclf.save_model"
    )


def _guess(folder: Path) -> str:
    guess = guess_from_files([path.name for path in folder.iterdir()]) if folder.is_dir() else ""
    return f". {guess}" if guess else ""


def read_file(path: Path) -> dict[str, Tensor]:
    """The tensors of one file, safetensors by its suffix, else one of `torch.save`."""
    if path.suffix == ".safetensors":
        return unwrap_names(read_safetensors(path)[0], source=str(path))
    return read_torch_file(path)


def fill(model: GPT2, tensors: dict[str, Tensor]) -> None:
    """Put tensors (our names) into a model built on the meta device, without copying.

    They are the file's, or whoever's they were: the model copies each before it may train.
    """
    for name, tensor in tensors.items():
        set_parameter(model, name, tensor)
    model.note_shared(tensors)


def fill_from_hugging_face(model: GPT2, folder: Path, *, without: tuple[str, ...] = ()) -> None:
    """Fill a model built on the meta device from a folder in Hugging Face's layout.

    Args:
        model: Its shapes are what the file must have.
        folder: The folder with the weights.
        without: Parameters that the layout cannot hold and the caller fills.
    """
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    tensors = read_weights(folder)
    fill(
        model,
        from_hugging_face(tensors, shapes, model.config.n_layers, source=str(folder), without=without),
    )


def check_device(device: str | torch.device | None) -> torch.device:
    """The device, or an error that says what there is."""
    try:
        chosen = torch.device("cpu" if device is None else device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        have = ["cpu"]
        have += ["cuda"] if torch.cuda.is_available() else []
        have += ["mps"] if torch.backends.mps.is_available() else []
        reason = str(error).split("\n")[0]
        raise ValueError(f"device {device!r} cannot be used here ({reason}); there is {', '.join(have)}") from error
    return chosen
