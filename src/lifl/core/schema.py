"""What a model's tensors are and how they lie in an object of the arena.

A *schema* is the model's tensors by name, dtype and shape.  Its *layout* packs them so that aggregation needs no
knowledge of tensors: all tensors of one dtype form one *segment*, a single flat vector.  Clients send, the
gateway stores and workers fold bytes in this one order, so nothing is ever laid out twice.

A *partial* of the same schema is laid out in the accumulators' dtypes: float64 for floats; integers wide enough for an
exact sum for integers; three float64 for floats whose sums are to be reproducible.  A rule's *state* has a float for
every number of the model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Annotated, Literal

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
    "bool": 1,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
}
"""The dtypes that a model may have, by NumPy's (and ml_dtypes') names, in the order of their segments."""

KEPT = ("bool", "float8_e4m3fn", "float8_e5m2")
"""Those that are not averaged: the model's own are kept, or those of one update."""
_FLOATS = {"float64": "float64", "float32": "float32", "float16": "float32", "bfloat16": "float32"}
"""What rules compute in."""
_INTEGERS = [d for d in DTYPE_BYTES if d not in _FLOATS and d not in KEPT]
_EXACT = {d: {1: "int64", 8: "int192"}.get(DTYPE_BYTES[d], "int128") for d in _INTEGERS}
_SHORTER = _EXACT | {"int64": "int128", "uint64": "int128"}
_SAME = {d: d for d in KEPT}
ACCUMULATOR = dict.fromkeys(_FLOATS, "float64") | _EXACT | _SAME
"""What a partial holds for each number of a dtype (`rules/kernels.py`, `rules/integers.py`)."""
REPRODUCIBLE = ACCUMULATOR | dict.fromkeys(_FLOATS, "binned192")
"""The same where a job's sums are to be reproducible (`rules/binned.py`)."""
STATE = _FLOATS | dict.fromkeys(_EXACT, "float64") | _SAME
"""What a rule's state holds for it."""
EARLIER_PARTIAL = _FLOATS | dict.fromkeys(_EXACT, "float64") | _SAME
"""What a partial of `Kind.EARLIER_PARTIAL` holds for it."""
NARROW_PARTIAL = _FLOATS | _SHORTER | _SAME
"""What a partial of `Kind.NARROW_PARTIAL` holds for it."""
ITEM_BYTES = DTYPE_BYTES | {"int128": 16, "int192": 24, "binned192": 24}
"""The bytes of one number of any segment."""

SEGMENT_ALIGN_BYTES = 64


class TensorSpec(msgspec.Struct, frozen=True, array_like=True, gc=False):
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


class Place(msgspec.Struct, frozen=True, array_like=True):
    """Where a tensor lies: `count` numbers of a segment, from number `begin` on."""

    segment: int
    begin: int
    count: int


class Treated(msgspec.Struct, frozen=True, array_like=True):
    """Numbers that are not treated as the others of their segment: `count` of them from number `begin` on.

    ``exclude``: averaged, but no step of the rule; ``fixed``: the model's own; ``first``: those of one update.
    """

    segment: int
    begin: int
    count: int
    how: Literal["exclude", "fixed", "first"]

    @property
    def is_averaged(self) -> bool:
        """Whether they are averaged at all, and so have to be finite."""
        return self.how == "exclude"


