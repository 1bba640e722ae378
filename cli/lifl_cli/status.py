"""`lifl status`: one job, its running round, and what its rounds came to."""

from __future__ import annotations

import json
from pathlib import Path

import click

from lifl.core.protocol.cli import JobStatus
from lifl_cli.daemon_client import DaemonClient
from lifl_cli.options import json_option, state_option
from lifl_cli.render.figures import printable, receipt_lines


@click.command()
@click.argument("job")
@json_option
@state_option
def status(job: str, as_json: bool, state_dir: Path) -> None:
    """Show one job: its rounds with their receipts."""
    with DaemonClient(state_dir) as daemon:
        result = daemon.ask(JobStatus(job))
    if as_json:
        click.echo(json.dumps(result, indent=2))
        return
    line = result["job"]
    reason = f": {printable(line['reason'])}" if line.get("reason") else ""
    click.echo(f"job {printable(line['name'])} is {printable(line['status'])}{reason}")
    click.echo(f"  committed  {line['committed']} of {line['rounds']} rounds, rule {printable(line['rule'])}")
    click.echo(f"  clients    {line['clients']} joined now")
    if line.get("folder"):
        click.echo(f"  models     {printable(line['folder'])}")
    from lifl_cli.render.tables import rounds_table, show
    from lifl_cli.render.trees import round_text, tree_view

    if result.get("now"):
        click.echo(f"  {round_text(result['now'])}")
        show(tree_view(result["now"].get("tree", ())))
    if result.get("rounds"):
        show(rounds_table(result["rounds"]))
        receipts = [line for line in result["rounds"] if line.get("receipt")]
        if receipts:
            click.echo(f"receipt of round {receipts[-1]['round']}")
            for label, value in receipt_lines(receipts[-1]["receipt"]):
                click.echo(f"  {label:<24} {value}")
