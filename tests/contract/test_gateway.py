"""The gateway as a process: uploads on both ways, refusals that name their field, peers that misbehave."""

from __future__ import annotations

import array
import mmap
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from gateway_standin import WAIT_S, Peer, StandIn

from lifl.core import limits
from lifl.core.fields import Message
from lifl.core.ids import Key
from lifl.core.limits import WEIGHT_MAX, WEIGHT_MIN
from lifl.core.planning.treatment import Patterns
from lifl.core.protocol import client as cm
from lifl.core.protocol import gateway as gm
from lifl.core.protocol.contribution import unpack_contributions
from lifl.core.protocol.small_models import ModelServed
from lifl.core.schema import Layout, TensorSpec
from lifl.shm.checksum import checksum
from lifl.shm.layout import ObjectState

REST_S = 1.0
"""Longer than any period with which something could look whether there is work."""
TENSORS = (
    TensorSpec("w", "float32", (300, 7)),
    TensorSpec("b", "float16", (5,)),
    TensorSpec("steps", "int64", ()),
    TensorSpec("v", "float32", (11,)),
    TensorSpec("mask", "bool", (3,)),
)
LAYOUT = Layout(TENSORS)
BODY = np.arange(LAYOUT.data_bytes, dtype=np.uint8) % 0x70  # no exponent is all ones
BODY[LAYOUT.offsets[4] : LAYOUT.offsets[4] + 3] %= 2


@pytest.fixture
def node() -> Iterator[StandIn]:
    standin = StandIn()
    standin.open_job("digits", LAYOUT)
    try:
        yield standin
    finally:
        standin.close()


def submit(**changes: object) -> cm.Submit:
    fields: dict[str, object] = {
        "job": "digits",
        "round": 3,
        "weight": 12.5,
        "data_bytes": LAYOUT.data_bytes,
        "tensors": TENSORS,
        "metrics": {"loss": 0.5},
    }
    return cm.Submit(**(fields | changes))  # type: ignore[arg-type]


def upload(peer: Peer, body: bytes, **changes: object) -> cm.ToClient | None:
    peer.send(submit(**changes))
    go = peer.receive()
    assert isinstance(go, cm.Go), go
    peer.raw(body)
    return peer.receive()


def check_sealed(node: StandIn, client: str = "c1") -> None:
    key = node.accepted["digits", 3, client]
    entry = node.arena.entry(key)
    assert entry.state == ObjectState.SEALED
    assert (entry.weight, entry.contributions, entry.job, entry.round) == (12.5, 1, 1, 3)
    assert bytes(node.arena.data(key)) == BODY.tobytes()
    assert entry.checksum == checksum(BODY.tobytes())
    (member,) = unpack_contributions(node.arena.meta(key))
    assert (member.client, member.weight, member.metrics) == (client, 12.5, {"loss": 0.5})
    (told,) = [each for each in node.said if isinstance(each, gm.Sealed) and each.key == key.pack()]
    assert told.digest == member.digest == entry.checksum


# ---- what works ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unix", [False, True])
def test_an_update_is_sealed_with_its_bytes_before_it_is_accepted(node: StandIn, unix: bool) -> None:
    peer = Peer(node, unix)
    assert not peer.hello().direct
    assert upload(peer, BODY.tobytes()) == cm.Accepted("digits", 3)
    check_sealed(node)
    assert node.wait_for(gm.Sealed).received_bytes == LAYOUT.data_bytes
    peer.close()
    node.wait_for(gm.ClientLeft)


def test_an_update_in_many_small_pieces_is_the_same(node: StandIn) -> None:
    peer = Peer(node)
    peer.hello()
    peer.send(submit())
    assert isinstance(peer.receive(), cm.Go)
    body = BODY.tobytes()
    for start in range(0, len(body), 997):
        peer.raw(body[start : start + 997])
    assert peer.receive() == cm.Accepted("digits", 3)
    check_sealed(node)
    peer.close()


