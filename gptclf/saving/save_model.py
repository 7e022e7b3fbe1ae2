"""`save_model`: writes one folder that both gptclf and Hugging Face's libraries can load.

    config.json, model.safetensors, tokenizer files     Hugging Face's layout, which any tool for GPT-2 reads
    gptclf.json                                          what their format cannot hold: labels of any type, pooling, ...
    gptclf.safetensors                                   parameters that their format holds in another form

`transformers`' classifier has no head bias, so a bias b = W d is folded into the final norm's shift, which becomes
shift + d. The originals of both are in gptclf.safetensors, so that `load_model` restores the model bit for bit.
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptclf import checks
from gptclf.checks import path, python_value
from gptclf.files.atomic import Writer, text_writer, write_all
from gptclf.files.json_file import to_json
from gptclf.files.safetensors_file import tensor_writer
from gptclf.gpt2.freezing import policy_of
from gptclf.gpt2.heads import Head, blank_like
from gptclf.gpt2.lora_linear import lora_layers
from gptclf.gpt2.model import GPT2, check_gpt2, warn_of_no_preparation
from gptclf.gpt2.quantize import put_quantized
from gptclf.gpt2.quantized import count_weights, quantized_layers
from gptclf.gpt2.standard import difference
from gptclf.saving.adapter_files import is_adapter
from gptclf.saving.card import CARD, Card, is_our_card, model_card
from gptclf.saving.record import ORIGINALS, SAVE_MARK, record_writer, write_record
from gptclf.tokenizer.write import tokenizer_files
from gptclf.weights.bitsandbytes_layout import quantization_config
from gptclf.weights.folders import CONFIG, INDEX, OURS, TORCH_INDEX, TORCH_WEIGHTS, WEIGHTS
from gptclf.weights.hugging_face import config_to_hugging_face, to_hugging_face

logger = logging.getLogger(__name__)

_VOCABULARY = ("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json")
_OPENAI = ("vocab.bpe", "encoder.json", "hparams.json", "model.ckpt.index")
# Files of a foreign model, which a save would replace or mix with its own.
_MODEL_FILES = (CONFIG, WEIGHTS, INDEX, TORCH_WEIGHTS, TORCH_INDEX, *_VOCABULARY, *_OPENAI)
# Files that one save may have and the next may lack.
_OPTIONAL = {CONFIG, WEIGHTS, ORIGINALS, *_VOCABULARY}
_FOLDED = ("head.output.bias", "trunk.norm.bias")


def save_model(
    model: GPT2,
    folder: str | Path,
    *,
    data: str | None = None,
    datasets: Sequence[str] = (),
    metrics: Mapping[str, float] | None = None,
    measured_on: str | None = None,
    license: str | None = None,
) -> Path:
    """Write a classifier or language model to a folder that both `load_model` and `transformers` can read.

    Files are written beside the old ones and renamed once all are complete. An interrupted save leaves the folder as it
    was, or one that `load_model` completes; of two saves at once, one is left whole. A model that `transformers` cannot
    represent (pooling other than "last", a head or task of your own, a head bias that cannot be folded into the final
    norm, texts that are padded or lose their middle) is not exported: the folder then holds gptclf's files only, and
    the reason is logged.

    Args:
        model: The model to save.
        folder: Created if it does not exist. A folder with a model that gptclf did not write is not overwritten.
        data: A description of the training data for the model card (`README.md`), in Markdown. The card also lists the
            labels and the trainable parameters, and says how texts are prepared and how to load the folder. A card
            that somebody else wrote is left alone.
        datasets: Names of the training data sets on the hub.
        metrics: Measured values by name, such as {"accuracy": 0.97}.
        measured_on: The data set of the metrics.
        license: A licence's identifier, such as "mit".

    Returns:
        The folder.

    Raises:
        ValueError: The folder would load as another model: parts were added or removed, have hooks or compute
            something else.

    Example:
        >>> import tempfile
        >>> from gptclf import add_classifier_head, load_gpt2, load_model
        >>> clf = add_classifier_head(load_gpt2("nano"), classes=["ham", "spam"], seed=1)
        >>> load_model(save_model(clf, tempfile.mkdtemp())).classes
        ['ham', 'spam']
    """
    check_gpt2(model)
    check_card(datasets, metrics, data=data, measured_on=measured_on, license=license)
    if found := next((name for name, _ in lora_layers(model)), None):
        remedy = "save_adapter(model, folder) saves the factors, save_model(merge_lora(model), folder) the whole model"
        raise ValueError(f"{found} has LoRA factors, which a folder of a whole model cannot hold; {remedy}")
    target = _target(folder)
    if target.suffix in (".pth", ".pt"):
        logger.warning("%s becomes a folder, not a file; load_model takes the folder", target)
    warn_of_no_preparation(model, stacklevel=2)
    tensors = tensors_of(model)
    check_whole(model, tensors)
    mark = digest_of(tensors, model)
    vocabulary, refused = _tokenizer_files(model)
    theirs, originals, reason = _divide(model, tensors)
    if reason:
        logger.warning("%s: transformers cannot load this model (%s); gptclf.load_model can", target, reason)
    record = write_record(model, mark=mark, originals=list(originals), exported=theirs is not None)
    record |= {"tokenizer_refused": refused} if refused else {}
    writers: dict[str, Writer] = {}
    if theirs is not None:
        writers[WEIGHTS] = tensor_writer(theirs, {"format": "pt", SAVE_MARK: mark})
        end = model.tokenizer.eot_token if vocabulary else model.config.vocab_size - 1
        config = config_to_hugging_face(model.config, end) | (model.task.exported() or {}) | quantization_config(theirs)
        writers[CONFIG] = text_writer(to_json(config))
    if originals:
        writers[ORIGINALS] = tensor_writer(originals, {SAVE_MARK: mark})
    writers |= {name: text_writer(text) for name, text in vocabulary.items()}
    said: dict[str, Any] = {
        "data": data,
        "datasets": datasets,
        "metrics": metrics,
        "measured_on": measured_on,
        "license": license,
    }
    writers |= card_writer(model, target, exported=theirs is not None, **said)
    writers[OURS] = record_writer(record, set(writers) - {CARD})
    # Files of an earlier save that this one lacks would be read as part of it.
    write_all(target, writers, delete=_OPTIONAL - set(writers))
    return target


def card_writer(model: GPT2, target: Path, *, metrics: Mapping[str, float] | None, **said: Any) -> dict[str, Writer]:
    """Return the writer of a folder's card, or none if somebody else wrote the card that is there."""
    card = target / CARD
    if card.exists() and not is_our_card(card):
        return {}
    return {CARD: text_writer(model_card(_card(model, metrics=metrics or {}, **said)))}


