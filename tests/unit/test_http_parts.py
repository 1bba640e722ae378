"""The HTTP door's parts: an update's bytes put where they belong, a model's file, ranges, the description."""

from __future__ import annotations

import asyncio
import inspect
import json
import mmap
import os
import socket
import struct
from collections.abc import Callable
from types import SimpleNamespace

import h11
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load, save

from lifl.core import limits
from lifl.core.errors import Refused
from lifl.core.fields import Message
from lifl.core.protocol import client as cm
from lifl.core.schema import Layout, TensorSpec
from lifl.node.http.api import STATUS, Api, _number, _send_model
from lifl.node.http.description import OTHERS, described
from lifl.node.http.models import ModelFile, names, wanted
from lifl.node.http.native import Native
from lifl.node.http.operations import OPERATIONS, matched
from lifl.node.http.segments import Segments
from lifl.node.http.sessions import Lent, Session, wanted_of
from lifl.node.http.ticket_sessions import TicketSession
from lifl.node.http.uploads import HEADER_BYTES_MORE, Upload, file_bytes_max, header_bytes_max
from lifl.node.http.wire import ClientGone, Exchange, Problem, Requests
from lifl.shm.mapping import Mapped

ARRAYS = {
    "w": np.arange(7, dtype=np.float32),
    "steps": np.array(3, np.int64),
    "half": np.arange(5, dtype=np.float16),
    "none": np.zeros((0, 3), np.float32),
    "mask": np.array([True, False, True]),
}
LAYOUT = Layout([TensorSpec(name, array.dtype.name, array.shape) for name, array in ARRAYS.items()])
FILE = save(ARRAYS)


@pytest.fixture(scope="module")
def segment() -> Mapped:
    fd = os.memfd_create("slots")
    os.ftruncate(fd, 4 * mmap.PAGESIZE)
    return Segments().take(fd)


def upload(segment: Mapped, file: bytes = FILE) -> Upload:
    segment.view[:] = b"\xff" * len(segment.view)
    found = Upload(segment, mmap.PAGESIZE, LAYOUT, 1, 1.0, {})
    found.begin(len(file))
    return found


def fed(data: bytes, piece_bytes: int) -> Callable[[memoryview], object]:
    """A receiver that gives so many bytes at a time."""
    left = memoryview(data)

    async def receive(where: Callable[[], memoryview]) -> int:
        nonlocal left
        room = where()
        got = min(len(room), len(left), piece_bytes)
        room[:got] = left[:got]
        left = left[got:]
        return got

    return receive


def laid_out() -> bytes:
    """The slot as the native protocol has it: the dtypes' vectors, each filled up with zeros to 64 bytes."""
    data = bytearray(LAYOUT.data_bytes)
    for tensor, offset in zip(LAYOUT.tensors, LAYOUT.offsets, strict=True):
        raw = ARRAYS[tensor.name].tobytes()
        data[offset : offset + len(raw)] = raw
    return bytes(data)


@given(cuts=st.lists(st.integers(0, len(FILE)), max_size=6), piece_bytes=st.integers(1, 64))
def test_an_update_is_in_its_place_however_it_was_cut(segment: Mapped, cuts: list[int], piece_bytes: int) -> None:
    """Whatever was in the slot before, also between the vectors; and nothing beside it is written."""
    found = upload(segment)
    ends = [*sorted(cuts), len(FILE)]
    for begin, end in zip([0, *ends], ends, strict=False):
        assert found.received_bytes == begin
        asyncio.run(found.take(end - begin, fed(FILE[begin:end], piece_bytes)))  # type: ignore[arg-type]
    assert found.is_whole
    begin = mmap.PAGESIZE
    assert bytes(segment.view[begin : begin + LAYOUT.data_bytes]) == laid_out()
    assert set(segment.view[:begin]) == set(segment.view[begin + LAYOUT.data_bytes :]) == {0xFF}


