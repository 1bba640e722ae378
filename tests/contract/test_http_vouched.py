"""Clients that the HTTP door brings to the gateway: what it may say of them, and what they may do by it."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from lifl_cli.up import up

from lifl.core import limits
from lifl.core.config.node import NodeConfig, parse_node, secured
from lifl.core.errors import ConfigError, Refused
from lifl.core.protocol import gateway as gm
from lifl.core.protocol import http as hm
from lifl.core.protocol.ticket_line import TicketLine
from lifl.core.schema import Layout, TensorSpec
from lifl.node import http_door
from lifl.node.gateway.connection import Connection
from lifl.node.gateway.main import Gateway
from lifl.node.gateway.quotas import Limits
from lifl.node.http.api import Api
from lifl.node.http.callers import Caller
from lifl.node.http.main import Door
from lifl.node.http.native import Answer
from lifl.node.http.segments import Segments
from lifl.node.http.sessions import Session, Sessions
from lifl.node.http.uploads import Upload
from lifl.node.link import Link
from lifl.node.security import Security, Vouched

LAYOUT = Layout([TensorSpec("w", "float32", (4,))])


def test_one_without_a_certificate_is_not_let_in_where_they_are_asked_for() -> None:
    """Whoever has taken over the door cannot bring in somebody who would be asked for nothing."""

    async def brought(security: Any) -> int:
        gateway = Gateway(Limits(4), 0, security, 1)
        taken: list[Any] = []
        gateway._take_in = lambda *what: taken.append(what)  # type: ignore[method-assign]
        ours, theirs = socket.socketpair()
        with ours:
            gateway._vouched(gm.ClientCame("10.0.0.7"), theirs.detach())
            for _sock, _who, secured in taken:
                assert isinstance(secured, Vouched)
                secured.sock.close()
        return len(taken)

    secured = SimpleNamespace(is_on=True, revoked=None, bearers=None, contexts=object())
    assert asyncio.run(brought(secured)) == 0
    assert asyncio.run(brought(Security())) == 1


def test_a_client_has_so_many_connections_by_http_and_others_keep_theirs() -> None:
    """They count from who it is being known, before it is answered; on loopback all are of the node's own account."""

    async def scene(is_on: bool) -> list[str]:
        door = Door(SimpleNamespace(is_on=is_on), "", 20, 2, 0)  # type: ignore[arg-type]
        said = []
        for number, name in enumerate(("a", "a", "a", "b", "a"), start=1):
            door._quotas.arrived(number, "127.0.0.1", 0.0)
            exchange = SimpleNamespace(keeps=True)
            for _request in range(2):
                try:
                    door._known(number, exchange, f"client {name}", name)  # type: ignore[arg-type]
                    said.append("")
                except Refused as refused:
                    said.append(refused.code)
            assert exchange.keeps == (not said[-1])
        return said

    assert asyncio.run(scene(True)) == [""] * 4 + ["quota"] * 2 + [""] * 2 + ["quota"] * 2
    assert asyncio.run(scene(False)) == [""] * 10


def test_nobody_hosts_folds_by_http() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        connection = SimpleNamespace(_secured=Vouched(ours, Security(), "10.0.0.7", None, ""))
        assert not Connection._may_host(connection)  # type: ignore[arg-type]


def test_a_node_without_the_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_door, "NEEDS", "no_such_library")
    http_door.check_library(NodeConfig())
    with pytest.raises(ConfigError, match="lifl\\[http\\]"):
        http_door.check_library(NodeConfig(http="127.0.0.1:0"))


def test_the_flag_alone_means_loopback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started: list[NodeConfig] = []
    monkeypatch.setattr("lifl.node.daemon.run", lambda config, *_more, **_kept: started.append(config))
    for arguments in (["--http"], ["--http", "[::1]:0"], []):
        done = CliRunner().invoke(up, ["--state", str(tmp_path / "s"), *arguments])
        assert done.exit_code == 0, done.output
    assert [config.http for config in started] == ["127.0.0.1:7480", "[::1]:0", ""]
    with pytest.raises(ConfigError, match="http"):
        parse_node({"http": "nowhere"})
    assert secured(NodeConfig(http="0.0.0.0:7480")) and not secured(NodeConfig(http="127.0.0.1:7480"))


