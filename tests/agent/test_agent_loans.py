"""Models that clients have mapped, for as long as they like: what that keeps, and what it may cost."""

from __future__ import annotations

import pytest
from agent_scene import EPOCH, NUMBER, Arena, Scene, conn

from lifl.core import events as ev
from lifl.core.agent import quota as quotas
from lifl.core.agent.model_service import LOAN
from lifl.core.agent.quota import Quota
from lifl.core.engine import hosted_bytes
from lifl.core.errors import ArenaFull
from lifl.core.ids import Key, Kind, epoch_of
from lifl.core.protocol import commands as o
from lifl.core.protocol import gateway as gm


def lent(scene: Scene, client: str) -> bool:
    """A client asks for the current model as a loan; whether it is one."""
    led = scene.handle(gm.WantModel(conn(client), "j", scene.slot.round + 1, lend=True))
    (granted,) = [each for each in led if isinstance(each, gm.ModelGranted)]
    return granted.lent


def next_model(scene: Scene, at: float) -> None:
    """The model of the next round takes the place of the current one."""
    slot = scene.slot
    scene.now = scene.engine._turn.now = at
    model, _states = slot.alloc(epoch_of(slot.round + 1, 1), ())
    scene.arena.seal(model)
    slot.replace(slot.round + 1, model, {})
    scene.engine._turn.touch(NUMBER)
    scene.anew()
    scene.handle(ev.Tick())


def given_back(scene: Scene, key: Key) -> None:
    scene.handle(gm.ModelSent(LOAN, key.pack(), 0))


def lending_scene(**more: int) -> tuple[Scene, Key]:
    scene = Scene(**{"arena_bytes": 1 << 30, "elements": 4 << 20, **more})  # 16 MiB each
    scene.has_model()
    return scene, scene.slot.model


def test_what_is_lent_stays_until_the_last_one_gives_it_back_whatever_their_connections_do() -> None:
    scene, old = lending_scene()
    assert lent(scene, "c1") and lent(scene, "c2") and scene.arena.lent == [old, old]
    next_model(scene, 10.0)
    scene.handle(gm.ClientLeft(conn("c1")))
    given_back(scene, old)
    assert scene.arena.of(Kind.MODEL) == [old, scene.slot.model]
    given_back(scene, old)
    assert scene.arena.of(Kind.MODEL) == [scene.slot.model]


def test_nobody_is_sent_away_for_what_is_lent() -> None:
    scene, _ = lending_scene()
    for at in (10.0, 20.0, 30.0):
        assert lent(scene, "c1")
        next_model(scene, at)
    assert scene.engine.next_timer() is None
    assert len(scene.arena.of(Kind.MODEL)) == 4


def test_a_loan_outlives_the_gateway_and_what_it_was_sending_does_not() -> None:
    scene, old = lending_scene()
    assert lent(scene, "c1")
    scene.handle(gm.WantModel(conn("c2"), "j", scene.slot.round + 1))
    next_model(scene, 10.0)
    scene.handle(gm.GatewayLost())
    assert scene.arena.of(Kind.MODEL) == [old, scene.slot.model]
    given_back(scene, old)
    assert scene.arena.of(Kind.MODEL) == [scene.slot.model]


@pytest.mark.parametrize("gateway_dies", [False, True])
def test_a_loan_outlives_its_job(gateway_dies: bool) -> None:
    scene, model = lending_scene()
    assert lent(scene, "c1") and lent(scene, "c2")
    scene.handle(gm.WantModel(conn("c3"), "j", scene.slot.round + 1))
    scene.handle(o.CloseJob(NUMBER))
    assert list(scene.arena.objects) == [model]
    if gateway_dies:
        scene.handle(gm.GatewayLost())
    else:
        scene.handle(gm.ModelSent(conn("c3"), model.pack(), 1))
    given_back(scene, model)
    assert list(scene.arena.objects) == [model]
    given_back(scene, model)
    assert not scene.arena.objects


def test_what_is_lent_is_bounded_and_the_rest_is_sent() -> None:
    scene, old = lending_scene(arena_bytes=3 * quotas.LOANS_PARTS * (16 << 20))
    for at in (10.0, 20.0, 30.0):
        assert lent(scene, "c1")
        next_model(scene, at)
    assert not lent(scene, "c1"), "three are all that may be"
    assert scene.slot.readers == {conn("c1"): scene.slot.model}
    given_back(scene, old)
    assert lent(scene, "c2")


def test_so_are_the_loans_in_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quotas, "LOANS_MAX", 2)
    scene, model = lending_scene()
    assert [lent(scene, f"c{number}") for number in (1, 2, 3)] == [True, True, False]
    given_back(scene, model)
    assert lent(scene, "c4")


def test_a_client_that_leaves_before_it_has_the_model_has_no_loan() -> None:
    scene, _ = lending_scene()
    scene.slot.wanting, scene.slot.borrowing = {5: 1}, {5}
    scene.handle(gm.ClientLeft(5))
    assert not scene.slot.wanting and not scene.slot.borrowing


