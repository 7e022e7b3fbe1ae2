"""From the residual stream to logits along a line of stages, computing no more than the head looks at.

This is the differentiable way, for training and hand-written loops; `packed.py` is the fast one without gradients.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from gptclf.gpt2.heads import ClassifierHead, Head, check_lengths
from gptclf.gpt2.trunk import Block, is_own, is_watched

_recompute: ContextVar[bool] = ContextVar("recompute_activations", default=False)


@contextmanager
def recomputed_activations(enabled: bool) -> Iterator[None]:
    """In the block, keep only each transformer block's input and compute the rest again in the backward pass.

    A third more work for a fraction of the memory (Chen et al., 2016, "Training Deep Nets with Sublinear Memory Cost").
    """
    token = _recompute.set(enabled)
    try:
        yield
    finally:
        _recompute.reset(token)


def hidden_states(blocks: Sequence[nn.Module], norm: nn.Module | None, x: Tensor) -> Tensor:
    """What a head of every position is given: the residual stream x (B, T, D) before `blocks`, taken to their end."""
    for block in blocks:
        x = checkpoint(block, x, use_reentrant=False) if _recompute.get() else block(x)
    return x if norm is None else norm(x)


def run(blocks: Sequence[nn.Module], norm: nn.Module | None, head: Head, x: Tensor, lengths: Tensor | None) -> Tensor:
    """Logits of the residual stream x (B, T, D) before `blocks`, whose rows have `lengths` positions.

    Args:
        blocks: The transformer blocks that are left.
        norm: The final norm, or None where it is behind, too.
        head: The head.
        x: Padded on the right.
        lengths: Real positions per row (B,), or None: every row ends at T.
    """
    B, T, _ = x.shape
    rows: list[int] | None = None
    position: Tensor | None = None
    if type(head) is ClassifierHead and not is_watched(head) and all(map(is_own, blocks)):
        if lengths is not None:
            check_lengths(lengths, B, T)
        if head.pooling == "first":  # a causal model: what comes later cannot matter
            x, lengths, T = x[:, :1], None, 1
        if head.pooling in ("last", "first") and blocks and cast(Block, blocks[-1]).can_pool:
            position = torch.full((B,), T - 1, device=x.device) if lengths is None else lengths - 1
        whole = blocks if position is None else blocks[:-1]
        # Tokens of all rows one after the other: no work on padding. A GPU prefers few large launches to many exact
        # ones.
        if whole and lengths is not None and x.device.type == "cpu" and int(lengths.min()) < T:
            rows = lengths.tolist()
            real = (torch.arange(T) < lengths[:, None]).flatten().nonzero().squeeze(1)
            x = x.flatten(0, 1).index_select(0, real)
    for block in blocks if position is None else blocks[:-1]:
        given = (x,) if rows is None else (x, rows)
        x = checkpoint(block, *given, use_reentrant=False) if _recompute.get() else block(*given)
    if rows is not None:
        x = pad_sequence(list(torch.split(x, rows)), batch_first=True)
    if position is not None:
        x = cast(Block, blocks[-1]).at(x, position)
    x = x if norm is None else norm(x)
    return head(x, lengths) if position is None else head.project(x)
