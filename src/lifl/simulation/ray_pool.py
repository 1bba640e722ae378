"""Virtual clients that train on a Ray cluster that is there: one on each of its CPUs at a time.

A round's model is put into Ray's object store once; an update comes back from there.  The trainer's module is imported
on the cluster's machines, with what it needs: it lies in the same folder there, or is installed, and so is LIFL.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lifl.client.tensors import Array
from lifl.core.errors import ConfigError, ResourceFault
from lifl.core.fields import Properties
from lifl.simulation import trainers
from lifl.simulation.pools import Models, asked_properties
from lifl.simulation.trainers import OPTIONS, Functions, Trained, TrainerFailed, Training, import_all

ADDRESS = "RAY_ADDRESS"
REACH_S = 10.0
"""Within which somebody listens at the cluster's address; Ray itself tries for minutes."""
TOKEN = "where the cluster asks for a token, set RAY_AUTH_MODE=token and its RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"


class RayPool:
    """A connection to the cluster of ``$RAY_ADDRESS``, or of this machine, for the user's `functions`.

    `show` is given the traceback of one that cannot be imported.  Raise `ConfigError` and `ResourceFault`.
    """

    def __init__(self, functions: Functions, show: Callable[[str], None] = lambda _trace: None) -> None:
        try:
            import ray
        except ImportError as error:
            raise ConfigError("--backend", "ray is not installed: pip install 'lifl[ray]'") from error
        address = os.environ.get(ADDRESS) or "auto"
        try:
            check_there(address)
            ray.init(address=address, logging_level="ERROR", configure_logging=False)
        except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            text = f"no Ray cluster is there, or it does not take this program: {' '.join(str(error).split())}"
            text = f"{text}; set {ADDRESS}, or start one with `ray start --head`; {TOKEN}"
            raise ResourceFault(text) from error
        self._ray: Any = ray
        self.functions = functions
        self._closed = threading.Event()
        self._models = Models()
        self._train = ray.remote(max_retries=0)(_train)
        try:
            cpus = int(ray.cluster_resources().get("CPU", 1))
            self._free = threading.Semaphore(max(cpus, 1))
            option, problem, trace = ray.get(ray.remote(max_retries=0)(import_all).remote(functions))
            if problem:
                show(trace)
                raise ConfigError(option, problem)
        except ray.exceptions.RayError as error:
            self.close()
            text = f"the Ray cluster has not imported the trainer {functions.train}: {error}"
            raise ResourceFault(text) from error
        except BaseException:
            self.close()
            raise

    def begin(self, folder: Path) -> None:
        """Begin another job; no file is needed."""
        self._models = Models()

    def said(self, count: int) -> list[Properties | None]:
        """Ask, on the cluster, what clients say of themselves."""
        function = self.functions.properties
        if not function:
            return [None] * count
        try:
            asked = self._ray.remote(max_retries=0)(asked_properties).remote(function, count)
            found: list[Properties | None]
            found, problem = self._ray.get(asked)
        except self._ray.exceptions.RayError as error:
            raise ResourceFault(f"the Ray cluster has not asked {function}: {error}") from error
        if problem:
            raise ConfigError(OPTIONS.properties, problem)
        return found

    def train(
        self, training: Training, model: Callable[[], dict[str, Array]], wanted: Callable[[], bool]
    ) -> Trained | None:
        """Wait for a CPU that is free, and train on it."""
        with self._free:
            if self._closed.is_set() or not wanted():
                return None
            try:
                kept = self._models.of(training.model, lambda: self._ray.put(model()))
                done: Trained | TrainerFailed = self._ray.get(self._train.remote(self.functions, training, kept))
            except self._ray.exceptions.RayError as error:
                if self._closed.is_set():
                    return None
                raise TrainerFailed(f"on the Ray cluster: {error}") from error
        if isinstance(done, TrainerFailed):
            raise done
        return done

    def close(self) -> None:
        """Let go of the cluster, which ends what is trained there for this program."""
        self._closed.set()
        self._ray.shutdown()


def check_there(address: str) -> None:
    """Raise `OSError` when nobody listens at an address that is HOST:PORT; others Ray looks for."""
    host, _, port = address.rpartition(":")
    if "//" not in host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), REACH_S).close()


# ---- on the cluster --------------------------------------------------------------------------------------------------


def _train(functions: Functions, training: Training, model: dict[str, Array]) -> Trained | TrainerFailed:
    """Train, or return why that failed; what is in the object store cannot be written to."""
    try:
        return trainers.done(functions, {name: array.copy() for name, array in model.items()}, training)
    except TrainerFailed as fault:
        return fault
    except ConfigError as error:
        return TrainerFailed(str(error))
