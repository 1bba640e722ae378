"""A job's objects are for the processes of that job: its rule and its local clients reach no other job's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
from fleet import OneHot, Watch, arena_use, ask, fleet, objects, submit, until
from nodes import Node
from stops import Stops

from lifl import Client
from lifl.confine import landlock
from lifl.core.ids import Kind
from lifl.core.protocol import cli as om
from lifl.shm.layout import ObjectState

SEEKER = """
import ctypes
import mmap
import os
import sys

from lifl.rules import Rule

MARK, NODE, HERE, OTHERS = {mark!r}, {node!r}, {here!r}, {others!r}
libc = ctypes.CDLL(None, use_errno=True)


def refused(way):
    try:
        way()
    except OSError:
        return True
    return False


class Seeker(Rule):
    def finish(self, model, mean, state):
        frame = sys._getframe()
        while not hasattr(frame.f_locals.get("self"), "_control"):
            frame = frame.f_back
        arena = frame.f_locals["self"]._arena
        views = [mapped.view for mapped in arena.segments._mapped.values()]
        assert len(views) == 1, len(views)
        assert bytes(mean[:2].astype("float32")) != MARK
        assert MARK not in bytes(views[0]), "another job's bytes"
        for fd in range(64):
            try:
                with mmap.mmap(fd, 0, access=mmap.ACCESS_READ) as mapped:
                    assert MARK not in mapped[:], fd
                    table = mapped[:7] == b"LIFLSHM"
            except (OSError, ValueError):
                continue
            assert not table or refused(lambda: mmap.mmap(fd, 4096)), "the table can be written to"
        for name in OTHERS if HERE else ():
            assert refused(lambda: os.open("/dev/shm/" + name, os.O_RDONLY)), name
        for name in OTHERS:
            assert refused(lambda: os.open("/dev/shm/" + name, os.O_RDWR)), name
        # Nor is the table changed by others than lifld, which may read what objects there are.
        table = (ctypes.c_char * 4096).from_buffer_copy(arena._view[:4096])
        assert table.raw.startswith(b"LIFLSHM")
        assert arena._view.readonly
        # What it may do is harm to its own job.
        views[0][:] = b"\\xff" * len(views[0])
        raise RuntimeError("it saw nothing of others")
"""
VICTIMS, BALLAST_BYTES = 3, 1 << 20
MARK = np.float32(1).tobytes() * 1024
"""What the ballast of a victim's first update looks like (`OneHot.update`), and nothing else does."""


@pytest.fixture
def node(start_node: Callable[..., Node]) -> Node:
    return start_node("--redirector", "unix")


def name_of_segment(node: Node, job: int) -> str:
    return next(path.name for path in node.segments.values() if path.name.endswith(f".{job}"))


def marked(node: Node, job: int) -> bool:
    """The victim's bytes are where it is looked for."""
    return (Path("/dev/shm") / name_of_segment(node, job)).read_bytes().count(MARK) > 0


def harmed_by(node: Node, harm: Callable[[int], None]) -> None:
    """Do harm while two of three updates of another job are sealed in the arena; that job commits what was sent."""
    oracle = OneHot(VICTIMS, BALLAST_BYTES)
    submit(node, "victim", oracle.model(), aggregation__timing="lazy")
    watch = Watch(node, "victim")
    with fleet(node.address, "victim", VICTIMS, oracle.update, held=[(2, 1)]) as team:
        watch.wait("update.accepted", 2)
        sealed = [e for e in objects(node) if e.kind == Kind.UPDATE and e.state == ObjectState.SEALED]
        assert len(sealed) == 2 and marked(node, sealed[0].job)
        harm(sealed[0].job)
        team.release()
        team.join()
        oracle.check(node, "victim", team)
    assert node.is_up()
    assert until("an empty arena", lambda: arena_use(node) == (0, 0))


def test_a_hostile_rule_finds_no_other_jobs_bytes_and_harms_its_own_job_alone(node: Node) -> None:
    def harm(victim: int) -> None:
        others = [path.name for path in node.segments.values()] + [node.segment.name]
        folder = node.state_dir / "configs"
        known = {"mark": MARK, "node": node.info["node"], "here": bool(landlock.version()), "others": others}
        (folder / "seeker.py").write_text(SEEKER.format(**known))
        oracle = OneHot(2)
        keys = {"aggregation__rule": "seeker:Seeker", "selection__attempts": 1}
        submit(node, "hostile", oracle.model(), **keys)
        watch = Watch(node, "hostile")
        with fleet(node.address, "hostile", 2, oracle.update) as team:
            over = watch.over()
            team.join(well=False)
        assert over["status"] == "failed" and "it saw nothing of others" in over["reason"], over

    harmed_by(node, harm)


