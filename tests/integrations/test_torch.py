"""PyTorch's own models through a real node: every kind of tensor they have, there and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from nodes import Node

from lifl import Client
from lifl.core.errors import Refused

torch = pytest.importorskip("torch", reason="NOT TESTED: make test-integrations installs torch")
safetensors_torch = pytest.importorskip("safetensors.torch")


class Odd(torch.nn.Module):  # type: ignore[misc]
    """Has what models have: convolutions in another memory order, statistics, tied weights, odd dtypes, a scalar."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        self.norm = torch.nn.BatchNorm2d(4)
        self.embed = torch.nn.Embedding(11, 5)
        self.head = torch.nn.Linear(5, 11, bias=False)
        self.head.weight = self.embed.weight
        self.halves = torch.nn.Parameter(torch.ones(7, dtype=torch.float16))
        self.brain = torch.nn.Parameter(torch.full((3, 2), 1.5, dtype=torch.bfloat16))
        self.register_buffer("mask", torch.tensor([True, False, True]))
        self.register_buffer("eighth", torch.ones(5).to(torch.float8_e4m3fn))
        self.register_buffer("turned", torch.arange(6, dtype=torch.float32).reshape(2, 3).t())
        self.scale = torch.nn.Parameter(torch.tensor(2.0))


def step(module: Any) -> None:
    """What stands for training: each weight grows by one."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1)
        module.norm.num_batches_tracked.add_(1)


JOB = """
[job]
name = "j"
rounds = 2
[model]
path = "odd.safetensors"
[selection]
clients_per_round = 1
[aggregation]
fixed = ["mask", "eighth"]
"""


@pytest.fixture
def node(start_node: Callable[..., Node]) -> Node:
    """A node with a job whose model is `Odd`'s file, as safetensors writes it."""
    node = start_node()
    torch.manual_seed(0)
    safetensors_torch.save_model(Odd(), str(node.state_dir / "odd.safetensors"))
    (node.state_dir / "j.toml").write_text(JOB)
    node.lifl("submit", str(node.state_dir / "j.toml"))
    return node


def test_a_module_is_trained_by_its_state_dict(node: Node) -> None:
    torch.manual_seed(0)
    expected, module = Odd(), Odd()
    with Client(node.address, job="j", client="c") as client:
        for round_ in client.rounds():
            state = round_.state_dict(module)
            assert state.keys() == module.state_dict().keys()
            module.load_state_dict(state)
            for name, tensor in expected.state_dict().items():
                found = module.state_dict()[name]
                assert found.dtype == tensor.dtype and torch.equal(found.float(), tensor.float()), name
            assert module.head.weight is module.embed.weight
            step(module)
            step(expected)
            assert round_.submit(module, weight=3).accepted
    path = node.state_dir / "made.safetensors"
    node.lifl("model", "j", "-o", str(path))
    made = Odd()
    missing, unexpected = safetensors_torch.load_model(made, str(path))
    assert not missing and not unexpected
    for name, tensor in expected.state_dict().items():
        assert torch.equal(made.state_dict()[name].float(), tensor.float()), name


def test_the_tensors_are_the_models_memory(node: Node) -> None:
    with Client(node.address, job="j", client="c") as client:
        round_ = next(iter(client.rounds()))
        state = round_.state_dict()
        state["scale"].fill_(9)
        state["brain"].fill_(2.5)
        assert round_.model["scale"] == 9 and (round_.model["brain"] == 2.5).all()
        assert "head.weight" not in state or "embed.weight" not in state
        client.close()


def test_a_tensor_that_is_no_other_name_of_one_is_refused(node: Node) -> None:
    module = Odd()
    module.extra = torch.nn.Parameter(torch.zeros(11, 5))
    with Client(node.address, job="j", client="c") as client:
        round_ = next(iter(client.rounds()))
        with pytest.raises(Refused, match="no tensor 'extra'"):
            round_.submit(module, weight=1)
        untied = Odd()
        untied.head.weight = torch.nn.Parameter(torch.zeros(11, 5))
        with pytest.raises(Refused, match=r"no tensor '(head|embed)\.weight'"):
            round_.submit(untied, weight=1)


def test_nan_is_refused_by_the_tensors_name(node: Node) -> None:
    module = Odd()
    with torch.no_grad():
        module.brain[1, 1] = float("nan")
    with Client(node.address, job="j", client="c") as client:
        round_ = next(iter(client.rounds()))
        with pytest.raises(Refused, match="'brain' contains NaN"):
            round_.submit(module, weight=1)
