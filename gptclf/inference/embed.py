"""`embed`: one vector per text, from the hidden states of any layer."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gptclf.checks import boolean, choice, integer
from gptclf.data.batches import TokenRows
from gptclf.data.rows import check_source
from gptclf.features.frozen_prefix import address
from gptclf.features.vectors import kept_vectors
from gptclf.gpt2 import packed
from gptclf.gpt2.arithmetic import arithmetic_for, evaluating, piece_size
from gptclf.gpt2.model import GPT2, check_gpt2
from gptclf.gpt2.stages import stages
from gptclf.gpt2.standard import is_standard, is_standard_alone
from gptclf.inference.texts import Cuts
from gptclf.metrics.finite import check_finite
from gptclf.progress import Meter

POOLINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda states: states.mean(dim=0),
    "last": lambda states: states[-1],
    "first": lambda states: states[0],
}


def embed(
    model: GPT2,
    texts: Iterable[str],
    *,
    layer: int = -1,
    pooling: str = "mean",
    batch_size: int | None = None,
    precision: str = "auto",
    progress: bool = False,
    keep: bool = False,
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
        keep: Keep the vectors in this process's memory, as `train` keeps features, and take those that are there:
            each text is computed once. `clear_features` releases them. If the model has hooks or parts of other
            classes, nothing is kept.

    Returns:
        Vectors (N, D), float32, in the order of the texts.

    Raises:
        ValueError: The model does not have the layer, or its trunk has hooks or another class and must be called whole.

    Example:
        >>> from gptclf import load_gpt2
        >>> embed(load_gpt2("nano"), ["you won a prize", "see you at six"]).shape
        (2, 192)
    """
    return _Embedder(model, layer, pooling, batch_size, precision, progress, keep)(texts)


class _Embedder:
    """The arguments of `embed`, checked, as a function of texts."""

    def __init__(
        self, model: GPT2, layer: int, pooling: str, batch_size: int | None, precision: str, progress: bool, keep: bool
    ) -> None:
        n_blocks = len(check_gpt2(model).blocks)
        self.model = model
        self.layer = integer("layer", layer, -n_blocks - 1, most=n_blocks) % (n_blocks + 1)
        self.pooling = choice("pooling", pooling, tuple(POOLINGS))
        self.batch_size = integer("batch_size", batch_size, 1, optional=True)
        # The same for every number of texts, as it would show in a vector's bits.
        self.arithmetic = arithmetic_for(precision, model, packed.CHUNK_TOKENS)
        self._staged = is_standard_alone(model) and is_standard_alone(model.trunk)
        if not self._staged and self.layer < n_blocks:
            problem = f"layer is {self.layer}, but the model or its trunk has hooks or is of another class"
            raise ValueError(f"{problem}, so it is called as a whole; take layer=-1 or remove them")
        self.progress, self.keep = boolean("progress", progress), boolean("keep", keep)

    def __call__(self, texts: Iterable[str]) -> NDArray[np.float32]:
        """Return the vectors (N, D) of texts."""
        check_source(texts)
        cuts = Cuts()
        prepared = cuts.prepare(self.model, texts)
        cuts.log()
        rows, place = prepared.rows, self._address() if self.keep and len(prepared.rows) else None
        if place is None:
            vectors = self._vectors(rows, range(len(rows)))
        else:
            vectors = kept_vectors(place, rows, self._width, lambda chosen: self._vectors(rows, chosen))
        return vectors[prepared.row_of].numpy()

    @property
    def _width(self) -> int:
        return self.model.config.emb_dim

    def _address(self) -> str | None:
        """Return a digest of everything but the text that determines a vector, or None if there is none."""
        # The last layer's states have passed the final norm.
        depth = self.layer + (2 if self.layer == len(self.model.blocks) else 1)
        if not self._staged or not all(is_standard(stage) for _, stage in stages(self.model)[:depth]):
            return None
        return address(self.model, depth, self.arithmetic, vectors=self.pooling)

    def _vectors(self, rows: TokenRows, chosen: Sequence[int]) -> Tensor:
        """Compute the vectors of the chosen rows, sorted by length and without padding."""
        model, pooled, numbers = self.model, POOLINGS[self.pooling], np.array(chosen, dtype=np.int64)
        lengths = rows.lengths[numbers]
        order = np.argsort(lengths, kind="stable")
        vectors = torch.empty(len(numbers), self._width, dtype=torch.float32, device="cpu")
        with (
            Meter(int(lengths.sum()), "embedding", unit="tok", enabled=self.progress) as meter,
            evaluating(model) as still,
            torch.autocast(model.device.type, enabled=False),
        ):
            for part in packed.chunks_of(lengths[order], self.batch_size):
                groups = packed.row_groups(lengths[order[part]])
                ids = rows.packed(numbers[order[part]]).to(model.device)
                states = self._states(still, ids, groups)
                # Each text by itself, so that no other one shows in its vector's bits.
                vectors[order[part]] = torch.stack([pooled(row) for group in states for row in group]).cpu()
                meter.update(len(ids))
        check_finite(vectors, model, "hidden states")
        return vectors

    def _states(self, model: GPT2, ids: Tensor, groups: packed.Groups) -> Iterator[Tensor]:
        """Yield the states (rows, T, D) of each group at the layer."""
        if not self._staged:  # its own call does more than its parts
            yield from (model.hidden_states(group.of(ids)).float() for group in groups)
            return
        size = piece_size(model.device)
        # Filled up to whole pieces, so that every product has one shape.
        x = packed.embed(model.embed, ids, groups, capacity=-(-len(ids) // size) * size, width=self._width)
        for block in model.blocks[: self.layer]:
            packed.advance(block, x, groups, self.arithmetic)
        for group in groups:
            yield model.norm(group.of(x)) if self.layer == len(model.blocks) else group.of(x)
