"""Virtual clients: their names, what a trainer may do wrong, what is shown, what is refused before anything runs."""

from __future__ import annotations

import io
import math
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from lifl_cli.main import cli
from lifl_cli.render.simulations import comparison
from lifl_cli.simulated import Simulation
from rich.console import Console

from lifl.core.config.job import JobConfig, parse_job
from lifl.core.errors import ConfigError
from lifl.core.fields import Properties
from lifl.core.limits import RULE_CHARS_MAX, SIMULATED_CLIENTS_MAX
from lifl.core.schema import TensorSpec
from lifl.simulation.pools import Models
from lifl.simulation.trainers import (
    Functions,
    Trained,
    TrainerFailed,
    Training,
    evaluate,
    find,
    import_all,
    said_of,
    train,
)
from lifl.simulation.virtual_clients import check_selectable, names_of

TENSORS = (TensorSpec("w", "float32", (2,)), TensorSpec("b", "bfloat16", ()))
TRAINING = Training(7, 3, {"lr": 0.1}, TENSORS, ())


def model() -> dict[str, Any]:
    return {"w": np.zeros(2, np.float32), "b": np.zeros((), "bfloat16")}


def job(**selection: Any) -> JobConfig:
    table = {"job": {"name": "j", "rounds": 2}, "model": {"path": "m"}}
    return parse_job(table | {"selection": {"clients_per_round": 2} | selection})


def test_clients_have_the_names_that_the_job_allows() -> None:
    assert names_of(job(), 2) == ["client-0", "client-1"]
    assert names_of(job(), 11)[10] == "client-10" and names_of(job(), 11)[9] == "client-09"
    assert names_of(job(clients=["a", "site-*", "b"]), 4) == ["a", "b", "site-0", "site-1"]
    assert names_of(job(clients=["a", "b"]), 2) == ["a", "b"]
    with pytest.raises(ConfigError, match="lists 2 clients, --clients says 3"):
        names_of(job(clients=["a", "b"]), 3)


def test_a_trainer_gets_the_round_and_its_update_is_looked_at() -> None:
    def trainer(tensors: dict[str, Any], *, client: int, round: int, options: dict[str, Any]) -> Any:
        tensors["w"] += client * round * options["lr"]
        return tensors, 5, {"loss": np.float32(0.5)}

    done = train(trainer, model(), TRAINING)
    assert done.tensors["w"] == pytest.approx([2.1, 2.1]) and done.tensors["b"].dtype.name == "bfloat16"
    assert (done.weight, done.metrics) == (5.0, {"loss": 0.5})


def test_an_evaluator_gets_the_round_and_tells_metrics_alone() -> None:
    def evaluator(tensors: dict[str, Any], *, client: int, round: int, options: dict[str, Any]) -> Any:
        return {"accuracy": client * round * options["lr"]}, 5

    found = evaluate(evaluator, model(), TRAINING._replace(evaluates=True))
    assert found == Trained({}, 5.0, {"accuracy": pytest.approx(2.1)})
    for wrong, said in (((1, {}, 2), "a tuple of 3"), (({}, "no"), "weight"), ((0.5, 1), "metrics are a float")):
        with pytest.raises(TrainerFailed, match=said):
            evaluate(lambda _tensors, found=wrong, **_: found, model(), TRAINING)
    assert (TRAINING.model, TRAINING._replace(evaluates=True).model) == (2, 3)


