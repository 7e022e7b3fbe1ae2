"""Models as graphs: exported, compiled, traced, transformed and in ONNX, they answer as in an ordinary call."""

import copy
import json
import logging
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import byte_tokenizer
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from gptclf import (
    GPT2,
    GPT2Config,
    Head,
    Preparation,
    add_classifier_head,
    apply_lora,
    export_onnx,
    freeze,
    load_gpt2,
    load_model,
    quantize,
    save_model,
)
from gptclf.gpt2.heads import POOLINGS
from gptclf.gpt2.recording import cached

CONTEXT = 512
SIZES = [(batch, tokens) for batch in (1, 5) for tokens in (1, 2, 17, CONTEXT)]
IDS, LENGTHS = torch.arange(36).view(3, 12), torch.tensor([12, 5, 9])


@pytest.fixture(scope="module")
def gpt2() -> GPT2:
    config = GPT2Config(vocab_size=257, context_length=CONTEXT, emb_dim=32, n_layers=2, n_heads=2)
    return load_gpt2(config, weights="random", seed=0, tokenizer=byte_tokenizer())


def classifier(gpt2: GPT2, pooling: str = "last") -> GPT2:
    return add_classifier_head(gpt2, classes=["ham", "spam", "news"], pooling=pooling, seed=1)


def adapted(model: GPT2) -> GPT2:
    """A model with LoRA factors that change its answers."""
    model = apply_lora(model, rank=2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(0))
    return model


# The kinds of models, by name.
KINDS: dict[str, Callable[[GPT2], GPT2]] = {
    **{pooling: partial(classifier, pooling=pooling) for pooling in POOLINGS},
    "language model": lambda gpt2: gpt2,
    "LoRA": lambda gpt2: adapted(classifier(gpt2)),
    "nf4": lambda gpt2: quantize(classifier(gpt2), "nf4"),
    "int8": lambda gpt2: quantize(classifier(gpt2), "int8"),
    "LoRA over nf4": lambda gpt2: adapted(quantize(classifier(gpt2), "nf4")),
}


def batches(sizes: list[tuple[int, int]] = SIZES) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for batch, tokens in sizes:
        lengths = torch.randint(1, tokens + 1, (batch,), generator=generator)
        made.append((torch.randint(0, 257, (batch, tokens), generator=generator), lengths))
    return made


def check(model: GPT2, answer: Callable[[Tensor, Tensor], Tensor], sizes: list[tuple[int, int]] = SIZES) -> None:
    """Compare answers with the model's own, at the real tokens."""
    for ids, lengths in batches(sizes):
        with torch.no_grad():
            expected, found = model(ids, lengths), answer(ids, lengths)
        if expected.dim() == 3:  # a language model's
            real = torch.arange(ids.shape[1]) < lengths[:, None]
            expected, found = (x[real] for x in (expected, found))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def dimensions() -> tuple[dict[int, Any], dict[int, Any]]:
    batch, tokens = torch.export.Dim("batch"), torch.export.Dim("tokens", max=CONTEXT)
    return {0: batch, 1: tokens}, {0: batch}


# --- torch.export, torch.compile, torch.jit.trace ---


@pytest.mark.parametrize("kind", KINDS)
def test_an_exported_program_takes_any_batch_and_any_lengths(gpt2: GPT2, kind: str) -> None:
    model = KINDS[kind](gpt2)
    program = torch.export.export(model, (IDS, LENGTHS), dynamic_shapes=dimensions())
    check(model, program.module())


def test_so_does_one_that_was_exported_through_the_compiler_or_loaded_from_a_file(gpt2: GPT2, tmp_path: Path) -> None:
    model = classifier(gpt2)
    program = torch.export.export(model, (IDS, LENGTHS), dynamic_shapes=dimensions(), strict=True)
    torch.export.save(program, tmp_path / "model.pt2")
    check(model, torch.export.load(tmp_path / "model.pt2").module())


def test_lengths_may_be_left_out_of_an_export(gpt2: GPT2) -> None:
    model = classifier(gpt2)
    program = torch.export.export(model, (IDS,), dynamic_shapes=(dimensions()[0],)).module()
    for ids, _ in batches():
        torch.testing.assert_close(program(ids), model(ids), rtol=0, atol=1e-5)


def test_an_exported_program_refuses_more_tokens_than_the_context(gpt2: GPT2) -> None:
    program = torch.export.export(classifier(gpt2), (IDS, LENGTHS), dynamic_shapes=dimensions()).module()
    with pytest.raises(Exception, match="512"):
        program(torch.ones(2, CONTEXT + 1, dtype=torch.int64), torch.tensor([3, 3]))


@pytest.mark.parametrize("kind", ["last", "mean", "language model", "LoRA over nf4"])
def test_the_whole_model_compiles_as_one_graph(gpt2: GPT2, kind: str) -> None:
    torch._dynamo.reset()
    model = KINDS[kind](gpt2)
    compiled: Any = torch.compile(model, fullgraph=True, dynamic=True, backend="eager")
    check(model, compiled, [(5, 17), (5, CONTEXT)])


