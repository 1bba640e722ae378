"""The page in a browser, on a real node, word by word: who gets in, what it may do, and what it costs nobody."""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fleet import Fleet, OneHot, fleet, name_of, submit, until
from nodes import Node
from page_clients import PageClient, heard
from safetensors import deserialize
from safetensors.numpy import save

from lifl.core import limits
from lifl.node.http.page import files


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    folder = Path(tempfile.mkdtemp(prefix="lifl-page-"))
    found = Node(folder / "state", ("--listen", "127.0.0.1:0", "--arena-bytes", "64MiB", "--web", "127.0.0.1:0"))
    try:
        found.up()
        yield found
        found.down()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def operator(node: Node) -> PageClient:
    found = PageClient(node, link=node.info["web"])
    assert found.open().status == 200
    return found


def test_a_link_is_good_once_and_gives_a_cookie_that_no_script_reads(node: Node) -> None:
    client = PageClient(node)
    assert client.link.startswith(f"http://{node.info['http']}/#link=")
    said = client.open()
    assert (said.status, said.json["role"], said.json["name"]) == (200, "operator", "owner")
    attributes = said.headers["Set-Cookie"].split("; ")
    assert attributes[0].startswith(f"lifl-{node.info['http'].rpartition(':')[2]}=")
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(attributes)
    again = PageClient(node, link=client.link).open()
    assert (again.status, again.code) == (403, "link-over")
    for wrong in ("", "x" * 43, "é", "a" * 100_000):
        assert PageClient(node, link=f"#link={wrong}").open().status in (403, 413)
    for body in (b"", b"{", b"[]", b'{"link": 1}', b'{"link": "a", "more": 1}', b"\xff" * 9):
        assert client.say("POST", "/page/v1/visit", body).code == "protocol"
    assert client.ask("ListJobs").status == 200


CHANGES = (
    *(("POST", f"/page/v1/{name}") for name in ("ask", "submit", "plan")),
    *(("PUT", "/page/v1/model"), ("DELETE", "/page/v1/visit"), ("POST", "/page/v1/visit")),
)
"""What changes something, or asks for it in a body; the last one needs no visit."""


def test_nothing_is_told_without_both_secrets(node: Node, operator: PageClient) -> None:
    other = PageClient(node)
    other.open()
    for cookie, key in (
        (None, None),
        (operator.cookie, None),
        (None, operator.key),
        (operator.cookie, other.key),
        (operator.cookie, operator.cookie),
        (f"{operator.cookie}; {operator.cookie}", operator.key),
    ):
        for method, path in (*CHANGES[:-1], ("GET", "/page/v1/stream"), ("GET", "/page/v1/trace?job=j&round=1")):
            said = operator.say(method, path, {"type": "ListJobs"}, Cookie=cookie, LIFL_Page=key)
            assert (said.status, said.code) == (401, "visit-over"), (cookie, key, path)
            assert "Access-Control-Allow-Origin" not in said.headers
    assert operator.ask("ListJobs").status == 200


def test_another_origin_and_another_host_get_nothing(node: Node, operator: PageClient) -> None:
    for origin in (None, "null", "http://127.0.0.1:1", "http://evil.example", operator.origin.replace("http", "https")):
        for method, path in CHANGES:
            said = operator.say(method, path, {"type": "ListJobs"}, Origin=origin)
            assert (said.status, said.code) == (403, "wrong-origin")
    for host in (
        "evil.example",
        f"evil.example:{operator.address.rpartition(':')[2]}",
        "10.0.0.1",
        "127.0.0.1.evil.example",
    ):
        for path in ("/", "/page/v1/stream", "/page/v1/trace?job=j&round=1"):
            said = operator.say("GET", path, Host=host)
            assert (said.status, said.code) == (403, "wrong-host")
    assert operator.say("OPTIONS", "/page/v1/ask").status != 204, "no other origin is let in"


def test_the_files_are_the_same_for_all_and_let_nothing_else_run(node: Node, operator: PageClient) -> None:
    front = operator.say("GET", "/", Cookie=None, LIFL_Page=None)
    policy = front.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    for path, file in files().items():
        said = operator.say("GET", path, Cookie=None)
        assert (said.status, said.body, said.headers["Content-Security-Policy"]) == (200, file.data, policy)
        assert said.headers["X-Content-Type-Options"] == "nosniff"
        assert operator.say("GET", path, If_None_Match=said.headers["ETag"]).status == 304
        assert b"//cdn" not in file.data and b"innerHTML" not in file.data
    for path in ("/page/", "/page/../main.py", "/page/%2e%2e/main.py", "/page/page.py", "/page/v1", "/page/v1/other"):
        assert operator.say("GET", path).status == 404
    assert operator.say("PUT", "/", b"x").status == 405