def test_a_hostile_local_client_finds_no_other_jobs_bytes_and_harms_its_own_job_alone(node: Node) -> None:
    """It keeps what it was given mapped, and writes all over it after its update was sealed."""

    def harm(victim: int) -> None:
        oracle = OneHot(2)
        submit(node, "hostile", oracle.model())
        with (
            fleet(node.address, "hostile", 1, oracle.update, held=[(0, 1)]),
            Client(str(node.state_dir), job="hostile", client="mine") as client,
        ):
            round_ = next(client.rounds())
            tensors, weight, _ = oracle.update(1, 1)
            assert round_.submit(tensors, weight).accepted
            stream = client._home.stream
            assert stream is not None and stream._segment is not None, "it did not write to the arena itself"
            given = stream._segment
            held = {os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_link(fd)}
            assert not [path for path in held if "/dev/shm/lifl" in path]
            (own,) = [e for e in objects(node) if e.kind == Kind.UPDATE and e.job != victim]
            assert tensors["w"].tobytes() in bytes(given[own.offset : own.offset + own.data_bytes])
            assert MARK not in bytes(given)
            given[:] = b"\xff" * len(given)
            # The kernel takes no mapping back: what was sealed is changed, in its own job.
            (own,) = [e for e in objects(node) if e.kind == Kind.UPDATE and e.job != victim]
            assert set(given[own.offset : own.offset + own.data_bytes]) == {0xFF}
            del given
        node.lifl("cancel", "hostile")

    harmed_by(node, harm)


CUTTER = """
import os
import sys

import numpy as np

from lifl import Client
from lifl.client.stream import Stream

state, job, path = sys.argv[1:]
given = []
close = Stream._close_descriptors


def keep(stream):
    given.extend(map(os.dup, stream._descriptors))
    close(stream)


Stream._close_descriptors = keep
with Client(state, job=job, client="mine") as client:
    round_ = next(client.rounds())
    tensors = {name: np.zeros_like(array) for name, array in round_.model.items()}
    assert round_.submit(tensors, 1.0).accepted
    assert os.path.samestat(os.fstat(given[-1]), os.stat(path))
    try:
        os.ftruncate(given[-1], 4096)
        print("cut", flush=True)
    except OSError:
        print("refused", flush=True)
    sys.stdin.readline()
    os.truncate(path, 4096)
    print("cut", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("while_sealing", [False, True], ids=["between", "while the gateway writes there"])
def test_a_local_client_that_cuts_its_jobs_memory_off_ends_its_own_job_alone(
    start_node: Callable[..., Node], while_sealing: bool
) -> None:
    """It cannot by what it is handed; a program of the node's account can by the name, as it could kill the node."""
    with Stops("gateway.seal.before") as stops:
        node = start_node("--redirector", "unix", points=stops.variable)
        harmed_by(node, lambda victim: cut_off(node, victim, stops if while_sealing else None))


