"""Training: the loop against plain PyTorch, the recipe's arithmetic, and what a run leaves behind."""

import copy
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import byte_gpt2, byte_tokenizer, randomised
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from gptclf import (
    GPT2,
    Batches,
    GPT2Config,
    History,
    TextDataset,
    add_classifier_head,
    batch_loss,
    dataset_accuracy,
    dataset_loss,
    evaluate,
    freeze,
    load_gpt2,
    predict,
    predict_proba,
    train,
)
from gptclf.gpt2.heads import POOLINGS, ClassifierHead
from gptclf.gpt2.learner import Learner
from gptclf.preparation import Preparation
from gptclf.tasks import SingleLabel, Task
from gptclf.training.callbacks import KeepBest
from gptclf.training.history import Scores
from gptclf.training.loop import Step, training_steps
from gptclf.training.objective import Objective
from gptclf.training.optim import Schedule, lr_factor, make_optimizer
from gptclf.training.recipe import DECAYS, SCHEDULES, Recipe
from gptclf.training.run import Callback, Run

CONFIG = GPT2Config(vocab_size=257, context_length=40, emb_dim=24, n_heads=3, n_layers=2, mlp_dim=56)
TOKENIZER = byte_tokenizer()


def classifier(
    *, drop_rate: float = 0.0, classes: Sequence[Any] = ("ham", "spam"), pooling: str = "last", trainable: str = "all"
) -> GPT2:
    """A small classifier, always of the same weights."""
    head = ClassifierHead(CONFIG.emb_dim, len(classes), pooling=pooling)
    model = randomised(GPT2(CONFIG.replace(drop_rate=drop_rate), task=SingleLabel(classes), head=head, seed=1))
    model.tokenizer = TOKENIZER
    freeze(model, trainable=trainable)
    return model


def rows(n: int = 11, classes: Sequence[Any] = ("ham", "spam"), seed: int = 0, **preparation: Any) -> TextDataset:
    """Random texts with random labels, of both classes."""
    rng = np.random.default_rng(seed)
    texts = ["".join(map(chr, rng.integers(97, 123, rng.integers(1, 25)))) for _ in range(n)]
    labels = [*classes, *(classes[i] for i in rng.integers(0, len(classes), n))][:n]
    return TextDataset(texts, labels, tokenizer=TOKENIZER, classes=list(classes), **preparation)


def quietly(model: GPT2, train_set: TextDataset, val_set: TextDataset | None = None, **arguments: Any) -> History:
    """`train` in float32 without a bar, at a rate that moves a small model."""
    return train(model, train_set, val_set, **{"lr": 1e-3, "progress": False, "precision": "float32", **arguments})


def objective(model: GPT2) -> Objective:
    """What a step computes, over ids and in evaluation mode."""
    return Objective(Learner(model, keep_gradients=True), model.task)


def losses(history: History) -> list[float]:
    return [step.loss for step in history.steps]


def snapshot(model: GPT2) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def assert_same_bits(model: GPT2, expected: dict[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=0, atol=0, equal_nan=True)


class Calls(Callback):
    """Calls a function after steps or measurements, and counts the ends."""

    def __init__(
        self,
        on_step: Callable[[Run, Step], None] = lambda run, step: None,
        on_scores: Callable[[Run, Scores], None] = lambda run, scores: None,
    ) -> None:
        self._on_step, self._on_scores, self.ended = on_step, on_scores, 0

    def on_step(self, run: Run, step: Step) -> None:
        self._on_step(run, step)

    def on_scores(self, run: Run, scores: Scores) -> None:
        self._on_scores(run, scores)

    def on_end(self, run: Run) -> None:
        self.ended += 1


# The loop


@settings(deadline=None, max_examples=15, derandomize=True)
@given(n=st.integers(2, 14), size=st.integers(1, 4), k=st.integers(2, 5), adam=st.booleans())
def test_k_small_batches_are_one_large_batch(n: int, size: int, k: int, adam: bool) -> None:
    def run(batch_size: int, accumulate: int) -> tuple[GPT2, list[Step]]:
        model = classifier()
        # Adam's epsilon is large here: it would otherwise divide rounding by rounding where a gradient is 0.
        optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        if adam:
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, eps=1e-2)
        batches = Batches(rows(n), batch_size, seed=3)
        return model, list(training_steps(objective(model), batches, optimizer, epochs=2, accumulate=accumulate))

    (large, large_steps), (small, small_steps) = run(size * k, 1), run(size, k)
    assert len(small_steps) == len(large_steps) == 2 * math.ceil(n / (size * k))
    for one, other in zip(large_steps, small_steps, strict=True):
        assert (one.step, one.epoch, one.examples) == (other.step, other.epoch, other.examples)
        assert one.loss == pytest.approx(other.loss, rel=1e-5)
        assert one.gradient_norm == pytest.approx(other.gradient_norm, rel=1e-4)
    for name, parameter in large.named_parameters():
        torch.testing.assert_close(small.get_parameter(name), parameter, rtol=1e-5, atol=2e-6)


def test_a_plain_loop_with_batch_loss_gives_the_losses_of_train() -> None:
    model, plain = classifier(trainable="last_block"), classifier(trainable="last_block")
    data = rows(11)
    history = quietly(model, data, epochs=2, batch_size=4, seed=5)
    trained = [parameter for parameter in plain.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.1)
    expected = []
    batches = Batches(data, batch_size=4, seed=5)
    for epoch in range(2):
        for batch in batches.epoch(epoch):
            optimizer.zero_grad()
            loss = batch_loss(plain, batch)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            expected.append(loss.item())
    np.testing.assert_allclose(losses(history), expected, rtol=1e-5)
    for name, parameter in plain.named_parameters():
        # The key's bias has a gradient of rounding alone, which Adam makes a step of: it changes no score.
        if name != "trunk.blocks.1.attention.qkv.bias":
            torch.testing.assert_close(model.get_parameter(name), parameter, rtol=1e-4, atol=1e-5)


