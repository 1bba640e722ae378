"""What a model's tensors are and how they lie in an object of the arena.

A *schema* is the model's tensors by name, dtype and shape.  Its *layout* packs them so that aggregation needs no
knowledge of tensors: all tensors of one dtype form one *segment*, a single flat vector.  Clients send, the
gateway stores and workers fold bytes in this one order, so nothing is ever laid out twice.

A *partial* of the same schema is laid out in the accumulators' dtypes: float32 for float32, float16 and
bfloat16; float64 for float64 and integers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import Annotated

import msgspec

from lifl.core.errors import Refused
from lifl.core.limits import DIMENSIONS_MAX, DTYPE_CHARS_MAX, SCHEMA_BYTES_MAX, TENSOR_NAME_CHARS_MAX, TENSORS_MAX

DTYPE_BYTES = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint64": 8,
    "uint32": 4,
    "uint16": 2,
    "uint8": 1,
}
"""The dtypes that can be aggregated, by NumPy's (and ml_dtypes') names, in the order of their segments."""

ACCUMULATOR = {d: "float32" if d in ("float32", "float16", "bfloat16") else "float64" for d in DTYPE_BYTES}

SEGMENT_ALIGN_BYTES = 64


class TensorSpec(msgspec.Struct, frozen=True, array_like=True):
    """One tensor of a model: its name, its dtype (a key of `DTYPE_BYTES`) and its shape (() is a scalar)."""

    name: Annotated[str, msgspec.Meta(max_length=TENSOR_NAME_CHARS_MAX)]
    dtype: Annotated[str, msgspec.Meta(max_length=DTYPE_CHARS_MAX)]
    shape: Annotated[tuple[int, ...], msgspec.Meta(max_length=DIMENSIONS_MAX)]

    @property
    def size(self) -> int:
        """The number of elements."""
        size = 1
        for dimension in self.shape:
            size *= dimension
        return size


class Segment(msgspec.Struct, frozen=True):
    """All elements of one dtype: `count` of them from byte `offset` of the object's data."""

    dtype: Annotated[str, msgspec.Meta(max_length=DTYPE_CHARS_MAX)]
    offset: int
    count: int


