"""`lifl jobs`, `status`, `cancel` and `model`: questions to `lifld` about jobs, answered as tables."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lifl.core.errors import Refused, ResourceFault
from lifl.core.protocol.cli import CancelJob, JobStatus, ListJobs
from lifl_cli.daemon_client import Control
from lifl_cli.state import state_option
from lifl_cli.text import metrics_text, receipt_lines, seconds_text, size_text

if TYPE_CHECKING:
    from rich.console import RenderableType

ROUNDS_NAMED_MAX = 8
"""Rounds that an error message lists one by one."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.command()
@json_option
@state_option
def jobs(as_json: bool, state_dir: Path) -> None:
    """List the jobs of the node."""
    with Control(state_dir) as control:
        result = control.ask(ListJobs())
    if as_json:
        click.echo(json.dumps(result, indent=2))
        return
    if not result["jobs"]:
        click.echo("no jobs yet: submit one with `lifl submit FILE`")
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("job", "status", "committed", "clients", "rule", "metrics", "reason"):
        table.add_column(column, overflow="fold")
    for job in result["jobs"]:
        table.add_row(
            job["name"],
            job["status"],
            f"{job['committed']}/{job['rounds']}",
            str(job["clients"]),
            job["rule"],
            metrics_text(job.get("metrics")),
            job.get("reason", ""),
        )
    show(table)


@click.command()
@click.argument("job")
@json_option
@state_option
def status(job: str, as_json: bool, state_dir: Path) -> None:
    """Show one job: its rounds with their receipts."""
    with Control(state_dir) as control:
        result = control.ask(JobStatus(job))
    if as_json:
        click.echo(json.dumps(result, indent=2))
        return
    line = result["job"]
    reason = f": {line['reason']}" if line.get("reason") else ""
    click.echo(f"job {line['name']} is {line['status']}{reason}")
    click.echo(f"  committed  {line['committed']} of {line['rounds']} rounds, rule {line['rule']}")
    click.echo(f"  clients    {line['clients']} joined now")
    if line.get("folder"):
        click.echo(f"  models     {line['folder']}")
    if result.get("now"):
        from lifl_cli.top import round_text, tree_view

        click.echo(f"  {round_text(result['now'])}")
        show(tree_view(result["now"].get("tree", ())))
    if result.get("rounds"):
        show(_rounds_table(result["rounds"]))
        receipts = [line for line in result["rounds"] if line.get("receipt")]
        if receipts:
            click.echo(f"receipt of round {receipts[-1]['round']}")
            for label, value in receipt_lines(receipts[-1]["receipt"]):
                click.echo(f"  {label:<24} {value}")


@click.command()
@click.argument("job")
@json_option
@state_option
def cancel(job: str, as_json: bool, state_dir: Path) -> None:
    """End a job; models already committed stay."""
    with Control(state_dir) as control:
        result = control.ask(CancelJob(job))
    click.echo(json.dumps(result) if as_json else f"job {job} is cancelled")


@click.command()
@click.argument("job")
@click.option("-o", "--output", required=True, type=click.Path(dir_okay=False), help="The file to write.")
@click.option("--round", "round_number", type=click.IntRange(min=0), help="Default: the last committed one.")
@state_option
def model(job: str, output: str, round_number: int | None, state_dir: Path) -> None:
    """Copy a committed model to a safetensors file."""
    with Control(state_dir) as control:
        result = control.ask(JobStatus(job))
    paths = {line["round"]: line["path"] for line in result.get("rounds", ()) if line.get("path")}
    if result["job"].get("folder"):
        # Round 0 is the model that the job started from.
        paths.setdefault(0, str(Path(result["job"]["folder"]) / "round-00000.safetensors"))
    wanted = max(paths, default=0) if round_number is None else round_number
    if wanted not in paths:
        numbers = [str(number) for number in sorted(paths)]
        shown = numbers if len(numbers) <= ROUNDS_NAMED_MAX else [*numbers[:3], "...", numbers[-1]]
        known = ", ".join(shown) or "none yet"
        raise Refused("unknown-round", "round", f"job {job} has no model of round {wanted}; it has: {known}")
    _copy(Path(paths[wanted]), Path(output))
    click.echo(f"{output}: model of job {job} after round {wanted}")


def show(content: RenderableType) -> None:
    """Prints a rich table or tree; as wide as its content where the output is no terminal."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(highlight=False, width=160)
    console.print(content)


def _rounds_table(rounds: list[dict[str, Any]]) -> RenderableType:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    columns = (
        "round",
        "status",
        "counted",
        "bytes in",
        "CPU s",
        "took",
        "last to commit",
        "workers",
        "metrics",
    )
    for column in columns:
        table.add_column(column, overflow="fold")
    for line in rounds:
        receipt = line.get("receipt")
        if not receipt:
            table.add_row(
                str(line["round"]),
                line["status"],
                *[""] * 6,
                line.get("reason") or metrics_text(line["metrics"]),
            )
            continue
        table.add_row(
            str(line["round"]),
            line["status"],
            f"{receipt['counted']}/{receipt['selected']}",
            size_text(receipt["bytes_in"]),
            f"{sum(receipt['cpu_s'].values()):.3f}",
            seconds_text(receipt["duration_s"]),
            seconds_text(receipt["last_accepted_to_commit_s"]),
            f"{receipt['workers_cold']} cold, {receipt['workers_warm']} warm",
            line.get("reason") or metrics_text(line.get("metrics")),
        )
    return table


def _copy(source: Path, target: Path) -> None:
    """Copies by way of a file beside `target`, so that no half a model ever stands there."""
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        shutil.copyfile(source, partial)
        partial.replace(target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ResourceFault(f"cannot copy {source} to {target}: {error.strerror}") from error
