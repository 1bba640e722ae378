"""What each mechanism of a cluster gains (`make bench-cluster`): three nodes in network namespaces, limited links.

    bench/cluster.py [--quick]

It begins with a hierarchy without LIFL's decisions: updates spread over all nodes (worst-fit, what a least-connection
balancer does), one aggregator for each update, started for it and gone after it, folding when everything is there
(lazy).  Then one mechanism after the other is switched on, for 20, 60 and 100 concurrent updates.  In the end, with all
of them on, each is switched off alone, at 20.

Everything is a tenth of the paper's: updates of a tenth of ResNet-152 (24 MB) on links of 1 Gb/s (tc tbf, both ways),
because three nodes and their arenas share one machine's memory.  Each node takes a few more than 20 updates at a time
(`--capacity`).  Clients write their updates into the arena of the node that they are at, all at once, so what goes over
the links is what nodes send each other.  A round's completion time runs from that moment until its model is sealed,
and beside it stands the part of it after the last update was accepted; CPU is that of all processes of all nodes,
clients not included.  Each cell is a job of its own: one round to warm up, then the ones that are measured.

A full run writes bench/results/cluster.json, cluster.md and cluster.png.  `--quick` runs the first and the last step
with six small updates, to see that it works; it writes nothing.  Root is needed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from measure import ROOT, Helper, Target, cpu_s, machine, number, table, targets_markdown
from safetensors.numpy import save_file

from lifl.examples.machines import Machine, wait_alive
from lifl.examples.netns import network, why_not
from lifl.examples.running import LIFL, asked, line, process

SCALE = 10
UPDATE_BYTES = 240_800_000 // SCALE
LINK_BYTES_S = 1_250_000_000 // SCALE
CAPACITIES = (24.0, 23.0, 22.0)
"""Of the nodes: 20 updates each whatever their load of the moment is, and so far apart that it does not change their
order."""
UPDATES, QUICK_UPDATES = (20, 60, 100), (6,)
ROUNDS, QUICK_ROUNDS = 5, 1
QUICK_UPDATE_BYTES = 400_000
QUIET_S, QUICK_QUIET_S = 0.5, 0.1
QUIET_CPU_S = 0.02
QUIET_MAX_S = 60.0
GAIN_MIN = 2.0
LOSSES = """Where a step gains nothing.  Placement: some 22 updates fit one node, so beyond that all three take part
whatever the policy, with the same bytes between them.  Eager: all updates come at once here, on the few cores that
three nodes and all clients share.  Folding while others still arrive is then the same work at another time, in more and
smaller batches; it gains where updates come one after the other.  A few per cent either way are within the spread of
the rounds.
"""
RESULTS = ROOT / "bench" / "results"

COLD, WARM = ("--idle-timeout-s", "0"), ("--idle-timeout-s", "30")
FULL = {"placement": "best-fit", "timing": "eager", "fan_in": 2}


@dataclass(frozen=True)
class Step:
    """One way to run: the job's [aggregation] and the nodes' flags."""

    name: str
    keys: dict[str, Any]
    flags: tuple[str, ...]
    about: str


STEPS = (
    Step("baseline", {"placement": "worst-fit", "timing": "lazy", "fan_in": 1}, COLD, "worst-fit, lazy, cold, no plan"),
    Step("+ placement", FULL | {"timing": "lazy", "fan_in": 1}, COLD, "best-fit: the fewest nodes that have room"),
    Step("+ planning", FULL | {"timing": "lazy"}, COLD, "leaves = Q / 2 instead of one for each update"),
    Step("+ reuse", FULL | {"timing": "lazy"}, WARM, "workers are kept, and take the next task"),
    Step("+ eager", FULL, WARM, "updates are folded as they arrive: all mechanisms are on"),
)
SINGLE = (
    Step("all but placement", FULL | {"placement": "worst-fit"}, WARM, "worst-fit"),
    Step("all but planning", FULL | {"fan_in": 1}, WARM, "an aggregator for each update"),
    Step("all, but flat", FULL | {"fan_in": 64}, WARM, "one leaf for up to 64 updates"),
    Step("all but reuse", FULL, COLD, "workers end with their task"),
    Step("all but eBPF", FULL, (*WARM, "--redirector", "unix"), "keys go by AF_UNIX sockets"),
)


@dataclass
class Cell:
    """One step at one number of updates: a value for each round."""

    step: str
    updates: int
    completion_s: list[float] = field(default_factory=list)
    after_last_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    between_bytes: list[int] = field(default_factory=list)
    nodes: list[int] = field(default_factory=list)
    starts: list[dict[str, int]] = field(default_factory=list)

    def median(self, what: str) -> float:
        return float(statistics.median(getattr(self, what)))

    def row(self) -> list[str]:
        """Return it as a line of the table."""
        spread = f"{number(min(self.completion_s))} – {number(max(self.completion_s))}"
        starts = " / ".join(str(self.starts[-1][how]) for how in ("cold", "warm", "promoted"))
        times = [number(self.median("completion_s")), spread, number(self.median("after_last_s"))]
        costs = [number(self.median("cpu_s")), f"{self.median('between_bytes') / 1e6:.1f}", str(self.nodes[-1])]
        return [self.step, str(self.updates), *times, *costs, starts]


class Bench:
    """Runs cells in the private folder `work`."""

    def __init__(self, work: Path, quick: bool) -> None:
        self.work = work
        self.quick = quick
        self.update_bytes = QUICK_UPDATE_BYTES if quick else UPDATE_BYTES
        self.rounds = QUICK_ROUNDS if quick else ROUNDS
        self.model = work / "model.safetensors"
        save_file({"w": np.zeros(self.update_bytes // 4, np.float32)}, self.model)
        self.machines: list[Machine] = []
        self.zygotes: list[int] = []
        self.jobs = 0

    def run(self) -> list[Cell]:
        """Measure all cells; nodes are started anew only where their flags differ."""
        sizes = QUICK_UPDATES if self.quick else UPDATES
        wanted = [(step, size) for step in STEPS for size in sizes] + [(step, sizes[0]) for step in SINGLE]
        if self.quick:
            wanted = [(STEPS[0], sizes[0]), (STEPS[-1], sizes[0])]
        cells: dict[tuple[str, int], Cell] = {}
        for flags in dict.fromkeys(step.flags for step, _ in wanted):
            with self._nodes(flags) as clients:
                for step, size in wanted:
                    if step.flags == flags:
                        cell = cells[step.name, size] = self._cell(step, size, clients)
                        print(" | ".join(cell.row()), flush=True)
        return [cells[step.name, size] for step, size in wanted]

    def _arena_bytes(self) -> int:
        """Return room for the largest round: a third of its updates, a partial for each, and what the tree needs."""
        most = max(QUICK_UPDATES if self.quick else UPDATES)
        return max(64 << 20, (2 * (most // 3 + 2) + 24) * (self.update_bytes + most * 1024))

    @contextmanager
    def _nodes(self, flags: Sequence[str]) -> Iterator[Helper]:
        """Provide three nodes whose links are limited, and the helper with the clients on a host of its own."""
        with ExitStack() as stack:
            net = stack.enter_context(network("a", "b", "c", "clients"))
            *hosts, apart = net.hosts
            self.machines = []
            for host, capacity in zip(hosts, CAPACITIES, strict=True):
                net.limit(host, LINK_BYTES_S)
                join = self.machines[0].control if self.machines else ""
                own = ("--arena-bytes", str(self._arena_bytes()), "--capacity", str(capacity), *flags)
                (self.work / host.name).mkdir(exist_ok=True)
                each = Machine(host, self.work, join, [*own, "--insecure"])
                self.machines.append(each)
                stack.callback(each.down)
                each.up()
            wait_alive(self.machines)
            self.zygotes = [int(asked(each.state_dir, "top")["node"]["zygote_pid"]) for each in self.machines]
            clients = Helper("cluster_clients.py", [])
            stack.callback(clients.close)
            clients.ask(enter=list(apart))
            self._quiet()
            yield clients

    def _cpu_s(self) -> float:
        """Return the CPU seconds of all nodes' processes until now, workers that have ended included."""
        pids = [int(each.info["pid"]) for each in self.machines]
        pids += [child.pid for pid in pids for child in psutil.Process(pid).children(recursive=True)]
        ended = [psutil.Process(zygote).cpu_times() for zygote in self.zygotes]
        return cpu_s(pids) + sum(times.children_user + times.children_system for times in ended)

    def _quiet(self) -> float:
        """Wait until no node does anything; return their CPU seconds until then."""
        deadline_s = time.monotonic() + QUIET_MAX_S
        before = -1.0
        while time.monotonic() < deadline_s:
            try:
                now = self._cpu_s()
            except (ProcessLookupError, psutil.NoSuchProcess, OSError):  # a worker has just ended
                now = -1.0
            if 0 <= now - before < QUIET_CPU_S and before >= 0:
                return now
            before = now
            time.sleep(QUICK_QUIET_S if self.quick else QUIET_S)
        raise RuntimeError(f"the nodes were not quiet within {QUIET_MAX_S:g} s")

    def _job(self, step: Step, updates: int) -> tuple[str, Path]:
        self.jobs += 1
        name = f"j{self.jobs}"
        keys = "".join(f"{key} = {json.dumps(value)}\n" for key, value in step.keys.items())
        path = self.work / f"{name}.toml"
        path.write_text(
            f'[job]\nname = "{name}"\nrounds = {1 + self.rounds}\n[model]\npath = "{self.model}"\n'
            f"[selection]\nclients_per_round = {updates}\n[aggregation]\n{keys}"
        )
        return name, path

    def _cell(self, step: Step, updates: int, clients: Helper) -> Cell:
        cell = Cell(step.name, updates)
        name, path = self._job(step, updates)
        home = self.machines[0].state_dir
        plan = asked(home, "plan", str(path))["plan"]
        shares = {int(part["node"], 16): part["updates"] for part in plan["nodes"]}
        at = [str(each.state_dir) for each in self.machines for _ in range(shares[int(each.info["node"], 16)])]
        with process([*LIFL, "submit", str(path), "--watch", "--json", "--state", str(home)]) as watch:
            line(watch)
            who = [[address, f"c{index}"] for index, address in enumerate(at)]
            clients.ask(job=name, update_bytes=self.update_bytes, clients=who)
            for round_ in range(1, self.rounds + 2):
                self._check(clients.ask(ready=True))
                before, began_s = self._quiet(), time.monotonic()
                clients.ask(go=round_)
                event = self._committed(watch)
                ended_s = time.monotonic()
                receipt = event["receipt"]
                if round_ == 1:
                    continue
                after_sealed_s = receipt["last_accepted_to_commit_s"] - receipt["last_accepted_to_sealed_s"]
                cell.completion_s.append(ended_s - began_s - after_sealed_s)
                cell.after_last_s.append(receipt["last_accepted_to_sealed_s"])
                cell.cpu_s.append(self._quiet() - before)
                cell.between_bytes.append(receipt["bytes_between"])
                (decision,) = asked(home, "plan", "--round", name, str(round_))["decisions"]
                cell.nodes.append(len(decision["used"]))
                cell.starts.append({how: receipt[f"workers_{how}"] for how in ("cold", "warm", "promoted")})
            self._check(clients.ask(end=True))
        return cell

    @staticmethod
    def _check(told: dict[str, Any]) -> None:
        if told["errors"]:
            raise RuntimeError(f"clients failed: {'; '.join(told['errors'][:3])}")

    @staticmethod
    def _committed(watch: Any) -> dict[str, Any]:
        while True:
            event: dict[str, Any] = json.loads(line(watch))
            if event["event"] == "round.committed":
                return event
            if event["event"] in ("round.failed", "job.over"):
                raise RuntimeError(f"a round failed: {event}")


