"""Hours of a cluster's life in small: random jobs, clients, kills, stops and cuts, on nodes with etcd and TLS.

    make soak [S=600] [ROUNDS=1000] [ARGS="--nodes 5 --redirector auto"]

Each lap is a job of short rounds whose clients and durability are drawn, at times beside another one whose updates fill
the arenas, under which things happen that are drawn too: a node or a part of it is killed, stands still, or is cut off
from nodes or clients, its wall clock is set forward or back (`clocks.py`), its memory is limited to what it has
(`tight`), and all certificates are issued anew, which are valid for `CERTIFICATE_S` only.  Each kind of these comes
once before one comes a second time.  After a lap the fate of every update of every round is looked at, and all that
etcd has kept.  One node is never killed: what it takes is measured after each lap, and a line is fitted.  Nothing of it
may grow, nor may rounds become slower.

After that come `ROUNDS` rounds without a fault, whose beginning and end are compared (`stretch.py`).

The run adds its lines to `bench/results/proof.jsonl`.  Exit code 1: something was lost, doubled, or grows.
"""

from __future__ import annotations

import argparse
import logging
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
import stretch
from certificates import Authority
from clocks import Clock
from field import FATES, Fault, Field
from fleet import until
from gaps import cut, ended, killed, stopped
from measured import measured
from netns import Machine, SharedCluster, cluster

from lifl.tls.folder import node_folder

CERTIFICATE_S = 600.0
STRETCH_DAYS = 1.0
"""So long they are valid in the rounds without a fault."""
JUMPS_S = (-120, 120)
"""A wall clock is set so far: certificates are valid by it all the same."""
SPARE_BYTES = 64 << 10
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
ONCE = {"led": 32 << 20, "processes": 24 << 20}
"""So many bytes of PSS a node may take once and for all, beside: when it coordinates for the first time (the last jobs
that are over, and a longer log), and for each process that begins with the first job that wants it (a journal: 19 MB).
"""
ROW_BYTES_MAX = 16 << 10
"""By so much a node's databases may grow for each round: old rows are dropped later."""


denied: Counter[str] = Counter()
"""How often a process was denied memory for certain: it said so, or ended."""