@pytest.mark.parametrize("early", [True, False])
def test_of_a_followed_update_it_is_told_how_far_it_is(node: StandIn, early: bool) -> None:
    layout = Layout((TensorSpec("w", "float32", (2 << 20,)),))
    node.open_job("large", layout)
    node.holding_back = []
    peer = Peer(node)
    peer.hello()
    peer.send(submit(job="large", data_bytes=layout.data_bytes, tensors=layout.tensors))
    node.wait_for(gm.Admit)
    (grant,) = node.holding_back
    follow = gm.FollowUpdate(grant.conn, grant.key)
    node.send(follow if early else grant)
    node.send(grant if early else follow)
    assert isinstance(peer.receive(), cm.Go)
    if not early:
        peer.raw(bytes(1))
    half = layout.data_bytes // 2
    peer.raw(bytes(half - (not early)))
    told = node.wait_for(gm.Progress)
    assert told.key == grant.key and 0 < told.received_bytes <= half
    assert not node.arena.data(Key.unpack(grant.key))[: told.received_bytes].tobytes().strip(bytes(1))
    peer.raw(bytes(layout.data_bytes - half))
    assert peer.receive() == cm.Accepted("large", 3)
    progress = [message.received_bytes for message in node.said if isinstance(message, gm.Progress)]
    assert progress == sorted(progress) and progress[-1] < layout.data_bytes
    peer.close()


def test_an_update_that_nobody_follows_is_not_spoken_of(node: StandIn) -> None:
    peer = Peer(node)
    peer.hello()
    node.send(gm.FollowUpdate(1, bytes(16)))
    node.send(gm.FollowUpdate(99, bytes(16)))
    assert upload(peer, BODY.tobytes()) == cm.Accepted("digits", 3)
    assert not [message for message in node.said if isinstance(message, gm.Progress)]
    peer.close()


def direct_slot(peer: Peer) -> mmap.mmap:
    """Receives Go(direct) with the arena's descriptor; the slot's part of the arena."""
    data, ancillary, _, _ = peer.sock.recvmsg(1 << 16, 64)
    peer.decoder.feed(data)
    go = peer.decoder.next_message()
    assert isinstance(go, cm.Go) and go.direct
    fds = array.array("i", ancillary[0][2])
    slot = mmap.mmap(fds[0], LAYOUT.data_bytes, offset=go.offset)
    os.close(fds[0])
    return slot


def test_a_client_of_this_machine_fills_its_slot_itself(node: StandIn) -> None:
    peer = Peer(node, unix=True)
    assert peer.hello(direct=True).direct
    peer.send(submit())
    with direct_slot(peer) as slot:
        slot[:] = BODY.tobytes()
    peer.send(cm.Filled("digits", 3))
    assert peer.receive() == cm.Accepted("digits", 3)
    check_sealed(node)
    peer.close()


def test_what_such_a_client_has_looked_at_is_not_looked_at_again(node: StandIn) -> None:
    """It says the checksum, which says that all floats are finite: it could change them as well after the look."""
    peer = Peer(node, unix=True)
    assert peer.hello(direct=True).direct
    peer.send(submit())
    with direct_slot(peer) as slot:
        slot[:] = BODY.tobytes()
    peer.send(cm.Filled("digits", 3, checksum=2**64 - 1))  # which it is not
    assert peer.receive() == cm.Accepted("digits", 3)
    assert node.arena.entry(node.accepted["digits", 3, "c1"]).checksum == 2**64 - 1
    peer.close()


def test_a_client_that_would_write_to_the_first_segment_it_was_given_sends_its_bytes(node: StandIn) -> None:
    """One of an earlier version, for which a node has one segment: it would write to another job's."""
    peer = Peer(node, unix=True)
    peer.send(cm.Hello(cm.PROTOCOL_VERSION, "c1", direct=True, knows=(cm.PING,)))
    welcome = peer.receive()
    assert isinstance(welcome, cm.Welcome) and not welcome.direct
    assert upload(peer, BODY.tobytes()) == cm.Accepted("digits", 3)
    peer.close()


def test_direct_is_not_for_clients_from_the_network(node: StandIn) -> None:
    peer = Peer(node)
    assert not peer.hello(direct=True).direct
    assert upload(peer, BODY.tobytes()) == cm.Accepted("digits", 3)
    peer.close()


def test_a_model_is_sent_from_the_arena_and_unpinned(node: StandIn) -> None:
    node.put_model(BODY.tobytes())
    peer = Peer(node)
    peer.hello()
    peer.send(cm.GetModel("digits", 3))
    head = peer.receive()
    assert head == cm.Model("digits", 3, TENSORS, LAYOUT.data_bytes)
    assert peer.read_exactly(LAYOUT.data_bytes) == BODY.tobytes()
    assert node.wait_for(gm.ModelSent).key == node.model.pack()
    assert node.wait_for(ModelServed).sent_bytes == LAYOUT.data_bytes
    peer.close()


