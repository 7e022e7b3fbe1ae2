"""Language-model training against transformers, and against itself in other divisions of the same work."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import byte_gpt2, byte_tokenizer, randomised
from torch import Tensor
from torch.nn import functional as F
from transformers import GPT2Config as TheirConfig
from transformers import GPT2LMHeadModel

from gptclf import (
    GPT2,
    Batches,
    Callback,
    GPT2Config,
    KeepBest,
    TextDataset,
    TextWindows,
    add_classifier_head,
    batch_loss,
    freeze,
    load_gpt2,
    train,
    train_lm,
)
from gptclf.gpt2.learner import Learner
from gptclf.inference.evaluate import measured
from gptclf.next_token_loss import hits_and_loss, next_token_loss
from gptclf.training.history import History, Scores
from gptclf.training.run import Run

BYTES = byte_tokenizer()
TEXT = "the quick brown fox jumps over the lazy dog; pack my box with five dozen jugs. " * 6
SHAPE = GPT2Config(vocab_size=257, context_length=24, emb_dim=24, n_heads=3, n_layers=3, mlp_dim=40)


def language_model(*, tied: bool = True, trainable: Any = "all", dropout: float = 0.0) -> GPT2:
    model = randomised(GPT2(SHAPE.replace(tied=tied, drop_rate=dropout), seed=7)).requires_grad_(False)
    model.tokenizer = BYTES
    freeze(model, trainable=trainable)
    return model


def windows(length: int = 16, stride: int | None = None) -> TextWindows:
    return TextWindows(TEXT, tokenizer=BYTES, length=length, stride=stride)


def quietly(model: GPT2, *args: Any, **options: Any) -> History:
    return train_lm(model, *args, **{"progress": False, "precision": "float32", **options})


def scores(model: GPT2, data: TextWindows, **options: Any) -> dict[str, float]:
    return measured(model, data, precision="float32", **options)


def test_the_loss_over_a_vocabulary_and_its_gradients_are_torchs() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 500, 20, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(101, 20, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(101, (3, 500), generator=generator)
    expected = F.cross_entropy((hidden @ weight.t()).flatten(0, 1), targets.flatten(), reduction="sum")
    wanted = torch.autograd.grad(2.5 * expected, [hidden, weight])
    loss = next_token_loss(hidden, weight, targets)
    found = torch.autograd.grad(2.5 * loss, [hidden, weight])
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    hits, total = hits_and_loss(hidden.detach(), weight.detach(), targets)
    assert total == pytest.approx(expected.item(), rel=1e-12)
    assert hits == int(((hidden @ weight.t()).argmax(-1) == targets).sum())


@pytest.mark.parametrize(("hidden_trains", "weight_trains"), [(True, False), (False, True)])
def test_only_what_trains_gets_a_gradient(hidden_trains: bool, weight_trains: bool) -> None:
    hidden = torch.randn(4, 6, requires_grad=hidden_trains)
    weight = torch.randn(9, 6, requires_grad=weight_trains)
    next_token_loss(hidden, weight, torch.tensor([1, 2, 3, 8])).backward()  # type: ignore[no-untyped-call]
    assert (hidden.grad is not None) == hidden_trains
    assert (weight.grad is not None) == weight_trains


def test_extreme_logits_neither_overflow_nor_vanish() -> None:
    hidden, weight = torch.tensor([[1.0], [1.0]]), torch.tensor([[0.0], [3000.0]]).requires_grad_()
    loss = next_token_loss(hidden, weight, torch.tensor([0, 1]))
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 3000.0
    assert weight.grad is not None
    assert weight.grad.flatten().tolist() == [-1.0, 1.0]


@pytest.mark.parametrize("tied", [True, False])
def test_loss_and_gradients_equal_transformers(tied: bool, tmp_path: Path) -> None:
    torch.manual_seed(3)
    config = TheirConfig(
        vocab_size=257,
        n_positions=24,
        n_embd=24,
        n_head=3,
        n_layer=2,
        n_inner=40,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        tie_word_embeddings=tied,
    )
    theirs = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    theirs.save_pretrained(tmp_path)
    ours = load_gpt2(tmp_path)
    freeze(ours, trainable="all")
    batch = Batches(windows(24), 4).take(np.arange(4))
    ids = torch.cat([batch.inputs, batch.targets[:, -1:]], dim=1)  # type: ignore[index]
    logits = theirs(ids[:, :-1]).logits
    expected = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    expected.backward()  # type: ignore[no-untyped-call]
    loss = batch_loss(Learner(ours, keep_gradients=True), batch)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    # Their own loss is of rows whose targets are their own tokens.
    assert theirs(ids[:, :-1], labels=ids[:, :-1]).loss.item() == pytest.approx(
        F.cross_entropy(ours(ids[:, :-1])[:, :-1].flatten(0, 1), ids[:, 1:-1].flatten()).item(), rel=1e-5
    )
    pairs = [
        ("trunk.embed.token.weight", theirs.transformer.wte.weight, False),
        ("trunk.embed.position.weight", theirs.transformer.wpe.weight, False),
        ("trunk.blocks.0.attention.qkv.weight", theirs.transformer.h[0].attn.c_attn.weight, True),
        ("trunk.blocks.1.mlp.down.weight", theirs.transformer.h[1].mlp.c_proj.weight, True),
        ("trunk.norm.weight", theirs.transformer.ln_f.weight, False),
    ]
    for name, parameter, flip in pairs:
        want = parameter.grad.t() if flip else parameter.grad
        assert_near(ours.get_parameter(name).grad, want)


def assert_near(ours: Tensor | None, theirs: Tensor) -> None:
    assert ours is not None
    assert float((ours - theirs).abs().max()) <= 1e-5 * float(theirs.abs().max())


def test_training_is_plain_adamw_on_the_mean_over_positions() -> None:
    model, data = language_model(), windows()
    reference = language_model()
    optimizer = torch.optim.AdamW(reference.parameters(), lr=1e-3, weight_decay=0.1)
    expected = []
    for epoch in range(2):
        for batch in Batches(data, 3, seed=5).epoch(epoch):
            assert batch.targets is not None
            loss = F.cross_entropy(reference(batch.inputs).flatten(0, 1), batch.targets.flatten())
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            expected.append(loss.item())
    history = quietly(model, data, epochs=2, batch_size=3, lr=1e-3, seed=5)
    np.testing.assert_allclose([step.loss for step in history.steps], expected, rtol=2e-5)


def test_accumulation_is_the_larger_batch_a_ragged_last_group_included() -> None:
    data = windows().subset(range(23))
    one, many = language_model(), language_model()
    large = quietly(one, data, epochs=2, batch_size=8, lr=1e-3)
    small = quietly(many, data, epochs=2, batch_size=2, accumulate=4, lr=1e-3)
    np.testing.assert_allclose([s.loss for s in large.steps], [s.loss for s in small.steps], rtol=1e-5)
    assert large.epochs[-1].val_loss is None


@pytest.mark.parametrize("trainable", ["last_block", 2, ["norm"]])
@pytest.mark.parametrize("tied", [True, False])
def test_reusing_frozen_blocks_changes_no_loss(trainable: Any, tied: bool) -> None:
    runs = []
    for reuse in (True, False):
        model = language_model(tied=tied, trainable=trainable)
        data = windows()
        history = quietly(model, data, data.subset(range(4)), epochs=2, lr=1e-3, reuse_frozen=reuse, eval_batches=None)
        runs.append([step.loss for step in history.steps] + [score.val_loss or 0 for score in history.epochs])
    np.testing.assert_allclose(runs[0], runs[1], rtol=1e-5)


def test_it_learns_a_text_by_heart_and_says_how_well() -> None:
    model = byte_gpt2()
    freeze(model, trainable="all")
    data = windows(32, stride=8)
    before = scores(model, data, batch_size=4)["loss"]
    history = quietly(model, data, data, epochs=8, batch_size=4, lr=3e-3, eval_batches=None)
    last = history.epochs[-1]
    assert before == pytest.approx(math.log(257), abs=0.2)
    assert last.train_loss < 1.0
    assert last.train_loss == last.val_loss
    assert last.train_accuracy > 0.7


def test_measurements_are_of_every_position() -> None:
    model, data = language_model(), windows()
    found = scores(model, data, batch_size=3)
    logits = model(data.padded(range(len(data)))).flatten(0, 1)
    targets = torch.from_numpy(data.targets().astype(np.int64)).flatten()
    assert found["loss"] == pytest.approx(F.cross_entropy(logits, targets).item(), rel=1e-5)
    assert found["accuracy"] == pytest.approx(float((logits.argmax(1) == targets).double().mean()))
    some = scores(model, data, num_batches=2, batch_size=3)["loss"]
    chosen = np.isin(np.arange(len(data)), np.random.default_rng(0).permutation(len(data))[:6]).repeat(data.length)
    assert some == pytest.approx(F.cross_entropy(logits[chosen], targets[chosen]).item(), rel=1e-5)


def test_a_watched_head_is_called_as_it_is_with_the_same_loss() -> None:
    model, data = language_model(), windows()
    plain = quietly(language_model(), data, data, epochs=1, lr=1e-3)
    called = []
    model.head.register_forward_hook(lambda *_: called.append(1))
    watched = quietly(model, data, data, epochs=1, lr=1e-3)
    assert called
    np.testing.assert_allclose([s.loss for s in plain.steps], [s.loss for s in watched.steps], rtol=1e-5)
    assert plain.epochs[-1].val_loss == pytest.approx(watched.epochs[-1].val_loss, rel=1e-5)
    assert plain.epochs[-1].val_accuracy == watched.epochs[-1].val_accuracy


def test_recomputed_activations_change_no_loss() -> None:
    data = windows()
    plain, thrifty = (quietly(language_model(), data, lr=1e-3, recompute=recompute) for recompute in (False, True))
    assert [s.loss for s in plain.steps] == [s.loss for s in thrifty.steps]


class Stop(Callback):
    def on_scores(self, run: Run, scores: Scores) -> None:
        if scores.epoch == 2:
            raise KeyboardInterrupt


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_run_that_was_cut_off_goes_on_bit_for_bit(dropout: float, tmp_path: Path) -> None:
    options: dict[str, Any] = {"epochs": 4, "batch_size": 4, "lr": 1e-3, "schedule": "cosine", "clip": 1.0}
    data = windows()
    whole, resumed = language_model(dropout=dropout), language_model(dropout=dropout)
    expected = quietly(whole, data, data, **options)
    with pytest.raises(KeyboardInterrupt):
        quietly(resumed, data, data, callbacks=[Stop()], checkpoint_dir=tmp_path, **options)
    history = quietly(language_model(dropout=dropout), data, data, checkpoint_dir=tmp_path, resume=True, **options)
    assert [s.loss for s in history.steps] == [s.loss for s in expected.steps]
    with pytest.raises(ValueError, match="the training set had 29 rows, has 59"):
        quietly(language_model(dropout=dropout), windows(8), data, checkpoint_dir=tmp_path, resume=True, **options)


def test_the_best_weights_can_be_kept() -> None:
    keep = KeepBest()
    model, data = language_model(), windows()
    history = quietly(model, data, data, epochs=3, lr=0.3, callbacks=[keep], eval_batches=None)
    assert keep.best is not None
    loss = scores(model, data)["loss"]
    assert loss == pytest.approx(min(score.val_loss or 0 for score in history.epochs), rel=1e-5)


class TestRefused:
    def test_what_is_no_language_model(self) -> None:
        clf = add_classifier_head(byte_gpt2(), num_classes=2, seed=1)
        with pytest.raises(TypeError, match=r"this is a classifier \(2 outputs\); its vocabulary head is gone"):
            train_lm(clf, windows())
        with pytest.raises(TypeError, match="model is a int"):
            train_lm(3, windows())  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="this is a classifier, but the batch is running text"):
            batch_loss(clf, next(iter(Batches(windows()))))

    def test_labelled_texts(self) -> None:
        data = TextDataset(["a", "b"], [0, 1], tokenizer=BYTES)
        with pytest.raises(TypeError, match=r"train_set is a TextDataset; a language model takes TextWindows"):
            train_lm(language_model(), data)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="this is a language model; put a classifier head on it first"):
            batch_loss(language_model(), next(iter(Batches(data))))
        with pytest.raises(TypeError, match="train_set is a TextWindows; it must be a TextDataset"):
            train(add_classifier_head(byte_gpt2(), num_classes=2, seed=1), windows())  # type: ignore[arg-type]

    def test_a_frozen_model(self) -> None:
        with pytest.raises(ValueError, match="nothing in the model trains; choose what to train with freeze"):
            train_lm(byte_gpt2(), windows())

    def test_windows_longer_than_the_context(self) -> None:
        with pytest.raises(ValueError, match="windows of 30 tokens, but the model's context length is 24"):
            train_lm(language_model(), windows(30))
        with pytest.raises(ValueError, match="val_set has windows of 30 tokens"):
            train_lm(language_model(), windows(8), windows(30))

    def test_no_windows_and_anothers_tokens(self) -> None:
        with pytest.raises(ValueError, match="train_set holds no windows"):
            train_lm(language_model(), windows().subset([]))
        other = TextWindows(TEXT, tokenizer=load_gpt2("nano").tokenizer, length=16)
        with pytest.raises(ValueError, match="tokenizer"):
            train_lm(language_model(), other)
        nano = load_gpt2("nano")
        freeze(nano, trainable="all")
        with pytest.raises(ValueError, match=r"another tokenizer \(257 tokens\) than the model's \(4096\)"):
            train_lm(nano, windows())

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"epochs": 0}, "epochs is 0"),
            ({"epochs": "1"}, "epochs is '1'"),
            ({"lr": -1}, "lr is -1"),
            ({"schedule": "up"}, "schedule is 'up'"),
            ({"precision": "half"}, "precision is 'half'"),
            ({"callbacks": [KeepBest()]}, "KeepBest needs a validation set"),
            ({"resume": True}, "resume=True needs checkpoint_dir"),
            ({"drop_last": True, "batch_size": 999}, "drop_last=True leaves no batch"),
        ],
    )
    def test_wrong_settings(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises((ValueError, TypeError), match=message):
            train_lm(language_model(), windows(), **options)
