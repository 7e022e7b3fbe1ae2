"""The model card: the README.md of a saved folder, which starts with metadata for the Hugging Face hub.

Format: YAML between two lines of three dashes, then Markdown (Hugging Face, "Model Cards"). A card is a pure function
of plain values: equal values give equal text.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gptclf.preparation import Preparation
from gptclf.saving.markup import markdown_cell, markdown_code, markdown_text, yaml_value
from gptclf.tasks.task import TaskCard

CARD = "README.md"
# A card with this line was written by gptclf and may be overwritten.
CARD_MARK = "<!-- Written by gptclf at each save. Delete this line to keep the card as it is. -->"

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
# A card is for people, so it shows at most this many items; the other files have the whole list.
_LONGEST_LIST = 200


@dataclass(frozen=True, kw_only=True)
class Card:
    """The contents of a model card.

    Attributes:
        name: The title of the card.
        task: The parts that depend on the model's task.
        exported: Whether `transformers` can also load the folder.
        sizes: The sizes of the model by name, in order ("blocks": 12, ...).
        parameters: Total number of parameters.
        quantized: The bits in which matrices of the blocks are kept, if not as floats: "nf4" or "int8".
        trained: Names of the trainable parameters, in order, with their sizes.
        policy: The policy that chose them, such as "last_block"; None if not known.
        looks_at: The tokens that the head looks at, such as "the last token"; "" if not known.
        max_length: Maximum number of tokens of a text; None for the whole context.
        truncation: The part that longer texts lose: their "tail", "head" or "middle".
        pad_to: Length to which texts are padded with end-of-text tokens that count as text; None for no padding.
        base_model: The model it was fine-tuned from: a hub name, which also goes into the metadata, or a description.
        data: A description of the training data, in the user's words (Markdown).
        datasets: Names of the training data sets on the hub.
        metrics: Values by name, in order, as measured by the user.
        measured_on: The data set of the metrics; required for the hub's table of results.
        license: The identifier of a licence, such as "mit"; None omits it.
        adapter: What is said about a LoRA adapter, by name; empty for a whole model.
    """

    name: str
    task: TaskCard
    exported: bool
    sizes: Mapping[str, int] = field(default_factory=dict)
    parameters: int
    quantized: Sequence[str] = ()
    trained: Mapping[str, int] = field(default_factory=dict)
    policy: str | None = None
    looks_at: str = ""
    max_length: int | None = None
    truncation: str = "tail"
    pad_to: int | None = None
    base_model: str | None = None
    data: str | None = None
    datasets: Sequence[str] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    measured_on: str | None = None
    license: str | None = None
    adapter: Mapping[str, str] = field(default_factory=dict)


def is_our_card(path: Path) -> bool:
    """Return True if gptclf wrote the file at this path and its marker line is still there."""
    return path.is_file() and CARD_MARK in path.read_text(encoding="utf-8", errors="replace")


def model_card(card: Card) -> str:
    """Return the README.md of a saved model.

    Example:
        >>> from gptclf import SingleLabel
        >>> task = SingleLabel(["ham", "spam"]).card()
        >>> text = model_card(Card(name="spam", task=task, exported=True, parameters=10))
        >>> text.splitlines()[1:3]
        ['library_name: "transformers"', 'pipeline_tag: "text-classification"']
    """
    front = "".join(f"{key}:{yaml_value(value)}\n" for key, value in _metadata(card).items())
    title = f"# {' '.join(markdown_text(card.name).split())}"
    writers = (_summary, _adapter, _labels, _data, _policy, _preparation, _metrics, _usage, _limits)
    sections = filter(None, (write(card) for write in writers))
    return f"---\n{front}---\n\n" + "\n\n".join([title, CARD_MARK, *sections]) + "\n"


def _metadata(card: Card) -> dict[str, Any]:
    values: dict[str, Any] = {
        "library_name": ("peft" if card.adapter else "transformers") if card.exported else "gptclf",
        "pipeline_tag": card.task.pipeline,
        "license": card.license,
        # Only hub names: the hub accepts nothing else, and local paths are private.
        "base_model": card.base_model if card.base_model and _HUB_NAME.fullmatch(card.base_model) else None,
        "datasets": list(card.datasets),
        "metrics": list(card.metrics),
        "tags": ["gptclf", "gpt2"],
    }
    if card.metrics and card.measured_on:
        result = {
            "task": {"type": card.task.pipeline or "other"},
            "dataset": {"name": card.measured_on, "type": (*card.datasets, card.measured_on)[0]},
            "metrics": [{"type": name, "value": float(value)} for name, value in card.metrics.items()],
        }
        values["model-index"] = [{"name": card.name, "results": [result]}]
    return {key: value for key, value in values.items() if value}


def _summary(card: Card) -> str:
    sizes = ", ".join(f"{value:,} {markdown_text(name)}" for name, value in card.sizes.items())
    shape = f"{card.parameters:,} parameters{f' ({sizes})' if sizes else ''}"
    base = f", fine-tuned from {markdown_code(card.base_model)}" if card.base_model else ""
    bits = f" Matrices of its blocks are kept in {markdown_code(' and '.join(card.quantized))}." * bool(card.quantized)
    return f"{card.task.summary} {shape}{base}.{bits}"


def _adapter(card: Card) -> str:
    if not card.adapter:
        return ""
    rows = "\n".join(f"| {name} | {markdown_cell(value)} |" for name, value in card.adapter.items())
    text = "This folder holds LoRA factors and the head, not the model beneath: loading it loads the base as well."
    check = "gptclf compares the base with a digest that was taken in training, and warns if it differs."
    return f"## Adapter\n\n{text} {check}\n\n| | |\n| --- | --- |\n{rows}"


def _labels(card: Card) -> str:
    labels = card.task.labels
    if not labels:
        return ""
    texts = all(isinstance(label, str) for label in labels)
    shown = [label if texts else repr(label) for label in labels[:_LONGEST_LIST]]
    lines = [f"{i}. {markdown_code(label)}" for i, label in enumerate(shown)]
    more = len(labels) - len(lines)
    lines += [f"\nand {more:,} more, in `gptclf.json`."] if more else []
    return "## Labels\n\nIn the order of the columns of `predict_proba`:\n\n" + "\n".join(lines)


def _data(card: Card) -> str:
    if not card.data and not card.datasets:
        return "## Data\n\nThe training data was not recorded."
    parts = [markdown_text(card.data)] if card.data else []
    parts += ["Data sets: " + ", ".join(map(markdown_code, card.datasets)) + "."] if card.datasets else []
    return "## Data\n\n" + "\n\n".join(parts)


def _policy(card: Card) -> str:
    count = sum(card.trained.values())
    if not count:
        return "## Training\n\nNone of its parameters is trainable."
    chosen = f" (policy {markdown_code(card.policy)})" if card.policy else ""
    if count == card.parameters:
        return f"## Training\n\nAll {count:,} parameters are trainable{chosen}."
    lines = [f"| {markdown_cell(name)} | {number:,} |" for name, number in list(card.trained.items())[:_LONGEST_LIST]]
    more = len(card.trained) - len(lines)
    lines += [f"| and {more:,} more | |"] if more else []
    share = f"{count:,} of {card.parameters:,} parameters are trainable{chosen}; the others are frozen."
    return f"## Training\n\n{share}\n\n| parameter | size |\n| --- | ---: |\n" + "\n".join(lines)


def _preparation(card: Card) -> str:
    if not card.task.takes_texts:
        return ""
    lost = {"tail": "their end", "head": "their beginning", "middle": "their middle"}[card.truncation]
    longest = f"{card.max_length:,} tokens" if card.max_length else "the model's context"
    filled = (
        f"Texts are padded to {card.pad_to:,} tokens with the end-of-text token, which counts as part of the text "
        "(as in Raschka's book)."
        if card.pad_to
        else "Texts are not padded to a fixed length; padding within a batch cannot change an answer."
    )
    return (
        "## How texts are prepared\n\n"
        "GPT-2's byte-level BPE; no token is added before or after a text. "
        f"Texts longer than {longest} lose {lost}. {filled}"
        + (f" The head looks at {card.looks_at}." if card.looks_at else "")
    )


def _metrics(card: Card) -> str:
    if not card.metrics:
        return ""
    where = f"Measured on {markdown_text(card.measured_on)}.\n\n" if card.measured_on else ""
    rows = "\n".join(f"| {markdown_cell(name)} | {float(value):.6g} |" for name, value in card.metrics.items())
    return f"## Metrics\n\n{where}| metric | value |\n| --- | ---: |\n{rows}"


def _peft(use: TaskCard) -> str:
    kind = "SequenceClassification" if use.pipeline == "text-classification" else "CausalLM"
    labels = f", num_labels={len(use.labels)}" if use.labels else ""
    load = f"model = AutoPeftModelFor{kind}.from_pretrained(FOLDER{labels})"
    return f"from peft import AutoPeftModelFor{kind}\n\n{load}"


def _usage(card: Card) -> str:
    use = card.task
    ours = use.ours.replace("load_gpt2", "load_model") if card.adapter else use.ours  # which finds the base
    text = f"## How to load it\n\n{_python(ours)}"
    if card.adapter:
        if not card.exported:
            return text + "\n\nPEFT cannot load it: `transformers`' GPT-2 has no such head or task."
        return text + f"\n\nOr with PEFT, which knows neither labels nor preparation:\n\n{_python(_peft(use))}"
    if not (card.exported and use.theirs):
        prepared = Preparation(card.max_length, card.truncation, card.pad_to)
        reason = prepared.export_problem() or "its GPT-2 has no such head"
        return text + f"\n\n`transformers` cannot load it: {reason}."
    theirs = "from transformers import pipeline\n\n" + use.theirs
    needs = ", `bitsandbytes` and `accelerate`" * bool(card.quantized)
    return text + f"\n\nOr with `transformers`{needs}:\n\n{_python(theirs)}"


def _python(code: str) -> str:
    return "```python\n" + code.replace("FOLDER", '"path/to/this/folder"') + "\n```"


def _limits(card: Card) -> str:
    general = "It carries the biases of its training data, and may be confidently wrong about texts unlike those."
    if (card.base_model or "").startswith("openai-community/"):
        general = "OpenAI trained GPT-2 on English web pages from before 2018. " + general
    return "\n\n".join(("## Limits", general, *card.task.limits))
