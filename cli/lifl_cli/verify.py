"""`lifl verify`: whether a committed model is that of its updates; here, or on a machine without a node."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from lifl.core.config.job import parse_job
from lifl.core.errors import Refused
from lifl.core.limits import ROUNDS_MAX
from lifl.core.protocol.cli import JobStatus, UpdatesOfRound
from lifl_cli.completion import job_names
from lifl_cli.daemon_client import DaemonClient, daemon_at
from lifl_cli.fetch_model import copied
from lifl_cli.options import json_option, state_option
from lifl_cli.output import did

if TYPE_CHECKING:
    from lifl.verification.receipt_file import RoundReceipt

_THERE = click.Path(exists=True, path_type=Path)


@click.command()
@click.argument("job", required=False, shell_complete=job_names)
@click.argument("round", required=False, type=click.IntRange(1, ROUNDS_MAX))
@click.option(
    "--updates", multiple=True, type=_THERE, metavar="FOLDER|FILE", help="The updates, as files; may be repeated."
)
@click.option(
    "--receipt",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="What --save has written, in place of JOB and ROUND: no node is asked.",
)
@click.option(
    "--save",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Write receipt and models there, to verify elsewhere.",
)
@json_option
@state_option
def verify(
    job: str | None,
    round: int | None,
    updates: tuple[Path, ...],
    receipt: Path | None,
    save: Path | None,
    as_json: bool,
    state_dir: Path,
) -> None:
    """Check that a round's model is that of its updates.

    The updates are safetensors files: those that clients keep (`keep_updates`), or others named by their client.
    Without any, only the digests of receipt and model are compared.  Exits with 1 when something is wrong, and says
    what.
    """
    if receipt is not None and (job is not None or save is not None):
        raise click.UsageError("--receipt takes the place of JOB, ROUND and --save")
    if receipt is None and (job is None or round is None):
        raise click.UsageError("give JOB and ROUND, or --receipt FILE")
    from lifl.verification.verify import verify as verified

    with _at(receipt, job or "", round or 0, save, state_dir) as path:
        found = verified(path, updates)
    shown = found._asdict() | ({"saved": str(save)} if save is not None else {})
    did(_told(found._asdict(), save), json.dumps(shown) if as_json else None)


def _told(found: dict[str, Any], save: Path | None) -> str:
    which = f"round {found['round']} of job {found['job']}"
    saved = f"; {save} has what it takes to verify it elsewhere" if save is not None else ""
    if found["compared"] == "digest":
        return f"{which}: receipt and model are what was committed; its updates were not given (--updates){saved}"
    how = "bit for bit" if found["compared"] == "bits" else "within the error of its sums"
    return f"{which}: its model is that of its {found['updates']} updates, {how}{saved}"


@contextmanager
def _at(receipt: Path | None, job: str, number: int, save: Path | None, state_dir: Path) -> Iterator[Path]:
    """Yield the file of a receipt, with the models beside it: what was given, or what a node has.  Raise `Refused`."""
    from lifl.verification.receipt_file import RECEIPT, write_receipt

    if receipt is not None:
        yield receipt
        return
    with tempfile.TemporaryDirectory(prefix="lifl-") as scratch:
        folder = Path(scratch) if save is None else save
        folder.mkdir(parents=True, exist_ok=True)
        with daemon_at(state_dir) as daemon:
            made = _receipt_of(daemon, job, number)
            _copy_models(daemon, made, folder)
        write_receipt(folder / RECEIPT, made)
        yield folder / RECEIPT


def _receipt_of(daemon: DaemonClient, job: str, number: int) -> RoundReceipt:
    """Return what a node notes of a round.  Raise `Refused`."""
    from lifl.verification.receipt_file import RoundReceipt, check_receipt

    asked, lines = UpdatesOfRound(job, number), []
    while True:
        page = daemon.ask(asked)
        lines += page["updates"]
        if page["more"] is None:
            break
        asked = UpdatesOfRound(job, number, page["more"])
    about = daemon.ask(JobStatus(job, round=number, trees=False))
    config = parse_job(about["config"])
    made = msgspec.convert(
        {
            "job": config.job.name,
            "round": number,
            "aggregation": msgspec.to_builtins(msgspec.structs.replace(config.aggregation, rule_folder="")),
            "model": _digest(about["rounds"]),
            "before": _digest(daemon.ask(JobStatus(job, round=number - 1, trees=False))["rounds"]),
            "updates_digest": page["updates_digest"],
            "updates": lines,
            "trainable": config.trainable,
        },
        RoundReceipt,
    )
    check_receipt(made)
    return made


def _digest(lines: list[dict[str, Any]]) -> str:
    return next((str(line["digest"]) for line in lines if line["status"] == "committed"), "")


def _copy_models(daemon: DaemonClient, made: RoundReceipt, folder: Path) -> None:
    """Copy the models after and before a round to a folder, and on the node's machine the rule's state of before."""
    from lifl.verification.receipt_file import BEFORE, MODEL, STATE

    copied(daemon, made.job, made.round, folder / MODEL)
    copied(daemon, made.job, made.round - 1, folder / BEFORE)
    if daemon.is_remote or made.round == 1:
        return
    lines = daemon.ask(JobStatus(made.job, round=made.round - 1, trees=False))["rounds"]
    path = next((Path(line["path"]) for line in lines if line["path"]), None)
    state = path.with_name(f"{path.name.removesuffix('.safetensors')}.state.safetensors") if path else None
    try:
        if state is not None and state.exists():
            shutil.copyfile(state, folder / STATE)
    except OSError as error:
        text = f"the rule's state before the round cannot be copied: {error.strerror or error}"
        raise Refused("not-recomputed", "state", text) from error
