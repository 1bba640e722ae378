"""What a gateway's clients may take: connections, requests and bytes, by hand."""

from __future__ import annotations

import pytest

from lifl.core import limits
from lifl.core.errors import Refused
from lifl.node.gateway.budgets import Flow, Pace
from lifl.node.gateway.quotas import Limits, Quotas

A, B, C = "10.0.0.1", "10.0.0.2", "10.0.0.3"


class Scene:
    def __init__(self, connections_max: int = 100, **more: int) -> None:
        self.cut: list[int] = []
        self.quotas = Quotas(Limits(connections_max, **more), lambda number, _because: self.cut.append(number))

    def arrive(self, number: int, who: str = A, now: float = 0.0, client: str = "", shown: str = "") -> None:
        self.quotas.arrived(number, who, now)
        if client:
            self.quotas.greeted(number, shown or who, client, now)

    def refused(self, number: int, who: str = A, now: float = 0.0, client: str = "") -> Refused:
        with pytest.raises(Refused) as caught:
            self.arrive(number, who, now, client)
        return caught.value


# ---- connections -----------------------------------------------------------------------------------------------------


def test_a_full_gateway_takes_no_more_of_those_that_have_greeted() -> None:
    scene = Scene(2)
    scene.arrive(1, client="a")
    scene.arrive(2, client="b")
    assert scene.refused(3, now=1000.0).code == "too-many-connections"
    assert not scene.cut
    scene.quotas.left(1)
    scene.arrive(3, client="c")


def test_whose_certificate_says_who_it_is_has_no_more_from_many_addresses() -> None:
    scene = Scene(connections_per_client=2, requests_per_s=1)
    scene.arrive(1, A, client="mallory", shown="client mallory")
    scene.arrive(2, B, client="mallory", shown="client mallory")
    with pytest.raises(Refused, match="connections_per_client"):
        scene.arrive(3, C, client="mallory", shown="client mallory")
    waits = [scene.quotas.request_wait_s(number, 0.0) for number in (1, 2) for _ in range(limits.REQUESTS_BURST)]
    assert max(waits) > limits.REQUESTS_BURST / 2, "and asks no more often"
    scene.arrive(4, C, client="other", shown="client other")
    scene.quotas.left(1)
    scene.arrive(5, C, client="mallory", shown="client mallory")


def test_one_that_has_not_greeted_in_time_gives_way_and_none_that_has() -> None:
    scene = Scene(3)
    scene.arrive(1, client="a")
    scene.arrive(2, now=1.0)
    scene.arrive(3, now=2.0)
    assert scene.refused(4, now=2.0 - 1e-6).code == "too-many-connections"
    scene.arrive(4, now=1.0 + limits.UNGREETED_S)
    assert scene.cut == [2]
    scene.quotas.greeted(2, A, "late", 9.0)  # it is being ended, and counts for nothing
    scene.quotas.left(2)
    assert scene.refused(5, now=2.0 + limits.UNGREETED_S - 1e-6)
    scene.arrive(5, now=2.0 + limits.UNGREETED_S)
    assert scene.cut == [2, 3]


def test_of_those_that_have_not_greeted_one_of_the_address_with_most_gives_way_at_once() -> None:
    scene = Scene(6)
    for number, who in ((1, A), (2, B), (3, B), (4, B), (5, B), (6, C)):
        scene.arrive(number, who)
    scene.arrive(7, C)
    assert scene.cut == [2]
    assert scene.refused(8, C)  # now B has no more than one from C would make
    scene.arrive(8, A)
    assert scene.cut == [2, 3]


def test_half_open_connections_shut_nobody_out() -> None:
    """One address opens connections as fast as it can, and says nothing: who greets at once gets in, and stays."""
    scene, now, number, inside = Scene(64), 0.0, 0, []
    for step in range(2000):
        now += 0.02
        number += 1
        try:
            scene.arrive(number, B, now)
        except Refused:
            pass
        if step % 50 == 49:
            number += 1
            scene.arrive(number, A, now, client=f"c{step}")
            inside.append(number)
    assert len(inside) == 40
    assert not set(inside) & set(scene.cut)


def test_an_address_has_its_share_and_half_open_ones_of_it_give_way() -> None:
    scene = Scene(100, connections_per_address=2)
    scene.arrive(1, client="a")
    scene.arrive(2, client="b")
    refused = scene.refused(3)
    assert (refused.code, refused.field) == ("quota", "connections_per_address")
    assert "connections_per_address" in str(refused)
    scene.arrive(4, B, client="a")
    scene.arrive(5, B)
    scene.arrive(6, B, now=5.0)
    assert scene.cut == [5]
    for number in range(10, 20):
        scene.arrive(number, "local uid=0")
    scene.quotas.left(1)
    scene.arrive(3)


def test_a_client_has_its_connections_and_another_place_has_its_own() -> None:
    scene = Scene(100, connections_per_client=2)
    for number in (1, 2):
        scene.arrive(number, client="a")
    refused = scene.refused(3, client="a")
    assert (refused.code, refused.field) == ("quota", "connections_per_client")
    scene.quotas.left(3)
    scene.arrive(4, client="b")
    scene.arrive(5, B, client="a")  # who comes from elsewhere under this name takes nothing from it
    scene.quotas.left(1)
    scene.arrive(6, client="a")


def test_nothing_is_kept_of_connections_that_have_ended() -> None:
    scene = Scene(10, connections_per_client=2, connections_per_address=5)
    for number in range(1000):
        scene.arrive(number, client="a")
        scene.quotas.left(number)
    assert not any(vars(scene.quotas)[name] for name in ("_who", "_addresses", "_names", "_clients"))
    assert not any(vars(scene.quotas._ungreeted).values())


# ---- requests and bytes ----------------------------------------------------------------------------------------------


def test_the_connections_of_a_client_share_its_requests() -> None:
    scene = Scene(requests_per_s=100)
    for number in (1, 2):
        scene.arrive(number, client="a")
    scene.arrive(3, client="b")
    waits = [scene.quotas.request_wait_s(1 + number % 2, 0.0) for number in range(201)]
    assert waits[:200] == [0.0] * 200
    assert waits[200] == pytest.approx(0.01)
    assert scene.quotas.request_wait_s(3, 0.0) == 0.0
    scene.quotas.taken(1)
    assert scene.quotas.request_wait_s(2, 0.0) == 0.0


def test_a_pace_of_its_own() -> None:
    pace = Pace(0.0, 1000)
    assert sum(pace.wait_s(0.0) == 0.0 for _ in range(5000)) == 2000
    assert Pace(0.0, 1)._left == limits.REQUESTS_BURST


def test_bodies_wait_until_those_before_them_have_had_their_time() -> None:
    flow = Flow(1000)
    assert [flow.wait_s(500, now) for now in (10.0, 10.0, 10.5, 20.0)] == [0.0, 0.5, 0.5, 0.0]
    assert [Flow(0).wait_s(10**12, 0.0) for _ in range(3)] == [0.0] * 3


def test_the_slower_of_the_clients_and_the_jobs_rate_holds() -> None:
    scene, job = Scene(client_bytes_per_s=100), Flow(1000)
    scene.arrive(1, client="a")
    scene.arrive(2, client="b")
    assert [scene.quotas.bytes_wait_s(1, job, 1000, 0.0) for _ in range(2)] == [0.0, 10.0]
    assert scene.quotas.bytes_wait_s(2, job, 1000, 0.0) == 2.0  # behind the job's two
