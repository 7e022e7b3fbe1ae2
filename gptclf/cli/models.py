"""Loading whatever a name stands for: a classifier, a language model or an adapter."""

from pathlib import Path
from typing import Any

from gptclf.files.access import is_there
from gptclf.gpt2.model import GPT2
from gptclf.saving.adapter_files import is_adapter
from gptclf.saving.fetch_model import fetch_model
from gptclf.saving.load_model import load_model
from gptclf.weights.book import read_book
from gptclf.weights.folders import CONFIG, OURS, read_files, read_weights
from gptclf.weights.load_gpt2 import load_gpt2
from gptclf.weights.locate import locate


def load_any(name: str, *, base: str | None = None, **file: Any) -> GPT2:
    """Load a model of any kind, from any place that `load_gpt2` or `load_model` takes.

    Args:
        name: A name, a folder, a file or a hub repository.
        base: The base of an adapter, instead of the one that it names.
        **file: What a file does not store: `settings`, and of a classifier `classes` and `pad_to`.

    Example:
        >>> load_any("nano").config.n_layers
        4
    """
    found = Path(name).expanduser() if is_there(Path(name).expanduser()) else locate(name)
    place = fetch_model(found, None, None) if isinstance(found, str) else found
    if place.is_file():
        _, _, classes = read_book(read_files(place), file.get("settings"), source=name)
        if classes is None:
            return load_gpt2(name, settings=file.get("settings"))
        return load_model(name, **file)
    theirs = (place / CONFIG).is_file() and "score.weight" in read_weights(place)
    if is_adapter(place) or (place / OURS).is_file() or theirs:
        return load_model(place, base=base)
    return load_gpt2(name)