# ---- the report ----------------------------------------------------------------------------------------------------

HEAD = ["", "updates", "completion, s", "min – max", "after the last, s", "CPU, s", "between nodes, MB", "nodes"]
HEAD += ["cold / warm / promoted"]


def gains(cells: Sequence[Cell]) -> list[list[str]]:
    """Return what each step changes against the one before it, and all together."""
    found = {(cell.step, cell.updates): cell for cell in cells}
    sizes = sorted({cell.updates for cell in cells})
    steps = [step for step in STEPS if (step.name, sizes[0]) in found]
    pairs = [(before, after, after.name, after.about) for before, after in pairwise(steps)]
    rows = []
    for before, after, *row in [*pairs, (steps[0], steps[-1], "all together", "")]:
        for what in ("completion_s", "cpu_s"):
            row += [f"{found[before.name, n].median(what) / found[after.name, n].median(what):.2f}×" for n in sizes]
        rows.append(row)
    return rows


def targets(cells: Sequence[Cell]) -> list[Target]:
    """Return all steps together, at the smallest number of updates."""
    smallest = min(cell.updates for cell in cells)
    found = {cell.step: cell for cell in cells if cell.updates == smallest}
    first, last = found[STEPS[0].name], found[STEPS[-1].name]
    made = []
    for label, what in (("completion time", "completion_s"), ("CPU", "cpu_s")):
        gain = first.median(what) / last.median(what)
        made.append(Target(f"{label}, baseline / all, {smallest} updates", "×", GAIN_MIN, gain, True))
    return made


