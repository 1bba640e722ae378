"""What a user gets wrong, and what a node that is too small does: an error that names it, and harm to nobody."""

from __future__ import annotations

import re
import socket
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fleet import Fleet, OneHot, Watch, arena_use, ask, fleet, gated, note_busy, objects, submit, until, write_job
from nodes import Node, run_lifl

from lifl import Client
from lifl.client import NodeUnreachable
from lifl.core.ids import Kind
from lifl.core.protocol import cli as om

SMALL_ARENA = ("--arena-bytes", "16MiB", "--redirector", "unix")
ARENA_BYTES = 20 << 20
"""For what a round of 24 updates of 700 kB needs at the least, and little more."""


def refused(node: Node, *arguments: str) -> str:
    """What a command that fails said: one line, no traceback."""
    done = run_lifl(*arguments, "--state", str(node.state_dir))
    assert done.returncode == 1, done.stdout
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory):
    made = Node(tmp_path_factory.mktemp("n"), ("--listen", "127.0.0.1:0", *SMALL_ARENA))
    made.up()
    yield made
    assert arena_use(made) == (0, 0), "a refused job left something"
    made.down()


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"selection__clients_per_rounds": 3}, "selection.clients_per_rounds: unknown key; did you mean"),
        ({"aggregation__deadline_s": 3}, "did you mean selection.deadline_s?"),
        ({"agregation__rule": "fedavg"}, "agregation: unknown key; did you mean aggregation?"),
        ({"job__rounds": "three"}, "job.rounds: expected int, got str (given: 'three')"),
        ({"job__rounds": 0}, "job.rounds"),
        ({"job__name": "a b"}, "job.name"),
        ({"selection__quorum": 7}, "selection.quorum: 7 is more than selection.clients_per_round = 2"),
        ({"aggregation__rule": "fedavgn"}, "did you mean 'fedavg"),
        ({"aggregation__rule": "nowhere:Rule"}, "cannot import 'nowhere'"),
        (
            {"aggregation__options": {"server_momentun": 0.5}, "aggregation__rule": "fedavgm"},
            "did you mean 'server_momentum'?",
        ),
        ({"model__path": "no.safetensors"}, "no.safetensors; give a safetensors file"),
        ({"checkpoint__folder": "/proc/models"}, "/proc/models cannot be made"),
    ],
)
def test_a_config_is_refused_by_its_key(node: Node, keys: dict, says: str, tmp_path: Path) -> None:
    assert says in refused(node, "submit", str(write_job(tmp_path, "typo", OneHot(2).model(), **keys)))
    assert "typo" not in [job["name"] for job in node.json("jobs")["jobs"]]


def test_files_that_are_no_models_or_no_toml(node: Node, tmp_path: Path) -> None:
    path = write_job(tmp_path, "damaged", OneHot(2).model())
    model = tmp_path / "damaged.model.safetensors"
    whole = model.read_bytes()
    for content in (b"", whole[:20], b"\xff" * 8 + whole[8:], whole[:-1]):
        model.write_bytes(content)
        assert "damaged.model.safetensors" in refused(node, "submit", str(path))
    path.write_text("[job\n")
    assert "is not TOML" in refused(node, "submit", str(path))


def test_a_model_with_nan_fails_its_job_at_the_start(node: Node) -> None:
    model = OneHot(2).model() | {"w": np.array([1.0, np.nan], np.float32)}
    submit(node, "nan", model)
    reason = Watch(node, "nan").over()["reason"]
    assert "element 1 of tensor 'w' (flattened) is NaN or infinite" in reason


def test_a_job_that_can_never_fit_is_refused_with_numbers(node: Node, tmp_path: Path) -> None:
    large = OneHot(2, ballast_bytes=20 << 20)
    said = refused(node, "submit", str(write_job(tmp_path, "large", large.model())))
    numbers = [int(number) for number in re.findall(r"\d{7,}", said)]
    assert large.data_bytes in numbers
    assert max(numbers) > 2 * large.data_bytes
    assert "--arena-bytes" in said


def test_an_arena_that_the_machine_has_not_is_refused(state_dir: Path) -> None:
    done = run_lifl("up", "-d", "--state", str(state_dir), "--listen", "127.0.0.1:0", "--arena-bytes", "10TiB")
    assert done.returncode == 1
    assert "arena" in done.stderr and "Traceback" not in done.stderr
    assert not list(state_dir.glob("*.sock"))


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--arena-bytes", "5"), "arena_bytes"),
        (("--arena-bytes", "many"), "is not a size"),
        (("--listen", "nowhere"), "HOST:PORT"),
        (("--listen", "192.0.2.1:1"), "no address of this machine"),
        (("--insecure", "--listen", "192.0.2.1:1"), "no address of this machine"),
        (("--redirector", "carrier-pigeon"), "redirector"),
    ],
)
def test_a_bad_flag_of_the_node_is_refused(state_dir: Path, flags: tuple[str, ...], says: str) -> None:
    done = run_lifl("up", "-d", "--state", str(state_dir), *flags)
    assert done.returncode == 1
    assert says in done.stderr and "Traceback" not in done.stderr


def test_a_typo_in_a_nodes_config_is_refused_with_the_nearest_key(state_dir: Path) -> None:
    config = state_dir / "node.toml"
    config.write_text('arena_byte = "64MiB"\n')
    done = run_lifl("up", "-d", "--state", str(state_dir), "--config", str(config))
    assert done.returncode == 1
    assert "arena_byte: unknown key; did you mean arena_bytes?" in done.stderr


