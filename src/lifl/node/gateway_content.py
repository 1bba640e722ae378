"""What an update must be: checked once, here, and never again.

What was announced is checked before a byte of the body is taken (`core/admission`); the numbers are checked while they
arrive (`Content`), together with the checksum that the object is sealed with.
"""

from __future__ import annotations

from lifl.core.errors import Refused
from lifl.core.messages import JobSchema
from lifl.core.schema import DTYPE_BYTES, Layout, Segment, TensorSpec
from lifl.core.wire import encode
from lifl.shm.arrival import arrival


class Job:
    """A job whose updates may be admitted.  `schema_bytes` is the size of its schema in a frame."""

    def __init__(self, schema: JobSchema) -> None:
        self.number = schema.number
        self.layout = Layout(schema.tensors)
        self.schema_bytes = len(encode(schema))


class Content:
    """The content of an update that is being written to `data`, from the front, and looked at by `arrival`."""

    def __init__(self, layout: Layout, data: memoryview) -> None:
        self._layout = layout
        self.arrival = arrival(data, layout.segments)

    def look_at_all(self) -> None:
        """All bytes are there."""
        self.arrival.advance(self.arrival.nbytes)

    def finish(self) -> int:
        """All is there: the checksum.  Raises `Refused`, naming the tensor, when a number is not finite."""
        checksum = self.arrival.finish()
        if self.arrival.found is None:
            return checksum
        index, element = self.arrival.found
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
