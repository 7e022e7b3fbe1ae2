"""Reads the tensors of a file that `torch.save` wrote (.pth, .pt, .bin) and runs nothing that it holds.

Such a file is a pickle, which can name any function to be called. Torch's restricted unpickler (`weights_only=True`)
puts together tensors and plain containers and refuses everything else; nothing here falls back to another.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# Where training scripts put the parameters beside their optimizer's state.
_HOLDERS = ("model_state_dict", "state_dict", "model")

# What else such scripts keep that has tensors in it and is no part of the model.
_STATES = re.compile(r".*(optim|sched|scaler|rng|callback|loop|loss|history|metric|step|epoch).*", re.IGNORECASE)

# Parts of a name that wrappers of a module add: torch.compile and FSDP anywhere, DataParallel in front.
_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}

_STARTS = (
    (b"version https://git-lfs", "is a git-lfs pointer to the real file; fetch that with: git lfs pull"),
    (b"<", "is a web page, not weights: a download that needed a login or another address. Fetch the file again"),
    (b"{", "is JSON, not a file of torch.save"),
    (b"GGUF", "is a GGUF file, which gptclf does not read"),
    (b"\x89HDF", "is an HDF5 (Keras) file, not one of torch.save"),
)


def read_torch_file(path: Path) -> dict[str, Tensor]:
    """The tensors of a model in a file of `torch.save`, on the CPU, read as a whole.

    Not memory-mapped: `torch.save` writes over a file in place, and a mapped one would fall to pieces under the model.

    They may stand bare (a state dict) or under "model_state_dict", "state_dict" or "model" beside an optimizer's
    state. Prefixes of wrappers ("_orig_mod." of torch.compile, "module." of DataParallel) are taken off.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file wants to run code, is damaged or of another kind, or holds more than a model's tensors.

    Example:
        >>> _ = torch.save({"model_state_dict": {"a": torch.ones(2)}, "epoch": 3}, "model.pth")
        >>> read_torch_file(Path("model.pth"))
        {'a': tensor([1., 1.])}
    """
    path = Path(path)
    content = _load(path)
    if isinstance(content, Tensor) or not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, not tensors by name; save model.state_dict()")
    holders = [name for name in _HOLDERS if isinstance(content.get(name), Mapping)]
    if len(holders) > 1:
        raise ValueError(f"{path} holds parameters under {' and '.join(holders)}; save one of them on its own")
    if holders:
        # Numbers and texts beside the model change nothing; tensors of an unknown kind might have to be in it.
        other = [
            str(name)
            for name, value in content.items()
            if name != holders[0] and _holds_tensor(value) and not _STATES.fullmatch(str(name))
        ]
        if other:
            raise ValueError(
                f"{path} holds tensors beside {holders[0]!r}, under {', '.join(other[:6])}, unknown to gptclf; "
                f"save the content of {holders[0]!r} on its own"
            )
        content = content[holders[0]]
    if not content:
        raise ValueError(f"{path} holds no tensors")
    wrong = [f"{name} ({_kind(value)})" for name, value in content.items() if not _is_plain(name, value)]
    if wrong:
        raise ValueError(
            f"{path} holds, beside {len(content) - len(wrong)} tensors, {', '.join(wrong[:6])}"
            f"{', ...' if len(wrong) > 6 else ''}; it is no state dict of a model. Save model.state_dict()"
        )
    return unwrap_names({name: value.detach() for name, value in content.items()}, source=str(path))


def unwrap_names(tensors: Mapping[str, Tensor], *, source: str) -> dict[str, Tensor]:
    """Tensors without what torch.compile (`_orig_mod.`), DataParallel (`module.`) and FSDP put into their names.

    Raises:
        ValueError: Two tensors would have one name.

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
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist") from None
    size = path.stat().st_size
    if not size:
        raise ValueError(f"{path} is empty; fetch or save it again")
    for magic, what in _STARTS:
        if start.lstrip().startswith(magic):
            raise ValueError(f"{path} {what}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # a damaged or hostile pickle can make anything of its unpickler
        # Raised from none: torch's own words advise to run the file.
        refused = _refused(str(error))
        if refused:
            raise ValueError(
                f"{path} wants to run code when it is opened: {refused}. Nothing of it was run. It holds a whole "
                "pickled model or other objects, not tensors alone. If you trust who made it, open it where it was "
                'made and save its tensors there: torch.save(model.state_dict(), "weights.pth")'
            ) from None
        reason = str(error).strip().rpartition("WeightsUnpickler error:")[2].strip().partition("\n")[0]
        raise ValueError(
            f"{path} ({size:,} bytes) is not a whole file of torch.save ({type(error).__name__}: {reason[:200]}); "
            "it is cut off, damaged or of another kind. Fetch or save it again"
        ) from None


def _refused(message: str) -> str:
    """What the restricted unpickler would not touch; "" where it failed for another reason."""
    if "TorchScript archives" in message:
        return "it is a TorchScript program"
    named = re.search(r"GLOBAL (\S+) (?:was not an allowed|whose module)", message)
    if named:
        return f"it names {named[1]}"
    if re.search(r"call reduce|Can only (create new object|build)|must be imported to load", message):
        return "it calls what makes no tensor"
    return ""


def _kind(value: Any) -> str:
    return str(value.layout) if isinstance(value, Tensor) else type(value).__name__


def _is_plain(name: Any, value: Any) -> bool:
    return (
        isinstance(name, str)
        and isinstance(value, Tensor)
        and value.layout is torch.strided
        and not value.is_quantized
        and not value.is_meta
    )


def _holds_tensor(value: Any) -> bool:
    waiting, seen = [value], set()
    while waiting:  # not by recursion: a file may nest without end, or hold itself
        item = waiting.pop()
        if isinstance(item, Tensor):
            return True
        if id(item) not in seen and isinstance(item, Mapping | list | tuple | set):
            seen.add(id(item))
            waiting.extend(item.values() if isinstance(item, Mapping) else item)
    return False
