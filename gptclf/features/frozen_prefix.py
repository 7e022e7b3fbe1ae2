"""The frozen prefix: its stages, its identity, and computing its features once per text.

`learner.Learner` is the rest of the model. Features are computed in chunks of rows sorted by length. Within a chunk
all rows go through one block before the next one is touched, so a model whose weights are memory-mapped needs the
memory of one block.
"""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from gptclf.features.store import FeatureStore, text_key
from gptclf.files.digest import kept_digests
from gptclf.gpt2.arithmetic import Arithmetic, evaluating, piece_size
from gptclf.gpt2.heads import reads_of
from gptclf.gpt2.model import GPT2
from gptclf.gpt2.packed import advance, at_position, chunks_of, embed, row_groups
from gptclf.gpt2.stages import frozen_depth, stages
from gptclf.gpt2.standard import described, is_standard
from gptclf.metrics.finite import check_finite

# Increased whenever features or their address would differ from those of an earlier version.
_VERSION = 2


@dataclass(frozen=True)
class NoPrefix:
    """The reason why a model has no prefix whose features could be reused.

    Attributes:
        reason: The reason, as a sentence.
        notable: Whether the user would expect reuse, because blocks are frozen.
    """

    reason: str
    notable: bool


@dataclass(frozen=True)
class FrozenPrefix:
    """The frozen prefix of a model.

    Attributes:
        model: The whole model.
        depth: Number of stages in the prefix.
        arithmetic: The arithmetic of its matrix products.
    """

    model: GPT2
    depth: int
    arithmetic: Arithmetic

    @property
    def reads(self) -> str:
        """The position of each row whose features are kept: "last", "first" or "all"."""
        return reads_of(self.model.head) if self.depth > len(self.model.blocks) else "all"

    @property
    def n_blocks(self) -> int:
        """Number of blocks in the prefix."""
        return min(self.depth - 1, len(self.model.blocks))

    def positions(self, lengths: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how many positions are kept for rows with `lengths` tokens."""
        return lengths if self.reads == "all" else np.ones_like(lengths)

    def nbytes(self, lengths: NDArray[np.int64]) -> int:
        """Return the bytes of the features of rows with `lengths` tokens."""
        return 4 * self.model.config.emb_dim * int(self.positions(lengths).sum())

    def identity(self) -> str:
        """Return the `address` of the features, which depend on the positions kept as well."""
        return address(self.model, self.depth, self.arithmetic, reads=self.reads)


def address(model: GPT2, depth: int, arithmetic: Arithmetic, **how: str) -> str:
    """Return a digest of everything but the text that determines the output of a model's first stages.

    It is a hexadecimal SHA-256 and covers the weights, the depth, the configuration, the arithmetic, the kind of
    device, torch's version, and a probe of the arithmetic, which differs between processors and their settings.

    Args:
        model: The model.
        depth: Number of stages, all of them standard.
        arithmetic: The arithmetic of their matrix products.
        how: The part of their output to keep.
    """
    line = stages(model)[:depth]
    tensors: dict[str, Tensor] = {}
    for name, stage in line:
        named = (*stage.named_parameters(), *stage.named_buffers())
        tensors |= {f"{name}.{key}": tensor.detach() for key, tensor in named}
    values = {
        "version": _VERSION,
        "weights": [list(pair) for pair in zip(tensors, kept_digests(tensors.values()), strict=True)],
        "modules": [part for _, stage in line for part in described(stage)],
        "config": model.config.to_dict(),
        "depth": depth,
        "arithmetic": arithmetic.name,
        "device": model.device.type,
        "torch": torch.__version__,
        "probe": _probe(model.device, arithmetic, model.config.emb_dim),
    }
    return hashlib.sha256(json.dumps(values | how, sort_keys=True).encode()).hexdigest()


def frozen_prefix(model: GPT2, arithmetic: Arithmetic) -> FrozenPrefix | NoPrefix:
    """Return the frozen prefix of a model if its features can be reused, else the reason why they cannot."""
    depth, line = frozen_depth(model), stages(model)
    frozen = [stage for _, stage in line[:depth]]
    if depth < 2:
        return NoPrefix("the first block is trainable, so nothing worth keeping is frozen", notable=False)
    if depth == len(line):
        return NoPrefix("nothing is trainable", notable=False)
    # Dropout in the user's own layers, such as a head, comes after the prefix.
    rates = [part.p for stage in frozen for part in stage.modules() if isinstance(part, nn.Dropout)]
    remedy = "it is recomputed at every step"
    if max(rates, default=0.0) > 0:
        return NoPrefix(f"dropout is {max(rates):g}, so the frozen part is random; {remedy}", notable=True)
    if not model.is_plain or not all(map(is_standard, frozen)):
        return NoPrefix(f"the frozen part cannot be reused: it has custom modules or hooks; {remedy}", notable=True)
    return FrozenPrefix(model, depth, arithmetic)


def missing_rows(rows: Sequence[NDArray[np.int32]], store: FeatureStore | None) -> list[int]:
    """Return the numbers of the rows whose features must be computed: each text once, unless the store has it."""
    first: dict[bytes, int] = {}
    for row, ids in enumerate(rows):
        first.setdefault(text_key(ids), row)
    return [row for key, row in first.items() if store is None or key not in store]


def compute_missing(
    prefix: FrozenPrefix,
    rows: Sequence[NDArray[np.int32]],
    missing: Sequence[int],
    store: FeatureStore,
    report: Callable[[int], None] = lambda tokens: None,
) -> None:
    """Compute features of the rows numbered `missing` and put them into the store, chunk by chunk.

    Args:
        prefix: The frozen prefix.
        rows: Token ids of every row.
        missing: Numbers of the rows to compute.
        store: The store that keeps the features.
        report: Called with the number of tokens done since the last call; a token counts once for every block.
    """
    lengths = np.array([len(rows[i]) for i in missing], dtype=np.int64)
    order = np.argsort(lengths, kind="stable")
    for chunk in chunks_of(lengths[order]):
        chosen = [missing[i] for i in order[chunk]]
        values = compute_chunk(prefix, [rows[i] for i in chosen], report)
        check_finite(values, prefix.model, "features of the frozen part")
        positions = prefix.positions(lengths[order[chunk]])
        store.add([text_key(rows[i]) for i in chosen], positions.tolist(), values)


def compute_chunk(
    prefix: FrozenPrefix, rows: Sequence[NDArray[np.int32]], report: Callable[[int], None] = lambda tokens: None
) -> Tensor:
    """Compute features (positions, D) of rows sorted by length, float32 on the CPU.

    A row's features are the same, bit for bit, whatever rows are computed with it.
    """
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    tokens, groups, size = int(lengths.sum()), row_groups(lengths), piece_size(prefix.model.device)
    with evaluating(prefix.model) as model, torch.autocast(model.device.type, enabled=False):
        ids = torch.from_numpy(np.concatenate(rows).astype(np.int64)).to(model.device)
        # Filled up to whole pieces, so that every product has one shape.
        x = embed(model.embed, ids, groups, capacity=-(-tokens // size) * size, width=model.config.emb_dim)
        blocks, pooled = model.blocks[: prefix.n_blocks], prefix.reads != "all"
        for block in blocks[:-1] if pooled else blocks:
            advance(block, x, groups, prefix.arithmetic)
            report(tokens)
        if pooled:
            x = at_position(blocks[-1], x, groups, prefix.reads, fixed=True)
            report(tokens)
        else:
            x = x[:tokens]
        return (model.norm(x) if prefix.depth > len(model.blocks) + 1 else x).cpu()


def prefix_seconds(prefix: FrozenPrefix, tokens: int) -> float:
    """Estimate the seconds needed to compute the features of `tokens` tokens.

    One block runs over one piece of the work. The first run is a warm-up and is not counted.
    """
    if not tokens:
        return 0.0
    piece = piece_size(prefix.model.device)
    groups = row_groups(np.full(piece // 32, 32, dtype=np.int64))
    x = torch.zeros(piece, prefix.model.config.emb_dim, dtype=torch.float32, device=prefix.model.device)
    taken = 0.0
    with evaluating(prefix.model) as model, torch.autocast(model.device.type, enabled=False):
        for _ in range(2):
            start = time.perf_counter()
            advance(model.blocks[0], x, groups, prefix.arithmetic)
            x[0, 0].item()  # waits for the device
            taken = time.perf_counter() - start
    return taken * prefix.n_blocks * tokens / piece


def _probe(device: torch.device, arithmetic: Arithmetic, width: int) -> str:
    """Return a digest of the result of a product and a softmax in this arithmetic."""
    numbers = torch.arange(64 * width, dtype=torch.float32, device=device).view(64, width)
    with torch.inference_mode(), torch.autocast(device.type, enabled=False):
        x = torch.sin(numbers).to(arithmetic.dtype)
        weight = torch.cos(numbers[: min(64, width)]).to(arithmetic.dtype)
        y = F.linear(x, weight).float().softmax(dim=-1)
    return hashlib.sha256(y.cpu().numpy().tobytes()).hexdigest()
