"""Drawing fresh weights."""

import numpy as np
import torch
from torch import nn

from gptclf.checks import LARGEST_SEED, integer
from gptclf.gpt2.config import GPT2Config
from gptclf.gpt2.heads import ClassifierHead
from gptclf.gpt2.trunk import MLP, Attention


def initialise(module: nn.Module, config: GPT2Config, seed: int | None, *, stream: int = 0) -> int:
    """Draw the parameters below `module` as GPT-2 does and return the seed that was used.

    Weights are normal with `config.init_std`, those that write into the residual stream divided by sqrt(2 L)
    (Radford et al., 2019, section 2.3); biases are 0, norms are the identity.

    Args:
        module: Its linear layers, embeddings and norms are drawn.
        config: Gives the standard deviation and the depth.
        seed: None takes a seed from torch's global generator.
        stream: Number of the random stream of this seed. A head drawn from the embedding's own stream would be a copy
            of its first rows.
    """
    seed, generator = seeded(seed, stream)
    parts = list(module.modules())
    residual = {part.out for part in parts if isinstance(part, Attention)}
    residual |= {part.down for part in parts if isinstance(part, MLP)}
    with torch.no_grad():
        for part in parts:
            if isinstance(part, nn.LayerNorm):
                part.reset_parameters()
            elif isinstance(part, nn.Embedding | nn.Linear):
                std = config.init_std / (2 * config.n_layers) ** 0.5 if part in residual else config.init_std
                part.weight.normal_(0.0, std, generator=generator)
                if isinstance(part, nn.Linear) and part.bias is not None:
                    part.bias.zero_()
    for part in parts:
        if isinstance(part, ClassifierHead):
            part.remember_fresh()
    return seed


def seeded(seed: int | None, stream: int) -> tuple[int, torch.Generator]:
    """Return the seed that is used, one from torch's global generator for None, and a generator of its stream."""
    seed = int(torch.randint(2**31, (), device="cpu")) if seed is None else integer("seed", seed, most=LARGEST_SEED)
    state = np.random.SeedSequence([seed, stream]).generate_state(1, np.uint64)
    return seed, torch.Generator().manual_seed(int(state[0]))
