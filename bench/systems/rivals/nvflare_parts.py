"""What the benchmark adds to an NVFlare job: when a round begins, and when each client sends.

`RoundByRound` is NVFlare's own `FedAvg` controller, which adds each result to its in-time aggregator as it arrives; it
only waits for the benchmark's order before it sends the round's task, and tells when results came and when the
aggregate was ready.  `TimedExecutor` is a client's executor: it has its update in memory, waits for its time, and
returns it.  Both speak lines of JSON over the Unix socket that the benchmark listens on.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from nvflare.apis.event_type import EventType
from nvflare.apis.executor import Executor
from nvflare.apis.fl_constant import FLMetaKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.utils.fl_model_utils import FLModelUtils
from nvflare.app_common.workflows.fedavg import FedAvg

ROUNDS_MAX = 10_000


class Control:
    """The line to the benchmark."""

    def __init__(self, path: str, **hello: Any) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._lines = self._socket.makefile("r", encoding="utf-8")
        self.tell(pid=os.getpid(), **hello)

    def tell(self, **what: Any) -> None:
        """Send one line to the benchmark."""
        self._socket.sendall(json.dumps(what).encode() + b"\n")

    def order(self) -> dict[str, Any]:
        """Return the benchmark's next order; ``over`` when it is gone."""
        line = self._lines.readline()
        return json.loads(line) if line else {"over": True}


class RoundByRound(FedAvg):
    """`FedAvg` that the benchmark starts round by round."""

    def __init__(self, num_clients: int, control: str) -> None:
        super().__init__(num_clients=num_clients, num_rounds=ROUNDS_MAX, persistor_id="", model={"none": np.zeros(1)})
        self.num_clients = num_clients
        self.control = control
        self._line: Control | None = None
        self._order: dict[str, Any] = {}
        self._came: list[tuple[int, int, int]] = []
        self._lock = threading.Lock()

    def run(self) -> None:
        self._line = Control(self.control, role="server")
        super().run()

    def send_model(self, *args: Any, **given: Any) -> None:
        assert self._line
        self._order = self._line.order()
        if self._order.get("over"):
            self.abort_signal.trigger("the benchmark is over")
            return
        self._came.clear()
        given["min_responses"] = self._order["min_responses"]
        # A round of the benchmark's random updates need not send its clients a model.
        nothing = {"none": np.zeros(1)}
        given["data"] = FLModel(params_type=ParamsType.FULL, params=nothing, current_round=self.current_round)
        super().send_model(*args, **given)

    def _aggregate_one_result(self, result: FLModel) -> bool:
        came_ns = time.monotonic_ns()
        added = super()._aggregate_one_result(result)
        with self._lock:
            self._came.append((came_ns, time.monotonic_ns(), _number(result.meta["client_name"])))
        return added

    def _get_aggregated_result(self) -> FLModel:
        assert self._line
        begun_ns = time.monotonic_ns()
        result = super()._get_aggregated_result()
        ready_ns = time.monotonic_ns()
        path = self._order["path"]
        with open(path, "wb") as file:
            for name in self._order["names"]:
                file.write(memoryview(np.ascontiguousarray(result.params[name], np.float32)).cast("B"))
        self._line.tell(
            last_in_ns=max(came for came, _, _ in self._came),
            fold_s=sum(done - came for came, done, _ in self._came) / 1e9 + (ready_ns - begun_ns) / 1e9,
            ready_ns=ready_ns,
            counted=[client for _, _, client in self._came],
        )
        return result

    def save_model(self, model: FLModel) -> None:
        super().save_model(model)
        assert self._line
        self._line.tell(saved_ns=time.monotonic_ns())


def _number(site: str) -> int:
    """Return the client of a site that the simulator has named."""
    return int(site.rpartition("-")[2]) - 1


class TimedExecutor(Executor):
    """A client that returns its update when it is time to."""

    def __init__(self, control: str, modules: str, described: str) -> None:
        super().__init__()
        self.control, self.modules, self.described = control, modules, described
        self._line: Control | None = None
        self._update: dict[str, Any] = {}
        self._weight = 0.0

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        if event_type == EventType.START_RUN:
            sys.path.append(self.modules)
            import workload

            number = _number(fl_ctx.get_identity_name())
            load = workload.from_json(Path(self.described).read_text())
            # Plain arrays: NVFlare does not serialise views of a mapped file that say so.
            self._update = {name: np.asarray(values) for name, values in load.update(number).items()}
            self._weight = load.weight(number)
            self._line = Control(self.control, role="client", client=number)

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        assert self._line
        self._line.tell(ready=True)
        order = self._line.order()
        if order.get("dies"):  # its process is gone in the middle of the round, and another one in time for the next
            self._line.order()
            self._line.tell(begun_ns=time.monotonic_ns())
            return make_reply(ReturnCode.EXECUTION_EXCEPTION)
        meta = {FLMetaKey.NUM_STEPS_CURRENT_ROUND: self._weight}
        model = FLModel(params_type=ParamsType.FULL, params=self._update, meta=meta)
        made = FLModelUtils.to_shareable(model)
        threading.Event().wait(max(0.0, (order.get("at_ns", 0) - time.monotonic_ns()) / 1e9))
        self._line.tell(begun_ns=time.monotonic_ns())
        return made
