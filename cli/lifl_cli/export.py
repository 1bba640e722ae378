"""`lifl export`: a job's metrics, told to a tracker; `lifld` runs it for jobs whose config has `metrics.tracker`.

The rows of the node's database are the queue: what was not told yet is read there, so nothing waits in `lifld`, no
round waits for a tracker, and one that is away for a while is told all when it is back.  With ``--follow`` a thread
hears of commits and only notes that there are some.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from lifl.core.errors import LiflError, Refused, RemoteFault
from lifl.core.protocol.cli import Follow, JobStatus
from lifl_cli.completion import job_names
from lifl_cli.daemon_client import DaemonClient, daemon_at
from lifl_cli.options import json_option, state_option
from lifl_cli.output import did
from lifl_cli.render.figures import printable
from lifl_cli.rounds import evaluated, lines_before, row_of, scalars
from lifl_cli.state import absolute
from lifl_cli.trackers import MLFLOW_ADDRESS, TRACKERS, Point, Run, Tracker, TrackerAway, run_of

POINTS_OF_A_TELLING = 64
RETRY_S = (1.0, 2.0, 5.0, 15.0, 60.0)
"""How long a tracker that does not answer is left alone, again and again; the last holds from then on."""
TRACKERS_FOLDER = "trackers"
"""In the state folder: what is written for a job that names no folder."""
SAID = "tracker: "
"""What begins a line of standard error that `lifl top` shows, of a process that lifld has started."""
FIRST_ROUNDS = 4
"""So many rounds are looked at first: most often one is new."""
NICE = 10
"""What lifld has started gives way to rounds."""
PR_SET_PDEATHSIG = 1


@click.command()
@click.argument("job", shell_complete=job_names)
@click.option("--to", "tracker", type=click.Choice(list(TRACKERS)), help="[default: the job's metrics.tracker]")
@click.option("--address", metavar="URL|DIR", help="Where it is.  [default: the job's metrics.address]")
@click.option("--follow", is_flag=True, help="Go on with each round that commits, until the job is over.")
@json_option
@state_option
def export(job: str, tracker: str | None, address: str | None, follow: bool, as_json: bool, state_dir: Path) -> None:
    """Tell a job's metrics to MLflow, TensorBoard or wandb."""
    with daemon_at(state_dir) as daemon:
        found = daemon.ask(JobStatus(job, last=0))
        kind, where = place_of(job, found["config"].get("metrics") or {}, tracker, address, state_dir)
        run = run_of(found["job"], found["config"])
        if follow:
            _end_with_lifld(daemon)
            with daemon_at(state_dir) as events:
                told = _followed(daemon, events, run, kind, where)
        else:
            told = Told(daemon, run, kind, where).all()
    shown = {"job": job, "tracker": kind, "address": where, "rounds": told}
    did(f"{told} rounds of job {job} are told to {kind} at {printable(where)}", json.dumps(shown) if as_json else None)


def place_of(
    job: str, metrics: Mapping[str, Any], tracker: str | None, address: str | None, state_dir: Path
) -> tuple[str, str]:
    """Return which tracker is meant, and where it is.  Raise `Refused` when neither command nor job says one."""
    kind = tracker or metrics.get("tracker")
    if not kind:
        text = f"job {job} has no metrics.tracker: say which one with --to {', '.join(TRACKERS)}"
        raise Refused("no-tracker", "--to", text)
    given = address or (metrics.get("address") if kind == metrics.get("tracker") else "") or ""
    if kind == "mlflow":
        return kind, given or MLFLOW_ADDRESS
    return kind, str(absolute(given)) if given else str(state_dir / TRACKERS_FOLDER / kind)


