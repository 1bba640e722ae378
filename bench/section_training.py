"""Training to an accuracy: the same federated training, with clients that are slow or die, through each system.

scikit-learn's digits, split over the clients non-IID (each has two shards of the images sorted by their digit), and a
network of 64 - 512 - 10, trained by FedAvg until the held-out images are told apart well enough.  The devices are not
part of the machine that is measured: what a device sends is really trained, on the model of the last round as the
system has made it, but before the round begins, and the round then takes place in real time.  A fifth of the devices
are slow; in each round a tenth, drawn anew, take part and die before they send.

Each system meets that as it can.  LIFL selects a quarter more clients than it needs (`over_provision`) and closes at
the goal; so does NVFlare with ``min_responses``.  Flower's `FedAvg` waits for all that it sampled, until its `timeout`.
SF and SL have no such thing: they are told beforehand which clients will be the first to come, the best that could be.
Wall time is from each round's start to its model, summed up; the model's way down is in no system's figure.
"""

from __future__ import annotations

import inspect
import statistics
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from measure import Target, number
from numpy.typing import NDArray
from systems.interface import Arrival, Context, Outcome, Plot, RoundResult, System, Table
from systems.workload import Workload

from lifl.examples import digits

NAME = "training"
TITLE = "Training to an accuracy, with slow and dying clients"
BUDGET_S = 180.0
QUICK_BUDGET_S = 60.0
CLIENTS, QUICK_CLIENTS = 100, 10
ACCURACY = 0.85
ROUNDS_MAX, QUICK_ROUNDS = 15, 2
HIDDEN = 512
TRAINING = {"epochs": 8, "batch": 8, "learning_rate": 0.1}
SLOW, DYING, GOAL = 0.2, 0.1, 0.8
FAST_S, SLOW_S = (0.2, 0.6), (1.2, 2.0)
FLOWER_TIMEOUT_S = 6.5
"""Flower looks every 3 s: the last look within this time is after 6 s, when all who live have sent at this size."""
FASTER = {"SF": 1.6, "SL": 2.7}
"""How many times faster the paper reports its system to be, on larger models and another data set."""


@dataclass(frozen=True)
class Training(Workload):
    """Updates that are written into the mapped file before each round; keeps the aggregate that a system made."""

    kept: list[NDArray[np.float32]] = field(default_factory=list, compare=False, repr=False)

    def error(self, flat: NDArray[Any], clients: Iterable[int]) -> float:
        """The largest error, of the largest number in the mean: weights may be zero."""
        self.kept[:] = [np.array(flat, np.float32)]
        counted = list(clients)
        weights = np.array([self.weight(client) for client in counted])
        stacked = np.stack([self.flat(client) for client in counted]).astype(np.float64)
        mean = weights @ stacked / weights.sum()
        return float(np.abs(flat - mean).max() / np.abs(mean).max())


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

    def __init__(self, clients: int, seed: int, folder: Path) -> None:
        self.clients, self._seed = clients, seed
        train, self.test = digits.load()
        order = np.argsort(train.labels, kind="stable")
        shards = np.array_split(order, 2 * clients)
        chosen = np.random.default_rng(seed).permutation(2 * clients).reshape(clients, 2)
        self._data = []
        for one, other in chosen:
            mine = np.concatenate([shards[one], shards[other]])
            self._data.append(digits.Examples(train.images[mine], train.labels[mine]))
        self.first = _model(seed)
        tensors = tuple((name, values.shape) for name, values in self.first.items())
        size = sum(values.size for values in self.first.values())
        path = folder / "updates.npy"
        np.save(path, np.zeros(size * clients, np.float32))
        weights = tuple(float(len(data.labels)) for data in self._data)
        self.workload = Training(f"digits/{HIDDEN}", tensors, seed, str(path), size, weights)
        self._updates = np.load(path, mmap_mode="r+")

    def train(self, flat: NDArray[np.float32], round_number: int) -> None:
        """Each device trains on its own data; its model is in the file."""
        model = dict(self.workload.split(flat))
        for client, data in enumerate(self._data):
            seed = self._seed + round_number * self.clients + client
            made = digits.train(model, data, seed=seed, **TRAINING)  # type: ignore[arg-type]
            begin = client * self.workload.size
            self._updates[begin : begin + self.workload.size] = np.concatenate([v.ravel() for v in made.values()])

    def round(self, round_number: int) -> tuple[list[Arrival], frozenset[int]]:
        """When each device would send, and which of them die first; the same for all systems."""
        chance = np.random.default_rng([self._seed, round_number])
        slow = set(np.random.default_rng(self._seed).permutation(self.clients)[: round(SLOW * self.clients)].tolist())
        dying = frozenset(chance.permutation(self.clients)[: round(DYING * self.clients)].tolist())
        times = [(chance.uniform(*(SLOW_S if client in slow else FAST_S)), client) for client in range(self.clients)]
        return [Arrival(at_s, client) for at_s, client in sorted(times)], dying

    def accuracy(self, flat: NDArray[np.float32]) -> float:
        """On the images that nobody has trained on."""
        return digits.evaluate(dict(self.workload.split(flat)), self.test)["accuracy"]


