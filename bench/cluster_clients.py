"""The clients of the cluster's benchmark, a thread each: they wait at a gate, then all submit at once.

A helper process (`measure.Helper`).  All send the same tensors, so that their memory is one update's; each is connected
by the socket in a node's state folder and writes its update into that node's arena itself, so the links carry what
nodes send each other and nothing else.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from typing import Any

import numpy as np
from measure import answer, orders

from lifl import Client
from lifl.core.errors import LiflError
from lifl.examples.netns import Host, inside


class Clients:
    """The clients of one job."""

    def __init__(self, job: str, update_bytes: int, clients: list[list[str]]) -> None:
        self.job = job
        self.update = {"w": np.full(update_bytes // 4, 0.5, np.float32)}
        self.gates: defaultdict[int, threading.Event] = defaultdict(threading.Event)
        self.errors: list[str] = []
        self.ready = threading.Semaphore(0)
        self.threads = [threading.Thread(target=self._run, args=each) for each in clients]
        for thread in self.threads:
            thread.start()

    def _run(self, address: str, name: str) -> None:
        try:
            with Client(address, job=self.job, client=name, insecure=True) as client:
                for round_ in client.rounds(models=False):
                    self.ready.release()
                    self.gates[round_.number].wait()
                    round_.submit(self.update, 1.0)
        except LiflError as error:
            self.errors.append(f"{name}: {error}")
            self.ready.release()

    def wait_ready(self) -> None:
        """Return when all are at the gate of the next round (or have failed)."""
        for _ in self.threads:
            self.ready.acquire()


def main() -> None:
    """Do what it is ordered to, until its stdin ends."""
    clients: Clients | None = None
    entered = None
    for order in orders():
        told: dict[str, Any] = {}
        match order:
            case {"enter": host}:
                entered = inside(Host(*host))
                entered.__enter__()
            case {"job": job, "update_bytes": update_bytes, "clients": who}:
                clients = Clients(job, update_bytes, who)
            case {"ready": _} if clients is not None:
                clients.wait_ready()
                told = {"errors": clients.errors}
            case {"go": number} if clients is not None:
                clients.gates[number].set()
            case {"end": _} if clients is not None:
                for thread in clients.threads:
                    thread.join()
                told = {"errors": clients.errors}
        answer(**told)


if __name__ == "__main__":
    main()
