"""`Learner`: the stages of a model from the first trainable one on, as modules of its own over the same parameters."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gptclf.gpt2.frozen import KeptKernels
from gptclf.gpt2.gradients import KeptGradients
from gptclf.gpt2.layers import Dropout, Embedding, Linear
from gptclf.gpt2.line import Line
from gptclf.gpt2.model import GPT2
from gptclf.gpt2.sharing import reached, twins
from gptclf.gpt2.standard import is_standard_alone


class Learner(Line):
    """A model, or the end of one, with a mode, a source of randomness and gradient buffers of its own.

    The parameters are the model's, under the same names; the modules are not. So training with dropout never changes
    the mode in which another thread computes answers, and nothing has to be put back when a run ends. If a module of
    the model is changed or hooked later, the learner's copy stays as it was.

    Args:
        model: The model.
        depth: Number of leading stages left out (`stages.stages`). With 0 the learner takes token ids, otherwise the
            features (B, T, D) that the last of those stages computes.
        training: Whether dropout is on.
        recompute: Keep only each block's input for the backward pass and compute the rest again there: a third more
            work for a fraction of the memory (Chen et al., 2016, "Training Deep Nets with Sublinear Memory Cost").
        seed: Seed of dropout; None draws from torch's global generator.
        keep_gradients: Accumulate weight gradients in buffers that are kept from step to step.

    Attributes:
        generator: The generator that dropout draws from, attention dropout included; None without a seed.
        is_plain: False if the model has to be called as a whole, because it is hooked or of another class.

    Example:
        >>> from gptclf import add_classifier_head, load_gpt2
        >>> clf = add_classifier_head(load_gpt2("nano"), num_classes=2, seed=0)
        >>> learner = Learner(clf, depth=4, training=True)
        >>> learner(torch.zeros(3, 7, 192)).shape, clf.training
        (torch.Size([3, 2]), False)
    """

    def __init__(
        self,
        model: GPT2,
        depth: int = 0,
        *,
        training: bool = False,
        recompute: bool = False,
        seed: int | None = None,
        keep_gradients: bool = False,
    ) -> None:
        super().__init__()
        self.config, self.task, self.depth, self.recompute = model.config, model.task, depth, recompute
        self.whole: GPT2 | None = None
        if depth == 0:
            whole, self.trunk, self.head = twins([model, model.trunk, model.head])
            if not model.is_plain:  # its own call does more than its parts
                self.whole = cast(GPT2, whole)
        else:
            blocks = {str(i): block for i, block in enumerate(model.trunk.blocks) if i >= depth - 1}
            norm = [model.trunk.norm] if depth <= len(model.trunk.blocks) + 1 else []
            *parts, head = twins([*blocks.values(), *norm, model.head])
            self.trunk = nn.Module()
            self.trunk.blocks = nn.ModuleDict(dict(zip(blocks, parts, strict=False)))
            if norm:
                self.trunk.norm = parts[-1]
            self.head = head
        self.generator = None if seed is None else torch.Generator(model.device).manual_seed(seed)
        gradients = KeptGradients() if keep_gradients else None
        kernels = KeptKernels() if keep_gradients and not recompute else None  # recomputing is for when memory is short
        for part in self.modules():
            if type(part) is nn.Dropout and seed is not None:  # the user's; here it is the learner's own
                part.__class__ = Dropout
            if isinstance(part, Dropout):
                part.generator = self.generator
            elif isinstance(part, Linear | Embedding):
                part.gradients = gradients
                if isinstance(part, Linear):
                    part.kernels = kernels
        self.is_plain = self.whole is None
        self.train(training)
        foreign = [(name, part) for name, part in (self.whole or self).named_modules() if not is_standard_alone(part)]
        self._given = [(model.get_submodule(at), part, dict(vars(part))) for at, part in foreign if part is not self]

    def give_back(self) -> None:
        """Set the attributes that modules of other classes assigned here, such as counters, on the model's modules.

        Parameters and buffers are the model's at any time. Of the other attributes, those are given back that were
        assigned since the learner was made and refer to no module and to no tensor that requires grad. A change inside
        a list, set or dictionary that refers to modules, and the deletion of an attribute, are not given back.
        """
        for source, part, before in self._given:
            for name in vars(part).keys() - vars(nn.Module()).keys():
                value = vars(part)[name]
                assigned = before.get(name, source) is not value
                if assigned and not any(
                    isinstance(at, nn.Module) or getattr(at, "requires_grad", False) for at in reached(value)
                ):
                    vars(source)[name] = value

    def forward(self, inputs: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Compute the outputs of ids (B, T), or of features (B, T, D), of rows with `lengths` positions."""
        return super().forward(inputs, lengths) if self.whole is None else self.whole(inputs, lengths)

    def hidden_states(self, inputs: Tensor) -> Tensor:
        """Compute the final hidden states (B, T, D) of ids (B, T), or of features (B, T, D)."""
        return super().hidden_states(inputs) if self.whole is None else self.whole.hidden_states(inputs)

    def _call(self, block: nn.Module, *given: Any) -> Tensor:
        if not (self.recompute and torch.is_grad_enabled()):
            return block(*given)  # type: ignore[no-any-return]
        # The contexts of a block's two passes: the second one draws what the first one drew.
        again = nullcontext() if self.generator is None else _rewound(self.generator, self.generator.get_state())
        passes: Any = {"use_reentrant": False, "context_fn": lambda: (nullcontext(), again)}
        return checkpoint(block, *given, **passes)  # type: ignore[no-any-return]


@contextmanager
def _rewound(generator: torch.Generator, state: Tensor) -> Iterator[None]:
    now = generator.get_state()
    generator.set_state(state)
    try:
        yield
    finally:
        generator.set_state(now)
