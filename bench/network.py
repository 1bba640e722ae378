"""The networks that are trained in the benchmark: dense layers with ReLU between them and softmax at the end; NumPy.

A model is one flat vector, layer after layer, each its weights (to x of) and then its biases.  Training writes into a
vector that is given (a client's place in the file of updates), by blocks of rows, so that a network of 50 MB needs no
second one for its gradient.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from lifl.examples.digits import Examples

Floats = NDArray[np.float32]
ROWS = 256
"""At a time, of a weight's gradient: they stay in the cache."""


class Network:
    """`layers` are the numbers of inputs, of hidden units, and of classes."""

    def __init__(self, *layers: int) -> None:
        self.layers = layers
        self.tensors: tuple[tuple[str, tuple[int, ...]], ...] = tuple(
            entry
            for number, (of, to) in enumerate(pairwise(layers))
            for entry in ((f"layer{number}.weight", (to, of)), (f"layer{number}.bias", (to,)))
        )

    @property
    def name(self) -> str:
        """For people."""
        return " - ".join(map(str, self.layers))

    @property
    def size(self) -> int:
        """Numbers in a model."""
        return sum(of * to + to for of, to in pairwise(self.layers))

    def first(self, seed: int) -> Floats:
        """Return the untrained model (He initialisation)."""
        chance = np.random.default_rng(seed)
        flat = np.zeros(self.size, np.float32)
        for weight, _ in self._parts(flat):
            weight[:] = chance.standard_normal(weight.shape, np.float32) * np.float32(np.sqrt(2 / weight.shape[1]))
        return flat

    def train(
        self, model: Floats, into: Floats, data: Examples, *, epochs: int, batch: int, learning_rate: float, seed: int
    ) -> None:
        """Write into `into` the model after `epochs` passes of plain SGD over `data` in batches drawn with `seed`."""
        chance = np.random.default_rng(seed)
        into[:] = model
        parts = self._parts(into)
        rate = np.float32(learning_rate)
        for _ in range(epochs):
            order = chance.permutation(len(data.labels))
            for begin in range(0, len(order), batch):
                chosen = order[begin : begin + batch]
                inputs, probability = self._forward(parts, data.images[chosen])
                # The gradient of the mean cross-entropy by the logits.
                probability[np.arange(len(chosen)), data.labels[chosen]] -= 1
                slope = probability / np.float32(len(chosen))
                for number in reversed(range(len(parts))):
                    weight, bias = parts[number]
                    below = (slope @ weight) * (inputs[number] > 0) if number else None
                    for row in range(0, len(weight), ROWS):
                        weight[row : row + ROWS] -= (rate * slope[:, row : row + ROWS]).T @ inputs[number]
                    bias -= rate * slope.sum(axis=0)
                    if below is not None:
                        slope = below

    def accuracy(self, model: Floats, data: Examples) -> float:
        """Return the share of `data` that the model tells right."""
        _, probability = self._forward(self._parts(model), data.images)
        return float(np.mean(probability.argmax(axis=1) == data.labels))

    def _parts(self, flat: Floats) -> list[tuple[Floats, Floats]]:
        parts, begin = [], 0
        for of, to in pairwise(self.layers):
            end = begin + of * to
            parts.append((flat[begin:end].reshape(to, of), flat[end : end + to]))
            begin = end + to
        return parts

    @staticmethod
    def _forward(parts: list[tuple[Floats, Floats]], images: Floats) -> tuple[list[Floats], Floats]:
        """Return the inputs of each layer, and the probabilities of the classes."""
        inputs = [images]
        for weight, bias in parts[:-1]:
            inputs.append(np.maximum(inputs[-1] @ weight.T + bias, 0))
        logits = inputs[-1] @ parts[-1][0].T + parts[-1][1]
        exponent = np.exp(logits - logits.max(axis=1, keepdims=True))
        return inputs, exponent / exponent.sum(axis=1, keepdims=True)
