"""A training job, as the coordinator runs it: a sequence of rounds, each of which commits one new model.

The job decides who takes part, whose update counts, when a round closes and when it is committed; the agents do the
rest by its orders.  Rounds overlap in one place: while the checkpoint of a round is being written, the next
round is open already; it cannot commit before its predecessor.
"""

from __future__ import annotations

import math
import random
from typing import Any, NamedTuple, Protocol

from lifl.core import effects as fx
from lifl.core.config.job import JobConfig
from lifl.core.coordinator.branches import Parts
from lifl.core.coordinator.round import Phase, Round
from lifl.core.errors import Refused
from lifl.core.fields import Message
from lifl.core.ids import ATTEMPTS_MAX
from lifl.core.limits import ROUNDS_REMEMBERED
from lifl.core.planning.arena_need import round_bytes_min
from lifl.core.protocol import client as cm
from lifl.core.protocol import commands as o
from lifl.core.protocol import gateway as gm
from lifl.core.protocol.contribution import Contribution
from lifl.core.schema import Layout

LOADING_RETRY_S = 0.2
CONNECTIONS_REMEMBERED = 100_000
"""Clients whose newest connection's time is known, the last to connect: ten times a round's most."""
OVER = ("finished", "failed", "cancelled")
TOO_LATE = "the round closed before this update was complete"


class Where(NamedTuple):
    """A client's connection: the node whose gateway it is at, and that gateway's number for it."""

    node: int
    conn: int


class Planned(NamedTuple):
    """Who takes part in a round: the updates of each node, and the node of the top."""

    updates: dict[int, int]
    top: int


class Services(Protocol):
    """What a job needs of the coordinator."""

    def emit(self, effect: fx.Effect) -> None: ...

    def order(self, node: int, order: o.Order) -> None: ...

    def tell(self, where: Where, message: Message) -> None: ...

    def plan(self, job: Job, updates: int) -> Planned: ...

    def gateway_of(self, node: int) -> str: ...

    def over(self, job: Job) -> None: ...

    def has_room(self, nbytes: int) -> bool: ...

    def takes_grants(self, node: int) -> bool: ...

    @property
    def now(self) -> float: ...

    @property
    def home(self) -> int: ...

    @property
    def nodes(self) -> list[int]: ...


