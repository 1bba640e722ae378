"""Where a run goes on when its ServerApp was killed: the last round's model, in a file that is synced to the disk.

A run is known by its app, its strategy and what its model looks like; the file is removed when the run has come to its
end.  Flower's loop begins at round 1 in any case: the rounds that are done send nothing and take no time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from lifl.client.tensors import Array
from lifl.core.errors import ResourceFault

log = logging.getLogger("flwr")

VARIABLE = "LIFL_FLOWER_STATE"
"""The folder of the files, in the place of ~/.local/state/lifl/flower."""


class Found(NamedTuple):
    """Behind which round a run goes on, with which model."""

    round: int
    tensors: dict[str, Array]


class RunFile:
    """The file of one run: of the app `app`, with the strategy `name` and a model of these tensors.

    Raise `ResourceFault` where there is no place for it.
    """

    def __init__(self, app: str, name: str, tensors: Mapping[str, Array]) -> None:
        about = [app, name, *(f"{each} {array.dtype} {array.shape}" for each, array in sorted(tensors.items()))]
        try:
            folder = Path(os.environ.get(VARIABLE) or "~/.local/state/lifl/flower").expanduser()
        except RuntimeError as error:  # HOME is unset, and the account has no entry
            raise ResourceFault(f"there is no home folder to keep the run in: {error}; set ${VARIABLE}") from error
        self.path = folder / f"{hashlib.sha256(json.dumps(about).encode()).hexdigest()[:24]}.safetensors"

    def found(self) -> Found | None:
        """Return what an earlier run has left, if it has.  Raise `ResourceFault` when it cannot be read."""
        from safetensors import SafetensorError, safe_open

        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, "numpy") as file:
                number = int(file.metadata()["round"])
                return Found(number, {name: file.get_tensor(name) for name in json.loads(file.metadata()["names"])})
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            text = f"the run cannot go on from {self.path}: {error}; remove the file to begin with round 1"
            raise ResourceFault(text) from error

    def save(self, number: int, tensors: Mapping[str, Array]) -> None:
        """Write the model of a round, synced, in the place of the one before.  Raise `ResourceFault`."""
        from safetensors import SafetensorError
        from safetensors.numpy import save_file

        beside = self.path.with_suffix(f".{os.getpid()}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            save_file(dict(tensors), beside, {"round": str(number), "names": json.dumps(list(tensors))})
            for path in (beside, self.path.parent):
                descriptor = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
                if path == beside:
                    os.replace(beside, self.path)
        except (OSError, SafetensorError) as error:
            with suppress(OSError):
                beside.unlink()
            raise ResourceFault(f"the model of round {number} cannot be written to {self.path}: {error}") from error

    def remove(self) -> None:
        """Forget the run: it has come to its end.  Where that cannot be it is logged: the run has its result."""
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("LIFL: %s; remove the file, or the next run goes on behind this one's end", error)


def later(evaluate: Callable[[int, Any], Any] | None, done: int) -> Callable[[int, Any], Any] | None:
    """Return the ServerApp's evaluation, which is not called again for the rounds that are done."""
    if evaluate is None or not done:
        return evaluate
    return lambda number, arrays: evaluate(number, arrays) if number > done else None
