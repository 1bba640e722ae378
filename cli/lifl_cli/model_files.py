"""What is in a model's file, and how two of them differ: read in pieces, so a model may be larger than memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lifl.core.errors import ResourceFault
from lifl.core.modelfile import LENGTH_BYTES, FileHeader, decode_header, header_bytes
from lifl.core.schema import DTYPE_BYTES, TensorSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PIECE_ELEMENTS = 1 << 20
READ_BYTES = 1 << 20


def info_of(path: Path) -> dict[str, Any]:
    """Return what a file has: {"file", "bytes", "digest", "metadata", "tensors"}; its tensors by name.

    Each has name, dtype, shape, bytes, norm (Euclidean; None where it is not finite) and how many are not finite.
    Raise `Refused` for what is no model, `ResourceFault` for what cannot be read.
    """
    try:
        header = _header(path)
        tensors = [_about(path, header, index) for index in range(len(header.tensors))]
        norms = [line["norm"] for line in tensors]
        return {
            "file": str(path),
            "bytes": path.stat().st_size,
            "digest": _digest(path),
            "metadata": header.metadata,
            "elements": sum(tensor.size for tensor in header.tensors),
            "norm": None if None in norms else math.sqrt(math.fsum(norm * norm for norm in norms)),
            "tensors": sorted(tensors, key=lambda line: str(line["name"])),
        }
    except OSError as error:
        raise ResourceFault(f"{path} cannot be read: {error.strerror or error}") from error


def difference(before: Path, after: Path) -> dict[str, Any]:
    """Return how two files differ: {"before", "after", "added", "removed", "changed", "tensors"}, each by names.

    `changed` are tensors of another dtype or shape; of the others `tensors` has the largest difference (max_abs), that
    of the whole relative to before (relative; None: before is zero, or something is not finite), and the share of the
    elements that are others.  Raise as `info_of` does.
    """
    try:
        first, second = _header(before), _header(after)
        at = [{tensor.name: index for index, tensor in enumerate(header.tensors)} for header in (first, second)]
        changed, same = [], []
        for name in sorted(at[0].keys() & at[1].keys()):
            one, other = first.tensors[at[0][name]], second.tensors[at[1][name]]
            if (one.dtype, one.shape) != (other.dtype, other.shape):
                changed.append({"name": name, "before": _kind(one), "after": _kind(other)})
                continue
            pieces = zip(_pieces(before, first, at[0][name]), _pieces(after, second, at[1][name]), strict=True)
            same.append({"name": name} | _differing(pieces, one.size))
        return {
            "before": str(before),
            "after": str(after),
            "added": sorted(at[1].keys() - at[0].keys()),
            "removed": sorted(at[0].keys() - at[1].keys()),
            "changed": changed,
            "tensors": same,
        }
    except OSError as error:
        raise ResourceFault(f"{error.filename or before} cannot be read: {error.strerror or error}") from error


def _header(path: Path) -> FileHeader:
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise ResourceFault(f"{path} is no file: name a safetensors file, or a job as JOB@ROUND")
    with path.open("rb") as file:
        body = file.read(header_bytes(file.read(LENGTH_BYTES), str(path)))
        return decode_header(body, path.stat().st_size, str(path))


def _digest(path: Path) -> str:
    from lifl.shm.checksum import StreamChecksum

    found = StreamChecksum()
    with path.open("rb") as file:
        while piece := file.read(READ_BYTES):
            found.update(piece)
    return f"{found.finish():016x}"


def _kind(tensor: TensorSpec) -> str:
    return f"{tensor.dtype}{list(tensor.shape)}"


def _pieces(path: Path, header: FileHeader, index: int) -> Iterator[NDArray[np.generic]]:
    """Yield a tensor's elements, some at a time."""
    import ml_dtypes
    import numpy as np

    tensor, place = header.tensors[index], header.header_bytes + header.offsets[index]
    dtype = np.dtype(getattr(ml_dtypes, tensor.dtype, None) or tensor.dtype)
    with path.open("rb") as file:
        file.seek(place)
        left = tensor.size
        while left:
            count = min(left, PIECE_ELEMENTS)
            data = file.read(count * DTYPE_BYTES[tensor.dtype])
            yield np.frombuffer(data, dtype)
            left -= count


def _about(path: Path, header: FileHeader, index: int) -> dict[str, Any]:
    import numpy as np

    tensor, squares, odd = header.tensors[index], 0.0, 0
    for piece in _pieces(path, header, index):
        wide = piece.astype(np.float64)
        bad = int(wide.size - np.isfinite(wide).sum())
        odd += bad
        squares += float(np.dot(wide, wide)) if not bad else 0.0
    return {
        "name": tensor.name,
        "dtype": tensor.dtype,
        "shape": list(tensor.shape),
        "bytes": tensor.size * DTYPE_BYTES[tensor.dtype],
        "norm": math.sqrt(squares) if not odd and math.isfinite(squares) else None,
        "not_finite": odd,
    }


def _differing(pieces: Iterator[tuple[Any, Any]], size: int) -> dict[str, Any]:
    import numpy as np

    most, apart, whole, others = 0.0, 0.0, 0.0, 0
    for one, other in pieces:
        before, after = one.astype(np.float64), other.astype(np.float64)
        both_nan = np.isnan(before) & np.isnan(after)
        differ = (one != other) & ~both_nan
        others += int(differ.sum())
        with np.errstate(invalid="ignore", over="ignore"):
            delta = np.where(differ, after - before, 0.0)
            most = max(most, float(np.max(np.abs(delta)))) if not np.isnan(delta).any() else math.nan
            apart, whole = apart + float(np.dot(delta, delta)), whole + float(np.dot(before, before))
    finite = math.isfinite(most) and math.isfinite(apart) and math.isfinite(whole)
    relative = math.sqrt(apart / whole) if finite and whole else 0.0 if finite and not apart else None
    return {
        "max_abs": most if math.isfinite(most) else None,
        "relative": relative,
        "changed_share": others / size if size else 0.0,
    }
