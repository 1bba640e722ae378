"""A job for a node on another machine: what its file names lies here, and the node has to have it.

The model goes with the job; a list of clients becomes part of it.  A rule of one's own, and a folder for checkpoints,
are the node's: the one is refused, the other must be an absolute path there.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

import msgspec

from lifl.core.config.from_elsewhere import of_the_node
from lifl.core.config.job import JobConfig
from lifl.core.errors import ConfigError
from lifl.core.limits import MODEL_PIECE_BYTES
from lifl.core.protocol.cli import PutModel
from lifl_cli.config_file import with_clients_read, write_example
from lifl_cli.daemon_client import DaemonClient
from lifl_cli.output import progress
from lifl_cli.state import absolute


def sent(config: JobConfig, folder: Path, daemon: DaemonClient) -> JobConfig:
    """Return `config` as the node is to run it, with its model brought there.  Raise `ConfigError` and `Refused`."""
    config = with_clients_read(of_the_node(config), folder)
    if config.model.source:
        return config
    with tempfile.TemporaryDirectory(prefix="lifl-") as scratch:
        model = config.model
        if model.example:
            path = write_example(model.example, model.seed, Path(scratch))
        else:
            path = absolute(model.path, folder)
        placed = _brought(path, daemon)
    model = msgspec.structs.replace(model, path=placed, example="")
    return msgspec.structs.replace(config, model=model)


def _brought(path: Path, daemon: DaemonClient) -> str:
    """Return where on the node a model's file is, after it has been sent unless it was there."""
    try:
        with path.open("rb") as file:
            total = file.seek(0, 2)
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            offset = 0
            with progress("model", total) as done:
                while True:
                    file.seek(offset)
                    found = daemon.ask(PutModel(digest, offset, file.read(MODEL_PIECE_BYTES), total))
                    if found["path"]:
                        return str(found["path"])
                    done(found["received"] - offset)
                    offset = found["received"]
    except OSError as error:
        raise ConfigError("model.path", f"{path} cannot be read: {error.strerror}; give a safetensors file") from error
