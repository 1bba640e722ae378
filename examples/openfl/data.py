"""The data of OpenFL's first workspace, split as it splits them; without a network, scikit-learn's digits stand in.

`mnist.npz`, where it is beside this file (OpenFL's own download, from Keras' storage), is MNIST.  Else the digits that
scikit-learn ships are drawn as large as MNIST's: 8 x 8 points become 24 x 24, with a margin of 2.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from network import Array
from numpy.typing import NDArray

MNIST = Path(__file__).parent / "mnist.npz"
Labels = NDArray[np.int64]
HELD_OUT = 360


def shard(number: int, count: int) -> tuple[Array, Labels, Array, Labels]:
    """Return shard `number` of `count`: images and labels to train on and to validate on, each `count`-th."""
    images, labels, valid_images, valid_labels = (each[number::count] for each in _all())
    return _scaled(images), labels.astype(np.int64), _scaled(valid_images), valid_labels.astype(np.int64)


def _all() -> list[NDArray[Any]]:
    if MNIST.exists():
        with np.load(MNIST) as file:
            return [file[name] for name in ("x_train", "y_train", "x_test", "y_test")]
    from sklearn.datasets import load_digits

    found = load_digits()
    images = np.pad(np.kron(found.images / 16 * 255, np.ones((1, 3, 3))), ((0, 0), (2, 2), (2, 2)))
    order = np.random.default_rng(0).permutation(len(images))
    images, labels = images[order], found.target[order]
    return [images[HELD_OUT:], labels[HELD_OUT:], images[:HELD_OUT], labels[:HELD_OUT]]


def _scaled(images: NDArray[Any]) -> Array:
    return (images[..., np.newaxis] / 255).astype(np.float32)
