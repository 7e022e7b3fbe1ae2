"""torch's own tools on a model: saved, flattened, pruned, cast, wrapped and built on devices as any other module."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from conftest import byte_gpt2
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.convert_parameters import parameters_to_vector, vector_to_parameters

from gptclf import (
    GPT2,
    Batches,
    ClassifierHead,
    GPT2Config,
    Head,
    Linear,
    SingleLabel,
    TextDataset,
    add_classifier_head,
    apply_lora,
    batch_loss,
    evaluate,
    freeze,
    generate,
    load_model,
    merge_lora,
    perplexity,
    predict,
    predict_many,
    predict_proba,
    quantize,
    save_adapter,
    save_model,
    train,
)

quantization: Any = torch.ao.quantization
IDS, LENGTHS = torch.arange(36).view(3, 12), torch.tensor([12, 5, 9])
TEXTS, LABELS = ["win cash now", "see you at six"] * 4, ["spam", "ham"] * 4


def classifier() -> GPT2:
    return add_classifier_head(byte_gpt2(), classes=["ham", "spam"], seed=1)


@pytest.fixture
def loaded(tmp_path: Path) -> GPT2:
    """A loaded model, whose matrices are transposed views on its file."""
    model = load_model(save_model(classifier(), tmp_path / "model"))
    assert not model.get_parameter("trunk.blocks.0.mlp.up.weight").is_contiguous()
    return model


def data() -> TextDataset:
    return TextDataset(TEXTS, LABELS, tokenizer=byte_gpt2().tokenizer, classes=["ham", "spam"])


# --- the state dict ---


@pytest.mark.parametrize("save", [save_file, torch.save])
def test_the_state_dict_of_a_loaded_model_can_be_saved_and_read(loaded: GPT2, save: Any, tmp_path: Path) -> None:
    path = tmp_path / "weights"
    save(loaded.state_dict(), path)
    size = sum(4 * parameter.numel() for parameter in loaded.parameters())
    assert size < path.stat().st_size < 1.05 * size + 20_000
    other = classifier()
    other.load_state_dict(load_file(path) if save is save_file else torch.load(path))
    for name, parameter in loaded.named_parameters():
        assert torch.equal(other.get_parameter(name), parameter)


def test_asking_for_the_state_dict_leaves_the_model_as_it_was(loaded: GPT2) -> None:
    before = {name: (p.data_ptr(), p.stride()) for name, p in loaded.named_parameters()}
    state = loaded.state_dict()
    assert {name: (p.data_ptr(), p.stride()) for name, p in loaded.named_parameters()} == before
    assert all(tensor.is_contiguous() for tensor in state.values())
    kept = loaded.state_dict(keep_vars=True)
    assert all(kept[name] is parameter for name, parameter in loaded.named_parameters())
    assert all(tensor.is_contiguous() for tensor in loaded.trunk.blocks[0].state_dict().values())
    # What needs no copy is not copied.
    assert state["trunk.norm.weight"].data_ptr() == loaded.trunk.norm.weight.data_ptr()


def test_the_state_dict_can_be_flattened_and_so_can_parameters_of_the_models_own(loaded: GPT2) -> None:
    flat = parameters_to_vector(loaded.state_dict().values())
    freeze(loaded, trainable="all")  # memory of its own
    assert torch.equal(parameters_to_vector(loaded.parameters()), flat)
    expected = loaded(IDS, LENGTHS)
    vector_to_parameters(2 * flat, loaded.parameters())
    assert not torch.allclose(loaded(IDS, LENGTHS), expected)
    vector_to_parameters(flat, loaded.parameters())
    assert torch.equal(loaded(IDS, LENGTHS), expected)


def test_a_loaded_model_can_be_copied_and_saved_whole(loaded: GPT2, tmp_path: Path) -> None:
    torch.save(loaded, tmp_path / "whole.pt")
    whole = torch.load(tmp_path / "whole.pt", weights_only=False)
    for model in (whole, copy.deepcopy(loaded)):
        assert torch.equal(model(IDS, LENGTHS), loaded(IDS, LENGTHS))


@pytest.mark.parametrize("pruned", [prune.l1_unstructured, prune.random_unstructured])
def test_a_matrix_of_a_loaded_model_can_be_pruned(loaded: GPT2, pruned: Any) -> None:
    before = {name: p.clone() for name, p in loaded.named_parameters()}
    shared = classifier()
    layer = loaded.trunk.blocks[0].get_submodule("mlp.up")
    pruned(layer, "weight", 0.5)
    answers = predict_proba(loaded, TEXTS)
    prune.remove(layer, "weight")  # type: ignore[no-untyped-call]
    name = "trunk.blocks.0.mlp.up.weight"
    matrix = loaded.get_parameter(name)
    assert int((matrix == 0).sum()) == matrix.numel() // 2
    assert torch.equal(matrix[matrix != 0], before[name][matrix != 0])
    assert predict_proba(loaded, TEXTS) == pytest.approx(answers, abs=1e-6)
    assert torch.equal(shared.get_parameter(name), before[name])


@pytest.mark.parametrize("change", [parametrizations.weight_norm, nn.utils.weight_norm])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_parametrised_layer_answers_as_before(loaded: GPT2, change: Callable[[nn.Module], Any]) -> None:
    expected = predict_proba(loaded, TEXTS)
    change(loaded.trunk.blocks[1].get_submodule("attention.qkv"))
    assert predict_proba(loaded, TEXTS) == pytest.approx(expected, abs=1e-6)


# --- torch's quantisation ---


@pytest.mark.parametrize(
    "call",
    [
        lambda model: quantization.quantize_dynamic(model, {nn.Linear}),
        lambda model: quantization.quantize_dynamic(model, {nn.Linear}, inplace=True),
        lambda model: quantization.quantize_dynamic(model.trunk),
        lambda model: quantization.quantize_dynamic(nn.Sequential(model)),
        lambda model: quantization.quantize_dynamic(model, {nn.Embedding}, dtype=torch.quint8),
        lambda model: quantization.prepare(model),
        lambda model: quantization.prepare_qat(model.train()),
        lambda model: quantization.quantize_dynamic(quantize(model)),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_torchs_quantisation_says_that_it_would_skip_our_layers(call: Callable[[GPT2], Any]) -> None:
    with pytest.raises(TypeError, match=r"does not know gptclf's layers and would skip them; gptclf\.quantize\(model"):
        call(classifier())


# --- types and devices ---


@contextmanager
def default(dtype: torch.dtype | None = None, device: str | None = None) -> Iterator[None]:
    torch.set_default_dtype(dtype or torch.float32)
    try:
        if device is None:
            yield
        else:
            with torch.device(device):
                yield
    finally:
        torch.set_default_dtype(torch.float32)


CONFIG = GPT2Config(vocab_size=50, context_length=8, emb_dim=8, n_heads=2, n_layers=2)


@pytest.mark.parametrize("task", [None, SingleLabel(["a", "b"])])
def test_a_model_is_built_where_a_device_context_says(task: Any) -> None:
    with torch.device("meta"):
        meta, cpu = GPT2(CONFIG, task=task), GPT2(CONFIG, task=task, device="cpu", seed=1)
    assert {p.device.type for p in meta.parameters()} == {"meta"}
    with torch.device("cpu"):
        same = GPT2(CONFIG, task=task, seed=1)
    for name, parameter in cpu.named_parameters():
        assert torch.equal(parameter, same.get_parameter(name))


class Own(Head):
    def __init__(self, emb_dim: int, n_outputs: int) -> None:
        super().__init__()
        self.output = nn.Linear(emb_dim, n_outputs)

    def forward(self, hidden: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        return self.output(hidden[:, 0])  # type: ignore[no-any-return]


BUILDERS: dict[str, Callable[[GPT2, Path], GPT2]] = {
    "random": lambda _, folder: byte_gpt2(),
    "head": lambda clf, _: add_classifier_head(clf, num_classes=3, pooling="mean", seed=2),
    "class of heads": lambda clf, _: add_classifier_head(clf, num_classes=3, head=ClassifierHead),
    "LoRA": lambda clf, _: merge_lora(apply_lora(clf, rank=2, seed=1)),
    "nf4": lambda clf, _: quantize(clf, "nf4"),
    "int8": lambda clf, _: quantize(clf, "int8"),
    "loaded": lambda clf, folder: load_model(save_model(clf, folder / "m")),
    "loaded nf4": lambda clf, folder: load_model(save_model(quantize(clf, "nf4"), folder / "q")),
    "loaded int8": lambda clf, folder: load_model(save_model(quantize(clf, "int8"), folder / "q8")),
    "adapter": lambda clf, folder: load_model(
        save_adapter(apply_lora(load_model(save_model(clf, folder / "base")), rank=2, seed=1), folder / "a")
    ),
}


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("setting", [{"dtype": torch.float64}, {"device": "meta"}], ids=["float64", "meta"])
def test_torchs_defaults_change_nothing_in_a_model_that_has_tensors(
    name: str, setting: dict[str, Any], tmp_path: Path
) -> None:
    build, clf = BUILDERS[name], classifier()
    expected = build(clf, tmp_path / "before")
    with default(**setting):
        found = build(clf, tmp_path / "after")
        outputs = found(IDS, LENGTHS)
    parameters = dict(found.named_parameters())
    for key, parameter in expected.named_parameters():
        assert parameters[key].dtype == parameter.dtype
        assert parameters[key].device == parameter.device
        if name != "class of heads" or not key.startswith("head."):
            assert torch.equal(parameters[key], parameter)
    if name != "class of heads":
        assert torch.equal(outputs, expected(IDS, LENGTHS))


def test_a_head_of_ones_own_is_made_in_float32() -> None:
    with default(dtype=torch.float64):
        clf = add_classifier_head(byte_gpt2(), num_classes=2, head=Own)
    assert {p.dtype for p in clf.head.parameters()} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_model_of_another_type_answers_itself_and_is_refused_with_the_cure(dtype: torch.dtype) -> None:
    clf, gpt2 = classifier(), byte_gpt2()
    other, language = copy.deepcopy(clf).to(dtype), copy.deepcopy(gpt2).to(dtype)
    torch.testing.assert_close(other(IDS, LENGTHS).float(), clf(IDS, LENGTHS), rtol=0.05, atol=0.05)
    calls: list[Callable[[], Any]] = [
        lambda: predict(other, TEXTS),
        lambda: evaluate(other, data()),
        lambda: train(other, data(), epochs=1, progress=False),
        lambda: perplexity(language, TEXTS),
        lambda: apply_lora(other),
        lambda: quantize(other),
        lambda: add_classifier_head(other, num_classes=2),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=rf"{dtype}.*call model\.float\(\)"):
            call()
    assert predict(other.float(), TEXTS)


# --- what is given in the place of a model ---


class Module(nn.Module):
    """As Lightning's users write them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (nn.DataParallel, r"a DataParallel.*give model\.module"),
        (torch.compile, r"a OptimizedModule.*give model\._orig_mod"),
        (lambda clf: torch.compile(nn.DataParallel(clf)), r"a OptimizedModule.*give model\.module"),
        (lambda clf: nn.DataParallel(cast(nn.Module, torch.compile(clf))), r"give model\.module\._orig_mod"),
        (torch.optim.swa_utils.AveragedModel, r"an? AveragedModel.*give model\.module"),
        (Module, r"a Module.*give model\.model"),
        (lambda clf: clf.state_dict(), r"a OrderedDict.*load_state_dict"),
        (lambda clf: torch.export.export(clf, (IDS, LENGTHS)), "a ExportedProgram.*not a recording of one"),
        (lambda clf: torch.export.export(clf, (IDS, LENGTHS)).module(), "a GraphModule.*not a recording of one"),
        (lambda clf: "spam-model", r"a str.*give load_model\('spam-model'\)"),
        (lambda clf: Path("spam-model"), r"give load_model\('spam-model'\)"),
        (lambda clf: None, "a NoneType; it must be a gptclf GPT2, as load_gpt2 returns"),
        (lambda clf: nn.Sequential(clf), "a Sequential; it must be a gptclf GPT2, as load_gpt2 returns"),
    ],
)
def test_the_error_says_where_the_model_is(wrap: Any, message: str) -> None:
    wrapped = wrap(classifier())
    calls: list[Callable[[], Any]] = [
        lambda: predict(wrapped, TEXTS),
        lambda: evaluate(wrapped, data()),
        lambda: train(wrapped, data(), epochs=1, progress=False),
        lambda: save_model(wrapped, "nowhere"),
        lambda: generate(wrapped, "hi"),
        lambda: predict_many([wrapped], TEXTS),
        lambda: freeze(wrapped),
    ]
    for call in calls:
        with pytest.raises(TypeError, match=message):
            call()


