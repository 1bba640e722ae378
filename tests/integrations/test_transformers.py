"""transformers' real trainer takes part in a job by a callback, with all of a model and with its adapters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nodes import Node

from lifl import Client
from lifl.core.errors import LocalFault

torch = pytest.importorskip("torch", reason="NOT TESTED: make test-integrations installs torch")
transformers = pytest.importorskip("transformers", reason="NOT TESTED: make test-integrations installs transformers")
peft = pytest.importorskip("peft", reason="NOT TESTED: make test-integrations installs peft")
safetensors_torch = pytest.importorskip("safetensors.torch")

JOB = """
[job]
name = "j"
rounds = 3
{trainable}
[model]
path = "model.safetensors"
[selection]
clients_per_round = 1
"""


def small() -> Any:
    """A transformer with tied weights."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=32, n_positions=8, n_embd=16, n_layer=1, n_head=2, resid_pdrop=0.0)
    return transformers.GPT2LMHeadModel(config)


def texts(seed: int, count: int) -> list[dict[str, Any]]:
    words = torch.randint(32, (count, 8), generator=torch.Generator().manual_seed(seed))
    return [{"input_ids": row, "labels": row} for row in words]


class Seen(transformers.TrainerCallback):  # type: ignore[misc, name-defined]
    """Notes with what each epoch begins: how much state the optimiser has, and the weights."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.states: list[int] = []
        self.weights: list[Any] = []

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.states.append(len(kwargs["optimizer"].state))
        self.weights.append(kwargs["model"].state_dict()[self.name].clone())


def run(model: Any, folder: Path, *callbacks: Any, **more: Any) -> None:
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        logging_strategy="epoch",
        **({"num_train_epochs": 100} | more),
    )
    transformers.Trainer(
        model, arguments, train_dataset=texts(1, 12), eval_dataset=texts(2, 4), callbacks=list(callbacks)
    ).train()


def submitted(node: Node, model: Any, trainable: str = "") -> None:
    safetensors_torch.save_model(model, str(node.state_dir / "model.safetensors"))
    (node.state_dir / "j.toml").write_text(JOB.format(trainable=trainable))
    node.lifl("submit", str(node.state_dir / "j.toml"))


def test_train_takes_part_in_each_round_and_ends_with_the_job(start_node: Callable[..., Node], tmp_path: Path) -> None:
    from lifl.integrations.transformers import LiflCallback

    node = start_node()
    submitted(node, small())
    model, seen = small(), Seen("transformer.wte.weight")
    with Client(node.address, job="j", client="c") as client:
        run(model, tmp_path, LiflCallback(client, epochs_per_round=2), seen, eval_strategy="epoch")
    assert len(seen.states) == 6 and [bool(states) for states in seen.states] == [False, True] * 3
    status = node.json("status", "j")
    assert status["job"]["status"] == "finished"
    for each in status["rounds"]:
        assert {"loss", "eval_loss"} <= set(each["metrics"]), "what an epoch's end logs and evaluates goes along"
    committed = safetensors_torch.load_file(status["rounds"][-1]["path"])
    (tied,) = {"transformer.wte.weight", "lm_head.weight"} & set(committed)
    assert torch.equal(committed[tied], model.transformer.wte.weight.detach())
    assert model.lm_head.weight is model.transformer.wte.weight
    first = safetensors_torch.load_file(status["rounds"][0]["path"])
    assert torch.equal(first[tied], seen.weights[2])


def test_adapters_alone_travel(start_node: Callable[..., Node], tmp_path: Path) -> None:
    from lifl.integrations.transformers import LiflCallback

    node = start_node()
    adapters = peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True)
    model = peft.get_peft_model(small(), adapters)
    submitted(node, model, 'trainable = ["*lora_*"]')
    with Client(node.address, job="j", client="c") as client:
        run(model, tmp_path, LiflCallback(client))
    committed = safetensors_torch.load_file(node.json("status", "j")["rounds"][-1]["path"])
    assert committed and all("lora_" in name for name in committed)
    assert all(torch.equal(model.state_dict()[name], each) for name, each in committed.items())


def test_who_stops_earlier_waits_for_no_round(start_node: Callable[..., Node], tmp_path: Path) -> None:
    from lifl.integrations.transformers import LiflCallback

    node = start_node()
    submitted(node, small())
    seen = Seen("transformer.wte.weight")
    with Client(node.address, job="j", client="c") as client:
        run(small(), tmp_path, LiflCallback(client), seen, num_train_epochs=1)
        assert len(seen.states) == 1
        other = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=32, n_embd=8, n_layer=1, n_head=2))
        with pytest.raises(LocalFault, match="does not fit the module"):
            run(other, tmp_path, LiflCallback(client))
