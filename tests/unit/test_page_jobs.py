"""A job's file that comes from a page: what is wrong with it is told by its key, before the node is asked."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from lifl.core.config.parse import overridden, table_of
from lifl.core.errors import ConfigError, Refused
from lifl.core.limits import CONFIG_FILE_BYTES_MAX, EDITS_MAX, WEB_MOVES_MAX
from lifl.core.protocol import http as hm
from lifl.node.http.page_jobs import PageJobs, _File, _job_of
from lifl.node.http.visits import Secrets, Visits

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


class SlowBody:
    """A request whose body never comes, or comes to its end."""

    reads = 0

    def arguments(self) -> dict[str, str]:
        return {"job": "j", "round": "1"}

    async def read(self, _most: int) -> bytes:
        self.reads += 1
        await asyncio.Event().wait()
        raise AssertionError


def test_who_may_only_look_takes_no_place_of_those_who_bring_files_however_slowly_a_body_comes() -> None:
    async def tried() -> None:
        visits = Visits(None)  # type: ignore[arg-type]
        reader, operator = Secrets("c1", "k1"), Secrets("c2", "k2")
        until = time.time() + 60
        visits.told(hm.VisitsTold((), ((reader.digest, until, "reader"), (operator.digest, until, "operator"))))
        jobs, body = PageJobs(visits), SlowBody()
        exchange: Any = body
        for asked in (jobs.submit, jobs.plan, jobs.take_piece, jobs.send_model):
            with pytest.raises(Refused) as refused:
                await asyncio.wait_for(asked(exchange, reader), 60)
            assert refused.value.code == "not-allowed"
            with pytest.raises(Refused) as refused:
                await asyncio.wait_for(asked(exchange, Secrets("c3", "k3")), 60)
            assert refused.value.code == "visit-over"
        assert not body.reads
        bringing = [asyncio.create_task(jobs.submit(exchange, operator)) for _ in range(WEB_MOVES_MAX)]
        await asyncio.sleep(0)
        assert body.reads == WEB_MOVES_MAX
        with pytest.raises(Refused) as refused:
            await jobs.submit(exchange, operator)
        assert refused.value.code == "quota"
        for task in bringing:
            task.cancel()
        await asyncio.wait(bringing)

    asyncio.run(tried())
