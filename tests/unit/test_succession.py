"""A node that is elected, and whose time ends while it takes over, is no coordinator: not in its engine either."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lifl.core import events as ev
from lifl.node.driver import Driver
from lifl.node.etcd.client import Etcd
from lifl.node.etcd.cluster_rows import Cluster
from lifl.node.etcd.keys import Keys
from lifl.node.etcd.mirror import Mirror
from lifl.node.succession import Store, Succession


class Engine:
    """Notes what it hears."""

    writing = False

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.agent = SimpleNamespace(drains=False)

    def handle(self, event: Any, _now: float) -> Sequence[Any]:
        self.seen.append(event)
        return ()

    def next_timer(self) -> None:
        return None

    def busy(self) -> bool:
        return False


class Bridge:
    """Notes whether the node leads."""

    leads = False
    incarnation, control = 1, "127.0.0.1:1"

    def lead(self, _term: int) -> None:
        self.leads = True

    def follow(self) -> None:
        self.leads = False


def test_an_election_whose_lease_ended_while_its_jobs_were_read_leaves_no_coordinator(tmp_path: Path) -> None:
    async def run() -> None:
        etcd = Etcd(["127.0.0.1:1"])
        mirror = Mirror(tmp_path / "copy.db")
        succession = Succession(Store(etcd, Keys("c"), Cluster("0" * 16, b"seed")), mirror, 1, tmp_path)
        engine, bridge, over = Engine(), Bridge(), True
        driver = Driver(engine, tmp_path, lambda effects: None)  # type: ignore[arg-type]
        succession._bridge, succession._driver = bridge, driver  # type: ignore[assignment]
        driver.lapsed, driver.on_lapsed = lambda: over, succession._no_more

        async def begun(_term: int) -> None:
            pass

        succession.rows.begin = begun  # type: ignore[method-assign]
        await succession._take_over(7)
        assert not succession.leads and not bridge.leads
        assert engine.seen == [ev.Demoted()]
        over = False
        await succession._take_over(8)
        assert succession.leads and bridge.leads
        assert engine.seen == [ev.Demoted(), ev.Promoted(8, b"seed", ())]
        driver.close()
        mirror.close()
        await etcd.close()

    asyncio.run(run())
