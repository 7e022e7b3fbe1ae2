"""The state of a training run in one file, so that a run that was cut off goes on as if it had not been.

One safetensors file: what trains, the optimizer's moments, torch's generators and the callbacks' tensors, with the
history and what the run was given as JSON in its metadata. One file is renamed in one step, so it is never half of
two states, and nothing is unpickled.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from gptclf.checks import python_value
from gptclf.data.batches import TokenRows
from gptclf.data.windows import TextWindows
from gptclf.files.atomic import write_all
from gptclf.files.safetensors_file import read_safetensors, tensor_writer
from gptclf.gpt2.heads import ClassifierHead
from gptclf.gpt2.model import GPT2
from gptclf.training.callbacks import Callback
from gptclf.training.history import History, Scores
from gptclf.training.loop import Step

STATE = "training.safetensors"
_FORMAT = "1"

# What AdamW keeps for each parameter.
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def run_identity(
    model: GPT2, train_set: TokenRows, val_set: TokenRows | None, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """What determines a run: its settings, its rows, its frozen weights, what trains."""
    frozen = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            frozen.update(name.encode())
            frozen.update(parameter.detach().cpu().contiguous().numpy().data)
    pooling = model.head.pooling if isinstance(model.head, ClassifierHead) else None
    identity = {
        **{name: python_value(value) for name, value in settings.items()},
        "model": {**model.config.to_dict(), "pooling": pooling, "classes": len(model.classes or [])},
        "train_set": _digest_of_rows(model, train_set),
        "val_set": None if val_set is None else _digest_of_rows(model, val_set),
        "frozen weights": frozen.hexdigest(),
        "trainable": [name for name, parameter in model.named_parameters() if parameter.requires_grad],
    }
    json.dumps(identity)  # what cannot be written shall be known before the first step
    return identity


def with_state(callbacks: Sequence[Callback]) -> list[Callback]:
    """The callbacks that a resumed run must have again, in the same order; those that only watch may come and go."""
    return [callback for callback in callbacks if type(callback).state is not Callback.state]


def _digest_of_rows(model: GPT2, dataset: TokenRows) -> str:
    digest = hashlib.sha256(dataset.ids.tobytes())
    digest.update(dataset.offsets.tobytes())
    if isinstance(dataset, TextWindows):  # whose targets are its own tokens, many times over
        digest.update(str(dataset.length).encode())
        return digest.hexdigest()
    digest.update(dataset.targets(model.classes or []).tobytes())
    return digest.hexdigest()


def save_checkpoint(
    folder: Path,
    identity: Mapping[str, Any],
    model: GPT2,
    optimizer: Optimizer,
    history: History,
    callbacks: Sequence[Callback],
) -> None:
    """Write the state after a whole epoch; the file before it stays until this one is whole."""
    tensors: dict[str, Tensor] = {"random.cpu": torch.get_rng_state()}
    if model.device.type == "cuda":
        tensors["random.cuda"] = torch.cuda.get_rng_state(model.device)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            tensors[f"model.{name}"] = parameter.detach()
            tensors |= {f"optimizer.{key}.{name}": optimizer.state[parameter][key] for key in _MOMENTS}
    for i, callback in enumerate(with_state(callbacks)):
        tensors |= {f"callback.{i}.{key}": value for key, value in callback.state().items()}
    metadata = {
        "format": _FORMAT,
        "identity": json.dumps(identity),
        "history": json.dumps(asdict(history)),
    }
    whole = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    folder.mkdir(parents=True, exist_ok=True)
    write_all(folder, {STATE: tensor_writer(whole, metadata)})


def load_checkpoint(
    folder: Path,
    identity: Mapping[str, Any],
    model: GPT2,
    optimizer: Optimizer,
    history: History,
    callbacks: Sequence[Callback],
) -> None:
    """Put a saved state into a run just built alike; torch's generators are set as well.

    Raises:
        ValueError: The file is damaged, or the run it is of was given something else; says what.
    """
    path = folder / STATE
    tensors, metadata = read_safetensors(path)
    if metadata.get("format") != _FORMAT:
        raise ValueError(f"{path} has format {metadata.get('format')!r}; this version of gptclf resumes {_FORMAT!r}")
    try:
        was, saved = json.loads(metadata["identity"]), json.loads(metadata["history"])
        now = json.loads(json.dumps(identity))
        different = [key for key in {**was, **now} if was.get(key) != now.get(key)]
        steps = [Step(**step) for step in saved["steps"]]
        evaluations, epochs = ([Scores(**scores) for scores in saved[key]] for key in ("evaluations", "epochs"))
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: its record cannot be read ({error!r}); start the run anew") from error
    if different:
        shown = "; ".join(f"{key} was {_short(was.get(key))}, is {_short(now.get(key))}" for key in different)
        raise ValueError(
            f"{path} is the state of another run: {shown}. Give what that run was given, or another checkpoint_dir"
        )
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    wanted = {f"model.{name}": p.shape for name, p in trained.items()}
    wanted |= {f"optimizer.{key}.{name}": p.shape for name, p in trained.items() for key in _MOMENTS if key != "step"}
    wanted |= {f"optimizer.step.{name}": torch.Size([]) for name in trained}
    wrong = [key for key, shape in wanted.items() if key not in tensors or tensors[key].shape != shape]
    if wrong or "random.cpu" not in tensors:
        raise ValueError(f"{path} is damaged: {', '.join(wrong[:3]) or 'random.cpu'} is missing; start the run anew")
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(tensors[f"model.{name}"])
            # Copies, as what is read is a view on the file, and laid out as the optimizer laid them out: its fused
            # step walks memory, whatever the strides say.
            moments = {key: tensors[f"optimizer.{key}.{name}"] for key in _MOMENTS}
            optimizer.state[parameter] = {
                key: torch.empty_like(
                    value if key == "step" else parameter, dtype=value.dtype, device=parameter.device
                ).copy_(value)
                for key, value in moments.items()
            }
    torch.set_rng_state(tensors["random.cpu"].clone())
    if "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random.cuda"].clone(), model.device)
    history.steps, history.evaluations, history.epochs = steps, evaluations, epochs
    history.seconds = float(saved.get("seconds", 0.0))
    for i, callback in enumerate(with_state(callbacks)):
        start = f"callback.{i}."
        own = {key.removeprefix(start): value.clone() for key, value in tensors.items() if key.startswith(start)}
        callback.restore(own, history)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else text[:57] + "..."
