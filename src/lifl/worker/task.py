"""One aggregation task: which inputs have come, what is folded, and how the output is made.

A leaf folds updates and a middle merges partials into its output object, which is the mean of what came from the
first input on.  Eager tasks fold what has arrived as one batch, once it is worth it; lazy ones wait until all are
there.  A top waits for all its partials and makes the new model (`streaming_model.py`), going along with the last
updates while they arrive.

The seal of the output is the commit point: what a task does before can be lost and repeated, for its inputs
are sealed and are not changed.  An input is counted once: its key is remembered, and the same key again is
ignored.
"""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lifl import failpoints
from lifl.core.errors import LiflError, LocalFault, StaleKey
from lifl.core.ids import Key, Kind, Record
from lifl.core.limits import SUSPECTS_MAX, TEXT_CHARS_MAX
from lifl.core.protocol.contribution import Contribution, pack_contribution, unpack_contributions
from lifl.core.protocol.worker import Arriving, TaskDone, TaskFailed, TaskStart
from lifl.core.schema import ITEM_BYTES, STATE, Segment, end_of, relaid
from lifl.rules import binned, integers, kernels
from lifl.rules.base import NotFinite, Rule, error_text
from lifl.rules.finish import add
from lifl.rules.kernels import Vector, vector
from lifl.rules.load import check_lacking, check_reproducible, is_users, load_rule
from lifl.shm.arena import Arena
from lifl.shm.layout import Entry, ObjectState
from lifl.worker.earlier import input_bytes, input_data, input_weight
from lifl.worker.presence import Presence, Units, added
from lifl.worker.streaming_model import Input, StreamingModel, can_be_in_pieces
from lifl.worker.treatment import Firsts, is_kept

ANY_ATTEMPT = 0
"""The attempt in a record from worker to worker, which does not know its parent's; the daemon's records
carry it.
"""

FOLD_UPDATES_MIN, FOLD_PARTIALS_MIN = 8, 4
"""An eager leaf folds so many inputs, an eager middle so many, or their last ones.  Each fold reads and writes the
accumulator, too, whose numbers take the bytes of two of float32: one input at a time takes five times the memory's time
that the input takes, eight take half as much; and a single first one would only be copied."""

CLIENTS_NAMED_MAX = 8
"""In the text of a failure."""
BOX_RULES = (
    "a user's rule reads its own folder and Python's modules, and may write no file, start no process, open no socket "
    "and signal nobody"
)


class Clock:
    """Sums up the CPU seconds and the wall seconds of this thread within its `with` blocks."""

    def __init__(self) -> None:
        self.cpu_s = 0.0
        self.busy_s = 0.0

    def __enter__(self) -> None:
        self._cpu, self._wall = time.thread_time(), time.monotonic()

    def __exit__(self, *_error: object) -> None:
        self.cpu_s += time.thread_time() - self._cpu
        self.busy_s += time.monotonic() - self._wall


class _Row(NamedTuple):
    """A piece of one input: of an update, or of a partial."""

    vector: Vector
    update: bool
    weight: float