class Layout:
    """The byte offsets of a schema's tensors in an object, and its segments.

    `tensors` keeps the order given; `offsets[i]` is the byte offset of tensor i; `data_bytes` is the whole length,
    a multiple of 64; `reproducible`: what it is summed in gives the same bits in any order.  Raises `Refused` when the
    schema is beyond a limit or names an unknown dtype.
    """

    def __init__(self, tensors: Sequence[TensorSpec], reproducible: bool = False) -> None:
        check_schema(tensors)
        self.reproducible = reproducible
        self.tensors = tuple(tensors)
        by_dtype: dict[str, list[int]] = {}
        for index, tensor in enumerate(self.tensors):
            by_dtype.setdefault(tensor.dtype, []).append(index)
        offsets = [0] * len(self.tensors)
        segments = []
        position = 0
        for dtype in (d for d in DTYPE_BYTES if any(self.tensors[index].size for index in by_dtype.get(d, ()))):
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
        return hashlib.sha256(self.packed).digest()

    @property
    def packed_bytes(self) -> int:
        """The bytes that the tensors take in a frame."""
        return len(self.packed)

    @cached_property
    def packed(self) -> bytes:
        """The tensors as they travel."""
        return msgspec.msgpack.encode(self.tensors)

    @cached_property
    def accumulators(self) -> tuple[Segment, ...]:
        """The same segments in the accumulators' dtypes: how a partial lies."""
        return relaid(self.segments, REPRODUCIBLE if self.reproducible else ACCUMULATOR)

    @cached_property
    def accumulator_bytes(self) -> int:
        """The length of a partial's data."""
        return align(end_of(self.accumulators))

    @cached_property
    def states(self) -> tuple[Segment, ...]:
        """The same segments as one of the rule's states lies."""
        return relaid(self.segments, STATE)

    @cached_property
    def state_bytes(self) -> int:
        """The length of the data of one of the rule's states."""
        return align(end_of(self.states))

    @cached_property
    def places(self) -> tuple[Place, ...]:
        """Where each tensor lies, in the order of `tensors`; one without numbers lies at the begin of the first."""
        indices = {segment.dtype: index for index, segment in enumerate(self.segments)}
        found: list[Place] = []
        for tensor, offset in zip(self.tensors, self.offsets, strict=True):
            index = indices[tensor.dtype] if tensor.size else 0
            begin = (offset - self.segments[index].offset) // DTYPE_BYTES[tensor.dtype] if tensor.size else 0
            found.append(Place(index, begin, tensor.size))
        return tuple(found)

    def tensor_at(self, dtype: str, element: int) -> tuple[TensorSpec, int] | None:
        """Return the tensor that has number `element` of all numbers of a dtype, and which of its own that is."""
        for tensor in self.tensors:
            if tensor.dtype == dtype:
                if element < tensor.size:
                    return tensor, element
                element -= tensor.size
        return None

    def tensor_in(self, part: Segment, element: int) -> tuple[TensorSpec, int]:
        """Return the same for number `element` of a segment, or of a part of one."""
        begin = next(segment.offset for segment in self.segments if segment.dtype == part.dtype)
        found = self.tensor_at(part.dtype, (part.offset - begin) // DTYPE_BYTES[part.dtype] + element)
        assert found is not None
        return found


def relaid(segments: Sequence[Segment], dtypes: Mapping[str, str]) -> tuple[Segment, ...]:
    """Return the segments in other dtypes, one after another."""
    found: list[Segment] = []
    for segment in segments:
        found.append(Segment(dtypes[segment.dtype], align(end_of(found)), segment.count))
    return tuple(found)


def averaged_parts(segments: Sequence[Segment], treated: Sequence[Treated]) -> tuple[Segment, ...]:
    """Return the parts of a layout's segments whose numbers are averaged."""
    found: list[Segment] = []
    for index, segment in enumerate(segments):
        begin = 0
        for run in treated:
            if run.segment == index and not run.is_averaged:
                found.append(_part(segment, begin, run.begin))
                begin = run.begin + run.count
        found.append(_part(segment, begin, segment.count))
    return tuple(part for part in found if part.count)


def other_parts(segments: Sequence[Segment], treated: Sequence[Treated]) -> tuple[Segment, ...]:
    """Return the parts whose numbers are kept as they are in the model or in one update."""
    runs = (run for run in treated if not run.is_averaged)
    return tuple(_part(segments[run.segment], run.begin, run.begin + run.count) for run in runs)


def _part(segment: Segment, begin: int, end: int) -> Segment:
    return Segment(segment.dtype, segment.offset + begin * DTYPE_BYTES[segment.dtype], end - begin)


def end_of(segments: Sequence[Segment]) -> int:
    """Return the byte where the last segment ends."""
    return max((s.offset + s.count * ITEM_BYTES[s.dtype] for s in segments), default=0)


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
        if len(tensor.shape) > DIMENSIONS_MAX or any(d < 0 for d in tensor.shape):
            raise Refused(
                "wrong-shape",
                where,
                f"shape {tensor.shape}: dimensions must not be negative, at most {DIMENSIONS_MAX}",
            )
    if not any(tensor.size for tensor in tensors):
        raise Refused("bad-schema", "tensors", "the model's tensors hold no number at all")


def check_fits(layout: Layout) -> None:
    """Raise `Refused` (code ``schema-too-long``) unless the names, dtypes and shapes fit the frames they travel in."""
    if layout.packed_bytes > SCHEMA_BYTES_MAX:
        raise Refused(
            "schema-too-long",
            "tensors",
            f"the names and shapes of the model's {len(layout.tensors)} tensors take {layout.packed_bytes} bytes, at"
            f" most {SCHEMA_BYTES_MAX} fit; give the tensors shorter names, or join them to fewer",
        )


def check_same(expected: Sequence[TensorSpec], given: Sequence[TensorSpec], may_lack: bool = False) -> None:
    """Raise `Refused` naming the first tensor in which `given` differs from the model's schema `expected`.

    With `may_lack` some of the tensors may be missing, and not all of them.
    """
    if tuple(expected) == tuple(given):
        return
    offered = {tensor.name: tensor for tensor in given}
    for tensor in expected:
        where = f"tensors.{tensor.name}"
        other = offered.pop(tensor.name, None)
        if other is None and may_lack:
            continue
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
    if not given:
        raise Refused("missing-tensor", "tensors", "the update has none of the job's tensors; send those trained")
    if may_lack:
        names = {tensor.name for tensor in given}
        expected = [tensor for tensor in expected if tensor.name in names]
        if tuple(expected) == tuple(given):
            return
    raise Refused(
        "wrong-order",
        "tensors",
        "the tensors are the model's but in another order; send them in the model's order",
    )
