"""Which updates of a node are on its disk: the books of its journals (`protocol/journal.py`).

An update of a job whose durability is ``disk`` is taken into its branch only when it is stored.  So whatever a node has
lost with its memory, the updates that it had accepted are here, and a branch that adopts an epoch goes on from them:
what is sealed in the arena as well needs no reading, the others are loaded as there is room for them.

A journal is dropped when its round is committed or given up, and with its job.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from lifl.core.agent.branch import tell_digests
from lifl.core.agent.branch_runner import BranchRunner, no_room
from lifl.core.agent.outcomes import BranchFailed, Outcome
from lifl.core.agent.quota import Quota
from lifl.core.errors import ArenaFull, RemoteFault
from lifl.core.ids import Key
from lifl.core.protocol import journal as jm
from lifl.core.protocol.commands import OpenBranch
from lifl.core.protocol.contribution import Contribution
from lifl.core.protocol.journal import Stored
from lifl.core.turn import Turn

Update = tuple[Key, Contribution]
LOADS_MAX = 4
"""Stored updates of a branch that are read at a time."""


class Journal:
    """The books of all journals of a node, by job and epoch; and the updates that are being loaded from them."""

    def __init__(self, turn: Turn, quota: Quota) -> None:
        self._turn = turn
        self._quota = quota
        self._stored: dict[int, dict[int, dict[str, Stored]]] = {}
        self._loading: dict[Key, BranchRunner] = {}

    # ---- what is stored ----------------------------------------------------------------------------------------------

    def adopt(self, number: int, epoch: int, stored: Iterable[Stored]) -> None:
        """Take up what an earlier life has left: of a client that is there twice the last one counts."""
        self._stored.setdefault(number, {}).setdefault(epoch, {}).update({each.client: each for each in stored})

    def store(self, number: int, epoch: int, key: Key) -> None:
        """Have a sealed update written; `UpdateStored` follows."""
        self._turn.emit(jm.StoreUpdate(number, epoch, key.pack()))

    def note(self, number: int, epoch: int, member: Contribution, place: int) -> None:
        """Note that an update is on the disk."""
        self.adopt(number, epoch, [Stored(member.client, member.weight, member.metrics, place)])

    def jobs(self) -> list[int]:
        """Return the jobs that have something stored."""
        return list(self._stored)

    def has(self, number: int) -> bool:
        """Return whether anything of a job is stored."""
        return number in self._stored

    def of(self, number: int, epoch: int) -> dict[str, Stored]:
        """Return what is stored for an epoch, by client."""
        return dict(self._stored.get(number, {}).get(epoch, {}))

    def epochs(self, number: int) -> list[int]:
        """Return the epochs of a job for which something is stored."""
        return list(self._stored.get(number, {}))

    def joined(
        self,
        order: OpenBranch,
        durable: bool,
        updates: list[Update],
        members: list[Contribution],
        live: Collection[int],
    ) -> tuple[list[Update], list[Contribution], list[Stored]]:
        """Join what is sealed for an epoch with what is stored; return both, and what is on the disk alone.

        Where updates are stored before they are accepted, those in the arena that are not stored were not: they are
        freed.  Journals of earlier epochs are dropped, but for those that are `live` (a model may still be written to a
        checkpoint), and so is what an `order` leaves out.
        """
        number = order.number
        for epoch in self.epochs(number):
            if epoch < order.epoch and epoch not in live:
                self.drop(number, epoch)
        self.drop(number, order.epoch, frozenset(order.without))
        if not durable:
            return updates, members, []
        stored = self.of(number, order.epoch)
        lost = {member.client: key for key, member in updates if member.client not in stored}
        for key in lost.values():
            self._quota.free(key)
        updates = [update for update in updates if update[1].client not in lost]
        here = {member.client: member for member in members if member.client not in lost}
        alone = [each for client, each in stored.items() if client not in here]
        here |= {each.client: Contribution(each.client, each.weight, each.metrics) for each in alone}
        return updates, list(here.values()), alone

    # ---- what is dropped ---------------------------------------------------------------------------------------------

    def drop(self, number: int, epoch: int, clients: Collection[str] | None = None) -> None:
        """Forget what is stored for an epoch, of these clients only if they are given."""
        stored = self._stored.get(number, {}).get(epoch, {})
        gone = [client for client in stored if clients is None or client in clients]
        if clients is not None and (not gone or len(gone) < len(stored)):
            places = tuple(stored.pop(client).place for client in gone)
            if places:
                self._turn.emit(jm.DropUpdates(number, epoch, places))
            return
        self._turn.emit(jm.DropUpdates(number, epoch))
        if number in self._stored:
            self._stored[number].pop(epoch, None)
            if not self._stored[number]:
                del self._stored[number]

    def drop_place(self, number: int, epoch: int, place: int) -> None:
        """Forget an update that was written for a branch which is gone."""
        self._turn.emit(jm.DropUpdates(number, epoch, (place,)))

    def drop_job(self, number: int) -> None:
        """Forget all that is stored for a job."""
        for epoch in self.epochs(number):
            self.drop(number, epoch)

    # ---- what is loaded ----------------------------------------------------------------------------------------------

    def load_waiting(self, runner: BranchRunner) -> list[Outcome]:
        """Have stored updates of a branch read, as far as there is room for them and for what their tasks make."""
        branch = runner.branch
        while branch.stored and len(branch.loading) < LOADS_MAX:
            stored = branch.stored[0]
            try:
                key = runner.room_for(branch.loading, stored)
            except ArenaFull as full:
                return no_room(runner, full)
            branch.stored.popleft()
            self._loading[key] = runner
            self._turn.emit(jm.LoadUpdate(runner.job, branch.epoch, stored.place, key.pack()))
        return []

    def reader_of(self, key: Key) -> BranchRunner:
        """Return the branch that an update is being loaded for.  Raise `RemoteFault` when none is."""
        if key not in self._loading:
            raise RemoteFault(f"the journal speaks of {key}, which is not being loaded")
        return self._loading[key]

    def loaded(self, key: Key, error: str, lives: bool) -> list[Outcome]:
        """Take an update that was read, if its branch `lives`; one that cannot be fails the attempt at the round."""
        runner = self._loading.pop(key)
        stored = runner.branch.loading.pop(key)
        if error or not lives:
            self._quota.free(key)
        if not lives:
            return []
        self._turn.touch(runner.job)
        if error:
            text = f"the stored update of client {stored.client!r} cannot be read: {error}"
            return [BranchFailed(runner.job, runner.branch, text, retry=True)]
        tell_digests(self._turn, runner.job, runner.branch, self._quota.members(key))
        runner.branch.unfed.append((key, None))
        return [*runner.feed_waiting(), *self.load_waiting(runner)]

    def problems(self) -> Iterable[str]:
        """Yield what is wrong with the books, a sentence each."""
        for number, epochs in self._stored.items():
            if not epochs:
                yield f"job {number} has no journal, and stands among those that have"
        for key, runner in self._loading.items():
            if key not in runner.branch.loading:
                yield f"{key} is being loaded, and its branch {runner.branch.number} does not wait for it"
