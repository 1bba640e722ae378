"""A round's model is sealed, its checkpoint is durable: the next round begins, commits come in order."""

from __future__ import annotations

from coordinator_scene import (
    CLOSED,
    EPOCH,
    HOME,
    NUMBER,
    OPEN,
    B,
    Led,
    Scene,
)

from lifl.core import effects as fx
from lifl.core.coordinator.receipt import metrics_by_client
from lifl.core.coordinator.round import Phase
from lifl.core.ids import epoch_of
from lifl.core.limits import CLIENT_METRICS_MAX, ROUNDS_REMEMBERED
from lifl.core.protocol import client as cm
from lifl.core.protocol import commands as o
from lifl.core.protocol.contribution import Contribution, root_of, with_digest

TOO_LATE = "the round closed before this update was complete"


def test_a_sealed_model_is_saved_told_to_the_other_nodes_and_the_next_round_begins() -> None:
    scene = Scene(nodes=(HOME, B), states=("m",))
    scene.has_round(Phase.AGGREGATING, [(HOME, 2, CLOSED)], accepted={"c1": 0, "c2": 0})
    sealed_round = scene.round
    led = scene.handle(o.ModelSealed(NUMBER, EPOCH, {"peak_bytes": 9}), at=8.0)
    paths = ("/f/round-00001.safetensors", "/f/round-00001.state.safetensors")
    assert led == Led(
        orders=[(HOME, o.SaveModel(NUMBER, EPOCH, *paths)), (B, o.ModelAt(NUMBER, 1, "home:1"))],
        rows=[fx.SaveRound("j", 2, 1, "open", {})],
    )
    assert (sealed_round.phase, sealed_round.sealed_s) == (Phase.SAVING, 8.0)  # AGGREGATING -> SAVING
    assert sealed_round.branches[0].cost == {"peak_bytes": 9}
    assert scene.job.rounds.saving == [sealed_round]
    assert (scene.round.number, scene.round.phase) == (2, Phase.WAITING)


def test_of_each_client_so_many_keep_their_own_metrics() -> None:
    accepted = {f"c{number:04}": Contribution(f"c{number:04}", 1.0, {"n": number}) for number in range(300)}
    accepted["c0000"] = Contribution("c0000", 1.0)  # it measured nothing
    found = metrics_by_client(accepted)
    assert len(found) == CLIENT_METRICS_MAX
    assert list(found.items())[:2] == [("c0001", {"n": 1}), ("c0002", {"n": 2})]


def test_after_the_last_round_none_begins() -> None:
    scene = Scene(rounds=1)
    scene.has_round(Phase.AGGREGATING, [(HOME, 2, CLOSED)], accepted={"c1": 0, "c2": 0})
    led = scene.handle(o.ModelSealed(NUMBER, EPOCH, {}))
    assert [type(order) for _node, order in led.orders] == [o.SaveModel]
    assert scene.job.round is None


def test_a_model_of_another_attempt_is_not_minded() -> None:
    scene = Scene()
    scene.has_round(Phase.AGGREGATING, [(HOME, 2, CLOSED)])
    assert scene.handle(o.ModelSealed(NUMBER, epoch_of(1, 2), {})) == Led()
    scene.job.rounds.current = None
    assert scene.handle(o.ModelSealed(NUMBER, EPOCH, {})) == Led()


def test_the_row_has_the_updates_and_the_receipt_what_stands_for_them_if_all_are_known() -> None:
    updates, whole = {"c2": (1.0, 5), "c1": (3.0, 2**64 - 1)}, root_of([("c1", 3.0, 2**64 - 1), ("c2", 1.0, 5)])
    for unknown, root in ((None, whole), ("c1", None)):
        scene = Scene()
        scene.running()
        round_ = scene.books(Phase.SAVING, [(HOME, 2, CLOSED)], {"c2": 0, "c1": 0}, {}, [], 1, 1)
        for client, (weight, digest) in updates.items():
            round_.accepted[client] = with_digest(Contribution(client, weight), 0 if client == unknown else digest)
        scene.job.rounds.saving.append(round_)
        scene.has_round(Phase.WAITING, [], number=2)
        scene.job.rounds.committed = 0
        (row,) = scene.handle(o.ModelSaved(NUMBER, EPOCH)).rows
        assert row.fields["updates"] == [(3.0, 0 if unknown else 2**64 - 1), (1.0, 5)]
        assert row.fields["receipt"].get("updates_digest") == root