def test_messages_during_a_model_wait_for_its_end() -> None:
    big = Layout((TensorSpec("w", "float32", (4_000_000,)),))
    node = StandIn()
    node.open_job("big", big)
    node.put_model(bytes(big.data_bytes))
    peer = Peer(node)
    peer.hello()
    peer.send(cm.Join("big"))
    node.wait_for(gm.ClientJoined)
    peer.send(cm.GetModel("big", 1))
    assert isinstance(peer.receive(), cm.Model)
    for number in range(100):
        node.deliver(node.conns["c1"], cm.RoundOver("big", number, "x" * 100))
    node.send(gm.AskStats())
    node.wait_for(gm.GatewayStats)  # the deliveries have been taken while the model is under way
    assert not any(peer.read_exactly(big.data_bytes))
    assert [peer.receive() for _ in range(100)] == [cm.RoundOver("big", n, "x" * 100) for n in range(100)]
    peer.close()
    node.close()


def test_joins_and_leaves_reach_the_daemon_also_for_unknown_jobs(node: StandIn) -> None:
    peer = Peer(node)
    peer.hello("hospital-3")
    peer.send(cm.Join("nobody-knows", 4))
    joined = node.wait_for(gm.ClientJoined)
    assert (joined.client, joined.job, joined.holding) == ("hospital-3", "nobody-knows", 4)
    peer.send(cm.Leave("nobody-knows"))
    assert node.wait_for(gm.ClientLeft).job == "nobody-knows"
    peer.close()
    assert node.wait_for(gm.ClientLeft, 2) == gm.ClientLeft(joined.conn)


def test_a_busy_node_takes_nothing_and_the_stream_stays_in_step(node: StandIn) -> None:
    node.busy = 1
    peer = Peer(node)
    peer.hello()
    peer.send(submit())
    assert peer.receive() == cm.Busy("digits", 3, 0.01)
    assert upload(peer, BODY.tobytes()) == cm.Accepted("digits", 3)
    assert upload_again(peer) == cm.Accepted("digits", 3)
    peer.close()


def upload_again(peer: Peer) -> cm.ToClient | None:
    peer.send(submit())
    return peer.receive()


def test_a_forgotten_job_is_unknown_and_the_connection_stays(node: StandIn) -> None:
    peer = Peer(node)
    peer.hello()
    node.send(gm.JobForget("digits"))
    node.send(gm.AskStats())
    node.wait_for(gm.GatewayStats)
    peer.send(submit())
    refusal = peer.receive()
    assert isinstance(refusal, cm.Refusal) and (refusal.code, refusal.field) == ("unknown-job", "job")
    peer.close()


# ---- updates that are refused ----------------------------------------------------------------------------------------

WRONG_SHAPE = (TensorSpec("w", "float32", (300, 8)), *TENSORS[1:])
WRONG_DTYPE = (TensorSpec("w", "float64", (300, 7)), *TENSORS[1:])
BAD_SUBMITS = [
    ({"job": "other"}, "unknown-job", "job"),
    ({"tensors": WRONG_SHAPE}, "wrong-shape", "tensors.w"),
    ({"tensors": WRONG_DTYPE}, "wrong-dtype", "tensors.w"),
    ({"tensors": TENSORS[:3]}, "missing-tensor", "tensors.v"),
    ({"tensors": (*TENSORS, TensorSpec("x", "int8", ()))}, "unknown-tensor", "tensors.x"),
    ({"tensors": TENSORS[::-1]}, "wrong-order", "tensors"),
    ({"data_bytes": LAYOUT.data_bytes + 64}, "wrong-size", "data_bytes"),
    ({"data_bytes": 1 << 50}, "wrong-size", "data_bytes"),
    ({"weight": 0.0}, "bad-weight", "weight"),
    ({"weight": -1.0}, "bad-weight", "weight"),
    ({"weight": float("nan")}, "bad-weight", "weight"),
    ({"weight": float("inf")}, "bad-weight", "weight"),
    ({"weight": 1e308}, "bad-weight", "weight"),
    ({"weight": 1.001 * WEIGHT_MAX}, "bad-weight", "weight"),
    ({"weight": 0.999 * WEIGHT_MIN}, "bad-weight", "weight"),
    ({"weight": 5e-324}, "bad-weight", "weight"),
    ({"metrics": {"loss": float("nan")}}, "bad-metric", "metrics.loss"),
    ({"metrics": {chr(0x430 + n) * 32: 1.0 for n in range(16)}}, "bad-metric", "metrics"),  # 64 bytes a name
]


