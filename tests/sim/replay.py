"""One life of the simulator, told event by event; or a recording of a real engine.

    make sim SEED=17 [HOSTS=3 [MOVES=1] [DRAINS=1] [STALLS=1] [CHANGES=1] [RETURNS=1] [LENDS=1]]
    make sim RECORDING=FILE

Of a life each line has the virtual time, the host, and what happened: an event that its engine was given (``<-``), an
effect that came of it (``->``), or a fault (``!!``).  A life that ends with a broken promise ends with the exception
and exit code 1; the same seed always tells the same story.

A recording (`lifl debug record` writes one, and so does a failing life) is replayed: its lines have the time, the
event, and the effects that it led to.  Where the replay leads to other effects it says which; exit code 1.
"""

from __future__ import annotations

import argparse
import functools
import sys
import traceback
from pathlib import Path
from typing import Any

import msgspec
from lives import MODES, STEPS, make
from sim_checks import Broken
from sim_clients import Clients
from sim_faults import Faults
from sim_host import Host
from sim_lives import Lives
from sim_workers import Workers
from simulator import Cluster

from lifl.core import effects as fx
from lifl.core.engine import Engine
from lifl.core.errors import RemoteFault
from lifl.core.event_log import Recording
from lifl.core.ids import Key
from lifl.core.protocol.client import unpacked

FAULTS = {
    Lives: ("link", "unlink", "cut", "bury", "node_dies", "kill_gateway", "crash", "elect", "demote"),
    Workers: ("kill",),
    Clients: ("vanish",),
    Faults: ("_freeze", "fall_asleep", "jump", "cancel", "quiet"),
}
TEXT_MAX = 170


class Tale:
    """Prints what happens in a life."""

    def __init__(self) -> None:
        self.now = 0.0

    def add(self, host: object, sign: str, text: str) -> None:
        """Print one thing that happened."""
        print(f"{self.now:8.3f}  host {host}  {sign} {cut(text)}")


def cut(text: str) -> str:
    """Return no more of a text than a line takes."""
    return text if len(text) <= TEXT_MAX else f"{text[:TEXT_MAX]}..."


def shown(value: Any) -> str:
    """Return a short text: keys by number, bytes by length, objects by name."""
    if isinstance(value, Key):
        return f"key{value.slot}"
    if isinstance(value, bytes):
        return f"key{Key.unpack(value).slot}" if len(value) == 16 else f"{len(value)} bytes"
    if isinstance(value, msgspec.Raw):
        return shown(unpacked(value))
    if isinstance(value, fx.SavePlan):
        return f"SavePlan(round={value.round}, {value.plan.explain()[0]})"
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return f"[{', '.join(map(shown, value))}]"
    if hasattr(value, "__struct_fields__"):
        fields = ", ".join(f"{name}={shown(getattr(value, name))}" for name in value.__struct_fields__)
        return f"{type(value).__name__}({fields})"
    if hasattr(value, "number"):
        return f"{type(value).__name__.removeprefix('Sim')} {value.number}"
    return str(value)


def tell(tale: Tale) -> None:
    """Have every life of this process tell of itself from now on."""

    def handle(engine: Engine, event: Any, now: float) -> list[fx.Effect]:
        tale.now = now
        tale.add(engine.node, "<-", shown(event))
        return plain_handle(engine, event, now)

    def effect(cluster: Cluster, host: Host, given: fx.Effect) -> None:
        tale.add(host.number, "->", shown(given))
        plain_effect(cluster, host, given)

    def fault(name: str, plain: Any) -> Any:
        @functools.wraps(plain)
        def happens(part: object, *given: Any, **named: Any) -> Any:
            host = next((each.number for each in given if isinstance(each, Host)), "-")
            tale.add(host, "!!", " ".join([name.strip("_").replace("_", " "), *map(shown, given), *named]))
            return plain(part, *given, **named)

        return happens

    plain_handle, plain_effect = Engine.handle, Cluster._effect
    Engine.handle = handle  # type: ignore[method-assign]
    Cluster._effect = effect  # type: ignore[method-assign]
    for part, names in FAULTS.items():
        for name in names:
            setattr(part, name, fault(name, getattr(part, name)))


def tell_life(seed: int, hosts: int, **modes: bool) -> int:
    """Tell one life; return 1 when it ends badly."""
    tell(Tale())
    cluster = make(seed, hosts, **modes)
    try:
        cluster.run(STEPS)
    except (Exception, Broken):  # noqa: BLE001 - whatever it is, it is the end of the tale
        traceback.print_exc(file=sys.stdout)
        print(f"seed {seed} on {hosts} hosts: broken at {cluster.now:.3f} s")
        return 1
    fates = ", ".join(f"{job.name} {job.row[0] if job.row else 'refused'}" for job in cluster.jobs.values())
    print(f"seed {seed} on {hosts} hosts: {fates}")
    return 0


def one(shapes: tuple[Any, ...]) -> str:
    """The shape of an effect, if there is one: its name and values, or the effect itself."""
    if not shapes:
        return "nothing more"
    return " ".join(map(shown, shapes[0])) if isinstance(shapes[0], tuple) else shown(shapes[0])


def tell_recording(path: Path) -> int:
    """Replay a recording event by event; return 1 at the first event that leads to other effects."""
    try:
        recording = Recording.unpack(path.read_bytes())
    except (OSError, RemoteFault) as error:
        print(f"{path}: {error}")
        return 2
    number = 0
    for number, (entry, shapes) in enumerate(recording.replayed(), 1):
        print(f"{entry.now:14.6f}  <- {cut(shown(entry.event))}")
        for place in range(max(len(entry.shapes), len(shapes))):
            was, is_ = entry.shapes[place : place + 1], shapes[place : place + 1]
            print(f"{'':14}  -> {cut(one(was))}")
            if was != is_:
                print(f"event {number} of {len(recording.entries)}, effect {place + 1}: replayed to {one(is_)}")
                return 1
    print(f"{number} events led to the same effects")
    return 0


def main() -> int:
    """Tell one life, or a recording; the exit code says how it ended."""
    parser = argparse.ArgumentParser(description="Replays one life of the simulator, or a recording.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--seed", type=int)
    what.add_argument("--recording", type=Path)
    parser.add_argument("--hosts", type=int, default=3)
    for name in MODES:
        parser.add_argument(f"--{name}", action="store_true")
    given = parser.parse_args()
    if given.recording:
        return tell_recording(given.recording)
    return tell_life(given.seed, given.hosts, **{name: getattr(given, name) for name in MODES})


if __name__ == "__main__":
    sys.exit(main())
