"""Pages that are told what happens: who has many open makes place for who has none; what they cost."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from lifl.core.limits import WEB_VISITS_MAX, WEB_WATCHERS_MAX
from lifl.core.protocol import cli as om
from lifl.node.http import watchers as module
from lifl.node.http.visits import Secrets
from lifl.node.http.watchers import PARTS, Watcher, Watchers


class Node:
    """Stands for the visits, by which `lifld` is asked."""

    def __init__(self) -> None:
        self.says: dict[str, Any] = dict.fromkeys(PARTS, 0)
        self.asked: list[type] = []

    def is_valid(self, _secrets: Secrets) -> bool:
        return True

    async def ask(self, _secrets: Secrets, question: object) -> dict[str, Any]:
        self.asked.append(type(question))
        return dict(self.says) if isinstance(question, om.Snapshot) else {"now": {"round": self.says["node"]}}


class Page:
    """Stands for the exchange of a page that looks until it `leaves`; `told` are the events, by their names."""

    def __init__(self) -> None:
        self.leaves = asyncio.Event()
        self.told: list[str] = []

    async def begin_stream(self, _kind: str) -> None:
        """It is there."""

    async def push(self, data: bytes) -> None:
        self.told += [line[7:].decode() for line in data.split(b"\n") if line.startswith(b"event: ")]

    async def end_stream(self) -> None:
        """It is told nothing more."""

    async def gone(self) -> None:
        await self.leaves.wait()


def test_each_visit_gets_a_place_and_none_gets_all_of_them() -> None:
    """So a reader who opens pages without end keeps no operator from looking."""
    assert WEB_WATCHERS_MAX >= WEB_VISITS_MAX
    watchers = Watchers(None)  # type: ignore[arg-type]
    reader, operator = Secrets("c1", "k1"), Secrets("c2", "k2")
    pages = [Watcher(reader, "") for _ in range(WEB_WATCHERS_MAX)]
    watchers._all = list(pages)
    assert not watchers._makes_place(reader) and not any(page.ended for page in pages)
    assert watchers._makes_place(operator)
    assert [page.ended for page in pages] == [True] + [False] * (WEB_WATCHERS_MAX - 1), "the oldest of who has most"
    watchers._all = [Watcher(Secrets("c", str(number)), "") for number in range(WEB_WATCHERS_MAX)]
    assert not watchers._makes_place(operator), "one of each"


def test_all_pages_cost_what_one_does_and_none_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TICK_S", 0.0)
    monkeypatch.setattr(module, "SOON_S", 0.0)
    node = Node()
    watchers = Watchers(node)  # type: ignore[arg-type]

    async def looks(count: int) -> None:
        until = node.asked.count(om.Snapshot) + count
        while node.asked.count(om.Snapshot) < until:
            await asyncio.sleep(0)

    async def life() -> None:
        before = asyncio.all_tasks()
        pages = [Page() for _ in range(5)]
        told = [asyncio.create_task(watchers.tell(page, Secrets("c", "k"), "j")) for page in pages]  # type: ignore[arg-type]
        ticking = None
        while ticking is None:
            await asyncio.sleep(0)
            ticking = watchers._ticking
        await looks(20)
        assert node.asked.count(om.Snapshot) - node.asked.count(om.JobStatus) in (0, 1), "once for all, not for each"
        assert all(sorted(page.told) == sorted((*PARTS, "trouble", "round")) for page in pages), "what is new, once"
        node.says["node"] = 1
        await looks(3)
        assert all(sorted(page.told[-2:]) == ["node", "round"] and len(page.told) == 8 for page in pages)
        for page in pages:
            page.leaves.set()
        await asyncio.gather(*told)
        await ticking
        assert watchers._ticking is None and asyncio.all_tasks() == before, "nothing goes on"

    asyncio.run(asyncio.wait_for(life(), 60))
