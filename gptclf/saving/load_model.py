"""`load_model`: loads a model that `save_model`, `transformers` or the book's code saved, also from the hub."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptclf import checks
from gptclf.files.safetensors_file import read_safetensors
from gptclf.gpt2.classifier import HeadSource
from gptclf.gpt2.freezing import first_policy, freeze
from gptclf.gpt2.heads import ClassifierHead
from gptclf.gpt2.model import GPT2
from gptclf.gpt2.quantize import quantize
from gptclf.gpt2.sharing import own_parameters, set_parameter
from gptclf.hub.download import cached_file, hub_file
from gptclf.preparation import Preparation
from gptclf.saving.adapter_files import fetch_adapter, is_adapter, open_adapter
from gptclf.saving.adapter_record import bits_of
from gptclf.saving.card import CARD, is_our_card
from gptclf.saving.load_adapter import put_on
from gptclf.saving.record import ORIGINALS, SAVE_MARK, check_tensors_named, damaged, head_of, read_record, task_of
from gptclf.tasks import SingleLabel, Task, check_labels, task_from_transformers
from gptclf.tokenizer.find import pin_tokenizer
from gptclf.weights import opened
from gptclf.weights.bitsandbytes_layout import packed_names
from gptclf.weights.book import is_book, read_book
from gptclf.weights.folders import CONFIG, OURS, WEIGHTS, read_files, read_weights
from gptclf.weights.load_gpt2 import load_gpt2
from gptclf.weights.locate import fetch, fetch_optional, hub_name, is_cached, locate

logger = logging.getLogger(__name__)


def load_model(
    folder: str | Path,
    *,
    device: str | torch.device | None = None,
    classes: Iterable[Any] | None = None,
    settings: opened.Settings | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    head: HeadSource | None = None,
    task: Task | None = None,
    base: str | Path | GPT2 | None = None,
    pad_to: int | None = None,
) -> GPT2:
    """Load a model that `save_model` wrote, bit for bit, or a classifier that `transformers` or the book's code saved.

    A LoRA adapter's folder, of gptclf or PEFT, is loaded with the base that it names: the result is ready to answer.

    Args:
        folder: A folder, a hub repository "owner/name", or a file of the book's classifier (.pth).
        device: The model's device; None is the CPU.
        classes: The labels for a file, which stores none; None means 0 to C-1.
        settings: The settings that a file does not store, as in `load_gpt2`.
        revision: Branch, tag or commit of a hub repository; None is "main".
        cache_dir: The hub cache to use instead of Hugging Face's own.
        head: The class of your own head, if the model was saved with one; it is called with the trunk's width and the
            number of outputs. A head object is also accepted; the saved tensors replace its own.
        task: Your own task, if the model was saved with one.
        base: The base of an adapter: a model, or the name or folder of one. None takes the one that the adapter names
            and, if it was trained over quantised matrices, quantises it again.
        pad_to: For a file of the book's classifier: the length to which its training texts were padded, which the file
            does not store (120 in the book). It reads the last column, so it answers by chance without it.

    Returns:
        The model in eval mode. The parameters that were trainable when it was saved are trainable again. If gptclf
        did not save it, the last block, final norm and head are trainable, or the head alone over a quantised block.

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
            kinds = "a folder, a file or a hub repository"
            raise FileNotFoundError(f"{source} is not {kinds}; give the folder that save_model wrote")
        source = _fetch_model(repo, revision, cache_dir)
    if is_adapter(source) and not (source / OURS).is_file() and not (source / CONFIG).is_file():
        if classes is not None or settings is not None:
            raise ValueError(f"classes= and settings= are for a file of tensors alone; {source} is an adapter")
        return _load_adapted(source, base, cache_dir, head, task).to(target)
    if base is not None:
        raise ValueError(f"base= is for an adapter's folder; {source} holds no adapter, or a whole model")
    if pad_to is not None and not source.is_file():
        raise ValueError(f"pad_to={pad_to!r} is for a file of the book's classifier; {source} is a folder")
    ours = (source / OURS).is_file()
    if source.is_dir() and (classes is not None or settings is not None):
        raise ValueError(f"classes= and settings= are for a file of tensors alone; {source} brings its own")
    if not ours and (head is not None or task is not None):
        raise ValueError(f"head= and task= are for a folder that save_model wrote; {source} is another")
    if ours:
        model = _load_ours(source, head, task)
    else:
        model = _load_book(source, classes, settings) if source.is_file() else _load_theirs(source)
        model.preparation = _padding(source, pad_to, model.config.context_length)
        freeze(model, trainable=first_policy(model))
    _own_last_block(model)
    model.to(target)
    model.source = repo or str(source.resolve())
    beside = source.parent if source.is_file() else source
    rules = {"ours": ours, "end_of_text": source.is_dir()}
    model.tokenizer_source = pin_tokenizer(beside, repo, revision, cache_dir, model.config.vocab_size, **rules)
    return model


