"""Which arrows of the transition tables (and entries of other tables) a group of tests has taken.

A group's tests note what they take (`note`); those marked ``looks_back`` look back on that.  So these come last, and
run only where all files of their group do, whole: then a table's entry that no test took is an error that names it.
Where several processes run the tests (pytest -n) a group stays together in one of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parent
TOGETHER = frozenset({"agent", "coordinator"})
"""Folders of which each is one group; elsewhere each file is one."""
TAKEN: defaultdict[str, set[Any]] = defaultdict(set)
"""By table: what was taken of it."""


def note(patch: pytest.MonkeyPatch, table: str, owner: type, method: str, what: Callable[..., Any]) -> None:
    """Have each call of a method that raises nothing noted as `what` makes of its arguments."""
    plain = getattr(owner, method)

    def noting(*given: Any) -> Any:
        taken = what(*given)
        result = plain(*given)
        TAKEN[table].add(taken)
        return result

    patch.setattr(owner, method, noting)


def not_taken(table: str, transitions: dict[Any, Iterable[Any]]) -> set[str]:
    """Return the arrows of a transition table that no test has taken, as they are read."""
    arrows = {(begin, end) for begin, ends in transitions.items() for end in ends}
    assert TAKEN[table] <= arrows, f"arrows of {table} that do not exist were taken"
    return {f"{table}: {begin.value} -> {end.value}" for begin, end in arrows - TAKEN[table]}


def group_of(path: Path) -> Path:
    """Return the folder or the file whose tests are one group with those of a file."""
    return path.parent if path.parent.name in TOGETHER else path


def files_of(group: Path) -> set[Path]:
    """Return the test files of a group."""
    return set(group.glob("test_*.py")) if group.is_dir() else {group}


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the tests that look back last, and leave out those that could not see all they look back on."""
    last = [item for item in items if item.get_closest_marker("looks_back")]
    narrowed = config.option.keyword or config.option.markexpr or any("::" in arg for arg in config.args)
    files = {item.path for item in items}
    whole = [item for item in last if not narrowed and files_of(group_of(item.path)) <= files]
    left_out = [item for item in last if item not in whole]
    items[:] = [item for item in items if item not in last] + whole
    if left_out:
        config.hook.pytest_deselected(items=left_out)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Hand out test files as ``--dist loadfile`` does, but the files of a group together."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class GroupScheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::", 1)[0]
            return str(group_of(TESTS.parent / file))

    return GroupScheduling(config, log)
