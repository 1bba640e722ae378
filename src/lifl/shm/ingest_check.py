"""An object's bytes while they arrive from the front: checksum and finite check (`checksum` says what they are).

`ingest_check(data, segments)` gives the compiled one (`ingest_check.c`) where it could be built, else NumPy's; the
results are the same.  Compiled, one pass takes both, at the pace of the cache, and `receive` takes pieces from a socket
and looks at each at once, without the interpreter's lock from the first to the last; `copy` looks at what it takes from
elsewhere in memory.  In NumPy it is two passes, and each piece costs a change of that lock.

Over several connections an object comes in ranges, each filled from its front: `RangesCheck` looks at each by itself,
and gives the same results.

Like the fold kernel the library includes nothing of Python's; ctypes calls it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Protocol

from lifl.core.errors import LocalFault
from lifl.core.protocol.body_ranges import body_ranges
from lifl.core.schema import DTYPE_BYTES, Segment
from lifl.shm.checksum import (
    BLOCK_BYTES,
    Checksum,
    FiniteCheck,
    as_array,
    check_segments,
    closed,
    first_not_finite,
    joined,
)
from lifl.shm.direct import address_of

PIECE_BYTES = 2 * 1024 * 1024
"""What NumPy's way receives and looks at a time.  Smaller pieces stay in a nearer cache, but cost more changes of the
interpreter's lock between the threads: measured, 2 MiB gains a third over 256 KiB."""
_KINDS = {"float64": 1, "float32": 2, "float16": 3, "bfloat16": 4}


class Receives(Protocol):
    """What can be received from: a socket, or what decrypts what comes from one."""

    def recv_into(self, room: memoryview, /) -> int:
        """Receive what there is; return how many bytes, 0 at the end.  Raise `BlockingIOError` when nothing is."""
        ...


class IngestCheck:
    """NumPy's way.  Raises `LocalFault` when the segments do not lie in the data.

    It holds a view of `data` until `finish`; then `found` is None or (index of the segment, index of its element) of
    the object's first number that is NaN or infinite.
    """

    def __init__(self, data: memoryview, segments: Sequence[Segment] = ()) -> None:
        self.found: tuple[int, int] | None = None
        self.nbytes = len(data)
        self.received_bytes = 0
        self._data = data[:]
        self._looked_bytes = 0
        self._checksum = Checksum(data)
        self._finite = FiniteCheck(data, segments)

    def receive(self, sock: Receives, begin_bytes: int, end_bytes: int) -> None:
        """Receive up to `end_bytes` from a non-blocking socket, `begin_bytes` being there; `received_bytes` are there
        then: `end_bytes`, or with what the socket had.  Raise `OSError` when the peer is gone, also then counted.
        """
        while begin_bytes < end_bytes:
            try:
                got = sock.recv_into(self._data[begin_bytes : min(begin_bytes + PIECE_BYTES, end_bytes)])
            except BlockingIOError:
                break
            if not got:
                raise _closed(begin_bytes, self.nbytes)
            self.received_bytes = begin_bytes = begin_bytes + got
            self.advance(begin_bytes)

    def advance(self, end_bytes: int) -> None:
        """Go on: the first `end_bytes` bytes are there now and will not change.  Raise `LocalFault` beyond the data."""
        while self._looked_bytes < end_bytes:
            self._looked_bytes = min(self._looked_bytes + PIECE_BYTES, end_bytes)
            self._checksum.advance(self._looked_bytes)
            self._finite.advance(self._looked_bytes)

    def copy(self, piece: memoryview, begin_bytes: int) -> None:
        """Have `piece` as the data from `begin_bytes` on, before which all is there.  Raise `LocalFault` beyond it."""
        end_bytes = begin_bytes + len(piece)
        if end_bytes > self.nbytes:
            raise LocalFault(f"bytes {begin_bytes} to {end_bytes} are beyond {self.nbytes}")
        self._copy(piece, begin_bytes, end_bytes)

    def _copy(self, piece: memoryview, begin_bytes: int, end_bytes: int) -> None:
        self._data[begin_bytes:end_bytes] = piece
        self.advance(end_bytes)

    @property
    def parts(self) -> Sequence[IngestCheck]:
        """What is filled from the front: this itself, of which there is one."""
        return (self,)

    def finish(self) -> int:
        """Return the checksum now that all of the data is there."""
        return closed(self.polynomial(), self.nbytes)

    def polynomial(self) -> int:
        """End as `finish` does; return what it makes the checksum of."""
        self.advance(self.nbytes)
        self.found = self._finite.found
        del self._finite
        self._data.release()
        return self._checksum.polynomial()


class _Floats(ctypes.Structure):
    _fields_ = (("begin", ctypes.c_int64), ("end", ctypes.c_int64), ("kind", ctypes.c_int64))


class _State(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("nbytes", ctypes.c_int64),
        ("done", ctypes.c_int64),
        ("found", ctypes.c_int64),
        ("value", ctypes.c_uint64),
        ("runs_count", ctypes.c_int64),
        ("runs", ctypes.POINTER(_Floats)),
    )


