"""`token_log_probs` and `perplexity`: how probable a language model finds a text.

A text longer than the context is read in overlapping windows. Each token is scored once, in the first window that
holds it, and so has at least `context_length - stride` tokens before it.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gptclf.checks import boolean, integer
from gptclf.data.rows import check_source, check_text
from gptclf.gpt2.arithmetic import arithmetic_for, casting, evaluating
from gptclf.gpt2.model import GPT2
from gptclf.gpt2.packed import CHUNK_TOKENS, advance, chunks_of, embed, row_groups
from gptclf.language.logits import candidate_log_probs, check_scoring, has_standard_parts, picked_log_probs, rows_of_ids
from gptclf.metrics.finite import check_finite
from gptclf.tokenizer.tokens import Ids, encode


class Window(NamedTuple):
    """Neighbouring tokens of a text, the last of which are scored.

    Attributes:
        ids: One token more than the model reads: the last is only predicted.
        scored: Number of tokens scored, counted from the end, each given all tokens before it in the window.
    """

    ids: NDArray[np.int64]
    scored: int


def token_log_probs(
    gpt2: GPT2, text: str | Ids, *, start: bool = True, stride: int | None = None, precision: str = "float32"
) -> NDArray[np.float32]:
    """Return the natural logarithm of each token's probability given the tokens before it.

    A language model's mean loss is minus their mean. For inputs and targets one token apart, as in the book (section
    5.1.2), give the inputs followed by the last target, and `start=False`.

    Args:
        gpt2: A language model, as `load_gpt2` returns it.
        text: A string, in which `<|endoftext|>` is ordinary characters, or token ids (T,) or (B, T).
        start: Read an `<|endoftext|>` before the text, as it separated documents in GPT-2's training, so that the
            first token also has a probability. False leaves the first token out.
        stride: Tokens from one window to the next if a text is longer than the context; None is half the context
            length. A smaller stride gives tokens more context and takes longer.
        precision: "float32", "bfloat16" or "auto". The product with the vocabulary matrix is always float32: GPT-2's
            logits are about -100, where bfloat16 numbers are 0.5 apart.

    Returns:
        (T,), or (T - 1,) with `start=False`; for ids (B, T), (B, T) or (B, T - 1). Empty text has no tokens.

    Raises:
        TypeError: The model is a classifier, or `text` is neither a string nor ids.
        ValueError: The model lacks an id, or the stride is longer than the context.

    Example:
        >>> from gptclf import load_gpt2
        >>> gpt2 = load_gpt2("nano")
        >>> log_probs = token_log_probs(gpt2, "Every effort moves you")
        >>> log_probs.shape, bool((log_probs < 0).all())
        ((6,), True)
    """
    start, stride = boolean("start", start), _check_reading(gpt2, stride, precision)
    ids = rows_of_ids(gpt2, encode(text, gpt2.tokenizer) if isinstance(text, str) else text)
    rows = [_started(gpt2, row, start) for row in ids.cpu().numpy()]
    windows = [window for row in rows for window in windows_of(row, gpt2.config.context_length, stride)]
    values = np.concatenate([np.zeros(0, dtype=np.float32), *window_log_probs(gpt2, windows, precision)])
    one = isinstance(text, str) or np.ndim(text) == 1
    return values if one else values.reshape(len(ids), max(0, ids.shape[1] - (not start)))


def perplexity(
    gpt2: GPT2, text: str | Iterable[str], *, start: bool = True, stride: int | None = None, precision: str = "float32"
) -> float:
    """Return the perplexity of a text or a corpus: exp of the mean negative log-probability of its tokens.

    The texts of a corpus are scored independently. Every token counts equally: the mean is taken once, over all tokens.
    Texts are read as they come and not kept; empty ones have no effect.

    Args:
        gpt2: A language model.
        text: A string, or strings.
        start: As in `token_log_probs`.
        stride: As in `token_log_probs`.
        precision: As in `token_log_probs`.

    Raises:
        ValueError: There is no token to score.

    Example:
        >>> from gptclf import load_gpt2
        >>> gpt2 = load_gpt2("nano")
        >>> perplexity(gpt2, ["Every effort", "moves you"]) > 1
        True
    """
    start, stride = boolean("start", start), _check_reading(gpt2, stride, precision)
    texts = [text] if isinstance(text, str) else text
    check_source(texts)
    rows = (_started(gpt2, encode(check_text(one, f"text {i}"), gpt2.tokenizer), start) for i, one in enumerate(texts))
    windows = (window for row in rows for window in windows_of(row, gpt2.config.context_length, stride))
    total, count = 0.0, 0
    for group in _grouped(windows):
        for log_probs in window_log_probs(gpt2, group, precision):
            total += float(log_probs.sum(dtype=np.float64))
            count += len(log_probs)
    if not count:
        hint = "" if start else "; with start=False the first token of a text is not scored"
        raise ValueError(f"text has no token to score{hint}")
    loss = -total / count
    return math.exp(loss) if loss < 709 else math.inf


def windows_of(ids: NDArray[np.int64], context_length: int, stride: int) -> Iterator[Window]:
    """Yield windows over a text's tokens that score each token once, except the first, which is only read."""
    scored = 1
    for begin in range(0, len(ids), stride):
        end = min(begin + context_length + 1, len(ids))
        if end > scored:
            yield Window(ids[begin:end], end - scored)
            scored = end
        if end == len(ids):
            return