def _padding(source: Path, pad_to: int | None, context: int) -> Preparation:
    """Return the preparation of a foreign model; warn if it is the book's and was not given."""
    pad_to = checks.integer("pad_to", pad_to, 1, most=context, optional=True)
    if pad_to is None and source.is_file():
        problem = "the book's classifier reads the last column of padded rows, and answers by chance without padding"
        logger.warning(
            "%s: %s; give load_model the length of its training rows as pad_to= (120 in the book)", source, problem
        )
    return Preparation(pad_to=pad_to)


def _own_last_block(model: GPT2) -> None:
    """Copy the last block's matrices, which are transposed views on the file.

    The block multiplies only the few rows that the head reads. Products of few rows round differently in another layout
    than that of fresh weights, so without a copy a reloaded model's answers would differ from the saved one's in the
    last bits.
    """
    last = f"trunk.blocks.{model.config.n_layers - 1}."
    own_parameters(model, {name for name, _ in model.named_parameters() if name.startswith(last)})


def _fetch_model(repo: str, revision: str | None, cache_dir: str | Path | None) -> Path:
    """Return the cache folder with a repository's classifier, saved by gptclf or by transformers."""
    ours = cached_file(repo, OURS, revision=revision, cache_dir=cache_dir)
    if ours is None and not is_cached(repo, revision, cache_dir):
        ours = fetch_optional(repo, OURS, revision, cache_dir)
    if ours is None:
        try:
            return fetch(repo, revision, cache_dir)
        except FileNotFoundError:  # offline, this is not known to be a missing file
            adapter = fetch_adapter(repo, revision, cache_dir)
            if adapter is None:
                raise
            return adapter
    record = read_record(ours)
    for name in [CONFIG, WEIGHTS] * record.exported + [ORIGINALS] * bool(record.originals):
        hub_file(repo, name, revision=ours.parent.name, cache_dir=cache_dir)
    return ours.parent


def _load_adapted(
    source: Path,
    base: str | Path | GPT2 | None,
    cache_dir: str | Path | None,
    head: HeadSource | None,
    task: Task | None,
) -> GPT2:
    files = open_adapter(source)
    record = files.record
    if isinstance(base, GPT2):
        return put_on(base, files, head, task, any_labels=True)
    name = files.base if base is None else base
    if name is None:
        raise ValueError(f"{source} names no base; give base=, the model that the adapter was trained on")
    try:
        beneath, place = load_base(name, beside=source, cache_dir=cache_dir)
    except OSError as error:
        problem = f"{error}. This is the base of the adapter in {source}"
        raise type(error)(f"{problem}; give base=, a model or the name or folder of one") from error
    if record is None and is_folded(place):  # PEFT saw the norm in which the bias of the head is folded
        set_parameter(beneath, "trunk.norm.bias", read_weights(place)["transformer.ln_f.bias"])
    _own_last_block(beneath)
    if record is not None and record.bits is not None and bits_of(beneath) is None:
        for path in record.dense:  # quantize leaves trainable matrices as they are
            beneath.get_parameter(f"{path}.weight").requires_grad_(True)
        beneath = quantize(beneath, record.bits).requires_grad_(False)
    return put_on(beneath, files, head, task, any_labels=True)


def load_base(
    name: str | Path, *, beside: Path, cache_dir: str | Path | None = None, network: bool = True
) -> tuple[GPT2, Path]:
    """Load the base of an adapter, a language model or a classifier; return it, and the folder or file that holds it.

    Args:
        name: A published name, a hub repository, or a folder, absolute or relative.
        beside: A folder that it may also be relative to.
        cache_dir: The hub cache to use instead of Hugging Face's own.
        network: Whether a repository may be downloaded; else one that is not cached is missing.
    """
    near = beside / checks.path("base", name)
    found = locate(near if near.exists() and not Path(name).exists() else name)
    if isinstance(found, str) and not network and not is_cached(found, None, cache_dir):
        raise FileNotFoundError(f"{found} is not in the cache")
    repo, place = (found, _fetch_model(found, None, cache_dir)) if isinstance(found, str) else (None, found)
    whole = place.is_dir() and ((place / OURS).is_file() or "score.weight" in read_weights(place))
    load = load_model if whole else load_gpt2
    return load(repo or place, cache_dir=cache_dir).requires_grad_(False), place


