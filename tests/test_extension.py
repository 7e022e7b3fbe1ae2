"""What a user adds from outside the package, in a few lines: a head, a layer, a task, a callback.

Nothing here touches the package, and each piece is held to a number of lines.
"""

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import byte_gpt2
from sklearn.metrics import r2_score
from stand_ins import calls_of_blocks
from torch import Tensor, nn
from torch.nn import functional as F

from gptclf import (
    GPT2,
    Batches,
    Callback,
    GPT2Config,
    Head,
    KeepBest,
    Linear,
    Run,
    Scores,
    Task,
    TextDataset,
    add_classifier_head,
    apply_lora,
    batch_loss,
    evaluate,
    freeze,
    load_gpt2,
    load_model,
    predict,
    predict_proba,
    predict_stream,
    save_model,
    train,
)
from gptclf.features.frozen_prefix import FrozenPrefix
from gptclf.features.reuse import prefix_of
from gptclf.gpt2.learner import Learner
from gptclf.gpt2.trunk import can_pool

# ---- the extensions -------------------------------------------------------------------------------------------------


class TwoLayers(Head):
    reads = "last"

    def __init__(self, emb_dim: int, n_outputs: int) -> None:
        super().__init__()
        self.inner = nn.Linear(emb_dim, 16)
        self.dropout = nn.Dropout(0.1)
        self.output = nn.Linear(16, n_outputs)

    def forward(self, hidden: Tensor, lengths: Tensor | None = None) -> Tensor:
        last = hidden[:, -1] if lengths is None else hidden[torch.arange(len(hidden)), lengths - 1]
        return self.output(self.dropout(self.inner(last).relu()))  # type: ignore[no-any-return]


class LowRank(Linear):
    standard = True
    kind = "low_rank"

    def __init__(self, base: Linear, rank: int = 4) -> None:
        super().__init__(base.in_features, base.out_features, base.bias is not None, device="meta")
        self.weight, self.bias = base.weight, base.bias
        self.reduce = Linear(base.in_features, rank, bias=False, device="cpu")
        self.expand = Linear(rank, base.out_features, bias=False, device="cpu")
        nn.init.normal_(self.reduce.weight, std=0.02)
        nn.init.zeros_(self.expand.weight)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.expand(self.reduce(x))  # type: ignore[no-any-return]

    def rows(self, x: Tensor, rows: slice = slice(None), heads: int = 1, bias: bool = True) -> Tensor:
        return super().rows(x, rows, heads, bias) + self.expand.rows(self.reduce(x), rows, heads)

    def onto(self, x: Tensor, rows: slice = slice(None), heads: int = 1) -> Tensor:
        return super().onto(x, rows, heads) + self.reduce.onto(self.expand.onto(x, rows, heads))

    def prepared(self, arithmetic: Any) -> Any:
        base, down, up = (
            super().prepared(arithmetic),
            self.reduce.prepared(arithmetic),
            self.expand.prepared(arithmetic),
        )
        return lambda x: base(x) + up(down(x))


