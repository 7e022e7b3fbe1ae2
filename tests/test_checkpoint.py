"""A run that was cut off and resumed is the run that was not, bit for bit."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import byte_gpt2
from safetensors.torch import save_file

from gptclf import GPT2, History, TextDataset, add_classifier_head, freeze, predict, train
from gptclf.files.safetensors_file import read_safetensors
from gptclf.gpt2.sharing import set_parameter
from gptclf.training.callbacks import KeepBest
from gptclf.training.history import Scores
from gptclf.training.run import Callback, Run

TEXTS = ["win a prize", "see you", "call now", "ok then", "free entry", "at six?", "what"]
LABELS = ["spam", "ham", "spam", "ham", "spam", "ham", "ham"]
SETTINGS: dict[str, Any] = {
    "epochs": 4,
    "batch_size": 2,
    "lr": 1e-2,
    "schedule": "cosine",
    "warmup_steps": 3,
    "accumulate": 2,
    "clip": 1.0,
    "eval_every": 1,
    "progress": False,
}


class Stop(Callback):
    """Ends a run with an error once the given epoch was measured."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_scores(self, run: Run, scores: Scores) -> None:
        if scores.epoch == self.epoch:
            raise KeyboardInterrupt


def classifier(trainable: str = "last_block", dropout: float = 0.0) -> GPT2:
    clf = add_classifier_head(byte_gpt2(dropout=dropout), classes=["ham", "spam"], seed=3)
    freeze(clf, trainable=trainable)
    return clf


def run(clf: GPT2, **changes: Any) -> History:
    data = TextDataset(TEXTS, LABELS, tokenizer=clf.tokenizer, classes=clf.classes)
    return train(clf, data, data, **{**SETTINGS, **changes})


def measured(history: History) -> dict[str, Any]:
    """Everything but the times."""
    values = asdict(history)
    del values["seconds"]
    for scores in [*values["evaluations"], *values["epochs"]]:
        del scores["seconds"]
    return values


def states(folder: Path) -> list[int]:
    """The steps whose states a folder holds; nothing else is in it."""
    return sorted(int(path.name.removeprefix("step-").removesuffix(".safetensors")) for path in folder.iterdir())


def newest(folder: Path) -> Path:
    return max(folder.glob("step-*.safetensors"))


def assert_equal_models(first: GPT2, second: GPT2) -> None:
    pairs = zip(first.named_parameters(), second.named_parameters(), strict=True)
    assert all(torch.equal(a, b) for (_, a), (_, b) in pairs)


@pytest.mark.parametrize(("trainable", "dropout"), [("last_block", 0.0), ("all", 0.2), ("head", 0.0)])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(trainable: str, dropout: float, tmp_path: Path) -> None:
    straight = classifier(trainable, dropout)
    whole = run(straight)
    with pytest.raises(KeyboardInterrupt):
        run(classifier(trainable, dropout), checkpoint_dir=tmp_path, callbacks=[Stop(3)])
    resumed = classifier(trainable, dropout)
    history = run(resumed, checkpoint_dir=tmp_path, resume=True)
    assert_equal_models(resumed, straight)
    assert measured(history) == measured(whole)
    assert not resumed.head.is_fresh


def test_a_run_killed_in_another_process_goes_on_here(tmp_path: Path) -> None:
    code = f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import torch
torch.set_num_threads(1)
from test_checkpoint import Callback, classifier, run
class Die(Callback):
    def on_step(self, run, step):
        if step.epoch == 3:
            os._exit(9)
run(classifier(), checkpoint_dir={str(tmp_path)!r}, callbacks=[Die()])
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 9
    assert states(tmp_path) == [2, 4]
    straight, resumed = classifier(), classifier()
    run(straight)
    history = run(resumed, checkpoint_dir=tmp_path, resume=True)
    assert [scores.epoch for scores in history.epochs] == [1, 2, 3, 4]
    assert_equal_models(resumed, straight)


def test_frozen_blocks_are_not_trained_again_by_a_run_that_is_over(tmp_path: Path) -> None:
    first, again = classifier(), classifier()
    whole = run(first, checkpoint_dir=tmp_path)
    history = run(again, checkpoint_dir=tmp_path, resume=True)
    assert measured(history) == measured(whole)
    assert_equal_models(first, again)
    assert predict(again, TEXTS) == predict(first, TEXTS)


