"""`main`: runs a command line and returns its exit code."""

import io
import logging
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from types import FrameType

from gptclf.cli.flags import UsageError
from gptclf.cli.parser import names_of, parse
from gptclf.progress import write_line

FAILED, USAGE, INTERRUPTED, BROKEN_PIPE, TERMINATED = 1, 2, 130, 141, 143

# What data, models, missing extras and short memory raise. Anything else is a fault of gptclf's, and shows where.
_EXPECTED = (OSError, ValueError, TypeError, ImportError, ArithmeticError, MemoryError)

# Says that a new head must be trained, which `train` is about to do.
_NEW_HEADS = "gptclf.gpt2.classifier"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; errors, warnings and progress go to standard error.

    Args:
        argv: The arguments after the program's name; None means the process's own.

    Returns:
        0 if all went well, 1 after an error of data or model, 2 of usage, 130 after Ctrl-C, 141 if nobody reads the
        results any more, 143 after SIGTERM.

    Example:
        >>> main(["predict"])
        2
    """
    given = sys.argv[1:] if argv is None else list(argv)
    with _terminable() as terminated:
        code = _main(given)
    return TERMINATED if terminated and code == INTERRUPTED else code


def _main(given: list[str]) -> int:
    command = ""
    try:
        args = parse(given)
        command = args.command
        with _reporting(command, debug=args.debug):
            code: int = import_module(f"gptclf.cli.{command}").run(args)
            sys.stdout.flush()
    except KeyboardInterrupt:
        write_line("gptclf: interrupted")
        return INTERRUPTED
    except UsageError as error:
        write_line(f"gptclf: error: {in_flags(str(error), command)}")
        return USAGE
    except BrokenPipeError:
        # Python flushes standard output once more as it ends.
        with suppress(OSError, ValueError, AttributeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except _EXPECTED as error:
        if "--debug" in given or os.environ.get("GPTCLF_DEBUG", "0") not in ("", "0"):
            raise
        write_line(f"gptclf: error: {in_flags(_message(error), command)}")
        return FAILED
    return code


@contextmanager
def _terminable() -> Iterator[list[int]]:
    """In the block, SIGTERM does what Ctrl-C does, so that files are left in order; yield a list of those that came."""
    came: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        came.append(number)
        react = signal.getsignal(signal.SIGINT)
        if not callable(react):  # under nohup and in the background of a script, Ctrl-C is ignored
            raise KeyboardInterrupt
        react(signal.SIGINT, frame)

    main_thread = threading.current_thread() is threading.main_thread()
    if not main_thread or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield came
        return
    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield came
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def in_flags(message: str, command: str) -> str:
    """Return a message of the library with the flags of a command instead of arguments of the same name.

    Example:
        >>> in_flags("name the delimiter= or give delimiter=';', drop_missing=True", "train")
        "name the --delimiter or give --delimiter ';', --drop-missing"
    """
    if not command:
        return message
    names = "|".join(names_of(command))

    def flag(found: re.Match[str]) -> str:
        name, value = found[1].replace("_", "-"), found[2]
        if value in ("True", "False"):
            return f"--{'no-' * (value == 'False')}{name}"
        position = "--no-header " * (name == "text" and (value or "").isdecimal())
        return f"{position}--{name}{f' {value}' * bool(value)}"

    return re.sub(rf"(?<![\w.])({names})=(True|False|\d+|['\"][^'\"]*['\"])?", flag, message)


def _message(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    return str(error) or repr(error)


@contextmanager
def _reporting(command: str, *, debug: bool) -> Iterator[None]:
    """Show what the library logs, and its warnings, as lines on standard error; results are in UTF-8 everywhere."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    logger, handler = logging.getLogger("gptclf"), logging.Handler(logging.WARNING)
    handler.emit = lambda record: write_line(f"gptclf: {in_flags(record.getMessage(), command)}")  # type: ignore[method-assign]
    handler.addFilter(lambda record: record.name != _NEW_HEADS)
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings():
            if not debug:  # nothing of these concerns a user
                warnings.filterwarnings("ignore", module="torchvision")
                warnings.simplefilter("ignore", DeprecationWarning)
                warnings.simplefilter("ignore", FutureWarning)
            warnings.showwarning = lambda message, *_, **__: write_line(f"gptclf: {in_flags(str(message), command)}")
            yield
    finally:
        logger.removeHandler(handler)
