"""The control channel over real sockets: nodes that join, fall silent, come back, leave, and strangers at the acceptor.

Nodes run in the test's own event loop, or, where they are to be stopped and killed, as processes: this file with
arguments.  Times in the tests are short where something is to be noticed, and long where nothing may be.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import signal
import socket
import struct
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

import msgspec
import pytest
import uvloop

from lifl.core.coordinator.membership import Timing
from lifl.core.errors import LocalFault
from lifl.core.fields import Properties
from lifl.core.limits import GREETING_BYTES_MAX, NEWS_MAX
from lifl.core.protocol import client as cm
from lifl.core.protocol import cluster as p
from lifl.core.protocol import commands as o
from lifl.core.protocol import gateway as gm
from lifl.core.protocol.frames import FRAME_BYTES_MAX, FrameDecoder, encode
from lifl.node import listening
from lifl.node.cluster import acceptor
from lifl.node.cluster.transport import Peers, Send
from lifl.node.machine import listen_tcp
from lifl.node.security import Security

WAIT_S = 60.0
"""Only a failing test waits so long."""
QUICK = Timing(heartbeat_s=0.1, suspect_s=0.6, dead_s=1.5)
"""For what is to be noticed."""
PATIENT = Timing(heartbeat_s=0.1, suspect_s=60.0, dead_s=120.0)
"""For what must not depend on the machine's mood."""
COORDINATOR = 0xC0
# The first loop opens a pipe that libuv keeps for as long as the process lives: not a leak of any test's.
uvloop.new_event_loop().close()


