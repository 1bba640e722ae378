"""The engine of a node that coordinates, and of one that does not: one way in, rows before what follows from them."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
from agent_scene import SCENES, Arena, Scene, orphan

from lifl.core import effects as fx
from lifl.core import engine as engine_module
from lifl.core import events as ev
from lifl.core.agent.model_slot import SlotState
from lifl.core.agent.worker_watch import LOOK_S
from lifl.core.config.edits import edited
from lifl.core.config.job import parse_job
from lifl.core.coordinator.coordinator import JOBS_MAX, Coordinator
from lifl.core.coordinator.job_queue import QUEUED
from lifl.core.coordinator.nodes import Node
from lifl.core.coordinator.round import Phase
from lifl.core.engine import Engine
from lifl.core.errors import Impossible, LocalFault, Refused
from lifl.core.event_log import Recording
from lifl.core.ids import Key, Kind, epoch_of
from lifl.core.limits import CLIENTS_PER_ROUND_MAX
from lifl.core.protocol import client as cm
from lifl.core.protocol import cluster as p
from lifl.core.protocol import commands as o
from lifl.core.protocol import gateway as gm
from lifl.core.protocol import worker as wm
from lifl.core.schema import TensorSpec

HOME, B = 1, 3
TENSORS = (TensorSpec("w", "float32", (1024,)),)


def facts(name: str = "j", number: int = 1, goal: int = 1) -> ev.JobFacts:
    config = {"job": {"name": name, "rounds": 1}, "model": {"path": "/m"}, "selection": {"clients_per_round": goal}}
    return ev.JobFacts(number, parse_job(config), TENSORS, (), "/f")


class Home:
    """A node that coordinates; what was returned is performed at once, rows too, unless it is asked for one event."""

    def __init__(self, arena_bytes: int = 1 << 30) -> None:
        self.arena = Arena(arena_bytes)
        self.engine = Engine(self.arena, Node(HOME, "home:1", 8.0, arena_bytes, 4), 30.0, 4)

    def handle(self, event: Any, at: float = 0.0) -> list[Any]:
        """What one event led to until a row is to be written."""
        led = self.engine.handle(event, at)
        self.engine.validate()
        return led

    def do(self, event: Any, at: float = 0.0) -> list[Any]:
        """What one event led to in all."""
        led = self.handle(event, at)
        while self.engine.writing:
            led += self.handle(ev.RowsWritten(), at)
        return led

    def has_job(self) -> None:
        """The job's model is here and its initial checkpoint is written; round 1 waits for clients."""
        self.do(ev.JobSubmitted(facts()))
        self.do(ev.FromWorker(1, wm.WorkerReady(1, 101, 0)))
        self.work()
        self.work()

    def work(self, *clients: str) -> list[Any]:
        """The one task that runs is done."""
        table = self.engine.agent.tasks
        (task,) = [found.task for found in table._open.values() if found.task.state.value == "running"]
        if task.output is not None:
            self.arena.seal(task.output, *clients)
        done = wm.TaskDone(task.address, task.attempt, 1.0, 1, 1, 0.1, 0.1)
        return self.do(ev.FromWorker(task.worker, done))


# ---- rows ------------------------------------------------------------------------------------------------------------


def test_the_queue_stops_at_a_row_and_goes_on_when_it_is_written() -> None:
    home = Home()
    led = home.handle(ev.JobSubmitted(facts()))
    assert led == [fx.SaveJob("j", "running", "")]
    assert home.engine.writing
    assert home.engine.agent.replicas == {}, "the order waits"
    assert home.handle(ev.Tick()) == [], "so it does whatever comes meanwhile"
    assert home.engine.agent.replicas == {}
    assert home.handle(ev.RowsWritten()) == [fx.ForkWorker(1)]
    assert not home.engine.writing
    assert home.engine.agent.replicas[1].slot.state is SlotState.LOADING


def test_what_is_not_written_may_be_written_twice_over() -> None:
    home = Home()
    assert home.handle(ev.RowsWritten()) == []
    assert not home.engine.writing


