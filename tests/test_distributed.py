"""The loop under DistributedDataParallel: two processes that share each batch take the steps of one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing
from conftest import byte_tokenizer
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gptclf import GPT2, Batch, Batches, GPT2Config, TextDataset, TextWindows, add_classifier_head, freeze, load_gpt2
from gptclf.gpt2.learner import Learner
from gptclf.tasks import SingleLabel
from gptclf.training.loop import training_steps
from gptclf.training.objective import Objective, mean_over_ranks, objective_of
from gptclf.training.optim import Schedule, make_optimizer
from gptclf.training.recipe import Recipe

TEXTS = [f"{'word ' * (i % 5)}number {i}" for i in range(11)]
LABELS = ["spam" if i % 3 else "ham" for i in range(11)]
WEIGHTS = [0.5 + (i % 4) for i in range(11)]
# Batches of 4, 4 and 3 rows, two to a step: a step of 8 and one of 3 rows an epoch, 20 in all.
RECIPE = Recipe(epochs=10, batch_size=4, accumulate=2, lr=3e-3, schedule="linear", clip=1.0)


class Share(Batches):
    """The rows of each batch that one of several processes computes."""

    rank, ranks = 0, 1

    def take(self, indices: Any) -> Batch:
        return super().take(indices[self.rank :: self.ranks])


def classifier(trainable: str) -> GPT2:
    config = GPT2Config(vocab_size=257, context_length=40, emb_dim=24, n_layers=2, n_heads=3, mlp_dim=40)
    gpt2 = load_gpt2(config, weights="random", seed=0, tokenizer=byte_tokenizer())
    clf = add_classifier_head(gpt2, task=SingleLabel(["ham", "spam"], {"ham": 2.5}), seed=3)
    freeze(clf, trainable=trainable)
    return clf


def learned(trainable: str, rank: int = 0, ranks: int = 1) -> tuple[list[float], list[float], Tensor]:
    """Losses, gradient norms and final logits of the run, in a process of some."""
    clf = classifier(trainable)
    data = TextDataset(TEXTS, LABELS, tokenizer=clf.tokenizer, classes=clf.classes, weights=WEIGHTS)
    batches = Share(data, RECIPE.batch_size, RECIPE.seed, task=clf.task)
    batches.rank, batches.ranks = rank, ranks
    objective: nn.Module = Objective(Learner(clf, training=True, seed=1, keep_gradients=True), clf.task)
    if ranks > 1:
        objective = DistributedDataParallel(objective)
    optimizer = make_optimizer(clf, RECIPE)
    steps = list(
        training_steps(
            objective,
            batches,
            optimizer,
            epochs=RECIPE.epochs,
            accumulate=RECIPE.accumulate,
            clip=RECIPE.clip,
            scheduler=Schedule(optimizer, RECIPE, 20),
        )
    )
    assert len(steps) == 20
    whole = next(iter(Batches(data, len(data))))
    with torch.no_grad():
        logits = clf(whole.inputs, whole.lengths)
    return [step.loss for step in steps], [step.gradient_norm for step in steps], logits


def work(rank: int, folder: str, trainable: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.save(learned(trainable, rank, 2), f"{folder}/{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("trainable", ["all", "last_block"])
def test_two_processes_take_the_steps_of_one(trainable: str, tmp_path: Path) -> None:
    torch.multiprocessing.spawn(work, (str(tmp_path), trainable), nprocs=2)  # type: ignore[attr-defined, no-untyped-call]
    losses, norms, logits = learned(trainable)
    for rank in range(2):
        their_losses, their_norms, their_logits = torch.load(tmp_path / f"{rank}.pt")
        assert their_losses == pytest.approx(losses, rel=1e-6, abs=1e-6)
        assert their_norms == pytest.approx(norms, rel=1e-4)
        torch.testing.assert_close(their_logits, logits, rtol=1e-6, atol=1e-6)


def test_without_other_processes_a_mean_is_the_value_itself() -> None:
    objective = Objective(Learner(classifier("head")), SingleLabel(["ham", "spam"]))
    assert mean_over_ranks(3.25, objective) == 3.25
    assert objective_of(nn.Sequential(objective)) is objective
    with pytest.raises(TypeError, match="Linear holds no gptclf Objective"):
        objective_of(nn.Linear(1, 1))


def test_a_step_without_weight_names_its_rows() -> None:
    clf = classifier("head")
    weights = [1.0] * 4 + [0.0] * 4 + [1.0] * 3
    data = TextDataset(TEXTS, LABELS, tokenizer=clf.tokenizer, classes=clf.classes, weights=weights)
    optimizer = make_optimizer(clf, RECIPE)
    steps: Iterator[Any] = training_steps(
        Objective(Learner(clf), clf.task), Batches(data, 2), optimizer, epochs=1, accumulate=2
    )
    next(steps)
    before = [parameter.clone() for parameter in clf.parameters()]
    with pytest.raises(ValueError, match="the weights of rows 4, 5, 6, 7 sum to 0"):
        next(steps)
    assert all(torch.equal(a, b) for a, b in zip(before, clf.parameters(), strict=True))


class WithEmpty(Batches):
    """Every batch comes with a share that has no rows, as a process has that is given none."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        for batch in super().epoch(epoch, start):
            yield self.take([])
            yield batch


