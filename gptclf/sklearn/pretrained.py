"""`Pretrained`: what all estimators have in common."""

from typing import Any

from sklearn.base import BaseEstimator

from gptclf.gpt2.model import GPT2
from gptclf.gpt2.sharing import borrow
from gptclf.sklearn.bases import base_of
from gptclf.sklearn.pickling import PackedModel, packed


class Pretrained(BaseEstimator):  # type: ignore[misc]
    """An estimator over texts with a parameter `model`. In a pickle, models are what `packed` makes of them."""

    model: Any

    def _frozen(self) -> GPT2:
        """Return the parameter's model over tensors that stay as they are, whoever trains it."""
        return borrow(base_of(self.model, seed=0))

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        return {name: packed(value) if isinstance(value, GPT2) else value for name, value in state.items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        found = {name: value.unpacked() for name, value in state.items() if isinstance(value, PackedModel)}
        super().__setstate__(state | found)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string, tags.input_tags.one_d_array, tags.input_tags.two_d_array = True, True, False
        return tags