class Node:
    """A node that writes down what happens to it: `events` are (name, what) pairs."""

    def __init__(
        self,
        number: int,
        join: str = "",
        timing: Timing = PATIENT,
        incarnation: int = 1,
        listen: str = "127.0.0.1:0",
        security: Security | None = None,
        knows: tuple[str, ...] = (),
    ) -> None:
        self._knows = knows
        self.number = number
        self.incarnation = incarnation
        self.events: list[tuple[Any, ...]] = []
        self.beaten = 0
        self.sends: dict[int, Send] = {}
        self._changed = asyncio.Event()
        self.listener = listen_tcp(listen)
        self.control = self.told = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.peers = Peers(self.listener, self.hello, not join, join, self, timing, security)

    def hello(self) -> p.PeerHello:
        sizes = (8.0, 1 << 24, 4)
        who = (self.number, self.incarnation, self.told, "127.0.0.1:9")
        return p.PeerHello(p.PEER_VERSION, *who, *sizes, self._knows)

    def note(self, *event: Any) -> None:
        self.events.append(event)
        self._changed.set()

    async def wait(self, condition: Callable[[], bool], what: str) -> None:
        try:
            async with asyncio.timeout(WAIT_S):
                while not condition():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(f"waited for {what}; there was {self.events}") from None

    async def happens(self, *event: Any, times: int = 1) -> None:
        """Waits until the event (or one that begins so) was there `times` times."""
        await self.wait(lambda: sum(e[: len(event)] == event for e in self.events) >= times, f"{times} x {event}")

    def life(self, node: int) -> list[str]:
        """How the coordinator saw a node fall silent: suspicions that were cleared are left out, for a busy machine."""
        seen: list[str] = []
        for name, *about in self.events:
            if name in ("suspect", "alive", "down") and about[0] == node:
                seen = seen[:-1] if name == "alive" and seen[-1:] == ["suspect"] else [*seen, name]
        return seen

    def names(self, *of: str) -> list[tuple[Any, ...]]:
        return [event for event in self.events if event[0] in of]

    async def knows(self, states: dict[str, str]) -> None:
        """Waits until the node's members are these."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(WAIT_S):
                while {row["node"]: row["state"] for row in self.peers.members()} != states:
                    await asyncio.sleep(0.01)
        assert {row["node"]: row["state"] for row in self.peers.members()} == states

    async def beats(self, count: int) -> None:
        """Waits until it has sent so many more heartbeats."""
        wanted = self.beaten + count
        await self.wait(lambda: self.beaten >= wanted, f"{count} heartbeats")

    def load(self) -> p.Heartbeat:
        self.beaten += 1
        self._changed.set()
        return p.Heartbeat(rate_per_s=float(self.number), workers=2)

    def node_up(self, hello: p.PeerHello, send: Send) -> None:
        self.sends[hello.node] = send
        self.note("up", hello.node, hello.incarnation)

    def turned_away(self, host: str, text: str) -> None:
        self.note("turned away", host, text)

    def node_suspect(self, node: int) -> None:
        self.note("suspect", node)

    def node_alive(self, node: int) -> None:
        self.note("alive", node)

    def node_down(self, node: int, why: str, renewed: bool) -> None:
        self.note("down", node, why)

    def node_left(self, node: int) -> None:
        self.note("left", node)

    def from_node(self, node: int, message: Any) -> None:
        self.note("beat" if isinstance(message, p.Heartbeat) else "report", node, message)

    def coordinator_up(self, welcome: p.PeerWelcome) -> None:
        self.note("coordinator_up", welcome.node)
        self.peers.report(p.Inventory((), ()))

    def coordinator_down(self) -> None:
        self.note("coordinator_down")

    def rejoin(self, above: int) -> None:
        self.note("rejoin", above)
        self.incarnation = above + 1

    def refused(self, text: str) -> None:
        self.note("refused", text)

    def order(self, order: Any) -> None:
        self.note("order", order)


class Cluster:
    """The nodes and processes of one test; all end with it."""

    def __init__(self) -> None:
        self._stack = contextlib.AsyncExitStack()

    def node(self, *arguments: Any, **more: Any) -> Node:
        node = Node(*arguments, **more)
        self._stack.callback(node.peers.close)
        return node

    async def joined(self, coordinator: Node, number: int, timing: Timing = PATIENT, **more: Any) -> Node:
        node = self.node(number, coordinator.told, timing, **more)
        await coordinator.happens("report", number)
        return node

    async def process(self, role: str, *arguments: Any) -> asyncio.subprocess.Process:
        """A node in a process of its own, when it is up; its standard output has its events."""
        child = await asyncio.create_subprocess_exec(
            sys.executable, __file__, role, *(str(a) for a in arguments), stdout=asyncio.subprocess.PIPE
        )
        self._stack.push_async_callback(self._end, child)
        return child

    async def _end(self, child: asyncio.subprocess.Process) -> None:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()
        assert child.stdout is not None
        await child.stdout.read()

    async def proxy(self, coordinator: Node) -> Proxy:
        proxy = Proxy(coordinator.control)
        await proxy.start()
        self._stack.push_async_callback(proxy.close)
        coordinator.told = proxy.address
        return proxy


class Proxy:
    """A cable that can be cut: `up` is the way to the coordinator.  What is sent on a cut way is gone."""

    def __init__(self, target: str) -> None:
        self.up = self.down = True
        self._target = target.rpartition(":")[::2]
        self._sockets: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _connected(self, near_in: asyncio.StreamReader, near_out: asyncio.StreamWriter) -> None:
        self._sockets.add(near_out)
        if not (self.up and self.down):
            return  # a connection needs both ways
        far_in, far_out = await asyncio.open_connection(self._target[0], int(self._target[1]))
        self._sockets.add(far_out)
        for source, sink, name in ((near_in, far_out, "up"), (far_in, near_out, "down")):
            task = asyncio.create_task(self._pump(source, sink, name))
            self._tasks.add(task)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, name: str) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65_536):
                if getattr(self, name):
                    sink.write(data)
        if getattr(self, name):
            sink.close()

    def drop(self) -> None:
        """Ends all connections; new ones may come."""
        for writer in self._sockets:
            writer.close()
        self._sockets.clear()

    async def close(self) -> None:
        self._server.close()
        self.drop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Runs the test in an event loop like the daemon's; what fails in a callback fails the test."""

    def run(**arguments: Any) -> None:
        failures: list[dict[str, Any]] = []

        async def guarded() -> None:
            asyncio.get_running_loop().set_exception_handler(lambda _loop, context: failures.append(context))
            cluster = Cluster()
            async with cluster._stack:
                await test(cluster, **arguments)
            await asyncio.sleep(0.01)

        uvloop.run(guarded())
        assert not failures

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    run.__signature__ = _without_first(test)  # type: ignore[attr-defined]
    if hasattr(test, "pytestmark"):
        run.pytestmark = test.pytestmark  # type: ignore[attr-defined]
    return run


def _without_first(test: Callable[..., Any]) -> Any:
    import inspect

    signature = inspect.signature(test)
    return signature.replace(parameters=list(signature.parameters.values())[1:])


# ---- members come and go -----------------------------------------------------------------------------------------


@in_loop
async def test_nodes_join_and_talk(cluster: Cluster) -> None:
    coordinator = cluster.node(COORDINATOR)
    first = await cluster.joined(coordinator, 1)
    second = await cluster.joined(coordinator, 2)
    coordinator.peers.send(1, o.CloseJob(7))
    coordinator.sends[2](o.CloseJob(8))
    await first.happens("order", o.CloseJob(7))
    await second.happens("order", o.CloseJob(8))
    first.peers.report(o.JobOpened(7))
    first.peers.report(gm.ClientLeft(3))
    await coordinator.happens("report", 1, gm.ClientLeft(3))
    assert [e[2] for e in coordinator.names("report") if e[1] == 1][1:] == [o.JobOpened(7), gm.ClientLeft(3)]
    await coordinator.happens("beat", 1, first.load(), times=3)
    await coordinator.happens("beat", 2, second.load(), times=3)
    assert not [e for node in (first, second) for e in node.names("coordinator_down", "refused")]