def test_the_page_does_what_its_visitor_may_and_the_audit_log_says_so(node: Node, operator: PageClient) -> None:
    reader = PageClient(node, "reader")
    assert reader.open().json["role"] == "reader"
    submit(node, "mine", {"w": np.ones(3, np.float32)}, selection__clients_per_round=2)
    assert [job["name"] for job in reader.ask("ListJobs").json["jobs"]] == ["mine"]
    for kind, fields in (
        ("CancelJob", {"job": "mine"}),
        ("PauseJob", {"job": "mine"}),
        ("DrainNode", {"node": "0"}),
        ("ReadLog", {}),
        ("ListTokens", {}),
        ("CreateToken", {"role": "operator"}),
        ("CreateBearer", {"role": "client", "name": "a", "job": "mine"}),
        ("RevokeToken", {"number": "0"}),
        ("ListCertificates", {}),
        ("RevokeCertificate", {"which": "0"}),
        ("RenewCertificate", {}),
        ("RotateAuthority", {}),
    ):
        said = reader.ask(kind, **fields)
        assert (said.status, said.code) == (403, "not-allowed"), kind
    for kind in ("Shutdown", "DebugRecord", "OpenPage", "SubmitJob", "ReadModel", "Nothing"):
        assert operator.ask(kind).code == "protocol", "that is not asked by a page"
    for body in (b"", b"[" * 50_000, b'{"type": "CancelJob"}', b'{"type": "CancelJob", "job": 1}', b"\xff"):
        assert operator.say("POST", "/page/v1/ask", body).code == "protocol"
    assert operator.say("POST", "/page/v1/ask", b" " * (limits.WEB_ASK_BYTES_MAX + 1)).status == 413
    assert operator.ask("JobStatus", job="none").code == "unknown-job"
    assert operator.say("GET", f"/page/v1/stream?job={'j' * 10_000}").code == "protocol"
    assert operator.ask("DrainNode", node="0").code == "unknown-node"
    for kind in ("ListTokens", "RenewCertificate", "RotateAuthority"):
        assert operator.ask(kind).code == "not-secured", "who is let in by nothing has no tokens, nor certificates"
    for field, wrong in (
        ("pattern", "<b>"),
        ("pattern", "a" * 65),
        ("pattern", "é"),
        ("jobs[0]", ["a b"]),
        ("role", "king"),
    ):
        said = operator.ask("CreateToken", **{"role": "client", field.partition("[")[0]: wrong})
        assert (said.status, said.json["field"]) == (400, field)
    assert any("daemon.ready" in line for line in operator.ask("ReadLog").json["lines"])
    assert operator.ask("PauseJob", job="mine").json["job"] == "mine"
    assert operator.ask("ResumeJob", job="mine").json["rounds"] == 1
    assert operator.ask("CancelJob", job="mine").json == {"job": "mine", "status": "cancelled"}
    assert operator.ask("CancelJob", job="mine").status == 410
    assert operator.ask("RemoveJob", job="mine").json["job"] == "mine"
    assert operator.ask("ListJobs").json["jobs"] == []
    wanted = {
        ("job.cancelled", "page operator owner"),
        ("cli.refused", "page reader owner"),
        ("page.linked", "operator owner"),
        ("page.opened", "operator owner"),
    }
    until("the notes", lambda: wanted <= {(note["event"], note["who"]) for note in node.json("audit")})


JOB = """[job]
name = "brought"
rounds = 1
[model]
path = "model.safetensors"
[selection]
clients_per_round = 2
"""


