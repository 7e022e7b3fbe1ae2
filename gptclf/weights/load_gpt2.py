"""`load_gpt2`: loads a language model by name, from files or from a configuration."""

import functools
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gptclf import checks
from gptclf.files.atomic import read_of_one_save
from gptclf.files.digest import check_digests
from gptclf.files.json_file import read_json
from gptclf.gpt2.config import PRESETS, GPT2Config
from gptclf.gpt2.initialise import initialise
from gptclf.gpt2.model import GPT2
from gptclf.tokenizer.find import pin_tokenizer
from gptclf.weights import opened
from gptclf.weights.book import is_book, read_book
from gptclf.weights.folders import CONFIG, OURS, read_files
from gptclf.weights.hugging_face import from_hugging_face
from gptclf.weights.locate import NANO, REPOSITORIES, fetch, locate
from gptclf.weights.openai import load_gpt2_params_from_tf_ckpt, tensors_from_params
from gptclf.weights.openai_folder import HPARAMS, config_from_settings, find_checkpoint, read_settings
from gptclf.weights.opened import Opened, Settings

if TYPE_CHECKING:
    import tiktoken

logger = logging.getLogger(__name__)


def load_gpt2(
    name: str | Path | GPT2Config | Mapping[str, Any] = "gpt2",
    *,
    weights: str = "pretrained",
    seed: int | None = None,
    dropout: float | None = None,
    device: "str | torch.device | None" = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    tokenizer: "tiktoken.Encoding | None" = None,
    params: Mapping[str, Any] | None = None,
    settings: Settings | None = None,
    verify: bool = True,
) -> GPT2:
    """Load GPT-2 with its language-model head, in eval mode, float32.

    Args:
        name: "gpt2", "gpt2-medium", "gpt2-large" or "gpt2-xl" (or "124M", "355M", "774M" or "1558M", or the book's
            "gpt2-small (124M)" and so on); "nano", which ships with the package; a hub repository "owner/name"; a local
            folder in Hugging Face's layout or with OpenAI's TensorFlow checkpoint; a file of the book's `GPTModel`
            (.pth); or, for random weights, a `GPT2Config` or the book's configuration dictionary. A folder takes
            precedence over a published name, with a warning.
        weights: "pretrained", or "random" for GPT-2's initialisation from `seed`. With "random", a name or folder
            gives only the shape.
        seed: Seed of random weights; None draws one from torch's global generator.
        dropout: Dropout probability in training mode, everywhere GPT-2 has dropout. None is 0, or the value in a
            `GPT2Config` or in `settings`.
        device: The model's device; None is the CPU.
        revision: Branch, tag or commit of a hub repository; None is "main".
        cache_dir: The hub cache to use instead of Hugging Face's own.
        tokenizer: Replaces the tokenizer that belongs to the weights. Files beside the weights are read by this call;
            those of a hub repository, and GPT-2's, on first use.
        params: OpenAI's parameters as `load_gpt2_params_from_tf_ckpt` or the book's reader returns them, instead of
            `name`.
        settings: The settings that belong to `params`, or that a file does not store (the number of heads): OpenAI's
            hparams, the book's configuration dictionary, or a `GPT2Config`.
        verify: Whether to compare every tensor of a TensorFlow checkpoint with its checksum, and every file of a folder
            that `save_model` wrote with its digest.

    Returns:
        The model, with all parameters frozen. Weights are memory-mapped if possible, so loading reads little.

    Raises:
        FileNotFoundError: The folder, repository or file does not exist.
        ValueError: The weights do not fit this GPT-2; the message lists the differences.
        ConnectionError: The hub cannot be reached and the files are not cached; the message says where to put them.

    Example:
        >>> load_gpt2("nano").config.n_layers
        4
    """
    checks.choice("weights", weights, ("pretrained", "random"))
    pretrained = weights == "pretrained"
    if seed is not None and pretrained:
        raise ValueError(f"seed={seed!r} draws random weights; give weights='random' with it")
    target = checks.device(device)
    if isinstance(name, Mapping):
        name = GPT2Config.from_book(name)
    place: Path | None = None
    repo: str | None = None
    if params is not None:
        if settings is None or name != "gpt2" or not pretrained:
            raise ValueError("params= goes with settings=, and with neither a name nor weights='random'")
        found = Opened(*tensors_from_params(params, opened.config_from(settings)))
    elif isinstance(name, GPT2Config):
        if settings is not None:
            raise ValueError("settings= goes with params= or a file; a configuration is complete without it")
        if pretrained:
            remedy = "give weights='random', or a name such as 'gpt2' or 'gpt2-medium (355M)', or a folder"
            raise ValueError(f"a configuration has no pretrained weights; {remedy}")
        found = Opened(name, {})
    else:
        place, repo = _place_of(name, revision, settings)
        preset = next((key for key, known in REPOSITORIES.items() if known == repo), None)
        if preset is not None and not pretrained:
            found = Opened(PRESETS[preset], {})
        else:
            place = place or fetch(str(repo), revision, cache_dir, with_weights=pretrained)
            opening = functools.partial(_open, place, settings, verify, with_weights=pretrained)
            found = read_of_one_save(place, [OURS], opening)
    config = found.config if dropout is None else found.config.replace(drop_rate=dropout)
    if pretrained:
        model = opened.build(Opened(config, found.tensors))
        model.base = "nano" if place == NANO else repo
        model.source = repo or (None if place is None else str(place.resolve()))
    else:
        model = GPT2(config, device="meta").to_empty(device="cpu").requires_grad_(False)
        # Drawn here, not in GPT2(), so that the seed can be logged.
        logger.info("random weights for %s from seed %d", name, initialise(model, config, seed))
    model.to(target)
    if tokenizer is None:
        model.tokenizer_source = pin_tokenizer(_tokenizer_folder(place), repo, revision, cache_dir, config.vocab_size)
    else:
        model.tokenizer = tokenizer
    return model


