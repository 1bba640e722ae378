"""Small models, which the gateway sends from a copy of its own until it is told that they are others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest
from gateway_standin import WAIT_S, Peer, StandIn

from lifl.core.ids import Key
from lifl.core.limits import SMALL_BODY_BYTES
from lifl.core.planning.client_list import Listed
from lifl.core.protocol import client as cm
from lifl.core.protocol import gateway as gm
from lifl.core.protocol.small_models import ModelChanged, ModelServed
from lifl.core.schema import Layout, TensorSpec

TENSORS = (TensorSpec("w", "uint8", (1024,)),)
JOB = "digits"
OLD, NEW = b"\1" * 1024, b"\2" * 1024


@pytest.fixture
def node() -> Iterator[StandIn]:
    with closing(StandIn()) as standin:
        standin.open_job(JOB, Layout(TENSORS))
        yield standin


@contextmanager
def peer_of(node: StandIn, name: str) -> Iterator[Peer]:
    peer = Peer(node)
    peer.hello(name)
    try:
        yield peer
    finally:
        peer.close()


def body(peer: Peer, number: int = 3) -> bytes:
    peer.send(cm.GetModel(JOB, number))
    return sent(peer, number)


def sent(peer: Peer, number: int = 3) -> bytes:
    assert peer.receive() == cm.Model(JOB, number, TENSORS, len(OLD))
    return peer.read_exactly(len(OLD))


def asked(node: StandIn) -> list[gm.WantModel]:
    return [message for message in node.said if isinstance(message, gm.WantModel)]


def asks_first(node: StandIn, peer: Peer) -> gm.WantModel:
    """Have a client ask, and nobody answer."""
    node.unanswered = gm.WantModel
    node.put_model(OLD)
    peer.send(cm.GetModel(JOB, 3))
    return node.wait_for(gm.WantModel)


def test_a_models_copy_goes_to_clients_on_the_jobs_list_alone(node: StandIn) -> None:
    node.open_job("listed", Layout(TENSORS), listed=Listed(patterns=("hospital-*",)))
    node.put_model(OLD)
    with peer_of(node, "hospital-1") as one, peer_of(node, "stranger") as other:
        for _ in range(2):
            one.send(cm.GetModel("listed", 3))
            assert one.receive() == cm.Model("listed", 3, TENSORS, len(OLD))
            assert one.read_exactly(len(OLD)) == OLD
            for direct in (False, True):
                other.send(cm.GetModel("listed", 3, direct=direct))
                refusal = other.receive()
                assert isinstance(refusal, cm.Refusal)
                assert (refusal.code, refusal.job, refusal.round) == ("not-listed", "listed", 3)


def test_lifld_is_asked_once_until_the_model_is_another_one(node: StandIn) -> None:
    node.put_model(OLD)
    with peer_of(node, "c1") as one, peer_of(node, "c2") as two:
        assert body(one) == body(two) == body(one) == OLD
        assert len(asked(node)) == 1
        assert node.wait_for(gm.ModelSent) == gm.ModelSent(node.wait_for(gm.WantModel).conn, node.model.pack(), 0)
        node.put_model(NEW)
        node.send(ModelChanged(JOB))
        node.send(gm.AskStats())
        node.wait_for(gm.GatewayStats)
        assert body(one, 4) == body(two, 4) == NEW
        assert len(asked(node)) == 2

    def told() -> int:
        return sum(message.sent_bytes for message in node.said if isinstance(message, ModelServed))

    with node.changed:
        assert node.changed.wait_for(lambda: told() == 5 * len(OLD), WAIT_S)


def test_another_round_is_asked_for_and_takes_the_place_of_the_last(node: StandIn) -> None:
    node.put_model(OLD)
    with peer_of(node, "c1") as one:
        for number in (3, 4, 3):
            assert body(one, number) == OLD
        assert [each.round for each in asked(node)] == [3, 4, 3]


def test_who_asks_while_another_is_not_answered_waits_for_that_and_then_asks_for_himself(node: StandIn) -> None:
    """The first is refused, the second is granted it, and the third is sent the second's copy."""
    node.unanswered = gm.WantModel
    node.put_model(OLD)
    with peer_of(node, "c1") as one, peer_of(node, "c2") as two, peer_of(node, "c3") as three:
        one.send(cm.GetModel(JOB, 3))
        first = node.wait_for(gm.WantModel)
        for peer in (two, three):
            peer.send(cm.GetModel(JOB, 3))
        node.send(gm.AskStats())
        node.wait_for(gm.GatewayStats)
        assert [each.conn for each in asked(node)] == [first.conn]
        node.deliver(first.conn, cm.Refusal("round-over", "round", "gone", JOB, 3))
        assert isinstance(one.receive(), cm.Refusal)
        second = node.wait_for(gm.WantModel, 2)
        assert second.conn != first.conn
        node.send(gm.ModelGranted(second.conn, JOB, 3, node.model.pack()))
        assert sent(two) == sent(three) == OLD
        assert len(asked(node)) == 2


def test_a_model_that_is_another_one_before_it_was_granted_is_no_copy(node: StandIn) -> None:
    with peer_of(node, "c1") as one, peer_of(node, "c2") as two:
        first = asks_first(node, one)
        node.send(ModelChanged(JOB))
        node.send(gm.ModelGranted(first.conn, JOB, 3, node.model.pack()))
        assert sent(one) == OLD
        two.send(cm.GetModel(JOB, 3))
        node.put_model(NEW)
        node.send(gm.ModelGranted(node.wait_for(gm.WantModel, 2).conn, JOB, 3, node.model.pack()))
        assert sent(two) == NEW


def test_who_is_sent_away_while_he_asks_holds_nobody_up(node: StandIn) -> None:
    with peer_of(node, "c1") as one, peer_of(node, "c2") as two:
        first = asks_first(node, one)
        two.send(cm.GetModel(JOB, 3))
        node.send(gm.HangUp(first.conn))
        node.send(gm.ModelGranted(node.wait_for(gm.WantModel, 2).conn, JOB, 3, node.model.pack()))
        assert sent(two) == OLD


@pytest.mark.parametrize("more", [0, 1])
def test_one_that_is_larger_is_asked_for_each_time(more: int) -> None:
    layout = Layout((TensorSpec("w", "uint8", (SMALL_BODY_BYTES + more,)),))
    with closing(StandIn()) as node:
        node.open_job(JOB, layout)
        node.put_model(bytes(layout.data_bytes))
        with peer_of(node, "c1") as one:
            for _ in range(2):
                one.send(cm.GetModel(JOB, 3))
                assert isinstance(one.receive(), cm.Model)
                one.read_exactly(layout.data_bytes)
            assert len(asked(node)) == 1 + more


def test_a_model_that_is_gone_when_it_is_granted_is_refused(node: StandIn) -> None:
    node.unanswered = gm.WantModel
    with peer_of(node, "c1") as one:
        one.send(cm.GetModel(JOB, 3))
        node.send(gm.ModelGranted(node.wait_for(gm.WantModel).conn, JOB, 3, Key(1, 2, 3).pack()))
        answer = one.receive()
        assert isinstance(answer, cm.Refusal) and answer.code == "round-over"
