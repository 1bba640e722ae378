"""Who is in the cluster: joining through any member, leaving, dying, coming back; lines that are cut."""

from __future__ import annotations

import json

import msgspec
import pytest
from fleet import until
from netns import Cluster, cluster
from nodes import run_lifl

from lifl.core.limits import GREETING_BYTES_MAX
from lifl.core.protocol.cli import ListJobs
from lifl.core.protocol.cluster import PEER_VERSION, PeerHello
from lifl.core.protocol.frames import encode

TRIES_MAX = 10


def test_all_nodes_know_all_and_one_coordinates(three: Cluster) -> None:
    for machine in three.machines:
        lines = machine.nodes()
        assert {name: line["gateway"] for name, line in lines.items()} == {m.name: m.gateway for m in three.machines}
        assert {name for name, line in lines.items() if line["coordinator"]} == {three.coordinator.name}
        assert lines[three.agents[0].name]["control"] == three.agents[0].control
        assert all(line["arena_bytes"] > 0 and line["capacity"] > 0 for line in lines.values())
    shown = three.agents[1].lifl("nodes")
    assert all(machine.name in shown for machine in three.machines)
    assert f"{three.coordinator.name} *" in shown


def test_a_node_joins_through_a_member_that_does_not_coordinate(three: Cluster) -> None:
    last = three.machines.pop()
    last.down()
    three.settled()
    last.up("--join", three.agents[0].control)
    three.machines.append(last)
    three.settled()


def test_a_node_that_leaves_is_gone_at_once_and_comes_back_as_a_new_life(three: Cluster) -> None:
    leaver = three.agents[1]
    before = three.incarnation(leaver)
    leaver.down()
    assert not leaver.segment.exists()
    # No waiting for silence: it has said so.
    assert three.coordinator.states().get(leaver.name) in (None, "left")
    three.settled(leaver)
    leaver.up()
    three.settled()
    assert three.incarnation(leaver) > before


def test_a_killed_node_is_suspected_then_dead_and_comes_back_as_a_new_life(three: Cluster) -> None:
    victim = three.agents[0]
    before = three.incarnation(victim)
    silent_since = len(three.coordinator.log())
    victim.kill()
    three.settled(victim)
    said = three.coordinator.log()[silent_since:]
    assert 0 <= said.find(f"node.suspect node={victim.name}") < said.find(f"node.down node={victim.name}")
    victim.up()
    three.settled()
    assert three.incarnation(victim) > before


def test_agents_come_back_by_themselves_when_the_coordinator_was_killed(three: Cluster) -> None:
    three.coordinator.kill()
    three.coordinator.up()
    three.settled()


def test_a_short_silence_costs_nothing(three: Cluster) -> None:
    victim = three.agents[0]
    for _ in range(TRIES_MAX):
        before, silent_since = three.incarnation(victim), len(three.coordinator.log())
        said = lambda: three.coordinator.log()[silent_since:]  # noqa: B023, E731
        victim.stop()
        until("suspicion", lambda: f"node.suspect node={victim.name}" in said())  # noqa: B023
        victim.go_on()
        in_time = f"node.down node={victim.name}" not in said()
        three.settled()
        if in_time:  # else this machine took as long to see the suspicion as a death takes to follow it
            assert three.incarnation(victim) == before
            assert f"node.down node={victim.name}" not in said()
            return
    pytest.fail("the silence was never short")


HELLO = PeerHello(PEER_VERSION, 77, 1, "10.77.0.200:7434", "10.77.0.200:7433", 1.0, 1 << 24, 1)


@pytest.mark.parametrize(
    ("what", "data", "told"),
    [
        ("another version", encode(msgspec.structs.replace(HELLO, version=PEER_VERSION + 2)), b"upgrade this node"),
        ("a frame over the limit", (GREETING_BYTES_MAX + 1).to_bytes(4, "little"), b"at most"),
        ("garbage", b"\x10\0\0\0" + bytes(range(200, 216)), b"control port of a node of LIFL"),
        ("another message", encode(ListJobs()), b"must be a PeerHello"),
        ("a web browser", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b""),
    ],
)
def test_strangers_on_the_control_port_are_told_why_and_harm_nobody(
    three: Cluster, what: str, data: bytes, told: bytes
) -> None:
    lives = {machine.name: three.incarnation(machine) for machine in three.machines}
    for machine in three.machines:
        assert told in three.knock(machine, data), what
    three.settled()
    assert {m.name: three.incarnation(m) for m in three.machines} == lives


def test_the_same_state_folder_twice_is_refused(three: Cluster) -> None:
    """Within one cluster a node's id is its own: a copied state folder is no second node."""
    first = three.agents[0]
    done = run_lifl("up", "-d", "--state", str(first.state_dir), "--listen", "127.0.0.1:0")
    assert done.returncode == 1
    assert f"pid {first.pid}" in done.stderr
    assert json.loads(first.lifl("nodes", "--json"))["nodes"]


def test_the_coordinator_learns_what_each_node_has_measured_of_itself() -> None:
    with cluster(2, "--redirector", "unix", "--capacity", "0") as two:
        logs = {machine: machine.state_dir / "lifld.log" for machine in two.machines}
        for machine, log in logs.items():
            until("the measurement", lambda: "node.calibrated" in log.read_text())  # noqa: B023
            text = log.read_text().partition("node.calibrated capacity=")[2].split()[0]
            told = lambda: two.coordinator.nodes()[machine.name]["capacity"]  # noqa: B023, E731
            until("the next heartbeat", lambda: f"{told():g}" == text)  # noqa: B023
