"""What is kept of rounds that are over is bounded: rows get shorter, then go, and those of models that stay do not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from lifl.core.config.job import parse_job
from lifl.core.config.keep import HistoryKeep
from lifl.core.errors import ConfigError
from lifl.core.limits import ROUNDS_REMEMBERED, TRIM_ROUNDS
from lifl.core.planning.keeping import Kept
from lifl.core.schema import TensorSpec
from lifl.node.store import NodeStore, trim_rounds

FIELDS = {
    "metrics": {"loss": 0.5},
    "path": "/f/r",
    "members": ["hospital-17"] * 100,
    "digests": ("d",),
    "keep": {"since": 0},
}
SHORT = {name: value for name, value in FIELDS.items() if name != "members"}
TABLE = {"job": {"name": "j", "rounds": 9}, "model": {"path": "/m"}, "selection": {"clients_per_round": 1}}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[NodeStore]:
    with closing(NodeStore(tmp_path / "lifl.db")) as made:
        made.add_job(parse_job(TABLE), (TensorSpec("w", "float32", (1,)),), (), "/f")
        made.save_job("j", "running", "")
        yield made


def live(store: NodeStore, last: int, rounds: int, receipts: int, every: int = 0, first: int = 0) -> None:
    """Rounds `first` to `last` commit, the second attempt at each; rows are trimmed as a coordinator has it done."""
    store._db.execute("PRAGMA synchronous=OFF")
    for number in range(first, last + 1):
        if number:
            store.save_round("j", number, 1, "failed", {"reason": "late", "receipt": None})
        store.save_round("j", number, 2, "committed", FIELDS)
        if number and number % TRIM_ROUNDS == 0:
            trim_rounds(store, "j", number + 1 - rounds, number + 1 - receipts, Kept(number, 1, every))


def test_rows_get_shorter_then_go_and_those_of_models_that_stay_do_not(store: NodeStore) -> None:
    last, rounds, receipts = 5 * TRIM_ROUNDS, 150, 20
    live(store, last, rounds, receipts, every=50)
    rows = store.rounds("j")
    first = last + 1 - rounds
    assert {row.round for row in rows} == {0, *range(50, first, 50), *range(first, last + 1)}
    assert {row.round for row in rows if row.fields.get("members")} == {0, *range(last + 1 - receipts, last + 1)}
    shorter = [row for row in rows if 0 < row.round <= last - receipts and row.status == "committed"]
    assert all(row.fields == SHORT for row in shorter)
    assert not any(row.fault for row in rows)
    assert [row.round for row in store.committed("j", 3)] == [last - 2, last - 1, last]


def test_what_one_trim_has_missed_the_next_one_finds(store: NodeStore) -> None:
    live(store, TRIM_ROUNDS - 1, 1_000, 1_000)
    trim_rounds(store, "j", -5, 2 * TRIM_ROUNDS, Kept(9, 1))
    assert not any(row.fields.get("members") for row in store.rounds("j", above=0))
    trim_rounds(store, "j", 2 * TRIM_ROUNDS, 0, Kept(2 * TRIM_ROUNDS, 1))
    assert [row.round for row in store.rounds("j")] == [0]


def test_a_row_that_cannot_be_read_is_let_be_until_it_goes(store: NodeStore) -> None:
    live(store, 5, 1_000, 1_000)
    for number, fields in ((2, "no blob"), (3, b"\xc1")):
        store._db.execute("UPDATE rounds SET fields = ? WHERE round = ?", (fields, number))
    trim_rounds(store, "j", 0, 6, Kept(5, 1))
    assert [row.round for row in store.rounds("j") if row.fault] == [2, 2, 3, 3]
    trim_rounds(store, "j", 6, 6, Kept(5, 0))
    assert [row.round for row in store.rounds("j")] == [0]


def test_the_room_of_rows_that_went_is_used_again(store: NodeStore) -> None:
    """The database has the size of what is kept, not of what ever was."""
    live(store, 4 * TRIM_ROUNDS, 64, 16)
    (before,) = store._db.execute("PRAGMA page_count").fetchone()
    live(store, 12 * TRIM_ROUNDS, 64, 16, first=4 * TRIM_ROUNDS + 1)
    (after,) = store._db.execute("PRAGMA page_count").fetchone()
    assert after <= before + before // 4


def test_the_key_has_a_default_and_no_restart_lacks_what_it_needs() -> None:
    assert parse_job(TABLE).remembered == HistoryKeep()
    given = parse_job(TABLE | {"history": {"keep": {"rounds": 50, "receipts": ROUNDS_REMEMBERED}}}).remembered
    assert given == HistoryKeep(50, ROUNDS_REMEMBERED)
    for name in ("rounds", "receipts"):
        with pytest.raises(ConfigError, match=rf"^history\.keep\.{name}"):
            parse_job(TABLE | {"history": {"keep": {name: ROUNDS_REMEMBERED - 1}}})
    with pytest.raises(ConfigError, match=r"^history\.keep\.round: unknown key; did you mean history\.keep\.rounds"):
        parse_job(TABLE | {"history": {"keep": {"round": 50}}})


def test_rows_that_got_shorter_take_less_of_the_database(store: NodeStore) -> None:
    live(store, 2 * TRIM_ROUNDS, 100_000, 16)
    (before,) = store._db.execute("PRAGMA page_count").fetchone()
    live(store, 10 * TRIM_ROUNDS, 100_000, 16, first=2 * TRIM_ROUNDS + 1)
    (after,) = store._db.execute("PRAGMA page_count").fetchone()
    each = (after - before) * 4096 / (8 * TRIM_ROUNDS)
    assert each < 500, f"{each:.0f} bytes for each round"
