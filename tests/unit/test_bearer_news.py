"""What nodes tell each other of bearer tokens: who hears of them, and who is never told what it does not know."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lifl.core.identity import Identity
from lifl.core.protocol import cluster as p
from lifl.node.authority.bearers import BearerTokens
from lifl.node.authority.credential_store import CredentialStore
from lifl.node.cluster.bearer_news import BearerNews

NOW = 1_000_000.0
OF_THIS_RELEASE, OF_BEFORE = 2, 3


class Scene:
    """A node, and what it says to others."""

    def __init__(self, folder: Path, name: str, coordinates: bool, moves: bool, makes: bool) -> None:
        self.store = CredentialStore(folder / f"{name}.db")
        self.tokens = BearerTokens(self.store, lambda: NOW)
        self.sent: list[tuple[int, Any]] = []
        self.reported: list[Any] = []
        nodes = SimpleNamespace(knows=lambda node, word: (node, word) == (OF_THIS_RELEASE, p.BEARERS))
        peers = SimpleNamespace(
            living=lambda: (OF_THIS_RELEASE, OF_BEFORE),
            send=lambda node, message: self.sent.append((node, message)),
            report=self.reported.append,
        )
        engine = SimpleNamespace(coordinator=SimpleNamespace(nodes=nodes) if coordinates else None)
        self.news = BearerNews(self.tokens, peers, engine, moves, makes)  # type: ignore[arg-type]
        self.tokens.on_change = self.news.changed

    def make(self) -> str:
        return self.tokens.create("ab" * 32, Identity("client", "a"), "job", 60.0, 0.0).number


Make = Callable[..., Scene]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Make]:
    made: list[Scene] = []

    def make(coordinates: bool, moves: bool, makes: bool) -> Scene:
        made.append(Scene(tmp_path, str(len(made)), coordinates, moves, makes))
        return made[-1]

    yield make
    for each in made:
        each.store.close()


def hello(*knows: str) -> p.PeerHello:
    return p.PeerHello(p.PEER_VERSION, 7, 1, "127.0.0.1:1", "127.0.0.1:2", 8.0, 1, 1, knows)


def test_the_coordinator_tells_those_that_know_of_them_when_they_come_and_at_each_change(node: Make) -> None:
    home, said = node(coordinates=True, moves=False, makes=True), []
    home.make()
    assert home.sent == [(OF_THIS_RELEASE, p.BearersTold(home.tokens.entries))], "not one of the release before"
    home.news.joined(hello(), said.append)
    assert said == []
    home.news.joined(hello(p.BEARERS), said.append)
    assert said == [p.BearersTold(home.tokens.entries)]


def test_a_node_takes_its_coordinators_and_the_coordinator_no_nodes(node: Make) -> None:
    home = node(coordinates=True, moves=False, makes=True)
    agent = node(coordinates=False, moves=False, makes=False)
    number = home.make()
    agent.make()
    agent.news.told(home.tokens.entries)
    assert agent.tokens.entries == home.tokens.entries and agent.reported == []
    home.news.heard((), from_authority=False)
    assert [entry.number for entry in home.tokens.entries] == [number]
    home.tokens.revoke(number)
    agent.news.told(home.tokens.entries)
    assert [entry.revoked for entry in agent.tokens.entries] == [True]


def test_where_the_coordinator_moves_it_has_them_of_the_authoritys_node_and_of_no_other(node: Make) -> None:
    home = node(coordinates=True, moves=True, makes=False)
    authority, agent = (node(coordinates=False, moves=True, makes=makes) for makes in (True, False))
    number = authority.make()
    assert authority.reported == [], "the coordinator has not said that it knows of them"
    agent.make()
    for each in (authority, agent):
        each.news.told(home.tokens.entries)
    assert authority.reported == [p.BearersTold(authority.tokens.entries)] and agent.reported == []
    home.news.heard(agent.tokens.entries, from_authority=False)
    assert home.tokens.entries == ()
    home.news.heard(authority.reported[-1].entries, from_authority=True)
    assert home.sent == [(OF_THIS_RELEASE, p.BearersTold(authority.tokens.entries))]
    agent.news.told(home.tokens.entries)
    assert number in [entry.number for entry in agent.tokens.entries]
    authority.news.told((*home.tokens.entries, *agent.tokens.entries))
    assert [entry.number for entry in authority.tokens.entries] == [number], "nobody's word adds to those made there"
    authority.tokens.revoke(number)
    home.news.heard(authority.reported[-1].entries, from_authority=True)
    assert [entry.revoked for entry in home.tokens.entries] == [True]
    count = len(authority.reported)
    authority.news.coordinator_up()
    authority.make()
    assert len(authority.reported) == count, "another coordinator may be of the release before"
