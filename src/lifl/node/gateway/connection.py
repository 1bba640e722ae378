"""One client's connection, as one coroutine that reads frames and answers them in order.

Another node's gateway is a client like any other (`peer_transfer` is its side); it offers partials, and gets models.
Where a cookie is asked for (`core/trust/cookie.py`), it comes before all else.  Where certificates are
(`node/security.py`), the one that was shown says who it is: a client says Hello by its own name alone, and each request
is one that its role may make (`core/trust/policy.py`).

A connection is made of parts, each of which takes what it needs: its socket (`client_socket`), the frames that come
(`frame_reader`) and go (`outbox`), the question to the daemon (`grant_waiter`), and what comes in (`intake`).

While the daemon thinks about a request, or a body moves, the coroutine does not read: a client that sends more is
slowed by TCP; so is one that sends small requests without end (`budgets`).  A client that reads too slowly, sends
garbage or stalls is disconnected.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import time

import msgspec
from msgspec.structs import replace

from lifl import failpoints
from lifl.core import limits
from lifl.core.config.values import joined_address
from lifl.core.errors import FrameTooLong, Refused, RemoteFault, StaleKey
from lifl.core.identity import ROLES
from lifl.core.ids import Key
from lifl.core.limits import FIELD_CHARS_MAX, TEXT_CHARS_MAX
from lifl.core.protocol import client as cm
from lifl.core.protocol import folds as fm
from lifl.core.protocol import gateway as gm
from lifl.core.protocol import tickets as tm
from lifl.core.protocol.body_ranges import STREAMS, BodyRange
from lifl.core.protocol.frames import framed
from lifl.core.protocol.update_check import check_evaluated
from lifl.core.trust import policy
from lifl.core.trust.cookie import NONCE_BYTES, is_proof
from lifl.core.trust.ticket import Holder
from lifl.node.gateway.asked_for import ASKS_FOR_CERTIFICATE, ASKS_FOR_COOKIE, ASKS_FOR_HOST
from lifl.node.gateway.client_socket import ClientSocket
from lifl.node.gateway.content import JobLayout, Sums
from lifl.node.gateway.frame_reader import FrameReader
from lifl.node.gateway.grant_waiter import Grant, GrantWaiter, Loan
from lifl.node.gateway.intake import Intake
from lifl.node.gateway.lending import MODEL_GONE, pass_on
from lifl.node.gateway.outbox import Outbox
from lifl.node.gateway.shared import Shared
from lifl.node.gateway.small_models import Copy
from lifl.node.gateway.transfers import Way
from lifl.node.security import Secured, Vouched
from lifl.tls.faults import TlsFault
from lifl.tls.waits import lingered

log = logging.getLogger("lifl.gateway")

FROM_HOSTS = (fm.HostSession, fm.OpenFold, fm.PutModel, fm.CloseFold, fm.CancelFold, fm.EndSession, tm.RevokeTicket)
_IS_REFUSAL = b"\xa4type\xa7Refusal"
"""How a Refusal begins, packed, behind the byte that counts its fields."""


class Connection:
    """Connection `number` of the gateway; owns the socket of `secured`, which does not block."""

    def __init__(self, shared: Shared, number: int, secured: Secured) -> None:
        self._number = number
        self._secured = secured
        self._client = ""
        self._direct = False
        self._knows: tuple[str, ...] = ()
        self._submits = False  # an update is under way
        self._ends = False  # the connection ends when that is answered
        self._told: dict[str, bytes] = {}  # by job: the digest of the tensors that the client has, if it knows digests
        self._shared = shared
        self._grants = GrantWaiter(shared.link)
        self._socket = ClientSocket(secured.sock, shared.movers, shared.read_waiter, self._grants.connection_ended)
        if isinstance(secured, Vouched):
            self._socket.who = secured.who
        self._reader = FrameReader(self._socket, shared)
        self._outbox = Outbox(self._socket, shared.waiting)
        self._loop = asyncio.get_running_loop()
        self._expiry: asyncio.TimerHandle | None = None
        own = (self._socket, self._reader, self._outbox, self._grants)
        self._intake = Intake(number, shared, *own, by_http=isinstance(secured, Vouched))

    # ---- what the daemon says --------------------------------------------------------------------------------------

    def granted(self, grant: Grant) -> bool:
        """Take the daemon's answer to a question; return False when nothing was asked."""
        return self._grants.granted(grant)

    def deliver(self, encoded: bytes) -> None:
        """Send the client what the daemon says to it; it may be the answer to a question."""
        is_ack = failpoints.on and isinstance(cm.unpacked(msgspec.Raw(encoded)), cm.Accepted)
        if is_ack:
            failpoints.hit("gateway.ack.before")
        self._outbox.send_frame(framed(encoded))
        if is_ack:
            failpoints.hit("gateway.ack.after")
        self._grants.delivered(encoded)
        if encoded.startswith(_IS_REFUSAL, 1):
            message = cm.unpacked(msgspec.Raw(encoded))
            assert isinstance(message, cm.Refusal)
            self._shared.refusals.note(self._socket.who, self._client, message)
            if message.code == cm.REPLACED:
                self._intake.replaced()
        if self._ends and not self._submits:
            self.shut()

    def select(self, job: str, encoded: bytes) -> None:
        """Send the client a selection for the job, completed: the tensors once over this connection, then a digest."""
        known, selected = self._shared.jobs.get(job), cm.unpacked(encoded)
        if known is None or not isinstance(selected, cm.Selected):
            self._socket.cut(f"it was selected for job {job!r}, which is not known here")
            return
        digests = cm.DIGESTS in self._knows
        whole = not digests or self._told.get(job) != known.digest
        self._outbox.send_frame(*known.selected(selected, whole, self._knows))
        if digests:
            self._told[job] = known.digest

    def follow(self, key: bytes) -> None:
        """Tell the daemon how far the update with this key is, from now on or from when it begins."""
        self._intake.follow(key)

    def cut(self, because: str) -> None:
        """End the connection of a client that takes too much."""
        self._socket.cut(because)

    def end_if_revoked(self) -> None:
        """End the connection of somebody whose certificate is not believed any more."""
        if self._secured.is_revoked:
            self._socket.cut(f"its {self._shown()} was revoked")

    def _shown(self) -> str:
        """Return what somebody has come by, as it is called."""
        return (
            "ticket" if self._secured.holder is not None else "bearer token" if self._secured.bearer else "certificate"
        )

    def hang_up(self, after_updates: bool) -> None:
        """End the connection, or (`after_updates`) if an update is under way as soon as that is answered."""
        self._ends = after_updates and self._submits
        if not self._ends:
            self.shut()

    def shut(self) -> None:
        """End the connection: everything that waits for the socket wakes up with an error or the end of the stream."""
        self._socket.shut()

    # ---- the life of a connection ----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve the client until it leaves or must go."""
        link, sock = self._shared.link, self._socket
        try:
            await self._greet()
            while True:
                await link.drained()
                message = await self._reader.read()
                own_pace = self._reader.hosts and isinstance(message, FROM_HOSTS)  # a host waits for its own answers
                if not own_pace and not isinstance(message, BodyRange):  # a range is of a request that has been counted
                    await self._socket.rest(self._shared.quotas.request_wait_s(self._number, self._loop.time()))
                await self._handle(message)
        except RemoteFault as error:
            sock.cut_because = sock.reason(error)
            self._refuse(cm.Refusal("protocol", "", str(error)[:TEXT_CHARS_MAX]))
            await self._linger()
        except Refused as refused:
            sock.cut_because = sock.reason(refused)
            self._refuse(_refusal(refused))
            await self._linger()
        except (TimeoutError, FrameTooLong) as error:
            sock.cut_because = sock.reason(error)
        except (OSError, EOFError):  # it left, or was cut
            pass
        except Exception as error:  # a bug of ours: it ends this connection, and no other
            log.exception("gateway.connection %d of client %s failed", self._number, self._client or "-")
            sock.cut_because = f"a fault of this node: {type(error).__name__}: {error}"[:TEXT_CHARS_MAX]
        finally:
            if self._expiry is not None:
                self._expiry.cancel()
            sock.shut()
            if self._outbox.flusher is not None:
                await asyncio.wait({self._outbox.flusher})
            sock.sock.close()
            self._shared.pulse.forget(self._number)
            if sock.cut_because:
                link.send(gm.Disconnected(self._number, self._client, sock.cut_because, sock.who))
            if self._client:
                link.send(gm.ClientLeft(self._number))

    def _refuse(self, refusal: cm.Refusal) -> None:
        self._shared.refusals.note(self._socket.who, self._client, refusal)
        self._outbox.send(refusal)

    async def _linger(self) -> None:
        """Let the peer read the last frame: closing with unread bytes would reset the connection and lose it."""
        sock = self._socket.sock
        try:
            async with asyncio.timeout(limits.LINGER_S):
                if self._outbox.flusher is not None:
                    await asyncio.shield(self._outbox.flusher)
                await lingered(sock)
        except (OSError, TimeoutError):
            return

    async def _hello(self) -> cm.Hello:
        """Return the client's Hello, when it has shown its cookie where that is asked for.

        Before it may come a bearer token, or a ticket that lets somebody in; who asks for the authority's roots, in its
        place, has them and must go.
        """
        hello = await self._reader.read()
        if isinstance(hello, cm.AskRoots):
            self._outbox.send(cm.Roots(self._shared.security.roots()))
            await self._linger()
            raise EOFError("it has asked for the authority's roots")
        if isinstance(hello, cm.ShowToken):
            self._secured.take(hello.token, hello.secret, self._socket.who)
            hello = await self._reader.read()
        elif isinstance(hello, tm.ShowTicket):
            holder = Holder(hello.job, hello.fold, hello.client, hello.made_unix_s, hello.expires_unix_s)
            self._secured.take_ticket(holder, hello.entry, self._socket.who)
            hello = await self._reader.read()
        if not isinstance(hello, cm.Hello):
            raise RemoteFault(f"the first message must be Hello, not {type(hello).__name__}")
        if fault := cm.SPOKEN.fault(hello.version, "this node", "the client"):
            raise Refused("wrong-version", "version", fault)
        cookie, sock = self._shared.security.cookie, self._secured.sock
        if cookie is not None and sock.family != socket.AF_UNIX:
            if cm.COOKIE not in hello.knows:
                raise Refused("no-cookie", "node", ASKS_FOR_COOKIE)
            nonce = secrets.token_hex(NONCE_BYTES)
            self._outbox.send(cm.Challenge(nonce, cookie.path))
            answer = await self._reader.read()
            if not isinstance(answer, cm.Prove):
                raise RemoteFault(f"the answer to Challenge must be Prove, not {type(answer).__name__}")
            if not is_proof(answer.proof, cookie.value, nonce, joined_address(*sock.getsockname()[:2])):
                raise Refused("wrong-cookie", "node", f"that is not the cookie in {cookie.path}: {ASKS_FOR_COOKIE}")
        return hello

    async def _greet(self) -> None:
        async with asyncio.timeout(limits.HELLO_S):
            hello = await self._hello()
        self._identify(hello.client)
        self._expire()
        self._shared.quotas.greeted(self._number, self._socket.who, hello.client, self._loop.time())
        self._client = self._socket.client = hello.client
        by = f" by token {self._secured.bearer}" if self._secured.bearer else ""
        by = " by a ticket" if self._secured.holder is not None else by
        self._shared.link.send(gm.Greeted(self._number, self._socket.who + by))
        self._reader.greeted = True
        self._knows = hello.knows
        self._direct = hello.direct and cm.SEGMENTS in hello.knows and self._socket.is_same_user()
        self._reader.hosts = self._may_host()
        knows = cm.KNOWS if hello.knows else ()
        told = STREAMS in hello.knows and self._secured.sock.family != socket.AF_UNIX
        streams = self._shared.transfers.streams if told else 1
        self._outbox.send(cm.Welcome(cm.PROTOCOL_VERSION, self._shared.node, self._direct, knows, streams))

    def _identify(self, client: str) -> None:
        """Note who it is, by the certificate, the bearer token or the ticket.

        Raise `Refused` unless that one may say Hello as `client`.
        """
        by_token = self._secured.by_secret
        if self._secured.is_stranger and not by_token:
            raise Refused("no-certificate", "identity", ASKS_FOR_CERTIFICATE)
        try:
            if not by_token:
                self._secured.check(ROLES)
        except TlsFault as fault:
            raise Refused("wrong-certificate", "identity", f"this connection is not taken: {fault}") from fault
        peer = self._secured.peer
        if peer is not None:
            self._socket.who = str(peer.identity)
            carries_or_hosts = (policy.Action.CARRY, policy.Action.HOST_FOLDS)
            if by_token or not any(policy.may(peer.identity.role, action) for action in carries_or_hosts):
                policy.check(peer.identity, policy.Action.TAKE_PART, client, bearer=by_token)

    def _expire(self) -> None:
        """End the connection when its bearer token, or its ticket, has expired."""
        peer = self._secured.peer
        if self._secured.by_secret and peer is not None:
            left_s = max(0.0, peer.expires_unix_s - time.time())
            self._expiry = self._loop.call_later(left_s, self._socket.cut, f"its {self._shown()} has expired")

    def _may_host(self) -> bool:
        """Return whether the client may host folds: the node's own account, shown by the kernel or by the cookie.

        Where certificates are asked for, their role says so.
        """
        if isinstance(self._secured, Vouched):
            return False
        peer = self._secured.peer
        if peer is not None:
            return not self._secured.by_secret and policy.may(peer.identity.role, policy.Action.HOST_FOLDS)
        by_cookie = self._secured.sock.family != socket.AF_UNIX and self._shared.security.cookie is not None
        return by_cookie or self._socket.is_same_user()

    def _check_may(self, message: cm.FromClient) -> None:
        """Raise `Refused` unless the certificate's role may ask for that."""
        peer = self._secured.peer
        ticket = message.ticket if isinstance(message, cm.Submit | fm.TakePart) else msgspec.UNSET
        if not isinstance(ticket, msgspec.UnsetType) and ticket.expires_unix_s < time.time():
            raise Refused("ticket-expired", "ticket", "that ticket is too old; ask the fold's host for another one")
        of_host = isinstance(message, cm.Submit) and message.fold is not msgspec.UNSET and ticket is msgspec.UNSET
        if isinstance(message, FROM_HOSTS) or of_host:
            if not self._reader.hosts:
                if peer is not None:
                    policy.check(peer.identity, policy.Action.HOST_FOLDS)
                raise Refused("not-allowed", "node", ASKS_FOR_HOST)
            return
        if peer is None or isinstance(message, cm.Ping | BodyRange):  # the transfer's owner may
            return
        by_token = self._secured.by_secret
        if isinstance(message, cm.GetModel) and self._reader.hosts:
            return
        if isinstance(message, cm.Offer) or (isinstance(message, cm.GetModel) and message.checked):
            policy.check(peer.identity, policy.Action.CARRY, bearer=by_token)
        else:
            job = getattr(message, "job", "")
            policy.check(peer.identity, policy.Action.TAKE_PART, self._client, job, peer.jobs, by_token)
            holder = self._secured.holder
            if holder is not None and isinstance(message, cm.GetModel) and not holder.reads(message.round):
                raise Refused("wrong-ticket", "round", "that ticket is for another fold's model; ask its host for one")

    async def _take_update(self, submit: cm.Submit) -> None:
        self._submits, taken = True, False
        try:
            of_host = submit.fold is not msgspec.UNSET and submit.ticket is msgspec.UNSET
            of_host = of_host and not isinstance(submit.client, msgspec.UnsetType)
            client = str(submit.client) if of_host else self._client
            taken = await self._intake.take_update(submit, client, self._direct)
        finally:
            self._submits = False
        if taken:
            self._shared.quotas.taken(self._number)  # and Accepted is still to come
        elif self._ends:
            self.shut()

    # ---- what clients ask ------------------------------------------------------------------------------------------

    async def _handle(self, message: cm.FromClient) -> None:
        try:
            self._check_may(message)
            match message:
                case cm.Join(job, holding, connected_ns, properties):
                    joined = (self._number, self._client, job, holding, connected_ns, properties)
                    self._shared.link.send(gm.ClientJoined(*joined))
                case cm.Leave(job):
                    self._shared.link.send(gm.ClientLeft(self._number, job))
                case cm.Decline(job, number, reason):
                    self._shared.link.send(gm.ClientDeclined(self._number, self._client, job, number, reason))
                case cm.Evaluated(job, number, weight, metrics):
                    check_evaluated(message, self._client)
                    found = (self._number, self._client, job, number, weight, metrics)
                    self._shared.link.send(gm.ClientEvaluated(*found))
                case cm.GetModel():
                    await self._send_model(message)
                case cm.Submit():
                    await self._take_update(message)
                case cm.Ping():
                    self._shared.pulse.ask(self._number, self._outbox.send)
                case cm.Offer():
                    await self._intake.take_partial(message)
                    self._shared.quotas.taken(self._number)
                case BodyRange():
                    await self._carry_range(message)
                case fm.PutModel():
                    await self._intake.take_model(message, self._direct)
                case fm.TakePart(job, fold, ticket):
                    self._shared.link.send(gm.PartTaken(self._number, self._client, job, fold, ticket))
                case fm.HostSession():
                    self._shared.link.send(_session_asked(self._number, message))
                case fm.OpenFold(job, fold, expected):
                    self._shared.link.send(gm.FoldAsked(self._number, job, fold, "open", expected))
                case fm.CloseFold(job, fold):
                    self._shared.link.send(gm.FoldAsked(self._number, job, fold, "close"))
                case fm.CancelFold(job, fold):
                    self._shared.link.send(gm.FoldAsked(self._number, job, fold, "cancel"))
                case tm.RevokeTicket(job, fold, client):
                    self._shared.link.send(tm.RevocationAsked(self._number, job, fold, client))
                case fm.EndSession(job):
                    self._shared.link.send(gm.SessionEnded(self._number, job))
                case _:
                    raise RemoteFault(f"a {type(message).__name__} makes no sense here")
        except Refused as refused:
            about: tuple[str, int] = (getattr(message, "job", ""), -1)
            if isinstance(message, cm.Submit | cm.GetModel | cm.Evaluated | fm.PutModel):
                about = (message.job, message.round)
            self._refuse(_refusal(refused, *about))

    async def _carry_range(self, asked: BodyRange) -> None:
        """Lend the connection to a transfer; one that there is not ends it, without a word: bytes are waited for."""
        try:
            over = self._shared.transfers.lend(asked, Way(self._socket, self._outbox))
        except Refused as refused:
            self._shared.refusals.note(self._socket.who, self._client, _refusal(refused))
            self._socket.cut(str(refused))
            raise ConnectionResetError(str(refused)) from refused
        await over

    async def _send_model(self, want: cm.GetModel) -> None:
        known = self._shared.jobs.get(want.job)
        if known is not None:
            if not want.checked:  # another node's, which looks at the list itself
                known.clients.check(want.job, self._client)
            nbytes, now = known.layout.data_bytes, self._loop.time()
            await self._socket.rest(self._shared.quotas.bytes_wait_s(self._number, known.flow, nbytes, now))
        part = None if want.part is msgspec.UNSET or not want.checked else want.part
        direct = want.direct is True and self._direct and part is None
        if known is not None and not (direct or want.checked):
            copy = await self._shared.small_models.of(want.job, want.round, known.layout.data_bytes)
            if copy is not None:
                await self._send_small(want, known, copy)
                return
        lend = want.lend is True and self._direct and not want.checked
        grant = await self._grants.ask(gm.WantModel(self._number, want.job, want.round, part, direct, lend))
        if isinstance(grant, Loan):
            await pass_on(grant, want, self._shared, self._outbox)
            return
        if not isinstance(grant, gm.ModelGranted):
            return
        sent_bytes = 0
        try:
            job = self._shared.job(want.job)
            key = Key.unpack(grant.key)
            view = self._shared.arena.data(key)
            data_bytes = len(view)
            streams = self._shared.transfers.streams_of(want.streams, data_bytes)
            sums = Sums(self._shared.arena, key, want.checked, streams)
            if direct:
                await self._lend_model(key, job, want)
                sent_bytes = data_bytes
                return
            model = cm.Model(grant.job, grant.round, (), data_bytes)

            def begin(transfer: str | msgspec.UnsetType) -> None:
                self._outbox.send_frame(*job.model(replace(model, transfer=transfer), want.digest))
                if self._socket.is_shut:
                    raise ConnectionResetError("the connection ended before the model was sent")

            way = Way(self._socket, self._outbox)
            await self._shared.transfers.send(way, view, sums.departed, limits.BODY_STALL_S, begin)
            sent_bytes = data_bytes
            self._shared.sent_bytes += sent_bytes
            if want.checked:
                self._outbox.send(cm.Checksums(sums.finish()))
        except StaleKey as error:
            raise Refused("round-over", "round", MODEL_GONE) from error
        finally:
            self._shared.link.send(gm.ModelSent(self._number, grant.key, sent_bytes))

    async def _send_small(self, want: cm.GetModel, job: JobLayout, copy: Copy) -> None:
        """Send a small model from the gateway's copy, which is made first if need be."""
        models = self._shared.small_models
        if not copy.data:
            try:
                grant = await self._grants.ask(gm.WantModel(self._number, want.job, want.round))
                if not isinstance(grant, gm.ModelGranted):
                    return
                try:
                    copy.data = bytes(self._shared.arena.data(Key.unpack(grant.key)))
                except StaleKey as error:
                    raise Refused("round-over", "round", MODEL_GONE) from error
                finally:
                    self._shared.link.send(gm.ModelSent(self._number, grant.key, 0))
            finally:
                models.settle(want.job, copy)
        begin, tensors = job.model(cm.Model(want.job, want.round, (), len(copy.data)), want.digest)
        self._outbox.send_frame(begin + bytes(tensors), memoryview(copy.data))
        self._shared.sent_bytes += len(copy.data)
        models.served(want.job, len(copy.data))

    async def _lend_model(self, key: Key, job: JobLayout, want: cm.GetModel) -> None:
        """Let a client read the model where it is, until it says that it is done, or ends."""
        arena = self._shared.arena
        offset, checksum = arena.offset(key), arena.entry(key).checksum
        told = cm.Model(want.job, want.round, (), job.layout.data_bytes, offset=offset, checksum=checksum)
        self._outbox.send_frame(*job.model(told, want.digest), descriptors=(arena.descriptor(key),))
        read = await self._reader.read()
        if read != cm.ModelRead(want.job, want.round):
            raise RemoteFault(f"Model was answered by {type(read).__name__}, not by ModelRead of that round")


def _refusal(refused: Refused, job: str = "", round_: int = -1) -> cm.Refusal:
    return cm.Refusal(refused.code, refused.field[:FIELD_CHARS_MAX], refused.text[:TEXT_CHARS_MAX], job, round_)


def _session_asked(conn: int, asked: fm.HostSession) -> gm.SessionAsked:
    what = (asked.job, asked.expected, asked.tensors, asked.rule, asked.options, asked.rule_folder, asked.states)
    return gm.SessionAsked(conn, *what, asked.secret, asked.trainable, asked.reproducible, asked.revoked)
