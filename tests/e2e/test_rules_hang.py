"""A user's rule that never returns: it is killed at the deadline, at cancel and at `lifl down`, and nothing is left."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from fleet import OneHot, Watch, arena_use, ask, fleet, submit, until, workers
from nodes import Foreground, Node

from lifl.core.protocol import cli as om

RULE = '''
import signal

from lifl.rules import Rule, RuleOptions

for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)


class Endless(Rule):
    """FedAvg that never returns from where it is told to."""

    class Options(RuleOptions, frozen=True):
        place: str = ""

    def loop(self, place):
        while self.options.place == place:
            pass

    def fold(self, acc, updates, weights, keep):
        self.loop("fold")
        super().fold(acc, updates, weights, keep)

    def finish(self, model, mean, state):
        self.loop("finish")
        return mean
'''
DEEP_RULE = """
import sys

from lifl.rules import Rule

sys.setrecursionlimit(2**31 - 1)


class Deep(Rule):
    def fold(self, acc, updates, weights, keep):
        self.fold(acc, updates, weights, keep)

    def finish(self, model, mean, state):
        return mean
"""
HASTY = "from lifl.node import daemon; daemon.DRAIN_S = 2.0"
FAN_IN_ONE = {"aggregation__fan_in": 1}


def endless(node: Node, job: str, place: str, **keys: object) -> OneHot:
    """Submits a job whose rule does not return from `place`."""
    oracle = OneHot(8)
    folder = node.state_dir / "configs"
    folder.mkdir(exist_ok=True)
    (folder / "endless_rule.py").write_text(RULE)
    own = {"aggregation__rule": "endless_rule:Endless", "aggregation__options": {"place": place}}
    submit(node, job, oracle.model(), **own, **FAN_IN_ONE, **keys)
    return oracle


def busy(node: Node) -> list[int]:
    """The processes of the workers that run a task."""
    return [each["pid"] for each in ask(node, om.Snapshot())["workers"] if each["tasks"] and each["pid"]]


def spinning(node: Node) -> psutil.Process:
    """The worker that is in the rule: it takes CPU, and does nothing else."""

    def look() -> psutil.Process | None:
        for pid in busy(node):
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                if process.cpu_times().user > 0.5:
                    return process
        return None

    found: psutil.Process = until("a worker that loops", look)
    return found


def has_ended(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize("place", ["fold", "finish"])
def test_at_the_deadline_its_worker_is_killed_and_the_round_fails_and_says_so(
    start_node: Callable[..., Node], place: str
) -> None:
    node = start_node("--redirector", "unix")
    oracle = endless(node, "j", place, aggregation__task_deadline_s=1.0, selection__attempts=1)
    watch = Watch(node, "j")
    with fleet(node.address, "j", 8, oracle.update) as team:
        over = watch.over()
        team.join(well=False)
    assert over["status"] == "failed"
    assert "did not end within 1 s (aggregation.task_deadline_s); its worker was killed" in over["reason"]
    until("no worker that loops", lambda: not busy(node))
    until("an empty arena", lambda: arena_use(node) == (0, 0))


def test_one_that_recurses_without_end_fails_before_it_has_filled_the_memory(start_node: Callable[..., Node]) -> None:
    node = start_node("--redirector", "unix")
    oracle = OneHot(8)
    folder = node.state_dir / "configs"
    folder.mkdir(exist_ok=True)
    (folder / "deep_rule.py").write_text(DEEP_RULE)
    submit(node, "j", oracle.model(), aggregation__rule="deep_rule:Deep", aggregation__fan_in=1, selection__attempts=1)
    watch = Watch(node, "j")
    with fleet(node.address, "j", 8, oracle.update) as team:
        over = watch.over()
        team.join(well=False)
    assert over["status"] == "failed"
    assert "RecursionError" in over["reason"]


def test_at_cancel_its_worker_is_killed(start_node: Callable[..., Node]) -> None:
    node = start_node("--redirector", "unix")
    oracle = endless(node, "j", "fold")
    with fleet(node.address, "j", 8, oracle.update) as team:
        worker = spinning(node)
        ask(node, om.CancelJob("j"))
        until("its end", lambda: has_ended(worker))
        team.join(well=False)
    until("an empty arena", lambda: arena_use(node) == (0, 0))


def test_at_down_its_worker_is_killed(state_dir: Path) -> None:
    """After the time that rounds have for their end."""
    node = Foreground(state_dir, ("--listen", "127.0.0.1:0", "--arena-bytes", "64MiB", "--redirector", "unix"), HASTY)
    node.up()
    try:
        oracle = endless(node, "j", "fold")
        with fleet(node.address, "j", 8, oracle.update):
            worker = spinning(node)
            node.lifl("down")
            until("its end", lambda: has_ended(worker))
    finally:
        node.end()
    assert "rounds were not committed within 2 s" in (state_dir / "lifld.log").read_text()


def test_a_worker_that_is_stopped_is_killed_and_its_task_is_done_by_another(start_node: Callable[..., Node]) -> None:
    node = start_node("--redirector", "unix")
    oracle = OneHot(8)
    submit(node, "j", oracle.model(), job__rounds=3, **FAN_IN_ONE)
    with fleet(node.address, "j", 8, oracle.update, held=[(0, 2)]) as team:
        until("the second round", lambda: ask(node, om.JobStatus("j"))["job"]["committed"] == 1)
        for pid in workers(node):
            os.kill(pid, signal.SIGSTOP)
        team.release()
        team.join()
    oracle.check(node, "j", team)


def test_a_gateway_that_is_stopped_is_killed_and_its_clients_come_to_the_next(start_node: Callable[..., Node]) -> None:
    node = start_node("--redirector", "unix")
    oracle = OneHot(8)
    submit(node, "j", oracle.model(), job__rounds=3)
    with fleet(node.address, "j", 8, oracle.update, held=[(0, 2)]) as team:
        until("the second round", lambda: ask(node, om.JobStatus("j"))["job"]["committed"] == 1)
        os.kill(ask(node, om.Snapshot())["node"]["gateway"]["pid"], signal.SIGSTOP)
        team.release()
        team.join()
    oracle.check(node, "j", team)
