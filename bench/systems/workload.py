"""What clients send: the tensors of real models, filled by a seed, and the weighted mean that must come out.

Needs NumPy alone, so that programs in any environment can use it.  All clients look at one array of random numbers:
client i's update is the run of it that begins `STEP` x i numbers further on.  So each client's number at each place
differs, all of them follow from the seed, and a hundred clients need the memory of one; `saved` puts them into a file
that all processes map.  Numbers lie in [0.5, 1.5), so that a relative error means something everywhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

CLIENTS_MAX = 1024
STEP = 16 * 67
"""A multiple of a cache line, so that all clients' tensors are aligned alike."""
BLOCK = 1 << 15
"""Numbers at a time, so that they stay in the cache."""
_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 152: (3, 8, 36, 3)}


@dataclass(frozen=True)
class Workload:
    """One model's updates.  `tensors` are (name, shape), all of float32; `path` is where the numbers are, if saved.

    Client i's update begins at number `step` x i; its weight is one of `weights`, if there are any.
    """

    name: str
    tensors: tuple[tuple[str, tuple[int, ...]], ...]
    seed: int
    path: str = ""
    step: int = STEP
    weights: tuple[float, ...] = ()
    _references: dict[tuple[int, ...], NDArray[np.float64]] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def size(self) -> int:
        """Numbers in an update."""
        return sum(prod(shape) for _, shape in self.tensors)

    @property
    def nbytes(self) -> int:
        """Bytes of an update's numbers."""
        return 4 * self.size

    @cached_property
    def _numbers(self) -> NDArray[np.float32]:
        if self.path:
            mapped: NDArray[np.float32] = np.load(self.path, mmap_mode="r")
            return mapped
        numbers = np.random.default_rng(self.seed).random(self.size + STEP * CLIENTS_MAX, np.float32)
        numbers += np.float32(0.5)
        return numbers

    def saved(self, folder: Path) -> Workload:
        """Return the same with its numbers in a file in `folder`."""
        path = folder / f"{self.name.replace('/', '-')}-{self.seed}.npy"
        if not path.exists():
            np.save(path, self._numbers)
        return replace(self, path=str(path), _references={})

    def flat(self, client: int) -> NDArray[np.float32]:
        """Return the update of one client as one vector, tensor after tensor; not a copy."""
        return self._numbers[self.step * client : self.step * client + self.size]

    def update(self, client: int) -> dict[str, NDArray[np.float32]]:
        """Return the update of one client by tensors; not a copy."""
        return dict(self.split(self.flat(client)))

    def split(self, flat: NDArray[Any]) -> Iterator[tuple[str, NDArray[Any]]]:
        """Return a flat update's tensors."""
        begin = 0
        for name, shape in self.tensors:
            count = prod(shape)
            yield name, flat[begin : begin + count].reshape(shape)
            begin += count

    def weight(self, client: int) -> float:
        """Return the number of examples that the client has trained on."""
        return self.weights[client] if self.weights else float(20 + 37 * client % 101)

    def reference(self, clients: Iterable[int]) -> NDArray[np.float64]:
        """Return the weighted mean over the clients in float64, flat; the last one is kept."""
        key = tuple(sorted(clients))
        if key not in self._references:
            total = np.zeros(self.size)
            weights = {client: np.float64(self.weight(client)) for client in key}
            for begin in range(0, self.size, BLOCK):
                block = slice(begin, min(begin + BLOCK, self.size))
                for client, weight in weights.items():
                    total[block] += self._numbers[STEP * client :][block] * weight
            self._references.clear()
            self._references[key] = total / sum(map(self.weight, key))
        return self._references[key]

    def error(self, flat: NDArray[Any], clients: Iterable[int]) -> float:
        """Return the largest relative error of a flat aggregate over the clients."""
        if flat.shape != (self.size,):
            raise ValueError(f"the aggregate has the shape {flat.shape}, not {(self.size,)}")
        reference = self.reference(clients)
        worst = 0.0
        for begin in range(0, self.size, BLOCK):
            here = reference[begin : begin + BLOCK]
            error = np.max(np.abs(flat[begin : begin + BLOCK] - here) / here)
            worst = float(np.maximum(worst, error))  # NaN stays
        return worst

    def to_json(self) -> str:
        """Return it for other programs."""
        told = {"name": self.name, "tensors": self.tensors, "seed": self.seed, "path": self.path}
        return json.dumps(told | {"step": self.step, "weights": self.weights})


def from_json(text: str) -> Workload:
    """Return what `to_json` described."""
    told = json.loads(text)
    tensors = tuple((name, tuple(shape)) for name, shape in told["tensors"])
    return Workload(told["name"], tensors, told["seed"], told["path"], told["step"], tuple(told["weights"]))


def resnet(depth: int, seed: int, width: int = 64) -> Workload:
    """Return ResNet-18, -34 or -152 for 1,000 classes as it is trained (46.8, 87.2, 240.8 MB); thinner by `width`."""
    wide = depth > 34
    tensors: list[tuple[str, tuple[int, ...]]] = []

    def convolution(name: str, to: int, of: int, kernel: int) -> None:
        tensors.append((f"{name}.weight", (to, of, kernel, kernel)))

    def norm(name: str, channels: int) -> None:
        tensors.extend([(f"{name}.weight", (channels,)), (f"{name}.bias", (channels,))])

    convolution("conv1", width, 3, 7)
    norm("bn1", width)
    of = width
    for stage, blocks in enumerate(_BLOCKS[depth]):
        inner = width << stage
        to = inner * (4 if wide else 1)
        for block in range(blocks):
            name = f"layer{stage + 1}.{block}"
            shapes = [(inner, of, 1), (inner, inner, 3), (to, inner, 1)] if wide else [(to, of, 3), (to, to, 3)]
            for number, (out, into, kernel) in enumerate(shapes, 1):
                convolution(f"{name}.conv{number}", out, into, kernel)
                norm(f"{name}.bn{number}", out)
            if of != to:
                convolution(f"{name}.downsample.0", to, of, 1)
                norm(f"{name}.downsample.1", to)
            of = to
    tensors.extend([("fc.weight", (1000, of)), ("fc.bias", (1000,))])
    return Workload(f"ResNet-{depth}" + (f"/{width}" if width != 64 else ""), tuple(tensors), seed)
