"""What an update must be: checked once, here, and never again.

What was announced is checked before a byte of the body is taken (`check_submit`); the numbers are checked while they
arrive (`Content`), together with the checksum that the object is sealed with.
"""

from __future__ import annotations

import math

from lifl.core.errors import Refused
from lifl.core.messages import JobSchema, Submit
from lifl.core.schema import DTYPE_BYTES, Layout, Segment, TensorSpec, check_same
from lifl.core.wire import encode
from lifl.node.gateway_transfer import PIECE_BYTES
from lifl.shm.checksum import Checksum, FiniteCheck


class Job:
    """A job whose updates may be admitted.  `schema_bytes` is the size of its schema in a frame."""

    def __init__(self, schema: JobSchema) -> None:
        self.number = schema.number
        self.layout = Layout(schema.tensors)
        self.schema_bytes = len(encode(schema))


def check_submit(job: Job, submit: Submit) -> None:
    """Raises `Refused`, naming the field, unless an update announced so can become one of the job's."""
    check_same(job.layout.tensors, submit.tensors)
    if submit.data_bytes != job.layout.data_bytes:
        raise Refused(
            "wrong-size",
            "data_bytes",
            f"the update announces {submit.data_bytes} bytes, the model's tensors take {job.layout.data_bytes}; send"
            " them in the layout's order, each dtype's vector padded to 64 bytes",
        )
    if not (math.isfinite(submit.weight) and submit.weight > 0):
        raise Refused(
            "bad-weight",
            "weight",
            f"the weight is {submit.weight}; it must be a positive, finite number, such as the number of examples",
        )
    for name, value in submit.metrics.items():
        if not math.isfinite(value):
            raise Refused(
                "bad-metric",
                f"metrics.{name}",
                f"the metric {name!r} is {value}; it must be finite: leave it out if there is none",
            )


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