def check_card(datasets: object, metrics: object, **texts: object) -> None:
    """Raise if what a user says for the card has a wrong type."""
    names = datasets if isinstance(datasets, Sequence) and not isinstance(datasets, str) else [None]
    if not all(isinstance(name, str) for name in names):
        raise TypeError(f"datasets is {datasets!r}; give a list of names")
    for name, text in texts.items():
        checks.instance(name, text, (str, type(None)), "a str or None")
    checks.instance("metrics", metrics, (Mapping, type(None)), "a dictionary of numbers by name")
    values = metrics if isinstance(metrics, Mapping) else {}
    wrong = {name: value for name, value in values.items() if not isinstance(python_value(value), int | float)}
    if wrong:
        raise TypeError(f"metrics holds {wrong!r}; give numbers by name")


def _target(folder: str | Path) -> Path:
    """Return the folder to write to; raise if it is a file or holds a model that gptclf did not write."""
    target = path("folder", folder)
    if target.is_file():
        raise FileExistsError(f"{target} is a file; give a folder")
    if is_adapter(target):
        raise FileExistsError(f"{target} holds an adapter; give another folder for the model")
    foreign = [name for name in _MODEL_FILES if (target / name).exists()]
    if foreign and not (target / OURS).exists():
        problem = f"{target} holds {', '.join(foreign)} that gptclf did not write"
        raise FileExistsError(f"{problem}; give another folder, so that no model is lost")
    return target


def tensors_of(model: GPT2) -> dict[str, Tensor]:
    """Return a model's parameters in float32, and the other tensors of its head, such as running means.

    Models are loaded in float32, so one that was cast is saved in float32 as well.
    """
    if not isinstance(model.head, Head):
        raise TypeError(f"model.head is a {type(model.head).__name__}; save_model needs a gptclf.Head: subclass it")
    tensors = {
        name: p.detach().float() if p.is_floating_point() else p.detach() for name, p in model.named_parameters()
    }
    others = {f"head.{name}": tensor for name, tensor in model.head.state_dict().items()}
    return tensors | {name: tensor for name, tensor in others.items() if name not in tensors}


def _card(model: GPT2, **said: Any) -> Card:
    config = model.config
    sizes = {"blocks": config.n_layers, "wide": config.emb_dim, "heads": config.n_heads}
    sizes |= {"tokens of context": config.context_length, "tokens in the vocabulary": config.vocab_size}
    return Card(
        # Not the folder's name: equal models save equal files.
        name=model.task.title,
        task=model.task.card(),
        sizes=sizes,
        parameters=count_weights(model),
        quantized=sorted({layer.bits for layer in quantized_layers(model).values()}),
        trained={name: p.numel() for name, p in model.named_parameters() if p.requires_grad},
        looks_at=model.head.looks_at,
        policy=policy_of(model),
        **{"base_model": model.base, **vars(model.preparation), **said},
    )


