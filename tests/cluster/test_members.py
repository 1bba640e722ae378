"""Who is in the cluster: joining through any member, leaving, dying, coming back; lines that are cut."""

from __future__ import annotations

import json
from collections.abc import Iterator

import msgspec
import pytest
from conftest import run_lifl
from fleet import until
from netns import Cluster, Machine, cluster

from lifl.core.protocol.cli import ListJobs
from lifl.core.protocol.cluster import GREETING_BYTES_MAX, PEER_VERSION, PeerHello
from lifl.core.protocol.frames import encode


@pytest.fixture
def three() -> Iterator[Cluster]:
    with cluster(3, "--redirector", "unix") as made:
        yield made


def incarnation(seen_by: Machine, of: Machine) -> int:
    return int(seen_by.nodes()[of.name]["incarnation"])


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
    before = incarnation(three.coordinator, leaver)
    leaver.down()
    assert not leaver.segment.exists()
    # No waiting for silence: it has said so.
    assert three.coordinator.states().get(leaver.name) in (None, "left")
    three.settled(leaver)
    leaver.up()
    three.settled()
    assert incarnation(three.coordinator, leaver) > before


def test_a_killed_node_is_suspected_then_dead_and_comes_back_as_a_new_life(three: Cluster) -> None:
    victim = three.agents[0]
    before = incarnation(three.coordinator, victim)
    victim.kill()
    until("suspicion", lambda: three.coordinator.states().get(victim.name) == "suspect")
    three.settled(victim)
    victim.up()
    three.settled()
    assert incarnation(three.coordinator, victim) > before


@pytest.mark.parametrize("ways", ["to", "from", "both"])
def test_a_node_behind_a_cut_line_is_dead_until_the_line_is_mended(three: Cluster, ways: str) -> None:
    victim, others = three.agents[0], [three.coordinator.host, three.agents[1].host]
    before = incarnation(three.coordinator, victim)
    if ways in ("to", "both"):
        for other in others:
            three.network.cut(other, victim.host)
    if ways in ("from", "both"):
        three.network.cut(victim.host, *others)
    until("its death", lambda: three.coordinator.states()[victim.name] == "dead")
    assert three.coordinator.states()[three.agents[1].name] == "alive"
    if ways in ("to", "both"):
        for other in others:
            three.network.mend(other, victim.host)
    if ways in ("from", "both"):
        three.network.mend(victim.host, *others)
    three.settled()
    assert incarnation(three.coordinator, victim) > before


def test_agents_come_back_by_themselves_when_the_coordinator_was_killed(three: Cluster) -> None:
    three.coordinator.kill()
    three.coordinator.up()
    three.settled()


def test_a_short_silence_costs_nothing(three: Cluster) -> None:
    victim = three.agents[0]
    before = incarnation(three.coordinator, victim)
    victim.stop()
    until("suspicion", lambda: three.coordinator.states()[victim.name] == "suspect")
    victim.go_on()
    three.settled()
    assert incarnation(three.coordinator, victim) == before


HELLO = PeerHello(PEER_VERSION, 77, 1, "10.77.0.200:7434", "10.77.0.200:7433", 1.0, 1 << 24, 1)


@pytest.mark.parametrize(
    ("what", "data", "told"),
    [
        ("another version", encode(msgspec.structs.replace(HELLO, version=PEER_VERSION + 1)), b"same version"),
        ("a frame over the limit", (GREETING_BYTES_MAX + 1).to_bytes(4, "little"), b"at most"),
        ("garbage", b"\x10\0\0\0" + bytes(range(200, 216)), b"control port of a node of LIFL"),
        ("another message", encode(ListJobs()), b"must be a PeerHello"),
        ("a web browser", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b""),
    ],
)
def test_strangers_on_the_control_port_are_told_why_and_harm_nobody(
    three: Cluster, what: str, data: bytes, told: bytes
) -> None:
    lives = {machine.name: incarnation(three.coordinator, machine) for machine in three.machines}
    for machine in three.machines:
        assert told in three.knock(machine, data), what
    three.settled()
    assert {m.name: incarnation(three.coordinator, m) for m in three.machines} == lives


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
