"""What stands for the platform's control in SL: it places updates on function instances and starts these cold.

    python -m systems.serverless_dispatcher FOLDER BROKER_PORT BYTES

It sleeps in a blocking read of the broker's list of events.  When the round is over it waits until all functions have
ended, and tells their CPU seconds.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from measure import END_S, answer, orders

from systems.broker import connected, ended, proxied, started

TOP = "top"


class Round:
    """One round's functions."""

    def __init__(self, broker: Any, folder: Path, port: int, nbytes: int) -> None:
        self._broker = broker
        self._folder = folder
        self._port = port
        self._nbytes = nbytes
        self._functions: dict[str, tuple[subprocess.Popen[bytes], subprocess.Popen[bytes]]] = {}

    def run(self, expect: int, instances: int) -> int:
        """Place updates and partials until the model is there; return when that was."""
        load: Counter[str] = Counter({f"leaf-{number}": 0 for number in range(instances)})
        updates = partials = 0
        while True:
            _, event = self._broker.blpop("events")
            kind, name, weight = event.decode().split()
            if kind == "model":
                return time.monotonic_ns()
            if kind == "update":
                updates += 1
                place = min(load, key=load.__getitem__)
                load[place] += 1
                self._hand(place, name, weight)
                if updates == expect:
                    for leaf in load:
                        self._broker.rpush(f"inbox-{leaf}", "end")
            else:
                partials += 1
                self._hand(TOP, name, weight)
                if partials == instances:
                    self._broker.rpush(f"inbox-{TOP}", "end")

    def _hand(self, place: str, name: str, weight: str) -> None:
        self._broker.rpush(f"inbox-{place}", f"{name} {weight}")
        if place not in self._functions:
            sidecar, port = proxied(self._folder / place, self._port, 1, {})
            command = [sys.executable, "-P", "-m", "systems.serverless_function", place, str(port), str(self._nbytes)]
            self._functions[place] = (started(command, self._folder / f"{place}-function.log", {}), sidecar)

    def end(self, failed: bool) -> None:
        """Wait for the functions, which end by themselves after their work."""
        for function, sidecar in self._functions.values():
            if failed:
                function.kill()
            function.wait(END_S)
            ended(sidecar)


def main() -> None:
    """Serve rounds until stdin ends."""
    folder, port, nbytes = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    broker = connected(port)
    answer(ready=True)
    for what in orders():
        before_s = _children_cpu_s()
        round_ = Round(broker, folder, port, nbytes)
        done_ns = 0
        try:
            done_ns = round_.run(what["expect"], what["instances"])
        finally:
            round_.end(failed=not done_ns)
        np.save(what["path"], np.frombuffer(broker.getdel("model"), np.float32))
        answer(done_ns=done_ns, functions_cpu_s=_children_cpu_s() - before_s)


def _children_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
