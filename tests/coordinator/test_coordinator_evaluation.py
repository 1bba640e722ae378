"""A committed model is evaluated by clients before the next round begins, and what they find may end the job."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from coordinator_scene import EPOCH, HOME, NUMBER, Led, Scene, joined
from test_coordinator_selection import invited

from lifl.core import effects as fx
from lifl.core.config.job import parse_job
from lifl.core.config.stopping import judged, parse_stop
from lifl.core.coordinator import job_life
from lifl.core.coordinator.evaluation import summary
from lifl.core.coordinator.job_spec import JobSpec
from lifl.core.coordinator.round import Phase
from lifl.core.errors import ConfigError
from lifl.core.fields import Properties
from lifl.core.protocol import client as cm
from lifl.core.protocol import commands as o
from lifl.core.protocol import gateway as gm
from lifl.core.protocol.contribution import Contribution
from lifl.core.protocol.evaluations import EvaluateModel, ModelEvaluated


def comes(client: str, evaluates: bool = True) -> gm.ClientJoined:
    return msgspec.structs.replace(joined(client), properties=Properties(evaluates=evaluates))


def found(client: str, loss: float, weight: float = 1.0, number: int = 1) -> gm.ClientEvaluated:
    return gm.ClientEvaluated(int(client[1:]), client, "j", number, weight, {"loss": loss})


def scene_of(stop: str = "", rounds: int = 2, **section: Any) -> Scene:
    """A job that evaluates; round 1's model is being saved, and clients c1 to c4 are here, the first three evaluate."""
    scene = Scene(rounds=rounds)
    config = msgspec.to_builtins(scene.spec.config)
    config["evaluation"] = section
    config["job"] |= {"stop": stop} if stop else {}
    scene.spec = JobSpec(NUMBER, parse_job(config), scene.spec.layout, (), "/f")
    scene.running()
    for client in ("c1", "c2", "c3", "c4"):
        scene.handle(comes(client, client != "c4"))
    scene.is_saving(1, ["c1", "c2"])
    return scene


def commit(scene: Scene, number: int = 1) -> Led:
    return scene.handle(o.ModelSaved(NUMBER, scene.job.rounds.saving[0].epoch, ()))


def evaluators(led: Led) -> list[int]:
    return [conn for conn, message in led.said(cm.Selected) if message.kind == "evaluate"]


def test_those_who_can_evaluate_are_asked_and_the_next_round_begins_when_all_have_told() -> None:
    scene = scene_of()
    led = commit(scene)
    assert evaluators(led) == invited(led) == [1, 2, 3]
    assert led.said(cm.Selected)[0][1] == cm.Selected("j", 1, 60.0, (), scene.spec.layout.data_bytes, kind="evaluate")
    assert scene.job.round is None
    for client, loss, weight in (("c1", 1.0, 3.0), ("c2", 2.0, 1.0)):
        led = scene.handle(found(client, loss, weight))
        assert led == Led(told=[(HOME, int(client[1:]), cm.Accepted("j", 1))])
    led = scene.handle(found("c3", 4.0))
    (row, began) = led.rows
    assert began == fx.SaveRound("j", 2, 1, "open", {})
    figures = row.fields["evaluation"]["metrics"]["loss"]
    assert {key: round(value, 9) for key, value in figures.items()} == {
        "mean": 1.8,
        "min": 1.0,
        "max": 4.0,
        "std": round(math.sqrt((3 * 0.64 + 0.04 + 4.84) / 5), 9),
        "clients": 3,
    }
    assert (row.job, row.round, row.fields["evaluation"]["clients"], row.fields["evaluation"]["selected"]) == (
        "j",
        1,
        3,
        3,
    )
    assert len(invited(led)) == 2 and not evaluators(led), "they are to train, in round 2"


def test_at_the_deadline_it_is_over_and_a_late_word_is_refused() -> None:
    scene = scene_of(deadline_s=5.0, clients=2)
    led = commit(scene)
    first, second = evaluators(led)
    scene.handle(found(f"c{first}", 1.0))
    assert scene.coordinator.next_timer() == 5.0
    led = scene.do(scene.coordinator.tick, at=5.0)
    assert [conn for conn, message in led.said(cm.Refusal) if message.code == cm.EVALUATION_OVER] == [second]
    assert scene.round.number == 2
    (refused,) = scene.handle(found(f"c{second}", 1.0)).said(cm.Refusal)
    assert refused[1].code == cm.EVALUATION_OVER
    (again,) = scene.handle(found(f"c{first}", 9.0)).told
    assert again[2] == cm.Accepted("j", 1), "it did not hear the first answer"


