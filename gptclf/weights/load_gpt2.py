"""`load_gpt2` and `add_classifier_head`: a model from a name, files or a configuration, and a classifier from it."""

import functools
import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gptclf.checks import python_value
from gptclf.gpt2.config import PRESETS, GPT2Config
from gptclf.gpt2.model import GPT2, initialise
from gptclf.gpt2.stages import freeze, share
from gptclf.tasks import check_classes
from gptclf.tokenizer.find import find_tokenizer
from gptclf.weights.book import is_book, read_book
from gptclf.weights.folders import CONFIG, check_device, fill, fill_from_hugging_face, read_config, read_file
from gptclf.weights.hugging_face import config_from_hugging_face, from_hugging_face
from gptclf.weights.locate import NANO, REPOSITORIES, fetch, locate
from gptclf.weights.openai import load_gpt2_params_from_tf_ckpt, tensors_from_params
from gptclf.weights.openai_folder import HPARAMS, config_from_settings, find_checkpoint, read_settings
from gptclf.weights.record import OURS

if TYPE_CHECKING:
    import tiktoken

logger = logging.getLogger(__name__)

Settings = GPT2Config | Mapping[str, Any]

# Puts weights into a model built on the meta device.
Fill = Callable[[GPT2], None]


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
    if weights not in ("pretrained", "random"):
        raise ValueError(f"weights is {weights!r}; choose 'pretrained' or 'random'")
    if seed is not None and weights == "pretrained":
        raise ValueError(f"seed={seed!r} draws random weights; give weights='random' with it")
    target = check_device(device)
    place, repo, filling = None, None, None
    if params is not None:
        if settings is None or name != "gpt2" or weights == "random":
            raise ValueError("params= goes with settings=, and with neither a name nor weights='random'")
        config, filling = _from_tensors(*tensors_from_params(params, _config(settings)))
    elif isinstance(name, GPT2Config):
        if settings is not None:
            raise ValueError("settings= goes with params= or a file; a GPT2Config says everything itself")
        config = name
        if weights == "pretrained":
            raise ValueError("a GPT2Config has no pretrained weights; give weights='random', or a name or a folder")
    else:
        found = locate(name)
        place, repo = (found, None) if isinstance(found, Path) else (None, found)
        if revision is not None and repo is None:
            raise ValueError(f"revision={revision!r} is of a hub repository; {str(name)!r} is {place}")
        if settings is not None and (place is None or not place.is_file()):
            raise ValueError(f"settings= says what a file's tensors do not; {str(name)!r} brings its own configuration")
        if repo in REPOSITORIES.values() and weights == "random":
            config = next(PRESETS[preset] for preset, known in REPOSITORIES.items() if known == repo)
        else:
            if repo is not None:
                place = fetch(repo, revision, cache_dir, with_weights=weights == "pretrained")
            assert place is not None
            config, filling = _open(place, settings, verify, with_weights=weights == "pretrained")
    if dropout is not None:
        config = config.replace(drop_rate=dropout)
    model = GPT2(config, device="meta")
    if weights == "random" or filling is None:
        model.to_empty(device="cpu")
        # The seed is drawn here, not in GPT2(), so that it can be said.
        logger.info("random weights for %s from seed %d", name, initialise(model, config, seed))
    else:
        filling(model)
    # Nothing trains before freeze says what shall: so nothing can change under the models that share these tensors.
    model.requires_grad_(False)
    model.to(target)
    if weights == "pretrained":
        model.base = "nano" if place == NANO else repo
    folder = _tokenizer_folder(place)
    model.tokenizer_source = functools.partial(find_tokenizer, folder, repo, revision, cache_dir, config.vocab_size)
    if tokenizer is not None:
        model.tokenizer = tokenizer
    return model


def _tokenizer_folder(place: Path | None) -> Path | None:
    """Where the tokenizer's files lie if they are beside the weights."""
    if place is None or (place.is_dir() and (place / CONFIG).is_file()):
        return place
    if place.is_file():
        return place.parent
    prefix = find_checkpoint(place)
    return place if prefix is None else prefix.parent


def _open(place: Path, settings: Settings | None, verify: bool, *, with_weights: bool) -> tuple[GPT2Config, Fill]:
    """The configuration of a folder's or file's model, and what fills it."""
    if place.is_file():
        return _open_file(place, settings)
    prefix = None if (place / CONFIG).is_file() else find_checkpoint(place)
    if prefix is not None:
        if not with_weights:
            return _from_tensors(config_from_settings(read_settings(prefix), source=str(prefix.parent)), {})
        hparams, params = load_gpt2_params_from_tf_ckpt(prefix.parent, verify=verify)
        return _from_tensors(*tensors_from_params(params, hparams))
    if (place / HPARAMS).is_file() and not (place / CONFIG).is_file():
        raise FileNotFoundError(
            f"{place} holds {HPARAMS} but no model.ckpt.index: OpenAI's TensorFlow checkpoint is not whole. "
            "download_openai_checkpoint fetches what is missing"
        )
    if (place / OURS).is_file() and not (place / CONFIG).is_file():
        raise ValueError(f"{place} holds a model in gptclf's own layout alone; load it with load_model")
    config = config_from_hugging_face(read_config(place / CONFIG), source=str(place / CONFIG))
    return config, lambda model: fill_from_hugging_face(model, place)


