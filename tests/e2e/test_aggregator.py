"""The aggregator as a library: folds by a program, on a node of its own and on one that runs."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import select
import signal
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest
from nodes import Node, run_lifl, running

import lifl
from lifl.aggregator import FoldFailed, FoldResult, UpdateRefused
from lifl.aggregator.tickets import BEGIN, TicketContent, read_ticket
from lifl.client import NodeUnreachable
from lifl.client.tensors import Update
from lifl.core.config.job import most_of
from lifl.core.errors import LocalFault, Refused

CLIENTS = 12
MODEL = {"head": np.zeros(CLIENTS, np.float32), "body": np.zeros((40, 25), np.float32), "steps": np.zeros(3, np.int64)}
"""In an order that is not that of its bytes: integers come behind the floats."""


def one_hot(client: int) -> dict[str, np.ndarray[Any, Any]]:
    """The update of a client: in the mean each that is in it stands as its share."""
    head = np.zeros(CLIENTS, np.float32)
    head[client] = CLIENTS
    return {"steps": np.full(3, client, np.int64), "body": np.full((40, 25), client, np.float32), "head": head}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A node of a user's, on this machine: nothing of an aggregator stays on it."""
    with running(tmp_path_factory.mktemp("node") / "state") as found:
        yield found


@pytest.fixture(params=["unix", "tcp"])
def door(request: pytest.FixtureRequest, node: Node) -> str:
    """By which way the program comes: the state folder, or the gateway's address with the cookie."""
    return str(node.state_dir) if request.param == "unix" else node.address


def check_whole(result: FoldResult) -> None:
    """All clients are in it, each once."""
    np.testing.assert_allclose(result["head"], np.ones(CLIENTS))
    np.testing.assert_allclose(result["body"], np.full((40, 25), (CLIENTS - 1) / 2))
    assert sorted(result.clients) == sorted(f"site-{i}" for i in range(CLIENTS))


def jobs(node: Node) -> list[dict[str, Any]]:
    """What `lifl jobs` shows."""
    found: list[dict[str, Any]] = node.json("jobs")["jobs"]
    return found


def is_at_rest(node: Node) -> None:
    """Nothing is left of any session: no row, no folder, no object of the arena."""
    assert jobs(node) == [], "a session's row stays"
    assert not list((node.state_dir / "jobs").iterdir())
    assert node.snapshot()["node"]["arena"]["used_bytes"] == 0


# ---- what a fold is --------------------------------------------------------------------------------------------------


