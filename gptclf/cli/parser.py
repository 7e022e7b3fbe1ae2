"""`parse`: what a command line asks for."""

import codecs
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from gptclf.checks import integer, number
from gptclf.cli import groups, options
from gptclf.cli.flags import Parser, UsageError, nearest
from gptclf.cli.settings import read_settings
from gptclf.preparation import Preparation
from gptclf.training.recipe import Recipe
from gptclf.version import __version__

_TEXTS: dict[str, type] = {"the data": groups.Texts}
_LABELS: dict[str, type] = {"the labels": groups.LabelledTexts}
_MODEL: dict[str, type] = {"the model": groups.Loading}
_ANSWERS: dict[str, type] = {"the answers": groups.Answers}

# Each command: what it takes, and further flags in groups with a title.
_COMMANDS: dict[str, tuple[type, dict[str, type]]] = {
    "train": (
        options.Train,
        {
            **_TEXTS,
            **_LABELS,
            "the model": groups.Start,
            "the task": groups.Task,
            "the recipe": Recipe,
            "the preparation of texts": Preparation,
            "the run": groups.Running,
        },
    ),
    "predict": (options.Predict, _TEXTS | _MODEL | _ANSWERS),
    "evaluate": (options.Evaluate, _TEXTS | _LABELS | _MODEL | _ANSWERS),
    "explain": (options.Explain, _TEXTS | _MODEL),
    "summary": (options.Summary, {}),
    "convert": (options.Convert, {}),
    "serve": (options.Serve, {}),
}

# What the values of flags must be; those of Recipe and Preparation are checked there.
_CHECKS: dict[str, Callable[[str, Any], object]] = {
    "reject_below": partial(number, most=1.0, optional=True),
    "window": partial(integer, least=1),
    "valid_fraction": partial(number, above=0.0, most=0.99, optional=True),
    "label_smoothing": partial(number, most=0.99),
    "early_stopping": partial(integer, least=1, optional=True),
    "checkpoint_every": partial(integer, least=1, optional=True),
    "lora_rank": partial(integer, least=1, optional=True),
    "encoding": lambda _, encoding: codecs.lookup(encoding),
}


def parse(argv: Sequence[str]) -> Namespace:
    """Return what a command line asks for, completed from the file that `--config` names.

    `command` is the name of the command. For `train`, `recipe` and `preparation` are set as well.

    Raises:
        UsageError: The command, a flag, a setting or a value is unknown.
        SystemExit: Help or the version was asked for, and is printed.
    """
    parser = Parser(prog="gptclf", description="Fine-tune GPT-2 to classify text, and use what was trained.")
    parser.add_argument("--version", action="version", version=f"gptclf {__version__}")
    chosen = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    commands = {}
    for name, (kind, shared) in _COMMANDS.items():
        said = (kind.__doc__ or "").partition("\n")[0]
        commands[name] = its = chosen.add_parser(name, help=said, description=said)
        for title, flags in {"": kind, **shared}.items():
            its.add_fields(flags, title)
        its.add_fields(groups.Common)
        its.usage = _usage(its)
    args = _parsed(parser, commands, argv)
    if args.command is None:
        raise UsageError(f"name a command: {', '.join(commands)}; see gptclf --help")
    command = commands[args.command]
    if args.config is not None:
        command.set_defaults(**read_settings(Path(args.config), command))
        args = _parsed(parser, commands, argv)
    if missing := [name for name in command.needed if not getattr(args, name)]:
        option = command.known[missing[0]].option_strings or [missing[0].upper()]
        command.error(f"{option[0]} is missing")
    try:
        for name in _CHECKS.keys() & command.known.keys():
            _CHECKS[name]("--" + name.replace("_", "-"), getattr(args, name))
        if args.command == "train":
            args.recipe, args.preparation = (_made(kind, args) for kind in (Recipe, Preparation))
    except (LookupError, TypeError, ValueError) as error:
        command.error(str(error))
    return args


def names_of(command: str) -> list[str]:
    """Return the names of a command's flags and arguments."""
    kind, shared = _COMMANDS[command]
    return [field.name for each in (kind, *shared.values()) for field in fields(each)]


def _usage(command: Parser) -> str:
    """Return the line that shows a command's arguments, and the flags that it needs."""
    parts = [command.prog]
    for name, action in command.known.items():
        shown = " ".join([*action.option_strings, str(action.metavar)]) + " ..." * (action.nargs == "*")
        if name in command.needed:
            parts.append(shown)
        elif not action.option_strings:
            parts.append(f"[{shown}]")
    return " ".join([*parts, "[FLAGS]"])


def _made(kind: type, args: Namespace) -> object:
    return kind(**{field.name: getattr(args, field.name) for field in fields(kind)})


def _parsed(parser: Parser, commands: dict[str, Parser], argv: Sequence[str]) -> Namespace:
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        its = commands.get(args.command, parser)
        flags = [option for action in its.known.values() for option in action.option_strings]
        raise UsageError(f"there is no {unknown[0]!r}; {nearest(unknown[0].partition('=')[0], flags)}")
    return args
