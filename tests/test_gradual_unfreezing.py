"""`freeze` in a callback: the run goes on with what trains now, as a plain loop of PyTorch would, and resumes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import byte_tokenizer
from torch import Tensor

from gptclf import (
    GPT2,
    Batches,
    Callback,
    GPT2Config,
    History,
    KeepBest,
    Run,
    Step,
    TextDataset,
    add_classifier_head,
    apply_lora,
    batch_loss,
    clear_features,
    dataset_loss,
    freeze,
    frozen_depth,
    load_gpt2,
    train,
)
from gptclf.features import frozen_prefix
from gptclf.training.history import Scores

TEXTS = [f"{word} {i}" for i in range(4) for word in ("win a prize", "see you", "call now")]
LABELS = ["spam", "ham", "spam"] * 4
# Four epochs of six steps: in the middle of an epoch, at its end, and back.
PLAN = {2: "last_block", 6: "all", 15: "head", 18: ["blocks.1", "head"]}


def classifier(trainable: Any = "head", dropout: float = 0.0) -> GPT2:
    config = GPT2Config(vocab_size=257, context_length=32, emb_dim=16, n_layers=3, n_heads=2, drop_rate=dropout)
    gpt2 = load_gpt2(config, weights="random", seed=0, tokenizer=byte_tokenizer())
    clf = add_classifier_head(gpt2, classes=["ham", "spam"], seed=3)
    freeze(clf, trainable=trainable)
    return clf


def rows(clf: GPT2) -> TextDataset:
    return TextDataset(TEXTS, LABELS, tokenizer=clf.tokenizer, classes=clf.classes)


class Thaw(Callback):
    """Freezes by a plan after some steps; `when` is the method that does so."""

    def __init__(self, plan: dict[int, Any], when: str = "on_step") -> None:
        self.plan, self.when = plan, when

    def _thaw(self, run: Run, step: int) -> None:
        if step in self.plan:
            freeze(run.model, trainable=self.plan[step])

    def on_step(self, run: Run, step: Step) -> None:
        if self.when == "on_step":
            self._thaw(run, step.step)

    def on_scores(self, run: Run, scores: Scores) -> None:
        if self.when == "on_scores":
            self._thaw(run, scores.step)


class StopAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, run: Run, step: Step) -> None:
        if step.step == self.step:
            run.stop()


def run(clf: GPT2, plan: dict[int, Any] | None = None, when: str = "on_step", **changes: Any) -> History:
    callbacks = [Thaw(PLAN if plan is None else plan, when), *changes.pop("callbacks", [])]
    settings: dict[str, Any] = {"epochs": 4, "batch_size": 2, "lr": 3e-3, "eval_every": 1, "progress": False}
    settings |= {"callbacks": callbacks, "precision": "float32"}
    return train(clf, rows(clf), rows(clf), **{**settings, **changes})


def losses(history: History) -> list[float]:
    return [step.loss for step in history.steps]


def weights(clf: GPT2) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in clf.named_parameters()}


def by_hand(clf: GPT2, plan: dict[int, Any], lr: float = 3e-3) -> list[float]:
    """The same run as a loop of one's own: a parameter group for each parameter as it begins to train."""

    def group(parameter: Tensor) -> dict[str, Any]:
        return {"params": [parameter], "weight_decay": 0.1}

    optimizer = torch.optim.AdamW([group(p) for p in clf.parameters() if p.requires_grad], lr=lr)
    found, batches = [], Batches(rows(clf), 2, 123, task=clf.task)
    for epoch in range(4):
        for batch in batches.epoch(epoch):
            optimizer.zero_grad()
            loss = batch_loss(clf, batch)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            found.append(loss.item())
            if len(found) in plan:
                freeze(clf, trainable=plan[len(found)])
                old = {p: dict(s) for p, s in optimizer.state.items()}
                optimizer = torch.optim.AdamW([group(p) for p in clf.parameters() if p.requires_grad], lr=lr)
                optimizer.state.update({p: s for p, s in old.items() if p.requires_grad})
    return found


@pytest.mark.parametrize("reuse", [True, False])
def test_a_run_that_thaws_takes_the_steps_of_a_plain_loop(reuse: bool) -> None:
    clf, other = classifier(), classifier()
    history = run(clf, reuse_frozen=reuse)
    np.testing.assert_allclose(losses(history), by_hand(other, PLAN), rtol=2e-5)
    for name, parameter in clf.named_parameters():
        torch.testing.assert_close(parameter, other.get_parameter(name), rtol=1e-3, atol=2e-4, msg=name)
    assert losses(history)[:3] == losses(run(classifier(), {}))[:3]
    assert losses(history)[3:] != losses(run(classifier(), {}))[3:]


