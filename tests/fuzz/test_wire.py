"""Frames: every message survives the way, and no bytes in any pieces raise anything but the remote fault."""

from __future__ import annotations

import itertools
import math
import struct
import tracemalloc
import types
import typing
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lifl.core.errors import LocalFault, RemoteFault
from lifl.core.fields import (
    AnnouncedMetrics,
    Digest,
    KeyBytes,
    KnownWords,
    Message,
    Metrics,
    Name,
    Properties,
    RevokedTicket,
    RoundMetrics,
    Tensors,
    Ticket,
)
from lifl.core.limits import KNOWN_WORDS_MAX
from lifl.core.planning.client_list import Listed
from lifl.core.planning.treatment import Patterns
from lifl.core.protocol import cli as om
from lifl.core.protocol import client as cm
from lifl.core.protocol import enrolment as e
from lifl.core.protocol import gateway as gm
from lifl.core.protocol import journal as jm
from lifl.core.protocol import worker as wm
from lifl.core.protocol.frames import FRAME_BYTES_MAX, FrameDecoder, encode
from lifl.core.protocol.shown_peer import ShownPeer
from lifl.core.schema import DTYPE_BYTES, Place, Segment, TensorSpec, Treated
from lifl.core.trust.bearers import Bearer
from lifl.core.trust.revocation import Revocation

CHANNELS = [
    cm.FromClient,
    cm.ToClient,
    gm.FromGateway,
    gm.ToGateway,
    wm.FromZygote,
    wm.ToZygote,
    wm.FromWorker,
    wm.ToWorker,
    jm.ToJournal,
    jm.FromJournal,
    om.FromCli,
    om.ToCli,
    e.Asking,
    e.Answer,
]
KINDS = sorted({kind for channel in CHANNELS for kind in typing.get_args(channel)}, key=lambda kind: kind.__name__)
ALL: Any = typing.Union[tuple(KINDS)]  # noqa: UP007 - made at run time

counts = st.integers(0, 2**63 - 1)
metric_letters = st.characters(categories=("L", "N", "P", "S"))
names = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._:-]{0,63}\Z")
floats = st.floats(allow_nan=False)
finite = st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | floats | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
tensors = st.lists(
    st.builds(
        TensorSpec, st.text(max_size=10), st.sampled_from(list(DTYPE_BYTES)), st.lists(counts, max_size=3).map(tuple)
    ),
    max_size=3,
).map(tuple)


def strategy(kind: Any) -> st.SearchStrategy[Any]:
    """Values of a field's type, within its limits."""
    if kind == Name:
        return names
    if kind == KeyBytes:
        return st.binary(min_size=16, max_size=16)
    if kind == Digest:
        return st.binary(min_size=32, max_size=32)
    if kind in (Metrics, AnnouncedMetrics, RoundMetrics):
        return st.dictionaries(st.text(metric_letters, min_size=1, max_size=8), finite, max_size=3)
    if kind == KnownWords:
        return st.lists(st.text("abcxyz-", max_size=8), max_size=KNOWN_WORDS_MAX).map(tuple)
    if kind == Tensors:
        return tensors
    if kind in (Revocation, RevokedTicket, Bearer, ShownPeer, Properties):
        fields = typing.get_type_hints(kind, include_extras=True)
        return st.builds(kind, **{name: strategy(field) for name, field in fields.items()})
    if kind == typing.get_type_hints(Bearer, include_extras=True)["digest"]:
        return st.binary(min_size=32, max_size=32)
    if kind is msgspec.Raw:
        return values.map(msgspec.msgpack.encode).map(msgspec.Raw)
    if typing.get_origin(kind) is typing.Annotated:
        inner, *metas = typing.get_args(kind)
        if inner in (int, float):
            return within(inner, metas[0])
        pattern = next((meta.pattern for meta in metas if getattr(meta, "pattern", None) is not None), None)
        if inner is str and pattern is not None and "[^" not in pattern:
            fits = range(metas[0].min_length or 0, metas[0].max_length + 1)
            return st.from_regex(pattern).filter(lambda value: len(value) in fits)
        shortest = next((meta.min_length for meta in metas if getattr(meta, "min_length", None) is not None), None)
        if inner is str and (shortest or pattern is not None):  # the patterns that are left want what can be printed
            return st.text(metric_letters, min_size=shortest or 0, max_size=20)
        longest = next((meta.max_length for meta in metas if getattr(meta, "max_length", None) is not None), None)
        found = strategy(inner)
        return found if longest is None else found.filter(lambda value: len(value) <= longest)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType or origin is typing.Union:
        return st.one_of([strategy(argument) for argument in arguments])
    if origin is typing.Literal:
        return st.sampled_from(arguments)
    if origin is tuple and ... not in arguments:
        return st.tuples(*map(strategy, arguments))
    if origin is tuple:
        return st.lists(strategy(arguments[0]), max_size=3).map(tuple)
    if origin is dict:
        return st.dictionaries(strategy(arguments[0]), strategy(arguments[1]), max_size=3)
    simple: dict[Any, st.SearchStrategy[Any]] = {
        str: st.text(max_size=20),
        int: st.integers(-(2**63), 2**63 - 1),
        float: floats,
        bool: st.booleans(),
        bytes: st.binary(max_size=40),
        type(None): st.none(),
        msgspec.UnsetType: st.just(msgspec.UNSET),
        Any: values,
        Treated: st.builds(Treated, counts, counts, counts, st.sampled_from(["exclude", "fixed", "first"])),
        Place: st.builds(Place, counts, counts, counts),
        jm.Stored: st.builds(jm.Stored, names, st.floats(1e-3, 1e3), st.just({}), counts),
        Segment: st.builds(Segment, st.sampled_from(list(DTYPE_BYTES)), counts, counts),
        Ticket: st.builds(Ticket, st.text(max_size=20), counts),
        Listed: st.builds(Listed, st.binary(max_size=64), st.lists(names, max_size=3).map(tuple)),
        Patterns: st.builds(Patterns, *[st.lists(names, max_size=3).map(tuple)] * 3),
        TensorSpec: tensors.map(lambda some: some[0] if some else TensorSpec("w", "int8", ())),
    }
    return simple[kind]