def _open_file(path: Path, settings: Settings | None) -> tuple[GPT2Config, Fill]:
    tensors = read_file(path)
    if is_book(tensors):
        config, ours, classes = read_book(tensors, book_settings(settings), source=str(path))
        if classes is not None:
            raise ValueError(f"{path} holds a classifier of {classes} classes; load it with load_model")
        return _from_tensors(config, ours)
    beside = path.with_name(CONFIG)
    if settings is None or beside.is_file():  # only the file was named, but it lies in a folder of Hugging Face's
        config = config_from_hugging_face(read_config(beside), source=str(beside))
        if settings is not None and _config(settings).replace(drop_rate=config.drop_rate) != config:
            raise ValueError(f"settings= and {beside} say different things; leave settings out, or move the file")
    else:
        config = _config(settings)

    def filling(model: GPT2) -> None:
        shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
        fill(model, from_hugging_face(tensors, shapes, model.config.n_layers, source=str(path)))

    return config, filling


def _from_tensors(config: GPT2Config, tensors: dict[str, Tensor]) -> tuple[GPT2Config, Fill]:
    return config, lambda model: fill(model, tensors)


def book_settings(settings: Settings | None) -> Settings | None:
    """Settings under the book's keys, of which some may be missing."""
    return _config(settings) if isinstance(settings, Mapping) and "n_embd" in settings else settings


def _config(settings: Settings) -> GPT2Config:
    """The configuration of OpenAI's settings or the book's, by the keys that they have."""
    if isinstance(settings, GPT2Config):
        return settings
    if not isinstance(settings, Mapping):
        raise TypeError(f"settings is a {type(settings).__name__}; give a dictionary or a GPT2Config")
    return config_from_settings(settings) if "n_embd" in settings else GPT2Config.from_dict(settings)


def add_classifier_head(
    model: GPT2,
    num_classes: int | None = None,
    *,
    classes: Iterable[Any] | None = None,
    pooling: str = "last",
    bias: bool = True,
    seed: int | None = None,
) -> GPT2:
    """A new classifier on the trunk of `model`: a fresh head, the last block, final norm and head trainable.

    The new model shares the tensors that stay frozen and owns copies of those that may train, so `model` and other
    classifiers made from it never change. A classifier given gets a new head. (Book section 6.5.)

    Args:
        model: A language model, or a classifier whose trunk is to be used.
        num_classes: C, for classes 0 to C-1. Give this or `classes`.
        classes: The labels, hashable and distinct; their order is the order of columns everywhere.
        pooling: Where the head looks: "last" (the last real token), "first", "mean" or "max".
        bias: Whether the head has a bias (Hugging Face's classifier has none).
        seed: Seed of the head's weights; None draws one from torch's global generator. It is logged.

    Example:
        >>> clf = add_classifier_head(load_gpt2("nano"), classes=["ham", "spam"], seed=123)
        >>> clf.classes, clf.head.output.weight.shape
        (['ham', 'spam'], torch.Size([2, 192]))
    """
    if not isinstance(model, GPT2):
        raise TypeError(f"model is a {type(model).__name__}; it must be a gptclf GPT2, as load_gpt2 returns")
    if (num_classes is None) == (classes is None):
        raise ValueError("give either num_classes or classes: the number of classes, or their labels")
    if classes is None:
        num_classes = python_value(num_classes)
        if not isinstance(num_classes, int) or isinstance(num_classes, bool):
            raise TypeError(f"num_classes is {num_classes!r}; it must be an integer. For labels give classes=")
        if num_classes < 2:
            raise ValueError(f"num_classes is {num_classes}; a classifier needs at least 2 classes")
        classes = range(num_classes)
    labels = check_classes(classes)
    other = {parameter.dtype for parameter in model.parameters()} - {torch.float32}
    if other:
        raise ValueError(f"the model's weights are {other.pop()}; a new head goes on float32 weights: model.float()")
    clf = GPT2(model.config, classes=labels, pooling=pooling, head_bias=bias, device="meta")
    share(model, clf)
    clf.head.to_empty(device="cpu")
    seed = initialise(clf.head, model.config, seed, stream=1)
    clf.head.to(model.device)
    clf.remember_fresh_head()
    clf.share_tokenizer(model)
    clf.base = model.base
    freeze(clf, trainable="last_block")
    fresh = ", ".join(f"{name} {tuple(p.shape)}" for name, p in clf.head.named_parameters(prefix="head"))
    logger.warning("new classifier head, drawn from seed %d: %s. Train it before use.", seed, fresh)
    return clf
