"""`save_model` and `load_model`: one folder that is at once ours and Hugging Face's.

    config.json, model.safetensors, tokenizer files     Hugging Face's; any tool that knows GPT-2 reads them
    gptclf.json                                          what their format cannot say: labels of any type, pooling, ...
    gptclf.safetensors                                   parameters that their format holds in another form

`transformers`' classifier has no head bias, so a bias b = W d is folded into the final norm's shift, which becomes
shift + d; the original of both lies in gptclf.safetensors, and our own reload is bit-equal.
"""

import functools
import hashlib
import json
import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptclf.gpt2.heads import ClassifierHead
from gptclf.gpt2.model import GPT2, check_gpt2, set_parameter
from gptclf.gpt2.stages import freeze, trainable_report
from gptclf.weights.atomic import Writer, tensor_writer, text_writer, write_all
from gptclf.weights.folders import (
    CONFIG,
    INDEX,
    WEIGHTS,
    check_device,
    fill,
    fill_from_hugging_face,
    read_json,
    read_safetensors,
    read_weights,
)
from gptclf.weights.formats import config_from_hugging_face, config_to_hugging_face, to_hugging_face
from gptclf.weights.record import MARK, read_record, write_record
from gptclf.weights.tokenizer import tokenizer_files
from gptclf.weights.vocabulary import find_tokenizer

logger = logging.getLogger(__name__)

OURS = "gptclf.json"
ORIGINALS = "gptclf.safetensors"
_FOLDED = ("head.output.bias", "trunk.norm.bias")
_TOKENIZER = ("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json")


def save_model(model: GPT2, folder: str | Path) -> Path:
    """Write a classifier or language model to a folder that `load_model` and `transformers` both read.

    Files are written beside their place and renamed when all are whole, so an interrupted save leaves the folder as
    it was. What `transformers` cannot express (pooling other than "last", a bias that no shift equals) is
    refused there: the folder then holds our files only, and the reason is logged.

    Args:
        model: What to save.
        folder: Made if it does not exist. One that holds somebody else's model is not overwritten.

    Returns:
        The folder.

    Example:
        >>> import tempfile
        >>> from gptclf import add_classifier_head, load_gpt2
        >>> clf = add_classifier_head(load_gpt2("nano"), classes=["ham", "spam"], seed=1)
        >>> load_model(save_model(clf, tempfile.mkdtemp())).classes
        ['ham', 'spam']
    """
    check_gpt2(model)
    target = Path(folder)
    if target.is_file():
        raise FileExistsError(f"{target} is a file; give a folder")
    foreign = [name for name in (CONFIG, WEIGHTS, INDEX) if (target / name).exists()]
    if foreign and not (target / OURS).exists():
        raise FileExistsError(
            f"{target} holds {', '.join(foreign)} that gptclf did not write; "
            "give another folder, so that no model is lost"
        )
    # Master weights are float32; a model that its owner cast is saved as what it can be loaded as.
    parameters = {name: parameter.detach().float() for name, parameter in model.named_parameters()}
    mark = _digest(parameters)
    vocabulary = _tokenizer_files(model)
    theirs, originals, reason = _divide(model, parameters)
    if reason:
        logger.warning("%s: transformers cannot load this model (%s); gptclf.load_model can", target, reason)
    record = write_record(model, mark=mark, originals=list(originals), exported=theirs is not None)
    writers: dict[str, Writer] = {}
    if theirs is not None:
        writers[WEIGHTS] = tensor_writer(theirs, {"format": "pt", MARK: mark})
        writers[CONFIG] = text_writer(_to_json(_their_config(model, bool(vocabulary))))
    if originals:
        writers[ORIGINALS] = tensor_writer(originals, {MARK: mark})
    writers |= {name: text_writer(text) for name, text in vocabulary.items()}
    writers[OURS] = text_writer(_to_json(record))
    target.mkdir(parents=True, exist_ok=True)
    write_all(target, writers)
    # What an earlier save of ours left and this one does not have would be read as part of it.
    for name in {CONFIG, WEIGHTS, ORIGINALS, *_TOKENIZER} - set(writers):
        (target / name).unlink(missing_ok=True)
    return target


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
    target = check_device(device)
    source, repo = Path(folder), None
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
    return model


def _fetch_model(repo: str, revision: str | None, cache_dir: str | Path | None) -> Path:
    """The cache folder that holds a repository's classifier, ours or one that transformers saved."""
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
            f"{path} holds no model of the book's; give the folder that holds the file with its {CONFIG}"
        )
    config, ours, n_classes = read_book(tensors, book_settings(settings), source=str(path))
    if n_classes is None:
        raise ValueError(f"{path} holds a language model; load it with load_gpt2")
    labels = list(range(n_classes)) if classes is None else check_classes(classes)
    if len(labels) != n_classes:
        raise ValueError(f"classes has {len(labels)} labels, but the head in {path} has {n_classes} rows")
    model = GPT2(config, classes=labels, head_bias="head.output.bias" in ours, device="meta")
    fill(model, ours)
    freeze(model, trainable="last_block")
    _straighten(model, trainable_report(model).names)
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
    _straighten(model, record.trainable)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in record.trainable)
    return model


