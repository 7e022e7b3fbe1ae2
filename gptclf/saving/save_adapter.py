"""`save_adapter`: writes a folder that PEFT, `load_adapter` and `load_model` can read.

    adapter_config.json, adapter_model.safetensors    PEFT's
    gptclf_adapter.json                               labels, task, preparation, the base's digest, ...
    gptclf_adapter.safetensors                        tensors that PEFT's file holds in another form, or not at all

All of them carry one mark, so that files of two saves are not mixed.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from gptclf.checks import path
from gptclf.files.atomic import Writer, text_writer, write_all
from gptclf.files.json_file import to_json
from gptclf.files.safetensors_file import tensor_writer
from gptclf.gpt2.lora import place
from gptclf.gpt2.lora_linear import lora_layers
from gptclf.gpt2.model import GPT2, check_gpt2, is_language_model, warn_of_no_preparation
from gptclf.gpt2.sharing import borrow
from gptclf.gpt2.standard import is_standard
from gptclf.saving.adapter_files import PREFIX, is_adapter
from gptclf.saving.adapter_record import (
    ADAPTER,
    ADAPTER_ORIGINALS,
    PEFT_CONFIG,
    PEFT_FILES,
    PEFT_WEIGHTS,
    Factors,
    base_digest,
    bits_of,
    factors_of,
    plain,
    write_adapter_record,
)
from gptclf.saving.load_model import is_folded, load_base
from gptclf.saving.peft_config import layer_names, layer_of, peft_names
from gptclf.saving.peft_values import peft_values
from gptclf.saving.record import SAVE_MARK, record_writer
from gptclf.saving.save_model import card_writer, check_card, check_whole, digest_of, fold, tensors_of
from gptclf.weights.folders import CONFIG, INDEX, OURS, TORCH_INDEX, TORCH_WEIGHTS, WEIGHTS

logger = logging.getLogger(__name__)

# The layers that PEFT saves with an adapter, and the kind of task, by the name of the head's matrix.
_HEADS = {"score.weight": (["classifier", "score"], "SEQ_CLS"), "lm_head.weight": (None, "CAUSAL_LM")}
_NORM = ("trunk.norm.weight", "trunk.norm.bias")


def save_adapter(
    model: GPT2,
    folder: str | Path,
    *,
    base: str | Path | None = None,
    data: str | None = None,
    datasets: Sequence[str] = (),
    metrics: Mapping[str, float] | None = None,
    measured_on: str | None = None,
    license: str | None = None,
) -> Path:
    """Write the LoRA factors of a model, its head and what else trains to a folder that PEFT can read as well.

    The folder holds none of the frozen tensors, only the name and a digest of the base. PEFT has no head bias: it is
    folded into the final norm, which is then part of the folder. What PEFT cannot hold at all, such as another pooling
    or a head of your own, is written for gptclf alone, and the reason is logged. An interrupted save leaves the folder
    as it was.

    Args:
        model: A model that `apply_lora` or `load_adapter` returned.
        folder: Created if it does not exist. A folder with something that gptclf did not write is not overwritten.
        base: The name, repository or folder of the base, where loading will look for it. None takes what the model was
            loaded from. The frozen tensors are compared with it if that needs no download.
        data: For the card, as in `save_model`, like the arguments below.
        datasets: Names of the training data sets on the hub.
        metrics: Measured values by name.
        measured_on: The data set of the metrics.
        license: A licence's identifier.

    Returns:
        The folder.

    Raises:
        ValueError: The model has no factors, its frozen tensors are not those of the base, or it trains what no adapter
            can hold.
        FileExistsError: The folder holds a model, or an adapter that gptclf did not write.

    Example:
        >>> import tempfile
        >>> from gptclf import add_classifier_head, apply_lora, load_gpt2, load_model
        >>> clf = apply_lora(add_classifier_head(load_gpt2("nano"), classes=["ham", "spam"], seed=1), seed=1)
        >>> load_model(save_adapter(clf, tempfile.mkdtemp())).classes
        ['ham', 'spam']
    """
    check_gpt2(model)
    check_card(datasets, metrics, data=data, measured_on=measured_on, license=license)
    warn_of_no_preparation(model, stacklevel=2)
    target = _target(folder)
    _check_adapter(model)
    extras = _extras(model)
    named, folded = _base_of(model, base, extras, target)
    ours = _held(model, extras)
    theirs, replaced, saved, reason = _exported(model, ours, extras, folded)
    if reason:
        logger.warning("%s: PEFT cannot load this adapter (%s); gptclf can", target, reason)
    originals = {name: ours[name] for name in (replaced if theirs is not None else ours)}
    mark = digest_of(ours, model)
    saving = {"mark": mark, "originals": list(originals), "exported": theirs is not None}
    record = write_adapter_record(model, base=named, extras=extras, **saving)
    writers: dict[str, Writer] = {}
    if theirs is not None:
        config = _peft_config(model, saved, named)
        writers[PEFT_CONFIG] = text_writer(to_json(dict(sorted(config.items()))))
        writers[PEFT_WEIGHTS] = tensor_writer(theirs, {"format": "pt", SAVE_MARK: mark})
    if originals:
        writers[ADAPTER_ORIGINALS] = tensor_writer(originals, {SAVE_MARK: mark})
    said: dict[str, Any] = {"data": data, "datasets": datasets, "metrics": metrics, "measured_on": measured_on}
    described = _described(model, named)  # without the path of a local base, which is private
    said |= {"license": license, "adapter": described, "base_model": named if described["base"] == named else None}
    writers |= card_writer(model, target, exported=theirs is not None, **said)
    # PEFT's configuration has no digest: a user may name another base in it.
    writers[ADAPTER] = record_writer(record, {PEFT_WEIGHTS, ADAPTER_ORIGINALS} & set(writers))
    # Of an earlier save: they would be read as part of this one.
    write_all(target, writers, delete={*PEFT_FILES, ADAPTER_ORIGINALS} - set(writers))
    return target


def _target(folder: str | Path) -> Path:
    target = path("folder", folder)
    if target.is_file():
        raise FileExistsError(f"{target} is a file; give a folder")
    if is_adapter(target) and not (target / ADAPTER).is_file():
        raise FileExistsError(f"{target} holds an adapter that gptclf did not write; give another folder")
    models = [name for name in (OURS, CONFIG, WEIGHTS, INDEX, TORCH_WEIGHTS, TORCH_INDEX) if (target / name).exists()]
    if models:
        raise FileExistsError(f"{target} holds {', '.join(models)} of a model; give another folder for the adapter")
    return target


def _check_adapter(model: GPT2) -> None:
    """Raise unless the model is a plain GPT-2 with factors."""
    layers = dict(lora_layers(model))
    if not layers:
        raise ValueError("the model has no LoRA layers; call apply_lora(model), or save it whole with save_model")
    hooked = [name for name, layer in layers.items() if not is_standard(layer)]
    if hooked:
        raise ValueError(f"{hooked[0]} has hooks or parts of another class, which no adapter holds; remove them")
    beneath = [f"{name}.base.weight" for name in layers]
    parameters = dict(model.named_parameters())
    if trained := [name for name in beneath if name in parameters and parameters[name].requires_grad]:
        problem = f"{trained[0]} trains beneath its factors, which no adapter can hold"
        raise ValueError(f"{problem}; save the model whole: save_model(merge_lora(model), folder)")
    stripped = borrow(model)
    for name, layer in list(lora_layers(stripped)):
        place(stripped, name, layer.base)
    check_whole(stripped, tensors_of(stripped))
    model.task.check_saved()


def _extras(model: GPT2) -> list[str]:
    """Return the names, without factors, of the tensors that the adapter holds: whole layers, or biases.

    They are the trunk's and a language model's matrix of its own. A classifier's head is held in any case.
    """
    inner = _inner(model)
    named = {plain(name): p for name, p in model.named_parameters() if name.startswith(inner) and ".lora_" not in name}
    layers = dict(lora_layers(model))
    found = {name for name, p in named.items() if p.requires_grad or name in model.adapter_extras}
    biases = {name for name in named if name.endswith(".bias")}
    beneath = {f"{path}.bias" for path in layers if f"{path}.bias" in named}
    if found & beneath:  # PEFT has the biases of all layers with factors, or of none
        found |= beneath
    whole = {layer_of(name) for name in found - (biases if biases <= found else beneath)}
    return [name for name in named if name in found or layer_of(name) in whole]


def _held(model: GPT2, extras: Sequence[str]) -> dict[str, Tensor]:
    """Return all that the adapter holds, by the model's names: factors, extras and the head."""
    head = {} if is_language_model(model) else tensors_of(model)
    held = {
        name: p.detach().float() for name, p in model.named_parameters() if ".lora_" in name or plain(name) in extras
    }
    held |= {name: tensor for name, tensor in head.items() if name.startswith("head.")}
    return {name: tensor.cpu().contiguous() for name, tensor in held.items()}


