"""`lifl simulate`: a job with virtual clients, on a node that lives as long as the command.

The node, its workers and its arena are real, and so are the clients (`lifl/simulation/`); where they train is this
machine's cores, or a Ray cluster.  Of two configs the one is run after the other, and both are shown side by side.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from lifl.core.config.job import CheckpointSection, JobConfig, parse_job
from lifl.core.errors import ConfigError, LiflError
from lifl.core.limits import CONTRIBUTION_BYTES_MAX, SIMULATED_CLIENTS_MAX
from lifl.core.planning.arena_need import PAGE_BYTES, round_bytes_min
from lifl.core.protocol.cli import CancelJob, Event, SubmitJob
from lifl_cli.config_file import read_toml, resolve, rule_states, with_clients_read
from lifl_cli.daemon_client import DaemonClient
from lifl_cli.fetch_model import copied
from lifl_cli.options import OutputFile
from lifl_cli.output import did
from lifl_cli.plan import local_layout
from lifl_cli.render.figures import printable, printable_lines
from lifl_cli.simulated import Simulation
from lifl_cli.state import absolute
from lifl_cli.submit import print_event

if TYPE_CHECKING:
    from lifl.core.errors import Refused
    from lifl.simulation.pools import Pool
    from lifl.simulation.trainers import Functions, TrainerFailed
    from lifl.simulation.virtual_clients import VirtualClients
    from lifl_cli.render.simulations import Bars

FAILURES_SHOWN = 10
"""Trainers that failed, each with a line; of the rest how many there are."""
AHEAD = 4
"""Updates that have room in the arena beside one from each core and what a round needs at the least."""
ARENA_MORE_BYTES = 8 << 20
CONNECTIONS_MORE = 64
"""Connections that the node takes beside one of each client."""


@click.command()
@click.argument("files", metavar="JOB.toml [OTHER.toml]", nargs=-1, type=click.Path(exists=True, dir_okay=False))
@click.option(
    "--clients", required=True, type=click.IntRange(1, SIMULATED_CLIENTS_MAX), metavar="N", help="How many there are."
)
@click.option(
    "--trainer",
    required=True,
    metavar="MODULE:FUNCTION",
    help="train(tensors, *, client, round, options) -> (tensors, weight, metrics).",
)
@click.option(
    "--evaluator", default="", metavar="MODULE:FUNCTION", help="evaluate(tensors, *, ...) -> (metrics, weight)."
)
@click.option(
    "--properties", default="", metavar="MODULE:FUNCTION", help="properties(client) -> its labels, examples, device."
)
@click.option(
    "--backend",
    type=click.Choice(["processes", "ray"]),
    default="processes",
    show_default=True,
    help="Train in a process on each core, or on the Ray cluster of $RAY_ADDRESS or this machine.",
)
@click.option("-o", "--output", "outputs", multiple=True, type=OutputFile(), help="Write the last model.")
@click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Override a key: job.rounds=5.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one object per line.")
def simulate(
    files: tuple[str, ...],
    clients: int,
    trainer: str,
    evaluator: str,
    properties: str,
    backend: str,
    outputs: tuple[str, ...],
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Train with virtual clients on this machine; compare two configs.

    Each -o is for the config in its place.
    """
    if not 1 <= len(files) <= 2:
        raise click.UsageError("give one job's config, or two to compare them")
    if len(outputs) not in (0, len(files)):
        raise click.UsageError(f"{len(outputs)} -o for {len(files)} configs: give one for each, in their order")
    if len({absolute(output).resolve() for output in outputs}) < len(outputs):
        raise click.UsageError("-o names one file for both configs: the second model would take the place of the first")
    from lifl.simulation.trainers import Functions

    sys.path.insert(0, os.getcwd())  # where the trainer is; the processes that train get it, too
    logging.getLogger("lifl").addHandler(logging.NullHandler())
    functions = Functions(trainer, evaluator, properties)
    found = [Simulation(file, _read(file, overrides, clients, bool(properties))) for file in files]
    signal.signal(signal.SIGTERM, _interrupt)
    traces = _Traces()
    with _bars(found, as_json) as bars:
        for index, each in enumerate(found):
            output = outputs[index] if outputs else ""
            shown = _Shown(each, as_json, bars, traces)
            _run(each, clients, lambda: _pool(backend, functions, traces), output, shown)
    if as_json:
        click.echo(json.dumps({"event": "simulation.over", "simulations": [each.as_dict() for each in found]}))
    elif len(found) > 1:
        from lifl_cli.render.simulations import comparison
        from lifl_cli.render.tables import show

        show(comparison(found))
    sys.exit(0 if all(each.status == "finished" for each in found) else 1)


