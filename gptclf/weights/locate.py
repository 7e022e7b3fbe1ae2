"""Finding the weights that a name stands for: a local folder or file, the bundled model, or a hub repository."""

import errno
import logging
import re
from pathlib import Path

from gptclf import checks
from gptclf.files.access import is_there
from gptclf.files.json_file import read_json
from gptclf.gpt2.config import ALIASES, PRESETS, published_name
from gptclf.hub.download import EntryNotFoundError, cached_file, hub_file
from gptclf.weights.folders import CONFIG, INDEX, OURS, TORCH_INDEX, TORCH_WEIGHTS, WEIGHTS, shard_names
from gptclf.weights.guess import guess_from_files
from gptclf.weights.hugging_face import config_from_hugging_face

logger = logging.getLogger(__name__)

REPOSITORIES = {name: f"openai-community/{name}" for name in PRESETS if name != "nano"}

# The bundled model, in Hugging Face's layout; its README.md is the model card.
NANO = Path(__file__).parents[1] / "nano"
# The file with all weights and the index of a sharded model: as safetensors, then in PyTorch's format.
_WEIGHTS = ((WEIGHTS, INDEX), (TORCH_WEIGHTS, TORCH_INDEX))

# Files that tell what a repository without a config.json holds.
_TELLING_FILES = ("adapter_config.json", "modules.json")
# File name suffixes; a name that ends in one of them is not a repository.
_FILES = (".pth", ".pt", ".bin", ".safetensors", ".ckpt", ".index")
# Names that training scripts give to folders.
_OWN_NAMES = re.compile(r"(checkpoint|step|epoch)-\d+")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def locate(name: str | Path) -> Path | str:
    """Return an existing folder or file, or the name of a hub repository.

    Raises:
        FileNotFoundError: The name is none of these; the message lists the alternatives.
        TypeError: The name is not a str or a path.
        ValueError: The name is empty.
    """
    place = checks.path("name", name)
    preset = published_name(str(name))
    if preset not in PRESETS and is_there(place):
        return place
    if place.is_dir():
        size = next((alias for alias, known in ALIASES.items() if known == preset), preset)
        # The book's folder `gpt2` holds one subfolder per size; only the requested size counts.
        for folder in (place, place / size, place / size / size):
            if any((folder / name).is_file() for name in (CONFIG, OURS, "model.ckpt.index")):
                logger.warning("%r is a local folder; loading it instead of the published model", str(folder))
                return folder
        logger.warning("ignoring %r, which holds no weights of %s; loading the published model", str(name), preset)
    found = NANO if preset == "nano" else REPOSITORIES.get(preset) or hub_name(name)
    if found is not None:
        return found
    known = ", ".join([*PRESETS, *ALIASES])
    raise missing(name, f"a folder, a .pth file, one of {known}, a hub repository 'owner/name', or a GPT2Config")


def missing(name: str | Path, wanted: str) -> FileNotFoundError:
    """Return the error for a name that stands for nothing; `wanted` says what to give."""
    place = checks.path("name", name)
    kinds = "a folder, a file or a known model"
    local = str(name) != place.name
    why = ", and it was not looked for on the hub, because it looks like a local path" if local else ""
    problem = f"{str(name)!r} is not {kinds}: {place.absolute()} does not exist{why}"
    if published_name(str(name)) in PRESETS:
        problem = f"{str(name)!r} is a GPT-2 without a classifier, and {place.absolute()} does not exist"
    return FileNotFoundError(errno.ENOENT, f"{problem}. Give {wanted}")


def hub_name(name: str | Path) -> str | None:
    """Return the name if it can be that of a hub repository and does not look like a local path, else None."""
    if not isinstance(name, str) or not _HUB_NAME.fullmatch(name) or name.startswith(".") or name.endswith(_FILES):
        return None
    owner, _, own = name.partition("/")
    local = Path(owner).is_dir() or _OWN_NAMES.fullmatch(own)
    return None if local and name not in REPOSITORIES.values() else name


def fetch(repo: str, revision: str | None, cache_dir: str | Path | None, *, with_weights: bool = True) -> Path:
    """Return the cache folder of a repository, after downloading its configuration and weights if they are missing."""
    try:
        config = hub_file(repo, CONFIG, revision=revision, cache_dir=cache_dir)
    except EntryNotFoundError as error:
        telling = [name for name in _TELLING_FILES if fetch_optional(repo, name, revision, cache_dir) is not None]
        guess = guess_from_files(telling)
        raise EntryNotFoundError(f"{error}{' ' + guess if guess else ''}") from None
    # Checked before half a gigabyte is downloaded.
    config_from_hugging_face(read_json(config), source=f"{repo}/{CONFIG}")
    if with_weights:
        # The same commit as the first file, so that a push between two downloads cannot mix versions.
        _fetch_weights(repo, config.parent.name, cache_dir)
    return config.parent


def fetch_optional(repo: str, filename: str, revision: str | None, cache_dir: str | Path | None) -> Path | None:
    """Return the path of a file of a repository, or None if it does not exist (offline: if it is not cached)."""
    try:
        return hub_file(repo, filename, revision=revision, cache_dir=cache_dir)
    except FileNotFoundError:
        return None


def is_cached(repo: str, revision: str | None, cache_dir: str | Path | None) -> bool:
    """Return True if the configuration and weights of a repository are cached, so that no request is needed."""
    names = [name for pair in _WEIGHTS for name in pair]
    found = [name for name in (CONFIG, *names) if cached_file(repo, name, revision=revision, cache_dir=cache_dir)]
    return CONFIG in found and len(found) > 1


def _fetch_weights(repo: str, commit: str, cache_dir: str | Path | None) -> None:
    """Download one file or shards, preferring cached files, then safetensors."""

    def is_here(names: tuple[str, str]) -> bool:
        return any(cached_file(repo, name, revision=commit, cache_dir=cache_dir) for name in names)

    for whole, index in sorted(_WEIGHTS, key=is_here, reverse=True):
        if fetch_optional(repo, whole, commit, cache_dir) is not None:
            return
        listed = fetch_optional(repo, index, commit, cache_dir)
        if listed is not None:
            for shard in shard_names(read_json(listed), listed):
                hub_file(repo, shard, revision=commit, cache_dir=cache_dir)
            return
    hub_file(repo, WEIGHTS, revision=commit, cache_dir=cache_dir)  # raises an error that names the file
