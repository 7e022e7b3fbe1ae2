"""Reading a table of sorted keys in LevelDB's file format, which TensorFlow uses for checkpoint indexes.

A table has blocks of keys and values, an index of the blocks and a footer (tensorflow/core/lib/io/format.h; LevelDB,
doc/table_format.md). Every byte of the file is covered by a checksum or compared with its expected value.
"""

from collections.abc import Iterator

from gptclf.files.crc32c import crc32c

_FOOTER = 48
MAGIC = 0xDB4775248B80FB57
_TRAILER = 5  # after a block: one byte for the compression, then a checksum over the block and that byte


def read_table(data: bytes, *, largest: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values of a table, in order.

    Args:
        data: The content of the file.
        largest: The maximum total size of the keys in bytes. Keys are stored as differences from the previous key, so
            a small file could expand to any size.

    Raises:
        ValueError: The file is damaged, truncated or compressed.
    """
    if len(data) < _FOOTER:
        raise ValueError(f"it has {len(data)} bytes; the footer alone has {_FOOTER}")
    footer = data[-_FOOTER:]
    if int.from_bytes(footer[-8:], "little") != MAGIC:
        raise ValueError("it does not end with the magic number of a table")
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
            raise ValueError(f"it has a block at byte {offset}; the next one should start at byte {end}")
        end = offset + size + _TRAILER
    if end != len(data) - _FOOTER:
        raise ValueError(f"its blocks end at byte {end}, but its footer starts at byte {len(data) - _FOOTER}")
    _block(data, *meta)
    last, unfolded = None, 0
    for handle in blocks:
        for key, value in _rows(_block(data, *handle)):
            unfolded += len(key)
            if unfolded > largest:
                raise ValueError(f"its keys take more than {largest:,} bytes")
            if last is not None and key <= last:
                raise ValueError(f"key {key!r} follows {last!r}: the keys are repeated or out of order")
            last = key
            yield key, value


def _handle(data: bytes, at: int) -> tuple[tuple[int, int], int]:
    """Return the offset and size of a block, and the position of the next item."""
    offset, at = varint(data, at)
    size, at = varint(data, at)
    return (offset, size), at


def _block(data: bytes, offset: int, size: int) -> bytes:
    """Return the entries of a block, verified, without the restart points (which are only needed for searching)."""
    end = offset + size + _TRAILER
    if end > len(data) - _FOOTER or size < 4:
        raise ValueError(f"a block of {size} bytes at byte {offset} does not fit into it")
    if crc32c(data[offset : end - 4]) != unmask(int.from_bytes(data[end - 4 : end], "little")):
        raise ValueError(f"the checksum of its block at byte {offset} does not match")
    if data[end - _TRAILER]:
        raise ValueError(f"its blocks are compressed (type {data[end - _TRAILER]}); TensorFlow's own are not")
    restarts = 4 * (1 + int.from_bytes(data[offset + size - 4 : offset + size], "little"))
    if restarts > size:
        raise ValueError(f"the restart points of its block at byte {offset} do not fit into the block")
    return data[offset : offset + size - restarts]


def _rows(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield keys and values; each key is stored with the length of the prefix it shares with the previous key."""
    at, key = 0, b""
    while at < len(block):
        shared, at = varint(block, at)
        own, at = varint(block, at)
        length, at = varint(block, at)
        if shared > len(key) or at + own + length > len(block):
            raise ValueError("one of its keys extends past the end of its block")
        key = key[:shared] + block[at : at + own]
        yield key, block[at + own : at + own + length]
        at += own + length


def varint(data: bytes, at: int) -> tuple[int, int]:
    r"""Decode a number below 2^64, stored as groups of seven bits, lowest first.

    Returns:
        The number, and the position of the next item.

    Example:
        >>> varint(b"\xac\x02", 0)
        (300, 2)
    """
    value = 0
    for i, byte in enumerate(data[at : at + 10]):
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            # Only the shortest encoding is accepted: a flipped bit could otherwise add a group that changes nothing.
            if (i and not byte) or value >> 64:
                break
            return value, at + i + 1
    raise ValueError("one of its numbers is damaged or extends past the end")


def unmask(crc: int) -> int:
    """Return the original checksum; both formats store it rotated, with a constant added."""
    crc = (crc - 0xA282EAD8) & 0xFFFFFFFF
    return (crc >> 17) | (crc << 15) & 0xFFFFFFFF
