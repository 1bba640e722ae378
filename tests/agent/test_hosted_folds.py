"""A session of folds on a node of a cluster that another one coordinates, or may: it is its own node's alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from agent_scene import Arena
from test_agent_folds import FOLD, HOME, HOST, SMALL, TENSORS, Home, selected

from lifl.core import effects as fx
from lifl.core import events as ev
from lifl.core.config.job import fold_job, parse_job
from lifl.core.coordinator.job_spec import JobSpec
from lifl.core.coordinator.nodes import Node
from lifl.core.engine import Engine, hosted_bytes
from lifl.core.fields import Ticket
from lifl.core.ids import HOSTED_MIN, Kind
from lifl.core.limits import HOST_GRACE_S
from lifl.core.protocol import client as cm
from lifl.core.protocol import cluster as p
from lifl.core.protocol import folds as fm
from lifl.core.protocol import gateway as gm
from lifl.core.protocol.contribution import Contribution
from lifl.core.schema import Layout, TensorSpec
from lifl.core.trust.ticket import credential_of

NUMBER = HOSTED_MIN + 5
PROMOTED = ev.Promoted(5, b"seed", ())
UP, MOVED = ev.CoordinatorUp(stranger=True), ev.CoordinatorUp(stranger=True, moved=True)
COORDINATORS: dict[str, Sequence[Any]] = {
    "there is none": (),
    "another one coordinates": (UP,),
    "it is lost, and another one comes": (UP, ev.CoordinatorDown(), MOVED),
    "the others hold this node for dead": (UP, ev.LifeEnded(), MOVED),
    "this one comes to coordinate": (UP, ev.CoordinatorDown(), PROMOTED),
    "this one coordinates no longer": (PROMOTED, ev.Demoted(), MOVED),
}


class Member(Home):
    """A node that does not coordinate from its start on."""

    def __init__(self, arena: Arena | None = None) -> None:
        super().__init__(arena=arena)
        self.engine = Engine(self.arena, Node(HOME, "home:1", 8.0, SMALL, 4), 30.0, 4, coordinates=False)
        self.facts = ev.JobFacts(NUMBER, fold_job("s", 2, "fedavg", {}), TENSORS, (), "")


@pytest.mark.parametrize("what", COORDINATORS.values(), ids=COORDINATORS)
def test_whoever_coordinates_a_fold_goes_on_with_what_was_accepted(what: Sequence[Any]) -> None:
    member = Member()
    if PROMOTED in what and what[0] is not PROMOTED:
        member.do(UP)
    member.is_hosted()
    member.opens()
    assert member.adds("a") == [cm.Accepted("s", 1)]
    for event in what:
        said = member.do(event)
        assert not [each for each in said if isinstance(each, fx.DropJob)]
        for report in (each.report for each in said if isinstance(each, fx.SendCoordinator)):
            if isinstance(report, p.Inventory):
                assert NUMBER not in (*report.jobs, *report.orphans), "who coordinates would have it closed"
    member.do(gm.ClientLeft(HOST))
    assert member.told(ev.SessionHosted(HOST, "s"))
    member.opens()
    assert member.adds("b") == [cm.Accepted("s", 1)]
    done = fm.FoldDone("s", FOLD, 2.0, {"loss": 2.0}, ("a", "b"))
    assert fm.FoldClosing("s", FOLD, 2) in member.told(gm.FoldAsked(HOST, "s", FOLD, "close"))
    assert member.works("a", "b") == [done]
    assert fx.DropJob("s", NUMBER) in member.do(gm.SessionEnded(HOST, "s"))
    assert not member.arena.objects and not member.engine.jobs and not member.engine.agent.replicas


def test_nothing_of_a_fold_is_said_to_who_coordinates() -> None:
    member = Member()
    member.do(UP)
    member.is_hosted()
    member.opens()
    ticket = Ticket(credential_of("", "s", FOLD, "c9", 1000), 1000)
    said = member.do(ev.SessionHosted(HOST, "s", "secret"))
    said += member.do(gm.PartTaken(9, "c9", "s", FOLD, ticket))
    for client in ("a", "b"):
        member.adds(client)
    said += member.do(gm.FoldAsked(HOST, "s", FOLD, "close"))
    said += member.do(gm.SessionEnded(HOST, "s"))
    assert not [each for each in said if isinstance(each, fx.SendCoordinator | fx.SendNode)]


def test_who_coordinates_knows_what_folds_have_of_its_own_arena_and_of_others_by_their_heartbeats() -> None:
    member = Member()
    member.do(UP)
    assert hosted_bytes(member.engine) == 0
    member.is_hosted()
    needs = member.session.spec.bytes_min()
    assert hosted_bytes(member.engine) == needs
    member.do(ev.CoordinatorDown())
    member.do(PROMOTED)
    coordinator = member.engine.coordinating()
    assert coordinator.nodes.hosted_at_home == needs
    member.do(ev.NodeUp(2, "b:1", 8.0, SMALL, 4, 1, p.KNOWS))
    member.do(ev.NodeLoadTold(2, 8.0, 0.0, 0.0, 1000))
    there = coordinator.nodes.get(2)
    assert there is not None and there.hosted_bytes == 1000
    assert {node.arena_bytes for node in coordinator.nodes.facts(0.0)} == {SMALL}, "as if they were over"
    member.do(gm.SessionEnded(HOST, "s"))
    assert coordinator.nodes.hosted_at_home == hosted_bytes(member.engine) == 0


def test_a_job_in_line_begins_when_the_folds_at_home_are_over() -> None:
    member = Member()
    member.do(PROMOTED)
    member.is_hosted()
    queue = member.engine.coordinating().queue
    config = parse_job(
        {"job": {"name": "j", "rounds": 1}, "model": {"path": "m"}, "selection": {"clients_per_round": 2}}
    )
    large = (TensorSpec("w", "float32", (queue.total_bytes // 4 // 16,)),)
    need = JobSpec(1, config, Layout(large), (), "/f").bytes_min()
    assert need < queue.total_bytes
    queue.total_bytes = need + member.session.spec.bytes_min() - 1
    member.do(ev.JobSubmitted(ev.JobFacts(1, config, large, (), "/f")))
    assert member.engine.jobs["j"].queued
    member.do(gm.SessionEnded(HOST, "s"))
    assert not member.engine.jobs["j"].queued


def test_a_host_that_has_gone_ends_its_session_and_a_gateway_that_was_lost_is_a_host_that_has_gone() -> None:
    member = Member()
    member.is_hosted()
    member.do(gm.GatewayLost(), 50.0)
    assert member.session.due_s == 50.0 + HOST_GRACE_S
    assert fx.DropJob("s", NUMBER) in member.do(ev.Tick(), 50.0 + HOST_GRACE_S)


def test_who_has_a_standing_ticket_and_leaves_is_forgotten_there_too() -> None:
    member = Member()
    member.do(ev.JobSubmitted(member.facts))
    member.do(ev.SessionHosted(HOST, "s", "secret"))
    member.do(gm.PartTaken(9, "c9", "s", 0, Ticket(credential_of("secret", "s", 0, "c9", 1000), 1000)))
    member.do(gm.ClientLeft(9))
    assert not selected(member.do(gm.FoldAsked(HOST, "s", FOLD, "open", 2)))


def test_a_session_is_cancelled_by_its_name_where_it_is() -> None:
    member = Member()
    member.is_hosted()
    assert fx.DropJob("s", NUMBER) in member.do(ev.JobCancelled("s"))


def test_after_a_restart_a_fold_goes_on_with_what_was_accepted() -> None:
    arena = Arena(SMALL)
    update = arena.seal(arena.alloc(Kind.UPDATE, NUMBER, FOLD, 4096, 1024), "a")
    member = Member(arena)
    found = ((update, Kind.UPDATE, FOLD, [Contribution("a", 1.0)]),)
    member.do(ev.JobResumed(member.facts, ev.JobHistory(-1, {}, {}), found))
    member.do(UP)
    assert member.told(ev.SessionHosted(HOST, "s"))
    member.do(gm.FoldAsked(HOST, "s", FOLD, "open", 2))
    member.opens()
    assert member.adds("b") == [cm.Accepted("s", 1)]
    assert fm.FoldClosing("s", FOLD, 2) in member.told(gm.FoldAsked(HOST, "s", FOLD, "close"))