@pytest.mark.parametrize("how", ["leaves", "declines", "gateway"])
def test_it_waits_for_nobody_who_will_not_tell(how: str) -> None:
    scene = scene_of()
    commit(scene)
    for client in ("c1", "c2"):
        scene.handle(found(client, 1.0))
    if how == "leaves":
        scene.handle(gm.ClientLeft(3))
    elif how == "declines":
        scene.handle(gm.ClientDeclined(3, "c3", "j", 1, "busy"))
    else:
        scene.handle(gm.GatewayLost())
    assert scene.round.number == 2


def test_one_that_comes_again_is_asked_again_and_others_are_not_heard() -> None:
    scene = scene_of()
    commit(scene)
    scene.handle(gm.ClientLeft(3))
    assert evaluators(scene.handle(comes("c3"))) == [3]
    scene.handle(found("c1", 1.0))
    assert not evaluators(scene.handle(comes("c1")))
    (refused,) = scene.handle(found("c4", 1.0)).said(cm.Refusal)
    assert refused[1].code == "not-selected"
    (refused,) = scene.handle(gm.ClientEvaluated(9, "c3", "j", 1, 1.0, {})).said(cm.Refusal)
    assert refused[1].code == "not-selected", "that is not the connection of c3"
    assert scene.job.round is None


def test_where_nobody_can_evaluate_rounds_go_on() -> None:
    scene = scene_of()
    for client in ("c1", "c2", "c3"):
        scene.handle(comes(client, False))
    led = commit(scene)
    assert led.named("evaluation.none") == [{"round": 1}]
    assert scene.round.number == 2


@pytest.mark.parametrize(("section", "count"), [({"fraction": 0.5}, 2), ({"fraction": 1e-9}, 1), ({"clients": 50}, 3)])
def test_a_part_of_those_who_can_is_asked(section: dict[str, Any], count: int) -> None:
    assert len(evaluators(commit(scene_of(**section)))) == count


def test_rounds_between_are_not_evaluated_and_overlap() -> None:
    scene = scene_of(every=2)
    assert not evaluators(commit(scene))
    assert scene.round.number == 2


def test_the_last_round_is_evaluated_before_the_job_is_over() -> None:
    scene = scene_of(rounds=1)
    assert evaluators(commit(scene))
    assert scene.job.status == "running"
    for client in ("c1", "c2", "c3"):
        led = scene.handle(found(client, 1.0))
    assert led.rows[-1] == fx.SaveJob("j", "finished", "")


def test_a_job_is_finished_by_what_was_found_and_says_why() -> None:
    scene = scene_of("loss <= 0.5", rounds=9)
    commit(scene)
    for client in ("c1", "c2", "c3"):
        led = scene.handle(found(client, 0.5))
    assert led.rows[-1] == fx.SaveJob("j", "finished", "loss <= 0.5: loss is 0.5")
    assert led.said(cm.JobOver)[0][1] == cm.JobOver("j", "finished", "loss <= 0.5: loss is 0.5")


def test_a_job_without_evaluations_stops_by_what_clients_measured_when_they_trained() -> None:
    scene = Scene(rounds=9)
    config = msgspec.to_builtins(scene.spec.config)
    config["job"]["stop"] = "loss < 1"
    scene.spec = JobSpec(NUMBER, parse_job(config), scene.spec.layout, (), "/f")
    scene.running()
    scene.here("c1", "c2")
    saving = scene.is_saving(1, ["c1"])
    saving.accepted["c1"] = Contribution("c1", 1.0, {"loss": 0.5})
    scene.job._replicas.model_round = 1
    scene.has_round(Phase.COLLECTING, accepted={"c2": 0}, number=2)
    led = scene.handle(o.ModelSaved(NUMBER, EPOCH, ()))
    assert led.rows[-1] == fx.SaveJob("j", "finished", "loss < 1: loss is 0.5")
    assert led.rows[0].fields["stopping"] == ((None, 0),)
    assert scene.job.over


# ---- what is found, and when that is enough -------------------------------------------------------------------------


def test_figures_are_right_near_the_ends_of_float64() -> None:
    told = {
        name: Contribution(name, weight, {"x": value})
        for name, weight, value in (("a", 1e300, 1.7e308), ("b", 1e300, -1.7e308), ("c", 1e-300, 1.0))
    }
    figures = summary(told, 3)["metrics"]["x"]
    assert (figures["mean"], figures["min"], figures["max"]) == (0.0, -1.7e308, 1.7e308)
    assert math.isclose(figures["std"], 1.7e308)
    assert summary({}, 2) == {"clients": 0, "selected": 2, "metrics": {}}


