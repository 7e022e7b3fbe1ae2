"""NF4: its code books, its codes and dequantised numbers against algebra and bitsandbytes, and a silent import."""

import hashlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import gptclf
from gptclf.gpt2 import nf4, nf4_kernel

CPU = torch.device("cpu")
KINDS = ["normal", "heavy tails", "sparse", "zero blocks", "zero end", "all zero", "equal blocks", "tiny"]
# Widths that fill blocks of 64 and of 256 blocks, and such as do not, odd ones too.
SHAPES = [(96, 64), (33, 64), (5, 38), (7, 9), (1, 1), (3, 3), (1, 64 * 257), (129, 130), (2, 16384), (1, 127)]


@pytest.fixture
def without_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nf4, "bitsandbytes_kernel", lambda device: None)


def numbers(kind: str, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator) * 0.05
    flat, whole = x.view(-1), x.numel() // 64 * 64
    if kind == "heavy tails":
        flat **= 5
    elif kind == "sparse":
        flat *= torch.rand(flat.shape, generator=generator) > 0.95
    elif kind == "zero blocks":
        flat[:whole].view(-1, 64)[::2] = 0
    elif kind == "zero end":
        flat[-(x.numel() % 64 or 64) :] = 0
    elif kind == "all zero":
        flat *= 0
    elif kind == "equal blocks":
        flat[:whole].view(-1, 64)[:] = x.view(-1)[0]
    elif kind == "tiny":
        flat *= 1e-30
    return x


