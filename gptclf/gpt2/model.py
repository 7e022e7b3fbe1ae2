"""`GPT2`, a trunk under a head, and how its weights are drawn.

Which parameters train is `stages.py`'s business, where weights come from is `weights/`'s.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gptclf.checks import python_value
from gptclf.gpt2.config import GPT2Config
from gptclf.gpt2.heads import ClassifierHead, Head, LMHead
from gptclf.gpt2.line import hidden_states, run
from gptclf.gpt2.trunk import MLP, Attention, Trunk, is_watched
from gptclf.tokenizer.tokens import check_tokenizer


class GPT2(nn.Module):
    """A GPT-2 trunk under a head: a language model, or a classifier after `add_classifier_head`.

    Args:
        config: The shape.
        classes: None builds a language model; a sequence of labels builds a classifier over them.
        pooling: Where a classifier looks: "last" (the last real token), "first", "mean" or "max".
        head_bias: Whether a classifier's output layer has a bias.
        seed: Seed of the fresh weights. None draws one from torch's global generator, so `torch.manual_seed` rules.
        device: Where the weights live; "meta" leaves them without data, to be filled by a loader.

    Attributes:
        config: The `GPT2Config`.
        trunk: Embedding, blocks, final norm.
        head: `LMHead` or `ClassifierHead`.
        classes: List of labels in column order of the logits, or None for a language model.
        tokenizer: The `tiktoken.Encoding`, found on first use.
        base: Name of the published weights it started from, or None.
        max_length, truncation, pad_to: How texts were prepared in training; `predict` prepares them alike.

    Example:
        >>> model = GPT2(GPT2Config(vocab_size=50, context_length=8, emb_dim=8, n_heads=2, n_layers=2), seed=0)
        >>> model(torch.tensor([[1, 2, 3]])).shape
        torch.Size([1, 3, 50])
    """

    def __init__(
        self,
        config: GPT2Config,
        *,
        classes: Sequence[Any] | None = None,
        pooling: str = "last",
        head_bias: bool = True,
        seed: int | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.trunk = Trunk(config)
        self.head: Head = (
            LMHead(config, self.trunk.embed.token)
            if classes is None
            else ClassifierHead(config, classes, pooling=pooling, bias=head_bias)
        )
        self.base: str | None = None
        self.max_length: int | None = None
        self.truncation = "tail"
        self.pad_to: int | None = None
        # What a fresh head was drawn as; see head_is_new.
        self._fresh_head: Tensor | None = None
        self._warned_of_new_head = False
        # Parameters whose storage is not this model's alone (another model's, a file's, a caller's arrays): copied
        # before they may train (stages.py).
        # By identity: a module that is moved or wrapped keeps them under another name. A deep copy has none.
        self._shared: dict[int, nn.Parameter] = {}
        # Also when the model, or its trunk, is loaded as a part of something else.
        self.register_load_state_dict_pre_hook(self._own_all)  # type: ignore[no-untyped-call]
        self.trunk.register_load_state_dict_pre_hook(self._own_all)  # type: ignore[no-untyped-call]
        self.tokenizer_source: Callable[[], Any] | None = None
        self._tokenizer: Any = None
        self.eval()
        self.float()  # whatever torch's default type is: master weights are float32
        if torch.device(device or "cpu").type != "meta":
            # Drawn on the CPU whatever the device, so that a seed means the same weights everywhere.
            self.to_empty(device="cpu")
            initialise(self, config, seed)
            self.to(device)
            self.remember_fresh_head()

    @property
    def classes(self) -> list[Any] | None:
        """The labels in column order of the logits; None for a language model."""
        return list(self.head.classes) if isinstance(self.head, ClassifierHead) else None

    @property
    def device(self) -> torch.device:
        """Where the parameters live."""
        return self.trunk.norm.weight.device

    @property
    def head_is_new(self) -> bool:
        """True for a classifier's head that still is what was drawn: never trained, in whatever loop, nor loaded."""
        if self._fresh_head is None or not isinstance(self.head, ClassifierHead):
            return False
        return torch.equal(self._fresh_head, self.head.output.weight.detach().cpu())

    def remember_fresh_head(self) -> None:
        """Note that the head's weights are freshly drawn."""
        if isinstance(self.head, ClassifierHead):
            self._fresh_head = self.head.output.weight.detach().cpu().clone()

    def forget_fresh_head(self) -> None:
        """Note that training went through the head, even where only what is before it changed."""
        self._fresh_head = None

    def warn_of_new_head(self, *, stacklevel: int) -> None:
        """Warn, once in a model's life, that answers come from a head that never learned.

        Args:
            stacklevel: Calls between this one and the user's line, which the warning shows.
        """
        if self.head_is_new and not self._warned_of_new_head:
            self._warned_of_new_head = True
            warnings.warn(
                "this classifier's head was never trained or loaded; its answers are chance. Call train first",
                stacklevel=stacklevel + 1,
            )

    @property
    def tokenizer(self) -> Any:
        """The `tiktoken.Encoding` that belongs to the weights, found on first use."""
        if self._tokenizer is None:
            if self.tokenizer_source is None:
                raise ValueError(
                    "this GPT2 has no tokenizer: pass tokenizer= to load_gpt2, or set model.tokenizer to a "
                    f"tiktoken.Encoding of {self.config.vocab_size} tokens"
                )
            self.tokenizer = self.tokenizer_source()
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, encoding: Any) -> None:
        check_tokenizer(encoding)
        if encoding.n_vocab > self.config.vocab_size:
            raise ValueError(
                f"the tokenizer has {encoding.n_vocab} tokens but the model's vocabulary is "
                f"{self.config.vocab_size}; they do not belong together"
            )
        self._tokenizer = encoding

    def check_same_tokenizer(self, encoding: Any) -> None:
        """Raise where texts were encoded with another tokenizer than this model's, as far as that was found yet."""
        if encoding.n_vocab != self.config.vocab_size:  # a padded vocabulary, or another's tokens: worth finding out
            with suppress(OSError, ValueError):
                _ = self.tokenizer
        ours = self._tokenizer
        if ours is None or ours is encoding:
            return
        tokens = ours.token_byte_values()
        same = ours.n_vocab == encoding.n_vocab and tokens == encoding.token_byte_values()
        if not same or any(ours.encode_single_token(t) != encoding.encode_single_token(t) for t in tokens):
            raise ValueError(
                f"the texts were encoded with another tokenizer ({encoding.n_vocab} tokens) than the model's "
                f"({ours.n_vocab}); build the data set with tokenizer=model.tokenizer"
            )

    def share_tokenizer(self, other: "GPT2") -> None:
        """Use the tokenizer of `other`, found or still to be found."""
        self._tokenizer, self.tokenizer_source = other._tokenizer, other.tokenizer_source

    @property
    def shared_parameters(self) -> set[str]:
        """Names of the parameters whose storage is not this model's alone."""
        return {name for name, parameter in self.named_parameters() if self._is_shared(parameter)}

    def note_shared(self, names: Iterable[str]) -> None:
        """Note that the storage of these parameters is not this model's alone."""
        for name in names:
            parameter = self.get_parameter(name)
            self._shared[id(parameter)] = parameter

    def _is_shared(self, parameter: nn.Parameter) -> bool:
        return self._shared.get(id(parameter)) is parameter

    def own_parameters(self, names: set[str]) -> None:
        """Replace those of the named parameters that are not this model's alone by copies of its own."""
        for name in names & self.shared_parameters:
            old = self.get_parameter(name)
            # Contiguous: a loaded matrix is a transposed view, which the optimizer would walk against the grain.
            copy = old.detach().clone(memory_format=torch.contiguous_format)
            set_parameter(self, name, copy).requires_grad_(old.requires_grad)
            self._shared.pop(id(old), None)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As `torch.nn.Module` does it, into tensors of this model's own: another model's never change."""
        if assign:  # what is assigned stays its giver's, too
            state_dict = {name: tensor.clone() for name, tensor in state_dict.items()}
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def _own_all(self, *_: Any) -> None:
        self.own_parameters(self.shared_parameters)

    def _refuse_shared_gradients(self) -> None:
        for name, parameter in self.named_parameters():
            if parameter.requires_grad and self._is_shared(parameter):
                raise ValueError(
                    f"{name} is set to train, but its tensor is also another model's, or a file's; say "
                    "what trains with freeze(model, trainable=...), before the optimizer is made"
                )

    def forward(self, input_ids: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Logits of a batch padded on the right.

        Args:
            input_ids: Token ids (B, T), int64; what stands right of a row's length does not matter.
            lengths: Real tokens per row (B,), or None: every row ends at T.

        Returns:
            Class logits (B, C), or for a language model logits of the next token (B, T, V).
        """
        if torch.is_grad_enabled():
            self._refuse_shared_gradients()
        if is_watched(self.trunk):
            return self.head(self.trunk(input_ids), lengths)  # type: ignore[no-any-return]
        return run(list(self.trunk.blocks), self.trunk.norm, self.head, self.trunk.embed(input_ids), lengths)

    def hidden_states(self, input_ids: Tensor) -> Tensor:
        """Final hidden states (B, T, D) of ids (B, T), after the final norm: what the head is given."""
        if torch.is_grad_enabled():
            self._refuse_shared_gradients()
        if is_watched(self.trunk):
            return self.trunk(input_ids)  # type: ignore[no-any-return]
        return hidden_states(list(self.trunk.blocks), self.trunk.norm, self.trunk.embed(input_ids))

    def token_logits(self, input_ids: Tensor) -> Tensor:
        """The head applied at every token, unpooled: (B, T, C), as book section 6.5 looks at them."""
        return self.head.project(self.hidden_states(input_ids))


