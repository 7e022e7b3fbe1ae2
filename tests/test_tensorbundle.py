"""TensorFlow checkpoints, written by TensorFlow itself, and by hand if they must be wrong."""

import importlib.util
import shutil
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import bundle_writer as by_hand
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gptclf.files.crc32c import crc32c
from gptclf.files.leveldb_table import read_table, varint
from gptclf.files.tensorbundle import open_bundle

DATA = Path(__file__).parent / "data" / "tf_gpt2"
INDEX = (DATA / "whole" / "model.ckpt.index").read_bytes()
one_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def values() -> dict[str, NDArray[np.float32]]:
    with np.load(DATA / "values.npz") as file:
        return {name: file[name] for name in file.files}


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A copy of TensorFlow's checkpoint, to be damaged."""
    shutil.copytree(DATA / "whole", tmp_path / "whole")
    return tmp_path / "whole" / "model.ckpt"


def data_file(prefix: Path) -> Path:
    return prefix.with_name("model.ckpt.data-00000-of-00001")


def index_file(prefix: Path) -> Path:
    return prefix.with_name("model.ckpt.index")


def flip(path: Path, byte: int, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(byte)
        old = file.read(1)[0]
        file.seek(byte)
        file.write(bytes([old ^ 1 << bit]))


# Checksums.


@pytest.mark.parametrize(
    ("data", "crc"),
    [
        (b"", 0),
        (b"a", 0xC1D04330),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(reversed(range(32))), 0x113FDB5C),
    ],
)
def test_crc32c_of_the_published_examples(data: bytes, crc: int) -> None:
    assert crc32c(data) == crc
    assert by_hand.plain_crc32c(data) == crc


def bit_by_bit(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


@given(st.binary(max_size=300))
def test_crc32c_of_anything_short(data: bytes) -> None:
    assert crc32c(data) == bit_by_bit(data)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 30_000), st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 3, 4]))
def test_crc32c_of_anything_longer(size: int, seed: int, zeros: int) -> None:
    data = bytes(zeros) + np.random.default_rng(seed).bytes(size)
    assert crc32c(data) == by_hand.plain_crc32c(data)


# Sizes around the remainder of a reduction, around a reduction of the largest scale, and around whole chunks.
@pytest.mark.parametrize("size", [5681, 5682, 90_955, 90_956, 90_957, 2**20 - 1, 2**20, 2**20 + 1, 2_500_001])
def test_crc32c_where_its_pieces_meet(size: int) -> None:
    data = np.random.default_rng(size).bytes(size)
    assert crc32c(data) == crc32c(np.frombuffer(data, np.uint8)) == by_hand.plain_crc32c(data)


def test_crc32c_leaves_its_input_alone_and_reads_any_array_of_numbers() -> None:
    array = np.random.default_rng(0).standard_normal(400_000)
    before = array.copy()
    assert crc32c(array) == crc32c(array.tobytes())
    assert np.array_equal(array, before)


def test_crc32c_is_fast_enough_for_half_a_gigabyte() -> None:
    data = np.zeros(64_000_000, np.uint8)
    crc32c(data[:100])
    start = time.perf_counter()
    crc32c(data)
    # A hundredth of a second on an idle core; half a gigabyte must take less than six.
    assert time.perf_counter() - start < 0.7


# Checkpoints that TensorFlow wrote.


@pytest.mark.parametrize("kind", ["whole", "sharded"])
@pytest.mark.parametrize("verify", [True, False])
def test_every_tensor_is_bit_equal(kind: str, verify: bool) -> None:
    bundle, expected = open_bundle(DATA / kind / "model.ckpt", verify=verify), values()
    assert list(bundle) == sorted(expected)
    assert len(bundle) == len(expected)
    for name, array in bundle.items():
        assert array.dtype == np.float32
        assert array.shape == expected[name].shape
        assert array.tobytes() == expected[name].tobytes(), name


def test_several_data_files_are_used() -> None:
    entries = open_bundle(DATA / "sharded" / "model.ckpt").entries
    assert {entry.shard for entry in entries.values()} == {0, 1, 2}


def test_writing_to_an_array_leaves_the_file_alone(whole: Path) -> None:
    before = data_file(whole).read_bytes()
    bundle = open_bundle(whole)
    bundle["model/wte"][:] = 0
    assert data_file(whole).read_bytes() == before
    assert open_bundle(whole)["model/wte"].any()


