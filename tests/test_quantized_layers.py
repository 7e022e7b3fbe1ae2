"""Quantised layers against their dense matrices, models of them, QLoRA, and what is refused."""

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import byte_gpt2, byte_tokenizer, randomised
from test_lora_model import IDS, TEXTS, Die, adapted, answers, classifier, language_model, rows, run, state, stirred
from torch import Tensor, nn
from torch.nn import functional as F

from gptclf import (
    GPT2,
    GPT2Config,
    TextWindows,
    add_classifier_head,
    apply_lora,
    evaluate,
    freeze,
    generate_ids,
    merge_lora,
    predict_many,
    quantize,
    train_lm,
    trainable_report,
)
from gptclf.features.frozen_prefix import FrozenPrefix
from gptclf.features.reuse import prefix_of
from gptclf.gpt2 import nf4
from gptclf.gpt2.arithmetic import BFLOAT16, FLOAT32
from gptclf.gpt2.layers import Linear
from gptclf.gpt2.learner import Learner
from gptclf.gpt2.lora import linear_of, place
from gptclf.gpt2.lora_linear import LoRALinear, lora_layers
from gptclf.gpt2.nf4_kernel import bitsandbytes_kernel
from gptclf.gpt2.quantized import BITS, QuantizedLinear, packed_of, quantized_layers
from gptclf.gpt2.sharing import borrow, is_borrowed, twin
from gptclf.gpt2.standard import is_standard
from gptclf.gpt2.trunk import can_pool

# With 24 inputs most rows begin within a block of 64; with 32 every second one begins a block.
SIZES = [(24, 72), (32, 96), (7, 12)]
PARTS = [(slice(None), 1), (slice(None), 4), (slice(0, 24), 3), (slice(48, 72), 3), (slice(3, 8), 1), (slice(2, 3), 1)]
MATRICES = ("attention.qkv", "attention.out", "mlp.up", "mlp.down")


def layer_of(bits: str, K: int = 24, N: int = 72, *, bias: bool = True, plain_scales: bool = False) -> QuantizedLinear:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(N, K, generator=generator)
    packed = packed_of(weight, bits)
    if plain_scales:
        scales = nf4.scales(packed["absmax"], packed["nested_absmax"], packed["offset"])
        packed = {"codes": packed["codes"], "absmax": scales}
    shift = nn.Parameter(torch.randn(N, generator=generator)) if bias else None
    return QuantizedLinear(K, N, packed, shift)


def dense(model: GPT2) -> GPT2:
    """The model with ordinary layers over the dequantised matrices."""
    whole = borrow(model)
    for path, layer in list(quantized_layers(whole).items()):
        place(whole, path, linear_of(*layer.merged()))
    for name, parameter in whole.named_parameters():
        parameter.requires_grad_(name in {n for n, p in model.named_parameters() if p.requires_grad})
    return whole


def small(bits: str = "nf4") -> GPT2:
    return quantize(language_model(), bits)


def gradients(model: GPT2) -> dict[str, Tensor]:
    learner = Learner(model, training=True, keep_gradients=True)
    F.cross_entropy(learner(IDS, torch.tensor([17, 5, 9])), torch.tensor([0, 1, 1])).backward()  # type: ignore[no-untyped-call]
    return {name: p.grad for name, p in learner.named_parameters() if p.grad is not None}


# --- the layer ---


def test_eight_bits_are_rounded_shares_of_a_rows_largest_number() -> None:
    weight = torch.randn(9, 14, generator=torch.Generator().manual_seed(2))
    weight[3], weight[5] = 0, 1e-20 * weight[5]
    packed = packed_of(weight, "int8")
    w = weight.double().numpy()
    largest = np.abs(w).max(axis=1, keepdims=True)
    shares = np.divide(127 * w, largest, out=np.zeros_like(w), where=largest > 0)
    assert float(np.abs(packed["codes"].numpy() - shares).max()) <= 0.5 + 1e-5
    assert np.array_equal(packed["absmax"].numpy(), largest[:, 0].astype(np.float32))
    assert packed["codes"].abs().amax(dim=1).tolist() == [127, 127, 127, 0, *[127] * 5]
    expected = packed["codes"].double().numpy() * largest / 127
    np.testing.assert_allclose(QuantizedLinear(14, 9, packed).matrix(), expected, rtol=3e-7, atol=0)


