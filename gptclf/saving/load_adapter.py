"""`load_adapter`: puts a LoRA adapter, saved by gptclf or by PEFT, on the model that it was trained on."""

import logging
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from gptclf import checks
from gptclf.files.access import is_there
from gptclf.files.atomic import read_of_one_save
from gptclf.gpt2.classifier import HeadSource
from gptclf.gpt2.heads import ClassifierHead
from gptclf.gpt2.lora import check_no_factors, place, takes_factors
from gptclf.gpt2.lora_linear import LoRALinear
from gptclf.gpt2.model import GPT2, check_gpt2, is_language_model
from gptclf.gpt2.sharing import borrow, own_parameters, set_parameter
from gptclf.saving.adapter_files import PREFIX, TRUNK, AdapterFiles, check_ranks, fetch_adapter, open_adapter
from gptclf.saving.adapter_record import (
    ADAPTER,
    ADAPTER_ORIGINALS,
    PEFT_CONFIG,
    PEFT_WEIGHTS,
    base_digest,
    bits_of,
    plain,
)
from gptclf.saving.peft_config import SEQ_CLS, Contents, layer_names, peft_names
from gptclf.saving.record import damaged, head_of, is_task, task_of
from gptclf.tasks import Task, task_from_record, task_from_transformers
from gptclf.weights.guess import guess_from_tensors
from gptclf.weights.hugging_face import check_tensors, shape_problems
from gptclf.weights.locate import hub_name, missing

logger = logging.getLogger(__name__)


def load_adapter(
    model: GPT2,
    folder: str | Path,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    verify: bool = True,
) -> GPT2:
    """Put a LoRA adapter that `save_adapter` or PEFT wrote on its base: a new model over the same tensors.

    Args:
        model: The base, without factors: a language model, or a classifier. A language model becomes a classifier if
            the adapter is one's; its labels are those in gptclf's file, or LABEL_0, LABEL_1, ... A classifier keeps its
            labels, and its head is replaced by the adapter's. `model` never changes.
        folder: The adapter's folder, or a hub repository "owner/name".
        revision: Branch, tag or commit of a hub repository; None is "main".
        cache_dir: The hub cache to use instead of Hugging Face's own.
        verify: Whether to compare the files with the digests that `save_adapter` wrote.

    Returns:
        The model in eval mode. The parameters that were trainable when it was saved are trainable again; of an adapter
        that PEFT wrote, all that it holds. A base with other weights or in other bits than in training is warned of.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: The adapter is of another method than LoRA or of another model, a file is damaged, or a tensor is
            missing, left over or of another shape.

    Example:
        >>> import tempfile
        >>> from gptclf import add_classifier_head, apply_lora, load_gpt2, save_adapter
        >>> gpt2 = load_gpt2("nano")
        >>> clf = apply_lora(add_classifier_head(gpt2, classes=["ham", "spam"], bias=False, seed=1), seed=1)
        >>> load_adapter(gpt2, save_adapter(clf, tempfile.mkdtemp(), base="nano")).classes
        ['ham', 'spam']
    """
    check_gpt2(model)
    source, verify = checks.path("folder", folder), checks.boolean("verify", verify)
    if not is_there(source):
        repo = hub_name(folder)
        if repo is None:
            raise missing(folder, f"a folder or hub repository with {PEFT_CONFIG}")
        if (found := fetch_adapter(repo, revision, cache_dir)) is None:
            raise FileNotFoundError(f"{repo} holds no adapter; give a folder or hub repository with {PEFT_CONFIG}")
        source = found
    elif revision is not None:
        raise ValueError(f"revision={revision!r} belongs to a hub repository; {source} is local")
    return read_of_one_save(source, [ADAPTER], lambda: put_on(model, open_adapter(source, verify=verify)))


