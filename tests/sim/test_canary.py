"""The simulator can fail: of a bug that is planted a bounded number of lives must show it; without it they do not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from test_sim_node import STEPS, make

from lifl.core import effects as fx
from lifl.core.agent.task_table import TaskTable
from lifl.core.coordinator.branch_record import BranchState
from lifl.core.coordinator.branches import BranchTracker
from lifl.core.coordinator.commits import Commits
from lifl.core.ids import Kind
from lifl.core.planning.tree import TaskState
from lifl.core.protocol import commands as o
from lifl.core.turn import Turn

SEEDS_MAX = 2000
"""Lives within which each planted bug must show."""


def sealed_output_is_overlooked(patch: pytest.MonkeyPatch) -> None:
    """A leaf whose worker died is made again although its partial was sealed: its updates count twice."""
    right = TaskTable._lost

    def lost(self: TaskTable, runner, task):
        if task.role == "leaf" and task.state is TaskState.RUNNING and self._quota.sealed(task.output):
            spec, epoch = runner._spec, runner.branch.epoch
            task.output = self._quota.alloc(Kind.PARTIAL, spec.number, epoch, spec.accumulator_bytes)
        return right(self, runner, task)

    patch.setattr(TaskTable, "_lost", lost)


def commit_is_repeated(patch: pytest.MonkeyPatch) -> None:
    """A commit that comes while the next round collects is written twice."""
    right = Commits._commit

    def commit(self: Commits, round_) -> None:
        right(self, round_)
        if round_.number and self._rounds.current is not None and self._rounds.current.accepted:
            row = {"metrics": {}, "path": "", "receipt": {}, "members": sorted(round_.accepted)}
            self._turn.emit(fx.SaveRound(self._spec.name, round_.number, round_.attempt, "committed", row))

    patch.setattr(Commits, "_commit", commit)


def top_is_not_asked(patch: pytest.MonkeyPatch) -> None:
    """A dead node's updates are asked for again although the top may have its partial: they count twice."""

    def give_up(self: BranchTracker, round_, record) -> None:
        record.move(BranchState.FORGETTING)
        self._turn.report(o.BranchForgotten(self._spec.number, round_.epoch, record.number))

    patch.setattr(BranchTracker, "give_up", give_up)


def rows_are_not_waited_for(patch: pytest.MonkeyPatch) -> None:
    """What a commit frees is gone before its row is durable: who is killed in between has lost what was ACCEPTED."""

    def emit(self: Turn, effect: fx.Effect) -> None:
        self.effects.append(effect)

    patch.setattr(Turn, "emit", emit)


@pytest.mark.parametrize(
    ("plant", "hosts"),
    [
        (sealed_output_is_overlooked, 1),
        (commit_is_repeated, 1),
        (rows_are_not_waited_for, 1),
        (top_is_not_asked, 3),
    ],
)
def test_a_planted_bug_is_found(
    plant: Callable[[pytest.MonkeyPatch], None], hosts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        plant(patch)
        found = next((seed for seed in range(SEEDS_MAX) if broken(seed, hosts)), None)
    assert found is not None, f"{SEEDS_MAX} lives found nothing"
    print(f"seed {found} found it")
    assert not broken(found, hosts), "it was the planted bug that it found"


def broken(seed: int, hosts: int) -> str:
    try:
        make(seed, hosts).run(STEPS)
    except Exception as error:  # noqa: BLE001 - a planted bug may show in any way
        return repr(error)
    return ""
