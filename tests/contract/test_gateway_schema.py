"""What a gateway adds to selections and models: a schema once for each client that knows digests, whole for others."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import numpy as np
import pytest
from gateway_standin import Peer, StandIn

from lifl.client.client import Client
from lifl.client.stream import Stream
from lifl.core.protocol import client as cm
from lifl.core.protocol import gateway as gm
from lifl.core.protocol.frames import encode
from lifl.core.schema import Layout, TensorSpec

MANY = Layout([TensorSpec(f"layer.{index}.weight", "float32", (2, index % 7 + 1)) for index in range(10_000)])
BODY = bytes(MANY.data_bytes)


@pytest.fixture
def node() -> Iterator[StandIn]:
    standin = StandIn()
    standin.open_job("large", MANY)
    try:
        yield standin
    finally:
        standin.close()


def joined(node: StandIn, name: str, digests: bool) -> Peer:
    peer = Peer(node)
    peer.hello(name, digests=digests)
    peer.send(cm.Join("large"))
    with node.changed:
        assert node.changed.wait_for(lambda: name in node.conns, 60)
    return peer


def test_who_knows_digests_is_told_the_tensors_once(node: StandIn) -> None:
    peer = joined(node, "c1", digests=True)
    node.select("c1", "large", 1, rate=0.5)
    first = peer.receive()
    assert first == cm.Selected("large", 1, 60.0, MANY.tensors, MANY.data_bytes, {"rate": 0.5}, "", MANY.digest)
    node.select("c1", "large", 2, rate=0.5)
    assert peer.receive() == msgspec.structs.replace(first, round=2, tensors=())
    node.put_model(BODY)
    peer.send(cm.GetModel("large", 2, digest=MANY.digest))
    assert peer.receive() == cm.Model("large", 2, (), MANY.data_bytes, MANY.digest)
    assert peer.read_exactly(MANY.data_bytes) == BODY
    peer.close()


def test_others_are_told_them_each_time_and_nothing_that_they_do_not_know(node: StandIn) -> None:
    peer = joined(node, "c1", digests=False)
    for number in (1, 2):
        node.select("c1", "large", number)
        assert peer.receive() == cm.Selected("large", number, 60.0, MANY.tensors, MANY.data_bytes)
    node.put_model(BODY)
    peer.send(cm.GetModel("large", 2))
    assert peer.receive() == cm.Model("large", 2, MANY.tensors, MANY.data_bytes)
    peer.close()


def test_of_an_earlier_version_no_byte_differs(node: StandIn) -> None:
    """Its decoder refuses a field that it does not know."""
    peer = joined(node, "c1", digests=False)
    node.select("c1", "large", 1)
    length = int.from_bytes(peer.read_exactly(4), "little")
    fields = msgspec.msgpack.decode(peer.read_exactly(length))
    assert set(fields) == {"type", "job", "round", "deadline_s", "tensors", "data_bytes", "options", "gateway"}
    peer.close()


def test_a_digest_announces_an_update_and_another_one_is_refused(node: StandIn) -> None:
    peer = joined(node, "c1", digests=True)
    announced = cm.Submit("large", 1, 1.0, MANY.data_bytes, (), digest=MANY.digest)
    assert len(encode(announced)) < 200
    peer.send(msgspec.structs.replace(announced, digest=bytes(32)))
    refusal = peer.receive()
    assert isinstance(refusal, cm.Refusal)
    assert (refusal.code, refusal.field) == ("wrong-schema", "digest")
    peer.send(announced)
    assert isinstance(peer.receive(), cm.Go)
    peer.raw(BODY)
    assert peer.receive() == cm.Accepted("large", 1)
    peer.close()


def test_a_selection_for_a_job_that_is_gone_ends_the_connection(node: StandIn) -> None:
    """The client comes again, and hears how it stands."""
    peer = joined(node, "c1", digests=True)
    node.send(gm.JobForget("large"))
    node.select("c1", "large", 1)
    assert peer.receive() is None
    assert "large" in node.wait_for(gm.Disconnected).reason
    peer.close()


@pytest.mark.parametrize("older", [False, True])
def test_a_client_sends_the_digest_where_the_node_knows_it(
    node: StandIn, older: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[cm.Submit] = []
    hellos: list[cm.Hello] = []
    said = Stream.send

    def spy(stream: Stream, message: cm.FromClient) -> None:
        if isinstance(message, cm.Hello):
            hellos.append(message)
            if older and message.knows:
                # What a node of an earlier version meets: a field that it does not know.
                stream._sock.sendall(encode(message).replace(b"\xa5knows", b"\xa5novel"))
                return
        if isinstance(message, cm.Submit):
            sent.append(message)
        said(stream, message)

    monkeypatch.setattr(Stream, "send", spy)
    node.put_model(BODY)
    node.react = lambda message: isinstance(message, gm.ClientJoined) and node.select("c1", "large", 1)
    with Client(node.tcp, job="large", client="c1") as client:
        round_ = next(client.rounds())
        assert round_.layout.tensors == MANY.tensors
        model = round_.model
        assert round_.submit({name: np.zeros_like(value) for name, value in model.items()}, 1.0).accepted
    assert [hello.knows for hello in hellos] == ([cm.KNOWS, ()] if older else [cm.KNOWS])
    assert len(sent) == 1
    assert (sent[0].tensors, sent[0].digest) == ((MANY.tensors, msgspec.UNSET) if older else ((), MANY.digest))