def _load_theirs(source: Path) -> GPT2:
    values = read_json(source / CONFIG)
    config = config_from_hugging_face(values, source=str(source / CONFIG))
    problem = values.get("problem_type")
    if problem not in (None, "single_label_classification"):
        raise ValueError(f"{source} sets problem_type = {problem!r}; gptclf puts each text into exactly one class")
    tensors = read_weights(source)
    score = tensors.get("score.weight")
    if score is None:
        raise ValueError(f"{source} holds no classifier (no score.weight); load a language model with load_gpt2")
    labels = values.get("id2label") or {str(i): f"LABEL_{i}" for i in range(len(score))}
    if sorted(labels, key=int) != [str(i) for i in range(len(score))]:
        raise ValueError(f"{source}: id2label names {sorted(labels)}, but score.weight has {len(score)} rows")
    names = [labels[str(i)] for i in range(len(score))]
    model = GPT2(config, classes=names, head_bias=False, device="meta")
    fill_from_hugging_face(model, source)
    freeze(model, trainable="last_block")
    _straighten(model, trainable_report(model).names)
    return model


def _straighten(model: GPT2, names: Collection[str]) -> None:
    """Copy transposed views on the file into the layout that fresh weights have: those named, and the last block's.

    The optimizer walks a view against the grain, and products of a few rows, as the last block makes at the position
    the head looks at, round otherwise: a reloaded model would answer in other last bits than the one that was saved.
    """
    last = f"trunk.blocks.{model.config.n_layers - 1}."
    for name, parameter in list(model.named_parameters()):
        if (name in names or name.startswith(last)) and not parameter.is_contiguous():
            set_parameter(model, name, parameter.detach().contiguous()).requires_grad_(parameter.requires_grad)


def _divide(model: GPT2, parameters: Mapping[str, Tensor]) -> tuple[dict[str, Tensor] | None, dict[str, Tensor], str]:
    """(tensors for Hugging Face or None, tensors only we can hold, why Hugging Face gets none)."""
    head = model.head
    if not isinstance(head, ClassifierHead):
        theirs = to_hugging_face(parameters, model.config)
        if not model.config.tied:
            theirs["lm_head.weight"] = parameters["head.output.weight"].cpu().contiguous()
        return theirs, {}, ""
    everything = {name: tensor.cpu().contiguous() for name, tensor in parameters.items()}
    if head.pooling != "last":
        return None, everything, f"it pools {head.pooling!r}, and GPT2ForSequenceClassification the last token"
    theirs = to_hugging_face(parameters, model.config)
    theirs["score.weight"] = parameters["head.output.weight"].cpu().contiguous()
    if head.output.bias is None:
        return theirs, {}, ""
    folded = _fold(*(parameters[name] for name in ("head.output.weight", "head.output.bias", "trunk.norm.bias")))
    if folded is None:
        return None, everything, "its head's bias equals no shift of the final norm, and score has no bias"
    theirs["transformer.ln_f.bias"] = folded
    return theirs, {name: everything[name] for name in _FOLDED}, ""


def _fold(weight: Tensor, bias: Tensor, shift: Tensor) -> Tensor | None:
    """The final norm's shift with a head's bias in it, or None where no shift gives the same logits.

    logits = W (x + shift) + b = W (x + shift + d) needs W d = b; pinv(W) b is its smallest solution where there is one.
    """
    W, b, s = (tensor.detach().double().cpu() for tensor in (weight, bias, shift))
    if not all(bool(tensor.isfinite().all()) for tensor in (W, b, s)):
        return None
    folded = (s + torch.linalg.pinv(W) @ b).float()
    # Checked as it will be used, after rounding to float32.
    error = (W @ (folded.double() - s) - b).abs().max()
    return folded if error <= 1e-6 * max(1.0, float(b.abs().max())) else None


def _their_config(model: GPT2, has_tokenizer: bool) -> dict[str, Any]:
    end = model.tokenizer.eot_token if has_tokenizer else model.config.vocab_size - 1
    values = config_to_hugging_face(model.config, end)
    if model.classes is None:
        return {**values, "architectures": ["GPT2LMHeadModel"]}
    names = [str(label) for label in model.classes]
    if len(set(names)) < len(names):  # 1 and "1" have one text between them
        names = [repr(label) for label in model.classes]
    return {
        **values,
        "architectures": ["GPT2ForSequenceClassification"],
        "problem_type": "single_label_classification",
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
    }


def _tokenizer_files(model: GPT2) -> dict[str, str]:
    """The tokenizer's files by name, or none where it cannot be had or has another layout than GPT-2's."""
    try:
        return tokenizer_files(model.tokenizer, model.config.context_length)
    except (OSError, ValueError) as error:
        logger.warning("saved without its tokenizer: %s", error)
        return {}


def _digest(parameters: Mapping[str, Tensor]) -> str:
    """A mark of the content: equal models save equal files."""
    digest = hashlib.sha256()
    for name, tensor in parameters.items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().numpy().view("uint8").data)
    return digest.hexdigest()


def _to_json(values: Mapping[str, Any]) -> str:
    # ASCII: a label may hold a lone surrogate, which UTF-8 cannot.
    return json.dumps(values, indent=2) + "\n"
