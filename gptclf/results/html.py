"""Results as HTML: fragments for a notebook and whole pages, without scripts and with everything escaped."""

import html
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptclf.files.atomic import text_writer, write_file
from gptclf.metrics.probabilities import Reliability
from gptclf.plotting import short_labels

# Characters of a text, and of a label, that are shown.
_TEXT, _LABEL = 300, 32

# Beyond this many classes a table has those with the lowest F1, and the confusion matrix is left to a picture.
_MOST_ROWS, _MOST_COLUMNS = 100, 12

# Joins two bounds, and stands for a missing number.
_TO = "\u2013"

# What a page may not contain, or shows as nothing: controls, halves of characters, and code points that are none.
_UNSHOWN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")

# In JupyterLab the colours are those of its theme, elsewhere those that the reader's system prefers.
_STYLE = """
.gptclf { --ink: var(--jp-content-font-color1, #1f2328); --line: var(--jp-border-color2, #d0d7de); --fill: 9 105 218;
  color: var(--ink); font: 13px/1.45 system-ui, sans-serif; max-width: 60rem; }
@media (prefers-color-scheme: dark) { .gptclf { --ink: var(--jp-content-font-color1, #e6edf3);
  --line: var(--jp-border-color2, #3d444d); --fill: 68 147 248; } }
.gptclf section { margin: 1em 0; overflow: auto; max-height: 36em; }
.gptclf table { border-collapse: collapse; font-variant-numeric: tabular-nums; color: inherit; }
.gptclf caption, .gptclf h3 { text-align: left; font-size: 1em; font-weight: 600; margin: 0; padding: 0 0 .3em; }
.gptclf td, .gptclf th { padding: .2em .7em; border: solid var(--line); border-width: 1px 0; text-align: right;
  background: none; white-space: nowrap; vertical-align: top; }
.gptclf thead th { font-weight: 600; }
.gptclf tbody th { font-weight: 400; }
.gptclf th:first-child, .gptclf td.text { text-align: left; }
.gptclf td.text { white-space: normal; min-width: 26em; overflow-wrap: anywhere; }
.gptclf table.matrix td { text-align: center; border-width: 1px; min-width: 3em; }
.gptclf svg { display: block; width: 100%; max-width: 24em; height: auto; font-size: 9px; }
"""


def escaped(value: Any, most: int = _TEXT) -> str:
    """Return a value as text that HTML shows as it is, shortened if it is long."""
    text = str(value)
    text = text if len(text) <= most else f"{text[: most - 1]}…"
    return html.escape(_UNSHOWN.sub("\ufffd", text))


def _label(value: Any) -> str:
    """Return a label without its middle if it is long; a reader who points at it sees the whole."""
    short, text = short_labels([value], _LABEL)[0], str(value)
    return escaped(text) if len(text) <= _LABEL else f'<span title="{escaped(text)}">{escaped(short)}</span>'


def fragment(title: str, parts: Iterable[str]) -> str:
    """Return parts of HTML under a title, with a style that applies to them alone."""
    style = "<style>" + " ".join(_STYLE.split()) + "</style>"
    return f'<div class="gptclf">{style}<h3>{escaped(title)}</h3>{"".join(parts)}</div>'


def write_page(path: Path, title: str, content: str) -> Path:
    """Write a page around a fragment; without a suffix in `path`, .html is added. Return the path of the file."""
    target = path if path.suffix else path.with_suffix(".html")
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    dark = "@media (prefers-color-scheme: dark) { body { background: #0d1117 } }"
    head += f"<title>{escaped(title)}</title><style>body {{ margin: 1.5em; background: #fff }} {dark}</style>"
    target.parent.mkdir(parents=True, exist_ok=True)
    page = f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body>{content}</body></html>\n'
    write_file(target, text_writer(page))
    return target


