"""What a language model is, and what token ids it takes, for the functions that are given them."""

import torch
from torch import Tensor, nn

from gptclf.gpt2.gradients import Embedding as Table
from gptclf.gpt2.gradients import Linear
from gptclf.gpt2.heads import LMHead
from gptclf.gpt2.model import GPT2, check_gpt2
from gptclf.gpt2.trunk import Embedding, Trunk, is_own, is_watched
from gptclf.tokenizer.tokens import Ids, ids_as_tensor


def check_language_model(gpt2: GPT2) -> None:
    """Raise where `gpt2` is no language model."""
    check_gpt2(gpt2)
    if gpt2.classes is not None:
        raise TypeError(
            f"this is a classifier ({len(gpt2.classes)} classes); its vocabulary head is gone. Give the language model "
            "it was made from, as load_gpt2 returns it"
        )


def check_float32(gpt2: GPT2) -> None:
    """Raise where a model's weights are of another type than what scores are computed in."""
    other = {parameter.dtype for parameter in gpt2.parameters()} - {torch.float32}
    if other:
        raise ValueError(f"the model's weights are {other.pop()}; scores are computed with float32 ones: model.float()")


def is_plain(gpt2: GPT2) -> bool:
    """Whether all parts of a language model are this library's own and nobody watches them.

    How it is computed is free then; otherwise the model is called as it is.
    """
    embed, head = gpt2.trunk.embed, gpt2.head
    parts: list[tuple[nn.Module, type[nn.Module]]] = [
        (gpt2, GPT2),
        (gpt2.trunk, Trunk),
        (embed, Embedding),
        (embed.token, Table),
        (embed.position, Table),
        (embed.dropout, nn.Dropout),
        (gpt2.trunk.norm, nn.LayerNorm),
        (head, LMHead),
        *((part, Linear) for part in head.children()),
    ]
    usual = all(type(part) is kind and not is_watched(part) for part, kind in parts)
    return usual and all(map(is_own, gpt2.trunk.blocks))


def rows_of_ids(gpt2: GPT2, ids: Ids) -> Tensor:
    """Ids (B, T) on the model's device, of ids (B, T) or (T,).

    Raises:
        ValueError: For ids that the model does not have.
    """
    rows = ids_as_tensor(ids)
    rows = rows if rows.dim() == 2 else rows[None]
    if rows.numel():
        low, high = int(rows.min()), int(rows.max())
        if low < 0 or high >= gpt2.config.vocab_size:
            raise ValueError(
                f"ids run from {low} to {high} but the model's vocabulary has ids 0 to {gpt2.config.vocab_size - 1}; "
                "they are another tokenizer's"
            )
    return rows.to(gpt2.device)
