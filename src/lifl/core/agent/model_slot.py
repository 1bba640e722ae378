"""A job's current model on one node, and the rule's state beside it: where they are, who reads them, who waits.

On the coordinator's node the model is read from a file, and each round's top makes the next one.  Another node fetches
it when a client, or a top of its own, wants it.  An object that is read (sent to a client, written to a checkpoint) is
*pinned*; when the next model takes its place it stays until the last reader is through.

What slow clients still read when the next model is there is of no more use to them: the round that starts from it is
closed.  So it has a budget, and those who read beyond it are sent away.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from enum import Enum

from lifl.core.agent.found_model import FoundModel
from lifl.core.agent.quota import Quota
from lifl.core.agent.replica_spec import ReplicaSpec
from lifl.core.errors import ArenaFull, LocalFault
from lifl.core.ids import Key, Kind, epoch_of, round_of
from lifl.core.limits import CONTRIBUTION_BYTES_MAX
from lifl.core.protocol import gateway as gm
from lifl.core.protocol.commands import ModelAt
from lifl.core.protocol.small_models import ModelChanged
from lifl.core.turn import Turn


class SlotState(Enum):
    """Where the current model is; `TRANSITIONS` is the whole of it."""

    WAITING = "waiting"  # for room in the arena, to be read from its file
    VACANT = "vacant"  # of a session of folds: there is none, until its host puts one or a fold makes one
    LOADING = "loading"  # from its file
    READY = "ready"
    ELSEWHERE = "elsewhere"  # at the coordinator's node; fetched when it is wanted
    FETCHING = "fetching"


_S = SlotState
TRANSITIONS: dict[SlotState, frozenset[SlotState]] = {
    _S.WAITING: frozenset({_S.LOADING, _S.VACANT}),
    _S.VACANT: frozenset({_S.READY}),
    _S.LOADING: frozenset({_S.READY, _S.ELSEWHERE}),  # or the copy is none
    _S.READY: frozenset({_S.READY, _S.ELSEWHERE}),  # the next model is sealed here, or somewhere else
    _S.ELSEWHERE: frozenset({_S.FETCHING, _S.LOADING}),  # from there, or from this node's own copy
    _S.FETCHING: frozenset({_S.READY, _S.ELSEWHERE}),  # it is here; or it failed, or came too late
}


class ModelSlot:
    """The current model of one job on this node.  `round` is the model's round, wherever the model is."""

    def __init__(self, spec: ReplicaSpec, round_: int, turn: Turn, quota: Quota) -> None:
        self._spec = spec
        self._turn = turn
        self._quota = quota
        self.round = round_
        begins = spec.path or spec.source or spec.fold
        self.state = SlotState.WAITING if begins else SlotState.ELSEWHERE
        self._model: Key | None = None
        self._copied = False  # the gateway may have a copy
        self.states: dict[str, Key] = {}
        self.fetching: Key | None = None
        self.is_late = False  # what is fetched is not wanted any more
        self.putting: Key | None = None  # the host of a session is writing it
        self.wanting: dict[int, int] = {}  # connections that wait for the model, with the round that they named
        self.is_lent = False  # a client reads it where it is, and may keep the job's memory for longer
        self.borrowing: set[int] = set()  # those of `wanting` that would have it as a loan
        self.pins: Counter[Key] = Counter()
        self.doomed: dict[Key, float] = {}  # replaced, but pinned: since when, the first one first
        self.readers: dict[int, Key] = {}  # by connection: what it is being sent
        self._source = ""  # the gateway that has it

    def move(self, state: SlotState) -> None:
        """Change the state.  Raise `LocalFault`, and change nothing, when the table does not allow it."""
        if state not in TRANSITIONS[self.state]:
            raise LocalFault(f"the model of job {self._spec.name!r} cannot go from {self.state.value} to {state.value}")
        self.state = state

    @property
    def model(self) -> Key | None:
        """The current model, if it is here."""
        return self._model

    @model.setter
    def model(self, key: Key | None) -> None:
        if self._copied and key != self._model:
            self._copied = False
            self._turn.emit(ModelChanged(self._spec.name))
        self._model = key

    @property
    def open(self) -> bool:
        """True from the moment that the job has its room on this node."""
        return self.state is not SlotState.WAITING

    # ---- objects ---------------------------------------------------------------------------------------------------

    def alloc(
        self, epoch: int, state_names: tuple[str, ...], model_meta_bytes: int = 0, state_meta_bytes: int = 0
    ) -> tuple[Key, dict[str, Key]]:
        """Return a new model object and those of the rule's state; all or nothing (`ArenaFull`)."""
        number, layout = self._spec.number, self._spec.layout
        got: list[Key] = []
        try:
            got.append(self._quota.alloc(Kind.MODEL, number, epoch, layout.data_bytes, model_meta_bytes))
            for _ in state_names:
                got.append(self._quota.alloc(Kind.STATE, number, epoch, self._spec.state_bytes, state_meta_bytes))
        except ArenaFull:
            for key in got:
                self._quota.free(key)
            raise
        return got[0], dict(zip(state_names, got[1:], strict=True))

    def keys(self) -> list[Key]:
        """Return the current model's key and its states', as far as they are here."""
        return [*([self.model] if self.model is not None else []), *self.states.values()]

    def free(self) -> None:
        """Let the current model and states go, each when its last reader is through."""
        for key in self.keys():
            if self.pins[key]:
                self.doomed[key] = self._turn.now
            else:
                self._quota.free(key)
        self.model, self.states = None, {}

    def pin(self, keys: list[Key]) -> None:
        """Keep objects until each has been unpinned as often."""
        self.pins.update(keys)

    def unpin(self, key: Key) -> bool:
        """End one reading of an object; return whether it is one of this job's."""
        if not self.pins[key]:
            return False
        self.pins[key] -= 1
        if not self.pins[key]:
            del self.pins[key]
            if key in self.doomed:
                del self.doomed[key]
                self._quota.free(key)
        return True

    def take(self) -> list[Key]:
        """Return the current model's key and its states', which are the caller's from now on."""
        keys = self.keys()
        self.model, self.states = None, {}
        return keys

    def close(self, written: Counter[Key]) -> Counter[Key]:
        """Free all but what is read, or fetched, still; return what of that the gateway is at, each as often.

        `written` are the objects that checkpoints are being written from: these, and the gateway, free the rest.
        """
        self.free()
        for key, readers in self.pins.items():
            self._quota.share(key, readers)
        fetching = [self.fetching] if self.fetching is not None else []
        return self.pins - written + Counter(fetching)

    # ---- from a file, or from a top of this node -------------------------------------------------------------------

    def begin_load(self, with_states: bool) -> None:
        """Allocate what a file is to be read into.  Raise `ArenaFull`."""
        # Before the first commit there is no state yet: the rule begins with its own initial values.
        names = self._spec.state_names if with_states else ()
        self.model, self.states = self.alloc(epoch_of(self.round, 0), names)
        self.move(SlotState.LOADING)

    def replace(self, round_: int, model: Key, states: dict[str, Key]) -> None:
        """Take the model of a round that was sealed here in the place of the one before."""
        self.free()
        self.move(SlotState.READY)
        self.model, self.states, self.round = model, states, round_

    # ---- from the host of a session ----------------------------------------------------------------------------------

    def vacate(self, found: FoundModel) -> None:
        """Begin with what an earlier life of the session has left, if that is anything."""
        self.move(SlotState.VACANT)
        self.round, self.states = found.round, found.states
        if found.model is not None:
            self.move(SlotState.READY)
            self.model = found.model

    def begin_put(self, round_: int, state: str = "") -> Key:
        """Return where the host may write the model that the next fold starts from, or a state of the rule.

        That is the one that it had after `round_` rounds.  Raise `ArenaFull`.
        """
        if state:
            spec, epoch = self._spec, epoch_of(round_, 0)
            key = self._quota.alloc(Kind.STATE, spec.number, epoch, spec.state_bytes, CONTRIBUTION_BYTES_MAX)
            self.round = round_
        else:
            key, _ = self.alloc(epoch_of(self.round, 0), ())
        self.putting = key
        return key

    def put(self, state: str = "") -> None:
        """Take what the host has written in the place of the model before, whose states stay; or as a `state`."""
        if state and self.putting is not None:
            if (before := self.states.get(state)) is not None:
                self._quota.free(before)
            self.states, self.putting = {**self.states, state: self.putting}, None
            return
        states, self.states = self.states, {}
        self.free()
        self.move(SlotState.READY)
        self.model, self.states, self.putting = self.putting, states, None

    # ---- from another node -----------------------------------------------------------------------------------------

    def is_at(self, order: ModelAt) -> None:
        """Note that the current model is another one now, and elsewhere."""
        if order.round == self.round and self.model is not None:
            return
        self.free()
        if self.state is SlotState.READY:
            self.move(SlotState.ELSEWHERE)
        if (order.round, order.source) != (self.round, self._source):
            end_fetch(self)
        self.round, self._source = order.round, order.source

    def forget(self) -> None:
        """Let the current model go: what was not committed may be made anew, and the coordinator says what it is."""
        self.free()
        if self.state is SlotState.READY:
            self.move(SlotState.ELSEWHERE)
        end_fetch(self)
        self.round, self._source = -1, ""

    def fetch(self) -> None:
        """Have the model fetched, if it is elsewhere and the arena has room; else it is tried again."""
        if self.state is not SlotState.ELSEWHERE or not self._source:
            return
        try:
            key, _ = self.alloc(epoch_of(self.round, 0), ())
        except ArenaFull:
            return
        self.move(SlotState.FETCHING)
        self.fetching = key
        self._turn.emit(gm.Fetch(key.pack(), self._source, self._spec.name, self.round + 1))

    def fetched(self, error: str) -> bool:
        """End the fetch, and return whether the model is here now; a newer model may have been made since it began."""
        key, self.fetching = self.fetching, None
        self.is_late = False
        if key is None:
            raise LocalFault(f"job {self._spec.name!r} fetches no model")
        if error or round_of(self._quota.epoch_of(key)) != self.round:
            self._quota.free(key)
            self.move(SlotState.ELSEWHERE)
            return False
        self.move(SlotState.READY)
        self.model = key
        return True

    # ---- clients ---------------------------------------------------------------------------------------------------

    def serve(self) -> None:
        """Grant the model to the connections that wait for it, if it is here."""
        if self.state is not SlotState.READY or self.model is None:
            return
        self._copied |= bool(self.wanting)
        if self.is_lent and self.wanting:
            self._quota.lend(self.model)
        for conn, round_ in self.wanting.items():
            self.pins[self.model] += 1
            lent = conn in self.borrowing and self._quota.loans.begin(self.model, self._spec.number)
            if not lent:
                self.readers[conn] = self.model
            self._turn.emit(gm.ModelGranted(conn, self._spec.name, round_, self.model.pack(), lent))
        self.wanting = {}
        self.borrowing.clear()

    def sent(self, conn: int, key: Key) -> bool:
        """End the reading of a connection, or a loan; return whether the object is one of this job's."""
        if self.readers.get(conn) == key:
            del self.readers[conn]
        return self.unpin(key)

    def old_models(self) -> list[Key]:
        """Return the models that were replaced and that clients still read, the oldest first."""
        read = set(self.readers.values())
        return [key for key in self.doomed if key in read]

    def send_away(self, keys: Iterable[Key]) -> None:
        """End the connections that read these: their memory is free when the gateway says so."""
        wanted = set(keys)
        for conn in [conn for conn, key in self.readers.items() if key in wanted]:
            del self.readers[conn]
            self._turn.emit(gm.HangUp(conn))