def _tokenizer_files(model: GPT2) -> tuple[dict[str, str], str]:
    """Return the tokenizer's files, with the preparation as far as `transformers` can follow it.

    If there are none, because it cannot be found or is not of GPT-2's kind, the reason is logged. The second value is
    the reason if it is another tokenizer than GPT-2's, which must then not be taken in its place.
    """
    context, prepared = model.config.context_length, model.preparation
    length = min(prepared.max_length or context, context)
    try:
        return tokenizer_files(model.tokenizer, length, truncation=prepared.truncation), ""
    except (OSError, ValueError) as error:
        logger.warning("saved without its tokenizer: %s", error)
        return {}, str(error) if isinstance(error, ValueError) else ""


def _divide(model: GPT2, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor] | None, dict[str, Tensor], str]:
    """Return the tensors for Hugging Face's file (or None), those for our own file, and the reason for a None."""
    everything = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    reason = model.head.export_problem() or model.preparation.export_problem()
    if not reason and model.task.exported() is None:
        reason = f"its task is {type(model.task).__name__}, and transformers has no such task"
    if reason:
        return None, everything, reason
    theirs = to_hugging_face(tensors, model.config)
    if "head.output.weight" in everything:
        theirs[model.head.exported_as] = everything["head.output.weight"]
    if "head.output.bias" not in everything:
        return theirs, {}, ""
    folded = fold(*(tensors[name] for name in ("head.output.weight", "head.output.bias", "trunk.norm.bias")))
    if folded is None:
        return None, everything, "its head's bias cannot be folded into the final norm, and score has no bias"
    theirs["transformer.ln_f.bias"] = folded
    return theirs, {name: everything[name] for name in _FOLDED}, ""


def fold(weight: Tensor, bias: Tensor, shift: Tensor) -> Tensor | None:
    """Return the final norm's shift with the head's bias folded in, or None if no shift gives the same logits.

    logits = W (x + shift) + b = W (x + shift + d) requires W d = b; pinv(W) b is the smallest solution if there is one.
    """
    W, b, s = (tensor.detach().double().cpu() for tensor in (weight, bias, shift))
    if not all(tensor.isfinite().all() for tensor in (W, b, s)):
        return None
    folded = (s + torch.linalg.pinv(W) @ b).float()
    # Check the shift as it will be used, after rounding to float32.
    error = (W @ (folded.double() - s) - b).abs().max()
    return folded if error <= 1e-6 * max(1.0, float(b.abs().max())) else None


def check_whole(model: GPT2, tensors: Mapping[str, Tensor]) -> None:
    """Raise if the saved folder would load as another model: its parameters or its computation are not GPT-2's.

    A head of the user's is compared with itself: it comes back from its own class.
    """
    head = blank_like(model.head, model.config.emb_dim, model.task.n_outputs)
    whole = GPT2(model.config, task=model.task, head=head, device="meta")
    put_quantized(whole, tensors)
    expected = {name: tuple(p.shape) for name, p in whole.named_parameters()}
    found = {name: tuple(tensors[name].shape) for name, _ in model.named_parameters()}
    wrong = [name for name in {**expected, **found} if expected.get(name) != found.get(name)]
    if wrong:
        shown = ", ".join(wrong[:4]) + ", ..." * (len(wrong) > 4)
        remedy = "Merge wrapped modules, or set model.config to this shape"
        if all(name.startswith("head.") for name in wrong):
            remedy = "Layers of your own belong in a gptclf.Head of your own: add_classifier_head(model, head=...)"
        what = f"{shown} are missing, new or of another shape. {remedy}"
        raise ValueError(f"the model is not the one that its configuration describes: {what}")
    parts = dict(whole.named_modules())
    for name, part in model.named_modules():
        if part is not (own := parts.get(name, part)) and (changed := difference(part, own)):
            problem = f"{name or 'the model'} {changed}; only parameters are saved, so it would load as another model"
            raise ValueError(f"{problem}. Remove hooks, even watching ones; else torch.save(model.state_dict(), path)")


def digest_of(tensors: Mapping[str, Tensor], model: GPT2) -> str:
    """Return a digest of the content, so that equal models save equal files."""
    digest = hashlib.sha256(repr((model.task.record(), model.preparation)).encode("utf-8", "backslashreplace"))
    for name, tensor in tensors.items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
