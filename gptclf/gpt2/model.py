"""`GPT2`: a trunk under a head.

Which parameters train is decided in `freezing.py`; where weights come from, in `weights/`.
"""

import inspect
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import fields
from os import PathLike
from typing import Any, Self

import torch
from torch import Tensor, nn

from gptclf import checks
from gptclf.gpt2.arithmetic import survive_forks
from gptclf.gpt2.config import GPT2Config
from gptclf.gpt2.heads import ClassifierHead, Head, LMHead
from gptclf.gpt2.initialise import initialise
from gptclf.gpt2.line import Line
from gptclf.gpt2.recording import is_recording
from gptclf.gpt2.renamed import Renamed
from gptclf.gpt2.sharing import own_before_loading, refuse_borrowed_gradients
from gptclf.gpt2.standard import is_standard, is_standard_alone
from gptclf.gpt2.trunk import Trunk
from gptclf.preparation import Preparation
from gptclf.tasks import NextToken, Task
from gptclf.tokenizer.tokens import check_same_tokenizer, check_tokenizer

# Where others keep a model: gptclf's estimators, DataParallel and its kin, torch.compile, Lightning.
_WRAPPED = ("model_", "module", "_orig_mod", "model")


# What a model remembers and saves: the class of each value, and the rule in words.
_KEPT: dict[str, tuple[Any, str]] = {
    "config": (GPT2Config, "a GPT2Config"),
    "task": (Task, "a gptclf.Task, such as SingleLabel(classes)"),
    "base": ((str, type(None)), "the name of published weights or None"),
    "source": ((str, type(None)), "a str or None"),
}
_PREPARED = [field.name for field in fields(Preparation)]


