"""Reading a local folder of weights: `config.json`, and safetensors or PyTorch files, in one piece or sharded."""

import errno
from pathlib import Path
from typing import Any

from torch import Tensor

from gptclf.files.access import names_in
from gptclf.files.json_file import read_json
from gptclf.files.safetensors_file import read_safetensors
from gptclf.files.torch_file import read_torch_file, unwrap_names
from gptclf.weights.guess import guess_from_files

# The record of a model that gptclf saved.
OURS = "gptclf.json"
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
# The files that transformers wrote before it used safetensors.
TORCH_WEIGHTS = "pytorch_model.bin"
TORCH_INDEX = "pytorch_model.bin.index.json"


def read_config(path: Path) -> dict[str, Any]:
    """Return the JSON object in a folder's configuration file. If it is missing, the error guesses what is there."""
    try:
        return read_json(path)
    except FileNotFoundError:
        problem = f"{path.absolute()} does not exist; a folder of weights needs it{_guess(path.parent)}"
        raise FileNotFoundError(errno.ENOENT, problem) from None


def shard_names(index: dict[str, Any], source: Path) -> list[str]:
    """Return the file names in the index of a sharded model; each must be in the same folder."""
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{source} has no weight_map; it is not the index of a sharded model")
    names = sorted(set(map(str, weight_map.values())))
    wrong = [name for name in names if Path(name).name != name or not name.isprintable()]
    if wrong:
        raise ValueError(f"{source} names a shard {wrong[0]!r}; shards must be beside the index")
    return names


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Return all tensors of a folder, memory-mapped, without the prefixes of compiled or wrapped modules.

    Safetensors are preferred if the folder also holds PyTorch's files.
    """
    for whole, index in ((folder / WEIGHTS, folder / INDEX), (folder / TORCH_WEIGHTS, folder / TORCH_INDEX)):
        if whole.exists():
            return read_files(whole)
        if index.exists():
            return read_files(*(folder / shard for shard in shard_names(read_json(index), index)))
    present = ", ".join(names_in(folder)[:12]) or "nothing"
    raise FileNotFoundError(
        f"{folder} holds neither {WEIGHTS} nor {TORCH_WEIGHTS} nor an index of either; it holds {present}"
        f"{_guess(folder)}. Save the model with save_pretrained or gptclf.save_model"
    )


def _guess(folder: Path) -> str:
    guess = guess_from_files(names_in(folder))
    return f". {guess}" if guess else ""


def read_files(*paths: Path) -> dict[str, Tensor]:
    """Return the tensors of files that belong together: safetensors by the suffix, else files of `torch.save`."""
    tensors: dict[str, Tensor] = {}
    for path in paths:
        tensors |= read_safetensors(path)[0] if path.suffix == ".safetensors" else read_torch_file(path)
    return unwrap_names(tensors, source=", ".join(map(str, paths[:3])))