def check_gpt2(model: object) -> None:
    """Raise where `model` is something else."""
    if not isinstance(model, GPT2):
        raise TypeError(f"model is a {type(model).__name__}; it must be a gptclf GPT2, as load_gpt2 returns")


def set_parameter(model: nn.Module, name: str, tensor: Tensor) -> nn.Parameter:
    """Put `tensor` in the place of the named parameter, frozen, without a copy."""
    owner, _, leaf = name.rpartition(".")
    parameter = nn.Parameter(tensor, requires_grad=False)
    setattr(model.get_submodule(owner), leaf, parameter)
    return parameter


def initialise(module: nn.Module, config: GPT2Config, seed: int | None, *, stream: int = 0) -> int:
    """Draw the parameters below `module` as GPT-2 does and return the seed that was used.

    Weights are normal with `config.init_std`, those that write into the residual stream divided by sqrt(2 L)
    (Radford et al., 2019, section 2.3); biases are 0, norms are the identity. `seed=None` takes a seed from torch's
    global generator. `stream` keeps apart what is drawn from one seed: a head drawn like the embedding before it
    would be a copy of its first rows.
    """
    if seed is None:
        seed = int(torch.randint(2**31, ()))
    seed = python_value(seed)
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise ValueError(f"seed is {seed!r}; it must be an integer of at least 0, or None")
    state = np.random.SeedSequence([seed, stream]).generate_state(1, np.uint64)
    generator = torch.Generator().manual_seed(int(state[0]))
    parts = list(module.modules())
    residual = {part.out for part in parts if isinstance(part, Attention)}
    residual |= {part.down for part in parts if isinstance(part, MLP)}
    with torch.no_grad():
        for part in parts:
            if isinstance(part, nn.LayerNorm):
                part.reset_parameters()
            elif isinstance(part, nn.Embedding | nn.Linear):
                std = config.init_std / (2 * config.n_layers) ** 0.5 if part in residual else config.init_std
                part.weight.normal_(0.0, std, generator=generator)
                if isinstance(part, nn.Linear) and part.bias is not None:
                    part.bias.zero_()
    return seed