def _inner(model: GPT2) -> tuple[str, ...]:
    """Return how the names start that PEFT's file has as they are: all but those of a classifier's head."""
    return ("trunk.", "head.") if is_language_model(model) else ("trunk.",)


def _exported(
    model: GPT2, ours: Mapping[str, Tensor], extras: Sequence[str], folded_base: bool
) -> tuple[dict[str, Tensor] | None, list[str], list[str], str]:
    """Return PEFT's tensors, our names of those that they replace, the extras among them, and why there are none."""
    layers, inner = dict(lora_layers(model)), _inner(model)
    reason = model.head.export_problem() or ("" if model.task.exported() is not None else "its task is one of your own")
    if not any(name.startswith(inner) for name in layers):
        reason = reason or "it has factors on the head alone"
    if reason:
        return None, [], [], reason
    head, replaced, saved = model.head.exported_as.removesuffix(".weight"), [], list(extras)
    out: dict[str, Tensor] = {name: tensor for name, tensor in ours.items() if name.startswith(inner)}
    for name, layer in layers.items():
        if layer.parts > 1:
            replaced += [f"{name}.lora_A.weight", f"{name}.lora_B.weight"]
            out |= dict(zip(replaced[-2:], layer.pair(), strict=True))
    weight, bias = out.get("head.output.weight", ours.get("head.output.weight")), ours.get("head.output.bias")
    if "head.output" in layers and not is_language_model(model):
        weight, bias = layers["head.output"].merged()
        replaced += [name for name in ours if name.startswith("head.")]
    norm = {name: parameter.detach().float() for name, parameter in model.named_parameters() if name in _NORM}
    if bias is not None and weight is not None:
        folded = fold(weight, bias, norm[_NORM[1]])
        if folded is None:
            return None, [], [], "its head's bias cannot be folded into the final norm, and score has no bias"
        replaced += [name for name in ("head.output.bias", _NORM[1]) if name in ours and name not in replaced]
        out |= norm | {_NORM[1]: folded}
        logger.info("the folder holds the final norm; for servers that take the head alone, make it with bias=False")
    elif folded_base:  # in the base's own file the norm's shift is another one
        out |= norm
    saved += [name for name in _NORM if name in out and name not in saved]
    if weight is not None:
        out["head.output.weight"] = weight
    names = peft_names(out, model.config, head)
    made = {PREFIX + peft: (out[name].t() if flip else out[name]) for name, (peft, flip) in names.items()}
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in made.items()}, replaced, saved, ""


