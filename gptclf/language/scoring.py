"""How probable a language model finds a text: log-probabilities of its tokens, and perplexity.

A text longer than the context is read in windows that overlap; each token is counted once, in the first window that
holds it, so that it has at least `context_length - stride` tokens before it.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gptclf.data.rows import check_source, check_text
from gptclf.features.frozen_prefix import SLAB_TOKENS, slabs
from gptclf.gpt2.arithmetic import answering, arithmetic, product_dtype, resolve_precision
from gptclf.gpt2.model import GPT2
from gptclf.gpt2.packed import advance, embed, runs_of
from gptclf.language.checks import check_float32, check_language_model, is_plain, rows_of_ids
from gptclf.language.sampling import whole
from gptclf.metrics import check_finite
from gptclf.tokenizer.tokens import Ids, encode

# Hidden states whose logits are computed at once: V numbers for each.
_LOGIT_ROWS = 256


@dataclass(frozen=True)
class Window:
    """Neighbouring tokens of a text, of which the last are scored.

    Attributes:
        ids: One token more than the model reads: the last is only predicted.
        scored: How many tokens from the end are scored, each given all before it in the window.
    """

    ids: NDArray[np.int64]
    scored: int


def token_log_probs(
    gpt2: GPT2,
    text: str | Ids,
    *,
    start: bool = True,
    stride: int | None = None,
    precision: str = "float32",
) -> NDArray[np.float32]:
    """Natural logarithm of each token's probability given the tokens before it.

    The mean loss of a language model is minus the mean of these. For inputs and targets that are one token apart, as in
    the book (section 5.1.2), give the inputs with the last target behind them and `start=False`.

    Args:
        gpt2: A language model, as `load_gpt2` returns it.
        text: A string, in which `<|endoftext|>` is ordinary characters, or token ids (T,) or (B, T).
        start: Read an `<|endoftext|>` before the text, as stood between documents in GPT-2's training, so that the
            first token has a probability, too. False leaves the first token out.
        stride: Tokens by which windows move on where a text is longer than the context; half the context length if
            None. Fewer give tokens more context, and take longer.
        precision: "float32", "bfloat16" or "auto". The vocabulary's product always is float32: a logit of GPT-2 is
            about -100, which bfloat16 would round to halves.

    Returns:
        (T,), or (T - 1,) with `start=False`; (B, T) or (B, T - 1) for ids (B, T). Empty text has no tokens.

    Raises:
        TypeError: For a classifier, or a text that is neither.
        ValueError: For ids that the model does not have, or a stride that is longer than the context.

    Example:
        >>> from gptclf import load_gpt2
        >>> gpt2 = load_gpt2("nano")
        >>> log_probs = token_log_probs(gpt2, "Every effort moves you")
        >>> log_probs.shape, bool((log_probs < 0).all())
        ((6,), True)
    """
    check_language_model(gpt2)
    stride = _check_reading(gpt2, stride, precision)
    ids = rows_of_ids(gpt2, encode(text, gpt2.tokenizer) if isinstance(text, str) else text)
    rows = [_started(gpt2, row, start) for row in ids.cpu().numpy()]
    windows = [list(windows_of(row, gpt2.config.context_length, stride)) for row in rows]
    found = window_log_probs(gpt2, [window for some in windows for window in some], precision)
    values = np.concatenate([np.zeros(0, dtype=np.float32), *found])
    one = isinstance(text, str) or np.ndim(text) == 1
    return values if one else values.reshape(len(ids), max(0, ids.shape[1] - (not start)))


def perplexity(
    gpt2: GPT2,
    text: str | Iterable[str],
    *,
    start: bool = True,
    stride: int | None = None,
    precision: str = "float32",
) -> float:
    """Perplexity of a text or of a corpus: exp of the mean negative log-probability of its tokens.

    In a corpus every text stands for itself, and every token counts alike: the sum over all tokens is divided once.
    Texts are read as they come and not kept; empty ones count for nothing.

    Args:
        gpt2: A language model.
        text: A string, or strings.
        start: As in `token_log_probs`, like the rest.
        stride: As in `token_log_probs`.
        precision: As in `token_log_probs`.

    Raises:
        ValueError: Where there is no token to score.

    Example:
        >>> from gptclf import GPT2Config, load_gpt2
        >>> gpt2 = load_gpt2("nano")
        >>> perplexity(gpt2, ["Every effort", "moves you"]) > 1
        True
    """
    check_language_model(gpt2)
    stride = _check_reading(gpt2, stride, precision)
    if not isinstance(text, str):
        check_source(text)
    texts = [text] if isinstance(text, str) else (check_text(one, i) for i, one in enumerate(text))
    rows = (_started(gpt2, np.array(encode(one, gpt2.tokenizer), dtype=np.int64), start) for one in texts)
    windows = (window for row in rows for window in windows_of(row, gpt2.config.context_length, stride))
    total, count = 0.0, 0
    for group in _grouped(windows):
        for log_probs in window_log_probs(gpt2, group, precision):
            total += float(log_probs.sum(dtype=np.float64))
            count += len(log_probs)
    if not count:
        hint = "" if start else "; with start=False the first token of a text is not scored"
        raise ValueError(f"there is no token to score{hint}")
    loss = -total / count
    return math.exp(loss) if loss < 709 else math.inf


def windows_of(ids: NDArray[np.int64], context_length: int, stride: int) -> Iterator[Window]:
    """Windows over a text's tokens, of which the first is only read, that score each other token once."""
    scored = 1
    for begin in range(0, len(ids), stride):
        end = min(begin + context_length + 1, len(ids))
        if end > scored:
            yield Window(ids[begin:end], end - scored)
            scored = end
        if end == len(ids):
            return