@in_loop
async def test_every_node_knows_all_members(cluster: Cluster) -> None:
    coordinator = cluster.node(COORDINATOR)
    agents = [await cluster.joined(coordinator, number) for number in (1, 2, 3)]
    await coordinator.happens("beat", 3)
    expected = {f"{n:016x}": "alive" for n in (COORDINATOR, 1, 2, 3)}
    for node in (coordinator, *agents):
        await node.knows(expected)
        rows = node.peers.members()
        assert {row["node"]: row["role"] for row in rows}.pop(f"{COORDINATOR:016x}") == "coordinator"
        assert {row["control"] for row in rows} == {other.control for other in (coordinator, *agents)}
    row = coordinator.peers.members()[3]
    assert (row["incarnation"], row["capacity"], row["arena_bytes"], row["workers_max"]) == (1, 8.0, 1 << 24, 4)
    await agents[0].peers.leave()
    await coordinator.happens("left", 1)
    await agents[1].knows(expected | {f"{1:016x}": "left"})
    late = await cluster.joined(coordinator, 4)
    await late.knows(expected | {f"{1:016x}": "left", f"{4:016x}": "alive"})


@in_loop
async def test_news_come_in_bounded_frames_until_all_are_known(cluster: Cluster) -> None:
    coordinator = cluster.node(COORDINATOR)
    numbers = range(1000, 1000 + 2 * NEWS_MAX + 1)
    agents = [cluster.node(number, coordinator.control) for number in numbers]
    expected = {f"{number:016x}": "alive" for number in (COORDINATOR, *numbers)}
    for agent in (agents[0], agents[-1]):
        await agent.knows(expected)
    # One more comes into a cluster that is at rest.
    await (await cluster.joined(coordinator, 7)).knows(expected | {f"{7:016x}": "alive"})


@in_loop
async def test_a_node_joins_through_any_member(cluster: Cluster) -> None:
    coordinator = cluster.node(COORDINATOR)
    member = await cluster.joined(coordinator, 1)
    newcomer = cluster.node(2, member.control)
    await coordinator.happens("report", 2)
    await newcomer.happens("coordinator_up", COORDINATOR)
    assert newcomer.peers.connected and newcomer.peers.trouble == ""


@in_loop
async def test_a_node_waits_for_a_member_that_is_not_there_yet(cluster: Cluster) -> None:
    later = listen_tcp("127.0.0.1:0")
    early_address = f"127.0.0.1:{later.getsockname()[1]}"
    later.close()
    early = cluster.node(2, early_address)
    through = cluster.node(1, early.control)  # its member has not found the coordinator either
    async with asyncio.timeout(WAIT_S):
        while "refused" not in through.peers.trouble:
            await asyncio.sleep(0.01)
    assert not early.peers.connected and f"{early_address} cannot be reached" in early.peers.trouble
    assert not early.names("refused") and not through.names("refused"), "nothing is wrong with these nodes"
    coordinator = cluster.node(COORDINATOR, listen=early_address)
    await coordinator.happens("report", 2)
    await coordinator.happens("report", 1)


@in_loop
async def test_agents_find_a_coordinator_that_was_started_again(cluster: Cluster) -> None:
    coordinator = cluster.node(COORDINATOR)
    agents = [await cluster.joined(coordinator, number) for number in (1, 2)]
    coordinator.peers.close()
    for agent in agents:
        await agent.happens("coordinator_down")
        agent.peers.report(o.JobOpened(1))  # dropped, as told
        assert agent.peers.members()[0]["state"] == "suspect"
    again = cluster.node(COORDINATOR, listen=coordinator.control)
    for agent in agents:
        await again.happens("report", agent.number, p.Inventory((), ()))
        await agent.happens("coordinator_up", COORDINATOR, times=2)
    assert not [e for e in again.names("report") if e[2] == o.JobOpened(1)]


@in_loop
async def test_a_node_that_left_comes_back_only_as_a_new_life(cluster: Cluster) -> None:
    coordinator = cluster.node(COORDINATOR)
    node = await cluster.joined(coordinator, 1)
    node.peers.report(o.JobOpened(1))
    await node.peers.leave()
    assert coordinator.names("left") == [("left", 1)], "leave returns when the coordinator has noted it"
    assert coordinator.names("report")[-1] == ("report", 1, o.JobOpened(1)), "what was said before is not lost"
    assert not node.names("coordinator_down") and not coordinator.names("suspect", "down")
    again = cluster.node(1, coordinator.control)
    await coordinator.happens("up", 1, 2)
    assert again.names("rejoin") == [("rejoin", 1)]


@in_loop
async def test_a_restarted_node_replaces_its_earlier_life(cluster: Cluster) -> None:
    coordinator = cluster.node(COORDINATOR)
    await cluster.joined(coordinator, 1)
    later = cluster.node(1, coordinator.control, incarnation=2)
    await later.happens("coordinator_up")
    await coordinator.happens("report", 1, times=2)
    assert [event[:2] for event in coordinator.names("up", "suspect", "down")][:3] == [
        ("up", 1),
        ("down", 1),
        ("up", 1),
    ]


