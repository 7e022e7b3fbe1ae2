"""How long a training will take and what it needs, from timing a step of it on this machine."""

import time
from dataclasses import dataclass

import numpy as np
import torch

from gptclf.data.batches import Batch, Batches, TokenRows
from gptclf.data.dataset import TextDataset
from gptclf.features.estimate import prefix_seconds
from gptclf.features.frozen_prefix import missing_rows
from gptclf.features.reuse import frozen_cut, store_in_use
from gptclf.gpt2.arithmetic import arithmetic, in_mode, resolve_precision
from gptclf.gpt2.gradients import KeptGradients
from gptclf.gpt2.model import GPT2
from gptclf.gpt2.stages import Classifier, Suffix, own_trainable
from gptclf.inference.evaluate import labelled_rows
from gptclf.inference.predict import check_classifier
from gptclf.metrics import loss_sum
from gptclf.progress import format_bytes, format_seconds
from gptclf.training.checks import check_arguments, check_model, check_rows

# What AdamW reads and writes for each number that trains: weight, gradient and two moments in, all but the gradient
# out.
_ADAM_BYTES = 28


@dataclass(frozen=True)
class Estimate:
    """What a training will take, about.

    Attributes:
        frozen_seconds: Computing the frozen part of the texts that are not kept yet; 0 where nothing is reused.
        training_seconds: The steps after that, without the measurements between them.
        steps: Optimizer steps.
        feature_bytes: Memory (or disk, with `cache_dir`) that the frozen part's features of all texts take.
        training_bytes: Memory that weights in training, their gradients and AdamW's moments take.
    """

    frozen_seconds: float
    training_seconds: float
    steps: int
    feature_bytes: int
    training_bytes: int

    @property
    def seconds(self) -> float:
        """Both parts together."""
        return self.frozen_seconds + self.training_seconds

    def __str__(self) -> str:
        frozen = ""
        if self.feature_bytes:
            frozen = f"frozen part about {format_seconds(self.frozen_seconds)} and {format_bytes(self.feature_bytes)}; "
        return (
            f"{frozen}{self.steps:,} steps about {format_seconds(self.training_seconds)} and "
            f"{format_bytes(self.training_bytes)}"
        )


def estimate(
    model: GPT2,
    train_set: TextDataset,
    val_set: TextDataset | None = None,
    *,
    epochs: int = 5,
    batch_size: int = 8,
    precision: str = "auto",
    reuse_frozen: bool = True,
) -> Estimate:
    """How long `train` with these arguments would take here, about, and what it needs; nothing is trained.

    A block over a piece of text and one training step are timed; other work on the machine makes the answer longer.

    Example:
        >>> from gptclf import add_classifier_head, load_gpt2
        >>> clf = add_classifier_head(load_gpt2("nano"), classes=["ham", "spam"], seed=0)
        >>> data = TextDataset(["hi", "win!"] * 40, ["ham", "spam"] * 40, tokenizer=clf.tokenizer)
        >>> estimate(clf, data, epochs=3).steps
        30
    """
    check_classifier(model)
    check_model(model)
    check_arguments(epochs=epochs, batch_size=batch_size)
    resolve_precision(precision, model)
    sets = [labelled_rows(model, train_set, "train_set")]
    check_rows(model, sets[0])
    if val_set is not None:
        sets.append(labelled_rows(model, val_set, "val_set"))
    own_trainable(model)
    cut = frozen_cut(model, precision) if reuse_frozen else None
    frozen, kept_bytes = 0.0, 0
    if cut is not None:
        rows = [ids for dataset in sets for ids in dataset.rows()]
        missing = missing_rows(cut, rows, store_in_use(cut))
        frozen = prefix_seconds(cut, sum(len(rows[i]) for i in missing))
        distinct_rows = missing_rows(cut, rows, None)
        kept_bytes = cut.nbytes(np.array([len(rows[i]) for i in distinct_rows], dtype=np.int64))
    steps = epochs * -(-len(sets[0]) // batch_size)
    learner: Classifier = model if cut is None else Suffix(model, cut.depth)
    batch = typical_batch(learner, sets[0], batch_size)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Estimate(frozen, steps * step_seconds(learner, batch, precision), steps, kept_bytes, 16 * trained)


def typical_batch(learner: Classifier, rows: TokenRows, batch_size: int) -> Batch:
    """A batch of rows whose lengths are like those of the data set; features are drawn, not computed."""
    chosen = np.random.default_rng(0).permutation(len(rows))[:batch_size]
    batch = Batches(rows, batch_size, classes=learner.classes).take(chosen)
    if isinstance(learner, Suffix):
        one = not learner.blocks
        width, T = learner.config.emb_dim, 1 if one else batch.inputs.shape[1]
        lengths = torch.ones_like(batch.lengths) if one else batch.lengths
        drawn = torch.randn(len(batch), T, width, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
        return Batch(drawn, lengths, batch.targets, batch.classes)
    return batch


def step_seconds(learner: Classifier, batch: Batch, precision: str) -> float:
    """Seconds of a step: forward and backward timed, the optimizer by the memory it moves."""
    trained = [parameter for parameter in learner.parameters() if parameter.requires_grad]
    precision = resolve_precision(precision, learner)
    taken = 0.0
    before = [parameter.grad for parameter in trained]
    buffers = [(buffer, buffer.clone()) for buffer in learner.buffers()]  # running means of a module of the user's
    devices = [learner.device] if learner.device.type == "cuda" else []
    with in_mode(learner, training=True), torch.random.fork_rng(devices=devices):
        gradients = KeptGradients(trained)
        try:
            for _ in range(3):  # the first ones find buffers that do not exist yet
                start = time.perf_counter()
                with gradients.step(), torch.enable_grad(), arithmetic(precision, learner):
                    loss_sum(learner, batch.to(learner.device)).backward()  # type: ignore[no-untyped-call]
                taken = time.perf_counter() - start
        finally:
            for parameter, gradient in zip(trained, before, strict=True):
                parameter.grad = gradient
            for buffer, value in buffers:
                buffer.copy_(value)
    return taken + _ADAM_BYTES * sum(p.numel() for p in trained) / _memory_bandwidth(learner.device)


def _memory_bandwidth(device: torch.device) -> float:
    """Bytes per second that a copy reads and writes."""
    source = torch.ones(1 << 23, device=device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        target.copy_(source)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * source.nbytes / best
