"""The benchmark script runs, counts right, and writes what it says; its figures are not a test's business."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def peers() -> ModuleType:
    spec = importlib.util.spec_from_file_location("peers", EXAMPLES / "peers.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_books_recipe_is_counted_as_its_loop_runs() -> None:
    # 1,045 rows are 130 full batches an epoch: 650 steps. Evaluations at steps 0, 50, ..., 600 and after 5 epochs look
    # at 10 batches each; at the end come 130, 19 and 38 batches.
    assert peers().book_recipe(1.0, 0.0, (1045, 149, 300)) == 650
    assert peers().book_recipe(0.0, 1.0, (1045, 149, 300)) == (13 + 5) * 10 + 130 + 19 + 38


@pytest.mark.slow
def test_the_script_runs_on_a_toy_and_writes_ratios_notes_and_a_picture(tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(EXAMPLES / "benchmark.py"),
        "--data",
        "messages",
        "--tiny",
        "--rounds",
        "1",
        "--only",
        "folds",
        "predict",
        "prefix",
        "generate",
        "checkpoint",
        "--out",
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads((tmp_path / "results.json").read_text())
    assert set(result["ratios"]) == {"predict: pipeline / gptclf", "predict: tuned bf16 loop / gptclf"}
    assert all(ratio > 0 for ratio in result["ratios"].values())
    assert result["seconds"]["gptclf: predict the test set"]["runs"]
    assert any(name.startswith("prefix in bfloat16") for name in result["notes"])
    assert result["notes"]["greedy tokens: ours equal without the cache, and transformers'"] == [True, True]
    assert result["machine"]["torch"]
    assert (tmp_path / "ratios.png").stat().st_size > 1000
    assert "predict: pipeline / gptclf" in done.stdout
