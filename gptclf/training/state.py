"""The state of a training run in one file, from which it resumes with the very steps it would have taken.

A state is one safetensors file: the trained weights, the optimizer's tensors, the generator of dropout and the
callbacks' tensors. Its metadata holds JSON: the history, numbers, and the identity of the run. A SHA-256 of all of it
detects damage. Nothing is unpickled.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from gptclf.files.atomic import write_all
from gptclf.files.safetensors_file import read_safetensors, tensor_writer
from gptclf.gpt2.standard import described, is_standard
from gptclf.tasks import task_from_record
from gptclf.training.history import History, history_from_dict
from gptclf.training.recipe import Recipe
from gptclf.training.row_marks import digest_of_rows, first_difference, marks_of_rows
from gptclf.training.run import Callback, Run

# Format 1, of version 0.1.0: no digest, no numbers, torch's global generators, AdamW alone.
_FORMAT = "2"

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


def identity_of(run: Run) -> dict[str, Any]:
    """Return the identity of a run: its recipe, task, rows, frozen weights, and the names of trained parameters."""
    model, sets, weights = run.model, {"train": run.train_set, "val": run.val_set}, run.train_set.weights
    trained = run.trained()
    frozen = {name: parameter for name, parameter in model.named_parameters() if name not in trained}
    identity = {
        **asdict(run.recipe),
        "precision": run.precision,
        "optimizer": type(run.optimizer).__name__,
        "callbacks": [
            type(callback).__qualname__ + f"({callback.measure!r})" * (callback.measure not in (None, "loss"))
            for callback in with_state(run)
        ],
        "model": model.config.to_dict(),
        "head": list(described(model.head)) if is_standard(model.head) else type(model.head).__qualname__,
        "task": run.task.record(),
        "preparation": asdict(run.train_set.preparation),
        **{f"{name}_set": None if rows is None else digest_of_rows(rows, run.task) for name, rows in sets.items()},
        **{f"{name}_rows": None if rows is None else len(rows) for name, rows in sets.items()},
        **{f"{name}_marks": None if rows is None else marks_of_rows(rows, run.task) for name, rows in sets.items()},
        "train_weights": None if weights is None else _sha256([weights.tobytes()]),
        "frozen weights": _sha256(part for name, p in frozen.items() for part in (name.encode(), _bytes(p))),
        "trainable": list(trained),
    }
    # Fail now, not after the first epoch, if something cannot be serialised.
    return json.loads(json.dumps(identity))  # type: ignore[no-any-return]


def with_state(run: Run) -> list[Callback]:
    """Return the callbacks that a resumed run must have again, in the same order; others may come and go."""
    return [callback for callback in run.callbacks if type(callback).state is not Callback.state]


def write_state(path: Path, identity: Mapping[str, Any], run: Run) -> None:
    """Write the state of a run after a step; the file is renamed into place."""
    trained, generator, optimizer = run.trained(), run.objective.learner.generator, run.optimizer
    tensors: dict[str, Tensor] = {f"model.{name}": parameter for name, parameter in trained.items()}
    tensors |= {f"buffer.{name}": buffer for name, buffer in run.model.named_buffers()}
    tensors |= {} if generator is None else {"random.learner": generator.get_state()}
    for i, callback in enumerate(with_state(run)):
        for key, value in callback.state().items():
            fits = isinstance(value, Tensor | int | float)
            tensors[f"callback.{i}.{key}"] = torch.as_tensor(value) if fits else _refuse(value, callback)
    kept: dict[str, Any] = {name: optimizer.state.get(parameter, {}) for name, parameter in trained.items()}
    for name, state in kept.items():
        tensors |= {f"optimizer.{key}.{name}": value for key, value in state.items() if isinstance(value, Tensor)}
        kept[name] = {key: value for key, value in state.items() if not isinstance(value, Tensor)}
    # The schedule sets the learning rates. Other values may change during the run, as in self-adapting optimizers.
    groups = [
        {key: v for key, v in group.items() if isinstance(v, bool | int | float) and key not in ("lr", "initial_lr")}
        for group in optimizer.param_groups
    ]
    trains = [name for name, parameter in trained.items() if parameter.requires_grad]
    numbers = {"lr_scale": run.lr_scale, "groups": groups, "optimizer": kept, "trains": trains}
    metadata = {"format": _FORMAT, "identity": json.dumps(identity), "history": json.dumps(asdict(run.history))}
    metadata["numbers"] = json.dumps(numbers, default=_refuse)
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata["digest"] = _digest(whole, metadata)
    write_all(path.parent, {path.name: tensor_writer(whole, metadata)})


def _refuse(value: object, owner: object = "the optimizer") -> NoReturn:
    owner = owner if isinstance(owner, str) else type(owner).__name__
    can = "a state can hold numbers, and tensors by name. Train without checkpoint_dir, or change that"
    raise TypeError(f"{owner} keeps a {type(value).__name__}; {can}")


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    def parts() -> Iterator[Any]:
        for name, tensor in sorted(tensors.items()):
            yield f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()
            yield _bytes(tensor)
        yield from (f"{key} {metadata[key]}".encode() for key in sorted(metadata) if key != "digest")

    return _sha256(parts())


def _sha256(parts: Iterable[bytes | memoryview]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


class DamagedState(ValueError):
    """A file that is not a complete state."""


@dataclass(frozen=True)
class State:
    """A complete state of the current run, as read from a file.

    Attributes:
        tensors: The tensors by name, as views on the file.
        history: The history up to the state's step.
        numbers: The scale of the learning rate, and the optimizer's values that are not tensors.
    """

    tensors: dict[str, Tensor]
    history: History
    numbers: dict[str, Any]

    def restore_weights(self, run: Run) -> None:
        """Put the weights, and the choice of what trains, into the model of a run that was just built in the same way.

        This comes before the features of the frozen part, which a callback may have trained and then frozen.
        """
        weights, named = self._under("model."), dict(run.model.named_parameters())
        for chosen in (weights, self.numbers.get("trains", weights)):  # what had been trained, then what trains
            for name, parameter in named.items():
                parameter.requires_grad_(name in chosen)
            run.follow_freeze()
        for name, weight in weights.items():
            named[name].detach().copy_(weight)

    def restore(self, run: Run) -> None:
        """Put everything else into the run."""
        optimizer, generator = run.optimizer, run.objective.learner.generator
        moments = [(*name.partition("."), value) for name, value in self._under("optimizer.").items()]
        # Most optimizers count their steps on the CPU.
        steps_move = any(optimizer.defaults.get(name) for name in ("fused", "capturable"))
        with torch.no_grad():
            for name, parameter in run.trained().items():
                kept = dict(self.numbers.get("optimizer", {}).get(name, {}))
                for key, value in [(key, value) for key, _, of, value in moments if of == name]:
                    # A copy, because the tensor is a view on the file. It is laid out like the parameter, because a
                    # fused step ignores the strides.
                    like = parameter if value.shape == parameter.shape else value
                    device = parameter.device if key != "step" or steps_move else value.device
                    kept[key] = torch.empty_like(like, dtype=value.dtype, device=device, requires_grad=False)
                    kept[key].copy_(value)
                optimizer.state[parameter] = kept
            for name, buffer in run.model.named_buffers():
                buffer.data = self.tensors.get(f"buffer.{name}", buffer).to(buffer.device, copy=True)
        for group, saved in zip(optimizer.param_groups, self.numbers.get("groups", []), strict=False):
            group.update(saved)
        random = self.tensors.get("random.learner", self.tensors.get(f"random.{run.model.device.type}"))
        if random is not None and generator is not None:
            generator.set_state(random.clone())
        run.take_up(self.history, self.numbers.get("lr_scale", 1.0))
        for i, callback in enumerate(with_state(run)):
            callback.restore({key: value.clone() for key, value in self._under(f"callback.{i}.").items()}, run)

    def _under(self, prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): v for name, v in self.tensors.items() if name.startswith(prefix)}


def read_state(path: Path, identity: Mapping[str, Any], run: Run) -> State:
    """Read a state of the run that `identity` describes.

    Args:
        path: The file.
        identity: The identity of the current run.
        run: The current run, with the trained parameters.

    Raises:
        DamagedState: The file is not a complete state.
        ValueError: It is the state of another run; the message says what differs.
    """
    try:
        tensors, metadata = read_safetensors(path)
    except (OSError, ValueError) as error:
        raise DamagedState(f"{path} is damaged: {error.__cause__ or error}") from error
    version = metadata.get("format", "")
    if not version.isdigit():
        raise DamagedState(f"{path} is not the state of a run")
    if version not in ("1", _FORMAT):
        raise ValueError(f"{path} has format {version!r}; this version of gptclf resumes '1' and {_FORMAT!r}")
    if version != "1" and metadata.get("digest") != _digest(tensors, metadata):
        raise DamagedState(f"{path} is damaged: its content does not match its SHA-256")
    try:
        history = history_from_dict(json.loads(metadata["history"]))
        numbers = json.loads(metadata.get("numbers", "{}"))
        differences = _differences(json.loads(metadata["identity"]), identity)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise DamagedState(f"{path} is damaged: its record cannot be read ({error!r})") from error
    if differences:
        advice = "Give what that run was given, or another checkpoint_dir"
        raise ValueError(f"{path} is the state of another run: {'; '.join(differences)}. {advice}")
    shapes = {name: parameter.shape for name, parameter in run.trained().items()}
    thawed = {name: run.model.get_parameter(name).shape for name in numbers.get("trains", ())}
    wanted = {f"model.{name}": shape for name, shape in (shapes | thawed).items()}
    if version == "1":
        wanted |= {f"optimizer.{key}.{name}": shapes[name] for name in shapes for key in ("exp_avg", "exp_avg_sq")}
        wanted |= {f"optimizer.step.{name}": torch.Size([]) for name in shapes}
    wrong = [name for name, shape in wanted.items() if name not in tensors or tensors[name].shape != shape]
    if wrong:
        raise DamagedState(f"{path} is damaged: {', '.join(wrong[:3])} is missing or of another shape")
    return State(tensors, history, numbers)


def _differences(was: dict[str, Any], now: Mapping[str, Any]) -> list[str]:
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
        marks = [values.get(f"{which}_marks") for values in (was, now)]
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