def test_eight_bits_are_bitsandbytes() -> None:
    pytest.importorskip("bitsandbytes", exc_type=ImportError)
    assert bitsandbytes_kernel(torch.device("cpu")) is not None
    from bitsandbytes import functional

    for seed, shape in enumerate([(9, 14), (64, 192), (1, 1), (130, 31)]):
        weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) ** 3
        packed = packed_of(weight, "int8")
        codes, largest, _ = functional.int8_vectorwise_quant(weight.clone())
        assert torch.equal(packed["codes"], codes)
        assert torch.equal(packed["absmax"], largest)
        matrix = QuantizedLinear(shape[1], shape[0], packed).matrix()
        assert torch.equal(matrix, functional.int8_vectorwise_dequant(codes, largest))


@pytest.mark.parametrize(("K", "N"), SIZES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("bits", "plain"), [("nf4", False), ("nf4", True), ("int8", False)])
def test_a_layer_computes_what_its_dense_matrix_does(bits: str, plain: bool, bias: bool, K: int, N: int) -> None:
    layer = layer_of(bits, K, N, bias=bias, plain_scales=plain)
    matrix, shift = (None if t is None else t.double() for t in layer.merged())
    assert matrix is not None
    for shape in ((K,), (5, K), (2, 3, K)):
        x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        torch.testing.assert_close(layer(x.float()).double(), F.linear(x, matrix, shift), rtol=1e-4, atol=1e-4)
        found = torch.autograd.grad(layer(x).square().sum(), x)[0]
        expected = torch.autograd.grad(F.linear(x, matrix, shift).square().sum(), x)[0]
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    for arithmetic, tolerance in ((FLOAT32, 1e-5), (BFLOAT16, 2e-2)):
        x = torch.randn(1024, K)
        found = layer.prepared(arithmetic)(x.to(arithmetic.dtype))
        assert found.dtype == arithmetic.dtype
        expected = F.linear(x.double(), matrix, shift)
        assert float((found.double() - expected).norm() / expected.norm()) < tolerance


@pytest.mark.parametrize(("part", "heads"), PARTS)
@pytest.mark.parametrize("bits", BITS)
def test_parts_of_a_layer_are_those_of_its_dense_matrix(bits: str, part: slice, heads: int) -> None:
    for K in (24, 32):
        layer = layer_of(bits, K)
        whole = linear_of(layer.matrix().double(), None if layer.bias is None else layer.bias.detach().double())
        n = len(range(72)[part])
        x = torch.randn(*((5, K) if heads == 1 else (heads, 5, K)), dtype=torch.float64, requires_grad=True)
        y = torch.randn(5, n, dtype=torch.float64, requires_grad=True)
        for given, method, args in (
            (x, "rows", (part, heads)),
            (x, "rows", (part, heads, False)),
            (y, "onto", (part, heads)),
        ):
            found, expected = (getattr(one, method)(given, *args) for one in (layer, whole))
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
            pull = torch.randn_like(expected)
            torch.testing.assert_close(
                *(torch.autograd.grad(value, given, pull)[0] for value in (found, expected)), rtol=1e-9, atol=1e-9
            )


@pytest.mark.parametrize("bits", BITS)
def test_a_bias_trains(bits: str) -> None:
    layer, x = layer_of(bits), torch.randn(4, 24)
    pull = torch.randn(4, 72)
    for value, part in ((layer(x), slice(None)), (layer.rows(x, slice(8, 30)), slice(8, 30))):
        (found,) = torch.autograd.grad(value, layer.bias, pull[:, part])
        expected = torch.zeros(72)
        expected[part] = pull[:, part].sum(0)
        torch.testing.assert_close(found, expected)
    assert [name for name, p in layer.named_parameters() if p.requires_grad] == ["bias"]


