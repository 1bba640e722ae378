"""What the tests of a whole node share: trainers in threads, the one-hot oracle, gates that hold a node at one moment.

The one-hot oracle: in round r client i submits r times the unit vector e_i, with weight 1.  In the committed model,
multiplied by the number of counted clients and divided by r, each of them must stand as exactly 1: a 0 is an update
lost, a 2 one that was counted twice, a fraction one of another round or job.

Trainers are the real `Client`, one thread each.  A *gate* is a named pipe on the way of a process that the test does
not control otherwise: the process blocks when it opens the pipe, which is how the test knows that it is there.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ml_dtypes
import msgspec
import numpy as np
from lifl_cli.daemon_client import DaemonClient
from nodes import Node
from safetensors.numpy import load_file, save_file

from lifl import Client
from lifl.client import Round, Submission
from lifl.core.config.aggregation import FAN_IN
from lifl.core.errors import LiflError
from lifl.core.limits import ROUNDS_MAX
from lifl.core.protocol import cli as om
from lifl.core.protocol import client as cm
from lifl.core.schema import Layout, TensorSpec
from lifl.shm.arena import Arena
from lifl.shm.layout import Entry, ObjectState

WAIT_S = 120.0
"""Far longer than anything here takes on a busy machine: only a failing test waits so long."""
STEPS = 720_720
"""Divisible by 1 to 16, so that the mean of an integer tensor is an integer."""

Tensors = dict[str, np.ndarray]
Update = tuple[Tensors, float, dict[str, float]]


def seeded(request_name: str) -> random.Random:
    """A generator whose seed is printed (pytest shows it when the test fails); LIFL_SEED repeats a run."""
    seed = os.environ.get("LIFL_SEED") or str(time.time_ns())
    print(f"LIFL_SEED={seed} repeats {request_name}")
    return random.Random(f"{request_name}/{seed}")


def deadlines(first_s: float) -> Iterator[float]:
    """Deadlines to try, each twice as long as the one before.

    For a test in which some things come before a deadline and others never: it takes the first deadline before which
    the former have come on this machine, and expects everything else exactly.
    """
    deadline_s = first_s
    while deadline_s < WAIT_S:
        yield deadline_s
        deadline_s *= 2
    raise AssertionError(f"not even {deadline_s / 2:g} s were enough")


def until(what: str, look: Callable[[], Any]) -> Any:
    """What `look` returns as soon as that is true."""
    deadline = time.monotonic() + WAIT_S
    while not (found := look()):
        assert time.monotonic() < deadline, f"not within {WAIT_S:g} s: {what}"
        time.sleep(0.02)
    return found


# ---- the oracle --------------------------------------------------------------------------------------------------


class OneHot:
    """`clients` trainers' updates and what their sum must be; `ballast_bytes` makes each update that much longer."""

    def __init__(self, clients: int, ballast_bytes: int = 0) -> None:
        self.clients = clients
        self.ballast = ballast_bytes // 4

    def model(self) -> Tensors:
        """The model that the job starts from."""
        n = self.clients
        tensors = {
            "w": np.zeros(n, np.float32),
            "half": np.zeros(n, ml_dtypes.bfloat16),
            "steps": np.zeros(n, np.int64),
        }
        return tensors | ({"ballast": np.zeros(self.ballast, np.float32)} if self.ballast else {})

    @property
    def data_bytes(self) -> int:
        """The bytes of one update as it travels."""
        return Layout(tuple(TensorSpec(k, a.dtype.name, a.shape) for k, a in self.model().items())).data_bytes

    def update(self, index: int, number: int) -> Update:
        """Client `index`'s part in round `number`."""
        tensors = self.model()
        tensors["w"][index] = number
        tensors["half"][index] = number
        tensors["steps"][index] = number * STEPS
        if self.ballast:
            tensors["ballast"][:] = number
        return tensors, 1.0, {"index": float(index)}

    def counts(self, path: str | Path, number: int, counted: int) -> list[int]:
        """How often each client's update is in the committed model of a round with `counted` updates."""
        model = load_file(path)
        found = np.asarray(model["w"], np.float64) * counted / number
        near = np.rint(found)
        assert np.allclose(found, near, rtol=0, atol=1e-5), f"round {number}: {found} times {counted} are no counts"
        half = np.asarray(model["half"], np.float64) * counted / float(ml_dtypes.bfloat16(number))  # as it was sent
        assert np.allclose(half, near, rtol=0, atol=5e-3), f"round {number}: bfloat16 tells {half}, float32 {near}"
        steps = model["steps"] / STEPS * counted / number
        assert np.allclose(steps, near, rtol=0, atol=1e-5), f"round {number}: int64 tells {steps}, float32 {near}"
        if self.ballast:
            assert np.allclose(model["ballast"], number, rtol=1e-6), "the ballast is not all there"
        return [int(count) for count in near]

    def check(self, node: Node, job: str, fleet: Fleet | None = None) -> list[dict[str, Any]]:
        """Each committed round has each counted client once and no other; returns the rounds' status lines."""
        lines = [line for line in all_rounds(node, job) if line["status"] == "committed"]
        assert [line["round"] for line in lines] == list(range(1, len(lines) + 1)), "a round committed twice or never"
        for line in lines:
            number, counted = line["round"], line["receipt"]["counted"]
            counts = self.counts(line["path"], number, counted)
            assert sum(counts) == counted and set(counts) <= {0, 1}, f"round {number}: {counts} of {counted} counted"
            if fleet is not None:
                told = {index for index in range(self.clients) if fleet.fate(index, number)}
                assert told == {i for i, count in enumerate(counts) if count}, f"round {number}: {told} told, {counts}"
        return lines