def test_a_round_goes_from_its_clients_to_its_commit_with_each_row_before_what_follows() -> None:
    home = Home()
    home.has_job()
    led = home.do(gm.ClientJoined(5, "c5", "j"))
    assert [type(each) for each in led if isinstance(each, fx.SavePlan | gm.TellClient)] == [fx.SavePlan, gm.TellClient]
    led = home.do(gm.Admit(5, "c5", "j", 1, 1.0))
    (granted,) = [each for each in led if isinstance(each, gm.Granted)]
    (update,) = home.arena.of(Kind.UPDATE)
    home.arena.seal(update, "c5")
    home.do(gm.Sealed(5, granted.key, 10))
    home.work("c5")  # the top
    led = home.work()  # the checkpoint
    rows = [each.status for each in led if isinstance(each, fx.SaveRound)]
    assert rows == ["committed"]
    told = [type(each) for each in led].index(gm.TellClient)
    assert [type(each) for each in led].index(fx.SaveRound) < told
    assert home.engine.jobs["j"].status == "finished"
    assert home.arena.objects == {}
    Recording.unpack(home.engine.recording().pack()).replay()


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_a_job_that_cannot_run_is_refused_and_nothing_is_changed() -> None:
    home = Home()
    home.do(ev.JobSubmitted(facts()))
    for event, code in [
        (ev.JobSubmitted(facts(number=2)), "job-exists"),
        (ev.JobCancelled("k"), "unknown-job"),
    ]:
        with pytest.raises(Refused) as refused:
            home.handle(event)
        assert refused.value.code == code
        assert not home.engine.writing
        assert list(home.engine.jobs) == ["j"]
        assert home.handle(ev.Tick()) == []
    small = Home(arena_bytes=1 << 12)
    with pytest.raises(Refused):
        small.handle(ev.JobSubmitted(facts()))
    assert small.engine.jobs == {}
    Recording.unpack(home.engine.recording().pack()).replay()


def test_a_job_is_cancelled() -> None:
    home = Home()
    home.has_job()
    reason = "cancelled by the user"
    assert home.do(ev.JobCancelled("j")) == [
        fx.SaveJob("j", "cancelled", reason),
        fx.Publish("job.over", "j", {"status": "cancelled", "reason": reason}),
        gm.JobForget("j"),
    ]
    assert home.arena.objects == {}


def test_trainers_get_other_options_from_the_next_round_on() -> None:
    home = Home()
    home.has_job()
    edit = edited(facts().config, ["client.options.lr=0.5"])
    led = home.do(ev.JobEdited("j", edit))
    assert led[0] == fx.SaveConfig("j", edit.config)
    assert [each.options for each in led if isinstance(each, gm.JobSchema)] == [{"lr": 0.5}]
    assert gm.JobForget("j") in home.do(ev.JobPaused("j")), "its room is given back"
    rows = [row.reason for row in home.do(ev.JobUnpaused("j")) if isinstance(row, fx.SaveJob)]
    assert rows == ["queued", ""]
    home.do(ev.JobCancelled("j"))
    assert home.do(ev.JobRemoved("j")) == []
    assert home.engine.jobs == {}


@pytest.mark.parametrize(
    "event",
    [
        ev.JobPaused("j"),
        ev.JobUnpaused("j"),
        ev.JobRemoved("j"),
        ev.JobSubmitted(facts()),
        ev.JobCancelled("j"),
        ev.NodeUp(B, "b:1", 8.0, 1 << 30, 4, 1),
        ev.NodeSuspect(B, True),
        ev.NodeDrained(B),
        ev.NodeGone(B),
        ev.NodeLoadTold(B, 8.0, 1.0, 1.0),
        ev.FromNode(B, p.Inventory()),
    ],
    ids=lambda event: type(event).__name__,
)
def test_a_node_that_does_not_coordinate_refuses_what_only_the_coordinator_does(event: Any) -> None:
    scene = Scene()
    with pytest.raises(Refused) as refused:
        scene.handle(event)
    assert (refused.value.code, refused.value.field) == ("not-coordinator", "node")
    assert scene.handle(ev.Tick()) == []
    with pytest.raises(Refused):
        scene.engine.facts(0.0)
    assert scene.engine.jobs == {}


# ---- nodes -----------------------------------------------------------------------------------------------------------


