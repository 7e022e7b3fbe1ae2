"""4 and 8 bits: codes against bitsandbytes and float64, layers against dense ones, and the files of transformers."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import byte_gpt2
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import gptclf.gpt2.nf4 as nf4_module
from gptclf import (
    GPT2,
    GPT2Config,
    TextDataset,
    add_classifier_head,
    apply_lora,
    evaluate,
    freeze,
    generate_ids,
    load_gpt2,
    load_model,
    merge_lora,
    predict_many,
    predict_proba,
    quantize,
    save_model,
    train,
    trainable_report,
)
from gptclf.features.frozen_prefix import FrozenPrefix
from gptclf.features.reuse import prefix_of
from gptclf.gpt2.arithmetic import FLOAT32
from gptclf.gpt2.learner import Learner
from gptclf.gpt2.nf4 import BLOCK, code_book, dequantize, dynamic_code_book, scales
from gptclf.gpt2.nf4 import quantize as to_nf4
from gptclf.gpt2.nf4_kernel import bitsandbytes_kernel
from gptclf.gpt2.quantized import QuantizedLinear, quantized_layers
from gptclf.weights.bitsandbytes_layout import check_quantization

TEXTS = [f"win a free prize {i}" if i % 2 else f"see you at {i}{' ok' * (i % 5)}" for i in range(40)]
LABELS = ["spam" if i % 2 else "ham" for i in range(40)]


@pytest.fixture(params=["torch", "bitsandbytes"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With and without bitsandbytes."""
    if request.param == "bitsandbytes":
        pytest.importorskip("bitsandbytes")
    else:
        monkeypatch.setattr(nf4_module, "bitsandbytes_kernel", lambda device: None)
    return str(request.param)


