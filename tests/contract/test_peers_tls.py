"""The control channel over TLS: who is let in as a node, and that nobody else harms those who are."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from certificates import Authority
from test_peers import COORDINATOR, QUICK, Cluster, Node, hello_of, in_loop, stranger

from lifl.core.coordinator.membership import Timing
from lifl.core.protocol import cluster as p
from lifl.core.protocol import commands as o
from lifl.core.protocol.frames import FrameDecoder, encode
from lifl.node.cluster import acceptor
from lifl.node.security import Security
from lifl.tls.contexts import Contexts, client_context
from lifl.tls.tls_socket import TlsSocket
from lifl.tls.waits import received, sent, shaken


class Identities:
    """What a test's nodes are: `security("a")` is node a's."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.ca = Authority()

    def contexts(self, name: str, role: str = "node", ca: Authority | None = None, **how: float) -> Contexts:
        folder = self._folder / f"{role}-{name}-{len(os.listdir(self._folder))}"
        return Contexts((ca or self.ca).enroll(folder, role, name, ["127.0.0.1"], **how))  # type: ignore[arg-type]

    def security(self, name: str, role: str = "node", ca: Authority | None = None) -> Security:
        return Security(self.contexts(name, role, ca))


IDENTITIES: list[Identities] = []


@pytest.fixture(autouse=True)
def _identities(tmp_path: Path) -> Iterator[None]:
    IDENTITIES.append(Identities(tmp_path))
    yield
    IDENTITIES.pop()


def ids() -> Identities:
    return IDENTITIES[-1]


def coordinator_of(cluster: Cluster, timing: Timing | None = None) -> Node:
    more = {} if timing is None else {"timing": timing}
    return cluster.node(COORDINATOR, security=ids().security("hub"), **more)


@contextlib.asynccontextmanager
async def speaking(address: str, context: object) -> object:
    """A connection of somebody who knows TLS: `say` and `hear`."""
    host, _, port = address.rpartition(":")
    raw = socket.create_connection((host, int(port)))
    raw.setblocking(False)
    with raw:
        sock = TlsSocket(raw, context)  # type: ignore[arg-type]
        await shaken(sock)
        yield sock


async def hear(sock: TlsSocket) -> object:
    decoder: FrameDecoder[object] = FrameDecoder(p.Greeting)
    while (message := decoder.next_message()) is None:
        data = await received(sock, decoder.missing_bytes)
        if not data:
            return None
        decoder.feed(data)
    return message


@in_loop
async def test_nodes_join_and_talk(cluster: Cluster) -> None:
    coordinator = coordinator_of(cluster)
    first = await cluster.joined(coordinator, 1, security=ids().security("a"))
    second = await cluster.joined(coordinator, 2, security=ids().security("b"))
    coordinator.peers.send(1, o.CloseJob(7))
    coordinator.sends[2](o.CloseJob(8))
    await first.happens("order", o.CloseJob(7))
    await second.happens("order", o.CloseJob(8))
    first.peers.report(o.JobOpened(7))
    await coordinator.happens("report", 1, o.JobOpened(7))
    await coordinator.happens("beat", 2, second.load(), times=3)
    newcomer = cluster.node(3, first.control, security=ids().security("c"))
    await newcomer.happens("coordinator_up", COORDINATOR)
    await newcomer.peers.leave()
    await coordinator.happens("left", 3)


@in_loop
async def test_much_goes_both_ways_at_once(cluster: Cluster) -> None:
    """More than socket and TLS hold: what waits goes on by itself, in order, and the last word comes too."""
    coordinator = coordinator_of(cluster)
    agent = await cluster.joined(coordinator, 1, security=ids().security("a"))
    count = 3000
    for number in range(count):
        coordinator.peers.send(1, o.CloseJob(number))
        agent.peers.report(o.JobOpened(number))
    big = p.Inventory(orphans=tuple(range(10_000)))
    for _ in range(40):
        agent.peers.report(big)
    agent.peers.report(o.JobOpened(count))
    await coordinator.happens("report", 1, o.JobOpened(count))
    await agent.happens("order", o.CloseJob(count - 1))
    assert [e[1].number for e in agent.names("order")] == list(range(count))
    heard = [e[2] for e in coordinator.names("report") if e[1] == 1]
    assert sum(isinstance(each, p.Inventory) and len(each.orphans) == 10_000 for each in heard) == 40


REFUSED = {
    "a client": (lambda: ids().security("a", "client"), "it is no node"),
    "an operator": (lambda: ids().security("a", "operator"), "it is no node"),
    "another CA": (lambda: ids().security("a", ca=Authority()), "not of this cluster's CA"),
    "no TLS": (Security, "TLS port"),
}


@pytest.mark.parametrize("who", REFUSED)
def test_who_is_no_node_of_the_cluster_is_told_and_harms_nobody(who: str) -> None:
    @in_loop
    async def run(cluster: Cluster) -> None:
        coordinator = coordinator_of(cluster)
        agent = await cluster.joined(coordinator, 1, security=ids().security("a"))
        make, text = REFUSED[who]
        for door in (coordinator, agent):
            other = cluster.node(2, door.control, QUICK, security=make())
            await other.wait(lambda other=other: text in other.peers.trouble, text)  # type: ignore[misc]
            assert other.names("refused") or who == "no TLS"
            other.peers.close()
        assert not coordinator.names("suspect", "down")
        assert [e[1] for e in coordinator.names("up")] == [1]
        assert agent.peers.connected

    run()


