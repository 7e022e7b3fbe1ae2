"""The outputs of classifiers on rows. What several classifiers share of their trunks is computed once.

A model is a line of stages, and lines that begin with the same stages are a tree. It is walked depth first; where
models part, each branch but the last gets a copy of the residual stream.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gptclf.checks import integer
from gptclf.data.batches import Rows
from gptclf.gpt2.arithmetic import Arithmetic, arithmetic_for, casting, evaluating
from gptclf.gpt2.heads import reads_of
from gptclf.gpt2.learner import Learner
from gptclf.gpt2.model import GPT2
from gptclf.gpt2.packed import RowGroup, advance, before_norm, chunks_of, embed, row_groups
from gptclf.gpt2.standard import described, is_standard
from gptclf.metrics.finite import check_finite

Model = GPT2 | Learner
Report = Callable[[int], None]


def _silent(positions: int) -> None:
    """Report nothing."""


def compute_outputs(
    model: Model, rows: Rows, *, batch_size: int | None = None, precision: str, report: Report = _silent
) -> Tensor:
    """Compute the outputs (N, n_outputs) of a data set's rows, float32, on the CPU."""
    (outputs,) = compute_all([model], [rows], batch_size=batch_size, precision=precision, report=report)
    return outputs


def compute_all(
    models: Sequence[Model],
    rows: Sequence[Rows],
    *,
    batch_size: int | None = None,
    precision: str,
    report: Report = _silent,
) -> list[Tensor]:
    """Compute the outputs of each model on its own rows, bit for bit as alone.

    Args:
        models: Classifiers, or the ends of some.
        rows: The rows of each. Models whose rows are equal are computed together.
        batch_size: The most rows to compute at once.
        precision: "auto", "float32" or "bfloat16".
        report: Called with the number of positions done since the last call; each model's positions count.
    """
    batch_size = integer("batch_size", batch_size, 1, optional=True)
    outputs = [
        torch.empty(len(its), model.task.n_outputs, dtype=torch.float32, device="cpu")
        for model, its in zip(models, rows, strict=True)
    ]
    for members in _alike(range(len(models)), lambda i, j: _same_rows(rows[i], rows[j])):
        some, its = [models[i] for i in members], rows[members[0]]
        order = np.argsort(its.lengths, kind="stable")
        with ExitStack() as ending:
            still = [ending.enter_context(evaluating(model)) for model in some]
            for model in some:
                ending.enter_context(torch.autocast(model.device.type, enabled=False))
            tree = _tree(dict(zip(members, map(_line, still), strict=True)))
            for part in chunks_of(its.lengths[order], batch_size):
                for root in tree:
                    chunk = _Chunk(its, order[part], precision, models[root.models[0]])
                    _walk([root], [], chunk, outputs)
                    report(len(root.models) * chunk.tokens)
    for model, found in zip(models, outputs, strict=True):
        check_finite(found, model)
    return outputs


@dataclass(frozen=True)
class _Chunk:
    """Rows, sorted by length, that go through the stages of a model and those that begin alike."""

    rows: Rows
    chosen: NDArray[np.int64]
    precision: str
    model: Model

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        return self.rows.lengths[self.chosen]

    @cached_property
    def tokens(self) -> int:
        return int(self.lengths.sum())

    @cached_property
    def groups(self) -> list[RowGroup]:
        return row_groups(self.lengths)

    @cached_property
    def arithmetic(self) -> Arithmetic:
        return arithmetic_for(self.precision, self.model, self.tokens)


class _Stage(NamedTuple):
    """A step from tensors to tensors.

    Attributes:
        part: The module that is computed; None if there is none at this step.
        detail: What else the result depends on.
        run: Computes the step; it may change the tensors it is given.
    """

    part: nn.Module | None
    detail: Any
    run: Callable[[list[Tensor], _Chunk], list[Tensor]]


class _Branch(NamedTuple):
    stage: _Stage
    models: list[int]
    rest: "list[_Branch]"


