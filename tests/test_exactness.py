"""Reusing the frozen part changes no number beyond rounding: free-running losses, and gradients along a run."""

import numpy as np
import pytest
import torch
from conftest import byte_gpt2, randomised

from gptclf import GPT2, Batches, GPT2Config, TextDataset, add_classifier_head, batch_loss, freeze, train
from gptclf.features.reuse import features_of
from gptclf.gpt2.learner import Learner

CONFIG = GPT2Config(vocab_size=257, context_length=64, emb_dim=32, n_heads=4, n_layers=6)
WORDS = [
    "free",
    "prize",
    "win",
    "now",
    "call",
    "text",
    "meet",
    "lunch",
    "later",
    "home",
    "ok",
    "sorry",
    "the",
    "a",
    "to",
    "you",
    "i",
]


def rows(n: int, seed: int) -> tuple[list[str], list[str]]:
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(WORDS, size=rng.integers(1, 9))) for _ in range(n)]
    return texts, ["spam" if "prize" in text or "win" in text else "ham" for text in texts]


def classifier(trainable: str | int) -> GPT2:
    gpt2 = randomised(GPT2(CONFIG, seed=5)).requires_grad_(False)
    gpt2.tokenizer = byte_gpt2().tokenizer
    clf = add_classifier_head(gpt2, classes=["ham", "spam"], seed=3)
    freeze(clf, trainable=trainable)
    return clf


def dataset(clf: GPT2, n: int = 320) -> TextDataset:
    return TextDataset(*rows(n, seed=1), tokenizer=clf.tokenizer, classes=clf.classes)


@pytest.mark.parametrize("trainable", ["head", "last_block"])
@pytest.mark.parametrize(("epochs", "bound"), [(1, 1e-5), (5, 1e-4)])
def test_free_running_losses_with_reuse_on_and_off_are_equal(trainable: str, epochs: int, bound: float) -> None:
    losses = []
    for reuse in (True, False):
        clf = classifier(trainable)
        history = train(clf, dataset(clf), epochs=epochs, lr=5e-5, reuse_frozen=reuse, progress=False)
        losses.append([step.loss for step in history.steps])
    np.testing.assert_allclose(losses[0], losses[1], rtol=0, atol=bound)


@pytest.mark.parametrize("trainable", ["last_two_blocks", 4])
def test_deeper_policies_have_the_same_loss_and_gradients_at_twenty_points_of_a_run(trainable: str | int) -> None:
    clf = classifier(trainable)
    data = dataset(clf, 160)
    trained = {name: p for name, p in clf.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-3, weight_decay=0.1)
    with features_of(clf, [data], precision="float32") as (depth, (features,)):
        assert depth
        learner = Learner(clf, depth)
        plain = list(Batches(data, 8, seed=1, task=clf.task))
        kept = list(Batches(features, 8, seed=1, task=clf.task))
        assert len(plain) == len(kept) == 20
        for on_ids, on_features in zip(plain, kept, strict=True):
            there = torch.autograd.grad(batch_loss(learner, on_features), list(trained.values()))
            optimizer.zero_grad()
            loss = batch_loss(clf, on_ids)
            loss.backward()  # type: ignore[no-untyped-call]
            assert abs(batch_loss(learner, on_features).item() - loss.item()) <= 1e-6 * max(1.0, loss.item())
            for (name, parameter), gradient in zip(trained.items(), there, strict=True):
                assert parameter.grad is not None
                largest = float(parameter.grad.abs().max())
                assert float((gradient - parameter.grad).abs().max()) <= 1e-5 * largest, name
            optimizer.step()
