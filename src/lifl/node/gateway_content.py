"""What an update must be: checked once, here, and never again.

What was announced is checked before a byte of the body is taken (`core/admission`); the numbers are checked while they
arrive (`Content`), together with the checksum that the object is sealed with.
"""

from __future__ import annotations

from lifl.core.errors import Refused
from lifl.core.messages import JobSchema
from lifl.core.schema import DTYPE_BYTES, Layout, Segment, TensorSpec
from lifl.core.wire import encode
from lifl.node.gateway_transfer import PIECE_BYTES
from lifl.shm.checksum import Checksum, FiniteCheck


class Job:
    """A job whose updates may be admitted.  `schema_bytes` is the size of its schema in a frame."""

    def __init__(self, schema: JobSchema) -> None:
        self.number = schema.number
        self.layout = Layout(schema.tensors)
        self.schema_bytes = len(encode(schema))


class Content:
    """The content of an update that is being written to `data`, from the front."""

    def __init__(self, layout: Layout, data: memoryview) -> None:
        self._layout = layout
        self._data_bytes = len(data)
        self._checksum = Checksum(data)
        self._finite = FiniteCheck(data, layout.segments)

    def advance(self, end_bytes: int) -> None:
        """The first `end_bytes` bytes are there now."""
        self._checksum.advance(end_bytes)
        self._finite.advance(end_bytes)

    def look_at_all(self) -> None:
        """All bytes are there; they are looked at in pieces that stay in the cache between the two checks."""
        for end_bytes in range(PIECE_BYTES, self._data_bytes, PIECE_BYTES):
            self.advance(end_bytes)
        self.advance(self._data_bytes)

    def finish(self) -> int:
        """All is there: the checksum.  Raises `Refused`, naming the tensor, when a number is not finite."""
        checksum = self._checksum.finish()
        if self._finite.found is None:
            return checksum
        index, element = self._finite.found
        segment = self._layout.segments[index]
        tensor, element = self._tensor_at(segment, element)
        raise Refused(
            "not-finite",
            f"tensors.{tensor.name}",
            f"element {element} of tensor {tensor.name!r} (flattened) is NaN or infinite; did the training diverge?",
        )

    def _tensor_at(self, segment: Segment, element: int) -> tuple[TensorSpec, int]:
        where = segment.offset + element * DTYPE_BYTES[segment.dtype]
        for tensor, offset in zip(self._layout.tensors, self._layout.offsets, strict=True):
            end = offset + tensor.size * DTYPE_BYTES[tensor.dtype]
            if offset <= where < end:
                return tensor, (where - offset) // DTYPE_BYTES[tensor.dtype]
        raise AssertionError(f"byte {where} is in no tensor of the layout")
