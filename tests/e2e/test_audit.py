"""The audit log of a real node: who joined, submitted, was refused and cancelled; through kills and a full disk."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from fleet import OneHot, fleet, submit, until, write_job
from nodes import Node, run_lifl
from stops import Stops, Visit

from lifl import Client
from lifl.core import audit

N = 2
SELF = f"local uid={os.getuid()}"


def lines(node: Node, event: str, **fields: Any) -> list[dict[str, Any]]:
    found = node.json("audit", "--last", "1000")
    return [line for line in found if line.get("event") == event and fields.items() <= line.items()]


def verified(node: Node) -> dict[str, Any]:
    done = run_lifl("audit", "verify", "--json", "--state", str(node.state_dir))
    found: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == bool(found["broken"])
    return found


def noted(node: Node, event: str, **fields: Any) -> dict[str, Any]:
    """The first such line; it is in the file a moment after it was noted."""
    return until(f"{event} {fields} in the audit log", lambda: lines(node, event, **fields))[0]  # type: ignore[no-any-return]


def test_who_did_what_is_in_the_log(start_node: Callable[..., Node], tmp_path: Path) -> None:
    node, oracle = start_node("--redirector", "unix"), OneHot(N)
    assert noted(node, "node.started")["who"] == SELF
    submit(node, "j", oracle.model(), job__rounds=1)
    assert noted(node, "job.submitted", job="j")["who"] == SELF
    again = run_lifl("submit", str(write_job(tmp_path, "j", oracle.model())), "--state", str(node.state_dir))
    assert again.returncode == 1
    assert noted(node, "cli.refused")["code"] == "job-exists"
    with fleet([node.address, str(node.state_dir)], "j", N, oracle.update) as team:
        team.join()
    joins = [noted(node, "client.join", job="j", who=who) for who in ("127.0.0.1", SELF)]
    assert len({line["client"] for line in joins}) == N
    with (
        pytest.raises(Exception, match="nobody-knows"),
        Client(node.address, job="nobody-knows", client="c9", give_up_after_s=0.5) as client,
    ):
        next(iter(client.rounds()))
    assert noted(node, "client.refused", client="c9")["code"] == "unknown-job"
    submit(node, "k", oracle.model())
    node.lifl("cancel", "k")
    assert noted(node, "job.cancelled", job="k")["who"] == SELF
    node.down()
    assert [line["who"] for line in lines(node, "node.down") + lines(node, "node.ended")] == [SELF, "lifld"]
    found = verified(node)
    assert (found["broken"], found["torn"], found["unmarked_bytes"], found["first"]) == ("", 0, 0, 1)
    shown = node.lifl("audit", "--last", "3").splitlines()
    assert len(shown) == 3
    assert all(line.split()[0].isdigit() and line.split()[2] in audit.EVENTS for line in shown)


def test_a_kill_leaves_a_log_that_goes_on_and_a_change_is_named(
    start_node: Callable[..., Node], state_dir: Path
) -> None:
    at = ("--state", str(state_dir), "--json")
    small = ("--listen", "127.0.0.1:0", "--arena-bytes", "64MiB", "--redirector", "unix")
    # Killed by its own first line, before or after it is ready: what is left is half of one.
    first = run_lifl("up", "-d", *small, *at, points="lifld.audit_line.half=kill@1")
    if first.returncode == 0:
        pid = json.loads(first.stdout)["pid"]
        until("lifld's end", lambda: not psutil.pid_exists(pid))
    # A process that it has just forked may have its lock for a moment more: as if it still wrote the line.
    until("half a line", lambda: json.loads(run_lifl("audit", "verify", *at).stdout)["unmarked_bytes"] > 0)
    node = start_node("--redirector", "unix")
    noted(node, "audit.torn")
    noted(node, "node.started")
    node.kill()
    node.up()
    until("the second start", lambda: len(lines(node, "node.started")) == 2)
    found = verified(node)
    assert (found["broken"], found["torn"]) == ("", 1)
    assert "marked: a lifld was killed" in node.lifl("audit", "verify")
    (path,) = (node.state_dir / "audit").iterdir()
    whole = path.read_bytes().split(b"\n")
    changed = [*whole[:2], whole[2].replace(f"uid={os.getuid()}".encode(), b"uid=4711"), *whole[3:]]
    path.write_bytes(b"\n".join(changed))
    done = run_lifl("audit", "verify", "--state", str(node.state_dir))
    assert done.returncode == 1
    assert f"{path.name}:4: it follows another line 3" in done.stdout
    path.write_bytes(b"\n".join(whole))


def test_a_full_disk_is_told_and_rounds_go_on(start_node: Callable[..., Node]) -> None:
    full = threading.Event()
    full.set()

    def disk(_visit: Visit) -> str:
        return "raise:ENOSPC" if full.is_set() else ""

    with Stops("lifld.audit_line.half", decide=disk) as stops:
        node, oracle = start_node("--redirector", "unix", points=stops.variable), OneHot(N)
        submit(node, "j", oracle.model(), job__rounds=2)
        with fleet(node.address, "j", N, oracle.update) as team:
            team.join()
        oracle.check(node, "j")
        told = until("the fault in the status", lambda: node.snapshot()["node"]["warnings"])
        assert "No space left" in told[0]
        assert str(node.state_dir / "audit") in told[0]
        shown = node.lifl("top", "--once").replace("│", " ")
        assert "No space left" in " ".join(shown.split())  # where a line ends depends on the folder
        full.clear()
        noted(node, "job.submitted", job="j")
        until("no fault", lambda: not node.snapshot()["node"]["warnings"])
        node.down()
    assert len(lines(node, "client.join")) >= N
    assert verified(node)["broken"] == ""