@pytest.mark.parametrize("trainable", ["all", "last_block", "head"])
def test_a_share_without_rows_adds_nothing(trainable: str) -> None:
    def steps(kind: type[Batches], accumulate: int) -> tuple[list[Any], GPT2]:
        clf = classifier(trainable)
        data = TextDataset(TEXTS, LABELS, tokenizer=clf.tokenizer, classes=clf.classes, weights=WEIGHTS)
        objective = Objective(Learner(clf, training=True, seed=1, keep_gradients=True), clf.task)
        taken = training_steps(
            objective, kind(data, 4, 3, task=clf.task), make_optimizer(clf, RECIPE), epochs=2, accumulate=accumulate
        )
        return [(step.loss, step.gradient_norm, step.examples) for step in taken], clf

    (one, first), (other, second) = steps(Batches, 1), steps(WithEmpty, 2)
    assert one == other
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize("kind", ["classifier", "language model"])
def test_no_rows_have_a_sum_of_0_that_reaches_every_trained_parameter(kind: str) -> None:
    model = classifier("last_block")
    rows: Any = TextDataset(TEXTS, LABELS, tokenizer=model.tokenizer, classes=model.classes)
    if kind == "language model":
        model = load_gpt2(model.config, weights="random", seed=0, tokenizer=byte_tokenizer())
        freeze(model, trainable="all")
        rows = TextWindows("word " * 40, tokenizer=model.tokenizer, length=16)
    objective, batch = (
        Objective(Learner(model, keep_gradients=True), model.task),
        Batches(rows, task=model.task).take([]),
    )
    assert batch.targets is not None
    total, weight = objective(batch.inputs, batch.lengths, batch.targets, batch.weights)
    assert (total.item(), weight, objective.weight(batch)) == (0.0, 0.0, 0.0)
    total.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)


def test_a_group_of_no_rows_at_all_is_an_error() -> None:
    clf = classifier("head")
    data = TextDataset(TEXTS, LABELS, tokenizer=clf.tokenizer, classes=clf.classes)

    class Empty(Batches):
        def take(self, indices: Any) -> Batch:
            return super().take(indices[:0])

    steps = training_steps(Objective(Learner(clf), clf.task), Empty(data, 4), make_optimizer(clf, RECIPE), epochs=1)
    with pytest.raises(ValueError, match="sum to 0"):
        next(steps)


@pytest.mark.parametrize("pooling", ["last", "first", "mean", "max"])
def test_a_model_computes_no_rows(pooling: str) -> None:
    gpt2 = load_gpt2(classifier("head").config, weights="random", seed=0, tokenizer=byte_tokenizer())
    clf = add_classifier_head(gpt2, classes=["ham", "spam"], pooling=pooling, seed=3)
    ids, lengths = torch.zeros((0, 7), dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    assert clf(ids, lengths).shape == (0, 2)
