"""Explanations as HTML: text on coloured ground, readable in light and dark notebooks, without scripts.

Colours are transparent layers over whatever ground the page has, and styles are inline, because notebooks that are not
trusted drop style sheets. Whatever a text holds is shown as text.
"""

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gptclf.explanations.spans import Span

# For and against: blue and orange, which people who see fewer colours can tell apart; the line below differs as well.
_FOR, _AGAINST = ("31,119,180", "solid"), ("230,110,10", "dotted")

# Opacity of the strongest colour: text stays readable on it.
_OPACITY = 0.6

# Characters that are shown at either end of what is shortened.
_SHOWN = 150

# Control characters as their pictures; tab and new line are laid out.
_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {0x7F: 0x2421}

_BOX = "font:inherit;line-height:1.9;margin:0.5em 0;max-width:60em"
_TEXT = "white-space:pre-wrap;overflow-wrap:anywhere;margin:0.2em 0"
_CELL = "text-align:left;vertical-align:top;padding:0.1em 1em 0.1em 0"
_SMALL = "font-size:0.85em;opacity:0.8"


def shown(text: str) -> str:
    """Return a text as HTML that shows it, whatever it holds."""
    return escape(text.translate(_PICTURES))


def explanation(
    head: str, note: str, text: str, tokens: Sequence[str], spans: Sequence[Span], attributions: NDArray[np.float64]
) -> str:
    """Return an explanation as HTML.

    Args:
        head: A line above the text, as plain text.
        note: A line below it, as plain text.
        text: The text.
        tokens: The characters of the tokens that were read.
        spans: Their places in the text.
        attributions: Their attributions.
    """
    parts = "".join(_parts(text, zip(tokens, spans, attributions.tolist(), strict=True)))
    legend = f"{_coloured('for', 1.0, 1.0)} {_coloured('against', -1.0, 1.0)}"
    return (
        f'<div style="{_BOX}"><div><b>{shown(head)}</b></div><div style="{_TEXT}" dir="auto">{parts}</div>'
        f'<div style="{_SMALL}">{legend} · {shown(note)}</div></div>'
    )


def neighbours(head: str, rows: Sequence[Sequence[str]]) -> str:
    """Return a line and, below it, a table of texts as HTML."""
    cells = ("".join(f'<td style="{_CELL}">{shown(shortened(cell))}</td>' for cell in row) for row in rows)
    table = "".join(f"<tr>{row}</tr>" for row in cells)
    return f'<div style="{_BOX}"><b>{shown(shortened(head))}</b><table style="{_TEXT}">{table}</table></div>'


def shortened(text: str) -> str:
    """Return a text without its middle, if it is long."""
    missing = len(text) - 2 * _SHOWN
    return text if missing <= 0 else f"{text[:_SHOWN]} … {missing:,} characters … {text[-_SHOWN:]}"


def _parts(text: str, tokens: Iterable[tuple[str, Span, float]]) -> Iterator[str]:
    """Yield the parts of a text: those read, coloured, and those not read."""
    pieces: list[_Piece] = []
    for token, span, number in tokens:
        before = pieces[-1] if pieces else None
        if before is not None and (span == before.span or span.start < before.span.end):
            pieces[-1] = before.joined(span, number)
        else:
            pieces.append(_Piece(token, span, number))
    largest = max(abs(piece.attribution) for piece in pieces)
    end = 0
    for piece in pieces:
        yield _unread(text[end : piece.span.start])
        count = f" ({piece.tokens} times)" if piece.tokens > 1 and piece.span.start == piece.span.end else ""
        found = text[piece.span.start : piece.span.end] or piece.text
        yield _coloured(found + count, piece.attribution, largest)
        end = piece.span.end
    yield _unread(text[end:])


class _Piece(NamedTuple):
    """Tokens that share a character, or fillers."""

    text: str
    span: Span
    attribution: float
    tokens: int = 1

    def joined(self, span: Span, attribution: float) -> "_Piece":
        """Return the piece with another token."""
        return _Piece(self.text, Span(self.span.start, span.end), self.attribution + attribution, self.tokens + 1)


def _coloured(text: str, attribution: float, largest: float) -> str:
    """Return a text on the colour of its attribution."""
    (colour, line), share = _FOR if attribution >= 0 else _AGAINST, abs(attribution) / largest if largest else 0.0
    style = f"background:rgba({colour},{_OPACITY * share:.2f});border-bottom:2px {line} rgba({colour},{share:.2f})"
    return f'<span style="{style}" title="{attribution:+.3f}">{shown(text)}</span>'


def _unread(text: str) -> str:
    """Return a part of a text that the model did not read, shortened in the middle if it is long."""
    if not text:
        return ""
    return f'<span style="opacity:0.5;text-decoration:line-through" title="not read">{shown(shortened(text))}</span>'
