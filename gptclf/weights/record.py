"""`gptclf.json`: what a saved model is beside its tensors, checked when it is read."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from gptclf.gpt2.config import GPT2Config
from gptclf.gpt2.heads import ClassifierHead
from gptclf.gpt2.model import GPT2
from gptclf.preparation import Preparation

logger = logging.getLogger(__name__)

# The key under which every file of one save carries the same mark, so that a mixture of two saves is noticed.
MARK = "gptclf_save"
_FORMAT = 1

# The record itself, and the parameters that Hugging Face's format holds in another form.
OURS = "gptclf.json"
ORIGINALS = "gptclf.safetensors"


@dataclass(frozen=True)
class Record:
    """A saved model's record.

    Attributes:
        model: The model it describes, built on the meta device, with its text settings.
        mark: What every file of the same save carries.
        originals: Parameters that lie in our own file.
        exported: Whether the folder is Hugging Face's, too.
        trainable: Names of the parameters that trained.
    """

    model: GPT2
    mark: str
    originals: list[str]
    exported: bool
    trainable: set[str]


def write_record(model: GPT2, *, mark: str, originals: list[str], exported: bool) -> dict[str, Any]:
    """The record of a model as it will be saved.

    Raises:
        ValueError: Two labels would be saved as one.
    """
    head = model.head
    try:
        made_by = version("gptclf")
    except PackageNotFoundError:  # run from a source tree that is not installed
        made_by = "unknown"
    record: dict[str, Any] = {
        "format": _FORMAT,
        "gptclf_version": made_by,
        MARK: mark,
        "config": model.config.to_dict(),
        "head": None,
        "base": model.base,
        "max_length": model.max_length,
        "truncation": model.truncation,
        "pad_to": model.pad_to,
        "trainable": [name for name, parameter in model.named_parameters() if parameter.requires_grad],
        "originals": originals,
        "exported": exported,
    }
    if isinstance(head, ClassifierHead):
        labels = [_label_to_json(label) for label in head.classes]
        names = [_label_from_json(label) for label in labels]
        for i, name in enumerate(names):
            if name in names[:i]:
                raise ValueError(
                    f"the labels {head.classes[names.index(name)]!r} and {head.classes[i]!r} would both be saved as "
                    f"{name!r}; train with labels that are strings, numbers or tuples"
                )
        record["head"] = {"classes": labels, "pooling": head.pooling, "bias": head.output.bias is not None}
    return record


def read_record(values: Mapping[str, Any], *, source: Path) -> Record:
    """The record out of the object in a file.

    Raises:
        ValueError: Anything in it is missing or is not what it can be.
    """
    if values.get("format") != _FORMAT:
        raise ValueError(
            f"{source} has format {values.get('format')!r}; this version of gptclf reads format {_FORMAT}. "
            "A newer gptclf wrote it (upgrade), or it is damaged"
        )
    try:
        head = _get(values, "head", dict, type(None))
        settings = {}
        if head is not None:
            settings = {
                "classes": [_label_from_json(label) for label in _get(head, "classes", list)],
                "pooling": _get(head, "pooling", str),
                "head_bias": _get(head, "bias", bool),
            }
        model = GPT2(GPT2Config.from_dict(_get(values, "config", dict)), device="meta", **settings)
        model.preparation = Preparation(
            _get(values, "max_length", int, type(None)),
            _get(values, "truncation", str),
            _get(values, "pad_to", int, type(None)),
        )
        model.base = values.get("base") if isinstance(values.get("base"), str) else None
        names = {name for name, _ in model.named_parameters()}
        lists = {key: _get(values, key, list) for key in ("originals", "trainable")}
        for key, found in lists.items():
            wrong = [name for name in found if not isinstance(name, str) or name not in names]
            if wrong:
                raise ValueError(f"{key} names {wrong[:3]}, which the model does not have")
        exported = _get(values, "exported", bool)
        if exported and not names & {"head.output.bias"} <= set(lists["originals"]):
            raise ValueError("originals lacks head.output.bias, which Hugging Face's file cannot hold")
        if not exported and set(lists["originals"]) != names:
            raise ValueError("the folder holds our own file only, but that does not hold every parameter")
        return Record(model, _get(values, MARK, str), lists["originals"], exported, set(lists["trainable"]))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{source}: {error}; the file is damaged") from error


def _get(values: Mapping[str, Any], key: str, *kinds: type) -> Any:
    if key not in values:
        raise ValueError(f"it lacks {key!r}")
    value = values[key]
    if type(value) not in kinds:  # not isinstance: true is no number here
        raise ValueError(f"{key} is {value!r}, not {' or '.join(kind.__name__ for kind in kinds)}")
    return value


def _label_to_json(label: Any) -> Any:
    """A label with its type: JSON's own kinds as they are, a tuple as {"tuple": [...]}, others by their text."""
    if isinstance(label, str | bool | int | float):
        return label
    if isinstance(label, tuple):
        return {"tuple": [_label_to_json(part) for part in label]}
    logger.warning("label %r (%s) is saved as the text %r", label, type(label).__name__, str(label))
    return str(label)


def _label_from_json(value: Any) -> Any:
    if isinstance(value, dict):
        return tuple(_label_from_json(part) for part in _get(value, "tuple", list))
    if not isinstance(value, str | bool | int | float):
        raise ValueError(f"a label is {value!r}, not a text, a number or a tuple of them")
    return value
