"""`Settings`: the parameters of an estimator that trains a classifier, and what they mean to gptclf."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar, Unpack

import numpy as np
from numpy.typing import NDArray

from gptclf.data.dataset import TextDataset
from gptclf.gpt2.classifier import HeadSource, add_classifier_head, fresh_head
from gptclf.gpt2.freezing import Trainable, freeze
from gptclf.gpt2.lora import apply_lora
from gptclf.gpt2.model import GPT2
from gptclf.gpt2.quantize import quantize
from gptclf.preparation import Preparation
from gptclf.sklearn.bases import Base, base_of
from gptclf.sklearn.pretrained import Pretrained
from gptclf.tasks import SingleLabel, Task
from gptclf.training.recipe import Recipe, RecipeChanges, refuse_unknown
from gptclf.training.run import Callback

_Init = TypeVar("_Init", bound=Callable[..., None])

# `random_state` takes the place of `seed`.
_RECIPE = {name: field for name, field in inspect.signature(Recipe).parameters.items() if name != "seed"}


def _lists_recipe(init: _Init) -> _Init:
    """List the fields of `Recipe` in the signature of a constructor, where scikit-learn looks for parameters."""
    signature = inspect.signature(init)
    own = list(signature.parameters.values())[:-1]
    init.__signature__ = signature.replace(parameters=[*own, *_RECIPE.values()])  # type: ignore[attr-defined]
    return init


class Settings(Pretrained):
    """Stores the parameters, unchecked, as scikit-learn wants it; `GPT2Classifier` documents them."""

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
        refuse_unknown(recipe, [*inspect.signature(Settings).parameters])
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

    def _task_over(self, classes: NDArray[Any]) -> Task:
        """Return the task over the classes (C,) of the labels, by default `SingleLabel`."""
        names = classes.tolist()
        if self.task is None:
            return SingleLabel(names, self.class_weight, self.label_smoothing)
        task = self.task if isinstance(self.task, Task) else self.task(names)
        found = np.asarray(task.classes)
        if not np.array_equal(found, np.unique(found)):
            raise ValueError(f"task has the classes {found.tolist()!r}; sort them, as scikit-learn's classifiers do")
        return task

    def _new_model(self, task: Task, seed: int) -> GPT2:
        """Return the classifier that training starts from."""
        base = base_of(self.model, seed)
        if self.head is None:  # drawn here, so that a search does not log each of its heads
            head, _ = fresh_head(base.config, task.n_outputs, pooling=self.pooling, seed=seed)
            model = add_classifier_head(base, task=task, head=head)
        else:
            model = add_classifier_head(base, task=task, head=self.head, pooling=self.pooling)
        policy = self.trainable
        if self.lora is not None:
            factors = self.lora if isinstance(self.lora, Mapping) else {"rank": self.lora}
            model = apply_lora(model, **{"seed": seed, **factors})
            policy = "lora" if policy == "last_block" else policy
        freeze(model, trainable=policy)
        return model if self.quantized is None else quantize(model, self.quantized)

    def _rows(self, model: GPT2, texts: list[str], labels: NDArray[Any], weights: Any = None) -> TextDataset:
        """Return texts and labels as a data set for a model."""
        prepared = {field.name: getattr(self, field.name) for field in fields(Preparation)}
        return TextDataset(texts, list(labels), tokenizer=model.tokenizer, task=model.task, weights=weights, **prepared)

    def _recipe(self, seed: int, **changes: Any) -> Recipe:
        return Recipe(**{name: getattr(self, name) for name in _RECIPE} | {"seed": seed} | changes)
