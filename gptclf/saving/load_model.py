"""`load_model`: loads a model that `save_model`, `transformers` or the book's code saved, also from the hub."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gptclf import checks
from gptclf.files.access import is_there
from gptclf.files.atomic import read_of_one_save
from gptclf.files.safetensors_file import read_safetensors
from gptclf.gpt2.classifier import HeadSource
from gptclf.gpt2.freezing import first_policy, freeze
from gptclf.gpt2.model import GPT2
from gptclf.gpt2.quantize import quantize
from gptclf.gpt2.sharing import own_parameters, set_parameter
from gptclf.saving.adapter_files import is_adapter, open_adapter
from gptclf.saving.adapter_record import ADAPTER, bits_of
from gptclf.saving.fetch_model import fetch_model
from gptclf.saving.load_adapter import put_on
from gptclf.saving.load_foreign import load_book, load_transformers
from gptclf.saving.record import (
    ORIGINALS,
    SAVE_MARK,
    Record,
    check_files,
    check_tensors_named,
    damaged,
    head_of,
    read_record,
    task_of,
)
from gptclf.tasks import Task
from gptclf.tokenizer.find import pin_tokenizer
from gptclf.weights import opened
from gptclf.weights.bitsandbytes_layout import packed_names
from gptclf.weights.folders import CONFIG, OURS, WEIGHTS, read_weights
from gptclf.weights.hugging_face import from_hugging_face
from gptclf.weights.load_gpt2 import load_gpt2
from gptclf.weights.locate import hub_name, is_cached, locate, missing


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
    verify: bool = True,
    mapped: bool = True,
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
        verify: Whether to compare the files with the digests that `save_model` wrote, which reads them once.
        mapped: Whether frozen weights stay in the file and are read as they are needed, by all processes together.
            False reads them into memory, where overwriting the files in place (`cp`, `rsync --inplace`) cannot change
            them or crash the process. Saving again is always safe.
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
    checks.boolean("verify", verify)
    checks.boolean("mapped", mapped)
    if is_there(source):
        if revision is not None:
            raise ValueError(f"revision={revision!r} belongs to a hub repository; {source} is local")
    else:
        repo = hub_name(folder)
        if repo is None:
            raise missing(folder, "the folder that save_model wrote, or a hub repository 'owner/name'")
        source = fetch_model(repo, revision, cache_dir)
    if pad_to is not None and not source.is_file():
        raise ValueError(f"pad_to={pad_to!r} is for a file of the book's classifier; {source} is a folder")
    given = _Given(classes, settings, head, task, base, repo, revision, cache_dir, verify, pad_to)
    model = read_of_one_save(source, (OURS, ADAPTER), lambda: _load(source, given))
    if not mapped:
        own_parameters(model)
    model.to(target)
    if _is_adapter_alone(source):
        return model
    model.source = repo or str(source.resolve())
    return model


class _Given(NamedTuple):
    """Arguments of `load_model`."""

    labels: Iterable[Any] | None
    settings: opened.Settings | None
    head: HeadSource | None
    task: Task | None
    base: str | Path | GPT2 | None
    repo: str | None
    revision: str | None
    cache_dir: str | Path | None
    verify: bool
    pad_to: int | None


def _load(source: Path, given: _Given) -> GPT2:
    """Load a local folder or file, and the tokenizer beside it."""
    alone = given.labels is not None or given.settings is not None
    if _is_adapter_alone(source):
        if alone:
            raise ValueError(f"classes= and settings= are for a file of tensors alone; {source} is an adapter")
        return _load_adapted(source, given)
    if given.base is not None:
        raise ValueError(f"base= is for an adapter's folder; {source} holds no adapter, or a whole model")
    ours = (source / OURS).exists()
    if source.is_dir() and alone:
        raise ValueError(f"classes= and settings= are for a file of tensors alone; {source} brings its own")
    if not ours and (given.head is not None or given.task is not None):
        raise ValueError(f"head= and task= are for a folder that save_model wrote; {source} is another")
    refused = None
    if ours:
        record = read_record(source / OURS, verify=given.verify)
        model, refused = _load_ours(source, record, given), record.tokenizer_refused
    else:
        book = source.is_file()
        model = load_book(source, given.labels, given.settings, given.pad_to) if book else load_transformers(source)
        freeze(model, trainable=first_policy(model))
    _own_last_block(model)
    beside, size = source.parent if source.is_file() else source, model.config.vocab_size
    hub = given.repo, given.revision, given.cache_dir
    where = source.is_dir()
    model.tokenizer_source = pin_tokenizer(beside, *hub, size, refused=refused, ours=ours, end_of_text=where)
    return model


def _is_adapter_alone(source: Path) -> bool:
    return is_adapter(source) and not (source / OURS).is_file() and not (source / CONFIG).is_file()


def _own_last_block(model: GPT2) -> None:
    """Copy the last block's matrices, which are transposed views on the file.

    The block multiplies only the few rows that the head reads. Products of few rows round differently in another layout
    than that of fresh weights, so without a copy a reloaded model's answers would differ from the saved one's in the
    last bits.
    """
    last = f"trunk.blocks.{model.config.n_layers - 1}."
    own_parameters(model, {name for name, _ in model.named_parameters() if name.startswith(last)})


def _load_adapted(source: Path, given: _Given) -> GPT2:
    files, base = open_adapter(source, verify=given.verify), given.base
    record = files.record
    if isinstance(base, GPT2):
        return put_on(base, files, given.head, given.task, any_labels=True)
    name = files.base if base is None else base
    if name is None:
        raise ValueError(f"{source} names no base; give base=, the model that the adapter was trained on")
    try:
        beneath, place = load_base(name, beside=source, cache_dir=given.cache_dir, verify=given.verify)
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
    return put_on(beneath, files, given.head, given.task, any_labels=True)


def load_base(
    name: str | Path, *, beside: Path, cache_dir: str | Path | None = None, network: bool = True, verify: bool = True
) -> tuple[GPT2, Path]:
    """Load the base of an adapter, a language model or a classifier; return it, and the folder or file that holds it.

    Args:
        name: A published name, a hub repository, or a folder, absolute or relative.
        beside: A folder that it may also be relative to.
        cache_dir: The hub cache to use instead of Hugging Face's own.
        network: Whether a repository may be downloaded; else one that is not cached is missing.
        verify: Whether to compare its files with their digests.
    """
    near = beside / checks.path("base", name)
    found = locate(near if near.exists() and not Path(name).exists() else name)
    if isinstance(found, str) and not network and not is_cached(found, None, cache_dir):
        raise FileNotFoundError(f"{found} is not in the cache")
    repo, place = (found, fetch_model(found, None, cache_dir)) if isinstance(found, str) else (None, found)
    whole = place.is_dir() and ((place / OURS).is_file() or "score.weight" in read_weights(place))
    load = load_model if whole else load_gpt2
    return load(repo or place, cache_dir=cache_dir, verify=verify).requires_grad_(False), place


def is_folded(place: Path) -> bool:
    """Return True if a model of gptclf's, as another reader sees it, has its head's bias folded into the final norm."""
    record = read_record(place / OURS, verify=False) if (place / OURS).is_file() else None
    return record is not None and record.exported and "trunk.norm.bias" in record.originals


def _load_ours(source: Path, record: Record, given: _Given) -> GPT2:
    task = task_of(record, given.task, source / OURS)
    head = head_of(record, given.head, task, source / OURS)
    files = {name: read_safetensors(source / name) for name in record.tensor_files}
    for name, (_, metadata) in files.items():
        if metadata.get(SAVE_MARK) != record.mark:
            problem = f"{source / name} and {OURS} come from different saves; a save was interrupted or a file replaced"
            raise ValueError(f"{problem}. Save the model again, or take the folder from its backup")
    theirs, originals = (files.get(name, ({}, {}))[0] for name in (WEIGHTS, ORIGINALS))
    shapes = opened.shapes_of(record.config, [*theirs, *originals], source=source / OURS, task=task, head=head)
    others = {f"head.{name}" for name in (head.state_dict() if head is not None else ())} - set(shapes)
    replaced, packed = packed_names(record.originals)
    others |= packed  # their shapes are checked when they are put into the model
    with damaged(source / OURS):
        check_tensors_named(record, set(shapes) - replaced, others)
    # A head's other tensors, such as running means, may have any shape.
    fits = {name for name, tensor in originals.items() if name in others or tuple(tensor.shape) == shapes.get(name)}
    wrong = [name for name in record.originals if name not in fits]
    if wrong:
        hint = "" if given.head is None else "; if the file is whole, head= gives another head than was saved"
        raise ValueError(f"{source / ORIGINALS} does not fit {OURS}: {', '.join(wrong)}{hint}")
    if given.verify:
        check_files(source, record)
    tensors: dict[str, Tensor] = {}
    if record.exported:
        n_layers = record.config.n_layers
        tensors |= from_hugging_face(theirs, shapes, n_layers, source=str(source), without=record.originals)
    tensors |= {name: originals[name] for name in record.originals}
    model = opened.build(opened.Opened(record.config, tensors), task=task, head=head)
    model.preparation, model.base = record.preparation, record.base
    own_parameters(model, record.trainable)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in record.trainable)
    return model
