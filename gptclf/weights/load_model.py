"""`load_model`: what `save_model`, `transformers` or the book's code saved, from a folder, a file or the hub."""

import functools
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from gptclf.files.json_file import read_json
from gptclf.files.safetensors_file import read_safetensors
from gptclf.gpt2.model import GPT2
from gptclf.gpt2.stages import freeze
from gptclf.hub.download import cached_file, hub_file
from gptclf.tasks import check_classes
from gptclf.tokenizer.bpe import read_tokenizer
from gptclf.tokenizer.find import find_tokenizer
from gptclf.weights.book import is_book, read_book
from gptclf.weights.folders import (
    CONFIG,
    WEIGHTS,
    check_device,
    fill,
    fill_from_hugging_face,
    read_config,
    read_file,
    read_weights,
)
from gptclf.weights.hugging_face import config_from_hugging_face
from gptclf.weights.load_gpt2 import Settings, book_settings
from gptclf.weights.locate import fetch, fetch_optional, hub_name, is_cached
from gptclf.weights.record import MARK, ORIGINALS, OURS, read_record


def load_model(
    folder: str | Path,
    *,
    device: str | torch.device | None = None,
    classes: Iterable[Any] | None = None,
    settings: Settings | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
) -> GPT2:
    """Read back what `save_model` wrote, bit for bit, or a classifier that `transformers` or the book's code saved.

    Args:
        folder: The folder; a hub repository "owner/name" that holds one; or a file of the book's classifier (.pth).
            The book's reads the last column of rows filled up to one length: set `model.pad_to` to that length.
        device: Where the model goes; None is the CPU.
        classes: The labels of a file, which has none; None means 0 to C-1.
        settings: What a file's tensors do not say, as in `load_gpt2`.
        revision: Branch, tag or commit of a hub repository; None is "main".
        cache_dir: The hub cache to use instead of Hugging Face's own.

    Returns:
        The model in eval mode. What trained before it was saved is trainable again; a foreign classifier
        is set to train its last block.

    Raises:
        FileNotFoundError: No such folder, or a file of it is missing.
        ValueError: A file is damaged, files of two saves are mixed, or the folder holds something else.
    """
    if not isinstance(folder, str | Path) or not str(folder):
        raise TypeError(f"folder is {folder!r}; give a path, or a hub repository")
    target = check_device(device)
    source, repo = Path(folder), None
    if source.exists() and revision is not None:
        raise ValueError(f"revision={revision!r} is of a hub repository; {source} is local")
    if not source.exists():
        repo = hub_name(folder)
        if repo is None:
            raise FileNotFoundError(
                f"{source} is not a folder, a file or a hub repository; give the folder that save_model wrote"
            )
        source = _fetch_model(repo, revision, cache_dir)
    if source.is_file():
        model = _load_book(source, classes, settings)
    elif classes is not None or settings is not None:
        raise ValueError(f"classes= and settings= are for a file of tensors alone; {source} brings its own")
    else:
        model = _load_ours(source) if (source / OURS).is_file() else _load_theirs(source)
    model.to(target)
    beside = source.parent if source.is_file() else source
    find = functools.partial(find_tokenizer, beside, repo, revision, cache_dir, model.config.vocab_size)
    model.tokenizer_source = find
    with suppress(ValueError):  # a damaged one is an error once it is used
        tokenizer = read_tokenizer(beside)
        if tokenizer is not None:  # now: the folder may be gone later, or hold another model
            model.tokenizer = tokenizer
    return model


def _fetch_model(repo: str, revision: str | None, cache_dir: str | Path | None) -> Path:
    """The cache folder that holds a repository's classifier, ours or one that transformers saved."""
    ours = cached_file(repo, OURS, revision=revision, cache_dir=cache_dir)
    if ours is None and not is_cached(repo, revision, cache_dir):
        ours = fetch_optional(repo, OURS, revision, cache_dir)
    if ours is None:
        return fetch(repo, revision, cache_dir)
    record = read_record(read_json(ours), source=ours)
    for name in [CONFIG, WEIGHTS] * record.exported + [ORIGINALS] * bool(record.originals):
        hub_file(repo, name, revision=ours.parent.name, cache_dir=cache_dir)
    return ours.parent


def _load_book(path: Path, classes: Iterable[Any] | None, settings: Settings | None) -> GPT2:
    tensors = read_file(path)
    if not is_book(tensors):
        raise ValueError(f"{path} holds no model of the book's; give the folder that holds the file with its {CONFIG}")
    config, ours, n_classes = read_book(tensors, book_settings(settings), source=str(path))
    if n_classes is None:
        raise ValueError(f"{path} holds a language model; load it with load_gpt2")
    labels = list(range(n_classes)) if classes is None else check_classes(classes)
    if len(labels) != n_classes:
        raise ValueError(f"classes has {len(labels)} labels, but the head in {path} has {n_classes} rows")
    model = GPT2(config, classes=labels, head_bias="head.output.bias" in ours, device="meta")
    fill(model, ours)
    freeze(model, trainable="last_block")
    _straighten(model)
    return model


def _load_ours(source: Path) -> GPT2:
    record = read_record(read_json(source / OURS), source=source / OURS)
    model, names = record.model, record.originals
    files = [WEIGHTS] * record.exported + [ORIGINALS] * bool(names)
    read = {name: read_safetensors(source / name) for name in files}
    for name, (_, metadata) in read.items():
        if metadata.get(MARK) != record.mark:
            raise ValueError(
                f"{source / name} and {OURS} come from different saves; a save was interrupted or a file replaced. "
                "Save the model again, or take the folder from its backup"
            )
    if record.exported:
        fill_from_hugging_face(model, source, without=tuple(names))
    if names:
        originals = read[ORIGINALS][0]
        shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
        wrong = [n for n in names if n not in originals or tuple(originals[n].shape) != shapes[n]]
        if wrong:
            raise ValueError(f"{source / ORIGINALS} does not fit {OURS}: {', '.join(wrong)}")
        fill(model, {name: originals[name] for name in names})
    model.own_parameters(record.trainable)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in record.trainable)
    _straighten(model)
    return model


def _load_theirs(source: Path) -> GPT2:
    values = read_config(source / CONFIG)
    config = config_from_hugging_face(values, source=str(source / CONFIG))
    problem = values.get("problem_type")
    if problem not in (None, "single_label_classification"):
        raise ValueError(f"{source} sets problem_type = {problem!r}; gptclf puts each text into exactly one class")
    tensors = read_weights(source)
    score = tensors.get("score.weight")
    if score is None:
        raise ValueError(f"{source} holds no classifier (no score.weight); load a language model with load_gpt2")
    labels = values.get("id2label") or {str(i): f"LABEL_{i}" for i in range(len(score))}
    if not isinstance(labels, dict) or set(labels) != {str(i) for i in range(len(score))}:
        raise ValueError(f"{source}: id2label is {labels!r}, but score.weight has {len(score)} rows: 0 to that less 1")
    names = [labels[str(i)] for i in range(len(score))]
    model = GPT2(config, classes=names, head_bias=False, device="meta")
    fill_from_hugging_face(model, source)
    freeze(model, trainable="last_block")
    _straighten(model)
    return model


def _straighten(model: GPT2) -> None:
    """Copy the last block's transposed views on the file into the layout that fresh weights have.

    Products of a few rows, as that block makes at the position the head looks at, round otherwise in another layout:
    a reloaded model would answer in other last bits than the one that was saved.
    """
    last = f"trunk.blocks.{model.config.n_layers - 1}."
    model.own_parameters({name for name, _ in model.named_parameters() if name.startswith(last)})