@in_loop
async def test_a_copied_state_folder_is_refused_by_both_its_names(cluster: Cluster) -> None:
    coordinator = cluster.node(COORDINATOR)
    original = await cluster.joined(coordinator, 1, incarnation=5)
    older = cluster.node(1, coordinator.control, incarnation=4)
    twin = cluster.node(1, coordinator.control, incarnation=5)
    own = cluster.node(COORDINATOR, coordinator.control)
    for node in (older, twin, own):
        await node.happens("refused")
        assert "state folder" in node.events[0][1] and not node.peers.connected
    assert original.peers.connected and not coordinator.names("suspect", "down")
    assert len(coordinator.names("up")) == 1


# ---- silence -----------------------------------------------------------------------------------------------------


@in_loop
async def test_kill_9_is_suspected_then_dead_and_the_others_are_told(cluster: Cluster) -> None:
    coordinator = cluster.node(COORDINATOR, timing=QUICK)
    other = await cluster.joined(coordinator, 2)
    child = await cluster.process("agent", 1, coordinator.control)
    await coordinator.happens("report", 1)
    child.kill()
    await coordinator.happens("down", 1)
    assert coordinator.life(1) == ["suspect", "down"]
    assert "down" not in coordinator.life(2)
    coordinator.peers.send(1, o.CloseJob(1))  # to nobody
    await other.knows({f"{COORDINATOR:016x}": "alive", f"{1:016x}": "dead", f"{2:016x}": "alive"})


@in_loop
async def test_a_stopped_process_dies_and_comes_back_as_a_new_life(cluster: Cluster) -> None:
    coordinator = cluster.node(COORDINATOR, timing=QUICK)
    child = await cluster.process("agent", 1, coordinator.control)
    await coordinator.happens("report", 1)
    child.send_signal(signal.SIGSTOP)
    await coordinator.happens("down", 1)
    assert coordinator.life(1) == ["suspect", "down"]
    assert "nothing was heard" in coordinator.names("down")[0][2]
    child.send_signal(signal.SIGCONT)
    await coordinator.happens("up", 1, 2)
    assert len(coordinator.names("up")) == 2


@in_loop
async def test_a_process_that_was_stopped_for_a_moment_is_cleared(cluster: Cluster) -> None:
    coordinator = cluster.node(COORDINATOR, timing=Timing(0.1, 0.6, 120.0))
    child = await cluster.process("agent", 1, coordinator.control)
    await coordinator.happens("report", 1)
    child.send_signal(signal.SIGSTOP)
    await coordinator.happens("suspect", 1)
    coordinator.peers.send(1, o.CloseJob(1))
    child.send_signal(signal.SIGCONT)
    await coordinator.happens("alive", 1)
    await coordinator.happens("report", 1, o.JobOpened(1))  # it answers the order that waited
    assert not coordinator.names("down") and len(coordinator.names("up")) == 1


@in_loop
async def test_a_connection_that_breaks_is_made_again_before_death(cluster: Cluster) -> None:
    coordinator = cluster.node(COORDINATOR)
    proxy = await cluster.proxy(coordinator)
    agent = await cluster.joined(coordinator, 1)
    proxy.drop()
    await coordinator.happens("up", 1, 1, times=2)
    await coordinator.happens("report", 1, times=2)
    assert [e[0] for e in coordinator.events if e[0] in ("up", "suspect", "down")] in (
        ["up", "suspect", "up"],
        ["up", "up"],  # the new connection was faster than the end of the old one
    )
    assert [e[0] for e in agent.events] == ["coordinator_up", "coordinator_down", "coordinator_up"]
    coordinator.peers.send(1, o.CloseJob(1))
    await agent.happens("order")


@pytest.mark.parametrize("cut", ["up", "down", "both"])
def test_a_cut_cable_is_noticed_on_both_sides(cut: str) -> None:
    @in_loop
    async def run(cluster: Cluster) -> None:
        coordinator = cluster.node(COORDINATOR, timing=QUICK)
        proxy = await cluster.proxy(coordinator)
        agent = await cluster.joined(coordinator, 1, timing=QUICK)
        unharmed = cluster.node(2, coordinator.control, QUICK)  # by another cable
        await coordinator.happens("report", 2)
        proxy.up = cut == "down"
        proxy.down = cut == "up"
        await coordinator.happens("down", 1)
        await agent.happens("coordinator_down")
        assert "suspect" in [e[0] for e in coordinator.events]
        assert unharmed.peers.connected and not [e for e in coordinator.names("down") if e[1] == 2]
        proxy.up = proxy.down = True
        proxy.drop()
        await coordinator.happens("up", 1, 2)
        assert agent.names("rejoin") == [("rejoin", 1)]

    run()


