"""A client's connection to the gateway: one end of a socket pair, over which the native protocol is spoken for it.

One thing is asked at a time (`ask`); what the gateway says by itself goes to `heard`.  What the gateway lends, a slot
to be written or a model to be read, comes as a segment's descriptor, so no body ever passes here.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from lifl.core.errors import Refused, RemoteFault
from lifl.core.fields import Message
from lifl.core.limits import HELLO_S
from lifl.core.protocol import client as cm
from lifl.core.protocol import gateway as gm
from lifl.core.protocol.tickets import ShowTicket
from lifl.node.http.wire import ClientGone
from lifl.node.link import Link

KNOWS = (cm.DECLINE, cm.DIGESTS, cm.SEGMENTS)
AWAY = Refused("node-away", "node", "the node's gateway is being started again; ask again in a moment")


class Answer(NamedTuple):
    """What the gateway answered, and the descriptor that came along (-1: none), which is whose the answer is."""

    message: Message
    descriptor: int = -1


class Native:
    """The connection.  `heard(message)` gets what nobody asked for, `ended()` is called when it has ended."""

    def __init__(self, sock: socket.socket, heard: Callable[[Message], None], ended: Callable[[], None]) -> None:
        self._heard = heard
        self._ended = ended
        self._asked: tuple[str, int] | None = None
        self._answer: asyncio.Future[Answer] | None = None
        self._ends = select.poll()
        self._ends.register(sock, select.POLLRDHUP)
        self._link = Link(sock, cm.ToClient, self._on_message, self._on_closed, takes_descriptors=True)

    @property
    def closed(self) -> bool:
        """Whether it has ended."""
        return self._link.closed

    async def greet(self, client: str, ticket: ShowTicket | None = None) -> None:
        """Say Hello, behind a ticket that lets the client in if there is one.  Raise `Refused`."""
        if ticket is not None:
            self.say(ticket)
        hello = cm.Hello(cm.PROTOCOL_VERSION, client, direct=True, knows=KNOWS)
        try:
            async with asyncio.timeout(HELLO_S):
                answer = await self.ask(hello, "", -1)
        except TimeoutError:
            self.close()
            raise AWAY from None
        if not isinstance(answer.message, cm.Welcome) or not answer.message.direct:
            self.close()
            raise AWAY

    def say(self, message: Message) -> None:
        """Say something that has no answer, or one that comes at any time."""
        self._link.send(message)

    async def ask(self, question: Message, job: str, round_: int) -> Answer:
        """Say something, and return what is answered about that round.  Raise `Refused`."""
        self._asked = job, round_
        self._answer = asyncio.get_running_loop().create_future()
        try:
            if self._link.closed:
                raise AWAY
            self._link.send(question)
            return await self._answer
        finally:
            self._asked = self._answer = None

    def check_lent(self) -> None:
        """Raise `ClientGone` when it has ended: what was lent over it belongs to others from then on."""
        if self._link.closed or self._ends.poll(0):  # the loop may not have had its turn since
            raise ClientGone("what was lent is lent no more: the client's connection to the gateway has ended")

    def close(self) -> None:
        """End the connection: what it was granted is free again, and the client takes part no longer."""
        self._link.close()

    def _on_closed(self, _error: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(AWAY)
        self._ended()

    def _on_message(self, message: Message) -> None:
        descriptor = -1
        if isinstance(message, cm.Go) or (isinstance(message, cm.Model) and message.offset is not msgspec.UNSET):
            descriptor = self._link.taken_descriptor()
        is_answer = self._is_answer(message)
        self._heard(message)
        if not is_answer:
            if descriptor >= 0:
                os.close(descriptor)
            return
        assert self._answer is not None
        if isinstance(message, cm.Refusal):
            self._answer.set_exception(Refused(message.code, message.field, message.text))
        else:
            self._answer.set_result(Answer(message, descriptor))

    def _is_answer(self, message: Message) -> bool:
        if self._answer is None or self._answer.done() or self._asked is None:
            return False
        if isinstance(message, cm.Welcome):
            return True
        if isinstance(message, cm.Selected | cm.JobOver):
            return False
        if isinstance(message, cm.Refusal) and message.code == cm.SPOILT:
            return False
        at = getattr(message, "job", ""), getattr(message, "round", -1)
        return at == self._asked or (isinstance(message, cm.Refusal) and message.round < 0)


async def connected(
    door: Link,
    came: gm.ClientCame,
    client: str,
    heard: Callable[[Message], None],
    ended: Callable[[], None],
    ticket: ShowTicket | None = None,
) -> Native:
    """Return a new connection for a client, whom the gateway takes.  Raise `Refused`."""
    ours, theirs = socket.socketpair()
    with theirs:
        door.send(came, descriptors=[theirs.fileno()])
    native = Native(ours, heard, ended)
    try:
        await native.greet(client, ticket)
    except BaseException:
        native.close()
        raise
    return native


def is_fault(message: Message) -> RemoteFault:
    """Return what to raise for a message that makes no sense here."""
    return RemoteFault(f"the gateway answers by {type(message).__name__}")