def _interrupt(_signal: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _read(file: str, overrides: tuple[str, ...], clients: int, have_properties: bool) -> JobConfig:
    """Return a job for so many clients, whose files are the simulation's own.  Raise `ConfigError`."""
    from lifl.simulation.virtual_clients import names_of

    config = with_clients_read(parse_job(read_toml(file), overrides), absolute(file).parent)
    names_of(config, clients)
    if (config.selection.where or config.selection.stratify) and not have_properties:
        text = "virtual clients say no labels, examples or device, unless a function tells them: --properties"
        raise ConfigError("selection.where" if config.selection.where else "selection.stratify", text)
    if clients < config.selection.clients_per_round:
        text = f"{config.selection.clients_per_round} is more than --clients {clients}: no round could have so many"
        raise ConfigError("selection.clients_per_round", text)
    # Nothing of the user's is written over, and all goes with the node.
    return msgspec.structs.replace(config, checkpoint=CheckpointSection())


class _Traces:
    """Shows tracebacks of the user's code: of a mistake that comes again and again the first one."""

    def __init__(self) -> None:
        self._shown: set[tuple[str, ...]] = set()  # the lines of code that each has come by

    def show(self, trace: str) -> None:
        place = tuple(line for line in trace.splitlines() if line.startswith("  File "))
        if trace and place not in self._shown and len(self._shown) < FAILURES_SHOWN:
            self._shown.add(place)
            click.echo(printable_lines(trace), err=True)


def _pool(backend: str, functions: Functions, traces: _Traces) -> Pool:
    if backend == "ray":
        from lifl.simulation.ray_pool import RayPool

        return RayPool(functions, traces.show)
    from lifl.simulation.pools import Processes

    return Processes(functions, _cores(), traces.show)


def _cores() -> int:
    return len(os.sched_getaffinity(0))


class _Shown:
    """Shows what happens in one simulation, and keeps it."""

    def __init__(self, simulation: Simulation, as_json: bool, bars: Bars | None, traces: _Traces) -> None:
        self._simulation = simulation
        self._as_json = as_json
        self._bars = bars
        self._lock = threading.Lock()
        self._traces = traces

    def event(self, event: Event) -> None:
        """Take what the node tells."""
        simulation, fields = self._simulation, event.fields
        if event.name == "round.committed":
            simulation.rounds.append(dict(fields))
        elif event.name == "evaluation.over":
            for each in simulation.rounds:
                if each["round"] == fields["round"]:
                    each["evaluation"] = {name: value for name, value in fields.items() if name not in ("round", "job")}
        elif event.name == "job.over":
            simulation.status = fields["status"]
            simulation.reason = simulation.reason or fields.get("reason") or ""
        if self._bars is not None:
            self._bars.note(simulation, event)
        with self._lock:
            if self._as_json:
                click.echo(json.dumps({"event": event.name, "config": simulation.file, **fields}))
            elif event.name != "job.over" or fields["status"] != "cancelled":
                fields = {name: value for name, value in fields.items() if name != "path"}  # it goes with the node
                print_event(msgspec.structs.replace(event, fields=fields), simulation.config.job.rounds)

    def failed(self, name: str, number: int, round_: int, fault: TrainerFailed | Refused) -> None:
        """Take that a trainer failed."""
        text = str(fault)
        with self._lock:
            self._simulation.failures += 1
            self._traces.show(getattr(fault, "trace", ""))
            if self._as_json:
                about = {"client": name, "number": number, "round": round_, "reason": text}
                told = {"event": "trainer.failed", "config": self._simulation.file, **about}
                click.echo(json.dumps(told))
            elif self._simulation.failures <= FAILURES_SHOWN:
                click.echo(printable(f"round {round_}, {name} (client={number}): {text}"), err=True)
            elif self._simulation.failures == FAILURES_SHOWN + 1:
                click.echo("more trainers fail; how many is told at the end", err=True)

    def copied(self, output: str, number: int, unread: str) -> None:
        """Say where the last model is."""
        if unread:
            click.echo(f"warning: {printable(unread)}", err=True)
        if not self._as_json:
            did(f"{output}: model of job {self._simulation.config.job.name} after round {number}")

    def over(self, kept: bool) -> None:
        """Say how it ended; `kept`: and a model of it is kept."""
        simulation = self._simulation
        if self._as_json:
            return
        if simulation.failures:
            click.echo(f"{simulation.failures} times a trainer failed, and its client declined the round", err=True)
        if simulation.rounds and not kept:
            click.echo("its models are gone with its node; -o FILE keeps the last one", err=True)
        if simulation.status == "cancelled":
            click.echo(printable(f"Error: {simulation.file}: {simulation.reason}"), err=True)


@contextmanager
def _bars(simulations: list[Simulation], as_json: bool) -> Iterator[Bars | None]:
    if as_json or not (sys.stdout.isatty() and sys.stderr.isatty()):
        yield None
        return
    from lifl_cli.render.simulations import Bars

    with Bars(simulations) as bars:
        yield bars


def _run(simulation: Simulation, clients: int, make_pool: Callable[[], Pool], output: str, shown: _Shown) -> None:
    """Run one config to its end, and leave nothing behind.  Raise `LiflError`, `KeyboardInterrupt`."""
    from lifl.aggregator.local_node import LocalNode
    from lifl.simulation.virtual_clients import VirtualClients, check_selectable, names_of

    signal.signal(signal.SIGINT, _interrupt)
    config = simulation.config
    folder = absolute(simulation.file).parent
    states = rule_states(config, folder)
    with ExitStack() as stack:
        try:
            node = LocalNode(_arena_bytes(config, folder, len(states)), connections_max=clients + CONNECTIONS_MORE)
            stack.callback(node.close)
            pool = make_pool()
            stack.callback(pool.close)
            state_dir = Path(node.folder)
            scratch = state_dir / "simulation"
            scratch.mkdir()
            pool.begin(scratch)
            daemon = stack.enter_context(DaemonClient(state_dir))
            names, said = names_of(config, clients), pool.said(clients)
            check_selectable(config, names, said)
            make_crowd = partial(VirtualClients, str(state_dir), config, names, said, pool, shown.failed)
            resolved = resolve(config, folder, state_dir)
            daemon.ask(SubmitJob(msgspec.to_builtins(resolved), states, follow=True))
            _follow(stack, daemon, simulation, state_dir, make_crowd, shown)
            shown.over(kept=bool(output))
            if output and simulation.rounds:
                with DaemonClient(state_dir) as asked:
                    number, unread = copied(asked, config.job.name, "last", Path(output))
                shown.copied(output, number, unread)
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # what was begun is ended whole


def _follow(
    stack: ExitStack,
    daemon: DaemonClient,
    simulation: Simulation,
    state_dir: Path,
    make_crowd: Callable[[Callable[[str], None]], VirtualClients],
    shown: _Shown,
) -> None:
    """Have all clients take part, and show what happens until the job is over."""
    config = simulation.config
    begun_s = time.monotonic()

    def stop(reason: str) -> None:
        simulation.reason = simulation.reason or reason
        with suppress(LiflError), DaemonClient(state_dir) as other:
            other.ask(CancelJob(config.job.name))

    crowd = make_crowd(stop)
    stack.callback(crowd.close)
    crowd.start()
    for event in daemon.events():
        if event.name == "round.committed":
            crowd.committed = event.fields["round"]
        shown.event(event)
    simulation.took_s = time.monotonic() - begun_s


def _arena_bytes(config: JobConfig, folder: Path, states: int) -> int:
    """Return what an arena needs for a round, with room for the updates of all cores."""
    layout = local_layout(config, folder)
    goal = config.selection.clients_per_round
    least = round_bytes_min(layout, config.aggregation, goal, states)
    ahead = (_cores() + AHEAD) * (layout.data_bytes + CONTRIBUTION_BYTES_MAX + PAGE_BYTES)
    return least + ahead + ARENA_MORE_BYTES
