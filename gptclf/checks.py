"""Checks of arguments: one function for each kind of value.

Each function takes the name of the argument and the value given, and returns the value in Python's own type. A wrong
type is a TypeError and a value out of range a ValueError. Both errors give the value and the allowed values.

numpy and torch are imported only where a value of theirs is at hand, so that the command line can check its arguments
and show its help before it loads them.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from math import inf, isfinite, nan
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard, overload

if TYPE_CHECKING:
    import torch

# torch's generators take no larger one.
LARGEST_SEED = 2**64 - 1

# The longest repr of a value that an error message shows, in characters.
_LONGEST = 100

_PYTHONS_OWN = (str, int, float, bool, type(None))

# How matrix products may be computed: `Recipe` and the functions that compute check their argument by it.
PRECISIONS = ("auto", "float32", "bfloat16")


def python_value(value: Any) -> Any:
    """Return the Python value of a numpy or torch scalar, and anything else unchanged.

    A torch tensor of several elements becomes nested lists: tensors hash by identity, so equal ones would count as
    different values.

    Example:
        >>> import numpy as np, torch
        >>> python_value(np.float32(0.5)), python_value(torch.tensor(3)), python_value("ham")
        (0.5, 3, 'ham')
    """
    if type(value) in _PYTHONS_OWN:
        return value
    if _made_by("torch", value):
        import torch

        if isinstance(value, torch.Tensor):
            return value.item() if value.numel() == 1 else value.tolist()
    if _made_by("numpy", value):
        import numpy as np

        if value is np.ma.masked:
            return None
        scalar = isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0)
        return value.item() if scalar else value
    return value


def _made_by(library: str, value: Any) -> bool:
    """Return whether a value's class, or one that it inherits from, is a library's."""
    return any(base.__module__.partition(".")[0] == library for base in type(value).__mro__)


def is_iterable(value: Any) -> TypeGuard[Iterable[Any]]:
    """Return True if one can iterate over `value`; arrays and tensors without dimensions only say that one can.

    Example:
        >>> import numpy as np
        >>> is_iterable([]), is_iterable(np.array(3)), is_iterable(3)
        (True, False, False)
    """
    return isinstance(value, Iterable) and getattr(value, "ndim", 1) != 0


def is_missing(value: Any) -> bool:
    """Return whether a value is missing: None, or one that is not equal to itself, such as NaN, NaT and pandas.NA.

    Example:
        >>> [is_missing(value) for value in (None, float("nan"), "", 0)]
        [True, True, False, False]
    """
    try:
        return value is None or bool(value != value)
    except TypeError:  # pandas.NA has no truth value
        return True
    except ValueError:  # nor has an array, which is not missing
        return False


@contextmanager
def naming(source: str) -> Iterator[None]:
    """Put the name of a source of data before the message of a TypeError or ValueError; "" puts nothing there.

    Example:
        >>> with naming("train.csv"):
        ...     integer("label 3", -1)
        Traceback (most recent call last):
            ...
        ValueError: train.csv: label 3 is -1; it must be an integer of at least 0
    """
    try:
        yield
    except (TypeError, ValueError) as error:
        if not source:
            raise
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{source}: {error}") from error


@overload
def integer(name: str, value: Any, least: int = 0, *, most: float = inf) -> int: ...
@overload
def integer(name: str, value: Any, least: int = 0, *, most: float = inf, optional: bool) -> int | None: ...
def integer(name: str, value: Any, least: int = 0, *, most: float = inf, optional: bool = False) -> int | None:
    """Return `value` as an int of at least `least` and at most `most`.

    Args:
        name: The argument's name, for the error message.
        value: A Python, numpy or torch integer. A bool is not one, nor is 2.0.
        least: The smallest value allowed.
        most: The largest value allowed.
        optional: Also allow None.

    Raises:
        TypeError: If `value` is not an integer.
        ValueError: If it is out of bounds.

    Example:
        >>> import numpy as np
        >>> integer("batch_size", np.int64(8), 1)
        8
        >>> integer("batch_size", 0, 1)
        Traceback (most recent call last):
            ...
        ValueError: batch_size is 0; it must be an integer of at least 1
    """
    value = python_value(value)
    if optional and value is None:
        return None
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or not least <= value <= most:
        rule = f"an integer of at least {least}" + f" and at most {most}" * (most < inf)
        rule = str(least) if least == most else rule
        raise _wrong(name, value, rule + " or None" * optional, right_type=whole)
    return int(value)


@overload
def number(name: str, value: Any, *, least: float = 0.0, above: float = -inf, most: float = inf) -> float: ...
@overload
def number(
    name: str, value: Any, *, least: float = 0.0, above: float = -inf, most: float = inf, optional: bool
) -> float | None: ...
def number(
    name: str, value: Any, *, least: float = 0.0, above: float = -inf, most: float = inf, optional: bool = False
) -> float | None:
    """Return `value` as a finite float within bounds.

    Args:
        name: The argument's name, for the error message.
        value: A Python, numpy or torch number; a bool is not one.
        least: The smallest value allowed; -inf for no lower bound.
        above: A bound that the value must exceed, instead of `least`.
        most: The largest value allowed.
        optional: Also allow None.

    Raises:
        TypeError: If `value` is not a number.
        ValueError: If it is not finite or out of bounds.

    Example:
        >>> number("dropout", 1, most=1)
        1.0
        >>> number("clip", 0, above=0, optional=True)
        Traceback (most recent call last):
            ...
        ValueError: clip is 0; it must be a finite number above 0 or None
    """
    value = python_value(value)
    if optional and value is None:
        return None
    lower = f"above {above:g}" if above > -inf else f"of at least {least:g}" if least > -inf else ""
    upper = f"of at most {most:g}" if most < inf else ""
    rule = f"a finite number {' and '.join(filter(None, (lower, upper)))}".rstrip() + " or None" * optional
    real = isinstance(value, Real) and not isinstance(value, bool)
    try:
        found = float(value) if real else nan
    except OverflowError:  # an int beyond the largest float
        found = inf
    if not isfinite(found) or found > most or (found <= above if above > -inf else found < least):
        raise _wrong(name, value, rule, right_type=real)
    return found


def choice(name: str, value: Any, allowed: Sequence[str]) -> str:
    """Return `value` if it is one of the `allowed` strings.

    Raises:
        TypeError: If `value` is not a str.
        ValueError: If it is another string.

    Example:
        >>> choice("truncation", "end", ("tail", "head", "middle"))
        Traceback (most recent call last):
            ...
        ValueError: truncation is 'end'; it must be one of tail, head, middle
    """
    value = python_value(value)
    if not isinstance(value, str) or value not in allowed:
        raise _wrong(name, value, f"one of {', '.join(allowed)}", right_type=isinstance(value, str))
    return value


def boolean(name: str, value: Any) -> bool:
    """Return `value` if it is True or False, in Python's or in numpy's form.

    Raises:
        TypeError: For anything else, 0 and 1 included.
    """
    value = python_value(value)
    if not isinstance(value, bool):
        raise _wrong(name, value, "True or False", right_type=False)
    return value


def instance(name: str, value: Any, kind: type | tuple[type, ...], rule: str) -> None:
    """Raise a TypeError if `value` is not an object of these classes; `rule` says in words what is.

    Example:
        >>> instance("config", {}, Path, "a Path")
        Traceback (most recent call last):
            ...
        TypeError: config is {} (dict); it must be a Path
    """
    if not isinstance(value, kind):
        plain = isinstance(value, str | bytes | int | float | list | tuple | dict | None)
        shown = _shown(value) if plain else "an object"
        raise TypeError(f"{name} is {shown} ({type(value).__name__}); it must be {rule}")


def path(name: str, value: Any) -> Path:
    """Return `value` as a Path, with a leading `~` replaced by the home directory.

    Raises:
        TypeError: If `value` is neither a str nor a path object.
        ValueError: If it is empty, holds a null character, or names the home of an unknown user.
    """
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str) or not text or "\0" in text:
        raise _wrong(name, value, "a path that is not empty, as a str or a Path", right_type=isinstance(text, str))
    try:
        os.fsencode(text)
        return Path(text).expanduser()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} is {text!r}, which no file can be called here: {error}") from error
    except RuntimeError as error:
        raise ValueError(f"{name} is {text!r}, whose home directory is unknown; write out the whole path") from error


def device(value: "str | torch.device | None") -> "torch.device":
    """Return the torch device that `value` names; None is the CPU.

    Raises:
        TypeError: If `value` is neither a str, a torch.device nor None.
        ValueError: If this machine, or this build of torch, does not have the device; the message lists those it has.

    Example:
        >>> device("cpu")
        device(type='cpu')
    """
    import torch

    if value is not None and not isinstance(value, str | torch.device):
        raise _wrong("device", value, "a name such as 'cuda:0', a torch.device or None", right_type=False)
    try:
        chosen = torch.device("cpu" if value is None else value)
        torch.empty(0, dtype=torch.uint8, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        have = "cpu" + ", cuda" * torch.cuda.is_available() + ", mps" * torch.backends.mps.is_available()
        reason = str(error).split("\n")[0]
        raise ValueError(f"device {str(value)!r} cannot be used here ({reason}); there is {have}") from error
    return chosen


def _wrong(name: str, value: Any, rule: str, *, right_type: bool) -> Exception:
    return (ValueError if right_type else TypeError)(f"{name} is {_shown(value)}; it must be {rule}")


def _shown(value: Any) -> str:
    """Return the repr of a value, shortened if it is long."""
    shown = repr(value)
    return shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST - 3]}..."
