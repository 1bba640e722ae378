"""The command line of a cluster without one: plans for nodes that need not exist, tables, and what is insecure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from lifl_cli import plan, up
from lifl_cli.config_file import with_clients_read
from lifl_cli.render import tables, trees
from nodes import run_lifl

from lifl.core.config.job import JobConfig, parse_job
from lifl.core.errors import ConfigError
from lifl.core.limits import ARENA_BYTES_MAX, CAPACITY_MAX
from lifl.core.planning.plan import NodeFacts, PlanRequest
from lifl.core.planning.planner import make_plan
from lifl.core.planning.shown import drawn_first

CONFIG = str(Path(__file__).parents[2] / "configs" / "digits.toml")
FORTY = ["--set", "selection.clients_per_round=40"]
THREE = ["--node", "a:20:64MiB", "--node", "b:20:64MiB", "--node", "c:20:64MiB"]


def rendered(content: Any, columns: int = 160) -> str:
    from rich.console import Console

    console = Console(width=columns, force_terminal=False)
    with console.capture() as capture:
        console.print(content)
    return capture.get()


# ---- lifl plan -------------------------------------------------------------------------------------------------------


def planned(*arguments: str) -> dict[str, Any]:
    done = run_lifl("plan", CONFIG, "--json", *arguments)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(("placement", "used"), [("best-fit", 2), ("worst-fit", 3), ("round-robin", 3)])
def test_the_jobs_placement_decides_how_many_nodes_are_used(placement: str, used: int) -> None:
    found = planned(*FORTY, *THREE, "--set", f"aggregation.placement={placement}")
    assert len(found["used"]) == used
    assert sum(part["updates"] for part in found["plan"]["nodes"]) == 40
    assert found["transfer_bytes"] == sum(line["nbytes"] for line in found["plan"]["transfers"])


def test_a_plan_is_made_again_from_the_request_that_was_printed() -> None:
    found = planned(*FORTY, *THREE)
    request = msgspec.convert(found["request"], PlanRequest)
    assert json.loads(msgspec.json.encode(make_plan(request))) == found["plan"]


def test_a_plan_for_people_names_nodes_bytes_arena_and_time_and_says_why_when_asked(tmp_path: Path) -> None:
    # A state folder that does not exist: nothing is asked of a daemon, and nothing is written.
    state = tmp_path / "none"
    done = run_lifl("plan", CONFIG, *FORTY, *THREE, "--explain", "--state", str(state))
    assert done.returncode == 0, done.stderr
    for text in ("top on a", "nodes used     2 of 3: a, b", "between nodes", "b -> a", "arena peak", "expected time"):
        assert text in done.stdout
    assert "c: is not needed" in done.stdout
    assert "is not needed" not in run_lifl("plan", CONFIG, *FORTY, *THREE).stdout
    assert not state.exists()


def test_one_node_has_the_whole_tree() -> None:
    done = run_lifl("plan", CONFIG, "--node", "alone:64:64MiB")
    assert "nodes used     1 of 1: alone" in done.stdout
    assert "between nodes  0 B" in done.stdout


def test_a_job_that_fits_no_arena_is_refused_with_the_numbers() -> None:
    done = run_lifl("plan", CONFIG, "--node", "a:20:32KiB")
    assert done.returncode == 1
    assert "has 32768" in done.stderr
    assert "model 9664" in done.stderr


@pytest.mark.parametrize("text", ["a", "a:20", "a:x:1GiB", ":20:1GiB", "two words:1:1GiB", "a:nan:1GiB"])
def test_what_is_no_node_is_refused_with_the_form(text: str) -> None:
    with pytest.raises(ConfigError, match="NAME:CAPACITY:ARENA"):
        plan.parse_supposed(text)


def test_a_supposed_node_is_free_of_load() -> None:
    facts = plan.parse_supposed("rack:3:7.5:2GiB")
    assert (facts.node, facts.residual, facts.arena_bytes) == ("rack:3", 7.5, 2 << 30)


def test_a_supposed_node_is_one_that_can_be() -> None:
    facts = plan.parse_supposed(f"a:{CAPACITY_MAX:.0f}:{ARENA_BYTES_MAX}")
    assert (facts.residual, facts.arena_bytes) == (CAPACITY_MAX, ARENA_BYTES_MAX)
    for text in (f"a:{CAPACITY_MAX * 1.001}:1GiB", f"a:1:{ARENA_BYTES_MAX + 1}"):
        with pytest.raises(ConfigError, match=r"--node.*(0 to 1000000|at most 17592186044416 bytes)"):
            plan.parse_supposed(text)


@pytest.mark.parametrize("arguments", [["nodes"], ["plan", CONFIG]])
def test_without_a_node_they_say_how_to_start_one(arguments: list[str], state_dir: Path) -> None:
    done = run_lifl(*arguments, "--state", str(state_dir))
    assert done.returncode == 1
    assert f"no lifld runs with state folder {state_dir}" in done.stderr


# ---- lifl nodes, lifl top --------------------------------------------------------------------------------------------


def line(name: str, **more: Any) -> dict[str, Any]:
    return {
        "node": name,
        "state": "alive",
        "incarnation": 1,
        "control": f"{name}:7434",
        "gateway": f"{name}:7433",
        "coordinator": False,
        "rate_per_s": 12.5,
        "execution_s": 0.02,
        "capacity": 20.0,
        "residual": 19.75,
        "arena_bytes": 1 << 30,
        "arena_used_bytes": 1 << 20,
        "workers": 2,
        "since_s": 125.0,
    } | more


def test_the_table_of_nodes_tells_coordinator_state_and_load() -> None:
    text = rendered(tables.nodes_table([line("a", coordinator=True), line("b", state="suspect", execution_s=0.0)]))
    _head, first, second = text.splitlines()
    assert first.split()[:3] == ["a", "*", "alive"]
    assert "0.2 of 20.0" in first
    assert "1.0 MiB of 1.0 GiB" in first
    assert second.split()[:2] == ["b", "suspect"]
    assert "*" not in second


def test_nodes_can_be_read_on_a_terminal_of_80_columns() -> None:
    """No word of the states and figures is cut, and addresses are whole."""
    long = {"node": "1d01f20de5eb39ae", "gateway": "192.168.100.101:7433", "control": "[2001:db8:85a3:8d3::7348]:7434"}
    busy = {"state": "suspect", "drain": "draining", "since_s": 93_000.0, "arena_used_bytes": 1000 << 20}
    lines = [line("a", coordinator=True, **long), line("b", **long, **busy, labels={"zone": "東京" * 32, "rack": "3"})]
    shown = rendered(tables.nodes_table(lines), 80)
    for word in ("1d01f20de5eb39ae *", "suspect", "draining", "25 h", "12.5", "20.0 ms", "1000.0", "MiB", "workers"):
        assert word in shown, word
    assert "…" not in shown
    shown = rendered(tables.addresses_table(lines), 80)
    assert shown.count(long["gateway"]) == 2 and shown.count(long["control"]) == 2
    labels = tables.labels_table(lines)
    assert labels is not None and rendered(labels, 80).count("東") == 32 and "rack=3" in rendered(labels, 80)
    assert tables.labels_table(lines[:1]) is None


def test_no_name_of_a_plan_or_a_round_is_cut_on_a_terminal_of_80_columns() -> None:
    nodes = (NodeFacts("n" * 60, 40.0, 8 << 30), NodeFacts("b", 1.0, 8 << 30))
    assert rendered(tables.plan_table(make_plan(PlanRequest(4, 1, 1, nodes))), 80).count("n") > 60
    receipt = {"counted": 1000, "selected": 1200, "bytes_in": 1 << 30, "cpu_s": {"a": 12.5}, "duration_s": 33.0}
    receipt |= {"last_accepted_to_commit_s": 1.5, "workers_cold": 10, "workers_warm": 3}
    row = {"round": 12_345, "status": "committed", "receipt": receipt, "metrics": {"accuracy": 0.9}}
    shown = rendered(tables.rounds_table([row]), 80)
    assert "12345  committed  1000/1200" in shown and "…" not in shown


def task(number: int, role: str, parent: int | None, node: str) -> dict[str, Any]:
    place = {"number": number, "parent_number": parent, "node": node, "pid": None}
    state, inputs, updates = ("sealed", 0, 2) if role == "leaf" else ("running", 1, int(role == "top"))
    counts = {"inputs": inputs, "expect": 2, "updates": updates, "updates_expect": updates}
    return place | counts | {"role": role, "state": state}


def test_each_node_has_its_branch_below_the_node_with_the_top() -> None:
    # The numbers of tasks are a node's own: those of two nodes must not be mixed up.
    tasks = [task(0, "leaf", 1, "b"), task(1, "middle", None, "b"), task(0, "leaf", 1, "a"), task(1, "top", None, "a")]
    lines = rendered(trees.tree_view(tasks)).splitlines()
    depth = {text.strip("│├└─ "): len(text) - len(text.lstrip("│├└─ ")) for text in lines}
    assert [text.strip("│├└─ ").split()[:2] for text in lines] == [
        ["node", "a"],
        ["top", "1"],
        ["leaf", "0"],
        ["node", "b"],
        ["middle", "1"],
        ["leaf", "0"],
    ]
    at_a, at_b = (next(d for text, d in depth.items() if text.startswith(f"node {name}")) for name in "ab")
    assert at_a < at_b
    assert "node a  3/3 updates, 1 of 1 leaves sealed" in lines[0]
    assert "node b  2/2 updates, 1 of 1 leaves sealed" in lines[3]


def test_a_large_tree_of_several_nodes_is_cut_and_says_so() -> None:
    tasks = [task(0, "top", None, "a"), *(task(n, "leaf", None, node) for node in "abc" for n in range(1, 101))]
    text = rendered(trees.tree_view(tasks))
    assert f"{301 - trees.TREE_TASKS_MAX} more tasks" in text
    assert sum("leaf " in row or "top " in row for row in text.splitlines()) == trees.TREE_TASKS_MAX


# ---- lifl up ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["listen", "control"])
def test_up_beyond_loopback_needs_an_identity_to_join(key: str, tmp_path: Path) -> None:
    done = run_lifl("up", "--state", str(tmp_path / "s"), f"--{key}", "0.0.0.0:0", "--join", "192.0.2.1:7434")
    assert done.returncode == 1
    assert "has no identity in" in done.stderr
    assert "--token-file F" in done.stderr


def test_what_is_insecure_is_printed_in_red(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    printed: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(up.click, "secho", lambda text, **style: printed.append((text, style)))
    info = {
        "node": "n",
        "pid": 1,
        "listen": ["10.0.0.1:7433"],
        "socket": "s",
        "control": "10.0.0.1:7434",
        "arena_bytes": 1,
        "redirector": "unix",
        "state_dir": "d",
    }
    up._announce(info, insecure=True)
    ((text, style),) = printed
    assert "10.0.0.1:7433 or 10.0.0.1:7434 can read and change models" in text
    assert "nothing is encrypted" in text
    assert style["fg"] == "red"
    up._announce(info, insecure=False)
    assert len(printed) == 1
    assert "10.0.0.1:7434" in capsys.readouterr().out


def test_insecure_is_a_flag_that_the_file_can_set_too(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text('control = "10.0.0.1:7434"\ninsecure = true\n')
    flags: dict[str, Any] = dict.fromkeys(up.NODE_FLAGS)
    assert up._node_config(str(path), "/x", flags).insecure
    assert up._node_config(None, "/x", {**flags, "join": "10.0.0.1:7434"}).join == "10.0.0.1:7434"


# ---- labels, and who is drawn ----------------------------------------------------------------------------------------


def test_a_supposed_node_may_have_labels() -> None:
    assert plan.parse_supposed("a:1:1GiB:zone=eu,rack=3", {"zone": "eu"}).takes_updates
    assert not plan.parse_supposed("a:1:1GiB:zone=us", {"zone": "eu"}).takes_updates
    assert not plan.parse_supposed("a:1:1GiB", {"zone": "eu"}).takes_updates
    for text in ("a:1:1GiB:zone=eu,zone=us", "a:1:1GiB:zone=eu,rack", "a:1:1GiB:=x", "a:1:1GiB:zone="):
        with pytest.raises(ConfigError, match="--node"):
            plan.parse_supposed(text, {})


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (("zone",), "'zone' is not NAME=VALUE"),
        (("=x",), "'=x' is not NAME=VALUE"),
        (("zone=",), "'zone=' is not NAME=VALUE"),
        (("=",), "'=' is not NAME=VALUE"),
        (("zone=\x1b[31m",), "a label's name is letters"),
        (("zone=" + "x" * 10_000,), "a label's name is letters"),
        (tuple(f"a{number}=x" for number in range(10_000)), "16"),
        (("a=1", "a=1"), "'a' is given twice"),
        (("a b=1",), "a label's name is letters"),
        (("a=\n",), "a label's name is letters"),
        (tuple(f"a{number}=x" for number in range(17)), "16"),
    ],
)
def test_what_are_no_labels_of_a_node_is_refused_by_their_key(texts: tuple[str, ...], said: str) -> None:
    flags: dict[str, Any] = dict.fromkeys(up.NODE_FLAGS)
    with pytest.raises(ConfigError, match="labels: ") as raised:
        up._node_config(None, "/x", {**flags, "labels": texts})
    assert said in str(raised.value)


def test_labels_on_the_command_line_take_the_place_of_the_files(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text('labels = { zone = "eu", rack = "3" }\n')
    flags: dict[str, Any] = dict.fromkeys(up.NODE_FLAGS)
    assert up._node_config(str(path), "/x", {**flags, "labels": ()}).labels == {"zone": "eu", "rack": "3"}
    assert up._node_config(str(path), "/x", {**flags, "labels": ("zone=u=s",)}).labels == {"zone": "u=s"}


@pytest.mark.parametrize(
    ("selection", "why"),
    [
        ({}, "does not list its clients"),
        ({"clients": ["a", "b*"]}, "does not list its clients"),
        ({"clients": ["a", "b", "c"], "where": "zone == 'eu'"}, "selection.where"),
        ({"clients": ["a", "b", "c"], "stratify": "zone"}, "selection.stratify"),
        ({"clients": ["a", "b", "c"], "strategy": "power_of_choice"}, "examples and losses"),
        ({"clients": ["a", "b", "c"], "strategy": "mine:pick"}, "mine:pick chooses"),
        ({"clients_file": "/on/the/node"}, "in a file of the node"),
    ],
)
def test_a_plan_says_why_it_cannot_tell_whom_a_round_draws(selection: dict[str, Any], why: str) -> None:
    first = drawn_first(job_with(selection))
    assert why in first["why"] and why in plan.drawn_text(first)


def test_a_plan_names_whom_the_first_round_draws(tmp_path: Path) -> None:
    names = [f"c{number}" for number in range(1, 31)]
    (tmp_path / "clients").write_text("\n".join(names))
    config = job_with({"clients_file": "clients", "over_provision": 9.0})
    first = drawn_first(with_clients_read(config, tmp_path))
    assert set(first["clients"]) < set(names) and (len(first["clients"]), first["of"]) == (18, 30)
    text = plan.drawn_text(first)
    assert "of 30 listed clients, if all are there: " in text and text.endswith(" and 2 more")


def job_with(selection: dict[str, Any]) -> JobConfig:
    table = {"job": {"name": "j", "rounds": 1}, "model": {"path": "/m"}, "selection": {"clients_per_round": 2}}
    return parse_job({**table, "selection": table["selection"] | selection})
