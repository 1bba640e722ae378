"""A connection ends with the certificate that it was made with, whoever has its other end; others stay."""

from __future__ import annotations

import asyncio
import socket
import time
from pathlib import Path

from certificates import Authority
from test_tls_socket import raw_pair

from lifl.node.security import Secured, Security
from lifl.tls.contexts import Contexts
from lifl.tls.tls_socket import TlsSocket
from lifl.tls.waits import received, sent, shaken

DAY_S = 86_400.0
SHORT_S = 4.0


async def connected(node: Security, client: Contexts) -> tuple[TlsSocket, Secured, socket.socket]:
    dialled, taken = raw_pair()
    mine = TlsSocket(dialled, client.client(), host="127.0.0.1")
    secured, _ = await asyncio.gather(node.taken(taken), shaken(mine))
    return mine, secured, taken


def test_it_ends_within_ten_seconds_and_one_with_a_renewed_certificate_stays(tmp_path: Path) -> None:
    async def life() -> None:
        ca = Authority()
        node = Security(Contexts(ca.enroll(tmp_path / "n", "node", "a", ["127.0.0.1"])))
        short = Contexts(ca.enroll(tmp_path / "s", "client", "late", days=SHORT_S / DAY_S))
        renewed = Contexts(ca.enroll(tmp_path / "r", "client", "late"))
        ends, ending, raw = await connected(node, short)
        stays, staying, other = await connected(node, renewed)
        for secured in (staying, ending):
            secured.check(["client"])
        assert ending.peer is not None
        await sent(ends, b"at work")
        assert await received(ending.sock, 7) == b"at work"
        async with asyncio.timeout(60):
            assert await received(ending.sock, 1) == b"", "the node's side is woken"
            assert await received(ends, 1) == b""
        over_s = time.time() - ending.peer.expires_unix_s
        assert 0 <= over_s < 10, over_s
        await sent(stays, b"still here")
        assert await received(staying.sock, 10) == b"still here"
        for sock in (ends, stays, raw, other):
            sock.close()

    asyncio.run(life())


def test_a_clock_that_was_set_back_ends_nothing_early() -> None:
    """It is looked at again when the certificate ends by the clock that there is then."""
    from lifl.core.identity import Identity
    from lifl.node import expiries
    from lifl.tls.peer import Peer

    class Sock:
        def fileno(self) -> int:
            return 3

        def shutdown(self, _how: int) -> None:
            raise OSError("seen")

    async def life() -> None:
        now_s = 1000.0
        books = expiries.Expiries(lambda: now_s)
        sock = Sock()
        books.add(sock, Peer("c", Identity("client", "a"), "1", 0.0, 1000.0))  # type: ignore[arg-type]
        now_s = 400.0
        books._look()
        assert len(books._peers) == 1
        now_s = 1000.0
        books._look()
        assert not books._peers

    asyncio.run(life())
