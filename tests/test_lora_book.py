"""The book's LoRA (appendix E, and the bonus to chapter 6) run beside ours from equal matrices.

The book puts factors beside every linear layer of its model, query, key, value and the frozen output layer included.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from conftest import byte_tokenizer
from test_book import SMALL, Build, Reference, as_ours, small, the_books_own
from test_parity import byte_texts, relative_error
from torch import Tensor, nn
from torch.nn import functional as F

from gptclf import (
    GPT2,
    Batches,
    GPT2Config,
    TextDataset,
    add_classifier_head,
    apply_lora,
    load_gpt2,
    merge_lora,
    train,
    trainable_report,
)
from gptclf.gpt2.lora_linear import lora_layers

RANK, LENGTH, STEPS = 16, 40, 20
EVERYTHING = ("qkv", "out", "up", "down", "head")


class Factors(nn.Module):
    """The book's low-rank product: x A B times a number, with A (K, r) and B (r, N)."""

    def __init__(self, base: nn.Linear, rank: int, scale: float) -> None:
        super().__init__()
        self.A = nn.Parameter(nn.init.kaiming_uniform_(torch.empty(base.in_features, rank), a=math.sqrt(5)))
        self.B = nn.Parameter(torch.zeros(rank, base.out_features))
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.A @ self.B) * self.scale


class Beside(nn.Module):
    """A linear layer and a low-rank product of the same input, added."""

    def __init__(self, base: nn.Linear, rank: int, scale: float) -> None:
        super().__init__()
        self.linear, self.lora = base, Factors(base, rank, scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.lora(x)  # type: ignore[no-any-return]


def put_factors(model: nn.Module, rank: int, scale: float) -> None:
    """Put factors beside every linear layer."""
    found = [(name, part) for name, part in model.named_modules() if isinstance(part, nn.Linear)]
    for name, part in found:
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, Beside(part, rank, scale))


def the_books_factors(model: nn.Module, rank: int, scale: float) -> None:
    appendix = pytest.importorskip("llms_from_scratch.appendix_e", reason="pip install --no-deps llms-from-scratch")
    appendix.replace_linear_with_lora(model, rank, scale)


class Pair(NamedTuple):
    ours: GPT2
    book: nn.Module
    rows: TextDataset


def beside(path: str) -> list[str]:
    """The names of the book's layers that one of ours stands for."""
    if path == "head.output":
        return ["out_head"]
    block, rest = path.removeprefix("trunk.blocks.").split(".", 1)
    named = {
        "attention.qkv": ["att.W_query", "att.W_key", "att.W_value"],
        "attention.out": ["att.out_proj"],
        "mlp.up": ["ff.layers.0"],
        "mlp.down": ["ff.layers.2"],
    }
    return [f"trf_blocks.{block}.{name}" for name in named[rest]]


def factors(pair: Pair) -> list[tuple[Tensor, Tensor]]:
    """Parts of our factors beside the book's, in the book's layout."""
    found: list[tuple[Tensor, Tensor]] = []
    for path, layer in lora_layers(pair.ours):
        books: list[Any] = [pair.book.get_submodule(name).lora for name in beside(path)]
        assert layer.parts == len(books)
        A, B = layer.lora_A.weight.chunk(layer.parts), layer.lora_B.weight.chunk(layer.parts)
        found += [(a.t(), book.A) for a, book in zip(A, books, strict=True)]
        found += [(b.t(), book.B) for b, book in zip(B, books, strict=True)]
    return found


# How the two editions scale: the bonus by alpha, appendix E by alpha / rank.
SCALES = {"alpha": 16.0, "alpha/rank": 1.0}
Wrap = Callable[[nn.Module, int, float], None]
both = pytest.mark.parametrize(
    ("build", "wrap"), [(Reference, put_factors), (the_books_own, the_books_factors)], ids=["reference", "package"]
)


def pair_of(build: Build, wrap: Wrap, scale: str) -> Pair:
    book = small(build, qkv_bias=True)
    torch.manual_seed(123)
    book.out_head = nn.Linear(24, 2)
    clf = as_ours({name: tensor.clone() for name, tensor in book.state_dict().items()}, {**SMALL, "qkv_bias": True})
    clf.tokenizer = byte_tokenizer()
    ours = apply_lora(clf, RANK, 16, targets=EVERYTHING, scale=scale, init="book", seed=4)
    book.requires_grad_(False)
    wrap(book, RANK, SCALES[scale])
    texts, labels = byte_texts(40, longest=LENGTH)
    classes = [int(label == "LABEL_1") for label in labels]
    rows = TextDataset(texts, classes, tokenizer=clf.tokenizer, classes=[0, 1], pad_to=LENGTH)
    pair = Pair(ours, book, rows)
    with torch.no_grad():
        for mine, its in factors(pair):
            its.copy_(mine)
    return pair


