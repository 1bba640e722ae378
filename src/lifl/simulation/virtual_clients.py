"""The clients of a simulated training: real ones, with a connection and a thread each, that train in a pool.

They take part one after the other, in an order drawn from the job's seed, before the next one does: so whom the first
round selects depends on that alone, as it does in later rounds.
"""

from __future__ import annotations

import random
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import msgspec

from lifl.client import Client, Round
from lifl.client.outcomes import JobCancelled, JobFailed, RoundEnded
from lifl.core.config.condition import holds, parse_condition, values_of
from lifl.core.config.job import JobConfig
from lifl.core.errors import ConfigError, LiflError, Refused
from lifl.core.fields import Properties
from lifl.core.planning.draw import NOTHING_SAID
from lifl.simulation.pools import Pool
from lifl.simulation.trainers import TrainerFailed, Training

THREAD_STACK_BYTES = 512 * 1024
"""Each client has a thread that waits nearly always."""
Failed = Callable[[str, int, int, TrainerFailed | Refused], None]
"""Told of a trainer that failed: the client's name and number, the round, and why."""


def names_of(config: JobConfig, count: int) -> list[str]:
    """Return the names of so many clients: those that the job lists, then such as its first pattern allows.

    Raise `ConfigError` when it allows fewer.
    """
    listed = config.selection.clients
    patterns = ["client-*"] if isinstance(listed, msgspec.UnsetType) else [name for name in listed if "*" in name]
    names = [] if isinstance(listed, msgspec.UnsetType) else [name for name in listed if "*" not in name]
    width = len(str(count - 1))
    for number in range(count if patterns else 0):
        names.append(patterns[0].replace("*", f"{number:0{width}}"))
    names = list(dict.fromkeys(names))[:count]
    if len(names) < count:
        raise ConfigError("selection.clients", f"lists {len(names)} clients, --clients says {count}")
    return names


def check_selectable(config: JobConfig, names: Sequence[str], said: Sequence[Properties | None]) -> None:
    """Raise `ConfigError` when too few of the clients may be selected for a round to begin."""
    where, goal = config.selection.where, config.selection.clients_per_round
    if not isinstance(where, str):
        return
    condition = parse_condition(where, "selection.where")
    about = zip(names, said, strict=True)
    true = sum(holds(condition, values_of(name, each or NOTHING_SAID)) for name, each in about)
    if true < goal:
        text = f"it is true of {true} of {len(names)} virtual clients, and a round begins with {goal}: "
        raise ConfigError("selection.where", f"{text}give more --clients, or see to what --properties says of them")


def _named(said: Properties | None) -> dict[str, Any]:
    """Return what a `Client` is given of what it says of itself."""
    if said is None:
        return {}
    examples = said.examples if isinstance(said.examples, int) else None
    return {"labels": said.labels, "examples": examples, "device": said.device}


class VirtualClients:
    """All clients of a job at a node; `said` is what each says of itself.

    `failed` is told of trainers that failed, which count as declined; `stop` is called with the reason once a round
    cannot come to its quorum any more, or a client cannot go on.
    """

    def __init__(
        self,
        node: str,
        config: JobConfig,
        names: Sequence[str],
        said: Sequence[Properties | None],
        pool: Pool,
        failed: Failed,
        stop: Callable[[str], None],
    ) -> None:
        self.committed = 0
        """The last round that is: what is trained for an earlier one counts for nothing."""
        selection = config.selection
        self._quorum = selection.quorum or selection.clients_per_round
        self._seed = selection.seed
        self._pool = pool
        self._failed = failed
        self._stop = stop
        self._lock = threading.Lock()
        self._closing = False
        self._out: defaultdict[int, set[int]] = defaultdict(set)  # by round: the clients whose trainers failed
        evaluates = bool(pool.functions.evaluate)
        self._clients = [
            Client(node, job=config.job.name, client=name, evaluate=evaluates, **_named(each))
            for name, each in zip(names, said, strict=True)
        ]
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Have all take part."""
        order = list(enumerate(self._clients))
        random.Random(f"{self._seed}/clients").shuffle(order)
        before = threading.stack_size(THREAD_STACK_BYTES)
        try:
            for number, client in order:
                client._home.retrying(client._home.hear)  # takes part from here on
                thread = threading.Thread(target=self._take_part, args=(number, client), daemon=True)
                self._threads.append(thread)
                thread.start()
        finally:
            threading.stack_size(before)

    def _take_part(self, number: int, client: Client) -> None:
        try:
            for round_ in client.rounds(models=False):
                work = self._evaluate if round_.kind == "evaluate" else self._train
                work(number, client.client, round_)
        except (JobFailed, JobCancelled):
            pass
        except Exception as error:  # noqa: BLE001 - whatever it is, it must be told where it is seen
            if not self._closing:
                text = str(error) if isinstance(error, LiflError) else f"{type(error).__name__}: {error}"
                self._stop(f"{client.client} cannot go on: {text}")

    def _train(self, number: int, name: str, round_: Round) -> None:
        with self._lock:
            self._out[round_.number].discard(number)  # another attempt
        about = (number, round_.number, round_.options, round_.layout.tensors, tuple(round_.trainable))
        try:
            done = self._pool.train(Training(*about), lambda: round_.model, partial(self._wanted, round_.number))
            if done is None:
                round_.decline("the round is over")
                return
            round_.submit(done.tensors, done.weight, done.metrics)
        except RoundEnded:
            pass
        except (TrainerFailed, Refused) as fault:
            self._failed(name, number, round_.number, fault)
            self._declined(number, round_, str(fault))

    def _evaluate(self, number: int, name: str, round_: Round) -> None:
        """Tell what the model of a round is worth; a client whose evaluator fails says nothing of it."""
        about = (number, round_.number, round_.options, round_.layout.tensors, (), True)
        try:
            wanted = partial(self._wanted, round_.number + 1)
            done = self._pool.train(Training(*about), lambda: round_.model, wanted)
            if done is None:
                round_.decline("the evaluation is over")
                return
            round_.report(done.metrics, done.weight)
        except RoundEnded:
            pass
        except (TrainerFailed, Refused) as fault:
            self._failed(name, number, round_.number, fault)
            round_.decline(str(fault))

    def _wanted(self, number: int) -> bool:
        return number > self.committed and not self._closing

    def _declined(self, number: int, round_: Round, text: str) -> None:
        round_.decline(text)
        with self._lock:
            for before in [each for each in self._out if each <= self.committed]:
                del self._out[before]
            self._out[round_.number].add(number)
            left = len(self._clients) - len(self._out[round_.number])
        if left < self._quorum:
            count = f"{len(self._clients) - left} of {len(self._clients)}"
            why = f"the trainers of {count} clients failed; the last of them: {text}"
            self._stop(f"round {round_.number} cannot have {self._quorum} updates: {why}")

    def close(self) -> None:
        """End the pool, with what is trained there, and have none take part any more."""
        self._closing = True
        self._pool.close()
        for client in self._clients:
            client.close()
        for thread in self._threads:
            thread.join()
