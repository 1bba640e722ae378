"""What `/metrics` tells: checked by Prometheus' promtool, bounded, and with what rules and dashboard need."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lifl.core.limits import JOB_METRIC_SERIES_MAX, JOB_SERIES_MAX
from lifl.node.http.metrics import text_of
from lifl.node.http_door import status_of

CONFIGS = Path(__file__).parents[2] / "configs"
RULES, RULES_TEST = CONFIGS / "prometheus-rules.yml", CONFIGS / "prometheus-rules-test.yml"
DASHBOARD = CONFIGS / "grafana-dashboard.json"
needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool, of Debian's prometheus")

NOW = {"round": 4, "attempt": 1, "phase": "collecting", "selected": 3, "uploading": 1, "accepted": 2, "counted": 0}
LAST = {"round": 3, "committed_unix_s": 1.5e9, "duration_s": 2.5, "last_accepted_to_commit_s": 0.5, "counted": 3}


def job(name: str, status: str = "running", **more: Any) -> dict[str, Any]:
    now = NOW | {"goal": 3, "quorum": 2, "time_left_s": 12.5, "tree": []} if status == "running" else None
    last = {"last_round": LAST | {"bytes_in": 10, "cpu_s": 0.25, "selected": 3}, "metrics": {"loss": 0.5}}
    return {"name": name, "status": status, "committed": 3, "clients": 5, "now": now} | last | more


def told(jobs: list[dict[str, Any]], nodes: tuple[str, ...] = ()) -> str:
    node = {
        "node": "1f",
        "uptime_s": 5.0,
        "started_unix_s": 1.5e9,
        "warnings": [],
        "paused": False,
        "leads": True,
        "arena": {"bytes": 100, "used_bytes": 50, "peak_bytes": 60, "objects": 3, "waiting": 0},
        "gateway": {"pid": 5},
        "redirector": {"kind": "unix", "runs": 10, "unknown": 1, "dead": 0, "over": 2, "malformed": 0},
        "cpu_s": {"lifld": 1.5, "gateway": 2.5},
    }
    workers = [{"state": "idle"}, {"state": "running"}]
    snapshot = {"node": node, "workers": workers, "nodes": [{"state": state} for state in nodes], "jobs": jobs}
    return text_of({**status_of(snapshot), "clients": 2}).decode()


def series(text: str) -> dict[str, float]:
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if line[0] != "#"}


def test_what_a_status_has_is_told_with_its_units() -> None:
    found = series(told([job("j")], ("alive", "alive", "dead")))
    assert found['lifl_job_round_updates{job_name="j",state="accepted"}'] == 2
    assert found['lifl_job_rounds_committed_total{job_name="j"}'] == 3
    assert found['lifl_job_last_round_commit_seconds{job_name="j"}'] == 0.5
    assert found['lifl_nodes{state="alive"}'] == 2
    assert found['lifl_redirector_records_total{to="worker"}'] == 7
    assert found['lifl_workers{state="busy"}'] == 1
    assert (found['lifl_jobs{status="running"}'], found['lifl_jobs{status="failed"}']) == (1, 0)


def test_of_what_is_not_known_there_is_no_sample() -> None:
    text = told(
        [job("j", "finished", last_round=None), {"name": "damaged", "status": "unreadable", "last_round": None}]
    )
    assert "None" not in text
    assert "lifl_job_round_updates" not in text
    assert "lifl_nodes" not in text


def test_of_more_jobs_than_have_series_those_that_run_are_told() -> None:
    jobs = [job(f"over-{number}", "finished") for number in range(JOB_SERIES_MAX)]
    text = told([*jobs, job("runs")])
    assert text.count("lifl_job_status{") == JOB_SERIES_MAX
    assert 'lifl_job_status{job_name="runs",status="running"} 1' in text
    assert 'lifl_jobs{status="finished"} 64' in text


def test_what_a_jobs_clients_measured_is_told_by_name_and_no_more_than_so_many() -> None:
    metrics = {f"m{number:03}": float(number) for number in reversed(range(JOB_METRIC_SERIES_MAX + 1))}
    jobs = [job("j", metrics=metrics), job("k", metrics={"a": -1e300}), job("none", metrics={})]
    found = series(told(jobs))
    shown = [name for name in found if name.startswith("lifl_job_metric{")]
    assert len(shown) == JOB_METRIC_SERIES_MAX + 1
    assert found['lifl_job_metric{job_name="j",metric="m000"}'] == 0
    assert found['lifl_job_metric{job_name="k",metric="a"}'] == -1e300
    assert f'metric="m{JOB_METRIC_SERIES_MAX:03}"' not in told(jobs)


def test_what_an_evaluation_found_is_told_and_the_servers_word_counts() -> None:
    spread = {"mean": 0.5, "min": 0.25, "max": 0.75, "std": 0.1, "clients": 2}
    found = {
        "clients": 2,
        "selected": 3,
        "metrics": {"loss": spread, "b": spread},
        "server": {"metrics": {"loss": 9.0}},
    }
    many = {f"m{number:03}": spread for number in range(JOB_METRIC_SERIES_MAX + 1)}
    text = told([job("j", evaluation=found), job("k"), job("many", evaluation=found | {"metrics": many, "server": {}})])
    evaluated = {name: value for name, value in series(text).items() if name.startswith("lifl_job_evaluation{")}
    assert evaluated['lifl_job_evaluation{job_name="j",metric="loss"}'] == 9.0
    assert evaluated['lifl_job_evaluation{job_name="j",metric="b"}'] == 0.5
    assert len(evaluated) == 2 + JOB_METRIC_SERIES_MAX


def test_a_name_that_is_none_is_escaped() -> None:
    assert r'job_name="a\"b\\c\nd"' in told([job('a"b\\c\nd')])
    assert r'metric="a\"} 1\n\\"' in told([job("j", metrics={'a"} 1\n\\': 1.0})])


@needs_promtool
def test_promtool_finds_nothing_wrong_with_the_names() -> None:
    hostile = {'a"b\\c\nd': 1.0, "é\u202e<b>": float("nan"), "big": float("inf"), "": -0.0}
    text = told([job("j"), job("k", "paused", metrics=hostile)], ("alive",))
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs_promtool
@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "config", "--syntax-only", str(CONFIGS / "prometheus.yml")],
        ["check", "rules", str(RULES)],
        ["test", "rules", str(RULES_TEST)],
    ],
)
def test_config_and_rules_are_right_and_the_alerts_what_their_tests_say(arguments: list[str]) -> None:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "lifl_" not in done.stderr


def expressions() -> Iterator[str]:
    """What the dashboard and the rules ask Prometheus for."""
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        yield from (target["expr"] for target in panel.get("targets", ()))
    yield from re.findall(r"expr: (.*)", RULES.read_text())


def test_all_that_dashboard_and_rules_ask_for_is_told_by_a_node() -> None:
    names = {line.split()[2] for line in told([job("j")], ("alive",)).splitlines() if line.startswith("# TYPE")}
    asked = {name for expression in expressions() for name in re.findall(r"\blifl_\w+", expression)}
    assert len(asked) > 10
    assert asked <= names
