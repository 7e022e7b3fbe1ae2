"""The differences between the run of a saved state and the current one, in words."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from gptclf.tasks import task_from_record
from gptclf.training.recipe import Recipe
from gptclf.training.row_marks import first_difference

# The longest value that a message shows, in characters.
_LONG = 60

# Descriptions of differences whose values say little.
_WORDS = {
    "train_set": "the training set's texts or labels differ",
    "val_set": "the validation set's texts or labels differ",
    "train_rows": "the training set had {} rows, has {}",
    "val_rows": "the validation set had {} rows, has {}",
    "train_weights": "the training set's row weights differ",
    "frozen weights": "the weights of the frozen part differ",
}

# A difference, and another one that it causes.
_CAUSES = {"train_rows": "train_set", "val_rows": "val_set", "trainable": "frozen weights"}


def differences_between(was: dict[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Say in words what differs between the run of a state and the current run."""
    if "task" not in was:  # format 1: the pooling is now in the head; of the classes it kept the number
        pooling, n = was["model"].pop("pooling"), was["model"].pop("classes")
        if pooling is not None:
            was["head"] = [["classifier_head", f"pooling={pooling}"], ["linear"]]
        names = now["task"].get("classes") or []
        single = {"kind": "single_label", "classes": names if len(names) == n else list(range(n))}
        was["task"] = single if n else {"kind": "next_token", "n_outputs": was["model"]["vocab_size"]}
    # If a state lacks a field, that option did not exist yet, so it had its default.
    task = task_from_record(was["task"])
    defaults: dict[str, Any] = {field.name: field.default for field in fields(Recipe)}
    defaults |= {"optimizer": "AdamW", "train_weights": None} | ({} if task is None else _flat({"task": task.record()}))
    old, new = _flat(was), _flat(now)
    old = {**new, **defaults, **old}
    differing = [name for name in old if old[name] != new.get(name)]
    caused = {_CAUSES.get(name) for name in differing}
    found = []
    for name in differing:
        before, after = old[name], new.get(name)
        more = name == "epochs" and after > before
        if name in caused or name.endswith("_marks") or (more and now["schedule"] == "constant"):
            continue  # with a constant rate, no step before depends on how many follow
        text = _in_words(name, before, after)
        which, _, what = name.partition("_")
        marks: list[Any] = [values.get(f"{which}_marks") for values in (was, now)]
        if what in ("set", "rows") and all(marks):
            text += f": {first_difference(*marks)}"
        if more:
            text += f" (the {now['schedule']} schedule depends on the number of epochs; only a constant one goes on)"
        found.append(text)
    return found


def _in_words(name: str, before: Any, after: Any) -> str:
    if name in _WORDS:
        return _WORDS[name].format(before or "no", after or "no")
    if isinstance(before, list) and isinstance(after, list) and max(len(repr(before)), len(repr(after))) >= _LONG:
        sides = {"gained": [x for x in after if x not in before], "lost": [x for x in before if x not in after]}
        parts = [f"{verb} {x[0]}" + f" and {len(x) - 1} more" * (len(x) > 1) for verb, x in sides.items() if x]
        if parts:
            return f"{name} {', '.join(parts)}"
    return f"{name} was {_short(before)}, is {_short(after)}"


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < _LONG else text[: _LONG - 3] + "..."
