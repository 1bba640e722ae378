"""The coordinator of a secured cluster is replaced; who was revoked stays so, whoever coordinates."""

from __future__ import annotations

from certificates import Authority
from fleet import OneHot, submit, until
from netns import SharedCluster, cluster

from lifl import Client
from lifl.client import Refused
from lifl.core.errors import LiflError
from lifl.examples.netns import inside

N = 4


def turned_away(shared: SharedCluster, gateway: str, name: str) -> bool:
    with inside(shared.clients):
        try:
            with Client(gateway, job="j", client=name, give_up_after_s=1.0, **shared.access(name)) as client:
                next(client.rounds())
        except Refused as refused:
            return "revoked" in str(refused)
        except LiflError:
            return False
    return False


def test_the_coordinator_of_a_secured_cluster_is_replaced_and_revocations_hold() -> None:
    oracle = OneHot(N)
    with cluster(3, "--redirector", "unix", shared=True, authority=Authority()) as shared:
        assert isinstance(shared, SharedCluster)
        first = shared.coordinator
        submit(first, "j", oracle.model(), job__rounds=2, **shared.job("j"))
        watch = shared.watch("j")
        with shared.fleet("j", N, oracle.update, held=[(1, 1)]) as team:
            watch.wait("update.accepted", N - 1)
            told = shared.agents[0]
            told.lifl("cert", "revoke", "client/mallory")
            first.kill()
            second = shared.next_coordinator(first)
            team.release()
            lines = shared.finished("j", team, oracle)
            assert [line["receipt"]["counted"] for line in lines] == [N, N]
        first.up()
        shared.settled()
        for machine in shared.machines:
            until(f"{machine.host.name} turns her away", lambda: turned_away(shared, machine.gateway, "mallory"))  # noqa: B023
        assert shared.coordinator is second
