"""The updates of a client as files, for whoever wants to check a round by them (`lifl verify`)."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

import msgspec
import numpy as np

from lifl.client.tensors import Update
from lifl.core.errors import LocalFault, ResourceFault
from lifl.core.modelfile import encode_header, model_pieces
from lifl.core.protocol import client as cm


def kept_in(folder: str | os.PathLike[str]) -> Path:
    """Return the folder for updates, made if need be, so that what is wrong with it shows before any training.

    Raise `LocalFault` for what is no path, and `ResourceFault` when it cannot be made.
    """
    try:
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
    except (TypeError, ValueError) as error:
        raise LocalFault(f"keep_updates={folder!r:.200}: give the path of a folder") from error
    except OSError as error:
        text = f"updates cannot be kept in {path}: {error.strerror or error}"
        raise ResourceFault(f"{text}; give another folder, or leave keep_updates out") from error
    return path


def keep_update(folder: Path, client: str, submit: cm.Submit, update: Update) -> Path:
    """Write an update that is about to be sent to a file of its own; return its path.

    It is called by client, job, round and digest: what a client sends for another attempt does not take its place.
    Raise `ResourceFault`.
    """
    from lifl.shm.ingest_check import ingest_check

    data = np.empty(update.layout.data_bytes, np.uint8).data
    check, position = ingest_check(data), 0
    for view in update.views:
        check.copy(view, position)
        position += len(view)
    digest = f"{check.finish():016x}"
    metadata = {
        "format": "pt",
        "lifl.job": submit.job,
        "lifl.round": str(submit.round),
        "lifl.client": client,
        "lifl.weight": repr(submit.weight),
        "lifl.digest": digest,
    }
    there = _there(update)
    pieces = [piece for piece in model_pieces(update.layout) if piece.tensor.name in there]
    header, spans = encode_header(pieces, metadata)
    path = folder / f"{client}.{submit.job}.{submit.round}.{digest}.safetensors"
    partial = path.with_name(f".{digest}.{os.getpid()}.tmp")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                file.write(header)
                for span in spans:
                    file.write(data[span.offset : span.offset + span.nbytes])
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        text = f"the update cannot be kept as {path}: {error.strerror or error}"
        raise ResourceFault(f"{text}; make room, or leave keep_updates out") from error
    return path


def _there(update: Update) -> Collection[str]:
    """Return the names of the tensors that the update has."""
    names = [tensor.name for tensor in update.layout.tensors]
    if isinstance(update.absent, msgspec.UnsetType):
        return set(names)
    bits = int.from_bytes(update.absent, "little")
    return {name for index, name in enumerate(names) if not bits >> index & 1}