def numbers(kind: str, size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(size)
    x = torch.randn(size, generator=generator)
    if kind == "heavy":
        x = x**5
    if kind == "zeros":
        x[: size // 2] = 0
    if kind == "tiny":
        x *= 1e-30
    return x


SIZES = (64, 128, 4096, 64 * 256, 64 * 257, 200, 65, 63, 7, 2)


# ---- codes ----------------------------------------------------------------------------------------------------------


def test_the_code_books_are_bitsandbytes() -> None:
    functional = pytest.importorskip("bitsandbytes").functional
    assert torch.equal(code_book(), functional.get_4bit_type("nf4", device="cpu"))
    assert torch.equal(dynamic_code_book(), functional.create_dynamic_map().to(torch.float32))


def test_the_code_book_has_the_published_numbers() -> None:
    known = [-1, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0]
    known += [0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626, 0.7230, 1]
    torch.testing.assert_close(code_book(), torch.tensor(known), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["normal", "heavy", "zeros"])
@pytest.mark.parametrize("size", SIZES)
def test_codes_and_scales_are_bitsandbytes_bit_for_bit(kind: str, size: int, kernel: str) -> None:
    functional = pytest.importorskip("bitsandbytes").functional
    x = numbers(kind, size)
    packed, state = functional.quantize_4bit(x, blocksize=BLOCK, compress_statistics=True, quant_type="nf4")
    ours = to_nf4(x)
    assert torch.equal(ours["codes"], packed.view(-1))
    assert torch.equal(ours["absmax"], state.absmax)
    assert torch.equal(ours["nested_absmax"], state.state2.absmax)
    assert torch.equal(ours["offset"], state.offset)
    for dtype in (torch.float32, torch.bfloat16):
        state.dtype = dtype
        found = dequantize(ours["codes"], scales(ours["absmax"], ours["nested_absmax"], ours["offset"]), (size,), dtype)
        assert torch.equal(found.view(-1), functional.dequantize_4bit(packed, state).view(-1))


@settings(max_examples=60, deadline=None)
@given(values=st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=300))
def test_a_number_becomes_the_nearest_code_times_its_blocks_scale(values: list[float]) -> None:
    x = torch.tensor(values)
    packed = to_nf4(x)
    scale = scales(packed["absmax"], packed["nested_absmax"], packed["offset"])
    found = dequantize(packed["codes"], scale, (len(values),), torch.float32).view(-1).double().numpy()
    book = code_book().double().numpy()
    for start in range(0, len(values), BLOCK):
        block = np.array(values[start : start + BLOCK], dtype=np.float64)
        largest = np.abs(block).max()
        codes = np.abs(block[:, None] / max(largest, 1e-38) - book).argmin(axis=1)
        expected = book[codes] * float(scale[start // BLOCK])
        close = np.isclose(found[start : start + BLOCK], expected, rtol=1e-6, atol=1e-30)
        # Halfway between two codes rounding decides.
        gaps = np.abs(np.abs(block / max(largest, 1e-38) - book[codes]))
        assert (close | (gaps > 0.03)).all()
        spread = float(np.abs(scale.double().numpy() - scale.double().numpy().mean()).max())
        assert abs(float(scale[start // BLOCK]) - largest) <= 0.02 * spread + 0.02 * largest + 1e-6


def test_the_error_on_normal_weights_is_the_published_one(kernel: str) -> None:
    x = numbers("normal", 2**18)
    packed = to_nf4(x)
    found = dequantize(
        packed["codes"], scales(packed["absmax"], packed["nested_absmax"], packed["offset"]), x.shape, x.dtype
    )
    assert float((found - x).square().mean().sqrt()) == pytest.approx(0.092, abs=0.002)
    assert float((found - x).abs().mean()) == pytest.approx(0.073, abs=0.002)
    held = sum(tensor.numel() * tensor.element_size() for tensor in packed.values())
    assert 8 * held / x.numel() == pytest.approx(4.127, abs=0.001)


def test_the_codes_are_a_hundred_lines() -> None:
    assert len(Path(nf4_module.__file__).read_text(encoding="utf-8").splitlines()) <= 100


def test_bitsandbytes_is_imported_without_a_download_or_a_word(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    (tmp_path / "kernels.py").write_text(
        "def get_kernel(*a, **k):\n    print('DOWNLOAD'); raise OSError('no network')\n"
    )
    code = (
        "import sys, logging, torch, gptclf\n"
        "assert 'bitsandbytes' not in sys.modules\n"
        "from gptclf.gpt2.nf4_kernel import bitsandbytes_kernel\n"
        "assert bitsandbytes_kernel(torch.device('cpu')) is not None\n"
        "import kernels\n"
        "assert not logging.getLogger('bitsandbytes.backends.cpu.ops').filters\n"
    )
    environment = {
        "PYTHONPATH": f"{tmp_path}:{Path(nf4_module.__file__).parents[2]}",
        "PATH": "",
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# ---- layers ---------------------------------------------------------------------------------------------------------


def small(bits: str, **options: Any) -> GPT2:
    return quantize(byte_gpt2(**options), bits)


def dense(model: GPT2) -> GPT2:
    """The same model over dequantised matrices: ordinary layers."""
    factors = apply_lora(model, 1, seed=0)  # B is 0
    return merge_lora(factors)


def classifier(gpt2: GPT2, **head: Any) -> GPT2:
    clf = add_classifier_head(gpt2, classes=["ham", "spam"], seed=1, **head)
    freeze(clf, trainable="head")
    return clf


def labelled(clf: GPT2) -> TextDataset:
    return TextDataset(TEXTS, LABELS, tokenizer=clf.tokenizer, classes=clf.classes)


BITS = pytest.mark.parametrize("bits", ["nf4", "int8"])


@BITS
@pytest.mark.parametrize("low", [False, True])
def test_a_layer_computes_and_differentiates_as_a_dense_one(bits: str, low: bool, kernel: str) -> None:
    layer = next(iter(quantized_layers(small(bits)).values()))
    weight, bias = layer.merged()
    assert bias is not None
    layer.bias.requires_grad_(True)
    x, y = (torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(1)).requires_grad_(True) for _ in range(2))
    own = bias.clone().requires_grad_(True)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=low):
        found, expected = layer(x), F.linear(y, weight, own)
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if low else {"rtol": 1e-6, "atol": 1e-6}
    torch.testing.assert_close(found, expected, **tolerance)
    generator = torch.Generator().manual_seed(2)
    grad = torch.randn(found.shape, generator=generator)
    found.backward(grad.to(found.dtype))
    expected.backward(grad.to(expected.dtype))
    for a, b in ((x.grad, y.grad), (layer.bias.grad, own.grad)):
        torch.testing.assert_close(a, b, rtol=2e-2 if low else 1e-5, atol=5e-2 if low else 1e-5)


@BITS
def test_rows_and_their_transpose(bits: str, kernel: str) -> None:
    layer = next(iter(quantized_layers(small(bits)).values()))
    weight, bias = layer.merged()
    assert bias is not None
    x = torch.randn(4, 64)
    for rows in (slice(0, 64), slice(64, 128), slice(65, 70), slice(None)):
        torch.testing.assert_close(layer.rows(x, rows), F.linear(x, weight[rows], bias[rows]), rtol=1e-5, atol=1e-6)
        y = torch.randn(4, len(weight[rows]))
        torch.testing.assert_close(layer.onto(y, rows), y @ weight[rows], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(layer.prepared(FLOAT32)(x), F.linear(x, weight, bias), rtol=1e-6, atol=1e-6)


@BITS
def test_nothing_dequantised_is_kept_for_the_backward_pass(bits: str) -> None:
    clf = apply_lora(classifier(small(bits)), 4, seed=1)
    learner = Learner(clf, training=True, keep_gradients=True)
    dense_size = 64 * 64  # the smallest matrix
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        learner(torch.ones(2, 5, dtype=torch.int64), torch.tensor([5, 3])).sum().backward()
    assert max(tensor.numel() for tensor in kept if tensor.is_floating_point()) < dense_size


@BITS
def test_what_is_frozen_is_quantised_and_nothing_else(bits: str) -> None:
    gpt2 = byte_gpt2()
    clf = add_classifier_head(gpt2, classes=["ham", "spam"], seed=1)  # its last block trains
    small_clf = quantize(clf, bits)
    layers = quantized_layers(small_clf)
    assert len(layers) == 8
    assert not any("blocks.2" in name for name in layers)
    assert [p.requires_grad for p in small_clf.trunk.blocks[2].parameters()] == [True] * 12
    mine, theirs = dict(small_clf.named_parameters()), dict(clf.named_parameters())
    name = "trunk.embed.token.weight"
    assert mine[name].data_ptr() == theirs[name].data_ptr()
    assert trainable_report(small_clf).total == trainable_report(clf).total
    assert quantized_layers(clf) == {}
    lora = apply_lora(small_clf, 4, blocks=2, seed=0)
    lent = [p for p in quantized_layers(lora).values() if isinstance(p, QuantizedLinear)]
    codes = {layer.packed()["codes"].data_ptr() for layer in layers.values()}
    assert {layer.packed()["codes"].data_ptr() for layer in lent} <= codes  # shared, not copied


@BITS
def test_answers_are_those_of_the_dequantised_model(bits: str, kernel: str) -> None:
    gpt2 = small(bits)
    ids = torch.tensor([[5, 6, 7, 8], [9, 8, 7, 6]])
    with torch.no_grad():
        torch.testing.assert_close(gpt2(ids), dense(gpt2)(ids), rtol=1e-5, atol=1e-5)
    assert torch.equal(generate_ids(gpt2, ids, 8), generate_ids(dense(gpt2), ids, 8))
    assert torch.equal(generate_ids(gpt2, ids, 8), generate_ids(gpt2, ids, 8, use_cache=False))
    for pooling in ("last", "mean"):
        clf, plain = (classifier(g, pooling=pooling) for g in (gpt2, dense(gpt2)))
        np.testing.assert_allclose(predict_proba(clf, TEXTS), predict_proba(plain, TEXTS), rtol=1e-5, atol=1e-6)
        assert predict_many([clf, plain], TEXTS)[0] == predict_many([clf], TEXTS)[0]


@BITS
def test_qlora_trains_as_lora_over_the_dequantised_model(bits: str) -> None:
    losses = []
    for change in (lambda g: g, dense):
        for reuse in (True, False):
            clf = apply_lora(classifier(change(small(bits))), 4, blocks=2, seed=1)
            history = train(
                clf, labelled(clf), epochs=2, lr=1e-2, seed=1, precision="float32", reuse_frozen=reuse, progress=False
            )
            losses.append([step.loss for step in history.steps])
    for other in losses[1:]:
        np.testing.assert_allclose(other, losses[0], rtol=1e-4)
    assert losses[0][-1] < losses[0][0]


def test_a_stopped_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    def run(folder: Path, epochs: int, **options: Any) -> GPT2:
        clf = apply_lora(classifier(small("nf4")), 4, blocks=2, seed=1)
        train(clf, labelled(clf), epochs=epochs, lr=1e-2, seed=1, checkpoint_dir=folder, progress=False, **options)
        return clf

    whole = run(tmp_path / "whole", 3)
    run(tmp_path / "parts", 1)
    parts = run(tmp_path / "parts", 3, resume=True)
    for (name, a), b in zip(whole.named_parameters(), parts.parameters(), strict=True):
        assert torch.equal(a, b), name
    state = max((tmp_path / "parts").rglob("*.safetensors"), key=lambda path: path.name)
    assert state.stat().st_size < 400_000  # no codes in it


def test_a_changed_code_changes_the_address_of_features() -> None:
    def address(change: Any = None) -> str:
        clf = classifier(small("nf4"))
        layer = quantized_layers(clf)["trunk.blocks.0.mlp.up"]
        with torch.no_grad():
            if change:
                change(layer)
        prefix = prefix_of(clf, "float32")
        assert isinstance(prefix, FrozenPrefix)
        return prefix.identity()

    changes = [
        lambda layer: layer.codes[:1].add_(1),
        lambda layer: layer.absmax[:1].add_(1),
        lambda layer: layer.offset.mul_(2),
        lambda layer: layer.nested_absmax.mul_(2),
    ]
    assert address() == address()
    assert len({address(), *map(address, changes)}) == 5
    clf = classifier(small("nf4"))
    data = labelled(clf)
    before = evaluate(clf, data).outputs
    with torch.no_grad():
        quantized_layers(clf)["trunk.blocks.0.mlp.up"].offset.mul_(3)
    assert not np.array_equal(before, evaluate(clf, data).outputs)


def test_loading_into_one_model_leaves_its_sibling_alone() -> None:
    gpt2 = small("nf4")
    one, two = classifier(gpt2), classifier(gpt2)
    before = {name: parameter.clone() for name, parameter in two.named_parameters()}
    other = classifier(quantize(byte_gpt2(seed=5), "nf4"))
    one.load_state_dict(other.state_dict())
    assert all(torch.equal(before[name], parameter) for name, parameter in two.named_parameters())
    np.testing.assert_array_equal(predict_proba(one, TEXTS), predict_proba(other, TEXTS))


def test_errors() -> None:
    gpt2 = byte_gpt2()
    with pytest.raises(ValueError, match=r"bits is 'fp4'; it must be one of nf4, int8"):
        quantize(gpt2, "fp4")
    with pytest.raises(TypeError, match="GPT2"):
        quantize("gpt2")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="quantised already"):
        quantize(quantize(gpt2))
    whole = add_classifier_head(gpt2, num_classes=2, seed=0)
    freeze(whole, trainable="all")
    with pytest.raises(ValueError, match="no matrix of the blocks is frozen"):
        quantize(whole)
    clf = add_classifier_head(quantize(gpt2), num_classes=2, seed=0)
    assert trainable_report(clf).names == ["head.output.weight", "head.output.bias"]
    for policy in ("last_block", "all", 2, "blocks.1.mlp.up"):
        with pytest.raises(ValueError, match=r"trunk.blocks.*a quantised matrix cannot train.*apply_lora"):
            freeze(clf, trainable=policy)
    freeze(clf, trainable=["norm", "head"])
    with pytest.raises(ValueError, match=r"call model.float\(\)"):
        quantize(byte_gpt2().half())


# ---- files ----------------------------------------------------------------------------------------------------------

SHAPE = GPT2Config(vocab_size=257, context_length=24, emb_dim=64, n_heads=4, n_layers=2)
IDS = torch.randint(1, 250, (3, 9), generator=torch.Generator().manual_seed(0))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found = model(IDS)
    return getattr(found, "logits", found)  # type: ignore[no-any-return]


def random_gpt2() -> GPT2:
    gpt2 = load_gpt2(SHAPE, weights="random", seed=3, tokenizer=byte_gpt2().tokenizer)
    with torch.no_grad():
        for parameter in gpt2.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)), alpha=0.05)
    return gpt2


@BITS
@pytest.mark.parametrize("classifies", [False, True])
def test_transformers_reads_our_folder(bits: str, classifies: bool, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("accelerate")
    model = quantize(random_gpt2(), bits)
    kind = "AutoModelForSequenceClassification" if classifies else "GPT2LMHeadModel"
    if classifies:
        model = add_classifier_head(model, classes=["a", "b", "c"], seed=1)
    save_model(model, tmp_path)
    theirs = getattr(transformers, kind).from_pretrained(tmp_path).eval()
    name = "transformer.h.1.mlp.c_fc"
    assert type(theirs.get_submodule(name)).__name__ == {"nf4": "Linear4bit", "int8": "Linear8bitLt"}[bits]
    tolerance = {"nf4": 1e-5, "int8": 0.05}[bits]  # transformers rounds the inputs of 8-bit layers as well
    # With gradients, because without them bitsandbytes' 4-bit layers multiply in bfloat16 on some processors.
    found = theirs(IDS, attention_mask=torch.ones_like(IDS)).logits.detach().float()
    torch.testing.assert_close(found, logits(model), rtol=tolerance, atol=tolerance)
    assert bits in (tmp_path / "README.md").read_text()
    again = load_model(tmp_path)
    assert torch.equal(logits(again), logits(model))
    assert [p.requires_grad for p in again.parameters()] == [p.requires_grad for p in model.parameters()]


@pytest.mark.parametrize("kind", ["nf4", "nf4 once", "int8"])
def test_a_folder_of_transformers_is_read(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    functional = pytest.importorskip("bitsandbytes").functional
    pytest.importorskip("accelerate")
    save_model(random_gpt2(), tmp_path / "dense")
    options = {"load_in_8bit": True} if kind == "int8" else {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    options |= {"bnb_4bit_use_double_quant": kind == "nf4", "bnb_4bit_compute_dtype": torch.float32}
    config = transformers.BitsAndBytesConfig(**options)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "dense", quantization_config=config)
    theirs.save_pretrained(tmp_path / "small")
    (tmp_path / "small" / "tokenizer.json").unlink(missing_ok=True)
    monkeypatch.setattr(nf4_module, "bitsandbytes_kernel", lambda device: None)  # it needs no package
    gpt2 = load_gpt2(str(tmp_path / "small"))
    assert len(quantized_layers(gpt2)) == 8
    layer = theirs.transformer.h[1].mlp.c_fc
    if kind == "int8":
        expected = layer.weight.data.float() * layer.weight.SCB[:, None] / 127
        torch.testing.assert_close(gpt2.trunk.blocks[1].mlp.up.merged()[0], expected, rtol=1e-6, atol=0)
    else:
        expected = functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        assert torch.equal(gpt2.trunk.blocks[1].mlp.up.merged()[0], expected.float())
        torch.testing.assert_close(logits(gpt2), theirs.eval()(IDS).logits.detach(), rtol=1e-5, atol=1e-5)
    clf = apply_lora(add_classifier_head(gpt2, num_classes=2, seed=0), 2, seed=0)
    assert torch.isfinite(logits(merge_lora(clf))).all()


@BITS
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_our_folder_comes_back_bit_for_bit(bits: str, pooling: str, tmp_path: Path) -> None:
    clf = add_classifier_head(random_gpt2(), classes=["a", "b"], pooling=pooling, seed=1)  # the last block stays float
    model = quantize(clf, bits)
    again = load_model(save_model(model, tmp_path))
    ours, theirs = dict(model.named_parameters()), dict(again.named_parameters())
    assert ours.keys() == theirs.keys()
    for name, parameter in ours.items():
        assert torch.equal(parameter, theirs[name]), name
        assert parameter.requires_grad == theirs[name].requires_grad
    torch.testing.assert_close(logits(again), logits(model), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "config",
    [
        {"quant_method": "gptq", "bits": 4},
        {"quant_method": "awq"},
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
        {"quant_method": "bitsandbytes"},
        "nf4",
    ],
)
def test_other_quantisations_are_refused_by_name(config: Any) -> None:
    with pytest.raises(ValueError, match=r"config.json sets quantization_config.*quantize\(model\)"):
        check_quantization(config, "config.json")


def test_a_damaged_folder_is_refused(tmp_path: Path) -> None:
    from gptclf.files.safetensors_file import read_safetensors, tensor_writer

    save_model(quantize(random_gpt2()), tmp_path)
    path = tmp_path / "model.safetensors"
    tensors, metadata = read_safetensors(path)
    whole = {name: tensor.clone() for name, tensor in tensors.items()}
    name = "transformer.h.0.attn.c_attn.weight"
    state = f"{name}.quant_state.bitsandbytes__nf4"
    blocks = json.loads(bytes(whole[state].tolist())) | {"blocksize": 128}
    for change in (
        {f"{name}.absmax": None},
        {name: whole[name][:-1]},
        {state: torch.tensor(list(b"{"), dtype=torch.uint8)},
        {state: torch.tensor(list(json.dumps(blocks).encode()), dtype=torch.uint8)},
        {f"{name}.quant_map": whole[f"{name}.quant_map"] * 2},
    ):
        changed = {key: value for key, value in (whole | change).items() if value is not None}
        tensor_writer(changed, metadata)(path)
        with pytest.raises(ValueError, match=r"h.0.attn.c_attn"):
            load_gpt2(str(tmp_path))


def test_the_kernel_is_asked_once() -> None:
    device = torch.device("cpu")
    assert bitsandbytes_kernel(device) is bitsandbytes_kernel(device)
