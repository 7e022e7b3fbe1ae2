"""Choosing the next token from logits: greedily, or drawn at a temperature from the top k or top p tokens."""

import math

import numpy as np
import torch
from torch import Tensor

from gptclf.checks import integer, number


class Sampler:
    """Chooses tokens. Errors about its settings use the names of `generate`'s arguments.

    Args:
        temperature: 0 takes the most probable token; otherwise logits are divided by it and a token is drawn.
        top_k: Draw from the k most probable tokens, including ties with the last of them (Fan et al., 2018); None
            draws from all.
        top_p: Then draw from the smallest set of most probable tokens whose probabilities add up to at least p
            (Holtzman et al., 2020, "The Curious Case of Neural Text Degeneration"); None, like 1, keeps all.
        seed: The draws depend on it alone, on any device. None draws from torch's global generator on the CPU, as the
            book's `generate` does: after the same `torch.manual_seed`, the tokens are the book's.
    """

    def __init__(
        self, temperature: float = 0.0, top_k: int | None = None, top_p: float | None = None, seed: int | None = None
    ) -> None:
        self.temperature = number("temperature", temperature)
        self.top_k = integer("top_k", top_k, 1, optional=True)
        self.top_p = number("top_p", top_p, above=0, most=1, optional=True)
        seed = integer("seed", seed, optional=True)
        self._generator: torch.Generator | None = None  # torch's global one
        if seed is not None:
            state = np.random.SeedSequence(seed).generate_state(1, np.uint64)
            self._generator = torch.Generator().manual_seed(int(state[0]))

    def choose(self, logits: Tensor) -> Tensor:
        """Return one token (B,) for each row of logits (B, V)."""
        if self.temperature == 0:
            return logits.argmax(dim=-1)
        # Always drawn on the CPU: generators of other devices draw other numbers.
        shares = self.probabilities(logits).cpu()
        return torch.multinomial(shares, 1, generator=self._generator)[:, 0].to(logits.device)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the distribution (B, V) that tokens are drawn from. The temperature must be above 0."""
        # Subtract the maximum first, and keep the temperature above float32's smallest normal number, so that no
        # temperature yields NaN.
        logits = logits.float() - logits.float().amax(dim=-1, keepdim=True)
        logits = logits / max(self.temperature, torch.finfo(torch.float32).tiny)
        if self.top_k is not None:
            least = logits.topk(min(self.top_k, logits.shape[-1])).values[..., -1:]
            logits = logits.masked_fill(logits < least, -math.inf)
        if self.top_p is not None and self.top_p < 1:
            # From the least probable up: drop the largest tail whose mass is at most 1 - p, but never the top token.
            values, order = logits.sort(dim=-1)
            drop = values.softmax(dim=-1, dtype=torch.float64).cumsum(dim=-1) <= 1 - self.top_p
            drop[..., -1] = False
            logits = logits.masked_fill(drop.scatter(-1, order, drop), -math.inf)
        return logits.softmax(dim=-1)
