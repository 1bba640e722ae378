"""Clients that take part by HTTP, on loopback."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
from collections.abc import Callable

import numpy as np
import psutil
import pytest
from fleet import WAIT_S, Fleet, OneHot, arena_use, submit, until
from http_clients import HttpClient, Tensors, authorization, committed
from nodes import Node
from safetensors.numpy import load_file, save
from test_rest import at_rest

from lifl.core import limits
from lifl.core.fields import NAME_RULE

HTTP = ("--http", "127.0.0.1:0", "--redirector", "unix")


@pytest.fixture
def node(start_node: Callable[..., Node]) -> Node:
    return start_node(*HTTP)


def door(node: Node) -> int:
    """The process that serves."""
    return int(node.snapshot()["node"]["http_door"]["pid"])


def model(count: int = 6, fill: float = 0.0) -> Tensors:
    return {"w": np.full(count, fill, np.float32), "steps": np.array(int(fill), np.int64)}


def test_clients_by_http_and_by_the_native_protocol_are_in_one_round(node: Node) -> None:
    """Each update is counted exactly once, whatever the door; what was lent is given back."""
    oracle, rounds = OneHot(3), 2
    submit(node, "j", oracle.model(), job__rounds=rounds, selection__clients_per_round=3)
    native = Fleet(node.address, "j", 1, oracle.update).start()
    failed: list[BaseException] = []

    def train(index: int) -> None:
        try:
            client = HttpClient(node, f"http-{index}")
            for number in range(1, rounds + 1):
                assert client.selected() == number
                assert client.model(number).keys() == oracle.model().keys()
                tensors, weight, _metrics = oracle.update(index, number)
                said = client.put(number, tensors, weight, LIFL_Metrics='{"loss": 0.5}')
                assert (said.status, said.json["state"]) == (200, "accepted")
                told = client.update(number, 60)
                assert (told["state"], told["counted"]) == ("committed", True)
            over = client.selection()
            assert (over.status, over.code) == (410, "job-over")
        except BaseException as error:  # noqa: BLE001 - the test asks for it
            failed.append(error)

    threads = [threading.Thread(target=train, args=(index,)) for index in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert not failed
    native.join()
    for number in range(1, rounds + 1):
        assert oracle.counts(committed(node, number), number, 3) == [1, 1, 1]
    until("an empty arena", lambda: arena_use(node)[0] == 0)


def test_an_update_is_answered_once_and_a_wrong_one_harms_nobody(node: Node) -> None:
    submit(node, "j", model(), selection__clients_per_round=2)
    client, other = HttpClient(node), HttpClient(node, "other")
    assert client.ask("GET", "rounds/1/model").status in (200, 410)  # before anybody is selected
    waiting = threading.Thread(target=other.selection)
    waiting.start()
    number = client.selected()
    waiting.join()
    spoilt = model() | {"w": np.float32([0, 1, 2, np.nan, 4, 5])}
    for update, weight, code, field in (
        (spoilt, 1.0, "not-finite", "tensors.w"),
        ({"w": model()["w"]}, 1.0, "missing-tensor", "tensors.steps"),
        (model(7), 1.0, "wrong-shape", "tensors.w"),
        (model() | {"more": np.zeros(1)}, 1.0, "unknown-tensor", "tensors.more"),
        (model() | {"w": np.zeros(6, np.float64)}, 1.0, "wrong-dtype", "tensors.w"),
        (model(), 0.0, "bad-weight", "weight"),
        (model(), float("nan"), "bad-weight", "weight"),
        (b"", 1.0, "bad-model-file", "update"),
        (b"no file", 1.0, "bad-model-file", "update"),
        (b"\xff" * 100, 1.0, "bad-model-file", "update"),
        (save(model())[:-1], 1.0, "bad-model-file", "update"),
        (save(model()) + b"1", 1.0, "bad-model-file", "update"),
    ):
        said = client.put(number, update, weight)
        assert (said.status, said.code, said.json["field"]) == (422, code, field)
    metrics = client.put(number, model(), LIFL_Metrics='{"loss": "low"}')
    assert (metrics.status, metrics.code) == (422, "bad-metric")
    long = client.put(number, bytes(200_000))
    assert (long.status, long.code) == (413, "too-large")
    early = client.put(number + 1, model())
    assert (early.status, early.code) == (409, "wrong-round")
    stranger = HttpClient(node, "stranger").put(number, model())
    assert (stranger.status, stranger.code) == (409, "not-selected")
    assert client.put(number, model(fill=1.0)).json["state"] == "accepted"
    again = client.put(number, model(fill=5.0))
    assert (again.status, again.json["state"]) == (200, "accepted"), "the first answer"
    assert other.put(number, model(fill=3.0), 3.0).status == 200
    assert client.update(number, 60)["counted"]
    assert np.array_equal(load_file(committed(node, 1))["w"], np.full(6, 2.5)), "1 and, by a weight of 3, 3"
    late = other.put(number, model())
    assert (late.status, late.code) == (410, "job-over")


def test_an_update_that_was_cut_goes_on_where_it_was(node: Node) -> None:
    """Within the length, within the header, and within tensors."""
    for cut_at in (3, 40, 100, 150_000):
        _cut(node, f"j{cut_at}", cut_at)
    _ahead(node, "ahead")


def _cut(node: Node, job: str, cut_at: int) -> None:
    submit(node, job, model(50_000), selection__clients_per_round=1)
    client = HttpClient(node, job=job)
    number, data = client.selected(), save(model(50_000, 7.0))
    client.begin_put(number, data, cut_at).close()
    here = until("what is here", lambda: (said := client.update(number))["received_bytes"] == cut_at and said)
    assert (here["state"], here["total_bytes"]) == ("receiving", len(data))
    wrong = client.put(number, data[cut_at + 1 :], Content_Range=f"bytes {cut_at + 1}-{len(data) - 1}/{len(data)}")
    assert (wrong.status, wrong.code, wrong.json["received_bytes"]) == (416, "wrong-range", cut_at)
    middle = data[cut_at : cut_at + 10]
    part = client.put(number, middle, Content_Range=f"bytes {cut_at}-{cut_at + 9}/{len(data)}")
    assert (part.status, part.json["received_bytes"]) == (202, cut_at + 10)
    rest = client.put(number, data[cut_at + 10 :], Content_Range=f"bytes {cut_at + 10}-{len(data) - 1}/{len(data)}")
    assert (rest.status, rest.json["state"]) == (200, "accepted")
    assert client.update(number, 60)["counted"]
    assert np.array_equal(load_file(committed(node, 1, job))["w"], np.full(50_000, 7.0))


def _ahead(node: Node, job: str) -> None:
    """A range that is sent beside its update's beginning, which still comes, is refused, and that goes on."""
    submit(node, job, model(50_000), selection__clients_per_round=1)
    client = HttpClient(node, job=job)
    number, data = client.selected(), save(model(50_000, 7.0))
    first = client.begin_put(number, data, 1000)
    until("some of it", lambda: client.update(number)["received_bytes"] == 1000)
    ahead = client.put(number, data[2000:], Content_Range=f"bytes 2000-{len(data) - 1}/{len(data)}")
    assert (ahead.status, ahead.code, ahead.json["received_bytes"]) == (416, "wrong-range", 1000)
    first.settimeout(WAIT_S)
    first.sendall(data[1000:])
    assert first.recv(12) == b"HTTP/1.1 200"
    first.close()
    assert client.update(number, 60)["counted"]