@in_loop
async def test_a_secured_node_does_not_join_one_that_is_not(cluster: Cluster) -> None:
    coordinator = cluster.node(COORDINATOR)
    agent = cluster.node(1, coordinator.control, security=ids().security("a"))
    await agent.happens("refused")
    assert "does not speak TLS" in agent.peers.trouble
    assert not coordinator.names("up")


@in_loop
async def test_a_client_that_poses_as_the_coordinator_is_not_believed(cluster: Cluster) -> None:
    false = cluster.node(COORDINATOR, security=ids().security("mallory", "client"))
    agent = cluster.node(1, false.control, security=ids().security("a"))
    await agent.wait(lambda: "certificate cannot be used" in agent.peers.trouble, "a refusal")
    assert not agent.names("coordinator_up")


@in_loop
async def test_who_has_no_certificate_is_told_to_get_one(cluster: Cluster) -> None:
    coordinator = coordinator_of(cluster)
    async with speaking(coordinator.control, _without()) as sock:
        await sent(sock, hello_of())
        refusal = await hear(sock)
        assert isinstance(refusal, p.PeerRefusal)
        assert "has shown no certificate" in refusal.text
        assert await hear(sock) is None
    assert not coordinator.names("up")


def _without() -> object:
    context = client_context(ids().ca.pem.decode())
    context.check_hostname = False
    return context


@in_loop
async def test_a_hostile_node_cannot_end_anothers_life_by_its_number(cluster: Cluster) -> None:
    coordinator = coordinator_of(cluster)
    agent = await cluster.joined(coordinator, 1, security=ids().security("a"))
    hostile = ids().contexts("mallory").node_client()
    for incarnation in (1, 2, 1 << 50):
        async with speaking(coordinator.control, hostile) as sock:
            await sent(sock, hello_of(node=1, incarnation=incarnation, control=agent.control))
            refusal = await hear(sock)
            assert isinstance(refusal, p.PeerRefusal)
            assert "is that of 'a'" in refusal.text
    assert not coordinator.names("suspect", "down")
    assert agent.peers.connected
    before = agent.beaten
    await agent.beats(before + 2)


@in_loop
async def test_a_node_that_crashed_is_let_in_while_its_old_connection_is_half_open(cluster: Cluster) -> None:
    coordinator = coordinator_of(cluster)
    security = ids().contexts("a").node_client()
    async with speaking(coordinator.control, security) as old:
        await sent(old, hello_of(node=7))
        assert isinstance(await hear(old), p.PeerWelcome)
        async with speaking(coordinator.control, security) as new:
            await sent(new, hello_of(node=7, incarnation=2))
            assert isinstance(await hear(new), p.PeerWelcome)
            await coordinator.happens("up", 7, 2)


def test_handshakes_that_stall_by_the_hundred_keep_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take a source's share and no more; who comes from there takes the place of the one that has stalled."""
    monkeypatch.setattr(acceptor, "GREETING_S", 60.0)

    @in_loop
    async def run(cluster: Cluster) -> None:
        coordinator = coordinator_of(cluster)
        host, _, port = coordinator.control.rpartition(":")
        with contextlib.ExitStack() as stack:
            for number in range(300):
                half = stack.enter_context(socket.create_connection((host, int(port))))
                half.send(b"\x16\x03\x01"[: number % 4])
                await asyncio.sleep(0)
            await cluster.joined(coordinator, 1, security=ids().security("a"))
            assert len(coordinator.peers._acceptor._tasks) <= acceptor.GREETINGS_PER_SOURCE_MAX

    run()


def test_a_handshake_that_comes_too_slowly_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceptor, "GREETING_S", 0.2)

    @in_loop
    async def run(cluster: Cluster) -> None:
        coordinator = coordinator_of(cluster)
        async with stranger(coordinator.control) as peer:
            await peer.send(b"\x16\x03\x01\x00")
            assert await peer.receive() is None

    run()


@in_loop
async def test_a_connection_that_is_cut_within_a_frame_ends_as_any(cluster: Cluster) -> None:
    coordinator = coordinator_of(cluster, QUICK)
    async with speaking(coordinator.control, ids().contexts("a").node_client()) as sock:
        await sent(sock, hello_of(node=7))
        assert isinstance(await hear(sock), p.PeerWelcome)
        await sent(sock, encode(p.Inventory())[:7])
    await coordinator.happens("suspect", 7)


@in_loop
async def test_bytes_that_are_changed_on_their_way_end_that_connection_and_no_other(cluster: Cluster) -> None:
    coordinator = coordinator_of(cluster)
    agent = await cluster.joined(coordinator, 1, security=ids().security("a"))
    async with speaking(coordinator.control, ids().contexts("b").node_client()) as sock:
        await sent(sock, hello_of(node=7))
        assert isinstance(await hear(sock), p.PeerWelcome)
        sock.raw.send(b"\x17\x03\x03\x00\x20" + b"?" * 32)
        await coordinator.happens("suspect", 7)
    assert agent.peers.connected
