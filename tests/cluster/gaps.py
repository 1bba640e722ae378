"""How long a job stands still when a node fails in some way: the faults, and the longest gap between two commits.

A job of many short rounds runs on three nodes; each client is given the address of one node only, and learns those of
the others there.  Then something happens to the second node, or to a part of the first, which coordinates.  Run by
itself, as root, this measures each fault (or those that have a word in their names) and writes the tables of
docs/failures.md:

    PYTHONPATH=tests:tests/cluster python tests/cluster/gaps.py [WORD]

`tests/sim/test_sim_gaps.py` holds the same on the simulator's clock.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from typing import Any, NamedTuple

import psutil
from fleet import OneHot, Trainer, Watch, ask, submit, until
from netns import Cluster, Machine, kept

from lifl.client import JobCancelled, Round
from lifl.core.errors import LiflError
from lifl.core.protocol import cli as om

CLIENTS = 6
PACE_S = 0.05
"""How long a trainer trains: the rounds of a minute can be looked at one by one."""
BEFORE, AFTER = 5, 20
"""Rounds before the fault, and after the gap."""


class Commits(Watch):
    """A job's events, with the time at which each commit was heard of."""

    def __init__(self, cluster: Cluster, job: str) -> None:
        self.times: list[tuple[float, int]] = []
        super().__init__(cluster.coordinator, job)

    def _read(self) -> None:
        with self._daemon, suppress(LiflError):
            for event in self._daemon.events():
                with self._changed:
                    self.events.append(event)
                    if event.name == "round.committed":
                        self.times.append((time.monotonic(), event.fields["round"]))
                    self._changed.notify_all()
        with self._changed:
            self.ended = True
            self._changed.notify_all()

    def longest_gap_s(self, since_s: float) -> float:
        """The longest time between two commits that ended after `since_s`."""
        times = [at for at, _ in self.times]
        return max((later - earlier for earlier, later in pairwise(times) if later >= since_s), default=0.0)


# ---- the faults ------------------------------------------------------------------------------------------------------

Fault = Callable[[Cluster, Machine], Callable[[], None]]
"""Makes it happen to a node, and returns what undoes it."""


def processes(machine: Machine, what: str) -> list[psutil.Process]:
    """The node's lifld, gateway, zygote or workers."""
    lifld = psutil.Process(machine.pid)
    if what == "lifld":
        return [lifld]
    children = {child: " ".join(child.cmdline()) for child in lifld.children()}
    if what == "gateway":
        return [child for child, line in children.items() if "gateway" in line]
    (zygote,) = [child for child, line in children.items() if "zygote" in line]
    return [zygote] if what == "zygote" else zygote.children()


def stopped(what: str) -> Fault:
    """SIGSTOP of a process of the node, or of all."""

    def fault(_cluster: Cluster, machine: Machine) -> Callable[[], None]:
        if what == "all":
            machine.stop()
            return machine.go_on
        found = processes(machine, what)
        assert found, f"the node has no {what}"
        for process in found:
            process.send_signal(signal.SIGSTOP)

        def undo() -> None:
            for process in found:
                if process.is_running():
                    process.send_signal(signal.SIGCONT)

        return undo

    return fault


def cut(from_it: str, to_it: str) -> Fault:
    """Lines that are cut: what the node sends to ``clients``, ``nodes`` or ``all``, and what comes to it from there."""

    def fault(cluster: Cluster, machine: Machine) -> Callable[[], None]:
        others = [other.host for other in cluster.machines if other is not machine]
        whom = {"": [], "clients": [cluster.clients], "nodes": others, "all": [*others, cluster.clients]}
        if from_it:
            cluster.network.cut(machine.host, *whom[from_it])
        for other in whom[to_it]:
            cluster.network.cut(other, machine.host)

        def undo() -> None:
            if from_it:
                cluster.network.mend(machine.host, *whom[from_it])
            for other in whom[to_it]:
                cluster.network.mend(other, machine.host)

        return undo

    return fault


def killed(_cluster: Cluster, machine: Machine) -> Callable[[], None]:
    """kill -9 of all."""
    machine.kill()
    return machine.up


def ended(what: str) -> Fault:
    """`kill -9` of a process of the node; lifld starts another one."""

    def fault(_cluster: Cluster, machine: Machine) -> Callable[[], None]:
        for process in processes(machine, what):
            process.kill()
        return lambda: None

    return fault


def full(*what: str) -> Fault:
    """No file can grow for `FULL_S`: a limit of its size is what a full disk is to these processes alone.

    What is committed meanwhile, if anything, is so without this node's part: the gap has all of `FULL_S`.
    """

    def fault(_cluster: Cluster, machine: Machine) -> Callable[[], None]:
        found = [process for each in what for process in processes(machine, each)]

        def limit(nbytes: int) -> None:
            for process in found:
                with suppress(psutil.NoSuchProcess):
                    process.rlimit(psutil.RLIMIT_FSIZE, (nbytes, psutil.RLIM_INFINITY))

        limit(1)
        room = threading.Timer(FULL_S, limit, [psutil.RLIM_INFINITY])
        room.start()
        return room.join

    return fault


def powered_off(cluster: Cluster, machine: Machine) -> Callable[[], None]:
    """No process is left, and nobody is told so by its machine."""
    mend = cut("all", "all")(cluster, machine)
    machine.kill()

    def undo() -> None:
        mend()
        machine.up()

    return undo