def within(kind: type, meta: msgspec.Meta) -> st.SearchStrategy[Any]:
    """Numbers of all that a type allows."""
    low, high = meta.ge if meta.ge is not None else meta.gt, meta.le if meta.le is not None else meta.lt
    if kind is int:
        return st.integers(int(low or 0), 2**64 - 1 if high is None else int(high))
    return st.floats(low, high, allow_nan=False, exclude_min=meta.gt is not None)


def messages_of(kind: type[Message]) -> st.SearchStrategy[Message]:
    hints = typing.get_type_hints(kind, include_extras=True)
    fields = {name: strategy(hints[name]) for name in kind.__struct_fields__}
    return st.builds(kind, **fields)


def decode_in_pieces(decoder: FrameDecoder[Any], data: bytes, cuts: list[int]) -> list[Any]:
    found = []
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    for start, end in itertools.pairwise(edges):
        decoder.feed(data[start:end])
        while (message := decoder.next_message()) is not None:
            found.append(message)
    return found


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_message_survives_the_way(kind: type[Message]) -> None:
    @settings(max_examples=15, deadline=None)
    @given(messages_of(kind))
    def check(message: Message) -> None:
        decoder: FrameDecoder[Any] = FrameDecoder(ALL)
        decoder.feed(encode(message))
        assert decoder.next_message() == message
        assert decoder.missing_bytes == 4

    check()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.one_of([messages_of(kind) for kind in typing.get_args(cm.FromClient)]), max_size=5),
    st.lists(st.integers(0, 10**6), max_size=10),
)
def test_messages_come_out_in_order_however_the_stream_is_cut(sent: list[Message], cuts: list[int]) -> None:
    data = b"".join(encode(message) for message in sent)
    assert decode_in_pieces(FrameDecoder(cm.FromClient), data, cuts) == sent


@settings(max_examples=40, deadline=None)
@given(st.lists(messages_of(cm.Join), min_size=1, max_size=3), st.binary(max_size=50))
def test_missing_bytes_reads_exactly_the_frames_and_nothing_of_what_follows(sent: list[Message], body: bytes) -> None:
    data = b"".join(encode(message) for message in sent) + body
    decoder: FrameDecoder[Any] = FrameDecoder(cm.FromClient)
    position = 0
    for message in sent:
        while (found := decoder.next_message()) is None:
            step = decoder.missing_bytes
            assert step > 0
            decoder.feed(data[position : position + step])
            position += step
        assert found == message
    assert data[position:] == body


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=5), st.booleans())
@example(b"\xff\xff\xff\x7f", [], False)
@example(b"\x82\xa4type\xa5Hello\xa6client\xa2\xff\xfe", [], True)
def test_any_bytes_in_any_pieces_raise_only_the_remote_fault(data: bytes, cuts: list[int], framed: bool) -> None:
    if framed:
        data = struct.pack("<I", len(data)) + data
    decoder: FrameDecoder[Any] = FrameDecoder(cm.FromClient | gm.ToGateway)
    try:
        decode_in_pieces(decoder, data, cuts)
        assert decoder.missing_bytes >= 0
    except RemoteFault:
        pass


