"""A node's arena in the simulator: the real allocator, and of each object who is in it instead of its bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable

from sim_checks import must

from lifl.core.agent.uploads import DIRECT_GRACE_S
from lifl.core.ids import Key, Kind
from lifl.core.protocol.contribution import Contribution
from lifl.shm.allocator import Allocator

PAGE_BYTES = 4096


class Thing:
    """An object of the arena: its content is who is in it (``job/client``), and how often."""

    def __init__(self, kind: Kind, job: int, epoch: int, offset: int, nbytes: int) -> None:
        self.kind, self.job, self.epoch, self.offset, self.nbytes = kind, job, epoch, offset, nbytes
        self.sealed = False
        self.content: Counter[str] = Counter()
        self.members: list[Contribution] = []


class SimStore:
    """core/object_store.ObjectStore over the real allocator."""

    KEPT: tuple[Kind, ...] = (Kind.UPDATE, Kind.PARTIAL)
    """What is of use to the next life, of what is sealed."""

    def __init__(self, nbytes: int, node: int) -> None:
        self.node = node
        self.nbytes = nbytes
        self.allocator = Allocator(0, nbytes)
        self.things: dict[Key, Thing] = {}
        self.generation = 0
        self.now = 0.0
        self.writers: list[tuple[float, int, int]] = []  # until, begin, end: where direct clients may still write
        self._at: dict[int, Key] = {}  # by offset

    @property
    def free_bytes(self) -> int:
        """Bytes in no object."""
        return self.allocator.free_bytes

    @property
    def used_bytes(self) -> int:
        """Bytes of live objects."""
        return self.allocator.used_bytes

    def alloc(
        self, kind: Kind, job: int, epoch: int, data_bytes: int, meta_bytes: int = 0, slab: Hashable | None = None
    ) -> Key:
        """Return a new object.  Raise `ArenaFull`."""
        offset = self.allocator.alloc(data_bytes + meta_bytes, slab, high=kind is Kind.PARTIAL)
        self.generation += 1
        key = Key(self.generation, 1, self.node)
        size = -(-(data_bytes + meta_bytes) // PAGE_BYTES) * PAGE_BYTES
        must(offset + size <= self.nbytes, "arena-bound", f"{key} ends at {offset + size} of {self.nbytes}")
        must(offset not in self._at, "arena-bound", f"{key} lies where {self._at.get(offset)} is")
        for until, begin, end in self.writers:
            away = until <= self.now or end <= offset or offset + size <= begin
            must(away, "direct-slot", f"a client still writes to bytes {begin} to {end}, which are {key}'s now")
        self.things[key] = Thing(kind, job, epoch, offset, size)
        self._at[offset] = key
        return key

    def left_writing(self, key: Key) -> None:
        """Note that no process waits for this object any more, but that its direct client will notice later."""
        thing = self.things[key]
        self.writers = [writer for writer in self.writers if writer[0] > self.now]
        self.writers.append((self.now + DIRECT_GRACE_S, thing.offset, thing.offset + thing.nbytes))

    def free(self, key: Key) -> None:
        """Free an object."""
        thing = self.things.pop(key)
        del self._at[thing.offset]
        self.allocator.free(thing.offset)

    def sealed(self, key: Key) -> bool:
        """Return whether the object is complete."""
        return self.things[key].sealed

    def extent_bytes(self, key: Key) -> int:
        """Return the bytes that the object takes."""
        return self.things[key].nbytes

    def epoch_of(self, key: Key) -> int:
        """Return the epoch that the object was allocated for."""
        return self.things[key].epoch

    def kind_of(self, key: Key) -> Kind:
        """Return what the object is."""
        return self.things[key].kind

    def members(self, key: Key) -> list[Contribution]:
        """Return who is in a sealed update or partial."""
        return list(self.things[key].members)

    def close_slab(self, slab: Hashable) -> None:
        """Expect no more objects of this slab."""
        self.allocator.close_slab(slab)

    def begin_job(self, job: int, owner: str) -> None:
        """Expect objects of this job."""

    def lend(self, key: Key) -> None:
        """Let a direct client have the object's segment."""
        assert key in self.things

    def end_job(self, job: int) -> None:
        """Expect no more objects of this job."""

    def begin_again(self, lent: Collection[Key] = ()) -> None:
        """Do what a new daemon does first: free what is of no use to it, and make the allocator anew for the rest."""
        for key, thing in list(self.things.items()):
            of_use = thing.kind in self.KEPT if thing.sealed else thing.kind is Kind.UPDATE
            if not of_use and key not in lent:
                self.free(key)
        self.allocator = Allocator(self.allocator.begin, self.allocator.end)
        self.allocator.adopt([(thing.offset, thing.nbytes) for thing in self.things.values()])

    def problems(self) -> str:
        """Return what is wrong: the objects take more than the arena has, or lie over each other."""
        end, used = 0, 0
        for offset, key in sorted(self._at.items()):
            thing = self.things[key]
            if offset < end:
                return f"{key} at {offset} begins before the one in front of it ends, at {end}"
            end, used = offset + thing.nbytes, used + thing.nbytes
        if end > self.nbytes or used != self.used_bytes:
            return (
                f"objects of {used} bytes, to {end}, are {self.used_bytes} by the allocator, and it has {self.nbytes}"
            )
        return ""