def cut_off(node: Node, victim: int, stops: Stops | None) -> None:
    """A job of two clients loses its memory to one of them; with `stops` while the gateway is to seal the other's."""
    oracle = OneHot(2, BALLAST_BYTES)
    submit(node, "hostile", oracle.model())
    watch = Watch(node, "hostile")
    with fleet(node.address, "hostile", 1, oracle.update, held=[(0, 1)]) as team:
        if stops is None:  # the next gateway finds the segment by its name
            os.kill(ask(node, om.Snapshot())["node"]["gateway"]["pid"], signal.SIGKILL)
        (path,) = (each for each in node.segments.values() if not each.name.endswith(f".{victim}"))
        command = [sys.executable, "-c", CUTTER, str(node.state_dir), "hostile", str(path)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as cutter:
            assert cutter.stdin is not None and cutter.stdout is not None
            assert cutter.stdout.readline().strip() == ("refused" if landlock.version() >= 3 else "cut")
            visit = None
            if stops is not None:
                hold = stops.hold("gateway.seal.before")
                team.release()
                visit = hold.reached()
            print(file=cutter.stdin, flush=True)
            assert cutter.stdout.readline().strip() == "cut"
            if visit is None:
                team.release()
            else:
                visit.go()
            over = watch.over()
            cutter.communicate("")
        team.join(well=False)
    reason = "was cut by another program" if stops is not None else ""
    assert over["status"] == "failed" and reason in over["reason"], over
    assert (node.state_dir / "lifld.log").read_text().count("gateway.ended") == 1


@pytest.mark.parametrize("process", ["journal", "http"])
def test_memory_that_was_cut_off_is_seen_at_the_end_of_whoever_may_have_died_of_it(
    start_node: Callable[..., Node], process: str
) -> None:
    """The journal reads updates there, and the door for HTTP writes them: a job that has lost its bytes ends then."""
    node = start_node("--redirector", "unix", "--http", "127.0.0.1:0", "--idle-timeout-s", "1000")

    def harm(victim: int) -> None:
        oracle = OneHot(2, BALLAST_BYTES)
        submit(node, "hostile", oracle.model(), job__durability="disk")
        watch = Watch(node, "hostile")
        with fleet(node.address, "hostile", 2, oracle.update, held=[(0, 1)]) as team:
            watch.wait("update.accepted", 1)
            (path,) = (each for each in node.segments.values() if not each.name.endswith(f".{victim}"))
            os.truncate(path, 4096)
            children = psutil.Process(node.pid).children()
            next(each for each in children if f"lifl.node.{process}.main" in each.cmdline()).kill()
            over = watch.over()
            team.release()
            team.join(well=False)
        assert over["status"] == "failed" and "was cut by another program" in over["reason"], over

    harmed_by(node, harm)


def _is_link(fd: str) -> bool:
    return os.path.islink(f"/proc/self/fd/{fd}")


def test_a_killed_node_goes_on_with_the_segments_of_two_jobs(node: Node) -> None:
    oracles = {job: OneHot(2, ballast) for job, ballast in (("one", 1 << 20), ("other", 3 << 20))}
    watches = {}
    for job, oracle in oracles.items():
        submit(node, job, oracle.model(), job__rounds=2)
        watches[job] = Watch(node, job)
    with (
        fleet(node.address, "one", 2, oracles["one"].update, held=[(1, 1)]) as one,
        fleet(node.address, "other", 2, oracles["other"].update, held=[(1, 1)]) as other,
    ):
        for watch in watches.values():
            watch.wait("update.accepted", 1)
        assert len(node.segments) == 2
        node.kill()
        node.up("--listen", node.address)
        assert node.info["adopted"] == {"jobs": 2, "updates": 2}
        for team in (one, other):
            team.release()
            team.join()
        for job, team in (("one", one), ("other", other)):
            lines = oracles[job].check(node, job, team)
            assert len(lines) == 2
    assert until("an empty arena", lambda: arena_use(node) == (0, 0))


# ---- jobs one after the other ----------------------------------------------------------------------------------------


def memory_of(node: Node, job: str, address: str, update: OneHot) -> int:
    """The inode of the segment of a job of one round that clients at this address take part in, from its end on."""
    submit(node, job, update.model())
    watch = Watch(node, job)
    with fleet(address, job, 2, update.update, held=[(1, 1)]) as team:
        watch.wait("update.accepted", 1)
        number = next(entry.job for entry in objects(node) if entry.kind == Kind.UPDATE)
        inode = (Path("/dev/shm") / name_of_segment(node, number)).stat().st_ino
        team.release()
        team.join()
        assert watch.over()["status"] == "finished"
    update.check(node, job, team)
    assert until("an empty arena", lambda: arena_use(node) == (0, 0))
    return inode


def test_the_next_job_of_an_account_goes_on_in_the_memory_of_the_last_unless_a_local_client_may_have_it(
    node: Node,
) -> None:
    by_tcp, local = node.address, str(node.state_dir)
    first = memory_of(node, "first", by_tcp, OneHot(2, 1 << 20))
    assert memory_of(node, "second", by_tcp, OneHot(2, 3 << 20)) == first
    assert memory_of(node, "third", local, OneHot(2)) == first, "it was warm, and nobody else's"
    fourth = memory_of(node, "fourth", local, OneHot(2))
    assert memory_of(node, "fifth", by_tcp, OneHot(2)) not in (first, fourth)
