"""Hours of a cluster's life in small: random jobs, clients, kills, stops and cuts, on nodes with etcd and TLS.

    make soak [S=600] [ARGS="--nodes 5 --redirector auto"]

Each lap is a job of short rounds whose clients and durability are drawn, at times beside another one whose updates fill
the arenas, under which things happen that are drawn too: a node or a part of it is killed, stands still, or is cut off
from nodes or clients, its wall clock is set forward or back (`clocks.py`), its memory is limited to little more than it
has (by a control group, where those of version 1 can be written), and all certificates are issued anew, which are valid
for `CERTIFICATE_S` only.  After a lap the fate of every update of every round is looked at, and all that etcd has kept.
One node is never killed: what it takes is measured after each lap, and a line is fitted.  Nothing of it may grow, nor
may rounds become slower.

The run adds its line to `bench/results/proof.jsonl`.  Exit code 1: something was lost, doubled, or grows.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))

import proof
import psutil
from certificates import Authority
from clocks import Clock
from field import FATES, Fault, Field
from fleet import until
from gaps import cut, ended, killed, stopped
from netns import Machine, SharedCluster, cluster

from lifl.tls.folder import node_folder

CERTIFICATE_S = 600.0
JUMPS_S = (-120, 120)
"""A wall clock is set so far: certificates are valid by it all the same."""
MEMORY = Path("/sys/fs/cgroup/memory")
SPARE_BYTES = 16 << 20
"""What a node whose memory is limited has beside what it takes when that begins."""
CLIENTS = (4, 6, 8)
BALLAST_BYTES = 1 << 20
HAPPENINGS = 3
"""In one lap."""
CALM = 6
"""Rounds by which is measured how long one takes."""
WARM_LAPS = 2
"""At first caches fill, and processes start that stay: these are not fitted."""
GROWTH = 0.15
"""By so much of its mean a figure may grow from the first fitted lap to the last ..."""
SPARE = {"pss_bytes": 8 << 20, "descriptors": 8, "processes": 1, "bpf": 0, "round_s": 0.3}
"""... and by so much, whatever its mean is: noise, in a run of minutes."""
ROW_BYTES_MAX = 16 << 10
"""By so much a node's databases may grow for each round: old rows are dropped later."""


def tight(_cluster: SharedCluster, machine: Machine) -> Callable[[], None]:
    """The node's processes together have `SPARE_BYTES` more at most: who needs more is killed by the kernel."""
    group = MEMORY / f"lifl-soak-{machine.pid}"
    group.mkdir()
    lifld = psutil.Process(machine.pid)
    found = [lifld, *lifld.children(recursive=True)]
    (group / "memory.move_charge_at_immigrate").write_text("3")
    for process in found:
        with suppress(OSError):  # it has ended
            (group / "cgroup.procs").write_text(str(process.pid))
    taken = int((group / "memory.usage_in_bytes").read_text())
    (group / "memory.limit_in_bytes").write_text(str(taken + SPARE_BYTES))

    def undo() -> None:
        (group / "memory.limit_in_bytes").write_text("-1")
        until("the control group is empty", lambda: _removed(group))
        if not machine.is_up():
            machine.up()

    return undo


def _removed(group: Path) -> bool:
    """Whether the control group is gone; what is in it goes back to where it was."""
    for pid in (group / "cgroup.procs").read_text().split():
        with suppress(OSError):
            (MEMORY / "cgroup.procs").write_text(pid)
    with suppress(OSError):
        group.rmdir()
    return not group.exists()


HARD: dict[str, Fault] = {
    "node killed": killed,  # type: ignore[dict-item]
    "gateway killed": ended("gateway"),  # type: ignore[dict-item]
    "workers killed": ended("workers"),  # type: ignore[dict-item]
    "zygote killed": ended("zygote"),  # type: ignore[dict-item]
    **({"memory limited": tight} if os.access(MEMORY / "cgroup.procs", os.W_OK) else {}),
}
"""What does not happen to the node that is measured."""
SOFT: dict[str, Fault] = {
    "node frozen": stopped("all"),  # type: ignore[dict-item]
    "node cut off from nodes": cut("nodes", "nodes"),  # type: ignore[dict-item]
    "node cut off from clients": cut("clients", "clients"),  # type: ignore[dict-item]
}


# ---- what is measured ------------------------------------------------------------------------------------------------


def measured(machine: Machine) -> dict[str, float]:
    """What a node takes: all of its processes but the workers, which come and go."""
    lifld = psutil.Process(machine.pid)
    found = [lifld, *lifld.children()]
    names = [file.readlink().name for process in found for file in Path(f"/proc/{process.pid}/fd").iterdir()]
    return {
        "pss_bytes": sum(process.memory_full_info().pss for process in found),
        "descriptors": len(names),
        "processes": len(found),
        "bpf": sum("bpf" in name for name in names),
        "database_bytes": sum(file.stat().st_size for file in machine.state_dir.glob("*.db*")),
    }


def growth(values: Sequence[float]) -> float:
    """By how much a fitted line grows from the first value to the last."""
    if len(values) < 3:
        return 0.0
    return statistics.linear_regression(range(len(values)), values).slope * (len(values) - 1)


def grown(laps: Sequence[dict[str, float]]) -> list[str]:
    """What grows from lap to lap."""
    fitted, found = laps[WARM_LAPS:], []
    for kind, spare in SPARE.items():
        values = [lap[kind] for lap in fitted]
        allowed = spare + GROWTH * statistics.mean(values or [0.0])
        if growth(values) > allowed:
            found.append(f"{kind} grows by {growth(values):g} in {len(values)} laps: {values}")
    rounds = sum(lap["rounds"] for lap in fitted[1:])
    rows = growth([lap["database_bytes"] for lap in fitted])
    if rounds and rows > ROW_BYTES_MAX * rounds:
        found.append(f"the databases grow by {rows:g} bytes in {rounds:g} rounds")
    return found