def test_batch_loss_is_the_mean_cross_entropy() -> None:
    model, data = classifier(), rows(5)
    batch = next(iter(Batches(data, 5)))
    logits = model(batch.inputs, batch.lengths).detach().double().numpy()
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    expected = -log_p[np.arange(5), data.targets(model.task)].mean()
    assert batch_loss(model, batch).item() == pytest.approx(expected, rel=1e-5)


def test_batch_loss_refuses_targets_that_mean_other_classes() -> None:
    batch = next(iter(Batches(rows(4, classes=["spam", "ham"]))))
    with pytest.raises(ValueError, match=r"the batch's classes are \['spam', 'ham'\] but the model's are"):
        batch_loss(classifier(), batch)


def test_batch_loss_refuses_a_batch_without_labels() -> None:
    batch = next(iter(Batches(TextDataset(["a"], tokenizer=TOKENIZER))))
    with pytest.raises(ValueError, match="the batch has no labels"):
        batch_loss(classifier(), batch)


def test_steps_count_epochs_and_examples() -> None:
    history = quietly(classifier(), rows(11), epochs=2, batch_size=4)
    assert [(step.step, step.epoch, step.examples) for step in history.steps] == [
        (1, 1, 4),
        (2, 1, 8),
        (3, 1, 11),
        (4, 2, 15),
        (5, 2, 19),
        (6, 2, 22),
    ]


def test_drop_last_leaves_out_the_batch_that_is_not_full() -> None:
    history = quietly(classifier(), rows(11), epochs=2, batch_size=4, drop_last=True)
    assert [step.examples for step in history.steps] == [4, 8, 12, 16]
    assert [scores.step for scores in history.epochs] == [2, 4]


def test_a_caller_can_stop_between_steps() -> None:
    model, full = classifier(), classifier()
    quietly(full, rows(8), epochs=1, batch_size=4)
    optimizer = make_optimizer(model, Recipe(lr=1e-3, weight_decay=0.1))
    for step in training_steps(objective(model), Batches(rows(8), 4, 123), optimizer, epochs=9):
        if step.step == 2:
            break
    assert_same_bits(model, snapshot(full))


# Determinism


@pytest.mark.parametrize("drop_rate", [0.0, 0.2])
def test_one_seed_means_the_same_run_bit_for_bit(drop_rate: float) -> None:
    models = [classifier(drop_rate=drop_rate) for _ in range(2)]
    histories = []
    for i, model in enumerate(models):
        torch.manual_seed(i)  # what the global generator holds must not matter
        histories.append(quietly(model, rows(), rows(5, seed=8), epochs=2, seed=9))
    assert losses(histories[0]) == losses(histories[1])
    assert histories[0].epochs[-1].val_loss == histories[1].epochs[-1].val_loss
    assert_same_bits(models[0], snapshot(models[1]))


def test_another_seed_means_another_order() -> None:
    first, second = (quietly(classifier(), rows(), epochs=1, batch_size=2, seed=seed) for seed in (1, 2))
    assert losses(first) != losses(second)


@given(seed=st.integers(0, 2**40), epoch=st.integers(0, 50), n=st.integers(8, 30))
@settings(deadline=None, max_examples=25, derandomize=True)
def test_the_order_is_a_function_of_seed_and_epoch(seed: int, epoch: int, n: int) -> None:
    data = rows(n)
    batches, others = Batches(data, 3, seed), Batches(data, 5, seed)
    order = batches.order(epoch)
    list(batches.epoch(epoch + 1))
    np.testing.assert_array_equal(batches.order(epoch), order)
    np.testing.assert_array_equal(others.order(epoch), order)
    assert sorted(order) == list(range(n))
    assert batches.order(epoch + 1).tolist() != order.tolist()
    assert Batches(data, 3, seed + 1).order(epoch).tolist() != order.tolist()


def test_dropout_of_the_model_takes_part_in_training() -> None:
    dropped, plain = classifier(drop_rate=0.5), classifier()
    with_dropout, without = quietly(dropped, rows(), epochs=2), quietly(plain, rows(), epochs=2)
    assert all(a != b for a, b in zip(losses(with_dropout), losses(without), strict=True))
    # Measurements know no dropout: they can be repeated.
    assert with_dropout.epochs[-1].train_loss == pytest.approx(dataset_loss(dropped, rows()), rel=1e-5)


def test_another_seed_draws_other_dropout() -> None:
    # One batch an epoch: the order of its rows cannot change the loss.
    first, second = (quietly(classifier(drop_rate=0.5), rows(4), epochs=1, seed=seed) for seed in (1, 2))
    assert losses(first)[0] != pytest.approx(losses(second)[0], rel=1e-4)


# What trains


@pytest.mark.parametrize("trainable", ["head", "last_block", "blocks.0.mlp", "all"])
def test_exactly_what_requires_grad_changes(trainable: str) -> None:
    model = classifier(trainable=trainable)
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    before = snapshot(model)
    quietly(model, rows(), epochs=1)
    changed = {name: not torch.equal(parameter, before[name]) for name, parameter in model.named_parameters()}
    assert changed == flags
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == flags


def test_a_model_in_which_nothing_trains_is_sent_to_freeze() -> None:
    model = classifier()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ValueError, match="freeze"):
        quietly(model, rows())


