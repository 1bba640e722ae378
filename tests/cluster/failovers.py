"""How long it takes until another node coordinates, and until rounds are committed again: measured by hand, as root.

A job of many short rounds runs on three nodes with an etcd of three members; then something happens to the node that
coordinates.  Prints the table of docs/failover.md:

    PYTHONPATH=tests:tests/cluster python tests/cluster/failovers.py [REPEATS]
"""

from __future__ import annotations

import logging
import statistics
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from fleet import OneHot, ask, submit, until
from gaps import BEFORE, CLIENTS, cut, killed, powered_off, stopped, train
from netns import Cluster, Machine, SharedCluster, kept

from lifl.core.errors import LiflError
from lifl.core.protocol import cli as om

REPEATS = 5
STOPPED_S = 30.0
"""So long a SIGSTOP lasts; the rounds of the others go on meanwhile."""
Fault = Callable[[Cluster, Machine], Callable[[], None]]


def went_down(_cluster: Cluster, machine: Machine) -> Callable[[], None]:
    """`lifl down`, which goes on when another node leads already."""
    going = threading.Thread(target=machine.down)
    going.start()

    def undo() -> None:
        going.join()
        machine.up()

    return undo


def killed_with_etcds_leader(cluster: Cluster, machine: Machine) -> Callable[[], None]:
    """kill -9 of the coordinator and of the member that leads etcd, in one moment."""
    assert isinstance(cluster, SharedCluster)
    member = cluster.store_leader()
    member.kill()
    machine.kill()

    def undo() -> None:
        cluster.store.revive(member)
        machine.up()

    return undo


FAULTS: dict[str, Fault] = {
    "`kill -9` of all its processes": killed,
    "power off, with its member of etcd cut off": powered_off,
    "SIGSTOP of `lifld` for 30 s": stopped("lifld"),
    "SIGSTOP of all its processes for 30 s": stopped("all"),
    "cut off from the other nodes, with its member of etcd": cut("nodes", "nodes"),
    "`kill -9`, and of etcd's leader with it": killed_with_etcds_leader,
    "`lifl down`": went_down,
}


class Moved(NamedTuple):
    """What a fault did: until another node coordinated, and until it had committed a round, in seconds."""

    leads_s: float
    commits_s: float
    rounds: int
    counted: int


def measure(cluster: SharedCluster, job: str, fault: Fault, lasts_s: float) -> Moved:
    """What a fault of the coordinator does to a job: nothing is lost or doubled, and it goes on."""
    oracle, victim = OneHot(CLIENTS), cluster.coordinator
    submit(victim, job, oracle.model(), job__rounds=100_000, **cluster.job(job))

    def committed(machine: Machine) -> int:
        return int(ask(machine, om.JobStatus(job, 1))["job"]["committed"])

    def other() -> Machine | None:
        alive = [machine for machine in cluster.machines if machine is not victim]
        return next((machine for machine in alive if machine.store()["leads"]), None)

    with cluster.fleet(job, CLIENTS, oracle.update, play=train) as team:
        until("rounds", lambda: committed(victim) >= BEFORE)
        began_s = time.monotonic()
        undo = fault(cluster, victim)
        try:
            second: Machine = until("another coordinator", other)
            leads_s = time.monotonic() - began_s
            before = committed(second)
            until("a round of it", lambda: committed(second) > before)
            commits_s = time.monotonic() - began_s
            until("the end of the fault", lambda: time.monotonic() - began_s >= lasts_s)
        finally:
            victim.stopped = False
            undo()
        cluster.settled()
        now = committed(cluster.coordinator)
        until("rounds of all nodes", lambda: committed(cluster.coordinator) > now + BEFORE)
        until("the end", lambda: _cancelled(cluster, job))
        team.join(well=False)
    lines = oracle.check(cluster.coordinator, job)  # were an update doubled or lost, it would raise
    cluster.history()
    return Moved(leads_s, commits_s, len(lines), sum(line["receipt"]["counted"] for line in lines))


def _cancelled(cluster: SharedCluster, job: str) -> bool:
    """Whether the job is over; it is to be, by the word of whoever coordinates now."""
    with suppress(LiflError):
        ask(cluster.coordinator, om.CancelJob(job))
        return True
    return False


def main() -> None:
    """Measure each fault some times, and print the table."""
    logging.getLogger("lifl.client").setLevel(logging.ERROR)
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else REPEATS
    table = [
        "| fault of the coordinator | another leads, s: median (longest) | and commits, s | rounds | lost | doubled |"
    ]
    table.append("|---|---|---|---|---|---|")
    with kept(3, "--redirector", "unix", shared=True) as keeper:
        for number, (name, fault) in enumerate(FAULTS.items()):
            found = []
            for repeat in range(repeats):
                with keeper.whole(lambda: 0) as cluster:
                    assert isinstance(cluster, SharedCluster)
                    lasts_s = STOPPED_S if "SIGSTOP" in name else 0.0
                    found.append(measure(cluster, f"f{number}-{repeat}", fault, lasts_s))
                print(f"{name}: {found[-1]}", file=sys.stderr, flush=True)
            leads, commits = ([getattr(one, kind) for one in found] for kind in ("leads_s", "commits_s"))
            told = [f"{statistics.median(times):.1f} ({max(times):.1f})" for times in (leads, commits)]
            rounds, counted = (sum(getattr(one, kind) for one in found) for kind in ("rounds", "counted"))
            table.append(f"| {name} | {told[0]} | {told[1]} | {rounds} | {CLIENTS * rounds - counted} | 0 |")
    print("\n".join(table))


if __name__ == "__main__":
    main()
