"""Frames on a stream, with no I/O in it: bytes in, messages out.

A frame is a 4-byte little-endian length and that many bytes of msgpack: one map with a `type` that names one of the
channel's messages.  `FrameDecoder.feed` only buffers; `next_message` parses one.  Anything that is not such a frame
raises `RemoteFault`, whatever the bytes and however they were cut; the length is checked against the channel's
limit before anything is stored, so a decoder never holds more than one frame and one read.
"""

from __future__ import annotations

import struct
from typing import Any, Generic, TypeVar

import msgspec

from lifl.core.errors import FrameTooLong, RemoteFault
from lifl.core.limits import FRAME_BYTES_MAX

LENGTH_BYTES = 4

_LENGTH = struct.Struct("<I")
M = TypeVar("M")


def encode(message: msgspec.Struct) -> bytes:
    """Return the frame of `message`.  Raise `FrameTooLong` when it is over `FRAME_BYTES_MAX`."""
    body = msgspec.msgpack.encode(message)
    if len(body) > FRAME_BYTES_MAX:
        what = f"message {type(message).__name__} of {len(body)} bytes"
        raise FrameTooLong(f"{what} is over the limit of {FRAME_BYTES_MAX} bytes for a frame")
    return framed(body)


def framed(body: bytes) -> bytes:
    """Return the frame of a message that is encoded already."""
    return frame_head(len(body)) + body


def frame_head(nbytes: int) -> bytes:
    """Return what stands before a message of so many bytes.  Raise `FrameTooLong`."""
    if nbytes > FRAME_BYTES_MAX:
        raise FrameTooLong(f"a message of {nbytes} bytes is over the limit of {FRAME_BYTES_MAX} bytes for a frame")
    return _LENGTH.pack(nbytes)


class FrameDecoder(Generic[M]):
    """Turns a stream of bytes into messages of the channel's `kinds` (a union of tagged structs)."""

    def __init__(self, kinds: Any, frame_bytes_max: int = FRAME_BYTES_MAX) -> None:
        self._msgpack = msgspec.msgpack.Decoder(kinds)
        self._frame_bytes_max = frame_bytes_max
        self._buffer = bytearray()

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Take what was read from the stream."""
        self._buffer += data

    def next_message(self) -> M | None:
        """Return the next whole message, or None until more is fed.  Raise `RemoteFault`."""
        if len(self._buffer) < LENGTH_BYTES:
            return None
        (length,) = _LENGTH.unpack_from(self._buffer)
        if length > self._frame_bytes_max:
            raise RemoteFault(f"a frame announces {length} bytes; this channel takes at most {self._frame_bytes_max}")
        end = LENGTH_BYTES + length
        if len(self._buffer) < end:
            return None
        body = bytes(self._buffer[LENGTH_BYTES:end])
        del self._buffer[:end]
        return self._parse(body)

    @property
    def missing_bytes(self) -> int:
        """How many bytes complete the frame that has begun (4 when none has): read no more where raw bytes follow."""
        if len(self._buffer) < LENGTH_BYTES:
            return LENGTH_BYTES - len(self._buffer)
        (length,) = _LENGTH.unpack_from(self._buffer)
        if length > self._frame_bytes_max:
            raise RemoteFault(f"a frame announces {length} bytes; this channel takes at most {self._frame_bytes_max}")
        return max(0, LENGTH_BYTES + int(length) - len(self._buffer))

    def _parse(self, body: bytes) -> M:
        try:
            # Decoded straight into the typed message: what does not fit is refused before it is built, so a frame of
            # millions of tiny objects costs nothing; nesting is bounded by the interpreter's recursion limit.
            message: M = self._msgpack.decode(body)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise RemoteFault(f"a frame of {len(body)} bytes is not a message of this channel: {error}") from error
        return message