def test_no_gradient_is_left_behind() -> None:
    model = classifier()
    quietly(model, rows(), epochs=1)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_it_learns_a_separable_task() -> None:
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("abcd"), 6)) + ending for ending in "xy" * 12]
    data = TextDataset(texts, ["ham", "spam"] * 12, tokenizer=TOKENIZER)
    clf = add_classifier_head(
        load_gpt2(CONFIG, weights="random", seed=0, tokenizer=TOKENIZER), classes=["ham", "spam"], seed=1
    )
    before = dataset_loss(clf, data)
    history = quietly(clf, data, epochs=20, lr=1e-2)
    assert before == pytest.approx(math.log(2), abs=0.1)
    assert history.epochs[-1].train_loss < 0.1 * before
    assert history.epochs[-1].train_accuracy == 1.0
    assert evaluate(clf, data).accuracy == 1.0
    assert predict(clf, ["ddddx", "ddddy"]) == ["ham", "spam"]


# The frozen part computed once


@pytest.mark.parametrize("trainable", ["head", "norm", "last_block", "blocks.1.mlp"])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_reusing_the_frozen_part_gives_the_same_run(trainable: str, pooling: str) -> None:
    reusing, computing = (classifier(trainable=trainable, pooling=pooling) for _ in range(2))
    arguments: dict[str, Any] = {"epochs": 2, "batch_size": 4, "lr": 1e-3, "eval_every": 2, "decay": "matrices"}
    data, val_set = rows(11), rows(5, seed=8)
    first = quietly(reusing, data, val_set, reuse_frozen=True, **arguments)
    second = quietly(computing, data, val_set, reuse_frozen=False, **arguments)
    np.testing.assert_allclose(losses(first), losses(second), rtol=2e-5)
    for one, other in zip(first.scores(), second.scores(), strict=True):
        assert (one.step, one.train_accuracy, one.val_accuracy) == (
            other.step,
            other.train_accuracy,
            other.val_accuracy,
        )
        assert one.val_loss == pytest.approx(other.val_loss, rel=2e-5)
    np.testing.assert_allclose(predict_proba(reusing, data.texts), predict_proba(computing, data.texts), atol=2e-5)


def test_a_frozen_part_with_dropout_is_computed_anew() -> None:
    reusing, computing = (classifier(trainable="last_block", drop_rate=0.3) for _ in range(2))
    first, second = (quietly(m, rows(), reuse_frozen=m is reusing) for m in (reusing, computing))
    assert losses(first) == losses(second)
    assert_same_bits(reusing, snapshot(computing))


# Learning rate, decay, clipping


@pytest.mark.parametrize("total", [1, 2, 7])
def test_schedules_without_warmup_are_torchs_own(total: int) -> None:
    def rates(make: Callable[[torch.optim.Optimizer], Any]) -> list[float]:
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
        scheduler = make(optimizer)
        result = []
        for _ in range(total):
            result.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return result

    schedulers = torch.optim.lr_scheduler
    torchs: dict[str, Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]] = {
        "constant": lambda optimizer: schedulers.LambdaLR(optimizer, lambda step: 1.0),
        "linear": lambda optimizer: schedulers.PolynomialLR(optimizer, total_iters=total, power=1.0),
        "cosine": lambda optimizer: schedulers.CosineAnnealingLR(optimizer, T_max=total),
    }
    assert set(torchs) == set(SCHEDULES)
    for name, make in torchs.items():
        ours = rates(lambda o, name=name: Schedule(o, Recipe(schedule=name), total))  # type: ignore[misc]
        np.testing.assert_allclose(ours, rates(make), rtol=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_steps_of_a_run_use_warmup_and_then_the_schedule(schedule: str) -> None:
    history = quietly(classifier(), rows(11), epochs=3, batch_size=4, lr=1e-3, schedule=schedule, warmup_steps=4)
    share = np.arange(5) / 5  # nine steps, four of them warm-up
    after = {"constant": np.ones(5), "linear": 1 - share, "cosine": (1 + np.cos(np.pi * share)) / 2}[schedule]
    expected = 1e-3 * np.concatenate([[0.25, 0.5, 0.75, 1.0], after])
    np.testing.assert_allclose([step.lr for step in history.steps], expected, rtol=1e-9)


def test_accumulation_shortens_the_schedule() -> None:
    history = quietly(classifier(), rows(11), epochs=2, batch_size=2, accumulate=4, schedule="linear")
    np.testing.assert_allclose([step.lr for step in history.steps], [1e-3, 0.75e-3, 0.5e-3, 0.25e-3], rtol=1e-9)
    assert [scores.step for scores in history.epochs] == [2, 4]


def test_the_rate_that_is_reported_is_the_one_that_moves_the_weights() -> None:
    # Without momentum a step is rate times gradient, so a halved rate halves it.
    def first_move(warmup: int) -> Tensor:
        model = classifier(trainable="head")
        before = snapshot(model)["head.output.weight"]
        optimizer = torch.optim.SGD(model.head.parameters(), lr=0.1)
        scheduler = Schedule(optimizer, Recipe(warmup_steps=warmup), 9)
        step = next(training_steps(objective(model), Batches(rows(4)), optimizer, epochs=1, scheduler=scheduler))
        assert step.lr == pytest.approx(0.1 / max(1, warmup))
        return model.get_parameter("head.output.weight").detach() - before

    torch.testing.assert_close(2 * first_move(2), first_move(0), rtol=1e-4, atol=1e-7)


def test_more_warmup_than_steps_never_reaches_the_full_rate() -> None:
    assert [lr_factor("cosine", step, 3, 10) for step in range(3)] == pytest.approx([0.1, 0.2, 0.3])


def test_decay_reaches_everything_or_matrices_alone() -> None:
    def shrinkage(decay: str) -> dict[str, float]:
        model = classifier()
        before = snapshot(model)
        # lr * weight_decay takes half of each weight; the step itself is at most lr.
        quietly(model, rows(4), epochs=1, lr=1e-5, weight_decay=5e4, decay=decay)
        return {name: float(p.detach().norm() / before[name].norm()) for name, p in model.named_parameters()}

    assert shrinkage("all") == pytest.approx(dict.fromkeys(snapshot(classifier()), 0.5), abs=1e-3)
    matrices = {name: 0.5 if p.dim() >= 2 else 1.0 for name, p in classifier().named_parameters()}
    assert shrinkage("matrices") == pytest.approx(matrices, abs=1e-3)
    assert sorted(set(matrices.values())) == [0.5, 1.0]


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("trainable", ["all", "last_block", "*.bias"])
def test_the_optimizer_holds_what_trains_once(decay: str, trainable: str) -> None:
    model = classifier(trainable=trainable)
    optimizer = make_optimizer(model, Recipe(lr=1e-3, weight_decay=0.1, decay=decay))
    held = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in model.parameters() if parameter.requires_grad)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            assert group["weight_decay"] == (0.1 if decay == "all" or parameter.dim() >= 2 else 0.0)