def book_losses(pair: Pair, lr: float) -> list[float]:
    """The losses of the book's loop: rows filled up to one length, the last position, AdamW."""
    trained = [parameter for parameter in pair.book.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=0.1)
    losses: list[float] = []
    batches = Batches(pair.rows, 8, 123)
    for epoch in range(STEPS // len(batches)):
        for batch in batches.epoch(epoch):
            assert batch.targets is not None
            optimizer.zero_grad()
            loss = F.cross_entropy(pair.book(batch.inputs)[:, -1], batch.targets)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("reuse", [True, False])
@pytest.mark.parametrize("scale", SCALES)
@both
def test_losses_of_twenty_steps_are_the_books(build: Build, wrap: Wrap, scale: str, reuse: bool) -> None:
    pair = pair_of(build, wrap, scale)
    expected = book_losses(pair, lr=1e-3)
    history = train(
        pair.ours, pair.rows, epochs=4, lr=1e-3, precision="float32", reuse_frozen=reuse, progress=False, seed=123
    )
    assert len(history.steps) == STEPS
    np.testing.assert_allclose([step.loss for step in history.steps], expected, rtol=1e-5)
    assert expected[-1] != pytest.approx(expected[0], rel=1e-2)
    for mine, its in factors(pair):
        assert relative_error(mine.detach(), its.detach()) < 1e-3


@pytest.mark.parametrize("scale", SCALES)
@both
def test_trained_and_merged_models_answer_as_the_books(build: Build, wrap: Wrap, scale: str) -> None:
    pair = pair_of(build, wrap, scale)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for mine, its in factors(pair):
            mine.add_(torch.randn(mine.shape, generator=generator), alpha=0.02)
            its.copy_(mine)
        ids = pair.rows.padded(np.arange(10))
        expected = pair.book(ids)[:, -1]
        for model in (pair.ours, merge_lora(pair.ours)):
            assert relative_error(model(ids), expected) < 1e-5


def test_one_pair_of_the_whole_rank_would_train_otherwise() -> None:
    # The zeros outside the diagonal blocks of B have a gradient: that is why the layer has parts.
    pair = pair_of(Reference, put_factors, "alpha")
    layer: Any = pair.ours.get_submodule("trunk.blocks.1.attention.qkv")
    with torch.no_grad():
        layer.lora_B.weight.normal_(generator=torch.Generator().manual_seed(0))
    A, B = (matrix.clone().requires_grad_() for matrix in layer.pair())
    assert (A.shape, B.shape) == ((3 * RANK, 24), (72, 3 * RANK))
    x = torch.randn(7, 24, generator=torch.Generator().manual_seed(1))
    y = layer.base(x) + x @ A.t() @ B.t() * layer.scale
    torch.testing.assert_close(y, layer(x), rtol=1e-4, atol=1e-4)
    y.square().sum().backward()
    assert B.grad is not None
    assert B.detach()[:24, RANK:].abs().max() == 0
    assert B.grad[:24, RANK:].abs().max() > 0


def test_the_books_draw_is_wider_than_pefts() -> None:
    clf = add_classifier_head(load_gpt2("nano"), num_classes=2, seed=0)
    for path, layer in lora_layers(apply_lora(clf, 16, targets=EVERYTHING, init="book", seed=1)):
        drawn = nn.init.kaiming_uniform_(torch.empty(layer.in_features, 16), a=math.sqrt(5))
        bound = 16**-0.5
        assert 0.95 * bound < float(layer.lora_A.weight.detach().abs().max()) <= bound, path
        assert relative_error(layer.lora_A.weight.detach().std(), drawn.std()) < 0.05
        assert not layer.lora_B.weight.any()


def test_the_head_beneath_factors_stays_as_it_was_drawn() -> None:
    pair = pair_of(Reference, put_factors, "alpha")
    assert not any(name.startswith("head.output.base") for name in trainable_report(pair.ours).names)
    assert {"head.output.lora_A.weight", "head.output.lora_B.weight"} <= set(trainable_report(pair.ours).names)


@pytest.mark.slow
def test_as_many_numbers_train_as_the_book_prints() -> None:
    clf = add_classifier_head(load_gpt2(GPT2Config(), weights="random", seed=0), num_classes=2, seed=0)
    assert trainable_report(apply_lora(clf, 16, targets=EVERYTHING, init="book")).trainable == 2_666_528