class Layout:
    """The byte offsets of a schema's tensors in an object, and its segments.

    `tensors` keeps the order given; `offsets[i]` is the byte offset of tensor i; `data_bytes` is the whole length,
    a multiple of 64.  Raises `Refused` when the schema is beyond a limit or names an unknown dtype.
    """

    def __init__(self, tensors: Sequence[TensorSpec]) -> None:
        check_schema(tensors)
        self.tensors = tuple(tensors)
        by_dtype: dict[str, list[int]] = {}
        for index, tensor in enumerate(self.tensors):
            by_dtype.setdefault(tensor.dtype, []).append(index)
        offsets = [0] * len(self.tensors)
        segments = []
        position = 0
        for dtype in (d for d in DTYPE_BYTES if d in by_dtype):
            start = position
            for index in by_dtype[dtype]:
                offsets[index] = position
                position += self.tensors[index].size * DTYPE_BYTES[dtype]
            segments.append(Segment(dtype, start, (position - start) // DTYPE_BYTES[dtype]))
            position = align(position)
        self.offsets = tuple(offsets)
        self.segments = tuple(segments)
        self.data_bytes = position

    @cached_property
    def digest(self) -> bytes:
        """What stands for the tensors where both sides know them."""
        return hashlib.sha256(self.packed()).digest()

    @cached_property
    def packed_bytes(self) -> int:
        """The bytes that the tensors take in a frame."""
        return len(self.packed())

    def packed(self) -> bytes:
        """Return the tensors as they travel."""
        return msgspec.msgpack.encode(self.tensors)

    @cached_property
    def accumulators(self) -> tuple[Segment, ...]:
        """The same segments in the accumulators' dtypes: how a partial lies."""
        found = []
        position = 0
        for segment in self.segments:
            dtype = ACCUMULATOR[segment.dtype]
            found.append(Segment(dtype, position, segment.count))
            position = align(position + segment.count * DTYPE_BYTES[dtype])
        return tuple(found)

    @cached_property
    def accumulator_bytes(self) -> int:
        """The length of a partial's data."""
        last = self.accumulators[-1]
        return align(last.offset + last.count * DTYPE_BYTES[last.dtype])


def align(nbytes: int) -> int:
    """Return `nbytes` rounded up to the alignment of segments."""
    return -(-nbytes // SEGMENT_ALIGN_BYTES) * SEGMENT_ALIGN_BYTES


def check_schema(tensors: Sequence[TensorSpec]) -> None:
    """Raise `Refused` (code ``bad-schema``) naming the first tensor that cannot be aggregated."""
    if not 1 <= len(tensors) <= TENSORS_MAX:
        raise Refused("bad-schema", "tensors", f"a model has 1 to {TENSORS_MAX} tensors, this one {len(tensors)}")
    seen: set[str] = set()
    for tensor in tensors:
        where = f"tensors.{tensor.name[:TENSOR_NAME_CHARS_MAX]}"
        if not 1 <= len(tensor.name) <= TENSOR_NAME_CHARS_MAX:
            raise Refused("bad-schema", where, f"a tensor's name has 1 to {TENSOR_NAME_CHARS_MAX} characters")
        if tensor.name in seen:
            raise Refused("bad-schema", where, f"two tensors are named {tensor.name!r}; names must differ")
        seen.add(tensor.name)
        if tensor.dtype not in DTYPE_BYTES:
            known = ", ".join(DTYPE_BYTES)
            raise Refused("wrong-dtype", where, f"dtype {tensor.dtype!r} cannot be aggregated; use one of {known}")
        if len(tensor.shape) > DIMENSIONS_MAX or any(d < 1 for d in tensor.shape):
            raise Refused(
                "wrong-shape",
                where,
                f"shape {tensor.shape}: dimensions must be positive, at most {DIMENSIONS_MAX}",
            )


def check_fits(layout: Layout) -> None:
    """Raise `Refused` (code ``schema-too-long``) unless the names, dtypes and shapes fit the frames they travel in."""
    if layout.packed_bytes > SCHEMA_BYTES_MAX:
        raise Refused(
            "schema-too-long",
            "tensors",
            f"the names and shapes of the model's {len(layout.tensors)} tensors take {layout.packed_bytes} bytes, at"
            f" most {SCHEMA_BYTES_MAX} fit; give the tensors shorter names, or join them to fewer",
        )


def check_same(expected: Sequence[TensorSpec], given: Sequence[TensorSpec]) -> None:
    """Raise `Refused` naming the first tensor in which `given` differs from the model's schema `expected`."""
    if tuple(expected) == tuple(given):
        return
    offered = {tensor.name: tensor for tensor in given}
    for tensor in expected:
        where = f"tensors.{tensor.name}"
        other = offered.pop(tensor.name, None)
        if other is None:
            raise Refused(
                "missing-tensor",
                where,
                f"the update lacks the model's tensor {tensor.name!r}; send all of them",
            )
        if other.dtype != tensor.dtype:
            raise Refused(
                "wrong-dtype",
                where,
                f"{tensor.name!r} is {other.dtype}, the model's is {tensor.dtype}; convert it before submitting",
            )
        if other.shape != tensor.shape:
            raise Refused(
                "wrong-shape",
                where,
                f"{tensor.name!r} has shape {other.shape}, the model's has {tensor.shape}; send the model's shape",
            )
    if offered:
        name = next(iter(offered))
        raise Refused(
            "unknown-tensor",
            f"tensors.{name}",
            f"the model has no tensor {name!r}; send only the model's tensors",
        )
    raise Refused(
        "wrong-order",
        "tensors",
        "the tensors are the model's but in another order; send them in the model's order",
    )
