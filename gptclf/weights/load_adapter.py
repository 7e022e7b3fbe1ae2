"""`load_adapter`: puts a LoRA adapter, saved by gptclf or by PEFT, on the model that it was trained on."""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from gptclf import checks
from gptclf.files.json_file import read_json
from gptclf.files.safetensors_file import read_safetensors
from gptclf.files.torch_file import read_torch_file
from gptclf.gpt2.classifier import HeadSource
from gptclf.gpt2.heads import ClassifierHead
from gptclf.gpt2.layers import Linear
from gptclf.gpt2.lora import check_no_factors, place
from gptclf.gpt2.lora_linear import LoRALinear
from gptclf.gpt2.model import GPT2, check_gpt2
from gptclf.gpt2.sharing import borrow, own_parameters, set_parameter
from gptclf.hub.download import hub_file
from gptclf.tasks import SingleLabel, Task
from gptclf.weights.adapter_record import (
    ADAPTER,
    ADAPTER_ORIGINALS,
    PEFT_CONFIG,
    PEFT_TORCH_WEIGHTS,
    PEFT_WEIGHTS,
    AdapterRecord,
    base_digest,
    bits_of,
    plain,
    read_adapter_record,
)
from gptclf.weights.hugging_face import check_tensors, shape_problems
from gptclf.weights.locate import fetch_optional, hub_name
from gptclf.weights.peft_config import (
    SEQ_CLS,
    Contents,
    PeftConfig,
    layer_names,
    layer_of,
    peft_names,
    read_peft_config,
)
from gptclf.weights.record import SAVE_MARK, damaged, head_of, task_of

logger = logging.getLogger(__name__)

_PREFIX = "base_model.model."
# The head's layer in PEFT's files, by the name of its matrix there.
_TRUNK = "transformer."


@dataclass(frozen=True)
class AdapterFiles:
    """An adapter's files, opened but not read.

    Attributes:
        folder: Where they are.
        record: Our record; None if PEFT wrote the folder.
        config: PEFT's configuration; None if PEFT cannot hold the adapter.
    """

    folder: Path
    record: AdapterRecord | None
    config: PeftConfig | None

    @property
    def base(self) -> str | None:
        """The name or folder of the base, as PEFT's file gives it, which a user may have changed, or else ours."""
        named = None if self.config is None else self.config.base
        return named or (None if self.record is None else self.record.base)


def load_adapter(
    model: GPT2, folder: str | Path, *, revision: str | None = None, cache_dir: str | Path | None = None
) -> GPT2:
    """Put a LoRA adapter that `save_adapter` or PEFT wrote on its base: a new model over the same tensors.

    Args:
        model: The base, without factors: a language model, or a classifier. A language model becomes a classifier if
            the adapter is one's; its labels are those in gptclf's file, or LABEL_0, LABEL_1, ... A classifier keeps its
            labels, and its head is replaced by the adapter's. `model` never changes.
        folder: The adapter's folder, or a hub repository "owner/name".
        revision: Branch, tag or commit of a hub repository; None is "main".
        cache_dir: The hub cache to use instead of Hugging Face's own.

    Returns:
        The model in eval mode. The parameters that were trainable when it was saved are trainable again; of an adapter
        that PEFT wrote, all that it holds. A base with other weights or in other bits than in training is warned of.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: The adapter is of another method than LoRA or of another model, a file is damaged, or a tensor is
            missing, left over or of another shape.

    Example:
        >>> import tempfile
        >>> from gptclf import add_classifier_head, apply_lora, load_gpt2, save_adapter
        >>> gpt2 = load_gpt2("nano")
        >>> clf = apply_lora(add_classifier_head(gpt2, classes=["ham", "spam"], bias=False, seed=1), seed=1)
        >>> load_adapter(gpt2, save_adapter(clf, tempfile.mkdtemp(), base="nano")).classes
        ['ham', 'spam']
    """
    check_gpt2(model)
    place = checks.path("folder", folder)
    if not place.is_dir():
        repo = hub_name(folder)
        found = None if repo is None else fetch_adapter(repo, revision, cache_dir)
        if found is None:
            raise FileNotFoundError(f"{folder} holds no adapter; give a folder or hub repository with {PEFT_CONFIG}")
        place = found
    elif revision is not None:
        raise ValueError(f"revision={revision!r} belongs to a hub repository; {place} is local")
    return put_on(model, open_adapter(place))


def is_adapter(folder: Path) -> bool:
    """Return True if a folder holds an adapter."""
    return any((folder / name).is_file() for name in (PEFT_CONFIG, ADAPTER))


def fetch_adapter(repo: str, revision: str | None, cache_dir: str | Path | None) -> Path | None:
    """Return the cache folder with a repository's adapter, or None if it has none."""
    marks = [fetch_optional(repo, name, revision, cache_dir) for name in (PEFT_CONFIG, ADAPTER)]
    found = next(filter(None, marks), None)
    if found is None:
        return None
    # The same commit, so that a push between two downloads cannot mix versions.
    held = [fetch_optional(repo, name, found.parent.name, cache_dir) for name in (PEFT_WEIGHTS, ADAPTER_ORIGINALS)]
    if held[0] is None and marks[0] is not None:
        hub_file(repo, PEFT_TORCH_WEIGHTS, revision=found.parent.name, cache_dir=cache_dir)
    return found.parent


def open_adapter(folder: Path) -> AdapterFiles:
    """Read and check everything about an adapter but its tensors."""
    if not is_adapter(folder):
        raise FileNotFoundError(f"{folder} holds neither {PEFT_CONFIG} nor {ADAPTER}; give an adapter's folder")
    record = read_adapter_record(folder / ADAPTER) if (folder / ADAPTER).is_file() else None
    config = None
    if record is None or record.exported:
        values = read_json(folder / PEFT_CONFIG)
        try:
            config = read_peft_config(values)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{folder / PEFT_CONFIG}: {error}") from error
    return AdapterFiles(folder, record, config)


def put_on(model: GPT2, files: AdapterFiles, head: HeadSource | None = None, task: Task | None = None) -> GPT2:
    """Return a new model over the tensors of `model` with an adapter on it; `head` and `task` are the user's own."""
    check_no_factors(model)
    tensors, originals = _read(files)
    adapted = borrow(model)
    kind = _put_head(adapted, files, tensors, head, task)
    names = layer_names(model.config, kind)
    parameters = [name for name, _ in adapted.named_parameters()]
    if files.record is not None:
        contents = Contents(files.record.layers, files.record.extras)
        trainable = files.record.trainable
    else:
        prefix = "" if any(name.startswith(_TRUNK) for name in tensors) else _TRUNK
        contents = files.config.contents(names, parameters, prefix)  # type: ignore[union-attr]
        tensors = {
            (name if name in ("score.weight",) or not prefix else prefix + name): t for name, t in tensors.items()
        }
        trainable = set()
    _check_size(files, model, tensors)
    return _fill(adapted, files, contents, tensors, originals)