# ---- a full arena ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("queue", [0, 4, 1024])
def test_a_full_arena_slows_its_senders_and_loses_nothing(start_node: Callable[..., Node], queue: int) -> None:
    """24 updates at once into an arena for a dozen, whose leaves are held: some wait in line, more are told BUSY."""
    more = ("--arena-bytes", str(ARENA_BYTES), "--wait-queue-max", str(queue))
    node, oracle = start_node("--redirector", "unix", *more), OneHot(24, ballast_bytes=700_000)
    told_busy: Counter[int] = Counter()
    with gated(node, "fold") as (keys, (gate,)):
        submit(node, "j", oracle.model(), aggregation__middle_fan_in=2, **keys)
        team = Fleet([node.address, str(node.state_dir)], "j", 24, oracle.update)
        for trainer in team.trainers:
            note_busy(trainer, told_busy)
        team.start()
        try:
            gate.reached()
            waiting = until("senders in line", lambda: line_up(node, told_busy, min(queue, 12)))
            arena = ask(node, om.Snapshot())["node"]["arena"]
            assert arena["used_bytes"] <= arena["bytes"] == ARENA_BYTES
            held = sum(entry.kind == Kind.UPDATE for entry in objects(node))
            assert 2 <= held < 14
            print(f"{held} are in the arena, {waiting - 1} wait, {len(told_busy)} were told busy")
            gate.open()
            team.join()
        finally:
            team.close()
    (line,) = oracle.check(node, "j", team)
    assert line["receipt"]["counted"] == 24
    assert line["receipt"]["arena_peak_bytes"] <= ARENA_BYTES
    assert until("an empty arena", lambda: arena_use(node) == (0, 0))
    assert bool(told_busy) == (queue < 24)


def line_up(node: Node, told_busy: Counter[int], queue: int) -> int:
    waiting: int = ask(node, om.Snapshot())["node"]["arena"]["waiting"]
    return waiting + 1 if waiting >= queue and (told_busy or queue == 12) else 0


def test_two_jobs_share_a_small_arena_and_neither_starves(start_node: Callable[..., Node]) -> None:
    node = start_node(*SMALL_ARENA)
    oracle = OneHot(12, ballast_bytes=700_000)
    for job in ("a", "b"):
        submit(node, job, oracle.model(), job__rounds=2, aggregation__middle_fan_in=2)
    with (
        fleet(node.address, "a", 12, oracle.update) as first,
        fleet(str(node.state_dir), "b", 12, oracle.update) as second,
    ):
        first.join()
        second.join()
    for job, team in (("a", first), ("b", second)):
        assert [line["receipt"]["counted"] for line in oracle.check(node, job, team)] == [12, 12]


def test_a_job_waits_in_line_until_the_arena_has_room(start_node: Callable[..., Node]) -> None:
    node, oracle = start_node(*SMALL_ARENA), OneHot(4, ballast_bytes=1_300_000)
    for job in ("a", "b"):
        submit(node, job, oracle.model())
    statuses = {job["name"]: job["status"] for job in node.json("jobs")["jobs"]}
    assert statuses["b"] in ("queued", "loading")
    with fleet(node.address, "b", 4, oracle.update) as second:
        until("the clients of b", lambda: ask(node, om.JobStatus("b"))["job"]["clients"] == 4)
        with fleet(node.address, "a", 4, oracle.update) as first:
            first.join()
        second.join()
    oracle.check(node, "a", first)
    oracle.check(node, "b", second)


def test_who_is_disconnected_is_in_the_log_with_the_reason(node: Node) -> None:
    host, _, port = node.address.rpartition(":")
    with socket.create_connection((host, int(port))) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
        while stranger.recv(4096):
            pass
    log = node.state_dir / "lifld.log"
    said = until("its line", lambda: log.read_text().partition("WARNING client.disconnected ")[2])
    assert "host=127.0.0.1 client=- a frame announces" in said


def test_a_stranger_that_comes_again_and_again_has_a_line_and_a_count(start_node: Callable[..., Node]) -> None:
    node = start_node("--redirector", "unix", "--insecure", "--control", "127.0.0.1:0")
    for address in (node.address, node.info["control"]):
        host, _, port = address.rpartition(":")
        for _ in range(100):
            with socket.create_connection((host, int(port))) as stranger:
                stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
                while stranger.recv(4096):
                    pass
    log = node.state_dir / "lifld.log"
    for event in ("client.disconnected", "peer.refused"):
        assert log.read_text().count(event) == 1
    node.down()
    for event in ("client.disconnected", "peer.refused"):
        assert "(99 times more" in log.read_text().rpartition(event)[2]


def test_more_clients_than_connections_are_told_so(start_node: Callable[..., Node]) -> None:
    node, oracle = start_node("--redirector", "unix", "--connections-max", "4"), OneHot(4)
    submit(node, "j", oracle.model())
    with fleet(node.address, "j", 4, oracle.update, held=[(0, 1)]) as team:
        until("4 clients", lambda: ask(node, om.JobStatus("j"))["job"]["clients"] == 4)
        with (
            Client(node.address, job="j", client="extra", give_up_after_s=0.3) as extra,
            pytest.raises(NodeUnreachable, match="at most 4 connections"),
        ):
            next(extra.rounds())
        team.release()
        team.join()
    oracle.check(node, "j", team)
