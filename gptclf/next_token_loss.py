"""Cross-entropy over a vocabulary without ever holding the logits of all tokens.

A batch of 8 rows of 1,024 tokens has 1.6 GB of logits over GPT-2's 50,257 tokens, and autograd keeps them three times.
Here the tokens are taken in pieces. Each piece is projected, scored and turned into its gradient before the next one.
So only one piece is in memory at a time, and the softmax never leaves the cache.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Tokens whose logits exist at once. With fewer, products are slower; with more, logits do not fit in the cache.
_PIECE = 512


def next_token_loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Compute the cross-entropy in nats, summed over tokens, as a differentiable scalar.

    Args:
        hidden: Hidden states (..., D).
        weight: Output matrix (V, D).
        targets: Token ids (...).
    """
    return _Loss.apply(hidden.flatten(0, -2), weight, targets.flatten())  # type: ignore[no-any-return, no-untyped-call]


def hits_and_loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[int, float]:
    """Return how many targets are the most probable token, and the sum of cross-entropies; no gradients."""
    hits, total = 0, 0.0
    for logits, target, _ in _pieces(hidden.flatten(0, -2), weight, targets.flatten()):
        hits += int((logits.argmax(dim=1) == target).sum())
        total += float((logits.logsumexp(dim=1) - _at(logits, target)).double().sum())
    return hits, total


class _Loss(torch.autograd.Function):
    """The loss. Its gradients are computed in the forward pass, while the logits exist."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device)
        to_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        to_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        matrix = weight.to(_product_dtype(hidden))
        for logits, target, part in _pieces(hidden, matrix, targets):
            log_total = logits.logsumexp(dim=1)
            total += (log_total - _at(logits, target)).sum()
            # The gradient of the sum with respect to the logits: softmax, less one at the target.
            gradient = logits.sub_(log_total[:, None]).exp_()
            gradient[torch.arange(len(target), device=target.device), target] -= 1.0
            gradient = gradient.to(matrix.dtype)
            if to_hidden is not None:
                to_hidden[part] = gradient @ matrix
            if to_weight is not None:
                to_weight += gradient.t() @ hidden[part].to(matrix.dtype)
        ctx.save_for_backward(to_hidden, to_weight)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *(None if tensor is None else tensor * grad for tensor in ctx.saved_tensors), None


def _pieces(hidden: Tensor, weight: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor, slice]]:
    """Yield the logits (at least float32), the targets and the position of each piece of tokens."""
    matrix = weight.to(_product_dtype(hidden))
    for start in range(0, len(targets), _PIECE):
        part = slice(start, start + _PIECE)
        logits = hidden[part].to(matrix.dtype) @ matrix.t()
        yield logits.to(torch.promote_types(logits.dtype, torch.float32)), targets[part], part


def _at(logits: Tensor, target: Tensor) -> Tensor:
    return logits.gather(1, target[:, None])[:, 0]


def _product_dtype(hidden: Tensor) -> torch.dtype:
    """Return the type of matrix products, because autocast has no effect in a function with its own backward pass."""
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
