"""`gptclf.json`: everything about a saved model but its tensors, checked when it is read."""

import errno
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gptclf.files.atomic import Writer, text_writer
from gptclf.files.digest import changed, check_digests, file_digests
from gptclf.files.json_file import read_json, to_json
from gptclf.gpt2.classifier import HeadSource, build_head
from gptclf.gpt2.config import GPT2Config
from gptclf.gpt2.heads import Head, head_from_record
from gptclf.gpt2.model import GPT2
from gptclf.preparation import Preparation
from gptclf.tasks import Task, task_from_record
from gptclf.version import __version__
from gptclf.weights.folders import CONFIG, WEIGHTS

# The key of the mark that all files of one save share, so that a mixture of two saves is noticed.
SAVE_MARK = "gptclf_save"
_DIGEST = "sha256"
_FORMAT = 1

# The tensors that Hugging Face's format holds in another form or not at all.
ORIGINALS = "gptclf.safetensors"


@dataclass(frozen=True)
class Record:
    """A saved model's record.

    Attributes:
        config: The model's shape.
        task: The record of the task.
        head: The record of the head; None for a language model.
        preparation: How texts were prepared.
        base: Name of the published weights that the model started from.
        mark: The mark that all files of one save share.
        originals: Names of the tensors in our own file.
        exported: Whether the folder is also in Hugging Face's layout.
        trainable: Names of the trainable parameters.
        files: The SHA-256 of each other file of the save; earlier versions wrote none.
        tokenizer_refused: Why the model was saved without its tokenizer, if that is not GPT-2's.
    """

    config: GPT2Config
    task: Mapping[str, Any]
    head: Mapping[str, Any] | None
    preparation: Preparation
    base: str | None
    mark: str
    originals: list[str]
    exported: bool
    trainable: set[str]
    files: Mapping[str, str]
    tokenizer_refused: str | None = field(default=None, kw_only=True)

    @property
    def tensor_files(self) -> list[str]:
        """The files that hold the tensors."""
        return [WEIGHTS] * self.exported + [ORIGINALS] * bool(self.originals)

    @property
    def head_tensors(self) -> list[str]:
        """The tensors of a head in our own file."""
        return sorted({name for name in self.originals if name.startswith("head.")})


def write_record(model: GPT2, *, mark: str, originals: list[str], exported: bool) -> dict[str, Any]:
    """Return the record of a model as it will be saved.

    Raises:
        ValueError: The task would not be the same after loading, such as one with two labels of equal text.
    """
    model.task.check_saved()
    task, head = model.task.record(), model.head.record()
    return {
        "format": _FORMAT,
        "gptclf_version": __version__,
        SAVE_MARK: mark,
        "config": model.config.to_dict(),
        "task": task,
        # The classes are repeated here, where earlier versions read them.
        "head": None if head is None else {key: task[key] for key in ("classes",) if key in task} | head,
        "base": model.base,
        **vars(model.preparation),
        "trainable": [name for name, parameter in model.named_parameters() if parameter.requires_grad],
        "originals": originals,
        "exported": exported,
    }


def record_writer(values: Mapping[str, Any], others: Collection[str]) -> Writer:
    """Return the writer of a record with digests of itself and of the other files of its save, which lie beside it."""

    def write(path: Path) -> None:
        digests = file_digests(*(path.parent / name for name in sorted(others)))
        whole = {**values, "files": dict(zip(sorted(others), digests, strict=True))}
        text_writer(to_json({**whole, _DIGEST: _digest(whole)}))(path)

    return write


def _digest(values: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in values.items() if key != _DIGEST}
    return hashlib.sha256(json.dumps(rest).encode()).hexdigest()


def check_files(folder: Path, record: Record) -> None:
    """Compare the files of a save with their digests.

    Raises:
        FileNotFoundError: One is missing that the model is read from.
        ValueError: One has another content.
    """
    missing = [name for name in record.files if name != CONFIG and not (folder / name).exists()]
    if missing:
        problem = f"{folder / missing[0]} does not exist, but belongs to the model"
        raise FileNotFoundError(errno.ENOENT, f"{problem}. Copy the whole folder, or load it with verify=False")
    check_digests(folder, record.files)


