"""Where virtual clients train: in processes of this machine, one client in each at a time.

Tensors reach a process and come back in files that both sides map: the round's model is written once, and each process
maps it with pages of its own for what it changes; an update is written where the client that submits it has it mapped.
So no tensor is pickled, and none is held in memory that nobody works on.

A process that ends while it trains (out of memory, a fault in a library) fails that client alone; another takes its
place.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from lifl.client.tensors import Array, as_model
from lifl.core.errors import ConfigError, ResourceFault
from lifl.core.fields import Properties
from lifl.core.schema import Layout, TensorSpec
from lifl.simulation import trainers
from lifl.simulation.trainers import OPTIONS, Functions, Trained, TrainerFailed, Training, import_all

ONE_THREAD = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""What has libraries compute in one thread, unless the user has set it: each core has a process."""


class Pool(Protocol):
    """Trains clients of one job at a time.  Its methods are called from any threads."""

    functions: Functions

    def begin(self, folder: Path) -> None:
        """Be ready for another job, whose files may be in `folder`."""

    def train(
        self, training: Training, model: Callable[[], dict[str, Array]], wanted: Callable[[], bool]
    ) -> Trained | None:
        """Return what came of it; None: it was not `wanted` any more when its turn came.

        `model` fetches the round's, once.  Raise what that raises, and `TrainerFailed`.
        """

    def said(self, count: int) -> list[Properties | None]:
        """Return what so many clients say of themselves: nothing, where no function tells.  Raise `ConfigError`."""

    def close(self) -> None:
        """End it, with what is being trained."""


class Models:
    """What is kept of the last rounds' models."""

    KEPT = 2
    """Rounds: one may begin while the last one is being saved."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[int, Any] = {}

    def of(self, number: int, make: Callable[[], Any]) -> Any:
        """Return what one of those who ask has made of a round's model."""
        with self._lock:
            if number not in self._kept:
                found = make()
                self._kept = dict(sorted({**self._kept, number: found}.items())[-self.KEPT :])
                return found
            return self._kept[number]


class ModelFile:
    """A model's file, which goes with this object.  Raise `ResourceFault` when it cannot be written."""

    def __init__(self, path: Path, layout: Layout, model: dict[str, Array]) -> None:
        self.path = path
        _write(path, layout, model)

    def __del__(self) -> None:
        self.path.unlink(missing_ok=True)


class Processes:
    """So many processes, each of which has the user's `functions`.

    `show` is given the traceback of one that cannot be imported.  Raise `ConfigError` then, and `ResourceFault`.
    """

    def __init__(self, functions: Functions, count: int, show: Callable[[str], None] = lambda _trace: None) -> None:
        for name in ONE_THREAD:
            os.environ.setdefault(name, "1")
        self.functions = functions
        self._free: queue.SimpleQueue[ProcessPoolExecutor] = queue.SimpleQueue()
        self._count = count
        self._closed = threading.Event()
        self._folder, self._models = Path(), Models()
        processes = [_process() for _ in range(count)]
        for each in processes:
            self._free.put(each)
        try:
            for imported in [each.submit(import_all, functions) for each in processes]:
                option, problem, trace = imported.result()
                if problem:
                    show(trace)
                    raise ConfigError(option, problem)
        except BrokenProcessPool as error:
            self.close()
            raise ResourceFault(f"a process ended while it imported the trainer {functions.train}") from error
        except BaseException:
            self.close()
            raise

    def begin(self, folder: Path) -> None:
        """Keep the files of the next job in this folder."""
        self._folder, self._models = folder, Models()

    def said(self, count: int) -> list[Properties | None]:
        """Ask one of the processes what clients say of themselves."""
        function = self.functions.properties
        if not function:
            return [None] * count
        process = self._free.get()
        try:
            found, problem = process.submit(asked_properties, function, count).result()
        except BrokenProcessPool as error:
            raise ResourceFault(f"a process ended while it asked {function}") from error
        finally:
            self._free.put(process)
        if problem:
            raise ConfigError(OPTIONS.properties, problem)
        return found

    def train(
        self, training: Training, model: Callable[[], dict[str, Array]], wanted: Callable[[], bool]
    ) -> Trained | None:
        """Wait for a process that is free, and train in it."""
        folder, models = self._folder, self._models
        process = self._free.get()
        try:
            if self._closed.is_set() or not wanted():
                return None
            layout = layout_of(training)
            path = folder / f"model-{training.model}"
            kept: ModelFile = models.of(training.model, lambda: ModelFile(path, layout, model()))
            update = folder / f"update-{training.client}-{training.round}"
            done = process.submit(_train, self.functions, training, kept.path, update).result()
            if training.evaluates:
                return Trained({}, done.weight, done.metrics)
            tensors = as_model(layout, np.memmap(update, np.uint8, "r"))
            update.unlink()
            return Trained({name: tensors[name] for name in done.names}, done.weight, done.metrics)
        except BrokenProcessPool:
            if self._closed.is_set():
                return None
            process = _process()
            raise TrainerFailed("its process ended while it trained: it was killed, or there is no memory") from None
        finally:
            self._free.put(process)

    def close(self) -> None:
        """End all processes, with what they train."""
        self._closed.set()
        _kill()
        processes = [self._free.get() for _ in range(self._count)]  # who has one still gives it back
        for process in processes:
            process.shutdown(wait=True, cancel_futures=True)
            self._free.put(process)  # who waits for one sees that nothing is trained any more


def _kill() -> None:
    """Kill the processes of this one's pools."""
    children = multiprocessing.active_children()
    for child in children:
        child.kill()
    for child in children:
        child.join()


@lru_cache(2)
def _layout(tensors: tuple[TensorSpec, ...]) -> Layout:
    return Layout(tensors)


def layout_of(training: Training) -> Layout:
    """Return the layout of a training's tensors."""
    return _layout(training.tensors)


def _write(path: Path, layout: Layout, tensors: dict[str, Array]) -> None:
    """Write tensors to a file in the layout's order, zeros for those that are not given.  Raise `ResourceFault`."""
    try:
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, layout.data_bytes)  # to write to a page that the disk has not is death
        to = as_model(layout, np.memmap(path, np.uint8, "r+"))
    except OSError as error:
        text = f"{layout.data_bytes} bytes cannot be written to {path}: {error.strerror}; make room, or set TMPDIR"
        raise ResourceFault(text) from error
    for name, array in tensors.items():
        to[name][...] = array


# ---- in the processes ------------------------------------------------------------------------------------------------


class Done(NamedTuple):
    """A client's training whose update is in its file: the names of the tensors that are there."""

    names: list[str]
    weight: float
    metrics: dict[str, float]


def _process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _begin)


def _begin() -> None:
    """Leave Ctrl-C and standard output to the parent, and end with it, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(2, 1)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()


def asked_properties(function: str, count: int) -> tuple[list[Properties | None], str]:
    """Return what clients say of themselves, and why that cannot be had."""
    try:
        return trainers.said_of(function, count), ""
    except ConfigError as error:
        return [], error.problem


def _train(functions: Functions, training: Training, model: Path, update: Path) -> Done:
    layout = layout_of(training)
    tensors = as_model(layout, np.memmap(model, np.uint8, "c"))
    done = trainers.done(functions, tensors, training)
    if training.evaluates:
        return Done([], done.weight, done.metrics)
    try:
        _write(update, layout, done.tensors)
    except ResourceFault as fault:
        raise TrainerFailed(str(fault)) from fault
    return Done(list(done.tensors), done.weight, done.metrics)
