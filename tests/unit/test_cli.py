"""The command line without a node: what it says and the exit codes; the daemon's client against a real socket."""

from __future__ import annotations

import importlib
import os
import resource
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest
from click.testing import CliRunner
from lifl_cli import config_file, doctor, fetch_model, model, up
from lifl_cli.daemon_client import DaemonClient
from lifl_cli.main import COMMANDS, set_up_process
from lifl_cli.render import figures, tables, top, trees
from lifl_cli.state import CONTROL_SOCKET
from nodes import run_lifl
from safetensors.numpy import load_file

from lifl.core.config.job import parse_job
from lifl.core.config.node import NodeConfig, parse_node
from lifl.core.errors import ConfigError, Refused, RemoteFault, ResourceFault
from lifl.core.limits import CONFIG_FILE_BYTES_MAX
from lifl.core.protocol.cli import Answer, CancelJob, DrainNode, Event, FromCli, JobStatus, ListJobs, PlansOfRound
from lifl.core.protocol.client import Refusal
from lifl.core.protocol.frames import FRAME_BYTES_MAX, encode
from lifl.redirect.sockmap import loader

JOB = """
[job]
name = "j"
rounds = 2
[model]
example = "digits-mlp"
[selection]
clients_per_round = 2
"""


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    path = tmp_path / "job.toml"
    path.write_text(JOB)
    return path


# ---- help and usage
# ---------------------------------------------------------------------------------------------


def test_help_shows_every_command_with_its_own_words() -> None:
    done = run_lifl("--help")
    assert done.returncode == 0
    for name, (module, words) in COMMANDS.items():
        command: click.Command = getattr(importlib.import_module(module), name.replace("-", "_"))
        assert command.help is not None
        assert command.help.splitlines()[0] == words
        assert f"  {name} " in done.stdout
        assert words in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    "arguments", [["no-such"], ["status"], ["submit", "nowhere.toml"], ["up", "--workers-max", "x"]]
)
def test_wrong_usage_is_exit_2(arguments: list[str]) -> None:
    done = run_lifl(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments", [["jobs"], ["status", "j"], ["cancel", "j"], ["model", "j", "-o", "x"], ["top", "--once"], ["down"]]
)
def test_without_a_node_each_command_says_how_to_start_one(arguments: list[str], state_dir: Path) -> None:
    done = run_lifl(*arguments, "--state", str(state_dir))
    assert done.returncode == 1
    assert f"no lifld runs with state folder {state_dir}" in done.stderr
    assert f"lifl up --state {state_dir}" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_stale_socket_is_no_node(state_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(state_dir / CONTROL_SOCKET))
    assert "no lifld runs" in run_lifl("jobs", "--state", str(state_dir)).stderr


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            ("quorum", "clients_per_round = 2\nqorum = 1"),
            "selection.qorum: unknown key; did you mean selection.quorum?",
        ),
        (("rounds", 'rounds = "two"'), "job.rounds: expected int, got str"),
        (("toml", "= ="), "is not TOML"),
        (("toml", "rounds = " + "9" * 5000), "is not TOML"),
        (("toml", "rounds = " + "[" * 5000), "is not TOML"),
    ],
)
def test_a_bad_job_file_is_refused_with_its_path(change: tuple[str, str], expected: str, tmp_path: Path) -> None:
    what, line = change
    old = {"quorum": "clients_per_round = 2", "rounds": "rounds = 2", "toml": "rounds = 2"}[what]
    path = tmp_path / "bad.toml"
    path.write_text(JOB.replace(old, line))
    done = run_lifl("submit", str(path), "--state", str(tmp_path))
    assert done.returncode == 1
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_that_is_longer_than_any_configuration_is_not_read_to_its_end(tmp_path: Path) -> None:
    for command in (["submit", "/dev/zero"], ["up", "-d", "--config", "/dev/zero"]):
        done = run_lifl(*command, "--state", str(tmp_path))
        assert done.returncode != 0
        assert f"/dev/zero is longer than {CONFIG_FILE_BYTES_MAX} bytes" in done.stderr
    path = tmp_path / "job.toml"
    path.write_text(JOB + "#" * (CONFIG_FILE_BYTES_MAX - len(JOB)))
    assert "no lifld runs" in run_lifl("submit", str(path), "--state", str(tmp_path)).stderr


