"""The pure parts of the benchmark: what clients send and when, the reference, cells and targets, the report."""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"
sys.path.insert(0, str(BENCH))

import report  # noqa: E402
import section_rounds as rounds  # noqa: E402
from measure import Target  # noqa: E402
from network import Network  # noqa: E402
from systems.interface import ALSO, TUNED, Context, Outcome, RoundResult, Table  # noqa: E402
from systems.workload import BLOCK, Workload, from_json, resnet  # noqa: E402
from traces import arrivals  # noqa: E402

from lifl.examples.digits import Examples  # noqa: E402

FLAT = ALSO["LIFL"][0]
PATTERNS = ("at once", "steady", "bursts")


class Stands:
    """A system by name only, for the plan of cells."""

    def __init__(self, name: str, *variants: str) -> None:
        self.name = name
        self._variants = list(variants)

    def variants(self) -> list[str]:
        return self._variants

    def needs_bytes(self, workload: Workload, clients: int) -> float:
        return 2.0 * clients * workload.nbytes


SYSTEMS = [Stands("LIFL", "eager", "lazy"), Stands("Flower", "stock", "stock" + TUNED)]


def result(tail_s: float, cpu_s: float, grown_bytes: int = 0) -> RoundResult:
    return RoundResult(0.0, 1.0, 1.0 + tail_s, cpu_s, 0.0, 100 + grown_bytes, 0, 0.0, rest_bytes=100)


def cell(context: Context, **tails: list[float]) -> rounds.Grid:
    workload = resnet(18, 1)
    entries = [
        rounds.Entry(name, "v", [result(t, 1.0 if name == "LIFL" else 4.0) for t in ts]) for name, ts in tails.items()
    ]
    return rounds.Grid(workload, rounds.COMPARED_CLIENTS, "at once", [], 1, entries=entries)


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context(False, 7, tmp_path, SYSTEMS, lambda: 100.0)


# ---- what is sent --------------------------------------------------------------------------------------------------


def test_the_models_have_the_sizes_of_the_paper():
    assert [round(resnet(depth, 1).nbytes / 1e6, 1) for depth in (18, 34, 152)] == [46.8, 87.2, 240.8]


def test_updates_follow_from_the_seed_and_differ_between_clients(tmp_path):
    small = resnet(18, 3, width=1)
    again, other = from_json(small.to_json()), resnet(18, 4, width=1)
    assert np.array_equal(small.flat(5), again.flat(5)), "another process makes the same update"
    assert np.array_equal(small.flat(5), small.saved(tmp_path).flat(5)), "so does one that maps the file"
    assert not np.any(small.flat(5) == small.flat(6))
    assert not np.array_equal(small.flat(5), other.flat(5))
    assert np.array_equal(np.concatenate([a.ravel() for a in small.update(5).values()]), small.flat(5))


def test_the_reference_is_the_weighted_mean_and_sees_a_lost_or_doubled_update():
    small, clients = resnet(18, 3, width=4), range(7)
    assert small.size > BLOCK, "more than one block"
    weights = [small.weight(c) for c in clients]
    mean = np.average([small.flat(c).astype(np.float64) for c in clients], axis=0, weights=weights)
    assert small.error(mean, clients) < 1e-14
    assert small.error(mean.astype(np.float32), clients) < 1e-6
    lost = np.average([small.flat(c) for c in clients[1:]], axis=0, weights=weights[1:])
    assert small.error(lost, clients) > 1e-3
    wrong = mean.copy()
    wrong[0] = np.nan
    assert not small.error(wrong, clients) <= 1, "NaN passes no comparison"


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_client_arrives_once_in_the_order_of_time(pattern):
    found = arrivals(pattern, 40, 10_000_000, 5)
    assert sorted(a.client for a in found) == list(range(40))
    assert all(a.at_s <= b.at_s for a, b in pairwise(found)) and found[0].at_s >= 0
    assert found == arrivals(pattern, 40, 10_000_000, 5)


