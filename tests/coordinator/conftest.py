"""What the tests of this folder take: arrows of the transition tables, cells of the recovery table, handlers.

`test_coordinator_tables.py` asks at the end whether any was left out; that is known only when the whole folder runs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lifl.core.coordinator.branch_record import BranchRecord
from lifl.core.coordinator.coordinator import Coordinator
from lifl.core.coordinator.recovery import Recovery
from lifl.core.coordinator.round import Round

HERE = Path(__file__).parent
LAST = "test_every_"
TAKEN: defaultdict[str, set[Any]] = defaultdict(set)
"""By table: what was taken of it."""


def _noting(table: str, plain: Callable[..., Any], what: Callable[..., Any]) -> Callable[..., Any]:
    def noting(*given: Any) -> Any:
        taken = what(*given)
        result = plain(*given)
        TAKEN[table].add(taken)
        return result

    return noting


@pytest.fixture(autouse=True)
def _notes(monkeypatch: pytest.MonkeyPatch) -> None:
    phase = _noting("phase", Round.move, lambda round_, to: (round_.phase, to))
    branch = _noting("branch", BranchRecord.move, lambda record, to: (record.state, to))
    news = _noting("news", Recovery._react, lambda _self, _round, record, news, *_: (record.state, news))
    handler = _noting("handler", Coordinator.handle, lambda _self, _node, message: type(message))
    monkeypatch.setattr(Round, "move", phase)
    monkeypatch.setattr(BranchRecord, "move", branch)
    monkeypatch.setattr(Recovery, "_react", news)
    monkeypatch.setattr(Coordinator, "handle", handler)


@pytest.fixture(scope="session")
def taken() -> dict[str, set[Any]]:
    """What the tests have taken of each table."""
    return TAKEN


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The tests that look back come last, and only where all that they look back on runs."""
    last = [item for item in items if item.path.parent == HERE and item.name.startswith(LAST)]
    if not last:
        return
    files = {item.path for item in items if item.path.parent == HERE}
    narrowed = config.option.keyword or config.option.markexpr or any("::" in arg for arg in config.args)
    whole = files >= set(HERE.glob("test_*.py")) and not narrowed
    items[:] = [item for item in items if item not in last] + (last if whole else [])
    if not whole:
        config.hook.pytest_deselected(items=last)