def test_a_compiled_model_has_the_gradients_of_the_model(gpt2: GPT2) -> None:
    torch._dynamo.reset()
    plain, compiled = classifier(gpt2), classifier(gpt2)
    call: Any = torch.compile(compiled, fullgraph=True, backend="aot_eager")
    for model in (plain, call):
        torch.autograd.backward(F.cross_entropy(model(IDS, LENGTHS), torch.tensor([0, 1, 2])))
    ours, theirs = (dict(model.named_parameters()) for model in (plain, compiled))
    trained = [name for name, parameter in ours.items() if parameter.requires_grad]
    assert len(trained) > 10
    for name in trained:
        torch.testing.assert_close(theirs[name].grad, ours[name].grad, rtol=1e-4, atol=1e-6)


def test_a_compiled_model_trains_no_tensor_that_another_model_shares(gpt2: GPT2) -> None:
    torch._dynamo.reset()
    clf = classifier(gpt2)
    clf.trunk.blocks[0].get_parameter("mlp.up.weight").requires_grad_()
    call: Any = torch.compile(clf, backend="eager")
    with pytest.raises(Exception, match=r"blocks\.0\.mlp\.up\.weight is set to train.*call freeze"):
        call(IDS, LENGTHS)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "LoRA over nf4"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_a_traced_model_is_right_for_other_sizes_and_lengths(gpt2: GPT2, kind: str) -> None:
    model = KINDS[kind](gpt2)
    traced = torch.jit.trace(model, (IDS, LENGTHS), check_trace=False)  # type: ignore[no-untyped-call]
    check(model, traced)


def test_ordinary_calls_still_look_at_values(gpt2: GPT2) -> None:
    clf = classifier(gpt2)
    with pytest.raises(ValueError, match="token ids run from 0 to 300"):
        clf(torch.tensor([[0, 300]]), torch.tensor([2]))
    with pytest.raises(ValueError, match="lengths run from 0 to 0"):
        clf(torch.tensor([[0, 3]]), torch.tensor([0]))


def test_what_is_made_while_torch_records_is_not_kept() -> None:
    made = []

    @cached
    def table(n: int) -> Tensor:
        made.append(n)
        return torch.arange(n)

    class Uses(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + table(3)

    torch.export.export(Uses(), (torch.ones(3),))
    assert type(table(3)) is Tensor
    assert table(3) is table(3)
    assert len(made) >= 2


# --- torch.func ---


@pytest.mark.parametrize("kind", ["last", "mean", "LoRA", "LoRA over nf4"])
@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_functional_calls_have_the_values_and_gradients_of_the_model(gpt2: GPT2, kind: str) -> None:
    model, labels = KINDS[kind](gpt2), torch.tensor([0, 1, 2])
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    trained = {name: parameters[name] for name, p in model.named_parameters() if p.requires_grad}

    def loss(values: dict[str, Tensor], ids: Tensor, lengths: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, {**parameters, **values}, (ids, lengths)), labels)

    def loss_of_one(values: dict[str, Tensor], ids: Tensor, length: Tensor, label: Tensor) -> Tensor:
        return loss(values, ids[None], length[None], label[None])

    expected = F.cross_entropy(model(IDS, LENGTHS), labels)
    torch.autograd.backward(expected)
    torch.testing.assert_close(loss(trained, IDS, LENGTHS, labels), expected.detach())
    whole = grad(loss)(trained, IDS, LENGTHS, labels)
    each = vmap(grad(loss_of_one), in_dims=(None, 0, 0, 0))(trained, IDS, LENGTHS, labels)
    for name in trained:
        own = model.get_parameter(name).grad
        torch.testing.assert_close(whole[name], own, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(each[name].mean(0), own, rtol=1e-4, atol=1e-6)


def test_a_functional_call_replaces_a_tied_matrix_in_both_places(gpt2: GPT2) -> None:
    doubled = {"trunk.embed.token.weight": 2 * gpt2.trunk.embed.token.weight}
    other = copy.deepcopy(gpt2)
    other.load_state_dict(doubled, strict=False)
    torch.testing.assert_close(functional_call(gpt2, doubled, (IDS,)), other(IDS))


# --- ONNX ---


def session(path: Path) -> Any:
    runtime = pytest.importorskip("onnxruntime")
    return runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    """The exporter notes each operator that it registers."""
    logging.disable(logging.INFO)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "LoRA over nf4"])
