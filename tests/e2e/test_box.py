"""A user's rule that tries to leave its box: each try is refused, and the job beside it commits its rounds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from accounts import NOBODY, common_python
from fleet import OneHot, Watch, ask, fleet, submit, workers, write_job
from nodes import Node

from lifl.confine import landlock
from lifl.confine.capabilities import status_of
from lifl.core.protocol import cli as om
from lifl.node import machine

HOSTILE = """
import ctypes
import errno
import fcntl
import mmap
import os
import pathlib
import signal
import socket
import subprocess

from lifl.rules import Rule, RuleOptions

libc = ctypes.CDLL(None, use_errno=True)


def called(*arguments):
    if libc.syscall(*(ctypes.c_long(each) for each in arguments)) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def dialled(path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.connect(path)


def told(path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect(path)


def owned(pid):
    reading, writing = os.pipe()
    fcntl.fcntl(reading, fcntl.F_SETOWN, pid)


def filled(make):
    kept = []
    while sum(map(len, kept)) < 1 << 35:
        kept.append(make(1 << 28))
        kept[-1][:: mmap.PAGESIZE] = bytes(len(kept[-1]) // mmap.PAGESIZE)


def rewritten(path):
    with open(path, "r+b") as file:
        file.write(b"mine")


LIFLD, STATE, OUTSIDE, PTRACE, READV = {lifld}, {state!r}, {outside!r}, {ptrace}, {readv}
WAYS = {{
    "signal lifld": lambda: os.kill(LIFLD, signal.SIGKILL),
    "signal its parent": lambda: os.kill(os.getppid(), signal.SIGKILL),
    "signal all": lambda: os.kill(-1, signal.SIGKILL),
    "signal by descriptor": lambda: os.pidfd_open(LIFLD),
    "signal by owner": lambda: owned(LIFLD),
    "slow lifld": lambda: os.setpriority(os.PRIO_PROCESS, LIFLD, 19),
    "pin lifld": lambda: os.sched_setaffinity(LIFLD, os.sched_getaffinity(LIFLD)),
    "limit lifld": lambda: __import__("resource").prlimit(LIFLD, 7, (0, 0)),
    "fork": os.fork,
    "exec": lambda: os.execv("/bin/true", ["true"]),
    "run": lambda: subprocess.run(["/bin/true"], check=True),
    "socket": lambda: socket.socket(),
    "serve": lambda: socket.create_server(("127.0.0.1", 0)),
    "gateway's socket": lambda: dialled(STATE + "/gateway.sock"),
    "lifld's socket": lambda: dialled(STATE + "/lifld.sock"),
    "lifld's socket as datagrams": lambda: told(STATE + "/lifld.sock"),
    "trace": lambda: called(PTRACE, 16, LIFLD, 0, 0),
    "read memory": lambda: called(READV, LIFLD, 0, 0, 0, 0, 0),
    "unshare": lambda: called({unshare}, 0x10000000),
    "write here": lambda: open(pathlib.Path(__file__).with_name("mine"), "w"),
    "append": lambda: open(__file__, "a"),
    "change": lambda: rewritten(OUTSIDE + "/others"),
    "write in /tmp": lambda: open("/tmp/lifl-mine", "w"),
    "write in /dev/shm": lambda: open("/dev/shm/lifl-mine", "w"),
    "folder": lambda: os.mkdir(pathlib.Path(__file__).with_name("folder")),
    "remove": lambda: os.unlink(OUTSIDE + "/others"),
    "rename": lambda: os.rename(OUTSIDE + "/others", OUTSIDE + "/mine"),
    "open to all": lambda: os.chmod(__file__, 0o777),
    "memory": lambda: filled(bytearray),
    "shared memory": lambda: filled(lambda count: mmap.mmap(-1, count)),
    "memory file": lambda: os.memfd_create("mine"),
    "typed": lambda: fcntl.ioctl(0, 0x5412, b"x"),
}}
READS = {{
    "shadow": lambda: open("/etc/shadow"),
    "passwd": lambda: open("/etc/passwd"),
    "database": lambda: open(STATE + "/lifl.db"),
    "log": lambda: open(STATE + "/lifld.log"),
    "checkpoints": lambda: os.listdir(STATE + "/jobs"),
    "others": lambda: open(OUTSIDE + "/others"),
    "arena": lambda: open("/dev/shm/lifl-{node}", "rb"),
    "environment": lambda: open("/proc/%d/environ" % LIFLD).read(),
    "its memory": lambda: open("/proc/%d/mem" % LIFLD, "rb"),
    "descriptors": lambda: os.listdir("/proc/%d/fd" % LIFLD),
}}
MAY = {{
    "import": lambda: __import__("decimal"),
    "read here": lambda: open(__file__).read(),
    "thread": lambda: __import__("threading").Thread(target=len, args=("",)).start(),
    "signal itself": lambda: os.kill(os.getpid(), 0),
    "array": lambda: __import__("numpy").ones(1 << 20).sum(),
}}


class Hostile(Rule):
    class Options(RuleOptions, frozen=True):
        ways: str

    def finish(self, model, mean, state):
        through = []
        for name, way in globals()[self.options.ways].items():
            try:
                way()
            except (PermissionError, MemoryError):
                continue
            except Exception as error:
                if getattr(error, "errno", 0) != errno.EPROTOTYPE:
                    through.append(name + ": " + repr(error))
            else:
                through.append(name)
        assert through == (list(MAY) if self.options.ways == "MAY" else []), through
        return mean


class Refused(Rule):
    class Options(RuleOptions, frozen=True):
        way: str

    def finish(self, model, mean, state):
        WAYS[self.options.way]()
        return mean
"""
CALLS = {
    "x86_64": {"ptrace": 101, "readv": 310, "unshare": 272},
    "aarch64": {"ptrace": 117, "readv": 270, "unshare": 97},
}
needs_landlock = pytest.mark.skipif(not landlock.version(), reason="needs Landlock")
needs_accounts = pytest.mark.skipif(common_python() is None, reason="no interpreter that other accounts can run")


@pytest.fixture(params=["auto", "unix"])
def node(start_node: Callable[..., Node], request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Node]:
    node = start_node("--redirector", request.param)
    (tmp_path / "others").write_text("others")
    folder = node.state_dir / "configs"
    folder.mkdir()
    known = {"lifld": node.pid, "state": str(node.state_dir), "outside": str(tmp_path), "node": node.info["node"]}
    (folder / "hostile.py").write_text(HOSTILE.format(**known, **CALLS[os.uname().machine]))
    yield node
    assert node.is_up(), "lifld is gone"
    assert (tmp_path / "others").read_text() == "others"
    assert sorted(path.name for path in folder.iterdir() if path.suffix in ("", ".pyc")) == []
    assert not Path("/dev/shm/lifl-mine").exists() and not Path("/tmp/lifl-mine").exists()


def run(node: Node, job: str, **keys: object) -> dict:
    """Run a job of two clients to its end."""
    oracle = OneHot(2)
    submit(node, job, oracle.model(), job__rounds=1, selection__attempts=1, **keys)
    watch = Watch(node, job)
    with fleet(node.address, job, 2, oracle.update) as team:
        over = watch.over()
        team.join(well=over["status"] == "finished")
    return over


def hostile(node: Node, job: str, ways: str) -> dict:
    return run(node, job, aggregation__rule="hostile:Hostile", aggregation__options={"ways": ways})


def test_nothing_gets_out_and_the_job_beside_it_goes_on(node: Node) -> None:
    oracle = OneHot(2)
    submit(node, "honest", oracle.model(), job__rounds=100_000, selection__attempts=1)
    watch = Watch(node, "honest")
    with fleet(node.address, "honest", 2, oracle.update) as team:
        watch.wait("round.committed")
        for ways in ("WAYS", "MAY", *(["READS"] if landlock.version() else [])):
            over = hostile(node, ways.lower(), ways)
            assert over["status"] == "finished", over["reason"]
            done = len(watch.wait("round.committed"))
            watch.wait("round.committed", done + 3)
        node.lifl("cancel", "honest")
        watch.over()
        team.join(well=False)
    oracle.check(node, "honest")


def test_what_is_refused_is_told(node: Node) -> None:
    over = run(node, "told", aggregation__rule="hostile:Refused", aggregation__options={"way": "socket"})
    assert over["status"] == "failed"
    for text in ("hostile:Refused raised PermissionError", "socket.py", "open no socket"):
        assert text in over["reason"]


@needs_landlock
def test_a_rule_in_a_folder_above_the_state_does_not_read_it(start_node: Callable[..., Node], state_dir: Path) -> None:
    """As with a rule in the home folder, below which the state is by default."""
    node = start_node("--redirector", "unix", folder=state_dir / "deep" / "state")
    known = {"lifld": node.pid, "state": str(node.state_dir), "outside": "/nowhere", "node": node.info["node"]}
    (state_dir / "hostile.py").write_text(HOSTILE.format(**known, **CALLS[os.uname().machine]))
    oracle = OneHot(2)
    options = {"ways": "READS"}
    keys = {"aggregation__rule": "hostile:Hostile", "aggregation__options": options, "selection__attempts": 1}
    node.lifl("submit", str(write_job(state_dir, "above", oracle.model(), **keys)))
    watch = Watch(node, "above")
    with fleet(node.address, "above", 2, oracle.update) as team:
        over = watch.over()
        team.join(well=False)
    assert over["status"] == "failed"
    assert "others" in over["reason"] and "database" not in over["reason"] and "log" not in over["reason"], over


# ---- what the processes are ------------------------------------------------------------------------------------------


def held(pid: int) -> dict[str, str]:
    wanted = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp")
    found = []
    for thread in Path(f"/proc/{pid}/task").iterdir():  # rights are a thread's
        status = status_of(f"{pid}/task/{thread.name}")
        found.append({name: status[name].lstrip("0") for name in wanted})
    assert all(each == found[0] for each in found), found
    return found[0]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, whose rights are given up")
def test_no_process_of_roots_node_has_a_right(start_node: Callable[..., Node]) -> None:
    node = start_node("--http", "127.0.0.1:0")
    run(node, "one")
    shown = ask(node, om.Snapshot())
    node_ = shown["node"]
    boxed = [node_["gateway"]["pid"], node_["zygote_pid"], node_["http_door"]["pid"], *workers(node)]
    assert len(boxed) > 3
    nothing = dict.fromkeys(("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"), "")
    assert held(node.pid) == nothing | {"NoNewPrivs": "1", "Seccomp": ""}
    for pid in boxed:
        assert held(pid) == nothing | {"NoNewPrivs": "1", "Seccomp": "2"}
        limits = Path(f"/proc/{pid}/limits").read_text()
        assert [line.split()[4] for line in limits.splitlines() if "core file" in line] == ["0"], limits


def test_doctor_says_what_holds_each_process(start_node: Callable[..., Node]) -> None:
    node = start_node()
    (node.state_dir / "configs").mkdir()
    known = {"lifld": node.pid, "state": str(node.state_dir), "outside": "/nowhere", "node": node.info["node"]}
    (node.state_dir / "configs/hostile.py").write_text(HOSTILE.format(**known, **CALLS[os.uname().machine]))
    assert hostile(node, "own", "MAY")["status"] == "finished"
    found = {line["what"]: line for line in json.loads(node.lifl("doctor", "--json"))}
    boxed = {name: line for name, line in found.items() if name in ("gateway", "zygote") or name.startswith("worker")}
    assert any("own rule" in name for name in boxed) and {"gateway", "zygote"} < boxed.keys()
    for name, line in boxed.items():
        assert line["level"] == ("ok" if landlock.version() else "warn"), line
        assert "no capabilities, no new privileges, seccomp" in line["text"]
        assert f"Landlock {landlock.version()}" in line["text"] or not landlock.version()
        filters = 3 if "own rule" in name else 2 if "worker" in name else 1
        assert f"seccomp ({filters})" in line["text"], line
    assert "no capabilities, no new privileges" in found["lifld"]["text"]


# ---- the user of a node ----------------------------------------------------------------------------------------------


def lifl(*arguments: str, **how: object) -> subprocess.CompletedProcess[str]:
    command = [str(common_python()), "-P", "-m", "lifl_cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, **how)  # type: ignore[call-overload, no-any-return]


@needs_accounts
@pytest.mark.parametrize("redirector", ["auto", "unix"])
def test_a_node_of_root_is_the_users_that_is_named(state_dir: Path, redirector: str) -> None:
    folder, user = state_dir / "node", "nobody"
    state_dir.chmod(0o755)
    flags = ("--state", str(folder), "--listen", "127.0.0.1:0", "--arena-bytes", "64MiB", "--redirector", redirector)
    done = lifl("up", "-d", "--json", "--user", user, *flags)
    assert done.returncode == 0, done.stderr
    info = json.loads(done.stdout)
    try:
        if redirector == "auto":
            assert info["redirector"] == ("sockmap" if can_load() else "unix"), info["why"]
        node = Node(folder, flags)
        node.info = info
        run_as_root_client(node)
        uid = folder.stat().st_uid
        assert uid not in (0, os.geteuid())
        made = [path for path in folder.rglob("*") if "configs" not in path.parts and "jobs" not in path.parts]
        assert {path.lstat().st_uid for path in (*made, node.segment)} == {uid}
        shown = ask(node, om.Snapshot())
        pids = [node.pid, shown["node"]["gateway"]["pid"], shown["node"]["zygote_pid"]]
        for pid in (*pids, *workers(node)):
            status = status_of(pid)
            assert set(status["Uid"].split()) == {str(uid)} and "0" not in status["Gid"].split(), status
            assert not int(status["CapPrm"], 16) and not int(status["CapBnd"], 16)
    finally:
        done = lifl("down", "--state", str(folder))
    assert done.returncode == 0, done.stderr


def run_as_root_client(node: Node) -> None:
    oracle = OneHot(2)
    config = write_job(node.state_dir.parent / "configs", "one", oracle.model(), job__rounds=2)
    config.with_name("one.model.safetensors").chmod(0o644)  # the node's user reads it
    node.lifl("submit", str(config))
    watch = Watch(node, "one")
    with fleet(node.address, "one", 2, oracle.update):
        assert watch.over()["status"] == "finished"
    oracle.check(node, "one")


def can_load() -> bool:
    from skips import has_no_sockmap

    return not has_no_sockmap()


@needs_accounts
def test_only_root_names_another_user(state_dir: Path) -> None:
    done = lifl("up", "-d", "--user", "no-such-user", "--state", str(state_dir))
    assert done.returncode == 1 and "useradd" in done.stderr
    done = lifl("up", "-d", "--user", "nobody", "--state", str(state_dir), user=NOBODY, group=NOBODY, cwd="/")
    assert done.returncode == 1 and "only root can start a node as 'nobody'" in done.stderr
    done = lifl("up", "-d", "--user", "../etc", "--state", str(state_dir))
    assert done.returncode == 1 and "user" in done.stderr


@needs_accounts
def test_a_node_of_an_account_without_rights_boxes_its_processes_too(state_dir: Path) -> None:
    os.chown(state_dir, NOBODY, NOBODY)
    as_nobody = {"user": NOBODY, "group": NOBODY, "extra_groups": [], "cwd": "/"}
    flags = ("--state", str(state_dir), "--listen", "127.0.0.1:0", "--arena-bytes", "64MiB")
    done = lifl("up", "-d", "--json", *flags, **as_nobody)
    assert done.returncode == 0, done.stderr
    segment = f"lifl-{json.loads(done.stdout)['node']}"
    found = {line["what"]: line for line in json.loads(lifl("doctor", "--json", *flags[:2], **as_nobody).stdout)}
    assert lifl("down", *flags[:2], **as_nobody).returncode == 0
    for name in ("gateway", "zygote"):
        assert f"user {NOBODY}, no capabilities, no new privileges, seccomp (1)" in found[name]["text"]
    about = [line for line in found.values() if segment in line["text"]]
    assert about == [], "it knows its own arena though it may not look into its processes"


def test_a_workers_memory_is_its_share() -> None:
    from lifl.core.config.node import NodeConfig

    assert sys.maxsize > machine.worker_data_bytes(NodeConfig(workers_max=2)) >= 256 << 20
    more, fewer = (machine.worker_data_bytes(NodeConfig(workers_max=count)) for count in (1, 1000))
    assert fewer <= more
    assert fewer == 256 << 20
