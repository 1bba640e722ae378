"""What the gateway tells lifld of who comes and who is told no: each once, then how often."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from gateway_standin import WAIT_S, Peer, StandIn

from lifl.core.protocol import client as cm
from lifl.core.protocol import gateway as gm
from lifl.core.schema import Layout, TensorSpec

LAYOUT = Layout([TensorSpec("w", "float32", (4,))])
WINDOW = "import lifl.core.limits as c; c.AUDIT_WINDOW_S = {}; c.AUDIT_REFUSALS_MAX = 4; c.REQUESTS_PER_S = 1e9"


def standin(window_s: float) -> Iterator[StandIn]:
    made = StandIn(connections_max=2, settings=WINDOW.format(window_s))
    made.open_job("digits", LAYOUT)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def node() -> Iterator[StandIn]:
    """A gateway that tells no counts while a test runs."""
    yield from standin(3600.0)


@pytest.fixture
def quick() -> Iterator[StandIn]:
    """A gateway that tells counts after a short while."""
    yield from standin(0.5)


def told(node: StandIn) -> list[tuple[str, str, str, str, str, int]]:
    found = [message for message in node.said if isinstance(message, gm.ClientRefused)]
    return [(each.who, each.client, each.job, each.code, each.field, each.count) for each in found]


def asks(peer: Peer, job: str) -> None:
    peer.send(cm.Submit(job, 1, 1.0, LAYOUT.data_bytes, LAYOUT.tensors))
    assert isinstance(peer.receive(), cm.Refusal)


@pytest.mark.parametrize(("unix", "who"), [(False, "127.0.0.1"), (True, f"local uid={os.getuid()}")])
def test_lifld_is_told_who_says_hello(node: StandIn, unix: bool, who: str) -> None:
    peer = Peer(node, unix)
    peer.hello("c1")
    greeted = node.wait_for(gm.Greeted)
    assert greeted.who == who
    peer.send(cm.Join("digits"))
    assert node.wait_for(gm.ClientJoined).conn == greeted.conn
    peer.close()


def test_a_flood_of_equal_refusals_is_told_once(node: StandIn) -> None:
    peer = Peer(node)
    peer.hello("c1")
    for _ in range(200):
        asks(peer, "other")
    asks(peer, "another")
    node.wait_for(gm.ClientRefused, 2)
    assert told(node) == [("127.0.0.1", "c1", job, "unknown-job", "job", 1) for job in ("other", "another")]
    peer.close()


def test_what_was_counted_is_told_after_a_while(quick: StandIn) -> None:
    peer = Peer(quick)
    peer.hello("c1")
    for _ in range(200):
        asks(peer, "other")
    with quick.changed:
        assert quick.changed.wait_for(lambda: sum(each[-1] for each in told(quick)) == 200, WAIT_S), told(quick)
    assert {each[:-1] for each in told(quick)} == {("127.0.0.1", "c1", "other", "unknown-job", "job")}
    peer.close()


def test_what_lifld_refuses_is_noted_and_what_is_said_every_day_is_not(node: StandIn) -> None:
    peer = Peer(node)
    peer.hello("c1")
    peer.send(cm.Join("digits"))
    conn = node.wait_for(gm.ClientJoined).conn
    for code in ("round-over", "not-selected", "wrong-round", cm.USE_GATEWAY, cm.REPLACED):
        node.deliver(conn, cm.Refusal(code, "client", "no", "digits", 1))
        assert isinstance(peer.receive(), cm.Refusal)
    node.wait_for(gm.ClientRefused)
    assert told(node) == [("127.0.0.1", "c1", "digits", cm.REPLACED, "client", 1)]
    peer.close()


def test_strangers_are_noted_and_many_kinds_are_counted_together(quick: StandIn) -> None:
    for _ in range(3):
        peer = Peer(quick)
        peer.raw(b"\xff" * 64)
        assert isinstance(peer.receive(), cm.Refusal)
        peer.close()
        quick.wait_for(gm.Disconnected, _ + 1)
    peer = Peer(quick)
    peer.hello("c1")
    for number in range(20):
        asks(peer, f"job-{number}")
    with quick.changed:
        assert quick.changed.wait_for(lambda: sum(each[-1] for each in told(quick)) == 23, WAIT_S), told(quick)
    kinds = {each[:-1] for each in told(quick)}
    assert ("127.0.0.1", "", "", "protocol", "") in kinds
    assert ("others", "", "", "unknown-job", "") in kinds
    peer.close()
