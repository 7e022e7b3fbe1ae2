"""The model card: a saved folder's README.md, whose head is the metadata that the Hugging Face hub reads.

Format: YAML between two lines of three dashes, then Markdown (Hugging Face, "Model Cards").
Plain values in, text out; equal values give equal text.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# The line by which a card is known as ours and may be written anew.
MARK = "<!-- Written by gptclf at each save. Delete this line to keep the card as it is. -->"

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
# A card is for people: beyond these the files beside it have the whole list.
_LONGEST_LIST = 200


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a model card says.

    Attributes:
        name: The model's name, as its folder is called.
        classes: The labels in column order; None for a language model.
        exported: Whether `transformers` loads the folder, too.
        sizes: What to call the model's sizes and their values, in order ("blocks": 12, ...).
        parameters: Number of parameters, all in all.
        trained: Names of the parameters that train, in order, with their counts.
        policy: How they were chosen, such as "last_block"; None where it is not known.
        pooling: Where the classifier looks.
        max_length: Tokens of a text that count; None for the whole context.
        truncation: What a longer text loses: its "tail", its "head", or its "middle".
        pad_to: Length to which texts are filled up with end-of-text tokens that count; None for no filling.
        base_model: What it was fine-tuned from: a hub name, which also goes into the metadata, or a description.
        data: What it learned from, in the user's words (Markdown).
        datasets: The same as names of data sets on the hub.
        metrics: Name to value, in order, as measured by the user.
        measured_on: The data set of the metrics; needed for the hub's table of results.
        license: A licence's identifier, such as "mit"; None leaves it out.
    """

    name: str
    classes: Sequence[Any] | None
    exported: bool
    sizes: Mapping[str, int] = field(default_factory=dict)
    parameters: int
    trained: Mapping[str, int] = field(default_factory=dict)
    policy: str | None = None
    pooling: str = "last"
    max_length: int | None = None
    truncation: str = "tail"
    pad_to: int | None = None
    base_model: str | None = None
    data: str | None = None
    datasets: Sequence[str] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    measured_on: str | None = None
    license: str | None = None


def is_our_card(text: str) -> bool:
    """Whether a README.md is one that we wrote and nobody has taken over since."""
    return MARK in text


def model_card(card: Card) -> str:
    """The README.md of a saved model.

    Example:
        >>> text = model_card(Card(name="spam", classes=["ham", "spam"], exported=True, parameters=10))
        >>> text.splitlines()[1:3]
        ['library_name: "transformers"', 'pipeline_tag: "text-classification"']
    """
    front = "".join(f"{key}:{_yaml(value)}\n" for key, value in _metadata(card).items())
    sections = [
        f"# {' '.join(_text(card.name).split())}",
        MARK,
        _what(card),
        _labels(card),
        _data(card),
        _policy(card),
        _preparation(card),
        _metrics(card),
        _usage(card),
        _limits(card),
    ]
    return f"---\n{front}---\n\n" + "\n\n".join(section for section in sections if section) + "\n"


def _task(card: Card) -> str:
    return "text-generation" if card.classes is None else "text-classification"


def _metadata(card: Card) -> dict[str, Any]:
    values: dict[str, Any] = {
        "library_name": "transformers" if card.exported else "gptclf",
        "pipeline_tag": _task(card),
        "license": card.license,
        # The hub takes names of its own alone; a folder of this machine is nobody's business.
        "base_model": card.base_model if card.base_model and _HUB_NAME.fullmatch(card.base_model) else None,
        "datasets": list(card.datasets),
        "metrics": list(card.metrics),
        "tags": ["gptclf", "gpt2"],
    }
    if card.metrics and card.measured_on:
        values["model-index"] = [
            {
                "name": card.name,
                "results": [
                    {
                        "task": {"type": _task(card)},
                        "dataset": {"name": card.measured_on, "type": (*card.datasets, card.measured_on)[0]},
                        "metrics": [{"type": name, "value": float(value)} for name, value in card.metrics.items()],
                    }
                ],
            }
        ]
    return {key: value for key, value in values.items() if value}


def _what(card: Card) -> str:
    sizes = ", ".join(f"{value:,} {_text(name)}" for name, value in card.sizes.items())
    shape = f"{card.parameters:,} parameters{f' ({sizes})' if sizes else ''}"
    base = f", fine-tuned from {_code(card.base_model)}" if card.base_model else ""
    if card.classes is None:
        return f"A GPT-2 language model with {shape}{base}."
    return f"A GPT-2 that puts a text into one of {len(card.classes)} classes, with {shape}{base}."


def _labels(card: Card) -> str:
    if card.classes is None:
        return ""
    texts = all(isinstance(label, str) for label in card.classes)
    shown = [label if texts else repr(label) for label in card.classes[:_LONGEST_LIST]]
    lines = [f"{i}. {_code(label)}" for i, label in enumerate(shown)]
    more = len(card.classes) - len(lines)
    lines += [f"\nand {more:,} more, in `gptclf.json`."] if more else []
    return "## Labels\n\nIn the order of the columns of `predict_proba`:\n\n" + "\n".join(lines)


def _data(card: Card) -> str:
    if not card.data and not card.datasets:
        return "## Data\n\nWhat it learned from was not recorded."
    parts = [_text(card.data)] if card.data else []
    parts += ["Data sets: " + ", ".join(map(_code, card.datasets)) + "."] if card.datasets else []
    return "## Data\n\n" + "\n\n".join(parts)


