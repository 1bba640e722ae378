"""`job.durability = "disk"`: what was ACCEPTED survives the machine, whose memory and processes are gone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from fleet import OneHot, Watch, arena_use, fleet, submit, until
from nodes import Node
from stops import Stops, Visit

N = 4


def power_off(node: Node) -> None:
    """All processes of the node are killed, and its memory is gone."""
    children = psutil.Process(node.pid).children(recursive=True)
    node.kill()
    psutil.wait_procs(children)
    node.remove_arena()


def journals(node: Node) -> list[Path]:
    return sorted((node.state_dir / "updates").glob("*.journal"))


def durable(node: Node, oracle: OneHot, **keys: Any) -> Watch:
    submit(node, "j", oracle.model(), **{"job__durability": "disk", **keys})
    return Watch(node, "j")


@pytest.mark.parametrize("ballast_bytes", [0, 1_300_000])
def test_a_round_goes_on_without_those_whose_updates_were_accepted(
    start_node: Callable[..., Node], ballast_bytes: int
) -> None:
    """Three of four have been accepted when the power goes, and never come back; the fourth comes afterwards."""
    node, oracle = start_node("--redirector", "unix"), OneHot(N, ballast_bytes)
    watch = durable(node, oracle)
    with fleet(node.address, "j", N, oracle.update, held=[(3, 1)]) as team:
        watch.wait("update.accepted", 3)
        assert len(journals(node)) == 1
        power_off(node)
        team.close()
    node.up()
    assert node.info["adopted"] == {"jobs": 1, "updates": 3}
    watch = Watch(node, "j")
    with fleet(node.address, "j", N, oracle.update, held=[(0, 1), (1, 1), (2, 1)]) as team:
        watch.over()
        team.close()
    (line,) = oracle.check(node, "j")
    assert line["receipt"]["counted"] == N
    assert until("no journal", lambda: not journals(node))
    assert until("an empty arena", lambda: arena_use(node) == (0, 0))


@pytest.mark.parametrize(
    "point", ["journal.write.before", "journal.sync.before", "journal.sync.after", "gateway.ack.before"]
)
def test_around_the_sync_nothing_is_lost_or_doubled(start_node: Callable[..., Node], point: str) -> None:
    with Stops(point) as stops:
        node, oracle = start_node("--redirector", "unix", points=stops.variable), OneHot(N)
        durable(node, oracle, job__rounds=2)
        hold = stops.hold(point)
        with fleet(node.address, "j", N, oracle.update) as team:
            visit = hold.reached()
            power_off(node)
            visit.go()
            node.points = ""
            node.up("--listen", node.address)
            team.join()
    for line in oracle.check(node, "j", team):
        assert line["receipt"]["counted"] == N


def test_the_journals_process_dies_and_nobody_notices(start_node: Callable[..., Node]) -> None:
    with Stops("journal.sync.before") as stops:
        node, oracle = start_node("--redirector", "unix", points=stops.variable), OneHot(N)
        durable(node, oracle, job__rounds=2)
        hold = stops.hold("journal.sync.before")
        with fleet(node.address, "j", N, oracle.update) as team:
            hold.reached().kill()
            team.join()
    for line in oracle.check(node, "j", team):
        assert line["receipt"]["counted"] == N


@pytest.mark.parametrize("code", ["ENOSPC", "EIO"])
def test_a_disk_that_takes_nothing_is_told_and_the_job_goes_on_by_itself(
    start_node: Callable[..., Node], code: str
) -> None:
    full = threading.Event()
    full.set()

    def disk(_visit: Visit) -> str:
        return f"raise:{code}" if full.is_set() else ""

    with Stops("journal.sync.before", decide=disk) as stops:
        node, oracle = start_node("--redirector", "unix", points=stops.variable), OneHot(N)
        watch = durable(node, oracle)
        with fleet(node.address, "j", N, oracle.update) as team:
            warnings = until("the fault in the status", lambda: node.snapshot()["node"]["warnings"])
            assert "updates cannot be written to" in warnings[0]
            assert not [event for event in watch.events if event.name == "update.accepted"]
            full.clear()
            team.join()
        assert not node.snapshot()["node"]["warnings"]
    oracle.check(node, "j", team)


def test_kill_9_of_lifld_alone_goes_on_from_the_arena(start_node: Callable[..., Node]) -> None:
    node, oracle = start_node("--redirector", "unix"), OneHot(N)
    watch = durable(node, oracle)
    with fleet(node.address, "j", N, oracle.update, held=[(3, 1)]) as team:
        watch.wait("update.accepted", 3)
        node.kill()
        node.up("--listen", node.address)
        assert node.info["adopted"]["updates"] == 3
        team.release()
        team.join()
    oracle.check(node, "j", team)


def test_without_it_nothing_is_written_and_no_process_is_there(start_node: Callable[..., Node]) -> None:
    node, oracle = start_node("--redirector", "unix"), OneHot(N)
    submit(node, "j", oracle.model())
    with fleet(node.address, "j", N, oracle.update) as team:
        team.join()
    assert not (node.state_dir / "updates").exists()
    running = [" ".join(child.cmdline()) for child in psutil.Process(node.pid).children()]
    assert not [line for line in running if "lifl.node.journal" in line]