@in_loop
async def test_a_coordinator_that_was_stopped_buries_nobody(cluster: Cluster) -> None:
    child = await cluster.process("coordinator", *QUICK)
    assert child.stdout is not None
    address = json.loads(await child.stdout.readline())
    agent = cluster.node(1, address)
    await agent.happens("coordinator_up")
    child.send_signal(signal.SIGSTOP)
    # Its agent's heartbeats wait in the kernel, and more of them than make the silence that would be a death.
    await agent.beats(round(2 * QUICK.dead_s / QUICK.heartbeat_s))
    child.send_signal(signal.SIGCONT)
    agent.peers.report(o.JobOpened(1))
    seen = []
    async with asyncio.timeout(WAIT_S):
        while [event[0] for event in seen].count("report") < 2:
            seen.append(json.loads(await child.stdout.readline()))
    # That the agent itself is slow on a busy machine may make it suspect, for a while.
    assert [event[0] for event in seen if event[0] not in ("suspect", "alive")] == ["up", "report", "report"], seen
    assert not agent.names("coordinator_down")


# ---- strangers at the door ---------------------------------------------------------------------------------------


class Stranger:
    """A raw connection to a control port."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self.sock = socket.create_connection((host, int(port)))
        self.sock.setblocking(False)
        self.loop = asyncio.get_running_loop()
        self.decoder: FrameDecoder[Any] = FrameDecoder(p.Greeting | p.ToAgent)

    async def send(self, data: bytes) -> None:
        with contextlib.suppress(ConnectionError):
            await self.loop.sock_sendall(self.sock, data)

    async def receive(self) -> Any:
        """The next message, or None at the end of the stream."""
        async with asyncio.timeout(WAIT_S):
            while (message := self.decoder.next_message()) is None:
                try:
                    data = await self.loop.sock_recv(self.sock, 65_536)
                except ConnectionError:
                    return None
                if not data:
                    return None
                self.decoder.feed(data)
        return message

    async def receive_of(self, kind: type[Any]) -> Any:
        """The next message of this kind."""
        while not isinstance(message := await self.receive(), kind):
            assert message is not None
        return message


@contextlib.asynccontextmanager
async def stranger(address: str) -> AsyncIterator[Stranger]:
    found = Stranger(address)
    try:
        yield found
    finally:
        found.sock.close()


def hello_of(**changes: Any) -> bytes:
    fields = msgspec.to_builtins(p.PeerHello(p.PEER_VERSION, 7, 1, "127.0.0.1:1", "127.0.0.1:2", 8.0, 1, 1)) | changes
    return framed(msgspec.msgpack.encode(fields))


def framed(body: bytes) -> bytes:
    return struct.pack("<I", len(body)) + body


FIRST_FRAMES = {
    "an earlier version": (hello_of(version=1), "version 1"),
    "a later version with more fields": (hello_of(version=9, galaxy="x"), "version 9"),
    "garbage": (b"\xff" * 4096, "at most 4096"),
    "a browser": (b"GET / HTTP/1.1\r\nHost: node\r\n\r\n", "at most 4096"),
    "a frame over the limit": (framed(b"\x00" * 4097), "4097 bytes"),
    "a bomb": (framed(b"\x91" * 4096), "recursion"),
    "a client": (encode(cm.Hello(1, "c1")), "PeerHello"),
    "an order": (encode(o.CloseJob(1)), "PeerHello"),
    "nothing in a frame": (framed(b""), "0 bytes"),
    "an address without a port": (hello_of(control="nowhere"), "control"),
}


@pytest.mark.parametrize("name", FIRST_FRAMES)
def test_a_stranger_is_told_why_and_the_others_are_unharmed(name: str) -> None:
    @in_loop
    async def run(cluster: Cluster) -> None:
        coordinator = cluster.node(COORDINATOR)
        agent = await cluster.joined(coordinator, 1)
        data, said = FIRST_FRAMES[name]
        for address in (coordinator.control, agent.control):
            async with stranger(address) as peer:
                await peer.send(data)
                refusal = await peer.receive()
                assert isinstance(refusal, p.PeerRefusal), refusal
                assert said in refusal.text and "control port" in refusal.text
                assert await peer.receive() is None
        await cluster.joined(coordinator, 2)
        assert agent.peers.connected and not coordinator.names("suspect", "down")

    run()


@in_loop
async def test_a_hello_in_single_bytes_is_a_hello(cluster: Cluster) -> None:
    coordinator = cluster.node(COORDINATOR)
    async with stranger(coordinator.control) as peer:
        for byte in hello_of():
            await peer.send(bytes([byte]))
            await asyncio.sleep(0)
        assert isinstance(await peer.receive(), p.PeerWelcome)
        members = await peer.receive()
        assert isinstance(members, p.PeerMembers)
        assert members.first and [member.node for member in members.members] == [COORDINATOR]
        members = await peer.receive_of(p.PeerMembers)
        assert not members.first and [member.node for member in members.members] == [7]


@in_loop
async def test_a_node_of_the_next_version_takes_part(cluster: Cluster) -> None:
    """Else nodes can be upgraded only all at once."""
    coordinator = cluster.node(COORDINATOR)
    async with stranger(coordinator.control) as peer:
        await peer.send(hello_of(version=p.PEER_VERSION + 1, galaxy="x"))
        welcome = await peer.receive()
        assert isinstance(welcome, p.PeerWelcome) and welcome.version == p.PEER_VERSION
        await coordinator.happens("up", 7)


JOINED = gm.ClientJoined(5, "c5", "j", properties=Properties({"region": "eu"}, 3))


@in_loop
async def test_a_coordinator_that_takes_eight_words_is_told_the_first_ones_and_no_properties(cluster: Cluster) -> None:
    heard: list[Any] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        decoder: FrameDecoder[Any] = FrameDecoder(p.PeerHello | p.ToCoordinator)
        while data := await reader.read(4096):
            decoder.feed(data)
            while (message := decoder.next_message()) is not None:
                heard.append(message)
                if isinstance(message, p.PeerHello) and len(message.knows) > 8:
                    refusal = "it must be a PeerHello: Expected `array` of length <= 8 - at `$.knows`"
                    writer.write(encode(p.PeerRefusal(refusal)))
                elif isinstance(message, p.PeerHello):
                    writer.write(encode(p.PeerWelcome(p.PEER_VERSION, 8, "127.0.0.1:1", "127.0.0.1:2")))
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    words = (*p.KNOWS, p.COORDINATES)
    agent = cluster.node(1, join=f"{host}:{port}", knows=words)
    await agent.happens("coordinator_up")
    agent.peers.report(p.Heartbeat(workers=3, hosted_bytes=7))
    agent.peers.report(JOINED)
    async with asyncio.timeout(WAIT_S):
        while not any(isinstance(message, gm.ClientJoined) for message in heard):
            await asyncio.sleep(0)
    hellos = [message.knows for message in heard if isinstance(message, p.PeerHello)]
    assert hellos == [words, tuple(word for word in words if word not in p.LATER)]
    (joined,) = [message for message in heard if isinstance(message, gm.ClientJoined)]
    assert joined == gm.ClientJoined(5, "c5", "j")
    assert p.Heartbeat(workers=3) in heard and not [each for each in heard if getattr(each, "hosted_bytes", 0)]
    server.close()


@in_loop
async def test_a_coordinator_of_this_version_hears_what_clients_say_of_themselves(cluster: Cluster) -> None:
    coordinator = cluster.node(COORDINATOR)
    agent = await cluster.joined(coordinator, 1, knows=p.KNOWS)
    agent.peers.report(JOINED)
    await coordinator.wait(lambda: any(JOINED in event for event in coordinator.events), "what the client says")
    beat = p.Heartbeat(workers=3, hosted_bytes=7)
    agent.peers.report(beat)
    await coordinator.wait(lambda: any(beat in event for event in coordinator.events), "what its folds have")


@in_loop
async def test_a_coordinator_of_a_version_too_far_apart_is_not_joined(cluster: Cluster) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(4096)
        writer.write(encode(p.PeerWelcome(p.PEER_VERSION + 2, 8, "127.0.0.1:1", "127.0.0.1:2")))
        await writer.drain()
        await reader.read()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    agent = cluster.node(1, join=f"{host}:{port}")
    await agent.happens("refused")
    assert not agent.peers.connected and not agent.names("coordinator_up")
    assert "upgrade this node" in agent.peers.trouble and "on the peer" in agent.peers.trouble
    server.close()


@in_loop
async def test_half_a_hello_is_nothing(cluster: Cluster) -> None:
    coordinator = cluster.node(COORDINATOR)
    whole = hello_of()
    for cut in (0, 1, 4, 5, len(whole) - 1):
        async with stranger(coordinator.control) as peer:
            await peer.send(whole[:cut])
            peer.sock.shutdown(socket.SHUT_WR)
            assert await peer.receive() is None
    assert coordinator.events == []


def test_whoever_does_not_finish_its_hello_is_shut_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceptor, "GREETING_S", 0.2)

    @in_loop
    async def run(cluster: Cluster) -> None:
        coordinator = cluster.node(COORDINATOR)
        async with stranger(coordinator.control) as peer:
            await peer.send(hello_of()[:20])
            refusal = await peer.receive()
            assert isinstance(refusal, p.PeerRefusal) and "within 0.2 s" in refusal.text
            assert await peer.receive() is None

    run()


def test_strangers_at_the_limit_are_told_to_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceptor, "GREETINGS_MAX", 2)

    @in_loop
    async def run(cluster: Cluster) -> None:
        coordinator = cluster.node(COORDINATOR)
        async with stranger(coordinator.control) as first, stranger(coordinator.control):
            async with stranger(coordinator.control) as third:
                refusal = await third.receive()
                assert isinstance(refusal, p.PeerRefusal) and refusal.retry
            node = cluster.node(1, coordinator.control)
            await node.wait(lambda: "knocking" in node.peers.trouble or not node.peers.connected, "a refusal")
            first.sock.close()
            await coordinator.happens("report", 1)
            assert not node.names("refused"), "the node has done nothing wrong"

    run()


@pytest.mark.parametrize(
    "data",
    [b"\xff" * 64, struct.pack("<I", FRAME_BYTES_MAX + 1), hello_of(), encode(p.PeerWelcome(1, 1, "a:1", "a:1"))],
    ids=["garbage", "a frame over the limit", "a second hello", "what only the coordinator says"],
)
def test_a_member_that_breaks_the_protocol_loses_its_connection_alone(data: bytes) -> None:
    @in_loop
    async def run(cluster: Cluster) -> None:
        coordinator = cluster.node(COORDINATOR)
        agent = await cluster.joined(coordinator, 1)
        async with stranger(coordinator.control) as peer:
            await peer.send(hello_of())
            await coordinator.happens("up", 7)
            await peer.send(data)
            while await peer.receive() is not None:
                pass
            await coordinator.happens("suspect", 7)
        assert agent.peers.connected and ("suspect", 1) not in coordinator.events

    run()


@in_loop
async def test_a_large_frame_of_a_member_is_taken(cluster: Cluster) -> None:
    coordinator = cluster.node(COORDINATOR)
    agent = await cluster.joined(coordinator, 1)
    members = tuple((f"client-{number}", 1.0, {"loss": 0.5}) for number in range(50_000))
    inventory = p.Inventory((1,), (p.BranchHeld(1, 256, 2, members, (), True),))
    assert len(encode(inventory)) > 100 * GREETING_BYTES_MAX
    agent.peers.report(inventory)
    await coordinator.happens("report", 1, inventory)


@in_loop
async def test_a_hello_whose_sender_has_hung_up_does_not_count(cluster: Cluster) -> None:
    coordinator = cluster.node(COORDINATOR)
    async with stranger(coordinator.control) as peer:
        # All of this waits in the kernel until the coordinator's loop runs again.
        peer.sock.send(hello_of())
    await cluster.joined(coordinator, 1)
    assert [event[:2] for event in coordinator.names("up")] == [("up", 1)]


def test_a_coordinator_without_descriptors_takes_nodes_in_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "PAUSE_S", 0.2)
    warned: list[str] = []

    @in_loop
    async def run(cluster: Cluster) -> None:
        refused_twice = asyncio.Event()

        def warning(text: str, *about: Any) -> None:
            warned.append(text)
            if len([text for text in warned if text.startswith("%s.accept")]) == 2:
                refused_twice.set()

        monkeypatch.setattr(listening.log, "warning", warning)
        coordinator = cluster.node(COORDINATOR)
        async with stranger(coordinator.control) as peer:
            peer.sock.send(hello_of())
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            free = os.dup(0)
            os.close(free)
            resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
            try:
                async with asyncio.timeout(WAIT_S):
                    await refused_twice.wait()
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert coordinator.events == []
            assert isinstance(await peer.receive(), p.PeerWelcome)

    run()


@in_loop
async def test_the_wrong_port_is_said_to_be_wrong(cluster: Cluster) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(encode(cm.Refusal("wrong-message", "", "clients say Hello first")))
        await reader.read()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        node = cluster.node(1, address)
        await node.happens("refused")
        assert address in node.events[0][1] and "control port of a node" in node.events[0][1]
        node.peers.close()
    finally:
        server.close()


@in_loop
async def test_redirects_in_a_circle_end(cluster: Cluster) -> None:
    ends: list[bool] = []  # for each time that it asks: whether it has given an attempt up by then

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends.append("sent on" in node.peers.trouble)
        if len(ends) == 6:
            again.set()
        writer.write(encode(p.PeerRedirect(address)))
        with contextlib.suppress(ConnectionError):  # the node ends within its second attempt
            await reader.read()
        writer.close()

    again = asyncio.Event()
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        node = cluster.node(1, address)
        async with asyncio.timeout(WAIT_S):
            await again.wait()
        assert ends[:6] == [False] * 5 + [True], "each attempt follows four redirects, then it is given up"
        node.peers.close()
        await asyncio.sleep(0.01)
    finally:
        server.close()


# ---- where the coordinator moves -------------------------------------------------------------------------------------


async def moving(cluster: Cluster) -> tuple[Node, Node, Node]:
    """Node 1 coordinates in term 3; 2 and 3 are its agents."""
    one = cluster.node(1)
    one.peers.lead(3)
    two, three = await cluster.joined(one, 2), await cluster.joined(one, 3)
    for node in (two, three):
        await node.knows({f"{number:016x}": "alive" for number in (1, 2, 3)})
    return one, two, three


@in_loop
async def test_an_agent_becomes_the_coordinator_and_the_others_dial_it(cluster: Cluster) -> None:
    one, two, three = await moving(cluster)
    two.peers.lead(4)
    three.peers.point(two.control, 4)
    one.peers.follow()
    one.peers.point(two.control, 4)
    for number, node in ((1, one), (3, three)):
        await two.happens("report", number)
        await node.happens("coordinator_up", 2)
        node.peers.report(p.Draining())
    await two.happens("report", 1, p.Draining())
    await two.happens("report", 3, p.Draining())
    two.sends[3](o.CloseJob(7))
    await three.happens("order", o.CloseJob(7))
    assert {row["node"]: row["role"] for row in two.peers.members()} == {
        f"{1:016x}": "agent",
        f"{2:016x}": "coordinator",
        f"{3:016x}": "agent",
    }


@in_loop
async def test_an_agent_that_nobody_tells_asks_the_members_that_it_knows(cluster: Cluster) -> None:
    one, two, three = await moving(cluster)
    two.peers.lead(4)
    one.peers.close()
    await three.happens("coordinator_down")
    await three.happens("coordinator_up", 2)


@in_loop
async def test_one_that_coordinated_finds_the_next_one_by_its_agents(cluster: Cluster) -> None:
    one, two, three = await moving(cluster)
    two.peers.lead(4)
    three.peers.point(two.control, 4)
    await two.happens("report", 3)
    one.peers.follow()
    await one.happens("coordinator_up", 2)


@in_loop
async def test_one_whose_term_is_over_is_not_joined_again(cluster: Cluster) -> None:
    one, _two, three = await moving(cluster)
    three.peers.point(one.control, 5)  # as if it had heard of a later term there
    await three.happens("coordinator_down")
    async with asyncio.timeout(WAIT_S):
        while "coordinates no longer" not in three.peers.trouble:
            await asyncio.sleep(0.01)
    one.peers.lead(5)
    await three.happens("coordinator_up", 1, times=2)


@in_loop
async def test_an_attempt_that_hangs_ends_when_it_is_known_who_coordinates(cluster: Cluster) -> None:
    """The one that did stands still: its port takes connections in and says nothing."""
    _one, two, three = await moving(cluster)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        three.peers.point(f"127.0.0.1:{silent.getsockname()[1]}", 4)
        await three.happens("coordinator_down")
        silent.setblocking(False)
        taken, _ = await asyncio.get_running_loop().sock_accept(silent)
        two.peers.lead(5)
        began_s = time.monotonic()
        three.peers.point(two.control, 5)
        await three.happens("coordinator_up", 2)
        assert time.monotonic() - began_s < acceptor.GREETING_S - 1
        taken.close()


@in_loop
async def test_one_that_was_elected_is_waited_for_though_it_names_the_last_one(cluster: Cluster) -> None:
    """The last one stands still: whoever dials that waits for nothing."""
    _one, two, three = await moving(cluster)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.setblocking(False)
        two.peers.point(f"127.0.0.1:{silent.getsockname()[1]}", 4)  # it redirects there from now on
        taken, _ = await asyncio.get_running_loop().sock_accept(silent)
        three.peers.point(two.control, 5)
        await three.happens("coordinator_down")
        async with asyncio.timeout(WAIT_S):
            while "does not coordinate yet" not in three.peers.trouble:
                await asyncio.sleep(0.01)
        two.peers.lead(5)
        await three.happens("coordinator_up", 2)
        with pytest.raises(BlockingIOError):
            silent.accept()
        taken.close()


@in_loop
async def test_the_roles_are_kept_apart(cluster: Cluster) -> None:
    coordinator = cluster.node(COORDINATOR)
    agent = await cluster.joined(coordinator, 1)
    with pytest.raises(LocalFault):
        coordinator.peers.report(o.JobOpened(1))
    with pytest.raises(LocalFault):
        agent.peers.send(2, o.CloseJob(1))


# ---- a node as a process -----------------------------------------------------------------------------------------


class Printing(Node):
    """Prints its events, and answers every order."""

    def note(self, *event: Any) -> None:
        super().note(*event)
        if event[0] != "beat":
            print(json.dumps(event[:2]), flush=True)

    def order(self, order: Any) -> None:
        self.peers.report(o.JobOpened(order.number))


async def _main(role: str, *arguments: str) -> None:
    forever: Awaitable[None] = asyncio.get_running_loop().create_future()
    if role == "agent":
        Printing(int(arguments[0]), arguments[1])
    else:
        node = Printing(COORDINATOR, timing=Timing(*map(float, arguments)))
        print(json.dumps(node.control), flush=True)
    await forever


if __name__ == "__main__":
    uvloop.run(_main(*sys.argv[1:]))
