"""CRC-32C (Castagnoli; RFC 3720, appendix B.4) in pure numpy, at memory speed.

A CRC is the remainder of the message, read as a polynomial over GF(2), by a generator P of degree 32. P divides

    M(x) = x^5685 + x^1362 + x^426 + 1

so the remainder by M has the same CRC, and reducing by M is three XORs of whole runs of bytes. Over GF(2) squaring
doubles every exponent (M(x)^2 = M(x^2)), so P also divides M(x^8), which moves single bytes, and M(x^16), M(x^32), ...,
which move runs of 2, 4, ... times the length. The last reduction leaves at most 5685 bytes, whose CRC is the sum of the
powers of x at which they have a bit.
"""

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

_GENERATOR = 0x82F63B78  # P without x^32; the lowest bit is x^31, as always in a reflected CRC
_DEGREE, *_TAPS = 5685, 1362, 426, 0
# First in runs of 69 kB: long enough to hide numpy's call overhead, short enough for a core's cache.
_SCALES = (16, 8, 4, 2, 1)
_CHUNK = 1 << 20

# A CRC starts from 32 ones. Starting from 0, these four bytes lead to that state; leading zeros change nothing.
_START = np.frombuffer(b"\x54\x64\x1f\x64", np.uint8)


def crc32c(data: bytes | NDArray[Any]) -> int:
    """Return the CRC-32C of some bytes.

    Args:
        data: Bytes, or a contiguous array, whose memory is read. Memory-mapped arrays are read in chunks of 1 MB.

    Example:
        >>> hex(crc32c(b"123456789"))
        '0xe3069283'
    """
    message = np.frombuffer(data, np.uint8)
    rest = _START
    for start in range(0, message.size, _CHUNK):
        rest = _reduce(np.concatenate([rest, message[start : start + _CHUNK]]), _SCALES[0])
    for scale in _SCALES[1:]:
        rest = _reduce(rest, scale)
    bits = np.unpackbits(rest, bitorder="little")
    return int(np.bitwise_xor.reduce(_powers()[-bits.size :] * bits)) ^ 0xFFFFFFFF


def _reduce(message: NDArray[np.uint8], scale: int) -> NDArray[np.uint8]:
    """Return the remainder by M(x^(8 scale)), at most 5685 * `scale` bytes long; `message` is overwritten."""
    end = max(message.size - _DEGREE * scale, 0)
    # The longest run whose source and target bytes do not overlap.
    step = (_DEGREE - _TAPS[0]) * scale
    for start in range(0, end, step):
        run = message[start : min(start + step, end)]
        for tap in _TAPS:
            to = start + (_DEGREE - tap) * scale
            message[to : to + run.size] ^= run
    return message[end:]


@cache
def _powers() -> NDArray[np.uint32]:
    """Return x^k modulo P for every bit of the last remainder, in message order: the last entry is x^32."""
    powers = np.empty(8 * _DEGREE, np.uint32)
    power = _GENERATOR
    for i in reversed(range(powers.size)):
        powers[i] = power
        power = (power >> 1) ^ (_GENERATOR if power & 1 else 0)
    return powers