def test_an_unknown_name_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        open_bundle(DATA / "whole" / "model.ckpt")["model/h99/ln_1/g"]


# Damage.


def test_every_flipped_byte_of_the_index_is_noticed(whole: Path) -> None:
    for byte in range(len(INDEX)):
        flip(index_file(whole), byte, byte % 8)
        with pytest.raises(ValueError, match=r"model\.ckpt\.index cannot be read"):
            open_bundle(whole, verify=False)
        flip(index_file(whole), byte, byte % 8)
    open_bundle(whole)


def test_every_flipped_bit_of_the_footer_is_noticed(whole: Path) -> None:
    for byte in range(len(INDEX) - 48, len(INDEX)):
        for bit in range(8):
            flip(index_file(whole), byte, bit)
            with pytest.raises(ValueError, match=r"model\.ckpt\.index cannot be read"):
                open_bundle(whole, verify=False)
            flip(index_file(whole), byte, bit)


def test_any_cut_of_the_index_is_noticed(whole: Path) -> None:
    for size in [*range(0, len(INDEX), 11), *range(len(INDEX) - 60, len(INDEX))]:
        index_file(whole).write_bytes(INDEX[:size])
        with pytest.raises(ValueError, match=r"model\.ckpt\.index cannot be read"):
            open_bundle(whole, verify=False)


@one_folder
@given(st.integers(0, len(INDEX) - 1), st.binary(min_size=1, max_size=30))
def test_no_piece_of_the_index_can_be_replaced(whole: Path, at: int, piece: bytes) -> None:
    changed = INDEX[:at] + piece + INDEX[at + len(piece) :]
    index_file(whole).write_bytes(changed)
    if changed != INDEX:
        with pytest.raises(ValueError, match=r"model\.ckpt\.index cannot be read"):
            open_bundle(whole)


@one_folder
@given(st.integers(0, 15_135), st.integers(0, 7))
def test_a_flipped_bit_of_the_data_is_noticed_and_named(whole: Path, byte: int, bit: int) -> None:
    bundle = open_bundle(whole)
    hit = next(name for name, e in bundle.entries.items() if e.offset <= byte < e.offset + e.size)
    flip(data_file(whole), byte, bit)
    try:
        with pytest.raises(ValueError, match=rf"data-00000-of-00001: tensor '{hit}' is damaged"):
            open_bundle(whole)
        assert len(open_bundle(whole, verify=False)) == len(bundle)
    finally:
        flip(data_file(whole), byte, bit)


@pytest.mark.parametrize("lost", [1, 100, 15_136])
def test_a_data_file_that_is_cut_off_names_the_first_tensor_that_is_not_whole(whole: Path, lost: int) -> None:
    entries = open_bundle(whole).entries
    size = data_file(whole).stat().st_size - lost
    first = next(name for name, e in entries.items() if e.offset + e.size > size)
    data_file(whole).write_bytes(data_file(whole).read_bytes()[:size])
    with pytest.raises(ValueError, match=rf"data-00000-of-00001 is truncated: tensor '{first}'"):
        open_bundle(whole, verify=False)


def test_a_data_file_with_more_than_its_tensors(whole: Path) -> None:
    with data_file(whole).open("ab") as file:
        file.write(b"\0")
    with pytest.raises(ValueError, match="has 15,137 bytes, but its tensors end at byte 15,136"):
        open_bundle(whole, verify=False)


def test_missing_files(whole: Path) -> None:
    data_file(whole).unlink()
    with pytest.raises(FileNotFoundError, match=r"data-00000-of-00001 does not exist"):
        open_bundle(whole)
    data_file(whole).with_name("model.ckpt.data-00000-of-00002").write_bytes(b"")
    with pytest.raises(ValueError, match=r"names 1 data file, but the folder holds model\.ckpt\.data-00000-of-00002"):
        open_bundle(whole)
    index_file(whole).unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.ckpt\.index does not exist"):
        open_bundle(whole)


# Checkpoints written by hand: types and shapes, and what is wrong under good checksums.

