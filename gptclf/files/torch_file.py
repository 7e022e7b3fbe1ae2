"""Reading the tensors of a file that `torch.save` wrote (.pth, .pt, .bin), without running any code in it.

Such a file is a pickle, which can name any function to be called. PyTorch's restricted unpickler (`weights_only=True`)
builds tensors and plain containers and refuses everything else; there is no fallback to the unrestricted one.
"""

import mmap
import re
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from gptclf.files.access import readable_size

# Keys under which training scripts save the parameters, next to the state of their optimizer.
_HOLDERS = ("model_state_dict", "state_dict", "model")

# Other keys of such scripts whose values may contain tensors that are not part of the model.
_STATES = re.compile(r".*(optim|sched|scaler|rng|callback|loop|loss|history|metric|step|epoch).*", re.IGNORECASE)

# Parts of a name that module wrappers add: torch.compile and FSDP anywhere, DataParallel at the start.
_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}

_STARTS = (
    (b"version https://git-lfs", "is a git-lfs pointer to the real file; download that with: git lfs pull"),
    (b"<", "is a web page, not weights: the download needed a login or another address. Download the file again"),
    (b"{", "is JSON, not a file that torch.save wrote"),
    (b"GGUF", "is a GGUF file, which gptclf does not read"),
    (b"\x89HDF", "is an HDF5 (Keras) file, not one that torch.save wrote"),
)

# Patterns in the restricted unpickler's messages, and the reason to report for each.
_REFUSED = (
    (r"TorchScript archives", "it is a TorchScript program"),
    (r"GLOBAL (\S+) (?:was not an allowed|whose module)", r"it names \1"),
    (
        r"call reduce|Can only (?:create new object|build)|must be imported to load",
        "it calls a function that does not build a tensor",
    ),
)

# What reading a damaged or hostile file raises, in zipfile, in PyTorch's unpickler and in what that calls.
_FAILURES = (
    *(OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, AssertionError, ArithmeticError),
    *(EOFError, ImportError, UnpicklingError, struct.error, zipfile.BadZipFile),
)

# Bytes that a file which was compressed afterwards may have more than on the disk; torch.save compresses nothing.
_MOST_PACKED = 50 << 20

# A call that makes as many bytes as a number says; no tensor needs it.
_GROWING = re.compile(rb"c(?:__builtin__|builtins)\nbytearray\n")


