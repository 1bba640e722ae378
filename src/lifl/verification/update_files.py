"""Updates as safetensors files: whose each is, and its bytes as they travelled.

A file that a client has kept (`Client(keep_updates=...)`) says whose it is, of which round, and what it weighed; of any
other the name, without its ending, is the client's.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from lifl.core.errors import Refused, ResourceFault
from lifl.core.modelfile import LENGTH_BYTES, FileHeader, decode_header, header_bytes, model_pieces
from lifl.core.protocol.contribution import absent_bits
from lifl.core.schema import Layout
from lifl.shm.checksum import checksum
from lifl.verification.receipt_file import RoundReceipt, UpdateLine, check_regular, named
from lifl.worker.files import read_file

ENDING = ".safetensors"


class FoundUpdate(NamedTuple):
    """An update that is there: its bytes, as its job's updates lie, and which tensors it lacks."""

    line: UpdateLine
    view: memoryview
    absent: bytes | msgspec.UnsetType


def room_for(nbytes: int) -> memoryview:
    """Return so many bytes, zeros, on the disk for temporary files: there may be many updates.  Raise `OSError`."""
    with tempfile.TemporaryFile(prefix="lifl-") as file:
        os.posix_fallocate(file.fileno(), 0, nbytes)
        return memoryview(mmap.mmap(file.fileno(), nbytes))


def header_of(path: Path) -> FileHeader:
    """Return what a safetensors file holds.  Raise `OSError`, `Refused`."""
    check_regular(path)
    with path.open("rb") as file:
        body = file.read(header_bytes(file.read(LENGTH_BYTES), str(path)))
        return decode_header(body, os.fstat(file.fileno()).st_size, str(path))


def files_of(given: Iterable[Path], receipt: RoundReceipt) -> tuple[dict[str, list[Path]], list[Path]]:
    """Return the files that may be of the round, by client, and those that cannot be read; folders are looked into.

    Raise `ResourceFault`.
    """
    paths: list[Path] = []
    for each in given:
        try:
            paths += sorted(path for path in each.iterdir() if path.suffix == ENDING) if each.is_dir() else [each]
        except OSError as error:
            raise ResourceFault(f"{each} cannot be read: {error.strerror or error}") from error
    found: dict[str, list[Path]] = {}
    bad: list[Path] = []
    for path in paths:
        try:
            metadata = header_of(path).metadata
        except (OSError, Refused):
            bad.append(path)
            continue
        own = {"lifl.job": receipt.job, "lifl.round": str(receipt.round)}
        if all(metadata.get(name, value) == value for name, value in own.items()):
            found.setdefault(metadata.get("lifl.client", path.name.removesuffix(ENDING)), []).append(path)
    return found, bad


def load_updates(given: Sequence[Path], receipt: RoundReceipt, layout: Layout) -> list[FoundUpdate]:
    """Return the updates of a round.  Raise `Refused` when one is missing, or another one; `ResourceFault`."""
    files, bad = files_of(given, receipt)
    missing = [line.client for line in receipt.updates if line.client not in files]
    if missing:
        unread = f"; {len(bad)} files there cannot be read: {named([path.name for path in bad])}" if bad else ""
        text = f"the update of {named(missing)} is missing ({len(missing)} of {len(receipt.updates)}){unread}"
        raise Refused("missing-update", "updates", text)
    return [_one_of(files, line, receipt, layout) for line in receipt.updates]


def _one_of(
    files: Mapping[str, Sequence[Path]], line: UpdateLine, receipt: RoundReceipt, layout: Layout
) -> FoundUpdate:
    """Return that one of a client's files which has the digest.  Raise `Refused`, `ResourceFault`."""
    seen = []
    for path in files[line.client]:
        try:
            header = header_of(path)
            view, absent = _load(path, header, layout, bool(receipt.trainable))
        except OSError as error:
            raise ResourceFault(f"the update in {path} cannot be read: {error.strerror or error}") from error
        digest = f"{checksum(view):016x}"
        if digest != line.digest:
            seen.append(f"{path.name} has {digest}")
            continue
        weight = header.metadata.get("lifl.weight", repr(line.weight))
        if weight != repr(line.weight):
            text = f"the update of {line.client} was sent with weight {weight:.40}, and counted with {line.weight!r}"
            raise Refused("other-update", "updates", text)
        return FoundUpdate(line, view, absent)
    text = f"{line.client} has another update: its digest in the receipt is {line.digest}, {named(seen)}"
    raise Refused("other-update", "updates", text)


def _load(path: Path, header: FileHeader, layout: Layout, lacks: bool) -> tuple[memoryview, bytes | msgspec.UnsetType]:
    there = {tensor.name for tensor in header.tensors} if lacks else {tensor.name for tensor in layout.tensors}
    view = room_for(layout.data_bytes)
    read_file(path, [piece for piece in model_pieces(layout) if piece.tensor.name in there], [view], others=lacks)
    names = [tensor.name for tensor in layout.tensors]
    return view, absent_bits(names, there) if not there.issuperset(names) else msgspec.UNSET
