"""`QuantizedLinear`: a frozen linear layer whose matrix is kept in 4 or 8 bits and dequantised where it is needed."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptclf.gpt2 import nf4
from gptclf.gpt2.arithmetic import Arithmetic
from gptclf.gpt2.frozen import frozen_product, product_of
from gptclf.gpt2.gradients import View
from gptclf.gpt2.layers import ALL, Linear
from gptclf.gpt2.recording import is_recording

BITS = ("nf4", "int8")

# The names of the tensors that hold a matrix.
PACKED = ("codes", "absmax", "nested_absmax", "offset")

# The most numbers that are dequantised at once in training; GPT-2 124M's matrices are smaller.
_MOST_NUMBERS = 5 * 2**19

# bitsandbytes' factor in place of a division by 127.
_STEP = 7.874015718698502e-3


class QuantizedLinear(Linear):
    """A frozen linear layer with a matrix of 4-bit NF4 or 8-bit integer codes, for GPT-2's fast paths and training.

    Nothing keeps a dequantised matrix between the forward and the backward pass. The bias is float32 and may train.

    Args:
        in_features: K.
        out_features: N.
        packed: The matrix: "codes" and "absmax", for NF4 with quantised scales also "nested_absmax" and "offset".
        bias: The bias (N,), or None.

    Attributes:
        bits: "nf4", or "int8": a scale for each row, and no 16-bit columns for outliers.
    """

    standard = True
    kind = "quantized"
    described = ("bits",)
    equivalents = ("rows", "onto", "prepared")

    def __init__(
        self, in_features: int, out_features: int, packed: Mapping[str, Tensor], bias: nn.Parameter | None = None
    ) -> None:
        super().__init__(in_features, out_features, bias=False, device="meta")
        self.register_parameter("weight", None)
        self.register_parameter("bias", bias)
        for name in PACKED:
            kept = nn.Parameter(packed[name], requires_grad=False) if name in packed else None
            self.register_parameter(name, kept)

    @property
    def bits(self) -> str:
        """The kind of codes."""
        return "int8" if self.packed()["codes"].dtype == torch.int8 else "nf4"

    def packed(self) -> dict[str, nn.Parameter]:
        """Return the parameters that hold the matrix, by name."""
        return {
            name: parameter for name, parameter in self._parameters.items() if name in PACKED and parameter is not None
        }

    def matrix(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the dequantised matrix (N, K)."""
        return self._rows(ALL, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., K) to (..., N)."""
        return F.linear(x, self.matrix(), self.bias) if is_recording() else frozen_product(x, self)

    def times(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Compute x Wᵀ + b (M, N) of x (M, K) in the type of x, without gradients."""
        bias = None if bias is None else bias.to(x.dtype)
        if len(pieces := self._pieces()) == 1:
            return F.linear(x, self.matrix(x.dtype), bias)
        y = torch.cat([x @ self._rows(rows, x.dtype).t() for rows in pieces], dim=1)
        return y if bias is None else y.add_(bias)

    def times_transposed(self, y: Tensor) -> Tensor:
        """Compute y W (M, K) of y (M, N) in the type of y, without gradients."""
        first, *others = self._pieces()
        x = y[:, first] @ self._rows(first, y.dtype)
        for rows in others:
            x.addmm_(y[:, rows], self._rows(rows, y.dtype))
        return x

    def _pieces(self) -> list[slice]:
        """Divide the rows of a large matrix: dequantised whole, it would leave the process's memory in fragments."""
        size = max(1, _MOST_NUMBERS // (self.in_features * nf4.BLOCK)) * nf4.BLOCK
        return [slice(start, start + size) for start in range(0, self.out_features, size)]

    def _rows(self, rows: slice, dtype: torch.dtype) -> Tensor:
        return dequantized(self.packed(), (self.out_features, self.in_features), rows, dtype)

    def multiply(self, x: Tensor, rows: slice, view: View, bias: Tensor | None = None) -> Tensor:
        """Multiply by rows of the matrix, as `Linear.multiply` does; only these rows are dequantised."""

        def matrix(dtype: torch.dtype) -> Tensor:
            return view(self._rows(rows, dtype))

        def times(x: Tensor, bias: Tensor | None) -> Tensor:
            y = x @ matrix(x.dtype)
            return y if bias is None else y.add_(bias.to(x.dtype))

        return product_of(x, times, lambda y: y @ matrix(y.dtype).mT, bias)

    def prepared(self, arithmetic: Arithmetic) -> Callable[[Tensor], Tensor]:
        """Return the layer as a function of (M, K) without gradients, its matrix dequantised and laid out once."""
        return arithmetic.prepare(self.matrix(arithmetic.dtype), self.bias)

    def merged(self) -> tuple[Tensor, Tensor | None]:
        """Return the dequantised matrix (N, K), float32, and the bias (N,), without gradients."""
        return self.matrix(), None if self.bias is None else self.bias.detach()

    def extra_repr(self) -> str:
        """Describe the layer when it is printed."""
        return f"{super().extra_repr()}, bits={self.bits!r}"


def packed_of(weight: Tensor, bits: str) -> dict[str, Tensor]:
    """Quantise a matrix (N, K); with "int8", as bitsandbytes' `int8_vectorwise_quant` does."""
    if bits == "nf4":
        return nf4.quantize(weight)
    absmax = weight.detach().float().abs().amax(dim=1)
    factor = (127.0 / absmax).nan_to_num(posinf=0.0)[:, None]
    codes = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    for rows, *its in zip(*(torch.split(t, 64) for t in (codes, weight.detach(), factor)), strict=True):
        rows.copy_((its[0].float() * its[1]).round())  # some rows at a time, to keep little beside the codes
    return {"codes": codes, "absmax": absmax}


def check_packed(packed: Mapping[str, Tensor], shape: tuple[int, ...]) -> None:
    """Raise a ValueError unless tensors hold a quantised matrix of this shape (N, K)."""
    N, K = shape
    blocks = -(-N * K // nf4.BLOCK)
    codes = (torch.uint8, (-(-N * K // 2),))
    nested = {"nested_absmax": (torch.float32, (-(-blocks // nf4.NESTED_BLOCK),)), "offset": (torch.float32, ())}
    kinds: list[dict[str, Any]] = [
        {"codes": codes, "absmax": (torch.uint8, (blocks,)), **nested},
        {"codes": codes, "absmax": (torch.float32, (blocks,))},
        {"codes": (torch.int8, (N, K)), "absmax": (torch.float32, (N,))},
    ]
    found = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in packed.items()}
    if found not in kinds:
        raise ValueError(f"its tensors are {found}, but a matrix {shape} has {' or '.join(map(str, kinds))}")


def dequantized(packed: Mapping[str, Tensor], shape: tuple[int, int], rows: slice, dtype: torch.dtype) -> Tensor:
    """Return rows of a quantised matrix of this shape (N, K)."""
    codes, absmax = packed["codes"], packed["absmax"]
    if codes.dtype == torch.int8:
        return codes[rows].float().mul_(absmax[rows, None]).mul_(_STEP).to(dtype)
    (start, stop, _), K = rows.indices(shape[0]), shape[1]
    scales = nf4.scales(absmax, packed.get("nested_absmax"), packed.get("offset"))
    if start * K % nf4.BLOCK:  # the rows begin within a block
        return nf4.dequantize(codes, scales, shape, dtype)[rows]
    first, last = start * K, stop * K
    codes, scales = codes[first // 2 : -(-last // 2)], scales[first // nf4.BLOCK : -(-last // nf4.BLOCK)]
    return nf4.dequantize(codes, scales, (stop - start, K), dtype)


def quantized_layers(module: nn.Module) -> dict[str, QuantizedLinear]:
    """Return the quantised layers of a module by name."""
    return {name: part for name, part in module.named_modules() if isinstance(part, QuantizedLinear)}


def count_weights(module: nn.Module) -> int:
    """Return the number of scalar parameters; a quantised matrix counts as the N K numbers that it stands for."""
    layers = quantized_layers(module).values()
    packed = sum(tensor.numel() for layer in layers for tensor in layer.packed().values())
    whole = sum(layer.out_features * layer.in_features for layer in layers)
    return sum(p.numel() for p in module.parameters()) - packed + whole
