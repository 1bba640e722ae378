"""Who is selected, and what they are told, by what clients say of themselves."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
from coordinator_scene import CLOSED, HOME, Scene, joined
from test_coordinator_selection import invited

from lifl.core.config.job import SelectionSection, parse_job
from lifl.core.coordinator.round import Phase
from lifl.core.fields import Properties
from lifl.core.planning.draw import drawn, shares
from lifl.core.protocol import client as cm
from lifl.core.protocol import gateway as gm
from lifl.core.protocol.contribution import Contribution


def comes(client: str, **said: Any) -> gm.ClientJoined:
    return msgspec.structs.replace(joined(client), properties=Properties(**said))


def test_those_alone_are_selected_of_whom_the_condition_is_true() -> None:
    scene = Scene(where="region == 'eu'")
    scene.has_round(Phase.WAITING, [])
    for client in (joined("c1"), comes("c2", labels={"region": "us"}), comes("c3", labels={"region": "eu"})):
        assert not invited(scene.handle(client)), "two are wanted"
    assert invited(scene.handle(comes("c4", labels={"region": "eu"}))) == [3, 4]
    assert len(scene.job.present) == 4, "the others stay, and wait"


def test_one_that_comes_again_and_says_otherwise_is_what_it_said_last() -> None:
    scene = Scene(goal=1, where="examples > 5")
    scene.has_round(Phase.WAITING, [])
    assert not invited(scene.handle(comes("c1", examples=5)))
    assert invited(scene.handle(comes("c1", examples=6))) == [1]
    scene.handle(gm.ClientLeft(1))
    assert not scene.coordinator.presence.said("j")


def test_a_round_tells_what_it_makes_of_the_options_and_a_group_has_its_own() -> None:
    scene = Scene(rounds=3)
    groups = [{"where": "device == 'phone'", "options": {"epochs": 1, "lr": {"linear": [4.0, 0.0]}}}]
    section = {"options": {"lr": {"linear": [1.0, 0.0]}, "epochs": 2}, "by_label": groups}
    config = msgspec.to_builtins(scene.spec.config) | {"client": section}
    scene.spec = type(scene.spec)(scene.spec.number, parse_job(config), scene.spec.layout, (), "/f")
    scene.has_round(Phase.WAITING, [], number=2)
    scene.handle(comes("c1", device="phone"))
    led = scene.handle(joined("c2"))
    told = {conn: message.options for conn, message in led.said(cm.Selected)}
    assert told == {1: {"epochs": 1, "lr": 2.0}, 2: {"lr": 0.5}}


def section(**keys: Any) -> SelectionSection:
    return msgspec.convert({"clients_per_round": 1, **keys}, SelectionSection)


NAMES = [f"c{index}" for index in range(100)]


def test_a_stratum_has_its_share_of_a_round() -> None:
    said = {name: Properties({"region": "eu" if index < 70 else "us"}) for index, name in enumerate(NAMES[:90])}
    for seed in range(20):
        chosen = drawn(NAMES, 10, str(seed), section(stratify="region"), said, {})
        assert len(set(chosen)) == 10
        regions = Counter(said[client].labels["region"] if client in said else "" for client in chosen)
        assert regions == {"eu": 7, "us": 2, "": 1}
    assert shares({"a": 1, "b": 1, "c": 1}, 2) == {"a": 1, "b": 1, "c": 0}
    assert drawn(NAMES[::-1], 10, "1", section(stratify="region"), said, {}) == drawn(
        NAMES, 10, "1", section(stratify="region"), said, {}
    )


def test_power_of_choice_takes_the_greatest_losses_and_those_that_are_unknown_first() -> None:
    keys = section(strategy="power_of_choice", candidates=100)
    losses = {name: float(index) for index, name in enumerate(NAMES[2:])}
    chosen = drawn(NAMES, 4, "seed", keys, {}, losses)
    assert set(chosen[:2]) == {"c0", "c1"}
    assert chosen[2:] == ["c99", "c98"]


def test_power_of_choice_draws_who_has_more_examples_more_often() -> None:
    keys = section(strategy="power_of_choice", candidates=10)
    said = {
        name: Properties(examples=0 if name == "c0" else 9 if index >= 50 else 1) for index, name in enumerate(NAMES)
    }
    counts = Counter(client for seed in range(200) for client in drawn(NAMES, 10, str(seed), keys, said, {}))
    large = sum(counts[name] for name in NAMES[50:])
    assert not counts["c0"]
    assert 0.8 < large / counts.total() < 0.95, "nine in ten examples are theirs"


def test_the_last_losses_are_those_of_accepted_updates() -> None:
    scene = Scene(goal=1, strategy="power_of_choice", candidates=3)
    scene.running(model_round=1)
    before = scene.books(Phase.SAVING, [(HOME, 2, CLOSED)], {"c1": 0, "c2": 0}, {}, [], 1, 1)
    for client, loss in (("c1", 0.5), ("c2", 2.0)):
        before.accepted[client] = Contribution(client, 1.0, {"loss": loss})
    scene.job.selection.ended(before)
    scene.here("c1", "c2")
    scene.has_round(Phase.WAITING, [], number=2)
    assert invited(scene.do(scene.coordinator.node_suspect, HOME, False)) == [2]
