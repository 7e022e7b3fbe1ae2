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

# Points of the rule on each part of the path, and the most in all.
POINTS, MOST_STEPS = 16, 2048

# The relative gap at which no more are needed; and the share of an output that float32 may lose anywhere.
SMALL_GAP = 1e-3
_ROUNDING = 1e-5

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
    """

    learner: Learner
    start: Tensor
    step: Tensor
    output: int

    def points(self, shares: Tensor) -> Tensor:
        """Return the points (n, T, D) at shares (n,) of the way."""
        return self.start + shares.to(self.start)[:, None, None] * self.step

    def outputs(self, *shares: float) -> list[float]:
        """Return the output at shares of the way."""
        with torch.no_grad():
            points = self.points(torch.tensor(shares, dtype=torch.float64, device="cpu"))
            return self.learner(points)[:, self.output].tolist()  # type: ignore[no-any-return]


class Part(NamedTuple):
    """A part of a path: the shares of the way where it begins and ends, the outputs there, and attributions (T,)."""

    shares: tuple[float, float]
    ends: tuple[float, float]
    attributions: NDArray[np.float64]

    @property
    def missing(self) -> float:
        """How much of the change of the output the attributions miss."""
        return abs(gap(self.attributions, self.ends)[0])


def gap(attributions: NDArray[np.float64], ends: tuple[float, float]) -> tuple[float, float]:
    """Return by how much attributions miss the change of the output, absolutely and as a share of that change."""
    change = ends[1] - ends[0]
    missing = change - float(attributions.sum())
    return missing, abs(missing / change) if change else float(missing != 0.0)


def small_gap(ends: tuple[float, float]) -> float:
    """Return the gap that does not matter, or that float32 does not resolve."""
    return max(SMALL_GAP * abs(ends[1] - ends[0]), _ROUNDING * max(map(abs, ends)))


def make_path(learner: Learner, model: GPT2, ids: Tensor, output: int, baseline: str) -> Path:
    """Return the path from a baseline to token ids (T,); positions are the text's all along."""
    with torch.no_grad():
        end = model.embed(ids[None])[0].float()
        if baseline == "zeros":
            start = model.embed.position(torch.arange(len(ids), device=ids.device)).float()
        else:
            start = model.embed(torch.full_like(ids[None], model.tokenizer.eot_token))[0].float()
    return Path(learner, start, end - start, output)


def integrate(path: Path, n_steps: int | None, rows: int | None) -> tuple[NDArray[np.float64], list[float], int]:
    """Integrate the gradient along a path.

    By the fundamental theorem of calculus each part of the path says how exact it is: its attributions should add up to
    the change of the output from its beginning to its end. So the worst part is halved, time and again. An output can
    change within a hundred-thousandth of the path, where the input of a norm passes close to zero, and no rule of
    evenly spaced points would find that.

    Args:
        path: The path.
        n_steps: Points of one rule for the whole path; None halves parts until the gap is small.
        rows: Points computed at once; None chooses a number.

    Returns:
        An attribution per token (T,), the output at both ends, and the number of points computed.
    """
    low, high = ends = path.outputs(0.0, 1.0)
    small = small_gap((low, high))
    rows = max(1, _TOKENS // len(path.start)) if rows is None else rows
    size = steps = POINTS if n_steps is None else n_steps
    parts = [_part(path, (0.0, 1.0), (low, high), size, rows)]
    while n_steps is None and steps < MOST_STEPS and sum(part.missing for part in parts) > small:
        parts.sort(key=lambda part: part.missing)
        (start, end), (low, high), _ = parts.pop()  # the worst
        middle = (start + end) / 2
        [between] = path.outputs(middle)
        parts.append(_part(path, (start, middle), (low, between), size, rows))
        parts.append(_part(path, (middle, end), (between, high), size, rows))
        steps += 2 * size
    return np.sum([part.attributions for part in parts], axis=0), ends, steps


def _part(path: Path, shares: tuple[float, float], ends: tuple[float, float], steps: int, rows: int) -> Part:
    total = torch.zeros(path.start.shape, dtype=torch.float64, device="cpu")  # not every device has float64
    points, weights = _rule(steps)
    start, width, rows = shares[0], shares[1] - shares[0], min(rows, steps)
    for some, weight in zip(torch.split(start + width * points, rows), torch.split(width * weights, rows), strict=True):
        inputs = path.points(some)
        with torch.enable_grad():
            outputs = path.learner(inputs.requires_grad_())[:, path.output].sum()
        (gradients,) = torch.autograd.grad(outputs, inputs)
        total += torch.tensordot(weight, gradients.to(total), dims=1)
    return Part(shares, ends, (total * path.step.to(total)).sum(dim=1).numpy())


@functools.cache
def _rule(steps: int) -> tuple[Tensor, Tensor]:
    """Return the points and weights of Gauss and Legendre's rule on 0 to 1, float64."""
    points, weights = np.polynomial.legendre.leggauss(steps)
    return torch.from_numpy((points + 1) / 2), torch.from_numpy(weights / 2)