def test_bursts_have_clusters_and_stragglers():
    times = [a.at_s for a in arrivals("bursts", 100, 10_000_000, 5)]
    day_s = 2 * 100 * 10_000_000 / 500e6
    assert sum(t >= day_s for t in times) == 10, "one in ten comes when the day is over"
    gaps = [b - a for a, b in pairwise(times[:90])]
    assert sum(gap < day_s / 500 for gap in gaps) > 45, "most come in company"
    with pytest.raises(ValueError, match="nightly"):
        arrivals("nightly", 1, 1, 1)


# ---- cells and targets ---------------------------------------------------------------------------------------------


def test_the_plan_has_every_size_and_number_once_and_all_variants(context):
    grids = [grid for stand in rounds.plan(context) for grid in stand]
    at_once = [(g.workload.name, g.clients) for g in grids if g.pattern == "at once"]
    assert len(at_once) == len(set(at_once)) == len(rounds.CLIENTS) * len(rounds.DEPTHS)
    every = {(system.name, variant) for g in grids for system, variant in g.kinds}
    assert every == {(s.name, v) for s in SYSTEMS for v in s.variants()}
    assert {g.pattern for g in grids} == set(PATTERNS)


def test_a_system_too_slow_or_too_large_is_left_out_of_a_cell_and_the_others_run(context):
    lifl, flower, grpc = *SYSTEMS, Stands("SF", "v")
    small = cell(context, LIFL=[1.0], Flower=[40.0])
    for entry, turn_s in zip(small.entries, (1.0, 40.0), strict=True):
        entry.around_s, entry.turns_s = 2.0, [turn_s]
    next_ = rounds.Grid(small.workload, 2 * small.clients, "at once", [(lifl, "v"), (flower, "v"), (grpc, "v")], 2)
    outcome = Outcome()
    assert rounds.chosen([next_], [small], context, outcome) == [(lifl, "v"), (grpc, "v")]
    assert outcome.absent == [f"{next_.title}: Flower (v) would take about 84 s, 30 s is the limit for a system"]
    assert rounds.chosen([next_], [], context, outcome) == next_.kinds, "nothing is known yet"
    next_.kinds = next_.kinds[:2]
    assert rounds.chosen([next_], [small], context, outcome) == [], "one alone is no comparison"
    huge = rounds.Grid(small.workload, 10**6, "at once", [(lifl, "v")], 2)
    assert rounds.chosen([huge], [], context, outcome) == [] and "needs about" in outcome.absent[-1]


@pytest.mark.parametrize(("turn_s", "turns"), [(0.1, 7), (0.6, 5), (4.0, 3), (20.0, 1)])
def test_a_system_whose_rounds_are_short_has_more_of_them(turn_s, turns):
    workload = resnet(18, 1)
    assert rounds.Grid(workload, 32, "at once", [], rounds=3).turns(turn_s) == turns
    assert rounds.Grid(workload, 32, "steady", [], rounds=1).turns(turn_s) == 1


class Runs(Stands):
    """A system whose rounds are made up."""

    tolerance = 1.0

    def __init__(self) -> None:
        super().__init__("", "v")

    def start(self, workload: Workload, clients: int, variant: str, folder: Path) -> None: ...

    def round(self, times: object) -> RoundResult:
        return result(0.1, 1.0)

    def stop(self) -> None: ...


def test_a_system_that_is_left_out_of_one_cell_of_a_stand_is_in_the_next(context):
    kinds = []
    for name in ("LIFL", "Flower"):
        one = type(name, (Runs,), {"name": name, "__init__": lambda self: None})()
        kinds.append((one, "v"))
    workload = resnet(18, 1)
    chosen = (kinds, kinds[:1], kinds)
    stand = [rounds.Grid(workload, 2, pattern, some, 1) for pattern, some in zip(PATTERNS, chosen, strict=True)]
    rounds.measure(stand, kinds, context, Outcome())
    assert [[entry.system for entry in grid.entries] for grid in stand] == [
        ["LIFL", "Flower"],
        ["LIFL"],
        ["LIFL", "Flower"],
    ]


