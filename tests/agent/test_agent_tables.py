"""The agent's tables: complete, and each entry of them taken by some test of this folder."""

from __future__ import annotations

import typing
from collections.abc import Callable
from enum import Enum
from typing import Any

import pytest
from agent_scene import Scene
from arrows import TAKEN, not_taken

from lifl.core import engine
from lifl.core import events as ev
from lifl.core.agent import agent, job_replica, model_slot, pool
from lifl.core.agent.model_slot import ModelSlot, SlotState
from lifl.core.agent.pool import Worker, WorkerState
from lifl.core.errors import LocalFault
from lifl.core.planning import tree
from lifl.core.planning.tree import Task, TaskState
from lifl.core.protocol import commands as o
from lifl.core.protocol import gateway as gm

FOR_THE_NODE = {gm.GatewayReady, gm.AskPulse, gm.Disconnected, gm.GatewayStats, gm.Greeted, gm.ClientRefused}
FOR_THE_NODE |= {gm.SessionAsked}
"""What a gateway says to its node's processes, and the engine never hears."""


def slot() -> ModelSlot:
    scene = Scene()
    return scene.has_job().slot


MACHINES: dict[str, tuple[dict[Any, frozenset[Any]], Callable[[], Any]]] = {
    "task": (tree.TRANSITIONS, lambda: Task(3, "leaf", 0)),
    "worker": (pool.TRANSITIONS, lambda: Worker(3)),
    "model": (model_slot.TRANSITIONS, slot),
}


def no_arrows() -> list[Any]:
    """All pairs of states of one machine that are no arrow."""
    return [
        pytest.param(name, begin, end, id=f"{name}-{begin.value}-{end.value}")
        for name, (table, _) in MACHINES.items()
        for begin in table
        for end in table
        if end not in table[begin]
    ]


@pytest.mark.parametrize(("name", "begin", "end"), no_arrows())
def test_what_is_no_arrow_is_refused_and_changes_nothing(name: str, begin: Enum, end: Enum) -> None:
    machine = MACHINES[name][1]()
    machine.state = begin
    before = dict(vars(machine))
    with pytest.raises(LocalFault, match=f"cannot go from {begin.value} to {end.value}"):
        machine.move(end)
    assert vars(machine) == before


@pytest.mark.parametrize(("table", "states"), [("task", TaskState), ("worker", WorkerState), ("model", SlotState)])
def test_each_state_has_its_line(table: str, states: type[Enum]) -> None:
    assert set(MACHINES[table][0]) == set(states)


def test_each_order_each_word_of_the_gateway_and_each_event_has_a_handler_in_one_place() -> None:
    agent_s, replica_s, engine_s = map(set, (agent.HANDLERS, job_replica.ORDERS, engine.HANDLERS))
    assert not (agent_s & replica_s or agent_s & engine_s or replica_s & engine_s)
    heard = agent_s | replica_s | engine_s
    assert set(typing.get_args(o.Order)) <= heard
    assert set(typing.get_args(gm.FromGateway)) - FOR_THE_NODE <= heard
    events = {each for each in vars(ev).values() if isinstance(each, type) and issubclass(each, ev.Event)}
    assert events - {ev.Event} <= heard


# ---- these look back on all tests of this folder: see tests/arrows.py ------------------------------------------------


@pytest.mark.looks_back
@pytest.mark.parametrize("table", MACHINES)
def test_every_arrow_is_taken_by_a_test(table: str) -> None:
    assert not not_taken(table, MACHINES[table][0])


@pytest.mark.looks_back
def test_every_event_and_every_order_is_handled_in_a_test() -> None:
    tables = {"agent's events": agent.HANDLERS, "orders": job_replica.ORDERS, "engine's events": engine.HANDLERS}
    assert not {(name, each.__name__) for name, table in tables.items() for each in table if each not in TAKEN[name]}
