"""Options that change from round to round, or are a group's own; conditions on what clients say of themselves."""

from __future__ import annotations

import math
from typing import Any

import pytest

from lifl.core.config.condition import holds, parse_condition, values_of
from lifl.core.config.job import JobConfig, options_changed, parse_job
from lifl.core.errors import ConfigError
from lifl.core.fields import Properties

EU = Properties({"region": "eu"}, 120, "gpu")


def job(rounds: int = 11, **sections: Any) -> JobConfig:
    selection = {"clients_per_round": 2, **sections.pop("selection", {})}
    return parse_job(
        {"job": {"name": "j", "rounds": rounds}, "model": {"path": "/m"}, "selection": selection, **sections}
    )


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        ({"linear": [1.0, 0.0]}, {1: 1.0, 6: 0.5, 11: 0.0}),
        ({"linear": [0, 4, 3]}, {1: 0.0, 2: 2.0, 3: 4.0, 11: 4.0}),  # it stays where it has come to
        ({"cosine": [0.1, 0.001]}, {1: 0.1, 6: 0.0505, 11: 0.001}),
        ({"step": [0.8, 0.5, 5]}, {1: 0.8, 5: 0.8, 6: 0.4, 11: 0.2}),
    ],
)
def test_a_schedule_is_a_function_of_the_round(schedule: Any, values: dict[int, float]) -> None:
    config = job(client={"options": {"lr": schedule, "epochs": 2, "deep": {"lr": schedule}}})
    for number, value in values.items():
        options = config.client.options_of(number, 11)
        assert options["epochs"] == 2
        assert math.isclose(options["lr"], value, abs_tol=1e-12)
        assert options["deep"] == {"lr": options["lr"]}


def test_a_schedule_of_one_round_is_at_its_first_value() -> None:
    assert job(1, client={"options": {"lr": {"linear": [3.0, 1.0]}}}).client.options_of(1, 1) == {"lr": 3.0}


@pytest.mark.parametrize(
    ("schedule", "text"),
    [
        ({"cosine": [0.1]}, "lr.cosine: \\[0.1\\] is not \\[first, last\\]"),
        ({"linear": [0.1, True]}, "all of them numbers"),
        ({"linear": [1, 2, 2.5]}, "2.5 is no number of rounds"),
        ({"step": [1, 0.5]}, "is not \\[first, factor, every\\]"),
        ({"step": [1, -1, 1]}, "the factor -1 must be above 0"),
        ({"step": [1.0, 1e300, 1]}, "does not stay a number until round 11"),
    ],
)
def test_what_is_no_schedule_is_refused_by_its_key(schedule: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=f"client.options.*{text}"):
        job(client={"options": {"lr": schedule}})


def test_a_table_without_a_list_is_no_schedule() -> None:
    options = {"a": {"step": 3}, "b": {"linear": [1, 2], "more": 1}}
    assert job(client={"options": options}).client.options_of(7, 11) == options


def test_the_first_group_whose_condition_is_true_has_its_options() -> None:
    groups = [
        {"where": "region == 'eu'", "options": {"lr": {"linear": [2, 1]}}},
        {"where": "examples > 9", "options": {}},
    ]
    client = job(client={"options": {"lr": 1.0, "e": 1}, "by_label": groups}).client
    assert client.options_of(11, 11, 0) == {"lr": 1.0, "e": 1}
    assert options_changed(client.options_of(1, 11), client.options_of(1, 11, 0)) == {"lr": 2.0}
    assert options_changed(client.options_of(1, 11), client.options_of(1, 11, 1)) == {}


@pytest.mark.parametrize(
    ("client", "text"),
    [
        ({"by_label": [{"where": "region ==", "options": {}}]}, r"client.by_label\[0\].where: .*is no condition"),
        (
            {"by_label": [{"where": "a == 1", "options": {"lr": {"step": [1]}}}]},
            r"client.by_label\[0\].options.lr.step",
        ),
        ({"by_label": [{"where": "a == 1", "options": {"x": "y" * 300}}]}, r"client.by_label\[0\].options: .* 256 go"),
    ],
)
def test_a_group_is_refused_by_its_key(client: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        job(client=client)


@pytest.mark.parametrize(
    ("text", "true"),
    [
        ("region == 'eu' and examples >= 100", True),
        ("region != 'eu' or examples < 100", False),
        ("100 < examples <= 120", True),
        ("100 < examples < 120", False),
        ("'eu' == region", True),
        ("200 > examples", True),
        ("region in ('us', 'eu')", True),
        ("region not in ['us']", True),
        ("device == 'gpu' and client == 'c1'", True),
        ("not region == 'us'", True),
        ("zone != 'a'", False),  # what it has not said is in no comparison
        ("zone not in ('a',)", False),
        ("not zone == 'a'", True),
        ("region >= 3", False),  # a text and a number
        ("region != 3", False),
        ("region < 'f'", True),
        ("examples == -1", False),
    ],
)
def test_what_a_condition_says_of_a_client(text: str, true: bool) -> None:
    assert holds(parse_condition(text, "p"), values_of("c1", EU)) is true


@pytest.mark.parametrize(
    "text",
    [
        "region",
        "'a'",
        "region == eu",
        "f(region) == 'a'",
        "region.x == 'a'",
        "__import__('os').system('x') == 0",
        "region == True",
        "region == b'x'",
        "region in 'eu'",
        "region is 'eu'",
        "region == 1 if examples else 0",
        "(x := 1) == 1",
        "examples > 1e999",
        "region == f'{examples}'",
        "[r for r in region] == 'a'",
        "a == 1; b == 2",
        "(" * 500 + "a == 1" + ")" * 500,
        " or ".join(["a == 1"] * 100),
        "a == '\0'",
        "",
        "é == ",
        "région == 'eu'",
        "region == 'eu' or größe > 3",
        f"{'r' * 33} == 'eu'",
    ],
)
def test_what_is_no_condition_is_refused_by_its_key(text: str) -> None:
    with pytest.raises(ConfigError, match=r"selection.where"):
        job(selection={"where": text})


def test_candidates_go_with_power_of_choice() -> None:
    assert job(selection={"strategy": "power_of_choice", "candidates": 9}).selection.candidates == 9
    with pytest.raises(ConfigError, match=r"selection.candidates: goes with"):
        job(selection={"candidates": 9})
    with pytest.raises(ConfigError, match=r"selection.strategy: 'best' is none of uniform, power_of_choice"):
        job(selection={"strategy": "best"})
