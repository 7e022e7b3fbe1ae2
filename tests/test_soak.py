"""A process that loads, predicts and trains for long stays flat; examples/soak.py does more of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_open_files_and_threads_stay_flat() -> None:
    program = "import json, soak; print(json.dumps(soak.main(0.1)))"
    paths = [str(ROOT / "examples"), *filter(None, sys.path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    table = json.loads(done.stdout.splitlines()[-1])
    assert set(table) == {"loads, collector off", "predictions", "trainings"}
    for name, found in table.items():
        (memory, *before), (later, *after) = found["start"], found["end"]
        assert after == before, f"open files and threads over {name}"
        assert later - memory < 8, f"MB over {name}"  # 40 leaked models would take 160