def test_an_onnx_graph_answers_as_the_model(gpt2: GPT2, kind: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    model = KINDS[kind](gpt2)
    run = session(export_onnx(model, tmp_path / "model.onnx"))
    assert [(given.name, given.shape) for given in run.get_inputs()] == [
        ("input_ids", ["batch", "tokens"]),
        ("lengths", ["batch"]),
    ]
    assert [output.name for output in run.get_outputs()] == ["logits"]

    def answer(ids: Tensor, lengths: Tensor) -> Tensor:
        return torch.from_numpy(run.run(None, {"input_ids": ids.numpy(), "lengths": lengths.numpy()})[0])

    check(model, answer)


@pytest.fixture(scope="module")
def onnx_file(gpt2: GPT2, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnxscript")
    clf = classifier(gpt2)
    clf.preparation = Preparation(max_length=100, truncation="head")
    return export_onnx(clf, tmp_path_factory.mktemp("onnx") / "new" / "model.onnx")


def test_an_onnx_file_says_how_texts_are_prepared_and_what_its_outputs_mean(onnx_file: Path) -> None:
    values = session(onnx_file).get_modelmeta().custom_metadata_map
    assert json.loads(values["classes"]) == ["ham", "spam", "news"]
    assert json.loads(values["preparation"]) == {"max_length": 100, "truncation": "head", "pad_to": None}
    assert json.loads(values["task"])["kind"] == "single_label"


def test_equal_models_give_equal_onnx_files_that_name_no_path(gpt2: GPT2, onnx_file: Path, tmp_path: Path) -> None:
    clf = classifier(gpt2).train()  # a mode changes nothing
    clf.preparation = Preparation(max_length=100, truncation="head")
    again = export_onnx(clf, str(tmp_path / "again.onnx"))
    assert clf.training
    assert again.read_bytes() == onnx_file.read_bytes()
    assert str(Path(__file__).parents[1]).encode() not in again.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["again.onnx"]


def test_the_softmax_of_a_graph_gives_calibrated_probabilities(
    gpt2: GPT2, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clf = classifier(gpt2)
    clf.task = clf.task.adjusted(temperature=0.5, thresholds={clf.classes[0]: 0.9})  # type: ignore[index]
    file = export_onnx(clf, tmp_path / "calibrated.onnx")
    ids, lengths = batches()[-1]
    (logits,) = session(file).run(None, {"input_ids": ids.numpy(), "lengths": lengths.numpy()})
    with torch.no_grad():
        expected = clf.task.probabilities(clf(ids, lengths))
    np.testing.assert_allclose(torch.from_numpy(logits).softmax(dim=1), expected, atol=1e-5)
    assert "apply the thresholds in its metadata yourself" in caplog.text
    assert "transformers" not in caplog.text


def test_weights_can_lie_beside_the_graph(gpt2: GPT2, onnx_file: Path, tmp_path: Path) -> None:
    path = export_onnx(classifier(gpt2), tmp_path / "big.onnx", external_data=True)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["big.onnx", "big.onnx.data"]
    assert path.stat().st_size < 0.5 * (tmp_path / "big.onnx.data").stat().st_size
    given = {"input_ids": IDS.numpy(), "lengths": LENGTHS.numpy()}
    np.testing.assert_array_equal(session(path).run(None, given)[0], session(onnx_file).run(None, given)[0])


class Impatient(Head):
    """A head that looks at values."""

    def __init__(self, emb_dim: int, n_outputs: int) -> None:
        super().__init__()
        self.output = nn.Linear(emb_dim, n_outputs)

    def forward(self, hidden: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self.output(hidden[:, 0]) * (1 if float(hidden.sum()) == 12345 else 2)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("change", "path", "error", "message"),
    [
        (lambda clf: clf.head, "a.onnx", TypeError, "model is a ClassifierHead"),
        (lambda clf: copy.deepcopy(clf).half(), "a.onnx", ValueError, r"torch\.float16.*call model\.float\(\)"),
        (lambda clf: clf, "", ValueError, "path is ''"),
        (lambda clf: clf, 3, TypeError, "path is 3"),
        (lambda clf: clf, ".", OSError, "a folder; give a file"),
        (lambda clf: clf, "old.onnx/a.onnx", OSError, "old.onnx"),
    ],
)
def test_a_wrong_call_is_refused_before_any_work(
    gpt2: GPT2, change: Any, path: Any, error: type[Exception], message: str, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("old.onnx").write_text("old")
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: pytest.fail("worked"))
    with pytest.raises(error, match=message):
        export_onnx(change(classifier(gpt2)), path)
    assert Path("old.onnx").read_text() == "old"


@pytest.mark.filterwarnings("ignore")
def test_a_part_that_looks_at_values_is_refused_and_leaves_the_old_file(gpt2: GPT2, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    path = tmp_path / "old.onnx"
    path.write_text("old")
    clf = add_classifier_head(gpt2, classes=["ham", "spam"], head=Impatient(32, 2))
    with pytest.raises(ValueError, match="must not depend on the values of tensors"):
        export_onnx(clf, path)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("old.onnx", "old")]


def test_without_the_extra_the_error_says_what_to_install(
    gpt2: GPT2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"pip install 'gptclf\[onnx\]'"):
        export_onnx(classifier(gpt2), tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


def test_a_loaded_model_is_exported_as_one_just_made(gpt2: GPT2, tmp_path: Path) -> None:
    model = load_model(save_model(classifier(gpt2), tmp_path / "model"))
    freeze(model, trainable="all")
    program = torch.export.export(model, (IDS, LENGTHS), dynamic_shapes=dimensions())
    check(classifier(gpt2), program.module())
