"""`load_gpt2`: a language model from a name, files or a configuration."""

import functools
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gptclf import checks
from gptclf.gpt2.config import PRESETS, GPT2Config
from gptclf.gpt2.initialise import initialise
from gptclf.gpt2.model import GPT2
from gptclf.tokenizer.find import find_tokenizer
from gptclf.weights.book import is_book, read_book
from gptclf.weights.folders import CONFIG, read_file
from gptclf.weights.hugging_face import from_hugging_face
from gptclf.weights.locate import NANO, REPOSITORIES, fetch, locate
from gptclf.weights.openai import load_gpt2_params_from_tf_ckpt, tensors_from_params
from gptclf.weights.openai_folder import HPARAMS, config_from_settings, find_checkpoint, read_settings
from gptclf.weights.opened import (
    Opened,
    Settings,
    book_settings,
    build,
    config_from,
    open_hugging_face,
    read_hugging_face_config,
    shapes_of,
)
from gptclf.weights.record import OURS

if TYPE_CHECKING:
    import tiktoken

logger = logging.getLogger(__name__)


def load_gpt2(
    name: str | Path | GPT2Config = "gpt2",
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
        name: "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl" (or "124M", "355M", "774M", "1558M"), "nano" (ships
            with the package), a hub repository "owner/name", a local folder (a folder wins over a name and says so):
            Hugging Face's layout or OpenAI's TensorFlow checkpoint; a file of the book's `GPTModel` (.pth), or a
            `GPT2Config`.
        weights: "pretrained", or "random" for GPT-2's initialisation from `seed` (then a name or folder only gives
            the shape).
        seed: Seed of random weights; None draws one from torch's global generator.
        dropout: Dropout probability everywhere GPT-2 has it, in training mode. None is 0, or what a `GPT2Config` or
            `settings` say.
        device: Where the model goes; None is the CPU.
        revision: Branch, tag or commit of a hub repository; None is "main".
        cache_dir: The hub cache to use instead of Hugging Face's own.
        tokenizer: Used instead of the one that belongs to the weights, which is otherwise found on first use.
        params: OpenAI's parameters as `load_gpt2_params_from_tf_ckpt` or the book's reader returns them, in place of
            `name`.
        settings: What `params` come with, or what a file's tensors do not say (the number of heads): OpenAI's
            hparams, the book's configuration dictionary, or a `GPT2Config`.
        verify: Whether every tensor of a TensorFlow checkpoint is compared with its checksum.

    Returns:
        The model, all of it frozen. Weights are memory-mapped where they can be, so loading reads little.

    Raises:
        FileNotFoundError: No such folder, repository or file.
        ValueError: The weights are not this GPT-2; the message lists the differences.
        ConnectionError: The hub cannot be reached and the files are not cached; the message says what to put where.

    Example:
        >>> load_gpt2("nano").config.n_layers
        4
    """
    checks.choice("weights", weights, ("pretrained", "random"))
    pretrained = weights == "pretrained"
    if seed is not None and pretrained:
        raise ValueError(f"seed={seed!r} draws random weights; give weights='random' with it")
    target = checks.device(device)
    place: Path | None = None
    repo: str | None = None
    if params is not None:
        if settings is None or name != "gpt2" or not pretrained:
            raise ValueError("params= goes with settings=, and with neither a name nor weights='random'")
        opened = Opened(*tensors_from_params(params, config_from(settings)))
    elif isinstance(name, GPT2Config):
        _check_shape_alone(settings, pretrained)
        opened = Opened(name, {})
    else:
        place, repo = _place_of(name, revision, settings)
        if repo in REPOSITORIES.values() and not pretrained:
            opened = Opened(PRESETS[next(key for key, known in REPOSITORIES.items() if known == repo)], {})
        else:
            place = place or fetch(str(repo), revision, cache_dir, with_weights=pretrained)
            opened = _open(place, settings, verify, with_weights=pretrained)
    config = opened.config if dropout is None else opened.config.replace(drop_rate=dropout)
    model = build(Opened(config, opened.tensors)) if pretrained else _random(config, name, seed)
    model.to(target)
    if pretrained:
        model.base = "nano" if place == NANO else repo
    folder = _tokenizer_folder(place)
    model.tokenizer_source = functools.partial(find_tokenizer, folder, repo, revision, cache_dir, config.vocab_size)
    if tokenizer is not None:
        model.tokenizer = tokenizer
    return model


def _check_shape_alone(settings: Settings | None, pretrained: bool) -> None:
    if settings is not None:
        raise ValueError("settings= goes with params= or a file; a GPT2Config says everything itself")
    if pretrained:
        raise ValueError("a GPT2Config has no pretrained weights; give weights='random', or a name or a folder")


def _place_of(name: str | Path, revision: str | None, settings: Settings | None) -> tuple[Path | None, str | None]:
    """Return the local folder or file that a name means, or its hub repository."""
    found = locate(name)
    place, repo = (found, None) if isinstance(found, Path) else (None, found)
    if revision is not None and repo is None:
        raise ValueError(f"revision={revision!r} belongs to a hub repository; {str(name)!r} is {place}")
    if settings is not None and (place is None or not place.is_file()):
        raise ValueError(f"settings= gives what a file of tensors lacks; {str(name)!r} brings its own configuration")
    return place, repo


def _random(config: GPT2Config, name: object, seed: int | None) -> GPT2:
    model = GPT2(config, device="meta").to_empty(device="cpu")
    # The seed is drawn here, not in GPT2(), so that it can be logged.
    logger.info("random weights for %s from seed %d", name, initialise(model, config, seed))
    return model.requires_grad_(False)


def _tokenizer_folder(place: Path | None) -> Path | None:
    """Return the folder in which the tokenizer's files are if they are beside the weights."""
    if place is None or (place.is_dir() and (place / CONFIG).is_file()):
        return place
    if place.is_file():
        return place.parent
    prefix = find_checkpoint(place)
    return place if prefix is None else prefix.parent


