"""Runs rounds in one of the modes, and writes for each how long it took and what CPU the servers used."""

import json
import time

import numpy as np
import psutil
from flwr.app import Array, ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from lifl.integrations.flower import LiflStrategy
from lifl.integrations.flower.grid import LiflGrid
from lifl.integrations.flower.records import freed, sole_arrays, views, weight_of

app = ServerApp()
TENSORS = 60


def flowers(arrays) -> ArrayRecord:
    """Return an ArrayRecord as Flower makes it."""
    return ArrayRecord({name: Array(array) for name, array in arrays.items()})


def private_kib() -> int:
    """Return the memory of this process that is in no file and nobody else's."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon:"))


def servers_cpu_s(link: int) -> float:
    """CPU of the SuperLink and all that descends from it: ServerApp, LIFL's node."""
    top = psutil.Process(link)
    total = 0.0
    for process in [top, *top.children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


class Streamed(FedAvg):
    """The fair control: FedAvg by a running sum in NumPy over replies that are pulled one by one."""

    def again(self, reply):
        """Send nobody a second message."""

    def is_done(self):
        """Return whether all have replied."""
        return not self.waiting

    def pause(self, longest_s):
        """Wait before the servers are asked again."""
        time.sleep(longest_s)

    is_small = False

    def configure_train(self, server_round, arrays, config, grid):
        """Let the Grid hand on replies as they come."""
        self.waiting = set()
        grid.expect(self)
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round, replies):
        """Sum updates as they come."""
        total, weights = {}, 0.0
        for reply in replies:
            weight, arrays = weight_of(reply.content, self.weighted_by_key), sole_arrays(reply.content)
            for name, array in views(arrays).items():
                if name in total:
                    total[name] += array * np.float32(weight)
                else:
                    total[name] = array * np.float32(weight)
            weights += weight
            freed(arrays)
        for array in total.values():
            array /= np.float32(weights)
        return flowers(total), MetricRecord()


def timed(base, link: int, told: list):
    """Return a strategy that notes when its rounds begin, when the last reply was there, and when they end."""

    class Timed(base):
        def configure_train(self, server_round, arrays, config, grid):
            self.begin = time.monotonic(), servers_cpu_s(link)
            return super().configure_train(server_round, arrays, config, grid)

        def aggregate_train(self, server_round, replies):
            last = [time.monotonic()]

            def noting():
                for reply in replies:
                    last[0] = time.monotonic()
                    yield reply

            found = super().aggregate_train(server_round, noting() if not isinstance(replies, list) else replies)
            now = time.monotonic()
            told.append({
                "round": server_round,
                "round_s": now - self.begin[0],
                "servers_cpu_s": servers_cpu_s(link) - self.begin[1],
                "last_reply_to_model_s": now - last[0],
            })  # fmt: skip
            return found

    return Timed


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds."""
    given = context.run_config
    nodes, link, told = int(given["nodes"]), int(given["link"]), []
    size = int(given["model-bytes"]) // 4 // TENSORS
    arrays = {f"layer-{i:02}": np.full(size, i / TENSORS, np.float32) for i in range(TENSORS)}
    options = {"fraction_evaluate": 0.0, "min_train_nodes": nodes, "min_available_nodes": nodes}
    mode = given["mode"]
    if mode == "stock":
        strategy = timed(FedAvg, link, told)(**options)
    elif mode == "numpy":
        strategy, grid = timed(Streamed, link, told)(**options), LiflGrid(grid)
    else:
        options_of = {"many": {"rounds_per_message": int(given["rounds"])}, "ahead": {"send_ahead": True}}
        more = options_of.get(mode, {}) | ({"with_mod": ("train",)} if given["mod"] else {})
        strategy = timed(LiflStrategy, link, told)(FedAvg(**options), **more)
    model = flowers(arrays)
    del arrays
    before = private_kib()
    result = strategy.start(grid, model, num_rounds=int(given["rounds"]), timeout=600)
    means = [float(array.numpy().mean(dtype=np.float64)) for array in result.arrays.values()]
    report = {"rounds": told, "means": means, "server_app_before_bytes": 1024 * before}
    with open(given["out"], "w", encoding="utf-8") as file:
        json.dump(report, file)
