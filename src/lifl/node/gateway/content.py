"""What updates and partials must be: checked once, here, and never again.

What was announced is checked before a byte of the body is taken (`update_check`, `check_room`); an update's numbers
are checked while they arrive (`Content`), together with the checksum that the object is sealed with.
"""

from __future__ import annotations

from collections.abc import Container, Sequence

import msgspec
import numpy as np

from lifl.core.errors import Refused, RemoteFault
from lifl.core.ids import Key
from lifl.core.planning.client_list import ClientList
from lifl.core.protocol import client as cm
from lifl.core.protocol import gateway as gm
from lifl.core.protocol.contribution import unpack_contributions
from lifl.core.protocol.frames import frame_head
from lifl.core.schema import DTYPE_BYTES, Layout, Segment
from lifl.node.gateway.body_moves import Departed
from lifl.node.gateway.budgets import Flow
from lifl.shm.arena import Arena
from lifl.shm.checksum import as_array, first_nan
from lifl.shm.ingest_check import check_of
from lifl.shm.layout import Entry

NO_TENSORS = memoryview(msgspec.msgpack.encode(()))


class JobLayout:
    """How the updates of a job are laid out, and what all its clients are told: the same bytes for each."""

    def __init__(self, schema: gm.JobSchema) -> None:
        self.layout = Layout(schema.tensors, schema.reproducible)
        self.digest = self.layout.digest
        self.tensors = memoryview(self.layout.packed)
        self.schema_bytes = len(self.tensors)
        self.flow = Flow(schema.bytes_per_s)
        self.averaged = schema.patterns.averaged(self.layout)
        self.others = schema.patterns.others(self.layout)
        self.trainable = schema.patterns.trainable
        self.clients = ClientList(schema.listed)
        self._options = schema.options
        self._packed_options = msgspec.msgpack.encode(schema.options)

    def selected(self, message: cm.Selected, whole: bool, knows: Container[str]) -> tuple[bytes, memoryview]:
        """Return the frame of a selection: what is its own, and what it shares with others.

        `whole`: with the tensors; `knows`: what the client does.
        """
        message = msgspec.structs.replace(
            message,
            digest=self.digest if cm.DIGESTS in knows else msgspec.UNSET,
            trainable=self.trainable if self.trainable and cm.ABSENT in knows else msgspec.UNSET,
        )
        options = self._packed_options
        if message.options:  # those of the round, or of the client
            options = msgspec.msgpack.encode(self._options | message.options)
        return self._frame(cm.packed_open(message, options=options), whole)

    def model(self, message: cm.Model, digest: bytes | msgspec.UnsetType) -> tuple[bytes, memoryview]:
        """Return the frame before a model: what is its own, and what it shares; `digest` is what the client has."""
        known = digest == self.digest
        message = msgspec.structs.replace(message, digest=self.digest if known else msgspec.UNSET)
        return self._frame(cm.packed_open(message), whole=not known)

    def _frame(self, begin: bytes, whole: bool) -> tuple[bytes, memoryview]:
        tensors = self.tensors if whole else NO_TENSORS
        return frame_head(len(begin) + len(tensors)) + begin, tensors


