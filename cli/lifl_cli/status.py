"""`lifl status`: one job, its running round, and what its rounds came to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from lifl.core.limits import ROUNDS_MAX, STATUS_ROUNDS
from lifl.core.protocol.cli import JobClients, JobStatus
from lifl_cli.completion import job_names
from lifl_cli.daemon_client import DaemonClient, daemon_at
from lifl_cli.options import json_option, state_option
from lifl_cli.output import tell
from lifl_cli.render.figures import (
    changes_text,
    evaluation_lines,
    models_lines,
    printable,
    receipt_lines,
    upload_text,
)

ROUNDS_SHOWN = 20
"""Rounds in the table, the newest first; `lifl history` has more, and all as CSV."""


@click.command()
@click.argument("job", shell_complete=job_names)
@click.option(
    "--last",
    type=click.IntRange(0, ROUNDS_MAX),
    metavar="N",
    help=f"The last N rounds, each attempt counted.  [default: {ROUNDS_SHOWN}; with --json {STATUS_ROUNDS}]",
)
@click.option("--clients", is_flag=True, help="Show how its clients kept their word instead.")
@json_option
@state_option
def status(job: str, last: int | None, clients: bool, as_json: bool, state_dir: Path) -> None:
    """Show one job: its rounds with their receipts."""
    with daemon_at(state_dir) as daemon:
        if clients:
            _show_clients(job_clients(daemon, job), as_json)
            return
        result = job_status(daemon, job, (STATUS_ROUNDS if as_json else ROUNDS_SHOWN) if last is None else last)
    if as_json:
        click.echo(json.dumps(result, indent=2))
        return
    line = result["job"]
    reason = f": {printable(line['reason'])}" if line.get("reason") else ""
    tell(f"job {printable(line['name'])} is {printable(line['status'])}{reason}")
    tell(f"  committed  {line['committed']} of {line['rounds']} rounds, rule {printable(line['rule'])}")
    tell(f"  clients    {line['clients']} joined now")
    if line.get("pending"):
        tell(f"  next round {changes_text(line['pending'])}")
    if line.get("folder"):
        tell(f"  models     {printable(line['folder'])}")
    for text in models_lines(result.get("models"), line.get("disk")):
        tell(f"             {text}", 15)
    if line.get("upload"):
        tell(f"  {upload_text(line['upload'])}")
    from lifl_cli.render.tables import rounds_table, show
    from lifl_cli.render.trees import round_text, tree_view

    if result.get("now"):
        tell(f"  {round_text(result['now'])}")
        show(tree_view(result["now"].get("tree", ()), result["now"].get("tasks", 0)))
    if result.get("rounds"):
        receipts = [line for line in result["rounds"] if line.get("receipt")]
        if receipts:
            tell(f"receipt of round {receipts[-1]['round']}")
            for label, value in receipt_lines(receipts[-1]["receipt"]):
                tell(f"  {label:<24} {value}")
        evaluated = [line for line in result["rounds"] if line.get("evaluation")]
        if evaluated:
            tell(f"evaluation of round {evaluated[-1]['round']}")
            for label, value in evaluation_lines(evaluated[-1]["evaluation"]):
                tell(f"  {label:<24} {value}")
        show(rounds_table(result["rounds"][::-1]))


def _show_clients(lines: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"clients": lines}, indent=2))
        return
    if not lines:
        click.echo("no client has joined this job yet")
        return
    from lifl_cli.render.tables import clients_table, show

    show(clients_table(lines))


def job_clients(daemon: DaemonClient, job: str) -> list[dict[str, Any]]:
    """Return the clients of a job, however many frames these take."""
    lines: list[dict[str, Any]] = []
    after: str | None = ""
    while after is not None:
        page = daemon.ask(JobClients(job, after))
        lines, after = lines + page["clients"], page["more"]
    return lines


def job_status(daemon: DaemonClient, job: str, last: int) -> dict[str, Any]:
    """Return a job with its last rounds, however many frames these take."""
    result = daemon.ask(JobStatus(job, last=last))
    lines, more = result["rounds"], result.pop("more")
    while more is not None and len(lines) < last:
        page = daemon.ask(JobStatus(job, last=last - len(lines), before=tuple(more)))
        lines, more = page["rounds"] + lines, page["more"]
    return {**result, "rounds": lines}