def test_threads_add_and_the_mean_comes_in_the_models_order(door: str, node: Node) -> None:
    with lifl.Aggregator(door) as aggregator, aggregator.open(MODEL, expected=CLIENTS) as fold:
        failed: list[BaseException] = []

        def add(client: int) -> None:
            try:
                fold.add(one_hot(client), weight=2.0, metrics={"loss": float(client)}, client=f"site-{client}")
            except BaseException as error:  # noqa: BLE001 - told below
                failed.append(error)

        threads = [threading.Thread(target=add, args=(client,)) for client in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failed
        result = fold.result()
        check_whole(result)
        assert list(result) == list(MODEL), "not the caller's order"
        assert {name: (array.dtype, array.shape) for name, array in result.items()} == {
            name: (array.dtype, array.shape) for name, array in MODEL.items()
        }
        assert result.metrics == {"loss": pytest.approx((CLIENTS - 1) / 2)}
        assert result.weight == 2.0 * CLIENTS
        assert fold.result() is result
    is_at_rest(node)


def test_one_client_twice_counts_once_and_by_its_first_update(door: str) -> None:
    with lifl.Aggregator(door) as aggregator, aggregator.open(MODEL, expected=2) as fold:
        fold.add(one_hot(3), 1.0, client="site-3")
        fold.add(one_hot(5), 1.0, client="site-3")
        result = fold.result()
        assert result.clients == ("site-3",)
        np.testing.assert_array_equal(result["head"], one_hot(3)["head"])


def test_who_writes_to_its_slot_behind_the_seal_harms_no_update_that_comes_later(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    slots: list[memoryview] = []
    write_to = Update.write_to

    def keeping(update: Update, slot: memoryview, *more: Any) -> Any:
        slots.append(slot)
        return write_to(update, slot, *more)

    monkeypatch.setattr(Update, "write_to", keeping)
    with lifl.Aggregator(node.state_dir) as aggregator, aggregator.open({"w": MODEL["head"]}, expected=2) as fold:
        fold.add({"w": np.full(CLIENTS, 1, np.float32)}, 1.0, client="site-1")
        np.frombuffer(slots[0], np.float32, CLIENTS)[:] = 101
        fold.add({"w": np.full(CLIENTS, 2, np.float32)}, 1.0, client="site-2")
        result = fold.result(copy=True)
    assert set(2 * result["w"] - 2) <= {1, 101}, "of its own update the node has the one or the other"
    is_at_rest(node)


def test_the_caller_makes_no_copy_of_what_it_adds(door: str) -> None:
    model = {"w": np.zeros(1 << 20, np.float32)}
    with lifl.Aggregator(door) as aggregator, aggregator.open(model, expected=4) as fold:
        fold.add(model, 1.0)
        tracemalloc.start()
        try:
            for _ in range(3):
                fold.add(model, 1.0)
            assert tracemalloc.get_traced_memory()[1] < model["w"].nbytes / 4, "the peak since then"
        finally:
            tracemalloc.stop()


def test_fewer_and_more_than_expected_come(door: str) -> None:
    with lifl.Aggregator(door) as aggregator:
        with aggregator.open(MODEL, expected=100) as fold:
            fold.add(one_hot(1), 1.0)
            assert len(fold.result().clients) == 1
        with aggregator.open(MODEL, expected=1) as fold:
            for client in range(CLIENTS):
                fold.add(one_hot(client), 1.0, client=f"site-{client}")
            check_whole(fold.result())


def test_beyond_its_limit_a_fold_says_what_to_expect(node: Node) -> None:
    small = {"w": np.zeros(4, np.float32)}
    with lifl.Aggregator(node.state_dir) as aggregator, aggregator.open(small, expected=1) as fold:
        for _ in range(most_of(1)):
            fold.add(small, 1.0)
        with pytest.raises(UpdateRefused, match="larger `expected`") as refused:
            fold.add(small, 1.0)
        assert (refused.value.code, refused.value.field) == ("fold-full", "expected")
        assert len(fold.result().clients) == most_of(1)


def test_a_fold_without_an_update_says_so_and_goes_on(door: str) -> None:
    with lifl.Aggregator(door) as aggregator, aggregator.open(MODEL, expected=2) as fold:
        with pytest.raises(Refused, match="has no update"):
            fold.result()
        fold.add(one_hot(0), 1.0)
        assert len(fold.result().clients) == 1


def test_what_cannot_be_added_is_refused_by_its_field_and_harms_nobody(door: str) -> None:
    good, bad = one_hot(4), one_hot(4)
    bad["body"] = bad["body"].copy()
    bad["body"][7, 3] = np.nan
    wrong: list[tuple[dict[str, Any], dict[str, Any], str]] = [
        (bad, {}, "tensors.body"),
        (good | {"body": np.zeros((40, 24), np.float32)}, {}, "tensors.body"),
        (good | {"head": good["head"].astype(np.float64)}, {}, "tensors.head"),
        ({"head": good["head"], "body": good["body"]}, {}, "tensors.steps"),
        (good, {"weight": -1.0}, "weight"),
        (good, {"metrics": {"loss": float("nan")}}, "metrics.loss"),
        (good, {"client": "not a name"}, "client"),
    ]
    with lifl.Aggregator(door) as aggregator, aggregator.open(MODEL, expected=4) as fold:
        fold.add(one_hot(1), 1.0)
        for tensors, more, field in wrong:
            with pytest.raises(UpdateRefused) as refused:
                fold.add(tensors, **({"weight": 1.0, "client": "site-9"} | more))
            assert refused.value.field == field, str(refused.value)
            assert refused.value.client == more.get("client", "site-9")
            assert refused.value.tensor == (field.partition("tensors.")[2])
        fold.add(one_hot(1), 1.0, client="site-9")
        np.testing.assert_array_equal(fold.result()["head"], one_hot(1)["head"])


def test_a_cancelled_fold_has_no_result_and_the_next_one_is_whole(door: str, node: Node) -> None:
    with lifl.Aggregator(door) as aggregator:
        fold = aggregator.open(MODEL, expected=4)
        fold.add(one_hot(1), 1.0)
        fold.cancel()
        with pytest.raises(FoldFailed, match="cancelled"):
            fold.add(one_hot(2), 1.0)
        with pytest.raises(FoldFailed, match="cancelled"):
            fold.result()
        with aggregator.open(MODEL, expected=4) as fold:
            fold.add(one_hot(2), 1.0)
            np.testing.assert_array_equal(fold.result()["head"], one_hot(2)["head"])
    is_at_rest(node)


def test_several_folds_at_once(door: str) -> None:
    with lifl.Aggregator(door) as aggregator:
        folds = [aggregator.open(MODEL, expected=CLIENTS) for _ in range(3)]
        for client in range(CLIENTS):
            folds[client % 3].add(one_hot(client), 1.0, client=f"site-{client}")
        results = [fold.result() for fold in folds]
        assert [len(result.clients) for result in results] == [4, 4, 4]
        for number, result in enumerate(results):
            share = [CLIENTS / 4 if client % 3 == number else 0 for client in range(CLIENTS)]
            np.testing.assert_allclose(result["head"], share)


def test_async_and_futures(node: Node) -> None:
    async def fold_all(aggregator: lifl.Aggregator) -> FoldResult:
        with aggregator.open(MODEL, expected=CLIENTS) as fold:
            futures = [fold.add_future(one_hot(client), 1.0, client=f"site-{client}") for client in range(6)]
            adding = [fold.add_async(one_hot(client), 1.0, client=f"site-{client}") for client in range(6, CLIENTS)]
            await asyncio.gather(*adding, *map(asyncio.wrap_future, futures))
            return await fold.result_async()

    with lifl.Aggregator(node.state_dir) as aggregator:
        check_whole(asyncio.run(fold_all(aggregator)))


# ---- the rule's state ------------------------------------------------------------------------------------------------


def test_a_rules_state_lives_from_fold_to_fold_and_is_in_use_once(door: str) -> None:
    """FedAvgM: v = m·v + (mean - model), model + v."""
    start = {"w": np.zeros(5, np.float32)}
    with lifl.Aggregator(door, rule="fedavgm", options={"server_momentum": 0.5}) as aggregator:
        model: Any = start
        expected, velocity = 0.0, 0.0
        for mean in (1.0, 3.0, 2.0):
            with aggregator.open(model, expected=2) as fold:
                with pytest.raises(Refused, match="state is in use"):
                    aggregator.open(model, expected=2)
                fold.add({"w": np.full(5, mean - 1, np.float32)}, 1.0)
                fold.add({"w": np.full(5, mean + 1, np.float32)}, 1.0)
                model = fold.result()
            velocity = 0.5 * velocity + (mean - expected)
            expected += velocity
            np.testing.assert_allclose(model["w"], np.full(5, expected), rtol=1e-6)


def test_a_fold_starts_from_the_model_that_it_is_opened_with(door: str) -> None:
    with lifl.Aggregator(door, rule="fedavgm", options={"server_momentum": 0.0, "server_learning_rate": 0.5}) as agg:
        for base in (10.0, 20.0):
            with agg.open({"w": np.full(5, base, np.float32)}, expected=2) as fold:
                fold.add({"w": np.full(5, base + 4, np.float32)}, 1.0)
                np.testing.assert_allclose(fold.result()["w"], np.full(5, base + 2))


# ---- who may, and what is shown --------------------------------------------------------------------------------------


def test_the_commands_show_a_session_and_cancel_ends_it(node: Node) -> None:
    with lifl.Aggregator(node.state_dir) as aggregator:
        fold = aggregator.open(MODEL, expected=4)
        fold.add(one_hot(1), 1.0)
        (line,) = jobs(node)
        assert (line["status"], line["rule"]) == ("running", "fedavg")
        status = node.json("status", line["name"])
        assert status["now"]["accepted"] == 1
        node.lifl("top", "--json")
        node.lifl("cancel", line["name"])
        with pytest.raises((FoldFailed, Refused), match=r"cancelled|no session"):
            fold.result()
    is_at_rest(node)


def test_a_file_cannot_make_a_session(node: Node, tmp_path: Path) -> None:
    config = tmp_path / "job.toml"
    config.write_text(
        '[job]\nname = "j"\nrounds = 1\nkind = "fold"\n[model]\nexample = "digits-mlp"\n'
        "[selection]\nclients_per_round = 1\n"
    )
    done = run_lifl("submit", str(config), "--state", str(node.state_dir))
    assert done.returncode and "lifl.Aggregator" in done.stderr


def test_without_tls_and_without_a_cookie_nobody_hosts(tmp_path: Path) -> None:
    open_node = Node(tmp_path / "open", ("--listen", "127.0.0.1:0", "--insecure", "--arena-bytes", "32MiB"))
    open_node.up()
    try:
        with lifl.Aggregator(open_node.address) as aggregator, pytest.raises(Refused, match="own account"):
            aggregator.open(MODEL, expected=2)
    finally:
        open_node.down()


# ---- tickets ---------------------------------------------------------------------------------------------------------

TAKES_PART = """
import lifl, numpy, sys
with lifl.take_part(sys.argv[1]) as part:
    part.submit({name: array + float(sys.argv[2]) for name, array in part.model.items()}, 1.0, {"loss": 1.5})
    part.submit({name: array + 99 for name, array in part.model.items()}, 1.0)
    print(part.client, list(part.model))
"""


def test_processes_of_their_own_take_part_by_tickets_alone(door: str, node: Node) -> None:
    base = {"b": np.full(3, 10, np.float32), "a": np.full((2, 2), 20, np.float32)}
    with lifl.Aggregator(door) as aggregator, aggregator.open(base, expected=3) as fold:
        tickets = [fold.ticket(client=f"site-{number}") for number in range(2)]
        assert all("\n" not in ticket for ticket in tickets)
        for number, ticket in enumerate(tickets):
            command = [sys.executable, "-c", TAKES_PART, ticket, str(number)]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
            assert done.stdout == f"site-{number} ['b', 'a']\n", done.stderr
        fold.add({name: array + 2 for name, array in base.items()}, 1.0, client="host-s")
        result = fold.result()
    np.testing.assert_allclose(result["b"], np.full(3, 11.0))
    np.testing.assert_allclose(result["a"], np.full((2, 2), 21.0))
    assert result.clients == ("site-0", "site-1", "host-s")
    assert result.metrics == {"loss": 1.5}
    is_at_rest(node)


def line_of(content: TicketContent) -> str:
    """The line of a ticket."""
    return BEGIN + base64.urlsafe_b64encode(msgspec.msgpack.encode(content)).decode()


def test_a_ticket_that_is_wrong_expired_or_anothers_is_refused(node: Node) -> None:
    with lifl.Aggregator(node.state_dir) as aggregator, aggregator.open(MODEL, expected=2) as fold:
        with pytest.raises(LocalFault, match="no ticket"):
            lifl.take_part("hello")
        late = fold.ticket("late", valid_s=-1)
        with pytest.raises(Refused, match="too old") as refused:
            lifl.take_part(late)
        assert (refused.value.code, refused.value.field) == ("ticket-expired", "ticket")
        good = read_ticket(fold.ticket("site-1"))
        for change in ({"client": "site-2"}, {"expires_unix_s": good.expires_unix_s + 60}, {"fold": good.fold + 1}):
            line = line_of(msgspec.structs.replace(good, **change))
            with pytest.raises(Refused, match="no ticket for this fold"):
                lifl.take_part(line)
        with lifl.Aggregator(node.state_dir) as others, others.open(MODEL, expected=2) as other:
            foreign = msgspec.structs.replace(good, job=read_ticket(other.ticket("site-1")).job)
            with pytest.raises(Refused, match="no ticket for this fold"):
                lifl.take_part(line_of(foreign))
        with pytest.raises(Refused, match="has no update"):
            fold.result()
        fold.cancel()
        with pytest.raises(FoldFailed, match="no such fold open"):
            lifl.take_part(line_of(good))


def test_a_part_is_refused_by_field_and_tells_when_its_fold_is_over(node: Node) -> None:
    with (
        lifl.Aggregator(node.state_dir) as aggregator,
        aggregator.open(MODEL, expected=2) as fold,
        lifl.take_part(fold.ticket("site-1", model=False)) as part,
    ):
        with pytest.raises(UpdateRefused) as refused:
            part.submit(one_hot(1) | {"body": np.zeros((1, 2), np.float32)}, 1.0)
        assert (refused.value.field, refused.value.client) == ("tensors.body", "site-1")
        with pytest.raises(FoldFailed):
            _ = part.model
        fold.add(one_hot(2), 1.0)
        fold.result()
        with pytest.raises(FoldFailed):
            part.submit(one_hot(1), 1.0)


# ---- what dies -------------------------------------------------------------------------------------------------------


HOST = """
import lifl, numpy, os, sys
aggregator = lifl.Aggregator(":local:")
fold = aggregator.open({"w": numpy.zeros(9, numpy.float32)}, expected=2)
fold.add({"w": numpy.ones(9, numpy.float32)}, 1.0)
print(aggregator._local.folder, aggregator._local.pid, aggregator._local.number, flush=True)
sys.stdin.read()
"""


def test_with_a_host_that_is_killed_its_own_node_goes_and_leaves_nothing() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOST], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as host:
        assert host.stdout is not None
        folder, pid, number = host.stdout.readline().split()
        lifld = psutil.Process(int(pid))
        children = lifld.children(recursive=True)
        assert Path(folder).is_dir()
        assert Path(f"/dev/shm/lifl-{number}").exists()
        host.kill()
    _gone, alive = psutil.wait_procs([lifld, *children], timeout=60)
    assert not alive
    assert not Path(folder).exists()
    assert not Path(f"/dev/shm/lifl-{number}").exists()


def kill(pid: int) -> None:
    """Kills a process of the node's and waits for its end."""
    process = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(process, signal.SIGKILL)
        ended, _, _ = select.select([process], [], [], 60)
        assert ended
    finally:
        os.close(process)


def process_of(node: Node, name: str) -> int:
    """The pid of a child of `lifld`."""
    return next(
        child.pid for child in psutil.Process(node.pid).children(recursive=True) if name in str(child.cmdline())
    )


@pytest.mark.parametrize(
    ("victim", "way"), [("worker", "unix"), ("gateway", "tcp"), ("lifld", "tcp"), ("lifld", "unix")]
)
def test_a_fold_goes_on_behind_a_death(node: Node, victim: str, way: str) -> None:
    door = str(node.state_dir) if way == "unix" else node.address
    rule, options = ("fedavgm", {"server_momentum": 0.5})
    with lifl.Aggregator(door, rule, options) as aggregator:
        base = {name: array for name, array in MODEL.items() if name != "steps"}
        clients = [{name: one_hot(client)[name] for name in base} for client in range(CLIENTS)]
        with aggregator.open(base, expected=CLIENTS) as fold:
            for client in range(CLIENTS):
                fold.add(clients[client], 1.0, client=f"site-{client}")
            first = fold.result()
        with aggregator.open(first, expected=CLIENTS) as fold:
            for client in range(CLIENTS):
                if client == 5:
                    end(node, victim)
                fold.add(clients[client], 1.0, client=f"site-{client}")
            end(node, victim)
            second = fold.result()
    assert sorted(second.clients) == sorted(f"site-{client}" for client in range(CLIENTS))
    # The mean is the model by now, so that the momentum of the first step is all that moves it.
    np.testing.assert_allclose(first["head"], np.ones(CLIENTS))
    np.testing.assert_allclose(second["head"], np.full(CLIENTS, 1.5), rtol=1e-6)


def end(node: Node, victim: str) -> None:
    """Kills a process of the node; a dead lifld is started again by its user."""
    if victim == "lifld":
        node.kill()
        node.up("--listen", node.address)
    elif victim == "gateway":
        kill(process_of(node, "gateway"))
    else:
        for worker in node.snapshot()["workers"]:
            if worker["pid"]:  # else it is being forked
                kill(worker["pid"])


def test_a_node_of_its_own_that_is_killed_is_started_again() -> None:
    with lifl.Aggregator() as aggregator, aggregator.open(MODEL, expected=CLIENTS) as fold:
        for client in range(CLIENTS):
            if client == 5:
                assert aggregator._local is not None
                kill(aggregator._local.pid)
            fold.add(one_hot(client), 1.0, client=f"site-{client}")
        check_whole(fold.result())


def test_a_node_of_its_own_that_was_killed_leaves_nothing() -> None:
    with lifl.Aggregator() as aggregator:
        with aggregator.open(MODEL, expected=1) as fold:
            fold.add(one_hot(0), 1.0)
        assert aggregator._local is not None
        folder, number = Path(aggregator._local.folder), aggregator._local.number
        told = json.loads(run_lifl("top", "--json", "--state", str(folder)).stdout)
        assert told["node"]["capacity_given"], "to measure it takes 400 MB, and nothing is placed by it"
        kill(aggregator._local.pid)
    assert not folder.exists()
    assert not list(Path("/dev/shm").glob(f"lifl-{number}*"))


def test_a_node_that_does_not_come_back_is_waited_for_as_long_as_was_said(node: Node) -> None:
    with (
        lifl.Aggregator(node.state_dir, return_within_s=0.5) as aggregator,
        aggregator.open(MODEL, expected=2) as fold,
    ):
        fold.add(one_hot(1), 1.0)
        node.kill()
        with pytest.raises(NodeUnreachable, match="return_within_s"):
            fold.add(one_hot(2), 1.0)
    node.up()
