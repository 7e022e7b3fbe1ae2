"""Writing YAML values and Markdown, whatever characters they contain."""

import json
import math
import re
from collections.abc import Mapping
from typing import Any


def yaml_value(value: Any, indent: str = "") -> str:
    """Return the text after a key's colon: a scalar on the same line, a collection on lines of its own."""
    deeper = indent + "  "
    if isinstance(value, Mapping):
        return "".join(f"\n{deeper}{key}:{yaml_value(item, deeper)}" for key, item in value.items())
    if isinstance(value, list):
        return "".join(f"\n{deeper}-{_item(item, deeper)}" for item in value)
    return f" {_scalar(value)}"


def _item(item: Any, indent: str) -> str:
    if not isinstance(item, Mapping):
        return yaml_value(item, indent)
    # The first key of a mapping is on the same line as the dash.
    return " " + yaml_value(item, indent).lstrip()


def _scalar(value: Any) -> str:
    if isinstance(value, float):
        if not math.isfinite(value):
            return ".nan" if math.isnan(value) else f"{'-' if value < 0 else ''}.inf"
        text = repr(value)
        # YAML 1.1 reads 1e-05 as a string.
        return text.replace("e", ".0e") if "e" in text and "." not in text else text
    # Always in double quotes: without them "no", "1.0" or "a: b" would not be strings.
    return '"' + "".join(map(_escape, str(value).replace("\\", "\\\\").replace('"', '\\"'))) + '"'


def _escape(char: str) -> str:
    """Escape a character for a double-quoted YAML string, or for a line of Markdown."""
    if char.isprintable():
        return char
    return f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}"


def markdown_text(text: str) -> str:
    """Return the user's Markdown, with characters that UTF-8 cannot encode as escapes."""
    return text.encode("utf-8", "backslashreplace").decode().strip()


def markdown_code(text: str) -> str:
    """Return a text as Markdown code on one line, quoted if it is empty, unprintable, or has spaces at an end."""
    if text != text.strip() or not text or not text.isprintable():
        text = json.dumps(text, ensure_ascii=False)
    text = "".join(map(_escape, text))
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if "`" in text else ""
    return f"{fence}{space}{text}{space}{fence}"


def markdown_cell(value: str) -> str:
    """Return a text as code in a cell of a Markdown table."""
    return markdown_code(value).replace("|", "\\|")