WITH_MIDDLES = {"aggregation__fan_in": 1, "aggregation__middle_fan_in": 2}
"""Keys of a job of eight clients whose tree is to have middles: four leaves, two middles, the top."""


# ---- jobs ----------------------------------------------------------------------------------------------------------


def write_job(folder: Path, name: str, model: Mapping[str, np.ndarray], **keys: Any) -> Path:
    """A job's TOML with its model beside it; `keys` are ``section__key=value``, a dict for options.

    All its models and receipts are kept, and its tree is that of large updates, if nothing else is said.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(model), folder / f"{name}.model.safetensors")
    table: dict[str, dict[str, Any]] = {
        "job": {"name": name, "rounds": 1},
        "model": {"path": f"{name}.model.safetensors"},
        "selection": {"clients_per_round": len(model["w"]) if "w" in model else 1, "deadline_s": 60.0},
    }
    for key, value in keys.items():
        section, _, inner = key.partition("__")
        table.setdefault(section, {})[inner] = value
    table.setdefault("aggregation", {}).setdefault("fan_in", FAN_IN)
    # The oracle looks at all of them, and at their receipts.
    table.setdefault("checkpoint", {}).setdefault("keep", {"last": ROUNDS_MAX})
    table.setdefault("history", {}).setdefault("keep", {"rounds": ROUNDS_MAX, "receipts": ROUNDS_MAX})
    lines = []
    for section, values in table.items():
        lines.append(f"[{section}]")
        lines += [f"{key} = {_toml(value)}" for key, value in values.items()]
    path = folder / f"{name}.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(inner)}" for key, inner in value.items()) + " }"
    return msgspec.json.encode(value).decode()


def submit(node: Node, name: str, model: Mapping[str, np.ndarray], **keys: Any) -> dict[str, Any]:
    """Writes and submits a job; returns the node's answer."""
    answer: dict[str, Any] = node.json("submit", str(write_job(node.state_dir / "configs", name, model, **keys)))
    return answer


def ask(node: Node, message: om.FromCli) -> dict[str, Any]:
    """The daemon's answer to one request of the control channel."""
    with DaemonClient(node.state_dir) as daemon:
        return daemon.ask(message)


def workers(node: Node) -> list[int]:
    """The processes of its workers; one that is being forked has none yet, and 0 is whoever asks."""
    return [each["pid"] for each in ask(node, om.Snapshot())["workers"] if each["pid"]]


def arena_use(node: Node) -> tuple[int, int]:
    """Objects in the arena, and their bytes."""
    arena = ask(node, om.Snapshot())["node"]["arena"]
    return arena["objects"], arena["used_bytes"]


def objects(node: Node) -> list[Entry]:
    """The arena's live objects, read from outside: also while `lifld` is stopped."""
    arena = Arena.attach(f"/lifl-{node.info['node']}")
    try:
        entries = [arena._sealed(arena._in_table(slot)) for slot in range(arena.entries)]
        return [entry for entry in entries if entry.state != ObjectState.FREE]
    finally:
        arena.close()


