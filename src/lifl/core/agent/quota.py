"""Which job may take how much of the arena: reservations, so that rounds that share it never starve each other.

A round that has begun to take updates must always be able to finish.  So it reserves, before it opens, what its
tree needs at the least; an allocation for one job is granted only when it leaves the other jobs' unused
reservations untouched.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from types import MappingProxyType

from lifl.core.errors import ArenaFull
from lifl.core.ids import Key, Kind
from lifl.core.object_store import ObjectStore
from lifl.core.protocol.contribution import Contribution

NO_JOB = -1
"""The account of what no job has: objects of an earlier life, and those that rest."""
LENT = -2
"""The account of models that clients have as loans."""
LOANS_PARTS = 8
"""One of so many parts of the arena is what clients may have as loans, which they give back when they like."""
LOANS_MAX = 256
"""Loans at a time, each of which is a descriptor of `lifld`."""
LOAN_SPARE = 2
"""So often the room of what is lent stays free beside it: an old model may part what is free in two, and a round needs
room for its largest object in one of them."""
NOTHING: Mapping[int, int] = MappingProxyType({})


class Quota:
    """The store, with an account for each job (by number)."""

    def __init__(self, store: ObjectStore) -> None:
        self.store = store
        self._reserved: dict[int, int] = {}
        self._limits: dict[int, int] = {}  # by job: the bytes that its objects may take, where it has such a limit
        self._used: dict[int, int] = {}
        self._sizes: dict[Key, tuple[int, int]] = {}
        self._slabs: dict[int, set[Hashable]] = {}
        self._readers: dict[Key, int] = {}  # of objects that several read still: each is to free it
        self.loans = Loans(self)
        self.peaks: dict[int, int] = {}
        self.gains = 0
        """Counts what may have given somebody room, or an address."""

    @property
    def used_bytes(self) -> int:
        """Bytes of the arena that objects take now."""
        return self.store.used_bytes

    @property
    def total_bytes(self) -> int:
        """Bytes of the arena for objects."""
        return self.store.free_bytes + self.store.used_bytes

    @property
    def free_bytes(self) -> int:
        """Bytes of the arena in no object."""
        return self.store.free_bytes

    def job_used_bytes(self, job: int) -> int:
        """Return the bytes that the job's objects take now."""
        return self._used.get(job, 0)

    def held_bytes(self, job: int) -> int:
        """Return the bytes that others cannot have: what is reserved for the job, or what its objects take."""
        return max(self._reserved.get(job, 0), self._used.get(job, 0))

    def keeps_promises(self, least: Mapping[int, int] = NOTHING) -> bool:
        """Return whether what may still be taken is free; each job may have the `least` of it that is given for it."""
        more = sum(max(0, nbytes - self.held_bytes(job)) for job, nbytes in least.items())
        return self.store.free_bytes >= self._promised() + more

    def reserve(self, job: int, nbytes: int) -> bool:
        """Set the job's reservation; return whether what is free allows it beside the others'."""
        before = self._reserved.get(job, 0)
        self._reserved[job] = nbytes
        if not self.keeps_promises():
            self._reserved[job] = before
            return False
        self.gains += nbytes < before
        return True

    def limit(self, job: int, share: float) -> None:
        """Let the job's objects take no more than this share of the arena, and what is reserved for it; 1: any."""
        self._limits.pop(job, None)
        if share < 1.0:
            self._limits[job] = int(share * self.total_bytes)

    def begin(self, job: int, owner: str) -> None:
        """Note whose the job is: what an earlier one of this owner's ("": of nobody's) has left may be its."""
        self.store.begin_job(job, owner)

    def lend(self, key: Key) -> None:
        """Note that a client writes the object itself, and may keep its job's memory for longer than that lasts."""
        self.store.lend(key)

    def release(self, job: int) -> None:
        """End the job's reservation and its account."""
        self.gains += 1
        self._reserved.pop(job, None)
        self.peaks.pop(job, None)
        for slab in self._slabs.pop(job, ()):
            self.store.close_slab(slab)
        self.store.end_job(job)
        if not self._used.get(job):
            self._used.pop(job, None)

    def _promised(self, but: int = -1) -> int:
        rest = sum(max(0, reserved - self._used.get(job, 0)) for job, reserved in self._reserved.items() if job != but)
        return rest + LOAN_SPARE * self._used.get(LENT, 0)

    def alloc(
        self, kind: Kind, job: int, epoch: int, data_bytes: int, meta_bytes: int = 0, slab: Hashable | None = None
    ) -> Key:
        """Return a new object.

        Raise `ArenaFull` also when the room that is left is promised to other jobs, or the job has all of its share.
        """
        nbytes, used = data_bytes + meta_bytes, self._used.get(job, 0)
        if job in self._limits and used + nbytes > max(self._limits[job], self._reserved.get(job, 0)):
            text = f"the job has {used} of {self._limits[job]} bytes that it may take (quota.arena_share)"
            raise ArenaFull(f"{nbytes} bytes do not fit: {text}")
        promised = self._promised(but=job)
        if self.store.free_bytes - data_bytes - meta_bytes < promised:
            raise ArenaFull(
                f"{data_bytes + meta_bytes} bytes do not fit: {self.store.free_bytes} are free, "
                f"{promised} of them reserved for the running rounds of other jobs"
            )
        if slab is not None:
            self._slabs.setdefault(job, set()).add(slab)
        before = self.store.used_bytes
        key = self.store.alloc(kind, job, epoch, data_bytes, meta_bytes, slab)
        self._account(key, job, self.store.used_bytes - before)
        return key

    def renew(self, key: Key, kind: Kind, epoch: int, data_bytes: int, meta_bytes: int = 0) -> Key:
        """Return a fresh object in the place of one of the same job and size: nothing that is promised is touched."""
        job, _ = self._sizes[key]
        self.free(key)
        before = self.store.used_bytes
        fresh = self.store.alloc(kind, job, epoch, data_bytes, meta_bytes)
        self._account(fresh, job, self.store.used_bytes - before)
        return fresh

    def adopt(self, key: Key, job: int) -> None:
        """Take an object that was there before into the account of a job (or of `NO_JOB`), out of any other's."""
        if key in self._sizes:
            before, nbytes = self._sizes[key]
            self._used[before] -= nbytes
        self._account(key, job, self.store.extent_bytes(key))

    def _account(self, key: Key, job: int, nbytes: int) -> None:
        self._sizes[key] = (job, nbytes)
        self._used[job] = self._used.get(job, 0) + nbytes
        used = self.store.used_bytes
        for number in self.peaks:
            self.peaks[number] = max(self.peaks[number], used)

    def share(self, key: Key, readers: int) -> None:
        """Have the object stay until it has been freed as often."""
        self._readers[key] = readers

    def free(self, key: Key) -> None:
        """Give the object's room back; that of a shared one when its last reader frees it."""
        readers = self._readers.pop(key, 1)
        if readers > 1:
            self._readers[key] = readers - 1
            return
        self.gains += 1
        self.loans.freed(key)
        job, nbytes = self._sizes.pop(key)
        self._used[job] -= nbytes
        self.store.free(key)

    def sealed(self, key: Key) -> bool:
        """Return whether the object is sealed."""
        return self.store.sealed(key)

    def epoch_of(self, key: Key) -> int:
        """Return the epoch that the object was allocated for."""
        return self.store.epoch_of(key)

    def kind_of(self, key: Key) -> Kind:
        """Return what the object is."""
        return self.store.kind_of(key)

    def members(self, key: Key) -> list[Contribution]:
        """Return who is in a sealed update or partial."""
        return self.store.members(key)

    def problems(self) -> Iterable[str]:
        """Yield what is wrong with the accounts, a sentence each."""
        sums: dict[int, int] = {}
        for job, nbytes in self._sizes.values():
            sums[job] = sums.get(job, 0) + nbytes
        for job in sums.keys() | self._used.keys():
            if sums.get(job, 0) != self._used.get(job, 0):
                yield f"job {job} uses {sums.get(job, 0)} bytes, its account says {self._used.get(job, 0)}"
        lent = {key for key, (job, _) in self._sizes.items() if job == LENT}
        if lent != self.loans.keys():
            yield f"{lent} are lent by the accounts, {self.loans.keys()} by the loans"
        if not self._readers.keys() <= self._sizes.keys():
            yield f"objects are shared that are gone: {self._readers.keys() - self._sizes.keys()}"
        if sum(sums.values()) != self.store.used_bytes:
            yield f"all accounts have {sum(sums.values())} bytes, the arena has {self.store.used_bytes} in use"

    def start_peak(self, job: int) -> None:
        """Begin to watch the arena's peak for a round of the job."""
        self.peaks[job] = self.store.used_bytes