def put_on(
    model: GPT2,
    files: AdapterFiles,
    head: HeadSource | None = None,
    task: Task | None = None,
    *,
    any_labels: bool = False,
) -> GPT2:
    """Return a new model over the tensors of `model` with an adapter on it.

    Args:
        model: The base.
        files: The adapter.
        head: The user's own head, if the adapter was saved with one.
        task: The user's own task, likewise.
        any_labels: Take the trunk of a classifier with other labels.
    """
    check_no_factors(model)
    theirs, originals = files.read()
    bare = any(name.startswith("h.") for name in theirs)  # trained on the model without a head
    if bare:
        theirs = {name if name == "score.weight" else TRUNK + name: tensor for name, tensor in theirs.items()}
    _check_size(model, files, theirs)
    adapted = borrow(model)
    classifies = not is_language_model(model) and not (any_labels and _has_other_labels(model, files, theirs))
    if classifies and files.record is not None:  # a head and a task of the user's own come with the classifier
        task = task or (adapted.task if task_from_record(files.record.task) is None else None)
        head = head or (adapted.head if "class" in (files.record.head or {}) else None)
    kind = _put_head(adapted, files, theirs, classifies, head, task)
    contents = _contents(adapted, files, theirs, kind, TRUNK if bare else "")
    _warn_of_another_base(model, files, contents)
    check_ranks(files.folder, contents.layers, {**theirs, **originals})
    for path, options in contents.layers.items():
        base = adapted.get_submodule(path)
        layer = LoRALinear(
            base,
            options.rank,
            options.alpha,
            scaling=options.scaling,
            dropout=options.dropout,
            bias=options.bias,
            parts=options.parts,
        )
        place(adapted, path, layer.float())
    found = _matched(adapted, files, contents, theirs, originals, kind)
    named = dict(adapted.named_parameters())
    for name in found.keys() & named.keys():
        set_parameter(adapted, name, found[name].float())
    others = {name: tensor for name, tensor in found.items() if name not in named}
    if others:  # the buffers of a user's head
        adapted.load_state_dict(others, strict=False)
    trainable = set(found) if files.record is None else files.record.trainable
    if unknown := sorted(trainable - {*found, *named}):
        raise ValueError(f"{files.folder / ADAPTER}: trainable names {unknown[:3]}, which the model does not have")
    own_parameters(adapted, {*found, *trainable})
    for name, parameter in adapted.named_parameters():
        parameter.requires_grad_(name in trainable and parameter.is_floating_point())
    adapted.adapter_extras = tuple(contents.extras)
    adapted.preparation = adapted.preparation if files.record is None else files.record.preparation
    return adapted.eval()


def _check_size(model: GPT2, files: AdapterFiles, theirs: Mapping[str, Tensor]) -> None:
    """Raise if the adapter is of another size of GPT-2, naming both."""
    config = model.config
    sizes = {"blocks": config.n_layers, "dimensions": config.emb_dim, "tokens in the vocabulary": config.vocab_size}
    given: dict[str, int] = {}
    if files.record is not None:
        its = files.record.config
        given = dict(zip(sizes, (its.n_layers, its.emb_dim, its.vocab_size), strict=True))
    else:
        inputs = {name: tensor for name, tensor in theirs.items() if tensor.dim() == 2}
        wide = [t.shape[1] for name, t in inputs.items() if re.search(r"c_(attn|fc)\.lora_A\.weight$", name)]
        numbers = [int(found[1]) for name in theirs if (found := re.search(r"(?:^|\.)h\.(\d+)\.", name))]
        given |= {"dimensions": wide[0]} if wide else {}
        given |= {"blocks": max(numbers) + 1} if numbers and max(numbers) >= sizes["blocks"] else {}
    if wrong := {what: (size, sizes[what]) for what, size in given.items() if size != sizes[what]}:
        said = "; ".join(f"its base has {a:,} {what}, the model {b:,}" for what, (a, b) in wrong.items())
        raise ValueError(f"{files.folder} is an adapter of another GPT-2: {said}. Give the base it was trained on")


def _has_other_labels(model: GPT2, files: AdapterFiles, theirs: Mapping[str, Tensor]) -> bool:
    if files.record is not None:
        return not is_task(model.task, files.record)
    score = theirs.get("score.weight")
    return score is not None and (len(score) != model.task.n_outputs or bool(model.head.export_problem()))


def _put_head(
    adapted: GPT2,
    files: AdapterFiles,
    theirs: Mapping[str, Tensor],
    classifies: bool,
    given: HeadSource | None,
    task: Task | None,
) -> str:
    """Put the adapter's head and task on a model; return the name of the head's layer in PEFT's file, or ""."""
    record, score = files.record, theirs.get("score.weight")
    if record is not None:
        file = files.folder / ADAPTER
        own = task_of(record, task, file)
        if classifies and _has_other_labels(adapted, files, theirs):
            said = f"the adapter was trained for {dict(record.task)}, the classifier is for {adapted.task.record()}"
            raise ValueError(f"{file}: {said}; give the language model beneath, or a classifier with these labels")
        adapted.task, head = own, head_of(record, given, own, file)
        if head is not None:
            adapted.head = head.eval()
        elif classifies:
            raise ValueError(f"{files.folder} is an adapter of a language model; give the language model")
        return adapted.head.exported_as.removesuffix(".weight")
    assert files.config is not None
    if score is None:
        if files.config.task == SEQ_CLS:
            raise ValueError(f"{files.folder} lacks score.weight, the classifier's matrix; the adapter is incomplete")
        if classifies and files.config.task is not None and files.config.task != "FEATURE_EXTRACTION":
            raise ValueError(f"{files.folder} is an adapter of a language model; give the language model")
        return ""
    n = len(score)
    if not classifies:
        adapted.task = task_from_transformers(None, [f"LABEL_{i}" for i in range(n)])
        adapted.task.check_outputs()
    elif adapted.task.n_outputs != n:
        outputs = adapted.task.n_outputs
        raise ValueError(f"{files.folder} has a head of {n} classes, but the classifier has {outputs}; give one of {n}")
    elif problem := adapted.head.export_problem():
        raise ValueError(
            f"{files.folder} has a head of PEFT's, which reads the last token; the classifier's: {problem}"
        )
    adapted.head = ClassifierHead(adapted.config.emb_dim, n, bias=False).eval()
    return "score"


