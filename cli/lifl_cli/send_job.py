"""A job for a node on another machine: what its file names lies here, and the node has to have it.

The model goes with the job; a list of clients becomes part of it.  A rule of one's own, and a folder for checkpoints,
are the node's: the one is refused, the other must be an absolute path there.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

import msgspec

from lifl.core.config.job import JobConfig, with_listed
from lifl.core.errors import ConfigError
from lifl.core.limits import MODEL_PIECE_BYTES
from lifl.core.protocol.cli import PutModel
from lifl_cli.config_file import write_example
from lifl_cli.daemon_client import DaemonClient
from lifl_cli.state import absolute


def sent(config: JobConfig, folder: Path, daemon: DaemonClient) -> JobConfig:
    """Return `config` as the node is to run it, with its model brought there.  Raise `ConfigError` and `Refused`."""
    if ":" in config.aggregation.rule:
        text = f"{config.aggregation.rule} is code of your own, which has to lie on the node: submit the job there"
        raise ConfigError("aggregation.rule", text)
    if config.checkpoint.folder and not Path(config.checkpoint.folder).is_absolute():
        raise ConfigError("checkpoint.folder", "with --node it is a folder of the node: give an absolute path")
    if config.selection.clients_file:
        from lifl.node.machine import read_clients

        config = with_listed(config, read_clients(str(absolute(str(config.selection.clients_file), folder))))
        selection = msgspec.structs.replace(config.selection, clients_file=msgspec.UNSET)
        config = msgspec.structs.replace(config, selection=selection)
    with tempfile.TemporaryDirectory(prefix="lifl-") as scratch:
        model = config.model
        if model.example:
            path = write_example(model.example, model.seed, Path(scratch))
        else:
            path = absolute(model.path, folder)
        placed = _brought(path, daemon)
    aggregation = msgspec.structs.replace(config.aggregation, rule_folder="/")
    model = msgspec.structs.replace(model, path=placed, example="")
    return msgspec.structs.replace(config, model=model, aggregation=aggregation)


def _brought(path: Path, daemon: DaemonClient) -> str:
    """Return where on the node a model's file is, after it has been sent unless it was there."""
    try:
        with path.open("rb") as file:
            total = file.seek(0, 2)
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            offset = 0
            while True:
                file.seek(offset)
                found = daemon.ask(PutModel(digest, offset, file.read(MODEL_PIECE_BYTES), total))
                if found["path"]:
                    return str(found["path"])
                offset = found["received"]
    except OSError as error:
        raise ConfigError("model.path", f"{path} cannot be read: {error.strerror}; give a safetensors file") from error