def _open(place: Path, settings: Settings | None, verify: bool, *, with_weights: bool) -> Opened:
    """Open a folder or a file; without weights only its configuration is read."""
    if place.is_file():
        return _open_file(place, settings)
    prefix = None if (place / CONFIG).is_file() else find_checkpoint(place)
    if prefix is not None:
        if not with_weights:
            return Opened(config_from_settings(read_settings(prefix), source=str(prefix.parent)), {})
        hparams, params = load_gpt2_params_from_tf_ckpt(prefix.parent, verify=verify)
        return Opened(*tensors_from_params(params, hparams))
    if (place / HPARAMS).is_file() and not (place / CONFIG).is_file():
        raise FileNotFoundError(
            f"{place} holds {HPARAMS} but no model.ckpt.index: OpenAI's TensorFlow checkpoint is not whole. "
            "download_openai_checkpoint fetches what is missing"
        )
    if (place / OURS).is_file() and not (place / CONFIG).is_file():
        raise ValueError(f"{place} holds a model in gptclf's own layout alone; load it with load_model")
    config, _ = read_hugging_face_config(place)
    return open_hugging_face(place, shapes_of(config), config) if with_weights else Opened(config, {})


def _open_file(path: Path, settings: Settings | None) -> Opened:
    tensors = read_file(path)
    if is_book(tensors):
        config, ours, classes = read_book(tensors, book_settings(settings), source=str(path))
        if classes is not None:
            raise ValueError(f"{path} holds a classifier of {classes} classes; load it with load_model")
        return Opened(config, ours)
    return Opened(config := _config_of(path, settings), _theirs(tensors, config, path))


def _config_of(path: Path, settings: Settings | None) -> GPT2Config:
    """Return the configuration of a file of tensors under Hugging Face's names."""
    beside = path.with_name(CONFIG)
    if settings is not None and not beside.is_file():
        return config_from(settings)
    # Only the file was named, but it is in a folder of Hugging Face's.
    config, _ = read_hugging_face_config(path.parent)
    if settings is not None and config_from(settings).replace(drop_rate=config.drop_rate) != config:
        raise ValueError(f"settings= and {beside} say different things; leave settings out, or move the file")
    return config


def _theirs(tensors: Mapping[str, Tensor], config: GPT2Config, path: Path) -> dict[str, Tensor]:
    return from_hugging_face(tensors, shapes_of(config), config.n_layers, source=str(path))