@pytest.mark.parametrize("bits", BITS)
def test_only_the_rows_asked_for_are_dequantised(bits: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, made = layer_of(bits, 32, 96), []
    whole = nf4.dequantize

    def watched(codes: Tensor, scale: Tensor, shape: Any, dtype: torch.dtype) -> Tensor:
        made.append(tuple(shape))
        return whole(codes, scale, shape, dtype)

    monkeypatch.setattr(nf4, "dequantize", watched)
    layer.rows(torch.randn(2, 32), slice(32, 64))
    layer.onto(torch.randn(2, 33), slice(63, 96))  # begins within a block
    assert made == ([(32, 32), (96, 32)] if bits == "nf4" else [])


@pytest.mark.parametrize("bits", BITS)
def test_nothing_keeps_a_dequantised_matrix_for_the_backward_pass(bits: str) -> None:
    layer, kept = layer_of(bits), []

    def watched(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    x = torch.randn(5, 24, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(watched, lambda tensor: tensor):
        values = [layer(x), layer.rows(x, slice(0, 24)), layer.onto(torch.randn(5, 72, requires_grad=True))]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            values += [layer(x)]
    assert not [t for t in kept if t.is_floating_point() and t.numel() >= 24 * 24]
    assert all(value.requires_grad for value in values)


@pytest.mark.parametrize("bits", BITS)
def test_autocast_multiplies_in_bfloat16(bits: str) -> None:
    layer, x = layer_of(bits), torch.randn(6, 24, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, part = layer(x), layer.rows(x, slice(0, 24))
    assert found.dtype == part.dtype == torch.bfloat16
    bias = None if layer.bias is None else layer.bias.bfloat16()
    torch.testing.assert_close(found, F.linear(x.bfloat16(), layer.matrix(torch.bfloat16), bias))
    (gradient,) = torch.autograd.grad(found.float().sum(), x)
    assert gradient.dtype == torch.float32
    torch.testing.assert_close(gradient, layer.matrix().sum(0).expand(6, 24), rtol=2e-2, atol=5e-2)


def test_a_layer_describes_itself() -> None:
    assert repr(layer_of("nf4")) == "QuantizedLinear(in_features=24, out_features=72, bias=True, bits='nf4')"
    assert is_standard(layer_of("int8"))
    assert layer_of("int8").folds


# --- the model ---


@pytest.mark.parametrize("bits", BITS)
def test_the_frozen_matrices_of_the_blocks_are_quantised_and_nothing_else(bits: str) -> None:
    gpt2 = language_model()
    before = state(gpt2)
    model = quantize(gpt2, bits)
    assert set(quantized_layers(model)) == {f"trunk.blocks.{i}.{name}" for i in range(3) for name in MATRICES}
    for path, layer in quantized_layers(model).items():
        expected = packed_of(gpt2.get_parameter(f"{path}.weight"), bits)
        assert all(torch.equal(layer.packed()[name], tensor) for name, tensor in expected.items())
        assert layer.bits == bits
    shared = dict(gpt2.named_parameters())
    for name, parameter in model.named_parameters():
        if name in shared:
            assert parameter.data_ptr() == shared[name].data_ptr(), f"{name} was copied"
    assert state(gpt2) == before
    assert not any(parameter.requires_grad for parameter in model.parameters())
    error = (model(IDS) - gpt2(IDS)).norm() / gpt2(IDS).norm()
    assert 0 < float(error) < {"nf4": 0.2, "int8": 0.02}[bits]
    torch.testing.assert_close(model(IDS), dense(model)(IDS))


def test_matrices_that_train_stay_as_they_are() -> None:
    clf = add_classifier_head(language_model(), classes=["ham", "spam"], seed=3)  # its last block trains
    clf.get_parameter("trunk.blocks.0.attention.qkv.bias").requires_grad_(True)
    model = quantize(clf.train())
    assert {path.split(".")[2] for path in quantized_layers(model)} == {"0", "1"}
    trained = {name for name, p in clf.named_parameters() if p.requires_grad}
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trained
    assert all(part.training for part in model.modules())
    before = state(clf)
    run(model, epochs=1)
    assert state(clf) == before
    assert all(not is_borrowed(p) for p in model.parameters() if p.requires_grad)


def test_layers_of_ones_own_and_hooked_ones_are_kept() -> None:
    gpt2 = language_model()
    gpt2.get_submodule("trunk.blocks.0.mlp.up").register_forward_hook(lambda *_: None)

    class Own(Linear):
        pass

    place(gpt2, "trunk.blocks.1.mlp.up", Own(24, 56).requires_grad_(False))
    assert [i for i in range(3) if f"trunk.blocks.{i}.mlp.up" in quantized_layers(quantize(gpt2))] == [2]


@pytest.mark.parametrize("bits", BITS)
def test_matrices_beneath_factors_are_quantised(bits: str) -> None:
    model = adapted()
    over = quantize(model, bits)
    assert all(isinstance(layer.base, QuantizedLinear) for _, layer in lora_layers(over))
    assert not any(
        isinstance(part, QuantizedLinear) for _, layer in lora_layers(over) for part in (layer.lora_A, layer.lora_B)
    )
    # The order does not matter: factors on a quantised model are the same.
    under = stirred(apply_lora(quantize(classifier(), bits), rank=4, seed=1))
    assert {n for n, p in over.named_parameters() if p.requires_grad} == {
        n for n, p in under.named_parameters() if p.requires_grad
    }
    assert state(over) == state(under)
    frozen = quantize(merge_lora(adapted()))
    assert len(quantized_layers(frozen)) == 12


def test_a_merged_model_is_dequantised_plus_the_product() -> None:
    model = adapted(base=quantize(classifier()))
    merged = merge_lora(model)
    assert not quantized_layers(merged)
    assert {p.dtype for p in merged.parameters()} == {torch.float32}
    torch.testing.assert_close(merged(IDS), model(IDS), rtol=1e-5, atol=1e-5)
    path, layer = next(lora_layers(model))
    assert isinstance(layer, LoRALinear)
    expected = layer.base.matrix().double() + layer.scale * layer.lora_B.weight.double() @ layer.lora_A.weight.double()
    torch.testing.assert_close(merged.get_parameter(f"{path}.weight").double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"blocks": 1}])
@pytest.mark.parametrize("bits", BITS)
def test_gradients_over_quantised_matrices_are_those_over_the_dequantised(bits: str, options: dict[str, Any]) -> None:
    model = adapted(base=quantize(classifier(), bits), **options)
    assert can_pool(model.trunk.blocks[-1])
    found, expected = gradients(model), gradients(dense(model))
    assert set(found) == {name for name, p in model.named_parameters() if p.requires_grad} == set(expected)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert all(gradient.any() for gradient in found.values())


@pytest.mark.parametrize("bits", BITS)
def test_the_fast_computation_and_kept_features_are_the_general_path(bits: str) -> None:
    model = quantize(classifier(), bits)
    prefix = prefix_of(model, "float32")
    assert isinstance(prefix, FrozenPrefix)
    model.head.forget_fresh()
    told = answers(model)
    with torch.no_grad():
        pairs = [model(torch.tensor([byte_tokenizer().encode(text)])) for text in TEXTS]
    np.testing.assert_allclose(told, torch.cat(pairs).softmax(1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(evaluate(model, rows(), precision="float32").probabilities, told, rtol=1e-4, atol=1e-5)
    kept, general = (
        [step.loss for step in run(adapted(base=model, blocks=1), epochs=2, reuse_frozen=reuse).steps]
        for reuse in (True, False)
    )
    np.testing.assert_allclose(kept, general, rtol=0, atol=1e-5)
    assert np.array_equal(predict_many([model, model], TEXTS)[0], predict_many([model], TEXTS)[0])


def test_a_changed_byte_changes_the_address_of_features_and_the_answers() -> None:
    model = quantize(classifier())
    model.head.forget_fresh()
    prefix, before = prefix_of(model, "float32"), answers(model)
    assert isinstance(prefix, FrozenPrefix)
    seen = {prefix.identity()}
    layer = next(iter(quantized_layers(model).values()))
    for tensor in layer.packed().values():
        with torch.no_grad():
            tensor.view(-1)[0] += 1
        again = prefix_of(model, "float32")
        assert isinstance(again, FrozenPrefix)
        seen.add(again.identity())
    others = [prefix_of(other, "float32") for other in (classifier(), quantize(classifier(), "int8"))]
    seen |= {other.identity() for other in others if isinstance(other, FrozenPrefix)}
    assert len(seen) == 7
    assert float(np.abs(answers(model) - before).max()) > 1e-6


@pytest.mark.parametrize("bits", BITS)
def test_a_run_over_quantised_matrices_resumes_bit_for_bit(bits: str, tmp_path: Path) -> None:
    base = quantize(classifier(), bits)
    before = state(base)
    straight, resumed = adapted(base=base), adapted(base=base)
    whole = run(straight)
    kept = {"checkpoint_dir": tmp_path, "checkpoint_every": 2, "resume": True}
    assert run(adapted(base=base), callbacks=[Die(5, kill=False)], **kept).stopped == "stopped"
    history = run(resumed, **kept)
    assert [step.loss for step in history.steps] == [step.loss for step in whole.steps]
    assert whole.steps[-1].loss < whole.steps[0].loss
    assert state(resumed) == state(straight)
    assert state(base) == before
    other = quantize(classifier(), "int8" if bits == "nf4" else "nf4")
    with pytest.raises(ValueError, match="weights of the frozen part differ"):
        run(adapted(base=other), **kept)


@pytest.mark.parametrize("recompute", [False, True])
def test_recomputed_activations_give_the_same_run(recompute: bool) -> None:
    model = adapted(base=quantize(classifier()))
    run(model, recompute=recompute)
    plain = adapted(base=quantize(classifier()))
    run(plain)
    assert state(model) == state(plain)


@pytest.mark.parametrize("bits", BITS)
def test_a_language_model_generates_and_trains(bits: str) -> None:
    gpt2 = small(bits)
    without, with_cache = (generate_ids(gpt2, IDS, 12, use_cache=cached) for cached in (False, True))
    assert torch.equal(without, with_cache)
    assert torch.equal(with_cache, generate_ids(dense(gpt2), IDS, 12))
    model = apply_lora(gpt2, rank=4, seed=1)
    windows = TextWindows(" ".join(TEXTS) * 3, tokenizer=byte_tokenizer(), length=16)
    history = train_lm(model, windows, epochs=2, lr=1e-2, progress=False)
    assert history.steps[-1].loss < history.steps[0].loss


def test_a_quantised_model_is_copied_and_loaded_as_any_other() -> None:
    model = small()
    for other in (borrow(model), twin(model), copy.deepcopy(model)):
        assert torch.equal(other(IDS), model(IDS))
        assert state(other) == state(model)
    changed = quantize(randomised(language_model(), seed=9))
    assert state(changed) != state(model)
    borrowed = borrow(changed)
    before = state(changed)
    borrowed.load_state_dict(model.state_dict())
    assert state(borrowed) == state(model)
    assert state(changed) == before, "the one it was borrowed from keeps its own"


def test_without_bitsandbytes_the_answers_are_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("bitsandbytes", exc_type=ImportError)
    config = GPT2Config(vocab_size=257, context_length=40, emb_dim=64, n_heads=4, n_layers=2)
    gpt2 = language_model(config)
    model = quantize(gpt2)
    found = model(IDS)
    monkeypatch.setattr(nf4, "bitsandbytes_kernel", lambda device: None)
    assert torch.equal(model(IDS), found)
    assert state(quantize(gpt2)) == state(model)


# --- freezing and counting ---


@pytest.mark.parametrize("trainable", ["all", "last_block", "last_two_blocks", 1, "blocks.1", "*.qkv.codes"])
def test_a_quantised_matrix_cannot_train(trainable: Any) -> None:
    model = quantize(classifier())
    before = [(name, p.requires_grad) for name, p in model.named_parameters()]
    with pytest.raises(ValueError, match=r"chooses trunk\.blocks\.\d\.attention\.qkv\.\w+, .*apply_lora.*'head'"):
        freeze(model, trainable=trainable)
    assert [(name, p.requires_grad) for name, p in model.named_parameters()] == before


def test_what_is_not_quantised_may_train() -> None:
    model = quantize(classifier())
    freeze(model, trainable=["norm", "blocks.*.norm1", "blocks.*.bias", "head"])
    assert "trunk.blocks.0.attention.qkv.bias" in trainable_report(model).names
    adapter = apply_lora(model, rank=2, blocks=1, seed=1)
    freeze(adapter, trainable="head")
    freeze(adapter, trainable="lora")
    # A model whose last block stayed float.
    clf = quantize(add_classifier_head(language_model(), classes=["ham", "spam"], seed=3))
    freeze(clf, trainable="head")
    freeze(clf, trainable="last_block")
    assert any(name.startswith("trunk.blocks.2.mlp") for name in trainable_report(clf).names)


@pytest.mark.parametrize("bits", BITS)
def test_a_new_head_on_a_quantised_model_trains_alone(bits: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        clf = add_classifier_head(small(bits), classes=["ham", "spam"], seed=3)
    assert trainable_report(clf).names == ["head.output.weight", "head.output.bias"]
    assert state(clf) == state(quantize(classifier(), bits))


@pytest.mark.parametrize("bits", BITS)
def test_a_quantised_matrix_counts_as_its_numbers(bits: str) -> None:
    clf = classifier()
    assert trainable_report(quantize(clf, bits)).counts == trainable_report(clf).counts
    adapter, over = apply_lora(clf, rank=2, seed=1), apply_lora(quantize(clf, bits), rank=2, seed=1)
    assert trainable_report(over).counts == trainable_report(adapter).counts


def test_a_number_takes_four_or_eight_bits() -> None:
    config = GPT2Config(vocab_size=257, context_length=8, emb_dim=128, n_heads=4, n_layers=2)
    gpt2 = language_model(config)
    numbers = 2 * 12 * 128 * 128
    packed = {bits: [layer.packed() for layer in quantized_layers(quantize(gpt2, bits)).values()] for bits in BITS}
    bits = {
        kind: 8 * sum(p.nbytes for part in parts for p in part.values()) / numbers for kind, parts in packed.items()
    }
    assert bits["nf4"] == pytest.approx(4.13, abs=0.03)
    assert bits["int8"] == pytest.approx(8.2, abs=0.1)


# --- what is refused ---


def half(model: GPT2) -> GPT2:
    return model.half()


REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "bits": (lambda: quantize(language_model(), "fp4"), ValueError, "bits.*'fp4'.*nf4"),
    "number": (lambda: quantize(language_model(), 4), (TypeError, ValueError), "bits"),  # type: ignore[dict-item, arg-type]
    "no model": (lambda: quantize(nn.Linear(2, 2)), TypeError, "it must be a gptclf GPT2"),  # type: ignore[arg-type]
    "twice": (lambda: quantize(small()), ValueError, r"quantised already, such as trunk\.blocks\.0\.attention\.qkv"),
    "twice beneath factors": (lambda: quantize(apply_lora(small(), seed=1)), ValueError, "quantised already"),
    "half": (lambda: quantize(half(language_model())), ValueError, "torch.float16.*float"),
    "half and quantised": (lambda: apply_lora(half(small()), seed=1), ValueError, "torch.float16"),
    "all train": (
        lambda: quantize(language_model().requires_grad_(True)),
        ValueError,
        "no matrix .* is frozen.*freeze",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_quantised_is_told(case: str) -> None:
    make, kind, message = REFUSED[case]
    with pytest.raises(kind, match=message):
        make()


def test_a_large_matrix_is_dequantised_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for GPT-2 XL, whose matrices are larger than what is dequantised at once."""
    layer = next(iter(quantized_layers(quantize(byte_gpt2())).values()))
    x, y = torch.randn(3, layer.in_features), torch.randn(3, layer.out_features)
    whole = layer.times(x, layer.bias), layer.times_transposed(y)
    monkeypatch.setattr("gptclf.gpt2.quantized._MOST_NUMBERS", 64 * layer.in_features)
    torch.testing.assert_close(layer.times(x, layer.bias), whole[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(layer.times_transposed(y), whole[1], rtol=1e-5, atol=1e-6)