class OpenTask:
    """A task of a worker whose output is not sealed yet.  Raises `ConfigError` when its rule cannot be loaded."""

    def __init__(self, start: TaskStart, arena: Arena) -> None:
        self.start = start
        self.expect = start.expect
        self.output = Key.unpack(start.output)
        self._pid = os.getpid()
        self._arena = arena
        self._started_ns = time.monotonic_ns()
        self._clock = Clock()
        with self._clock:
            self._rule: Rule = load_rule(start.rule, start.options, start.rule_folder)
            if start.places:
                check_lacking(self._rule, start.rule)
            if any(part.dtype == binned.ACCUMULATOR for part in (*start.inputs, *start.outputs)):
                check_reproducible(self._rule, start.rule)
            self._rule.round = start.round
        self._seen: set[Key] = set()
        self._waiting: list[Key] = []
        self._inputs: list[Key] = []
        self._updates: list[bool] = []  # which of the inputs are updates
        self._sums_exactly = any(part.dtype == "int192" for part in (*start.inputs, *start.outputs))
        self._presence = Presence(start.places) if start.places else None
        self._units: list[Units] = []  # of the inputs, where they may lack tensors
        self._weights: list[float] = []
        self._contributions = 0
        self._metas: list[bytes] = []
        self._under_way: dict[Key, tuple[float, int]] = {}
        self._sums: Key | None = None
        self._model: StreamingModel | None = None

    def add(self, record: Record) -> None:
        """Take an input; one that is for another attempt or that came before is ignored."""
        if record.attempt in (ANY_ATTEMPT, self.start.attempt) and record.key not in self._seen:
            self._seen.add(record.key)
            self._waiting.append(record.key)

    def arriving(self, message: Arriving) -> None:
        """Take note of the updates that are under way to this task: their weights, and how far they are."""
        self._under_way = {Key.unpack(key): (weight, nbytes) for key, weight, nbytes in message.updates}
        self._sums = Key.unpack(message.sums) if message.sums else None

    def advance(self) -> TaskDone | None:
        """Do what the arrived inputs allow; return the message when the output has been sealed.

        Raise what the rule raises, `StaleKey` when an input is gone, `LocalFault` when one does not fit.
        """
        complete = len(self._seen) >= self.expect
        top = self.start.role == "top"
        if not complete and top:
            with self._clock:
                self._go_ahead()
            return None
        batch_min = FOLD_UPDATES_MIN if self.start.role == "leaf" else FOLD_PARTIALS_MIN
        if not complete and not (self.start.eager and len(self._waiting) >= batch_min):
            return None
        with self._clock:
            if self._waiting:
                self._take(fold=not top)
            if not complete:
                return None
            if top:
                self._finish()
            self._seal()
        return TaskDone(
            address=self.start.address,
            attempt=self.start.attempt,
            weight=self.weight,
            members=self._contributions,
            inputs=len(self._inputs),
            cpu_s=self._clock.cpu_s,
            busy_s=self._clock.busy_s,
            started_ns=self._started_ns,
        )

    @property
    def weight(self) -> float:
        """Σ of the weights of the inputs taken so far."""
        return float(kernels.total(self._weights))

    def _take(self, fold: bool) -> None:
        """Take what waits into the inputs, and fold it into the output if `fold`."""
        entries = [self._input(key) for key in self._waiting]
        weights = [self._weight(key, entry) for key, entry in zip(self._waiting, entries, strict=True)]
        units = [self._units_of(key) for key in self._waiting]
        updates = [entry.kind == Kind.UPDATE for entry in entries]
        if fold:
            self._fold(self._waiting, updates, weights, units)
        self._units += units
        self._inputs += self._waiting
        self._updates += updates
        self._weights += weights
        self._contributions += sum(entry.contributions for entry in entries)
        self._metas += [bytes(self._arena.meta(key)) for key in self._waiting]
        self._waiting = []

    def _input(self, key: Key) -> Entry:
        entry = self._arena.entry(key)
        start = self.start
        if start.role == "leaf":  # which takes a partial beside updates, where each leaf takes that of the one before
            inputs = start.inputs if entry.kind == Kind.UPDATE else start.outputs
        else:
            inputs = start.model_segments if start.role == "top" and entry.kind == Kind.UPDATE else start.inputs
        needed = input_bytes(entry, inputs, start.model_segments)
        if entry.state != ObjectState.SEALED or entry.data_bytes < needed:
            raise LocalFault(
                f"input {key} ({ObjectState(entry.state).name}, {entry.data_bytes} bytes) is no sealed input of the"
                f" {start.role} task {start.address}, which needs {needed} bytes"
            )
        return entry

    def _weight(self, key: Key, entry: Entry) -> float:
        """Return the weight of an input: exactly, where the sums are so long that they need it."""
        return input_weight(self._arena, key) if self._sums_exactly else entry.weight

    def _units_of(self, key: Key) -> Units:
        """Return what each tensor of an input weighs; empty where updates have all of them."""
        return self._presence.units_of(unpack_contributions(bytes(self._arena.meta(key)))) if self._presence else ()

    def _fold(self, keys: list[Key], updates: list[bool], weights: list[float], units: list[Units]) -> None:
        before = kernels.total(self._weights) if self._weights else 0.0
        whole = kernels.total(self._weights + weights)
        data = [input_data(self._arena, key, self.start.model_segments) for key in keys]
        output = self._arena.data(self.output)
        for index, (source, target) in enumerate(zip(self.start.inputs, self.start.outputs, strict=True)):
            vectors = [vector(view, source if its else target) for view, its in zip(data, updates, strict=True)]
            rows = list(map(_Row, vectors, updates, weights))
            acc = vector(output, target)
            if is_kept(target.dtype):
                if not self._weights:
                    acc[:] = vectors[0]
                continue
            if self._presence is not None:
                self._fold_runs(self._presence, index, acc, rows, units)
                continue
            firsts = self._firsts(index, acc)
            if self._weights:
                firsts.look(acc, before, partial=True)
            else:
                firsts.look(vectors[0], weights[0], partial=not updates[0])
            self._add(target.dtype, acc, rows, before)
            firsts.put_back(whole)

    def _fold_runs(self, presence: Presence, index: int, acc: Vector, rows: list[_Row], units: list[Units]) -> None:
        """Fold a segment of inputs that may lack tensors: each run of it from those that have it."""
        done = added(self._units) if self._units else (0,) * len(self.start.places)
        for run, (before, *weights) in presence.runs(index, slice(0, len(acc)), [done, *units]):
            there = [
                _Row(row.vector[run], row.update, weight) for row, weight in zip(rows, weights, strict=True) if weight
            ]
            if there:
                self._add(self.start.outputs[index].dtype, acc[run], there, before)
            elif not before:  # the memory had another object's numbers
                acc[run] = np.zeros((), acc.dtype)

    def _add(self, dtype: str, acc: Vector, rows: Sequence[_Row], before: float) -> None:
        """Fold updates, and merge partials, into what weighs `before` already."""
        partials, updates = [row for row in rows if not row.update], [row for row in rows if row.update]
        merged = ([row.vector for row in partials], [row.weight for row in partials])
        folded = ([row.vector for row in updates], [row.weight for row in updates])
        done = [before] if before else []
        if dtype in integers.BITS:
            integers.add(acc, *merged, *folded, done)
        elif dtype == binned.ACCUMULATOR:
            binned.add(acc, merged[0], *folded, keep=bool(done))
        else:
            add(self._rule, acc, *merged, *folded, done)

    def _firsts(self, index: int, acc: Vector) -> Firsts:
        start = self.start
        dtype = start.model_segments[index].dtype if start.model_segments else start.inputs[index].dtype
        return Firsts(start.treated, index, acc, dtype)

    def _go_ahead(self) -> None:
        """Make what is possible already, if the updates that are under way are all that is missing.

        They may still go, or hold what is not finite: then this was for nothing, and what went wrong here goes wrong
        again, or not, when all inputs are there.
        """
        if self._presence is not None:  # what an update lacks is told when it is sealed
            return
        under_way = {key: each for key, each in self._under_way.items() if key not in self._seen}
        if not under_way or len(self._seen) + len(under_way) != self.expect or not can_be_in_pieces(self._rule):
            return
        inputs = {key: Input(weight, update=True) for key, (weight, _) in under_way.items()}
        try:
            entries = {key: self._input(key) for key in self._waiting}
            sealed = {key: Input(self._weight(key, each), each.kind == Kind.UPDATE) for key, each in entries.items()}
            self._make(sealed | inputs, sealed, min(received_bytes for _, received_bytes in under_way.values()))
        except BaseException:  # noqa: BLE001 - a user's rule may raise anything
            self._model = None

    def _make(self, inputs: dict[Key, Input], whole: Collection[Key], received_bytes: int) -> None:
        if self._model is None or self._model.inputs != inputs:
            self._model = StreamingModel(self.start, self._rule, self._arena, inputs, self._sums)
        self._model.advance(whole, received_bytes)

    def _finish(self) -> None:
        weighted = zip(self._weights, self._updates, self._units, strict=True)
        inputs = dict(zip(self._inputs, (Input(*each) for each in weighted), strict=True))
        try:
            self._make(inputs, inputs, end_of(self.start.model_segments))
        except NotFinite as error:
            largest, clients = self._suspects(error)
            text = f"{error}; {_told_of(largest, clients)}"
            suspects = tuple(clients) if len(clients) <= SUSPECTS_MAX else ()
            raise NotFinite(text, error.dtype, error.element, suspects) from None
        self._model = None  # nothing can write to the output any more

    def _suspects(self, error: NotFinite) -> tuple[float, list[str]]:
        """Return the largest number at that place, and who is in its input."""
        found: tuple[float, bytes] = (-1.0, b"")
        for key, update, weight, meta in zip(self._inputs, self._updates, self._weights, self._metas, strict=True):
            data = input_data(self._arena, key, self.start.model_segments)
            for model_part, part in zip(self.start.model_segments, self.start.inputs, strict=True):
                if model_part.dtype == error.dtype:
                    one = vector(data, model_part if update else part)[error.element :][:1]
                    number = binned.mean_of(one, weight) if binned.is_binned(one) else one[0]
                    found = max(found, (abs(float(number)), meta), key=lambda each: each[0])
        return found[0], [member.client for member in unpack_contributions(found[1])]

    def _seal(self) -> None:
        """Seal the states first: a sealed output says that all is there."""
        if os.getpid() != self._pid:
            raise LocalFault("a process that a rule has forked makes no model")
        arena = self._arena
        for name, packed in self.start.new_states.items():
            key = Key.unpack(packed)
            clear_gaps(arena.data(key), relaid(self.start.model_segments, STATE))
            named = pack_contribution(Contribution(name, 1.0, {})) if arena.entry(key).meta_room else b""
            arena.seal(key, self.weight, self._contributions, named)
        clear_gaps(arena.data(self.output), self.start.outputs)
        meta = b"".join(self._metas)
        if self.start.role == "top" and not arena.entry(self.output).meta_room:
            meta = b""
        failpoints.hit("worker.seal.before")
        arena.seal(self.output, self.weight, self._contributions, meta)
        failpoints.hit("worker.seal.after")


