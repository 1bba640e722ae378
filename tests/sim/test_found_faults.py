"""Faults that random lives have found, each by itself."""

from __future__ import annotations

import pytest
import sim_clients
from scenes import MIB, job, scene, until

from lifl.core.planning.tree import TaskState
from lifl.core.protocol import gateway as gm


@pytest.fixture
def _all_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each trainer reads the model before it submits."""
    monkeypatch.setattr(sim_clients, "WANTS_MODEL", 1.0)


@pytest.mark.usefixtures("_all_read")
def test_a_model_that_is_read_when_its_job_ends_is_freed_with_the_reading() -> None:
    cluster = scene(job("a", goal=1, rounds=1), job("b"))
    reader = until(cluster, lambda: next((r for r in cluster.home.readers if r.conn in _conns(cluster, "a")), None))
    cluster.home.readers = [each._replace(stuck=each == reader) for each in cluster.home.readers]
    cluster.faults.cancel("a")
    cluster.home.validate()
    assert reader.key in cluster.home.store.things, "a model is freed while it is sent"
    cluster.home.readers = [each._replace(stuck=False) for each in cluster.home.readers]
    cluster.run(0)


@pytest.mark.usefixtures("_all_read")
def test_a_model_that_is_read_when_its_job_ends_is_freed_when_the_gateway_ends() -> None:
    cluster = scene(job("a", goal=1, rounds=1), job("b"))
    reader = until(cluster, lambda: next((r for r in cluster.home.readers if r.conn in _conns(cluster, "a")), None))
    cluster.faults.cancel("a")
    cluster.lives.kill_gateway(cluster.home)
    assert reader.key not in cluster.home.store.things
    cluster.run(0)


def _conns(cluster, name: str) -> set[int]:
    return {client.conn for client in cluster.jobs[name].clients.values()}


def test_who_waits_for_a_model_when_its_job_ends_is_refused() -> None:
    cluster = scene(job("a", goal=1), arena_bytes=64 * MIB)
    client = cluster.jobs["a"].clients["c0"]
    cluster.clients.connect(client)
    cluster.home.questions[client.conn] = "a", 1
    cluster.handle(cluster.home, gm.WantModel(client.conn, "a", 1))  # it is being read from its file
    assert cluster.home.questions
    cluster.faults.cancel("a")
    assert not cluster.home.questions
    cluster.run(0)


def test_who_waits_for_room_when_its_job_ends_is_refused_and_may_leave() -> None:
    """The grant of a job that was over stood in the line, and its client's Leave ended the node."""
    goal, model_bytes = 8, 16 * MIB
    plan = job("a", goal, model_bytes=model_bytes)
    need = scene(plan).by_number[1].spec.bytes_min()
    cluster = scene(plan, arena_bytes=need)
    uploads = cluster.engine.agent.uploads
    order = until(cluster, lambda: next(iter(uploads.waiting), None))
    cluster.faults.cancel("a")
    assert not uploads.waiting
    assert order.conn not in cluster.home.questions
    cluster.handle(cluster.home, gm.ClientLeft(order.conn, "a"))
    cluster.run(0)


def test_a_top_whose_worker_dies_is_placed_again_while_its_room_is_promised_to_others() -> None:
    """A slot that rests is on no job's account: what it took of a reservation is promised once more."""
    cluster = scene(job("a", goal=2, model_bytes=16 * MIB), job("b", model_bytes=16 * MIB))
    quota = cluster.engine.agent.quota

    def top():
        for replica in cluster.engine.agent.replicas.values():
            for runner in replica.runners.values():
                root = runner.branch.tree.root
                if root.role == "top" and root.state is TaskState.RUNNING and root.worker in cluster.home.workers:
                    return root
        return None

    task = until(cluster, top)
    output, reserved = task.output, quota._reserved[2]
    quota._reserved[2] += quota.store.free_bytes  # as if so much of b's account had come to rest
    cluster.workers.kill(cluster.home, cluster.home.workers[task.worker])
    assert task.output != output
    quota._reserved[2] = reserved
    cluster.run(0)
