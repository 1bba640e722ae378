"""Lightning's real trainer takes part in a job by a callback."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from nodes import Node

from lifl import Client
from lifl.client import JobCancelled
from lifl.core.errors import LocalFault

torch = pytest.importorskip("torch", reason="NOT TESTED: make test-integrations installs torch")
lightning = pytest.importorskip("lightning.pytorch", reason="NOT TESTED: make test-integrations installs lightning")
safetensors_torch = pytest.importorskip("safetensors.torch")

JOB = """
[job]
name = "j"
rounds = 3
[model]
path = "line.safetensors"
[selection]
clients_per_round = {clients}
"""


class Line(lightning.LightningModule):  # type: ignore[misc, name-defined]
    """Fits a line; notes with which optimiser's state each epoch begins, and with which weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(2, 1)
        self.begun: list[tuple[int, Any]] = []

    def on_train_epoch_start(self) -> None:
        states = [len(optimizer.state) for optimizer in self.trainer.optimizers]
        self.begun.append((sum(states), self.layer.weight.detach().clone()))

    def training_step(self, batch: Any, _index: int) -> Any:
        loss = torch.nn.functional.mse_loss(self.layer(batch[0])[:, 0], batch[1])
        self.log("loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, _index: int) -> None:
        self.log("val", torch.nn.functional.mse_loss(self.layer(batch[0])[:, 0], batch[1]))
        self.log("none", float("nan"))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.02, momentum=0.9)


def loader(seed: int, examples: int) -> Any:
    x = torch.randn(examples, 2, generator=torch.Generator().manual_seed(seed))
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, x.sum(dim=1)), batch_size=8)


def trainer(*callbacks: Any, epochs: int = -1, **more: Any) -> Any:
    return lightning.Trainer(
        max_epochs=epochs,
        callbacks=list(callbacks),
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **more,
    )


def submitted(node: Node, clients: int) -> None:
    safetensors_torch.save_model(Line(), str(node.state_dir / "line.safetensors"))
    (node.state_dir / "j.toml").write_text(JOB.format(clients=clients))
    node.lifl("submit", str(node.state_dir / "j.toml"))


def test_fit_takes_part_in_each_round_and_ends_with_the_job(start_node: Callable[..., Node]) -> None:
    from lifl.integrations.lightning import LiflCallback

    node = start_node()
    submitted(node, 1)
    module = Line()
    with Client(node.address, job="j", client="c") as client:
        callback = LiflCallback(client, epochs_per_round=2)
        trainer(callback).fit(module, loader(1, 20), loader(2, 8))
        assert callback.round is None
    assert [state for state, _weights in module.begun] == [0, 2, 0, 2, 0, 2], "three rounds of two epochs each"
    status = node.json("status", "j")
    assert status["job"]["status"] == "finished"
    rounds = sorted(status["rounds"], key=lambda each: each["round"])
    assert [set(each["metrics"]) for each in rounds] == [{"loss", "val"}] * 3
    assert rounds[0]["metrics"]["val"] > rounds[-1]["metrics"]["val"]
    committed = safetensors_torch.load_file(rounds[-1]["path"])
    assert torch.equal(committed["layer.weight"], module.layer.weight.detach())
    # What a round begins with is what the one before committed: of one client, what it had.
    second = safetensors_torch.load_file(rounds[0]["path"])
    assert torch.equal(second["layer.weight"], module.begun[2][1])


def test_two_sites_train_one_model_and_weigh_as_many_as_they_have(start_node: Callable[..., Node]) -> None:
    from concurrent.futures import ThreadPoolExecutor

    from lifl.integrations.lightning import LiflCallback

    node = start_node()
    submitted(node, 2)
    modules = [Line(), Line()]

    def take_part(site: int) -> None:
        with Client(node.address, job="j", client=f"c{site}") as client:
            trainer(LiflCallback(client)).fit(modules[site], loader(site, 8 + 24 * site))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(take_part, range(2)))
    assert all(torch.equal(modules[0].begun[epoch][1], modules[1].begun[epoch][1]) for epoch in range(3))
    last = safetensors_torch.load_file(node.json("status", "j")["rounds"][-1]["path"])["layer.weight"]
    mean = (8 * modules[0].layer.weight + 32 * modules[1].layer.weight) / 40
    torch.testing.assert_close(last, mean.detach())


def test_who_stops_earlier_waits_for_no_round(start_node: Callable[..., Node]) -> None:
    from lifl.integrations.lightning import LiflCallback

    node = start_node()
    submitted(node, 1)
    with Client(node.address, job="j", client="c") as client:
        callback = LiflCallback(client, weight=1)
        trainer(callback, epochs=1).fit(Line(), loader(1, 8))
        assert callback.round is None
        callback = LiflCallback(client)
        module = Line()
        trainer(callback, epochs=1).fit(module, loader(1, 8))
        assert len(module.begun) == 1
    node.lifl("cancel", "j")
    with Client(node.address, job="j", client="c") as client, pytest.raises(JobCancelled):
        trainer(LiflCallback(client)).fit(Line(), loader(1, 8))


def test_what_cannot_take_part_is_refused_before_it_trains(start_node: Callable[..., Node]) -> None:
    from lifl.integrations.lightning import LiflCallback

    node = start_node()
    submitted(node, 1)
    module = Line()
    module.extra = torch.nn.Linear(1, 1)
    with Client(node.address, job="j", client="c") as client:
        with pytest.raises(LocalFault, match="epochs_per_round=0"):
            LiflCallback(client, epochs_per_round=0)
        with pytest.raises(LocalFault, match=r"model of job 'j' does not fit the module.*extra"):
            trainer(LiflCallback(client)).fit(module, loader(1, 8))
        stream = torch.utils.data.DataLoader(Stream(), batch_size=8)
        with pytest.raises(LocalFault, match="give that as weight="):
            trainer(LiflCallback(client)).fit(Line(), stream)
        with pytest.raises(LocalFault, match="2 processes"):
            LiflCallback(client)._rounds.begin(loader(1, 8), 2)


class Stream(torch.utils.data.IterableDataset):  # type: ignore[misc, name-defined]
    """Data without an end that is known."""

    def __iter__(self) -> Any:
        return iter([(torch.ones(2), torch.ones(()))] * 8)
