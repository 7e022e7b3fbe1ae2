"""`evaluate` and `evaluate_many`: the results of models on a labelled data set."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gptclf import checks
from gptclf.data.batches import Batches, Rows
from gptclf.data.dataset import TextDataset
from gptclf.features.cache import check_cache
from gptclf.features.reuse import kept_features
from gptclf.gpt2.arithmetic import casting, evaluating
from gptclf.gpt2.learner import Learner
from gptclf.gpt2.model import GPT2, check_classifier, check_encoding
from gptclf.inference.outputs import compute_all, compute_outputs
from gptclf.inference.predict import warn_of_fresh_head
from gptclf.inference.predict_many import check_classifiers
from gptclf.preparation import Preparation
from gptclf.results.evaluation import Evaluation

logger = logging.getLogger(__name__)

# Seed of the rows that a measurement on a few batches takes.
_SAMPLE_SEED = 0


def evaluate(
    model: GPT2,
    dataset: TextDataset,
    *,
    batch_size: int | None = None,
    precision: str = "auto",
    cache_dir: str | Path | None = None,
) -> Evaluation:
    """Measure a classifier on a labelled data set; labels are matched to the model's task by name.

    Features of the frozen part are taken from memory if `train` or an earlier call left them there, and kept there if
    there is room. Weights of rows and classes shape training only; measures are plain means.

    Args:
        model: A classifier.
        dataset: Rows with labels.
        batch_size: The most rows to compute at once, for when memory is short. It does not change answers. None chooses
            a size.
        precision: "auto", "float32" or "bfloat16". "auto" is what `Recipe` says, but float32 for a call of few tokens,
            and on a CUDA device float16 where the recipe's is float32. "float32" is the same everywhere up to rounding:
            use it for figures to publish.
        cache_dir: The `cache_dir` that `train` was given, if any.

    Example:
        >>> from gptclf import add_classifier_head, load_gpt2
        >>> import warnings; warnings.simplefilter("ignore")  # the head is untrained, and evaluate says so
        >>> clf = add_classifier_head(load_gpt2("nano"), classes=["ham", "spam"], seed=0)
        >>> data = TextDataset(["hi", "win!"], ["ham", "spam"], tokenizer=clf.tokenizer)
        >>> evaluate(clf, data).probabilities.shape
        (2, 2)
    """
    (evaluation,) = _evaluations([model], dataset, batch_size, precision, cache_dir)
    return evaluation


def evaluate_many(
    models: Sequence[GPT2],
    dataset: TextDataset,
    *,
    batch_size: int | None = None,
    precision: str = "auto",
    cache_dir: str | Path | None = None,
) -> list[Evaluation]:
    """Measure several classifiers: `[evaluate(model, dataset) for model in models]`, bit for bit.

    As in `predict_many`, what the models share is computed once, and so are features of equal frozen parts. The
    arguments are those of `evaluate`.

    Raises:
        TypeError: `models` is not a list, or one of its items is not a classifier.
        ValueError: The list of models is empty.

    Example:
        >>> from gptclf import add_classifier_head, load_gpt2
        >>> import warnings; warnings.simplefilter("ignore")  # the heads are untrained, and evaluate_many says so
        >>> gpt2 = load_gpt2("nano")
        >>> models = [add_classifier_head(gpt2, classes=["ham", "spam"], seed=seed) for seed in (0, 1)]
        >>> data = TextDataset(["hi", "win!"], ["ham", "spam"], tokenizer=gpt2.tokenizer)
        >>> [len(evaluation.predictions) for evaluation in evaluate_many(models, data)]
        [2, 2]
    """
    return _evaluations(check_classifiers(models), dataset, batch_size, precision, cache_dir)


def _evaluations(
    models: list[GPT2], dataset: TextDataset, batch_size: int | None, precision: str, cache_dir: str | Path | None
) -> list[Evaluation]:
    scored: list[GPT2 | Learner] = []
    inputs, targets, folder = [], [], check_cache(cache_dir)
    for model in models:
        rows = labelled_rows(model, dataset)
        warn_of_fresh_head(model, stacklevel=3)
        difference = dataset.preparation.difference(model.preparation)
        # The default says nothing: another library trained the model, or it was trained without a limit.
        if difference and model.preparation != Preparation():
            logger.warning("the data set was prepared with %s; predict would prepare it differently", difference)
        depth, (its,) = kept_features(model, rows, precision=precision, cache_dir=folder)
        scored.append(Learner(model, depth) if depth else model)
        inputs.append(its)
        targets.append(torch.from_numpy(rows.targets(model.task)))
    found = compute_all(scored, inputs, batch_size=batch_size, precision=precision)
    return [
        Evaluation(
            model.task,
            model.task.scores(outputs, true),
            model.task.details(outputs, true),
            outputs.numpy(),
            list(dataset.labels_for(model.task)),
            model.task.answers(outputs),
            dataset.texts,
        )
        for model, outputs, true in zip(models, found, targets, strict=True)
    ]


def dataset_loss(
    model: GPT2, dataset: TextDataset, *, num_batches: int | None = None, batch_size: int = 8, precision: str = "auto"
) -> float:
    """Return the mean loss over a data set, or over a sample of `num_batches * batch_size` of its rows.

    The sample is random and the same at every call, so two models, or two moments of a run, are measured on the same
    rows. A larger sample contains the smaller ones. (The book takes the first batches of a shuffled loader.)
    """
    return _measure("loss", model, dataset, num_batches=num_batches, batch_size=batch_size, precision=precision)


def dataset_accuracy(
    model: GPT2, dataset: TextDataset, *, num_batches: int | None = None, batch_size: int = 8, precision: str = "auto"
) -> float:
    """Return the share of correct answers on a data set, or on a sample of its rows as `dataset_loss` takes it."""
    return _measure("accuracy", model, dataset, num_batches=num_batches, batch_size=batch_size, precision=precision)


def _measure(name: str, model: GPT2, dataset: TextDataset, **options: Any) -> float:
    found = measured(model, labelled_rows(model, dataset), **options)
    if name not in found:
        raise TypeError(f"{type(model.task).__name__} does not measure {name}; evaluate gives {', '.join(found)}")
    return found[name]


def measured(
    model: GPT2 | Learner, rows: Rows, *, num_batches: int | None = None, batch_size: int = 8, precision: str = "auto"
) -> dict[str, float]:
    """Return the measures of the model's task, by name, on some rows of ids or features."""
    batch_size = checks.integer("batch_size", batch_size, 1)
    num_batches = checks.integer("num_batches", num_batches, 1, optional=True)
    if num_batches is not None:
        # Not the first rows: files are often sorted by class or by date.
        order = np.random.default_rng(_SAMPLE_SEED).permutation(len(rows))
        rows = rows.subset(np.sort(order[: num_batches * batch_size]))
    with evaluating(model) as still, casting(precision, model):
        return model.task.measure(_Scored(still, rows, batch_size, precision))