@pytest.mark.parametrize("value", ["9" * 5000, "[" * 5000, "-1", "nan"])
def test_an_override_that_is_no_number_of_rounds_is_refused(value: str, job_file: Path, tmp_path: Path) -> None:
    done = run_lifl("submit", str(job_file), "--set", f"job.rounds={value}", "--state", str(tmp_path))
    assert done.returncode == 1
    assert "job.rounds" in done.stderr and "Traceback" not in done.stderr


def test_set_overrides_are_checked_like_the_file(job_file: Path, tmp_path: Path) -> None:
    done = run_lifl("submit", str(job_file), "--set", "aggregation.fanin=3", "--state", str(tmp_path))
    assert done.returncode == 1
    assert "did you mean aggregation.fan_in?" in done.stderr


# ---- lifl up
# ----------------------------------------------------------------------------------------------------


def test_every_key_of_a_node_is_a_flag() -> None:
    assert {"state_dir", *up.NODE_FLAGS} == {field.name for field in msgspec.structs.fields(NodeConfig)}
    flags = {option for parameter in up.up.params for option in parameter.opts}
    for key in up.NODE_FLAGS:
        assert f"--{key.replace('_', '-')}" in flags


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text('state_dir = "here"\nworkers_max = 3\narena_bytes = "32MiB"\n')
    flags: dict[str, Any] = dict.fromkeys(up.NODE_FLAGS)
    config = up._node_config(str(path), None, {**flags, "workers_max": 5})
    assert (config.workers_max, config.arena_bytes, config.listen) == (5, 32 << 20, "127.0.0.1:7433")
    assert config.state_dir == str(tmp_path / "here")
    assert up._node_config(str(path), "/elsewhere", flags).state_dir == "/elsewhere"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--arena-bytes", "2GGG"], "arena_bytes: '2GGG' is not a size"),
        (["--redirector", "magic"], "redirector: 'magic' is none of auto, sockmap, unix"),
        (["--listen", "nowhere"], "listen: 'nowhere' is not HOST:PORT"),
        (["--state", "/dev/null/x"], "cannot make the state folder /dev/null/x"),
    ],
)
def test_up_refuses_bad_flags_and_starts_nothing(arguments: list[str], expected: str) -> None:
    for detached in ([], ["-d"]):
        done = run_lifl("up", *detached, "--state", "/tmp/lt-never-made", *arguments)
        assert done.returncode == 1
        assert expected in done.stderr
        assert "Traceback" not in done.stderr


# ---- lifl submit
# ------------------------------------------------------------------------------------------------


def test_an_example_model_for_which_there_is_no_room_is_said_with_its_path(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, before[1]))
    try:
        with pytest.raises(ResourceFault, match=f"{tmp_path}/models/digits-mlp-7.safetensors.*make room"):
            config_file.write_example("digits-mlp", 7, tmp_path / "models")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list((tmp_path / "models").iterdir()) == [], "half a model stays"
    assert config_file.write_example("digits-mlp", 7, tmp_path / "models").is_file()


def test_paths_are_relative_to_the_file_and_the_example_is_written(job_file: Path, tmp_path: Path) -> None:
    config = parse_job({**config_file.read_toml(str(job_file))}, ["checkpoint.folder=models"])
    found = config_file.resolve(config, tmp_path, tmp_path / "state")
    assert found.checkpoint.folder == str(tmp_path / "models")
    assert found.aggregation.rule_folder == str(tmp_path)
    assert found.model.example == ""
    tensors = load_file(found.model.path)
    assert {name: value.shape for name, value in tensors.items()} == {
        "hidden.weight": (32, 64),
        "hidden.bias": (32,),
        "output.weight": (10, 32),
        "output.bias": (10,),
    }
    assert [path.name for path in (tmp_path / "state" / "models").iterdir()] == ["digits-mlp-0.safetensors"]


