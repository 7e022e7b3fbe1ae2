"""Estimators in folders: the model as `save_model` or `save_adapter` writes it, the parameters beside it."""

import json
import logging
from dataclasses import asdict
from errno import ENOENT
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from gptclf.checks import path
from gptclf.files.atomic import text_writer, write_all
from gptclf.files.json_file import read_json, to_json
from gptclf.gpt2.lora_linear import lora_layers
from gptclf.saving.load_model import load_model
from gptclf.saving.save_adapter import save_adapter
from gptclf.saving.save_model import save_model
from gptclf.training.history import history_from_dict

logger = logging.getLogger(__name__)

ESTIMATOR = "sklearn.json"

_Estimator = TypeVar("_Estimator")


def write_estimator(estimator: Any, folder: str | Path) -> Path:
    """Write a fitted estimator's model, parameters and history to a folder."""
    adapted = any(True for _ in lora_layers(estimator.model_))
    place = (save_adapter if adapted else save_model)(estimator.model_, folder)
    written = {name: value for name, value in estimator.get_params().items() if _is_json(value)}
    left_out = sorted(set(estimator.get_params()) - set(written))
    if left_out:
        logger.warning(
            "%s: these parameters are not written, give them again to fit anew: %s", place, ", ".join(left_out)
        )
    record = {"params": written, "n_iter": estimator.n_iter_, "history": asdict(estimator.history_)}
    write_all(place, {ESTIMATOR: text_writer(to_json(record))}, delete=set())
    return place


def read_estimator(kind: type[_Estimator], folder: str | Path, **options: Any) -> _Estimator:
    """Return the estimator of a class that `write_estimator` wrote; `options` are those of `load_model`."""
    place = path("folder", folder)
    if not (place / ESTIMATOR).is_file():
        known = "a folder that an estimator's save wrote; load_model reads those of save_model, joblib its own files"
        raise FileNotFoundError(ENOENT, f"{place} holds no {ESTIMATOR}; load takes {known}")
    record = read_json(place / ESTIMATOR)
    model = load_model(place, **options)
    estimator: Any = kind(**{"model": model.base or str(place), **record["params"]})
    estimator.model_, estimator.classes_ = model, np.asarray(model.classes)
    estimator.n_iter_, estimator.history_ = record["n_iter"], history_from_dict(record["history"])
    return estimator  # type: ignore[no-any-return]


def _is_json(value: Any) -> bool:
    try:
        return bool(json.loads(json.dumps(value)) == value)
    except (TypeError, ValueError):
        return False