def _place_of(name: str | Path, revision: str | None, settings: Settings | None) -> tuple[Path | None, str | None]:
    """Return the local folder or file that a name refers to, or its hub repository."""
    found = locate(name)
    place, repo = (found, None) if isinstance(found, Path) else (None, found)
    if revision is not None and repo is None:
        raise ValueError(f"revision={revision!r} belongs to a hub repository; {str(name)!r} is {place}")
    if settings is not None and (place is None or not place.is_file()):
        raise ValueError(f"settings= gives what a file of tensors lacks; {str(name)!r} brings its own configuration")
    return place, repo


def _tokenizer_folder(place: Path | None) -> Path | None:
    """Return the folder that holds the tokenizer's files if they are beside the weights."""
    if place is None or (place / CONFIG).is_file():
        return place
    prefix = place if place.is_file() else find_checkpoint(place)
    return place if prefix is None else prefix.parent


def _open(place: Path, settings: Settings | None, verify: bool, *, with_weights: bool) -> Opened:
    """Open a folder or a file. Unless `with_weights`, read only its configuration."""
    if place.is_file():
        return _open_file(place, settings)
    theirs = (place / CONFIG).is_file()
    prefix = None if theirs else find_checkpoint(place)
    if prefix is not None:
        if not with_weights:
            return Opened(config_from_settings(read_settings(prefix), source=str(prefix.parent)), {})
        hparams, params = load_gpt2_params_from_tf_ckpt(prefix.parent, verify=verify)
        return Opened(*tensors_from_params(params, hparams))
    if not theirs and (place / HPARAMS).is_file():
        problem = f"{place} holds {HPARAMS} but no model.ckpt.index: OpenAI's TensorFlow checkpoint is incomplete"
        raise FileNotFoundError(f"{problem}. download_openai_checkpoint fetches the missing files")
    if not theirs and (place / OURS).is_file():
        raise ValueError(f"{place} holds a model in gptclf's own layout only; load it with load_model")
    config, _ = opened.read_hugging_face_config(place)
    found = opened.open_hugging_face(place, config) if with_weights else Opened(config, {})
    if verify and (place / OURS).exists():
        digests = read_json(place / OURS).get("files")  # earlier versions wrote none
        check_digests(place, digests if isinstance(digests, dict) else {})
    return found


def _open_file(path: Path, settings: Settings | None) -> Opened:
    tensors, beside = read_files(path), path.with_name(CONFIG)
    if is_book(tensors):
        config, ours, classes = read_book(tensors, opened.book_settings(settings), source=str(path))
        if classes is not None:
            raise ValueError(f"{path} holds a classifier of {classes} classes; load it with load_model")
        return Opened(config, ours)
    # Tensors under Hugging Face's names. Only the file was named, but its folder may be in Hugging Face's layout.
    given = None if settings is None else opened.config_from(settings)
    if given is not None and not beside.is_file():
        config = given
    else:
        config, _ = opened.read_hugging_face_config(path.parent)
        if given is not None and given.replace(drop_rate=config.drop_rate) != config:
            raise ValueError(f"settings= and {beside} disagree; leave settings out, or move the file")
    shapes = opened.shapes_of(config, tensors, source=path)
    return Opened(config, from_hugging_face(tensors, shapes, config.n_layers, source=str(path)))
