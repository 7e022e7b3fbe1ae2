"""The English of messages, docstrings and pages: words that a native reader stumbles over."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [path for pattern in ("gptclf/**/*.py", "examples/*.py", "docs/*.md", "*.md") for path in ROOT.glob(pattern)]
# Messages that the project makes up for a classifier to read.
MADE_UP = {"messages.py"}

STUMBLES = {
    "shall": r"\bshall\b",
    "gone on": r"\bgone on\b",
    "goes on with": r"\bgo(es)? on with\b",
    "passed over": r"\bpassed over\b",
    "trailing too": r", too[.,;]",
    "stands in": r"\bstands? in\b",
    "is no x": r"\b(is|are) no (?!longer|more|less|such)(?<!there is no )(?<!There is no )(?<!there are no )[a-z]",
}


def test_there_are_pages_to_read() -> None:
    assert {"README.md", "design.md", "train.py", "spam.py"} <= {path.name for path in PAGES}


@pytest.mark.parametrize("name", STUMBLES)
def test_nobody_stumbles(name: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in PAGES
        if path.name not in MADE_UP
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if re.search(STUMBLES[name], line)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("shall", "what shall train"),
        ("gone on", "an interrupted run is gone on with"),
        ("passed over", "such files are passed over"),
        ("trailing too", "and of the head, too."),
        ("stands in", "the label stands in the record"),
        ("is no x", "what is no GPT-2".replace("GPT", "gpt")),
    ],
)
def test_a_stumble_is_noticed(name: str, line: str) -> None:
    assert re.search(STUMBLES[name], line)
    assert not re.search(STUMBLES[name], "There is no such file, nor is it marshalled; there is no room.")