def test_a_client_that_comes_again_takes_the_place_of_its_own_request(node: Node) -> None:
    """Also when its first one was not cut, but stands still; from the beginning, too."""
    submit(node, "j", model(50_000), selection__clients_per_round=1)
    client = HttpClient(node)
    number, data = client.selected(), save(model(50_000, 7.0))
    first = client.begin_put(number, data, 1000)
    until("some of it", lambda: client.update(number)["received_bytes"] == 1000)
    assert client.put(number, data).json["state"] == "accepted"
    first.settimeout(WAIT_S)
    assert first.recv(1) == b""
    first.close()
    assert client.update(number, 60)["counted"]


def test_parts_of_a_model_and_one_that_is_here_already(node: Node) -> None:
    submit(node, "j", model(5000, 3.0), selection__clients_per_round=1)
    client = HttpClient(node)
    path = f"rounds/{client.selected()}/model"
    whole = client.ask("GET", path)
    tag, data = whole.headers["ETag"], whole.body
    head = client.ask("HEAD", path)
    assert (head.status, head.body, head.headers["Content-Length"]) == (200, b"", str(len(data)))
    for asked, begin, end in (("0-0", 0, 1), ("100-4999", 100, 5000), (f"{len(data) - 1}-", len(data) - 1, len(data))):
        part = client.ask("GET", path, Range=f"bytes={asked}")
        assert (part.status, part.body) == (206, data[begin:end])
        assert part.headers["Content-Range"] == f"bytes {begin}-{end - 1}/{len(data)}"
    assert client.ask("GET", path, Range="bytes=-7").body == data[-7:]
    assert client.ask("GET", path, Range="bytes=0-1,5-6").body == data, "of several none is taken"
    assert client.ask("GET", path, Range="bytes=1-2", If_Range='"other"').body == data
    beyond = client.ask("GET", path, Range=f"bytes={len(data)}-")
    assert (beyond.status, beyond.code) == (416, "no-range")
    for tags in (tag, f'"x", W/{tag}', "*"):
        same = client.ask("GET", path, If_None_Match=tags)
        assert (same.status, same.body, same.headers["ETag"]) == (304, b"", tag)