def _peft_config(model: GPT2, saved: Sequence[str], base: str | None) -> dict[str, Any]:
    found = {name: layer for name, layer in lora_layers(model) if name.startswith(_inner(model))}
    layers = {name: _plain_factors(factors_of(layer), layer.scale) for name, layer in found.items()}
    names = layer_names(model.config, model.head.exported_as.removesuffix(".weight"))
    parameters = [plain(name) for name, _ in model.named_parameters() if ".lora_" not in name]
    values = peft_values(layers, saved, names, parameters)
    head, kind = _HEADS[model.head.exported_as]
    values["modules_to_save"] = [*(values["modules_to_save"] or []), *(head or [])] or None
    return values | {"task_type": kind, "base_model_name_or_path": base, "revision": None}


def _plain_factors(options: Factors, scale: float) -> Factors:
    """Return the options of the one pair that a layer of several parts is in PEFT's file."""
    if options.parts == 1:
        return options
    rank = options.rank * options.parts
    return options._replace(rank=rank, alpha=scale * rank, scaling="alpha/rank", parts=1)


def _base_of(model: GPT2, base: str | Path | None, extras: Sequence[str], target: Path) -> tuple[str | None, bool]:
    """Return the base's name, and whether its folder holds the final norm with the bias of a head folded in.

    Raises:
        ValueError: The bases that are at hand are not what lies beneath the factors.
    """
    known = [model.base, model.source]
    if base is not None:
        given = path("base", base)
        known = [str(given) if os.fspath(base).startswith("~") else os.fspath(base)]
    names, unknown = list(dict.fromkeys(filter(None, known))), list[str]()
    matrices = bits_of(model) is None
    digest = base_digest(model, without=extras, matrices=matrices)
    for name in names:
        try:
            beneath, place = load_base(name, beside=target, network=False)
        except (OSError, ValueError) as error:
            logger.info("the frozen tensors were not compared with %s: %s", name, error)
            unknown.append(name)
            continue
        if base_digest(beneath, without=extras, matrices=matrices) == digest:
            return name, is_folded(place)
    if names and not unknown:
        problem = f"the frozen tensors are not those of {names[0]}, on which loading would put the adapter"
        raise ValueError(f"{problem}; save the base with save_model, and give its folder as base=")
    if not names:
        logger.warning("the base has no name, so loading the adapter will need base=; save_adapter(base=) names it")
    return (unknown[0] if unknown else None), False


def _described(model: GPT2, base: str | None) -> dict[str, str]:
    """Return what the card says about the adapter, by heading."""
    layers = list(lora_layers(model))
    kinds = sorted({f"rank {layer.rank}, scale {layer.scale:g}" for _, layer in layers})
    local = base is not None and (Path(base).is_absolute() or Path(base).exists())
    return {
        "base": "a local folder" if local else base or "not named",
        "bits of the base": bits_of(model) or "float32",
        "matrices with factors": f"{len(layers)}: {', '.join(kinds[:4])}",
    }