class Job:
    """One job."""

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
        self.status = "loading"
        self.reason = ""
        self.present: dict[str, Where] = {}
        self.connected_ns: dict[str, int] = {}  # by client: when its newest connection was made, by its own clock
        self.committed = -1  # the last committed round; 0 is the initial model
        self.attempt = 1
        self.failures = 0  # attempts of this round that failed by themselves
        self.model_round = 0  # the last round whose model is sealed
        self.adopting = False  # an earlier life has left something in the arena
        self.rows: dict[int, tuple[int, str, dict[str, Any]]] = {}  # of rounds that had begun in an earlier life
        self.parts = Parts(self)
        self.round: Round | None = None
        self.saving: list[Round] = []
        self.counted: dict[int, frozenset[str]] = {}
        self.metrics: dict[str, float] = {}

    @property
    def now(self) -> float:
        """The clock at this event."""
        return self.services.now

    def bytes_min(self, partials: int = 0) -> int:
        """What a round of this job needs of an arena at the least, with places for `partials` of other nodes."""
        goal = self.config.selection.clients_per_round
        return round_bytes_min(self.layout, self.config.aggregation, goal, len(self.state_names), partials)

    # ---- the start -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Has the last committed model (or the initial one) loaded."""
        last = max(self.committed, 0)
        path = self.path_of(last) if self.committed >= 0 else self.config.model.path
        self.model_round = last
        self.services.order(self.services.home, self._open_job(path, self.state_path_of(last), self.adopting))

    def _open_job(self, path: str, state_path: str, adopt: bool) -> o.OpenJob:
        return o.OpenJob(
            self.number,
            self.name,
            self.config.aggregation,
            self.config.selection.clients_per_round,
            self.layout.tensors,
            self.state_names,
            self.model_round,
            path,
            state_path,
            adopt,
        )

    def open_at(self, node: int) -> None:
        """Another node is to know of this job."""
        if self.status == "running":
            self.services.order(node, self._open_job("", "", self.parts.recovers_at(node)))
            self.services.order(node, self._model_at())

    def _model_at(self) -> o.ModelAt:
        return o.ModelAt(self.number, self.model_round, self.services.gateway_of(self.services.home))

    def _others(self) -> list[int]:
        return [node for node in self.services.nodes if node != self.services.home]

    def path_of(self, number: int) -> str:
        """The checkpoint of a committed round; 0 is the initial model."""
        return f"{self.folder}/round-{number:05d}.safetensors"

    def state_path_of(self, number: int) -> str:
        """The rule's state beside the checkpoint; empty where there is none."""
        return f"{self.folder}/round-{number:05d}.state.safetensors" if self.state_names and number > 0 else ""

    def opened(self) -> None:
        """The model is in the arena: begin, or go on."""
        self.status = "running"
        self.publish("job.running", rounds=self.config.job.rounds)
        for node in self._others():
            self.open_at(node)
        if self.committed < 0:
            self.committed = 0
            first = Round(0, 0, self.config.selection, self.now)
            first.phase = Phase.SAVING
            self._save(first)
        self.begin_round()

    # ---- rounds ----------------------------------------------------------------------------------------------------

    def resume(self, committed: int, rows: dict[int, tuple[int, str, dict[str, Any]]], adopting: bool) -> None:
        """Goes on after round `committed`; `rows` has the newest (attempt, status, fields) of each round behind it.

        `adopting`: something of an earlier life is sealed in the arena.
        """
        self.committed = committed
        self.adopting = adopting
        self.rows = rows

    def begin_round(self) -> None:
        """The round after the last sealed one waits for its clients, or goes on where an earlier life stopped."""
        number = self.model_round + 1
        attempt, status, fields = self.rows.pop(number, (self.attempt, "new", {}))
        # A later round on several nodes had begun before this one was durable: it begins anew, under another epoch.
        again = status == "failed" or (number > self.committed + 1 and "parts" in fields)
        self.attempt = attempt + again
        round_ = self.round = Round(number, self.attempt, self.config.selection, self.now)
        if status == "open" and not again and (self.adopting or "parts" in fields):
            self.parts.recover(round_, fields)
            return
        self.services.emit(fx.SaveRound(self.name, number, self.attempt, "open", {}))
        self.parts.begun(round_)
        self.try_open()

    def try_open(self) -> None:
        """Opens the waiting round when enough clients are there; selects late ones while it collects."""
        round_ = self.round
        if round_ is None or self.status != "running":
            return
        if round_.phase is Phase.WAITING:
            enough = round_.quorum if self.now >= round_.deadline_at_s else round_.goal
            if len(self.present) < enough:
                return
            try:
                plan = self.services.plan(self, round_.goal)
            except Refused as refused:  # nodes have left: it waits for them
                if round_.reason != refused.text:
                    round_.reason = refused.text
                    self.publish("round.waiting", round=round_.number, reason=refused.text)
                return
            round_.reason = ""
            round_.open(self.now)
            self.parts.open(round_, plan)
            self._select(round_)
            self.publish("round.opened", round=round_.number, selected=len(round_.selected), goal=round_.goal)
        elif round_.phase is Phase.COLLECTING:
            self._select(round_)

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
        left = max(round_.deadline_at_s - self.now, 0.0)
        layout, options = self.layout, self.config.client.options
        if client not in round_.places:
            round_.assign(client, self.present[client].node if client in self.present else 0)
        node = round_.assigned.get(client, 0)
        where = self.present.get(client)
        gateway = self.services.gateway_of(node) if where is not None and node not in (0, where.node) else ""
        tensors, nbytes = layout.tensors, layout.data_bytes
        self.tell(client, cm.Selected(self.name, round_.number, left, tensors, nbytes, options, gateway))

    def tick(self) -> None:
        """The clock has moved: deadlines."""
        round_ = self.round
        if round_ is None:
            return
        if round_.phase is Phase.COLLECTING and self.now >= round_.replan_at_s:
            self.parts.replan(round_)
        if self.now < round_.deadline_at_s:
            return
        if round_.phase is Phase.WAITING:
            self.try_open()
        elif round_.phase is Phase.RECOVERING:
            self.parts.wait_over(round_)
        elif round_.phase is Phase.COLLECTING:
            got = len(round_.accepted)
            if got >= round_.quorum:
                self.publish("round.deadline", round=round_.number, accepted=got)
                self.close(round_)
            else:
                self.fail_round(
                    f"deadline of {round_.deadline_s:g} s passed with {got} updates accepted; "
                    f"the quorum is {round_.quorum}"
                )

    def next_timer(self) -> float:
        """When `tick` must be called at the latest; infinity: not at all."""
        round_ = self.round
        if round_ is None or self.status != "running":
            return math.inf
        if round_.phase is Phase.COLLECTING:
            return min(round_.deadline_at_s, round_.replan_at_s)
        if round_.phase is Phase.RECOVERING and self.now < round_.deadline_at_s:
            return round_.deadline_at_s
        if round_.phase is Phase.WAITING and round_.quorum < round_.goal and self.now < round_.deadline_at_s:
            return round_.deadline_at_s
        return math.inf

    def close_if_complete(self, round_: Round) -> None:
        """Closes the round when its goal is reached."""
        if round_.phase is Phase.COLLECTING and len(round_.accepted) >= round_.goal:
            self.close(round_)

    def close(self, round_: Round) -> None:
        """No more updates count."""
        round_.move(Phase.AGGREGATING)
        self.parts.close(round_)

    def model_sealed(self, report: o.ModelSealed) -> None:
        """The top has made the round's model: save it, and go on with the next round."""
        round_ = self.round
        if round_ is None or round_.epoch != report.epoch:
            return
        self.model_round = round_.number
        round_.move(Phase.SAVING)
        round_.sealed_s = self.now
        round_.parts[0].cost = report.cost
        self.round = None
        for node in self._others():
            self.services.order(node, self._model_at())
        self._save(round_)
        self.attempt, self.failures = 1, 0
        if round_.number < self.config.job.rounds:
            self.begin_round()

    def _save(self, round_: Round) -> None:
        self.saving.append(round_)
        path, state_path = self.path_of(round_.number), self.state_path_of(round_.number)
        self.services.order(self.services.home, o.SaveModel(self.number, round_.epoch, path, state_path))

    def saved(self, report: o.ModelSaved) -> None:
        """The round's checkpoint is durable; commit in order."""
        for round_ in self.saving:
            if round_.epoch == report.epoch:
                round_.saved = True
        while self.saving and self.saving[0].saved and self.status == "running":
            self._commit(self.saving.pop(0))

    def _commit(self, round_: Round) -> None:
        round_.move(Phase.COMMITTED)
        self.committed = round_.number
        receipt = round_.receipt(self.now) if round_.number else {}
        path, metrics = self.path_of(round_.number), round_.metrics()
        if round_.number:
            self.metrics = metrics
            self.counted[round_.number] = frozenset(round_.accepted)
            self.counted.pop(round_.number - ROUNDS_REMEMBERED, None)
        row = {"metrics": metrics, "path": path, "receipt": receipt, "members": sorted(round_.accepted)}
        self.services.emit(fx.SaveRound(self.name, round_.number, round_.attempt, "committed", row))
        for node in round_.nodes:
            self.services.order(node, o.CommitBranch(self.number, round_.epoch))
        if not round_.number:
            return
        counted = len(round_.accepted)
        self.publish(
            "round.committed", round=round_.number, counted=counted, metrics=metrics, path=path, receipt=receipt
        )
        for client in round_.accepted:
            self.tell(client, cm.Committed(self.name, round_.number, counted=True))
        for client in round_.granted:  # still on their way
            self.tell(client, cm.RoundOver(self.name, round_.number, TOO_LATE))
        if round_.number >= self.config.job.rounds:
            self.end("finished", "")

    def node_gone(self, node: int) -> None:
        """A node is dead: what its branch had is asked for again, elsewhere."""
        for client, where in list(self.present.items()):
            if where.node == node:
                del self.present[client]
        if self.round is not None:
            self.parts.node_gone(self.round, node)
        self.try_open()

    def node_leaves(self, node: int) -> None:
        """A node is about to go."""
        if self.round is not None:
            self.parts.node_leaves(self.round, node)

    def branch_sealed(self, report: o.BranchSealed) -> None:
        """A branch's partial is complete."""
        round_ = self._round_at(report.epoch)
        if round_ is not None and report.branch in round_.parts:
            round_.parts[report.branch].cost = report.cost

    def branch_failed(self, report: o.BranchFailed) -> None:
        """A branch cannot be finished."""
        if self.round is not None and self.round.epoch == report.epoch:
            if report.retry:
                self.fail_round(report.text)
            else:
                self.end("failed", report.text)

    def fail_round(self, reason: str) -> None:
        """The running round ends without a model; it is tried again, or the job fails."""
        round_ = self.round
        if round_ is None:
            return
        round_.move(Phase.FAILED)
        round_.reason = reason
        self.round = None
        self.parts.drop(round_)
        row = {"reason": reason, "receipt": round_.receipt(self.now)}
        self.services.emit(fx.SaveRound(self.name, round_.number, round_.attempt, "failed", row))
        self.publish("round.failed", round=round_.number, reason=reason)
        for client in round_.selected:
            self.tell(client, cm.RoundOver(self.name, round_.number, reason))
        self.failures += 1
        if self.failures < self.config.selection.attempts and self.attempt < ATTEMPTS_MAX:
            self.attempt += 1
            self.begin_round()
        else:
            self.end("failed", f"round {round_.number} failed {self.failures} times, at last: {reason}")

    def end(self, status: str, reason: str) -> None:
        """The job is over: ``finished``, ``failed`` or ``cancelled``; everything that it held is freed."""
        if self.status in OVER:
            return
        self.status, self.reason = status, reason
        self.services.over(self)
        for round_ in (self.round, *self.saving):
            if round_ is not None:
                round_.move(Phase.FAILED)
                for client in round_.selected:
                    self.tell(client, cm.RoundOver(self.name, round_.number, f"the job is {status}"))
        self.round, self.saving = None, []
        for node in self.services.nodes:
            self.services.order(node, o.CloseJob(self.number))
        self.services.emit(fx.SaveJob(self.name, status, reason))
        for client in list(self.present):
            self.tell(client, cm.JobOver(self.name, status, reason))
        self.present = {}
        self.publish("job.over", status=status, reason=reason)

    # ---- clients ---------------------------------------------------------------------------------------------------

    def tell(self, client: str, message: Message) -> None:
        """Sends a message to a client that is here."""
        where = self.present.get(client)
        if where is not None:
            self.services.tell(where, message)

    def publish(self, name: str, **fields: Any) -> None:
        """An event of this job."""
        self.services.emit(fx.Publish(name, self.name, fields))

    def join(self, where: Where, client: str, holding: int | None, connected_ns: int) -> None:
        """A client takes part (again); one that still holds an update learns what became of it."""
        before = self.present.get(client)
        # What comes by different nodes may come out of order: the client's own clock tells which connection is newer.
        stale = connected_ns < self.connected_ns.get(client, 0)
        if before is not None and before != where:
            text = f"client {client!r} has joined job {self.name!r} from another connection; names must differ"
            self.services.tell(where if stale else before, cm.Refusal("replaced", "client", text, self.name))
        if stale:
            return
        self.connected_ns.pop(client, None)
        self.connected_ns[client] = connected_ns
        if len(self.connected_ns) > CONNECTIONS_REMEMBERED:
            del self.connected_ns[next(iter(self.connected_ns))]
        if self.status in OVER:
            self._tell_fates(where, client, holding)
            self.services.tell(where, cm.JobOver(self.name, self.status, self.reason))
            return
        self.present[client] = where
        current = self.round
        held = next((r for r in (current, *self.saving) if r is not None and r.number == holding), None)
        if held is None:
            self._tell_fates(where, client, holding)
        if current is not None and current.phase is Phase.COLLECTING and client not in current.accepted:
            # One who holds an update of this round sent it before; it was lost with the machine, so it is asked again.
            again = held is current and len(current.selected) < current.target
            if client in current.selected or again:
                current.selected[client] = None
                self.tell_selected(client, current)
                return  # nobody else is selected for that
        self.try_open()

    def _tell_fates(self, where: Where, client: str, holding: int | None) -> None:
        """`holding` is the oldest round whose update the client still holds; it may hold later ones too."""
        if holding is not None:
            for number in sorted({holding, *(later for later in self.counted if later > holding)}):
                self._tell_fate(where, client, number)

    def _tell_fate(self, where: Where, client: str, holding: int) -> None:
        if holding > self.committed:
            return
        members = self.counted.get(holding)
        if members is None or client in members:
            self.services.tell(where, cm.Committed(self.name, holding, counted=members is not None))
        else:
            text = "the round was committed without this update"
            self.services.tell(where, cm.RoundOver(self.name, holding, text))

    def leave(self, client: str, where: Where) -> None:
        """A client is gone; another may be selected in its place."""
        if self.present.get(client) == where:
            del self.present[client]
            round_ = self.round
            if round_ is not None and client in round_.selected and client not in round_.accepted:
                self.try_open()

    def admit(self, here: Where, event: gm.Admit) -> None:
        """An update is announced: it is granted, or answered.  Raises `Refused`."""
        round_, client, number = self.round, event.client, event.round
        known = (r for r in (round_, *self.saving) if r is not None and r.number == number)
        if any(client in r.accepted for r in known) or client in self.counted.get(number, ()):
            self.services.tell(here, cm.Accepted(self.name, number))
            return
        if self.status == "loading":
            # It comes from an earlier life of the daemon, to which the round is still to be told.
            self.services.tell(here, cm.Busy(self.name, number, LOADING_RETRY_S))
            return
        if round_ is not None and round_.phase is Phase.RECOVERING:
            # A node that is still to come may have this update.
            self.services.tell(here, cm.Busy(self.name, number, LOADING_RETRY_S))
            return
        where = f"round {number} of job {self.name!r}"
        if self.status != "running" or round_ is None or number < round_.number:
            raise Refused("round-over", "round", f"{where} is over; wait for the next selection")
        if number > round_.number:
            raise Refused("wrong-round", "round", f"{where} has not begun: the job is at round {round_.number}")
        if client not in round_.selected:
            raise Refused("not-selected", "client", f"client {client!r} is not selected for {where}; wait for it")
        if round_.phase is not Phase.COLLECTING:
            raise Refused("round-over", "round", f"{where} takes no more updates; wait for the next selection")
        if client in round_.granted:
            # Its first connection may be dead and not yet known to be: it asks again until that is settled.
            self.services.tell(here, cm.Busy(self.name, number, 1.0))
            return
        part = round_.part_for(here.node)
        if part is None or not self.services.takes_grants(here.node):
            self._send_elsewhere(round_, here)
            return
        round_.granted[client] = Contribution(client, event.weight, event.metrics)
        round_.place(client, part)
        granted = (client, event.weight, event.metrics, event.direct)
        self.services.order(here.node, o.Grant(self.number, round_.epoch, part.number, here.conn, *granted))

    def _send_elsewhere(self, round_: Round, here: Where) -> None:
        """Tells a client to use another gateway, or to wait."""
        node = max(round_.nodes, key=round_.room_at)
        if node != here.node and (round_.room_at(node) > 0 or len(round_.parts) == 1):
            gateway = self.services.gateway_of(node)
            text = f"round {round_.number} of job {self.name!r} takes this update at another node: submit to {gateway}"
            raise Refused("use-gateway", gateway, text)
        self.services.tell(here, cm.Busy(self.name, round_.number, 1.0))

    def _round_at(self, epoch: int) -> Round | None:
        return next((r for r in (self.round, *self.saving) if r is not None and r.epoch == epoch), None)

    def update_sealed(self, report: o.UpdateSealed) -> None:
        """A granted update is in its branch.  Only now is its client told ACCEPTED."""
        round_ = self._round_at(report.epoch)
        if round_ is None or report.client not in round_.granted:
            return
        if round_.places[report.client] != report.branch:
            return  # it was given up there, and is on its way into another branch
        round_.received_bytes += report.received_bytes
        self.accept(round_, round_.granted.pop(report.client))
        self.close_if_complete(round_)

    def accept(self, round_: Round, member: Contribution) -> None:
        """The update is in the round: its client is told ACCEPTED, whether it waits for that or not."""
        round_.accepted[member.client] = member
        round_.last_accepted_s = self.now
        self.tell(member.client, cm.Accepted(self.name, round_.number))
        self.publish("update.accepted", round=round_.number, client=member.client)

    def update_aborted(self, report: o.UpdateAborted) -> None:
        """A granted update will not come."""
        round_ = self._round_at(report.epoch)
        if round_ is None or report.client not in round_.granted or round_.places[report.client] != report.branch:
            return
        del round_.granted[report.client]
        round_.unplace(report.client)
        if round_.phase is not Phase.COLLECTING:
            self.tell(report.client, cm.RoundOver(self.name, round_.number, TOO_LATE))
