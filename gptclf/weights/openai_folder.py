"""Folders in OpenAI's layout: finding the checkpoint, and reading its settings.

A folder holds `hparams.json`, a TensorFlow checkpoint `model.ckpt.*`, and optionally `checkpoint`, which names it
(openai/gpt-2, download_model.py; book section 5.5).
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptclf.files.access import names_in, readable_size
from gptclf.files.json_file import read_json
from gptclf.files.tensorbundle import open_bundle
from gptclf.gpt2.config import ALIASES, PRESETS, GPT2Config

HPARAMS = "hparams.json"
PREFIX = "model.ckpt"

_FIELDS = {
    "n_vocab": "vocab_size",
    "n_ctx": "context_length",
    "n_embd": "emb_dim",
    "n_head": "n_heads",
    "n_layer": "n_layers",
}


def find_checkpoint(folder: Path) -> Path | None:
    """Return the prefix of OpenAI's checkpoint in a folder or in its subfolder `<size>/` or `<size>/<size>/`, or None.

    Args:
        folder: The folder to search. Sizes are 124M, 355M, 774M and 1558M. If several sizes are below the folder, the
            one with the folder's own name is taken.

    Raises:
        ValueError: There are several checkpoints; the message lists them.

    Example:
        >>> find_checkpoint(Path("models")) is None
        True
    """
    if (here := _prefix_in(folder)) is not None:
        return here
    places = [(size, place) for size in ALIASES for place in (folder / size / size, folder / size)]
    found = {size: prefix for size, place in places if (prefix := _prefix_in(place)) is not None}
    own = folder.resolve().name
    if len(found) > 1 and own not in found:
        raise ValueError(f"{folder} holds several checkpoints: {', '.join(found)}; name one: {folder / min(found)}")
    return found.get(own, next(iter(found.values()), None))


def read_settings(prefix: Path) -> dict[str, Any]:
    """Return the settings in the `hparams.json` next to a checkpoint, or infer them from the tensors' shapes.

    Raises:
        ValueError: The file is damaged; or it is missing and the shapes are not those of a published size, so the
            number of heads is unknown.
    """
    path = prefix.with_name(HPARAMS)
    if path.exists():
        return read_json(path)
    shapes = {name: entry.shape for name, entry in open_bundle(prefix, verify=False).entries.items()}
    blocks = {int(match[1]) for name in shapes if (match := re.match(r"model/h(\d{1,6})/", name))}
    wte, wpe = shapes.get("model/wte", ()), shapes.get("model/wpe", ())
    for preset in (PRESETS[name] for name in ALIASES.values()):
        if (wte[-1:], len(blocks)) == ((preset.emb_dim,), preset.n_layers) and len(wte) == len(wpe) == 2:
            values = (wte[0], wpe[0], preset.emb_dim, preset.n_heads, preset.n_layers)
            return dict(zip(_FIELDS, values, strict=True))
    raise ValueError(
        f"{path} does not exist, and the tensors of {prefix.name} (wte {wte}, {len(blocks)} blocks) do not have the "
        f"shapes of a published size, so the number of heads is unknown; write the file, with {', '.join(_FIELDS)}"
    )


def config_from_settings(settings: Mapping[str, Any], *, source: str = "settings") -> GPT2Config:
    """Return the configuration that OpenAI's settings describe; keys other than these five are ignored.

    Args:
        settings: `n_vocab`, `n_ctx`, `n_embd`, `n_head` and `n_layer`.
        source: The origin of the settings, for messages.

    Example:
        >>> settings = {"n_vocab": 50257, "n_ctx": 1024, "n_embd": 1024, "n_head": 16, "n_layer": 24}
        >>> config_from_settings(settings) == PRESETS["gpt2-medium"]
        True
    """
    if not isinstance(settings, Mapping):
        raise TypeError(f"settings is a {type(settings).__name__}; it must be a dictionary with {', '.join(_FIELDS)}")
    missing = [key for key in _FIELDS if key not in settings]
    if missing:
        raise ValueError(f"{source} lacks {', '.join(missing)}; OpenAI's settings have {', '.join(_FIELDS)}")
    try:
        return GPT2Config(**{ours: settings[theirs] for theirs, ours in _FIELDS.items()})
    except (TypeError, ValueError) as error:
        names = ", ".join(f"{theirs} {settings[theirs]!r}" for theirs in _FIELDS)
        raise ValueError(f"{source} does not describe a GPT-2 ({names}): {error}") from error


def _prefix_in(folder: Path) -> Path | None:
    files = names_in(folder)
    prefixes = sorted(name.removesuffix(".index") for name in files if name.endswith(".index") and name != ".index")
    for name in (_named_by(folder / "checkpoint"), PREFIX):
        if name in prefixes:
            return folder / name
    # Other tools also use the suffix .index.
    prefixes = [name for name in prefixes if any(file.startswith(f"{name}.data-") for file in files)]
    if len(prefixes) > 1:
        raise ValueError(
            f"{folder} holds several checkpoints: {', '.join(prefixes[:6])}; name one in its file `checkpoint`: "
            f'model_checkpoint_path: "{prefixes[-1]}"'
        )
    return folder / prefixes[0] if prefixes else None


def _named_by(path: Path) -> str:
    """Return the checkpoint named in a file `checkpoint`, without its folders, which may be another machine's."""
    if not path.is_file():
        return ""
    readable_size(path)
    with path.open("rb") as file:
        text = file.read(1 << 16).decode("utf-8", "replace")
    match = re.search(r'^\s*model_checkpoint_path:\s*"([^"]*)"', text, re.MULTILINE)
    return re.split(r"[/\\]", match[1])[-1] if match else ""
