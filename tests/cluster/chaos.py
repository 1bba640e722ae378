"""A fault in each role at each failpoint, on both sides of each step, under a job of short rounds: by hand, as root.

    make chaos ROUNDS=200 [ARGS="--word gateway"]

A trial waits until a process of a node in the role (the coordinator's, or another's) comes to the point, does the
fault to it there, waits until a round that began after that is committed, undoes it, and waits until all nodes know of
each other again.  Several trials share `JOBS` jobs, which run beside each other; after them the fate of each update of
each of their rounds is looked at (`field.py`), and all that etcd has kept (`store_history.py`).  Half of the jobs want
their updates on the disk.

Trials that were made least often come first.  Each adds its line to `bench/results/chaos.jsonl`, and the sum of all
runs is in docs/proof.md.  Exit code 1: an update was lost or doubled, or it did not go on.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

sys.path.append(str(Path(__file__).parents[1]))

import proof
import psutil
from field import SLICE_S, Field
from gaps import processes
from netns import Machine, SharedCluster, kept
from stops import Stops, Visit

from lifl import failpoints

CLIENTS, JOBS = 8, 3
TRIALS = 6
"""Under the same jobs."""
REACHED_S = 8.0
"""A point to which nobody comes within this time is not on the way of a role."""
CALM = 2
"""Rounds before a trial, and after it."""

POINTS = {
    "seal": ("gateway.seal", "gateway.partial_seal", "worker.seal"),
    "ack": ("gateway.ack",),
    "fsync": ("worker.file_fsync", "worker.folder_fsync", "journal.write", "journal.sync"),
    "spawn": ("lifld.fork", "zygote.fork", "worker.start"),
    "route": ("lifld.route", "lifld.keys", "worker.keys"),
    "store transaction": ("lifld.txn", "lifld.round_row"),
    "send": ("lifld.order", "lifld.report", "lifld.task", "lifld.child", "gateway.carry", "worker.done"),
}
"""The steps, each with both of its sides where it has them."""
ROLES = ("coordinator", "agent")


def sides(step: str) -> list[str]:
    """The points of a step."""
    return [point for point in (f"{step}.before", f"{step}.after") if point in failpoints.POINTS]


ALL = [point for steps in POINTS.values() for step in steps for point in sides(step)]


# ---- the faults ------------------------------------------------------------------------------------------------------

Undo = Callable[[], None]


def killed(_cluster: SharedCluster, machine: Machine, visit: Visit) -> Undo:
    """kill -9 of the process that is there."""
    visit.kill()
    return machine.up if visit.pid == machine.pid else lambda: None


def node_killed(_cluster: SharedCluster, machine: Machine, visit: Visit) -> Undo:
    """kill -9 of all processes of the node."""
    machine.kill()
    visit.go()
    return machine.up


def frozen(_cluster: SharedCluster, machine: Machine, visit: Visit) -> Undo:
    """SIGSTOP of all processes of the node."""
    machine.stop()
    visit.go()
    return machine.go_on


def cut_off(cluster: SharedCluster, machine: Machine, visit: Visit) -> Undo:
    """The node is cut off from the other nodes, and with it its member of etcd, if it has one."""
    others = [other.host for other in cluster.machines if other is not machine]
    cluster.network.cut(machine.host, *others)
    for other in others:
        cluster.network.cut(other, machine.host)
    machine.stopped = True
    visit.go()

    def undo() -> None:
        cluster.network.mend(machine.host, *others)
        for other in others:
            cluster.network.mend(other, machine.host)
        machine.stopped = False

    return undo


FAULTS: dict[str, Callable[[SharedCluster, Machine, Visit], Undo]] = {
    "process killed": killed,
    "node killed": node_killed,
    "node frozen": frozen,
    "node cut off": cut_off,
}


# ---- trials ----------------------------------------------------------------------------------------------------------


class Trial(NamedTuple):
    """What is done to whom, and where."""

    fault: str
    role: str
    point: str

    @property
    def wants_disk(self) -> bool:
        """Whether the point is on the way of updates that are stored."""
        return self.point.startswith("journal.")


def trials(word: str = "", seed: int = 0) -> list[Trial]:
    """All that there are, those that were made least often first."""
    found = [Trial(fault, role, point) for fault in FAULTS for role in ROLES for point in ALL]
    made = Counter(Trial(line["fault"], line["role"], line["point"]) for line in proof.lines("chaos", proof.CHAOS))
    random.Random(f"{seed} {sum(made.values())}").shuffle(found)
    found.sort(key=lambda trial: made[trial])
    return [trial for trial in found if word in " ".join(trial)]


class Done(NamedTuple):
    """A trial that was made: of each job the first round after its beginning, and how long it took to recover."""

    trial: Trial
    first: tuple[int, ...]
    recover_s: float | None


def machine_of(cluster: SharedCluster, pid: int) -> Machine | None:
    """The node that a process belongs to."""
    try:
        line = {pid, *(parent.pid for parent in psutil.Process(pid).parents())}
    except psutil.NoSuchProcess:
        return None
    return next((machine for machine in cluster.machines if machine.info and machine.pid in line), None)


def make(fields: Sequence[Field], stops: Stops, trial: Trial) -> Done:
    """Make one trial."""
    field, cluster = fields[0], fields[0].cluster
    leader = cluster.coordinator

    def wanted(visit: Visit) -> bool:
        machine = machine_of(cluster, visit.pid)
        return machine is not None and (machine is leader) == (trial.role == "coordinator")

    first = tuple(each.round for each in fields)
    field.wait(field.round + CALM)
    hold = stops.hold(trial.point, wanted)
    if trial.point in {point for step in POINTS["spawn"] for point in sides(step)}:
        chosen = [leader] if trial.role == "coordinator" else [each for each in cluster.machines if each is not leader]
        for worker in [worker for machine in chosen for worker in processes(machine, "workers")]:
            worker.kill()
    visit, until_s = None, time.monotonic() + REACHED_S
    while visit is None and time.monotonic() < until_s:
        visit = hold.within(SLICE_S)
        if visit is None:
            collect(fields)
    if visit is None:
        stops.drop(hold)
        return Done(trial, first, None)
    machine = machine_of(cluster, visit.pid)
    assert machine is not None
    at, began_s = field.round, time.monotonic()
    undo = FAULTS[trial.fault](cluster, machine, visit)
    try:
        recover_s = field.recovered(began_s, at)
    finally:
        undo()
    cluster.settled()
    collect(fields)
    field.wait(field.round + CALM)
    collect(fields)
    return Done(trial, first, recover_s)


def collect(fields: Sequence[Field]) -> None:
    """Keep the lines of the rounds that each job has committed."""
    for field in fields:
        field.collect()


def make_all(
    cluster: SharedCluster, stops: Stops, job: str, chosen: Sequence[Trial], disk: bool, jobs: int = JOBS
) -> list[proof.Line]:
    """Make some trials under the same jobs, and look at all their rounds; one line for each trial."""
    fields = [Field(cluster, f"{job}-{number}", CLIENTS) for number in range(jobs)]
    done = []
    with ExitStack() as stack:
        for field in fields:
            stack.enter_context(field.running(job__durability="disk" if disk else "memory"))
        for trial in chosen:
            print(f"{' | '.join(trial)} ...", file=sys.stderr, flush=True)
            done.append(make(fields, stops, trial))
            took = "nobody came there" if done[-1].recover_s is None else f"{done[-1].recover_s:.1f} s"
            print(f"{' | '.join(trial)}: {took}", file=sys.stderr, flush=True)
    cluster.history()
    sums = [Counter[str]() for _ in done]
    for place, field in enumerate(fields):
        begins = [each.first[place] for each in done[1:]]
        for found, first, end in zip(sums, [1, *begins], [*begins, field.last + 1], strict=True):
            found.update(field.account(first, end - 1))
    return [
        {**each.trial._asdict(), "disk": disk, "recover_s": each.recover_s, **found}
        for each, found in zip(done, sums, strict=True)
    ]


def bad(lines: Sequence[proof.Line]) -> list[proof.Line]:
    """The trials in which something was lost or doubled."""
    return [line for line in lines if line["lost"] or line["doubled"]]


def main() -> int:
    """Make trials until so many rounds are committed."""
    parser = argparse.ArgumentParser(description="Does each fault to each role at each failpoint.")
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--nodes", type=int, default=5)
    parser.add_argument("--word", default="")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no job after that")
    given = parser.parse_args()
    logging.getLogger("lifl.client").setLevel(logging.ERROR)
    at, rounds, number, found = proof.commit(), 0, 0, []
    until_s = time.monotonic() + given.seconds
    with Stops(*ALL) as stops, kept(given.nodes, "--redirector", "unix", points=stops.variable, shared=True) as keeper:
        while rounds < given.rounds and time.monotonic() < until_s:
            disk = number % 2 == 1
            chosen = [trial for trial in trials(given.word) if disk or not trial.wants_disk][:TRIALS]
            with keeper.whole(lambda: 0) as cluster:
                assert isinstance(cluster, SharedCluster)
                lines = make_all(cluster, stops, f"chaos{number}", chosen, disk)
            for line in lines:
                proof.add("chaos", at, {"nodes": given.nodes, **line}, proof.CHAOS)
            proof.write_page()
            rounds += sum(line["rounds"] for line in lines)
            number += 1
            found += bad(lines)
            print(f"{rounds} rounds, {len(found)} bad trials", file=sys.stderr, flush=True)
    for line in found:
        print(line)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
