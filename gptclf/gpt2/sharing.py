"""Sharing tensors between module trees, and copying them before they change.

`twin` copies the modules but not the parameters, for a computation that needs its own mode. `borrow` makes a second
model: its parameters are new, frozen and marked as borrowed, over the same memory. A borrowed parameter gets memory of
its own before it may change: in `freeze`, in `train` and in `load_state_dict`.
"""

import functools
import gc
import logging
import types
import weakref
from collections.abc import Callable, Collection, Iterator
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _WrappedHook
from torch.nn.utils.parametrize import is_parametrized

from gptclf.gpt2.recording import is_transformed

logger = logging.getLogger(__name__)

M = TypeVar("M", bound=nn.Module)

# Types whose values refer to nothing, or belong to everyone.
_PLAIN = (types.NoneType, str, bytes, int, float, type, types.ModuleType, logging.Logger)


def twin(module: M) -> M:
    """Copy a tree of modules over the same parameters and the same tables of buffers.

    Modes, hooks and children are the copy's own. A buffer that either one replaces is replaced in both. References
    inside the tree lead to the copy's own modules, as in `borrow`. Compiled code of a module is not copied.

    Raises:
        TypeError: A module whose result depends on its mode is referred to in a way that cannot be followed, or is
            scripted.
    """
    return _Copy([module])(module)


def twins(modules: list[nn.Module]) -> list[nn.Module]:
    """Copy several modules as `twin` does; a reference from one to another leads to the other's copy."""
    return list(map(_Copy(modules), modules))


def borrow(module: M) -> M:
    """Copy a tree of modules over the same memory; its parameters are new, frozen and borrowed. Buffers are copied.

    A parameter that `module` trains, or that still holds a gradient, is copied at once, as its owner may change it at
    any time. The others are marked in `module` as well, which also gets memory of its own before it changes one.
    References inside the tree lead to the copy's own modules and parameters: tied matrices, hooks, modules in lists,
    tuples and closures, one parameter under two names. The global variables of a function are not followed.

    Raises:
        TypeError: A module refers to another one in a way that cannot be followed, or is scripted; the message says
            which and how.
    """

    def lend(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            return tensor.clone()
        if tensor.requires_grad or tensor.grad is not None:
            return nn.Parameter(tensor.detach().clone(memory_format=torch.contiguous_format), requires_grad=False)
        return mark_borrowed(nn.Parameter(mark_borrowed(tensor).detach(), requires_grad=False))

    own_before_loading(module)  # the copy gets the hook as well
    return _Copy([module], lend)(module)


def is_borrowed(parameter: Tensor) -> bool:
    """Return True if a parameter's memory belongs to another model, to a file or to a caller's arrays."""
    return getattr(parameter.untyped_storage(), "borrowed", False)


def mark_borrowed(parameter: nn.Parameter) -> nn.Parameter:
    """Mark a parameter whose memory is not its model's alone.

    The mark is the memory's: all tensors over it have it, and a deep copy, which has memory of its own, has not.
    """
    parameter.untyped_storage().borrowed = True  # type: ignore[attr-defined]
    return parameter


def own_parameters(module: nn.Module, names: Collection[str] | None = None) -> None:
    """Give every borrowed parameter among `names` (all if None) its own copy of the memory.

    The parameter objects stay, so optimizers, tied modules and other references follow.
    """
    for name, parameter in module.named_parameters():
        if is_borrowed(parameter) and (names is None or name in names):
            # Contiguous: a loaded matrix is a transposed view, whose order in memory would slow the optimizer.
            parameter.data = parameter.detach().clone(memory_format=torch.contiguous_format)


def own_trainable(module: nn.Module) -> None:
    """Give the module a copy of every trainable parameter that is borrowed."""
    own_parameters(module, {name for name, parameter in module.named_parameters() if parameter.requires_grad})


def refuse_borrowed_gradients(module: nn.Module) -> None:
    """Raise if a gradient would be computed for a parameter that is also another model's."""
    if torch.is_grad_enabled() and not is_transformed() and _trains_borrowed(module):
        names = [name for name, p in module.named_parameters() if p.requires_grad and is_borrowed(p)]
        remedy = "call freeze(model, trainable=...) before you make the optimizer"
        raise ValueError(f"{names[0]} is set to train, but its tensor is also another model's, or a file's; {remedy}")


# torch.compile then asks once, when it compiles. torch's decorator that sets this would import the compiler.
refuse_borrowed_gradients._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _trains_borrowed(module: nn.Module) -> bool:
    # Asked at every step: several times faster than torch's walk with names.
    found = any(p is not None and p.requires_grad and is_borrowed(p) for p in module._parameters.values())
    return found or any(_trains_borrowed(child) for child in module._modules.values() if child is not None)


def own_before_loading(module: nn.Module) -> None:
    """Make `load_state_dict`, of the module or any part of it, keep to the module's own memory, also with `assign`."""
    for part in module.modules():
        # One hook object for all parts, so that it is recognised in a copied tree.
        known = [getattr(hook, "hook", hook) for hook in part._load_state_dict_pre_hooks.values()]
        if _own not in known and not isinstance(part, torch.jit.ScriptModule):
            part.register_load_state_dict_pre_hook(_own)  # type: ignore[no-untyped-call]


def _own(module: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any], *_: Any) -> None:
    own_before_loading(module)  # parts that were put in since
    assigns = metadata.get("assign_to_params_buffers")
    own_parameters(module, () if assigns else None)
    for name in (*module._parameters, *module._buffers) if assigns else ():
        if isinstance(given := state.get(prefix + name), Tensor):  # the caller would still hold it
            state[prefix + name] = given.detach().clone()


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