def dequantized(packed: dict[str, Tensor], shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    scale = nf4.scales(packed["absmax"], packed["nested_absmax"], packed["offset"])
    return nf4.dequantize(packed["codes"], scale, shape, dtype)


def nibbles(packed: dict[str, Tensor], n: int) -> Any:
    codes = packed["codes"].numpy()
    return np.stack([codes >> 4, codes & 15], axis=1).reshape(-1)[:n]


# --- code books ---


def test_the_code_book_is_a_normal_distributions_quantiles() -> None:
    # Dettmers et al. (2023), appendix E: 8 steps up to the quantile of 0.9677083, 7 down, and 0.
    def quantiles(steps: int) -> Tensor:
        shares = torch.linspace(0.9677083, 0.5, steps + 1, dtype=torch.float64)[:-1]
        return torch.erfinv(2 * shares - 1)

    up, down = quantiles(8), -quantiles(7)
    expected = torch.cat([down, torch.zeros(1, dtype=torch.float64), up.flip(0)]) / up.max()
    torch.testing.assert_close(nf4.code_book().double(), expected, rtol=0, atol=1e-6)
    assert nf4.code_book()[[0, 7, 15]].tolist() == [-1.0, 0.0, 1.0]


def test_the_scales_code_book_has_a_sign_an_exponent_and_the_bits_that_are_left() -> None:
    book = nf4.dynamic_code_book().double().numpy()
    positive = sorted(10.0 ** (i - 6) * (0.1 + 0.9 * (2 * j + 1) / 2 ** (i + 1)) for i in range(7) for j in range(2**i))
    expected = [*(-x for x in reversed(positive)), 0.0, *positive, 1.0]
    np.testing.assert_allclose(book, expected, rtol=1e-6, atol=0)
    assert len(set(book)) == 256


# --- quantising ---


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_each_number_has_the_nearest_code(kind: str, shape: tuple[int, ...]) -> None:
    x = numbers(kind, shape)
    packed, flat, n = nf4.quantize(x), x.double().numpy().reshape(-1), x.numel()
    blocks = np.pad(flat, (0, -n % 64)).reshape(-1, 64)
    absmax = np.abs(blocks).max(axis=1)
    scaled = (blocks / np.maximum(absmax, 1e-38)[:, None]).reshape(-1)[:n]
    distance = np.abs(scaled[:, None] - nf4.code_book().double().numpy())
    chosen = np.take_along_axis(distance, nibbles(packed, n)[:, None].astype(np.int64), axis=1)[:, 0]
    np.testing.assert_allclose(chosen, distance.min(axis=1), rtol=0, atol=1e-6)
    # The scales: 8 bits of their distance from the mean, first rounded to 65,536 steps.
    np.testing.assert_allclose(packed["offset"], absmax.mean(), rtol=1e-5, atol=1e-37)
    centred = absmax - packed["offset"].double().numpy()
    groups = np.pad(centred, (0, -len(centred) % 256)).reshape(-1, 256)
    largest = packed["nested_absmax"].double().numpy()
    np.testing.assert_allclose(largest, np.abs(groups).max(axis=1), rtol=1e-5, atol=1e-7 * float(absmax.max() + 1e-30))
    scale = nf4.scales(packed["absmax"], packed["nested_absmax"], packed["offset"]).double().numpy()
    widest = float(np.diff(nf4.dynamic_code_book().numpy()).max()) / 2 + 2 / 65535
    assert np.all(
        np.abs(scale - absmax) <= np.repeat(largest, 256)[: len(absmax)] * widest + 1e-6 * absmax.max() + 1.1e-38
    )


STORED = ["03f5c31f6d81", "c008c047a51a", "033777dac5bb", "2e7cb05a00b6", "fae2292f5747", "9cffd42168d6"]


@pytest.mark.usefixtures("without_bitsandbytes")
def test_the_numbers_are_those_of_the_first_version() -> None:
    """Stored: the bits may not change, because files and addresses of features depend on them."""
    i = torch.arange(3 * 16384 + 70)
    x = ((i * 7919 % 1009 - 504) * (i // 64 % 7 + 1)).float().view(2, -1)  # whole, so that their sum is exact
    packed = nf4.quantize(x)
    parts = [*packed.values(), dequantized(packed, tuple(x.shape)), dequantized(packed, tuple(x.shape), torch.bfloat16)]
    found = [
        hashlib.sha256(part.contiguous().view(-1).view(torch.uint8).numpy().tobytes()).hexdigest()[:12]
        for part in parts
    ]
    assert found == STORED
    codes = [packed["codes"][:4].tolist(), packed["absmax"][:7].tolist(), float(packed["offset"])]
    assert codes == [[14, 200, 82, 31], [2, 24, 47, 159, 207, 228, 251], 1993.483154296875]


@pytest.mark.usefixtures("without_bitsandbytes")
@pytest.mark.parametrize("kind", KINDS)
def test_dequantised_numbers_are_code_times_scale(kind: str) -> None:
    for shape in SHAPES:
        packed, n = nf4.quantize(numbers(kind, shape)), int(np.prod(shape))
        scale = nf4.scales(packed["absmax"], packed["nested_absmax"], packed["offset"]).numpy()
        expected = nf4.code_book().numpy()[nibbles(packed, n)] * np.repeat(scale, 64)[:n]
        assert np.array_equal(dequantized(packed, shape).numpy().reshape(-1), expected)
        half = torch.from_numpy(expected).bfloat16().view(shape)
        assert torch.equal(dequantized(packed, shape, torch.bfloat16), half)


def test_scales_that_were_not_quantised_are_taken_as_they_are() -> None:
    scale = torch.tensor([2.0, 3.0])
    assert nf4.scales(scale) is scale
    codes = torch.full((64,), 0xF0, dtype=torch.uint8)
    expected = torch.tensor([2.0, -2.0] * 32 + [3.0, -3.0] * 32)
    assert torch.equal(nf4.dequantize(codes, scale, (1, 128), torch.float32)[0], expected)


def test_the_error_is_that_of_nf4() -> None:
    # On normal numbers 9.2 % of their size, measured for bitsandbytes' kernels too.
    x = numbers("normal", (512, 1024))
    error = (dequantized(nf4.quantize(x), (512, 1024)) - x).norm() / x.norm()
    assert float(error) == pytest.approx(0.092, abs=0.002)


def test_it_stays_small() -> None:
    assert len(Path(nf4.__file__).read_text(encoding="utf-8").splitlines()) <= 110


# --- bitsandbytes ---


@pytest.fixture(scope="module")
def theirs() -> Iterator[Any]:
    pytest.importorskip("bitsandbytes", exc_type=ImportError)
    assert nf4_kernel.bitsandbytes_kernel(CPU) is not None
    from bitsandbytes import functional

    with torch.compiler.set_stance("force_eager"):  # for odd widths it compiles
        yield functional


def check_equal(x: Tensor, functional: Any) -> None:
    packed = nf4.quantize(x)
    codes, state = functional.quantize_4bit(x, blocksize=64, compress_statistics=True, quant_type="nf4")
    expected = {"codes": codes, "absmax": state.absmax, "nested_absmax": state.state2.absmax, "offset": state.offset}
    assert {name: tensor.shape.numel() for name, tensor in expected.items()} == {
        name: tensor.numel() for name, tensor in packed.items()
    }
    for name, tensor in expected.items():
        assert torch.equal(packed[name].view(-1), tensor.view(-1)), name
    scale = nf4.scales(packed["absmax"], packed["nested_absmax"], packed["offset"])
    for dtype in (torch.float32, torch.bfloat16):
        state.dtype = dtype
        whole = functional.dequantize_4bit(codes, state)
        for kernel in (nf4_kernel.bitsandbytes_kernel, lambda device: None):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(nf4, "bitsandbytes_kernel", kernel)
                found = nf4.dequantize(packed["codes"], scale, x.shape, dtype)
            assert found.dtype == dtype
            if x.shape[1] % 64 == 0 or x.shape[1] % 16:  # see the test of such rows
                # AVX-512's conversion to bfloat16 takes numbers below the smallest normal one for 0.
                normal = whole.view(-1).abs() >= torch.finfo(torch.float32).tiny
                assert torch.equal(found.view(-1)[normal], whole.view(-1)[normal])
                assert bool((found.view(-1)[~normal].abs() <= torch.finfo(torch.float32).tiny).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_all_bits_are_bitsandbytes(kind: str, dtype: torch.dtype, theirs: Any) -> None:
    for shape in SHAPES:
        check_equal(numbers(kind, shape).to(dtype), theirs)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 700),
    kind=st.sampled_from(KINDS),
    size=st.sampled_from([1e-6, 1e-2, 1.0, 1e4]),
    seed=st.integers(0, 2**31),
)
def test_all_bits_are_bitsandbytes_for_any_size(
    rows: int, columns: int, kind: str, size: float, seed: int, theirs: Any
) -> None:
    check_equal(numbers(kind, (rows, columns), seed) * size, theirs)


@pytest.mark.usefixtures("theirs")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_of_parts_of_blocks_have_their_own_scales(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """bitsandbytes 0.50.2 takes others with AVX-512, if a row's width is a multiple of 16 but not of 64."""
    for width in (16, 32, 48, 80, 96, 112, 144, 688):
        x = numbers("normal", (64, width))
        packed = nf4.quantize(x)
        found = dequantized(packed, (64, width), dtype)
        with monkeypatch.context() as patch:
            patch.setattr(nf4, "bitsandbytes_kernel", lambda device: None)
            assert torch.equal(found, dequantized(packed, (64, width), dtype))


def test_the_code_books_are_bitsandbytes(theirs: Any) -> None:
    assert torch.equal(nf4.dynamic_code_book(), theirs.create_dynamic_map())
    assert torch.equal(nf4.code_book(), theirs.get_4bit_type("nf4", device="cpu"))


def test_the_kernel_is_used_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def kernel(*given: Any) -> Tensor:
        asked.append(given)
        return torch.zeros(given[4], dtype=given[5])

    monkeypatch.setattr(nf4, "bitsandbytes_kernel", lambda device: kernel)
    packed = nf4.quantize(torch.ones(4, 32))
    for dtype in (torch.float32, torch.bfloat16):
        dequantized(packed, (4, 32), dtype)
    assert [given[2:] for given in asked] == [(64, "nf4", (2, 64), dtype) for dtype in (torch.float32, torch.bfloat16)]
    assert dequantized(packed, (4, 32), torch.float64).any(), "a type that the kernel does not have"
    assert len(asked) == 2


def test_without_bitsandbytes_there_is_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert nf4_kernel.bitsandbytes_kernel.__wrapped__(CPU) is None


def test_a_broken_bitsandbytes_is_told_and_done_without(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(name: str) -> None:
        raise RuntimeError("undefined symbol")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(importlib, "import_module", broken)
    known = sys.modules.get("kernels", "absent")
    assert nf4_kernel.bitsandbytes_kernel.__wrapped__(CPU) is None
    assert "bitsandbytes cannot be used (undefined symbol)" in caplog.text
    assert sys.modules.get("kernels", "absent") == known


# A package `kernels` that records what is asked of it, and a stand-in for bitsandbytes that asks as the original does
# on a processor with bfloat16 products.
_KERNELS = """
import pathlib
def get_kernel(*given, **named):
    pathlib.Path("asked").write_text("asked")
    raise OSError("no network")
"""
_BITSANDBYTES = """
import logging, torch
logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
logging.getLogger("bitsandbytes").warning("something else")
try:
    from kernels import get_kernel
    get_kernel("kernels-community/quantization-bitsandbytes")
except Exception as error:
    logger.warning("Failed to load CPU gemm_4bit_forward from kernels-community: %s", error)
"""
_PROGRAM = """
import sys, torch
{before}
before = sys.modules.get("kernels", "absent")
import gptclf
assert "bitsandbytes" not in sys.modules
from gptclf.gpt2.nf4_kernel import bitsandbytes_kernel
kernel = bitsandbytes_kernel(torch.device("cpu"))
assert "bitsandbytes" in sys.modules
assert sys.modules.get("kernels", "absent") is before
import logging
logging.getLogger("bitsandbytes.backends.cpu.ops").warning("later, about kernels")
import kernels
print(kernel)
"""


@pytest.mark.parametrize(("original", "before"), [(True, ""), (False, ""), (False, "import kernels")])
def test_importing_bitsandbytes_asks_for_nothing_and_says_nothing(original: bool, before: str, tmp_path: Path) -> None:
    if original:
        pytest.importorskip("bitsandbytes", exc_type=ImportError)
    else:
        (tmp_path / "bitsandbytes.py").write_text(_BITSANDBYTES)
    (tmp_path / "kernels.py").write_text(_KERNELS)
    paths = [str(tmp_path), str(Path(gptclf.__file__).parents[1])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    program = [sys.executable, "-c", _PROGRAM.format(before=before)]
    done = subprocess.run(program, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "asked").exists()
    if original:
        assert done.stdout.strip() == "bitsandbytes.dequantize_4bit"
        assert done.stderr.splitlines() == ["later, about kernels"], "nothing from the import, and the filter is gone"
    else:
        told = [line.split(" (")[0] for line in done.stderr.splitlines()]
        assert told == ["something else", "bitsandbytes cannot be used", "later, about kernels"]
