"""The engine's last events, with what each led to, and the state that the first of them met.

The log is two segments of `SEGMENT_EVENTS` events, more where the state is large (`EventLog`); when the second is full
it becomes the first, and the engine's state is copied.  An event is kept with its time, with what the arena answered
while it was handled (the one thing that a decision depends on besides), and with the *shape* of each effect.
So the log can be written out, and replayed to the same effects by any machine: `Recording.replay`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from lifl.core import effects as fx
from lifl.core import snapshot
from lifl.core.errors import ArenaFull, LocalFault, RemoteFault
from lifl.core.events import FromNode, FromWorker
from lifl.core.ids import Key, Kind
from lifl.core.object_store import ObjectStore
from lifl.core.protocol import gateway as gm
from lifl.core.protocol.contribution import Contribution

SEGMENT_EVENTS = 2048
SEGMENT_EVENTS_MAX = 8192
STORY_LINES_MAX = 24
FORMAT = 1
Shape = tuple[Any, ...] | msgspec.Struct
_FULL, _DAMAGED = "arena-full", "damaged"
_NOT_KEPT: deque[Any] = deque(maxlen=0)
"""Where the answers go that the arena gives between events."""


class Entry(NamedTuple):
    """One event: when, what, what the arena answered meanwhile, what came of it."""

    now: float
    event: Any
    answers: list[Any]
    shapes: tuple[Shape, ...]


SHAPES: Mapping[type, Callable[[Any], Shape]] = {
    gm.TellClient: lambda effect: ("TellClient", effect.conn, memoryview(effect.message).nbytes),
    gm.JobSchema: lambda effect: ("JobSchema", effect.job),
    fx.SendWorker: lambda effect: ("SendWorker", effect.worker, type(effect.message).__name__),
    fx.SendNode: lambda effect: ("SendNode", effect.node, type(effect.order).__name__),
    fx.SendCoordinator: lambda effect: ("SendCoordinator", type(effect.report).__name__),
    fx.SaveRound: lambda effect: ("SaveRound", effect.job, effect.round, effect.attempt, effect.status),
    fx.SaveEvaluation: lambda effect: ("SaveEvaluation", effect.job, effect.round, effect.attempt),
    fx.SaveConfig: lambda effect: ("SaveConfig", effect.job),
    fx.SavePlan: lambda effect: ("SavePlan", effect.job, effect.round, effect.attempt),
    fx.Publish: lambda effect: ("Publish", effect.name, effect.job),
}
"""What is kept of the effects that carry much, or something that the node completes; the others are kept whole."""


def shape(effect: Any) -> Shape:
    """Return what tells an effect from others without the bulk that it may carry: the effect itself, if it is small."""
    short = SHAPES.get(type(effect))
    return effect if short is None else short(effect)


class RecordingStore:
    """The arena as the engine sees it; what it answers is kept, for the event that is being handled."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self.answers: list[Any] | deque[Any] = []

    @classmethod
    def blank(cls) -> ReplayStore:
        """Return what stands for it in a copy of the engine."""
        return ReplayStore()

    @property
    def free_bytes(self) -> int:
        """Bytes in no object."""
        answer = self._store.free_bytes
        self.answers.append(answer)
        return answer

    @property
    def used_bytes(self) -> int:
        """Bytes of live objects."""
        answer = self._store.used_bytes
        self.answers.append(answer)
        return answer

    def alloc(
        self, kind: Kind, job: int, epoch: int, data_bytes: int, meta_bytes: int = 0, slab: Hashable | None = None
    ) -> Key:
        """Return a new object.  Raise `ArenaFull`."""
        try:
            key = self._store.alloc(kind, job, epoch, data_bytes, meta_bytes, slab)
        except ArenaFull as full:
            self.answers.append((_FULL, str(full)))
            raise
        self.answers.append(key)
        return key

    def free(self, key: Key) -> None:
        """Free an object."""
        self._store.free(key)

    def sealed(self, key: Key) -> bool:
        """Return whether the object is complete."""
        answer = self._store.sealed(key)
        self.answers.append(answer)
        return answer

    def extent_bytes(self, key: Key) -> int:
        """Return the bytes that the object takes."""
        answer = self._store.extent_bytes(key)
        self.answers.append(answer)
        return answer

    def close_slab(self, slab: Hashable) -> None:
        """Expect no more objects of this slab."""
        self._store.close_slab(slab)

    def begin_job(self, job: int, owner: str) -> None:
        """Expect objects of this job, which is the owner's."""
        self._store.begin_job(job, owner)

    def end_job(self, job: int) -> None:
        """Expect no more objects of this job."""
        self._store.end_job(job)

    def lend(self, key: Key) -> None:
        """Let a process have the object's segment that may outlive its job."""
        self._store.lend(key)

    def epoch_of(self, key: Key) -> int:
        """Return the epoch that the object was allocated for."""
        answer = self._store.epoch_of(key)
        self.answers.append(answer)
        return answer

    def kind_of(self, key: Key) -> Kind:
        """Return what the object is."""
        answer = self._store.kind_of(key)
        self.answers.append(answer)
        return answer

    def members(self, key: Key) -> list[Contribution]:
        """Return who is in a sealed update or partial.  Raise `RemoteFault` when its record is damaged."""
        try:
            members = self._store.members(key)
        except RemoteFault as fault:
            self.answers.append((_DAMAGED, str(fault)))
            raise
        self.answers.append(members)
        return members


