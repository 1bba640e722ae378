"""`checkpoint.keep`: files go as later rounds commit, through the death of lifld; `lifl model` says which there are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from fleet import OneHot, Update, Watch, fleet, submit, until
from nodes import Node, run_lifl
from safetensors.numpy import load_file, save_file
from stops import Stops

from lifl.node.keeper import models_in

N, ROUNDS, BEST = 2, 7, 2
KEEP = {"last": 1, "every": 3, "best": "-loss"}
STAY = [0, BEST, 3, 6, ROUNDS]


def update(index: int, number: int) -> Update:
    tensors, weight, _ = OneHot(N).update(index, number)
    return tensors, weight, {"loss": 0.25 if number == BEST else 1.0}


def there(node: Node) -> list[int]:
    return sorted(models_in(node.state_dir / "jobs" / "j"))


def refused(node: Node, *arguments: str) -> str:
    done = run_lifl(*arguments, "--state", str(node.state_dir))
    assert done.returncode == 1, done.stdout
    assert len(done.stderr.splitlines()) == 1
    return done.stderr


@pytest.fixture
def kept(start_node: Callable[..., Node]) -> Node:
    """A node whose job has finished; lifld died when it was about to remove a model."""
    point = "lifld.remove.before"
    with Stops(point) as stops:
        node, oracle = start_node("--redirector", "unix", points=stops.variable), OneHot(N)
        answer = submit(node, "j", oracle.model(), job__rounds=ROUNDS, checkpoint__keep=KEEP)
        need = answer["disk"]
        assert need["models"] == 6
        assert need["bytes"] > 6 * answer["model_bytes"] > 0, "files have headers, and take whole blocks"
        assert need["free_bytes"] > 0
        hold = stops.hold(point)
        with fleet(node.address, "j", N, update) as team:
            visit = hold.reached()
            assert 1 in there(node)
            children = psutil.Process(node.pid).children(recursive=True)
            node.kill()
            visit.go()
            psutil.wait_procs(children)
            node.points = ""
            node.up("--listen", node.address)
            team.join()
    Watch(node, "j").over()
    until(f"rounds {STAY}", lambda: there(node) == STAY)
    return node


def test_what_stays_is_there_and_can_be_had_and_looked_into(kept: Node, tmp_path: Path) -> None:
    node, target = kept, tmp_path / "m.safetensors"
    for which, number in (("best", BEST), ("last", ROUNDS), ("3", 3)):
        node.lifl("model", "j", "-o", str(target), "--round", which)
        assert load_file(target)["w"].sum() == pytest.approx(number)
    node.lifl("model", "-o", str(target), "j")
    assert load_file(target)["w"].sum() == pytest.approx(ROUNDS)
    text = refused(node, "model", "j", "--round", "4", "-o", str(target))
    assert "round 4 of job j was not kept (checkpoint.keep); there are: 0, 2-3, 6-7" in text
    assert "no model of round 8; it has: 0, 2-3, 6-7" in refused(node, "model", "j", "--round", "8", "-o", str(target))
    status = node.lifl("status", "j")
    assert "of rounds 0, 2-3, 6-7" in status
    assert "best is round 2: loss 0.25" in status
    assert len(node.json("status", "j")["rounds"]) == ROUNDS, "the rows of rounds stay"
    looked_into(node, tmp_path)
    # What the next life finds is as it was.
    node.kill()
    (node.state_dir / "jobs" / "j" / "round-00005.safetensors").write_bytes(b"left by a life that was killed")
    node.up()
    until("what was left is gone", lambda: there(node) == STAY)


def looked_into(node: Node, folder: Path) -> None:
    info = node.json("model", "info", "j", "--round", "best")
    tensors = {line["name"]: line for line in info["tensors"]}
    assert (tensors["w"]["dtype"], tensors["w"]["shape"], tensors["w"]["bytes"]) == ("float32", [N], 4 * N)
    assert tensors["w"]["norm"] == pytest.approx(np.sqrt(N) * BEST / N)
    assert info["digest"] == node.json("status", "j")["rounds"][BEST - 1]["digest"]
    found = node.json("model", "diff", "j@best", "j@last")
    (line,) = [line for line in found["tensors"] if line["name"] == "w"]
    assert line["changed_share"] == 1.0
    assert line["max_abs"] == pytest.approx((ROUNDS - BEST) / N)
    assert line["relative"] == pytest.approx((ROUNDS - BEST) / BEST)
    one, other = folder / "one.safetensors", folder / "other.safetensors"
    save_file({"a": np.zeros(3, np.float32), "b": np.ones(2, np.int8), "n": np.array([np.nan, 1], np.float32)}, one)
    save_file({"a": np.zeros((1, 3), np.float32), "c": np.ones(2), "n": np.array([np.nan, 2], np.float32)}, other)
    found = node.json("model", "diff", str(one), str(other))
    assert (found["added"], found["removed"]) == (["c"], ["b"])
    assert found["changed"] == [{"name": "a", "before": "float32[3]", "after": "float32[1, 3]"}]
    assert found["tensors"] == [{"name": "n", "max_abs": 1.0, "relative": None, "changed_share": 0.5}]
    shown = node.lifl("model", "info", str(one))
    assert "1 are NaN or infinite" in shown
    (folder / "x.safetensors").write_bytes(b"{}")
    assert "no usable safetensors file" in refused(node, "model", "info", str(folder / "x.safetensors"))
    assert "no job 'none'" in refused(node, "model", "info", "none")


def test_best_of_a_job_that_names_none_says_what_to_do(start_node: Callable[..., Node], tmp_path: Path) -> None:
    node: Any = start_node("--redirector", "unix")
    submit(node, "j", OneHot(N).model())
    assert "checkpoint.keep = {best" in refused(node, "model", "j", "-o", str(tmp_path / "m"), "--round", "best")
    done = run_lifl("model", "j", "-o", "x", "--round", "worst", "--state", str(node.state_dir))
    assert (done.returncode, "none of best, last and the number" in done.stderr) == (2, True)
    assert json.loads(node.lifl("status", "j", "--json"))["models"]["best"] is None