def _contents(adapted: GPT2, files: AdapterFiles, theirs: Mapping[str, Tensor], kind: str, prefix: str) -> Contents:
    if files.record is not None:
        contents = Contents(files.record.layers, files.record.extras)
    else:
        assert files.config is not None
        names = layer_names(adapted.config, kind)
        parameters = [name for name, _ in adapted.named_parameters()]
        contents = files.config.contents(names, parameters, prefix)
        if adapted.head.output_matrix is not None and "trunk.embed.token.weight" in contents.extras:
            problem = "modules_to_save names wte, which PEFT unties from the language model's output matrix"
            raise ValueError(f"{files.folder / PEFT_CONFIG}: {problem}; gptclf keeps the two tied")
        if not contents.layers:
            guess = guess_from_tensors([name for name in theirs if ".lora_" not in name] or list(theirs))
            problem = f"target_modules is {files.config.targets!r}, which matches no matrix of this GPT-2"
            raise ValueError(f"{files.folder / PEFT_CONFIG}: {problem}. {guess}".rstrip(". "))
    with damaged(files.folder / ADAPTER):
        known = {name for name, part in adapted.named_modules() if takes_factors(part)}
        if unknown := [path for path in contents.layers if path not in known]:
            raise ValueError(f"layers names {unknown[:3]}, on which this model takes no factors")
        present = {name for name, _ in adapted.named_parameters()}
        if unknown := [name for name in contents.extras if name not in present]:
            raise ValueError(f"extras names {unknown[:3]}, which the model does not have")
    return contents


def _matched(
    adapted: GPT2,
    files: AdapterFiles,
    contents: Contents,
    theirs: Mapping[str, Tensor],
    originals: Mapping[str, Tensor],
    kind: str,
) -> dict[str, Tensor]:
    """Return the adapter's tensors by our names, after checking that they are all there, of the right shapes."""
    parameters = dict(adapted.named_parameters())
    held = [name for name in parameters if ".lora_" in name or plain(name) in contents.extras]
    if files.record is not None:
        held += [name for name in parameters if name.startswith("head.") and name not in held and files.record.head]
    ours = files.record.originals if files.record is not None else []
    others = [name for name in ours if name not in parameters]  # the buffers of a user's head
    names = peft_names([name for name in held if name not in ours], adapted.config, kind)
    wanted = {peft: tuple(parameters[name].shape)[:: -1 if flip else 1] for name, (peft, flip) in names.items()}
    # Copies of biases that PEFT adds if it saves a layer and all biases.
    spare = {name for name in theirs if name.endswith((".modules_to_save.bias", ".original_module.bias"))}
    if files.record is not None and files.config is not None:  # what was folded or merged for PEFT
        spare |= {
            peft for peft, _ in peft_names([name for name in held if name in ours], adapted.config, kind).values()
        }
        merged = {f"{kind}.weight", *(f"{TRUNK}ln_f.{part}" for part in ("weight", "bias"))}
        spare |= set() if files.record.head is None else merged
    what = "hold this adapter"
    source, in_file = str(files.folder / PEFT_WEIGHTS), {name: PREFIX + name for name in {*theirs, *wanted}}
    # Names without the parts that say only that it is an adapter, for a guess of the model it belongs to.
    plainly = [re.sub(r"lora_[AB]\.|^score.*", "", name) for name in theirs]
    check_tensors(source, plainly, what, **shape_problems(theirs, wanted, spare, in_file))
    needed = {name: tuple(parameters[name].shape) for name in held if name in ours}
    problems = shape_problems(originals, needed, others)
    problems["missing"] += [name for name in others if name not in originals]
    check_tensors(str(files.folder / ADAPTER_ORIGINALS), (), what, **problems)
    found = {name: theirs[peft].t() if flip else theirs[peft] for name, (peft, flip) in names.items()}
    return found | {name: originals[name] for name in [*needed, *others]}


def _warn_of_another_base(model: GPT2, files: AdapterFiles, contents: Contents) -> None:
    record, bits = files.record, bits_of(model)
    if record is None:
        assert files.config is not None
        if files.config.fan_in_fan_out is False and bits is None:
            problem = "fan_in_fan_out is false: it was trained over quantised matrices, and the model's are floats"
            logger.warning("%s: %s; answers will differ. quantize(model) makes such a base", files.folder, problem)
        return
    if record.bits != bits:
        said = f"the base is in {bits or 'float32'}, but the adapter was trained over {record.bits or 'float32'}"
        logger.warning("%s: %s; answers will differ", files.folder, said)
    digest = base_digest(model, without=contents.extras, matrices=record.bits is None and bits is None)
    if record.bits == bits and digest != record.digest:
        named = f" ({files.base})" if files.base else ""
        problem = f"the base has other weights than in training{named}; answers will differ"
        logger.warning("%s: %s", files.folder, problem)
