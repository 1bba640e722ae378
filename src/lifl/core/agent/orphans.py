"""What an earlier life of the node has left sealed for a job, and which of it a round goes on from."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from lifl.core.agent.found_model import FoundModel, found_model
from lifl.core.agent.quota import Quota
from lifl.core.events import Orphan
from lifl.core.ids import Key, Kind, round_of
from lifl.core.protocol.contribution import Contribution


class Orphans:
    """The sealed updates and partials of one job that no branch has yet; they are in the job's account."""

    def __init__(self, job: int, found: list[Orphan], quota: Quota) -> None:
        self._quota = quota
        self._found = found
        for key, *_ in found:
            quota.adopt(key, job)

    def free(self) -> None:
        """Free all: nothing of it is wanted."""
        for key, *_ in self._found:
            self._quota.free(key)
        self._found = []

    def free_older(self, round_: int) -> None:
        """Free what no round after this one can count."""
        found, self._found = self._found, []
        for orphan in found:
            if round_of(orphan[2]) > round_:
                self._found.append(orphan)
            else:
                self._quota.free(orphan[0])

    def take_models(self, state_names: Sequence[str]) -> FoundModel:
        """Return the model and the states of a session that are to go on; all others are freed."""
        found = found_model(self._found, state_names)
        kept = {found.model, *found.states.values()}
        rest, self._found = self._found, []
        for orphan in rest:
            if orphan[1] not in (Kind.MODEL, Kind.STATE):
                self._found.append(orphan)
            elif orphan[0] not in kept:
                self._quota.free(orphan[0])
        self.free_older(found.round)
        return found

    def leave(self) -> list[Orphan]:
        """Return all that no branch has taken: it is the caller's."""
        found, self._found = self._found, []
        return found

    def take(
        self, epoch: int, without: Collection[str] = ()
    ) -> tuple[list[tuple[Key, Contribution]], list[Key], list[Contribution]]:
        """Return the updates, the partials and all members of an epoch; older ones are freed, later ones stay.

        What has an update of a client in `without` is freed, too: it counts elsewhere.
        A partial may stand beside its own inputs, or one of a lower level: the largest wins, what is in it is freed.
        Any two partials are disjoint or one contains the other, for a task's output contains all of its inputs.
        """
        updates: list[tuple[Key, Contribution]] = []
        partials: list[Key] = []
        members: dict[str, Contribution] = {}
        found, self._found = self._found, []
        elsewhere = frozenset(without)
        for orphan in sorted(found, key=lambda orphan: -len(orphan[3])):
            key, kind, its_epoch, its = orphan
            if its_epoch > epoch:
                self._found.append(orphan)
            elif its_epoch < epoch or not its or any(m.client in members or m.client in elsewhere for m in its):
                self._quota.free(key)
            else:
                if kind is Kind.PARTIAL:
                    partials.append(key)
                else:
                    updates.append((key, its[0]))
                members |= {member.client: member for member in its}
        return updates, partials, list(members.values())