def _line(model: Model) -> list[_Stage]:
    """Return a model's stages, the last of which gives its outputs; a model that is not plain is one stage."""
    if not model.is_plain:
        return [_Stage(model, "", lambda _, chunk: [_called(model, chunk)])]
    blocks, norm, head, reads = model.blocks, model.norm, model.head, reads_of(model.head)
    last, device = blocks[-1] if blocks else None, model.device

    def start(_: list[Tensor], chunk: _Chunk) -> list[Tensor]:
        x = chunk.rows.packed(chunk.chosen).to(device)
        if model.embed is None:
            return [x]
        return [embed(model.embed, x, chunk.groups, capacity=len(x), width=model.config.emb_dim)]

    def through(block: nn.Module) -> _Stage:
        def run(x: list[Tensor], chunk: _Chunk) -> list[Tensor]:
            advance(block, x[0], chunk.groups, chunk.arithmetic)
            return x

        return _Stage(block, "", run)

    def answers(hidden: list[Tensor], chunk: _Chunk) -> list[Tensor]:
        outputs = torch.cat([head(x if reads == "all" else x[:, None], None).float() for x in hidden])
        return [_checked(outputs, model, len(chunk.chosen))]

    return [
        _Stage(model.embed, device, start),
        *map(through, blocks[:-1]),
        _Stage(last, reads, lambda x, chunk: before_norm(last, x[0], chunk.groups, reads, chunk.arithmetic)),
        _Stage(norm, "", lambda hidden, _: hidden if norm is None else [norm(x) for x in hidden]),
        _Stage(head, "", answers),
    ]


def _called(model: Model, chunk: _Chunk) -> Tensor:
    """Call a model as a whole, because its own call does more than its parts."""
    with casting(chunk.precision, model):
        counts = torch.from_numpy(chunk.lengths).to(model.device)
        outputs = model(chunk.rows.padded(chunk.chosen).to(model.device), counts).float()
    return _checked(outputs, model, len(counts))


def _checked(outputs: Tensor, model: Model, n: int) -> Tensor:
    if outputs.shape != (n, model.task.n_outputs):
        problem = f"the head gives outputs of shape {tuple(outputs.shape)} for {n} texts"
        raise ValueError(f"{problem}, but the task {model.task} has {model.task.n_outputs} outputs per text")
    return outputs.cpu()


def _tree(lines: dict[int, list[_Stage]]) -> list[_Branch]:
    """Join lines that begin alike, by the numbers of their models."""
    branches = []
    for models in _alike(lines, lambda i, j: _same_stage(lines[i][0], lines[j][0])):
        rest = {i: lines[i][1:] for i in models if len(lines[i]) > 1}
        branches.append(_Branch(lines[models[0]][0], models, _tree(rest)))
    return branches


def _walk(tree: list[_Branch], tensors: list[Tensor], chunk: _Chunk, outputs: list[Tensor]) -> None:
    """Compute the stages of a tree on a chunk and put each model's results into its outputs."""
    for i, branch in enumerate(tree):
        found = branch.stage.run(tensors if i == len(tree) - 1 else [x.clone() for x in tensors], chunk)
        if branch.rest:
            _walk(branch.rest, found, chunk, outputs)
        else:
            for model in branch.models:
                outputs[model][chunk.chosen] = found[0]


def _alike(numbers: Iterable[int], same: Callable[[int, int], bool]) -> list[list[int]]:
    """Divide numbers into groups that are the same as their first member."""
    groups: list[list[int]] = []
    for number in numbers:
        for group in groups:
            if same(group[0], number):
                group.append(number)
                break
        else:
            groups.append([number])
    return groups


def _same_stage(a: _Stage, b: _Stage) -> bool:
    """Return True if two stages surely compute the same, bit for bit: standard parts alike over equal tensors."""
    if a.detail != b.detail:
        return False
    if a.part is None or b.part is None:
        return a.part is b.part
    if not is_standard(a.part) or not is_standard(b.part) or list(described(a.part)) != list(described(b.part)):
        return False
    ours, theirs = ({**dict(p.named_parameters()), **dict(p.named_buffers())} for p in (a.part, b.part))
    return ours.keys() == theirs.keys() and all(_same_tensor(ours[name], theirs[name]) for name in ours)


def _same_tensor(a: Tensor, b: Tensor) -> bool:
    # The layout counts: a transposed matrix is multiplied by another kernel, which rounds otherwise.
    if (a.dtype, a.device, a.shape, a.stride()) != (b.dtype, b.device, b.shape, b.stride()):
        return False
    return a.data_ptr() == b.data_ptr() or torch.equal(a, b)


def _same_rows(a: Rows, b: Rows) -> bool:
    if a is b or not np.array_equal(a.lengths, b.lengths):
        return a is b
    each = (np.array([i]) for i in range(len(a)))
    return all(torch.equal(a.packed(i), b.packed(i)) for i in each)