def test_unknown_examples_missing_models_and_bad_rules_are_told_before_the_node_sees_them(tmp_path: Path) -> None:
    table: dict[str, Any] = {
        "job": {"name": "j", "rounds": 1},
        "selection": {"clients_per_round": 1},
        "model": {"example": "digit-mlp"},
    }
    with pytest.raises(ConfigError, match="did you mean 'digits-mlp'"):
        config_file.resolve(parse_job(table), tmp_path, tmp_path)
    table["model"] = {"path": "no.safetensors"}
    with pytest.raises(ConfigError, match=rf"model.path: there is no file {tmp_path}/no.safetensors"):
        config_file.resolve(parse_job(table), tmp_path, tmp_path)
    (tmp_path / "mine.py").write_text("from lifl.rules import Rule\nclass Wrong:\n    pass\n")
    table["aggregation"] = {"rule": "mine:Wrong"}
    with pytest.raises(ConfigError, match="no subclass"):
        config_file.rule_states(parse_job(table), tmp_path)
    assert config_file.rule_states(parse_job({**table, "aggregation": {"rule": "fedavg"}}), tmp_path) == ()


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("os._exit(0)", "loading it ended the process with exit code 0"),
        ("os._exit(3)", "loading it ended the process with exit code 3"),
        ("ctypes.string_at(0)", "loading it ended the process with signal SIGSEGV"),
        ("sys.exit(0)", "SystemExit"),
        ("print('a word')", "has no class 'Mine'"),
        ("sys.setrecursionlimit(2**31 - 1)\ndef deep(): deep()\ndeep()", "RecursionError"),
    ],
)
def test_a_rule_that_ends_its_process_when_it_is_loaded_is_refused_and_its_key_is_named(
    job_file: Path, code: str, says: str
) -> None:
    (job_file.parent / "ends.py").write_text(f"import ctypes, os, sys\n{code}\n")
    done = run_lifl("plan", str(job_file), "--node", "a:4:1GiB", "--set", "aggregation.rule=ends:Mine")
    assert (done.returncode, done.stdout) == (1, "")
    assert "aggregation.rule: " in done.stderr and says in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("key", "given"),
    [
        ("model.path", {"model": {"path": "m"}}),
        ("checkpoint.folder", {"checkpoint": {"folder": "c"}}),
        ("selection.clients_file", {"selection": {"clients_per_round": 1, "clients_file": "f"}}),
        ("aggregation.rule_folder", {"aggregation": {"rule": "mine:Rule"}}),
        ("", {}),
    ],
)
def test_a_folder_that_is_not_utf8_is_told_with_the_key_that_it_comes_into(
    tmp_path: Path, key: str, given: dict[str, Any]
) -> None:
    (tmp_path / "m").touch()
    folder = Path(os.fsdecode(bytes(tmp_path) + b"/\xff"))
    folder.mkdir()
    (folder / "m").touch()
    table: dict[str, Any] = {
        "job": {"name": "j", "rounds": 1},
        "selection": {"clients_per_round": 1},
        "model": {"path": str(tmp_path / "m")},
    }
    config = parse_job(table | given)
    if not key:
        assert config_file.resolve(config, folder, tmp_path).model.path == str(tmp_path / "m")
        return
    with pytest.raises(ConfigError, match=rf"^{key}: .*udcff.* is not UTF-8"):
        config_file.resolve(config, folder, tmp_path)


# ---- lifl model
# -------------------------------------------------------------------------------------------------


def copied(source: Path, target: Path) -> None:
    """Have `lifl model` copy from a folder of this machine."""
    fetch_model._copy(fetch_model._read(source), target, {"path": str(source)}, source)


def test_a_copy_that_fails_leaves_nothing(tmp_path: Path) -> None:
    source = tmp_path / "a"
    source.write_bytes(b"model")
    copied(source, tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"model"
    (tmp_path / "folder").mkdir()
    for target in (tmp_path / "folder", tmp_path / "nowhere" / "c"):
        with pytest.raises(ResourceFault, match="cannot copy"):
            copied(source, target)
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", "folder"}


# ---- the client of the daemon
# -----------------------------------------------------------------------------------------


@contextmanager
def server(folder: Path, talk: Callable[[socket.socket], None]) -> Iterator[None]:
    """A real socket at the daemon's place; `talk` has the connection."""

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            talk(connection)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / CONTROL_SOCKET))
        listener.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            thread.join()


