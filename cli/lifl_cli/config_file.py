"""The TOML files that users write: read, and what a job's file names made absolute.

Paths in a job's file (model, checkpoint folder, the user's own rule) are relative to the file.  An example model is
made here and written to the state folder, so the daemon only ever reads safetensors files.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from lifl.core.config.job import JobConfig, with_listed
from lifl.core.config.parse import is_utf8, table_of
from lifl.core.errors import ConfigError, ResourceFault
from lifl.core.limits import CONFIG_FILE_BYTES_MAX
from lifl_cli.rule_apart import states_apart
from lifl_cli.state import MODELS_FOLDER, absolute

STANDARD_INPUT = "-"


def read_toml(path: str) -> dict[str, Any]:
    """Return the table in the TOML file at `path` (``-``: standard input).  Raise `ConfigError`."""
    try:
        with open(0 if path == STANDARD_INPUT else path, "rb", closefd=path != STANDARD_INPUT) as file:
            content = file.read(CONFIG_FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError("", f"cannot read {path}: {error.strerror}") from error
    path = "standard input" if path == STANDARD_INPUT else path
    if len(content) > CONFIG_FILE_BYTES_MAX:
        raise ConfigError("", f"{path} is longer than {CONFIG_FILE_BYTES_MAX} bytes; is it a configuration?")
    try:
        return table_of(content.decode())
    except (ValueError, RecursionError) as error:  # not TOML, not UTF-8, numbers and nesting without end
        raise ConfigError("", f"{path} is not TOML: {error}") from error


def resolve(config: JobConfig, folder: Path, state_dir: Path) -> JobConfig:
    """Return `config` with absolute paths, and its example model written.  Raise `ConfigError`."""
    model = config.model
    if model.example:
        path = write_example(model.example, model.seed, state_dir / MODELS_FOLDER)
        model = msgspec.structs.replace(model, path=str(path), example="")
    elif not model.source:
        path = absolute(model.path, folder)
        if not path.is_file():
            raise ConfigError("model.path", f"there is no file {path}; give a safetensors file")
        model = msgspec.structs.replace(model, path=str(path))
    checkpoint = config.checkpoint
    if checkpoint.folder:
        checkpoint = msgspec.structs.replace(checkpoint, folder=str(absolute(checkpoint.folder, folder)))
    selection = config.selection
    if selection.clients_file:
        clients_file = str(absolute(str(selection.clients_file), folder))
        selection = msgspec.structs.replace(selection, clients_file=clients_file)
    aggregation = config.aggregation
    rule_folder = str(absolute(aggregation.rule_folder or ".", folder))
    if ":" in aggregation.rule or is_utf8(rule_folder):  # a built-in rule needs none
        aggregation = msgspec.structs.replace(aggregation, rule_folder=rule_folder)
    metrics = config.metrics
    if config.told.tracker not in (msgspec.UNSET, "mlflow") and config.told.address:
        metrics = msgspec.structs.replace(config.told, address=str(absolute(str(config.told.address), folder)))
    for key, named in (
        ("model.path", model.path),
        ("selection.clients_file", selection.clients_file),
        ("checkpoint.folder", checkpoint.folder),
        ("aggregation.rule_folder", aggregation.rule_folder),
        ("metrics.address", config.told.address or ""),
    ):
        if not is_utf8(str(named)):
            text = f"{named!r} is not UTF-8, and cannot be told to lifld; rename its folder, or name another place"
            raise ConfigError(key, text)
    parts: dict[str, Any] = {"model": model, "selection": selection, "checkpoint": checkpoint}
    parts |= {"aggregation": aggregation, "metrics": metrics}
    return msgspec.structs.replace(config, **parts)


def with_clients_read(config: JobConfig, folder: Path) -> JobConfig:
    """Return `config` with the clients that its `selection.clients_file` lists.  Raise `ConfigError`."""
    if not config.selection.clients_file:
        return config
    from lifl.node.machine import read_clients

    config = with_listed(config, read_clients(str(absolute(str(config.selection.clients_file), folder))))
    selection = msgspec.structs.replace(config.selection, clients_file=msgspec.UNSET)
    return msgspec.structs.replace(config, selection=selection)


def rule_states(config: JobConfig, folder: Path) -> tuple[str, ...]:
    """Return the names of the rule's states; the rule is loaded now, so that a mistake in it is told at once.

    A user's own is loaded in a process of its own: whatever it does to that, this one tells of it.
    """
    aggregation = config.aggregation
    rule_folder = str(absolute(aggregation.rule_folder or ".", folder))
    if ":" in aggregation.rule or config.functions:
        return states_apart(config, rule_folder)
    from lifl.rules.load import states_of

    return states_of(config, rule_folder)


def write_example(name: str, seed: int, folder: Path) -> Path:
    """Return the safetensors file of the example model `name`, made from `seed`.

    Raise `ResourceFault` when it cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    from lifl.examples import make_model

    tensors = make_model(name, seed)
    path = folder / f"{name}-{seed}.safetensors"
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, partial)
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            partial.unlink()
        why = getattr(error, "strerror", None) or error
        text = f"the example model cannot be written to {path}: {why}; make room there, and let lifl's user write"
        raise ResourceFault(text) from error
    return path