ODD: dict[str, NDArray[Any]] = {
    "b": np.arange(3, dtype=np.uint8),  # the next tensor does not start at a multiple of 4
    "double": np.array([[1.5], [-0.0]]),
    "empty": np.empty((0, 4), np.float32),
    "global_step": np.array(2**40, np.int64),
    "half": np.array([1, 65504], np.float16),
    "int": np.array([[-1, 2]], np.int32),
    "single": np.array([np.nan, np.inf], np.float32),
}


@pytest.mark.parametrize("per_block", [1, 3, 100])
def test_types_shapes_and_several_blocks(tmp_path: Path, per_block: int) -> None:
    bundle = open_bundle(by_hand.write(tmp_path, ODD, per_block=per_block))
    assert list(bundle) == sorted(ODD)
    for name, array in bundle.items():
        assert (array.dtype, array.shape) == (ODD[name].dtype, ODD[name].shape)
        assert array.tobytes() == ODD[name].tobytes()
        assert array.flags.aligned
        assert array.flags.writeable


def test_no_tensors_and_no_bytes(tmp_path: Path) -> None:
    assert len(open_bundle(by_hand.write(tmp_path / "none", {}))) == 0
    bundle = open_bundle(by_hand.write(tmp_path / "empty", {"empty": ODD["empty"]}))
    assert bundle["empty"].shape == (0, 4)


def test_a_type_that_is_not_read_is_refused_when_it_is_asked_for(tmp_path: Path) -> None:
    rows = [
        (b"", by_hand.header()),
        (b"brain", by_hand.entry([2], b"1234", dtype=14)),
        (b"good", by_hand.entry([1], b"\0\0\x80?", offset=4)),
        # TensorFlow's checksum of strings also covers their lengths, so it is not that of the bytes.
        (b"graph", by_hand.entry([], b"other bytes", dtype=7, offset=8, size=9)),
        (b"later", by_hand.entry([1], b"x", dtype=99, offset=17)),
    ]
    prefix = by_hand.write_parts(tmp_path, by_hand.table([by_hand.block(rows)]), b"1234\0\0\x80?any bytesx")
    bundle = open_bundle(prefix)
    assert bundle["good"] == 1
    for name, what in (("brain", "bfloat16"), ("graph", "strings"), ("later", "of TensorFlow's type 99")):
        with pytest.raises(ValueError, match=f"tensor '{name}' is {what}"):
            bundle[name]
    flip(data_file(prefix), 0, 0)
    with pytest.raises(ValueError, match="tensor 'brain' is damaged"):
        open_bundle(prefix)


def one(value: bytes, header: bytes = by_hand.header(), name: bytes = b"x") -> bytes:
    return by_hand.table([by_hand.block([(b"", header), (name, value)])])