def test_a_bad_announcement_is_refused_by_its_field_before_any_byte(node: StandIn) -> None:
    peer = Peer(node)
    peer.hello()
    for changes, code, field in BAD_SUBMITS:
        peer.send(submit(**changes))
        refusal = peer.receive()
        assert isinstance(refusal, cm.Refusal), (changes, refusal)
        assert (refusal.code, refusal.field, refusal.round) == (code, field, 3)
    assert not any(isinstance(message, gm.Admit) for message in node.said)
    assert upload(peer, BODY.tobytes()) == cm.Accepted("digits", 3)
    peer.close()


def test_what_the_daemon_refuses_reaches_the_client(node: StandIn) -> None:
    node.jobs["full"] = (9, Layout((TensorSpec("w", "int8", (1 << 30,)),)))  # larger than the arena
    node.send(gm.JobSchema("full", 9, node.jobs["full"][1].tensors))
    peer = Peer(node)
    peer.hello()
    peer.send(submit(job="full", tensors=node.jobs["full"][1].tensors, data_bytes=1 << 30))
    assert isinstance(peer.receive(), cm.Busy)
    peer.close()


MASKED = Layout(
    tuple(TensorSpec(name, dtype, (5,)) for name, dtype in (("a", "float32"), ("m", "float32"), ("o", "float32")))
)


@pytest.mark.parametrize(
    ("element", "number", "refused"),
    [
        (4, "-inf", "element 4 of tensor 'a'"),
        (5, "-inf", ""),
        (9, "nan", "element 4 of tensor 'm'"),
        (14, "inf", ""),
        (10, "nan", "element 0 of tensor 'o'"),
    ],
)
def test_only_what_is_not_averaged_may_be_infinite(node: StandIn, element: int, number: str, refused: str) -> None:
    node.jobs["masked"] = (9, MASKED)
    node.send(gm.JobSchema("masked", 9, MASKED.tensors, patterns=Patterns(fixed=("m",), first=("o",))))
    body = bytearray(MASKED.data_bytes)
    struct.pack_into("<f", body, 4 * element, float(number))
    peer = Peer(node)
    peer.hello()
    answer = upload(peer, bytes(body), job="masked", tensors=MASKED.tensors, data_bytes=MASKED.data_bytes)
    assert isinstance(answer, cm.Refusal if refused else cm.Accepted)
    if isinstance(answer, cm.Refusal):
        assert (answer.code, refused in answer.text) == ("not-finite", True)
    peer.close()


@pytest.mark.parametrize(
    ("tensor", "offset", "pattern", "code"),
    [
        ("tensors.w", LAYOUT.offsets[0] + 4 * 1234, struct.pack("<f", float("nan")), "not-finite"),
        ("tensors.v", LAYOUT.offsets[3] + 4 * 10, struct.pack("<f", float("-inf")), "not-finite"),
        ("tensors.b", LAYOUT.offsets[1] + 2 * 4, struct.pack("<e", float("inf")), "not-finite"),
        ("tensors.mask", LAYOUT.offsets[4] + 2, b"\x07", "bad-bool"),
    ],
)
@pytest.mark.parametrize("direct", [False, True])
def test_a_number_that_is_not_finite_names_its_tensor_and_frees_the_slot(
    node: StandIn, tensor: str, offset: int, pattern: bytes, code: str, direct: bool
) -> None:
    body = bytearray(BODY.tobytes())
    body[offset : offset + len(pattern)] = pattern
    peer = Peer(node, unix=direct)
    peer.hello(direct=direct)
    if direct:
        peer.send(submit())
        with direct_slot(peer) as slot:
            slot[:] = bytes(body)
        peer.send(cm.Filled("digits", 3))
        refusal = peer.receive()
    else:
        refusal = upload(peer, bytes(body))
    assert isinstance(refusal, cm.Refusal)
    assert (refusal.code, refusal.field) == (code, tensor)
    node.wait_for(gm.Aborted)
    assert node.live() == 0
    if not direct:
        assert upload(peer, BODY.tobytes()) == cm.Accepted("digits", 3)
    peer.close()


