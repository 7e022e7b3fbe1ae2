"""`Line`: from ids, or a residual stream, to outputs along stages, computing no more than the head looks at.

This is the differentiable computation, for training and hand-written loops; `packed.py` is the fast one without
gradients.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from gptclf.gpt2.attend import packed
from gptclf.gpt2.frozen import product_type
from gptclf.gpt2.heads import check_lengths, reads_of
from gptclf.gpt2.recording import is_recording
from gptclf.gpt2.sharing import refuse_borrowed_gradients
from gptclf.gpt2.standard import is_standard
from gptclf.gpt2.trunk import can_pool

# Packed tokens are filled up to a multiple of this in lower precision: for each new shape of a product, oneDNN compiles
# a kernel, which takes as long as the product of a small batch.
_MULTIPLE = 16


class Line(nn.Module):
    """A line of stages, or the end of one: embedding, blocks, final norm and head.

    Attributes:
        depth: Number of leading stages left out. With 0 the line takes token ids, otherwise the features (B, T, D) that
            the last of those stages computes.
        trunk: Holds the remaining stages of the trunk: embedding, blocks and norm.
        head: The head.
    """

    trunk: nn.Module
    head: nn.Module
    depth = 0

    @property
    def device(self) -> torch.device:
        """Where the parameters live."""
        return next(self.parameters()).device

    @property
    def embed(self) -> Any:
        """The embedding, or None if it was left out."""
        return getattr(self.trunk, "embed", None)

    @property
    def blocks(self) -> list[nn.Module]:
        """The transformer blocks that are left."""
        blocks: Any = self.trunk.blocks
        return list(blocks.values() if isinstance(blocks, nn.ModuleDict) else blocks)

    @property
    def norm(self) -> Any:
        """The final norm, or None if it was left out."""
        return getattr(self.trunk, "norm", None)

    @property
    def output_matrix(self) -> Tensor | None:
        """A language-model head's matrix (V, D) if it may be multiplied in pieces, else None."""
        return getattr(self.head, "output_matrix", None)

    def hidden_states(self, inputs: Tensor) -> Tensor:
        """Compute the final hidden states (B, T, D) of ids (B, T), or of features (B, T, D): the head's input."""
        x = self._stream(inputs)
        for block in self.blocks:
            x = self._call(block, x)
        return self._normed(x)

    def forward(self, inputs: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Compute the outputs of ids (B, T), or of features (B, T, D), padded on the right.

        Args:
            inputs: Token ids or features.
            lengths: Real positions per row (B,), or None: every row ends at T.
        """
        if is_recording():  # which rows can be packed depends on values
            return self.head(self.hidden_states(inputs), lengths)  # type: ignore[no-any-return]
        x = self._stream(inputs)
        B, T, _ = x.shape
        if lengths is not None:
            check_lengths(lengths, B, T)
        blocks, reads = self.blocks, reads_of(self.head)
        standard = [is_standard(block) for block in blocks]
        if reads == "first" and all(standard):  # a causal model: later tokens cannot matter
            x, lengths, T = x[:, :1], None, 1
        last_block = blocks[-1] if reads != "all" and blocks and B > 0 else None
        pooled = last_block if can_pool(last_block) else None
        # Tokens of all rows one after the other, so no work on padding. A GPU prefers a few large launches.
        packs = lengths if lengths is not None and x.device.type == "cpu" and (lengths < T).any() else None
        rows: list[int] | None = None  # while the tokens are packed
        for block, own in zip(blocks[:-1] if pooled is not None else blocks, standard, strict=False):
            if own and packs is not None and rows is None:
                x, rows = _packed(x[:, :T], packs)
            elif not own and rows is not None:  # a block of another class is called as it is
                x, rows = _unpacked(x, rows, T, B), None
            x = self._call(block, x) if rows is None else self._call(block, x, packed(rows))
        if rows is not None:
            x = _unpacked(x, rows, T, B)
        if pooled is None:
            return self.head(self._normed(x), lengths)  # type: ignore[no-any-return]
        last = torch.full((B,), T - 1, device=x.device) if lengths is None else lengths - 1
        x = pooled.at_position(x, torch.zeros_like(last) if reads == "first" else last)
        return self.head(self._normed(x)[:, None], None)  # type: ignore[no-any-return]

    def _stream(self, inputs: Tensor) -> Tensor:
        """Return the residual stream (B, T, D) before the first block."""
        refuse_borrowed_gradients(self)
        return inputs if self.embed is None else self.embed(inputs)

    def _normed(self, x: Tensor) -> Tensor:
        return x if self.norm is None else self.norm(x)

    def _call(self, block: nn.Module, *given: Any) -> Tensor:
        return block(*given)  # type: ignore[no-any-return]


def _packed(x: Tensor, lengths: Tensor) -> tuple[Tensor, list[int]]:
    """Return the rows of (B, T, D) one after the other (1, N, D), and their lengths, one more than B if filled up."""
    rows = lengths.tolist()
    real = (torch.arange(x.shape[1], device=x.device) < lengths[:, None]).flatten().nonzero().squeeze(1)
    if (filling := -len(real) % _MULTIPLE) and product_type(x).itemsize < 4:
        rows.append(filling)
        real = torch.cat([real, real.new_zeros(filling)])
    return x.flatten(0, 1).index_select(0, real)[None], rows


def _unpacked(x: Tensor, rows: list[int], width: int, B: int) -> Tensor:
    """Return rows that lie one after the other (1, N, D) as (B, T, D), with zeros on the right."""
    padded = pad_sequence(list(torch.split(x[0], rows)[:B]), batch_first=True)
    short = width - padded.shape[1]
    return padded if not short else torch.nn.functional.pad(padded, (0, 0, 0, short))
