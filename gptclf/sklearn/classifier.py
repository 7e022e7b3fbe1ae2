"""`GPT2Classifier`: a classifier of texts with scikit-learn's interface."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import ClassifierMixin
from sklearn.utils import check_consistent_length
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from gptclf.checks import LARGEST_SEED, boolean, number
from gptclf.data.dataset import TextDataset
from gptclf.data.splits import split
from gptclf.features.cache import check_cache
from gptclf.features.reuse import kept_features
from gptclf.gpt2.learner import Learner
from gptclf.gpt2.model import GPT2
from gptclf.inference.outputs import compute_outputs
from gptclf.inference.predict import text_outputs
from gptclf.inference.texts import Cuts
from gptclf.sklearn.folders import read_estimator, write_estimator
from gptclf.sklearn.inputs import labels_of, seed_of, texts_of, weights_of
from gptclf.sklearn.settings import Settings
from gptclf.training.callbacks import EarlyStopping
from gptclf.training.recipe import Recipe
from gptclf.training.run import Callback
from gptclf.training.train import train


class GPT2Classifier(ClassifierMixin, Settings):  # type: ignore[misc]
    """A GPT-2 that classifies texts, as an estimator of scikit-learn.

    `fit` is `add_classifier_head`, `freeze` and `train`, with the same steps and the same answers. What folds,
    candidates of a search and members of an ensemble have in common is computed once: each text goes through the
    frozen blocks once, those of `predict` as well. The results are kept in this process's memory, as those of `train`;
    `clear_features` releases them. A loaded estimator keeps nothing of the texts it answers.

    A pickle of a fitted estimator holds what was trained. Frozen weights are in it by their name and digest if they
    are found again by a name or in a folder, else whole. `save` writes a folder for `load` and `load_model`.

    Args:
        model: A name or folder that `load_gpt2` takes, a `GPT2`, which is never changed and may be on any device, or a
            `GPT2Config` for random weights.
        trainable: What trains, as in `freeze`. With `lora`, "last_block" means "lora".
        pooling: Where the head looks, as in `add_classifier_head`.
        head: A `Head` of your own, as there.
        task: What to learn instead of `SingleLabel` over the labels in `y`: a `Task` whose classes are sorted, or a
            function that makes one from the list of classes. With `MultiLabel`, `y` is a table of 0 and 1.
        lora: The rank of factors on every matrix, or a dictionary of `apply_lora`'s arguments; None trains no factors.
        quantized: Keep the frozen matrices in these bits, as in `quantize`; None keeps float32.
        class_weight: As in `SingleLabel`: weights by label, or "balanced".
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
        rows, stops = self._read(X, y, sample_weight, reset=True), boolean("early_stopping", self.early_stopping)
        seed = seed_of(self.random_state)
        model = self._new_model(self._task_over(_classes_of(labels_of(y), rows[1])), seed)
        train_set, val_set = self._rows(model, *rows), None
        if eval_set is not None:
            if not isinstance(eval_set, Sequence) or len(eval_set) != 2:
                raise ValueError("eval_set must be a pair of texts and labels: eval_set=(X_val, y_val)")
            val_set = self._rows(model, *self._read(*eval_set, reset=False))
        elif stops:
            share = number("validation_fraction", self.validation_fraction, above=0.0, most=1.0)
            stratify = rows[1].ndim == 1
            train_set, val_set = split(train_set, (1 - share, share), seed=seed, stratify=stratify)
        stopping = [EarlyStopping(self.n_iter_no_change)] if stops else []
        self._train(model, train_set, val_set, self._recipe(seed), stopping)
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
        first, seed = not hasattr(self, "model_"), seed_of(self.random_state)
        rows = self._read(X, y, sample_weight, reset=first)
        if isinstance(self.class_weight, str):
            remedy = "give the weight of each class"
            raise ValueError(f"class_weight is {self.class_weight!r}, but partial_fit sees only a part; {remedy}")
        known = None if classes is None else np.unique(classes)
        if first:
            task = self._task_over(_classes_of(rows[1] if known is None else known, rows[1]))
            model, done = self._new_model(task, seed), 0
        else:
            model, done = self.model_, self.n_iter_
            if known is not None and not np.array_equal(known, self.classes_):
                raise ValueError(f"classes are {known.tolist()!r}, but the first call had {self.classes_.tolist()!r}")
        recipe = self._recipe((seed + done) % (LARGEST_SEED + 1), epochs=1)
        self._train(model, self._rows(model, *rows), None, recipe, [])
        self.n_iter_ = done + 1
        return self

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the label of each text (N,); with `MultiLabel` a table of 0 and 1 (N, C)."""
        outputs = self._outputs(X)
        found = self.model_.task.targets(self.model_.task.answers(outputs))
        return self.classes_[found] if found.ndim == 1 else found.astype(np.int64)

    def predict_proba(self, X: Any) -> NDArray[np.float32]:
        """Return the probability of each class for each text (N, C), columns in the order of `classes_`."""
        outputs = self._outputs(X)
        return self.model_.task.probabilities(outputs)

    def predict_log_proba(self, X: Any) -> NDArray[np.float32]:
        """Return the logarithms of the probabilities (N, C)."""
        with np.errstate(divide="ignore"):
            return np.log(self.predict_proba(X))

    def decision_function(self, X: Any) -> NDArray[np.float32]:
        """Return the model's outputs (N, C); of two classes their difference (N,), above 0 for the second one."""
        outputs = self._outputs(X).numpy()
        pair = outputs.shape[1] == 2 and self.model_.task.targets([]).ndim == 1
        return outputs[:, 1] - outputs[:, 0] if pair else outputs

    def save(self, folder: str | Path) -> Path:
        """Write the fitted estimator to a folder, which `load` reads, and `load_model` as well.

        Parameters that JSON cannot express, such as callbacks, are not written; their names are logged.
        """
        check_is_fitted(self)
        return write_estimator(self, folder)

    @classmethod
    def load(cls, folder: str | Path, **options: Any) -> Self:
        """Return the estimator that `save` wrote to a folder, ready to predict.

        Args:
            folder: The folder.
            **options: Of `load_model`, such as `head` and `task` if they are your own.
        """
        return read_estimator(cls, folder, **options)

    def _outputs(self, X: Any) -> Tensor:
        """Return the model's outputs (N, n_outputs) for texts.

        Where the estimator was fitted, features are kept: the next fold trains on what this one predicts. Where it was
        loaded, no features of the texts are kept.
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
        """Return the texts in X; `reset` says that the estimator starts to learn from them."""
        return texts_of(X)

    def _read(
        self, X: Any, y: Any, sample_weight: Any = None, *, reset: bool
    ) -> tuple[list[str], NDArray[Any], NDArray[Any] | None]:
        """Return texts, labels and weights without the rows of weight 0, which are as if they were not there."""
        texts, labels, weights = self._texts(X, reset=reset), labels_of(y), None
        check_consistent_length(texts, labels)
        if sample_weight is not None:
            weights = weights_of(sample_weight, texts)
            kept = np.flatnonzero(weights)
            texts, labels, weights = [texts[i] for i in kept], labels[kept], weights[kept]
        return texts, labels, weights

    def _train(
        self,
        model: GPT2,
        train_set: TextDataset,
        val_set: TextDataset | None,
        recipe: Recipe,
        callbacks: Sequence[Callback],
    ) -> None:
        options: Any = {"callbacks": [*(self.callbacks or ()), *callbacks]}
        options |= {"cache_dir": self.cache_dir, "progress": self.progress}
        history = train(model, train_set, val_set, recipe=recipe, **options)
        self.model_, self.history_, self.classes_ = model, history, np.asarray(model.classes)
        self._fitted_here = True

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "_fitted_here"}

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = self.task is not None
        return tags


def _classes_of(labels: NDArray[Any], learned: NDArray[Any]) -> NDArray[Any]:
    """Return the classes among labels; raise if those that are learned from have fewer than two.

    A table of several labels per text has a column for each class, which its task names.
    """
    if labels.ndim == 1 and (n := len(np.unique(learned))) < 2:
        raise ValueError(
            f"y has {n} class, not counting texts of weight 0; a classifier needs at least two to learn from"
        )
    return np.unique(labels) if labels.ndim == 1 else np.arange(labels.shape[1])
