"""A connection that floods, sends slowly or does not read is slowed or cut before it slows others."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from gateway_standin import Peer, StandIn

from lifl.core import limits
from lifl.core.protocol import client as cm
from lifl.core.protocol import gateway as gm
from lifl.core.protocol.frames import encode
from lifl.core.schema import Layout, TensorSpec
from lifl.node.gateway.budgets import LargeFrames, Pace, WaitingBytes

MANY = Layout([TensorSpec(f"layer.{index}.weight", "float32", (2, index % 7 + 1)) for index in range(10_000)])
SUBMIT = cm.Submit("large", 1, 1.0, MANY.data_bytes, MANY.tensors)
"""A frame of 300 kB, as a client sends it that knows no digests."""
LIMITS = "import lifl.core.limits as c"


@contextmanager
def gateway(settings: str = "pass", connections_max: int = 64) -> Iterator[StandIn]:
    standin = StandIn(settings=f"{LIMITS}; {settings}", connections_max=connections_max)
    standin.open_job("large", MANY)
    try:
        yield standin
    finally:
        standin.close()


def honest(node: StandIn, name: str = "honest") -> None:
    """A client's update is taken."""
    peer = Peer(node)
    peer.hello(name)
    peer.send(SUBMIT)
    assert isinstance(peer.receive(), cm.Go)
    peer.raw(bytes(MANY.data_bytes))
    assert peer.receive() == cm.Accepted("large", 1)
    peer.close()


def slow_sender(node: StandIn, name: str, sent_bytes: int) -> Peer:
    peer = Peer(node)
    peer.hello(name)
    peer.raw(encode(SUBMIT)[:sent_bytes])
    return peer


# ---- long frames -----------------------------------------------------------------------------------------------------


def test_slow_senders_of_long_frames_hold_nobody() -> None:
    with gateway() as node:
        slow = [slow_sender(node, f"slow{index}", 100_000) for index in range(24)]
        honest(node)
        assert all(peer.is_quiet() for peer in slow)
        for peer in slow:
            peer.close()


def test_of_too_much_in_long_frames_who_has_held_most_for_longest_is_cut() -> None:
    with gateway("c.LARGE_FRAMES_BYTES_MAX = 800_000") as node:
        slow = [slow_sender(node, f"slow{index}", 280_000) for index in range(2)]
        while_small = slow_sender(node, "small", 70_000)
        honest(node)
        cut = node.wait_for(gm.Disconnected)
        assert cut.client in ("slow0", "slow1")
        assert "long frames of all clients" in cut.reason
        assert node.count(gm.Disconnected) == 1
        for peer in (*slow, while_small):
            peer.close()


class Cut:
    def __init__(self) -> None:
        self.because = ""

    def cut(self, because: str) -> None:
        self.because = because


def test_the_books_of_long_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LARGE_FRAMES_BYTES_MAX", 100)
    frames, old, large, young = LargeFrames(), Cut(), Cut(), Cut()
    frames.add(old, 20, 0.0)  # 20 bytes for 10 s
    frames.add(large, 70, 5.0)  # 70 bytes for 5 s
    frames.add(young, 10, 10.0)
    assert frames.total == 100
    frames.add(young, 1, 10.0)
    assert (old.because, young.because) == ("", "")
    assert "101 bytes" in large.because
    assert frames.total == 31
    frames.forget(old)
    frames.forget(old)
    assert frames.total == 11


# ---- small requests --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flood", [cm.Join("large"), cm.Leave("large"), cm.GetModel("large", 1)])
def test_who_asks_without_end_is_slowed_and_others_are_not(flood: cm.FromClient) -> None:
    with gateway("c.REQUESTS_PER_S = 1e-6; c.REQUESTS_BURST = 5") as node:
        node.put_model(bytes(MANY.data_bytes))
        peer = Peer(node)
        peer.hello("flood")
        peer.raw(encode(flood) * 1000)
        for index in range(8):
            honest(node, f"honest{index}")
        heard = [each for each in node.said if isinstance(each, gm.ClientJoined | gm.ClientLeft | gm.WantModel)]
        assert sum(each.job == "large" for each in heard) <= 5
        peer.close()