@pytest.mark.parametrize("process", ["http", "gateway"])
def test_a_process_that_is_killed_is_started_again_and_clients_go_on(node: Node, process: str) -> None:
    """What was accepted is counted; what had begun is sent again."""
    submit(node, "j", model(), selection__clients_per_round=2)
    clients = [HttpClient(node, name) for name in ("a", "b")]
    waiting = [threading.Thread(target=client.selection) for client in clients]
    for thread in waiting:
        thread.start()
    for thread in waiting:
        thread.join(WAIT_S)
    number = clients[0].selected()
    assert clients[0].put(number, model(fill=1.0)).json["state"] == "accepted"
    data = save(model(fill=3.0))
    half = clients[1].begin_put(number, data, len(data) - 4)
    until("half of it", lambda: clients[1].update(number)["received_bytes"] == len(data) - 4)
    before = node.snapshot()["node"]
    pid = before["http_door"]["pid"] if process == "http" else before["gateway"]["pid"]
    os.kill(pid, signal.SIGKILL)
    half.close()

    def accepted() -> bool:
        try:
            return clients[1].put(number, data).status == 200
        except OSError:  # the process is on its way
            return False

    until("the update", accepted)
    for client in clients:
        assert client.update(number, 60) | {"received_bytes": 0} == {
            "round": number,
            "state": "committed",
            "received_bytes": 0,
            "counted": True,
        }
    assert np.array_equal(load_file(committed(node, 1))["w"], np.full(6, 2.0))


def test_who_has_not_read_the_header_gets_nothing(node: Node, start_node: Callable[..., Node]) -> None:
    submit(node, "j", model(), selection__clients_per_round=1)
    assert (node.state_dir / "http.header").stat().st_mode & 0o777 == 0o600
    for headers, code in (({}, "no-cookie"), ({"Authorization": "Bearer " + "0" * 64}, "wrong-cookie")):
        stranger = HttpClient(node, headers=headers)
        for method, path in (
            ("GET", "selection"),
            ("GET", "/v1/status"),
            ("GET", "/metrics"),
            ("DELETE", stranger.base),
        ):
            said = stranger.ask(method, path)
            assert (said.status, said.code) == (401, code)
            assert said.headers["Connection"] == "close"
        assert stranger.put(1, model()).code == code
        assert stranger.ask("GET", "/openapi.json").status == 200
    old = authorization(node)
    node.down()
    assert not (node.state_dir / "http.header").exists()
    node.up()
    assert HttpClient(node, headers=old).selection().code == "wrong-cookie", "another one in each life"


