"""Parts of the measured job: a model, clients that train nothing, and who looks at the server's process."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.executor import Executor
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import FLMetaKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.app_common.abstract.model import ModelLearnable, make_model_learnable
from nvflare.app_common.abstract.model_persistor import ModelPersistor
from nvflare.app_common.app_event_type import AppEventType

TENSORS = 12
SAMPLE_S = 0.05


def is_torch(torch: bool) -> Any:
    """Return torch, with NVFlare's way of sending its tensors, or None."""
    if not torch:
        return None
    import torch as found
    from nvflare.app_opt.pt.decomposers import TensorDecomposer
    from nvflare.fuel.utils import fobs

    fobs.register(TensorDecomposer)
    return found


class Model(ModelPersistor):  # type: ignore[misc]
    """A model of so many MiB in twelve tensors, which is not saved."""

    def __init__(self, mib: float, torch: bool = False) -> None:
        super().__init__()
        self.mib = mib
        self.torch = torch

    def load_model(self, fl_ctx: FLContext) -> ModelLearnable:
        """Return the model."""
        rng = np.random.default_rng(1)
        size = int(self.mib * 2**20 / 4 / TENSORS)
        weights: dict[str, Any] = {f"layer{i}.weight": rng.random(size, np.float32) for i in range(TENSORS)}
        library = is_torch(self.torch)
        if library is not None:
            weights = {name: library.from_numpy(array) for name, array in weights.items()}
        return make_model_learnable(weights=weights, meta_props={})

    def save_model(self, model: ModelLearnable, fl_ctx: FLContext) -> None:
        """Do nothing: how a model is saved is the same for all."""


class Train(Executor):  # type: ignore[misc]
    """Adds 1 to each number."""

    def __init__(self, torch: bool = False) -> None:
        super().__init__()
        self.torch = torch

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Have torch's tensors travel."""
        if event_type == EventType.START_RUN:
            is_torch(self.torch)

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        """Return the update."""
        params = {name: value + 1 for name, value in from_shareable(shareable).data.items()}
        meta = {FLMetaKey.NUM_STEPS_CURRENT_ROUND: 1}
        return DXO(DataKind.WEIGHTS, data=params, meta=meta).to_shareable()


class Watch(FLComponent):  # type: ignore[misc]
    """Writes of each round: seconds, the CPU seconds and the peak of the server's process, and those of LIFL's."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path
        self._start_s = 0.0
        self._cpu_s: dict[int, float] = {}
        self._peak_mib = 0.0

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Look when a round begins, and when its model is there."""
        if event_type == AppEventType.ROUND_STARTED:
            if not self._peak_mib:
                threading.Thread(target=self._watch, daemon=True).start()
            self._peak_mib = self._private_mib()
            self._cpu_s = self._cpu()
            self._start_s = time.monotonic()
        elif event_type == AppEventType.AFTER_AGGREGATION:
            seconds = time.monotonic() - self._start_s
            after = self._cpu()
            with open(self.path, "a") as file:
                cpu_s = sum(after.values()) - sum(self._cpu_s.get(pid, 0.0) for pid in after)
                found = {
                    "round_s": seconds,
                    "cpu_s": cpu_s,
                    "server_peak_mib": self._peak_mib,
                    "arena_mib": self._arena_mib(),
                }
                file.write(json.dumps(found) + "\n")

    @staticmethod
    def _lifl() -> list[psutil.Process]:
        mine = psutil.Process().children(recursive=True)
        nodes = [each for each in mine if "lifl.node.embedded" in each.cmdline()]
        return [each for node in nodes for each in (node, *node.children(recursive=True))]

    def _cpu(self) -> dict[int, float]:
        """CPU seconds of the server's process, and of LIFL's node; by the threads' sum, not of the clients."""
        return {each.pid: sum(each.cpu_times()[:2]) for each in (psutil.Process(), *self._lifl())}

    @staticmethod
    def _private_mib() -> float:
        """Return the memory of the server's own process that is in no file, and no arena's."""
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))

    def _watch(self) -> None:
        while True:
            self._peak_mib = max(self._peak_mib, self._private_mib())
            time.sleep(SAMPLE_S)

    def _arena_mib(self) -> float:
        """Return what the node's arena has of memory, which its processes share."""
        found = set()
        for process in self._lifl():
            mapped = Path(f"/proc/{process.pid}/maps").read_text()
            found |= {word for word in mapped.split() if word.startswith("/dev/shm/lifl-")}
        return sum(os.stat(path).st_blocks * 512 / 2**20 for path in found if os.path.exists(path))
