"""The files of an adapter: finding, opening and reading them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from gptclf.files.json_file import read_json
from gptclf.files.safetensors_file import read_safetensors
from gptclf.files.torch_file import read_torch_file
from gptclf.hub.download import hub_file
from gptclf.saving.adapter_record import (
    ADAPTER,
    ADAPTER_ORIGINALS,
    PEFT_CONFIG,
    PEFT_TORCH_WEIGHTS,
    PEFT_WEIGHTS,
    AdapterRecord,
    Factors,
    read_adapter_record,
)
from gptclf.saving.peft_config import PeftConfig, read_peft_config
from gptclf.saving.record import SAVE_MARK, check_files
from gptclf.weights.locate import fetch_optional

# The start of PEFT's names, and what follows it unless the adapter was trained on the model without a head.
PREFIX = "base_model.model."
TRUNK = "transformer."


@dataclass(frozen=True)
class AdapterFiles:
    """An adapter's files, opened but not read.

    Attributes:
        folder: Where they are.
        record: Our record; None if PEFT wrote the folder.
        config: PEFT's configuration; None if PEFT cannot hold the adapter.
        verify: Whether to compare the files with the digests in our record.
    """

    folder: Path
    record: AdapterRecord | None
    config: PeftConfig | None
    verify: bool = True

    @property
    def base(self) -> str | None:
        """The name or folder of the base, as PEFT's file gives it, which a user may have changed, or else ours."""
        named = None if self.config is None else self.config.base
        return named or (None if self.record is None else self.record.base)

    def read(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the tensors of PEFT's file, without "base_model.model.", and of ours."""
        theirs: dict[str, Tensor] = {}
        originals: dict[str, Tensor] = {}
        marks = {}
        if self.config is not None:
            path = self.folder / PEFT_WEIGHTS
            if path.is_file() or not (self.folder / PEFT_TORCH_WEIGHTS).is_file():
                tensors, metadata = read_safetensors(path)
                marks[path] = metadata.get(SAVE_MARK)
            else:
                tensors = read_torch_file(self.folder / PEFT_TORCH_WEIGHTS)
            theirs = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
        if self.record is not None and self.record.originals:
            path = self.folder / ADAPTER_ORIGINALS
            originals, metadata = read_safetensors(path)
            marks[path] = metadata.get(SAVE_MARK)
        wrong = [path for path, mark in marks.items() if self.record is not None and mark != self.record.mark]
        if wrong:
            problem = f"{wrong[0]} and {ADAPTER} come from different saves; a save was interrupted or a file replaced"
            raise ValueError(f"{problem}. Save the adapter again, or delete {ADAPTER} to load PEFT's files alone")
        if self.record is not None and self.verify:
            check_files(self.folder, self.record)
        return theirs, originals


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


def open_adapter(folder: Path, *, verify: bool = True) -> AdapterFiles:
    """Read and check everything about an adapter but its tensors."""
    if not is_adapter(folder):
        raise FileNotFoundError(f"{folder} holds neither {PEFT_CONFIG} nor {ADAPTER}; give an adapter's folder")
    record = read_adapter_record(folder / ADAPTER, verify=verify) if (folder / ADAPTER).is_file() else None
    config = None
    if record is None or record.exported:
        values = read_json(folder / PEFT_CONFIG)
        try:
            config = read_peft_config(values)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{folder / PEFT_CONFIG}: {error}") from error
    return AdapterFiles(folder, record, config, verify)


def check_ranks(source: Path, layers: Mapping[str, Factors], tensors: Mapping[str, Tensor]) -> None:
    """Raise if a layer has more rows of factors than any tensor in the files, before they are made."""
    most = max((n for tensor in tensors.values() for n in tensor.shape), default=0)
    if wrong := [path for path, options in layers.items() if options.rank > most]:
        rank = layers[wrong[0]].rank
        raise ValueError(f"{source}: {wrong[0]} has rank {rank:,}, but no tensor has more than {most:,} rows")
