"""A cluster's jobs are moved from a node's database to etcd and back, whole, wherever a move is cut off."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from etcd_servers import Etcd as Servers
from etcd_servers import etcd
from fleet import OneHot, ask, fleet, submit, until
from nodes import Node, run_lifl

from lifl.core.config.job import parse_job
from lifl.core.config.node import parse_node
from lifl.core.errors import Refused, ResourceFault
from lifl.core.limits import ROUNDS_REMEMBERED
from lifl.core.protocol import cli as om
from lifl.core.schema import TensorSpec
from lifl.node import folders
from lifl.node.etcd import fenced
from lifl.node.etcd.migration import Moved, migrate
from lifl.node.etcd.mirror import Mirror
from lifl.node.rows import RoundRow
from lifl.node.store import NodeStore, removed_copies
from lifl.node.succession import open_rows, open_store

NAMES = (f"moved{number}" for number in count())
ROUNDS = 2 * ROUNDS_REMEMBERED


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    with etcd(1) as made:
        yield made


class Place:
    """A state folder with a database, and a cluster's name in etcd."""

    def __init__(self, folder: Path, servers: Servers) -> None:
        self.folder = folder
        self.config = parse_node({"state_dir": str(folder), "store": servers.url(next(NAMES))})

    def own(self) -> closing[NodeStore]:
        return closing(NodeStore(self.folder / "lifl.db"))

    def add(self, name: str, status: str, rounds: int) -> None:
        """A job with rounds that are committed, and one that is open."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        with self.own() as store:
            job = {"job": {"name": name, "rounds": 99}, "model": {"path": "/m"}, "selection": {"clients_per_round": 1}}
            number = store.add_job(parse_job(job), (TensorSpec("w", "float32", (3,)),), (), str(folder))
            folders.claim(folder, store.node_id(), number, name)
            for each in range(rounds):
                store.save_round(
                    name, each, 1, "committed", {"members": [f"{name}{each}"], "digests": [f"{each:016x}"]}
                )
            store.save_round(name, rounds, 1, "failed", {"reason": "late"})
            store.save_round(name, rounds, 2, "open", {"parts": [(0, "aa", 3)], "next_part": 1})
            store.save_job(name, status, "")

    def move(self, to_etcd: bool) -> Moved:
        return asyncio.run(migrate(self.config, self.folder, to_etcd, f"to etcd: {to_etcd}"))

    def owner(self, name: str) -> str:
        return str(folders.owner_of(self.folder / name)["node"])


@pytest.fixture
def place(tmp_path: Path, servers: Servers) -> Place:
    made = Place(tmp_path, servers)
    made.add("old", "finished", 2)
    made.add("j", "running", ROUNDS)
    return made


Rows = dict[str, tuple[Any, list[RoundRow]]]


def rows(store: NodeStore) -> Rows:
    return {row.name: (row, store.rounds(row.name)) for row in store.jobs()}


def in_database(place: Place) -> Rows:
    with place.own() as store:
        return rows(store)


@asynccontextmanager
async def leading(place: Place) -> AsyncIterator[tuple[Any, Any]]:
    """Provide the succession, and the copy, of a node that comes to lead."""
    shared = await open_store(place.config)
    with closing(NodeStore(place.folder / "empty.db")) as empty:
        _rows, copy, succession = open_rows(empty, place.folder, 1, shared)
    assert succession is not None
    try:
        await succession.rows.begin(1)
        yield succession, copy
    finally:
        copy.close()
        await shared.etcd.close()


def by_cluster(place: Place) -> Rows:
    """What a node reads that comes to lead."""

    async def led() -> Rows:
        async with leading(place) as (_succession, copy):
            return rows(copy)

    return asyncio.run(led())


def test_all_is_there_and_back_again(place: Place) -> None:
    before, owner = in_database(place), place.owner("j")
    assert place.move(to_etcd=True) == Moved(("j",), ("old",), (str(place.folder / "j"),))
    assert list(in_database(place)) == ["old"], "the job would run in two places"
    assert by_cluster(place) == before, "rounds that etcd does not keep are in the copy"
    assert place.owner("j") != owner
    with place.own() as store:
        assert store.add_job(before["j"][0].config, (), (), "/f") == before["j"][0].number + 1
    assert place.move(to_etcd=False) == Moved(("j",), ("old",), (str(place.folder / "j"),))
    assert in_database(place) == before
    assert by_cluster(place).keys() == {"old"}, "etcd has nothing more; the copy remembers what is over"
    assert place.owner("j") == owner


def test_the_list_of_copies_that_are_to_go_is_moved_and_has_none_that_runs(place: Place) -> None:
    place.add("gone", "finished", 1)
    with place.own() as store:
        numbers = {job.name: job.number for job in store.jobs()}
        store.drop_job(numbers["gone"], copies=True)
        store._write("INSERT INTO removed (number, name) VALUES (?, 'j')", (numbers["j"],))  # of an earlier cluster
    gone = [(numbers["gone"], "gone")]

    async def in_etcd() -> list[tuple[int, str]]:
        async with leading(place) as (succession, _copy):
            return succession.rows.removed_copies

    place.move(to_etcd=True)
    assert asyncio.run(in_etcd()) == gone
    with place.own() as store:
        store._write("DELETE FROM removed", ())
    place.move(to_etcd=False)
    with place.own() as store:
        assert removed_copies(store) == gone


class Cut(BaseException):
    """A move ends here, as if it was killed; what would end its lease in time is left out."""


def cut_at(patched: pytest.MonkeyPatch, step: int) -> None:
    """Lets the transaction, change of the database or claim of that number not happen, nor anything after it."""
    steps = count()

    def let(owner: Any, name: str, then: Any) -> None:
        def method(*given: Any) -> Any:
            if next(steps) >= step:
                raise Cut
            return then(*given)

        patched.setattr(owner, name, method)

    let(fenced.FencedWriter, "write", fenced.FencedWriter.write)
    let(folders, "pass_on", folders.pass_on)
    let(Mirror, "take_in", Mirror.take_in)
    let(Mirror, "give_up", Mirror.give_up)


@pytest.mark.parametrize("to_etcd", [True, False])
def test_one_that_is_cut_off_anywhere_is_finished_by_the_same_command(
    to_etcd: bool, tmp_path: Path, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in count():
        place = Place(tmp_path / str(step), servers)
        place.folder.mkdir()
        place.add("j", "running", 2)
        before, cut = in_database(place), False
        if not to_etcd:
            place.move(to_etcd=True)
        with monkeypatch.context() as patched:
            cut_at(patched, step)
            try:
                place.move(to_etcd)
            except Cut:
                cut = True
        if not cut:
            break
        place.move(to_etcd)
        assert (by_cluster(place) if to_etcd else in_database(place)) == before, f"cut off at step {step}"
        assert not (in_database(place) if to_etcd else by_cluster(place)), f"cut off at step {step}: it is twice"
    assert step > 3, "it was not cut off where it matters"


def test_nobody_coordinates_by_half_of_the_rows(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        cut_at(patched, 3)
        with pytest.raises(Cut):
            place.move(to_etcd=True)
    with pytest.raises(ResourceFault, match="was not finished; do it again: to etcd: True"):
        by_cluster(place)
    with pytest.raises(Refused, match="do it again first: to etcd: True"):
        place.move(to_etcd=False)
    place.move(to_etcd=True)
    assert by_cluster(place).keys() == {"old", "j"}


def test_what_would_be_overwritten_or_left_behind_is_refused(place: Place, tmp_path: Path, servers: Servers) -> None:
    before = in_database(place)
    (place.folder / "j" / folders.CLAIM).rename(place.folder / "away")
    with pytest.raises(Refused, match="cannot be seen here"):
        place.move(to_etcd=True)
    (place.folder / "away").rename(place.folder / "j" / folders.CLAIM)
    assert in_database(place) == before
    place.move(to_etcd=True)
    other = Place(tmp_path / "other", servers)
    other.folder.mkdir()
    other.config = place.config
    other.add("new", "running", 1)
    with pytest.raises(Refused, match="jobs of another cluster already"):
        other.move(to_etcd=True)
    with pytest.raises(Refused, match="has another job 'new', number 1"):
        other.move(to_etcd=False)
    assert in_database(other).keys() == {"new"}


def test_a_cluster_that_is_up_is_left_alone(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lifl.node.etcd.migration.FAILOVER_ETCD_S", 1.0)

    async def work() -> None:
        shared = await open_store(place.config)
        lease, _ttl_s = await shared.etcd.grant(60)
        pb = shared.etcd.pb
        put = pb.PutRequest(key=shared.keys.leader, value=b"node 17", lease=lease)
        await shared.etcd.txn(pb.TxnRequest(success=[pb.RequestOp(request_put=put)]))
        try:
            with pytest.raises(Refused, match=r"is up, and coordinates \(node 17\)"):
                await migrate(place.config, place.folder, True, "")
        finally:
            await shared.etcd.revoke(lease)
            await shared.etcd.close()

    asyncio.run(work())


def test_a_job_goes_on_where_it_was_moved_to(start_node: Callable[..., Node], servers: Servers) -> None:
    oracle, node, url = OneHot(3), start_node(), servers.url(next(NAMES))
    submit(node, "j", oracle.model(), job__rounds=3)

    def committed(number: int) -> None:
        until(f"round {number}", lambda: ask(node, om.JobStatus("j"))["job"]["committed"] >= number)

    def move(*way: str) -> str:
        return node.lifl("store", "migrate", *way).splitlines()[0]

    with fleet(str(node.state_dir), "j", 3, oracle.update, held=[(0, 2), (0, 3)]) as team:
        committed(1)
        node.down()
        assert move("sqlite", url) == f"moved to {url}: 1 jobs that run, 0 that are over"
        node.up("--store", url)
        team.release_round(2)
        committed(2)
        refused = run_lifl("store", "migrate", url, "sqlite", "--state", str(node.state_dir))
        assert (refused.returncode, "runs on state folder" in refused.stderr) == (1, True)
        node.down()
        assert move(url, "sqlite") == "moved to sqlite: 1 jobs that run, 0 that are over"
        node.up()
        team.release()
        committed(3)
        assert len(oracle.check(node, "j", team)) == 3


@pytest.mark.parametrize("way", [("sqlite", "sqlite"), ("etcd://h:1", "etcd://h:2")])
def test_one_of_the_stores_is_that_of_the_state_folder(way: tuple[str, str]) -> None:
    refused = run_lifl("store", "migrate", *way)
    assert (refused.returncode, "one of SOURCE and TARGET is sqlite" in refused.stderr) == (2, True)
