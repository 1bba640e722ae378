"""`lifl trace`: a round as a file that Perfetto and chrome://tracing open, or as spans for OpenTelemetry."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from lifl.core.coordinator.spans import round_line, spans_of, trace_events
from lifl.core.errors import Refused, ResourceFault
from lifl.core.limits import ROUNDS_MAX
from lifl.core.protocol.cli import JobStatus
from lifl_cli.completion import job_names
from lifl_cli.daemon_client import DaemonClient, daemon_at
from lifl_cli.options import OutputFile, state_option
from lifl_cli.output import did
from lifl_cli.render.figures import printable


@click.command()
@click.argument("job", shell_complete=job_names)
@click.argument("round_number", metavar="[ROUND]", required=False, type=click.IntRange(1, ROUNDS_MAX))
@click.option(
    "--attempt",
    type=click.IntRange(min=1),
    metavar="N",
    help="Of a round that was tried again.  [default: the last one]",
)
@click.option(
    "-o",
    "--output",
    type=OutputFile(allow_dash=True, in_place=True),
    help="The file to write.  [default: standard output]",
)
@click.option("--otlp", metavar="URL", help="Send spans to OpenTelemetry instead: http://HOST:4318/v1/traces.")
@state_option
def trace(
    job: str, round_number: int | None, attempt: int | None, output: str | None, otlp: str | None, state_dir: Path
) -> None:
    """Show when what happened in a round, in Perfetto.

    ROUND is its number; none given: the last one that is committed. chrome://tracing opens the file, too.
    """
    if otlp is not None and output is not None:
        raise click.UsageError("-o and --otlp: give one of them")
    with daemon_at(state_dir) as daemon:
        line = _line(daemon, job, round_number, attempt)
    if otlp is not None:
        from lifl_cli.otlp import send

        count = send(otlp, job, line, spans_of(line))
        did(f"{count} spans of round {line['round']} of job {job} are sent to {printable(otlp)}")
        return
    text = json.dumps(trace_events(job, line), separators=(",", ":"))
    if output in (None, "-"):
        click.echo(text)
        return
    try:
        Path(output).write_text(text)
    except OSError as error:
        raise ResourceFault(f"{output} cannot be written: {error.strerror}; give another file with -o") from error
    did(f"{output}: round {line['round']} of job {job}; open it at https://ui.perfetto.dev or chrome://tracing")


def _line(daemon: DaemonClient, job: str, number: int | None, attempt: int | None) -> dict[str, Any]:
    """Return the line of JobStatus of the round that is meant.  Raise `Refused`."""
    if number is None:
        number = daemon.ask(JobStatus(job, last=0))["job"]["committed"]
        if not number:
            text = f"job {job} has committed no round yet: give the number of one, or see `lifl top`"
            raise Refused("unknown-round", "round", text)
    lines: list[dict[str, Any]] = daemon.ask(JobStatus(job, round=number))["rounds"]
    return dict(round_line(lines, job, number, attempt))
