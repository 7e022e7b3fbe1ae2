"""Files of settings: TOML with the names of the flags, read by `--config` and written beside a trained model."""

import json
import tomllib
from argparse import Namespace
from pathlib import Path
from typing import Any

from gptclf.cli.flags import Parser, UsageError, nearest
from gptclf.files.access import readable_size

# The file beside a model.
SETTINGS = "train.toml"
# What belongs to one call.
_PASSING = ("config", "debug", "force", "quiet", "resume")


def read_settings(path: Path, parser: Parser) -> dict[str, Any]:
    """Return the settings in a file, checked as the flags are.

    Raises:
        UsageError: The file cannot be read, is not TOML, or holds a name that there is not, or a value that the flag
            does not take.
    """
    try:
        readable_size(path)
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UsageError(f"--config: {error.strerror or error}") from error
    except ValueError as error:
        raise UsageError(f"{path} is not a TOML file in UTF-8 ({error})") from error
    names = [name for name in parser.known if name not in ("config", "debug")]
    found = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name not in names:
            raise UsageError(f"{path}: there is no setting {key!r}; {nearest(name, names)}")
        try:
            found[name] = parser.read(name, value)
        except ValueError as error:
            raise UsageError(f"{path}: {error}") from error
    return found


def settings_text(args: Namespace, names: list[str]) -> str:
    """Return the TOML that gives the same settings again; None has no form in TOML and is left out.

    Example:
        >>> print(settings_text(Namespace(lr=5e-05, text="body", clip=None), ["lr", "text", "clip"]), end="")
        lr = 5e-05
        text = "body"
    """
    values = {name: getattr(args, name) for name in names if name not in _PASSING}
    return "".join(f"{name} = {_toml(value)}\n" for name, value in values.items() if value is not None)


def _toml(value: Any) -> str:
    # JSON's texts, numbers, booleans and lists are TOML's, but for one control character.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
