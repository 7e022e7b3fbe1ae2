"""Threads share models, trunks and stored features: what each computes equals the serial run, bit for bit."""

import itertools
import os
import random
import resource
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import byte_tokenizer
from test_process_settings import assert_same, weights

from gptclf import (
    GPT2,
    Callback,
    GPT2Config,
    TextDataset,
    add_classifier_head,
    apply_lora,
    clear_features,
    evaluate,
    freeze,
    generate,
    load_gpt2,
    predict_proba,
    predict_stream,
    quantize,
    train,
)
from gptclf.features import cache, memory
from gptclf.features import frozen_prefix as prefix
from gptclf.features.cache import in_memory, peek
from gptclf.features.memory import process_memory
from gptclf.features.store import FeatureStore

TOKENIZER = byte_tokenizer()
TEXTS = [f"text number {i} {'ab ' * (i % 5)}" for i in range(16)]
CONFIG = GPT2Config(vocab_size=257, context_length=64, emb_dim=32, n_layers=2, n_heads=2)
WORKERS = 8


def language_model(dropout: float = 0.0, seed: int = 0) -> GPT2:
    return load_gpt2(CONFIG.replace(drop_rate=dropout), weights="random", seed=seed, tokenizer=TOKENIZER)


def classifier(gpt2: GPT2, seed: int = 1, **options: Any) -> GPT2:
    clf = add_classifier_head(gpt2, classes=["ham", "spam"], seed=seed, **options)
    clf.head.forget_fresh()
    return clf