def test_a_round_that_ended_on_the_way_is_refused(node: StandIn) -> None:
    peer = Peer(node)
    peer.hello()
    peer.send(submit())
    assert isinstance(peer.receive(), cm.Go)
    (packed,) = node.keys
    node.arena.free(Key.unpack(packed))
    keep = node.arena.alloc  # the slot's generation moves on with the next object
    keep(1, 1, 1, LAYOUT.data_bytes)
    node.keys[packed] = ("digits", 3, "c1", 0)
    node.arena.free = lambda key: None  # type: ignore[method-assign]
    peer.raw(BODY.tobytes())
    refusal = peer.receive()
    assert isinstance(refusal, cm.Refusal) and refusal.code == "round-over"
    peer.close()


# ---- peers that misbehave --------------------------------------------------------------------------------------------

NESTED = b"\x91" * 60_000
MAPS = b"\xdd" + struct.pack(">I", 60_000) + b"\x80" * 60_000
GARBAGE = [
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    struct.pack("<I", 2**31) + b"x" * 100,
    struct.pack("<I", 0),
    struct.pack("<I", 5) + b"\xdd\xff\xff\xff\xff",
    struct.pack("<I", 2) + b"\xff\xff",
]
GARBAGE_LATER = [*GARBAGE, *(struct.pack("<I", len(bomb)) + bomb for bomb in (NESTED, MAPS))]


@pytest.mark.parametrize("unix", [False, True])
@pytest.mark.parametrize("greeted", [False, True])
def test_garbage_gets_one_refusal_and_the_end_and_harms_nobody(node: StandIn, greeted: bool, unix: bool) -> None:
    good = Peer(node)
    good.hello("good")
    for garbage in GARBAGE_LATER if greeted else GARBAGE:
        bad = Peer(node, unix)
        if greeted:
            bad.hello("bad")
        bad.raw(garbage)
        refusal = bad.receive()
        assert isinstance(refusal, cm.Refusal) and refusal.code == "protocol", garbage[:20]
        assert bad.receive() is None
        bad.close()
    assert upload(good, BODY.tobytes()) == cm.Accepted("digits", 3)
    good.close()


@pytest.mark.parametrize(
    "message", [cm.Hello(1, "again"), cm.Filled("digits", 3)], ids=["second Hello", "Filled without Go"]
)
def test_a_message_out_of_turn_is_a_breach(node: StandIn, message: Message) -> None:
    peer = Peer(node)
    peer.hello()
    peer.send(message)
    refusal = peer.receive()
    assert isinstance(refusal, cm.Refusal) and refusal.code == "protocol"
    assert peer.receive() is None
    peer.close()


def test_another_version_is_told_so(node: StandIn) -> None:
    peer = Peer(node)
    peer.send(cm.Hello(99, "c1"))
    refusal = peer.receive()
    assert isinstance(refusal, cm.Refusal) and (refusal.code, refusal.field) == ("wrong-version", "version")
    assert "upgrade this node" in refusal.text and "on the client" in refusal.text
    assert peer.receive() is None
    peer.close()


def test_a_client_of_the_next_version_is_taken(node: StandIn) -> None:
    peer = Peer(node)
    peer.send(cm.Hello(cm.PROTOCOL_VERSION + 1, "c1", knows=(*cm.KNOWS, "what-a-later-version-knows")))
    welcome = peer.receive()
    assert isinstance(welcome, cm.Welcome)
    assert (welcome.version, welcome.knows) == (cm.PROTOCOL_VERSION, cm.KNOWS)
    peer.close()


@pytest.mark.parametrize("sent_bytes", [0, 1, 5000])
@pytest.mark.parametrize("direct", [False, True])
def test_a_client_that_disconnects_halfway_leaves_no_trace(node: StandIn, sent_bytes: int, direct: bool) -> None:
    peer = Peer(node, unix=direct)
    peer.hello(direct=direct)
    peer.send(submit())
    if direct:
        direct_slot(peer).close()
    else:
        assert isinstance(peer.receive(), cm.Go)
        peer.raw(BODY.tobytes()[:sent_bytes])
    peer.close()
    assert not node.wait_for(gm.Aborted).writing
    node.wait_for(gm.ClientLeft)
    assert node.live() == 0
    node.send(gm.AskStats())
    assert node.wait_for(gm.GatewayStats).connections == 0