def test_what_is_no_request_is_answered_and_ends(node: Node) -> None:
    client = HttpClient(node, job="none")
    header = "".join(f"{name}: {value}\r\n" for name, value in client.headers.items())

    def said(text: str) -> bytes:
        with socket.create_connection((client.host, client.port), timeout=WAIT_S) as sock:
            sock.sendall(text.encode("latin-1"))
            found = b""
            while piece := sock.recv(65536):
                found += piece
            return found

    room = limits.HTTP_HEAD_BYTES_MAX - 200
    for text, status in (
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("\x16\x03\x01 nothing\r\n\r\n", 400),
        (f"GET /v1/{'x' * limits.HTTP_HEAD_BYTES_MAX}", 431),
        ("PUT / HTTP/1.1\r\nHost: n\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 411),
        ("PUT / HTTP/1.1\r\nHost: n\r\nContent-Length: -1\r\n\r\n", 400),
        ("PUT / HTTP/1.1\r\nHost: n\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (f"GET /{'x' * room} HTTP/1.1\r\nHost: n\r\nConnection: close\r\n\r\n", 404),
        (f"BREW /metrics HTTP/1.1\r\nHost: n\r\n{header}Connection: close\r\n\r\n", 405),
        ("GET /openapi.json HTTP/1.0\r\n\r\n", 200),
    ):
        assert said(text).startswith(b"HTTP/1.1 %d " % status), text[:60]
    assert said("") == b""
    for path, status, code in (
        ("selection?wait_s=60.1", 400, "protocol"),
        ("selection?wait_s=nan", 400, "protocol"),
        ("selection?wait_s=1&wait_s=2", 400, "protocol"),
        ("selection?wait_s", 400, "protocol"),
        ("selection?wait_s=60", 404, "unknown-job"),
        ("rounds/-1/model", 400, "protocol"),
        (f"rounds/{1 << 64}/model", 400, "protocol"),
        ("rounds/%D9%A1/model", 400, "protocol"),
        ("rounds/1/model", 404, "unknown-job"),
        ("/v1/jobs/j/clients/%0A/selection", 400, "protocol"),
        ("/v1/jobs/j/clients/" + "a" * 1000 + "/selection", 400, "protocol"),
    ):
        answer = client.ask("GET", path)
        assert (answer.status, answer.code) == (status, code), path
    assert NAME_RULE in client.ask("GET", "/v1/jobs/j/clients/%D0%B6/selection").json["text"]
    assert client.ask("PUT", "rounds/1/update", b"x").code == "bad-weight"
    for asked in ("bytes 0-1/2", "bytes 5-5/5", "bytes 1-0/5", "1-2/3", "bytes */5", "bytes 0-0/9" + "9" * 30, ""):
        assert client.put(1, b"x", Content_Range=asked).code == "wrong-range", asked


def test_its_process_is_shown_and_rests_and_ends_with_the_node(node: Node) -> None:
    submit(node, "j", model(), selection__clients_per_round=2)
    client, pid = HttpClient(node), door(node)
    status = client.ask("GET", "/v1/status").json
    assert status["arena"]["bytes"] == 64 << 20 and status["clients"] == 0
    assert [job["name"] for job in status["jobs"]] == ["j"]
    metrics = client.ask("GET", "/metrics").body.decode()
    assert f"lifl_arena_bytes {64 << 20}\n" in metrics and 'lifl_cpu_seconds_total{process="http"}' in metrics
    assert re.search(rf"pid {pid}: .*seccomp", node.lifl("doctor"))
    waiting = threading.Thread(target=client.selection)
    waiting.start()
    until("its client", lambda: client.ask("GET", "/v1/status").json["clients"] == 1)
    until("rest", lambda: at_rest([pid, node.pid]))
    node.lifl("cancel", "j")  # who waits is told
    waiting.join(WAIT_S)
    node.down()
    assert not psutil.pid_exists(pid)