def tight(_cluster: SharedCluster, machine: Machine) -> Callable[[], None]:
    """No process of the node gets more than `SPARE_BYTES` of memory of its own beside what it has: it is denied that.

    Those that begin meanwhile inherit the limit of who starts them, until they limit themselves.
    """
    said = len(machine.log())
    lifld = psutil.Process(machine.pid)
    before: dict[psutil.Process, tuple[int, int]] = {}
    for process in [lifld, *lifld.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            before[process] = process.rlimit(psutil.RLIMIT_DATA)
            has = 1024 * int(Path(f"/proc/{process.pid}/status").read_text().split("VmData:")[1].split()[0])
            hard = before[process][1]
            most = has + SPARE_BYTES if hard == psutil.RLIM_INFINITY else min(has + SPARE_BYTES, hard)
            process.rlimit(psutil.RLIMIT_DATA, (most, hard))

    def undo() -> None:
        for process, limits in before.items():
            with suppress(psutil.NoSuchProcess):
                process.rlimit(psutil.RLIMIT_DATA, limits)
        log = machine.log()[said:]
        denied["memory denied"] += "MemoryError" in log or not all(process.is_running() for process in before)
        if "daemon.ended" in log:
            until(f"{machine.host.name} to end", lambda: not machine.is_up())
        if not machine.is_up():
            machine.up()

    return undo


HARD: dict[str, Fault] = {
    "node killed": killed,  # type: ignore[dict-item]
    "gateway killed": ended("gateway"),  # type: ignore[dict-item]
    "workers killed": ended("workers"),  # type: ignore[dict-item]
    "zygote killed": ended("zygote"),  # type: ignore[dict-item]
    "memory limited": tight,
}
"""What does not happen to the node that is measured."""
SOFT: dict[str, Fault] = {
    "node frozen": stopped("all"),  # type: ignore[dict-item]
    "node cut off from nodes": cut("nodes", "nodes"),  # type: ignore[dict-item]
    "node cut off from clients": cut("clients", "clients"),  # type: ignore[dict-item]
}


ISSUED, SET = "certificates issued anew", "clock set"
KINDS = (*HARD, *SOFT, ISSUED, SET)


class Deck:
    """Draws kinds at random, each once before any comes a second time."""

    def __init__(self, kinds: Sequence[str], rng: random.Random) -> None:
        self._kinds, self._rng = kinds, rng
        self._left: list[str] = []

    def draw(self) -> str:
        """The next one."""
        self._left = self._left or self._rng.sample(self._kinds, len(self._kinds))
        return self._left.pop()


# ---- what is measured ------------------------------------------------------------------------------------------------


def growth(values: Sequence[float]) -> float:
    """By how much a fitted line grows from the first value to the last."""
    if len(values) < 3:
        return 0.0
    return statistics.linear_regression(range(len(values)), values).slope * (len(values) - 1)


def within(laps: Sequence[dict[str, float]], kind: str) -> float:
    """By how much a figure grows in all laps, by those in which the node was the same in what `ONCE` names.

    All such states have one slope; at which level each lies is no matter, nor are its first laps.
    """
    states: dict[tuple[float, ...], list[tuple[int, float]]] = {}
    for number, lap in enumerate(laps):
        states.setdefault(tuple(lap[name] for name in ONCE), []).append((number, lap[kind]))
    together = spread = 0.0
    for points in (points[WARM_LAPS:] for points in states.values() if len(points) > WARM_LAPS):
        middle, level = (statistics.mean(column) for column in zip(*points, strict=True))
        together += sum((number - middle) * (value - level) for number, value in points)
        spread += sum((number - middle) ** 2 for number, _value in points)
    return together / spread * (len(laps) - WARM_LAPS - 1) if spread else 0.0


def grown(laps: Sequence[dict[str, float]]) -> list[str]:
    """What grows from lap to lap."""
    fitted, found = laps[WARM_LAPS:], []
    for kind, spare in SPARE.items():
        values = [lap[kind] for lap in fitted]
        allowed = spare + GROWTH * statistics.mean(values or [0.0])
        grows, once = growth(values), 0.0
        if kind == "pss_bytes" and within(laps, kind) > allowed:
            grows = within(laps, kind)
        elif kind == "pss_bytes":
            levels = {name: [lap[name] for lap in fitted] for name in ONCE if fitted}
            once = sum(ONCE[name] * (max(level) - min(level)) for name, level in levels.items())
        if grows > allowed + once:
            found.append(f"{kind} grows by {grows:g} in {len(values)} laps: {values}")
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
        self._deck = Deck(KINDS, self._rng)
        self.steady = shared.machines[-1]
        self.sums: Counter[str] = Counter(dict.fromkeys(FATES, 0))
        self.happened: Counter[str] = Counter()
        self.laps: list[dict[str, float]] = []

    def issue(self, days: float = CERTIFICATE_S / 86_400) -> None:
        """Issue all certificates anew."""
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
        lap = measured(self.steady) | {"round_s": round_s, "rounds": self.sums["rounds"] - before}
        self.laps.append(lap | {"led": float("coordinator.promoted" in self.steady.log())})
        print(f"lap {number}: {dict(self.sums)} {self.laps[-1]}", file=sys.stderr, flush=True)

    def _happens(self, field: Field) -> None:
        rng, machines, name = self._rng, self._shared.machines, self._deck.draw()
        self.happened[name] += 1
        if name == ISSUED:
            self.issue()
            return
        if name == SET:
            self._clocks[rng.choice(machines)].set(rng.randint(*JUMPS_S))
            return
        fault = HARD.get(name) or SOFT[name]
        victim = rng.choice(machines[:-1] if name in HARD else machines)
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


def run(given: argparse.Namespace, at: str) -> list[str]:
    """Make laps and rounds without a fault, as many as are wanted, add them to the ledger; return what was wrong."""
    authority = Authority()
    began_s = time.monotonic()
    common = {"nodes": given.nodes, "redirector": given.redirector}
    with (
        tempfile.TemporaryDirectory(prefix="lt-", dir="/tmp") as folder,
        cluster(given.nodes, "--redirector", given.redirector, shared=True, authority=authority) as shared,
    ):
        assert isinstance(shared, SharedCluster)
        soak = Soak(shared, authority, given.seed, with_clocks(shared, Path(folder)))
        while time.monotonic() < began_s + given.seconds:
            soak.lap()
        found = grown(soak.laps)
        found += [f"{soak.sums[each]} updates were {each}" for each in ("lost", "doubled") if soak.sums[each]]
        if soak.laps:
            figures: dict[str, Any] = common | {"seconds": round(time.monotonic() - began_s), "laps": len(soak.laps)}
            figures |= {**soak.sums, "happened": dict(soak.happened + denied), "faults": found, "seed": given.seed}
            for kind in (*SPARE, "database_bytes", "led"):
                figures[kind] = [round(lap[kind], 3) for lap in soak.laps]
            proof.add("soak", at, figures)
        if given.rounds:
            soak.issue(days=STRETCH_DAYS)
            figures, wrong = stretch.run(shared, soak.steady, given.rounds)
            proof.add("stretch", at, common | figures | {"faults": wrong})
            found += wrong
    print(f"happened: {dict(soak.happened + denied)}; not once: {sorted({*KINDS} - {*soak.happened})}")
    print(f"{soak.sums['rounds']} rounds with faults, {given.rounds} without any")
    return found


def main() -> int:
    """Soak, and add what was found to the ledger."""
    parser = argparse.ArgumentParser(description="Lets a cluster live under random faults, and without any.")
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--nodes", type=int, default=5)
    parser.add_argument("--redirector", default="unix", choices=["unix", "auto"])
    parser.add_argument("--seed", type=int, default=time.time_ns())
    given = parser.parse_args()
    if 0 < given.rounds < 2 * stretch.EDGE:
        parser.error(f"--rounds: {2 * stretch.EDGE} at least, or their beginning is their end")
    logging.getLogger("lifl.client").setLevel(logging.ERROR)
    print(f"--seed {given.seed} repeats what is drawn", file=sys.stderr)
    found = run(given, proof.commit())
    proof.write_page()
    print("\n".join(found) or "nothing was lost or doubled, and nothing grows")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
