"""Converting OpenAI's own checkpoints of GPT-2 to the book's nested parameters, and those to our tensors.

Variables in a checkpoint have names such as `model/h0/attn/c_attn/w` (openai/gpt-2, model.py; book section 5.5).
"""

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gptclf import checks
from gptclf.files.tensorbundle import open_bundle
from gptclf.gpt2.config import ALIASES, GPT2Config
from gptclf.weights.hugging_face import check_tensors, trunk_names, trunk_shapes
from gptclf.weights.openai_folder import HPARAMS, PREFIX, config_from_settings, find_checkpoint, read_settings

# Variables of fine-tuning scripts that are not part of the model: counters and the moments of the optimizer.
_TRAINING = re.compile(r"(.*/)?(global_step|beta[12]_power|Adam|Adam_1|Momentum)")

_Place = tuple[str | int, ...]


class _Parameter(NamedTuple):
    """A parameter in OpenAI's layout."""

    place: _Place  # in `params`, such as ("blocks", 0, "attn", "c_attn", "w")
    shape: tuple[int, ...]
    flip: bool  # whether ours is the transpose


_Tree = dict[str, Any]


@overload
def load_gpt2_params_from_tf_ckpt(folder: str | Path, *, verify: bool = True) -> tuple[_Tree, _Tree]: ...
@overload
def load_gpt2_params_from_tf_ckpt(folder: str | Path, settings: Mapping[str, Any], *, verify: bool = True) -> _Tree: ...
def load_gpt2_params_from_tf_ckpt(
    folder: str | Path, settings: Mapping[str, Any] | None = None, *, verify: bool = True
) -> tuple[_Tree, _Tree] | _Tree:
    """Read OpenAI's GPT-2 from its TensorFlow checkpoint, without TensorFlow (book section 5.5).

    Args:
        folder: The folder with `hparams.json` and `model.ckpt.*`, or one with a subfolder `124M/` (or another size) or
            `124M/124M/` that has them. The checkpoint's prefix, such as "gpt2/124M/model.ckpt", is also understood.
        settings: The values of `hparams.json`, in a call written as in the book, which returns `params` alone. Without
            them they are read.
        verify: Whether to compare every tensor with its checksum, which reads the data once.

    Returns:
        `(settings, params)`, or `params` if settings were given. Settings are `n_vocab`, `n_ctx`, `n_embd`, `n_head`,
        `n_layer`. Params are float32 numpy arrays: `["wte"]` (V, D), `["wpe"]` (T, D), the final norm's `["g"]` and
        `["b"]` (D,), and `["blocks"]`, a list with `["attn"]["c_attn" | "c_proj"]["w" | "b"]`,
        `["mlp"]["c_fc" | "c_proj"]["w" | "b"]` and `["ln_1" | "ln_2"]["g" | "b"]`; `w` is (in, out). Arrays are
        copy-on-write views of the files: they take memory only once they are read, and writing to one does not change
        the file.

    Raises:
        FileNotFoundError: There is no checkpoint, or one of its files is missing.
        ValueError: A file is damaged, or the checkpoint is not the GPT-2 that `hparams.json` describes.

    Example:
        >>> settings, params = load_gpt2_params_from_tf_ckpt("gpt2/124M")  # doctest: +SKIP
        >>> settings["n_layer"], params["blocks"][0]["attn"]["c_attn"]["w"].shape  # doctest: +SKIP
        (12, (768, 2304))
    """
    verify, place = checks.boolean("verify", verify), checks.path("folder", folder)
    prefix = place if Path(f"{place}.index").is_file() else find_checkpoint(place)
    if prefix is None:
        below = f"neither does {next(iter(ALIASES))}/ or another size below it"
        raise FileNotFoundError(f"{folder} holds no {PREFIX}.index, and {below}; give a folder in OpenAI's layout")
    found = read_settings(prefix) if settings is None else settings
    config = config_from_settings(found, source=str(prefix.parent / HPARAMS) if settings is None else "settings")
    # Verifying reads at least half a gigabyte, so names and shapes are checked first.
    bundle = open_bundle(prefix, verify=False)
    names = [name for name in bundle if not _TRAINING.fullmatch(name)]
    arrays = _matching(names, bundle.__getitem__, config, _variable, str(prefix))
    if verify:
        bundle.verify()
    params: dict[str, Any] = {"blocks": [{} for _ in range(config.n_layers)]}
    for (*path, leaf), array in arrays.items():
        target: Any = params
        for key in path:
            target = target.setdefault(key, {}) if isinstance(target, dict) else target[key]
        target[leaf] = array
    return params if settings is not None else (dict(found), params)