def evaluation_parts(
    result: Any, bounds: Mapping[str, NDArray[np.float64]], n_resamples: int, *, texts: bool
) -> Iterator[str]:
    """Yield what there is to show of an evaluation, part by part.

    Args:
        result: The evaluation.
        bounds: The 95 % interval of each measure (2,), and of each class's F1 (C, 2) by the name "f1_per_class".
        n_resamples: How many resamples they come from.
        texts: Whether errors show their texts.
    """
    title = f"Measures, with bootstrap intervals from {n_resamples:,} resamples"
    yield measures_table(title, result.metrics, bounds)
    if "per_class" in result.details:
        scores = result.per_class
        yield class_table(result.classes, scores, f1_bounds(scores, bounds.get("f1_per_class")))
    if "confusion" in result.details:
        yield confusion_table(result.classes, result.confusion)
    with suppress(TypeError):  # a task without one probability for each answer
        yield reliability_picture(result.reliability())
    with suppress(TypeError):
        yield error_table(result.most_confident_errors(), texts=texts)


def f1_bounds(scores: Mapping[str, NDArray[Any]], found: NDArray[np.float64] | None) -> NDArray[np.float64]:
    """Return the intervals of the F1 of each class (C, 2), or NaN if the task has no statistic to find them by."""
    return np.full((len(scores["f1"]), 2), np.nan) if found is None else found


def table(title: str, head: Sequence[str], rows: Iterable[tuple[str, str]], kind: str = "plain") -> str:
    """Return a table that scrolls if it is large; a row is its heading and the cells after it, all of them HTML."""
    top = "".join(f'<th scope="col">{name}</th>' for name in head)
    lines = "".join(f'<tr><th scope="row">{first}</th>{cells}</tr>' for first, cells in rows)
    content = f"<caption>{title}</caption><thead><tr>{top}</tr></thead><tbody>{lines}</tbody>"
    return _section(title, f'<table class="{kind}">{content}</table>')


def measures_table(
    title: str, measures: Mapping[str, float], bounds: Mapping[str, Any], *, confidence: float = 0.95, sign: str = ""
) -> str:
    """Return a table of measures with their intervals; with "+" for `sign` all numbers have one."""
    number = f"{{:{sign}.4f}}"
    rows = [
        (escaped(name), _cells(number.format(value), _range(bounds[name], number))) for name, value in measures.items()
    ]
    if not rows:
        return "<p>No measures: the task has no statistic.</p>"
    return table(title, ["measure", "value", f"{100 * confidence:g} % interval"], rows)


def pairs_table(pairs: NDArray[np.int64], p_value: float) -> str:
    """Return a table of how many rows both, one or none of two models answer rightly, with McNemar's p-value."""
    rows = [(name, _cells(*(f"{n:,}" for n in row))) for name, row in zip(("A right", "A wrong"), pairs, strict=True)]
    return table(f"Texts (McNemar's exact test: p = {p_value:.3g})", ["", "B right", "B wrong"], rows)


def class_table(classes: Sequence[Any], scores: Mapping[str, NDArray[Any]], bounds: NDArray[np.float64]) -> str:
    """Return a table of the scores of each class; of many classes, those with the lowest F1."""
    order, title = np.arange(len(classes)), "Classes"
    if len(order) > _MOST_ROWS:
        order = np.argsort(scores["f1"], kind="stable")[:_MOST_ROWS]
        title = f"The {_MOST_ROWS} of {len(classes):,} classes with the lowest F1"
    names = [name for name in scores if name != "support"]
    rows = []
    for i in order.tolist():
        each = [f"{scores[name][i]:.3f}" if np.isfinite(scores[name][i]) else _TO for name in names]
        rows.append((_label(classes[i]), _cells(*each, _range(bounds[i]), f"{scores['support'][i]:,}")))
    return table(title, ["class", *names, "f1, 95 % interval", "texts"], rows)


