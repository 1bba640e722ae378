"""Copies of committed models between nodes: fetched part by part, the model and each of the rule's states.

A node that is to keep a copy fetches what the coordinator's node has just made, and has it written as a file; a node
that comes to coordinate fetches the last committed model from one that has a copy.  Either way what came is used when
all of it is there, and freed when any of it failed: the coordinator decides what is tried next.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from lifl.core.agent.file_tasks import FileTasks
from lifl.core.agent.model_slot import ModelSlot, SlotState
from lifl.core.agent.outcomes import FileFailed, ModelLoaded, Outcome
from lifl.core.agent.quota import Quota
from lifl.core.agent.replica_spec import ReplicaSpec
from lifl.core.errors import ArenaFull
from lifl.core.ids import Key, epoch_of, round_of
from lifl.core.limits import TEXT_CHARS_MAX
from lifl.core.protocol import commands as o
from lifl.core.protocol import gateway as gm
from lifl.core.turn import Turn

NOT_OWN = "its files are not to be below the job's own folder, where this node keeps copies"


def own_files(spec: ReplicaSpec, order: o.CopyModel | o.ServeCopy) -> bool:
    """Return whether all files of an order are in the job's own folder, below this node's: no word writes elsewhere."""
    parts = [path.split("/") for path in (order.path, order.state_path) if path]
    return all(len(each) == 2 and each[0] == spec.name and each[1].strip(".") for each in parts)


class Coming(NamedTuple):
    """What is being fetched: `order` is None where the job's own model is; `left` has not come yet."""

    order: o.CopyModel | None
    keys: list[Key]
    left: set[Key]
    faults: list[str]


class Copies:
    """Those of one job on this node; its file tasks write what has come, and free it."""

    def __init__(self, spec: ReplicaSpec, slot: ModelSlot, turn: Turn, quota: Quota, files: FileTasks) -> None:
        self._spec = spec
        self._slot = slot
        self._turn = turn
        self._quota = quota
        self._files = files
        self._coming: dict[int, Coming] = {}  # by epoch
        self.kept: dict[int, list[Key]] = {}  # by epoch: what is served until all copies of it are there

    def has(self, key: Key) -> bool:
        """Return whether an object is being fetched for a copy."""
        return any(key in coming.left for coming in self._coming.values())

    def copy(self, order: o.CopyModel) -> None:
        """Begin to fetch what is to be copied, unless that is under way."""
        if order.epoch in self._coming:
            return
        if not own_files(self._spec, order):
            self._turn.report(o.CopyFailed(order.number, order.epoch, NOT_OWN))
            return
        try:
            model, states = self._slot.alloc(order.epoch, self._spec.state_names if order.state_path else ())
        except ArenaFull as full:
            self._turn.report(o.CopyFailed(order.number, order.epoch, str(full)[:TEXT_CHARS_MAX]))
            return
        self._fetch(order, order.epoch, order.source, [model, *states.values()])

    def load(self, source: str) -> None:
        """Begin to fetch the job's model, and states, into the slot."""
        self._fetch(None, epoch_of(self._slot.round, 0), source, self._slot.keys())

    def _fetch(self, order: o.CopyModel | None, epoch: int, source: str, keys: list[Key]) -> None:
        self._coming[epoch] = Coming(order, keys, set(keys), [])
        for part, key in enumerate(keys):
            self._turn.emit(gm.Fetch(key.pack(), source, self._spec.name, round_of(epoch) + 1, part))

    def fetched(self, key: Key, error: str) -> list[Outcome]:
        """Note that a part is here, or will not come; return what follows."""
        epoch, coming = next(item for item in self._coming.items() if key in item[1].left)
        coming.left.discard(key)
        if error:
            coming.faults.append(error)
        if coming.left:
            return []
        del self._coming[epoch]
        if not coming.faults:
            if coming.order is None:
                return [ModelLoaded(self._spec.number)]
            self._files.copy(coming.order, coming.keys)
            return []
        text = f"the model could not be fetched: {coming.faults[0]}"
        if coming.order is None:
            return [FileFailed(self._spec.number, text)]
        for each in coming.keys:
            self._quota.free(each)
        self._turn.report(o.CopyFailed(self._spec.number, epoch, text[:TEXT_CHARS_MAX]))
        return []

    def gateway_lost(self) -> list[Outcome]:
        """End all fetches: the gateway's process has ended."""
        keys = [key for coming in self._coming.values() for key in coming.left]
        return [outcome for key in keys for outcome in self.fetched(key, "the gateway ended")]

    # ---- what is served ----------------------------------------------------------------------------------------------

    def keep(self, epoch: int) -> None:
        """Serve the current model and states until `release`, also when others have taken their place."""
        self.kept[epoch] = keys = self._slot.keys()
        self._slot.pin(keys)

    def release(self, epoch: int) -> None:
        """Serve them no longer."""
        for key in self.kept.pop(epoch, ()):
            self._slot.unpin(key)

    def part(self, round_: int, part: int) -> Key | None:
        """Return the object that another node wants a copy of, if it is here."""
        kept = next((keys for epoch, keys in self.kept.items() if round_of(epoch) == round_), None)
        here = self._slot.round == round_ and self._slot.state is SlotState.READY
        keys = kept if kept is not None else self._slot.keys() if here else []
        return keys[part] if part < len(keys) else None

    def pinned(self) -> Counter[Key]:
        """Return the objects that are kept, each as often."""
        return Counter(key for keys in self.kept.values() for key in keys)

    # ---- the end -----------------------------------------------------------------------------------------------------

    def close(self) -> list[Key]:
        """Give all up; return what the gateway is still at: whoever it tells of that frees it."""
        for epoch in list(self.kept):
            self.release(epoch)
        at_gateway: list[Key] = []
        for coming in self._coming.values():
            if coming.order is None:
                self._slot.take()
            for key in coming.keys:
                if key in coming.left:
                    at_gateway.append(key)
                else:
                    self._quota.free(key)
        self._coming = {}
        return at_gateway

    def problems(self) -> Iterable[str]:
        """Yield what is wrong with the books, a sentence each."""
        if not self.pinned() <= self._slot.pins:
            yield f"job {self._spec.name!r} keeps a model for copies that is not pinned"
