"""Loss and accuracy arithmetic: sum, count, divide once."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from gptclf.data.batches import Batch
from gptclf.gpt2.gradients import Linear
from gptclf.gpt2.heads import LMHead
from gptclf.next_token_loss import next_token_loss
from gptclf.gpt2.stages import Classifier
from gptclf.gpt2.trunk import is_watched


def loss_sum(model: Classifier, batch: Batch) -> Tensor:
    """Cross-entropy of a batch summed over its targets, a scalar with its graph.

    A classifier has one target per row, a language model one per position.
    """
    if batch.targets is None:
        raise ValueError("the batch has no labels; build the data set as TextDataset(texts, labels, ...)")
    if model.classes is None:
        if batch.classes is not None:
            raise TypeError(
                "this is a language model; put a classifier head on it first: add_classifier_head(model, ...)"
            )
        head = plain_vocabulary(model)
        if head is not None:
            return next_token_loss(model.hidden_states(batch.inputs), head.weight, batch.targets)
        logits = model(batch.inputs, batch.lengths)
        return F.cross_entropy(logits.flatten(0, -2).float(), batch.targets.flatten(), reduction="sum")
    if batch.classes is None:
        raise TypeError("this is a classifier, but the batch is running text; train_lm trains a language model")
    if list(batch.classes) != model.classes:
        raise ValueError(
            f"the batch's classes are {list(batch.classes)[:10]} but the model's are {model.classes[:10]}; its targets "
            "would mean other classes. Pass classes=model.classes to Batches or TextDataset"
        )
    logits = model(batch.inputs, batch.lengths)
    return F.cross_entropy(logits.float(), batch.targets, reduction="sum")


def batch_loss(model: Classifier, batch: Batch) -> Tensor:
    """Mean cross-entropy of a batch in nats, a scalar to call `backward()` on.

    Of `TextWindows`, and with a language model, it is the mean over all positions.

    Example:
        >>> from gptclf import Batches, TextDataset, add_classifier_head, load_gpt2
        >>> clf = add_classifier_head(load_gpt2("nano"), classes=["ham", "spam"], seed=0)
        >>> data = TextDataset(["hi", "win!"], ["ham", "spam"], tokenizer=clf.tokenizer, classes=clf.classes)
        >>> batch_loss(clf, next(iter(Batches(data)))).shape
        torch.Size([])
    """
    return loss_sum(model, batch) / batch.n_targets


def plain_vocabulary(model: Classifier) -> LMHead | None:
    """A language model's head where it is this library's own and nobody looks inside: how it is computed is free."""
    head = model.head
    parts = list(head.modules())
    own = {type(part) for part in parts[1:]} <= {Linear} and not any(map(is_watched, parts))
    return head if type(head) is LMHead and own else None


def confusion_matrix(targets: NDArray[np.int64], predictions: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """Counts (C, C): rows are true classes, columns predicted ones."""
    return np.bincount(targets * n + predictions, minlength=n * n).reshape(n, n)


def per_class_scores(confusion: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """Precision, recall, F1 and support (true rows) of every class, each (C,); 0 where nothing was counted."""
    hits = np.diag(confusion).astype(float)
    predicted, support = confusion.sum(axis=0), confusion.sum(axis=1)
    precision = hits / np.maximum(predicted, 1)
    recall = hits / np.maximum(support, 1)
    f1 = 2 * hits / np.maximum(predicted + support, 1)
    return {"precision": precision, "recall": recall, "f1": f1, "support": support}


def check_finite(computed: Tensor, model: Classifier, what: str = "logits") -> None:
    """Raise where what a model computed is not finite, naming the parameters at fault."""
    if not bool(torch.isfinite(computed).all()):
        raise FloatingPointError(f"the {what} are not finite. {blame(model)}")


def blame(model: Classifier) -> str:
    """Which parameters hold NaN or infinity, in words."""
    bad = [name for name, parameter in model.named_parameters() if not bool(torch.isfinite(parameter).all())]
    if not bad:
        return "All weights are finite: the computation overflowed; try precision='float32' or a lower lr"
    more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
    return f"NaN or infinity stands in {', '.join(bad[:3])}{more}: load the weights again"
