"""Heads on top of the trunk: the base class, the language-model head and the classifier head."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptclf.checks import boolean, choice, integer
from gptclf.gpt2.config import GPT2Config
from gptclf.gpt2.layers import Linear
from gptclf.gpt2.recording import is_recording
from gptclf.gpt2.sharing import twin
from gptclf.gpt2.standard import is_hooked, is_standard

# The ways to pool the hidden states of a row into one vector, and in words what each reads.
POOLINGS = {
    "last": "the last token",
    "first": "the first token",
    "mean": "the mean of all tokens",
    "max": "the largest value of each dimension over all tokens",
}
# The positions of a row that each `reads` stands for.
READS = {"all": slice(None), "last": slice(-1, None), "first": slice(0, 1)}


# More outputs than any task has: a typing error should not fill the memory.
MOST_OUTPUTS = 10_000_000


class Head(nn.Module):
    """Maps the final hidden states of each row to the model's outputs. Subclass it for a head of your own.

    Attributes:
        reads: The positions that `forward` looks at. "all" is always right. "last" or "first" promises the same result
            for (B, T, D) as for (B, 1, D) that holds only that position. This is much faster: the last block computes
            that position only, and one vector per text is kept of a frozen trunk.
        exported_as: The name of `output.weight` in Hugging Face's files.
        looks_at: The tokens that the head looks at, in a model card's words; "" if they are not known.
        is_fresh: True while the head has the weights that gptclf drew: neither trained, in whatever loop, nor loaded.
        output_matrix: The matrix (V, D) of a language-model head if it may be multiplied in pieces, else None.

    Example:
        >>> class Mean(Head):
        ...     def __init__(self, emb_dim, n_outputs):
        ...         super().__init__()
        ...         self.output = nn.Linear(emb_dim, n_outputs)
        ...     def forward(self, hidden, lengths=None):
        ...         return self.output(pool(hidden, lengths, "mean"))
    """

    reads: str = "all"
    exported_as: str = ""
    looks_at: str = ""
    is_fresh: bool = False
    output_matrix: Tensor | None = None

    def forget_fresh(self) -> None:
        """Note that the head is no longer fresh, because the model was trained."""

    def record(self) -> dict[str, Any] | None:
        """Return the head's record in a saved folder, everything but its tensors, as JSON values."""
        return {"class": type(self).__name__}

    def export_problem(self) -> str:
        """Say why `transformers` cannot hold the head; "" if it can."""
        return f"its head is a {type(self).__name__}, and transformers has no such head"

    def pooled(self, hidden: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return one vector (B, D) per row that stands for what `forward` reads: at its position, or the mean of all.

        `nearest` compares texts by it. Override it for a head that pools in another way.
        """
        reads = getattr(self, "reads", "all")  # of a plain module in the place of a head as well
        return pool(hidden, lengths, "mean" if reads == "all" else reads)

    def project(self, hidden: Tensor) -> Tensor:
        """Map hidden states (..., D) to outputs position by position, without pooling."""
        raise TypeError(f"{type(self).__name__} defines no project(): it has no outputs for single positions")

    def forward(self, hidden: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Map hidden states (B, T, D) to outputs (B, n_outputs).

        Args:
            hidden: The trunk's result, padded on the right.
            lengths: Real positions per row (B,), or None: every row ends at T.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no forward(hidden, lengths)")


class LMHead(Head):
    """Next-token logits (B, T, V), with the token embedding's matrix (tied) or one of its own."""

    standard = True
    kind = "lm_head"
    exported_as = "lm_head.weight"

    def __init__(self, config: GPT2Config, embedding: nn.Embedding) -> None:
        super().__init__()
        # In a tuple, so that the embedding is not registered here: the tied matrix is a parameter only once.
        self._tied_to = (embedding,) if config.tied else None
        if not config.tied:
            self.output = Linear(config.emb_dim, config.vocab_size, bias=False, device="meta")

    @property
    def weight(self) -> Tensor:
        """The output matrix (V, D)."""
        return self.output.weight if self._tied_to is None else self._tied_to[0].weight

    @property
    def output_matrix(self) -> Tensor | None:  # type: ignore[override]
        """The output matrix if the head has no adapter or hook, so that it may be multiplied in pieces; else None."""
        own = self._tied_to is not None or type(self.output) is Linear  # an adapter is more than its matrix
        return self.weight if own and is_standard(self) else None

    def record(self) -> None:
        """Return None: the configuration says everything."""

    def export_problem(self) -> str:
        """Return "": every language-model head can be exported."""
        return ""

    def project(self, hidden: Tensor) -> Tensor:
        """Compute the logits (..., V) of hidden states (..., D)."""
        return F.linear(hidden, self.weight) if self._tied_to is not None else self.output(hidden)

    def forward(self, hidden: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Compute the logits of the next token at every position (B, T, V)."""
        return self.project(hidden)


class ClassifierHead(Head):
    """Outputs (B, C): pool the hidden states of each row to one vector, then one linear layer.

    Args:
        emb_dim: Width of the hidden states (D).
        n_outputs: Number of outputs (C).
        pooling: "last" (the last real token), "first", "mean" or "max" (both over real tokens).
        bias: Whether the output layer has a bias (Hugging Face's has none).
    """

    standard = True
    kind = "classifier_head"
    described: tuple[str, ...] = ("pooling",)
    exported_as = "score.weight"

    def __init__(self, emb_dim: int, n_outputs: int, *, pooling: str = "last", bias: bool = True) -> None:
        super().__init__()
        self.pooling = choice("pooling", pooling, tuple(POOLINGS))
        sizes = integer("emb_dim", emb_dim, 1, most=MOST_OUTPUTS), integer("n_outputs", n_outputs, 1, most=MOST_OUTPUTS)
        self.output = Linear(*sizes, bias=boolean("bias", bias), device="meta")
        self._drawn: Tensor | None = None

    @property
    def reads(self) -> str:  # type: ignore[override]
        """The pooled position; "all" for a subclass, whose `forward` may look elsewhere."""
        return self.pooling if self.pooling in READS and type(self) is ClassifierHead else "all"

    @property
    def looks_at(self) -> str:  # type: ignore[override]
        """The pooled tokens; "" for a subclass."""
        return POOLINGS[self.pooling] if type(self) is ClassifierHead else ""

    @property
    def is_fresh(self) -> bool:  # type: ignore[override]
        """True while the output layer still has the weights that were drawn."""
        weight = getattr(self.output, "weight", None)
        if self._drawn is None or not isinstance(weight, Tensor) or weight.shape != self._drawn.shape:
            return False
        return torch.equal(self._drawn, weight.detach().cpu())

    def remember_fresh(self) -> None:
        """Note that the weights are freshly drawn."""
        self._drawn = self.output.weight.detach().cpu().clone()

    def forget_fresh(self) -> None:
        """Note that the model was trained, even if only parameters before the head changed."""
        self._drawn = None

    def record(self) -> dict[str, Any]:
        """Return the pooling and whether there is a bias; for a subclass, its name."""
        own = {"pooling": self.pooling, "bias": getattr(self.output, "bias", None) is not None}
        return own if type(self) is ClassifierHead else {"class": type(self).__name__}

    def export_problem(self) -> str:
        """Name the pooling or the subclass that `transformers` does not have; "" if it can hold the head."""
        if type(self) is not ClassifierHead:
            return super().export_problem()
        return "" if self.pooling == "last" else f"it pools {self.pooling!r}, and transformers pools the last token"

    def pooled(self, hidden: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Pool hidden states (B, T, D) to what the output layer reads (B, D)."""
        return pool(hidden, lengths, self.pooling)

    def project(self, hidden: Tensor) -> Tensor:
        """Compute the outputs (..., C) of hidden states (..., D)."""
        return self.output(hidden)  # type: ignore[no-any-return]

    def forward(self, hidden: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Compute the outputs (B, C) of hidden states (B, T, D)."""
        return self.project(self.pooled(hidden, lengths))


def head_from_record(values: Mapping[str, Any] | None, emb_dim: int, n_outputs: int) -> ClassifierHead | None:
    """Return the classifier head that a record describes, without data; None for any other kind of head."""
    if values is None or "class" in values:
        return None
    pooling = choice("head.pooling", values.get("pooling"), tuple(POOLINGS))
    return ClassifierHead(emb_dim, n_outputs, pooling=pooling, bias=boolean("head.bias", values.get("bias")))


def blank_like(head: Head, emb_dim: int, n_outputs: int) -> Head | None:
    """Return the head that loading a saved folder would start from; None for a language model."""
    record = head.record()
    return head if record is not None and "class" in record else head_from_record(record, emb_dim, n_outputs)


def reads_of(head: nn.Module) -> str:
    """Return the positions that a head looks at: its `reads`, or "all" if it has none or is hooked."""
    return "all" if is_hooked(head) else getattr(head, "reads", "all")


def check_head(head: Head, emb_dim: int, n_outputs: int) -> None:
    """Try a head once on random hidden states.

    Raises:
        ValueError: It fails, the number of outputs is wrong, or they depend on padding or on positions that its `reads`
            excludes.
    """
    name = type(head).__name__
    reads = choice(f"{name}.reads", head.reads, tuple(READS))
    parameter = next(head.parameters(), torch.zeros((), dtype=torch.float32, device="cpu"))
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 5, emb_dim, generator=generator, dtype=torch.float32, device="cpu").to(parameter)
    lengths = torch.tensor([5, 2, 3], device=hidden.device)
    trial = twin(head).eval()
    try:
        with torch.no_grad():
            outputs = trial(hidden, lengths)
            alone = [trial(hidden[i : i + 1, :n][:, READS[reads]], None) for i, n in enumerate(lengths.tolist())]
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, AssertionError) as error:
        does = f"it must map hidden states (B, T, {emb_dim}) and lengths, (B,) or None, to (B, {n_outputs})"
        raise ValueError(f"{name} fails ({type(error).__name__}: {error}); {does}") from error
    shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
    if shape != (3, n_outputs):
        raise ValueError(f"{name} maps hidden states (3, 5, {emb_dim}) to {shape}; it must give (3, {n_outputs})")
    if not torch.allclose(outputs, torch.cat(alone), rtol=1e-4, atol=1e-5, equal_nan=True):
        wrong = "padding; leave it out by lengths" if reads == "all" else 'other positions; set reads = "all"'
        raise ValueError(f"{name}.reads is {reads!r}, but its outputs depend on {wrong}")


def pool(hidden: Tensor, lengths: Tensor | None, pooling: str) -> Tensor:
    """Pool hidden states (B, T, D) to one vector (B, D) per row, from its real tokens alone.

    Args:
        hidden: Hidden states, padded on the right.
        lengths: Real tokens per row (B,), each from 1 to T; None means T.
        pooling: One of `POOLINGS`.
    """
    B, T, _ = hidden.shape
    if lengths is not None:
        check_lengths(lengths, B, T)
    if pooling == "first":
        return hidden[:, 0]
    if pooling == "last":
        return hidden[:, -1] if lengths is None else hidden[torch.arange(B, device=hidden.device), lengths - 1]
    if lengths is None:
        return hidden.mean(dim=1) if pooling == "mean" else hidden.amax(dim=1)
    pad = (torch.arange(T, device=hidden.device) >= lengths[:, None])[..., None]
    if pooling == "max":
        return hidden.masked_fill(pad, float("-inf")).amax(dim=1)
    return hidden.masked_fill(pad, 0.0).sum(dim=1) / lengths[:, None]


def check_lengths(lengths: Tensor, B: int, T: int) -> None:
    """Raise if `lengths` cannot be the numbers of real tokens in rows (B, T)."""
    if not isinstance(lengths, Tensor):
        raise TypeError(f"lengths is a {type(lengths).__name__}; it must be a tensor of {B} counts")
    if lengths.shape != (B,):
        raise ValueError(f"lengths has shape {tuple(lengths.shape)}; it must be ({B},), one count per row")
    # A length of 0 would silently index the last column. On a GPU the check would wait for the device.
    if not is_recording() and lengths.device.type == "cpu" and B:
        low, high = int(lengths.min()), int(lengths.max())
        if low < 1 or high > T:
            raise ValueError(f"lengths run from {low} to {high}; with {T} columns they must lie in 1 to {T}")