class GPT2(Renamed, Line):
    """A GPT-2 trunk under a head: a language model, or a classifier after `add_classifier_head`.

    Args:
        config: The shape.
        task: What the model predicts; None means the next token.
        head: The head. None means a language-model head for next-token prediction, and for any other task a
            `ClassifierHead` over the last token.
        seed: Seed of the fresh weights. None draws one from torch's global generator, which `torch.manual_seed` seeds.
        device: Where the weights live; None is torch's default device. "meta" leaves them without data, to be filled by
            a loader.

    Attributes:
        config: The `GPT2Config`.
        trunk: Embedding, blocks, final norm.
        head: `LMHead`, `ClassifierHead` or a head of your own.
        task: The `Task`.
        classes: List of labels in column order of the outputs, or None if the task has no classes.
        tokenizer: The `tiktoken.Encoding`, found on first use.
        base: Name of the published weights it started from, or None.
        source: The folder, file or hub repository that its weights were read from, or None.
        adapter_extras: Names of the trunk's tensors that a loaded adapter brought beside factors and head.
        preparation: How texts were prepared in training; `predict` prepares them in the same way.

    Example:
        >>> model = GPT2(GPT2Config(vocab_size=50, context_length=8, emb_dim=8, n_heads=2, n_layers=2), seed=0)
        >>> model(torch.tensor([[1, 2, 3]])).shape
        torch.Size([1, 3, 50])
    """

    standard = True
    kind = "gpt2"

    def __init__(
        self,
        config: GPT2Config,
        *,
        task: Task | None = None,
        head: Head | None = None,
        seed: int | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(config, GPT2Config):
            remedy = "for the book's dictionary call load_gpt2(config, weights='random')"
            raise TypeError(f"config is a {type(config).__name__}; it must be a GPT2Config: {remedy}")
        survive_forks()
        self.config = config
        self.trunk: Trunk = Trunk(config)
        if head is not None:
            checks.instance("head", head, Head, "a gptclf.Head: subclass it")
        place = torch.get_default_device() if device is None else checks.device(device)
        self.task = NextToken(config.vocab_size) if task is None else task
        if head is None and isinstance(self.task, NextToken):
            head = LMHead(config, self.trunk.embed.token)
        self.head: Head = ClassifierHead(config.emb_dim, self.task.n_outputs) if head is None else head
        self.base: str | None = None
        self.source: str | None = None
        self.adapter_extras: tuple[str, ...] = ()
        self._preparation: Preparation | None = None
        self.tokenizer_source: Callable[[], Any] | None = None
        self._tokenizer: Any = None
        self.eval()
        self.float()  # whatever torch's default type is: master weights are float32
        if place.type != "meta":
            # Drawn on the CPU whatever the device, so that a seed means the same weights everywhere.
            self.to_empty(device="cpu")
            initialise(self, config, seed)
            self.to(place)
        own_before_loading(self)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _KEPT:
            checks.instance(name, value, *_KEPT[name])
        if name in _PREPARED:
            remedy = f"set model.preparation = Preparation({name}={value!r})"
            raise AttributeError(f"a GPT2 has no {name}, so setting it would change nothing; {remedy}")
        super().__setattr__(name, value)

    @property
    def classes(self) -> list[Any] | None:
        """The labels in column order of the outputs; None if the task has no classes."""
        return None if self.task.classes is None else list(self.task.classes)

    @property
    def tokenizer(self) -> Any:
        """The `tiktoken.Encoding` that belongs to the weights, found on first use."""
        if self._tokenizer is None and self.tokenizer_source is not None:
            self.tokenizer = self.tokenizer_source()
        if self._tokenizer is None:
            wanted = f"a tiktoken.Encoding of {self.config.vocab_size} tokens"
            raise ValueError(f"this GPT2 has no tokenizer; load it with tokenizer= or set model.tokenizer to {wanted}")
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, encoding: Any) -> None:
        check_tokenizer(encoding)
        if encoding.n_vocab > self.config.vocab_size:
            ours = f"the model's vocabulary is {self.config.vocab_size}; they do not belong together"
            raise ValueError(f"the tokenizer has {encoding.n_vocab} tokens but {ours}")
        self._tokenizer = encoding

    @property
    def preparation(self) -> Preparation:
        """How texts were prepared in training, noted by `train` and loading; the default if nobody noted it."""
        return Preparation() if self._preparation is None else self._preparation

    @preparation.setter
    def preparation(self, preparation: Preparation) -> None:
        if not isinstance(preparation, Preparation):
            advice = "give a gptclf.Preparation, such as train_set.preparation"
            raise TypeError(f"preparation is {preparation!r}, a {type(preparation).__name__}; {advice}")
        self._preparation = preparation

    @property
    def is_plain(self) -> bool:
        """Whether the model may be computed stage by stage, being standard and without hooks down to the embedding."""
        return is_standard_alone(self) and is_standard_alone(self.trunk) and is_standard(self.trunk.embed)

    def __sklearn_clone__(self) -> Self:
        # Estimators never change the model they are given, so copies of an estimator share it.
        return self

    def forward(self, input_ids: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Compute the outputs of a batch padded on the right.

        Args:
            input_ids: Token ids (B, T), int64; ids to the right of a row's length do not matter.
            lengths: Real tokens per row (B,), or None: every row ends at T.

        Returns:
            A classifier's outputs (B, n_outputs), or a language model's logits of the next token (B, T, V).
        """
        if is_recording() or is_standard_alone(self.trunk):
            return super().forward(input_ids, lengths)
        return self.head(self.hidden_states(input_ids), lengths)  # type: ignore[no-any-return]

    def hidden_states(self, input_ids: Tensor) -> Tensor:
        """Compute the final hidden states (B, T, D) of ids (B, T), after the final norm: the head's input."""
        if not is_recording() and is_standard_alone(self.trunk):
            return super().hidden_states(input_ids)
        refuse_borrowed_gradients(self)
        return self.trunk(input_ids)  # type: ignore[no-any-return]

    def token_logits(self, input_ids: Tensor) -> Tensor:
        """Apply the head at every token, without pooling: (B, T, n_outputs), as in the book's section 6.5."""
        # A plain module in the place of a head has no outputs for single positions, and is told so.
        return getattr(type(self.head), "project", Head.project)(self.head, self.hidden_states(input_ids))


def check_gpt2(model: object) -> GPT2:
    """Return `model` if it is a GPT2, else raise."""
    if not isinstance(model, GPT2):
        raise TypeError(f"model is a {type(model).__name__}; it must be a gptclf GPT2, {_way_to_gpt2(model)}")
    return model


def _way_to_gpt2(model: object) -> str:
    """Say where a user finds the GPT2 in what was given in its place."""
    path, inner = "model", model
    while name := next((name for name in _WRAPPED if isinstance(getattr(inner, name, None), nn.Module)), ""):
        path, inner = f"{path}.{name}", getattr(inner, name)
    if isinstance(inner, GPT2):
        return f"and this one wraps it: give {path}, which has the same parameters"
    if isinstance(model, Mapping):
        return "not its parameters: make the model, call its load_state_dict, and give the model"
    if isinstance(model, str | PathLike):
        return f"not its name: give load_model({str(model)!r}) or load_gpt2({str(model)!r})"
    if hasattr(model, "save_pretrained"):
        return "which load_model or load_gpt2 makes of a folder that model.save_pretrained(folder) wrote"
    if type(model).__module__.startswith(("torch.export", "torch.fx", "torch.jit")):
        return "not a recording of one: give the model that it was recorded from"
    return "as load_gpt2 returns"


def is_language_model(model: GPT2) -> bool:
    """Return True if a model predicts the next token, so that a classifier can be made of it."""
    return isinstance(model.task, NextToken)


def check_classifier(model: object) -> None:
    """Raise if `model` is not a classifier, or its head cannot be called as one."""
    gpt2 = check_gpt2(model)
    if isinstance(gpt2.task, NextToken):
        raise TypeError("this is a language model; put a classifier head on it first: add_classifier_head(model, ...)")
    try:
        inspect.signature(gpt2.head.forward).bind(None, None)
    except TypeError as error:
        raise TypeError(f"model.head, a {type(gpt2.head).__name__}, takes no (hidden, lengths); use a Head") from error


def warn_of_no_preparation(model: GPT2, *, stacklevel: int) -> None:
    """Warn, once per model, that a trained classifier was not told how its training texts were prepared.

    Args:
        model: The model; language models and fresh heads give no warning.
        stacklevel: Number of calls between this one and the user's line, which the warning names.
    """
    if model._preparation is None and not is_language_model(model) and not getattr(model.head, "is_fresh", False):
        model.preparation = Preparation()
        warnings.warn(
            "this classifier was not told how its training texts were prepared, so nothing is cut or padded; after a "
            "loop of your own, set clf.preparation = train_set.preparation",
            stacklevel=stacklevel + 1,
        )


def check_language_model(model: object) -> None:
    """Raise if `model` is not a language model."""
    task = check_gpt2(model).task
    if not isinstance(task, NextToken):
        remedy = "give the language model it was made from, as load_gpt2 returns it"
        raise TypeError(f"this is a classifier ({task.n_outputs} outputs); its vocabulary head is gone: {remedy}")


def check_encoding(model: GPT2, encoding: Any) -> None:
    """Raise if texts were encoded with a different tokenizer. Only checked once the model's has been loaded."""
    if encoding.n_vocab != model.config.vocab_size:  # padded vocabulary or other tokenizer?
        with suppress(OSError, ValueError):
            _ = model.tokenizer
    if model._tokenizer is not None:
        check_same_tokenizer(model._tokenizer, encoding)
