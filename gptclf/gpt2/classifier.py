"""`add_classifier_head`: a classifier on the trunk of a model."""

import logging
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from gptclf.checks import integer
from gptclf.gpt2.arithmetic import check_float32
from gptclf.gpt2.config import GPT2Config
from gptclf.gpt2.freezing import first_policy, freeze
from gptclf.gpt2.heads import MOST_OUTPUTS, ClassifierHead, Head, check_head
from gptclf.gpt2.initialise import initialise
from gptclf.gpt2.model import GPT2, check_gpt2
from gptclf.gpt2.sharing import borrow
from gptclf.tasks import SingleLabel, Task

logger = logging.getLogger(__name__)

# A head, or a function that makes one from the trunk's width and the number of outputs.
HeadSource = Head | Callable[[int, int], Head]


def add_classifier_head(
    model: GPT2,
    num_classes: int | None = None,
    *,
    classes: Iterable[Any] | None = None,
    task: Task | None = None,
    pooling: str = "last",
    bias: bool = True,
    head: HeadSource | None = None,
    seed: int | None = None,
) -> GPT2:
    """Put a new head on the trunk of `model`: a new model whose last block, final norm and head are trainable.

    The new model shares the tensors that stay frozen and owns copies of those that may train, so `model` and other
    classifiers made from it never change. Layers that you have replaced in `model` are kept; a classifier's old head is
    not. If the last block is quantised, the head alone is trainable. (Book section 6.5.)

    Args:
        model: A language model, or a classifier whose trunk is used.
        num_classes: C, for classes 0 to C-1. Give exactly one of this, `classes` and `task`.
        classes: The labels, hashable and distinct; their order is the order of columns everywhere.
        task: A task of your own, or `SingleLabel` with class weights.
        pooling: Where the head looks: "last" (the last real token), "first", "mean" or "max".
        bias: Whether the head has a bias (Hugging Face's classifier has none).
        head: A `Head` of your own, of which the model gets a copy, or a class that is called with the trunk's width and
            the number of outputs. It is tried once. `pooling`, `bias` and `seed` apply to the standard head only.
        seed: Seed of the head's weights; None draws one from torch's global generator. It is logged.

    Raises:
        TypeError: An argument has a wrong type.
        ValueError: There are fewer than two classes, a label occurs twice, the model is not float32, or the head does
            not give the task's outputs.

    Example:
        >>> from gptclf import load_gpt2
        >>> clf = add_classifier_head(load_gpt2("nano"), classes=["ham", "spam"], seed=123)
        >>> clf.classes, clf.head.output.weight.shape
        (['ham', 'spam'], torch.Size([2, 192]))
    """
    check_gpt2(model)
    task = _task_of(num_classes, classes, task)
    check_float32(model, "a new head goes on")
    given = {"pooling=": pooling != "last", "bias=": bias is not True, "seed=": seed is not None}
    if head is not None and any(given.values()):
        names = " and ".join(name for name in given if given[name])
        raise ValueError(f"with head=, leave out {names}: for the standard head only; give it to your own head")
    clf = borrow(model)
    clf.task, clf._preparation = task, None  # the new head has learned on nothing
    if head is None:
        fresh, seed = fresh_head(model.config, task.n_outputs, pooling=pooling, bias=bias, seed=seed)
        clf.head = fresh.to(model.device).eval()
        shapes = ", ".join(f"{name} {tuple(p.shape)}" for name, p in fresh.named_parameters(prefix="head"))
        logger.warning("new classifier head, drawn from seed %d: %s. Train it before use.", seed, shapes)
    else:
        clf.head = build_head(head, model.config, task.n_outputs).to(model.device)
    freeze(clf, trainable=first_policy(clf))
    return clf


def fresh_head(
    config: GPT2Config, n_outputs: int, *, pooling: str = "last", bias: bool = True, seed: int | None = None
) -> tuple[ClassifierHead, int]:
    """Return a standard head with fresh weights, float32, and the seed that they were drawn from."""
    head = ClassifierHead(config.emb_dim, n_outputs, pooling=pooling, bias=bias).float()
    return head, initialise(head.to_empty(device="cpu"), config, seed, stream=1)


def build_head(head: HeadSource, config: GPT2Config, n_outputs: int) -> Head:
    """Return the user's head, made first if a class was given, else copied, after trying it once.

    Parts without data, such as those of a `ClassifierHead`, get fresh weights as GPT-2's parts do.
    """
    built = head
    if callable(head) and not isinstance(head, nn.Module):
        try:
            built = head(config.emb_dim, n_outputs)
        except TypeError as error:
            problem = f"head is {head!r}, which cannot be called with the trunk's width and the number of outputs"
            raise TypeError(f"{problem}: {error}") from error
    if not isinstance(built, Head):
        raise TypeError(f"head is a {type(built).__name__}; give a gptclf.Head (subclass it), or a class of heads")
    # A given head is copied, as another model may have it; one made here is float32 whatever torch's default type is.
    built = borrow(built) if built is head else built.float()
    for part in built.modules():
        if any(parameter.is_meta for parameter in part.parameters(recurse=False)):
            initialise(part.to_empty(device="cpu", recurse=False), config, None, stream=1)
    check_head(built, config.emb_dim, n_outputs)
    check_float32(built, "training takes", name="head")
    return built.eval()


def _task_of(num_classes: int | None, classes: Iterable[Any] | None, task: Task | None) -> Task:
    if (num_classes is not None) + (classes is not None) + (task is not None) != 1:
        raise ValueError("give exactly one of num_classes, classes and task: a number, the labels or a gptclf.Task")
    if isinstance(num_classes, str):
        raise TypeError(f"num_classes is {num_classes!r}; it must be an integer. For labels give classes=")
    if task is None:
        task = SingleLabel(
            range(integer("num_classes", num_classes, most=MOST_OUTPUTS)) if classes is None else classes
        )
    if not isinstance(task, Task):
        raise TypeError(f"task is a {type(task).__name__}; it must be a gptclf.Task, such as SingleLabel(classes)")
    task.check_outputs()
    return task
