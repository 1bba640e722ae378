"""`lifl support-bundle` has what helps and no secret; a shell completes the names of a node's jobs."""

from __future__ import annotations

import json
import os
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet import OneHot, write_job
from nodes import LIFL, Node, run_lifl, running

SECRET = "correct-horse-battery-staple"
TOKEN = f"LIFL1{'a' * 64}::0123abcd.{'S' * 43}"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with_jobs = tmp_path_factory.mktemp("node")
    with_jobs.chmod(0o700)
    with running(with_jobs) as node:
        path = write_job(tmp_path_factory.mktemp("job"), "planted", OneHot(2).model())
        node.lifl("submit", str(path), "--set", f"client.options.api_token={SECRET}")
        yield node


def texts(bundle: Path) -> dict[str, str]:
    with zipfile.ZipFile(bundle) as file:
        return {name: file.read(name).decode(errors="replace") for name in file.namelist()}


def test_no_secret_is_in_it_and_what_helps_is(node: Node, tmp_path: Path) -> None:
    cookie = (node.state_dir / "cookie").read_bytes()
    with (node.state_dir / "lifld.log").open("a") as log:
        log.write(f"{TOKEN}\nhttp://alice:{SECRET}@proxy:3128\n-----BEGIN PRIVATE KEY-----\n{SECRET}\n")
        log.write(f"-----END PRIVATE KEY-----\n{cookie.hex()}\npassword = {SECRET}\nAuthorization: Bearer {SECRET}\n")
    bundle = tmp_path / "it.zip"
    node.lifl("support-bundle", "-o", str(bundle))
    assert bundle.stat().st_mode & 0o777 == 0o600
    found = texts(bundle)
    whole = "\n".join(found.values())
    for secret in (SECRET, TOKEN, "S" * 43, cookie.hex()):
        assert secret not in whole
    assert "planted" in found["node/jobs.json"]
    assert json.loads(found["doctor.json"])
    assert "cookie" in found["state-folder.txt"]
    assert {"README.txt", "about.json", "log/lifld.log", "node/snapshot.json", "proc/meminfo.txt"} <= set(found)
    assert "blotted out" in found["log/lifld.log"]


def test_a_bundle_that_is_there_is_not_written_over(node: Node, tmp_path: Path) -> None:
    there = tmp_path / "it.zip"
    there.write_text("mine")
    done = run_lifl("support-bundle", "-o", str(there), "--state", str(node.state_dir))
    assert done.returncode == 1
    assert "is there already" in done.stderr
    assert there.read_text() == "mine"


def test_without_a_node_the_bundle_says_so(tmp_path: Path) -> None:
    bundle = tmp_path / "it.zip"
    done = run_lifl("support-bundle", "-o", str(bundle), "--state", str(tmp_path / "none"))
    assert done.returncode == 0, done.stderr
    found = texts(bundle)
    assert "no lifld runs" in found["node.missing.txt"]
    assert "about.json" in found


def test_names_links_and_pipes_of_a_state_folder_end_nothing_and_lead_nowhere(tmp_path: Path) -> None:
    folder, elsewhere, bundle = tmp_path / "state", tmp_path / "elsewhere", tmp_path / "it.zip"
    folder.mkdir(mode=0o700)
    elsewhere.write_text(SECRET)
    (folder / "lifld.log").write_text("\x1b[2J\tas it was\n")
    (folder / "lifld.log.1").symlink_to(elsewhere)
    os.mkfifo(folder / "lifld.log.2")  # nobody writes to it
    os.mkfifo(folder / "cookie")
    (folder / "a\nb").touch()
    (folder / "dangling").symlink_to(tmp_path / "nowhere")
    Path(os.fsdecode(bytes(folder) + b"/\xff\xfe")).touch()
    done = run_lifl("support-bundle", "-o", str(bundle), "--state", str(folder))
    assert done.returncode == 0, done.stderr
    found = texts(bundle)
    assert SECRET not in "\n".join(found.values())
    assert found["log/lifld.log"] == "\\x1b[2J\\tas it was\n"
    assert found["log/lifld.log.2"] == ""
    assert "a\\nb\n" in found["state-folder.txt"]
    assert "\\udcff\\udcfe\n" in found["state-folder.txt"]


def completed(node: Node, words: str, shell: str = "bash") -> list[str]:
    """What a shell is told that may stand where the words end."""
    asked = {"_LIFL_COMPLETE": f"{shell}_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    environment = os.environ | asked | {"LIFL_STATE": str(node.state_dir)}
    done = subprocess.run(LIFL, env=environment, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return [line.partition(",")[2] for line in done.stdout.splitlines() if line]


def test_a_shell_completes_commands_jobs_and_codes(node: Node, tmp_path: Path) -> None:
    assert completed(node, "lifl stat") == ["status"]
    assert completed(node, "lifl status ") == ["planted"]
    assert completed(node, "lifl cancel plan") == ["planted"]
    assert completed(node, "lifl cancel other") == []
    assert "unknown-job" in completed(node, "lifl explain unknown-")
    nobody = Node(tmp_path / "none", ())
    assert completed(nobody, "lifl status ") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_its_script(shell: str) -> None:
    done = run_lifl("completion", shell)
    assert done.returncode == 0
    assert "_LIFL_COMPLETE" in done.stdout


def test_a_command_that_is_none_is_told_with_the_nearest() -> None:
    done = run_lifl("statsu")
    assert done.returncode == 2
    assert "did you mean `lifl status`?" in done.stderr


def test_a_refusal_ends_with_its_code(node: Node) -> None:
    done = run_lifl("status", "nobodys", "--state", str(node.state_dir))
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith("[unknown-job]")
