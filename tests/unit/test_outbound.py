"""What waits to be stored elsewhere: in order, tried again, bounded; and what an address may be."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lifl.core import effects as fx
from lifl.core.config.job import parse_job
from lifl.core.errors import ConfigError, Refused, ResourceFault
from lifl.core.fields import Message
from lifl.core.limits import UPLOAD_RETRY_S, UPLOAD_RETRY_S_MAX, UPLOAD_URL_CHARS_MAX, UPLOADS_WAITING_MAX
from lifl.core.planning.keeping import Kept
from lifl.core.protocol.outbound import ModelSent, ModelUnsent
from lifl.node.outbound import main, outbound
from lifl.node.outbound.outbound import Outbound

URL = "s3://bucket/prefix"


class FakeChild:
    """Stands for the process: keeps what it is told."""

    def __init__(self, *_given: Any) -> None:
        self.pid = 0
        self.told: list[Message] = []

    def start(self) -> None:
        self.pid = 1

    def send(self, *messages: Message) -> None:
        self.told += messages

    def last_words(self) -> str:
        return ""

    def stop(self, _timeout_s: float) -> None:
        self.pid = 0


class Loop:
    """Stands for the loop: time does not pass by itself."""

    def __init__(self) -> None:
        self.later: list[tuple[float, Callable[[], None]]] = []

    def time(self) -> float:
        return 0.0

    def call_soon(self, call: Callable[..., None], *given: Any) -> None:
        call(*given)

    def call_later(self, after_s: float, call: Callable[..., None], *given: Any) -> Any:
        self.later.append((after_s, lambda: call(*given)))
        return self

    def cancel(self) -> None:
        self.later.clear()


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Outbound, FakeChild, Loop]:
    loop = Loop()
    monkeypatch.setattr(outbound, "_Sender", FakeChild)
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: loop)
    found = Outbound(tmp_path, [])
    return found, found._child, loop  # type: ignore[return-value]


def commit(out: Outbound, number: int, job: int = 1, url: str = URL) -> None:
    files = (f"/f/round-{number:05d}.safetensors",)
    out.keep(fx.KeepModels(f"j{job}", job, f"j{job}", Kept(number, 1), number, files, url))


def rounds(child: FakeChild) -> list[int]:
    return [message.round for message in child.told]  # type: ignore[attr-defined]


def test_a_job_without_an_address_starts_nothing(made: tuple[Outbound, FakeChild, Loop]) -> None:
    out, child, _loop = made
    commit(out, 1, url="")
    assert (child.pid, child.told, out.shown(1), out.needed(1)) == (0, [], None, set())


def test_models_go_one_after_the_other_those_of_jobs_beside_each_other(made: tuple[Outbound, FakeChild, Loop]) -> None:
    out, child, _loop = made
    for number in (1, 2):
        commit(out, number)
    commit(out, 7, job=2)
    assert rounds(child) == [1, 7]
    assert (out.needed(1), out.needed(2)) == ({1, 2}, {7})
    out._heard(ModelSent(1, 1))
    assert rounds(child) == [1, 7, 2]
    out._heard(ModelSent(1, 1))  # said twice, or of an earlier life
    out._heard(ModelSent(1, 2))
    assert out.shown(1) == {"url": URL, "sent": 2, "waiting": [], "given_up": 0, "fault": ""}


def test_what_is_not_taken_is_tried_again_after_pauses_that_grow_and_end_growing(
    made: tuple[Outbound, FakeChild, Loop],
) -> None:
    out, _child, loop = made
    commit(out, 1)
    pauses = []
    for _ in range(12):
        out._heard(ModelUnsent(1, 1, "SlowDown"))
        ((after_s, go),) = loop.later
        pauses.append(after_s)
        loop.later.clear()
        commit(out, 1)  # whatever comes meanwhile waits, too
        go()
    assert pauses[:3] == [UPLOAD_RETRY_S, 2 * UPLOAD_RETRY_S, 4 * UPLOAD_RETRY_S]
    assert pauses[-1] == UPLOAD_RETRY_S_MAX == max(pauses)
    shown = out.shown(1)
    assert shown is not None and (shown["waiting"], shown["fault"]) == ([1], "SlowDown")
    out._heard(ModelSent(1, 1))
    commit(out, 2)
    out._heard(ModelUnsent(1, 2, "SlowDown"))
    assert loop.later[0][0] == UPLOAD_RETRY_S


def test_of_those_that_wait_the_oldest_is_given_up_but_for_the_one_on_its_way(
    made: tuple[Outbound, FakeChild, Loop],
) -> None:
    out, child, _loop = made
    for number in range(UPLOADS_WAITING_MAX + 3):
        commit(out, number)
    shown = out.shown(1)
    assert shown is not None
    assert shown["waiting"] == [0, *range(4, UPLOADS_WAITING_MAX + 3)]
    assert shown["given_up"] == 3
    out._heard(ModelUnsent(1, 0, "gone", gone=True))  # its file is not here any more
    assert rounds(child) == [0, 4]


def test_a_process_that_dies_is_told_again_and_one_that_dies_again_and_again_does_not_end_the_node(
    made: tuple[Outbound, FakeChild, Loop],
) -> None:
    out, child, loop = made
    commit(out, 1)
    out._ended()
    assert rounds(child) == [1, 1]
    out._broken(ResourceFault("it ended 8 times"))
    assert loop.later[0][0] == UPLOAD_RETRY_S_MAX
    out.stop(1.0)
    assert loop.later == []
    commit(out, 2)
    assert rounds(child) == [1, 1]


def test_a_job_that_is_removed_is_forgotten(made: tuple[Outbound, FakeChild, Loop]) -> None:
    out, child, loop = made
    commit(out, 1)
    out._heard(ModelUnsent(1, 1, "SlowDown"))
    out.forget(1)
    out.forget(1)
    assert (loop.later, out.shown(1), out.needed(1)) == ([], None, set())
    out._heard(ModelSent(1, 1))
    assert rounds(child) == [1]


def test_the_next_life_sends_what_was_not_sent(made: tuple[Outbound, FakeChild, Loop], tmp_path: Path) -> None:
    out, child, _loop = made
    folder = tmp_path / "jobs" / "j1"
    folder.mkdir(parents=True)
    for number in (3, 5, 6, 7):
        (folder / f"round-{number:05d}.safetensors").write_bytes(b"m")
    (folder / "round-00006.state.safetensors").write_bytes(b"s")
    (folder / main.SENT).write_text("5")
    out.keep(fx.KeepModels("j1", 1, "j1", Kept(6, 1), -1, (), URL))
    assert rounds(child) == [6]
    (message,) = child.told
    assert [Path(path).name for path in message.files] == [  # type: ignore[attr-defined]
        "round-00006.safetensors",
        "round-00006.state.safetensors",
    ]


def test_no_secret_of_the_environment_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalr/K7MDENG")
    assert main.said(OSError("signature of wJalr/K7MDENG is wrong \udcff"), URL) == (
        f"{URL} takes nothing: OSError: signature of *** is wrong ?"
    )


def test_what_a_scheme_needs_is_looked_for_when_a_job_is_submitted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbound.importlib.util, "find_spec", lambda name: None if name == "s3fs" else name)
    outbound.check_library("file")
    with pytest.raises(Refused, match=r"needs the library s3fs.*pip install 'lifl\[s3\]'"):
        outbound.check_library("s3")


TABLE = {"job": {"name": "j", "rounds": 9}, "model": {"path": "/m"}, "selection": {"clients_per_round": 1}}


@pytest.mark.parametrize("url", ["s3://b", "s3://b/p/q", "gs://b/ü", "file:///var/models", "abfs://c/p", "memory://x"])
def test_an_address_is_one(url: str) -> None:
    assert parse_job(TABLE | {"checkpoint": {"upload": url}}).checkpoint.upload_url == url


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("", "1"),
        ("bucket/prefix", "no address"),
        ("s3://", "no address"),
        ("S3://b", "no address"),
        ("simplecache::s3://b", "no address"),
        ("s3://b\n", "no address"),
        ("file://models", "absolute path"),
        ("file:///a/../b", "leads out"),
        ("s3://KEY:SECRET@b/p", "AWS_PROFILE"),
        ("s3://b/p?key=1", "AWS_PROFILE"),
        ("s3://b/p#x", "AWS_PROFILE"),
        ("s3://" + "a" * UPLOAD_URL_CHARS_MAX, str(UPLOAD_URL_CHARS_MAX)),
        (3, "str"),
    ],
)
def test_what_is_none_is_refused_and_a_secret_is_not_repeated(url: Any, why: str) -> None:
    with pytest.raises(ConfigError, match=rf"^checkpoint\.upload: .*{why}") as refused:
        parse_job(TABLE | {"checkpoint": {"upload": url}})
    assert "SECRET" not in str(refused.value)
