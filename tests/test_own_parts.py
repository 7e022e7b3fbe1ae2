"""Heads and tasks of one's own, and tasks with weights, saved and loaded; what an evaluation and a prediction hold."""

import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
import transformers
from conftest import byte_gpt2
from torch import Tensor, nn

from gptclf import (
    GPT2,
    ClassifierHead,
    Head,
    Linear,
    Prediction,
    SingleLabel,
    Task,
    TextDataset,
    add_classifier_head,
    dataset_accuracy,
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
from gptclf.gpt2.trunk import Block

TEXTS = ["you won a prize", "ok", "", "see you at six", "call now", "x", "later then", "win win"]
LABELS = ["spam", "ham", "ham", "ham", "spam", "ham", "ham", "spam"]
NUMBERS = [(len(text) / 10, text.count("w") + 0.5) for text in TEXTS]


class Perceptron(Head):
    """Two layers with dropout over the last token, and running means as BatchNorm keeps them."""

    reads = "last"
    mean: Tensor

    def __init__(self, emb_dim: int, n_outputs: int, hidden: int = 10) -> None:
        super().__init__()
        self.hidden = nn.Linear(emb_dim, hidden)
        self.dropout = nn.Dropout(0.1)
        self.output = nn.Linear(hidden, n_outputs)
        self.register_buffer("mean", torch.zeros(emb_dim))
        self.register_buffer("seen", torch.tensor(0))

    def forward(self, hidden: Tensor, lengths: Tensor | None = None) -> Tensor:
        last = hidden[:, -1] if lengths is None else hidden[torch.arange(len(hidden)), lengths - 1]
        if self.training:
            with torch.no_grad():
                self.mean.lerp_(last.mean(dim=0), 0.1)
        return self.output(self.dropout(self.hidden(last - self.mean).relu()))  # type: ignore[no-any-return]


class Wider(Perceptron):
    """The same with another number of hidden units."""

    def __init__(self, emb_dim: int, n_outputs: int) -> None:
        super().__init__(emb_dim, n_outputs, hidden=12)


class Shifted(ClassifierHead):
    """A subclass of the standard head that computes something else."""

    def forward(self, hidden: Tensor, lengths: Tensor | None = None) -> Tensor:
        return super().forward(hidden, lengths) + 1.0


class TwoNumbers(Task):
    """Two float targets per row, and a factor that is part of the record."""

    n_outputs = 2

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def targets(self, labels: Sequence[Any]) -> Any:
        return np.array(labels, dtype=np.float32).reshape(-1, 2)

    def loss(self, outputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> tuple[Tensor, float]:
        rows = (outputs * self.scale - targets).square().mean(dim=1)
        return (rows if weights is None else rows * weights).sum(), self.weight(targets, weights)

    def scores(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        error = outputs * self.scale - targets
        return {"loss": float(error.square().mean()), "mae": float(error.abs().mean())}

    def answers(self, outputs: Tensor) -> list[Any]:
        return [tuple(row) for row in (outputs * self.scale).tolist()]

    def record(self) -> dict[str, Any]:
        return {**super().record(), "scale": self.scale, "names": ("first", "second")}


def labelled(clf: GPT2) -> TextDataset:
    return TextDataset(TEXTS, LABELS, tokenizer=clf.tokenizer, classes=clf.classes)


def trained(**options: Any) -> GPT2:
    """A classifier that was trained for a few steps."""
    torch.manual_seed(3)
    clf = add_classifier_head(byte_gpt2(), **options)
    task = clf.task
    data = labelled(clf) if task.classes else TextDataset(TEXTS, NUMBERS, tokenizer=clf.tokenizer, task=task)
    train(clf, data, epochs=2, batch_size=4, lr=3e-3, progress=False)
    return clf


def flags(clf: GPT2) -> dict[str, bool]:
    return {name: parameter.requires_grad for name, parameter in clf.named_parameters()}


@pytest.fixture(scope="module")
def clf() -> GPT2:
    """A classifier with a head of one's own that was trained for a few steps."""
    return trained(classes=["ham", "spam"], head=Perceptron)


class TestHead:
    @pytest.fixture
    def folder(self, clf: GPT2, tmp_path: Path) -> Path:
        return save_model(clf, tmp_path / "model")

    def test_training_moved_its_buffer(self, clf: GPT2) -> None:
        assert bool(clf.get_buffer("head.mean").any())

    def test_it_is_saved_in_our_layout_alone_with_the_reason(
        self, clf: GPT2, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        folder = save_model(clf, tmp_path / "model")
        assert "transformers cannot load this model (its head is a Perceptron" in caplog.text
        names = {path.name for path in folder.iterdir()}
        assert {"gptclf.json", "gptclf.safetensors", "README.md"} <= names
        assert not names & {"config.json", "model.safetensors"}
        assert "`transformers` cannot load it" in (folder / "README.md").read_text()
        with pytest.raises((OSError, ValueError)):
            transformers.AutoModelForSequenceClassification.from_pretrained(folder)
        with pytest.raises(ValueError, match="gptclf's own layout only; load it with load_model"):
            load_gpt2(folder)

    def test_without_it_loading_names_the_class_and_what_to_give(self, folder: Path) -> None:
        with pytest.raises(ValueError, match=r"head of the class 'Perceptron'.*load_model\(\.\.\., head=Perceptron\)"):
            load_model(folder)

    @pytest.mark.parametrize("head", [Perceptron, lambda width, n: Perceptron(width, n)], ids=["class", "function"])
    def test_with_its_class_it_answers_bit_for_bit(self, head: Any, clf: GPT2, folder: Path) -> None:
        again = load_model(folder, head=head)
        assert (predict_proba(again, TEXTS) == predict_proba(clf, TEXTS)).all()
        assert predict(again, TEXTS) == predict(clf, TEXTS)
        assert torch.equal(again.get_buffer("head.mean"), clf.get_buffer("head.mean"))
        assert flags(again) == flags(clf)
        assert not any(module.training for module in again.modules())

    def test_a_head_that_was_made_is_filled(self, clf: GPT2, folder: Path) -> None:
        given = Perceptron(clf.config.emb_dim, 2)
        again = load_model(folder, head=given)
        assert isinstance(again.head, Perceptron)
        assert (predict_proba(again, TEXTS) == predict_proba(clf, TEXTS)).all()

    def test_it_is_saved_again_and_trained_on(self, clf: GPT2, folder: Path, tmp_path: Path) -> None:
        again = load_model(folder, head=Perceptron)
        last = load_model(save_model(again, tmp_path / "again"), head=Perceptron)
        assert (predict_proba(last, TEXTS) == predict_proba(clf, TEXTS)).all()
        before = predict_proba(last, TEXTS)
        train(last, labelled(last), epochs=1, lr=1e-2, progress=False)
        assert not np.allclose(predict_proba(last, TEXTS), before)
        assert (predict_proba(clf, TEXTS) == before).all()

    @pytest.mark.parametrize(
        ("head", "error", "message"),
        [
            (Wider, ValueError, r"fit gptclf\.json: head\.hidden\.weight.*another head than was saved"),
            (ClassifierHead, ValueError, r"saved with a Perceptron .*gives a ClassifierHead .*give the same head"),
            (lambda width, n: Perceptron(width, n + 1), ValueError, r"to \(3, 3\); it must give \(3, 2\)"),
            (lambda width, n: nn.Linear(width, n), TypeError, "head is a Linear"),
            (lambda width, n: Perceptron(width + 1, n), (ValueError, RuntimeError), "."),
            ("Perceptron", TypeError, "head is a str"),
            (5, TypeError, "head is a int"),
        ],
        ids=["other shapes", "other tensors", "outputs", "no head", "width", "name", "number"],
    )
    def test_a_wrong_head_is_refused(self, head: Any, error: Any, message: str, folder: Path) -> None:
        with pytest.raises(error, match=message):
            load_model(folder, head=head)

    def test_a_head_for_the_standard_one_is_refused(self, tmp_path: Path) -> None:
        clf = add_classifier_head(byte_gpt2(), classes=["ham", "spam"], seed=1)
        with pytest.raises(ValueError, match="was saved with the standard head; leave head= out"):
            load_model(save_model(clf, tmp_path / "clf"), head=Perceptron)
        with pytest.raises(ValueError, match="holds a language model, which has no head of yours"):
            load_model(save_model(byte_gpt2(), tmp_path / "lm"), head=Perceptron)

    def test_a_subclass_of_the_standard_head_is_not_the_standard_head(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        clf = add_classifier_head(byte_gpt2(), classes=["ham", "spam"], head=Shifted)
        assert clf.get_parameter("head.output.weight").std() > 0.01
        assert not clf.get_parameter("head.output.bias").any()
        folder = save_model(clf, tmp_path)
        assert "its head is a Shifted" in caplog.text
        with pytest.raises(ValueError, match="'Shifted'"):
            load_model(folder)
        again = load_model(folder, head=Shifted)
        ids = torch.tensor([[1, 2, 3]])
        with torch.no_grad():
            assert torch.equal(again(ids), clf(ids))

    @pytest.mark.parametrize(
        "output",
        [lambda: nn.Linear(64, 2), lambda: nn.Sequential(nn.Dropout(0.5), nn.Linear(64, 2))],
        ids=["linear", "with dropout"],
    )
    def test_an_output_layer_that_was_replaced_is_used_everywhere(self, output: Any, tmp_path: Path) -> None:
        clf = add_classifier_head(byte_gpt2(), classes=["ham", "spam"], seed=1)
        torch.manual_seed(8)
        layer = output()
        nn.init.normal_(list(layer.modules())[-1].weight)
        clf.head.output = layer
        clf.eval()
        found = predict_proba(clf, TEXTS, precision="float32")
        data = labelled(clf)
        with torch.no_grad():
            logits = clf(data.padded(np.arange(8)), torch.tensor(data.lengths))
        np.testing.assert_allclose(logits.softmax(dim=1), found, atol=1e-5)
        for trainable in ("head", "last_block"):
            freeze(clf, trainable=trainable)
            np.testing.assert_allclose(evaluate(clf, data, precision="float32").probabilities, found, atol=1e-5)
        if isinstance(layer, nn.Linear):
            assert (predict_proba(load_model(save_model(clf, tmp_path)), TEXTS) == predict_proba(clf, TEXTS)).all()
        else:
            with pytest.raises(ValueError, match=r"head\.output\.1\.weight.* are missing, new or of another shape"):
                save_model(clf, tmp_path)

    def test_a_module_that_is_not_a_head_is_told_what_to_do(self, tmp_path: Path) -> None:
        clf = add_classifier_head(byte_gpt2(), classes=["ham", "spam"], seed=1)
        clf.head = nn.Linear(64, 2)  # type: ignore[assignment]
        with pytest.raises(TypeError, match=r"model\.head is a Linear; save_model needs a gptclf\.Head"):
            save_model(clf, tmp_path)


class Halved(Linear):
    """A layer of the trunk with a computation of its own, and no parameter that would show."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 2


def replace_layer(clf: GPT2, layer: nn.Linear) -> None:
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    clf.trunk.blocks[0].mlp.up = layer  # type: ignore[union-attr]


def replace_dropout(clf: GPT2, layer: nn.Module) -> None:
    clf.trunk.blocks[0].mlp.dropout = layer  # type: ignore[union-attr]


def replace_forward(clf: GPT2) -> None:
    forward = clf.trunk.blocks[1].mlp.forward  # type: ignore[union-attr]
    clf.trunk.blocks[1].mlp.forward = lambda x: forward(x) / 2  # type: ignore[union-attr]


def replace_block(clf: GPT2) -> None:
    clf.trunk.blocks[0].__class__ = type("Tanh", (Block,), {"forward": lambda block, x: torch.tanh(x)})


OTHER_MODELS: dict[str, Callable[[GPT2], object]] = {
    "trunk.blocks.0.mlp.up is a Halved, not a Linear": lambda clf: replace_layer(clf, Halved(64, 256)),
    "trunk.blocks.0 is a Tanh, not a Block": replace_block,
    "trunk.blocks.1.mlp has hooks or a replaced forward": replace_forward,
    "trunk.norm has hooks": lambda clf: clf.trunk.norm.register_forward_pre_hook(lambda norm, given: given),
    "head has hooks": lambda clf: clf.head.register_forward_hook(lambda head, given, y: y + 1),
    "the model has hooks": lambda clf: clf.register_forward_hook(lambda head, given, y: y + 1),
    "trunk.blocks.2.mlp has activation = 'relu', not 'gelu_tanh'": lambda clf: setattr(
        clf.get_submodule("trunk.blocks.2.mlp"), "activation", "relu"
    ),
    "trunk.blocks.0.norm1 has eps = 0.5, not 1e-05": lambda clf: setattr(
        clf.get_submodule("trunk.blocks.0.norm1"), "eps", 0.5
    ),
    "trunk.blocks.0.attention has n_heads = 2, not 4, has scale = 1.0, not 0.25": lambda clf: vars(
        clf.get_submodule("trunk.blocks.0.attention")
    ).update(n_heads=2, scale=1.0),
}


@pytest.mark.parametrize("problem", OTHER_MODELS)
def test_a_model_that_would_load_as_another_is_refused_by_name(problem: str, tmp_path: Path) -> None:
    clf = add_classifier_head(byte_gpt2(), classes=["ham", "spam"], seed=1)
    OTHER_MODELS[problem](clf)
    with pytest.raises(ValueError, match=f"^{re.escape(problem)}.*it would load as another model. Remove hooks"):
        save_model(clf, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


SAME_MODELS: dict[str, Callable[[GPT2], None]] = {
    "our layer": lambda clf: replace_layer(clf, Linear(64, 256)),
    "torch's layer": lambda clf: replace_layer(clf, nn.Linear(64, 256)),
    "torch's dropout": lambda clf: replace_dropout(clf, nn.Dropout(0.3)),
    "other dropout": lambda clf: replace_dropout(clf, nn.AlphaDropout(0.3)),
    "no dropout": lambda clf: replace_dropout(clf, nn.Identity()),
}


@pytest.mark.parametrize("change", SAME_MODELS)
def test_a_replaced_part_that_computes_alike_is_saved(change: str, tmp_path: Path) -> None:
    clf = add_classifier_head(byte_gpt2(), classes=["ham", "spam"], seed=1)
    SAME_MODELS[change](clf)
    again = load_model(save_model(clf.eval(), tmp_path))
    with torch.no_grad():
        torch.testing.assert_close(again(torch.tensor([[1, 2]])), clf(torch.tensor([[1, 2]])))


def test_a_hook_on_a_head_of_ones_own_is_its_classs_business(tmp_path: Path) -> None:
    clf = add_classifier_head(byte_gpt2(), classes=["ham", "spam"], head=Perceptron)
    clf.head.hidden.register_forward_hook(lambda layer, given, y: None)  # type: ignore[union-attr]
    assert load_model(save_model(clf, tmp_path), head=Perceptron).classes == ["ham", "spam"]


class TestTask:
    def test_two_numbers_come_back_with_their_task(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        clf = trained(task=TwoNumbers(2.0), seed=1)
        folder = save_model(clf, tmp_path)
        assert "its task is TwoNumbers, and transformers has no such task" in caplog.text
        card = (folder / "README.md").read_text()
        assert "A GPT-2 for the task `TwoNumbers`, with" in card
        assert "## Labels" not in card
        with pytest.raises(ValueError, match="a task of the kind 'TwoNumbers'; give task= an object of its class"):
            load_model(folder)
        again = load_model(folder, task=TwoNumbers(2.0))
        assert predict(again, TEXTS) == predict(clf, TEXTS)
        assert all(isinstance(number, float) for answer in predict(again, TEXTS) for number in answer)
        data = TextDataset(TEXTS, NUMBERS, tokenizer=clf.tokenizer, task=again.task)
        assert evaluate(again, data).measures == evaluate(clf, data).measures

    def test_another_task_is_refused(self, tmp_path: Path) -> None:
        folder = save_model(trained(task=TwoNumbers(2.0), seed=1), tmp_path)
        with pytest.raises(ValueError, match=r"scale=3\.0.*was saved with .*'scale': 2\.0.*give the same task"):
            load_model(folder, task=TwoNumbers(3.0))
        with pytest.raises(ValueError, match="give the same task"):
            load_model(folder, task=SingleLabel(["a", "b"]))
        with pytest.raises(TypeError, match="task is a str"):
            load_model(folder, task="TwoNumbers")  # type: ignore[arg-type]

    def test_a_task_and_a_head_of_ones_own_go_together(self, tmp_path: Path) -> None:
        clf = trained(task=TwoNumbers(), head=Perceptron)
        again = load_model(save_model(clf, tmp_path), task=TwoNumbers(), head=Perceptron)
        assert predict(again, TEXTS) == predict(clf, TEXTS)

    @pytest.mark.parametrize(
        "task",
        [
            SingleLabel(["ham", "spam"], class_weight={"spam": 3.0}),
            SingleLabel(["ham", "spam"], class_weight={"ham": 0.5, "spam": 2}, label_smoothing=0.1),
            SingleLabel(["ham", "spam"], class_weight="balanced"),
            SingleLabel(["ham", "spam"], label_smoothing=0.25),
        ],
        ids=str,
    )
    def test_weights_and_smoothing_come_back(self, task: SingleLabel, tmp_path: Path) -> None:
        clf = trained(task=task, seed=1)
        again = load_model(save_model(clf, tmp_path))
        assert again.task == clf.task
        assert isinstance(again.task, SingleLabel)
        assert isinstance(clf.task, SingleLabel)
        assert again.task.weights == clf.task.weights
        assert (again.task.class_weight, again.task.label_smoothing) == (task.class_weight, task.label_smoothing)
        assert (predict_proba(again, TEXTS) == predict_proba(clf, TEXTS)).all()
        # It is exported all the same: weights shape training only.
        assert (tmp_path / "config.json").is_file()

    def test_balanced_weights_are_those_of_the_training_set(self, tmp_path: Path) -> None:
        clf = trained(task=SingleLabel(["ham", "spam"], class_weight="balanced"), seed=1)
        again = load_model(save_model(clf, tmp_path))
        assert isinstance(again.task, SingleLabel)
        assert again.task.weights == [8 / (2 * 5), 8 / (2 * 3)]  # n / (C n_c)

    def test_labels_of_any_type_keep_their_weights(self, tmp_path: Path) -> None:
        task = SingleLabel([1, "1", ("a", 2)], class_weight={"1": 2.0, ("a", 2): 0.0})
        clf = add_classifier_head(byte_gpt2(), task=task, seed=1)
        again = load_model(save_model(clf, tmp_path))
        assert isinstance(again.task, SingleLabel)
        assert again.task == task
        assert again.task.weights == [1.0, 2.0, 0.0]

    @pytest.mark.parametrize(
        ("key", "value"),
        [("weights", [1.0]), ("weights", "heavy"), ("label_smoothing", 1.5), ("class_weight", "unknown"), ("kind", 3)],
    )
    def test_a_damaged_record_is_refused(self, key: str, value: Any, tmp_path: Path) -> None:
        task = SingleLabel(["ham", "spam"], class_weight={"spam": 3.0})
        save_model(add_classifier_head(byte_gpt2(), task=task, seed=1), tmp_path)
        record = json.loads((tmp_path / "gptclf.json").read_text())
        record["task"][key] = value
        (tmp_path / "gptclf.json").write_text(json.dumps(record))
        with pytest.raises(ValueError, match=r"the file is damaged|was saved with a task"):
            load_model(tmp_path)


class TestResults:
    def test_an_attribute_that_no_measure_has_names_those_there_are(self) -> None:
        clf = trained(classes=["ham", "spam"], seed=1)
        result = evaluate(clf, labelled(clf))
        assert result.measures == {"loss": result.loss, "accuracy": result.accuracy}
        with pytest.raises(AttributeError, match=r"no 'mae'; it has .*macro_f1.*loss, accuracy"):
            _ = result.mae
        assert not hasattr(result, "mae")

    def test_a_task_without_accuracy_has_its_own_measures(self) -> None:
        clf = trained(task=TwoNumbers(), seed=1)
        result = evaluate(clf, TextDataset(TEXTS, NUMBERS, tokenizer=clf.tokenizer, task=clf.task))
        assert result.mae == pytest.approx(np.abs(np.array(predict(clf, TEXTS)) - np.array(NUMBERS)).mean(), abs=1e-5)
        with pytest.raises(AttributeError, match="this evaluation has no 'accuracy'; it has loss, mae"):
            _ = result.accuracy
        assert result.classes is None
        assert result.outputs.shape == (8, 2)
        assert str(result) == f"loss {result.loss:.4f}, mae {result.mae:.4f} on 8 texts"
        with pytest.raises(TypeError, match="TwoNumbers gives no probabilities"):
            _ = result.probabilities

    def test_weights_of_classes_and_rows_change_no_measure(self) -> None:
        clf = trained(classes=["ham", "spam"], seed=1)
        plain = evaluate(clf, labelled(clf)).measures
        heavy = TextDataset(TEXTS, LABELS, tokenizer=clf.tokenizer, classes=clf.classes, weights=range(1, 9))
        assert evaluate(clf, heavy).measures == plain
        clf.task = SingleLabel(["ham", "spam"], class_weight={"spam": 9.0}, label_smoothing=0.3)
        assert evaluate(clf, labelled(clf)).measures == plain

    def test_a_prediction_holds_label_outputs_and_probabilities(self) -> None:
        clf = trained(classes=["ham", "spam"], seed=1)
        found = list(predict_stream(clf, TEXTS))
        assert all(isinstance(answer, Prediction) for answer in found)
        assert [answer.label for answer in found] == predict(clf, TEXTS)
        for answer, row in zip(found, predict_proba(clf, TEXTS), strict=True):
            assert answer.outputs.shape == (2,)
            assert answer.outputs.dtype == np.float32
            np.testing.assert_allclose(answer.probabilities, row, rtol=0, atol=1e-6)
        with pytest.raises(AttributeError):
            found[0].label = "other"  # type: ignore[misc]

    def test_a_prediction_of_numbers_has_no_probabilities(self) -> None:
        clf = trained(task=TwoNumbers(2.0), seed=1)
        [answer] = predict_stream(clf, ["win"])
        assert answer.label == pytest.approx(tuple(2.0 * answer.outputs))
        with pytest.raises(TypeError, match="TwoNumbers gives no probabilities"):
            _ = answer.probabilities

    @pytest.mark.parametrize("trainable", ["head", "last_block", "all"])
    @pytest.mark.parametrize("head", [Perceptron, Shifted], ids=["own", "subclass"])
    def test_evaluate_and_predict_agree_whatever_is_kept(self, head: type[Head], trainable: str) -> None:
        torch.manual_seed(5)
        clf = add_classifier_head(byte_gpt2(), classes=["ham", "spam"], head=head)
        with torch.no_grad():
            for parameter in clf.head.parameters():
                parameter.normal_()
        freeze(clf, trainable=trainable)
        kept = evaluate(clf, labelled(clf), precision="float32")
        again = evaluate(clf, labelled(clf), precision="float32")  # from what the first call kept
        np.testing.assert_allclose(kept.probabilities, predict_proba(clf, TEXTS, precision="float32"), atol=1e-6)
        assert (kept.outputs == again.outputs).all()
        ids, lengths = labelled(clf).padded(np.arange(8)), torch.tensor(labelled(clf).lengths)
        with torch.no_grad():
            np.testing.assert_allclose(clf(ids, lengths), kept.outputs, rtol=1e-4, atol=1e-5)
        assert math.isfinite(kept.loss)

    def test_an_evaluation_is_shown_in_a_line_without_texts(self) -> None:
        clf = trained(task=SingleLabel(["ham", "spam"]), seed=1)
        data = TextDataset(TEXTS * 100, LABELS * 100, tokenizer=clf.tokenizer, classes=clf.classes)
        shown = repr(evaluate(clf, data))
        assert re.fullmatch(r"Evaluation\(2 classes, 800 texts, loss=[\d.]+, accuracy=[\d.]+\)", shown)

    def test_accuracy_of_a_task_without_it_names_the_measures(self) -> None:
        clf = trained(task=TwoNumbers(2.0), seed=1)
        data = TextDataset(TEXTS, NUMBERS, tokenizer=clf.tokenizer, task=clf.task)
        with pytest.raises(TypeError, match="TwoNumbers does not measure accuracy; evaluate gives loss, "):
            dataset_accuracy(clf, data)


@pytest.mark.parametrize(
    "given",
    [
        pandas.Series({"ham": 1, "spam": 3}),
        pandas.Series([1.0, 3.0], index=["ham", "spam"], dtype="float32"),
        {np.str_("spam"): np.float32(3)},
    ],
)
def test_class_weights_come_as_a_series_or_under_numpys_keys(given: Any) -> None:
    assert SingleLabel(["ham", "spam"], class_weight=given).weights == [1.0, 3.0]


def test_class_weights_of_numbers_come_under_their_0_dimensional_forms() -> None:
    counts = pandas.Series([5, 7, 7]).value_counts()
    assert SingleLabel([5, 7], class_weight=counts).weights == [1.0, 2.0]
    assert SingleLabel([5, 7], class_weight={torch.tensor(7): 2, np.int64(5): 1}).weights == [1.0, 2.0]
    with pytest.raises(TypeError, match='it must be None, "balanced" or a mapping'):
        SingleLabel([5, 7], class_weight=np.array([1.0, 2.0]))  # type: ignore[arg-type]