def after(stop: str, *values: float) -> int | None:
    """After how many values a job stops."""
    rules, seen = parse_stop(stop, "job.stop"), ()
    for count, value in enumerate(values, start=1):
        seen, why = judged(rules, seen, {"loss": value})
        if why:
            return count
    return None


@pytest.mark.parametrize(
    ("stop", "values", "count"),
    [
        ("loss plateau 2", [3, 2, 2, 2], 4),
        ("loss plateau 2", [3, 2, 2, 1, 1], None),
        ("loss plateau 2 by 0.5", [3, 2.6, 2.7, 0], 3),
        ("loss plateau 1 max", [1, 2, 3, 3], 4),
        ("loss > 2", [1, 2, 2.1], 3),
        ("loss>=2", [1, 2], 2),
        ("loss < -1e-3", [0, -0.002], 2),
        ("acc >= 0 or loss <= 1", [2, 1], 2),
        ("acc plateau 1", [2, 1], None),
    ],
)
def test_when_a_job_has_learned_enough(stop: str, values: list[float], count: int | None) -> None:
    assert after(stop, *values) == count


@pytest.mark.parametrize(
    "stop",
    [
        "loss",
        "loss plateau",
        "loss plateau 0",
        "loss plateau x",
        "loss == 1",
        "loss >= nan",
        "loss >= 1e999",
        "1 <",
        "loss plateau 3 by -1",
        "loss >= 1 and acc >= 1",
        " or ".join(["a > 1"] * 9),
        "loss plateau 9999999999",
        "os:stop()",
    ],
)
def test_what_is_no_form_is_refused_by_its_key(stop: str) -> None:
    with pytest.raises(ConfigError, match=r"job.stop: "):
        parse_job(
            {
                "job": {"name": "j", "rounds": 1, "stop": stop},
                "model": {"path": "/m"},
                "selection": {"clients_per_round": 1},
            }
        )


def test_a_number_of_evaluators_and_a_part_of_them_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match=r"evaluation.fraction: give it, or evaluation.clients"):
        scene_of(clients=1, fraction=0.5)
    with pytest.raises(ConfigError, match=r"evaluation.evry: unknown key; did you mean evaluation.every"):
        scene_of(evry=1)


# ---- a function of the user's ----------------------------------------------------------------------------------------


def test_a_users_function_is_waited_for_beside_the_clients_and_its_word_comes_first() -> None:
    scene = scene_of("loss <= 1", rounds=9, server="mine:look", deadline_s=7.0)
    led = commit(scene)
    assert led.ordered(EvaluateModel) == [(HOME, EvaluateModel(NUMBER, 1, "mine:look", 7.0))]
    for client in ("c1", "c2", "c3"):
        scene.handle(found(client, 5.0))
    assert scene.job.round is None and scene.job.status == "running"
    scene.handle(ModelEvaluated(NUMBER, 9, {"loss": 0.0}))  # of another round
    led = scene.handle(ModelEvaluated(NUMBER, 1, {"loss": 1.0}))
    assert led.rows[0].fields["evaluation"]["server"] == {"metrics": {"loss": 1.0}}
    assert led.rows[-1] == fx.SaveJob("j", "finished", "loss <= 1: loss is 1")


def test_a_users_function_that_fails_or_hangs_fails_no_job_and_needs_no_clients() -> None:
    scene = scene_of(rounds=9, server="mine:look", deadline_s=7.0)
    for client in ("c1", "c2", "c3"):
        scene.handle(comes(client, False))
    commit(scene)
    assert scene.job.round is None
    led = scene.handle(ModelEvaluated(NUMBER, 1, {}, "it raised"))
    assert led.rows[0].fields["evaluation"] == {
        "clients": 0,
        "selected": 0,
        "metrics": {},
        "server": {"fault": "it raised"},
    }
    assert scene.round.number == 2
    scene = scene_of(rounds=9, server="mine:look", deadline_s=7.0, clients=1)
    (asked,) = evaluators(commit(scene))
    scene.handle(found(f"c{asked}", 5.0))
    led = scene.do(scene.coordinator.tick, at=7.0)
    assert led.rows[0].fields["evaluation"]["server"] == {"fault": "it did not end within 7 s"}


@pytest.mark.parametrize(
    "server", ["look", "mine:", ":look", "mine:look()", "mine:look:x", "../mine:look", "mine:lo ok"]
)
def test_what_names_no_function_is_refused_by_its_key(server: str) -> None:
    with pytest.raises(ConfigError, match=r"evaluation.server: .*is not module:function"):
        scene_of(server=server)


# ---- what an earlier life has left -----------------------------------------------------------------------------------


