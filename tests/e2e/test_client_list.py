"""A job's list of clients, and what `lifl status --clients` says of those who do not deliver, on a real node."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from fleet import OneHot, Watch, ask, deadlines, fleet, submit, until, write_job
from nodes import FOLDERS, Node, run_lifl, running

from lifl import Client
from lifl.core import limits
from lifl.core.errors import LiflError, Refused
from lifl.core.protocol import cli as om

N = 2


@pytest.fixture
def node(start_node: Callable[..., Node]) -> Node:
    return start_node("--redirector", "unix")


@pytest.fixture(scope="module")
def refusing() -> Iterator[Node]:
    """A node that all tests share in which it refuses what comes."""
    folder = Path(tempfile.mkdtemp(prefix="lt-", dir=FOLDERS))
    with running(folder) as found:
        yield found
    shutil.rmtree(folder, ignore_errors=True)


def clients_of(node: Node, job: str) -> dict[str, dict[str, Any]]:
    return {line["client"]: line for line in node.json("status", job, "--clients")["clients"]}


def test_only_listed_clients_take_part_and_the_list_survives_the_node(node: Node, tmp_path: Path) -> None:
    oracle, listed = OneHot(N), tmp_path / "hospitals.txt"
    listed.write_text("# those of the first year\n\nc00  # west\nclinic-*\n")
    keys = {"selection__clients": ["c01"], "selection__clients_file": str(listed)}
    submit(node, "j", oracle.model(), job__rounds=1, **keys)
    node.kill()
    node.up()
    listed.unlink()  # it was read when the job was submitted
    with Client(node.address, job="j", client="stranger") as stranger:
        with pytest.raises(Refused) as refused:
            next(iter(stranger.rounds()))
        assert (refused.value.code, refused.value.field) == ("not-listed", "client")
        assert "selection.clients" in str(refused.value)
    with fleet(node.address, "j", N, oracle.update) as team:
        team.join()
    oracle.check(node, "j")
    assert until("it in the audit log", lambda: "not-listed" in node.lifl("audit"))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "lists no client"),
        (b"# none\n", "lists no client"),
        (b"a b\n", "is no name or pattern of clients"),
        (b"\xff\xfe", "is no text in UTF-8"),
        (None, "there is no file"),
        (b"x" * (limits.CLIENTS_FILE_BYTES_MAX + 1), "is longer than"),
        (b"".join(b"c%d\n" % number for number in range(limits.CLIENTS_LISTED_MAX + 1)), "length"),
        (b"".join(b"c%d*\n" % number for number in range(limits.PATTERNS_MAX + 1)), "patterns with `*`"),
    ],
)
def test_a_list_that_cannot_be_used_is_refused_by_its_key(
    refusing: Node, tmp_path: Path, content: bytes | None, says: str
) -> None:
    if content is not None:
        (tmp_path / "listed").write_bytes(content)
    path = write_job(tmp_path, "k", OneHot(N).model(), selection__clients_file="listed")
    done = run_lifl("submit", str(path), "--state", str(refusing.state_dir))
    assert done.returncode == 1
    assert "selection.clients_file" in done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_who_did_not_deliver_is_shown_and_asked_late(node: Node) -> None:
    for deadline_s in deadlines(0.5):
        if is_shown_as_late(node, f"j{deadline_s:g}", deadline_s):
            return


def is_shown_as_late(node: Node, job: str, deadline_s: float) -> bool:
    """False when nobody's update came before the deadline, or the job was not paused before it."""
    oracle = OneHot(3)
    keys = {"clients_per_round": 2, "quorum": 1, "deadline_s": deadline_s}
    submit(node, job, oracle.model(), job__rounds=2, **{f"selection__{key}": value for key, value in keys.items()})
    watch = Watch(node, job)
    # c01 is silent in the first round, so that ends at its deadline; then the job rests for as long as it is looked at.
    with fleet(node.address, job, 2, oracle.update, held=[(1, 1)]) as team:
        watch.wait("round.opened", round=1)
        ask(node, om.PauseJob(job))
        watch.wait_any("job.rests", "job.over")
        opened = [event.fields["round"] for event in watch.events if event.name == "round.opened"]
        if opened != [1] or not any(event.name == "round.committed" for event in watch.events):
            with suppress(LiflError):  # it may be over
                ask(node, om.CancelJob(job))
            return False
        seen = clients_of(node, job)
        assert (seen["c00"]["delivered"], seen["c00"]["level"]) == (1, 0)
        assert (seen["c01"]["late"], seen["c01"]["level"], seen["c01"]["here"]) == (1, 1, True)
        assert "asked late (1)" in node.lifl("status", job, "--clients")
        node.lifl("edit", job, "--set", "selection.deadline_s=600")
        node.lifl("resume", job)
        team.release()
        watch.over()
        team.join()
    done = run_lifl("status", job, "--clients", "--state", str(node.state_dir))
    assert done.returncode == 1
    assert "does not run" in done.stderr
    return True
