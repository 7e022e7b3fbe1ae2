"""`load_model`: loads a model that `save_model`, `transformers` or the book's code saved, also from the hub."""

import functools
import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptclf import checks
from gptclf.files.json_file import read_json
from gptclf.files.safetensors_file import read_safetensors
from gptclf.gpt2.classifier import HeadSource, build_head
from gptclf.gpt2.freezing import freeze
from gptclf.gpt2.heads import ClassifierHead, Head, head_from_record
from gptclf.gpt2.model import GPT2
from gptclf.gpt2.sharing import own_parameters
from gptclf.hub.download import cached_file, hub_file
from gptclf.tasks import SingleLabel, Task, check_labels
from gptclf.tokenizer.bpe import read_tokenizer
from gptclf.tokenizer.find import find_tokenizer
from gptclf.weights.book import is_book, read_book
from gptclf.weights.folders import CONFIG, WEIGHTS, read_file, read_weights
from gptclf.weights.locate import fetch, fetch_optional, hub_name, is_cached
from gptclf.weights.opened import (
    Opened,
    Settings,
    book_settings,
    build,
    open_hugging_face,
    read_hugging_face_config,
    shapes_of,
)
from gptclf.weights.record import ORIGINALS, OURS, SAVE_MARK, Record, check_tensors_named, known_task, read_record


def load_model(
    folder: str | Path,
    *,
    device: str | torch.device | None = None,
    classes: Iterable[Any] | None = None,
    settings: Settings | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    head: HeadSource | None = None,
    task: Task | None = None,
) -> GPT2:
    """Load a model that `save_model` wrote, bit for bit, or a classifier that `transformers` or the book's code saved.

    Args:
        folder: A folder, a hub repository "owner/name", or a file of the book's classifier (.pth). The book's
            classifier reads the last column of rows that are padded to one length: set
            `model.preparation = Preparation(pad_to=...)` to that length.
        device: The model's device; None is the CPU.
        classes: The labels for a file, which stores none; None means 0 to C-1.
        settings: The settings that a file does not store, as in `load_gpt2`.
        revision: Branch, tag or commit of a hub repository; None is "main".
        cache_dir: The hub cache to use instead of Hugging Face's own.
        head: The class of your own head, if the model was saved with one; it is called with the trunk's width and the
            number of outputs. A head object is also accepted; the saved tensors replace its own.
        task: Your own task, if the model was saved with one.

    Returns:
        The model in eval mode. The parameters that were trainable when it was saved are trainable again; of a
        classifier that gptclf did not save, the last block is.

    Raises:
        FileNotFoundError: The folder or one of its files is missing.
        ValueError: A file is damaged, files of two saves are mixed, or the folder holds something else.
    """
    source, repo = checks.path("folder", folder), None
    target = checks.device(device)
    if source.exists() and revision is not None:
        raise ValueError(f"revision={revision!r} belongs to a hub repository; {source} is local")
    if not source.exists():
        repo = hub_name(folder)
        if repo is None:
            raise FileNotFoundError(
                f"{source} is not a folder, a file or a hub repository; give the folder that save_model wrote"
            )
        source = _fetch_model(repo, revision, cache_dir)
    if source.is_dir() and (classes is not None or settings is not None):
        raise ValueError(f"classes= and settings= are for a file of tensors alone; {source} brings its own")
    if not (source / OURS).is_file() and (head is not None or task is not None):
        raise ValueError(f"head= and task= are for a folder that save_model wrote; {source} is another")
    if source.is_file():
        model = _load_book(source, classes, settings)
    else:
        model = _load_ours(source, head, task) if (source / OURS).is_file() else _load_theirs(source)
    _copy_last_block_contiguously(model)
    model.to(target)
    beside = source.parent if source.is_file() else source
    find = functools.partial(find_tokenizer, beside, repo, revision, cache_dir, model.config.vocab_size)
    model.tokenizer_source = find
    with suppress(ValueError):  # a damaged tokenizer is an error when it is used
        tokenizer = read_tokenizer(beside)
        if tokenizer is not None:  # read now, as the folder may change or disappear
            model.tokenizer = tokenizer
    return model


def _fetch_model(repo: str, revision: str | None, cache_dir: str | Path | None) -> Path:
    """Return the cache folder with a repository's classifier, saved by gptclf or by transformers."""
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
        raise ValueError(
            f"{path} does not hold a model of the book's; give the folder that holds the file and its {CONFIG}"
        )
    config, ours, n_classes = read_book(tensors, book_settings(settings), source=str(path))
    if n_classes is None:
        raise ValueError(f"{path} holds a language model; load it with load_gpt2")
    labels = list(range(n_classes)) if classes is None else check_labels(classes, name="class")
    if len(labels) != n_classes:
        raise ValueError(f"classes has {len(labels)} labels, but the head in {path} has {n_classes} rows")
    head = ClassifierHead(config.emb_dim, n_classes, bias="head.output.bias" in ours)
    model = build(Opened(config, ours), task=SingleLabel(labels), head=head)
    freeze(model, trainable="last_block")
    return model