@pytest.mark.parametrize(
    "file",
    [
        b"\x00" * 8 + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (1 << 63).to_bytes(8, "little") + b"{}",
        (100).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"{}" + bytes(10),
        FILE[:8] + b"\xff" * (len(FILE) - 8),
        FILE.replace(b"data_offsets", b"data_offsetz"),
        FILE.replace(b'"F32"', b'"F31"'),
    ],
)
def test_what_is_no_file_of_the_model_is_refused_and_not_written(segment: Mapped, file: bytes) -> None:
    found = upload(segment, file)
    with pytest.raises(Refused) as refused:
        asyncio.run(found.take(len(file), fed(file, 1000)))  # type: ignore[arg-type]
    assert refused.value.code in ("bad-model-file", "missing-tensor", "wrong-dtype") and refused.value.field
    assert set(segment.view[mmap.PAGESIZE : mmap.PAGESIZE + 28]) == {0xFF}


def test_a_file_and_its_header_have_their_lengths_at_most(segment: Mapped) -> None:
    found = upload(segment)
    found.begin(file_bytes_max(LAYOUT))
    with pytest.raises(Refused, match="at most") as refused:
        found.begin(file_bytes_max(LAYOUT) + 1)
    assert refused.value.code == "too-large"
    most = header_bytes_max(LAYOUT)
    assert HEADER_BYTES_MORE < most <= limits.MODEL_HEADER_BYTES_MAX
    body = FILE[8 : 8 + int.from_bytes(FILE[:8], "little")]
    for length, taken in ((most, True), (most + 1, False)):
        file = length.to_bytes(8, "little") + body.ljust(length) + FILE[8 + len(body) :]
        found = upload(segment, file if taken else FILE)
        found.total_bytes = len(file)
        done = found.take(len(file), fed(file, 1 << 20))  # type: ignore[arg-type]
        if taken:
            asyncio.run(done)
            assert found.is_whole
        else:
            with pytest.raises(Refused, match="header"):
                asyncio.run(done)


def test_one_that_has_ended_takes_nothing_more(segment: Mapped) -> None:
    found = upload(segment)
    asyncio.run(found.take(100, fed(FILE[:100], 100)))  # type: ignore[arg-type]
    found.end(Refused("round-over", "round", "it is over"))
    with pytest.raises(Refused, match="it is over"):
        asyncio.run(found.take(1, fed(FILE[100:], 1)))  # type: ignore[arg-type]


def exchange_over(sock: socket.socket, length: int) -> Exchange:
    """A PUT whose body is still to come."""
    sock.setblocking(False)
    parser = h11.Connection(h11.SERVER)
    parser.receive_data(b"PUT / HTTP/1.1\r\nHost: node\r\nContent-Length: %d\r\n\r\n" % length)
    request = parser.next_event()
    assert isinstance(request, h11.Request)
    return Exchange(sock, parser, request, b"")


def test_bytes_that_come_when_the_slot_was_given_back_are_not_written(segment: Mapped) -> None:
    """It is another client's by then, and may be sealed."""

    async def scene() -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            found, exchange = upload(segment), exchange_over(ours, len(FILE))
            theirs.sendall(FILE[:-100])
            taking = asyncio.ensure_future(found.take(len(FILE), exchange.receive_into))
            async with asyncio.timeout(60):
                while found.received_bytes < len(FILE) - 100:
                    await asyncio.sleep(0)
            found.end(Refused("node-away", "node", "the client has left the job"))
            segment.view[:] = b"\xff" * len(segment.view)
            theirs.sendall(FILE[-100:])
            with pytest.raises(Refused, match="left the job"):
                await taking
            assert bytes(segment.view) == b"\xff" * len(segment.view)

    asyncio.run(scene())


@pytest.mark.parametrize("more", [0, 1])
def test_a_head_has_so_many_bytes_also_when_it_comes_at_once(more: int) -> None:
    async def scene() -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            head = b"GET / HTTP/1.1\r\nHost: node\r\nX: "
            room = limits.HTTP_HEAD_BYTES_MAX - len(head) - 4 + more
            theirs.sendall(head + b"x" * room + b"\r\n\r\n" + b"GET")
            if not more:
                assert await Requests(ours).next(60) is not None
                return
            with pytest.raises(Problem) as problem:
                await Requests(ours).next(60)
            assert problem.value.status == 431

    asyncio.run(scene())


