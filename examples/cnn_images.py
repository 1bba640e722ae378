"""A small convolutional network on real images, at four sites whose data differ.

    python cnn_images.py                            # all of it: a node, a job, the sites as processes, the result
    python cnn_images.py model model.safetensors    # the network that round 1 starts from
    python cnn_images.py train NODE SITE            # a site, from 0 to 3, until the job is over
    python cnn_images.py test model.safetensors     # how many of the held-out images a committed model gets right

The images are scikit-learn's: 1,797 handwritten digits of 8 x 8 pixels, of which a fifth is held out.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_model, save_model
from torch import nn

from lifl import Client
from lifl.examples.digits import Examples, load, split

SITES = 4
JOB = f"""
[job]
name = "images"
rounds = 8
[model]
path = "model.safetensors"
[selection]
clients_per_round = {SITES}
[client.options]
epochs = 2
learning_rate = 0.05
"""


def network() -> nn.Module:
    """Return the network, the same for everybody: 8 x 8 pixels in, ten classes out."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 2 * 2, 10),
    )


def tensors(data: Examples) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images of shape (n, 1, 8, 8) in 0..1, and their labels."""
    return torch.from_numpy(data.images).reshape(-1, 1, 8, 8), torch.from_numpy(data.labels)


def train(model: nn.Module, data: Examples, epochs: int, learning_rate: float) -> float:
    """Train in place; return the mean loss of the last epoch."""
    images, labels = tensors(data)
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate, momentum=0.9)
    model.train()
    losses: list[float] = []
    for _ in range(epochs):
        losses.clear()
        for chosen in torch.randperm(len(labels)).split(32):
            loss = nn.functional.cross_entropy(model(images[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    return sum(losses) / len(losses)


def accuracy(model: nn.Module, data: Examples) -> float:
    """Return the share of the images that the model gets right."""
    images, labels = tensors(data)
    model.eval()
    with torch.no_grad():
        return float((model(images).argmax(dim=1) == labels).float().mean())


def take_part(node: str, site: int) -> None:
    """Train in all rounds of the job, on the share of one site: of some digits it has many, of others few."""
    torch.set_num_threads(1)  # the sites share a machine here
    everything, _held_out = load()
    data = split(everything, SITES, alpha=0.5)[site]
    model = network()
    with Client(node, job="images", client=f"site-{site}") as client:
        for round in client.rounds():
            model.load_state_dict(round.state_dict())
            loss = train(model, data, **round.options)
            round.submit(model, weight=len(data.labels), metrics={"loss": loss})


def test(path: str) -> float:
    """Print and return the accuracy of a committed model on the held-out images."""
    model = network()
    load_model(model, path)
    found = accuracy(model, load()[1])
    print(f"{path}: {found:.1%} of the held-out images are right")
    return found


def run_all() -> float:
    """Start a node, run the job with all sites, end the node; return the accuracy of the last model."""
    lifl = [sys.executable, "-m", "lifl_cli.main"]
    with tempfile.TemporaryDirectory(prefix="lifl-") as folder:
        state = ["--state", f"{folder}/node"]
        started = subprocess.check_output(
            [*lifl, "up", "-d", "--json", "--listen", "127.0.0.1:0", "--arena-bytes", "64MiB", *state]
        )
        try:
            Path(folder, "images.toml").write_text(JOB)
            save_model(network(), f"{folder}/model.safetensors")
            subprocess.check_call([*lifl, "submit", f"{folder}/images.toml", *state])
            address = json.loads(started)["listen"][0]
            sites = [subprocess.Popen([sys.executable, __file__, "train", address, str(site)]) for site in range(SITES)]
            failed = [site for site, process in enumerate(sites) if process.wait()]
            if failed:
                raise SystemExit(f"these sites failed: {failed}")
            subprocess.check_call([*lifl, "status", "images", *state])
            subprocess.check_call([*lifl, "model", "images", "-o", f"{folder}/trained.safetensors", *state])
            return test(f"{folder}/trained.safetensors")
        finally:
            subprocess.check_call([*lifl, "down", *state])


if __name__ == "__main__":
    match sys.argv[1:]:
        case []:
            run_all()
        case ["model", path]:
            save_model(network(), path)
        case ["train", node, site]:
            take_part(node, int(site))
        case ["test", path]:
            test(path)
        case _:
            raise SystemExit(__doc__)
