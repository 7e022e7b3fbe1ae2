"""Sharing tensors between module trees, and copying them before they change.

`twin` copies the modules but not the parameters, for a computation that needs its own mode. `borrow` makes a second
model: its parameters are new, frozen and marked as borrowed, over the same memory. A borrowed parameter gets memory of
its own before it may change: in `freeze`, in `train` and in `load_state_dict`.
"""

import functools
import gc
import types
import weakref
from collections.abc import Callable, Collection
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _WrappedHook

M = TypeVar("M", bound=nn.Module)

# Rebuilt if an element is replaced; anything else that refers into the tree is refused.
_CONTAINERS = (list, tuple, set, frozenset)

# Types whose values refer to nothing.
_PLAIN = (types.NoneType, str, bytes, int, float, type)


def twin(module: M) -> M:
    """Copy a tree of modules over the same parameters and buffers; modes, hooks and children are its own."""
    return _Copy([module])(module)


def twins(modules: list[nn.Module]) -> list[nn.Module]:
    """Copy several modules as `twin` does; a reference from one to another leads to the other's copy."""
    return list(map(_Copy(modules), modules))


def borrow(module: M) -> M:
    """Copy a tree of modules over the same memory; its parameters are new, frozen and borrowed. Buffers are copied.

    A parameter that `module` trains is copied at once, as its owner may change it at any time. The others are marked
    in `module` as well, which also gets memory of its own before it changes one. References inside the tree lead to the
    copy's own modules and parameters: tied matrices, hooks that are bound methods, modules in lists and tuples, one
    parameter under two names.

    Raises:
        TypeError: A module refers to another one in a way that cannot be followed; the message says which and how.
    """

    def lend(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            return tensor.clone()
        if tensor.requires_grad:
            return nn.Parameter(tensor.detach().clone(memory_format=torch.contiguous_format), requires_grad=False)
        return mark_borrowed(nn.Parameter(mark_borrowed(tensor).detach(), requires_grad=False))

    own_before_loading(module)  # the copy brings it along
    return _Copy([module], lend)(module)


def is_borrowed(parameter: Tensor) -> bool:
    """Return True if a parameter's memory belongs to another model, to a file or to a caller's arrays."""
    return getattr(parameter, "borrowed", False)


def mark_borrowed(parameter: nn.Parameter) -> nn.Parameter:
    """Mark a parameter whose memory is not its model's alone. A deep copy of it has memory of its own, and no mark."""
    parameter.borrowed = True  # type: ignore[attr-defined]
    return parameter


def own_parameters(module: nn.Module, names: Collection[str] | None = None) -> None:
    """Give every borrowed parameter among `names` (all if None) its own copy of the memory.

    The parameter objects stay, so optimizers, tied modules and other references follow.
    """
    for name, parameter in module.named_parameters():
        if is_borrowed(parameter) and (names is None or name in names):
            # Contiguous: a loaded matrix is a transposed view, whose order in memory would slow the optimizer.
            parameter.data = parameter.detach().clone(memory_format=torch.contiguous_format)
            parameter.borrowed = False  # type: ignore[attr-defined]


def own_trainable(module: nn.Module) -> None:
    """Give the module a copy of every trainable parameter that is borrowed."""
    own_parameters(module, {name for name, parameter in module.named_parameters() if parameter.requires_grad})


def refuse_borrowed_gradients(module: nn.Module) -> None:
    """Raise if a gradient would be computed for a parameter that is also another model's."""
    if not torch.is_grad_enabled():
        return
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and is_borrowed(parameter):
            remedy = "call freeze(model, trainable=...) before you make the optimizer"
            raise ValueError(f"{name} is set to train, but its tensor is also another model's, or a file's; {remedy}")


def own_before_loading(module: nn.Module) -> None:
    """Make `load_state_dict`, of the module or of any part of it, write into the module's own memory."""
    for part in module.modules():
        # One hook object for all parts, so that it is recognised in a copied tree.
        known = [getattr(hook, "hook", hook) for hook in part._load_state_dict_pre_hooks.values()]
        if part._parameters and _own not in known:
            part.register_load_state_dict_pre_hook(_own)  # type: ignore[no-untyped-call]


def _own(module: nn.Module, *_: Any) -> None:
    own_parameters(module)


def set_parameter(module: nn.Module, name: str, tensor: Tensor) -> nn.Parameter:
    """Replace the named parameter by `tensor`, frozen and borrowed, without a copy.

    Raises:
        KeyError: The module has no parameter of that name.
    """
    path, _, leaf = name.rpartition(".")
    try:
        parameters = module.get_submodule(path)._parameters
    except AttributeError:
        parameters = {}
    if leaf not in parameters:
        known = [known for known, _ in module.named_parameters()]
        raise KeyError(f"the model has no parameter {name!r}; it has {', '.join(known[:4])}, ...")
    parameters[leaf] = parameter = mark_borrowed(nn.Parameter(tensor, requires_grad=False))
    return parameter


def fill(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put tensors into a model built on the meta device, without copying: they stay the file's or the caller's."""
    for name, tensor in tensors.items():
        set_parameter(module, name, tensor)
    own_before_loading(module)


class _Copy:
    """Copies of the modules below some roots, with every reference between them redirected.

    Args:
        roots: The modules.
        lend: Makes the copy's parameter or buffer from the original. None keeps the originals; a reference that cannot
            be followed then stays as it is, which computes the same.
    """

    def __init__(self, roots: list[nn.Module], lend: Callable[[Tensor], Tensor] | None = None) -> None:
        self._strict = lend is not None
        self._where = ""
        self._made: dict[Any, Any] = {}
        self._open: set[int] = set()  # ids of the values that contain the current one
        names = {part: name or type(part).__name__ for root in roots for name, part in root.named_modules()}
        for part in names:
            self._made[part] = object.__new__(type(part))
            for tensor in (*part._parameters.values(), *part._buffers.values()):
                if tensor is not None and tensor not in self._made:
                    self._made[tensor] = tensor if lend is None else lend(tensor)
        for part, name in names.items():
            for key, value in vars(part).items():
                self._where = f"{name}.{key}"
                # torch's own tables are the copy's own even if nothing in them changes.
                new = self._redirected(value)
                own = isinstance(value, dict | set) and key.startswith("_") and new is value
                vars(self._made[part])[key] = value.copy() if own else new

    def __call__(self, module: M) -> M:
        return cast(M, self._made[module])

    def _redirected(self, value: Any) -> Any:
        """Return a value's replacement: the value itself, unless it refers to a copied module or tensor."""
        if isinstance(value, _PLAIN) or (isinstance(value, dict) and not value):
            return value
        if isinstance(value, nn.Module | Tensor) and value in self._made:
            return self._made[value]
        parts, rebuilt = _opened(value)
        if rebuilt is None or id(value) in self._open:
            if self._strict and self._reaches(value):
                around = " that contains itself" * (rebuilt is not None)
                raise TypeError(
                    f"{self._where} refers to another part of the model through a {type(value).__name__}{around}, "
                    "which a second model cannot follow: it would use the first model's part. Keep the reference as an "
                    "attribute, in a list, tuple or dictionary, or as a bound method"
                )
            return value
        self._open.add(id(value))
        new = [self._redirected(part) for part in parts]
        self._open.remove(id(value))
        return value if all(a is b for a, b in zip(new, parts, strict=True)) else rebuilt(*new)

    def _reaches(self, value: Any, depth: int = 3) -> bool:
        """Return True if a value that cannot be rebuilt refers to something that is copied."""
        if isinstance(value, nn.Module | Tensor):
            parts = value.modules() if isinstance(value, nn.Module) else [value]
            return any(part in self._made for part in parts)
        return depth > 0 and any(self._reaches(part, depth - 1) for part in _opened(value)[0])


def _opened(value: Any) -> tuple[list[Any], Callable[..., Any] | None]:
    """Return the parts that a value refers to, and a function that rebuilds it from others (None if impossible)."""
    if isinstance(value, dict):
        return [*value, *value.values()], functools.partial(_refilled, value)
    if isinstance(value, _CONTAINERS):
        if hasattr(value, "_fields"):
            return list(value), type(value)
        return list(value), (lambda *parts: type(value)(parts)) if type(value) in _CONTAINERS else None
    if isinstance(value, types.MethodType):
        return [value.__self__], functools.partial(types.MethodType, value.__func__)
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords], lambda f, args, named: functools.partial(f, *args, **named)
    if isinstance(value, weakref.ref):
        return [value()], weakref.ref
    if isinstance(value, _WrappedHook):
        return [value.hook, value.module() if value.with_module else None], _WrappedHook
    if isinstance(value, types.FunctionType):
        held = gc.get_referents(*(value.__closure__ or ()))  # what its cells hold
        return [*held, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()], None
    everyones = isinstance(value, types.ModuleType | type)
    return [] if everyones else list(getattr(value, "__dict__", {}).values()), None


def _refilled(table: dict[Any, Any], *parts: Any) -> dict[Any, Any]:
    new = table.copy()
    new.clear()
    new.update(zip(parts[: len(table)], parts[len(table) :], strict=True))
    return new
