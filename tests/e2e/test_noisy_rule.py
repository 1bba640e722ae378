"""A user's rule that writes to standard error without measure: no disk fills, nobody hangs, the end is kept."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import suppress

import psutil
from fleet import OneHot, Watch, fleet, submit, until
from nodes import Node

from lifl.node.children import LAST_WORDS_BYTES

NOISE_BYTES = 4 * 1024 * 1024
"""For each tensor of each round."""
NOISY = f"""
import sys
from lifl.rules import Rule


class Noisy(Rule):
    def finish(self, model, mean, state):
        for _ in range({NOISE_BYTES} // 1024):
            print("x" * 1023, file=sys.stderr)
        print("the last word", file=sys.stderr)
        return mean


class Endless(Rule):
    def fold(self, acc, updates, weights, keep):
        while True:
            print("x" * 1023, file=sys.stderr)
"""
FLAGS = ("--redirector", "unix")


def write_rule(node: Node) -> None:
    folder = node.state_dir / "configs"
    folder.mkdir()
    (folder / "noisy.py").write_text(NOISY)


def unlinked_bytes(pid: int) -> int:
    """What the files on a disk take that a process holds and that have no name any more."""
    nbytes = 0
    for each in os.scandir(f"/proc/{pid}/fd"):
        with suppress(FileNotFoundError):  # closed meanwhile
            found = os.stat(each.path)
            if not os.readlink(each.path).startswith("/memfd:") and stat.S_ISREG(found.st_mode) and not found.st_nlink:
                nbytes += found.st_size
    return nbytes


def zygote_of(node: Node) -> psutil.Process:
    (found,) = [each for each in psutil.Process(node.pid).children() if "lifl.worker.zygote" in each.cmdline()]
    return found


def test_what_it_writes_takes_no_room_and_its_end_is_kept(start_node: Callable[..., Node]) -> None:
    node, oracle = start_node(*FLAGS), OneHot(2)
    write_rule(node)
    submit(node, "j", oracle.model(), aggregation__rule="noisy:Noisy", job__rounds=2)
    with fleet(node.address, "j", 2, oracle.update) as team:
        team.join()
    assert len(oracle.check(node, "j", team)) == 2
    assert unlinked_bytes(node.pid) <= LAST_WORDS_BYTES
    log = node.state_dir / "lifld.log"
    assert log.stat().st_size < NOISE_BYTES / 100
    zygote_of(node).kill()
    said = until("its last words", lambda: log.read_text().partition("zygote.ended ")[2])
    kept, end, _ = said.partition("\nthe last word\n")
    assert end and len(kept + end) == LAST_WORDS_BYTES


def test_a_node_ends_while_it_writes(start_node: Callable[..., Node]) -> None:
    node, oracle = start_node(*FLAGS), OneHot(8)
    write_rule(node)
    submit(node, "j", oracle.model(), aggregation__rule="noisy:Endless", aggregation__fan_in=1)
    watch = Watch(node, "j")
    with fleet(node.address, "j", 8, oracle.update, held=[(7, 1)]):
        watch.wait("update.accepted", 7)
        zygote = zygote_of(node)
        until("a worker at work", lambda: any(sum(each.cpu_times()) > 0.2 for each in zygote.children()))
        node.down()
    assert not node.is_up() and not zygote.is_running()
