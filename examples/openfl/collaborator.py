"""A collaborator: `collaborator.py NAME SHARD [ADDRESS]`; what a workspace's `taskrunner.py` and `dataloader.py` were.

SHARD is its line in OpenFL's `data.yaml`: which of the two shards it has.  ADDRESS is the node's, or its state folder.
"""

from __future__ import annotations

import sys

import data
import network

from lifl import Client

COLLABORATORS = 2


def main() -> None:
    """Take part until the job is over: validate, train and validate again, as the plan's three tasks do."""
    name, number, *address = sys.argv[1:]
    images, labels, valid_images, valid_labels = data.shard(int(number), COLLABORATORS)
    with Client(*(address or ["127.0.0.1:7433"]), job="mnist", client=name) as client:
        for selected in client.rounds():
            model = dict(selected.model)
            before = network.accuracy(model, valid_images, valid_labels)  # aggregated_model_validation
            loss = network.train(model, images, labels, selected.options["batch_size"], seed=selected.number)  # train
            after = network.accuracy(model, valid_images, valid_labels)  # locally_tuned_model_validation
            metrics = {"loss": loss, "aggregated_accuracy": before, "local_accuracy": after}
            selected.submit(model, weight=len(labels), metrics=metrics)


if __name__ == "__main__":
    main()
