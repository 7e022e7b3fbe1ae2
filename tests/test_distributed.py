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

from gptclf import GPT2, Batch, Batches, GPT2Config, TextDataset, add_classifier_head, freeze, load_gpt2
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
