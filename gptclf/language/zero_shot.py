"""`zero_shot`: which label's words a language model finds most probable after a text, before any fine-tuning."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from gptclf.data.rows import check_texts
from gptclf.gpt2.arithmetic import answering, arithmetic, resolve_precision
from gptclf.gpt2.model import GPT2
from gptclf.gpt2.trunk import Block
from gptclf.language.checks import check_float32, check_language_model, is_plain
from gptclf.language.scoring import Window, candidate_log_probs, window_log_probs
from gptclf.metrics import check_finite
from gptclf.tokenizer.tokens import encode

logger = logging.getLogger(__name__)

# Prompts and label words that are computed together, in tokens.
_TOGETHER = 4096


@dataclass(frozen=True, eq=False)
class ZeroShot:
    """Answers of a language model to N texts about C labels.

    Attributes:
        classes: The labels, in the order in which they were given.
        scores: Log-probability of each label's words after each text (N, C), normalised and calibrated as asked for.
        probabilities: The scores' softmax over the labels (N, C), as `predict_proba` gives it.
    """

    classes: list[Any]
    scores: NDArray[np.float32]
    probabilities: NDArray[np.float32]

    @property
    def labels(self) -> list[Any]:
        """The most probable label of each text."""
        return [self.classes[i] for i in self.scores.argmax(axis=1)]


def zero_shot(
    gpt2: GPT2,
    texts: Iterable[str],
    labels: Sequence[str] | Mapping[Any, str],
    template: str = "Text: {text}\nCategory: {label}",
    *,
    normalize: bool = False,
    calibrate: str | None = None,
    precision: str = "auto",
) -> ZeroShot:
    """Score labels by the probability of their words in a template, without training.

    The book's attempt (section 6.4) is `{"spam": "yes", "ham": "no"}` for labels, and for a template "Is the following
    text 'spam'? Answer with 'yes' or 'no': '{text}'".

    A label's score is the sum of its tokens' log-probabilities after the prompt, that is the log-probability of its
    words: of two names the longer one mostly has the lower.

    Args:
        gpt2: A language model. Small ones answer little better than chance; compare with a fine-tuned classifier.
        texts: Strings. Where the prompt is longer than the context, the text loses tokens from its tail, which is
            reported through `logging`; template and labels lose none.
        labels: Labels that are their own words, or a mapping from labels to the words that stand for them.
        template: Holds `{text}` once, and may end with `{label}`, which else follows after a blank. A blank before
            `{label}` belongs to the words, as it does in GPT-2's tokens. Other braces are ordinary characters, and so
            are all in the texts.
        normalize: Divide each score by its label's number of tokens (Brown et al., 2020), for names of unlike length.
        calibrate: A text without content, such as "N/A", whose scores are subtracted: it shows how much a label is
            preferred whatever the text says (Zhao et al., 2021, "Calibrate Before Use").
        precision: "auto", "float32" or "bfloat16", as in `predict`.

    Raises:
        TypeError: For a classifier, or labels that are no strings.
        ValueError: For a template without `{text}`, labels without or with equal words, or a context too short.

    Example:
        >>> from gptclf import load_gpt2
        >>> answers = zero_shot(load_gpt2("nano"), ["you won a prize", "see you at six"], ["spam", "ham"])
        >>> answers.probabilities.shape, len(answers.labels)
        ((2, 2), 2)
    """
    check_language_model(gpt2)
    resolve_precision(precision, gpt2)
    check_float32(gpt2)
    classes, words = _words_of(labels)
    before, after, blank = _split_template(template)
    texts = check_texts(texts)
    if calibrate is not None:
        if not isinstance(calibrate, str):
            raise TypeError(f"calibrate is a {type(calibrate).__name__}; it must be a text without content, or None")
        texts = [*texts, calibrate]
    names = [encode(blank + word, gpt2.tokenizer) for word in words]
    if len(set(map(tuple, names))) < len(names):
        raise ValueError(f"two labels have the same tokens: {words!r}; nothing could tell them apart")
    prompts = _prompts(gpt2, texts, before, after, gpt2.config.context_length - max(map(len, names)) + 1)
    score = _shared_scores if is_plain(gpt2) else _separate_scores
    scores = score(gpt2, prompts, names, precision)
    if normalize:
        scores /= torch.tensor([len(name) for name in names])
    if calibrate is not None:
        scores = scores[:-1] - scores[-1]
    return ZeroShot(classes, scores.numpy(), scores.softmax(dim=1).numpy())


def _words_of(labels: Sequence[str] | Mapping[Any, str]) -> tuple[list[Any], list[str]]:
    """Labels and their words, checked."""
    if isinstance(labels, str | bytes) or not isinstance(labels, Sequence | Mapping):
        raise TypeError(f"labels is a {type(labels).__name__}; give a list of labels, or a mapping to their words")
    classes = list(labels)
    words = list(labels.values()) if isinstance(labels, Mapping) else classes
    for label, word in zip(classes, words, strict=True):
        if not isinstance(word, str):
            raise TypeError(
                f"label {label!r} has {word!r} for words; they must be a str. Give a mapping from labels to words"
            )
        if not word.strip():
            raise ValueError(f"label {label!r} has no words; there is nothing to score")
    if len(set(words)) < len(words):
        raise ValueError(f"two labels have the same words: {words!r}; nothing could tell them apart")
    if len(classes) < 2:
        raise ValueError(f"labels is {classes!r}; with fewer than 2 there is nothing to choose")
    return classes, words


def _split_template(template: str) -> tuple[str, str, str]:
    """What stands before the text and after it, and the blank, if any, that belongs to the label."""
    if not isinstance(template, str):
        raise TypeError(f"template is a {type(template).__name__}; it must be a str that holds {{text}}")
    template = template if "{label}" in template else template + " {label}"
    if template.count("{text}") != 1 or template.count("{label}") != 1 or not template.endswith("{label}"):
        raise ValueError(
            f"template is {template!r}; it must hold {{text}} once, and {{label}} at its very end or not at all"
        )
    before, after = template.removesuffix("{label}").split("{text}")
    if not after.endswith(" "):
        return before, after, ""
    return before, after.removesuffix(" "), " "


def _prompts(gpt2: GPT2, texts: Sequence[str], before: str, after: str, limit: int) -> list[list[int]]:
    """Token ids of each prompt, at most `limit`."""
    tokenizer = gpt2.tokenizer
    if limit < max(1, len(encode(before + after, tokenizer))):
        raise ValueError(
            f"template and labels alone are longer than the model's context of {gpt2.config.context_length} tokens"
        )
    prompts, shortened = [], 0
    for text in texts:
        # An empty prompt is one end of text.
        ids = encode(before + text + after, tokenizer) or [tokenizer.eot_token]
        shortened += len(ids) > limit
        kept = encode(text, tokenizer) if len(ids) > limit else []
        while len(ids) > limit:
            # Once, as a rule: joined to the template, a shorter text can come to a token more or less.
            kept = kept[: max(0, len(kept) - (len(ids) - limit))]
            ids = encode(before + tokenizer.decode(kept, errors="ignore") + after, tokenizer)
        prompts.append(ids)
    if shortened:
        logger.warning(
            "%d of %d texts do not fit into %d tokens with template and labels, and lost their tail",
            shortened,
            len(texts),
            gpt2.config.context_length,
        )
    return prompts


def _separate_scores(gpt2: GPT2, prompts: list[list[int]], names: list[list[int]], precision: str) -> Tensor:
    """Scores (N, C), each of a row of its own."""
    windows = [Window(np.array(prompt + name), len(name)) for prompt in prompts for name in names]
    sums = [values.sum(dtype=np.float64) for values in window_log_probs(gpt2, windows, precision)]
    return torch.tensor(sums, dtype=torch.float32).view(len(prompts), len(names))


def _shared_scores(gpt2: GPT2, prompts: list[list[int]], names: list[list[int]], precision: str) -> Tensor:
    """Scores (N, C), each prompt computed once and followed by all labels side by side, which do not see each other."""
    scores = torch.zeros(len(prompts), len(names))
    extra = sum(len(name) - 1 for name in names)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    start = 0
    with answering(gpt2), torch.autocast(gpt2.device.type, enabled=False):
        while start < len(order):
            end = start + 1
            while end < len(order) and (end + 1 - start) * (len(prompts[order[end]]) + extra) <= _TOGETHER:
                end += 1
            chosen = order[start:end]
            found = _scores_together(gpt2, [prompts[i] for i in chosen], names, precision)
            check_finite(found, gpt2, "scores")
            scores[chosen] = found.cpu()
            start = end
    return scores


def _scores_together(gpt2: GPT2, prompts: list[list[int]], names: list[list[int]], precision: str) -> Tensor:
    device, T = gpt2.device, max(map(len, prompts))
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    # The last token of a name is only predicted.
    owner = torch.tensor([c for c, name in enumerate(names) for _ in name[1:]], dtype=torch.int64, device=device)
    read = torch.tensor([i for name in names for i in name[:-1]], dtype=torch.int64, device=device)
    depth = torch.tensor([j for name in names for j in range(len(name) - 1)], dtype=torch.int64, device=device)
    predicted = torch.tensor([i for name in names for i in name[1:]], dtype=torch.int64, device=device)
    B, S = len(prompts), T + len(owner)
    padded = torch.tensor([prompt + [0] * (T - len(prompt)) for prompt in prompts], device=device)
    position = torch.cat([torch.arange(T, device=device).expand(B, T), lengths[:, None] + depth], dim=1)
    sees = torch.ones(S, S, dtype=torch.bool, device=device).tril().repeat(B, 1, 1)
    sees[:, T:, :T] = torch.arange(T, device=device) < lengths[:, None, None]
    sees[:, T:, T:] &= owner == owner[:, None]
    embed = gpt2.trunk.embed
    x = embed.token.weight[torch.cat([padded, read.expand(B, -1)], dim=1)] + embed.position.weight[position]
    with arithmetic(precision, gpt2):
        for block in gpt2.trunk.blocks:
            assert isinstance(block, Block)
            x = _advance(block, x, sees)
    x = gpt2.trunk.norm(x)
    last = x[torch.arange(B, device=device), lengths - 1]
    first = torch.tensor([name[0] for name in names], device=device).expand(B, -1)
    scores = candidate_log_probs(gpt2, last, first)
    if len(owner):
        rest = candidate_log_probs(gpt2, x[:, T:].flatten(0, 1), predicted.repeat(B)[:, None])
        scores.index_add_(1, owner, rest.view(B, -1))
    return scores


def _advance(block: Block, x: Tensor, sees: Tensor) -> Tensor:
    """`Block.forward` with an attention mask (B, T, T): true where a token sees another."""
    attention = block.attention
    B, T, D = x.shape
    q, k, v = attention.qkv(block.norm1(x)).view(B, T, 3, attention.n_heads, -1).permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=sees[:, None], scale=attention.scale)
    x = x + attention.out(mixed.transpose(1, 2).reshape(B, T, D))
    return x + block.mlp(block.norm2(x))  # type: ignore[no-any-return]
