"""Training to an accuracy: the same federated training, with clients that are slow or die, through each system.

scikit-learn's digits, split over the clients non-IID (each has two shards of the images sorted by their digit), and
two networks, trained by FedAvg until the held-out images are told apart well enough: a small one, whose rounds are
decided by the devices, and one of the size of ResNet-18, where an update is 46.7 MB and aggregating takes its time,
too.  The devices are not part of the machine that is measured: what a device sends is really trained, on the model of
the last round as the system has made it, but before the round begins, and the round then takes place in real time.
A fifth of the devices are slow; in each round a tenth, drawn anew, take part and die before they send.

A device begins to send 0.2 to 0.6 s after the round's start, a slow one after 1.2 to 2.0 s.  These times are the same
for both networks; they were chosen for the small one, and are about what 46.7 MB take over a link of 1 Gbit/s (0.37 s)
and of 250 Mbit/s (1.5 s), so that with the large one, too, they stand for the way that the loopback does not have.
Over slower links the devices decide alone, whatever aggregates.

Each system meets that as it can.  LIFL selects a quarter more clients than it needs (`over_provision`) and closes at
the goal; so does NVFlare with ``min_responses``.  Flower's `FedAvg` waits for all that it sampled, until its `timeout`.
SF and SL have no such thing: they are told beforehand which clients will be the first to come, the best that could be.
Wall time is from each round's start to its model, summed up; the model's way down is in no system's figure.
"""

from __future__ import annotations

import inspect
import statistics
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import psutil
from measure import Target, number
from network import Floats, Network
from systems.interface import MEMORY_SHARE, Arrival, Context, Outcome, Plot, RoundResult, Settles, System, Table
from systems.workload import Workload

from lifl.examples import digits

NAME = "training"
TITLE = "Training to an accuracy, with slow and dying clients"
BUDGET_S = 400.0
QUICK_BUDGET_S = 50.0
CLIENTS, QUICK_CLIENTS = 100, 10
ACCURACY = 0.85
ROUNDS_MAX, ROUNDS_EXPECTED, QUICK_ROUNDS = 15, 3, 1
SLOW, DYING, GOAL = 0.2, 0.1, 0.8
FAST_S, SLOW_S = (0.2, 0.6), (1.2, 2.0)
FLOWER_TIMEOUT_S = 6.5
"""Flower looks every 3 s: the last look within this time is after 6 s, when all live devices have sent at this size."""
FASTER = {"SF": 1.6, "SL": 2.7}
"""How many times faster the paper reports its system to be, on larger models and another data set."""
LATER_S = {"NVFlare": (75.0, 340.0), "Flower": (90.0, 720.0)}
"""What systems take with the small network, and with the large one, whose clients start slowly; they come last."""
TRAINERS = 2
"""Threads that train devices before a round."""
SAMPLES, SAMPLE = 16, 4096
"""So many runs of so many numbers of each aggregate are compared with the float64 mean."""


class Problem(NamedTuple):
    """What is trained: `training` are the settings of `Network.train`."""

    title: str
    network: Network
    training: dict[str, Any]
    large: bool


SMALL = Problem("a small network", Network(64, 512, 10), {"epochs": 8, "batch": 8, "learning_rate": 0.1}, False)
LARGE_TRAINING = {"epochs": 4, "batch": 16, "learning_rate": 0.02}
LARGE = Problem("a network of ResNet-18's size", Network(64, 2440, 4700, 10), LARGE_TRAINING, True)
QUICK_LARGE = Problem("a deeper network", Network(64, 64, 64, 10), LARGE_TRAINING, True)


@dataclass(frozen=True)
class Training(Workload):
    """Updates that are written into the mapped file before each round; keeps the aggregate that a system made."""

    kept: list[Floats] = field(default_factory=list, compare=False, repr=False)

    def error(self, flat: np.ndarray[Any, Any], clients: Iterable[int]) -> float:
        """Return the largest error at some of the numbers, of the largest number in the mean: weights may be zero."""
        self.kept[:] = [np.array(flat, np.float32)]
        counted = list(clients)
        weights = np.array([self.weight(client) for client in counted])
        errors, largest = [], 0.0
        for begin in np.linspace(0, max(0, self.size - SAMPLE), SAMPLES, dtype=int):
            run = slice(begin, begin + SAMPLE)
            mean = weights @ np.stack([self.flat(client)[run] for client in counted]).astype(np.float64) / weights.sum()
            errors.append(np.abs(flat[run] - mean).max())
            largest = max(largest, float(np.abs(mean).max()))
        return float(np.max(errors)) / largest  # NaN stays


@dataclass
class Run:
    """One system's training."""

    system: str
    variant: str
    results: list[RoundResult] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)

    @property
    def wall_s(self) -> float:
        """All rounds, each from its start to its model."""
        return sum(result.out_s for result in self.results)

    @property
    def cpu_s(self) -> float:
        """The server's."""
        return sum(result.cpu_s for result in self.results)


