"""`lifl history`: what the rounds of a job came to, for people, tables and programs."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from lifl.core.limits import ROUNDS_MAX
from lifl.core.protocol.cli import JobStatus
from lifl_cli.completion import job_names
from lifl_cli.daemon_client import daemon_at
from lifl_cli.options import json_option, state_option
from lifl_cli.rounds import columns, flat
from lifl_cli.rounds import history as rows_of

ROUNDS_SHOWN = 100
"""Rounds in the table, when nothing is said: what a person reads; programs get all."""


@click.command()
@click.argument("job", shell_complete=job_names)
@click.option(
    "--last",
    type=click.IntRange(0, ROUNDS_MAX),
    metavar="N",
    help=f"The last N rounds, each attempt counted.  [default: {ROUNDS_SHOWN}; with --csv and --json all]",
)
@click.option("--clients", is_flag=True, help="Show each client's metrics (of a job with metrics.per_client).")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
@json_option
@state_option
def history(job: str, last: int | None, clients: bool, as_csv: bool, as_json: bool, state_dir: Path) -> None:
    """Show a job's rounds with their metrics: table, CSV, JSON."""
    if as_csv and as_json:
        raise click.UsageError("--csv and --json: give one of them")
    shortened = last is None and not as_csv and not as_json
    with daemon_at(state_dir) as daemon:
        if shortened:
            rows = rows_of(daemon, job, ROUNDS_SHOWN + 1)
            shortened, rows = len(rows) > ROUNDS_SHOWN, rows[-ROUNDS_SHOWN:]
        else:
            rows = rows_of(daemon, job, ROUNDS_MAX if last is None else last)
        committed = daemon.ask(JobStatus(job, last=0))["job"]["committed"] if shortened else 0
    if as_json:
        click.echo(json.dumps({"job": job, "rounds": rows}, indent=2))
        return
    lines = list(_of_clients(rows)) if clients else rows
    if as_csv:
        flats = [flat(line) for line in lines]
        written = csv.DictWriter(
            sys.stdout, _client_columns(flats) if clients else columns(rows), restval="", lineterminator="\n"
        )
        written.writeheader()
        written.writerows(flats)
        return
    if not lines:
        click.echo(f"job {job} has {_nothing(rows, clients)}")
        return
    from lifl_cli.render.tables import client_metrics_table, history_table, show

    show((client_metrics_table if clients else history_table)(lines))
    if shortened:
        text = f"the last {ROUNDS_SHOWN} alone: {committed} rounds are committed; --last N shows more, --csv all"
        click.echo(text, err=True)


def _nothing(rows: Sequence[Any], clients: bool) -> str:
    if clients and rows:
        return "no metrics of single clients: its config does not say metrics.per_client = true, or they sent none"
    return "no round that is over"


def _of_clients(rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield a line for each client of each round."""
    for row in rows:
        for client, metrics in row["clients"].items():
            yield {"round": row["round"], "attempt": row["attempt"], "client": client, "metrics": metrics}


def _client_columns(lines: Sequence[dict[str, Any]]) -> list[str]:
    metrics = {name for line in lines for name in line if name.startswith("metrics.")}
    return ["round", "attempt", "client", *sorted(metrics)]
