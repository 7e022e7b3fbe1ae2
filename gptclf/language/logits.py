"""Steps shared by generation and scoring: checks of token ids, and log-probabilities of single tokens."""

import torch
from torch import Tensor

from gptclf.gpt2.arithmetic import check_float32, resolve_precision
from gptclf.gpt2.model import GPT2, check_language_model
from gptclf.gpt2.standard import is_standard
from gptclf.tokenizer.tokens import Ids, ids_as_tensor

# Hidden states whose logits, V numbers for each, are computed at once.
_LOGIT_ROWS = 256


def check_scoring(gpt2: GPT2, precision: str) -> None:
    """Raise an error unless `gpt2` is a language model in float32 and `precision` is valid for it."""
    check_language_model(gpt2)
    resolve_precision(precision, gpt2)
    check_float32(gpt2, "scores are computed with")


def has_standard_parts(gpt2: GPT2) -> bool:
    """Return True if a language model may be computed part by part: standard modules throughout, and no hooks."""
    return gpt2.is_plain and all(map(is_standard, (*gpt2.blocks, gpt2.norm, gpt2.head)))


def rows_of_ids(gpt2: GPT2, ids: Ids) -> Tensor:
    """Return ids (B, T) or (T,) as int64 (B, T) on the model's device.

    Raises:
        ValueError: If the model's vocabulary lacks an id.
    """
    rows = ids_as_tensor(ids)
    rows = rows if rows.dim() == 2 else rows[None]
    if rows.numel():
        low, high = int(rows.min()), int(rows.max())
        if low < 0 or high >= gpt2.config.vocab_size:
            problem = f"ids run from {low} to {high}, but the model has ids 0 to {gpt2.config.vocab_size - 1}"
            raise ValueError(f"{problem}; encode the text with model.tokenizer")
    return rows.to(gpt2.device)


def candidate_log_probs(gpt2: GPT2, hidden: Tensor, candidates: Tensor) -> Tensor:
    """Compute log-probabilities (N, K) of candidates (N, K) as the token after each hidden state (N, D), in float32."""
    parts = zip(torch.split(hidden, _LOGIT_ROWS), torch.split(candidates, _LOGIT_ROWS), strict=True)
    return torch.cat([picked_log_probs(gpt2.head.project(some), ids) for some, ids in parts])


def picked_log_probs(logits: Tensor, ids: Tensor) -> Tensor:
    """Return the log-probabilities (N, K) that logits (N, V) give to ids (N, K)."""
    return logits.gather(1, ids) - logits.logsumexp(dim=1, keepdim=True)
