"""Models that come with a job from another machine, and go to one: files of the state folder, piece by piece.

A model that comes is called by the SHA-256 digest of its file, so that the same one comes once, and what is there is
what was sent.  The part of one that stops coming is removed when it has waited for `PART_IDLE_S`, and with the node's
next start.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from lifl.core.errors import Refused, ResourceFault
from lifl.core.limits import MODEL_PIECE_BYTES, UPLOADED_MODELS_MAX, UPLOADS_MAX
from lifl.node.modes import FILE_MODE, private_folder

PART_IDLE_S = 60.0
"""How long a part is kept that no piece comes for: whoever sent it was interrupted, or is gone."""


class _Part(NamedTuple):
    hasher: Any
    nbytes: int
    idle: asyncio.TimerHandle | None = None


class ModelUploads:
    """The models in `folder` that came from elsewhere, each of at most `bytes_max`; `used` tells what jobs need."""

    def __init__(self, folder: Path, bytes_max: int, used: Callable[[], Collection[str]]) -> None:
        self._folder = folder
        self._bytes_max = bytes_max
        self._used = used
        self._parts: dict[str, _Part] = {}
        self._remove_others()

    def put(self, digest: str, offset: int, data: bytes, total_bytes: int) -> dict[str, Any]:
        """Take a piece; return how many bytes there are, and the file's path when that is all.  Raise `Refused`."""
        path = self._folder / f"uploaded-{digest}.safetensors"
        if path.exists():
            os.utime(path)
            return {"received": total_bytes, "path": str(path)}
        if total_bytes > self._bytes_max:
            text = f"a model's file has at most {self._bytes_max} bytes here (the arena's size), not {total_bytes}"
            raise Refused("model-too-large", "model", text)
        before = self._forget(digest)
        part = before if offset else _Part(hashlib.sha256(), 0)
        if part is None or part.nbytes != offset or offset + len(data) > total_bytes:
            raise Refused("upload-lost", "model", "the pieces of the model do not fit together: send it again")
        partial = self._folder / f".{path.name}.part"
        try:
            if not offset:
                private_folder(self._folder)
                self._make_room()
            self._write(partial, offset, data)
            part.hasher.update(data)
            received = offset + len(data)
            if received < total_bytes:
                idle = asyncio.get_running_loop().call_later(PART_IDLE_S, self._give_up, digest)
                self._parts[digest] = _Part(part.hasher, received, idle)
                return {"received": received, "path": ""}
            if part.hasher.hexdigest() != digest:
                partial.unlink()
                raise Refused("damaged", "model", "the model has come damaged: send it again")
            partial.replace(path)
        except OSError as error:
            raise ResourceFault(f"the model cannot be written to {partial}: {error.strerror}") from error
        return {"received": total_bytes, "path": str(path)}

    def _forget(self, digest: str) -> _Part | None:
        """Return what is known of a part, which is not known any more."""
        part = self._parts.pop(digest, None)
        if part is not None and part.idle is not None:
            part.idle.cancel()
        return part

    def _give_up(self, digest: str) -> None:
        """Remove a part that stays one."""
        self._forget(digest)
        self._remove_others()

    def _remove_others(self) -> None:
        """Remove the files of parts that are not known; what cannot be removed now is tried again."""
        for partial in self._folder.glob(".uploaded-*.part"):
            if partial.name.removeprefix(".uploaded-").split(".")[0] not in self._parts:
                with suppress(OSError):
                    partial.unlink(missing_ok=True)

    def _write(self, partial: Path, offset: int, data: bytes) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | (0 if offset else os.O_TRUNC)
        fd = os.open(partial, flags, FILE_MODE)
        try:
            if os.pwrite(fd, data, offset) < len(data):
                raise OSError(0, "it was not written to its end")
        finally:
            os.close(fd)

    def _make_room(self) -> None:
        """Forget the uploads that came first, and the models that no job needs beyond the newest."""
        while len(self._parts) >= UPLOADS_MAX:
            self._forget(next(iter(self._parts)))
        self._remove_others()
        models = sorted(self._folder.glob("uploaded-*.safetensors"), key=lambda path: path.stat().st_mtime)
        used = self._used() if len(models) >= UPLOADED_MODELS_MAX else ()
        for path in models[: max(0, len(models) - UPLOADED_MODELS_MAX + 1)]:
            if str(path) not in used:
                path.unlink(missing_ok=True)


def read_piece(path: Path, offset: int) -> dict[str, Any]:
    """Return a piece of a model's file, and how long the file is.  Raise `ResourceFault`."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            return {"bytes": os.fstat(fd).st_size, "data": os.pread(fd, MODEL_PIECE_BYTES, offset)}
        finally:
            os.close(fd)
    except OSError as error:
        raise ResourceFault(f"the model in {path} cannot be read: {error.strerror}") from error
