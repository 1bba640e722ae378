"""A trainer for `lifl simulate`: scikit-learn's digits, of which each virtual client has a few of its own.

    cd examples/simulate
    lifl simulate digits.toml --clients 100 --trainer train:train -o digits.safetensors

It needs scikit-learn: pip install 'lifl[demo]'.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from lifl.examples import digits


@cache
def data() -> tuple[digits.Examples, digits.Examples]:
    """Return the training and the test examples, which each process reads once."""
    return digits.load()


def share(client: int, examples: int, alpha: float) -> digits.Examples:
    """Return a client's own examples; the smaller `alpha`, the fewer of the ten digits are among them."""
    train, _test = data()
    rng = np.random.default_rng(client)
    likely = rng.dirichlet(np.full(digits.CLASSES, alpha))[train.labels]
    chosen = rng.choice(len(train.labels), examples, p=likely / likely.sum())
    return digits.Examples(train.images[chosen], train.labels[chosen])


def train(
    tensors: digits.Tensors, *, client: int, round: int, options: dict[str, Any]
) -> tuple[digits.Tensors, float, dict[str, float]]:
    """Return the model after this client's training, its weight, and what the model is worth on the test data."""
    own = share(client, options["examples"], options["alpha"])
    seed = round * 10_000 + client
    how = {"epochs": options["epochs"], "batch": options["batch"], "learning_rate": options["learning_rate"]}
    model = digits.train(tensors, own, seed=seed, **how)
    return model, len(own.labels), digits.evaluate(tensors, data()[1])
