"""A model that a command is about: that of a round of a job, here or on another machine, or a file."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import click
import msgspec

from lifl.core.coordinator.evaluation import values_of_evaluation
from lifl.core.errors import Refused, RemoteFault, ResourceFault
from lifl.core.limits import ROUNDS_MAX
from lifl.core.planning.keeping import Kept
from lifl.core.protocol.cli import JobStatus, ReadModel
from lifl_cli.daemon_client import DaemonClient, daemon_at
from lifl_cli.output import progress
from lifl_cli.render.figures import ranges_text

COPY_BYTES = 1 << 20
Which = int | str
"""A round's number, ``best`` or ``last``."""


class WhichRound(click.ParamType):  # type: ignore[type-arg]  # what click 8.1 does not have
    """A round's number, ``best`` or ``last``."""

    name = f"best, last, or 0 to {ROUNDS_MAX}"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Which:
        if value in ("best", "last"):
            return str(value)
        try:
            number = int(value)
        except ValueError:
            self.fail(f"{value!r:.80} is none of best, last and the number of a round", param, ctx)
        if not 0 <= number <= ROUNDS_MAX:
            self.fail(f"{number} is not in the range 0<=x<={ROUNDS_MAX}", param, ctx)
        return number

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return "best|last|N"


WHICH = WhichRound()


def copied(daemon: DaemonClient, job: str, which: Which, target: Path) -> tuple[int, str]:
    """Copy the model of a round to a file; return which it is, and what could not be read of its row."""
    line, wanted, unread = _found(daemon, job, which)
    source = None if daemon.is_remote else Path(line["path"])
    pieces = _fetched(daemon, job, wanted) if source is None else _read(source)
    _copy(pieces, target, line, source)
    return wanted, unread


@contextmanager
def one_of(named: str, which: Which, state_dir: Path) -> Iterator[Path]:
    """Yield the file of a model that is named: a file, or JOB or JOB@ROUND.  Raise `Refused`."""
    job, at, said = named.rpartition("@")
    if os.sep in named or named.endswith(".safetensors") or Path(named).is_file():
        yield Path(named)
        return
    with daemon_at(state_dir) as daemon, tempfile.TemporaryDirectory(prefix="lifl-") as scratch:
        wanted = WHICH.convert(said, None, None) if at else which
        name = job if at else named
        if daemon.is_remote:
            path = Path(scratch) / "model.safetensors"
            copied(daemon, name, wanted, path)
        else:
            path = Path(_found(daemon, name, wanted)[0]["path"])
        yield path


def _found(daemon: DaemonClient, job: str, which: Which) -> tuple[dict[str, Any], int, str]:
    """Return the line of the round whose model is wanted, its number, and what could not be read of it."""
    result = daemon.ask(JobStatus(job, last=0))
    models = result.get("models") or {}
    wanted = _number(result, which)
    lines = daemon.ask(JobStatus(job, round=wanted))["rounds"]
    found = next((line for line in lines if line["path"]), None)
    unread = next((line["reason"] for line in lines if line["status"] == "committed" and line["reason"]), "")
    if found is None and unread:
        raise Refused("unreadable", "round", f"{unread}: {result['job']['folder']}")
    there = ranges_text(models.get("rounds", ()))
    if found is None:
        set_aside = next((f" ({line['status']}: {line['reason']})" for line in reversed(lines) if line["reason"]), "")
        over = f"; the job is {result['job']['status']}: {reason}" if (reason := result["job"].get("reason")) else ""
        text = f"job {job} has no model of round {wanted}{set_aside}; it has: {there}{over}"
        raise Refused("unknown-round", "round", text)
    kept = models.get("kept")
    gone = kept is not None and not msgspec.convert(kept, Kept).has(wanted)
    if gone and not any(first <= wanted <= last for first, last in models["rounds"]):
        text = f"the model of round {wanted} of job {job} was not kept (checkpoint.keep); there are: {there}"
        raise Refused("not-kept", "round", text)
    return found, wanted, unread


def _number(result: dict[str, Any], which: Which) -> int:
    """Return the number of the round that is meant.  Raise `Refused` when there is no best one."""
    if isinstance(which, int):
        return which
    if which == "last":
        return int(result["job"]["committed"])
    best = (result.get("models") or {}).get("best")
    if best is not None:
        return int(best["round"])
    keep = result["config"].get("checkpoint", {}).get("keep") or {}
    metric = str(keep.get("best", "")).removeprefix("-")
    found = values_of_evaluation(result["job"].get("evaluation") or {"metrics": {}})
    has = ", ".join(sorted([*result["job"]["metrics"], *(f"evaluation.{name}" for name in found)])) or "none"
    text = f"no round has had the metric {metric!r}; the last one's are: {has}"
    if not metric:
        text = f'nothing says which is the best: submit with checkpoint.keep = {{best = "METRIC"}} (its metrics: {has})'
    raise Refused("no-best", "round", text)


def _read(source: Path) -> Generator[bytes]:
    """Yield a file of this machine in pieces."""
    if source.exists() and not source.is_file():  # a pipe would be waited for
        raise ResourceFault(f"{source}, where the model was, is no file any more")
    with source.open("rb") as read, progress("model", source.stat().st_size) as done:
        while piece := read.read(COPY_BYTES):
            done(len(piece))
            yield piece


def _fetched(daemon: DaemonClient, job: str, number: int) -> Generator[bytes]:
    """Yield the model's file in pieces, from a node on another machine."""
    found = daemon.ask(ReadModel(job, number, 0))
    offset, nbytes = 0, found["bytes"]
    with progress("model", nbytes) as done:
        while True:
            piece = found["data"]
            if not piece:
                raise RemoteFault(f"the node has sent {offset} of {nbytes} bytes of the model, and no more")
            offset += len(piece)
            done(len(piece))
            yield piece
            if offset >= nbytes:
                return
            found = daemon.ask(ReadModel(job, number, offset))


def _copy(pieces: Generator[bytes], target: Path, line: dict[str, Any], source: Path | None) -> None:
    """Write by way of a file beside `target`, so that no half a model ever stands there, nor a damaged one."""
    from lifl.shm.checksum import StreamChecksum

    target = target.resolve()  # a link stays one
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    found, digest = StreamChecksum(), line.get("digest", "")
    try:
        try:
            with partial.open("wb") as written, closing(pieces):  # so its bar is gone before anything is said
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
