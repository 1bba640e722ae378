"""Models that come with a job from another machine, and go to one: files of the state folder, piece by piece.

A model that comes is called by the SHA-256 digest of its file, so that the same one comes once, and what is there is
what was sent.  One that stops coming leaves a part, which the next one overwrites.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

from lifl.core.errors import Refused, ResourceFault
from lifl.core.limits import MODEL_PIECE_BYTES, UPLOADED_MODELS_MAX, UPLOADS_MAX
from lifl.node.modes import FILE_MODE, private_folder


class _Part(NamedTuple):
    hasher: Any
    nbytes: int


class ModelUploads:
    """The models in `folder` that came from elsewhere, each of at most `bytes_max`; `used` tells what jobs need."""

    def __init__(self, folder: Path, bytes_max: int, used: Callable[[], Collection[str]]) -> None:
        self._folder = folder
        self._bytes_max = bytes_max
        self._used = used
        self._parts: dict[str, _Part] = {}

    def put(self, digest: str, offset: int, data: bytes, total_bytes: int) -> dict[str, Any]:
        """Take a piece; return how many bytes there are, and the file's path when that is all.  Raise `Refused`."""
        path = self._folder / f"uploaded-{digest}.safetensors"
        if path.exists():
            os.utime(path)
            return {"received": total_bytes, "path": str(path)}
        if total_bytes > self._bytes_max:
            text = f"a model's file has at most {self._bytes_max} bytes here (the arena's size), not {total_bytes}"
            raise Refused("model-too-large", "model", text)
        part = self._parts.pop(digest, None) if offset else _Part(hashlib.sha256(), 0)
        if part is None or part.nbytes != offset or offset + len(data) > total_bytes:
            raise Refused("upload-lost", "model", "the pieces of the model do not fit together: send it again")
        partial = self._folder / f".{path.name}.part"
        try:
            if not offset:
                private_folder(self._folder)
                self._make_room()
            self._write(partial, offset, data)
            part.hasher.update(data)
            self._parts[digest] = part = _Part(part.hasher, offset + len(data))
            if part.nbytes < total_bytes:
                return {"received": part.nbytes, "path": ""}
            del self._parts[digest]
            if part.hasher.hexdigest() != digest:
                partial.unlink()
                raise Refused("damaged", "model", "the model has come damaged: send it again")
            partial.replace(path)
        except OSError as error:
            raise ResourceFault(f"the model cannot be written to {partial}: {error.strerror}") from error
        return {"received": total_bytes, "path": str(path)}

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
            lost = next(iter(self._parts))
            del self._parts[lost]
        for partial in self._folder.glob(".uploaded-*.part"):
            if partial.name.removeprefix(".uploaded-").split(".")[0] not in self._parts:
                partial.unlink(missing_ok=True)
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
