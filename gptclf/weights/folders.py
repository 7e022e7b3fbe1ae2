"""Reading a local folder of weights: `config.json`, and safetensors or PyTorch files, in one piece or sharded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from gptclf.files.json_file import read_json
from gptclf.files.safetensors_file import read_safetensors
from gptclf.files.torch_file import read_torch_file, unwrap_names
from gptclf.weights.guess import guess_from_files

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
# The files that transformers wrote before it used safetensors.
TORCH_WEIGHTS = "pytorch_model.bin"
TORCH_INDEX = "pytorch_model.bin.index.json"


def read_config(path: Path) -> dict[str, Any]:
    """Return the JSON object in a folder's configuration file. If missing, the error guesses what the folder is."""
    try:
        return read_json(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; a folder of weights needs {path.name}{_guess(path.parent)}") from None


def shard_names(index: dict[str, Any], source: Path) -> list[str]:
    """Return the file names in the index of a sharded model; each must be in the same folder."""
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{source} has no weight_map; it is not the index of a sharded model")
    names = sorted(set(map(str, weight_map.values())))
    for name in names:
        if Path(name).name != name:
            raise ValueError(f"{source} names a shard {name!r}; shards are beside the index")
    return names


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Return all tensors of a folder, memory-mapped, without the prefixes of compiled or wrapped modules.

    Safetensors are preferred if the folder also holds PyTorch's files.
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
    """Return the tensors of one file: safetensors by its suffix, else a file of `torch.save`."""
    if path.suffix == ".safetensors":
        return unwrap_names(read_safetensors(path)[0], source=str(path))
    return read_torch_file(path)