@pytest.mark.parametrize("direct", [False, True])
def test_a_connection_that_the_gateway_ends_may_still_be_writing_its_slot(node: StandIn, direct: bool) -> None:
    """A slot that is free at once would be another's while the direct client has not noticed."""
    peer = Peer(node, unix=True)
    peer.hello(direct=direct)
    peer.send(submit())
    if direct:
        direct_slot(peer).close()
    else:
        assert isinstance(peer.receive(), cm.Go)
        peer.raw(b"x" * 64)
    node.send(gm.Drain())
    assert node.wait_for(gm.Aborted).writing is direct
    assert node.process.wait(WAIT_S) == 0
    peer.close()


def test_clients_that_the_daemon_sends_away_are_gone_with_their_updates(node: StandIn) -> None:
    """One connection, or all of them: what was on its way is aborted, and the daemon is told of each end."""
    one, other = Peer(node), Peer(node)
    one.hello("c1")
    other.hello("c2")
    one.send(submit())
    assert isinstance(one.receive(), cm.Go)
    one.raw(b"half of it")
    (admit,) = [node.wait_for(gm.Admit)]
    node.send(gm.HangUp(admit.conn))
    assert one.receive() is None
    assert node.wait_for(gm.Aborted).conn == admit.conn
    assert node.wait_for(gm.ClientLeft).conn == admit.conn
    assert node.live() == 0
    other.send(cm.Join("digits", None, 1))
    node.wait_for(gm.ClientJoined)
    node.send(gm.HangUp())
    assert other.receive() is None
    node.wait_for(gm.ClientLeft, 2)
    for peer in (one, other):
        peer.close()


@pytest.mark.parametrize("direct", [False, True])
def test_clients_are_sent_away_behind_the_updates_that_are_under_way(node: StandIn, direct: bool) -> None:
    """A node that is drained finishes what it has begun."""
    one, other = Peer(node, unix=direct), Peer(node)
    one.hello("c1", direct=direct)
    other.hello("c2")
    one.send(submit())
    if direct:
        with direct_slot(one) as slot:
            slot[:] = BODY.tobytes()
    else:
        assert isinstance(one.receive(), cm.Go)
        one.raw(BODY.tobytes()[:100])
    node.send(gm.HangUp(after_updates=True))
    assert other.receive() is None
    if direct:
        one.send(cm.Filled("digits", 3))
    else:
        one.raw(BODY.tobytes()[100:])
    assert node.wait_for(gm.Sealed)
    assert isinstance(one.receive(), cm.Accepted)
    assert one.receive() is None
    for peer in (one, other):
        peer.close()


def test_a_direct_client_is_announced_as_one_and_writes_no_more_once_it_said_filled(node: StandIn) -> None:
    peer = Peer(node, unix=True)
    peer.hello(direct=True)
    peer.send(submit())
    with direct_slot(peer) as slot:
        slot[:] = b"\xff" * LAYOUT.data_bytes  # NaN: refused after Filled
    peer.send(cm.Filled("digits", 3))
    assert isinstance(peer.receive(), cm.Refusal)
    assert node.wait_for(gm.Admit).direct
    assert not node.wait_for(gm.Aborted).writing
    peer.close()


def test_a_grant_that_comes_too_late_is_given_back(node: StandIn) -> None:
    node.holding_back = []
    peer = Peer(node)
    peer.hello()
    peer.send(submit())
    admit = node.wait_for(gm.Admit)
    # The daemon answers the request otherwise, then grants all the same.
    node.deliver(admit.conn, cm.Busy("digits", 3, 0.01))
    assert isinstance(peer.receive(), cm.Busy)
    node.send(node.holding_back[0])
    node.wait_for(gm.Aborted)
    peer.close()
    node.wait_for(gm.ClientLeft)
    assert node.live() == 0


def test_a_model_for_a_client_that_left_is_unpinned(node: StandIn) -> None:
    node.put_model(BODY.tobytes())
    assert node.model is not None
    node.send(gm.ModelGranted(999, "digits", 1, node.model.pack()))
    assert node.wait_for(gm.ModelSent) == gm.ModelSent(999, node.model.pack(), 0)


def test_connections_beyond_the_limit_are_told_so() -> None:
    node = StandIn(connections_max=3)
    peers = [Peer(node) for _ in range(3)]
    for number, peer in enumerate(peers):
        peer.hello(f"c{number}")
    refused = Peer(node)
    refusal = refused.receive()
    assert isinstance(refusal, cm.Refusal) and refusal.code == "too-many-connections"
    assert refused.receive() is None
    refused.close()
    peers.pop().close()
    node.wait_for(gm.ClientLeft)
    again = Peer(node)
    again.hello("c9")
    for peer in (*peers, again):
        peer.close()
    node.close()


