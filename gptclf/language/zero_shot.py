"""`zero_shot`: which label's words a language model finds most probable after a text, without fine-tuning."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gptclf.checks import boolean
from gptclf.data.rows import check_texts
from gptclf.gpt2.arithmetic import casting, evaluating
from gptclf.gpt2.attend import masked
from gptclf.gpt2.model import GPT2
from gptclf.language.logits import candidate_log_probs, check_scoring, has_standard_parts
from gptclf.language.scoring import Window, window_log_probs
from gptclf.metrics.finite import check_finite
from gptclf.tokenizer.tokens import encode

logger = logging.getLogger(__name__)

# Tokens of prompts and label words that are computed together.
_TOGETHER = 4096


@dataclass(frozen=True, eq=False, repr=False)
class ZeroShot:
    """A language model's answers for N texts and C labels.

    Attributes:
        classes: The labels, in the order given.
        scores: Log-probability of each label's words after each text (N, C), normalised and calibrated if asked for.
        probabilities: The softmax of the scores over the labels (N, C), as `predict_proba` returns it.
    """

    classes: list[Any]
    scores: NDArray[np.float32]
    probabilities: NDArray[np.float32]

    @property
    def labels(self) -> list[Any]:
        """The most probable label of each text."""
        return [self.classes[i] for i in self.scores.argmax(axis=1)]

    def __repr__(self) -> str:
        return f"ZeroShot({len(self.scores):,} texts, {len(self.classes):,} labels)"


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
    """Classify texts by how probable each label's words are in a template, without training.

    The book's attempt (section 6.4) has the labels `{"spam": "yes", "ham": "no"}` and the template "Is the following
    text 'spam'? Answer with 'yes' or 'no': '{text}'".

    A label's score is the log-probability of its words after the prompt: the sum over its tokens. Longer labels
    therefore tend to score lower.

    Args:
        gpt2: A language model. Small ones are little better than chance; compare with a fine-tuned classifier.
        texts: Strings. If a prompt is longer than the context, its text is cut at the end, never the template or the
            labels; `logging` reports it.
        labels: A list of labels, if each is also its words, or a mapping from labels to their words.
        template: Contains `{text}` once. It may end with `{label}`; otherwise the label follows after a space. A space
            before `{label}` belongs to the label's words, as it does in GPT-2's tokens. Other braces, and all braces
            in the texts, are ordinary characters.
        normalize: Divide each score by its label's number of tokens (Brown et al., 2020), for labels of unequal
            length.
        calibrate: A text without content, such as "N/A". Its scores, which show the labels that the model prefers
            whatever the text says, are subtracted (Zhao et al., 2021, "Calibrate Before Use").
        precision: "auto", "float32" or "bfloat16", as in `predict`.

    Raises:
        TypeError: The model is a classifier, or a label's words are not a string.
        ValueError: The template has no `{text}`, a label has no words, two labels have the same words, or the context
            is too short.

    Example:
        >>> from gptclf import load_gpt2
        >>> answers = zero_shot(load_gpt2("nano"), ["you won a prize", "see you at six"], ["spam", "ham"])
        >>> answers.probabilities.shape, len(answers.labels)
        ((2, 2), 2)
    """
    check_scoring(gpt2, precision)
    classes, words = _words_of(labels)
    before, after, blank = _split_template(template)
    texts, normalize = check_texts(texts), boolean("normalize", normalize)
    if calibrate is not None:
        if not isinstance(calibrate, str):
            raise TypeError(f"calibrate is a {type(calibrate).__name__}; it must be a str without content, or None")
        texts = [*texts, calibrate]
    names = [encode(blank + word, gpt2.tokenizer) for word in words]
    if len(set(map(tuple, names))) < len(names):
        raise ValueError(f"two labels have the same tokens: {words!r}; use words that differ")
    prompts = _prompts(gpt2, texts, before, after, gpt2.config.context_length - max(map(len, names)) + 1)
    scores = (_shared_scores if has_standard_parts(gpt2) else _separate_scores)(gpt2, prompts, names, precision)
    if normalize:
        scores /= torch.tensor([len(name) for name in names], dtype=torch.float32, device="cpu")
    if calibrate is not None:
        scores = scores[:-1] - scores[-1]
    return ZeroShot(classes, scores.numpy(), scores.softmax(dim=1).numpy())


def _words_of(labels: Sequence[str] | Mapping[Any, str]) -> tuple[list[Any], list[str]]:
    """Check the labels and return them and their words."""
    if isinstance(labels, str | bytes) or not isinstance(labels, Sequence | Mapping):
        raise TypeError(f"labels is a {type(labels).__name__}; give a list of labels, or a mapping to their words")
    classes = list(labels)
    words = list(labels.values()) if isinstance(labels, Mapping) else classes
    for label, word in zip(classes, words, strict=True):
        problem = f"the words of label {label!r} are {word!r}"
        if not isinstance(word, str):
            raise TypeError(f"{problem}; they must be a str. Give a mapping from labels to words")
        if not word.strip():
            raise ValueError(f"{problem}; give at least one")
    if len(classes) < 2:
        raise ValueError(f"labels is {classes!r}; give at least 2 labels")
    return classes, words


def _split_template(template: str) -> tuple[str, str, str]:
    """Return the template's parts before and after the text, and the space that belongs to the label, if any."""
    if not isinstance(template, str):
        raise TypeError(f"template is a {type(template).__name__}; it must be a str that contains {{text}}")
    template = template if "{label}" in template else template + " {label}"
    if template.count("{text}") != 1 or template.count("{label}") != 1 or not template.endswith("{label}"):
        rule = "it must contain {text} once, and {label} at the very end or not at all"
        raise ValueError(f"template is {template!r}; {rule}")
    before, after = template.removesuffix("{label}").split("{text}")
    return before, after.removesuffix(" "), " " if after.endswith(" ") else ""


