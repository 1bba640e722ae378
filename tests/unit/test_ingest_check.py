"""What arrives is looked at in the same way by the compiled part and by NumPy, and received by both."""

from __future__ import annotations

import socket
from importlib.machinery import ModuleSpec

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lifl.core.errors import LocalFault
from lifl.core.schema import DTYPE_BYTES, Layout, Segment, TensorSpec
from lifl.shm import ingest_check as module
from lifl.shm.checksum import BLOCK_BYTES, checksum
from lifl.shm.ingest_check import COMPILED, CompiledIngestCheck, IngestCheck

LAYOUT = Layout(
    [
        TensorSpec("a", "float64", (10_001,)),
        TensorSpec("b", "float32", (3 * BLOCK_BYTES // 4,)),
        TensorSpec("c", "float16", (50_001,)),
        TensorSpec("d", "bfloat16", (40_003,)),
        TensorSpec("e", "int64", (BLOCK_BYTES // 8 + 7,)),
        TensorSpec("f", "uint8", (77,)),
    ]
)
FLOATS = [s for s in LAYOUT.segments if "float" in s.dtype]


@pytest.fixture(params=["numpy", "compiled"])
def make(request):
    """Makes an ingest check in one of both ways."""
    if request.param == "numpy":
        return IngestCheck
    return compiled


def compiled(data, segments=()):
    if COMPILED is None:
        pytest.skip("the compiled part was not built: no C compiler when LIFL was installed")
    return CompiledIngestCheck(COMPILED, data, segments)


def dtype_of(name):
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def numbers(data, segment):
    end = segment.offset + segment.count * DTYPE_BYTES[segment.dtype]
    return data[segment.offset : end].view(dtype_of(segment.dtype))


def finite_data(seed):
    """Any finite numbers, the largest among them; between the segments and in integers only ones, which as floats
    are NaN."""
    data = np.full(LAYOUT.data_bytes, 0xFF, np.uint8)
    random = np.random.default_rng(seed)
    for segment in FLOATS:
        values = numbers(data, segment)
        info = ml_dtypes.finfo(values.dtype)
        values[:] = random.standard_normal(segment.count).astype(values.dtype)
        values[random.integers(0, segment.count, 50)] = info.max
        values[random.integers(0, segment.count, 50)] = info.min
        values[random.integers(0, segment.count, 50)] = info.smallest_subnormal
    return data


def feed(make, data, cuts):
    """The bytes arrive in pieces; what has not yet arrived is NaN."""
    arriving = np.full(data.size, 0xFF, np.uint8)
    looking = make(memoryview(arriving), LAYOUT.segments)
    done = 0
    for cut in sorted(cuts):
        arriving[done:cut] = data[done:cut]
        done = cut
        looking.advance(cut)
    arriving[done:] = data[done:]
    return looking.finish(), looking.found


def copied(make, data, cuts, size):
    """The bytes are copied in pieces from elsewhere in memory, to the begin of an object of `size` bytes."""
    padded = np.concatenate([data, np.zeros(size - data.size, np.uint8)])
    target = np.full(size, 0xFF, np.uint8)
    looking = make(memoryview(target), LAYOUT.segments)
    begin = 0
    for cut in (*sorted(cuts), size):
        looking.copy(memoryview(padded)[begin:cut], begin)
        begin = cut
    assert np.array_equal(target, padded)
    return (looking.finish(), looking.found), checksum(padded.data)


@given(
    bad=st.none() | st.tuples(st.integers(0, len(FLOATS) - 1), st.floats(0, 1, exclude_max=True)),
    value=st.sampled_from([np.nan, np.inf, -np.inf]),
    cuts=st.lists(st.integers(0, LAYOUT.data_bytes), max_size=12),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_both_ways_find_the_same_whatever_the_cuts(bad, value, cuts, seed):
    """Catches wrong bounds of a segment within a block, a pattern that takes the largest number for infinity, a look
    at what has not come, and a sum that differs in the last block."""
    data = finite_data(seed)
    expected = None
    if bad is not None:
        segment = FLOATS[bad[0]]
        expected = (LAYOUT.segments.index(segment), int(bad[1] * segment.count))
        numbers(data, segment)[expected[1]] = value
        # A second one behind it is not the one that is told.
        numbers(data, FLOATS[-1])[-1] = np.nan
    for make in (IngestCheck, compiled):
        assert feed(make, data, cuts) == (checksum(data.data), expected)


@given(
    bad=st.none() | st.tuples(st.integers(0, len(FLOATS) - 1), st.floats(0, 1, exclude_max=True)),
    cuts=st.lists(st.integers(0, LAYOUT.data_bytes), max_size=12),
    size=st.sampled_from([LAYOUT.data_bytes, 4 * 1024 * 1024 - 1, 4 * 1024 * 1024 + 33]),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_what_is_copied_is_looked_at_and_is_all_there(bad, cuts, size, seed):
    """Catches a piece that begins within a block and is looked at before the block is there, a copy of a block of two
    dtypes, a tail that is not copied; small objects and those that are stored past the caches."""
    data = finite_data(seed)
    expected = None
    if bad is not None:
        segment = FLOATS[bad[0]]
        expected = (LAYOUT.segments.index(segment), int(bad[1] * segment.count))
        numbers(data, segment)[expected[1]] = np.nan
    for make in (IngestCheck, compiled):
        got, sum_ = copied(make, data, cuts, size)
        assert got == (sum_, expected)


def test_nothing_is_copied_beyond_the_object(make):
    data = bytearray(100)
    looking = make(memoryview(data))
    with pytest.raises(LocalFault):
        looking.copy(memoryview(bytes(101)), 0)
    with pytest.raises(LocalFault):
        looking.copy(memoryview(bytes(2)), 99)
    assert not any(data)


@pytest.mark.parametrize("segment", FLOATS, ids=lambda s: s.dtype)
def test_each_bit_pattern_of_the_ends_is_told_from_its_neighbour(make, segment):
    """First and last element of a segment: largest finite is taken, NaN with a single bit of mantissa is found."""
    for place in (0, segment.count - 1):
        data = finite_data(3)
        width = DTYPE_BYTES[segment.dtype]
        bits = numbers(data, segment).view(f"u{width}")
        bits[place] = int(np.array(np.inf).astype(dtype_of(segment.dtype)).view(f"u{width}")) + 1
        assert feed(make, data, []) == (checksum(data.data), (LAYOUT.segments.index(segment), place))
        bits[place] -= 2
        assert feed(make, data, [])[1] is None


@pytest.mark.parametrize("nbytes", [0, 1, 31, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 33])
def test_without_segments_it_is_the_checksum(make, nbytes):
    data = np.random.default_rng(nbytes).integers(0, 256, nbytes, dtype=np.uint8)
    looking = make(memoryview(data.tobytes()))  # read-only, as a sealed object's is
    assert looking.finish() == checksum(data.tobytes())
    assert looking.found is None


def test_it_lets_go_of_the_data_and_looks_at_nothing_behind_it(make):
    data = bytearray(BLOCK_BYTES)
    looking = make(memoryview(data))
    with pytest.raises(LocalFault):
        looking.advance(len(data) + 1)
    looking.finish()
    data.clear()  # BufferError while a view of it is held
    with pytest.raises(LocalFault):
        make(memoryview(bytes(100)), [Segment("float32", 0, 26)])


def test_it_receives_what_the_socket_has_up_to_the_end_and_no_more(make):
    """Catches a receiver that takes bytes of the next message, forgets where it stood, or waits."""
    sent = np.random.default_rng(1).integers(0, 256, 300_000, dtype=np.uint8).tobytes()
    data = bytearray(len(sent))
    looking = make(memoryview(data))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        looking.receive(ours, 0, len(sent))
        assert looking.received_bytes == 0
        for begin in range(0, len(sent), 70_001):
            theirs.sendall(sent[begin : begin + 70_001])
            there = looking.received_bytes
            looking.receive(ours, there, min(there + 50_000, len(sent)))
            looking.receive(ours, looking.received_bytes, len(sent))
        theirs.sendall(b"next")
        assert looking.received_bytes == len(sent)
        looking.receive(ours, len(sent), len(sent))
        assert looking.received_bytes == len(sent)
        assert ours.recv(100) == b"next"
    assert looking.finish() == checksum(sent)
    assert data == sent


def test_a_peer_that_goes_is_an_error_that_says_how_far_it_came(make):
    looking = make(memoryview(bytearray(100)))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.sendall(bytes(40))
        theirs.shutdown(socket.SHUT_WR)
        looking.receive(ours, 0, 20)
        assert looking.received_bytes == 20
        with pytest.raises(ConnectionResetError, match="40 of 100"):
            looking.receive(ours, 20, 100)
        assert looking.received_bytes == 40  # counted although the call raised


def test_a_connection_that_breaks_is_its_own_error(make):
    looking = make(memoryview(bytearray(100)))
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as theirs:
        ours, _ = listener.accept()
        with ours:
            ours.sendall(b"unread")
            theirs.recv(1)
            theirs.close()  # with unread bytes: a reset
            ours.setblocking(False)
            with pytest.raises(ConnectionResetError, match="reset by peer"):
                looking.receive(ours, 0, 100)


def test_without_the_library_numpy_does_it(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "find_spec", lambda _name: None)
    assert module.load() is None
    broken = tmp_path / "_ingest_check.so"
    broken.write_text("no library")
    for origin in (str(broken), "libm.so.6"):
        monkeypatch.setattr(module, "find_spec", lambda name, origin=origin: ModuleSpec(name, None, origin=origin))
        assert module.load() is None
    monkeypatch.setattr(module, "COMPILED", None)
    assert type(module.ingest_check(memoryview(bytearray(8)))) is IngestCheck