HEAD = (b"", by_hand.header())
GOOD = by_hand.entry([2], b"12345678")
PARTITIONED = GOOD + by_hand.message(7, b"")
BOMB = b"".join(
    by_hand.varint(n) + by_hand.varint(step) + by_hand.varint(0) + b"a" * step
    for n, step in [(0, 60_000), *((60_000 + i, 1) for i in range(300))]
)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (one(GOOD, by_hand.header(endianness=1)), "big-endian"),
        (one(GOOD, by_hand.header(0)), "counts 0 data files"),
        (one(GOOD, by_hand.header(-1)), "counts -1 data files"),
        (one(GOOD, b""), "counts 0 data files"),
        (one(GOOD, by_hand.header(3)), "names 3 data files, but the folder holds"),
        (one(GOOD, by_hand.header(min_consumer=2)), "needs a reader of format version 2"),
        (by_hand.table([by_hand.block([(b"x", GOOD)])]), "no header"),
        (by_hand.table([]), "no header"),
        (one(PARTITIONED), "tensor b'x': it is partitioned"),
        # TensorFlow's key for the first two rows of a variable "v" of four.
        (one(GOOD, name=b"\0v\0\x01\x01\x02\x80\x82\x80\x7f"), "v.*it is partitioned"),
        (one(GOOD, name=b"\xff"), r"tensor b'\\xff'"),
        (one(by_hand.entry([2], b"12345678", shard=1)), "'x'.*data file 1, but there are 1"),
        (one(by_hand.entry([2], b"12345678", shard=-1)), "'x'.*data file -1"),
        (one(by_hand.entry([2], b"12345678", offset=-8)), "'x'.*offset -8"),
        (one(by_hand.entry([2], b"12345678", offset=4)), "'x' starts at byte 4, but the previous one ends at byte 0"),
        (one(by_hand.entry([2], b"12345678", offset=2**62)), "'x' starts at byte"),
        (one(by_hand.entry([2], b"12345678", size=-8)), "'x'.*size -8"),
        (one(by_hand.entry([2], b"12345678", size=2**40)), "'x'.*does not match its"),
        (one(by_hand.entry([2], b"12345678", dtype=14, size=2**40)), "truncated: tensor 'x'"),
        (one(by_hand.entry([3], b"12345678")), "'x'.*does not match its 8 bytes of float32"),
        (one(by_hand.entry([-1, -2], b"12345678")), r"'x'.*shape \(-1, -2\).*impossible"),
        (one(by_hand.entry([0, 2**62, 2**62], b"")), "'x'.*shape.*impossible"),
        (one(by_hand.entry([1] * 33, b"1234")), "'x'.*33 dimensions"),
        (one(by_hand.number(2, 5)), "'x'.*a number where a message should be"),
        (one(by_hand.message(2, by_hand.number(2, 5))), "'x'.*a number where a message should be"),
        (one(by_hand.message(1, b"1")), "'x'.*field 1 is not a number"),
        (one(by_hand.message(2, by_hand.number(3, 1))), "'x'.*no shape"),
        (one(b"\x08"), "'x'.*extends past the end"),
        (one(b"\x08" + b"\x80" * 10 + b"\x01"), "'x'.*extends past the end"),
        (one(b"\x08\x80\x00"), "'x'.*damaged"),
        (one(b"\x35\x00"), "'x'.*extends past the end"),
        (one(b"\x3a\x7f"), "'x'.*extends past the end"),
        (one(b"\x0b"), "'x'.*damaged"),
        (by_hand.table([by_hand.block([HEAD], kind=1)]), "compressed"),
        (by_hand.table([by_hand.block([HEAD, (b"x", GOOD), (b"x", GOOD)])]), "b'x' follows b'x'"),
        (by_hand.table([by_hand.block([HEAD, (b"y", GOOD), (b"x", GOOD)])]), "b'x' follows b'y'"),
        (
            by_hand.table([by_hand.sealed(b"\x01\x01\x00a" + bytes(3) + b"\0" + b"\1\0\0\0")]),
            "keys extends past the end of its block",
        ),
        (
            by_hand.table([by_hand.sealed(b"\0\x7f\0" + bytes(4) + b"\1\0\0\0")]),
            "keys extends past the end of its block",
        ),
        (by_hand.table([by_hand.sealed(b"\xff\xff\xff\xff")]), "restart points of its block"),
        (by_hand.table([by_hand.sealed(b"\0")]), "a block of .* does not fit"),
        (by_hand.table([by_hand.block([HEAD]) + b"idle"]), "checksum of its block"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, index: bytes, message: str) -> None:
    prefix = by_hand.write_parts(tmp_path, index, b"12345678")
    with pytest.raises(ValueError, match=f"(?s)model.ckpt.*{message}"):
        open_bundle(prefix)


def test_tensors_that_share_bytes(tmp_path: Path) -> None:
    rows = [HEAD, (b"x", GOOD), (b"y", GOOD)]
    prefix = by_hand.write_parts(tmp_path, by_hand.table([by_hand.block(rows)]), b"12345678")
    with pytest.raises(ValueError, match="tensor 'y' starts at byte 0, but the previous one ends at byte 8"):
        open_bundle(prefix)


def test_keys_that_unfold_beyond_measure() -> None:
    table = by_hand.table([by_hand.sealed(BOMB + bytes(4) + b"\1\0\0\0")])
    with pytest.raises(ValueError, match="keys take more than 1,000,000 bytes"):
        list(read_table(table, largest=1_000_000))


def test_an_index_of_absurd_size_is_not_read(tmp_path: Path) -> None:
    prefix = by_hand.write_parts(tmp_path, b"")
    with index_file(prefix).open("r+b") as file:
        file.truncate(2**40)
    with pytest.raises(ValueError, match="it has 1,099,511,627,776 bytes"):
        open_bundle(prefix)