def test_a_durable_checkpoint_commits_its_round_with_a_receipt() -> None:
    scene = Scene(nodes=(HOME, B))
    scene.here("c1", "c2", "c3")
    scene.running()
    round_ = scene.books(Phase.SAVING, [(HOME, 1, CLOSED), (B, 1, CLOSED)], {"c1": 0, "c2": 1}, {"c3": 0}, ["c4"], 1, 1)
    round_.accepted["c1"] = Contribution("c1", 3.0, {"loss": 1.0, "acc": 0.5})
    round_.accepted["c2"] = Contribution("c2", 1.0, {"loss": 5.0})
    round_.opened_at_s, round_.last_accepted_s, round_.sealed_s = 1.0, 4.0, 6.0
    round_.others_max = 1
    round_.received_bytes, round_.between_bytes = 20, 30
    starts = {"cold": 1, "warm": 2, "promoted": 3, "shared": 4}
    tree = {"role": "leaf"}
    round_.branches[0].cost = {"sent_bytes": 5, "worker_cpu_s": 0.5, "peak_bytes": 7, "starts": starts, "tree": (tree,)}
    there = {"role": "leaf", "began_s": 0.25, "ended_s": 1.0}
    round_.branches[1].cost = {"fetched_bytes": 6, "peak_bytes": 8, "tree": (there,)}
    round_.branches[1].opened_at_s = 1.5  # half a second after the round
    round_.began_at_s, round_.granted_at_s, round_.accepted_at_s = 0.5, {"c1": 1.5, "c2": 2.0}, {"c1": 2.5, "c2": 4.0}
    scene.job.rounds.saving.append(round_)
    scene.has_round(Phase.WAITING, [], number=2)
    scene.job.rounds.committed = 0
    led = scene.handle(o.ModelSaved(NUMBER, EPOCH), at=10.0)
    receipt = {
        "selected": 4,
        "accepted": 2,
        "counted": 2,
        "expired": 2,
        "weight": 4.0,
        "bytes_in": 20,
        "bytes_out": 5,
        "bytes_between": 36,
        "cpu_s": {"workers": 0.5},
        "arena_peak_bytes": 8,
        "duration_s": 9.0,
        "last_accepted_to_sealed_s": 2.0,
        "last_accepted_to_commit_s": 6.0,
        "workers_cold": 1,
        "workers_warm": 2,
        "workers_promoted": 3,
        "workers_shared": 4,
        "nodes": 2,
        "tree": [tree | {"node": f"{HOME:016x}"}, there | {"node": f"{B:016x}", "began_s": 0.75, "ended_s": 1.5}],
        "timeline": {
            "began_s": -0.5,
            "sealed_s": 5.0,
            "saved_s": 9.0,
            "ended_s": 9.0,
            "updates": {"c1": (0.5, 1.5), "c2": (1.0, 3.0)},
        },
    }
    path, metrics = "/f/round-00001.safetensors", {"acc": 0.5, "loss": 2.0}
    row = {"metrics": metrics, "path": path, "receipt": receipt, "members": ["c1", "c2"], "keep": {"since": 0}}
    fields = {"round": 1, "counted": 2, "metrics": metrics, "path": path, "receipt": receipt}
    assert led == Led(
        orders=[(HOME, o.CommitBranch(NUMBER, EPOCH)), (B, o.CommitBranch(NUMBER, EPOCH))],
        told=[
            (HOME, 1, cm.Committed("j", 1, counted=True)),
            (HOME, 2, cm.Committed("j", 1, counted=True)),
            (HOME, 3, cm.RoundOver("j", 1, TOO_LATE)),
        ],
        rows=[fx.SaveRound("j", 1, 1, "committed", row)],
        events=[("round.committed", fields)],
    )
    assert round_.phase is Phase.COMMITTED  # SAVING -> COMMITTED
    assert (scene.job.rounds.committed, scene.job.rounds.counted) == (1, {1: frozenset({"c1", "c2"})})


def test_a_later_checkpoint_waits_for_the_one_before() -> None:
    scene = Scene(rounds=3)
    scene.running()
    scene.is_saving(1, ["c1"])
    scene.is_saving(2, ["c2"])
    scene.has_round(Phase.WAITING, [], number=3)
    assert scene.handle(o.ModelSaved(NUMBER, epoch_of(2, 1))) == Led()
    led = scene.handle(o.ModelSaved(NUMBER, epoch_of(1, 1)))
    assert [(row.round, row.status) for row in led.rows] == [(1, "committed"), (2, "committed")]
    assert scene.job.rounds.saving == []