def test_the_best_weights_are_remembered_across_a_resume(tmp_path: Path) -> None:
    class Worsen(Callback):
        """Makes every epoch after the first a bad one, so that the best lies before the cut."""

        def on_scores(self, run: Run, scores: Scores) -> None:
            if scores.step >= 2:
                with torch.no_grad():
                    for parameter in run.model.head.parameters():
                        parameter.copy_(torch.full_like(parameter, 3.0))

    straight = classifier()
    best = KeepBest()
    run(straight, callbacks=[best, Worsen()])
    with pytest.raises(KeyboardInterrupt):
        run(classifier(), checkpoint_dir=tmp_path, callbacks=[KeepBest(), Worsen(), Stop(3)])
    resumed, kept = classifier(), KeepBest()
    run(resumed, checkpoint_dir=tmp_path, resume=True, callbacks=[kept, Worsen()])
    assert kept.best is not None
    assert best.best is not None
    assert kept.best.step == best.best.step
    assert kept.best.epoch < 3
    assert_equal_models(resumed, straight)


def test_resume_without_a_state_starts_at_the_beginning(tmp_path: Path) -> None:
    straight, resumed = classifier(), classifier()
    run(straight)
    run(resumed, checkpoint_dir=tmp_path / "new", resume=True)
    assert_equal_models(straight, resumed)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"lr": 1e-3}, "lr was 0.01, is 0.001. Give what that run was given, or another checkpoint_dir"),
        ({"batch_size": 3}, "batch_size"),
        ({"epochs": 5}, "epochs was 4, is 5 .the cosine schedule depends on the number of epochs"),
        ({"epochs": 3}, "epochs was 4, is 3"),
        ({"layer_decay": 0.5}, "layer_decay was 1.0, is 0.5"),
    ],
)
def test_a_run_given_something_else_is_not_resumed(changes: dict[str, Any], named: str, tmp_path: Path) -> None:
    run(classifier(), checkpoint_dir=tmp_path)
    clf = classifier()
    before = [parameter.clone() for parameter in clf.parameters()]
    with pytest.raises(ValueError, match=named):
        run(clf, checkpoint_dir=tmp_path, resume=True, **changes)
    assert all(torch.equal(a, b) for a, b in zip(before, clf.parameters(), strict=True))


def test_other_texts_and_other_base_weights_are_noticed(tmp_path: Path) -> None:
    run(classifier(), checkpoint_dir=tmp_path)
    clf = classifier()
    data = TextDataset([*TEXTS[:-1], "else"], LABELS, tokenizer=clf.tokenizer, classes=clf.classes)
    with pytest.raises(ValueError, match="the training set's texts or labels differ"):
        train(clf, data, data, checkpoint_dir=tmp_path, resume=True, **SETTINGS)
    other = add_classifier_head(byte_gpt2(seed=9), classes=["ham", "spam"], seed=3)
    with pytest.raises(ValueError, match="the weights of the frozen part differ"):
        run(other, checkpoint_dir=tmp_path, resume=True)


def test_a_state_is_not_overwritten_unasked(tmp_path: Path) -> None:
    run(classifier(), checkpoint_dir=tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(FileExistsError, match="resume=True"):
        run(classifier(), checkpoint_dir=tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_resume_needs_a_folder() -> None:
    with pytest.raises(ValueError, match="checkpoint_dir"):
        run(classifier(), resume=True)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def turn_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut_off, turn_a_bit])