def clear_gaps(view: memoryview, segments: tuple[Segment, ...]) -> None:
    """Zero the bytes between segments: an object is sent whole, and they held another object's data."""
    position = 0
    for offset, end in [(s.offset, s.offset + s.count * ITEM_BYTES[s.dtype]) for s in segments] + [
        (len(view), len(view))
    ]:
        view[position:offset] = bytes(offset - position)
        position = end


def _told_of(largest: float, clients: list[str]) -> str:
    if not clients:
        return f"the largest number there is {largest:.3g}"
    said = ", ".join(clients[:CLIENTS_NAMED_MAX]) + (", ..." if clients[CLIENTS_NAMED_MAX:] else "")
    return f"the largest number there, {largest:.3g}, is of {'one of ' if clients[1:] else ''}{said}"


def failure(address: int, attempt: int, error: BaseException, rule: str = "", kind: str = "rule") -> TaskFailed:
    """Return the message for a task that ended with `error`.

    Our own errors say what to do themselves; anything else came from a user's rule or the system, and gets
    the place where it was raised.  A missing input is worth another try: the daemon may have moved it; and so is a
    result that is not finite, for other updates may come.
    """
    if isinstance(error, LiflError):
        text = str(error)
    else:
        text = error_text(error)
        frames = traceback.extract_tb(error.__traceback__)
        if frames and (is_users(rule) or not isinstance(error, OSError)):
            frame = frames[-1]
            text = f"{kind} {rule} raised {text} ({Path(frame.filename).name}:{frame.lineno} in {frame.name})"
        if isinstance(error, PermissionError) and is_users(rule):
            text += f"; {BOX_RULES}"
    if isinstance(error, NotFinite):
        place = (error.dtype, error.element)
        return TaskFailed(address, attempt, text[:TEXT_CHARS_MAX], True, *place, error.suspects)
    return TaskFailed(address, attempt, text[:TEXT_CHARS_MAX], retry=isinstance(error, StaleKey))