# ---- a lap -----------------------------------------------------------------------------------------------------------


class Soak:
    """A cluster, and what has become of it."""

    def __init__(self, shared: SharedCluster, authority: Authority, seed: int, clocks: Mapping[Machine, Clock]) -> None:
        self._shared, self._authority, self._rng = shared, authority, random.Random(seed)
        self._clocks = clocks
        self.steady = shared.machines[-1]
        self.sums: Counter[str] = Counter(dict.fromkeys(FATES, 0))
        self.happened: Counter[str] = Counter()
        self.laps: list[dict[str, float]] = []

    def issue(self) -> None:
        """Issue all certificates anew."""
        days = CERTIFICATE_S / 86_400
        for machine in self._shared.machines:
            name, address = f"host-{machine.host.name}", machine.host.address
            self._authority.enroll(node_folder(machine.state_dir), "node", name, [address], days=days)
        for folder in self._shared.identities():
            self._authority.enroll(folder, "client", folder.name, days=days)

    def lap(self) -> None:
        """Run a job or two, have things happen, and look at all."""
        number, rng = len(self.laps), self._rng
        self.issue()
        fields = [Field(self._shared, f"soak{number}", rng.choice(CLIENTS))]
        if rng.random() < 0.5:
            fields.append(Field(self._shared, f"fill{number}", 4, BALLAST_BYTES))
            self.happened["arenas filled"] += 1
        with ExitStack() as stack:
            for field in fields:
                stack.enter_context(field.running(job__durability=rng.choice(("memory", "disk"))))
            for _ in range(HAPPENINGS):
                self._happens(fields[0])
            begun = fields[0].wait(fields[0].round + 1)
            round_s = (fields[0].wait(fields[0].round + CALM) - begun) / CALM
        self._shared.history()
        before = self.sums["rounds"]
        for field in fields:
            self.sums.update(field.account(1, field.last))
        self.laps.append(measured(self.steady) | {"round_s": round_s, "rounds": self.sums["rounds"] - before})
        print(f"lap {number}: {dict(self.sums)} {self.laps[-1]}", file=sys.stderr, flush=True)

    def _happens(self, field: Field) -> None:
        rng, machines = self._rng, self._shared.machines
        if rng.random() < 0.2:
            self.happened["certificates issued anew"] += 1
            self.issue()
            return
        if rng.random() < 0.2:
            self.happened["clock set"] += 1
            self._clocks[rng.choice(machines)].set(rng.randint(*JUMPS_S))
            return
        name, fault = rng.choice([*HARD.items(), *SOFT.items()])
        victim = rng.choice(machines[:-1] if name in HARD else machines)
        self.happened[name] += 1
        print(f"{name}: {victim.host.name}", file=sys.stderr, flush=True)
        at, began_s = field.round, time.monotonic()
        with suspected(victim, name):
            undo = fault(self._shared, victim)
            try:
                field.recovered(began_s, at)
            finally:
                undo()
        self._shared.settled()
        field.collect()


@contextmanager
def suspected(victim: Machine, name: str) -> Iterator[None]:
    """A node that is cut off is not asked who coordinates."""
    victim.stopped = "cut off" in name
    try:
        yield
    finally:
        victim.stopped = False


def with_clocks(shared: SharedCluster, folder: Path) -> dict[Machine, Clock]:
    """Start all nodes again with clocks of their own."""
    clocks = {machine: Clock(folder, machine.host.name) for machine in shared.machines}
    for machine, clock in clocks.items():
        machine.down()
        machine.env = clock.env
    shared.up()
    return clocks


def run(seconds: float, nodes: int, seed: int, redirector: str) -> tuple[Soak, list[str]]:
    """Make laps for so long; what was wrong."""
    authority = Authority()
    until_s = time.monotonic() + seconds
    with (
        tempfile.TemporaryDirectory(prefix="lt-", dir="/tmp") as folder,
        cluster(nodes, "--redirector", redirector, shared=True, authority=authority) as shared,
    ):
        assert isinstance(shared, SharedCluster)
        soak = Soak(shared, authority, seed, with_clocks(shared, Path(folder)))
        while time.monotonic() < until_s or len(soak.laps) < 1:
            soak.lap()
    found = grown(soak.laps)
    found += [f"{soak.sums[each]} updates were {each}" for each in ("lost", "doubled") if soak.sums[each]]
    return soak, found


def main() -> int:
    """Soak, and add what was found to the ledger."""
    parser = argparse.ArgumentParser(description="Lets a cluster live under random faults.")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--nodes", type=int, default=5)
    parser.add_argument("--redirector", default="unix", choices=["unix", "auto"])
    parser.add_argument("--seed", type=int, default=time.time_ns())
    given = parser.parse_args()
    logging.getLogger("lifl.client").setLevel(logging.ERROR)
    print(f"--seed {given.seed} repeats what is drawn", file=sys.stderr)
    at, began_s = proof.commit(), time.monotonic()
    soak, found = run(given.seconds, given.nodes, given.seed, given.redirector)
    figures: dict[str, Any] = {"nodes": given.nodes, "redirector": given.redirector}
    figures["seconds"] = round(time.monotonic() - began_s)
    figures |= {"laps": len(soak.laps), **soak.sums, "happened": dict(soak.happened), "faults": found}
    for kind in (*SPARE, "database_bytes"):
        figures[kind] = [round(lap[kind], 3) for lap in soak.laps]
    proof.add("soak", at, figures)
    proof.write_page()
    print("\n".join(found) or f"{soak.sums['rounds']} rounds, nothing was lost or doubled, and nothing grows")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
