"""What comes in over a connection: updates of a client, and partials of another node's gateway.

Either is asked for first (`grant_waiter`): a refusal costs no bandwidth, the body comes after `Go`, a large one perhaps
over several connections (`transfers`).  Its bytes are received straight into the granted object, checked while they
arrive (`content`), and sealed; how it ended is told to the daemon, once, by Sealed or Aborted.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable

import msgspec

from lifl import failpoints
from lifl.core import limits
from lifl.core.errors import Refused, RemoteFault, StaleKey
from lifl.core.ids import Key
from lifl.core.protocol import client as cm
from lifl.core.protocol import folds as fm
from lifl.core.protocol import gateway as gm
from lifl.core.protocol.contribution import sealed_as
from lifl.core.protocol.update_check import check_submit
from lifl.node.gateway.body_moves import Receive
from lifl.node.gateway.client_socket import ClientSocket
from lifl.node.gateway.content import Content, JobLayout, StateContent, check_contributions, check_room
from lifl.node.gateway.frame_reader import FrameReader
from lifl.node.gateway.grant_waiter import GrantWaiter
from lifl.node.gateway.outbox import Outbox
from lifl.node.gateway.shared import Shared
from lifl.node.gateway.transfers import Arrival, Way
from lifl.shm.ingest_check import check_of, ingest_check

PARTIAL = "partial"
"""Stands for a job's name where a message needs one and there is none."""
DAMAGED = "damaged"
"""The code of a Refusal of bytes that arrived other than they were sent."""

REPLACED = "the client has come over another connection"