class Ways:
    """Sessions whose door leads nowhere."""

    def __enter__(self) -> Sessions:
        ours, self._theirs = socket.socketpair()
        self._link = Link(ours, hm.ToHttp, lambda _message: None, lambda _error: None)
        self.sessions = Sessions(self._link)
        return self.sessions

    def __exit__(self, *_error: object) -> None:
        self.sessions.close()
        self._link.close()
        self._theirs.close()


class Native:
    """A connection to the gateway, as far as its end goes."""

    closed = False

    def close(self) -> None:
        self.closed = True

    async def ask(self, *_what: object) -> Answer:
        raise AssertionError


def taking_part(session: Session) -> Native:
    session._native = native = Native()  # type: ignore[assignment]
    return native


def test_so_many_clients_take_part_and_who_does_not_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HTTP_SESSIONS_MAX", 2)

    async def scene() -> None:
        came = gm.ClientCame("127.0.0.1")
        with Ways() as sessions:
            first, second = (sessions.of(came, name, "j") for name in ("a", "b"))
            assert sessions.of(came, "a", "j") is first and len(sessions) == 2
            taking_part(first)
            third = sessions.of(came, "c", "j")
            assert len(sessions) == 2 and third is not second, "of those the one that takes part in nothing"
            taking_part(third)
            with pytest.raises(Refused, match="2 clients") as refused:
                sessions.of(came, "d", "j")
            assert refused.value.code == "too-many-connections"

    asyncio.run(scene())


def test_a_ticket_that_says_anything_else_has_a_session_of_its_own() -> None:
    """One with another expiry, shown first, would be what the right one is refused for; and be let in behind it."""

    async def scene() -> None:
        ticket = TicketLine((), "n", "j", 257, "a", "c" * 64, 100, 1, "", "e" * 64)
        with Ways() as sessions:
            api = Api(sessions, Security(), lambda: None, lambda: None)  # type: ignore[arg-type, return-value]

            def session_of(line: TicketLine) -> Session:
                caller = Caller("127.0.0.1", ticket=line, by_ticket=True)
                return api._session(caller, {"client": "a", "job": "j"})

            right = session_of(ticket)
            assert session_of(msgspec.structs.replace(ticket)) is right
            for change in ({"fold": 258}, {"expires_unix_s": 101}, {"made_unix_s": 2}, {"credential": "d" * 64}):
                assert session_of(msgspec.structs.replace(ticket, **change)) is not right

    asyncio.run(scene())


def test_one_that_is_away_for_long_takes_part_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """While it asks it is there, however long that takes."""
    monkeypatch.setattr(limits, "HTTP_AWAY_S", 0.01)

    async def scene() -> None:
        with Ways() as sessions:
            away, here = (sessions.of(gm.ClientCame("127.0.0.1"), name, "j") for name in ("away", "here"))
            gone, there = taking_part(away), taking_part(here)
            with here.attended():
                async with asyncio.timeout(60):
                    while not gone.closed:
                        await asyncio.sleep(0.005)
                assert len(sessions) == 1 and not there.closed
            async with asyncio.timeout(60):
                while not there.closed:
                    await asyncio.sleep(0.005)
            assert not len(sessions)

    asyncio.run(scene())


def test_an_update_that_was_cut_keeps_its_slot_for_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HTTP_RESUME_S", 0.01)

    async def scene() -> None:
        fd = os.memfd_create("slot")
        os.ftruncate(fd, 4096)
        with Ways() as sessions:
            session = sessions.of(gm.ClientCame("127.0.0.1"), "a", "j")
            native = taking_part(session)
            upload = session.upload = Upload(Segments().take(fd), 0, LAYOUT, 1, 1.0, {})
            upload.begin(100)
            session.keep(upload)
            assert session.again(1, 1.0, {}) is upload
            assert session.again(1, 2.0, {}) is None and session.again(2, 1.0, {}) is None
            session.take_up()
            assert session._upload_ends is None and not native.closed, "its rest comes"
            session.keep(upload)
            async with asyncio.timeout(60):
                while not native.closed:
                    await asyncio.sleep(0.005)
            assert session.upload is None and session.again(1, 1.0, {}) is None
            assert upload.ended is not None

    asyncio.run(scene())