@contextmanager
def damaged(source: Path) -> Iterator[None]:
    """Re-raise a ValueError or TypeError about values in a file as a ValueError that names the file."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise ValueError(f"{source}: {error}; the file is damaged") from error


def read_record(source: Path, *, verify: bool = True) -> Record:
    """Return the record in a file.

    Args:
        source: The file.
        verify: Whether to compare its content with its digest.

    Raises:
        ValueError: A key is missing, a value is not valid, or the content is not what was written.
    """
    values = read_json(source)
    if values.get("format") != _FORMAT:
        problem = f"{source} has format {values.get('format')!r}; this version of gptclf reads format {_FORMAT}"
        raise ValueError(f"{problem}. A newer gptclf wrote it (upgrade), or it is damaged")
    with damaged(source):
        config = GPT2Config.from_dict(get_value(values, "config", dict))
        head = get_value(values, "head", dict, type(None))
        task = values.get("task")
        if task is None:  # written by a version without tasks
            task = {"kind": "next_token", "n_outputs": config.vocab_size}
            task = task if head is None else {"kind": "single_label", "classes": get_value(head, "classes", list)}
        if not isinstance(task, dict):
            raise ValueError(f"task is {task!r}, not dict")
        kinds = {"max_length": (int, type(None)), "truncation": (str,), "pad_to": (int, type(None))}
        base, files, refused = values.get("base"), values.get("files", {}), values.get("tokenizer_refused")
        if not isinstance(files, dict) or not all(Path(name).name == name for name in files):
            raise ValueError(f"files is {files!r}, not names in this folder with digests")
        record = Record(
            config=config,
            task=task,
            head=head,
            preparation=Preparation(**{key: get_value(values, key, *allowed) for key, allowed in kinds.items()}),
            base=base if isinstance(base, str) else None,
            mark=get_value(values, SAVE_MARK, str),
            originals=names_in(values, "originals"),
            exported=get_value(values, "exported", bool),
            trainable=set(names_in(values, "trainable")),
            files=files,
            tokenizer_refused=refused if isinstance(refused, str) else None,
        )
    if verify and values.get(_DIGEST, digest := _digest(values)) != digest:
        raise ValueError(changed(source))
    return record


def is_task(task: Task, record: Record) -> bool:
    """Return True if a record describes this task."""
    return bool(json.loads(json.dumps(task.record())) == record.task)  # as a file holds it: a tuple is a list there


def task_of(record: Record, given: Task | None, file: Path) -> Task:
    """Return the task that a record describes: a new one, or the user's own, which must be that task."""
    source = file.parent
    with damaged(file):
        task = task_from_record(record.task)
    if given is None:
        if task is None:
            kind = record.task.get("kind")
            raise ValueError(f"{source} was saved with a task of the kind {kind!r}; give task= an object of its class")
        return task
    if not isinstance(given, Task):
        raise TypeError(f"task is a {type(given).__name__}; it must be a gptclf.Task")
    if not is_task(given, record):
        raise ValueError(f"task is {given}, but {source} was saved with {dict(record.task)}; give the same task")
    return given


def head_of(record: Record, given: HeadSource | None, task: Task, file: Path) -> Head | None:
    """Return the head that a record describes, without its tensors, or the user's own; None for a language model."""
    source = file.parent
    if record.head is None:
        if given is not None:
            raise ValueError(f"{source} holds a language model, which has no head of yours; leave head= out")
        return None
    with damaged(file):
        own = head_from_record(record.head, record.config.emb_dim, task.n_outputs)
    if own is not None:
        if given is not None:
            raise ValueError(f"{source} was saved with the standard head; leave head= out")
        return own
    kind = record.head.get("class")
    if given is None:
        raise ValueError(f"{source} was saved with a head of the class {kind!r}; give it: load_model(..., head={kind})")
    head = build_head(given, record.config, task.n_outputs)
    saved = record.head_tensors
    found = sorted(f"head.{name}" for name in head.state_dict())
    if saved != found:
        problem = f"{source} was saved with a {kind} whose tensors are {saved}"
        raise ValueError(f"{problem}, but head= gives a {type(head).__name__} with {found}; give the same head")
    return head


def check_tensors_named(record: Record, parameters: set[str], others: set[str]) -> None:
    """Raise if a record names tensors that its model does not have, or lacks some that no other file holds.

    Args:
        record: The record.
        parameters: Names of the model's parameters.
        others: Names of its other tensors.
    """
    saved = set(record.originals)
    for key, wrong in (("originals", saved - parameters - others), ("trainable", record.trainable - parameters)):
        if wrong:
            raise ValueError(f"{key} names {sorted(wrong)[:3]}, which the model does not have")
    if record.exported and not parameters & {"head.output.bias"} <= saved:
        raise ValueError("originals lacks head.output.bias, which Hugging Face's file cannot hold")
    if not record.exported and saved != parameters | others:
        raise ValueError("the folder holds our own file only, but that does not hold every parameter")


def names_in(values: Mapping[str, Any], key: str) -> list[str]:
    """Return the names under a key, or raise a ValueError if there is something else."""
    found = get_value(values, key, list)
    wrong = [name for name in found if not isinstance(name, str)]
    if wrong:
        raise ValueError(f"{key} names {wrong[:3]}, which are not strings")
    return list(found)


def get_value(values: Mapping[str, Any], key: str, *kinds: type) -> Any:
    """Return the value under a key, or raise a ValueError if it is missing or of none of these types."""
    if key not in values:
        raise ValueError(f"it lacks {key!r}")
    value = values[key]
    if type(value) not in kinds:  # not isinstance: true is not a number here
        raise ValueError(f"{key} is {value!r}, not {' or '.join(kind.__name__ for kind in kinds)}")
    return value