def after_request(*replies: bytes) -> Callable[[socket.socket], None]:
    def talk(connection: socket.socket) -> None:
        connection.recv(1 << 16)
        for reply in replies:
            connection.sendall(reply)

    return talk


def test_an_answer_in_pieces_is_put_together(state_dir: Path) -> None:
    frame = encode(Answer({"jobs": ["x" * 200_000]}))
    with (
        server(state_dir, after_request(frame[:3], frame[3:7], frame[7:])),
        DaemonClient(state_dir) as daemon,
    ):
        assert daemon.ask(ListJobs()) == {"jobs": ["x" * 200_000]}


@pytest.mark.parametrize(
    ("drain", "code", "said"),
    [("drained", 0, "is drained"), ("draining", 1, "still finishing"), ("", 1, "is gone")],
)
def test_drain_asks_once_and_waits_for_the_answer(drain: str, code: int, said: str, state_dir: Path) -> None:
    asked = []

    def talk(connection: socket.socket) -> None:
        asked.append(connection.recv(1 << 16))
        connection.sendall(encode(Answer({"node": {"node": "5c0ffee", "drain": drain}})))
        asked.append(connection.recv(1 << 16))

    with server(state_dir, talk):
        done = run_lifl("drain", "5c0ffee", "--state", str(state_dir))
    assert done.returncode == code and said in done.stdout + done.stderr
    assert asked == [encode(DrainNode("5c0ffee")), b""]


def test_a_no_keeps_its_code_and_field(state_dir: Path) -> None:
    with (
        server(state_dir, after_request(encode(Refusal("unknown-job", "job", "no such")))),
        DaemonClient(state_dir) as daemon,
        pytest.raises(Refused, match="no such") as caught,
    ):
        daemon.ask(ListJobs())
    assert (caught.value.code, caught.value.field) == ("unknown-job", "job")


@pytest.mark.parametrize("request_", [JobStatus("\udcff"), CancelJob("a" * 100_000), PlansOfRound("\udcff", 1)])
def test_what_lifld_would_not_understand_is_not_sent(request_: FromCli, state_dir: Path) -> None:
    with (
        server(state_dir, lambda connection: None),
        DaemonClient(state_dir) as daemon,
        pytest.raises(Refused, match=r"not UTF-8|JOB: it may be 0 to 4096 characters"),
    ):
        daemon.ask(request_)


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (b"", "ended in the middle"),
        (encode(Answer({}))[:5], "ended in the middle"),
        ((FRAME_BYTES_MAX + 1).to_bytes(4, "little"), "at most"),
        (b"\x03\0\0\0abc", "frame"),
        (encode(Event("round.opened", {})), "instead of Answer"),
    ],
)
def test_a_peer_that_is_no_lifld_is_a_remote_fault(reply: bytes, expected: str, state_dir: Path) -> None:
    with (
        server(state_dir, after_request(reply)),
        DaemonClient(state_dir) as daemon,
        pytest.raises(RemoteFault, match=expected),
    ):
        daemon.ask(ListJobs())


def test_who_is_turned_away_is_told_why_though_its_request_was_not_read(state_dir: Path) -> None:
    turned_away = threading.Event()

    def talk(connection: socket.socket) -> None:
        connection.sendall(encode(Refusal("too-many", "", "64 are open")))
        connection.close()
        turned_away.set()

    with server(state_dir, talk), DaemonClient(state_dir) as daemon:
        turned_away.wait()
        with pytest.raises(Refused, match="64 are open"):
            daemon.ask(ListJobs())
        with pytest.raises(RemoteFault, match="ended"):
            daemon.ask(ListJobs())


def test_a_model_that_a_failed_job_has_not_is_not_said_to_be_there(state_dir: Path) -> None:
    job = {"committed": 0, "status": "failed", "reason": "no file", "folder": "/f"}

    def talk(connection: socket.socket) -> None:
        for result in ({"job": job}, {"rounds": []}):
            connection.recv(1 << 16)
            connection.sendall(encode(Answer(result)))

    with server(state_dir, talk):
        done = CliRunner().invoke(model.model, ["j", "-o", "x", "--state", str(state_dir)])
    assert "no model of round 0; it has: none; the job is failed: no file" in str(done.exception)


