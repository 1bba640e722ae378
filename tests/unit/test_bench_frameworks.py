"""What the page of whole rounds in Flower and NVFlare says of figures, and which of them another run goes on with."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

BENCH = Path(__file__).resolve().parents[2] / "bench"
sys.path.insert(0, str(BENCH))

import frameworks  # noqa: E402

MODEL = 1_000_000


def told(commit: str, nodes: int) -> dict[str, Any]:
    return {"about": {"commit": commit}, "sizes": {"nodes": nodes}, "runs": []}


def flower(mode: str, last_s: float, models: float) -> dict[str, Any]:
    rounds = [{"round": n, "round_s": 2.0, "servers_cpu_s": 1.0, "last_reply_to_model_s": last_s} for n in (1, 2)]
    memory = {"servers_peak_bytes": 9 * MODEL, "app_peak_bytes": int((1 + models) * MODEL), "model_bytes": MODEL}
    return {
        "mode": mode,
        "rounds": rounds,
        "means": [1.0],
        "server_app_before_bytes": MODEL,
        **memory,
        "peak_parts": {},
    }


def test_a_run_goes_on_with_figures_of_the_same_source_and_sizes_alone(tmp_path: Path) -> None:
    path = tmp_path / "flower.json"
    new = told("abc", 16)
    assert frameworks.earlier(path, new) is new, "there is none"
    for other in (told("abd", 16), told("abc", 2), {"about": {"commit": "abc"}, "runs": []}):
        path.write_text(json.dumps(other))
        assert frameworks.earlier(path, new) is new
    path.write_text(json.dumps(told("abc", 16) | {"runs": [flower("mod", 0.1, 1)]}))
    assert len(frameworks.earlier(path, new)["runs"]) == 1


def test_the_strategy_alone_stands_beside_the_sum_in_numpy() -> None:
    runs = [flower("numpy", 0.02, 4.0), flower("strategy", 0.05, 2.5)]
    models, last = frameworks.strategy_alone(runs, {}).splitlines()[2:]
    assert models.endswith("| 2.5 | 4.0 | 3 | met |")
    assert last.endswith("| 0.050 | 0.020 | 0.020 | MISSED |")
    assert frameworks.strategy_alone([flower("stock", 0.02, 4.0)], {}) == ""


def test_what_was_not_measured_is_said(tmp_path: Path) -> None:
    one = {"round_s": 6.0, "cpu_s": 4.0, "server_peak_mib": 1000.0, "arena_mib": 0.0}
    ours = {"round_s": 1.0, "cpu_s": 1.0, "server_peak_mib": 100.0, "arena_mib": 200.0}
    nvflare = {"about": {}, "command": [], "ways": {"stock": [one], "stock-disk": [], "filters": [ours]}}
    (tmp_path / "nvflare.json").write_text(json.dumps(nvflare))
    (tmp_path / "flower.json").write_text(json.dumps(told("abc", 16) | {"command": [], "runs": [flower("mod", 1, 1)]}))
    text = frameworks.page(tmp_path).read_text()
    assert "Not measured: stock-disk." in text
    assert "Not measured: stock, numpy, strategy, ahead, many." in text
    assert "| round | 1/6.0 | 1/3 | met |" in text and "| server's CPU | 1/4.0 | 1/12 | MISSED |" in text
    assert "| server's memory, with the arena | 1/3.3 | 1/3 | met |" in text