def window_log_probs(gpt2: GPT2, windows: Sequence[Window], precision: str) -> list[NDArray[np.float32]]:
    """Log-probabilities of the scored tokens of each window."""
    lengths = np.array([len(window.ids) - 1 for window in windows], dtype=np.int64)
    order = np.argsort(lengths, kind="stable")
    found: list[NDArray[np.float32]] = [np.zeros(0, dtype=np.float32)] * len(windows)
    plain = is_plain(gpt2)
    with answering(gpt2), torch.autocast(gpt2.device.type, enabled=False):
        for slab in slabs(lengths[order], None if plain else 1):
            chosen = [windows[i] for i in order[slab]]
            values = (
                _slab_log_probs(gpt2, chosen, precision) if plain else _called_log_probs(gpt2, chosen[0], precision)
            )
            check_finite(values, gpt2, "log-probabilities")
            parts = torch.split(values.cpu(), [window.scored for window in chosen])
            for i, part in zip(order[slab], parts, strict=True):
                found[i] = part.numpy()
    return found


def candidate_log_probs(gpt2: GPT2, hidden: Tensor, candidates: Tensor) -> Tensor:
    """Log-probabilities (N, K) of candidates (N, K) for the token after each hidden state (N, D), in float32."""
    found = []
    for some, ids in zip(torch.split(hidden, _LOGIT_ROWS), torch.split(candidates, _LOGIT_ROWS), strict=True):
        logits = gpt2.head.project(some)
        found.append(logits.gather(1, ids) - logits.logsumexp(dim=1, keepdim=True))
    return torch.cat(found)


def _slab_log_probs(gpt2: GPT2, windows: list[Window], precision: str) -> Tensor:
    """Scores (N,) of windows of rising length, their tokens packed."""
    ids = torch.from_numpy(np.concatenate([window.ids[:-1] for window in windows])).to(gpt2.device)
    lengths = np.array([len(window.ids) - 1 for window in windows])
    runs, dtype = runs_of(lengths), product_dtype(precision, gpt2, len(ids))
    x = embed(gpt2.trunk.embed, ids, runs, capacity=len(ids))
    for block in gpt2.trunk.blocks:
        advance(block, x, runs, dtype)
    ends = zip(np.cumsum(lengths), windows, strict=True)
    scored = np.concatenate([np.arange(end - window.scored, end) for end, window in ends])
    hidden = gpt2.trunk.norm(x[torch.from_numpy(scored).to(x.device)])
    targets = np.concatenate([window.ids[-window.scored :] for window in windows])
    return candidate_log_probs(gpt2, hidden, torch.from_numpy(targets).to(x.device)[:, None])[:, 0]


def _called_log_probs(gpt2: GPT2, window: Window, precision: str) -> Tensor:
    """Scores of one window by a model that is called as it is."""
    ids = torch.from_numpy(window.ids).to(gpt2.device)
    with arithmetic(precision, gpt2):
        logits = gpt2(ids[None, :-1])[0, -window.scored :].float()
    targets = ids[-window.scored :, None]
    log_probs: Tensor = logits.gather(1, targets) - logits.logsumexp(dim=1, keepdim=True)
    return log_probs[:, 0]


def _grouped(windows: Iterable[Window]) -> Iterator[list[Window]]:
    """Windows in groups that are worth computing together."""
    group: list[Window] = []
    tokens = 0
    for window in windows:
        group.append(window)
        tokens += len(window.ids)
        if tokens >= SLAB_TOKENS:
            yield group
            group, tokens = [], 0
    yield group


def _started(gpt2: GPT2, ids: NDArray[np.int64], start: bool) -> NDArray[np.int64]:
    return np.concatenate([[gpt2.tokenizer.eot_token], ids]) if start else ids


def _check_reading(gpt2: GPT2, stride: int | None, precision: str) -> int:
    """The stride that None stands for, checked."""
    resolve_precision(precision, gpt2)
    check_float32(gpt2)
    context = gpt2.config.context_length
    if stride is None:
        return max(1, context // 2)
    stride = whole("stride", stride, 1)
    if stride > context:
        raise ValueError(
            f"stride is {stride} but the context length is {context}; tokens between windows would be lost"
        )
    return stride