def read_torch_file(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a model in a file that `torch.save` wrote, on the CPU.

    The file may hold a state dict, or a dictionary with a state dict under "model_state_dict", "state_dict" or "model",
    for example next to the state of an optimizer. Prefixes that wrappers add to names ("_orig_mod." of torch.compile,
    "module." of DataParallel) are removed.

    The file is read into memory, not mapped: `torch.save` overwrites files in place, which would corrupt the tensors of
    a model that maps one.

    Raises:
        OSError: The file does not exist, may not be read, or is not a regular file.
        ValueError: Opening the file would run code, or it is damaged (by the CRC-32 of its parts), of another kind,
            claims more than its bytes hold, or holds more than the tensors of a model.

    Example:
        >>> _ = torch.save({"model_state_dict": {"a": torch.ones(2)}, "epoch": 3}, "model.pth")
        >>> read_torch_file(Path("model.pth"))
        {'a': tensor([1., 1.])}
    """
    content = _load(path)
    if isinstance(content, Tensor) or not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, not tensors by name; save model.state_dict()")
    holders = [name for name in _HOLDERS if isinstance(content.get(name), Mapping)]
    if len(holders) > 1:
        raise ValueError(f"{path} holds parameters under {' and '.join(holders)}; save only one of them")
    if holders:
        # Numbers and strings next to the model are harmless; tensors under an unknown key might belong to the model.
        other = [
            str(name)
            for name, value in content.items()
            if name != holders[0] and _holds_tensor(value) and not _STATES.fullmatch(str(name))
        ]
        if other:
            keys = f"under keys that gptclf does not know: {', '.join(other[:6])}"
            raise ValueError(f"{path} holds tensors next to {holders[0]!r}, {keys}; save only {holders[0]!r}")
        content = content[holders[0]]
    if not content:
        raise ValueError(f"{path} holds no tensors")
    wrong = [
        f"{name} ({value.layout if isinstance(value, Tensor) else type(value).__name__})"
        for name, value in content.items()
        if not _is_plain(name, value)
    ]
    if wrong:
        shown = ", ".join(wrong[:6] + ["..."] * (len(wrong) > 6))
        problem = f"{path} holds, in addition to {len(content) - len(wrong)} tensors, {shown}"
        raise ValueError(f"{problem}; it is not the state dict of a model. Save model.state_dict()")
    _check_extent(path, content)
    return unwrap_names({name: value.detach() for name, value in content.items()}, source=str(path))


def _check_extent(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise if tensors are larger than their bytes in the file, which a view without strides can be."""
    total, size = 0, path.stat().st_size
    for name, tensor in tensors.items():
        total += tensor.nbytes
        # A tied matrix may be there under two names.
        if tensor.nbytes > tensor.untyped_storage().nbytes() or total > 2 * size + _MOST_PACKED:
            claimed = f"{name} {tuple(tensor.shape)} and the tensors before it claim {total:,} bytes"
            raise ValueError(f"{path} holds {size:,} bytes, but {claimed}; save them with .contiguous()")


def unwrap_names(tensors: Mapping[str, Tensor], *, source: str) -> dict[str, Tensor]:
    """Remove the prefixes of torch.compile (`_orig_mod.`), DataParallel (`module.`) and FSDP from tensor names.

    Raises:
        ValueError: Two tensors would get the same name.

    Example:
        >>> list(unwrap_names({"module._orig_mod.wte.weight": torch.ones(1)}, source="here"))
        ['wte.weight']
    """
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        parts = [part for part in name.split(".") if part not in _WRAPPERS]
        while len(parts) > 1 and parts[0] == "module":
            del parts[0]
        plain = ".".join(parts)
        if plain in result:
            raise ValueError(f"{source} holds {plain} twice, with and without a wrapper's prefix; keep one of them")
        result[plain] = tensor
    return result


def _load(path: Path) -> Any:
    size = readable_size(path)
    with path.open("rb") as file:
        start = file.read(64)
    if not size:
        raise ValueError(f"{path} is empty; download or save it again")
    for magic, what in _STARTS:
        if start.lstrip().startswith(magic):
            raise ValueError(f"{path} {what}")
    try:
        _check_bytes(path, size, start)
        return torch.load(path, map_location="cpu", weights_only=True)
    except _FAILURES as error:
        # "from None", because PyTorch's own message advises running the file.
        found = ((re.search(pattern, str(error)), what) for pattern, what in _REFUSED)
        refused = next((match.expand(what) for match, what in found if match), "")
        if refused:
            raise ValueError(
                f"{path} would run code when opened: {refused}. Nothing was run. It holds a pickled model or other "
                "objects, not just tensors. If you trust its author, open it where it was made and save the tensors "
                'there: torch.save(model.state_dict(), "weights.pth")'
            ) from None
        reason = str(error).strip().rpartition("WeightsUnpickler error:")[2].strip().partition("\n")[0]
        raise ValueError(
            f"{path} ({size:,} bytes) is not a complete torch.save file ({type(error).__name__}: {reason[:200]}); "
            "it is truncated, damaged or of another kind. Download or save it again"
        ) from None


def _check_bytes(path: Path, size: int, start: bytes) -> None:
    """Raise a ValueError if the file would become larger than it is, or a part of it does not match its CRC-32."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if _GROWING.search(content):
            raise ValueError("it makes bytearrays, which no tensor needs")
    if start.startswith(b"PK"):
        with zipfile.ZipFile(path) as archive:
            if (claimed := sum(part.file_size for part in archive.infolist())) > size + _MOST_PACKED:
                raise ValueError(f"its parts claim {claimed:,} bytes")
            if (damaged := archive.testzip()) is not None:
                raise ValueError(f"the CRC-32 of {damaged} does not match")


def _is_plain(name: Any, value: Any) -> bool:
    strided = isinstance(name, str) and isinstance(value, Tensor) and value.layout is torch.strided
    return strided and not (value.is_quantized or value.is_meta)


def _holds_tensor(value: Any) -> bool:
    waiting, seen = [value], set()
    while waiting:  # not recursive: a file may nest deeply, or contain itself
        item = waiting.pop()
        if isinstance(item, Tensor):
            return True
        if id(item) not in seen and isinstance(item, Mapping | list | tuple | set):
            seen.add(id(item))
            waiting.extend(item.values() if isinstance(item, Mapping) else item)
    return False