@pytest.mark.parametrize("name", ["COLUMNS", "LINES"])
@pytest.mark.parametrize(
    ("value", "counts"),
    [("0", False), ("", False), ("-1", False), ("x", False), ("1", True), ("9999", True), ("10000", False)],
)
def test_a_size_of_the_terminal_that_is_none_counts_as_not_given(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, counts: bool
) -> None:
    monkeypatch.setenv(name, value)
    set_up_process()
    assert os.environ.get(name) == (value if counts else None)


def test_events_end_with_the_job(state_dir: Path) -> None:
    frames = [
        encode(Answer({})),
        encode(Event("round.committed", {"round": 1})),
        encode(Event("job.over", {"status": "finished"})),
        encode(Event("round.committed", {"round": 2})),
    ]
    with server(state_dir, after_request(b"".join(frames))), DaemonClient(state_dir) as daemon:
        daemon.ask(ListJobs())
        assert [event.name for event in daemon.events()] == ["round.committed", "job.over"]


def test_the_pid_is_the_kernels_word(state_dir: Path) -> None:
    import os

    with server(state_dir, lambda connection: None), DaemonClient(state_dir) as daemon:
        assert daemon.lifld_pid == os.getpid()


# ---- figures and trees
# ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nbytes", "expected"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1 << 30, "1.0 GiB"), (3 << 40, "3.0 TiB"), (None, "-")],
)
def test_sizes(nbytes: float | None, expected: str) -> None:
    assert figures.size_text(nbytes) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.0032, "3.2 ms"), (4.14, "4.1 s"), (125, "2 min 5 s"), (3600 * 3 + 720, "3 h 12 min"), (None, "-")],
)
def test_seconds(seconds: float | None, expected: str) -> None:
    assert figures.seconds_text(seconds) == expected


def task(number: int, role: str, parent: int | None) -> dict[str, Any]:
    return {
        "number": number,
        "parent_number": parent,
        "role": role,
        "state": "running",
        "inputs": 1,
        "expect": 2,
        "pid": 100 + number,
    }


def rendered(content: Any, width: int = 100) -> str:
    from rich.console import Console

    console = Console(width=width, force_terminal=False)
    with console.capture() as capture:
        console.print(content)
    return capture.get()


def test_a_tree_stands_under_its_top() -> None:
    tasks = [task(1, "leaf", 3), task(2, "leaf", 3), task(3, "middle", 4), task(4, "top", None)]
    lines = rendered(trees.tree_view(tasks)).splitlines()
    assert [line.strip("│├└─ ").split()[0] for line in lines] == ["top", "middle", "leaf", "leaf"]


def test_a_large_tree_is_cut_and_says_so() -> None:
    tasks = [task(0, "top", None), *(task(number, "leaf", 0) for number in range(1, 501))]
    lines = rendered(trees.tree_view(tasks)).splitlines()
    assert len(lines) == trees.TREE_TASKS_MAX + 1
    assert f"{501 - trees.TREE_TASKS_MAX} more tasks" in lines[-1]
    at_limit = tasks[: trees.TREE_TASKS_MAX]
    assert "more tasks" not in rendered(trees.tree_view(at_limit))


HOSTILE = "[/]\x1b]0;mine\x07\n[bold]\u202e\ud800"
SHOWN = "[/]\\x1b]0;mine\\x07\\n[bold]\\u202e\\ud800"
"""A text from outside, and what is shown of it: rich takes its brackets for nothing, the terminal gets no control."""


def test_what_comes_from_outside_is_shown_and_not_obeyed() -> None:
    assert figures.printable(HOSTILE) == SHOWN
    assert figures.printable_lines(f"one\n{HOSTILE[:-20]}\x1b") == "one\n" + figures.printable(HOSTILE[:-20]) + "\\x1b"
    assert figures.printable(SHOWN) == SHOWN
    assert figures.metrics_text({HOSTILE: 0.5}) == f"{SHOWN} 0.5"