class Dripping:
    """A socket of which nothing is known but what TLS tells: it wakes whoever waits for each byte that comes."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.fileno, self.recv_into = sock.fileno, sock.recv_into


def test_a_body_that_comes_byte_by_byte_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BODY_STALL_S", 0.3)

    async def scene() -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            exchange = exchange_over(ours, 1 << 20)
            exchange._sock = Dripping(ours)  # type: ignore[assignment]
            reading = asyncio.ensure_future(exchange.read(1 << 20))
            async with asyncio.timeout(60):
                while not reading.done():
                    theirs.send(b"x")
                    await asyncio.sleep(0.005)
            with pytest.raises(ClientGone, match="less than"):
                await reading

    asyncio.run(scene())


@pytest.mark.parametrize("leaves", ["ends", "is reset", "stays"])
def test_who_leaves_while_it_waits_is_noticed_at_once_and_what_it_says_meanwhile_is_the_next_request(
    leaves: str,
) -> None:
    async def tried() -> None:
        ended: list[str] = []

        async def long_wait(told: asyncio.Event) -> str:
            try:
                await told.wait()
                return "told"
            finally:
                ended.append("the wait")

        with socket.create_server(("127.0.0.1", 0)) as door:
            client = socket.create_connection(door.getsockname())
            served = door.accept()[0]
        with served, client:
            served.setblocking(False)
            exchange, told = exchange_over(served, 0), asyncio.Event()
            waiting = asyncio.create_task(exchange.attended(long_wait(told)))
            for piece in (b"GET /next", b" HTTP/1.1"):
                client.send(piece)
                while not exchange.rest().endswith(piece):
                    await asyncio.sleep(0)
            if leaves == "stays":
                told.set()
                assert await asyncio.wait_for(waiting, 60) == "told"
                assert exchange.rest() == b"GET /next HTTP/1.1"
            else:
                if leaves == "is reset":
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.close()
                with pytest.raises(ClientGone):
                    await asyncio.wait_for(waiting, 60)
            assert ended == ["the wait"]

    asyncio.run(tried())


def test_a_model_that_is_lent_no_more_is_not_sent() -> None:
    """Also when the loop has had no turn since the gateway ended the connection: others may write there by then."""

    async def scene() -> None:
        ours, gateways = socket.socketpair()
        door, client = socket.socketpair()
        with door, client:
            native = Native(ours, lambda _message: None, lambda: None)
            native.check_lent()
            lent, exchange = Lent(memoryview(laid_out()), LAYOUT, 7, native.check_lent), exchange_over(door, 0)
            gateways.close()
            with pytest.raises(ClientGone, match="no more"):
                await exchange.send(lent.view, lent.check)
            with pytest.raises(ClientGone, match="no more"):
                await _send_model(exchange, ModelFile(lent), lent.check)
            client.setblocking(False)
            with pytest.raises(BlockingIOError):
                client.recv(1)
            native.close()
            with pytest.raises(ClientGone, match="no more"):
                native.check_lent()

    asyncio.run(scene())


@given(begin=st.integers(0, 5000), length=st.integers(0, 5000))
def test_any_part_of_a_models_file_is_that_of_the_whole(begin: int, length: int) -> None:
    file = ModelFile(Lent(memoryview(laid_out()), LAYOUT, 7, lambda: None))
    whole = b"".join(file.pieces(0, file.nbytes))
    assert len(whole) == file.nbytes
    assert b"".join(file.pieces(begin, begin + length)) == whole[begin : begin + length]
    assert {name: array.tolist() for name, array in load(whole).items()} == {
        name: array.tolist() for name, array in ARRAYS.items()
    }


def test_what_a_range_asks_for() -> None:
    for header, found in (
        ("bytes=0-0", (0, 1)),
        ("bytes=5-", (5, 10)),
        ("bytes=-3", (7, 10)),
        ("bytes=-30", (0, 10)),
        ("bytes=2-99", (2, 10)),
        ("bytes=5-4", None),
        ("bytes=-", None),
        ("bytes=1-2,3-4", None),
        ("lines=1-2", None),
        ("bytes=" + "9" * 30 + "-", None),
    ):
        assert wanted(header, 10) == found
    for header in ("bytes=10-", "bytes=10-11", "bytes=-0"):
        with pytest.raises(ValueError, match="no bytes"):
            wanted(header, 10)
    assert names('"a", W/"b"', '"b"') and names("*", '"b"') and not names('"bb"', '"b"')


def test_the_description_has_each_operation_and_each_has_its_handler() -> None:
    told = json.loads(described())
    for operation in OPERATIONS:
        there = told["paths"][operation.path][operation.method.lower()]
        assert there["operationId"] == operation.name and there["summary"]
        assert inspect.iscoroutinefunction(getattr(Api, operation.name))
        names_ = {part["name"] for part in there["parameters"] if part["in"] == "path"}
        assert names_ == {part[1:-1] for part in operation.path.split("/") if part.startswith("{")}
        segments = [part.strip("{}") for part in operation.path.split("/")[1:]]
        assert matched(segments)[0][operation.method] is operation
    listed = {status for operation in OPERATIONS for status in operation.answers} | set(OTHERS)
    assert set(STATUS.values()) <= listed
    assert matched(["v1"]) == ({}, {})


def test_nobody_waits_for_news_of_a_client_that_is_not_connected() -> None:
    """Its connection ended between two words: a long-poll would learn nothing until its time is over."""

    async def waits() -> None:
        session = Session(None, None, None, "c", "j")  # type: ignore[arg-type]
        with pytest.raises(Refused) as refused:
            await session.news(asyncio.get_running_loop().time() + 600)
        assert refused.value.code == "node-away"

    asyncio.run(asyncio.wait_for(waits(), 60))


OVER = cm.RoundOver("j", 1, "its quorum was not reached")
SPOILT = cm.Refusal(cm.SPOILT, "update", "it was not finite", "j", 1)


@pytest.mark.parametrize(
    ("before", "state"),
    [
        ([OVER], "over"),
        ([cm.Accepted("j", 1), OVER], "over"),
        ([cm.Accepted("j", 1), SPOILT], "over"),
        ([cm.Accepted("j", 1)], "over"),  # lost with a node: the attempt goes on
        ([cm.Committed("j", 1, True)], "committed"),  # its model was damaged, and the round is run again
    ],
)
def test_who_is_selected_for_a_round_again_is_told_so(before: list[Message], state: str) -> None:
    """What was known is of an earlier attempt, or lost: who asks for the selection is to send an update once more."""

    async def hears() -> None:
        session = Session(None, None, None, "c", "j")  # type: ignore[arg-type]
        selected = cm.Selected("j", 1, 50.0, LAYOUT.tensors, LAYOUT.data_bytes, {})
        session._heard(selected)
        assert wanted_of(session) is selected
        for message in before:
            session._heard(message)
        assert wanted_of(session) is None
        again = msgspec.structs.replace(selected, deadline_s=40.0)
        session._heard(again)
        assert wanted_of(session) is again
        assert session.fates[1].state == state, "who waits for what becomes of the first one hears of its end"
        session._heard(cm.Accepted("j", 1))
        assert wanted_of(session) is None and session.fates[1].state == "accepted"

    asyncio.run(hears())


def test_who_has_a_ticket_is_told_of_a_fold_again_that_has_its_update() -> None:
    """It is told as often as it asks, and is to send nothing."""

    async def hears() -> None:
        line = SimpleNamespace(fold=0, shown=None)
        came = SimpleNamespace(by_ticket=False)
        session = TicketSession(None, None, came, "c", "j", ticket=line)  # type: ignore[arg-type]
        selected = cm.Selected("j", 1, 50.0, LAYOUT.tensors, LAYOUT.data_bytes, {}, fold=257)
        for message in (selected, cm.Accepted("j", 1), selected):
            session._heard(message)
        assert wanted_of(session) is None and session.fates[1].state == "accepted"
        session._heard(msgspec.structs.replace(selected, fold=258))
        assert wanted_of(session) is not None and not session.fates

    asyncio.run(hears())


@pytest.mark.parametrize("text", ["", "\u0663", "1_0", "0x1", "1,5", "--1"])
def test_a_number_is_written_in_ascii_digits(text: str) -> None:
    with pytest.raises(Problem) as refused:
        _number(text, "wait_s")
    assert (refused.value.status, refused.value.body["field"]) == (400, "wait_s")
    assert _number("1e2", "weight") == 100.0