def test_a_checkpoint_that_is_not_waited_for_commits_nothing() -> None:
    scene = Scene()
    scene.running()
    scene.is_saving(1, ["c1"])
    scene.has_round(Phase.WAITING, [], number=2)
    assert scene.handle(o.ModelSaved(NUMBER, epoch_of(9, 1))) == Led()


def test_no_round_begins_while_two_models_wait_for_their_checkpoints() -> None:
    """An arena has room for the old model and the new one: `planning/arena_need.py` counts no third."""
    scene = Scene(rounds=9)
    scene.running()
    scene.is_saving(1, ["c1"])
    scene.has_round(Phase.AGGREGATING, accepted={"c1": 0, "c2": 0}, number=2)
    scene.handle(o.ModelSealed(NUMBER, epoch_of(2, 1), {}))
    assert ([each.number for each in scene.job.rounds.saving], scene.job.round) == ([1, 2], None)
    scene.handle(o.ModelSaved(NUMBER, epoch_of(1, 1)))
    assert ([each.number for each in scene.job.rounds.saving], scene.round.number) == ([2], 3)


def test_the_initial_model_is_committed_without_a_receipt_and_without_a_word() -> None:
    scene = Scene()
    scene.running()
    scene.is_saving(0)
    scene.has_round(Phase.WAITING, [])
    led = scene.handle(o.ModelSaved(NUMBER, epoch_of(0, 0)))
    row = {"metrics": {}, "path": "/f/round-00000.safetensors", "receipt": {}, "members": [], "keep": {"since": 0}}
    assert led == Led(rows=[fx.SaveRound("j", 0, 0, "committed", row)])


def test_the_last_commit_ends_the_job() -> None:
    scene = Scene(rounds=1)
    scene.here("c1", "c2")
    scene.running()
    scene.is_saving(1, ["c1"])
    led = scene.handle(o.ModelSaved(NUMBER, EPOCH))
    assert led.orders == [(HOME, o.CommitBranch(NUMBER, EPOCH)), (HOME, o.CloseJob(NUMBER))]
    assert led.rows[1:] == [fx.SaveJob("j", "finished", "")]
    over = cm.JobOver("j", "finished", "")
    assert led.told == [(HOME, 1, cm.Committed("j", 1, counted=True)), (HOME, 1, over), (HOME, 2, over)]
    assert led.events[1:] == [("job.over", {"status": "finished", "reason": ""})]
    assert (scene.job.status, scene.coordinator.running, dict(scene.job.present)) == ("finished", {}, {})


def test_the_members_of_the_last_rounds_alone_are_remembered() -> None:
    scene = Scene(rounds=100)
    scene.running(ROUNDS_REMEMBERED)
    scene.job.rounds.counted = {number: frozenset() for number in range(1, ROUNDS_REMEMBERED + 1)}
    scene.is_saving(ROUNDS_REMEMBERED + 1, ["c1"])
    scene.handle(o.ModelSaved(NUMBER, epoch_of(ROUNDS_REMEMBERED + 1, 1)))
    assert list(scene.job.rounds.counted) == list(range(2, ROUNDS_REMEMBERED + 2))


def test_it_is_busy_while_a_round_whose_updates_are_all_in_is_not_committed() -> None:
    scene = Scene()
    assert not scene.coordinator.busy()
    scene.has_round(Phase.COLLECTING, [(HOME, 2, OPEN)])
    assert not scene.coordinator.busy()
    scene.round.phase = Phase.AGGREGATING
    assert scene.coordinator.busy()
    scene.job.rounds.current = None
    scene.is_saving(1)
    assert scene.coordinator.busy()


def test_when_the_node_stops_clients_of_a_round_that_is_not_complete_are_told_to_submit_again() -> None:
    scene = Scene()
    scene.here("c1", "c2")
    scene.has_round(accepted={"c1": 0}, granted={"c2": 0})
    text = "the node went down before the round was complete; submit again when it is up"
    assert scene.do(scene.coordinator.stop) == Led(told=[(HOME, 1, cm.RoundOver("j", 1, text))])
    scene.job.rounds.current = None
    assert scene.do(scene.coordinator.stop) == Led()
