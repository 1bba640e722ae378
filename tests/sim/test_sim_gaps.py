"""How long a job stands still when a part of a cluster fails for good, on the simulator's clock: 10 s at most.

The counterpart of `tests/cluster/gaps.py`, which measures the same with real processes.  Here whatever can happen does
so at once: what is left of a gap are the times after which somebody notices.  Those of the engine are its own; those
of its surroundings (the membership, the clients' watch, the driver's tries at a row) are theirs by name.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import sim_workers
import simulator
from scenes import job, scene
from sim_host import Host

from lifl.client.liveness import ANSWER_S, SILENT_S
from lifl.core import effects as fx
from lifl.core import events as ev
from lifl.core.limits import DATABASE_RETRY_S, DATABASE_RETRY_S_MAX
from lifl.core.protocol import worker as wm
from lifl.core.protocol.cluster import DEAD_S

GAP_MAX_S = 10.0
BEFORE, AFTER = 4, 12
"""Rounds before the fault, and after its gap."""
FULL_S = (1.0, 20.0, 300.0)
"""How long a disk is full."""
NEVER = 1e12
STEPS_MAX = 200_000


class Gaps:
    """A job of six clients on three hosts; `at` says what happens when, beside all that happens by itself."""

    def __init__(self, seed: int) -> None:
        self.cluster = scene(job("a", goal=6, rounds=100_000, deadline_s=1_000.0), hosts=3, seed=seed)
        self.cluster.validates_always = False
        self.cluster.disk.calm = False  # a round may fail, and be tried again
        self.commits: list[float] = []
        self._due: list[tuple[float, Callable[[], Any]]] = []
        next_time = self.cluster._next_time
        self.cluster._next_time = lambda: min(  # type: ignore[method-assign]
            (each for each in (next_time(), *(at_s for at_s, _ in self._due)) if each is not None), default=None
        )
        self.until(lambda: len(self.commits) == BEFORE)

    def at(self, after_s: float, what: Callable[[], Any]) -> None:
        self._due.append((self.cluster.now + after_s, what))

    def until(self, holds: Callable[[], Any]) -> None:
        for _ in range(STEPS_MAX):
            if holds():
                return
            for due in [each for each in self._due if each[0] <= self.cluster.now]:
                self._due.remove(due)
                due[1]()
            assert self.cluster.step(), "it came to rest"
            committed = len(self.cluster.jobs["a"].commits) - (0 in self.cluster.jobs["a"].commits)
            self.commits += [self.cluster.now] * (committed - len(self.commits))
        raise AssertionError("it did not come to that")

    def longest_s(self) -> float:
        """The longest time without a commit from now on, until so many have followed what was to happen."""
        first = len(self.commits) - 1
        self.until(lambda: not self._due)
        after = len(self.commits)
        self.until(lambda: len(self.commits) >= after + AFTER)
        return max(later - earlier for earlier, later in pairwise(self.commits[first:]))

    def end(self) -> None:
        """The job is cancelled, and leaves nothing."""
        self.cluster.faults.quiet()
        self.cluster.faults.cancel("a")
        self.cluster.run(0)


@pytest.fixture(params=range(2))
def gaps(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Gaps:
    monkeypatch.setattr(simulator, "TIME_PASSES", 0.0)
    monkeypatch.setattr(sim_workers, "SLOW_FILES", 0.0)
    return Gaps(request.param)


# ---- processes of a host ---------------------------------------------------------------------------------------------

Fault = Callable[[Gaps, Host], Any]


def gateway_killed(gaps: Gaps, host: Host) -> None:
    gaps.cluster.lives.kill_gateway(host)


def gateway_stopped(_gaps: Gaps, host: Host) -> None:
    host.frozen_until = NEVER


def workers_killed(gaps: Gaps, host: Host) -> None:
    """As by the death of the zygote, with which they end."""
    for worker in list(host.workers.values()):
        gaps.cluster.workers.kill(host, worker)


def workers_stopped(_gaps: Gaps, host: Host) -> None:
    for worker in host.workers.values():
        worker.frozen_until, worker.stopped = NEVER, True


def zygote_stopped(gaps: Gaps, host: Host) -> None:
    """What is to be forked does not run until the children are looked at: then the zygote ends, and all its workers."""
    effect, state = gaps.cluster._effect, {"stopped": True}

    def noticing(where: Host, done: fx.Effect) -> None:
        effect(where, done)
        if where is host and state["stopped"]:
            if isinstance(done, fx.ForkWorker):
                where.workers[done.worker].frozen_until = NEVER
            elif isinstance(done, fx.LookAtChildren):
                state["stopped"] = False
                gaps.at(0.0, lambda: workers_killed(gaps, host))

    gaps.cluster._effect = noticing  # type: ignore[method-assign]
    workers_killed(gaps, host)  # else nothing is to be forked


PROCESSES: list[Fault] = [gateway_killed, gateway_stopped, workers_killed, workers_stopped, zygote_stopped]


@pytest.mark.parametrize("number", [1, 2], ids=["of the coordinator", "of another"])
@pytest.mark.parametrize("fault", PROCESSES)
def test_a_process_fails(gaps: Gaps, fault: Fault, number: int) -> None:
    fault(gaps, gaps.cluster.hosts[number])
    assert gaps.longest_s() <= GAP_MAX_S
    gaps.end()


# ---- a whole host ----------------------------------------------------------------------------------------------------


def silence(gaps: Gaps, host: Host) -> None:
    """A host of which nothing is heard: its clients go elsewhere, then it is declared dead."""
    cluster = gaps.cluster
    choices, agent_choices, others = cluster._choices, cluster._agent_choices, cluster.others
    cluster._choices = lambda each, found: None if each is host else choices(each, found)  # type: ignore[method-assign]
    cluster._agent_choices = lambda each: [] if each is host else agent_choices(each)  # type: ignore[method-assign]
    cluster.others = lambda: [each for each in others() if each is not host]  # type: ignore[method-assign]
    gaps.at(SILENT_S + ANSWER_S, lambda: cluster.lives._end(host, keep=False))
    gaps.at(DEAD_S, lambda: cluster.handle(cluster.home, ev.NodeSuspect(host.number, True)))
    gaps.at(DEAD_S, lambda: cluster.lives.bury(host))


@pytest.mark.parametrize("notice", ["at once", "when it is silent for long"])
def test_a_host_fails(gaps: Gaps, notice: str) -> None:
    """kill -9 of all its processes ends its connections; of a machine that hangs, or has no power, nobody hears."""
    host = gaps.cluster.hosts[2]
    silence(gaps, host)
    if notice == "at once":
        gaps.cluster.lives.node_dies(host)
    assert gaps.longest_s() <= GAP_MAX_S


# ---- the coordinator's disk ------------------------------------------------------------------------------------------


def database_full(gaps: Gaps, until_s: float) -> None:
    """No row is written: what is decided and what comes waits, as in `node/driver.py`."""
    cluster, home = gaps.cluster, gaps.cluster.home
    handle, performed, choices, backlog = cluster.handle, cluster._performed, cluster._choices, []
    state: dict[str, Any] = {"rest": None, "retry_s": DATABASE_RETRY_S}

    def waits(effects: list[fx.Effect]) -> bool:
        rows = [at for at, each in enumerate(effects) if isinstance(each, fx.ROWS)]
        if not rows or cluster.now >= until_s:
            return False
        performed(home, effects[: rows[0]])
        state["rest"] = effects[rows[0] :]
        gaps.at(state["retry_s"], again)
        state["retry_s"] = min(2 * state["retry_s"], DATABASE_RETRY_S_MAX)
        return True

    def again() -> None:
        effects = state["rest"]
        if waits(effects):
            return
        state["rest"] = None
        performed(home, effects)
        if home.engine is not None and home.engine.writing:
            cluster.handle(home, ev.RowsWritten())
        while backlog and state["rest"] is None:
            cluster.handle(home, backlog.pop(0))

    def handling(host: Host, event: Any) -> None:
        if host is home and state["rest"] is not None:
            backlog.append(event)
        else:
            handle(host, event)

    def performing(host: Host, effects: list[fx.Effect]) -> bool:
        return not (host is home and waits(effects)) and performed(host, effects)

    def choosing(host: Host, found: list[Callable[[], Any]]) -> None:
        if host is not home or state["rest"] is None:
            choices(host, found)

    cluster.handle, cluster._performed = handling, performing  # type: ignore[method-assign]
    cluster._choices = choosing  # type: ignore[method-assign]


def checkpoints_full(gaps: Gaps, until_s: float) -> None:
    """No checkpoint is written."""
    end_file = gaps.cluster.workers._end_file

    def failing(host: Host, worker: Any) -> None:
        message = worker.file
        if isinstance(message, wm.Checkpoint) and gaps.cluster.now < until_s:
            worker.file = None
            worker.fail(message, "No space left on device", retry=True)
        else:
            end_file(host, worker)

    gaps.cluster.workers._end_file = failing  # type: ignore[method-assign]


@pytest.mark.parametrize("full_s", FULL_S)
@pytest.mark.parametrize("full", [database_full, checkpoints_full])
def test_the_disk_is_full_and_has_room_again(gaps: Gaps, full: Callable[[Gaps, float], None], full_s: float) -> None:
    """No round is committed meanwhile; from when there is room it takes no longer than after another fault."""
    room_s = gaps.cluster.now + full_s
    full(gaps, room_s)
    gaps.at(full_s, lambda: None)
    gaps.longest_s()
    assert not [at_s for at_s in gaps.commits[BEFORE + 1 :] if at_s < room_s - full_s]
    assert min(at_s for at_s in gaps.commits if at_s >= room_s) - room_s <= GAP_MAX_S
    gaps.end()
