"""CRC-32C (Castagnoli; RFC 3720, appendix B.4) with numpy alone, at the speed of memory.

A CRC is the remainder of the message, read as a polynomial over GF(2), by a generator P of degree 32. P divides

    M(x) = x^5685 + x^1362 + x^426 + 1

so the remainder by M has the same CRC, and reducing by M is three XORs of whole runs of bytes. Over GF(2) squaring
doubles every exponent (M(x)^2 = M(x^2)), so P also divides M(x^8), which moves single bytes, and M(x^16), M(x^32), ...,
which move runs of 2, 4, ... times the length. What the last reduction leaves is at most 5685 bytes; their CRC is the
sum of the powers of x at which they have a bit.
"""

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

_GENERATOR = 0x82F63B78  # P without x^32; the lowest bit is x^31, as everywhere in a reflected CRC
_DEGREE, *_TAPS = 5685, 1362, 426, 0
_SCALE = 16  # runs of 69 kB: long enough that numpy's calls cost little, short enough for a core's own cache
_PIECE = 1 << 20

# A CRC starts from 32 ones. From 0, these four bytes lead to them; zeros before them change nothing.
_START = np.frombuffer(b"\x54\x64\x1f\x64", np.uint8)


def crc32c(data: bytes | NDArray[Any]) -> int:
    """The CRC-32C of some bytes.

    Args:
        data: Bytes, or a contiguous array whose memory is meant. A mapped one is read in pieces of 1 MB.

    Example:
        >>> hex(crc32c(b"123456789"))
        '0xe3069283'
    """
    message = np.frombuffer(data, np.uint8)
    rest = _START
    for start in range(0, message.size, _PIECE):
        rest = _reduce(np.concatenate([rest, message[start : start + _PIECE]]), _SCALE)
    scale = _SCALE
    while scale > 1:
        scale //= 2
        rest = _reduce(rest, scale)
    bits = np.unpackbits(rest, bitorder="little")
    return int(np.bitwise_xor.reduce(_powers()[-bits.size :] * bits)) ^ 0xFFFFFFFF


def _reduce(message: NDArray[np.uint8], scale: int) -> NDArray[np.uint8]:
    """The remainder by M(x^(8 scale)), which is at most 5685 `scale` bytes long; `message` is overwritten."""
    end = max(message.size - _DEGREE * scale, 0)
    # As far as no byte that is being moved is also moved to.
    step = (_DEGREE - _TAPS[0]) * scale
    for start in range(0, end, step):
        run = message[start : min(start + step, end)]
        for tap in _TAPS:
            to = start + (_DEGREE - tap) * scale
            message[to : to + run.size] ^= run
    return message[end:]


@cache
def _powers() -> NDArray[np.uint32]:
    """x^k modulo P for every bit of a last remainder, in the order of the message: the last is x^32."""
    powers = np.empty(8 * _DEGREE, np.uint32)
    power = _GENERATOR
    for i in reversed(range(powers.size)):
        powers[i] = power
        power = (power >> 1) ^ (_GENERATOR if power & 1 else 0)
    return powers
