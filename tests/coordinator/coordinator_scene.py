"""A coordinator whose state is set by hand; one event in, and all that it leads to out.

Host 1, `HOME`, coordinates; `B` and `C` are other nodes.  There is one job, number 1, ``j``.  After each event the
books are compared with each other (`Coordinator.validate`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lifl.core import effects as fx
from lifl.core.config.job import parse_job
from lifl.core.coordinator.branch_record import BranchRecord, BranchState
from lifl.core.coordinator.coordinator import Coordinator
from lifl.core.coordinator.job import Job
from lifl.core.coordinator.job_spec import JobSpec
from lifl.core.coordinator.nodes import Node
from lifl.core.coordinator.presence import Connection
from lifl.core.coordinator.round import Phase, Round
from lifl.core.ids import epoch_of
from lifl.core.protocol import client as cm
from lifl.core.protocol import cluster as p
from lifl.core.protocol import commands as o
from lifl.core.protocol import gateway as gm
from lifl.core.protocol import tickets as tm
from lifl.core.protocol.contribution import Contribution
from lifl.core.schema import Layout, TensorSpec
from lifl.core.turn import Turn

HOME, B, C = 1, 2, 3
GATEWAYS = {HOME: "home:1", B: "b:1", C: "c:1"}
LAYOUT = Layout((TensorSpec("w", "float32", (1000,)),))
ARENA_BYTES = 64 << 20
EPOCH = epoch_of(1, 1)
NUMBER = 1
OPEN, CLOSED, RECOVERING = BranchState.OPEN, BranchState.CLOSED, BranchState.RECOVERING
FORGETTING, ARRIVED = BranchState.FORGETTING, BranchState.ARRIVED


@dataclass
class Led:
    """What an event led to: orders to agents, words for clients (by node and connection), rows, events, plans, tickets.

    Orders and words to the coordinator's own node come first: they wait in the turn's queue, the others are effects.
    """

    orders: list[tuple[int, Any]] = field(default_factory=list)
    told: list[tuple[int, int, Any]] = field(default_factory=list)
    rows: list[Any] = field(default_factory=list)
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    plans: int = 0
    tickets: list[Any] = field(default_factory=list)

    def ordered(self, kind: type) -> list[tuple[int, Any]]:
        """The orders of one kind."""
        return [(node, order) for node, order in self.orders if isinstance(order, kind)]

    def said(self, kind: type) -> list[tuple[int, Any]]:
        """The words of one kind, by connection."""
        return [(conn, message) for _node, conn, message in self.told if isinstance(message, kind)]

    def named(self, name: str) -> list[dict[str, Any]]:
        """The fields of the events of one name."""
        return [fields for other, fields in self.events if other == name]


class Scene:
    """The coordinator, and its job ``j``; nothing has happened yet."""

    def __init__(
        self,
        *,
        goal: int = 2,
        nodes: Sequence[int] = (HOME,),
        capacity: Mapping[int, float] | None = None,
        arena_bytes: Mapping[int, int] | None = None,
        rounds: int = 2,
        states: tuple[str, ...] = (),
        aggregation: Mapping[str, Any] | None = None,
        quota: Mapping[str, Any] | None = None,
        checkpoint: Mapping[str, Any] | None = None,
        history: Mapping[str, Any] | None = None,
        secrets_seed: bytes = b"",
        **selection: Any,
    ) -> None:
        self._capacity, self._arena_bytes = capacity or {}, arena_bytes or {}
        self.kept: list[fx.KeepModels] = []
        """What was said of the models that stay, each time behind a row."""
        self.trims: list[fx.TrimRounds] = []
        self.turn = Turn(HOME, coordinates=True)
        self.coordinator = Coordinator(self.node(HOME), self.turn, secrets_seed)
        config = {
            "job": {"name": "j", "rounds": rounds},
            "model": {"path": "/m"},
            "selection": {"clients_per_round": goal, "deadline_s": 100.0, **selection},
            "aggregation": {"replan_interval_s": 1000.0, **(aggregation or {})},
            "quota": quota or {},
            "checkpoint": checkpoint or {},
            "history": history or {},
        }
        self.spec = JobSpec(NUMBER, parse_job(config), LAYOUT, states, "/f")
        for number in nodes:
            if number != HOME:
                node = self.node(number)
                node.known, node.knows = True, frozenset({p.QUOTAS})
                self.coordinator.nodes.put(node)

    def node(self, number: int, incarnation: int = 1) -> Node:
        """A node as it would connect."""
        capacity = self._capacity.get(number, 8.0)
        return Node(number, GATEWAYS[number], capacity, self._arena_bytes.get(number, ARENA_BYTES), 4, incarnation)

    # ---- the state ---------------------------------------------------------------------------------------------------

    @property
    def job(self) -> Job:
        return self.coordinator.jobs["j"]

    @property
    def round(self) -> Round:
        assert self.job.round is not None
        return self.job.round

    def branch(self, number: int) -> BranchRecord:
        return self.round.branches[number]

    def states(self) -> dict[int, BranchState]:
        """The running round's branches."""
        return {number: record.state for number, record in self.round.branches.items()}

    def loading(self) -> Job:
        """The job is there, and its model is not."""
        job = self.coordinator.make(self.spec)
        self.coordinator.jobs["j"] = self.coordinator.running[NUMBER] = job
        return job

    def running(self, model_round: int = 0) -> Job:
        """The job is there, and the model of the round; no round runs."""
        job = self.loading()
        job.status = "running"
        job.rounds.committed = job._replicas.model_round = model_round
        return job

    def has_round(
        self,
        phase: Phase = Phase.COLLECTING,
        branches: Sequence[tuple[int, int, BranchState]] = ((HOME, 2, OPEN),),
        *,
        accepted: Mapping[str, int] | None = None,
        granted: Mapping[str, int] | None = None,
        selected: Sequence[str] = (),
        others_max: int | None = None,
        number: int = 1,
        attempt: int = 1,
    ) -> Round:
        """The job runs this round; branches are (node, updates, state), clients are by branch."""
        if "j" not in self.coordinator.jobs:
            self.running(number - 1)
        round_ = self.books(phase, branches, accepted or {}, granted or {}, selected, number, attempt)
        round_.others_max = others_max if others_max is not None else max(0, len(branches) - 1)
        if phase in (Phase.COLLECTING, Phase.AGGREGATING):
            round_.opened_at_s, round_.replan_at_s = 0.0, 1000.0
        self.job._attempt = attempt
        self.job.rounds.current = round_
        self.coordinator.validate()
        return round_

    def is_saving(self, number: int, clients: Sequence[str] = (), *, saved: bool = False) -> Round:
        """A round's model is sealed, and its checkpoint is being written."""
        branches = [(HOME, len(clients), CLOSED)] if number else []
        round_ = self.books(Phase.SAVING, branches, dict.fromkeys(clients, 0), {}, (), number, 1 if number else 0)
        round_.opened_at_s, round_.saved = 0.0, saved
        self.job.rounds.saving.append(round_)
        self.job._replicas.model_round = number
        return round_

    def books(
        self,
        phase: Phase,
        branches: Sequence[tuple[int, int, BranchState]],
        accepted: Mapping[str, int],
        granted: Mapping[str, int],
        selected: Sequence[str],
        number: int,
        attempt: int,
    ) -> Round:
        """The books of a round."""
        round_ = Round(number, attempt, self.spec.config.selection, 0.0, phase)
        for index, (node, updates, state) in enumerate(branches):
            round_.add(BranchRecord(index, node, updates, state))
        round_.next_branch = max(1, len(branches))
        round_.selected = dict.fromkeys((*accepted, *granted, *selected))
        for client, index in {**accepted, **granted}.items():
            round_.grant(Contribution(client, 1.0), round_.branches[index], 0.0)
        for client in accepted:
            round_.accept(Contribution(client, 1.0), 0.0)
        return round_

    def here(self, *clients: str, node: int = HOME) -> None:
        """The clients take part, client ``c5`` over connection 5."""
        for client in clients:
            self.coordinator.presence.add("j", client, Connection(node, int(client[1:])))

    # ---- events ------------------------------------------------------------------------------------------------------

    def handle(self, message: Any, node: int | None = None, at: float | None = None) -> Led:
        """One message from a node; if no other, from the one whose it is to say."""
        if node is None:
            node = self._sayer(message)
        return self.do(self.coordinator.handle, node, message, at=at)

    def _sayer(self, message: Any) -> int:
        """The node that has the branch that a report is about; home has the top, which tells of all."""
        round_ = self.coordinator.jobs["j"].round if "j" in self.coordinator.jobs else None
        if round_ is None or isinstance(message, o.PartialArrived | o.BranchForgotten):
            return HOME
        record = round_.branches.get(getattr(message, "branch", 0))
        return record.node if record is not None else HOME

    def do(self, call: Callable[..., Any], *given: Any, at: float | None = None) -> Led:
        """One call of the coordinator's, at the time `at`."""
        self.turn.now = at if at is not None else self.turn.now
        call(*given)
        self.coordinator.validate()
        return self.led()

    def led(self) -> Led:
        """What the turn has collected since the last call."""
        led = Led()
        for order in self.turn.queue:
            self._note(led, HOME, order)
        for effect in self.turn.effects:
            match effect:
                case fx.SendNode():
                    self._note(led, effect.node, effect.order)
                case fx.SaveRound() | fx.SaveEvaluation() | fx.SaveJob() | fx.SaveConfig():
                    led.rows.append(effect)
                case fx.SetAside() | fx.DropJob():
                    led.rows.append(effect)
                case fx.KeepModels():
                    self.kept.append(effect)
                case fx.TrimRounds():
                    self.trims.append(effect)
                case fx.Publish():
                    assert effect.job == "j"
                    led.events.append((effect.name, effect.fields))
                case fx.SavePlan():
                    led.plans += 1
                case tm.TicketKey() | tm.TicketsAwaited():
                    led.tickets.append(effect)
                case _:
                    raise AssertionError(f"the coordinator does not say {effect}")
        self.turn.queue.clear()
        self.turn.effects.clear()
        return led

    @staticmethod
    def _note(led: Led, node: int, order: Any) -> None:
        if isinstance(order, gm.TellClient):
            led.told.append((node, order.conn, cm.unpacked(order.message)))
        else:
            led.orders.append((node, order))


