"""`Pretrained`: what the estimators have in common that compute with a model as it is."""

from typing import Any, Self

from sklearn.base import BaseEstimator

from gptclf.gpt2.model import GPT2
from gptclf.gpt2.sharing import borrow
from gptclf.sklearn.bases import base_of


class Pretrained(BaseEstimator):  # type: ignore[misc]
    """An estimator over texts whose parameter `model` is shared by its clones and never changed."""

    model: Any

    def _frozen(self) -> GPT2:
        """Return the parameter's model over tensors that stay as they are, whoever trains it."""
        return borrow(base_of(self.model, seed=0))

    def __sklearn_clone__(self) -> Self:
        return type(self)(**self.get_params(deep=False))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string, tags.input_tags.one_d_array, tags.input_tags.two_d_array = True, True, False
        return tags
