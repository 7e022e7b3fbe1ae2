"""The models that estimators start from: loaded once per process, and shared by folds, candidates and copies."""

import functools
from pathlib import Path

from gptclf.gpt2.config import GPT2Config
from gptclf.gpt2.model import GPT2
from gptclf.weights.load_gpt2 import load_gpt2
from gptclf.weights.locate import locate

Base = str | Path | GPT2 | GPT2Config


def base_of(model: Base, seed: int) -> GPT2:
    """Return the model that a parameter `model` stands for; a configuration gets random weights from `seed`."""
    if isinstance(model, GPT2):
        return model
    return load_gpt2(model, weights="random", seed=seed) if isinstance(model, GPT2Config) else named(model)


def named(name: str | Path) -> GPT2:
    """Return the model of a name or a folder, loaded once, and again if the folder's files have changed since."""
    place = locate(name)
    files = [] if isinstance(place, str) else sorted(place.iterdir()) if place.is_dir() else [place]
    states = [(str(file), file.stat()) for file in files]
    return _load(str(name), tuple((path, state.st_size, state.st_mtime_ns) for path, state in states))


@functools.lru_cache(maxsize=2)
def _load(name: str, stamp: tuple[tuple[str, int, int], ...]) -> GPT2:
    return load_gpt2(name)
