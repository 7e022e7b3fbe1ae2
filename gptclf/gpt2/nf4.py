"""NF4: 4-bit codes of blocks of 64 numbers, each block with a scale (Dettmers et al., 2023, "QLoRA").

The scales are quantised too: 8-bit codes of their distance from the mean, in blocks of 256. All numbers are those of
bitsandbytes on a CPU, bit for bit, but where its AVX-512 kernel takes wrong scales: in rows of a part of a block.
"""

import functools
from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F

from gptclf.gpt2.nf4_kernel import bitsandbytes_kernel
from gptclf.gpt2.recording import cached, is_recording

BLOCK, NESTED_BLOCK, _PIECE = 64, 256, 2**16
_float32 = functools.partial(torch.tensor, dtype=torch.float32, device="cpu")

# Quantiles of a normal distribution, 0 among them, scaled to [-1, 1].
_BELOW = (-1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.091050036, 0.0)
_ABOVE = (0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0)


def code_book() -> Tensor:
    """Return the numbers of the 16 codes, rising."""
    return _float32(_BELOW + _ABOVE)


def dynamic_code_book() -> Tensor:
    """Return the 256 numbers of the scales' codes, rising: a sign, an exponent of 10 and what bits are left."""
    bounds = [torch.linspace(0.1, 1, 2**i + 1, dtype=torch.float32, device="cpu") for i in range(7)]
    means = torch.cat([10.0 ** (i - 6) * ((b[:-1] + b[1:]) / 2) for i, b in enumerate(bounds)])
    return torch.cat([means, -means, _float32([0.0, 1.0])]).sort().values


# As numbers: of tensors that are made while torch records, only constants should be recorded.
_CODES, _SCALES = code_book().tolist(), dynamic_code_book().tolist()
_PAIRS = [(high, low) for high in _CODES for low in _CODES]


@cached
def _books(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return the numbers of 4-bit codes, of 8-bit codes, and of bytes (256, 2), which are pairs of 4-bit codes."""
    with torch.inference_mode(False):  # kept, and used in training as well
        return _float32(_CODES).to(device), _float32(_SCALES).to(device), _float32(_PAIRS).to(device)


def quantize(x: Tensor) -> dict[str, Tensor]:
    """Quantise a tensor of n numbers, in the order of its elements.

    Returns:
        "codes" (⌈n/2⌉,), two codes a byte, the first in the high nibble; "absmax" (⌈n/64⌉,), the scales' codes;
        "nested_absmax" (⌈n/16384⌉,) and "offset" (), the scales of these and the mean of all.
    """
    # In pieces: temporary tensors as large as a matrix would leave the process's memory in fragments.
    pieces = [_codes(piece.float()) for piece in torch.split(x.detach().reshape(-1), _PIECE)]
    nibbles, absmax = (torch.cat(part) for part in zip(*pieces, strict=True))
    nibbles = F.pad(nibbles, (0, x.numel() % 2), value=7)
    offset = absmax.mean()
    centred = F.pad(absmax - offset, (0, -absmax.numel() % NESTED_BLOCK)).view(-1, NESTED_BLOCK)
    nested_absmax = centred.abs().amax(dim=1)
    # bitsandbytes rounds to 65,536 equal steps first. Blocks without any distance, here NaN, get code 0.
    steps = ((centred * (1 / nested_absmax)[:, None]).clamp(-1, 1) + 1) * 0.5 * 65535 + 0.5
    nested = _nearest(-1 + 2 * steps.nan_to_num().int().float() / 65535, _books(x.device)[1])
    found = {"codes": (nibbles[::2] << 4) | nibbles[1::2], "absmax": nested.view(-1)[: absmax.numel()].clone()}
    return found | {"nested_absmax": nested_absmax, "offset": offset}


def _codes(x: Tensor) -> tuple[Tensor, Tensor]:
    rest = x.numel() % BLOCK
    blocks = F.pad(x, (0, -rest % BLOCK)).view(-1, BLOCK)
    absmax = blocks.abs().amax(dim=1)
    least = absmax.clamp(min=1e-38)
    scaled = blocks * (1 / least)[:, None]
    if rest:  # bitsandbytes treats the last block in another way
        absmax[-1] = least[-1]
        scaled[-1] = blocks[-1] / least[-1]
    return _nearest(scaled.clamp(-1, 1).view(-1)[: x.numel()], _books(x.device)[0]), absmax


def _nearest(x: Tensor, book: Tensor) -> Tensor:
    return torch.bucketize(x, (book[:-1] + book[1:]) / 2, out_int32=True).to(torch.uint8)


def scales(absmax: Tensor, nested_absmax: Tensor | None = None, offset: Tensor | None = None) -> Tensor:
    """Return the float32 scale of each block; without `nested_absmax`, `absmax` holds the scales themselves."""
    if nested_absmax is None or offset is None:
        return absmax
    _, book, _ = _books(absmax.device)
    return book[absmax.int()] * nested_absmax.repeat_interleave(NESTED_BLOCK)[: absmax.numel()] + offset


def dequantize(codes: Tensor, scale: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return the numbers of codes and float32 scales in a shape and type, computed by bitsandbytes if it can."""
    n = prod(shape)
    able = not is_recording() and n % BLOCK == 0 and dtype in (torch.float32, torch.bfloat16)
    if able and (kernel := bitsandbytes_kernel(codes.device)) is not None:
        # A block a row: with AVX-512 it takes wrong scales if a row is not of whole blocks (0.50.2).
        return kernel(codes, scale, BLOCK, "nf4", (n // BLOCK, BLOCK), dtype).view(*shape)  # type: ignore[no-any-return]
    x = F.embedding(codes.int(), _books(codes.device)[2]).view(-1)[:n]
    blocks = (F.pad(x, (0, -n % BLOCK)) if n % BLOCK else x).view(-1, BLOCK)
    return blocks.mul_(scale[:, None]).view(-1)[:n].view(*shape).to(dtype)
