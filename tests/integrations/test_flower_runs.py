"""An app as Flower's quickstart lays it out, run by Flower before and after the changed lines."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flower_fleet import FlowerFleet

pytest.importorskip("flwr.app", reason="NOT TESTED: make test-integrations installs flwr")

QUICKSTART = Path(__file__).parents[1] / "data/flower-quickstart"
CHANGES = {
    "server_app.py": (
        ("import FedAvg\n", "import FedAvg\nfrom lifl.integrations.flower import LiflStrategy\n"),
        (
            "strategy = FedAvg(fraction_train=fraction_train)",
            "strategy = LiflStrategy(FedAvg(fraction_train=fraction_train))",
        ),
    ),
    "client_app.py": (
        ("import ClientApp\n", "import ClientApp\nfrom lifl.integrations.flower import lifl_mod\n"),
        ("app = ClientApp()", "app = ClientApp(mods=[lifl_mod])"),
    ),
}
"""The line in each app that changes, and its import."""


def app(folder: Path, *changed: str) -> Path:
    """The quickstart's folder, with the lines of some files changed."""
    place = folder / f"app-{len(list(folder.glob('app-*')))}"
    shutil.copytree(QUICKSTART, place)
    for name in changed:
        file = place / "quickstart" / name
        for before, after in CHANGES[name]:
            assert file.read_text().count(before) == 1, (name, before)
            file.write_text(file.read_text().replace(before, after))
    return place


def run(fleet: FlowerFleet, *changed: str, option: str = "", **config: object) -> tuple[dict[str, Any], str]:
    """The final model of a run, and what the run said; `option` is one more of LiflStrategy."""
    place = app(fleet.folder, *changed)
    server = place / "quickstart/server_app.py"
    server.write_text(server.read_text().replace("=fraction_train))", f"=fraction_train), {option})"))
    said = fleet.run(place, {"out": str(place / "final.npz"), **config})
    assert (place / "final.npz").exists(), said + fleet.log("superlink")
    with np.load(place / "final.npz") as file:
        return dict(file), said


def metrics(said: str) -> list[str]:
    """The metrics of rounds, rounded, in the order in which they were said."""
    found = re.findall(r"Aggregated MetricRecord: (.*)", said)
    assert found, said
    return [re.sub(r"\d+\.\d+", lambda number: f"{float(number[0]):.4f}", each) for each in found]


def check_same(found: tuple[dict[str, Any], str], wanted: tuple[dict[str, Any], str]) -> None:
    assert metrics(found[1]) == metrics(wanted[1])
    for name, array in wanted[0].items():
        np.testing.assert_allclose(found[0][name], array, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlowerFleet]:
    found = FlowerFleet(tmp_path_factory.mktemp("flower"), 2)
    yield found
    found.close()


@pytest.fixture(scope="module")
def stock(fleet: FlowerFleet) -> tuple[dict[str, Any], str]:
    return run(fleet)


def test_with_the_line_in_the_server_app_it_comes_to_the_same(fleet: FlowerFleet, stock: tuple[Any, str]) -> None:
    found = run(fleet, "server_app.py")
    check_same(found, stock)
    assert found[1].count("LIFL: 0 updates came past Flower's servers, 2 by them") == 2, found[1]


def test_with_both_lines_the_tensors_pass_flowers_servers(fleet: FlowerFleet, stock: tuple[Any, str]) -> None:
    found = run(fleet, "server_app.py", "client_app.py")
    check_same(found, stock)
    assert found[1].count("LIFL: 2 updates came past Flower's servers, 0 by them") == 2, found[1]


def test_with_messages_sent_ahead_it_comes_to_the_same(fleet: FlowerFleet, stock: tuple[Any, str]) -> None:
    """Each node evaluates behind the next round's training, and every reply is of its own round."""
    _model, said = run(fleet, "server_app.py", "client_app.py", option="send_ahead=True", **{"num-server-rounds": 3})
    assert metrics(said)[: len(metrics(stock[1]))] == metrics(stock[1])
    assert said.count("LIFL: 2 updates came past Flower's servers, 0 by them") == 3, said
    order = re.findall(r"ROUND (\d)/3|(configure_train|configure_evaluate): Sampled 2", said)
    assert [number or what for number, what in order] == [
        "1", "configure_train", "configure_evaluate",
        "2", "configure_train", "configure_train", "configure_evaluate",
        "3", "configure_evaluate",
    ]  # fmt: skip


def test_with_the_line_in_the_client_app_alone_nothing_changes(fleet: FlowerFleet, stock: tuple[Any, str]) -> None:
    check_same(run(fleet, "client_app.py"), stock)


def test_in_the_simulation_engine_clients_run_one_after_the_other(tmp_path: Path, stock: tuple[Any, str]) -> None:
    fleet = FlowerFleet(tmp_path, 2, simulation=True)
    try:
        found = run(fleet, "server_app.py", "client_app.py")
    finally:
        fleet.close()
    check_same(found, stock)
    assert found[1].count("LIFL: 2 updates came past Flower's servers, 0 by them") == 2, found[1]
