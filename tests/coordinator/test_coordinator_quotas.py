"""A job's quotas, as the coordinator holds them: refused at once when they cannot be kept, told to the nodes, kept."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest
from coordinator_scene import ARENA_BYTES, HOME, NUMBER, OPEN, B, Scene, admit, sealed

from lifl.core.config.job import QuotaSection
from lifl.core.coordinator.answers import GRANTED_RETRY_S
from lifl.core.errors import Refused
from lifl.core.planning.client_list import ClientList, Listed
from lifl.core.protocol import client as cm
from lifl.core.protocol import cluster as p
from lifl.core.protocol import commands as o


def refused(scene: Scene, total_bytes: int = ARENA_BYTES) -> Refused:
    with pytest.raises(Refused) as caught:
        scene.coordinator.submit(scene.spec, total_bytes)
    return caught.value


# ---- the share of the arena ------------------------------------------------------------------------------------------


def test_a_share_that_holds_no_round_is_refused_with_one_that_does() -> None:
    need = Scene().spec.bytes_min()
    total = 10 * need
    refusal = refused(Scene(quota={"arena_share": 0.09}), total)
    assert (refusal.code, refusal.field) == ("quota", "quota.arena_share")
    assert f"at least {need} bytes" in refusal.text
    share = float(refusal.text.rpartition("raise it to ")[2])
    scene = Scene(quota={"arena_share": share})
    scene.do(scene.coordinator.submit, scene.spec, total)


def test_what_fits_no_arena_is_no_fault_of_the_quota() -> None:
    need = Scene().spec.bytes_min()
    assert refused(Scene(quota={"arena_share": 0.5}), need - 1).code == "too-large"


def test_nodes_are_planned_with_by_the_jobs_share_of_them() -> None:
    sizes = {HOME: 1 << 20, B: 1 << 20}
    scene = Scene(nodes=(HOME, B), arena_bytes=sizes)
    scene.do(scene.coordinator.submit, scene.spec, 0)
    refusal = refused(Scene(nodes=(HOME, B), arena_bytes=sizes, quota={"arena_share": 0.01}), 0)
    assert refusal.field == "quota.arena_share"
    assert "quota.arena_share = 0.01" in refusal.text


# ---- what nodes are told ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quota", [{}, {"workers": 3, "bytes_per_s": 1000}])
def test_nodes_are_told_of_quotas_when_there_are_any_and_they_know_of_them(quota: dict[str, Any]) -> None:
    scene = Scene(nodes=(HOME, B), quota=quota)
    expected = QuotaSection(**quota) if quota else o.OpenJob.__struct_defaults__[-1]
    led = scene.do(scene.coordinator.submit, scene.spec, ARENA_BYTES)
    led.orders += scene.handle(o.JobOpened(NUMBER)).orders
    assert [(node, order.quota) for node, order in led.ordered(o.OpenJob)] == [(HOME, expected), (B, expected)]
    scene = Scene(nodes=(HOME, B), quota=quota)
    node = scene.coordinator.nodes.get(B)
    assert node is not None
    node.knows = frozenset({p.SECRETS})
    scene.loading()
    ((_node, order),) = scene.handle(o.JobOpened(NUMBER)).ordered(o.OpenJob)
    assert order.quota == o.OpenJob.__struct_defaults__[-1], "an earlier version would not know the word"


def opened_where(scene: Scene, *words: str) -> dict[int, o.OpenJob]:
    """What each node is told of a job that is submitted, when the other one knows these words."""
    node = scene.coordinator.nodes.get(B)
    assert node is not None
    node.knows = frozenset(words)
    led = scene.do(scene.coordinator.submit, scene.spec, ARENA_BYTES)
    led.orders += scene.handle(o.JobOpened(NUMBER)).orders
    return dict(led.ordered(o.OpenJob))


@pytest.mark.parametrize("knows", [False, True])
def test_nodes_that_know_of_owners_are_told_whose_a_job_is(knows: bool) -> None:
    scene = Scene(nodes=(HOME, B))
    scene.spec = replace(scene.spec, owner="operator alice")
    told = {node: order.owner for node, order in opened_where(scene, *[p.OWNERS] * knows).items()}
    assert told == {HOME: "operator alice", B: "operator alice" if knows else msgspec.UNSET}


@pytest.mark.parametrize("knows", [False, True])
def test_nodes_that_know_of_lists_are_told_whom_a_jobs_models_are_for(knows: bool) -> None:
    scene = Scene(nodes=(HOME, B))
    selection = msgspec.structs.replace(scene.spec.config.selection, clients=("c01", "clinic-*"))
    scene.spec = replace(scene.spec, config=msgspec.structs.replace(scene.spec.config, selection=selection))
    told = {node: order.listed for node, order in opened_where(scene, *[p.LISTED] * knows).items()}
    assert told == {HOME: scene.spec.listed, B: scene.spec.listed if knows else msgspec.UNSET}
    found = ClientList(told[HOME])
    taken = [name for name in ("c01", "c02", "clinic-7", "a-clinic-7", "clinic-*") if found.has(name)]
    assert taken == ["c01", "clinic-7", "clinic-*"]
    assert ClientList(msgspec.UNSET).has("anybody") and not ClientList(Listed()).has("anybody")


# ---- updates in flight -----------------------------------------------------------------------------------------------


def test_no_more_updates_are_on_their_way_than_the_quota_and_the_next_one_asks_again() -> None:
    scene = Scene(goal=4, quota={"updates_in_flight": 2})
    scene.here("c1", "c2", "c3")
    scene.has_round(branches=[(HOME, 4, OPEN)], selected=["c1", "c2", "c3"])
    for client in ("c1", "c2"):
        assert scene.handle(admit(client)).ordered(o.Grant)
    busy = cm.Busy("j", 1, GRANTED_RETRY_S)
    assert scene.handle(admit("c3")).told == [(HOME, 3, busy)]
    scene.handle(sealed("c1"))
    assert scene.handle(admit("c3")).ordered(o.Grant)
    scene.handle(o.UpdateAborted(NUMBER, scene.round.epoch, 0, "c2"))
    assert scene.handle(admit("c2")).ordered(o.Grant)
    assert isinstance(scene.handle(admit("c1")).told[0][2], cm.Accepted), "what is known already is answered as ever"
