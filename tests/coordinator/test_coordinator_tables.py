"""The coordinator's tables: complete, and each entry of them taken by some test of this folder."""

from __future__ import annotations

import typing
from typing import Any

import pytest

from lifl.core.config.job import SelectionSection
from lifl.core.coordinator import branch_record, recovery, round
from lifl.core.coordinator.branch_record import BranchRecord, BranchState
from lifl.core.coordinator.commits import Commits
from lifl.core.coordinator.coordinator import (
    ANY,
    CALLS,
    COMMITS,
    COORDINATOR,
    COPY,
    EVALUATION,
    HANDLERS,
    JOB,
    ROUND,
    SESSION,
    Coordinator,
)
from lifl.core.coordinator.copies import Copies
from lifl.core.coordinator.evaluation import Evaluation
from lifl.core.coordinator.job import Job
from lifl.core.coordinator.recovery import REACTIONS, News, Recovery
from lifl.core.coordinator.round import Phase, Round
from lifl.core.coordinator.round_runner import RoundRunner
from lifl.core.coordinator.session import Session
from lifl.core.coordinator.user_calls import FunctionCalls
from lifl.core.errors import LocalFault
from lifl.core.protocol import cluster as p
from lifl.core.protocol import commands as o


def test_each_message_of_a_node_but_those_of_the_control_channel_itself_has_a_handler_that_is_there() -> None:
    channel = {p.Heartbeat, p.Leaving, p.Revoked, p.BearersTold, p.FolderSeen}
    assert set(HANDLERS) == set(typing.get_args(p.ToCoordinator)) - channel
    assert set(typing.get_args(o.Report)) <= set(HANDLERS)
    takers = {COORDINATOR: Coordinator, JOB: Job, SESSION: Session, ROUND: RoundRunner, COMMITS: Commits, COPY: Copies}
    takers |= {EVALUATION: Evaluation, CALLS: FunctionCalls}
    for taker, method, sayer in HANDLERS.values():
        assert (sayer == ANY) == (taker == COORDINATOR), "who may say what is about a job"
        assert callable(getattr(takers[taker], method))


def test_each_reaction_is_there_and_states_that_are_settled_have_none() -> None:
    assert set(REACTIONS) == set(BranchState)
    for state, reactions in REACTIONS.items():
        assert all(callable(getattr(Recovery, action)) for action in reactions.values())
        assert set(reactions) <= set(News)
        if not branch_record.TRANSITIONS[state]:
            assert not reactions


@pytest.mark.parametrize("state", BranchState)
@pytest.mark.parametrize("to", BranchState)
def test_a_branch_that_cannot_go_there_stays_where_it_is(state: BranchState, to: BranchState) -> None:
    record = BranchRecord(1, 2, 3, state)
    if to in branch_record.TRANSITIONS[state]:
        return
    with pytest.raises(LocalFault, match=f"branch 1 cannot go from {state.value} to {to.value}"):
        record.move(to)
    assert record.state is state


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("to", Phase)
def test_a_round_that_cannot_go_there_stays_where_it_is(phase: Phase, to: Phase) -> None:
    round_ = Round(1, 1, SelectionSection(clients_per_round=1), 0.0, phase)
    if to in round.TRANSITIONS[phase]:
        return
    with pytest.raises(LocalFault, match=f"round 1 cannot go from {phase.value} to {to.value}"):
        round_.move(to)
    assert round_.phase is phase


# ---- these look back on all tests of this folder: see conftest.py ----------------------------------------------------


def test_every_arrow_of_a_round_is_taken_by_a_test(taken: dict[str, set[Any]]) -> None:
    assert taken["phase"] == {(begin, end) for begin, ends in round.TRANSITIONS.items() for end in ends}


def test_every_arrow_of_a_branch_is_taken_by_a_test(taken: dict[str, set[Any]]) -> None:
    assert taken["branch"] == {(begin, end) for begin, ends in branch_record.TRANSITIONS.items() for end in ends}


def test_every_reaction_to_news_of_a_branch_is_taken_by_a_test(taken: dict[str, set[Any]]) -> None:
    cells = {(state, news) for state, reactions in recovery.REACTIONS.items() for news in reactions}
    assert not cells - taken["news"]


def test_every_message_is_handled_in_a_test(taken: dict[str, set[Any]]) -> None:
    assert not set(HANDLERS) - taken["handler"]
