"""A client of etcd: ranges, transactions, leases and watches, each tried once at a member, over grpc.aio.

What only reads goes on to the next member when one does not answer.  A transaction does not: without an answer it may
have been performed, or may be yet (`Uncertain`), so whoever sent it reads what there is before anything else.
A member that failed is asked again over a new connection, with the certificates as they are by then.

gRPC is imported when a client is made: a node without a store does without it.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from lifl.core.errors import ResourceFault
from lifl.core.limits import STORE_ANSWER_BYTES_MAX
from lifl.node.database import DatabaseFault

REQUEST_S = 1.0
"""How long one attempt at one member may take; the arithmetic of the lease is with it (`leadership.py`)."""
PAGE_KEYS = 32
"""Keys of one answer to a range; more of them are asked for one page after the other."""
_OPTIONS = (
    ("grpc.max_receive_message_length", STORE_ANSWER_BYTES_MAX),
    ("grpc.max_send_message_length", STORE_ANSWER_BYTES_MAX),
    # A member that is cut off leaves a watch silent; etcd allows a ping in five seconds.
    ("grpc.keepalive_time_ms", 6_000),
    ("grpc.keepalive_timeout_ms", 2_000),
    ("grpc.enable_retries", 0),
    # One that was down is tried again soon, and what another store's connection has met is nothing to this one.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.use_local_subchannel_pool", 1),
)
_HAS_LEADER = (("hasleader", "true"),)
"""A member that has lost the others ends a stream, rather than keep it silent."""


class StoreFault(DatabaseFault):
    """The store cannot be used now; what was asked for has not been done."""


class Uncertain(StoreFault):
    """No answer came: a transaction may have been performed, or may be yet."""


class TlsFiles(NamedTuple):
    """PEM files: the authority of etcd's members, this node's certificate and its key."""

    ca: Path
    cert: Path
    key: Path


class Etcd:
    """A client of the members at `endpoints` (HOST:PORT); plain without `tls`.  Made and used in a running loop."""

    def __init__(self, endpoints: Sequence[str], tls: TlsFiles | None = None) -> None:
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what it says of connections, errors say too
        try:
            import grpc.aio

            from lifl.node.etcd import lifl_etcd_pb2 as pb
        except ImportError as error:
            text = f"--store etcd:// needs grpcio and protobuf ({error}): pip install 'lifl[etcd]'"
            raise ResourceFault(text) from error
        self.pb: Any = pb
        self._grpc: Any = grpc
        self._tls = tls
        self._endpoints = random.sample(list(endpoints), len(endpoints))  # nodes spread over the members
        self._channels: dict[str, Any] = {}
        if tls is not None:
            self._credentials()  # files that cannot be read are told now

    # ---- requests ----------------------------------------------------------------------------------------------------

    async def txn(self, request: Any) -> Any:
        """Perform a transaction once; return its TxnResponse.  Raise `Uncertain`, or `StoreFault` for a refusal."""
        endpoint = self._endpoints[0]
        with self._told(endpoint):
            return await self._unary(endpoint, "KV/Txn", request, self.pb.TxnResponse)

    async def read(self, request: Any) -> Any:
        """Return the TxnResponse of a transaction that only reads, from any member.  Raise `StoreFault`."""

        def ask(endpoint: str) -> Awaitable[Any]:
            return self._unary(endpoint, "KV/Txn", request, self.pb.TxnResponse)

        return await self._anywhere(ask)

    async def range(self, begin: bytes, end: bytes = b"", revision: int = 0) -> tuple[list[Any], int]:
        """Return the KeyValues of `begin`, or from there up to `end`, as of one revision, and that.

        Raise `StoreFault`.
        """
        found: list[Any] = []
        while True:
            request = self.pb.RangeRequest(key=begin, range_end=end, limit=PAGE_KEYS, revision=revision)

            def ask(endpoint: str, request: Any = request) -> Awaitable[Any]:
                return self._unary(endpoint, "KV/Range", request, self.pb.RangeResponse)

            page = await self._anywhere(ask)
            found += page.kvs
            revision = revision or page.header.revision
            if not page.more:
                return found, revision
            begin = page.kvs[-1].key + b"\0"

    async def grant(self, ttl_s: int) -> tuple[int, int]:
        """Return a new lease, and how long it lasts in seconds: etcd may make it longer.  Raise `StoreFault`."""
        request = self.pb.LeaseGrantRequest(TTL=ttl_s)

        def ask(endpoint: str) -> Awaitable[Any]:
            return self._unary(endpoint, "Lease/LeaseGrant", request, self.pb.LeaseGrantResponse)

        granted = await self._anywhere(ask)  # one that was granted and not heard of ends by itself
        return granted.ID, granted.TTL

    async def revoke(self, lease: int) -> None:
        """End a lease, and delete the keys that it holds.  Raise `StoreFault`."""
        request = self.pb.LeaseRevokeRequest(ID=lease)

        def ask(endpoint: str) -> Awaitable[Any]:
            return self._unary(endpoint, "Lease/LeaseRevoke", request, self.pb.LeaseRevokeResponse)

        await self._anywhere(ask)

    async def keep_alive(self, lease: int) -> int:
        """Let a lease begin anew; return how long it lasts in seconds, 0 when it has ended.  Raise `StoreFault`."""

        async def ask(endpoint: str) -> Any:
            request, response = self.pb.LeaseKeepAliveRequest, self.pb.LeaseKeepAliveResponse
            call = self._stream(endpoint, "Lease/LeaseKeepAlive", request, response, timeout=REQUEST_S)
            try:
                await call.write(request(ID=lease))
                answer = await call.read()
                if answer == self._grpc.aio.EOF:
                    raise self._grpc.RpcError("it ended the stream")
                return answer
            finally:
                call.cancel()

        return int((await self._anywhere(ask)).TTL)

    async def changed(self, key: bytes, after: int) -> None:
        """Return when the key has changed after a revision.  Raise `StoreFault` when that cannot be seen any more."""
        endpoint = self._endpoints[0]
        request, response = self.pb.WatchRequest, self.pb.WatchResponse
        with self._told(endpoint):
            call = self._stream(endpoint, "Watch/Watch", request, response, metadata=_HAS_LEADER)
            try:
                create = self.pb.WatchCreateRequest(key=key, start_revision=after + 1)
                await call.write(request(create_request=create))
                while True:
                    answer = await call.read()
                    if answer == self._grpc.aio.EOF or answer.canceled:
                        why = getattr(answer, "cancel_reason", "") or "it ended the watch"
                        raise self._grpc.RpcError(why)
                    if answer.events:
                        return
            finally:
                call.cancel()

    # ---- connections -------------------------------------------------------------------------------------------------

    async def _anywhere(self, ask: Callable[[str], Awaitable[Any]]) -> Any:
        """Ask one member after the other, beginning with the one that answered last."""
        fault: StoreFault | None = None
        for endpoint in list(self._endpoints):
            try:
                with self._told(endpoint):
                    return await ask(endpoint)
            except Uncertain as uncertain:
                fault = uncertain
        assert fault is not None
        raise StoreFault(str(fault)) from fault

    @contextmanager
    def _told(self, endpoint: str) -> Iterator[None]:
        """Raise what an error of gRPC means."""
        try:
            yield
        except asyncio.CancelledError as error:  # gRPC raises it, too, when another request has closed the connection
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise Uncertain(f"the connection to etcd at {endpoint} was closed") from error
        except (self._grpc.RpcError, self._grpc.aio.UsageError, asyncio.InvalidStateError) as error:
            raise self._fault(endpoint, error) from error

    def _fault(self, endpoint: str, error: Exception) -> StoreFault:
        """Return what an error means; the member that it came from is asked last from now on, over a new connection."""
        code = error.code() if isinstance(error, self._grpc.aio.AioRpcError) else None
        text = error.details() if isinstance(error, self._grpc.aio.AioRpcError) else str(error)
        codes = self._grpc.StatusCode
        refusals = (
            codes.INVALID_ARGUMENT,
            codes.FAILED_PRECONDITION,
            codes.OUT_OF_RANGE,
            codes.RESOURCE_EXHAUSTED,
            codes.PERMISSION_DENIED,
            codes.UNAUTHENTICATED,
            codes.UNIMPLEMENTED,
            codes.NOT_FOUND,
        )
        if code in refusals:
            return StoreFault(f"etcd at {endpoint} refuses: {text}{_advice(text or '')}")
        self._drop(endpoint)
        if code is codes.DEADLINE_EXCEEDED:
            text = f"no answer within {REQUEST_S:g} s"
        return Uncertain(f"etcd at {endpoint} cannot be used now: {text}")

    def _drop(self, endpoint: str) -> None:
        if endpoint in self._endpoints:
            self._endpoints.remove(endpoint)
            self._endpoints.append(endpoint)
        channel = self._channels.pop(endpoint, None)
        if channel is not None:
            task = asyncio.get_running_loop().create_task(channel.close())
            task.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def _unary(self, endpoint: str, method: str, request: Any, answer: Any) -> Any:
        call = self._channel(endpoint).unary_unary(
            f"/etcdserverpb.{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=answer.FromString,
        )
        return await call(request, timeout=REQUEST_S)

    def _stream(self, endpoint: str, method: str, request: Any, answer: Any, **given: Any) -> Any:
        call = self._channel(endpoint).stream_stream(
            f"/etcdserverpb.{method}",
            request_serializer=request.SerializeToString,
            response_deserializer=answer.FromString,
        )
        return call(**given)

    def _channel(self, endpoint: str) -> Any:
        channel = self._channels.get(endpoint)
        if channel is None:
            aio = self._grpc.aio
            if self._tls is None:
                channel = aio.insecure_channel(endpoint, options=_OPTIONS)
            else:
                channel = aio.secure_channel(endpoint, self._credentials(), options=_OPTIONS)
            self._channels[endpoint] = channel
        return channel

    def _credentials(self) -> Any:
        assert self._tls is not None
        try:
            ca, cert, key = (path.read_bytes() for path in self._tls)
        except OSError as error:
            text = f"{error.filename} cannot be read: {error.strerror}; see store_ca, store_cert and store_key"
            raise StoreFault(text) from error
        return self._grpc.ssl_channel_credentials(ca, key, cert)

    async def close(self) -> None:
        """End all connections."""
        channels, self._channels = list(self._channels.values()), {}
        for channel in channels:
            await channel.close()


def _advice(text: str) -> str:
    if "space exceeded" in text:
        return "; compact and defragment it, and see `etcdctl alarm`: rows go on by themselves then"
    return ""
