"""Integrated gradients: the change of an output from a baseline to a text, divided among the text's tokens.

Sundararajan, Taly and Yan, 2017, "Axiomatic Attribution for Deep Networks".
"""

import functools
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gptclf.gpt2.learner import Learner
from gptclf.gpt2.model import GPT2

BASELINES = ("end_of_text", "zeros")

# Points of the first rule, and of the last one that is tried. The relative gap at which no more are needed.
FIRST_STEPS, MOST_STEPS = 16, 1024
SMALL_GAP = 1e-3

# Tokens whose gradients are computed at once unless the caller says how many rows. A token of the 124M model takes
# 0.6 MB meanwhile.
_TOKENS = 1024


class Path(NamedTuple):
    """The straight line from a baseline to a text, in the embeddings of its tokens (T, D).

    Attributes:
        learner: The stages after the embedding.
        start: The residual stream of the baseline.
        step: From there to the text's.
        output: The number of the output that is explained.
        ends: That output at both ends.
    """

    learner: Learner
    start: Tensor
    step: Tensor
    output: int
    ends: tuple[float, float]


def gap(attributions: NDArray[np.float64], ends: tuple[float, float]) -> tuple[float, float]:
    """Return by how much attributions miss the change of the output, absolutely and as a share of that change."""
    change = ends[1] - ends[0]
    missing = change - float(attributions.sum())
    return missing, abs(missing / change) if change else float(missing != 0.0)


def make_path(learner: Learner, model: GPT2, ids: Tensor, output: int, baseline: str) -> Path:
    """Return the path from a baseline to token ids (T,); positions are the text's all along."""
    with torch.no_grad():
        end = model.embed(ids[None])[0].float()
        if baseline == "zeros":
            start = model.embed.position(torch.arange(len(ids), device=ids.device)).float()
        else:
            start = model.embed(torch.full_like(ids[None], model.tokenizer.eot_token))[0].float()
        low, high = learner(torch.stack([start, end]))[:, output].tolist()
    return Path(learner, start, end - start, output, (low, high))


def integrate(path: Path, n_steps: int | None, rows: int | None) -> tuple[NDArray[np.float64], int]:
    """Integrate the gradient along a path.

    Args:
        path: The path.
        n_steps: Points of the rule; None doubles them until the gap is small.
        rows: Points computed at once; None chooses a number.

    Returns:
        An attribution per token (T,), and the number of points.
    """
    rows = max(1, _TOKENS // len(path.start)) if rows is None else rows
    steps = FIRST_STEPS if n_steps is None else n_steps
    while True:
        attributions = _attributions(path, steps, rows)
        if n_steps is not None or steps >= MOST_STEPS or gap(attributions, path.ends)[1] <= SMALL_GAP:
            return attributions, steps
        steps *= 2


def _attributions(path: Path, steps: int, rows: int) -> NDArray[np.float64]:
    rows = min(rows, steps)
    total = torch.zeros(path.start.shape, dtype=torch.float64, device="cpu")  # not every device has float64
    shares, weights = _rule(steps)
    for share, weight in zip(torch.split(shares, rows), torch.split(weights, rows), strict=True):
        points = path.start + share.to(path.start)[:, None, None] * path.step
        with torch.enable_grad():
            points.requires_grad_()
            outputs = path.learner(points)[:, path.output].sum()
        (gradients,) = torch.autograd.grad(outputs, points)
        total += torch.tensordot(weight, gradients.to(total), dims=1)
    return (total * path.step.to(total)).sum(dim=1).numpy()


@functools.cache
def _rule(steps: int) -> tuple[Tensor, Tensor]:
    """Return the points and weights of Gauss and Legendre's rule on 0 to 1, float64."""
    points, weights = np.polynomial.legendre.leggauss(steps)
    return torch.from_numpy((points + 1) / 2), torch.from_numpy(weights / 2)