@pytest.mark.parametrize("clip", [None, 1e-3, 1e6])
def test_clipping_bounds_the_gradient_and_reports_its_norm_before(clip: float | None) -> None:
    model = classifier()
    before, data = snapshot(model), rows(4)
    twin = copy.deepcopy(model)
    batch_loss(twin, next(iter(Batches(data)))).backward()  # type: ignore[no-untyped-call]
    gradient = {name: p.grad for name, p in twin.named_parameters() if p.grad is not None}
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradient.values()))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    step = next(training_steps(objective(model), Batches(data), optimizer, epochs=1, clip=clip))
    factor = 1.0 if clip is None else min(1.0, clip / norm)
    assert step.gradient_norm == pytest.approx(norm, rel=1e-4)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name] - factor * gradient[name], rtol=1e-3, atol=1e-6)


# Measurements


def test_measurements_equal_scores_computed_afresh() -> None:
    train_set, val_set = rows(11), rows(7, seed=4)
    seen: list[Scores] = []

    def check(run: Run, scores: Scores) -> None:
        seen.append(scores)
        model = run.model
        sized = {"num_batches": 2, "batch_size": 3, "precision": "float32"}
        assert scores.train_loss == dataset_loss(model, train_set, **sized)  # type: ignore[arg-type]
        assert scores.train_accuracy == dataset_accuracy(model, train_set, **sized)  # type: ignore[arg-type]
        assert scores.val_loss == dataset_loss(model, val_set, **sized)  # type: ignore[arg-type]
        assert scores.val_accuracy == dataset_accuracy(model, val_set, **sized)  # type: ignore[arg-type]

    watch = Calls(on_scores=check)
    history = quietly(
        classifier(), train_set, val_set, epochs=2, batch_size=3, eval_every=3, eval_batches=2, callbacks=[watch]
    )
    assert [scores.step for scores in seen] == [3, 4, 6, 8]
    assert [scores.step for scores in history.evaluations] == [3, 6]
    assert [scores.step for scores in history.epochs] == [4, 8]
    assert history.scores() == seen
    assert [(scores.epoch, scores.examples) for scores in seen] == [(1, 9), (1, 11), (2, 17), (2, 22)]
    assert watch.ended == 1


def test_a_data_sets_scores_are_over_a_fixed_sample_of_as_many_rows_as_the_batches_hold() -> None:
    model, data = classifier(), rows(11)
    order = np.random.default_rng(0).permutation(11)
    for num_batches, n in ((None, 11), (1, 4), (2, 8), (9, 11)):
        part = data.subset(order[:n])
        p = torch.cat([model(torch.from_numpy(row).long()[None]) for row in part.rows()]).detach()
        targets = torch.from_numpy(part.targets(model.task))
        loss = dataset_loss(model, data, num_batches=num_batches, batch_size=4)
        assert loss == pytest.approx(F.cross_entropy(p.double(), targets).item(), rel=1e-5)
        accuracy = dataset_accuracy(model, data, num_batches=num_batches, batch_size=4)
        assert accuracy == pytest.approx((p.argmax(1) == targets).double().mean().item())


def test_without_a_validation_set_only_training_is_measured() -> None:
    history = quietly(classifier(), rows(), epochs=1)
    assert history.epochs[0].val_loss is None
    assert history.epochs[0].val_accuracy is None
    assert "validation" not in str(history.epochs[0])


def test_measuring_changes_nothing_in_the_run() -> None:
    often, never = classifier(drop_rate=0.2), classifier(drop_rate=0.2)
    measured = quietly(often, rows(), rows(5, seed=8), epochs=2, batch_size=2, eval_every=1)
    plain = quietly(never, rows(), epochs=2, batch_size=2)
    assert losses(measured) == losses(plain)
    assert_same_bits(often, snapshot(never))


def test_a_frame_has_a_row_per_step_and_scores_where_they_were_measured() -> None:
    history = quietly(classifier(), rows(11), rows(5, seed=8), epochs=2, batch_size=4, eval_every=2)
    frame = history.to_frame()
    assert list(frame["step"]) == [1, 2, 3, 4, 5, 6]
    assert list(frame["loss"]) == losses(history)
    assert list(frame["epoch"]) == [1, 1, 1, 2, 2, 2]
    measured = frame.dropna(subset=["train_loss"])
    assert list(measured["step"]) == [2, 3, 4, 6]
    assert list(measured["val_accuracy"]) == [scores.val_accuracy for scores in history.scores()]
    assert {"lr", "examples", "gradient_norm", "train_accuracy", "val_loss", "seconds"} <= set(frame.columns)