def confusion_table(classes: Sequence[Any], confusion: NDArray[np.int64]) -> str:
    """Return a confusion matrix, the darker the larger the share of the true class; "" if there are many classes."""
    if len(classes) > _MOST_COLUMNS:
        return ""
    names = [_label(label) for label in classes]
    strength = 0.6 * confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)  # ink stays legible on it
    rows = [
        (
            name,
            "".join(f'<td style="background: rgb(var(--fill) / {a:.3f})">{n:,}</td>' for n, a in zip(*of, strict=True)),
        )
        for name, *of in zip(names, confusion, strength, strict=True)
    ]
    return table("Texts by true class (rows) and predicted class (columns)", ["", *names], rows, "matrix")


def error_table(errors: Iterable[Any], *, texts: bool) -> str:
    """Return a table of confident errors, with their texts if asked for; "" if there are none."""
    head = ["row", "probability", "target", "prediction", *["text"] * texts]
    rows = []
    for error in errors:
        cells = _cells(f"{error.probability:.4f}", _label(error.target), _label(error.prediction))
        cells += f'<td class="text" dir="auto">{escaped(error.text)}</td>' * texts
        rows.append((f"{error.row:,}", cells))
    return table("Wrong answers that the model was surest of", head, rows) if rows else ""


def reliability_picture(curve: Reliability) -> str:
    """Return a reliability diagram: the share of right answers over the mean probability in each bin that has texts."""
    side, left, top = 180, 30, 8
    has = np.flatnonzero(curve.count)
    share = curve.count / curve.count.sum()
    bars, points = [], []
    for i in has:
        x, y = left + side * curve.confidence[i], top + side * (1 - curve.accuracy[i])
        x0, x1 = (left + side * edge for edge in curve.edges[i : i + 2])
        says = f"probability {curve.confidence[i]:.3f}, right {curve.accuracy[i]:.3f}, {curve.count[i]:,} texts"
        high = 0.4 * side * share[i] / share.max()
        bars.append(f'<rect x="{x0:.1f}" y="{top + side - high:.1f}" width="{x1 - x0:.1f}" height="{high:.1f}"/>')
        points.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"><title>{says}</title></circle>')
    line = " ".join(f"{left + side * curve.confidence[i]:.1f},{top + side * (1 - curve.accuracy[i]):.1f}" for i in has)
    ticks = "".join(
        f'<text x="{left + side * v}" y="{top + side + 12}" text-anchor="middle">{v:g}</text>'
        f'<text x="{left - 4}" y="{top + side * (1 - v) + 3}" text-anchor="end">{v:g}</text>'
        for v in (0, 0.5, 1)
    )
    return _section(
        "Reliability",
        "<h4>Reliability: right answers (up) over probability (right), and how many texts have it (bars)</h4>"
        f'<svg viewBox="0 0 {side + left + 12} {side + top + 18}" role="img" aria-label="Reliability diagram">'
        f'<g fill="rgb(var(--fill) / .25)">{"".join(bars)}</g>'
        f'<path d="M{left} {top}v{side}h{side}" fill="none" stroke="var(--ink)"/>'
        f'<path d="M{left} {top + side}l{side} -{side}" stroke="var(--ink)" stroke-dasharray="3 3" opacity=".6"/>'
        f'<polyline points="{line}" fill="none" stroke="rgb(var(--fill))"/>'
        f'<g fill="rgb(var(--fill))">{"".join(points)}</g><g fill="var(--ink)">{ticks}</g></svg>',
    )


def _section(title: str, content: str) -> str:
    # A part that scrolls must be reachable by keyboard.
    return f'<section tabindex="0" aria-label="{title}">{content}</section>'


def _cells(*values: str) -> str:
    return "".join(f"<td>{value}</td>" for value in values)


def _range(bounds: Iterable[float], number: str = "{:.3f}") -> str:
    low, high = bounds
    return f"{number} {_TO} {number}".format(low, high) if np.isfinite(low) else _TO
