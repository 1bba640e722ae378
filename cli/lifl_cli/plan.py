"""`lifl plan`: what a round of a job would look like, by the code that decides in the daemon; nothing is run.

Without ``--node`` the running cluster is asked, with its nodes and their load of this moment.  With ``--node`` the plan
is made here for nodes that need not exist, each free of any load.

With ``--round JOB ROUND`` it shows how a round was really planned: the coordinator keeps each decision with all that it
was made from, so it is made again here, and must come out the same.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import click
import msgspec

from lifl.core.config.job import JobConfig, parse_job
from lifl.core.config.placement import fits
from lifl.core.config.values import parse_size
from lifl.core.errors import ConfigError, LiflError, LocalFault
from lifl.core.limits import ARENA_BYTES_MAX, CAPACITY_MAX, NAMES_SHOWN_MAX, ROUNDS_MAX
from lifl.core.planning.arena_need import with_fan_in
from lifl.core.planning.plan import NodeFacts, Plan, PlanRequest
from lifl.core.planning.planner import make_plan
from lifl.core.planning.request import plan_request
from lifl.core.planning.shown import drawn_first, options_of_rounds, plan_shown
from lifl.core.planning.treatment import treatment_lines
from lifl.core.protocol.cli import PlanJob, PlansOfRound
from lifl.core.schema import Layout
from lifl_cli.config_file import read_toml, resolve, rule_states, with_clients_read
from lifl_cli.daemon_client import DaemonClient
from lifl_cli.labels import labels_of
from lifl_cli.options import state_option
from lifl_cli.output import tell
from lifl_cli.render.figures import line_text, printable, seconds_text, size_text
from lifl_cli.state import absolute

NODE_FORM = "NAME:CAPACITY:ARENA[:LABEL=VALUE,...]"


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False), required=False)
@click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Override a key.")
@click.option("--explain", is_flag=True, help="Say why each decision was made.")
@click.option(
    "--node",
    "supposed",
    multiple=True,
    metavar=NODE_FORM,
    help="Plan for such nodes, not the running ones: updates at a time, arena, labels; such as a:20:2GiB:zone=eu.",
)
@click.option(
    "--round",
    "of_round",
    type=(str, click.IntRange(0, ROUNDS_MAX)),
    metavar="JOB ROUND",
    help="Show how this round was planned.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@state_option
def plan(
    file: str | None,
    overrides: tuple[str, ...],
    explain: bool,
    supposed: tuple[str, ...],
    of_round: tuple[str, int] | None,
    as_json: bool,
    state_dir: Path,
) -> None:
    """Show how rounds are spread over the nodes; nothing is run."""
    if (file is None) == (of_round is None):
        raise click.UsageError("give FILE, a job's config, or --round JOB ROUND")
    if of_round is not None:
        if overrides or supposed:
            raise click.UsageError("--round shows what was decided: --set and --node cannot change that")
        _show_decisions(*of_round, explain, as_json, state_dir)
        return
    assert file is not None
    config = parse_job(read_toml(file), overrides)
    folder = absolute(file).parent
    states = rule_states(config, folder)
    if supposed:
        layout = local_layout(config, folder)
        config = with_fan_in(config, layout)
        nodes = [parse_supposed(text, config.node_labels) for text in supposed]
        request = plan_request(config, layout, len(states), nodes)
        made, treatment = make_plan(request), treatment_lines(layout.tensors, config.aggregation, bool(states))
    else:
        with DaemonClient(state_dir) as daemon:
            config = resolve(config, folder, state_dir)
            result = daemon.ask(PlanJob(msgspec.to_builtins(config), states))
        request = msgspec.convert(result["request"], PlanRequest)
        made, treatment = msgspec.convert(result["plan"], Plan), result.get("treatment") or []
    if as_json:
        more = {
            "treatment": list(treatment),
            "queue": None if supposed else result.get("queue"),
            "options": options_of_rounds(config),
            "drawn": drawn_first(with_clients_read(config, folder)),
        }
        click.echo(json.dumps({**plan_shown(request, made), **more}, indent=2))
        return
    _print(config.job.name, request, made, explain)
    if not supposed:
        begins = f"when there is room: {line_text(result['queue'])}" if result.get("queue") else "at once"
        tell(f"begins         {printable(begins)}")
    for line in treatment:
        tell(f"tensors        {printable(line)}")
    for told in options_of_rounds(config):
        shown = "  ".join(f"{name} {value:.6g}" for name, value in told["options"].items())
        tell(f"round {told['round']:<8} {printable(shown)}")
    tell(f"drawn          {printable(drawn_text(drawn_first(with_clients_read(config, folder))))}")


def drawn_text(first: Mapping[str, Any]) -> str:
    """Return what `drawn_first` has found, for people."""
    if "why" in first:
        return f"cannot be told before clients are there: {first['why']}"
    names, more = first["clients"][:NAMES_SHOWN_MAX], len(first["clients"]) - NAMES_SHOWN_MAX
    others = f" and {more} more" if more > 0 else ""
    return f"in round 1, of {first['of']} listed clients, if all are there: {', '.join(names)}{others}"


def _show_decisions(job: str, number: int, explain: bool, as_json: bool, state_dir: Path) -> None:
    """Show how a round was planned; end with exit code 1 when the same code does not decide so again."""
    with DaemonClient(state_dir) as daemon:
        rows = _decisions(daemon, job, number)
    told, all_same = [], True
    for row in rows:
        if "fault" in row:
            all_same = False
            told.append({"round": number, "fault": row["fault"]})
            click.echo(printable(f"{row['fault']}; no round is run on it"), err=True)
            continue
        request, made = msgspec.convert(row["request"], PlanRequest), msgspec.convert(row["plan"], Plan)
        again = _made_again(request)
        all_same &= again == made
        if as_json:
            figures = {"round": number, "attempt": row["attempt"], "decided_unix_s": row["decided_unix_s"]}
            told.append({**figures, **plan_shown(request, made), "same": again == made})
            continue
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row["decided_unix_s"]))
        click.echo(f"round {number} of job {job}, attempt {row['attempt']}, decided {at}")
        _print(job, request, made, explain)
        if again == made:
            click.echo("made again from what it was decided on: the same")
        else:
            click.echo(f"made again from what it was decided on, by this version of LIFL: {_difference(again)}")
    if as_json:
        click.echo(json.dumps({"job": job, "decisions": told}, indent=2))
    if not all_same:
        sys.exit(1)


def _decisions(daemon: DaemonClient, job: str, number: int) -> list[dict[str, Any]]:
    """Return all decisions about a round, however many frames these take."""
    found, more = [], 0
    while more is not None:
        page = daemon.ask(PlansOfRound(job, number, more))
        found += page["decisions"]
        more = page["more"]
    return found


def _made_again(request: PlanRequest) -> Plan | LiflError:
    try:
        return make_plan(request)
    except LiflError as refused:
        return refused
    except ArithmeticError as error:  # numbers that only a damaged row has
        return LocalFault(f"the request is none: {error}")


def _difference(again: Plan | LiflError) -> str:
    return f"REFUSED, {again}" if isinstance(again, LiflError) else f"ANOTHER PLAN\n  {again.explain()[0]}"


def parse_supposed(text: str, wanted: Mapping[str, str] = MappingProxyType({})) -> NodeFacts:
    """Return the node that a ``--node`` means, for a job that goes to nodes with `wanted` labels.

    It is one that others reach, so it is secured.
    Raise `ConfigError`.
    """
    before, colon, last = text.rpartition(":")
    labels = labels_of(last.split(","), "--node") if "=" in last and colon else {}
    name, *numbers = (before if labels else text).rsplit(":", 2)
    try:
        capacity, size = numbers
        residual, arena_bytes = float(capacity), parse_size(size, "--node")
        if not 0 <= residual <= CAPACITY_MAX:
            raise ValueError(f"a capacity is 0 to {CAPACITY_MAX:.0f} updates at a time")
        if arena_bytes > ARENA_BYTES_MAX:
            raise ValueError(f"an arena has at most {ARENA_BYTES_MAX} bytes")
        facts = {"node": name, "residual": residual, "arena_bytes": arena_bytes, "reached": "tls"}
        return msgspec.convert({**facts, "takes_updates": fits(wanted, labels)}, NodeFacts)
    except (ValueError, msgspec.ValidationError) as error:
        raise ConfigError("--node", f"{text!r} is not {NODE_FORM}, such as a:20:2GiB ({error})") from error


def local_layout(config: JobConfig, folder: Path) -> Layout:
    """Return the layout of the model of a job whose file is in this folder.  Raise `ConfigError`."""
    from lifl.node.machine import read_tensors

    # An example model is only looked at.
    with tempfile.TemporaryDirectory(prefix="lifl-plan-") as scratch:
        return Layout(read_tensors(resolve(config, folder, Path(scratch))))


def _print(job: str, request: PlanRequest, made: Plan, explain: bool) -> None:
    from lifl_cli.render.tables import plan_table, show
    from lifl_cli.render.trees import plan_tree

    tell(
        f"a round of job {job}: {made.updates} updates of {size_text(request.model_bytes)}, "
        f"by {made.policy}, {request.timing}"
    )

    show(plan_tree(made))
    show(plan_table(made))
    tell(f"nodes used     {len(made.used)} of {len(made.nodes)}: {printable(', '.join(made.used))}")
    tell(f"between nodes  {size_text(made.transfer_bytes)} at most")
    for transfer in made.transfers:
        way = printable(f"{transfer.source} -> {transfer.target}")
        tell(f"  {transfer.what:<7} {size_text(transfer.nbytes):>10}  {way}")
    tell(f"expected time  {seconds_text(made.completion_s)} from the first update to the sealed model")
    if explain:
        tell("why")
        for line in made.explain():
            tell(f"  {printable(line)}")