def is_folded(place: Path) -> bool:
    """Return True if a model of gptclf's, as another reader sees it, has its head's bias folded into the final norm."""
    record = read_record(place / OURS) if (place / OURS).is_file() else None
    return record is not None and record.exported and "trunk.norm.bias" in record.originals


def _load_book(path: Path, classes: Iterable[Any] | None, settings: opened.Settings | None) -> GPT2:
    tensors = read_files(path)
    if not is_book(tensors):
        raise ValueError(f"{path} does not hold a model of the book's; give the folder that holds it and its {CONFIG}")
    config, ours, n_classes = read_book(tensors, opened.book_settings(settings), source=str(path))
    if n_classes is None:
        raise ValueError(f"{path} holds a language model; load it with load_gpt2")
    labels = list(range(n_classes)) if classes is None else check_labels(classes, "class")
    if len(labels) != n_classes:
        raise ValueError(f"classes has {len(labels)} labels, but the head in {path} has {n_classes} rows")
    head = ClassifierHead(config.emb_dim, n_classes, bias="head.output.bias" in ours)
    return opened.build(opened.Opened(config, ours), task=SingleLabel(labels), head=head)


def _load_ours(source: Path, given_head: HeadSource | None, given_task: Task | None) -> GPT2:
    record = read_record(source / OURS)
    task = task_of(record, given_task, source / OURS)
    head = head_of(record, given_head, task, source / OURS)
    shapes = opened.shapes_of(record.config, task=task, head=head)
    others = {f"head.{name}" for name in (head.state_dict() if head is not None else ())} - set(shapes)
    replaced, packed = packed_names(record.originals)
    others |= packed  # their shapes are checked when they are put into the model
    with damaged(source / OURS):
        check_tensors_named(record, set(shapes) - replaced, others)
    originals: dict[str, Tensor] = {}
    for name in [WEIGHTS] * record.exported + [ORIGINALS] * bool(record.originals):
        originals, metadata = read_safetensors(source / name)
        if metadata.get(SAVE_MARK) != record.mark:
            problem = f"{source / name} and {OURS} come from different saves; a save was interrupted or a file replaced"
            raise ValueError(f"{problem}. Save the model again, or take the folder from its backup")
    # A head's other tensors, such as running means, may have any shape.
    fits = {name for name, tensor in originals.items() if name in others or tuple(tensor.shape) == shapes.get(name)}
    wrong = [name for name in record.originals if name not in fits]
    if wrong:
        hint = "" if given_head is None else "; if the file is whole, head= gives another head than was saved"
        raise ValueError(f"{source / ORIGINALS} does not fit {OURS}: {', '.join(wrong)}{hint}")
    tensors: dict[str, Tensor] = {}
    if record.exported:
        tensors |= opened.open_hugging_face(source, shapes, record.config, without=record.originals).tensors
    tensors |= {name: originals[name] for name in record.originals}
    model = opened.build(opened.Opened(record.config, tensors), task=task, head=head)
    model.preparation, model.base = record.preparation, record.base
    own_parameters(model, record.trainable)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in record.trainable)
    return model


def _load_theirs(source: Path) -> GPT2:
    marked = (source / WEIGHTS).is_file() and SAVE_MARK in read_safetensors(source / WEIGHTS)[1]
    if marked or (source / ORIGINALS).is_file() or is_our_card(source / CARD):
        problem = f"{source} was written by save_model, but its {OURS} is missing: labels and preparation would be lost"
        raise FileNotFoundError(f"{problem}. Copy the whole folder again, or save the model again")
    config, values = opened.read_hugging_face_config(source)
    score = read_weights(source).get("score.weight")
    if score is None:
        raise ValueError(f"{source} does not hold a classifier (no score.weight); load a language model with load_gpt2")
    if not score.is_floating_point() or score.dim() != 2:
        problem = f"{source} holds a score.weight of {score.dtype} {tuple(score.shape)}; the head must be floats"
        raise ValueError(f'{problem}. Quantise it with llm_int8_skip_modules=["score"]')
    n = len(score)
    labels = values.get("id2label") or {str(i): f"LABEL_{i}" for i in range(n)}
    if not isinstance(labels, dict) or set(labels) != {str(i) for i in range(n)}:
        problem = f"{source}: id2label is {labels!r}, but score.weight has {n} rows"
        raise ValueError(f"{problem}; its keys must be 0 to {n - 1}")
    with damaged(source / CONFIG):
        task = task_from_transformers(values.get("problem_type"), [labels[str(i)] for i in range(n)])
    head = ClassifierHead(config.emb_dim, n, bias=False)
    found = opened.open_hugging_face(source, opened.shapes_of(config, task=task, head=head), config)
    return opened.build(found, task=task, head=head)