class Watch:
    """A job's events, as they come; begun before it returns."""

    def __init__(self, node: Node, job: str) -> None:
        self.events: list[om.Event] = []
        self.ended = False
        self._changed = threading.Condition()
        self._daemon = DaemonClient(node.state_dir)
        self._daemon.ask(om.Follow(job))
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with self._daemon:
            try:
                for event in self._daemon.events():
                    with self._changed:
                        self.events.append(event)
                        self._changed.notify_all()
            except (LiflError, OSError):
                pass
        with self._changed:
            self.ended = True
            self._changed.notify_all()

    def wait(self, name: str, count: int = 1, or_end: bool = False, **fields: Any) -> list[om.Event]:
        """The first `count` events of this name with these fields."""

        def found() -> list[om.Event]:
            return [
                event
                for event in self.events
                if event.name == name and fields.items() <= {k: event.fields.get(k) for k in fields}.items()
            ]

        with self._changed:
            came = self._changed.wait_for(lambda: len(found()) >= count or self.ended, WAIT_S)
            said = [(event.name, event.fields.get("round")) for event in self.events]
            assert came, f"{count} {name} {fields} did not come; came: {said}"
            assert or_end or len(found()) >= count, f"the events ended before {count} {name} {fields}: {said}"
            return found()[:count]

    def wait_any(self, *names: str, **fields: Any) -> om.Event:
        """The first event of one of these names; of `fields` those count that it has."""

        def found() -> om.Event | None:
            for event in self.events:
                if event.name in names and all(event.fields.get(k, v) == v for k, v in fields.items()):
                    return event
            return None

        with self._changed:
            came = self._changed.wait_for(lambda: found() or self.ended, WAIT_S)
            event = found()
            said = [(event.name, event.fields.get("round")) for event in self.events]
            assert came and event is not None, f"no {' or '.join(names)} {fields} came; came: {said}"
            return event

    def over(self) -> dict[str, Any]:
        """Waits for the job's end; its status and reason."""
        return self.wait("job.over")[0].fields

    def join(self) -> None:
        """The connection has ended, with the job or with `lifld`."""
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()


# ---- trainers --------------------------------------------------------------------------------------------------------


class Trainer(threading.Thread):
    """One real client: takes part in all rounds; `rounds` are those it was selected for, in order."""

    def __init__(self, fleet: Fleet, index: int, address: str) -> None:
        super().__init__(name=f"{fleet.job}-{index}", daemon=True)
        self.fleet, self.index = fleet, index
        access = fleet.access(name_of(index))
        self.client = Client(address, job=fleet.job, client=name_of(index), give_up_after_s=WAIT_S, **access)
        self.rounds: list[Round] = []
        self.submissions: dict[int, Submission] = {}
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            with self.client:
                for round_ in self.client.rounds(self.fleet.models):
                    self.rounds.append(round_)
                    self.fleet.play(self, round_)
        except BaseException as error:  # noqa: BLE001 - the test asks for it
            self.error = error


class Fleet:
    """Trainers 0 to n-1 of one job.

    `update(index, round)` says what each submits.  `hold(index, round)` makes a trainer wait before it submits, until
    `release` or `release_round`; `play` may be given to do something else than submit.  `access(name)` says how the
    client of that name is let in: what `Client` is given beside.
    """

    def __init__(
        self,
        addresses: str | Iterable[str],
        job: str,
        clients: int,
        update: Callable[[int, int], Update],
        play: Callable[[Trainer, Round], None] | None = None,
        models: bool = True,
        access: Callable[[str], dict[str, Any]] = lambda name: {},
    ) -> None:
        self.job, self.update, self.models, self.access = job, update, models, access
        chosen = [addresses] if isinstance(addresses, str) else list(addresses)
        self._gates: dict[tuple[int, int], threading.Event] = {}
        self._play = play
        self.trainers = [Trainer(self, index, chosen[index % len(chosen)]) for index in range(clients)]

    def hold(self, index: int, number: int = 1) -> None:
        """The trainer will not submit in this round until `release`."""
        self._gates[index, number] = threading.Event()

    def release(self, *indices: int) -> None:
        """Lets these trainers (all when none is named) submit."""
        for (index, _), gate in self._gates.items():
            if not indices or index in indices:
                gate.set()

    def release_round(self, number: int) -> None:
        """Lets all trainers submit in this round."""
        for (_, held), gate in self._gates.items():
            if held == number:
                gate.set()

    def play(self, trainer: Trainer, round_: Round) -> None:
        """One round of one trainer."""
        gate = self._gates.get((trainer.index, round_.number))
        if gate is not None:
            assert gate.wait(WAIT_S), "the test never released this trainer"
        if self._play is not None:
            self._play(trainer, round_)
        else:
            self.submit(trainer, round_)

    def submit(self, trainer: Trainer, round_: Round) -> Submission:
        """What a trainer does when nothing else is asked for."""
        done = round_.submit(*self.update(trainer.index, round_.number))
        trainer.submissions[round_.number] = done
        return done

    def fate(self, index: int, number: int) -> bool | None:
        """What the trainer was told of its update in a round."""
        return self.trainers[index].client._books.fates.get(number)

    def start(self) -> Fleet:
        """Starts all trainers."""
        for trainer in self.trainers:
            trainer.start()
        return self

    def errors(self) -> dict[int, BaseException]:
        """How trainers ended that did not end well."""
        return {trainer.index: trainer.error for trainer in self.trainers if trainer.error is not None}

    def join(self, well: bool = True) -> None:
        """Waits until all have ended; `well` says that none may have raised."""
        for trainer in self.trainers:
            trainer.join(WAIT_S)
            assert not trainer.is_alive(), f"{trainer.name} hangs"
        errors = self.errors()
        assert not (well and errors), f"trainers failed: {errors}"

    def close(self) -> None:
        """For the end of a test that may have failed: nobody waits any longer."""
        self.release()
        for trainer in self.trainers:
            trainer.client._closed.set()


