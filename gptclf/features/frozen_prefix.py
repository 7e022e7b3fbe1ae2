"""The cut: which frozen stages come first, what determines their result, and computing it once per text.

A `Cut` is the frozen prefix of a model; `stages.Suffix` is what is left. Features are computed in slabs of rows sorted
by length. Within a slab all rows go through a block before the next block is touched, so one block's weights are at
work at a time: a model whose weights are memory-mapped runs in the memory of one block.
"""

import hashlib
import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from gptclf.features.store import FeatureStore, distinct, text_key
from gptclf.gpt2.arithmetic import answering
from gptclf.gpt2.gradients import Embedding as Table
from gptclf.gpt2.gradients import Linear
from gptclf.gpt2.heads import ClassifierHead
from gptclf.gpt2.model import GPT2
from gptclf.gpt2.packed import advance, at_position, embed, piece_size, runs_of
from gptclf.gpt2.stages import frozen_depth, stages
from gptclf.gpt2.trunk import HOOKS, MLP, Attention, Block, Embedding, Trunk, is_watched
from gptclf.metrics import check_finite

# Tells this process from all others.
_PROCESS = uuid.uuid4().hex

# Raised when features come out otherwise than those of an earlier version did.
_VERSION = 1

# Tokens that go through the blocks together. Each slab lays out every block's weights anew, and its buffers take
# some twenty bytes per token and unit of width.
SLAB_TOKENS = 32768


