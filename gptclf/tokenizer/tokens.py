"""Text to token ids and back, as the book has it (Raschka, "Build a Large Language Model (From Scratch)", 5.1.1)."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gptclf.preparation import check_tokenizer, pieces

if TYPE_CHECKING:
    import tiktoken

Ids = Tensor | NDArray[np.integer] | Sequence[int] | Sequence[Sequence[int]]


def text_to_token_ids(text: str, tokenizer: "tiktoken.Encoding", *, special_tokens: bool = False) -> Tensor:
    """The tokens of a text as a batch of one row.

    Args:
        text: The text. Empty text has no tokens; a lone surrogate becomes U+FFFD.
        tokenizer: Most often `model.tokenizer`.
        special_tokens: Let `<|endoftext|>` in the text be the token of that name, as the book does. Otherwise it is
            ordinary characters, as is right for text that somebody else wrote.

    Returns:
        Ids (1, T), int64.

    Example:
        >>> from gptclf import load_gpt2
        >>> tokenizer = load_gpt2("nano").tokenizer
        >>> ids = text_to_token_ids("Every effort moves you", tokenizer)
        >>> token_ids_to_text(ids, tokenizer)
        'Every effort moves you'
    """
    return torch.tensor([encode(text, tokenizer, special_tokens=special_tokens)], dtype=torch.int64)


def token_ids_to_text(ids: Ids, tokenizer: "tiktoken.Encoding") -> str:
    """The text that tokens stand for; bytes that are no UTF-8, as where a character is cut in two, become U+FFFD.

    Args:
        ids: Ids (T,), or (1, T) as `text_to_token_ids` gives them.
        tokenizer: What made them.

    Raises:
        ValueError: For several rows, or ids that the tokenizer does not have.
    """
    check_tokenizer(tokenizer)
    tokens = ids_as_tensor(ids)
    if tokens.dim() == 2 and len(tokens) == 1:
        tokens = tokens[0]
    if tokens.dim() != 1:
        raise ValueError(f"ids has shape {tuple(tokens.shape)}; give one text's tokens, (T,) or (1, T)")
    known: list[int] = tokens.tolist()
    try:
        return tokenizer.decode(known, errors="replace")
    except (KeyError, OverflowError) as error:
        wrong = next((i for i in known if not 0 <= i < tokenizer.n_vocab), error.args[0])
        raise ValueError(
            f"the tokenizer has no token {wrong}; its ids run from 0 to {tokenizer.n_vocab - 1}. The ids are another "
            "tokenizer's, or a model drew one that its tokenizer does not use"
        ) from error


def encode(text: str, tokenizer: "tiktoken.Encoding", *, special_tokens: bool = False) -> list[int]:
    """Token ids of a text of any length; arguments are those of `text_to_token_ids`."""
    check_tokenizer(tokenizer)
    if not isinstance(text, str):
        raise TypeError(f"text is a {type(text).__name__}; it must be a str")
    ids: list[int] = []
    if special_tokens and tokenizer.special_tokens_set:
        # Split before anything is cut into pieces, so that no special token falls between two of them.
        names = sorted(tokenizer.special_tokens_set, key=len, reverse=True)
        for part in re.split(f"({'|'.join(map(re.escape, names))})", text):
            if part in tokenizer.special_tokens_set:
                ids.append(tokenizer.encode_single_token(part))
            else:
                ids += encode(part, tokenizer)
        return ids
    for piece in pieces(text):
        ids += tokenizer.encode_ordinary(piece)
    return ids


def ids_as_tensor(ids: Ids) -> Tensor:
    """Token ids of any kind as an int64 tensor of one or two dimensions.

    Raises:
        TypeError: For what holds no whole numbers.
        ValueError: For rows of different lengths, or more dimensions.
    """
    if isinstance(ids, str | bytes):
        raise TypeError(f"ids is a {type(ids).__name__}; give token ids, such as text_to_token_ids(text, tokenizer)")
    if not isinstance(ids, Tensor | np.ndarray | Sequence):
        raise TypeError(f"ids is a {type(ids).__name__}; give token ids as a tensor, an array or a list")
    try:
        tokens = torch.as_tensor(ids)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"ids cannot be made a tensor of token ids ({error}); rows must be of one length") from error
    if not tokens.numel():
        tokens = tokens.to(torch.int64)  # an empty list has no type
    if tokens.dtype == torch.bool or tokens.is_floating_point() or tokens.is_complex():
        raise TypeError(f"ids holds {tokens.dtype}; token ids are whole numbers")
    if tokens.dim() not in (1, 2):
        raise ValueError(f"ids has shape {tuple(tokens.shape)}; token ids are (T,) or (B, T)")
    return tokens.to(torch.int64)
