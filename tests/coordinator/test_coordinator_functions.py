"""Functions of the user's select a job's clients, and say when it has learned enough; nothing waits for them."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from coordinator_scene import NUMBER, Led, Scene, joined, sealed
from test_coordinator_evaluation import comes, found
from test_coordinator_selection import invited

from lifl.core import effects as fx
from lifl.core.config.job import parse_job
from lifl.core.coordinator import job_life
from lifl.core.coordinator.job_spec import JobSpec
from lifl.core.coordinator.round import Phase
from lifl.core.errors import ConfigError
from lifl.core.fields import Properties
from lifl.core.ids import epoch_of
from lifl.core.limits import CALL_BYTES_MAX, STOP_HISTORY_ROUNDS_MAX
from lifl.core.planning.shown import drawn_first
from lifl.core.protocol import commands as o
from lifl.core.protocol import gateway as gm
from lifl.core.protocol.contribution import Contribution
from lifl.core.protocol.user_calls import SELECTS, STOPS, CallFunction, FunctionReturned


def asked(led: Led) -> list[CallFunction]:
    return [order for _node, order in led.ordered(CallFunction)]


def given(led: Led) -> Any:
    """What the function was given that has just been asked."""
    (order,) = asked(led)
    return msgspec.msgpack.decode(order.given)


def returns(call: int, answer: Any = None, key: str = SELECTS, fault: str = "") -> FunctionReturned:
    packed = b"" if fault else answer if isinstance(answer, bytes) else msgspec.msgpack.encode(answer)
    return FunctionReturned(NUMBER, call, key, packed, fault)


# ---- who is selected -------------------------------------------------------------------------------------------------


def opened(clients: int = 4, **selection: Any) -> tuple[Scene, Led]:
    """A round has opened with so many clients, and the function is asked."""
    scene = Scene(strategy="mine:pick", **selection)
    scene.has_round(Phase.WAITING, [])
    for number in range(1, clients):
        scene.here(f"c{number}")
    said = Properties(labels={"zone": "eu"}, examples=7)
    return scene, scene.handle(msgspec.structs.replace(joined(f"c{clients}"), properties=said))


def test_a_function_is_asked_when_the_round_opens_and_those_it_names_are_invited() -> None:
    scene, led = opened()
    told = given(led)
    assert not invited(led) and scene.round.phase is Phase.COLLECTING
    (order,) = asked(led)
    assert (order.function, order.key, order.deadline_s) == ("mine:pick", SELECTS, 60.0)
    assert (told["wanted"], told["round"]) == (2, 1)
    by_name = {client["name"]: client for client in told["clients"]}
    assert list(by_name) != sorted(by_name), "they are in the order of the draw"
    assert by_name["c4"] == {"name": "c4", "labels": {"zone": "eu"}, "examples": 7, "device": "", "loss": None}
    led = scene.handle(returns(1, [3, 1]))
    names = list(by_name)
    assert invited(led) == [int(names[3][1:]), int(names[1][1:])]
    assert not asked(led)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ([0, 0], "names 2 clients of 2"),
        ([0, 1, 2], "names 3 clients of 2"),
        ([0, 9], "index out of range"),
        ([0, -1], "chose nobody"),
        (["c1", "c2"], "chose nobody"),
        ({}, "chose nobody"),
        (b"\xc1", "chose nobody"),
        (b"", "chose nobody"),
    ],
)
def test_an_answer_that_is_none_fails_the_attempt_and_says_so(answer: Any, why: str) -> None:
    scene, _ = opened(attempts=2)
    led = scene.handle(returns(1, answer))
    (failed, _begun) = led.rows
    assert failed.status == "failed" and "mine:pick (selection.strategy)" in failed.fields["reason"]
    assert why in failed.fields["reason"]
    assert not invited(led) and given(led)["seed"] == "0/1/2/0", "the next attempt asks anew"
    led = scene.handle(returns(2, fault="it raised"))
    assert led.rows[-1].status == "failed" and "at last: mine:pick" in led.rows[-1].reason


def test_nobody_else_is_asked_for_as_long_as_it_thinks_and_what_was_asked_before_does_not_count() -> None:
    scene, _ = opened()
    assert scene.handle(joined("c5")) == Led()
    assert scene.handle(returns(7, [0, 1])) == Led()
    assert scene.handle(returns(1, [True], key=STOPS)) == Led()
    assert len(invited(scene.handle(returns(1, [0, 1])))) == 2
    assert scene.handle(returns(1, [2])) == Led(), "it has answered"


def test_it_is_asked_again_when_one_is_gone_and_a_place_that_it_left_free_is_for_newcomers() -> None:
    scene, led = opened(quorum=1)
    first = given(led)["clients"][0]["name"]
    assert len(invited(scene.handle(returns(1, [0])))) == 1
    led = scene.handle(joined("c5"))
    assert given(led)["wanted"] == 1
    assert not invited(scene.handle(returns(2, [])))
    assert not asked(scene.handle(joined("c5"))), "it has seen all of them"
    led = scene.handle(gm.ClientLeft(int(first[1:])))
    assert given(led)["wanted"] == 2
    assert first not in [client["name"] for client in given(led)["clients"]]


def test_where_it_names_too_few_they_begin_and_the_round_waits_for_others_until_its_deadline() -> None:
    scene, _ = opened(deadline_s=5.0, attempts=1)
    lack = "mine:pick (selection.strategy) has named {} clients, and the round needs 2 (selection.quorum)"
    assert scene.job.selection.lack(scene.round) == "", "it is asked"
    led = scene.handle(returns(1, []))
    assert not led.rows and scene.job.selection.lack(scene.round) == lack.format(0)
    scene.handle(joined("c5"))
    assert len(invited(scene.handle(returns(2, [0])))) == 1
    assert scene.job.selection.lack(scene.round) == lack.format(1)
    assert scene.round.attempt == 1 and scene.round.phase is Phase.COLLECTING
    led = scene.do(scene.coordinator.tick, at=5.0)
    assert led.rows[-1].reason.endswith(f"{lack.format(1)}: no more by the deadline of 5 s")


def test_where_it_named_too_few_another_client_makes_the_round() -> None:
    scene, _ = opened()
    scene.handle(returns(1, [0]))
    led = scene.handle(joined("c5"))
    assert len(given(led)["clients"]) == 4 and len(invited(scene.handle(returns(2, [1])))) == 1
    assert len(scene.round.selected) == 2 and scene.job.selection.lack(scene.round) == ""


def test_who_is_gone_by_the_answer_is_not_invited_and_another_is_asked_for() -> None:
    scene, led = opened()
    names = [client["name"] for client in given(led)["clients"]]
    scene.handle(gm.ClientLeft(int(names[0][1:])))
    led = scene.handle(returns(1, [0, 1]))
    assert invited(led) == [int(names[1][1:])]
    assert [client["name"] for client in given(led)["clients"]] != names


def test_a_fault_when_somebody_is_to_be_replaced_is_told_and_the_round_goes_on() -> None:
    scene, led = opened(over_provision=1.5)
    names = [client["name"] for client in given(led)["clients"]]
    scene.handle(returns(1, [0, 1, 2]))
    assert asked(scene.handle(gm.ClientLeft(int(names[0][1:]))))
    led = scene.handle(returns(2, fault="it raised"))
    assert "it raised" in led.named("selection.fault")[0]["reason"]
    assert not led.rows and not asked(led) and scene.round.phase is Phase.COLLECTING


def test_a_round_that_is_closed_minds_no_answer_and_its_deadline_says_who_was_late() -> None:
    scene, _ = opened(deadline_s=5.0, attempts=1)
    led = scene.do(scene.coordinator.tick, at=5.0)
    assert "mine:pick (selection.strategy) had not chosen its clients by the deadline of 5 s" in led.rows[-1].reason
    assert scene.handle(returns(1, [0, 1])) == Led()


def test_those_who_have_an_update_of_the_round_come_first_and_late_ones_are_offered_where_they_are_needed() -> None:
    scene, led = opened()
    scene.handle(returns(1, [0, 1]))
    one, two = [int(client["name"][1:]) for client in given(led)["clients"]][:2]
    for number in (one, two):
        scene.handle(gm.Admit(number, f"c{number}", "j", 1, 1.0, {}))
    scene.handle(sealed(f"c{one}"))
    led = scene.handle(o.BranchFailed(NUMBER, epoch_of(1, 1), "full", True))
    assert invited(led) == [one]
    assert given(led)["wanted"] == 1 and f"c{one}" not in [client["name"] for client in given(led)["clients"]]


def test_more_clients_than_fit_are_cut_off_by_the_draw() -> None:
    scene = Scene(strategy="mine:pick")
    scene.has_round(Phase.WAITING, [])
    labels = {f"l{number:02d}" + "x" * 29: "v" * 64 for number in range(16)}
    said = {f"c{number:063d}": Properties(labels=labels) for number in range(3_000)}
    clients = list(said)
    scene.job.selection.choosing.ask(scene.round, clients, 2, said, {})
    led = scene.led()
    assert len(asked(led)[0].given) <= CALL_BYTES_MAX
    assert 2_000 < len(given(led)["clients"]) < 3_000
    assert set(scene.job.selection.choosing._seen) == set(clients), "those beyond it are not asked about one by one"


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"strategy": "power"}, "selection.strategy: 'power' is none of uniform, power_of_choice, module:function"),
        ({"strategy": "mine:pick()"}, "selection.strategy"),
        ({"strategy": "mine:pick", "candidates": 3}, "selection.candidates"),
        ({"strategy": "mine:pick", "stratify": "zone"}, "selection.stratify: mine:pick chooses"),
    ],
)
def test_what_names_no_strategy_is_refused_by_its_key(keys: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as raised:
        Scene(**keys)
    assert text in str(raised.value)


@pytest.mark.parametrize(
    ("strategy", "losses"), [("power_of_choice", [0.5, None]), ("mine:pick", [0.5, None]), ("", None)]
)
def test_last_losses_are_in_the_rows_of_a_job_that_looks_at_them_and_are_taken_up(strategy: str, losses: Any) -> None:
    scene = Scene(rounds=9, **({"strategy": strategy} if strategy else {}))
    scene.running()
    saving = scene.is_saving(1, ["c2", "c1"])
    saving.accepted["c1"] = Contribution("c1", 1.0, {"loss": 0.5})
    (row, *_) = scene.handle(o.ModelSaved(NUMBER, epoch_of(1, 1))).rows
    assert row.fields.get("losses") == losses and row.fields["members"] == ["c1", "c2"]
    scene.job.selection.resume({"c3": 0.25})
    if strategy == "mine:pick":
        scene.here("c3")
        led = scene.handle(joined("c4"))
        assert {client["name"]: client["loss"] for client in given(led)["clients"]} == {"c3": 0.25, "c4": None}


def test_lifl_plan_draws_round_1_as_the_coordinator_does() -> None:
    names = [f"c{number}" for number in range(1, 9)]
    scene = Scene(seed=7, clients=names)
    scene.has_round(Phase.WAITING, [])
    scene.here(*names)
    scene.do(scene.job.runner.try_open)
    assert list(scene.round.selected) == drawn_first(scene.spec.config)["clients"]


# ---- when it is enough -----------------------------------------------------------------------------------------------


def stopping(stop: str = "mine:enough", rounds: int = 9, **sections: Any) -> Scene:
    scene = Scene(rounds=rounds)
    config = msgspec.to_builtins(scene.spec.config)
    config["job"]["stop"] = stop
    scene.spec = JobSpec(NUMBER, parse_job(config | sections), scene.spec.layout, (), "/f")
    scene.running()
    scene.here("c1", "c2")
    return scene


def commit(scene: Scene, number: int, loss: float) -> Led:
    """A round is committed while no other runs."""
    scene.job.rounds.current = None
    scene.job.rounds.committed = number - 1
    saving = scene.is_saving(number, ["c1"])
    saving.accepted["c1"] = Contribution("c1", 1.0, {"loss": loss})
    return scene.handle(o.ModelSaved(NUMBER, epoch_of(number, 1)))


def test_a_function_is_told_all_rounds_and_the_next_one_runs_meanwhile() -> None:
    scene = stopping()
    led = commit(scene, 1, 2.0)
    assert given(led) == [{"round": 1, "loss": 2.0}]
    assert scene.round.number == 2
    assert scene.handle(returns(1, [False, ""], STOPS)) == Led()
    led = commit(scene, 2, 1.0)
    assert given(led) == [{"round": 1, "loss": 2.0}, {"round": 2, "loss": 1.0}]
    led = scene.handle(returns(2, [True, "it is low"], STOPS))
    assert led.rows[-1] == fx.SaveJob("j", "finished", "mine:enough: it is low")


def test_what_is_committed_while_it_thinks_is_told_when_it_has_answered() -> None:
    scene = stopping("loss < 0 or mine:enough")
    commit(scene, 1, 2.0)
    assert not asked(commit(scene, 2, 1.0)) and not asked(commit(scene, 3, 0.5))
    led = scene.handle(returns(1, [False, ""], STOPS))
    assert [each["round"] for each in given(led)] == [1, 2, 3]
    assert scene.handle(returns(2, [False, ""], STOPS)) == Led()
    led = commit(scene, 4, -1.0)
    assert led.rows[-1] == fx.SaveJob("j", "finished", "loss < 0: loss is -1"), "the other form still holds"


@pytest.mark.parametrize("report", [{"fault": "it raised"}, {"answer": "yes"}, {"answer": b"\xc1"}, {"answer": [1, 2]}])
def test_a_function_that_fails_is_told_of_and_the_job_goes_on(report: dict[str, Any]) -> None:
    scene = stopping()
    commit(scene, 1, 2.0)
    led = scene.handle(returns(1, key=STOPS, **report))
    assert "mine:enough (job.stop) has not said whether to stop" in led.named("stop.fault")[0]["reason"]
    assert scene.job.stopping.fault and scene.job.status == "running"
    commit(scene, 2, 2.0)
    scene.handle(returns(2, [False, ""], STOPS))
    assert not scene.job.stopping.fault


def test_a_job_with_evaluations_tells_what_these_have_found() -> None:
    scene = stopping(evaluation={"every": 1})
    scene.handle(comes("c1"))
    assert not asked(commit(scene, 1, 9.0))
    assert given(scene.handle(found("c1", 0.5))) == [{"round": 1, "loss": 0.5}]
    assert scene.round.number == 2
    led = scene.handle(returns(1, [True, ""], STOPS))
    assert led.rows[-1] == fx.SaveJob("j", "finished", "mine:enough says so")


def test_the_history_is_bounded_and_another_life_goes_on_with_it() -> None:
    scene = stopping()
    scene.job.stopping.begin((), [(number, {"loss": 1.0}) for number in range(1, STOP_HISTORY_ROUNDS_MAX + 1)])
    led = commit(scene, STOP_HISTORY_ROUNDS_MAX + 1, 0.5)
    assert len(given(led)) == STOP_HISTORY_ROUNDS_MAX
    assert (given(led)[0]["round"], given(led)[-1]["loss"]) == (2, 0.5)
    many = {f"{number:03d}" + "x" * 29: 1.0 for number in range(256)}
    scene = stopping()
    scene.job.stopping.begin((), [(number, many) for number in range(900)])
    assert len(asked(commit(scene, 900, 0.5))[0].given) <= CALL_BYTES_MAX


def test_what_was_asked_when_the_job_was_paused_is_asked_again_when_it_goes_on() -> None:
    scene = stopping()
    scene.handle(gm.ClientLeft(2))  # so the next round waits
    commit(scene, 1, 2.0)
    led = scene.do(job_life.pause, scene.coordinator, "j")
    assert led.ordered(o.CloseJob) and scene.coordinator.next_timer() == math.inf
    scene.do(job_life.unpause, scene.coordinator, "j")
    led = scene.handle(o.JobOpened(NUMBER))
    assert given(led) == [{"round": 1, "loss": 2.0}]
    assert scene.handle(returns(1, [True, ""], STOPS)) == Led(), "that worker was let go"
    assert scene.handle(returns(2, [True, ""], STOPS)).rows[-1].status == "finished"


def test_two_functions_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"job.stop: names 2 functions, a:b, c:d"):
        stopping("a:b or c:d")