def reached(value: Any) -> Iterator[Any]:
    """Yield a value and all that it refers to, directly or not, short of what belongs to everyone.

    Classes, Python modules, loggers and the global variables of functions belong to everyone.
    """
    seen, left = {}, [value]
    while left:
        value = left.pop()
        if not issubclass(type(value), _PLAIN) and id(value) not in seen:
            seen[id(value)] = value
            yield value
            left += _opened(value)[0]


class _Copy:
    """A copy of the modules under `roots`, with every reference between them pointing to the copies.

    Args:
        roots: The modules.
        lend: Makes the copy's parameter or buffer from the original. None keeps the originals; a reference that cannot
            be followed then stays as it is if it computes the same, whatever the copy's mode.
    """

    def __init__(self, roots: list[nn.Module], lend: Callable[[Tensor], Tensor] | None = None) -> None:
        self._where, self._lends = "", lend is not None
        self._made: dict[int, Any] = {}  # replacements of modules and tensors, by id
        self._open: set[int] = set()  # ids of the values that contain the current one
        named = ((part, name) for root in reversed(roots) for name, part in root.named_modules())
        scripted = torch.jit.ScriptModule
        names = {part: name or type(part).__name__ for part, name in named if lend or not isinstance(part, scripted)}
        for part, name in names.items():
            if isinstance(part, scripted):
                raise TypeError(f"{name} is scripted, so it cannot be copied over the same tensors; use the nn.Module")
            kind: Any = type(part)  # the copy of a parametrized module gets a class of its own, as the module has
            own = type(kind)(kind.__name__, kind.__bases__, dict(vars(kind))) if is_parametrized(part) else kind
            self._made[id(part)] = object.__new__(own)
        tensors = {id(t): t for part in names for t in (*part._parameters.values(), *part._buffers.values())}
        self._made |= {key: lend(t) if lend and t is not None else t for key, t in tensors.items()}
        # What the copy must not refer to, by id: the source's parts and memory, or only parts that a mode changes.
        moded = {kind for kind in set(map(type, names)) if _has_mode(kind)}
        self._own = {id(part) for part in names if type(part) in moded and getattr(part, "p", None) != 0}
        if lend:
            self._own = {*self._made, *(id(t.untyped_storage()) for t in tensors.values() if t is not None)}
        for part, name in names.items():
            copied = self(part)
            state: Any = object.__getstate__(part)
            fields, slots = state if isinstance(state, tuple) else (state, {})
            # Not the compiled call: it runs the source.
            for key, value in (fields | slots | {"_compiled_call_impl": None}).items():
                self._where = f"{name}.{key}"
                # torch's own tables are the copy's own even if nothing in them changes.
                new = self._redirected(value)
                own = isinstance(value, dict | set) and key.startswith("_") and (lend or key != "_buffers")
                put = vars(copied).__setitem__ if key in fields else functools.partial(object.__setattr__, copied)
                put(key, new.copy() if own and new is value else new)

    def __call__(self, module: M) -> M:
        return cast(M, self._made[id(module)])

    def _redirected(self, value: Any) -> Any:
        """Return a value's replacement: the value itself, unless it refers to a copied module or tensor."""
        if issubclass(type(value), _PLAIN) or (issubclass(type(value), dict) and not value):
            return value
        if id(value) in self._made:
            return self._made[id(value)]
        parts, rebuilt = _opened(value)
        if rebuilt is None or id(value) in self._open:
            if self._own and any(id(part) in self._own for part in reached(value)):
                kind = type(value).__name__ + " that contains itself" * (rebuilt is not None)
                problem = f"{self._where} refers to another part of the model through a {kind}: a copy uses the model's"
                if self._lends:
                    remedy = "keep the reference in an attribute, list, dictionary or closure, or remove the hook"
                    raise TypeError(f"{problem}; {remedy}")
                logger.warning("%s, in the model's own mode", problem)
            return value
        self._open.add(id(value))
        new = [self._redirected(part) for part in parts]
        self._open.remove(id(value))
        return value if all(a is b for a, b in zip(new, parts, strict=True)) else rebuilt(*new)


