"""`lifl top`: the cluster, the node, its workers and its jobs, live.

`lifld` measures nothing on its own for this: once a second, while the view is open, one Snapshot is asked
for; rates are the differences of two snapshots.  CPU and memory of processes and of the machine are read
here, with psutil.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from lifl.core.protocol.cli import Snapshot
from lifl_cli.daemon_client import DaemonClient, daemon_at
from lifl_cli.options import state_option
from lifl_cli.output import is_lost

REFRESH_S = 1.0
ONCE_WINDOW_S = 0.3
"""How long `--once` measures CPU and rates."""


@click.command()
@click.option("--once", is_flag=True, help="Print one view and end.")
@click.option("--json", "as_json", is_flag=True, help="Print one snapshot as JSON and end.")
@state_option
def top(once: bool, as_json: bool, state_dir: Path) -> None:
    """Watch the node, its workers and its jobs live.

    Keys: j and k go from job to job, a shows all, s sorts, t hides and shows trees, space holds the view, q quits.
    """
    with daemon_at(state_dir) as daemon:
        sampler = Sampler(daemon)
        if once or as_json:
            sampler.sample()
            time.sleep(ONCE_WINDOW_S)  # the window in which rates are measured
            sample = sampler.sample()
            if as_json:
                click.echo(json.dumps(sample, indent=2))
            else:
                from lifl_cli.render.tables import show
                from lifl_cli.render.top import view

                show(view(sample, width=shutil.get_terminal_size().columns))
            return
        _live(sampler)


class Sampler:
    """Turns snapshots into samples: a snapshot with rates, and CPU and memory of each process."""

    def __init__(self, daemon: DaemonClient) -> None:
        import psutil

        self._psutil = psutil
        self._daemon = daemon
        self._processes: dict[int, Any] = {}
        self._last: tuple[float, Mapping[str, Any]] | None = None
        self._host()

    def sample(self) -> dict[str, Any]:
        """Return a Snapshot's result with `host`, `processes` (by pid) and `rates` added."""
        snapshot = self._daemon.ask(Snapshot())
        now_s = time.monotonic()
        node = snapshot["node"]
        pids = [node["pid"], node["gateway"].get("pid"), node.get("zygote_pid")]
        pids += [node["http_door"]["pid"]] if node.get("http_door") else []
        pids += [worker["pid"] for worker in snapshot["workers"]]
        sample = {
            **snapshot,
            "host": self._host(),
            "processes": self._measure([pid for pid in pids if pid and not self._daemon.is_remote]),
            "rates": self._rates(now_s, node["gateway"]),
        }
        self._last = (now_s, node["gateway"])
        return sample

    def _host(self) -> dict[str, float] | None:
        """Return what the node's machine is busy with; None for another machine, of which nothing is seen here."""
        if self._daemon.is_remote:
            return None
        memory = self._psutil.virtual_memory()
        return {
            "cpu_percent": self._psutil.cpu_percent(),
            "cpus": self._psutil.cpu_count(),
            "memory_bytes": memory.total,
            "memory_used_bytes": memory.total - memory.available,
        }

    def _measure(self, pids: Sequence[int]) -> dict[str, dict[str, float]]:
        found = {}
        for pid in pids:
            try:
                process = self._processes.setdefault(pid, self._psutil.Process(pid))
                memory = process.memory_info()
                found[str(pid)] = {
                    "cpu_percent": process.cpu_percent(),
                    # The arena is mapped by all of them: it belongs to none.
                    "private_bytes": memory.rss - memory.shared,
                }
            except self._psutil.Error:
                self._processes.pop(pid, None)
        self._processes = {pid: process for pid, process in self._processes.items() if pid in pids}
        return found

    def _rates(self, now_s: float, gateway: Mapping[str, Any]) -> dict[str, float]:
        if self._last is None:
            return {"received_bytes_s": 0.0, "sent_bytes_s": 0.0}
        then_s, before = self._last
        return {
            f"{way}_bytes_s": (gateway.get(f"{way}_bytes", 0) - before.get(f"{way}_bytes", 0)) / (now_s - then_s)
            for way in ("received", "sent")
        }


def _live(sampler: Sampler) -> None:
    from rich.console import Console
    from rich.live import Live

    from lifl_cli.render.top import ALL, KEYS, pressed, view

    console = Console()
    if not console.is_terminal:
        raise click.UsageError("the live view needs a terminal; use --once or --json")
    if console.is_dumb_terminal:
        raise click.UsageError(
            "the live view needs a terminal that can be drawn on, which TERM=dumb is not; use --once"
        )
    sampler.sample()
    sample, look = sampler.sample(), ALL
    with _keys(), Live(console=console, screen=True, auto_refresh=False) as live:
        try:
            while not is_lost():
                live.update(view(sample, look, console.width, KEYS), refresh=True)
                if key := _key(None if look.paused else REFRESH_S):
                    after = pressed(look, key[0], sample)
                    if after is None:
                        return
                    look = after
                elif not look.paused:
                    sample = sampler.sample()
        except KeyboardInterrupt:
            return


def _key(wait_s: float | None) -> tuple[str] | None:
    """Return the key that is pressed within this time, if one is; an empty one: there is nobody any more."""
    ready, _, _ = select.select([sys.stdin], [], [], wait_s)
    return (os.read(sys.stdin.fileno(), 1).decode(errors="replace"),) if ready else None


@contextmanager
def _keys() -> Iterator[None]:
    """Have the terminal give single keys, without echo, for a while."""
    import termios
    import tty

    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
