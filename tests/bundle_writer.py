"""Writing TensorFlow's checkpoint format, correct or wrong in any part, which TensorFlow itself cannot do.

Written independently from the description of the format, so that the reader is not tested against itself.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

DT = {"f4": 1, "f8": 2, "i4": 3, "u1": 4, "i2": 5, "i1": 6, "i8": 9, "u2": 17, "f2": 19, "u4": 22, "u8": 23}
MAGIC = 0xDB4775248B80FB57


def plain_crc32c(data: bytes) -> int:
    """Compute a CRC byte by byte, with a table of 256 computed bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = (crc >> 8) ^ TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def _remainder(value: int) -> int:
    for _ in range(8):
        value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
    return value


TABLE = tuple(_remainder(byte) for byte in range(256))


def masked(data: bytes) -> int:
    crc = plain_crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    groups = []
    while value >= 128:
        groups.append(value & 127 | 128)
        value >>= 7
    return bytes([*groups, value])


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def message(field: int, value: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(value)) + value


def fixed32(field: int, value: int) -> bytes:
    return varint(field << 3 | 5) + value.to_bytes(4, "little")


def header(n_shards: int = 1, *, endianness: int = 0, min_consumer: int = 0) -> bytes:
    version = number(1, 1) + (number(2, min_consumer) if min_consumer else b"")
    return number(1, n_shards) + (number(2, endianness) if endianness else b"") + message(3, version)


def entry(
    shape: Iterable[int], data: bytes, *, dtype: int = 1, shard: int = 0, offset: int = 0, size: int | None = None
) -> bytes:
    sizes = b"".join(message(2, number(1, n)) for n in shape)
    return (
        number(1, dtype)
        + message(2, sizes)
        + (number(3, shard) if shard else b"")
        + (number(4, offset) if offset else b"")
        + number(5, len(data) if size is None else size)
        + fixed32(6, masked(data))
    )


def block(rows: Iterable[tuple[bytes, bytes]], *, kind: int = 0) -> bytes:
    """Return a block of entries without shared prefixes, with one restart point and the trailer."""
    body = b"".join(varint(0) + varint(len(key)) + varint(len(value)) + key + value for key, value in rows)
    return sealed(body + bytes(4) + (1).to_bytes(4, "little"), kind=kind)


def sealed(body: bytes, *, kind: int = 0) -> bytes:
    body += bytes([kind])
    return body + masked(body).to_bytes(4, "little")


def table(blocks: Iterable[bytes], *, gap: bytes = b"") -> bytes:
    """Return a table of finished blocks, with `gap` after each."""
    data, handles = b"", list[tuple[bytes, bytes]]()
    for one in blocks:
        handles.append((b"k%06d" % len(handles), varint(len(data)) + varint(len(one) - 5)))
        data += one + gap
    places = b""
    for one in (block([]), block(handles)):
        places += varint(len(data)) + varint(len(one) - 5)
        data += one
    return data + places.ljust(40, b"\0") + MAGIC.to_bytes(8, "little")


def write(folder: Path, tensors: Mapping[str, NDArray[Any]], *, per_block: int = 1000) -> Path:
    """Write a checkpoint with one data file, in the order of the names."""
    folder.mkdir(parents=True, exist_ok=True)
    rows, data = [(b"", header())], b""
    for name in sorted(tensors):
        array = np.asarray(tensors[name])
        raw = array.tobytes()
        rows.append((name.encode(), entry(array.shape, raw, dtype=DT[array.dtype.str[1:]], offset=len(data))))
        data += raw
    blocks = [block(rows[i : i + per_block]) for i in range(0, len(rows), per_block)]
    return write_parts(folder, table(blocks), data)


def write_parts(folder: Path, index: bytes, data: bytes = b"") -> Path:
    (folder / "model.ckpt.index").write_bytes(index)
    (folder / "model.ckpt.data-00000-of-00001").write_bytes(data)
    return folder / "model.ckpt"
