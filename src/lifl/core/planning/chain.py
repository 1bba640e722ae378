"""The tasks of a fold: links, each of which takes the partial of the one before and the next updates.

Nobody knows how many updates a fold gets, and they come one after the other.  A tree for the most that may come would
hold partials on each of its levels; a chain holds two, that of the last link and that of the next, however many updates
come.  A link has nothing to do until all of its updates are there; then it reads these and the partial in one pass.  So
when the fold is closed, what the last link has is the top's: it makes the model of it in the same pass.  Where the last
update that is expected would fill a link, the first link takes one less: then the last one is the top's, and nothing
but it and the partial before is still to be read when it comes.

**Room.**  The first link is opened together with the second; each other one when the link before it is done, in the
place of that link's input.  Updates may come before their link is open, if the one before is: when that is done the
room of its inputs is free, and nobody else's.  So a fold that has two partials, the updates of one link and its models
goes on to its end.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from lifl.core.errors import LocalFault
from lifl.core.planning.tree import Task, Tree

PARTIALS = 2
"""What a chain has at a time: that of the last link, and the one that is being made."""


class Chain(Tree):
    """The links for at most `updates` updates, `fan_in` to each, and `partials` partials that are there already.

    What is behind the last whole link is the top's, as the partials are where there is no link.  About `expected`
    updates come (0: nobody knows).
    """

    is_chain = True

    def __init__(self, updates: int, fan_in: int, partials: int = 0, expected: int = 0) -> None:
        if updates < 0 or updates + partials < 1:
            raise LocalFault("a chain needs at least one update or partial")
        self.tasks = []
        self.fan_in = fan_in
        self._lacks = int(1 < fan_in <= expected and expected % fan_in == 0)  # so many the first link takes less
        self._links = [self._task("leaf", 0) for _ in range(self._whole(updates))]
        self.root = self._task("top", 1)
        self.adopting = [(self._links or [self.root])[0]] * partials
        for link, after in pairwise([*self._links, self.root]):
            self._join(after, [link])
        self.close(updates)

    def close(self, updates: int) -> list[Task]:
        """Expect exactly `updates` updates, no more than before: what is no whole link's goes to the top."""
        whole = min(self._whole(updates), len(self._links))
        self._tail_from, self._updates = self._behind(whole), updates
        given_up, self._links = self._links[whole:], self._links[:whole]
        for link in given_up:
            link.updates, link.parent, link.children = 0, self.root, []
        for link in self._links:
            link.updates = self.fan_in
        for link in self._links[:1]:
            link.updates -= self._lacks
        self.root.children = self._links[-1:]
        for link in self.root.children:
            link.parent = self.root
        self.root.updates = updates - self._tail_from
        self.takers = [*self._links, self.root]
        self.adopting = [self.takers[0]] * len(self.adopting)
        return self._recount()

    def _whole(self, updates: int) -> int:
        """Return how many links so many updates fill."""
        return (updates + self._lacks) // self.fan_in

    def _behind(self, links: int) -> int:
        """Return the number of the first update behind so many links."""
        return max(0, links * self.fan_in - self._lacks)

    def takers_of(self, updates: int) -> int:
        """See `Tree.takers_of`."""
        links = min(updates, self._tail_from)
        links = -(-(links + self._lacks) // self.fan_in) if links else 0
        return links + (self._tail_from < min(updates, self._updates))

    def close_partials(self, partials: int) -> list[Task]:
        """Expect exactly `partials` partials."""
        del self.adopting[partials:]
        return self._recount()

    def _recount(self) -> list[Task]:
        for task in self.tasks:
            task.adopted = len(self.adopting) if task is self.takers[0] else 0
        return super()._recount()

    def path(self, task: Task) -> Iterator[Task]:
        """Yield the tasks that are open whenever this one is: the top, and beside the first link the second."""
        yield task
        if task is self.takers[0] and len(self._links) > 1 and not self.adopting:
            yield self._links[1]
        if task is not self.root:
            yield self.root

    def opened_for(self, takers: int) -> int:
        """Return how many of `takers`, in order, are to be open when updates come for so many."""
        return takers if takers <= 1 else takers - 1

    def is_idle(self, task: Task) -> bool:
        """Return whether nothing is to come to the task: never, for the room of a link is that of the next one."""
        return False

    def members_max(self, task: Task, most: int) -> int:
        """Return `most`: one partial takes the place of another."""
        return most

    def partials_held_max(self) -> int:
        """Return how many partials are there at a time, the one that is being made among them."""
        return min(PARTIALS, len(self._links)) + max(0, len(self.adopting) - 1)