def test_systems_share_a_cell_as_far_as_memory_goes(context):
    lifl, flower = SYSTEMS
    grid = rounds.Grid(resnet(18, 1), 10, "at once", [(lifl, "a"), (lifl, "b"), (flower, "c")], 2)
    one = lifl.needs_bytes(grid.workload, 10)
    assert [len(group) for group in rounds.grouped(grid, grid.kinds, 2.5 * one)] == [2, 1]
    assert [len(group) for group in rounds.grouped(grid, grid.kinds, 0.5 * one)] == [1, 1, 1], (
        "chosen has said that each fits"
    )


def test_each_of_our_two_rows_has_its_targets(context):
    grid = cell(context, Flower=[1.0])
    tree, flat, lazy = (rounds.Entry("LIFL", v, [result(t, 1.0)]) for v, t in (("t", 0.5), (FLAT, 0.005), ("lazy", 9)))
    grid.entries += [tree, lazy, flat]
    met = {t.name.split("LIFL ")[1]: t.met for t in rounds.targets([grid], 30e9) if t.unit == "ms"}
    assert met == {"(t), last in → out": False, f"({FLAT}), last in → out": True}


def test_a_step_of_training_follows_the_gradient():
    """In float32, against the difference quotient of the loss."""
    network, chance = Network(4, 3, 5, 2), np.random.default_rng(1)
    data = Examples(chance.random((6, 4), np.float32), np.array([0, 1, 0, 1, 1, 0]))
    model = network.first(1) + np.float32(0.1)
    trained = np.empty_like(model)
    network.train(model, trained, data, epochs=1, batch=6, learning_rate=1.0, seed=1)

    def loss(flat):
        _, probability = network._forward(network._parts(flat), data.images)
        return -np.log(probability[np.arange(6), data.labels]).mean()

    for place in range(network.size):
        step = np.zeros(network.size)
        step[place] = 1e-6
        slope = (loss(model + step) - loss(model - step)) / 2e-6
        assert model[place] - trained[place] == pytest.approx(slope, abs=1e-4)


def test_medians_leave_the_first_round_out_unless_it_is_alone():
    assert rounds.Entry("a", "v", [result(9, 1), result(1, 1), result(3, 1)]).median("tail_s") == pytest.approx(2)
    assert rounds.Entry("a", "v", [result(9, 1)]).median("tail_s") == pytest.approx(9)


def test_a_loss_is_a_missed_target(context):
    won = {t.name.split(": ")[1]: t.met for t in rounds.targets([cell(context, LIFL=[0.005], Flower=[1.0])], 30e9)}
    assert all(won.values()) and len(won) == 4
    lost = rounds.targets([cell(context, LIFL=[0.5], Flower=[1.0])], 30e9)
    assert [t.met for t in lost] == [False, False, True, True]
    assert lost[0].measured == pytest.approx(2.0)


# ---- the report ----------------------------------------------------------------------------------------------------


class Section:
    NAME, TITLE = "one", "A section"


def test_the_report_shows_losses_and_what_did_not_run(tmp_path):
    targets = [Target("quick", "ms", 1.0, 0.5), Target("slow", "ms", 1.0, 2.0)]
    outcome = Outcome([Table("t", ["a"], [["1"]])], [], targets, ["cell: no room"], ["cell: broke"], {"figure": 1})
    path = report.write(tmp_path / "out", {"seed": "1"}, [(Section, outcome)], ["NVFlare: not there"], judged=True)
    text = path.read_text()
    assert "1 met, 1 missed" in text
    assert next(line for line in text.splitlines() if "slow" in line).endswith("| MISSED |")
    assert all(words in text for words in ("cell: no room", "cell: broke", "NVFlare: not there"))
    told = json.loads((path.parent / "report.json").read_text())
    assert told["sections"]["one"]["data"] == {"figure": 1}
    assert [t["met"] for t in told["targets"]] == [True, False]
    assert "MISSED" not in report.write(tmp_path, {}, [(Section, outcome)], [], judged=False).read_text()