def rows(texts: list[str] = TEXTS) -> TextDataset:
    return TextDataset(texts, ["ham", "spam"] * (len(texts) // 2), tokenizer=TOKENIZER)


def trained(clf: GPT2, seed: int, **options: Any) -> Any:
    history = train(clf, rows(), rows(), epochs=2, lr=1e-2, batch_size=4, seed=seed, progress=False, **options)
    return [vars(step) for step in history.steps], [scores.val for scores in history.epochs], weights(clf)


# Each is given the shared language models, with and without dropout, and its number; it makes its own classifier.
JOBS: dict[str, Callable[[GPT2, GPT2, int], Any]] = {
    "predict": lambda still, wild, i: predict_proba(classifier(still, i), TEXTS),
    "predict in training mode": lambda still, wild, i: predict_proba(classifier(wild, i).train(), TEXTS),
    "predict by mean": lambda still, wild, i: predict_proba(classifier(still, i, pooling="mean"), TEXTS),
    "stream": lambda still, wild, i: [a.outputs for a in predict_stream(classifier(still, i), TEXTS, window=5)],
    "generate": lambda still, wild, i: generate(still, "ab", max_new_tokens=6, temperature=1.0, seed=i),
    "evaluate": lambda still, wild, i: evaluate(classifier(still, i), rows()).outputs,
    "train": lambda still, wild, i: trained(classifier(still, i), i),
    "train with dropout": lambda still, wild, i: trained(classifier(wild, i), i),
    "train all with dropout": lambda still, wild, i: trained(freed(classifier(wild, i)), i, recompute=i % 2 == 0),
    "train in bfloat16": lambda still, wild, i: trained(classifier(wild, i), i, precision="bfloat16"),
    "lora": lambda still, wild, i: trained(apply_lora(classifier(wild, i), rank=2, seed=i), i),
    "quantised": lambda still, wild, i: predict_proba(quantize(classifier(still, i), bits="int8"), TEXTS),
}


def freed(clf: GPT2) -> GPT2:
    freeze(clf, trainable="all")
    return clf


@pytest.fixture
def _many_switches() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.fixture
def clearing() -> Iterator[None]:
    """Another thread that clears stored features all the time."""
    over = threading.Event()

    def clear() -> None:
        while not over.wait(0.002):
            clear_features()

    thread = threading.Thread(target=clear)
    thread.start()
    yield
    over.set()
    thread.join()


@pytest.mark.usefixtures("_many_switches")
def test_thirty_six_concurrent_runs_equal_their_serial_ones(request: pytest.FixtureRequest) -> None:
    still, wild = language_model(), language_model(0.3)
    jobs = list(itertools.product(JOBS, range(3)))
    assert len(jobs) == 36
    serial = {}
    for name, i in jobs:
        serial[name, i] = JOBS[name](still, wild, i)
    state = torch.get_rng_state()
    request.getfixturevalue("clearing")
    random.Random(5).shuffle(jobs)
    with ThreadPoolExecutor(WORKERS) as pool:
        found = pool.map(lambda job: JOBS[job[0]](still, wild, job[1]), jobs)
        for job, concurrent in zip(jobs, found, strict=True):
            assert_same(concurrent, serial[job])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.usefixtures("_many_switches")
@pytest.mark.parametrize("trainable", ["last_block", "all"])
def test_answers_of_a_model_in_training_leave_its_training_alone(trainable: str) -> None:
    """The answers themselves come from whatever weights the training has reached."""
    modes: list[set[bool]] = []

    class Look(Callback):
        def on_step(self, run: Any, step: Any) -> None:
            modes.append({part.training for part in run.model.modules()})

    def run(served: bool) -> Any:
        clf = classifier(language_model(0.3))
        freeze(clf, trainable=trainable)
        over, answers, generator = threading.Event(), [], torch.get_rng_state()

        def serve() -> None:
            while not over.is_set():
                answers.append(predict_proba(clf, TEXTS[:3]))
                evaluate(clf, rows(TEXTS[:4]))

        threads = [threading.Thread(target=serve) for _ in range(3 * served)]
        for thread in threads:
            thread.start()
        try:
            found = trained(clf, 3, callbacks=[Look()])
        finally:
            over.set()
            for thread in threads:
                thread.join()
        assert len(answers) >= len(threads)
        assert all(np.isfinite(answer).all() for answer in answers)
        assert torch.equal(torch.get_rng_state(), generator)
        return found

    assert_same(run(served=True), run(served=False))
    assert modes == [{False}] * len(modes)


# The feature store


def test_two_threads_compute_the_same_features_once(monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[int] = []
    real = prefix.compute_chunk

    def slowly(frozen: Any, some: Any, *more: Any) -> Any:
        computed.append(len(some))
        threading.Event().wait(0.1)
        return real(frozen, some, *more)

    monkeypatch.setattr(prefix, "compute_chunk", slowly)
    clf = classifier(language_model())
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: evaluate(clf, rows()).outputs, range(4)))
    assert computed == [len(TEXTS)]
    for outputs in found[1:]:
        np.testing.assert_array_equal(outputs, found[0])


@pytest.mark.usefixtures("_many_switches")
def test_eviction_while_others_read_gives_right_answers_within_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six models whose features fit in memory one or two at a time."""
    models = [classifier(language_model(seed=i), i) for i in range(6)]
    serial = [evaluate(clf, rows()).outputs for clf in models]
    one = clear_features() // 6
    monkeypatch.setattr(cache, "process_memory", lambda: 2.5 * one / cache.MEMORY_SHARE)
    most, real = [0], FeatureStore.add

    def add(store: FeatureStore, *given: Any) -> None:
        real(store, *given)
        most.append(sum(other.size for other in list(cache._alive)))

    monkeypatch.setattr(FeatureStore, "add", add)
    outcomes: Counter[bool] = Counter()

    def work(i: int) -> None:
        found = evaluate(models[i % 6], rows()).outputs
        outcomes[bool(np.allclose(found, serial[i % 6], rtol=0, atol=1e-5))] += 1

    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(work, range(60)))
    assert outcomes == {True: 60}
    assert one <= max(most) <= 2.5 * one


def test_features_that_a_run_still_uses_count_until_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "process_memory", lambda: 1000 / cache.MEMORY_SHARE)
    store = in_memory("a", lambda _: 600, renew=True)
    assert store is not None
    assert in_memory("b", lambda _: 600, renew=True) is None
    assert in_memory("c", lambda _: 400, renew=True) is not None
    del store
    assert in_memory("d", lambda _: 1000, renew=True) is not None
    assert peek("c") is None


@pytest.mark.usefixtures("_many_switches")
def test_threads_share_a_folder_of_features_that_others_clear_and_fill(tmp_path: Path) -> None:
    models = [classifier(language_model(seed=i), i) for i in range(3)]
    serial = [evaluate(clf, rows()).outputs for clf in models]
    plain, *_ = trained(classifier(language_model()), 1)
    over = threading.Event()

    def clear() -> None:
        while not over.wait(0.001):
            if tmp_path.is_dir():
                clear_features(tmp_path)

    thread = threading.Thread(target=clear)
    thread.start()
    try:
        with ThreadPoolExecutor(WORKERS) as pool:
            found = list(pool.map(lambda i: evaluate(models[i % 3], rows(), cache_dir=tmp_path).outputs, range(60)))
            losses = pool.map(lambda i: trained(classifier(language_model()), 1, cache_dir=tmp_path), range(24))
            assert all(loss == plain for loss, *_ in losses)
    finally:
        over.set()
        thread.join()
    for i, outputs in enumerate(found):
        np.testing.assert_allclose(outputs, serial[i % 3], rtol=0, atol=1e-5)


# The memory that features may take


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., float]:
    """Returns the process's memory under given control groups; the machine has 64 GB."""
    monkeypatch.setattr(memory, "_PROCESS", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "_GROUPS", tmp_path / "fs")
    monkeypatch.setattr(memory, "_physical_memory", lambda: 64e9)
    monkeypatch.setattr(memory, "_own_limits", list)

    def of(lines: str, **limits: str) -> float:
        (tmp_path / "cgroup").write_text(lines)
        for path, limit in limits.items():
            file = tmp_path / "fs" / path.replace("__", "/").replace("_max", ".max").replace("_limit", ".limit")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(limit + "\n")
        return process_memory()

    return of


def test_the_limit_of_a_group_or_of_one_above_it_is_the_process_s(groups: Callable[..., float]) -> None:
    assert groups("0::/\n") == 64e9
    assert groups("0::/a/b\n", a__b__memory_max="max") == 64e9
    assert groups("0::/a/b\n", a__memory_max="3000000000") == 3e9
    assert groups("0::/a/b\n", a__b__memory_max="2000000000") == 2e9
    # In a container: the host's path, and the group itself mounted at the top.
    assert groups("0::/kubepods/pod7/x\n", memory_max="1000000000") == 1e9
    assert groups("nonsense\n") == 64e9


def test_limits_of_the_first_version_of_control_groups_are_seen(groups: Callable[..., float]) -> None:
    lines = "12:cpu,cpuacct:/docker/x\n7:memory:/docker/x\n0::/docker/x\n"
    assert groups(lines) == 64e9
    assert groups(lines, memory__memory_limit_in_bytes="9223372036854771712") == 64e9
    assert groups(lines, memory__docker__x__memory_limit_in_bytes="500000000") == 5e8


@pytest.mark.skipif(os.name != "posix", reason="resource limits")
@pytest.mark.parametrize("kind", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_limits_on_address_space_and_data_are_seen(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real, chosen = resource.getrlimit, getattr(resource, kind)
    monkeypatch.setattr(resource, "getrlimit", lambda k: (10**8, 10**9) if k == chosen else real(k))
    assert process_memory() == 1e8
    assert cache.memory_for_features() == 1e8 * cache.MEMORY_SHARE
