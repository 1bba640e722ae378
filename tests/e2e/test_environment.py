"""What a command finds around it: no home, no working folder, no account, closed outputs, limits.  One clear line."""

from __future__ import annotations

import json
import os
import resource
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from accounts import NOBODY, common_python
from lifl_cli.main import COMMANDS
from nodes import LIFL, Node, run_lifl

from lifl.node.locks import holder

CONFIG = Path(__file__).parents[2] / "configs" / "digits.toml"
WAIT_S = 120.0
"""Only a failing test waits so long."""
FLAGS = ["--listen", "127.0.0.1:0", "--arena-bytes", "64MiB", "--capacity", "8", "--workers-max", "2"]
ARGUMENTS = {
    "up": FLAGS,
    "submit": [str(CONFIG)],
    "status": ["j"],
    "history": ["j"],
    "plot": ["j"],
    "trace": ["j"],
    "verify": ["j", "1"],
    "export": ["j", "--to", "mlflow"],
    "cancel": ["j"],
    "rm": ["j"],
    "pause": ["j"],
    "resume": ["j"],
    "edit": ["j", "--set", "job.rounds=2"],
    "model": ["j", "--output", "lifl-no-such-file.safetensors"],
    "plan": [str(CONFIG)],
    "top": ["--json"],
    "debug": ["record"],
    "token": ["list"],
    "cert": ["list"],
    "drain": ["n"],
    "calibrate": ["--forget"],
    "backup": ["lifl-no-such-file"],
    "restore": ["lifl-no-such-file"],
    "support-bundle": ["-o", "lifl-no-such-file.zip"],
    "store": ["migrate", "sqlite", "etcd://127.0.0.1:1/lifl"],
}
AS_NOBODY = [
    "setpriv",
    f"--reuid={NOBODY}",
    f"--regid={NOBODY}",
    "--clear-groups",
    # Of this machine it may only read what the test's interpreter is made of.
    "--bounding-set=-all,+dac_read_search",
    "--inh-caps=-all,+dac_read_search",
    "--ambient-caps=-all,+dac_read_search",
]
WITHOUT_RIGHTS = [*AS_NOBODY[:4], "--bounding-set=-all", "--inh-caps=-all"]
COMMON = [str(common_python()), "-P", "-m", "lifl_cli.main"]
needs_accounts = pytest.mark.skipif(common_python() is None, reason="no interpreter that other accounts can run")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be another account")
AT_A_NODE = [name for name in COMMANDS if name not in ("enroll", "init", "explain", "completion", "simulate")]
"""The commands that look for a state folder."""


def one_line(done: subprocess.CompletedProcess[str], *texts: str) -> None:
    assert done.returncode == 1, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr, done.stderr
    assert done.stderr.startswith("Error: "), done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    for text in texts:
        assert text in done.stderr


def lifl(*command: str, **how: object) -> subprocess.CompletedProcess[str]:
    how = {"env": {}} | how
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=WAIT_S, **how
    )  # type: ignore[call-overload, no-any-return]


@needs_root
@pytest.mark.parametrize("name", AT_A_NODE)
def test_an_account_without_an_entry_and_home_is_told_to_name_the_folder(name: str) -> None:
    done = lifl(*AS_NOBODY, *LIFL, name, *ARGUMENTS.get(name, []), cwd="/tmp")
    one_line(done, str(NOBODY), "HOME", "--state", "LIFL_STATE")


@needs_accounts
def test_an_account_without_an_entry_runs_a_node_in_a_folder_that_it_names(state_dir: Path) -> None:
    os.chown(state_dir, NOBODY, NOBODY)
    nice = ["nice", "-n", "15"]  # and may not take back that it is nicer than its threads are to be
    done = lifl(*WITHOUT_RIGHTS, *nice, *COMMON, "up", "-d", "--state", str(state_dir), *FLAGS, cwd="/tmp")
    assert done.returncode == 0, done.stderr
    done = lifl(*AS_NOBODY, *LIFL, "down", "--state", str(state_dir), cwd="/tmp")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", AT_A_NODE)
def test_a_working_folder_that_was_deleted(name: str, state_dir: Path) -> None:
    """It matters only to what is named from it: a relative path."""
    gone = state_dir / "gone"
    gone.mkdir()
    arguments = [name, *ARGUMENTS.get(name, []), "--state", "relative"]
    done = lifl("sh", "-c", f"cd {gone} && rmdir {gone} && exec {shlex.join([*LIFL, *arguments])}")
    one_line(done, "working folder", "deleted")