def test_a_node_comes_tells_what_it_has_and_how_loaded_it_is_and_goes() -> None:
    home = Home()
    home.do(ev.NodeUp(B, "b:1", 2.0, 1 << 30, 4, 1), at=3.0)
    nodes = home.engine.coordinating().nodes
    node = nodes.get(B)
    assert (node.gateway, node.load.capacity, node.load.at_s, node.known) == ("b:1", 2.0, 3.0, False)
    home.do(ev.FromNode(B, p.Inventory()))
    assert node.known
    home.do(ev.NodeLoadTold(B, 4.0, 1.5, 0.25), at=4.0)
    assert (node.load.capacity, node.load.rate_per_s, node.load.execution_s, node.load.at_s) == (4.0, 1.5, 0.25, 4.0)
    told, model = home.engine.facts(4.0)
    assert ([each.node for each in told], model) == ([f"{HOME:016x}", f"{B:016x}"], f"{HOME:016x}")
    home.do(ev.NodeSuspect(B, True))
    assert node.suspect
    home.do(ev.NodeSuspect(B, False))
    assert not node.suspect
    home.do(ev.NodeGone(B))
    assert nodes.get(B) is None


def test_a_node_that_is_drained_is_told_so_and_the_planner_does_without_it() -> None:
    home = Home()
    home.do(ev.NodeUp(B, "b:1", 2.0, 1 << 30, 4, 1, (p.DRAIN,)))
    home.do(ev.FromNode(B, p.Inventory()))
    assert home.do(ev.NodeDrained(B)) == [fx.SendNode(B, o.DrainNode())]
    assert [each.node for each in home.engine.facts(0.0)[0]] == [f"{HOME:016x}"]
    assert home.do(ev.NodeDrained(B, undo=True)) == [fx.SendNode(B, o.DrainNode(undo=True))]
    assert len(home.engine.facts(0.0)[0]) == 2
    with pytest.raises(Refused, match="coordinates"):
        home.engine.handle(ev.NodeDrained(HOME), 0.0)


def test_the_load_of_the_coordinator_s_own_node_is_always_the_agent_s() -> None:
    home = Home()
    home.do(ev.Calibrated(2.5))
    assert home.engine.coordinating().nodes.get(HOME).load == home.engine.agent.load
    assert home.engine.agent.load.capacity == 2.5


def test_orders_for_another_node_are_effects() -> None:
    home = Home()
    home.has_job()
    home.do(ev.NodeUp(B, "b:1", 2.0, 1 << 30, 4, 1))
    led = home.do(ev.FromNode(B, p.Inventory()))
    assert led and all(isinstance(each, fx.SendNode) and each.node == B for each in led)
    assert isinstance(led[0].order, o.OpenJob)


# ---- an earlier life -------------------------------------------------------------------------------------------------


def test_a_job_of_an_earlier_life_goes_on_from_what_is_in_the_arena() -> None:
    home = Home()
    epoch = epoch_of(1, 1)
    key = home.arena.alloc(Kind.UPDATE, 1, epoch, 4096)
    home.arena.seal(key, "c5")
    history = ev.JobHistory(0, {1: (1, "open", {})}, {0: frozenset()})
    home.do(ev.JobResumed(facts(), history, (orphan(key, Kind.UPDATE, "c5", epoch=epoch),)))
    job = home.engine.jobs["j"]
    assert (job.status, job.rounds.committed) == ("loading", 0)
    home.do(ev.FromWorker(1, wm.WorkerReady(1, 101, 0)))
    home.work()
    assert job.round is not None and list(job.round.accepted) == ["c5"]
    assert job.round.phase in (Phase.COLLECTING, Phase.AGGREGATING)


def test_a_job_that_waits_in_line_does_not_go_on_with_rounds_that_ended_when_it_was_over() -> None:
    """The life that was told to let it go on ended behind its first row; other nodes may have updates of before."""
    home, opened = Home(), {"parts": [[0, HOME, 1]]}
    history = ev.JobHistory(0, {1: (1, "open", opened), 2: (1, "open", {})}, {0: frozenset()})
    led = home.do(ev.JobResumed(facts(), history, reason=QUEUED))
    rows = [(row.round, row.attempt, row.status) for row in led if isinstance(row, fx.SaveRound)]
    assert rows == [(1, 1, "failed")]
    home.do(ev.FromWorker(1, wm.WorkerReady(1, 101, 0)))
    home.work()
    job = home.engine.jobs["j"]
    assert job.round is not None and (job.round.number, job.round.attempt, job.round.phase) == (1, 2, Phase.WAITING)