def test_epochs_are_whole_numbers_beside_a_plot(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    figures: list[Any] = []
    monkeypatch.setattr("gptclf.plotting.save_figure", lambda figure, path: figures.append(figure))
    quietly(classifier(), rows(), epochs=3).plot("curves")
    assert all(float(tick).is_integer() for tick in figures[0].axes[0].get_xticks())


@pytest.mark.parametrize("validated", [True, False])
def test_a_plot_is_a_picture(tmp_path: Path, validated: bool) -> None:
    history = quietly(classifier(), rows(), rows(5, seed=8) if validated else None, epochs=2)
    path = history.plot(tmp_path / "new" / "curves.png")
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert [other.name for other in path.parent.iterdir()] == ["curves.png"]


def test_progress_writes_a_line_per_measurement(capsys: pytest.CaptureFixture[str]) -> None:
    quietly(classifier(), rows(), rows(5, seed=8), epochs=2, progress=True)
    captured = capsys.readouterr()
    assert captured.err.count("validation loss") == 2
    assert not captured.out
    quietly(classifier(), rows(), epochs=1)
    assert capsys.readouterr() == ("", "")


# What a run leaves behind


def _global_random_states() -> list[Any]:
    return [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]  # type: ignore[index]  # noqa: NPY002


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_mode_and_random_states_are_never_touched(training: bool, fails: bool) -> None:
    def fail(run: Run, step: Step) -> None:
        assert model.training == training
        if fails:
            raise RuntimeError("stop")

    model = classifier(drop_rate=0.1).train(training)
    before, watch = _global_random_states(), Calls(on_step=fail)
    if fails:
        with pytest.raises(RuntimeError, match="stop"):
            quietly(model, rows(), rows(5), epochs=1, callbacks=[watch])
    else:
        quietly(model, rows(), rows(5), epochs=1, callbacks=[watch])
    assert all(module.training == training for module in model.modules())
    assert _global_random_states() == before
    assert all(parameter.grad is None for parameter in model.parameters())
    assert watch.ended == 1


def test_a_loss_that_is_no_number_stops_the_run_at_the_weights_before() -> None:
    model, seen = classifier(), []
    watch = Calls(on_step=lambda run, step: seen.append(snapshot(run.model)))
    with pytest.raises(FloatingPointError, match=r"step 2: loss (nan|inf).*The step was not taken"):
        quietly(model, rows(), epochs=9, batch_size=4, lr=1e30, callbacks=[watch])
    assert len(seen) == 1
    assert_same_bits(model, seen[0])
    assert watch.ended == 1
    assert all(parameter.grad is None for parameter in model.parameters())


def test_an_infinite_gradient_stops_the_run_though_the_loss_is_finite() -> None:
    model = classifier()
    weight = model.get_parameter("head.output.weight")
    weight.register_hook(lambda gradient: gradient * math.inf)  # type: ignore[no-untyped-call]
    before = snapshot(model)
    with pytest.raises(FloatingPointError, match=r"step 1: loss \d.*gradient norm (inf|nan)"):
        quietly(model, rows(), epochs=1, clip=1.0)
    assert_same_bits(model, before)


@pytest.mark.parametrize("name", ["trunk.norm.bias", "trunk.blocks.0.norm1.bias"])
@pytest.mark.parametrize("trainable", ["all", "last_block", "head"])
def test_the_error_names_the_weights_at_fault(name: str, trainable: str) -> None:
    model = classifier(trainable=trainable)
    with torch.no_grad():
        model.get_parameter(name)[3] = math.nan
    with pytest.raises(FloatingPointError, match=rf"There is NaN or infinity in {name}: load"):
        quietly(model, rows(), epochs=1)


def test_the_training_sets_preparation_is_noted_on_the_model() -> None:
    model = classifier()
    quietly(model, rows(max_length=9, truncation="middle", pad_to=12), epochs=1)
    assert model.preparation == Preparation(9, "middle", 12)
    quietly(model, rows(), epochs=1)
    assert model.preparation == Preparation()


def test_predict_prepares_texts_as_training_did() -> None:
    model = classifier()
    quietly(model, rows(max_length=5, truncation="head", pad_to=8), epochs=1)
    ids = [*TOKENIZER.encode_ordinary("fghij"), *[256] * 3]
    expected = model(torch.tensor([ids])).softmax(1).detach().numpy()
    np.testing.assert_allclose(predict_proba(model, ["abcdefghij"]), expected, rtol=1e-5)


def test_rows_longer_than_the_context_are_cut_by_training(caplog: pytest.LogCaptureFixture) -> None:
    long = TextDataset(["a" * 50 + "x", "b"], ["ham", "spam"], tokenizer=TOKENIZER)
    cut = TextDataset(["a" * 40, "b"], ["ham", "spam"], tokenizer=TOKENIZER)
    assert losses(quietly(classifier(), long, epochs=2)) == losses(quietly(classifier(), cut, epochs=2))
    assert "1 of 2 texts are longer than 40 tokens (longest: 51)" in caplog.text


# Keeping the best


def test_keep_best_puts_the_best_weights_back() -> None:
    # The validation labels are the training ones turned round: what is learned makes it worse.
    data = rows(12)
    turned = {"ham": "spam", "spam": "ham"}
    assert data.classes is not None
    assert data.labels is not None
    flipped = TextDataset(data.texts, [turned[data.classes[i]] for i in data.labels], tokenizer=TOKENIZER)
    model, keep, seen = classifier(), KeepBest(), []
    watch = Calls(on_scores=lambda run, scores: seen.append(snapshot(run.model)))
    history = quietly(model, data, flipped, epochs=6, lr=5e-3, callbacks=[keep, watch])
    val_losses = [scores.val_loss for scores in history.epochs]
    best = int(np.argmin(np.array(val_losses, dtype=float)))
    assert best < 5
    assert keep.best == history.epochs[best]
    assert_same_bits(model, seen[best])
    assert dataset_loss(model, flipped, precision="float32") == val_losses[best]


def test_keep_best_puts_them_back_after_an_error_too() -> None:
    def fail(run: Run, step: Step) -> None:
        if step.step == 3:
            raise KeyboardInterrupt

    model, keep, seen = classifier(), KeepBest(), []
    watch = Calls(on_step=fail, on_scores=lambda run, scores: seen.append(snapshot(run.model)))
    with pytest.raises(KeyboardInterrupt):
        quietly(model, rows(6), rows(6), epochs=9, callbacks=[keep, watch])
    assert keep.best is not None
    assert_same_bits(model, seen[keep.best.step - 1])


def test_keep_best_copies_only_what_trains() -> None:
    model, keep = classifier(trainable="head"), KeepBest()
    quietly(model, rows(6), rows(6), epochs=1, callbacks=[keep])
    assert set(keep._weights) == {"head.output.weight", "head.output.bias"}


def test_keep_best_needs_a_validation_set() -> None:
    with pytest.raises(ValueError, match="KeepBest needs a validation set"):
        quietly(classifier(), rows(), epochs=1, callbacks=[KeepBest()])


# Weights of rows and classes


def weighted(weights: list[float] | None = None, repeat: int = 1) -> TextDataset:
    data, labels = rows(6), ["ham", "spam", *["spam"] * 4]
    texts = [*data.texts, *[data.texts[0]] * (repeat - 1)]
    return TextDataset(texts, [*labels, *["ham"] * (repeat - 1)], tokenizer=TOKENIZER, weights=weights)


def with_task(task: SingleLabel) -> GPT2:
    model = classifier(trainable="last_block")
    model.task = task
    return model


def test_a_row_of_weight_two_is_the_row_twice() -> None:
    # One batch an epoch: the order of its rows cannot change the loss.
    one, other = classifier(), classifier()
    heavy = quietly(one, weighted([2.0, 1.0, 1.0, 1.0, 1.0, 1.0]), epochs=4)
    twice = quietly(other, weighted(repeat=2), epochs=4)
    np.testing.assert_allclose(losses(heavy), losses(twice), rtol=1e-5)
    np.testing.assert_allclose(predict_proba(one, ["abc"]), predict_proba(other, ["abc"]), rtol=1e-4)


def test_a_classs_weight_is_the_weight_of_its_rows() -> None:
    one, other = with_task(SingleLabel(["ham", "spam"], {"ham": 3.0})), classifier(trainable="last_block")
    by_class = quietly(one, weighted(), epochs=4, batch_size=4, accumulate=2)
    by_row = quietly(other, weighted([3.0, *[1.0] * 5]), epochs=4)
    np.testing.assert_allclose(losses(by_class), losses(by_row), rtol=1e-5)
    both = quietly(with_task(SingleLabel(["ham", "spam"], {"ham": 3.0})), weighted([2.0, *[1.0] * 5]), epochs=1)
    six = quietly(classifier(trainable="last_block"), weighted([6.0, *[1.0] * 5]), epochs=1)
    assert losses(both) == pytest.approx(losses(six), rel=1e-5)


def test_weights_shape_the_training_loss_and_no_measure() -> None:
    model = with_task(SingleLabel(["ham", "spam"], {"ham": 30.0}, label_smoothing=0.1))
    data = weighted([5.0, *[0.1] * 5])
    history = quietly(model, data, data, epochs=2)
    plain = dataset_loss(model, weighted(), precision="float32")
    assert history.epochs[-1].train_loss == history.epochs[-1].val_loss == pytest.approx(plain, rel=1e-5)
    assert losses(history)[-1] != pytest.approx(history.epochs[-1].train_loss, rel=0.01)


def test_balanced_weights_are_fixed_when_training_starts() -> None:
    model = with_task(SingleLabel(["ham", "spam"], "balanced"))
    balanced = quietly(model, weighted(), epochs=2)
    given = quietly(with_task(SingleLabel(["ham", "spam"], {"ham": 3.0, "spam": 0.6})), weighted(), epochs=2)
    assert losses(balanced) == pytest.approx(losses(given), rel=1e-6)
    assert model.task.record()["weights"] == [3.0, 0.6]


# Labels and data sets


def test_labels_are_matched_by_name() -> None:
    data = rows(8)
    assert data.classes is not None
    assert data.labels is not None
    reversed_order = TextDataset(
        data.texts, [data.classes[i] for i in data.labels], tokenizer=TOKENIZER, classes=["spam", "ham"]
    )
    assert data.labels.tolist() != reversed_order.labels.tolist()  # type: ignore[union-attr]
    one, other = classifier(), classifier()
    first = quietly(one, data, data, epochs=2)
    second = quietly(other, reversed_order, reversed_order, epochs=2)
    assert losses(first) == losses(second)
    assert [scores.val_loss for scores in first.epochs] == [scores.val_loss for scores in second.epochs]
    assert_same_bits(one, snapshot(other))


def test_a_model_may_have_classes_that_the_data_lack() -> None:
    model = classifier(classes=["eggs", "ham", "other", "spam"])
    history = quietly(model, rows(), epochs=10, lr=1e-2)
    assert history.epochs[-1].train_loss < history.epochs[0].train_loss


def _unlabelled() -> TextDataset:
    return TextDataset(["a", "b"], tokenizer=TOKENIZER)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (TextDataset(["a", "b"], ["ham", "ham"], tokenizer=TOKENIZER), "every row of the training set has the same"),
        (TextDataset([], [], tokenizer=TOKENIZER), "train_set is empty"),
        (_unlabelled(), "this data set has no labels"),
        (TextDataset(["a", "b"], ["ham", "eggs"], tokenizer=TOKENIZER), r"1 label not among the classes: 'eggs'"),
    ],
)
def test_a_training_set_that_teaches_nothing_is_refused(data: TextDataset, message: str) -> None:
    model = classifier()
    before = snapshot(model)
    with pytest.raises(ValueError, match=message):
        quietly(model, data)
    assert_same_bits(model, before)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (TextDataset([], [], tokenizer=TOKENIZER), "val_set is empty"),
        (_unlabelled(), "this data set has no labels"),
        (TextDataset(["a"], [1], tokenizer=TOKENIZER), "not among the classes: 1"),
    ],
)
def test_a_validation_set_that_measures_nothing_is_refused_at_once(data: TextDataset, message: str) -> None:
    model = classifier()
    before = snapshot(model)
    with pytest.raises(ValueError, match=message):
        quietly(model, rows(), data)
    assert_same_bits(model, before)


