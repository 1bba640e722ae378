"""One life of the simulator, told event by event.

    make sim SEED=17 [HOSTS=3]

Each line has the virtual time, the host, and what happened: an event that its engine was given (``<-``), an effect that
came of it (``->``), or a fault (``!!``).  A life that ends with a broken promise ends with the exception and exit code
1; the same seed always tells the same story.
"""

from __future__ import annotations

import argparse
import functools
import inspect
import sys
import traceback
from typing import Any

import simulator
import test_sim_node
from simulator import Cluster, Host

from lifl.core import effects as fx
from lifl.core.engine import Engine
from lifl.core.ids import Key

FAULTS = ("_connect", "_disconnect", "_kill", "_kill_gateway", "_node_dies", "_bury", "_unlink", "_link", "_crash")
TEXT_MAX = 170


class Tale:
    """What is told; a life that is only begun to measure something is not."""

    def __init__(self) -> None:
        self.clock: Cluster | None = None
        self.lines: list[str] = []
        self.live = False

    def begin(self, cluster: Cluster) -> None:
        """Another life begins: what was told before was no part of it."""
        self.clock, self.lines = cluster, []

    def add(self, host: object, sign: str, text: str) -> None:
        now = getattr(self.clock, "now", 0.0)
        text = text if len(text) <= TEXT_MAX else f"{text[:TEXT_MAX]}..."
        self.lines.append(f"{now:8.3f}  host {host}  {sign} {text}")
        if self.live:
            self.flush()

    def flush(self) -> None:
        """Prints what was told so far, and the rest as it comes."""
        self.live = True
        for line in self.lines:
            print(line)
        self.lines.clear()


def shown(value: Any) -> str:
    """Short: keys by number, bytes by length, objects by name."""
    if isinstance(value, Key):
        return f"key{value.slot}"
    if isinstance(value, bytes):
        return f"key{Key.unpack(value).slot}" if len(value) == 16 else f"{len(value)} bytes"
    if isinstance(value, fx.SavePlan):
        return f"SavePlan(round={value.round}, {value.plan.explain()[0]})"
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return f"[{', '.join(map(shown, value))}]"
    if hasattr(value, "__struct_fields__"):
        fields = ", ".join(f"{name}={shown(getattr(value, name))}" for name in value.__struct_fields__)
        return f"{type(value).__name__}({fields})"
    for name in ("number", "name"):
        if hasattr(value, name):
            return f"{type(value).__name__.removeprefix('Sim')} {getattr(value, name)}"
    return str(value)


def tell(tale: Tale) -> None:
    """From now on every life of this process tells of itself."""

    class TalkingEngine(Engine):
        pass

    def event(name: str, plain: Any) -> Any:
        @functools.wraps(plain)
        def handler(engine: Engine, *given: Any) -> Any:
            tale.add(engine.node, "<-", f"{name} {' '.join(shown(one) for one in given if not isinstance(one, float))}")
            return plain(engine, *given)

        return handler

    for name, plain in vars(Engine).items():
        timed = inspect.isfunction(plain) and "now" in inspect.signature(plain).parameters
        if timed and not name.startswith("_"):
            setattr(TalkingEngine, name, event(name, plain))

    class TalkingCluster(Cluster):
        def __init__(self, *given: Any) -> None:
            tale.begin(self)
            super().__init__(*given)

        def _effect(self, host: Host, effect: fx.Effect) -> None:
            tale.add(host.number, "->", shown(effect))
            super()._effect(host, effect)

    def fault(name: str, plain: Any) -> Any:
        @functools.wraps(plain)
        def happens(cluster: Cluster, *given: Any, **named: Any) -> Any:
            host = next((each.number for each in given if isinstance(each, Host)), "-")
            tale.add(host, "!!", " ".join([name.strip("_").replace("_", " "), *map(shown, given), *map(shown, named)]))
            return plain(cluster, *given, **named)

        return happens

    for name in FAULTS:
        setattr(TalkingCluster, name, fault(name, getattr(Cluster, name)))
    simulator.Engine = TalkingEngine
    test_sim_node.Cluster = TalkingCluster


def main() -> int:
    """Tells one life; the exit code says how it ended."""
    parser = argparse.ArgumentParser(description="Replays one life of the simulator.")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--hosts", type=int, default=3)
    given = parser.parse_args()
    tale = Tale()
    tell(tale)
    cluster = test_sim_node.make(given.seed, given.hosts)
    tale.flush()
    try:
        cluster.run(test_sim_node.STEPS)
    except Exception:  # noqa: BLE001 - whatever it is, it is the end of the tale
        traceback.print_exc(file=sys.stdout)
        print(f"seed {given.seed} on {given.hosts} hosts: broken at {cluster.now:.3f} s")
        return 1
    print(f"seed {given.seed} on {given.hosts} hosts: {cluster.job.status}, {len(cluster.commits)} rounds committed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
