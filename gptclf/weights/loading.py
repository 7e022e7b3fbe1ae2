"""`load_gpt2` and `add_classifier_head`: a model from a name, a folder or a configuration, and a classifier from it."""

import functools
import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gptclf.data.labels import check_classes, plain
from gptclf.gpt2.config import ALIASES, PRESETS, GPT2Config
from gptclf.gpt2.model import GPT2, initialise
from gptclf.gpt2.stages import freeze, share
from gptclf.weights.download import hub_file
from gptclf.weights.folders import (
    CONFIG,
    INDEX,
    WEIGHTS,
    check_device,
    fill_from_hugging_face,
    read_json,
    shard_names,
)
from gptclf.weights.formats import config_from_hugging_face
from gptclf.weights.vocabulary import find_tokenizer

if TYPE_CHECKING:
    import tiktoken

logger = logging.getLogger(__name__)

_REPOSITORIES = {name: f"openai-community/{name}" for name in PRESETS if name != "nano"}
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")

# Ships with the package, in Hugging Face's layout; its README.md is its model card.
_NANO = Path(__file__).parents[1] / "nano"


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
) -> GPT2:
    """Load GPT-2 with its language-model head, in eval mode, float32.

    Args:
        name: "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl" (or "124M", "355M", "774M", "1558M"), "nano" (ships
            with the package), a hub repository "owner/name", a local folder in Hugging Face's layout (a folder wins
            over a name and says so), or a `GPT2Config`.
        weights: "pretrained", or "random" for GPT-2's initialisation from `seed` (then a name or folder only gives
            the shape).
        seed: Seed of random weights; None draws one from torch's global generator.
        dropout: Dropout probability everywhere GPT-2 has it, in training mode. None is 0, or what a `GPT2Config` says.
        device: Where the model goes; None is the CPU.
        revision: Branch, tag or commit of a hub repository; None is "main".
        cache_dir: The hub cache to use instead of Hugging Face's own.
        tokenizer: Used instead of the one that belongs to the weights, which is otherwise found on first use.

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
    folder, repo = None, None
    if isinstance(name, GPT2Config):
        config = name
        if weights == "pretrained":
            raise ValueError("a GPT2Config has no pretrained weights; give weights='random', or a name or a folder")
    else:
        folder, repo = _locate(name)
        if repo in _REPOSITORIES.values() and weights == "random":
            config = next(PRESETS[preset] for preset, known in _REPOSITORIES.items() if known == repo)
        else:
            if folder is None and repo is not None:
                folder = _fetch(repo, revision, cache_dir, with_weights=weights == "pretrained")
            assert folder is not None
            _check_layout(folder)
            config = config_from_hugging_face(read_json(folder / CONFIG), source=str(folder / CONFIG))
    if dropout is not None:
        config = config.replace(drop_rate=dropout)
    if weights == "random":
        # The seed is drawn here, not in GPT2(), so that it can be said.
        model = GPT2(config, device="meta")
        model.to_empty(device="cpu")
        logger.info("random weights for %s from seed %d", name, initialise(model, config, seed))
    else:
        assert folder is not None
        model = GPT2(config, device="meta")
        fill_from_hugging_face(model, folder)
    # Nothing trains before freeze says what shall: so nothing can change under the models that share these tensors.
    model.requires_grad_(False)
    model.to(target)
    model.tokenizer_source = functools.partial(find_tokenizer, folder, repo, revision, cache_dir, config.vocab_size)
    if tokenizer is not None:
        model.tokenizer = tokenizer
    return model


def _locate(name: str | Path) -> tuple[Path | None, str | None]:
    """(folder, None) or (None, repository)."""
    if not str(name) or not isinstance(name, str | Path):
        raise TypeError(f"name is {name!r}; give a model's name, a folder or a GPT2Config")
    preset = ALIASES.get(str(name), str(name))
    folder = Path(name)
    if folder.is_dir():
        if preset not in PRESETS:
            return folder, None
        if (folder / CONFIG).is_file() or (folder / "hparams.json").is_file():
            logger.warning("%r is a local folder here; it is loaded, not the published model of that name", str(name))
            return folder, None
        logger.warning("the local folder %r holds no %s; the published model is meant", str(name), CONFIG)
    if preset == "nano":
        return _NANO, None
    if preset in _REPOSITORIES:
        return None, _REPOSITORIES[preset]
    if isinstance(name, str) and _HUB_NAME.fullmatch(name) and not name.startswith("."):
        return None, name
    raise FileNotFoundError(
        f"{str(name)!r} is no folder and no known model; give a folder, one of "
        f"{', '.join([*PRESETS, *ALIASES])}, a hub repository 'owner/name', or a GPT2Config"
    )


def _check_layout(folder: Path) -> None:
    foreign = [name for name in ("hparams.json", "checkpoint", "model.ckpt.index") if (folder / name).exists()]
    if foreign and not (folder / CONFIG).is_file():
        raise ValueError(
            f"{folder} holds {foreign[0]}: OpenAI's TensorFlow checkpoint, which this version of gptclf does not read. "
            f"Give a folder in Hugging Face's layout ({CONFIG} and {WEIGHTS}), or the model's name on the hub"
        )


def _fetch(repo: str, revision: str | None, cache_dir: str | Path | None, *, with_weights: bool) -> Path:
    """The cache folder that holds a repository's configuration and weights, downloaded where they are not."""
    config = hub_file(repo, CONFIG, revision=revision, cache_dir=cache_dir)
    # Looked at before half a gigabyte is fetched.
    config_from_hugging_face(read_json(config), source=f"{repo}/{CONFIG}")
    if with_weights:
        # The commit of the first file, so that a push between two downloads cannot mix versions.
        commit = config.parent.name
        try:
            hub_file(repo, WEIGHTS, revision=commit, cache_dir=cache_dir)
        except FileNotFoundError as error:
            try:
                index = hub_file(repo, INDEX, revision=commit, cache_dir=cache_dir)
            except FileNotFoundError:
                raise error from None
            for shard in shard_names(read_json(index), index):
                hub_file(repo, shard, revision=commit, cache_dir=cache_dir)
    return config.parent


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
        num_classes = plain(num_classes)
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
    freeze(clf, trainable="last_block")
    fresh = ", ".join(f"{name} {tuple(p.shape)}" for name, p in clf.head.named_parameters(prefix="head"))
    logger.warning("new classifier head, drawn from seed %d: %s. Train it before use.", seed, fresh)
    return clf