def _policy(card: Card) -> str:
    count = sum(card.trained.values())
    if not count:
        return "## Training\n\nNo parameter of it is set to train."
    chosen = f" (policy {_code(card.policy)})" if card.policy else ""
    if count == card.parameters:
        return f"## Training\n\nAll {count:,} parameters train{chosen}."
    lines = [f"| {_cell(name)} | {number:,} |" for name, number in list(card.trained.items())[:_LONGEST_LIST]]
    more = len(card.trained) - len(lines)
    lines += [f"| and {more:,} more | |"] if more else []
    share = f"{count:,} of {card.parameters:,} parameters train{chosen}; the rest stayed as they were loaded."
    return f"## Training\n\n{share}\n\n| parameter | size |\n| --- | ---: |\n" + "\n".join(lines)


def _preparation(card: Card) -> str:
    if card.classes is None:
        return ""
    lost = {"tail": "their end", "head": "their beginning", "middle": "their middle"}[card.truncation]
    where = {
        "last": "the last token",
        "first": "the first token",
        "mean": "the mean of all tokens",
        "max": "the largest value of each dimension over all tokens",
    }
    longest = f"{card.max_length:,} tokens" if card.max_length else "the model's context"
    filled = (
        f"They are filled up to {card.pad_to:,} tokens with the end-of-text token, which counts as part of the text "
        "(as in Raschka's book)."
        if card.pad_to
        else "Nothing is filled up: padding of a batch cannot change an answer."
    )
    return (
        "## How texts are prepared\n\n"
        "GPT-2's byte-level BPE, no special tokens. "
        f"Texts longer than {longest} lose {lost}. {filled} "
        f"The head looks at {where[card.pooling]}."
    )


def _metrics(card: Card) -> str:
    if not card.metrics:
        return ""
    where = f"Measured on {_text(card.measured_on)}.\n\n" if card.measured_on else ""
    rows = "\n".join(f"| {_cell(name)} | {float(value):.6g} |" for name, value in card.metrics.items())
    return f"## Metrics\n\n{where}| metric | value |\n| --- | ---: |\n{rows}"


def _usage(card: Card) -> str:
    if card.classes is None:
        ours = 'from gptclf import load_model\n\nmodel = load_model("path/to/this/folder")'
        theirs = 'generate = pipeline("text-generation", model="path/to/this/folder")'
    else:
        ours = (
            "from gptclf import load_model, predict, predict_proba\n\n"
            'model = load_model("path/to/this/folder")\npredict(model, ["a text"])\npredict_proba(model, ["a text"])'
        )
        theirs = 'classify = pipeline("text-classification", model="path/to/this/folder")\nclassify(["a text"])'
    text = f"## How to load it\n\n```python\n{ours}\n```"
    if card.exported:
        text += f"\n\nOr with `transformers`:\n\n```python\nfrom transformers import pipeline\n\n{theirs}\n```"
        if card.classes is not None and card.pad_to:
            text += (
                "\n\n`transformers` does not fill texts up; its answers differ from gptclf's unless you add the "
                f"end-of-text tokens up to {card.pad_to:,} yourself."
            )
        return text
    return text + "\n\n`transformers` cannot load it: its GPT-2 has no such head."


def _limits(card: Card) -> str:
    known = ["It carries the biases of what it has read; what it was not trained on it may get wrong with confidence."]
    if (card.base_model or "").startswith("openai-community/"):
        known = ["OpenAI's GPT-2 learned from English web pages of before 2018. " + known[0]]
    if card.classes is not None:
        known.append(
            "It always answers with one of its classes, also for a text that belongs to none. Its probabilities "
            "are not calibrated unless you have checked."
        )
    return "## Limits\n\n" + "\n\n".join(known)


def _yaml(value: Any, indent: str = "") -> str:
    """What follows a key's colon: a scalar on the same line, a collection on lines of its own."""
    deeper = indent + "  "
    if isinstance(value, Mapping):
        return "".join(f"\n{deeper}{key}:{_yaml(item, deeper)}" for key, item in value.items())
    if isinstance(value, list):
        return "".join(f"\n{deeper}-{_yaml_item(item, deeper)}" for item in value)
    return f" {_scalar(value)}"


def _yaml_item(item: Any, indent: str) -> str:
    if not isinstance(item, Mapping):
        return _yaml(item, indent)
    # A mapping's first key stands on the dash's own line.
    return " " + _yaml(item, indent).lstrip()


def _scalar(value: Any) -> str:
    if isinstance(value, float):
        if not math.isfinite(value):
            return ".nan" if math.isnan(value) else f"{'-' if value < 0 else ''}.inf"
        text = repr(value)
        # YAML 1.1 takes 1e-05 for a text.
        return text.replace("e", ".0e") if "e" in text and "." not in text else text
    # Always in double quotes: a bare "no", "1.0" or "a: b" would be something else.
    return '"' + "".join(map(_escape, str(value).replace("\\", "\\\\").replace('"', '\\"'))) + '"'


def _escape(char: str) -> str:
    """A character as it may stand in a YAML text in double quotes, and in a line of Markdown."""
    if char.isprintable():
        return char
    return f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}"


def _text(text: str) -> str:
    """Somebody's Markdown; what UTF-8 cannot hold is written as an escape."""
    return text.encode("utf-8", "backslashreplace").decode().strip()


def _code(text: str) -> str:
    """A text as Markdown code on one line, in quotes where that tells more, control characters escaped."""
    if text != text.strip() or not text or not text.isprintable():
        text = json.dumps(text, ensure_ascii=False)
    text = "".join(map(_escape, text))
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if "`" in text else ""
    return f"{fence}{space}{text}{space}{fence}"


def _cell(value: str) -> str:
    return _code(value).replace("|", "\\|")
