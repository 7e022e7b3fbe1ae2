"""Reading TensorFlow's checkpoint format (V2, "TensorBundle") with numpy alone.

A checkpoint `P` consists of a table `P.index` and data files such as `P.data-00000-of-00001` with the bytes of the
tensors. The values in the table are protocol buffers (tensorflow/core/protobuf/tensor_bundle.proto): a header under the
empty key, then one entry per tensor under its name.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gptclf.files.access import readable_size
from gptclf.files.crc32c import crc32c
from gptclf.files.leveldb_table import read_table, unmask, varint

_VERSION = 1  # the only version of the bundle format so far

# The indexes of GPT-2 have 7 to 30 kB. A forged index, or the keys expanded from it, must not take more than this.
_LARGEST_INDEX = 1 << 24
_MOST_DIMENSIONS = 32
_LARGEST_TENSOR = 1 << 48

# DataType in tensorflow/core/framework/types.proto: the supported types, then the names of the others for messages.
_DTYPES = {1: "f4", 2: "f8", 3: "i4", 4: "u1", 5: "i2", 6: "i1", 9: "i8", 17: "u2", 19: "f2", 22: "u4", 23: "u8"}
_STRING, _VARIANT = 7, 21
_UNREAD = {_STRING: "strings", 8: "complex64", 10: "booleans", 14: "bfloat16", 18: "complex128", _VARIANT: "variants"}

# Wire types of a protocol buffer; the fixed sizes are in bytes.
_VARINT, _MESSAGE, _FIXED_SIZES = 0, 2, {1: 8, 5: 4}

_PARTITIONED = "it is partitioned (saved in slices); save the variable whole"


class Entry(NamedTuple):
    """The location of a tensor: DataType number, shape, data file, offset and size in bytes, and CRC-32C checksum."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc: int


class Bundle(Mapping[str, NDArray[Any]]):
    """The tensors of a checkpoint by name, memory-mapped.

    Arrays are copy-on-write views of the files: writing to one changes memory, never a file.

    Attributes:
        entries: The entry of each tensor, in the order of the index (h0, h1, h10, h2, ...).
    """

    def __init__(self, entries: dict[str, Entry], files: Mapping[int, Path]) -> None:
        self.entries = entries
        self._files = files
        self._data: dict[int, NDArray[np.uint8]] = {}
        for shard, path in files.items():
            size = readable_size(path)
            _check_extent({name: entry for name, entry in entries.items() if entry.shard == shard}, size, path)
            # An empty file cannot be mapped.
            self._data[shard] = np.memmap(path, np.uint8, mode="c").view(np.ndarray) if size else np.empty(0, np.uint8)

    def __getitem__(self, name: str) -> NDArray[Any]:
        entry = self.entries[name]
        if entry.dtype not in _DTYPES:
            what = _UNREAD.get(entry.dtype, f"of TensorFlow's type {entry.dtype}")
            path = self._files[entry.shard]
            raise ValueError(f"{path}: tensor {name!r} is {what}; supported are integers and float16, 32 and 64")
        # Copied only if the tensor does not start at a multiple of its item size.
        return np.require(self._bytes(entry).view(f"<{_DTYPES[entry.dtype]}"), requirements="A").reshape(entry.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def verify(self) -> None:
        """Compare every tensor with its checksum, except strings and variants, which use another kind of checksum.

        Raises:
            ValueError: A checksum does not match; the message names the first such tensor.
        """
        for name, entry in self.entries.items():
            if entry.dtype not in (_STRING, _VARIANT) and crc32c(self._bytes(entry)) != entry.crc:
                path = self._files[entry.shard]
                raise ValueError(f"{path}: tensor {name!r} is damaged: its checksum does not match. Download it again")

    def _bytes(self, entry: Entry) -> NDArray[np.uint8]:
        return self._data[entry.shard][entry.offset : entry.offset + entry.size]


def open_bundle(prefix: Path, *, verify: bool = True) -> Bundle:
    """Open a checkpoint. Every byte of the index is always verified.

    Args:
        prefix: The common prefix of the file names, such as `124M/model.ckpt`.
        verify: Whether to compare the tensors with their checksums, which reads the data once.

    Raises:
        FileNotFoundError: The index or a data file is missing.
        ValueError: A file is damaged, truncated, or uses an unsupported part of the format (compression, big-endian
            numbers, partitioned variables). The message names the file and, if it applies, the tensor.
    """
    index = prefix.with_name(prefix.name + ".index")
    size = readable_size(index)
    try:
        if size > _LARGEST_INDEX:
            raise ValueError(f"it has {size:,} bytes; an index has at most {_LARGEST_INDEX:,}")
        n_shards, entries = _read_index(index.read_bytes())
    except ValueError as error:
        problem = f"{index} cannot be read as the index of a TensorFlow checkpoint: {error}"
        remedy = "It may be damaged, truncated or a git-lfs pointer to the real file; download it again"
        raise ValueError(f"{problem}. {remedy}") from error
    bundle = Bundle(entries, _data_files(prefix, n_shards, {entry.shard for entry in entries.values()}))
    if verify:
        bundle.verify()
    return bundle


def _data_files(prefix: Path, n_shards: int, used: set[int]) -> dict[int, Path]:
    # Shards that hold no tensor are not needed.
    files = {shard: prefix.with_name(f"{prefix.name}.data-{shard:05d}-of-{n_shards:05d}") for shard in sorted(used)}
    for path in files.values():
        if not path.exists():
            other = sorted(p.name for p in prefix.parent.iterdir() if p.name.startswith(f"{prefix.name}.data-"))
            message = f"{path} does not exist; {prefix.name}.index names {n_shards} data file{'s' * (n_shards > 1)}"
            if any(not name.endswith(f"-of-{n_shards:05d}") for name in other):
                raise ValueError(f"{message}, but the folder holds {', '.join(other[:4])}, of another checkpoint")
            raise FileNotFoundError(f"{message}. Download it")
    return files


def _check_extent(entries: Mapping[str, Entry], size: int, path: Path) -> None:
    """Check that every byte of a data file belongs to exactly one tensor, so that no damage goes unnoticed."""
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].offset, item[1].size)):
        if entry.offset != end:
            where = f"starts at byte {entry.offset:,}, but the previous one ends at byte {end:,}"
            raise ValueError(f"{path}: tensor {name!r} {where}")
        end += entry.size
        if end > size:
            where = f"ends at byte {end:,}, the file at {size:,}"
            raise ValueError(f"{path} is truncated: tensor {name!r} {where}; download it again")
    if end != size:
        raise ValueError(f"{path} has {size:,} bytes, but its tensors end at byte {end:,}; download it again")