def test_thawing_is_not_what_training_all_along_gives() -> None:
    assert losses(run(classifier(), {6: "all"}))[:7] != losses(run(classifier("all"), {}))[:7]


def test_flags_stay_as_the_callback_set_them_and_no_gradient_is_left() -> None:
    clf = classifier()
    run(clf)
    trains = {name for name, parameter in clf.named_parameters() if parameter.requires_grad}
    assert {name.split(".")[2] for name in trains if "blocks" in name} == {"1"}
    assert all(parameter.grad is None for parameter in clf.parameters())


def test_the_frozen_part_is_computed_once_after_each_freezing(monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[tuple[int, int]] = []
    compute_chunk = frozen_prefix.compute_chunk

    def counted(prefix: frozen_prefix.FrozenPrefix, texts: Any, *given: Any) -> Tensor:
        computed.append((prefix.depth, len(texts)))
        return compute_chunk(prefix, texts, *given)

    monkeypatch.setattr(frozen_prefix, "compute_chunk", counted)
    clear_features()
    clf, depths = classifier(), []

    class Note(Callback):
        def on_step(self, run: Run, step: Step) -> None:
            depths.append(run.objective.learner.depth)

    run(clf, {6: 2, 12: "last_block"}, callbacks=[Note()])
    assert depths == [5] * 6 + [2] * 6 + [3] * 12
    assert computed == [(5, 12), (2, 12), (3, 12)]


# Resuming


@pytest.mark.parametrize(("at", "dropout"), [(2, 0.0), (7, 0.0), (15, 0.0), (20, 0.0), (6, 0.2), (16, 0.2), (24, 0.2)])
def test_a_run_that_thaws_resumes_to_the_bit(at: int, dropout: float, tmp_path: Path) -> None:
    straight, resumed = classifier(dropout=dropout), classifier(dropout=dropout)
    options: dict[str, Any] = {"schedule": "cosine", "layer_decay": 0.9, "decay": "matrices", "head_lr": 1e-2}
    keep, again = KeepBest(), KeepBest()
    whole = run(straight, callbacks=[keep], **options)
    run(classifier(dropout=dropout), callbacks=[KeepBest(), StopAt(at)], checkpoint_dir=tmp_path, **options)
    history = run(resumed, callbacks=[again], checkpoint_dir=tmp_path, resume=True, **options)
    assert history.steps == whole.steps
    assert keep.best is not None
    assert again.best is not None
    assert again.best.val == keep.best.val
    for name, parameter in straight.named_parameters():
        assert torch.equal(parameter, resumed.get_parameter(name)), name


@pytest.mark.parametrize("when", ["on_step", "on_scores"])
def test_a_model_trained_and_frozen_again_resumes_with_the_features_of_what_was_trained(
    when: str, tmp_path: Path
) -> None:
    plan = {4: "all", 8: "head"}  # at the end the head trains, as at the start, over other blocks
    straight, resumed = classifier(), classifier()
    whole = run(straight, plan, when)
    run(classifier(), plan, when, callbacks=[StopAt(12)], checkpoint_dir=tmp_path)
    assert losses(run(resumed, plan, when, checkpoint_dir=tmp_path, resume=True)) == losses(whole)


def test_freezing_at_the_start_of_a_run_holds_and_resumes(tmp_path: Path) -> None:
    class Start(Callback):
        def on_start(self, run: Run) -> None:
            freeze(run.model, trainable="last_block")

    expected = run(classifier("last_block"), {})
    assert losses(run(classifier(), {}, callbacks=[Start()])) == losses(expected)
    run(classifier(), {}, callbacks=[Start(), StopAt(9)], checkpoint_dir=tmp_path)
    resumed = run(classifier(), {}, callbacks=[Start()], checkpoint_dir=tmp_path, resume=True)
    assert losses(resumed) == losses(expected)


def test_more_epochs_go_on_after_the_last_thawing(tmp_path: Path) -> None:
    whole = run(classifier())
    run(classifier(), epochs=3, checkpoint_dir=tmp_path)
    assert losses(run(classifier(), checkpoint_dir=tmp_path, resume=True)) == losses(whole)


# Callbacks beside it


def test_the_best_weights_come_back_whole_if_they_were_found_before_the_thawing() -> None:
    turned = {"ham": "spam", "spam": "ham"}  # so that training only makes the validation loss worse
    clf, best, keep = classifier(), classifier(), KeepBest()
    val = TextDataset(TEXTS, [turned[label] for label in LABELS], tokenizer=clf.tokenizer, classes=clf.classes)
    settings: dict[str, Any] = {"epochs": 4, "batch_size": 2, "lr": 3e-3, "progress": False}
    train(clf, rows(clf), val, callbacks=[Thaw({6: "all"}), keep], precision="float32", **settings)
    assert keep.best is not None
    assert keep.best.step == 6
    train(best, rows(best), callbacks=[StopAt(6)], precision="float32", **settings)
    for name, parameter in best.named_parameters():
        assert torch.equal(parameter, clf.get_parameter(name)), name
    assert dataset_loss(clf, val) == pytest.approx(keep.best.val_loss, abs=1e-6)


def test_callbacks_are_told_of_each_change_before_the_next_step() -> None:
    seen: list[tuple[int, int]] = []

    class Note(Callback):
        def on_freeze(self, run: Run) -> None:
            seen.append((len(run.history.steps), len(run.trained())))

    clf = classifier()
    run(clf, callbacks=[Note()])
    n = len(list(clf.parameters()))
    assert [step for step, _ in seen] == [2, 6, 15, 18]
    assert [count for _, count in seen] == [2 + 2 + 12, n, n, n]  # what has been trained stays known


def test_the_same_choice_again_changes_nothing() -> None:
    assert losses(run(classifier(), {3: "head", 7: "head"})) == losses(run(classifier(), {}))


def test_the_scale_of_the_rate_and_the_schedule_go_on() -> None:
    class Halve(Callback):
        def on_step(self, run: Run, step: Step) -> None:
            if step.step == 3:
                run.lr_scale = 0.5

    plain = run(classifier(), {}, schedule="linear", warmup_steps=4, callbacks=[Halve()])
    thawed = run(classifier(), schedule="linear", warmup_steps=4, callbacks=[Halve()])
    assert [step.lr for step in thawed.steps] == [step.lr for step in plain.steps]


# What cannot train


def test_a_callback_that_leaves_nothing_to_train_is_told_what_to_call() -> None:
    class Off(Callback):
        def on_step(self, run: Run, step: Step) -> None:
            run.model.requires_grad_(False)

    with pytest.raises(ValueError, match=r"nothing in the model trains; choose what to train with freeze\("):
        run(classifier(), {}, callbacks=[Off()])


def test_a_parameter_that_is_thawed_by_hand_is_not_the_other_models() -> None:
    config = GPT2Config(vocab_size=257, context_length=32, emb_dim=16, n_layers=2, n_heads=2)
    gpt2 = load_gpt2(config, weights="random", seed=0, tokenizer=byte_tokenizer())
    clf = add_classifier_head(gpt2, classes=["ham", "spam"], seed=3)
    before = weights(gpt2)

    class ByHand(Callback):
        def on_step(self, run: Run, step: Step) -> None:
            run.model.blocks[0].requires_grad_(True)

    moved = clf.get_parameter("trunk.blocks.0.mlp.up.weight").detach().clone()
    run(clf, {}, callbacks=[ByHand()])
    assert not torch.equal(moved, clf.get_parameter("trunk.blocks.0.mlp.up.weight"))
    assert all(torch.equal(before[name], parameter) for name, parameter in gpt2.named_parameters())


def test_half_precision_cannot_be_thawed() -> None:
    class Halve(Callback):
        def on_step(self, run: Run, step: Step) -> None:
            run.model.blocks[0].half()
            freeze(run.model, trainable="all")

    with pytest.raises(ValueError, match=r"weights train in float32, but trunk\.blocks\.0\..* is torch\.float16"):
        run(classifier(), {}, callbacks=[Halve()], eval_every=None)


def test_factors_first_and_then_the_head_alone() -> None:
    lora = apply_lora(classifier(), 2, 4, seed=0)
    factors = {name: p.detach().clone() for name, p in lora.named_parameters() if ".a" in name or ".b" in name}
    freeze(lora, trainable="lora")
    run(lora, {6: "head"})
    assert frozen_depth(lora) == 5
    assert any(not torch.equal(before, lora.get_parameter(name)) for name, before in factors.items())
