"""`embed`: one vector per text, from the hidden states of any layer."""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gptclf.checks import boolean, choice, integer
from gptclf.data.rows import check_source
from gptclf.gpt2 import packed
from gptclf.gpt2.arithmetic import Arithmetic, arithmetic_for, evaluating, piece_size
from gptclf.gpt2.model import GPT2, check_gpt2
from gptclf.gpt2.standard import is_standard_alone
from gptclf.inference.texts import Cuts
from gptclf.metrics.finite import check_finite
from gptclf.progress import Meter

POOLINGS = ("mean", "last", "first")


def embed(
    model: GPT2,
    texts: Iterable[str],
    *,
    layer: int = -1,
    pooling: str = "mean",
    batch_size: int | None = None,
    precision: str = "auto",
    progress: bool = False,
) -> NDArray[np.float32]:
    """Return a vector for each text, from the hidden states of its tokens at one layer.

    Layers are numbered as the `hidden_states` of `transformers`: 0 is the embedding, i the residual stream after
    block i, and the last one, L, is the stream after block L and the final norm: what a head reads. Texts are prepared
    as `predict` does it and computed without padding. A vector depends on its text alone, bit for bit.

    Args:
        model: A language model or a classifier; the head is not used.
        texts: Strings; a single string raises a TypeError.
        layer: From 0 to L, the number of blocks; negative ones count from the end: -1 is L.
        pooling: How the states of a text's tokens become one vector: their "mean", the "last" or the "first" one. The
            first token has seen no other: its state says little about the text.
        batch_size: As in `predict`.
        precision: As in `predict`.
        progress: As in `predict`.

    Returns:
        Vectors (N, D), float32, in the order of the texts.

    Raises:
        ValueError: The model does not have the layer, or its trunk has hooks or another class and must be called whole.

    Example:
        >>> from gptclf import load_gpt2
        >>> embed(load_gpt2("nano"), ["you won a prize", "see you at six"]).shape
        (2, 192)
    """
    n_blocks = len(check_gpt2(model).blocks)
    layer = integer("layer", layer, -n_blocks - 1, most=n_blocks) % (n_blocks + 1)
    choice("pooling", pooling, POOLINGS)
    batch_size = integer("batch_size", batch_size, 1, optional=True)
    # The same for every number of texts, as it would show in a vector's bits.
    arithmetic = arithmetic_for(precision, model, packed.CHUNK_TOKENS)
    staged = is_standard_alone(model) and is_standard_alone(model.trunk)
    if not staged and layer < n_blocks:
        problem = f"layer is {layer}, but the model or its trunk has hooks or is of another class"
        raise ValueError(f"{problem}, so it is called as a whole; take layer=-1 or remove them")
    progress = boolean("progress", progress)
    check_source(texts)
    cuts = Cuts()
    prepared = cuts.prepare(model, texts)
    cuts.log()
    rows = prepared.rows
    order = np.argsort(rows.lengths, kind="stable")
    vectors = torch.empty(len(rows), model.config.emb_dim, dtype=torch.float32, device="cpu")
    with (
        Meter(len(rows.ids), "embedding", unit="tok", enabled=progress) as meter,
        evaluating(model) as still,
        torch.autocast(model.device.type, enabled=False),
    ):
        for part in packed.chunks_of(rows.lengths[order], batch_size):
            chosen = order[part]
            groups = packed.row_groups(rows.lengths[chosen])
            ids = rows.packed(chosen).to(model.device)
            states = _states(still, ids, groups, layer, arithmetic)
            if not staged:  # its own call does more than its parts
                states = (still.hidden_states(group.of(ids)).float() for group in groups)
            vectors[chosen] = torch.stack([_pooled(row, pooling) for group in states for row in group]).cpu()
            meter.update(len(ids))
    check_finite(vectors, model, "hidden states")
    return vectors[prepared.row_of].numpy()


def _states(model: GPT2, ids: Tensor, groups: packed.Groups, layer: int, arithmetic: Arithmetic) -> Iterator[Tensor]:
    """Yield the states (rows, T, D) of each group after `layer` blocks."""
    size = piece_size(model.device)
    # Filled up to whole pieces, so that every product has one shape.
    x = packed.embed(model.embed, ids, groups, capacity=-(-len(ids) // size) * size, width=model.config.emb_dim)
    for block in model.blocks[:layer]:
        packed.advance(block, x, groups, arithmetic)
    for group in groups:
        yield model.norm(group.of(x)) if layer == len(model.blocks) else group.of(x)


def _pooled(states: Tensor, pooling: str) -> Tensor:
    """Return one vector (D,) of the states (T, D) of a text, by itself, so that no other text shows in its bits."""
    return states.mean(dim=0) if pooling == "mean" else states[0 if pooling == "first" else -1]
