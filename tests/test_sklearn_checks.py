"""scikit-learn's own checks of estimators: every one passes, over rows of numbers turned into words."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import byte_tokenizer

from gptclf import ClassifierHead, GPT2Config, load_gpt2, save_model

pytest.importorskip("sklearn")

from sklearn.base import clone
from sklearn.utils.estimator_checks import estimator_checks_generator
from sklearn.utils.validation import validate_data

from gptclf.sklearn import GPT2Classifier

CONFIG = GPT2Config(vocab_size=257, context_length=64, emb_dim=64, n_heads=2, n_layers=1)


class NumbersAsWords(GPT2Classifier):
    """The estimator over rows of numbers: a row becomes a word, with letters for low, middle and high numbers."""

    def _texts(self, X: Any, *, reset: bool) -> list[str]:
        table = validate_data(self, X, reset=reset)
        letters = 40 + 5 * (np.arange(table.shape[1]) % 40) + np.searchsorted([-0.4, 0.4], table)
        return ["".join(map(chr, row)) for row in letters]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string, tags.input_tags.one_d_array, tags.input_tags.two_d_array = False, False, True
        return tags


class EvenHead(ClassifierHead):
    """A head whose weights are all 256, to which AdamW's first step adds 1 or -1.

    The gradients of a row of weight 2 and of two rows are equal up to rounding, which the sum of 256 and 1 swallows.
    """

    def __init__(self, width: int, n_outputs: int) -> None:
        super().__init__(width, n_outputs, pooling="mean")
        self.to_empty(device="cpu")
        for parameter in self.parameters():
            torch.nn.init.constant_(parameter, 256.0)


# One step over all rows at once, so that their order does not matter.
STEP: Any = {"epochs": 1, "batch_size": 1000, "lr": 1.0, "weight_decay": 0.0}
ESTIMATOR = NumbersAsWords("the folder that the fixture writes", trainable="head", head=EvenHead, **STEP)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    gpt2 = load_gpt2(CONFIG, weights="random", seed=3, tokenizer=byte_tokenizer())
    return save_model(gpt2, tmp_path_factory.mktemp("models") / "tiny")


CHECKS = [check for _, check in estimator_checks_generator(ESTIMATOR)]


@pytest.mark.filterwarnings("error::sklearn.exceptions.SkipTestWarning")
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: str(getattr(check, "func", check)).split()[1])
def test_a_check_of_scikit_learn(check: Callable[[Any], None], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCIPY_ARRAY_API", "1")  # else a check is skipped
    check(clone(ESTIMATOR).set_params(model=str(folder)))


def test_there_are_as_many_checks_as_for_any_classifier() -> None:
    assert len(CHECKS) > 55
