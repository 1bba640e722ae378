"""JAX's pytrees through a real node, and its arrays where they lie."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from nodes import Node
from safetensors.numpy import save_file

from lifl import Client
from lifl.core.errors import Refused
from lifl.trees import flatten, unflatten

jax = pytest.importorskip("jax", reason="NOT TESTED: make test-integrations installs jax")

JOB = """
[job]
name = "j"
rounds = 3
[model]
path = "tree.safetensors"
[selection]
clients_per_round = 1
"""


class Params(NamedTuple):
    layers: Any
    scale: Any


def made() -> Params:
    first, second = jax.random.split(jax.random.key(0))
    layers = [
        {"w": jax.random.normal(first, (3, 8)), "b": jax.numpy.zeros(8)},
        {"w": jax.random.normal(second, (8, 1)), "b": jax.numpy.zeros(1)},
    ]
    return Params(layers, jax.numpy.ones((), jax.numpy.float16))


def loss(params: Params, x: Any, y: Any) -> Any:
    hidden = jax.numpy.tanh(x @ params.layers[0]["w"] + params.layers[0]["b"])
    out = (hidden @ params.layers[1]["w"] + params.layers[1]["b"]) * params.scale.astype(jax.numpy.float32)
    return ((out[:, 0] - y) ** 2).mean()


def test_a_tree_is_trained_through_a_node(start_node: Callable[..., Node]) -> None:
    node = start_node()
    save_file(flatten(made()), node.state_dir / "tree.safetensors")
    (node.state_dir / "j.toml").write_text(JOB)
    node.lifl("submit", str(node.state_dir / "j.toml"))
    x = jax.random.normal(jax.random.key(1), (64, 3))
    y = x.sum(axis=1)
    step = jax.jit(
        lambda params: jax.tree.map(lambda p, g: p - (g * 0.05).astype(p.dtype), params, jax.grad(loss)(params, x, y))
    )
    params = expected = made()
    losses = []
    with Client(node.address, job="j", client="c") as client:
        for round_ in client.rounds():
            params = unflatten(round_.model, params)
            assert jax.tree.structure(params) == jax.tree.structure(expected)
            assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))
            for found, wanted in zip(jax.tree.leaves(params), jax.tree.leaves(expected), strict=True):
                assert found.dtype == wanted.dtype and jax.numpy.array_equal(found, wanted)
            for _ in range(10):
                params, expected = step(params), step(expected)
            losses.append(float(loss(params, x, y)))
            round_.submit(flatten(params), weight=64, metrics={"loss": losses[-1]})
    assert losses == sorted(losses, reverse=True) and len(losses) == 3


def test_arrays_on_the_host_are_not_copied() -> None:
    for dtype in ("float32", "bfloat16", "int8", "bool"):
        array = jax.numpy.ones((64, 64), dtype)
        assert flatten({"a": array})["a"].ctypes.data == array.unsafe_buffer_pointer(), dtype


def test_a_shape_alone_says_what_a_leaf_is() -> None:
    shapes = jax.eval_shape(made)
    found = unflatten(flatten(made()), shapes)
    assert jax.tree.all(jax.tree.map(jax.numpy.array_equal, found, made()))


def test_what_is_no_tensor_is_refused_by_its_path() -> None:
    with pytest.raises(Refused, match=r"tensor 'key', a PRNGKeyArray|'key'") as refused:
        flatten({"key": jax.random.key(0)})
    assert refused.value.field == "tensors.key"
    double = flatten(made()) | {"scale": np.ones((), np.float64)}
    with pytest.raises(Refused, match="float64, the tree's leaf is float16"):
        unflatten(double, made())  # JAX would make it float32 and say nothing
    traced: list[str] = []

    def inside(x: Any) -> Any:
        with pytest.raises(Refused) as refusal:
            flatten({"x": x})
        traced.append(refusal.value.field)
        return x

    jax.jit(inside)(jax.numpy.ones(2))
    assert traced == ["tensors.x"]
