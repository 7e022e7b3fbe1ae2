"""`ZeroShotGPT2Classifier`: a language model as a classifier of scikit-learn, without training."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from gptclf.language.zero_shot import ZeroShot, zero_shot
from gptclf.sklearn.inputs import texts_of
from gptclf.sklearn.pretrained import Pretrained


class ZeroShotGPT2Classifier(ClassifierMixin, Pretrained):  # type: ignore[misc]
    """Classify texts by how probable each class's words are after them, as `zero_shot` does it.

    Nothing is trained. Small models are little better than chance, so measure one like any other estimator, and
    compare it with a fine-tuned `GPT2Classifier`.

    Args:
        model: A name or a folder for `load_gpt2`, or a language model, which is shared and never changed.
        classes: A list of classes, if each is also its words, or a mapping from classes to their words. None takes the
            labels that `fit` is given.
        template: As in `zero_shot`.
        normalize: As in `zero_shot`.
        calibrate: As in `zero_shot`.
        precision: As in `predict`.

    Attributes:
        classes_: The classes, sorted, in the order of the columns of `predict_proba`.
        model_: The language model.

    Example:
        >>> clf = ZeroShotGPT2Classifier("nano", {"spam": "yes", "ham": "no"}, template="{text} Is this spam?").fit()
        >>> clf.classes_.tolist(), clf.predict_proba(["you won a prize"]).shape
        (['ham', 'spam'], (1, 2))
    """

    def __init__(
        self,
        model: Any = "gpt2",
        classes: Sequence[str] | Mapping[Any, str] | None = None,
        *,
        template: str = "Text: {text}\nCategory: {label}",
        normalize: bool = False,
        calibrate: str | None = None,
        precision: str = "auto",
    ) -> None:
        self.model = model
        self.classes = classes
        self.template = template
        self.normalize = normalize
        self.calibrate = calibrate
        self.precision = precision

    def fit(self, X: Any = None, y: Any = None) -> Self:
        """Load the model and check the arguments; nothing is learnt.

        Args:
            X: Texts or None; they are only checked.
            y: Labels or None. They must be among the classes, or they are the classes if none were given.

        Raises:
            ValueError: A label is not one of the classes, or there are neither classes nor labels.
        """
        if X is not None:
            texts_of(X)
        labels = [] if y is None else np.unique(np.asarray(y)).tolist()
        given = self.classes
        if given is None:
            given = labels
        if not given:
            raise ValueError(f"classes is {self.classes!r} and y holds no label; give classes, or labels to fit()")
        self.model_ = self._frozen()
        self._ask([], given)
        if unknown := [label for label in labels if label not in given]:
            raise ValueError(f"y holds {unknown[0]!r}; the classes are {list(given)!r}: add it to them")
        words = given if isinstance(given, Mapping) else dict(zip(given, given, strict=True))
        self.classes_ = np.unique(list(words))
        self._words = {label: words[label] for label in self.classes_.tolist()}
        return self

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the most probable class of each text."""
        probabilities = self.predict_proba(X)  # also says if it is not fitted
        return self.classes_[probabilities.argmax(axis=1)]  # type: ignore[no-any-return]

    def predict_proba(self, X: Any) -> NDArray[np.float32]:
        """Return the probability of each class for each text (N, C)."""
        check_is_fitted(self)
        return self._ask(texts_of(X), self._words).probabilities

    def _ask(self, texts: list[str], labels: Sequence[str] | Mapping[Any, str]) -> ZeroShot:
        return zero_shot(
            self.model_,
            texts,
            labels,
            self.template,
            normalize=self.normalize,
            calibrate=self.calibrate,
            precision=self.precision,
        )

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.poor_score = True
        return tags