class _Scored:
    """Rows to measure, and the model that computes their outputs."""

    def __init__(self, model: GPT2 | Learner, rows: Rows, batch_size: int, precision: str) -> None:
        self.model, self._rows, self._batch_size, self._precision = model, rows, batch_size, precision

    @property
    def targets(self) -> Tensor:
        return torch.from_numpy(self._rows.targets(self.model.task))

    def outputs(self) -> Tensor:
        return compute_outputs(self.model, self._rows, precision=self._precision)

    def batches(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for batch in Batches(self._rows, self._batch_size, task=self.model.task):
            here = batch.to(self.model.device)
            assert here.targets is not None
            yield here.inputs, here.lengths, here.targets


def labelled_rows(model: GPT2, dataset: TextDataset, name: str = "the data set") -> TextDataset:
    """Return the rows of a data set cut to the model's context, or raise if they cannot be measured."""
    check_classifier(model)
    if not isinstance(dataset, TextDataset):
        kind = "a TextDataset with labels, as TextDataset.from_table makes of a table"
        raise TypeError(f"{name} is a {type(dataset).__name__}; it must be {kind}")
    if not len(dataset):
        raise ValueError(f"{name} is empty; it needs at least one labelled text")
    with checks.naming(name):
        dataset.targets(model.task)
    check_encoding(model, dataset.tokenizer)
    check_ids(model, dataset.ids, name)
    return dataset.within(model.config.context_length)


def check_ids(model: GPT2, ids: NDArray[np.int32], name: str) -> None:
    """Raise if token ids are outside the model's vocabulary."""
    if int(ids.max()) >= model.config.vocab_size:
        problem = f"{name} has token id {ids.max()}, but the model's vocabulary ends at {model.config.vocab_size - 1}"
        raise ValueError(f"{problem}; build it with tokenizer=model.tokenizer")