def note_busy(trainer: Trainer, told_busy: Counter[int]) -> None:
    """Counts how often the node tells the trainer to ask again later; it asks soon."""
    client = trainer.client
    answer, pause = client._home.answer, client._pause

    def noted(*arguments: Any) -> Any:
        message = answer(*arguments)
        if isinstance(message, cm.Busy):
            told_busy[trainer.index] += 1
        return message

    client._home.answer = noted  # type: ignore[method-assign]
    client._pause = lambda _pause_s: pause(0.1)  # type: ignore[method-assign]


def all_rounds(node: Node, job: str) -> list[dict[str, Any]]:
    """The status lines of all attempts of a job's rounds, in their order, whatever the length of a page."""
    page = ask(node, om.JobStatus(job, ROUNDS_MAX))
    lines = page["rounds"]
    while page["more"] is not None:
        page = ask(node, om.JobStatus(job, ROUNDS_MAX, tuple(page["more"])))
        lines = page["rounds"] + lines
    return lines


def name_of(index: int) -> str:
    """The client's name of trainer `index`."""
    return f"c{index:02d}"


@contextmanager
def fleet(addresses: str | Iterable[str], job: str, clients: int, *more: Any, **options: Any) -> Iterator[Fleet]:
    """A started `Fleet` that is let go whatever happens; options: `held` as (index, round) pairs."""
    held = options.pop("held", ())
    made = Fleet(addresses, job, clients, *more, **options)
    for index, number in held:
        made.hold(index, number)
    made.start()
    try:
        yield made
    finally:
        made.close()


# ---- gates -----------------------------------------------------------------------------------------------------------

RULE = '''
import os
from lifl.rules import Rule, RuleOptions


class Gated(Rule):
    """FedAvg that waits at the pipes in a folder: leaves at `fold`, middles at `merge`, the top at `finish`."""

    class Options(RuleOptions, frozen=True):
        gates: str = ""

    def wait(self, place):
        try:
            fd = os.open(os.path.join(self.options.gates, place), os.O_RDONLY)
        except FileNotFoundError:
            return
        os.read(fd, 1)
        os.close(fd)

    def fold(self, acc, updates, weights, keep):
        self.wait("fold")
        super().fold(acc, updates, weights, keep)

    def merge(self, acc, partials, scales, keep):
        self.wait("merge")
        super().merge(acc, partials, scales, keep)

    def finish(self, model, mean, state):
        self.wait("finish")
        return mean
'''


class Gate:
    """A named pipe that holds every process that opens it to read, until `open`."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(path)
        self.path = path
        self._fd = -1

    def reached(self) -> None:
        """Returns when a process is held at the gate."""
        self._fd = until(f"a process at gate {self.path}", self._try_open)

    def _try_open(self) -> int:
        try:
            return os.open(self.path, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # nobody reads yet
            return 0

    def open(self) -> None:
        """Nobody is held any more, now or later."""
        self.path.unlink(missing_ok=True)
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


@contextmanager
def gated(node: Node, *places: str) -> Iterator[tuple[dict[str, Any], list[Gate]]]:
    """Keys for a job whose aggregators wait at `places` (fold, merge, finish), and the gates."""
    folder = node.state_dir / "configs"
    folder.mkdir(exist_ok=True)
    (folder / "gated_rule.py").write_text(RULE)
    gates = [Gate(folder / "gates" / place) for place in places]
    keys = {
        "aggregation__rule": "gated_rule:Gated",
        "aggregation__options": {"gates": str(folder / "gates")},
    }
    try:
        yield keys, gates
    finally:
        for gate in gates:
            gate.open()


def restart(node: Node) -> None:
    """kill -9 of `lifld`, and the next one on the same folder and port."""
    node.kill()
    node.up("--listen", node.address)