def test_a_job_is_submitted_by_its_file_changed_and_its_model_fetched(node: Node, operator: PageClient) -> None:
    oracle = OneHot(2, ballast_bytes=2_500_000)
    brought = save(oracle.model())
    assert operator.submit(JOB, check=True).json == {"job": "brought", "wants_model": True}
    refused = operator.submit(JOB)
    assert (refused.status, refused.code, refused.json["field"]) == (422, "bad-config", "model.path")
    path = operator.bring(brought)
    assert operator.bring(brought) == path, "the same model comes once"
    assert operator.plan(JOB).json["field"] == "model.path"
    planned = operator.plan(JOB, model=path, overrides=["client.options.lr={cosine=[0.1, 0.0]}"]).json
    assert (planned["job"], planned["plan"]["updates"], planned["drawn"].keys()) == ("brought", 2, {"why"})
    assert planned["used"] == [planned["plan"]["top"]] and planned["explain"] and planned["options"] == []
    assert operator.ask("ListJobs").json["jobs"] == [], "nothing is submitted by a plan"
    said = operator.submit(JOB, model=path, overrides=["selection.quorum=2"]).json
    assert (said["job"], said["model_bytes"]) == ("brought", oracle.data_bytes)
    again = operator.submit(JOB, model=path)
    assert (again.code, again.json["field"]) == ("job-exists", "job.name")
    assert operator.submit(JOB, model=path, replace=True).json["job"] == "brought"
    changed = operator.ask(
        "EditJob", job="brought", overrides=["client.options.lr=0.5", "selection.deadline_s=900"]
    ).json
    assert changed["changes"] == {"client.options.lr": 0.5, "selection.deadline_s": 900.0}
    refused = operator.ask("EditJob", job="brought", overrides=["aggregation.rule=fedadam"])
    assert (refused.code, refused.json["field"]) == ("bad-config", "aggregation.rule")
    with fleet(node.address, "brought", 2, oracle.update) as team:
        team.join()
    row = until("round 1", lambda: operator.ask("JobStatus", job="brought").json["rounds"])[-1]
    for number, wanted in ((0, brought), (1, Path(row["path"]).read_bytes())):
        got = operator.say("GET", f"/page/v1/model?job=brought&round={number}")
        assert (got.status, dict(deserialize(got.body)).keys()) == (200, oracle.model().keys())
        assert number == 0 or got.body == wanted
    for query, code in (
        ("job=brought&round=9", "unknown-round"),
        ("job=none&round=1", "unknown-job"),
        ("job=brought&round=x", "protocol"),
        ("job=../../etc&round=0", "unknown-job"),
        ("", "protocol"),
    ):
        assert operator.say("GET", f"/page/v1/model?{query}").code == code
    damaged = bytearray(Path(row["path"]).read_bytes())
    damaged[-1] ^= 1
    Path(row["path"]).write_bytes(damaged)
    with pytest.raises(http.client.IncompleteRead):
        operator.say("GET", "/page/v1/model?job=brought&round=1")


def test_what_a_page_brings_is_bounded_and_refused_to_a_reader(node: Node, operator: PageClient) -> None:
    reader = PageClient(node, "reader")
    reader.open()
    example = JOB.replace('path = "model.safetensors"', 'example = "digits-mlp"').replace("brought", "example")
    piece = f"/page/v1/model?digest={'0' * 64}&offset=0&total_bytes=9"
    for said in (
        reader.submit(example),
        reader.plan(example),
        reader.say("PUT", piece, b"x"),
        reader.say("GET", "/page/v1/model?job=example&round=0"),
        reader.ask("EditJob", job="example", overrides=["client.options.lr=0.5"]),
        reader.ask("ReadAudit"),
    ):
        assert (said.status, said.code) == (403, "not-allowed")
    for method, path, most in (
        ("POST", "/page/v1/submit", limits.WEB_SUBMIT_BYTES_MAX),
        ("POST", "/page/v1/plan", limits.WEB_SUBMIT_BYTES_MAX),
        ("PUT", piece, limits.MODEL_PIECE_BYTES),
    ):
        assert operator.say(method, path, b" " * most).code in ("protocol", "upload-lost")
        assert operator.say(method, path, b" " * (most + 1)).status == 413
        connection = operator.connection()  # of 100 MB nothing is waited for
        connection.request(method, path, b"", operator.headers() | {"Content-Length": str(100 << 20)})
        assert connection.getresponse().status == 413
        connection.close()
    for query in ("", "digest=x&offset=0&total_bytes=1", f"digest={'0' * 64}&offset=-1&total_bytes=1", "a=1&a=2"):
        assert operator.say("PUT", f"/page/v1/model?{query}", b"x").code == "protocol"
    held = [operator.connection() for _ in range(limits.WEB_MOVES_MAX)]
    for connection in held:  # each with a body that does not come
        connection.request("PUT", piece, b"", operator.headers() | {"Content-Length": "9"})
    until("no place", lambda: operator.say("PUT", piece, b"x").json.get("code") == "quota")
    for connection in held:
        connection.close()
    until("a place", lambda: operator.say("PUT", piece, b"x").json.get("code") != "quota")
    whole = f"/page/v1/model?digest={'0' * 64}&offset=0&total_bytes=1"
    assert operator.say("PUT", whole, b"x").code == "damaged", "it is not what was announced"
    assert operator.plan(example).json["plan"]["updates"] == 2, "an example's model is made by the door"
    assert operator.submit(example).json["rounds"] == 1
    assert operator.ask("CancelJob", job="example").status == 200