def resumed(evaluated: bool = False, rounds: int = 2, **section: Any) -> Scene:
    """The job goes on in another life, behind round 1; nobody is back yet."""
    scene = Scene(rounds=rounds)
    config = msgspec.to_builtins(scene.spec.config) | {"evaluation": section}
    scene.spec = JobSpec(NUMBER, parse_job(config), scene.spec.layout, (), "/f")
    scene.loading()
    scene.job.resume(1, {}, {}, False, {1: (1, ())})
    scene.job.commits.attempt = 1
    scene.job.evaluation.resume(1, evaluated)
    scene.job.start()
    scene.handle(o.JobOpened(NUMBER))
    return scene


def test_one_that_was_broken_off_is_made_when_as_many_are_back_as_a_round_needs() -> None:
    scene = resumed()
    assert scene.job.round is None
    assert not evaluators(scene.handle(comes("c1")))
    assert sorted(evaluators(scene.handle(comes("c2")))) == [1, 2]
    for client in ("c1", "c2"):
        led = scene.handle(found(client, 1.0))
    assert led.rows[0].fields["evaluation"]["clients"] == 2 and scene.round.number == 2


def test_one_that_was_broken_off_begins_at_its_deadline_with_who_is_back() -> None:
    scene = resumed(deadline_s=5.0)
    scene.handle(comes("c1"))
    assert scene.coordinator.next_timer() == 5.0
    assert evaluators(scene.do(scene.coordinator.tick, at=5.0)) == [1]


def test_one_that_was_broken_off_and_that_nobody_can_make_is_said_to_be_left_out() -> None:
    scene = resumed(rounds=1)
    scene.handle(comes("c1", False))
    led = scene.handle(comes("c2", False))
    row, over = led.rows
    assert "no client that can evaluate was back in time" in row.fields["evaluation"]["fault"]
    assert (row.round, row.attempt) == (1, 1)
    assert over == fx.SaveJob("j", "finished", "") and scene.job.over


def test_one_that_was_broken_off_waits_no_longer_while_its_job_is_paused() -> None:
    scene = resumed(deadline_s=5.0)
    scene.do(job_life.pause, scene.coordinator, "j")
    assert scene.coordinator.next_timer() == math.inf
    scene.do(job_life.unpause, scene.coordinator, "j", at=9.0)
    led = scene.handle(o.JobOpened(NUMBER))
    assert led.rows[0].fields["evaluation"]["fault"] and scene.round.number == 2


def test_what_was_evaluated_is_not_again() -> None:
    scene = resumed(evaluated=True)
    assert scene.round.number == 2


def test_the_best_model_may_be_what_evaluations_found() -> None:
    scene = Scene(rounds=9, checkpoint={"keep": {"last": 1, "best": "-evaluation.loss"}})
    config = msgspec.to_builtins(scene.spec.config) | {"evaluation": {}}
    scene.spec = JobSpec(NUMBER, parse_job(config), scene.spec.layout, (), "/f")
    scene.running()
    scene.handle(comes("c1"))
    kept = []
    for number, loss in ((1, 2.0), (2, 1.0), (3, 1.5)):
        scene.job.rounds.current = None
        saving = scene.is_saving(number, ["c1"])
        saving.accepted["c1"] = Contribution("c1", 1.0, {"loss": 0.0})
        commit(scene)
        (row, *_) = scene.handle(found("c1", loss, number=number)).rows
        kept.append(row.fields.get("keep", {}).get("best"))
    assert kept == [[1, 2.0], [2, 1.0], None], "the third is not better"
    assert [each.kept.best for each in scene.kept] == [-1, 1, 2]


def test_a_job_that_is_paused_keeps_what_an_earlier_life_accepted_while_a_model_is_to_be_evaluated() -> None:
    """It gave its room back with the updates of the round that it was to go on with, which had been ACCEPTED."""
    scene = scene_of(deadline_s=5.0)
    for client in ("c1", "c2", "c3", "c4"):
        scene.handle(gm.ClientLeft(int(client[1:])))
    job = scene.coordinator.make(scene.spec)
    job.resume(1, {}, {2: (1, "open", {})}, adopting=True)
    job.evaluation.resume(1, evaluated=False)
    job.rounds.held = True
    scene.do(scene.coordinator.start, job, False)
    led = scene.handle(o.JobOpened(NUMBER))
    assert (led.ordered(o.CloseJob), job.round, job.queued) == ([], None, False)
    scene.do(scene.coordinator.tick, at=scene.turn.now + 10.0)
    assert (scene.round.number, scene.round.phase) == (2, Phase.RECOVERING)
