"""The safetensors format, with no I/O in it: headers in and out, and which bytes go where.

A file is an 8-byte little-endian length, a JSON header of that length, and the tensors' bytes.  The header
names each tensor's dtype, shape and place; the places must follow one another without a gap.  A header is
filled up with spaces to a multiple of 8, and the tensors are written widest dtype first, so every tensor is
aligned for its dtype.

The bytes of a file and the bytes of an object in the arena hold the same tensors in two orders.  A *span* is
a stretch that is contiguous in both; a model that LIFL wrote has one span for each dtype.  So a worker
writes a file with one `writev` of views of the arena and reads one with one `readinto` for each span, and no
tensor is ever copied in between.

The rule's states are written with the model's names and shapes as "state/tensor", in the accumulators'
dtypes; those of integer tensors are always zero and are left out.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec

from lifl.core.errors import Refused
from lifl.core.limits import MODEL_HEADER_BYTES_MAX
from lifl.core.schema import DTYPE_BYTES, KEPT, STATE, Layout, TensorSpec, check_schema

DATA_ALIGN_BYTES = 4096
"""The tensors begin at a multiple of this, where a disk takes them straight from the arena; the header is padded with
spaces, as the format allows.
"""
METADATA_BYTES_MAX = 512
"""Of a checkpoint: job, round and what wrote it."""
CLAIM = ".lifl-job"
"""In a folder of models: whose they are."""
CLAIM_BYTES_MAX = 4096
LENGTH_BYTES = 8

_CODE = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
}
_DTYPE = {code: dtype for dtype, code in _CODE.items()}
_METADATA = "__metadata__"
_LENGTH = struct.Struct("<Q")


class Span(NamedTuple):
    """`nbytes` bytes from `file_offset` (after the header) are those from `offset` of object number
    `part`.
    """

    file_offset: int
    part: int
    offset: int
    nbytes: int


class Piece(NamedTuple):
    """One tensor and where it lies: byte `offset` of object number `part`."""

    tensor: TensorSpec
    part: int
    offset: int


class FileHeader(NamedTuple):
    """What a file holds: its tensors in the order of their bytes, and the byte after the header of each."""

    tensors: tuple[TensorSpec, ...]
    offsets: tuple[int, ...]
    header_bytes: int
    metadata: dict[str, str]


def model_pieces(layout: Layout) -> list[Piece]:
    """Return the tensors of a model object; the object is part 0."""
    return [Piece(t, 0, offset) for t, offset in zip(layout.tensors, layout.offsets, strict=True)]


def state_pieces(layout: Layout, states: Sequence[str]) -> list[Piece]:
    """Return the tensors of the rule's state objects; part i is the object of ``states[i]``, in the accumulators'
    layout.
    """
    places = {s.dtype: (s, a) for s, a in zip(layout.segments, layout.states, strict=True)}
    pieces = []
    for part, state in enumerate(states):
        for tensor, offset in zip(layout.tensors, layout.offsets, strict=True):
            if tensor.dtype in KEPT or not tensor.dtype.startswith(("float", "bfloat")) or not tensor.size:
                continue
            segment, accumulator = places[tensor.dtype]
            index = (offset - segment.offset) // DTYPE_BYTES[tensor.dtype]
            dtype = STATE[tensor.dtype]
            spec = TensorSpec(f"{state}/{tensor.name}", dtype, tensor.shape)
            pieces.append(Piece(spec, part, accumulator.offset + index * DTYPE_BYTES[dtype]))
    return pieces


def encode_header(pieces: Sequence[Piece], metadata: Mapping[str, str]) -> tuple[bytes, list[Span]]:
    """Return the bytes before the tensors (length and header), and the spans to write after them, in the file's
    order.

    Raise `Refused` when a tensor has the format's reserved name or the header is longer than
    `MODEL_HEADER_BYTES_MAX`.
    """
    tensors, spans = _entries(tuple(pieces))
    about = msgspec.json.encode({_METADATA: dict(metadata)})[1:-1] if metadata else b""
    body = b"{" + b",".join(each for each in (about, tensors) if each) + b"}"
    body += b" " * (-(LENGTH_BYTES + len(body)) % DATA_ALIGN_BYTES)
    if len(body) > MODEL_HEADER_BYTES_MAX:
        raise Refused(
            "bad-schema", "tensors", f"the names need a header over {MODEL_HEADER_BYTES_MAX} bytes; shorten them"
        )
    return _LENGTH.pack(len(body)) + body, list(spans)


@lru_cache(maxsize=2)
def _entries(pieces: tuple[Piece, ...]) -> tuple[bytes, tuple[Span, ...]]:
    """Return what a header says of the tensors, without its braces, and the spans: of each round's file the same.

    Those of the last model, and of its rule's states, are remembered.
    """
    header: dict[str, Any] = {}
    position = 0
    spans: list[Span] = []
    for piece in sorted(pieces, key=lambda p: (-DTYPE_BYTES[p.tensor.dtype], p.part, p.offset)):
        tensor = piece.tensor
        if tensor.name == _METADATA:
            raise Refused("bad-schema", f"tensors.{_METADATA}", "safetensors reserves this name; rename the tensor")
        nbytes = tensor.size * DTYPE_BYTES[tensor.dtype]
        header[tensor.name] = {
            "dtype": _CODE[tensor.dtype],
            "shape": tensor.shape,
            "data_offsets": (position, position + nbytes),
        }
        _append(spans, Span(position, piece.part, piece.offset, nbytes))
        position += nbytes
    return msgspec.json.encode(header)[1:-1], tuple(spans)


def file_bytes_max(pieces: Sequence[Piece]) -> int:
    """Return what a file of these takes of a disk at most, in whole blocks.  Raise as `encode_header` does."""
    head, spans = encode_header(pieces, {_METADATA: " " * METADATA_BYTES_MAX})
    nbytes = len(head) + sum(span.nbytes for span in spans)
    return nbytes + -nbytes % DATA_ALIGN_BYTES


def header_bytes(start: bytes, where: str) -> int:
    """Return the length of the header, from the file's first `LENGTH_BYTES` bytes.  Raise `Refused`
    (``bad-model-file``).
    """
    if len(start) < LENGTH_BYTES:
        raise _bad(where, f"it has {len(start)} bytes, a safetensors file at least {LENGTH_BYTES}")
    length: int = _LENGTH.unpack_from(start)[0]
    if not 2 <= length <= MODEL_HEADER_BYTES_MAX:
        raise _bad(
            where, f"its first bytes announce a header of {length} bytes, at most {MODEL_HEADER_BYTES_MAX} can be"
        )
    return length


def decode_header(body: bytes, file_bytes: int, where: str) -> FileHeader:
    """Return the tensors of a file of `file_bytes` bytes whose header (without the length) is `body`.

    `where` names the file in errors.  Raise `Refused`: ``bad-model-file`` for what is no safetensors file,
    and what `check_schema` raises for tensors that cannot be aggregated.
    """
    header, metadata = _decode(body, where)
    found = sorted((_parse_tensor(name, entry, where) for name, entry in header.items()), key=lambda f: f[:2])
    position = 0
    for begin, end, tensor in found:
        if begin != position:
            raise _bad(where, f"tensor {tensor.name!r} begins at byte {begin}, the one before ends at {position}")
        position = end
    data_bytes = file_bytes - LENGTH_BYTES - len(body)
    if position != data_bytes:
        raise _bad(where, f"its tensors take {position} bytes, {data_bytes} follow the header: it is cut or damaged")
    tensors = tuple(tensor for _begin, _end, tensor in found)
    check_schema(tensors)
    return FileHeader(tensors, tuple(f[0] for f in found), LENGTH_BYTES + len(body), metadata)


def decode_metadata(body: bytes, where: str) -> dict[str, str]:
    """Return what the header of a file says beside its tensors.  Raise `Refused` (``bad-model-file``)."""
    return _decode(body, where)[1]


def _decode(body: bytes, where: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the tensors of a header as they stand there, and the metadata."""
    try:
        header = json.loads(body, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise _bad(where, f"its header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise _bad(where, "its header is no JSON object")
    metadata = header.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _bad(where, f"its {_METADATA} is no map of texts")
    return header, metadata


def read_spans(header: FileHeader, pieces: Sequence[Piece], where: str, others: bool = False) -> list[Span]:
    """Return where each byte of the file goes, in the file's order.

    Raise `Refused` when the file's tensors are not exactly those of `pieces` (their order may differ); with `others`
    there may be more, which are passed over.
    """
    wanted = {piece.tensor.name: piece for piece in pieces}
    spans: list[Span] = []
    for tensor, file_offset in zip(header.tensors, header.offsets, strict=True):
        piece = wanted.pop(tensor.name, None)
        if piece is None and others:
            continue
        if piece is None:
            raise _bad(where, f"it holds a tensor {tensor.name!r} that the model does not have")
        if (tensor.dtype, tensor.shape) != (piece.tensor.dtype, piece.tensor.shape):
            raise _bad(
                where,
                f"tensor {tensor.name!r} is {tensor.dtype}{tensor.shape} there and"
                f" {piece.tensor.dtype}{piece.tensor.shape} in the model",
            )
        _append(spans, Span(file_offset, piece.part, piece.offset, tensor.size * DTYPE_BYTES[tensor.dtype]))
    if wanted:
        raise _bad(where, f"it lacks the tensor {next(iter(wanted))!r}")
    return spans


def _append(spans: list[Span], span: Span) -> None:
    """Add a span; one that continues the last both in the file and in the object is joined to it."""
    if spans:
        last = spans[-1]
        if last.part == span.part and last.offset + last.nbytes == span.offset:
            spans[-1] = last._replace(nbytes=last.nbytes + span.nbytes)
            return
    spans.append(span)


def _parse_tensor(name: str, entry: Any, where: str) -> tuple[int, int, TensorSpec]:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _bad(where, f"the entry of tensor {name!r} must have dtype, shape and data_offsets")
    if name.encode("utf-8", "replace").decode() != name:
        raise _bad(where, f"the name {name!r} is no Unicode text")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2:
        raise _bad(where, f"tensor {name!r} has shape {shape!r} and data_offsets {offsets!r}: not whole numbers")
    if not isinstance(code, str) or code not in _DTYPE:
        known = ", ".join(_DTYPE)
        raise Refused(
            "wrong-dtype",
            f"tensors.{name}",
            f"{where}: tensor {name!r} is {code!r}, which cannot be aggregated; use one of {known}",
        )
    tensor = TensorSpec(name, _DTYPE[code], tuple(shape))
    if offsets[1] - offsets[0] != tensor.size * DTYPE_BYTES[tensor.dtype]:
        raise _bad(where, f"tensor {name!r} of {code} {shape} cannot take the bytes {offsets[0]} to {offsets[1]}")
    return offsets[0], offsets[1], tensor


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 63 for item in value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name stands there twice")
    return result


def _bad(where: str, problem: str) -> Refused:
    return Refused("bad-model-file", "model.path", f"{where} is no usable safetensors file: {problem}")
