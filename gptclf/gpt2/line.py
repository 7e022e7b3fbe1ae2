"""From the residual stream to outputs along a line of blocks, computing no more than the head looks at.

This is the differentiable way, for training and hand-written loops; `packed.py` is the fast one without gradients.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from gptclf.gpt2.attend import packed
from gptclf.gpt2.heads import check_lengths, reads_of
from gptclf.gpt2.standard import is_standard
from gptclf.gpt2.trunk import Block, can_pool

# Calls a block with what it is given.
Call = Callable[..., Tensor]


def _call(block: nn.Module, *given: Any) -> Tensor:
    return block(*given)  # type: ignore[no-any-return]


def hidden_states(blocks: Sequence[nn.Module], norm: nn.Module | None, x: Tensor, call: Call = _call) -> Tensor:
    """Take the residual stream x (B, T, D) through `blocks` and the norm: what a head of every position is given."""
    for block in blocks:
        x = call(block, x)
    return x if norm is None else norm(x)


def outputs_of(
    blocks: Sequence[nn.Module],
    norm: nn.Module | None,
    head: nn.Module,
    x: Tensor,
    lengths: Tensor | None,
    call: Call = _call,
) -> Tensor:
    """Compute the outputs of the residual stream x (B, T, D), whose rows have `lengths` positions.

    Args:
        blocks: The transformer blocks that are left.
        norm: The final norm, or None if it belongs to the frozen prefix.
        head: The head.
        x: Padded on the right.
        lengths: Real positions per row (B,), or None: every row ends at T.
        call: Calls a block; a learner's may recompute it in the backward pass.
    """
    B, T, _ = x.shape
    if lengths is not None:
        check_lengths(lengths, B, T)
    reads, standard = reads_of(head), [is_standard(block) for block in blocks]
    if reads == "first" and all(standard):  # a causal model: later tokens cannot matter
        x, lengths, T = x[:, :1], None, 1
    pooled = reads != "all" and B > 0 and bool(blocks) and can_pool(blocks[-1])
    # Tokens of all rows one after the other: no work on padding. A GPU prefers few large launches to many exact ones.
    packs = lengths is not None and x.device.type == "cpu" and bool((lengths < T).any())
    rows: list[int] | None = None  # while the tokens are packed
    for block, own in zip(blocks[:-1] if pooled else blocks, standard, strict=False):
        if packs and own and rows is None:
            rows = cast(Tensor, lengths).tolist()
            real = (torch.arange(T) < cast(Tensor, lengths)[:, None]).flatten().nonzero().squeeze(1)
            x = x[:, :T].flatten(0, 1).index_select(0, real)[None]
        elif not own and rows is not None:  # a block of another class is called as it is
            x, rows = _unpacked(x, rows, T), None
        x = call(block, x) if rows is None else call(block, x, packed(rows))
    if rows is not None:
        x = _unpacked(x, rows, T)
    if not pooled:
        return head(x if norm is None else norm(x), lengths)  # type: ignore[no-any-return]
    last = torch.full((B,), T - 1, device=x.device) if lengths is None else lengths - 1
    x = cast(Block, blocks[-1]).at_position(x, torch.zeros_like(last) if reads == "first" else last)
    return head((x if norm is None else norm(x))[:, None], None)  # type: ignore[no-any-return]


def _unpacked(x: Tensor, rows: list[int], width: int) -> Tensor:
    """Give rows that lie one after the other (1, N, D) as (B, T, D), zeros on the right."""
    padded = pad_sequence(list(torch.split(x[0], rows)), batch_first=True)
    short = width - padded.shape[1]
    return padded if not short else torch.nn.functional.pad(padded, (0, 0, 0, short))