class Devices:
    """The clients: their data, how fast they are, which of them die when, and the training itself."""

    def __init__(self, problem: Problem, clients: int, seed: int, folder: Path) -> None:
        self.clients, self._seed, self._problem = clients, seed, problem
        self.training_s = 0.0  # what the devices' training for a round took, the last time
        train, self.test = digits.load()
        order = np.argsort(train.labels, kind="stable")
        shards = np.array_split(order, 2 * clients)
        chosen = np.random.default_rng(seed).permutation(2 * clients).reshape(clients, 2)
        self._data = []
        for one, other in chosen:
            mine = np.concatenate([shards[one], shards[other]])
            self._data.append(digits.Examples(train.images[mine], train.labels[mine]))
        net = problem.network
        path = folder / "updates.npy"
        self._updates = np.lib.format.open_memmap(path, "w+", np.float32, (clients * net.size,))
        weights = tuple(float(len(data.labels)) for data in self._data)
        self.workload = Training(f"digits, {net.name}", net.tensors, seed, str(path), net.size, weights)

    def train(self, flat: Floats, round_number: int, clients: Iterable[int]) -> None:
        """Train each device on its own data; its model is in the file."""
        net, begun_s = self._problem.network, time.monotonic()

        def one(client: int) -> None:
            seed = self._seed + round_number * self.clients + client
            into = self._updates[client * net.size : (client + 1) * net.size]
            net.train(flat, into, self._data[client], seed=seed, **self._problem.training)

        with ThreadPoolExecutor(TRAINERS) as pool:
            list(pool.map(one, clients))
        self.training_s = time.monotonic() - begun_s

    def round(self, round_number: int) -> tuple[list[Arrival], frozenset[int]]:
        """Return when each device would send, and which of them die first; the same for all systems."""
        chance = np.random.default_rng([self._seed, round_number])
        slow = set(np.random.default_rng(self._seed).permutation(self.clients)[: round(SLOW * self.clients)].tolist())
        dying = frozenset(chance.permutation(self.clients)[: round(DYING * self.clients)].tolist())
        times = [(chance.uniform(*(SLOW_S if client in slow else FAST_S)), client) for client in range(self.clients)]
        return [Arrival(at_s, client) for at_s, client in sorted(times)], dying

    def first(self) -> Floats:
        """Return the untrained model."""
        return self._problem.network.first(self._seed)

    def accuracy(self, flat: Floats) -> float:
        """Return the accuracy on images that no device has trained on."""
        return self._problem.network.accuracy(flat, self.test)


def run(context: Context) -> Outcome:
    """Train the small network by all systems, the large one by those that can take it; what is slow comes last."""
    outcome = Outcome(data=[])
    large = QUICK_LARGE if context.quick else LARGE
    clients = QUICK_CLIENTS if context.quick else CLIENTS
    first = [(system, system.variants()[0]) for system in context.systems]
    early = [kind for kind in first if kind[0].name not in LATER_S]
    late = [kind for name in LATER_S for kind in first if kind[0].name == name]
    runs: dict[str, list[Run]] = {}
    training_s: dict[str, float] = {}
    plan = [(SMALL, early), (large, early), (SMALL, late)] + ([] if context.quick else [(large, late)])
    for problem, kinds in plan:
        with tempfile.TemporaryDirectory(prefix="lb-", dir="/dev/shm") as folder:  # not written to a disk meanwhile
            devices = Devices(problem, clients, context.seed, Path(folder))
            devices.training_s = training_s.get(problem.title, 0.0)
            runs.setdefault(problem.title, []).extend(_through(kinds, problem, devices, context, outcome))
            training_s[problem.title] = devices.training_s
    for problem in (SMALL, large):
        found = runs[problem.title]
        outcome.tables.append(_table(problem, found, clients))
        title = f"{problem.title}: accuracy on held-out images by time"
        outcome.plots.append(Plot(f"training-{'large' if problem.large else 'small'}", title, partial(_lines, found)))
        outcome.targets += [] if context.quick else targets(problem, found)
        outcome.data += [{"network": problem.network.name, **msgspec.to_builtins(run_)} for run_ in found]
    outcome.tables[-1].about = inspect.cleandoc(__doc__ or "").partition("\n\n")[2].replace("``", "`")
    return outcome


def _through(
    kinds: Sequence[tuple[System, str]], problem: Problem, devices: Devices, context: Context, outcome: Outcome
) -> list[Run]:
    """Train by one system after the other, each from the same first model."""
    runs: list[Run] = []
    for system, variant in kinds:
        one = type(system)()
        name = f"{problem.title}: {one.name}, {variant}"
        why = _why_not(one, problem, devices, context)
        if why:
            outcome.absent.append(f"{name}: {why}")
            continue
        run_ = Run(one.name, variant)
        try:
            _train(one, run_, devices, context, outcome)
        except Exception as error:  # noqa: BLE001 - the others can still be trained with
            lines = outcome.absent if isinstance(error, TimeoutError) and not context.quick else outcome.failures
            lines.append(f"{name}: {type(error).__name__}: {str(error).splitlines()[0][:300]}")
            continue
        runs.append(run_)
        print(f"{name}: {len(run_.results)} rounds, accuracy {run_.accuracy[-1]:.3f}", flush=True)
    return runs