class Content:
    """The content of an update that is being written to `data`, from the front, and looked at by `check`.

    Over several connections (`streams`) each range is written from its front.
    """

    def __init__(self, job: JobLayout, data: memoryview, streams: int = 1) -> None:
        self._job = job
        self._layout = job.layout
        self._data = data
        self.check = check_of(data, job.averaged, streams)
        self._believed = 0

    def look_at_all(self) -> None:
        """Look at all bytes: they are there."""
        for part in self.check.parts:
            part.advance(part.nbytes)

    def believe(self, checksum: int) -> None:
        """Take a client's word that this is the checksum, and that all floats are finite.

        Only of one that has written to the slot itself: it could change the bytes as well, after they were looked at.
        """
        self._believed = checksum

    def finish(self) -> int:
        """Return the checksum: all is there.  Raise `Refused`, naming the tensor, when a number is not finite."""
        checksum = self._believed or self.check.finish()
        if self.check.found is not None:
            index, element = self.check.found
            text = "is NaN or infinite; did the training diverge?"
            raise self._refused("not-finite", self._job.averaged[index], element, text)
        if not self._believed:
            self._check_others()
        self._check_bools()
        return checksum

    def _check_others(self) -> None:
        """Raise `Refused` for NaN in what is not averaged: infinity may be meant, as in a mask."""
        for part in self._job.others:
            end = part.offset + part.count * DTYPE_BYTES[part.dtype]
            element = first_nan(as_array(self._data[part.offset : end], part.dtype))
            if element is not None:
                raise self._refused("not-finite", part, element, "is NaN; did the training diverge?")

    def _check_bools(self) -> None:
        """Raise `Refused` for a byte that is no bool: one client's may be the next model's (`aggregation.first`)."""
        for segment in self._layout.segments:
            if segment.dtype == "bool" and segment.count:
                numbers = np.frombuffer(self._data, np.uint8, segment.count, segment.offset)
                if numbers.max() > 1:
                    element = int(np.argmax(numbers > 1))
                    text = f"has the byte {numbers[element]}, which is no bool: 0 or 1"
                    raise self._refused("bad-bool", segment, element, text)

    def _refused(self, code: str, part: Segment, element: int, text: str) -> Refused:
        """Return what to raise for a number of a segment, or of a part of one."""
        tensor, element = self._layout.tensor_in(part, element)
        said = f"element {element} of tensor {tensor.name!r} (flattened) {text}"
        return Refused(code, f"tensors.{tensor.name}", said)


class StateContent(Content):
    """That of a rule's state: finite numbers, and no model's."""

    def __init__(self, job: JobLayout, data: memoryview) -> None:
        super().__init__(job, data)
        self.check = check_of(data, job.layout.states, 1)

    def finish(self) -> int:
        """Return the checksum.  Raise `Refused` when a number is not finite."""
        checksum = self.check.finish()
        if self.check.found is not None:
            _, element = self.check.found
            raise Refused("not-finite", "state", f"element {element} of a state of the rule is NaN or infinite")
        return checksum


class Sums:
    """The checksum of a sealed object's data, computed while it is sent; or the one that it was sealed with.

    `departed` are told how far each of its ranges is, which are as many as `streams`.
    """

    def __init__(self, arena: Arena, key: Key, wanted: bool = True, streams: int = 1) -> None:
        self._sealed_with = arena.entry(key).checksum
        computing = wanted and not self._sealed_with
        self._sum = check_of(arena.data(key), (), streams) if computing else None
        self.departed: Sequence[Departed | None] = [None] * streams
        if self._sum is not None:
            self.departed = [part.advance for part in self._sum.parts]

    def finish(self) -> int:
        """Return the checksum now that all of the data has been sent."""
        return self._sealed_with if self._sum is None else self._sum.finish()


def check_room(offer: cm.Offer, entry: Entry) -> None:
    """Raise `Refused` when the partial that is offered does not fit the object that was granted for it."""
    if offer.data_bytes != entry.data_bytes:
        text = f"the slot has {entry.data_bytes} bytes, the partial {offer.data_bytes}"
        raise Refused("wrong-size", "data_bytes", text)
    if offer.meta_bytes > entry.meta_room:
        text = f"the slot has room for {entry.meta_room} bytes of members, the partial has {offer.meta_bytes}"
        raise Refused("wrong-size", "meta_bytes", text)


def check_contributions(offer: cm.Offer, meta: bytearray) -> None:
    """Raise `Refused` when what came as the partial's contributions is not what was announced."""
    try:
        members = len(unpack_contributions(memoryview(meta)))
    except RemoteFault as error:
        raise Refused("bad-members", "members", f"the partial's members cannot be read: {error}") from error
    if members != offer.members:
        raise Refused("bad-members", "members", f"the partial announces {offer.members} members and names {members}")