class Told:
    """What a tracker has been told of a job, and the rest; the tracker is reached when there is something to tell.

    The mark is the number of the last round that was told, with a + when what its evaluation found was, too: that comes
    after its commit, and before the next round's.
    """

    def __init__(self, daemon: DaemonClient, run: Run, kind: str, address: str) -> None:
        self._daemon = daemon
        self._run = run
        self._make: Callable[[], Tracker] = lambda: TRACKERS[kind](run, address)
        self._tracker: Tracker | None = None
        self._mark = ""

    def all(self, over: bool = True) -> int:
        """Tell all that was not, and return of how many rounds; `over`: no more will come.  Raise `LiflError`."""
        if self._tracker is None:
            self._tracker = self._make()
            self._mark = self._tracker.mark()
        points = list(self._new())[::-1]
        for begin in range(0, len(points), POINTS_OF_A_TELLING):
            part = points[begin : begin + POINTS_OF_A_TELLING]
            self._mark = part[-1][1]
            self._tracker.tell([point for point, _mark in part], self._mark)
        if over:
            self._tracker.end()
        return len(points)

    def _new(self) -> Iterator[tuple[Point, str]]:
        """Yield what is new, the newest first, each with the mark after it."""
        last = int(self._mark.rstrip("+") or 0)
        for line in lines_before(self._daemon, self._run.name, first=FIRST_ROUNDS):
            if line["round"] is None or line["status"] != "committed" or line["committed_unix_s"] is None:
                continue
            row = row_of(line)
            mark = f"{row['round']}{'+' if row['evaluation'] else ''}"
            if row["round"] <= last:
                if row["round"] == last and mark.endswith("+") and mark != self._mark:
                    yield Point(last, row["committed_unix_s"], evaluated(row)), mark
                return
            yield Point(row["round"], row["committed_unix_s"], values_of(row)), mark

    def forget(self) -> None:
        """Reach the tracker anew the next time."""
        self._tracker = None


def values_of(row: Mapping[str, Any]) -> dict[str, float]:
    """Return all that a tracker is told of a round: its figures, and where they are kept those of each client."""
    found = scalars(row)
    for client, metrics in row["clients"].items():
        found |= {f"client.{client}.{name}": float(value) for name, value in metrics.items()}
    return found


class News:
    """Hears of a job's commits in a thread of its own, and notes no more than that something is new."""

    def __init__(self, events: DaemonClient) -> None:
        self._events = events
        self._new = threading.Event()
        self.over = False
        self._fault: LiflError | None = None
        threading.Thread(target=self._hear, daemon=True).start()

    def _hear(self) -> None:
        try:
            for event in self._events.events():
                if event.name in ("round.committed", "evaluation.over", "job.over"):
                    self.over |= event.name == "job.over"
                    self._new.set()
        except LiflError as error:
            self._fault = error
        except OSError as error:
            self._fault = RemoteFault(f"lifld is gone: {error}")
        self._new.set()

    def wait(self) -> None:
        """Wait until something is new.  Raise `LiflError` when lifld is gone."""
        self._new.wait()
        self._new.clear()
        if self._fault is not None:
            raise self._fault


def _followed(daemon: DaemonClient, events: DaemonClient, run: Run, kind: str, address: str) -> int:
    """Tell all rounds until the job is over, and return how many; a tracker that is away is tried again."""
    events.ask(Follow(run.name))
    news, told, count, failures = News(events), Told(daemon, run, kind, address), 0, 0
    while True:
        over = news.over
        try:
            count += told.all(over)
        except TrackerAway as fault:
            click.echo(f"{SAID}{printable(fault)}; it is tried again", err=True)
            told.forget()
            time.sleep(RETRY_S[min(failures, len(RETRY_S) - 1)])
            failures += 1
            continue
        if failures:
            click.echo(f"{SAID}it goes on", err=True)
            failures = 0
        if over:
            return count
        news.wait()


def _end_with_lifld(daemon: DaemonClient) -> None:
    """Have the kernel end this process with the lifld that has started it, if one has."""
    from lifl.confine import kernel

    if daemon.lifld_pid and daemon.lifld_pid == os.getppid():
        os.nice(NICE)
        kernel.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if daemon.lifld_pid != os.getppid():
            raise RemoteFault("lifld has just ended")
