"""The network of OpenFL's first workspace (keras/mnist), in NumPy, and its optimiser; no framework is needed.

Two convolutions of 4 x 4 with stride 2 (16 and 32 channels), a dense layer of 100, and ten logits, with ReLU between;
trained by Adam on the cross-entropy.  Tensors are named and laid out as Keras has them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Model = dict[str, Array]
SIDE, KERNEL, STRIDE = 28, 4, 2
SHAPES = {
    "conv2d/kernel": (4, 4, 1, 16),
    "conv2d/bias": (16,),
    "conv2d_1/kernel": (4, 4, 16, 32),
    "conv2d_1/bias": (32,),
    "dense/kernel": (800, 100),
    "dense/bias": (100,),
    "dense_1/kernel": (100, 10),
    "dense_1/bias": (10,),
}
RATE, BETA_1, BETA_2, EPSILON = 0.001, 0.9, 0.999, 1e-7


def first_model(seed: int = 0) -> Model:
    """Return Keras' first weights: Glorot's uniform kernels, no biases."""
    rng = np.random.default_rng(seed)
    model = {}
    for name, shape in SHAPES.items():
        field = int(np.prod(shape[:-2])) if len(shape) > 1 else 1
        limit = np.sqrt(6 / (field * sum(shape[-2:]))) if len(shape) > 1 else 0.0
        model[name] = rng.uniform(-limit, limit, shape).astype(np.float32)
    return model


def train(model: Model, images: Array, labels: NDArray[np.int64], batch: int, seed: int) -> float:
    """Train one epoch in place, as OpenFL's task `train` does with `opt_treatment: RESET`; return the mean loss."""
    order = np.random.default_rng(seed).permutation(len(labels))
    moments = {name: (np.zeros_like(value), np.zeros_like(value)) for name, value in model.items()}
    loss = 0.0
    for step, start in enumerate(range(0, len(order), batch), 1):
        chosen = order[start : start + batch]
        of_batch, gradients = _gradients(model, images[chosen], labels[chosen])
        loss += of_batch * len(chosen)
        rate = RATE * np.sqrt(1 - BETA_2**step) / (1 - BETA_1**step)
        for name, gradient in gradients.items():
            mean, square = moments[name]
            mean += (1 - BETA_1) * (gradient - mean)
            square += (1 - BETA_2) * (gradient**2 - square)
            model[name] -= (rate * mean / (np.sqrt(square) + EPSILON)).astype(np.float32)
    return loss / len(order)


def accuracy(model: Model, images: Array, labels: NDArray[np.int64]) -> float:
    """Return the share of images that are seen as what they are."""
    return float(np.mean(_forward(model, images)[-1].argmax(1) == labels))


def _patches(images: Array) -> Array:
    """Return the fields that a convolution looks at: (n, side, side, kernel * kernel * channels)."""
    windows = np.lib.stride_tricks.sliding_window_view(images, (KERNEL, KERNEL), axis=(1, 2))[:, ::STRIDE, ::STRIDE]
    count, side, _, channels = windows.shape[:4]
    return windows.transpose(0, 1, 2, 4, 5, 3).reshape(count, side, side, KERNEL * KERNEL * channels)


def _forward(model: Model, images: Array) -> list[Any]:
    first = _patches(images)
    hidden_1 = np.maximum(first @ model["conv2d/kernel"].reshape(-1, 16) + model["conv2d/bias"], 0)
    second = _patches(hidden_1)
    hidden_2 = np.maximum(second @ model["conv2d_1/kernel"].reshape(-1, 32) + model["conv2d_1/bias"], 0)
    flat = hidden_2.reshape(len(images), -1)
    hidden_3 = np.maximum(flat @ model["dense/kernel"] + model["dense/bias"], 0)
    return [first, hidden_1, second, flat, hidden_3, hidden_3 @ model["dense_1/kernel"] + model["dense_1/bias"]]


def _gradients(model: Model, images: Array, labels: NDArray[np.int64]) -> tuple[float, Model]:
    """Return the mean cross-entropy and its gradients."""
    first, hidden_1, second, flat, hidden_3, logits = _forward(model, images)
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    rows = np.arange(len(labels))
    loss = float(-np.log(np.maximum(shares[rows, labels], 1e-12)).mean())
    shares[rows, labels] -= 1
    d_logits = shares / len(labels)
    d_3 = (d_logits @ model["dense_1/kernel"].T) * (hidden_3 > 0)
    d_2 = ((d_3 @ model["dense/kernel"].T) * (flat > 0)).reshape(*second.shape[:3], 32)
    d_second = (d_2 @ model["conv2d_1/kernel"].reshape(-1, 32).T).reshape(*d_2.shape[:3], KERNEL, KERNEL, 16)
    d_1 = np.zeros_like(hidden_1)
    reach = STRIDE * d_2.shape[1]
    for row in range(KERNEL):
        for column in range(KERNEL):
            d_1[:, row : row + reach : STRIDE, column : column + reach : STRIDE] += d_second[:, :, :, row, column]
    d_1 *= hidden_1 > 0
    found = {
        "conv2d/kernel": np.tensordot(first, d_1, ([0, 1, 2], [0, 1, 2])),
        "conv2d/bias": d_1.sum((0, 1, 2)),
        "conv2d_1/kernel": np.tensordot(second, d_2, ([0, 1, 2], [0, 1, 2])),
        "conv2d_1/bias": d_2.sum((0, 1, 2)),
        "dense/kernel": flat.T @ d_3,
        "dense/bias": d_3.sum(0),
        "dense_1/kernel": hidden_3.T @ d_logits,
        "dense_1/bias": d_logits.sum(0),
    }
    return loss, {name: gradient.reshape(SHAPES[name]) for name, gradient in found.items()}