@pytest.mark.parametrize("gap", [b"\0", b"x"])
def test_bytes_between_the_blocks_of_an_index(tmp_path: Path, gap: bytes) -> None:
    good = one(GOOD)
    with pytest.raises(ValueError, match="its blocks end at byte"):
        open_bundle(by_hand.write_parts(tmp_path, good[:-48] + gap + good[-48:], b"12345678"))
    with pytest.raises(ValueError, match="it has a block at byte"):
        open_bundle(by_hand.write_parts(tmp_path, by_hand.table([by_hand.block([HEAD])], gap=gap)))


junk = st.binary(max_size=60)
fields = st.lists(
    st.builds(by_hand.number, st.integers(0, 8), st.integers(-(2**63), 2**64 - 1) | st.integers(0, 20))
    | st.builds(by_hand.message, st.integers(0, 8), junk)
    | st.builds(by_hand.fixed32, st.integers(0, 8), st.integers(0, 2**32 - 1))
).map(b"".join)


@one_folder
@given(st.lists(st.tuples(junk, junk | fields | st.just(GOOD)), max_size=4), junk | fields)
def test_nonsense_under_good_checksums_is_a_value_error(tmp_path: Path, rows: list[Any], head: bytes) -> None:
    open_or_refuse(tmp_path, by_hand.table([by_hand.block([HEAD, *sorted(rows)])]))
    open_or_refuse(tmp_path, by_hand.table([by_hand.block([(b"", head), *rows])]))


@one_folder
@given(st.lists(junk, max_size=3), st.binary(min_size=40, max_size=40))
def test_nonsense_for_blocks_and_footers_is_a_value_error(tmp_path: Path, bodies: list[bytes], places: bytes) -> None:
    table = by_hand.table([by_hand.sealed(body) for body in bodies])
    open_or_refuse(tmp_path, table)
    open_or_refuse(tmp_path, table[:-48] + places + table[-8:])


def open_or_refuse(folder: Path, index: bytes) -> None:
    prefix = by_hand.write_parts(folder, index, b"12345678")
    message = "model.ckpt"
    try:
        bundle = open_bundle(prefix)
        for name in bundle:
            assert bundle[name].size <= 8
    except (ValueError, FileNotFoundError) as error:
        message = str(error)
    assert "model.ckpt" in message


@given(st.integers(0, 2**64 - 1), st.binary(max_size=4))
def test_numbers_of_every_length(value: int, after: bytes) -> None:
    assert varint(by_hand.varint(value) + after, 0) == (value, len(by_hand.varint(value)))


# Fresh checkpoints, if TensorFlow is installed.


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_tf_checkpoint", DATA.parent / "make_tf_checkpoint.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tensorflow() -> Any:
    return pytest.importorskip("tensorflow")


@pytest.mark.slow
def test_fresh_checkpoints_of_every_type_and_of_many_blocks(tmp_path: Path, maker: ModuleType, tensorflow: Any) -> None:
    rng = np.random.default_rng(5)
    tensors = {
        # Enough tensors for an index of several blocks.
        f"{'scope/' * 20}{i}": rng.integers(-100, 100, rng.integers(0, 4, i % 4)).astype(
            ["f4", "f8", "i4", "u1", "i2", "i1", "i8", "f2"][i % 8]
        )
        for i in range(9000)
    }
    for shards in (1, 3):
        folder = tmp_path / str(shards)
        folder.mkdir()
        maker.save_sharded(tensorflow, tensors, folder, shards)
        bundle = open_bundle(folder / "model.ckpt")
        assert set(bundle) == set(tensors)
        for name, array in bundle.items():
            assert (array.dtype, array.shape) == (tensors[name].dtype, tensors[name].shape)
            assert array.tobytes() == tensors[name].tobytes()


@pytest.mark.slow
def test_a_fresh_checkpoint_of_full_size(tmp_path: Path, maker: ModuleType, tensorflow: Any) -> None:
    tensors = maker.draw({"n_vocab": 50257, "n_ctx": 1024, "n_embd": 768, "n_layer": 12}, seed=1)
    maker.save_whole(tensorflow, tensors, tmp_path)
    for verify, limit in ((False, 0.5), (True, 6.0)):
        start = time.perf_counter()
        bundle = open_bundle(tmp_path / "model.ckpt", verify=verify)
        assert time.perf_counter() - start < limit
    assert set(bundle) == set(tensors)
    assert all(np.array_equal(bundle[name].view(np.uint32), tensors[name].view(np.uint32)) for name in bundle)