def test_a_job_that_was_over_is_recalled_for_its_clients() -> None:
    home = Home()
    history = ev.JobHistory(1, {}, {1: frozenset({"c5"})})
    assert home.do(ev.JobRecalled(facts(), history, "finished", "")) == []
    assert (home.engine.jobs["j"].status, home.engine.jobs["j"].rounds.committed) == ("finished", 1)
    assert home.engine.agent.replicas == {}


# ---- faults ----------------------------------------------------------------------------------------------------------


def test_orders_and_reports_that_lead_nowhere_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "STEPS_MAX", 50)
    home = Home()

    def again(_coordinator: Coordinator, _node: int, message: Any) -> None:
        home.engine._turn.report(message)

    monkeypatch.setattr(Coordinator, "handle", again)
    text = r"51 orders and reports follow from one event, the last: ClientLeft\(conn=5"
    with pytest.raises(Impossible, match=text):
        home.engine.handle(gm.ClientLeft(5), 0.0)


def test_what_the_end_of_an_event_has_to_report_is_handled_within_it() -> None:
    home = Home()
    home.engine.agent.uploads.waiting.append(o.Grant(9, epoch_of(1, 1), 0, 5, "c5", 1.0, {}))
    assert home.handle(ev.Tick()) == []
    assert not home.engine._turn.queue
    assert not home.engine.agent.uploads.waiting


def test_so_many_are_enough_for_each_client_of_each_job() -> None:
    assert engine_module.STEPS_MAX >= JOBS_MAX * CLIENTS_PER_ROUND_MAX


def test_books_that_differ_on_either_side_are_found() -> None:
    home = Home()
    home.engine.agent.quota._used[1] = 5
    with pytest.raises(LocalFault, match="its account says 5"):
        home.engine.validate()
    home.engine.agent.quota._used.clear()
    home.engine.coordinating().nodes.get(HOME).known = False
    with pytest.raises(LocalFault, match="own node"):
        home.engine.validate()


# ---- the clock and the end -------------------------------------------------------------------------------------------


def test_the_timer_is_the_earlier_one_of_both_sides() -> None:
    home = Home()
    assert home.engine.next_timer() is None
    home.has_job()
    assert home.engine.next_timer() == 30.0
    home.do(gm.ClientJoined(5, "c5", "j"))
    assert home.do(ev.Tick(), at=30.0) == [fx.SendWorker(1, wm.Retire()), fx.LookAtChildren()]
    assert home.engine.coordinating().next_timer() == 120.0
    assert home.engine.next_timer() == home.engine.agent.next_timer() == 30.0 + LOOK_S


def test_a_node_that_stops_tells_the_clients() -> None:
    home = Home()
    home.has_job()
    assert home.do(ev.Stopping()) == []
    led = home.do(gm.ClientJoined(5, "c5", "j")) + home.do(gm.Admit(5, "c5", "j", 1, 1.0))
    (granted,) = [each for each in led if isinstance(each, gm.Granted)]
    home.arena.seal(Key.unpack(granted.key), "c5")
    home.do(gm.Sealed(5, granted.key, 10))
    (word,) = home.do(ev.Stopping())
    assert (word.conn, type(cm.unpacked(word.message))) == (5, cm.RoundOver)
    assert Scene().handle(ev.Stopping()) == []


def test_a_node_is_busy_while_a_round_that_has_all_its_updates_is_not_committed() -> None:
    home = Home()
    home.has_job()
    home.do(gm.ClientJoined(5, "c5", "j"))
    led = home.do(gm.Admit(5, "c5", "j", 1, 1.0))
    assert not home.engine.busy()
    (granted,) = [each for each in led if isinstance(each, gm.Granted)]
    (update,) = home.arena.of(Kind.UPDATE)
    home.arena.seal(update, "c5")
    home.do(gm.Sealed(5, granted.key, 10))
    assert home.engine.busy()
    home.work("c5")
    assert home.engine.busy()
    home.work()
    assert not home.engine.busy()


def test_a_new_gateway_is_told_the_jobs_that_are_open() -> None:
    home = Home()
    home.has_job()
    assert home.engine.schemas() == [gm.JobSchema("j", 1, TENSORS)]


def test_a_report_to_a_node_without_a_coordinator_is_not_queued() -> None:
    scene = Scene()
    scene.engine._turn.queue = deque([p.Draining()])
    assert scene.handle(ev.Tick()) == []
    assert not scene.engine._turn.queue
    SCENES.clear()