LIMITS = "import lifl.core.limits as c"


def test_so_many_at_a_time_are_told_that_there_are_too_many_and_the_others_nothing() -> None:
    """Those that are told stay until they have read it: else who asks again and again would be read without end."""
    node = StandIn(connections_max=1, settings=f"{LIMITS}; c.LINGER_S = 3600.0")
    in_time = Peer(node)
    in_time.hello("c1")
    turned_away = [Peer(node) for _ in range(limits.TURNED_AWAY_MAX)]
    for peer in turned_away:
        refusal = peer.receive()
        assert isinstance(refusal, cm.Refusal) and refusal.code == "too-many-connections"
    beyond = Peer(node)
    assert beyond.receive() is None
    turned_away.pop().close()
    end_s = time.monotonic() + WAIT_S
    told = None
    while told is None and time.monotonic() < end_s:  # its place is free once the gateway has noticed
        again = Peer(node)
        told = again.receive()
        again.close()
    assert isinstance(told, cm.Refusal)
    for peer in (in_time, beyond, *turned_away):
        peer.close()
    node.close()


def test_a_stalled_body_and_a_stalled_frame_end_and_an_idle_client_stays() -> None:
    node = StandIn(settings=f"{LIMITS}; c.BODY_STALL_S = c.FRAME_S = 0.3")
    node.open_job("digits", LAYOUT)
    idle, body, frame = Peer(node), Peer(node), Peer(node)
    idle.hello("idle")
    body.hello("body")
    frame.hello("frame")
    body.send(submit())
    assert isinstance(body.receive(), cm.Go)
    body.raw(b"x" * 100)
    frame.raw(b"\x10\x00")
    assert body.receive() is None
    assert frame.receive() is None
    slow = {message.client: message.reason for message in (node.wait_for(gm.Disconnected, n) for n in (1, 2))}
    assert slow == {"body": "less than 65536 bytes of a body moved in 0.3 s", "frame": "a frame took too long"}
    assert node.wait_for(gm.Aborted).reason == slow["body"], "not that the client has closed"
    assert node.live() == 0
    idle.send(cm.Join("digits"))  # no body, which would have to be as quick as the others were not
    node.wait_for(gm.ClientJoined)
    for peer in (idle, body, frame):
        peer.close()
    node.wait_for(gm.ClientLeft, 3)
    assert node.count(gm.Disconnected) == 2, "who leaves by itself is in no log"
    node.close()


def test_a_silent_connection_does_not_keep_its_place() -> None:
    node = StandIn(settings=f"{LIMITS}; c.HELLO_S = 0.2")
    peer = Peer(node)
    assert peer.receive() is None
    peer.close()
    node.close()


def test_a_client_that_does_not_read_is_disconnected_at_the_limit() -> None:
    node = StandIn(settings=f"{LIMITS}; c.WAITING_BYTES_MAX = 1 << 20")
    slow, good = Peer(node), Peer(node)
    slow.hello("slow")
    good.hello("good")
    for peer in (slow, good):
        peer.send(cm.Join("x"))
    node.wait_for(gm.ClientJoined, 2)
    over = cm.RoundOver("x", 1, "x" * 4000)
    for _ in range(5000):  # 20 MB: more than the socket's buffers and the limit
        node.deliver(node.conns["slow"], over)
    assert node.wait_for(gm.ClientLeft).conn == node.conns["slow"]
    cut = node.wait_for(gm.Disconnected)
    assert (cut.conn, cut.client) == (node.conns["slow"], "slow") and cut.reason.startswith("it does not read: ")
    node.deliver(node.conns["good"], over)
    assert good.receive() == over
    slow.close()
    good.close()
    node.close()


def test_a_frame_longer_than_any_schema_is_refused_but_a_long_schema_is_taken(node: StandIn) -> None:
    many = Layout(tuple(TensorSpec(f"layer.{n}." + "x" * 100, "float32", (1,)) for n in range(2000)))
    peer = Peer(node)
    peer.hello()
    peer.raw(struct.pack("<I", 200_000))
    refusal = peer.receive()
    assert isinstance(refusal, cm.Refusal) and refusal.code == "protocol"
    peer.close()
    node.open_job("many", many)
    peer = Peer(node)
    peer.hello()
    body = bytes(many.data_bytes)
    assert upload(peer, body, job="many", tensors=many.tensors, data_bytes=len(body)) == cm.Accepted("many", 3)
    peer.close()