def _why_not(one: System, problem: Problem, devices: Devices, context: Context) -> str:
    """Return why a system is left out; empty when it can take part."""
    left_s, available = context.left_s(), psutil.virtual_memory().available
    expected_s = ROUNDS_EXPECTED * devices.training_s
    if not context.quick and one.name in LATER_S:
        expected_s += LATER_S[one.name][problem.large]
    if left_s <= expected_s:
        return f"would take {expected_s:.0f} s or more, {max(0, left_s):.0f} s of the time are left"
    needs = one.needs_bytes(devices.workload, devices.clients)
    if needs > available * MEMORY_SHARE:
        return f"needs about {needs / 1e9:.0f} GB, {available * MEMORY_SHARE / 1e9:.0f} GB may be taken"
    return ""


def _train(one: System, run_: Run, devices: Devices, context: Context, outcome: Outcome) -> None:
    load = devices.workload
    goal = round(GOAL * devices.clients)
    flat = devices.first()
    if hasattr(one, "timeout_s"):
        one.timeout_s = FLOWER_TIMEOUT_S
    survives = "goal" in inspect.signature(one.round).parameters
    with ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="lb-", dir=context.folder)))
        opened.callback(one.stop)
        one.start(load, devices.clients, run_.variant, folder)
        if isinstance(one, Settles):
            one.settle()
        for round_number in range(1, (QUICK_ROUNDS if context.quick else ROUNDS_MAX) + 1):
            arrivals, dying = devices.round(round_number)
            living = [arrival for arrival in arrivals if arrival.client not in dying]
            devices.train(flat, round_number, [arrival.client for arrival in living])
            given: dict[str, Any] = {"dying": dying, "goal": goal} if survives else {}
            result = one.round(arrivals if survives else living[:goal], **given)
            flat = load.kept[0]
            run_.results.append(result)
            run_.accuracy.append(devices.accuracy(flat))
            if not result.error <= one.tolerance:
                wrong = f"differs from the float64 mean by {result.error:.2e}, more than {one.tolerance:.0e}"
                outcome.failures.append(f"{run_.system}, {run_.variant}: the model of round {round_number} {wrong}")
            if run_.accuracy[-1] >= ACCURACY and not context.quick:
                return
            if context.left_s() <= 0:
                break
    if not context.quick:
        reached = f"accuracy {run_.accuracy[-1]:.3f} after {len(run_.results)} rounds, not {ACCURACY}"
        outcome.absent.append(f"{load.name}: {run_.system}, {run_.variant}: {reached}")


# ---- what is shown -------------------------------------------------------------------------------------------------


def _table(problem: Problem, runs: Sequence[Run], clients: int) -> Table:
    head = ["system", "accuracy", "rounds", "wall time, s", "of it a round, s", "last in → out, ms", "server CPU, s"]
    head += ["peak private, MB", "shared, MB"]
    rows = [
        [
            *(f"{r.system}: {r.variant}", f"{r.accuracy[-1]:.3f}", str(len(r.results)), number(r.wall_s)),
            number(statistics.median(result.out_s for result in r.results)),
            number(statistics.median(result.out_s - result.last_in_s for result in r.results) * 1e3),
            *(number(r.cpu_s), number(max(result.peak_bytes for result in r.results) / 1e6)),
            number(max(result.arena_bytes for result in r.results) / 1e6),
        ]
        for r in runs
    ]
    size = f"{problem.network.name} ({problem.network.size * 4 / 1e6:.1f} MB)"
    whom = f"{clients} clients, {SLOW:.0%} of them slow, {DYING:.0%} dying in each round"
    return Table(f"{problem.title}, {size}: {whom}; to an accuracy of {ACCURACY}", head, rows)


def targets(problem: Problem, runs: Sequence[Run]) -> list[Target]:
    """Return LIFL, each of its rows, against the others, where both got there."""
    done = [r for r in runs if r.accuracy[-1] >= ACCURACY]
    found = []
    for mine in (r for r in done if r.system == "LIFL"):
        for other in (r for r in done if r.system != "LIFL"):
            names = f"{other.system} / LIFL ({mine.variant})"
            faster = FASTER.get(other.system, 1.0)
            about = f"training, {problem.title}"
            found.append(Target(f"{about}: wall time, {names}", "×", faster, other.wall_s / mine.wall_s, True))
            found.append(Target(f"{about}: server CPU, {names}", "×", 2.0, other.cpu_s / mine.cpu_s, True))
    return found


def _lines(runs: Sequence[Run], axes: Any) -> None:
    for each in runs:
        times_s = np.cumsum([result.out_s for result in each.results])
        axes.plot(times_s, each.accuracy, marker="o", label=f"{each.system}: {each.variant}")
    axes.axhline(ACCURACY, color="grey", linestyle=":")
    axes.set(xlabel="wall time, s", ylabel="accuracy", xscale="log")
    axes.legend()