class Loans:
    """The models that clients of this machine have mapped, each for as long as it likes.

    They take room that was promised to nobody: a job whose model is lent has its whole reservation beside it, and what
    it may cost in pieces (`LOAN_SPARE`) stays free.  So does what the jobs that are here would have reserved if this
    node came to coordinate them.  Where that is not there nothing is lent, and the client receives its model.  So no
    round that has begun waits for a loan; what begins later may, until one is given back, which is a gain as any other.
    """

    def __init__(self, quota: Quota) -> None:
        self._quota = quota
        self._least: dict[int, int] = {}  # by job: what it would have reserved if this node coordinated it
        self._clients: Counter[Key] = Counter()  # how many have each object
        self._jobs: dict[Key, int] = {}

    def leave(self, job: int, nbytes: int) -> None:
        """Leave a job so much of the arena, also of what is not reserved for it; 0: no more."""
        self._least.pop(job, None)
        if nbytes:
            self._least[job] = nbytes

    def begin(self, key: Key, job: int) -> bool:
        """Let a client read a model of the job as long as it likes; return False when that is too much."""
        quota, first = self._quota, key not in self._clients
        if self._clients.total() >= LOANS_MAX:
            return False
        if first:
            quota.adopt(key, LENT)
            if quota.held_bytes(LENT) * LOANS_PARTS > quota.total_bytes or not quota.keeps_promises(self._least):
                quota.adopt(key, job)
                return False
            self._jobs[key] = job
        self._clients[key] += 1
        return True

    def adopt(self, key: Key) -> None:
        """Take up a model that an earlier life has lent, to however many."""
        self._quota.adopt(key, LENT)
        self._jobs[key] = NO_JOB
        self._clients[key] = 1

    def end(self, key: Key) -> None:
        """Note that one client has given a model back, or the last one, where an earlier life has lent it."""
        self._quota.gains += 1
        if self._clients[key] > 1:
            self._clients[key] -= 1
        elif key in self._jobs:  # else its job broke, and all that it had was freed
            del self._clients[key]
            self._quota.adopt(key, self._jobs.pop(key))

    def of(self, key: Key) -> int:
        """Return how many clients have the object as a loan."""
        return self._clients.get(key, 0)

    def freed(self, key: Key) -> None:
        """Forget an object that is no more."""
        self._clients.pop(key, None)
        self._jobs.pop(key, None)

    def keys(self) -> set[Key]:
        """Return what is lent."""
        return set(self._jobs)

    @property
    def taken_bytes(self) -> int:
        """Bytes of the arena that jobs cannot have for what is lent."""
        return (1 + LOAN_SPARE) * self._quota.held_bytes(LENT)