def _read_index(data: bytes) -> tuple[int, dict[str, Entry]]:
    """Return the number of data files, and the entries in key order."""
    rows = read_table(data, largest=_LARGEST_INDEX)
    key, value = next(rows, (None, b""))
    if key != b"":
        raise ValueError("it has no header")
    header = _fields(value)
    n_shards, big_endian, version = _number(header, 1), _number(header, 2), _fields(header.get(3, [b""])[-1])
    if n_shards < 1:
        raise ValueError(f"its header counts {n_shards} data files")
    if big_endian:
        raise ValueError("its tensors are big-endian; gptclf reads little-endian checkpoints")
    if _number(version, 2) > _VERSION:
        raise ValueError(f"it needs a reader of format version {_number(version, 2)}; gptclf reads version {_VERSION}")
    entries = {}
    for key, value in rows:
        try:
            if key.startswith(b"\0"):  # the key of a slice
                raise ValueError(_PARTITIONED)
            name = key.decode("utf-8")
            entries[name] = _entry(value, n_shards)
        except ValueError as error:
            raise ValueError(f"tensor {key!r}: {error}") from error
    return n_shards, entries


def _entry(value: bytes, n_shards: int) -> Entry:
    fields = _fields(value)
    if 7 in fields:
        raise ValueError(_PARTITIONED)
    shape = _fields(fields.get(2, [b""])[-1])
    if _number(shape, 3):
        raise ValueError("it has no shape")
    dimensions = shape.get(2, [])
    if len(dimensions) > _MOST_DIMENSIONS:
        raise ValueError(f"it has {len(dimensions)} dimensions; at most {_MOST_DIMENSIONS} are supported")
    sizes = tuple(_number(_fields(dimension), 1) for dimension in dimensions)
    dtype, shard, offset, size, crc = (_number(fields, number) for number in (1, 3, 4, 5, 6))
    entry = Entry(dtype, sizes, shard, offset, size, unmask(crc))
    if min(entry.offset, entry.size, *sizes) < 0 or math.prod(max(n, 1) for n in sizes) > _LARGEST_TENSOR:
        raise ValueError(f"its shape {sizes}, size {entry.size} and offset {entry.offset} are impossible")
    if not 0 <= entry.shard < n_shards:
        raise ValueError(f"it is in data file {entry.shard}, but there are {n_shards}, counted from 0")
    if entry.dtype in _DTYPES and math.prod(sizes) * np.dtype(_DTYPES[entry.dtype]).itemsize != entry.size:
        raise ValueError(f"its shape {sizes} does not match its {entry.size} bytes of {np.dtype(_DTYPES[entry.dtype])}")
    return entry


def _fields(message: int | bytes) -> dict[int, list[int | bytes]]:
    """Return the values of a protocol buffer by field number, unknown fields included."""
    if isinstance(message, int):
        raise ValueError("it has a number where a message should be")
    fields: dict[int, list[int | bytes]] = {}
    at = 0
    while at < len(message):
        tag, at = varint(message, at)
        kind, value = tag & 7, _FIXED_SIZES.get(tag & 7, -1)
        if kind in (_VARINT, _MESSAGE):
            value, at = varint(message, at)
        if value < 0 or (kind != _VARINT and at + value > len(message)):
            raise ValueError("one of its fields is damaged or extends past the end")
        content = b"" if kind == _VARINT else message[at : at + value]
        at += len(content)
        number = int.from_bytes(content, "little") if kind in _FIXED_SIZES else value
        fields.setdefault(tag >> 3, []).append(content if kind == _MESSAGE else number)
    return fields


def _number(fields: Mapping[int, list[int | bytes]], number: int) -> int:
    """Return the value of a field as a signed 64-bit number; a missing field is 0."""
    value = fields.get(number, [0])[-1]
    if isinstance(value, bytes):
        raise ValueError(f"its field {number} is not a number")
    return value - (1 << 64) if value >> 63 else value