def test_what_clients_say_of_themselves_is_asked_and_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    functions = SimpleNamespace(
        right=lambda client: {"labels": {"region": f"r{client}"}, "examples": client, "device": "gpu"},
        nothing=lambda client: {},
        none=lambda client: None,
        other=lambda client: {"label": "x"},
        negative=lambda client: {"examples": -client},
        broken=lambda client: 1 / client,
    )
    monkeypatch.setitem(sys.modules, "own", functions)
    assert said_of("own:nothing", 2) == [None, None]
    _, second = said_of("own:right", 2)
    assert second is not None and (second.labels, second.examples, second.device) == ({"region": "r1"}, 1, "gpu")
    wrong = {"none": "returned None", "other": "returned {'label'", "negative": "examples=-1"}
    wrong["broken"] = r"own:broken\(0\) raised ZeroDivisionError"
    for name, said in wrong.items():
        with pytest.raises(ConfigError, match=f"--properties: .*{said}"):
            said_of(f"own:{name}", 2)


def test_too_few_clients_of_whom_the_condition_is_true_are_refused_before_anything_waits() -> None:
    said = [Properties(labels={"region": "eu"}), None, Properties(labels={"region": "us"})]
    names = ["a", "b", "c"]
    check_selectable(job(where="client != 'b'"), names, said)
    with pytest.raises(ConfigError, match="true of 1 of 3 virtual clients, and a round begins with 2"):
        check_selectable(job(where="region == 'eu'"), names, said)


def test_a_traceback_begins_in_the_users_code_and_goes_from_process_to_process() -> None:
    with pytest.raises(TrainerFailed) as failed:
        train(fails, model(), TRAINING)
    lines = failed.value.trace.splitlines()
    assert lines[0].startswith("Traceback") and lines[-1] == "ValueError: it diverged"
    assert __file__ in lines[1] and "trainers.py" not in failed.value.trace
    again = pickle.loads(pickle.dumps(failed.value))
    assert (str(again), again.trace) == (str(failed.value), failed.value.trace)


def test_of_a_job_with_trainable_tensors_an_update_may_lack_some() -> None:
    training = TRAINING._replace(trainable=("*",))
    done = train(lambda tensors, **_: ({"b": tensors["b"]}, 1, {}), model(), training)
    assert list(done.tensors) == ["b"]


def fails(tensors: dict[str, Any], **_: Any) -> Any:
    raise ValueError("it diverged")


WRONG = {
    "raises": (fails, r"ValueError: it diverged \(.*test_simulation.py:\d+\)"),
    "ends": (lambda tensors, **_: sys.exit("enough"), "SystemExit: enough"),
    "takes no client": (lambda tensors, round, options: None, "TypeError: .*'client'"),
    "returns nothing": (lambda tensors, **_: None, "returned a NoneType, not"),
    "returns two": (lambda tensors, **_: (tensors, 1.0), "returned a tuple of 2, not"),
    "another shape": (lambda tensors, **_: (tensors | {"w": np.zeros(3, np.float32)}, 1, {}), "'w'"),
    "lacks one": (lambda tensors, **_: ({"w": tensors["w"]}, 1, {}), "'b'"),
    "NaN": (lambda tensors, **_: (tensors | {"w": np.full(2, math.nan, np.float32)}, 1, {}), "'w' contains NaN"),
    "no tensors": (lambda tensors, **_: (None, 1, {}), "an update is a dict of arrays"),
    "no weight": (lambda tensors, **_: (tensors, "many", {}), "the weight is 'many'"),
    "no metrics": (lambda tensors, **_: (tensors, 1, 0.5), "metrics are a float, not a dict"),
    "no number": (lambda tensors, **_: (tensors, 1, {"loss": "low"}), "metric loss is 'low'"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_with_a_trainer_is_said(wrong: str) -> None:
    trainer, said = WRONG[wrong]
    with pytest.raises(TrainerFailed, match=said):
        train(trainer, model(), TRAINING)


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("", "'' is not MODULE:FUNCTION"),
        ("train", "is not MODULE:FUNCTION"),
        (":train", "is not MODULE:FUNCTION"),
        ("math..x:y z", "is not MODULE:FUNCTION"),
        ("math:" + "s" * (RULE_CHARS_MAX - 4), "is not MODULE:FUNCTION"),
        ("math:" + "s" * (RULE_CHARS_MAX - 5), "has no attribute 'sss"),
        ("no_such_module:train", "No module named 'no_such_module' .*; it is looked for in the working folder"),
        ("math:train", "module 'math' has no attribute 'train'"),
        ("math:pi", "math:pi is a float, not a function"),
    ],
)
def test_a_trainer_that_is_none_is_said(named: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"--trainer: .*{said}"):
        find(named)
    option, _, trace = import_all(Functions(named))
    assert (option, trace) == ("--trainer", ""), "nothing of the user's was run: the line says it all"
    assert find("math:sqrt") is math.sqrt


