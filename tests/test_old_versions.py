"""What the version before tasks and recipes wrote is still read: its folders, its states; its features are ignored.

`data/write_old.py` wrote it all, and noted the numbers that the version found.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from conftest import byte_tokenizer
from torch import Tensor

from gptclf import (
    GPT2,
    GPT2Config,
    Preparation,
    SingleLabel,
    TextDataset,
    add_classifier_head,
    clear_features,
    freeze,
    load_gpt2,
    load_model,
    predict_proba,
    save_model,
    train,
)

OLD = Path(__file__).parent / "data" / "old"
VALUES = json.loads((OLD / "values.json").read_text(encoding="utf-8"))
TEXTS = [f"{word} {i}" for i in range(4) for word in ("win a prize", "see you", "call now")]
LABELS = ["spam", "ham", "spam"] * 4
SETTINGS: dict[str, Any] = {"epochs": 3, "batch_size": 4, "lr": 3e-3, "eval_every": 2, "progress": False}


def classifier() -> GPT2:
    config = GPT2Config(vocab_size=257, context_length=32, emb_dim=16, n_layers=2, n_heads=2, mlp_dim=32)
    gpt2 = load_gpt2(config, weights="random", seed=0, tokenizer=byte_tokenizer())
    clf = add_classifier_head(gpt2, classes=["ham", "spam"], seed=3)
    freeze(clf, trainable="last_block")
    return clf


def rows(clf: GPT2) -> TextDataset:
    return TextDataset(TEXTS, LABELS, tokenizer=clf.tokenizer, classes=["ham", "spam"], max_length=24)


def run(**options: Any) -> tuple[GPT2, list[float], list[list[float]]]:
    """Train as the old version did; the model, its losses, and what was measured after each epoch."""
    clf = classifier()
    history = train(clf, rows(clf), rows(clf), **{**SETTINGS, **options})
    epochs = [[scores.train_loss, scores.val_accuracy] for scores in history.epochs]
    return clf, [step.loss for step in history.steps], epochs


def assert_as_then(found: Any, then: Any) -> None:
    np.testing.assert_allclose(np.array(found), np.array(then), rtol=0, atol=1e-6)


def trained(clf: GPT2) -> dict[str, Tensor]:
    return {name: parameter for name, parameter in clf.named_parameters() if parameter.requires_grad}


class TestFolder:
    def test_it_loads_and_answers_as_it_did(self) -> None:
        clf = load_model(OLD / "model")
        assert (clf.task, clf.classes) == (SingleLabel(["ham", "spam"]), ["ham", "spam"])
        assert clf.preparation == Preparation(max_length=24)
        assert set(trained(clf)) == set(trained(classifier()))
        assert not clf.head.is_fresh
        assert_as_then(predict_proba(clf, TEXTS), VALUES["probabilities"])

    def test_it_answers_as_the_same_training_does_now(self) -> None:
        clf, _, _ = run()
        old = load_model(OLD / "model")
        for name, parameter in trained(clf).items():
            torch.testing.assert_close(old.get_parameter(name), parameter, rtol=0, atol=1e-5)

    def test_it_is_saved_anew_with_a_task_and_is_the_same_for_transformers(self, tmp_path: Path) -> None:
        clf = load_model(OLD / "model")
        save_model(clf, tmp_path)
        assert json.loads((tmp_path / "gptclf.json").read_text())["task"]["kind"] == "single_label"
        assert (predict_proba(load_model(tmp_path), TEXTS) == predict_proba(clf, TEXTS)).all()
        ids = torch.tensor([byte_tokenizer().encode_ordinary("win a prize")])
        theirs = [
            transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()(ids).logits
            for folder in (OLD / "model", tmp_path)
        ]
        assert torch.equal(*theirs)

    def test_it_is_overwritten_as_one_of_our_own(self, tmp_path: Path) -> None:
        shutil.copytree(OLD / "model", tmp_path / "model")
        save_model(classifier(), tmp_path / "model")
        assert load_model(tmp_path / "model").preparation == Preparation()

    @pytest.mark.parametrize(("place", "value"), [("classes", ["ham"]), ("classes", "ham"), ("pooling", "middle")])
    def test_a_damaged_one_is_refused(self, place: str, value: Any, tmp_path: Path) -> None:
        shutil.copytree(OLD / "model", tmp_path / "model")
        record = json.loads((tmp_path / "model" / "gptclf.json").read_text())
        record["head"][place] = value
        (tmp_path / "model" / "gptclf.json").write_text(json.dumps(record))
        with pytest.raises(ValueError):
            load_model(tmp_path / "model")


class TestState:
    def test_it_is_resumed_with_the_losses_of_then(self, tmp_path: Path) -> None:
        shutil.copytree(OLD / "state", tmp_path / "state")
        clf, losses, epochs = run(checkpoint_dir=tmp_path / "state", resume=True)
        assert len(losses) == len(VALUES["losses"]) == 9
        assert_as_then(losses, VALUES["losses"])
        assert_as_then(epochs, VALUES["epochs"])
        assert_as_then(predict_proba(clf, TEXTS), VALUES["probabilities"])

    def test_it_is_resumed_to_the_bits_of_a_run_that_was_not_interrupted(self, tmp_path: Path) -> None:
        """If the arithmetic here is that of the machine where it was written."""
        whole, losses, epochs = run()
        assert_as_then(losses, VALUES["losses"])
        if losses != VALUES["losses"]:
            pytest.skip("this machine rounds differently from the one where the state was written")
        shutil.copytree(OLD / "state", tmp_path / "state")
        resumed, *found = run(checkpoint_dir=tmp_path / "state", resume=True)
        assert found == [losses, epochs]
        for name, parameter in trained(whole).items():
            assert torch.equal(resumed.get_parameter(name), parameter), name

    def test_another_run_is_told_what_differs(self, tmp_path: Path) -> None:
        shutil.copytree(OLD / "state", tmp_path / "state")
        with pytest.raises(ValueError, match=r"state of another run: lr was 0\.003, is 0\.001"):
            run(checkpoint_dir=tmp_path / "state", resume=True, lr=1e-3)


class TestFeatures:
    """A folder of features of version 1, whose address no later version computes."""

    def prefixes(self, folder: Path) -> set[str]:
        return {path.name for path in folder.iterdir()}

    @pytest.fixture
    def cache(self, tmp_path: Path) -> Path:
        shutil.copytree(OLD / "features", tmp_path / "features")
        return tmp_path / "features"

    def test_they_are_ignored_without_a_word(self, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
        [old] = self.prefixes(cache)
        before = {path: path.read_bytes() for path in (cache / old).iterdir()}
        _, losses, _ = run(cache_dir=cache)
        assert_as_then(losses, VALUES["losses"])
        assert len(self.prefixes(cache)) == 2
        assert {path: path.read_bytes() for path in (cache / old).iterdir()} == before
        assert not [record for record in caplog.records if record.name.startswith("gptclf.features")]

    def test_they_are_the_first_to_make_room(self, cache: Path) -> None:
        [old] = self.prefixes(cache)
        size = sum(path.stat().st_size for path in (cache / old).iterdir())
        run(cache_dir=cache, cache_limit=1.5 * size)
        assert len(self.prefixes(cache)) == 1
        assert old not in self.prefixes(cache)

    def test_they_are_cleared_with_the_others(self, cache: Path) -> None:
        run(cache_dir=cache)
        assert clear_features(cache) > 0
        assert self.prefixes(cache) == set()
