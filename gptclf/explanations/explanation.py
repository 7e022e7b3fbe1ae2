"""`Explanation`: what each token and word of a text contributed to an output."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptclf import checks
from gptclf.explanations import html
from gptclf.explanations.integrated import gap
from gptclf.explanations.results import json_label
from gptclf.explanations.spans import Span
from gptclf.plotting import data_frame, plot_words


@dataclass(frozen=True, eq=False, repr=False)
class Explanation:
    """What each token and each word of a text contributed to one output of a classifier.

    An attribution is in units of that output, the logit: positive if the token speaks for the target.

    Attributes:
        text: The text, as the tokenizer reads it: a lone surrogate is U+FFFD.
        method: "integrated_gradients" or "leave_one_out".
        target: The class that is explained; for a task without classes, the number of the output.
        prediction: The model's answer.
        probability: The target's probability, or None if the task has none.
        output: The target's logit.
        tokens: The characters of each token that was read. A token that is a part of a character shows all of it.
        token_spans: Their places in the text, as `text[start:end]`.
        token_attributions: One number per token.
        token_words: The number of the word that each token belongs to.
        words: The words that were read: characters without white space between them.
        word_spans: Their places in the text.
        word_attributions: One number per word: the sum of its tokens, or if one was left out at a time, the effect of
            the whole word.
        baseline: What the text was compared with: "end_of_text" or "zeros"; None if one was left out at a time.
        baseline_output: The baseline's logit, or None.
        n_steps: The number of points on the way from the baseline to the text, or None.
        truncated: Whether a part of the text was too long to be read.
    """

    text: str
    method: str
    target: Any
    prediction: Any
    probability: float | None
    output: float
    tokens: list[str]
    token_spans: list[Span]
    token_attributions: NDArray[np.float64]
    token_words: list[int]
    words: list[str]
    word_spans: list[Span]
    word_attributions: NDArray[np.float64]
    baseline: str | None
    baseline_output: float | None
    n_steps: int | None
    truncated: bool

    @property
    def gap(self) -> float | None:
        """By how much the attributions miss `output - baseline_output`; 0 is exact. None without a baseline."""
        return None if self.baseline_output is None else self._gap(self.baseline_output)[0]

    @property
    def relative_gap(self) -> float | None:
        """The size of the gap as a share of `output - baseline_output`."""
        return None if self.baseline_output is None else self._gap(self.baseline_output)[1]

    def _gap(self, baseline_output: float) -> tuple[float, float]:
        return gap(self.token_attributions, (baseline_output, self.output))

    def to_dict(self) -> dict[str, Any]:
        """Return everything as values that JSON has: tokens and words as lists of text, start, end and attribution."""
        found = {name.name: getattr(self, name.name) for name in dataclasses.fields(self)}
        for kind in ("token", "word"):
            texts, spans = found.pop(f"{kind}s"), found.pop(f"{kind}_spans")
            numbers = found.pop(f"{kind}_attributions").tolist()
            found[f"{kind}s"] = [
                {"text": text, "start": start, "end": end, "attribution": number}
                for text, (start, end), number in zip(texts, spans, numbers, strict=True)
            ]
        labels = {name: json_label(found[name]) for name in ("target", "prediction")}
        return found | labels | {"gap": self.gap, "relative_gap": self.relative_gap}

    def to_frame(self) -> Any:
        """Return a DataFrame (pandas) with a row per token: its text, start, end, word and attribution."""
        return data_frame(self.columns())

    def columns(self) -> dict[str, Any]:
        """Return the columns of `to_frame`."""
        return {
            "token": self.tokens,
            "start": [span.start for span in self.token_spans],
            "end": [span.end for span in self.token_spans],
            "word": [self.words[i] for i in self.token_words],
            "attribution": self.token_attributions,
        }

    def plot(self, path: str | Path, *, most: int = 30) -> Path:
        """Plot a bar per word, in reading order, and save the figure to `path` (requires matplotlib).

        Args:
            path: The file to write. Its suffix sets the format; without a suffix, .png is added.
            most: The most bars; of a longer text these are the words with the largest attributions.
        """
        most = checks.integer("most", most, 1)
        chosen = np.sort(np.argsort(-np.abs(self.word_attributions), kind="stable")[:most])
        title = f"attributions to the output {self.target!s}"
        words = [self.words[i] for i in chosen]
        what = "change of the output" if self.baseline is None else "share of the output's change"
        return plot_words(checks.path("path", path), words, self.word_attributions[chosen], title, what)

    def _repr_html_(self) -> str:
        probability = "" if self.probability is None else f" ({100 * self.probability:.1f} %)"
        answer = "" if self.prediction == self.target else f", prediction {self.prediction}"
        head, note = f"{self.target}{probability}: output {self.output:.2f}{answer}", "fall of the output without it"
        if self.relative_gap is not None:
            start = f"{self.baseline_output:.2f} (baseline: {str(self.baseline).replace('_', ' ')})"
            note = f"shares of the change from {start}; {self.n_steps} points, gap {100 * self.relative_gap:.2g} %"
        return html.explanation(head, note, self.text, self.tokens, self.token_spans, self.token_attributions)

    def __repr__(self) -> str:
        strongest = np.argsort(-np.abs(self.word_attributions), kind="stable")[:3]
        words = ", ".join(f"{self.words[i]!r} {self.word_attributions[i]:+.2f}" for i in strongest)
        return f"Explanation(target={self.target!r}, output={self.output:.2f}; {words})"
