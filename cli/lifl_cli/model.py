"""`lifl model`: a committed model, copied out of the checkpoint folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from lifl.core.errors import Refused, RemoteFault, ResourceFault
from lifl.core.limits import ROUNDS_MAX
from lifl.core.protocol.cli import JobStatus, ReadModel
from lifl_cli.daemon_client import DaemonClient, daemon_at
from lifl_cli.options import state_option
from lifl_cli.output import did
from lifl_cli.render.figures import printable

COPY_BYTES = 1 << 20
ROUNDS_NAMED_MAX = 8
"""Rounds that an error message lists one by one."""


@click.command()
@click.argument("job")
@click.option("-o", "--output", required=True, type=click.Path(dir_okay=False), help="The file to write.")
@click.option("--round", "round_number", type=click.IntRange(0, ROUNDS_MAX), help="Default: the last committed one.")
@state_option
def model(job: str, output: str, round_number: int | None, state_dir: Path) -> None:
    """Copy a committed model to a safetensors file."""
    with daemon_at(state_dir) as daemon:
        line, wanted, unread = _found(daemon, job, round_number)
        source = None if daemon.is_remote else Path(line["path"])
        pieces = _fetched(daemon, job, wanted) if source is None else _read(source)
        _copy(pieces, Path(output), line, source)
    if unread:
        click.echo(f"warning: {printable(unread)}", err=True)
    did(f"{output}: model of job {job} after round {wanted}")


def _found(daemon: DaemonClient, job: str, round_number: int | None) -> tuple[dict[str, Any], int, str]:
    """Return the line of the round whose model is wanted, its number, and what could not be read of it."""
    result = daemon.ask(JobStatus(job, last=0))
    last = result["job"]["committed"]
    wanted = last if round_number is None else round_number
    lines = daemon.ask(JobStatus(job, round=wanted))["rounds"]
    found = next((line for line in lines if line["path"]), None)
    unread = next((line["reason"] for line in lines if line["status"] == "committed" and line["reason"]), "")
    if found is None and unread:
        raise Refused("unreadable", "round", f"{unread}: {result['job']['folder']}")
    if found is None:
        set_aside = next((f" ({line['status']}: {line['reason']})" for line in reversed(lines) if line["reason"]), "")
        numbers = [str(number) for number in range(last + 1) if number != wanted] or ["none"]
        known = ", ".join(numbers if len(numbers) <= ROUNDS_NAMED_MAX else [*numbers[:3], "...", numbers[-1]])
        over = f"; the job is {result['job']['status']}: {reason}" if (reason := result["job"].get("reason")) else ""
        text = f"job {job} has no model of round {wanted}{set_aside}; it has: {known}{over}"
        raise Refused("unknown-round", "round", text)
    return found, wanted, unread


def _read(source: Path) -> Iterator[bytes]:
    """Yield a file of this machine in pieces."""
    if source.exists() and not source.is_file():  # a pipe would be waited for
        raise ResourceFault(f"{source}, where the model was, is no file any more")
    with source.open("rb") as read:
        while piece := read.read(COPY_BYTES):
            yield piece


def _fetched(daemon: DaemonClient, job: str, number: int) -> Iterator[bytes]:
    """Yield the model's file in pieces, from a node on another machine."""
    offset, nbytes = 0, 1
    while offset < nbytes:
        found = daemon.ask(ReadModel(job, number, offset))
        nbytes, piece = found["bytes"], found["data"]
        if not piece:
            raise RemoteFault(f"the node has sent {offset} of {nbytes} bytes of the model, and no more")
        offset += len(piece)
        yield piece


def _copy(pieces: Iterator[bytes], target: Path, line: dict[str, Any], source: Path | None) -> None:
    """Write by way of a file beside `target`, so that no half a model ever stands there, nor a damaged one."""
    from lifl.shm.checksum import StreamChecksum

    partial = target.with_name(f".{target.name}.{os.getpid()}")
    found, digest = StreamChecksum(), line.get("digest", "")
    try:
        try:
            with partial.open("wb") as written:
                for piece in pieces:
                    found.update(piece)
                    written.write(piece)
            if source is not None:
                shutil.copymode(source, partial)
            if digest and f"{found.finish():016x}" != digest:
                text = f"{line['path']} is damaged: it is not what was written; take an earlier --round"
                raise Refused("damaged", "round", text)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise ResourceFault(f"cannot copy {line['path']} to {target}: {error.strerror}") from error
