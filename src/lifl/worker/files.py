"""Model files and the arena: written from views of it, read into views of it, without a copy in between.

A file is written under a temporary name in its folder, synced, renamed, and the folder is synced: under its
real name it is whole or not there, also after a power cut.  A rule's states are written before the model,
so a model is never there without them.

What is long goes from the arena to the disk past the page cache (O_DIRECT), where the file system can do that: half
the time of a copy that is synced afterwards and a twentieth of its CPU, and the cache keeps what others put there.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lifl import failpoints
from lifl.core.errors import Refused
from lifl.core.ids import Key
from lifl.core.modelfile import (
    DATA_ALIGN_BYTES,
    LENGTH_BYTES,
    Piece,
    decode_header,
    encode_header,
    header_bytes,
    model_pieces,
    read_spans,
    state_pieces,
)
from lifl.core.protocol.worker import Checkpoint, Load
from lifl.core.schema import Layout, Segment
from lifl.rules import kernels
from lifl.rules.kernels import vector
from lifl.shm.arena import Arena
from lifl.worker.task import clear_gaps

DIRECT_BYTES_MIN = 1 << 20
"""Shorter pieces are copied: their CPU is nothing, and one transfer less."""


def checkpoint(message: Checkpoint, arena: Arena) -> None:
    """Write the model and the rule's states durably.  Raise `OSError`, `Refused`, `StaleKey`."""
    layout = Layout(message.tensors)
    metadata = {"format": "pt", "lifl.job": message.job, "lifl.round": str(message.round)}
    if message.state_path and message.states:
        views = [arena.data(Key.unpack(key)) for key in message.states.values()]
        write_file(Path(message.state_path), state_pieces(layout, tuple(message.states)), metadata, views)
    write_file(Path(message.path), model_pieces(layout), metadata, [arena.data(Key.unpack(message.model))])


def load(message: Load, arena: Arena) -> None:
    """Read a model, and the rule's states or zeros, into their objects and seal them, the model last.

    Raise `OSError`, `Refused` (no model file, other tensors, not finite), `StaleKey`.
    """
    layout = Layout(message.tensors)
    keys = [Key.unpack(key) for key in message.states.values()]
    views = [arena.data(key) for key in keys]
    for view in views:
        for segment in layout.states:
            vector(view, segment).fill(0)
    if message.state_path:
        read_file(Path(message.state_path), state_pieces(layout, tuple(message.states)), views)
    for key, view in zip(keys, views, strict=True):
        _seal_finite(arena, key, view, layout.states, message.state_path)
    if message.output:
        output = Key.unpack(message.output)
        view = arena.data(output)
        read_file(Path(message.path), model_pieces(layout), [view])
        _seal_finite(arena, output, view, layout.segments, message.path)


def write_file(path: Path, pieces: Sequence[Piece], metadata: dict[str, str], views: Sequence[memoryview]) -> None:
    """Write one safetensors file whose tensors lie in `views` (by `Piece.part`).  Raise `OSError`,
    `Refused`.
    """
    header, spans = encode_header(pieces, metadata)
    buffers = [memoryview(header)]
    buffers += [views[span.part][span.offset : span.offset + span.nbytes] for span in spans]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        try:
            for buffer in buffers:
                rest = buffer[_write_direct(fd, buffer) :]
                while rest:
                    rest = rest[os.write(fd, rest) :]
            failpoints.hit("worker.file_fsync.before")
            os.fsync(fd)
            failpoints.hit("worker.file_fsync.after")
        finally:
            os.close(fd)
        os.rename(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        failpoints.hit("worker.folder_fsync.before")
        os.fsync(folder)
        failpoints.hit("worker.folder_fsync.after")
    finally:
        os.close(folder)


def read_file(path: Path, pieces: Sequence[Piece], views: Sequence[memoryview]) -> None:
    """Read a safetensors file that holds exactly `pieces` into `views`.  Raise `OSError`, `Refused`."""
    where = str(path)
    with path.open("rb", buffering=0) as file:
        body = file.read(header_bytes(file.read(LENGTH_BYTES), where))
        header = decode_header(body, os.fstat(file.fileno()).st_size, where)
        for span in read_spans(header, pieces, where):
            target = views[span.part][span.offset : span.offset + span.nbytes]
            file.seek(header.header_bytes + span.file_offset)
            while target:
                count = file.readinto(target)
                if not count:
                    raise Refused("bad-model-file", "model.path", f"{where} became shorter while it was read")
                target = target[count:]


def _seal_finite(arena: Arena, key: Key, view: memoryview, segments: tuple[Segment, ...], where: str) -> None:
    for segment in segments:
        if not kernels.all_finite(vector(view, segment)):
            raise Refused(
                "not-finite",
                "model.path",
                f"{where}: its {segment.dtype} tensors hold NaN or infinity; start from another model",
            )
    clear_gaps(view, segments)
    failpoints.hit("worker.load_seal.before")
    arena.seal(key, 0.0, 0)
    failpoints.hit("worker.load_seal.after")


def _write_direct(fd: int, buffer: memoryview) -> int:
    """Write the whole blocks of `buffer` at the file's position past the page cache; return how many bytes are written.

    None where the piece is short, lies otherwise than its place in the file, or the file system refuses (EINVAL).
    """
    whole = len(buffer) // DATA_ALIGN_BYTES * DATA_ALIGN_BYTES
    if whole < DIRECT_BYTES_MIN:
        return 0
    address = int(np.frombuffer(buffer, np.uint8).__array_interface__["data"][0])
    if address % DATA_ALIGN_BYTES or os.lseek(fd, 0, os.SEEK_CUR) % DATA_ALIGN_BYTES:
        return 0
    written = 0
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT)
        while written < whole:
            step = os.write(fd, buffer[written:whole])
            written += step
            if step % DATA_ALIGN_BYTES:  # the disk is full, as the next write will say
                break
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    finally:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags)
    return written
