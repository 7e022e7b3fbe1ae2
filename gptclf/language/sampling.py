"""How the next token is chosen from logits: greedily, or drawn at a temperature from the top k, from the top p."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gptclf.checks import python_value


class Sampler:
    """Chooses tokens; the settings are checked here, by the names `generate` gives them.

    Args:
        temperature: 0 takes the most probable token; otherwise logits are divided by it before one is drawn.
        top_k: Draw from the k most probable tokens, and those equal to the last of them (Fan et al., 2018); None: all.
        top_p: Then from the fewest most probable ones whose probabilities reach p together (Holtzman et al., 2020,
            "The Curious Case of Neural Text Degeneration"); None, as 1: all.
        seed: What is drawn follows from it alone, on any device. None takes a seed from torch's global generator.
    """

    def __init__(
        self, temperature: float = 0.0, top_k: int | None = None, top_p: float | None = None, seed: int | None = None
    ) -> None:
        self.temperature = _number("temperature", temperature, "a finite number of at least 0")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature is {temperature!r}; it must be a finite number of at least 0 (0: greedy)")
        self.top_k = None if top_k is None else whole("top_k", top_k, 1)
        self.top_p = None if top_p is None else _number("top_p", top_p, "a number in (0, 1], or None")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {top_p!r}; it must lie in (0, 1], or be None")
        if seed is not None:
            seed = whole("seed", seed, 0)
        self._generator: torch.Generator | None = None
        if self.temperature > 0:
            state = np.random.SeedSequence(int(torch.randint(2**31, ())) if seed is None else seed)
            # On the CPU whatever the device: other devices' generators draw other numbers.
            self._generator = torch.Generator().manual_seed(int(state.generate_state(1, np.uint64)[0]))

    def choose(self, logits: Tensor) -> Tensor:
        """One token (B,) for each row of logits (B, V)."""
        if self._generator is None:
            return logits.argmax(dim=-1)
        shares = self.probabilities(logits).cpu()
        return torch.multinomial(shares, 1, generator=self._generator)[:, 0].to(logits.device)

    def probabilities(self, logits: Tensor) -> Tensor:
        """What is drawn from (B, V), for a temperature above 0: filtered, and adding up to 1 in each row."""
        # From its largest value, and by no less than float32 holds, so that no temperature makes it NaN.
        logits = logits.float() - logits.float().amax(dim=-1, keepdim=True)
        logits = logits / max(self.temperature, torch.finfo(torch.float32).tiny)
        if self.top_k is not None:
            least = logits.topk(min(self.top_k, logits.shape[-1])).values[..., -1:]
            logits = logits.masked_fill(logits < least, -math.inf)
        if self.top_p is not None and self.top_p < 1:
            # From the least probable up: what goes is the largest tail whose mass is at most 1 - p, never the top one.
            values, order = logits.sort(dim=-1)
            goes = values.softmax(dim=-1, dtype=torch.float64).cumsum(dim=-1) <= 1 - self.top_p
            goes[..., -1] = False
            logits = logits.masked_fill(goes.scatter(-1, order, goes), -math.inf)
        return logits.softmax(dim=-1)


def whole(name: str, value: Any, least: int) -> int:
    """The setting `name` as an integer of at least `least`."""
    number = python_value(value)
    if not isinstance(number, int) or isinstance(number, bool):
        raise TypeError(f"{name} is {value!r}; it must be an integer of at least {least}")
    if number < least:
        raise ValueError(f"{name} is {value!r}; it must be an integer of at least {least}")
    return number


def _number(name: str, value: Any, wanted: str) -> float:
    number = python_value(value)
    if not isinstance(number, int | float) or isinstance(number, bool):
        raise TypeError(f"{name} is {value!r}; it must be {wanted}")
    return float(number)
