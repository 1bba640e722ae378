"""Model files and the arena: written from views of it, read into views of it, without a copy in between.

A file is written under a temporary name in its folder, synced, renamed, and the folder is synced: under its
real name it is whole or not there, also after a power cut.  A rule's states are written before the model,
so a model is never there without them.

What is long goes from the arena to the disk past the page cache (`shm/direct.py`).
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import msgspec

from lifl import failpoints
from lifl.core.errors import Refused, ResourceFault
from lifl.core.fields import Tensors
from lifl.core.formats import CHECKPOINT_FORMAT, RELEASE, newer_text
from lifl.core.ids import Key
from lifl.core.limits import COUNT_MAX, WORD_CHARS_MAX
from lifl.core.modelfile import (
    CLAIM,
    CLAIM_BYTES_MAX,
    LENGTH_BYTES,
    Piece,
    decode_header,
    encode_header,
    header_bytes,
    model_pieces,
    read_spans,
    state_pieces,
)
from lifl.core.planning.treatment import Patterns
from lifl.core.protocol.worker import Checkpoint, Load
from lifl.core.schema import Layout, Segment
from lifl.rules import kernels
from lifl.rules.kernels import vector
from lifl.shm.arena import Arena
from lifl.shm.checksum import StreamChecksum, first_nan, first_not_finite
from lifl.shm.direct import write_all
from lifl.worker.task import clear_gaps


@lru_cache(maxsize=1)
def layout_of(tensors: bytes) -> Layout:
    """Return the layout of what the daemon says, which is the same in each round of a job: it is made once of it.

    Ten thousand tensors take longer to unpack than their file takes to write.
    """
    return Layout(msgspec.msgpack.decode(tensors, type=Tensors))


@lru_cache(maxsize=1)
def _pieces_of(layout: Layout) -> tuple[Piece, ...]:
    """Return the tensors of a model object with this layout."""
    return tuple(model_pieces(layout))


def checkpoint(message: Checkpoint, arena: Arena) -> tuple[str, ...]:
    """Write the model and the rule's states durably; return the files' digests, the model's first.

    Raise `ResourceFault` (with the file and what to do; it may work later), `Refused`, `StaleKey`.
    """
    layout, model = layout_of(message.tensors), Key.unpack(message.model)
    metadata = {
        "format": "pt",
        "lifl.job": message.job,
        "lifl.round": str(message.round),
        "lifl.node": f"{message.node or model.node:016x}",
        "lifl.number": str(message.number),
        "lifl.epoch": str(message.epoch),
        "lifl.format": str(CHECKPOINT_FORMAT),
        "lifl.release": RELEASE,
    }
    digests: list[str] = []
    if message.node:
        _check_folder(message)
    if message.state_path and message.states:
        views = [arena.data(Key.unpack(key)) for key in message.states.values()]
        pieces = state_pieces(layout, tuple(message.states))
        with _said(message.state_path, "written"):
            digests.append(write_file(Path(message.state_path), pieces, metadata, views))
    with _said(message.path, "written"):
        digests.insert(0, write_file(Path(message.path), _pieces_of(layout), metadata, [arena.data(model)]))
    return tuple(digests)


def _check_folder(message: Checkpoint) -> None:
    """Raise `Refused` when the folder of a copy is that of another job, which an earlier life of the node has had."""
    path = Path(message.path).parent / CLAIM
    try:
        with open(path, "rb") as file:
            owner = json.loads(file.read(CLAIM_BYTES_MAX))
    except (OSError, ValueError):
        return
    if isinstance(owner, dict) and (owner.get("job"), owner.get("name")) != (message.number, message.job):
        text = f"{path.parent} is that of another job (number {owner.get('job')}): move it away"
        raise Refused("folder-in-use", "checkpoint", text)


def load(message: Load, arena: Arena) -> None:
    """Read a model, and the rule's states or zeros, into their objects and seal them, the model last.

    Raise `ResourceFault` (it may work later), `Refused` (no model file, other tensors, not finite; not the checkpoint
    that it should be, or damaged), `StaleKey`.
    """
    layout = layout_of(message.tensors)
    keys = [Key.unpack(key) for key in message.states.values()]
    views = [arena.data(key) for key in keys]
    for view in views:
        for segment in layout.states:
            vector(view, segment).fill(0)
    if message.state_path:
        _read_checked(message, message.state_path, state_pieces(layout, tuple(message.states)), views, 1)
    for key, view in zip(keys, views, strict=True):
        _check_states(view, layout, message.state_path)
        _seal(arena, key, view, layout.states)
    if message.output:
        output = Key.unpack(message.output)
        view = arena.data(output)
        _read_checked(message, message.path, model_pieces(layout), [view], 0)
        _check_model(view, layout, message.patterns, message.path)
        _seal(arena, output, view, layout.segments)


def _read_checked(message: Load, path: str, pieces: list[Piece], views: list[memoryview], index: int) -> None:
    """Read one of the files, and check that it is the job's own and as it was written."""
    with _said(path, "read"):
        initial = message.round is None  # of a job's trainable tensors the file may be one of the whole model
        metadata, digest = read_file(Path(path), pieces, views, initial and bool(message.patterns.trainable))
    if message.round is None:
        return
    known = message.digests[index] if index < len(message.digests) else ""
    node = Key.unpack(message.output).node if message.output else None
    wanted = {"lifl.job": message.job, "lifl.round": str(message.round), "lifl.number": str(message.number)}
    if node is not None and (not known or known != digest):  # another node may have coordinated, and have written it
        wanted["lifl.node"] = f"{node:016x}"
    # An earlier version wrote neither number nor node.
    for name in [name for name in ("lifl.number", "lifl.node") if name not in metadata]:
        wanted.pop(name, None)
    found = {name: metadata.get(name, "none") for name in wanted}
    if found != wanted:
        wrong = [name for name in wanted if found[name] != wanted[name]]
        told = ", ".join(f"{name} {found[name]}, not {wanted[name]}" for name in wrong)
        raise Refused("not-own", "checkpoint", f"{path} is not the checkpoint of round {message.round}: it says {told}")
    if known and known != digest:
        text = f"{path} is damaged: its digest is {digest}, that of what was written is {known}"
        raise Refused("damaged", "checkpoint", text)


