"""The daemon's door for the command line: places for who does something, however many are connected."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lifl.core.errors import Refused
from lifl.core.identity import Identity, Role
from lifl.core.limits import CLI_CONNECTIONS_MAX
from lifl.core.protocol import cli as om
from lifl.core.protocol.frames import FrameDecoder, encode
from lifl.node import cli_server, who
from lifl.node.audit_log import AuditLog
from lifl.node.cli_server import CliServer
from lifl.node.link import Link
from lifl.tls.peer import Peer


class Door:
    """A server that answers `ListJobs`, and has those follow a job who ask so."""

    def __init__(self, folder: Path) -> None:
        self.audit = AuditLog(folder / "audit")
        self.path = folder / "door.sock"
        self.server = CliServer(self.path, self._handle, self.audit)
        self._socks: list[socket.socket] = []

    def _handle(self, message: Any, link: Link) -> dict[str, Any]:
        if isinstance(message, om.Follow):
            self.server.follow(message.job, link)
        return {}

    def close(self) -> None:
        for sock in self._socks:
            sock.close()
        self.server.close()
        self.audit.close()

    async def connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, str(self.path))
        self._socks.append(sock)
        return sock

    async def ask(self, sock: socket.socket, message: Any) -> Any:
        """The answer, also one that was there before; None when the connection has ended without one."""
        loop, decoder = asyncio.get_running_loop(), FrameDecoder[Any](om.ToCli)
        try:
            with suppress(BrokenPipeError):
                await loop.sock_sendall(sock, encode(message))
            while (answer := decoder.next_message()) is None:
                data = await loop.sock_recv(sock, 4096)
                if not data:
                    return None
                decoder.feed(data)
        except OSError:
            return None
        return answer


@pytest.mark.parametrize(("idle_s", "gets_in"), [(0.0, True), (3600.0, False)])
def test_who_has_asked_nothing_for_long_gives_way_and_who_follows_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, idle_s: float, gets_in: bool
) -> None:
    monkeypatch.setattr(cli_server, "CLI_CONNECTIONS_MAX", 4)
    monkeypatch.setattr(cli_server, "CLI_IDLE_S", idle_s)

    async def play() -> None:
        door = Door(tmp_path)
        follower = await door.connect()
        assert await door.ask(follower, om.Follow("j")) == om.Answer({})
        silent = [await door.connect() for _ in range(2)]
        last = await door.connect()
        assert await door.ask(last, om.ListJobs()) == om.Answer({})
        newcomer = await door.connect()
        answer = await door.ask(newcomer, om.ListJobs())
        told = answer if not gets_in else await door.ask(silent[0], om.ListJobs())
        assert told.code == om.TOO_MANY and "4 connections" in told.text and "end one" in told.text
        if gets_in:
            assert answer == om.Answer({})
            for alive in (follower, silent[1], last):
                assert await door.ask(alive, om.ListJobs()) == om.Answer({})
        door.close()

    asyncio.run(play())


def test_so_many_command_lines_are_served_and_one_more_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_server, "CLI_IDLE_S", 3600.0)

    async def play() -> None:
        door = Door(tmp_path)
        served = [await door.connect() for _ in range(CLI_CONNECTIONS_MAX)]
        for sock in served:
            assert await door.ask(sock, om.ListJobs()) == om.Answer({})
        told = await door.ask(await door.connect(), om.ListJobs())
        assert told.code == om.TOO_MANY and f"{CLI_CONNECTIONS_MAX} connections" in told.text
        for sock in served:
            assert await door.ask(sock, om.ListJobs()) == om.Answer({})
        door.close()

    asyncio.run(play())


def test_places_are_kept_for_those_who_do_not_watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_server, "CLI_FOLLOWERS_MAX", 2)

    async def play() -> None:
        door = Door(tmp_path)
        followers = [await door.connect() for _ in range(3)]
        for sock in followers[:2]:
            assert await door.ask(sock, om.Follow("j")) == om.Answer({})
        refusal = await door.ask(followers[2], om.Follow("j"))
        assert (refusal.code, refusal.field) == ("quota", "watch")
        assert await door.ask(followers[0], om.Follow("k")) == om.Answer({}), "who watches already may watch more"
        with pytest.raises(Refused):
            door.server.follow("j", object())  # type: ignore[arg-type]
        door.close()

    asyncio.run(play())


def test_who_asks_without_end_and_does_not_read_waits_and_holds_up_nobody(tmp_path: Path) -> None:
    """Thousands of questions in one piece, whose answers nobody takes, are neither answered at once nor kept."""

    async def play() -> None:
        door, answered = Door(tmp_path), 0
        long = {"text": "x" * 100_000}

        def handle(message: Any, _link: Link) -> dict[str, Any]:
            nonlocal answered
            answered += isinstance(message, om.ListJobs)
            return long if isinstance(message, om.ListJobs) else {}

        door.server._handle = handle
        greedy, other = await door.connect(), await door.connect()
        await asyncio.get_running_loop().sock_sendall(greedy, encode(om.ListJobs()) * 1000)
        for _ in range(50):
            assert await door.ask(other, om.ListNodes()) == om.Answer({})
        assert 1 <= answered < 50
        (link,) = [link for link in door.server._links if link._waiting]
        assert link._waiting_bytes < 200_000
        left = 1000 * len(encode(om.Answer(long)))
        while left:
            data = await asyncio.get_running_loop().sock_recv(greedy, 1 << 20)
            assert data
            left -= len(data)
        assert answered == 1000, "all are answered to who reads"
        door.close()

    asyncio.run(play())


def test_another_account_that_gets_at_the_socket_is_not_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the folder, or the socket, lets it in: the kernel is asked who comes."""

    async def play() -> None:
        door = Door(tmp_path)
        for uid, served in ((os.geteuid(), True), (0, True), (os.geteuid() + 1, False)):
            monkeypatch.setattr(who, "peer_uid", lambda _sock, uid=uid: uid)
            answer = await door.ask(await door.connect(), om.ListJobs())
            assert answer == (om.Answer({}) if served else None), uid
        door.close()

    asyncio.run(play())


