"""Three nodes for the tests of a file; those that a test leaves broken are made anew."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from builds import build
from netns import Cluster, Keeper, SharedCluster, kept

NUMBERS = count(1)


@pytest.fixture(scope="module")
def keeper() -> Iterator[Keeper]:
    with kept(3, "--redirector", "unix") as made:
        yield made


@pytest.fixture(scope="session")
def next_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build of the next minor release."""
    return build(tmp_path_factory.mktemp("builds") / "next", later=1)


@pytest.fixture
def three(keeper: Keeper, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    with keeper.whole(lambda: request.session.testsfailed) as made:
        yield made


@pytest.fixture
def shared(keeper: Keeper, request: pytest.FixtureRequest) -> Iterator[SharedCluster]:
    """The file's nodes, where its `keeper` gives them a store; all that the store has kept is looked at."""
    with keeper.whole(lambda: request.session.testsfailed) as made:
        yield made
        made.history()


@pytest.fixture
def job() -> str:
    """A name that no other test has: they share the cluster."""
    return f"j{next(NUMBERS)}"
