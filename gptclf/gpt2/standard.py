"""Whether gptclf may replace the calls of a module. All code asks this module, which imports torch alone.

A fused kernel, packed rows or a stored result replace the calls of a module. That is right only if the module computes
what its class says and has no hooks. A class vouches for itself in its own body:

    class Linear(nn.Linear):
        standard = True           # a subclass must say so again: it may compute something else
        kind = "linear"           # its fixed name in the address of features
        described = ()            # attributes, beside tensors, on which its result depends
        equivalents = ("rows",)   # methods that are called in place of forward

A class that overrides `forward` without its `equivalents` is not standard: they would compute what another one does.
"""

from collections.abc import Iterator

from torch import nn
from torch.nn.modules.module import _has_any_global_hook

# The standard classes of torch, with their kinds and the attributes that their results depend on.
_TORCH: dict[type[nn.Module], tuple[str, tuple[str, ...]]] = {
    nn.LayerNorm: ("layer_norm", ("normalized_shape", "eps")),
    nn.Dropout: ("dropout", ("p",)),
    nn.ModuleList: ("list", ()),
    nn.ModuleDict: ("list", ()),
}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def is_standard(module: nn.Module) -> bool:
    """Return True if every part of a module computes what its class says: no foreign class, no hook, no new forward.

    Parametrised and pruned modules are not standard: torch gives them another class or a hook.
    """
    return all(is_standard_alone(part) for part in module.modules())


def is_standard_alone(module: nn.Module) -> bool:
    """Return True if a module without its children is of a standard class and computes what the class says."""
    return _vouches(type(module)) and not is_hooked(module)


def is_hooked(module: nn.Module) -> bool:
    """Return True if a module has hooks or its forward was replaced, so that it has to be called."""
    globally: bool = _has_any_global_hook()  # type: ignore[no-untyped-call]
    return globally or "forward" in vars(module) or any(getattr(module, name) for name in _HOOKS)


def described(module: nn.Module) -> Iterator[list[str]]:
    """Yield the kind of each part of a standard module and the attributes that its result depends on.

    Kinds are fixed strings, so that moving a class between files changes no address.

    Raises:
        TypeError: A class says that it is standard but does not name its kind.
    """
    for part in module.modules():
        own = vars(type(part))
        kind, names = _TORCH.get(type(part)) or (own.get("kind"), own.get("described", ()))
        if kind is None:
            raise TypeError(f'{type(part).__name__} says standard = True; it must also name its kind = "..."')
        yield [kind, *(f"{name}={getattr(part, name)}" for name in names)]


def difference(module: nn.Module, like: nn.Module) -> str:
    """Say why a module, without its children, computes otherwise than a standard one with the same tensors; "" if not.

    Dropout of any kind computes alike, as it is off in answers, and so do torch's own layers that ours derive from.
    """
    if is_hooked(module):
        return "has hooks or a replaced forward"
    if isinstance(like, nn.Dropout) and isinstance(module, nn.modules.dropout._DropoutNd | nn.Identity):
        return ""
    if not isinstance(like, type(module)):
        return f"is a {type(module).__name__}, not a {type(like).__name__}"
    _, names = _TORCH.get(type(like), ("", getattr(like, "described", ())))
    values = [(name, getattr(module, name, None), getattr(like, name)) for name in names]
    return ", ".join(f"has {name} = {value!r}, not {own!r}" for name, value, own in values if value != own)


def _vouches(kind: type[nn.Module]) -> bool:
    if vars(kind).get("standard") is not True and kind not in _TORCH:
        return False
    # If a patch put a `forward` into the class from outside, its code has another name or module, whatever
    # functools.wraps says.
    owner = next(base for base in kind.__mro__ if "forward" in vars(base))
    forward = vars(owner)["forward"]
    code, home = getattr(forward, "__code__", None), getattr(forward, "__globals__", {})
    name = None if code is None else (home.get("__name__"), code.co_qualname)
    # Equivalents that a class behind the owner in the order of resolution defines belong to another forward.
    newer = kind.__mro__[: kind.__mro__.index(owner) + 1]
    methods = () if "equivalents" in vars(owner) else getattr(kind, "equivalents", ())
    whole = all(any(method in vars(base) for base in newer) for method in methods)
    return owner is nn.Module or (whole and name == (owner.__module__, f"{owner.__qualname__}.forward"))
