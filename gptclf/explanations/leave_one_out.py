"""Leaving out one token or word at a time: by how much an output falls."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from gptclf.data.dataset import TextDataset
from gptclf.explanations.spans import FILLER
from gptclf.gpt2.model import GPT2
from gptclf.inference.outputs import compute_outputs


def effects(
    model: GPT2,
    ids: NDArray[np.int32],
    positions: NDArray[np.int64],
    parts: Sequence[Sequence[int]],
    output: int,
    *,
    batch_size: int | None,
    precision: str,
) -> NDArray[np.float64]:
    """Return for each part of a row by how much the output is larger with it than without it.

    The tokens of the part are deleted from the row, and those after them move up; the text without it is not tokenised
    anew, which may cut it into other tokens.

    Args:
        model: A classifier.
        ids: The row (T,).
        positions: Which tokens of the text they are, or `FILLER`. Fillers cannot be left out: their effect is 0.
        parts: The numbers of the tokens of each part.
        output: The number of the output.
        batch_size: As in `predict`.
        precision: As in `predict`.
    """
    filler = np.full(1 if model.preparation.pad_to is None else len(ids), model.tokenizer.eot_token, dtype=np.int32)
    number: dict[bytes, int] = {}
    rows = []
    for part in [[], *parts]:
        left = np.delete(ids, [*part, *np.flatnonzero(positions == FILLER)])
        row = np.concatenate([left, filler[len(left) :]])
        rows.append(number.setdefault(row.tobytes(), len(number)))
    variants = TextDataset([""] * len(number), tokenizer=model.tokenizer)
    variants.set_rows([np.frombuffer(row, dtype=np.int32) for row in number])
    outputs = compute_outputs(model, variants, batch_size=batch_size, precision=precision)[rows, output].double()
    return torch.sub(outputs[0], outputs[1:]).numpy()
