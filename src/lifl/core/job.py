"""A training job: a sequence of rounds, each of which commits one new model.

The job decides what happens to clients, updates, tasks and objects; it does nothing itself.  What it wants done it
hands to `Services` (the engine): effects in order, allocations at once.  Rounds overlap in one place: while the
checkpoint of a round is being written, the next round is open already; it cannot commit before its predecessor.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import Any, Protocol

from lifl.core import effects as fx
from lifl.core import messages as m
from lifl.core.aggregation import Aggregation, Orphan
from lifl.core.config import JobConfig
from lifl.core.errors import ArenaFull, Refused
from lifl.core.ids import Key, Kind, epoch_of
from lifl.core.members import Member, pack_member
from lifl.core.memory import Memory
from lifl.core.round import Phase, Round
from lifl.core.schema import Layout
from lifl.core.tree import Task, TaskState, Tree

ROUNDS_REMEMBERED = 16
"""Committed rounds whose members are kept in memory, to answer clients that come back late."""


class Services(Protocol):
    """What a job needs of the engine."""

    memory: Memory

    def emit(self, effect: fx.Effect) -> None: ...

    def open_address(self, job: Job, task: Task) -> int: ...

    def close_address(self, address: int) -> None: ...

    def place(self, job: Job, task: Task, served: int) -> None: ...

    def pid_of(self, worker: int) -> int: ...

    def abandon(self, job: Job, task: Task, outputs: list[Key]) -> None: ...


class Job:
    """One job on one node."""

    def __init__(
        self,
        number: int,
        config: JobConfig,
        layout: Layout,
        states: tuple[str, ...],
        folder: str,
        services: Services,
    ) -> None:
        self.number = number
        self.config = config
        self.name = config.job.name
        self.layout = layout
        self.state_names = states
        self.folder = folder
        self.services = services
        self.status = "queued"
        self.reason = ""
        self.present: dict[str, int] = {}
        self.committed = -1  # the last committed round; 0 is the initial model
        self.attempt = 1
        self.model: Key | None = None
        self.model_round = 0
        self.states: dict[str, Key] = {}
        self.pins: Counter[Key] = Counter()
        self.doomed: set[Key] = set()
        self.round: Round | None = None
        self.saving: list[Round] = []
        self.counted: dict[int, frozenset[str]] = {}
        self.metrics: dict[str, float] = {}
        self.orphans: list[Orphan] = []
        self.loading: Task | None = None
        self.aggregation = Aggregation(self)

    # ---- the arena ---------------------------------------------------------------------------------------------

    @property
    def acc_bytes(self) -> int:
        """The bytes of a partial's tensors."""
        return self.layout.accumulator_bytes

    def bytes_min(self) -> int:
        """What a round of this job needs of the arena at the least, pages rounded up: `lifl submit` refuses beyond it.

        The old and the new model with the rule's states, the partial of a round that is being saved, the partials of
        one path of the tree, the updates of one leaf.
        """
        page = 4096
        goal = self.config.selection.clients_per_round
        tree = Tree(goal, self.config.aggregation.fan_in, self.config.aggregation.middle_fan_in)
        meta = goal * m.MEMBER_BYTES_MAX
        model = 2 * (self.layout.data_bytes + len(self.state_names) * self.acc_bytes + page)
        partials = (tree.partials_held_max() + 2) * (self.acc_bytes + meta + page)
        updates = min(goal, self.config.aggregation.fan_in) * (self.layout.data_bytes + m.MEMBER_BYTES_MAX + page)
        return model + partials + updates

    def alloc_model(self, epoch: int, state_names: tuple[str, ...]) -> tuple[Key, dict[str, Key]]:
        """A model object and those of the rule's states; all or nothing (`ArenaFull`)."""
        memory = self.services.memory
        got: list[Key] = []
        try:
            got.append(memory.alloc(Kind.MODEL, self.number, epoch, self.layout.data_bytes))
            for _ in state_names:
                got.append(memory.alloc(Kind.STATE, self.number, epoch, self.acc_bytes))
        except ArenaFull:
            for key in got:
                memory.free(key)
            raise
        return got[0], dict(zip(state_names, got[1:], strict=True))

    def free_model(self) -> None:
        """Lets the current model and states go, each when nobody reads it any more."""
        for key in (*self.states.values(), *([self.model] if self.model else [])):
            if self.pins[key]:
                self.doomed.add(key)
            else:
                self.services.memory.free(key)
        self.states, self.model = {}, None

    def unpin(self, key: Key) -> bool:
        """A reader of a model or state object is through; returns whether it was one of this job's."""
        if not self.pins[key]:
            return False
        self.pins[key] -= 1
        if not self.pins[key]:
            del self.pins[key]
            if key in self.doomed:
                self.doomed.remove(key)
                self.services.memory.free(key)
        return True

    def drop_sending_pins(self) -> None:
        """The gateway is gone: only the checkpoints being written still read models."""
        writing = Counter(key for r in self.saving if r.checkpoint for key in r.checkpoint.inputs)
        for key in list(self.pins):
            while self.pins[key] > writing[key]:
                self.unpin(key)

    # ---- the start -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Loads the last committed model (or the initial one), once the arena has room for the job."""
        if not self.services.memory.reserve(self.number, self.bytes_min()):
            return
        # Before the first commit there is no state yet: the rule begins with its own initial values.
        states = self.state_names if self.committed > 0 else ()
        try:
            self.model, self.states = self.alloc_model(epoch_of(max(self.committed, 0), 0), states)
        except ArenaFull:
            self.services.memory.release(self.number)
            return
        self.status = "loading"
        self.model_round = max(self.committed, 0)
        self.loading = self.file_task("load")

    def file_task(self, role: str) -> Task:
        """A task that reads or writes files, given to a worker."""
        task = Task(0, role, 0)
        task.move(TaskState.OPEN)
        task.address = self.services.open_address(self, task)
        task.move(TaskState.PLACING)
        self.services.place(self, task, -1)
        return task

    def path_of(self, number: int) -> str:
        """The checkpoint of a committed round; 0 is the initial model."""
        return f"{self.folder}/round-{number:05d}.safetensors"

    def state_path_of(self, number: int) -> str:
        """The rule's state beside the checkpoint; empty where there is none."""
        return f"{self.folder}/round-{number:05d}.state.safetensors" if self.state_names and number > 0 else ""

    def loaded(self, now: float) -> None:
        """The model is in the arena: open the gateway for the job, and the next round."""
        self.loading = None
        self.status = "running"
        self.services.emit(fx.OpenSchema(self.name, self.number, self.layout.tensors))
        self.publish("job.running", rounds=self.config.job.rounds)
        if self.committed < 0:
            self.committed = 0
            first = Round(0, 0, self.config.selection, now)
            first.phase = Phase.SAVING
            self.saving.append(first)
            self.aggregation.save(first)
        self.begin_round(now)

    # ---- rounds ----------------------------------------------------------------------------------------------------

    def begin_round(self, now: float) -> None:
        """The round after the last sealed one waits for its clients."""
        self.round = Round(self.model_round + 1, self.attempt, self.config.selection, now)
        self.services.emit(fx.SaveRound(self.name, self.round.number, self.attempt, "open", {}))
        if self.orphans:
            orphans, self.orphans = self.orphans, []
            self.aggregation.adopt(self.round, orphans, now)
        self.try_open(now)

    def try_open(self, now: float) -> None:
        """Opens the waiting round when enough clients are there; selects late ones while it collects."""
        round_ = self.round
        if round_ is None or self.status != "running":
            return
        if round_.phase is Phase.WAITING:
            enough = round_.quorum if now >= round_.deadline_at_s else round_.goal
            if len(self.present) < enough:
                return
            self._open(round_, now)
        if round_.phase is Phase.COLLECTING:
            self._select(round_)

    def _open(self, round_: Round, now: float) -> None:
        round_.move(Phase.COLLECTING)
        round_.opened_at_s = now
        round_.deadline_at_s = now + round_.deadline_s
        aggregation = self.config.aggregation
        round_.tree = Tree(round_.goal, aggregation.fan_in, aggregation.middle_fan_in)
        self.services.memory.start_peak(self.number)
        self._select(round_)
        self.publish("round.opened", round=round_.number, selected=len(round_.selected), goal=round_.goal)

    def _select(self, round_: Round) -> None:
        active = sum(client in self.present or client in round_.accepted for client in round_.selected)
        wanted = round_.target - active
        idle = [client for client in self.present if client not in round_.selected]
        if wanted <= 0 or not idle:
            return
        if len(idle) > wanted:
            # The draw depends on the seed and the round alone, so that a run can be repeated.
            seed = f"{self.config.selection.seed}/{round_.number}/{round_.attempt}/{len(round_.selected)}"
            idle = random.Random(seed).sample(sorted(idle), wanted)
        for client in idle:
            round_.selected[client] = None
            self.tell_selected(client, round_)

    def tell_selected(self, client: str, round_: Round) -> None:
        """Invites a client, with the seconds that are left."""
        left = round_.deadline_at_s - self.now
        self.tell(
            client,
            m.Selected(
                self.name,
                round_.number,
                max(left, 0.0),
                self.layout.tensors,
                self.layout.data_bytes,
                self.config.client.options,
            ),
        )

    now = 0.0  # the clock of the event that is being handled; the engine sets it

    def tick(self, now: float) -> None:
        """The clock has moved: deadlines."""
        round_ = self.round
        if round_ is None or now < round_.deadline_at_s:
            return
        if round_.phase is Phase.WAITING:
            self.try_open(now)
        elif round_.phase is Phase.COLLECTING:
            got = len(round_.accepted)
            if got >= round_.quorum:
                self.publish("round.deadline", round=round_.number, accepted=got)
                self.aggregation.close(round_)
            else:
                self.fail_round(
                    f"deadline of {round_.deadline_s:g} s passed with {got} updates accepted; "
                    f"the quorum is {round_.quorum}"
                )

    def next_timer(self) -> float | None:
        """When `tick` must be called at the latest."""
        round_ = self.round
        if round_ is None or self.status != "running":
            return None
        if round_.phase is Phase.COLLECTING:
            return round_.deadline_at_s
        if round_.phase is Phase.WAITING and round_.quorum < round_.goal and self.now < round_.deadline_at_s:
            return round_.deadline_at_s
        return None

    def model_sealed(self, round_: Round, top: Task, new_states: dict[str, Key]) -> None:
        """The top has made the round's model: save it, and go on with the next round."""
        self.free_model()
        self.model, self.states = top.output, new_states
        self.model_round = round_.number
        round_.move(Phase.SAVING)
        round_.receipt.sealed_s = self.now
        round_.receipt.peak_bytes = self.services.memory.peaks.get(self.number, 0)
        self.saving.append(round_)
        self.round = None
        self.aggregation.save(round_)
        self.attempt = 1
        if round_.number < self.config.job.rounds:
            self.begin_round(self.now)

    def checkpointed(self, round_: Round) -> None:
        """The round's checkpoint is durable; commit in order."""
        round_.saved = True
        while self.saving and self.saving[0].saved and self.status == "running":
            self._commit(self.saving.pop(0))

    def _commit(self, round_: Round) -> None:
        round_.move(Phase.COMMITTED)
        self.committed = round_.number
        fields = self.aggregation.receipt(round_) if round_.number else {}
        path = self.path_of(round_.number)
        if round_.number:
            self.metrics = round_.metrics()
            self.counted[round_.number] = frozenset(round_.accepted)
            self.counted.pop(round_.number - ROUNDS_REMEMBERED, None)
        row = {
            "metrics": round_.metrics(),
            "path": path,
            "receipt": fields,
            "members": sorted(round_.accepted),
        }
        self.services.emit(fx.SaveRound(self.name, round_.number, round_.attempt, "committed", row))
        self.aggregation.forget(round_)
        if not round_.number:
            return
        self.publish(
            "round.committed",
            round=round_.number,
            counted=len(round_.accepted),
            metrics=round_.metrics(),
            path=path,
            receipt=fields,
        )
        for client in round_.accepted:
            self.tell(client, m.Committed(self.name, round_.number, counted=True))
        if round_.number >= self.config.job.rounds:
            self.end("finished", "")

    def fail_round(self, reason: str) -> None:
        """The running round ends without a model; it is tried again, or the job fails."""
        round_ = self.round
        if round_ is None:
            return
        round_.move(Phase.FAILED)
        round_.reason = reason
        self.round = None
        self.aggregation.discard(round_)
        receipt = self.aggregation.receipt(round_)
        row = {"reason": reason, "receipt": receipt}
        self.services.emit(fx.SaveRound(self.name, round_.number, round_.attempt, "failed", row))
        self.publish("round.failed", round=round_.number, reason=reason)
        for client in round_.selected:
            self.tell(client, m.RoundOver(self.name, round_.number, reason))
        if self.attempt < self.config.selection.attempts:
            self.attempt += 1
            self.begin_round(self.now)
        else:
            self.end("failed", f"round {round_.number} failed {self.attempt} times, at last: {reason}")

    def end(self, status: str, reason: str) -> None:
        """The job is over: ``finished``, ``failed`` or ``cancelled``; everything that it held is freed."""
        if self.status in ("finished", "failed", "cancelled"):
            return
        self.status, self.reason = status, reason
        if self.round is not None:
            self.round.move(Phase.FAILED)
            self.aggregation.discard(self.round)
            for client in self.round.selected:
                self.tell(client, m.RoundOver(self.name, self.round.number, f"the job is {status}"))
            self.round = None
        for round_ in self.saving:
            round_.move(Phase.FAILED)
            self.aggregation.discard(round_)
        self.saving = []
        for key, _, _, _ in self.orphans:
            self.services.memory.free(key)
        self.orphans = []
        self._end_loading()
        self.free_model()
        self.services.memory.release(self.number)
        self.services.emit(fx.SaveJob(self.name, status, reason))
        self.services.emit(fx.CloseSchema(self.name))
        for client in list(self.present):
            self.tell(client, m.JobOver(self.name, status, reason))
        self.present = {}
        self.publish("job.over", status=status, reason=reason)

    def _end_loading(self) -> None:
        if self.loading is not None:
            outputs = [*self.states.values(), *([self.model] if self.model else [])]
            self.states, self.model = {}, None
            self.services.abandon(self, self.loading, outputs)
            self.loading = None

    # ---- clients ---------------------------------------------------------------------------------------------------

    def tell(self, client: str, message: m.Message) -> None:
        """Sends a message to a client that is here."""
        conn = self.present.get(client)
        if conn is not None:
            self.services.emit(fx.Tell(conn, message))

    def publish(self, name: str, **fields: Any) -> None:
        """An event of this job."""
        self.services.emit(fx.Publish(name, self.name, fields))

    def join(self, conn: int, client: str, holding: int | None, now: float) -> None:
        """A client takes part (again); one that still holds an update learns what became of it."""
        before = self.present.get(client)
        if before is not None and before != conn:
            text = f"client {client!r} has joined job {self.name!r} from another connection; names must differ"
            self.services.emit(fx.Tell(before, m.Refusal("replaced", "client", text, self.name)))
        self.present[client] = conn
        if self.status in ("finished", "failed", "cancelled"):
            del self.present[client]
            if holding is not None:
                self._tell_fate(conn, client, holding)
            self.services.emit(fx.Tell(conn, m.JobOver(self.name, self.status, self.reason)))
            return
        pending = [r for r in (self.round, *self.saving) if r is not None]
        round_ = next((r for r in pending if r.number == holding), None)
        if holding is not None and round_ is None:
            self._tell_fate(conn, client, holding)
        current = self.round
        if current is not None and current.phase is Phase.COLLECTING and client not in current.accepted:
            # One who holds an update of this round sent it before; it was lost with the machine, so it is asked again.
            again = round_ is current and len(current.selected) < current.target
            if client in current.selected or again:
                current.selected[client] = None
                self.tell_selected(client, current)
        self.try_open(now)

    def _tell_fate(self, conn: int, client: str, number: int) -> None:
        members = self.counted.get(number)
        if number <= self.committed and (members is None or client in members):
            self.services.emit(fx.Tell(conn, m.Committed(self.name, number, counted=members is not None)))
        elif number <= self.committed:
            text = "the round was committed without this update"
            self.services.emit(fx.Tell(conn, m.RoundOver(self.name, number, text)))

    def leave(self, client: str, conn: int, now: float) -> None:
        """A client is gone; another may be selected in its place."""
        if self.present.get(client) == conn:
            del self.present[client]
            self.try_open(now)

    def check_admit(self, client: str, number: int) -> bool:
        """Whether an update may come now; False: it is accepted already.  Raises `Refused`."""
        round_ = self.round
        known = (r for r in (round_, *self.saving) if r is not None and r.number == number)
        if any(client in r.accepted for r in known) or client in self.counted.get(number, ()):
            return False
        where = f"round {number} of job {self.name!r}"
        if self.status != "running" or round_ is None or number < round_.number:
            raise Refused("round-over", "round", f"{where} is over; wait for the next selection")
        if number > round_.number:
            raise Refused("wrong-round", "round", f"{where} has not begun: the job is at round {round_.number}")
        if client not in round_.selected:
            raise Refused("not-selected", "client", f"client {client!r} is not selected for {where}; wait for it")
        if round_.phase is not Phase.COLLECTING:
            raise Refused("round-over", "round", f"{where} takes no more updates; wait for the next selection")
        return True

    def admit(self, member: Member) -> tuple[Round, Key, bytes]:
        """A slot for the update of a client that `check_admit` let pass.  Raises `ArenaFull`."""
        round_ = self.round
        assert round_ is not None
        packed = pack_member(member)
        key = self.services.memory.alloc(
            Kind.UPDATE, self.number, round_.epoch, self.layout.data_bytes, m.MEMBER_BYTES_MAX, self.number
        )
        round_.inflight[member.client] = (key, member)
        try:
            self.aggregation.open_leaves(round_)
        except ArenaFull:
            del round_.inflight[member.client]
            self.services.memory.free(key)
            raise
        return round_, key, packed

    def sealed(self, round_: Round, client: str, received_bytes: int, copied_bytes: int) -> None:
        """An update in flight is sealed.  Only now is its client told ACCEPTED."""
        key, _ = round_.inflight[client]
        if round_.phase is not Phase.COLLECTING:
            del round_.inflight[client]
            self.services.memory.free(key)
            self.tell(
                client,
                m.RoundOver(self.name, round_.number, "the round closed before this update was complete"),
            )
            return
        round_.receipt.received_bytes += received_bytes
        round_.receipt.copied_bytes += copied_bytes
        round_.accept(client, self.now)
        self.tell(client, m.Accepted(self.name, round_.number))
        self.publish("update.accepted", round=round_.number, client=client)
        self.aggregation.feed_waiting(round_)
        if len(round_.accepted) >= round_.goal:
            self.aggregation.close(round_)

    def aborted(self, round_: Round, client: str) -> None:
        """An update in flight will not come."""
        key, _ = round_.inflight.pop(client)
        self.services.memory.free(key)
        if round_.phase is Phase.COLLECTING:
            self.aggregation.shut_leaves(round_)
