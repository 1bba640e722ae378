"""What each system costs while no client sends anything: all of them stand side by side and are watched for a minute.

Each has done one round before, of a small model; when the others have, LIFL's workers have ended by themselves.
"""

from __future__ import annotations

import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from measure import Target, number
from systems.interface import Context, Idle, Outcome, Plot, System, Table
from systems.workload import resnet
from traces import arrivals

NAME = "idle"
TITLE = "Idle: what a system costs while no update comes"
BUDGET_S = 102.0
QUICK_BUDGET_S = 30.0
WATCH_S, QUICK_WATCH_S = 60.0, 1.0
REST_S, QUICK_REST_S = 33.0, 0.0
"""So long after its round LIFL, the first, has come to rest: a node's `idle_timeout_s` is 30 s by default."""
SETTLE_S, QUICK_SETTLE_S = 5.0, 0.0
"""So long after its round the last one has."""
CLIENTS = 4
WIDTH = 8


def run(context: Context) -> Outcome:
    """Watch all systems at the same time."""
    watch_s = QUICK_WATCH_S if context.quick else WATCH_S
    outcome = Outcome()
    workload = resnet(18, context.seed, WIDTH).saved(context.folder)
    with ExitStack() as opened:
        running: list[System] = []
        rested_s = 0.0
        for system in context.systems:
            one = type(system)()
            folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="lb-", dir=context.folder)))
            try:
                opened.callback(one.stop)
                one.start(workload, CLIENTS, one.variants()[0], folder)
                one.round(arrivals("at once", CLIENTS, workload.nbytes, context.seed))
            except Exception as error:  # noqa: BLE001 - the others can still be watched
                outcome.failures.append(f"{system.name} did not run: {error!r}")
                continue
            running.append(one)
            rested_s = rested_s or time.monotonic() + (QUICK_REST_S if context.quick else REST_S)
        time.sleep(max(rested_s - time.monotonic(), QUICK_SETTLE_S if context.quick else SETTLE_S))
        with ThreadPoolExecutor(max(len(running), 1)) as pool:
            idles = dict(
                zip((one.name for one in running), pool.map(lambda one: one.idle(watch_s), running), strict=True)
            )
    rows = [
        [name, f"{idle.cpu_s:.4f}", number(idle.private_bytes / 1e6), number(idle.shared_bytes / 1e6)]
        + [str(idle.processes), str(idle.aggregators)]
        for name, idle in idles.items()
    ]
    head = ["system", f"CPU in {watch_s:g} s, s", "private, MB", "shared, MB", "processes", "aggregators"]
    outcome.tables = [Table(f"{watch_s:g} s without updates, after a round", head, rows)]
    outcome.plots = [Plot("idle", f"CPU seconds in {watch_s:g} s without updates", partial(_bars, idles))]
    outcome.data = {name: msgspec.to_builtins(idle) for name, idle in idles.items()}
    if "LIFL" in idles and not context.quick:
        mine = idles["LIFL"]
        outcome.targets = [
            # Rounded as it is asked for: to hundredths of a second.
            Target(f"CPU of an idle LIFL in {watch_s:g} s", "s", 0.0, round(mine.cpu_s, 2)),
            Target("aggregators of an idle LIFL", "", 0, mine.aggregators),
        ]
    return outcome


def _bars(idles: dict[str, Idle], axes: Any) -> None:
    axes.bar(list(idles), [idle.cpu_s for idle in idles.values()])
    axes.set(ylabel="CPU, s")
