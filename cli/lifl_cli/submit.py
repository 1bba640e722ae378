"""`lifl submit`: a job's TOML file, checked here as far as it can be, then handed to `lifld`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click
import msgspec

from lifl.core.config.job import JobConfig, parse_job
from lifl.core.errors import RemoteFault, ResourceFault
from lifl.core.protocol.cli import Event, SubmitJob
from lifl_cli.config_file import STANDARD_INPUT, read_toml, resolve, rule_states
from lifl_cli.daemon_client import DaemonClient, daemon_at
from lifl_cli.options import state_option
from lifl_cli.output import did, is_lost, tell
from lifl_cli.render.figures import (
    changes_text,
    line_text,
    measured_text,
    metrics_text,
    printable,
    receipt_lines,
    seconds_text,
    size_text,
)
from lifl_cli.send_job import sent
from lifl_cli.state import absolute


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option("--replace", is_flag=True, help="End and forget a job that has the name, first; its models stay.")
@click.option("--watch", is_flag=True, help="Print each round as it commits, until the job ends.")
@click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Override a key: job.rounds=5.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON (with --watch: one object per line).")
@state_option
def submit(file: str, replace: bool, watch: bool, overrides: tuple[str, ...], as_json: bool, state_dir: Path) -> None:
    """Submit a training job described by a TOML file.

    FILE may be - for standard input: paths in it are then relative to the working folder.
    """
    config = parse_job(read_toml(file), overrides)
    with daemon_at(state_dir) as daemon:
        folder = absolute("." if file == STANDARD_INPUT else file)
        folder = folder if file == STANDARD_INPUT else folder.parent
        states = rule_states(config, folder)
        config = sent(config, folder, daemon) if daemon.is_remote else resolve(config, folder, state_dir)
        result = daemon.ask(SubmitJob(msgspec.to_builtins(config), states, watch, replace or msgspec.UNSET))
        shown = json.dumps(result, indent=None if watch else 2) if as_json else _submitted(config, result)
        did(f"job {config.job.name} is submitted", shown)
        if watch:
            sys.exit(_watch(daemon, config, as_json))


def _submitted(config: JobConfig, result: dict[str, Any]) -> str:
    lines = [f"job {config.job.name}: {config.job.rounds} rounds of {config.selection.clients_per_round} clients"]
    if result.get("model_bytes") is not None:
        lines.append(f"  model       {size_text(result['model_bytes'])}")
    if result.get("peak_bytes") is not None:
        lines.append(f"  arena       at most {size_text(result['peak_bytes'])} per round")
    lines += [f"  tensors     {printable(line)}" for line in result.get("treatment") or ()]
    if queue := result.get("queue"):
        lines.append(f"  queued      {printable(line_text(queue))}")
    if result.get("folder"):
        lines.append(f"  checkpoints {printable(result['folder'])}")
    if disk := result.get("disk"):
        short = "" if disk["bytes"] <= disk["free_bytes"] else ": too little, rounds will wait for room"
        lines.append(
            f"  disk        at most {size_text(disk['bytes'])} for {disk['models']} models (checkpoint.keep); "
            f"{size_text(disk['free_bytes'])} are free{short}"
        )
    return "\n".join(lines)


def _watch(daemon: DaemonClient, config: JobConfig, as_json: bool) -> int:
    """Print events until the job is over, or nobody can see them; the exit code is 0 when it finished."""
    goes_on = f"The job goes on without this watch; see `lifl status {config.job.name}`."
    try:
        events = daemon.events()
        while not is_lost():
            event = next(events)
            if as_json:
                click.echo(json.dumps({"event": event.name, **event.fields}))
            else:
                print_event(event, config.job.rounds)
            if event.name == "job.over":
                return 0 if event.fields.get("status") == "finished" else 1
    except KeyboardInterrupt:
        click.echo(f"\n{goes_on}", err=True)
        return 130
    except RemoteFault as fault:
        text = f"the watch has ended: {fault}; job {config.job.name} goes on at the next `lifl up`"
        raise ResourceFault(text) from fault
    click.echo(goes_on, err=True)
    return 1


def print_event(event: Event, rounds: int) -> None:
    """Print what happens in a job of so many rounds."""
    fields = event.fields
    if event.name == "round.committed":
        receipt = fields.get("receipt") or {}
        tell(
            f"round {fields['round']:>3}/{rounds}  {metrics_text(fields.get('metrics')):<32}  "
            f"counted {fields.get('counted', 0)} of {receipt.get('selected', '?')}  "
            f"took {seconds_text(receipt.get('duration_s'))}  "
            f"commit {seconds_text(receipt.get('last_accepted_to_commit_s'))} after the last update"
        )
        if fields["round"] == rounds:
            tell("receipt of the last round")
            for label, value in receipt_lines(receipt):
                tell(f"  {label:<24} {value}")
            if fields.get("path"):
                tell(f"model: {printable(fields['path'])}")
    elif event.name == "evaluation.over":
        tell(f"round {fields['round']:>3}/{rounds}  {measured_text({'evaluation': fields})}")
    elif event.name == "round.failed":
        tell(f"round {fields['round']:>3}/{rounds}  failed: {printable(fields.get('reason'))}")
    elif event.name == "job.queued":
        tell(f"job queued: {fields.get('position')} in line for room in the arena")
    elif event.name == "job.edited":
        tell(f"job edited: {changes_text(fields.get('changes') or {})}, from the next round on")
    elif event.name in ("job.paused", "model.damaged"):
        tell(f"{event.name.replace('.', ' ')}: {printable(fields.get('reason'))}")
    elif event.name == "job.goes_on":
        tell("job goes on")
    elif event.name == "job.over":
        reason = f": {printable(fields['reason'])}" if fields.get("reason") else ""
        tell(f"job {printable(fields.get('job'))} {printable(fields.get('status'))}{reason}")