def test_a_validation_set_of_one_class_is_fine() -> None:
    data = TextDataset(["a", "b"], ["ham", "ham"], tokenizer=TOKENIZER)
    assert quietly(classifier(), rows(), data, epochs=1).epochs[0].val_loss is not None


def test_a_language_model_cannot_be_trained_to_classify() -> None:
    model = GPT2(CONFIG, seed=1)
    with pytest.raises(TypeError, match="this is a language model; put a classifier head on it first"):
        quietly(model, rows())
    with pytest.raises(TypeError, match="this is a language model"):
        batch_loss(model, next(iter(Batches(rows()))))


@pytest.mark.parametrize("data", [["a", "b"], [("a", "ham")], {"text": ["a"]}])
def test_a_training_set_that_is_no_data_set_is_refused(data: Any) -> None:
    with pytest.raises(TypeError, match=r"train_set is a (list|dict); it must be a TextDataset with labels"):
        quietly(classifier(), data)


def test_a_data_set_of_another_tokenizer_is_refused() -> None:
    config = CONFIG.replace(vocab_size=100)
    model = GPT2(config, task=SingleLabel(["ham", "spam"]), seed=1)
    data = TextDataset(["é", "a"], ["ham", "spam"], tokenizer=TOKENIZER)
    with pytest.raises(ValueError, match=r"train_set has token id \d+, but the model's vocabulary ends at 99"):
        quietly(model, data)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": 0}, "epochs is 0; it must be an integer of at least 1 "),
        ({"batch_size": 2.0}, "batch_size is 2.0; it must be an integer of at least 1 "),
        ({"accumulate": True}, "accumulate is True"),
        ({"lr": "fast"}, "lr is 'fast'"),
        ({"recipe": {"epochs": 3}}, "recipe is a dict; it must be a gptclf.Recipe"),
        ({"epoch": 3}, "there is no option 'epoch'; did you mean 'epochs'"),
        ({"progress": 1}, "progress is 1; it must be True or False"),
        ({"eval_every": 0}, "eval_every is 0; it must be an integer of at least 1 or None"),
        ({"eval_batches": -1}, "eval_batches is -1"),
        ({"lr": -1e-3}, "lr is -0.001; it must be a finite number of at least 0"),
        ({"lr": math.nan}, "lr is nan"),
        ({"weight_decay": math.inf}, "weight_decay is inf"),
        ({"clip": -1.0}, "clip is -1.0"),
        ({"schedule": "step"}, "schedule is 'step'; it must be one of constant, linear, cosine"),
        ({"decay": "none"}, "decay is 'none'; it must be one of all, matrices"),
        ({"warmup_steps": -1}, "warmup_steps is -1"),
        ({"precision": "fp16"}, "precision is 'fp16'; it must be one of auto, float32, bfloat16"),
        ({"drop_last": True, "batch_size": 64}, "drop_last=True leaves no batch: 11 rows are less than one batch"),
    ],
)
def test_arguments_that_make_no_run_say_why(arguments: dict[str, Any], message: str) -> None:
    model = classifier()
    before = snapshot(model)
    with pytest.raises((ValueError, TypeError), match=message):
        quietly(model, rows(11), **arguments)
    assert_same_bits(model, before)