def test_a_trainers_mistake_at_its_import_is_traced_to_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mistyped.py").write_text("def train(:\n    pass\n")
    (tmp_path / "needs_more.py").write_text("import no_such_library\n")
    for module, last in (("mistyped", "SyntaxError"), ("needs_more", "ModuleNotFoundError")):
        _, _, trace = import_all(Functions(f"{module}:train"))
        assert f"{module}.py" in trace and "importlib" not in trace
        assert trace.splitlines()[-1].startswith(last)


def test_a_rounds_model_is_fetched_once_and_the_last_two_are_kept() -> None:
    fetched: list[int] = []
    models = Models()
    for number in (1, 1, 2, 1, 3, 3, 1):
        assert models.of(number, lambda at=number: fetched.append(at) or at) == number
    assert fetched == [1, 2, 3, 1]


def test_two_simulations_side_by_side_fit_80_columns() -> None:
    found = [Simulation(f"configs/{name}-with-a-rather-long-name.toml", job()) for name in ("one", "other")]
    for number in (1, 2):
        fields = {"round": number, "counted": number, "metrics": {"accuracy": 0.9, "loss": 0.25}, "receipt": {}}
        found[0].rounds.append(fields)
    found[1].status, found[1].reason = "failed", "too few\x1b[31m updates"
    output = io.StringIO()
    Console(file=output, width=80).print(comparison(found))
    lines = output.getvalue().splitlines()
    assert max(map(len, lines)) <= 80 and "\x1b" not in output.getvalue()
    text = " ".join(output.getvalue().split())
    assert "1 accuracy 0.9 loss 0.25 1 of 2 - 2 accuracy 0.9 loss 0.25 - ended" in text and "failed too few" in text


CONFIG = '[job]\nname = "j"\nrounds = 1\n[model]\nexample = "digits-mlp"\n[selection]\nclients_per_round = 3\n'


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--clients", "3"], 2, "Missing option '--trainer'"),
        (["--clients", "0", "--trainer", "math:sqrt"], 2, "0 is not in the range"),
        (["--clients", str(SIMULATED_CLIENTS_MAX + 1), "--trainer", "math:sqrt"], 2, "not in the range"),
        (["--clients", "3", "--trainer", "math:sqrt", "job.toml", "job.toml"], 2, "one job's config, or two"),
        (["--clients", "3", "--trainer", "math:sqrt", "-o", "a", "-o", "b"], 2, "2 -o for 1 configs"),
        (["--clients", "3", "--trainer", "math:sqrt", "job.toml", "-o", "a", "-o", "./a"], 2, "one file for both"),
        (["--clients", "3", "--trainer", "math:sqrt", "-o", "nowhere/a"], 2, "there is no folder 'nowhere'"),
        (["--clients", "2", "--trainer", "math:sqrt"], 1, "3 is more than --clients 2"),
        (["--clients", "3", "--trainer", "math:sqrt", "--set", "job.round=1"], 1, "job.round"),
        (["--clients", "3", "--trainer", "math:sqrt", "--set", "selection.stratify='land'"], 1, "say no labels"),
    ],
)
def test_what_cannot_be_simulated_is_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "job.toml").write_text(CONFIG)
    done = CliRunner().invoke(cli, ["simulate", "job.toml", *arguments])
    assert done.exit_code == code and said in done.output, done.output
