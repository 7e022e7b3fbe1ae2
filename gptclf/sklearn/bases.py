"""The models that estimators start from: loaded once per process, and shared by folds, candidates and copies."""

import functools
from pathlib import Path

from gptclf.checks import path
from gptclf.gpt2.config import GPT2Config
from gptclf.gpt2.model import GPT2
from gptclf.weights.load_gpt2 import load_gpt2

Base = str | Path | GPT2 | GPT2Config


def base_of(model: Base, seed: int) -> GPT2:
    """Return the model that a parameter `model` stands for; a configuration gets random weights from `seed`.

    A name or a folder is loaded once. A folder whose files have changed since is loaded again.
    """
    if isinstance(model, GPT2):
        return model
    if isinstance(model, GPT2Config):
        return load_gpt2(model, weights="random", seed=seed)
    place = path("model", model)
    files = sorted(place.iterdir()) if place.is_dir() else [place] if place.is_file() else []
    states = [(file.name, file.stat()) for file in files]
    return _load(str(model), tuple((name, state.st_size, state.st_mtime_ns) for name, state in states))


@functools.lru_cache(maxsize=2)
def _load(name: str, stamp: tuple[tuple[str, int, int], ...]) -> GPT2:
    return load_gpt2(name)