def members(*clients: str) -> o.Contributions:
    """Clients as they are told of, each with weight 1."""
    return tuple((client, 1.0, {}) for client in clients)


def admit(client: str, conn: int | None = None, round_: int = 1, **more: Any) -> gm.Admit:
    """A client announces an update, over its own connection if no other."""
    return gm.Admit(conn if conn is not None else int(client[1:]), client, "j", round_, 1.0, **more)


def joined(client: str, holding: int | None = None, conn: int | None = None, connected_ns: int = 0) -> gm.ClientJoined:
    """A client takes part."""
    return gm.ClientJoined(conn if conn is not None else int(client[1:]), client, "j", holding, connected_ns)


def sealed(client: str, branch: int = 0, epoch: int = EPOCH) -> o.UpdateSealed:
    """An update of 10 bytes is in a branch."""
    return o.UpdateSealed(NUMBER, epoch, branch, client, 10)


def held(branch: int, sealed_: Sequence[str] = (), granted: Sequence[str] = (), closed: bool = False) -> p.BranchHeld:
    """A branch in an inventory."""
    return p.BranchHeld(NUMBER, EPOCH, branch, members(*sealed_), members(*granted), closed)


def accepted_event(client: str, round_: int = 1) -> tuple[str, dict[str, Any]]:
    """What is published of an accepted update."""
    return "update.accepted", {"round": round_, "client": client}
