"""How a body is divided among connections, and that what comes in ranges is looked at as what comes from the front."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_ingest_check import COMPILED, LAYOUT, finite_data, numbers

from lifl.client.split import _between
from lifl.core import limits
from lifl.core.errors import LocalFault
from lifl.core.protocol.body_ranges import ALIGN_BYTES, SPLIT_BYTES_MIN, body_ranges, streams_for
from lifl.core.schema import Segment
from lifl.shm import ingest_check as module
from lifl.shm.checksum import BLOCK_BYTES, checksum, closed, joined
from lifl.shm.ingest_check import RangesCheck, check_of

COUNTS = range(1, limits.STREAMS_MAX + 1)


@settings(max_examples=200, deadline=None)
@given(nbytes=st.integers(SPLIT_BYTES_MIN, 1 << 42), count=st.sampled_from(COUNTS))
def test_ranges_are_all_of_a_body_one_after_the_other_and_none_is_empty(nbytes: int, count: int) -> None:
    ranges = body_ranges(nbytes, count)
    assert len(ranges) == count
    assert [begin for begin, _ in ranges] + [nbytes] == [0] + [end for _, end in ranges]
    assert all(begin < end and begin % ALIGN_BYTES == 0 for begin, end in ranges)
    assert max(end - begin for begin, end in ranges) <= nbytes / count + ALIGN_BYTES


def test_each_of_any_number_has_something_of_the_smallest_body() -> None:
    for nbytes in (SPLIT_BYTES_MIN, SPLIT_BYTES_MIN + 1, SPLIT_BYTES_MIN + ALIGN_BYTES + 1):
        assert all(begin < end for count in COUNTS for begin, end in body_ranges(nbytes, count))
    assert body_ranges(0, 1) == [(0, 0)] and body_ranges(1, 1) == [(0, 1)]


def test_a_block_of_the_checksum_is_in_one_range() -> None:
    assert ALIGN_BYTES % BLOCK_BYTES == 0


@pytest.mark.parametrize(
    ("setting", "cores", "secured", "streams"),
    [
        *((0, 1, True, 1), (0, 2, True, 1), (0, 3, True, 1), (0, 4, True, 2), (0, 8, True, 4), (0, 96, True, 4)),
        *((0, 96, False, 1), (1, 96, True, 1), (8, 1, False, 8), (3, 2, True, 3)),
    ],
)
def test_how_many_connections(setting: int, cores: int, secured: bool, streams: int) -> None:
    assert streams_for(setting, cores, secured) == streams


# ---- what comes in ranges --------------------------------------------------------------------------------------------


@pytest.fixture(params=["numpy", "compiled"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "numpy":
        monkeypatch.setattr(module, "COMPILED", None)
    elif COMPILED is None:
        pytest.skip("the compiled part was not built: no C compiler when LIFL was installed")


def looked_at(data: np.ndarray, count: int, segments: tuple[Segment, ...] = tuple(LAYOUT.segments)) -> RangesCheck:
    """The ranges arrive in turns, the last one first, each in pieces; what has not arrived is NaN."""
    arriving = np.full(data.size, 0xFF, np.uint8)
    looking = RangesCheck(memoryview(arriving), segments, count)
    at = [begin for begin, _ in body_ranges(data.size, count)]
    for share in (3, 2, 1):
        for number, (begin, end) in reversed(list(enumerate(body_ranges(data.size, count)))):
            until = at[number] + (end - at[number]) // share
            arriving[at[number] : until] = data[at[number] : until]
            at[number] = until
            looking.parts[number].advance(until - begin)
    return looking


@pytest.mark.parametrize("count", [2, 3, 7])
@pytest.mark.usefixtures("way")
def test_the_checksum_is_that_of_all(count: int) -> None:
    data = finite_data(count)
    looking = looked_at(data, count)
    assert looking.finish() == checksum(data)
    assert looking.found is None
    data[-1] ^= 1
    assert looked_at(data, count, ()).finish() == checksum(data)


@pytest.mark.parametrize("place", ["first", "last"])
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.usefixtures("way")
def test_a_number_that_is_not_finite_is_named_as_of_the_whole(dtype: str, place: str) -> None:
    data = finite_data(5)
    index = [segment.dtype for segment in LAYOUT.segments].index(dtype)
    element = 0 if place == "first" else LAYOUT.segments[index].count - 1
    numbers(data, LAYOUT.segments[index])[element] = np.inf
    looking = looked_at(data, 4)
    assert looking.finish() == checksum(data)
    assert looking.found == (index, element)


def test_over_one_connection_nothing_is_divided() -> None:
    check = check_of(memoryview(bytearray(100)), (), 1)
    assert not isinstance(check, RangesCheck) and list(check.parts) == [check]
    with pytest.raises(LocalFault, match="behind the 100"):
        RangesCheck(memoryview(bytearray(100)), [Segment("float32", 0, 26)], 2)


def test_a_checksum_of_two_parts_where_one_is_zero() -> None:
    """The one value of the polynomial that stands for another as a checksum."""
    whole = bytes(2 * BLOCK_BYTES + 5)
    value = 1
    for begin, end in ((0, BLOCK_BYTES), (BLOCK_BYTES, 2 * BLOCK_BYTES), (2 * BLOCK_BYTES, len(whole))):
        part = module.ingest_check(memoryview(bytearray(whole[begin:end])))
        value = joined(value, part.polynomial(), end - begin)
    assert closed(value, len(whole)) == checksum(whole)
    assert closed(0, 0) == 1


@settings(max_examples=100, deadline=None)
@given(lengths=st.lists(st.integers(0, 9), max_size=8), data=st.data())
def test_bytes_between_two_places_of_many_views(lengths: list[int], data: st.DataObject) -> None:
    whole = bytes(range(sum(lengths)))
    views, at = [], 0
    for length in lengths:
        views.append(memoryview(whole)[at : at + length])
        at += length
    begin = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(begin, len(whole)))
    assert b"".join(_between(views, begin, end)) == whole[begin:end]
