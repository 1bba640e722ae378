"""Checksum and finiteness of an object, computed while it arrives in pieces of any size."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lifl.core.errors import LocalFault
from lifl.core.schema import DTYPE_BYTES, Segment
from lifl.shm.checksum import (
    BLOCK_BYTES,
    FINITE_BLOCK_BYTES,
    Checksum,
    FiniteCheck,
    StreamChecksum,
    all_finite,
    checksum,
    first_not_finite,
)

FLOATS = ["float64", "float32", "float16", "bfloat16"]
LONGEST = 3 * BLOCK_BYTES + 100


def random_bytes(nbytes, seed=0):
    return np.random.default_rng(seed).integers(0, 256, nbytes, dtype=np.uint8)


def dtype_of(name):
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def reference(data):
    """The definition, in plain Python."""
    value = 1
    for begin in range(0, len(data), BLOCK_BYTES):
        block = data[begin : begin + BLOCK_BYTES].ljust(BLOCK_BYTES, b"\0")
        words = (int.from_bytes(block[i : i + 8], "little") for i in range(0, BLOCK_BYTES, 8))
        value = (value * 0x9E3779B97F4A7C15 + sum(words)) % 2**64
    return (value * 0x9E3779B97F4A7C15 + len(data)) % 2**64 or 1


@given(nbytes=st.integers(0, LONGEST), cuts=st.lists(st.integers(0, LONGEST), max_size=20))
@settings(max_examples=60, deadline=None)
def test_the_checksum_does_not_depend_on_how_the_data_was_cut(nbytes, cuts):
    whole = random_bytes(nbytes)
    arriving = np.full(nbytes, 0xEE, np.uint8)
    running = Checksum(memoryview(arriving))
    done = 0
    for cut in [c for c in sorted(cuts) if c <= nbytes]:
        arriving[done:cut] = whole[done:cut]
        done = cut
        running.advance(cut)
    arriving[done:] = whole[done:]
    assert running.finish() == checksum(whole.tobytes()) == reference(whole.tobytes())


@given(st.integers(0, LONGEST - 1), st.integers(1, 255))
@settings(max_examples=60, deadline=None)
def test_any_changed_byte_changes_the_checksum(place, flip):
    data = random_bytes(LONGEST)
    before = checksum(data.data)
    data[place] ^= flip
    assert checksum(data.data) != before


def test_blocks_that_change_places_change_the_checksum():
    """Catches a plain sum: the tensors of two clients, or two reads, swapped."""
    data = random_bytes(3 * BLOCK_BYTES).reshape(3, BLOCK_BYTES)
    orders = [[0, 1, 2], [1, 0, 2], [0, 2, 1]]
    assert len({checksum(data[order].tobytes()) for order in orders}) == 3


@pytest.mark.parametrize("nbytes", [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1])
def test_zeros_of_another_length_have_another_checksum(nbytes):
    assert checksum(bytes(nbytes)) != checksum(bytes(nbytes + 1))
    assert checksum(bytes(nbytes)) != 0


def test_a_checksum_ends_at_its_data_and_lets_go_of_it():
    data = bytearray(100)
    running = Checksum(memoryview(data))
    with pytest.raises(LocalFault):
        running.advance(101)
    running.finish()
    data.extend(b"x")
    for use in (running.finish, lambda: running.advance(1)):
        with pytest.raises(LocalFault):
            use()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@given(place=st.floats(0, 1, exclude_max=True), size=st.integers(1, 3 * FINITE_BLOCK_BYTES // 4))
@settings(max_examples=15, deadline=None)
def test_one_number_that_is_not_finite_is_found_wherever_it_is(dtype, bad, place, size):
    array = np.zeros(size, dtype_of(dtype))
    # The largest numbers of either sign are finite: their sum is not, and their bits are next to
    # infinity's.
    largest = ml_dtypes.finfo(array.dtype).max
    array[::2], array[1::2] = largest, -largest
    assert all_finite(array)
    array[int(place * size)] = bad
    assert first_not_finite(array) == int(place * size)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_pattern_of_two_bytes_is_judged_as_numpy_does(dtype):
    every = np.arange(1 << 16, dtype=np.uint16).view(dtype_of(dtype))
    with np.errstate(invalid="ignore"):
        finite = np.isfinite(every.astype(np.float64))
    for block, judged in zip(np.split(every, 1 << 10), np.split(finite, 1 << 10), strict=True):
        expected = np.flatnonzero(~judged)
        assert first_not_finite(block) == (int(expected[0]) if expected.size else None)


@pytest.mark.parametrize("dtype", [d for d in DTYPE_BYTES if "int" in d])
def test_integers_are_finite(dtype):
    assert all_finite(np.full(9, -1).astype(dtype))


SEGMENTS = (
    Segment("float64", 0, 1001),
    Segment("float32", 8064, 30_000),
    Segment("bfloat16", 128_064, 50_001),
    Segment("int64", 228_096, 20),
)
DATA_BYTES = 228_288


@given(
    segment=st.integers(0, 2),
    place=st.floats(0, 1, exclude_max=True),
    cuts=st.lists(st.integers(0, DATA_BYTES), max_size=12),
)
@settings(max_examples=60, deadline=None)
def test_the_check_on_arrival_names_the_element_whatever_the_cuts(segment, place, cuts):
    """What has not arrived is full of NaN: a check that looks ahead, or twice at half a number, fails."""
    dtype, offset, count = SEGMENTS[segment].dtype, SEGMENTS[segment].offset, SEGMENTS[segment].count
    element = int(place * count)
    whole = np.zeros(DATA_BYTES, np.uint8)
    whole[offset : offset + count * DTYPE_BYTES[dtype]].view(dtype_of(dtype))[element] = np.nan
    clean = np.zeros(DATA_BYTES, np.uint8)
    for data, expected in ((whole, (segment, element)), (clean, None)):
        arriving = np.full(DATA_BYTES, 0xFF, np.uint8)
        check = FiniteCheck(memoryview(arriving), SEGMENTS)
        done = 0
        for cut in [*sorted(cuts), DATA_BYTES]:
            arriving[done:cut] = data[done:cut]
            done = cut
            complete = cut >= offset + (element + 1) * DTYPE_BYTES[dtype]
            assert check.advance(cut) == (expected is None or not complete)
        assert check.found == expected


def test_segments_behind_the_data_are_refused():
    with pytest.raises(LocalFault):
        FiniteCheck(memoryview(bytes(100)), [Segment("float32", 0, 26)])


@given(st.lists(st.binary(max_size=300), max_size=8), st.integers(0, 3))
def test_the_checksum_of_pieces_is_that_of_all_of_them_in_a_row(pieces: list[bytes], blocks: int) -> None:
    pieces.insert(len(pieces) // 2, bytes(range(256)) * (BLOCK_BYTES * blocks // 256))
    stream = StreamChecksum()
    for piece in pieces:
        stream.update(piece)
    assert stream.finish() == checksum(b"".join(pieces))
