"""Reading JSON files, with errors that name the file, and writing them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptclf.files.access import readable_size


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        OSError: The file does not exist, may not be read, or is not a regular file.
        ValueError: The file is not JSON, or its top-level value is not an object.
    """
    readable_size(path)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}); the file is damaged or of another kind") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}, not an object with keys; the file is damaged")
    return values


def to_json(values: Mapping[str, Any]) -> str:
    """Return values as the text of a JSON file."""
    # ASCII, because a label may contain a lone surrogate, which UTF-8 cannot encode.
    return json.dumps(values, indent=2) + "\n"