# bfloat16


def test_bfloat16_trains_float32_weights_nearly_alike() -> None:
    model, exact = classifier(), classifier()
    history, reference = quietly(model, rows(), epochs=3, precision="bfloat16"), quietly(exact, rows(), epochs=3)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert losses(history) != losses(reference)
    np.testing.assert_allclose(losses(history), losses(reference), rtol=0.05)


def test_keep_best_forgets_the_run_before() -> None:
    keep = KeepBest()
    first, second = classifier(), classifier()
    data = rows()
    train(first, data, data, epochs=5, lr=1e-2, callbacks=[keep], progress=False)
    train(second, data, data, epochs=1, lr=1e-6, callbacks=[keep], progress=False)
    assert not torch.equal(first.head.output.weight, second.head.output.weight)  # type: ignore[union-attr, arg-type]


def test_every_callback_ends_and_the_first_error_is_not_lost() -> None:
    class Ends(Callback):
        ended = 0

        def on_step(self, run: Run, step: Step) -> None:
            raise KeyError("the cause")

        def on_end(self, run: Run) -> None:
            Ends.ended += 1
            raise ValueError("at the end")

    model = classifier()
    with pytest.raises(ValueError, match="at the end") as caught:
        train(model, rows(), callbacks=[Ends(), Ends()], progress=False)
    causes, error = [], caught.value.__context__
    while error is not None:
        causes.append(type(error))
        error = error.__context__
    assert Ends.ended == 2
    assert KeyError in causes


