"""Models in the pickles of estimators: tensors of published or saved weights by their name and digest, others whole."""

import hashlib
import io
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gptclf.files.digest import kept_digests
from gptclf.gpt2.model import GPT2
from gptclf.gpt2.sharing import mark_borrowed
from gptclf.sklearn.bases import named
from gptclf.weights.locate import is_cached, locate

# The name of a base's tensor, and whether the model has it as a copy in the usual layout.
_Shared = tuple[str, bool]


@dataclass(frozen=True)
class PackedModel:
    """A model to be pickled.

    Attributes:
        content: The pickle of the model without the tensors that are also its base's.
        base: The name by which these are found again, or None if the content is whole.
        digest: Their digest.
    """

    content: bytes
    base: str | None
    digest: str

    def unpacked(self) -> GPT2:
        """Return the model.

        Raises:
            OSError: The base is not found.
            ValueError: The base has other weights than when the model was pickled.
        """
        tensors: dict[str, Tensor] = {}
        if self.base is not None:
            try:
                tensors = dict(named(self.base).named_parameters())
            except OSError as error:
                problem = f"this pickle holds what was trained; the other weights are those of {self.base!r}: {error}"
                raise type(error)(
                    f"{problem}. Put them back, or exchange what `save` writes, which is whole"
                ) from error
        unpickler = _Unpickler(io.BytesIO(self.content))
        unpickler.base, unpickler.made = tensors, {}
        model: GPT2 = unpickler.load()
        if _digest({name: tensors[name] for name, _ in unpickler.made if name in tensors}) != self.digest:
            problem = f"the weights of {self.base!r} are not those that this pickle was made with"
            raise ValueError(f"{problem}; restore them, or exchange what `save` writes, which is whole")
        return model


def packed(model: GPT2) -> PackedModel:
    """Return a model as it is pickled. What it shares with weights that are found again is not in it."""
    for name in dict.fromkeys((model.base, model.source)):
        base = None if name is None else _found(name)
        if base is None:
            continue
        tensors = dict(base.named_parameters())
        ours = {id(p): found for key, p in model.named_parameters() if (found := _alike(key, p, tensors))}
        if ours:
            return _packed(model, ours, name, _digest({key: tensors[key] for key, _ in ours.values()}))
    return _packed(model, {}, None, _digest({}))


def _packed(model: GPT2, shared: Mapping[int, _Shared], base: str | None, digest: str) -> PackedModel:
    content = io.BytesIO()
    pickler = _Pickler(content, pickle.HIGHEST_PROTOCOL)
    pickler.shared = shared
    pickler.dump(model)
    return PackedModel(content.getvalue(), base, digest)


class _Pickler(pickle.Pickler):
    shared: Mapping[int, _Shared]

    def persistent_id(self, value: Any) -> _Shared | None:
        return self.shared.get(id(value))


class _Unpickler(pickle.Unpickler):
    base: Mapping[str, Tensor]
    made: dict[_Shared, nn.Parameter]

    def persistent_load(self, shared: _Shared) -> nn.Parameter:
        if shared not in self.made:
            name, own = shared
            theirs = self.base.get(name, torch.empty(0, device="cpu", dtype=torch.float32)).detach()
            # A matrix in another layout than its file's was a copy, and multiplies by other kernels.
            copied = nn.Parameter(theirs.contiguous() if own else theirs, requires_grad=False)
            self.made[shared] = copied if own else mark_borrowed(copied)
        return self.made[shared]


def _found(name: str) -> GPT2 | None:
    """Return the model of a name if it is at hand, without asking the network."""
    try:
        place = locate(name)
        return None if isinstance(place, str) and not is_cached(place, None, None) else named(name)
    except (OSError, ValueError):  # gone since, or a folder that holds another kind of model
        return None


def _alike(name: str, parameter: nn.Parameter, tensors: Mapping[str, Tensor]) -> _Shared | None:
    """Return the place of a frozen parameter's values among the base's tensors, if they are there."""
    name = name.replace(".base.", ".")  # beneath factors
    other = tensors.get(name)
    if other is None or parameter.requires_grad or parameter.device != other.device or parameter.shape != other.shape:
        return None
    own = parameter.stride() != other.stride()
    if (own and not parameter.is_contiguous()) or parameter.dtype != other.dtype:
        return None
    return (name, own) if parameter.data_ptr() == other.data_ptr() or torch.equal(parameter, other) else None


def _digest(tensors: Mapping[str, Tensor]) -> str:
    names = sorted(tensors)
    digests = kept_digests(tensors[name].detach() for name in names)
    return hashlib.sha256(
        "".join(f"{name} {digest}\n" for name, digest in zip(names, digests, strict=True)).encode()
    ).hexdigest()