def _prompts(gpt2: GPT2, texts: Sequence[str], before: str, after: str, limit: int) -> list[list[int]]:
    """Return the token ids of each prompt, at most `limit`."""
    tokenizer, context = gpt2.tokenizer, gpt2.config.context_length
    if limit < max(1, len(encode(before + after, tokenizer))):
        raise ValueError(
            f"template and labels alone are longer than the model's {context} tokens of context; shorten them"
        )
    prompts, shortened = [], 0
    for text in texts:
        # An empty prompt becomes one end-of-text token.
        ids = encode(before + text + after, tokenizer) or [tokenizer.eot_token]
        shortened += len(ids) > limit
        kept = encode(text, tokenizer) if len(ids) > limit else []
        while len(ids) > limit:
            # Usually once: joined to the template, the shorter text may have a token more or fewer.
            kept = kept[: max(0, len(kept) - (len(ids) - limit))]
            ids = encode(before + tokenizer.decode(kept, errors="ignore") + after, tokenizer)
        prompts.append(ids)
    if shortened:
        message = "%d of %d texts do not fit into %d tokens with template and labels, and were cut at the end"
        logger.warning(message, shortened, len(texts), context)
    return prompts


def _separate_scores(gpt2: GPT2, prompts: list[list[int]], names: list[list[int]], precision: str) -> Tensor:
    """Compute the scores (N, C), each from a row of its own."""
    windows = [Window(np.array(prompt + name), len(name)) for prompt in prompts for name in names]
    sums = [values.sum(dtype=np.float64) for values in window_log_probs(gpt2, windows, precision)]
    return torch.tensor(sums, dtype=torch.float32, device="cpu").view(len(prompts), len(names))


def _shared_scores(gpt2: GPT2, prompts: list[list[int]], names: list[list[int]], precision: str) -> Tensor:
    """Compute the scores (N, C), each prompt once: all labels follow it side by side and do not see each other."""
    scores = torch.zeros(len(prompts), len(names), dtype=torch.float32, device="cpu")
    extra = sum(len(name) - 1 for name in names)
    groups: list[list[int]] = []
    for i in sorted(range(len(prompts)), key=lambda i: len(prompts[i])):
        if not groups or (len(groups[-1]) + 1) * (len(prompts[i]) + extra) > _TOGETHER:
            groups.append([])
        groups[-1].append(i)
    with evaluating(gpt2) as model, torch.autocast(gpt2.device.type, enabled=False):
        for chosen in groups:
            found = _scores_together(model, [prompts[i] for i in chosen], names, precision)
            check_finite(found, gpt2, "scores")
            scores[chosen] = found.cpu()
    return scores


def _scores_together(gpt2: GPT2, prompts: list[list[int]], names: list[list[int]], precision: str) -> Tensor:
    """Compute the scores (B, C) of prompts that fit into memory together."""
    device, T = gpt2.device, max(map(len, prompts))
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    # A name's last token is only predicted.
    steps = [(c, j, name[j], name[j + 1]) for c, name in enumerate(names) for j in range(len(name) - 1)]
    owner, depth, read, predicted = torch.tensor(steps, dtype=torch.int64, device=device).view(len(steps), 4).T
    B, S = len(prompts), T + len(owner)
    padded = torch.tensor([prompt + [0] * (T - len(prompt)) for prompt in prompts], device=device)
    position = torch.cat([torch.arange(T, device=device).expand(B, T), lengths[:, None] + depth], dim=1)
    sees = torch.ones(S, S, dtype=torch.bool, device=device).tril().repeat(B, 1, 1)
    sees[:, T:, :T] = torch.arange(T, device=device) < lengths[:, None, None]
    sees[:, T:, T:] &= owner == owner[:, None]
    x = gpt2.trunk.embed.token(torch.cat([padded, read.expand(B, -1)], dim=1)) + gpt2.trunk.embed.position(position)
    attend = masked(sees)
    with casting(precision, gpt2):
        for block in gpt2.blocks:
            x = block(x, attend)
    x = gpt2.norm(x)
    last = x[torch.arange(B, device=device), lengths - 1]
    first = torch.tensor([name[0] for name in names], device=device).expand(B, -1)
    scores = candidate_log_probs(gpt2, last, first)
    if len(owner):
        rest = candidate_log_probs(gpt2, x[:, T:].flatten(0, 1), predicted.repeat(B)[:, None])
        scores.index_add_(1, owner, rest.view(B, -1))
    return scores