@pytest.mark.parametrize(
    "arguments", [{"schedule": "cosin"}, {"decay": "x"}, {"callbacks": KeepBest()}, {"callbacks": [print]}]
)
def test_an_argument_that_cannot_be_is_refused_before_anything_changes(arguments: dict[str, Any]) -> None:
    model = classifier()
    before = model.preparation
    data = TextDataset(["a", "b"], ["x", "y"], tokenizer=model.tokenizer, max_length=7)
    data = TextDataset(data.texts, model.classes, tokenizer=model.tokenizer, max_length=7)
    with pytest.raises((ValueError, TypeError)):
        train(model, data, progress=False, **arguments)
    assert model.preparation == before


def test_half_precision_weights_are_sent_to_float() -> None:
    model = classifier().bfloat16()
    with pytest.raises(ValueError, match=r"call model\.float\(\)"):
        train(model, rows(), progress=False)


# Told before the first step, or by its cause


@pytest.mark.parametrize(
    ("weights", "class_weight", "message"),
    [
        ([1e38] * 8, None, r"the weights of rows [\d, ]+ sum to 4e\+38; each step needs a sum from 1e-30 to 1e30"),
        ([1e-45] * 8, None, r"the weights of rows [\d, ]+ sum to 5\.6\d*e-45; each step needs"),
        ([1.0] + [0.0] * 7, None, r"the weights of rows [\d, ]+ sum to 0; each step needs"),
        (None, {"ham": 1e39}, r"the weights of rows [\d, ]+ sum to inf; each step needs"),
        ([1e30] * 8, {"ham": 1e30}, r"the weights of rows [\d, ]+ sum to inf; each step needs"),
    ],
)
def test_weights_that_cannot_divide_a_loss_are_told_before_the_first_step(
    weights: Any, class_weight: Any, message: str
) -> None:
    clf = add_classifier_head(byte_gpt2(), task=SingleLabel(["ham", "spam"], class_weight), seed=3)
    data = TextDataset(["a", "b"] * 4, ["ham", "spam"] * 4, tokenizer=clf.tokenizer, weights=weights)
    steps: list[Any] = []

    class Look(Callback):
        def on_start(self, run: Any) -> None:
            steps.append(run)

    with pytest.raises(ValueError, match=message):
        train(clf, data, epochs=3, batch_size=4, progress=False, callbacks=[Look()])
    assert not steps


def test_a_group_without_weight_in_a_later_epoch_is_told_before_the_first() -> None:
    clf = add_classifier_head(byte_gpt2(), classes=["ham", "spam"], seed=3)
    options: dict[str, Any] = {"epochs": 50, "batch_size": 2, "progress": False}
    data = TextDataset(["a", "b"] * 3, ["ham", "spam"] * 3, tokenizer=clf.tokenizer, weights=[1.0] * 4 + [0.0] * 2)
    orders = [Batches(data, 2, 123).order(epoch).reshape(3, 2).tolist() for epoch in range(50)]
    [first, *_] = [epoch for epoch, order in enumerate(orders) if [4, 5] in order or [5, 4] in order]
    assert first > 0
    before = [parameter.clone() for parameter in clf.parameters()]
    with pytest.raises(ValueError, match=r"the weights of rows (4, 5|5, 4) sum to 0"):
        train(clf, data, **options)
    assert all(torch.equal(a, b) for a, b in zip(before, clf.parameters(), strict=True))
    train(clf, data, **{**options, "epochs": first})


def test_targets_that_are_not_finite_are_named_before_the_computation_is_blamed() -> None:
    class Number(Task):
        n_outputs = 1

        def targets(self, labels: Any) -> Any:
            return np.asarray(labels, dtype=np.float32)

        def loss(self, outputs: Any, targets: Any, weights: Any = None) -> Any:
            return ((outputs[:, 0] - targets) ** 2).sum(), float(len(targets))

    clf = add_classifier_head(byte_gpt2(), task=Number(), seed=3)
    data = TextDataset(["a"] * 4, [0.0, -float("inf"), 1.0, float("inf")], tokenizer=clf.tokenizer, task=clf.task)
    with pytest.raises(
        FloatingPointError, match=r"step 1: .* The targets of rows (1, 3|3, 1) are not finite\. The step"
    ):
        train(clf, data, progress=False)


def test_training_in_inference_mode_says_so() -> None:
    clf = add_classifier_head(byte_gpt2(), classes=["ham", "spam"], seed=3)
    data = TextDataset(["a", "b"], ["ham", "spam"], tokenizer=clf.tokenizer)
    with torch.inference_mode():
        made = add_classifier_head(byte_gpt2(), classes=["ham", "spam"], seed=3)
        with pytest.raises(ValueError, match=r"nothing trains in torch\.inference_mode"):
            train(clf, data, progress=False)
    with pytest.raises(ValueError, match=r"nothing trains in torch\.inference_mode"):
        train(made, data, progress=False)
