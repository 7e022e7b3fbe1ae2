"""Promises of training that are easily broken unnoticed: targets, what is announced, what is left alone."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import byte_gpt2, byte_tokenizer

from gptclf import GPT2, Callback, History, Run, Step, TextDataset, add_classifier_head, train


class StopAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, run: Run, step: Step) -> None:
        if step.step == self.step:
            run.stop()


def classifier() -> GPT2:
    return add_classifier_head(byte_gpt2(), classes=["ham", "spam"], seed=3)


def data(n: int = 20) -> TextDataset:
    texts, labels = [f"text {i}" for i in range(n)], ["ham", "spam"] * (n // 2)
    return TextDataset(texts, labels, tokenizer=byte_tokenizer())


def run(folder: Path | None = None, **options: Any) -> History:
    kept = {} if folder is None else {"checkpoint_dir": folder, "resume": True}
    return train(classifier(), data(), **{"epochs": 2, "batch_size": 4, "progress": False, **kept, **options})


def test_a_folder_that_cannot_be_made_is_told_before_the_first_step(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    seen: list[int] = []

    class Count(Callback):
        def on_start(self, run: Run) -> None:
            seen.append(1)

    with pytest.raises(OSError, match=r"checkpoint_dir: .*states cannot be written to") as caught:
        run(tmp_path / "file" / "states", callbacks=[Count()])
    assert caught.value.errno
    assert not seen


def test_nothing_is_announced_without_progress_or_if_no_step_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, callbacks=[StopAt(7)])
    assert capsys.readouterr() == ("", "")  # nothing without progress
    run(tmp_path)
    assert capsys.readouterr() == ("", "")
    run(tmp_path, progress=True)
    assert "steps, about" not in capsys.readouterr().err  # nothing is left


def test_training_leaves_the_global_generators_alone() -> None:
    before, pythons = torch.get_rng_state(), random.getstate()
    legacy = np.random.get_state()  # noqa: NPY002
    run()
    assert torch.equal(before, torch.get_rng_state())
    assert random.getstate() == pythons
    assert str(np.random.get_state()) == str(legacy)  # noqa: NPY002


def test_steps_alone_are_measured_once_per_epoch_by_default() -> None:
    history = run()
    assert [scores.step for scores in history.scores()] == [5, 10]
    assert history.evaluations == []