class Library:
    """The library's functions.  Raises `OSError` when the file cannot be loaded, `AttributeError` when it is none
    of ours.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        library = ctypes.CDLL(path)
        self.look = library.lifl_look
        self.look.restype = None
        self.look.argtypes = (ctypes.POINTER(_State), ctypes.c_int64)
        self.copy = library.lifl_copy
        self.copy.restype = None
        self.copy.argtypes = (ctypes.POINTER(_State), ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
        self.receive = library.lifl_receive
        self.receive.restype = ctypes.c_int64
        self.receive.argtypes = (
            ctypes.POINTER(_State),
            ctypes.c_int,
            ctypes.c_int64,
            ctypes.c_int64,
            ctypes.POINTER(ctypes.c_int),
        )


class CompiledIngestCheck(IngestCheck):
    """The compiled way."""

    def __init__(self, library: Library, data: memoryview, segments: Sequence[Segment] = ()) -> None:
        check_segments(segments, len(data))
        self.found = None
        self.nbytes = len(data)
        self.received_bytes = 0
        self._data = data[:]
        self._library = library
        self._segments = segments
        runs = [
            _Floats(segment.offset, segment.offset + segment.count * DTYPE_BYTES[segment.dtype], _KINDS[segment.dtype])
            for segment in segments
            if segment.dtype in _KINDS
        ]
        self._state = _State(address_of(data), self.nbytes, 0, -1, 1, len(runs), (_Floats * len(runs))(*runs))

    def receive(self, sock: Receives, begin_bytes: int, end_bytes: int) -> None:
        """See `IngestCheck`."""
        if not isinstance(sock, socket.socket):
            return super().receive(sock, begin_bytes, end_bytes)
        error = ctypes.c_int()
        with self._data[begin_bytes:end_bytes] as held:
            end_bytes = begin_bytes + len(held)
            self.received_bytes = self._library.receive(self._state, sock.fileno(), begin_bytes, end_bytes, error)
        if error.value == errno.EPIPE:
            raise _closed(self.received_bytes, self.nbytes)
        if error.value not in (0, errno.EAGAIN):
            raise OSError(error.value, os.strerror(error.value))

    def advance(self, end_bytes: int) -> None:
        """See `IngestCheck`."""
        with self._data[:end_bytes] as held:
            if len(held) != end_bytes:
                raise LocalFault(f"{end_bytes} bytes cannot have arrived of {self.nbytes}")
            self._library.look(self._state, end_bytes)

    def _copy(self, piece: memoryview, begin_bytes: int, end_bytes: int) -> None:
        if piece:
            self._library.copy(self._state, address_of(piece), begin_bytes, end_bytes)

    def polynomial(self) -> int:
        """See `IngestCheck`."""
        self.advance(self.nbytes)
        if self._state.found >= 0:
            self.found = self._first_not_finite(self._state.found, self._state.found + BLOCK_BYTES)
        self._data.release()
        return int(self._state.value)

    def _first_not_finite(self, begin: int, end: int) -> tuple[int, int]:
        for index, segment in enumerate(self._segments):
            if segment.dtype not in _KINDS:
                continue
            width = DTYPE_BYTES[segment.dtype]
            first = max(begin - segment.offset, 0) // width
            last = min((end - segment.offset) // width, segment.count)
            if first < last:
                numbers = self._data[segment.offset + first * width : segment.offset + last * width]
                place = first_not_finite(as_array(numbers, segment.dtype))
                if place is not None:
                    return index, first + place
        raise LocalFault(f"a number of bytes {begin} to {end} was not finite when it arrived, and has changed since")


def _closed(begin_bytes: int, nbytes: int) -> ConnectionResetError:
    return ConnectionResetError(f"the peer closed after {begin_bytes} of {nbytes} bytes")


def load() -> Library | None:
    """Return the compiled part, or None where it has not been built or cannot be loaded."""
    found = find_spec("lifl.shm._ingest_check")
    if found is None or found.origin is None:
        return None
    try:
        return Library(found.origin)
    except (OSError, AttributeError):
        return None


COMPILED = load()
"""The compiled part, if there is one.  Tests set it to None to have NumPy's way."""


class RangesCheck:
    """The same of an object that comes in `count` ranges (`body_ranges`); a check for each, over a view of its own."""

    def __init__(self, data: memoryview, segments: Sequence[Segment], count: int) -> None:
        self.found: tuple[int, int] | None = None
        self.nbytes = len(data)
        check_segments(segments, self.nbytes)
        self.parts: list[IngestCheck] = []
        self._places: list[list[tuple[int, int]]] = []  # by part: of its segments each one's index, and first element
        for begin, end in body_ranges(self.nbytes, count):
            within, places = _within(segments, begin, end)
            self.parts.append(ingest_check(data[begin:end], within))
            self._places.append(places)

    def finish(self) -> int:
        """See `IngestCheck`."""
        value = 1
        for part, places in zip(self.parts, self._places, strict=True):
            value = joined(value, part.polynomial(), part.nbytes)
            if part.found is not None and self.found is None:
                index, first = places[part.found[0]]
                self.found = index, first + part.found[1]
        return closed(value, self.nbytes)


def _within(segments: Sequence[Segment], begin: int, end: int) -> tuple[list[Segment], list[tuple[int, int]]]:
    """Return what lies in bytes `begin` to `end`, as segments of these, and of each its index and its first element."""
    found, places = [], []
    for index, segment in enumerate(segments):
        width = DTYPE_BYTES[segment.dtype]
        first = max(0, (begin - segment.offset) // width)
        last = min(segment.count, (end - segment.offset) // width)
        if first < last:
            found.append(Segment(segment.dtype, segment.offset + first * width - begin, last - first))
            places.append((index, first))
    return found, places


def ingest_check(data: memoryview, segments: Sequence[Segment] = ()) -> IngestCheck:
    """Return the best there is for `data`, which holds `segments` and is being filled from the front."""
    return IngestCheck(data, segments) if COMPILED is None else CompiledIngestCheck(COMPILED, data, segments)


def check_of(data: memoryview, segments: Sequence[Segment], streams: int) -> IngestCheck | RangesCheck:
    """Return the same for what comes over so many connections: of each of its `parts` one fills the data."""
    return ingest_check(data, segments) if streams == 1 else RangesCheck(data, segments, streams)
