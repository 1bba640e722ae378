"""A job whose folder another node that may coordinate does not see is refused, and says which node, and why."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from lifl.core.errors import Refused
from lifl.core.protocol import cluster as p
from lifl.node import folders
from lifl.node.cluster import folder_looks
from lifl.node.cluster.folder_looks import FolderLooks, look

OWNER, NUMBER = 0xC1, 7


class Nodes:
    """Others that answer; each has its own disk: where it finds what the coordinator calls `folder`."""

    def __init__(self, **disks: Path) -> None:
        self._disks = {int(name[1:]): path for name, path in disks.items()}
        self._tasks: list[asyncio.Task[None]] = []
        self.looks = FolderLooks(self._send)

    def _send(self, node: int, question: p.SeeFolder) -> None:
        if node in self._disks:
            self._tasks.append(asyncio.create_task(self._answer(node, question)))

    async def _answer(self, node: int, question: p.SeeFolder) -> None:
        answer = await look(msgspec.structs.replace(question, folder=str(self._disks[node])))
        self.looks.answered(node, answer)

    def ask(self, *nodes: int) -> None:
        async def asked() -> None:
            await self.looks.ask(nodes, Path("/models/j"), OWNER, NUMBER)

        asyncio.run(asked())


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    (tmp_path / "shared").mkdir()
    folders.claim(tmp_path / "shared", OWNER, NUMBER, "j")
    return tmp_path / "shared"


def test_one_that_all_see_is_taken(shared: Path) -> None:
    Nodes(n1=shared, n2=shared).ask(1, 2)
    Nodes().ask()


def test_one_that_a_node_does_not_see_is_refused(shared: Path, tmp_path: Path) -> None:
    with pytest.raises(
        Refused, match=r"node 0000000000000002 may come to coordinate.*cannot be seen.*one path"
    ) as refused:
        Nodes(n1=shared, n2=tmp_path).ask(1, 2)
    assert refused.value.field == "checkpoint.folder"


def test_one_of_the_same_path_that_is_another_jobs_is_refused(shared: Path, tmp_path: Path) -> None:
    folders.claim(tmp_path, OWNER, NUMBER + 1, "other")
    with pytest.raises(Refused, match="that of job 'other'"):
        Nodes(n1=tmp_path).ask(1)


def test_one_that_a_node_may_not_write_to_is_refused(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_looks.os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(Refused, match="not writable"):
        Nodes(n1=shared).ask(1)


def test_a_node_that_does_not_answer_keeps_no_job_out(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_looks, "LOOK_S", 0.05)
    nodes = Nodes(n1=shared)
    nodes.ask(1, 2)
    nodes.looks.answered(2, p.FolderSeen(NUMBER, "too late"))