def test_a_damaged_state_falls_back_to_the_one_before(
    damage: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    straight, resumed = classifier(), classifier()
    whole = run(straight, checkpoint_dir=tmp_path)
    assert states(tmp_path) == [6, 8]
    damage(newest(tmp_path))
    history = run(resumed, checkpoint_dir=tmp_path, resume=True)
    assert "step-00000008.safetensors is damaged" in caplog.text
    assert "Resuming from the state before" in caplog.text
    assert "step-00000006.safetensors" in caplog.text
    assert_equal_models(resumed, straight)
    assert measured(history) == measured(whole)
    assert states(tmp_path) == [6, 8]


@pytest.mark.parametrize("damage", [cut_off, turn_a_bit])
def test_without_a_whole_state_the_model_stays_as_it_is(damage: Callable[[Path], None], tmp_path: Path) -> None:
    run(classifier(), checkpoint_dir=tmp_path, keep_checkpoints=1)
    assert states(tmp_path) == [8]
    damage(newest(tmp_path))
    clf = classifier()
    before = [parameter.clone() for parameter in clf.parameters()]
    with pytest.raises(ValueError, match=r"is damaged.*no complete state before it; start the run again"):
        run(clf, checkpoint_dir=tmp_path, resume=True)
    assert all(torch.equal(a, b) for a, b in zip(before, clf.parameters(), strict=True))


@pytest.mark.parametrize(("name", "value"), [("pooling", "max"), ("dropout", 0.5)])
def test_another_model_is_not_resumed(name: str, value: Any, tmp_path: Path) -> None:
    run(classifier(), checkpoint_dir=tmp_path)
    pooling = value if name == "pooling" else "last"
    gpt2 = byte_gpt2(dropout=value if name == "dropout" else 0.0)
    named = {"pooling": r"head was .*pooling=last.*, is .*pooling=max", "dropout": r"model\.drop_rate was 0.0, is 0.5"}
    with pytest.raises(ValueError, match=named[name]):
        run(
            add_classifier_head(gpt2, classes=["ham", "spam"], pooling=pooling, seed=3),
            checkpoint_dir=tmp_path,
            resume=True,
        )


def test_a_callback_that_keeps_something_must_be_there_again(tmp_path: Path) -> None:
    run(classifier(), checkpoint_dir=tmp_path, callbacks=[KeepBest()])
    with pytest.raises(ValueError, match=r"callbacks was \['KeepBest'\], is \[\]"):
        run(classifier(), checkpoint_dir=tmp_path, resume=True)
    history = run(classifier(), checkpoint_dir=tmp_path, resume=True, callbacks=[Callback(), KeepBest()])
    assert len(history.epochs) == 4


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    run(classifier(), checkpoint_dir=tmp_path, seed=np.int64(3), lr=np.float64(1e-3), batch_size=np.int64(2))
    assert states(tmp_path) == [6, 8]


@pytest.mark.parametrize("lost", ["optimizer.exp_avg_sq.head.output.bias", "model.head.output.bias", "random.learner"])
def test_a_state_that_lacks_something_is_refused_before_the_model_changes(lost: str, tmp_path: Path) -> None:
    run(classifier(), checkpoint_dir=tmp_path, keep_checkpoints=1)
    path = newest(tmp_path)
    tensors, metadata = read_safetensors(path)
    save_file({name: value for name, value in tensors.items() if name != lost}, path, metadata=metadata)
    clf = classifier()
    before = [parameter.clone() for parameter in clf.parameters()]
    with pytest.raises(ValueError, match="damaged"):
        run(clf, checkpoint_dir=tmp_path, resume=True)
    assert all(torch.equal(a, b) for a, b in zip(before, clf.parameters(), strict=True))


@pytest.mark.parametrize("version", ["1", "2"])
def test_a_state_without_its_record_is_refused(version: str, tmp_path: Path) -> None:
    path = tmp_path / ("training.safetensors" if version == "1" else "step-00000002.safetensors")
    save_file({"random.cpu": torch.get_rng_state()}, path, metadata={"format": version})
    with pytest.raises(ValueError, match="damaged"):
        run(classifier(), checkpoint_dir=tmp_path, resume=True)


def test_a_state_of_a_later_version_says_so(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "step-00000002.safetensors", metadata={"format": "9"})
    with pytest.raises(ValueError, match="has format '9'; this version of gptclf resumes '1' and '2'"):
        run(classifier(), checkpoint_dir=tmp_path, resume=True)


def test_a_folder_that_cannot_be_one_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place, message in ((tmp_path / "file", "must be a folder"), ("", "a path that is not empty")):
        with pytest.raises(ValueError, match=message):
            run(classifier(), checkpoint_dir=place)
    with pytest.raises(OSError, match="cannot be written to"):
        run(classifier(), checkpoint_dir=tmp_path / "file" / "below")


def test_callbacks_end_even_where_the_run_never_began() -> None:
    class Ends(Callback):
        ended = False

        def on_end(self, run: Run) -> None:
            self.ended = True

    clf, watcher = classifier(), Ends()
    with torch.no_grad():
        clf.get_parameter("trunk.blocks.0.norm1.weight").fill_(float("nan"))
    with pytest.raises(FloatingPointError):
        run(clf, callbacks=[watcher])
    assert watcher.ended


def test_keep_best_asks_for_a_validation_set_before_the_first_step() -> None:
    clf = classifier()
    data = TextDataset(TEXTS, LABELS, tokenizer=clf.tokenizer, classes=clf.classes)
    with pytest.raises(ValueError, match="KeepBest needs a validation set"):
        train(clf, data, callbacks=[KeepBest()], progress=False)
    assert clf.head.is_fresh


def test_a_head_that_stays_what_it_was_drawn_as_counts_as_trained(tmp_path: Path) -> None:
    clf, resumed = (classifier() for _ in range(2))
    for model in (clf, resumed):
        freeze(model, trainable=["blocks.2", "norm"])
        assert model.head.is_fresh
    run(clf, checkpoint_dir=tmp_path)
    run(resumed, checkpoint_dir=tmp_path, resume=True)
    assert not clf.head.is_fresh
    assert not resumed.head.is_fresh


def test_moments_are_laid_out_as_their_parameters_are(tmp_path: Path) -> None:
    # The fused step walks memory: moments in another layout than the weight's would be added to other weights.
    def transposed() -> GPT2:
        clf = classifier("all")
        for name, parameter in list(clf.named_parameters()):
            if parameter.dim() == 2:
                set_parameter(clf, name, parameter.detach().t().contiguous().t()).requires_grad_()
        return clf

    whole, resumed = transposed(), transposed()
    run(whole)
    with pytest.raises(KeyboardInterrupt):
        run(transposed(), checkpoint_dir=tmp_path, callbacks=[Stop(2)])
    run(resumed, checkpoint_dir=tmp_path, resume=True)
    assert_equal_models(resumed, whole)


def test_a_file_that_is_not_a_state_falls_back_to_the_one_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    straight, resumed = classifier(), classifier()
    whole = run(straight, checkpoint_dir=tmp_path)
    save_file({"x": torch.zeros(1)}, newest(tmp_path), metadata={"format": "pt"})
    assert measured(run(resumed, checkpoint_dir=tmp_path, resume=True)) == measured(whole)
    assert "step-00000008.safetensors is not the state of a run" in caplog.text
    assert_equal_models(resumed, straight)
    save_file({"x": torch.zeros(1)}, newest(tmp_path))
    run(resumed, checkpoint_dir=tmp_path, resume=True)


def test_a_directory_in_the_place_of_a_state_is_refused_before_the_model_changes(tmp_path: Path) -> None:
    run(classifier(), checkpoint_dir=tmp_path)
    newest(tmp_path).unlink()
    (tmp_path / "step-00000008.safetensors").mkdir()
    clf, before = classifier(), classifier()
    with pytest.raises(ValueError, match=r"step-00000008\.safetensors is not a file; remove it"):
        run(clf, checkpoint_dir=tmp_path, resume=True)
    assert_equal_models(clf, before)


def test_a_truncated_state_gives_no_advice_to_download_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(classifier(), checkpoint_dir=tmp_path)
    cut_off(newest(tmp_path))
    run(classifier(), checkpoint_dir=tmp_path, resume=True)
    assert "step-00000008.safetensors is damaged: " in caplog.text
    assert "download" not in caplog.text
    assert "git-lfs" not in caplog.text


def test_what_another_run_is_writing_there_is_left(tmp_path: Path) -> None:
    (tmp_path / ".step-00000004.safetensors.1.tmp").write_bytes(b"begun a moment ago")
    run(classifier(), checkpoint_dir=tmp_path)
    assert (tmp_path / ".step-00000004.safetensors.1.tmp").read_bytes() == b"begun a moment ago"


def test_other_trained_parameters_are_told_in_words(tmp_path: Path) -> None:
    run(classifier(), checkpoint_dir=tmp_path)
    gained = r"another run: trainable gained trunk\.blocks\.1\.\S+ and \d+ more\. Give what"
    with pytest.raises(ValueError, match=gained):
        run(classifier("last_two_blocks"), checkpoint_dir=tmp_path, resume=True)
    with pytest.raises(ValueError, match=r"another run: trainable lost trunk\.blocks\.2\.\S+ and \d+ more\. Give what"):
        run(classifier("head"), checkpoint_dir=tmp_path, resume=True)
