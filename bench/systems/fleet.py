"""Clients: a few processes with a thread for each client, which send when they are told to.

The benchmark's side is `Fleet`.  A module that has clients calls `serve` in its ``__main__`` with the class that is one
client: made and connected before the round begins, it sends its update at its time, and `send` returns when the server
has said that it has all of it.  Modules run with any interpreter that has NumPy and psutil.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Protocol

from measure import Helper, answer, cpu_s, orders

from systems.workload import Workload, from_json

if TYPE_CHECKING:  # the clients' environments need not have what it imports
    from systems.interface import Arrival

PROCESSES = 4
LEAD_S = 0.05
"""From the order to begin until the round's start: all clients sleep by then."""


class Sender(Protocol):
    """One client."""

    def send(self) -> bool:
        """Send the update; return when the server says that it has it, False when it did not take it."""

    def close(self) -> None:
        """End the connection."""


class Sent:
    """How a round went for the `clients` whose updates were taken: instants in seconds from `begin_ns`, CPU seconds."""

    def __init__(self, begin_ns: int, times: Sequence[tuple[int, int, int]], cpu_seconds: float) -> None:
        self.begin_ns = begin_ns
        self.clients = [client for client, _, _ in times]
        self.cpu_s = cpu_seconds
        self.first_s = self.since(min(begun for _, begun, _ in times))
        self.last_s = self.since(max(ended for _, _, ended in times))

    def since(self, instant_ns: int) -> float:
        """Return seconds from the round's start."""
        return (instant_ns - self.begin_ns) / 1e9


class Fleet:
    """The client processes of a system; close it in any case."""

    def __init__(
        self,
        module: str,
        workload: Workload,
        clients: int,
        python: str = sys.executable,
        environment: Mapping[str, str] = {},
    ) -> None:
        self._shares = [range(number, clients, PROCESSES) for number in range(min(PROCESSES, clients))]
        self._helpers: list[Helper] = []
        try:
            for _ in self._shares:
                self._helpers.append(Helper(module, [workload.to_json()], python=python, environment=environment))
            for helper in self._helpers:
                helper.reply()
        except BaseException:
            self.close()
            raise

    def prepare(self, clients: Sequence[int], **details: Any) -> None:
        """Make the senders of `clients` with `details`, and return when all of them are ready to send."""
        wanted = set(clients)
        for helper, share in zip(self._helpers, self._shares, strict=True):
            helper.order(prepare=sorted(wanted.intersection(share)), details=details)
        for helper in self._helpers:
            helper.reply()

    def send(self, arrivals: Sequence[Arrival]) -> Sent:
        """Run the round: each client sends at its time; then all connections are closed."""
        pids = [helper.pid for helper in self._helpers]
        before_s = cpu_s(pids)
        begin_ns = time.monotonic_ns() + int(LEAD_S * 1e9)
        at_s = {client: at_s for at_s, client in arrivals}
        for helper, share in zip(self._helpers, self._shares, strict=True):
            helper.order(begin_ns=begin_ns, at_s=[[client, at_s[client]] for client in share if client in at_s])
        times = [tuple(line) for helper in self._helpers for line in helper.reply()["times"]]
        return Sent(begin_ns, times, cpu_s(pids) - before_s)

    def close(self) -> None:
        """End the processes."""
        while self._helpers:
            self._helpers.pop().close()


def serve(make: Callable[..., Sender]) -> None:
    """Be the process's side: ``make(workload, client, **details)`` for each client, each in a thread of its own."""
    workload = from_json(sys.argv[1])
    workload.flat(0)
    answer(ready=True)
    told = iter(orders())
    for what in told:
        with ExitStack() as opened:
            senders: dict[int, Sender] = {}

            def prepare(
                client: int, details: dict[str, Any] = what["details"], senders: dict[int, Sender] = senders
            ) -> None:
                senders[client] = make(workload, client, **details)

            _in_threads([(prepare, (client,)) for client in what["prepare"]])
            for sender in senders.values():
                opened.callback(sender.close)
            answer(ready=True)
            begin = next(told)
            times: list[tuple[int, int, int]] = []

            def send(
                client: int,
                at_ns: int,
                senders: dict[int, Sender] = senders,
                times: list[tuple[int, int, int]] = times,
            ) -> None:
                time.sleep(max(0, at_ns - time.monotonic_ns()) / 1e9)
                begun_ns = time.monotonic_ns()
                if senders[client].send():
                    times.append((client, begun_ns, time.monotonic_ns()))

            _in_threads([(send, (c, begin["begin_ns"] + int(at_s * 1e9))) for c, at_s in begin["at_s"]])
            answer(times=times)


def _in_threads(calls: Sequence[tuple[Callable[..., None], tuple[Any, ...]]]) -> None:
    """Make all calls at the same time.  Raise the first error; the process then ends, which its owner notices."""
    errors: list[BaseException] = []

    def run(call: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        try:
            call(*arguments)
        except BaseException as error:  # noqa: BLE001 - is raised again below
            errors.append(error)

    threads = [threading.Thread(target=run, args=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