class Intake:
    """The updates and partials of connection `conn`, one at a time."""

    def __init__(
        self,
        conn: int,
        shared: Shared,
        client_socket: ClientSocket,
        reader: FrameReader,
        outbox: Outbox,
        grants: GrantWaiter,
        by_http: bool = False,
    ) -> None:
        self._conn = conn
        self._by_http = by_http
        self._shared = shared
        self._socket = client_socket
        self._reader = reader
        self._outbox = outbox
        self._grants = grants
        self._loop = asyncio.get_running_loop()
        self._followed = b""  # the key of an update whose progress is wanted
        self._receiving: tuple[bytes, Arrival] | None = None  # the key and bytes of an update that is being received
        self._filling = False  # the client writes to its slot itself, now

    # ---- an update -------------------------------------------------------------------------------------------------

    async def take_update(self, submit: cm.Submit, client: str, direct: bool) -> bool:
        """Take in an update of `client`, which writes to the slot itself if `direct`; return whether it is sealed.

        Raise `Refused`.
        """
        job = self._shared.job(submit.job)
        check_submit(job.layout, submit, client, bool(job.trainable))
        if self._by_http or not direct:
            wait_s = self._shared.quotas.bytes_wait_s(self._conn, job.flow, submit.data_bytes, self._loop.time())
            await self._socket.rest(wait_s)
        asked = (client, submit.job, submit.round, submit.weight, submit.metrics, direct, submit.fold, submit.ticket)
        grant = await self._grants.ask(gm.Admit(self._conn, *asked))
        if isinstance(grant, gm.Granted):
            await self._land(grant, self._fill_update(submit, job, grant, direct), submit.data_bytes)
            return True
        return False

    async def take_model(self, put: fm.PutModel, direct: bool) -> None:
        """Take in the model that the host of a session brings, or a state of its rule.  Raise `Refused`."""
        job = self._shared.job(put.job)
        state = "" if isinstance(put.state, msgspec.UnsetType) else put.state
        direct = direct and not state
        nbytes = job.layout.state_bytes if state else job.layout.data_bytes
        if (put.digest, put.data_bytes) != (job.digest, nbytes):
            raise Refused("wrong-schema", "digest", "its tensors are not those of the session")
        grant = await self._grants.ask(gm.ModelPut(self._conn, put.job, put.round, direct, state))
        if isinstance(grant, gm.Granted):
            await self._land(grant, self._fill_update(put, job, grant, direct), put.data_bytes)

    async def _fill_update(
        self, submit: cm.Submit | fm.PutModel, job: JobLayout, grant: gm.Granted, direct: bool
    ) -> int:
        """Have the bytes of an update, or of a model, written, checked and sealed; return their checksum."""
        key = Key.unpack(grant.key)
        view = self._shared.arena.data(key)
        if len(view) != submit.data_bytes:
            raise Refused("wrong-size", "data_bytes", f"the slot has {len(view)} bytes, the update another size")
        is_state = isinstance(submit, fm.PutModel) and isinstance(submit.state, str)
        whole = direct or is_state
        streams = 1 if whole else self._shared.transfers.streams_of(submit.streams, len(view))
        content = StateContent(job, view) if is_state else Content(job, view, streams)
        if direct:
            arena = self._shared.arena
            go = cm.Go(submit.job, submit.round, direct=True, offset=arena.offset(key))
            self._outbox.send(go, (arena.descriptor(key),))
            # No deadline: while this client lives it may still write to the slot, which stays its own until then.
            self._filling = True
            filled = await self._reader.read()
            if not isinstance(filled, cm.Filled) or (filled.job, filled.round) != (submit.job, submit.round):
                raise RemoteFault(f"Go was answered by {type(filled).__name__}, not by Filled of that round")
            self._filling = False
            if filled.checksum:
                content.believe(filled.checksum)
            else:
                await self._loop.run_in_executor(self._shared.checks, content.look_at_all)
        else:
            await self._receive_update(grant.key, Arrival(content.check), cm.Go(submit.job, submit.round))
        self._shared.received_bytes += submit.data_bytes
        failpoints.hit("gateway.seal.before")
        weight, contributions, member, checksum = 0.0, 0, grant.member, content.finish()
        if isinstance(submit, cm.Submit):
            weight, contributions = submit.weight, 1
            member = sealed_as(member, checksum, submit.absent)
        self._shared.arena.seal(key, weight, contributions, member, checksum)
        failpoints.hit("gateway.seal.after")
        return checksum

    async def _receive_update(self, key: bytes, arrival: Arrival, go: cm.Go) -> None:
        self._receiving = key, arrival
        try:
            if self._followed == key:
                self._follow(key, arrival)
            await self._receive(arrival, go, limits.BODY_STALL_S)
        finally:
            self._receiving = None

    async def _receive(self, arrival: Arrival, go: cm.Go, stall_s: float) -> None:
        """Have a body sent, and received."""

        def begin(transfer: str | msgspec.UnsetType) -> None:
            self._outbox.send(msgspec.structs.replace(go, transfer=transfer))

        way = Way(self._socket, self._outbox)
        await self._shared.transfers.run(way, arrival.carriers(stall_s), stall_s, begin)

    def follow(self, key: bytes) -> None:
        """Tell the daemon how far the update with this key is, from now on or from when it begins."""
        self._followed = key
        if self._receiving is not None and self._receiving[0] == key:
            self._follow(*self._receiving)

    def _follow(self, key: bytes, arrival: Arrival) -> None:
        def report(moved_bytes: int) -> None:  # in a mover's thread
            self._loop.call_soon_threadsafe(self._shared.link.send, gm.Progress(key, moved_bytes))

        arrival.follow(report)

    def replaced(self) -> None:
        """End what waits, or stands still: the client has come over another connection."""
        if self._grants.waiting:
            self._socket.cut(REPLACED)
        elif self._receiving is not None:
            key, arrival = self._receiving
            self._loop.call_later(limits.REPLACED_STALL_S, self._end_stalled, key, arrival, arrival.seen_bytes())

    def _end_stalled(self, key: bytes, arrival: Arrival, seen_bytes: int) -> None:
        if self._receiving is not None and self._receiving[0] == key and arrival.seen_bytes() == seen_bytes:
            self._socket.cut(REPLACED)

    # ---- a partial of another node ---------------------------------------------------------------------------------

    async def take_partial(self, offer: cm.Offer) -> None:
        """Take in a partial that another node offers.  Raise `Refused`."""
        if not (math.isfinite(offer.weight) and offer.weight > 0):
            raise Refused("bad-weight", "weight", f"a partial's weight is positive and finite, not {offer.weight}")
        grant = await self._grants.ask(
            gm.Offered(
                self._conn,
                offer.number,
                offer.epoch,
                offer.branch,
                offer.members,
                offer.data_bytes,
                offer.meta_bytes,
                offer.secret,
            )
        )
        if isinstance(grant, gm.Granted):
            await self._land(grant, self._fill_partial(offer, grant), offer.data_bytes + offer.meta_bytes)

    async def _fill_partial(self, offer: cm.Offer, grant: gm.Granted) -> int:
        """Have data and contributions received, data straight into the object; seal it when both are what was sent."""
        arena = self._shared.arena
        key = Key.unpack(grant.key)
        entry = arena.entry(key)
        check_room(offer, entry)
        view = arena.data(key)
        meta = bytearray(offer.meta_bytes)
        arriving = check_of(view, (), self._shared.transfers.streams_of(offer.streams, len(view)))
        arriving_meta = ingest_check(memoryview(meta))
        go = cm.Go(PARTIAL, offer.epoch)
        if view:
            await self._receive(Arrival(arriving), go, limits.PEER_STALL_S)
        else:
            self._outbox.send(go)
        if meta:
            await self._socket.move(Receive(self._socket.sock, arriving_meta), limits.PEER_STALL_S)
        async with asyncio.timeout(limits.PEER_STALL_S):
            sums = await self._reader.read()
        if not isinstance(sums, cm.Checksums):
            raise RemoteFault(f"a partial's bytes are followed by {type(sums).__name__}, not by Checksums")
        self._shared.received_bytes += offer.data_bytes + offer.meta_bytes
        data = arriving.finish()
        if (data, arriving_meta.finish()) != (sums.data, sums.meta):
            raise Refused(DAMAGED, "checksum", "the partial's bytes were changed on their way; send it again")
        await self._loop.run_in_executor(self._shared.checks, check_contributions, offer, meta)
        failpoints.hit("gateway.partial_seal.before")
        arena.seal(key, offer.weight, offer.members, bytes(meta), data)
        failpoints.hit("gateway.partial_seal.after")
        return data

    # ---- both ------------------------------------------------------------------------------------------------------

    async def _land(self, grant: gm.Granted, filling: Awaitable[int], received_bytes: int) -> None:
        """Have a granted object filled and sealed, and tell the daemon how it ended."""
        try:
            digest = await filling
        except Exception as error:  # of whatever kind: the daemon is told, else the slot would wait for ever
            writing = self._filling and not self._is_gone(error)
            self._shared.link.send(gm.Aborted(self._conn, grant.key, self._socket.reason(error), writing))
            if isinstance(error, StaleKey):
                raise Refused("round-over", "round", "the round ended while the bytes were on their way") from error
            raise
        finally:
            self._filling = False
        self._shared.link.gather(gm.Sealed(self._conn, grant.key, received_bytes, digest))

    def _is_gone(self, error: Exception) -> bool:
        """Return whether it was the client that closed the connection: then it writes to its slot no more."""
        return isinstance(error, EOFError | ConnectionError) and not self._socket.is_shut
