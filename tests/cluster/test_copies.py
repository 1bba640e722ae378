"""Committed models on several nodes' own disks: the machine that coordinated is gone for good, its disk too."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fleet import OneHot, ask, submit, until
from netns import Keeper, Machine, SharedCluster, kept

from lifl.core.protocol import cli as om

N = 6


class Copied(OneHot):
    """The oracle of a job whose models are below the state folders of `machines`."""

    def __init__(self, machines: list[Machine]) -> None:
        super().__init__(N)
        self.machines = machines

    def holders(self, path: str | Path) -> list[Path]:
        """The files of one model."""
        places = [machine.state_dir / "jobs" / path for machine in self.machines]
        return [place for place in places if place.exists()]

    def counts(self, path: str | Path, number: int, counted: int) -> list[int]:
        found = [super(Copied, self).counts(place, number, counted) for place in self.holders(path)]
        assert found and all(each == found[0] for each in found), "the copies differ"
        return found[0]


@pytest.fixture(scope="module")
def keeper() -> Iterator[Keeper]:
    with kept(3, "--redirector", "unix", shared=True) as made:
        yield made


def begin(shared: SharedCluster, job: str, oracle: OneHot, copies: int, **keys: Any) -> Machine:
    """The job is submitted; the node that coordinates it."""
    coordinator = shared.coordinator
    placed = {"aggregation__placement": "worst-fit", "checkpoint__replicas": copies}
    submit(coordinator, job, oracle.model(), **placed, **keys)
    return coordinator


def status(machine: Machine, job: str) -> dict[str, Any]:
    found: dict[str, Any] = ask(machine, om.JobStatus(job))
    return found


def committed(machine: Machine, job: str) -> int:
    return int(status(machine, job)["job"]["committed"])


def lines_of(oracle: Copied, machine: Machine, job: str) -> list[dict[str, Any]]:
    """The committed rounds; each copy of each model has each counted update once."""
    return oracle.check(machine, job)


def test_a_job_goes_on_from_a_copy_when_the_coordinators_machine_and_disk_are_gone(
    shared: SharedCluster, job: str
) -> None:
    oracle = Copied(shared.machines)
    first = begin(shared, job, oracle, 1, job__rounds=4)
    watch = shared.watch(job)
    with shared.fleet(job, N, oracle.update, held=[(index, 3) for index in range(3, N)]) as team:
        watch.wait("update.accepted", 2 * N + 3)
        lines = lines_of(oracle, first, job)
        assert [len(oracle.holders(line["path"])) for line in lines] == [2, 2], "home, and one copy of each"
        first.kill()
        first.remove_arena()
        shutil.rmtree(first.state_dir)
        first.state_dir.mkdir()
        second = shared.next_coordinator(first)
        team.release()
        until("the end", lambda: status(second, job)["job"]["status"] == "finished")
        team.join()
    lines = lines_of(oracle, second, job)
    assert [(line["round"], line["attempt"], line["receipt"]["counted"]) for line in lines] == [
        (number, 1, N) for number in range(1, 5)
    ]
    until("empty arenas", lambda: set(shared.use().values()) == {(0, 0)})


def test_the_rules_states_are_copied_and_a_damaged_file_is_taken_from_a_copy(shared: SharedCluster, job: str) -> None:
    oracle = Copied(shared.machines)
    first = begin(shared, job, oracle, 2, job__rounds=3, aggregation__rule="fedavgm")
    with shared.fleet(job, N, oracle.update, held=[(0, 3)]) as team:
        until("two rounds", lambda: committed(first, job) == 2)
        (line,) = [
            line for line in status(first, job)["rounds"] if line["round"] == 2 and line["status"] == "committed"
        ]
        model = oracle.holders(line["path"])
        states = oracle.holders(line["path"].replace(".safetensors", ".state.safetensors"))
        assert (len(model), len(states)) == (3, 3)
        for copies in (model, states):
            assert len({file.read_bytes() for file in copies}) == 1, "the copies differ"
        first.kill()
        for machine in shared.machines:
            if machine is not first:
                file = machine.state_dir / "jobs" / line["path"]
                file.write_bytes(file.read_bytes()[:-8] + b"damaged!")
        first.up()
        second = until("a coordinator", shared.leading)
        team.release()
        until("the end", lambda: status(second, job)["job"]["status"] == "finished")
        team.join()
    rounds = [line for line in status(second, job)["rounds"] if line["status"] == "damaged"]
    assert not rounds, "no committed round was set aside"


def test_a_round_waits_for_a_node_that_can_keep_a_copy_and_says_so(shared: SharedCluster, job: str) -> None:
    oracle = Copied(shared.machines)
    first = begin(shared, job, oracle, 2, job__rounds=2)
    last = shared.agents[-1]
    with shared.fleet(job, N, oracle.update, held=[(index, 1) for index in range(N)]) as team:
        until("the first model", lambda: committed(first, job) == 0)
        last.kill()
        shared.settled(last)
        team.release()
        line = until("a pause", lambda: (one := status(first, job)["job"])["status"] == "paused" and one)
        assert "waits for copies of its model on 2 other nodes (checkpoint.replicas)" in line["reason"]
        assert committed(first, job) == 0
        last.up()
        until("the end", lambda: status(first, job)["job"]["status"] == "finished")
        team.join()
    assert [len(oracle.holders(line["path"])) for line in lines_of(oracle, first, job)] == [3, 3]
    # It is forgotten with its models: copies go at once where a node is connected, else when it is back.
    last.kill()
    shared.settled(last)
    folders = {machine: machine.state_dir / "jobs" / job for machine in shared.machines}
    assert ask(first, om.RemoveJob(job, models=True))["copies"] is True
    until("the copies to go", lambda: not any(folders[each].exists() for each in shared.machines if each is not last))
    assert len(list(folders[last].glob("round-*"))) == 3
    last.up()
    until("the last copy to go", lambda: not folders[last].exists())
