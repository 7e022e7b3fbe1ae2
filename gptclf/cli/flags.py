"""Flags out of the fields of dataclasses: names, types, choices and defaults; help out of their docstrings.

Nothing here imports numpy or torch, so that help and errors of usage are immediate.
"""

import argparse
import difflib
import inspect
import re
from collections.abc import Callable, Iterable
from dataclasses import MISSING, Field, fields
from types import NoneType
from typing import Any, NoReturn, get_args

# What other programs call a flag.
_ALIASES = {"learning-rate": "lr", "num-epochs": "epochs", "output": "out", "output-dir": "out", "validation": "valid"}


class UsageError(Exception):
    """The command line, or a file of settings, asks for what there is not."""


class Parser(argparse.ArgumentParser):
    """A parser that raises errors, and knows its flags and arguments by name, as a file of settings gives them.

    Attributes:
        known: The flags and arguments by name.
        needed: The names of those that must be given.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_Wide, **options)
        self.known: dict[str, argparse.Action] = {}
        self.needed: list[str] = []

    def error(self, message: str) -> NoReturn:
        """Raise the error: it is shown, and the process ended, in one place only."""
        raise UsageError(f"{message}; see {self.prog} --help")

    def add_fields(self, kind: type, title: str = "") -> None:
        """Add a flag for each field of a dataclass, or an argument if the field has `nargs` in its metadata.

        A bool also gets `--no-name`, and `none` is a value where None is one.
        """
        group, texts = self.add_argument_group(title) if title else self, field_texts(kind)
        for field in fields(kind):
            self.known[field.name] = self._added(group, field, texts[field.name])
            self.needed += [field.name] * (field.default is MISSING)

    def _added(self, group: Any, field: Field[Any], text: str) -> argparse.Action:
        plain, option = _plain(field.type), "--" + field.name.replace("_", "-")
        default = None if field.default is MISSING else field.default
        shown = ("yes" if default else None) if plain is bool else default
        said = "" if shown is None else f" (default: {shown})"
        options: dict[str, Any] = {"default": default, "help": f"{text}{said}".replace("%", "%%")}
        if plain is bool:
            action = group.add_argument(option, action=argparse.BooleanOptionalAction, default=default)
            action.help = options["help"]  # the class would add the default a second time
        elif "nargs" in field.metadata:
            action = group.add_argument(
                field.name, metavar=field.name.upper(), nargs=field.metadata["nargs"], **options
            )
        else:
            choices, metavar = field.metadata.get("choices"), plain.__name__.upper().replace("STR", "TEXT")
            options |= {"choices": choices} if choices else {"metavar": metavar}
            action = group.add_argument(option, type=_reader(field.type), **options)
        return action  # type: ignore[no-any-return]

    def read(self, name: str, value: Any) -> Any:
        """Return the value of a flag that a file of settings gives.

        Raises:
            ValueError: The flag does not take it.
        """
        action = self.known[name]
        if isinstance(action, argparse.BooleanOptionalAction):
            if not isinstance(value, bool):
                raise ValueError(f"{name} is {value!r}; it must be true or false")
            return value
        values = value if isinstance(value, list) else [value]
        if not all(isinstance(one, str | int | float) and not isinstance(one, bool) for one in values):
            raise ValueError(f"{name} is {value!r}; it must be a text, a number or a list of them")
        if action.nargs == "*":
            return list(map(str, values))
        read: Any = action.type or str
        try:
            found = read(",".join(map(str, values)))
        except ValueError:
            raise ValueError(f"{name} is {value!r}; it must be of the kind {read.__name__}") from None
        if action.choices is not None and found not in action.choices:
            raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(action.choices)}")
        return found


class _Wide(argparse.HelpFormatter):
    """Help with room for the names of flags."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30)


def nearest(name: str, names: Iterable[str]) -> str:
    """Return the end of an error about an unknown name: the nearest of those that there are, or all of them.

    Example:
        >>> nearest("bach_size", ["batch_size", "epochs"])
        'did you mean batch_size?'
    """
    names = list(names)
    other = _ALIASES.get(name.lstrip("-").replace("_", "-"))
    near = [known for known in names if other and known.lstrip("-").replace("_", "-") == other]
    near = near or difflib.get_close_matches(name, names, 1, cutoff=0.75)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"


def field_texts(kind: type) -> dict[str, str]:
    """Return what a class's docstring says of each argument or attribute.

    Example:
        >>> from gptclf.preparation import Preparation
        >>> field_texts(Preparation)["truncation"]
        'The part that a longer text loses: its "tail", its "head" or its "middle".'
    """
    text = inspect.getdoc(kind) or ""
    section = re.search(r"^(?:Args|Attributes):\n((?:    .*\n?|\n)*)", text, re.MULTILINE)
    found = re.findall(r"^    (\w+): (.*(?:\n {8,}.*)*)", section[1] if section else "", re.MULTILINE)
    return {name: re.sub(r"\s+", " ", said) for name, said in found}


def _plain(kind: Any) -> Any:
    """Return a type without None."""
    (plain,) = [part for part in get_args(kind) or (kind,) if part is not NoneType]
    return plain


def _reader(kind: Any) -> Callable[[str], Any]:
    """Return what reads a flag's value; argparse names it in errors."""
    plain = _plain(kind)
    if plain is kind:
        return plain  # type: ignore[no-any-return]

    def read(text: str) -> Any:
        return None if text.lower() == "none" else plain(text)

    read.__name__ = plain.__name__
    return read