def test_a_node_that_is_started_from_a_folder_that_was_deleted(state_dir: Path) -> None:
    gone = state_dir / "gone"
    gone.mkdir()
    for arguments in (["up", "-d", *FLAGS], ["jobs"], ["doctor", "--json"], ["down"]):
        command = shlex.join([*LIFL, *arguments, "--state", str(state_dir)])
        done = lifl("sh", "-c", f"mkdir -p {gone}; cd {gone} && rmdir {gone} && exec {command}")
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("closed", [">&-", "<&- >&- 2>&-", ">/dev/full", "| true"])
@pytest.mark.parametrize("detach", [True, False], ids=["detached", "foreground"])
def test_up_says_the_truth_with_closed_outputs(state_dir: Path, closed: str, detach: bool) -> None:
    up = shlex.join([*LIFL, "up", *(["-d"] if detach else []), "--state", str(state_dir), *FLAGS])
    script = f"{up} {closed}" if closed != "| true" else f"set -o pipefail; {up} | true"
    if not detach:
        node = subprocess.Popen(
            ["bash", "-c", script], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        until_up(state_dir, node)
        assert run_lifl("down", "--state", str(state_dir)).returncode == 0
        _, said = node.communicate(timeout=WAIT_S)
        assert (node.returncode, b"Traceback" in said) == (0, False), said
        return
    done = lifl("bash", "-c", script, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert run_lifl("jobs", "--state", str(state_dir)).returncode == 0
    assert run_lifl("down", "--state", str(state_dir)).returncode == 0


def until_up(state_dir: Path, node: subprocess.Popen[bytes]) -> None:
    while (found := holder(state_dir)) is None or found.state != "up":
        assert node.poll() is None, node.communicate()


def test_a_limit_on_the_size_of_files_is_told_as_that(state_dir: Path) -> None:
    done = lifl(
        *LIFL,
        "up",
        "-d",
        "--state",
        str(state_dir),
        *FLAGS,
        env=dict(os.environ),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 24, 1 << 24)),
    )
    one_line(done, str(1 << 24), str(1 << 26), "ulimit -f", "--arena-bytes")
    assert "/dev/shm" not in done.stderr


def test_a_soft_limit_on_the_size_of_files_is_raised(state_dir: Path) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    done = lifl(
        *LIFL,
        "up",
        "-d",
        "--state",
        str(state_dir),
        *FLAGS,
        env=dict(os.environ),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 24, limit)),
    )
    assert done.returncode == 0, done.stderr
    assert run_lifl("down", "--state", str(state_dir)).returncode == 0


@needs_accounts
def test_no_umask_keeps_the_owner_out(state_dir: Path) -> None:
    os.chown(state_dir, NOBODY, NOBODY)
    folder = state_dir / "state"
    command = shlex.join([*COMMON, "up", "-d", "--state", str(folder), *FLAGS])
    done = lifl(*WITHOUT_RIGHTS, "sh", "-c", f"umask 0777; {command}", cwd="/")
    assert done.returncode == 0, done.stderr
    modes = {path.name: path.stat().st_mode for path in (folder, *folder.iterdir()) if not path.is_symlink()}
    assert all(mode & 0o600 == 0o600 for mode in modes.values()), {name: oct(mode) for name, mode in modes.items()}
    assert lifl(*AS_NOBODY, *LIFL, "down", "--state", str(folder)).returncode == 0


@needs_accounts
def test_doctor_of_another_account_does_not_call_a_live_arena_an_orphan(
    start_node: Callable[..., Node], state_dir: Path
) -> None:
    node = start_node()
    os.chmod(state_dir, 0o755)
    done = lifl(*WITHOUT_RIGHTS, *COMMON, "doctor", "--json", "--state", str(state_dir / "none"), cwd="/tmp")
    about = [line for line in json.loads(done.stdout) if node.segment.name in line["text"]]
    assert [line["what"] for line in about] == ["shared segment"]
    assert "cannot see who uses it" in about[0]["text"]
    assert "rm " not in about[0]["fix"]
    own = [line for line in node_doctor(node) if node.segment.name in line["text"]]
    assert own == []


def node_doctor(node: Node) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads(run_lifl("doctor", "--json", "--state", str(node.state_dir)).stdout)
    return found


def test_doctor_still_finds_what_a_killed_node_has_left(start_node: Callable[..., Node]) -> None:
    node = start_node()
    node.kill()
    about = [line for line in node_doctor(node) if node.segment.name in line["text"]]
    assert [line["what"] for line in about] == ["orphan segment"]