# ---- the room --------------------------------------------------------------------------------------------------------

NBYTES = 10
ARENA_BYTES = 100
OTHER = 2


def quota_with(reserved: int) -> tuple[Quota, Key]:
    """Job 1 has a model of 10 bytes in an arena of 100, and so much reserved with it."""
    quota = Quota(Arena(ARENA_BYTES))
    quota.reserve(NUMBER, reserved)
    return quota, quota.alloc(Kind.MODEL, NUMBER, EPOCH, NBYTES)


def test_a_model_is_lent_out_of_what_is_promised_to_nobody() -> None:
    """The model itself, and twice as much that stays free, beside all that the job has reserved."""
    for reserved, is_lent in ((70, True), (71, False)):
        quota, model = quota_with(reserved)
        assert quota.loans.begin(model, NUMBER) is is_lent
        assert quota.loans.of(model) == is_lent
        assert quota.job_used_bytes(NUMBER) == NBYTES * (not is_lent)
        assert quota.loans.taken_bytes == 3 * NBYTES * is_lent
        assert not list(quota.problems())


def test_a_node_that_lends_could_come_to_coordinate_the_jobs_that_are_here() -> None:
    """What only part of is reserved is left to them all the same: they would wait for the trainers, else."""
    for job, least, is_lent in ((NUMBER, 70, True), (NUMBER, 71, False), (OTHER, 20, True), (OTHER, 21, False)):
        quota, model = quota_with(50)
        quota.loans.leave(job, least)
        assert quota.loans.begin(model, NUMBER) is is_lent
        quota.loans.leave(job, 0)
        assert quota.loans.begin(model, NUMBER)
        assert quota.reserve(OTHER, 20), "who begins has it"


def test_rounds_have_all_their_room_beside_what_is_lent() -> None:
    quota, model = quota_with(50)
    assert quota.loans.begin(model, NUMBER)
    assert not quota.reserve(OTHER, 21) and quota.reserve(OTHER, 20)
    quota.alloc(Kind.UPDATE, NUMBER, EPOCH, 50)
    with pytest.raises(ArenaFull, match="40 of them reserved"):  # what is lent may part the room that is free
        quota.alloc(Kind.UPDATE, NUMBER, EPOCH, 1)
    quota.alloc(Kind.UPDATE, OTHER, EPOCH, 20)


def test_so_they_have_when_the_job_of_the_model_is_over() -> None:
    quota, model = quota_with(50)
    assert quota.loans.begin(model, NUMBER)
    quota.release(NUMBER)
    assert not quota.reserve(OTHER, 71) and quota.reserve(OTHER, 70)


def test_what_is_given_back_is_room_again_and_who_waits_hears_of_it() -> None:
    quota, model = quota_with(50)
    assert quota.loans.begin(model, NUMBER) and quota.loans.begin(model, NUMBER)
    quota.loans.end(model)
    assert not quota.reserve(OTHER, 50)
    gains = quota.gains
    quota.loans.end(model)
    assert quota.gains > gains and quota.reserve(OTHER, 50)
    assert quota.job_used_bytes(NUMBER) == NBYTES and not list(quota.problems())
    quota.reserve(OTHER, 0)
    assert quota.loans.begin(model, NUMBER)
    quota.free(model)
    assert not quota.loans.of(model) and quota.reserve(OTHER, 50) and not list(quota.problems())


def test_the_share_of_a_job_does_not_stop_a_round_for_what_is_lent() -> None:
    quota, model = quota_with(40)
    quota.limit(NUMBER, 0.4)
    assert quota.loans.begin(model, NUMBER)
    quota.alloc(Kind.UPDATE, NUMBER, EPOCH, 40)
    with pytest.raises(ArenaFull, match="arena_share"):
        quota.alloc(Kind.UPDATE, NUMBER, EPOCH, 1)


def test_the_planner_hears_what_is_lent_and_when_it_is_given_back() -> None:
    scene, model = lending_scene()
    assert not hosted_bytes(scene.engine)
    assert lent(scene, "c1")
    assert hosted_bytes(scene.engine) == 3 * scene.arena.extent_bytes(model)
    given_back(scene, model)
    assert not hosted_bytes(scene.engine)


@pytest.mark.parametrize("gateway_dies", [False, True])
def test_what_an_earlier_life_has_lent_is_nobody_elses_until_it_is_given_back(gateway_dies: bool) -> None:
    scene = Scene(arena_bytes=1 << 30)
    model = scene.arena.seal(scene.arena.alloc(Kind.MODEL, NUMBER, EPOCH, 1 << 20))
    scene.handle(ev.ArenaAdopted({}, (), lent=(model,)))
    assert hosted_bytes(scene.engine) == 3 << 20
    if gateway_dies:
        scene.handle(gm.GatewayLost())
    assert list(scene.arena.objects) == [model]
    given_back(scene, model)
    assert not scene.arena.objects and not hosted_bytes(scene.engine)