def window_log_probs(gpt2: GPT2, windows: Sequence[Window], precision: str) -> list[NDArray[np.float32]]:
    """Return the log-probabilities of the scored tokens of each window."""
    lengths = np.array([len(window.ids) - 1 for window in windows], dtype=np.int64)
    order = np.argsort(lengths, kind="stable")
    found: list[Tensor] = []  # in the order of `order`
    standard = has_standard_parts(gpt2)
    with evaluating(gpt2) as model, torch.autocast(gpt2.device.type, enabled=False):
        for chunk in chunks_of(lengths[order], None if standard else 1):
            chosen = [windows[i] for i in order[chunk]]
            values = (_packed_log_probs if standard else _called_log_probs)(model, chosen, precision)
            check_finite(values, gpt2, "log-probabilities")
            found += torch.split(values.cpu(), [window.scored for window in chosen])
    return [found[i].numpy() for i in np.argsort(order)]


def _packed_log_probs(gpt2: GPT2, windows: list[Window], precision: str) -> Tensor:
    """Compute the scores (N,) of windows sorted by length, with their tokens packed."""
    ids = torch.from_numpy(np.concatenate([window.ids[:-1] for window in windows])).to(gpt2.device)
    lengths = np.array([len(window.ids) - 1 for window in windows])
    groups, arithmetic = row_groups(lengths), arithmetic_for(precision, gpt2, len(ids))
    x = embed(gpt2.embed, ids, groups, capacity=len(ids), width=gpt2.config.emb_dim)
    for block in gpt2.blocks:
        advance(block, x, groups, arithmetic)
    ends = zip(np.cumsum(lengths), windows, strict=True)
    scored = np.concatenate([np.arange(end - window.scored, end) for end, window in ends])
    hidden = gpt2.norm(x[torch.from_numpy(scored).to(x.device)])
    targets = np.concatenate([window.ids[-window.scored :] for window in windows])
    return candidate_log_probs(gpt2, hidden, torch.from_numpy(targets).to(x.device)[:, None])[:, 0]


def _called_log_probs(gpt2: GPT2, windows: list[Window], precision: str) -> Tensor:
    """Compute the scores (N,) of one window by a plain call of the model."""
    (window,) = windows
    ids = torch.from_numpy(window.ids).to(gpt2.device)
    with casting(precision, gpt2):
        logits = gpt2(ids[None, :-1])[0, -window.scored :].float()
    return picked_log_probs(logits, ids[-window.scored :, None])[:, 0]


def _grouped(windows: Iterable[Window]) -> Iterator[list[Window]]:
    """Yield groups of windows, each large enough to be computed together efficiently."""
    group: list[Window] = []
    tokens = 0
    for window in windows:
        group.append(window)
        tokens += len(window.ids)
        if tokens >= CHUNK_TOKENS:
            yield group
            group, tokens = [], 0
    yield group


def _started(gpt2: GPT2, ids: Sequence[int] | NDArray[np.int64], start: bool) -> NDArray[np.int64]:
    return np.asarray(np.concatenate([[gpt2.tokenizer.eot_token], ids]) if start else ids, dtype=np.int64)


def _check_reading(gpt2: GPT2, stride: int | None, precision: str) -> int:
    """Check a model, a stride and a precision, and return the stride to use."""
    check_scoring(gpt2, precision)
    context = gpt2.config.context_length
    stride = integer("stride", max(1, context // 2) if stride is None else stride, 1)
    if stride > context:
        raise ValueError(f"stride is {stride}; it must be at most {context}, the context length, to skip no token")
    return stride
