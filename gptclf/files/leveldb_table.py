"""Reads a table of sorted keys: the file format of LevelDB that TensorFlow's checkpoint indexes have.

Blocks of keys and values, an index of the blocks, a footer (tensorflow/core/lib/io/format.h; LevelDB,
doc/table_format.md). Every byte of the file is under a checksum or is compared with what it must be.
"""

from collections.abc import Iterator

from gptclf.files.crc32c import crc32c

_FOOTER = 48
MAGIC = 0xDB4775248B80FB57
_TRAILER = 5  # after a block: its kind of compression, then a checksum over both


def read_table(data: bytes, *, largest: int) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a table, in order.

    Args:
        data: The whole file.
        largest: Bytes that all keys may have together: they are stored by what differs from the key before, so a small
            file can unfold to any size.

    Raises:
        ValueError: The file is damaged, cut off or compressed.
    """
    if len(data) < _FOOTER:
        raise ValueError(f"it has {len(data)} bytes, fewer than the {_FOOTER} of its footer")
    footer = data[-_FOOTER:]
    if int.from_bytes(footer[-8:], "little") != MAGIC:
        raise ValueError("it does not end in the mark of a table")
    meta, at = _handle(footer[:-8], 0)
    index, at = _handle(footer[:-8], at)
    if any(footer[at:-8]):
        raise ValueError("its footer is damaged")
    blocks = []
    for _, value in _rows(_block(data, *index)):
        handle, at = _handle(value, 0)
        if at != len(value):
            raise ValueError("its list of blocks is damaged")
        blocks.append(handle)
    end = 0
    for offset, size in [*blocks, meta, index]:
        if offset != end:
            raise ValueError(f"it has a block at byte {offset}, where byte {end} comes next")
        end = offset + size + _TRAILER
    if end != len(data) - _FOOTER:
        raise ValueError(f"its blocks end at byte {end}, its footer starts at {len(data) - _FOOTER}")
    _block(data, *meta)
    last, unfolded = None, 0
    for handle in blocks:
        for key, value in _rows(_block(data, *handle)):
            unfolded += len(key)
            if unfolded > largest:
                raise ValueError(f"its keys take more than {largest:,} bytes")
            if last is not None and key <= last:
                raise ValueError(f"key {key!r} comes after {last!r}: twice, or out of order")
            last = key
            yield key, value


def _handle(data: bytes, at: int) -> tuple[tuple[int, int], int]:
    """A block's first byte and size, and where the next item starts."""
    offset, at = varint(data, at)
    size, at = varint(data, at)
    return (offset, size), at


def _block(data: bytes, offset: int, size: int) -> bytes:
    """The entries of a block, checked, without the restart points that serve searching."""
    end = offset + size + _TRAILER
    if end > len(data) - _FOOTER or size < 4:
        raise ValueError(f"it has no room for a block of {size} bytes at byte {offset}")
    if crc32c(data[offset : end - 4]) != unmask(int.from_bytes(data[end - 4 : end], "little")):
        raise ValueError(f"the checksum of its block at byte {offset} differs")
    if data[end - _TRAILER]:
        raise ValueError(f"its blocks are compressed (kind {data[end - _TRAILER]}); TensorFlow's own are not")
    restarts = 4 * (1 + int.from_bytes(data[offset + size - 4 : offset + size], "little"))
    if restarts > size:
        raise ValueError(f"its block at byte {offset} has no room for its restart points")
    return data[offset : offset + size - restarts]


def _rows(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values; a key gives the length of the beginning that it shares with the key before it."""
    at, key = 0, b""
    while at < len(block):
        shared, at = varint(block, at)
        own, at = varint(block, at)
        length, at = varint(block, at)
        if shared > len(key) or at + own + length > len(block):
            raise ValueError("one of its keys runs over the end")
        key = key[:shared] + block[at : at + own]
        yield key, block[at + own : at + own + length]
        at += own + length


def varint(data: bytes, at: int) -> tuple[int, int]:
    r"""A number below 2^64 in groups of seven bits, lowest first, and where the next item starts.

    Example:
        >>> varint(b"\xac\x02", 0)
        (300, 2)
    """
    value = 0
    for i, byte in enumerate(data[at : at + 10]):
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            # One way to write each number, or a flipped bit could turn padding into an idle group.
            if (i and not byte) or value >> 64:
                break
            return value, at + i + 1
    raise ValueError("one of its numbers is damaged or runs over the end")


def unmask(crc: int) -> int:
    """A checksum as it was computed; both formats store it rotated and shifted by a constant."""
    crc = (crc - 0xA282EAD8) & 0xFFFFFFFF
    return (crc >> 17) | (crc << 15) & 0xFFFFFFFF
