"""Estimate how long computing features takes, by timing a small piece of it on this machine."""

import time

import numpy as np
import torch

from gptclf.features.frozen_prefix import FrozenPrefix
from gptclf.gpt2.arithmetic import evaluating, piece_size
from gptclf.gpt2.packed import advance, row_groups


def prefix_seconds(prefix: FrozenPrefix, tokens: int) -> float:
    """Estimate the seconds needed to compute the features of `tokens` tokens.

    One block runs over one piece of the work. The first run is a warm-up and is not counted.
    """
    if not tokens:
        return 0.0
    piece = piece_size(prefix.model.device)
    groups = row_groups(np.full(piece // 32, 32, dtype=np.int64))
    x = torch.zeros(piece, prefix.model.config.emb_dim, device=prefix.model.device)
    taken = 0.0
    with evaluating(prefix.model) as model, torch.autocast(model.device.type, enabled=False):
        for _ in range(2):
            start = time.perf_counter()
            advance(model.blocks[0], x, groups, prefix.arithmetic)
            if model.device.type == "cuda":
                torch.cuda.synchronize(model.device)
            taken = time.perf_counter() - start
    return taken * prefix.n_blocks * tokens / piece
