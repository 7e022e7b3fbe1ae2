"""Where the weights of a name lie: a local folder or file, the package's own, or a hub repository's cached files."""

import logging
import re
from pathlib import Path

from gptclf.files.json_file import read_json
from gptclf.gpt2.config import ALIASES, PRESETS
from gptclf.hub.download import EntryNotFoundError, cached_file, hub_file
from gptclf.weights.folders import CONFIG, INDEX, TORCH_INDEX, TORCH_WEIGHTS, WEIGHTS, shard_names
from gptclf.weights.guess import guess_from_files
from gptclf.weights.hugging_face import config_from_hugging_face
from gptclf.weights.record import OURS

logger = logging.getLogger(__name__)

REPOSITORIES = {name: f"openai-community/{name}" for name in PRESETS if name != "nano"}

# Ships with the package, in Hugging Face's layout; its README.md is its model card.
NANO = Path(__file__).parents[1] / "nano"
# A file with all weights, and the index of several: safetensors, PyTorch's.
_WEIGHTS = ((WEIGHTS, INDEX), (TORCH_WEIGHTS, TORCH_INDEX))

# What a repository without a config.json may hold that says what it is.
_TELLING_FILES = ("adapter_config.json", "modules.json")
# Endings of files, which no repository has.
_FILES = (".pth", ".pt", ".bin", ".safetensors", ".ckpt", ".index")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def locate(name: str | Path) -> Path | str:
    """A folder or file that exists, or the hub repository that is meant.

    Raises:
        FileNotFoundError: It is neither; the message lists what there is.
    """
    if not str(name) or not isinstance(name, str | Path):
        raise TypeError(f"name is {name!r}; give a model's name, a folder, a file or a GPT2Config")
    preset = ALIASES.get(str(name), str(name))
    place = Path(name)
    if preset not in PRESETS and place.exists():
        return place
    if place.is_dir():
        size = next((alias for alias, known in ALIASES.items() if known == preset), preset)
        # The book's folder `gpt2` holds sizes, of which only the one asked for is meant.
        for folder in (place, place / size, place / size / size):
            if any((folder / name).is_file() for name in (CONFIG, OURS, "model.ckpt.index")):
                logger.warning(
                    "%r is a local folder here; it is loaded, not the published model of that name", str(folder)
                )
                return folder
        logger.warning("the local folder %r holds no weights of %s; the published model is meant", str(name), preset)
    if preset == "nano":
        return NANO
    if preset in REPOSITORIES:
        return REPOSITORIES[preset]
    repo = hub_name(name)
    if repo is not None:
        return repo
    raise FileNotFoundError(
        f"{str(name)!r} is no folder or file and no known model; give a folder, a .pth file, one of "
        f"{', '.join([*PRESETS, *ALIASES])}, a hub repository 'owner/name', or a GPT2Config"
    )


def hub_name(name: str | Path) -> str | None:
    """The hub repository that a name is, or None."""
    if not isinstance(name, str) or not _HUB_NAME.fullmatch(name) or name.startswith("."):
        return None
    if name.endswith(_FILES):
        return None
    if Path(name).parent.is_dir():  # perhaps a path that was mistyped
        logger.warning("there is no local folder %r; it is looked for on the hub", name)
    return name


def fetch(repo: str, revision: str | None, cache_dir: str | Path | None, *, with_weights: bool = True) -> Path:
    """The cache folder that holds a repository's configuration and weights, downloaded where they are not."""
    try:
        config = hub_file(repo, CONFIG, revision=revision, cache_dir=cache_dir)
    except EntryNotFoundError as error:
        telling = [name for name in _TELLING_FILES if fetch_optional(repo, name, revision, cache_dir) is not None]
        guess = guess_from_files(telling)
        raise EntryNotFoundError(f"{error}{' ' + guess if guess else ''}") from None
    # Looked at before half a gigabyte is fetched.
    config_from_hugging_face(read_json(config), source=f"{repo}/{CONFIG}")
    if with_weights:
        # The commit of the first file, so that a push between two downloads cannot mix versions.
        _fetch_weights(repo, config.parent.name, cache_dir)
    return config.parent


def fetch_optional(repo: str, filename: str, revision: str | None, cache_dir: str | Path | None) -> Path | None:
    """A file of a repository, or None where there is none: on the hub, or in the cache where no network is allowed."""
    try:
        return hub_file(repo, filename, revision=revision, cache_dir=cache_dir)
    except FileNotFoundError:
        return None


def is_cached(repo: str, revision: str | None, cache_dir: str | Path | None) -> bool:
    """Whether the cache has a repository's configuration and weights, so that nobody need be asked."""
    names = [name for pair in _WEIGHTS for name in pair]
    found = [name for name in (CONFIG, *names) if cached_file(repo, name, revision=revision, cache_dir=cache_dir)]
    return CONFIG in found and len(found) > 1


def _fetch_weights(repo: str, commit: str, cache_dir: str | Path | None) -> None:
    """One file or shards, safetensors before PyTorch's, and what is in the cache before what is not."""
    missing: FileNotFoundError | None = None

    def is_here(names: tuple[str, str]) -> bool:
        return any(cached_file(repo, name, revision=commit, cache_dir=cache_dir) for name in names)

    for whole, index in sorted(_WEIGHTS, key=is_here, reverse=True):
        try:
            hub_file(repo, whole, revision=commit, cache_dir=cache_dir)
            return
        except FileNotFoundError as error:
            missing = missing or error
        try:
            listed = hub_file(repo, index, revision=commit, cache_dir=cache_dir)
        except FileNotFoundError:
            continue
        for shard in shard_names(read_json(listed), listed):
            hub_file(repo, shard, revision=commit, cache_dir=cache_dir)
        return
    assert missing is not None
    raise missing