FULL_S = 5.0
FAULTS: dict[str, Fault] = {
    "`kill -9` of all its processes": killed,
    "power off": powered_off,
    "SIGSTOP of `lifld`": stopped("lifld"),
    "SIGSTOP of the gateway": stopped("gateway"),
    "SIGSTOP of its workers": stopped("workers"),
    "`kill -9` of the zygote": ended("zygote"),
    "SIGSTOP of the zygote": stopped("zygote"),
    f"database full for {FULL_S:g} s": full("lifld"),
    f"disk full for {FULL_S:g} s": full("lifld", "zygote", "workers"),
    "SIGSTOP of all its processes": stopped("all"),
    "cut off from clients": cut("clients", "clients"),
    "what it sends to clients is lost": cut("clients", ""),
    "what clients send to it is lost": cut("", "clients"),
    "cut off from the other nodes": cut("nodes", "nodes"),
    "what it sends to the others is lost": cut("nodes", ""),
    "what the others send to it is lost": cut("", "nodes"),
}
"""What happens to a node that does not coordinate."""
COORDINATORS: dict[str, Fault] = {
    "`kill -9` of its gateway": ended("gateway"),
    "SIGSTOP of its gateway": stopped("gateway"),
    "`kill -9` of its workers": ended("workers"),
    "SIGSTOP of its workers": stopped("workers"),
    "`kill -9` of its zygote": ended("zygote"),
    "SIGSTOP of its zygote": stopped("zygote"),
    f"database full for {FULL_S:g} s": full("lifld"),
    f"checkpoints' disk full for {FULL_S:g} s": full("zygote", "workers"),
}
"""What happens to a part of the node that does."""


# ---- the measurement -------------------------------------------------------------------------------------------------


class Measured(NamedTuple):
    """What a fault did to a job."""

    gap_s: float
    usual_s: float
    rounds: int
    lost: int
    attempts_failed: int


def train(trainer: Trainer, round_: Round) -> None:
    """What a trainer does in a round: it takes its time, and submits."""
    threading.Event().wait(PACE_S)
    trainer.fleet.submit(trainer, round_)


@contextmanager
def running(cluster: Cluster, job: str, oracle: OneHot) -> Iterator[Commits]:
    """A job of many rounds, cancelled at the end; then each commit of it is looked at."""
    keys: dict[str, Any] = {"aggregation__placement": "worst-fit", "job__rounds": 100_000}
    submit(cluster.coordinator, job, oracle.model(), **keys)
    commits = Commits(cluster, job)
    addresses = [machine.gateway for machine in cluster.machines]
    with cluster.fleet(job, CLIENTS, oracle.update, addresses=addresses, play=train) as team:
        commits.wait("round.committed", BEFORE)
        yield commits
        ask(cluster.coordinator, om.CancelJob(job))
        team.join(well=False)
        assert {type(error) for error in team.errors().values()} <= {JobCancelled}, team.errors()
    commits.join()


FELT_S = 15.0
"""A fault is felt within this time: longer than it takes to declare a node dead."""


def measure(
    cluster: Cluster,
    job: str,
    fault: Fault,
    victim: Machine | None = None,
    felt_s: float = FELT_S,
    after_rounds: int = AFTER,
) -> Measured:
    """What a fault of a node (the second one) does to a job: nothing is lost or doubled, and it goes on."""
    oracle, victim = OneHot(CLIENTS), victim or cluster.agents[0]
    with running(cluster, job, oracle) as commits:
        usual_s = commits.longest_gap_s(0.0)
        began_s = time.monotonic()
        undo = fault(cluster, victim)
        try:
            # The fault may be felt late, or not at all: a worker that is stopped while nothing is for it.
            until("rounds after the fault", lambda: _goes_on(commits, began_s + felt_s, began_s, after_rounds))
            gap_s = commits.longest_gap_s(began_s)
        finally:
            undo()
        after = len(commits.times)
        commits.wait("round.committed", after + after_rounds)
        until("the node back", lambda: cluster.coordinator.states().get(victim.name) == "alive")
    lines = oracle.check(cluster.coordinator, job)
    failed = [line for line in ask(cluster.coordinator, om.JobStatus(job))["rounds"] if line["status"] == "failed"]
    lost = CLIENTS * len(lines) - sum(line["receipt"]["counted"] for line in lines)
    return Measured(gap_s, usual_s, len(lines), lost, len(failed))  # were one doubled, the oracle would have raised


def _goes_on(commits: Commits, until_s: float, began_s: float, after_rounds: int) -> bool:
    """So many commits have followed the longest gap, long enough after the fault for it to have been felt."""
    times = [at for at, _ in commits.times]
    gaps = [(later - earlier, later) for earlier, later in pairwise(times) if later >= began_s]
    if time.monotonic() < until_s or not gaps:
        return False
    _gap_s, ended_s = max(gaps)
    return sum(at > ended_s for at in times) >= after_rounds


def main() -> None:
    """Measure each fault, and print the tables."""
    word = sys.argv[1] if len(sys.argv) > 1 else ""
    with kept(3, "--redirector", "unix") as keeper:
        for title, faults in (("a node that does not coordinate", FAULTS), ("the coordinator", COORDINATORS)):
            head = f"| fault of {title} | longest gap, s | rounds committed | lost | doubled |"
            lines = [head, "|---|---|---|---|---|"]
            for number, (name, fault) in enumerate(faults.items()):
                if word not in name:
                    continue
                with keeper.whole(lambda: 0) as cluster:
                    victim = cluster.coordinator if faults is COORDINATORS else cluster.agents[0]
                    found = measure(cluster, f"{victim.host.name}{number}", fault, victim)
                lines.append(f"| {name} | {found.gap_s:.1f} | {found.rounds} | {found.lost} | 0 |")
                print(f"{title}, {name}: {found}", file=sys.stderr, flush=True)
            print("\n".join([*lines, ""]), flush=True)


if __name__ == "__main__":
    main()