def test_the_audit_log_is_read_in_pages_and_says_whether_it_is_whole(node: Node, operator: PageClient) -> None:
    def seen() -> dict[str, Any] | None:
        found: dict[str, Any] = operator.ask("ReadAudit", verify=True).json
        return found if any(line["event"] == "page.opened" for line in found["lines"]) else None

    found = until("what was noted", seen)
    assert (found["chain"]["broken"], found["chain"]["first"]) == ("", 1)
    assert [line["seq"] for line in found["lines"]][-1] <= found["chain"]["last"]
    assert not any("prev" in line for line in found["lines"])
    before = operator.ask("ReadAudit", before=3).json
    assert ([line["seq"] for line in before["lines"]], before["more"], before["chain"]) == ([1, 2], None, None)
    assert operator.ask("ReadAudit", before=1).json["lines"] == []
    for wrong in (0, -1, 1 << 63, "1", None):
        assert operator.ask("ReadAudit", before=wrong).code == "protocol"


def test_what_happens_is_told_to_who_watches_and_nothing_is_asked_for_nobody(node: Node, operator: PageClient) -> None:
    oracle = OneHot(3)
    submit(node, "live", oracle.model(), job__rounds=2, selection__clients_per_round=3)
    fleet = Fleet(node.address, "live", 3, oracle.update)
    fleet.hold(2)
    fleet.start()
    stream = operator.stream("live")
    found = heard(stream, "node", "nodes", "workers", "jobs")
    assert found["node"]["arena"]["bytes"] == 64 << 20
    while not (now := heard(stream, "round")["round"]) or now["accepted"] < 2:
        pass
    assert now["goal"] == 3 and sum(task["updates"] for task in now["tree"]) == 2
    names = {name_of(index) for index in range(2)}
    assert {name for task in now["tree"] for name in task["clients"]} == names
    fleet.release()
    while {job["name"]: job for job in heard(stream, "jobs")["jobs"]}["live"]["committed"] < 2:
        pass
    stream.close()
    fleet.join()
    rows = operator.ask("JobStatus", job="live", trees=False).json["rounds"]
    assert [row["round"] for row in rows] == [1, 2]
    assert all("tree" not in row["receipt"] and row["receipt"]["tasks"]["top"] == 1 for row in rows)
    reader = PageClient(node, "reader")
    reader.open()
    trace = reader.say("GET", "/page/v1/trace?job=live&round=2").json
    assert trace["otherData"] == {"job": "live", "round": 2, "attempt": 1}
    assert {name_of(index) for index in range(3)} <= {event["name"] for event in trace["traceEvents"]}
    assert reader.ask("PlansOfRound", job="live", round=2).json["decisions"][0]["plan"]["updates"] == 3
    for query, code in (
        ("job=live&round=3", "unknown-round"),
        ("job=live&round=2&attempt=2", "unknown-round"),
        ("job=none&round=1", "unknown-job"),
        ("job=live&round=0", "protocol"),
        (f"job=live&round={10**30}", "protocol"),
        ("job=live&round=2&attempt=x", "protocol"),
        ("job=live&round=2&more=1", "protocol"),
        ("job=live", "protocol"),
    ):
        assert reader.say("GET", f"/page/v1/trace?{query}").code == code


def test_only_so_many_pages_are_told_and_a_visit_that_ends_is_told_nothing_more(node: Node) -> None:
    client = PageClient(node)
    client.open()

    def opened() -> http.client.HTTPResponse | None:
        stream = client.stream()
        if stream.status == 200:
            return stream
        stream.close()
        return None

    streams = [until("a place", opened) for _ in range(limits.WEB_WATCHERS_MAX)]
    for stream in streams:
        heard(stream, "node")
    more = client.say("GET", "/page/v1/stream")
    assert (more.status, more.code) == (429, "too-many-connections")
    streams.pop().close()
    streams.append(until("a place", opened))
    assert client.say("DELETE", "/page/v1/visit").status == 204
    for stream in streams:
        heard(stream, "over")
        assert stream.read() == b"\n", "the event's end, and the stream's"
        stream.close()
    assert client.ask("ListJobs").code == "visit-over"


def test_a_door_that_is_killed_knows_the_visits_again(node: Node, operator: PageClient) -> None:
    os.kill(int(node.snapshot()["node"]["http_door"]["pid"]), signal.SIGKILL)

    def answers() -> bool:
        try:
            return operator.ask("ListJobs").status == 200
        except OSError:
            return False

    until("the door", answers)
