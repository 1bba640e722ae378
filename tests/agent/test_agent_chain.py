"""A fold in an arena that has what it needs at the least, with the pieces that an arena falls into."""

from __future__ import annotations

import random
from collections.abc import Hashable
from typing import Any

import pytest
from agent_scene import Arena
from test_agent_folds import FOLD, HOME, HOST, TENSORS, ready

from lifl.core import events as ev
from lifl.core.config.job import FOLD_SMALL_BYTES, fold_job, most_of
from lifl.core.coordinator.nodes import Node
from lifl.core.engine import Engine
from lifl.core.fields import Ticket
from lifl.core.ids import Key, Kind
from lifl.core.planning.arena_need import fold_bytes_min, update_bytes
from lifl.core.planning.tree import Task
from lifl.core.protocol import client as cm
from lifl.core.protocol import folds as fm
from lifl.core.protocol import gateway as gm
from lifl.core.protocol import worker as wm
from lifl.core.schema import Layout
from lifl.core.trust.ticket import credential_of
from lifl.shm.allocator import Allocator
from lifl.shm.layout import extent_bytes, round_to_pages

EXPECTED = 12
LAYOUT = Layout(TENSORS)


class Pieces(Arena):
    """The arena of the scenes, with the real allocator's pieces."""

    def __init__(self, nbytes: int) -> None:
        super().__init__(nbytes)
        self.allocator = Allocator(0, nbytes)
        self.offsets: dict[Key, int] = {}

    @property
    def used_bytes(self) -> int:
        return self.allocator.used_bytes

    def alloc(
        self, kind: Kind, job: int, epoch: int, data_bytes: int, meta_bytes: int = 0, slab: Hashable | None = None
    ) -> Key:
        offset = self.allocator.alloc(extent_bytes(data_bytes, meta_bytes), slab, high=kind is Kind.PARTIAL)
        self.made += 1
        key = Key(self.made, 1, HOME)
        self.objects[key] = (kind, epoch, data_bytes + meta_bytes)
        self.offsets[key] = offset
        return key

    def extent_bytes(self, key: Key) -> int:
        return self.allocator._live[self.offsets[key]][0]

    def free(self, key: Key) -> None:
        super().free(key)
        self.allocator.free(self.offsets.pop(key))

    def close_slab(self, slab: Hashable) -> None:
        self.allocator.close_slab(slab)


class Host:
    """Many connections bring updates to one fold at a time, and workers are done in any order."""

    def __init__(self, seed: int, ahead: int) -> None:
        config = fold_job("s", EXPECTED, "fedavg", {}, update_bytes=FOLD_SMALL_BYTES + 1)
        need = fold_bytes_min(LAYOUT, config.aggregation, most_of(EXPECTED), 0) + ahead * update_bytes(LAYOUT)
        self.arena = Pieces(round_to_pages(need))
        self.engine = Engine(self.arena, Node(HOME, "home:1", 8.0, self.arena.nbytes, 4), 30.0, 4)
        self.facts = ev.JobFacts(1, config, TENSORS, (), "")
        self.random = random.Random(seed)
        self.granted: list[tuple[int, Key]] = []
        self.said: list[tuple[int, Any]] = []

    def do(self, event: Any) -> None:
        led = self.engine.handle(event, 0.0)
        self.engine.validate()
        while self.engine.writing:
            led += self.engine.handle(ev.RowsWritten(), 0.0)
        for each in led:
            if isinstance(each, gm.Granted):
                self.granted.append((each.conn, Key.unpack(each.key)))
            elif isinstance(each, gm.TellClient):
                self.said.append((each.conn, cm.unpacked(each.message)))

    def ready_tasks(self) -> list[Task]:
        open_tasks = [found.task for found in self.engine.agent.tasks._open.values()]
        return [task for task in open_tasks if task.state.value == "running" and task.complete]

    def step(self) -> bool:
        """One thing that can happen: an update lands, or a task is done; return whether there was any."""
        for worker in list(self.engine.agent.pool.workers.values()):
            if worker.state.value == "starting":
                self.do(ev.FromWorker(worker.number, wm.WorkerReady(worker.number, 100 + worker.number, 0)))
        tasks = self.ready_tasks()
        if not tasks and not self.granted:
            return False
        if self.granted and (not tasks or self.random.random() < 0.5):
            conn, key = self.granted.pop(self.random.randrange(len(self.granted)))
            self.arena.seal(key, f"c{conn}")
            self.do(gm.Sealed(conn, key.pack(), 10))
            return True
        task = self.random.choice(tasks)
        members = [member.client for key in task.inputs for member in self.arena.members(key)]
        assert task.output is not None and task.worker is not None
        self.arena.seal(task.output, *members)
        done = wm.TaskDone(task.address, task.attempt, 1.0, len(members), len(task.inputs), 0.1, 0.1)
        self.do(ev.FromWorker(task.worker, done))
        return True

    def asks(self, conn: int, fold: int) -> None:
        """A client with a ticket asks for a slot."""
        ticket = Ticket(credential_of("secret", "s", fold, f"c{conn}", 1000), 1000)
        self.do(gm.Admit(conn, f"c{conn}", "s", fold >> 8, 1.0, fold=fold, ticket=ticket))


@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.parametrize("updates", [1, 3, 4, 5, 8, 11, 24])
def test_a_fold_ends_in_the_least_that_it_needs_whatever_comes_first(updates: int, ahead: int) -> None:
    for seed in range(4):
        host = Host(seed, ahead)
        host.do(ev.JobSubmitted(host.facts))
        host.do(ev.SessionHosted(HOST, "s", "secret"))
        assert (HOST, ready(0)) in host.said
        for fold in (FOLD, FOLD + (1 << 8)):  # the second beside the first one's result
            host.do(gm.FoldAsked(HOST, "s", fold, "open", EXPECTED))
            asking, turns = list(range(100, 100 + updates)), 0
            while asking:
                turns += 1
                assert turns < 1000, f"they come to rest: {host.arena.offsets}"
                if host.random.random() < 0.7:
                    host.asks(asking.pop(0), fold)
                host.step()
                asking += [conn for conn, said in host.said if isinstance(said, cm.Busy)]
                host.said = [each for each in host.said if not isinstance(each[1], cm.Busy)]
            while len([each for each in host.said if each[1] == cm.Accepted("s", fold >> 8)]) < updates:
                assert host.step(), "nobody goes on"
            host.do(gm.FoldAsked(HOST, "s", fold, "close"))
            while host.step():
                pass
            (done,) = [said for _, said in host.said if isinstance(said, fm.FoldDone) and said.fold == fold]
            assert sorted(done.clients) == [f"c{conn}" for conn in range(100, 100 + updates)]
            (model,) = host.arena.objects
            assert sorted(m.client for m in host.arena.members(model)) == sorted(done.clients), "each once"


def test_when_all_come_that_were_expected_one_task_makes_the_model_of_the_last_and_one_partial() -> None:
    host = Host(0, 0)
    host.do(ev.JobSubmitted(host.facts))
    host.do(ev.SessionHosted(HOST, "s", "secret"))
    host.do(gm.FoldAsked(HOST, "s", FOLD, "open", EXPECTED))
    for conn in range(100, 100 + EXPECTED):
        host.asks(conn, FOLD)
        while host.step():
            pass
    host.do(gm.FoldAsked(HOST, "s", FOLD, "close"))
    (last,) = host.ready_tasks()
    kinds = [host.arena.objects[key][0] for key in last.inputs]
    assert (last.role, sorted(kinds)) == ("top", [Kind.UPDATE, Kind.PARTIAL])