def test_one_name_does_not_take_all_places_of_other_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_server, "CLI_OF_ONE_MAX", 2)
    monkeypatch.setattr(cli_server, "CLI_IDLE_S", 3600.0)

    async def play() -> None:
        door = Door(tmp_path)
        with ExitStack() as stack:

            def comes(role: Role, name: str) -> bool:
                here, there = map(stack.enter_context, socket.socketpair())
                taken = door.server.take(there, Peer("c1", Identity(role, name), "1", 0.0, 1.0), "192.0.2.1")
                here.setblocking(False)
                return taken

            assert [comes("reader", "rita") for _ in range(3)] == [True, True, False]
            assert comes("operator", "rita")
            assert comes("reader", "other")
            door.close()

    asyncio.run(play())


@pytest.mark.parametrize(("cost_s", "answered"), [(3600.0, 1), (0.0001, 300)])
def test_who_asks_without_end_rests_in_between_and_others_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cost_s: float, answered: int
) -> None:
    """Three connections of one reader, each with a hundred questions that keep the node busy for `cost_s`."""

    async def play() -> None:
        door = Door(tmp_path)
        asked, busy_s, all_answered = 0, 0.0, asyncio.Event()

        def handle(message: Any, _link: Link) -> dict[str, Any]:
            nonlocal asked, busy_s
            if isinstance(message, om.ListJobs):
                asked, busy_s = asked + 1, busy_s + cost_s
                if asked == 300:
                    all_answered.set()
            return {}

        door.server._handle = handle
        monkeypatch.setattr(cli_server, "time", SimpleNamespace(monotonic=lambda: busy_s + time.monotonic()))
        with ExitStack() as stack:
            for _ in range(3):
                here, there = map(stack.enter_context, socket.socketpair())
                assert door.server.take(there, Peer("c1", Identity("reader", "rita"), "1", 0.0, 1.0), "192.0.2.1")
                here.sendall(encode(om.ListJobs()) * 100)
            other = await door.connect()
            for _ in range(50):
                assert await door.ask(other, om.ListNodes()) == om.Answer({})
            if answered > 1:
                await all_answered.wait()
            assert asked == answered
            door.close()

    asyncio.run(play())


def test_one_connection_has_one_request_under_way(tmp_path: Path) -> None:
    """What is answered later, such as a submit, is answered before the next one is begun."""

    async def play() -> None:
        door, going_on = Door(tmp_path), asyncio.Event()
        begun: list[Any] = []
        ended = 0

        async def later() -> dict[str, Any]:
            nonlocal ended
            await going_on.wait()
            ended += 1
            return {}

        def handle(message: Any, _link: Link) -> Any:
            begun.append(message)
            return later() if isinstance(message, om.CancelJob) else {}

        door.server._handle = handle
        greedy, other = await door.connect(), await door.connect()
        await asyncio.get_running_loop().sock_sendall(greedy, encode(om.CancelJob("j")) * 100)
        for _ in range(50):
            assert await door.ask(other, om.ListNodes()) == om.Answer({})
        assert begun.count(om.CancelJob("j")) == 1
        going_on.set()
        while ended < 100:
            assert await door.ask(other, om.ListNodes()) == om.Answer({})
        door.close()

    asyncio.run(play())
