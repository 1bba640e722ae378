"""The node's database: what it lets happen once only."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from lifl.node.store import NodeStore


def test_a_round_commits_once_whatever_the_attempt(tmp_path: Path) -> None:
    store = NodeStore(tmp_path / "lifl.db")
    try:
        store.save_round("j", 1, 1, "open", {})
        store.save_round("j", 1, 1, "failed", {"reason": "late"})
        store.save_round("j", 1, 2, "open", {})
        store.save_round("j", 1, 2, "committed", {"members": ["a"]})
        with pytest.raises(sqlite3.IntegrityError):
            store.save_round("j", 1, 3, "committed", {"members": ["a", "b"]})
        with pytest.raises(sqlite3.IntegrityError):
            store.save_round("j", 1, 1, "committed", {"members": []})
        store.save_round("j", 1, 2, "failed", {"reason": "too late"})  # a commit is not taken back
        store.save_round("j", 2, 1, "committed", {"members": ["c"]})
        committed = [(row.round, row.attempt, row.fields) for row in store.rounds("j") if row.status == "committed"]
    finally:
        store.close()
    assert committed == [(1, 2, {"members": ["a"]}), (2, 1, {"members": ["c"]})]