def _load_ours(source: Path, given_head: HeadSource | None, given_task: Task | None) -> GPT2:
    record = read_record(read_json(source / OURS), source=source / OURS)
    task = _task_of(record, given_task, source)
    head = _head_of(record, given_head, task, source)
    shapes = shapes_of(record.config, task=task, head=head)
    others = {f"head.{name}" for name in (head.state_dict() if head is not None else ())} - set(shapes)
    check_tensors_named(record, set(shapes), others, source=source / OURS)
    files = [WEIGHTS] * record.exported + [ORIGINALS] * bool(record.originals)
    read = {name: read_safetensors(source / name) for name in files}
    for name, (_, metadata) in read.items():
        if metadata.get(SAVE_MARK) != record.mark:
            raise ValueError(
                f"{source / name} and {OURS} come from different saves; a save was interrupted or a file replaced. "
                "Save the model again, or take the folder from its backup"
            )
    tensors: dict[str, Tensor] = {}
    if record.exported:
        tensors |= open_hugging_face(source, shapes, record.config, without=record.originals).tensors
    if record.originals:
        originals = read[ORIGINALS][0]
        wrong = [n for n in record.originals if n not in originals or tuple(originals[n].shape) != shapes.get(n, ...)]
        wrong = [n for n in wrong if n not in others or n not in originals]
        if wrong:
            hint = "" if given_head is None else "; if the file is whole, head= gives another head than was saved"
            raise ValueError(f"{source / ORIGINALS} does not fit {OURS}: {', '.join(wrong)}{hint}")
        tensors |= {name: originals[name] for name in record.originals}
    model = build(Opened(record.config, tensors), task=task, head=head)
    model.preparation, model.base = record.preparation, record.base
    own_parameters(model, record.trainable)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in record.trainable)
    return model


def _task_of(record: Record, given: Task | None, source: Path) -> Task:
    task = known_task(record, source / OURS)
    if given is None:
        if task is None:
            kind = record.task.get("kind")
            raise ValueError(f"{source} was saved with the task {kind!r}; give it: load_model(..., task={kind}())")
        return task
    if not isinstance(given, Task):
        raise TypeError(f"task is a {type(given).__name__}; it must be a gptclf.Task")
    if json.loads(json.dumps(given.record())) != record.task:  # as a file holds it: a tuple is a list there
        raise ValueError(f"task is {given}, but {source} was saved with {dict(record.task)}; give the same task")
    return given


def _head_of(record: Record, given: HeadSource | None, task: Task, source: Path) -> Head | None:
    if record.head is None:
        if given is not None:
            raise ValueError(f"{source} holds a language model, which has no head of yours; leave head= out")
        return None
    try:
        own = head_from_record(record.head, record.config.emb_dim, task.n_outputs)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{source / OURS}: {error}; the file is damaged") from error
    if own is not None:
        if given is not None:
            raise ValueError(f"{source} was saved with the standard head; leave head= out")
        return own
    kind = record.head.get("class")
    if given is None:
        raise ValueError(f"{source} was saved with a head of the class {kind!r}; give it: load_model(..., head={kind})")
    head = build_head(given, record.config, task.n_outputs)
    saved, found = {n for n in record.originals if n.startswith("head.")}, {f"head.{n}" for n in head.state_dict()}
    if saved != found:
        raise ValueError(
            f"{source} was saved with a {kind} whose tensors are {sorted(saved)}, but head= gives a "
            f"{type(head).__name__} with {sorted(found)}; give the same head"
        )
    return head


def _load_theirs(source: Path) -> GPT2:
    config, values = read_hugging_face_config(source)
    problem = values.get("problem_type")
    if problem not in (None, "single_label_classification"):
        raise ValueError(f"{source} sets problem_type = {problem!r}; gptclf puts each text into exactly one class")
    score = read_weights(source).get("score.weight")
    if score is None:
        raise ValueError(f"{source} does not hold a classifier (no score.weight); load a language model with load_gpt2")
    labels = values.get("id2label") or {str(i): f"LABEL_{i}" for i in range(len(score))}
    if not isinstance(labels, dict) or set(labels) != {str(i) for i in range(len(score))}:
        raise ValueError(
            f"{source}: id2label is {labels!r}, but score.weight has {len(score)} rows; its keys must be 0 to "
            f"{len(score) - 1}"
        )
    task = SingleLabel([labels[str(i)] for i in range(len(score))])
    head = ClassifierHead(config.emb_dim, len(score), bias=False)
    model = build(open_hugging_face(source, shapes_of(config, task=task, head=head), config), task=task, head=head)
    freeze(model, trainable="last_block")
    return model


def _copy_last_block_contiguously(model: GPT2) -> None:
    """Copy the last block, whose matrices are transposed views on the file, into the layout of fresh weights.

    That block multiplies few rows, those at the position that the head reads, and such products round differently in
    another layout: without the copy a reloaded model's answers would differ from the saved one's in the last bits.
    """
    last = f"trunk.blocks.{model.config.n_layers - 1}."
    own_parameters(model, {name for name, _ in model.named_parameters() if name.startswith(last)})
