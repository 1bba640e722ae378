"""The example with peft: adapters of different sites present or absent, through a real node."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from nodes import Node

from lifl import Client
from lifl.core.errors import Refused

torch = pytest.importorskip("torch", reason="NOT TESTED: make test-integrations installs torch")
pytest.importorskip("transformers", reason="NOT TESTED: make test-integrations installs transformers")
pytest.importorskip("peft", reason="NOT TESTED: make test-integrations installs peft")
safetensors_torch = pytest.importorskip("safetensors.torch")

EXAMPLE = Path(__file__).parents[2] / "examples/peft_adapters.py"
JOB = """
[job]
name = "adapters"
rounds = 2
trainable = ["*lora_*"]
[model]
path = "model.safetensors"
[selection]
clients_per_round = 3
"""


@pytest.fixture(scope="module")
def example() -> Any:
    spec = importlib.util.spec_from_file_location("peft_adapters", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def submitted(node: Node, tensors: dict[str, Any], job: str = JOB) -> None:
    folder = node.state_dir / "configs"
    folder.mkdir()
    safetensors_torch.save_file(
        {name: each.contiguous().clone() for name, each in tensors.items()}, folder / "model.safetensors"
    )
    (folder / "adapters.toml").write_text(job)
    node.json("submit", str(folder / "adapters.toml"))


def test_sites_with_other_adapters_train_together_and_the_base_never_moves(
    start_node: Callable[..., Node], example: Any
) -> None:
    """The job's file is of the whole model: the base is in it, and is not read."""
    node = start_node()
    whole = {name: each for name, each in example.model_with(example.ALL).state_dict().items() if "lm_head" not in name}
    submitted(node, whole)
    base = {name: each.clone() for name, each in whole.items() if "lora_" not in name}
    made = {"a": ["c_attn"], "b": ["c_attn"], "c": example.ALL}
    made = {name: example.model_with(layers) for name, layers in made.items()}
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda name: example.take_part(node.address, name, made[name]), made))
    path = node.json("status", "adapters")["rounds"][-1]["path"]
    committed = safetensors_torch.load_file(path)
    assert set(committed) == {name for name in whole if "lora_" in name}
    assert sum(each.nbytes for each in committed.values()) < 0.3 * sum(each.nbytes for each in whole.values())
    for name, each in made["c"].state_dict().items():
        if "c_fc" in name and "lora_" in name:  # one site alone has sent it: its own numbers, to the last bit
            assert torch.equal(committed[name], each), name
    attention = [name for name in committed if "c_attn" in name]
    assert attention and any(not torch.equal(committed[name], made["a"].state_dict()[name]) for name in attention)
    for model in made.values():
        for name, each in model.state_dict().items():
            assert name not in base or torch.equal(each, base[name]), name
    # One line takes a committed file into a model.
    fresh = example.model_with(example.ALL)
    assert not fresh.load_state_dict(safetensors_torch.load_file(path), strict=False).unexpected_keys
    assert all(torch.equal(fresh.state_dict()[name], each) for name, each in committed.items())


def test_an_adapter_of_another_rank_is_refused_by_its_name(start_node: Callable[..., Node], example: Any) -> None:
    node = start_node()
    submitted(
        node, example.adapters_of(example.model_with(example.ALL)), JOB.replace("= 3", "= 1").replace("= 2", "= 1")
    )
    with Client(node.address, job="adapters", client="c") as client:
        for round_ in client.rounds():
            with pytest.raises(Refused) as refused:
                round_.submit(example.model_with(example.ALL, rank=8), weight=1)
            assert refused.value.code == "wrong-shape" and "lora_A" in refused.value.field
            assert round_.submit(example.model_with(["c_fc"]), weight=1).accepted
