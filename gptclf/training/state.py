"""The state of a training run in one file, from which it resumes with the very steps it would have taken.

A state is one safetensors file: the trained weights, the optimizer's tensors, the generator of dropout and the
callbacks' tensors. Its metadata holds JSON: the history, numbers, and the identity of the run. A SHA-256 of all of it
detects damage. Nothing is unpickled.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from gptclf.files.atomic import write_file
from gptclf.files.safetensors_file import read_safetensors, tensor_writer
from gptclf.gpt2.standard import described, is_standard
from gptclf.training.differences import differences_between
from gptclf.training.history import History, history_from_dict
from gptclf.training.row_marks import digest_of_rows, marks_of_rows
from gptclf.training.run import Callback, Run

# Format 1, of version 0.1.0: no digest, no numbers, torch's global generators, AdamW alone.
_FORMAT = "2"


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
            dtype = torch.float32 if isinstance(value, float) else None
            fits = isinstance(value, Tensor | int | float)
            tensors[f"callback.{i}.{key}"] = (
                torch.as_tensor(value, dtype=dtype, device="cpu") if fits else _refuse(value, callback)
            )
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
    write_file(path, tensor_writer(whole, metadata))


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
        path: The file.
        tensors: The tensors by name, as views on the file.
        history: The history up to the state's step.
        numbers: The scale of the learning rate, and the optimizer's values that are not tensors.
    """

    path: Path
    tensors: dict[str, Tensor]
    history: History
    numbers: dict[str, Any]

    def restore(self, run: Run) -> None:
        """Put the state into a run that was just built in the same way, before its features are computed.

        A callback may have trained what is frozen again, so the frozen part may be another one than at the start.
        """
        self._restore_others(run)  # first: if a part of them is damaged, the model is unchanged
        weights, named = self._under("model."), dict(run.model.named_parameters())
        # First all parameters trained so far, then those that still train.
        for chosen in (weights, self.numbers.get("trains", weights)):
            for name, parameter in named.items():
                parameter.requires_grad_(name in chosen)
            run.follow_freeze()
        for name, weight in weights.items():
            named[name].detach().copy_(weight)
        optimizer = run.optimizer
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

    def _restore_others(self, run: Run) -> None:
        """Restore the history and the callbacks, and check the state of the generator."""
        try:
            self.restore_generator(torch.Generator(run.model.device))
            run.take_up(self.history, self.numbers.get("lr_scale", 1.0))
            for i, callback in enumerate(with_state(run)):
                callback.restore({key: value.clone() for key, value in self._under(f"callback.{i}.").items()}, run)
        except (LookupError, ValueError, TypeError, RuntimeError, StopIteration) as error:
            reason = f"the generator or a callback cannot be restored from it ({error!r})"
            raise DamagedState(f"{self.path} is damaged: {reason}. The model is unchanged") from error

    def restore_generator(self, generator: torch.Generator | None) -> None:
        """Put the state of the learner's generator into it, once there is one."""
        if generator is not None:
            random = self.tensors.get("random.learner", self.tensors.get(f"random.{generator.device.type}"))
            if random is not None:
                generator.set_state(random.clone())

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
        differences = differences_between(json.loads(metadata["identity"]), identity)
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
    return State(path, tensors, history, numbers)
