"""Which keys of a job may change: one list, and each other key refused with its reason."""

from __future__ import annotations

import pytest
from lifl_cli.render.figures import changes_text

from lifl.core.config.edits import EDITABLE, REASONS, edited
from lifl.core.config.job import JobConfig, parse_job
from lifl.core.config.parse import known_keys
from lifl.core.errors import ConfigError

TABLE = {
    "job": {"name": "j", "rounds": 3},
    "model": {"path": "/m"},
    "selection": {"clients_per_round": 2},
    "client": {"options": {"lr": 0.1, "opt": {"beta": [1]}}},
}
CONFIG = parse_job(TABLE)


def test_what_may_change_is_changed_and_named() -> None:
    found = edited(
        CONFIG, ["client.options.lr=0.01", "client.options.opt.beta=[2, 3]", "job.rounds = 5", "job.rounds=6"]
    )
    assert found.config.client.options == {"lr": 0.01, "opt": {"beta": [2, 3]}}
    assert found.config.job.rounds == 6
    assert found.changes == {"client.options.lr": 0.01, "client.options.opt.beta": [2, 3], "job.rounds": 6}
    assert edited(CONFIG, ["client.options={}"]).config.client.options == {}
    assert (CONFIG, edited(CONFIG, []).config) == (parse_job(TABLE), CONFIG)


def test_changes_are_shown_in_one_line_whatever_they_are() -> None:
    changes = {
        "client.options.ü": "模",
        "client.options.x": "y\n\x1b[0m",
        "client.options.long": "z" * 999,
        "job.rounds": 2,
    }
    assert changes_text(changes) == (
        'client.options.ü = "模", client.options.x = "y\\n\\u001b[0m", client.options.long = "'
        + "z" * 59
        + "..., job.rounds = 2"
    )


@pytest.mark.parametrize("key", [key for key, section in known_keys(JobConfig).items() if not section])
def test_each_key_is_on_the_list_or_refused_with_a_reason(key: str) -> None:
    assert set(EDITABLE) <= set(known_keys(JobConfig)) and set(REASONS) <= set(known_keys(JobConfig))
    values = {
        "job.rounds": "5",
        "job.priority": "7",
        "client.options": "{}",
        "selection.quorum": "1",
        "client.by_label": "[]",
    }  # of the others 2 is a value, or does not matter
    given = "99" if key.startswith("history.keep.") else values.get(key, "2")
    if any(f"{key}.".startswith(f"{may}.") for may in EDITABLE):
        assert edited(CONFIG, [f"{key}={given}"]).changes.keys() == {key}
        return
    with pytest.raises(ConfigError, match="cannot be changed any more") as error:
        edited(CONFIG, [f"{key}={given}"])
    assert error.value.path == key


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("client.option.lr=1", "did you mean client.options"),
        ("job.rounds=0", "job.rounds"),
        ("selection.quorum=3", "is more than selection.clients_per_round"),
        ("client.options.lr=nan", "finite"),
        ("client.options", "section.key=value"),
        ("client={options={}}", "is a section"),
        ("nothing.x=1", "nothing"),
        ("=1", "section.key=value"),
        ("client.options.=1", "section.key=value"),
        ("job.rounds=ten", "job.rounds"),
    ],
)
def test_what_is_no_change_is_refused_by_its_key(override: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        edited(CONFIG, [override])