def begin_copy(slot: ModelSlot, round_: int, with_states: bool) -> None:
    """Begin to load this node's copy in the place of what is here.  Raise `ArenaFull`, or `LocalFault`: not now."""
    if slot.state is SlotState.READY:
        slot.forget()
    if slot.state is not SlotState.ELSEWHERE:
        raise LocalFault(f"the model of job {slot._spec.name!r} is {slot.state.value}")
    slot.round = round_
    slot.begin_load(with_states)


def end_fetch(slot: ModelSlot) -> None:
    """Let a fetch be: the model is another one, or another node has it; who was asked may never answer."""
    if slot.fetching is not None:
        slot._turn.emit(gm.EndFetch(slot.fetching.pack()))
        slot.is_late = True


def unpin_sent(slot: ModelSlot, written: Counter[Key]) -> None:
    """End all readings but the loans, and those of the checkpoints that are being `written`: the gateway is gone."""
    slot.readers = {}
    for key in list(slot.pins):
        while slot.pins[key] > written[key] + slot._quota.loans.of(key):
            slot.unpin(key)


def over_budget(slot: ModelSlot, budget_bytes: int) -> list[Key]:
    """Return the old models that are beyond the budget, which holds one at the least; the oldest first."""
    old = slot.old_models() if slot.doomed else []
    return old[: max(0, len(old) - max(1, budget_bytes // slot._spec.layout.data_bytes))]