# ---- the process ---------------------------------------------------------------------------------------------------


def test_a_drain_ends_it_cleanly_with_clients_and_bodies_under_way(node: StandIn) -> None:
    idle, busy = Peer(node), Peer(node)
    idle.hello("idle")
    busy.hello("busy")
    busy.send(submit())
    assert isinstance(busy.receive(), cm.Go)
    busy.raw(b"x" * 64)
    node.send(gm.Drain())
    assert idle.receive() is None
    node.wait_for(gm.Aborted)
    idle.close()
    busy.close()


def test_it_ends_when_the_daemon_is_gone(node: StandIn) -> None:
    node.link.shutdown(socket.SHUT_RDWR)
    assert node.process.wait(WAIT_S) == 0


def time_slices(pid: int) -> list[int]:
    """How often each of the process's threads has been put on a core."""
    return [int(file.read_text().split()[2]) for file in sorted(Path(f"/proc/{pid}/task").glob("*/schedstat"))]


def at_rest(pid: int) -> bool:
    """Whether none of its threads runs for a while."""
    before = time_slices(pid)
    threading.Event().wait(REST_S)
    return time_slices(pid) == before


def test_idle_connections_wake_nobody_and_ended_ones_leave_no_descriptor(node: StandIn) -> None:
    process = psutil.Process(node.process.pid)
    first = Peer(node)
    first.hello("first")
    assert upload(first, BODY.tobytes()) == cm.Accepted("digits", 3)
    before = process.num_fds()
    peers = [Peer(node) for _ in range(10)]
    for number, peer in enumerate(peers):
        peer.hello(f"p{number}")
    end_s = time.monotonic() + WAIT_S
    while not at_rest(process.pid):  # what was begun may still have to be done; a poll never rests so long
        assert time.monotonic() < end_s
    for peer in peers:
        peer.close()
    node.wait_for(gm.ClientLeft, 10)
    assert process.num_fds() == before
    first.close()


@pytest.mark.parametrize("unix", [False, True])
@pytest.mark.parametrize("when", ["it is to be granted", "its body stands still"])
def test_what_a_client_left_behind_on_a_connection_ends_when_it_has_come_over_another(
    node: StandIn, unix: bool, when: str
) -> None:
    """Its end of the first one may be cut off: nothing says that the rest will not come."""
    peer = Peer(node, unix)
    peer.hello()
    replaced = cm.Refusal("replaced", "client", "client 'c1' submits over another connection", "digits")
    if when == "it is to be granted":
        node.holding_back = []
        peer.send(submit())
        node.deliver(node.wait_for(gm.Admit).conn, replaced)
    else:
        peer.send(submit())
        assert isinstance(peer.receive(), cm.Go)
        peer.raw(BODY.tobytes()[:100])
        node.deliver(node.wait_for(gm.Admit).conn, replaced)
        assert node.wait_for(gm.Aborted).reason == "the client has come over another connection"
    node.wait_for(gm.ClientLeft)
    peer.close()


def test_what_still_comes_of_a_body_may_come(node: StandIn) -> None:
    peer = Peer(node)
    peer.hello()
    peer.send(submit())
    assert isinstance(peer.receive(), cm.Go)
    peer.raw(BODY.tobytes()[:100])
    node.deliver(node.wait_for(gm.Admit).conn, cm.Refusal("replaced", "client", "by another", "digits"))
    assert isinstance(peer.receive(), cm.Refusal)
    peer.raw(BODY.tobytes()[100:])
    assert peer.receive() == cm.Accepted("digits", 3)
    peer.close()


@pytest.mark.parametrize("name", ["c1\n", "\nc1", "c 1", "c\x1b[2J", "é"])
def test_a_name_that_could_be_taken_for_another_is_refused(node: StandIn, name: str) -> None:
    peer = Peer(node)
    peer.send(cm.Hello(cm.PROTOCOL_VERSION, name))
    refusal = peer.receive()
    assert isinstance(refusal, cm.Refusal) and refusal.code == "protocol" and "client" in refusal.text
    assert peer.receive() is None
    peer.close()
