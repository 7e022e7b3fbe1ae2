"""Where the weights of a name lie: a local folder or file, the package's own, or a hub repository's cached files."""

import logging
import re
from pathlib import Path

from gptclf.gpt2.config import ALIASES, PRESETS
from gptclf.weights.download import EntryNotFoundError, hub_file
from gptclf.weights.folders import CONFIG, INDEX, TORCH_INDEX, TORCH_WEIGHTS, WEIGHTS, read_json, shard_names
from gptclf.weights.formats import config_from_hugging_face
from gptclf.weights.guess import guess_from_files
from gptclf.weights.openai import find_checkpoint

logger = logging.getLogger(__name__)

REPOSITORIES = {name: f"openai-community/{name}" for name in PRESETS if name != "nano"}

# Ships with the package, in Hugging Face's layout; its README.md is its model card.
NANO = Path(__file__).parents[1] / "nano"
# What a repository without a config.json may hold that says what it is.
_TELLING_FILES = ("adapter_config.json", "modules.json")
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
        if (place / CONFIG).is_file() or find_checkpoint(place) is not None:
            logger.warning("%r is a local folder here; it is loaded, not the published model of that name", str(name))
            return place
        logger.warning("the local folder %r holds no weights; the published model is meant", str(name))
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
    is_one = isinstance(name, str) and _HUB_NAME.fullmatch(name) and not name.startswith(".")
    return str(name) if is_one else None


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
    """A file of a repository, or None where the repository has none of that name."""
    try:
        return hub_file(repo, filename, revision=revision, cache_dir=cache_dir)
    except EntryNotFoundError:
        return None


def _fetch_weights(repo: str, commit: str, cache_dir: str | Path | None) -> None:
    """One file or shards, safetensors before PyTorch's."""
    missing: FileNotFoundError | None = None
    for whole, index in ((WEIGHTS, INDEX), (TORCH_WEIGHTS, TORCH_INDEX)):
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