def test_no_table_or_tree_or_view_reads_a_text_from_outside_as_markup() -> None:
    receipt = {"counted": 1, "selected": 1, "bytes_in": 1, "cpu_s": {}, "duration_s": 1, "workers_cold": 0}
    receipt |= {"last_accepted_to_commit_s": 1, "workers_warm": 0}
    job = {"name": HOSTILE, "status": HOSTILE, "committed": 1, "rounds": 2, "clients": 3, "rule": HOSTILE}
    job |= {"metrics": {HOSTILE: 1.0}, "reason": HOSTILE}
    rounds = [{"round": 1, "status": HOSTILE, "metrics": {HOSTILE: 1.0}, "receipt": kept} for kept in (receipt, None)]
    node = {"node": HOSTILE, "state": HOSTILE, "since_s": 1, "rate_per_s": 1, "execution_s": 1, "coordinator": True}
    node |= {"arena_used_bytes": 1, "arena_bytes": 1, "workers": 1, "gateway": HOSTILE, "control": HOSTILE}
    node |= {"capacity": 1, "residual": 1}
    tree = [{**task(1, HOSTILE, None), "state": HOSTILE}]
    sample = {
        "node": {"node": HOSTILE, "listen": [HOSTILE], "pid": 1, "uptime_s": 1, "capacity": 1.0},
        "nodes": [node] * 2,
    }
    sample["node"] |= {"arena": dict.fromkeys(("used_bytes", "bytes", "peak_bytes", "objects"), 1), "gateway": {}}
    sample["node"] |= {"redirector": {"kind": HOSTILE}}
    sample["host"] = dict.fromkeys(("cpu_percent", "cpus", "memory_used_bytes", "memory_bytes"), 1)
    sample["rates"] = {"received_bytes_s": 1.0, "sent_bytes_s": 1.0}
    sample["processes"], sample["jobs"] = {}, [job]
    worker = {"role": HOSTILE, "pid": 1, "state": "busy", "worker": 1, "job": HOSTILE, "round": 1, "address": 1}
    sample["workers"] = [worker | {"inputs": 1, "expect": 1, "tasks_done": 1}]
    for content in (
        tables.jobs_table([job]),
        tables.rounds_table(rounds),
        tables.nodes_table([node]),
        tables.addresses_table([node]),
        tables.labels_table([node | {"labels": {"a": HOSTILE}}]),
        top.view(sample),
    ):
        shown = rendered(content, 500)
        assert SHOWN in shown and not any(c in shown for c in "\x1b\x07\u202e\ud800")
    assert SHOWN in rendered(trees.tree_view(tree), 500)


def test_clients_can_be_read_on_a_terminal_of_80_columns() -> None:
    """Words of what was missed stay whole, and nothing is cut off."""
    counts = {"selected": 16_384, "delivered": 16_000, "late": 12, "left": 1, "declined": 16, "spoilt": 0}
    client = {"here": True, **counts, "misses": 1.11, "level": 2}
    lines = [client | {"client": name} for name in ("hospital-00007", "klinik-straße-münchen", "n" * 64)]
    shown = rendered(tables.clients_table(lines), 80)
    whole = ("hospital-00007 ", "klinik-straße-münchen ", "16000/16384", "1.11", "12 late")
    assert all(words in shown for words in whole)
    assert shown.count("n" * 24) == 2 and "spoilt" not in shown
    says = {"labels": {"region": "eu"}, "examples": 12_000}
    shown = rendered(tables.clients_table([line | {"properties": says} for line in lines]), 80)
    assert "region=eu" in shown and "12 late," in shown
    assert "late" not in rendered(tables.clients_table([client | {"client": "c", "late": 0, "level": 0}]), 80)


