"""How long work will take, from timing a small piece of it on this machine, and what it needs."""

import time

import numpy as np
import torch

from gptclf.features.frozen_prefix import Cut
from gptclf.gpt2.arithmetic import answering
from gptclf.gpt2.packed import advance, piece_size, runs_of
from gptclf.gpt2.stages import stages


def prefix_seconds(cut: Cut, tokens: int) -> float:
    """About how long computing features of texts of `tokens` tokens in all will take.

    One block runs over one piece of the work; the first time warms up and is not counted.
    """
    if not tokens:
        return 0.0
    block = stages(cut.model)[1][1]
    piece = piece_size(cut.model.device)
    runs = runs_of(np.full(piece // 32, 32, dtype=np.int64))
    x = torch.zeros(piece, cut.model.config.emb_dim, device=cut.model.device)
    taken = 0.0
    with answering(cut.model):
        for _ in range(2):
            start = time.perf_counter()
            advance(block, x, runs, cut.dtype)
            _wait_for(cut.model.device)
            taken = time.perf_counter() - start
    return taken * cut.n_blocks * tokens / piece


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
