"""A job's file that comes from a page: what is wrong with it is told by its key, before the node is asked."""

from __future__ import annotations

import pytest

from lifl.core.config.parse import overridden, table_of
from lifl.core.errors import ConfigError
from lifl.core.limits import CONFIG_FILE_BYTES_MAX, EDITS_MAX
from lifl.node.http.page_jobs import _File, _job_of

GOOD = """[job]
name = "mine"
rounds = 1
[model]
path = "model.safetensors"
[selection]
clients_per_round = 2
"""
RULE, CHECKPOINT = "[aggregation]\n", "[checkpoint]\n"


@pytest.mark.parametrize(
    ("text", "field", "says"),
    [
        ("", "job", "missing"),
        ("[job\n", "", r"not TOML.*line 1"),
        ("a = " + "9" * 5000, "", "not TOML"),
        ("a = " + "[" * 3000, "", "not TOML"),
        (".".join("a" * 100_000) + " = 1\n", "", "not TOML: a key has more than 32 parts .at line 1"),
        ("[" + ".".join("a" * 33) + "]", "", "more than 32 parts"),
        ('x = {"=" = 1, ' + '"=" . a.' * 20 + "b = 1}", "", "more than 32 parts"),
        ('"\\"".' + ".".join("a" * 40) + '."x" = 1', "", "more than 32 parts"),
        ("x = {a = '''\n''', " + ".".join("b" * 40) + " = '1'}", "", "line 2"),
        ("x" + GOOD.replace("]", "]  # " + "." * 90 + " a.b" + "'", 1), "", "not TOML"),
        ("x = 1\n" + GOOD, "x", "unknown key"),
        (GOOD + "client_per_round = 3\n", "selection.client_per_round", "did you mean"),
        (GOOD.replace("= 2", '= "<script>"'), "selection.clients_per_round", "<script>"),
        (GOOD.replace('"mine"', '"../mine"'), "job.name", "no name"),
        (GOOD.replace('"mine"', '"\\u202emine"'), "job.name", "no name"),
        (GOOD + RULE + 'rule = "median:Mine"\n', "aggregation.rule", "submit the job there"),
        (GOOD + RULE + 'rule = "fedadm"\n', "aggregation.rule", "did you mean"),
        (GOOD + RULE + "[aggregation.options]\nx = 1\n", "aggregation.options.x", "no such option"),
        (GOOD + '[evaluation]\nevery = 1\nserver = "mine:run"\n', "evaluation.server", "submit the job there"),
        (GOOD + CHECKPOINT + 'folder = "models"\n', "checkpoint.folder", "absolute path"),
        (GOOD + '[metrics]\ntracker = "tensorboard"\naddress = "runs"\n', "metrics.address", "absolute path"),
        (GOOD + 'clients_file = "hospitals.txt"\n', "selection.clients_file", "file of your machine"),
        (GOOD.replace('path = "model.safetensors"', 'example = "digits"'), "model.example", "did you mean"),
        ("#" * (CONFIG_FILE_BYTES_MAX + 1), "", "longer than"),
        ("# \ud800\n" + GOOD, "", None),
    ],
)
def test_what_is_wrong_is_told_by_its_key(text: str, field: str, says: str | None) -> None:
    if says is None:
        _job_of(_File(text))
        return
    with pytest.raises(ConfigError, match=f"(?s){says}") as error:
        _job_of(_File(text))
    assert error.value.path == field


def test_a_model_that_was_brought_is_the_one_and_one_too_many_is_refused() -> None:
    found = _job_of(_File(GOOD, ["job.rounds=7"], "/state/models/uploaded-1.safetensors"))
    assert (found.config.job.rounds, found.config.model.path, found.wants_model) == (
        7,
        "/state/models/uploaded-1.safetensors",
        False,
    )
    assert found.config.aggregation.rule_folder == "/"
    assert _job_of(_File(GOOD)).wants_model
    assert not _job_of(_File(GOOD.replace("model.s", "/there/model.s"))).wants_model
    without = GOOD.replace('[model]\npath = "model.safetensors"\n', "")
    assert _job_of(_File(without, model='odd "name"\\.safetensors')).config.model.path == 'odd "name"\\.safetensors'
    with pytest.raises(ConfigError) as error:
        _job_of(_File(GOOD.replace("path", "from").replace("model.safetensors", "other"), model="/m"))
    assert error.value.path == "model.path"
    example = _job_of(_File(GOOD.replace('path = "model.safetensors"', 'example = "digits-mlp"')))
    assert example.model[8:9] == b"{" and not example.wants_model


def test_only_so_many_keys_are_set_beside_the_file() -> None:
    sets = [f"client.options.x{number}=1" for number in range(EDITS_MAX)]
    assert (
        len(_job_of(_File(GOOD, sets)).config.client.options)
        == EDITS_MAX
        == len(overridden({}, sets)["client"]["options"])
    )
    with pytest.raises(ConfigError, match="at most"):
        _job_of(_File(GOOD, [*sets, "job.rounds=1"]))


def test_a_key_has_so_many_parts_and_no_text_is_taken_for_one() -> None:
    """Of what is quoted, a comment, or numbers, no dots count."""
    names = [f"a.b.{number}.org" for number in range(100)]
    lines = [
        f"names = {names}",
        f"rates = {[0.5] * 100}",
        "#" + " . " * 100,
        "#" + "." * 100,
        ".".join("k" * 32) + " = 1",
    ]
    found = table_of("\n".join(lines))
    assert found["names"] == names and found["rates"] == [0.5] * 100
    with pytest.raises(ConfigError, match="more than 32 parts"):
        overridden({}, ["job.name={" + ".".join("a" * 33) + "=1}"])
    assert overridden({}, ["job.name=1\n" + ".".join("a" * 100_000) + "=1"])["job"]["name"].startswith("1\n"), "a text"
