"""The guide on imbalanced data runs, and its numbers are those that it leads to."""

import io
import re
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from gptclf import evaluate, tfidf_baseline

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "imbalanced.md"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_page_runs_and_its_numbers_are_true(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(ROOT / "examples"), *sys.path])
    text = PAGE.read_text(encoding="utf-8")
    run: dict[str, Any] = {"__name__": "__main__"}
    with redirect_stdout(io.StringIO()):
        for code in re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL):
            exec(compile(code, str(PAGE), "exec"), run)
    # Processors round differently, and a few of 79 rows may be answered otherwise.
    rows = re.findall(r"^\| `(\w+)` \|(.+)\|$", text, flags=re.MULTILINE)
    assert [name for name, _ in rows] == ["clf", "for_f1", "for_recall", "by_cost"]
    for name, row in rows:
        _, *shown, cost = (float(cell) for cell in row.split("|"))
        result = evaluate(run[name], run["test_set"])
        scores = [result.metrics["accuracy"], result.metrics["balanced_accuracy"]]
        scores += [result.per_class[measure][1] for measure in ("precision", "recall", "f1")]
        assert shown == pytest.approx(scores, abs=0.06)
        assert cost == pytest.approx(run["cost"](run[name]), rel=0.2)
    floor = tfidf_baseline(run["train_set"], run["test_set"], class_weight="balanced")
    [shown_numbers] = re.findall(r"Average precision is ([\d.]+) with weights and ([\d.]+) without", text)
    found = [evaluate(run["weighted"], run["test_set"]), run["result"]]
    precisions = [result.metrics["average_precision"] for result in found]
    assert list(map(float, shown_numbers)) == pytest.approx(precisions, abs=0.06)
    [shown_number] = re.findall(r"average precision of\s+([\d.]+)", text)
    assert float(shown_number) == pytest.approx(floor.metrics["average_precision"], abs=0.02)