class TwoNumbers(Task):
    """Two measurements per text."""

    n_outputs = 2
    higher = ("r2",)

    def targets(self, labels: Any) -> Any:
        return np.asarray(labels, dtype=np.float32).reshape(-1, 2)

    def loss(self, outputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> tuple[Tensor, float]:
        rows = (outputs.float() - targets).square().mean(dim=1)
        return (rows if weights is None else rows * weights).sum(), self.weight(targets, weights)

    def scores(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        loss, spread = F.mse_loss(outputs, targets), (targets - targets.mean(dim=0)).square().mean(dim=0)
        errors = (outputs - targets).square().mean(dim=0)
        return {"loss": float(loss), "r2": float((1 - errors / spread).mean())}

    def answers(self, outputs: Tensor) -> list[Any]:
        return [tuple(row) for row in outputs.tolist()]


class GoodEnough(Callback):
    def on_scores(self, run: Run, scores: Scores) -> None:
        if scores.train["loss"] < 0.5:
            run.stop("good enough")


# ---- the data -------------------------------------------------------------------------------------------------------

TEXTS = [f"win a free prize {i}" if i % 2 else f"see you at {i}{' ok' * (i % 5)}" for i in range(40)]
LABELS = ["spam" if i % 2 else "ham" for i in range(40)]
NUMBERS = [(float(len(text)) / 20, float(i % 2)) for i, text in enumerate(TEXTS)]


def lines_of(extension: Any) -> int:
    """Lines of code, without blank ones and docstrings."""
    source = inspect.getsource(extension).replace(f'"""{extension.__doc__}"""', "")
    return sum(bool(line.strip()) for line in source.splitlines())


def labelled(clf: GPT2, **options: Any) -> TextDataset:
    return TextDataset(TEXTS, LABELS, tokenizer=clf.tokenizer, classes=clf.classes, **options)


@pytest.mark.parametrize(("extension", "limit"), [(TwoLayers, 15), (LowRank, 25), (TwoNumbers, 25), (GoodEnough, 8)])
def test_an_extension_is_short(extension: Any, limit: int) -> None:
    assert lines_of(extension) <= limit


# ---- a head ---------------------------------------------------------------------------------------------------------


def test_a_head_trains_is_measured_predicts_is_saved_and_loads(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    clf = add_classifier_head(byte_gpt2(), classes=["ham", "spam"], head=TwoLayers)
    data = labelled(clf)
    history = train(clf, data, data, epochs=4, lr=1e-2, progress=False)
    assert history.epochs[-1].train_accuracy == 1.0
    result = evaluate(clf, data)
    assert result.accuracy == 1.0
    np.testing.assert_allclose(result.probabilities, predict_proba(clf, TEXTS), atol=1e-6)
    ids, lengths = data.padded(np.arange(40)), torch.from_numpy(data.lengths)
    with torch.no_grad():
        np.testing.assert_allclose(clf(ids, lengths).softmax(dim=1), result.probabilities, atol=1e-5)
    save_model(clf, tmp_path)
    assert "TwoLayers" in caplog.text  # what transformers cannot hold is said
    with pytest.raises(ValueError, match=r"head of the class 'TwoLayers'.*head=TwoLayers"):
        load_model(tmp_path)
    again = load_model(tmp_path, head=TwoLayers)
    np.testing.assert_array_equal(predict_proba(again, TEXTS), predict_proba(clf, TEXTS))
    assert predict(again, TEXTS) == LABELS


def test_a_head_that_reads_the_last_position_keeps_one_vector_per_text_and_learns_the_same_without() -> None:
    losses = {}
    for reuse in (True, False):
        torch.manual_seed(0)
        clf = add_classifier_head(byte_gpt2(), classes=["ham", "spam"], head=TwoLayers)
        freeze(clf, trainable="head")
        history = train(clf, labelled(clf), epochs=2, lr=1e-2, reuse_frozen=reuse, precision="float32", progress=False)
        losses[reuse] = [step.loss for step in history.steps]
    np.testing.assert_allclose(losses[True], losses[False], rtol=1e-4)


# ---- a layer --------------------------------------------------------------------------------------------------------


def adapted(clf: GPT2, block: int) -> GPT2:
    part = clf.trunk.blocks[block]
    for owner, name in ((part.attention, "qkv"), (part.attention, "out"), (part.mlp, "up"), (part.mlp, "down")):
        setattr(owner, name, LowRank(getattr(owner, name)))
    return clf.eval()


def wide(seed: int = 0) -> GPT2:
    config = GPT2Config(vocab_size=257, context_length=64, emb_dim=64, n_heads=4, n_layers=4)
    return byte_gpt2() if seed < 0 else load_gpt2(config, weights="random", seed=seed, tokenizer=byte_gpt2().tokenizer)


def losses_of(clf: GPT2, **options: Any) -> list[float]:
    history = train(clf, labelled(clf), epochs=2, lr=1e-2, precision="float32", progress=False, **options)
    return [step.loss for step in history.steps]


def dense(clf: GPT2) -> GPT2:
    """The same model with each low-rank layer called by an ordinary module, which takes the general path."""

    class Plain(LowRank):  # does not vouch for itself
        pass

    for part in clf.modules():
        if type(part) is LowRank:
            part.__class__ = Plain
    return clf


@pytest.mark.parametrize("block", [1, 3])
def test_a_low_rank_layer_takes_the_fast_paths_and_learns_what_the_general_path_learns(block: int) -> None:
    found = []
    for change in (lambda clf: clf, dense):
        torch.manual_seed(1)
        clf = change(adapted(add_classifier_head(wide(), classes=["ham", "spam"], seed=1), block))
        freeze(clf, trainable=["*.reduce.weight", "*.expand.weight", "head"])
        assert not clf.get_parameter(f"trunk.blocks.{block}.mlp.up.weight").requires_grad
        found.append(losses_of(clf))
        assert can_pool(clf.trunk.blocks[block]) == (change is not dense)
    np.testing.assert_allclose(found[0], found[1], rtol=2e-4)
    assert found[0][-1] < found[0][0]


def test_a_low_rank_layer_in_a_middle_block_leaves_the_others_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    clf = adapted(add_classifier_head(wide(), classes=["ham", "spam"], seed=1), 1)
    freeze(clf, trainable="last_block")
    assert isinstance(prefix_of(clf, "float32"), FrozenPrefix)
    called = calls_of_blocks(monkeypatch)
    expected = predict_proba(clf, TEXTS, precision="float32")
    assert not called
    monkeypatch.undo()
    np.testing.assert_allclose(predict_proba(dense(clf), TEXTS, precision="float32"), expected, atol=1e-5)


def test_a_foreign_layer_in_one_block_leaves_the_others_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    clf = dense(adapted(add_classifier_head(wide(), classes=["ham", "spam"], seed=1), 1))
    called = calls_of_blocks(monkeypatch)
    predict_proba(clf, TEXTS, precision="float32")
    assert called
    assert {id(block) for block in called} == {id(clf.trunk.blocks[1])}
    monkeypatch.undo()
    shapes: dict[int, tuple[int, ...]] = {}
    learner = Learner(clf)
    for i, block in enumerate(learner.blocks):
        block.register_forward_pre_hook(lambda _, given, i=i: shapes.__setitem__(i, tuple(given[0].shape)))
        block._forward_pre_hooks.clear() if i != 1 else None
    batch = next(iter(Batches(labelled(clf), 8)))
    learner(batch.inputs, batch.lengths)
    assert shapes[1][0] == 8  # called as it is, on padded rows


def test_a_layer_of_a_model_is_kept_by_a_second_head() -> None:
    clf = adapted(add_classifier_head(wide(), classes=["ham", "spam"], seed=1), 1)
    with torch.no_grad():
        for name, parameter in clf.named_parameters():
            if name.endswith("expand.weight"):
                parameter.normal_()
    other = add_classifier_head(clf, classes=["a", "b", "c"], seed=2)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        torch.testing.assert_close(other.trunk(ids), clf.trunk(ids), rtol=0, atol=0)


# ---- a task ---------------------------------------------------------------------------------------------------------


def test_a_task_goes_all_the_way(tmp_path: Path) -> None:
    clf = add_classifier_head(byte_gpt2(), task=TwoNumbers(), seed=1)
    data = TextDataset(TEXTS, NUMBERS, tokenizer=clf.tokenizer, task=clf.task)
    options: dict[str, Any] = {"lr": 1e-2, "progress": False, "precision": "float32"}
    keep = KeepBest(measure="r2")
    history = train(clf, data, data, epochs=4, callbacks=[keep], checkpoint_dir=tmp_path / "state", **options)
    best = max(history.scores(), key=lambda scores: scores.val["r2"] if scores.val else -np.inf)
    assert keep.best is not None
    assert keep.best.step == best.step
    frame = history.to_frame()
    assert {"train_loss", "train_r2", "val_loss", "val_r2"} <= set(frame.columns)
    history.plot(tmp_path / "curves.png")

    result = evaluate(clf, data)
    assert result.r2 == pytest.approx(r2_score(NUMBERS, result.outputs), abs=1e-5)
    assert result.r2 == pytest.approx(best.val["r2"] if best.val else None, abs=1e-5)
    with pytest.raises(AttributeError, match="no 'accuracy'; it has loss, r2"):
        _ = result.accuracy
    assert result.predictions == predict(clf, TEXTS)
    assert [answer.label for answer in predict_stream(clf, TEXTS)] == predict(clf, TEXTS)
    with pytest.raises(TypeError, match="TwoNumbers gives no probabilities"):
        predict_proba(clf, TEXTS)
    assert "r2" in str(result)
    assert list(result.to_frame().columns) == ["text", "target", "prediction", "output 0", "output 1"]

    save_model(clf, tmp_path / "model")
    with pytest.raises(ValueError, match="TwoNumbers"):
        load_model(tmp_path / "model")
    again = load_model(tmp_path / "model", task=TwoNumbers())
    assert predict(again, TEXTS) == predict(clf, TEXTS)


def test_a_task_resumes(tmp_path: Path) -> None:
    def run(folder: Path | None, epochs: int, resume: bool = False) -> list[float]:
        clf = add_classifier_head(byte_gpt2(), task=TwoNumbers(), seed=1)
        data = TextDataset(TEXTS, NUMBERS, tokenizer=clf.tokenizer, task=clf.task, weights=[1.0, 2.0] * 20)
        history = train(clf, data, data, epochs=epochs, lr=1e-2, progress=False, checkpoint_dir=folder, resume=resume)
        return [step.loss for step in history.steps]

    whole = run(None, 4)
    run(tmp_path, 2)
    assert run(tmp_path, 4, resume=True) == whole


def test_a_task_works_in_a_loop_of_ones_own() -> None:
    clf = add_classifier_head(byte_gpt2(), task=TwoNumbers(), seed=1)
    data = TextDataset(TEXTS, NUMBERS, tokenizer=clf.tokenizer, task=clf.task)
    optimizer = torch.optim.AdamW([p for p in clf.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for epoch in range(3):
        for batch in Batches(data, 8, seed=0).epoch(epoch):
            optimizer.zero_grad()
            loss = batch_loss(clf, batch)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


# ---- a callback -----------------------------------------------------------------------------------------------------


def test_a_callback_stops_a_run() -> None:
    clf = add_classifier_head(byte_gpt2(), classes=["ham", "spam"], seed=1)
    history = train(clf, labelled(clf), epochs=50, lr=1e-2, callbacks=[GoodEnough()], progress=False)
    assert history.stopped == "good enough"
    assert len(history.epochs) < 50
    assert history.epochs[-1].train_loss < 0.5


def test_factors_go_on_no_layer_that_does_not_know_its_matrix() -> None:
    clf = adapted(add_classifier_head(wide(), classes=["ham", "spam"], seed=1), 1)
    with pytest.raises(ValueError, match=r"'blocks.1' matches no matrix"):
        apply_lora(clf, 4, targets="blocks.1")
    assert "blocks.1." not in " ".join(name for name, _ in apply_lora(clf, 4).named_parameters() if "lora" in name)
