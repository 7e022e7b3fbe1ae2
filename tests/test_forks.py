"""Processes made of one that has computed: forked ones end and answer alike, and models travel to spawned ones."""

import copy
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_threads import TEXTS, classifier, language_model, rows, trained

from gptclf import GPT2, load_model, predict_proba, quantize, save_model
from gptclf.features import cache, store

# What torch computes in two threads, so that its pool of threads exists, is done again in a fork.
PROGRAM = """
import os, sys, threading, time
sys.path.insert(0, sys.argv[1])
import numpy as np
import torch
import gptclf
from gptclf import *
torch.set_num_threads(2)
gpt2 = load_gpt2("nano")
texts = [f"text number {i} " * 12 for i in range(64)]
def work(folder):
    clf = add_classifier_head(gpt2, classes=["ham", "spam"], seed=1)
    data = TextDataset(texts, ["ham", "spam"] * 32, tokenizer=clf.tokenizer)
    history = train(clf, data, data, epochs=1, lr=1e-3, batch_size=32, progress=False)
    clf = load_model(save_model(clf, folder))
    said = generate(gpt2, "you won", max_new_tokens=3)
    return [step.loss for step in history.steps], predict_proba(clf, texts), evaluate(clf, data).accuracy, said
expected = work("parent")
assert torch.get_num_threads() == 2
children = []
for number in range(2):
    pid = os.fork()
    if pid == 0:
        alone = torch.get_num_threads() == 1
        losses, probabilities, accuracy, said = work(f"child{number}")
        same = np.allclose(losses, expected[0], atol=1e-5) and np.allclose(probabilities, expected[1], atol=1e-5)
        os._exit(7 if alone and same and accuracy == expected[2] and said == expected[3] else 1)
    children.append(pid)
end = time.monotonic() + 90
codes = []
while children and time.monotonic() < end:
    pid, status = os.waitpid(children[0], os.WNOHANG)
    if pid:
        codes.append(os.waitstatus_to_exitcode(status))
        children.pop(0)
    time.sleep(0.02)
for pid in children:
    os.kill(pid, 9)
assert torch.get_num_threads() == 2, "the parent keeps its threads"
np.testing.assert_array_equal(work("again")[1], expected[1])
sys.exit(str(codes) if codes != [7, 7] else 0)
"""

forks = pytest.mark.skipif(sys.platform != "linux", reason="forks of a process with GNU OpenMP's threads")


@forks
def test_a_process_that_was_forked_after_use_computes_alone_and_ends(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, str(Path(__file__).parent)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "2"}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr[-2000:]


@forks
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_does_not_wait_for_what_threads_of_its_parent_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread is in the middle of computing features, and holds their lock, when the process forks."""
    clf = classifier(language_model())
    expected = trained(classifier(language_model()), 1)[0]
    begun, over = threading.Event(), threading.Event()

    def hold() -> None:
        with cache.filling(prefix_identity(clf)):
            begun.set()
            over.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    begun.wait(60)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(write, str(trained(classifier(language_model()), 1)[0] == expected).encode())
        os._exit(0)
    os.close(write)
    over.set()
    thread.join()
    answer = os.read(read, 100)
    os.close(read)
    assert os.waitpid(pid, 0)[1] == 0
    assert answer == b"True"
    assert cache._lock.acquire(blocking=False)
    cache._lock.release()
    assert not store.changing_files.locked()


def prefix_identity(clf: GPT2) -> str:
    from gptclf.features.frozen_prefix import FrozenPrefix
    from gptclf.features.reuse import prefix_of

    found = prefix_of(clf, "auto")
    assert isinstance(found, FrozenPrefix)
    return found.identity()


def answers(clf: GPT2, texts: list[str], found: Any) -> None:
    torch.set_num_threads(1)
    found.put((predict_proba(clf, texts), trained(clf, 1)[0]))


def test_a_model_is_given_to_a_spawned_process_which_answers_and_trains_alike() -> None:
    clf = classifier(language_model())
    expected = predict_proba(clf, TEXTS)  # before: torch puts what it hands over into shared memory
    spawn = multiprocessing.get_context("spawn")
    found = spawn.Queue()
    process = spawn.Process(target=answers, args=(clf, TEXTS, found))
    process.start()
    probabilities, steps = found.get(timeout=120)
    process.join(60)
    assert process.exitcode == 0
    np.testing.assert_array_equal(probabilities, expected)
    assert steps == trained(classifier(language_model()), 1)[0]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda clf: pickle.loads(pickle.dumps(clf))])
@pytest.mark.parametrize("kind", ["new", "loaded", "quantised"])
def test_a_copy_answers_alike_and_shares_no_memory(kind: str, copied: Any, tmp_path: Path) -> None:
    clf = classifier(language_model())
    clf = load_model(save_model(clf, tmp_path / "m")) if kind == "loaded" else clf
    clf = quantize(clf) if kind == "quantised" else clf
    expected = predict_proba(clf, TEXTS)
    other = copied(clf)
    assert other.classes == clf.classes
    assert other.preparation == clf.preparation
    np.testing.assert_array_equal(predict_proba(other, TEXTS), expected)
    trained(other, 1)
    np.testing.assert_array_equal(predict_proba(clf, TEXTS), expected)
    assert rows().classes == other.classes
