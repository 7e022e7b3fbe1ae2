"""`Objective`: what a training step computes, as one module, which DDP, FSDP or a compiler can wrap."""

import torch
from torch import Tensor, nn

from gptclf import checks
from gptclf.data.batches import Batch
from gptclf.gpt2.arithmetic import casting
from gptclf.gpt2.learner import Learner
from gptclf.gpt2.model import GPT2
from gptclf.tasks import Task


class Objective(nn.Module):
    """A learner and its task: the module that a training step calls.

    Args:
        learner: Computes outputs.
        task: Computes the loss of outputs.
        precision: "float32" or "bfloat16", the arithmetic of matrix products.

    Example:
        >>> from gptclf import Batches, TextDataset, add_classifier_head, load_gpt2
        >>> clf = add_classifier_head(load_gpt2("nano"), classes=["ham", "spam"], seed=0)
        >>> data = TextDataset(["hi", "win!"], ["ham", "spam"], tokenizer=clf.tokenizer)
        >>> batch = next(iter(Batches(data)))
        >>> loss, weight = Objective(Learner(clf), clf.task)(batch.inputs, batch.lengths, batch.targets)
        >>> loss.shape, weight
        (torch.Size([]), 2.0)
    """

    def __init__(self, learner: Learner, task: Task, precision: str = "float32") -> None:
        super().__init__()
        self.learner = learner
        self.task = task
        self.precision = precision

    def forward(
        self, inputs: Tensor, lengths: Tensor, targets: Tensor, weights: Tensor | None = None
    ) -> tuple[Tensor, float]:
        """Return the sum of the rows' losses, a differentiable scalar, and their weight.

        Without rows, as on one of several processes that share a small batch, both are 0.

        Args:
            inputs: Token ids (B, T), or features (B, T, D) if the learner starts after a frozen prefix.
            lengths: Real positions per row (B,).
            targets: The task's targets, one per row.
            weights: A weight per row (B,), or None if all are 1.
        """
        if not len(lengths):
            trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
            return torch.stack([(parameter * 0.0).sum() for parameter in trained]).sum(), 0.0
        with casting(self.precision, self.learner):
            return self.task.batch_loss(self.learner, inputs, lengths, targets, weights)

    def weight(self, batch: Batch) -> float:
        """Return the weight of a batch's rows, which divides the sum of their losses."""
        return self.task.weight(targets_of(batch), batch.weights) if len(batch) else 0.0


def targets_of(batch: Batch) -> Tensor:
    """Return a batch's targets, or raise if its rows have no labels."""
    if batch.targets is None:
        raise ValueError("the batch has no labels; build the data set as TextDataset(texts, labels, ...)")
    return batch.targets


def objective_of(module: nn.Module) -> Objective:
    """Return the objective in a module that may wrap it, as DistributedDataParallel does."""
    found = next((part for part in module.modules() if isinstance(part, Objective)), None)
    if found is None:
        raise TypeError(f"{type(module).__name__} holds no gptclf Objective; wrap Objective(learner, task)")
    return found


def mean_over_ranks(value: float, module: nn.Module) -> float:
    """Return the mean of `value` over the processes among which a wrapper divides the work, or `value` without one.

    A wrapper averages gradients over its processes. Sums divided by the mean weight of a process, then averaged, are
    sums over all processes divided by the whole weight.
    """
    group = getattr(module, "process_group", None)
    if group is None:
        return value
    total = torch.tensor(value, dtype=torch.float64, device=objective_of(module).learner.device)
    torch.distributed.all_reduce(total, group=group)
    return float(total) / torch.distributed.get_world_size(group)


def batch_loss(model: GPT2 | Learner, batch: Batch) -> Tensor:
    """Return the mean loss of a batch, a scalar to call `backward()` on.

    For a classifier it is the mean over rows, for a language model the mean over all positions. It is weighted if there
    are class or row weights.

    Example:
        >>> from gptclf import Batches, TextDataset, add_classifier_head, load_gpt2
        >>> clf = add_classifier_head(load_gpt2("nano"), classes=["ham", "spam"], seed=0)
        >>> data = TextDataset(["hi", "win!"], ["ham", "spam"], tokenizer=clf.tokenizer, classes=clf.classes)
        >>> batch_loss(clf, next(iter(Batches(data)))).shape
        torch.Size([])
    """
    checks.instance("model", model, (GPT2, Learner), "a gptclf GPT2")
    checks.instance("batch", batch, Batch, "a Batch, as iterating over Batches gives")
    targets = targets_of(batch)
    model.task.check_same(batch.task)
    total, weight = model.task.batch_loss(model, batch.inputs, batch.lengths, targets, batch.weights)
    return total / weight
