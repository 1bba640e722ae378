"""Failpoints: off they do nothing, on they do what is written, and the table names all of them."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from stops import WAIT_S, Stops

from lifl import failpoints
from lifl.core.errors import ConfigError

ROOT = Path(__file__).parents[2] / "src" / "lifl"
CALL = re.compile(r'failpoints\.hit\("([^"]*)"\)')
POINT, OTHER = "gateway.seal.before", "worker.seal.after"


@pytest.fixture(autouse=True)
def _off_afterwards() -> Iterator[None]:
    yield
    failpoints.disarm()


def sources() -> list[tuple[Path, str]]:
    return [(path, path.read_text()) for path in ROOT.rglob("*.py") if path.name != "failpoints.py"]


def test_the_table_names_the_points_that_stand_in_the_code_and_no_other() -> None:
    called = [name for _, text in sources() for name in CALL.findall(text)]
    assert sorted(set(called)) == sorted(failpoints.POINTS)
    assert all(meaning for meaning in failpoints.POINTS.values())


def test_every_call_goes_through_the_module_with_a_literal() -> None:
    """A name that is imported would stay off; a name that is made at run time would escape the table."""
    for path, text in sources():
        assert text.count("failpoints.hit") == len(CALL.findall(text)), path
        assert not re.search(r"from lifl\.failpoints import", text), path


def test_core_has_none() -> None:
    assert not [path for path, text in sources() if "lifl/core/" in path.as_posix() and "failpoints" in text]


def test_off_a_point_is_a_function_that_does_nothing() -> None:
    assert failpoints.hit is failpoints._off and failpoints.on is False
    failpoints.hit(POINT)
    assert failpoints.hits(POINT) == 0


def test_after_the_block_all_is_off_again() -> None:
    with failpoints.armed(f"{POINT}=count"):
        assert failpoints.on
        failpoints.hit(POINT)
        failpoints.hit(OTHER)
        assert (failpoints.hits(POINT), failpoints.hits(OTHER)) == (1, 1)
    assert failpoints.hit is failpoints._off and failpoints.on is False and failpoints.hits(POINT) == 0


def test_an_error_is_raised_at_each_hit_or_at_the_one_that_is_named() -> None:
    with failpoints.armed(f"{POINT}=raise:ENOSPC; {OTHER}=raise:EIO@2"):
        for _ in range(2):
            with pytest.raises(OSError, match="No space left") as caught:
                failpoints.hit(POINT)
            assert caught.value.errno == errno.ENOSPC
        failpoints.hit(OTHER)
        with pytest.raises(OSError, match=OTHER):
            failpoints.hit(OTHER)
        failpoints.hit(OTHER)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("gateway.seal=kill", "'gateway.seal' is no failpoint"),
        ("nonsense", "'nonsense' is no failpoint"),
        (f"{POINT}", "is not POINT="),
        (f"{POINT}=explode", "explode"),
        (f"{POINT}=raise:ENOTHING", "ENOTHING"),
        (f"{POINT}=raise", "raise"),
        (f"{POINT}=pause", "pause"),
        (f"{POINT}=kill:9", "kill:9"),
        (f"{POINT}=exit:soon", "exit:soon"),
        (f"{POINT}=kill@soon", "kill@soon"),
    ],
)
def test_what_is_no_point_or_no_action_is_refused(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)) as caught:
        failpoints.arm(text)
    assert caught.value.path == failpoints.VARIABLE
    assert not failpoints.on


def child(text: str, hits: int = 1) -> subprocess.Popen[str]:
    """A process with the variable that comes to POINT so often, and says so before each."""
    code = (
        f"from lifl import failpoints\nfor n in range({hits}):\n    print(n, flush=True)\n    failpoints.hit('{POINT}')"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, failpoints.VARIABLE: text},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("action", "code"), [("kill", -signal.SIGKILL), ("exit", failpoints.EXIT_CODE), ("exit:3", 3), ("count", 0)]
)
def test_the_variable_switches_them_on_in_a_process(action: str, code: int) -> None:
    process = child(f"{POINT}={action}@3", hits=5)
    said, _ = process.communicate(timeout=WAIT_S)
    assert process.returncode == code
    assert said.split() == [str(n) for n in range(3 if code else 5)]


def test_a_process_with_a_wrong_variable_does_not_start() -> None:
    process = child("gateway.sael.before=kill")
    said, error = process.communicate(timeout=WAIT_S)
    assert process.returncode == 1 and said == ""
    assert "LIFL_FAILPOINTS: 'gateway.sael.before' is no failpoint" in error


def test_a_pause_is_told_and_lasts_until_the_test_says_what_happens() -> None:
    with Stops(POINT) as stops:
        hold = stops.hold(POINT)
        process = child(stops.variable, hits=2)
        visit = hold.reached()
        assert (visit.point, visit.pid, visit.number) == (POINT, process.pid, 1)
        assert process.poll() is None
        again = stops.hold(POINT)
        visit.go()
        assert again.reached().number == 2
        again.reached().kill()
        assert process.wait(WAIT_S) == -signal.SIGKILL
        process.communicate()
        assert stops.visits[POINT] == 2


def test_a_pause_may_end_with_an_error() -> None:
    with Stops(POINT) as stops:
        stops.decide = lambda visit: "raise:EIO"
        process = child(stops.variable)
        _, error = process.communicate(timeout=WAIT_S)
        assert process.returncode == 1 and f"(failpoint {POINT})" in error


def test_nobody_waits_for_a_test_that_is_gone() -> None:
    with Stops(POINT) as stops:
        hold = stops.hold(POINT)
        process = child(stops.variable, hits=3)
        hold.reached()
    process.communicate(timeout=WAIT_S)
    assert process.returncode == 0


def test_a_forked_process_has_its_parents_points() -> None:
    with failpoints.armed(f"{POINT}=exit:5@2"):
        failpoints.hit(POINT)
        pid = os.fork()
        if pid == 0:
            failpoints.hit(POINT)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 5


def test_only_the_thread_that_came_there_is_paused() -> None:
    with Stops(POINT) as stops, failpoints.armed(stops.variable):
        hold = stops.hold(POINT)
        thread = threading.Thread(target=failpoints.hit, args=(POINT,))
        thread.start()
        visit = hold.reached()
        assert visit.pid == os.getpid() and thread.is_alive()
        visit.go()
        thread.join(WAIT_S)
        assert not thread.is_alive()
