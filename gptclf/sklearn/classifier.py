"""`GPT2Classifier`: a classifier of raw strings with scikit-learn's interface."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Self, TypeVar, Unpack

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_consistent_length
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from gptclf.checks import LARGEST_SEED, boolean, number
from gptclf.data.dataset import TextDataset
from gptclf.data.splits import split
from gptclf.features.cache import check_cache
from gptclf.features.reuse import kept_features
from gptclf.gpt2.classifier import HeadSource, add_classifier_head
from gptclf.gpt2.freezing import Trainable, freeze
from gptclf.gpt2.learner import Learner
from gptclf.gpt2.lora import apply_lora
from gptclf.gpt2.model import GPT2
from gptclf.gpt2.quantize import quantize
from gptclf.inference.outputs import compute_outputs
from gptclf.inference.predict import text_outputs
from gptclf.inference.texts import Cuts
from gptclf.preparation import Preparation
from gptclf.sklearn.bases import Base, base_of
from gptclf.sklearn.inputs import labels_of, seed_of, texts_of, weights_of
from gptclf.tasks import SingleLabel, Task
from gptclf.training.callbacks import EarlyStopping
from gptclf.training.recipe import Recipe, RecipeChanges, refuse_unknown
from gptclf.training.run import Callback
from gptclf.training.train import train

_Init = TypeVar("_Init", bound=Callable[..., None])

# `random_state` takes the place of `seed`.
_RECIPE = {name: field for name, field in inspect.signature(Recipe).parameters.items() if name != "seed"}


def _lists_recipe(init: _Init) -> _Init:
    """List the fields of `Recipe` in the signature of a constructor, where scikit-learn looks for parameters."""
    signature = inspect.signature(init)
    own = list(signature.parameters.values())[:-1]
    init.__signature__ = signature.replace(parameters=[*own, *_RECIPE.values()])  # type: ignore[attr-defined]
    return init


def _parameters() -> list[str]:
    return [*inspect.signature(GPT2Classifier).parameters]


class GPT2Classifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A GPT-2 that classifies texts, as an estimator of scikit-learn.

    `fit` is `add_classifier_head`, `freeze` and `train`, with the same steps and the same answers. What folds,
    candidates of a search and members of an ensemble have in common is computed once: each text goes through the
    frozen blocks once, and the result is kept in this process's memory, as in `train`.

    Args:
        model: A name or folder that `load_gpt2` takes, a `GPT2`, which is never changed, or a `GPT2Config` for random
            weights.
        trainable: What trains, as in `freeze`. With `lora`, "last_block" means "lora".
        pooling: Where the head looks, as in `add_classifier_head`.
        head: A `Head` of your own, as there.
        task: What to learn instead of `SingleLabel` over the labels in `y`: a `Task` whose classes are sorted, or a
            function that makes one from the list of classes. With `MultiLabel`, `y` is a table of 0 and 1.
        lora: The rank of factors on every matrix, or a dictionary of `apply_lora`'s arguments; None trains no factors.
        quantized: Keep the frozen matrices in these bits, as in `quantize`; None keeps float32.
        class_weight: As in `SingleLabel`, as in scikit-learn: weights by label, or "balanced".
        label_smoothing: As in `SingleLabel`.
        max_length: Longest text in tokens, as in `TextDataset`.
        truncation: The part that a longer text loses, as there.
        pad_to: Fill every text up to this many tokens, as there.
        early_stopping: Stop when the loss on validation texts has not improved for `n_iter_no_change` epochs, and take
            the weights of the best one.
        validation_fraction: Share of the training texts to validate on if `fit` is not given `eval_set`.
        n_iter_no_change: See `early_stopping`.
        callbacks: As in `train`.
        cache_dir: Keep the frozen part's features in this folder, as in `train`.
        random_state: Seed of the head, of factors and of training: an integer, a `RandomState` to draw one from at each
            fit, or None to draw one from numpy's global generator.
        progress: Show progress on standard error.
        **recipe: The fields of `Recipe` but for `seed`: `epochs`, `batch_size`, `lr` and so on.

    Attributes:
        classes_: The labels (C,), sorted, in the order of the columns of `predict_proba`.
        model_: The trained `GPT2`, for every function of gptclf.
        history_: The `History` of the last fit.
        n_iter_: Number of epochs trained.

    Example:
        >>> clf = GPT2Classifier("nano", epochs=8, lr=1e-3)
        >>> texts, labels = ["you won a prize", "see you at six"] * 8, ["spam", "ham"] * 8
        >>> clf.fit(texts, labels).predict(["you won", "see you"]).tolist()
        ['spam', 'ham']
    """

    @_lists_recipe
    def __init__(
        self,
        model: Base = "gpt2",
        *,
        trainable: Trainable = "last_block",
        pooling: str = "last",
        head: HeadSource | None = None,
        task: Task | Callable[[list[Any]], Task] | None = None,
        lora: int | Mapping[str, Any] | None = None,
        quantized: str | None = None,
        class_weight: str | Mapping[Any, float] | None = None,
        label_smoothing: float = 0.0,
        max_length: int | None = None,
        truncation: str = "tail",
        pad_to: int | None = None,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 5,
        callbacks: Sequence[Callback] | None = None,
        cache_dir: str | Path | None = None,
        random_state: Any = 123,
        progress: bool = False,
        **recipe: Unpack[RecipeChanges],
    ) -> None:
        if "seed" in recipe:
            raise TypeError("there is no option 'seed'; give random_state=, as to any estimator of scikit-learn")
        refuse_unknown(recipe, _parameters())
        self.model = model
        self.trainable = trainable
        self.pooling = pooling
        self.head = head
        self.task = task
        self.lora = lora
        self.quantized = quantized
        self.class_weight = class_weight
        self.label_smoothing = label_smoothing
        self.max_length = max_length
        self.truncation = truncation
        self.pad_to = pad_to
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.callbacks = callbacks
        self.cache_dir = cache_dir
        self.random_state = random_state
        self.progress = progress
        for name, field in _RECIPE.items():
            setattr(self, name, recipe.get(name, field.default))

    def fit(self, X: Any, y: Any, sample_weight: Any = None, eval_set: tuple[Any, Any] | None = None) -> Self:
        """Train on texts and their labels, from the start.

        Args:
            X: Texts: a list, an array or a series of strings, or a table of one column.
            y: One label per text: strings, integers or bools; or a table of 0 and 1 if `task` is `MultiLabel`.
            sample_weight: One weight per text, as in `TextDataset`. A text of weight 0 is left out.
            eval_set: A pair of texts and labels to measure on after each epoch.

        Returns:
            The estimator itself.
        """
        texts, labels = self._checked(X, y)
        texts, labels, weights = _weighted(texts, labels, sample_weight)
        task = self._task(np.unique(labels_of(y)), labels)
        seed = seed_of(self.random_state)
        model = self._new_model(task, seed)
        rows, val_rows = self._rows(model, texts, labels, weights), None
        if eval_set is not None:
            val_rows = self._rows(model, *self._checked(*eval_set, reset=False), None)
        elif boolean("early_stopping", self.early_stopping):
            share = number("validation_fraction", self.validation_fraction, above=0.0, most=1.0)
            rows, val_rows = split(rows, (1 - share, share), seed=seed, stratify=labels.ndim == 1)
        callbacks = [*(self.callbacks or ())]
        if self.early_stopping:
            callbacks.append(EarlyStopping(self.n_iter_no_change))
        self._train(model, rows, val_rows, self._recipe(seed), callbacks)
        self.n_iter_ = self.history_.steps[-1].epoch
        return self

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> Self:
        """Train for one epoch on more texts and their labels, from where the last call ended.

        Args:
            X: Texts, as for `fit`. At least two classes must occur among them.
            y: Labels, as for `fit`.
            classes: All labels that may occur, for the first call; None takes those that occur in it.
            sample_weight: As for `fit`.

        Returns:
            The estimator itself.
        """
        first = not hasattr(self, "model_")
        texts, labels = self._checked(X, y, reset=first)
        texts, labels, weights = _weighted(texts, labels, sample_weight)
        if isinstance(self.class_weight, str):
            remedy = "give the weight of each class, such as compute_class_weight gives for all labels"
            raise ValueError(
                f"class_weight is {self.class_weight!r}, but partial_fit sees a part of the texts; {remedy}"
            )
        if not first and classes is not None and not np.array_equal(np.unique(classes), self.classes_):
            raise ValueError(f"classes are {np.unique(classes)!r}, but the first call had {self.classes_!r}")
        done = 0 if first else self.n_iter_
        seed = seed_of(self.random_state)
        if first:
            task = self._task(np.unique(labels if classes is None else classes), labels)
            model = self._new_model(task, seed)
        else:
            model = self.model_
        recipe = self._recipe((seed + done) % (LARGEST_SEED + 1), epochs=1)
        self._train(model, self._rows(model, texts, labels, weights), None, recipe, [*(self.callbacks or ())])
        self.n_iter_ = done + 1
        return self

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the label of each text (N,); with `MultiLabel` a table of 0 and 1 (N, C)."""
        outputs = self._outputs(X)
        task = self.model_.task
        found = task.targets(task.answers(outputs))
        return self.classes_[found] if found.ndim == 1 else found.astype(np.int64)  # type: ignore[no-any-return]

    def predict_proba(self, X: Any) -> NDArray[np.float32]:
        """Return the probability of each class for each text (N, C), columns in the order of `classes_`."""
        outputs = self._outputs(X)
        return self.model_.task.probabilities(outputs)

    def predict_log_proba(self, X: Any) -> NDArray[np.float32]:
        """Return the logarithms of the probabilities (N, C)."""
        with np.errstate(divide="ignore"):
            return np.log(self.predict_proba(X))

    def decision_function(self, X: Any) -> NDArray[np.float32]:
        """Return the model's outputs (N, C); for two classes their difference (N,), above 0 for the second class."""
        outputs = self._outputs(X).numpy()
        pair = outputs.shape[1] == 2 and self.model_.task.targets([]).ndim == 1
        return outputs[:, 1] - outputs[:, 0] if pair else outputs

    def _outputs(self, X: Any) -> Tensor:
        """Return the model's outputs (N, n_outputs) for texts.

        Features are kept where the estimator was fitted, since folds and thresholds ask for the same texts again; an
        estimator that was loaded keeps nothing of the texts it answers.
        """
        check_is_fitted(self)
        model, precision, texts = self.model_, self.precision, self._texts(X, reset=False)
        if not vars(self).get("_fitted_here"):
            (outputs,) = text_outputs([model], texts, precision=precision, progress=self.progress)
            return outputs
        cuts = Cuts()
        prepared = cuts.prepare(model, texts)
        cuts.log()
        kept = kept_features(model, prepared.rows, precision=precision, cache_dir=check_cache(self.cache_dir))
        scored = Learner(model, kept.depth) if kept.depth else model
        return compute_outputs(scored, kept.rows[0], precision=precision)[prepared.row_of]

    def _texts(self, X: Any, *, reset: bool) -> list[str]:
        """Return the texts in X; `reset` says whether it is what the estimator is trained on."""
        return texts_of(X)

    def _checked(self, X: Any, y: Any, *, reset: bool = True) -> tuple[list[str], NDArray[Any]]:
        texts, labels = self._texts(X, reset=reset), labels_of(y)
        check_consistent_length(texts, labels)
        return texts, labels

    def _task(self, classes: NDArray[Any], labels: NDArray[Any]) -> Task:
        """Return the task over some classes, and note its classes."""
        names = classes.tolist()
        if self.task is None:
            if labels.ndim == 2:
                raise ValueError("y is a table; for several labels per text give task=MultiLabel([...])")
            if (n := len(np.unique(labels))) < 2 <= len(labels) or len(names) < 2:
                raise ValueError(f"y has {n} class; a classifier needs texts of at least two classes to learn from")
            return SingleLabel(names, self.class_weight, self.label_smoothing)
        return self.task if isinstance(self.task, Task) else self.task(names)

    def _new_model(self, task: Task, seed: int) -> GPT2:
        """Return the classifier that training starts from."""
        drawn = {"seed": seed} if self.head is None else {}
        base = base_of(self.model, seed)
        model = add_classifier_head(base, task=task, pooling=self.pooling, head=self.head, **drawn)
        policy = self.trainable
        if self.lora is not None:
            factors = self.lora if isinstance(self.lora, Mapping) else {"rank": self.lora}
            model = apply_lora(model, **{"seed": seed, **factors})
            policy = "lora" if policy == "last_block" else policy
        freeze(model, trainable=policy)
        return model if self.quantized is None else quantize(model, self.quantized)

    def _rows(self, model: GPT2, texts: list[str], labels: NDArray[Any], weights: Any) -> TextDataset:
        prepared = {field.name: getattr(self, field.name) for field in fields(Preparation)}
        named = labels.tolist() if labels.ndim == 1 else list(labels)
        return TextDataset(texts, named, tokenizer=model.tokenizer, task=model.task, weights=weights, **prepared)

    def _recipe(self, seed: int, **changes: Any) -> Recipe:
        return Recipe(**{name: getattr(self, name) for name in _RECIPE} | {"seed": seed} | changes)

    def _train(
        self, model: GPT2, rows: TextDataset, val_rows: TextDataset | None, recipe: Recipe, callbacks: list[Callback]
    ) -> None:
        options = {"callbacks": callbacks, "cache_dir": self.cache_dir, "progress": self.progress}
        history = train(model, rows, val_rows, recipe=recipe, **options)
        classes = np.asarray(model.classes)
        if not np.array_equal(classes, np.unique(classes)):
            raise ValueError(
                f"the task's classes are {classes.tolist()!r}; sort them, as scikit-learn's classifiers do"
            )
        self.model_, self.history_, self.classes_, self._fitted_here = model, history, classes, True

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string, tags.input_tags.one_d_array, tags.input_tags.two_d_array = True, True, False
        return tags


def _weighted(
    texts: list[str], labels: NDArray[Any], sample_weight: Any
) -> tuple[list[str], NDArray[Any], NDArray[Any] | None]:
    """Return the rows whose weight is not 0, and their weights: such a row is as if it were not there."""
    weights = weights_of(sample_weight, texts)
    if weights is None:
        return texts, labels, None
    rows = np.flatnonzero(weights)
    return [texts[i] for i in rows], labels[rows], weights[rows]
