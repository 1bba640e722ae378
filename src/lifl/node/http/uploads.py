"""An update that comes as a safetensors file, put where it belongs in its slot while it arrives.

The file's bytes come from the front, maybe in several requests: a cut leaves what is there, and the rest goes on behind
it.  The header is kept until it is whole; then it is known where each byte of the file goes, and each is received
straight to there.  What is sent is checked by the gateway when all is there, as for any client that fills its slot.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from lifl.core.errors import Refused
from lifl.core.limits import MODEL_HEADER_BYTES_MAX
from lifl.core.modelfile import (
    LENGTH_BYTES,
    FileHeader,
    Span,
    decode_header,
    header_bytes,
    model_pieces,
    read_spans,
)
from lifl.core.schema import DTYPE_BYTES, Layout, align, check_same
from lifl.node.http.segments import made_ready
from lifl.shm.mapping import Mapped

Receive = Callable[[Callable[[], memoryview]], Awaitable[int]]
"""Receives what comes next to where it is told when that is there; returns how many bytes."""
WHERE = "the update"
HEADER_BYTES_PER_CHAR = 12
"""Of a name: two escapes of JSON."""
HEADER_BYTES_PER_TENSOR = 512
"""Its dtype, shape and place."""
HEADER_BYTES_MORE = 64 * 1024
"""Metadata, and spaces."""


def header_bytes_max(layout: Layout) -> int:
    """Return how long the header of an update's file may be: its tensors as widely as can be, and some more."""
    named = sum(HEADER_BYTES_PER_CHAR * len(tensor.name) + HEADER_BYTES_PER_TENSOR for tensor in layout.tensors)
    return min(HEADER_BYTES_MORE + named, MODEL_HEADER_BYTES_MAX)


def file_bytes_max(layout: Layout) -> int:
    """Return how long the file of an update may be."""
    return LENGTH_BYTES + header_bytes_max(layout) + layout.data_bytes


class Upload:
    """The slot at `offset` of a segment, and how much of the file is in it."""

    def __init__(
        self, segment: Mapped, offset: int, layout: Layout, round_: int, weight: float, metrics: dict[str, float]
    ) -> None:
        self.round, self.weight, self.metrics = round_, weight, metrics
        self.total_bytes = 0
        """Of the file, as the client said."""
        self.received_bytes = 0
        self.ended: Refused | None = None
        """Why nothing more of it is taken."""
        self.cut: Callable[[], None] | None = None
        """Ends the request by which it comes now; None: none does."""
        self._layout = layout
        self._view: memoryview | None = made_ready(segment, offset, layout.data_bytes)
        self._head = bytearray(LENGTH_BYTES)
        self._spans: list[Span] | None = None
        self._at = 0  # the span that is being filled
        for piece in layout.segments:
            end = piece.offset + piece.count * DTYPE_BYTES[piece.dtype]
            self._view[end : align(end)] = bytes(align(end) - end)

    @property
    def is_whole(self) -> bool:
        """Whether all of the file is there."""
        return self._spans is not None and self.received_bytes == self.total_bytes

    def begin(self, total_bytes: int) -> None:
        """Begin at the front, with a file of so many bytes.  Raise `Refused`."""
        if total_bytes > (most := file_bytes_max(self._layout)):
            raise Refused("too-large", "update", f"{WHERE} has {total_bytes} bytes, at most {most} can be")
        if total_bytes < LENGTH_BYTES:
            raise Refused("bad-model-file", "update", f"{WHERE} has {total_bytes} bytes: that is no safetensors file")
        self.total_bytes, self.received_bytes = total_bytes, 0
        self._head, self._spans, self._at = bytearray(LENGTH_BYTES), None, 0

    def end(self, why: Refused) -> None:
        """Take nothing more: the slot is not the client's any more."""
        self.ended = self.ended or why
        self._view = None

    async def take(self, nbytes: int, receive: Receive) -> None:
        """Take the next bytes of the file.  Raise `Refused`, and what `receive` raises."""
        end = self.received_bytes + nbytes
        while self.received_bytes < end:
            got = await receive(lambda: self._room()[: end - self.received_bytes])
            self._note(got)

    def _note(self, got: int) -> None:
        self.received_bytes += got
        if self._spans is None and self.received_bytes == len(self._head):
            if len(self._head) == LENGTH_BYTES:
                self._head = self._head + bytes(self._header_bytes())  # another one: of this there are views
            else:
                self._spans = self._find_spans()

    def _header_bytes(self) -> int:
        try:
            found = header_bytes(bytes(self._head), WHERE)
        except Refused as refused:
            raise Refused(refused.code, "update", refused.text) from refused
        if found > (most := header_bytes_max(self._layout)):
            raise Refused(
                "bad-model-file", "update", f"{WHERE} has a header of {found} bytes, at most {most} are taken"
            )
        if LENGTH_BYTES + found > self.total_bytes:
            raise Refused("bad-model-file", "update", f"{WHERE} ends within its header of {found} bytes")
        return found

    def _find_spans(self) -> list[Span]:
        try:
            header = decode_header(bytes(self._head[LENGTH_BYTES:]), self.total_bytes, WHERE)
        except Refused as refused:
            field = refused.field if refused.field.startswith("tensors") else "update"
            raise Refused(refused.code, field, refused.text) from refused
        _check(self._layout, header)
        self._head = bytearray(len(self._head))  # its length tells where the tensors begin
        return [span for span in read_spans(header, model_pieces(self._layout), WHERE) if span.nbytes]

    def _room(self) -> memoryview:
        """Return where the next bytes go."""
        if self.ended is not None or self._view is None:
            raise self.ended or Refused("round-over", "round", "the update is not taken any more")
        if self._spans is None:
            return memoryview(self._head)[self.received_bytes :]
        position = self.received_bytes - len(self._head)
        while position >= self._spans[self._at].file_offset + self._spans[self._at].nbytes:
            self._at += 1
        span = self._spans[self._at]
        done = position - span.file_offset
        return self._view[span.offset + done : span.offset + span.nbytes]


def _check(layout: Layout, header: FileHeader) -> None:
    """Raise `Refused`, as for any update, unless the file has the model's tensors, in whatever order."""
    given = {tensor.name: tensor for tensor in header.tensors}
    in_order = [given.pop(tensor.name) for tensor in layout.tensors if tensor.name in given]
    check_same(layout.tensors, [*in_order, *given.values()])
