"""Flags: those of a dataclass come from its fields, and their help from its docstring.

Nothing here imports numpy or torch, so that help and errors of usage are immediate.
"""

import argparse
import difflib
import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import fields
from types import NoneType
from typing import Any, NoReturn, get_args

# What stands for a value in help.
_SHOWN: dict[type, str] = {str: "TEXT", int: "INT", float: "FLOAT"}


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
        """Raise the error; it is shown, and the process ended, in one place only."""
        raise UsageError(f"{message}; see {self.prog} --help")

    def argument(self, name: str, text: str, *, nargs: str = "?", needed: bool = True) -> None:
        """Add a positional argument, which a file of settings may give instead."""
        self.known[name] = self.add_argument(name, nargs=nargs, default=None, metavar=name.upper(), help=_help(text))
        self.needed += [name] * needed

    def flag(
        self,
        name: str,
        text: str,
        *,
        kind: Any = str,
        default: Any = None,
        choices: Sequence[str] | None = None,
        metavar: str | None = None,
        group: Any = None,
        needed: bool = False,
    ) -> None:
        """Add the flag `--name`; a bool also gets `--no-name`, and `none` is a value if `kind` includes None."""
        option, add = "--" + name.replace("_", "-"), (self if group is None else group).add_argument
        if _plain(kind) is bool:
            default = False if kind is bool and default is None else default
            action = add(option, action=argparse.BooleanOptionalAction, default=default)
            action.help = _help(text, "yes" if default else None)  # the class would add the default a second time
        else:
            shown = metavar or (None if choices else _SHOWN[_plain(kind)])
            help_ = _help(text, default)
            action = add(option, type=_reader(kind), default=default, choices=choices, metavar=shown, help=help_)
        self.known[name] = action
        self.needed += [name] * needed

    def fields_of(self, kind: type, title: str) -> None:
        """Add a flag for each field of a dataclass."""
        group, texts = self.add_argument_group(title), field_texts(kind)
        for field in fields(kind):
            choices = field.metadata.get("choices")
            self.flag(
                field.name, texts[field.name], kind=field.type, default=field.default, choices=choices, group=group
            )

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
            return [str(one) for one in values]
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


def nearest(name: str, names: Sequence[str]) -> str:
    """Return the end of an error about an unknown name: the nearest of those that there are, or all of them.

    Example:
        >>> nearest("bach_size", ["batch_size", "epochs"])
        'did you mean batch_size?'
    """
    near = difflib.get_close_matches(name, names, 1)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"


def field_texts(kind: type) -> dict[str, str]:
    """Return what a class's docstring says of each argument or attribute.

    Example:
        >>> from gptclf.preparation import Preparation
        >>> field_texts(Preparation)["truncation"]
        'The part that a longer text loses: its "tail", its "head" or its "middle".'
    """
    text = inspect.getdoc(kind) or ""
    section = re.search(r"^(?:Args|Attributes):\n((?:    .*\n|\n)*)", text, re.MULTILINE)
    found = re.findall(r"^    (\w+): (.*(?:\n {8,}.*)*)", section[1] if section else "", re.MULTILINE)
    return {name: re.sub(r"\s+", " ", said) for name, said in found}


def _help(text: str, default: Any = None) -> str:
    shown = "" if default is None else f" (default: {default})"
    return f"{text}{shown}".replace("%", "%%")


def _plain(kind: Any) -> type:
    """Return a type without None."""
    (plain,) = [part for part in get_args(kind) or (kind,) if part is not NoneType]
    return plain  # type: ignore[no-any-return]


def _reader(kind: Any) -> Callable[[str], Any]:
    """Return what reads a flag's value; argparse names it in errors."""
    plain: Any = _plain(kind)
    if plain is kind:
        return plain  # type: ignore[no-any-return]

    def read(text: str) -> Any:
        return None if text.lower() == "none" else plain(text)

    read.__name__ = plain.__name__
    return read
