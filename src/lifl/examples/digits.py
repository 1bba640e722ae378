"""The digits example: a small network, its data split over clients, its training; NumPy only.

The data are scikit-learn's 1,797 handwritten digits of 8 x 8 pixels.  A fifth is held out for the test; the
rest is split over the clients *non-IID*: for each class, the clients' shares are one Dirichlet draw (Hsu et
al. 2019, arXiv 1909.06335), so a small `alpha` gives each client few classes.  The network is 64 -> 32
(ReLU) -> 10 (softmax), trained by plain mini-batch SGD on the cross-entropy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

PIXELS = 64
HIDDEN = 32
CLASSES = 10
TEST_FRACTION = 0.2
SPLIT_SEED = 2024
EXAMPLES_PER_CLIENT_MIN = 10
SPLIT_DRAWS_MAX = 1_000

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]
Tensors = dict[str, NDArray[Any]]


class Examples(NamedTuple):
    """`images` of shape (n, 64) in 0..1, `labels` of shape (n,) in 0..9."""

    images: Floats
    labels: Labels


def make_model(seed: int) -> Tensors:
    """Return the untrained network (He initialisation): float32 tensors, 2,410 parameters."""
    rng = np.random.default_rng(seed)
    return {
        "hidden.weight": _he(rng, HIDDEN, PIXELS),
        "hidden.bias": np.zeros(HIDDEN, np.float32),
        "output.weight": _he(rng, CLASSES, HIDDEN),
        "output.bias": np.zeros(CLASSES, np.float32),
    }


def _he(rng: np.random.Generator, rows: int, columns: int) -> Floats:
    weights: Floats = (rng.standard_normal((rows, columns)) * np.sqrt(2 / columns)).astype(np.float32)
    return weights


def load(path: Path | None = None) -> tuple[Examples, Examples]:
    """Return the training and the test examples: from the file that `save` wrote, else from scikit-learn."""
    if path is not None:
        with np.load(path) as file:
            train = Examples(file["train_images"], file["train_labels"])
            return train, Examples(file["test_images"], file["test_labels"])
    from sklearn.datasets import load_digits

    data = load_digits()
    images, labels = (data.data / 16).astype(np.float32), data.target.astype(np.int64)
    order = np.random.default_rng(SPLIT_SEED).permutation(len(labels))
    held_out = round(len(labels) * TEST_FRACTION)
    chosen, rest = order[:held_out], order[held_out:]
    return Examples(images[rest], labels[rest]), Examples(images[chosen], labels[chosen])


def save(path: Path) -> None:
    """Write the data to `path` (.npz), so that many trainers need not import scikit-learn each."""
    train, test = load()
    np.savez(
        path,
        train_images=train.images,
        train_labels=train.labels,
        test_images=test.images,
        test_labels=test.labels,
    )


def split(train: Examples, clients: int, alpha: float, seed: int = SPLIT_SEED) -> list[Examples]:
    """Return one share per client, drawn anew until each has `EXAMPLES_PER_CLIENT_MIN`.

    Raise ValueError when no draw gives that: too many clients, or `alpha` too small.
    """
    rng = np.random.default_rng(seed)
    for _ in range(SPLIT_DRAWS_MAX):
        members: list[list[NDArray[np.intp]]] = [[] for _ in range(clients)]
        for digit in range(CLASSES):
            indices = rng.permutation(np.flatnonzero(train.labels == digit))
            cuts = np.cumsum(rng.dirichlet(np.full(clients, alpha)))[:-1] * len(indices)
            for client, part in enumerate(np.split(indices, cuts.astype(np.intp))):
                members[client].append(part)
        shares = [np.concatenate(parts) for parts in members]
        if min(len(share) for share in shares) >= EXAMPLES_PER_CLIENT_MIN:
            return [Examples(train.images[share], train.labels[share]) for share in shares]
    raise ValueError(
        f"{len(train.labels)} examples cannot be split over {clients} clients with alpha={alpha} so that each "
        f"has {EXAMPLES_PER_CLIENT_MIN}; take fewer clients or a larger alpha"
    )


def train(model: Tensors, data: Examples, *, epochs: int, batch: int, learning_rate: float, seed: int) -> Tensors:
    """Return `model` after `epochs` passes over `data` in batches drawn with `seed`; the argument is not changed."""
    rng = np.random.default_rng(seed)
    w1, b1, w2, b2 = (model[name].astype(np.float32) for name in _NAMES)
    for _ in range(epochs):
        order = rng.permutation(len(data.labels))
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            x = data.images[chosen]
            hidden, probability = _forward((w1, b1, w2, b2), x)
            # The gradient of the mean cross-entropy by the logits.
            probability[np.arange(len(chosen)), data.labels[chosen]] -= 1
            d_logits = probability / len(chosen)
            d_hidden = (d_logits @ w2) * (hidden > 0)
            w2 -= learning_rate * d_logits.T @ hidden
            b2 -= learning_rate * d_logits.sum(axis=0)
            w1 -= learning_rate * d_hidden.T @ x
            b1 -= learning_rate * d_hidden.sum(axis=0)
    return dict(zip(_NAMES, (w1, b1, w2, b2), strict=True))


def evaluate(model: Tensors, data: Examples) -> dict[str, float]:
    """Return `accuracy` and mean cross-entropy `loss` of `model` on `data`."""
    _hidden, probability = _forward(tuple(model[name] for name in _NAMES), data.images)
    right = probability[np.arange(len(data.labels)), data.labels]
    return {
        "accuracy": float(np.mean(probability.argmax(axis=1) == data.labels)),
        "loss": float(-np.mean(np.log(np.maximum(right, 1e-12)))),
    }


_NAMES = ("hidden.weight", "hidden.bias", "output.weight", "output.bias")


def _forward(weights: tuple[Floats, ...], images: Floats) -> tuple[Floats, Floats]:
    w1, b1, w2, b2 = weights
    hidden = np.maximum(images @ w1.T + b1, 0)
    logits = hidden @ w2.T + b2
    exponent = np.exp(logits - logits.max(axis=1, keepdims=True))
    return hidden, exponent / exponent.sum(axis=1, keepdims=True)
