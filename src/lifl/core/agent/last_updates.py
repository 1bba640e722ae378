"""The last updates of a round, which the top goes along with while they arrive.

When the updates in flight are all that the running top still lacks, the gateway is asked how far each is, and the top
is told: so it has made most of the model by the time that the last byte is there.  It is given an object, too, in which
to sum up what it has, where the arena has room for that.
"""

from __future__ import annotations

from itertools import islice

from lifl.core import effects as fx
from lifl.core.agent.branch import Branch
from lifl.core.agent.task_outputs import TaskOutputs
from lifl.core.agent.task_table import worker_of
from lifl.core.ids import Key
from lifl.core.planning.tree import TaskState
from lifl.core.protocol.commands import Grant
from lifl.core.protocol.gateway import FollowUpdate
from lifl.core.protocol.worker import Arriving
from lifl.core.turn import Turn

FOLLOW_BYTES_MIN = 16 * 1024 * 1024
"""A smaller update is read in half a millisecond (at the 33 GB/s of a fold): the top just waits for it."""


class LastUpdates:
    """Follows what the top of one branch still lacks."""

    def __init__(self, branch: Branch, update_bytes: int, turn: Turn, outputs: TaskOutputs) -> None:
        self._branch = branch
        self._outputs = outputs
        self._followable = branch.top and update_bytes >= FOLLOW_BYTES_MIN
        self._turn = turn

    def follow(self) -> None:
        """Have the gateway tell how far the updates are that are all the top lacks, and tell the top of them."""
        if not self._followable:
            return
        lacking = self._lacking()
        new = [(key, grant) for key, grant in lacking if key not in self._branch.followed]
        for key, grant in new:
            self._branch.followed[key] = 0
            if not grant.direct:  # of what a client writes itself the gateway knows nothing
                self._turn.emit(FollowUpdate(grant.conn, key.pack()))
        if new:
            self._tell_top(lacking)

    def progress(self, key: Key, received_bytes: int) -> None:
        """Tell the top that it may make so much of the model, once something of each update is there."""
        self._branch.followed[key] = received_bytes
        lacking = self._lacking()
        if lacking and all(self._branch.followed.get(key) for key, _ in lacking):
            self._tell_top(lacking)

    def _tell_top(self, lacking: list[tuple[Key, Grant]]) -> None:
        top, sums = self._branch.tree.root, self._outputs.sums()
        updates = tuple((key.pack(), grant.weight, self._branch.followed.get(key, 0)) for key, grant in lacking)
        message = Arriving(top.address, top.attempt, updates, b"" if sums is None else sums.pack())
        self._turn.emit(fx.SendWorker(worker_of(top), message))

    def _lacking(self) -> list[tuple[Key, Grant]]:
        """Return the updates in flight, the oldest first, with which the running top would have all; else none."""
        branch, top = self._branch, self._branch.tree.root
        lacking = top.expect - len(top.inputs)
        if not branch.top or top.state is not TaskState.RUNNING or lacking != top.updates - top.taken or branch.unfed:
            return []
        found = list(islice(branch.in_flight.items(), lacking))
        return found if len(found) == lacking else []
