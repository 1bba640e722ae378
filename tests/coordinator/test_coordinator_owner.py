"""Who may say what: a report counts only from the node that owns the branch, a partial comes only with its secret."""

from __future__ import annotations

from typing import Any

import pytest
from coordinator_scene import EPOCH, HOME, NUMBER, OPEN, B, C, Scene, members, sealed

from lifl.core import events as ev
from lifl.core.coordinator.branch_record import BranchState
from lifl.core.coordinator.round import Phase
from lifl.core.protocol import cluster as p
from lifl.core.protocol import commands as o
from lifl.core.protocol import gateway as gm

OF_HOME = [
    o.JobOpened(NUMBER),
    o.JobFailed(NUMBER, "it says so"),
    o.ModelSealed(NUMBER, EPOCH, {}),
    o.ModelSaved(NUMBER, EPOCH),
    o.PartialArrived(NUMBER, EPOCH, 1, members("c8", "c9"), 0),
    o.BranchForgotten(NUMBER, EPOCH, 1),
]
OF_B = [
    sealed("c2", 1),
    o.UpdateAborted(NUMBER, EPOCH, 1, "c2"),
    o.BranchClosed(NUMBER, EPOCH, 1, 0),
    o.BranchSealed(NUMBER, EPOCH, 1, {"worker_cpu_s": 1.0}),
    o.BranchAdopted(NUMBER, EPOCH, 1, members("c8")),
]


def books(scene: Scene) -> Any:
    round_ = scene.job.round
    assert round_ is not None
    return (
        scene.job.status,
        round_.phase,
        dict(round_.accepted),
        dict(round_.granted),
        scene.states(),
        {number: (record.updates, record.cost) for number, record in round_.branches.items()},
    )


@pytest.fixture
def scene() -> Scene:
    made = Scene(goal=4, nodes=(HOME, B, C))
    branches = [(HOME, 2, OPEN), (B, 2, OPEN)]
    made.has_round(Phase.COLLECTING, branches, accepted={"c1": 0}, granted={"c2": 1})
    made.here("c1", "c2")
    return made


@pytest.mark.parametrize("report", OF_HOME, ids=lambda report: type(report).__name__)
@pytest.mark.parametrize("node", [B, C])
def test_what_the_top_and_the_model_are_said_of_is_taken_from_home(scene: Scene, report: Any, node: int) -> None:
    before = books(scene)
    led = scene.handle(report, node)
    assert books(scene) == before
    assert (led.orders, led.told, led.rows) == ([], [], [])
    assert led.named("report.refused") == [{"node": f"{node:016x}", "report": type(report).__name__}]
    assert scene.handle(report, node).events == [], "it is logged once"


@pytest.mark.parametrize("report", OF_B, ids=lambda report: type(report).__name__)
@pytest.mark.parametrize("node", [HOME, C])
def test_a_branch_is_told_of_by_its_own_node(scene: Scene, report: Any, node: int) -> None:
    before = books(scene)
    led = scene.handle(report, node)
    assert books(scene) == before
    assert (led.orders, led.told, led.rows) == ([], [], [])
    assert led.named("report.refused")


def test_a_node_without_a_branch_fails_no_round(scene: Scene) -> None:
    before = books(scene)
    scene.handle(o.BranchFailed(NUMBER, EPOCH, "it says so", retry=True), C)
    assert books(scene) == before
    scene.handle(o.BranchFailed(NUMBER, EPOCH, "it says so", retry=True), B)
    assert scene.round.attempt == 2


# ---- partials -------------------------------------------------------------------------------------------------------


def offered(branch: int, secret: str = "", epoch: int = EPOCH, number: int = NUMBER) -> gm.Offered:
    return gm.Offered(9, number, epoch, branch, 1, 10, 10, secret)


def opened(scene: Scene, knows: bool) -> str:
    """The secret that node B is told when its branch is opened."""
    node = scene.coordinator.nodes.get(B)
    assert node is not None
    node.knows = frozenset([p.SECRETS] if knows else [])
    scene.job._branches.order_open(scene.round, scene.branch(1))
    ((_node, order),) = scene.led().ordered(o.OpenBranch)
    return str(order.secret)


def test_a_partial_is_taken_with_the_secret_of_its_branch(scene: Scene) -> None:
    secret = opened(scene, knows=True)
    takes = scene.coordinator.authority.takes_offer
    assert len(secret) == 32
    assert takes(offered(1, secret))
    for wrong in ("", secret[:-1], secret.upper() + "0", "x" * 32):
        assert not takes(offered(1, wrong))
    assert not takes(offered(0, secret))
    assert not takes(offered(2, secret))
    assert not takes(offered(1, secret, epoch=EPOCH + 1))
    assert not takes(offered(1, secret, number=2))


def test_the_secret_stays_that_of_a_branch_whose_node_is_gone(scene: Scene) -> None:
    """The top has the word: its partial may be on its way."""
    secret = opened(scene, knows=True)
    scene.do(scene.coordinator.node_gone, B)
    assert scene.states()[1] is BranchState.FORGETTING
    assert scene.coordinator.authority.takes_offer(offered(1, secret))
    assert not scene.coordinator.authority.takes_offer(offered(1))


def test_a_node_of_an_earlier_version_is_told_none_and_needs_none(scene: Scene) -> None:
    assert opened(scene, knows=False) == ""
    assert scene.coordinator.authority.takes_offer(offered(1))
    assert not scene.coordinator.authority.takes_offer(offered(0))


def test_secrets_are_those_of_the_cluster(scene: Scene) -> None:
    """A coordinator that starts again has the same ones, another cluster has others."""
    secrets = {
        Scene(goal=2, nodes=(HOME, B), secrets_seed=seed).coordinator.nodes.secrets.of(number, epoch, branch)
        for seed in (b"a", b"b")
        for number in (1, 2)
        for epoch in (EPOCH, EPOCH + 1)
        for branch in (1, 2)
    }
    assert len(secrets) == 16
    again = Scene(goal=2, nodes=(HOME, B), secrets_seed=b"a").coordinator.nodes.secrets
    assert again.of(1, EPOCH, 1) in secrets


def test_a_node_that_knows_secrets_says_so() -> None:
    assert ev.NodeUp(1, "g:1", 1.0, 1, 1, 1).knows == ()