@settings(max_examples=200, deadline=None)
@given(
    st.one_of([messages_of(kind) for kind in typing.get_args(cm.FromClient)]),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_damaged_frames_are_messages_or_the_remote_fault(message: Message, damages: list[tuple[int, int]]) -> None:
    data = bytearray(encode(message))
    for place, value in damages:
        data[4 + place % (len(data) - 4)] = value
    try:
        decode_in_pieces(FrameDecoder(cm.FromClient), bytes(data), [])
    except RemoteFault:
        pass


MANY = 1_000_000
BOMBS = {
    "empty arrays": b"\xdd" + struct.pack(">I", MANY) + b"\x90" * MANY,
    "empty maps": b"\xdd" + struct.pack(">I", MANY) + b"\x80" * MANY,
    "nested": b"\x91" * MANY,
    "nested in a free field": b"\x83\xa4type\xaaTellClient\xa4conn\x01\xa7message\x81\xa1a" + b"\x91" * MANY,
    "a length that lies": b"\xdd\xff\xff\xff\xff",
    "in a field": b"\x82\xa4type\xa6Submit\xa7tensors\xdd" + struct.pack(">I", MANY) + b"\x90" * MANY,
    "metrics": b"\x82\xa4type\xa6Submit\xa7metrics\xdf" + struct.pack(">I", MANY // 4) + b"\xa2ab\x00" * (MANY // 4),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_not_built_before_it_is_refused(name: str) -> None:
    frame = struct.pack("<I", len(BOMBS[name])) + BOMBS[name]
    decoder: FrameDecoder[Any] = FrameDecoder(cm.FromClient | gm.ToGateway)
    decoder.feed(frame)
    tracemalloc.start()
    try:
        with pytest.raises(RemoteFault):
            decoder.next_message()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3 * len(frame) + 100_000


def test_an_announced_length_is_checked_before_anything_is_kept() -> None:
    decoder: FrameDecoder[Any] = FrameDecoder(cm.FromClient, frame_bytes_max=100)
    decoder.feed(struct.pack("<I", 101))
    with pytest.raises(RemoteFault, match="101"):
        _ = decoder.missing_bytes
    with pytest.raises(RemoteFault, match="101"):
        decoder.next_message()
    exact: FrameDecoder[Any] = FrameDecoder(cm.FromClient, frame_bytes_max=100)
    exact.feed(struct.pack("<I", 100))
    assert exact.next_message() is None
    assert exact.missing_bytes == 100


def test_a_message_over_the_limit_is_our_own_fault() -> None:
    with pytest.raises(LocalFault, match="limit"):
        encode(om.Answer({"x": "y" * FRAME_BYTES_MAX}))


def test_numbers_that_are_not_finite_travel_so_that_they_can_be_refused_by_name() -> None:
    decoder: FrameDecoder[Any] = FrameDecoder(cm.FromClient)
    decoder.feed(encode(cm.Submit("j", 1, float("nan"), 0, ())))
    message = decoder.next_message()
    assert isinstance(message, cm.Submit) and math.isnan(message.weight)


@pytest.mark.parametrize(
    "fields",
    [
        {"type": "Hello", "version": 1, "client": "c", "more": 1},
        {"type": "Hello", "version": "1", "client": "c"},
        {"type": "Hello", "version": 1, "client": "../etc"},
        {"type": "Hello", "version": 1, "client": "x" * 65},
        {"type": "Hello", "version": 1, "client": ""},
        {"type": "Welcome", "version": 1, "node": "n"},
        {"type": "Join", "job": "j", "holding": -1},
    ],
    ids=["unknown field", "wrong type", "name with path", "long name", "no name", "other direction", "negative"],
)
def test_what_is_no_message_of_the_channel_is_refused(fields: dict[str, Any]) -> None:
    body = msgspec.msgpack.encode(fields)
    decoder: FrameDecoder[Any] = FrameDecoder(cm.FromClient)
    decoder.feed(struct.pack("<I", len(body)) + body)
    with pytest.raises(RemoteFault):
        decoder.next_message()