def test_a_model_of_transformers_is_loaded_from_its_folder() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=50, n_positions=8, n_embd=8, n_head=2, n_layer=1)
    with pytest.raises(TypeError, match=r"a GPT2LMHeadModel.*load_gpt2 makes of a folder.*save_pretrained"):
        predict(transformers.GPT2LMHeadModel(config), TEXTS)


# --- an output layer of one's own ---


@pytest.mark.parametrize(
    "output",
    [
        lambda: nn.Sequential(nn.Linear(64, 16), nn.GELU(), nn.Linear(16, 2)),
        lambda: nn.Sequential(nn.LayerNorm(64), nn.Dropout(0.1), Linear(64, 2)),
        lambda: nn.Linear(64, 2),
    ],
)
def test_an_output_layer_of_ones_own_works_everywhere_but_in_a_folder(output: Any, tmp_path: Path) -> None:
    clf = classifier()
    clf.head.output = layer = output()
    for parameter in clf.head.parameters():
        nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(parameter.numel()))
    clf.eval()
    set_ = data()
    rows = [torch.from_numpy(ids)[None].long() for ids in set_.rows()]
    with torch.no_grad():
        expected = torch.cat([clf(ids) for ids in rows]).softmax(dim=1)
    assert predict_proba(clf, TEXTS) == pytest.approx(expected.numpy(), abs=1e-5)
    right = [clf.classes[i] == label for i, label in zip(expected.argmax(1), LABELS, strict=True)]  # type: ignore[index]
    assert evaluate(clf, set_).accuracy == pytest.approx(sum(right) / len(right))
    optimizer = torch.optim.AdamW([p for p in clf.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(5):
        for batch in Batches(set_, batch_size=8):
            loss = batch_loss(clf, batch)
            torch.autograd.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert train(clf, set_, epochs=3, lr=1e-4, progress=False).steps[-1].loss < losses[0]
    names = {name for name, _ in layer.named_parameters()}
    if names != {"weight", "bias"}:
        with pytest.raises(ValueError, match=r"head\.output.*add_classifier_head\(model, head=\.\.\.\)"):
            save_model(clf, tmp_path / "m")
    else:
        assert predict(load_model(save_model(clf, tmp_path / "m")), TEXTS) == predict(clf, TEXTS)
