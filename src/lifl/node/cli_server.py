"""The daemon's door for the command line: frames over an AF_UNIX socket in the state folder, or from a control port.

One request, one answer; who follows a job gets its events after that.  The folder is the user's alone (0700), so is
the socket (0600), and the kernel is asked who comes: the owner is an operator.  Who comes by the control port is whom
its certificate says.  Each request is an action of the policy
(`core/trust/policy.py`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lifl.core.errors import Impossible, LiflError, Refused
from lifl.core.identity import Identity
from lifl.core.limits import (
    CLI_CONNECTIONS_MAX,
    CLI_FOLLOWERS_MAX,
    CLI_IDLE_S,
    CLI_OF_ONE_MAX,
    CLI_REMOTE_MAX,
    TEXT_CHARS_MAX,
)
from lifl.core.protocol import cli as om
from lifl.core.protocol import client as cm
from lifl.core.protocol.frames import encode
from lifl.core.trust.policy import check
from lifl.core.trust.revocation import Revocation, RevokedList
from lifl.node.audit_log import AuditLog
from lifl.node.door_log import DoorLog
from lifl.node.link import Link
from lifl.node.listening import Listening
from lifl.node.pace import REST
from lifl.node.tasks import start
from lifl.node.who import is_same_user, who_is
from lifl.tls.peer import Peer
from lifl.tls.tls_socket import Stream

log = logging.getLogger("lifl.cli_server")


OWNER = Identity("operator", "owner")
"""Who comes by the socket in the state folder."""


class CliServer:
    """Listens on `path`; `handle(request, link)` returns the answer's result, now or later, or raises `LiflError`."""

    def __init__(
        self,
        path: Path,
        handle: Callable[[Any, Link], dict[str, Any] | Coroutine[Any, Any, dict[str, Any]]],
        audit: AuditLog,
    ) -> None:
        self.path = path
        self._handle = handle
        self._audit = audit
        self._loop = asyncio.get_running_loop()
        self._door_log = DoorLog()
        self._links: dict[Link, str] = {}  # each with who is at its other end
        self._asked_s: dict[Link, float] = {}  # when each has asked last
        self._remote: dict[Link, Peer] = {}  # those of other machines
        self._followers: dict[str, set[Link]] = {}
        self._tasks: set[asyncio.Task[None]] = set()  # requests that are answered later
        self._free_at_s: dict[Identity, float] = {}  # from when on each of those that rest is answered again
        self._listening = Listening("cli", listen_unix(path), self._taken)

    def _taken(self, sock: socket.socket, _where: Any) -> None:
        if not is_same_user(sock):
            sock.close()
            return
        if len(self._links) >= CLI_CONNECTIONS_MAX and not self._make_place():
            with sock, suppress(OSError):  # it may be gone by now
                sock.send(encode(_too_many(len(self._links))))
            return
        self._serve(sock, OWNER, who_is(sock))

    def take(self, sock: Stream, peer: Peer, host: str) -> bool:
        """Serve somebody on another machine, as whom its certificate says; return False when there are too many."""
        full = len(self._remote) >= CLI_REMOTE_MAX or len(self._links) >= CLI_CONNECTIONS_MAX
        own = [link for link, other in self._remote.items() if other.identity == peer.identity]
        if len(own) >= CLI_OF_ONE_MAX:
            if not self._make_place(own):
                return False
        elif full and not self._make_place():
            return False
        self._door_log.say("cli.taken", host, "", who=str(peer.identity))
        self._remote[self._serve(sock, peer.identity, str(peer.identity))] = peer
        return True

    def take_visitor(self, sock: socket.socket, identity: Identity) -> None:
        """Serve somebody who looks at the node's page, for one request."""
        if len(self._links) >= CLI_CONNECTIONS_MAX and not self._make_place():
            with sock, suppress(OSError):
                sock.send(encode(_too_many(len(self._links))))
            return
        self._serve(sock, identity, f"page {identity}")

    def peer(self, link: Link) -> Peer | None:
        """Return the certificate of who is at the other end; None: it came by the socket in the state folder."""
        return self._remote.get(link)

    def revoke(self, entries: tuple[Revocation, ...], revoked: RevokedList) -> None:
        """End the connections of those whose certificates are revoked; the control port takes no more of theirs."""
        for link, peer in list(self._remote.items()):
            if revoked.names(peer.identity, peer.serial, peer.issued_unix_s):
                link.close()

    def _make_place(self, among: Iterable[Link] = ()) -> bool:
        """End the connection that has asked nothing for longest, and follows nothing; return whether there is one.

        `among`: only one of these, if there are any.
        """
        following = self._following()
        idle = [link for link in among or self._links if link not in following]
        found = min(idle, key=lambda link: self._asked_s[link], default=None)
        if found is None or self._loop.time() - self._asked_s[found] < CLI_IDLE_S:
            return False
        found.send(_too_many(len(self._links)))
        found.close()
        return True

    def _following(self) -> set[Link]:
        return set().union(*self._followers.values())

    def _serve(self, sock: Stream, identity: Identity, who: str) -> Link:
        link: Link = Link(
            sock,
            om.FromCli,
            lambda message: self._asked(message, link, identity),
            lambda _error: self._gone(link),
            in_turn=True,
        )
        self._links[link] = who
        self._asked_s[link] = self._loop.time()
        return link

    def _asked(self, message: Any, link: Link, identity: Identity) -> None:
        """Answer a request, or keep it, and the connection, until whoever has asked may do so again."""
        if link.closed:
            return
        now = time.monotonic()
        wait_s = self._free_at_s.get(identity, now) - now
        if wait_s > 0:
            link.hold()
            self._loop.call_later(wait_s, self._asked, message, link, identity)
            return
        link.release()
        self._answer(message, link, identity)
        if identity != OWNER:
            ended = time.monotonic()
            self._free_at_s = {each: at_s for each, at_s in self._free_at_s.items() if at_s > ended}
            self._free_at_s[identity] = ended + REST * (ended - now)

    def _answer(self, message: Any, link: Link, identity: Identity) -> None:
        self._asked_s[link] = self._loop.time()
        with self._told(message, link):
            check(identity, om.ACTION_OF[type(message)])
            result = self._handle(message, link)
            if isinstance(result, dict):
                link.send(om.Answer(result))
            else:
                link.hold()  # else one connection could have any number of them under way
                start(self._tasks, self._answer_later(message, link, result), "a request of the command line")

    async def _answer_later(self, message: Any, link: Link, result: Coroutine[Any, Any, dict[str, Any]]) -> None:
        try:
            with self._told(message, link):
                link.send(om.Answer(await result))
        finally:
            link.release()

    @contextmanager
    def _told(self, message: Any, link: Link) -> Iterator[None]:
        """Answer a request that cannot be done, and say why."""
        try:
            yield
        except Refused as refused:
            self._refused(message, link, refused)
            link.send(cm.Refusal(refused.code, refused.field, refused.text[:TEXT_CHARS_MAX]))
        except Impossible:
            raise  # the node is of no use any more
        except LiflError as error:
            link.send(cm.Refusal("failed", "", str(error)[:TEXT_CHARS_MAX]))
        except Exception as error:
            log.exception("cli.failed %s", type(message).__name__)
            text = f"{type(message).__name__} failed: {type(error).__name__}: {error}; lifld's log tells more"
            link.send(cm.Refusal("failed", "", text[:TEXT_CHARS_MAX]))

    def _refused(self, message: Any, link: Link, refused: Refused) -> None:
        name, where = type(message).__name__, refused.field
        self._audit.note("cli.refused", self.who(link), refused.text, request=name, code=refused.code, field=where)

    def _gone(self, link: Link) -> None:
        self._links.pop(link, None)
        self._asked_s.pop(link, None)
        self._remote.pop(link, None)
        for followers in self._followers.values():
            followers.discard(link)

    def who(self, link: Link) -> str:
        """Return who is at the other end of a connection."""
        return self._links.get(link, "gone")

    def follow(self, job: str, link: Link) -> None:
        """Send the link the job's events from now on.  Raise `Refused` when too many follow already."""
        self.check_follow(job, link)
        self._followers.setdefault(job, set()).add(link)

    def check_follow(self, job: str, link: Link) -> None:
        """Raise `Refused` when too many follow already."""
        following = self._following()
        if link not in following and len(following) >= CLI_FOLLOWERS_MAX:
            text = f"{len(following)} command lines watch jobs of this node already, the most that may; end one of them"
            raise Refused("quota", "watch", f"{text}, or look with `lifl status {job}`")

    def unfollow(self, job: str, link: Link) -> None:
        """Send the link the job's events no more."""
        self._followers.get(job, set()).discard(link)

    def publish(self, name: str, job: str, fields: dict[str, Any]) -> None:
        """Tell those who follow the job."""
        for link in list(self._followers.get(job, ())):
            try:
                link.send(om.Event(name, {"job": job, **fields}))
            except Exception:
                log.exception("cli.event %s of job %s cannot be told", name, job)
                link.close()
        if name == "job.over":
            self._followers.pop(job, None)

    def close(self) -> None:
        """End all connections and remove the socket."""
        self._listening.close()
        self.path.unlink(missing_ok=True)
        self._door_log.flush()
        for link in list(self._links):
            link.close()
        for task in list(self._tasks):
            task.cancel()


def _too_many(count: int) -> cm.Refusal:
    text = f"{count} connections of the command line are open, the most that may: end one, such as a `lifl top`"
    return cm.Refusal(om.TOO_MANY, "", text)


def listen_unix(path: Path) -> socket.socket:
    """Return a listening socket at `path`, its owner's alone; one that a dead daemon left is replaced."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(before)
    listener.listen(128)
    listener.setblocking(False)
    return listener
