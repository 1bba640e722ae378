"""A user's rule that harms its own process: its job fails and says why, or goes on, and no other job notices."""

from __future__ import annotations

from collections.abc import Callable

import psutil
import pytest
from fleet import OneHot, Watch, fleet, submit, until
from nodes import Node

HARMFUL = """
import ctypes
import os
import sys
import threading
import time

from lifl.rules import Rule, RuleOptions


class NoText(Exception):
    def __str__(self):
        raise ValueError


class EndsInText(Exception):
    def __str__(self):
        os._exit(7)


class EndsWhenCollected:
    def __del__(self):
        sys.exit(3)


def replaced():
    null = os.open("/dev/null", os.O_RDONLY)
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd > 2:
            os.dup2(null, fd)


def threads():
    for _ in range(4):
        threading.Thread(target=time.sleep, args=(10**6,)).start()


def spoil():
    sys.modules.clear()
    os.environ.clear()
    os.chdir("/")


def raises(error):
    raise error


WAYS = {
    "spoil": spoil,
    "exit": lambda: sys.exit(3),
    "interrupt": lambda: raises(KeyboardInterrupt()),
    "no text": lambda: raises(NoText()),
    "half a letter": lambda: raises(ValueError(chr(0xDCFF))),
    "replaced descriptors": replaced,
    "closed descriptors": lambda: os.closerange(3, 4096),
    "threads": threads,
    "collected": EndsWhenCollected,
    "its text": lambda: raises(EndsInText()),
    "fork": os.fork,
    "end": lambda: os._exit(0),
    "crash": lambda: ctypes.string_at(0),
}
if os.path.exists(__file__ + ".ends") and open("/proc/self/comm").read().startswith("lifl-worker"):
    os._exit(7)


class Harmful(Rule):
    class Options(RuleOptions, frozen=True):
        way: str

    def finish(self, model, mean, state):
        WAYS[self.options.way]()
        return mean
"""
FLAGS = ("--redirector", "unix", "--workers-max", "1")


def run(node: Node, job: str, **keys: object) -> dict:
    """Run a job of two clients to its end."""
    oracle = OneHot(2)
    submit(node, job, oracle.model(), job__rounds=1, selection__attempts=1, **keys)
    watch = Watch(node, job)
    with fleet(node.address, job, 2, oracle.update) as team:
        over = watch.over()
        team.join(well=over["status"] == "finished")
    return over


def harmful(node: Node, way: str, job: str = "harmful") -> dict:
    folder = node.state_dir / "configs"
    folder.mkdir(exist_ok=True)
    (folder / "harmful.py").write_text(HARMFUL)
    return run(node, job, aggregation__rule="harmful:Harmful", aggregation__options={"way": way})


def test_what_it_does_to_its_process_no_other_job_meets(start_node: Callable[..., Node]) -> None:
    node = start_node(*FLAGS)
    # Whether one without descriptors has ended before what it made was sealed is a matter of luck.
    for number, way in enumerate(("spoil", "replaced descriptors", "closed descriptors", "threads", "collected")):
        harmful(node, way, f"harmful{number}")
        assert run(node, f"honest{number}")["status"] == "finished", way
    below = psutil.Process(node.pid).children(recursive=True)
    node.down()
    until("the end of all processes", lambda: not any(process.is_running() for process in below))


@pytest.mark.parametrize(
    ("way", "says"),
    [("exit", "SystemExit: 3"), ("interrupt", "KeyboardInterrupt"), ("no text", "NoText"), ("half a letter", "udcff")],
)
def test_whatever_it_raises_is_told(start_node: Callable[..., Node], way: str, says: str) -> None:
    node = start_node(*FLAGS)
    over = harmful(node, way)
    assert over["status"] == "failed"
    assert says in over["reason"]
    assert "harmful.py" in over["reason"]


@pytest.mark.parametrize(
    ("way", "says"),
    [
        ("end", "exit code 0"),
        ("crash", "signal SIGSEGV"),
        ("at import", "exit code 7"),
        ("its text", "exit code 7"),
    ],
)
def test_one_that_ends_its_process_fails_soon_and_holds_no_other_job(
    start_node: Callable[..., Node], way: str, says: str
) -> None:
    node, oracle = start_node("--redirector", "unix", "--workers-max", "2"), OneHot(2)
    submit(node, "honest", oracle.model(), job__rounds=1)
    if way == "at import":
        (node.state_dir / "configs" / "harmful.py.ends").touch()
    over = harmful(node, way)
    assert over["status"] == "failed"
    assert (
        f"3 workers died in turn while they ran it with rule harmful:Harmful (aggregation.rule), with {says}"
        in (over["reason"])
    )
    assert "Traceback" not in (node.state_dir / "lifld.log").read_text()
    with fleet(node.address, "honest", 2, oracle.update) as team:
        team.join()


def test_what_it_forks_takes_no_task_and_does_not_stay(start_node: Callable[..., Node]) -> None:
    node = start_node(*FLAGS)
    over = harmful(node, "fork")
    assert over["status"] == "failed"
    assert "PermissionError" in over["reason"] and "start no process" in over["reason"]
    below = psutil.Process(node.pid).children(recursive=True)
    node.down()
    until("the end of all processes", lambda: not any(process.is_running() for process in below))