def _model(seed: int) -> dict[str, NDArray[np.float32]]:
    chance = np.random.default_rng(seed)

    def he(rows: int, columns: int) -> NDArray[np.float32]:
        drawn: NDArray[np.float32] = (chance.standard_normal((rows, columns)) * np.sqrt(2 / columns)).astype(np.float32)
        return drawn

    return {
        "hidden.weight": he(HIDDEN, digits.PIXELS),
        "hidden.bias": np.zeros(HIDDEN, np.float32),
        "output.weight": he(digits.CLASSES, HIDDEN),
        "output.bias": np.zeros(digits.CLASSES, np.float32),
    }


def run(context: Context) -> Outcome:
    """One system after the other, each from the same first model."""
    outcome = Outcome()
    clients = QUICK_CLIENTS if context.quick else CLIENTS
    devices = Devices(clients, context.seed, context.folder)
    runs: list[Run] = []
    for system in context.systems:
        one = type(system)()
        run_ = Run(one.name, one.variants()[0])
        if context.left_s() <= 0:
            outcome.absent.append(f"{run_.system}: no time is left")
            continue
        try:
            _train(one, run_, devices, context, outcome)
        except Exception as error:  # noqa: BLE001 - the others can still be trained with
            outcome.failures.append(f"{run_.system}, {run_.variant}: {error!r}")
            continue
        runs.append(run_)
        print(f"{run_.system}: {len(run_.results)} rounds, accuracy {run_.accuracy[-1]:.3f}", flush=True)
    outcome.tables = [_table(runs, clients)]
    outcome.plots = [Plot("training", "accuracy on held-out images by time", partial(_lines, runs))]
    outcome.targets = [] if context.quick else targets(runs)
    outcome.data = [
        {"system": r.system, "variant": r.variant, "accuracy": r.accuracy, "results": msgspec.to_builtins(r.results)}
        for r in runs
    ]
    return outcome


def _train(one: System, run_: Run, devices: Devices, context: Context, outcome: Outcome) -> None:
    load = devices.workload
    goal = round(GOAL * devices.clients)
    flat = np.concatenate([values.ravel() for values in devices.first.values()])
    if hasattr(one, "timeout_s"):
        one.timeout_s = FLOWER_TIMEOUT_S
    survives = "goal" in inspect.signature(one.round).parameters
    with ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="lb-", dir=context.folder)))
        opened.callback(one.stop)
        one.start(load, devices.clients, run_.variant, folder)
        for round_number in range(1, (QUICK_ROUNDS if context.quick else ROUNDS_MAX) + 1):
            devices.train(flat, round_number)
            arrivals, dying = devices.round(round_number)
            if survives:
                result = one.round(arrivals, dying=dying, goal=goal)  # type: ignore[call-arg]
            else:
                result = one.round([arrival for arrival in arrivals if arrival.client not in dying][:goal])
            flat = load.kept[0]
            run_.results.append(result)
            run_.accuracy.append(devices.accuracy(flat))
            if run_.accuracy[-1] >= ACCURACY and not context.quick:
                return
            if context.left_s() <= 0:
                break
    if not context.quick:
        outcome.absent.append(
            f"{run_.system}: accuracy {run_.accuracy[-1]:.3f} after {len(run_.results)} rounds, not {ACCURACY}"
        )


# ---- what is shown -------------------------------------------------------------------------------------------------


def _table(runs: list[Run], clients: int) -> Table:
    head = ["system", "accuracy", "rounds", "wall time, s", "of it a round, s", "server CPU, s", "peak private, MB"]
    rows = [
        [
            *(f"{r.system}: {r.variant}", f"{r.accuracy[-1]:.3f}", str(len(r.results)), number(r.wall_s)),
            number(statistics.median(result.out_s for result in r.results)),
            *(number(r.cpu_s), number(max(result.peak_bytes for result in r.results) / 1e6)),
        ]
        for r in runs
    ]
    about = inspect.cleandoc(__doc__ or "").partition("\n\n")[2].replace("``", "`")
    title = f"{clients} clients, {SLOW:.0%} of them slow, {DYING:.0%} dying in each round; to an accuracy of {ACCURACY}"
    return Table(title, head, rows, about)


def targets(runs: list[Run]) -> list[Target]:
    """LIFL against the others, where both got there."""
    done = {r.system: r for r in runs if r.accuracy[-1] >= ACCURACY}
    mine = done.pop("LIFL", None)
    if mine is None:
        return []
    found = []
    for name, other in done.items():
        faster = FASTER.get(name, 1.0)
        found.append(Target(f"training: wall time, {name} / LIFL", "×", faster, other.wall_s / mine.wall_s, True))
        found.append(Target(f"training: server CPU, {name} / LIFL", "×", 2.0, other.cpu_s / mine.cpu_s, True))
    return found


def _lines(runs: list[Run], axes: Any) -> None:
    for each in runs:
        axes.plot(np.cumsum([result.out_s for result in each.results]), each.accuracy, marker="o", label=each.system)
    axes.axhline(ACCURACY, color="grey", linestyle=":")
    axes.set(xlabel="wall time, s", ylabel="accuracy", xscale="log")
    axes.legend()
