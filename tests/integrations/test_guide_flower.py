"""What the page on Flower tells to write is run as it stands there."""

# ruff: noqa: E402
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import guides
import pytest

pytest.importorskip("flwr.app", reason="NOT TESTED: make test-integrations installs flwr")
torch = pytest.importorskip("torch", reason="NOT TESTED: make test-integrations installs torch")

from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from test_flower import MODEL, NODE, NODES, Busy, StandIn, client_app, evaluated, node, plain_metrics, record

__all__ = ["node"]
PAGE = guides.ROOT / "docs/flower.md"
BLOCKS = [block.text for block in guides.blocks(PAGE) if block.language == "python"]


def fedavg(*dots: Any, **options: Any) -> FedAvg:
    """Flower's; the page's `...` stands for options of the reader's."""
    assert dots in ((), (...,))
    return FedAvg(**options)


def told(number: int, **names: Any) -> Mapping[str, Any]:
    """What is defined when the block has been run, with these names of the reader's app."""
    made = {"FedAvg": fedavg, "ClientApp": ClientApp, "torch": torch, "arrays": record(MODEL), **names}
    exec(compile(BLOCKS[number], f"{PAGE.name} block {number}", "exec"), made)
    return made


def test_each_of_its_blocks_is_run_here() -> None:
    assert len(BLOCKS) == 5


def test_the_line_in_the_server_app() -> None:
    made = told(0, grid=StandIn([client_app()] * NODES))
    assert list(made["result"].train_metrics_clientapp) == list(range(1, 11))


def test_a_subclass_that_saves_each_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    saving = told(1, **told(0, grid=StandIn([client_app()] * NODES)))["Saving"]
    saving(FedAvg(), node=NODE[0].state_dir).start(StandIn([client_app()] * NODES), record(MODEL), 2)
    assert [set(torch.load(f"round-{number}.pt")) for number in (1, 2)] == [set(MODEL)] * 2


@pytest.mark.parametrize(("number", "rounds"), [(3, 21), (4, 3)])
def test_the_line_in_the_client_app_with_many_rounds_for_a_message_and_sent_ahead(number: int, rounds: int) -> None:
    from lifl.integrations.flower import LiflStrategy

    def on_node(strategy: Any, **more: Any) -> LiflStrategy:
        return LiflStrategy(strategy, node=NODE[0].state_dir, **more)

    apps = [told(2)["app"] for _ in range(NODES)]
    for app in apps:
        app.train()(plain_metrics)
        app.evaluate()(evaluated)
    strategy = told(number, LiflStrategy=on_node)["strategy"]
    result = strategy.start(Busy(apps), record(MODEL), rounds, timeout=60)
    assert list(result.train_metrics_clientapp) == list(range(1, rounds + 1))