def tensors_from_params(
    params: Mapping[str, Any], settings: Mapping[str, Any] | GPT2Config
) -> tuple[GPT2Config, dict[str, Tensor]]:
    """Convert OpenAI's parameters to a configuration and tensors under our names.

    Args:
        params: The result of `load_gpt2_params_from_tf_ckpt` or of the book's reader; matrices are (in, out) or
            (1, in, out).
        settings: `n_vocab`, `n_ctx`, `n_embd`, `n_head` and `n_layer`; or a configuration, which can say more.

    Returns:
        The configuration, and float32 tensors in our layout. A tensor shares memory with its array if that is
        float32, contiguous and writable.

    Raises:
        ValueError: Parameters are missing, unexpected or misshapen; the message lists them.
    """
    if not isinstance(params, Mapping):
        raise TypeError(f"params is a {type(params).__name__}; it must be a dictionary with 'blocks', 'wte', ...")
    config = settings if isinstance(settings, GPT2Config) else config_from_settings(settings)
    if not (config.qkv_bias and config.tied):
        raise ValueError(
            f"settings have qkv_bias {config.qkv_bias} and tied {config.tied}; OpenAI's parameters have biases for "
            "query, key and value, and no output matrix other than wte. Give settings that agree"
        )
    found = {_joined(place): leaf for place, leaf in _leaves(params)}
    arrays = _matching(found, found.__getitem__, config, _joined, "params")
    tensors = {}
    for ours, parameter in _parameters(config).items():
        tensor = torch.from_numpy(np.require(arrays[parameter.place], requirements=["C", "A", "W"]))
        tensors[ours] = tensor.t() if parameter.flip else tensor
    return config, tensors


def _parameters(config: GPT2Config) -> dict[str, _Parameter]:
    """Return the parameter in OpenAI's layout for each of our names."""
    table, shapes = {}, trunk_shapes(config)
    for ours, (theirs, flip) in trunk_names(config.n_layers).items():
        *path, kind = theirs.split(".")
        block = path[0] == "h"
        inside = path[2:] if block else path
        leaf = "b" if kind == "bias" else "g" if inside[-1].startswith("ln_") else "w"
        place: _Place = ("blocks", int(path[1]), *inside, leaf) if block else (leaf if path == ["ln_f"] else path[0],)
        table[ours] = _Parameter(place, shapes[ours][::-1] if flip else shapes[ours], flip)
    return table


def parameter_count(config: GPT2Config) -> int:
    """Return the number of parameters in OpenAI's checkpoint of a configuration: biases everywhere, tied output.

    Example:
        >>> from gptclf.gpt2.config import PRESETS
        >>> parameter_count(PRESETS["gpt2-xl"])
        1557611200
    """
    return sum(math.prod(parameter.shape) for parameter in _parameters(config).values())


def _variable(place: _Place) -> str:
    if place[0] == "blocks":
        return f"model/h{_joined(place[1:])}"
    return f"model/ln_f/{place[0]}" if place[0] in ("g", "b") else f"model/{place[0]}"


def _joined(place: _Place) -> str:
    return "/".join(map(str, place))


def _leaves(value: Any, place: _Place = ()) -> Iterator[tuple[_Place, Any]]:
    if isinstance(value, Mapping | list):
        for key, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _leaves(inner, (*place, key))
    else:
        yield place, value


def _matching(
    names: Collection[str], get: Callable[[str], Any], config: GPT2Config, name_of: Callable[[_Place], str], source: str
) -> dict[_Place, NDArray[np.float32]]:
    """Return every parameter of a configuration: float32, in OpenAI's layout, without leading axes of length 1."""
    present = set(names)
    # Checked first: damaged settings could name more blocks than fit into memory.
    if config.n_layers > len(present):
        raise ValueError(f"{source} holds {len(present)} arrays, too few for the {config.n_layers} blocks in settings")
    wanted = {name_of(parameter.place): parameter for parameter in _parameters(config).values()}
    misshapen, arrays = [], {}
    for name, parameter in wanted.items():
        if name not in present:
            continue
        array = get(name)
        if not isinstance(array, np.ndarray):
            misshapen.append(f"{name} is a {type(array).__name__}, not a numpy array")
        elif array.dtype.kind != "f" or _squeezed(array.shape) != _squeezed(parameter.shape):
            misshapen.append(f"{name} is {array.dtype} {array.shape}, the settings need floats {parameter.shape}")
        else:
            arrays[parameter.place] = array.reshape(parameter.shape).astype(np.float32, copy=False)
    missing = [name for name in wanted if name not in present]
    unexpected = [name for name in names if name not in wanted]
    check_tensors(source, present, missing=missing, unexpected=unexpected, misshapen=misshapen)
    return arrays


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(n for n in shape if n != 1)
