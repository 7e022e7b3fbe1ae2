"""For every head, gptclf's own or a user's: kept features, evaluate, predict_proba and the model say the same."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conftest import byte_gpt2, randomised
from hypothesis import given, settings
from hypothesis import strategies as st
from stand_ins import Foreign, LastAndMean, TwoLayers, TwoLayersOverLast
from torch import Tensor, nn

from gptclf import (
    GPT2,
    Batches,
    ClassifierHead,
    Head,
    TextDataset,
    add_classifier_head,
    clear_features,
    evaluate,
    freeze,
    frozen_depth,
    predict,
    predict_proba,
    predict_stream,
    train,
)
from gptclf.features.frozen_prefix import FrozenPrefix
from gptclf.features.reuse import features_of, prefix_of
from gptclf.gpt2.heads import POOLINGS, check_head, pool, reads_of
from gptclf.gpt2.learner import Learner
from gptclf.gpt2.sharing import borrow
from gptclf.gpt2.trunk import Block

GPT = randomised(byte_gpt2())

Make = Callable[[int, int], Head]


class SameAsOurs(ClassifierHead):
    """A subclass that changes nothing."""


def drawn(kind: type[ClassifierHead], pooling: str) -> Make:
    """Make a head of ours, or a subclass, with weights that are not trivial."""

    def make(emb_dim: int, n_outputs: int) -> Head:
        head = kind(emb_dim, n_outputs, pooling=pooling).to_empty(device="cpu")
        generator = torch.Generator().manual_seed(1)
        for parameter in head.parameters():
            nn.init.normal_(parameter, 0.0, 0.2, generator=generator)
        return head

    return make


def two_layers_over_first(emb_dim: int, n_outputs: int) -> Head:
    class OverFirst(TwoLayers):
        reads = "first"

        def forward(self, hidden: Tensor, lengths: Tensor | None = None) -> Tensor:
            return self.layers(hidden[:, 0])  # type: ignore[no-any-return]

    return OverFirst(emb_dim, n_outputs)


HEADS: dict[str, Make] = {
    **{pooling: drawn(ClassifierHead, pooling) for pooling in POOLINGS},
    "subclass": drawn(SameAsOurs, "last"),
    "last + mean": drawn(LastAndMean, "last"),
    "first + mean": drawn(LastAndMean, "first"),
    "foreign": Foreign,
    "two layers": TwoLayers,
    "two layers, last": TwoLayersOverLast,
    "two layers, first": two_layers_over_first,
}

POLICIES: list[Any] = ["head", "last_block", 2, "all", "blocks.1", "norm"]

TEXTS = st.lists(st.text(alphabet="ab cdé.", max_size=12), min_size=2, max_size=6)


def classifier(head: str, policy: Any = "last_block") -> GPT2:
    clf = add_classifier_head(GPT, classes=["ham", "spam", "eggs"], head=HEADS[head])
    freeze(clf, trainable=policy)
    return clf


def labelled(clf: GPT2, texts: list[str]) -> TextDataset:
    assert clf.classes is not None
    labels = [clf.classes[i % 3] for i in range(len(texts))]
    return TextDataset(texts, labels, tokenizer=clf.tokenizer, classes=clf.classes)


def asked(clf: GPT2, data: TextDataset) -> Any:
    """What the model itself says to the texts, padded in one batch and one by one."""
    with torch.no_grad():
        ids = data.padded(np.arange(len(data)))
        together = clf(ids, torch.from_numpy(data.lengths)).softmax(dim=-1)
        alone = [clf(torch.from_numpy(row.astype(np.int64))[None]).softmax(dim=-1) for row in data.rows()]
        whole = clf.head(clf.trunk(ids), torch.from_numpy(data.lengths)).softmax(dim=-1)
    torch.testing.assert_close(torch.cat(alone), together, rtol=0, atol=1e-5)
    torch.testing.assert_close(whole, together, rtol=0, atol=1e-5)
    return together.numpy()


@settings(max_examples=60, deadline=None)
@given(head=st.sampled_from(sorted(HEADS)), policy=st.sampled_from(POLICIES), texts=TEXTS)
def test_evaluate_predict_proba_and_the_model_agree(head: str, policy: Any, texts: list[str]) -> None:
    clear_features()
    clf = classifier(head, policy)
    data = labelled(clf, texts)
    expected = asked(clf, data)
    evaluation = evaluate(clf, data, precision="float32")
    np.testing.assert_allclose(evaluation.probabilities, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(predict_proba(clf, texts, precision="float32"), expected, rtol=0, atol=1e-5)
    again = evaluate(clf, data, precision="float32")  # from the features that are kept now
    np.testing.assert_allclose(again.probabilities, expected, rtol=0, atol=1e-5)
    losses = -np.log(expected[np.arange(len(texts)), np.arange(len(texts)) % 3])
    assert evaluation.loss == pytest.approx(float(losses.mean()), abs=1e-4)


@settings(max_examples=60, deadline=None)
@given(head=st.sampled_from(sorted(HEADS)), policy=st.sampled_from(POLICIES), texts=TEXTS)
def test_a_learner_behind_the_frozen_part_has_the_losses_of_the_whole_model(
    head: str, policy: Any, texts: list[str]
) -> None:
    clear_features()
    clf = classifier(head, policy)
    data = labelled(clf, texts)
    with features_of(clf, [data], precision="float32") as (depth, (rows,)):
        assert depth == (frozen_depth(clf) if frozen_depth(clf) > 1 else 0)
        losses = []
        for at, some in ((0, data), (depth, rows)):
            learner = Learner(clf, at)
            (batch,) = Batches(some, len(texts), task=clf.task)
            assert batch.targets is not None
            total, weight = clf.task.batch_loss(learner, batch.inputs, batch.lengths, batch.targets)
            assert weight == len(texts)
            total.backward()  # type: ignore[no-untyped-call]
            trained = [parameter for parameter in clf.parameters() if parameter.requires_grad]
            losses.append([total.detach(), *(torch.zeros(()) if p.grad is None else p.grad.clone() for p in trained)])
            clf.zero_grad()
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("policy", ["head", "last_block", 2, "all"])
@pytest.mark.parametrize("head", sorted(HEADS))
def test_training_from_kept_features_is_plain_training(head: str, policy: Any) -> None:
    texts, found = ["abc", "", "a much longer text", "ab", "cd cd", "x"], []
    for reuse in (True, False):
        clf = classifier(head, policy)
        options: Any = {"epochs": 3, "batch_size": 3, "lr": 1e-3, "precision": "float32", "progress": False}
        history = train(clf, labelled(clf, texts), labelled(clf, texts), reuse_frozen=reuse, **options)
        found.append([*(step.loss for step in history.steps), *(scores.val_loss for scores in history.epochs)])
        with torch.no_grad():
            expected = asked(clf, labelled(clf, texts))
        np.testing.assert_allclose(predict_proba(clf, texts, precision="float32"), expected, rtol=0, atol=1e-5)
    assert found[0] == pytest.approx(found[1], abs=1e-5)
    assert found[0][0] != found[0][-1]


def test_dropout_of_a_head_acts_in_training_and_never_in_answers() -> None:
    texts = ["abc", "", "a much longer text", "ab", "cd cd", "x"]
    clf = classifier("two layers", "head")
    history = train(clf, labelled(clf, texts), epochs=1, batch_size=6, lr=0.0, precision="float32", progress=False)
    plain = evaluate(clf, labelled(clf, texts), precision="float32").loss
    assert abs(history.steps[0].loss - plain) > 1e-4
    assert not any(part.training for part in clf.modules())


class Recurrent(Head):
    """A head around a module of torch that keeps its parameters in lists of its own as well."""

    def __init__(self, emb_dim: int, n_outputs: int) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.cells, self.output = nn.LSTM(emb_dim, 8, batch_first=True), nn.Linear(8, n_outputs)

    def forward(self, hidden: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self.output(pool(self.cells(hidden)[0], lengths, "last"))  # type: ignore[no-any-return]


def test_a_head_of_torchs_recurrent_cells_trains_from_kept_features_and_takes_a_second_model() -> None:
    texts, losses = ["abc", "", "a much longer text", "ab", "cd cd", "x"], []
    for reuse in (True, False):
        clf = add_classifier_head(GPT, classes=["ham", "spam", "eggs"], head=Recurrent)
        freeze(clf, trainable="head")
        before = {name: tensor.clone() for name, tensor in clf.head.state_dict().items()}
        options: Any = {"epochs": 2, "batch_size": 3, "lr": 1e-2, "precision": "float32", "progress": False}
        losses.append([step.loss for step in train(clf, labelled(clf, texts), reuse_frozen=reuse, **options).steps])
        assert not any(torch.equal(tensor, before[name]) for name, tensor in clf.head.state_dict().items())
        expected = asked(clf, labelled(clf, texts))
        np.testing.assert_allclose(predict_proba(clf, texts, precision="float32"), expected, rtol=0, atol=1e-5)
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    second = borrow(clf)
    freeze(second, trainable="all")
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.zero_()
    np.testing.assert_array_equal(asked(clf, labelled(clf, texts)), expected)
    assert not second.head(torch.ones(1, 4, 64), None).any()


# What a head says that it reads


@settings(max_examples=40, deadline=None)
@given(
    head=st.sampled_from(sorted(HEADS)),
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=5),
    seed=st.integers(0, 99),
)
def test_a_head_that_reads_one_position_gives_the_same_for_it_alone(head: str, lengths: list[int], seed: int) -> None:
    module = HEADS[head](24, 3).eval()
    hidden = torch.randn(len(lengths), 7, 24, generator=torch.Generator().manual_seed(seed))
    counts = torch.tensor(lengths)
    whole = module(hidden, counts)
    assert whole.shape == (len(lengths), 3)
    if module.reads == "all":
        assert head not in ("last", "first", "two layers, last", "two layers, first")
        return
    position = counts - 1 if module.reads == "last" else torch.zeros_like(counts)
    alone = module(hidden[torch.arange(len(lengths)), position][:, None], None)
    torch.testing.assert_close(alone, whole)
    torch.testing.assert_close(module(hidden[:, : int(counts.max())], counts), whole)


@pytest.mark.parametrize(
    ("head", "reads"),
    [("last", "last"), ("first", "first"), ("mean", "all"), ("max", "all"), ("subclass", "all"), ("foreign", "all")],
)
def test_our_head_reads_what_it_pools_and_a_subclass_everything(head: str, reads: str) -> None:
    module = HEADS[head](24, 3)
    assert module.reads == reads
    assert reads_of(module) == reads
    handle = module.register_forward_hook(lambda *_: None)
    assert reads_of(module) == "all"
    handle.remove()
    assert reads_of(module) == reads
    assert reads_of(nn.Identity()) == "all"


@pytest.mark.parametrize(
    ("head", "positions"),
    [("last", 1), ("first", 1), ("two layers, last", 1), ("two layers, first", 1), ("mean", 9), ("last + mean", 9)],
)
def test_what_a_head_reads_is_what_is_kept(head: str, positions: int) -> None:
    clf = classifier(head, "head")
    prefix = prefix_of(clf, "float32")
    assert isinstance(prefix, FrozenPrefix)
    assert prefix.positions(np.array([9])).tolist() == [positions]


def test_a_foreign_head_that_reads_the_last_position_has_the_short_last_block(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[int] = []
    at_position = Block.at_position

    def counted(block: Block, x: Tensor, position: Tensor) -> Tensor:
        called.append(len(x))
        return at_position(block, x, position)

    monkeypatch.setattr(Block, "at_position", counted)
    classifier("two layers, last")(torch.ones(2, 5, dtype=torch.int64))
    assert called == [2]
    classifier("two layers")(torch.ones(2, 5, dtype=torch.int64))
    assert called == [2]


# What a head is told when it is wrong


class Wrong(Head):
    def __init__(self, emb_dim: int, n_outputs: int) -> None:
        super().__init__()
        self.output = nn.Linear(emb_dim, n_outputs)

    def forward(self, hidden: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self.output(pool(hidden, lengths, "mean"))  # type: ignore[no-any-return]


class SaysLast(Wrong):
    reads = "last"


class SaysFirst(Wrong):
    reads = "first"


class SaysOther(Wrong):
    reads = "middle"


class GivesEveryPosition(Wrong):
    def forward(self, hidden: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self.output(hidden)  # type: ignore[no-any-return]


class GivesAPair(Wrong):
    def forward(self, hidden: Tensor, lengths: Tensor | None = None) -> Any:
        return self.output(hidden[:, 0]), None


class IgnoresLengths(Wrong):
    def forward(self, hidden: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self.output(hidden.mean(dim=1))  # type: ignore[no-any-return]


class NeedsLengths(Wrong):
    def forward(self, hidden: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self.output(hidden[torch.arange(len(hidden)), lengths - 1])  # type: ignore[no-any-return, operator]


def of_another_width(emb_dim: int, n_outputs: int) -> Head:
    return Wrong(emb_dim + 1, n_outputs)


def one_too_many(emb_dim: int, n_outputs: int) -> Head:
    return Wrong(emb_dim, n_outputs + 1)


@pytest.mark.parametrize(
    ("head", "error", "message"),
    [
        (SaysLast, ValueError, r"SaysLast\.reads is 'last', but its outputs depend on other positions; set reads = "),
        (SaysFirst, ValueError, r"SaysFirst\.reads is 'first', but its outputs depend on other positions"),
        (SaysOther, ValueError, r"SaysOther\.reads is 'middle'; it must be one of all, last, first"),
        (one_too_many, ValueError, r"Wrong maps hidden states \(3, 5, 64\) to \(3, 4\); it must give \(3, 3\)"),
        (GivesEveryPosition, ValueError, r"GivesEveryPosition maps .* to \(3, 5, 3\); it must give \(3, 3\)"),
        (GivesAPair, ValueError, r"GivesAPair maps hidden states \(3, 5, 64\) to tuple; it must give \(3, 3\)"),
        (
            IgnoresLengths,
            ValueError,
            r"IgnoresLengths\.reads is 'all', but its outputs depend on padding; leave it out",
        ),
        (NeedsLengths, ValueError, r"NeedsLengths fails \(TypeError: .*\); it must map .* and lengths, \(B,\) or None"),
        (of_another_width, ValueError, r"Wrong fails \(RuntimeError: .*\); it must map hidden states \(B, T, 64\)"),
        (lambda emb_dim, n_outputs: "head", TypeError, "head is a str; give a gptclf.Head"),
        ("mean", TypeError, "head is a str; give a gptclf.Head"),
    ],
)
def test_a_wrong_head_is_refused_by_name(head: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        add_classifier_head(GPT, num_classes=3, head=head)
    if isinstance(head, type):
        with pytest.raises(error, match=message):
            add_classifier_head(GPT, num_classes=3, head=head(64, 3))


def test_a_right_head_is_tried_without_a_trace() -> None:
    head = TwoLayers(64, 3).train()
    norm = nn.BatchNorm1d(3)
    head.layers.append(norm)
    state, before = {k: v.clone() for k, v in head.state_dict().items()}, torch.get_rng_state()
    check_head(head, 64, 3)
    assert head.training
    assert all(torch.equal(tensor, state[name]) for name, tensor in head.state_dict().items())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("option", [{"pooling": "mean"}, {"bias": False}, {"seed": 1}])
def test_options_of_the_standard_head_are_not_for_ones_own(option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"with head=, leave out {next(iter(option))}=: for the standard head only"):
        add_classifier_head(GPT, num_classes=3, head=Foreign, **option)


def test_a_head_of_another_type_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the head's weights are torch\.float64.*head\.float\(\)"):
        add_classifier_head(GPT, num_classes=3, head=Foreign(64, 3).double().float().double())


# A head whose layer was replaced


@pytest.mark.parametrize(
    "layer",
    [
        lambda: nn.Linear(64, 3),
        lambda: nn.Sequential(nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 3)),
        lambda: nn.Sequential(nn.Dropout(0.5), nn.Linear(64, 3)),
    ],
)
@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_classifier_whose_output_layer_was_replaced_predicts(pooling: str, layer: Callable[[], nn.Module]) -> None:
    texts = ["abc", "", "a much longer text"]
    clf = add_classifier_head(GPT, classes=["ham", "spam", "eggs"], pooling=pooling, seed=1)
    torch.manual_seed(4)
    clf.head.output = layer().eval()
    freeze(clf, trainable="head")
    expected = asked(clf, labelled(clf, texts))
    np.testing.assert_allclose(predict_proba(clf, texts, precision="float32"), expected, rtol=0, atol=1e-5)
    assert clf.classes is not None
    labels = [clf.classes[i] for i in expected.argmax(axis=1)]
    assert predict(clf, texts, precision="float32") == labels
    assert [one.label for one in predict_stream(clf, iter(texts), precision="float32")] == labels
    evaluation = evaluate(clf, labelled(clf, texts), precision="float32")
    np.testing.assert_allclose(evaluation.probabilities, expected, rtol=0, atol=1e-5)
    train(clf, labelled(clf, texts), epochs=1, progress=False)


def test_a_layer_with_another_number_of_outputs_is_named() -> None:
    clf = classifier("last")
    clf.head.output = nn.Linear(64, 5)
    with pytest.raises(ValueError, match=r"outputs of shape \(1, 5\) for 1 texts.*has 3 outputs per text"):
        predict(clf, ["a"])


def test_a_plain_module_that_is_called_as_a_head_predicts_and_another_is_refused() -> None:
    clf = classifier("mean")
    clf.head = Wrong(64, 3)
    vars(clf.head)["forward"] = lambda hidden, lengths=None: hidden[:, 0, :3]
    assert len(predict(clf, ["a", "b c"])) == 2
    clf.head = nn.Linear(64, 3)  # type: ignore[assignment]
    for call in (predict, predict_proba, lambda clf, texts: evaluate(clf, labelled(clf, texts))):
        with pytest.raises(TypeError, match=r"model\.head, a Linear, takes no \(hidden, lengths\); use a Head"):
            call(clf, ["a", "b c"])
    with pytest.raises(TypeError, match=r"Linear defines no project\(\)"):
        clf.token_logits(torch.tensor([[1, 2]]))


class Attending(Head):
    """Torch's own attention with its own dropout."""

    def __init__(self, emb_dim: int, n_outputs: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(emb_dim, 2, dropout=0.4, batch_first=True)
        self.usual, self.other = nn.Dropout(0.2), nn.AlphaDropout(0.3)
        self.output = nn.Linear(emb_dim, n_outputs)

    def forward(self, hidden: Tensor, lengths: Tensor | None = None) -> Tensor:
        mixed, _ = self.attention(hidden[:, :1], hidden[:, :1], hidden[:, :1])
        return self.output(self.other(self.usual(mixed[:, 0])))  # type: ignore[no-any-return]


def test_dropout_that_no_seed_decides_is_named_once_a_run(caplog: pytest.LogCaptureFixture) -> None:
    named = "head.attention (MultiheadAttention), head.other (AlphaDropout) may draw from torch's global generator"
    clf = add_classifier_head(GPT, num_classes=3, head=Attending)
    train(clf, labelled(clf, ["a", "b", "c"]), epochs=1, progress=True)
    assert caplog.text.count(named) == 1
    caplog.clear()
    clf = classifier("two layers")
    train(clf, labelled(clf, ["a", "b", "c"]), epochs=1, progress=True)
    assert "global generator" not in caplog.text