def markdown(about: dict[str, str], cells: Sequence[Cell]) -> str:
    """Return the whole report."""
    sizes = sorted({cell.updates for cell in cells})
    head = ["", "", *[f"time at {n}" for n in sizes], *[f"CPU at {n}" for n in sizes]]
    parts = [
        "# What each mechanism of a cluster gains\n",
        "".join(f"- {name}: {text}\n" for name, text in about.items()),
        (__doc__ or "").partition("[--quick]\n\n")[2].partition("A full run")[0],
        table(HEAD, [cell.row() for cell in cells]) + "\n",
        "## Each step against the one before it (more than 1: a gain)\n\n" + table(head, gains(cells)) + "\n",
        LOSSES,
        targets_markdown(targets(cells)),
        "![completion time, CPU, bytes between nodes, nodes](cluster.png)\n",
    ]
    return "\n".join(parts)


def plot(cells: Sequence[Cell], path: Path) -> None:
    """Draw four panels, the steps side by side for each number of updates."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    sizes = sorted({cell.updates for cell in cells})
    found = {(cell.step, cell.updates): cell for cell in cells}
    panels = (
        ("completion_s", "completion time, s", 1.0),
        ("cpu_s", "CPU of all nodes, s", 1.0),
        ("between_bytes", "between nodes, MB", 1e6),
        ("nodes", "nodes used", 1.0),
    )
    figure, axes = pyplot.subplots(2, 2, figsize=(10, 7), layout="constrained")
    width = 0.8 / len(STEPS)
    for axis, (what, label, unit) in zip(axes.flat, panels, strict=True):
        for index, step in enumerate(STEPS):
            values = [found[step.name, size].median(what) / unit for size in sizes]
            places = [place + (index - (len(STEPS) - 1) / 2) * width for place in range(len(sizes))]
            axis.bar(places, values, width, label=step.name)
        axis.set_xticks(range(len(sizes)), [str(size) for size in sizes])
        axis.set_xlabel("concurrent updates")
        axis.set_ylabel(label)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].legend(frameon=False)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small updates, one round each; writes nothing")
    options = parser.parse_args()
    if reason := why_not():
        print(f"The cluster's benchmark makes three machines of one, but {reason}.  Nothing was started.")
        return 1
    about = machine()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that everything is cleared up
    begun_s = time.monotonic()
    work = Path(tempfile.mkdtemp(prefix="lifl-bench-"))
    print(" | ".join(HEAD), flush=True)
    try:
        cells = Bench(work, options.quick).run()
    finally:
        shutil.rmtree(work, ignore_errors=True)
    about["load after"] = " ".join(f"{load:.2f}" for load in os.getloadavg())
    print(f"took {time.monotonic() - begun_s:.0f} s")
    report = markdown(about, cells)
    print(report)
    if options.quick:
        return 0
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "cluster.md").write_text(report)
    told = {"about": about, "update_bytes": UPDATE_BYTES, "link_bytes_s": LINK_BYTES_S}
    (RESULTS / "cluster.json").write_text(json.dumps(told | {"cells": [vars(cell) for cell in cells]}, indent=1) + "\n")
    plot(cells, RESULTS / "cluster.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
