"""`lifl resume`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from lifl.core.limits import ROUNDS_MAX
from lifl.core.protocol.cli import ResumeJob
from lifl_cli.completion import job_names
from lifl_cli.daemon_client import daemon_at
from lifl_cli.options import json_option, state_option
from lifl_cli.output import did


@click.command()
@click.argument("job", shell_complete=job_names)
@click.option("--rounds", metavar="N|+N", help="So many rounds in all, or so many more.  [default: as before]")
@json_option
@state_option
def resume(job: str, rounds: str | None, as_json: bool, state_dir: Path) -> None:
    """Let a job go on that is paused, or over.

    One that is over goes on from its last committed model, with the state of its rule.
    """
    more = rounds is not None and rounds.startswith("+")
    number = _number(rounds) if rounds is not None else None
    with daemon_at(state_dir) as daemon:
        result = daemon.ask(ResumeJob(job, None if more else number, number if more else None))
    when = "goes on when there is room for it" if result["status"] == "queued" else "goes on"
    text = f"job {job} {when}: {result['committed']} of {result['rounds']} rounds are committed"
    did(text, json.dumps(result) if as_json else None)


def _number(text: str) -> int:
    """Raise `click.UsageError` for what is no number of rounds."""
    digits = text.removeprefix("+")
    if not (digits.isascii() and digits.isdigit()) or not 1 <= int(digits[:8]) <= ROUNDS_MAX:
        raise click.UsageError(f"--rounds is 1 to {ROUNDS_MAX}, or +1 to +{ROUNDS_MAX}; this is {text!r:.40}")
    return int(digits[:8])