def test_on_a_narrow_terminal_a_table_is_written_row_by_row(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No word is broken, nothing is cut off, and what a row does not say has no line; what fits stays a table."""
    job = {"status": "finished", "committed": 12, "rounds": 3000, "clients": 3, "rule": "fedavg", "reason": ""}
    jobs = [job | {"name": name, "metrics": {"accuracy": 0.5}} for name in ("digits", "n" * 50, "münchen")]
    monkeypatch.setenv("COLUMNS", "40")
    tables.show(tables.jobs_table(jobs))
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines[:7] == [
        "job        digits",
        "status     finished",
        "committed  12/3000",
        "clients    3",
        "rule       fedavg",
        "metrics    accuracy 0.5",
        "",
    ]
    assert "job        münchen" in lines and max(map(len, lines)) <= 40
    assert "".join(lines).replace(" ", "").count("n" * 50) == 1
    tables.show(tables.labels_table([{"node": "a", "labels": {"zone": "eu"}}]) or "")
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [["node", "labels"], ["a", "zone=eu"]]
    tables.show(tables.jobs_table(jobs * tables.LONG_ROWS))
    assert capsys.readouterr().out.startswith("job        digits\nstatus     finished\n")
    monkeypatch.setenv("COLUMNS", "80")
    tables.show(tables.jobs_table(jobs[:1]))
    assert capsys.readouterr().out.startswith("job     status")


def test_on_a_narrow_terminal_a_line_goes_on_below_itself_and_a_path_stays_whole() -> None:
    line = "  clients                  2 selected, 2 accepted, 2 counted, 0 expired"
    assert figures.folded(line, 40, 4) == ["  clients  2 selected, 2 accepted, 2", "    counted, 0 expired"]
    assert figures.folded(line, 72, 4) == [line]
    assert figures.folded("  weight    200", 40, 4) == ["  weight    200"]
    path = f"/{'a-b/' * 20}"
    assert figures.folded(f"model: {path}", 40, 4) == ["model:", f"    {path}"]
    assert figures.folded("", 40, 4) == [""]


def test_an_error_that_quotes_a_client_sends_the_terminal_nothing() -> None:
    from click.testing import CliRunner
    from lifl_cli.main import Commands

    from lifl.core.errors import LiflError

    def fail() -> None:
        raise LiflError("client \x1b[2J is here\nand more")

    class Failing(Commands):
        def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
            return click.Command(cmd_name, callback=fail)

    done = CliRunner().invoke(Failing("lifl"), ["any"])
    assert (done.exit_code, done.output) == (1, "Error: client \\x1b[2J is here\nand more\n")


def test_help_is_the_same_from_the_console_script(tmp_path: Path) -> None:
    import sys

    script = Path(sys.executable).with_name("lifl")
    done = subprocess.run([script, "--help"], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout == run_lifl("--help").stdout


# ---- the configs that come along
# --------------------------------------------------------------------------------

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("digits*.toml")), ids=lambda path: path.name)
def test_each_job_config_can_be_submitted_as_it_is(path: Path, tmp_path: Path) -> None:
    config = parse_job(config_file.read_toml(str(path)))
    assert config.job.name == path.stem
    config_file.rule_states(config, path.parent)
    assert Path(config_file.resolve(config, path.parent, tmp_path).model.path).is_file()


def test_the_node_config_shows_every_key_with_its_default() -> None:
    table = config_file.read_toml(str(CONFIGS / "node.toml"))
    assert set(table) == set(up.NODE_FLAGS)
    assert parse_node(table) == NodeConfig()


def test_what_is_no_file_any_more_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "round-00001.safetensors")
    with pytest.raises(ResourceFault, match="is no file any more"):
        copied(tmp_path / "round-00001.safetensors", tmp_path / "copy")


@pytest.mark.parametrize(
    ("store", "shown"),
    [
        ({"leads": True, "leader": "ab", "term": 7, "trouble": ""}, "this node, in term 7"),
        ({"leads": False, "leader": "ab", "term": 0, "trouble": ""}, "node ab"),
        ({"leads": False, "leader": "", "term": 0, "trouble": ""}, "none now"),
        ({"leads": True, "leader": "ab", "term": 7, "trouble": "the store does not answer"}, "the store does not"),
    ],
)
def test_top_says_who_coordinates_or_why_nobody_does(store: dict[str, Any], shown: str) -> None:
    assert shown in rendered(top._store_text(store))


def test_doctor_goes_on_where_the_system_has_no_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container whose Python is in /usr/local."""
    monkeypatch.setattr(loader, "SYSTEM_PYTHON", "/nowhere/python3")
    monkeypatch.setattr("sys.executable", "/nowhere/else")
    (found,) = doctor._bcc(Path())
    assert (found.level, found.what) == ("warn", "bcc")
