"""The quotas of a real gateway: connections of a client and of an address, requests, bytes of a client and of a job."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from gateway_standin import Peer, StandIn

from lifl.core.protocol import client as cm
from lifl.core.protocol import gateway as gm
from lifl.core.protocol.frames import encode
from lifl.core.schema import Layout, TensorSpec

LAYOUT = Layout([TensorSpec("w", "float32", (300,))])
AT_ONCE = "import lifl.core.limits as c; c.UNGREETED_S = 0.0"


@contextmanager
def gateway(job_bytes_per_s: int = 0, settings: str = "pass", **quotas: int) -> Iterator[StandIn]:
    made = StandIn(settings=settings, **quotas)
    made.open_job("digits", LAYOUT, job_bytes_per_s)
    made.open_job("other", LAYOUT)
    try:
        yield made
    finally:
        made.close()


def submit(peer: Peer, number: int, job: str = "digits") -> None:
    peer.send(cm.Submit(job, number, 1.0, LAYOUT.data_bytes, LAYOUT.tensors))


def upload(peer: Peer, number: int, job: str = "digits") -> None:
    submit(peer, number, job)
    assert isinstance(peer.receive(), cm.Go)
    peer.raw(bytes(LAYOUT.data_bytes))
    assert peer.receive() == cm.Accepted(job, number)


def test_a_client_has_no_more_connections_than_its_quota_which_the_refusal_names() -> None:
    with gateway(connections_per_client=2) as node:
        peers = [Peer(node) for _ in range(4)]
        for peer in peers[:2]:
            peer.hello("c1")
        peers[2].send(cm.Hello(cm.PROTOCOL_VERSION, "c1"))
        refusal = peers[2].receive()
        assert isinstance(refusal, cm.Refusal)
        assert (refusal.code, refusal.field) == ("quota", "connections_per_client")
        assert peers[2].receive() is None
        told = node.wait_for(gm.ClientRefused)
        assert (told.code, told.field) == ("quota", "connections_per_client")
        peers[3].hello("c2")
        upload(peers[3], 1)
        upload(peers[0], 2)
        for peer in peers:
            peer.close()


def test_an_address_has_no_more_connections_than_its_quota_and_the_socket_is_none() -> None:
    with gateway(connections_per_address=2) as node:
        peers = [Peer(node) for _ in range(2)]
        for number, peer in enumerate(peers):
            peer.hello(f"c{number}")
        more = Peer(node)
        refusal = more.receive()
        assert isinstance(refusal, cm.Refusal)
        assert (refusal.code, refusal.field) == ("quota", "connections_per_address")
        local = [Peer(node, unix=True) for _ in range(3)]
        for number, peer in enumerate(local):
            peer.hello(f"local{number}")
        for peer in (*peers, more, *local):
            peer.close()


def test_connections_that_say_nothing_give_way_to_one_that_does() -> None:
    with gateway(settings=AT_ONCE, connections_max=3) as node:
        greeted = Peer(node)
        greeted.hello("c1")
        silent = [Peer(node) for _ in range(6)]
        assert [peer.receive() for peer in silent[:4]] == [None] * 4  # each newcomer ended the oldest
        honest = Peer(node)
        honest.hello("c2")
        upload(honest, 1)
        upload(greeted, 2)
        because = node.wait_for(gm.Disconnected).reason
        assert "did not say Hello" in because
        for peer in (greeted, honest, *silent):
            peer.close()


@pytest.mark.parametrize("whose", ["client", "job"])
def test_what_is_beyond_a_rate_of_bytes_waits_and_slows_no_other(whose: str) -> None:
    rates = {"client_bytes_per_s": 1} if whose == "client" else {}
    with gateway(1 if whose == "job" else 0, **rates) as node:
        slow, other = Peer(node), Peer(node)
        slow.hello("c1")
        other.hello("c2")
        upload(slow, 1)
        submit(slow, 2)
        upload(other, 1, "other")  # another client's, in another job
        assert slow.is_quiet()
        assert node.count(gm.Admit) == 2
        assert node.live() == 2  # nothing is held for what waits
        node.send(gm.HangUp())
        assert slow.receive() is None
        slow.close()
        other.close()


def test_models_count_as_bytes_too() -> None:
    with gateway(client_bytes_per_s=1) as node:
        node.put_model(bytes(LAYOUT.data_bytes))
        peer = Peer(node)
        peer.hello("c1")
        peer.raw(encode(cm.GetModel("digits", 1)) * 2)
        assert isinstance(peer.receive(), cm.Model)
        peer.read_exactly(LAYOUT.data_bytes)
        node.wait_for(gm.ModelSent)
        assert peer.is_quiet()
        assert node.count(gm.WantModel) == 1
        peer.close()


def test_what_is_written_through_shared_memory_has_no_rate() -> None:
    with gateway(client_bytes_per_s=1) as node:
        peer = Peer(node, unix=True)
        assert peer.hello("c1", direct=True).direct
        for number in (1, 2, 3):
            submit(peer, number)
            go = peer.receive()
            assert isinstance(go, cm.Go)
            assert go.direct
            peer.send(cm.Filled("digits", number))
            peer.receive()
        peer.close()


def test_the_connections_of_a_client_share_its_requests() -> None:
    settings = "import lifl.core.limits as c; c.REQUESTS_PER_S = 1e-6; c.REQUESTS_BURST = 4"
    with gateway(settings=settings) as node:
        peers = [Peer(node) for _ in range(3)]
        for peer, name in zip(peers, ("c1", "c1", "c2"), strict=True):
            peer.hello(name)
        for peer in peers[:2]:
            peer.raw(encode(cm.Join("digits")) * 100)
        node.wait_for(gm.ClientJoined, 4)
        upload(peers[2], 1)
        assert node.count(gm.ClientJoined) == 4
        for peer in peers:
            peer.close()
