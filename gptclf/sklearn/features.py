"""`GPT2Features`: texts to vectors, as a transformer of scikit-learn."""

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from gptclf.inference.embed import embed
from gptclf.sklearn.inputs import texts_of
from gptclf.sklearn.pretrained import Pretrained


class GPT2Features(ClassNamePrefixFeaturesOutMixin, TransformerMixin, Pretrained):  # type: ignore[misc]
    """Give a vector for each text, from the hidden states of a GPT-2, for any estimator of scikit-learn.

    `embed` computes the vectors, each once: they are kept in this process's memory, by model and text, for further
    folds, candidates and estimators, and `clear_features` releases them. All processes of a search keep their own.

    Args:
        model: A name or a folder for `load_gpt2`, or a `GPT2`, which is shared and never changed.
        layer: As in `embed`: -1 is what a head reads.
        pooling: As in `embed`: "mean", "last" or "first".
        batch_size: As in `predict`.
        precision: As in `predict`.

    Attributes:
        model_: The frozen `GPT2` whose states are pooled.

    Example:
        >>> from sklearn.linear_model import LogisticRegression
        >>> from sklearn.pipeline import make_pipeline
        >>> texts, labels = ["free prize, text WIN now", "see you at six?"] * 4, ["spam", "ham"] * 4
        >>> spam_filter = make_pipeline(GPT2Features("nano"), LogisticRegression()).fit(texts, labels)
        >>> spam_filter.predict(["text WIN for your prize"]).tolist()
        ['spam']
    """

    def __init__(
        self,
        model: Any = "gpt2",
        *,
        layer: int = -1,
        pooling: str = "mean",
        batch_size: int | None = None,
        precision: str = "auto",
    ) -> None:
        self.model = model
        self.layer = layer
        self.pooling = pooling
        self.batch_size = batch_size
        self.precision = precision

    def fit(self, X: Any, y: Any = None) -> Self:
        """Load the model and check the arguments; nothing is learnt from the texts.

        Args:
            X: Texts: a list, an array, a column of a data frame, or a table with one column.
            y: Ignored.
        """
        texts_of(X)
        self.model_ = self._frozen()
        self._n_features_out = self._vectors([]).shape[1]
        return self

    def transform(self, X: Any) -> NDArray[np.float32]:
        """Return the vectors (N, D) of texts."""
        check_is_fitted(self)
        return self._vectors(texts_of(X))

    def _vectors(self, texts: list[str]) -> NDArray[np.float32]:
        options = {name: getattr(self, name) for name in ("layer", "pooling", "batch_size", "precision")}
        return embed(self.model_, texts, **options, keep=True)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = []
        return tags