# By type: the parts that a value refers to, and a function that rebuilds it from others.
_KINDS: dict[type, tuple[Callable[[Any], list[Any]], Callable[..., Any]]] = {
    **dict.fromkeys(weakref.ProxyTypes, (lambda proxy: [proxy.__repr__.__self__], weakref.proxy)),
    weakref.ref: (lambda ref: [ref()], weakref.ref),
    functools.partial: (lambda p: [p.func, p.args, p.keywords], lambda f, a, k: functools.partial(f, *a, **k)),
    types.MethodType: (lambda method: [method.__func__, method.__self__], types.MethodType),
    types.CellType: (gc.get_referents, types.CellType),
    _WrappedHook: (lambda hook: [hook.hook, hook.module() if hook.with_module else None], _WrappedHook),
}


def _opened(value: Any) -> tuple[list[Any], Callable[..., Any] | None]:
    """Return the parts that a value refers to, and a function that rebuilds it from others (None if impossible)."""
    kind = type(value)
    for known, (parts_of, rebuilt) in _KINDS.items():
        if issubclass(kind, known):
            return parts_of(value), rebuilt
    if issubclass(kind, dict):
        return [*value, *value.values()], functools.partial(_refilled, value)
    if kind in (list, tuple, set, frozenset) or (issubclass(kind, tuple) and hasattr(kind, "_make")):
        return list(value), lambda *parts: getattr(kind, "_make", kind)(parts)
    if kind is types.FunctionType:
        held = [value.__closure__, value.__defaults__, value.__kwdefaults__, vars(value)]
        return held, functools.partial(_rebound, value)
    # A matrix that a kernel laid out in its own way is opaque.
    memory = [value.untyped_storage()] if isinstance(value, Tensor) and value.layout == torch.strided else []
    return [*gc.get_referents(value), *memory], None


def _refilled(table: dict[Any, Any], *parts: Any) -> dict[Any, Any]:
    new = table.copy()
    new.clear()
    new.update(zip(parts[: len(table)], parts[len(table) :], strict=True))
    return new


def _rebound(function: types.FunctionType, closure: Any, defaults: Any, named: Any, attributes: Any) -> Any:
    new = types.FunctionType(function.__code__, function.__globals__, function.__name__, defaults, closure)
    functools.update_wrapper(new, function, updated=())
    new.__kwdefaults__, new.__dict__ = named, dict(attributes)
    return new


def _has_mode(kind: type[nn.Module]) -> bool:
    """Return True if a method of a class of modules looks at `training`."""
    methods = [method for base in kind.__mro__ if base is not nn.Module for method in vars(base).values()]
    codes = [getattr(getattr(method, "fget", method), "__code__", None) for method in methods]
    return any("training" in code.co_names for code in codes if code is not None)
