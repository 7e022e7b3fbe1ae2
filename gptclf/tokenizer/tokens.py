"""Text to token ids and back, as in Raschka, "Build a Large Language Model (From Scratch)", section 5.1.1."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gptclf.checks import boolean

if TYPE_CHECKING:
    import tiktoken

Ids = Tensor | NDArray[np.integer] | Sequence[int] | Sequence[Sequence[int]]

# The most characters encoded at once. The tokenizer's regular expression keeps a stack, which a run of about 500,000
# spaces overflows.
PIECE = 250_000


def text_to_token_ids(text: str, tokenizer: "tiktoken.Encoding", *, special_tokens: bool = False) -> Tensor:
    """Encode a text as a batch of one row.

    Args:
        text: The text. Empty text has no tokens; a lone surrogate becomes U+FFFD.
        tokenizer: The encoding, usually `model.tokenizer`.
        special_tokens: Encode `<|endoftext|>` in the text as the special token of that name, as the book does. By
            default it is ordinary characters, which is right for text from users.

    Returns:
        Ids (1, T), int64.

    Example:
        >>> from gptclf import load_gpt2
        >>> tokenizer = load_gpt2("nano").tokenizer
        >>> ids = text_to_token_ids("Every effort moves you", tokenizer)
        >>> token_ids_to_text(ids, tokenizer)
        'Every effort moves you'
    """
    return torch.tensor([encode(text, tokenizer, special_tokens=special_tokens)], dtype=torch.int64, device="cpu")


def token_ids_to_text(ids: Ids, tokenizer: "tiktoken.Encoding") -> str:
    """Decode one text; bytes that are not valid UTF-8, such as half a character, become U+FFFD.

    Args:
        ids: Ids (T,), or (1, T) as `text_to_token_ids` returns them.
        tokenizer: The encoding that made them.

    Raises:
        TypeError: If `ids` does not hold integers.
        ValueError: If there are several rows, or the tokenizer lacks an id.
    """
    check_tokenizer(tokenizer)
    tokens = ids_as_tensor(ids)
    if tokens.dim() == 2 and len(tokens) != 1:
        raise ValueError(f"ids has shape {tuple(tokens.shape)}; give one text's tokens, (T,) or (1, T)")
    known: list[int] = tokens.flatten().tolist()
    try:
        return tokenizer.decode(known, errors="replace")
    except (KeyError, OverflowError) as error:
        wrong = next((i for i in known if not 0 <= i < tokenizer.n_vocab), error.args[0])
        problem = f"the tokenizer has no token {wrong}; its ids run from 0 to {tokenizer.n_vocab - 1}"
        reason = "from another tokenizer, or from a model whose vocabulary is larger than its tokenizer's"
        raise ValueError(f"{problem}. The ids are {reason}") from error


def encode(text: str, tokenizer: "tiktoken.Encoding", *, special_tokens: bool = False) -> list[int]:
    """Return the token ids of a text of any length; the arguments are those of `text_to_token_ids`."""
    check_tokenizer(tokenizer)
    if not isinstance(text, str):
        raise TypeError(f"text is a {type(text).__name__}; it must be a str")
    if boolean("special_tokens", special_tokens) and tokenizer.special_tokens_set:
        # Split here first, so that no special token is cut in two by `pieces`.
        names = sorted(tokenizer.special_tokens_set, key=len, reverse=True)
        ids: list[int] = []
        for part in re.split(f"({'|'.join(map(re.escape, names))})", text):
            ids += [tokenizer.encode_single_token(part)] if part in names else encode(part, tokenizer)
        return ids
    parts = [text] if getattr(tokenizer, "cuts_texts", False) else pieces(text)
    return [token for part in parts for token in tokenizer.encode_ordinary(part)]


def pieces(text: str) -> list[str]:
    """Split a text into pieces of at most `PIECE` characters that have the same tokens as the whole.

    A text is cut before a space that does not follow other white space: GPT-2's pattern always ends a token there. If
    half a piece has no such place, it is not natural language and is cut at the limit.
    """
    parts, start = [], 0
    while len(text) - start > PIECE:
        end = start + PIECE
        window = range(end, end - PIECE // 2, -1)
        place = next((i for i in window if text[i] == " " and not text[i - 1].isspace()), end)
        parts.append(text[start:place])
        start = place
    return [*parts, text[start:]]


def ids_as_tensor(ids: Ids) -> Tensor:
    """Return token ids of any kind as an int64 tensor of one or two dimensions.

    Raises:
        TypeError: If `ids` does not hold integers.
        ValueError: If the rows differ in length, or there are more dimensions.
    """
    if isinstance(ids, str | bytes) or not isinstance(ids, Tensor | np.ndarray | Sequence):
        kinds = "a tensor, an array or a list, such as text_to_token_ids(text, tokenizer)"
        raise TypeError(f"ids is a {type(ids).__name__}; give token ids as {kinds}")
    try:
        tokens = ids if isinstance(ids, Tensor) else torch.as_tensor(ids, device="cpu")
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"ids cannot be made a tensor of token ids ({error}); rows must be of one length") from error
    integers = tokens.dtype != torch.bool and not tokens.is_floating_point() and not tokens.is_complex()
    if tokens.numel() and not integers:  # an empty list has no type
        raise TypeError(f"ids holds {tokens.dtype}; token ids are integers")
    if tokens.dim() not in (1, 2):
        raise ValueError(f"ids has shape {tuple(tokens.shape)}; token ids are (T,) or (B, T)")
    return tokens.to(torch.int64)


def check_tokenizer(tokenizer: object) -> None:
    """Raise a TypeError if `tokenizer` is not a `tiktoken.Encoding`."""
    import tiktoken

    if not isinstance(tokenizer, tiktoken.Encoding):
        raise TypeError(f"tokenizer is a {type(tokenizer).__name__}; give a tiktoken.Encoding, such as model.tokenizer")


def check_same_tokenizer(ours: "tiktoken.Encoding", theirs: "tiktoken.Encoding") -> None:
    """Raise a ValueError if texts encoded by `theirs` have other ids under `ours`, the model's tokenizer."""
    if ours is theirs:
        return
    tokens = ours.token_byte_values()
    same = ours.n_vocab == theirs.n_vocab and tokens == theirs.token_byte_values()
    same = same and all(getattr(ours, name, None) == getattr(theirs, name, None) for name in ("added", "prefix_space"))
    if not same or any(ours.encode_single_token(t) != theirs.encode_single_token(t) for t in tokens):
        problem = f"another tokenizer ({theirs.n_vocab} tokens) than the model's ({ours.n_vocab})"
        raise ValueError(f"the texts were encoded with {problem}; build the data set with tokenizer=model.tokenizer")