class ReplayStore:
    """An arena that gives the recorded answers, in order."""

    def __init__(self) -> None:
        self.answers: Iterator[Any] = iter(())

    def _next(self, *_arguments: Any) -> Any:
        answer = next(self.answers, None)
        if answer is None:
            raise LocalFault("the replay asks the arena what the recording did not")
        if isinstance(answer, tuple) and len(answer) == 2 and answer[0] in (_FULL, _DAMAGED):
            raise (ArenaFull if answer[0] == _FULL else RemoteFault)(answer[1])
        return answer

    free_bytes = used_bytes = property(_next)
    alloc = sealed = extent_bytes = epoch_of = kind_of = members = _next

    def free(self, key: Key) -> None:
        """Free nothing."""

    def close_slab(self, slab: Hashable) -> None:
        """Close nothing."""

    def begin_job(self, job: int, owner: str) -> None:
        """Begin nothing."""

    def end_job(self, job: int) -> None:
        """End nothing."""

    def lend(self, key: Key) -> None:
        """Lend nothing."""


class Recording(NamedTuple):
    """A log that was written out: the engine's state, and the events that followed."""

    state: snapshot.Snapshot
    entries: list[Entry]

    def pack(self) -> bytes:
        """Return the recording as bytes for a file."""
        return snapshot.pack({"format": FORMAT, "state": self.state.objects, "entries": list(self.entries)})

    @classmethod
    def unpack(cls, data: bytes) -> Recording:
        """Return the recording in a file's bytes.  Raise `RemoteFault` when there is none, or of another version."""
        found = snapshot.unpack(data)
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise RemoteFault(f"this is no recording of format {FORMAT}; replay it with the version that wrote it")
        entries = found.get("entries")
        if not isinstance(entries, list) or not all(isinstance(entry, Entry) for entry in entries):
            raise RemoteFault("the record is damaged: it has no events")
        return cls(snapshot.Snapshot(found.get("state") or []), entries)

    def replayed(self) -> Iterator[tuple[Entry, tuple[Shape, ...]]]:
        """Handle the events again; yield each with the shapes of the effects that it leads to now.

        Raise `RemoteFault` when the state is not that of an engine, `LocalFault` at an event that ends otherwise.
        """
        engine = snapshot.restore(self.state)
        try:
            store: ReplayStore = engine.agent.quota.store
        except AttributeError as error:
            raise RemoteFault(f"the record is damaged: {error}") from error
        for number, entry in enumerate(self.entries):
            store.answers = iter(entry.answers)
            try:
                yield entry, engine.replayed(entry.event, entry.now)
            except (ValueError, TypeError, AttributeError, LookupError) as error:  # an answer to another question
                raise LocalFault(f"event {number}, {entry.event!r:.200}, ends otherwise: {error!r}") from error

    def replay(self) -> int:
        """Handle all events again; return how many.  Raise as `replayed`, and where the effects differ."""
        for number, (entry, shapes) in enumerate(self.replayed()):
            if shapes != entry.shapes:
                raise LocalFault(f"event {number}, {entry.event!r:.200}, led to {entry.shapes}, replayed to {shapes}")
        return len(self.entries)


class EventLog:
    """The last events of one engine; `copy` returns a copy of its state."""

    def __init__(self, store: RecordingStore, copy: Callable[[], snapshot.Snapshot]) -> None:
        self._store = store
        self._copy = copy
        self._segments: list[Recording] = []
        self._room = 0  # events that the newest segment still takes

    def begin(self) -> list[Any]:
        """Begin an event; return the list that the arena's answers go to."""
        if not self._room:
            self._segments = [*self._segments[-1:], Recording(self._copy(), [])]
            self._room = self._segment_events()
        self._room -= 1
        answers: list[Any] = []
        self._store.answers = answers
        return answers

    def _segment_events(self) -> int:
        # A copy takes some 3 µs for each object, and so for each event: it is to stay a small part of the work.  An
        # event takes some 2 kB: the log is to stay a small part of the memory.
        return min(max(SEGMENT_EVENTS, len(self._segments[-1].state.objects)), SEGMENT_EVENTS_MAX)

    def end(self, now: float, event: Any, answers: list[Any], effects: list[fx.Effect]) -> None:
        """Keep an event with what it led to."""
        shapes = tuple([effect if type(effect) not in SHAPES else shape(effect) for effect in effects])
        self._segments[-1].entries.append(Entry(now, event, answers, shapes))
        self._store.answers = _NOT_KEPT

    def recording(self) -> Recording:
        """Return the log, with the state that its first event met."""
        if not self._segments:
            return Recording(self._copy(), [])
        entries = [entry for segment in self._segments for entry in segment.entries]
        return Recording(self._segments[0].state, entries)

    def story(self, event: Any) -> list[str]:
        """Return what the log tells of the keys, addresses and clients of an event, a line each, the last ones."""
        about = names_in(event)
        lines = []
        for entry in self.recording().entries:
            shapes = [each for each in entry.shapes if about & _named_by(each)]
            if shapes or about & names_in(entry.event):
                told = f" -> {', '.join(map(str, shapes))}" if shapes else ""
                lines.append(f"{entry.now:.6f} {entry.event!r:.160}{told:.160}")
        return lines[-STORY_LINES_MAX:]


def _named_by(each: Shape) -> set[Any]:
    """Return all that a shape may name: its values, and the keys in one of them."""
    values = each if isinstance(each, tuple) else msgspec.structs.astuple(each)
    named = {value for value in values if isinstance(value, int | str | bytes)}
    return named | {key.pack() for value in values if isinstance(value, tuple) for key in value if isinstance(key, Key)}


def names_in(event: Any) -> set[Any]:
    """Return the keys, addresses and clients that an event is about."""
    inner = event.message if isinstance(event, FromNode | FromWorker) else event
    found = (getattr(inner, name, None) for name in ("key", "address", "client"))
    return {value.pack() if isinstance(value, Key) else value for value in found if value is not None}
