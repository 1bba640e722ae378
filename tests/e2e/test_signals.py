"""Signals that a stray `kill`, a terminal or an init system sends to a node's processes: none of them ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence

import psutil
from fleet import OneHot, ask, fleet, gated, submit
from limits_page import CHILDREN, SIGNALS
from nodes import Node

from lifl.confine import signals
from lifl.core.protocol import cli as om

N = 4


def processes(node: Node) -> dict[int, str]:
    """The node's processes by pid, lifld first; workers have the zygote's command line."""
    lifld = psutil.Process(node.pid)
    return {each.pid: " ".join(each.cmdline()) for each in (lifld, *lifld.children(recursive=True))}


def send(pids: Sequence[int], numbers: Sequence[int]) -> None:
    for pid in pids:
        for number in numbers:
            os.kill(pid, number)


def test_the_table_has_every_signal_for_every_process() -> None:
    for process in ("lifld", *CHILDREN.split(", ")):
        told = {number for numbers, who, _ in SIGNALS if process in who or who == "any" for number in numbers}
        assert told == set(signal.valid_signals()), process


def test_none_ends_a_process_in_the_middle_of_a_round(start_node: Callable[..., Node]) -> None:
    """lifld, gateway, zygote, journal and a worker at work get each signal that is not to end them."""
    node, oracle = start_node(), OneHot(N)
    with gated(node, "fold") as (keys, (gate,)):
        submit(node, "j", oracle.model(), job__durability="disk", job__rounds=2, **keys)
        with fleet(node.address, "j", N, oracle.update) as team:
            gate.reached()
            before = processes(node)
            lifld, *children = before
            modules = " ".join(before.values())
            assert all(module in modules for module in ("gateway.main", "zygote", "journal.main")), before
            assert len(children) > 3, "a worker is at work"
            send([lifld], signals.STRAY)
            send(children, (*signals.STRAY, *signals.ENDS))
            gate.open()
            team.join()
            lines = oracle.check(node, "j", team)
    assert [line["attempt"] for line in lines] == [1, 1]
    assert {task["attempt"] for line in lines for task in line["receipt"]["tree"]} == {1}, "no worker was replaced"
    assert ask(node, om.JobStatus("j"))["job"]["status"] == "finished"
    assert set(children) - set(processes(node)) <= {pid for pid, text in before.items() if "zygote" in text}
    standing = {pid for pid, text in before.items() if "gateway.main" in text or pid == lifld}
    assert standing <= set(processes(node))
    node.down()


def test_who_waits_for_ever_at_its_end_is_ended_by_the_kernel() -> None:
    """As Python does for a thread for which there was no memory: lifld said that it had ended, and stayed."""
    code = "from lifl.confine import signals; signals.ignore_stray(); signals.end_within(1); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as process:
        assert process.wait(60) == -signal.SIGALRM
