"""`lifl calibrate`: find by real updates what this machine folds at a time, and have its node keep that."""

from __future__ import annotations

import json
import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from lifl.core.config.job import CheckpointSection, JobConfig, parse_job
from lifl.core.errors import Refused, ResourceFault
from lifl.core.planning.arena_need import round_bytes_min
from lifl.core.protocol.cli import KeepCapacity, Snapshot, SubmitJob
from lifl.core.schema import Layout, TensorSpec
from lifl_cli.daemon_client import DaemonClient
from lifl_cli.options import json_option, state_option
from lifl_cli.output import did

if TYPE_CHECKING:
    from lifl.simulation.arrivals import Found, Step

UPDATE_BYTES_MIN, UPDATE_BYTES_MAX = 1 << 20, 1 << 28
ROUNDS = 128
"""More than all steps take, though each were made twice."""


def _size(_ctx: click.Context, param: click.Parameter, value: str) -> int:
    from lifl.core.config.values import parse_size

    size = parse_size(value, "--update-bytes")
    if not UPDATE_BYTES_MIN <= size <= UPDATE_BYTES_MAX:
        raise click.BadParameter(f"{value} is not {UPDATE_BYTES_MIN} to {UPDATE_BYTES_MAX} bytes", param=param)
    return size // 4 * 4


@click.command()
@click.option(
    "--update-bytes", callback=_size, default="16MiB", show_default=True, metavar="SIZE", help="Of each update."
)
@click.option("--forget", is_flag=True, help="Have the node forget what it has kept, and measure quickly again.")
@json_option
@state_option
def calibrate(update_bytes: int, forget: bool, as_json: bool, state_dir: Path) -> None:
    """Find what this machine folds at a time, by real updates.

    A node of its own, which ends with the command, gets updates faster and faster, until each takes longer to be
    folded: that was one step too many.  What is found is kept by the node of the state folder as its capacity (in
    `lifl nodes`), over restarts, in the place of what it measures quickly at each start.  Nothing else should run here
    meanwhile.  It is 1 at least.  ^C ends it, and nothing is kept.
    """
    if forget:
        with DaemonClient(state_dir) as daemon:
            daemon.ask(KeepCapacity(0.0))
        did("forgotten: the node measures its capacity at each start", "{}" if as_json else None)
        return
    running = _check_idle(state_dir)
    found = _measured(update_bytes, as_json)
    if running:
        with DaemonClient(state_dir) as daemon:
            daemon.ask(KeepCapacity(found.capacity))
    _show(found, running, as_json)


def _check_idle(state_dir: Path) -> bool:
    """Return whether a node is there.  Raise `Refused` when a job runs on it, or its capacity is given."""
    try:
        daemon = DaemonClient(state_dir)
    except ResourceFault:
        return False
    with daemon:
        shown = daemon.ask(Snapshot(trees=False))
    if shown["node"]["capacity_given"]:
        text = "the node's capacity is given (capacity, or --capacity): start it without that to have one found"
        raise Refused("capacity-given", "capacity", text)
    running = [each["name"] for each in shown["jobs"] if each["status"] == "running"]
    if running:
        text = f"job {running[0]!r} runs here, and would take part of what is measured: wait for its end, or"
        raise Refused("job-runs", "job", f"{text} `lifl pause {running[0]}`")
    return True


def _measured(update_bytes: int, as_json: bool) -> Found:
    """Return what was found on a node of its own, which is gone then."""
    from lifl.aggregator.local_node import LocalNode
    from lifl.node import machine
    from lifl.simulation import arrivals

    config = _job(arrivals.JOB, arrivals.CLIENTS)
    tensors = (TensorSpec(arrivals.TENSOR, "float32", (update_bytes // 4,)),)
    least = round_bytes_min(Layout(tensors, reproducible=True), config.aggregation, arrivals.CLIENTS, 0)
    before = signal.signal(signal.SIGTERM, _interrupt)
    node = LocalNode(least + arrivals.CLIENTS * update_bytes, workers_max=2 * machine.cores() + 1)
    try:
        _submit(Path(node.folder), config, tensors)
        with DaemonClient(Path(node.folder)) as asked:

            def totals() -> tuple[int, float]:
                load = asked.ask(Snapshot(trees=False))["node"]["load"]
                return load["folded"], load["busy_s"]

            told = _tell_nothing if as_json else _tell
            return arrivals.Arrivals(node.folder, update_bytes, totals, told).run()
    finally:
        signal.signal(signal.SIGTERM, before)
        with suppress(KeyboardInterrupt):  # what was begun is ended whole
            node.close()


def _interrupt(_signal: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _job(name: str, clients: int) -> JobConfig:
    sections = {"job": {"name": name, "rounds": ROUNDS}, "selection": {"clients_per_round": clients}}
    return parse_job({**sections, "model": {"path": "/model"}})


def _submit(folder: Path, config: JobConfig, tensors: tuple[TensorSpec, ...]) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    path = folder / "calibrate.safetensors"
    save_file({spec.name: np.zeros(spec.shape, spec.dtype) for spec in tensors}, path)
    model = msgspec.structs.replace(config.model, path=str(path))
    checkpoint = CheckpointSection(folder=str(folder / "calibrate"))
    config = msgspec.structs.replace(config, model=model, checkpoint=checkpoint)
    with DaemonClient(folder) as daemon:
        daemon.ask(SubmitJob(msgspec.to_builtins(config)))


def _tell(step: Step) -> None:
    line = f"{step.rate_per_s:8.1f} updates a second, {step.execution_s * 1e3:7.2f} ms each: {step.load:.2f} at a time"
    click.echo(line, err=True)


def _tell_nothing(_step: Step) -> None:
    pass


def _show(found: Found, kept: bool, as_json: bool) -> None:
    from lifl.simulation.arrivals import ENDED_TEXTS

    if as_json:
        steps = [{**step._asdict(), "load": step.load} for step in found.steps]
        shown = {"capacity": found.capacity, "kept": kept, "ended": found.ended, "steps": steps}
        did("", json.dumps(shown))
        return
    what = "the node keeps that" if kept else f"no node runs here to keep that: lifl up --capacity {found.capacity:g}"
    did(f"{found.capacity:g} updates at a time; {ENDED_TEXTS[found.ended]}; {what}")