@dataclass(frozen=True)
class Cut:
    """The frozen prefix of a classifier.

    Attributes:
        model: The whole model.
        depth: How many stages it takes in.
        dtype: What its matrix products take.
    """

    model: GPT2
    depth: int
    dtype: torch.dtype

    @property
    def pooling(self) -> str:
        """The one position of each row that is kept, "last" or "first"; "" where all are."""
        head = self.model.head
        no_block_left = self.depth > self.model.config.n_layers
        pooled = no_block_left and isinstance(head, ClassifierHead) and head.pooling in ("last", "first")
        return head.pooling if pooled and isinstance(head, ClassifierHead) else ""

    @property
    def n_blocks(self) -> int:
        """Blocks in it."""
        return min(self.depth - 1, self.model.config.n_layers)

    def positions(self, lengths: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many positions are kept of rows with `lengths` tokens."""
        return np.ones_like(lengths) if self.pooling else lengths

    def nbytes(self, lengths: NDArray[np.int64]) -> int:
        """Bytes of the features of rows with `lengths` tokens."""
        return 4 * self.model.config.emb_dim * int(self.positions(lengths).sum())

    def identity(self) -> str:
        """A digest of everything that determines the features, but for the text: a hexadecimal SHA-256.

        The weights, the depth, the configuration, what is kept, the precision, the kind of device, torch's version, and
        a probe of the arithmetic, which differs between processors and their settings.
        """
        line = stages(self.model)[: self.depth]
        tensors = [
            (f"{name}.{key}", tensor.detach())
            for name, stage in line
            for key, tensor in (*stage.named_parameters(), *stage.named_buffers())
        ]
        with ThreadPoolExecutor(4) as pool:  # hashing lets go of the interpreter's lock
            digests = list(pool.map(lambda named: _digest_of(named[1]), tensors))
        described = {
            "version": _VERSION,
            "weights": [[name, digest] for (name, _), digest in zip(tensors, digests, strict=True)],
            "modules": [_described(module) for _, stage in line for module in stage.modules()],
            "config": self.model.config.to_dict(),
            "depth": self.depth,
            "pooling": self.pooling,
            "dtype": str(self.dtype),
            "device": self.model.device.type,
            "torch": torch.__version__,
            "arithmetic": _probe(self.model.device, self.dtype, self.model.config.emb_dim),
        }
        return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def reusable_cut(model: GPT2, dtype: torch.dtype) -> Cut | None:
    """The frozen prefix of a model where computing it once is worth it and right, else None.

    It is not where not even one block is frozen, where dropout makes the frozen part random, nor where a module of
    another kind, or a hook on the model as a whole, may do more than its parameters tell.
    """
    depth = frozen_depth(model)
    if depth < 2 or depth == len(stages(model)) or draws_dropout(model) or not is_usual(model):
        return None
    return Cut(model, depth, dtype)


def draws_dropout(model: GPT2) -> bool:
    """Whether the frozen stages of a model draw dropout in training."""
    modules = [module for _, stage in stages(model)[: frozen_depth(model)] for module in stage.modules()]
    rates = [module.p for module in modules if isinstance(module, nn.Dropout)]
    return max([model.config.drop_rate, *rates]) > 0


def is_usual(model: GPT2) -> bool:
    """Whether a model's own and its frozen modules are of this library's kinds, and nothing watches the whole."""
    modules = [module for _, stage in stages(model)[: frozen_depth(model)] for module in stage.modules()]
    kinds = {Block, Attention, MLP, Linear, Embedding, Table, nn.LayerNorm, nn.Dropout, ClassifierHead}
    whole = type(model) is GPT2 and type(model.trunk) is Trunk
    return (
        whole and {type(module) for module in modules} <= kinds and not (is_watched(model) or is_watched(model.trunk))
    )


def missing_rows(cut: Cut, rows: Sequence[NDArray[np.int32]], store: FeatureStore | None) -> list[int]:
    """Numbers of the rows whose features are to be computed: each text once, and none that the store has."""
    first = distinct(text_key(ids) for ids in rows)
    return [row for key, row in first.items() if store is None or key not in store]


def compute_missing(
    cut: Cut,
    rows: Sequence[NDArray[np.int32]],
    missing: Sequence[int],
    store: FeatureStore,
    report: Callable[[int], None] = lambda tokens: None,
) -> None:
    """Compute features of the rows numbered `missing` and put them into the store, slab by slab.

    Args:
        cut: The frozen prefix.
        rows: Token ids of every row.
        missing: Which to compute.
        store: Keeps them.
        report: Called as the work goes on with a number of tokens done, each counted once for every block.
    """
    lengths = np.array([len(rows[i]) for i in missing], dtype=np.int64)
    order = np.argsort(lengths, kind="stable")
    for slab in slabs(lengths[order]):
        chosen = [missing[i] for i in order[slab]]
        values = compute_slab(cut, [rows[i] for i in chosen], report)
        check_finite(values, cut.model, "features of the frozen part")
        positions = cut.positions(lengths[order[slab]])
        store.add([text_key(rows[i]) for i in chosen], positions.tolist(), values)


def compute_slab(
    cut: Cut, rows: Sequence[NDArray[np.int32]], report: Callable[[int], None] = lambda tokens: None
) -> Tensor:
    """Features (positions, D) of rows sorted by length, float32 on the CPU: bit for bit whatever rows come together."""
    model, line = cut.model, [stage for _, stage in stages(cut.model)[1 : cut.depth]]
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    tokens, runs, piece = int(lengths.sum()), runs_of(lengths), piece_size(cut.model.device)
    with answering(model), torch.autocast(model.device.type, enabled=False):
        ids = torch.from_numpy(np.concatenate(rows).astype(np.int64)).to(model.device)
        # Filled up to whole pieces, so that every product has one shape.
        x = embed(model.trunk.embed, ids, runs, capacity=-(-tokens // piece) * piece)
        whole = line[: cut.n_blocks - 1] if cut.pooling else line[: cut.n_blocks]
        for block in whole:
            advance(block, x, runs, cut.dtype)
            report(tokens)
        if not cut.pooling:
            x = x[:tokens]
            for norm in line[cut.n_blocks :]:
                x = norm(x)
            return x.cpu()
        x = at_position(line[cut.n_blocks - 1], x, runs, cut.pooling, fixed=True)
        report(tokens)
        for norm in line[cut.n_blocks :]:
            x = norm(x)
        return x.cpu()


def slabs(lengths: NDArray[np.int64], rows: int | None = None) -> Iterator[slice]:
    """Divide rows into neighbours of at most `SLAB_TOKENS` tokens, and at most `rows` rows, together."""
    start, tokens = 0, 0
    for i, length in enumerate(lengths.tolist()):
        if i > start and (tokens + length > SLAB_TOKENS or (rows is not None and i - start >= rows)):
            yield slice(start, i)
            start, tokens = i, 0
        tokens += length
    if start < len(lengths):
        yield slice(start, len(lengths))


# Hooks that were met: held, so that no other can come to have their number.
_hooks: dict[int, object] = {}


def _described(module: nn.Module) -> list[str]:
    """A module's type, and what stands on it: hooks are known within this process only."""
    found = [vars(module).get("forward")]
    for name in HOOKS:
        found += getattr(module, name).values()
    watching = [hook for hook in found if hook is not None]
    _hooks.update({id(hook): hook for hook in watching})
    kind = type(module)
    settings = [f"{name}={getattr(module, name)}" for name in ("eps", "activation", "scale") if hasattr(module, name)]
    return [f"{kind.__module__}.{kind.__qualname__}", *settings, *(f"{_PROCESS} {id(hook)}" for hook in watching)]


def _digest_of(tensor: Tensor) -> str:
    # In the order in which it lies in memory: straightening a transposed view takes longer than reading it.
    crosswise = tensor.dim() == 2 and tensor.t().is_contiguous()
    flat = (tensor.t() if crosswise else tensor).cpu().contiguous()
    digest = hashlib.sha256(f"{tuple(tensor.shape)} {tensor.dtype} {crosswise}".encode())
    digest.update(flat.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _probe(device: torch.device, dtype: torch.dtype, width: int) -> str:
    """A digest of what a product and a softmax come to in this arithmetic."""
    numbers = torch.arange(64 * width, dtype=torch.float32, device=device).view(64, width)
    with torch.inference_mode():
        x = torch.sin(numbers).to(dtype)
        weight = torch.cos(numbers[: min(64, width)]).to(dtype)
        y = F.linear(x, weight).float().softmax(dim=-1)
    return hashlib.sha256(y.cpu().numpy().tobytes()).hexdigest()
