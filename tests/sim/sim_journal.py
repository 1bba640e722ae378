"""The journals of the simulator: updates are written to a disk that outlives the machine's memory, and read back."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from sim_checks import must
from sim_host import Host

from lifl.core.ids import Key
from lifl.core.protocol import journal as jm
from lifl.core.protocol.contribution import Contribution

if TYPE_CHECKING:
    from collections.abc import Callable

    from simulator import Cluster

DROPS_WAITING = 0.5
"""How likely an update that waits to be written is not, when its journal is dropped."""


class SimJournals:
    """The journal of each host."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def effect(self, host: Host, effect: Any) -> None:
        """Take what the daemon wants."""
        at = (effect.number, effect.epoch)
        drops = isinstance(effect, jm.DropUpdates) and not effect.places
        if drops and self._cluster.rng.random() < DROPS_WAITING:
            for waiting in [each for each in host.to_journal if isinstance(each, jm.StoreUpdate)]:
                if (waiting.number, waiting.epoch) == at:
                    host.to_journal.remove(waiting)
                    host.from_journal.append(jm.UpdateStored(waiting.key, None))
        host.to_journal.append(effect)

    def choices(self, host: Host, found: list[Callable[[], Any]]) -> None:
        """Add what the journal of a host could do, or say, now."""
        if host.to_journal:
            found.append(partial(self._do, host))
        if host.from_journal:
            found.append(lambda: self._cluster.handle(host, host.from_journal.popleft()))

    def _do(self, host: Host) -> None:
        message = host.to_journal.popleft()
        at = (message.number, message.epoch)
        match message:
            case jm.StoreUpdate():
                thing = host.store.things.get(Key.unpack(message.key))
                must(thing is not None and thing.sealed, "freed-never-read", f"{message} is to be stored")
                (member,) = thing.members
                host.places += 1
                stored = jm.Stored(member.client, member.weight, member.metrics, host.places)
                host.journal.setdefault(at, {})[host.places] = (stored, thing.content.copy())
                host.from_journal.append(jm.UpdateStored(message.key, host.places))
            case jm.LoadUpdate():
                thing = host.store.things[Key.unpack(message.key)]
                stored, content = host.journal.get(at, {}).get(message.place, (None, None))
                if stored is None:
                    host.from_journal.append(jm.UpdateLoaded(message.key, "it is not there"))
                    return
                thing.sealed, thing.content = True, content.copy()
                thing.members = [Contribution(stored.client, stored.weight, stored.metrics)]
                host.from_journal.append(jm.UpdateLoaded(message.key))
            case jm.DropUpdates() if message.places:
                for place in message.places:
                    host.journal.get(at, {}).pop(place, None)
                if at in host.journal and not host.journal[at]:
                    del host.journal[at]
            case jm.DropUpdates():
                host.journal.pop(at, None)
