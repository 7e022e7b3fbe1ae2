"""`NextToken`: language modelling, the task of a model as `load_gpt2` returns it."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from gptclf.checks import integer
from gptclf.next_token_loss import hits_and_loss, next_token_loss
from gptclf.tasks.task import Predictor, Scored, Task, TaskCard

_NO_LABELS = "this is a language model; put a classifier head on it first: add_classifier_head(model, ...)"


class NextToken(Task):
    """Predict the token that follows each position: language modelling (book section 5.1.2).

    Args:
        n_outputs: Number of tokens in the vocabulary.
    """

    kind = "next_token"
    title = "GPT-2 language model"

    def __init__(self, n_outputs: int) -> None:
        self.n_outputs = n_outputs

    def loss(self, outputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> tuple[Tensor, float]:
        """Return the cross-entropy in nats of logits (B, T, V), summed over all positions, and their number."""
        reduction = "sum" if weights is None else "none"
        loss = F.cross_entropy(outputs.flatten(0, -2).float(), targets.flatten(), reduction=reduction)
        total = loss if weights is None else (loss.view_as(targets) * weights[:, None]).sum()
        return total, self.weight(targets, weights)

    def weight(self, targets: Tensor, weights: Tensor | None = None) -> float:
        """Return the number of positions, each with its row's weight."""
        return float(targets.numel()) if weights is None else float(weights.double().sum() * targets.shape[1])

    def targets(self, labels: Sequence[Any]) -> NDArray[Any]:
        """Raise a TypeError, because a language model's targets are its own tokens."""
        raise TypeError(_NO_LABELS)

    def card(self) -> TaskCard:
        """Describe a language model."""
        ours = "from gptclf import load_model\n\nmodel = load_model(FOLDER)"
        theirs = 'generate = pipeline("text-generation", model=FOLDER)'
        return TaskCard("A GPT-2 language model with", "text-generation", ours, theirs, takes_texts=False)

    def exported(self) -> dict[str, Any]:
        """Return the configuration entry that names the model's architecture in `transformers`."""
        return {"architectures": ["GPT2LMHeadModel"]}

    @classmethod
    def from_record(cls, values: Mapping[str, Any]) -> Self:
        """Build the task that `record` described."""
        return cls(integer("n_outputs", values.get("n_outputs"), 1))

    def answers(self, outputs: Tensor) -> list[Any]:
        """Return the most probable token of each position."""
        return outputs.argmax(dim=-1).tolist()

    def check_same(self, other: Task | None) -> None:
        """Raise if the rows are labelled texts."""
        if not isinstance(other, NextToken):
            raise TypeError(_NO_LABELS)

    def batch_loss(
        self, model: Predictor, inputs: Tensor, lengths: Tensor, targets: Tensor, weights: Tensor | None = None
    ) -> tuple[Tensor, float]:
        """Return the loss of a batch as `loss` does, computing the logits in pieces if the head allows it."""
        matrix = model.output_matrix
        if matrix is None or weights is not None:
            return self.loss(model(inputs, lengths), targets, weights)
        return next_token_loss(model.hidden_states(inputs), matrix, targets), self.weight(targets)

    def measure(self, rows: Scored) -> dict[str, float]:
        """Return the mean cross-entropy in nats, and the share of positions whose most probable token is right."""
        hits, total, count = 0, 0.0, 0
        for inputs, lengths, targets in rows.batches():
            matrix = rows.model.output_matrix
            if matrix is not None:
                right, loss = hits_and_loss(rows.model.hidden_states(inputs), matrix, targets)
            else:
                logits = rows.model(inputs, lengths).float()
                right, loss = int((logits.argmax(dim=-1) == targets).sum()), float(self.loss(logits, targets)[0])
            hits, total, count = hits + right, total + loss, count + targets.numel()
        return {"loss": total / count, "accuracy": hits / count}
