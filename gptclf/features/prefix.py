"""Computing the frozen part of a model once per text.

The stages before the first trainable one are a pure function of the text, so their result is computed in the order and
batch shape that is fastest and kept; training and measuring then run the stages after it (`stages.Suffix`) alone.
"""

import logging
import os

import numpy as np
import torch

from gptclf.data.batches import Batches
from gptclf.data.dataset import TextDataset
from gptclf.features.store import FeatureSet
from gptclf.gpt2.heads import ClassifierHead
from gptclf.gpt2.model import GPT2
from gptclf.gpt2.precision import answering, arithmetic
from gptclf.gpt2.stages import frozen_depth, stages
from gptclf.metrics import check_finite

logger = logging.getLogger(__name__)

# Tokens computed at once: enough to fill the machine's matrix units, little beside the features themselves.
_GROUP_TOKENS = 4096

# Share of the machine's memory that features may take.
_MEMORY_SHARE = 0.25


def reusable_depth(model: GPT2, n_tokens: int) -> int:
    """How many frozen stages are worth computing once for `n_tokens` tokens in all; 0 where none are.

    None are where not even one block is frozen, where dropout makes the frozen part random, and where the features
    would take more than a quarter of the machine's memory; the last two are logged.
    """
    depth = frozen_depth(model)
    if depth < 2:
        return 0
    if model.config.drop_rate > 0:
        logger.warning("dropout is %g, so the frozen part is computed anew at every step", model.config.drop_rate)
        return 0
    needed = 4 * model.config.emb_dim * (n_tokens if not _only_pooled(model, depth) else 0)
    allowed = _MEMORY_SHARE * _physical_memory()
    if needed > allowed:
        logger.warning(
            "features of %d tokens would take %.1f GB, more than the %.1f GB allowed, so the frozen part is computed "
            "anew at every step", n_tokens, needed / 1e9, allowed / 1e9,
        )  # fmt: skip
        return 0
    return depth


def compute_features(model: GPT2, dataset: TextDataset, depth: int, *, precision: str) -> FeatureSet:
    """Run the first `depth` stages over every row, without dropout or gradients.

    Where only the head is left and it reads one position, that position alone is kept.
    """
    line = [stage for _, stage in stages(model)[:depth]]
    pooling = model.head.pooling if isinstance(model.head, ClassifierHead) else ""
    one = _only_pooled(model, depth)
    lengths = np.ones_like(dataset.lengths) if one else dataset.lengths
    starts = np.cumsum(lengths) - lengths
    values = torch.empty(int(lengths.sum()), model.config.emb_dim, dtype=torch.float32)
    batches = Batches(dataset, classes=None)
    with answering(model), arithmetic(precision, model):
        for group in _groups(dataset.lengths):
            batch = batches.take(group).to(model.device)
            x = batch.inputs
            for stage in line:
                x = stage(x)
            for row, i, length in zip(x.float().cpu(), group, batch.lengths.tolist(), strict=True):
                if one:
                    values[starts[i]] = row[length - 1 if pooling == "last" else 0]
                else:
                    values[starts[i] : starts[i] + length] = row[:length]
    check_finite(values, model, "features of the frozen part")
    return FeatureSet(dataset, values, lengths)


def _only_pooled(model: GPT2, depth: int) -> bool:
    """Whether what is left of the model reads one position of each row."""
    head_alone = depth >= len(stages(model)) - 1
    return head_alone and isinstance(model.head, ClassifierHead) and model.head.pooling in ("last", "first")


def _groups(lengths: "np.typing.NDArray[np.int64]") -> "list[np.typing.NDArray[np.int64]]":
    """Row numbers in groups of like length, each of some `_GROUP_TOKENS` tokens with its padding."""
    order = np.argsort(-lengths, kind="stable")
    groups, start = [], 0
    while start < len(order):
        end = start + max(1, _GROUP_TOKENS // int(lengths[order[start]]))
        groups.append(order[start:end])
        start = end
    return groups


def _physical_memory() -> float:
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return 8e9
