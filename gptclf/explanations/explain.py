"""`explain`: which words moved a classifier's output."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gptclf.checks import boolean, choice, integer, is_iterable, python_value
from gptclf.data.rows import check_texts
from gptclf.explanations.explanation import Explanation
from gptclf.explanations.integrated import BASELINES, MOST_STEPS, integrate, make_path, small_gap
from gptclf.explanations.leave_one_out import effects
from gptclf.explanations.results import Results
from gptclf.explanations.spans import as_read, read
from gptclf.gpt2.arithmetic import resolve_precision
from gptclf.gpt2.learner import Learner
from gptclf.gpt2.model import GPT2, check_classifier, warn_of_no_preparation
from gptclf.inference.outputs import compute_outputs
from gptclf.inference.predict import warn_of_fresh_head
from gptclf.inference.texts import Cuts
from gptclf.progress import Meter
from gptclf.tasks import Task
from gptclf.tasks.labels import column_values

logger = logging.getLogger(__name__)

METHODS = ("integrated_gradients", "leave_one_out")


def explain(
    model: GPT2,
    texts: Iterable[str],
    target: Any = None,
    *,
    method: str = "integrated_gradients",
    baseline: str = "end_of_text",
    n_steps: int | None = None,
    batch_size: int | None = None,
    precision: str = "float32",
    progress: bool = False,
) -> Results[Explanation]:
    """Say for each text how much each token and word contributed to one output of a classifier.

    Integrated gradients (Sundararajan et al., 2017) divide the difference between the output for the text and for a
    baseline among the tokens: the gradient with respect to the token's embedding, averaged over the straight line from
    the baseline's embedding. Attributions add up to that difference; `gap` says how exactly. Leaving out one token, and
    one word, at a time gives by how much the output falls; these effects add up to nothing in particular. A word is
    left out by deleting its tokens; the rest keeps its tokens, and is not tokenised anew.

    Args:
        model: A classifier; it does not change.
        texts: Strings; a single string raises a TypeError. They are prepared as `predict` does it.
        target: The class to explain, by its label, or for `Regression` the number of the output; or a list with one for
            each text. None is the model's answer, for `MultiLabel` the most probable class.
        method: "integrated_gradients" or "leave_one_out".
        baseline: For integrated gradients: "end_of_text", which has `<|endoftext|>` in the place of every token, or
            "zeros", which has no token embeddings. Positions are the text's.
        n_steps: Points of the integration, all in one rule of Gauss and Legendre. None takes 16 on the whole line, and
            then on halves of the part that is least exact, until the gap is less than 0.1 % of the difference. If that
            takes more than 2,048, the gap is logged.
        batch_size: The most rows to compute at once. None chooses a number.
        precision: As in `predict`, for answers and for leaving out; gradients are always float32.
        progress: Show progress and the estimated time left on standard error.

    Returns:
        A list with an `Explanation` for each text. A notebook shows it as coloured text; `to_frame()` makes it a table.

    Raises:
        ValueError: A target is not among the classes; or the embedding of the model cannot be separated from the rest,
            because the model, its trunk or its embedding has hooks or is of another class.

    Example:
        >>> from gptclf import add_classifier_head, load_gpt2
        >>> clf = add_classifier_head(load_gpt2("nano"), classes=["ham", "spam"], seed=0)
        >>> import warnings; warnings.simplefilter("ignore")  # the head is untrained, and explain says so
        >>> [found] = explain(clf, ["you won a prize"], "spam")
        >>> found.words, found.word_attributions.shape, found.relative_gap < 1e-3
        (['you', 'won', 'a', 'prize'], (4,), True)
    """
    check_classifier(model)
    choice("method", method, METHODS)
    choice("baseline", baseline, BASELINES)
    n_steps = integer("n_steps", n_steps, 1, most=MOST_STEPS, optional=True)
    batch_size = integer("batch_size", batch_size, 1, optional=True)
    resolve_precision(precision, model)
    progress = boolean("progress", progress)
    if method == METHODS[0] and not model.is_plain:
        problem = "the model, its trunk or its embedding has hooks or is of another class, so that embeddings cannot be"
        raise ValueError(f"{problem} replaced; remove them, or give method='leave_one_out'")
    texts = list(map(as_read, check_texts(texts)))
    targets = _targets(model.task, target, len(texts))
    warn_of_fresh_head(model, stacklevel=2)
    warn_of_no_preparation(model, stacklevel=2)
    cuts = Cuts()
    prepared = cuts.prepare(model, texts)
    cuts.log()
    outputs = compute_outputs(model, prepared.rows, batch_size=batch_size, precision=precision)[prepared.row_of]
    chosen = model.task.explained(outputs) if None in targets else []
    columns = [chosen[i] if column is None else column for i, column in enumerate(targets)]
    learner = Learner(model, depth=1) if method == METHODS[0] else None
    asked = _Asked(model, learner, baseline, n_steps, batch_size, precision)
    rows = [prepared.rows.row(i) for i in prepared.row_of]
    found: Results[Explanation] = Results()
    with Meter(sum(map(len, rows)), "explaining", unit="tok", enabled=progress) as meter:
        for text, ids, column in zip(texts, rows, columns, strict=True):
            answer = outputs[len(found)][None]
            found.append(asked.explained(text, ids, answer, column, truncated=bool(prepared.truncated[len(found)])))
            meter.update(len(ids))
    if n_steps is None:
        _warn_of_gaps(found)
    return found


def _warn_of_gaps(found: Results[Explanation]) -> None:
    ends = [(its, (its.baseline_output, its.output)) for its in found if its.baseline_output is not None]
    wide = [its.relative_gap or 0.0 for its, both in ends if abs(its.gap or 0.0) > small_gap(both)]
    if wide:
        message = "%d of %d explanations miss the difference that they divide, by up to %.2g %%, with %d points"
        logger.warning(message, len(wide), len(found), 100 * max(wide), MOST_STEPS)


def _targets(task: Task, target: Any, n: int) -> list[int | None]:
    """Return the output to explain for each of n texts, by number; None where it depends on the answer."""
    target = python_value(target)
    one = isinstance(target, str | bytes | tuple | frozenset | Mapping) or not is_iterable(target)
    labels = [target] if one else column_values(target)
    if not one and len(labels) != n:
        problem = f"target is a {type(target).__name__} of {len(labels)} labels, but there are {n} texts"
        raise ValueError(f"{problem}; give one label, or a list with one for each text")
    outputs = [None if label is None else task.output_of(label) for label in labels]
    if None in outputs:  # a task that does not say which is refused before any work
        task.explained(torch.zeros(0, task.n_outputs, dtype=torch.float32, device="cpu"))
    return outputs * n if one else outputs


@dataclass(frozen=True)
class _Asked:
    """What a call asked for.

    Attributes:
        learner: The stages after the embedding, as modules of its own: no mode or flag of the model changes, and
            embeddings go in where features would. None leaves tokens out instead.
    """

    model: GPT2
    learner: Learner | None
    baseline: str
    n_steps: int | None
    batch_size: int | None
    precision: str

    def explained(
        self, text: str, ids: NDArray[np.int32], outputs: Tensor, column: int, *, truncated: bool
    ) -> Explanation:
        """Return the explanation of one text, whose row is `ids` and whose outputs are (1, n_outputs)."""
        task, reading = self.model.task, read(text, self.model)
        words = [word.tokens for word in reading.words]
        given: dict[str, Any]
        if self.learner is None:
            parts = [*([i] for i in range(len(ids))), *words]
            how: Any = {"batch_size": self.batch_size, "precision": self.precision}
            found = effects(self.model, ids, reading.positions, parts, column, **how)
            by_token, by_word, value = found[: len(ids)], found[len(ids) :], float(outputs[0, column])
            given = {"baseline": None, "baseline_output": None, "n_steps": None}
        else:
            device = self.model.device
            with torch.inference_mode(mode=False), torch.autocast(device.type, enabled=False):  # the caller may be in
                here = torch.from_numpy(ids.astype(np.int64)).to(device)
                path = make_path(self.learner, self.model, here, column, self.baseline)
                by_token, (low, value), steps = integrate(path, self.n_steps, self.batch_size)
            by_word = np.array([by_token[word].sum() for word in words])
            given = {"baseline": self.baseline, "baseline_output": low, "n_steps": steps}
        [prediction] = task.answers(outputs)
        return Explanation(
            text=text,
            method=METHODS[self.learner is None],
            target=task.target_of(column),
            prediction=prediction,
            probability=_probability(task, outputs, column),
            output=value,
            tokens=reading.texts(reading.spans),
            token_spans=reading.spans,
            token_attributions=by_token,
            token_words=[number for number, word in enumerate(words) for _ in word],
            words=reading.texts([word.span for word in reading.words]),
            word_spans=[word.span for word in reading.words],
            word_attributions=by_word,
            truncated=truncated,
            **given,
        )


def _probability(task: Task, outputs: Tensor, column: int) -> float | None:
    try:
        return float(task.probabilities(outputs)[0, column])
    except TypeError:  # it has none
        return None