ADVICE = {
    errno.ENOSPC: "make room on its disk",
    errno.EDQUOT: "make room in the quota of lifld's user",
    errno.EROFS: "mount its disk for writing",
    errno.EIO: "its disk reports errors: see dmesg, and let it be written elsewhere",
    errno.EACCES: "give lifld's user the right to it",
    errno.EPERM: "give lifld's user the right to it",
    errno.ENOENT: "mount its disk, or make its folder again",
    errno.EFBIG: "raise the limit of a file's size (ulimit -f)",
}
"""What to do about an errno at a checkpoint."""
DAMAGED = frozenset({errno.EIO, errno.ENOENT, errno.EISDIR})
"""At reading: the file is lost, as long as its folder is there."""


@contextmanager
def _said(path: str, what: str) -> Iterator[None]:
    """Make of an `OSError` a `ResourceFault` that names the file and what to do, or (it is lost) a `Refused`."""
    try:
        yield
    except OSError as error:
        text = f"{path} cannot be {what}: {error.strerror or error}"
        if what == "read" and error.errno in DAMAGED and os.path.isdir(os.path.dirname(path)):
            raise Refused("lost", "checkpoint", text) from error
        advice = ADVICE.get(error.errno or 0, "see to it")
        raise ResourceFault(f"{text}; {advice}; it is tried again by itself") from error


def write_file(path: Path, pieces: Sequence[Piece], metadata: dict[str, str], views: Sequence[memoryview]) -> str:
    """Write one safetensors file whose tensors lie in `views` (by `Piece.part`); return its digest.

    Raise `OSError`, `Refused`.
    """
    header, spans = encode_header(pieces, metadata)
    buffers = [memoryview(header)]
    buffers += [views[span.part][span.offset : span.offset + span.nbytes] for span in spans]
    digest = StreamChecksum()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        try:
            for buffer in buffers:
                digest.update(buffer)
                write_all(fd, buffer)
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
    return f"{digest.finish():016x}"


def read_file(
    path: Path, pieces: Sequence[Piece], views: Sequence[memoryview], others: bool = False
) -> tuple[dict[str, str], str]:
    """Read a safetensors file that holds exactly `pieces` into `views`; return its metadata and its digest.

    With `others` it may hold other tensors, too, which are not read.

    Raise `OSError`, `Refused`, and `ResourceFault` when a newer release wrote it.
    """
    where = str(path)
    digest = StreamChecksum()
    with path.open("rb", buffering=0) as file:
        start = file.read(LENGTH_BYTES)
        body = file.read(header_bytes(start, where))
        digest.update(start + body)
        header = decode_header(body, os.fstat(file.fileno()).st_size, where)
        _check_format(header.metadata, where)
        for span in read_spans(header, pieces, where, others):
            target = views[span.part][span.offset : span.offset + span.nbytes]
            file.seek(header.header_bytes + span.file_offset)
            while target:
                count = file.readinto(target)
                if not count:
                    raise Refused("bad-model-file", "model.path", f"{where} became shorter while it was read")
                digest.update(target[:count])
                target = target[count:]
    return header.metadata, f"{digest.finish():016x}"


def _check_format(metadata: dict[str, str], where: str) -> None:
    """Raise `ResourceFault` with the release to take for a file of a newer one: it is not lost, and not damaged."""
    said, release = metadata.get("lifl.format", "0"), metadata.get("lifl.release", "")
    if not said.isascii() or not said.isdecimal() or len(said) > len(str(COUNT_MAX)):
        raise Refused("bad-model-file", "model.path", f"{where} says that it has format {said!r:.40}, which is none")
    if int(said) > CHECKPOINT_FORMAT:
        raise ResourceFault(newer_text(where, int(said), CHECKPOINT_FORMAT, release[:WORD_CHARS_MAX]))


def _check_model(view: memoryview, layout: Layout, patterns: Patterns, where: str) -> None:
    """Raise `Refused`, naming the tensor, for NaN, and for infinity in what is averaged."""
    looks = [(part, first_not_finite) for part in patterns.averaged(layout)]
    looks += [(part, first_nan) for part in patterns.others(layout)]
    for part, first in looks:
        element = first(vector(view, part))
        if element is not None:
            tensor, element = layout.tensor_in(part, element)
            raise Refused(
                "not-finite",
                "model.path",
                f"{where}: element {element} of tensor {tensor.name!r} (flattened) is NaN or infinite; start from"
                " another model, or list a mask of infinities in aggregation.fixed",
            )


def _check_states(view: memoryview, layout: Layout, where: str) -> None:
    """Raise `Refused` for a number that is not finite."""
    if not all(kernels.all_finite(vector(view, segment)) for segment in layout.states):
        raise Refused("not-finite", "model.path", f"{where}: the rule's state holds NaN or infinity; start without it")


def _seal(arena: Arena, key: Key, view: memoryview, segments: tuple[Segment, ...]) -> None:
    clear_gaps(view, segments)
    failpoints.hit("worker.load_seal.before")
    arena.seal(key, 0.0, 0)
    failpoints.hit("worker.load_seal.after")