def test_who_takes_part_is_not_slowed() -> None:
    with gateway("c.REQUESTS_PER_S = 1e-6; c.REQUESTS_BURST = 5") as node:
        node.put_model(bytes(MANY.data_bytes))
        peer = Peer(node)
        peer.hello("c1", digests=True)
        for number in range(1, 41):
            peer.send(cm.GetModel("large", number, digest=MANY.digest))
            assert isinstance(peer.receive(), cm.Model)
            peer.read_exactly(MANY.data_bytes)
            peer.send(cm.Submit("large", number, 1.0, MANY.data_bytes, (), digest=MANY.digest))
            assert isinstance(peer.receive(), cm.Go)
            peer.raw(bytes(MANY.data_bytes))
            assert peer.receive() == cm.Accepted("large", number)
            node.arena.free(node.accepted["large", number, "c1"])
        peer.close()


def test_a_slowed_connection_ends_at_once_when_it_must() -> None:
    with gateway("c.REQUESTS_PER_S = 1e-6; c.REQUESTS_BURST = 1") as node:
        peer = Peer(node)
        peer.hello("flood")
        peer.raw(encode(cm.Join("large")) * 3)
        node.wait_for(gm.ClientJoined)
        node.send(gm.HangUp())
        assert peer.receive() is None
        node.wait_for(gm.ClientLeft)
        peer.close()


def test_the_pace() -> None:
    pace = Pace(0.0)
    assert [pace.wait_s(0.0) for _ in range(limits.REQUESTS_BURST)] == [0.0] * limits.REQUESTS_BURST
    assert pace.wait_s(0.0) == pytest.approx(1 / limits.REQUESTS_PER_S)
    assert pace.wait_s(0.0) == pytest.approx(2 / limits.REQUESTS_PER_S)
    pace.taken()
    assert pace.wait_s(0.0) == 0.0
    assert pace.wait_s(1000.0) == 0.0
    assert sum(pace.wait_s(1000.0) == 0.0 for _ in range(1000)) == limits.REQUESTS_BURST - 1


# ---- what waits ------------------------------------------------------------------------------------------------------


def test_when_too_much_waits_for_all_together_whom_most_waits_for_is_cut() -> None:
    """Each alone is within what may wait for one."""
    with gateway("c.ALL_WAITING_BYTES_MAX = 3 << 20") as node:
        text = "x" * 4000
        deaf = []
        for index, share in enumerate((1, 2)):
            peer = Peer(node)
            peer.hello(f"deaf{index}")
            peer.send(cm.Join("large"))
            node.wait_for(gm.ClientJoined, index + 1)
            deaf.append((peer, share))
        reads = Peer(node)
        reads.hello("reads")
        reads.send(cm.Join("large"))
        node.wait_for(gm.ClientJoined, 3)
        sent = 0
        while not node.count(gm.Disconnected):
            for index, (_peer, share) in enumerate(deaf):
                for _ in range(share * 20):
                    node.deliver(node.conns[f"deaf{index}"], cm.RoundOver("large", 1, text))
            node.deliver(node.conns["reads"], cm.RoundOver("large", 1, text))
            assert isinstance(reads.receive(), cm.RoundOver)
            sent += 1
            assert sent < 2000
        cut = node.wait_for(gm.Disconnected)
        assert cut.client == "deaf1"
        assert "wait for all clients" in cut.reason
        for peer in (*(peer for peer, _ in deaf), reads):
            peer.close()


def test_the_books_of_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ALL_WAITING_BYTES_MAX", 100)
    waiting, few, many = WaitingBytes(), Cut(), Cut()
    waiting.add(few, 30)
    waiting.add(many, 70)
    waiting.add(few, -20)
    waiting.add(few, 30)
    assert "110 bytes" in many.because
    assert (few.because, waiting.total) == ("", 40)
    waiting.add(few, -40)
    waiting.forget(many)
    assert waiting.total == 0


def test_a_schema_that_waits_for_many_is_kept_once() -> None:
    """A thousand clients of a model of 10,000 tensors would else take 300 MB."""
    with gateway("c.ALL_WAITING_BYTES_MAX = 1 << 20") as node:
        peers = []
        for index in range(12):
            peer = Peer(node)
            peer.hello(f"c{index}")
            peer.send(cm.Join("large"))
            node.wait_for(gm.ClientJoined, index + 1)
            peers.append(peer)
        for number in range(1, 21):
            for index in range(12):
                node.select(f"c{index}", "large", number)
        for peer in peers:
            for _number in range(1, 21):
                head = struct.unpack("<I", peer.read_exactly(4))[0]
                assert head > 200_000
                peer.read_exactly(head)
            peer.close()
        assert node.count(gm.Disconnected) == 0
